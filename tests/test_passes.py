"""Passes: `tests/passes/<pass>.txt` holds specs and what a pass makes of them; the interpreter's
result stays the same. To rewrite the expected texts after a deliberate change:

    UPDATE_GOLDEN=1 pytest tests/test_passes.py
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optdsl import interpret, ir
from optdsl.ir import Base, Schedule, Spec, Unit
from optdsl.ops import Kind
from optdsl.parse import parse
from optdsl.passes import (
    FUNCTIONAL_PASSES,
    KERNEL_PASSES,
    PASSES,
    barriers,
    branches_to_where,
    contract,
    derive_chain,
    drop_unused,
    first_real_statement,
    hoist_scalars,
    lower_descend,
    name_totals,
    optimise,
    stages,
)
from optdsl.passes.liveness import needed_copies
from optdsl.passes.specialise import specialise
from optdsl.pipeline import shipped_library
from optdsl.printing import show_source, show_spec
from optdsl.resolve import resolve
from optdsl.source import Source
from optdsl.targets import triton

FOLDER = Path(__file__).parent / "passes"
REWRITES: dict[str, Callable[[Spec], Spec]] = {
    p.__name__: p
    for p in (
        name_totals, lower_descend, contract, drop_unused, hoist_scalars, stages,
        branches_to_where, barriers,
    )
}  # fmt: skip
SHIPPED = [u for u in shipped_library().units if isinstance(u, Spec)]


def unit_of(text: str) -> Unit:
    (unit,), _ = resolve([parse(Source("example.opt", text))])
    return unit


def spec_of(text: str) -> Spec:
    unit = unit_of(text)
    assert isinstance(unit, Spec)
    return unit


def shown(unit: Unit) -> str:
    if isinstance(unit, Spec):
        return show_spec(unit)
    assert isinstance(unit, Schedule)
    lines = [f"let {let.name} = {show_source(let.value)}" for let in unit.lets]
    chain = "there is none" if unit.chain is None else show_source(unit.chain)
    return "\n".join((*lines, f"chain = {chain}"))


def cases_of(name: str) -> Iterator[tuple[str, str, str]]:
    """Title, spec, expected text."""
    text = (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    for block in re.split(r"^== ", text, flags=re.MULTILINE)[1:]:
        title, rest = block.split("\n", 1)
        before, after = rest.split("---\n")
        yield title, before, after.strip("\n")


def rewritten(name: str, title: str, unit: Unit) -> Unit:
    if isinstance(unit, Schedule):
        return derive_chain(unit)
    assert isinstance(unit, Spec)
    if name != "specialise":
        return REWRITES[name](unit)
    options = dict(re.findall(r"(\w+) = (true|false)", title))
    return specialise(unit, {option: value == "true" for option, value in options.items()})


NAMES = [*REWRITES, "specialise", "derive_chain"]
PAIRS = [(n, *case) for n in NAMES for case in cases_of(n)]


@pytest.fixture(scope="module", autouse=True)
def _update_golden() -> None:
    if not os.environ.get("UPDATE_GOLDEN"):
        return
    for name in NAMES:
        blocks = [
            f"== {title}\n{before}---\n{shown(rewritten(name, title, unit_of(before)))}\n"
            for title, before, _ in cases_of(name)
        ]
        (FOLDER / f"{name}.txt").write_text("\n".join(blocks), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "title", "before", "after"), PAIRS, ids=[f"{n}: {t}" for n, t, _, _ in PAIRS]
)
def test_pass_makes_this_of_that(name: str, title: str, before: str, after: str) -> None:
    assert shown(rewritten(name, title, unit_of(before))) == after


def test_every_pass_has_its_pairs() -> None:
    passes = {p.__name__ for p in (*PASSES, *KERNEL_PASSES, *FUNCTIONAL_PASSES)}
    assert {p.stem for p in FOLDER.glob("*.txt")} == passes | {"specialise", "derive_chain"}


@pytest.mark.parametrize("name", NAMES)
def test_pass_is_idempotent_on_its_pairs(name: str) -> None:
    for title, before, _ in cases_of(name):
        once = rewritten(name, title, unit_of(before))
        assert shown(rewritten(name, title, once)) == shown(once)


# The interpreter's result


def random_hypers(spec: Spec, rng: np.random.Generator, on: bool) -> dict[str, Any]:
    """Numbers near the defaults, zeros among them; options as given or at random."""
    fixed = dict(spec.fixed)
    values: dict[str, Any] = {}
    for hyper in spec.hypers:
        if hyper.kind is Kind.OPTION:
            values[hyper.name] = fixed.get(hyper.name, on if rng.random() < 0.7 else not on)
        elif hyper.components:
            values[hyper.name] = tuple(rng.uniform(0, 0.999, len(hyper.components)))
        elif hyper.type.base is Base.INT:
            values[hyper.name] = int(rng.integers(1, 4))
        elif hyper.type.optional:
            values[hyper.name] = None
        else:
            assert hyper.type.base is Base.REAL
            values[hyper.name] = float(rng.choice([0.0, rng.uniform(0, 1)], p=[0.2, 0.8]))
    return values


def trajectory(spec: Spec, hypers: dict[str, Any], seed: int) -> list[Any]:
    """The parameter and the slots after each of three steps."""
    rng = np.random.default_rng(seed)
    param, state, result = rng.standard_normal((2, 3)), None, []
    for _ in range(3):
        param, state = interpret.step(spec, hypers, param, rng.standard_normal((2, 3)), state)
        result.append((param, state))
    return result


def assert_same(before: list[Any], after: list[Any], rtol: float = 0.0) -> None:
    for (param, state), (new_param, new_state) in zip(before, after, strict=True):
        np.testing.assert_allclose(new_param, param, rtol=rtol, atol=rtol)
        assert set(new_state) == set(state)
        for name in state:
            np.testing.assert_allclose(new_state[name], state[name], rtol=rtol, atol=rtol)


def is_elementwise(spec: Spec) -> bool:
    """Whether one pass over the elements computes it: the only kind that has a kernel."""
    return spec.base is not None or triton.lower(spec) is not None


def pipeline(spec: Spec) -> Iterator[tuple[str, Spec, Spec]]:
    """Each pass in order, with the spec before and behind it."""
    plain = lower_descend(spec)
    chosen = branches_to_where(plain)
    yield "branches_to_where", plain, chosen
    named = name_totals(chosen)
    yield "barriers", named, barriers(named)
    kernel = KERNEL_PASSES if is_elementwise(spec) else ()
    for rewrite in (*PASSES, *kernel):
        after = rewrite(spec)
        yield rewrite.__name__, spec, after
        spec = after


@pytest.mark.parametrize("spec", SHIPPED, ids=lambda s: s.name)
@pytest.mark.parametrize("seed", range(8))
def test_every_pass_keeps_the_bits_of_shipped_specs(spec: Spec, seed: int) -> None:
    hypers = random_hypers(spec, np.random.default_rng(seed), on=seed % 2 == 0)
    for name, before, after in pipeline(spec):
        # One node instead of two operations: the same operations here, a scale may be a factor
        # of 1 more.
        rtol = 1e-12 if name == "contract" else 0.0
        assert_same(trajectory(before, hypers, seed), trajectory(after, hypers, seed), rtol)


@pytest.mark.parametrize("spec", SHIPPED, ids=lambda s: s.name)
@pytest.mark.parametrize("on", [True, False])
def test_specialising_keeps_the_bits_of_shipped_specs(spec: Spec, on: bool) -> None:
    options = {h.name: on for h in spec.hypers if h.kind is Kind.OPTION}
    hypers = random_hypers(spec, np.random.default_rng(1), on) | options
    special = specialise(spec, options)
    assert_same(trajectory(spec, hypers, 1), trajectory(special, hypers, 1))
    names = {r.name for s in ir.statements(special.body) for e in ir.expressions(s)
             for r in ir.refs(e)}  # fmt: skip
    assert not names & set(options)


@pytest.mark.parametrize("spec", SHIPPED, ids=lambda s: s.name)
def test_passes_are_idempotent_on_shipped_specs(spec: Spec) -> None:
    for name, _, after in pipeline(spec):
        again = REWRITES[name](after)
        assert show_spec(again) == show_spec(after), name


@st.composite
def programs(draw: st.DrawFn) -> str:
    """Random updates full of numbers: names that change, in branches, between uses, that clash."""
    lines: list[str] = []
    locals_: list[str] = []
    number_of = st.sampled_from(
        ["c", "d", "n", "1 - c", "n * c", "c - d", "sqrt(c)", "c / (1 + n)", "2", "{}", "1 - {}",
         "{} * d", "1 / (1 + {} * {})"]
    )  # fmt: skip

    def number() -> str:
        text = draw(number_of)
        while "{}" in text:
            text = text.replace("{}", draw(st.sampled_from([*locals_, "c"])), 1)
        return text

    def tensor() -> str:
        shape = draw(st.sampled_from(["({}) * grad", "param * ({})", "grad + ({}) * param",
                                      "param - m * ({})", "grad / (1 + ({}) * ({}))"]))  # fmt: skip
        while "{}" in shape:
            shape = shape.replace("{}", number(), 1)
        return shape

    def statement(depth: int, indent: str) -> None:
        kind = draw(st.integers(0, 9))
        if kind == 0 and depth < 2:
            condition = draw(st.sampled_from(["flag", f"{number()} > 0.4", f"n < {number()}"]))
            known = len(locals_)
            lines.append(f"{indent}if {condition} {{")
            for _ in range(draw(st.integers(1, 3))):
                statement(depth + 1, indent + "    ")
            del locals_[known:]
            lines.append(f"{indent}}}")
            lines.append(f"{indent}else {{")
            statement(depth + 1, indent + "    ")
            del locals_[known:]
            lines.append(f"{indent}}}")
        elif kind <= 3:
            name = draw(st.sampled_from(["a", "b", "one_minus_c", "n_now"]))
            if name in locals_:
                lines.append(f"{indent}{name} = {number()}")
            else:
                lines.append(f"{indent}let {name} = {number()}")
                locals_.append(name)
        elif kind == 4:
            lines.append(f"{indent}n += {draw(st.sampled_from(['1', 'c']))}")
        else:
            target = draw(st.sampled_from(["param", "grad", "m"]))
            lines.append(f"{indent}{target} = {tensor()}")

    for _ in range(draw(st.integers(2, 8))):
        statement(0, "        ")
    body = "\n".join(lines)
    return (
        "optimizer Random {\n    hyper c = 0.3\n    hyper d = 0.7\n    option flag = false\n"
        "    state n = 1\n    state m = zeros_like(param)\n"
        f"    update {{\n{body}\n        descend d * grad + m\n    }}\n}}\n"
    )


@settings(max_examples=150, deadline=None)
@given(programs(), st.booleans(), st.floats(0, 1), st.floats(0, 1))
def test_every_pass_keeps_the_bits_of_random_programs(
    text: str, flag: bool, c: float, d: float
) -> None:
    hypers = {"c": c, "d": d, "flag": flag}
    for name, before, after in pipeline(spec_of(text)):
        rtol = 1e-12 if name == "contract" else 0.0
        assert_same(trajectory(before, hypers, 0), trajectory(after, hypers, 0), rtol)


@settings(max_examples=150, deadline=None)
@given(programs())
def test_hoisting_leaves_no_number_to_compute_in_the_body(text: str) -> None:
    spec = hoist_scalars(optimise(spec_of(text)))
    for stmt in ir.statements(spec.body):
        for expr in ir.expressions(stmt):
            for node in ir.walk(expr):
                if isinstance(node, ir.Apply):
                    assert node.kind is Kind.OPTION or not ir.is_scalar(node), show_spec(spec)
                if isinstance(node, ir.Ref) and ir.is_scalar(node):
                    assert node.role in (ir.Role.COLUMN, ir.Role.OPTION), show_spec(spec)


# Liveness


def copied(update: str) -> list[str]:
    """The statements that must copy."""
    spec = spec_of(
        "optimizer Example {\n    hyper lr = 1\n    state a = zeros_like(param)\n"
        "    state b = zeros_like(param)\n"
        f"    update {{\n{update}\n    descend lr * a * b\n    }}\n}}"
    )
    body = lower_descend(spec).body
    needed = needed_copies(body)
    return [s.span.text for s in ir.statements(body) if id(s) in needed]


@pytest.mark.parametrize(
    ("update", "copies"),
    [
        ("let x = a\n b = x", []),
        ("let x = a\n a = grad\n b = x", ["let x = a"]),
        ("let x = a\n b = x\n a = grad", []),
        ("let x = a\n let y = x\n a = grad\n b = y", ["let y = x"]),
        ("let x = a * 2\n a = grad\n b = x", []),
        ("let x = a\n if lr > 0 { a = grad }\n b = x", ["let x = a"]),
        ("let x = grad\n if lr > 0 { x = a }\n a = grad\n b = x", ["x = a"]),
        ("let x = param\n param = grad\n b = x", ["let x = param"]),
        ("let x = grad\n grad = a\n b = x", []),
        ("grad = a\n a = b\n b = grad", ["grad = a"]),
        # One statement may become several instructions in place.
        ("let x = a\n a += x", ["let x = a"]),
    ],
)
def test_copy_is_made_only_where_old_storage_is_still_read(update: str, copies: list[str]) -> None:
    assert copied(update) == copies


# Complex parameters


def real_from(update: str) -> str | None:
    """The statement before which complex tensors become real ones."""
    spec = spec_of(
        "optimizer Example {\n    hyper lr = 1\n    state a = zeros_like(param)\n"
        f"    state n = 0\n    update {{\n    n += 1\n{update}\n    descend lr * a / n\n    }}\n}}"
    )
    spec = optimise(spec)
    body, index = spec.body, first_real_statement(spec)
    return None if index is None else body[index].span.text


@pytest.mark.parametrize(
    ("update", "statement"),
    [
        ("a = grad", None),
        ("grad += lr * param\n a = lerp(a, grad, 0.1)", None),
        ("a += grad * grad", "a += grad * grad"),
        ("grad += lr * param\n a = abs(grad)", "a = abs(grad)"),
        ("a = grad + 1", "a = grad + 1"),
        ("a = sqrt(grad)", "a = sqrt(grad)"),
        ("if lr > 0 { param *= 1 - lr }\n a = sign(grad)", "a = sign(grad)"),
        ("a = a + grad\n a = a * a", "a = a + grad"),
        ("let x = grad\n a = x * x", "let x = grad"),
    ],
)
def test_update_is_complex_until_the_first_statement_that_is_not_linear(
    update: str, statement: str | None
) -> None:
    assert real_from(update) == statement


@cache
def spec_named(name: str) -> Spec:
    return next(s for s in SHIPPED if s.name == name)


def test_sgd_is_complex_throughout_and_adam_real_behind_its_decay() -> None:
    assert first_real_statement(optimise(spec_named("SGD"))) is None
    adam = optimise(spec_named("Adam"))
    body, index = adam.body, first_real_statement(adam)
    assert index is not None
    assert body[index].span.text.startswith("exp_avg ")
