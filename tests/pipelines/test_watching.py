"""A run on a cluster until its end: what the states of its steps tell, asked of a server over HTTP."""

from collections.abc import Iterator

import kfp_api
import pytest
from convergate.components.access import ACCESS
from convergate.pipelines.kfp_api import PipelinesApi
from convergate.pipelines.submitting import SubmittedRun
from convergate.pipelines.watching import STEPS, States, wait_for
from kfp_api import KfpApi, steps

from ..documents import config_text, make_config

BEFORE = {"open_run": "SUCCEEDED", "validate_config": "SUCCEEDED", "validate_data": "SUCCEEDED"}
TRAINED = {**BEFORE, "canary": "SUCCEEDED", "train": "SUCCEEDED"}


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[KfpApi]:
    monkeypatch.setattr("convergate.pipelines.watching.POLL_SECONDS", 0.0)
    with kfp_api.kfp_api() as server:
        server.runs.append({"run_id": "run-1", "state": "PENDING"})
        yield server


@pytest.mark.parametrize(
    ("ended", "code", "said"),
    [
        (steps("SUCCEEDED", **TRAINED, gate="SUCCEEDED", promote="SUCCEEDED"), 0, "every step succeeded"),
        (steps("SUCCEEDED", **BEFORE, canary="SUCCEEDED", passed="SUCCEEDED"), 0, "every step succeeded"),
        (steps("SUCCEEDED", **TRAINED), 3, "the run succeeded, and none of its steps was promote or passed"),
        (steps("FAILED", **BEFORE, canary="SUCCEEDED", stop_3="FAILED"), 1, "canary stopped the run"),
        (steps("FAILED", **TRAINED, gate="SUCCEEDED", stop="FAILED"), 1, "gate stopped the run"),
        (
            steps("FAILED", open_run="SUCCEEDED", validate_config="SUCCEEDED", stop_5="FAILED"),
            2,
            "validate-config stopped the run",
        ),
        (steps("FAILED", **BEFORE, canary="SUCCEEDED", stop_undecided_2="FAILED"), 3, "canary could not tell"),
        (steps("FAILED", **TRAINED, gate="SUCCEEDED", stop_undecided="FAILED"), 3, "gate could not tell"),
        (steps("FAILED", **BEFORE, canary="FAILED"), 4, "canary failed"),
        (steps("FAILED"), 4, "the run ended FAILED, and no step says why"),
        ({**steps("FAILED", **BEFORE), "state_history": [{"state": "CANCELING"}]}, 143, "somebody stopped the run"),
        (steps("CANCELED", **BEFORE), 143, "somebody stopped the run"),
    ],
)
def test_the_steps_alone_tell_the_exit_code(api: KfpApi, ended: kfp_api.Node, code: int, said: str) -> None:
    """Without any right on S3, and whatever KFP lists beside the steps."""
    closed = {"task_id": "c", "display_name": "close-run", "state": "SUCCEEDED"}
    ended["run_details"]["task_details"].append(closed)
    api.script = [steps("PENDING"), {}, steps(open_run="RUNNING"), ended]
    seen: list[States] = []
    run = SubmittedRun("run-1", "http://kfp/#/runs/details/run-1")
    outcome = wait_for(PipelinesApi(api.url), run, make_config(), config_text(), seen.append, seconds=60)
    assert (outcome.exit_code, outcome.reason, outcome.read_from) == (code, said, "steps")
    assert seen[2] == {"open-run": "RUNNING"}
    assert list(seen[-1]) == list(outcome.steps) == [step for step in STEPS if step in outcome.steps]
    assert outcome.steps["close-run"] == "SUCCEEDED"


@pytest.mark.parametrize(
    ("state", "last", "code"), [("SUCCEEDED", {"promote": "Succeeded"}, 0), ("FAILED", {"stop-2": "Failed"}, 1)]
)
def test_the_states_of_a_large_run_are_in_its_workflow(
    api: KfpApi, state: str, last: dict[str, str], code: int
) -> None:
    """KFP updates no task any more once Argo keeps them compressed, beyond 1 MiB."""
    phases = {"open-run": "Succeeded", "gate": "Succeeded", "condition-8": "Omitted", **last, "close-run": "Succeeded"}
    api.nodes = {f"n-{name}": {"displayName": name, "phase": phase} for name, phase in phases.items()}
    api.script = [steps("RUNNING", **TRAINED, gate="RUNNING"), steps(state, **TRAINED, gate="RUNNING")]
    seen: list[States] = []
    run = SubmittedRun("run-1", "http://kfp/#/runs/details/run-1")
    outcome = wait_for(PipelinesApi(api.url), run, make_config(), config_text(), seen.append, seconds=60)
    assert (outcome.exit_code, outcome.steps["gate"], outcome.steps["close-run"]) == (code, "SUCCEEDED", "SUCCEEDED")
    assert seen[-1] == outcome.steps


def test_the_steps_of_a_run_end_a_moment_after_it(api: KfpApi) -> None:
    done = {**TRAINED, "gate": "SUCCEEDED", "promote": "SUCCEEDED"}
    api.script = [steps("SUCCEEDED", **done, close_run="RUNNING"), steps("SUCCEEDED", **done, close_run="SUCCEEDED")]
    run = SubmittedRun("run-1", "http://kfp/#/runs/details/run-1")
    outcome = wait_for(PipelinesApi(api.url), run, make_config(), config_text(), lambda _: None, seconds=60)
    assert (outcome.exit_code, outcome.steps["close-run"]) == (0, "SUCCEEDED")
    assert api.calls == ["GET /apis/v2beta1/runs/run-1"] * 2


def test_every_step_is_known() -> None:
    assert {step.replace("_", "-") for kind in ACCESS.values() for step in kind.steps} <= set(STEPS)
