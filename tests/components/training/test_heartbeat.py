"""A collective that times out names the ranks it waited for: real processes that sleep, or stand still."""

import json
import os
import queue
import re
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from convergate.components.storage import S3Error, S3Location, S3Store
from convergate.components.telemetry import read_trace
from convergate.components.training import heartbeat
from convergate.components.training import launch as launching
from convergate.components.training.heartbeat import Beat, Heartbeat, describe, lost_rank
from convergate.components.training.job import Job
from convergate.pipelines.servers import free_port

RANK = """
import os, signal, sys, time
from types import SimpleNamespace
from datetime import timedelta
import torch, torch.distributed as dist
from convergate.components.training import heartbeat

rank = int(os.environ["RANK"])
stopped, asleep = (int(argument) for argument in sys.argv[1:])
heartbeat.ANSWER_SECONDS = 5
dist.init_process_group("gloo", timeout=timedelta(seconds=60))
short = dist.new_group(timeout=timedelta(seconds=5))
beats = heartbeat.Heartbeat(rank, 3)
at = beats.follows = SimpleNamespace(step=0, phase="starting")

def sleep_in_the_dataset():
    time.sleep(600)

def update(group):
    at.phase = "loss"
    if group is short and rank == asleep:
        sleep_in_the_dataset()
    at.phase = "update"
    if group is short and rank == stopped:
        time.sleep(2 * heartbeat.INTERVAL_SECONDS)  # Its last beat is heard.
        os.kill(os.getpid(), signal.SIGSTOP)
    dist.all_reduce(torch.ones(3), group=group)

for at.step in range(6):
    try:
        update(short if at.step == 5 else None)
    except Exception as error:
        print(beats.explain(error), flush=True)
        os._exit(0)
"""


def said(folder: Path, stopped: int, asleep: int) -> list[str]:
    """What those of three ranks say that are neither stopped by a signal nor asleep."""
    script = folder / "rank.py"
    script.write_text(RANK)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "3", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(stopped), str(asleep)],
            env={**os.environ, **shared, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(3)
    ]
    try:
        waiting = [process for rank, process in enumerate(processes) if rank not in (stopped, asleep)]
        return [process.communicate(timeout=120)[0] for process in waiting]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_who_sleeps_and_who_stands_still_is_named_with_its_place(tmp_path: Path) -> None:
    (line,) = said(tmp_path, stopped=2, asleep=1)
    place = r"on \S+ at step 5 in {} since \d\d:\d\d:\d\d UTC \(rank.py:\d+ {}\)"
    asleep, stopped = place.format("loss", "sleep_in_the_dataset"), place.format("update", "update")
    assert re.match(f"a collective waits for rank 1 {asleep}; rank 2 {stopped}, silent → check that machine", line)


def test_without_the_store_nobody_waits_for_long_and_its_host_is_named(tmp_path: Path) -> None:
    lines = said(tmp_path, stopped=0, asleep=-1)
    # A rank whose peer has left is told of that by gloo, and blames nobody.
    assert {line for line in lines if line != "None\n"} == {
        "a collective timed out, and rank 0 on 127.0.0.1, which keeps the heartbeats of all, does not answer"
        " → check that machine, and the log of that rank\n"
    }


def beat(rank: int, step: int = 5, phase: heartbeat.Phase = "update", number: int = 7, *, failed: bool = False) -> Beat:
    return Beat(rank, f"node-{rank}", step, phase, "loop.py:1 train", 0.0, failed, number)


def later(beats: list[Beat | None]) -> list[Beat | None]:
    return [None if each is None else beat(each.rank, each.step, each.phase, 9, failed=each.failed) for each in beats]


def ranks_named(line: str) -> list[int]:
    return [int(rank) for rank in re.findall(r"rank (\d+)", line.partition("→")[0])]


@pytest.mark.parametrize(
    ("beats", "named"),
    [
        ([beat(0), beat(1, 4), beat(2)], [1]),
        ([beat(0), beat(1, 5, "loss"), beat(2)], [1]),
        ([beat(0, 8, "loss"), beat(1, 8, "validation"), beat(2, 8, "saving")], [1, 2]),
        ([beat(0, failed=True), beat(1), beat(2, failed=True)], [1]),
        ([beat(0, failed=True), beat(1), beat(2, 5, "loss")], [2]),
        ([beat(0, 4, failed=True), beat(1, 5)], [1]),
        ([beat(0), None, beat(2, 4)], [1, 2]),
        ([None, None], [0, 1]),
    ],
)
def test_of_living_ranks_those_that_no_error_ended_and_that_are_behind(
    beats: list[Beat | None], named: list[int]
) -> None:
    line = describe(beats, later(beats))
    assert line.startswith("a collective waits for ")
    assert ranks_named(line) == named


def test_a_rank_without_a_new_beat_is_silent_unless_an_error_ended_it() -> None:
    beats: list[Beat | None] = [beat(0, failed=True), beat(1), beat(2)]
    line = describe(beats, [beats[0], *later(beats[1:2]), beats[2]])
    assert ranks_named(line) == [2]
    assert line.startswith("a collective waits for rank 2 on node-2 at step 5 in update since 00:00:00 UTC (loop.py:1")
    assert ", silent →" in line


def test_where_nobody_is_behind_all_are_told_and_a_long_list_is_cut() -> None:
    beats: list[Beat | None] = [beat(rank) for rank in range(40)]
    line = describe(beats, later(beats))
    assert line.startswith("nothing moves, and no rank is behind: rank 0 on node-0 at step 5 in update")
    assert ranks_named(line) == [*range(8)]
    assert "; and 32 more → check the network" in line


