"""The operator table: each row in each spelling against its meaning in NumPy, at the edges too."""

from __future__ import annotations

import ast
import itertools
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as pytorch

from generated import _tensors
from generated.lr_scheduler import _forms
from optdsl import resources
from optdsl.ir import Expr, Ref, Role, apply
from optdsl.ops import (
    BINARY,
    FUNCTIONS,
    OPS,
    TABLE,
    Call,
    Infix,
    Kind,
    Op,
    Prefix,
    Rule,
    Type,
)
from optdsl.printing import host, show, torch

NUMBERS = (
    0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -3.7, 1e-300, 5e-324, -5e-324, 2.2250738585072014e-308,
    1.7976931348623157e308, math.inf, -math.inf, math.nan,
)  # fmt: skip
# Three operands at once: fewer, or the grid would take its time.
FEW = (0.0, -0.0, 1.0, -2.5, 0.3, 5e-324, math.inf, math.nan)
NAMES = ("a", "b", "c", "d")

# Exact or correctly rounded everywhere: the bits must agree. The others have this many ulps of the
# result (torch's vectorised sqrt is not always correctly rounded in float64) ...
ULPS = {"sqrt": 1, "exp": 1, "log": 1, "sin": 1, "cos": 1, "pow": 1}
# ... or, where terms can cancel and torch may use FMA, of the largest operand.
SUMS = {"lerp": 4, "add_scaled": 4, "addcmul": 4, "addcdiv": 4}

# Where a spelling is known not to say what NumPy says. Nothing else is left out.
EXCLUDED: dict[tuple[str, str], tuple[str, Callable[..., bool]]] = {
    ("max", "host"): ("Python's max compares: with NaN it depends on the order", lambda *v: nan(v)),
    ("min", "host"): ("Python's min compares: with NaN it depends on the order", lambda *v: nan(v)),
    ("pow", "host"): (
        "Python makes a complex number of a root of a negative one, and 0 of the root of -0",
        lambda a, b: root(a, b) or (a < 0 and math.isfinite(b) and b != int(b)),
    ),
    ("pow", "torch"): (
        "NumPy takes the root: of -0 that is -0, of -inf nan",
        lambda a, b: root(a, b),
    ),
    ("reached", "host"): ("an epoch is no NaN", lambda _, x: math.isnan(x)),
    ("floor_log", "host"): (
        "it needs a base above 1 and takes powers of it",
        lambda x, base: base <= 1 or x > 1e300,
    ),
    ("lerp", "torch"): ("computed with FMA, which differs where terms overflow", lambda *v: big(v)),
    ("addcmul", "torch"): ("scale * a first: differs where that overflows", lambda *v: big(v)),
    ("addcdiv", "torch"): ("scale * a first: differs where that overflows", lambda *v: big(v)),
}
# -0 may become 0: Python's floor is an int, what compares takes either, a sum of products depends
# on FMA.
ZERO_IS_ZERO = {"max", "min", "sign", "floor", *SUMS}
# Their last operand is a number.
SCALED = {"add_scaled", "addcmul", "addcdiv", "lerp"}
# What an operand is that is no number.
OTHERS: dict[Type, tuple[Any, ...]] = {
    Type.BOOL: (True, False),
    Type.LIST: (Counter({2: 2, 0.5: 1}), Counter()),
    Type.FUNCTION: (abs, lambda x: x / 2),
}
# What the host's spellings name.
HOST_NAMES: dict[str, Any] = {
    "math": math, "bisect_right": bisect_right, "floor_log": _forms.floor_log,
}  # fmt: skip
# Functions that the generated package defines.
RUNTIME = {"torch": pytorch, "max_abs": _tensors.max_abs, "dot": _tensors.dot}


def nan(values: tuple[float, ...]) -> bool:
    return any(map(math.isnan, values))


def root(base: float, exponent: float) -> bool:
    return exponent == 0.5 and base in (0, -math.inf)


def big(values: tuple[float, ...]) -> bool:
    return any(not math.isfinite(v) or abs(v) > 1e150 for v in values)


def ref(name: str, kind: Kind, type_: Type = Type.NUMBER) -> Expr:
    return Ref(name, Role.LOCAL, kind, type_)


