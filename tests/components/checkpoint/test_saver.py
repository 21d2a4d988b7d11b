"""Saving beside a training that goes on, on a real S3 server, alone and in two processes."""

import os
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
import torch.distributed as dist
from convergate.components.checkpoint import CheckpointError, CheckpointRef, CheckpointStore
from convergate.components.checkpoint.manifest import KEY_VARIABLE
from convergate.components.checkpoint.reading import fill, open_checkpoint, read_manifest, read_marker, restore
from convergate.components.checkpoint.saver import Saver
from convergate.components.config.signature import generate_key
from convergate.components.errors import UserError
from convergate.components.storage import S3Location, S3Store
from cryptography.hazmat.primitives import serialization
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from ...checkpoints import commit, folder
from ...processes import in_processes

FIXED: dict[str, Any] = {"attempt": 1, "training_digest": "d", "state": {}, "metrics": {}}


def saver(root: str) -> Saver:
    return Saver(CheckpointStore(root, "run"))


def steps(root: str) -> list[int]:
    return [ref.step for ref in CheckpointStore(root, "run").committed()]


def test_training_goes_on_while_it_saves(s3: str) -> None:
    """What was staged is saved, whatever the state, and the values beside it, become meanwhile."""
    weight, state, go = torch.zeros(1000), {"seen": [1]}, Event()
    saving = saver(s3)
    saving.begin({"w": weight}, step=10, **FIXED | {"state": state}, before_report=go.wait)
    weight += 1
    state["seen"].append(2)
    assert saving.busy
    assert steps(s3) == []
    go.set()
    saving.drain()
    tensors, manifest = restore(CheckpointRef(1, 10, CheckpointStore(s3, "run").root).uri)
    assert not tensors["w"].any()
    assert manifest.state == {"seen": [1]}


def test_one_save_is_in_flight_and_the_next_waits_for_it(s3: str) -> None:
    saving, order = saver(s3), []
    for step in (10, 20, 30):
        noted: Callable[[CheckpointRef], None] = lambda ref: order.append(f"committed {ref.step}")  # noqa: E731
        saving.begin({"w": torch.ones(10) * step}, step=step, **FIXED, after_commit=noted)
        order.append(f"begun {step}")
    saving.close()
    assert order.index("committed 10") < order.index("begun 20")
    assert order.index("committed 20") < order.index("begun 30")
    assert steps(s3) == [30, 20, 10]
    assert saving.longest_seconds > 0


def test_the_next_is_left_out_where_that_is_the_policy(s3: str) -> None:
    saving, go = saver(s3), Event()
    assert saving.begin({"w": torch.ones(10)}, step=10, **FIXED, before_report=go.wait)
    assert not saving.begin({"w": torch.ones(10)}, step=20, **FIXED, skip_if_busy=True)
    go.set()
    saving.drain()
    assert saving.begin({"w": torch.ones(10)}, step=30, **FIXED, skip_if_busy=True)
    saving.close()
    assert steps(s3) == [30, 10]


