"""A training as a TrainJob of two nodes, through the SDK and a stand-in of the cluster whose pods are processes."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from convergate.components.config import parse_config
from convergate.components.config.plan import make_plan
from convergate.components.config.preflight import Facts
from convergate.components.errors import ExitCode
from convergate.components.telemetry import read_trace
from convergate.components.training import trainjob
from convergate.components.training.launch import InterruptedRunError
from convergate.components.training.train import run_training
from convergate.components.training.trainjob.pace import Pace
from kubernetes_api import scene
from kubernetes_api.kubelet import Kubelet

CONFIG = """
schema_version: 1
experiment: digits
task: {{factory: "gated_task:Gated", params: {{gate: "{gate}"}}}}
schedule: {{kind: cosine, lr0: 0.1, lr_min: 0.001, total_steps: 24, warmup: {{steps: 4}}}}
training: {{batch_size: 64, eval_every_steps: 12}}
distributed: {{launcher: trainjob, nodes: 2, procs_per_node: 1}}
checkpoint: {{uri: "{root}/checkpoints", every_steps: 100}}
storage: {{uri: "{root}"}}
evaluation: {{metric: accuracy, target: 0.5}}
promotion: {{model: digits}}
"""
TASK = '''
import time
from pathlib import Path
from convergate.components.task.digits import DigitsTask

class Gated(DigitsTask):
    """Waits at its tenth loss while there is a file."""
    def __init__(self, gate):
        super().__init__(width=8)
        self.gate, self.losses = Path(gate), 0
    def loss(self, model, batch):
        self.losses += 1
        if self.losses == 10 and self.gate.exists():
            print("at the gate", flush=True)
            while self.gate.exists():
                time.sleep(0.01)
        return super().loss(model, batch)
'''


@pytest.fixture
def kubelet(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, require_tool: Callable[[str], Path]
) -> Iterator[Kubelet]:
    require_tool("kubectl")
    (tmp_path / "gated_task.py").write_text(TASK)
    monkeypatch.syspath_prepend(tmp_path)
    variables = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    variables["PYTHONPATH"] = str(tmp_path)
    with scene.cluster(tmp_path) as cluster:
        scene.enter(cluster, monkeypatch)
        with Kubelet(cluster, tmp_path, variables) as running:
            yield running


def test_cancelled_it_saves_and_the_next_try_continues_to_the_end(
    kubelet: Kubelet, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainjob.launcher, "Pace", lambda: Pace(poll=0.1, ending=20))
    gate = tmp_path / "gate"
    gate.touch()
    text = CONFIG.format(gate=gate, root=s3)
    config = parse_config(text)
    plan = make_plan(config, "night-1", Facts())
    lines: list[str] = []

    def cancelling(line: str) -> None:
        lines.append(line)
        if line.endswith("at the gate"):
            os.kill(os.getpid(), signal.SIGTERM)
        elif line.startswith("interrupted by SIGTERM"):
            gate.unlink()

    with pytest.raises(InterruptedRunError):
        run_training(config, text, plan, on_line=cancelling)
    assert kubelet.cluster.jobs == [], lines
    assert kubelet.codes == [ExitCode.TERMINATED, ExitCode.TERMINATED], lines
    result = run_training(config, text, plan, on_line=lines.append)
    assert (result.status, result.attempts, result.final_step) == ("completed", 2, 24), lines
    assert result.world_size == 2
    assert [event.kind for event in result.events] == ["resumed"]
    trace: Any = read_trace(result.trace_uri)
    assert (trace["lr"] == trace["lr_planned"]).all()
    assert set(trace["rank"]) == {0, 1}
    assert run_training(config, text, plan, on_line=lines.append) == result
