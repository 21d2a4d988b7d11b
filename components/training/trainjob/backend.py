"""The kubeflow SDK's Kubernetes backend, with a bound on the time of each of its requests. Imports the SDK: late only.

The SDK finds the cluster (in a pod, or by kubeconfig), holds the client, and looks the runtime up. `TrainerClient` is
a face over the same backend, and passes on nothing of what is needed here.
"""

import os
from typing import Any

from kubeflow.common.types import KubernetesBackendConfig
from kubeflow.trainer.backends.kubernetes.backend import KubernetesBackend
from kubernetes.client.rest import RESTClientObject
from kubernetes.config import ConfigException

from ...errors import OutsideError


class _BoundedRest(RESTClientObject):  # type: ignore[misc]
    """Sends requests that end in time; unbounded ones are the default of the client, and so of the SDK."""

    def __init__(self, configuration: Any, timeouts: tuple[float, float]) -> None:
        super().__init__(configuration)
        self._timeouts = timeouts

    def request(self, *arguments: Any, _request_timeout: Any = None, **options: Any) -> Any:
        return super().request(*arguments, _request_timeout=_request_timeout or self._timeouts, **options)


class BoundedBackend(KubernetesBackend):
    """The SDK's backend on a client whose every request is bounded, and sent once: `api` repeats it."""

    def __init__(self, namespace: str | None, timeouts: tuple[float, float]) -> None:
        self._timeouts = timeouts
        try:
            # The client reads the variable itself, but once, when it is imported.
            super().__init__(KubernetesBackendConfig(namespace=namespace, config_file=os.environ.get("KUBECONFIG")))
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
