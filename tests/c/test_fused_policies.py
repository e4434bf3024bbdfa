"""Policies of precision with `fused=True` on the CPU: the bits of the definition, and resuming."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import generated
from generated._fused import _batch, _compile, _cpu, _members
from generated._policy import DRAWS
from tests.c.kernels import needs_compiler, program
from tests.policies import (
    COVERING,
    NAMES,
    POLICIES,
    SOME,
    assert_follows_the_definition,
    assert_resumes,
    options_of,
    problem,
)
from tests.reference import construct

pytestmark = needs_compiler

WITH_KERNELS = [name for name in NAMES if getattr(generated, name).kernels]
CASES = [
    *((name, torch.bfloat16, policy) for name in WITH_KERNELS for policy in COVERING),
    *(
        (name, dtype, policy)
        for name in SOME
        if name in WITH_KERNELS
        for dtype in (torch.bfloat16, torch.float16, torch.float32)
        for policy in POLICIES
        if (dtype, policy) not in [(torch.bfloat16, covering) for covering in COVERING]
    ),
]


def needed(name: str, dtype: torch.dtype, policy: dict[str, Any]) -> Iterator[_compile.Kernel]:
    """The kernels of the first step and, where a slot's existence is one of its options, of later
    ones."""
    params = problem(name, dtype).start()
    optimizer: Any = construct(generated, name, params, **options_of(name), **policy)
    for param in params:
        member = _members.member_of(optimizer, optimizer.param_groups[0], param, 0)
        member.takes(param)
        constants = member.constants(program(optimizer.kernels))
        yield _compile.Kernel(optimizer.kernels, _cpu.spelled(constants))


@pytest.fixture(autouse=True, scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """All kernels, compiled at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTDSL_CACHE", str(tmp_path_factory.mktemp("kernels")))
        cases = [(name, dtype, POLICIES[policy]) for name, dtype, policy in CASES]
        cases += [(name, torch.float32, {}) for name in WITH_KERNELS]
        _compile.build([kernel for case in cases for kernel in needed(*case)])
        yield


@pytest.mark.parametrize(("name", "dtype", "policy"), CASES, ids=str)
def test_a_kernel_rounds_a_step_in_float32(name: str, dtype: torch.dtype, policy: str) -> None:
    before = _batch.launches
    assert_follows_the_definition(name, dtype, POLICIES[policy], fused=True)
    assert _batch.launches > before


@pytest.mark.parametrize("policy", COVERING)
@pytest.mark.parametrize("name", WITH_KERNELS)
def test_resuming_changes_no_bit(name: str, policy: str) -> None:
    assert_resumes(name, POLICIES[policy], fused=True)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_kernel_goes_on_where_the_for_loop_was_and_back(policy: str) -> None:
    """Where no root is taken, both have the same bits."""
    start = problem("SGD", torch.bfloat16, steps=6)
    found = []
    for flags in ([{"foreach": False}] * 3, [{"fused": True}, {"foreach": False}, {"fused": True}]):
        params = start.start()
        optimizer = construct(generated, "SGD", params, lr=0.125, momentum=0.5, **POLICIES[policy])
        for n, flag in enumerate(flags):
            optimizer.param_groups[0].update({"fused": False, "foreach": False} | flag)
            for row in start.gradients[2 * n : 2 * n + 2]:
                for param, grad in zip(params, row, strict=True):
                    param.grad = grad
                optimizer.step()
        found.append([p.detach() for p in params])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("policy", POLICIES)
def test_groups_share_a_call_and_count_their_own_steps(policy: str) -> None:
    """One that comes later has another number for its random bits."""
    values = [torch.randn(70).bfloat16() for _ in range(4)]
    runs: list[list[torch.Tensor]] = []
    for flags in ({"fused": True}, {"foreach": False}):
        random = torch.Generator().manual_seed(0)
        params = [value.clone() for value in values]
        groups = [{"params": [p], "lr": 0.125 * i} for i, p in enumerate(params[:3], start=1)]
        optimizer = generated.SGD(groups, momentum=0.5, **flags, **POLICIES[policy])
        calls = []
        for number in range(5):
            if number == 2:
                optimizer.add_param_group({"params": params[3:]})
            for param in params:
                param.grad = torch.randn(70, generator=random).bfloat16()
            before = _batch.launches
            optimizer.step()
            calls.append(_batch.launches - before)
        if "fused" in flags:
            counted = [group.get(DRAWS) for group in optimizer.param_groups]
            later = 1 if counted == [None] * 4 else 2
            # A slot that is not there yet is made by a kernel of its own.
            assert calls[:2] == [1, 1]
            assert calls[3:] == [later, later]
        runs.append(params)
    assert all(map(torch.equal, *runs))
