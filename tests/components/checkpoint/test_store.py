"""Checkpoints on a real S3 server: the newest is found, what is not whole is never loaded, deletions begin well."""

import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from convergate.components.checkpoint import (
    CheckpointError,
    CheckpointRef,
    CheckpointStore,
    Manifest,
    copy_checkpoint,
    load_model_state,
)
from convergate.components.checkpoint.reading import fill, open_checkpoint, read_manifest, read_marker, restore, verify
from convergate.components.errors import UserError
from convergate.components.storage import S3Error, S3Location, S3Store, streams
from hypothesis import given
from hypothesis import strategies as st

from ...checkpoints import blob, commit, folder

TENSORS = {
    "model.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4) / 7,
    "model.half": torch.tensor([1.5, math.nan, -math.inf], dtype=torch.bfloat16),
    "model.empty": torch.empty(0, 3),
    "model.turned": torch.arange(6.0).reshape(2, 3).T,
    "optim.weight.step": torch.tensor(7.0),
    "rng.0.cpu": torch.get_rng_state(),
}


def save(root: str, attempt: int = 1, step: int = 10, **others: Any) -> CheckpointRef:
    return commit(root, "run", TENSORS, attempt, step, **others)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def positions(refs: object) -> list[tuple[int, int]]:
    return [(ref.attempt, ref.step) for ref in refs]  # type: ignore[attr-defined]


def test_everything_comes_back_bit_for_bit(s3: str) -> None:
    ref = save(s3, state={"scheduler": {"step": 10}, "π": 0.1}, metrics={"loss": math.inf})
    tensors, manifest = restore(ref.uri)
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert tensors[name].shape == tensor.shape
        assert bits(tensors[name]) == bits(tensor)
    assert (manifest.step, manifest.state, manifest.metrics) == (
        10,
        {"scheduler": {"step": 10}, "π": 0.1},
        {"loss": math.inf},
    )


def test_the_model_loads_alone(s3: str) -> None:
    assert load_model_state(save(s3).uri).keys() == {"weight", "half", "empty", "turned"}


def test_tensors_are_filled_in_place(s3: str) -> None:
    target = torch.zeros(3, 4)
    fill(open_checkpoint(save(s3).uri), {"model.weight": target})
    assert torch.equal(target, TENSORS["model.weight"])


@pytest.mark.parametrize(
    ("name", "shape", "told"),
    [("model.bias", (4,), "no model.bias"), ("model.weight", (4, 3), r"model.weight as \[3, 4\], \[4, 3\] is wanted")],
)
def test_another_models_tensors_are_named(s3: str, name: str, shape: tuple[int, ...], told: str) -> None:
    with pytest.raises(UserError, match=told):
        fill(open_checkpoint(save(s3).uri), {name: torch.zeros(shape)})


