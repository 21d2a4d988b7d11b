"""Go on from a checkpoint: the newest one that is whole on every rank."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..checkpoint import CheckpointRef, Manifest
from ..checkpoint.fallback import restore_newest
from ..checkpoint.reading import MODEL_PREFIX, fill, open_checkpoint
from ..errors import UserError
from ..telemetry import Detection
from .initial_weights import misfits
from .optimizer import prepare_state
from .progress import Progress
from .random_state import RandomState
from .result import Event
from .saving import OPTIMIZER_PREFIX, RNG_PREFIX, save, wait_until_saved
from .session import Session


def resume(session: Session) -> tuple[Progress, list[Event]]:
    """Restore the newest whole checkpoint that the job allows; begin anew where there is none. Every rank calls it.

    What attempts before this one committed beyond it, or still will, is given up.

    Raises:
        CheckpointError: when there are checkpoints, and none of them is whole.
        UserError: when it is another config's, seed's or model's.
        S3Error: when S3 fails; that is never taken for 'no checkpoint'.
    """
    seen, given = Progress(), session.job.resume_from
    progress, first_step = go_back(session, seen), session.step
    if progress is None and given is not None:
        progress = _adopt(session, given, *_load(session, given))
        # Whole and this attempt's own, before what the run had is given up.
        save(session, progress)
        wait_until_saved(session)
    if session.rank == 0:
        session.checkpoints.give_up(session.attempt, first_step)
    if progress is None:
        session.begin()
        return seen, []
    progress.events += seen.events
    if session.rank == 0:
        print(f"resumed at step {session.step} from {session.newest_uri}", flush=True)  # noqa: T201 - the step's log
    detail = f"attempt {session.attempt} from {session.newest_uri}"
    return progress, [Event(step=session.step, kind="resumed", detail=detail)]


def go_back(
    session: Session, seen: Progress, wanted: Callable[[CheckpointRef], bool] = lambda _: True
) -> Progress | None:
    """Restore the newest checkpoint that is `wanted` and whole, also one of another world size; every rank calls it.

    Each damaged one on the way is an event in `seen`.

    Returns:
        What was seen until then; None where no such checkpoint was committed.

    Raises:
        CheckpointError: when such checkpoints were committed, and none is whole: model and optimizer are worth nothing.
        UserError: when it belongs to another config, seed or model.
    """

    def on_damage(ref: CheckpointRef, problem: str) -> None:
        session.note(seen, Detection(ref.step, "checkpoint_damaged", problem))

    found = restore_newest(
        session.checkpoints,
        lambda ref: _load(session, ref.uri),
        oldest_attempt=session.job.oldest_attempt,
        wanted=wanted,
        on_damage=on_damage,
    )
    if found is None:
        return None
    ref, loaded = found
    return _adopt(session, ref.uri, *loaded)


def _load(session: Session, uri: str) -> tuple[Manifest, dict[str, Tensor]]:
    """Load a checkpoint into this rank's part of model and optimizer.

    Returns:
        Its manifest, and this rank's random states; none where it was made at another world size.
    """
    found = open_checkpoint(uri)
    manifest = found.manifest
    _refuse_other_run(session, manifest, uri)
    targets = {f"{MODEL_PREFIX}{name}": tensor for name, tensor in session.module.state_dict().items()}
    saved = prepare_state(session.optimizer, session.module, manifest.described(OPTIMIZER_PREFIX))
    targets |= {f"{OPTIMIZER_PREFIX}{name}": tensor for name, tensor in saved.items()}
    mine, random_states = f"{RNG_PREFIX}{session.rank}.", {}
    if manifest.world_size == session.world_size:
        described = manifest.described(mine)
        random_states = {name: torch.empty_like(tensor, device="cpu") for name, tensor in described.items()}
    fill(found, targets | {mine + name: tensor for name, tensor in random_states.items()})
    return manifest, random_states


def _adopt(session: Session, uri: str, manifest: Manifest, random_states: dict[str, Tensor]) -> Progress:
    """Take the rest of the state, once every rank has its tensors; returns what was seen until then."""
    state = manifest.state
    session.scheduler.load_state_dict(state["scheduler"])
    session.scaler.load_state_dict(state["scaler"])
    session.rules.load_state(state["rules"])
    session.step, session.metrics = manifest.step, dict(manifest.metrics)
    session.skipped_updates = state["skipped_updates"]
    if state["ended_early"]:
        session.end_step = min(session.end_step, manifest.step)
    session.device_seconds = state["device_seconds"]
    session.init_uri, session.init_digest = state["init_uri"], state["init_digest"]
    session.newest_uri, session.saved_step = uri, manifest.step
    if random_states:
        RandomState.from_tensors(random_states).set_again(session.device)
    return Progress.from_state(state["progress"])


def _refuse_other_run(session: Session, manifest: Manifest, uri: str) -> None:
    mine = session.digests.training
    if manifest.training_digest != mine:
        raise UserError(
            f"{uri} was made under config {manifest.training_digest[:12]}…, this is {mine[:12]}…"
            " → --resume never, or resume with the config that made it"
        )
    if manifest.state["seed"] != session.job.seed:
        raise UserError(
            f"{uri} was made with the seed {manifest.state['seed']}, this run's is {session.job.seed}"
            " → --resume never, or resume the run that made it"
        )
    different = misfits(session.module.state_dict(), manifest)
    if different:
        raise UserError(f"{uri} is another model's: {different} → --resume never, or the code that made it")
