"""The optimizer of a run: which parameters it updates at which rate, and its state by the parameters' names."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from ..config.optimizer import OptimizerConfig, ParameterGroup
from ..errors import UserError


def build_optimizer(model: nn.Module, config: OptimizerConfig, lr: float) -> Optimizer:
    """The configured optimizer over all parameters that train.

    With `groups`, the first parameter group has what none of them matches, and may be empty; the others follow in
    their order. So the first group's rate is always the schedule's own.

    Raises:
        UserError: when a group gets no parameter.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    parameters: Any = _parameter_groups(named, config.groups) if config.groups else list(named.values())
    if config.kind == "sgd":
        return SGD(parameters, lr=lr, momentum=config.momentum, weight_decay=config.weight_decay)
    return AdamW(parameters, lr=lr, betas=config.betas, weight_decay=config.weight_decay)


def _parameter_groups(named: dict[str, nn.Parameter], groups: tuple[ParameterGroup, ...]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = [{"params": []}]
    for group in groups:
        own_decay = {} if group.weight_decay is None else {"weight_decay": group.weight_decay}
        made.append({"params": [], "lr_scale": group.lr_scale, **own_decay})
    for name, parameter in named.items():
        matching = (number for number, group in enumerate(groups, 1) if re.fullmatch(group.match, name))
        made[next(matching, 0)]["params"].append(parameter)
    for number, group in enumerate(groups):
        if not made[number + 1]["params"]:
            reason = "matches no parameter that trains → the whole name of one, such as " + next(iter(named), "…")
            if any(re.fullmatch(group.match, name) for name in named):
                reason = "groups before it take all that it matches → put it before them, or leave it out"
            raise UserError(f"optimizer.groups.{number}.match = {group.match!r}: {reason}")
    return made


def optimizer_state(optimizer: Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """Its tensors as `<parameter>.<key>`, for a checkpoint."""
    return {
        f"{name}.{key}": value
        for name, parameter in module.named_parameters()
        for key, value in sorted(optimizer.state.get(parameter, {}).items())
        if isinstance(value, Tensor)
    }


def prepare_state(optimizer: Optimizer, module: nn.Module, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Zeros where a saved state is to be loaded, as `optimizer_state` names them; sharded as their parameters are."""
    parameters = dict(module.named_parameters())
    optimizer.state.clear()
    for full, tensor in saved.items():
        name, _, key = full.rpartition(".")
        # AdamW keeps its step count on the CPU.
        like = torch.empty_like(tensor, device="cpu") if key == "step" else parameters[name]
        optimizer.state[parameters[name]][key] = torch.zeros_like(like)
    return optimizer_state(optimizer, module)
