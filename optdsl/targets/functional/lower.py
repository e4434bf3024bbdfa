"""Spec -> View: the update of one tensor as plain expressions, which write nothing in place.

Numbers may be tensors: hyperparameters that gradients flow to, and scalar slots where the host must
not read them. What Python's operators do not do for both alike is a call of the module `_numbers`.
"""

from __future__ import annotations

from collections.abc import Iterator

from optdsl import passes, printing
from optdsl.ir import (
    Apply,
    Assign,
    Const,
    Expr,
    Ref,
    Repeat,
    Role,
    Spec,
    Stmt,
    expressions,
    is_scalar,
    kind_of,
    map_expr,
    reads,
    refs,
    statements,
    type_of,
)
from optdsl.ops import OPS, Attribute, Call, Infix, KeepDim, Kind, Method, Prefix, Type
from optdsl.passes.branches_to_where import changing_numbers, depends
from optdsl.passes.liveness import shown
from optdsl.targets.functional.view import View
from optdsl.targets.layout import bracketed, broken_assignment, indented
from optdsl.targets.torch_code import Lines, Writer, is_tensor, unpack

# Operators whose Python spelling is the same for numbers and tensors.
ALIKE = frozenset(
    {"add", "sub", "mul", "div", "rdiv", "floordiv", "mod", "pow", "neg", "abs"}
    | {"eq", "ne", "lt", "le", "gt", "ge", "matmul"}
)
LOGIC = {"and": "both", "or": "either", "not": "negation"}


def lower(spec: Spec) -> View | None:
    """None for a derived optimizer, whose class inherits the base's update, and for a routine."""
    if spec.base is not None or spec.routine:
        return None
    spec = passes.for_expressions(spec)
    writer = Functional(spec)
    return View(
        row=writer.row(),
        unpack=indented((*unpack(spec, "_numbers.wide"), *writer.numbers()), 2),
        body=indented((*writer.body(), f"return {writer.row()}"), 2),
    )


class Functional(Writer):
    indent = 8

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        # In the author's order, every statement at its place.
        self.spec = spec
        self.up_front = frozenset()
        self.changing = {s.target.name for s in self.slot_changes()}
        self.decided = changing_numbers(spec.body)
        self.kept = {s.target.name for s in self.slot_changes() if self.is_rounded(s)}

    def row(self) -> str:
        """The names of what one parameter has: the slots in their order."""
        return ", ".join(("param", "grad", *(s.name for s in self.spec.states)))

    def numbers(self) -> Lines:
        """Scalar slots are read as float64; what is rounded before it is read again stays itself."""
        return tuple(f"{n} = {n}.double()" for n in self.scalar_slots() if n not in self.kept)

    def is_rounded(self, change: Assign) -> bool:
        """Whether the slot's own dtype shows in this step: it is read behind a change that is not
        the counting of steps, which float32 and float64 do alike."""
        if change.operator in ("add", "sub") and isinstance(change.value, Const):
            if isinstance(change.value.value, int):
                return False
        body = list(statements(self.spec.body))
        where = next(n for n, stmt in enumerate(body) if stmt is change)
        behind = {r.name for s in body[where + 1 :] for e in expressions(s) for r in refs(e)}
        return change.target.name in behind or any(isinstance(s, Repeat) for s in body)

    # Statements

    def real_views(self) -> Lines:
        names = [n for n in ("param", "grad", *self.tensor_slots()) if not self.stays_complex(n)]
        return ("if param.is_complex():", *indented(_views(names, "as_real")))

    def complex_views(self, stmt: Stmt) -> Lines:
        names = dict.fromkeys(r.name for r in reads((stmt,)) if is_tensor(r) and r.name != "param")
        return ("if param.is_complex():", *indented(_views(names, "as_complex")))

    def change(self, stmt: Assign, indent: int) -> Lines:
        target, value = stmt.target, stmt.value
        if target.name not in self.kept:
            if stmt.operator:
                value = Apply(stmt.operator, (target, value), Kind.SCALAR)
            return broken_assignment(target.name, self.text(value), indent)
        value_text = f"_numbers.like({target.name}, {self.text(value)})"
        if stmt.operator:
            own = Ref(target.name, Role.LOCAL, Kind.SCALAR)
            new = Apply(stmt.operator, (own, Ref(value_text, Role.LOCAL, Kind.SCALAR)), Kind.SCALAR)
            value_text = printing.show(new, printing.host)
        return broken_assignment(target.name, value_text, indent)

    def scalar_assignment(self, name: str, value: Expr, indent: int) -> Lines:
        return broken_assignment(name, self.text(value), indent)

    def store(self, name: str, value: Expr, indent: int) -> Lines:
        if is_scalar(value):
            text = f"_numbers.full_like({name}, {self.text(value)})"
        else:
            # A slot shares its storage with nothing.
            copies = name != "param" and shown(value) is not None
            text = self.text(value) + (".clone()" if copies else "")
        return broken_assignment(name, text, indent)

    def bind(self, name: str, value: Expr, copy: bool, indent: int) -> tuple[Lines, bool]:
        return broken_assignment(name, self.tensor(value), indent), True

    def one(self, expr: Expr) -> str:
        return self.text(expr)

    def scalar(self, expr: Expr) -> str:
        return self.text(expr)

    def condition(self, expr: Expr) -> str:
        """What decides a branch, in Python: a tensor is asked for its truth."""

        def ask(node: Expr) -> Expr:
            match node:
                case Apply(op="and" | "or" | "not"):
                    return node
                case _:
                    return self.spelled(node)

        return printing.show(printing.none_tests(map_expr(expr, ask)), printing.host)

    # Expressions

    def text(self, expr: Expr) -> str:
        return printing.show(self.spell(expr), printing.host)

    def tensor(self, expr: Expr) -> str:
        """What must be a tensor: a number becomes one."""
        text = self.text(expr)
        return f"_numbers.like(param, {text})" if is_scalar(expr) else text

    def spell(self, expr: Expr) -> Expr:
        """The expression with all that Python has no operator for as names of its text."""
        return printing.none_tests(map_expr(expr, self.spelled))

    def spelled(self, node: Expr) -> Expr:
        match node:
            case Ref(role=Role.STATE, name=name, kind=Kind.SCALAR) if name in self.kept:
                return _named(f"{name}.double()", node)
            case Apply(op=op, args=args) if op in ALIKE:
                numbers = tuple(self.number(a) for a in args)
                symbol = OPS[op].torch if op == "matmul" else OPS[op].host
                if isinstance(symbol, Infix | Prefix | Call):
                    return Apply(op, numbers, node.kind, node.span) if op != "matmul" else _named(
                        _infix("@", *numbers), node
                    )
                return node
            case Apply():
                return _named(self.call(node), node)
            case _:
                return node
