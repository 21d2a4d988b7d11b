"""Checkpoints for a training loop of one's own.

    with Checkpoints("s3://models/checkpoints", "run-1", model, optimizer, scheduler=scheduler) as checkpoints:
        for step in range(checkpoints.restore(), num_steps):
            update(model, optimizer, scheduler)
            if (step + 1) % 100 == 0:
                checkpoints.save(step + 1)

Under torch.distributed every rank does the same; DDP, FSDP2 and their world size may change from run to run.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from ..errors import UserError
from .fallback import restore_newest
from .json_values import decode, encode
from .manifest import CheckpointError, Manifest
from .reading import MODEL_PREFIX, fill, open_checkpoint
from .refs import CheckpointRef
from .retention import Retention, retain
from .saver import Saver
from .store import CheckpointStore

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

_OPTIMIZER_PREFIX = "optim."
_OPTIONS = StateDictOptions(flatten_optimizer_state_dict=True)


class Stateful(Protocol):
    """What a resume needs besides model and optimizer: a scheduler, a scaler, a sampler."""

    def state_dict(self) -> dict[str, Any]:
        """Its state: numbers, texts, lists, tuples, dicts."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Take a state back."""


class Checkpoints:
    """The checkpoints of one run of a loop: model, optimizer, and what else has a state; not the random state."""

    def __init__(
        self,
        uri: str,
        run_id: str,
        model: "nn.Module",
        optimizer: "Optimizer | None" = None,
        /,
        *,
        keep_last: int = 3,
        **others: Stateful,
    ) -> None:
        """Nothing is read or written yet.

        Args:
            uri: `s3://bucket/prefix`, which holds a folder a run.
            run_id: a name of the run; the same one goes on, another one begins anew.
            model: its parameters and buffers.
            optimizer: its state, by the names of the model's parameters.
            keep_last: so many of the newest checkpoints are kept.
            others: by name; saved on rank 0, loaded on every rank.
        """
        self._store = CheckpointStore(uri, run_id)
        self._model, self._optimizers = model, () if optimizer is None else (optimizer,)
        self._others, self._keep_last = others, keep_last
        self._rank, self._world_size = _rank_and_world_size()
        self._saver = Saver(self._store, self._rank, self._world_size)
        self._attempt = 0
        self._previous: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None:
            self.close()
            return
        try:
            self._saver.close()  # not a collective: the other ranks may be elsewhere
        except CheckpointError as failed:
            error.add_note(str(failed))

    def restore(self) -> int:
        """Load the newest checkpoint that is whole; returns the updates that it has done, 0 where there is none.

        A damaged one is left out with a warning, and the one before it loaded.

        Raises:
            CheckpointError: when there are some and none is whole.
            UserError: when it is another model's.
            S3Error: when S3 fails; that is never taken for 'no checkpoint'.
        """
        found = restore_newest(self._store, self._load)
        step = found[0].step if found else 0
        self._previous = found[0].uri if found else None
        self._attempt = self._store.begin_attempt(step)
        return step

    def save(self, step: int) -> None:
        """Save after `step` updates; returns once the state is staged, and training may go on.

        Waits where the save before is still on its way.

        Raises:
            CheckpointError: when the save before failed, on any rank.
            UserError: when `restore` was not called first, or a state has no JSON form.
        """
        if self._attempt == 0:
            raise UserError("Checkpoints.save() before restore() → call restore() first, which begins the attempt")
        tensors, values = self._state()
        others = {name: one.state_dict() for name, one in self._others.items()}
        self._saver.begin(
            tensors,
            attempt=self._attempt,
            step=step,
            training_digest="",
            state={"optimizer": encode(values), "others": encode(others)},
            metrics={},
            previous=self._previous,
            after_commit=self._committed,
        )

    def close(self) -> None:
        """Wait until the last save is committed, on every rank.

        Raises:
            CheckpointError: when it failed, on any rank.
        """
        self._saver.drain()
        self._saver.close()

    def _committed(self, ref: CheckpointRef) -> None:
        self._previous = ref.uri
        retain(self._store, Retention(keep_last=self._keep_last))

    def _load(self, ref: CheckpointRef) -> None:
        tensors, _ = self._state()
        found = open_checkpoint(ref.uri)
        manifest = found.manifest
        self._require_same(manifest, ref, tensors)
        fill(found, tensors)
        set_state_dict(
            self._model,
            self._optimizers,
            model_state_dict=_below(MODEL_PREFIX, tensors),
            optim_state_dict={**_below(_OPTIMIZER_PREFIX, tensors), **decode(manifest.state["optimizer"])},
            options=_OPTIONS,
        )
        for name, state in decode(manifest.state["others"]).items():
            self._others[name].load_state_dict(state)

    def _require_same(self, manifest: Manifest, ref: CheckpointRef, tensors: Mapping[str, Tensor]) -> None:
        """Refuse a checkpoint of something else, before anything of it is loaded."""
        here = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        there = {stored.name: (stored.torch_dtype, stored.size) for stored in manifest.tensors}
        differing = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
        if differing:
            found, wanted = (_described(one.get(differing[0])) for one in (there, here))
            raise UserError(
                f"{ref.uri} is another model's or optimizer's: of {len(differing)} tensors that differ,"
                f" {differing[0]} is {found} in it and {wanted} here → another run_id"
            )
        names = sorted(self._others.keys() ^ manifest.state["others"].keys())
        if names:
            raise UserError(f"{ref.uri} and this loop do not both have a state of {', '.join(names)} → another run_id")

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors of model and optimizer, and the optimizer's other values."""
        found: tuple[Any, Any] = get_state_dict(self._model, self._optimizers, options=_OPTIONS)
        model, optimizer = found
        tensors = {f"{MODEL_PREFIX}{name}": value for name, value in model.items()}
        values = {}
        for name, value in optimizer.items():
            if isinstance(value, Tensor):
                tensors[f"{_OPTIMIZER_PREFIX}{name}"] = value
            else:
                values[name] = value
        return tensors, values


def _described(tensor: tuple[torch.dtype, tuple[int, ...]] | None) -> str:
    return "missing" if tensor is None else f"{str(tensor[0]).removeprefix('torch.')} {list(tensor[1])}"


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _rank_and_world_size() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


__all__ = ["CheckpointError", "Checkpoints", "Stateful"]
