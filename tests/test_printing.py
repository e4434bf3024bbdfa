"""Expressions as text: Python reads back the tree that was printed, no parenthesis too many."""

from __future__ import annotations

import ast
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optdsl.interpret import evaluate
from optdsl.ir import Apply, Const, Expr, Ref, Role, apply
from optdsl.ops import OPS, Infix, Kind, Level, Prefix, Type
from optdsl.parse import parse
from optdsl.printing import (
    Unspellable,
    host,
    python_leaf,
    show,
    show_source,
    torch,
    triton,
)
from optdsl.resolve import resolve
from optdsl.source import Source

NAMES = ("x", "y", "z")
NUMBER_OPS = ("add", "sub", "mul", "div", "floordiv", "mod", "pow", "max", "min", "abs", "sqrt")
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
PYTHON_BINARY: dict[type[ast.AST], str] = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div", ast.FloorDiv: "floordiv",
    ast.Mod: "mod", ast.Pow: "pow", ast.Eq: "eq", ast.NotEq: "ne", ast.Lt: "lt", ast.LtE: "le",
    ast.Gt: "gt", ast.GtE: "ge", ast.And: "and", ast.Or: "or",
}  # fmt: skip


def ref(name: str) -> Ref:
    return Ref(name, Role.HYPER, Kind.HYPER, Type.NUMBER)


def leaves() -> st.SearchStrategy[Expr]:
    numbers = st.integers(0, 9) | st.floats(0, 1e3) | st.sampled_from([1e-8, 1e20, 0.5])
    return st.sampled_from(NAMES).map(ref) | numbers.map(Const)


def expressions(depth: int = 4) -> st.SearchStrategy[Expr]:
    """Random trees of numbers over every operator that the host can say."""
    if depth == 0:
        return leaves()
    inner = st.deferred(lambda: expressions(depth - 1))
    truth = st.deferred(lambda: conditions(depth - 1))
    unary = st.builds(lambda op, a: apply(op, a), st.sampled_from(["neg", "abs", "sqrt"]), inner)
    binary_ops = [op for op in NUMBER_OPS if op not in ("abs", "sqrt")]
    binary = st.builds(lambda op, a, b: apply(op, a, b), st.sampled_from(binary_ops), inner, inner)
    choice = st.builds(lambda c, a, b: apply("select", c, a, b), truth, inner, inner)
    return st.one_of(leaves(), unary, binary, binary, choice)


def conditions(depth: int = 3) -> st.SearchStrategy[Expr]:
    inner = st.deferred(lambda: expressions(max(depth - 1, 0)))
    compare = st.builds(
        lambda op, a, b: apply(op, a, b), st.sampled_from(COMPARISONS), inner, inner
    )
    if depth == 0:
        return compare
    truth = st.deferred(lambda: conditions(depth - 1))
    both = st.builds(lambda op, a, b: apply(op, a, b), st.sampled_from(["and", "or"]), truth, truth)
    link = st.builds(
        lambda first, second, a, b, c: apply("and", apply(first, a, b), apply(second, b, c)),
        st.sampled_from(COMPARISONS), st.sampled_from(COMPARISONS), inner, inner, inner,
    )  # fmt: skip
    return st.one_of(compare, truth.map(lambda t: apply("not", t)), both, link)


