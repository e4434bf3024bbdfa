"""Schedules in fused steps: the rate that the scalar program computes, against Adam's kernel with a
learning rate for each step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import generated
from generated import lr_scheduler
from tests.reference import advance

STEPS = 14
CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "Noam": ({"warmup": 5, "d_model": 64}, lr_scheduler.NoamLR.function(64, 5)),
    "AdamWarmup": ({"warmup": 5}, lr_scheduler.WarmupLR.function(5)),
    "AdamWarmupCosineDecay": (
        {"warmup": 5, "total_steps": 12}, lr_scheduler.CosineWithWarmupLR.function(5, 12, 0.1),
    ),
}  # fmt: skip


def parameters() -> tuple[list[Tensor], list[list[Tensor]]]:
    draw = torch.Generator().manual_seed(0)
    rows = [[torch.randn(n, generator=draw) for n in (1, 7, 513)] for _ in range(STEPS + 1)]
    return rows[0], rows[1:]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("weight_decay", [0, 0.1])
def test_a_fused_step_has_the_rate_of_the_schedule(name: str, weight_decay: float) -> None:
    arguments, rate = CASES[name]
    start, grads = parameters()
    params, expected = [p.clone() for p in start], [p.clone() for p in start]
    optimizer = getattr(generated, name)(
        params, lr=0.1, fused=True, weight_decay=weight_decay, **arguments
    )
    adam = generated.Adam(expected, lr=0.1, fused=True, weight_decay=weight_decay)
    for step, row in enumerate(grads, 1):
        adam.param_groups[0]["lr"] = rate(step, 0.1)
        advance(optimizer, params, [row])
        advance(adam, expected, [row])
        assert all(map(torch.equal, params, expected))
