"""Real runs of `convergate train`, killed by plan and launched again, as an orchestrator would, until they complete."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep

from convergate.components.checkpoint.refs import CheckpointRef, Tombstone
from convergate.components.storage import S3Location
from convergate.components.training.train import MAX_RESTARTS
from variants import Variant
from victims import MARK, Kill, Moment, Process, Victim, chosen, processes, strike

WAITS = {Moment.STARTING: 4.0, Moment.STEPPING: 0.05, Moment.SAVING: 0.0, Moment.FINISHING: 0.05}
"""A kill comes within so many seconds after its moment has begun."""
EXIT_CODES: dict[Victim, set[int]] = {
    Victim.WORKER: set(),
    Victim.AGENT: {1},
    Victim.COMMAND: {-9},
    Victim.ALL: {-9},
    Victim.TERMINATED: {143, -15},
}
"""That a launch may have after a kill; 1 besides, when lost workers have used up its restarts."""
KILLED_SECONDS = 5.0
"""After a SIGKILL, until no worker of that start may live."""
TERMINATED_SECONDS = 60.0
"""After a SIGTERM: the workers save first."""
LAUNCH_SECONDS = 180.0
"""The longest that a launch may take, on average over a run."""
_STEP = re.compile(r"step (\d+)/")
_RESUMED = re.compile(r"resumed at step \d+ from \S+/(attempt-\d+-step-\d+)")


class RunError(Exception):
    """A run did not go on as it must."""


@dataclass
class Struck:
    """A kill that was delivered, and what followed."""

    kill: Kill
    living: list[Process]
    """The run's processes just before."""
    at: float = field(default_factory=monotonic)
    """Seconds, of `monotonic`."""
    gone_seconds: float = float("inf")
    """Until no worker of that start lived."""
    committed: str | None = None
    """The newest checkpoint when they were gone."""
    resumed: list[str] = field(default_factory=list)
    """The checkpoints that later starts went on from, until the next kill."""
    recovery_seconds: float | None = None
    """Until it made progress again; None where the next kill came before, or nothing was left to do."""


