"""The update of a schedule that follows a metric: statements about rates once per group, others
once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import assert_never

from optdsl.diagnostics import SpecError, unsupported
from optdsl.ir import (
    Assign,
    Descend,
    Expr,
    If,
    Let,
    Ref,
    Repeat,
    Role,
    Stmt,
    apply,
    expressions,
    reads,
    refs,
    statements,
)
from optdsl.ops import SYMBOLS
from optdsl.targets.layout import INDENT, indented
from optdsl.targets.schedule.places import Places, attribute
from optdsl.targets.schedule.view import Method
from optdsl.targets.schedule.writer import BODY, Scope, Writer, needed_lets
from optdsl.targets.signature import Lines


def methods(places: Places) -> Iterator[Method]:
    """The method that gives states their first values, and the one that takes a metric."""
    if places.schedule.body:
        update = Update(places)
        yield Method("_reset(self) -> None", update.reset())
        yield Method("_update(self, t: int, metric: float) -> None", update.lines())


class Update:
    def __init__(self, places: Places) -> None:
        self.places = places
        self.schedule = places.schedule
        self.writer = Writer(places, places.in_methods())
        self.varying = self._varying()

    def reset(self) -> Lines:
        lines = (self.assign(f"self.{attribute(k)}", k.initial, BODY) for k in self.schedule.kept)
        return tuple(line for assigned in lines for line in assigned) or ("pass",)

    def lines(self) -> Lines:
        lets = needed_lets(self.schedule.lets, reads(self.schedule.body))
        return self.block((*lets, *self.schedule.body), BODY)

    def assign(self, target: str, value: Expr, column: int) -> Lines:
        # Every name has a value by now.
        known = frozenset((*self.writer.lets, *self.places.each))
        return self.writer.compute(f"{target} = ", value, Scope(known, column=column))

    def head(self, word: str, condition: Expr) -> str:
        return f"{word} {self.writer.show(condition)}:"

    # What is about a group

    def _varying(self) -> frozenset[str]:
        """The names that have a value per group."""
        varying = {"lr", *self.places.each}

        def visit(body: Iterable[Stmt], per_group: bool) -> None:
            for stmt in body:
                inside = per_group or any(_reads(e, varying) for e in expressions(stmt))
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

    def is_per_group(self, stmt: Stmt) -> bool:
        """Whether all of a statement is about a group, so that it belongs in the loop."""
        match stmt:
            case Let(name=name):
                return name in self.varying
            case Assign(target=target, value=value):
                if target.role is Role.STATE and _reads(value, self.varying):
                    raise _shared(target)
                return target.name in self.varying
            case If(condition=condition):
                inside = (*stmt.then, *stmt.orelse)
                if _reads(condition, self.varying):
                    for inner in statements(inside):
                        if isinstance(inner, Assign) and inner.target.role is Role.STATE:
                            raise _shared(inner.target)
                    return True
                return all(self.is_per_group(inner) for inner in inside)
            case Descend() | Repeat():
                raise AssertionError("resolve refuses it in a schedule")
            case _:
                assert_never(stmt)

    # Statements

    def block(self, body: Sequence[Stmt], column: int) -> Lines:
        """Statements in order, those about groups in loops over the groups."""
        lines: list[str] = []
        for per_group, run in groupby(body, self.is_per_group):
            inside = self.loop if per_group else self.plain
            lines += inside(tuple(run), column)
        return tuple(lines)

    def loop(self, body: tuple[Stmt, ...], column: int) -> Lines:
        made = {s.name for s in statements(body) if isinstance(s, Let)}
        read = list(reads(body))
        for ref in read:
            if ref.role is Role.LOCAL and ref.name in self.varying - made:
                raise unsupported(
                    f"'{ref.name}' is a group's value from before a statement that is about all "
                    "groups.",
                    ref.span, "Let the statements about the rate follow each other.",
                )  # fmt: skip
        used = {r.name for r in read}
        lines = ["lr = self._rate(group)"] if "lr" in used else []
        lines += [f'{name} = group["{name}"]' for name in self.places.each if name in used]
        lines += self.plain(body, column + len(INDENT))
        return ("for group in self._groups():", *indented(lines))

    def plain(self, body: tuple[Stmt, ...], column: int) -> Lines:
        return tuple(line for stmt in body for line in self.statement(stmt, column))

    def statement(self, stmt: Stmt, column: int) -> Lines:
        names = self.writer.names
        match stmt:
            case Let(name=name, value=value):
                return self.assign(name, value, column)
            case Assign(target=target, value=value, operator="") if target.name == "lr":
                return (*self.assign("lr", value, column), "self._set_rate(group, lr)")
            case Assign(target=target, value=value, operator=""):
                return self.assign(names.get(target.name, target.name), value, column)
            case Assign(target=target, value=value, operator=operator):
                return (f"{names[target.name]} {SYMBOLS[operator]}= {self.writer.show(value)}",)
            case If():
                return self.branch(stmt, column, "if")
            case Descend() | Repeat():
                raise AssertionError("resolve refuses it in a schedule")
            case _:
                assert_never(stmt)

    def branch(self, stmt: If, column: int, word: str) -> Lines:
        """A branch as one would write it: the first two cases are what the linter asks for."""
        match stmt:
            # if a { if b { ... } } -> if a and b { ... }
            case If(then=(If(orelse=()) as inner,), orelse=()):
                both = apply("and", stmt.condition, inner.condition)
                return self.branch(replace(inner, condition=both), column, word)
            # if a { x = b } else { x = c } -> x = b if a else c
            case If(
                then=(Assign(target=Ref(role=Role.LOCAL, name=name), operator="") as first,),
                orelse=(Assign(target=Ref(name=same), operator="") as second,),
            ) if name == same and word == "if":
                chosen = apply("select", stmt.condition, first.value, second.value)
                return self.assign(name, chosen, column)
        inside = self.plain if self.is_per_group(stmt) else self.block
        then = inside(stmt.then, column + len(INDENT)) or ("pass",)
        lines = (self.head(word, stmt.condition), *indented(then))
        match stmt.orelse:
            case ():
                return lines
            case (If() as inner,):
                return (*lines, *self.branch(inner, column, "elif"))
            case orelse:
                return (*lines, "else:", *indented(inside(orelse, column + len(INDENT))))


def _reads(expr: Expr, names: Iterable[str]) -> bool:
    return any(r.name in names for r in refs(expr))


def _shared(target: Ref) -> SpecError:
    return unsupported(
        f"The state '{target.name}' is shared by all groups, this depends on one of them.",
        target.span,
        "States change with the metric and with other states.",
    )
