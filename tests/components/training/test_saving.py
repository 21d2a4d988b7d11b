"""Saving beside the training, in two real processes: a save that is held up is waited for, or the next is left out."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from convergate.components.checkpoint import CheckpointStore
from convergate.components.checkpoint.reading import read_manifest
from convergate.components.errors import ExitCode
from convergate.components.storage import S3Location, S3Store
from convergate.components.telemetry import read_events, read_trace
from convergate.components.training.job import Job
from convergate.components.training.launch import LaunchError, launch
from convergate.components.training.result import TrainingResult

CONFIG: dict[str, Any] = {
    "schema_version": 1,
    "experiment": "saving",
    "task": {"factory": "held:Held", "params": {}},
    "optimizer": {"kind": "sgd", "grad_clip_norm": 1.0},
    "schedule": {"lr0": 0.1, "lr_min": 0.001, "total_steps": 24, "warmup": {"steps": 4}},
    "training": {"batch_size": 32, "eval_every_steps": 12},
    "distributed": {"procs_per_node": 2},
    "checkpoint": {"every_steps": 8},
    "evaluation": {"metric": "accuracy", "target": 0.9},
    "promotion": {"model": "saving"},
}
HELD = '''
import os
import signal
from threading import Event, Timer
from convergate.components.storage import S3Error, S3Store
from convergate.components.storage.streams import Pace
from convergate.components.task.tabular import TabularTask

class Held(TabularTask):
    """In the first start, something of rank 1 stands still from step 7 on: to step 17, or to 2 s after step 15."""
    def __init__(self, held="", until=17, fails="", killed=-1):
        super().__init__()
        self.held, self.until, self.fails, self.killed = held, until, fails, killed
        self.gate, self.calls = Event(), -1
    def loss(self, model, batch):
        self.calls += 1
        if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            if self.calls == 7:
                self.hold()
            if self.calls == self.until:
                self.gate.set()
            if self.calls == 15 and self.until > 24:
                Timer(2.0, self.gate.set).start()
            if self.calls == self.killed:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(model, batch)
    def hold(self):
        take, write = Pace.take, S3Store.write
        def held_take(pace, *amount):
            self.gate.wait()
            return take(pace, *amount)
        def held_write(store, location, *rest):
            if "/trace/" in str(location):
                self.gate.wait()
            return write(store, location, *rest)
        def refused(store, location, data, *rest):
            raise S3Error(f"cannot write {location}: {self.fails}")
        if self.fails:
            S3Store.create = refused
        if self.held == "upload":
            Pace.take = held_take
        if self.held == "trace":
            S3Store.write = held_write
'''
CASES: dict[str, dict[str, Any]] = {
    "free": {},
    "skips its upload": {"task.params": {"held": "upload"}, "checkpoint.when_busy": "skip"},
    "skips its trace": {"task.params": {"held": "trace"}, "checkpoint.when_busy": "skip"},
    "waits": {"task.params": {"held": "upload", "until": 99}},
}


def _job(case: str, changes: dict[str, Any]) -> Job:
    config, run_id = copy.deepcopy(CONFIG), case.replace(" ", "-")
    for path, value in changes.items():
        section, _, key = path.partition(".")
        config[section][key] = value
    return Job(
        run_id=run_id,
        config_text=yaml.safe_dump(config),
        seed=5,
        checkpoint_uri="s3://saving/checkpoints",
        trace_uri=f"s3://saving/{run_id}/trace",
        result_uri=f"s3://saving/{run_id}/training.json",
    )


def _run(jobs: list[Job], max_restarts: int = 0) -> list[TrainingResult]:
    launch(jobs, 2, max_restarts, on_line=lambda line: None)
    return [TrainingResult.from_json(S3Store().read(S3Location.parse(job.result_uri))) for job in jobs]


@pytest.fixture(scope="module")
def folder(rclone_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("held")
    (made / "held.py").write_text(HELD)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in rclone_environment.items():
            patch.setenv(name, value)
        S3Store().ensure_bucket(S3Location.parse("s3://saving"))
    return made


@pytest.fixture(autouse=True)
def _place(folder: Path, rclone_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for name, value in rclone_environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def results(folder: Path, rclone_environment: dict[str, str]) -> dict[str, TrainingResult]:
    """Every case, one after the other in one launch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in rclone_environment.items():
            patch.setenv(name, value)
        return dict(zip(CASES, _run([_job(case, changes) for case, changes in CASES.items()]), strict=True))


