"""What a run's end says, which step stopped it and why; written whatever else fails."""

import io
import logging
from typing import Any

import pandas as pd
import pytest
from convergate.components.config.plan import plan_run
from convergate.components.data.validate import validate_data
from convergate.components.errors import ExitCode
from convergate.components.report import RunPage
from convergate.components.slo.gate import open_run
from convergate.components.slo.ledger import Ledger
from convergate.components.storage import RunStore, S3Location, S3Store
from convergate.pipelines.closing import (
    ATTEMPTS_PREFIX,
    ClosedRun,
    _series,
    _tags,
    close_run,
    end_leftovers,
    load_page,
    steps,
    stop_reason,
    was_cancelled,
)
from convergate.pipelines.exit_codes import exit_code

from ..documents import (
    config_text,
    make_canary,
    make_config,
    make_data,
    make_decision,
    make_end,
    make_evaluation,
    make_plan,
    make_promotion,
    make_training,
    save_run,
    save_start,
)

BAD_PLAN = make_plan(verdict="FAIL", problems=["warning: a", "error: b is c"])
BAD_DATA = make_data(
    verdict="FAIL", expectations=[{"name": "range", "passed": False, "observed": "17", "reason": "above 16"}]
)
DIVERGED = make_training(verdict="FAIL", status="diverged", reason="the loss was not finite")


def page(**documents: Any) -> RunPage:
    return RunPage("run", config_text=config_text(), **documents)


def through(last: str, **documents: Any) -> RunPage:
    """A run whose steps passed up to `last`, and those given."""
    every = {
        "plan": make_plan(), "data": make_data(), "canary": make_canary(), "training": make_training(),
        "evaluation": make_evaluation(),
    }  # fmt: skip
    passed = {name: every[name] for name in list(every)[: list(every).index(last) + 1]}
    return page(**(passed | documents))


class TestStopReason:
    @pytest.mark.parametrize(
        ("stopped", "reason"),
        [
            (page(plan=BAD_PLAN), "plan FAIL: error: b is c"),
            (through("plan", data=BAD_DATA), "data FAIL: range: above 16"),
            (
                through("data", canary=make_canary("INCONCLUSIVE", reason="the machine was busy")),
                "canary INCONCLUSIVE: falling loss: the machine was busy",
            ),
            (through("canary", training=DIVERGED), "training FAIL: the loss was not finite"),
            (through("evaluation", decision=make_decision("REJECT", "target missed")), "REJECT: target missed"),
            (through("evaluation", decision=make_decision("HOLD", "budget spent")), "HOLD: budget spent"),
        ],
    )
    def test_the_step_that_stopped_it(self, stopped: RunPage, reason: str) -> None:
        assert stop_reason(stopped) == reason

    @pytest.mark.parametrize(
        "passing",
        [
            page(),
            through("canary"),
            through("evaluation"),
            through("evaluation", decision=make_decision("CHALLENGER"), promotion=make_promotion()),
            through("evaluation", decision=make_decision("PROMOTE"), promotion=make_promotion("champion")),
        ],
    )
    def test_nothing_where_none_did(self, passing: RunPage) -> None:
        assert stop_reason(passing) == ""


