"""`ScheduleLR` in a loop that knows nothing of this package."""

import copy
import json
from typing import Any

import pytest
import torch
from convergate.components.errors import UserError
from convergate.components.schedule import (
    CosineSchedule,
    LinearSchedule,
    MomentumCycle,
    MomentumSchedule,
    MomentumWarmup,
    ScheduleEvent,
    with_events,
)
from convergate.components.schedule.torch_adapter import ScheduleLR
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, SequentialLR

SCHEDULE = CosineSchedule(
    lr0=0.1, total_steps=30, lr_min=0.001, warmup_steps=5, cycle_steps=10, cycle_mult=2, scale=0.5, ramp_steps=2
)


def parts() -> tuple[torch.nn.Module, Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    groups = [
        {"params": list(model[0].parameters())},
        {"params": list(model[2].parameters()), "lr_scale": 0.3, "weight_decay": 0.1},
    ]
    return model, SGD(groups, lr=123.0, momentum=0.9)


def train(
    model: torch.nn.Module, optimizer: Optimizer, scheduler: LRScheduler | None, steps: range
) -> list[list[float]]:
    """An ordinary loop; returns the rates that each update was made with. Without a scheduler they are set by hand."""
    used = []
    for step in steps:
        if scheduler is None:
            for group, scale in zip(optimizer.param_groups, (1.0, 0.3), strict=True):
                group["lr"] = SCHEDULE.lr(step) * scale
        inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(inputs), inputs.sum(1, keepdim=True)).backward()
        used.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return used


def weights(model: torch.nn.Module) -> list[float]:
    return [value for parameter in model.parameters() for value in parameter.detach().flatten().tolist()]


def test_each_group_is_trained_with_its_scaled_rate() -> None:
    model, optimizer = parts()
    scheduler = ScheduleLR(optimizer, SCHEDULE)
    assert isinstance(scheduler, LRScheduler)
    used = train(model, optimizer, scheduler, range(35))
    assert used == [[SCHEDULE.lr(step), SCHEDULE.lr(step) * 0.3] for step in range(35)]
    assert scheduler.get_last_lr() == [0.001, 0.001 * 0.3]
    by_hand, its_optimizer = parts()
    train(by_hand, its_optimizer, None, range(35))
    assert weights(model) == weights(by_hand)


def test_a_rate_changed_from_outside_is_put_right_at_the_next_step() -> None:
    """torch's recursive cosine would carry the change to the end."""
    _, optimizer = parts()
    scheduler = ScheduleLR(optimizer, SCHEDULE)
    optimizer.param_groups[0]["lr"] = 7.0
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == SCHEDULE.lr(1)


def test_a_group_added_later_is_scheduled_too() -> None:
    _, optimizer = parts()
    scheduler = ScheduleLR(optimizer, SCHEDULE)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr_scale": 2.0})
    optimizer.step()
    scheduler.step()
    assert scheduler.get_last_lr() == [SCHEDULE.lr(1) * scale for scale in (1.0, 0.3, 2.0)]


