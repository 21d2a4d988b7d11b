"""The Kubernetes API as the launcher and `doctor` use it: JSON in and out, through outages, errors in words."""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from http import HTTPStatus
from pathlib import Path
from random import SystemRandom
from time import monotonic, sleep
from typing import Any, TypeVar

from ...access import NAMESPACE, NAMESPACE_VARIABLE
from .answers import MESSAGE_CHARACTERS, SIGN_IN, OutageError, may_pass, reason_of, refusal
from .pace import Pace

Json = dict[str, Any]
Answer = TypeVar("Answer")

TRAINER = "/apis/trainer.kubeflow.org/v1alpha1"
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_LOG_BYTES = 1024 * 1024


def own_namespace() -> str:
    """The namespace of this pod, else that of kubeconfig's current context, else `NAMESPACE`.

    Raises:
        UserError: when the kubeconfig cannot be read.
    """
    named = os.environ.get(NAMESPACE_VARIABLE)
    if named:
        return named
    # As the client: a kubeconfig that is named goes before the pod's own account.
    if _NAMESPACE_FILE.is_file() and not os.environ.get("KUBECONFIG"):
        return _NAMESPACE_FILE.read_text().strip()
    from .backend import context_namespace

    return context_namespace() or NAMESPACE


class Cluster:
    """One namespace of a cluster.

    A request that meets a busy or absent server is sent again, further apart each time, until it was tried for
    `pace.outage` seconds; so is a create, whose answer may have been lost: it then meets its own object. So is one
    whose token is refused (401) after others were taken: tokens are renewed, and servers forget theirs for a while.

    Args:
        namespace: of what is created and read.
        pace: time limits.
        say: told once when the server is away, and when it is back.

    Raises:
        OutsideError: when no cluster is configured.
    """

    def __init__(self, namespace: str, pace: Pace, say: Callable[[str], None]) -> None:
        from .backend import BoundedBackend

        self.namespace, self.pace, self._say = namespace, pace, say
        self._backend = BoundedBackend(namespace, (pace.connect, pace.read))
        self._client = self._backend.core_api.api_client
        self._known = False
        """Whether an answer told that the credentials are accepted."""

    @property
    def host(self) -> str:
        """The API server's address."""
        return str(self._client.configuration.host)

    def trainjobs(self, name: str = "") -> str:
        """The path of the namespace's TrainJobs, or of one."""
        return f"{TRAINER}/namespaces/{self.namespace}/trainjobs" + (f"/{name}" if name else "")

    def core(self, plural: str, name: str = "") -> str:
        """The path of the namespace's pods, events, ConfigMaps …, or of one."""
        return f"/api/v1/namespaces/{self.namespace}/{plural}" + (f"/{name}" if name else "")

    def get(self, path: str, **query: object) -> Json:
        """An object, or a list of them.

        Raises:
            MissingError: when there is none.
            ApiError: when the server refuses, or is away for too long.
        """
        answer: Json = self._request("GET", path, query, None)
        return answer

    def create(
        self, path: str, body: Mapping[str, Any], sending: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> Json:
        """Create an object; each try of it is sent inside `sending`.

        Raises:
            ExistsError: when there is one of this name.
            ApiError: when the server refuses, knows a field not, or is away for too long.
        """
        # By default a CRD that is too old just drops what it does not know.
        strictly = {"fieldValidation": "Strict"}
        answer: Json = self._request("POST", path, strictly, body, sending=sending)
        return answer

    def delete(self, path: str, uid: str | None = None, *, ended: bool = False) -> None:
        """Delete a TrainJob and what it owns; none there, or another one by now, is fine.

        One that runs goes first, and its pods end after it: while it waits for them, Trainer takes it for one that has
        lost its JobSet, and starts all pods anew. One that has ended goes last: Trainer leaves it alone, and would read
        the end of what it leaves behind as that of the next one of its name.

        Args:
            path: of the TrainJob.
            uid: its uid, where it is known.
            ended: whether it is complete or failed.

        Raises:
            ApiError: when the server refuses, or is away for too long.
        """
        policy = "Foreground" if ended else "Background"
        options: Json = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": policy}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        self._request("DELETE", path, {}, options, fine=(404, 409))

    def log(self, pod: str, container: str, *, patience: float = 0.0, **query: object) -> str:
        """The end of a container's log, each line after its time; bounded, since it never follows.

        The server asks the pod's node, which may be dead: a log is worth `patience` seconds of tries, one by default.
        """
        path, bounds = f"{self.core('pods', pod)}/log", {"container": container, "timestamps": "true"}
        query = {**bounds, "limitBytes": _LOG_BYTES, **query}
        return str(self._request("GET", path, query, None, text=True, patience=patience))

    def runtime_kind(self, name: str) -> str:
        """The kind of a runtime for torch: the namespace's own, else the cluster's (the SDK's rule).

        Raises:
            ApiError: when there is none, or it lacks what Trainer asks of one.
        """
        kind: str = self._repeated(f"get runtime {name}", TRAINER, lambda: self._backend.get_runtime(name).kind.value)
        return kind

    def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, object],
        body: Mapping[str, Any] | None,
        *,
        text: bool = False,
        fine: tuple[int, ...] = (),
        sending: Callable[[], AbstractContextManager[None]] = nullcontext,
        patience: float | None = None,
    ) -> Any:
        accepted = "*/*" if text else "application/json"

        def send() -> Any:
            with sending():
                answer = self._client.call_api(
                    path,
                    method,
                    query_params=list(query.items()),
                    header_params={"Accept": accepted, "Content-Type": "application/json"},
                    body=body,
                    auth_settings=["BearerToken"],
                    response_type="object",
                    _return_http_data_only=True,
                    _preload_content=not text,
                )
            return answer.data.decode(errors="replace") if text else answer

        verb = {"GET": "read", "POST": "create", "DELETE": "delete"}[method]
        name = path.removeprefix(TRAINER).removeprefix("/api/v1").removeprefix(f"/namespaces/{self.namespace}")
        return self._repeated(f"{verb} {name.strip('/')}", path, send, fine, patience)

    def _repeated(
        self,
        action: str,
        path: str,
        send: Callable[[], Answer],
        fine: tuple[int, ...] = (),
        patience: float | None = None,
    ) -> Any:
        """Send until there is an answer that counts, for `patience` seconds; by default as long as for an outage."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        began, tries = monotonic(), 0
        while True:
            try:
                answer = send()
            except (ApiException, HTTPError, OSError, RuntimeError) as raised:
                error = _origin(raised)
                status, body = getattr(error, "status", None) or 0, getattr(error, "body", None)
                if status in fine:
                    self._say_back(tries, began)
                    return {}
                forgotten = status == HTTPStatus.UNAUTHORIZED and self._known
                if not isinstance(error, HTTPError | OSError) and not may_pass(status, body) and not forgotten:
                    self._say_back(tries, began)
                    raise self._final(action, path, error) from raised
                cause = f"{status} {reason_of(status, body)[1]}" if status else type(error).__name__
                self._wait(action, cause, began, tries, _retry_after(error), patience)
                tries += 1
            else:
                self._known = True
                self._say_back(tries, began)
                return answer

    def _say_back(self, tries: int, began: float) -> None:
        if tries:
            self._say(f"the API server answers again after {monotonic() - began:.0f} s")

    def _final(self, action: str, path: str, error: Any) -> Exception:
        """The error of an answer that counts; the SDK's own, that it can't use what it got, is as a refused object."""
        if not hasattr(error, "status"):
            return refusal(action, path, HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        if not error.status:  # TLS: no answer that could be refused
            cause = " ".join(str(error.reason).split())[:MESSAGE_CHARACTERS]
            return OutageError(f"cannot {action}: {self.host}: {cause} → check the certificate authority in KUBECONFIG")
        return refusal(action, path, error.status, error.body)

    def _wait(self, action: str, cause: str, began: float, tries: int, asked: float, patience: float | None) -> None:
        """Wait before the next try, or give up."""
        pause = min(self.pace.longest_retry, max(asked, self.pace.first_retry * 2**tries))
        passed = monotonic() - began
        if patience is not None and passed + pause > patience:
            raise OutageError(f"cannot {action}: {cause}")
        if passed + pause > self.pace.outage:
            raise OutageError(
                f"cannot {action}: {self.host} gave no good answer for {passed:.0f} s ({cause})"
                f" → {SIGN_IN if cause.startswith('401') else 'kubectl get --raw /readyz'}"
            )
        if not tries:
            self._say(f"the API server does not answer well ({cause}): tried again for {self.pace.outage:.0f} s")
        sleep(pause + SystemRandom().uniform(0, pause / 4))


def _origin(error: BaseException) -> BaseException:
    """What the SDK's errors are made of: it wraps what its requests raise, more than once."""
    while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _retry_after(error: BaseException) -> float:
    """How many seconds the server asks for, 0 where it does not say."""
    headers = getattr(error, "headers", None) or {}
    asked = headers.get("Retry-After") or "0"
    return float(asked) if str(asked).isdigit() else 0.0
