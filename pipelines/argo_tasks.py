"""The steps of a compiled pipeline as one flat list, in Argo's words: after which each runs, when, and on what.

KFP nests its branches, and passes values into them by name; Argo's DAG is flat, and a task names the one that made a
value. In KFP's IR each If is a group with a condition, and each step of it that waits for no other step of it gets
that condition here.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from typing import Any

Node = dict[str, Any]

RUN_STATUS = "{{workflow.status}} {{workflow.failures}}"
"""How a workflow ended, for its exit handler; only the failures tell that a person stopped it."""
_JOB_ID = "{{$.pipeline_job_uuid}}"
_CONDITION_INPUT = re.compile(r"inputs\.parameter_values\['(?P<name>[^']+)'\]")


@dataclass(frozen=True, slots=True)
class Task:
    """A step of the pipeline at its place in the DAG."""

    name: str
    component: Node
    """Its interface in the IR."""
    executor: str
    """The name of its container in the IR."""
    function: str
    after: tuple[str, ...]
    """Tasks that have to succeed first."""
    when: str
    """Argo's condition; empty: whenever those before it have succeeded."""
    values: Mapping[str, str]
    """Text inputs, as Argo's expressions; of the config none, it is mounted."""
    documents: Mapping[str, tuple[str, str]]
    """Inputs that are documents: (the task, its output)."""
    retry: Node
    closes: bool = False
    """Whether it runs at the end, whatever happened."""


@dataclass(frozen=True, slots=True)
class _Scope:
    """What a group of tasks has from outside."""

    values: Mapping[str, str]
    documents: Mapping[str, tuple[str, str]]
    after: tuple[str, ...] = ()
    when: str = ""


def flat_tasks(ir: Node) -> list[Task]:
    """The tasks of a pipeline, each behind those that it waits for; the exit handler last."""
    inputs = ir["root"].get("inputDefinitions", {}).get("parameters", {})
    scope = _Scope({name: workflow_parameter(name) for name in inputs}, {})
    walked = {task.name: task for task in _walk(ir, ir["root"]["dag"], scope)}
    before = {name: task.after for name, task in walked.items()}
    found = [replace(task, after=_nearest(task.after, before)) for task in walked.values()]
    named = {task.name: task for task in map(_named, found)}
    assert len(named) == len(found), sorted(task.name for task in found)
    order = TopologicalSorter({name: task.after for name, task in named.items()}).static_order()
    return sorted((named[name] for name in order), key=lambda task: task.closes)


def workflow_parameter(name: str) -> str:
    """Argo's expression for an input of the pipeline."""
    return f"{{{{workflow.parameters.{dashed(name)}}}}}"


def output_parameter(task: str, output: str) -> str:
    """Argo's expression for what another task returned."""
    return f"{{{{tasks.{task}.outputs.parameters.{output}}}}}"


def dashed(name: str) -> str:
    """As Kubernetes and Argo write names."""
    return name.replace("_", "-")


def _walk(ir: Node, dag: Node, scope: _Scope) -> Iterator[Task]:
    for name, task in dag["tasks"].items():
        component = ir["components"][task["componentRef"]["name"]]
        inner = _inside(task, scope, dag, ir)
        if "dag" in component:
            yield from _walk(ir, component["dag"], inner)
            continue
        assert "condition" not in task.get("triggerPolicy", {}), name
        yield Task(
            name=name,
            component=component,
            executor=component["executorLabel"],
            function=_function(ir, component),
            after=inner.after,
            when=inner.when,
            values=inner.values,
            documents=inner.documents,
            retry=task["retryPolicy"],
            closes=task.get("triggerPolicy", {}).get("strategy") == "ALL_UPSTREAM_TASKS_COMPLETED",
        )


def _inside(task: Node, scope: _Scope, dag: Node, ir: Node) -> _Scope:
    """What a task, or a group of them, has from outside."""
    inputs = task.get("inputs", {})
    values = {name: _value(source, scope) for name, source in inputs.get("parameters", {}).items()}
    documents = {name: _document(source, scope) for name, source in inputs.get("artifacts", {}).items()}
    # A group that closes the pipeline waits for another group, all others for steps.
    waits = [name for name in task.get("dependentTasks", []) if not _is_group(name, dag, ir)]
    after, when = (tuple(sorted(waits)), "") if waits else (scope.after, scope.when)
    condition = task.get("triggerPolicy", {}).get("condition", "")
    if condition:
        when = _CONDITION_INPUT.sub(lambda match: f"'{values[match['name']]}'", condition)
        when = f"({scope.when}) && ({when})" if scope.when else when
    return _Scope(values, documents, after, when)


def _is_group(name: str, dag: Node, ir: Node) -> bool:
    return "dag" in ir["components"][dag["tasks"][name]["componentRef"]["name"]]


def _value(source: Node, scope: _Scope) -> str:
    """A text input as Argo's expression."""
    if "componentInputParameter" in source:
        return scope.values[source["componentInputParameter"]]
    if "taskOutputParameter" in source:
        output = source["taskOutputParameter"]
        return output_parameter(output["producerTask"], output["outputParameterKey"])
    if "taskFinalStatus" in source:
        return RUN_STATUS
    constant: str = source["runtimeValue"]["constant"]
    return "{{workflow.uid}}" if constant == _JOB_ID else constant


def _document(source: Node, scope: _Scope) -> tuple[str, str]:
    """The task and the output that a document comes from."""
    if "componentInputArtifact" in source:
        return scope.documents[source["componentInputArtifact"]]
    output = source["taskOutputArtifact"]
    return output["producerTask"], output["outputArtifactKey"]


def _function(ir: Node, component: Node) -> str:
    """The Python function of a component: KFP's executor is told its name."""
    container = ir["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
    words = [*container["command"], *container["args"]]
    name: str = words[words.index("--function_to_execute") + 1]
    return name


def _nearest(after: tuple[str, ...], before: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Without those that another of them waits for anyway."""

    def all_before(name: str) -> set[str]:
        return set(before[name]).union(*map(all_before, before[name]))

    return tuple(name for name in after if not any(name in all_before(other) for other in after))


def _named(task: Task) -> Task:
    """A red end by what it follows, `stop-canary` for KFP's `stop-3`; it returns nothing, so nothing names it."""
    if not task.function.startswith("stop"):
        return task
    return replace(task, name="-".join([dashed(task.function), *task.after]))
