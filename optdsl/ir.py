"""The typed intermediate representation: names bound, kinds known, at the level of tensors.

Nodes are frozen and do nothing; passes and targets process them. A rewritten node takes the span
of what it replaces, a node made of two the smallest span that covers both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import assert_never

from optdsl.ops import OPS, Kind, Rule, Type
from optdsl.source import NOWHERE, Source, Span


class Role(StrEnum):
    """What a name stands for."""

    HYPER = "hyperparameter"
    OPTION = "option"
    STATE = "slot"
    PARAM = "parameter"
    GRAD = "gradient"
    LOCAL = "local name"
    PROPERTY = "property of the parameter"
    GIVEN = "value given to a schedule"
    COLUMN = "hoisted scalar"
    FLAG = "execution flag"
    IS_TENSOR = "question whether a hyperparameter was given as a tensor"


# What outlives a step.
STORED = (Role.PARAM, Role.STATE)


def _nowhere() -> Span:
    return field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Const:
    """A literal; `symbol` is set for `pi` and `inf`, which print as names. None is the default
    `unset` of an optional hyperparameter."""

    value: float | int | bool | str | None
    symbol: str = ""
    span: Span = _nowhere()


@dataclass(frozen=True, slots=True)
class Ref:
    name: str
    role: Role
    kind: Kind
    type: Type = Type.NUMBER
    span: Span = _nowhere()


@dataclass(frozen=True, slots=True)
class Apply:
    """An operator's row by its name. Use `apply` to make one: it infers the kind."""

    op: str
    args: tuple[Expr, ...]
    kind: Kind
    span: Span = _nowhere()


Expr = Const | Ref | Apply


@dataclass(frozen=True, slots=True)
class Let:
    """A new name for a value, rounded to its storage type."""

    name: str
    value: Expr
    kind: Kind
    span: Span = _nowhere()


@dataclass(frozen=True, slots=True)
class Assign:
    """`target = value`.

    `operator` is set for `slot += e` on a zero-dimensional slot, which computes in the slot's own
    type: `value` is then `e` alone. Elsewhere `x += e` is resolved to `x = x + e`.
    """

    target: Ref
    value: Expr
    operator: str = ""
    span: Span = _nowhere()


@dataclass(frozen=True, slots=True)
class Descend:
    """The step itself, `param -= value`: what wrappers rewrite."""

    value: Expr
    span: Span = _nowhere()


@dataclass(frozen=True, slots=True)
class If:
    condition: Expr
    then: tuple[Stmt, ...]
    orelse: tuple[Stmt, ...]
    span: Span = _nowhere()


@dataclass(frozen=True, slots=True)
class Repeat:
    """The body, as often as the number says."""

    count: Expr
    body: tuple[Stmt, ...]
    span: Span = _nowhere()


Stmt = Let | Assign | Descend | If | Repeat


class Base(StrEnum):
    """The value types of hyperparameters."""

    REAL = "real"
    INT = "int"
    BOOL = "bool"
    TEXT = "text"
    FUNCTION = "function"


@dataclass(frozen=True, slots=True)
class ValueType:
    """`per_group`: one value, or a list of one for each parameter group; `grouped`: kept in the
    parameter groups, under its name; `many`: any number of values, whose order nothing reads."""

    base: Base
    optional: bool = False
    per_group: bool = False
    choices: tuple[str, ...] = ()
    grouped: bool = False
    many: bool = False


@dataclass(frozen=True, slots=True)
class Hyper:
    """A hyperparameter, or an option where `kind` is OPTION. `default` is an expression over other
    hyperparameters, `literal` its text as typed; both are None for a required one. A tuple such as
    `betas` has its parts' names in `components`, those that may be unset in `optional_parts`, and
    their defaults in `parts`. A schedule's may exist only `when` a condition holds, and be kept
    `as` an attribute of another name."""

    name: str
    kind: Kind
    type: ValueType
    default: Expr | None
    literal: str | None
    components: tuple[str, ...] = ()
    parts: tuple[Expr, ...] = ()
    optional_parts: tuple[str, ...] = ()
    when: Expr | None = None
    attribute: str = ""
    span: Span = _nowhere()


