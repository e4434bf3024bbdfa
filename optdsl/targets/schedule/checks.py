"""The checks of a schedule's arguments: when they are given, and when a checkpoint is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from optdsl.ir import Base, Expr, Hyper, Keep, Kept, Let, Require, kind_of
from optdsl.targets.layout import indented
from optdsl.targets.schedule.places import Place, Places
from optdsl.targets.schedule.view import Method
from optdsl.targets.schedule.writer import Scope, Writer
from optdsl.targets.signature import Lines, message, quoted, refusal


def check(places: Places) -> Iterator[Method]:
    """The checks of what a checkpoint may change."""
    writer = Writer(places, places.in_methods())
    body = (
        *(
            line
            for h in places.of(Place.ATTRIBUTE, Place.UNSAVED)
            for line in type_check(places, h, writer.names[h.name])
        ),
        *checks(writer, places.attributes),
    )
    if body:
        yield Method("_check(self) -> None", body)


def check_group(places: Places) -> Iterator[Method]:
    """The checks of a group's values; where one exists on a condition, behind it."""
    writer = Writer(places, places.in_methods())
    # Asked before a group keeps anything: of its states, what they will begin with.
    kept = places.constant(Keep.GROUP)
    writer.lets |= {k.name: Let(k.name, k.initial, kind_of(k.initial), k.span) for k in kept}
    found: list[tuple[Expr | None, Hyper | Require]]
    found = [(h.when, h) for h in places.of(Place.GROUP)]
    found += [(_existence(places, r), r) for r in places.group]
    lines: Lines = ()
    scope = Scope()
    for when, run in groupby(found, lambda pair: pair[0]):
        inside = scope
        block: Lines = ()
        for _, checked in run:
            if isinstance(checked, Hyper):
                block += type_check(places, checked, f'group["{checked.name}"]')
            else:
                before, inside = writer.prepare(_each(writer, checked), inside)
                block += (*before, *_base_lr(checked), *writer.check(checked))
        if when is None:
            lines, scope = lines + block, inside
        elif block:
            lines += (f"if {writer.show(when)}:", *indented(block))
    if lines:
        yield Method("_check_group(self, group: Group) -> None", lines)


def _existence(places: Places, require: Require) -> Expr | None:
    """The condition on which what a condition reads exists. An argument that is kept nowhere is
    there all the same, but for groups."""
    values: list[Hyper | Kept] = [h for h in places.schedule.hypers if h in places.of(Place.GROUP)]
    values += places.schedule.kept
    whens = (v.when for v in values if v.name in places.read(require))
    return next((when for when in whens if when is not None), None)


def _each(writer: Writer, require: Require) -> set[str]:
    """What is to be prepared for a condition and its message."""
    return {n for n in writer.places.read(require) if n in writer.lets or n in writer.places.each}


def _base_lr(require: Require) -> Lines:
    """A schedule's own first rate is an argument of forms, and elsewhere a value of the group."""
    return ('base_lr = group["base_lr"]',) if "base_lr" in require.hypers else ()


def checks(writer: Writer, requires: Iterable[Require]) -> Lines:
    """Conditions in their order, with the names that they need."""
    lines, scope = list[str](), Scope()
    for require in requires:
        needed = [n for n in writer.places.read(require) if n in writer.lets]
        before, scope = writer.prepare(needed, scope)
        checked, when = writer.check(require), _existence(writer.places, require)
        if when is not None:
            checked = (f"if {writer.show(when)}:", *indented(checked))
        lines += (*before, *checked)
    return tuple(lines)


def type_check(places: Places, hyper: Hyper, value: str) -> Lines:
    """A text is one of its choices, unless a condition of its own says it better; a function can
    be called."""
    optional = f"{value} is not None and " if hyper.type.optional else ""
    shown = value.replace('"', "'")  # in a text
    if hyper.type.base is Base.FUNCTION:
        text = f"{hyper.name} should be a function, but got {{type({shown}).__name__}}"
        return refusal(f"{optional}not callable({value})", f"f{quoted(text)}", "TypeError")
    stated = any(hyper.name in places.read(r) for r in places.schedule.requires)
    if stated or not hyper.type.choices:
        return ()
    choices = ", ".join(map(quoted, hyper.type.choices))
    text = message(f"{hyper.name.replace('_', ' ')} {{x}} is unknown!", lambda _: shown)
    return refusal(f"{optional}{value} not in ({choices})", text)
