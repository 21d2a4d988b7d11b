"""How long the launcher waits for what, in seconds; one place for these figures."""

from dataclasses import dataclass
from math import ceil

SECONDS_PER_HOUR = 3600
STARTUP_SECONDS = 900
"""What scheduling, pulling images and rendezvous may take of a TrainJob's deadline, beside the budget."""
GRACE_MARGIN_SECONDS = 10
"""Of the pods' termination grace, what is left to the agent to end after its workers have saved."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often the cluster is asked, and what is waited for how long; all in seconds."""

    poll: float = 5.0
    """Between two looks at the TrainJob, its pods and the log."""
    connect: float = 5.0
    """For a connection to the API server."""
    read: float = 20.0
    """For its answer."""
    first_retry: float = 0.5
    """Before a request that failed is sent again; doubled each time."""
    longest_retry: float = 30.0
    """The most between two tries, also where the server asks for more (Retry-After)."""
    outage: float = 600.0
    """How long one request is tried: longer than the upgrade of a control plane with one node takes."""
    stuck: float = 300.0
    """How long a container may be kept from starting by an image or a mount that is not there."""
    ending: float = 60.0
    """Beyond the pods' grace, how long a deleted TrainJob is waited for."""


def deadline_seconds(max_gpu_hours: float, world_size: int) -> int:
    """`activeDeadlineSeconds` of a TrainJob that may use so many GPU-hours; its start-up is on top.

    A job that Kueue suspends starts to count anew when it is resumed.

    Args:
        max_gpu_hours: `budget.max_gpu_hours`.
        world_size: processes, of one GPU each.
    """
    return ceil(max_gpu_hours * SECONDS_PER_HOUR / world_size) + STARTUP_SECONDS
