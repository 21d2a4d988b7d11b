"""Write the README of every room that is a step, from its functions' signatures and docstrings and its metadata.yaml.

`python docs/generate.py` writes them; with `--check` it exits 1 and names those that are not what it would write.
"""

import importlib
import inspect
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import docstring_parser
import yaml
from kfp.dsl.python_component import PythonComponent

ROOT = Path(__file__).resolve().parents[1]
METADATA_KEYS = ("name", "stability", "dependencies", "tags", "lastVerified", "ci")
"""What a metadata.yaml holds, in this order; the schema is kubeflow/pipelines-components'."""
ENVIRONMENT = {
    "S3": "`AWS_ENDPOINT_URL` or `S3_ENDPOINT_URL`, unless it is AWS itself, and boto3's usual credentials",
    "MLflow": "`MLFLOW_TRACKING_URI`",
}
"""What leads to an external service, by its name in metadata.yaml."""
NEEDS = (
    "- the package where the pipeline is written: `pip install '.[pipelines]'` in a checkout",
    "- an image that holds the package; its registry and tag are `CONVERGATE_REGISTRY` and `CONVERGATE_TAG` while the"
    " pipeline is compiled",
    "- the bucket of `storage.uri`; open_run makes it where it is missing",
)
RUN_HERE = (
    "from pathlib import Path",
    "",
    "from kfp import local",
    "",
    "local.init(local.SubprocessRunner(use_venv=False))",
    'example(config=Path("manifests/configs/digits.yaml").read_text(), run_id="example-1")',
)
LINE_LENGTH = 110


def rooms() -> list[Path]:
    """The folders that hold a `component.py`."""
    return sorted(
        path.parent for pattern in ("components/*", "canary") for path in ROOT.glob(f"{pattern}/component.py")
    )


def module_of(room: Path) -> str:
    """The room's package."""
    return ".".join(("convergate", *room.relative_to(ROOT).parts))


def components(room: Path) -> list[PythonComponent]:
    """The room's components, in the order of its file."""
    module = importlib.import_module(f"{module_of(room)}.component")
    return [value for value in vars(module).values() if isinstance(value, PythonComponent)]


def metadata(room: Path) -> dict[str, Any]:
    """The room's metadata.yaml.

    Raises:
        SystemExit: when a key is missing, unknown or out of order.
    """
    found: dict[str, Any] = yaml.safe_load((room / "metadata.yaml").read_text())
    if tuple(found) != METADATA_KEYS:
        raise SystemExit(f"{room.name}/metadata.yaml has the keys {', '.join(found)} → {', '.join(METADATA_KEYS)}")
    return found


