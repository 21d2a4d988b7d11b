"""A checkpoint as a self-contained MLflow model: an exported program (PT2) that needs none of our code.

    model = mlflow.pytorch.load_model("models:/digits@challenger")
    scores = model(batch)

What comes back is exported in evaluation mode and stays in it: `model.eval()` and `model.train()` raise, and
it runs on the CPU. A batch may have any size; the other dimensions are those of `task.example()`.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..checkpoint import CheckpointError, load_model_state
from ..config import RunConfig
from ..errors import UserError
from ..task import load_task
from .registry import RUN_TAG, first_line, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature
    from torch import Tensor, nn

CHECKPOINT_TAG = "convergate.checkpoint"
DIGEST_TAG = "convergate.checkpoint_digest"


def register_candidate(
    client: "MlflowClient",
    config: RunConfig,
    mlflow_run: str,
    uri: str,
    digest: str,
    lineage: Mapping[str, str] | None = None,
) -> str:
    """Log and register the model of a checkpoint; returns its version. Repeated, it finds the version again.

    Args:
        client: Of the server.
        config: The run's config, whose task makes the model.
        mlflow_run: The MLflow run that mirrors the run.
        uri: The checkpoint.
        digest: Its digest.
        lineage: Tags of the version beside those of run and checkpoint.

    Raises:
        UserError: when the task's model cannot be exported by torch.export.
        CheckpointError: when the checkpoint is not what its digest says, or is of another model.
    """
    name = config.promotion.model
    with _quiet():
        found = find_version(client, name, mlflow_run, digest)
        if found is not None:
            return str(found.version)
        logged = _log_model(config, mlflow_run, uri, digest)
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        run_id = client.get_run(mlflow_run).data.tags.get(RUN_TAG, "")
        tags = {RUN_TAG: run_id, CHECKPOINT_TAG: uri, DIGEST_TAG: digest, **(lineage or {})}
        created = client.create_model_version(
            name, source=logged.model_uri, run_id=mlflow_run, tags=tags, model_id=logged.model_id
        )
    return str(created.version)


def find_version(client: "MlflowClient", name: str, mlflow_run: str, digest: str) -> "ModelVersion | None":
    """The version of a registered model that was made of this checkpoint in this run."""
    for version in client.search_model_versions(f"name = '{name}' and run_id = '{mlflow_run}'"):
        if version.tags.get(DIGEST_TAG) == digest:
            return version
    return None


def _log_model(config: RunConfig, mlflow_run: str, uri: str, digest: str) -> Any:
    import mlflow
    import torch

    task = load_task(config.task)
    model = task.model()
    try:
        model.load_state_dict(load_model_state(uri, digest))
    except RuntimeError as error:
        raise CheckpointError(f"{uri} does not fit the task's model: {first_line(error)}") from error
    example = task.example()
    signature = _signature(model.eval(), example)
    mlflow.set_tracking_uri(tracking_uri())
    try:
        logged = mlflow.pytorch.log_model(
            model,
            name="model",
            signature=signature,
            input_example=example.numpy(),
            serialization_format="pt2",
            pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}"],
            run_id=mlflow_run,
        )
        # torch.export saves what it cannot load: a submodule named `code`, which hides one of torch's own.
        mlflow.pytorch.load_model(logged.model_uri)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"task.model() cannot be exported by torch.export: {first_line(error)}") from error
    return logged


def _signature(model: "nn.Module", example: "Tensor") -> "ModelSignature":
    """Tensors in and out; the batch dimension, -1 here, is dynamic in the exported program."""
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    with torch.inference_mode():
        output = model(example) if isinstance(example, torch.Tensor) else None
    if not isinstance(output, torch.Tensor):
        raise UserError("task.example() and the model's output have to be one tensor each, to be registered")
    if example.ndim == 0 or len(example) < 2:  # noqa: PLR2004 - torch.export fixes a dimension of one
        raise UserError(f"task.example() has the shape {list(example.shape)} → a batch of 2, [2, …]")
    inputs, outputs = (Schema([TensorSpec(t.numpy().dtype, (-1, *t.shape[1:]))]) for t in (example, output))
    return ModelSignature(inputs=inputs, outputs=outputs)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """MLflow without its links and advice."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
