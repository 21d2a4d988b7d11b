"""What goes wrong between processes: two that write at once, one of an older attempt, two ranks of which one dies."""

import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ranks
from faults import TIMES, drawn, judge_fault, requests_of_a_save
from proxy import Fault, Kind
from scene import patient
from story import INTERVAL, SECONDS, SIZES, Story, Writer

_OBJECT, _REPORT = r"\S+step-0+20-\w+/rank-0000{rank}\.bin", r"\S+step-0+20-\w+/rank-00001-\w+\.json"
_MANIFEST, _MARKER = r"\S+step-0+20-\w+/manifest\.json", r"\S+/commits/\S+step-0+20\.json"
STOPS = {
    "staged, nothing sent": (f"^P(U|OS)T {_OBJECT}", Kind.INSTEAD),
    "during the upload": (f"^PUT {_OBJECT}", Kind.AFTER),
    "uploaded, not reported": (f"^PUT {_REPORT}", Kind.INSTEAD),
    "reported": (f"^PUT {_REPORT}", Kind.AFTER),
    "all reported, no manifest": (f"^PUT {_MANIFEST}", Kind.INSTEAD),
    "manifest, no marker": (f"^PUT {_MANIFEST}", Kind.AFTER),
    "at the marker": (f"^PUT {_MARKER}", Kind.INSTEAD),
    "committed": (f"^PUT {_MARKER}", Kind.AFTER),
    "retention, marker there": (r"^DELETE \S+/commits/", Kind.INSTEAD),
    "retention, marker gone": (r"^DELETE \S+/commits/", Kind.AFTER),
    "retention, between objects": (r"^DELETE \S+/rank-0000", Kind.AFTER),
}
"""Where a rank is killed: at the first such request of the second save, instead of it or after it."""
_BEFORE_THE_COMMIT = r"^((GET|PUT|POST|HEAD) \S+/(rank-00000\.bin|manifest\.json)|(HEAD|PUT) \S+/commits/)"
TOGETHER = [f"^PUT {_OBJECT}", f"^PUT {_REPORT}", f"^GET {_REPORT}", f"^PUT {_MANIFEST}", f"^PUT {_MARKER}"]
"""Where faults meet two ranks that save together."""


def two_writers(story: Story, saves: int) -> None:
    """Of two processes with the same attempt number one waits, at any request, while the other saves."""
    first = story.writer(keep_last=1)
    second = story.writer(first.attempt, keep_last=1)
    with _held(story, first, r"."):
        for number in range(saves):
            story.save(second, 30 + number * INTERVAL)
    story.go_on()


def zombie(story: Story, saves: int) -> None:
    """A process of an older attempt commits after a newer one has begun, and has saved so many times."""
    old = story.writer(keep_last=1)
    with _held(story, old, _BEFORE_THE_COMMIT):
        new = story.next_attempt(keep_last=1)
        for number in range(1, saves + 1):
            story.save(new, 20 + number * INTERVAL)
        expected = list(story.reported)
    story.reported = expected
    found = story.judge()
    story.hold(found == story.newest, f"{found} is what a restart finds, not {story.newest}")
    story.go_on()


@contextmanager
def _held(story: Story, writer: Writer, requests: str) -> Iterator[None]:
    """A process whose third save waits at any of these requests while this block runs, and goes on afterwards."""
    lines = [line for line in requests_of_a_save(story, writer) if re.search(requests, line)]
    fault = drawn(story, Kind.BEFORE, lines)
    arrived, released = threading.Event(), threading.Event()
    fault.happens = lambda: (arrived.set(), released.wait(SECONDS))
    with patient(), story.proxy.injecting(fault):
        writer.begin(30, story.num_bytes)
        story.hold(arrived.wait(SECONDS), f"no request was like {fault.requests}")
        try:
            yield
        finally:
            released.set()
            story.finish(writer, 30)


def killed(story: Story, stop: str, rank: int) -> None:
    """One of two ranks is killed at a request of their second save."""
    pattern, kind = STOPS[stop]
    pair = ranks.Ranks()
    _save_together(story, pair, Fault(kind, pattern.format(rank=rank), happens=lambda: pair.kill(rank)))
    story.go_on()


def together(story: Story, kind: Kind) -> None:
    """A fault at a request of two ranks that save."""
    requests = story.chance.choice(TOGETHER).format(rank=story.chance.randrange(2))
    fault = Fault(kind, requests, 1, story.chance.choice(TIMES), story.chance.random())
    pair = ranks.Ranks()
    _save_together(story, pair, fault)
    judge_fault(story, fault, done=len(pair.reported) == 2)
    story.go_on()


def _save_together(story: Story, pair: ranks.Ranks, fault: Fault) -> None:
    story.num_bytes = 2 * SIZES[-1]
    attempt = story.begin_attempt(0)
    with tempfile.TemporaryDirectory() as meeting, story.proxy.injecting(fault):
        ranks.run(pair, story.uri, Path(meeting, "store"), [10, 20], story.num_bytes, attempt)
    story.reported, story.errors, story.log = pair.reported, pair.errors, pair.log
    story.problems += pair.crashes
    assert pair.reported, f"the first save fails: {story.last}"
    story.hold(not pair.alive, f"ranks {pair.alive} do not end")
    story.hold(fault.met > 0, f"no request was like {fault.requests}")