def test_the_staging_buffer_is_used_again_and_follows_the_state(s3: str) -> None:
    saving, root = saver(s3), CheckpointStore(s3, "run").root
    states: list[dict[str, torch.Tensor]] = [
        {"a": torch.ones(100), "b": torch.zeros(3, dtype=torch.int64)},
        {"a": torch.ones(100) * 2, "b": torch.ones(3, dtype=torch.int64)},
        {"a": torch.ones(50) * 3, "c": torch.tensor([True, False])},
        {"a": torch.ones(5000) * 4},
        {"a": torch.ones(5000, dtype=torch.float16) * 5},
    ]
    places = []
    for step, state in enumerate(states, 1):
        saving.begin(state, step=step, **FIXED)
        places.append(saving._writer._buffer.data_ptr())
        saving.drain()
    assert places[0] == places[1] == places[2]
    for step, state in enumerate(states, 1):
        loaded, _ = restore(CheckpointRef(1, step, root).uri)
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("fails", ["upload", "before the report"])
def test_an_error_in_the_thread_surfaces_and_publishes_nothing(
    s3: str, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    saving, go, access_key = saver(s3), Event(), os.environ["AWS_ACCESS_KEY_ID"]
    saving.begin({"w": torch.ones(10)}, step=10, **FIXED)
    saving.drain()
    if fails == "upload":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")

    def report() -> None:
        go.wait()
        raise CheckpointError("the trace cannot be written")

    saving.begin({"w": torch.ones(10)}, step=20, **FIXED, before_report=report)
    go.set()
    told = "permission denied" if fails == "upload" else "the trace cannot be written"
    while saving.busy:
        pass
    with pytest.raises(CheckpointError, match=f"attempt-001-step-000000020 failed: rank 0: .*{told}"):
        saving.check()
    saving.check()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", access_key)
    assert steps(s3) == [10]


def test_a_step_is_never_committed_twice(s3: str) -> None:
    commit(s3, "run", {"w": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"another writer's → one `train` at a time for run run"):
        commit(s3, "run", {"w": torch.zeros(1)})
    assert restore(CheckpointRef(1, 10, CheckpointStore(s3, "run").root).uri)[0]["w"] == 1


def test_what_is_no_tensor_is_refused(s3: str) -> None:
    with pytest.raises(CheckpointError, match=r"model\.x is no tensor: it belongs into the JSON state"):
        saver(s3).begin({"model.x": {"a": 1}}, step=10, **FIXED)  # type: ignore[dict-item]


def test_a_state_without_tensors_is_saved(s3: str) -> None:
    ref = commit(s3, "run", {}, state={"step": 10})
    assert restore(ref.uri)[1].state == {"step": 10}


def public(key: Path) -> Path:
    private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    pem = private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    path = key.with_suffix(".pub")
    path.write_bytes(pem)
    return path


def test_a_signed_checkpoint_is_sealed_and_others_do_not_count(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = tmp_path / "mine.pem", tmp_path / "other.pem"
    generate_key(mine)
    generate_key(other)
    unsigned = commit(s3, "run", {"w": torch.ones(10)}, step=10)
    assert read_manifest(unsigned.uri)[0].objects[0].parts[0].sha256 == ""
    monkeypatch.setenv(KEY_VARIABLE, str(mine))
    signed = commit(s3, "run", {"w": torch.ones(10)}, step=20)
    assert len(read_manifest(signed.uri)[0].objects[0].parts[0].sha256) == 64
    monkeypatch.setenv(KEY_VARIABLE, str(public(mine)))
    assert restore(signed.uri)[0]["w"].all()
    with pytest.raises(CheckpointError, match="is not signed"):
        restore(unsigned.uri)
    with pytest.raises(UserError, match="a public key cannot sign"):
        commit(s3, "run", {"w": torch.ones(10)}, step=30)
    monkeypatch.setenv(KEY_VARIABLE, str(other))
    with pytest.raises(CheckpointError, match="signature does not match"):
        restore(signed.uri)
    monkeypatch.setenv(KEY_VARIABLE, str(mine))
    forged = S3Store().read(signed.marker).replace(b'"world_size": 1', b'"world_size": 2')
    S3Store().write(signed.marker, forged)
    with pytest.raises(CheckpointError, match="signature does not match"):
        read_marker(signed.uri)
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "none.pem"))
    with pytest.raises(UserError, match=r"none\.pem: cannot be read"):
        commit(s3, "run", {"w": torch.ones(10)}, step=40)


def _whole() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(12, 5, generator=generator) for name in ("a", "b", "c")}


def _sharded(zeros: bool = False) -> dict[str, torch.Tensor]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    state = {name: torch.zeros_like(value) if zeros else value for name, value in _whole().items()}
    return {
        "a": distribute_tensor(state["a"], mesh, [Shard(0)]),
        "b": distribute_tensor(state["b"], mesh, [Replicate()]),
        "c": state["c"],
    }


def _save_sharded(rank: int, root: str) -> None:
    saving = Saver(CheckpointStore(root, "run"), rank, dist.get_world_size())
    for step in (10, 20):
        saving.begin({**_sharded(), f"rng.{rank}": torch.full((3,), rank)}, step=step, **FIXED)
        saving.drain()
        # After it every rank sees the commit.
        assert step in steps(root)
    saving.close()


def _load_sharded(rank: int, uri: str) -> None:
    target = _sharded(zeros=True)
    fill(open_checkpoint(uri), target)
    for name, value in _whole().items():
        loaded = target[name]
        assert torch.equal(loaded.full_tensor() if hasattr(loaded, "full_tensor") else loaded, value)


def test_ranks_write_their_parts_and_any_other_number_of_them_reads(s3: str, tmp_path: Path) -> None:
    in_processes(2, tmp_path, _save_sharded, s3)
    ref = next(CheckpointStore(s3, "run").live())
    manifest, _ = read_manifest(ref.uri)
    assert [stored.name for stored in manifest.objects] == ["rank-00000.bin", "rank-00001.bin"]
    assert sum(stored.name == "a" for stored in manifest.tensors) == 2
    assert sum(stored.name == "c" for stored in manifest.tensors) == 1
    loaded, _ = restore(ref.uri)
    assert all(torch.equal(loaded[name], value) for name, value in _whole().items())
    assert [int(loaded[f"rng.{rank}"][0]) for rank in range(2)] == [0, 1]
    in_processes(3, tmp_path, _load_sharded, ref.uri)


