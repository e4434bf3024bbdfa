"""Kernels in C of updates with numbers of all parameters: values, and what has no part in them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import generated
from generated._fused import _batch
from optdsl import interpret
from tests.c import kernels
from tests.c.kernels import FOLDER, compiled, needs_compiler, prepared, run_together
from tests.c.test_reductions import Program, drawn
from tests.random_specs import SMOOTH, spec_of, updates
from tests.test_global import TOTALS
from tests.triton.interpreted import oracle

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("programs")


SIZES = (300_001, 1, 65_536, 7, 65_537, 0, 33, 200_000, *[5] * 40)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads_alignment_and_calls_decide_nothing(dtype: torch.dtype, tmp_path: Path) -> None:
    """Tensors of one order give the same bits in one call and in several."""
    found = kernels.program("sngm")
    one = kernels.kernel(FOLDER / "sngm.c", found, {"param": dtype}, {})
    functions, said = compiled([one], tmp_path)
    assert said == []
    torch.manual_seed(0)
    start = [[torch.rand(n, dtype=torch.float64).to(dtype) for n in SIZES] for _ in range(3)]
    row = found.scalars(0.1, 0.9, 0.125)

    def updated(cuts: Sequence[int], shift: int, threads: int) -> list[list[Tensor]]:
        """The tensors after a step with a call for those from each cut on."""
        tensors = [[torch.cat([t.new_zeros(shift), t])[shift:] for t in group] for group in start]
        calls = [
            prepared(
                functions[one], [group[first:end] for group in tensors], [row], threads=threads,
                reductions=found.REDUCTIONS, barriers=[end for end, _ in found.BARRIERS],
            )
            for first, end in itertools.pairwise((*cuts, len(SIZES)))
        ]  # fmt: skip
        run_together(found.BARRIERS, calls)
        return tensors

    expected = updated((0,), 0, 1)
    assert not torch.equal(expected[0][0], start[0][0])
    for cuts, shift, threads in itertools.product(((0,), (0, 2, 6)), (0, 3), (1, 2, 3, 16)):
        for group, other in zip(updated(cuts, shift, threads), expected, strict=True):
            assert all(map(torch.equal, group, other)), (cuts, shift, threads)


def test_calls_of_several_dtypes_make_one_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the package's runtime: a batch for each dtype and direction."""
    monkeypatch.setenv("OPTDSL_CACHE", str(tmp_path))
    torch.manual_seed(0)
    groups = [
        {"params": oracle.parameters(torch.float32), "weight_decay": 0.125},
        {"params": oracle.parameters(torch.bfloat16, shift=1), "lr": 0.3},
        {"params": oracle.parameters(torch.float16, sizes=(7, 70_001)), "maximize": True},
    ]
    optimizer = generated.SNGM(groups, lr=0.1, fused=True)
    for step in range(4):
        for group in optimizer.param_groups:
            oracle.give_gradients(group["params"])
        if step == 1:
            groups[0]["params"][3].grad = None
        before = _batch.launches
        errors = oracle.step_and_compare("SNGM", optimizer)
        assert _batch.launches - before == 2 * len(groups)
        for kind, error in errors.items():
            assert error <= oracle.limit("SNGM", *kind), (kind, error)


def check(one: Program, function: Any, flag: bool, tensors: list[Any]) -> None:
    """Two steps in float64, where kernel and interpreter differ by roundings alone. The last tensor
    has a call of its own, with other numbers."""
    hypers = [{"c": c, "d": 0.7, "flag": flag} for c in (0.3, 0.3, 0.45)]
    params, grads = ([torch.from_numpy(t.copy()) for t in group] for group in tensors)
    slots = [[torch.zeros_like(p) for p in params]]
    slots += [[torch.full_like(p, h["c"]) for p, h in zip(params, hypers, strict=True)]]
    program = one.module
    assert list(program.SLOTS) == ["a", "b"]

    def calls(step: int) -> Iterator[Any]:
        for part in (slice(2), slice(2, 3)):
            given = program.inputs(hypers[part.start or 0], params[0], frozenset())
            yield prepared(
                function, [params[part], grads[part], *(s[part] for s in slots)],
                [program.scalars(*given, float(step))], threads=1 + step,
                reductions=program.REDUCTIONS, barriers=[end for end, _ in program.BARRIERS],
            )  # fmt: skip

    found: list[tuple[Any, Any]] = [(param, None) for param in tensors[0]]
    for step in range(2):
        run_together(program.BARRIERS, [*calls(step)])
        members = [
            interpret.Member(h, param, grad, state)
            for h, (param, state), grad in zip(hypers, found, tensors[1], strict=True)
        ]
        found = interpret.step_all(one.spec, members)
    for place, (param, state) in enumerate(found):
        for got, want in ((params[place], param), (slots[0][place], state["a"])):
            if np.isfinite(want).all() and np.abs(want).max(initial=0) > 1e6:
                return  # an exploding program says nothing about rounding
            np.testing.assert_allclose(got.numpy(), want, rtol=1e-7, atol=1e-7)


UPDATES = (
    "a = grad / all_norm(param)",
    "a = grad * all_sum(param) / 100 + all_max_abs(grad - 5)",
    "a = grad * all_dot(param + 1, grad + 2) / 1000",
    "a = grad * all_sum(grad > 0) / 1000 + norm(param)",
    # Who does not come there has no part in it.
    "a = param\nif c < 0.4 { a = grad / all_norm(grad) }",
    "a = grad / all_norm(grad)\nif c < 0.4 { a += all_norm(grad) }",
    "let r = c\nif flag { r = all_norm(grad) } else { r = all_norm(param) }\na = r * grad",
    # Each needs the one before, of one parameter or of all.
    "let n = all_norm(grad)\nlet k = norm(grad / n)\nlet m = all_max_abs(param * k)\n"
    "a = grad * m * all_dot(grad / n, param / m) / (1 + all_sum(abs(a)))",
    # Numbers of float64, and conditions.
    "let n = all_norm(grad)\na = where(n > 3 and n < 1e9, grad / n, grad) * min(max(n, 0.1), 7)",
    # Behind assignments, whose values are the new ones.
    "param = param * 2\na += param\nlet n = all_norm(a) + all_norm(param)\na = grad / n",
)


@pytest.mark.parametrize("flag", [False, True])
def test_totals_wherever_they_stand(folder: Path, flag: bool) -> None:
    made = [Program(spec_of(update), folder) for update in UPDATES]
    assert all(p.module.BARRIERS for p in made)
    functions, _ = compiled([p.kernel(torch.float64, flag) for p in made], folder)
    for one in made:
        check(one, functions[one.kernel(torch.float64, flag)], flag, drawn((37, 70_001, 5)))


QUICK = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=3)


@QUICK
@given(st.lists(st.tuples(updates(SMOOTH + 3 * TOTALS), st.booleans()), min_size=12, max_size=12))
def test_random_updates(folder: Path, cases: list[tuple[str, bool]]) -> None:
    programs = [(Program(text, folder), flag) for text, flag in cases]
    functions, _ = compiled([p.kernel(torch.float64, flag) for p, flag in programs], folder)
    for one, flag in programs:
        check(one, functions[one.kernel(torch.float64, flag)], flag, drawn((37, 70_001, 3)))
