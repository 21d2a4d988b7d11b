"""The canary's step as a command: `python -m convergate.canary --help`."""

from ..components.step_command import main
from . import component

if __name__ == "__main__":
    main(component)