def applied(row: Op, kind: Kind) -> Expr:
    operands = zip(NAMES, row.operands, strict=False)
    return apply(row.name, *(ref(name, kind, type_) for name, type_ in operands))


def samples(row: Op) -> list[tuple[Any, ...]]:
    numbers = NUMBERS if len(row.operands) < 3 else FEW
    pools = [OTHERS.get(t, numbers) for t in row.operands]
    if row.name == "is_integer":
        pools = [(*numbers, 0, -3)]
    return list(itertools.product(*pools))


def meaning(row: Op, values: tuple[Any, ...]) -> Any:
    with np.errstate(all="ignore"):
        return row.numpy(*(np.float64(v) if isinstance(v, float) else v for v in values))


def excluded(row: Op, column: str, values: tuple[Any, ...]) -> bool:
    reason = EXCLUDED.get((row.name, column))
    return reason is not None and reason[1](*values)


def agree(row: Op, values: tuple[Any, ...], found: Any, expected: Any) -> bool:
    found, expected = np.float64(found), np.float64(expected)
    if np.isnan(found) or np.isnan(expected):
        return bool(np.isnan(found) and np.isnan(expected))
    if found == expected:
        # -0 and 0 differ, but for what compares or counts.
        same_zero = np.signbit(found) == np.signbit(expected)
        return bool(found != 0 or same_zero or row.name in ZERO_IS_ZERO)
    largest = max(abs(found), abs(expected), *(abs(v) for v in values if row.name in SUMS))
    ulps = ULPS.get(row.name, 0) + SUMS.get(row.name, 0)
    return bool(abs(found - expected) <= ulps * np.spacing(largest))


def message(row: Op, values: tuple[Any, ...], found: Any, expected: Any) -> str:
    return f"{row.name}{values}: {found}, NumPy has {expected}"


ELEMENTWISE = [r for r in TABLE if r.rule in (Rule.JOIN, Rule.SCALAR_ONLY) and r.name != "unset"]
REDUCTIONS = [r for r in TABLE if r.rule is Rule.REDUCE]


def names(rows: list[Op]) -> list[str]:
    return [r.name for r in rows]


HOST = [r for r in ELEMENTWISE if r.host is not None]
TORCH = [r for r in ELEMENTWISE if r.torch is not None]


@pytest.mark.parametrize("row", HOST, ids=names(HOST))
def test_host_spelling_has_its_numpy_meaning_or_raises_where_that_is_not_finite(row: Op) -> None:
    code = compile(show(applied(row, Kind.HYPER), host), row.name, "eval")
    for values in samples(row):
        expected = meaning(row, values)
        if excluded(row, "host", values):
            continue
        try:
            found = eval(code, HOST_NAMES.copy(), dict(zip(NAMES, values, strict=False)))
        except (ArithmeticError, ValueError):
            assert not np.isfinite(expected), f"{row.name}{values} raises, NumPy has {expected}"
            continue
        assert agree(row, values, found, expected), message(row, values, found, expected)


def torch_value(row: Op, tensors: list[Any]) -> Any:
    if row.name in SCALED:
        tensors = [*tensors[:-1], tensors[-1].item()]
    text = show(applied(row, Kind.ELEMENTWISE), torch)
    return eval(text, RUNTIME, dict(zip(NAMES, tensors, strict=False)))


@pytest.mark.parametrize("row", TORCH, ids=names(TORCH))
def test_torch_spelling_has_its_numpy_meaning(row: Op) -> None:
    for values in samples(row):
        if excluded(row, "torch", values):
            continue
        tensors = [
            pytorch.tensor(v, dtype=None if isinstance(v, bool) else pytorch.float64)
            for v in values
        ]
        found, expected = torch_value(row, tensors).item(), meaning(row, values)
        assert agree(row, values, found, expected), message(row, values, found, expected)


FOREACH = [r for r in TORCH if r.foreach is not None]


