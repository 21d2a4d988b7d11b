"""The compiled DAG under kfp.local, end to end on real data: which tasks ran, and what was left behind."""

import json
import math
import subprocess
import sys
from typing import Any

import pandas as pd
import pytest
from convergate.components.config.signature import generate_key

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
    newest = min(path.name for path in (bucket / "checkpoints" / passing["run_id"] / "commits").iterdir())
    assert newest.endswith("-attempt-001-step-000000080.json")


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


def test_a_run_that_begins_with_the_champion_says_so_and_is_measured_against_it(
    folder: Any, passing: dict[str, Any]
) -> None:
    promote = ("promote", passing["run_id"], "--approve", "--reason", "looked at", "--key", "ada.pem")
    generate_key(folder.path / "ada.pem")
    champion = json.loads(folder.run(*promote, "--json", MLFLOW_TRACKING_URI="").stdout)
    config = folder.path / folder.config("again.yaml")
    text = config.read_text().replace("batch_size: 64", "batch_size: 64, init_from: champion")
    config.write_text(text.replace("target: 0.9", "target: 0.9, margin_vs_champion: 0.1"))
    done = folder.run("retrain", config.name, "--json", MLFLOW_TRACKING_URI="")
    assert done.returncode == 0, done.stderr + done.stdout
    outcome = json.loads(done.stdout)
    assert sorted(folder.executed(outcome["run_id"])) == sorted(WHOLE)

    run = folder.path / ".convergate/s3/convergate/runs" / outcome["run_id"]
    documents = {name: json.loads((run / f"{name}.json").read_text()) for name in ("plan", "training", "decision")}
    for name, document in documents.items():
        assert (document["init_uri"], document["init_digest"]) == (champion["uri"], champion["digest"]), name
    assert json.loads((run / "evaluation.json").read_text())["champion_uri"] == champion["uri"]
    page = (folder.path / outcome["report"]).read_text()
    assert "initial weights" in page
    assert champion["digest"] in page
    steps = pd.concat(pd.read_parquet(path) for path in (run / "trace/steps").rglob("*.parquet"))
    random_guess = math.log(10)
    assert steps[steps["step"] == 0]["loss"].mean() < random_guess / 4
