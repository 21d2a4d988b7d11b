"""The kubeflow SDK's Kubernetes backend, with a bound on the time of each of its requests. Imports the SDK: late only.

The SDK finds the cluster (in a pod, or by kubeconfig), holds the client, and looks the runtime up. `TrainerClient` is
a face over the same backend, and passes on nothing of what is needed here.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kubeflow.common.types import KubernetesBackendConfig
from kubeflow.trainer.backends.kubernetes.backend import KubernetesBackend
from kubernetes.client.rest import RESTClientObject
from kubernetes.config import ConfigException, list_kube_config_contexts
from yaml import YAMLError

from ...errors import OutsideError, UserError


class _BoundedRest(RESTClientObject):  # type: ignore[misc]
    """Sends requests that end in time; unbounded ones are the default of the client, and so of the SDK."""

    def __init__(self, configuration: Any, timeouts: tuple[float, float]) -> None:
        super().__init__(configuration)
        self._timeouts = timeouts

    def request(self, *arguments: Any, _request_timeout: Any = None, **options: Any) -> Any:
        return super().request(*arguments, _request_timeout=_request_timeout or self._timeouts, **options)


def context_namespace() -> str | None:
    """The namespace of kubeconfig's current context; None where it names none, or there is no kubeconfig.

    Raises:
        UserError: when it cannot be read.
    """
    try:
        with _legible_kubeconfig():
            current: dict[str, Any] = list_kube_config_contexts(_kubeconfig())[1]
            return current["context"].get("namespace") or None
    except ConfigException:
        return None


def _kubeconfig() -> str | None:
    """The client reads the variable itself, but once, when it is imported."""
    return os.environ.get("KUBECONFIG") or None


@contextmanager
def _legible_kubeconfig() -> Iterator[None]:
    """The client passes on what the file's bytes, YAML and types raise, and has a word for missing keys alone."""
    try:
        yield
    except (OSError, YAMLError, ValueError, TypeError, AttributeError, KeyError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not YAML of a kubeconfig"
        name = _kubeconfig() or "~/.kube/config"
        raise UserError(f"KUBECONFIG {name}: {cause or error} → a file that `kubectl config view` shows") from error


class BoundedBackend(KubernetesBackend):
    """The SDK's backend on a client whose every request is bounded, and sent once: `api` repeats it."""

    def __init__(self, namespace: str | None, timeouts: tuple[float, float]) -> None:
        self._timeouts = timeouts
        try:
            with _legible_kubeconfig():
                super().__init__(KubernetesBackendConfig(namespace=namespace, config_file=_kubeconfig()))
        except ConfigException as error:
            raise OutsideError(
                f"no cluster is configured: {str(error).splitlines()[0].rstrip('.')} → run in a pod, or set KUBECONFIG"
            ) from error

    def verify_backend(self) -> None:
        """Bound the client; the SDK calls this before its first request.

        Its own version of it reads a ConfigMap of Trainer's namespace, which our accounts have no business with.
        """
        client = self.core_api.api_client
        client.configuration.retries = False
        client.rest_client = _BoundedRest(client.configuration, self._timeouts)
        self.custom_api.api_client = client
