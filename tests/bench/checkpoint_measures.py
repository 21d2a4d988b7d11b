"""What each of the processes of `bench_checkpoint.py` runs: one measurement, printed as JSON.

    python tests/bench/checkpoint_measures.py MEASUREMENT ARGUMENT...

S3 is what the environment points to; SERVER_PIDS are its processes, whose processor time is counted apart.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from time import perf_counter, process_time, sleep
from typing import Any

import psutil
import torch
from checkpoint_clients import CLIENTS, Client, Ours, State, size_of, transformer_state
from convergate.components.checkpoint.reading import read_marker
from convergate.components.checkpoint.refs import CheckpointRef
from convergate.components.checkpoint.store import CheckpointStore
from convergate.components.storage import S3Location, S3Store
from convergate.components.storage.checksums import crc64nvme
from convergate.components.storage.streams import Pace
from convergate.components.training.throttle import Throttle
from sink import DISCARDED

KEPT = "kept"
WARM_UP_BYTES = 2**20
IDLE_STEPS = 40
STEPS_UNTIL_NEXT = 800
"""Between two saves, as the throttle is told: it lets an upload take half of that time at most."""
LISTING_SECONDS = 1.1
"""rclone keeps a folder's listing for a second: each look meets a fresh one."""
Sample = dict[str, float]
Rounds = list[dict[str, Sample]]


def speed(num_bytes: str, rounds: str, *names: str) -> dict[str, Any]:
    """Saves by every client in turns with a warm copy, then restores."""
    state = transformer_state(int(num_bytes))
    for bucket in (DISCARDED, KEPT):
        S3Store().ensure_bucket(S3Location(bucket))
    first_stall, saves = _saves(state, int(rounds), names)
    return {
        "num_bytes": size_of(state),
        "first_stall": first_stall,
        "saves": saves,
        "restores": _restores(state, int(rounds), names),
    }


def _saves(state: State, rounds: int, names: Sequence[str]) -> tuple[float, Rounds]:
    """How long the first save stalls, and rounds of saves."""
    clients = {name: CLIENTS[name](f"s3://{DISCARDED}/{name}") for name in names}
    ours = clients["ours"]
    assert isinstance(ours, Ours)
    ours.save(state)
    first_stall = ours.stall_seconds

    def saved(client: Client) -> Sample:
        sample = _timed(partial(client.save, state))
        return {**sample, "stall": client.stall_seconds} if isinstance(client, Ours) else sample

    calls = {name: partial(saved, client) for name, client in clients.items()}
    calls["copy"] = partial(_timed, _warm_copy(state))
    return first_stall, list(_in_turns(calls, rounds))


def _restores(state: State, rounds: int, names: Sequence[str]) -> Rounds:
    """Rounds of restores; before them every client has to give back the bytes that it was given."""
    roots = {name: f"s3://{KEPT}/{name}" for name in names}
    for name, root in roots.items():
        CLIENTS[name](root).save(state)
    clients = {name: CLIENTS[name](root) for name, root in roots.items()}
    before = _checksums(state)
    for name, client in clients.items():
        for tensor in state.values():
            tensor.zero_()
        client.restore(state)
        if name == "boto3 CRT":  # its bytes are not taken apart
            continue
        assert _checksums(state) == before, f"{name} gave back other bytes"
    calls = {name: partial(_timed, partial(client.restore, state)) for name, client in clients.items()}
    return list(_in_turns(calls, rounds))


