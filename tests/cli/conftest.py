"""The command line in this process: `convergate("slo", "run.yaml")`, with its exit code and both streams."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from convergate.cli.main import main


@dataclass(frozen=True)
class Answer:
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line that an error is; nothing else was said."""
        assert self.out == ""
        assert self.err.startswith("convergate: ")
        assert self.err.count("\n") == 1
        return self.err.removeprefix("convergate: ").rstrip("\n")


Convergate = Callable[..., Answer]


@pytest.fixture
def convergate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Convergate:
    """Runs a command in a fresh folder, until it ends the process."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Answer:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["convergate", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return Answer(ended.value.code, *capsys.readouterr())

    return run
