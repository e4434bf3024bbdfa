"""The operator table: what each operator means and how each target spells it.

One row per operator, no default columns: a new column makes mypy ask every row for a decision.
`None` in a column means that this target has no such instruction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum, StrEnum
from typing import Any

import numpy as np

Numpy = Callable[..., Any]


class Kind(IntEnum):
    """What a value depends on, from the narrowest to the widest. The kind of an expression is the
    widest of its operands', unless its operator's rule says otherwise."""

    OPTION = 0  # options and literals: known when a kernel is specialised
    HYPER = 1  # hyperparameters and properties of the parameter: a number per group or tensor
    SCALAR = 2  # zero-dimensional slots: a number per parameter and step, float64 on the host
    GLOBAL = 3  # a number made of the elements of all parameters
    REDUCED = 4  # one number per parameter that is computed from its elements
    FACTORED = 5  # rows and columns: results of reductions along a dimension
    ELEMENTWISE = 6  # shaped like the parameter
    MATRIX = 7  # needs the whole parameter as a matrix


class Type(StrEnum):
    NUMBER = "number"
    BOOL = "bool"
    TEXT = "text"
    LIST = "list"
    FUNCTION = "function"
    PREDICATE = "predicate"  # takes a slot's name, not its value


class Rule(Enum):
    """How an operator's kind follows from its operands' kinds."""

    JOIN = "the widest of the operands"
    REDUCE = "one number per parameter"
    TOTAL = "one number for all parameters: each of them computes its part first"
    ALONG = "reduced along one dimension, which stays with size 1"
    MATRIX = "needs whole matrices, or has a dtype of its own"
    HOST = "a number on the host"
    SCALAR_ONLY = "operands and result have no tensor"
    INITIAL = "a fresh tensor, in a slot's first value only"
    INITIAL_ALONG = "a fresh tensor of size 1 along one dimension, in a slot's first value only"


class Level(IntEnum):
    """Binding strength in Python, whose grammar the languages we print share."""

    TERNARY = 1
    OR = 2
    AND = 3
    NOT = 4
    COMPARE = 5
    SUM = 6
    PRODUCT = 7
    UNARY = 8
    POWER = 9
    ATOM = 10


@dataclass(frozen=True, slots=True)
class Infix:
    symbol: str
    level: Level


@dataclass(frozen=True, slots=True)
class Prefix:
    symbol: str
    level: Level


@dataclass(frozen=True, slots=True)
class Call:
    name: str


@dataclass(frozen=True, slots=True)
class Method:
    """The first operand is the receiver. `in_place`: there is a form with `_` that changes it;
    `scale`: the keyword of the last operand."""

    name: str
    in_place: bool = False
    scale: str = ""


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute of the operand: `x.mT`."""

    name: str


@dataclass(frozen=True, slots=True)
class Along:
    """A call whose last operand is the keyword `dim`."""

    name: str


@dataclass(frozen=True, slots=True)
class KeepDim:
    """A method whose last operand is the keyword `dim`; the dimension stays, with size 1."""

    name: str


@dataclass(frozen=True, slots=True)
class Conditional:
    """Operands in the order condition, value if true, value if false."""


@dataclass(frozen=True, slots=True)
class Phrase:
    """A text that holds the operands, `{0}` and `{1}`: each is a name, or between delimiters."""

    text: str


@dataclass(frozen=True, slots=True)
class Command:
    """A LaTeX command that takes each operand in braces."""

    name: str


@dataclass(frozen=True, slots=True)
class Superscript:
    """LaTeX: the second operand above the first."""


@dataclass(frozen=True, slots=True)
class Fence:
    """LaTeX: the operands between delimiters."""

    left: str
    right: str


Spelling = (
    Infix
    | Prefix
    | Call
    | Method
    | Attribute
    | Along
    | KeepDim
    | Conditional
    | Phrase
    | Command
    | Superscript
    | Fence
)


@dataclass(frozen=True, slots=True)
class Op:
    """A row. `source` is how specs write it, `operands` the types it takes, `linear` whether it
    maps complex numbers as it maps their real and imaginary parts (with scalar coefficients)."""

    name: str
    source: Spelling | None
    operands: tuple[Type, ...]
    result: Type
    rule: Rule
    linear: bool
    numpy: Numpy
    host: Spelling | None
    torch: Spelling | None
    foreach: str | None
    triton: Spelling | None
    c: Spelling | None
    latex: Spelling | None


