"""syntax.Expr -> ir.Expr: names bound, kinds inferred, operands checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import assert_never

from optdsl import ir, syntax
from optdsl.diagnostics import Code, Log, did_you_mean
from optdsl.ir import Hyper, Role
from optdsl.ops import ALONG, BINARY, DTYPES, FUNCTIONS, OPS, PROPERTIES, Kind, Rule, Type
from optdsl.resolve.calls import Others, closed_form
from optdsl.resolve.scope import Scope
from optdsl.resolve.words import TYPES, article, count, spoken
from optdsl.source import Span

CONSTANTS = {"pi": math.pi, "inf": math.inf}
LARGEST_INTEGER = 2**53
# Rules of what stands in a slot's first value only.
INITIAL = (Rule.INITIAL, Rule.INITIAL_ALONG)
# What only schedules compute, and the conditions of optimizers: its operands are no tensors even
# where steps stay on the device.
OF_SCHEDULES = frozenset({"call", "count", "reached", "floor_log", "is_integer", "is_number"})
# What takes matrices: its first three operands are some.
MATRICES = ("matmul", "transpose", "addmm")


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the definition itself: a call is replaced by the value."""

    parameters: tuple[str, ...]
    value: ir.Expr | None  # None after an error in it


class ExpressionResolver:
    """Binds expressions in a scope. Every method that gives None has reported why."""

    # The operators that take texts, too.
    of_texts: tuple[str, ...] = ("eq", "ne")

    def __init__(
        self, definition: syntax.Definition, log: Log, others: Others | None = None
    ) -> None:
        self.definition = definition
        self.log = log
        self.others = others or Others()
        self.scope = Scope()
        self.hypers: list[Hyper] = []
        self.functions: dict[str, Function] = {}
        # Where names are declared that are known from there on only.
        self.declared_at: dict[str, Span] = {}
        # Hyperparameters, and parts of tuples, that may be None.
        self.optional: frozenset[str] = frozenset()
        # At this place: whether it is a slot's first value, or a `require`, which may ask how its
        # hyperparameters were given; whether all parameters come here together; names that may have
        # been assigned, names that may be unset, conditions known to hold, and those under which
        # slots exist.
        self.in_state = False
        self.in_require = False
        # Why a parameter may come here without the others, and how to have a total nevertheless.
        self.alone: tuple[str, str] | None = None
        self.assigned: frozenset[str] = frozenset()
        self.unset: frozenset[str] = frozenset()
        self.guards: frozenset[ir.Expr] = frozenset()
        self.whens: dict[str, ir.Expr] = {}

    def expr(self, node: syntax.Expr) -> ir.Expr | None:
        """The bound expression; None after an error."""
        match node:
            case syntax.Name():
                return self._name(node)
            case syntax.Number():
                return self._number(node)
            case syntax.Text(value=value) | syntax.Truth(value=value):
                return ir.Const(value, span=node.span)
            case syntax.Unset():
                self.log.error(
                    Code.NOT_ASSIGNABLE,
                    "'unset' is a slot's first value or an optional default only.", node.span,
                )  # fmt: skip
                return None
            case syntax.Unary(operator=operator):
                return self.operation("neg" if operator == "-" else "not", (node.operand,), node)
            case syntax.Binary(operator="and" | "or"):
                return self._logical(node)
            case syntax.Binary(operator=operator):
                return self.operation(BINARY[operator].name, (node.left, node.right), node)
            case syntax.Comparison():
                return self._comparison(node)
            case syntax.Choice():
                return self._choice(node)
            case syntax.CallExpr():
                return self._call(node)
            case syntax.Property():
                return self._property(node)
            case syntax.TupleExpr():
                self.log.error(
                    Code.WRONG_TYPE, "A tuple stands only as the default of a tuple.", node.span
                )
                return None
            case _:
                assert_never(node)

    # Leaves

    def _name(self, node: syntax.Name) -> ir.Expr | None:
        if node.text in CONSTANTS:
            return ir.Const(CONSTANTS[node.text], node.text, node.span)
        if node.text in self.scope.broken:
            return None
        known = self.scope.names.get(node.text)
        if known is None:
            self._refuse_unknown(node)
            return None
        parts = next((h.components for h in self.hypers if h.name == node.text), ())
        if parts:
            self.log.error(
                Code.WRONG_TYPE, f"'{node.text}' is a tuple.", node.span,
                hints=(f"Use its parts: {', '.join(parts)}.",),
            )  # fmt: skip
            return None
        self.check_exists(node)
        if node.text in self.unset:
            what = f"The slot '{node.text}'" if known.role is Role.STATE else f"'{node.text}'"
            hint = f"if unset({node.text}) {{ {node.text} = ... }} else {{ ... }}"
            if known.role is not Role.STATE:
                hint = f"... if unset({node.text}) else {node.text}"
            self.log.error(
                Code.READ_BEFORE_SET, f"{what} may be unset here.", node.span,
                hints=(f"Ask first: {hint}",),
            )  # fmt: skip
        return replace(known, span=node.span)

    def what(self, ref: ir.Ref) -> str:
        """What messages call a name."""
        return article(ref.role)

    def _refuse_early(self, node: syntax.Name, code: Code) -> bool:
        """Whether a name is declared further down, which is reported."""
        declared = self.declared_at.get(node.text)
        if declared is None or declared.start < node.span.start:
            return False
        self.log.error(
            code, f"'{node.text}' is not declared yet.", node.span,
            related=((declared, "declared here"),), hints=("Move its line up.",),
        )  # fmt: skip
        return True

    def _refuse_unknown(self, node: syntax.Name) -> None:
        if self._refuse_early(node, Code.UNKNOWN_NAME):
            return
        hints = did_you_mean(node.text, (*self.scope.names, *CONSTANTS))
        if node.text in FUNCTIONS:
            hints = (f"'{node.text}' is a function: {node.text}(...).",)
        if node.text in ("True", "False"):
            hints = (f"Write '{node.text.lower()}'.",)
        self.log.error(
            Code.UNKNOWN_NAME, f"Unknown name '{node.text}'.", node.span,
            "not a slot, hyperparameter or local name", hints=hints,
        )  # fmt: skip

    def check_exists(self, node: syntax.Name) -> None:
        """A slot is used only where its `when` holds."""
        when = self.whens.get(node.text)
        if when is None or when in self.guards:
            return
        is_slot = self.definition.keyword == "optimizer"
        what = f"The slot '{node.text}'" if is_slot else f"'{node.text}'"
        message = f"{what} exists only when {' '.join(when.span.text.split())}."
        if any(d.message == message for d in self.log.diagnostics):
            return  # once is enough: one `if` repairs all places
        self.log.error(
            Code.READ_BEFORE_SET,
            message,
            node.span,
            related=((when.span, "this condition"),),
            hints=(f"Use it inside: if {when.span.text} {{ ... }}",)
            if is_slot
            else (f"Use it where that holds: ... when {when.span.text}",),
        )

    def _number(self, node: syntax.Number) -> ir.Expr | None:
        is_integer = node.text.isdigit()
        if is_integer and len(node.text) > 1 and node.text.startswith("0"):
            self.log.error(
                Code.NUMBER_RANGE, "This integer begins with a zero.", node.span,
                hints=(f"Write it as {node.text.lstrip('0')[:20] or '0'}.",),
            )  # fmt: skip
            return None
        # Beyond 2**53 float64 skips integers, and beyond 4,300 digits Python refuses to convert.
        if len(node.text) > 400 or (is_integer and int(node.text) > LARGEST_INTEGER):
            what = "integer is larger" if is_integer else "number has more digits"
            self.log.error(
                Code.NUMBER_RANGE, f"This {what} than float64 holds exactly.", node.span,
                notes=(f"The largest integer is 2**53 = {LARGEST_INTEGER}.",),
                hints=("Write it as a real number, such as 1e20.",),
            )  # fmt: skip
            return None
        value = int(node.text) if is_integer else float(node.text)
        if math.isinf(value):
            self.log.error(
                Code.NUMBER_RANGE, "This number is larger than float64 holds.", node.span,
                hints=("For infinity write 'inf'.",),
            )  # fmt: skip
            return None
        return ir.Const(value, span=node.span)

    def _property(self, node: syntax.Property) -> ir.Expr | None:
        known = tuple(f"param.{p}" for p in PROPERTIES)
        written = f"{node.base.text}.{node.name.text}"
        if written not in known:
            self.log.error(
                Code.UNKNOWN_PROPERTY, f"Unknown property '{written}'.", node.span,
                hints=did_you_mean(written, known) or (f"There are {', '.join(known)}.",),
            )  # fmt: skip
            return None
        if "param" not in self.scope.names and not self.in_require:
            self.log.error(
                Code.UNKNOWN_NAME, "There is no parameter here.", node.span,
                hints=("Slots, conditions and updates of optimizers read its properties.",),
            )  # fmt: skip
            return None
        if node.index and str(_index(node.index)) != node.index:
            self.log.error(
                Code.WRONG_TYPE, "A dimension is an integer.", node.span,
                hints=("Write: param.shape[-1]",),
            )  # fmt: skip
            return None
        if (node.name.text == "shape") != bool(node.index):
            self.log.error(
                Code.WRONG_TYPE, "'param.shape' takes an index, nothing else does.", node.span,
                hints=("Write: param.shape[-1]",),
            )  # fmt: skip
            return None
        name = f"{written}[{node.index}]" if node.index else written
        return ir.Ref(name, Role.PROPERTY, Kind.SCALAR, PROPERTIES[node.name.text].type, node.span)

    # Conditions: what stands behind one may rely on it

    def _logical(self, node: syntax.Binary) -> ir.Expr | None:
        left = self.expr(node.left)
        unset = self.unset
        self.unset = unset - known_set(left, node.operator == "and")
        right = self.expr(node.right)
        self.unset = unset
        return self._checked(node.operator, [left, right], (node.left, node.right), node.span)

    def _choice(self, node: syntax.Choice) -> ir.Expr | None:
        condition = self.expr(node.condition)
        unset, guards = self.unset, self.guards
        self.unset = unset - known_set(condition, True)
        self.guards = guards | known(condition, True)
        then = self.expr(node.then)
        self.unset = unset - known_set(condition, False)
        self.guards = guards | known(condition, False)
        orelse = self.expr(node.orelse)
        self.unset, self.guards = unset, guards
        nodes = (node.condition, node.then, node.orelse)
        return self._checked("select", [condition, then, orelse], nodes, node.span)

    # Operations

    def _call(self, node: syntax.CallExpr) -> ir.Expr | None:
        name = node.function.text
        known_name = self.scope.names.get(name)
        if name in self.functions:
            return self._inlined(node, self.functions[name])
        if known_name is not None and known_name.type is Type.FUNCTION:
            return self._asked_function(node)
        if name == "unset":
            return self._unset(node)
        if name == "is_tensor":
            return self._is_tensor(node)
        if name in ALONG and (node.keywords or name not in FUNCTIONS):
            return self._along(node)
        if name in self.others:
            return self._scheduled(node)
        if node.keywords and name in FUNCTIONS:
            self.log.error(
                Code.ARITY, f"'{name}' takes no '{node.keywords[0].name.text}'.",
                node.keywords[0].span,
            )  # fmt: skip
            return None
        if name == "cast":
            return self._cast(node)
        if name in FUNCTIONS:
            return self.operation(FUNCTIONS[name].name, node.arguments, node)
        if self._refuse_early(node.function, Code.UNKNOWN_FUNCTION):
            return None
        hints = did_you_mean(name, (*FUNCTIONS, *self.functions, *self.others.names))
        if name in self.scope.names:
            role = article(self.scope.names[name].role)
            hints = (f"'{name}' is {role}. A product is written '{name} * (...)'.",)
        elif name in self.declared_at:
            hints = ("A function does not call itself.",)
        self.log.error(
            Code.UNKNOWN_FUNCTION, f"Unknown function '{name}'.", node.function.span, hints=hints
        )
        return None

    def _inlined(self, node: syntax.CallExpr, function: Function) -> ir.Expr | None:
        """A function of the definition: its value, with the arguments for the parameters."""
        arguments = self._arguments(node, len(function.parameters))
        if arguments is None or function.value is None:
            return None
        values = dict(zip(function.parameters, arguments, strict=True))
        return replace(substituted(function.value, values), span=node.span)

    def _asked_function(self, node: syntax.CallExpr) -> ir.Expr | None:
        """A function that the user gives: it takes one number."""
        function = self._name(node.function)
        arguments = self._arguments(node, 1)
        if function is None or arguments is None:
            return None
        return ir.apply("call", function, *arguments, span=node.span)

    def _scheduled(self, node: syntax.CallExpr) -> ir.Expr | None:
        """Another schedule as a function of the step: its closed form."""
        name = node.function.text
        schedule = self.others.schedules.get(name)
        if name not in self.others.names:
            self.log.error(
                Code.UNKNOWN_FUNCTION,
                f"'{name}' is {article(self.others.keyword(name))}: schedules are called.",
                node.function.span,
            )  # fmt: skip
            return None
        if schedule is None:
            self.log.elsewhere = True
            return None
        given = [self.expr(a) for a in node.arguments]
        named = [(k.name, self.expr(k.value), k.value.span) for k in node.keywords]
        if any(v is None for v in (*given, *(v for _, v, _ in named))):
            return None
        spans = [a.span for a in node.arguments]
        arguments = [(v, s) for v, s in zip(given, spans, strict=True) if v is not None]
        keywords = [(n, v, s) for n, v, s in named if v is not None]
        form = closed_form(schedule, node, arguments, keywords, self.log)
        if form is None:
            return None
        for require in form.requires:
            self.require_of_call(require, node.span)
        used = [e for e in ir.walk(form.value) if isinstance(e, ir.Apply) and e.op in OF_SCHEDULES]
        if used and not self.is_of_schedule:
            self.log.error(
                Code.UNSUPPORTED,
                f"'{name}' computes '{spoken(used[0].op)}': only schedules call it.",
                node.function.span, related=((schedule.span, "the schedule"),),
            )  # fmt: skip
            return None
        return form.value

    @property
    def is_of_schedule(self) -> bool:
        return self.definition.keyword == "schedule"

    def require_of_call(self, require: ir.Require, span: Span) -> None:
        """Hold a condition of a schedule that is called here."""
        raise NotImplementedError

    def _arguments(self, node: syntax.CallExpr, needed: int) -> tuple[ir.Expr, ...] | None:
        """The numbers that a function without keywords is given."""
        name, given = node.function.text, node.arguments
        values = [self.expr(a) for a in given]
        if node.keywords or len(given) != needed:
            wrong = node.keywords[0].span if node.keywords else node.span
            what = (
                f"no '{node.keywords[0].name.text}'"
                if node.keywords
                else (f"{count(needed, 'value')}, not {len(given)}")
            )
            self.log.error(Code.ARITY, f"'{name}' takes {what}.", wrong)
            return None
        numbers = tuple(
            v for v, a in zip(values, given, strict=True)
            if v is not None and self.expect_number(v, a.span)
        )  # fmt: skip
        return numbers if len(numbers) == needed else None

    def _along(self, node: syntax.CallExpr) -> ir.Expr | None:
        """norm(x, dim=-1)"""
        value = self.expr(node.arguments[0]) if len(node.arguments) == 1 else None
        dim = self.expr(node.keywords[0].value) if len(node.keywords) == 1 else None
        named = all(k.name.text == "dim" for k in node.keywords)
        is_int = isinstance(dim, ir.Const) and isinstance(dim.value, int)
        one_each = len(node.arguments) == len(node.keywords) == 1
        if not one_each or not named or (dim is not None and not is_int):
            self.log.error(
                Code.ARITY, f"'{node.function.text}' takes a tensor and a dimension.", node.span,
                hints=(f"Write: {node.function.text}(tensor, dim=-1)",),
            )  # fmt: skip
            return None
        nodes = (node.arguments[0], node.keywords[0].value)
        return self._checked(ALONG[node.function.text].name, [value, dim], nodes, node.span)

    def _cast(self, node: syntax.CallExpr) -> ir.Expr | None:
        """cast(x, bfloat16)"""
        match node.arguments:
            case (value_node, syntax.Name(text=text) as dtype) if text in DTYPES:
                value = self.expr(value_node)
                target = ir.Const(text, text, dtype.span)
                return self._checked("cast", [value, target], node.arguments, node.span)
            case _:
                self.log.error(
                    Code.ARITY, "'cast' takes a tensor and a dtype.", node.span,
                    hints=(f"A dtype is one of {', '.join(DTYPES)}.",),
                )  # fmt: skip
                return None

    def _unset(self, node: syntax.CallExpr) -> ir.Expr | None:
        match node.arguments:
            case (syntax.Name(text=text) as name,) if text in self.optional:
                return ir.Apply(
                    "unset",
                    (replace(self.scope.names[text], span=name.span),),
                    Kind.HYPER,
                    node.span,
                )
            case (syntax.Name(text=text) as name,) if (
                text in self.scope.names and self.scope.names[text].role is Role.STATE
            ):
                if text in self.assigned:
                    self.log.error(
                        Code.UNSUPPORTED, f"The slot '{text}' was assigned before this.", node.span,
                        hints=("Ask before the first assignment.",),
                    )  # fmt: skip
                slot = replace(self.scope.names[text], span=name.span)
                return ir.Apply("unset", (slot,), Kind.SCALAR, node.span)
            case _:
                self.log.error(
                    Code.WRONG_TYPE, "'unset' asks about one slot, or one optional hyperparameter.",
                    node.span, hints=("Write: unset(slot)",),
                )  # fmt: skip
                return None

    def _is_tensor(self, node: syntax.CallExpr) -> ir.Expr | None:
        """is_tensor(lr)"""
        match node.arguments:
            case (syntax.Name(text=text),) if (
                self.in_require
                and text in self.scope.names
                and self.scope.names[text].role is Role.HYPER
            ):
                return ir.Ref(text, Role.IS_TENSOR, Kind.OPTION, Type.BOOL, node.span)
            case _:
                self.log.error(
                    Code.WRONG_TYPE, "'is_tensor' asks about one hyperparameter, in a 'require'.",
                    node.span, hints=("Elsewhere a hyperparameter is read as a number.",),
                )  # fmt: skip
                return None

    def _comparison(self, node: syntax.Comparison) -> ir.Expr | None:
        values = [self.expr(operand) for operand in node.operands]
        result: ir.Expr | None = None
        for place, operator in enumerate(node.operators):
            nodes, pair = node.operands[place : place + 2], values[place : place + 2]
            span = nodes[0].span.to(nodes[1].span)
            link = self._checked(BINARY[operator].name, pair, nodes, span)
            if link is None:
                return None
            result = link if result is None else ir.apply("and", result, link, span=node.span)
        return result

    def operation(
        self, op: str, operands: tuple[syntax.Expr, ...], node: syntax.Expr | syntax.Stmt
    ) -> ir.Apply | ir.Const | None:
        values = [self.expr(operand) for operand in operands]
        needed = len(OPS[op].operands)
        if len(values) != needed:
            self.log.error(
                Code.ARITY, f"'{op}' takes {count(needed, 'value')}, not {len(values)}.", node.span
            )
            return None
        return self._checked(op, values, operands, node.span)

    def _checked(
        self,
        op: str,
        values: list[ir.Expr | None],
        nodes: tuple[syntax.Expr, ...],
        span: Span,
    ) -> ir.Apply | ir.Const | None:
        args = tuple(v for v in values if v is not None)
        if len(args) < len(values):
            return None
        fits = [
            self._operand(op, value, node.span, expected)
            for value, node, expected in zip(args, nodes, OPS[op].operands, strict=True)
        ]
        if (
            not all(fits)
            or not (op == "cast" or self._texts(op, args))
            or not self._kinds(op, args, span)
        ):
            return None
        match op, args:
            case "neg", (ir.Const(value=int() | float() as number, symbol=""),):
                return ir.Const(-number, span=span)
            case "div", (left, right) if ir.is_scalar(left) and not ir.is_scalar(right):
                op = "rdiv"
        return ir.apply(op, *args, span=span)

    def _operand(self, op: str, value: ir.Expr, span: Span, expected: Type) -> bool:
        found = ir.type_of(value)
        # A mask used as a number is 0 or 1; texts compare with texts.
        mask = expected is Type.NUMBER and found is Type.BOOL and not ir.is_scalar(value)
        text = op in self.of_texts and found is Type.TEXT
        if found is expected or mask or text:
            return True
        self.log.error(
            Code.WRONG_TYPE,
            f"'{spoken(op)}' takes {TYPES[expected]}, this is {TYPES[found]}.",
            span,
            hints=_conversion(found, expected, span),
        )
        return False

    def _texts(self, op: str, args: tuple[ir.Expr, ...]) -> bool:
        """A text compares with one of its choices."""
        texts = [x for x in args if ir.type_of(x) is Type.TEXT]
        if not texts:
            return True
        others = [x for x in args if ir.type_of(x) is not Type.TEXT]
        if op == "select":
            others = [x for x in args[1:] if ir.type_of(x) is not Type.TEXT]
            if others:
                found = TYPES[ir.type_of(others[0])]
                self.log.error(
                    Code.WRONG_TYPE, f"The other value is a text, this is {found}.", others[0].span
                )
            return not others
        if others:
            self.log.error(
                Code.WRONG_TYPE, f"'{spoken(op)}' compares a text with a text.", others[0].span
            )
            return False
        for name, constant in (args, args[::-1]):
            if not isinstance(name, ir.Ref) or not isinstance(constant, ir.Const):
                continue
            choices = next((h.type.choices for h in self.hypers if h.name == name.name), ())
            if choices and constant.value not in choices:
                known = " or ".join(f'"{c}"' for c in choices)
                self.log.error(
                    Code.WRONG_TYPE, f"'{name.name}' is never \"{constant.value}\".",
                    constant.span,
                    hints=did_you_mean(str(constant.value), choices) or (f"It is {known}.",),
                )  # fmt: skip
                return False
        return True

    def _kinds(self, op: str, args: tuple[ir.Expr, ...], span: Span) -> bool:
        rule = OPS[op].rule
        widest = max((ir.kind_of(x) for x in args), default=Kind.OPTION)
        if op in OF_SCHEDULES and not (self.is_of_schedule or self.in_require):
            self.log.error(
                Code.UNSUPPORTED, f"Only schedules compute '{spoken(op)}'.", span,
                hints=("Conditions behind 'require' may ask it, too.",)
                if op.startswith("is_") else (),
            )  # fmt: skip
            return False
        if rule is Rule.TOTAL and self.alone is not None:
            why, hint = self.alone
            self.log.error(
                Code.UNSUPPORTED, f"'{spoken(op)}' needs all parameters, but {why}.", span,
                hints=(hint,) if hint else (),
            )  # fmt: skip
            return False
        if rule is Rule.SCALAR_ONLY and widest > Kind.SCALAR:
            hints = ("Choose per element with where(mask, a, b).",) if op == "select" else ()
            message = f"'{spoken(op)}' works on numbers, not on tensors."
        elif rule in INITIAL and not self.in_state:
            hints = (f"Declare a slot: state name = {spoken(op)}(...)",)
            message = f"'{spoken(op)}' makes a slot's first value only."
        elif rule in INITIAL and not self._makes_slot(args):
            more = ", dim=-1" if rule is Rule.INITIAL_ALONG else ", value" if args[1:] else ""
            hints = (f"Write: {spoken(op)}(param{more})",)
            message = f"'{spoken(op)}' makes a slot's first value from 'param'."
        elif rule is Rule.HOST and widest != Kind.REDUCED:
            hints = ("Write: host(norm(tensor))",)
            message = "'host' reads one number per parameter: a reduction's."
        elif op == "addmm" and any(not ir.is_scalar(x) for x in args[3:]):
            hints = ("Write: addmm(x, a, b, beta, alpha)",)
            message = "The last two values of 'addmm' are numbers."
        elif op in MATRICES and any(ir.kind_of(x) < Kind.FACTORED for x in args[:3]):
            hints = ()
            message = f"'{spoken(op)}' works on matrices, this is a number."
        elif OPS[op].host is None and widest <= Kind.SCALAR:
            hints = ()
            message = f"'{spoken(op)}' works on tensors, this is a number."
        elif op == "lerp" and any(ir.is_scalar(x) for x in args[:2]):
            hints = ("Write: lerp(tensor, tensor, weight)",)
            message = "'lerp' goes from a tensor to a tensor."
        else:
            return True
        self.log.error(Code.WRONG_KIND, message, span, hints=hints)
        return False

    def _makes_slot(self, args: tuple[ir.Expr, ...]) -> bool:
        """zeros_like(param) and full_like(param, number)"""
        like, *values = args
        is_param = isinstance(like, ir.Ref) and like.role in (Role.PARAM, Role.GRAD)
        return is_param and all(ir.is_scalar(v) for v in values)

    # What a place expects

    def expect_bool(self, expr: ir.Expr, span: Span) -> bool:
        found = ir.type_of(expr)
        if found is Type.BOOL:
            return True
        self.log.error(
            Code.WRONG_TYPE, f"A condition is needed here, this is {TYPES[found]}.", span,
            hints=_conversion(found, Type.BOOL, span),
        )  # fmt: skip
        return False

    def expect_number(self, expr: ir.Expr, span: Span) -> bool:
        found = ir.type_of(expr)
        if found is Type.NUMBER or (found is Type.BOOL and not ir.is_scalar(expr)):
            return True
        self.log.error(
            Code.WRONG_TYPE, f"A number is needed here, this is {TYPES[found]}.", span,
            hints=_conversion(found, Type.NUMBER, span),
        )  # fmt: skip
        return False


