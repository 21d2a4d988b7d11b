"""Every pipeline, and every step on its own, as KFP IR YAML."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .placement import Placement

if TYPE_CHECKING:
    from kfp.dsl.base_component import BaseComponent

PIPELINES = ("retrain", "canary")
COMPONENTS = "components"
"""The folder of the single steps, for pipelines of one's own."""


def compile_pipelines(folder: Path, placement: Placement | None = None) -> list[Path]:
    """Write each pipeline as `<folder>/<name>.yaml`, each step as `<folder>/components/<step>.yaml`; the files.

    The pipelines come first, in the order of `PIPELINES`. The steps on their own have no placement: whoever builds a
    pipeline of them says where they run.
    """
    pipelines = [compile_pipeline(name, folder / f"{name}.yaml", placement) for name in PIPELINES]
    steps = [_write(step, folder / COMPONENTS / f"{name}.yaml") for name, step in sorted(step_faces().items())]
    return pipelines + steps


def compile_pipeline(name: str, file: Path, placement: Placement | None = None) -> Path:
    """Write one pipeline of `PIPELINES`; returns the file."""
    return _write(_made(name, placement), file)


def pipeline_messages(name: str, placement: Placement) -> dict[str, Any]:
    """One pipeline as the API takes it: the two documents of its file, what runs and what Kubernetes has to know."""
    from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]

    made = _made(name, placement)
    return {
        "pipeline_spec": MessageToDict(made.pipeline_spec),
        "platform_spec": MessageToDict(made.platform_spec),
    }


def _made(name: str, placement: Placement | None) -> "BaseComponent":
    from .canary import canary_pipeline
    from .retrain import retrain_pipeline

    makers = {"retrain": retrain_pipeline, "canary": canary_pipeline}
    with _quiet():
        return makers[name](placement or Placement())


def step_faces() -> "dict[str, BaseComponent]":
    """Every step of the DAGs, by the name of its function."""
    from ..canary.component import canary
    from ..components.config.component import validate_config
    from ..components.data.component import validate_data
    from ..components.evaluation.component import evaluate
    from ..components.promotion.component import find_champion, promote
    from ..components.slo.component import gate, open_run
    from ..components.training.component import train
    from .steps import close_run, passed, stop, stop_undecided

    steps: tuple[Any, ...] = (
        *(open_run, validate_config, validate_data, canary, train, find_champion, evaluate, gate, promote),
        *(passed, stop, stop_undecided, close_run),
    )
    return {step.python_func.__name__: step for step in steps}


def _write(made: "BaseComponent", file: Path) -> Path:
    from kfp import compiler

    file.parent.mkdir(parents=True, exist_ok=True)
    with _quiet():
        compiler.Compiler().compile(made, str(file))
    return file


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what kfp says of itself."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
