"""Begin with the weights of a checkpoint: the model's parameters and buffers, and nothing else of it."""

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from ..checkpoint import Manifest
from ..checkpoint.reading import MODEL_PREFIX, fill, open_checkpoint
from ..errors import UserError

MAX_NAMED = 4
"""Tensors that an error names."""


def load_initial_weights(module: nn.Module, uri: str, digest: str) -> None:
    """Fill a model in place, also one that is sharded, once its tensors were compared with the manifest's.

    Raises:
        UserError: when the checkpoint is another model's.
        CheckpointError: when its manifest's SHA-256 is not `digest`, or its bytes are not the manifest's.
        S3Error: when it is gone, or S3 fails.
    """
    found = open_checkpoint(uri, digest)
    wanted: dict[str, Tensor] = module.state_dict()
    different = misfits(wanted, found.manifest)
    if different:
        raise UserError(
            f"training.init_from: {uri} is another model's: {different}"
            " → a checkpoint of this model, or init_from: null"
        )
    fill(found, {f"{MODEL_PREFIX}{name}": tensor for name, tensor in wanted.items()})


def misfits(wanted: Mapping[str, Tensor], manifest: Manifest) -> str:
    """Where the names and shapes of a model's tensors differ from those of a checkpoint; empty where they don't."""
    found = list(_misfits(wanted, manifest.described(MODEL_PREFIX)))
    more = f"; and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
    return "; ".join(found[:MAX_NAMED]) + more


def _misfits(wanted: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> Iterator[str]:
    """The model's tensors first."""
    for name, tensor in wanted.items():
        if name not in stored:
            yield f"it has no {name}"
        elif stored[name].shape != tensor.shape:
            yield f"{name} is {list(stored[name].shape)} there and {list(tensor.shape)} here"
    yield from (f"the model has no {name}" for name in sorted(stored.keys() - wanted.keys()))
