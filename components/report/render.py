"""The page, and its short Markdown form for a UI or a pull request."""

from pathlib import Path
from typing import Any

from ..config import ProblemsError, RunConfig, parse_config
from . import plots
from .page import RunPage, verdict_sentence

TEMPLATE = Path(__file__).with_name("template.html")


def render(page: RunPage) -> str:
    """The page as HTML; it loads nothing, and everything that a user can name in it is escaped."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    config = _config(page)
    return template.render(
        page=page,
        sentence=verdict_sentence(page),
        tone=_tone(page),
        pictures=[(title, Markup(svg)) for title, svg in _pictures(page, config)],  # noqa: S704 - our own SVG
        cost=_cost(page, config),
        lineage=_lineage(page),
        steps=page.steps(),
    )


def render_markdown(page: RunPage) -> str:
    """The verdict, the steps, and what failed."""
    lines = [f"### {verdict_sentence(page)}", "", "| step | verdict | seconds | |", "|---|---|---:|---|"]
    lines += [f"| {name} | {verdict} | {seconds:.1f} | {summary} |" for name, verdict, seconds, summary in page.steps()]
    checks = [*(page.canary.checks if page.canary else []), *(page.decision.checks if page.decision else [])]
    lines += ["", *(f"- **{check.name}** {check.verdict}: {check.reason}" for check in checks if not check.passed)]
    return "\n".join(lines) + "\n"


def _config(page: RunPage) -> RunConfig | None:
    try:
        return parse_config(page.config_text)
    except ProblemsError:
        return None


def _tone(page: RunPage) -> str:
    if page.decision is not None:
        return {"PROMOTE": "good", "CHALLENGER": "good", "HOLD": "open"}.get(page.decision.decision, "bad")
    if any(verdict != "PASS" for _, verdict, _, _ in page.steps()):
        return "bad"
    return "open"


def _pictures(page: RunPage, config: RunConfig | None) -> list[tuple[str, str]]:
    """(title, SVG) of whatever there is to see; of the canary where the run did not get further."""
    found: list[tuple[str, str]] = []
    if page.trace is not None and len(page.trace):
        events = page.training.events if page.training else []
        of = "" if page.training else " (canary)"
        clip = config.optimizer.grad_clip_norm if config else None
        found.append((f"Learning rate, planned and applied{of}", plots.learning_rate(page.trace)))
        found.append((f"Training loss{of}", plots.loss(page.trace, events)))
        found.append((f"Gradient norm before clipping{of}", plots.gradient_norm(page.trace, events, clip)))
    if page.validations is not None and len(page.validations):
        for metric in sorted(page.validations["metric"].unique()):
            target = config.evaluation.target if config and config.evaluation.metric == metric else None
            found.append((f"Validation: {metric}", plots.validation(page.validations, metric, target)))
    if page.decision is not None:
        found.append(("Convergence SLO: 95 % bounds against targets", plots.slo(page.decision.standing)))
    return found


def _cost(page: RunPage, config: RunConfig | None) -> list[tuple[str, str]]:
    found = []
    price = config.budget.gpu_hour_price if config else None

    def hours(value: float) -> str:
        return f"{value:.4g} GPU-h" + (f", {value * price:.2f} at {price:g} an hour" if price else "")

    if page.canary is not None:
        found.append(("projected by the canary", hours(page.canary.projected_gpu_hours)))
    if page.training is not None:
        found.append((f"training, {page.training.attempts} attempt(s)", hours(page.training.gpu_hours)))
    if page.end is not None:
        found.append(("whole run", hours(page.end.gpu_hours)))
    if config is not None:
        found.append(("budget", hours(config.budget.max_gpu_hours)))
    return found


def _lineage(page: RunPage) -> list[tuple[str, Any]]:
    start, plan, data, decision = page.start, page.plan, page.data, page.decision
    facts: list[tuple[str, Any]] = [("run", page.run_id)]
    if start is not None:
        facts += [("started", start.created.isoformat(timespec="seconds")), ("submitter", start.submitter), ("team", start.team)]
    if plan is not None:
        facts += [
            ("training digest", plan.training_digest),
            ("policy digest", plan.policy_digest),
            ("seed", plan.seed),
            ("commit", plan.commit),
            ("image", plan.image),
        ]
    if data is not None:
        facts.append(("data digest", data.data_digest))
    if page.training is not None:
        facts += [
            ("device", f"{page.training.world_size} × {page.training.device}"),
            ("checkpoint", page.training.checkpoint_uri),
            ("checkpoint digest", page.training.checkpoint_digest),
        ]
    if decision is not None:
        facts.append(("decision", f"{decision.decision}, {'signed' if decision.signature else 'not signed'}"))
    if page.promotion is not None:
        facts.append(("release", f"v{page.promotion.version} {page.promotion.alias}, {page.promotion.uri}"))
    return [(name, value) for name, value in facts if value not in (None, "")]
