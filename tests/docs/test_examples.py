"""What the pages show can be run: the example's task, every command line, every link and path."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from convergate.cli.main import cli
from convergate.components.config import load_config
from convergate.components.config.preflight import Facts, preflight
from convergate.components.data.validate import validate_table
from convergate.components.schedule import CosineSchedule
from convergate.components.schedule.torch_adapter import ScheduleLR
from convergate.components.task import SPLITS, Task, load_task

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
ALL_PAGES = [*PAGES, *sorted(ROOT.glob("components/*/README.md")), ROOT / "canary/README.md"]
TOP = ("components", "canary", "pipelines", "cli", "manifests", "docs", "tests")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def block(page: str, containing: str) -> str:
    """The page's Python block with these words."""
    found = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    (one,) = (text for text in found if containing in text)
    return str(one)


def test_a_loop_of_ones_own_saves_and_goes_on(s3: str) -> None:
    """README's lines, run to 100 of 250 steps and again to the end."""
    text = block("README.md", "Checkpoints(").replace("s3://models/checkpoints", s3)
    seen: list[int] = []
    for num_steps in (199, 250):
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scheduler = ScheduleLR(optimizer, CosineSchedule(lr0=0.1, lr_min=0.001, total_steps=250))

        def update(_: torch.nn.Module, optimizer: torch.optim.Optimizer, scheduler: ScheduleLR) -> None:
            optimizer.step()
            seen.append(scheduler.last_epoch)
            scheduler.step()

        values = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "update": update}
        exec(text, values | {"num_steps": num_steps})  # noqa: S102 - what the page shows
    assert seen == [*range(199), *range(100, 250)]


# The example of docs/own-task.md.


@pytest.fixture
def wine(monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.chdir(EXAMPLES)
    config, _ = load_config("wine.yaml")
    return load_task(config.task)


def test_the_task_is_under_sixty_lines() -> None:
    assert len((EXAMPLES / "wine_task.py").read_text().splitlines()) < 60


def test_the_page_shows_the_files_as_they_are() -> None:
    page = (ROOT / "docs/own-task.md").read_text()
    for file, language in (("wine_task.py", "python"), ("wine.yaml", "yaml")):
        assert f"```{language}\n{(EXAMPLES / file).read_text()}```" in page


def test_its_config_passes_preflight(wine: Task) -> None:
    config, _ = load_config("wine.yaml")
    found = preflight(config, Facts(num_train_samples=len(wine.dataset("train"))))  # type: ignore[arg-type]
    assert found.problems == []


def test_its_table_is_all_samples_and_holds_every_expectation(wine: Task) -> None:
    report = validate_table(wine.table(), wine.table_spec(), "example")
    assert (report.verdict, report.reason) == ("PASS", "")
    assert report.num_rows == 178
    assert report.rows_by_split == {split: len(wine.dataset(split)) for split in SPLITS}  # type: ignore[arg-type]


def test_it_keeps_the_protocol(wine: Task) -> None:
    torch.manual_seed(0)
    model = wine.model()
    dataset: Any = wine.dataset("train")
    batch = torch.utils.data.default_collate([dataset[i] for i in range(4)])
    scores = wine.scores(model, batch)
    assert {key: tuple(value.shape) for key, value in scores.items()} == {"loss": (4,), "accuracy": (4,)}
    loss = wine.loss(model, batch)
    assert loss.item() == pytest.approx(scores["loss"].mean().item())
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model(wine.example()).shape == (2, 3)


# Command lines.


def lines_of_commands() -> Iterator[tuple[str, str]]:
    """(page, command line) of everything that begins with `convergate `, in prose or in a block."""
    for page in PAGES:
        text = page.read_text()
        for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
            yield from ((name(page), line) for line in re.findall(r"^\$ (?:\w+=\S+ )*convergate (.*)$", block, re.M))
        prose = re.sub(r"```\w*\n.*?```", "", text, flags=re.DOTALL)
        for span in re.findall(r"`([^`]+)`", prose):
            yield from ((name(page), line) for line in re.findall(r"^convergate (\S.*)$", " ".join(span.split())))


LINES = sorted(set(lines_of_commands()))


def test_the_pages_show_commands() -> None:
    assert len(LINES) > 20


def command_of(page: str, words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that a line begins with, and what follows it."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, *words = words
        found = command.get_command(click.Context(command), name.partition("|")[0])
        assert found is not None, f"{page}: there is no `{name}` among the commands"
        command = found
    return command, words


@pytest.mark.parametrize(("page", "line"), LINES)
def test_a_command_and_its_options_exist(page: str, line: str) -> None:
    command, rest = command_of(page, line.partition("#")[0].replace("\\|", "|").split())
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    used = re.findall(r"(?<![\w-])--?[a-z][\w-]*", " ".join(rest))
    assert set(used) <= known | {"--help", "--version"}, f"{page}: `convergate {line}`"


WHOLE = [
    (page, line)
    for page, line in LINES
    if not re.search(r"[\[|>]", line) and command_of(page, line.split())[1] not in ([], ["--help"])
]
"""Without those that only name a command, or show its usage."""


@pytest.mark.parametrize(("page", "line"), WHOLE)
def test_a_whole_command_line_is_accepted(page: str, line: str) -> None:
    """Parsed to its end, and not run."""
    command, arguments = command_of(page, shlex.split(line, comments=True))
    try:
        command.make_context("convergate", arguments)
    except click.UsageError as error:
        pytest.fail(f"{page}: `convergate {line}`: {error.format_message()}")


# Links and paths.


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", ALL_PAGES, ids=name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```\w*\n.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name(page)} links to {target}"
        assert ROOT in file.parents, f"{name(page)} leads out of the repository: {target}"
        headings = re.findall(r"^#+ (.*)$", file.read_text(), re.M) if anchor else []
        assert not anchor or anchor in map(slug, headings), f"{name(page)} links to {target}"


@pytest.mark.parametrize("page", ALL_PAGES, ids=name)
def test_every_path_that_is_named_exists(page: Path) -> None:
    for path in re.findall(rf"`((?:{'|'.join(TOP)})/[^`\s]*)`", page.read_text()):
        if "<" not in path and "…" not in path:
            assert any(ROOT.glob(path.rstrip("/"))), f"{name(page)} names {path}"


@pytest.mark.parametrize("page", ALL_PAGES, ids=name)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`(?:\$ )?make ([a-z]+)", page.read_text())) <= targets
