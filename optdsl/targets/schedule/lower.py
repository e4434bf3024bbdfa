"""Schedule -> View: a class that sets the rates of an optimizer's groups."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import assert_never

from optdsl import printing
from optdsl.diagnostics import SpecError, unsupported
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
    Repeat,
    Require,
    Role,
    Schedule,
    Stmt,
    apply,
    expressions,
    reads,
    refs,
    statements,
    walk,
)
from optdsl.ops import OPS, SYMBOLS, Infix
from optdsl.targets import latex, signature
from optdsl.targets.layout import INDENT, WIDTH, indented
from optdsl.targets.schedule.view import View
from optdsl.targets.signature import TYPES, is_dependent

Lines = tuple[str, ...]

# A method's body stands this deep.
BODY = 8
LAST_EPOCH = "last_epoch (int): the epoch to resume behind. Default: -1, a new schedule."


def lower(schedule: Schedule) -> View:
    writer = _Writer(schedule)
    by_metric = bool(schedule.body)
    parameters = tuple(_parameter(h) for h in schedule.hypers)
    arguments = [line for h in schedule.hypers for line in _argument(schedule, h)]
    view = View(
        summary=f"The learning-rate schedule {schedule.name}.",
        imports=(),
        name=schedule.name,
        base=_base(schedule),
        documentation=_documentation(schedule),
        arguments=(*arguments, *(() if by_metric else (LAST_EPOCH,))),
        closed_equations=_form_equations(schedule, schedule.closed),
        chain_equations=_form_equations(schedule, schedule.chain),
        update_equations=_update_equations(schedule),
        references=_references(schedule),
        parameters=(*parameters, *(() if by_metric else ("last_epoch: int = -1",))),
        construction=_construction(schedule),
        checks=_checks(schedule, writer),
        chain=writer.form(schedule.chain),
        closed=writer.form(schedule.closed),
        reset=writer.reset(),
        update=writer.update(),
    )
    return replace(view, imports=_imports(view))


def _base(schedule: Schedule) -> str:
    if schedule.body:
        return "MetricScheduler"
    return "ChainScheduler" if schedule.closed is None else "ClosedScheduler"


def _imports(view: View) -> Lines:
    text = "\n".join((*view.checks, *view.chain, *view.closed, *view.reset, *view.update))
    used = [view.base]
    used += ["Rate"] if view.chain or view.closed else []
    used += ["set_lr"] if "set_lr(" in text else []
    needs_math = "math." in text or any("math." in p for p in view.parameters)
    standard = ["import math"] if needs_math else []
    if any("Literal[" in p for p in view.parameters):
        standard.append("from typing import Literal")
    return (
        *standard,
        *([""] if standard else []),
        "from torch.optim import Optimizer",
        "",
        f"from ._scheduler import {', '.join(used)}",
    )


# The constructor


def _annotation(hyper: Hyper) -> str:
    base = TYPES[hyper.type.base]
    if hyper.components:
        return f"tuple[{', '.join(base for _ in hyper.components)}]"
    if hyper.type.choices:
        base = f"Literal[{', '.join(_quoted(c) for c in hyper.type.choices)}]"
    if hyper.type.per_group:
        base = f"{base} | list[{base}]"
    return f"{base} | None" if hyper.type.optional or is_dependent(hyper) else base


def _parameter(hyper: Hyper) -> str:
    default = signature.default(hyper)
    return f"{hyper.name}: {_annotation(hyper)}" + ("" if default is None else f" = {default}")


def _construction(schedule: Schedule) -> Lines:
    lines: list[str] = []
    given = ["optimizer"] if schedule.body else ["optimizer", "last_epoch"]
    for hyper in schedule.hypers:
        name = hyper.name
        if hyper.type.per_group:
            given.append(f"{name}={name}")
        elif is_dependent(hyper) and hyper.default is not None:
            other = printing.show(hyper.default, printing.host)
            lines.append(f"self.{name} = {other} if {name} is None else {name}")
        else:
            lines.append(f"self.{name} = {name}")
    return (*lines, f"super().__init__({', '.join(given)})")


# Checks


def _checks(schedule: Schedule, writer: _Writer) -> Lines:
    choices = (line for h in schedule.hypers for line in _choice_check(h))
    return (*choices, *(line for r in schedule.requires for line in _check(r, writer)))


def _choice_check(hyper: Hyper) -> Lines:
    if not hyper.type.choices:
        return ()
    value = f"self.{hyper.name}"
    choices = ", ".join(_quoted(c) for c in hyper.type.choices)
    message = f"{hyper.name.replace('_', ' ')} {{{value}}} is unknown!"
    return (f"if {value} not in ({choices}):", *indented(_raise(message, "f")))


def _check(require: Require, writer: _Writer) -> Lines:
    for ref in refs(require.condition):
        if ref.name in writer.per_group:
            raise unsupported(
                "A condition on a value per group is not supported.", ref.span,
                "Check it where it is used.",
            )  # fmt: skip
    match require.condition:
        # A formatter of style wants these so; with the others `not` also catches NaN.
        case Apply(op="eq", args=args):
            failed: Expr = apply("ne", *args)
        case Apply(op="ne", args=args):
            failed = apply("eq", *args)
        case condition:
            failed = apply("not", condition)
    message = require.message
    for name in require.hypers:
        message = message.replace(f"{{{name}}}", f"{{{writer.names.get(name, name)}}}")
    prefix = "f" if message != require.message else ""
    return (*writer.head("if", failed, 0), *indented(_raise(message, prefix)))


def _raise(message: str, prefix: str) -> Lines:
    text = prefix + _quoted(message)
    line = f"raise ValueError({text})"
    if BODY + 4 + len(line) <= WIDTH:
        return (line,)
    return ("raise ValueError(", INDENT + text, ")")


def _quoted(text: str) -> str:
    mark = "'" if '"' in text else '"'
    return f"{mark}{text}{mark}"


# Methods


class _Writer:
    """Expressions and statements -> lines of methods."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.per_group = tuple(h.name for h in schedule.hypers if h.type.per_group)
        self.names = {"initial": "self._is_initial"}
        for hyper in schedule.hypers:
            if not hyper.type.per_group:
                self.names[hyper.name] = f"self.{hyper.name}"
            for index, component in enumerate(hyper.components):
                self.names[component] = f"self.{hyper.name}[{index}]"
        self.names.update((s.name, f"self.{s.name}") for s in schedule.states)
        self.varying = self._varying()

    def show(self, expr: Expr) -> str:
        def leaf(node: Const | Ref) -> str:
            match node:
                case Ref(name=name):
                    return self.names.get(name, name)
                case _:
                    return printing.python_leaf(node)

        try:
            return printing.show(expr, printing.host, leaf)
        except printing.Unspellable as error:
            raise unsupported(
                f"'{error.expr.op}' has no meaning for numbers.", error.expr.span,
                "A schedule computes with numbers.",
            ) from None  # fmt: skip

    # Forms

    def form(self, form: Expr | None) -> Lines:
        """The body of a method that returns a form."""
        if form is None:
            return ()
        for ref in refs(form):
            if ref.name in self.per_group:
                raise unsupported(
                    f"'{ref.name}' has a value per group.", ref.span,
                    "Values per group stand in 'update' only.",
                )  # fmt: skip
        lets = needed(self.schedule.lets, refs(form))
        lines = [line for let in lets for line in self.assign(let.name, let.value, 0)]
        while isinstance(form, Apply) and form.op == "select" and not self._fits("return ", form):
            condition, value, form = form.args
            lines += self.head("if", condition, 0)
            lines += indented(self.line("return ", value, 4))
        return (*lines, *self.line("return ", form, 0))

    def _fits(self, prefix: str, expr: Expr, indent: int = 0) -> bool:
        """Whether an expression is one line, with one choice at most."""
        choices = [e for e in walk(expr) if isinstance(e, Apply) and e.op == "select"]
        return len(choices) <= 1 and BODY + indent + len(prefix + self.show(expr)) <= WIDTH

    def line(self, prefix: str, expr: Expr, indent: int) -> Lines:
        """`prefix` + an expression, in parentheses over several lines if it is long."""
        text = self.show(expr)
        if BODY + indent + len(prefix + text) <= WIDTH:
            return (prefix + text,)
        return (f"{prefix}(", *indented(self.operands(expr)), ")")

    def head(self, word: str, condition: Expr, indent: int) -> Lines:
        text = f"{word} {self.show(condition)}:"
        if BODY + indent + len(text) <= WIDTH:
            return (text,)
        return (f"{word} (", *indented(self.operands(condition)), "):")

    def operands(self, expr: Expr) -> Lines:
        """The operands of the weakest operators, a line each."""
        match expr:
            case Apply(op=op, args=(left, right)) if isinstance(OPS[op].host, Infix):
                spelling = OPS[op].host
                assert isinstance(spelling, Infix)
                whole, tail = self.show(expr), self.show(right)
                # The printer knows whether the right operand needs parentheses.
                tail = tail if whole.endswith(f"{spelling.symbol} {tail}") else f"({tail})"
                same = isinstance(left, Apply) and _level(left) is spelling.level
                before = self.operands(left) if same else (self.show(left),)
                return (*before, f"{spelling.symbol} {tail}")
            case _:
                return (self.show(expr),)

    def assign(self, target: str, value: Expr, indent: int) -> Lines:
        """A choice becomes branches where it is not one line."""
        if not (isinstance(value, Apply) and value.op == "select") or self._fits(
            f"{target} = ", value, indent
        ):
            return self.line(f"{target} = ", value, indent)
        lines: list[str] = []
        word = "if"
        while isinstance(value, Apply) and value.op == "select":
            condition, chosen, value = value.args
            lines += self.head(word, condition, indent)
            lines += indented(self.line(f"{target} = ", chosen, indent + 4))
            word = "elif"
        return (*lines, "else:", *indented(self.line(f"{target} = ", value, indent + 4)))

    # Updates

    def reset(self) -> Lines:
        """The body of the method that gives states their first values."""
        return tuple(
            line
            for s in self.schedule.states
            if s.initial is not None
            for line in self.assign(f"self.{s.name}", s.initial, 0)
        )

    def update(self) -> Lines:
        """The body of the method that takes a metric."""
        used = list(reads(self.schedule.body))
        lets = needed(self.schedule.lets, used)
        return self.block((*lets, *self.schedule.body), 0)

    def _varying(self) -> frozenset[str]:
        """The names that have a value per group."""
        varying = {"lr", *self.per_group}

        def visit(body: Iterable[Stmt], per_group: bool) -> None:
            for stmt in body:
                inside = per_group or any(self._reads(e, varying) for e in expressions(stmt))
                match stmt:
                    case Let(name=name) if inside:
                        varying.add(name)
                    case Assign(target=Ref(role=Role.LOCAL, name=name)) if inside:
                        varying.add(name)
                    case If():
                        visit((*stmt.then, *stmt.orelse), inside)
                    case _:
                        pass

        while True:
            before = len(varying)
            visit((*self.schedule.lets, *self.schedule.body), False)
            if len(varying) == before:
                return frozenset(varying)

    @staticmethod
    def _reads(expr: Expr, names: Iterable[str]) -> bool:
        return any(r.name in names for r in refs(expr))

    def is_per_group(self, stmt: Stmt) -> bool:
        """Whether all of a statement is about a group, so that it belongs in the loop."""
        match stmt:
            case Let(name=name):
                return name in self.varying
            case Assign(target=target, value=value):
                if target.role is Role.STATE and self._reads(value, self.varying):
                    raise self._shared(target)
                return target.name in self.varying
            case If(condition=condition):
                inside = (*stmt.then, *stmt.orelse)
                if self._reads(condition, self.varying):
                    for inner in statements(inside):
                        if isinstance(inner, Assign) and inner.target.role is Role.STATE:
                            raise self._shared(inner.target)
                    return True
                return all(self.is_per_group(inner) for inner in inside)
            case Descend() | Repeat():
                raise AssertionError("resolve refuses it in a schedule")
            case _:
                assert_never(stmt)

    @staticmethod
    def _shared(target: Ref) -> SpecError:
        return unsupported(
            f"The state '{target.name}' is shared by all groups, this depends on one of them.",
            target.span,
            "States change with the metric and with other states.",
        )

    def block(self, body: Sequence[Stmt], indent: int) -> Lines:
        """Statements in order, those about groups in loops over the groups."""
        lines: list[str] = []
        for per_group, run in groupby(body, self.is_per_group):
            stmts = tuple(run)
            if per_group:
                lines += self.loop(stmts, indent)
            else:
                lines += self.plain(stmts, indent)
        return tuple(lines)

    def loop(self, body: tuple[Stmt, ...], indent: int) -> Lines:
        made = {s.name for s in statements(body) if isinstance(s, Let)}
        read = list(reads(body))
        for ref in read:
            if ref.role is Role.LOCAL and ref.name in self.varying - made:
                raise unsupported(
                    f"'{ref.name}' is a group's value from before a statement that is about all "
                    "groups.",
                    ref.span, "Let the statements about the rate follow each other.",
                )  # fmt: skip
        used = [n for n in self.per_group if any(r.name == n for r in read)]
        if used:
            names = ", ".join(_quoted(n) for n in used)
            lines = [f"for group, {', '.join(used)} in self._groups({names}):"]
        else:
            lines = ["for group in self.optimizer.param_groups:"]
        if any(r.name == "lr" for r in read):
            lines.append(f'{INDENT}lr = float(group["lr"])')
        return (*lines, *indented(self.plain(body, indent + 4)))

    def plain(self, body: tuple[Stmt, ...], indent: int) -> Lines:
        return tuple(line for stmt in body for line in self.statement(stmt, indent))

    def statement(self, stmt: Stmt, indent: int) -> Lines:
        match stmt:
            case Let(name=name, value=value):
                return self.assign(name, value, indent)
            case Assign(target=target, value=value, operator="") if target.name == "lr":
                return (*self.assign("lr", value, indent), "set_lr(group, lr)")
            case Assign(target=target, value=value, operator=""):
                return self.assign(self.names.get(target.name, target.name), value, indent)
            case Assign(target=target, value=value, operator=operator):
                symbol = SYMBOLS[operator] if operator else ""
                return self.line(f"{self.names[target.name]} {symbol}= ", value, indent)
            case If():
                return self.branch(stmt, indent, "if")
            case Descend() | Repeat():
                raise AssertionError("resolve refuses it in a schedule")
            case _:
                assert_never(stmt)

    def branch(self, stmt: If, indent: int, word: str) -> Lines:
        """A branch as one would write it: the first two cases are what the linter asks for."""
        match stmt:
            # if a { if b { ... } } -> if a and b { ... }
            case If(then=(If(orelse=()) as inner,), orelse=()):
                both = apply("and", stmt.condition, inner.condition)
                return self.branch(replace(inner, condition=both), indent, word)
            # if a { x = b } else { x = c } -> x = b if a else c
            case If(
                then=(Assign(target=Ref(role=Role.LOCAL, name=name), operator="") as first,),
                orelse=(Assign(target=Ref(name=same), operator="") as second,),
            ) if name == same and word == "if":
                chosen = apply("select", stmt.condition, first.value, second.value)
                return self.assign(name, chosen, indent)
        inside = self.plain if self.is_per_group(stmt) else self.block
        then = inside(stmt.then, indent + 4) or ("pass",)
        lines = (*self.head(word, stmt.condition, indent), *indented(then))
        match stmt.orelse:
            case ():
                return lines
            case (If() as inner,):
                return (*lines, *self.branch(inner, indent, "elif"))
            case orelse:
                return (*lines, "else:", *indented(inside(orelse, indent + 4)))


