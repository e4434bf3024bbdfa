"""What the targets of torch code share: statements in order, each under its spec's line."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import TypeGuard, assert_never

from optdsl import printing
from optdsl.diagnostics import unsupported
from optdsl.ir import (
    STORED,
    Apply,
    Assign,
    Const,
    Descend,
    Expr,
    Hyper,
    If,
    Let,
    Ref,
    Repeat,
    Role,
    Spec,
    Stmt,
    is_scalar,
    kind_of,
    map_expr,
    map_stmt,
    reads,
    refs,
    statements,
)
from optdsl.ops import SYMBOLS, Kind, Type
from optdsl.passes.complex_views import first_real_statement, is_linear
from optdsl.passes.liveness import needed_copies, shown
from optdsl.targets.layout import comment, indented

Lines = tuple[str, ...]
# The larger of a tensor and a number is the tensor with the number as its lower bound.
CLAMPS = {"max": "clamp_min", "min": "clamp_max"}


def unpack(spec: Spec, read: str = "number") -> Lines:
    """The hyperparameters that the update reads, each under the author's name."""
    used = {r.name for r in reads(spec.body)}
    lines: list[str] = []
    for hyper in spec.hypers:
        lines += _unpack(hyper, used, read)
    return tuple(lines)


def unpack_totals(spec: Spec) -> Lines:
    """The numbers of all parameters that the update reads, which are made before it."""
    used = {r.name for r in reads(spec.body)}
    return tuple(f'{name} = rows.totals["{name}"]' for name in totals(spec) if name in used)


def totals(spec: Spec) -> Lines:
    """The names of what all parameters make before the update, in the order in which they do."""
    return tuple(name for stage in spec.barriers for name in stage.reductions)


def _unpack(hyper: Hyper, used: set[str], read: str) -> Lines:
    key = f'group["{hyper.name}"]'
    if used & set(hyper.components):
        names = ", ".join(c if c in used else "_" for c in hyper.components)
        return (f"{names} = map({read}, {key})",)
    if hyper.name not in used:
        return ()
    return (f"{hyper.name} = {key if hyper.kind is Kind.OPTION else f'{read}({key})'}",)


