"""The threads of one upload or download: bounded time together, one end for all of them, and a pace."""

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from random import SystemRandom
from threading import Event, Lock
from time import monotonic, sleep
from types import TracebackType
from typing import Self, TypeVar

from .errors import S3Error

THREADS = 4
BLOCK_BYTES = 2**20
"""What is sent or received at once, at most: so large that Python's share of the work is small."""
TRIES = 3
BASE_SECONDS = 60.0
SLOWEST_BYTES_PER_SECOND = 2**20
_LONGEST_NAP_SECONDS = 0.1

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def allowed_seconds(num_bytes: int) -> float:
    """So long a transfer of so many bytes may take."""
    return BASE_SECONDS + num_bytes / SLOWEST_BYTES_PER_SECOND


def persist(
    act: Callable[[], Answer], may_pass: Callable[[S3Error], bool], nap: Callable[[float], object] = sleep
) -> Answer:
    """Do it, a few times where the error may pass, longer apart each time; the jitter is not the training's."""
    for tries in range(1, TRIES):
        try:
            return act()
        except S3Error as error:
            if not may_pass(error):
                raise
        nap(SystemRandom().uniform(0, tries / 2))
    return act()


class Pace:
    """A throttle that transfers share: bytes per second, which anybody may change at any time."""

    def __init__(self, rate: float = math.inf) -> None:
        self.rate = rate
        """Bytes per second; 0 halts."""
        self.taken = 0
        """Bytes, in all."""
        self._lock = Lock()
        self._owed, self._at = 0.0, monotonic()

    def take(self, num_bytes: int, nap: Callable[[float], object] = sleep) -> None:
        """Wait until what was taken before is paid for, then take these bytes."""
        while self.rate < math.inf:
            with self._lock:
                rate, now = self.rate, monotonic()
                self._owed, self._at = max(0.0, self._owed - rate * (now - self._at)), now
                if self._owed < 1 and rate > 0:
                    self._owed += num_bytes
                    break
                wait = self._owed / rate if rate > 0 else math.inf
            nap(min(wait, _LONGEST_NAP_SECONDS))
        with self._lock:
            self.taken += num_bytes


class Stopped(BaseException):
    """This transfer ends. Not an `Exception`, for botocore would take it for the network's and try again."""


class Transfer:
    """One upload or download; used by `with`, it is an S3Error to leave it late.

    Args:
        what: verb and object, for messages.
        num_bytes: in all; they bound the time.
        pace: a throttle.
    """

    def __init__(self, what: str, num_bytes: int, pace: Pace | None = None) -> None:
        self._what, self._pace = what, pace
        self._seconds = allowed_seconds(num_bytes)
        self._end = monotonic() + self._seconds
        self._stopped = Event()
        self._cuts: set[Callable[[], object]] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: TracebackType | None) -> None:
        if isinstance(error, Stopped):
            raise S3Error(
                f"cannot {self._what}: not done after {self._seconds:.0f} s → check the network and the server"
            ) from None

    def map(self, act: Callable[[Item], Answer], items: Iterable[Item]) -> list[Answer]:
        """Do it for each item, in a few threads; the first error stops the others.

        Raises:
            S3Error: the first error.
        """
        with ThreadPoolExecutor(THREADS, thread_name_prefix="s3") as pool:
            futures = [pool.submit(act, item) for item in items]
            try:
                for future in as_completed(futures, self._end - monotonic()):
                    future.result()
            except BaseException as error:
                self._stopped.set()
                for cut in tuple(self._cuts):
                    with suppress(OSError, ValueError):  # it has ended meanwhile
                        cut()
                pool.shutdown(cancel_futures=True)
                self._stopped.clear()
                if isinstance(error, TimeoutError):
                    raise Stopped from None
                raise
        return [future.result() for future in futures]

    @contextmanager
    def cut_short(self, cut: Callable[[], object]) -> Iterator[None]:
        """Inside the block `cut` is called where the transfer ends, so that nobody waits for what comes too slowly."""
        self._cuts.add(cut)
        try:
            yield
        finally:
            self._cuts.remove(cut)

    def check(self) -> None:
        """Leave the thread where another one failed or the time is up."""
        if self._stopped.is_set() or monotonic() > self._end:
            raise Stopped

    def nap(self, seconds: float) -> None:
        """Wait, but not longer than the transfer lasts."""
        self._stopped.wait(seconds)
        self.check()

    def body(self, data: memoryview) -> "Body":
        """What boto3 sends of this memory."""
        return Body(data, self, self._pace)


class Body:
    """A file over memory that is not copied: a read gives a view of it, of a block or more."""

    def __init__(self, data: memoryview, transfer: Transfer, pace: Pace | None) -> None:
        self._data, self._transfer, self._pace = data, transfer, pace
        self._position = 0

    def __len__(self) -> int:
        return len(self._data)

    def tell(self) -> int:
        """The position."""
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a position: from the start, from here or from the end."""
        self._position = offset + (0, self._position, len(self._data))[whence]
        return self._position

    def read(self, size: int = -1) -> memoryview:
        """A view of what follows, of a block however little was asked for: http.client asks for 16 KiB at a time."""
        self._transfer.check()
        end = self._position + max(size, BLOCK_BYTES) if size >= 0 else len(self._data)
        block = self._data[self._position : end]
        if self._pace is not None:
            self._pace.take(len(block), self._transfer.nap)
        self._position += len(block)
        return block
