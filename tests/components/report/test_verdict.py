from dataclasses import replace
from datetime import timedelta

import pytest
from convergate.components.report import RunPage, verdict_sentence
from convergate.components.report.verdict import headline


def test_challenger(runs):
    assert verdict_sentence(runs.passing()) == (
        "digits v3 is now challenger: the candidate passes its checks, but history is short: 3 of at least 5 runs."
    )


def test_promote(runs):
    decided = runs.decision("PROMOTE", "the candidate passes, and the SLO is not breached")
    page = runs.passing(decision=decided, promotion=runs.promotion("champion"))
    assert verdict_sentence(page) == "digits v3 is now champion: the candidate passes, and the SLO is not breached."
    assert headline(page).tone == "good"


def test_promote_whose_alias_was_not_set_is_no_success(runs):
    decided = runs.decision("PROMOTE", "the SLO is proven")
    broken = runs.passing(decision=decided, promotion=None, end=runs.end(reason="MLflow cannot be reached"))
    assert headline(broken).sentence == (
        "Decided PROMOTE (the SLO is proven), but no alias was set: MLflow cannot be reached."
    )
    assert headline(broken).tone == "bad"
    going_on = replace(broken, end=None)
    assert verdict_sentence(going_on) == "Decided PROMOTE (the SLO is proven), but no alias is set yet."


def test_hold_and_reject_count_their_reasons(runs):
    held = runs.passing(decision=runs.decision("HOLD", "one", "two", "three"), promotion=None)
    assert verdict_sentence(held) == "Held, although the candidate passes its checks: one (and 2 more reasons)."
    rejected = runs.passing(decision=runs.decision("REJECT", "target: 0.91 misses the target 0.95"), promotion=None)
    assert verdict_sentence(rejected) == "Rejected, no alias was set: target: 0.91 misses the target 0.95."
    assert (headline(held).tone, headline(rejected).tone) == ("open", "bad")


def test_hold_where_nobody_can_tell_does_not_say_that_the_candidate_passes(runs):
    undecided = runs.check("not worse than the champion", "INCONCLUSIVE", reason="the champion cannot be measured")
    decision = runs.decision("HOLD", "the champion cannot be measured", checks=[runs.check("target"), undecided])
    assert verdict_sentence(runs.passing(decision=decision, promotion=None)) == (
        "Held, nobody can tell yet if the candidate is good: the champion cannot be measured."
    )


def test_rejected_by_preflight(runs):
    problem = "error: schedule.warmup.steps = 500 longer than the run"
    page = RunPage(runs.RUN, start=runs.start(), plan=runs.plan(verdict="FAIL", problems=[problem]))
    assert verdict_sentence(page) == (
        "Rejected before anything ran, the config fails preflight: schedule.warmup.steps = 500 longer than the run."
    )


def test_rejected_by_data(runs):
    page = runs.stopped(canary=None, data=runs.bad_data(), end=runs.end("rejected", reached_training=False))
    assert verdict_sentence(page) == (
        "Rejected before training, the data is not as expected: no null or non-finite cell:"
        " cells are null, NaN or infinite in 3 rows: 4, 8, 9."
    )


def test_rejected_by_canary(runs):
    assert verdict_sentence(runs.canary_rejected()) == (
        "Rejected by the canary before training: falling loss: the loss rises from 2.31 to 41.7"
        " over the first 20 steps: the learning rate is too high."
    )


def test_inconclusive_canary(runs):
    page = runs.stopped(canary=runs.failed_canary("INCONCLUSIVE"))
    assert verdict_sentence(page).startswith("Stopped before training, the canary could not tell: falling loss:")
    assert headline(page).tone == "open"


def test_config_that_never_became_a_plan(runs):
    page = RunPage(runs.RUN, start=runs.start(), end=runs.end("rejected", reason="unknown key `schedul`"))
    assert verdict_sentence(page) == ("Rejected before training, before its first step ended: unknown key `schedul`.")


def test_interrupted(runs):
    assert verdict_sentence(runs.interrupted()) == (
        "Interrupted in training at step 260 of 400, nothing was promoted;"
        " its checkpoint is kept and the run can be resumed."
    )
    early = runs.stopped(canary=None, end=runs.end("interrupted", reached_training=False))
    assert verdict_sentence(early) == "Interrupted after the data's validation, nothing was promoted."


def test_diverged(runs):
    assert verdict_sentence(runs.diverged()) == (
        "Training diverged at step 213 of 400, nothing was promoted: loss nan, gradient norm nan on rank 0."
    )


def test_lr_sync_error_and_failure(runs):
    parted = runs.training(verdict="FAIL", status="lr_sync_error", final_step=31, reason="rank 1 has 0.2")
    assert verdict_sentence(runs.stopped(training=parted)) == (
        "Training was stopped at step 31 of 400 because the learning rates of its ranks parted: rank 1 has 0.2."
    )
    failed = runs.training(verdict="FAIL", status="failed", reason="rank 0: out of memory")
    assert (
        verdict_sentence(runs.stopped(training=failed))
        == "Training failed, nothing was promoted: rank 0: out of memory."
    )


def test_infrastructure(runs):
    page = runs.stopped(end=runs.end("infrastructure", reason="node gpu-7 was lost"))
    assert verdict_sentence(page) == "Ended by the infrastructure after the canary: node gpu-7 was lost."


def test_ended_without_decision(runs):
    page = runs.passing(decision=None, promotion=None, end=runs.end("not_converged", reason="the gate crashed"))
    assert verdict_sentence(page) == "Ended without a decision, after evaluation: the gate crashed."


def test_running_and_vanished(runs):
    running = runs.stopped(end=None)
    assert verdict_sentence(running) == "Still running, after the canary; nothing is decided yet."
    late = replace(running, written=runs.NOW + timedelta(days=2))
    assert verdict_sentence(late) == (
        "Never ended: no end by its deadline (2026-11-25 03:20 UTC), so it counts as not converged."
    )


def test_nothing_known(runs):
    assert verdict_sentence(RunPage("x")) == "The ledger does not know this run; it stands before its first step ended."


@pytest.mark.parametrize(
    ("canary", "sentence", "word"),
    [
        (
            "canary",
            "The canary passes: 6 of 6 checks passed, and the full run is projected at 0.005 GPU-hours.",
            "PASS",
        ),
        ("failed_canary", "The canary fails: falling loss: the loss rises from 2.31 to 41.7", "FAIL"),
    ],
)
def test_canary_alone(runs, canary, sentence, word):
    page = runs.stopped(start=runs.start(kind="canary"), canary=getattr(runs, canary)())
    assert headline(page).sentence.startswith(sentence)
    assert headline(page).word == word
