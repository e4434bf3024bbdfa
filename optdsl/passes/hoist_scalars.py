"""Move everything without a tensor operand out of the body: kernels read it from a float64 table.

This is numerics, not speed: a kernel takes Python floats as float32, and `1 - 0.999` computed there
is off by 1.3e-5 relative. `scalars` becomes a program over hyperparameters and zero-dimensional
slots; `columns` are the names that the body then reads. Options stay: they specialise a kernel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from optdsl.ir import (
    Apply,
    Assign,
    Const,
    Descend,
    Expr,
    If,
    Let,
    Ref,
    Role,
    Spec,
    Stmt,
    apply,
    is_scalar,
    kind_of,
    refs,
    statements,
    type_of,
    walk,
)
from optdsl.ops import OPS, PARTIAL, Kind, Rule, Type
from optdsl.passes.naming import LONG, in_words, names_of, unused

ZERO = Const(0.0)


def hoist_scalars(spec: Spec) -> Spec:
    hoister = Hoister(spec, spec.body)
    body = tuple(hoister.block(spec.body, ()))
    return replace(
        spec,
        body=body,
        scalars=spec.scalars + tuple(hoister.program),
        columns=spec.columns + tuple(hoister.columns),
    )


class Hoister:
    """Moves the statements and the parts of statements of a body whose kind is at most `level` to
    `program`, which can then run before the body."""

    def __init__(
        self,
        spec: Spec,
        body: tuple[Stmt, ...],
        level: Kind = Kind.SCALAR,
        taken: Iterable[str] = (),
    ) -> None:
        self.level = level
        self.program: list[Stmt] = []
        # Column names in the order of first use, with what each stands for: an expression, guarded,
        # at one version of the names in it.
        self.columns: dict[str, tuple[Expr, tuple[int, ...]]] = {}
        self.taken = names_of(spec, body) | {*taken}
        # How often the program has written a name so far, and how often it will have.
        self.versions: Counter[str] = Counter()
        self.writes = _writes(body, level)
        kept = {s.name for s in spec.states if s.kind <= Kind.SCALAR and s.name in self.writes}
        # A name has several values where it is written more than once, or kept.
        self.changing = frozenset({n for n, count in self.writes.items() if count > 1} | kept)

    def block(self, body: tuple[Stmt, ...], guards: tuple[Expr, ...]) -> Iterator[Stmt]:
        for stmt in body:
            yield from self.statement(stmt, guards)

    def statement(self, stmt: Stmt, guards: tuple[Expr, ...]) -> Iterator[Stmt]:
        match stmt:
            case Let(value=value) if self.is_number(value) and stmt.kind <= self.level:
                self.versions[stmt.name] += 1
                self.program.append(replace(stmt, value=self.guarded(value, guards)))
            case Let(value=value):
                yield replace(stmt, value=self.expr(value, guards))
            case Assign(target=target) if target.kind <= self.level:
                self.versions[target.name] += 1
                self.program.append(_nested(stmt, guards))
            case Assign(value=value):
                yield replace(stmt, value=self.expr(value, guards))
            case Descend(value=value):
                yield replace(stmt, value=self.expr(value, guards))
            case If(condition=condition):
                if any(r.name in self.changing for r in refs(condition)):
                    # A branch may change what the condition reads: it is decided before.
                    condition = self.condition(condition, guards)
                then = tuple(self.block(stmt.then, (*guards, condition)))
                negated = apply("not", condition, span=condition.span)
                orelse = tuple(self.block(stmt.orelse, (*guards, negated)))
                if then or orelse:
                    bound = self.condition(condition, guards)
                    yield replace(stmt, condition=bound, then=then, orelse=orelse)

    def is_number(self, expr: Expr) -> bool:
        return is_scalar(expr) or (kind_of(expr) <= self.level and not reduces(expr))

    def condition(self, condition: Expr, guards: tuple[Expr, ...]) -> Expr:
        return condition if _is_decided(condition) else self.column(condition, guards)

    def expr(self, expr: Expr, guards: tuple[Expr, ...], place: str = "") -> Expr:
        """The expression with each of its largest scalar parts read from the table. `place` says in
        words what an operand is to its operator."""
        if _is_decided(expr):
            return expr
        if self.is_number(expr):
            return self.column(expr, guards, place)
        if isinstance(expr, Apply):
            args = (self.expr(a, guards, _words_in(expr)) for a in expr.args)
            return apply(expr.op, *args, span=expr.span)
        return expr

    def column(self, expr: Expr, guards: tuple[Expr, ...], place: str = "") -> Ref:
        value = self.guarded(expr, guards)
        made = (value, tuple(self.versions[r.name] for r in refs(value)))
        name = self.name(expr, made, place)
        if name not in self.columns:
            self.columns[name] = made
            if not (isinstance(expr, Ref) and expr.name == name):
                self.program.append(Let(name, value, self.level, expr.span))
        # A flag is stored as 0 or 1, and stays a condition.
        return Ref(name, Role.COLUMN, self.level, type_of(expr), expr.span)

    def guarded(self, value: Expr, guards: tuple[Expr, ...]) -> Expr:
        """The value where the branch is taken; elsewhere it must not be computed if that can fail,
        as it can in Python. A kernel's numbers do not."""
        partial = any(isinstance(e, Apply) and e.op in PARTIAL for e in walk(value))
        if self.level > Kind.SCALAR or not partial:
            return value
        for guard in reversed(guards):
            zero = Const(False) if type_of(value) is Type.BOOL else ZERO
            value = apply("select", guard, value, zero, span=value.span)
        return value

    def name(self, expr: Expr, made: tuple[Expr, tuple[int, ...]], place: str) -> str:
        """The author's name where there is one, else the expression in words, or where those are
        many its place."""
        # What may change after this needs a name for its value now.
        fixed = isinstance(expr, Ref) and expr.role not in (Role.STATE, Role.PROPERTY)
        if isinstance(expr, Ref) and fixed and self.is_final(expr):
            return expr.name
        changed = max(
            (self.versions[r.name] for r in refs(expr) if not self.is_final(r)), default=0
        )
        words = in_words(expr)
        if len(words) > LONG and place:
            return next((n for n, m in self.columns.items() if m == made), self.free(place, made))
        words = (f"n{words}" if words[0].isdigit() else words) + (
            f"_after_{changed}" if changed > 1 else ""
        )
        if isinstance(expr, Ref):
            words += "_now"
        return self.free(words, made)

    def is_final(self, name: Ref) -> bool:
        """Whether a name keeps the value that it has now."""
        done = name.role is Role.LOCAL and self.versions[name.name] == self.writes[name.name]
        return done or name.name not in self.changing

    def free(self, words: str, made: tuple[Expr, tuple[int, ...]]) -> str:
        """The words as a name that stands for nothing else."""
        return unused(words, lambda n: n in self.taken or self.columns.get(n, made) != made)


