"""Kernels of random updates mean what the reference interpreter computes."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from generated._optimizer import Optimizer
from generated._slots import Slot
from optdsl import interpret
from optdsl.emit import render
from optdsl.parse import parse
from optdsl.resolve import resolve
from optdsl.source import Source
from optdsl.targets import program, triton
from tests.random_specs import NESTED, SMOOTH, spec_of, updates

# One chunk, several with a part of one, none.
SIZES = (37, 2500, 0)
PATTERNS = SMOOTH + 2 * NESTED
NUMBERS = itertools.count()
QUICK = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=60)
LONG = settings(QUICK, max_examples=2000)


class Random(Optimizer):
    """What every random spec declares."""

    slots = (
        Slot("step", lambda group, param: 0, scalar=True),
        Slot("a", lambda group, param: torch.zeros_like(param)),
        Slot("b", lambda group, param: torch.full_like(param, group["c"])),
    )


def compiled(text: str, folder: Path) -> tuple[Any, str]:
    """The spec, and the name of the modules with its kernels. Triton reads sources from files."""
    (spec,), _ = resolve([parse(Source("random.opt", text))])
    name = f"random_{next(NUMBERS)}"
    texts = {
        "_programs": render("program.py.jinja", program.lower(spec)),
        "_triton": render("triton.py.jinja", triton.lower(spec)),
    }
    for room, emitted in texts.items():
        path = folder / f"{room}_{name}.py"
        path.write_text(emitted)
        found = importlib.util.spec_from_file_location(f"generated.{room}.{name}", path)
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        sys.modules[module.__name__] = module
        found.loader.exec_module(module)
    return spec, name


def check(text: str, flag: bool, capturable: bool, folder: Path, tolerance: float = 1e-7) -> None:
    """In float64, where kernel and reference differ by the roundings of contracted nodes alone."""
    spec, name = compiled(text, folder)
    Random.kernels = name
    generator = torch.Generator().manual_seed(7)
    params, grads = (
        [torch.randn(n, dtype=torch.float64, generator=generator) for n in SIZES] for _ in range(2)
    )
    hypers = {"c": 0.3, "d": 0.7, "flag": flag}
    flags = {"maximize": False, "foreach": None, "differentiable": False, "fused": True}
    optimizer = Random(params, {**hypers, **flags, "capturable": capturable})
    starts = [param.numpy().copy() for param in params]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    for _ in range(2):
        optimizer.step()
    for param, start, grad in zip(params, starts, grads, strict=True):
        expected, state = start, None
        for _ in range(2):
            expected, state = interpret.step(spec, hypers, expected, grad.numpy(), state)
        slots = optimizer.state[param]
        found = ((param, expected), (slots["a"], state["a"]), (slots["step"], state["step"]))
        for got, want in found:
            if not np.isfinite(want).all() or np.abs(want).max(initial=0) > 1e6:
                break  # an exploding program says nothing about rounding
            np.testing.assert_allclose(got.numpy(), want, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("random")


@QUICK
@given(updates(PATTERNS), st.booleans(), st.booleans())
def test_random_updates(folder: Path, text: str, flag: bool, capturable: bool) -> None:
    check(text, flag, capturable, folder)


NAMES = spec_of(
    """
    let offset = 0.5 * grad
    let mask = offset + a
    let a_at = mask * c
    let BLOCK = a_at + d
    let COUNT = 1 - c ** step
    if flag {
        let chunk = mask + b
        a = chunk
    }
    a = BLOCK * COUNT + b
    """,
    "d * a",
)


def test_names_that_the_template_uses_are_free_for_authors(folder: Path) -> None:
    check(NAMES, True, False, folder)
    check(NAMES, False, True, folder)


# Triton takes a literal argument of a function as float32 or int32, and no two of them.
PLACES = (
    "a = max(0.1, b) * min(grad, 0.3)",
    "a = lerp(a, grad, 0.1) + 0.1 * grad",
    "a = b + 0.1 * grad * grad",
    "a = b + 0.1 * grad / (abs(b) + 0.3)",
    "a = abs(b) ** 0.1 * 0.9 ** abs(grad) * rsqrt(abs(b) + 0.1)",
    "a = where(grad > 0, 0.1, 0.3) * b",
    "a = sqrt(where(grad > 0, 1, 2)) * where(grad > 0.7, 0.1, b)",
    "a = sqrt(2) * b + 2 ** 0.5 * grad + exp(0.1)",
    "a = where(step > 1, grad, b)",
    "a = max(b, 1e-40) + (grad > 0)",
    # In the scalar program, where a name may also have another value in a branch.
    "a = 0.96 ** step * max(0.3, 1 - 0.1 * step) * b",
    "a = (0.1 if step > 1 else 0.3) * b + (0.1 if flag else c) * grad",
    "let k = 0.1\nif step > 1 { k = 0 }\na = k ** 0.5 * b + grad",
    "let k = 2\nif step > 1 { k = 0.3 }\na = k * b + grad",
    "let k = step > 5\nif step > 1 { k = true }\nif k { a = grad }",
    # Properties of the parameter.
    "a = b / param.numel + param.ndim * grad + param.eps ** 0.1",
    "if param.is_sparse { a = b } else { a = grad }",
)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("capturable", [False, True])
def test_numbers_are_float64_wherever_they_stand(
    folder: Path, place: str, capturable: bool
) -> None:
    check(spec_of(place), capturable, capturable, folder, 1e-13)


@pytest.mark.slow
@LONG
@given(updates(PATTERNS), st.booleans(), st.booleans())
def test_many_random_updates(folder: Path, text: str, flag: bool, capturable: bool) -> None:
    check(text, flag, capturable, folder)
