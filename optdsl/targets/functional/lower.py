"""Spec -> View: the update of one tensor as plain expressions, which write nothing in place.

Numbers may be tensors: hyperparameters that gradients flow to, and scalar slots where the host must
not read them. What Python's operators do not do for both alike is a call of the module `_numbers`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from optdsl import passes, printing
from optdsl.diagnostics import unsupported
from optdsl.ir import (
    Apply,
    Assign,
    Const,
    Expr,
    Let,
    Ref,
    Repeat,
    Role,
    Spec,
    Stage,
    Stmt,
    expressions,
    is_scalar,
    kind_of,
    map_expr,
    refs,
    statements,
    type_of,
    walk,
)
from optdsl.ops import (
    OPS,
    Attribute,
    Call,
    Infix,
    KeepDim,
    Kind,
    Level,
    Method,
    Op,
    Prefix,
    Spelling,
    Type,
)
from optdsl.passes.branches_to_where import changing_numbers, depends
from optdsl.passes.liveness import shown
from optdsl.passes.stages import TOTALS, is_reduction
from optdsl.targets.functional.view import Method as MethodView
from optdsl.targets.functional.view import View
from optdsl.targets.layout import WIDTH, bracketed, broken_assignment, broken_call, indented
from optdsl.targets.torch_code import Lines, Writer, is_tensor, unpack

LOGIC = {"and": "both", "or": "either", "not": "negation"}


def lower(spec: Spec) -> View | None:
    """None for a derived optimizer, whose class inherits the base's update, for a routine, and
    where every gradient is sparse."""
    if spec.base is not None or spec.routine or spec.sparse.mode == "only":
        return None
    spec = passes.for_expressions(spec)
    names = tuple(s.name for s in spec.states)
    known: Lines = ()
    barriers = []
    for number, stage in enumerate(spec.barriers, start=1):
        result = _tuple(stage.reductions)
        method = f"_terms_{number}"
        barriers.append(_method(method, replace(spec, body=stage.body), known, result, stage))
        known += stage.reductions
    update = _method("_functional", spec, known, _tuple(("param", *names)))
    return View((*barriers, update), indented(_barriers(spec), 1))


def _method(
    name: str, spec: Spec, totals: Lines, result: str, stage: Stage | None = None
) -> MethodView:
    """A method that computes what a body does, of one parameter and of totals that are known."""
    writer = Functional(spec)
    first = () if stage is None else _first_values(stage)
    return MethodView(
        name=name,
        row=", ".join((*writer.row(), *totals)),
        unpack=indented((*unpack(spec, "_numbers.wide"), *writer.numbers()), 2),
        body=indented((*first, *writer.body(), f"return {result}"), 2),
    )


def _first_values(stage: Stage) -> Lines:
    """Who does not come to a total has no part in it."""
    always = {s.name for s in stage.body if isinstance(s, Let)}
    return tuple(f"{name} = None" for name in stage.reductions if name not in always)


def _barriers(spec: Spec) -> Lines:
    """What the methods before the update make, and by what."""
    entries = []
    for stage in spec.barriers:
        lets = {s.name: s.value for s in statements(stage.body) if is_reduction(s, TOTALS)}
        made = {n: v.op.removeprefix("all_") for n, v in lets.items() if isinstance(v, Apply)}
        named_ops = ", ".join(f'"{name}": "{made[name]}"' for name in stage.reductions)
        entries.append(f"{{{named_ops}}}")
    return (
        bracketed("barriers = (", entries, ",)" if len(entries) == 1 else ")", 4) if entries else ()
    )


def _tuple(names: Lines) -> str:
    return f"({names[0]},)" if len(names) == 1 else ", ".join(names)


class Functional(Writer):
    indent = 8
    in_order = True

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.decided = changing_numbers(spec.body)
        self.casts = any(n.op == "cast" for n in applied(spec))
        self.kept = {s.target.name for s in self.slot_changes() if self.is_rounded(s)}

    def row(self) -> Lines:
        """The names of what one parameter has: the slots in their order."""
        return ("param", "grad", *(s.name for s in self.spec.states))

    def numbers(self) -> Lines:
        """Scalar slots are read as float64; what is rounded between reads keeps its dtype."""
        return tuple(f"{n} = {n}.double()" for n in self.scalar_slots() if n not in self.kept)

    def is_rounded(self, change: Assign) -> bool:
        """Whether the slot's own dtype shows in this step: it is read behind a change that is not
        the counting of steps, which float32 and float64 do alike."""
        match change:
            case Assign(operator="add" | "sub", value=Const(value=int())):
                return False
        body = list(statements(self.spec.body))
        where = next(n for n, stmt in enumerate(body) if stmt is change)
        behind = {r.name for s in body[where + 1 :] for e in expressions(s) for r in refs(e)}
        return change.target.name in behind or any(isinstance(s, Repeat) for s in body)

    # Statements

    def real_views(self) -> Lines:
        names = ("param", "grad", *self.tensor_slots())
        return ("if param.is_complex():", *indented(views(names, "as_real")))

    def complex_views(self, stmt: Stmt) -> Lines:
        lines = views(self.step_tensors(stmt), "as_complex")
        return ("if row[0].is_complex():", *indented(lines))

    def change(self, stmt: Assign, indent: int) -> Lines:
        target, value = stmt.target, stmt.value
        if target.name not in self.kept:
            if stmt.operator:
                value = Apply(stmt.operator, (target, value), Kind.SCALAR)
            return assigned(target.name, self.text(value), indent)
        value_text = f"_numbers.like({target.name}, {self.text(value)})"
        if stmt.operator:
            own = Ref(target.name, Role.LOCAL, Kind.SCALAR)
            new = Apply(stmt.operator, (own, Ref(value_text, Role.LOCAL, Kind.SCALAR)), Kind.SCALAR)
            value_text = printing.show(new, printing.host)
        return assigned(target.name, value_text, indent)

    def scalar_assignment(self, name: str, kind: Kind, value: Expr, indent: int) -> Lines:
        return assigned(name, self.text(value), indent)

    def store(self, name: str, value: Expr, indent: int) -> Lines:
        if self.casts:
            value = map_expr(value, in_own_dtype)
        if is_scalar(value):
            text = f"_numbers.full_like({name}, {self.text(value)})"
        else:
            # A slot shares its storage with nothing.
            copies = name != "param" and shown(value) is not None
            text = self.text(value) + (".clone()" if copies else "")
            if any(isinstance(e, Apply) and e.op == "cast" for e in walk(value)):
                text = f"({text}).to(param.dtype)"
        return assigned(name, text, indent)

    def bind(self, name: str, value: Expr, copy: bool, indent: int) -> tuple[Lines, bool]:
        return assigned(name, like(value, self.text(value)), indent), True

    def one(self, expr: Expr) -> str:
        return self.text(expr)

    def scalar(self, expr: Expr) -> str:
        return self.text(expr)

    def condition(self, expr: Expr) -> str:
        """What decides a branch, which Python takes: a tensor is asked for its truth."""
        return self.show(expr, masks=False)

    # Expressions

    def text(self, expr: Expr) -> str:
        return self.show(expr, masks=True)

    def show(self, expr: Expr, masks: bool) -> str:
        """The text of an expression; without `masks` its logic is Python's."""

        def spell(node: Expr) -> Expr:
            match node:
                case Ref(name=name, role=Role.STATE) if name in self.kept:
                    return named(f"{name}.double()", node)
                case Apply(op="and" | "or" | "not") if not (masks and self.is_mask(node)):
                    return node
                case Apply(op="where" | "select", args=(mask, *_)) if is_scalar(
                    node
                ) and not self.is_mask(mask):
                    return node
                case Apply(op=op, args=args) if is_alike(OPS[op]):
                    return replace(node, args=tuple(map(as_number, args)))
                case Apply(args=args) if all(map(is_of_shape, args)):
                    return node
                case Apply():
                    return named(self.call(node), node)
                case _:
                    return node

        return printing.show(map_expr(printing.none_tests(map_expr(expr, unset)), spell), python)

    def is_mask(self, expr: Expr) -> bool:
        """Whether a condition has a value for each element, or is a tensor without dimensions."""
        return not is_scalar(expr) or depends(expr, self.decided)

    def call(self, node: Apply) -> str:
        """An operator that Python has no symbol for; its operands are spelled."""
        expected = OPS[node.op].operands
        args = [as_number(a) if t is Type.NUMBER else a
                for a, t in zip(node.args, expected, strict=True)]  # fmt: skip
        texts = [printing.show(a, python) for a in args]
        match node:
            case Apply(op="and" | "or" | "not" as op):
                return f"_numbers.{LOGIC[op]}({', '.join(texts)})"
            case Apply(op="where" | "select", args=(mask, then, orelse)):
                return choice(mask, then, orelse, texts)
            case Apply(op="max" | "min" as op):
                module = "torch" if all(map(is_tensor, args)) else "_numbers"
                return f"{module}.{op}imum({', '.join(texts)})"
            case Apply(op="lerp"):
                ends = [like(e, t) for e, t in zip(args[:2], texts, strict=False)]
                return f"_numbers.lerp({', '.join((*ends, texts[2]))})"
            case Apply(op="full_like" | "addmm" as op):
                return f"_numbers.{op}({', '.join(texts)})"
            case Apply(op="cast", args=(tensor, Const(value=dtype))):
                return f"{receiver(tensor)}.to(torch.{dtype}, copy=True)"
            case Apply(op="host", args=(tensor,)):
                return f"{receiver(tensor)}.double()"
            case Apply(op=op, args=(operand,)) if is_scalar(operand):
                return f"_numbers.{op}({texts[0]})"
            case Apply():
                return in_torch(node, receiver(args[0]), texts)


