"""What must hold of a run after all its kills, beside the same run without any."""

from itertools import pairwise
from pathlib import Path

import pandas as pd
from convergate.components.checkpoint.reading import read_manifest, restore
from convergate.components.storage import RunStore
from convergate.components.telemetry import read_trace, read_validations
from convergate.components.training.result import Event, TrainingResult
from runs import Run, Struck
from victims import processes

RECOVERY_SECONDS = 120.0
"""From a kill to the next progress, at most."""
KEYS = ["rank", "step"]
COMPARED = ["lr", "lr_planned", "loss", "grad_norm", "samples", "applied"]
"""The trace's columns that no kill may change."""
OF_THE_KILLS = ("resumed", "interrupted")
"""Kinds of events that the kills make."""


def problems(run: Run, whole: Run) -> list[str]:
    """What does not hold of a run that has completed; nothing, when all does."""
    found = [f"alive: process {process.pid}, {process.part}" for process in processes(run.bucket)]
    for number, struck in enumerate(run.struck, 1):
        found += [f"kill {number}, {struck.kill}: {problem}" for problem in _aftermath(struck)]
    # A rollback counts as a start, too, and a kill can make it be done again.
    starts, explained = len(run.claims()), len(run.struck) * len(whole.claims()) + len(whole.claims())
    if starts > explained:
        found.append(f"{starts} starts of the workers, at most {explained} were to be")
    found += late_writes(run.claims(), [run.checkpoints, run.data / "runs"])
    return found + differences(_result(run), _result(whole))


def _aftermath(struck: Struck) -> list[str]:
    """What a kill left behind, and how the run went on from there."""
    found = []
    if struck.gone_seconds == float("inf"):
        found.append("workers live on")
    for resumed in struck.resumed:
        if resumed != struck.committed:
            found.append(f"resumed from {resumed}, the newest checkpoint was {struck.committed}")
    if struck.recovery_seconds is not None:
        if struck.committed and not struck.resumed:
            found.append(f"started anew, although {struck.committed} was committed")
        if struck.recovery_seconds > RECOVERY_SECONDS:
            found.append(f"{struck.recovery_seconds:.0f} s until it made progress again")
    return found


def late_writes(claims: list[Path], roots: list[Path]) -> list[str]:
    """What an earlier start of the workers wrote after a later one had claimed its number: a stale writer's."""
    found = []
    for attempt, (claim, later) in enumerate(pairwise(claims), 1):
        if claim.read_bytes() == later.read_bytes():
            continue  # the same process, which has rolled back
        names = (f"attempt-{attempt:03}*/**/*", f"commits/*-attempt-{attempt:03}-*")
        for path in (path for root in roots for name in names for path in root.rglob(name)):
            if path.is_file() and path.stat().st_ctime_ns > later.stat().st_ctime_ns:
                found.append(f"stale: {path.parent.name}/{path.name} was written after start {attempt + 1}")
    return found


def differences(killed: TrainingResult, whole: TrainingResult) -> list[str]:
    """Where the end, the weights, the events or the trace of a run are not the other's, bit for bit."""
    found = []
    for name in ("status", "final_step", "val_metrics", "train_loss"):
        if getattr(killed, name) != getattr(whole, name):
            found.append(f"{name}: {getattr(killed, name)} instead of {getattr(whole, name)}")
    if _weights(killed) != _weights(whole):
        found.append(f"weights: {_parted_tensors(killed.checkpoint_uri, whole.checkpoint_uri)}")
    if _events(killed) != _events(whole):
        found.append(f"events: {_events(killed)} instead of {_events(whole)}")
    if not read_validations(killed.trace_uri).equals(read_validations(whole.trace_uri)):
        found.append("validations: not the same")
    mine, other = read_trace(killed.trace_uri), read_trace(whole.trace_uri)
    if not mine[KEYS + COMPARED].equals(other[KEYS + COMPARED]):
        found.append(f"trace: {_first_difference(mine, other)}")
    return found


def _result(run: Run) -> TrainingResult:
    return RunStore(f"s3://{run.bucket}", run.variant.name).get("training", TrainingResult)


def _weights(result: TrainingResult) -> list[str]:
    """The checksums of all that was saved at the end: model, optimizer, random state."""
    return [stored.crc64nvme for stored in read_manifest(result.checkpoint_uri)[0].objects]


def _parted_tensors(mine: str, other: str) -> str:
    one, two = restore(mine)[0], restore(other)[0]
    parted = [name for name in sorted({*one, *two}) if not (name in one and name in two and one[name].equal(two[name]))]
    return f"{len(parted)} of {len(one)} tensors differ, {parted[:3]}" if parted else "equal, but not in their order"


def _events(result: TrainingResult) -> list[Event]:
    return [event for event in result.events if event.kind not in OF_THE_KILLS]


def _first_difference(mine: pd.DataFrame, other: pd.DataFrame) -> str:
    both = mine.merge(other, on=KEYS, how="outer", suffixes=("", " uninterrupted"), indicator=True)
    parted = {"is missing": both["_merge"] == "right_only", "is too much": both["_merge"] == "left_only"}
    for column in COMPARED:
        one, two = both[column], both[f"{column} uninterrupted"]
        parted[f"has another {column}"] = (one != two) & ~(one.isna() & two.isna())
    what, where = next((what, where) for what, where in parted.items() if where.any())
    first = both[where].iloc[0]
    return f"step {first['step']} of rank {first['rank']} {what}, first of {where.sum()}"
