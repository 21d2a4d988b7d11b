"""What every command shares: light help, one line for an error, and the exit codes that others rely on."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import click
import pytest
from convergate.cli.main import COMMANDS, cli, main
from convergate.components.errors import OutsideError, UserError

from ..documents import config_text
from .conftest import Convergate


def lines() -> Iterator[str]:
    """Every command, `checkpoints list` as well as `checkpoints`."""
    for name in COMMANDS:
        yield name
        command = cli.get_command(click.Context(cli), name)
        yield from (f"{name} {inner}" for inner in (command.commands if isinstance(command, click.Group) else ()))


HEAVY = ["torch", "mlflow", "kfp", "pandas", "great_expectations", "scipy", "sklearn", "matplotlib", "boto3", "numpy"]


def start(
    folder: Path, *arguments: str, stdout: IO[str] | int = subprocess.PIPE, **variables: str
) -> subprocess.Popen[str]:
    """The command line in a process of its own; its output is buffered, as a shell's user has it."""
    (folder / "run.yaml").write_text(config_text().replace("total_steps: 40", "total_steps: 50000"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | variables
    command = [sys.executable, "-m", "convergate.cli.main", *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )


def test_no_help_loads_anything_heavy() -> None:
    script = f"""
import json, sys
from convergate.cli.main import main
for arguments in (["--help"], *([*line.split(), "--help"] for line in {list(lines())})):
    sys.argv = ["convergate", *arguments]
    try:
        main()
    except SystemExit as ended:
        assert ended.code == 0, arguments
print(json.dumps([name for name in {HEAVY} if name in sys.modules]), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stderr) == []
    assert done.stdout.startswith("Usage: convergate [OPTIONS]")


@pytest.mark.parametrize("name", lines())
def test_every_command_shows_how_it_is_used(convergate: Convergate, name: str) -> None:
    answer = convergate(*name.split(), "--help")
    assert answer.code == 0
    assert f"Usage: convergate {name} " in answer.out
    examples = answer.out.partition("Example")[2]
    assert f"  convergate {name}" in examples or f" convergate {name}" in examples
    assert "--json" in answer.out


@pytest.mark.parametrize("name", lines())
def test_the_examples_are_valid_command_lines(name: str) -> None:
    command: click.Command = cli
    for part in name.split():
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), part)
        assert found is not None
        command = found
    assert command.help is not None
    examples = [line for line in command.help.splitlines() if f"convergate {name}" in line and line.startswith("  ")]
    assert examples
    for line in examples:
        words = shlex.split(line.partition(" > ")[0])
        command.make_context(name, words[words.index(name.rsplit(maxsplit=1)[-1]) + 1 :])


def test_help_lists_every_command_and_the_exit_codes(convergate: Convergate) -> None:
    answer = convergate("--help")
    assert [name for name in COMMANDS if f"\n  {name} " in answer.out] == list(COMMANDS)
    assert "Exit codes: 0 done and positive, 1 a negative verdict" in answer.out


def test_without_a_command_it_shows_its_help(convergate: Convergate) -> None:
    answer = convergate()
    assert answer.code == 2
    assert answer.out.startswith("Usage: convergate")


def test_it_tells_its_version(convergate: Convergate) -> None:
    assert convergate("--version").out == "convergate, version 0.1.0\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["retran"], "No such command 'retran' → convergate --help"),
        (["--jsn"], "No such option '--jsn' → convergate --help"),
        (["validate"], "Missing argument 'CONFIG' → convergate validate --help"),
        (["validate", "a", "b"], "Got unexpected extra argument (b) → convergate validate --help"),
        (["slo", "--csv"], "No such option '--csv' → convergate slo --help"),
        (["runs", "--limit", "0"], "Invalid value for '--limit': 0 is not in the range x>=1 → convergate runs --help"),
        (["rollback", "a.yaml"], "Missing option '--reason' → convergate rollback --help"),
        (["train", "a.yaml", "--resume", "x"], "--resume x: not a checkpoint → auto, never, or an s3:// URI"),
    ],
)
def test_bad_usage_is_one_line(convergate: Convergate, arguments: list[str], line: str) -> None:
    answer = convergate(*arguments)
    assert answer.code == 2
    assert answer.error == line


@pytest.mark.parametrize("command", ["schedule", "canary", "train", "retrain", "slo"])
def test_a_config_that_is_not_there_is_named(convergate: Convergate, command: str) -> None:
    answer = convergate(command, "none.yaml")
    assert answer.code == 2
    assert answer.out == ""
    assert answer.err.startswith("convergate: none.yaml: 1 problem\n")
    assert "does not exist" in answer.err


def test_s3_that_is_not_there_is_named(convergate: Convergate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    answer = convergate("runs", "--json")
    assert answer.code == 4
    assert "http://127.0.0.1:9" in answer.error
    assert "very-secret" not in answer.error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (UserError("a: b → c"), 2, "a: b → c"),
        (OutsideError("gone"), 4, "gone"),
        (PermissionError(13, "Permission denied", "out"), 2, "out: Permission denied"),
        (OSError(28, "No space left on device"), 4, "the system: No space left on device"),
        (ConnectionResetError(104, "Connection reset by peer"), 4, "the system: Connection reset by peer"),
        (ModuleNotFoundError("…", name="scipy"), 2, "scipy is not installed → pip install 'convergate[all]'"),
    ],
)
def test_what_a_command_raises_is_one_line_and_a_code(
    convergate: Convergate, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr("convergate.cli.configs.load_config", fail)
    answer = convergate("schedule", "run.yaml")
    assert answer.code == code
    assert answer.error == line


def test_an_extra_that_is_not_installed_is_named(convergate: Convergate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kfp", None)
    for name in [name for name in sys.modules if name.startswith("convergate.pipelines.retrain")]:
        monkeypatch.delitem(sys.modules, name)
    answer = convergate("compile")
    assert answer.code == 2
    assert answer.error == "kfp is not installed → pip install 'convergate[all]'"


@pytest.mark.parametrize("arguments", [["--debug", "schedule", "x"], ["schedule", "x", "--debug"]])
def test_debug_shows_the_trace(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["convergate", *arguments])
    with pytest.raises(UserError):
        main()


def test_a_bug_is_not_explained_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convergate.cli.configs.load_config", lambda _: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["convergate", "schedule", "run.yaml"])
    with pytest.raises(ZeroDivisionError):
        main()


class TestProcess:
    """What only a process of its own shows: pipes, a full disk, the terminal's encoding."""

    def test_a_reader_that_has_had_enough_is_no_error(self, tmp_path: Path) -> None:
        """More than a pipe holds, so that the writer meets the closed end."""
        process = start(tmp_path, "schedule", "run.yaml", "--csv")
        assert process.stdout is not None
        assert process.stdout.readline() == "step,lr\n"
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait(60) == 141

    def test_a_full_disk_is_one_line(self, tmp_path: Path) -> None:
        with Path("/dev/full").open("w") as full:
            process = start(tmp_path, "schedule", "run.yaml", stdout=full)
            _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (4, "convergate: the system: No space left on device\n")

    def test_a_terminal_without_our_signs_gets_others(self, tmp_path: Path) -> None:
        process = start(tmp_path, "schedule", "run.yaml", PYTHONIOENCODING="latin-1")
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
        assert f"4  0.1          {'?' * 50}" in out.splitlines()[1]
