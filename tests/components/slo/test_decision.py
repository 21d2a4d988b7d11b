"""The four decisions, what they are bound to, and how a run is classed."""

import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from convergate.components.config import Check
from convergate.components.config.signature import SignatureError, generate_key
from convergate.components.errors import UserError
from convergate.components.slo import Decision, classify, decide, take_standing
from convergate.components.slo.decision import KEY_VARIABLE

RESUMED = {"step": 8, "kind": "resumed", "detail": "attempt 3"}
ROLLED_BACK = {"step": 8, "kind": "rolled_back", "detail": "from step 13, loss nan"}


def decided(make: SimpleNamespace, pattern: str, extra: str = "", **documents: object) -> Decision:
    config = make.config(extra)
    parts = {
        "plan": make.plan(config),
        "training": make.training(),
        "evaluation": make.evaluation(),
    } | documents
    return decide(config, **parts, standing=take_standing(config.slo, make.history(pattern)))


@pytest.mark.parametrize(
    ("pattern", "extra", "decision", "reason"),
    [
        ("CCC", "", "CHALLENGER", "history is short: 3 of at least 5 runs"),
        ("CCCCC", "", "PROMOTE", "the candidate passes, and the SLO is not breached"),
        ("CCCCC", "slo: {require: proven}", "CHALLENGER", "convergence_rate is not proven yet: 5 of 5 runs"),
        (
            "C" * 59,
            "slo: {window_runs: 59, require: proven}",
            "PROMOTE",
            "the candidate passes, and the SLO is proven",
        ),
        (
            "C" * 58,
            "slo: {window_runs: 59, require: proven}",
            "CHALLENGER",
            "anomalous_rate is not proven yet",
        ),
        ("CNNNN", "", "HOLD", "convergence_rate: 1 of 5 runs converged"),
        ("NNN", "", "HOLD", "convergence_rate: 0 of 3 runs"),
        ("C" * 39 + "N" * 11, "", "HOLD", "error budget: 11 failures, 10 allowed in the window"),
        ("C" * 40 + "N" * 10, "", "PROMOTE", "the candidate passes"),
    ],
)
def test_the_history_decides(make: SimpleNamespace, pattern: str, extra: str, decision: str, reason: str) -> None:
    found = decided(make, pattern, extra)
    assert found.decision == decision
    assert found.reasons[0].startswith(reason)
    assert found.summary.startswith(f"{decision}: {reason}")
    assert found.sets_alias == (decision in ("PROMOTE", "CHALLENGER"))


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"status": "diverged", "reason": "loss is NaN"}, "training completed: loss is NaN"),
        ({"max_lr_deviation": 1e-9}, "LR on plan: the applied rate was off plan by up to 1e-09"),
        ({"max_lr_deviation": math.nan}, "LR on plan"),
        ({"lr_sync_errors": 2}, "no LR sync errors: ranks disagreed 2 times"),
        ({"anomalous": True, "untreated": ["exploding_gradient"]}, "no anomaly"),
        ({"gpu_hours": 2.1}, "within budget"),
        ({"gpu_hours": math.nan}, "within budget"),
        ({"run_id": "another"}, "one run: the training is another run's"),
        ({"init_uri": "s3://b/a"}, "one run: the training began with other weights than the plan's"),
        ({"checkpoint_digest": "cd" * 32}, "one run: the checkpoint evaluated is not the one trained"),
    ],
)
def test_a_bad_training_is_rejected_whatever_the_history(
    make: SimpleNamespace, changes: dict[str, object], check: str
) -> None:
    found = decided(make, "C" * 20, training=make.training(**changes))
    assert found.decision == "REJECT"
    assert found.reasons[0].startswith(check)
    assert len(found.reasons) == 1


@pytest.mark.parametrize("changes", [{"seed": "7"}, {"training_digest": "0" * 64}, {"policy_digest": "0" * 64}])
def test_a_plan_of_another_config_or_with_a_picked_seed_is_rejected(
    make: SimpleNamespace, changes: dict[str, str]
) -> None:
    found = decided(make, "C" * 20, plan=make.plan(make.config(), **changes))
    assert (found.decision, found.reasons[0][:9]) == ("REJECT", "one run: ")


