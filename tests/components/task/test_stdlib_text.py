"""The library's text: split by file, no window twice, scored by the character."""

import re
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from convergate.components.errors import UserError
from convergate.components.task import SPLITS
from convergate.components.task.stdlib_text import FILES, MAX_CHARACTERS, VOCABULARY, WINDOW, StdlibTextTask

Texts = dict[str, list[str]]


def texts(task: StdlibTextTask) -> Texts:
    """The windows of each split with the character after them, and € for what the vocabulary has no code for."""
    found: Texts = {}
    for split in SPLITS:
        dataset: Any = task.dataset(split)
        inputs, following = dataset.tensors
        assert torch.equal(inputs[:, 1:], following[:, :-1])
        rows = torch.cat([inputs, following[:, -1:]], dim=1).tolist()
        found[split] = ["".join("€\n"[code] if code < 2 else chr(code + 30) for code in row) for row in rows]
    return found


def test_every_window_stands_in_a_file_of_its_split_and_none_twice() -> None:
    found, library = texts(StdlibTextTask()), Path(sysconfig.get_path("stdlib"))
    for split, modules in FILES.items():
        cut = []
        for module in modules:
            source = (library / f"{module}.py").read_text("utf-8")[:MAX_CHARACTERS]
            text = re.sub(r"[^\n -~]", "€", source)
            cut += [text[start : start + WINDOW + 1] for start in range(0, len(text) - WINDOW, WINDOW)]
        assert set(found[split]) <= set(cut)
        assert len(found[split]) > 0.98 * len(cut)
    windows = [text[:WINDOW] for split in SPLITS for text in found[split]]
    assert len(set(windows)) == len(windows)
    modules = [module for split in SPLITS for module in FILES[split]]
    assert len(set(modules)) == len(modules)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes a library of one file a split."""
    files = {split: (split,) for split in SPLITS}
    monkeypatch.setattr("convergate.components.task.stdlib_text.FILES", files)
    monkeypatch.setattr(sysconfig, "get_path", {"stdlib": str(tmp_path)}.__getitem__)

    def write(**sources: str) -> None:
        for split, source in sources.items():
            (tmp_path / f"{split}.py").write_text(source, "utf-8")

    return write


def window(number: int) -> str:
    return f"{number:03}\n" * (WINDOW // 4)


def test_of_equal_windows_the_first_stays_and_one_of_a_single_character_goes(library: Callable[..., None]) -> None:
    odd = "é\t~ " * (WINDOW // 4)
    library(
        train=window(0) + window(1) + "#" * WINDOW + window(0) + odd + "x",
        val=window(1) + window(2) + "x",
        test=window(2) + window(3) + "x",
    )
    assert texts(StdlibTextTask()) == {
        "train": [window(0) + "0", window(1) + "#", "€€~ " * (WINDOW // 4) + "x"],
        "val": [window(2) + "x"],
        "test": [window(3) + "x"],
    }


def test_a_long_file_is_read_to_a_bound(library: Callable[..., None]) -> None:
    number = MAX_CHARACTERS // WINDOW
    library(train="".join(map(window, range(number + 5))), val=window(990) + "x", test=window(991) + "x")
    # The last window within the bound has no character after it.
    assert [text[:3] for text in texts(StdlibTextTask())["train"]] == [f"{i:03}" for i in range(number - 1)]


def test_a_library_without_its_source_is_said(library: Callable[..., None]) -> None:
    library(train=window(0) + "x")
    with pytest.raises(UserError, match=r"val\.py cannot be read: No such file or directory → a Python with its lib"):
        StdlibTextTask().table()


def test_accuracy_is_the_share_of_characters_that_are_right() -> None:
    dataset: Any = StdlibTextTask().dataset("val")
    codes, following = dataset[:4]
    guesses = following.clone()
    guesses[1, :16] += 1
    guesses[3] += 1
    logits = 50 * torch.nn.functional.one_hot(guesses % VOCABULARY, VOCABULARY).float()

    class Guesses(torch.nn.Module):
        def forward(self, codes: torch.Tensor) -> torch.Tensor:
            return logits

    scores = StdlibTextTask().scores(Guesses(), (codes, following))
    assert scores["accuracy"].tolist() == [1.0, 0.75, 1.0, 0.0]
    torch.testing.assert_close(scores["loss"], torch.tensor([0.0, 12.5, 0.0, 50.0]))
