"""What each of the processes of `bench_loop.py` runs, under torchrun: a bare DDP loop and ours in turns.

    torchrun --nproc-per-node=2 tests/bench/ddp_loops.py BATCH_SIZE STEPS ROUNDS FILE

The first process writes each round's seconds a step into FILE.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from loops import BareLoop, OurLoop, Setting, in_turns

UNMEASURED = 2


def main(batch_size: int, steps: int, rounds: int, file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    setting = Setting("TimedDigits", batch_size, (rounds + 1) * steps, clip_norm=1.0)
    ours = OurLoop(setting, f"s3://bench/ddp-{batch_size}")
    rows = []
    for blocks in in_turns({"bare": BareLoop(setting), "ours": ours}, rounds, steps, UNMEASURED):
        assert blocks["bare"].losses == blocks["ours"].losses
        rows.append({name: block.quick for name, block in blocks.items()})
    ours.session.trace.close()
    if dist.get_rank() == 0:
        Path(file).write_text(json.dumps(rows))
    dist.destroy_process_group()


if __name__ == "__main__":
    batch_size, steps, rounds = map(int, sys.argv[1:4])
    main(batch_size, steps, rounds, sys.argv[4])
