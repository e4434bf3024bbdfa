"""The constructor of a schedule's class, and what the class says of its values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from optdsl.ir import (
    Apply,
    Base,
    Expr,
    Hyper,
    Keep,
    Kept,
    Phase,
    Ref,
    Schedule,
    apply,
    walk,
)
from optdsl.passes import derive_chain
from optdsl.targets import signature
from optdsl.targets.layout import indented
from optdsl.targets.schedule.checks import checks, type_check
from optdsl.targets.schedule.places import Place, Places, attribute
from optdsl.targets.schedule.view import Method
from optdsl.targets.schedule.writer import Scope, Writer
from optdsl.targets.signature import Lines, is_dependent, negated, quoted

PARAMETER = 'parameter: str = "lr"'
LAST_EPOCH = "last_epoch: int = -1"


# Arguments


def annotation(places: Places, hyper: Hyper) -> str:
    return signature.annotation(hyper, "float", _called_with(places, hyper))


def _called_with(places: Places, hyper: Hyper) -> str:
    """What a function takes: whole numbers alone where it is called with the epoch."""
    if hyper.type.base is not Base.FUNCTION or places.schedule.fractional:
        return "float"
    schedule = places.schedule
    read = [let.value for let in schedule.lets] + [t.closed for t in schedule.targets]
    read += [form for form in (schedule.closed, schedule.chain) if form is not None]
    calls = (e for expr in read for e in walk(expr) if isinstance(e, Apply) and e.op == "call")
    given = [c.args[1] for c in calls if isinstance(f := c.args[0], Ref) and f.name == hyper.name]
    return "int" if all(isinstance(g, Ref) and g.name == "t" for g in given) else "float"


def parameters(places: Places) -> Lines:
    """The constructor's, behind the optimizer."""
    schedule = places.schedule
    epoch = () if schedule.body else (LAST_EPOCH,)
    hypers = (signature.parameter(h, annotation(places, h)) for h in schedule.hypers)
    return (*hypers, *epoch, "*", PARAMETER)


def function(places: Places) -> Method:
    """The class method that makes a function of the epoch: for one group, so without lists."""
    hypers = places.schedule.hypers
    single = [replace(h, type=replace(h.type, per_group=False, grouped=False)) for h in hypers]
    listed = [signature.parameter(h, annotation(places, h)) for h in single]
    values = (f"list({h.name})" if h.type.many else h.name for h in hypers)
    given = ", ".join(f"{h.name}={v}" for h, v in zip(hypers, values, strict=True))
    return Method(
        f"function({', '.join(('cls', *listed))}) -> Function",
        (
            '"""The rate as a function of the epoch and of the first rate, without an optimizer.',
            "",
            "Takes the arguments of the constructor, each for one parameter group.",
            '"""',
            f"return cls._function({given})",
        ),
        "classmethod",
    )


# Values


def class_attributes(places: Places) -> Lines:
    """What the base class has to know of the values; see there."""
    schedule = places.schedule
    observed = [attribute(k) for k in schedule.kept if k.keep is Keep.OBSERVED]
    observed += [schedule.phases_attribute] if schedule.phases else []
    given = {
        "per_group": [h.name for h in schedule.hypers if h.type.per_group],
        "grouped": [h.name for h in schedule.hypers if h.type.grouped]
        + [k.name for k in places.constant(Keep.GROUP)],
        "functions": [
            f"{h.name}s" if h.type.per_group else attribute(h)
            for h in places.of(Place.ATTRIBUTE, Place.GROUP)
            if h.type.base is Base.FUNCTION
        ],
        "observed": observed,
        "unsaved": [attribute(h) for h in places.of(Place.UNSAVED)],
    }
    lines = [
        f"{name}: ClassVar[tuple[str, ...]] = {_tuple(values)}"
        for name, values in given.items()
        if values
    ]
    flags = {"fractional": schedule.fractional, "affine": _is_affine(schedule)}
    return (*lines, *(f"{name} = True" for name, value in flags.items() if value))


def _is_affine(schedule: Schedule) -> bool:
    """Whether the base class can step from one rate to the next by the closed form alone."""
    own = any(h.name == "base_lr" for h in schedule.hypers)
    return schedule.chain is None and not own and derive_chain(schedule).chain is not None


