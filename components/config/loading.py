"""YAML to `RunConfig`: every problem at once, each with its path, value, reason and fix."""

import difflib
import math
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from .models import RunConfig
from .problems import Problem, ProblemsError, cut, shown
from .reading import ReadingError, read_text, read_yaml

_REASONS = {
    "float_type": "must be a number",
    "int_type": "must be an integer",
    "string_type": "must be text",
    "tuple_type": "must be a list",
    "too_long": "has too many values",
    "dict_type": "must be a mapping of keys to values",
    "model_type": "must be a section: keys with values",
}
"""By pydantic's type of error, where its own words name types of Python."""


def load_config(path: str | Path) -> tuple[RunConfig, str]:
    """Read a config file; returns the config and its text.

    Raises:
        ProblemsError: with every problem of the file, also when it is missing, empty or not YAML.
    """
    try:
        text = read_text(path)
    except ReadingError as error:
        raise ProblemsError(str(path), [error.problem]) from error
    return parse_config(text, source=str(path)), text


def parse_config(text: str, source: str = "config") -> RunConfig:
    """Parse the text of a config.

    Raises:
        ProblemsError: with every problem found.
    """
    try:
        raw, problems = read_yaml(text)
    except ReadingError as error:
        raise ProblemsError(source, [error.problem]) from error
    if raw is None:
        problems.append(Problem("(file)", "is empty", fix="start from manifests/configs/digits.yaml"))
    elif not isinstance(raw, dict):
        kind = "list" if isinstance(raw, list) else "single value"
        problems.append(Problem("(file)", f"is a {kind}, not a mapping of sections", fix="schema_version: 1, …"))
    else:
        try:
            config = RunConfig.model_validate(raw)
        except ValidationError as error:
            problems += _problems(error)
    if problems:
        raise ProblemsError(source, problems)
    return config


def _problems(error: ValidationError) -> Iterator[Problem]:
    for item in error.errors(include_url=False):
        location = tuple(part for part in item["loc"] if part != "[key]")
        path, kind, value = _path(location), item["type"], shown(item["input"])
        if len(location) < len(item["loc"]) or kind == "invalid_key":
            path = _path((*location[:-1], value))
            yield Problem(path, "the key is not text", fix="put the key in quotes")
        elif kind == "extra_forbidden":
            guess = _closest(location)
            yield Problem(path, "unknown key" + (f"; did you mean `{guess}`?" if guess else ""))
        elif kind == "missing":
            yield Problem(path, "missing", fix=f"add {_example(location)}")
        elif kind in ("value_error", "finding"):
            text = str(item["ctx"]["error"]) if kind == "value_error" else item["msg"]
            reason, _, fix = text.partition(" → ")
            yield Problem(path, reason, value=value, fix=fix)
        else:
            reason = _REASONS.get(kind) or item["msg"].replace("Input should be", "must be").replace("a valid ", "a ")
            if kind == "float_type" and type(item["input"]) is int:
                reason = "is too large"
            yield Problem(path, reason, value=value, fix=_fix(kind, item["input"]))


def _path(location: tuple[int | str, ...]) -> str:
    """The keys to a value, those quoted that are not plain words."""
    parts = [str(part) for part in location]
    return ".".join(part if part.isprintable() and " " not in part else shown(part) for part in map(cut, parts))


def _fix(kind: str, value: object) -> str:
    if kind in ("model_type", "dict_type") and value is None:
        return "leave the key out, or give it keys of its own"
    if kind == "string_type" and isinstance(value, bool | int | float):
        return f'write "{shown(value)}", in quotes'
    if kind not in ("float_type", "int_type") or not isinstance(value, str | float):
        return ""
    try:
        number = float(value)
    except ValueError:
        return ""
    whole = number.is_integer()
    if not math.isfinite(number) or (kind == "int_type" and not whole):
        return ""
    return f"write {int(number) if whole else repr(number)}" + (", without quotes" if isinstance(value, str) else "")


def _example(location: tuple[int | str, ...]) -> str:
    """How a missing key is written, with the keys that it needs itself."""
    model = _section_at(location)
    needed = [name for name, field in model.model_fields.items() if field.is_required()] if model is not None else []
    return f"`{location[-1]}: " + (f"{{{', '.join(f'{name}: …' for name in needed)}}}`" if needed else "…`")


def _closest(location: tuple[int | str, ...]) -> str | None:
    """The known key nearest to the last part of `location`, where its section is known."""
    model = _section_at(location[:-1])
    names = list(model.model_fields) if model is not None else []
    matches = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.6)
    return matches[0] if matches else None


def _section_at(location: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The model of the section at a path; None where there is none."""
    model: type[BaseModel] | None = RunConfig
    for part in location:
        if isinstance(part, int):  # an item of a list of sections
            continue
        field = model.model_fields.get(str(part)) if model is not None else None
        model = _section(field.annotation) if field is not None else None
    return model


def _section(annotation: Any) -> type[BaseModel] | None:
    """The model inside `Section`, `Section | None` or `tuple[Section, ...]`."""
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
