"""The compiled DAG on what a user got wrong: a verdict with the reason, never a step that raises and is retried."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from convergate.components.errors import ExitCode
from convergate.components.report import RunPage
from convergate.pipelines.closing import load_page
from convergate.pipelines.compiling import compile_pipeline
from convergate.pipelines.exit_codes import exit_code
from convergate.pipelines.local import run_pipeline

from ..documents import config_text


@pytest.fixture
def run(s3: str, tmp_path: Path) -> Callable[[str], tuple[RunPage, list[str]]]:
    """Run the compiled file on a config's text: what the run left, and the tasks that started, in order."""
    file = compile_pipeline("retrain", tmp_path / "ir" / "retrain.yaml")

    def ran(text: str) -> tuple[RunPage, list[str]]:
        assert run_pipeline(file, {"config": text, "run_id": "run-1", "submitter": "ada"}, tmp_path) == 1
        log = re.sub(r"\x1b\[\d*m", "", (tmp_path / "pipeline.log").read_text())
        return load_page(text, s3, "run-1"), re.findall(r"Executing task '([\w-]+?)(?:-\d+)?'", log)

    return ran


def test_a_text_that_is_no_config(run: Callable[[str], tuple[RunPage, list[str]]], s3: str) -> None:
    page, started = run(config_text(s3, more="schedul: {}\n"))
    assert started == ["open-run", "validate-config", "stop", "close-run"]
    assert page.plan is not None
    assert page.plan.problems == ["error: schedul: unknown key; did you mean `schedule`?"]
    assert page.end is not None
    assert (page.end.run_class, page.end.reason) == ("rejected", f"plan FAIL: {page.plan.reason}")
    assert exit_code(page, ExitCode.OUTSIDE) == 2


def test_a_task_that_cannot_be_imported(run: Callable[[str], tuple[RunPage, list[str]]], s3: str) -> None:
    page, started = run(config_text(s3).replace("convergate.components.task.digits", "nowhere_to_be_found"))
    assert started == ["open-run", "validate-config", "validate-data", "stop", "close-run"]
    assert page.data is not None
    assert "there is no module nowhere_to_be_found" in page.data.reason
    assert page.end is not None
    assert (page.end.run_class, page.end.reason) == ("rejected", f"data FAIL: {page.data.reason}")
    assert exit_code(page, ExitCode.OUTSIDE) == 2
