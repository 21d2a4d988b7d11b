"""torchrun's agent as a process that dies with its parent, and leaves in a note why it ended, instead of a trace.

    python -m convergate.components.training.agent OPTIONS -m MODULE ARGUMENTS

with torchrun's options. It is what `lifetime` makes of `torch.distributed.run`, and a note.
"""

import sys

from .lifetime import die_with_parent
from .notes import note_agent


def main() -> int:
    """Run torchrun; returns its exit code."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import main as torchrun

    try:
        torchrun()
    except ChildFailedError as error:
        note_agent(ended={rank: failure.exitcode for rank, failure in error.failures.items()})
    except RendezvousError as error:
        note_agent(rendezvous=type(error).__name__)
    except SignalException:
        pass  # It was told to end, and its workers are stopped.
    else:
        return 0
    return 1


if __name__ == "__main__":
    die_with_parent()
    sys.exit(main())
