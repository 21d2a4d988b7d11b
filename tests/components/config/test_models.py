"""What the schema derives, and which names it takes."""

from collections.abc import Callable
from typing import Any

import pytest
from convergate.components.config import ProblemsError, RunConfig
from convergate.components.config.models import CanaryConfig
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

Parsed = Callable[..., RunConfig]


def test_steps_are_given_or_follow_from_epochs(raw: dict[str, Any], parsed: Parsed) -> None:
    assert parsed().total_steps(1000) == 400
    del raw["schedule"]["total_steps"]
    epochs = parsed({"schedule.total_epochs": 3})
    assert epochs.steps_per_epoch(1000) == 15  # full batches of 64
    assert epochs.total_steps(1000) == 45
    assert epochs.total_steps(63) == 0


def test_a_document_of_the_config_is_the_config(parsed: Parsed) -> None:
    config = parsed({"optimizer.betas": [0.5, 0.75], "task.params": {"a": [1, {"b": None}]}})
    assert config.optimizer.betas == (0.5, 0.75)
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_a_config_is_immutable(parsed: Parsed) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        parsed().training.batch_size = 128


@pytest.mark.parametrize(
    ("fraction", "shortest", "longest", "total", "steps"),
    [
        (0.02, 20, 500, 400, 20),
        (0.02, 20, 500, 5000, 100),
        (0.02, 20, 500, 100_000, 500),
        (0.02, 20, 500, 7, 7),
        (1.0, 1, 10, 10, 10),
        (0.0, 1, 10, 10, 1),
    ],
)
def test_the_canary_is_a_fraction_of_the_run(
    fraction: float, shortest: int, longest: int, total: int, steps: int
) -> None:
    canary = CanaryConfig(steps_fraction=fraction, min_steps=shortest, max_steps=longest)
    assert canary.num_steps(total) == steps


@given(
    fraction=st.floats(0, 1),
    bounds=st.tuples(st.integers(1, 1000), st.integers(0, 1000)),
    total=st.integers(1, 10**9),
)
def test_the_canary_is_never_longer_than_the_run(fraction: float, bounds: tuple[int, int], total: int) -> None:
    canary = CanaryConfig(steps_fraction=fraction, min_steps=bounds[0], max_steps=sum(bounds))
    assert 1 <= canary.num_steps(total) <= min(total, sum(bounds))


@pytest.mark.parametrize("name", ["a", "7", "digits", "a.b_c-d", "x" * 63])
def test_a_name(parsed: Parsed, name: str) -> None:
    assert parsed({"experiment": name, "promotion.model": name}).promotion.model == name


@pytest.mark.parametrize("name", ["-a", "a-", "A", "a b", "a/b", "ä", "x" * 64, "a\n", "."])
def test_no_name(parsed: Parsed, name: str) -> None:
    with pytest.raises(ProblemsError, match=r"promotion.model = .*\s+not a name"):
        parsed({"promotion.model": name})


@pytest.mark.parametrize("uri", ["s3://bucket", "s3://bucket/", "s3://my.bucket-1/a/b_c=d"])
def test_a_place_on_s3(parsed: Parsed, uri: str) -> None:
    assert parsed({"checkpoint.uri": uri}).checkpoint.uri == uri


@pytest.mark.parametrize(
    "uri", ["bucket/a", "s3://", "s3://ab", "s3://Bucket/a", "s3:///a", "s3://bucket/a b", "http://x"]
)
def test_no_place_on_s3(parsed: Parsed, uri: str) -> None:
    with pytest.raises(ProblemsError, match="not an S3 location"):
        parsed({"checkpoint.uri": uri})


PINNED = f"s3://other/run/attempt-001-step-000000400@sha256:{'0a' * 32}"


@pytest.mark.parametrize("init_from", ["champion", "s3://other/a@b/c", PINNED, None])
def test_where_weights_begin(parsed: Parsed, init_from: str | None) -> None:
    assert parsed({"training.init_from": init_from}).training.init_from == init_from


@pytest.mark.parametrize(
    "init_from",
    ["Champion", "challenger", "/a", "s3://other", "s3://other/", "s3://Other/a", "s3://other/a b", PINNED[:-1],
     PINNED + "0", PINNED.upper(), PINNED.replace("0a", "0A"), PINNED + PINNED[-72:], "s3://other/a@sha256:", ""],
)  # fmt: skip
def test_where_weights_do_not_begin(parsed: Parsed, init_from: str) -> None:
    with pytest.raises(
        ProblemsError, match=r"not a checkpoint\n.*→ champion, or s3://bucket/prefix, pinned by @sha256:"
    ):
        parsed({"training.init_from": init_from})


@pytest.mark.parametrize("factory", ["task:Task", "a.b.c:Täsk", "_a:_B"])
def test_a_task(parsed: Parsed, factory: str) -> None:
    assert parsed({"task.factory": factory}).task.factory == factory


@pytest.mark.parametrize("factory", ["task", "task:", ":Task", "a.b.Task", "a:b.c", "a/b.py:Task", "a:Task()", "1a:B"])
def test_no_task(parsed: Parsed, factory: str) -> None:
    with pytest.raises(ProblemsError, match="package.module:Class"):
        parsed({"task.factory": factory})


def test_the_batch_divides_over_processes_and_accumulation(parsed: Parsed) -> None:
    values = {"distributed.nodes": 2, "distributed.procs_per_node": 4, "training.grad_accumulation": 4}
    assert parsed(values).distributed.world_size == 8
    with pytest.raises(ProblemsError, match="8 processes × 4 accumulation steps\n.*a multiple of 32, such as 64"):
        parsed({**values, "training.batch_size": 72})
