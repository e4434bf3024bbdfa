"""What the eager and the foreach target share: statements in order, each under its spec's line."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import assert_never

from optdsl import printing
from optdsl.diagnostics import unsupported
from optdsl.ir import (
    Apply,
    Assign,
    Const,
    Descend,
    Expr,
    Hyper,
    If,
    Let,
    Ref,
    Role,
    Spec,
    Stmt,
    expressions,
    is_scalar,
    kind_of,
    map_expr,
    map_stmt,
    reads,
    refs,
    statements,
)
from optdsl.ops import SYMBOLS, Kind, Type
from optdsl.passes.complex_views import first_real_statement
from optdsl.passes.liveness import needed_copies
from optdsl.targets.layout import comment, indented

Lines = tuple[str, ...]
# The larger of a tensor and a number is the tensor with the number as its lower bound.
CLAMPS = {"max": "clamp_min", "min": "clamp_max"}


def unpack(spec: Spec) -> Lines:
    """The hyperparameters that the update reads, each under the author's name."""
    used = {r.name for r in reads(spec.body)}
    lines: list[str] = []
    for hyper in spec.hypers:
        lines += _unpack(hyper, used)
    return tuple(lines)


def _unpack(hyper: Hyper, used: set[str]) -> Lines:
    key = f'group["{hyper.name}"]'
    if used & set(hyper.components):
        names = ", ".join(c if c in used else "_" for c in hyper.components)
        return (f"{names} = map(number, {key})",)
    if hyper.name not in used:
        return ()
    return (f"{hyper.name} = {key if hyper.kind is Kind.OPTION else f'number({key})'}",)