N, B, T, L, F = Type.NUMBER, Type.BOOL, Type.TEXT, Type.LIST, Type.FUNCTION
JOIN = Rule.JOIN


def _lerp(start: Any, end: Any, weight: Any) -> Any:
    # The two forms agree but for rounding; each is exact at its own end, as torch chooses them.
    return np.where(
        np.abs(weight) < 0.5, start + weight * (end - start), end - (end - start) * (1 - weight)
    )


def _power(base: Any, exponent: Any) -> Any:
    return np.power(np.asarray(base, np.float64), exponent)


def _sign(x: Any) -> Any:
    # NaN has sign 0, as in torch.
    return np.where(np.isnan(x), 0.0, np.sign(x))


def _norm(x: Any) -> Any:
    return np.sqrt(np.sum(np.square(x)))


def _max_abs(x: Any) -> Any:
    return np.max(np.abs(x), initial=0.0)


def _dot(a: Any, b: Any) -> Any:
    return np.sum(a * b)


def _norm_along(x: Any, dim: int) -> Any:
    return np.sqrt(np.sum(np.square(x), axis=dim, keepdims=True))


def _zeros_along(like: Any, dim: int) -> Any:
    return np.zeros_like(np.sum(like, axis=dim, keepdims=True))


def _reached(values: Any, x: Any) -> int:
    return sum(many for value, many in Counter(values).items() if value <= x)


def _floor_log(x: Any, base: Any) -> float:
    if not 0 < x < np.inf or not base > 1:
        return np.nan  # there is no largest n
    n = 0
    while base**n > x:
        n -= 1
    while base ** (n + 1) <= x:
        n += 1
    return n


def _is_integer(x: Any) -> bool:
    return isinstance(x, int | np.integer)


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float | np.number)


def _no_value(*_: Any) -> Any:
    raise TypeError("answered from the state, not from operands")


ADD, MULTIPLY = Level.SUM, Level.PRODUCT
plus, minus = Infix("+", ADD), Infix("-", ADD)
times, over = Infix("*", MULTIPLY), Infix("/", MULTIPLY)


def _compare(name: str, symbol: str, numpy: Numpy, latex: str) -> Op:
    spelling = Infix(symbol, Level.COMPARE)
    return Op(
        name, spelling, (N, N), B, JOIN, False, numpy,
        host=spelling, torch=spelling, foreach=None, triton=spelling, c=spelling,
        latex=Infix(latex, Level.COMPARE),
    )  # fmt: skip


