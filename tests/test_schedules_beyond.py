"""Schedules that torch does not have, each held against its published formula.

A formula is stated here as its source states it, and rounds otherwise than the spec's. Both round
fewer than twenty times, each time by at most 2**-53 of a value no greater than the first rate, and
no operation enlarges a difference by more than the power 4, or the 300 steps of a decay: 1e-12 of
the first rate is more than that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from generated import lr_scheduler as ours

Formula = Callable[[int, float], float]
steps = st.integers(0, 300)
some = st.integers(1, 300)
factors = st.floats(0.0, 1.0)
bases = st.floats(1e-6, 10.0)


def unhurried(**drawn: Any) -> Any:
    settings = hypothesis.settings(deadline=None, max_examples=40)
    return lambda test: settings(hypothesis.given(**drawn)(test))


def assert_follows(kind: str, arguments: dict[str, Any], base: float, formula: Formula) -> None:
    """The class and its function give the formula's rates, from the first to far behind the last
    step, and each is a rate."""
    function = getattr(ours, kind).function(**arguments)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base)
    scheduler = getattr(ours, kind)(optimizer, **arguments)
    for t in range(1000):
        (rate,) = scheduler.get_last_lr()
        assert rate == function(t, base)
        assert 0 <= rate < math.inf
        assert rate == pytest.approx(formula(t, base), rel=0, abs=1e-12 * base), t
        optimizer.step()
        scheduler.step()


def risen(t: int, warmup: int) -> float:
    """Goyal et al., section 2.2: the rate grows by the same amount in each step."""
    return min(1.0, t / warmup) if warmup else 1.0


@unhurried(warmup=steps, base=bases)
def test_warmup(warmup: int, base: float) -> None:
    assert_follows("WarmupLR", {"warmup_steps": warmup}, base, lambda t, b: b * risen(t, warmup))


@unhurried(warmup=steps, width=st.integers(1, 4096), base=bases)
def test_noam(warmup: int, width: int, base: float) -> None:
    def formula(t: int, b: float) -> float:
        """Vaswani et al., equation 3: steps count from 1. Before it the rate is 0, as it rises."""
        if t == 0:
            return 0.0 if warmup else b * width**-0.5
        rise = t * warmup**-1.5 if warmup else math.inf
        return b * width**-0.5 * min(t**-0.5, rise)

    arguments = {"d_model": width, "warmup_steps": warmup}
    assert_follows("NoamLR", arguments, base, formula)


@unhurried(warmup=some, base=bases)
def test_inverse_square_root_of_the_step(warmup: int, base: float) -> None:
    def formula(t: int, b: float) -> float:
        """Raffel et al., section 3.1.2: 1 / sqrt(max(n, k)), here as a part of its first value."""
        return b * risen(t, warmup) * math.sqrt(warmup) / math.sqrt(max(t, warmup))

    assert_follows("InverseSquareRootLR", {"warmup_steps": warmup}, base, formula)


@unhurried(warmup=steps, timescale=some, base=bases)
def test_inverse_square_root_with_a_time_scale(warmup: int, timescale: int, base: float) -> None:
    def formula(t: int, b: float) -> float:
        """Zhai et al., as in their code: the warm-up shifts the curve."""
        shift = timescale - warmup
        decay = 1.0 if t < warmup else math.sqrt((t + shift) / timescale)
        return b * risen(t, warmup) / decay

    arguments = {"warmup_steps": warmup, "timescale": timescale}
    assert_follows("InverseSquareRootLR", arguments, base, formula)


# Hägele et al., section 3: f(n, N, N_decay) of the steps that have passed of the cooldown.
COOLDOWNS: dict[str, Callable[[float], float]] = {
    "linear": lambda passed: 1 - passed,
    "1-sqrt": lambda passed: 1 - math.sqrt(passed),
    "cosine": lambda passed: 0.5 * (1 + math.cos(math.pi * passed)),
}


def cooled(kind: str, n: int, total: int, decay: int) -> float:
    """The part of the rate that is left at step n of N: all of it before the cooldown."""
    if n < total - decay:
        return 1.0
    return COOLDOWNS[kind]((n - (total - decay)) / decay) if n < total else 0.0


@pytest.mark.parametrize("kind", COOLDOWNS)
@unhurried(warmup=steps, stable=steps, decay=steps, end=factors, base=bases)
def test_warmup_stable_decay(
    kind: str, warmup: int, stable: int, decay: int, end: float, base: float
) -> None:
    def formula(t: int, b: float) -> float:
        """Hu et al., equation 1, whose f is one of Hägele et al."""
        left = cooled(kind, t, warmup + stable + decay, decay)
        return b * (risen(t, warmup) if t < warmup else end + (1 - end) * left)

    arguments = {
        "warmup_steps": warmup, "stable_steps": stable, "decay_steps": decay, "decay_type": kind,
        "end_factor": end,
    }  # fmt: skip
    assert_follows("WarmupStableDecayLR", arguments, base, formula)


@unhurried(total=some, decay=steps, end=factors, base=bases)
def test_one_minus_sqrt_cooldown(total: int, decay: int, end: float, base: float) -> None:
    hypothesis.assume(decay <= total)
    arguments = {"total_steps": total, "cooldown_steps": decay, "end_factor": end}
    assert_follows(
        "OneMinusSqrtCooldownLR",
        arguments,
        base,
        lambda t, b: b * (end + (1 - end) * cooled("1-sqrt", t, total, decay)),
    )


@unhurried(warmup=steps, stable=steps, decay=steps, base=bases)
def test_trapezoid(warmup: int, stable: int, decay: int, base: float) -> None:
    total = warmup + stable + decay
    hypothesis.assume(total > 0)

    def formula(t: int, b: float) -> float:
        """The lowest of the sides of a trapezoid of height 1."""
        falling = (total - t) / decay if decay else float(t < total)
        return b * max(0.0, min(risen(t, warmup) if t < total - decay else 1.0, 1.0, falling))

    arguments = {"total_steps": total, "warmup_steps": warmup, "decay_steps": decay}
    assert_follows("TrapezoidLR", arguments, base, formula)


@unhurried(warmup=steps, more=some, least=factors, base=bases)
def test_cosine_with_warmup(warmup: int, more: int, least: float, base: float) -> None:
    def formula(t: int, b: float) -> float:
        """Radford et al., section 4.1: linear from 0, then annealed to 0 along a cosine."""
        part = min(1.0, (t - warmup) / more)
        falling = max(least, 0.5 * (1 + math.cos(math.pi * part)))
        return b * (risen(t, warmup) if t < warmup else falling)

    arguments = {"warmup_steps": warmup, "total_steps": warmup + more, "min_factor": least}
    assert_follows("CosineWithWarmupLR", arguments, base, formula)


@unhurried(warmup=steps, more=some, power=st.floats(0.5, 4.0), end=factors, base=bases)
def test_polynomial_with_warmup(
    warmup: int, more: int, power: float, end: float, base: float
) -> None:
    def formula(t: int, b: float) -> float:
        """(lr - end) * (1 - part) ** power + end, as BERT's code and its followers have it."""
        left = 1 - min(1.0, (t - warmup) / more)
        return b * risen(t, warmup) if t < warmup else (b - end * b) * left**power + end * b

    arguments = {
        "warmup_steps": warmup, "total_steps": warmup + more, "power": power, "end_factor": end,
    }  # fmt: skip
    assert_follows("PolynomialWithWarmupLR", arguments, base, formula)


