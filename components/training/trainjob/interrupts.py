"""SIGTERM and SIGINT while the launcher waits: they end the wait, but not a create that is on its way."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class SignalledError(BaseException):
    """A signal, raised where the launcher waits; nothing that handles errors swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Hold:
    """Whether a signal waits until the request under way is answered: a create must not arrive after the delete."""

    def __init__(self) -> None:
        self._on = False
        self._signum: int | None = None
        self._ending = False

    def end(self) -> None:
        """From now on only SIGINT is raised, that of a person who won't wait: Argo tells a step to end twice."""
        self._ending = True

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Hold signals back inside this block; one that came is raised at its end."""
        self._on = True
        try:
            yield
        finally:
            self._on = False
            if self._signum is not None:
                raise SignalledError(self._signum)

    def receive(self, signum: int, _frame: FrameType | None = None) -> None:
        """Handle a signal: now, or when the request is answered."""
        if self._ending and signum == signal.SIGTERM:
            return
        if not self._on:
            raise SignalledError(signum)
        self._signum = signum


@contextlib.contextmanager
def raising_signals(hold: Hold) -> Iterator[None]:
    """Let SIGTERM and SIGINT raise `SignalledError`; in a thread that is not the main one they stay the caller's."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, hold.receive) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
