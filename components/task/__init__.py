"""The Task protocol, its loader, and the shipped tasks.

- `protocol`: `Task` and `TableSpec`, what convergate needs of a user's model and data.
- `loader`: `load_task`, from the config's `package.module:Class`.
- `digits`: scikit-learn's handwritten digits; `resnet`: its model (imports torch).
"""

from .loader import load_task
from .protocol import SPLITS, Split, TableSpec, Task

__all__ = ["SPLITS", "Split", "TableSpec", "Task", "load_task"]
