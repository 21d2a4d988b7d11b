"""This room's steps as commands: `python -m convergate.components.evaluation --help`."""

from ..step_command import main
from . import component

if __name__ == "__main__":
    main(component)