# One line per operator is the point of a table: the formatter would make a page of each row.
# fmt: off
TABLE: tuple[Op, ...] = (
    # Arithmetic. `/` and `sqrt` round correctly on the GPU too: Triton's own are approximations.
    Op("add", plus, (N, N), N, JOIN, True, np.add, plus, Method("add", True), "add", plus, plus, plus),
    Op("sub", minus, (N, N), N, JOIN, True, np.subtract, minus, Method("sub", True), "sub", minus, minus, minus),
    Op("mul", times, (N, N), N, JOIN, True, np.multiply, times, Method("mul", True), "mul", times, times, Infix(r"\,", MULTIPLY)),
    Op("div", over, (N, N), N, JOIN, True, np.divide, over, Method("div", True), "div", Call("_math.div"), over, Command(r"\frac")),
    # scalar / tensor: torch takes the reciprocal first, then the product.
    Op("rdiv", None, (N, N), N, JOIN, False, np.divide, over, over, None, Call("_math.rdiv"), Call("rdiv"), Command(r"\frac")),
    Op("floordiv", Infix("//", MULTIPLY), (N, N), N, Rule.SCALAR_ONLY, False, np.floor_divide, Infix("//", MULTIPLY), None, None, None, None, Call(r"\operatorname{floordiv}")),
    Op("mod", Infix("%", MULTIPLY), (N, N), N, Rule.SCALAR_ONLY, False, np.mod, Infix("%", MULTIPLY), None, None, None, None, Infix(r"\bmod", MULTIPLY)),
    Op("pow", Infix("**", Level.POWER), (N, N), N, JOIN, False, _power, Infix("**", Level.POWER), Method("pow", True), "pow", Call("_math.pow"), Call("pow"), Superscript()),
    Op("neg", Prefix("-", Level.UNARY), (N,), N, JOIN, True, np.negative, Prefix("-", Level.UNARY), Method("neg", True), "neg", Prefix("-", Level.UNARY), Prefix("-", Level.UNARY), Prefix("-", Level.UNARY)),
    Op("sqrt", Call("sqrt"), (N,), N, JOIN, False, np.sqrt, Call("math.sqrt"), Method("sqrt", True), "sqrt", Call("_math.sqrt"), Call("sqrt"), Command(r"\sqrt")),
    Op("rsqrt", Call("rsqrt"), (N,), N, JOIN, False, lambda x: 1 / np.sqrt(x), None, Method("rsqrt", True), "rsqrt", Call("_math.rsqrt"), Call("rsqrt"), Call(r"\operatorname{rsqrt}")),
    Op("exp", Call("exp"), (N,), N, JOIN, False, np.exp, Call("math.exp"), Method("exp", True), "exp", Call("tl.exp"), Call("exp"), Call(r"\exp")),
    Op("log", Call("log"), (N,), N, JOIN, False, np.log, Call("math.log"), Method("log", True), "log", Call("tl.log"), Call("log"), Call(r"\log")),
    Op("sin", Call("sin"), (N,), N, JOIN, False, np.sin, Call("math.sin"), Method("sin", True), "sin", Call("tl.sin"), Call("sin"), Call(r"\sin")),
    Op("cos", Call("cos"), (N,), N, JOIN, False, np.cos, Call("math.cos"), Method("cos", True), "cos", Call("tl.cos"), Call("cos"), Call(r"\cos")),
    Op("abs", Call("abs"), (N,), N, JOIN, False, np.abs, Call("abs"), Method("abs", True), "abs", Call("tl.abs"), Call("fabs"), Fence("|", "|")),
    Op("floor", Call("floor"), (N,), N, JOIN, False, np.floor, Call("math.floor"), Method("floor", True), "floor", Call("tl.floor"), Call("floor"), Fence(r"\lfloor ", r" \rfloor")),
    Op("sign", Call("sign"), (N,), N, JOIN, False, _sign, None, Method("sign", True), "sign", Call("_math.sign"), Call("sign"), Call(r"\operatorname{sign}")),
    Op("max", Call("max"), (N, N), N, JOIN, False, np.maximum, Call("max"), Call("torch.maximum"), "maximum", Call("_math.maximum"), Call("maximum"), Call(r"\max")),
    Op("min", Call("min"), (N, N), N, JOIN, False, np.minimum, Call("min"), Call("torch.minimum"), "minimum", Call("_math.minimum"), Call("minimum"), Call(r"\min")),
    # lerp is written by the author: the open formula differs in the last bits of 38 % of results.
    Op("lerp", Call("lerp"), (N, N, N), N, JOIN, True, _lerp, None, Method("lerp", True), "lerp", Call("_math.lerp"), Call("lerp"), Call(r"\operatorname{lerp}")),
    # Rounding nodes: one rounding where torch has one. The pass `contract` makes them.
    Op("add_scaled", None, (N, N, N), N, JOIN, True, lambda a, b, c: a + c * b, None, Method("add", True, "alpha"), "add", Call("_math.add_scaled"), Call("add_scaled"), None),
    Op("addcmul", None, (N, N, N, N), N, JOIN, False, lambda a, b, c, s: a + s * b * c, None, Method("addcmul", True, "value"), "addcmul", Call("_math.addcmul"), Call("addcmul"), None),
    Op("addcdiv", None, (N, N, N, N), N, JOIN, False, lambda a, b, c, s: a + s * b / c, None, Method("addcdiv", True, "value"), "addcdiv", Call("_math.addcdiv"), Call("addcdiv"), None),
    # Comparisons and choices.
    _compare("eq", "==", np.equal, "="),
    _compare("ne", "!=", np.not_equal, r"\neq"),
    _compare("lt", "<", np.less, "<"),
    _compare("le", "<=", np.less_equal, r"\leq"),
    _compare("gt", ">", np.greater, ">"),
    _compare("ge", ">=", np.greater_equal, r"\geq"),
    Op("and", Infix("and", Level.AND), (B, B), B, JOIN, False, np.logical_and, Infix("and", Level.AND), Method("logical_and"), None, Call("_math.both"), Call("both"), Infix(r"\wedge", Level.AND)),
    Op("or", Infix("or", Level.OR), (B, B), B, JOIN, False, np.logical_or, Infix("or", Level.OR), Method("logical_or"), None, Call("_math.either"), Call("either"), Infix(r"\vee", Level.OR)),
    Op("not", Prefix("not ", Level.NOT), (B,), B, JOIN, False, np.logical_not, Prefix("not ", Level.NOT), Method("logical_not"), None, Call("_math.negation"), Call("negation"), Prefix(r"\neg ", Level.NOT)),
    Op("where", Call("where"), (B, N, N), N, JOIN, False, np.where, Conditional(), Call("torch.where"), None, Call("tl.where"), Call("where"), Call(r"\operatorname{where}")),
    Op("select", Conditional(), (B, N, N), N, Rule.SCALAR_ONLY, False, np.where, Conditional(), None, None, Call("tl.where"), Call("where"), Call(r"\operatorname{where}")),
    Op("unset", Call("unset"), (Type.PREDICATE,), B, JOIN, False, _no_value, None, None, None, None, None, Call(r"\operatorname{unset}")),
    # What schedules ask. A list is a Counter, as in torch's MultiStepLR; `floor_log` is the package's.
    Op("call", Phrase("{0}({1})"), (F, N), N, Rule.SCALAR_ONLY, False, lambda f, x: f(x), Phrase("{0}({1})"), None, None, None, None, Phrase("{0}({1})")),
    Op("count", Call("count"), (L, N), N, Rule.SCALAR_ONLY, False, lambda values, x: Counter(values)[x], Phrase("{0}[{1}]"), None, None, None, None, Call(r"\operatorname{count}")),
    Op("reached", Call("reached"), (L, N), N, Rule.SCALAR_ONLY, False, _reached, Phrase("bisect_right(sorted({0}.elements()), {1})"), None, None, None, None, Call(r"\operatorname{reached}")),
    Op("floor_log", Call("floor_log"), (N, N), N, Rule.SCALAR_ONLY, False, _floor_log, Call("floor_log"), None, None, None, None, Phrase(r"\lfloor \log_{{{1}}} {0} \rfloor")),
    Op("is_integer", Call("is_integer"), (N,), B, Rule.SCALAR_ONLY, False, _is_integer, Phrase("isinstance({0}, int)"), None, None, None, None, Phrase(r"{0} \in \mathbb{{Z}}")),
    Op("is_number", Call("is_number"), (N,), B, Rule.SCALAR_ONLY, False, _is_number, Phrase("isinstance({0}, (int, float))"), None, None, None, None, Phrase(r"{0} \in \mathbb{{R}}")),
    # Reductions over one parameter. For kernels, what they make of an element: a float64.
    Op("sum", Call("sum"), (N,), N, Rule.REDUCE, False, np.sum, None, Method("sum"), None, Call("_math.widened"), Call("widened"), Call(r"\operatorname{sum}")),
    Op("mean", Call("mean"), (N,), N, Rule.REDUCE, False, np.mean, None, Method("mean"), None, Call("_math.widened"), Call("widened"), Call(r"\operatorname{mean}")),
    Op("norm", Call("norm"), (N,), N, Rule.REDUCE, False, _norm, None, Method("norm"), None, Call("_math.square"), Call("widened"), Fence(r"\| ", r" \|")),
    Op("max_abs", Call("max_abs"), (N,), N, Rule.REDUCE, False, _max_abs, None, Call("max_abs"), None, Call("_math.magnitude"), Call("magnitude"), Call(r"\operatorname{max\_abs}")),
    Op("dot", Call("dot"), (N, N), N, Rule.REDUCE, False, _dot, None, Call("dot"), None, Call("_math.product"), Call("product"), Fence(r"\langle ", r" \rangle")),
    # Reductions over all parameters of all groups. For torch, what one parameter has a part in it with.
    Op("all_sum", Call("all_sum"), (N,), N, Rule.TOTAL, False, np.sum, None, Call("_totals.sum"), None, Call("_math.widened"), Call("widened"), Call(r"\operatorname{all\_sum}")),
    Op("all_norm", Call("all_norm"), (N,), N, Rule.TOTAL, False, _norm, None, Call("_totals.norm"), None, Call("_math.square"), Call("widened"), Phrase(r"\| {0} \|_{{\mathrm{{all}}}}")),
    Op("all_max_abs", Call("all_max_abs"), (N,), N, Rule.TOTAL, False, _max_abs, None, Call("_totals.max_abs"), None, Call("_math.magnitude"), Call("magnitude"), Call(r"\operatorname{all\_max\_abs}")),
    Op("all_dot", Call("all_dot"), (N, N), N, Rule.TOTAL, False, _dot, None, Call("_totals.dot"), None, Call("_math.product"), Call("product"), Phrase(r"\langle {0}, {1} \rangle_{{\mathrm{{all}}}}")),
    # Reductions along one dimension. A keyword, `norm(x, dim=-1)`, tells them from those above.
    Op("sum_along", Along("sum"), (N, N), N, Rule.ALONG, False, lambda x, dim: np.sum(x, axis=dim, keepdims=True), None, KeepDim("sum"), None, None, None, Along(r"\operatorname{sum}")),
    Op("mean_along", Along("mean"), (N, N), N, Rule.ALONG, False, lambda x, dim: np.mean(x, axis=dim, keepdims=True), None, KeepDim("mean"), None, None, None, Along(r"\operatorname{mean}")),
    Op("norm_along", Along("norm"), (N, N), N, Rule.ALONG, False, _norm_along, None, KeepDim("norm"), None, None, None, Along(r"\operatorname{norm}")),
    # Matrices. `cast` gives a copy in another dtype: its rounding is storage, so the oracle has none.
    Op("matmul", Infix("@", MULTIPLY), (N, N), N, Rule.MATRIX, False, np.matmul, None, Infix("@", MULTIPLY), None, None, None, Infix(r"\,", MULTIPLY)),
    Op("transpose", Call("transpose"), (N,), N, Rule.MATRIX, False, lambda x: np.swapaxes(x, -1, -2), None, Attribute("mT"), None, None, None, Call(r"\operatorname{transpose}")),
    Op("addmm", Call("addmm"), (N, N, N, N, N), N, Rule.MATRIX, False, lambda x, a, b, beta, alpha: beta * x + alpha * (a @ b), None, Call("torch.addmm"), None, None, None, Call(r"\operatorname{addmm}")),
    Op("cast", Call("cast"), (N, T), N, Rule.MATRIX, False, lambda x, _: np.array(x), None, Method("to"), None, None, None, Call(r"\operatorname{cast}")),
    # A tensor's only element, read by the host: a synchronisation.
    Op("host", Call("host"), (N,), N, Rule.HOST, False, float, None, Method("item"), None, None, None, Call(r"\operatorname{host}")),
    # First values of slots.
    Op("zeros_like", Call("zeros_like"), (N,), N, Rule.INITIAL, True, np.zeros_like, None, Call("torch.zeros_like"), None, None, None, None),
    Op("zeros_along", Along("zeros_like"), (N, N), N, Rule.INITIAL_ALONG, False, _zeros_along, None, Call("zeros_along"), None, None, None, None),
    Op("full_like", Call("full_like"), (N, N), N, Rule.INITIAL, False, np.full_like, None, Call("torch.full_like"), None, Call("_math.full_like"), Phrase("({1})"), Call(r"\operatorname{full}")),
)
# fmt: on


