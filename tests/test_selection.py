"""Selection keeps a program's meaning: random updates give the same everywhere."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from generated._foreach import scale_
from generated._slots import Rows
from generated._tensors import as_real, as_real_list, dot, max_abs, number
from optdsl import interpret, ir
from optdsl.emit import render
from optdsl.parse import parse
from optdsl.resolve import resolve
from optdsl.source import Source
from optdsl.targets import eager, foreach
from tests.random_specs import JUMPY, NESTED, SMOOTH, spec_of, updates

SIZE = 37
QUICK = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=150)
LONG = settings(QUICK, max_examples=3000)


def compiled(text: str) -> tuple[ir.Spec, Any]:
    """The spec and a class with its two updates."""
    (spec,), _ = resolve([parse(Source("random.opt", text))])
    assert isinstance(spec, ir.Spec)
    sections = [
        render(f"{target.__name__.rsplit('.', 1)[1]}.py.jinja", target.lower(spec))
        for target in (eager, foreach)
    ]
    code = "class Update:\n" + "".join(sections)
    names: dict[str, Any] = {
        "torch": torch, "Group": dict, "Rows": Rows, "as_real": as_real,
        "as_real_list": as_real_list, "number": number, "scale_": scale_,
        "dot": dot, "max_abs": max_abs,
    }  # fmt: skip
    exec(compile(code, "<random spec>", "exec", dont_inherit=True), names)
    return spec, names["Update"]


def start(dtype: torch.dtype) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(7)
    param, grad = (torch.randn(SIZE, dtype=torch.float64, generator=generator) for _ in range(2))
    rows = [
        Rows(
            [param.to(dtype).clone()],
            [grad.to(dtype).clone()],
            {"a": [torch.zeros(SIZE, dtype=dtype)], "b": [torch.full((SIZE,), 0.3, dtype=dtype)]},
            vectors={"step": torch.zeros(1)},
        )
        for _ in range(2)
    ]
    return SimpleNamespace(single=rows[0], multi=rows[1])


def stored(rows: Rows) -> list[torch.Tensor]:
    return [rows.params[0], rows.slots["a"][0], rows.slots["b"][0], rows.grads[0]]


def eager_equals_foreach(text: str, flag: bool, dtype: torch.dtype) -> None:
    _, update = compiled(text)
    group = {"c": 0.3, "d": 0.7, "flag": flag, "maximize": False}
    both = start(dtype)
    gradient = both.single.grads[0].clone()
    for _ in range(2):
        update._single_tensor(group, both.single)
        update._multi_tensor(group, both.multi)
    for one, other in zip(stored(both.single), stored(both.multi), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    # p.grad belongs to the user.
    assert torch.equal(both.single.grads[0], gradient)
    assert torch.equal(both.multi.grads[0], gradient)


def eager_equals_interpreter(text: str, flag: bool) -> None:
    spec, update = compiled(text)
    group = {"c": 0.3, "d": 0.7, "flag": flag, "maximize": False}
    rows = start(torch.float64).single
    param, grad = rows.params[0].numpy().copy(), rows.grads[0].numpy().copy()
    state = None
    hypers = {"c": 0.3, "d": 0.7, "flag": flag}
    for _ in range(2):
        update._single_tensor(group, rows)
        param, state = interpret.step(spec, hypers, param, grad, state)
    for got, want in ((rows.params[0], param), (rows.slots["a"][0], state["a"])):
        # An exploding program says nothing about rounding.
        assume(np.isfinite(want).all() and np.abs(want).max(initial=0) < 1e6)
        # A contracted node rounds once where the interpreter rounds twice; a few such differences
        # add up to some 1e-12 of the largest number that took part.
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-7, atol=1e-7)


dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])


@QUICK
@given(updates(SMOOTH + JUMPY + NESTED), st.booleans(), dtypes)
def test_eager_and_foreach_give_the_same_bits_on_random_updates(
    text: str, flag: bool, dtype: torch.dtype
) -> None:
    eager_equals_foreach(text, flag, dtype)


@QUICK
@given(updates(), st.booleans())
def test_eager_means_what_the_interpreter_computes_on_random_updates(text: str, flag: bool) -> None:
    eager_equals_interpreter(text, flag)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@LONG
@given(updates(SMOOTH + JUMPY + NESTED), st.booleans(), dtypes)
def test_eager_and_foreach_give_the_same_bits_on_many_random_updates(
    text: str, flag: bool, dtype: torch.dtype
) -> None:
    eager_equals_foreach(text, flag, dtype)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@LONG
@given(updates(), st.booleans())
def test_eager_means_what_the_interpreter_computes_on_many_random_updates(
    text: str, flag: bool
) -> None:
    eager_equals_interpreter(text, flag)


@pytest.mark.parametrize(
    "statement",
    [
        "a = 0.5 * a + a * a",
        "a = lerp(a, grad, c) + a",
        "a = max(a, grad) + c * a",
        "a *= a + grad",
    ],
)
def test_a_tile_whose_operand_is_its_target_is_not_done_in_place(statement: str) -> None:
    text = spec_of(f"a = lerp(a, grad, d)\n{statement}", "d * a")
    eager_equals_interpreter(text, False)
    eager_equals_foreach(text, False, torch.float32)
