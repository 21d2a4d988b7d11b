"""The WorkflowTemplates: the same DAG as KFP's, and objects that Argo knows."""

import itertools
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from argo_workflow import Execute, Node, PodFailedError, Workflow
from convergate.components import access
from convergate.components.training.launch import KILL_SECONDS
from convergate.pipelines.argo import compile_argo
from convergate.pipelines.compiling import PIPELINES, compile_pipeline
from convergate.pipelines.placement import Placement, Toleration
from pydantic import BaseModel
from yaml.representer import SafeRepresenter

with pytest.MonkeyPatch.context() as _patch:
    # hera changes how all YAML of its process is written, KFP's too.
    for _class in (yaml.Dumper, SafeRepresenter):
        _patch.setattr(_class, "yaml_representers", dict(_class.yaml_representers))
    from hera.workflows import models

MANIFESTS = Path(__file__).parents[2] / "manifests"
PLACEMENTS = {
    "local": Placement(),
    "trainjob": Placement(
        launcher="trainjob",
        gpus=2,
        node_selector=(("pool", "gpu"),),
        tolerations=(Toleration("nvidia.com/gpu", None, "NoSchedule"),),
        image_pull_secrets=("registry",),
        labels=(("team", "vision"),),
        keep_days=3,
    ),
}


@pytest.fixture(scope="module", params=list(PLACEMENTS))
def placement(request: pytest.FixtureRequest) -> Placement:
    return PLACEMENTS[request.param]


