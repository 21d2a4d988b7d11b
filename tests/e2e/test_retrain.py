"""The compiled DAG under kfp.local, end to end on real data: which tasks ran, and what was left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

WHOLE = [
    "open-run", "validate-config", "validate-data", "canary", "train", "find-champion", "evaluate", "gate", "promote",
    "close-run",
]  # fmt: skip


@pytest.fixture(scope="module")
def passing(folder: Any) -> dict[str, Any]:
    done = folder.run("retrain", folder.config(), "--json", MLFLOW_TRACKING_URI="")
    assert done.returncode == 0, done.stderr + done.stdout
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


def test_a_first_run_becomes_challenger(folder: Any, passing: dict[str, Any]) -> None:
    assert (passing["decision"], passing["alias"], passing["run_class"]) == ("CHALLENGER", "challenger", "converged")
    assert sorted(folder.executed(passing["run_id"])) == sorted(WHOLE)


def test_its_report_stands_alone(folder: Any, passing: dict[str, Any]) -> None:
    page = (folder.path / passing["report"]).read_text()
    assert "challenger" in page
    assert "<svg" in page
    assert "http://127" not in page


def test_both_ranks_are_in_the_trace_and_checkpoints_on_s3(folder: Any, passing: dict[str, Any]) -> None:
    bucket = folder.path / ".convergate" / "s3" / "convergate"
    ranks = {path.name for path in (bucket / "runs" / passing["run_id"] / "trace" / "steps").iterdir()}
    assert ranks == {"rank-00000", "rank-00001"}
    steps = sorted(path.name for path in (bucket / "checkpoints" / passing["run_id"]).iterdir())
    assert steps[-1] == "attempt-001-step-000000080"


def test_the_registered_model_predicts_with_the_reported_accuracy(folder: Any, passing: dict[str, Any]) -> None:
    """Loaded from the registry by somebody who has neither convergate nor the task."""
    script = """
import json, sys
from pathlib import Path
sys.modules["convergate"] = None
from sys import argv
import mlflow, torch
model = mlflow.pytorch.load_model("models:/digits@challenger")
images, labels = torch.load("test.pt", weights_only=True)
print(json.dumps({"accuracy": (model(images).argmax(1) == labels).float().mean().item()}))
"""
    (folder.path / "load.py").write_text(script)
    prepare = """
import torch
from convergate.components.task.digits import DigitsTask
torch.save(DigitsTask().dataset("test").tensors, "test.pt")
import os, subprocess, sys
from pathlib import Path
from convergate.components.promotion.registry import wait_for_mlflow
from convergate.pipelines.servers import embedded_servers
with embedded_servers(Path(".convergate")):
    wait_for_mlflow()
    sys.exit(subprocess.run([sys.executable, "load.py"]).returncode)
