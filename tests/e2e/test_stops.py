"""Runs that stop at a negative verdict: which tasks of the compiled DAG ran, and what is said and left behind."""

from typing import Any


def test_a_config_that_fails_preflight_is_stopped_first(folder: Any) -> None:
    config = folder.path / folder.config("again.yaml")
    config.write_text(config.read_text().replace("batch_size: 64", "batch_size: 64, init_from: champion"))
    done = folder.run("retrain", config.name)
    assert done.returncode == 2, done.stderr + done.stdout
    assert "training.init_from = champion: digits has no champion yet" in done.stdout.splitlines()[-1]
    newest = folder.json("runs")[0]
    assert newest["class"] == "rejected"
    assert folder.executed(newest["run"]) == ["open-run", "validate-config", "stop", "close-run"]


def test_a_config_that_cannot_converge_is_stopped_by_the_canary(folder: Any) -> None:
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


def test_a_run_that_diverges_in_training_is_not_converged(folder: Any) -> None:
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


def test_data_with_a_broken_column_is_stopped(folder: Any) -> None:
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
