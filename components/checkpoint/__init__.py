"""Checkpoints on S3, through `torch.distributed.checkpoint` and without pickle.

A checkpoint is a folder of its own, `<uri>/<run_id>/attempt-<a>-step-<s>-<nonce>/`, that is written once and never
again. Saving, while training goes on:

1. every rank copies its part of the state into a staging buffer, which later saves use again: the only wait;
2. a thread uploads the buffer, in parts, each with its CRC64-NVME; a server that does not check them is read back;
3. the rank reports: `rank-<r>.json`, create-only;
4. once every report is there, rank 0 writes `manifest.json`: every object with its checksums, every tensor's place in
   them, the JSON state;
5. rank 0 writes the marker, `<uri>/<run_id>/commits/…json`, create-only, with the manifest's SHA-256. **That is the
   commit**: a checkpoint exists if and only if its marker does.

The newest is the one of the latest attempt, and within it the latest step. An attempt notes in a tombstone where it
goes on from; what an older one committed beyond that, in a branch that a rollback left or as a zombie, no longer
counts. Restoring verifies what it needs before a tensor is changed, from the marker over the manifest down to each
part, and whoever restores falls back to the checkpoint before where that fails. Deleting starts with the marker.

- `manifest`: the documents, their digest and signature.
- `dcp_storage`: the `StorageWriter`, which stages, and the `StorageReader`.
- `parts`: what is read, verified.
- `saver`: `Saver`, one save in flight.
- `commit`: the reports, and the commit.
- `refs`: `CheckpointRef`, `Tombstone`; what is told by names alone.
- `reading`: markers, manifests and tensors, verified; copies.
- `store`: `CheckpointStore`: what a run has, what no longer counts, deletion.
- `fallback`: the newest that is whole, on every rank; `ranks`: what they tell each other.
- `retention`: what is kept, and what is collected.
- `checkpoints`: `Checkpoints`, all of it for a loop of one's own; `json_values`: states that JSON has not.
"""

from .manifest import CheckpointError, Manifest
from .reading import copy_checkpoint, load_model_state
from .refs import CheckpointRef
from .store import CheckpointStore

__all__ = [
    "CheckpointError",
    "CheckpointRef",
    "CheckpointStore",
    "Manifest",
    "copy_checkpoint",
    "load_model_state",
]