def _committed(run_id: str) -> list[tuple[int, int]]:
    refs = CheckpointStore("s3://saving/checkpoints", run_id).committed()
    return sorted((ref.attempt, ref.step) for ref in refs)


def _weights(result: TrainingResult) -> list[str]:
    """The checksums of everything that was saved: model, optimizer, random state."""
    return [stored.crc64nvme for stored in read_manifest(result.checkpoint_uri)[0].objects]


@pytest.mark.parametrize("case", ["skips its upload", "skips its trace"])
def test_training_goes_on_beside_a_save_and_the_next_one_is_left_out_by_both_ranks(
    results: dict[str, TrainingResult], case: str
) -> None:
    """No report without the trace: so that one holds a save up, too."""
    result = results[case]
    assert [(event.kind, event.step) for event in result.events] == [("save_skipped", 16)]
    assert _committed(result.run_id) == [(1, 8), (1, 24)]
    events = read_events(result.trace_uri)
    assert list(zip(events["step"], events["kind"], strict=True)) == [(16, "save_skipped")]
    assert (result.status, result.anomalous, result.untreated) == ("completed", False, [])
    assert _weights(result) == _weights(results["free"])


def test_by_default_the_next_save_waits_and_none_is_left_out(results: dict[str, TrainingResult]) -> None:
    result = results["waits"]
    assert result.events == []
    assert _committed(result.run_id) == [(1, 8), (1, 16), (1, 24)]
    assert _weights(result) == _weights(results["free"])
    assert result.save_seconds > 1.0  # of the two for which rank 1 stands still
    assert results["free"].save_seconds > 0


def test_the_last_checkpoint_of_a_training_is_sealed(results: dict[str, TrainingResult]) -> None:
    root = "s3://saving/checkpoints/free"
    for step, length in ((16, 0), (24, 64)):
        manifest, _ = read_manifest(f"{root}/attempt-001-step-{step:09}")
        assert {len(part.sha256) for stored in manifest.objects for part in stored.parts} == {length}
    assert results["free"].checkpoint_uri == f"{root}/attempt-001-step-000000024"


def test_a_checkpoint_names_the_one_before(results: dict[str, TrainingResult]) -> None:
    uri: str | None = results["free"].checkpoint_uri
    steps = []
    while uri is not None:
        manifest, _ = read_manifest(uri)
        steps.append(manifest.step)
        uri = manifest.previous
    assert steps == [24, 16, 8]


def test_a_save_that_fails_ends_the_run_and_publishes_nothing() -> None:
    job = _job("fails", {"task.params": {"fails": "the disk is full"}})
    message = r"attempt-001-step-000000008 failed: rank 1: cannot write .*: the disk is full"
    with pytest.raises(LaunchError, match=message) as caught:
        _run([job])
    assert caught.value.exit_code == ExitCode.OUTSIDE
    assert _committed("fails") == []


def test_a_kill_beside_a_save_loses_it_and_nothing_else(results: dict[str, TrainingResult]) -> None:
    """The save of step 8 never became a checkpoint, so the second start begins anew, and is all that counts."""
    (result,) = _run([_job("killed", {"task.params": {"held": "upload", "until": 99, "killed": 12}})], max_restarts=1)
    assert (result.attempts, result.events) == (2, [])
    assert _committed("killed") == [(2, 8), (2, 16), (2, 24)]
    tombstones = CheckpointStore("s3://saving/checkpoints", "killed").tombstones()
    assert [(tombstone.attempt, tombstone.step) for tombstone in tombstones] == [(1, 0), (2, 0)]
    assert _weights(result) == _weights(results["free"])
    trace = read_trace(result.trace_uri)
    assert list(trace["step"]) == [*range(24)] * 2
    assert set(trace["attempt"]) == {2}
