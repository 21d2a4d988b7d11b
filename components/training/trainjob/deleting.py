"""The end of a TrainJob that nobody needs any more: deleted with its pods, which get their time to save."""

from collections.abc import Callable
from dataclasses import replace
from time import monotonic, sleep
from typing import get_args

from ...errors import ConvergateError
from ..job import Phase
from .answers import ApiError, MissingError
from .api import Cluster, Json, own_namespace
from .interrupts import SignalledError
from .objects import trainjob_name
from .pace import Pace
from .status import SELECTOR, failed, is_complete

_LEFTOVER_OUTAGE_SECONDS = 20.0


def find(cluster: Cluster, name: str) -> Json | None:
    """The TrainJob of this name; None where there is none."""
    try:
        return cluster.get(cluster.trainjobs(name))
    except MissingError:
        return None


def delete_and_wait(
    cluster: Cluster, name: str, uid: str | None, pods_seconds: float, on_line: Callable[[str], None]
) -> None:
    """Delete a TrainJob, at once, then wait until its pods are gone; a signal ends the wait. Never raises.

    Args:
        cluster: where it is.
        name: its name.
        uid: its uid, where it is known: then another one of its name stays.
        pods_seconds: how long its pods may take to end.
        on_line: told where it could not be deleted, or has not gone.
    """
    by_hand, deleted = f"kubectl delete trainjob {name} -n {cluster.namespace}", False
    try:
        cluster.delete(cluster.trainjobs(name), uid)
        deleted = True
        if not wait_until_gone(cluster, name, uid, pods_seconds):
            on_line(f"TrainJob {name} is deleted, and its pods have not gone yet → kubectl get pods")
    except ApiError as error:
        on_line(f"TrainJob {name} could not be deleted: {error}; its owner's end deletes it, or {by_hand}")
    except SignalledError:
        still = "is deleted, and its pods may still be ending → kubectl get pods"
        on_line(f"interrupted again: TrainJob {name} {still if deleted else f'may still be running → {by_hand}'}")


def wait_until_gone(cluster: Cluster, name: str, uid: str | None, pods_seconds: float) -> bool:
    """Wait for the end of a deleted TrainJob and of its pods, as long as these may take; whether they have gone."""
    deadline = monotonic() + pods_seconds + cluster.pace.ending
    while True:
        found = find(cluster, name)
        other = found is not None and uid is not None and found["metadata"]["uid"] != uid
        if (found is None or other) and not has_pods(cluster, name):
            return True
        if monotonic() > deadline:
            return False
        sleep(min(cluster.pace.poll, 1.0))


def has_pods(cluster: Cluster, name: str) -> bool:
    """Whether there are pods of a TrainJob of this name; they may outlive it by what they take to save."""
    return bool(cluster.get(cluster.core("pods"), labelSelector=SELECTOR.format(name=name), limit=1)["items"])


def delete_leftovers(run_id: str, on_line: Callable[[str], None] = print, pace: Pace | None = None) -> None:
    """Delete what steps of a run left running that were killed before they could: for the end of the run.

    Under Kubeflow Pipelines a cancelled step's container can end before the step has deleted its TrainJob, and the
    Workflow that owns it is kept for a while. What has ended by itself stays. Never raises: it is a last resort.
    """
    try:
        cluster = Cluster(own_namespace(), pace or replace(Pace(), outage=_LEFTOVER_OUTAGE_SECONDS), on_line)
        for phase in get_args(Phase):
            name = trainjob_name(run_id, phase)
            found = find(cluster, name)
            if found is not None and not is_complete(found) and failed(found) is None:
                cluster.delete(cluster.trainjobs(name), found["metadata"]["uid"])
                on_line(f"TrainJob {name} was left running by a step that was killed: it is deleted")
    except ConvergateError as error:
        on_line(f"whether a TrainJob was left running is not known: {error}")