def test_a_rate_that_is_a_tensor_is_set_in_place() -> None:
    """A captured CUDA graph or a compiled optimizer reads that tensor, and no other."""
    rate = torch.tensor(1.0, dtype=torch.float64)
    optimizer = Adam([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    scheduler = ScheduleLR(optimizer, SCHEDULE)
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == SCHEDULE.lr(1)
    assert scheduler.get_last_lr() == [SCHEDULE.lr(1)]


CYCLE = MomentumCycle(SCHEDULE, low=0.5, high=0.9)


def test_the_momentum_of_every_group_is_set() -> None:
    _, optimizer = parts()
    scheduler = ScheduleLR(optimizer, SCHEDULE, CYCLE)
    for step in range(35):
        assert [group["momentum"] for group in optimizer.param_groups] == [CYCLE.momentum(step)] * 2
        optimizer.step()
        scheduler.step()


def test_the_first_beta_is_a_momentum_and_the_second_stays() -> None:
    optimizer = Adam(parts()[0].parameters(), lr=1.0, betas=(0.8, 0.95))
    scheduler = ScheduleLR(optimizer, SCHEDULE, MomentumWarmup(low=0.4, high=0.8, warmup_steps=4))
    assert optimizer.param_groups[0]["betas"] == (0.4, 0.95)
    scheduler.step(1)
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.95)


def test_an_optimizer_without_momentum_is_refused() -> None:
    optimizer = torch.optim.Adagrad(parts()[0].parameters())
    with pytest.raises(UserError, match="^Adagrad has no momentum to schedule → SGD, or one with betas$"):
        ScheduleLR(optimizer, SCHEDULE, CYCLE)
    ScheduleLR(optimizer, SCHEDULE)


RESTART, ROLLBACK = ScheduleEvent(9, "restart"), ScheduleEvent(20, "rollback", 0.5)


def test_an_event_sets_the_rates_and_the_momentum_of_its_step_at_once() -> None:
    _, optimizer = parts()
    scheduler = ScheduleLR(optimizer, SCHEDULE, CYCLE)
    assert (scheduler.events, scheduler.schedule) == ((), SCHEDULE)
    restarted = with_events(SCHEDULE, [RESTART])
    for step in range(9):
        assert scheduler.get_last_lr() == [SCHEDULE.lr(step), SCHEDULE.lr(step) * 0.3]
        optimizer.step()
        scheduler.step()
    assert scheduler.get_last_lr()[0] == SCHEDULE.lr(9)
    scheduler.add(RESTART)
    for step in range(9, 31):
        assert scheduler.get_last_lr() == [restarted.lr(step), restarted.lr(step) * 0.3]
        momentum = MomentumCycle(restarted, low=0.5, high=0.9).momentum(step)
        assert [group["momentum"] for group in optimizer.param_groups] == [momentum] * 2
        scheduler.step()
    assert (scheduler.events, scheduler.schedule) == ((RESTART,), restarted)


def test_an_event_of_a_later_step_waits_for_it() -> None:
    _, optimizer = parts()
    scheduler = ScheduleLR(optimizer, SCHEDULE)
    scheduler.add(ROLLBACK)
    scheduler.step(19)
    assert scheduler.get_last_lr()[0] == SCHEDULE.lr(19)
    scheduler.step()
    assert scheduler.get_last_lr()[0] == pytest.approx(SCHEDULE.lr(20) / 2, rel=1e-15, abs=0)


def test_an_event_that_does_not_fit_changes_nothing() -> None:
    scheduler = ScheduleLR(parts()[1], SCHEDULE, CYCLE)
    scheduler.step(12)
    before = scheduler.state_dict()
    with pytest.raises(ValueError, match="reduce at step 12"):
        scheduler.add(ScheduleEvent(12, "reduce", 0.5))
    assert (scheduler.state_dict(), scheduler.schedule, scheduler.momentum) == (before, SCHEDULE, CYCLE)


def test_the_events_are_part_of_the_state_beside_the_schedule_of_the_config() -> None:
    """So a state with events is one of the same config."""
    scheduler = ScheduleLR(parts()[1], SCHEDULE, CYCLE)
    scheduler.step(25)
    scheduler.add(ROLLBACK)
    scheduler.add(RESTART)
    saved = json.loads(json.dumps(scheduler.state_dict(), allow_nan=False))
    assert saved["schedule"] == ScheduleLR(parts()[1], SCHEDULE, CYCLE).state_dict()["schedule"]
    assert [event["step"] for event in saved["events"]] == [9, 20]
    again = ScheduleLR(parts()[1], SCHEDULE, CYCLE)
    again.load_state_dict(saved)
    assert (again.state_dict(), again.schedule, again.momentum) == (saved, scheduler.schedule, scheduler.momentum)
    assert again.get_last_lr() == scheduler.get_last_lr()


def test_a_state_without_events_as_an_earlier_version_saved_it_has_none() -> None:
    scheduler = ScheduleLR(parts()[1], SCHEDULE)
    old = {name: value for name, value in scheduler.state_dict().items() if name != "events"}
    scheduler.add(RESTART)
    scheduler.load_state_dict(old | {"step": 12})
    assert (scheduler.events, scheduler.get_last_lr()[0]) == ((), SCHEDULE.lr(12))


def test_events_that_do_not_fit_another_schedule_are_refused_where_it_is_allowed() -> None:
    theirs = ScheduleLR(parts()[1], SCHEDULE)
    theirs.add(RESTART)
    ours = ScheduleLR(parts()[1], LinearSchedule(0.1, 30))
    with pytest.raises(UserError, match="^the saved events do not fit the schedule: restart at step 9"):
        ours.load_state_dict(theirs.state_dict(), allow_changed_schedule=True)
    assert (ours.last_epoch, ours.events) == (0, ())


def test_it_works_inside_another_scheduler() -> None:
    _, optimizer = parts()
    first = ConstantLR(optimizer, factor=0.5, total_iters=100)
    both = SequentialLR(optimizer, [first, ScheduleLR(optimizer, SCHEDULE)], milestones=[3])
    used = []
    for _ in range(6):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        both.step()
    assert used[3:] == [SCHEDULE.lr(step) for step in range(3)]
    assert used[:3] == [used[0]] * 3


@pytest.mark.parametrize("momentum", [None, CYCLE, MomentumWarmup(low=0.5, high=0.9, warmup_steps=20)])
@pytest.mark.parametrize("scheduler_first", [True, False])
def test_a_resumed_loop_is_the_uninterrupted_one(scheduler_first: bool, momentum: MomentumSchedule | None) -> None:
    whole, optimizer = parts()
    used = train(whole, optimizer, ScheduleLR(optimizer, SCHEDULE, momentum), range(30))

    model, optimizer = parts()
    scheduler = ScheduleLR(optimizer, SCHEDULE, momentum)
    before = train(model, optimizer, scheduler, range(17))
    saved = json.loads(json.dumps(scheduler.state_dict(), allow_nan=False))
    tensors = copy.deepcopy((model.state_dict(), optimizer.state_dict()))

    again, optimizer = parts()
    again.load_state_dict(tensors[0])
    scheduler = ScheduleLR(optimizer, SCHEDULE, momentum)
    loads = [lambda: scheduler.load_state_dict(saved), lambda: optimizer.load_state_dict(tensors[1])]
    for load in loads if scheduler_first else reversed(loads):
        load()
    assert before + train(again, optimizer, scheduler, range(17, 30)) == used
    assert weights(again) == weights(whole)


def test_the_right_rate_is_set_without_the_optimizers_state() -> None:
    _, optimizer = parts()
    ScheduleLR(optimizer, SCHEDULE).load_state_dict({**ScheduleLR(parts()[1], SCHEDULE).state_dict(), "step": 12})
    assert [group["lr"] for group in optimizer.param_groups] == [SCHEDULE.lr(12), SCHEDULE.lr(12) * 0.3]


@pytest.mark.parametrize(
    ("other", "named", "unnamed"),
    [
        (
            CosineSchedule(lr0=0.2, total_steps=40, lr_min=0.001, warmup_steps=5),
            ["lr0: saved '0.2', now '0.1'", "total_steps: saved 40, now 30", "cycle_steps: saved None, now 10"],
            ["lr_min", "warmup_steps", "kind"],
        ),
        (
            LinearSchedule(lr0=0.1, total_steps=30, lr_min=0.001, warmup_steps=5),
            ["kind: saved 'LinearSchedule', now 'CosineSchedule'", "cycle_mult: saved None, now 2"],
            ["lr0", "total_steps"],
        ),
    ],
)
def test_a_state_of_another_schedule_is_refused_by_the_fields_that_differ(
    other: CosineSchedule, named: list[str], unnamed: list[str]
) -> None:
    theirs = ScheduleLR(parts()[1], other)
    theirs.step(12)
    _, optimizer = parts()
    scheduler = ScheduleLR(optimizer, SCHEDULE)
    with pytest.raises(UserError) as caught:
        scheduler.load_state_dict(theirs.state_dict())
    message = str(caught.value)
    assert all(text in message for text in named)
    assert not any(f"{name}: " in message for name in unnamed)
    assert "→ resume with the config that made it, or load with allow_changed_schedule=True" in message
    assert "\n" not in message
    assert scheduler.last_epoch == 0
    scheduler.load_state_dict(theirs.state_dict(), allow_changed_schedule=True)
    assert scheduler.get_last_lr() == [SCHEDULE.lr(12), SCHEDULE.lr(12) * 0.3]


def test_a_state_of_another_momentum_is_refused_and_one_of_none_is_what_it_was() -> None:
    saved = ScheduleLR(parts()[1], SCHEDULE, CYCLE).state_dict()
    with pytest.raises(UserError, match="momentum.high: saved '0.9', now None; momentum.kind: saved 'MomentumCycle'"):
        ScheduleLR(parts()[1], SCHEDULE).load_state_dict(saved)
    with pytest.raises(UserError, match=r"another one \(momentum.low: saved '0.5', now '0.6'\)"):
        ScheduleLR(parts()[1], SCHEDULE, MomentumCycle(SCHEDULE, 0.6, 0.9)).load_state_dict(saved)
    bare = ScheduleLR(parts()[1], SCHEDULE).state_dict()
    assert not [name for name in bare["schedule"] if "momentum" in name]


def test_a_difference_in_the_last_digit_is_one() -> None:
    theirs = ScheduleLR(parts()[1], CosineSchedule(lr0=0.1, total_steps=30))
    with pytest.raises(UserError, match="lr0: saved '0.1', now '0.10000000000000002'"):
        ScheduleLR(parts()[1], CosineSchedule(0.10000000000000002, 30)).load_state_dict(theirs.state_dict())


@pytest.mark.parametrize(
    "make", [lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 30).state_dict(), lambda _: {}]
)
def test_a_state_of_another_scheduler_is_refused(make: Any) -> None:
    scheduler = ScheduleLR(parts()[1], SCHEDULE)
    with pytest.raises(UserError, match="not a state of ScheduleLR: it has (T_max|nothing)"):
        scheduler.load_state_dict(make(parts()[1]))
