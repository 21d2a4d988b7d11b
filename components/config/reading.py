"""The text of a config to plain data: YAML 1.2, with bounds on what a text may unfold to."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from .problems import Problem, shown

MAX_BYTES = 2**18
MAX_DEPTH = 64
MAX_VALUES = 50_000
"""Values with every alias written out: a few lines of aliases can stand for billions."""
_TOO_LARGE = Problem("(file)", f"is larger than {MAX_BYTES // 1024} KiB", fix="data belongs in files of its own")
_TAG = "tag:yaml.org,2002:"


class ReadingError(Exception):
    """The text is no config whatever its keys say; `problem` tells why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.reason)
        self.problem = problem


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema, decimal: `1e-4` is a number; `010`, `1:30`, `no` and `2026-11-05` are text.

    PyYAML alone reads YAML 1.1, where these are text, 8, 90, false and a date.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - as in its base


for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]{0,999})", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(rf"(?:{_pattern})\Z"), _first)


def read_text(path: str | Path) -> str:
    """The text of a config file.

    Raises:
        ReadingError: when it is missing, no regular text, or too large.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        fix = "the path of a run config, such as manifests/configs/digits.yaml"
        raise ReadingError(Problem("(file)", "does not exist", fix=fix)) from error
    except IsADirectoryError as error:
        raise ReadingError(Problem("(file)", "is a directory", fix="name a file in it")) from error
    except OSError as error:
        raise ReadingError(Problem("(file)", f"cannot be read: {error.strerror}")) from error
    if len(data) > MAX_BYTES:
        raise ReadingError(_TOO_LARGE)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        reason = f"is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}"
        raise ReadingError(Problem("(file)", reason, fix="save it as UTF-8")) from error


def read_yaml(text: str) -> tuple[Any, list[Problem]]:
    """The data in a text, and the keys that are given twice: the last of them counts.

    Raises:
        ReadingError: when the text is no YAML, or more than a config can be.
    """
    if len(text) > MAX_BYTES:
        raise ReadingError(_TOO_LARGE)
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None, []
        nodes = list(_unfolded(root))
        for node in nodes:
            _refuse_odd(loader, node)
        twice = _twice(nodes)  # before merge keys (`<<`) are written out
        return loader.construct_document(root), twice
    except yaml.MarkedYAMLError as error:
        where = _place(error.problem_mark) if error.problem_mark is not None else "(file)"
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise ReadingError(Problem(where, f"not valid YAML: {what}")) from error
    except RecursionError as error:
        raise ReadingError(Problem("(file)", f"is nested deeper than {MAX_DEPTH} levels")) from error
    except (yaml.YAMLError, ValueError) as error:
        raise ReadingError(Problem("(file)", f"not valid YAML: {' '.join(str(error).split())}")) from error


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


def _unfolded(root: yaml.Node) -> Iterator[yaml.Node]:
    """Every node, those under an alias once for each use; what refers to itself is nested too deep."""
    stack, count = [(root, 0)], 0
    while stack:
        node, depth = stack.pop()
        count += 1
        if depth > MAX_DEPTH:
            raise ReadingError(Problem(_place(node.start_mark), f"is nested deeper than {MAX_DEPTH} levels"))
        if count > MAX_VALUES:
            raise ReadingError(Problem("(file)", f"holds more than {MAX_VALUES:,} values, aliases written out"))
        yield node
        if isinstance(node, yaml.MappingNode):
            stack += [(child, depth + 1) for pair in reversed(node.value) for child in reversed(pair)]
        elif isinstance(node, yaml.SequenceNode):
            stack += [(child, depth + 1) for child in reversed(node.value)]


def _refuse_odd(loader: _Loader, node: yaml.Node) -> None:
    """Refuse a tag, other than `!!str`, that is written out, and text that is not Unicode."""
    plain = isinstance(node, yaml.ScalarNode) and node.style is None
    usual = loader.resolve(type(node), node.value, (plain, not plain))  # type: ignore[no-untyped-call]
    if node.tag not in (usual, f"{_TAG}str"):
        tag = shown(node.tag.replace(_TAG, "!!"))
        raise ReadingError(Problem(_place(node.start_mark), f"the tag {tag} has no place here", fix="leave it out"))
    if isinstance(node, yaml.ScalarNode) and any("\ud800" <= character <= "\udfff" for character in node.value):
        raise ReadingError(Problem(_place(node.start_mark), "half a surrogate pair is not text"))


def _twice(nodes: list[yaml.Node]) -> list[Problem]:
    problems = {}
    for node in nodes:
        seen: dict[str, str] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                continue
            place = _place(key.start_mark)
            if key.value in seen:
                reason = f"the key {shown(key.value)} is given twice, first at {seen[key.value]}"
                problems[place] = Problem(place, reason, fix="keep one")
            seen.setdefault(key.value, place)
    return list(problems.values())
