"""The optimizer's section, with the groups of parameters that have a rate or a decay of their own."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ..schedule.config import NonNegative, Positive, Section

Decay = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


def _regular_expression(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"not a regular expression: {str(error)!a} → such as head.*") from error
    return text


class ParameterGroup(Section):
    """Parameters with a rate and a decay of their own: a slow backbone, a fast head, a bias that does not decay.

    `match` is a regular expression for the whole name of a parameter, as `named_parameters()` gives it; the first
    group that matches takes it. `lr_scale` is a factor on the schedule's rate; `weight_decay: null` is the optimizer's.
    """

    match: Annotated[str, AfterValidator(_regular_expression)]
    lr_scale: Positive = 1.0
    weight_decay: NonNegative | None = None


class OptimizerConfig(Section):
    """The optimizer; `betas` are AdamW's, `momentum` is SGD's. `grad_clip_norm: null` clips nothing."""

    kind: Literal["sgd", "adamw"] = "sgd"
    momentum: Decay = 0.9
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = (0.9, 0.999)  # YAML has lists, no tuples
    weight_decay: NonNegative = 0.0
    grad_clip_norm: Positive | None = None
    groups: Annotated[tuple[ParameterGroup, ...], Field(strict=False)] = ()

    @property
    def own_momentum(self) -> float:
        """What `schedule.momentum` moves: SGD's momentum, AdamW's first beta."""
        return self.momentum if self.kind == "sgd" else self.betas[0]
