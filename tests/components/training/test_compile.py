"""`training.compile`: the same losses from compiled code, and a machine without a compiler is told so."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from convergate.components.errors import ExitCode
from convergate.components.storage import S3Location, S3Store
from convergate.components.training.job import Job
from convergate.components.training.launch import LaunchError, launch
from convergate.components.training.result import TrainingResult

CONFIG: dict[str, Any] = {
    "schema_version": 1,
    "experiment": "compiled",
    "task": {"factory": "convergate.components.task.tabular:TabularTask", "params": {"width": 8}},
    "schedule": {"lr0": 0.1, "total_steps": 8},
    "training": {"batch_size": 32, "eval_every_steps": 8},
    "evaluation": {"metric": "accuracy", "target": 0.9},
    "promotion": {"model": "compiled"},
}


def _job(s3: str, *, compiled: bool) -> Job:
    return Job(
        run_id=f"run-{compiled}",
        config_text=yaml.safe_dump({**CONFIG, "training": {**CONFIG["training"], "compile": compiled}}),
        seed=5,
        checkpoint_uri=f"{s3}/checkpoints",
        trace_uri=f"{s3}/{compiled}/trace",
        result_uri=f"{s3}/{compiled}/training.json",
    )


def test_compiled_code_gives_the_same_losses(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    jobs = [_job(s3, compiled=compiled) for compiled in (False, True)]
    launch(jobs, 1, 0, on_line=lambda line: None)
    assert list(tmp_path.rglob("*.so"))
    plain, compiled = (
        TrainingResult.from_json(S3Store().read(S3Location.parse(job.result_uri))).train_loss for job in jobs
    )
    assert compiled == pytest.approx(plain, rel=1e-4)


def test_without_a_compiler_the_user_is_told(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    with pytest.raises(LaunchError, match=r"training\.compile = true: there is no C\+\+ compiler → install") as caught:
        launch([_job(s3, compiled=True)], 1, 0, on_line=lambda line: None)
    assert caught.value.exit_code == ExitCode.USAGE
