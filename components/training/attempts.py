"""The number of a start of the processes: claimed once, on S3, so that no two ever share one."""

import json
import os

import torch.distributed as dist

from ..errors import UserError
from ..storage import ObjectExistsError, S3Location, S3Store
from .job import Job

MAX_ATTEMPTS = 1000


def claim_attempt(job: Job) -> int:
    """The next number, the same on every rank, claimed by rank 0; a rollback begins a new attempt too."""
    number = [0]
    if dist.get_rank() == 0:
        store, root = S3Store(), S3Location.parse(job.result_uri + ".attempts")
        taken = sum(1 for _ in store.list(root))
        for candidate in range(taken + 1, MAX_ATTEMPTS):
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
