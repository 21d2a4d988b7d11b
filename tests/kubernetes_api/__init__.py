"""A stand-in for a cluster's API server, over HTTP, for the real SDK and the real `kubernetes` client.

- `server`: the HTTP side: routes, authentication, faults, what was asked.
- `store`: objects, their versions, finalizers and garbage collection.
- `admission`: the CRD's schema by its own models, strictly, and the rules of Trainer's webhooks.
- `rbac`: Roles and bindings as the API server reads them.
- `faults`: answers that go wrong, and connections that drop.
- `scene`: a cluster that has our manifests applied, and a step's pod in it.
- `kubelet`: pods that run, as processes.
- `play`: what the controllers, Kueue and the kubelets would do, one step at each look at the TrainJob.
"""

from .faults import Fault
from .play import Play, nothing, started
from .server import ApiServer

__all__ = ["ApiServer", "Fault", "Play", "nothing", "started"]