@pytest.mark.parametrize("kib", [900, 1300])
def test_tensors_that_lie_across_parts_come_back(s3: str, monkeypatch: pytest.MonkeyPatch, kib: int) -> None:
    """Also of an object of so many bytes that its parts have to be larger than usual."""
    monkeypatch.setattr(streams, "PART_BYTES", 2**16)
    monkeypatch.setattr(streams, "MAX_PARTS", 16)
    generator = torch.Generator().manual_seed(1)
    odd = {f"model.{n:02}": torch.randn(kib * 8 + n, generator=generator) for n in range(kib // 32)}
    odd["model.bytes"] = torch.randint(0, 256, (12345,), generator=generator, dtype=torch.uint8)
    ref = commit(s3, "run", odd)
    stored = read_manifest(ref.uri)[0].objects[0]
    assert len(stored.parts) <= 16
    loaded, _ = restore(ref.uri)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in odd.items())


@given(st.lists(st.tuples(st.integers(1, 999), st.integers(0, 999_999_999)), min_size=2, unique=True))
def test_markers_sort_newest_first_and_name_their_checkpoint(generations: list[tuple[int, int]]) -> None:
    refs = [CheckpointRef(attempt, step, S3Location("b", "run")) for attempt, step in generations]
    assert sorted(refs, reverse=True) == sorted(refs, key=lambda ref: ref.marker.key)
    assert [CheckpointRef.parse(ref.uri) for ref in refs] == refs


def test_the_newest_is_by_attempt_then_step(s3: str) -> None:
    store = CheckpointStore(s3, "run")
    assert list(store.live()) == []
    for attempt, step in ((1, 10), (1, 200), (2, 30)):
        save(s3, attempt, step)
    assert positions(store.live()) == [(2, 30), (1, 200), (1, 10)]
    assert positions(store.live(oldest_attempt=2)) == [(2, 30)]
    assert positions(store.live(oldest_attempt=3)) == []


@pytest.mark.parametrize("num", [9, 10, 11, 25])
def test_a_listing_of_several_requests_has_each_once(s3: str, num: int) -> None:
    store = CheckpointStore(s3, "run")
    refs = [CheckpointRef(1, step, store.root) for step in range(num)]
    for ref in refs:
        S3Store().write(ref.marker, b"")
    assert list(store.committed()) == refs[::-1]


def test_what_a_later_attempt_left_behind_is_never_newest_again(s3: str) -> None:
    """Also of a zombie that commits after the later attempt began, and where that has nothing of its own left."""
    store = CheckpointStore(s3, "run")
    for step in (100, 200):
        save(s3, 1, step)
    store.give_up(2, 100)
    save(s3, 1, 300)
    assert positions(store.live()) == [(1, 100)]
    of_two = save(s3, 2, 110)
    assert positions(store.live()) == [(2, 110), (1, 100)]
    store.delete(of_two)
    assert positions(store.live()) == [(1, 100)]
    assert positions(store.committed()) == [(1, 300), (1, 200), (1, 100)]


def test_attempts_are_numbered_one_after_the_other(s3: str) -> None:
    store = CheckpointStore(s3, "run")
    save(s3, 4, 10)
    assert [store.begin_attempt(10), store.begin_attempt(10)] == [5, 6]


@pytest.mark.parametrize("run_id", ["", "team/run"])
def test_a_run_has_one_folder(run_id: str) -> None:
    with pytest.raises(UserError, match="no run id"):
        CheckpointStore("s3://bucket/checkpoints", run_id)


def test_of_two_that_begin_at_once_each_gets_a_number(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From whatever steps: both look before one of them writes."""
    first, second = CheckpointStore(s3, "run"), CheckpointStore(s3, "run")
    monkeypatch.setattr(second, "newest_attempt", lambda: 0)
    assert [first.begin_attempt(200), second.begin_attempt(100)] == [1, 2]
    assert first.newest_attempt() == 2


def test_other_runs_are_not_seen(s3: str) -> None:
    save(s3)
    for name in ("ru", "run-2"):
        assert list(CheckpointStore(s3, name).live()) == []


def damage(ref: CheckpointRef, kind: str) -> None:
    """One byte of the tensors flipped, the last one cut off, or all of them gone."""
    data = S3Store().read(blob(ref))
    if kind == "missing":
        S3Store().delete(blob(ref))
    else:
        S3Store().write(blob(ref), data[:-1] if kind == "truncate" else bytes([data[0] ^ 1]) + data[1:])


@pytest.mark.parametrize("kind", ["flip", "truncate", "missing"])
def test_what_is_damaged_is_not_loaded_and_its_object_is_named(s3: str, kind: str) -> None:
    ref = save(s3)
    digest = read_manifest(ref.uri)[1]
    damage(ref, kind)
    target = {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}
    loads: list[Callable[[], object]] = [
        lambda: restore(ref.uri),
        lambda: fill(open_checkpoint(ref.uri), target),
        lambda: load_model_state(ref.uri, digest if kind != "truncate" else None),
        lambda: list(verify(ref.uri)),
    ]
    # What is cut off is the random state, which the model does without.
    for load in loads if kind != "truncate" else [*loads[:2], loads[3]]:
        with pytest.raises(CheckpointError, match=r"rank-00000\.bin"):
            load()
    assert not any(tensor.any() for tensor in target.values())


def test_s3_that_fails_in_the_middle_is_not_taken_for_damage(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers with the manifest, and then no more."""
    ref = save(s3)
    parse = Manifest.from_bytes

    def last_answer(data: bytes, uri: str, digest: str | None = None) -> Manifest:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        return parse(data, uri, digest)

    monkeypatch.setattr(Manifest, "from_bytes", last_answer)
    with pytest.raises(S3Error, match=r"rank-00000\.bin.*: permission denied"):
        load_model_state(ref.uri)


def test_s3_that_fails_is_not_taken_for_no_checkpoint(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(S3Error, match="permission denied"):
        next(CheckpointStore(s3, "run").live())


@pytest.mark.parametrize("gone", ["marker", "manifest"])
def test_half_a_checkpoint_is_none(s3: str, gone: str) -> None:
    ref = save(s3)
    S3Store().delete(ref.marker if gone == "marker" else folder(ref) / "manifest.json")
    with pytest.raises(CheckpointError, match="not committed" if gone == "marker" else "manifest is missing"):
        restore(ref.uri)


def edit(location: S3Location, old: bytes, new: bytes) -> None:
    data = S3Store().read(location)
    assert old in data
    S3Store().write(location, data.replace(old, new))


def test_a_changed_manifest_is_refused_by_the_marker_and_by_the_digest(s3: str) -> None:
    ref = save(s3)
    digest = read_manifest(ref.uri)[1]
    edit(folder(ref) / "manifest.json", b'"step": 10', b'"step": 11')
    for known in (None, digest):
        with pytest.raises(CheckpointError, match="it was changed"):
            load_model_state(ref.uri, known)


def test_a_marker_that_leads_elsewhere_is_refused(s3: str) -> None:
    older, newer = save(s3, 1, 10), save(s3, 1, 20)
    S3Store().write(newer.marker, S3Store().read(older.marker))
    with pytest.raises(CheckpointError, match="marker of another checkpoint"):
        restore(newer.uri)
    edit(newer.marker, b'"step": 10', b'"step": 20')
    with pytest.raises(CheckpointError, match="marker of another checkpoint"):
        restore(newer.uri)
    edit(newer.marker, b"step-000000010", b"step-000000020")
    with pytest.raises(CheckpointError, match="manifest is missing"):
        restore(newer.uri)


def test_a_checkpoint_under_another_run_is_refused(s3: str) -> None:
    ref = save(s3)
    moved = CheckpointRef(ref.attempt, ref.step, S3Location.parse(s3) / "other")
    S3Store().copy(ref.marker, moved.marker)
    for name in ("manifest.json", "rank-00000.bin"):
        S3Store().copy(folder(ref) / name, moved.root / folder(ref).name / name)
    with pytest.raises(CheckpointError, match="marker of another checkpoint"):
        restore(moved.uri)
    edit(moved.marker, b'"run_id": "run"', b'"run_id": "other"')
    with pytest.raises(CheckpointError, match="manifest of another checkpoint"):
        restore(moved.uri)


class _Canary:
    """Sings when it is unpickled."""

    def __init__(self, song: Path) -> None:
        self.song = song

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.song),)


@pytest.mark.parametrize("place", ["marker", "manifest", "object"])
def test_nothing_is_unpickled(s3: str, tmp_path: Path, place: str) -> None:
    ref, song = save(s3), tmp_path / "sang"
    bomb = pickle.dumps(_Canary(song))
    pickle.loads(bomb)  # noqa: S301 - it does sing
    song.rmdir()
    where = {"marker": ref.marker, "manifest": folder(ref) / "manifest.json", "object": blob(ref)}[place]
    S3Store().write(where, bomb)
    for load in (lambda: restore(ref.uri), lambda: read_manifest(ref.uri), lambda: list(verify(ref.uri))):
        try:
            load()
        except CheckpointError:
            continue
        assert place == "object"
    assert not song.exists()


def test_a_release_is_a_whole_copy_and_needs_no_marker(s3: str) -> None:
    ref = save(s3)
    digest = read_manifest(ref.uri)[1]
    target = S3Location.parse(s3) / "releases/m/run"
    uri, copied = copy_checkpoint(ref.uri, digest, target)
    assert copied == digest
    CheckpointStore(s3, "run").delete(ref)
    assert torch.equal(load_model_state(uri, digest)["weight"], TENSORS["model.weight"])


def test_a_damaged_checkpoint_is_not_released(s3: str) -> None:
    ref = save(s3)
    digest = read_manifest(ref.uri)[1]
    damage(ref, "flip")
    target = S3Location.parse(s3) / "releases/m/run"
    with pytest.raises(CheckpointError, match=r"rank-00000\.bin"):
        copy_checkpoint(ref.uri, digest, target)
    assert not S3Store().exists(target / "manifest.json")


def test_a_deleted_checkpoint_leaves_nothing(s3: str) -> None:
    store, ref, other = CheckpointStore(s3, "run"), save(s3, 1, 10), save(s3, 1, 20)
    store.delete(ref)
    left = {location.parent for location in S3Store().list(store.root)}
    assert left == {folder(other), other.marker.parent}
    with pytest.raises(CheckpointError, match="not committed, or deleted"):
        read_marker(ref.uri)