class Run:
    """One run, in a bucket of its own.

    Args:
        variant: what it trains; the run has its name, and so the seed of every other run of it.
        bucket: where it writes; also what its processes are found by.
        home: of the S3 server, whose data are looked at past it, in the file system.
    """

    def __init__(self, variant: Variant, bucket: str, home: Path) -> None:
        self.variant, self.bucket = variant, bucket
        self.struck: list[Struck] = []
        self.data, self.log = home / "s3" / bucket, home / f"{bucket}.log"
        self.checkpoints = self.data / "checkpoints" / variant.name
        self._config = home / f"{bucket}.yaml"
        self._config.write_text(variant.config(bucket))
        self.log.touch()
        self._bytes_read = 0
        self._command: subprocess.Popen[bytes] | None = None
        self._losses = 0
        """Workers lost in this launch."""
        self._explained: set[int] = set()
        """The exit codes that this launch's kills explain."""
        self._starts, self._step = -1, -1
        """Of the workers, at the last kill; and the step that later ones have reached."""
        self._begun_at: float | None = None
        """Since when the moment of the next kill is there."""
        self._living: list[Process] = []
        self._looked_at = 0.0
        self._given_up: set[str] = set()
        """Folders of checkpoints that the killed left uncommitted."""

    def claims(self) -> list[Path]:
        """What each start of the workers left, the first first."""
        return sorted((self.data / "runs" / self.variant.name / "training.json.attempts").glob("*.json"))

    def committed(self) -> list[str]:
        """Its checkpoints that have a marker and that no later start went back behind, the newest last."""
        refs = [_ref(path) for path in self.checkpoints.glob("commits/*.json")]
        stones = [Tombstone(ref.attempt, ref.step) for ref in map(_ref, self.checkpoints.glob("tombstones/*"))]
        return [ref.name for ref in sorted(refs) if not any(stone.covers(ref) for stone in stones)]

    def carry_out(self, kills: list[Kill], final_step: int = 0) -> None:
        """Run to the end, at `final_step`, through all the kills.

        Raises:
            RunError: when it ends otherwise than the kills explain, or before they were delivered.
        """
        deadline = monotonic() + LAUNCH_SECONDS * (len(kills) + 1)
        for kill in kills:
            if not self._go_on(deadline, lambda kill=kill: self._is_due(kill, final_step) and self._strikes(kill)):
                raise RunError(f"{self.bucket} completed before kill {len(self.struck) + 1} of {len(kills)}")
            self._settle(self.struck[-1])
        self._go_on(deadline, lambda: False)

    def end(self) -> None:
        """Leave nothing behind that lives."""
        for process in processes(self.bucket):
            process.end()

    def _go_on(self, deadline: float, until: Callable[[], bool]) -> bool:
        """Launch, and launch again, until the condition holds, or the run has completed: then False."""
        while not until():
            if monotonic() > deadline:
                raise RunError(f"{self.bucket} takes too long")
            if self._command is None:
                self._launch()
            elif (code := self._command.poll()) is not None:
                self._command = None
                if code not in {0, *self._explained}:
                    last = (self.log.read_text(errors="replace").strip().splitlines() or ["nothing"])[-1]
                    raise RunError(f"{self.bucket} exited {code}, which no kill explains: {last}")
                if code == 0:
                    self._read_log()
                    return False
            self._read_log()
            sleep(0.002)
        return True

    def _launch(self) -> None:
        self._losses, self._explained = 0, set()
        with self.log.open("ab") as log:
            self._command = subprocess.Popen(
                [sys.executable, "-m", "convergate.cli.main", "train", self._config.name, "--run", self.variant.name],
                cwd=self._config.parent,
                env={**os.environ, MARK: self.bucket},
                stdout=log,
                stderr=log,
            )

    def _read_log(self) -> None:
        """Take in the lines that are new; what the killed workers still said doesn't count."""
        with self.log.open("rb") as log:
            log.seek(self._bytes_read)
            lines = log.read().rpartition(b"\n")[0]
        self._bytes_read += len(lines) + bool(lines)
        later = lines and len(self.claims()) > self._starts
        for line in lines.decode(errors="replace").splitlines() if later else ():
            if step := _STEP.match(line):
                self._step = int(step[1])
                if self.struck and self.struck[-1].recovery_seconds is None:
                    self.struck[-1].recovery_seconds = monotonic() - self.struck[-1].at
            elif (resumed := _RESUMED.match(line)) and self.struck:
                self.struck[-1].resumed.append(resumed[1])

    def _is_due(self, kill: Kill, final_step: int) -> bool:
        """Whether its moment has begun, as long ago as its chance says."""
        if self._begun_at is None and self._has_begun(kill, final_step):
            self._begun_at = monotonic()
        if kill.moment is Moment.STARTING and self._step >= kill.step:
            return True
        return self._begun_at is not None and monotonic() - self._begun_at >= kill.chance * WAITS[kill.moment]

    def _has_begun(self, kill: Kill, final_step: int) -> bool:
        if kill.moment is Moment.STARTING:
            return bool(chosen(kill, processes(self.bucket)))
        if kill.moment is Moment.STEPPING:
            return self._step >= kill.step
        if kill.moment is Moment.FINISHING:
            return any(name.endswith(f"-{final_step:09}") for name in self.committed())
        # A save is over in milliseconds: whom to kill has to be known before it begins.
        if monotonic() - self._looked_at > 0.2:
            self._living, self._looked_at = processes(self.bucket), monotonic()
        folder = max(self.checkpoints.glob("attempt-*"), default=None)
        if folder is None or folder.name in self._given_up or _ref(folder).step < kill.step:
            return False
        return _ref(folder).name not in self.committed()

    def _strikes(self, kill: Kill) -> bool:
        """Deliver a kill, if its victim lives."""
        living = self._living if kill.moment is Moment.SAVING else processes(self.bucket)
        met = chosen(kill, living)
        strike(kill, met)
        self._begun_at = None
        if met:
            self.struck.append(Struck(kill, living))
            self._losses += any(process.part is Victim.WORKER for process in met)
            self._explained |= EXIT_CODES[kill.victim] | ({1} if self._losses > MAX_RESTARTS else set())
        return bool(met)

    def _settle(self, struck: Struck) -> None:
        """Wait until the workers are gone that have to be, and see what is committed then."""
        limit = TERMINATED_SECONDS if struck.kill.victim is Victim.TERMINATED else KILLED_SECONDS
        while (left := self._left_alive(struck)) and monotonic() - struck.at < limit:
            sleep(0.01)
        if not left:
            struck.gone_seconds = monotonic() - struck.at
        committed = self.committed()
        struck.committed = committed[-1] if committed else None
        folders = self.checkpoints.glob("attempt-*")
        self._given_up = {folder.name for folder in folders if _ref(folder).name not in committed}
        self._starts, self._step = len(self.claims()), -1

    def _left_alive(self, struck: Struck) -> list[Process]:
        """The workers that have to end: any at all, unless there is an agent that starts others."""
        restarted = struck.kill.victim in (Victim.WORKER, Victim.TERMINATED)
        workers = [process for process in processes(self.bucket) if process.part is Victim.WORKER]
        return [process for process in workers if process in struck.living or not restarted]


def _ref(path: Path) -> CheckpointRef:
    """The checkpoint that a marker, a tombstone or a folder is of."""
    found = re.search(r"attempt-(\d+)-step-(\d+)", path.name)
    assert found is not None, path
    return CheckpointRef(int(found[1]), int(found[2]), S3Location("here"))
