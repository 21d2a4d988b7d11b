"""The view of a run: each step once, the decision, and a way on that is a real command."""

import io
import shlex
import sys
from typing import Any

import pytest
from convergate.canary.report import CanaryReport
from convergate.cli.main import cli
from convergate.cli.progress import RunProgress
from convergate.components.report import RunPage
from convergate.pipelines.here import RunOutcome

from ..documents import make_canary, make_config, make_data, make_decision, make_plan, make_promotion, make_training

RUN = "digits-20260101-020000-abc123"


def outcome(**changes: Any) -> RunOutcome:
    fields: dict[str, Any] = {"run_id": RUN, "exit_code": 0, "run_class": "converged", "decision": "CHALLENGER"}
    fields |= {"alias": "challenger", "version": "1", "reason": "", "sentence": "It is.", "report": "r.html"}
    return RunOutcome(**(fields | {"seconds": 20.0, "step_seconds": {"train": 10.0, "canary": 6.0}} | changes))


def test_each_step_is_shown_once_with_its_mark(capsys: pytest.CaptureFixture[str]) -> None:
    failed: CanaryReport = make_canary("FAIL").model_copy(update={"summary": "FAIL falling loss"})
    with RunProgress(make_config(), RUN, quiet=False) as progress:
        progress(RunPage(RUN, plan=make_plan()))
        progress(RunPage(RUN, plan=make_plan(), data=make_data()))
        progress(RunPage(RUN, plan=make_plan(), data=make_data(), canary=failed))
        progress(RunPage(RUN, plan=make_plan(), data=make_data(), canary=failed))
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith(f"digits · {RUN} · seed ")
    assert lines == [
        " ✓ validate config    0.5 s   12 checks",
        " ✓ validate data      3.0 s   1,797 rows",
        " ✗ canary             6.0 s   FAIL falling loss",
    ]


def test_the_decision_is_shown_with_its_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    page = RunPage(RUN, training=make_training(), decision=make_decision("HOLD", "budget"), promotion=make_promotion())
    with RunProgress(make_config(), RUN, quiet=False) as progress:
        progress(page)
    out = capsys.readouterr().out
    assert " ✗ gate               0.2 s   HOLD\n     candidate  PASS          1 of 1 checks\n" in out
    assert "     HOLD                     budget\n ✓ promote " in out


def test_the_end_says_where_the_time_went_and_why_last(capsys: pytest.CaptureFixture[str]) -> None:
    with RunProgress(make_config(), RUN, quiet=True) as progress:
        progress(RunPage(RUN, plan=make_plan()))
    progress.finish(outcome(alias="", reason="canary FAIL: falling loss"))
    assert capsys.readouterr().out.splitlines() == [
        "   20.0 s in all: 16.0 s in steps, the rest starting processes and servers",
        "   Report: r.html",
        "It is.",
        "canary FAIL: falling loss",
    ]


@pytest.mark.parametrize("root", ["s3://convergate", "s3://other/prefix"])
def test_the_way_on_is_a_real_command(capsys: pytest.CaptureFixture[str], root: str) -> None:
    RunProgress(make_config(root), RUN, quiet=True).finish(outcome())
    command = capsys.readouterr().out.split("`")[1]
    name, *arguments = shlex.split(command)[1:]
    promote = cli.get_command(cli.make_context("convergate", [name]), name)
    assert promote is not None
    given = promote.make_context(name, arguments).params
    assert (given["run"], given["approves"], given["root"]) == (RUN, True, root)
    assert given["reason"]
    assert given["key"]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_a_terminal_gets_its_cursor_back(monkeypatch: pytest.MonkeyPatch, error: type[BaseException] | None) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")

    def run() -> None:
        with RunProgress(make_config(), RUN, quiet=False) as progress:
            progress(RunPage(RUN, plan=make_plan()))
            if error is not None:
                raise error

    if error is None:
        run()
    else:
        with pytest.raises(error):
            run()
    shown = terminal.getvalue()
    hidden, given_back = shown.rfind("\x1b[?25l"), shown.rfind("\x1b[?25h")
    assert 0 <= hidden < given_back