def memory(action: str, num_bytes: str, name: str) -> dict[str, int]:
    """The most memory that two saves, or a restore, take in this process beyond what its imports take."""
    small = CLIENTS[name](f"s3://{KEPT}/warm-up-{action}")
    tiny = {"model.tiny": torch.zeros(WARM_UP_BYTES // 4)}
    # What is imported on first use.
    small.save(tiny)
    small.restore(tiny)
    client = CLIENTS[name](f"s3://{KEPT}/memory")
    before = _status("VmRSS")
    # The peak counts from here on.
    Path("/proc/self/clear_refs").write_text("5")
    state = transformer_state(int(num_bytes))
    for _ in range(2 if action == "save" else 1):
        getattr(client, action)(state)
    return {"num_bytes": size_of(state), "above": _status("VmHWM") - before}


def training(num_bytes: str, rounds: str) -> dict[str, Any]:
    """Steps of a training on one thread: with no upload beside them, with a throttled one, and with one that is not."""
    torch.set_num_threads(1)
    state, pace = transformer_state(int(num_bytes)), Pace()
    ours, throttle, steps = Ours(f"s3://{DISCARDED}/training", pace), Throttle(pace), _training_steps()

    def without() -> Sample:
        seconds = []
        for _ in range(IDLE_STEPS):
            seconds.append(next(steps))
            throttle.observe(seconds[-1], uploading=False)
        return {"step": fmean(seconds)}

    def beside(*, throttled: bool) -> Sample:
        seconds = []
        ours.begin(state)
        if throttled:
            throttle.start(size_of(state), STEPS_UNTIL_NEXT)
        else:
            throttle.lift()
        while ours.saver.busy:
            seconds.append(next(steps))
            if throttled:
                throttle.observe(seconds[-1], uploading=True)
        ours.saver.check()
        return {"step": fmean(seconds)}

    # What a step usually takes, for the throttle.
    without()
    calls = {
        "no upload": without,
        "throttled": partial(beside, throttled=True),
        "full speed": partial(beside, throttled=False),
    }
    return {"num_bytes": size_of(state), "rounds": list(_in_turns(calls, int(rounds)))}


def newest(data: str, rounds: str, *numbers: str) -> list[dict[str, float]]:
    """Seconds until the newest of so many committed checkpoints is found and its marker read, in turns.

    Args:
        data: the server's folder, into which the other checkpoints' markers go.
        rounds: of one look for each.
        numbers: of checkpoints.
    """
    stores = {number: _with_markers(Path(data), int(number)) for number in numbers}

    def look(store: CheckpointStore) -> Sample:
        sleep(LISTING_SECONDS)
        return _timed(lambda: read_marker(next(store.live()).uri))

    calls = {number: partial(look, store) for number, store in stores.items()}
    return [{number: one["seconds"] for number, one in samples.items()} for samples in _in_turns(calls, int(rounds))]


def _with_markers(data: Path, number: int) -> CheckpointStore:
    """A run with so many committed checkpoints: a real one, the newest, and the markers of those before it."""
    S3Store().ensure_bucket(S3Location(KEPT))
    ours = Ours(f"s3://{KEPT}/{number}")
    ours.step = number - 1
    ours.save({"model.tiny": torch.zeros(1)})
    marker = next(ours.store.live()).marker
    text = (data / marker.bucket / marker.key).read_bytes()
    for step in range(1, number):
        other = CheckpointRef(1, step, ours.store.root).marker
        (data / other.bucket / other.key).write_bytes(text)
    return ours.store


def _warm_copy(state: State) -> Callable[[], None]:
    """What staging cannot do without: a copy of every tensor into its place in a buffer that is there already."""
    buffer = torch.zeros(size_of(state), dtype=torch.uint8)
    pieces = buffer.split([tensor.nbytes for tensor in state.values()])
    views = [piece.view(tensor.dtype).view(tensor.shape) for piece, tensor in zip(pieces, state.values(), strict=True)]

    def copy() -> None:
        for view, tensor in zip(views, state.values(), strict=True):
            view.copy_(tensor)

    return copy


def _training_steps() -> Iterator[float]:
    """Seconds of each step of a transformer's layer that learns to give back its input."""
    torch.manual_seed(17)
    layer = torch.nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
    while True:
        started = perf_counter()
        batch = torch.randn(16, 64, 128)
        loss = torch.nn.functional.mse_loss(layer(batch), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        yield perf_counter() - started


def _timed(call: Callable[[], object]) -> Sample:
    """Seconds of a call, and the processor time of client and server."""
    server, client, started = _server_seconds(), process_time(), perf_counter()
    call()
    seconds = perf_counter() - started
    return {"seconds": seconds, "client": process_time() - client, "server": _server_seconds() - server}


def _server_seconds() -> float:
    pids = map(int, os.environ["SERVER_PIDS"].split())
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


def _in_turns(calls: Mapping[str, Callable[[], Sample]], rounds: int) -> Iterator[dict[str, Sample]]:
    """Rounds of one call of each, each in the opposite order of the last; the first is not given."""
    for number in range(rounds + 1):
        order = list(calls) if number % 2 else list(reversed(calls))
        samples = {name: calls[name]() for name in order}
        if number:
            yield samples


def _checksums(state: State) -> list[int]:
    return [crc64nvme(memoryview(tensor.view(-1).numpy()).cast("B")) for tensor in state.values()]


def _status(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


MEASUREMENTS: dict[str, Callable[..., Any]] = {each.__name__: each for each in (speed, memory, training, newest)}

if __name__ == "__main__":
    print(json.dumps(MEASUREMENTS[sys.argv[1]](*sys.argv[2:])))