def _raises_everywhere(rank: int, root: str) -> None:
    saving = Saver(CheckpointStore(root, "run"), rank, 2)

    def fail() -> None:
        if rank == 1:
            raise CheckpointError("no trace")

    def after(_: CheckpointRef) -> None:
        raise AssertionError("a commit was made")

    state = {"w": torch.ones(10), f"r{rank}": torch.ones(1)}
    saving.begin(state, step=10, **FIXED, before_report=fail, after_commit=after)
    with pytest.raises(CheckpointError, match="rank 1: no trace"):
        saving.begin(state, step=20, **FIXED)
    os._exit(0)


def test_where_one_ranks_save_failed_no_rank_waits_for_it(s3: str, tmp_path: Path) -> None:
    in_processes(2, tmp_path, _raises_everywhere, s3)
    assert steps(s3) == []


def test_what_follows_a_commit_does_not_undo_it(s3: str, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: CheckpointRef) -> None:
        raise ValueError("no retention")

    saving = saver(s3)
    saving.begin({"w": torch.ones(1)}, step=10, **FIXED, after_commit=fail)
    saving.close()
    assert steps(s3) == [10]
    assert "is committed; what was to follow failed: no retention" in caplog.text


def test_what_was_collected_meanwhile_is_not_committed(s3: str) -> None:
    store = S3Store()

    def collect() -> None:
        for location in list(store.list(CheckpointStore(s3, "run").root)):
            store.delete(location)

    saving = saver(s3)
    saving.begin({"w": torch.ones(1)}, step=10, **FIXED, before_report=collect)
    with pytest.raises(CheckpointError, match=r"rank-00000\.bin is not what was uploaded any more"):
        saving.close()
    assert steps(s3) == []


def test_of_two_writers_on_a_server_without_conditions_the_first_stands(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second looked before the first one's marker came."""
    first = commit(s3, "run", {"w": torch.zeros(1)})
    before = read_marker(first.uri)
    exists = S3Store.exists
    monkeypatch.setattr(S3Store, "exists", lambda self, location: exists(self, location) and location != first.marker)
    put = S3Store._write_conditionally

    def lost_race(self: S3Store, location: S3Location, *arguments: Any, **conditions: Any) -> None:
        if location != first.marker:
            put(self, location, *arguments, **conditions)

    monkeypatch.setattr(S3Store, "_write_conditionally", lost_race)
    with pytest.raises(CheckpointError, match="another writer's"):
        commit(s3, "run", {"w": torch.ones(1)})
    assert read_marker(first.uri) == before


def _unsigned(rank: int, root: str) -> None:
    saving = Saver(CheckpointStore(root, "run"), rank, 2)
    if rank == 1:
        del os.environ[KEY_VARIABLE]
    saving.begin({f"r{rank}": torch.ones(1)}, step=10, **FIXED)
    if rank == 1:
        saving._thread.shutdown()
        os._exit(0)
    with pytest.raises(CheckpointError, match=r"the report of rank 1 in .* is not signed"):
        saving.close()


def test_a_report_that_is_not_signed_is_not_believed(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = tmp_path / "mine.pem"
    generate_key(key)
    monkeypatch.setenv(KEY_VARIABLE, str(key))
    processes = tmp_path / "processes"
    processes.mkdir()
    in_processes(2, processes, _unsigned, s3)
    assert steps(s3) == []


def _one_fails(rank: int, root: str) -> None:
    saving = Saver(CheckpointStore(root, "run"), rank, 2)

    def fail() -> None:
        if rank == 1:
            raise CheckpointError("no trace")

    saving.begin({"w": torch.ones(10), f"r{rank}": torch.ones(1)}, step=10, **FIXED, before_report=fail)
    if rank == 1:
        with pytest.raises(CheckpointError, match="rank 1: no trace"):
            saving.close()
    else:
        assert saving.busy
        os._exit(0)  # its thread waits for a report that never comes, until the launcher ends it


def test_without_every_ranks_report_nothing_is_committed(s3: str, tmp_path: Path) -> None:
    in_processes(2, tmp_path, _one_fails, s3)
    assert steps(s3) == []


def test_one_that_waits_in_vain_says_for_whom(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convergate.components.checkpoint.saver.REPORT_SECONDS", -60.0)
    in_processes(2, tmp_path, _waits, s3)
    assert steps(s3) == []


def _waits(rank: int, root: str) -> None:
    saving = Saver(CheckpointStore(root, "run"), rank, 2)
    saving.begin({"w": torch.ones(10)}, step=10, **FIXED, before_report=lambda: os._exit(0) if rank == 1 else None)
    if rank == 0:
        with pytest.raises(CheckpointError, match="rank 0: no report from rank-00001"):
            saving.close()
    else:
        saving.close()


def test_a_checkpoint_has_a_folder_of_its_own(s3: str) -> None:
    refs = [commit(s3, "run", {"w": torch.ones(1)}, step=step) for step in (10, 20)]
    assert len({folder(ref) for ref in refs}) == 2
