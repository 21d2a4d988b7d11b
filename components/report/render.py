"""The page as HTML, and its short form as Markdown."""

import re
from dataclasses import dataclass
from importlib.resources import files

import numpy as np

from ..config import Check
from ..errors import ConvergateError
from ..schedule import Schedule, build_schedule
from . import plots, series, tables
from .page import RunPage
from .verdict import headline

MAX_CELL = 600
MAX_CONFIG = 64_000
MAX_EVENTS = 40


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture with its heading and what to see in it."""

    title: str
    svg: str
    caption: str
    bad: bool = False


def render(page: RunPage) -> str:
    """The page of a run: one HTML file, no script, nothing loaded from anywhere."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"cell": cell, "duration": tables.duration, "tone": tables.tone, "svg": Markup}
    template = environment.from_string(files(__package__).joinpath("template.html").read_text(encoding="utf-8"))
    marks = series.marks(page)
    return template.render(
        page=page,
        headline=headline(page),
        more_reasons=page.decision.reasons[1:] if page.decision else [],
        steps=tables.steps(page),
        saving=tables.saving(page),
        figures=figures(page, marks),
        slo=plots.slo_intervals(page.decision.standing) if page.decision else "",
        marks=marks[:MAX_EVENTS],
        num_hidden_marks=max(0, len(marks) - MAX_EVENTS),
        candidate_checks=candidate_checks(page),
        costs=tables.costs(page),
        lineage=tables.lineage(page),
        config_text=page.config_text[:MAX_CONFIG],
        config_is_cut=len(page.config_text) > MAX_CONFIG,
        written=tables.moment(page.written),
    )


def render_markdown(page: RunPage) -> str:
    """The verdict, the checks that did not pass with their reasons, and the steps; for a UI or a comment."""
    top = headline(page)
    lines = [f"**{_markdown(top.word)}** {_markdown(top.sentence)}", ""]
    failing = [check for check in _all_checks(page) if not check.passed]
    if failing:
        lines += ["| check | verdict | figure | threshold | reason |", "|---|---|---|---|---|"]
        lines += [_row(c.name, c.verdict, c.figure, c.threshold, c.reason) for c in failing]
        lines.append("")
    lines += ["| step | result | time | |", "|---|---|---:|---|"]
    for step in tables.steps(page):
        lines.append(
            _row(
                step.name,
                step.verdict,
                "" if step.seconds is None else tables.duration(step.seconds),
                step.summary,
            )
        )
    return "\n".join([*lines, "", f"Run `{page.run_id.replace('`', '')}`"]) + "\n"


def figures(page: RunPage, marks: list[series.Mark]) -> list[Figure]:
    """The pictures that the documents allow."""
    trace = page.trace if page.trace is not None and not page.trace.empty else None
    schedule = _schedule(page)
    whose = "" if page.training is not None or page.canary is None else " of the canary"
    found = []
    if trace is not None or schedule is not None:
        found.append(_learning_rate(page, schedule, marks))
    if trace is not None:
        window = series.smoothed(np.zeros(int(trace["step"].nunique())))[1]
        caption = f"Pale: every update; strong: median over {window} updates. A gap is a loss that is not finite."
        found.append(Figure(f"Training loss{whose}", plots.training_loss(trace, marks), caption))
    validations = page.validations
    if validations is not None and not validations.empty:
        metric, target = (page.evaluation.metric, page.evaluation.target) if page.evaluation else ("", None)
        if page.evaluation is None and page.config is not None:
            metric, target = page.config.evaluation.metric, page.config.evaluation.target
        caption = "On the validation split, all ranks together. The target holds for the test split."
        found.append(Figure(f"Validation{whose}", plots.validation_metrics(validations, metric, target), caption))
    if trace is not None:
        clip = page.config.optimizer.grad_clip_norm if page.config is not None else None
        found.append(
            Figure(f"Gradient norm{whose}", plots.gradient_norm(trace, clip, marks), _clip_caption(page, clip))
        )
    return found


def candidate_checks(page: RunPage) -> list[Check]:
    """The checks of the candidate: the decision's, which hold the evaluation's, or the evaluation's alone."""
    if page.decision is not None:
        return page.decision.checks
    return page.evaluation.checks if page.evaluation is not None else []


def cell(text: object) -> str:
    """A value for a cell of a table: one line of bounded length."""
    line = " ".join(str(text).split())
    return line if len(line) <= MAX_CELL else line[: MAX_CELL - 1] + "…"


def _schedule(page: RunPage) -> Schedule | None:
    """The planned schedule over the whole run, where config and length are known."""
    if page.config is None or page.total_steps is None:
        return None
    try:
        return build_schedule(
            page.config.schedule, total_steps=page.total_steps, batch_size=page.config.training.batch_size
        )
    except (ConvergateError, ValueError):
        return None


def _learning_rate(page: RunPage, schedule: Schedule | None, marks: list[series.Mark]) -> Figure:
    trace = page.trace if page.trace is not None and not page.trace.empty else None
    svg = plots.learning_rate(trace, schedule, marks)
    if trace is None:
        applied = "no update was applied" if page.training is None else "there is no trace of what was applied"
        return Figure("Learning rate", svg, f"As planned; {applied}.")
    off = series.deviation(trace)
    if off is not None:
        return Figure("Learning rate", svg, f"{off.line}.", bad=True)
    updates, ranks = int(trace["step"].nunique()), int(trace["rank"].nunique())
    whose = f"{updates:,} updates of {ranks} rank{'s' * (ranks > 1)}"
    caption = f"On plan: applied equals planned, bit for bit, in {whose}."
    if schedule is not None and not series.follows(trace, schedule):
        caption += " Events changed the schedule; the dotted line is what was planned at first."
    if page.total_steps is not None and updates < page.total_steps:
        whose = "the canary's " if page.training is None and page.canary is not None else ""
        caption += f" These are {whose}{updates:,} of {page.total_steps:,} planned updates."
    return Figure("Learning rate", svg, caption)


def _clip_caption(page: RunPage, clip: float | None) -> str:
    if clip is None or page.trace is None:
        return "Over all parameters, before the update."
    norms = page.trace.drop_duplicates("step")["grad_norm"].to_numpy(dtype=np.float64)
    clipped = int((norms[np.isfinite(norms)] > clip).sum())
    return f"Over all parameters, before clipping; clipped in {clipped:,} of {len(norms):,} updates."


def _all_checks(page: RunPage) -> list[Check]:
    expectations = page.data.expectations if page.data is not None else []
    return [
        *(
            Check(
                name=e.name,
                verdict="PASS" if e.passed else "FAIL",
                figure=e.observed,
                threshold="",
                reason=e.reason,
            )
            for e in expectations
        ),
        *(page.canary.checks if page.canary is not None else []),
        *candidate_checks(page),
    ]


def _row(*cells: str) -> str:
    return f"| {' | '.join(_markdown(text) for text in cells)} |"


def _markdown(text: str) -> str:
    """Text that stays text in Markdown: no markup, link, image or end of a cell."""
    line = cell(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|!])", r"\\\1", line)
