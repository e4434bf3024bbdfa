"""Spec -> View: the update of lists through `torch._foreach_*`, bit for bit the eager one.

A number that differs between parameters is a list of floats; what has no `_foreach_` call is a list
comprehension over the eager target's text.
"""

from __future__ import annotations

from keyword import iskeyword

from optdsl import passes
from optdsl.ir import (
    Apply,
    Const,
    Expr,
    If,
    Ref,
    Role,
    Spec,
    is_scalar,
    kind_of,
    refs,
    statements,
    type_of,
)
from optdsl.ops import OPS, Kind, Type
from optdsl.targets.eager.lower import Eager
from optdsl.targets.foreach.view import View
from optdsl.targets.layout import broken_assignment, broken_call, indented
from optdsl.targets.torch_code import CLAMPS, Lines, Writer, is_tensor, mentions, unpack


def lower(spec: Spec) -> View | None:
    """None for a derived optimizer, whose class inherits the base's update, and for one whose
    branches differ between parameters: it runs one tensor at a time."""
    if spec.base is not None:
        return None
    spec = passes.optimise(spec)
    if any(isinstance(s, If) and _differs(s.condition) for s in statements(spec.body)):
        return None
    writer = Foreach(spec)
    advances = writer.advances()
    return View(
        unpack=indented(unpack(spec), 2),
        lists=indented(writer.lists(), 2),
        advances=indented((*advances, *writer.numbers()), 2),
        body=indented(writer.body(), 2),
    )


class Foreach(Writer):
    indent = 8

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.eager = Eager(spec)
        names = {h for hyper in spec.hypers for h in (hyper.name, *hyper.components)}
        self.taken = names | {s.name for s in spec.states} | {"rows", "group"}

    def many(self, name: str) -> str:
        """The list that holds a name's value for each parameter."""
        plural = f"{name}s"
        return f"{name}_list" if plural in self.taken or iskeyword(plural) else plural

    def lists(self) -> Lines:
        slots = (f'{self.many(n)} = rows.slots["{n}"]' for n in self.tensor_slots())
        return ("params, grads = rows.params, rows.grads", *slots)

    def numbers(self) -> Lines:
        return tuple(f'{self.many(n)} = rows.vectors["{n}"].tolist()' for n in self.scalar_slots())

    def real_views(self) -> Lines:
        names = [self.many(n) for n in ("param", "grad", *self.tensor_slots())]
        self.owned.discard("grad")
        return ("if rows.is_complex:", *indented([f"{n} = as_real_list({n})" for n in names]))

    def scalar_assignment(self, name: str, value: Expr, indent: int) -> Lines:
        if kind_of(value) <= Kind.HYPER:
            return broken_assignment(name, self.scalar(value), indent)
        return broken_call(f"{self.many(name)} = {self.number(value)}", indent)

    def store(self, name: str, value: Expr, indent: int) -> Lines:
        steps = self.in_place(name, value)
        if steps is None:
            steps = (f"torch._foreach_copy_({self.many(name)}, {self.value(value)})",)
        return _broken(steps, indent)

    def bind(self, name: str, value: Expr, copy: bool, indent: int) -> tuple[Lines, bool]:
        target = self.many(name)
        if isinstance(value, Ref) and is_tensor(value):
            other = self.many(value.name)
            text = f"[tensor.clone() for tensor in {other}]" if copy else other
            return (f"{target} = {text}",), copy
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
                return kind_of(value.args[2]) <= Kind.HYPER
            case op:
                return OPS[op].foreach is not None and all(
                    is_scalar(a) or kind_of(a) >= Kind.ELEMENTWISE for a in value.args
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
            case Ref() if is_tensor(expr):
                return self.many(expr.name)
            case Apply(args=(receiver, *_)) if self.has_call(expr) and is_tensor(receiver):
                return self.call(expr, self.value(receiver), in_place=False)
            case _:
                return self.each(expr, self.eager.value(expr))

    def number(self, expr: Expr) -> str:
        """A number for all parameters, or a list with a number for each."""
        if kind_of(expr) <= Kind.HYPER:
            return self.scalar(expr)
        if isinstance(expr, Ref):
            return self.many(expr.name)
        return self.each(expr, self.scalar(expr))

    def each(self, expr: Expr, text: str) -> str:
        """A comprehension: the text for one parameter, over the lists of the names in it."""
        names = list(dict.fromkeys(r.name for r in refs(expr) if self.is_list(r)))
        if "param." in text and "param" not in names:
            names.append("param")  # whose dtype two numbers take
        lists = [self.many(n) for n in names]
        if len(names) == 1:
            return f"[{text} for {names[0]} in {lists[0]}]"
        return f"[{text} for {', '.join(names)} in zip({', '.join(lists)}, strict=True)]"

    def is_list(self, ref: Ref) -> bool:
        per_parameter = ref.role in (Role.STATE, Role.LOCAL, Role.PARAM, Role.GRAD)
        return per_parameter and ref.kind > Kind.HYPER


def _differs(condition: Expr) -> bool:
    """Whether parameters of one batch may answer differently. All have the same slots unset."""
    match condition:
        case Apply(op="unset"):
            return False
        case Apply(op="and" | "or" | "not", args=args):
            return any(map(_differs, args))
        case _:
            return kind_of(condition) > Kind.HYPER


def _broken(lines: Lines, indent: int) -> Lines:
    return tuple(part for line in lines for part in broken_call(line, indent))
