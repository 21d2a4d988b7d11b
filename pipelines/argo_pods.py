"""The pod of a task under Argo: what KFP's IR says of its container, in Argo's words, and the step's own command."""

from collections.abc import Mapping, Sequence

from ..components import access
from ..components.access import CONFIG_FOLDER, CONFIG_KEY
from ..components.step_command import OUTPUTS
from .argo_tasks import Node, Task, dashed

_KNOWN = {
    "activeDeadlineSeconds", "configMapAsEnv", "emptyDirMounts", "fieldPathAsEnv", "imagePullPolicy", "imagePullSecret",
    "nodeSelector", "podMetadata", "secretAsEnv", "securityContext", "tolerations",
}  # fmt: skip
"""What of the IR's Kubernetes part has a place here."""


def template(task: Task, container: Node, pod: Node, inputs: Mapping[str, str], places: Mapping[str, str]) -> Node:
    """Argo's template of a task.

    Args:
        task: The task.
        container: Its container in the IR.
        pod: What the IR's second document says of its pod.
        inputs: Text for each option: of what comes from other tasks, of the template's own inputs.
        places: Where each output goes that another task takes.
    """
    assert set(pod) <= _KNOWN, f"{task.name}: no word for {sorted(set(pod) - _KNOWN)}"
    kind = access.kind_of(task.function) if "config" in task.values else None
    # KFP's close run also ends TrainJobs that a killed step left; under Argo the step has time for it, and the rights.
    launches = kind is not None and access.ACCESS[kind].launches and "fieldPathAsEnv" in pod
    mounts = pod.get("emptyDirMounts", [])
    returned = [*task.component.get("outputDefinitions", {}).get("parameters", {}), *places]
    found = {
        "name": dashed(task.function),
        "metadata": pod.get("podMetadata", {}),
        "serviceAccountName": access.service_account(kind) if kind else access.WITHOUT_ACCESS,
        "automountServiceAccountToken": True if launches else None,
        "inputs": {"parameters": [{"name": name} for name in _own_inputs([*inputs.values(), *places.values()])]},
        "outputs": {"parameters": [{"name": n, "valueFrom": {"path": f"{OUTPUTS}/{n}"}} for n in returned]},
        "activeDeadlineSeconds": int(pod["activeDeadlineSeconds"]),
        **_retries(task.retry),
        "nodeSelector": pod.get("nodeSelector", {}).get("labels", {}),
        "tolerations": pod.get("tolerations", []),
        "volumes": [{"name": mount["volumeName"], "emptyDir": _empty_dir(mount)} for mount in mounts],
        "container": {
            "image": container["image"],
            "imagePullPolicy": pod.get("imagePullPolicy"),
            "command": ["python", "-m", _package(task.function), task.function],
            "args": _arguments(task, inputs, places),
            "env": _environment(container, pod, pod.get("fieldPathAsEnv", []) if launches else []),
            "resources": _resources(container["resources"]),
            "securityContext": _security(pod.get("securityContext", {})),
            "volumeMounts": [
                *(
                    [{"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True}]
                    if "config" in task.values
                    else []
                ),
                *({"name": mount["volumeName"], "mountPath": mount["mountPath"]} for mount in mounts),
            ],
        },
    }
    return _without_nothing(found)


def _own_inputs(texts: Sequence[str]) -> list[str]:
    """The names of the template's own inputs that the texts mention."""
    marks = [part.partition("}}")[0] for text in texts for part in text.split("{{inputs.parameters.")[1:]]
    return list(dict.fromkeys(marks))


def _arguments(task: Task, inputs: Mapping[str, str], places: Mapping[str, str]) -> list[str]:
    config = [f"--config=@{CONFIG_FOLDER}/{CONFIG_KEY}"] if "config" in task.values else []
    options = [f"--{dashed(name)}={text}" for name, text in {**inputs, **places}.items()]
    return [*config, *options]


def _retries(policy: Node) -> Node:
    """KFP's policy without its longest time: Argo would count that from the first attempt's start."""
    if not policy.get("maxRetryCount"):
        return {}
    backoff = {"duration": policy["backoffDuration"], "factor": f"{policy['backoffFactor']:g}"}
    # Also what the node or the controller did to the pod, not its own failure alone.
    return {"retryStrategy": {"limit": str(policy["maxRetryCount"]), "retryPolicy": "Always", "backoff": backoff}}


def _environment(container: Node, pod: Node, of_the_pod: list[Node]) -> list[Node]:
    found = [{"name": variable["name"], "value": variable["value"]} for variable in container.get("env", [])]
    found += [{"name": one["name"], "valueFrom": {"fieldRef": {"fieldPath": one["fieldPath"]}}} for one in of_the_pod]
    for kind, key, reference in (
        ("configMap", "configMapKey", "configMapKeyRef"),
        ("secret", "secretKey", "secretKeyRef"),
    ):
        for source in pod.get(f"{kind}AsEnv", []):
            found += [
                {
                    "name": pair["envVar"],
                    "valueFrom": {
                        reference: {
                            "name": source[f"{kind}Name"],
                            "key": pair[key],
                            "optional": source.get("optional", False),
                        }
                    },
                }
                for pair in source["keyToEnv"]
            ]
    return found


def _resources(asked: Node) -> Node:
    requests = {"cpu": asked["resourceCpuRequest"], "memory": asked["resourceMemoryRequest"]}
    limits = {"cpu": asked["resourceCpuLimit"], "memory": asked["resourceMemoryLimit"]}
    accelerator = asked.get("accelerator")
    if accelerator:
        limits[accelerator["resourceType"]] = accelerator["resourceCount"]
    return {"requests": requests, "limits": limits}


def _empty_dir(mount: Node) -> Node:
    found = {"medium": mount.get("medium"), "sizeLimit": mount.get("sizeLimit")}
    return {name: value for name, value in found.items() if value}


def _security(who: Node) -> Node:
    """The restricted Pod Security Standard, a read-only root, and the IR's user; the IR writes long numbers as text."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        **{name: value if isinstance(value, bool) else int(value) for name, value in who.items()},
    }


def _without_nothing(found: Node) -> Node:
    """Without empty lists and mappings; an emptyDir keeps its own."""
    kept = {}
    for key, value in found.items():
        inner = _without_nothing(value) if isinstance(value, dict) and key != "emptyDir" else value
        if inner not in (None, [], {}) and inner != {"parameters": []}:
            kept[key] = inner
    return kept


def _package(function: str) -> str:
    """The package whose `__main__` runs the step."""
    from .compiling import step_faces

    return str(step_faces()[function].python_func.__module__).rpartition(".")[0]