def check(verdict: str, name: str, reason: str) -> Check:
    return Check.model_validate({"name": name, "verdict": verdict, "figure": "0.9", "threshold": "", "reason": reason})


MISSED = check("FAIL", "target", "misses")
UNMEASURED = check("INCONCLUSIVE", "champion", "it cannot be measured")


@pytest.mark.parametrize(
    ("checks", "verdict", "decision", "reasons"),
    [
        ([MISSED], "FAIL", "REJECT", ["target: misses"]),
        ([UNMEASURED], "INCONCLUSIVE", "HOLD", ["champion: it cannot be measured"]),
        ([UNMEASURED, MISSED], "FAIL", "REJECT", ["target: misses"]),
        ([], "FAIL", "REJECT", ["evaluation FAIL"]),
        ([], "INCONCLUSIVE", "HOLD", ["evaluation INCONCLUSIVE"]),
    ],
)
@pytest.mark.parametrize("history", ["", "CC", "C" * 20])
def test_an_evaluation_that_fails_is_rejected_and_one_that_nobody_can_tell_is_held(
    make: SimpleNamespace, checks: list[Check], verdict: str, decision: str, reasons: list[str], history: str
) -> None:
    found = decided(make, history, evaluation=make.evaluation(verdict=verdict, checks=checks))
    assert (found.decision, found.reasons, found.sets_alias) == (decision, reasons, False)
    assert found.summary == f"{decision}: {reasons[0]}"
    if checks:
        passed = len(found.checks) - len(checks)
        assert found.lines()[0] == f"candidate  {verdict:<14}{passed} of {len(found.checks)} checks"


def test_what_nobody_can_tell_is_held_beside_what_the_slo_holds_it_for(make: SimpleNamespace) -> None:
    undecided = make.evaluation(verdict="INCONCLUSIVE", checks=[UNMEASURED])
    found = decided(make, "CNNNN", evaluation=undecided)
    assert found.decision == "HOLD"
    assert [reason.partition(":")[0] for reason in found.reasons] == ["champion", "convergence_rate"]
    bad = decided(make, "C" * 20, evaluation=undecided, training=make.training(lr_sync_errors=1))
    assert (bad.decision, bad.reasons) == ("REJECT", ["no LR sync errors: ranks disagreed 1 times"])


def test_rounding_is_on_plan(make: SimpleNamespace) -> None:
    assert decided(make, "CCCCC", training=make.training(max_lr_deviation=1e-13)).decision == "PROMOTE"


def test_the_lines_of_a_terminal(make: SimpleNamespace) -> None:
    assert decided(make, "CCC").lines()[:2] == [
        "candidate  PASS          9 of 9 checks",
        "SLO        INSUFFICIENT  3 of 3 runs converged; decided from 5 runs on, proven at 14 of 14",
    ]


def test_it_names_what_it_is_about(make: SimpleNamespace) -> None:
    config, found = (
        make.config(),
        decided(make, "CCC", evaluation=make.evaluation(champion_uri="s3://b/champion")),
    )
    plan = make.plan(config)
    assert (found.training_digest, found.policy_digest, found.seed) == (
        plan.training_digest,
        plan.policy_digest,
        plan.seed,
    )
    assert (found.checkpoint_uri, found.checkpoint_digest) == ("s3://convergate/c/40", "ab" * 32)
    assert (found.champion_uri, found.commit, found.team) == ("s3://b/champion", "c0ffee", "vision")


def test_it_names_the_weights_that_the_training_began_with(make: SimpleNamespace) -> None:
    weights = {"init_uri": "s3://b/champion", "init_digest": "0a" * 32}
    plan, training = make.plan(make.config(), **weights), make.training(**weights)
    found = decided(make, "CCC", plan=plan, training=training)
    assert (found.decision, found.init_uri, found.init_digest) == ("CHALLENGER", *weights.values())


