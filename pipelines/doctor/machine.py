"""This machine: Python, packages, GPUs, S3, MLflow."""

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from urllib.error import URLError
from urllib.request import urlopen

from ... import __version__
from ...components.promotion.registry import tracking_uri, wait_for_mlflow
from .row import Row, examined
from .storage import examine_storage

MIN_PYTHON = (3, 11)
MLFLOW_SECONDS = 5.0
_PACKAGES = {
    "torch": "train",
    "great-expectations": "data",
    "scipy": "slo",
    "mlflow": "registry",
    "kfp": "pipelines",
    "kubeflow": "cluster",
}
"""What the rooms need beside the core, and the extra that brings it."""


def examine_machine(root: str, *, embedded_s3: bool = False) -> list[Row]:
    """Every check of this machine.

    Args:
        root: where S3 is probed: `storage.uri` of the config.
        embedded_s3: whether the S3 of the environment is our own, started for the while.
    """
    return [
        _python(),
        _convergate(),
        _packages(),
        _gpus(),
        *examine_storage(root, embedded=embedded_s3),
        examined("MLflow", examine_mlflow),
    ]


def _python() -> Row:
    figure = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
    if sys.version_info < MIN_PYTHON:
        return Row.failed("Python", figure, f"Python {'.'.join(map(str, MIN_PYTHON))} or newer")
    return Row.ok("Python", figure)


def _convergate() -> Row:
    built = [os.environ[name] for name in ("CONVERGATE_COMMIT", "CONVERGATE_IMAGE") if os.environ.get(name)]
    return Row.ok("convergate", ", ".join([__version__, *built]))


def _packages() -> Row:
    found, missing = [], []
    for name, extra in _PACKAGES.items():
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(extra)
    if missing:
        figure = f"{', '.join(found) or 'none'}; not there: {', '.join(missing)}"
        return Row.unknown("packages", figure, f"pip install 'convergate[{','.join(missing)}]', where a step needs it")
    return Row.ok("packages", ", ".join(found))


def _gpus() -> Row:
    try:
        import torch
    except ModuleNotFoundError:
        return Row.unknown("GPU", "not known without torch", "pip install 'convergate[train]'")
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    if torch.cuda.is_available():
        free = min(torch.cuda.mem_get_info(number)[0] for number in range(len(names))) / 2**30
        backend = "NCCL" if torch.distributed.is_nccl_available() else "no NCCL"
        return Row.ok(
            "GPU", f"{len(names)} × {names[0]}, at least {free:.0f} GiB free, CUDA {torch.version.cuda}, {backend}"
        )
    if shutil.which("nvidia-smi"):
        built = torch.version.cuda or "none"
        return Row.failed(
            "GPU",
            f"torch {torch.__version__} (CUDA {built}) does not see the GPU of this machine",
            "nvidia-smi for the driver's CUDA; then the build of torch for it, from https://pytorch.org/get-started",
        )
    return Row.unknown("GPU", "none: training runs on the CPU, by gloo")


def examine_mlflow() -> Row:
    """The MLflow server that the environment names, and whether its version fits our client's.

    Raises:
        OutsideError: when it does not answer.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        figure = "none is configured: `convergate retrain` starts its own"
        return Row.unknown("MLflow", figure, "MLFLOW_TRACKING_URI=https://…")
    uri = tracking_uri()
    if not uri.startswith("http"):
        return Row.ok("MLflow", uri)
    wait_for_mlflow(MLFLOW_SECONDS)
    try:
        with urlopen(f"{uri.rstrip('/')}/version", timeout=MLFLOW_SECONDS) as answer:  # noqa: S310 - http or https
            server = answer.read(100).decode(errors="replace").strip()
    except (URLError, OSError) as error:
        return Row.failed("MLflow", f"{uri}: no version: {error}", "check MLFLOW_TRACKING_URI and its credentials")
    return _same_major(uri, server)


def _same_major(uri: str, server: str) -> Row:
    try:
        client = version("mlflow")
    except PackageNotFoundError:
        client = version("mlflow-skinny")
    figure = f"{server} at {uri}, client {client}"
    if server.partition(".")[0] != client.partition(".")[0]:
        return Row.failed("MLflow", figure, f"pip install 'mlflow=={server}', or another server")
    return Row.ok("MLflow", figure)
