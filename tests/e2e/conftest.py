"""Whole runs of the command line, as a user starts them: a folder of one's own, embedded servers, real processes."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CONFIG = """
schema_version: 1
experiment: digits
seed: 17
task: {{factory: "{task}"}}
optimizer: {{kind: sgd, momentum: 0.9, weight_decay: 1.0e-4, grad_clip_norm: {clip}}}
schedule: {{kind: cosine, lr0: {lr0}, lr_min: 0.001, total_steps: 80, warmup: {{steps: 8}}}}
training: {{batch_size: 64, eval_every_steps: 20}}
distributed: {{procs_per_node: 2}}
checkpoint: {{every_steps: 20}}
canary: {{min_steps: 12, max_steps: 12}}
evaluation: {{metric: accuracy, target: 0.9}}
promotion: {{model: digits}}
"""
DIGITS = "convergate.components.task.digits:DigitsTask"


@dataclass
class Folder:
    """A user's folder, and what it takes to run convergate in it."""

    path: Path
    variables: dict[str, str]
    """Of every command, unless it gives others; `MLFLOW_TRACKING_URI=""` starts the embedded server."""

    def config(self, name: str = "run.yaml", *, task: str = DIGITS, lr0: float = 0.1, clip: str = "1.0") -> str:
        (self.path / name).write_text(CONFIG.format(task=task, lr0=lr0, clip=clip))
        return name

    def start(self, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "convergate.cli.main", *arguments],
            cwd=self.path,
            env={**_unmeasured(), **self.variables, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,  # as a shell does, so that a test can press Ctrl-C
        )

    def run(self, *arguments: str, timeout: float = 240, **variables: str) -> "subprocess.CompletedProcess[str]":
        process = self.start(*arguments, **variables)
        out, err = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def json(self, *arguments: str, **variables: str) -> Any:
        return json.loads(self.run(*arguments, "--json", **variables).stdout)

    def executed(self, run_id: str) -> list[str]:
        """The tasks that kfp.local ran to an end, in order; KFP numbers the ones of one component, `stop-3`."""
        log = (self.path / ".convergate" / "runs" / run_id / "pipeline.log").read_text()
        plain = re.sub(r"\x1b\[\d*m", "", log)
        return re.findall(r"Task '([\w-]+?)(?:-\d+)?' finished with status (?:SUCCESS|FAILURE)", plain)


def _unmeasured() -> dict[str, str]:
    """The environment without coverage: traced, every process imports torch in twice the time."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, mlflow_environment: dict[str, str]) -> Folder:
    return Folder(tmp_path_factory.mktemp("user"), mlflow_environment)