"""
    done = subprocess.run(
        [sys.executable, "-c", prepare], cwd=folder.path, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    evaluation = json.loads(
        (folder.path / ".convergate/s3/convergate/runs" / passing["run_id"] / "evaluation.json").read_text()
    )
    assert json.loads(done.stdout.splitlines()[-1])["accuracy"] == pytest.approx(evaluation["value"], abs=1e-6)


def test_runs_slo_and_gate_know_it(folder: Any, passing: dict[str, Any]) -> None:
    runs = folder.json("runs")
    assert [(run["run"], run["class"]) for run in runs] == [(passing["run_id"], "converged")]
    slo = folder.run("slo", "run.yaml", "--json")
    assert slo.returncode == 3
    assert json.loads(slo.stdout)["slis"][0]["total"] == 1
    gate = folder.run("gate", passing["run_id"])
    assert gate.returncode == 0
    assert "CHALLENGER" in gate.stdout


def test_a_config_that_fails_preflight_is_stopped_first(folder: Any) -> None:
    config = folder.path / folder.config("fp16.yaml")
    config.write_text(config.read_text().replace("batch_size: 64", "batch_size: 64, precision: fp16"))
    done = folder.run("retrain", config.name)
    assert done.returncode == 2, done.stderr + done.stdout
    assert "training.precision = fp16" in done.stdout.splitlines()[-1]
    newest = folder.json("runs")[0]
    assert newest["class"] == "rejected"
    assert folder.executed(newest["run"]) == ["open-run", "validate-config", "stop", "close-run"]


def test_a_config_that_cannot_converge_is_stopped_by_the_canary(folder: Any, passing: dict[str, Any]) -> None:
    done = folder.run("retrain", folder.config("hot.yaml", lr0=50, clip="null"))
    assert done.returncode == 1, done.stderr + done.stdout
    assert "canary FAIL" in done.stdout.splitlines()[-1]
    newest = folder.json("runs")[0]
    assert newest["class"] == "rejected"
    assert folder.executed(newest["run"]) == [
        "open-run",
        "validate-config",
        "validate-data",
        "canary",
        "stop",
        "close-run",
    ]
    report = (folder.path / ".convergate" / "runs" / newest["run"] / "report.html").read_text()
    assert "not finite" in report
    bucket = folder.path / ".convergate" / "s3" / "convergate"
    assert not (bucket / "releases" / "digits" / newest["run"]).exists()


def test_a_run_that_diverges_in_training_is_not_converged(folder: Any, passing: dict[str, Any]) -> None:
    (folder.path / "late_nan.py").write_text(
        '''
from convergate.components.task.digits import DigitsTask

class LateNan(DigitsTask):
    """Healthy for as long as the canary looks, then NaN."""
    calls = 0
    def loss(self, model, batch):
        self.calls += 1
        return super().loss(model, batch) * (float("nan") if self.calls > 60 else 1.0)
'''
    )
    done = folder.run("retrain", folder.config("nan.yaml", task="late_nan:LateNan"))
    assert done.returncode == 1, done.stderr + done.stdout
    newest = folder.json("runs")[0]
    assert newest["class"] == "not_converged"
    assert folder.executed(newest["run"]) == [
        "open-run", "validate-config", "validate-data", "canary", "train", "stop", "close-run",
    ]  # fmt: skip
    assert "step 60" in done.stdout.splitlines()[-1]


def test_data_with_a_broken_column_is_stopped(folder: Any, passing: dict[str, Any]) -> None:
    (folder.path / "broken.py").write_text(
        '''
from convergate.components.task.digits import DigitsTask

class Broken(DigitsTask):
    """A camera that counts to 1600."""
    def table(self):
        table = super().table()
        table["pixel_3"] = table["pixel_3"] * 100
        return table
'''
    )
    done = folder.run("retrain", folder.config("broken.yaml", task="broken:Broken"))
    assert done.returncode == 1, done.stderr + done.stdout
    assert "above 16" in done.stdout.splitlines()[-1]
    assert folder.executed(folder.json("runs")[0]["run"]) == [
        "open-run", "validate-config", "validate-data", "stop", "close-run",
    ]  # fmt: skip


def test_s3_that_cannot_be_reached_is_named_in_time(folder: Any) -> None:
    started = time.monotonic()
    done = folder.run("retrain", folder.config(), AWS_ENDPOINT_URL="http://127.0.0.1:9", AWS_ACCESS_KEY_ID="a",
                      AWS_SECRET_ACCESS_KEY="very-secret")  # fmt: skip
    assert done.returncode == 4
    assert "http://127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr
    assert "very-secret" not in done.stderr + done.stdout
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_stops_everything_and_says_so(folder: Any, signum: int, code: int) -> None:
    """Ctrl-C in the middle: nothing that was started lives on, and the ledger knows."""
    process = folder.start("retrain", folder.config(), MLFLOW_TRACKING_URI="")
    assert process.stdout is not None
    for line in process.stdout:
        if "validate data" in line:
            break
    process.send_signal(signum)
    process.communicate(timeout=120)
    assert process.returncode == code
    left = [args for args in _processes() if str(folder.path) in args]
    assert left == []
    newest = folder.json("runs")[0]
    assert newest["class"] == "interrupted"


def _processes() -> list[str]:
    """Command lines of all live processes, with their working folder in front."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found.append(f"{(entry / 'cwd').readlink()} {command}")
        except OSError:
            continue
    return found