def test_a_signature_holds_over_json_and_not_over_a_change(
    make: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "key.pem"
    generate_key(key)
    monkeypatch.setenv(KEY_VARIABLE, str(key))
    signed = Decision.from_json(decided(make, "CCC").signed().to_json())
    signed.verify(key)
    for change in ({"decision": "PROMOTE"}, {"checkpoint_digest": "0" * 64}, {"reasons": []}):
        with pytest.raises(SignatureError):
            signed.model_copy(update=change).verify(key)


def test_a_non_finite_figure_can_be_signed(
    make: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "key.pem"
    generate_key(key)
    monkeypatch.setenv(KEY_VARIABLE, str(key))
    found = decided(make, "CCC")
    sli = found.standing.slis[0].model_copy(update={"count": math.nan, "high": math.inf})
    standing = found.standing.model_copy(update={"slis": [sli]})
    Decision.from_json(found.model_copy(update={"standing": standing}).signed().to_json()).verify(key)


def test_without_a_key_there_is_no_signature_and_none_verifies(make: SimpleNamespace, tmp_path: Path) -> None:
    found = decided(make, "CCC").signed()
    assert found.signature is None
    with pytest.raises(SignatureError, match="not signed"):
        found.verify(tmp_path / "key.pem")


def test_a_key_that_is_missing_is_the_users_error(make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "/no/such/key.pem")
    with pytest.raises(UserError, match="/no/such/key.pem"):
        decided(make, "CCC").signed()


@pytest.mark.parametrize(
    ("documents", "run_class", "reason"),
    [
        ({"training_started": False}, "rejected", "stopped before training"),
        ({}, "not_converged", "training left no result"),
        ({"training": {"status": "diverged", "reason": "loss is NaN"}}, "not_converged", "loss is NaN"),
        ({"training": {"status": "interrupted"}}, "interrupted", "interrupted"),
        ({"interrupted": True}, "interrupted", "interrupted"),
        ({"training": {}}, "not_converged", "not evaluated"),
        ({"training": {}, "evaluation": {}}, "converged", ""),
        (
            {"training": {"attempts": 2}, "evaluation": {}},
            "not_converged",
            "converged in attempt 2; first attempts count",
        ),
        (
            {"training": {"attempts": 2, "events": [ROLLED_BACK]}, "evaluation": {}},
            "not_converged",
            "converged in attempt 2 after 1 rollback; first attempts count",
        ),
        (
            {"training": {"attempts": 4, "events": [ROLLED_BACK, RESUMED, ROLLED_BACK]}, "evaluation": {}},
            "not_converged",
            "converged in attempt 4 after 2 rollbacks; first attempts count",
        ),
        ({"training": {"lr_sync_errors": 1}, "evaluation": {}}, "not_converged", "1 LR sync errors"),
        (
            {"training": {}, "evaluation": {"reached_target": False, "value": 0.9}},
            "not_converged",
            "accuracy 0.9, target 0.95",
        ),
        ({"infrastructure_evidence": "node lost"}, "infrastructure", "node lost"),
        ({"infrastructure_evidence": "evicted", "interrupted": True}, "infrastructure", "evicted"),
        (
            {"infrastructure_evidence": "evicted", "training": {"status": "failed"}},
            "infrastructure",
            "evicted",
        ),
        (
            {"infrastructure_evidence": "evicted", "training": {}, "evaluation": {"reached_target": False}},
            "not_converged",
            "accuracy",
        ),
    ],
)
def test_the_class_of_a_run(make: SimpleNamespace, documents: dict[str, object], run_class: str, reason: str) -> None:
    given: dict[str, object] = {
        "training_started": True,
        "training": None,
        "evaluation": None,
        "interrupted": False,
    }
    for name, value in documents.items():
        given[name] = getattr(make, name)(**value) if isinstance(value, dict) else value
    found = classify(**given)  # type: ignore[arg-type]
    assert found[0] == run_class
    assert found[1].startswith(reason)


def test_the_gate_needs_no_torch_and_its_import_no_heavy_library() -> None:
    code = (
        "import sys; import convergate.components.slo.gate as gate;"
        "print([m for m in ('torch', 'kfp', 'mlflow', 'scipy', 'pandas', 'boto3') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert answer.stdout.strip() == "[]"