@dataclass(frozen=True, slots=True)
class Require:
    """A condition that must hold. `message` may hold `{name}`, and is the author's where `told`;
    `hypers` are the hyperparameters that the condition reads."""

    condition: Expr
    message: str
    hypers: tuple[str, ...]
    told: bool = False
    span: Span = _nowhere()


@dataclass(frozen=True, slots=True)
class State:
    """A slot. `initial` is None for `unset`; `kind` is SCALAR for a zero-dimensional slot, which
    with `integer` the state holds as a Python int. An `output` is for the user to read."""

    name: str
    kind: Kind
    initial: Expr | None
    when: Expr | None
    eager: bool
    integer: bool = False
    output: bool = False
    span: Span = _nowhere()


@dataclass(frozen=True, slots=True)
class Sparse:
    """How an update treats a sparse gradient. With `none` there is none, with `linear` the gradient
    runs through the statements as it is, with `rows` they run on the elements that it has; with
    `only` so, and every gradient is sparse. `requires` hold where a gradient is sparse; `refusal`
    is what one of the wrong layout is told."""

    mode: str = "none"
    requires: tuple[Require, ...] = ()
    refusal: str = ""


FLAGS = ("foreach", "maximize", "capturable", "differentiable", "fused")
# A routine has one way to execute.
ROUTINE_FLAGS = ("maximize",)
# In how many bits an optimizer stores, and how it rounds: arguments behind all others.
POLICIES = ("rounding", "kahan", "master_weights", "state_dtype", "seed")


@dataclass(frozen=True, slots=True)
class Stage:
    """A pass over a parameter's elements that stores nothing, and is there for the numbers that its
    body makes of them: `let name = norm(x)` for each of `reductions`. One in a branch that is not
    taken is 0, or no part of a total."""

    body: tuple[Stmt, ...]
    reductions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Spec:
    """An optimizer. `signature` is the constructor's order after `params`: hyperparameters, flags,
    and `*` where keyword-only arguments begin. `fixed` holds the options that a derived optimizer
    has decided. The pass `hoist_scalars` moves scalar work from `body` to `scalars`, the pass
    `stages` what reductions need to the passes before `body`, the pass `barriers` only what those
    of all parameters need. `sparse` and
    `complex` say how the update treats such tensors; `complex` is None where the default holds.
    `routine` names a module of the runtime that stands in the place of a body."""

    name: str
    source: Source
    doc: str
    cites: tuple[str, ...]
    hypers: tuple[Hyper, ...]
    signature: tuple[str, ...]
    requires: tuple[Require, ...]
    states: tuple[State, ...]
    body: tuple[Stmt, ...]
    base: str | None = None
    fixed: tuple[tuple[str, bool], ...] = ()
    sparse: Sparse = Sparse()
    complex: tuple[str, ...] | None = None
    routine: str = ""
    scalars: tuple[Stmt, ...] = ()
    columns: tuple[str, ...] = ()
    stages: tuple[Stage, ...] = ()
    barriers: tuple[Stage, ...] = ()
    span: Span = _nowhere()


class Keep(StrEnum):
    """Where a value of a schedule is kept."""

    STATE = "in the schedule and its checkpoints"
    GROUP = "in the parameter groups, one for each"
    OBSERVED = "in the schedule and its checkpoints, from which it is never read"


@dataclass(frozen=True, slots=True)
class Kept:
    """A value that a schedule keeps under a name. One that is observed follows the epoch, or is as
    constant as its expression; the others begin with `initial`. `attribute` is the name in
    checkpoints where it differs."""

    name: str
    initial: Expr
    keep: Keep = Keep.STATE
    when: Expr | None = None
    attribute: str = ""
    span: Span = _nowhere()


@dataclass(frozen=True, slots=True)
class Move:
    """In a phase, `target` goes from the group's value `start` to its value `end`."""

    target: str
    start: str
    end: str


@dataclass(frozen=True, slots=True)
class Phase:
    """It lasts until the epoch `end`, itself included; the last phase has no end but for
    `progress`. A phase whose `when` is false does not exist."""

    end: Expr
    moves: tuple[Move, ...]
    when: Expr | None = None
    span: Span = _nowhere()


