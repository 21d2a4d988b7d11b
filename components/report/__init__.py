"""One self-contained HTML page per run: people look rather than read.

- `page`: `RunPage`, the documents of a run that the page is made of; each may be missing.
- `verdict`: what was decided and why, in one sentence.
- `series`: the numbers behind the pictures: thinning, smoothing, deviations, marks.
- `plots`: one function a picture, each an inline SVG; `plot_schedule` writes a file.
- `drawing`: the style of every picture, and its way into the page.
- `annotations`: events, gaps and legends on the pictures.
- `tables`: steps, cost and lineage as rows.
- `render`: the page, and its short form in Markdown.
"""

from .page import RunPage
from .plots import plot_schedule
from .render import render, render_markdown
from .verdict import verdict_sentence

__all__ = ["RunPage", "plot_schedule", "render", "render_markdown", "verdict_sentence"]