def choice(mask: Expr, then: Expr, orelse: Expr, texts: list[str]) -> str:
    if is_scalar(mask):
        return f"_numbers.choose({', '.join(texts)})"
    if is_scalar(then) and is_scalar(orelse):
        # torch would give two numbers the default dtype, not the parameter's.
        return f"_numbers.where({', '.join(texts)}, param)"
    return f"torch.where({', '.join(texts)})"


def in_torch(node: Apply, first: str, texts: list[str]) -> str:
    """The torch column's call or attribute of a tensor."""
    match OPS[node.op].torch:
        case Attribute(name=name):
            return f"{first}.{name}"
        case KeepDim(name=name):
            return f"{first}.{name}(dim={texts[1]}, keepdim=True)"
        case Method(name=name):
            return f"{first}.{name}({', '.join(texts[1:])})"
        case Call(name=name):
            return f"{name}({', '.join(texts)})"
        case _:
            raise unsupported(f"'{node.op}' is not supported on tensors.", node.span)


def python(op: Op) -> Spelling | None:
    return op.torch if op.name == "matmul" else op.host


def is_alike(op: Op) -> bool:
    """Whether Python spells it alike for numbers and tensors, as it does symbols but for logic."""
    spelling = python(op)
    symbol = isinstance(spelling, Infix | Prefix) and spelling.level >= Level.COMPARE
    return symbol or spelling == Call("abs")


