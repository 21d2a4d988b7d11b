"""The text of a config: YAML 1.2, within bounds, and one line for whatever is neither."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from convergate.components.config import Problem, ProblemsError, load_config, parse_config

Problems = Callable[[dict[str, Any] | str], dict[str, Problem]]
DIGITS = Path(__file__).parents[3] / "manifests" / "configs" / "digits.yaml"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("+1.5e+2", 150.0),
        (".5", 0.5),
        ("3.", 3.0),
        ("-0", 0),
        ("9007199254740991", 2**53 - 1),
        ("true", True),
        ("~", None),
        ("", None),
        ("010", "010"),
        ("1_000", "1_000"),
        ("0x1F", "0x1F"),
        ("1:30", "1:30"),
        ("no", "no"),
        ("On", "On"),
        ("2026-11-05", "2026-11-05"),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("wörter ✓ 漢字 🙂", "wörter ✓ 漢字 🙂"),
    ],
)
def test_a_value_is_read_as_yaml_1_2_has_it(raw: dict[str, Any], written: str, read: Any) -> None:
    del raw["task"]
    text = yaml.safe_dump(raw) + f"task:\n  factory: a:B\n  params:\n    value: {written}\n"
    value = parse_config(text).task.params["value"]
    assert value == read
    assert type(value) is type(read)


@pytest.mark.parametrize("written", [".inf", "-.INF", ".nan", "1e999"])
def test_a_number_that_is_not_finite(raw: dict[str, Any], problems: Problems, written: str) -> None:
    text = yaml.safe_dump(raw).replace("lr0: 0.1", f"lr0: {written}") + "optimizer: {betas: [0.5, .nan]}\n"
    found = problems(text)
    assert found.keys() == {"schedule.lr0", "optimizer.betas.1"}
    assert found["optimizer.betas.1"].reason == "must be a finite number"


def test_anchors_and_merge_keys_are_written_out(raw: dict[str, Any]) -> None:
    del raw["schedule"], raw["training"]
    text = yaml.safe_dump(raw) + (
        "training: &t {batch_size: &b 64, eval_every_steps: &n 20}\n"
        "schedule:\n  lr0: 0.1\n  total_steps: 400\n  scale_with_batch: {base_batch_size: *b}\n"
        "  warmup:\n    <<: {steps: *n, start_lr: 0.05}\n    steps: 30\n"
    )
    schedule = parse_config(text).schedule
    assert schedule.scale_with_batch is not None
    assert schedule.scale_with_batch.base_batch_size == 64
    assert (schedule.warmup.steps, schedule.warmup.start_lr) == (30, 0.05)


def nested(levels: int) -> str:
    return "x: " + "[" * levels + "]" * levels


BOMB = "a0: &a0 [lol]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 12)
)
MERGE_BOMB = "a0: &a0 {k: v}\n" + "".join(
    f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 9)}]}}\n" for level in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "path", "reason"),
    [
        ("", "(file)", "is empty"),
        ("\n  \n# only a comment\n", "(file)", "is empty"),
        ("---\n...\n", "(file)", "is empty"),
        ("null", "(file)", "is empty"),
        ("- a\n- b\n", "(file)", "is a list, not a mapping of sections"),
        ("hello", "(file)", "is a single value, not a mapping of sections"),
        ("42", "(file)", "is a single value, not a mapping of sections"),
        ("a: b: c", "line 1, column 5", "not valid YAML: mapping values are not allowed here"),
        ("a: [1, 2", "line 1, column 9", "not valid YAML: while parsing a flow sequence, expected ',' or ']'"),
        ("\tkey: 1", "line 1, column 1", "not valid YAML: while scanning for the next token, found character '\\t'"),
        ("a: *nowhere", "line 1, column 4", "not valid YAML: found undefined alias 'nowhere'"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1", "not valid YAML: expected a single document in the stream, but"),
        ("? [a, b]\n: 1\n", "line 1, column 3", "not valid YAML: while constructing a mapping, found unhashable key"),
        ("a: {<<: 1}", "line 1, column 9", "not valid YAML: while constructing a mapping, expected a mapping"),
        ("a: \x00", "(file)", "not valid YAML: unacceptable character #x0000"),
        ('a: "\\ud800"', "line 1, column 4", "half a surrogate pair is not text"),
        ('"\\udfff": 1', "line 1, column 1", "half a surrogate pair is not text"),
        (
            "a: !!python/object:os.system {}",
            "line 1, column 4",
            'the tag "!!python/object:os.system" has no place here',
        ),
        ("a: !!set {x}", "line 1, column 4", 'the tag "!!set" has no place here'),
        ("a: !!int ''", "line 1, column 4", 'the tag "!!int" has no place here'),
        ("a: !!timestamp x", "line 1, column 4", 'the tag "!!timestamp" has no place here'),
        ("a: !<%1B[31m> x", "line 1, column 4", "the tag "),
        ("a: &a [*a]", "line 1, column 4", "is nested deeper than 64 levels"),
        ("a: &a {b: *a}", "line 1, column 8", "is nested deeper than 64 levels"),
        (nested(100), "line 1, column 68", "is nested deeper than 64 levels"),
        (nested(50_000), "(file)", "is nested deeper than 64 levels"),
        (BOMB, "(file)", "holds more than 50,000 values, aliases written out"),
        (MERGE_BOMB, "(file)", "holds more than 50,000 values, aliases written out"),
        ("a: " + "x" * 2**18, "(file)", "is larger than 256 KiB"),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_a_text_that_is_no_config(problems: Problems, text: str, path: str, reason: str) -> None:
    found = problems(text)
    assert found.keys() == {path}
    assert found[path].reason.startswith(reason)


def test_as_deep_and_as_large_as_may_be(problems: Problems) -> None:
    assert problems(nested(63))["x"].reason == "unknown key"
    assert problems("x: [" + "1, " * 40_000 + "1]")["x"].reason == "unknown key"


def test_every_key_that_is_given_twice_is_reported_beside_what_else_is_wrong(
    raw: dict[str, Any], problems: Problems
) -> None:
    text = yaml.safe_dump(raw) + "seed: 1\nowner: {team: a, team: b}\nseed: -2\n"
    found = problems(text)
    lines = text.count("\n")
    assert found == {
        f"line {lines}, column 1": Problem(
            f"line {lines}, column 1",
            f'the key "seed" is given twice, first at line {lines - 2}, column 1',
            fix="keep one",
        ),
        f"line {lines - 1}, column 18": Problem(
            f"line {lines - 1}, column 18",
            f'the key "team" is given twice, first at line {lines - 1}, column 9',
            fix="keep one",
        ),
        "seed": Problem("seed", "must be greater than or equal to 0", value="-2"),
    }


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("1: a", "1"),
        ("true: a", "true"),
        ("~: a", "null"),
        ("task: {factory: a:B, params: {1: a}}", "task.params.1"),
        ("task: {factory: a:B, params: {a: {b: [{2.5: a}]}}}", "task.params.a.b.0.2.5"),
    ],
)
def test_a_key_that_is_not_text(problems: Problems, text: str, path: str) -> None:
    found = problems(text)[path]
    assert "the key is not text" in found.reason
    assert found.fix == "put the key in quotes"


@pytest.mark.parametrize(
    ("content", "reason", "fix"),
    [
        (b"", "is empty", "start from manifests/configs/digits.yaml"),
        ("größe: 1".encode("latin-1"), "is not UTF-8 text: byte 2 is 0xf6", "save it as UTF-8"),
        ("a: 1".encode("utf-16"), "is not UTF-8 text: byte 0 is 0xff", "save it as UTF-8"),
        (bytes(range(256)), "is not UTF-8 text: byte 128 is 0x80", "save it as UTF-8"),
        ("é".encode() * 2**18, "is larger than 256 KiB", "data belongs in files of its own"),
    ],
)
def test_a_file_that_is_no_config(tmp_path: Path, content: bytes, reason: str, fix: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ProblemsError) as caught:
        load_config(path)
    assert caught.value.problems == [Problem("(file)", reason, fix=fix)]
    assert str(caught.value).startswith(f"{path}: 1 problem\n  (file)  {reason}")


def test_a_path_that_is_no_file(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.yaml", "does not exist"), (tmp_path, "is a directory")):
        with pytest.raises(ProblemsError) as caught:
            load_config(str(path))
        assert caught.value.problems[0].reason == reason
        assert caught.value.problems[0].fix
    with pytest.raises(ProblemsError, match="cannot be read: Not a directory"):
        load_config(DIGITS / "run.yaml")
    with pytest.raises(ProblemsError, match="larger than 256 KiB"):
        load_config("/dev/zero")


def test_windows_line_ends_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + DIGITS.read_bytes().replace(b"\n", b"\r\n"))
    assert load_config(path)[0] == load_config(DIGITS)[0]
