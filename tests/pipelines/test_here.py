"""A run on this machine that something breaks off from here: everything is stopped, and the run has its end."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from convergate.components.errors import TerminatedError
from convergate.components.report import RunPage
from convergate.components.slo.ledger import EndRecord, Ledger
from convergate.components.storage import RunStore
from convergate.pipelines.here import retrain_here

from ..documents import config_text, make_plan, save_start

Broken = Callable[[BaseException, Callable[[RunStore], object]], EndRecord | None]


@pytest.fixture
def broken(s3: str, mlflow_server: str, tmp_path: Path) -> Broken:
    """Break a run off when its first document is seen; the end that the ledger has then."""

    def run(error: BaseException, before: Callable[[RunStore], object]) -> EndRecord | None:
        text, store = config_text(s3), RunStore(s3, "run-1")
        config = save_start(text, "run-1")
        store.put("plan", make_plan(config, "run-1"))

        def on_page(page: RunPage) -> None:
            assert page.plan is not None
            before(store)
            raise error

        with pytest.raises(type(error)) as caught:
            retrain_here(config, text, "run-1", tmp_path, on_page)
        assert caught.value is error
        assert [command for command in _commands() if str(tmp_path) in command] == []
        found = Ledger(s3, "digits", "digits").find("run-1")
        assert found is not None
        return found.end

    return run


def _commands() -> list[str]:
    """The command lines of all live processes."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
    return found


@pytest.mark.parametrize(
    ("error", "run_class", "reason"),
    [
        (ValueError("nobody expected this"), "rejected", "stopped before training"),
        (BrokenPipeError("the terminal is gone"), "rejected", "stopped before training"),
        (KeyboardInterrupt(), "interrupted", "interrupted"),
        (TerminatedError("terminated"), "interrupted", "interrupted"),
    ],
)
def test_it_is_closed_before_the_error_goes_on(
    broken: Broken, tmp_path: Path, error: BaseException, run_class: str, reason: str
) -> None:
    end = broken(error, lambda _: None)
    assert end is not None
    assert (end.run_class, end.reason, end.reached_training) == (run_class, reason, False)
    assert "run-1" in (tmp_path / "runs" / "run-1" / "report.html").read_text()


def test_an_end_that_cannot_be_written_hides_no_error(broken: Broken, caplog: pytest.LogCaptureFixture) -> None:
    def damage(store: RunStore) -> None:
        store.store.write(store.prefix / "plan.json", b"{}")

    assert broken(ValueError("nobody expected this"), damage) is None
    (warning,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith("run run-1 could not be closed: S3Error: ")
    assert "plan.json: not a RunPlan of this version" in warning
