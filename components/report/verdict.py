"""The verdict: what was decided and why, in one sentence that needs no other."""

from dataclasses import dataclass
from typing import Literal

from ...canary.report import CanaryReport
from ..config.document import overall
from ..slo.decision import Decision
from ..slo.ledger import EndRecord
from ..training.result import TrainingResult
from .page import RunPage

Tone = Literal["good", "bad", "open"]


@dataclass(frozen=True, slots=True)
class Headline:
    """The verdict of a page: a word, its tone, and the sentence."""

    word: str
    tone: Tone
    sentence: str


def verdict_sentence(page: RunPage) -> str:
    """What was decided over the run and why; also of a run that stopped early, or has not ended."""
    return headline(page).sentence


def headline(page: RunPage) -> Headline:
    """The verdict with its word and tone."""
    if page.decision is not None:
        return _decided(page, page.decision)
    if page.start is not None and page.start.kind == "canary" and page.canary is not None:
        return _canary_alone(page.canary)
    return _interrupted(page) or _stopped(page) or _unfinished(page)


def _decided(page: RunPage, decision: Decision) -> Headline:
    why = _joined(decision.reasons)
    if decision.decision == "REJECT":
        return Headline("REJECT", "bad", _sentence(f"Rejected, no alias was set: {why}"))
    if decision.decision == "HOLD":
        passes = overall(decision.checks) == "PASS"
        but = "although the candidate passes its checks" if passes else "nobody can tell yet if the candidate is good"
        return Headline("HOLD", "open", _sentence(f"Held, {but}: {why}"))
    if page.promotion is None:
        state = (
            "no alias is set yet" if page.end is None else f"no alias was set: {page.end.reason or 'no reason given'}"
        )
        tone: Tone = "open" if page.end is None else "bad"
        return Headline(decision.decision, tone, _sentence(f"Decided {decision.decision} ({why}), but {state}"))
    name = f"{page.promotion.model} v{page.promotion.version} is now {page.promotion.alias}"
    if decision.decision == "CHALLENGER":
        return Headline("CHALLENGER", "good", _sentence(f"{name}: the candidate passes its checks, but {why}"))
    return Headline("PROMOTE", "good", _sentence(f"{name}: {why}"))


def _canary_alone(canary: CanaryReport) -> Headline:
    if canary.verdict == "PASS":
        passed = f"{len(canary.checks)} of {len(canary.checks)} checks passed"
        cost = f"the full run is projected at {canary.projected_gpu_hours:.2g} GPU-hours"
        return Headline("PASS", "good", _sentence(f"The canary passes: {passed}, and {cost}"))
    if canary.verdict == "FAIL":
        return Headline("FAIL", "bad", _sentence(f"The canary fails: {canary.reason}"))
    return Headline("INCONCLUSIVE", "open", _sentence(f"The canary could not tell: {canary.reason}"))


def _interrupted(page: RunPage) -> Headline | None:
    training, end = page.training, page.end
    if training is not None and training.status == "interrupted":
        where = f"in training at step {training.final_step:,} of {training.total_steps:,}"
        kept = "; its checkpoint is kept and the run can be resumed" if training.checkpoint_uri else ""
        return Headline("INTERRUPTED", "open", _sentence(f"Interrupted {where}, nothing was promoted{kept}"))
    if end is not None and end.run_class == "interrupted":
        where = "in training" if end.reached_training and training is None else _after(page)
        return Headline("INTERRUPTED", "open", _sentence(f"Interrupted {where}, nothing was promoted"))
    return None


def _stopped(page: RunPage) -> Headline | None:
    """Where a run stopped by the infrastructure, a verdict or an error; None where it did not."""
    end, training = page.end, page.training
    if end is not None and end.run_class == "infrastructure":
        return Headline("STOPPED", "open", _sentence(f"Ended by the infrastructure {_after(page)}: {_why(end)}"))
    early = _before_training(page)
    if early is not None:
        return early
    if training is not None and training.verdict != "PASS":
        return _untrained(training)
    if end is None:
        return None
    if end.run_class == "rejected":
        return Headline("REJECT", "bad", _sentence(f"Rejected before training, {_after(page)}: {_why(end)}"))
    evaluation = page.evaluation
    failed = evaluation.reason if evaluation is not None and evaluation.verdict != "PASS" else _why(end)
    return Headline("FAILED", "bad", _sentence(f"Ended without a decision, {_after(page)}: {failed}"))


def _before_training(page: RunPage) -> Headline | None:
    """The step before training whose verdict stopped the run."""
    plan, data, canary = page.plan, page.data, page.canary
    word = "REJECT"
    tone: Tone = "bad"
    if plan is not None and plan.verdict != "PASS":
        reason = plan.reason.removeprefix("error: ")
        text = f"Rejected before anything ran, the config fails preflight: {reason}"
    elif data is not None and data.verdict != "PASS":
        text = f"Rejected before training, the data is not as expected: {data.reason}"
    elif canary is not None and canary.verdict == "FAIL":
        text = f"Rejected by the canary before training: {canary.reason}"
    elif canary is not None and canary.verdict == "INCONCLUSIVE":
        word, tone = "INCONCLUSIVE", "open"
        text = f"Stopped before training, the canary could not tell: {canary.reason}"
    else:
        return None
    return Headline(word, tone, _sentence(text))


def _untrained(training: TrainingResult) -> Headline:
    where = f"at step {training.final_step:,} of {training.total_steps:,}"
    reason = training.reason or training.status
    words = {
        "diverged": f"Training diverged {where}, nothing was promoted",
        "lr_sync_error": f"Training was stopped {where} because the learning rates of its ranks parted",
    }
    words_failed = "Training failed, nothing was promoted"
    return Headline("FAILED", "bad", _sentence(f"{words.get(training.status, words_failed)}: {reason}"))


def _unfinished(page: RunPage) -> Headline:
    if page.start is None:
        return Headline("UNKNOWN", "open", _sentence(f"The ledger does not know this run; it stands {_after(page)}"))
    if page.written > page.start.deadline:
        deadline = f"{page.start.deadline:%Y-%m-%d %H:%M} UTC"
        return Headline(
            "FAILED",
            "bad",
            _sentence(f"Never ended: no end by its deadline ({deadline}), so it counts as not converged"),
        )
    return Headline("RUNNING", "open", _sentence(f"Still running, {_after(page)}; nothing is decided yet"))


def _after(page: RunPage) -> str:
    """The last step that left a document, as `after the canary`."""
    reached = [
        ("evaluation", page.evaluation),
        ("training", page.training),
        ("the canary", page.canary),
        ("the data's validation", page.data),
        ("the config's validation", page.plan),
    ]
    return next((f"after {name}" for name, document in reached if document is not None), "before its first step ended")


def _why(end: EndRecord) -> str:
    return end.reason or "no reason was recorded"


def _joined(reasons: list[str]) -> str:
    if not reasons:
        return "no reason was recorded"
    more = len(reasons) - 1
    return reasons[0] + (f" (and {more} more reason{'s' * (more > 1)})" if more else "")


def _sentence(text: str) -> str:
    """One line with one full stop."""
    line = " ".join(text.split())
    return line if line.endswith((".", "!", "?", "…")) else f"{line}."