@pytest.mark.parametrize("row", FOREACH, ids=names(FOREACH))
def test_foreach_spelling_gives_the_bits_of_the_torch_spelling(row: Op) -> None:
    function = getattr(pytorch, f"_foreach_{row.foreach}")
    for values in samples(row):
        tensors = [pytorch.tensor(v, dtype=pytorch.float64) for v in values]
        expected = torch_value(row, tensors)
        if row.name in SCALED:
            *operands, scale = tensors
            keyword = {"alpha": scale.item()} if row.name == "add_scaled" else {}
            last = () if keyword else (scale.item(),)
            (found,) = function(*([t] for t in operands), *last, **keyword)
        else:
            (found,) = function(*([t] for t in tensors))
        assert pytorch.equal(found.view(pytorch.int64), expected.view(pytorch.int64)) or (
            found.isnan() and expected.isnan()
        ), f"{row.name}{values}"


@pytest.mark.parametrize("row", REDUCTIONS, ids=names(REDUCTIONS))
def test_reduction_has_its_numpy_meaning(row: Op) -> None:
    rng = np.random.default_rng(0)
    for array in (rng.standard_normal(1000), np.zeros(3), np.array([1e-300, -1e100, 0.0])):
        tensors = [pytorch.from_numpy(array)] * len(row.operands)
        found = torch_value(row, tensors).item()
        np.testing.assert_allclose(found, row.numpy(*[array] * len(row.operands)), rtol=1e-12)


@pytest.mark.parametrize("op", ["zeros_like", "full_like"])
def test_first_value_is_shaped_like_the_parameter(op: str) -> None:
    row, like = OPS[op], np.ones((2, 3))
    values = (like, 0.25)[: len(row.operands)]
    tensors = [pytorch.from_numpy(like), 0.25][: len(row.operands)]
    np.testing.assert_array_equal(torch_value(row, tensors).numpy(), row.numpy(*values))


# The table itself


def defined_in_math() -> set[str]:
    path = resources.templates() / "package" / "_triton" / "_math.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}


@pytest.mark.parametrize("row", TABLE, ids=names(list(TABLE)))
def test_triton_spelling_names_something_that_exists(row: Op) -> None:
    if not isinstance(row.triton, Call):
        assert row.triton is None or isinstance(row.triton, Infix | Prefix)
        return
    module, name = row.triton.name.split(".")
    if module == "_math":
        assert name in defined_in_math()
    else:
        language = pytest.importorskip("triton.language")
        assert hasattr(language, name)


@pytest.mark.parametrize("row", TABLE, ids=names(list(TABLE)))
def test_every_operand_appears_in_every_spelling_that_is_text(row: Op) -> None:
    for column, spelling in ((host, row.host), (torch, row.torch)):
        if spelling is None:
            continue
        text = show(applied(row, Kind.ELEMENTWISE), column)
        mentioned = {n.id for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name)}
        assert set(NAMES[: len(row.operands)]) <= mentioned


def test_names_of_rows_are_distinct_and_lookups_hold_every_row_that_specs_can_write() -> None:
    assert len({r.name for r in TABLE}) == len(TABLE)
    assert set(FUNCTIONS) == {r.source.name for r in TABLE if isinstance(r.source, Call)}
    assert set(BINARY) == {r.source.symbol for r in TABLE if isinstance(r.source, Infix)}


def test_linear_rows_are_linear_over_complex_numbers() -> None:
    rng = np.random.default_rng(1)
    z = rng.standard_normal(4) + 1j * rng.standard_normal(4)
    w = rng.standard_normal(4) + 1j * rng.standard_normal(4)
    operands: dict[str, tuple[Any, ...]] = {
        "add": (z, w), "sub": (z, w), "mul": (z, 0.3), "div": (z, 0.3), "neg": (z,),
        "lerp": (z, w, 0.3), "add_scaled": (z, w, 0.3), "zeros_like": (z,),
    }  # fmt: skip
    assert set(operands) == {r.name for r in TABLE if r.linear}
    for name, values in operands.items():
        whole = OPS[name].numpy(*values)
        real = OPS[name].numpy(*(np.real(v) for v in values))
        np.testing.assert_allclose(np.real(whole), real)


@pytest.mark.parametrize("key", EXCLUDED, ids="-".join)
def test_every_exclusion_is_still_needed_and_names_a_row(key: tuple[str, str]) -> None:
    reason, applies = EXCLUDED[key]
    assert reason
    assert any(applies(*values) for values in samples(OPS[key[0]]))
