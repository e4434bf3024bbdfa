"""Each kernel against the reference interpreter, over options, dtypes, alignments and sizes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import oracle
import pytest
import torch

import generated
from generated import _fused
from tests.reference import SHIPPED, VARIATIONS, choices

STEPS = 4
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# In units of the last place. Every operation is rounded to nearest, and so is every number that
# comes from the table: a slot is at most four such errors, each half a unit of a term. A parameter
# takes over the error of a step whose terms cancel: up to five bits with momentum, seven where
# RMSprop subtracts the squared mean from the mean square.
SLOT_ULPS = 4
PARAM_ULPS = {"RMSprop": 128}
OTHER_PARAM_ULPS = 32
# One rounding to storage: the neighbour of the nearest value where the reference lies in between.
NARROW_ULPS = 1

Case = tuple[str, dict[str, Any], torch.dtype, bool]


def cases() -> Iterator[Case]:
    """Everything with everything. A weight decay that is a power of two keeps `grad + decay *
    param` one rounding away from exact, however much the two cancel; the interpreter's `fma` rounds
    the product as well."""
    for name in SHIPPED:
        varied = choices(name, weight_decay=(0, 0.125), maximize=(False, True))
        for options, dtype, capturable in itertools.product(varied, DTYPES, (False, True)):
            yield name, options, dtype, capturable


CASES = list(cases())


def pairs(case: Case) -> set[tuple[Any, Any]]:
    """What a case tries together. A choice that is not named has its default."""
    name, options, dtype, capturable = case
    chosen = {key: options.get(key, False) for key in (*VARIATIONS[name], "maximize")}
    facts = [*chosen.items(), ("dtype", dtype), ("capturable", capturable)]
    return {(name, pair) for pair in itertools.combinations(facts, 2)}


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
    torch.manual_seed(0)
    # Aligned; misaligned with aligned slots; aligned with misaligned gradients.
    groups = [
        (oracle.parameters(dtype), 0, {}),
        (oracle.parameters(dtype, shift=1), 0, {"lr": 0.003}),
        (oracle.parameters(dtype, sizes=(64, 513)), 1, {"weight_decay": 0}),
    ]
    optimizer = getattr(generated, name)(
        [{"params": params, **other} for params, _, other in groups],
        **{"lr": 0.01, **options}, capturable=capturable, fused=True,
    )  # fmt: skip
    for step in range(STEPS):
        for params, shift, _ in groups:
            oracle.give_gradients(params, shift)
        before = _fused.launches
        worst = oracle.step_and_compare(name, optimizer)
        assert _fused.launches - before == (2 if capturable else 1)
        narrow = dtype.itemsize == 2
        for key, error in worst.items():
            limit = PARAM_ULPS.get(name, OTHER_PARAM_ULPS) if key == "param" else SLOT_ULPS
            assert error <= (NARROW_ULPS if narrow else limit), (step, key, error)


@pytest.mark.parametrize("case", pairwise(), ids=label)
def test_kernel_equals_the_reference_to_a_few_ulps(case: Case) -> None:
    """float32 and float64: 4 units in the last place for slots, 32 for parameters, 128 for those of
    RMSprop; 16-bit types: at most the neighbour of the correctly rounded value. Each step starts
    from the stored state."""
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=label)
def test_kernel_equals_the_reference_in_every_combination(case: Case) -> None:
    """The same limits."""
    check(case)
