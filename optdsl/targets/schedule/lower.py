"""Schedule -> View: a class that sets the rates of an optimizer's groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from optdsl.ir import Keep, Schedule
from optdsl.targets.layout import indented
from optdsl.targets.schedule import checks, construction, update
from optdsl.targets.schedule.documentation import docstring
from optdsl.targets.schedule.places import Places
from optdsl.targets.schedule.view import Method, View
from optdsl.targets.schedule.writer import Writer


def lower(schedule: Schedule) -> View:
    places = Places(schedule)
    headline, documentation = docstring(places)
    return View(
        summary=f"The learning-rate schedule {schedule.name}.",
        name=schedule.name,
        base=_base(schedule),
        headline=headline,
        documentation=documentation,
        attributes=indented(construction.class_attributes(places)),
        parameters=construction.parameters(places),
        construction=indented(construction.construction(places), 2),
        methods=tuple(replace(m, body=indented(m.body, 2)) for m in _methods(places)),
    )


def _base(schedule: Schedule) -> str:
    """The runtime's class that it extends: its step takes the form that the author wrote."""
    if schedule.body:
        return "MetricScheduler"
    return "ClosedScheduler" if schedule.chain is None else "ChainScheduler"


def _methods(places: Places) -> Iterator[Method]:
    schedule = places.schedule
    if not schedule.body:
        yield construction.function(places)
    yield from construction.targets(places)
    yield from checks.check(places)
    yield from checks.check_group(places)
    yield from construction.begin(places)
    yield from _forms(places)
    yield from update.methods(places)


def _forms(places: Places) -> Iterator[Method]:
    """The rate of an epoch, that of other targets, and what of them is for the user to read."""
    writer, schedule = Writer(places, places.in_methods()), places.schedule
    t = f"t: {'float' if schedule.fractional else 'int'}"
    group = ", group: Group" if _has_groups(schedule) else ""
    if schedule.closed is not None:
        body = writer.form(schedule.closed, places.epoch)
        yield Method(f"_closed(self, {t}, base_lr: Rate{group}) -> Rate", body)
    if schedule.chain is not None:
        body = writer.form(schedule.chain, places.epoch)
        yield Method(f"_chain(self, {t}, lr: Rate, base_lr: Rate{group}) -> Rate", body)
    for target in schedule.targets:
        yield Method(
            f"_closed_{target.name}(self, {t}{group}) -> float", writer.form(target.closed)
        )
    following = places.following()
    if following:
        observing = Writer(places, places.in_methods())
        yield Method(f"_observe(self, {t}) -> None", observing.observe(following))


def _has_groups(schedule: Schedule) -> bool:
    """Whether forms take a group: the base class has the same rule."""
    kept = any(k.keep is Keep.GROUP for k in schedule.kept)
    return kept or any(h.type.per_group or h.type.grouped for h in schedule.hypers)
