"""A submitted run until its end: the states of its steps as they change, and the verdict that it ended with.

The verdict is read from the run's documents where the caller can read its S3, and else from its steps alone: each way
to stop ends in a step of its own, so that they tell 0, 1, 3 and 4 apart. They cannot tell a bad task (2) from bad
data (1).
"""

import contextlib
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from time import monotonic, sleep
from types import FrameType
from typing import Any, Literal

from ..components.config import RunConfig
from ..components.errors import ConvergateError, ExitCode, OutsideError, TerminatedError
from ..components.report import RunPage, verdict_sentence
from .closing import load_page, stop_reason
from .exit_codes import exit_code
from .kfp_api import FINAL, NOT_FOUND, PipelinesApi, PipelinesError
from .servers import s3_is_configured
from .submitting import SubmittedRun

POLL_SECONDS = 5.0
OUTAGE_SECONDS = 600.0
"""How long a server may be away before the run is given up for unknown."""
STEPS = (
    *("open-run", "validate-config", "validate-data", "canary", "train", "find-champion", "evaluate", "gate"),
    *("promote", "passed", "stop", "stop-undecided", "close-run"),
)
"""In the DAG's order."""
_LAST = "close-run"
_VERDICTS = ("gate", "train", "canary", "validate-data", "validate-config")
"""Steps whose verdict may stop a run, the last one first."""
_GREEN = ("promote", "passed")
"""The last step of a run that is positive: one that succeeded without it skipped its branches."""
_CANCELLED = ("CANCELING", "CANCELED")
States = Mapping[str, str]
"""KFP's state of each step that has begun."""


class WaitingError(ConvergateError):
    """The waiting ended before the run did."""

    def __init__(self, text: str, exit_code: ExitCode) -> None:
        super().__init__(text)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class ClusterOutcome:
    """What became of a run on a cluster, for a person or a machine."""

    run_id: str
    url: str
    state: str
    """KFP's, of the whole run."""
    exit_code: int
    reason: str
    sentence: str
    read_from: Literal["documents", "steps"]
    steps: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def wait_for(
    api: PipelinesApi,
    run: SubmittedRun,
    config: RunConfig,
    text: str,
    on_states: Callable[[States], None],
    *,
    seconds: float,
) -> ClusterOutcome:
    """Wait for the end of a run, and say how it ended.

    Args:
        api: The server.
        run: The run.
        config: Its config.
        text: The config's YAML.
        on_states: Sees the states of the steps at each look.
        seconds: The longest wait.

    Raises:
        WaitingError: when the time is up, or Ctrl-C ended the wait; the run goes on.
        TerminatedError: on SIGTERM, likewise.
        PipelinesError: when the server refuses, or stays away.
    """
    with _interruptible(run):
        ended = _follow(api, run, on_states, seconds)
        states = _last_states(api, ended)
    on_states(states)
    page = _documents(config, text, run.run_id)
    code, reason = verdict_of_steps(str(ended.state), states, cancelled=_was_cancelled(ended))
    sentence = reason
    if page is not None:
        code = exit_code(page, code)
        reason = stop_reason(page) or reason
        sentence = verdict_sentence(page)
    return ClusterOutcome(
        run_id=run.run_id,
        url=run.url,
        state=str(ended.state),
        exit_code=code,
        reason=reason,
        sentence=sentence,
        read_from="steps" if page is None else "documents",
        steps=dict(states),
    )


def step_states(run: Any) -> States:
    """The states of our steps among the tasks of a run: KFP lists drivers, branches and retries beside them."""
    details = run.run_details.task_details if run.run_details is not None else None
    return _of_steps((task.display_name or "", str(task.state or "")) for task in details or [])


def _of_steps(tasks: Iterable[tuple[str, str]]) -> States:
    found = {_step(name): state for name, state in tasks if state}
    return {step: found[step] for step in STEPS if step in found}


def _last_states(api: PipelinesApi, ended: Any) -> States:
    """The states of the steps of a run that has ended, whose last step is to close it.

    The server tells a run's end a moment before that of its tasks. Those of a large run it does not follow to their
    end at all, since Argo keeps them compressed: then they are read from the Workflow.
    """
    states = step_states(ended)
    if states and states.get(_LAST) not in FINAL:
        sleep(POLL_SECONDS)
        with contextlib.suppress(PipelinesError):
            states = step_states(api.run(ended.run_id))
            if states.get(_LAST) not in FINAL:
                states = _of_steps(api.nodes(ended.run_id)) or states
    return states


def verdict_of_steps(state: str, states: States, *, cancelled: bool = False) -> tuple[ExitCode, str]:
    """The exit code of a run, and why, from the states of its steps alone."""
    if state == "SUCCEEDED":
        if states and not any(states.get(last) == "SUCCEEDED" for last in _GREEN):
            return ExitCode.UNDECIDED, f"the run succeeded, and none of its steps was {' or '.join(_GREEN)}"
        return ExitCode.POSITIVE, "every step succeeded"
    if cancelled:
        return ExitCode.TERMINATED, "somebody stopped the run"
    failed = [step for step, at in states.items() if at == "FAILED"]
    last = next((step for step in _VERDICTS if states.get(step) == "SUCCEEDED"), "")
    if "stop-undecided" in failed:
        return ExitCode.UNDECIDED, f"{last} could not tell"
    if "stop" in failed:
        code = ExitCode.USAGE if last == "validate-config" else ExitCode.NEGATIVE
        return code, f"{last} stopped the run"
    what = f"{', '.join(failed)} failed" if failed else f"the run ended {state}, and no step says why"
    return ExitCode.OUTSIDE, what


def _step(display_name: str) -> str:
    """The step that a task is: `stop-3` and `stop: see the reason` are stop."""
    name = display_name.partition(":")[0].strip().lower().replace(" ", "-").replace("_", "-")
    return re.sub(r"-\d+$", "", name)


def _was_cancelled(run: Any) -> bool:
    history = [str(status.state) for status in run.state_history or []]
    return any(state in _CANCELLED for state in (*history, str(run.state)))


def _follow(api: PipelinesApi, run: SubmittedRun, on_states: Callable[[States], None], seconds: float) -> Any:
    deadline, lost = monotonic() + seconds, None
    while True:
        try:
            seen = api.run(run.run_id)
        except PipelinesError as error:
            lost = lost or monotonic()
            if not error.transient or monotonic() - lost > OUTAGE_SECONDS:
                gone = error.status == NOT_FOUND
                raise PipelinesError(str(error) if gone else f"{error}; the run goes on: {run.url}") from None
        else:
            lost = None
            on_states(step_states(seen))
            if seen.state in FINAL:
                return seen
        if monotonic() + POLL_SECONDS > deadline:
            raise WaitingError(
                f"the run goes on after {seconds / 60:g} minutes: {run.url} → a longer --timeout, or look there",
                ExitCode.UNDECIDED,
            )
        sleep(POLL_SECONDS)


def _documents(config: RunConfig, text: str, run_id: str) -> RunPage | None:
    """The run's documents; None where this machine is not led to their S3, or they are not there."""
    if not s3_is_configured():
        return None
    try:
        page = load_page(text, config.storage.uri, run_id, with_trace=False)
    except OutsideError:
        return None
    return page if page.start is not None else None


@contextlib.contextmanager
def _interruptible(run: SubmittedRun) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the wait and not the run, and say so."""
    line = f"stopped waiting; the run goes on → Terminate at {run.url} stops it"

    def terminate(_signum: int, _frame: FrameType | None) -> None:
        raise TerminatedError(line)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except KeyboardInterrupt:
        raise WaitingError(line, ExitCode.INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, before)
