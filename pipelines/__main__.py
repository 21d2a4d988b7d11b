"""The steps of no room as commands: `python -m convergate.pipelines --help`."""

from ..components.step_command import main
from . import steps

if __name__ == "__main__":
    main(steps)
