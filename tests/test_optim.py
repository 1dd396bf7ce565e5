"""The optimizer's parameter groups and the learning rate schedule."""

import pytest
from torch import nn

from project.optim import lr_factor, make_optimizer, make_schedule, param_groups


def factors(schedule: str, **options) -> list[float]:
    return [lr_factor(step, schedule, **{"warmup_ratio": 0.1, "total_steps": 100, **options}) for step in range(101)]


def test_schedule_warms_up_and_ends_at_zero():
    cosine = factors("cosine")
    assert cosine[:10] == sorted(cosine[:10]) and 0 < cosine[0] < 0.2 and cosine[10] == 1.0
    assert cosine[10:] == sorted(cosine[10:], reverse=True) and cosine[100] == pytest.approx(0)
    assert factors("constant")[99] == 1.0
    assert factors("cosine", total_steps=float("inf"))[5] == 1.0


def test_groups_have_their_names_rates_and_decay_and_hold_each_trained_parameter_once():
    net = nn.ModuleDict({"body": nn.Linear(3, 3), "fc": nn.Linear(3, 2), "fixed": nn.Linear(3, 3)})
    net["fixed"].requires_grad_(False)
    groups = param_groups(net.named_parameters(), "fc.", {"body.weight", "fc.weight"}, 0.1, 0.5, 0.01)
    expected = {"backbone": 0.01, "backbone (no decay)": 0, "head": 0.01, "head (no decay)": 0}
    assert {group["name"]: group["weight_decay"] for group in groups} == expected
    assert [group["lr"] for group in groups] == [0.05, 0.05, 0.1, 0.1]
    assert sum(len(group["params"]) for group in groups) == 4


def test_the_schedule_scales_every_group_from_its_own_peak():
    net = nn.Linear(2, 2)
    groups = [{"params": [net.weight], "lr": 0.1}, {"params": [net.bias], "lr": 0.01}]
    optimizer = make_optimizer(groups, "adamw", 0.1, 0.9, fused=False)
    make_schedule(optimizer, "cosine", warmup_ratio=0.5, total_steps=10)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1 / 6, 0.01 / 6])
