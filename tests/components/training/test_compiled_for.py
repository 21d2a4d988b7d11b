"""A step compiled for one launcher refuses a config that asks for the other, before it starts anything."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from convergate.canary.component import canary
from convergate.components.errors import UserError
from convergate.components.training.compiled_for import require_launcher
from convergate.components.training.component import train

from ...documents import config_text, make_config, make_plan

TRAINJOB = "distributed: {launcher: trainjob, nodes: 2}\n"


@pytest.mark.parametrize("face", [canary, train], ids=["canary", "train"])
def test_both_steps_refuse_it(face: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVERGATE_LAUNCHER", "local")
    (tmp_path / "plan").write_bytes(make_plan().to_json())
    files = [SimpleNamespace(path=str(tmp_path / name)) for name in ("plan", "document", "summary", "metrics")]
    with pytest.raises(UserError) as raised:
        face.python_func(config_text(more=TRAINJOB), *files)
    assert str(raised.value) == (
        "distributed.launcher = trainjob: this pipeline was compiled for local → convergate compile --launcher trainjob"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["plan"]


@pytest.mark.parametrize(("compiled", "more"), [("local", ""), ("trainjob", TRAINJOB), ("", ""), ("", TRAINJOB)])
def test_its_own_and_a_run_without_a_pipeline_pass(compiled: str, more: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVERGATE_LAUNCHER", compiled)
    require_launcher(make_config(more=more))