@dataclass(frozen=True, slots=True)
class Property:
    """`python` reads it from a tensor called `param`; `{index}` stands for the index."""

    type: Type
    python: str
    numpy: Numpy


# What a spec can ask of a parameter, `param.ndim`; `shape` takes an index.
PROPERTIES: dict[str, Property] = {
    "ndim": Property(N, "param.ndim", np.ndim),
    "numel": Property(N, "param.numel()", np.size),
    "shape": Property(N, "param.shape[{index}]", lambda x, index: np.shape(x)[index]),
    "eps": Property(N, "torch.finfo(param.dtype).eps", lambda x: float(np.finfo(x.dtype).eps)),
    "is_complex": Property(B, "param.is_complex()", np.iscomplexobj),
    "is_sparse": Property(B, "param.is_sparse", lambda _: False),
}
# The dtypes of `cast`.
DTYPES = ("bfloat16", "float16", "float32", "float64")

OPS: dict[str, Op] = {op.name: op for op in TABLE}
FUNCTIONS: dict[str, Op] = {op.source.name: op for op in TABLE if isinstance(op.source, Call)}
BINARY: dict[str, Op] = {op.source.symbol: op for op in TABLE if isinstance(op.source, Infix)}
LEVELS: dict[str, Level] = {
    op.source.symbol: op.source.level for op in TABLE if isinstance(op.source, Infix)
}
# Reductions that `dim=` turns into another operator.
ALONG: dict[str, Op] = {op.source.name: op for op in TABLE if isinstance(op.source, Along)}
# Operators that Python raises for at some numbers.
PARTIAL = frozenset({"div", "rdiv", "floordiv", "mod", "pow", "sqrt", "log", "exp"})
# How specs write a binary operator.
SYMBOLS: dict[str, str] = {op.name: symbol for symbol, op in BINARY.items()}
