"""A run that saves through the proxy, and what must hold of its checkpoints whatever goes wrong meanwhile."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Self

import torch
from convergate.components.checkpoint import CheckpointError, CheckpointRef, CheckpointStore
from convergate.components.checkpoint.fallback import restore_newest
from convergate.components.checkpoint.reading import restore
from convergate.components.checkpoint.retention import Retention, retain
from convergate.components.checkpoint.saver import Saver
from convergate.components.errors import ConvergateError
from convergate.components.storage import S3Location, S3Store
from scene import PART_BYTES, Scene
from torch import Tensor

RUN = "run"
INTERVAL = 10
"""Steps between two saves."""
SECONDS = 60.0
"""The longest that anything may take, with the timeouts of the trials."""
SIZES = (500, PART_BYTES, 3 * PART_BYTES + 100)
"""Bytes of a state: less than a part, just more, several."""


def state_at(step: int, num_bytes: int) -> dict[str, Tensor]:
    """The state after so many updates: a function of nothing else."""
    chance = torch.Generator().manual_seed(step)
    return {
        "model.weight": torch.randn(num_bytes // 8, generator=chance),
        "optimizer.mean": torch.randn(num_bytes // 8, generator=chance),
        "optimizer.step": torch.tensor(step),
    }


class Heard(logging.Handler):
    """Hands on every line of the log from INFO on, warnings too."""

    def __init__(self, tell: Callable[[str], object]) -> None:
        super().__init__(logging.INFO)
        self.tell = tell

    @classmethod
    def by(cls, tell: Callable[[str], object]) -> Self:
        """One that hears everything in this process."""
        heard = cls(tell)
        logging.captureWarnings(True)
        logging.getLogger().setLevel(logging.INFO)
        logging.getLogger().addHandler(heard)
        return heard

    def emit(self, record: logging.LogRecord) -> None:
        """Hand on one line."""
        self.tell(record.getMessage())


class Writer:
    """One process of one attempt: it saves, and applies retention after each commit."""

    def __init__(self, uri: str, attempt: int, keep_last: int, rank: int = 0, world_size: int = 1) -> None:
        self.store = CheckpointStore(uri, RUN)
        self.attempt, self.rank, self._keep_last = attempt, rank, keep_last
        self.saver = Saver(self.store, rank, world_size)

    def save(self, step: int, num_bytes: int) -> CheckpointRef:
        """Save, and return once it is reported done."""
        self.begin(step, num_bytes)
        return self.finish(step)

    def finish(self, step: int) -> CheckpointRef:
        """Wait until the save that was begun is reported done."""
        self.saver.drain()
        return CheckpointRef(self.attempt, step, self.store.root)

    def begin(self, step: int, num_bytes: int) -> None:
        """Begin to save; it goes on in a thread."""
        self.saver.begin(
            state_at(step, num_bytes),
            attempt=self.attempt,
            step=step,
            training_digest="",
            state={"step": step},
            metrics={"val_loss": 1 / step},
            after_commit=lambda _: self._retain(),
        )

    def _retain(self) -> None:
        retain(self.store, Retention(keep_last=self._keep_last))


class Story:
    """One trial: what was reported, what was said, and what did not hold.

    Args:
        scene: where it takes place.
        name: of its bucket.
        chance: all that is random in it.
    """

    def __init__(self, scene: Scene, name: str, chance: Random) -> None:
        self.scene, self.proxy, self.chance = scene, scene.proxy, chance
        self.name = name
        self.num_bytes = chance.choice(SIZES)
        self.uri = f"s3://{name}/checkpoints"
        self.root = S3Location.parse(self.uri) / RUN
        self._writers: list[Writer] = []
        self.reported: list[CheckpointRef] = []
        self.errors: list[str] = []
        self.log: list[str] = []
        self.problems: list[str] = []
        self.garbled = False
        """A save was not reported done since what it wrote comes back otherwise, the marker perhaps."""
        with scene.direct():
            S3Store().ensure_bucket(S3Location(name))

    @property
    def newest(self) -> CheckpointRef:
        """The newest that was reported done."""
        return max(self.reported)

    @property
    def last(self) -> str:
        """What the last error said."""
        return self.errors[-1] if self.errors else "there was no error"

    def begin_attempt(self, step: int) -> int:
        """The number of an attempt that goes on from this step."""
        return CheckpointStore(self.uri, RUN).begin_attempt(step)

    def writer(self, attempt: int | None = None, keep_last: int = 2) -> Writer:
        """A process that saves, of an attempt from nothing where none is named."""
        self._writers.append(Writer(self.uri, attempt or self.begin_attempt(0), keep_last))
        return self._writers[-1]

    def next_attempt(self, keep_last: int = 2) -> Writer:
        """The process of an attempt that goes on from the newest checkpoint, which alone counts from now on."""
        found = self.read()
        step = found.step if found else 0
        self.reported = [found] if found else []
        return self.writer(self.begin_attempt(step), keep_last)

    def save(self, writer: Writer, step: int) -> bool:
        """Save; whether it was reported done. Why not is heard."""
        with self.heard() as failed:
            self.reported.append(writer.save(step, self.num_bytes))
        return not failed

    def finish(self, writer: Writer, step: int) -> bool:
        """Wait for a save that was begun; whether it was reported done."""
        with self.heard() as failed:
            self.reported.append(writer.finish(step))
        return not failed

    def save_well(self, writer: Writer, *steps: int) -> None:
        """Save where nothing is in the way."""
        for step in steps:
            assert self.save(writer, step), f"step {step} cannot be saved: {self.last}"

    def close(self) -> None:
        """Leave no thread behind."""
        for writer in self._writers:
            with self.heard():
                writer.saver.close()

    @contextmanager
    def heard(self) -> Iterator[list[str]]:
        """Take note of an error of the kind that is told in one line; yields the list that it will be in."""
        errors: list[str] = []
        try:
            yield errors
        except ConvergateError as error:
            errors.append(str(error))
            self.errors.append(str(error))

    def hold(self, condition: bool, problem: str) -> None:
        """Note a problem unless the condition holds."""
        if not condition:
            self.problems.append(problem)

    def read(self) -> CheckpointRef | None:
        """Restore the newest that is whole, as a training does when it starts; None where there is none at all."""
        found = restore_newest(CheckpointStore(self.uri, RUN), lambda ref: restore(ref.uri))
        if found is None:
            return None
        ref, (tensors, manifest) = found
        self.hold(manifest.step == ref.step, f"{ref.name} holds the manifest of step {manifest.step}")
        self.hold(is_exact(tensors, ref.step, self.num_bytes), f"{ref.name} is not, bit for bit, what was saved")
        return ref

    def judge(self, damaged: tuple[CheckpointRef, ...] = ()) -> CheckpointRef | None:
        """Let a fresh reader look, past the proxy: what was reported done is there, and whole.

        Args:
            damaged: after their commit, so that they may be lost.

        Returns:
            What a restart goes on from.
        """
        found = None
        with self.scene.direct():
            with self.heard() as failed:
                found = self.read()
            self.hold(not failed, f"nothing can be restored: {self.last}")
            behind = self.newest.step - found.step if found else self.newest.step
            allowed = INTERVAL if self.newest in damaged else 0
            instead = found.name if found else "nothing"
            self.hold(behind <= allowed, f"{self.newest.name} was reported done, {instead} is found")
            for ref in CheckpointStore(self.uri, RUN).live():
                self._judge_one(ref, ref in damaged)
            self._judge_secrets()
        return found

    def _judge_one(self, ref: CheckpointRef, is_damaged: bool) -> None:
        try:
            tensors, _ = restore(ref.uri)
        except CheckpointError as error:
            self.errors.append(str(error))
            is_garbled = self.garbled and ref not in self.reported
            self.hold(is_damaged or is_garbled, f"{ref.name} is committed, and cannot be restored: {error}")
        else:
            self.hold(not is_damaged, f"{ref.name} was damaged, and is loaded")
            self.hold(is_exact(tensors, ref.step, self.num_bytes), f"{ref.name} is not what was saved")

    def _judge_secrets(self) -> None:
        store = S3Store()
        documents = [location for location in store.list(S3Location.parse(self.uri)) if str(location).endswith(".json")]
        texts = [("an error", "\n".join(self.errors)), ("the log", "\n".join(self.log))]
        texts += [(str(location), store.read(location).decode(errors="replace")) for location in documents]
        for where, text in texts:
            self.hold(self.scene.secret not in text, f"the secret key is in {where}")

    def go_on(self, damaged: tuple[CheckpointRef, ...] = ()) -> None:
        """Judge, then start the next attempt without faults, and judge that."""
        self.judge(damaged)
        with self.scene.direct():
            writer = self.next_attempt()
            step = max((ref.step for ref in self.reported), default=0) + INTERVAL
            self.hold(self.save(writer, step), f"the next attempt cannot save: {self.last}")
        self.judge(damaged)


def is_exact(tensors: dict[str, Tensor], step: int, num_bytes: int) -> bool:
    """Whether tensors are the state of this step, bit for bit."""
    expected = state_at(step, num_bytes)
    return tensors.keys() == expected.keys() and all(
        tensors[name].numpy().tobytes() == tensor.numpy().tobytes() for name, tensor in expected.items()
    )
