"""What the canary judges. Each check is a pure function of the traces and gives a figure, a threshold and a reason."""

import math
from typing import TYPE_CHECKING

from ..components.config.document import Check, Verdict

if TYPE_CHECKING:
    import pandas as pd

LOSS_RISE = 0.1
"""The last quarter's median loss may be above the first quarter's by this fraction of it before the canary fails."""
GRADIENT_RISE = 100.0
"""The largest gradient norm over the first quarter's median."""
RESTORE_CHECK = "save, kill -9, restore"
RESTORE_THRESHOLD = "repeated steps equal bit for bit"


def check(name: str, good: bool, figure: str, threshold: str, reason: str) -> Check:
    """A check that is either PASS or FAIL; the reason is told where it fails."""
    verdict: Verdict = "PASS" if good else "FAIL"
    return Check(name=name, verdict=verdict, figure=figure, threshold=threshold, reason="" if good else reason)


def finite(trace: "pd.DataFrame", phase: str) -> Check:
    """There are steps, and no loss is NaN or infinite, and no gradient norm but of an fp16 overflow."""
    bad = trace[~(trace["loss"].map(math.isfinite) & trace["grad_norm"].map(math.isfinite)) & ~_overflows(trace)]
    reason = "no step was run"
    if len(bad):
        first = bad.sort_values("step").iloc[0]
        where = f"at step {first['step']:.0f} under lr {first['lr']:.4g}"
        reason = f"loss or gradient is not finite {where}: the learning rate is too high, or the data is broken"
    figure = f"{len(bad)} of {len(trace)} records not finite"
    return check(f"finite, {phase}", bad.empty and not trace.empty, figure, "0", reason)


def _overflows(trace: "pd.DataFrame") -> "pd.Series[bool]":
    """Which updates were left out although their loss is finite: so fp16 finds its loss scale."""
    return ~trace["applied"].astype(bool) & trace["loss"].map(math.isfinite).astype(bool)


def falling_loss(trace: "pd.DataFrame", untrained: "pd.DataFrame | None" = None) -> Check:
    """The median loss of the last quarter of the steps is not above that of the first; losses may be negative.

    Weights that are trained already are near a minimum, which a rate that warms up again leaves (arXiv:2308.04014):
    with `untrained`, the first step of a model with random weights, the loss may rise half of the way to its loss.
    """
    losses = trace.groupby("step")["loss"].mean()
    quarter = max(1, len(losses) // 4)
    first, last = float(losses.iloc[:quarter].median()), float(losses.iloc[-quarter:].median())
    allowed, threshold = first + LOSS_RISE * abs(first), f"rise ≤ {LOSS_RISE:.0%} of the first quarter's"
    if untrained is not None:
        start = float(untrained["loss"].mean())
        allowed = max(allowed, first + (start - first) / 2)
        threshold = f"≤ {allowed:.4g}, half of the way to {start:.4g}, untrained"
    return check(
        "falling loss",
        math.isfinite(last) and last <= allowed,
        f"{first:.4g} → {last:.4g}",
        threshold,
        f"the loss rises from {first:.4g} to {last:.4g} over {len(losses)} steps: the learning rate is too high",
    )


def bounded_gradient(trace: "pd.DataFrame", untrained: "pd.DataFrame | None" = None) -> Check:
    """The gradient norm before clipping stays within a factor of where it began, or where `untrained` weights do."""
    norms = trace[~_overflows(trace)].groupby("step")["grad_norm"].mean()
    quarter = max(1, len(norms) // 4)
    start, largest = float(norms.iloc[:quarter].median()), float(norms.max(skipna=False))
    usual, threshold = start, "the first quarter's median"
    if untrained is not None:
        usual, threshold = max(start, float(untrained["grad_norm"].mean())), "an untrained model's"
    return check(
        "bounded gradient",
        math.isfinite(largest) and largest <= GRADIENT_RISE * usual,
        f"largest {largest:.4g}, at first {start:.4g}",
        f"≤ {GRADIENT_RISE:g} × {threshold}",
        f"the gradient norm grows from {start:.4g} to {largest:.4g}: gradients explode → lower lr0, or clip",
    )


def on_plan(trace: "pd.DataFrame", phase: str) -> Check:
    """Every rank applied exactly the planned rate at every step."""
    off = trace[trace["lr"] != trace["lr_planned"]]
    reason = "no step was run"
    if len(off):
        first = off.sort_values("step").iloc[0]
        rank, step, lr, planned = (float(first[name]) for name in ("rank", "step", "lr", "lr_planned"))
        reason = f"rank {rank:.0f} step {step:.0f}: {lr!r} instead of {planned!r}"
    figure = f"{len(off)} of {len(trace)} off"
    return check(f"LR on plan, {phase}", off.empty and not trace.empty, figure, "0", reason)


def ranks_agree(trace: "pd.DataFrame", world_size: int) -> Check:
    """Every rank ran every step, under one rate and one gradient norm."""
    ranks = trace["rank"].nunique()
    by_step = trace.groupby("step")
    rates, norms, present = (
        by_step["lr"].nunique(),
        by_step["grad_norm"].nunique(dropna=False),
        by_step["rank"].nunique(),
    )
    bad = int(((rates != 1) | (norms != 1) | (present != world_size)).sum())
    return check(
        "ranks agree",
        ranks == world_size and bad == 0,
        f"{ranks} ranks, {bad} steps differ",
        f"{world_size} ranks, 0",
        f"{bad} of {len(rates)} steps differ between ranks in rate or gradient norm, or a rank is missing",
    )


def whole_schedule(trace: "pd.DataFrame", num_steps: int) -> Check:
    """The compressed schedule ran from its first step to its last."""
    ran = int(trace["step"].nunique()) if len(trace) else 0
    return check(
        "whole schedule runs, compressed",
        ran == num_steps,
        f"{ran} steps",
        f"{num_steps} steps",
        f"the compressed schedule ended after {ran} of {num_steps} steps",
    )


def restored(first: "pd.DataFrame", again: "pd.DataFrame", resumed_at: int | None, kill_step: int) -> Check:
    """After a kill -9, the steps that were repeated gave the same rate, loss and gradient norm, bit for bit."""
    if resumed_at is None:
        reason = "the workers were not started again after the kill"
        return check(RESTORE_CHECK, False, "not resumed", RESTORE_THRESHOLD, reason)
    columns = ["rank", "step", "lr", "loss", "grad_norm"]
    span = range(resumed_at, kill_step)
    merged = first[columns].merge(again[columns], on=["rank", "step"], suffixes=("", "_again"))
    merged = merged[merged["step"].isin(span)]
    same = merged["step"].notna()
    for column in columns[2:]:
        same &= merged[column] == merged[f"{column}_again"]
    expected = len(span) * len({*first["rank"], *again["rank"]})
    return check(
        RESTORE_CHECK,
        expected > 0 and int(same.sum()) == expected,
        f"{int(same.sum())} of {expected} repeated steps equal",
        RESTORE_THRESHOLD,
        f"after the restore at step {resumed_at} the run is another one: a resume forgets state",
    )


def within_budget(hours: float, limit: float) -> Check:
    """The projected cost of the full run is within its budget."""
    return check(
        "projected cost",
        hours <= limit,
        f"{hours:.3g} GPU-h",
        f"≤ {limit:g} GPU-h (budget.max_gpu_hours)",
        f"the full run is projected at {hours:.3g} GPU-hours, over the budget of {limit:g}",
    )
