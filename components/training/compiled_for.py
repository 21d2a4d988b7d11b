"""What launcher a step was compiled for: its pod has the rights and the GPU for that one alone."""

import os

from ..config import RunConfig
from ..errors import UserError

LAUNCHER_VARIABLE = "CONVERGATE_LAUNCHER"
"""Set in the steps of a compiled pipeline: `local` or `trainjob`; nowhere else."""


def require_launcher(config: RunConfig) -> None:
    """Refuse a config that asks for another launcher than the step was made for.

    Raises:
        UserError: when they differ.
    """
    compiled, wanted = os.environ.get(LAUNCHER_VARIABLE), config.distributed.launcher
    if compiled and compiled != wanted:
        raise UserError(
            f"distributed.launcher = {wanted}: this pipeline was compiled for {compiled}"
            f" → convergate compile --launcher {wanted}"
        )
