"""Checkpoints against a real S3 server: what is committed is whole, and what is not whole is never loaded."""

import math
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

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
from convergate.components.checkpoint.dcp_storage import tensor_bytes
from convergate.components.checkpoint.store import read_manifest, restore, verify
from convergate.components.storage import S3Error, S3Location, S3Store
from torch import Tensor

TENSORS = {
    "model.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4) / 7,
    "model.half": torch.tensor([1.5, math.nan, -math.inf], dtype=torch.bfloat16),
    "model.empty": torch.empty(0, 3),
    "optim.weight.step": torch.tensor(7.0),
    "rng.0.cpu": torch.get_rng_state(),
}


def save(
    store: CheckpointStore, attempt: int, step: int, loss: float = 1.0, tensors: dict[str, Tensor] = TENSORS
) -> CheckpointRef:
    return store.save(
        tensors,
        attempt=attempt,
        step=step,
        rank=0,
        world_size=1,
        training_digest="d" * 64,
        state={"scheduler": {"step": step}, "π": 0.1},
        metrics={"loss": loss},
    )


def blob(ref: CheckpointRef) -> S3Location:
    return ref.prefix / "rank-00000.bin"


def test_everything_comes_back_bit_for_bit(s3: str) -> None:
    ref = save(CheckpointStore(s3, "run"), 1, 10)
    tensors, manifest = restore(ref.uri)
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert tensors[name].shape == tensor.shape
        assert tensor_bytes(tensors[name]) == tensor_bytes(tensor)
    assert (manifest.step, manifest.state) == (10, {"scheduler": {"step": 10}, "π": 0.1})


def test_the_model_loads_alone(s3: str) -> None:
    ref = save(CheckpointStore(s3, "run"), 1, 10)
    assert load_model_state(ref.uri).keys() == {"weight", "half", "empty"}


def test_the_newest_is_by_attempt_then_step(s3: str) -> None:
    store = CheckpointStore(s3, "run")
    assert store.newest() is None
    for attempt, step in ((1, 10), (1, 200), (2, 30)):
        save(store, attempt, step)
    newest = store.newest()
    assert newest is not None
    assert (newest.attempt, newest.step) == (2, 30)


def test_attempts_before_the_oldest_allowed_do_not_count(s3: str) -> None:
    store = CheckpointStore(s3, "run")
    save(store, 1, 200)
    assert store.newest(oldest_attempt=2) is None
    later = save(store, 2, 30)
    assert store.newest(oldest_attempt=2) == later
    S3Store().write(blob(later), b"garbage")
    with pytest.raises(CheckpointError, match="none of 1 checkpoints verifies"):
        store.newest(oldest_attempt=2)
    assert store.newest(oldest_attempt=3) is None


def test_other_runs_are_not_seen(s3: str) -> None:
    save(CheckpointStore(s3, "run"), 1, 10)
    assert CheckpointStore(s3, "ru").newest() is None
    assert CheckpointStore(s3, "run-2").newest() is None


def damage(ref: CheckpointRef, kind: str) -> None:
    """One byte of the tensors flipped, the last one cut off, or all of them gone."""
    data = S3Store().read(blob(ref))
    if kind == "missing":
        S3Store().delete(blob(ref))
    else:
        S3Store().write(blob(ref), data[:-1] if kind == "truncate" else bytes([data[0] ^ 1]) + data[1:])


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("flip", ": {} bytes do not match the manifest's size and SHA-256"),
        ("truncate", ": {} bytes do not match the manifest's size and SHA-256"),
        ("missing", " does not exist"),
    ],
)
def test_what_is_damaged_is_not_loaded_and_its_object_is_named(s3: str, kind: str, cause: str) -> None:
    ref = save(CheckpointStore(s3, "run"), 1, 10)
    digest, size = read_manifest(ref.uri)[1], len(S3Store().read(blob(ref)))
    damage(ref, kind)
    target = {"model.weight": torch.zeros(3, 4)}
    loads: list[Callable[[], object]] = [
        lambda: restore(ref.uri),
        lambda: restore(ref.uri, into=target),
        lambda: load_model_state(ref.uri, digest),
    ]
    for load in loads:
        with pytest.raises(CheckpointError) as caught:
            load()
        told = cause.format(size - 1 if kind == "truncate" else size)
        assert str(caught.value) == f"{ref.uri} cannot be loaded: {blob(ref)}{told}"
    assert not target["model.weight"].any()


