"""A task from its name in the config, with every way that this goes wrong in one line."""

import importlib
import inspect
import sys
from textwrap import shorten

from ..config.models import TaskConfig
from ..errors import UserError
from .protocol import Task

MESSAGE_CHARACTERS = 300
_METHODS = [name for name, _ in inspect.getmembers(Task, inspect.isfunction) if not name.startswith("_")]


def load_task(config: TaskConfig) -> Task:
    """Import `package.module:Class` and call it with the config's params; the current folder is importable.

    Raises:
        UserError: when the module, the class or a method is missing, or the params don't fit.
    """
    module_name, _, class_name = config.factory.partition(":")
    where = f"task.factory = {config.factory}"
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise UserError(f"{where}: {_import_failure(module_name, error)}") from error
    factory = getattr(module, class_name, None)
    if factory is None:
        classes = [name for name, value in vars(module).items() if inspect.isclass(value) and not name.startswith("_")]
        raise UserError(f"{where}: {module_name} has no {class_name} → one of {', '.join(sorted(classes)) or 'none'}")
    try:
        task = factory(**config.params)
    except (Exception, SystemExit) as error:
        raise UserError(f"task.params: {class_name} cannot be made: {_in_a_line(error)}") from error
    missing = [name for name in _METHODS if not callable(getattr(task, name, None))]
    if missing:
        raise UserError(f"{where}: the method {', '.join(missing)} is missing → see convergate.components.task.Task")
    loaded: Task = task
    return loaded


def _import_failure(module_name: str, error: BaseException) -> str:
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing is None:
        return f"importing it failed: {_in_a_line(error)}"
    if module_name == missing or module_name.startswith(f"{missing}."):
        return f"there is no module {missing} → install it, or run where it lies"
    return f"the module needs {missing}, which is not installed"


def _in_a_line(error: BaseException) -> str:
    return shorten(f"{type(error).__name__}: {error}", MESSAGE_CHARACTERS, placeholder=" …")
