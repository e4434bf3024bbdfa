"""Spec -> Spec: rewrites that every target shares, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable

from optdsl.ir import Spec
from optdsl.passes.complex_views import first_real_statement, supports_complex
from optdsl.passes.contract import contract
from optdsl.passes.drop_unused import drop_unused
from optdsl.passes.hoist_scalars import hoist_scalars
from optdsl.passes.lower_descend import lower_descend

Pass = Callable[[Spec], Spec]

PASSES: tuple[Pass, ...] = (lower_descend, contract, drop_unused)
# Kernels compute no scalar: theirs come from a table.
KERNEL_PASSES: tuple[Pass, ...] = (hoist_scalars,)


def optimise(spec: Spec) -> Spec:
    for rewrite in PASSES:
        spec = rewrite(spec)
    return spec


def for_kernels(spec: Spec) -> Spec:
    """What a kernel target lowers: an optimised spec without scalar work in its body."""
    for rewrite in KERNEL_PASSES:
        spec = rewrite(spec)
    return spec


__all__ = [
    "KERNEL_PASSES",
    "PASSES",
    "Pass",
    "contract",
    "drop_unused",
    "first_real_statement",
    "for_kernels",
    "hoist_scalars",
    "lower_descend",
    "optimise",
    "supports_complex",
]
