"""The command line in this process: `convergate("slo", "run.yaml")` is its exit code and both streams; its server."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kfp_api
import pytest
from convergate.cli.main import main
from kfp_api import KfpApi

from ..documents import config_text

TOKEN = "eyJhbGciOi-very-secret"


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


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[KfpApi]:
    """A server that knows one token, asked without pauses; the caller's files lie in the folder."""
    monkeypatch.setattr("convergate.pipelines.watching.POLL_SECONDS", 0.01)
    monkeypatch.setattr("convergate.pipelines.kfp_api.PATIENCE_SECONDS", 3.0)
    monkeypatch.setattr("convergate.pipelines.submitting.LOOK_SECONDS", 0.05)
    monkeypatch.setattr("convergate.pipelines.submitting.SETTLING_SECONDS", 0.5)
    monkeypatch.setenv("CONVERGATE_COMMIT", "0123456789abcdef0123456789abcdef01234567")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    (tmp_path / "run.yaml").write_text(config_text())
    with kfp_api.kfp_api(token=TOKEN) as server:
        yield server


def to(api: KfpApi, *more: str) -> list[str]:
    """The arguments that lead a command to the server."""
    return ["run.yaml", "--host", api.url, "--token-file", "token", *more]
