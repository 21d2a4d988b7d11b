"""YAML to `RunConfig`: every problem at once, each with its path, value, reason and fix."""

import difflib
import typing
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ..errors import UserError
from .models import RunConfig


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a config. `fix` may be empty where the reason says it."""

    path: str
    reason: str
    value: str = ""
    fix: str = ""
    level: typing.Literal["error", "warning"] = "error"

    def lines(self, width: int = 30) -> str:
        """The problem as people read it: path and value, the reason, and the fix below it."""
        head = f"{self.path} = {self.value}" if self.value else self.path
        text = f"  {head:<{width}}  {self.reason}"
        return f"{text}\n{' ' * (width + 4)}→ {self.fix}" if self.fix else text


class ProblemsError(UserError):
    """A config with problems; `problems` holds them all."""

    def __init__(self, source: str, problems: list[Problem]) -> None:
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
        width = min(44, max(len(f"{p.path} = {p.value}" if p.value else p.path) for p in problems))
        super().__init__("\n".join([f"{source}: {count}", *(p.lines(width) for p in problems)]))
        self.problems = problems


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice; YAML 1.2 forbids it, PyYAML keeps the last silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(self.construct_object(key_node, deep=True))
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key `{key}` is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_config(path: str | Path) -> tuple[RunConfig, str]:
    """Read a config file; returns the config and its text.

    Raises:
        ProblemsError: with every problem of the file, also when it is missing, empty or not YAML.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise ProblemsError(str(path), [Problem("(file)", f"cannot be read: {reason}")]) from error
    return parse_config(text, source=str(path)), text


def parse_config(text: str, source: str = "config") -> RunConfig:
    """Parse the text of a config.

    Raises:
        ProblemsError: with every problem found.
    """
    try:
        raw = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ProblemsError(source, [_yaml_problem(error)]) from error
    if raw is None:
        raise ProblemsError(source, [Problem("(file)", "is empty", fix="start from manifests/configs/digits.yaml")])
    if not isinstance(raw, dict):
        raise ProblemsError(source, [Problem("(file)", f"is a {type(raw).__name__}, not a mapping of sections")])
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise ProblemsError(source, list(_problems(error))) from error


def _yaml_problem(error: Exception) -> Problem:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return Problem(f"line {mark.line + 1}, column {mark.column + 1}", f"not valid YAML: {error.problem}")
    return Problem("(file)", f"not valid YAML: {' '.join(str(error).split()) or type(error).__name__}")


def _problems(error: ValidationError) -> Iterator[Problem]:
    for item in error.errors(include_url=False):
        path = ".".join(str(part) for part in item["loc"]) or "(file)"
        kind, value = item["type"], item["input"]
        if kind == "extra_forbidden":
            guess = _closest(item["loc"])
            yield Problem(path, "unknown key" + (f"; did you mean `{guess}`?" if guess else ""))
        elif kind == "missing":
            yield Problem(path, "missing", fix="add it")
        elif kind == "value_error":
            reason, _, fix = str(item["ctx"]["error"]).partition(" → ")
            yield Problem(path, reason, fix=fix)
        else:
            yield Problem(path, _lower_first(item["msg"]), value=_short(value), fix=_fix(kind, value))


def _lower_first(message: str) -> str:
    return message[:1].lower() + message[1:]


def _short(value: object, limit: int = 40) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _fix(kind: str, value: object) -> str:
    if kind in ("float_type", "float_parsing", "int_type", "int_parsing") and isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return "a number, without quotes"
        return f"write {number!r}: YAML reads {value} as text"
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f"write {int(value)}"
    return ""


def _closest(location: tuple[int | str, ...]) -> str | None:
    """The known key nearest to the last part of `location`, where its section is known."""
    model: Any = RunConfig
    for part in location[:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        model = _section(field.annotation) if field is not None else None
    names = list(getattr(model, "model_fields", {}))
    matches = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.6)
    return matches[0] if matches else None


def _section(annotation: Any) -> Any:
    """The model inside `Section` or `Section | None`."""
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
