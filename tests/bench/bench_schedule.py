"""What a step of the schedule costs in the optimizer, beside torch's cosine, and how exact its rates are.

    python tests/bench/bench_schedule.py

Prints a table, keeps it as `.bench/schedule.json`, and exits 1 when a target is missed.
"""

import statistics
import sys
from collections.abc import Callable
from time import perf_counter

import torch
from convergate.components.schedule import CosineSchedule, ScheduleEvent
from convergate.components.schedule.torch_adapter import ScheduleLR
from figures import Figure, report
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schedule_reference import MILLION, eventful, relative_error, steps
from torch.optim.lr_scheduler import CosineAnnealingLR

NUM_REPEATS = 31
NUM_CALLS = 4_000
NUM_EVENTS = 10
NUM_SCHEDULES = 5_000
STEPS_EACH = 20
MAX_ERROR = 1e-12
TARGETS = {1: (1.0, 0.4), 10: (1.6, 0.25)}
"""By parameter groups: µs a step, or a share of what torch's takes."""


def optimizer(num_groups: int) -> torch.optim.Optimizer:
    """An optimizer that has made its first step, as a scheduler wants it."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(num_groups)]
    made = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    made.step()
    return made


def microseconds(call: Callable[[], object]) -> float:
    """A call's mean time over `NUM_CALLS`."""
    started = perf_counter()
    for _ in range(NUM_CALLS):
        call()
    return (perf_counter() - started) / NUM_CALLS * 1e6


def cost_figures(num_groups: int) -> list[Figure]:
    """A step of ours and of torch's in turns, after one round that is not counted; the medians."""
    ours = ScheduleLR(optimizer(num_groups), CosineSchedule(0.1, MILLION, 0.001, warmup_steps=NUM_CALLS // 2))
    theirs = CosineAnnealingLR(optimizer(num_groups), T_max=MILLION, eta_min=0.001)
    theirs.optimizer.step()
    rounds = [(microseconds(ours.step), microseconds(theirs.step)) for _ in range(NUM_REPEATS + 1)][1:]
    mine, peer = (statistics.median(column) for column in zip(*rounds, strict=True))
    most, share = TARGETS[num_groups]
    met = mine <= most or mine <= share * peer
    groups = f"{num_groups} group{'s' * (num_groups > 1)}"
    return [
        Figure(f"step(), {groups}", mine, "µs", f"≤ {most}, or the next", met),
        Figure(f"step(), {groups}, of torch's", mine / peer, "×", f"≤ {share}, or the last", met),
        Figure(f"CosineAnnealingLR.step(), {groups}", peer, "µs", "shown", True),
    ]


def event_figures() -> list[Figure]:
    """A step after as many rollbacks as nobody wants."""
    scheduler = ScheduleLR(optimizer(1), CosineSchedule(0.1, MILLION, 0.001, warmup_steps=NUM_CALLS // 2))
    for number in range(NUM_EVENTS):
        scheduler.add(ScheduleEvent(number * NUM_CALLS, "rollback", 0.9))
    mine = statistics.median([microseconds(scheduler.step) for _ in range(NUM_REPEATS + 1)][1:])
    return [Figure(f"step(), 1 group, with {NUM_EVENTS} events", mine, "µs", "shown", True)]


def error_figures() -> list[Figure]:
    """The largest relative error against 50 digits, events included; the same schedules and steps each time."""
    errors: list[float] = []

    @settings(
        max_examples=NUM_SCHEDULES, deadline=None, database=None, derandomize=True, suppress_health_check=HealthCheck
    )
    @given(data=st.data())
    def measure(data: st.DataObject) -> None:
        schedule = data.draw(eventful())
        errors.extend(relative_error(schedule, step) for step in data.draw(steps(schedule, STEPS_EACH)))

    measure()
    wanted, worst = NUM_SCHEDULES * STEPS_EACH, max(errors)
    return [
        Figure("pairs of a schedule and a step", len(errors), "", f"{wanted:,}", len(errors) >= wanted),
        Figure("largest relative error over them", worst, "", f"≤ {MAX_ERROR:g}", worst <= MAX_ERROR),
    ]


def main() -> int:
    """Measure, show, keep; returns the exit code."""
    costs = [figure for num_groups in TARGETS for figure in cost_figures(num_groups)]
    return report([*costs, *event_figures(), *error_figures()], "schedule")


if __name__ == "__main__":
    sys.exit(main())