def targets(places: Places) -> Iterator[Method]:
    """What is driven beside the rate, and when."""
    schedule = places.schedule
    if not schedule.targets:
        return
    writer = Writer(places, places.in_methods())
    conditions = {t.when for t in schedule.targets}
    if len(conditions) == 1:
        (when,) = conditions
        names = _tuple([t.name for t in schedule.targets])
        body: Lines = (f"return {names}{_if(writer, when, '()')}",)
    else:
        parts = (f"({_tuple([t.name])}{_if(writer, t.when, '()')})" for t in schedule.targets)
        body = (f"return {' + '.join(parts)}",)
    yield Method("targets(self) -> tuple[str, ...]", body, "property")


def _tuple(texts: Sequence[str]) -> str:
    return f"({', '.join(map(quoted, texts))}{',' if len(texts) == 1 else ''})"


def _if(writer: Writer, when: Expr | None, other: str) -> str:
    """What stands behind a value that exists only `when`."""
    return "" if when is None else f" if {writer.show(when)} else {other}"


def construction(places: Places) -> Lines:
    """The body of the constructor."""
    schedule = places.schedule
    writer = Writer(places, places.in_constructor())
    # What has an attribute by the time it is read.
    kept = {k.name for k in schedule.kept} | {h.name for h in schedule.hypers if h.type.many}
    early = [r for r in places.arguments if not places.read(r) & kept]
    late = [r for r in places.arguments if r not in early]
    return (
        *(line for h in schedule.hypers if is_dependent(h) for line in signature.resolution(h)),
        *(line for h in places.of(Place.NOWHERE) for line in type_check(places, h, h.name)),
        *checks(writer, early),
        *(_attribute(h) for h in places.of(Place.ATTRIBUTE, Place.UNSAVED)),
        *(() if schedule.body else _kept(writer, places.constant(Keep.STATE, Keep.OBSERVED))),
        *_phases(writer, schedule),
        *checks(writer, late),
        f"super().__init__({', '.join(_given(writer))})",
    )


def _attribute(hyper: Hyper) -> str:
    value = hyper.name
    if hyper.type.many:
        # An epoch is looked up among them: a tensor, for one, equals an integer and is not found.
        value = f"Counter(map(whole, {value}))"
    return f"self.{attribute(hyper)} = {value}"


def _kept(writer: Writer, values: Iterable[Kept]) -> Iterator[str]:
    for value in values:
        lines = writer.compute(f"self.{attribute(value)} = ", value.initial, Scope())
        yield from _where(writer, value.when, lines)


def begin(places: Places) -> Iterator[Method]:
    """The first values of what the groups keep."""
    names = {name: f'group["{name}"]' for name in places.each}
    writer = Writer(places, {**places.in_methods(), **names})
    lines: list[str] = []
    for value in places.constant(Keep.GROUP):
        head = f"{names[value.name]} = "
        made = writer.compute(head, value.initial, writer.all_known())
        lines += _where(writer, value.when, made)
    if lines:
        yield Method("_begin(self, group: Group) -> None", tuple(lines))


def _where(writer: Writer, when: Expr | None, lines: Lines) -> Lines:
    """Lines about a value that exists only `when`."""
    return lines if when is None else (f"if {writer.show(when)}:", *indented(lines))


def _phases(writer: Writer, schedule: Schedule) -> Iterator[str]:
    """The phases as a list, those on a condition behind `if`."""
    target, sign = f"self.{schedule.phases_attribute}", "="
    before: Expr | None = None
    for when, run in groupby(schedule.phases, lambda phase: phase.when):
        if when is not None and sign == "=":
            yield f"{target} = []"
            sign = "+="
        line = f"{target} {sign} [{', '.join(_phase(writer, p) for p in run)}]"
        sign = "+="
        if when is None:
            yield line
        else:
            opposite = before is not None and when in (apply("not", before), negated(before))
            yield "else:" if opposite else f"if {writer.show(when)}:"
            yield from indented((line,))
            when = None if opposite else when
        before = when


def _phase(writer: Writer, phase: Phase) -> str:
    entries = [f'"end_step": {writer.show(phase.end)}']
    for move in phase.moves:
        entries.append(f'"start_{move.target}": {quoted(move.start)}')
        entries.append(f'"end_{move.target}": {quoted(move.end)}')
    return f"{{{', '.join(entries)}}}"


def _given(writer: Writer) -> Iterator[str]:
    """The arguments of the base class, with those that have a value for each group."""
    schedule = writer.places.schedule
    yield "optimizer"
    yield from () if schedule.body else ("last_epoch",)
    yield "parameter"
    for hyper in writer.places.of(Place.GROUP):
        yield f"{hyper.name}={hyper.name}{_if(writer, hyper.when, 'ABSENT')}"
