"""What preflight says before anything is paid for: warnings let a run start, errors do not."""

from collections.abc import Callable
from typing import Any

import pytest
from convergate.components.config import Problem, RunConfig
from convergate.components.config.preflight import Facts, InitialWeights, preflight

Parsed = Callable[..., RunConfig]
RESTARTS = {"schedule.kind": "cosine_restarts", "schedule.restarts.cycle_steps": 100}
EPOCHS = {"schedule.total_steps": None, "schedule.total_epochs": 2}
DROPS = {"schedule.kind": "step", "schedule.step.every_steps": 100}
PLATEAU = {"schedule.kind": "plateau", "schedule.plateau.metric": "val_loss", "schedule.plateau.patience": 3}
SCALING = {"schedule.scale_with_batch.base_batch_size": 256}


def test_a_sound_config_has_no_problem(parsed: Parsed) -> None:
    found = preflight(parsed({"optimizer.grad_clip_norm": 1.0}), Facts(num_train_samples=1797, seconds_per_step=0.1))
    assert found.problems == []
    assert found.num_checks >= 15


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"schedule.lr0": 50, "optimizer.grad_clip_norm": None},
            Problem(
                "schedule.lr0",
                "a peak of 50 without gradient clipping usually diverges with sgd",
                "50",
                "optimizer.grad_clip_norm: 1.0, or lr0 ≤ 1",
                "warning",
            ),
        ),
        (
            {"optimizer.kind": "adamw", "optimizer.betas": [0.9, 0.99]},
            Problem(
                "schedule.lr0",
                "a peak of 0.1 without gradient clipping usually diverges with adamw",
                "0.1",
                "optimizer.grad_clip_norm: 1.0, or lr0 ≤ 0.01",
                "warning",
            ),
        ),
        (
            {"schedule.lr_min": 0.06},
            Problem(
                "schedule.lr_min",
                "the rate hardly anneals: from 0.1 to 0.06",
                "0.06",
                "a hundredth of the peak, 0.001, is usual",
                "warning",
            ),
        ),
        (
            {**SCALING, "training.batch_size": 4096, "optimizer.grad_clip_norm": 1.0},
            Problem(
                "schedule.scale_with_batch",
                "lr0 is scaled 16-fold and there is no warmup",
                "",
                "schedule.warmup.steps: 5 % of the run",
                "warning",
            ),
        ),
        (
            {**SCALING, "schedule.lr_min": 0.05},
            Problem(
                "schedule.scale_with_batch.base_batch_size",
                "scales lr0 = 0.1 to 0.025 at a batch of 64: below lr_min = 0.05, or not finite",
                "256",
                "the batch size that lr0 was tuned at",
                "error",
            ),
        ),
        (
            {
                "schedule.lr0": 1e308,
                "optimizer.grad_clip_norm": 1.0,
                "schedule.scale_with_batch.base_batch_size": 1,
                "schedule.warmup.steps": 5,
            },
            Problem(
                "schedule.scale_with_batch.base_batch_size",
                "scales lr0 = 1e+308 to inf at a batch of 64: below lr_min = 0, or not finite",
                "1",
                "the batch size that lr0 was tuned at",
                "error",
            ),
        ),
        (
            {"optimizer.kind": "adamw", "optimizer.momentum": 0.9, "optimizer.grad_clip_norm": 1.0},
            Problem("optimizer.momentum", "has no effect under adamw", "", "betas", "warning"),
        ),
        (
            {**RESTARTS, "schedule.warmup.steps": 301},
            Problem(
                "schedule.restarts.cycle_steps",
                "longer than the 99 steps after warmup: no restart, and the rate never reaches lr_min",
                "100",
                "at most 99",
                "warning",
            ),
        ),
        (
            {
                **RESTARTS,
                "schedule.warmup.steps": 301,
                "training.eval_every_steps": 10,
                "schedule.restarts.on_plateau": {"metric": "val_loss", "patience": 3, "max": 2},
            },
            Problem(
                "schedule.restarts.cycle_steps",
                "longer than the 99 steps after warmup: no restart but on a plateau, and the rate never reaches lr_min",
                "100",
                "at most 99",
                "warning",
            ),
        ),
        (
            {**PLATEAU, "schedule.plateau.patience": 7},
            Problem(
                "schedule.plateau.patience",
                "never runs out: 7 validations count before the run's last",
                "7",
                "at most 6, or a smaller training.eval_every_steps",
                "warning",
            ),
        ),
        (
            {**PLATEAU, "schedule.warmup.steps": 300},
            Problem(
                "schedule.plateau.patience",
                "never runs out: 1 validation counts before the run's last",
                "3",
                "a smaller training.eval_every_steps",
                "warning",
            ),
        ),
        (
            {
                **RESTARTS,
                "schedule.warmup.steps": 100,
                "schedule.restarts.on_plateau": {"metric": "val_loss", "patience": 5, "max": 2},
            },
            Problem(
                "schedule.restarts.on_plateau.patience",
                "never runs out: 5 validations count before the run's last",
                "5",
                "at most 4, or a smaller training.eval_every_steps",
                "warning",
            ),
        ),
        (
            {"training.early_stopping": {"metric": "val_loss", "patience": 7}},
            Problem(
                "training.early_stopping.patience",
                "never runs out: 7 validations count before the run's last",
                "7",
                "at most 6, or a smaller training.eval_every_steps",
                "warning",
            ),
        ),
        (
            {**PLATEAU, "schedule.plateau.metric": "val_accuracy"},
            Problem("schedule.plateau.mode", "evaluation.mode of the same accuracy is max", "min", "max", "error"),
        ),
        (
            {**DROPS, "schedule.warmup.steps": 300},
            Problem(
                "schedule.step.every_steps",
                "not shorter than the 100 steps after warmup: the rate never drops",
                "100",
                "at most 99",
                "warning",
            ),
        ),
        (
            {**DROPS, "schedule.warmup.steps": 399},
            Problem(
                "schedule.step.every_steps",
                "not shorter than the 1 steps after warmup: the rate never drops",
                "100",
                "",
                "warning",
            ),
        ),
        (
            {"schedule.kind": "one_cycle"},
            Problem(
                "schedule.warmup.steps",
                "the cycle has no climb: the rate only falls, as under kind cosine",
                "0",
                "30 % of the run is usual",
                "warning",
            ),
        ),
        (
            {"schedule.momentum.cycle": True, "optimizer.momentum": 0.8},
            Problem(
                "schedule.momentum.start",
                "above the 0.8 that it is to rise to, of optimizer.momentum",
                "0.85",
                "at most 0.8",
                "error",
            ),
        ),
        (
            {
                "schedule.momentum.warmup_steps": 5,
                "schedule.momentum.start": 0.9,
                "schedule.lr0": 0.01,
                "optimizer.kind": "adamw",
                "optimizer.betas": [0.8, 0.99],
            },
            Problem(
                "schedule.momentum.start",
                "above the 0.8 that it is to rise to, of optimizer.betas",
                "0.9",
                "at most 0.8",
                "error",
            ),
        ),
        (
            {"training.eval_every_steps": 401},
            Problem(
                "training.eval_every_steps",
                "never reached in 400 steps: the run is validated at its end only",
                "401",
                "at most 400",
                "warning",
            ),
        ),
        (
            {"training.batch_size": 64, "canary.procs_per_node": 6},
            Problem(
                "canary.procs_per_node", "training.batch_size = 64 does not divide over them", "6", "at most 4", "error"
            ),
        ),
        (
            {"training.batch_size": 7},
            Problem(
                "canary.procs_per_node", "training.batch_size = 7 does not divide over them", "2", "at most 1", "error"
            ),
        ),
        (
            {"checkpoint.keep_every": 250, "checkpoint.every_steps": 100},
            Problem(
                "checkpoint.keep_every",
                "no multiple of every_steps = 100: only one checkpoint in 500 steps is of such a step",
                "250",
                "300",
                "warning",
            ),
        ),
        (
            {"canary.min_steps": 3, "canary.steps_fraction": 0.008},
            Problem(
                "canary.min_steps",
                "the canary runs 3 of 400 steps: too few for its kill and restore, so it is INCONCLUSIVE",
                "3",
                "4 or more, in a run that has as many",
                "warning",
            ),
        ),
        (
            {"schedule.total_steps": 3, "training.eval_every_steps": 1},
            Problem(
                "canary.min_steps",
                "the canary runs 3 of 3 steps: too few for its kill and restore, so it is INCONCLUSIVE",
                "20",
                "4 or more, in a run that has as many",
                "warning",
            ),
        ),
    ],
    ids=lambda value: value.path if isinstance(value, Problem) else "",
)
def test_what_experience_says_goes_wrong(parsed: Parsed, values: dict[str, Any], expected: Problem) -> None:
    problems = preflight(parsed(values)).problems
    assert expected in problems
    assert [problem for problem in problems if problem.level == expected.level] == [expected]


