"""A call of a schedule, `Warmup(step, lr, warmup=100)` -> its closed form, with the arguments put
in the place of its names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from optdsl import ir, syntax
from optdsl.diagnostics import Code, Log, did_you_mean
from optdsl.ir import Base, Hyper, Keep, Schedule, Spec, Unit
from optdsl.ops import Kind, Type
from optdsl.passes.specialise import settled
from optdsl.printing import show_source
from optdsl.resolve.words import TYPES, type_of, type_phrase
from optdsl.source import Span


@dataclass(frozen=True, slots=True)
class Others:
    """The definitions beside the one that is resolved: those that are known, and the names of all,
    some of which may be in error."""

    known: Mapping[str, Unit] = field(default_factory=dict)
    defined: Mapping[str, syntax.Definition] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.known or name in self.defined

    @property
    def schedules(self) -> dict[str, Schedule]:
        return {n: u for n, u in self.known.items() if isinstance(u, Schedule)}

    @property
    def names(self) -> tuple[str, ...]:
        """What can be called, or could but for errors in it."""
        defined = (n for n, d in self.defined.items() if d.keyword == "schedule")
        return tuple(dict.fromkeys((*self.schedules, *defined)))

    def keyword(self, name: str) -> str:
        """What another definition is."""
        if name in self.defined:
            return self.defined[name].keyword
        unit = self.known[name]
        if isinstance(unit, Spec):
            return "optimizer"
        return "schedule" if isinstance(unit, Schedule) else "average"


@dataclass(frozen=True, slots=True)
class ClosedForm:
    """The rate, and the schedule's conditions on what it was given."""

    value: ir.Expr
    requires: tuple[ir.Require, ...]


Argument = tuple[ir.Expr, Span]
Keyword = tuple[syntax.Name, ir.Expr, Span]


def closed_form(
    schedule: Schedule,
    node: syntax.CallExpr,
    arguments: Sequence[Argument],
    keywords: Sequence[Keyword],
    log: Log,
) -> ClosedForm | None:
    """The closed form of a schedule for arguments; None after an error."""
    if not _is_function(schedule, node, log):
        return None
    values = _bound(schedule, node, arguments, keywords, log)
    if values is None:
        return None
    inside = _Inside(schedule, values)
    assert schedule.closed is not None
    value = inside(schedule.closed)
    requires = tuple(
        replace(r, condition=inside(r.condition), message=_message(r, inside), hypers=())
        for r in schedule.requires
    )
    return ClosedForm(replace(value, span=node.span), requires)


def _is_function(schedule: Schedule, node: syntax.CallExpr, log: Log) -> bool:
    """Whether the rate is an expression of the epoch and of numbers."""
    name, span = schedule.name, node.function.span
    if schedule.closed is None:
        log.error(
            Code.UNSUPPORTED, f"'{name}' has no closed form: only such a schedule can be called.",
            span, related=((schedule.span, "the schedule"),),
        )  # fmt: skip
        return False
    if schedule.phases or any(k.keep is Keep.GROUP for k in schedule.kept):
        log.error(
            Code.UNSUPPORTED,
            f"'{name}' keeps values in the parameter groups: it cannot be called.", span,
            related=((schedule.span, "the schedule"),),
        )  # fmt: skip
        return False
    for hyper in schedule.hypers:
        if hyper.type.many or hyper.type.base is Base.FUNCTION or hyper.components:
            what = "tuple" if hyper.components else "list" if hyper.type.many else "function"
            if hyper.default is None:
                log.error(
                    Code.UNSUPPORTED, f"'{name}' needs the {what} '{hyper.name}': it cannot be "
                    "called.", span, related=((hyper.span, "declared here"),),
                )  # fmt: skip
                return False
    return True


