"""Each kernel against the reference interpreter, over options, dtypes, alignments and sizes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import oracle
import pytest
import torch

from generated._fused import _batch

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
Case = tuple[str, dict[str, Any], torch.dtype, bool]


def cases() -> Iterator[Case]:
    """Everything with everything. A weight decay that is a power of two keeps `grad + decay *
    param` one rounding away from exact, however much the two cancel; the interpreter's `fma` rounds
    the product as well."""
    for name in oracle.NAMES:
        varied = oracle.choices(name, weight_decay=(0, 0.125), maximize=(False, True))
        for options, dtype, capturable in itertools.product(varied, DTYPES, (False, True)):
            yield name, options, dtype, capturable


CASES = list(cases())


def pairs(case: Case) -> set[tuple[Any, ...]]:
    """What a case tries: its dtype, and its choices two at a time. A choice that is not named has
    its default. Kernels compute in float32 or float64: that is a choice, too."""
    name, options, dtype, capturable = case
    chosen = {key: options.get(key, False) for key in (*oracle.VARIATIONS[name], "maximize")}
    facts = [*chosen.items(), ("double", dtype is torch.float64), ("capturable", capturable)]
    return {(name, dtype), *((name, pair) for pair in itertools.combinations(facts, 2))}


def pairwise() -> list[Case]:
    """Few cases that hold every pair of choices: each time the one with the most new pairs."""
    left = {index: pairs(case) for index, case in enumerate(CASES)}
    chosen = []
    while any(left.values()):
        best = max(left, key=lambda index: len(left[index]))
        chosen.append(CASES[best])
        seen = left.pop(best)
        left = {index: new - seen for index, new in left.items()}
    return chosen


def label(case: Case) -> str:
    name, options, dtype, capturable = case
    words = [f"{k}={v}" for k, v in options.items()] + ["capturable"] * capturable
    return "-".join([name, str(dtype).removeprefix("torch."), *words])


def check(case: Case) -> None:
    name, options, dtype, capturable = case
    optimizer, shifts = oracle.optimizer(name, dtype, **options, capturable=capturable)
    for step in range(oracle.STEPS[name]):
        before = _batch.launches
        worst = oracle.step_with_new_gradients(name, optimizer, shifts)
        assert _batch.launches - before == oracle.launches(name) + capturable
        for key, error in worst.items():
            assert error <= oracle.limit(name, key, dtype), (step, key, error)


@pytest.mark.parametrize("case", pairwise(), ids=label)
def test_kernel_equals_the_reference_to_a_few_ulps(case: Case) -> None:
    """float32 and float64: 4 units in the last place for slots, 32 for parameters, more for those
    in `LIMITS`; 16-bit types: at most the neighbour of the correctly rounded value. Each step
    starts from the stored state."""
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=label)
def test_kernel_equals_the_reference_in_every_combination(case: Case) -> None:
    """The same limits."""
    check(case)
