"""What is trained while it is killed: small, short runs that each depend on something else that a restart must keep."""

from dataclasses import dataclass, field
from typing import Any

import yaml

TOTAL_STEPS = 120
SAVE_EVERY = 10
LAST_KILL_STEP = TOTAL_STEPS - 4 * SAVE_EVERY
"""A kill from here on could come too late."""
_DIGITS = {"factory": "convergate.components.task.digits:DigitsTask", "params": {"width": 8}}
_TEXT = {
    "factory": "convergate.components.task.stdlib_text:StdlibTextTask",
    "params": {"width": 32, "num_blocks": 1},
}


@dataclass(frozen=True)
class Variant:
    """A training, by how it departs from the plain one on the digits."""

    name: str
    text: bool = False
    """The small GPT under AdamW, instead of the ResNet under SGD."""
    schedule: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    strategy: str = "ddp"
    clip: float | None = 1.0

    def config(self, bucket: str) -> str:
        """Its config, as YAML, with everything that it writes in one bucket."""
        lr0, batch_size = (0.003, 32) if self.text else (0.1, 64)
        schedule = {"lr0": lr0, "lr_min": lr0 / 100, "total_steps": TOTAL_STEPS, "warmup": {"steps": 8}}
        return yaml.safe_dump(
            {
                "schema_version": 1,
                "experiment": "chaos",
                "seed": 17,
                "task": _TEXT if self.text else _DIGITS,
                "optimizer": {"kind": "adamw" if self.text else "sgd", "grad_clip_norm": self.clip},
                "schedule": schedule | self.schedule,
                "training": {"batch_size": batch_size, "eval_every_steps": SAVE_EVERY} | self.training,
                "distributed": {"procs_per_node": 2, "strategy": self.strategy},
                "checkpoint": {"uri": f"s3://{bucket}/checkpoints", "every_steps": SAVE_EVERY, "keep_last": 2},
                "evaluation": {"metric": "accuracy", "target": 0.9},
                "promotion": {"model": "chaos"},
                "storage": {"uri": f"s3://{bucket}"},
            }
        )


_NEVER = {"metric": "val_loss", "threshold": 100.0}
"""A plateau's metric that no improvement is enough for, so that the rule acts whatever the losses are."""

VARIANTS = (
    Variant("digits"),
    Variant("text", text=True),
    Variant("digits-accumulation", training={"grad_accumulation": 2}),
    Variant("text-bf16", text=True, training={"precision": "bf16"}),
    Variant("digits-fp16", training={"precision": "fp16", "batch_size": 2}, schedule={"lr0": 0.01}),
    Variant("text-fp16", text=True, training={"precision": "fp16", "grad_accumulation": 2}),
    Variant(
        "digits-restarts",
        schedule={
            "kind": "cosine_restarts",
            "restarts": {"cycle_steps": 60, "scale": 0.8, "on_plateau": {"patience": 3, "max": 3, **_NEVER}},
        },
    ),
    Variant(
        "text-plateau", text=True, schedule={"kind": "plateau", "plateau": {"patience": 2, "factor": 0.5, **_NEVER}}
    ),
    Variant("digits-fsdp2", strategy="fsdp2"),
    Variant("text-fsdp2", text=True, strategy="fsdp2"),
    Variant(
        "digits-early-end",
        schedule={"total_steps": 2 * TOTAL_STEPS},
        training={"early_stopping": {"metric": "val_loss", "patience": 11, "min_delta": 100.0}},
    ),
    Variant(
        "digits-rollback",
        schedule={"lr0": 10.0, "warmup": {"steps": 60}},
        training={"rollback": {"max": 3, "lr_scale": 0.01}},
        clip=None,
    ),
)