@dataclass(frozen=True, slots=True)
class Target:
    """`closed momentum = e`: a hyperparameter besides the rate that a schedule drives."""

    name: str
    closed: Expr
    when: Expr | None = None
    span: Span = _nowhere()


@dataclass(frozen=True, slots=True)
class Example:
    """An argument that shows what a schedule does, for documentation, pictures and tests. A list
    has several values; a function has its parameters' names; `metric` is the metric of an
    epoch."""

    name: str
    parameters: tuple[str, ...]
    value: Expr | tuple[Expr, ...]
    span: Span = _nowhere()


@dataclass(frozen=True, slots=True)
class Schedule:
    """A learning-rate schedule. `closed` gives the rate from the epoch `t` and `base_lr`, `chain`
    from the current `lr`; a schedule driven by a metric has an update instead. `phases`, kept under
    the name `phases_attribute`, give forms the names `progress`, and `start_x` and `end_x` for each
    target x. A hyperparameter called
    `base_lr` is the first rate, in place of the group's. With `fractional`, an epoch may be a
    fraction. `requires` that read `t` hold at each epoch, the others at construction."""

    name: str
    source: Source
    doc: str
    cites: tuple[str, ...]
    hypers: tuple[Hyper, ...]
    requires: tuple[Require, ...]
    lets: tuple[Let, ...]
    closed: Expr | None
    chain: Expr | None
    kept: tuple[Kept, ...]
    parameters: tuple[str, ...]
    body: tuple[Stmt, ...]
    targets: tuple[Target, ...] = ()
    phases: tuple[Phase, ...] = ()
    phases_attribute: str = ""
    fractional: bool = False
    examples: tuple[Example, ...] = ()
    span: Span = _nowhere()


@dataclass(frozen=True, slots=True)
class Average:
    """A running average of models. `each` gives the next `average` of a tensor from the `param` of
    the next model and the number `n` of models before it; `multi` is the same for lists of tensors,
    and may round otherwise. Where a spec has one of them, it is both."""

    name: str
    source: Source
    doc: str
    cites: tuple[str, ...]
    hypers: tuple[Hyper, ...]
    requires: tuple[Require, ...]
    lets: tuple[Let, ...]
    each: Assign
    multi: Assign
    span: Span = _nowhere()


Unit = Spec | Schedule | Average


def kind_of(expr: Expr) -> Kind:
    return Kind.OPTION if isinstance(expr, Const) else expr.kind


def type_of(expr: Expr) -> Type:
    match expr:
        case Const(value=bool()):
            return Type.BOOL
        case Const(value=str()):
            return Type.TEXT
        case Const():
            return Type.NUMBER
        case Ref():
            return expr.type
        case Apply(op="select", args=(_, then, _)):
            return type_of(then)
        case Apply():
            return OPS[expr.op].result
        case _:
            assert_never(expr)


def apply(op: str, *args: Expr, span: Span = NOWHERE) -> Apply:
    """A node with its kind inferred from the operator's rule."""
    kind = max((kind_of(a) for a in args), default=Kind.OPTION)
    match OPS[op].rule:
        case Rule.REDUCE:
            kind = Kind.REDUCED
        case Rule.TOTAL:
            kind = Kind.GLOBAL
        case Rule.ALONG | Rule.INITIAL_ALONG:
            kind = Kind.FACTORED
        case Rule.MATRIX:
            kind = Kind.MATRIX
        case Rule.HOST:
            kind = Kind.SCALAR
        case Rule.INITIAL:
            kind = Kind.ELEMENTWISE
        case Rule.JOIN | Rule.SCALAR_ONLY:
            pass
    return Apply(op, args, kind, span)


def is_given(expr: Expr) -> bool:
    """Whether it is known before anything is computed: hyperparameters and the parameter's
    properties, no slot."""
    return kind_of(expr) <= Kind.SCALAR and all(
        r.kind <= Kind.HYPER or r.role is Role.PROPERTY for r in refs(expr)
    )


def is_scalar(expr: Expr) -> bool:
    """Whether the host can compute it without a tensor."""
    return kind_of(expr) <= Kind.SCALAR


