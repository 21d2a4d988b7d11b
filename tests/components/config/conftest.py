"""A config to spoil, and what is said of it then."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from convergate.components.config import Problem, ProblemsError, RunConfig, parse_config

Raw = dict[str, Any]


@pytest.fixture
def raw() -> Raw:
    """A small config that is valid."""
    return {
        "schema_version": 1,
        "experiment": "digits",
        "task": {"factory": "convergate.components.task.digits:DigitsTask"},
        "schedule": {"lr0": 0.1, "total_steps": 400},
        "training": {"batch_size": 64},
        "evaluation": {"metric": "accuracy", "target": 0.95},
        "promotion": {"model": "digits"},
    }


def put(raw: Raw, path: str, value: Any) -> Raw:
    """`raw` with the value at a dotted path, through sections that may not be there yet."""
    *sections, name = path.split(".")
    inner = raw
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[name] = value
    return raw


@pytest.fixture
def parsed(raw: Raw) -> Callable[..., RunConfig]:
    """The config with some values put at dotted paths."""

    def parse(values: Raw | None = None) -> RunConfig:
        for path, value in (values or {}).items():
            put(raw, path, value)
        return parse_config(json.dumps(raw))

    return parse


@pytest.fixture
def problems(raw: Raw) -> Callable[..., dict[str, Problem]]:
    """What is wrong with a text, or with the config after some values are put at dotted paths; by path."""

    def found(values: Raw | str) -> dict[str, Problem]:
        if isinstance(values, dict):
            for path, value in values.items():
                put(raw, path, value)
        with pytest.raises(ProblemsError) as caught:
            parse_config(values if isinstance(values, str) else json.dumps(raw), "run.yaml")
        assert len({problem.path for problem in caught.value.problems}) == len(caught.value.problems)
        return {problem.path: problem for problem in caught.value.problems}

    return found
