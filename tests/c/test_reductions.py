"""Kernels in C of updates with reductions: values, and what has no part in them."""

from __future__ import annotations

import importlib.util
import itertools
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import generated
from generated._fused import _batch, _cpu
from optdsl import interpret
from optdsl.emit import render
from optdsl.ir import Spec
from optdsl.parse import parse
from optdsl.resolve import resolve
from optdsl.source import Source
from optdsl.targets import c, program
from tests.c import kernels
from tests.c.kernels import (
    FOLDER,
    Kernel,
    Stepper,
    call,
    compiled,
    kernel_for,
    needs_compiler,
)
from tests.random_specs import NESTED, SMOOTH, spec_of, updates
from tests.triton.interpreted import oracle

pytestmark = needs_compiler
NAMES = ("LAMB", "LARS")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# None, less than a step, one more than a block of steps, several pieces with a part of one.
SIZES = (0, 1, 7, 4097, 300_000)
# In units of the last place, as for Triton; of 300,000 elements some cancel to seven bits.
LIMITS = {"param": 128, "momentum_buffer": 8}
SLOT_ULPS = 4
NARROW_ULPS = 1


def test_pieces_have_the_same_size_everywhere() -> None:
    found = re.search(r"PIECE = 1 << (\d+),", (FOLDER / "kernel.h").read_text())
    assert found is not None
    assert 1 << int(found[1]) == _cpu.ELEMENTS_PER_TERM


