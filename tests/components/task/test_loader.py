"""A task from its name: found, called with its params, or refused in one line that says what to mend."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from convergate.components.config.models import TaskConfig
from convergate.components.errors import ExitCode, UserError
from convergate.components.task import Task, load_task
from convergate.components.task.digits import DigitsTask

DIGITS = "convergate.components.task.digits:DigitsTask"
SOURCE = """
from convergate.components.task.digits import DigitsTask
CONSTANT = 3

class Mine(DigitsTask):
    pass

class Half:
    def model(self): ...
    def loss(self, model, batch): ...
    scores = None

class Strict:
    def __init__(self, width):
        raise ValueError("width has to be even,\\nand positive")

class Quitting:
    def __init__(self):
        raise SystemExit("no data here")

def made(width):
    return Mine(width=width)
"""
MODULES = {
    "tasks": SOURCE,
    "broken": "def task(:\n",
    "raising": "raise RuntimeError('two\\nlines')\n",
    "quitting": "import sys\nsys.exit('run me as a script')\n",
    "needing": "import a_library_that_nobody_has\n",
    "needing_a_part": "import json.no_such_part\n",
    "vague": "raise ModuleNotFoundError('install the other thing')\n",
    "relative": "from . import sibling\n",
    "endless": "raise ValueError('word ' * 1000)\n",
}

Load = Callable[..., Task]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load from a package of odd modules in the current folder; its name is PACKAGE in messages."""
    package = f"package_{uuid4().hex[:8]}"
    (tmp_path / package).mkdir()
    for name, source in MODULES.items():
        (tmp_path / package / f"{name}.py").write_text(source)
    monkeypatch.chdir(tmp_path)

    def loaded(factory: str, **params: Any) -> Task:
        return load_task(TaskConfig(factory=factory.replace("PACKAGE", package), params=params))

    loaded.package = package  # type: ignore[attr-defined]
    return loaded


def refusal(load: Load, factory: str, **params: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(factory, **params)
    assert caught.value.exit_code == ExitCode.USAGE
    text = str(caught.value).replace(load.package, "PACKAGE")  # type: ignore[attr-defined]
    assert "\n" not in text
    assert len(text) < 500
    return text


def test_the_shipped_task_is_loaded_with_its_params(load: Load) -> None:
    task = load(DIGITS, width=8, split_seed=3)
    assert isinstance(task, DigitsTask)
    assert (task.width, task.split_seed) == (8, 3)
    assert isinstance(task, Task)


def test_a_module_of_the_current_folder_and_a_function_do(load: Load) -> None:
    assert isinstance(load("PACKAGE.tasks:Mine"), DigitsTask)
    made = load("PACKAGE.tasks:made", width=4)
    assert isinstance(made, DigitsTask)
    assert made.width == 4


REFUSED = {
    "nobodys_module:Task": "there is no module nobodys_module → install it, or run where it lies",
    "nobodys_module.tasks:Task": "there is no module nobodys_module → install it, or run where it lies",
    "PACKAGE.none:Task": "there is no module PACKAGE.none → install it, or run where it lies",
    "PACKAGE..tasks:Task": "there is no module PACKAGE. → install it, or run where it lies",
    "json.decoder.part:Task": "there is no module json.decoder.part → install it, or run where it lies",
    "PACKAGE.needing:Task": "the module needs a_library_that_nobody_has, which is not installed",
    "PACKAGE.needing_a_part:Task": "the module needs json.no_such_part, which is not installed",
    "PACKAGE.vague:Task": "importing it failed: ModuleNotFoundError: install the other thing",
    "PACKAGE.broken:Task": "importing it failed: SyntaxError: invalid syntax (broken.py, line 1)",
    "PACKAGE.raising:Task": "importing it failed: RuntimeError: two lines",
    "PACKAGE.quitting:Task": "importing it failed: SystemExit: run me as a script",
    "PACKAGE.relative:Task": "importing it failed: ImportError: cannot import name 'sibling' from 'PACKAGE'",
    "PACKAGE.tasks:Missing": "PACKAGE.tasks has no Missing → one of DigitsTask, Half, Mine, Quitting, Strict",
    "PACKAGE.tasks:Half": "the method dataset, example, scores, table, table_spec is missing"
    " → see convergate.components.task.Task",
}


@pytest.mark.parametrize(("factory", "reason"), REFUSED.items(), ids=REFUSED.keys())
def test_what_cannot_be_loaded_is_said(load: Load, factory: str, reason: str) -> None:
    assert refusal(load, factory).startswith(f"task.factory = {factory}: {reason}")


@pytest.mark.parametrize(
    ("name", "params", "cause"),
    [
        ("Strict", {"width": 3}, "ValueError: width has to be even, and positive"),
        ("Strict", {}, "TypeError: Strict.__init__() missing 1 required positional argument: 'width'"),
        ("Mine", {"depth": 3}, "TypeError: DigitsTask.__init__() got an unexpected keyword argument 'depth'"),
        ("Quitting", {}, "SystemExit: no data here"),
        ("CONSTANT", {}, "TypeError: 'int' object is not callable"),
    ],
)
def test_params_that_do_not_fit_are_said(load: Load, name: str, params: dict[str, Any], cause: str) -> None:
    assert refusal(load, f"PACKAGE.tasks:{name}", **params) == f"task.params: {name} cannot be made: {cause}"


def test_an_endless_error_is_cut(load: Load) -> None:
    assert refusal(load, "PACKAGE.endless:Task").endswith("word …")
