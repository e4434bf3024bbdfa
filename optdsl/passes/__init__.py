"""Spec -> Spec: rewrites that every target shares, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable

from optdsl.ir import Spec
from optdsl.passes.branches_to_where import branches_to_where
from optdsl.passes.complex_views import first_real_statement, supports_complex
from optdsl.passes.contract import contract
from optdsl.passes.derive_chain import derive_chain
from optdsl.passes.drop_unused import drop_unused
from optdsl.passes.hoist_scalars import hoist_scalars
from optdsl.passes.lower_descend import lower_descend
from optdsl.passes.stages import barriers, name_totals, stages

Pass = Callable[[Spec], Spec]

PASSES: tuple[Pass, ...] = (name_totals, lower_descend, contract, drop_unused)
# Kernels compute no scalar: theirs come from a table. A number made of all elements needs a pass.
KERNEL_PASSES: tuple[Pass, ...] = (hoist_scalars, stages)
# Plain expressions have no rounding nodes, and their numbers may be tensors.
FUNCTIONAL_PASSES: tuple[Pass, ...] = (
    name_totals, lower_descend, drop_unused, branches_to_where, barriers,
)  # fmt: skip


def optimise(spec: Spec) -> Spec:
    for rewrite in PASSES:
        spec = rewrite(spec)
    return spec


def for_torch(spec: Spec) -> Spec:
    """What a target in torch's operations lowers: its body finds the numbers of all parameters."""
    return barriers(optimise(spec))


def for_kernels(spec: Spec) -> Spec:
    """What a kernel target lowers: an optimised spec without scalar work in its body."""
    for rewrite in KERNEL_PASSES:
        spec = rewrite(spec)
    return spec


def for_expressions(spec: Spec) -> Spec:
    """What the functional target lowers, from a spec as resolved."""
    for rewrite in FUNCTIONAL_PASSES:
        spec = rewrite(spec)
    return spec


__all__ = [
    "FUNCTIONAL_PASSES",
    "KERNEL_PASSES",
    "PASSES",
    "Pass",
    "barriers",
    "branches_to_where",
    "contract",
    "derive_chain",
    "drop_unused",
    "first_real_statement",
    "for_expressions",
    "for_kernels",
    "for_torch",
    "hoist_scalars",
    "lower_descend",
    "name_totals",
    "optimise",
    "stages",
    "supports_complex",
]
