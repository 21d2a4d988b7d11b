"""The style of every picture, and its way into the page.

Text stays text (`svg.fonttype: none`): a tenth of the size of glyphs as paths, sharp at every zoom, in the
page's own font. Colours become CSS variables with the light colour as fallback, so the page alone says what
dark looks like. Matplotlib is imported when something is drawn.
"""

import contextlib
import html
import io
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 5.8
"""Inches; 418 units of the SVG. A phone shows it at 0.85, half a wide page at 1.3."""
COLOURS = {
    "ink": "#27313d",
    "muted": "#6c7886",
    "grid": "#e4e8ed",
    "paper": "#fefefe",
    "planned": "#a9cdf5",
    "applied": "#123f73",
    "good": "#1d8453",
    "bad": "#c8321f",
    "zone": "#e3f2e9",
    "series0": "#0a6fb3",
    "series1": "#d55e00",
    "series2": "#098f72",
    "series3": "#a8528a",
}
NUM_SERIES = 4
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "convergate",
    "path.simplify": True,
    "font.size": 9.5,
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.labelsize": 9.0,
    "axes.edgecolor": COLOURS["muted"],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "figure.facecolor": "none",
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.8,
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "ytick.major.size": 0.0,
    "ytick.minor.size": 0.0,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "legend.handlelength": 1.6,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The house style, whatever a user's matplotlibrc says."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        settings: Any = mpl.rcParams
        settings.update(_STYLE)
        yield


def new_figure(height: float) -> "Figure":
    """An empty figure of the page's width, `height` inches high; without pyplot nothing global stays."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def picture(name: str, label: str, height: float, paint: "Callable[[Figure], None]") -> str:
    """Paint a figure and give it as inline SVG; the same figures give the same bytes.

    Args:
        name: prefix of every id in it, so that pictures do not meet in one page.
        label: what a screen reader says.
        height: in inches.
        paint: draws on the empty figure.
    """
    with style():
        figure = new_figure(height)
        paint(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(buffer.getvalue(), name, label)


def step_axis(axes: "Axes", label: str = "update") -> None:
    """The x axis of a run: whole updates, few ticks, thousands grouped."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel(label)
    axes.margins(x=0.01)


def value_axis(axes: "Axes", *, logarithmic: bool = False) -> None:
    """The y axis: plain numbers, never mathtext; a logarithmic one only where the values span decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    plain = FuncFormatter(lambda value, _: f"{value:.6g}")
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0,), numticks=6))
        low, high = axes.get_ylim()
        if high / low < 100:  # noqa: PLR2004 - two decades hold too few powers of ten to read a value by
            axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0), numticks=8))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(plain)


def _inline(svg: str, name: str, label: str) -> str:
    """Matplotlib's file as an element of a page: no prologue, no metadata, no fixed size, ids of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    for colour, value in COLOURS.items():
        svg = svg.replace(value, f"var(--plot-{colour},{value})")
    head, _, rest = svg.partition(">")
    head = re.sub(r'\s(?:width|height|version)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{html.escape(label)}">{rest.rstrip()}\n'
