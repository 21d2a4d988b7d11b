"""A checkpoint as a self-contained MLflow model: an exported program (PT2), which needs none of the task's code."""

import contextlib
import io
import logging
import warnings
from typing import TYPE_CHECKING

from ..checkpoint import load_model_state
from ..config import RunConfig
from ..errors import UserError
from ..storage import S3Location
from ..task import load_task

if TYPE_CHECKING:
    from mlflow import MlflowClient

VERSION_TAG = "convergate.run_id"


def register_candidate(
    client: "MlflowClient", config: RunConfig, run_id: str, mlflow_run: str, uri: str, digest: str
) -> str:
    """Log and register the model of a checkpoint; returns its version. A retried call finds the version again.

    `mlflow.pytorch.load_model("models:/<model>@challenger")` gives a module that takes batches of any size.

    Raises:
        UserError: when the model cannot be exported by torch.export.
        CheckpointError: when the checkpoint is not what its digest says.
    """
    name = config.promotion.model
    for version in _versions(client, name):
        if version.tags.get(VERSION_TAG) == run_id and version.tags.get("convergate.checkpoint_digest") == digest:
            return str(version.version)
    model_uri = _log_model(config, mlflow_run, uri, digest)
    with _quiet():
        if not _exists(client, name):
            client.create_registered_model(name)
        tags = {
            VERSION_TAG: run_id,
            "convergate.checkpoint": str(S3Location.parse(uri)),
            "convergate.checkpoint_digest": digest,
        }
        created = client.create_model_version(name, source=model_uri, run_id=mlflow_run, tags=tags)
    return str(created.version)


def _log_model(config: RunConfig, mlflow_run: str, uri: str, digest: str) -> str:
    import mlflow
    import torch

    task = load_task(config.task)
    model = task.model()
    model.load_state_dict(load_model_state(uri, digest))
    model.eval()
    example = task.example()
    with torch.inference_mode():
        output = model(example)
    batched = [(-1, *tensor.shape[1:]) for tensor in (example, output)]
    kinds = [tensor.numpy().dtype for tensor in (example, output)]
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    signature = ModelSignature(
        inputs=Schema([TensorSpec(kinds[0], batched[0])]), outputs=Schema([TensorSpec(kinds[1], batched[1])])
    )
    try:
        with _quiet():
            mlflow.set_tracking_uri(client_uri())
            logged = mlflow.pytorch.log_model(
                model,
                name="model",
                signature=signature,
                input_example=example.numpy(),
                serialization_format="pt2",
                pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}"],
                run_id=mlflow_run,
            )
    except (torch.export.ExportError if hasattr(torch.export, "ExportError") else RuntimeError) as error:
        raise UserError(f"the model cannot be exported by torch.export: {str(error).splitlines()[0]}") from error
    return str(logged.model_uri)


def client_uri() -> str:
    """The server that models are logged to."""
    from .registry import tracking_uri

    return tracking_uri()


def _versions(client: "MlflowClient", name: str) -> list[object]:
    return list(client.search_model_versions(f"name = '{name}'", max_results=200))


def _exists(client: "MlflowClient", name: str) -> bool:
    return bool(client.search_registered_models(f"name = '{name}'"))


@contextlib.contextmanager
def _quiet() -> "contextlib.AbstractContextManager[None]":  # type: ignore[misc]
    """MLflow without its links and advice."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
