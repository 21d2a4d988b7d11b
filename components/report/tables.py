"""Steps, cost and lineage as rows of text. What is not known has no row."""

from dataclasses import dataclass
from datetime import datetime

from .page import RunPage
from .verdict import Tone


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the DAG as a reader sees it."""

    name: str
    verdict: str
    tone: Tone
    seconds: float | None
    share: float
    """Of the longest step's time, 0 to 1: the length of its bar."""
    summary: str


def steps(page: RunPage) -> list[Step]:
    """Every step of the DAG in order, those that did not run included."""
    training, decision, promotion = page.training, page.decision, page.promotion
    found = [
        ("validate config", page.plan, page.plan.verdict if page.plan else ""),
        ("validate data", page.data, page.data.verdict if page.data else ""),
        ("canary", page.canary, page.canary.verdict if page.canary else ""),
        ("train", training, training.status if training else ""),
        ("evaluate", page.evaluation, page.evaluation.verdict if page.evaluation else ""),
        ("gate", decision, decision.decision if decision else ""),
        ("promote", promotion, promotion.alias if promotion else ""),
    ]
    if page.start is not None and page.start.kind == "canary":
        found = found[:3]
    longest = max((document.seconds for _, document, _ in found if document is not None), default=0.0)
    missing = "not run" if page.end is not None else "no result yet"
    return [
        Step(name, missing, "open", None, 0.0, "")
        if document is None
        else Step(
            name=name,
            verdict=verdict,
            tone=tone(verdict),
            seconds=document.seconds,
            share=document.seconds / longest if longest else 0.0,
            summary=" ".join(_without(verdict, document.summary).split()),
        )
        for name, document, verdict in found
    ]


def saving(page: RunPage) -> str:
    """How long a checkpoint took, and the grace period that follows; nothing where none was saved."""
    training = page.training
    if training is None or not training.save_seconds:
        return ""
    return (
        f"Longest checkpoint save: {duration(training.save_seconds)}. So that an interrupted run can save:"
        f" terminationGracePeriodSeconds: {training.grace_seconds}, or more."
    )


def tone(verdict: str) -> Tone:
    """How a verdict, a status, a decision or an alias is to be seen."""
    if verdict in ("FAIL", "REJECT", "failed", "diverged", "lr_sync_error"):
        return "bad"
    if verdict in ("INCONCLUSIVE", "INSUFFICIENT", "HOLD", "interrupted", ""):
        return "open"
    return "good"


def costs(page: RunPage) -> list[tuple[str, str, str, str]]:
    """(what, projected by the canary, actual, budget)."""
    canary, training, config = page.canary, page.training, page.config
    if canary is None and training is None and page.end is None:
        return []
    spent = page.end.gpu_hours if page.end is not None else training.gpu_hours if training is not None else None
    projected = canary.projected_gpu_hours if canary is not None and canary.projected_gpu_hours else None
    limit, price = (config.budget.max_gpu_hours, config.budget.gpu_hour_price) if config is not None else (None, None)
    projected_time = duration(canary.projected_seconds) if projected is not None and canary is not None else ""
    rows = [
        (
            "time in the loop",
            projected_time,
            duration(training.train_seconds) if training is not None else "",
            "",
        ),
        (
            "training, all attempts",
            hours(projected),
            hours(training.gpu_hours if training else None),
            hours(limit),
        ),
    ]
    if page.end is not None:
        rows.append(("whole run, canary included", "", hours(spent), ""))
    if price is not None:
        amounts = [f"{value * price:,.2f}" if value is not None else "" for value in (projected, spent, limit)]
        rows.append((f"price, at {price:g} a GPU-hour", amounts[0], amounts[1], amounts[2]))
    return [row for row in rows if any(row[1:3])]


def lineage(page: RunPage) -> list[tuple[str, str]]:
    """What the run was made of and what it made, for whoever asks a year later."""
    start, end, plan, training = page.start, page.end, page.plan, page.training
    decision, evaluation, promotion = page.decision, page.evaluation, page.promotion
    owner = page.config.owner if page.config is not None else None
    bound = decision or plan or start
    candidate = decision or evaluation or training
    initial = decision or training or plan
    rows: list[tuple[str, str | None]] = [
        ("run", page.run_id),
        ("experiment", page.experiment),
        ("model", start.model if start else plan.model if plan else None),
        ("submitter", start.submitter if start else None),
        ("team", decision.team if decision else start.team if start else owner.team if owner else None),
        ("contact", decision.contact if decision else owner.contact if owner else None),
        ("started", moment(start.created) if start else None),
        ("ended", moment(end.created) if end else None),
        ("class in the ledger", end.run_class.replace("_", " ") if end else None),
        ("training digest", bound.training_digest if bound else None),
        ("policy digest", bound.policy_digest if bound else None),
        ("seed", decision.seed if decision else plan.seed if plan else None),
        ("commit", (decision.commit if decision else None) or (plan.commit if plan else None)),
        ("image", plan.image if plan else None),
        ("data", page.config.data.uri if page.config is not None else None),
        ("data digest", page.data.data_digest if page.data else None),
        ("data snapshot", page.data.snapshot if page.data else None),
        ("ran on", f"{training.world_size} × {training.device}" if training else None),
        ("attempts", str(training.attempts) if training else None),
        ("initial weights", initial.init_uri if initial else None),
        ("initial weights' digest", initial.init_digest if initial else None),
        ("checkpoint", candidate.checkpoint_uri if candidate else None),
        ("checkpoint digest", candidate.checkpoint_digest if candidate else None),
        ("champion compared with", evaluation.champion_uri if evaluation else None),
        ("trace", training.trace_uri if training else page.canary.trace_uri if page.canary else None),
        ("decision", decision.decision if decision else None),
        ("decision's signature", _signature(decision.signature) if decision else None),
        ("released checkpoint", promotion.uri if promotion else None),
        ("released digest", promotion.digest if promotion else None),
        ("audit record", promotion.audit_uri if promotion else None),
    ]
    return [(name, value) for name, value in rows if value]


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `2 h 10 min`."""
    if seconds < 10:  # noqa: PLR2004
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:  # noqa: PLR2004
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if whole < 3600 else f"{minutes // 60} h {minutes % 60} min"  # noqa: PLR2004


def hours(value: float | None) -> str:
    """GPU-hours, or nothing where they are not known."""
    return "" if value is None else f"{value:.3g} GPU-h"


def moment(when: datetime) -> str:
    """A time in UTC, to the second."""
    return f"{when:%Y-%m-%d %H:%M:%S} UTC"


def _without(verdict: str, summary: str) -> str:
    """A summary that begins with the verdict, without it: the verdict has a column of its own."""
    return summary.removeprefix(verdict).removeprefix(":") if verdict.isupper() else summary


def _signature(signature: str | None) -> str:
    return "present (Ed25519; not verified by this page)" if signature else "none"