GLOO = "[unbound_buffer.cc:78] Timed out waiting 5000ms for recv operation to complete"
NCCL = (
    "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=2, OpType=ALLREDUCE, NumelIn=1,"
    " NumelOut=1, Timeout(ms)=600000) ran for 600005 milliseconds before timing out."
)
STORE = "wait timeout after 5000ms, keys: /default_pg/0//cpu//0/rank_1"
LOST = (
    "[pair.cc:553] Connection closed by peer [127.0.0.1]:35200. This is typically caused by a remote worker crashing."
)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dist.TCPStore:
    """The store of a process group on this machine."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(server.port))
    monkeypatch.setattr(heartbeat, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(heartbeat, "INTERVAL_SECONDS", 0.1)
    return server


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(("text", "told"), [(GLOO, True), (NCCL, True), (STORE, True), (LOST, False), ("no", False)])
def test_timeouts_of_gloo_nccl_and_the_store_are_explained_and_other_errors_are_not(text: str, told: bool) -> None:
    line = Heartbeat(1, 2).explain(RuntimeError(text))
    assert line == ("a collective waits for rank 0, which was never heard → " + heartbeat.LOG if told else None)


@pytest.mark.usefixtures("store")
def test_a_phase_that_comes_near_the_timeout_is_told_once_and_taken_back() -> None:
    told: queue.Queue[str] = queue.Queue()
    beats = Heartbeat(0, 1, timedelta(seconds=0.5), told.put)
    assert "rank 0 on" in told.get(timeout=30)
    beats.follows = SimpleNamespace(step=3, phase="loss")
    assert told.get(timeout=30) == ""
    assert "at step 3 in loss since" in told.get(timeout=30)
    beats.close()
    assert told.empty()


def test_a_store_that_is_gone_is_nothing_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.setattr(heartbeat, "ANSWER_SECONDS", 0.5)
    beats = Heartbeat(1, 2)
    beats._thread.join(30)
    assert beats.explain(RuntimeError(GLOO)) is None
    beats.close()


CONFIG = """
schema_version: 1
experiment: stuck
task: {factory: "stuck:Stuck"}
schedule: {lr0: 0.01, total_steps: 8}
training: {batch_size: 32}
distributed: {procs_per_node: 2, timeout_minutes: 0.2}
evaluation: {metric: accuracy, target: 0.9}
promotion: {model: stuck}
"""
STUCK = '''
import os, signal, time
from convergate.components.task.tabular import TabularTask

class Stuck(TabularTask):
    """Rank 1 never comes back from its loss at step 3."""
    calls = 0
    def loss(self, model, batch):
        self.calls += 1
        if os.environ["RANK"] == "1" and self.calls == 4:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # So that the test need not wait for SIGKILL.
            time.sleep(600)
        return super().loss(model, batch)
'''


@pytest.mark.parametrize("aborted", [False, True])
def test_a_run_that_waits_for_a_rank_ends_with_its_name(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aborted: bool
) -> None:
    """By the error of the backend; or without one, where the process is aborted, as NCCL's watchdog does."""
    (tmp_path / "stuck.py").write_text(STUCK)
    monkeypatch.chdir(tmp_path)
    uris = {"checkpoint_uri": f"{s3}/c", "trace_uri": f"{s3}/t", "result_uri": f"{s3}/training.json"}
    lines = []

    def on_line(line: str) -> None:
        lines.append(line)
        if aborted and line.startswith("convergate: rank 0: a collective waits for rank 1"):
            claim = S3Store().read(S3Location.parse(uris["result_uri"] + ".attempts") / "001.json")
            os.kill(json.loads(claim)["pid"], signal.SIGABRT)

    with pytest.raises(launching.LaunchError) as caught:
        launching.launch([Job(run_id="stuck", config_text=CONFIG, seed=1, **uris)], 2, 0, on_line)
    ended = "rank 0 was ended by SIGABRT: " if aborted else "rank 0: "
    place = r"at step 3 in loss since \d\d:\d\d:\d\d UTC \(stuck.py:12 loss\) → check that machine"
    assert re.match(rf"{ended}a collective waits for rank 1 on \S+ {place}", str(caught.value)), lines
    trace = read_trace(uris["trace_uri"])
    assert list(trace[trace["rank"] == 0]["step"]) == ([] if aborted else [0, 1, 2])


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "[/a/b.cc:5] Connection closed by peer [10.0.0.2]:17. This is typically …",
            "Connection closed by peer [10.0.0.2]:17",
        ),
        ("[/a/b.cc:9] Read error [::1]:5: Connection reset by peer", "Read error [::1]:5: Connection reset by peer"),
        ("wait timeout after 60000ms, keys: /default_pg/0", "wait timeout after 60000ms, keys: /default_pg/0"),
        (
            "NCCL error in: a.cpp\nncclRemoteError: A call failed possibly due to a network error",
            "ncclRemoteError: A call",
        ),
    ],
)
def test_a_rank_that_is_gone_is_said_in_one_line(said: str, told: str) -> None:
    line = lost_rank(RuntimeError(said))
    assert line is not None
    assert line.startswith(f"the connection to another rank is lost: {told}")
    assert line.endswith("→ the log of that rank tells why")
    assert "\n" not in line


@pytest.mark.parametrize(
    "error", [S3Error("Connection reset by peer"), RuntimeError("shapes differ"), ConnectionError("Broken pipe")]
)
def test_other_errors_are_no_lost_rank(error: Exception) -> None:
    assert lost_rank(error) is None
