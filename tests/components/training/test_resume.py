"""A damaged checkpoint is never loaded, by any rank: all take the one before, and the end is the same."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from convergate.components.checkpoint import CheckpointStore
from convergate.components.checkpoint.reading import read_manifest
from convergate.components.checkpoint.refs import CheckpointRef
from convergate.components.errors import ExitCode
from convergate.components.storage import S3Location, S3Store
from convergate.components.telemetry import read_events, read_trace
from convergate.components.training.job import Job
from convergate.components.training.launch import LaunchError, launch
from convergate.components.training.result import TrainingResult

from ...checkpoints import blob, folder

CONFIG: dict[str, Any] = {
    "schema_version": 1,
    "experiment": "resume",
    "task": {"factory": "convergate.components.task.tabular:TabularTask"},
    "optimizer": {"kind": "adamw"},
    "schedule": {"lr0": 0.01, "total_steps": 24},
    "training": {"batch_size": 32, "eval_every_steps": 12},
    "distributed": {"procs_per_node": 2},
    "checkpoint": {"every_steps": 8},
    "evaluation": {"metric": "accuracy", "target": 0.9},
    "promotion": {"model": "resume"},
}
Spoil = Callable[[str], S3Location]
"""Damages the checkpoint of a URI; returns what was damaged."""


def _ref(uri: str) -> CheckpointRef:
    ref = CheckpointRef.parse(uri)
    assert ref is not None
    return ref


def _flipped(location: S3Location) -> S3Location:
    """With one bit flipped in the middle."""
    data = bytearray(S3Store().read(location))
    data[len(data) // 2] ^= 1
    S3Store().write(location, bytes(data))
    return location


def _without(location: S3Location) -> S3Location:
    S3Store().delete(location)
    return location


def _garbage_marker(uri: str) -> S3Location:
    """A marker that is no JSON."""
    S3Store().write(_ref(uri).marker, b"\x00garbage")
    return _ref(uri).marker


SHARDED = "a bit that rank 1 alone reads"
SPOILS: dict[str, Spoil] = {
    # Under FSDP2 rank 0 does not read what rank 1 wrote.
    SHARDED: lambda uri: _flipped(folder(_ref(uri)) / "rank-00001.bin"),
    "an object": lambda uri: _without(folder(_ref(uri)) / "rank-00001.bin"),
    "a bit of the manifest": lambda uri: _flipped(folder(_ref(uri)) / "manifest.json"),
    "the marker": _garbage_marker,
}


WHOLE, NONE, LEFT, OTHER, ASKED = "whole", "none whole", "left", "other", "asked"
ROOT = "s3://resume"


def _job(name: str, **options: Any) -> Job:
    strategy = "fsdp2" if name == SHARDED else "ddp"
    run_id = name.replace(" ", "-")
    return Job(
        run_id=run_id,
        config_text=json.dumps(CONFIG | {"distributed": {"procs_per_node": 2, "strategy": strategy}}),
        seed=5,
        checkpoint_uri=f"{ROOT}/checkpoints",
        trace_uri=f"{ROOT}/{run_id}/trace",
        result_uri=f"{ROOT}/{run_id}/training.json",
        **options,
    )


def _store(name: str) -> CheckpointStore:
    return CheckpointStore(f"{ROOT}/checkpoints", name.replace(" ", "-"))


def _checkpoint(name: str, step: int) -> str:
    return CheckpointRef(1, step, _store(name).root).uri


def _weights(result: TrainingResult) -> list[str]:
    """The checksums of everything that was saved: model, optimizer, random state."""
    return [stored.crc64nvme for stored in read_manifest(result.checkpoint_uri)[0].objects]


class Story(NamedTuple):
    """Runs that ended at step 16, were damaged, and went on."""

    damaged: dict[str, S3Location]
    failure: LaunchError
    results: dict[str, TrainingResult]
    lines: list[str]
    """What the workers printed that went on."""


@pytest.fixture(autouse=True)
def _server(rclone_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in rclone_environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def story(rclone_environment: dict[str, str]) -> Story:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in rclone_environment.items():
            patch.setenv(name, value)
        S3Store().ensure_bucket(S3Location.parse(ROOT))
        begun = [*SPOILS, NONE, LEFT, OTHER, ASKED]
        launch([_job(name, stop_at_step=16) for name in begun], 2, 0, on_line=lambda line: None)
        damaged = {name: spoil(_checkpoint(name, 16)) for name, spoil in SPOILS.items()}
        for step in (8, 16):
            _flipped(blob(_ref(_checkpoint(NONE, step))))
        # As after a rollback to step 8, whose process ended before it saved: that was attempt 2.
        _store(LEFT).give_up(2, 8)
        with pytest.raises(LaunchError) as failure:
            launch([_job(NONE)], 2, 0, on_line=lambda line: None)
        jobs = {name: _job(name) for name in (*SPOILS, WHOLE, LEFT)}
        jobs[NONE] = _job(NONE, oldest_attempt=3)
        jobs[ASKED] = _job(ASKED, oldest_attempt=2, resume_from=_checkpoint(OTHER, 8))
        lines: list[str] = []
        launch(list(jobs.values()), 2, 0, lines.append)
        results = {
            name: TrainingResult.from_json(S3Store().read(S3Location.parse(job.result_uri)))
            for name, job in jobs.items()
        }
        return Story(damaged, failure.value, results, lines)


def _kinds(result: TrainingResult) -> list[tuple[str, int]]:
    return [(event.kind, event.step) for event in result.events]


def _tombstones(name: str) -> list[tuple[int, int]]:
    return sorted((tombstone.attempt, tombstone.step) for tombstone in _store(name).tombstones())


@pytest.mark.parametrize("name", SPOILS)
def test_whatever_is_damaged_all_ranks_go_on_from_the_checkpoint_before(story: Story, name: str) -> None:
    result = story.results[name]
    assert _kinds(result) == [("resumed", 8), ("checkpoint_damaged", 16)]
    assert str(story.damaged[name]) in result.events[1].detail
    assert (result.status, result.anomalous) == ("completed", False)
    events = read_events(result.trace_uri)
    assert list(zip(events["attempt"], events["step"], events["kind"], strict=True)) == [(2, 16, "checkpoint_damaged")]
    trace = read_trace(result.trace_uri)
    assert list(trace["step"]) == [*range(24)] * 2
    assert list(trace[trace["rank"] == 0]["attempt"]) == [1] * 8 + [2] * 16
    if name != SHARDED:  # whose gradients are reduced in another order
        assert _weights(result) == _weights(story.results[WHOLE])
    assert _tombstones(name) == [(1, 0), (2, 8)]
    assert (1, 16) not in [(ref.attempt, ref.step) for ref in _store(name).live()]


def test_each_rank_says_what_it_leaves_out(story: Story) -> None:
    assert sum("a damaged checkpoint is left out: " in line for line in story.lines) == 2 * len(SPOILS)


def test_none_that_is_whole_ends_the_run_until_it_is_told_to_begin_anew(story: Story) -> None:
    assert "none of 2 checkpoints verifies → start with --resume never" in str(story.failure)
    assert story.failure.exit_code == ExitCode.OUTSIDE
    anew = story.results[NONE]
    assert (anew.attempts, anew.events, anew.final_step) == (3, [], 24)
    assert {ref.attempt for ref in _store(NONE).live()} == {3}


def test_what_a_start_went_back_behind_is_never_newest_again(story: Story) -> None:
    assert _kinds(story.results[LEFT]) == [("resumed", 8)]


def test_a_checkpoint_that_was_asked_for_gives_all_of_the_run_up(story: Story) -> None:
    result = story.results[ASKED]
    assert _kinds(result) == [("resumed", 8)]
    assert _checkpoint(OTHER, 8) in result.events[0].detail
    assert {ref.attempt for ref in _store(ASKED).live()} == {2}
    assert _tombstones(ASKED) == [(1, 0), (2, 0)]
