"""The exit code of a run: the fixed table over its documents, and the class of what a step raised."""

from pathlib import Path
from typing import Any

import pytest
from convergate.components.data.report import ExpectationResult
from convergate.components.errors import ExitCode
from convergate.components.report import RunPage
from convergate.pipelines.exit_codes import StepError, exit_code, last_error, training_exit_code

from ..documents import (
    make_canary,
    make_data,
    make_decision,
    make_evaluation,
    make_plan,
    make_promotion,
    make_training,
)

FAILED = [ExpectationResult(name="range", passed=False, observed="17", reason="above 16")]
BAD_DATA = make_data(verdict="FAIL", expectations=FAILED)
NO_TABLE = make_data(verdict="FAIL", expectations=FAILED, data_digest="")


def failed_training(**changes: Any) -> Any:
    return make_training(**{"verdict": "FAIL", "status": "failed", "reason": "rank 0: …"} | changes)


def through(last: str, **documents: Any) -> RunPage:
    """A run whose steps passed up to `last`, and the documents given."""
    every = {
        "": None, "plan": make_plan(), "data": make_data(), "canary": make_canary(), "training": make_training(),
        "evaluation": make_evaluation(),
    }  # fmt: skip
    passed = {name: every[name] for name in list(every)[1 : list(every).index(last) + 1]}
    return RunPage("run", **passed | documents)


@pytest.mark.parametrize(
    ("ended", "code"),
    [
        (through("", plan=make_plan(verdict="FAIL", problems=["error: b is c"])), 2),
        (through("plan", data=NO_TABLE), 2),
        (through("plan", data=BAD_DATA), 1),
        (through("data", canary=make_canary("FAIL")), 1),
        (through("data", canary=make_canary("INCONCLUSIVE")), 3),
        (through("canary", training=failed_training(failure="user")), 2),
        (through("canary", training=failed_training(failure="outside")), 4),
        (through("canary", training=failed_training()), 1),
        (through("canary", training=failed_training(status="diverged")), 1),
        (through("training", evaluation=make_evaluation(verdict="FAIL"), decision=make_decision("REJECT")), 1),
        (through("evaluation", decision=make_decision("HOLD")), 3),
        (through("evaluation", decision=make_decision("CHALLENGER"), promotion=make_promotion()), 0),
        (through("evaluation", decision=make_decision("PROMOTE"), promotion=make_promotion("champion")), 0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("raised", [ExitCode.OUTSIDE, ExitCode.UNDECIDED])
def test_a_verdict_ends_a_run_whatever_was_raised(ended: RunPage, code: int, raised: ExitCode) -> None:
    assert exit_code(ended, raised) == code


@pytest.mark.parametrize(
    "ended",
    [
        through(""),
        through("plan"),
        through("canary"),
        through("training"),
        through("evaluation"),
        through("training", evaluation=make_evaluation(verdict="FAIL")),
        through("evaluation", decision=make_decision("CHALLENGER")),
        through("evaluation", decision=make_decision("PROMOTE")),
    ],
)
@pytest.mark.parametrize("raised", [ExitCode.USAGE, ExitCode.UNDECIDED, ExitCode.OUTSIDE])
def test_without_one_it_is_what_a_step_raised(ended: RunPage, raised: ExitCode) -> None:
    assert exit_code(ended, raised) == raised


def test_a_training_alone() -> None:
    assert training_exit_code(make_training()) == 0
    assert [training_exit_code(failed_training(failure=whose)) for whose in ("", "user", "outside")] == [1, 2, 4]


OURS = "    convergate.components."
STEPS = "20:50:31 - INFO - Executing task \x1b[96m'promote'\x1b[0m\n"
CLOSING = "20:50:42 - INFO - Executing task \x1b[96m'close-run'\x1b[0m\n"
CHANGED = f"{OURS}promotion.champion.ChampionChangedError: v3 came between\n"


class TestLastError:
    """Lines as Python ends a traceback and kfp.local indents it."""

    @pytest.mark.parametrize(
        ("log", "text", "code"),
        [
            ("convergate.components.errors.UserError: lr0 is wrong → lower", "lr0 is wrong → lower", 2),
            (f"{OURS}config.problems.ProblemsError: config: 1 problem\n      schedul  unknown", "config: 1 problem", 2),
            ("convergate.components.errors.OutsideError: gone", "gone", 4),
            ("convergate.components.storage.s3.S3Error: s3://a: Error: gone", "s3://a: Error: gone", 4),
            (CHANGED, "v3 came between", 3),
            ("convergate.components.promotion.promote.PromotionError: no alias", "no alias", 1),
            (f"{OURS}errors.OutsideError: first\n{OURS}errors.UserError: last", "last", 2),
            (f"{STEPS}{CHANGED}{CLOSING}{OURS}errors.OutsideError: gone", "v3 came between", 3),
            (f"{STEPS}{CLOSING}{OURS}errors.UserError: of close run", "of close run", 2),
            (f"{CHANGED}RuntimeError: Pipeline failed", "v3 came between", 3),
        ],
    )  # fmt: skip
    def test_the_last_of_ours_with_the_code_of_its_class(self, tmp_path: Path, log: str, text: str, code: int) -> None:
        (tmp_path / "pipeline.log").write_text(log)
        assert last_error(tmp_path / "pipeline.log") == StepError(text, ExitCode(code))

    @pytest.mark.parametrize(
        ("log", "text"),
        [
            ("", "a step failed"),
            ("KeyError: 'x'\nValueError: y\ngoodbye\n", "y"),
            ("convergate.nowhere.LostError: no such module", "no such module"),
            ("convergate.components.errors.LostError: no such class", "no such class"),
            ("convergate.components.errors.annotations: neither\nOSError: disk full", "disk full"),
            ('  "config": "convergate.components.errors.UserError: of a comment"\nOSError: disk full', "disk full"),
        ],
    )
    def test_any_other_is_from_outside(self, tmp_path: Path, log: str, text: str) -> None:
        (tmp_path / "pipeline.log").write_text(log)
        assert last_error(tmp_path / "pipeline.log") == StepError(text, ExitCode.OUTSIDE)

    def test_without_a_log(self, tmp_path: Path) -> None:
        assert last_error(tmp_path / "pipeline.log") == StepError("a step failed")
