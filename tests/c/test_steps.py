"""Steps with `fused=True` on the CPU against the reference interpreter: every optimizer with a
kernel, every combination of its options, every dtype."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from generated._fused import _batch, _compile, _cpu, _members
from tests.c import kernels
from tests.triton.interpreted import oracle

pytestmark = kernels.needs_compiler

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
# Of parameters, and of slots where they have their own.
DTYPES: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32": (F32, {}),
    "float64": (F64, {}),
    "bfloat16": (BF16, {}),
    "float16": (F16, {}),
    "bfloat16 with float32": (BF16, {"state_dtype": F32}),
}


def cases(dtype: torch.dtype, **more: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """A weight decay that is a power of two keeps `grad + decay * param` one rounding away from
    exact, however much the two cancel; the interpreter's `fma` rounds the product as well."""
    for name in oracle.NAMES:
        for options in oracle.choices(name, weight_decay=(0, 0.125), maximize=(False, True)):
            yield name, {**options, **more}


def needed(optimizer: Any) -> Iterator[_compile.Kernel]:
    """The kernels of a first step."""
    program = kernels.program(optimizer.kernels)
    for group in optimizer.param_groups:
        param = group["params"][0]
        member = _members.member_of(optimizer, group, param, 0)
        member.takes(param)
        yield _compile.Kernel(optimizer.kernels, _cpu.spelled(member.constants(program)))


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTDSL_CACHE", str(tmp_path_factory.mktemp("kernels")))
        yield


@pytest.mark.parametrize("label", DTYPES)
def test_kernels_equal_the_reference_to_a_few_ulps(label: str) -> None:
    """The limits of `oracle`, where each is explained: 4 units in the last place for slots, 32 for
    parameters; in 16 bits, the neighbour of the correctly rounded value. Each step starts from the
    stored state."""
    dtype, more = DTYPES[label]
    every = list(cases(dtype, **more))
    made = (oracle.optimizer(name, dtype, **options)[0] for name, options in every)
    _compile.build([kernel for optimizer in made for kernel in needed(optimizer)])
    for name, options in every:
        optimizer, shifts = oracle.optimizer(name, dtype, **options)
        for step in range(oracle.STEPS[name]):
            before = _batch.launches
            worst = oracle.step_with_new_gradients(name, optimizer, shifts)
            assert _batch.launches > before
            for kind, error in worst.items():
                assert error <= oracle.limit(name, *kind), (name, options, step, kind, error)
