"""The Task protocol, its loader, and the shipped tasks.

- `protocol`: `Task` and `TableSpec`, what convergate needs of a user's model and data.
- `loader`: `load_task`, from the config's `package.module:Class`.
- `digits`: scikit-learn's handwritten digits; `resnet`: its model (imports torch).
- `tabular`: scikit-learn's breast cancer data, and a network of two hidden layers.
- `stdlib_text`: the source text of Python's standard library; `gpt`: its model (imports torch).
- `transfer`: a backbone pretrained on the digits 0 to 4 learns 5 to 9.
- `splits`: the stratified split of the tasks with classes.
"""

from .loader import load_task
from .protocol import SPLITS, Split, TableSpec, Task

__all__ = ["SPLITS", "Split", "TableSpec", "Task", "load_task"]
