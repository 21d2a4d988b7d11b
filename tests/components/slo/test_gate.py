"""Opening runs and deciding over them, on a real S3 server; and the steps' faces, compiled."""

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from convergate.components.config import RunConfig, config_digests, parse_config
from convergate.components.config.models import SloConfig
from convergate.components.errors import UserError
from convergate.components.slo import Decision, EndRecord, Ledger, classify, find_run, take_standing
from convergate.components.slo.gate import end_record, open_run, run_gate
from convergate.components.storage import RunStore
from convergate.components.storage.errors import AlteredError


def text_at(root: str, make: SimpleNamespace, extra: str = "") -> str:
    return f"{make.config_text}storage: {{uri: {root!r}}}\n{extra}"


def test_a_start_is_recorded_with_its_config(s3: str, make: SimpleNamespace) -> None:
    text = text_at(s3, make)
    start = open_run(text, "run-1", "retrain", "ada")
    found = find_run(s3, "run-1")
    assert found is not None
    assert found.start == start
    digests = config_digests(parse_config(text))
    assert (start.training_digest, start.policy_digest) == (digests.training, digests.policy)
    assert (start.kind, start.submitter, start.team) == ("retrain", "ada", "vision")
    assert start.deadline - start.created == timedelta(hours=24 + parse_config(text).budget_hours)
    store = RunStore(s3, "run-1")
    assert store.store.read(store.prefix / "config.yaml").decode() == text


@pytest.mark.parametrize(("gpu_hours", "left"), [("60", timedelta(hours=24 + 30)), ("1e300", timedelta(days=366))])
def test_a_run_stays_open_for_as_long_as_its_budget_lets_it_train(
    s3: str, make: SimpleNamespace, gpu_hours: str, left: timedelta
) -> None:
    extra = f"budget: {{max_gpu_hours: {gpu_hours}}}\ndistributed: {{procs_per_node: 2}}\n"
    start = open_run(text_at(s3, make, extra), "run-1")
    assert start.deadline - start.created == left


def test_a_wrong_config_stays_open_for_a_day(s3: str, make: SimpleNamespace) -> None:
    start = open_run(text_at(s3, make, "budget: {max_gpu_hours: 60, of: 1}\n"), "run-1")
    assert start.deadline - start.created == timedelta(hours=24)


def test_a_retried_step_gets_the_start_that_stands(s3: str, make: SimpleNamespace) -> None:
    first = open_run(text_at(s3, make), "run-1", "retrain", "ada")
    assert open_run(text_at(s3, make), "run-1", "retrain", "bob") == first


def test_a_bucket_that_is_missing_is_made(s3: str, make: SimpleNamespace) -> None:
    root = f"{s3}-new/team"
    open_run(text_at(root, make), "run-1")
    assert find_run(root, "run-1") is not None


def test_a_config_that_is_wrong_is_opened_without_digests(s3: str, make: SimpleNamespace) -> None:
    start = open_run(text_at(s3, make, "schedul: {}\n"), "run-1", "retrain", "ada")
    assert (start.training_digest, start.policy_digest, start.team) == ("", "", "vision")
    assert [run.start.run_id for run in Ledger(s3, "digits", "digits").runs()] == ["run-1"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a list",
        "experiment: digits",
        "{experiment: digits, promotion: null}",
        "{experiment: digits, promotion: digits}",
        "{experiment: a/b, promotion: {model: digits}}",
        "{experiment: '', promotion: {model: digits}}",
        "{experiment: digits, promotion: {model: digits}, storage: [1]}",
        "{experiment: digits, promotion: {model: digits}, storage: {uri: /tmp/x}}",
        "experiment: [",
        "experiment: 2026-99-99",
        "a: &a [*a]",
    ],
)
def test_a_text_by_which_no_run_can_be_counted_is_the_users_error(text: str) -> None:
    with pytest.raises(UserError, match="names no experiment"):
        open_run(text, "run-1")


def test_a_kind_that_is_none_is_the_users_error(make: SimpleNamespace) -> None:
    with pytest.raises(UserError, match="retrain, canary, sweep"):
        open_run(make.config_text, "run-1", "training")


def one_run(config: RunConfig, text: str, run_id: str, make: SimpleNamespace, **ended: object) -> Decision:
    open_run(text, run_id)
    plan, training = make.plan(config, run_id), make.training(run_id)
    decision = run_gate(config, plan, training, make.evaluation(run_id))
    Ledger(config.storage.uri, "digits", "digits").close(
        EndRecord(run_id=run_id, run_class="converged", reached_training=True)
    )
    return decision


def test_five_runs_in_a_row_end_with_promote(s3: str, make: SimpleNamespace) -> None:
    text = text_at(s3, make)
    config = parse_config(text)
    decisions = [one_run(config, text, f"run-{number}", make) for number in range(5)]
    assert [decision.decision for decision in decisions] == ["CHALLENGER"] * 4 + ["PROMOTE"]
    assert [decision.standing.total for decision in decisions] == [1, 2, 3, 4, 5]
    assert RunStore(s3, "run-4").get("decision", Decision) == decisions[-1]
    assert decisions[-1].seconds > 0


