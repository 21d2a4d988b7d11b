"""Can this machine, or this cluster, run it: small checks, each a row with a figure and the fix.

- `row`: `Row`, what a check gives.
- `machine`: Python, packages, GPUs, MLflow.
- `storage`: S3: reachable, writable, conditional writes, checksums, its clock; leaves nothing behind.
- `installed`: Trainer, JobSet, Argo, Kueue: there, and of a version and with settings that fit.
- `cluster`: the runtime, accounts, settings and Secrets, nodes.
- `rights`: what each account may do, and may not.
- `services`: the S3 and MLflow of a cluster, from here, or how to ask from inside.
"""

from .cluster import examine_cluster
from .machine import examine_machine
from .row import Row

__all__ = ["Row", "examine_cluster", "examine_machine"]
