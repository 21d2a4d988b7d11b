"""Which key is in which digest; digests and seeds that hold for ever."""

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any, get_args, get_origin

import pytest
import yaml
from convergate.components.config import RunConfig, config_digests, derive_seed, parse_config
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

Parsed = Callable[..., RunConfig]

EVERYTHING = """
schema_version: 1
experiment: digits
seed: 17
owner: {team: vision, contact: vision@example.org}
task: {factory: "convergate.components.task.digits:DigitsTask", params: {width: 8}}
optimizer: {kind: adamw, momentum: 0.8, betas: [0.8, 0.99], weight_decay: 1e-4, grad_clip_norm: 1.0}
schedule:
  kind: cosine_restarts
  lr0: 0.1
  lr_min: 0.001
  total_steps: 400
  warmup: {steps: 20, start_lr: 0.01}
  restarts:
    {cycle_steps: 100, cycle_mult: 2, scale: 0.8, ramp_steps: 5, on_plateau: {metric: val_loss, patience: 3, max: 2}}
  clip: {floor: 1e-5, ceiling: 1.0}
  momentum: {warmup_steps: 3, start: 0.5}
  scale_with_batch: {base_batch_size: 256, rule: sqrt}
training:
  {batch_size: 64, eval_every_steps: 40, precision: bf16, grad_accumulation: 2, init_from: champion,
   early_stopping: {metric: val_loss, patience: 5}}
distributed: {launcher: trainjob, nodes: 2, procs_per_node: 2, backend: nccl, strategy: fsdp2}
checkpoint: {uri: "s3://convergate/other", every_steps: 50, keep_last: 2, keep_best: 2}
storage: {uri: "s3://elsewhere"}
data: {uri: "s3://data/digits", snapshot: "sha256:00", suite: default}
canary: {steps_fraction: 0.1, min_steps: 10, max_steps: 100, nodes: 2, procs_per_node: 1}
evaluation: {metric: accuracy, mode: min, target: 0.9, margin_vs_champion: 0.01}
slo:
  {window_runs: 40, convergence_rate: 0.9, anomalous_rate: 0.1, lr_sync_errors: 1, cost_per_converged_gpu_hours: 3.0,
   min_runs: 6, require: proven}
budget: {max_gpu_hours: 3.0, gpu_hour_price: 2.5}
promotion: {model: digits, alias: live}
"""

TRAINING: dict[str, Any] = {
    "task.factory": "other:Task",
    "task.params": {"width": 16},
    "optimizer.kind": "sgd",
    "optimizer.momentum": 0.9,
    "optimizer.betas": [0.9, 0.99],
    "optimizer.weight_decay": 0.0,
    "optimizer.grad_clip_norm": None,
    "optimizer.groups": [{"match": "head.*", "lr_scale": 10.0}],
    "schedule.kind": "cosine_restarts",  # its others go with other keys: below
    "schedule.lr0": 0.2,
    "schedule.lr_min": 0.002,
    "schedule.total_steps": 401,
    "schedule.total_epochs": 3,
    "schedule.warmup.steps": 21,
    "schedule.warmup.start_lr": 0.0,
    "schedule.restarts.cycle_steps": 101,
    "schedule.restarts.cycle_mult": 1,
    "schedule.restarts.scale": 1.0,
    "schedule.restarts.ramp_steps": 0,
    "schedule.restarts.on_plateau.metric": "accuracy",
    "schedule.restarts.on_plateau.patience": 4,
    "schedule.restarts.on_plateau.max": 1,
    "schedule.restarts.on_plateau.mode": "max",
    "schedule.restarts.on_plateau.smoothing": 2,
    "schedule.restarts.on_plateau.cooldown": 1,
    "schedule.restarts.on_plateau.threshold": 0.01,
    "schedule.plateau.metric": "accuracy",
    "schedule.plateau.patience": 4,
    "schedule.plateau.mode": "max",
    "schedule.plateau.smoothing": 2,
    "schedule.plateau.cooldown": 1,
    "schedule.plateau.threshold": 0.01,
    "schedule.plateau.factor": 0.2,
    "schedule.step.every_steps": 101,
    "schedule.step.factor": 0.2,
    "schedule.clip.floor": 0.0,
    "schedule.clip.ceiling": None,
    "schedule.momentum.warmup_steps": 0,
    "schedule.momentum.start": 0.85,
    "schedule.momentum.cycle": True,
    "schedule.scale_with_batch.base_batch_size": 128,
    "schedule.scale_with_batch.rule": "linear",
    "training.batch_size": 128,
    "training.eval_every_steps": 50,
    "training.precision": "fp32",
    "training.grad_accumulation": 1,
    "training.init_from": None,
    "training.early_stopping.metric": "accuracy",
    "training.early_stopping.patience": 4,
    "training.early_stopping.mode": "max",
    "training.early_stopping.smoothing": 2,
    "training.early_stopping.min_delta": 0.01,
    "training.compile": True,
    "training.max_skipped_updates": 1,
    "training.rollback.max": 3,
    "training.rollback.lr_scale": 0.1,
    "distributed.nodes": 1,
    "distributed.procs_per_node": 1,
    "distributed.strategy": "ddp",
}
POLICY: dict[str, Any] = {
    "evaluation.metric": "loss",
    "evaluation.mode": "max",
    "evaluation.target": 0.95,
    "evaluation.margin_vs_champion": 0.0,
    "slo.window_runs": 50,
    "slo.convergence_rate": 0.8,
    "slo.anomalous_rate": 0.05,
    "slo.lr_sync_errors": 0,
    "slo.cost_per_converged_gpu_hours": None,
    "slo.min_runs": 5,
    "slo.require": "not_breached",
    "budget.max_gpu_hours": 2.0,
    "budget.gpu_hour_price": None,
    "promotion.model": "other",
    "promotion.alias": "champion",
}
NEITHER: dict[str, Any] = {
    "experiment": "other",
    "seed": 0,
    "owner.team": "unknown",
    "owner.contact": "",
    "distributed.launcher": "local",
    "distributed.backend": "auto",
    "distributed.timeout_minutes": 10.0,
    "checkpoint.uri": "s3://convergate/checkpoints",
    "checkpoint.every_steps": 100,
    "checkpoint.keep_last": 3,
    "checkpoint.keep_best": 1,
    "checkpoint.when_busy": "skip",
    "checkpoint.keep_every": 500,
    "storage.uri": "s3://convergate",
    "data.uri": None,
    "data.snapshot": None,
    "canary.steps_fraction": 0.02,
    "canary.min_steps": 20,
    "canary.max_steps": 500,
    "canary.nodes": 1,
    "canary.procs_per_node": 2,
}
ONE_VALUE = {"schema_version", "data.suite"}
CASES = [
    (path, value, digests)
    for table, digests in ((TRAINING, {"training"}), (POLICY, {"policy"}), (NEITHER, set()))
    for path, value in table.items()
]
BASE = parse_config(EVERYTHING)


