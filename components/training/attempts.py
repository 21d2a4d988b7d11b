"""The number of a start of the processes: claimed once, on S3, so that no two ever share one."""

import json
import os

import torch.distributed as dist

from ..checkpoint import CheckpointStore
from ..errors import UserError
from ..storage import ObjectExistsError, S3Location, S3Store
from .job import Job

MAX_ATTEMPTS = 1000


def last_attempt(result_uri: str) -> int:
    """The largest number that was claimed beside a result; 0 where there is none."""
    claims = S3Store().list(S3Location.parse(result_uri + ".attempts"))
    return max((int(location.name.removesuffix(".json")) for location in claims), default=0)


def claim_attempt(job: Job) -> int:
    """The next number, the same on every rank, claimed by rank 0; a rollback begins a new attempt too."""
    number = [0]
    if dist.get_rank() == 0:
        store, root = S3Store(), S3Location.parse(job.result_uri + ".attempts")
        # Also beyond what the checkpoints tell of, whatever became of the claims: an older number would never count.
        known = CheckpointStore(job.checkpoint_uri, job.run_id).newest_attempt()
        for candidate in range(max(last_attempt(job.result_uri), known) + 1, MAX_ATTEMPTS):
            try:
                store.create(root / f"{candidate:03}.json", json.dumps({"pid": os.getpid()}).encode())
            except ObjectExistsError:
                continue
            number = [candidate]
            break
    dist.broadcast_object_list(number)
    if number[0] == 0:
        raise UserError(f"run {job.run_id} was started {MAX_ATTEMPTS - 1} times → another name: --run NAME")
    return number[0]
