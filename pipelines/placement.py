"""Where the steps of a pipeline run on a cluster: what is known when it is compiled, and not when it runs."""

import re
from dataclasses import dataclass
from typing import Literal

from ..components.errors import UserError

Launcher = Literal["local", "trainjob"]
TRAIN_HOURS: dict[Launcher, int] = {"local": 24, "trainjob": 48}
"""The timeout of an attempt to train, unless the placement says another."""
LONGEST_HOURS = (2**31 - 1) // 3600
"""The longest deadline of a pod that Kubernetes takes."""
EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_VALUE = r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?"
_KEY = r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"


@dataclass(frozen=True, slots=True)
class Toleration:
    """A taint that a pod may stand on; without a value any value, without an effect any effect."""

    key: str
    value: str | None = None
    effect: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The cluster's side of a compiled pipeline.

    Raises:
        UserError: for a negative number of GPUs, or a resource or a timeout that is none.
    """

    launcher: Launcher = "local"
    """Who runs canary and training: the step's own pod, or a TrainJob that the step starts and watches."""
    gpus: int = 1
    """GPUs of each step that computes in its own pod; evaluate takes one of them. 0: none is asked for."""
    gpu_type: str = "nvidia.com/gpu"
    """The resource that a GPU is asked for by; on a managed service its own name, such as NVIDIA_L4."""
    node_selector: tuple[tuple[str, str], ...] = ()
    """Labels of the nodes for the steps that compute in their own pod."""
    tolerations: tuple[Toleration, ...] = ()
    """Of the same steps."""
    image_pull_secrets: tuple[str, ...] = ()
    """Of every step."""
    train_hours: int | None = None
    """How long an attempt to train may take, where a TrainJob trains with its time in a queue; None is the usual."""
    keep_days: int | None = None
    """How long a run's pods are kept after its end, and their logs with them; None leaves it to the cluster."""
    labels: tuple[tuple[str, str], ...] = ()
    """Of every step's pod, beside those that tell its kind."""

    def __post_init__(self) -> None:
        if self.gpus < 0:
            raise UserError(f"--gpus {self.gpus}: → 0 for none, or how many each heavy step gets")
        if not re.fullmatch(_KEY, self.gpu_type):
            raise UserError(
                f"--gpu-type {self.gpu_type!r}: not a resource of a node → nvidia.com/gpu, or another's name"
            )
        if self.train_hours is not None and not 1 <= self.train_hours <= LONGEST_HOURS:
            raise UserError(f"--train-hours {self.train_hours}: → 1 to {LONGEST_HOURS}")


def parse_node_selector(text: str) -> tuple[str, str]:
    """`key=value`, as `kubectl get nodes -l` takes it.

    Raises:
        UserError: when it is written otherwise.
    """
    match = re.fullmatch(rf"(?P<key>{_KEY})=(?P<value>{_VALUE})", text)
    if match is None:
        raise UserError(f"--node-selector {text}: not a label of a node → key=value")
    return match["key"], match["value"]


def parse_toleration(text: str) -> Toleration:
    """`key[=value][:effect]`, as `kubectl taint nodes` takes it.

    Raises:
        UserError: when it is written otherwise.
    """
    match = re.fullmatch(rf"(?P<key>{_KEY})(=(?P<value>{_VALUE}))?(:(?P<effect>{'|'.join(EFFECTS)}))?", text)
    if match is None:
        raise UserError(f"--toleration {text}: not a taint → key=value:effect, effect one of {', '.join(EFFECTS)}")
    return Toleration(match["key"], match["value"], match["effect"])
