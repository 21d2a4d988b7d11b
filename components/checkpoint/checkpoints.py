"""Checkpoints for a training loop of one's own.

    with Checkpoints("s3://models/checkpoints", "run-1", model, optimizer, scheduler=scheduler) as checkpoints:
        for step in range(checkpoints.restore(), num_steps):
            update(model, optimizer, scheduler)
            if (step + 1) % 100 == 0:
                checkpoints.save(step + 1)

Under torch.distributed every rank does the same; DDP, FSDP2 and their world size may change from run to run.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from ..errors import UserError
from .fallback import restore_newest
from .manifest import CheckpointError
from .reading import MODEL_PREFIX, restore
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
        """Its state, as JSON values."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Take a state back."""


class Checkpoints:
    """The checkpoints of one run of a loop: model, optimizer, and what else has a state of JSON values."""

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

    def __exit__(self, *_: object) -> None:
        self.close()

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
            CheckpointError: when the save before failed; nothing of it was published.
            UserError: when `restore` was not called first, or a state has no JSON form.
        """
        if self._attempt == 0:
            raise UserError("Checkpoints.save() before restore() → call restore() first, which begins the attempt")
        tensors, values = self._state()
        state = {"optimizer": values, "others": {name: one.state_dict() for name, one in self._others.items()}}
        try:
            json.dumps(state)
        except TypeError as error:
            raise UserError(f"a state to save is no JSON: {error} → give Checkpoints what has one") from error
        ref = CheckpointRef(self._attempt, step, self._store.root)
        self._saver.begin(
            tensors,
            attempt=self._attempt,
            step=step,
            training_digest="",
            state=state,
            metrics={},
            previous=self._previous,
            after_commit=lambda _: self._retain(),
        )
        self._previous = ref.uri

    def close(self) -> None:
        """Wait until the last save is committed.

        Raises:
            CheckpointError: when it failed.
        """
        self._saver.close()

    def _retain(self) -> None:
        retain(self._store, Retention(keep_last=self._keep_last))

    def _load(self, ref: CheckpointRef) -> None:
        tensors, values = self._state()
        _, manifest = restore(ref.uri, into=tensors)
        # JSON makes lists of tuples, such as AdamW's betas.
        saved: dict[str, Any] = {
            name: tuple(value) if isinstance(values.get(name), tuple) else value
            for name, value in manifest.state["optimizer"].items()
        }
        set_state_dict(
            self._model,
            self._optimizers,
            model_state_dict=_below(MODEL_PREFIX, tensors),
            optim_state_dict={**_below(_OPTIMIZER_PREFIX, tensors), **saved},
            options=_OPTIONS,
        )
        missing = sorted(self._others.keys() - manifest.state["others"].keys())
        if missing:
            raise UserError(f"{ref.uri} holds no state of {', '.join(missing)} → another run_id")
        for name, one in self._others.items():
            one.load_state_dict(manifest.state["others"][name])

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


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _rank_and_world_size() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


__all__ = ["CheckpointError", "Checkpoints", "Stateful"]