def _words_in(parent: Apply) -> str:
    """What a number does to its neighbour: exp_avg * 3 -> `factor_of_exp_avg`"""
    match parent:
        case Apply(op="add_scaled" | "addcmul" | "addcdiv", args=(_, Ref(name=name), *_)):
            return f"factor_of_{name}"
        case Apply(op="mul", args=(Ref(name=name), _) | (_, Ref(name=name))):
            return f"factor_of_{name}"
        case _:
            return ""


def reduces(expr: Expr) -> bool:
    """Whether an expression makes a number of elements, by itself or inside."""
    nodes = (e for e in walk(expr) if isinstance(e, Apply))
    return any(OPS[e.op].rule in (Rule.REDUCE, Rule.TOTAL) for e in nodes)


def _is_decided(expr: Expr) -> bool:
    """Literals, conditions on options, columns: known before the body runs. Names for them are not,
    and what is computed from them is a number as any other."""
    if isinstance(expr, Const) or (isinstance(expr, Ref) and expr.role is Role.COLUMN):
        return True
    options = kind_of(expr) is Kind.OPTION and all(r.role is Role.OPTION for r in refs(expr))
    return options and type_of(expr) is Type.BOOL


def _writes(body: tuple[Stmt, ...], level: Kind) -> Counter[str]:
    """How often each number is written."""
    found: Counter[str] = Counter()
    for stmt in statements(body):
        match stmt:
            case Let(name=name, kind=kind) | Assign(target=Ref(name=name, kind=kind)):
                found[name] += kind <= level
            case _:
                pass
    return +found


def _nested(stmt: Stmt, guards: tuple[Expr, ...]) -> Stmt:
    for guard in reversed(guards):
        stmt = If(guard, (stmt,), (), stmt.span)
    return stmt