def test_s3_that_fails_in_the_middle_is_not_taken_for_damage(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers with the manifest, and then no more."""
    ref = save(CheckpointStore(s3, "run"), 1, 10)
    parse = Manifest.from_bytes

    def last_answer(data: bytes, uri: str, digest: str | None = None) -> Manifest:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        return parse(data, uri, digest)

    monkeypatch.setattr(Manifest, "from_bytes", last_answer)
    with pytest.raises(S3Error, match=r"cannot read .*rank-00000\.bin: permission denied"):
        load_model_state(ref.uri)


@pytest.mark.parametrize("kind", ["flip", "truncate", "missing"])
def test_a_damaged_newest_falls_back_to_the_one_before(s3: str, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    store = CheckpointStore(s3, "run")
    save(store, 1, 10)
    newest = save(store, 1, 20)
    damage(newest, kind)
    with pytest.raises(CheckpointError):
        verify(newest.uri)
    found = store.newest()
    assert found is not None
    assert found.step == 10
    assert "damaged" in caplog.text


def test_none_that_verifies_is_an_error_and_not_a_fresh_start(s3: str) -> None:
    store = CheckpointStore(s3, "run")
    S3Store().write(blob(save(store, 1, 10)), b"garbage")
    with pytest.raises(CheckpointError, match="none of 1 checkpoints verifies"):
        store.newest()


def test_s3_that_fails_is_not_taken_for_no_checkpoint(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(S3Error, match="permission denied"):
        CheckpointStore(s3, "run").newest()


def test_without_its_manifest_it_does_not_exist(s3: str) -> None:
    store = CheckpointStore(s3, "run")
    ref = save(store, 1, 10)
    S3Store().delete(ref.prefix / "manifest.json")
    assert store.committed() == []


def test_a_changed_manifest_is_refused_by_its_digest(s3: str) -> None:
    ref = save(CheckpointStore(s3, "run"), 1, 10)
    digest = read_manifest(ref.uri)[1]
    place = ref.prefix / "manifest.json"
    S3Store().write(
        place, S3Store().read(place).replace(b'"step":10', b'"step":11').replace(b'"step": 10', b'"step": 11')
    )
    with pytest.raises(CheckpointError, match="it was changed"):
        load_model_state(ref.uri, digest)


def test_a_manifest_that_is_none_is_named(s3: str) -> None:
    ref = save(CheckpointStore(s3, "run"), 1, 10)
    S3Store().write(ref.prefix / "manifest.json", b"{}")
    with pytest.raises(CheckpointError, match="not a checkpoint manifest"):
        read_manifest(ref.uri)


def test_a_prefix_is_never_written_twice(s3: str) -> None:
    store = CheckpointStore(s3, "run")
    save(store, 1, 10)
    with pytest.raises(Exception, match="never overwritten"):
        save(store, 1, 10)


def test_what_is_no_tensor_is_refused(s3: str) -> None:
    with pytest.raises(Exception, match="belongs into the JSON state"):
        save(CheckpointStore(s3, "run"), 1, 10, tensors={"model.x": {"a": 1}})  # type: ignore[dict-item]


def test_retention_keeps_the_newest_and_the_best(s3: str) -> None:
    store = CheckpointStore(s3, "run")
    for step, loss in ((10, 3.0), (20, 0.5), (30, 2.0), (40, 1.0)):
        save(store, 1, step, loss)
    deleted = store.retain(keep_last=1, keep_best=1, metric="loss", mode="min")
    assert sorted(ref.step for ref in deleted) == [10, 30]
    assert [ref.step for ref in store.committed()] == [40, 20]
    left = {location.key.split("/")[-2] for location in S3Store().list(store.root)}
    assert left == {"attempt-001-step-000000020", "attempt-001-step-000000040"}


@pytest.mark.parametrize("unreadable", [10, 20, 30])
def test_one_that_cannot_be_compared_stays_and_the_rest_is_deleted(
    s3: str, unreadable: int, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(s3, "run")
    refs = {step: save(store, 1, step, loss) for step, loss in ((10, 0.5), (20, 2.0), (30, 1.0), (40, 3.0))}
    S3Store().write(refs[unreadable].prefix / "manifest.json", b"{}")
    deleted = store.retain(keep_last=1, keep_best=1, metric="loss", mode="min")
    best = 10 if unreadable != 10 else 30
    assert {ref.step for ref in store.committed()} == {best, unreadable, 40}
    assert {ref.step for ref in deleted} == {10, 20, 30} - {best, unreadable}
    (warning,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert warning.startswith(
        f"a checkpoint that cannot be compared stays: {refs[unreadable].uri}/manifest.json: not a"
    )


@pytest.mark.parametrize("losses", permutations([math.nan, 2.0, 0.5]), ids=str)
@pytest.mark.parametrize(("mode", "best"), [("min", 0.5), ("max", 2.0)])
def test_a_metric_that_is_not_a_number_never_pushes_out_the_best(
    s3: str, losses: tuple[float, ...], mode: str, best: float
) -> None:
    store = CheckpointStore(s3, "run")
    for step, loss in enumerate((*losses, math.nan), start=1):
        save(store, 1, step, loss)
    store.retain(keep_last=1, keep_best=1, metric="loss", mode=mode)
    assert [ref.step for ref in store.committed()] == [4, losses.index(best) + 1]


def test_a_release_is_a_whole_copy(s3: str) -> None:
    ref = save(CheckpointStore(s3, "run"), 1, 10)
    digest = read_manifest(ref.uri)[1]
    target = S3Location.parse(s3) / "releases/m/run"
    uri, copied = copy_checkpoint(ref.uri, digest, target)
    assert copied == digest
    for location in list(S3Store().list(ref.prefix)):
        S3Store().delete(location)
    assert torch.equal(load_model_state(uri, digest)["weight"], TENSORS["model.weight"])


def test_nothing_of_a_checkpoint_is_a_pickle(s3: str, rclone_environment: dict[str, str], tmp_path: Path) -> None:
    ref = save(CheckpointStore(s3, "run"), 1, 10)
    names = sorted(location.key.rpartition("/")[2] for location in S3Store().list(ref.prefix))
    assert names == ["manifest.json", "rank-00000.bin"]
    assert len(S3Store().read(blob(ref))) == sum(t.numel() * t.element_size() for t in TENSORS.values())
