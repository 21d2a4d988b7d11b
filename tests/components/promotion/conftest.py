"""A small model with real checkpoints, and decisions about it."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
import torch
from convergate.components.checkpoint.reading import read_manifest
from convergate.components.config import RunConfig, config_digests
from convergate.components.slo.decision import Decision
from convergate.components.slo.standing import Standing
from convergate.components.task.resnet import ResNet

from ...checkpoints import commit

WIDTH = 4

MakeConfig = Callable[..., RunConfig]
MakeDecision = Callable[..., Decision]


@pytest.fixture
def make_config() -> MakeConfig:
    """A config with its root on S3 and a model's name that no other test uses."""
    name = f"digits-{uuid4().hex[:8]}"

    def make(root: str, **changes: Any) -> RunConfig:
        raw: dict[str, Any] = {
            "schema_version": 1,
            "experiment": name,
            "task": {"factory": "convergate.components.task.digits:DigitsTask", "params": {"width": WIDTH}},
            "schedule": {"kind": "cosine", "lr0": 0.1, "total_steps": 10},
            "training": {"batch_size": 8},
            "checkpoint": {"uri": f"{root}/checkpoints"},
            "storage": {"uri": root},
            "evaluation": {"metric": "accuracy", "target": 0.9},
            "promotion": {"model": name},
        }
        return RunConfig.model_validate(raw | changes)

    return make


def trained_model(seed: int) -> ResNet:
    """A model in evaluation mode whose weights and running statistics are `seed`'s."""
    torch.manual_seed(seed)
    model = ResNet(width=WIDTH, num_classes=10)
    model(torch.randn(16, 1, 8, 8))
    return model.eval()


def save_checkpoint(config: RunConfig, run_id: str, seed: int) -> tuple[str, str]:
    """A committed checkpoint of `trained_model(seed)`: its URI and digest."""
    tensors = {f"model.{name}": tensor for name, tensor in trained_model(seed).state_dict().items()}
    digest = config_digests(config).training
    ref = commit(config.checkpoint.uri, run_id, tensors, training_digest=digest)
    return ref.uri, read_manifest(ref.uri)[1]


@pytest.fixture
def make_decision() -> MakeDecision:
    """A decision over a fresh checkpoint of a run."""

    def make(config: RunConfig, run_id: str, seed: int = 0, **changes: Any) -> Decision:
        uri, digest = save_checkpoint(config, run_id, seed)
        digests = config_digests(config)
        decision = Decision(
            run_id=run_id,
            summary="PROMOTE: the candidate passes",
            decision="PROMOTE",
            reasons=["the candidate passes"],
            checks=[],
            standing=Standing(
                slis=[],
                classes={},
                raw_converged=5,
                raw_total=5,
                allowed_failures=10,
                failures=0,
                alarm=False,
                burning=[],
            ),
            training_digest=digests.training,
            policy_digest=digests.policy,
            checkpoint_uri=uri,
            checkpoint_digest=digest,
            seed="1",
            team="vision",
            contact="",
        )
        return decision.model_copy(update=changes)

    return make
