"""MLflow, bounded in time: the registry, and each run's mirror for people. A tracker's outage changes no verdict."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import requests

from ..errors import OutsideError

if TYPE_CHECKING:
    from mlflow import MlflowClient

START_SECONDS = 90.0
"""A server on a fresh SQLite file migrates first, about 20 s."""
REQUEST_SECONDS = 60
SERIES_POINTS = 500
BATCH_POINTS = 1000
RUN_TAG = "convergate.run_id"


def tracking_uri() -> str:
    """The configured server.

    Raises:
        OutsideError: when none is configured.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise OutsideError("no MLflow server is configured → set MLFLOW_TRACKING_URI")
    return uri


def wait_for_mlflow(timeout_s: float = START_SECONDS) -> str:
    """Wait until the server answers; returns its URI.

    Raises:
        OutsideError: when it does not in time.
    """
    uri = tracking_uri()
    deadline = monotonic() + timeout_s
    while uri.startswith("http"):
        try:
            if requests.get(f"{uri.rstrip('/')}/health", timeout=5).ok:
                break
        except requests.RequestException:
            pass
        if monotonic() > deadline:
            raise OutsideError(f"MLflow at {uri} does not answer within {timeout_s:.0f} s → check MLFLOW_TRACKING_URI")
        sleep(0.2)
    return uri


@contextmanager
def mlflow_client(timeout_s: float = START_SECONDS) -> Iterator["MlflowClient"]:
    """A client of the configured server; what MLflow raises inside the block becomes an OutsideError."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(REQUEST_SECONDS))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    uri = wait_for_mlflow(timeout_s)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        yield MlflowClient(tracking_uri=uri, registry_uri=uri)
    except (MlflowException, requests.RequestException) as error:
        raise OutsideError(f"MLflow at {uri}: {str(error).splitlines()[0]}") from error


def find_or_create_run(client: "MlflowClient", experiment: str, run_id: str) -> str:
    """The MLflow run that mirrors a run, found by its tag."""
    found = client.get_experiment_by_name(experiment)
    experiment_id = found.experiment_id if found else client.create_experiment(experiment)
    runs = client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{run_id}'", max_results=1)
    if runs:
        return str(runs[0].info.run_id)
    return str(client.create_run(experiment_id, tags={RUN_TAG: run_id}, run_name=run_id).info.run_id)


def mirror_run(
    experiment: str,
    run_id: str,
    *,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    series: Mapping[str, Sequence[tuple[int, float]]],
    finished: bool,
) -> None:
    """Show a run in MLflow: its config, what became of it, and its curves, downsampled.

    Raises:
        OutsideError: when MLflow fails.
    """
    from mlflow.entities import Metric, Param, RunTag

    with mlflow_client() as client:
        mlflow_run = find_or_create_run(client, experiment, run_id)
        points = [
            Metric(name, value, 0, step)
            for name, values in series.items()
            for step, value in values[:: max(1, len(values) // SERIES_POINTS)]
        ]
        client.log_batch(
            mlflow_run,
            params=[Param(key, str(value)[:500]) for key, value in params.items()][:100],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        for start in range(0, len(points), BATCH_POINTS):
            client.log_batch(mlflow_run, metrics=points[start : start + BATCH_POINTS])
        client.set_terminated(mlflow_run, "FINISHED" if finished else "FAILED")


def flatten(value: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Nested sections as `section.key` pairs."""
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from flatten(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner
