"""The end of a run, whatever happened: its class in the ledger, its report, its mirror in MLflow."""

import logging
import os
from dataclasses import dataclass, replace

from ..canary.report import CanaryReport
from ..components.access import NAMESPACE_VARIABLE
from ..components.config import ProblemsError, RunConfig, config_digests, parse_config
from ..components.config.document import Verdict
from ..components.config.identity import identity
from ..components.config.plan import RunPlan
from ..components.data.report import DataReport
from ..components.evaluation.result import Evaluation
from ..components.promotion.promote import Promotion
from ..components.promotion.registry import initial_tags
from ..components.report import RunPage, render, render_markdown
from ..components.slo.decision import Decision, classify
from ..components.slo.gate import end_record
from ..components.slo.ledger import EndRecord, Ledger, RunClass
from ..components.storage import RunStore
from ..components.training.result import TrainingResult

_log = logging.getLogger(__name__)
ATTEMPTS_PREFIX = "training.json.attempts"


@dataclass(frozen=True, slots=True)
class ClosedRun:
    """A run's end and its page."""

    end: EndRecord
    html: str
    markdown: str
    report_uri: str


def close_run(config_text: str, run_id: str, *, interrupted: bool = False) -> ClosedRun:
    """Write the end once (an earlier one stands), render the report, and mirror the run to MLflow.

    The end comes first, from the documents alone. Curves that cannot be read or drawn, and a tracker that fails, are
    logged and change nothing.

    Raises:
        S3Error: when the ledger or the report cannot be written.
    """
    root, experiment, model = identity(config_text)[:3]
    store = RunStore(root, run_id)
    page = load_page(config_text, root, run_id, with_trace=False)
    end = _close(Ledger(root, experiment, model), _end(page, store, interrupted))
    page = _with_curves(replace(page, end=end), store)
    html, markdown = _rendered(page), render_markdown(page)
    location = store.prefix / "report.html"
    store.store.write(location, html.encode(), "text/html; charset=utf-8")
    _mirror(config_text, page, end)
    return ClosedRun(end, html, markdown, str(location))


def end_leftovers(config_text: str, run_id: str) -> None:
    """Delete the TrainJobs that a step of the run left running when it was ended; a failure is logged.

    Only in a pod that was told where it is: under KFP, whose launcher ends a step before it can delete its own.
    """
    try:
        if NAMESPACE_VARIABLE in os.environ and parse_config(config_text).distributed.launcher == "trainjob":
            from ..components.training.trainjob import delete_leftovers

            delete_leftovers(run_id, _log.warning)
    except ProblemsError:
        return
    except Exception as error:
        _log.warning("what was left running is not known: %s: %s", type(error).__name__, error)


def was_cancelled(state: str | None) -> bool:
    """Whether KFP's final state of a pipeline says that somebody stopped it.

    Backends write CANCELED, CANCELLED or CANCELING. Those that write FAILED leave it to the documents.
    """
    return "CANCEL" in (state or "").upper()


def _close(ledger: Ledger, end: EndRecord) -> EndRecord:
    """The end that stands: this one, or an earlier one."""
    if ledger.close(end):
        return end
    found = ledger.find(end.run_id)
    assert found is not None
    assert found.end is not None
    return found.end


def load_page(config_text: str, root: str, run_id: str, *, with_trace: bool = True) -> RunPage:
    """Everything that a run has left behind so far; with its curves, where they can be read."""
    store = RunStore(root, run_id)
    _, experiment, model = identity(config_text)[:3]
    run = Ledger(root, experiment, model).find(run_id)
    page = RunPage(
        run_id=run_id,
        config_text=config_text,
        start=run.start if run else None,
        end=run.end if run else None,
        plan=store.find("plan", RunPlan),
        data=store.find("data", DataReport),
        canary=store.find("canary", CanaryReport),
        training=store.find("training", TrainingResult),
        evaluation=store.find("evaluation", Evaluation),
        decision=store.find("decision", Decision),
        promotion=store.find("promotion", Promotion),
    )
    return _with_curves(page, store) if with_trace else page


def _with_curves(page: RunPage, store: RunStore) -> RunPage:
    """The page with the run's trace, the canary's where training left no result, or none where it is damaged."""
    from ..components.telemetry import read_trace, read_validations

    uri = str(store.prefix / "trace")
    if page.training is None and page.canary is not None:
        uri = page.canary.trace_uri
    try:
        return replace(page, trace=read_trace(uri), validations=read_validations(uri))
    except Exception as error:
        _log.warning("the page is without its curves: %s cannot be read: %s: %s", uri, type(error).__name__, error)
        return page


def _rendered(page: RunPage) -> str:
    """The page as HTML; without its curves where they cannot be drawn."""
    try:
        return render(page)
    except Exception as error:
        _log.warning("the page is without its curves: they cannot be drawn: %s: %s", type(error).__name__, error)
        return render(replace(page, trace=None, validations=None))


def _end(page: RunPage, store: RunStore, interrupted: bool) -> EndRecord:
    started = any(store.store.list(store.prefix / ATTEMPTS_PREFIX))
    training = page.training
    run_class, reason = classify(
        training_started=started,
        training=training,
        evaluation=page.evaluation,
        interrupted=interrupted,
        infrastructure_evidence=training.reason if training is not None and training.failure == "outside" else None,
    )
    if run_class == "rejected":
        run_class, reason = _untrained(page, stop_reason(page) or reason)
    return end_record(
        page.run_id,
        run_class,
        reason,
        page.training,
        page.evaluation,
        decision=page.decision,
        extra_gpu_hours=page.canary.gpu_hours if page.canary else 0.0,
        reached_training=started,
    )


def _untrained(page: RunPage, reason: str) -> tuple[RunClass, str]:
    """The class of a run that never trained: a canary run that passes was not rejected, it is done."""
    if not is_canary(page) or page.canary is None:
        return "rejected", reason
    classes: dict[Verdict, RunClass] = {"PASS": "passed", "FAIL": "rejected", "INCONCLUSIVE": "infrastructure"}
    return classes[page.canary.verdict], reason if page.canary.verdict != "PASS" else ""


def is_canary(page: RunPage) -> bool:
    """Whether the run was opened as a canary alone."""
    return page.start is not None and page.start.kind == "canary"


def stop_reason(page: RunPage) -> str:
    """Which step stopped the run, and why, in one line; nothing where none did."""
    for name in ("plan", "data", "canary", "training"):
        document = getattr(page, name)
        if document is not None and document.verdict != "PASS":
            return f"{name} {document.verdict}: {document.reason}"
    if page.decision is not None and not page.decision.sets_alias:
        return page.decision.summary
    return ""


def _mirror(config_text: str, page: RunPage, end: EndRecord) -> None:
    from ..components.promotion.registry import flatten, mirror_run

    try:
        config = parse_config(config_text)
        mirror_run(
            config.experiment,
            page.run_id,
            params=dict(flatten(config.model_dump(mode="json"))),
            tags=_tags(config, page, end),
            series=_series(page),
            finished=end.run_class in ("converged", "passed"),
        )
    except ProblemsError:
        _log.warning("not mirrored to MLflow: the config is not valid")
    except Exception as error:
        _log.warning("not mirrored to MLflow: %s: %s", type(error).__name__, error)


def _tags(config: RunConfig, page: RunPage, end: EndRecord) -> dict[str, str]:
    digests = config_digests(config)
    tags = {
        "convergate.class": end.run_class,
        "convergate.decision": end.decision or "none",
        "convergate.reason": end.reason,
        "convergate.training_digest": digests.training,
        "convergate.policy_digest": digests.policy,
        "convergate.team": config.owner.team,
    }
    if page.start is not None:
        tags["convergate.submitter"] = page.start.submitter
        tags["convergate.kind"] = page.start.kind
    initial = page.training or page.plan
    return tags | (initial_tags(initial.init_uri, initial.init_digest) if initial is not None else {})


def _series(page: RunPage) -> dict[str, list[tuple[int, float]]]:
    trace, validations = page.trace, page.validations
    found: dict[str, list[tuple[int, float]]] = {}
    if trace is not None and len(trace):
        first = trace[trace["rank"] == 0]
        for column in ("lr", "loss", "grad_norm"):
            found[column] = list(zip(first["step"].astype(int), first[column].astype(float), strict=True))
    if validations is not None and len(validations):
        for metric, rows in validations.groupby("metric"):
            found[f"val_{metric}"] = list(zip(rows["step"].astype(int), rows["value"].astype(float), strict=True))
    return found


def steps(page: RunPage) -> list[tuple[str, Verdict, float, str]]:
    """(step, verdict, seconds, summary) of every document there is, in the DAG's order."""
    documents = {
        "validate config": page.plan,
        "validate data": page.data,
        "canary": page.canary,
        "train": page.training,
        "evaluate": page.evaluation,
    }
    found = [(name, doc.verdict, doc.seconds, doc.summary) for name, doc in documents.items() if doc is not None]
    if page.decision is not None:
        verdict: Verdict = "PASS" if page.decision.sets_alias else "FAIL"
        found.append(("gate", verdict, page.decision.seconds, page.decision.summary))
    if page.promotion is not None:
        found.append(("promote", "PASS", page.promotion.seconds, page.promotion.summary))
    return found