@unhurried(total=some, base=bases)
def test_rex(total: int, base: float) -> None:
    def formula(t: int, b: float) -> float:
        """Chen et al., section 3: (1 - t/T) / (1/2 + 1/2 (1 - t/T))"""
        z = min(t, total) / total
        return b * (1 - z) / (1 / 2 + 1 / 2 * (1 - z))

    assert_follows("REXLR", {"total_steps": total}, base, formula)


@pytest.mark.parametrize(
    ("kind", "arguments", "last"),
    [
        ("WarmupStableDecayLR", {"warmup_steps": 0, "stable_steps": 0, "decay_steps": 0}, 0.0),
        ("TrapezoidLR", {"total_steps": 7, "decay_steps": 7}, 0.0),
        ("OneMinusSqrtCooldownLR", {"total_steps": 9, "end_factor": 0.25}, 0.25),
        ("CosineWithWarmupLR", {"warmup_steps": 2, "total_steps": 2}, 0.0),
        ("PolynomialWithWarmupLR", {"warmup_steps": 3, "total_steps": 8, "power": 0.5}, 0.0),
        ("REXLR", {"total_steps": 3}, 0.0),
    ],
)
def test_the_end_is_reached_and_kept(kind: str, arguments: dict[str, Any], last: float) -> None:
    function = getattr(ours, kind).function(**arguments)
    assert [function(t, 1.0) for t in (9, 10, 10**6)] == [last] * 3


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("WarmupLR", {"warmup_steps": -1}),
        ("WarmupLR", {"warmup_steps": math.nan}),
        ("NoamLR", {"d_model": 0}),
        ("InverseSquareRootLR", {"timescale": 0}),
        ("WarmupStableDecayLR", {"warmup_steps": 1, "stable_steps": -1, "decay_steps": 1}),
        ("TrapezoidLR", {"total_steps": 4, "warmup_steps": 3, "decay_steps": 2}),
        ("OneMinusSqrtCooldownLR", {"total_steps": 4, "cooldown_steps": 5}),
        ("OneMinusSqrtCooldownLR", {"total_steps": 4, "end_factor": math.nan}),
        ("PolynomialWithWarmupLR", {"warmup_steps": 4, "total_steps": 4}),
        ("PolynomialWithWarmupLR", {"warmup_steps": 1, "total_steps": 4, "power": -1.0}),
        ("CosineWithWarmupLR", {"warmup_steps": 1, "total_steps": 4, "min_factor": 1.5}),
        ("REXLR", {"total_steps": 0}),
        ("REXLR", {"total_steps": math.inf}),
    ],
)
def test_arguments_without_a_meaning_are_refused(kind: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="breaks the condition"):
        getattr(ours, kind).function(**arguments)


def test_a_decay_of_an_unknown_type_is_refused() -> None:
    arguments: dict[str, Any] = {"warmup_steps": 0, "stable_steps": 0, "decay_steps": 1}
    with pytest.raises(ValueError, match="decay type sudden is unknown!"):
        ours.WarmupStableDecayLR.function(**arguments, decay_type="sudden")  # type: ignore[arg-type]
