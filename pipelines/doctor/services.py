"""S3 and MLflow as the cluster's settings name them: seen from here, or the command that looks from a pod of it."""

import json
import os
import shlex
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from ...components.access import (
    CONFIG_MAP,
    KIND_LABEL,
    MLFLOW_SECRET,
    MLFLOW_SETTINGS,
    NAME_LABEL,
    S3_SETTINGS,
    USER,
    pod_labels,
    s3_secret,
    service_account,
)
from .machine import examine_mlflow
from .row import Row, examined
from .storage import examine_storage

_CONNECT_SECONDS = 3.0
_ENDPOINT, _TRACKING = "AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI"
_OTHER_ENDPOINTS = ("S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
"""Of this machine's own S3; they would win."""
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE")
_POD = "convergate-doctor"
_S3 = "S3: conditional writes"


def examine_services(settings: Mapping[str, str] | None, checkpoints: str, namespace: str, image: str) -> list[Row]:
    """Rows of S3 and MLflow; what cannot be reached from here gets the command that asks from inside.

    Args:
        settings: what ConfigMap `convergate` holds; None where it could not be read.
        checkpoints: `checkpoint.uri` of the config: the one place that one kind's keys may list, write and delete.
        namespace: of the runs.
        image: an image of ours that the cluster has.
    """
    command = from_inside(checkpoints, namespace, image)
    if settings is None:
        figure = f"not known: it stands in ConfigMap {CONFIG_MAP}, which could not be read"
        return [Row.unknown(name, figure, command) for name in (_S3, "MLflow")]
    region = settings.get("AWS_REGION") or "us-east-1"
    endpoint = settings.get(_ENDPOINT) or f"https://s3.{region}.amazonaws.com"
    with _as_in_the_cluster(settings):
        if not any(os.environ.get(name) for name in _KEYS):
            figure = f"not known: {without_user(endpoint)}, and no keys are set here ({_KEYS[0]})"
            rows = [Row.unknown(_S3, figure, command)]
        elif why := _unreachable(endpoint):
            rows = [Row.unknown(_S3, f"not known: {why}", command)]
        else:
            rows = examine_storage(checkpoints)
        return [*rows, _mlflow(settings.get(_TRACKING), command)]


def _mlflow(uri: str | None, command: str) -> Row:
    if not uri:
        figure = f"ConfigMap {CONFIG_MAP} names none: promotion needs one"
        return Row.unknown("MLflow", figure, f"{_TRACKING} in ConfigMap {CONFIG_MAP}")
    if uri.startswith("http") and (why := _unreachable(uri)):
        return Row.unknown("MLflow", f"not known: {why}", command)
    return examined("MLflow", examine_mlflow)


def _unreachable(url: str) -> str:
    """Why nothing takes a connection there, from here; empty where something does."""
    try:
        parts = urlsplit(url)
        port = parts.port or (80 if parts.scheme == "http" else 443)
        socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_SECONDS).close()
    except (OSError, ValueError):
        return f"{without_user(url)} cannot be reached from here"
    return ""


def without_user(url: str) -> str:
    """An address to show: a user and a password in it are left out."""
    scheme, separator, rest = url.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


@contextmanager
def _as_in_the_cluster(settings: Mapping[str, str]) -> Iterator[None]:
    """The variables that the steps get, and no others of their kind; the caller's own keys stay."""
    names = (*S3_SETTINGS, *MLFLOW_SETTINGS, *_OTHER_ENDPOINTS)
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ.update({name: settings[name] for name in names if settings.get(name)})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def from_inside(checkpoints: str, namespace: str, image: str) -> str:
    """The command that runs `convergate doctor` in a pod with the steps' settings, and with the keys of training."""
    secrets = (s3_secret("train"), MLFLOW_SECRET)
    container: dict[str, Any] = {
        "name": _POD,
        "image": image,
        "command": ["convergate", "doctor", "--root", checkpoints],
        "envFrom": [
            {"configMapRef": {"name": CONFIG_MAP, "optional": True}},
            *({"secretRef": {"name": name, "optional": True}} for name in secrets),
        ],
        "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"cpu": "1", "memory": "2Gi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "workingDir": "/tmp",  # noqa: S108 - of the pod
    }
    spec = {
        "serviceAccountName": service_account("train"),
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
    }
    # The egress policies let a pod of this kind reach both. After a minute kubectl would delete it: images are large.
    labels = pod_labels("ledger")
    options = f"--labels={NAME_LABEL}={labels[NAME_LABEL]},{KIND_LABEL}={labels[KIND_LABEL]}"
    overrides = shlex.quote(json.dumps({"apiVersion": "v1", "spec": spec}, separators=(",", ":")))
    return (
        f"kubectl run {_POD} -n {namespace} --rm --attach --restart=Never --pod-running-timeout=10m --image={image}"
        f" {options} --overrides={overrides}"
    )
