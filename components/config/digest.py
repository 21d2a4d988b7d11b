"""Digests of a config: SHA-256 over canonical JSON (RFC 8785), and the seed derived from them.

A key at its default is left out, so a config that states a default and one that omits it are the same run,
and a key added in a later version changes no old digest.
"""

import hashlib
import hmac
from typing import Any

import rfc8785
from pydantic import BaseModel, ConfigDict

from .models import RunConfig

TRAINING_SECTIONS = ("task", "optimizer", "schedule", "training")
POLICY_SECTIONS = ("slo", "promotion", "budget", "evaluation")


class Digests(BaseModel):
    """The two digests of a config, 64 hex digits each; a signature covers both."""

    model_config = ConfigDict(frozen=True)

    training: str
    """What influences the weights, without the seed."""
    policy: str
    """What influences the decision."""

    @property
    def short(self) -> str:
        """The training digest as people read it."""
        return f"{self.training[:4]}…{self.training[-2:]}"


def config_digests(config: RunConfig) -> Digests:
    """The digests of a config."""
    dumped: dict[str, Any] = config.model_dump(mode="json", exclude_defaults=True)
    training = {name: dumped[name] for name in TRAINING_SECTIONS if name in dumped}
    distributed = config.distributed
    training["distributed"] = {"world_size": distributed.world_size, "strategy": distributed.strategy}
    policy = {name: dumped[name] for name in POLICY_SECTIONS if name in dumped}
    return Digests(training=canonical_digest(training), policy=canonical_digest(policy))


def canonical_digest(value: Any) -> str:
    """SHA-256 over the canonical JSON of a value, 64 hex digits."""
    return hashlib.sha256(rfc8785.dumps(value)).hexdigest()


def derive_seed(config: RunConfig, run_id: str) -> int:
    """The 32-bit seed of a run: HMAC-SHA256 over the training digest and the run's id, keyed by `config.seed`.

    Nobody picks it, so nobody picks a lucky one; the same run, retried, has the same seed.
    """
    message = f"{config_digests(config).training}:{run_id}".encode()
    return int.from_bytes(hmac.digest(str(config.seed).encode(), message, "sha256")[:4])
