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

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# What moves parameters.
LR = {"Adadelta": 1.0}
# The groups share a launch: its rows differ in the branch that they take.
SECOND_GROUP: dict[str, dict[str, Any]] = {
    "RAdam": {"betas": (0.8, 0.6)},  # never scales
    "ASGD": {"t0": 2},
}
THIRD_GROUP: dict[str, dict[str, Any]] = {
    "RAdam": {"betas": (0.8, 0.9)},
    "Rprop": {"etas": (0.25, 1.5)},
}
# In units of the last place. Every operation is rounded to nearest, and so is every number that
# comes from the table: a slot is at most four such errors, each half a unit of a term. A parameter
# takes over the error of a step whose terms cancel: up to five bits with momentum, seven where
# RMSprop subtracts the squared mean from the mean square.
SLOT_ULPS = 4
PARAM_ULPS = 32
LIMITS = {
    ("RMSprop", "param"): 128,
    # The square of a step, which is a quotient of roots: sixteen roundings.
    ("Adadelta", "acc_delta"): 8,
    # The average begins as the parameter, with its errors.
    ("ASGD", "ax"): PARAM_ULPS,
}
# In float64 the sixth step of RAdam is sensitive to beta2 ** step, which libraries round in two
# ways. A unit of it, 2 ** -53, is 12 / (1 - beta2 ** 6) ** 2 times as much of rho_t, and three
# tenths of that, relatively, of the step: 2 ** -36 with 0.999, which is 2 ** 17 units of a
# parameter as small as the step.
RADAM_FLOAT64_ULPS = 2**17
# One rounding to storage: the neighbour of the nearest value where the reference lies in between.
NARROW_ULPS = 1

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
    torch.manual_seed(0)
    lr = LR.get(name, 0.01)
    second = {"lr": 0.3 * lr, **SECOND_GROUP.get(name, {})}
    third = THIRD_GROUP.get(name, {"weight_decay": 0})
    # Aligned; misaligned with aligned slots; aligned with misaligned gradients.
    groups = [
        (oracle.parameters(dtype), 0, {}),
        (oracle.parameters(dtype, shift=1), 0, second),
        (oracle.parameters(dtype, sizes=(64, 513)), 1, third),
    ]
    optimizer = getattr(generated, name)(
        [{"params": params, **other} for params, _, other in groups],
        **{"lr": lr, **options}, capturable=capturable, fused=True,
    )  # fmt: skip
    for step in range(oracle.STEPS[name]):
        for params, shift, _ in groups:
            oracle.give_gradients(params, shift)
        before = _fused.launches
        worst = oracle.step_and_compare(name, optimizer)
        assert _fused.launches - before == (2 if capturable else 1)
        for key, error in worst.items():
            assert error <= limit(name, key, dtype), (step, key, error)


def limit(name: str, key: str, dtype: torch.dtype) -> int:
    if dtype.itemsize == 2:
        return NARROW_ULPS
    if (name, key, dtype) == ("RAdam", "param", torch.float64):
        return RADAM_FLOAT64_ULPS
    return LIMITS.get((name, key), PARAM_ULPS if key == "param" else SLOT_ULPS)


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
