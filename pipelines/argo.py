"""Argo's WorkflowTemplates, made of the compiled KFP pipelines: one DAG, also where there is only Argo.

The order, the gates and the pods are those of KFP's IR; the commands are the steps' own entrypoints. Argo needs no
artifact repository: a document goes to the run's prefix on S3, and its URI with its digest to the step that takes it.
"""

import tempfile
from copy import deepcopy
from pathlib import Path

import yaml

from ..components import access
from ..components.step_command import STORAGE_SCHEME
from .argo_pods import template
from .argo_tasks import Node, Task, dashed, flat_tasks, output_parameter, workflow_parameter
from .compiling import PIPELINES, compile_pipeline
from .placement import Placement

CONFIG_MAP = "config-map"
"""The workflow's parameter that takes the place of KFP's `config`."""
CONFIG_LABEL = "convergate.io/config-map"
KEPT_SECONDS = 7 * 24 * 3600
"""How long a workflow that has ended stays to be looked at, with its pods, unless the placement says it."""
GRACE_SECONDS = 120
"""From SIGTERM to SIGKILL, in which workers save and TrainJobs are deleted; 30 by default."""
_RUN_ID, _RUN = "run_id", output_parameter("open-run", "Output")
"""The run's id: what steps call it, and where it comes from, the task that opened it."""

_HEAD = "# Made by `convergate compile --argo` from the KFP pipeline: change that, and not this.\n"


class _Dumper(yaml.SafeDumper):
    """Texts of many lines as they are."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def compile_argo(folder: Path, placement: Placement | None = None) -> list[Path]:
    """Write a WorkflowTemplate for each pipeline as `<folder>/<name>.yaml`; returns the files.

    Args:
        folder: Made where it is missing.
        placement: As of KFP's pipelines; its launcher has to be the config's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with tempfile.TemporaryDirectory(prefix="convergate-ir-") as compiled:
        for name in PIPELINES:
            ir = compile_pipeline(name, Path(compiled) / f"{name}.yaml", placement)
            files.append(folder / f"{name}.yaml")
            made = workflow_template(*yaml.safe_load_all(ir.read_text()))
            files[-1].write_text(
                _HEAD + yaml.dump(made, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
            )
    return files


def workflow_template(ir: Node, kubernetes: Node) -> Node:
    """The WorkflowTemplate of a compiled pipeline.

    Args:
        ir: KFP's pipeline spec, the first document of a compiled file.
        kubernetes: The second: what it says of the pods.
    """
    tasks = flat_tasks(ir)
    cluster = kubernetes["platforms"]["kubernetes"]
    containers, pods = ir["deploymentSpec"]["executors"], cluster["deploymentSpec"]["executors"]
    templates: dict[str, Node] = {}
    for task in tasks:
        made = template(
            task,
            containers[task.executor]["container"],
            pods[task.executor],
            {name: _passed(name, value) for name, value in _inputs(task).items()},
            {name: _place(name) for name in _taken(task, tasks)},
        )
        assert templates.setdefault(made["name"], made) == made, f"two pods for {task.function}"
    name = ir["pipelineInfo"]["name"]
    (closing,) = (task for task in tasks if task.closes)
    entry = name.removeprefix("convergate-")
    dag = [_dag_task(task, tasks) for task in tasks if not task.closes]
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "WorkflowTemplate",
        "metadata": {
            "name": name,
            "labels": {access.NAME_LABEL: "convergate"},
            "annotations": {"workflows.argoproj.io/description": ir["pipelineInfo"]["description"]},
        },
        "spec": {
            "entrypoint": f"{entry}-dag",
            "onExit": dashed(closing.function),
            "arguments": {"parameters": _workflow_parameters(ir)},
            **_of_every_pod(pods),
            # All three: what a controller has as its default after success or failure would come first.
            "ttlStrategy": dict.fromkeys(
                ("secondsAfterCompletion", "secondsAfterSuccess", "secondsAfterFailure"), _kept_seconds(cluster)
            ),
            "templates": [{"name": f"{entry}-dag", "dag": {"tasks": dag}}, *templates.values()],
        },
    }


