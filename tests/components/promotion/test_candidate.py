"""A registered candidate, as somebody uses it who has nothing of ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from convergate.components.checkpoint import CheckpointError, CheckpointRef
from convergate.components.config import RunConfig
from convergate.components.errors import UserError
from convergate.components.promotion import candidate
from convergate.components.promotion.candidate import register_candidate
from convergate.components.promotion.registry import find_or_create_run, mlflow_client
from convergate.components.storage import S3Store
from convergate.components.task.digits import DigitsTask
from torch import Tensor, nn

from ...checkpoints import blob
from .conftest import MakeConfig, save_checkpoint, trained_model

STRANGER = """
import json, sys
sys.modules["convergate"] = None  # importing it fails
import mlflow, torch
model = mlflow.pytorch.load_model(sys.argv[1])
torch.manual_seed(3)
outputs = [model(torch.randn(size, 1, 8, 8)).tolist() for size in (1, 2, 7)]
refused = []
for mode in (model.eval, model.train):
    try:
        mode()
    except NotImplementedError:
        refused.append(mode.__name__.strip("_"))
information = mlflow.models.get_model_info(sys.argv[1])
requirements = open(mlflow.artifacts.download_artifacts(sys.argv[1] + "/requirements.txt")).read()
print(json.dumps({
    "outputs": outputs,
    "refused": refused,
    "inputs": information.signature.inputs.to_dict(),
    "requirements": requirements.split(),
}))
"""


def register(config: RunConfig, run_id: str, uri: str, digest: str) -> str:
    with mlflow_client() as client:
        run = find_or_create_run(client, config.experiment, run_id)
        return register_candidate(client, config, run, uri, digest)


def test_the_model_works_in_a_process_without_convergate(
    s3: str, mlflow_server: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(s3)
    name = config.promotion.model
    version = register(config, "run-1", *save_checkpoint(config, "run-1", seed=5))
    with mlflow_client() as client:
        client.set_registered_model_alias(name, "challenger", version)
    answer = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, f"models:/{name}@challenger"],
        env={"MLFLOW_TRACKING_URI": mlflow_server, "PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    torch.manual_seed(3)
    model = trained_model(seed=5)
    torch.manual_seed(3)
    with torch.inference_mode():
        for size, output in zip((1, 2, 7), found["outputs"], strict=True):
            torch.testing.assert_close(torch.tensor(output), model(torch.randn(size, 1, 8, 8)))
    assert found["refused"] == ["eval", "train"]
    assert found["inputs"] == [{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 1, 8, 8]}}]
    assert f"torch=={torch.__version__.partition('+')[0]}" in found["requirements"]


def test_a_version_tells_where_it_comes_from_and_is_found_again(
    s3: str, mlflow_server: str, make_config: MakeConfig
) -> None:
    config = make_config(s3)
    uri, digest = save_checkpoint(config, "run-1", seed=0)
    other = save_checkpoint(config, "run-2", seed=1)
    assert [register(config, "run-1", uri, digest) for _ in range(2)] == ["1", "1"]
    assert register(config, "run-2", *other) == "2"
    with mlflow_client() as client:
        version = client.get_model_version(config.promotion.model, "1")
    assert version.tags == {
        "convergate.run_id": "run-1",
        "convergate.checkpoint": uri,
        "convergate.checkpoint_digest": digest,
    }


def test_a_checkpoint_that_is_not_what_its_digest_says_is_not_registered(
    s3: str, mlflow_server: str, make_config: MakeConfig
) -> None:
    config = make_config(s3)
    uri, _ = save_checkpoint(config, "run-1", seed=0)
    with pytest.raises(CheckpointError, match="it was changed"):
        register(config, "run-1", uri, "0" * 64)


@pytest.mark.parametrize("cause", [" does not exist", " is shorter than it should be"])
def test_a_checkpoint_that_is_damaged_is_not_registered(
    s3: str, mlflow_server: str, make_config: MakeConfig, cause: str
) -> None:
    config = make_config(s3)
    uri, digest = save_checkpoint(config, "run-1", seed=0)
    ref = CheckpointRef.parse(uri)
    assert ref is not None
    place = blob(ref)
    S3Store().delete(place)
    if "shorter" in cause:
        S3Store().write(place, b"garbage")
    with pytest.raises(CheckpointError, match=f"cannot be loaded: {place}{cause}") as caught:
        register(config, "run-1", uri, digest)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_model_is_said_so(s3: str, mlflow_server: str, make_config: MakeConfig) -> None:
    config = make_config(s3)
    saved = save_checkpoint(config, "run-1", seed=0)
    wider = make_config(s3, task={"factory": "convergate.components.task.digits:DigitsTask", "params": {"width": 8}})
    with pytest.raises(CheckpointError, match="does not fit the task's model"):
        register(wider, "run-1", *saved)


class Branching(nn.Module):
    """Depends on its data: torch.export refuses it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight if x.sum() > 0 else x


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Reserved(nn.Module):
    """Has a submodule under a name of torch's own: it is exported, and cannot be loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.code(x)
        return output


def use(monkeypatch: pytest.MonkeyPatch, model: nn.Module, example: Tensor) -> None:
    """Let the config's task give this model."""
    task = DigitsTask()
    monkeypatch.setattr(task, "model", lambda: model)
    monkeypatch.setattr(task, "example", lambda: example)
    monkeypatch.setattr(candidate, "load_task", lambda _: task)
    monkeypatch.setattr(candidate, "load_model_state", lambda *_: model.state_dict())


@pytest.mark.parametrize(
    "case",
    [
        (Branching(), 2, r"task.model\(\) cannot be exported by torch.export: "),
        (Reserved(), 2, r"task.model\(\) cannot be exported by torch.export: .* references nonexistent attribute"),
        (Pair(), 2, "have to be one tensor each"),
        (nn.Identity(), 1, r"task.example\(\) has the shape \[1, 3\] → a batch of 2"),
    ],
    ids=["branching", "reserved-name", "pair", "batch-of-one"],
)
def test_a_model_that_cannot_be_exported_is_the_users_to_mend(
    s3: str,
    mlflow_server: str,
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    case: tuple[nn.Module, int, str],
) -> None:
    model, batch, message = case
    use(monkeypatch, model, torch.zeros(batch, 3))
    with pytest.raises(UserError, match=message) as caught:
        register(make_config(s3), "run-1", f"{s3}/none", "0" * 64)
    assert "\n" not in str(caught.value)