class TestACanaryAlone:
    """What a run of kind canary ends as; a retraining that its canary stops is rejected, as ever."""

    @pytest.mark.parametrize(
        ("verdict", "run_class", "reason"),
        [
            ("PASS", "passed", ""),
            ("FAIL", "rejected", "canary FAIL: falling loss: it rose"),
            ("INCONCLUSIVE", "infrastructure", "canary INCONCLUSIVE: falling loss: it rose"),
        ],
    )
    def test_its_class_is_the_canarys_verdict(self, s3: str, verdict: str, run_class: str, reason: str) -> None:
        text = config_text(s3)
        open_run(text, "run-1", "canary")
        RunStore(s3, "run-1").put("canary", make_canary(verdict, "run-1", reason="it rose"))
        end = close_run(text, "run-1").end
        assert (end.run_class, end.reason, end.reached_training) == (run_class, reason, False)
        assert end.gpu_hours == 0.004

    @pytest.mark.parametrize(("interrupted", "run_class"), [(True, "interrupted"), (False, "rejected")])
    def test_one_that_left_nothing(self, s3: str, interrupted: bool, run_class: str) -> None:
        open_run(config_text(s3), "run-1", "canary")
        assert close_run(config_text(s3), "run-1", interrupted=interrupted).end.run_class == run_class

    @pytest.mark.parametrize(("kind", "code"), [("canary", 0), ("retrain", 4)])
    def test_a_pass_is_the_end_of_a_canary_alone(self, s3: str, kind: str, code: int) -> None:
        open_run(config_text(s3), "run-1", kind)
        RunStore(s3, "run-1").put("canary", make_canary(run_id="run-1"))
        assert exit_code(load_page(config_text(s3), s3, "run-1"), ExitCode.OUTSIDE) == code


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        (config_text(), False),
        (config_text(more="distributed: {launcher: trainjob, nodes: 2}\n"), True),
        ("no config", False),
    ],
)
def test_what_was_left_running_stops_no_run_from_being_closed(
    text: str, asked: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here there is no cluster to ask; and nobody asks who was not told where its pod is."""
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    end_leftovers(text, "run-1")
    assert caplog.text == ""
    monkeypatch.setenv("POD_NAMESPACE", "kubeflow")
    end_leftovers(text, "run-1")
    assert ("left running is not known" in caplog.text and "TrainJob" in caplog.text) == asked


def test_steps_are_told_in_the_dags_order_with_their_verdicts() -> None:
    done = through("evaluation", decision=make_decision("HOLD", "budget"), promotion=make_promotion())
    assert [(name, verdict, seconds) for name, verdict, seconds, _ in steps(done)] == [
        ("validate config", "PASS", 0.5),
        ("validate data", "PASS", 3.0),
        ("canary", "PASS", 6.0),
        ("train", "PASS", 10.0),
        ("evaluate", "PASS", 1.0),
        ("gate", "FAIL", 0.2),
        ("promote", "PASS", 5.0),
    ]
    assert steps(page()) == []


def test_the_mirrors_curves_are_rank_zeros_and_every_validation() -> None:
    trace = pd.DataFrame(
        {"rank": [0, 1, 0], "step": [0, 0, 1], "lr": [0.1, 9.0, 0.2], "loss": [2.0, 9.0, 1.0], "grad_norm": 1.0}
    )
    validations = pd.DataFrame({"step": [1, 1], "metric": ["loss", "accuracy"], "value": [0.5, 0.9]})
    assert _series(page(trace=trace, validations=validations)) == {
        "lr": [(0, 0.1), (1, 0.2)],
        "loss": [(0, 2.0), (1, 1.0)],
        "grad_norm": [(0, 1.0), (1, 1.0)],
        "val_loss": [(1, 0.5)],
        "val_accuracy": [(1, 0.9)],
    }
    assert _series(page()) == {}


def test_the_mirrors_tags_name_the_weights_that_it_began_with() -> None:
    weights = {"init_uri": "s3://b/champion", "init_digest": "0a" * 32}
    expected = {"convergate.init_uri": "s3://b/champion", "convergate.init_digest": "0a" * 32}
    for documents in ({"training": make_training(**weights)}, {"plan": make_plan(**weights)}):
        tags = _tags(make_config(), page(**documents), make_end())
        assert {name: value for name, value in tags.items() if "init" in name} == expected
    assert not any("init" in name for name in _tags(make_config(), page(training=make_training()), make_end()))


@pytest.mark.parametrize(
    ("state", "cancelled"),
    [
        ("CANCELLED", True), ("CANCELED", True), ("CANCELING", True), ("canceled", True),
        ("FAILED", False), ("SUCCEEDED", False), ("ERROR", False), ("", False), (None, False),
    ],
)  # fmt: skip
def test_a_run_is_cancelled_however_the_backend_spells_it(state: str | None, cancelled: bool) -> None:
    assert was_cancelled(state) is cancelled


class TestCloseRun:
    """On a real S3 server, without a tracker: its outage changes no verdict."""

    def test_an_end_is_written_once_with_its_page(self, s3: str) -> None:
        text = config_text(s3)
        save_start(text, "run-1")
        RunStore(s3, "run-1").put("canary", make_canary("FAIL", "run-1", "the loss rose"))
        closed = close_run(text, "run-1")
        assert (closed.end.run_class, closed.end.reached_training) == ("rejected", False)
        assert closed.end.reason == "canary FAIL: falling loss: the loss rose"
        assert closed.end.gpu_hours == pytest.approx(0.004)
        assert S3Store().read(S3Location.parse(closed.report_uri)).decode() == closed.html
        assert "the loss rose" in closed.html
        again = close_run(text, "run-1", interrupted=True)
        assert again.end == closed.end
        found = Ledger(s3, "digits", "digits").find("run-1")
        assert found is not None
        assert found.end == closed.end

    def test_interrupted(self, s3: str) -> None:
        save_start(config_text(s3), "run-1")
        end = close_run(config_text(s3), "run-1", interrupted=True).end
        assert (end.run_class, end.reached_training) == ("interrupted", False)

    def test_a_training_that_left_nothing_counts_as_not_converged(self, s3: str) -> None:
        """Its first attempt was recorded before its processes started."""
        text = config_text(s3)
        save_start(text, "run-1")
        store = RunStore(s3, "run-1")
        store.store.write(store.prefix / ATTEMPTS_PREFIX / "1", b"")
        end = close_run(text, "run-1").end
        assert (end.run_class, end.reached_training) == ("not_converged", True)

    def test_what_the_ledger_knows_already_stands(self, s3: str) -> None:
        save_run(config_text(s3), "run-1")
        before = Ledger(s3, "digits", "digits").find("run-1")
        closed = close_run(config_text(s3), "run-1")
        assert before is not None
        assert closed.end == before.end
        assert closed.end.decision == "CHALLENGER"

    def test_a_config_that_is_no_config_ends_with_its_first_problem(self, s3: str) -> None:
        text = config_text(s3, more="schedul: {}\n")
        open_run(text, "run-1")
        RunStore(s3, "run-1").put("plan", plan_run(text, "run-1"))
        closed = close_run(text, "run-1")
        problem = "schedul: unknown key; did you mean `schedule`?"
        assert (closed.end.run_class, closed.end.reason) == ("rejected", f"plan FAIL: error: {problem}")
        assert closed.end.reached_training is False
        assert problem in closed.html
        assert "**REJECT**" in closed.markdown

    def test_a_task_that_gives_no_table_ends_with_the_reason(self, s3: str) -> None:
        text = config_text(s3).replace("convergate.components.task.digits:DigitsTask", "nowhere_to_be_found:Task")
        config, store = save_start(text, "run-1"), RunStore(s3, "run-1")
        store.put("plan", make_plan(config, "run-1"))
        validate_data(config, "run-1")
        closed = close_run(text, "run-1")
        assert closed.end.run_class == "rejected"
        assert "there is no module nowhere_to_be_found" in closed.end.reason
        assert "there is no module nowhere_to_be_found" in closed.html

    @pytest.mark.parametrize(
        ("failure", "run_class"), [("outside", "infrastructure"), ("user", "not_converged"), ("", "not_converged")]
    )
    def test_a_training_lost_from_outside_is_the_infrastructures(self, s3: str, failure: str, run_class: str) -> None:
        text, reason = config_text(s3), "rank 1: cannot write s3://b/k: it does not answer"
        save_start(text, "run-1")
        lost = make_training("run-1", verdict="FAIL", status="failed", reason=reason, failure=failure)
        store = RunStore(s3, "run-1")
        store.put("training", lost)
        store.store.write(store.prefix / ATTEMPTS_PREFIX / "1", b"")
        end = close_run(text, "run-1").end
        assert (end.run_class, end.reason, end.reached_training) == (run_class, reason, True)


class TestCurvesThatFail:
    """A trace is the largest thing that a run leaves, and the last that its end may hang on."""

    def closed(self, s3: str, chunk: bytes) -> ClosedRun:
        text = config_text(s3)
        save_start(text, "run-1")
        store = RunStore(s3, "run-1")
        store.put("training", make_training("run-1", verdict="FAIL", status="diverged", reason="not finite"))
        store.store.write(store.prefix / "trace/steps/rank-00000/attempt-001/000000000.parquet", chunk)
        store.store.write(store.prefix / ATTEMPTS_PREFIX / "1", b"")
        return close_run(text, "run-1")

    def check(self, closed: ClosedRun, s3: str) -> None:
        assert (closed.end.run_class, closed.end.reason) == ("not_converged", "not finite")
        found = Ledger(s3, "digits", "digits").find("run-1")
        assert found is not None
        assert found.end == closed.end
        assert S3Store().read(S3Location.parse(closed.report_uri)).decode() == closed.html
        assert "there is no trace of what was applied" in closed.html
        assert "Gradient norm" not in closed.html

    def test_a_damaged_trace(self, s3: str, caplog: pytest.LogCaptureFixture) -> None:
        self.check(self.closed(s3, b"PAR1 and then nothing"), s3)
        warning, mirror = caplog.messages
        assert warning.startswith(f"the page is without its curves: {s3}/runs/run-1/trace cannot be read: ArrowInvalid")
        assert mirror.startswith("not mirrored to MLflow: OutsideError: no MLflow server is configured")
        assert {record.levelno for record in caplog.records} == {logging.WARNING}
        page = load_page(config_text(s3), s3, "run-1")
        assert (page.trace, page.validations) == (None, None)

    def test_a_trace_that_cannot_be_drawn(self, s3: str, caplog: pytest.LogCaptureFixture) -> None:
        """Of another version: a column is missing. The mirror, which wants it too, changes nothing either."""
        chunk = io.BytesIO()
        pd.DataFrame({"step": [0, 1], "lr": [0.1, 0.2], "lr_planned": [0.1, 0.2]}).to_parquet(chunk)
        self.check(self.closed(s3, chunk.getvalue()), s3)
        warning, mirror = caplog.messages
        assert warning.startswith("the page is without its curves: they cannot be drawn: KeyError: ")
        assert mirror == "not mirrored to MLflow: KeyError: 'loss'"
