"""The plan that every later step works from."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from convergate.components.config import RunConfig, config_digests, derive_seed
from convergate.components.config.plan import RunPlan, make_plan, plan_run
from convergate.components.config.preflight import Facts, preflight
from convergate.components.errors import UserError
from pydantic import ValidationError

Parsed = Callable[..., RunConfig]


def test_a_plan_holds_what_follows_from_the_config(parsed: Parsed) -> None:
    config = parsed({"seed": 17, "distributed.procs_per_node": 2})
    plan = make_plan(config, "run-1")
    digests = config_digests(config)
    assert (plan.run_id, plan.experiment, plan.model) == ("run-1", "digits", "digits")
    assert (plan.training_digest, plan.policy_digest) == (digests.training, digests.policy)
    assert plan.seed == str(derive_seed(config, "run-1"))
    assert (plan.total_steps, plan.world_size) == (400, 2)
    assert (plan.verdict, plan.reason, plan.problems) == ("PASS", "", [])
    assert plan.summary == f"{preflight(config).num_checks} checks"
    assert plan.seconds >= 0


def test_a_retried_step_makes_the_same_plan(parsed: Parsed) -> None:
    config = parsed()
    volatile = {"created", "seconds"}
    first, second = (make_plan(config, "run-1").model_dump(exclude=volatile) for _ in range(2))
    assert first == second
    assert make_plan(config, "run-2").seed != first["seed"]


def test_errors_make_it_fail_and_the_first_is_its_reason(parsed: Parsed) -> None:
    plan = make_plan(parsed({"schedule.lr0": 50, "distributed.nodes": 2, "canary.nodes": 2}), "run")
    assert plan.verdict == "FAIL"
    assert plan.reason == "error: distributed.nodes = 2: this machine is one node → distributed.launcher: trainjob"
    assert plan.problems == [
        "error: distributed.nodes = 2: this machine is one node → distributed.launcher: trainjob",
        "error: canary.nodes = 2: this machine is one node → distributed.launcher: trainjob",
        "warning: schedule.lr0 = 50: a peak of 50 without gradient clipping usually diverges with sgd"
        " → optimizer.grad_clip_norm: 1.0, or lr0 ≤ 1",
    ]
    assert plan.summary.endswith("checks, 1 warning")


def test_a_warning_alone_lets_it_pass(parsed: Parsed) -> None:
    plan = make_plan(parsed({"schedule.lr0": 50, "schedule.lr_min": 40}), "run")
    assert (plan.verdict, plan.reason) == ("PASS", "")
    assert plan.summary.endswith("checks, 2 warnings")


def test_a_text_that_is_valid_has_its_configs_plan(parsed: Parsed) -> None:
    config = parsed({"schedule.lr0": 50})
    volatile = {"created", "seconds"}
    planned = plan_run(config.model_dump_json(), "run-1")
    assert planned.model_dump(exclude=volatile) == make_plan(config, "run-1").model_dump(exclude=volatile)


def test_a_text_that_is_no_config_fails_with_every_problem(raw: dict[str, Any]) -> None:
    raw |= {"schedul": {}, "training": {"batch_size": 0}}
    plan = plan_run(json.dumps(raw), "run-1")
    assert (plan.verdict, plan.summary, plan.run_id) == ("FAIL", "2 problems", "run-1")
    assert plan.problems == [
        "error: training.batch_size = 0: must be greater than or equal to 1",
        "error: schedul: unknown key; did you mean `schedule`?",
    ]
    assert plan.reason == plan.problems[0]
    assert (plan.experiment, plan.model) == ("digits", "digits")
    assert (plan.training_digest, plan.policy_digest, plan.seed, plan.total_steps) == ("", "", "", None)
    assert RunPlan.from_json(plan.to_json()) == plan
    assert "digest" not in plan.to_markdown()
    assert "- error: schedul: unknown key" in plan.to_markdown()
    raw |= {"training": {"batch_size": 64}}
    assert plan_run(json.dumps(raw), "run-1").summary == "1 problem"


def test_a_text_that_names_no_experiment_has_no_plan() -> None:
    with pytest.raises(UserError, match="names no experiment"):
        plan_run("schedule: {lr0: 0.1}", "run-1")


def test_the_length_of_epochs_is_open_until_the_data_is_known(parsed: Parsed) -> None:
    config = parsed({"schedule.total_steps": None, "schedule.total_epochs": 2})
    assert make_plan(config, "run").total_steps is None
    assert make_plan(config, "run", Facts(num_train_samples=1300)).total_steps == 40


def test_it_is_a_document(parsed: Parsed) -> None:
    plan = make_plan(parsed({"schedule.lr0": 50}), "run")
    assert RunPlan.from_json(plan.to_json()) == plan
    text = plan.to_markdown()
    assert text.startswith(f"**PASS** {plan.summary}\n")
    assert "- warning: schedule.lr0 = 50" in text
    assert f"- training digest: `{plan.training_digest}`" in text
    with pytest.raises(ValidationError, match="schema_version"):
        RunPlan.from_json(plan.to_json().replace(b'"schema_version": 1', b'"schema_version": 2'))


def test_the_commit_is_the_images_or_the_checkouts(
    parsed: Parsed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert make_plan(parsed(), "run").commit is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    plan = make_plan(parsed(), "run")
    assert (plan.commit, plan.image) == (head, None)
    monkeypatch.setenv("CONVERGATE_COMMIT", "abc")
    monkeypatch.setenv("CONVERGATE_IMAGE", "registry.example.org/convergate@sha256:00")
    plan = make_plan(parsed(), "run")
    assert (plan.commit, plan.image) == ("abc", "registry.example.org/convergate@sha256:00")
    monkeypatch.delenv("CONVERGATE_COMMIT")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert make_plan(parsed(), "run").commit is None
