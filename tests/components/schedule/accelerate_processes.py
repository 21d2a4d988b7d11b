"""What each process of the test with Accelerate runs, under torchrun: the rates of its updates, way by way.

    torchrun --nproc-per-node=2 accelerate_processes.py FOLDER

FOLDER holds job.json, and gets the rates and the checkpoints.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from convergate.components.schedule import CosineSchedule, ScheduleEvent
from convergate.components.schedule.torch_adapter import ScheduleLR
from torch.utils.data import DataLoader, TensorDataset


def rates(job: dict[str, Any], way: dict[str, Any], updates: range, checkpoint: Path) -> list[list[float]]:
    """The rates of these updates; they go on from the checkpoint where they don't begin at 0, else they save it.

    The event happens before they begin at 0, so that a resume knows of it only by the checkpoint.
    """
    options = {name: value for name, value in way.items() if name not in ("prepared", "split_batches")}
    loading = DataLoaderConfiguration(split_batches=way.get("split_batches", False))
    accelerator = Accelerator(cpu=True, dataloader_config=loading, **options)
    layer = torch.nn.Linear(4, 1)
    plain = torch.optim.SGD([{"params": [layer.weight]}, {"params": [layer.bias], "lr_scale": 0.3}], lr=123.0)
    used: list[list[float]] = []
    plain.register_step_pre_hook(lambda *_: used.append([group["lr"] for group in plain.param_groups]))
    data = DataLoader(TensorDataset(torch.randn(960, 4)), batch_size=8)
    model, optimizer, data = accelerator.prepare(layer, plain, data)
    scheduler: Any = ScheduleLR(plain, CosineSchedule(**job["schedule"]))
    if not updates.start:
        scheduler.add(ScheduleEvent.from_json(job["event"]))
    if way.get("prepared", True):
        scheduler = accelerator.prepare(scheduler)
    else:
        accelerator.register_for_checkpointing(scheduler)
    if updates.start:
        accelerator.load_state(str(checkpoint))
    for (inputs,) in data:
        with accelerator.accumulate(model):
            accelerator.backward(model(inputs).square().mean())
            optimizer.step()
            if accelerator.sync_gradients or way.get("split_batches"):
                scheduler.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients and len(used) == job["saved_at"] and not updates.start:
            accelerator.save_state(str(checkpoint))
        if len(used) == len(updates):
            break
    return used


def main(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text())
    found = {}
    for name, way in job["ways"].items():
        begins, checkpoint = (0, job["saved_at"]), folder / f"checkpoint {name}"
        found[name] = [rates(job, way, range(begin, job["updates"]), checkpoint) for begin in begins]
    (folder / f"rates-{Accelerator().process_index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
