"""Where a config's workers start: several nodes need a launcher, and a compiled step is for one launcher alone."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from convergate.canary.component import canary
from convergate.components.config import parse_config
from convergate.components.errors import UserError
from convergate.components.training.component import train
from convergate.components.training.job import Phase
from convergate.components.training.start import require_launcher, start

from ...documents import config_text as documents_text
from ...documents import make_config, make_plan
from ...two_nodes import config_text, make_job

TRAINJOB = "distributed: {launcher: trainjob, nodes: 2}\n"


@pytest.mark.parametrize(("phase", "key"), [("train", "distributed"), ("canary", "canary")])
def test_this_machine_is_one_node(phase: Phase, key: str) -> None:
    text = config_text("s3://absent").replace("launcher: trainjob", "launcher: local") + "canary: {nodes: 2}\n"
    message = rf"{key}\.nodes = 2: this machine is one node → distributed.launcher: trainjob"
    with pytest.raises(UserError, match=message):
        start(parse_config(text), text, [make_job("s3://absent", text, "run")], phase, max_restarts=0)


@pytest.mark.parametrize("face", [canary, train], ids=["canary", "train"])
def test_both_steps_refuse_it(face: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVERGATE_LAUNCHER", "local")
    (tmp_path / "plan").write_bytes(make_plan().to_json())
    files = [SimpleNamespace(path=str(tmp_path / name)) for name in ("plan", "document", "summary", "metrics")]
    with pytest.raises(UserError) as raised:
        face.python_func(documents_text(more=TRAINJOB), *files)
    assert str(raised.value) == (
        "distributed.launcher = trainjob: this pipeline was compiled for local → convergate compile --launcher trainjob"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["plan"]


@pytest.mark.parametrize(("compiled", "more"), [("local", ""), ("trainjob", TRAINJOB), ("", ""), ("", TRAINJOB)])
def test_its_own_and_a_run_without_a_pipeline_pass(compiled: str, more: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVERGATE_LAUNCHER", compiled)
    require_launcher(make_config(more=more))
