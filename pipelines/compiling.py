"""Every pipeline as KFP IR YAML."""

import contextlib
import io
import warnings
from pathlib import Path

PIPELINES = ("retrain",)


def compile_pipelines(folder: Path) -> list[Path]:
    """Write each pipeline's IR as `<folder>/<name>.yaml`; returns the files."""
    from kfp import compiler

    from . import retrain

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name in PIPELINES:
        target = folder / f"{name}.yaml"
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            compiler.Compiler().compile(getattr(retrain, name), str(target))
        files.append(target)
    return files