def base(path: str) -> RunConfig:
    """EVERYTHING, or what goes in its place with a key that excludes another."""
    schedule: dict[str, Any] = {}
    if path.startswith("schedule.step."):
        schedule = {"kind": "step", "restarts": None, "step": {"every_steps": 100, "factor": 0.5}}
    if path.startswith("schedule.plateau."):
        schedule = {"kind": "plateau", "restarts": None, "plateau": {"metric": "val_loss", "patience": 3}}
    if path == "schedule.momentum.cycle":
        schedule = {"momentum": {"start": 0.5}}
    training = {"rollback": {}} if path.startswith("training.rollback.") else {}
    document = BASE.model_dump(mode="json")
    sections = {"schedule": document["schedule"] | schedule, "training": document["training"] | training}
    return RunConfig.model_validate(document | sections)


def changed(path: str, value: Any) -> RunConfig:
    """The base with one key changed, through a document so that all is validated again."""
    document = base(path).model_dump(mode="json")
    *sections, name = path.split(".")
    inner = document
    for section in sections:
        inner = inner[section]
    inner[name] = value
    if path == "schedule.total_epochs":
        inner["total_steps"] = None
    if path == "schedule.kind":
        inner |= {"kind": "cosine", "restarts": None}
    return RunConfig.model_validate(document, strict=False)


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted paths of all keys of the schema that hold a value; a list of sections is one."""
    for name, field in model.model_fields.items():
        sections = [
            part
            for part in (field.annotation, *get_args(field.annotation))
            if isinstance(part, type) and issubclass(part, BaseModel) and get_origin(field.annotation) is not tuple
        ]
        if sections:
            yield from leaves(sections[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_every_key_of_the_schema_has_its_digest_decided() -> None:
    """A new key belongs into one of the tables above; none may be in two."""
    decided = [*TRAINING, *POLICY, *NEITHER, *ONE_VALUE]
    assert sorted(decided) == sorted(leaves(RunConfig))


@pytest.mark.parametrize(("path", "value", "digests"), CASES, ids=[path for path, _, _ in CASES])
def test_a_key_changes_its_digest_and_no_other(path: str, value: Any, digests: set[str]) -> None:
    other = changed(path, value)
    assert other != base(path)
    before, after = config_digests(base(path)).model_dump(), config_digests(other).model_dump()
    assert {name for name in before if before[name] != after[name]} == digests


@pytest.mark.parametrize(
    "group", [{"match": "head"}, {"match": "head.*", "lr_scale": 2.0}, {"match": "head.*", "weight_decay": 0.0}]
)
def test_all_of_a_group_of_parameters_is_in_the_training_digest(parsed: Parsed, group: dict[str, Any]) -> None:
    before = config_digests(parsed({"optimizer.groups": [{"match": "head.*"}]}))
    after = config_digests(parsed({"optimizer.groups": [group]}))
    assert (after.training != before.training, after.policy == before.policy) == (True, True)
    assert config_digests(parsed({"optimizer.groups": []})) != before


def test_processes_count_not_where_they_run() -> None:
    document = BASE.model_dump(mode="json")
    document["distributed"] |= {"nodes": 1, "procs_per_node": 4}
    assert config_digests(RunConfig.model_validate(document)) == config_digests(BASE)


def test_a_key_at_its_default_is_as_one_left_out(parsed: Parsed) -> None:
    short = parsed()
    full = RunConfig.model_validate(short.model_dump(mode="json"))
    assert full.model_fields_set > short.model_fields_set
    assert config_digests(full) == config_digests(short)
    assert derive_seed(full, "run") == derive_seed(short, "run")


@pytest.mark.parametrize("section", ["optimizer", "schedule.warmup", "schedule.clip", "slo", "budget", "distributed"])
def test_an_empty_section_is_as_one_left_out(parsed: Parsed, section: str) -> None:
    before = config_digests(parsed())
    assert config_digests(parsed({section: {}})) == before


def test_how_a_number_is_written_changes_nothing(raw: dict[str, Any]) -> None:
    texts = [
        yaml.safe_dump(raw).replace("lr0: 0.1", f"lr0: {written}") for written in ("1", "1.0", "1e0", "+1.", "10e-1")
    ]
    assert len({config_digests(parse_config(text)) for text in texts}) == 1


def test_the_order_of_keys_changes_nothing(raw: dict[str, Any]) -> None:
    raw["task"]["params"] = {"a": 1, "b": {"c": 2, "d": 3}}
    backwards = dict(reversed(raw.items()))
    backwards["task"] = {"params": {"b": {"d": 3, "c": 2}, "a": 1}, "factory": raw["task"]["factory"]}
    assert config_digests(RunConfig.model_validate(backwards)) == config_digests(RunConfig.model_validate(raw))


def test_digests_hold_for_ever() -> None:
    """Signatures, checkpoints and the ledger name these: a change here breaks all of them."""
    digests = config_digests(BASE)
    assert digests.training == "7c9f7b36d1ee4ea4dab62406cf0211e3995c1c44c06c3b68512bbe2b83ef41e7"
    assert digests.policy == "05490af462de8f5fbeeec38538d04134428c2edfa08cae26ececc6a81e37918d"
    assert digests.short == f"{digests.training[:4]}…{digests.training[-2:]}"
    assert derive_seed(BASE, "run-1") == 572710754
    assert re.fullmatch("[0-9a-f]{64}", digests.training)


def test_a_digest_is_sha256_over_canonical_json(parsed: Parsed) -> None:
    """So that a shell can make it: `printf … | sha256sum`."""
    digests = config_digests(parsed())
    training = (
        '{"distributed":{"strategy":"ddp","world_size":1},"schedule":{"lr0":0.1,"total_steps":400},'
        '"task":{"factory":"convergate.components.task.digits:DigitsTask"},"training":{"batch_size":64}}'
    )
    policy = '{"evaluation":{"metric":"accuracy","target":0.95},"promotion":{"model":"digits"}}'
    assert digests.training == hashlib.sha256(training.encode()).hexdigest()
    assert digests.policy == hashlib.sha256(policy.encode()).hexdigest()


@given(run_ids=st.lists(st.text(max_size=40), min_size=2, max_size=20, unique=True))
def test_a_seed_has_32_bits_and_belongs_to_its_run(run_ids: list[str]) -> None:
    seeds = [derive_seed(BASE, run_id) for run_id in run_ids]
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert seeds == [derive_seed(BASE, run_id) for run_id in run_ids]
    assert len(set(seeds)) == len(seeds)


def test_a_seed_follows_from_the_configs_seed_and_what_is_trained_alone() -> None:
    seed = derive_seed(BASE, "run")
    assert derive_seed(changed("seed", 18), "run") != seed
    assert derive_seed(changed("schedule.lr0", 0.2), "run") != seed
    assert derive_seed(changed("slo.min_runs", 9), "run") == seed
    assert derive_seed(changed("checkpoint.keep_last", 9), "run") == seed


def test_seeds_use_all_their_bits() -> None:
    seeds = [derive_seed(BASE, f"run-{number}") for number in range(64)]
    assert all(
        any(seed >> bit & 1 for seed in seeds) and not all(seed >> bit & 1 for seed in seeds) for bit in range(32)
    )
