"""Updates with reductions, split into passes: what each pass does, and that together they do what
the update does, to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optdsl import interpret, ir
from optdsl.ops import OPS, Kind, Rule
from optdsl.parse import parse
from optdsl.passes import for_kernels, optimise
from optdsl.passes.stages import numbers_and_elements
from optdsl.pipeline import shipped_library
from optdsl.printing import show_spec
from optdsl.resolve import resolve
from optdsl.source import Source
from tests.random_specs import JUMPY, NESTED, SMOOTH, updates


def split(text: str) -> tuple[ir.Spec, ir.Spec]:
    """A spec as kernels get it, and as it is before."""
    (unit,), _ = resolve([parse(Source("example.opt", text))])
    assert isinstance(unit, ir.Spec)
    optimised = optimise(unit)
    return for_kernels(optimised), optimised


def trajectory(spec: ir.Spec, hypers: dict[str, Any]) -> list[Any]:
    """The parameter and the slots after each of three steps."""
    random = np.random.default_rng(0)
    param, state, found = random.standard_normal((3, 4)), None, []
    for _ in range(3):
        param, state = interpret.step(spec, hypers, param, random.standard_normal((3, 4)), state)
        found.append({"param": param, **state})
    return found


def assert_same(before: list[Any], after: list[Any]) -> None:
    for old, new in zip(before, after, strict=True):
        assert set(old) == set(new)
        for name, value in old.items():
            np.testing.assert_array_equal(new[name], value, err_msg=name)


def reduces(stmt: ir.Stmt) -> bool:
    """Whether a statement itself makes a number of elements."""
    nodes = (n for e in ir.expressions(stmt) for n in ir.walk(e))
    rules = (Rule.REDUCE, Rule.TOTAL)
    return any(isinstance(n, ir.Apply) and OPS[n.op].rule in rules for n in nodes)


def check_form(spec: ir.Spec) -> None:
    """Each pass makes the reductions that it names, the last one none; numbers come first, and what
    elements read of them has a name."""
    bodies = [(stage.body, stage.reductions) for stage in spec.stages] + [(spec.body, ())]
    for body, names in bodies:
        made = [s for s in ir.statements(body) if reduces(s)]
        assert sorted(s.name for s in made if isinstance(s, ir.Let)) == sorted(names)
        assert len(made) == len(names)
        numbers, elements = numbers_and_elements(body)
        assert not any(map(reduces, ir.statements(numbers)))
        for stmt in ir.statements(elements):
            if isinstance(stmt, ir.Let | ir.Assign):
                kind = stmt.kind if isinstance(stmt, ir.Let) else stmt.target.kind
                assert kind > Kind.REDUCED or reduces(stmt), show_spec(spec)
            for node in (n for e in ir.expressions(stmt) for n in ir.walk(e)):
                if isinstance(node, ir.Apply) and node.kind is not Kind.OPTION:
                    assert node.kind > Kind.REDUCED or reduces(stmt), show_spec(spec)


HYPERS = {"c": 0.3, "d": 0.7}


def check(text: str, flag: bool) -> None:
    after, before = split(text)
    check_form(after)
    assert_same(
        trajectory(before, HYPERS | {"flag": flag}), trajectory(after, HYPERS | {"flag": flag})
    )


@settings(max_examples=200, deadline=None)
@given(updates(SMOOTH + JUMPY + 4 * NESTED), st.booleans())
def test_passes_do_together_what_a_random_update_does(text: str, flag: bool) -> None:
    check(text, flag)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None)
@given(updates(SMOOTH + JUMPY + 4 * NESTED), st.booleans())
def test_passes_do_together_what_many_random_updates_do(text: str, flag: bool) -> None:
    check(text, flag)


def passes_of(update: str) -> list[tuple[str, ...]]:
    spec, _ = split(
        "optimizer Example {\n    hyper lr = 1\n    option flag = false\n"
        f"    state m = zeros_like(param)\n    update {{\n{update}\n    }}\n}}"
    )
    return [stage.reductions for stage in spec.stages]


@pytest.mark.parametrize(
    ("update", "passes"),
    [
        ("descend lr * grad", []),
        ("let n = norm(grad)\n descend grad / n", [("n",)]),
        # What a pass needs of an earlier one is a number: these need no more than two.
        ("let n = norm(grad)\n let k = norm(param)\n descend grad * n / k", [("n", "k")]),
        ("let n = norm(grad)\n let k = norm(param / n)\n descend grad / k", [("n",), ("k",)]),
        # Nothing reads it.
        ("let n = norm(grad)\n descend grad", []),
        # The last value of a slot is stored, whatever else is.
        ("m = grad / norm(grad)\n descend grad", [("norm_grad",)]),
        # A branch that is over when a reduction is made has a part in it.
        (
            "if flag { grad = grad / norm(grad) }\n let n = mean(grad)\n descend n * grad",
            [("norm_grad",), ("n",)],
        ),
    ],
)
def test_an_update_has_as_many_passes_as_its_reductions_need(
    update: str, passes: list[tuple[str, ...]]
) -> None:
    assert passes_of(update) == passes


def test_shipped_optimizers_that_reduce_have_two_passes_or_need_rows_and_matrices() -> None:
    units = [u for u in shipped_library().units if isinstance(u, ir.Spec) and u.base is None]
    found = {u.name: len(for_kernels(optimise(u)).stages) for u in units}
    assert {name for name, count in found.items() if count} == {"LAMB", "LARS", "SNGM"}
    assert found["LAMB"] == found["LARS"] == found["SNGM"] == 1
    reduce = {u.name for u in units if any(map(reduces, ir.statements(u.body)))}
    assert reduce - {"LAMB", "LARS", "SNGM"} == {"Adafactor", "Muon"}