def is_of_shape(expr: Expr) -> bool:
    """Whether it is a number for certain: a literal, or what a parameter's properties give."""
    return is_scalar(expr) and all(r.role is Role.PROPERTY for r in refs(expr))


def like(expr: Expr, text: str) -> str:
    """What must be a tensor: a number becomes one."""
    return f"_numbers.like(param, {text})" if is_scalar(expr) else text


def in_own_dtype(node: Expr) -> Expr:
    """What was cast meets a stored tensor in that one's dtype."""
    if isinstance(node, Ref) and node.kind is Kind.MATRIX:
        return named(f"{node.name}.to(param.dtype)", node)
    return node


def applied(spec: Spec) -> Iterator[Apply]:
    nodes = (n for s in statements(spec.body) for e in expressions(s) for n in walk(e))
    return (n for n in nodes if isinstance(n, Apply))


def assigned(name: str, value: str, indent: int) -> Lines:
    """`name = value`, over several lines where it is long: a call by its arguments."""
    lines = broken_assignment(name, value, indent)
    if all(indent + len(line) <= WIDTH for line in lines):
        return lines
    return broken_call(f"{name} = {value}", indent)


def unset(node: Expr) -> Expr:
    """unset(slot) -> slot is None"""
    match node:
        case Apply(op="unset", args=(Ref(name=name, role=Role.STATE),)):
            return Ref(f"{name} is None", Role.LOCAL, Kind.HYPER, Type.BOOL)
        case _:
            return node


def named(text: str, node: Expr) -> Ref:
    """A spelled expression, as a name for what is around it."""
    return Ref(text, Role.LOCAL, kind_of(node), type_of(node))


def as_number(expr: Expr) -> Expr:
    """What an operator on numbers takes: a mask is 0 or 1 there."""
    if is_scalar(expr) or type_of(expr) is not Type.BOOL:
        return expr
    return named(f"{receiver(expr)}.to(param.dtype)", expr)


def receiver(expr: Expr) -> str:
    """An expression's text in front of a dot."""
    text = printing.show(expr, python)
    return text if isinstance(expr, Ref) else f"({text})"


def views(names: Iterable[str], view: str) -> Iterator[str]:
    return (f"{name} = {view}({name})" for name in names)