def page(room: Path) -> str:
    """The README of a room."""
    about, found = metadata(room), components(room)
    first, _, inside = (inspect.getdoc(importlib.import_module(module_of(room))) or "").partition("\n")
    home, config = (os.path.relpath(ROOT / path, room) for path in ("README.md", "manifests/configs/digits.yaml"))
    services = [service["name"] for service in about["dependencies"]["external_services"]]
    parts = [
        "<!-- Written by docs/generate.py from component.py and metadata.yaml: change those, then `make docs`. -->",
        f"# {about['name']}: {', '.join(component.python_func.__name__ for component in found)}",
        first,
        f"A part of [convergate]({home}), usable on its own. The run config is YAML text, for example\n"
        f"[digits.yaml]({config}). Artifacts are small JSON documents; what is large stays on S3, where\n"
        "`<storage.uri>/runs/<run_id>/` is the run's prefix.",
        *(section(component) for component in found),
        "## What it needs",
        "\n".join([*NEEDS, *(f"- {name}: {ENVIRONMENT[name]}, in the step's environment" for name in services)]),
        f"The {'last ' * (len(found) > 1)}example runs without a cluster too, in a checkout after `make install`:",
        block(*RUN_HERE),
        "## Inside",
        f"The work stands in modules that know nothing of KFP.\n{inside}",
        "## Metadata",
        table(("key", "value"), facts(about)),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def section(component: PythonComponent) -> str:
    """What one component does, takes and gives, and how it is called."""
    spec, described = component.component_spec, docstring_parser.parse(inspect.getdoc(component.python_func) or "")
    arguments = {parameter.arg_name: parameter.description for parameter in described.params}
    inputs = [
        (
            f"`{name}`",
            kind(given.type),
            "required" if not given.optional else f"`{given.default!r}`",
            say(component, name, arguments.get(name)),
        )
        for name, given in (spec.inputs or {}).items()
    ]
    unnamed = described.returns.description if described.returns else None
    outputs = [
        (
            f"`{name}`",
            kind(given.type),
            say(component, name, arguments.get(name) or (unnamed if name == "Output" else given.description)),
        )
        for name, given in (spec.outputs or {}).items()
    ]
    image = spec.implementation.container.image.rpartition("/")[2].partition(":")[0]
    return "\n\n".join(
        [
            f"## `{component.python_func.__name__}`",
            *(text for text in (described.short_description, described.long_description) if text),
            f"Image: `{image}`.",
            table(("input", "type", "default", "description"), inputs),
            table(("output", "type", "description"), outputs),
            example(component),
        ]
    )


def example(component: PythonComponent) -> str:
    """A pipeline that calls the component, after whatever makes the artifacts that it takes in."""
    called: list[PythonComponent] = []
    lines = _calls(component, called)
    imports = [f"from {each.python_func.__module__} import {each.python_func.__name__}" for each in called]
    strings = dict.fromkeys(
        name for each in called for name, given in each.component_spec.inputs.items() if given.type == "String"
    )
    head = [f"def example({', '.join(f'{name}: str' for name in strings)}) -> None:"]
    return block(
        "from kfp import dsl", "", *sorted(imports), "", "", "@dsl.pipeline", *head, *(f"    {line}" for line in lines)
    )


def _calls(component: PythonComponent, called: list[PythonComponent], makes: str = "") -> list[str]:
    """The lines that call a component and, first, the makers of its artifacts; each component once."""
    if component in called:
        return []
    lines, arguments = [], []
    for name, given in component.component_spec.inputs.items():
        if given.type == "String":
            arguments.append(f"{name}={name}")
            continue
        lines += _calls(maker(name), called, makes=name)
        arguments.append(f'{name}={name}.outputs["{name}"]')
    called.append(component)
    head = f"{makes} = {component.python_func.__name__}(" if makes else f"{component.python_func.__name__}("
    line = f"{head}{', '.join(arguments)})"
    if len(line) <= LINE_LENGTH:
        return [*lines, line]
    return [*lines, head, *(f"    {argument}," for argument in arguments), ")"]


def maker(artifact: str) -> PythonComponent:
    """The one component that gives out an artifact of this name."""
    (found,) = [each for room in rooms() for each in components(room) if artifact in each.component_spec.outputs]
    return found


def facts(about: dict[str, Any]) -> list[tuple[str, str]]:
    """The metadata as rows, without what only CI reads."""
    depends = about["dependencies"]
    return [
        ("name", about["name"]),
        ("stability", about["stability"]),
        ("Kubeflow", ", ".join(f"{each['name']} {each['version']}" for each in depends["kubeflow"])),
        ("external services", ", ".join(f"{each['name']} {each['version']}" for each in depends["external_services"])),
        ("tags", ", ".join(about["tags"])),
        ("last verified", f"{about['lastVerified']:%Y-%m-%d}"),
    ]


def kind(name: str) -> str:
    """`system.Artifact@0.0.1` as `Artifact`."""
    return name.removeprefix("system.").partition("@")[0]


def say(component: PythonComponent, name: str, description: str | None) -> str:
    """A description on one line.

    Raises:
        SystemExit: when the docstring has none.
    """
    if not description:
        raise SystemExit(f"{component.python_func.__name__}: its docstring does not describe `{name}`")
    return " ".join(description.split())


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in lines)


def block(*lines: str) -> str:
    """A block of Python."""
    return "\n".join(["```python", *lines, "```"])


def main(check: bool) -> int:
    """Write or check every README; returns the exit code."""
    stale = []
    for room in rooms():
        target, text = room / "README.md", page(room)
        if target.exists() and target.read_text() == text:
            continue
        stale.append(str(target.relative_to(ROOT)))
        if not check:
            target.write_text(text)
    for name in stale:
        print(f"{name} is {'not what docs/generate.py writes → make docs' if check else 'written'}")  # noqa: T201
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] == ["--check"]))