@pytest.fixture(scope="module")
def compiled(placement: Placement, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with KFP's files in `kfp/` and Argo's in `argo/`."""
    folder = tmp_path_factory.mktemp("compiled")
    for name in PIPELINES:
        compile_pipeline(name, folder / "kfp" / f"{name}.yaml", placement)
    compile_argo(folder / "argo", placement)
    return folder


@pytest.fixture(params=PIPELINES)
def both(request: pytest.FixtureRequest, compiled: Path) -> tuple[list[Node], Node]:
    """A pipeline as KFP's two documents, and as Argo's one object."""
    ir = list(yaml.safe_load_all((compiled / "kfp" / f"{request.param}.yaml").read_text()))
    return ir, yaml.safe_load((compiled / "argo" / f"{request.param}.yaml").read_text())


# The same steps, order and gates: both DAGs are run on every combination of verdicts, and with every step failing.


class Kfp:
    """KFP's semantics, enough of them to run the IR on given results."""

    def __init__(self, ir: Node, results: Callable[[str], dict[str, str]]) -> None:
        self.ir, self.results, self.started = ir, results, []

    def run(self) -> str:
        dag = self.ir["root"]["dag"]["tasks"]
        closing = next(name for name, task in dag.items() if "strategy" in task.get("triggerPolicy", {}))
        phase = "Succeeded"
        try:
            self._dag({name: task for name, task in dag.items() if name != closing}, {})
        except PodFailedError:
            phase = "Failed"
        self.started.append(_function(self.ir, dag[closing]))
        return phase

    def _dag(self, tasks: Node, inputs: dict[str, str]) -> None:
        done: dict[str, dict[str, str]] = {}
        waiting = dict(tasks)
        while waiting:
            name = next(
                name for name, task in waiting.items() if not set(task.get("dependentTasks", [])) & set(waiting)
            )
            task = waiting.pop(name)
            given = {
                key: self._value(source, inputs, done)
                for key, source in task.get("inputs", {}).get("parameters", {}).items()
            }
            condition = task.get("triggerPolicy", {}).get("condition")
            if condition and not _cel(condition, given):
                continue
            component = self.ir["components"][task["componentRef"]["name"]]
            if "dag" in component:
                self._dag(component["dag"]["tasks"], given)
            else:
                function = _function(self.ir, task)
                self.started.append(function)
                done[name] = self.results(function)

    @staticmethod
    def _value(source: Node, inputs: dict[str, str], done: dict[str, dict[str, str]]) -> str:
        if "taskOutputParameter" in source:
            output = source["taskOutputParameter"]
            return done[output["producerTask"]][output["outputParameterKey"]]
        return inputs.get(source.get("componentInputParameter", ""), "")


def _cel(condition: str, values: dict[str, str]) -> bool:
    text = re.sub(r"inputs\.parameter_values\['([^']+)'\]", lambda match: repr(values[match[1]]), condition)
    return bool(eval(text.replace("!(", " not (").replace("&&", "and").strip()))  # noqa: S307 - of our own compiler


def _function(ir: Node, task: Node) -> str:
    executor = ir["components"][task["componentRef"]["name"]]["executorLabel"]
    container = ir["deploymentSpec"]["executors"][executor]["container"]
    words = [*container["command"], *container["args"]]
    return str(words[words.index("--function_to_execute") + 1])


GATES = ("validate_config", "validate_data", "canary", "train", "gate")


def _cases() -> Iterator[tuple[dict[str, str], str]]:
    for verdicts in itertools.product(("PASS", "FAIL", "INCONCLUSIVE"), repeat=len(GATES)):
        yield dict(zip(GATES, verdicts, strict=True)), ""
    steps = [step for kind in access.ACCESS.values() for step in kind.steps if step != "close_run"]
    yield from ((dict.fromkeys(GATES, "PASS"), raising) for raising in steps)


def test_both_run_the_same_steps_in_the_same_order_to_the_same_end(both: tuple[list[Node], Node]) -> None:
    (ir, _), template = both
    stops = set()
    for verdicts, raising in _cases():
        results = _results(verdicts, raising)
        kfp = Kfp(ir, results)
        argo = Workflow(template, {"config-map": "c"}, _executing(results))
        assert argo.run() == kfp.run(), (verdicts, raising)
        functions = {task["name"]: task["template"] for task in template["spec"]["templates"][0]["dag"]["tasks"]}
        started = [functions.get(name, name).replace("-", "_") for name in argo.started]
        assert started == kfp.started, (verdicts, raising)
        assert started[-1] == "close_run"
        assert all(started.count(step) == 1 for step in started)
        stops |= {name for name in argo.started if name.startswith("stop")}
    assert stops == {name for name in functions if name.startswith("stop")}, "a red end that nothing reaches"


def _executing(results: Callable[[str], dict[str, str]]) -> Execute:
    return lambda name, _template: results(name.replace("-", "_"))


def _results(verdicts: dict[str, str], raising: str) -> Callable[[str], dict[str, str]]:
    def result(function: str) -> dict[str, str]:
        if function == raising or function.startswith("stop"):
            raise PodFailedError("Error (exit code 1)")
        documents = dict.fromkeys(("plan", "training", "champion", "evaluation", "decision"), "s3://b/d.json")
        return documents | {"Output": "run-1", "verdict": verdicts.get(function, "PASS"), "reason": 'it "broke"'}

    return result


def test_the_pods_are_the_same(both: tuple[list[Node], Node]) -> None:
    (ir, kubernetes), template = both
    templates = {one["name"]: one for one in template["spec"]["templates"] if "container" in one}
    dags = [ir["root"]["dag"], *(part["dag"] for part in ir["components"].values() if "dag" in part)]
    tasks = [
        task
        for dag in dags
        for task in dag["tasks"].values()
        if "executorLabel" in ir["components"][task["componentRef"]["name"]]
    ]
    assert {_function(ir, task).replace("_", "-") for task in tasks} == set(templates)
    for task in tasks:
        executor = ir["components"][task["componentRef"]["name"]]["executorLabel"]
        container = ir["deploymentSpec"]["executors"][executor]["container"]
        pod = kubernetes["platforms"]["kubernetes"]["deploymentSpec"]["executors"][executor]
        argo = templates[_function(ir, task).replace("_", "-")]
        assert argo["container"]["image"] == container["image"]
        limits, asked = argo["container"]["resources"]["limits"], container["resources"]
        assert (limits["cpu"], limits["memory"]) == (asked["resourceCpuLimit"], asked["resourceMemoryLimit"])
        accelerator = asked.get("accelerator", {})
        assert limits.get("nvidia.com/gpu") == accelerator.get("resourceCount")
        assert argo["activeDeadlineSeconds"] == int(pod["activeDeadlineSeconds"])
        policy, retries = task["retryPolicy"], argo.get("retryStrategy")
        assert int(retries["limit"] if retries else 0) == policy.get("maxRetryCount", 0)
        if retries:
            assert retries["backoff"] == {
                "duration": policy["backoffDuration"],
                "factor": f"{policy['backoffFactor']:g}",
            }
        assert argo.get("nodeSelector", {}) == pod.get("nodeSelector", {}).get("labels", {})
        assert argo.get("tolerations", []) == pod.get("tolerations", [])
        assert argo["metadata"] == pod["podMetadata"]
        assert _variables(argo) == {
            **{variable["name"]: variable["value"] for variable in container.get("env", [])},
            **{one["name"]: one["fieldPath"] for one in pod.get("fieldPathAsEnv", []) if "close" not in argo["name"]},
            **{
                pair["envVar"]: (source[f"{kind}Name"], pair[f"{kind}Key"], True)
                for kind in ("configMap", "secret")
                for source in pod.get(f"{kind}AsEnv", [])
                for pair in source["keyToEnv"]
            },
        }


def _variables(template: Node) -> dict[str, Any]:
    def value(one: Node) -> Any:
        if "value" in one:
            return one["value"]
        (source,) = one["valueFrom"].values()
        return source.get("fieldPath") or (source["name"], source["key"], source["optional"])

    return {one["name"]: value(one) for one in template["container"].get("env", [])}


def test_every_step_has_the_identity_of_its_kind_and_no_token(
    both: tuple[list[Node], Node], placement: Placement
) -> None:
    spec = both[1]["spec"]
    assert set(spec["ttlStrategy"].values()) == {(placement.keep_days or 7) * 24 * 3600}
    assert len(spec["ttlStrategy"]) == 3
    assert (spec["automountServiceAccountToken"], spec["executor"]) == (False, {"serviceAccountName": access.EXECUTOR})
    launching = set()
    for one in spec["templates"]:
        if "container" not in one:
            continue
        step = one["name"].replace("-", "_")
        kinds = [kind for kind, its in access.ACCESS.items() if step in its.steps]
        assert one["serviceAccountName"] == (access.service_account(kinds[0]) if kinds else access.WITHOUT_ACCESS)
        launching |= {step} if one.get("automountServiceAccountToken") else set()
        security = one["container"]["securityContext"]
        assert (security["readOnlyRootFilesystem"], security["allowPrivilegeEscalation"]) == (True, False)
        assert (security["runAsNonRoot"], security["capabilities"]) == (True, {"drop": ["ALL"]})
        assert "tmp" in [mount["name"] for mount in one["container"]["volumeMounts"]]
    assert launching == (
        {"canary", "train"} & {t["name"] for t in spec["templates"]} if placement.launcher == "trainjob" else set()
    )


def test_argo_knows_every_field(both: tuple[list[Node], Node]) -> None:
    _strictly(models.WorkflowTemplate, both[1])
    patch = yaml.safe_load(both[1]["spec"]["podSpecPatch"])
    assert patch["terminationGracePeriodSeconds"] > KILL_SECONDS, "workers that save are killed"
    assert [one["name"] for one in (*patch["initContainers"], *patch["containers"])] == ["init", "wait"]


def test_the_manifests_are_what_would_be_compiled(tmp_path: Path, require_tool: Callable[[str], Path]) -> None:
    for file in compile_argo(tmp_path):
        assert (MANIFESTS / "argo" / file.name).read_text() == file.read_text(), (
            "convergate compile --argo -o manifests/argo"
        )
    built = subprocess.run([require_tool("kubectl"), "kustomize", MANIFESTS / "argo"], capture_output=True, check=True)
    objects = {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(built.stdout)}
    assert set(objects) == set(
        itertools.product(("WorkflowTemplate", "CronWorkflow"), ("convergate-retrain", "convergate-canary"))
    )
    configs = {
        one["metadata"]["name"] for one in yaml.safe_load_all((MANIFESTS / "base" / "run-configs.yaml").read_text())
    }
    for (kind, name), one in objects.items():
        _strictly(getattr(models, kind), one)
        if kind == "CronWorkflow":
            spec = one["spec"]
            assert (spec["concurrencyPolicy"], spec["workflowSpec"]["workflowTemplateRef"]) == (
                "Forbid",
                {"name": name},
            )
            given = {
                parameter["name"]: parameter["value"] for parameter in spec["workflowSpec"]["arguments"]["parameters"]
            }
            assert given["config-map"] in configs
            known = objects["WorkflowTemplate", name]["spec"]["arguments"]["parameters"]
            assert set(given) <= {parameter["name"] for parameter in known}


def _strictly(model: type[BaseModel], value: Node) -> None:
    """Valid for Hera's model of Argo's API, and nothing in it that the model does not know."""
    parsed = model.model_validate(value).model_dump(by_alias=True, exclude_none=True, mode="json")
    assert json.loads(json.dumps(parsed)) == _as_parsed(value, parsed)


def _as_parsed(value: Any, parsed: Any) -> Any:
    """The value; quantities and numbers in the words of the model where they say the same."""
    if isinstance(value, dict) and isinstance(parsed, dict):
        return {key: _as_parsed(item, parsed.get(key)) for key, item in value.items()}
    if isinstance(value, list) and isinstance(parsed, list) and len(value) == len(parsed):
        return [_as_parsed(*pair) for pair in zip(value, parsed, strict=True)]
    return parsed if str(value) == str(parsed) else value
