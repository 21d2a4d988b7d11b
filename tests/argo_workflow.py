"""Argo's documented semantics, enough of them to run our WorkflowTemplates without a controller.

DAG tasks by `depends` and `when` (enhanced depends logic: Succeeded, Failed, Skipped, Omitted), fail fast, retries by
`limit` without waiting, substitution of `{{…}}` in the JSON of a template, and the exit handler behind everything.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Node = dict[str, Any]
UID = "0b5c8d3e-7c1f-4a60-9d0e-2f1b6a7c8d90"
_MARK = re.compile(r"\{\{([\w.-]+)\}\}")


class PodFailedError(Exception):
    """The step's container ended with another code than 0; its text is Argo's message of the node."""


Execute = Callable[[str, Node], dict[str, str]]
"""Runs a template with everything substituted; its output parameters, or PodFailedError."""


@dataclass
class Workflow:
    """One workflow from a template, submitted with parameters."""

    template: Node
    parameters: dict[str, str]
    execute: Execute
    phases: dict[str, str] = field(default_factory=dict)
    """Task: Succeeded, Failed, Skipped or Omitted."""
    started: list[str] = field(default_factory=list)
    """Tasks whose pods were made, retries not counted."""
    stopped_before: str = ""
    """The task before whose start a person says `argo stop`."""
    stopped_in_retry_of: str = ""
    """The task that fails, and waits for its next attempt while a person says `argo stop`."""

    def run(self) -> str:
        """Run it with its exit handler; returns the workflow's phase."""
        spec = self.template["spec"]
        scope = {"workflow.uid": UID, "workflow.name": "w"}
        for parameter in spec["arguments"]["parameters"]:
            scope[f"workflow.parameters.{parameter['name']}"] = self.parameters.get(
                parameter["name"], parameter.get("value")
            )
        templates = {template["name"]: template for template in spec["templates"]}
        failures = self._run_dag(templates[spec["entrypoint"]]["dag"], templates, scope)
        phase = "Failed" if failures else "Succeeded"
        # As the controller writes it: JSON, quoted once more.
        ended = {"workflow.status": phase, "workflow.failures": json.dumps(json.dumps(failures))}
        self._pod(spec["onExit"], spec["onExit"], templates[spec["onExit"]], scope | ended)
        return phase

    def _run_dag(self, dag: Node, templates: dict[str, Node], scope: dict[str, str]) -> list[Node]:
        failures: list[Node] = []
        tasks = {task["name"]: task for task in dag["tasks"]}
        waiting = dict(tasks)
        while waiting:
            ready = [name for name, task in waiting.items() if not set(_depended(task)) & set(waiting)]
            assert ready, f"a circle: {sorted(waiting)}"
            task = waiting.pop(ready[0])
            name = task["name"]
            if failures:
                continue  # fail fast: nothing new is started
            if name == self.stopped_before:
                return [{"displayName": name, "message": "workflow shutdown with strategy:  Stop", "phase": "Failed"}]
            if not self._depends(task):
                self.phases[name] = "Omitted"
            elif not _truth(_substituted(task.get("when", "'a' == 'a'"), _seen(scope, _before(name, tasks)))):
                self.phases[name] = "Skipped"
            else:
                failures += self._run_task(task, templates[task["template"]], scope, _before(name, tasks))
        return failures

    def _run_task(self, task: Node, template: Node, scope: dict[str, str], before: set[str]) -> list[Node]:
        given = _substituted(task.get("arguments", {}).get("parameters", []), _seen(scope, before))
        inputs = {f"inputs.parameters.{one['name']}": one["value"] for one in given}
        declared = {f"inputs.parameters.{one['name']}" for one in template.get("inputs", {}).get("parameters", [])}
        assert set(inputs) == declared, task["name"]
        try:
            outputs = self._pod(task["name"], task["template"], template, _seen(scope, set()) | inputs)
        except PodFailedError as error:
            self.phases[task["name"]] = "Failed"
            return list(self._told(task["name"], template, str(error)))
        self.phases[task["name"]] = "Succeeded"
        scope |= {f"tasks.{task['name']}.outputs.parameters.{name}": value for name, value in outputs.items()}
        return []

    def _told(self, task: str, template: Node, message: str) -> Iterator[Node]:
        """The nodes of a step that failed, as the controller lists them: each attempt, and the step that was tried."""
        attempts = _attempts(template)
        if attempts > 1:
            stopped = task == self.stopped_in_retry_of
            for attempt in range(1 if stopped else attempts):
                yield {"displayName": f"{task}({attempt})", "message": message, "phase": "Failed"}
            message = "Stopped with strategy 'Stop'" if stopped else "No more retries left"
        yield {"displayName": task, "message": message, "phase": "Failed"}

    def _pod(self, task: str, name: str, template: Node, scope: dict[str, str]) -> dict[str, str]:
        self.started.append(task)
        made = _substituted(template, scope)
        attempts = _attempts(template)
        for attempt in range(attempts):
            try:
                return self.execute(name, made)
            except PodFailedError:
                if attempt == attempts - 1 or task == self.stopped_in_retry_of:
                    raise
        raise AssertionError("unreachable")

    def _depends(self, task: Node) -> bool:
        text = task.get("depends", "")
        words = {
            f"{name}.{phase}": self.phases.get(name) == phase for name, phase in re.findall(r"([\w-]+)\.(\w+)", text)
        }
        for word, value in words.items():
            text = text.replace(word, str(value))
        return not text or _truth(text)


def _attempts(template: Node) -> int:
    return 1 + int(template.get("retryStrategy", {}).get("limit", 0))


def _depended(task: Node) -> list[str]:
    return [name for name, _ in re.findall(r"([\w-]+)\.(\w+)", task.get("depends", ""))]


def _before(name: str, tasks: dict[str, Node]) -> set[str]:
    """All that a task waits for, and they wait for."""
    nearest = _depended(tasks[name])
    return set(nearest).union(*(_before(other, tasks) for other in nearest))


def _seen(scope: dict[str, str], tasks: set[str]) -> dict[str, str]:
    """What may be referred to: the workflow's own variables, and the outputs of these tasks."""
    return {k: v for k, v in scope.items() if not k.startswith("tasks.") or k.split(".")[1] in tasks}


def _substituted(part: Any, scope: dict[str, str]) -> Any:
    def value(match: re.Match[str]) -> str:
        return json.dumps(scope[match[1]])[1:-1]

    return json.loads(_MARK.sub(value, json.dumps(part)))


def _truth(expression: str) -> bool:
    """govaluate's, of the operators that we use."""
    words = re.sub(r"'[^']*'|True|False|&&|\|\||==|!=?|[()\s]", "", expression)
    assert not words, f"{expression!r} has {words!r}"
    python = re.sub(r"!(?!=)", " not ", expression).replace("&&", " and ").replace("||", " or ")
    return bool(eval(python.strip()))  # noqa: S307 - literals and operators alone, checked above