class Writer(ABC):
    """Statements -> lines. Subclasses say how a tensor is computed, assigned and named."""

    indent: int  # columns before the body, for breaking lines
    in_order = False  # whether operands and statements stay where the author has them

    def __init__(self, spec: Spec) -> None:
        body = tuple(map_stmt(s, tensors_first) for s in spec.body)
        self.spec = spec if self.in_order else replace(spec, body=body)
        self.copies = needed_copies(self.spec.body)
        # Changes of scalar slots that come before whatever reads them: one operation for all rows.
        self.up_front = frozenset() if self.in_order else _up_front(self.spec.body)
        # Scalar slots that change by a value of each row's own.
        self.changing = {s.target.name for s in self.slot_changes() if id(s) not in self.up_front}
        self.stored = {"param", *self.tensor_slots()}
        # Local names whose tensor belongs to nobody else: they may be changed in place.
        self.owned: set[str] = set()

    def body(self) -> Lines:
        """The whole update after the scalar slots were advanced."""
        split = first_real_statement(self.spec)
        if split is not None:
            self.check_complex_step(self.spec.body[split:])
        lines: list[str] = []
        for index, stmt in enumerate(self.spec.body):
            if index == split:
                lines += self.real_views()
            if split is not None and index >= split and self.is_complex_step(stmt):
                lines += self.complex_views(stmt)
            lines += self.statement(stmt, self.indent)
        return tuple(lines)

    def check_complex_step(self, body: tuple[Stmt, ...]) -> None:
        """A complex step behind real statements is linear, and ends the work on tensors."""
        stepped = False
        for stmt in body:
            read = [r for r in reads((stmt,)) if is_tensor(r)]
            written = [s for s in statements((stmt,)) if isinstance(s, Assign)]
            if stepped and (read or any(is_tensor(s.target) for s in written)):
                raise unsupported(
                    "This stands behind the complex step.", stmt.span,
                    "With 'complex descend' the last statement changes the parameter.",
                )  # fmt: skip
            if isinstance(stmt, Assign) and self.is_complex_step(stmt):
                stepped = True
                whole = all(r.kind is Kind.ELEMENTWISE and r.type is Type.NUMBER for r in read)
                if not (whole and is_linear(stmt.value)):
                    raise unsupported(
                        "A complex step is linear in tensors like the parameter.", stmt.span,
                        "Give what is not linear a name before it: let step = ...",
                    )  # fmt: skip

    def is_complex_step(self, stmt: Stmt) -> bool:
        """Whether a statement behind the real ones is complex arithmetic again."""
        return (
            isinstance(stmt, Assign)
            and stmt.target.role is Role.PARAM
            and "descend" in (self.spec.complex or ())
        )

    def step_tensors(self, stmt: Stmt) -> Lines:
        """The names of tensors that a complex step reads or changes."""
        names = (r.name for r in reads((stmt,)) if is_tensor(r))
        return tuple(dict.fromkeys(("param", *names)))

    def slot_changes(self) -> Iterator[Assign]:
        """The assignments to scalar slots."""
        return (s for s in statements(self.spec.body) if _changes_number(s))

    def advances(self) -> Lines:
        """The changes of scalar slots for all rows in one operation."""
        lines: list[str] = []
        for change in self.slot_changes():
            if id(change) in self.up_front:
                operator, value = SYMBOLS[change.operator], self.scalar(change.value)
                lines += (
                    comment(change.span.text),
                    f'rows.vectors["{change.target.name}"] {operator}= {value}',
                )
        return tuple(lines)

    def scalar_slots(self) -> tuple[str, ...]:
        """The scalar slots that the update reads as numbers, or changes row by row."""
        used = {r.name for r in reads(self.spec.body) if r.role is Role.STATE} | self.changing
        return tuple(s.name for s in self.spec.states if s.kind is Kind.SCALAR and s.name in used)

    def tensor_slots(self) -> tuple[str, ...]:
        return tuple(s.name for s in self.spec.states if s.kind is not Kind.SCALAR)

    def statement(self, stmt: Stmt, indent: int) -> Lines:
        match stmt:
            case Assign(target=target) if is_scalar(target) and target.role is Role.STATE:
                if id(stmt) in self.up_front:
                    return ()
                return (comment(stmt.span.text), *self.change(stmt, indent))
            case If():
                return self.branch(stmt, indent, "if")
            case Repeat():
                return self.repeat(stmt, indent)
            case Let() | Assign():
                return (comment(stmt.span.text), *self.assignment(stmt, indent))
            case Descend():
                raise AssertionError("lower_descend runs before every target")
            case _:
                assert_never(stmt)

    def branch(self, stmt: If, indent: int, word: str) -> Lines:
        condition = self.condition(stmt.condition)
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

    def repeat(self, stmt: Repeat, indent: int) -> Lines:
        before = set(self.owned)
        self.block(stmt.body, indent)
        # A round begins with what the one before it left.
        self.owned &= before
        body = self.block(stmt.body, indent)
        self.owned &= before
        return (f"for _ in range({self.scalar(stmt.count)}):", *indented(body))

    def block(self, body: tuple[Stmt, ...], indent: int) -> Lines:
        return tuple(line for s in body for line in self.statement(s, indent + 4))

    def scalar(self, expr: Expr) -> str:
        """A number or a condition, in the host's arithmetic."""
        try:
            return printing.show(self.on_host(expr), printing.host)
        except printing.Unspellable as error:
            raise unsupported(
                f"'{error.expr.op}' has no meaning for numbers.", error.expr.span
            ) from None

    def on_host(self, expr: Expr) -> Expr:
        """A number with all that Python spells in its own way as names of that text."""

        def ask(node: Expr) -> Expr:
            match node:
                case Apply(op="unset", args=(Ref(name=name, role=Role.STATE),)):
                    return Ref(f'"{name}" in rows.unset', Role.LOCAL, Kind.HYPER, Type.BOOL)
                case Apply(op="host", args=(tensor,)):
                    return Ref(f"{self.one(tensor)}.item()", Role.LOCAL, Kind.HYPER)
                case Ref(name=name, role=Role.STATE) if name in self.changing:
                    return self.number_now(node)
                case _:
                    return node

        return printing.none_tests(map_expr(expr, ask))

    def assignment(self, stmt: Let | Assign, indent: int) -> Lines:
        """A name's or a slot's new value."""
        name = stmt.name if isinstance(stmt, Let) else stmt.target.name
        stored = isinstance(stmt, Assign) and stmt.target.role in STORED
        kind = stmt.kind if isinstance(stmt, Let) else stmt.target.kind
        if kind <= Kind.SCALAR:
            return self.scalar_assignment(name, kind, stmt.value, indent)
        if stored:
            return self.store(name, stmt.value, indent)
        lines, fresh = self.bind(name, stmt.value, id(stmt) in self.copies, indent)
        self.owned.discard(name)
        if fresh:
            self.owned.add(name)
        # Another name for the same tensor: from now on nobody owns it.
        origin = shown(stmt.value)
        if origin is not None and not fresh:
            self.owned.discard(origin.name)
        return lines

    def condition(self, expr: Expr) -> str:
        """What decides a branch."""
        return self.scalar(expr)

    def number_now(self, slot: Ref) -> Expr:
        """How a scalar slot that changes row by row is read."""
        return slot

    @abstractmethod
    def one(self, expr: Expr) -> str:
        """A tensor's text, for one row."""

    @abstractmethod
    def change(self, stmt: Assign, indent: int) -> Lines:
        """A scalar slot's change by a value of each row's own."""

    @abstractmethod
    def scalar_assignment(self, name: str, kind: Kind, value: Expr, indent: int) -> Lines:
        """A local number; `kind` is the widest of all that the name holds."""

    @abstractmethod
    def store(self, name: str, value: Expr, indent: int) -> Lines:
        """The parameter or a slot, changed in place."""

    @abstractmethod
    def bind(self, name: str, value: Expr, copy: bool, indent: int) -> tuple[Lines, bool]:
        """A local name; whether its tensor is a fresh one."""

    @abstractmethod
    def real_views(self) -> Lines:
        """Complex tensors as real ones from here on."""

    @abstractmethod
    def complex_views(self, stmt: Stmt) -> Lines:
        """What a step reads, as complex again."""


def _changes_number(stmt: Stmt) -> TypeGuard[Assign]:
    return isinstance(stmt, Assign) and is_scalar(stmt.target) and stmt.target.role is Role.STATE


def _up_front(body: tuple[Stmt, ...]) -> frozenset[int]:
    """The changes of scalar slots, by `id`, that nothing before them reads or writes, and that are
    the same for all rows."""
    found: set[int] = set()
    seen: set[str] = set()
    for stmt in body:
        if (
            _changes_number(stmt)
            and stmt.operator
            and kind_of(stmt.value) <= Kind.HYPER
            and not any(r.role is Role.LOCAL for r in refs(stmt.value))
            and stmt.target.name not in seen
        ):
            found.add(id(stmt))
            continue
        seen |= {r.name for r in reads((stmt,))}
        seen |= {s.target.name for s in statements((stmt,)) if isinstance(s, Assign)}
    return frozenset(found)


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