def test_a_challenger_is_decided_again_when_more_is_known(s3: str, make: SimpleNamespace) -> None:
    text = text_at(s3, make)
    config = parse_config(text)
    for number in range(5):
        one_run(config, text, f"run-{number}", make)
    again = run_gate(config, make.plan(config, "run-0"), make.training("run-0"), make.evaluation("run-0"))
    assert (again.decision, again.standing.total) == ("PROMOTE", 5)


def test_the_candidate_that_fails_counts_against_the_slo_too(s3: str, make: SimpleNamespace) -> None:
    text = text_at(s3, make)
    config = parse_config(text)
    open_run(text, "run-1")
    training = make.training("run-1", lr_sync_errors=1)
    decision = run_gate(config, make.plan(config, "run-1"), training, make.evaluation("run-1"))
    assert decision.decision == "REJECT"
    assert (decision.standing.failures, decision.standing.verdict) == (1, "FAIL")


def test_the_end_counts_what_happened_in_the_training(s3: str, make: SimpleNamespace) -> None:
    """An LR sync error, rollbacks and every other kind of event are in the ledger, each as one number."""
    kinds = ["rolled_back", "non_finite_loss", "rolled_back", *["update_skipped"] * 300, "lr_sync_error"]
    events = [{"step": step, "kind": kind, "detail": "x" * 1000} for step, kind in enumerate(kinds)]
    training = make.training("run-1", events=events, attempts=3, lr_sync_errors=1, status="lr_sync_error")
    run_class, reason = classify(training_started=True, training=training, evaluation=None, interrupted=False)
    open_run(text_at(s3, make), "run-1")
    ledger = Ledger(s3, "digits", "digits")
    ledger.close(end_record("run-1", run_class, reason, training, None))
    found = ledger.find("run-1")
    assert found is not None
    assert found.end is not None
    assert found.end.events == {"rolled_back": 2, "non_finite_loss": 1, "update_skipped": 300, "lr_sync_error": 1}
    assert (found.end.rollbacks, found.end.attempts, found.end.lr_sync_errors) == (2, 3, 1)
    assert found.end.run_class == "not_converged"
    standing = take_standing(SloConfig(), ledger.runs())
    assert [(sli.name, sli.count) for sli in standing.slis if sli.verdict == "FAIL"] == [("lr_sync_errors", 1)]


def test_the_faces_compile_with_their_fixed_names(tmp_path: Path) -> None:
    from convergate.components.slo import component
    from kfp.compiler import Compiler

    faces = {}
    for face in (component.open_run, component.gate):
        Compiler().compile(face, str(tmp_path / "face.yaml"))
        compiled = next(yaml.safe_load_all((tmp_path / "face.yaml").read_text()))
        faces[face.name] = next(iter(compiled["components"].values()))
    assert set(faces["open-run"]["inputDefinitions"]["parameters"]) >= {
        "config",
        "run_id",
        "kind",
        "submitter",
    }
    assert set(faces["open-run"]["outputDefinitions"]["parameters"]) == {"Output"}
    inputs, outputs = faces["gate"]["inputDefinitions"], faces["gate"]["outputDefinitions"]
    assert set(inputs["parameters"]) == {"config", "run_id"}
    assert set(inputs["artifacts"]) == {"plan", "training", "evaluation"}
    assert set(outputs["artifacts"]) == {"decision", "summary", "metrics"}
    assert set(outputs["parameters"]) == {"verdict", "reason"}


def test_the_gates_face_packs_the_decision(s3: str, make: SimpleNamespace, tmp_path: Path) -> None:
    from convergate.components.slo import component

    text = text_at(s3, make)
    config = parse_config(text)
    assert component.open_run.python_func(text, "", "job-1", "retrain", "ada") == "job-1"
    documents = {
        "plan": make.plan(config, "job-1"),
        "training": make.training("job-1"),
        "evaluation": make.evaluation("job-1"),
    }
    artifacts = {name: SimpleNamespace(path=str(tmp_path / name)) for name in [*documents, "decision", "summary"]}
    for name, document in documents.items():
        Path(artifacts[name].path).write_bytes(document.to_json())
        RunStore(s3, "job-1").put(name, document)
    logged: dict[str, float] = {}
    metrics = SimpleNamespace(log_metric=logged.__setitem__)
    answer = component.gate.python_func(config=text, run_id="job-1", metrics=metrics, **artifacts)
    assert answer == ("PASS", "CHALLENGER: history is short: 1 of at least 5 runs")
    assert Decision.from_json(Path(artifacts["decision"].path).read_bytes()).decision == "CHALLENGER"
    assert "SLO        INSUFFICIENT  1 of 1 runs converged" in Path(artifacts["summary"].path).read_text()
    assert logged == {"runs_converged": 1.0, "runs_counted": 1}

    Path(artifacts["evaluation"].path).write_bytes(make.evaluation("job-1", value=0.999).to_json())
    with pytest.raises(AlteredError, match="the evaluation that run job-1 was given is not what its step stored"):
        component.gate.python_func(config=text, run_id="job-1", metrics=metrics, **artifacts)
