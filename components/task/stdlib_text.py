"""The source text of Python's standard library, character by character, as it lies beside the running interpreter.

The text changes between Python's versions, the patch versions too, and with it the number of samples and the data
digest: pin `data.snapshot` only together with the interpreter. The model is the same: its vocabulary is fixed.
"""

import sysconfig
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .protocol import Split, TableSpec

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn
    from torch.utils.data import Dataset

FILES: dict[Split, tuple[str, ...]] = {
    "train": (
        *("argparse", "ast", "base64", "bdb", "cmd", "codecs", "contextlib", "dataclasses", "difflib"),
        *("dis", "doctest", "enum", "ftplib", "functools", "gettext", "heapq", "imaplib", "inspect"),
        *("ipaddress", "mailbox", "mimetypes", "optparse", "os", "pdb", "pickle", "plistlib", "poplib"),
        *("pprint", "random", "selectors", "shutil", "smtplib", "socketserver", "statistics", "subprocess"),
        *("tarfile", "threading", "traceback", "typing", "uuid", "weakref"),
    ),
    "val": ("calendar", "gzip", "shlex", "textwrap"),
    "test": ("configparser", "csv", "fractions", "tempfile"),
}
"""Modules in pure Python, each of one file, that every CPython from 3.11 on has: a file's text is in one split."""
MAX_CHARACTERS = 16_384
"""Of each file, from its start."""
WINDOW = 64
"""Characters that the model sees of a sample."""
ALPHABET = "\n" + "".join(map(chr, range(ord(" "), ord("~") + 1)))
"""A character's code is one more than its place in here; any other character's is 0."""
VOCABULARY = len(ALPHABET) + 1


class StdlibTextTask:
    """A small GPT that predicts each next character of 64.

    Args:
        width: of the model.
        num_blocks: of attention and network.
        num_heads: of each attention; divides the width.
    """

    def __init__(self, width: int = 64, num_blocks: int = 2, num_heads: int = 4) -> None:
        self.width, self.num_blocks, self.num_heads = width, num_blocks, num_heads

    def model(self) -> "nn.Module":
        """See `Task`."""
        from .gpt import GPT

        return GPT(VOCABULARY, WINDOW, self.width, self.num_blocks, self.num_heads)

    def dataset(self, split: Split) -> "Dataset[Any]":
        """Pairs of a window and the window one character on, int64 [64] each."""
        import torch
        from torch.utils.data import TensorDataset

        windows = torch.from_numpy(self._windows[split].astype(np.int64))
        return TensorDataset(windows[:, :-1], windows[:, 1:])

    def loss(self, model: "nn.Module", batch: Any) -> "Tensor":
        """Mean cross-entropy of a next character, in nats."""
        from torch.nn.functional import cross_entropy

        codes, following = batch
        return cross_entropy(model(codes).flatten(0, 1), following.flatten())

    def scores(self, model: "nn.Module", batch: Any) -> "dict[str, Tensor]":
        """Per-sample means over its characters: `loss` (cross-entropy in nats) and `accuracy` (share that is right)."""
        from torch.nn.functional import cross_entropy

        codes, following = batch
        logits = model(codes).float()
        return {
            "loss": cross_entropy(logits.transpose(1, 2), following, reduction="none").mean(dim=1),
            "accuracy": (logits.argmax(dim=2) == following).float().mean(dim=1),
        }

    def example(self) -> "Tensor":
        """Two windows of line ends."""
        import torch

        return torch.full((2, WINDOW), _codes("\n").item())

    def table(self) -> "pd.DataFrame":
        """One row a window: character_0 … character_63 as codes, the code after them as label, split."""
        import pandas as pd

        names = [*self.table_spec().features, "label"]
        tables = [pd.DataFrame(windows, columns=names).assign(split=split) for split, windows in self._windows.items()]
        return pd.concat(tables, ignore_index=True)

    def table_spec(self) -> TableSpec:
        """What the table's columns mean; the label is a code, of no fixed set of classes."""
        return TableSpec(
            features=tuple(f"character_{i}" for i in range(WINDOW)),
            minimum=0,
            maximum=VOCABULARY - 1,
            min_rows=5_000,
        )

    @cached_property
    def _windows(self) -> dict[Split, NDArray[np.uint8]]:
        """Codes [windows, 65] by split: the window and the character after it.

        Of equal windows, such as of licences, the first stays; one of a single character goes.
        """
        seen: set[bytes] = set()
        return {split: _new_windows(modules, seen) for split, modules in FILES.items()}


def _new_windows(modules: tuple[str, ...], seen: set[bytes]) -> NDArray[np.uint8]:
    """Codes [windows, 65] of what is not yet in `seen`; puts it there."""
    found = []
    for module in modules:
        codes = _codes(_source(module))
        for start in range(0, len(codes) - WINDOW, WINDOW):
            key = codes[start : start + WINDOW].tobytes()
            if key not in seen and len(set(key)) > 1:
                seen.add(key)
                found.append(codes[start : start + WINDOW + 1])
    return np.stack(found)


def _source(module: str) -> str:
    path = Path(sysconfig.get_path("stdlib"), f"{module}.py")
    try:
        return path.read_text(encoding="utf-8")[:MAX_CHARACTERS]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror} → a Python with its library's source") from error


def _codes(text: str) -> NDArray[np.uint8]:
    return np.array([ALPHABET.find(character) + 1 for character in text], dtype=np.uint8)