def _level(expr: Apply) -> object:
    spelling = OPS[expr.op].host
    return spelling.level if isinstance(spelling, Infix) else None


def needed(lets: tuple[Let, ...], read: Iterable[Ref]) -> tuple[Let, ...]:
    """The lets that these names lead to, in their order."""
    names = {r.name for r in read}
    for let in reversed(lets):
        if let.name in names:
            names |= {r.name for r in refs(let.value)}
    return tuple(let for let in lets if let.name in names)


# Documentation


def _documentation(schedule: Schedule) -> Lines:
    first, *rest = textwrap.wrap(schedule.doc or f"{schedule.name}.", WIDTH - 8)
    return (f'r"""{first}', *rest)


def _references(schedule: Schedule) -> Lines:
    return tuple(line for cite in schedule.cites for line in textwrap.wrap(cite, WIDTH - 8))


def _argument(schedule: Schedule, hyper: Hyper) -> Lines:
    names = {hyper.name, *hyper.components}
    conditions = [
        printing.show(r.condition, printing.source)
        for r in schedule.requires
        if names & set(r.hypers)
    ]
    words = [", ".join(hyper.components)] if hyper.components else []
    words += ["One for all groups, or a list"] if hyper.type.per_group else []
    words += [" and ".join(conditions)] if conditions else []
    default = hyper.literal if is_dependent(hyper) else signature.default(hyper)
    words.append("Required" if default is None else f"Default: {default}")
    text = f"{hyper.name} ({_annotation(hyper)}): {'. '.join(words)}."
    return tuple(textwrap.wrap(text, WIDTH - 8, subsequent_indent=INDENT))


def _symbols(schedule: Schedule, rate: str) -> latex.Symbols:
    names = [n for h in schedule.hypers for n in (h.name, *h.components)]
    names += [s.name for s in schedule.states] + [let.name for let in schedule.lets]
    names += [s.name for s in statements(schedule.body) if isinstance(s, Let)]
    given = {"lr": rate, "base_lr": r"\eta_{\mathrm{base}}", "initial": r"\text{at construction}"}
    return latex.Symbols(("t", "metric", *names), given)


def _form_equations(schedule: Schedule, form: Expr | None) -> Lines:
    """The lets that a form needs, and the rate of epoch t."""
    if form is None:
        return ()
    symbols = _symbols(schedule, r"\eta_{t-1}")
    lets = needed(schedule.lets, refs(form))
    lines = [f"{symbols[let.name]} = {latex.cases(let.value, symbols)}" for let in lets]
    return latex.aligned((*lines, rf"\eta_t = {latex.cases(form, symbols)}"))


def _update_equations(schedule: Schedule) -> Lines:
    if not schedule.body:
        return ()
    used = list(reads(schedule.body))
    lets = needed(schedule.lets, used)
    return latex.aligned(latex.statements((*lets, *schedule.body), _symbols(schedule, r"\eta")))
