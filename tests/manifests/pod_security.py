"""The restricted Pod Security Standard (https://kubernetes.io/docs/concepts/security/pod-security-standards/)."""

from collections.abc import Iterator, Mapping
from typing import Any

VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
CAPABILITIES = {"NET_BIND_SERVICE"}
PROFILES = {"RuntimeDefault", "Localhost"}


def violations(pod: Mapping[str, Any]) -> list[str]:
    """Why a pod's spec is not `restricted`; nothing where it is."""
    return [*_of_pod(pod), *(f"{name}: {reason}" for name, reason in _of_containers(pod))]


def _of_pod(pod: Mapping[str, Any]) -> Iterator[str]:
    yield from (name for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name))
    for volume in pod.get("volumes", ()):
        kinds = set(volume) - {"name"}
        if not kinds <= VOLUMES:
            yield f"volume {volume['name']} is a {', '.join(kinds - VOLUMES)}"
    security = pod.get("securityContext", {})
    yield from (name for name in ("sysctls", "seLinuxOptions", "windowsOptions") if security.get(name))
    if security.get("runAsUser") == 0:
        yield "runAsUser is 0"


def _of_containers(pod: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    of_pod = pod.get("securityContext", {})
    for container in (*pod.get("initContainers", ()), *pod["containers"], *pod.get("ephemeralContainers", ())):
        name, security = container["name"], container.get("securityContext", {})
        capabilities = security.get("capabilities", {})
        profile = security.get("seccompProfile", of_pod.get("seccompProfile", {}))
        found = {
            "privileged": security.get("privileged", False),
            "allowPrivilegeEscalation is not false": security.get("allowPrivilegeEscalation") is not False,
            "runAsNonRoot is not true": security.get("runAsNonRoot", of_pod.get("runAsNonRoot")) is not True,
            "runAsUser is 0": security.get("runAsUser") == 0,
            "capabilities are not dropped": "ALL" not in capabilities.get("drop", ()),
            "capabilities are added": not set(capabilities.get("add", ())) <= CAPABILITIES,
            "no seccomp profile": profile.get("type") not in PROFILES,
            "procMount": security.get("procMount", "Default") != "Default",
            "a host port": any("hostPort" in port for port in container.get("ports", ())),
        }
        yield from ((name, reason) for reason, is_so in found.items() if is_so)
