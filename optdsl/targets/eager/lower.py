"""Spec -> View: the update of one tensor in torch's in-place calls."""

from __future__ import annotations

from dataclasses import replace

from optdsl import passes
from optdsl.diagnostics import unsupported
from optdsl.ir import (
    Apply,
    Assign,
    Const,
    Expr,
    Ref,
    Spec,
    Stmt,
    is_scalar,
    kind_of,
    type_of,
)
from optdsl.ops import OPS, SYMBOLS, Call, Infix, KeepDim, Kind, Method, Type
from optdsl.passes.liveness import shown
from optdsl.targets.eager.view import View
from optdsl.targets.layout import (
    WIDTH,
    bracketed,
    broken_assignment,
    broken_call,
    indented,
    last_bracket,
)
from optdsl.targets.torch_code import (
    CLAMPS,
    Lines,
    Writer,
    is_tensor,
    mentions,
    unpack,
    unpack_totals,
)


def lower(spec: Spec) -> View | None:
    """None for a derived optimizer, whose class inherits the base's update, and for a routine."""
    if spec.base is not None or spec.routine:
        return None
    spec = passes.for_torch(spec)
    writer = Eager(spec)
    advances = writer.advances()
    return View(
        unpack=indented((*unpack(spec), *unpack_totals(spec)), 2),
        advances=indented(advances, 2),
        loop=indented(writer.loop(), 2),
        body=indented(writer.body(), 3),
    )


# A mask where an operator takes numbers.
AS_NUMBER = "to(param.dtype)"