def map_expr(expr: Expr, f: Callable[[Expr], Expr]) -> Expr:
    """`f` over every node, leaves first. A node whose operands did not change stays itself."""
    if isinstance(expr, Apply):
        args = tuple(map_expr(a, f) for a in expr.args)
        if any(new is not old for new, old in zip(args, expr.args, strict=True)):
            expr = apply(expr.op, *args, span=expr.span)
    return f(expr)


def map_stmt(stmt: Stmt, f: Callable[[Expr], Expr]) -> Stmt:
    """`f` applied once to each expression of a statement, at its root."""
    match stmt:
        case Let():
            return replace(stmt, value=f(stmt.value))
        case Assign():
            return replace(stmt, value=f(stmt.value))
        case Descend():
            return replace(stmt, value=f(stmt.value))
        case If():
            then = tuple(map_stmt(s, f) for s in stmt.then)
            orelse = tuple(map_stmt(s, f) for s in stmt.orelse)
            return replace(stmt, condition=f(stmt.condition), then=then, orelse=orelse)
        case Repeat():
            body = tuple(map_stmt(s, f) for s in stmt.body)
            return replace(stmt, count=f(stmt.count), body=body)
        case _:
            assert_never(stmt)


def walk(expr: Expr) -> Iterator[Expr]:
    yield expr
    if isinstance(expr, Apply):
        for arg in expr.args:
            yield from walk(arg)


def refs(expr: Expr) -> Iterator[Ref]:
    return (e for e in walk(expr) if isinstance(e, Ref))


def statements(body: tuple[Stmt, ...]) -> Iterator[Stmt]:
    """Every statement, nested ones behind the one that holds them."""
    for stmt in body:
        yield stmt
        if isinstance(stmt, If):
            yield from statements(stmt.then)
            yield from statements(stmt.orelse)
        elif isinstance(stmt, Repeat):
            yield from statements(stmt.body)


def reads(body: tuple[Stmt, ...]) -> Iterator[Ref]:
    """The names that statements read, nested ones included."""
    return (r for s in statements(body) for e in expressions(s) for r in refs(e))


def kept_hypers(schedule: Schedule) -> tuple[Hyper, ...]:
    """The hyperparameters that a schedule needs after its construction: those that a rate, an
    update, an observed value of an epoch or a condition on it reads. First values, and what is
    constant, are computed once."""
    lets = {let.name: let.value for let in schedule.lets}
    observed = {k.name: k for k in schedule.kept if k.keep is Keep.OBSERVED}
    asked = [e for e in (schedule.closed, schedule.chain) if e is not None]
    asked += [e for s in statements(schedule.body) for e in expressions(s)]
    for target in schedule.targets:
        asked += [target.closed] if target.when is None else [target.closed, target.when]
    asked += [k.initial for k in observed.values() if follows_epoch(schedule, k.initial)]
    asked += [r.condition for r in schedule.requires if follows_epoch(schedule, r.condition)]
    names: set[str] = set()
    while asked:
        for ref in refs(asked.pop()):
            if ref.name in lets and ref.name not in names:
                asked.append(lets[ref.name])
            names.add(ref.name)
    return tuple(h for h in schedule.hypers if names & {h.name, *h.components})


def follows_epoch(schedule: Schedule, expr: Expr) -> bool:
    """Whether a value reads the epoch: itself, or through names of the schedule."""
    inside = {let.name: let.value for let in schedule.lets}
    inside |= {k.name: k.initial for k in schedule.kept if k.keep is Keep.OBSERVED}
    names, asked = set[str](), [expr]
    while asked:
        for ref in refs(asked.pop()):
            if ref.role is Role.GIVEN and ref.name not in ("lr", "base_lr"):
                return True
            if ref.name in inside and ref.name not in names:
                asked.append(inside[ref.name])
            names.add(ref.name)
    return False


def expressions(stmt: Stmt) -> tuple[Expr, ...]:
    """A statement's own expressions, without those of statements in it."""
    match stmt:
        case Let(value=value) | Assign(value=value) | Descend(value=value):
            return (value,)
        case If(condition=condition):
            return (condition,)
        case Repeat(count=count):
            return (count,)
        case _:
            assert_never(stmt)
