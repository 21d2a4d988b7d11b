"""The compiled canary pipeline under kfp.local on real data: green and red, in the ledger, in no statistic of runs."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from convergate.components.errors import ExitCode
from convergate.components.report import RunPage, verdict_sentence
from convergate.components.slo.ledger import Ledger
from convergate.components.slo.standing import take_standing
from convergate.pipelines.closing import load_page
from convergate.pipelines.compiling import _write, compile_pipeline
from convergate.pipelines.exit_codes import exit_code
from convergate.pipelines.local import run_pipeline
from convergate.pipelines.placement import Placement
from convergate.pipelines.pods import ending
from convergate.pipelines.stages import stop_or_undecided
from convergate.pipelines.steps import passed
from kfp import dsl

from ..documents import config_text, make_config

Run = Callable[[str], tuple[int, RunPage, list[str]]]
CHECKED = ["open-run", "validate-config", "validate-data", "canary"]


@pytest.fixture
def run(s3: str, tmp_path: Path) -> Run:
    """Run the compiled file on a config's text: its exit code, what it left, and the tasks that started, in order."""
    file = compile_pipeline("canary", tmp_path / "canary.yaml")

    def ran(text: str) -> tuple[int, RunPage, list[str]]:
        code = run_pipeline(file, {"config": text, "run_id": "canary-1", "submitter": "ci"}, tmp_path)
        return code, load_page(text, s3, "canary-1"), started(tmp_path)

    return ran


def started(folder: Path) -> list[str]:
    log = re.sub(r"\x1b\[\d*m", "", (folder / "pipeline.log").read_text())
    return re.findall(r"Executing task '([\w-]+?)(?:-\d+)?'", log)


def test_a_canary_that_passes_ends_green_and_counts_for_nothing_but_its_cost(run: Run, s3: str) -> None:
    code, page, tasks = run(config_text(s3))
    assert (code, tasks) == (0, [*CHECKED, "passed", "close-run"])
    assert page.start is not None
    assert (page.start.kind, page.start.submitter) == ("canary", "ci")
    assert page.end is not None
    assert (page.end.run_class, page.end.reason, page.end.reached_training) == ("passed", "", False)
    assert page.end.gpu_hours > 0
    assert exit_code(page, ExitCode.OUTSIDE) == 0
    assert verdict_sentence(page).startswith("The canary passes: ")
    policy = make_config(more="slo: {cost_per_converged_gpu_hours: 1.0}\n").slo
    standing = take_standing(policy, Ledger(s3, "digits", "digits").runs())
    assert (standing.raw_total, standing.classes, standing.failures) == (0, {}, 0)
    assert standing.slis[-1].count == page.end.gpu_hours


def test_a_canary_that_fails_ends_red_with_the_reason(run: Run, s3: str) -> None:
    text = config_text(s3).replace("lr0: 0.1", "lr0: 50") + "optimizer: {kind: sgd, grad_clip_norm: null}\n"
    code, page, tasks = run(text)
    assert (code, tasks) == (1, [*CHECKED, "stop", "close-run"])
    assert page.end is not None
    assert page.canary is not None
    assert (page.end.run_class, page.end.reason) == ("rejected", f"canary FAIL: {page.canary.reason}")
    assert exit_code(page, ExitCode.OUTSIDE) == 1


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def say(verdict: str) -> NamedTuple("Outputs", [("verdict", str), ("reason", str)]):  # type: ignore[valid-type]
    return verdict, f"because {verdict}"  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("verdict", "code", "end"),
    [("PASS", 0, "passed"), ("FAIL", 1, "stop"), ("INCONCLUSIVE", 1, "stop-undecided"), ("", 1, "stop-undecided")],
)
def test_a_gate_goes_one_way_at_each_verdict(tmp_path: Path, verdict: str, code: int, end: str) -> None:
    @dsl.pipeline(name="one-gate")
    def one_gate(verdict: str) -> None:
        said = say(verdict=verdict)
        with dsl.If(said.outputs["verdict"] == "PASS"):
            ending(passed(), Placement())
        stop_or_undecided(said, Placement(), "gate")

    file = _write(one_gate, tmp_path / "gate.yaml")
    assert run_pipeline(file, {"verdict": verdict}, tmp_path) == code
    assert started(tmp_path) == ["say", end]
    if code:
        assert f"because {verdict}" in (tmp_path / "pipeline.log").read_text()