def _index(text: str) -> int | None:
    return int(text) if text.removeprefix("-").isdigit() else None


def known_set(condition: ir.Expr | None, holds: bool) -> frozenset[str]:
    """The names that certainly have a value where the condition holds, or does not."""
    match condition, holds:
        case ir.Apply(op="unset", args=(ir.Ref(name=name),)), False:
            return frozenset({name})
        case ir.Apply(op="not", args=(operand,)), _:
            return known_set(operand, not holds)
        case (ir.Apply(op="and", args=(left, right)), True) | (
            ir.Apply(op="or", args=(left, right)),
            False,
        ):
            return known_set(left, holds) | known_set(right, holds)
        case _:
            return frozenset()


def known(condition: ir.Expr | None, holds: bool) -> frozenset[ir.Expr]:
    """The conditions that hold where this one does, or does not."""
    match condition, holds:
        case None, _:
            return frozenset()
        case ir.Apply(op="and", args=(left, right)), True:
            return known(left, True) | known(right, True) | {condition}
        case ir.Apply(op="not", args=(operand,)), _:
            return known(operand, not holds) | ({condition} if holds else frozenset())
        case ir.Apply(op="or", args=(left, right)), False:
            return known(left, False) | known(right, False)
        case _:
            assert condition is not None
            return frozenset({condition if holds else ir.apply("not", condition)})


def substituted(expr: ir.Expr, values: Mapping[str, ir.Expr]) -> ir.Expr:
    """The expression with values in the place of names."""

    def put(node: ir.Expr) -> ir.Expr:
        return values.get(node.name, node) if isinstance(node, ir.Ref) else node

    return ir.map_expr(expr, put)


def _conversion(found: Type, expected: Type, span: Span) -> tuple[str, ...]:
    text = span.text
    match found, expected:
        case Type.NUMBER, Type.BOOL:
            return (f"Compare it: {text} != 0" if text.isidentifier() else "Compare it: ... != 0",)
        case Type.BOOL, Type.NUMBER:
            number = f"1 if {text} else 0" if text.isidentifier() else "1 if ... else 0"
            return (f"Make it a number: {number}",)
        case _:
            return ()
