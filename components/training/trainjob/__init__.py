"""The training as a TrainJob of Kubeflow Trainer v2: launched, found again, followed, and deleted when interrupted.

- `launcher`: `launch_trainjob`, what a step calls.
- `deleting`: the end of one that nobody needs; also what killed steps left.
- `interrupts`: SIGTERM and SIGINT while it waits.
- `objects`: the TrainJob and the ConfigMap that are sent, their name, labels and digest.
- `own_pod`: the image and the owner, from the pod of this step.
- `runtime`: what the cluster's runtime gives: grace, resources.
- `following`: looks at the job until it ends, and tells what changes.
- `status`: what conditions, pods and events say.
- `failure`: why it failed: the first error of the first failing pod.
- `usage`: how long the pods ran: what it costs.
- `logs`: the lines of a pod's log that are new.
- `api`, `answers`, `backend`: the Kubernetes API, its refusals in words, and the SDK's backend.
- `rights`: what the launching step's account needs.
- `pace`: time limits, and the deadline from the budget.
"""

from .deleting import delete_leftovers
from .launcher import launch_trainjob
from .pace import deadline_seconds

__all__ = ["deadline_seconds", "delete_leftovers", "launch_trainjob"]