class Writer(ABC):
    """Statements -> lines. Subclasses say how a tensor is computed, assigned and named."""

    indent: int  # columns before the body, for breaking lines

    def __init__(self, spec: Spec) -> None:
        self.spec = replace(spec, body=tuple(map_stmt(s, tensors_first) for s in spec.body))
        self.copies = needed_copies(self.spec.body)
        # Local names whose tensor belongs to nobody else: they may be changed in place.
        self.owned: set[str] = set()

    def body(self) -> Lines:
        """The whole update after the scalar slots were advanced."""
        split = first_real_statement(self.spec.body)
        lines: list[str] = []
        for index, stmt in enumerate(self.spec.body):
            if index == split:
                lines += self.real_views()
            lines += self.statement(stmt, self.indent)
        return tuple(lines)

    def advance(self, slot: Assign) -> Lines:
        """A scalar slot's change, for all parameters of the rows in one operation."""
        if not slot.operator or kind_of(slot.value) > Kind.HYPER:
            raise unsupported(
                f"The scalar slot '{slot.target.name}' changes by a value of its own here.",
                slot.span,
                "Slots that are numbers can be advanced with += or *= by hyperparameters.",
            )
        value = self.scalar(slot.value)
        return (
            comment(slot.span.text),
            f'rows.vectors["{slot.target.name}"] {SYMBOLS[slot.operator]}= {value}',
        )

    def advances(self) -> Lines:
        """The changes of scalar slots, which come first: nothing has read them yet."""
        lines: list[str] = []
        read: set[str] = set()
        for stmt in statements(self.spec.body):
            if isinstance(stmt, Assign) and is_scalar(stmt.target):
                if stmt.target.role is Role.LOCAL:
                    continue
                if stmt.target.name in read or stmt not in self.spec.body:
                    raise unsupported(
                        f"The scalar slot '{stmt.target.name}' changes after it was read, or in a "
                        "branch.",
                        stmt.span,
                        "Advance it in the first lines of the update.",
                    )
                lines += self.advance(stmt)
            read |= {r.name for e in expressions(stmt) for r in refs(e)}
        return tuple(lines)

    def scalar_slots(self) -> tuple[str, ...]:
        """The scalar slots that the update reads as numbers."""
        used = {r.name for r in reads(self.spec.body) if r.role is Role.STATE}
        return tuple(s.name for s in self.spec.states if s.kind is Kind.SCALAR and s.name in used)

    def tensor_slots(self) -> tuple[str, ...]:
        return tuple(s.name for s in self.spec.states if s.kind is not Kind.SCALAR)

    def statement(self, stmt: Stmt, indent: int) -> Lines:
        match stmt:
            case Assign(target=target) if is_scalar(target) and target.role is Role.STATE:
                return ()  # advanced before
            case If():
                return self.branch(stmt, indent, "if")
            case Let() | Assign():
                return (comment(stmt.span.text), *self.assignment(stmt, indent))
            case Descend():
                raise AssertionError("lower_descend runs before every target")
            case _:
                assert_never(stmt)

    def branch(self, stmt: If, indent: int, word: str) -> Lines:
        condition = self.scalar(stmt.condition)
        before = set(self.owned)
        then = self.block(stmt.then, indent) or ("pass",)
        after_then, self.owned = self.owned, before
        lines = [f"{word} {condition}:", *indented(then)]
        match stmt.orelse:
            case ():
                pass
            case (If() as inner,):
                lines += self.branch(inner, indent, "elif")
            case orelse:
                lines += ["else:", *indented(self.block(orelse, indent))]
        self.owned &= after_then
        return tuple(lines)

    def block(self, body: tuple[Stmt, ...], indent: int) -> Lines:
        return tuple(line for s in body for line in self.statement(s, indent + 4))

    def scalar(self, expr: Expr) -> str:
        """A number or a condition, in the host's arithmetic."""

        def ask(node: Expr) -> Expr:
            match node:
                case Apply(op="unset", args=(Ref(name=name),)):
                    return Ref(f'"{name}" in rows.unset', Role.LOCAL, Kind.HYPER, Type.BOOL)
                case Ref(role=Role.PROPERTY):
                    raise unsupported(
                        "Properties of the parameter stand in 'when' and 'require' only.",
                        node.span,
                    )
                case _:
                    return node

        try:
            return printing.show(map_expr(expr, ask), printing.host)
        except printing.Unspellable as error:
            raise unsupported(
                f"'{error.expr.op}' has no meaning for numbers.", error.expr.span
            ) from None

    def assignment(self, stmt: Let | Assign, indent: int) -> Lines:
        """A name's or a slot's new value."""
        name = stmt.name if isinstance(stmt, Let) else stmt.target.name
        stored = isinstance(stmt, Assign) and stmt.target.role in (Role.PARAM, Role.STATE)
        kind = stmt.kind if isinstance(stmt, Let) else stmt.target.kind
        if kind <= Kind.SCALAR:
            return self.scalar_assignment(name, stmt.value, indent)
        if stored:
            return self.store(name, stmt.value, indent)
        lines, fresh = self.bind(name, stmt.value, id(stmt) in self.copies, indent)
        self.owned.discard(name)
        if fresh:
            self.owned.add(name)
        # Another name for the same tensor: from now on nobody owns it.
        if isinstance(stmt.value, Ref) and not fresh:
            self.owned.discard(stmt.value.name)
        return lines

    @abstractmethod
    def scalar_assignment(self, name: str, value: Expr, indent: int) -> Lines:
        """A local number."""

    @abstractmethod
    def store(self, name: str, value: Expr, indent: int) -> Lines:
        """The parameter or a slot, changed in place."""

    @abstractmethod
    def bind(self, name: str, value: Expr, copy: bool, indent: int) -> tuple[Lines, bool]:
        """A local name; whether its tensor is a fresh one."""

    @abstractmethod
    def real_views(self) -> Lines:
        """Complex tensors as real ones from here on."""


def tensors_first(expr: Expr) -> Expr:
    """scale * tensor -> tensor * scale: both commute exactly, and torch's calls want the tensor."""

    def swap(node: Expr) -> Expr:
        match node:
            case Apply(op="add" | "mul" | "max" | "min", args=(left, right)) if is_scalar(
                left
            ) and not is_scalar(right):
                return replace(node, args=(right, left))
            case _:
                return node

    return map_expr(expr, swap)


def mentions(expr: Expr, name: str) -> bool:
    return any(r.name == name for r in refs(expr))


def is_tensor(expr: Expr) -> bool:
    return not isinstance(expr, Const) and kind_of(expr) > Kind.SCALAR
