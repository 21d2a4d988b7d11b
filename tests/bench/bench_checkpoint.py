"""Checkpoints beside their peers: stall, throughput, memory, processor time, and what training feels of them.

    python tests/bench/bench_checkpoint.py [--quick]

Peers: `torch.save` + boto3, boto3's CRT transfer of bytes that lie ready, DCP + s3torchconnector. All save the same
state in turns, to a sink outside their process (`sink.py`: a client's ceiling) and to rclone (a real server). Every
measurement is a fresh process. Prints a table, keeps it as `.bench/checkpoint.json`; a target that is missed is told,
and is no failure. `--quick`: a small state and few rounds, to see that all of it works.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import psutil
from comparisons import Comparison, report
from convergate.pipelines.servers import free_port, running, s3_server
from figures import ROOT

HERE = Path(__file__).parent
MIB = 2**20
SLACK_BYTES = 128 * MIB
PEERS = ("s3torchconnector", "boto3 CRT", "torch.save")
RIVAL = PEERS[0]
RIVAL_ON_RCLONE = PEERS[2]
"""rclone names its answer to a new multipart upload otherwise than S3 does, and the other two take it for none."""
Rounds = list[dict[str, dict[str, float]]]
Found = dict[str, Any]


class Plan(NamedTuple):
    """How much is measured."""

    rounds: dict[int, int]
    """By the size of the state, in MiB."""
    main_mib: int
    """The size that memory, the real server and the training are measured with."""
    memory_of: tuple[str, ...]
    few_rounds: int
    """Where a round takes long: on rclone, and of a training."""
    num_checkpoints: tuple[int, ...]
    """In the bucket where the newest is looked for."""


FULL = Plan({64: 7, 512: 5, 2048: 3}, 512, ("ours", RIVAL), 3, (100, 10_000))
QUICK = Plan({4: 1, 8: 1}, 8, ("ours",), 1, (10, 100))


def measure(name: str, *arguments: object) -> Any:
    """One measurement in a process of its own, beside the servers that run below this one."""
    servers = " ".join(str(process.pid) for process in psutil.Process().children(recursive=True))
    done = subprocess.run(
        [sys.executable, str(HERE / "checkpoint_measures.py"), name, *map(str, arguments)],
        env={**os.environ, "SERVER_PIDS": servers},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"{name} {arguments}: {done.stderr}")
    return json.loads(done.stdout)


@contextmanager
def server(home: Path, *, real: bool) -> Iterator[None]:
    """The environment leads to a fresh sink in here, or to rclone."""
    before = dict(os.environ)
    port = free_port()
    try:
        if real:
            with s3_server(home) as variables:
                os.environ.update(variables)
                yield
        else:
            with running([sys.executable, str(HERE / "sink.py"), str(port)], home / "sink.log", {}, wait_for=port):
                keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
                os.environ.update({"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", **keys})
                yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def speeds(rounds: Rounds, name: str, num_bytes: int) -> list[float]:
    """GB/s in each round."""
    return [num_bytes / one[name]["seconds"] / 1e9 for one in rounds]


def ratios(rounds: Rounds, over: tuple[str, str], under: tuple[str, str]) -> list[float]:
    """What `over` took in units of what `under` took, round by round."""
    return [one[over[0]][over[1]] / one[under[0]][under[1]] for one in rounds]


def stall_comparisons(mib: int, found: Found) -> list[Comparison]:
    """How long training stands still, from the second save on; and in the first."""
    rounds = found["saves"]
    copies = {"warm copy": [one["copy"]["seconds"] * 1e3 for one in rounds]}
    stalls = [one["ours"]["stall"] * 1e3 for one in rounds]
    against = ratios(rounds, ("ours", "stall"), ("copy", "seconds"))
    return [
        Comparison.of(f"stall, {mib} MiB", "ms", stalls, peers=copies, ratios=against, at_most=1.2),
        Comparison.of(f"stall of the first save, {mib} MiB", "ms", [found["first_stall"] * 1e3]),
    ]


def speed_comparisons(mib: int, found: Found, rival: str = RIVAL, where: str = "") -> list[Comparison]:
    """Our throughput beside the peers', and as a share of the rival's; s3torchconnector's is what has to be reached."""
    num_bytes, made = found["num_bytes"], []
    targets = {"saves": 0.9, "restores": 1.0} if rival == RIVAL else dict.fromkeys(("saves", "restores"))
    for kind, at_least in targets.items():
        rounds = found[kind]
        mine = speeds(rounds, "ours", num_bytes)
        peers = {peer: speeds(rounds, peer, num_bytes) for peer in PEERS if peer in rounds[0]}
        against = ratios(rounds, (rival, "seconds"), ("ours", "seconds"))
        title = f"{kind}{where}, {mib} MiB"
        made.append(Comparison.of(title, "GB/s", mine, peers=peers, ratios=against, at_least=at_least))
    return made


