"""The canary over two nodes: by a TrainJob, in a stand-in of the cluster whose pods are processes."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from convergate.canary import CanaryReport
from convergate.canary.run import OPEN, accumulation, run_canary
from convergate.components.config import parse_config
from convergate.components.config.plan import make_plan
from convergate.components.errors import OutsideError
from convergate.components.storage import RunStore
from convergate.components.telemetry import read_trace
from convergate.components.training import trainjob
from convergate.components.training.trainjob.pace import Pace
from kubernetes_api import scene
from kubernetes_api.faults import Fault
from kubernetes_api.kubelet import Kubelet

CONFIG = """
schema_version: 1
experiment: digits
task: {{factory: "convergate.components.task.digits:DigitsTask", params: {{width: 4}}}}
optimizer: {{kind: sgd, grad_clip_norm: 1.0}}
schedule: {{kind: cosine, lr0: 0.1, lr_min: 0.001, total_steps: 400, warmup: {{steps: 4}}}}
training: {{batch_size: 32, eval_every_steps: 1000}}
distributed: {{launcher: trainjob, nodes: 4, procs_per_node: 1}}
canary: {{min_steps: 9, nodes: 2, procs_per_node: 1}}
checkpoint: {{uri: "{root}/checkpoints"}}
storage: {{uri: "{root}"}}
evaluation: {{metric: accuracy, target: 0.5}}
promotion: {{model: digits}}
"""


def test_over_two_nodes_it_kills_restores_and_goes_on_where_its_step_was_lost(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, require_tool: Callable[[str], Path]
) -> None:
    require_tool("kubectl")
    pace = Pace(poll=0.1, first_retry=0.01, longest_retry=0.1, outage=1, ending=20)
    monkeypatch.setattr(trainjob.launcher, "Pace", lambda: pace)
    text = CONFIG.format(root=s3)
    config = parse_config(text)
    assert accumulation(config) == 2
    variables = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    lines: list[str] = []
    with scene.cluster(tmp_path) as cluster:
        scene.enter(cluster, monkeypatch)
        plan = make_plan(config, "night-1")
        with Kubelet(cluster, tmp_path, variables) as running:
            cluster.api.faults.append(Fault("GET .*/pods$", 503, times=10**6, passes=1))
            with pytest.raises(OutsideError, match="goes on, and a retried step follows it"):
                run_canary(config, text, plan)
            cluster.api.faults.clear()
            report = run_canary(config, text, plan, on_line=lines.append)
            assert len(cluster.jobs) == 1
    assert "followed on" in lines[0]
    assert report.verdict == "PASS", (report.checks, lines)
    assert running.codes == [0, 0], lines
    drill = next(check for check in report.checks if check.name == "save, kill -9, restore")
    assert drill.figure == "6 of 6 repeated steps equal"
    trace = read_trace(report.trace_uri)
    assert (report.world_size, set(trace["rank"]), set(trace["samples"])) == (2, {0, 1}, {16})
    assert report.projected_seconds == pytest.approx(report.projected_gpu_hours * 3600 / 4)
    assert report.save_seconds > 0
    assert report.gpu_hours > 0
    run = RunStore(s3, "night-1")
    assert run.get("canary", CanaryReport) == report
    assert OPEN not in {location.name for location in run.store.list(run.prefix / "canary")}
