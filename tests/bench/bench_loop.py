"""What our training loop costs over a bare one, beside Accelerate's and Lightning's, and under DDP.

    python tests/bench/bench_loop.py

All loops make the same updates in the same run, in turns, on one thread. Prints a table, keeps it as
`.bench/loop.json`, and exits 1 when a target is missed.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time

import torch
import torch.distributed as dist
from convergate.components.storage import S3Location, S3Store
from convergate.components.telemetry import StepRecord, TraceWriter
from convergate.pipelines.servers import embedded_servers
from figures import Figure, report
from loops import AccelerateLoop, BareLoop, Block, LightningLoop, Loop, OurLoop, Setting, in_turns

ROOT_URI = "s3://bench"
ROUNDS = 40
STEPS = 300
"""Of a block."""
UNMEASURED = 20
BATCH_SIZE = 16
SHIPPED_TRACES, SHIPPED_STEPS = 5, 10_000
MAX_OVERHEAD_US = 20.0
DDP_ROUNDS = 20
DDP_STEPS = {512: 12, 16: 80}
"""Steps of a block, by the batch size that makes them about 50 ms and 5 ms long."""
MAX_DDP_PERCENT = 3.0


def figure(name: str, values: Sequence[float], unit: str, most: float | None = None) -> Figure:
    """The median of values beside the most that it may be."""
    middle = statistics.median(values)
    low, _, high = statistics.quantiles(values, n=4)
    target = "shown" if most is None else f"≤ {most:.3g}"
    return Figure(name, middle, unit, target, most is None or middle <= most, (low, high))


def alone(clip_norm: float, peers: Sequence[Callable[[Setting], Loop]]) -> list[dict[str, Block]]:
    """Rounds of a bare loop, of ours and of others on the smallest network, in this process."""
    setting = Setting("TimedTabular", BATCH_SIZE, (ROUNDS + 1) * STEPS, clip_norm)
    ours = OurLoop(setting, f"{ROOT_URI}/clip-{clip_norm}")
    loops: dict[str, Loop] = {"bare": BareLoop(setting), "ours": ours}
    loops |= {type(peer).__name__: peer for peer in (make(setting) for make in peers)}
    rounds = list(in_turns(loops, ROUNDS, STEPS, UNMEASURED))
    ours.session.trace.close()
    return rounds


def over_bare(rounds: list[dict[str, Block]], name: str) -> list[float]:
    """What a step of a loop takes longer than the bare loop's of the same round, in µs."""
    return [(blocks[name].quick - blocks["bare"].quick) * 1e6 for blocks in rounds]


def step_figures() -> list[Figure]:
    """Our step over the bare loop's, and less over it than the peers'."""
    rounds = alone(1.0, [AccelerateLoop, LightningLoop])
    every_one_clipped = alone(1e-3, [])
    same = all(block.losses == blocks["bare"].losses for blocks in rounds for block in blocks.values())
    ours, *peers = (over_bare(rounds, name) for name in ("ours", "AccelerateLoop", "LightningLoop"))
    most = min(MAX_OVERHEAD_US, *map(statistics.median, peers))
    return [
        Figure("losses of all loops are the same numbers", float(same), "", "1", same),
        figure("bare loop, a step", [blocks["bare"].quick * 1e6 for blocks in rounds], "µs"),
        figure("ours over it, trace and guard on", ours, "µs", most),
        figure("the same where every gradient is clipped", over_bare(every_one_clipped, "ours"), "µs"),
        figure("Accelerate over it", peers[0], "µs"),
        figure("Lightning over it, barebones", peers[1], "µs"),
    ]


def shipping() -> Figure:
    """Processor time of a step's record: appended, and written to S3 in the trace's own thread."""
    seconds = []
    for number in range(SHIPPED_TRACES):
        trace, started = TraceWriter(f"{ROOT_URI}/shipping", 0, number), process_time()
        for step in range(SHIPPED_STEPS):
            trace.append(StepRecord(step, 0.1, 0.1, 1 / (step + 1), 1 / (step + 2), 0.05, BATCH_SIZE))
        trace.close()
        seconds.append((process_time() - started) / SHIPPED_STEPS)
    return figure("trace to S3 beside it, a step's processor time", [each * 1e6 for each in seconds], "µs")


def under_ddp(batch_size: int, steps: int) -> list[Figure]:
    """Our loop and a bare DDP loop in two processes, block beside block."""
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "rounds.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        program = str(Path(__file__).with_name("ddp_loops.py"))
        done = subprocess.run(
            [*command, program, *map(str, (batch_size, steps, DDP_ROUNDS)), str(kept)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(done.stderr)
        rounds = json.loads(kept.read_text())
    bare = figure(f"bare DDP loop, 2 processes, batch {batch_size}", [each["bare"] * 1e3 for each in rounds], "ms")
    most = MAX_DDP_PERCENT if batch_size == max(DDP_STEPS) else None
    return [bare, figure("ours over it", [(each["ours"] / each["bare"] - 1) * 100 for each in rounds], "%", most)]


def main() -> int:
    """Measure, show, keep; returns the exit code."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory(prefix="convergate-bench-") as home, embedded_servers(Path(home), mlflow=False):
        S3Store().ensure_bucket(S3Location.parse(ROOT_URI))
        with Path(home, "log").open("w") as log, contextlib.redirect_stdout(log):
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
            figures = [*step_figures(), shipping()]
            dist.destroy_process_group()
        for batch_size, steps in DDP_STEPS.items():
            figures += under_ddp(batch_size, steps)
    return report(figures, "loop")


if __name__ == "__main__":
    sys.exit(main())