def cost_comparisons(mib: int, found: Found) -> list[Comparison]:
    """Processor seconds per GB, of the clients and of the server beside ours; and what checksums add to the time."""
    gigabytes, made = found["num_bytes"] / 1e9, []
    for kind in ("saves", "restores"):
        rounds = found[kind]
        client = {name: [one[name]["client"] / gigabytes for one in rounds] for name in rounds[0] if name != "copy"}
        mine, without = client.pop("ours"), client.pop("unchecked")
        against = ratios(rounds, ("ours", "client"), (RIVAL, "client"))
        server = [one["ours"]["server"] / gigabytes for one in rounds]
        seconds = {name: [one[name]["seconds"] / gigabytes for one in rounds] for name in ("ours", "unchecked")}
        added = ratios(rounds, ("ours", "seconds"), ("unchecked", "seconds"))
        made += [
            Comparison.of(f"{kind}: processor time, {mib} MiB", "s/GB", mine, peers=client, ratios=against),
            Comparison.of(f"{kind}: processor time without checksums", "s/GB", without),
            Comparison.of(f"{kind}: processor time of the server", "s/GB", server),
            Comparison.of(
                f"{kind} with checksums and without, {mib} MiB",
                "s/GB",
                seconds["ours"],
                peers={"without": seconds["unchecked"]},
                ratios=added,
                at_most=1.05,
            ),
        ]
    return made


def growth_comparisons(by_size: dict[int, Found]) -> list[Comparison]:
    """Seconds per GB of the largest state beside those of the smaller ones."""
    made = []
    for kind in ("saves", "restores"):
        per_gb = {
            f"{mib} MiB": [1 / speed for speed in speeds(found[kind], "ours", found["num_bytes"])]
            for mib, found in by_size.items()
        }
        (_, largest), (_, before) = per_gb.popitem(), list(per_gb.items())[-1]
        against = [median(largest) / median(before)]
        title = f"{kind}: seconds per GB at {max(by_size)} MiB"
        made.append(Comparison.of(title, "s/GB", largest, peers=per_gb, ratios=against, at_most=1.2))
    return made


def memory_comparison(action: str, mib: int, names: Sequence[str]) -> Comparison:
    """The most memory beyond the imports'; the state, and one copy of it, belong to it."""
    found = {name: measure("memory", action, mib * MIB, name) for name in names}
    above = {name: [one["above"] / MIB] for name, one in found.items()}
    most = (2 * found["ours"]["num_bytes"] + SLACK_BYTES) / MIB
    title = f"memory above the imports', {action}, {mib} MiB"
    return Comparison.of(title, "MiB", above.pop("ours"), peers=above, at_most=most)


def training_comparison(found: Found) -> Comparison:
    """A training's steps beside a throttled upload, and without any; what they are beside one at full speed."""
    rounds = found["rounds"]
    steps = {name: [one[name]["step"] * 1e3 for one in rounds] for name in ("no upload", "full speed", "throttled")}
    return Comparison.of(
        "a training's step beside a throttled upload",
        "ms",
        steps.pop("throttled"),
        peers=steps,
        ratios=ratios(rounds, ("throttled", "step"), ("no upload", "step")),
        at_most=1.1,
    )


def newest_comparison(number: int, found: list[dict[str, float]]) -> Comparison:
    """How long the newest of many checkpoints is looked for."""
    seconds = {name: [one[name] for one in found] for name in found[0]}
    mine = seconds.pop(str(number))
    few = {f"of {name}": samples for name, samples in seconds.items()}
    return Comparison.of(f"the newest of {number:,} found, on rclone", "s", mine, peers=few, at_most=1.0)


def against_the_sink(plan: Plan, home: Path) -> list[Comparison]:
    """A client's ceiling: the server does next to nothing."""
    by_size = {}
    for mib, rounds in plan.rounds.items():
        # All of them at the main size alone: at the largest they would take minutes.
        others = ("unchecked", *PEERS) if mib == plan.main_mib else (RIVAL,)
        with server(home, real=False):
            by_size[mib] = measure("speed", mib * MIB, rounds, "ours", *others)
    mib = plan.main_mib
    with server(home, real=False):
        memory = [memory_comparison(action, mib, plan.memory_of) for action in ("save", "restore")]
        training = measure("training", mib * MIB, plan.few_rounds)
    return [
        *(each for mib, found in by_size.items() for each in stall_comparisons(mib, found)),
        *(each for mib, found in by_size.items() for each in speed_comparisons(mib, found)),
        *growth_comparisons(by_size),
        *cost_comparisons(mib, by_size[mib]),
        *memory,
        training_comparison(training),
    ]


def against_rclone(plan: Plan, home: Path) -> list[Comparison]:
    """A real server, on this machine's disk."""
    # The smallest: rclone takes the MD5 of a whole object anew for what is asked of it a second later.
    mib, rounds = min(plan.rounds), plan.few_rounds
    with server(home, real=True):
        found = measure("speed", mib * MIB, rounds, "ours", RIVAL_ON_RCLONE)
        newest = measure("newest", home / "s3", rounds, *plan.num_checkpoints)
    return [
        *speed_comparisons(mib, found, RIVAL_ON_RCLONE, " on rclone"),
        newest_comparison(plan.num_checkpoints[-1], newest),
    ]


def main() -> int:
    """Measure, show, keep."""
    parser = argparse.ArgumentParser(description="Checkpoints beside their peers.")
    parser.add_argument("--quick", action="store_true", help="a small state and few rounds")
    parser.add_argument("--keep", type=Path, default=ROOT / ".bench" / "checkpoint.json", help="where the JSON goes")
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory(prefix="convergate-bench-") as folder:
        comparisons = [*against_the_sink(plan, Path(folder)), *against_rclone(plan, Path(folder))]
    report(comparisons, options.keep)
    return 0


if __name__ == "__main__":
    sys.exit(main())