class Eager(Writer):
    indent = 12

    def loop(self) -> Lines:
        """The header of the loop over the rows."""
        numbers, tensors = self.scalar_slots(), self.tensor_slots()
        names = ", ".join(("param", "grad", *numbers, *tensors))
        sources = ["rows.params", "rows.grads"]
        # What changes row by row is iterated as tensors without dimensions, views of the slots.
        sources += [
            f'rows.vectors["{n}"]{"" if n in self.changing else ".tolist()"}' for n in numbers
        ]
        sources += [f'rows.slots["{n}"]' for n in tensors]
        return bracketed(f"for {names} in zip(", [*sources, "strict=True"], "):", 8)

    def real_views(self) -> Lines:
        names = ("param", "grad", *self.tensor_slots())
        lines = tuple(f"{name} = as_real({name})" for name in names)
        # The gradient's view is nobody else's business, but its storage is.
        self.owned.discard("grad")
        return ("if rows.is_complex:", *indented(lines))

    def complex_views(self, stmt: Stmt) -> Lines:
        lines = tuple(f"{name} = as_complex({name})" for name in self.step_tensors(stmt))
        return ("if rows.is_complex:", *indented(lines))

    def one(self, expr: Expr) -> str:
        return self.value(expr)

    def number_now(self, slot: Ref) -> Expr:
        return replace(slot, name=f"{slot.name}.item()")

    def change(self, stmt: Assign, indent: int) -> Lines:
        name, value = stmt.target.name, self.scalar(stmt.value)
        if stmt.operator:
            return (f"{name} {SYMBOLS[stmt.operator]}= {value}",)
        return bracketed(f"{name}.fill_(", [value], ")", indent)

    def scalar_assignment(self, name: str, kind: Kind, value: Expr, indent: int) -> Lines:
        return broken_assignment(name, self.scalar(value), indent)

    def store(self, name: str, value: Expr, indent: int) -> Lines:
        match value:
            case Apply(op="max" | "min" as op, args=(Ref(name=first), other)) if (
                first == name and is_tensor(other)
            ):
                operands = [name, self.value(other), f"out={name}"]
                return bracketed(f"torch.{op}imum(", operands, ")", indent)
        steps = self.in_place(name, value)
        if steps is None:
            return bracketed(f"{name}.copy_(", [self.value(value)], ")", indent)
        return self.chain(name, name, steps, indent)

    def bind(self, name: str, value: Expr, copy: bool, indent: int) -> tuple[Lines, bool]:
        if shown(value) is not None:
            return (f"{name} = {self.value(value)}{'.clone()' if copy else ''}",), copy
        if name in self.owned:
            steps = self.in_place(name, value)
            if steps is not None:
                return self.chain(name, name, steps, indent), True
        if mentions(value, name):
            # A line per call would replace, in the first, what the others read.
            return broken_call(f"{name} = {bare(self.value(value))}", indent), True
        receiver, steps = self.parts(value)
        receiver = receiver if steps else bare(receiver)
        return self.chain(name, receiver, steps, indent, bind=True), True

    def chain(
        self, name: str, receiver: str, steps: list[str], indent: int, bind: bool = False
    ) -> Lines:
        """`name = receiver.a().b_()` on one line where it fits, else a line per call."""
        head = f"{name} = " if bind else ""
        line = head + receiver + "".join(f".{s}" for s in steps)
        if len(steps) <= 1 or indent + len(line) <= WIDTH:
            return broken_call(line, indent)
        lines = [f"{head}{receiver}.{steps[0]}"]
        lines += [f"{'' if is_in_place(s) else f'{name} = '}{name}.{s}" for s in steps[1:]]
        return tuple(part for line in lines for part in broken_call(line, indent))

    def in_place(self, name: str, value: Expr, last: bool = True) -> list[str] | None:
        """The calls that turn `name` into the value without a second tensor; None if none do.

        Only the first call may read `name` in its other operands: later ones would see it changed.
        What is stored keeps its shape and dtype, so only its last call may meet another dtype.
        """
        match value:
            case Ref(name=other):
                return [] if other == name else None
            case Apply(args=(receiver, *others)) if self.has_method(value) and (
                keeps_shape(value)
                or (name in self.stored and (last or value.kind is not Kind.MATRIX))
            ):
                before = self.in_place(name, receiver, last=False)
                if before is None:
                    return None
                if before and any(mentions(o, name) for o in others):
                    return None
                return [*before, self.method(value, in_place=True)]
            case _:
                return None

    def has_method(self, value: Apply) -> bool:
        """Whether torch has a call on the first operand, which can also work in place."""
        spelling = OPS[value.op].torch
        return isinstance(spelling, Method) and spelling.in_place and is_tensor(value.args[0])

    def method(self, value: Apply, in_place: bool) -> str:
        """The call on the first operand: `lerp_(grad, 1 - beta1)`."""
        spelling = OPS[value.op].torch
        assert isinstance(spelling, Method)
        arguments = [bare(self.operand(a)) for a in value.args[1:]]
        if spelling.scale == "value" and value.args[-1] == Const(1):
            arguments.pop()  # torch's default
        elif spelling.scale:
            arguments[-1] = f"{spelling.scale}={arguments[-1]}"
        return f"{spelling.name}{'_' if in_place else ''}({', '.join(arguments)})"

    def operand(self, expr: Expr) -> str:
        """What an operator on numbers takes: a mask is 0 or 1 there."""
        if is_scalar(expr):
            return self.scalar(expr)
        return self.value(expr) + (f".{AS_NUMBER}" if type_of(expr) is Type.BOOL else "")

    def mask(self, expr: Expr) -> str:
        """What takes a mask: a condition on numbers is one for all elements."""
        if is_scalar(expr):
            return f"torch.tensor({self.scalar(expr)}, device=param.device)"
        return self.value(expr)

    def value(self, expr: Expr) -> str:
        """A tensor's text; a number becomes a zero-dimensional one."""
        receiver, steps = self.parts(expr)
        return receiver + "".join(f".{s}" for s in steps)

    def parts(self, expr: Expr) -> tuple[str, list[str]]:
        """Receiver and calls. Calls on a fresh tensor work in place."""
        if is_scalar(expr):
            return f"param.new_tensor({self.scalar(expr)})", []
        match expr:
            case Ref(name=name):
                return name, []
            case Const():
                raise AssertionError("a literal is a number")
            case Apply(op="transpose", args=(operand,)):
                return f"{self.value(operand)}.mT", []
            case Apply(op="cast", args=(operand, Const(value=dtype))):
                receiver, steps = self.parts(operand)
                return receiver, [*steps, f"to(torch.{dtype}, copy=True)"]
            case Apply(op="addmm", args=(*tensors, beta, alpha)):
                operands = [bare(self.value(t)) for t in tensors]
                scales = [f"beta={self.scalar(beta)}", f"alpha={self.scalar(alpha)}"]
                return f"torch.addmm({', '.join((*operands, *scales))})", []
            case Apply(op="full_like", args=(_, value)) if is_tensor(value):
                return self.value(value), ["expand_as(param)", "clone()"]
            case Apply(op="rdiv", args=(scale, divisor)):
                receiver, steps = self.parts(divisor)
                return receiver, [
                    *steps, f"reciprocal{'_' if steps else ''}()", f"mul_({self.scalar(scale)})",
                ]  # fmt: skip
            case Apply(op="sub", args=(scale, tensor)) if is_scalar(scale):
                return f"torch.rsub({self.value(tensor)}, {self.scalar(scale)})", []
            case Apply(op="max" | "min" as op, args=(left, right)):
                return self.extremum(op, left, right)
            case Apply(op="where", args=(mask, then, other)) if is_scalar(then) and is_scalar(
                other
            ):
                # torch.where would give two numbers the default dtype, not the parameter's.
                start = f"param.new_tensor({self.scalar(then)})"
                return f"{start}.where({bare(self.mask(mask))}, {self.scalar(other)})", []
            case Apply(op="where", args=(mask, then, orelse)):
                items = (self.mask(mask), self.operand(then), self.operand(orelse))
                return f"torch.where({', '.join(map(bare, items))})", []
            case Apply(args=(receiver, *_)) if self.has_method(expr):
                text, steps = self.parts(receiver)
                steps = [*steps, AS_NUMBER] if type_of(receiver) is Type.BOOL else steps
                fresh = bool(steps) or shown(receiver) is None
                return text, [*steps, self.method(expr, in_place=fresh and keeps_shape(expr))]
            case Apply(op=op, args=args):
                return self.generic(op, args, expr), []

    def extremum(self, op: str, left: Expr, right: Expr) -> tuple[str, list[str]]:
        """torch has a call for two tensors and one for a tensor and a bound."""
        if is_tensor(left) and is_tensor(right):
            return f"torch.{op}imum({self.value(left)}, {self.value(right)})", []
        tensor, bound = (left, right) if is_tensor(left) else (right, left)
        receiver, steps = self.parts(tensor)
        suffix = "_" if steps else ""
        return receiver, [*steps, f"{CLAMPS[op]}{suffix}({self.scalar(bound)})"]

    def generic(self, op: str, args: tuple[Expr, ...], expr: Apply) -> str:
        """Reductions, comparisons and logic: no in-place form."""
        spelling = OPS[op].torch
        logical = OPS[op].operands[0] is Type.BOOL
        first, *rest = (self.mask(a) if logical else self.operand(a) for a in args)
        if not isinstance(spelling, Infix):
            rest = list(map(bare, rest))
        match spelling:
            case KeepDim(name=name):
                return f"{first}.{name}(dim={rest[0]}, keepdim=True)"
            case Method(name=name) if is_scalar(args[0]):
                return f"torch.{name}({', '.join((first, *rest))})"
            case Method(name=name):
                return f"{first}.{name}({', '.join(rest)})"
            case Call(name=name):
                return f"{name}({', '.join((first, *rest))})"
            case Infix(symbol=symbol):
                left, right = (
                    f"({text})" if is_scalar(a) and is_choice(a) else text
                    for a, text in zip(args, (first, *rest), strict=True)
                )
                return f"({left} {symbol} {right})"
            case _:
                raise unsupported(f"'{op}' is not supported on tensors.", expr.span)


def is_choice(expr: Expr) -> bool:
    """Whether Python writes a number as `a if c else b`, which binds weakest."""
    return isinstance(expr, Apply) and expr.op in ("where", "select")


def is_in_place(call: str) -> bool:
    return call.partition("(")[0].endswith("_")


def keeps_shape(value: Apply) -> bool:
    """Whether the result fits into the first operand, in shape and dtype: a norm times a tensor
    does not. Rows times columns are a matrix, and a matrix may have a dtype of its own."""
    receiver, *others = value.args
    if kind_of(receiver) in (Kind.FACTORED, Kind.MATRIX):
        return all(kind_of(o) <= Kind.REDUCED for o in others)
    return kind_of(receiver) == value.kind


def bare(text: str) -> str:
    """An argument needs no parentheses of its own."""
    wrapped = text.startswith("(") and text.endswith(")") and last_bracket(text) == 0
    return text[1:-1] if wrapped else text
