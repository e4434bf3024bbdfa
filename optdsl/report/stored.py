"""How parameters, gradients and slots can be stored, and samples of what kernels there are."""

from __future__ import annotations

import importlib
import itertools
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

import torch

T = TypeVar("T")

# The arguments about precision: what a parameter of 16 bits does with what it rounds away, and what
# slots are stored in.
KEEPING: dict[str, dict[str, Any]] = {
    "": {},
    "stochastic": {"rounding": "stochastic"},
    "kahan": {"kahan": True},
    "master weights": {"master_weights": True},
}
SLOTS: dict[str, dict[str, Any]] = {
    "": {},
    "float32 slots": {"state_dtype": torch.float32},
    "bfloat16 slots": {"state_dtype": torch.bfloat16},
    "8-bit slots": {"state_dtype": "int8"},
}
# Enough elements for slots of 8 bits.
SIZE = 1 << 16


@dataclass(frozen=True, slots=True)
class Storage:
    """The dtypes of parameters and slots, what kernels are told about rounding, and the arguments
    of an optimizer that ask for this."""

    param: torch.dtype
    slot: torch.dtype
    roundings: tuple[str, str]
    arguments: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def is_random(self) -> bool:
        return "stochastic" in self.roundings


@cache
def storages(package: str) -> dict[str, Storage]:
    """Every kind of storage that kernels of a package know, by a name: each dtype with each policy,
    but for policies that change nothing."""
    policies = importlib.import_module(f"{package}._policy")
    members = importlib.import_module(f"{package}._fused._members")
    dtypes = [dtype for dtype in members.DTYPES if dtype.is_floating_point]
    found: dict[Storage, str] = {}
    for dtype, keeping, slots in itertools.product(dtypes, KEEPING, SLOTS):
        param = torch.empty(SIZE, dtype=dtype, device="meta")
        arguments = {**KEEPING[keeping], **SLOTS[slots]}
        policy = policies.of(arguments, param)
        example = torch.empty(SIZE, dtype=dtype)
        stored = policies.stored(policy, "slot", example, example)["slot"].dtype
        roundings = policies.NEAREST if policy is None else policy.roundings(param)
        words = [str(dtype).removeprefix("torch."), keeping, slots]
        storage = Storage(dtype, stored, roundings, arguments)
        found.setdefault(storage, ", ".join(filter(None, words)))
    return {name: storage for storage, name in found.items()}


def constants(
    package: str, program: Any, storage: Storage, chosen: Iterable[str]
) -> dict[str, torch.dtype | bool | str]:
    """What the runtime specialises a kernel by, for the flags that are on: options and slots."""
    members = importlib.import_module(f"{package}._fused._members")
    on = frozenset(chosen)
    there_are = (n for n in program.SLOTS if n in on or n not in program.OPTIONAL_SLOTS)
    dtypes = dict.fromkeys(there_are, storage.slot)
    dtypes |= {"param": storage.param, "grad": storage.param}
    found: dict[str, torch.dtype | bool | str] = members.constants(
        program, dtypes, on, storage.roundings
    )
    return found


def choices(program: Any) -> list[tuple[str, ...]]:
    """The sets of options and of optional slots that are on."""
    flags = (*program.OPTIONAL_SLOTS, *program.OPTIONS)
    return [
        tuple(flag for flag, on in zip(flags, values, strict=True) if on)
        for values in itertools.product((False, True), repeat=len(flags))
    ]


def sampled(groups: Iterable[list[T]], count: int | None) -> list[T]:
    """Some members of the groups, drawn with a fixed seed so that every group has one before any
    has two; all of them where there is no count."""
    if count is None:
        return [member for group in groups for member in group]
    seeded = random.Random(0)
    shuffled = [seeded.sample(group, len(group)) for group in groups]
    tiers = itertools.zip_longest(*shuffled)
    return [member for tier in tiers for member in tier if member is not None][:count]