@pytest.mark.parametrize(
    "values",
    [
        {"schedule.lr0": 50, "optimizer.grad_clip_norm": 1.0},
        {"schedule.lr0": 50, "schedule.clip.ceiling": 1.0},
        {"schedule.lr0": 1.0},
        {"schedule.lr_min": 0.05},
        {"schedule.lr_min": 0.1, "schedule.kind": "constant"},
        {**SCALING, "training.batch_size": 2048},
        {**SCALING, "training.batch_size": 4096, "schedule.warmup.steps": 20, "optimizer.grad_clip_norm": 1.0},
        {**RESTARTS, "schedule.warmup.steps": 300},
        {"training.eval_every_steps": 400},
        {"checkpoint.keep_every": 300, "checkpoint.every_steps": 100},
        {"training.batch_size": 63, "canary.procs_per_node": 3},
        {"canary.min_steps": 1, "canary.steps_fraction": 0.01},
        {"canary.min_steps": 4, "canary.max_steps": 4},
        {"schedule.total_steps": 4, "training.eval_every_steps": 1},
        {"optimizer.momentum": 0.5},
        {**DROPS, "schedule.warmup.steps": 299},
        # 7 validations before the last: the first sets the mark.
        {**PLATEAU, "schedule.plateau.patience": 6},
        {**PLATEAU, "schedule.plateau.patience": 5, "schedule.warmup.steps": 99},
        {**PLATEAU, "schedule.plateau.metric": "val_accuracy", "schedule.plateau.mode": "max"},
        {**RESTARTS, "schedule.restarts.on_plateau": {"metric": "loss", "patience": 6, "max": 2}},
        {"training.early_stopping": {"metric": "val_loss", "patience": 6}, "schedule.warmup.steps": 99},
        {"schedule.kind": "one_cycle", "schedule.warmup.steps": 120, "schedule.momentum.cycle": True},
        {"schedule.kind": "exponential", "schedule.lr_min": 0.001},
        {"schedule.momentum.warmup_steps": 5},
        {"schedule.momentum.warmup_steps": 5, "schedule.momentum.start": 0.5, "optimizer.momentum": 0.5},
        {"optimizer.groups": [{"match": "head.*", "lr_scale": 10.0, "weight_decay": 0.0}]},
    ],
    ids=str,
)
def test_what_is_usual_brings_no_warning(parsed: Parsed, values: dict[str, Any]) -> None:
    assert preflight(parsed(values)).problems == []


