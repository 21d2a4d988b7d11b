"""A short training over two nodes of one process each, and what is compared of its runs."""

import hashlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from convergate.components.checkpoint.reading import read_manifest
from convergate.components.storage import S3Location, S3Store
from convergate.components.telemetry import read_trace
from convergate.components.training.job import Job, jobs_to_argument
from convergate.components.training.result import TrainingResult

STEPS, EVERY = 24, 8
TASK = '''
import time
from convergate.components.task.digits import DigitsTask

class Slow(DigitsTask):
    """Time to be killed."""
    def loss(self, model, batch):
        time.sleep(0.1)
        return super().loss(model, batch)
'''


def config_text(root: str, timeout_minutes: float = 1.0, **training: Any) -> str:
    return yaml.safe_dump(
        {
            "schema_version": 1,
            "experiment": "digits",
            "task": {"factory": "slow_task:Slow", "params": {"width": 8}},
            "optimizer": {"kind": "sgd", "grad_clip_norm": 1.0},
            "schedule": {"lr0": 0.1, "lr_min": 0.001, "total_steps": STEPS, "warmup": {"steps": 4}},
            "training": {"batch_size": 64, "eval_every_steps": EVERY, **training},
            "distributed": {"launcher": "trainjob", "nodes": 2, "timeout_minutes": timeout_minutes},
            "checkpoint": {"uri": f"{root}/checkpoints"},
            "evaluation": {"metric": "accuracy", "target": 0.9},
            "promotion": {"model": "digits"},
        }
    )


def make_job(root: str, text: str, run_id: str) -> Job:
    return Job(
        run_id=run_id,
        config_text=text,
        seed=5,
        checkpoint_uri=f"{root}/checkpoints",
        trace_uri=f"{root}/{run_id}/trace",
        result_uri=f"{root}/{run_id}/training.json",
        checkpoint_every=EVERY,
    )


def node_arguments(
    text: str, job: Job, config: str, nodes: int, rank: int, rendezvous: str, procs: int = 1
) -> list[str]:
    """Of the entrypoint of node `rank`."""
    return [
        *("--config", config, "--config-digest", hashlib.sha256(text.encode()).hexdigest()),
        *("--jobs", jobs_to_argument([job]), "--nodes", str(nodes), "--procs-per-node", str(procs)),
        *("--rendezvous", rendezvous, "--node-rank", str(rank), "--grace", "20"),
    ]


@dataclass
class Outcome:
    """What two runs have in common that are the same training."""

    weights: list[str]
    """The checksums of everything that was saved at the end: model, optimizer, random state."""
    rates: list[tuple[int, int, float, float]]
    """Of every step and rank: the rate applied, and the loss under it."""
    on_plan: bool


def result_of(job: Job) -> TrainingResult:
    return TrainingResult.from_json(S3Store().read(S3Location.parse(job.result_uri)))


def outcome(job: Job) -> Outcome:
    result, trace = result_of(job), read_trace(job.trace_uri)
    assert result.status == "completed", result.reason
    rates = trace[["rank", "step", "lr", "loss"]].itertuples(index=False, name=None)
    weights = [stored.crc64nvme for stored in read_manifest(result.checkpoint_uri)[0].objects]
    return Outcome(weights, list(rates), bool((trace["lr"] == trace["lr_planned"]).all()))


@dataclass
class Node:
    """A node as a process group of this machine."""

    arguments: list[str]
    folder: Path
    name: str
    lines: list[str] = field(default_factory=list)
    process: "subprocess.Popen[str]" = field(init=False)

    def start(self) -> "Node":
        self.lines = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "convergate.components.training.node", *self.arguments],
            cwd=self.folder,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")},
                "OMP_NUM_THREADS": "1",
                "CONVERGATE_TERMINATION_LOG": str(self.folder / f"{self.name}.log"),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )
        return self

    def wait_for(self, text: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith(text):
                return
        raise AssertionError(f"{self.name} ended before {text!r}:\n{''.join(self.lines)}")

    def kill(self) -> None:
        """SIGKILL, as of a machine that is lost: what runs below ends with it."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self, timeout: float = 120) -> int:
        """Its exit code."""
        rest, _ = self.process.communicate(timeout=timeout)
        self.lines.append(rest)
        return self.process.returncode

    @property
    def told(self) -> str:
        """What it left where Kubernetes shows it."""
        return (self.folder / f"{self.name}.log").read_text()