def optimizers(name: str, dtype: torch.dtype) -> list[Any]:
    """With every combination of options, and two groups."""
    made = []
    for options in oracle.choices(name, weight_decay=(0, 0.125), maximize=(False, True)):
        torch.manual_seed(0)
        groups = [
            {"params": oracle.parameters(dtype, sizes=SIZES)},
            {"params": oracle.parameters(dtype, shift=1, sizes=SIZES[1:4]), "lr": 3e-3},
        ]
        made.append(getattr(generated, name)(groups, **{"lr": 0.01, **options}))
    return made


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_steps_are_the_interpreters_to_a_few_ulps(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Each step starts from the stored state. 16-bit types: the neighbour of the rounded value."""
    made = optimizers(name, dtype)
    functions, said = compiled(list({kernel_for(o) for o in made}), tmp_path)
    assert said == []
    for optimizer, threads in zip(made, itertools.cycle((1, 3))):
        stepper = Stepper(optimizer, functions[kernel_for(optimizer)])
        optimizer.step = lambda stepper=stepper, threads=threads: stepper.step(threads)
        for _ in range(2):
            for group in optimizer.param_groups:
                oracle.give_gradients(group["params"])
            for (slot, _), error in oracle.step_and_compare(name, optimizer).items():
                narrow = dtype.itemsize == 2
                limit = NARROW_ULPS if narrow else LIMITS.get(slot, SLOT_ULPS)
                assert error <= limit, (slot, error)


# Of many large tensors, two threads take whole ones; three and more share each.
@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [
        *((dtype, [300_001, 1, 65_536, 7, 65_537, 0, 33, 200_000, *[5] * 40]) for dtype in DTYPES),
        (torch.float32, [300_000] * 18),
    ],
    ids=lambda value: f"{len(value)} tensors" if isinstance(value, list) else str(value),
)
def test_threads_alignment_and_the_tensors_beside_decide_nothing(
    dtype: torch.dtype, sizes: list[int], tmp_path: Path
) -> None:
    found = kernels.program("lamb")
    one = kernels.kernel(FOLDER / "lamb.c", found, {"param": dtype}, {"ADAPTIVE": True})
    functions, _ = compiled([one], tmp_path)
    torch.manual_seed(0)
    start = [[torch.rand(n, dtype=torch.float64).to(dtype) for n in sizes] for _ in range(4)]
    row = found.scalars(0.01, 0.9, 0.99, 1e-8, 0.125, 0.0, torch.inf, 3.0)

    def updated(order: Sequence[int], shift: int, threads: int) -> list[list[Tensor]]:
        """The tensors after a step that has them in this order."""
        tensors = [[torch.cat([t[i].new_zeros(shift), t[i]])[shift:] for i in order] for t in start]
        call(functions[one], tensors, [row], threads=threads, reductions=found.REDUCTIONS)
        places = sorted(range(len(order)), key=order.__getitem__)
        return [[group[place] for place in places] for group in tensors]

    forward = list(range(len(sizes)))
    expected = updated(forward, 0, 1)
    assert not torch.equal(expected[0][0], start[0][0])
    shuffled = torch.randperm(len(sizes)).tolist()
    ways = itertools.product((forward, forward[::-1], shuffled), (0, 3), (1, 2, 3, 16))
    for order, shift, threads in ways:
        for group, other in zip(updated(order, shift, threads), expected, strict=True):
            assert all(map(torch.equal, group, other)), (order, shift, threads)


def test_the_runtime_keeps_their_space_for_each_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group that is not adaptive has a kernel of its own."""
    monkeypatch.setenv("OPTDSL_CACHE", str(tmp_path))
    for name in NAMES:
        torch.manual_seed(0)
        params = [oracle.parameters(torch.float32, sizes=(4097, 70_000, n)) for n in (7, 0)]
        groups = [{"params": p, "adaptive": a} for p, a in zip(params, (True, False), strict=True)]
        optimizer = getattr(generated, name)(groups, lr=0.01, weight_decay=0.125, fused=True)
        for _ in range(4):
            for group in params:
                oracle.give_gradients(group)
            before = _batch.launches
            for (slot, _), error in oracle.step_and_compare(name, optimizer).items():
                assert error <= LIMITS.get(slot, SLOT_ULPS), (slot, error)
            assert _batch.launches - before == 2


@pytest.mark.parametrize("policy", ["master_weights", "kahan"])
@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_with_all_its_bits_takes_the_steps_of_float32(
    name: str, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each pass sees the parameter as wide as it is kept."""
    monkeypatch.setenv("OPTDSL_CACHE", str(tmp_path))
    found = []
    for dtype, options in (
        (torch.float32, {}),
        (torch.bfloat16, {policy: True, "state_dtype": torch.float32}),
    ):
        torch.manual_seed(0)
        params = [torch.randn(n).bfloat16().to(dtype) for n in (7, 4097, 70_000)]
        optimizer = getattr(generated, name)(params, lr=0.05, fused=True, **options)
        for _ in range(3):
            for param in params:
                param.grad = torch.randn(param.shape).bfloat16().to(dtype)
            optimizer.step()
        found.append([p.bfloat16() for p in params])
        if policy == "master_weights":
            found[-1] += [optimizer.state[p].get("master", p) for p in params]
    assert all(map(torch.equal, *found))


# Small programs


class Program:
    """A spec with its text in C, in the place of a module of the package."""

    def __init__(self, text: str, folder: Path) -> None:
        (unit,), _ = resolve([parse(Source("program.opt", text))])
        assert isinstance(unit, Spec)
        self.spec = unit
        number = len(list(folder.iterdir()))
        self.text = folder / f"text_{number}.c"
        self.text.write_text(render("c.c.jinja", c.lower(unit)))
        path = folder / f"program_{number}.py"
        path.write_text(render("program.py.jinja", program.lower(unit)))
        found = importlib.util.spec_from_file_location(f"generated._programs.p{number}", path)
        assert found is not None
        assert found.loader is not None
        self.module = importlib.util.module_from_spec(found)
        sys.modules[self.module.__name__] = self.module
        found.loader.exec_module(self.module)

    def kernel(self, dtype: torch.dtype, flag: bool) -> Kernel:
        flags = {"FLAG": flag} if self.module.OPTIONS else {}
        return kernels.kernel(self.text, self.module, {"param": dtype}, flags)


def check(program: Program, function: Any, flag: bool, tensors: list[Any]) -> None:
    """Two steps in float64, where kernel and interpreter differ by roundings alone."""
    hypers = {"c": 0.3, "d": 0.7, "flag": flag}
    params, grads = ([torch.from_numpy(t.copy()) for t in group] for group in tensors)
    slots = [[torch.full_like(p, first) for p in params] for first in (0, 0.3)]
    names = ["a", "b"]
    assert list(program.module.SLOTS) == names
    for step in range(2):
        group = {**hypers}
        row = program.module.scalars(
            *program.module.inputs(group, params[0], frozenset()), float(step)
        )
        call(
            function, [params, grads, *slots], [row], threads=1 + step,
            reductions=program.module.REDUCTIONS,
        )  # fmt: skip
    for index, (param, grad) in enumerate(zip(*tensors, strict=True)):
        state = None
        for _ in range(2):
            param, state = interpret.step(program.spec, hypers, param, grad, state)
        for got, want in ((params[index], param), (slots[0][index], state["a"])):
            if np.isfinite(want).all() and np.abs(want).max(initial=0) > 1e6:
                return  # an exploding program says nothing about rounding
            np.testing.assert_allclose(got.numpy(), want, rtol=1e-7, atol=1e-7)


def drawn(sizes: Sequence[int]) -> list[Any]:
    random = np.random.default_rng(7)
    return [[random.standard_normal(n) for n in sizes] for _ in range(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("programs")


PATTERNS = SMOOTH + 3 * NESTED
QUICK = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=3)


@QUICK
@given(st.lists(st.tuples(updates(PATTERNS), st.booleans()), min_size=12, max_size=12))
def test_random_updates(folder: Path, cases: list[tuple[str, bool]]) -> None:
    programs = [(Program(text, folder), flag) for text, flag in cases]
    functions, _ = compiled([p.kernel(torch.float64, flag) for p, flag in programs], folder)
    for one, flag in programs:
        # One piece with a part of a step, several pieces, none.
        check(one, functions[one.kernel(torch.float64, flag)], flag, drawn((37, 70_001, 0)))


UPDATES = (
    "a = grad / norm(param)",
    "a = grad * mean(param)",
    "a = grad * sum(param) / 100",
    "a = grad / max_abs(param)",
    "a = grad * dot(param, grad) / 100",
    # Of masks, and of a number for each element.
    "let mask = grad > 0\na = grad * mean(mask) + norm(grad > param) + sum(param > 0) / 100",
    "let filled = grad\nfilled = c\na = grad * mean(filled)",
    # What fills the last step is no element, and would give terms.
    "a = grad * sum(1 + 0 * param) / 100 + mean(exp(param)) + max_abs(param - 5)",
    "a = grad * dot(param + 1, grad + 2) / 100",
    # In branches, with names that have several values.
    "let r = c\nif c > 0.2 { r = norm(grad) } else { r = norm(param) }\na = r * grad",
    "let r = c\nif flag { let n = norm(grad)\nr = n * n }\n"
    "else { if step > 1 { r = max_abs(grad) } }\na = r * grad\nr = 2 * r\na += r * param",
    "if step > 1 { a = grad / norm(a) }\na += mean(a) + grad",
    # Names of what stands around them.
    "let total = sum(grad)\nlet add = norm(param / total)\nlet k = max_abs(grad / add)\n"
    "let partial = dot(grad / k, grad)\nlet larger = mean(partial * grad)\na = larger * grad + add",
    # Numbers of float64, functions of them, and conditions.
    "let n = norm(grad)\na = where(n > 3 and n < 1e9, grad / n, grad) * min(max(n, 0.1), 7) ** 0.5",
    "a = grad * sqrt(norm(param)) * exp(-mean(param)) * abs(sum(grad)) / (1 + norm(grad) ** 2)",
    "let close = norm(grad - param) < 1e-3 or not (norm(grad) > 0)\na = where(close, param, grad)",
    "a = grad * lerp(norm(grad), norm(param), 0.25) * sign(sum(grad)) / (3 / norm(param))",
)


@pytest.mark.parametrize("flag", [False, True])
def test_reductions_wherever_they_stand(folder: Path, flag: bool) -> None:
    made = [Program(spec_of(update), folder) for update in UPDATES]
    functions, _ = compiled([p.kernel(torch.float64, flag) for p in made], folder)
    for one in made:
        check(one, functions[one.kernel(torch.float64, flag)], flag, drawn((37, 70_001, 1)))


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf, 1e200])
def test_what_is_no_number_reaches_every_element(folder: Path, special: float) -> None:
    made = [Program(spec_of(update), folder) for update in UPDATES[:4]]
    functions, _ = compiled([p.kernel(torch.float64, False) for p in made], folder)
    for place, one in itertools.product((0, 36, 70_000), made):
        tensors = drawn((37, 70_001))
        tensors[0][place > 36][place] = special
        check(one, functions[one.kernel(torch.float64, False)], False, tensors)