@pytest.mark.parametrize("path", ["distributed.nodes", "canary.nodes"])
def test_several_nodes_need_a_launcher_for_them(parsed: Parsed, path: str) -> None:
    problem = Problem(path, "this machine is one node", "2", "distributed.launcher: trainjob")
    assert preflight(parsed({path: 2})).errors == [problem]
    assert preflight(parsed({path: 2, "distributed.launcher": "trainjob"})).errors == []


def test_a_canary_of_one_node_does_not_see_the_network_between_nodes(parsed: Parsed) -> None:
    (found,) = preflight(parsed({"distributed.launcher": "trainjob", "distributed.nodes": 4})).problems
    assert (found.head, found.fix, found.level) == ("canary.nodes = 1", "2", "warning")
    more = {"distributed.launcher": "trainjob", "distributed.nodes": 4, "canary.nodes": 2}
    assert preflight(parsed(more)).problems == []


@pytest.mark.parametrize(
    ("nodes", "procs", "fix"),
    [(3, 1, "at most 2"), (3, 4, "at most 2"), (2, 3, "nodes × procs_per_node that 64 divides by")],
)
def test_the_canarys_batch_divides_over_the_processes_of_all_nodes(
    parsed: Parsed, nodes: int, procs: int, fix: str
) -> None:
    values = {"distributed.launcher": "trainjob", "canary.nodes": nodes, "canary.procs_per_node": procs}
    config = parsed(values)
    assert config.canary.world_size == nodes * procs
    reason = f"training.batch_size = 64 does not divide over {nodes} × {procs} processes"
    assert preflight(config).errors == [Problem("canary.nodes", reason, str(nodes), fix)]
    assert preflight(parsed({**values, "canary.nodes": 2, "canary.procs_per_node": 4})).errors == []


