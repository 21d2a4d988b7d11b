"""Every wrong input is a line with path, value, reason and fix; all of them at once; and never another error."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from convergate.components.config import (
    Problem,
    ProblemsError,
    RunConfig,
    config_digests,
    derive_seed,
    load_config,
    parse_config,
)
from convergate.components.config.preflight import Facts, preflight
from convergate.components.errors import ExitCode, UserError
from convergate.components.schedule import build_schedule
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Problems = Callable[[dict[str, Any] | str], dict[str, Problem]]
Parsed = Callable[..., RunConfig]
DIGITS = Path(__file__).parents[3] / "manifests" / "configs" / "digits.yaml"


def test_the_shipped_config_is_read_with_its_text() -> None:
    config, text = load_config(DIGITS)
    assert (config.experiment, config.seed, config.schedule.lr_min) == ("digits", 17, 0.001)
    assert text == DIGITS.read_text()
    assert parse_config(text) == config


# path, value → value as shown, reason, fix
WRONG_VALUES = [
    ("schedule.lr0", "fast", '"fast"', "must be a number", ""),
    ("schedule.lr0", "1e-4", '"1e-4"', "must be a number", "write 0.0001, without quotes"),
    ("schedule.lr0", "inf", '"inf"', "must be a number", ""),
    ("schedule.lr0", True, "true", "must be a number", ""),
    ("schedule.lr0", None, "null", "must be a number", ""),
    ("schedule.lr0", [0.1], "[0.1]", "must be a number", ""),
    ("schedule.lr0", 0, "0", "must be greater than 0", ""),
    ("schedule.lr0", -0.1, "-0.1", "must be greater than 0", ""),
    ("schedule.lr0", 10**400, "1" + "0" * 38 + "…", "is too large", ""),
    ("schedule.lr_min", 0.2, "0.2", "is above lr0 = 0.1", "at most 0.1; lr0/100, 0.001, is usual"),
    (
        "schedule.warmup.steps",
        500,
        "500",
        "not shorter than the run: total_steps is 400",
        "at most 399; 5 % of the run, 20, is usual",
    ),
    ("schedule.total_steps", 1e3, "1000.0", "must be an integer", "write 1000"),
    ("schedule.total_steps", 1.5, "1.5", "must be an integer", ""),
    ("schedule.total_steps", "400", '"400"', "must be an integer", "write 400, without quotes"),
    ("schedule.total_steps", False, "false", "must be an integer", ""),
    ("schedule.total_steps", 10**18, "1" + "0" * 18, "must be less than or equal to 9007199254740991", ""),
    ("seed", -3, "-3", "must be greater than or equal to 0", ""),
    ("seed", 2**32, "4294967296", "must be less than 4294967296", ""),
    ("seed", True, "true", "must be an integer", ""),
    ("schema_version", 2, "2", "not a version that this convergate reads", "1"),
    ("schema_version", True, "true", "must be an integer", ""),
    ("experiment", "Digits One", '"Digits One"', "not a name", "a-z, 0-9 and, between them, `.`, `_`, `-`; at most 63"),
    ("experiment", "", '""', "not a name", "a-z"),
    ("experiment", "digits\n", '"digits\\n"', "not a name", "a-z"),
    ("experiment", 7, "7", "must be text", 'write "7", in quotes'),
    ("owner.team", False, "false", "must be text", 'write "false", in quotes'),
    ("task.factory", "digits.py", '"digits.py"', "not a class's place", "package.module:Class"),
    ("task.params", [1], "[1]", "must be a mapping of keys to values", ""),
    ("task.params.n", 2**53, "9007199254740992", "beyond the exact integers of JSON", "at most 9007199254740991"),
    ("optimizer.kind", "adam", '"adam"', "must be 'sgd' or 'adamw'", ""),
    ("optimizer.momentum", 1, "1", "must be less than 1", ""),
    ("optimizer.betas", 0.9, "0.9", "must be a list", ""),
    ("optimizer.betas", [0.9, 0.99, 0.999], "[0.9, 0.99, 0.999]", "has too many values", ""),
    ("optimizer.grad_clip_norm", 0.0, "0.0", "must be greater than 0", ""),
    ("optimizer.groups", {"match": "a"}, '{"match": "a"}', "must be a list", ""),
    ("training", 64, "64", "must be a section: keys with values", ""),
    (
        "training.batch_size",
        63,
        "63",
        "does not divide over 2 processes × 1 accumulation steps",
        "a multiple of 2, such as 62",
    ),
    ("training.batch_size", 1, "1", "does not divide over 2 processes", "a multiple of 2, such as 2"),
    ("checkpoint.uri", "/mnt/here", '"/mnt/here"', "not an S3 location", "s3://bucket/prefix"),
    ("canary.max_steps", 5, "5", "is below min_steps = 20", "at least 20"),
    ("slo.convergence_rate", 1, "1", "must be less than 1", ""),
    ("promotion.alias", "challenger", '"challenger"', "convergate sets this alias itself", "champion is usual"),
]


@pytest.mark.parametrize(("path", "value", "shown", "reason", "fix"), WRONG_VALUES)
def test_a_wrong_value(problems: Problems, path: str, value: Any, shown: str, reason: str, fix: str) -> None:
    found = problems({"distributed.procs_per_node": 2, path: value})
    assert found.keys() == {path}
    problem = found[path]
    assert (problem.value, problem.level) == (shown, "error")
    assert problem.reason.startswith(reason)
    assert problem.fix.startswith(fix)
    assert bool(problem.fix) == bool(fix)


@pytest.mark.parametrize(
    ("path", "guess"),
    [
        ("schedul", "schedule"),
        ("schedule.lr-min", "lr_min"),
        ("schedule.warmup.step", "steps"),
        ("schedule.restarts.cycle_step", "cycle_steps"),
        ("training.early_stopping.patince", "patience"),
        ("evaluation.traget", "target"),
        ("zzz", None),
        ("slo.Ж", None),
    ],
)
def test_an_unknown_key_brings_the_nearest_known_one(problems: Problems, path: str, guess: str | None) -> None:
    found = problems({path: 1})[path]
    assert found.reason == "unknown key" + (f"; did you mean `{guess}`?" if guess else "")
    assert found.value == ""


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ({"matsch": "head.*"}, {
            "match": ("missing", "add `match: …`"),
            "matsch": ("unknown key; did you mean `match`?", ""),
        }),
        ({"match": "head(", "lr_scale": 0}, {
            "match": ("not a regular expression: 'missing ), unterminated subpattern at position 4'", "such as head.*"),
            "lr_scale": ("must be greater than 0", ""),
        }),
        ({"match": "(?\u2028", "weight_decay": -1}, {
            "match": ("not a regular expression: 'unknown extension ?\\u2028 at position 1'", "such as head.*"),
            "weight_decay": ("must be greater than or equal to 0", ""),
        }),
        ({"match": "a{99999999999}"}, {
            "match": ("not a regular expression: 'the repetition number is too large'", "such as head.*"),
        }),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_group_of_parameters(
    problems: Problems, group: dict[str, Any], expected: dict[str, tuple[str, str]]
) -> None:
    found = problems({"optimizer.groups": [{"match": "stem.*"}, group]})
    assert {path: (problem.reason, problem.fix) for path, problem in found.items()} == {
        f"optimizer.groups.1.{key}": text for key, text in expected.items()
    }


@pytest.mark.parametrize("name", [name for name, field in RunConfig.model_fields.items() if name != "schema_version"])
def test_a_key_that_is_left_empty(problems: Problems, name: str) -> None:
    found = problems({name: None})[name]
    assert found.value == "null"
    assert found.reason in ("must be a section: keys with values", "must be text", "must be an integer")
    if "section" in found.reason:
        assert found.fix == "leave the key out, or give it keys of its own"


@pytest.mark.parametrize(
    ("path", "fix"),
    [
        ("experiment", "add `experiment: …`"),
        ("task", "add `task: {factory: …}`"),
        ("schedule", "add `schedule: {lr0: …}`"),
        ("schedule.lr0", "add `lr0: …`"),
        ("evaluation", "add `evaluation: {metric: …, target: …}`"),
    ],
)
def test_a_missing_key_shows_how_it_is_written(raw: dict[str, Any], problems: Problems, path: str, fix: str) -> None:
    *sections, name = path.split(".")
    del (raw[sections[0]] if sections else raw)[name]
    assert problems({})[path] == Problem(path, "missing", fix=fix)


def test_the_problems_as_they_are_printed(raw: dict[str, Any]) -> None:
    raw["schedule"] |= {"warmup": {"steps": 500}, "lr_min": -1}
    raw["task"]["factory"] = "a_package.a_module.with_a_long_name"
    raw["schedul"] = {}
    with pytest.raises(ProblemsError) as caught:
        parse_config(json.dumps(raw), "digits.yaml")
    assert str(caught.value).splitlines() == [
        "digits.yaml: 4 problems",
        '  task.factory = "a_package.a_module.with_a_long_name"',
        "                                                not a class's place",
        "                                                → package.module:Class",
        "  schedule.lr_min = -1                          must be greater than or equal to 0",
        "  schedule.warmup.steps = 500                   not shorter than the run: total_steps is 400",
        "                                                → at most 399; 5 % of the run, 20, is usual",
        "  schedul                                       unknown key; did you mean `schedule`?",
    ]
    assert isinstance(caught.value, UserError)
    assert caught.value.exit_code == ExitCode.USAGE


def test_columns_are_as_wide_as_they_need_to_be(raw: dict[str, Any]) -> None:
    raw |= {"seed": -1, "owner": None}
    with pytest.raises(ProblemsError) as caught:
        parse_config(json.dumps(raw), "digits.yaml")
    assert str(caught.value).splitlines() == [
        "digits.yaml: 2 problems",
        "  seed = -1     must be greater than or equal to 0",
        "  owner = null  must be a section: keys with values",
        "                → leave the key out, or give it keys of its own",
    ]


@pytest.mark.parametrize("odd", ["\x1b[31mred", "two\nlines", "\u202eright to left", "a\u2028b", "k" * 1000, "a b"])
def test_nothing_in_a_config_can_break_or_colour_the_lines(raw: dict[str, Any], odd: str) -> None:
    raw |= {odd: 1, "experiment": odd, "task": {"factory": odd, "params": {odd: float("inf")}}}
    with pytest.raises(ProblemsError) as caught:
        parse_config(yaml.safe_dump(raw), "digits.yaml")
    lines = str(caught.value).splitlines()
    assert all(line.isprintable() and len(line) < 140 for line in lines)
    assert lines[0] == "digits.yaml: 4 problems"


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
_DATA = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | _SCALARS, inner)
)
_YAML_LIKE = st.text(alphabet="ab1: -\n\t[]{}&*!<>'\"#|?%@,.~=\\x0u\ud7ff\u2028é", max_size=60)


def never_anything_else(text: str) -> None:
    """A text is a config, with all that follows from one, or a list of problems."""
    config, lines = None, ["valid"]
    try:
        config = parse_config(text)
    except ProblemsError as error:
        lines = str(error).split("\n")
    assert all(line.isprintable() and line for line in lines)
    if config is None:
        assert len(lines) > 1
        return
    assert len(config_digests(config).training) == 64
    assert 0 <= derive_seed(config, "run") < 2**32
    total = min(config.total_steps(1797), 10**6)
    if not preflight(config, Facts(num_train_samples=1797)).errors:
        schedule = build_schedule(config.schedule, total_steps=total, batch_size=config.training.batch_size)
        assert schedule.lr(0) >= 0


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=100) | _YAML_LIKE)
def test_arbitrary_text(text: str) -> None:
    never_anything_else(text)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=200))
def test_arbitrary_bytes_of_a_file(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(data)
    with pytest.raises(ProblemsError):
        load_config(path)


@settings(max_examples=100, deadline=None)
@given(data=_DATA)
def test_arbitrary_data(data: Any) -> None:
    never_anything_else(yaml.safe_dump(data, allow_unicode=True))


def places(raw: Any) -> list[tuple[Any, Any]]:
    """Every container in nested data with every key of it."""
    inner = raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ()
    return [place for key, value in inner for place in ((raw, key), *places(value))]


FULL = {
    **yaml.safe_load(DIGITS.read_text()),
    "schedule": {
        "kind": "cosine_restarts",
        "lr0": 0.1,
        "lr_min": 0.01,
        "total_epochs": 20,
        "warmup": {"steps": 20, "start_lr": 0.0},
        "restarts": {"cycle_steps": 100, "cycle_mult": 2, "scale": 0.8, "ramp_steps": 5},
        "clip": {"floor": 1e-5, "ceiling": 1.0},
        "scale_with_batch": {"base_batch_size": 256, "rule": "sqrt"},
    },
}


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(draw=st.data())
def test_a_config_with_arbitrary_values_in_it(draw: st.DataObject) -> None:
    spoiled = deepcopy(FULL)
    for _ in range(draw.draw(st.integers(1, 3))):
        container, key = draw.draw(st.sampled_from(places(spoiled)))
        numbers = st.integers(0, 10**20) | st.floats(0, 1e308) | st.integers(0, 500)
        container[key] = draw.draw(numbers | _DATA)
    never_anything_else(yaml.safe_dump(spoiled, allow_unicode=True))
