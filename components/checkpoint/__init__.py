"""Checkpoints on S3, through `torch.distributed.checkpoint` and without pickle.

A checkpoint is a prefix of its own, `<uri>/<run_id>/attempt-<a>-step-<s>/`, that is written once and never again:

1. every rank writes its tensors, raw bytes in one object, and reports their names, shapes, sizes and SHA-256;
2. rank 0 writes `manifest.json`, create-only, with all of that and the JSON state. **That is the commit**: a
   checkpoint exists if and only if its manifest does.

The newest is the one of the latest attempt, and within it the latest step, so an older attempt that still writes
never becomes newest. Restoring verifies every byte against the manifest before a tensor is built, and falls back to
the one before where that fails. Deleting starts with the manifest.

- `manifest`: the commit document.
- `dcp_storage`: the `StorageWriter` and `StorageReader`.
- `store`: `CheckpointStore`, save, find, restore, retain; `load_model_state`, `copy_checkpoint`.
"""

from .manifest import CheckpointError, Manifest
from .store import CheckpointRef, CheckpointStore, copy_checkpoint, load_model_state

__all__ = [
    "CheckpointError",
    "CheckpointRef",
    "CheckpointStore",
    "Manifest",
    "copy_checkpoint",
    "load_model_state",
]