def read_back(node: ast.expr) -> Expr:
    """Python's tree -> ours."""
    match node:
        case ast.Constant(value=value):
            return Const(value)
        case ast.Name(id=name):
            return ref(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return apply("neg", read_back(operand))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return apply("not", read_back(operand))
        case ast.BinOp(left=left, op=op, right=right):
            return apply(PYTHON_BINARY[type(op)], read_back(left), read_back(right))
        case ast.BoolOp(op=op, values=values):
            result, *rest = map(read_back, values)
            for value in rest:
                result = apply(PYTHON_BINARY[type(op)], result, value)
            return result
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            operands = [read_back(left), *map(read_back, comparators)]
            links = [
                apply(PYTHON_BINARY[type(op)], a, b)
                for op, a, b in zip(ops, operands, operands[1:], strict=False)
            ]
            result = links[0]
            for next_link in links[1:]:
                result = apply("and", result, next_link)
            return result
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return apply("select", *map(read_back, (test, body, orelse)))
        case ast.Call(func=ast.Name(id=name), args=args):
            return apply(name, *map(read_back, args))
        case ast.Call(func=ast.Attribute(attr=name), args=args):
            return apply(name, *map(read_back, args))
        case _:
            raise AssertionError(ast.dump(node))


def flat(expr: Expr) -> Expr:
    """`a and (b and c)` -> `(a and b) and c`: Python's chains do not tell them apart, nor do the
    values."""
    match expr:
        case Apply(op="and" | "or" as op, args=(left, Apply(op=same, args=(middle, right)))) if (
            op == same
        ):
            return flat(apply(op, apply(op, left, middle), right))
        case Apply(op=op, args=args):
            return apply(op, *map(flat, args))
        case _:
            return expr


def parentheses(text: str) -> int:
    return text.count("(")


def has(expr: Expr, *ops: str) -> bool:
    return isinstance(expr, Apply) and (expr.op in ops or any(has(a, *ops) for a in expr.args))


@settings(max_examples=500, deadline=None)
@given(expressions() | conditions())
def test_printed_python_parses_back_to_the_same_tree(expr: Expr) -> None:
    text = show(expr, host)
    assert flat(read_back(ast.parse(text, mode="eval").body)) == flat(expr)


@settings(max_examples=300, deadline=None)
@given(expressions() | conditions(), st.tuples(*[st.floats(-4, 4)] * 3))
def test_printed_python_has_the_value_of_the_tree(
    expr: Expr, values: tuple[float, float, float]
) -> None:
    names: dict[str, Any] = dict(zip(NAMES, values, strict=True))
    try:
        found = eval(show(expr, host), {"math": math}, names)
    except (ArithmeticError, ValueError, TypeError):
        return  # Python refuses what NumPy answers with inf or nan, or gives a complex number
    if isinstance(found, complex):
        return
    # The host computes large integers exactly.
    if isinstance(found, int) and not isinstance(found, bool) and abs(found) > 2**53:
        return
    expected = evaluate(expr, names)
    # The last bit of a power differs between libraries.
    if math.isfinite(found) and math.isfinite(expected) and not has(expr, "pow"):
        assert found == expected


@settings(max_examples=500, deadline=None)
@given(expressions() | conditions())
def test_printing_adds_no_parenthesis_that_python_does_not_need(expr: Expr) -> None:
    text = show(expr, host)
    needed = parentheses(ast.unparse(ast.parse(text, mode="eval")))
    assert parentheses(text) <= needed + for_readers(expr)


def for_readers(expr: Expr) -> int:
    """The parentheses that are there for people: `a or (b and c)`, and `-(x**y)` as formatters
    have it."""
    if not isinstance(expr, Apply):
        return 0
    inside = sum(map(for_readers, expr.args))
    kept = {"or": ("and", "or"), "neg": ("pow",)}.get(expr.op, ())
    return inside + sum(isinstance(a, Apply) and a.op in kept for a in expr.args)


x, y, z = map(ref, NAMES)


@pytest.mark.parametrize(
    ("expr", "text"),
    [
        (apply("sub", x, apply("sub", y, z)), "x - (y - z)"),
        (apply("sub", apply("sub", x, y), z), "x - y - z"),
        (apply("pow", apply("pow", x, y), z), "(x**y) ** z"),
        (apply("pow", x, apply("neg", y)), "x**-y"),
        (apply("pow", apply("neg", x), y), "(-x) ** y"),
        (apply("neg", apply("pow", x, y)), "-(x**y)"),
        (apply("mul", x, Const(-1)), "x * -1"),
        (apply("pow", Const(-1), x), "(-1) ** x"),
        (apply("pow", x, Const(1e-8)), "x**1e-08"),
        (apply("pow", x, Ref("g.b", Role.HYPER, Kind.HYPER)), "x**g.b"),
        (apply("and", apply("le", Const(0), x), apply("lt", x, Const(1))), "0 <= x < 1"),
        (apply("not", apply("lt", x, y)), "not x < y"),
        (
            apply("or", apply("lt", x, y), apply("and", apply("lt", x, z), apply("lt", y, z))),
            "x < y or (x < z and y < z)",
        ),
        (apply("select", apply("lt", x, y), x, apply("add", y, z)), "x if x < y else y + z"),
        (apply("floor", apply("div", x, y)), "math.floor(x / y)"),
        (apply("pow", apply("count", ref("m"), x), y), "m[x] ** y"),
        (apply("reached", ref("m"), x), "bisect_right(sorted(m.elements()), x)"),
        (apply("call", ref("f"), apply("add", x, y)), "f(x + y)"),
        (apply("not", apply("is_integer", x)), "not isinstance(x, int)"),
        (Const(math.pi, "pi"), "math.pi"),
        (Const(1e-3), "0.001"),
        (Const("min"), '"min"'),
        (Const(True), "True"),
    ],
)
def test_host_text(expr: Expr, text: str) -> None:
    assert show(expr, host) == text


def test_torch_text_uses_methods_and_keeps_their_receiver_whole() -> None:
    tensor = Ref("p", Role.PARAM, Kind.ELEMENTWISE)
    assert show(apply("sqrt", apply("add", tensor, x)), torch) == "p.add(x).sqrt()"
    assert show(apply("max", tensor, x), torch) == "torch.maximum(p, x)"


def test_operator_without_a_spelling_is_reported_with_its_place() -> None:
    with pytest.raises(Unspellable) as raised:
        show(apply("add", x, apply("unset", y)), triton)
    assert raised.value.expr == apply("unset", y)


@settings(max_examples=300, deadline=None)
@given(expressions() | conditions())
def test_source_text_resolves_back_to_the_same_tree(expr: Expr) -> None:
    spec = (
        "schedule S {\n    hyper x = 1\n    hyper y = 2\n    hyper z = 3\n"
        f"    let value = {show_source(expr)}\n    chain = lr * x * y * z\n}}\n"
    )
    (schedule,), _ = resolve([parse(Source("s.opt", spec))])
    (let,) = schedule.lets  # type: ignore[union-attr]
    assert flat(folded(let.value)) == flat(folded(expr))


def folded(expr: Expr) -> Expr:
    """-(2) -> -2, as resolving does."""
    match expr:
        case Apply(op="neg", args=(operand,)):
            inner = folded(operand)
            if isinstance(inner, Const) and not inner.symbol:
                assert isinstance(inner.value, int | float)
                return Const(-inner.value)
            return apply("neg", inner)
        case Apply(op=op, args=args):
            return apply(op, *map(folded, args))
        case _:
            return expr


@pytest.mark.parametrize("row", OPS.values(), ids=lambda row: row.name)
def test_levels_of_a_row_agree_over_its_columns(row: Any) -> None:
    levels = {
        s.level
        for s in (row.source, row.host, row.torch, row.triton)
        if isinstance(s, Infix | Prefix)
    }
    assert len(levels) <= 1
    assert levels <= set(Level)


def test_numbers_read_back_to_the_same_bits() -> None:
    for value in (0.1, 1e-3, 5e-324, 1.7976931348623157e308, -0.0, 2**53):
        text = python_leaf(Const(value))
        assert math.copysign(1, float(text)) == math.copysign(1, value)
        assert float(text) == value