def test_epochs_are_judged_once_the_data_is_known(parsed: Parsed) -> None:
    config = parsed(EPOCHS | RESTARTS | {"schedule.warmup.steps": 30, "schedule.restarts.cycle_steps": 11})
    assert preflight(config).problems == []
    # 2 epochs of 20 full batches of 64
    found = preflight(config, Facts(num_train_samples=1300))
    assert {problem.path: problem.level for problem in found.problems} == {
        "schedule.restarts.cycle_steps": "warning",
        "training.eval_every_steps": "warning",
    }


def test_a_canary_of_few_steps_that_epochs_turn_out_too_short_for(parsed: Parsed) -> None:
    """2 epochs of one full batch of 64 are 2 steps, of two are 4."""
    config = parsed(EPOCHS | {"training.eval_every_steps": 1, "canary.min_steps": 2})
    assert preflight(config).problems == []
    (found,) = preflight(config, Facts(num_train_samples=127)).problems
    assert (found.path, found.level) == ("canary.min_steps", "warning")
    assert found.reason.startswith("the canary runs 2 of 2 steps")
    (found,) = preflight(config, Facts(num_train_samples=128)).problems
    assert found.reason.startswith("the canary runs 2 of 4 steps")


@pytest.mark.parametrize("path", ["schedule.warmup.steps", "schedule.momentum.warmup_steps"])
def test_a_warmup_that_epochs_turn_out_too_short_for(parsed: Parsed, path: str) -> None:
    found = preflight(parsed(EPOCHS | {path: 40}), Facts(num_train_samples=1300))
    reason = "not shorter than the run: total_epochs = 2 is 40 steps"
    assert found.errors == [Problem(path, reason, "40", fix="at most 39")]


@pytest.mark.parametrize(("samples", "fix"), [(63, "at most 63"), (0, "")])
@pytest.mark.parametrize("length", [{}, EPOCHS])
def test_less_data_than_a_batch(parsed: Parsed, samples: int, fix: str, length: dict[str, Any]) -> None:
    found = preflight(parsed(length), Facts(num_train_samples=samples))
    reason = f"the training split has {samples} samples: not one full batch"
    assert found.errors == [Problem("training.batch_size", reason, "64", fix)]


@pytest.mark.parametrize("length", [{}, {"schedule.total_steps": None, "schedule.total_epochs": 20}])
def test_the_cost_is_held_against_the_budget(parsed: Parsed, length: dict[str, Any]) -> None:
    # 400 steps of 9 s on two devices are 2 hours.
    config = parsed({**length, "distributed.procs_per_node": 2, "budget.max_gpu_hours": 2.0})
    assert preflight(config, Facts(num_train_samples=1300, seconds_per_step=9.0)).errors == []
    found = preflight(config, Facts(num_train_samples=1300, seconds_per_step=9.1))
    assert found.errors == [
        Problem(
            "budget.max_gpu_hours",
            "the run is projected at 2.02 GPU-hours",
            "2",
            "fewer steps, or a larger budget",
        )
    ]


def test_weights_to_begin_with_that_were_not_found(parsed: Parsed) -> None:
    config = parsed({"training.init_from": "champion"})
    problem = Problem("training.init_from", "digits has no champion yet", "champion", "promote one first")
    found = preflight(config, Facts(initial=InitialWeights(problem=problem)))
    assert found.errors == [problem]
    there = preflight(config, Facts(initial=InitialWeights("s3://bucket/a", "0a" * 32)))
    assert (there.errors, there.num_checks) == ([], found.num_checks)


def test_a_check_whose_facts_are_missing_is_not_counted(parsed: Parsed) -> None:
    config = parsed()
    counts = [
        preflight(config, facts).num_checks
        for facts in (None, Facts(num_train_samples=1300), Facts(num_train_samples=1300, seconds_per_step=0.1))
    ]
    assert counts == [counts[0], counts[0] + 1, counts[0] + 2]