def _bound(
    schedule: Schedule,
    node: syntax.CallExpr,
    arguments: Sequence[Argument],
    keywords: Sequence[Keyword],
    log: Log,
) -> dict[str, ir.Expr] | None:
    """A value for each name of the schedule that is given or has a default."""
    name = schedule.name
    hypers = {h.name: h for h in schedule.hypers if h.name != "base_lr"}
    if len(arguments) != 2:
        example = "".join(f", {h.name}=..." for h in hypers.values() if h.default is None)
        log.error(
            Code.ARITY, f"'{name}' takes the step and the first rate, then what has a name.",
            node.span, hints=(f"Write: {name}(step - 1, lr{example})",),
        )  # fmt: skip
        return None
    right = [_fits(value, Type.NUMBER, span, "a number", log) for value, span in arguments]
    values = {"t": arguments[0][0], "base_lr": arguments[1][0]}
    for keyword, value, span in keywords:
        hyper = hypers.get(keyword.text)
        if hyper is None:
            log.error(
                Code.UNKNOWN_NAME, f"'{name}' has no '{keyword.text}'.", keyword.span,
                hints=did_you_mean(keyword.text, hypers)
                or ((f"It has {', '.join(hypers)}.",) if hypers else ()),
            )  # fmt: skip
            right.append(False)
        elif keyword.text in values:
            log.error(Code.DUPLICATE, f"'{keyword.text}' is given twice.", keyword.span)
            right.append(False)
        else:
            right.append(_fits_hyper(value, hyper, span, log))
            values[keyword.text] = value
    for hyper in hypers.values():
        if hyper.name in values or not all(right):
            continue
        if hyper.default is None:
            log.error(
                Code.ARITY, f"'{name}' needs '{hyper.name}'.", node.span,
                related=((hyper.span, "declared here"),),
                hints=(f"Add: {hyper.name}=...",),
            )  # fmt: skip
            right.append(False)
        else:
            values[hyper.name] = decided(hyper.default, values)
    return values if all(right) else None


def _fits_hyper(value: ir.Expr, hyper: Hyper, span: Span, log: Log) -> bool:
    phrase = type_phrase(hyper.type)
    if isinstance(value, ir.Const) and hyper.type.choices:
        if value.value in hyper.type.choices:
            return True
        log.error(Code.WRONG_TYPE, f"'{hyper.name}' is {phrase}.", span)
        return False
    return _fits(value, type_of(hyper.type), span, phrase, log)


def _fits(value: ir.Expr, expected: Type, span: Span, phrase: str, log: Log) -> bool:
    found = ir.type_of(value)
    if not ir.is_scalar(value):
        log.error(Code.WRONG_KIND, "A schedule computes with numbers, this is a tensor.", span)
        return False
    if found is not expected:
        log.error(Code.WRONG_TYPE, f"This is {TYPES[found]}, not {phrase}.", span)
        return False
    return True


class _Inside:
    """Expressions of a schedule -> of its caller."""

    def __init__(self, schedule: Schedule, values: Mapping[str, ir.Expr]) -> None:
        self.values = dict(values)
        self.names = {let.name: let.value for let in schedule.lets}
        self.names |= {k.name: k.initial for k in schedule.kept}

    def __call__(self, expr: ir.Expr) -> ir.Expr:
        for ref in ir.refs(expr):
            if ref.name in self.names and ref.name not in self.values:
                self.values[ref.name] = self(self.names[ref.name])
        return decided(expr, self.values)


def decided(expr: ir.Expr, values: Mapping[str, ir.Expr]) -> ir.Expr:
    """The expression with values in the place of names, without the choices that they decide.
    Nothing else is computed."""

    def put(node: ir.Expr) -> ir.Expr:
        match node:
            case ir.Ref(name=name):
                return values.get(name, node)
            case ir.Apply(op="unset", args=(ir.Const(value=value),)):
                return ir.Const(value is None, span=node.span)
            case ir.Apply(op="unset"):
                return ir.Const(False, span=node.span)  # what was given is read, so it has a value
            case ir.Apply(
                op="eq" | "ne" as op, args=(ir.Const(value=str() as left), ir.Const(value=right))
            ):
                return ir.Const((left == right) == (op == "eq"), span=node.span)
            case ir.Apply(op="select", args=(condition, then, orelse)) if not isinstance(
                condition, ir.Const
            ):
                sides = (supposed(then, condition, True), supposed(orelse, condition, False))
                if sides == (then, orelse):
                    return node
                return ir.apply(
                    "select", condition, *(decided(s, {}) for s in sides), span=node.span
                )
            case _:
                return settled(node)

    return ir.map_expr(expr, put)


def supposed(expr: ir.Expr, condition: ir.Expr, truth: bool) -> ir.Expr:
    """The expression where a condition holds, or does not."""
    return ir.map_expr(expr, lambda e: ir.Const(truth, span=e.span) if e == condition else e)


def _message(require: ir.Require, inside: _Inside) -> str:
    """The message, in the words of the caller."""

    def shown(name: re.Match[str]) -> str:
        match inside(ir.Ref(name[1], ir.Role.LOCAL, Kind.SCALAR)):
            case ir.Ref(name=other):
                return f"{{{other}}}"
            case value:  # a message is a text, so it has no other in its quotes
                return show_source(value).replace('"', "'")

    return re.sub(r"{([^{}]+)}", shown, require.message)
