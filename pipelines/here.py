"""The whole DAG on this machine: embedded servers, the compiled pipeline, and the end of the run whatever happened."""

import contextlib
import logging
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import Any

from ..components.config import RunConfig
from ..components.errors import OutsideError, TerminatedError
from ..components.report import RunPage, verdict_sentence
from ..components.slo.ledger import Ledger
from ..components.storage import RunStore, S3Location
from .closing import close_run, load_page, steps, stop_reason
from .compiling import compile_pipeline
from .exit_codes import exit_code, last_error
from .local import run_pipeline
from .placement import Placement
from .servers import embedded_servers

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """What became of a run, for a person or a machine."""

    run_id: str
    exit_code: int
    run_class: str
    decision: str
    alias: str
    version: str
    reason: str
    sentence: str
    report: str
    """The page's local path."""
    seconds: float
    step_seconds: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def retrain_here(
    config: RunConfig, text: str, run_id: str, home: Path, on_page: Callable[[RunPage], None]
) -> RunOutcome:
    """Run the DAG; `on_page` sees the run's documents as they appear.

    Whatever is raised here while the pipeline runs, everything was stopped and the run closed before it goes on.

    Raises:
        KeyboardInterrupt: on Ctrl-C; the run is closed as interrupted.
        TerminatedError: on SIGTERM, likewise.
        OutsideError: when S3 cannot be reached.
    """
    started = perf_counter()
    folder = home / "runs" / run_id
    folder.mkdir(parents=True, exist_ok=True)
    with embedded_servers(home), _terminable():
        store = RunStore(config.storage.uri, run_id)
        store.store.ensure_bucket(S3Location.parse(config.storage.uri))
        with tempfile.TemporaryDirectory(prefix="convergate-ir-") as ir:
            placement = Placement(launcher=config.distributed.launcher)
            pipeline = compile_pipeline("retrain", Path(ir) / "retrain.yaml", placement)
            arguments = {"config": text, "run_id": run_id, "submitter": ""}
            try:
                run_pipeline(pipeline, arguments, folder, _Watch(store, text, on_page))
            except BaseException as error:
                interrupted = isinstance(error, KeyboardInterrupt | TerminatedError)
                _close(config, text, run_id, folder, interrupted=interrupted)
                raise
        return _outcome(config, text, run_id, folder, perf_counter() - started, on_page)


class _Watch:
    """Looks for new documents, not more often than twice a second."""

    INTERVAL_S = 0.5

    def __init__(self, store: RunStore, text: str, on_page: Callable[[RunPage], None]) -> None:
        self._store, self._text, self._on_page = store, text, on_page
        self._seen: set[str] = set()
        self._next = 0.0

    def __call__(self) -> None:
        now = perf_counter()
        if now < self._next:
            return
        self._next = now + self.INTERVAL_S
        with contextlib.suppress(OutsideError):
            names = self._store.names()
            if names - self._seen:
                self._seen |= names
                root = str(self._store.prefix).removesuffix(f"/runs/{self._store.run_id}")
                self._on_page(load_page(self._text, root, self._store.run_id, with_trace=False))


def _outcome(
    config: RunConfig,
    text: str,
    run_id: str,
    folder: Path,
    seconds: float,
    on_page: Callable[[RunPage], None],
) -> RunOutcome:
    """Read back what the pipeline left; close the run where even the exit handler failed."""
    root, log = config.storage.uri, folder / "pipeline.log"
    error = last_error(log)
    run = Ledger(root, config.experiment, config.promotion.model).find(run_id)
    if run is None:
        raise OutsideError(f"run {run_id} was never opened: {error.text} → see {log}")
    if run.end is None:
        close_run(text, run_id)
    page = load_page(text, root, run_id, with_trace=False)
    on_page(page)
    report = _fetch_report(config, run_id, folder)
    reason = stop_reason(page)
    if not reason and page.promotion is None:
        reason = error.text
    assert page.end is not None
    return RunOutcome(
        run_id=run_id,
        exit_code=exit_code(page, error.exit_code),
        run_class=page.end.run_class,
        decision=page.decision.decision if page.decision else "",
        alias=page.promotion.alias if page.promotion else "",
        version=page.promotion.version if page.promotion else "",
        reason=reason,
        sentence=verdict_sentence(page),
        report=str(report),
        seconds=seconds,
        step_seconds={name: duration for name, _, duration, _ in steps(page)},
    )


def _close(config: RunConfig, text: str, run_id: str, folder: Path, *, interrupted: bool) -> None:
    """kfp.local runs no exit handler when it is ended, so the run is closed here."""
    try:
        if Ledger(config.storage.uri, config.experiment, config.promotion.model).find(run_id) is not None:
            close_run(text, run_id, interrupted=interrupted)
            _fetch_report(config, run_id, folder)
    except Exception as error:  # what is being raised already matters more
        _log.warning("run %s could not be closed: %s: %s", run_id, type(error).__name__, error)


def _fetch_report(config: RunConfig, run_id: str, folder: Path) -> Path:
    store = RunStore(config.storage.uri, run_id)
    target = folder / "report.html"
    target.write_bytes(store.store.read(store.prefix / "report.html"))
    shutil.rmtree(folder / "artifacts", ignore_errors=True)
    return target


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM as an exception, so that everything that was started is stopped."""

    def terminate(_signum: int, _frame: FrameType | None) -> None:
        raise TerminatedError("terminated; the run is closed as interrupted")

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
