"""A row of the doctor's answer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

from ...components.errors import ConvergateError

State = Literal["ok", "failed", "unknown"]


@dataclass(frozen=True, slots=True)
class Row:
    """What one check found; `unknown` is what cannot be told, or is optional and not there: it fails nothing."""

    name: str
    state: State
    figure: str
    fix: str = ""
    """What to do, with the command; empty where nothing is to be done."""

    @classmethod
    def ok(cls, name: str, figure: str) -> Self:
        """As it should be."""
        return cls(name, "ok", figure)

    @classmethod
    def failed(cls, name: str, figure: str, fix: str) -> Self:
        """Something that is needed, and is not as it should be."""
        return cls(name, "failed", figure, fix)

    @classmethod
    def unknown(cls, name: str, figure: str, fix: str = "") -> Self:
        """Nobody can tell from here, or it is optional."""
        return cls(name, "unknown", figure, fix)

    @classmethod
    def hidden(cls, name: str, error: ConvergateError, fix: str = "") -> Self:
        """What this user may not look at; the fix in the error's words would be of a step's account."""
        return cls(name, "unknown", f"not known: {_figure(error)}", fix and f"an administrator: {fix}")

    @classmethod
    def of(cls, name: str, error: ConvergateError) -> Self:
        """A failure in its own words."""
        figure, _, fix = str(error).partition(" → ")
        return cls(name, "failed", figure, fix)


def _figure(error: ConvergateError) -> str:
    return str(error).partition(" → ")[0]


def examined(name: str, check: Callable[[], Row]) -> Row:
    """The row of a check, also where it ends by an error."""
    try:
        return check()
    except ConvergateError as error:
        return Row.of(name, error)
