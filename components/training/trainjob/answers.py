"""What the Kubernetes API answers when it refuses: one line each, with the right or the installation it lacks."""

import json
import re
from http import HTTPStatus
from textwrap import shorten
from typing import Any

from ...errors import ExitCode, OutsideError

MESSAGE_CHARACTERS = 300
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Statuses of a server that is busy or away. A 409 is among them unless the object exists already."""
APPLY = "kubectl apply -k manifests/overlays/…"
INSTALL = {
    "trainer.kubeflow.org": "Kubeflow Trainer is not installed → https://www.kubeflow.org/docs/components/trainer/",
}
OLD_TRAINER = (
    "Kubeflow Trainer is older than 2.2 (it does not know spec.runtimePatches)"
    " → update it: https://www.kubeflow.org/docs/components/trainer/"
)
NEW_FIELDS = ("runtimePatches", "activeDeadlineSeconds")
"""Of a TrainJob's spec: what came with Trainer 2.2."""
_UNKNOWN_FIELD = re.compile(rf'unknown field "spec\.({"|".join(NEW_FIELDS)})"')
_CANNOT = re.compile(
    r'User "(?P<user>[^"]+)" cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)"'
    r'(?: in API group "(?P<group>[^"]*)")?(?: in the namespace "(?P<namespace>[^"]+)")?'
)


class ApiError(OutsideError):
    """The Kubernetes API refused, or is away."""


class MissingError(ApiError):
    """There is no such object."""


class ExistsError(ApiError):
    """An object that was to be created exists already."""


class DeniedError(ApiError):
    """No credentials, or no right to do it."""


class InvalidError(ApiError):
    """The object is not what the schema, or an admission webhook, lets in."""

    exit_code = ExitCode.USAGE


class OutageError(ApiError):
    """The API server was away for longer than is waited. What runs in the cluster goes on."""


SIGN_IN = "a token that the API server accepts, or a serviceAccountName"
_NOT_TAKEN = " → see what the cluster's version and policies allow"
_REFUSED: dict[int, tuple[type[ApiError], str]] = {
    HTTPStatus.NOT_FOUND: (MissingError, ""),
    HTTPStatus.CONFLICT: (ExistsError, ""),
    HTTPStatus.UNAUTHORIZED: (DeniedError, f" (401) → {SIGN_IN}"),
    HTTPStatus.BAD_REQUEST: (InvalidError, _NOT_TAKEN),
    HTTPStatus.UNPROCESSABLE_ENTITY: (InvalidError, _NOT_TAKEN),
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: (InvalidError, _NOT_TAKEN),
}


def reason_of(status: int, body: object) -> tuple[str, str]:
    """The machine-readable reason and the message of an answer; a body that is no Status gives its own text."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body or "")
    try:
        parsed: Any = json.loads(text)
        reason, message = str(parsed.get("reason") or ""), str(parsed.get("message") or "")
    except (ValueError, AttributeError):
        reason, message = "", text
    return reason, shorten(message or f"status {status}", MESSAGE_CHARACTERS, placeholder=" …")


def may_pass(status: int, body: object) -> bool:
    """Whether the same request may be answered otherwise a little later."""
    return status in RETRIED and not (status == HTTPStatus.CONFLICT and reason_of(status, body)[0] == "AlreadyExists")


def refusal(action: str, path: str, status: int, body: object) -> ApiError:
    """The error of an answer that no repetition mends.

    Args:
        action: what was tried, as `create TrainJob digits-train`.
        path: of the request; its group tells what may not be installed.
        status: of the answer.
        body: its text, a Kubernetes `Status` as a rule.
    """
    reason, message = reason_of(status, body)
    if status == HTTPStatus.FORBIDDEN:
        return _forbidden(action, message)
    if status == HTTPStatus.NOT_FOUND and reason != "NotFound":  # no Status: nobody serves this path
        return _not_served(action, path)
    if status == HTTPStatus.BAD_REQUEST and _UNKNOWN_FIELD.search(message):
        return ApiError(OLD_TRAINER)
    kind, fix = _REFUSED.get(status, (ApiError, f" (status {status}) → kubectl get --raw /readyz"))
    return kind(f"cannot {action}: {message}{fix}")


def _not_served(action: str, path: str) -> ApiError:
    group = path.split("/")[2] if path.startswith("/apis/") else "v1"
    return ApiError(INSTALL.get(group) or f"cannot {action}: the cluster does not serve {group} → install it")


def _forbidden(action: str, message: str) -> DeniedError:
    found = _CANNOT.search(message)
    if found is None:  # a quota, or an admission policy
        return DeniedError(f"cannot {action}: forbidden: {message} → see the namespace's quotas and policies")
    resource = ".".join(filter(None, [found["resource"], found["group"]]))
    account = found["user"].rpartition(":")[2]
    where = f"in namespace {found['namespace']}" if found["namespace"] else "in the cluster"
    role = "the Role" if found["namespace"] else "the ClusterRole"
    return DeniedError(
        f"{found['user']} may not {found['verb']} {resource} {where} → {APPLY} applies {role} of {account}"
    )
