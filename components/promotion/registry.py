"""MLflow, bounded in time: the client, and each run's mirror for people. Its outage changes no verdict."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from math import ceil
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import urlopen

from ..errors import OutsideError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

WAIT_SECONDS = 10.0
"""How long a server that does not answer is waited for."""
WAIT_VARIABLE = "CONVERGATE_MLFLOW_WAIT_SECONDS"
"""Set where the server was just started: on a fresh SQLite file it migrates first, for 20 s and more."""
_REQUEST_LIMITS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
SERIES_POINTS = 500
_BATCH_METRICS, _BATCH_PARAMS = 1000, 100
"""What one `log_batch` takes."""
_VALUE_LENGTH = 5000
RUN_TAG = "convergate.run_id"
_SERVER_ERROR = 500


def tracking_uri() -> str:
    """The configured server.

    Raises:
        OutsideError: when none is configured.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise OutsideError("no MLflow server is configured → set MLFLOW_TRACKING_URI")
    return uri


def wait_for_mlflow(timeout_s: float | None = None) -> str:
    """Wait until the server answers, for `WAIT_SECONDS` unless told otherwise; returns its URI.

    Raises:
        OutsideError: when it does not in time.
    """
    uri = tracking_uri()
    if timeout_s is None:
        timeout_s = float(os.environ.get(WAIT_VARIABLE) or WAIT_SECONDS)
    deadline = monotonic() + timeout_s
    while uri.startswith("http") and not _answers(uri):
        if monotonic() > deadline:
            raise OutsideError(
                f"MLflow at {uri} does not answer within {timeout_s:.0f} s"
                " → check MLFLOW_TRACKING_URI, or the embedded server's logs/mlflow.log"
            )
        sleep(0.2)
    return uri


def _answers(uri: str) -> bool:
    """Whether a server is there: one that refuses us is; a gateway without its server, or no HTTP at all, is not."""
    try:
        with urlopen(f"{uri.rstrip('/')}/health", timeout=5):  # noqa: S310 - the scheme is http or https
            return True
    except HTTPError as error:
        return error.code < _SERVER_ERROR
    except (OSError, HTTPException):
        return False


@contextmanager
def mlflow_client(timeout_s: float | None = None) -> Iterator["MlflowClient"]:
    """A client of the configured server, whose requests are bounded unless the environment bounds them.

    Raises:
        OutsideError: when the server is not there, and for whatever MLflow raises inside the block.
    """
    for name, value in _REQUEST_LIMITS.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    uri = wait_for_mlflow(timeout_s)
    import requests
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        yield MlflowClient(tracking_uri=uri, registry_uri=uri)
    except (MlflowException, requests.RequestException) as error:
        raise OutsideError(f"MLflow at {uri}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """An error's first line, or its name where it has no text."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def find_or_create_run(client: "MlflowClient", experiment: str, run_id: str) -> str:
    """The MLflow run that mirrors a run, found by its tag."""
    found = client.get_experiment_by_name(experiment)
    experiment_id = found.experiment_id if found else client.create_experiment(experiment)
    runs = client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{run_id}'", max_results=1)
    if runs:
        return str(runs[0].info.run_id)
    return str(client.create_run(experiment_id, tags={RUN_TAG: run_id}, run_name=run_id).info.run_id)


def initial_tags(uri: str, digest: str) -> dict[str, str]:
    """Which weights a training began with, as tags of its run and of its model; none where they were random."""
    return {"convergate.init_uri": uri, "convergate.init_digest": digest} if uri else {}


def mirror_run(
    experiment: str,
    run_id: str,
    *,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    series: Mapping[str, Sequence[tuple[int, float]]],
    finished: bool,
) -> None:
    """Show a run in MLflow: config, end, and curves, downsampled. Harmless when repeated.

    Raises:
        OutsideError: when MLflow fails.
    """
    from mlflow.entities import Param, RunTag

    with mlflow_client() as client:
        mlflow_run = find_or_create_run(client, experiment, run_id)
        client.log_batch(mlflow_run, tags=[RunTag(key, value[:_VALUE_LENGTH]) for key, value in tags.items()])
        all_params = [Param(key, str(value)[:_VALUE_LENGTH]) for key, value in params.items()]
        for start in range(0, len(all_params), _BATCH_PARAMS):
            client.log_batch(mlflow_run, params=all_params[start : start + _BATCH_PARAMS])
        metrics = [metric for name, points in series.items() for metric in _metrics(name, points)]
        for start in range(0, len(metrics), _BATCH_METRICS):
            client.log_batch(mlflow_run, metrics=metrics[start : start + _BATCH_METRICS])
        client.set_terminated(mlflow_run, "FINISHED" if finished else "FAILED")


def _metrics(name: str, points: Sequence[tuple[int, float]]) -> "list[Metric]":
    from mlflow.entities import Metric

    # The step stands for the time too: a point that is sent again is the same point, and not a second one.
    return [Metric(name, value, step, step) for step, value in downsample(points)]


def downsample(points: Sequence[tuple[int, float]], most: int = SERIES_POINTS) -> list[tuple[int, float]]:
    """At most `most` (≥ 2) evenly spaced points, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    stride = ceil((len(points) - 1) / (most - 1))
    return [*points[: len(points) - 1 : stride], points[-1]]


def flatten(value: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Nested sections as `section.key` pairs."""
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from flatten(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner
