"""Spec -> View: the update of lists through `torch._foreach_*`, bit for bit the eager one.

A number that differs between parameters is a list of floats; what has no `_foreach_` call is a list
comprehension over the eager target's text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from keyword import iskeyword

from optdsl import passes, printing
from optdsl.ir import (
    Apply,
    Assign,
    Const,
    Expr,
    If,
    Let,
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
from optdsl.ops import OPS, PROPERTIES, SYMBOLS, Kind, Type
from optdsl.passes.liveness import shown
from optdsl.targets.eager.lower import Eager, bare
from optdsl.targets.foreach.view import View
from optdsl.targets.layout import bracketed, broken_assignment, broken_call, indented
from optdsl.targets.torch_code import (
    CLAMPS,
    Lines,
    Writer,
    is_tensor,
    mentions,
    totals,
    unpack,
    unpack_totals,
)


def lower(spec: Spec) -> View | None:
    """None for a derived optimizer, whose class inherits the base's update, for a routine, and for
    one with a branch that only a tensor decides: it runs one tensor at a time."""
    if spec.base is not None or spec.routine:
        return None
    if spec.sparse.mode == "only":
        return None  # sparse gradients are updated one at a time
    spec = passes.for_torch(spec)
    agreement = _agreement(spec)
    if agreement is None:
        return None
    writer = Foreach(spec)
    advances = writer.advances()
    return View(
        agreement=agreement,
        unpack=indented((*unpack(spec), *unpack_totals(spec)), 2),
        lists=indented(writer.lists(), 2),
        advances=indented((*advances, *writer.numbers()), 2),
        body=indented(writer.body(), 2),
    )


class Foreach(Writer):
    indent = 8

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.eager = Eager(spec)
        # In a loop over lists, each row's number is a float.
        self.eager.changing = set()
        names = {h for hyper in spec.hypers for h in (hyper.name, *hyper.components)}
        self.taken = names | {s.name for s in spec.states} | {"rows", "group"}
        self.shared = _shared(spec)

    def many(self, name: str) -> str:
        """The list that holds a name's value for each parameter."""
        plural = f"{name}s"
        return f"{name}_list" if plural in self.taken or iskeyword(plural) else plural

    def lists(self) -> Lines:
        slots = (f'{self.many(n)} = rows.slots["{n}"]' for n in self.tensor_slots())
        return ("params, grads = rows.params, rows.grads", *slots)

    def numbers(self) -> Lines:
        return tuple(
            f'{self.many(n)} = rows.vectors["{n}"].tolist()'
            for n in self.scalar_slots()
            if self.is_read_first(n)
        )

    def real_views(self) -> Lines:
        names = [self.many(n) for n in ("param", "grad", *self.tensor_slots())]
        self.owned.discard("grad")
        return ("if rows.is_complex:", *indented([f"{n} = as_real_list({n})" for n in names]))

    def complex_views(self, stmt: Stmt) -> Lines:
        lists = [self.many(n) for n in self.step_tensors(stmt)]
        return ("if rows.is_complex:", *indented(f"{n} = as_complex_list({n})" for n in lists))

    def one(self, expr: Expr) -> str:
        return self.eager.value(expr)

    def condition(self, expr: Expr) -> str:
        """All rows of a batch agree in it: the first one decides."""

        def first(node: Expr) -> Expr:
            match node:
                case Ref(role=Role.PROPERTY):
                    text = printing.python_leaf(node).replace("param", "params[0]")
                    return replace(node, name=text, role=Role.LOCAL)
                case Ref(name=name) if self.is_list(node):
                    return replace(node, name=f"{self.many(name)}[0]", role=Role.LOCAL)
                case _:
                    return node

        return printing.show(map_expr(self.on_host(expr), first), printing.host)

    def change(self, stmt: Assign, indent: int) -> Lines:
        name = stmt.target.name
        vector = f'rows.vectors["{name}"]'
        value = self.number(stmt.value)
        if kind_of(stmt.value) > Kind.HYPER:
            value = f"{vector}.new_tensor({value})"
        if stmt.operator:
            line = f"{vector} {SYMBOLS[stmt.operator]}= {value}"
        else:
            line = f"{vector}.{'fill' if kind_of(stmt.value) <= Kind.HYPER else 'copy'}_({value})"
        lines = broken_call(line, indent)
        if self.is_read_behind(stmt):
            lines = (*lines, f"{self.many(name)} = {vector}.tolist()")
        return lines

    def is_read_first(self, slot: str) -> bool:
        """Whether the update reads a scalar slot before it changes it row by row."""
        for stmt in statements(self.spec.body):
            if any(r.name == slot for e in expressions(stmt) for r in refs(e)):
                return True
            if _writes(stmt, slot) and id(stmt) not in self.up_front:
                # In a branch it may stay as it was.
                return not any(stmt is s for s in self.spec.body)
        return False

    def is_read_behind(self, change: Assign) -> bool:
        """Whether the update reads a scalar slot again after this change of it."""
        body = list(statements(self.spec.body))
        where = next(n for n, stmt in enumerate(body) if stmt is change)
        behind = body[where + 1 :]
        return any(r.name == change.target.name for s in behind for r in reads((s,))) or any(
            isinstance(s, Repeat) for s in body
        )

    def scalar_assignment(self, name: str, kind: Kind, value: Expr, indent: int) -> Lines:
        if kind <= Kind.HYPER:
            return broken_assignment(name, self.scalar(value), indent)
        number = self.number(value)
        if kind_of(value) <= Kind.HYPER:
            # Elsewhere the name holds a number for each parameter.
            number = f"[{number}] * len(params)"
        return broken_call(f"{self.many(name)} = {number}", indent)

    def store(self, name: str, value: Expr, indent: int) -> Lines:
        steps = self.in_place(name, value)
        each = self.eager.in_place(name, value) if steps is None else None
        if each:
            # No call for lists: the for-loop's own, which works in place.
            head = self.loop_over(name, value, indent)
            return (*head, *indented(self.eager.chain(name, name, each, indent + 4)))
        if steps is None:
            steps = (f"torch._foreach_copy_({self.many(name)}, {self.value(value)})",)
        return _broken(steps, indent)

    def bind(self, name: str, value: Expr, copy: bool, indent: int) -> tuple[Lines, bool]:
        target = self.many(name)
        if name in self.shared:
            return broken_call(f"{name} = {bare(self.eager.value(value))}", indent), False
        if isinstance(value, Ref) and is_tensor(value) and value.name not in self.shared:
            other = self.many(value.name)
            text = f"[tensor.clone() for tensor in {other}]" if copy else other
            return (f"{target} = {text}",), copy
        if shown(value) is not None:
            text = self.each(value, f"{self.eager.value(value)}{'.clone()' if copy else ''}")
            return broken_call(f"{target} = {text}", indent), copy
        if name in self.owned:
            steps = self.in_place(name, value)
            if steps is not None:
                return _broken(steps, indent), True
        if mentions(value, name):
            # The first of several calls would already have replaced what the others read.
            return broken_call(f"{target} = {self.value(value)}", indent), True
        first, rest = self.fresh(value, target)
        return _broken((f"{target} = {first}", *rest), indent), True

    def in_place(self, name: str, value: Expr) -> Lines | None:
        """The calls that turn the list into the value; None if there are none. Only the first may
        read the list in its other operands: later ones would see it changed."""
        match value:
            case Ref(name=other):
                return () if other == name else None
            case Apply(args=(receiver, *others)) if self.has_call(value) and is_tensor(receiver):
                before = self.in_place(name, receiver)
                if before is None or (before and any(mentions(o, name) for o in others)):
                    return None
                return (*before, self.call(value, self.many(name), in_place=True))
            case _:
                return None

    def fresh(self, value: Expr, target: str) -> tuple[str, Lines]:
        """A fresh list's first value, and the calls that change it in place after that."""
        match value:
            case Apply(args=(receiver, *_)) if self.has_call(value) and is_tensor(receiver):
                if isinstance(receiver, Ref):
                    return self.value(value), ()
                first, before = self.fresh(receiver, target)
                return first, (*before, self.call(value, target, in_place=True))
            case _:
                return self.value(value), ()

    def has_call(self, value: Apply) -> bool:
        """Whether `torch._foreach_` has this operator for these operands: it has none for masks."""
        if any(type_of(a) is Type.BOOL for a in value.args):
            return False
        match value.op:
            case "rdiv":
                return False
            case "pow" | "lerp":
                return all(is_scalar(a) for a in value.args[-1:])
            case "add_scaled":
                tensors = all(kind_of(a) is Kind.ELEMENTWISE for a in value.args[:2])
                return tensors and kind_of(value.args[2]) <= Kind.HYPER
            case op:
                return OPS[op].foreach is not None and all(
                    is_scalar(a) or kind_of(a) is Kind.ELEMENTWISE for a in value.args
                )

    def call(self, value: Apply, receiver: str, in_place: bool) -> str:
        """The call that applies an operator to a list."""
        suffix = "_" if in_place else ""
        name = OPS[value.op].foreach
        others = [self.operand(a) for a in value.args[1:]]
        match value.op:
            case "add_scaled":
                others[1] = f"alpha={others[1]}"
            case "addcmul" | "addcdiv" if value.args[3] == Const(1):
                others.pop()
            case "max" | "min" as op if is_scalar(value.args[1]):
                name = CLAMPS[op]
            case "mul" if in_place and is_scalar(value.args[1]):
                return f"scale_({receiver}, {others[0]})"
        return f"torch._foreach_{name}{suffix}({', '.join((receiver, *others))})"

    def operand(self, expr: Expr) -> str:
        return self.number(expr) if is_scalar(expr) else self.value(expr)

    def value(self, expr: Expr) -> str:
        """A list's text, in nested calls."""
        match expr:
            case Ref() if is_tensor(expr) and expr.name not in self.shared:
                return self.many(expr.name)
            case Apply(args=(receiver, *_)) if self.has_call(expr) and is_tensor(receiver):
                return self.call(expr, self.value(receiver), in_place=False)
            case _:
                return self.each(expr, self.eager.value(expr))

    def number(self, expr: Expr) -> str:
        """A number for all parameters, or a list with a number for each."""
        if kind_of(expr) <= Kind.HYPER:
            return self.scalar(expr)
        if isinstance(expr, Ref) and expr.role is not Role.PROPERTY:
            return self.many(expr.name)
        return self.each(expr, self.scalar(expr))

    def each(self, expr: Expr, text: str) -> str:
        """A comprehension: the text for one parameter, over the lists of the names in it."""
        names = self.listed(expr, text)
        lists = [self.many(n) for n in names]
        if not names:
            return f"[{text}] * len(params)"
        if len(names) == 1:
            return f"[{text} for {names[0]} in {lists[0]}]"
        return f"[{text} for {', '.join(names)} in zip({', '.join(lists)}, strict=True)]"

    def listed(self, expr: Expr, text: str) -> list[str]:
        """The names of an expression that stand for lists."""
        names = list(dict.fromkeys(r.name for r in refs(expr) if self.is_list(r)))
        if re.search(r"\bparam\b", text) and "param" not in names:
            names.append("param")  # whose dtype two numbers take, or whose shape is asked for
        return names

    def loop_over(self, target: str, value: Expr, indent: int) -> Lines:
        """The head of a loop over the lists of an assignment."""
        names = list(dict.fromkeys((target, *self.listed(value, self.eager.value(value)))))
        lists = [self.many(n) for n in names]
        if len(names) == 1:
            return (f"for {names[0]} in {lists[0]}:",)
        return bracketed(f"for {', '.join(names)} in zip(", [*lists, "strict=True"], "):", indent)

    def is_list(self, ref: Ref) -> bool:
        per_parameter = ref.role in (Role.STATE, Role.LOCAL, Role.PARAM, Role.GRAD)
        return per_parameter and ref.kind > Kind.HYPER and ref.name not in self.shared


def _shared(spec: Spec) -> frozenset[str]:
    """The names that stand for one tensor, not for a list: totals, and what is made of them with
    nothing that is a parameter's own."""
    values: dict[str, list[Expr]] = {}
    for stmt in statements(spec.body):
        match stmt:
            case Let(name=name, value=value) | Assign(target=Ref(name=name), value=value):
                values.setdefault(name, []).append(value)
            case _:
                pass
    shared = {name for name, given in values.items() if all(map(_is_total, given))}
    shared |= {*totals(spec)}
    while True:
        left = {n for n in shared if all(_names(v) <= shared for v in values.get(n, ()))}
        if left == shared:
            return frozenset(shared)
        shared = left


def _is_total(expr: Expr) -> bool:
    """Whether it is made of totals: a number alone would take a parameter's dtype."""
    return not isinstance(expr, Const) and expr.kind is Kind.GLOBAL


def _names(expr: Expr) -> set[str]:
    """The names in an expression that may differ between parameters."""
    return {r.name for r in refs(expr) if r.kind > Kind.HYPER}


def _writes(stmt: Stmt, name: str) -> bool:
    return isinstance(stmt, Assign) and stmt.target.name == name


def _agreement(spec: Spec) -> str | None:
    """What the parameters of a batch have to agree in, so that all take the same branches: a tuple
    over `param` and `state`. All have the same slots unset. None if a tensor decides a branch."""
    decided = {
        ref
        for stmt in statements(spec.body)
        if isinstance(stmt, If)
        for ref in _deciding(stmt.condition)
    }
    while True:
        values = [
            stmt.value
            for stmt in statements(spec.body)
            if (isinstance(stmt, Let) and stmt.name in {r.name for r in decided})
            or (isinstance(stmt, Assign) and stmt.target.name in {r.name for r in decided})
        ]
        more = {ref for value in values for ref in _deciding(value)} - decided
        if not more:
            break
        decided |= more
    if any(r.kind > Kind.SCALAR for r in decided):
        return None
    slots = sorted({r.name for r in decided if r.role is Role.STATE})
    # A branch may ask first whether there is such a dimension: of its size, all have the shape.
    properties = sorted(r.name.partition("[")[0] for r in decided if r.role is Role.PROPERTY)
    items = [f'float(state["{name}"])' for name in slots]
    items += [_property(name) for name in dict.fromkeys(properties)]
    return ", ".join(items) + ("," if len(items) == 1 else "") if items else ""


def _property(name: str) -> str:
    return PROPERTIES[name.removeprefix("param.")].python.removesuffix("[{index}]")


def _deciding(expr: Expr) -> Iterator[Ref]:
    """The names in an expression that may differ between parameters of a batch."""
    match expr:
        case Apply(op="unset"):
            return
        case Apply(args=args):
            for arg in args:
                yield from _deciding(arg)
        case Ref(kind=kind) if kind > Kind.HYPER:
            yield expr


def _broken(lines: Lines, indent: int) -> Lines:
    return tuple(part for line in lines for part in broken_call(line, indent))
