"""The deck of trials: every case as often as any other, each time with something else drawn for it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from random import Random

from at_rest import DAMAGES, FORGERIES
from faults import (
    RESTORE_FAULTS,
    SAVE_FAULTS,
    abandoned,
    all_damaged,
    damaged,
    disk_full,
    forged,
    restoring,
    saving,
    server_killed,
)
from proxy import Kind
from races import STOPS, killed, together, two_writers, zombie
from scene import MOTO, RCLONE, SMALL_DISK
from story import Story


@dataclass(frozen=True)
class Case:
    """A kind of trial; its name is a row of the table."""

    name: str
    play: Callable[[Story], None]
    server: str = RCLONE


def _cases() -> Iterator[Case]:
    for kind in SAVE_FAULTS:
        yield Case(f"save: {kind}", partial(saving, kind=kind))
    for kind in RESTORE_FAULTS:
        yield Case(f"restore: {kind}", partial(restoring, kind=kind))
    for kind in SAVE_FAULTS:
        yield Case(f"two ranks: {kind}", partial(together, kind=kind))
    for stop, rank in product(STOPS, (0, 1)):
        yield Case(f"kill -9 of rank {rank}: {stop}", partial(killed, stop=stop, rank=rank))
    for name, damage in DAMAGES.items():
        yield Case(f"at rest: {name}", partial(damaged, damage=damage))
    for name, damage in FORGERIES.items():
        yield Case(f"at rest: {name}", partial(forged, damage=damage))
    yield Case("at rest: every checkpoint damaged", all_damaged)
    yield Case("at rest: an abandoned upload", abandoned)
    for verb, play in (("saving", saving), ("restoring", restoring)):
        yield Case(f"server killed and back, {verb}", partial(server_killed, play=play, back=True))
        yield Case(f"server killed, {verb}", partial(server_killed, play=play, back=False))
    yield Case("disk full at the server", disk_full, SMALL_DISK)
    for server, note in ((RCLONE, ""), (MOTO, ", conditional writes")):
        yield Case(f"two writers, same attempt{note}", partial(two_writers, saves=1), server)
        yield Case(f"two writers, one ahead{note}", partial(two_writers, saves=2), server)
        yield Case(f"zombie, newer attempt begun{note}", partial(zombie, saves=0), server)
        yield Case(f"zombie, newer attempt has saved{note}", partial(zombie, saves=1), server)
    yield Case("save: answer lost, conditional writes", partial(saving, kind=Kind.LOST_ANSWER), MOTO)


CASES = tuple(_cases())


def drawn_case(number: int, seed: int) -> Case:
    """The case of a trial: all of them come once before any comes again, in an order of chance."""
    order = list(CASES)
    Random(f"{seed} {number // len(CASES)}").shuffle(order)
    return order[number % len(CASES)]