def _workflow_parameters(ir: Node) -> list[Node]:
    """What a person fills in: the ConfigMap in the place of the config's text, and the pipeline's other inputs."""
    inputs = ir["root"]["inputDefinitions"]["parameters"].items()
    text = f"The ConfigMap that holds the run config as {access.CONFIG_KEY}."
    return [
        {"name": CONFIG_MAP, "description": text},
        *(
            {"name": dashed(name), "value": told["defaultValue"], "description": told["description"]}
            for name, told in inputs
            if name != "config"
        ),
    ]


def _of_every_pod(executors: Node) -> Node:
    """Identity, security, volumes and how long it stays; the steps' containers hold no token of the cluster."""
    pull = [secret["secretName"] for pod in executors.values() for secret in pod.get("imagePullSecret", [])]
    found: Node = {
        "serviceAccountName": access.WITHOUT_ACCESS,
        "automountServiceAccountToken": False,
        "executor": {"serviceAccountName": access.EXECUTOR},
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": access.USER,
            "runAsGroup": access.USER,
            "fsGroup": access.USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [{"name": "config", "configMap": {"name": workflow_parameter(CONFIG_MAP)}}],
        "workflowMetadata": {
            "labels": {access.NAME_LABEL: "convergate"},
            "labelsFrom": {CONFIG_LABEL: {"expression": f"workflow.parameters['{CONFIG_MAP}']"}},
        },
        # Of a repository that the namespace may have no keys for; the pods stay, with their logs.
        "archiveLogs": False,
        "podSpecPatch": yaml.safe_dump(_pod_patch(), sort_keys=False),
    }
    if pull:
        found["imagePullSecrets"] = [{"name": name} for name in dict.fromkeys(pull)]
    return found


def _kept_seconds(cluster: Node) -> int:
    kept: int = cluster.get("pipelineConfig", {}).get("resourceTtlOnCompletion", KEPT_SECONDS)
    return kept


def _pod_patch() -> Node:
    """The grace, and for Argo's own containers what a quota and the restricted Pod Security Standard ask for."""
    modest: Node = {
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"cpu": "500m", "memory": "512Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    return {
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "initContainers": [{"name": "init", **modest}],
        "containers": [{"name": "wait", **deepcopy(modest)}],
    }


def _dag_task(task: Task, tasks: list[Task]) -> Node:
    arguments = {dashed(name): value for name, value in _inputs(task).items() if _passed(name, value) != value}
    if _taken(task, tasks):
        arguments[dashed(_RUN_ID)] = _RUN
    found: Node = {"name": task.name, "template": dashed(task.function)}
    if task.after:
        found["depends"] = " && ".join(f"{name}.Succeeded" for name in task.after)
    if task.when:
        found["when"] = task.when
    if arguments:
        found["arguments"] = {"parameters": [{"name": name, "value": value} for name, value in arguments.items()]}
    return found


def _inputs(task: Task) -> dict[str, str]:
    """Every input but the config, as Argo's expression where the DAG stands."""
    values = {name: value for name, value in task.values.items() if name != "config"}
    return values | {name: output_parameter(*source) for name, source in task.documents.items()}


def _passed(name: str, value: str) -> str:
    """A value inside the task's template, where other tasks are not in reach: one of the template's inputs."""
    return f"{{{{inputs.parameters.{dashed(name)}}}}}" if "{{tasks." in value else value


def _taken(task: Task, tasks: list[Task]) -> list[str]:
    """The documents of a task that others take."""
    sources = {source for other in tasks for source in other.documents.values()}
    return sorted(output for name, output in sources if name == task.name)


def _place(output: str) -> str:
    """Where a document stands: as `RunStore` names it, so mostly the step itself has stored it there."""
    return f"{STORAGE_SCHEME}runs/{_passed(_RUN_ID, _RUN)}/{output}.json"
