"""The optimizer and its schedule: parameter groups with rates of their own, warm-up, then a cosine or a constant."""

import math
from collections.abc import Collection, Iterable
from functools import partial
from typing import Any, Literal

import torch
from torch.nn import Parameter
from torch.optim.lr_scheduler import LambdaLR

OptimizerName = Literal["sgd", "adam", "adamw"]
Schedule = Literal["cosine", "constant"]


def param_groups(
    parameters: Iterable[tuple[str, Parameter]],
    head: str,
    decayed: Collection[str],
    lr: float,
    backbone_lr_factor: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Parameter groups: the head and the backbone, each with and without weight decay.

    Args:
        parameters: Names and parameters; those that need no gradient are left out.
        head: What the names of the head's parameters begin with.
        decayed: Names of the parameters that weight decay is for.
        lr: Peak learning rate of the head.
        backbone_lr_factor: The backbone's peak learning rate is this times the head's.
        weight_decay: Of the decayed parameters.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        part = "head" if name.startswith(head) else "backbone"
        group = groups.setdefault(
            part if name in decayed else f"{part} (no decay)",
            {
                "params": [],
                "lr": lr if part == "head" else lr * backbone_lr_factor,
                "weight_decay": weight_decay if name in decayed else 0.0,
            },
        )
        group["params"].append(parameter)
    return [{"name": name, **group} for name, group in groups.items()]


def make_optimizer(
    groups: list[dict[str, Any]], name: OptimizerName, lr: float, momentum: float, fused: bool
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, Adam or AdamW.

    Args:
        groups: What `param_groups` returned.
        name: Which one.
        lr: For groups without a rate of their own.
        momentum: For SGD, from 0 to 1.
        fused: One kernel for all parameters.
    """
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=fused)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name](groups, lr=lr, fused=fused)


def make_schedule(
    optimizer: torch.optim.Optimizer, name: Schedule, warmup_ratio: float, total_steps: float
) -> LambdaLR:
    """The schedule of all groups, to be advanced after every optimizer step; see `lr_factor`."""
    factor = partial(lr_factor, name=name, warmup_ratio=warmup_ratio, total_steps=total_steps)
    return LambdaLR(optimizer, [factor for _ in optimizer.param_groups])


def lr_factor(step: int, name: Schedule, warmup_ratio: float, total_steps: float) -> float:
    """The learning rate at a step as a factor of its peak, from 0 to 1: warm-up, then cosine or constant.

    Args:
        step: Optimizer steps done.
        name: What follows the warm-up.
        warmup_ratio: Share of all steps in which the rate rises linearly.
        total_steps: Infinity, for training without a planned end, gives a factor of 1 throughout.
    """
    if math.isinf(total_steps):
        return 1.0
    warmup = warmup_ratio * total_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if name == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total_steps - warmup)))
