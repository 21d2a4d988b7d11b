"""The exit code of a run: of the verdict that it ended with, else of the error that a step raised."""

import importlib
import re
from dataclasses import dataclass
from pathlib import Path

from ..components.errors import ConvergateError, ExitCode
from ..components.report import RunPage
from ..components.training.result import TrainingResult
from .closing import is_canary

_RAISED = re.compile(r"\s*(?P<module>convergate(?:\.\w+)*)\.(?P<name>\w+): (?P<text>.*)")
"""The last line of a traceback of ours."""
_COLOUR = re.compile(r"\x1b\[\d*m")
_CLOSING = "Executing task 'close-run'"


@dataclass(frozen=True, slots=True)
class StepError:
    """What a step raised, in a line, and the exit code of its class; something outside where that is not ours."""

    text: str
    exit_code: ExitCode = ExitCode.OUTSIDE


def exit_code(page: RunPage, raised: ExitCode) -> ExitCode:
    """An alias set or a canary alone that passed 0, a negative verdict 1, a bad config or task 2, nobody can tell 3.

    Args:
        page: The run's documents.
        raised: What counts where no verdict ended the run: a step raised.
    """
    if page.promotion is not None:
        return ExitCode.POSITIVE
    stopped = _stopped(page)
    if stopped is None and is_canary(page) and page.canary is not None:
        return ExitCode.POSITIVE
    return raised if stopped is None else stopped


def _stopped(page: RunPage) -> ExitCode | None:
    """The code of the verdict that stopped the run; None where none did."""
    plan, data, canary, training, decision = page.plan, page.data, page.canary, page.training, page.decision
    if plan is not None and plan.verdict != "PASS":
        return ExitCode.USAGE
    if data is not None and data.verdict != "PASS":
        return ExitCode.NEGATIVE if data.data_digest else ExitCode.USAGE
    if canary is not None and canary.verdict != "PASS":
        return ExitCode.NEGATIVE if canary.verdict == "FAIL" else ExitCode.UNDECIDED
    if training is not None and training.verdict != "PASS":
        return training_exit_code(training)
    if decision is not None and not decision.sets_alias:
        return ExitCode.UNDECIDED if decision.decision == "HOLD" else ExitCode.NEGATIVE
    return None


def training_exit_code(training: TrainingResult) -> ExitCode:
    """The code of a training's end."""
    if training.verdict == "PASS":
        return ExitCode.POSITIVE
    codes = {"user": ExitCode.USAGE, "outside": ExitCode.OUTSIDE}
    return codes.get(training.failure, ExitCode.NEGATIVE)


def last_error(log: Path) -> StepError:
    """The last error of ours in the pipeline's log, or any error; of the steps rather than of close run."""
    text = _COLOUR.sub("", log.read_text(errors="replace")) if log.exists() else ""
    steps, _, closing = text.partition(_CLOSING)
    for part in (steps, closing):
        ours = [error for line in part.splitlines() if (error := _ours(line)) is not None]
        if ours:
            return ours[-1]
    other = [line.rpartition("Error: ")[2].strip() for line in text.splitlines() if "Error: " in line]
    return StepError(other[-1] if other else "a step failed")


def _ours(line: str) -> StepError | None:
    """The error of a traceback's last line, where its class is one of ours."""
    match = _RAISED.fullmatch(line)
    if match is None:
        return None
    try:
        kind = getattr(importlib.import_module(match["module"]), match["name"], None)
    except ImportError:
        return None
    if not isinstance(kind, type) or not issubclass(kind, ConvergateError):
        return None
    return StepError(match["text"].strip(), kind.exit_code)
