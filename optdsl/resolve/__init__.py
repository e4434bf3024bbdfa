"""SyntaxTree -> Spec, Schedule or Average: bind names, infer kinds, check what is left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from optdsl import syntax
from optdsl.diagnostics import Code, Diagnostic, Log, SpecError, in_order
from optdsl.ir import Spec, Unit
from optdsl.resolve.average import AverageResolver
from optdsl.resolve.calls import Others
from optdsl.resolve.derived import resolve_derived
from optdsl.resolve.optimizer import OptimizerResolver
from optdsl.resolve.schedule import ScheduleResolver
from optdsl.resolve.scope import refuse_reserved_definition
from optdsl.resolve.words import article


def resolve(
    trees: Iterable[syntax.SyntaxTree], library: Mapping[str, Unit] | None = None
) -> tuple[tuple[Unit, ...], tuple[Diagnostic, ...]]:
    """The definitions of all trees, bases first, and the warnings about them. `library` holds
    definitions that are in scope for `from` and for calls. Raises SpecError with every error of
    every tree."""
    log = Log()
    shipped = library or {}
    pending = _distinct((d for tree in trees for d in tree.definitions), shipped, log)
    defined = dict(pending)
    units: dict[str, Unit] = {}
    while pending:
        ready = [n for n, d in pending.items() if not needs(d) & pending.keys()]
        if not ready:
            _refuse_circle(pending, log)
            break
        for name in ready:
            unit = _definition(pending.pop(name), {**shipped, **units}, defined, log)
            if unit is not None:
                units[name] = unit
    if log.failed:
        raise SpecError(in_order(log.diagnostics))
    return tuple(units.values()), in_order(log.diagnostics)


def _distinct(
    definitions: Iterable[syntax.Definition], library: Mapping[str, Unit], log: Log
) -> dict[str, syntax.Definition]:
    """The definitions by name; of several with one name, the first."""
    found: dict[str, syntax.Definition] = {}
    folded = {name.lower(): name for name in library}
    for definition in definitions:
        name = definition.name
        if name.text in found:
            log.error(
                Code.DUPLICATE, f"'{name.text}' is defined twice.", name.span,
                related=((found[name.text].name.span, "first defined here"),),
            )  # fmt: skip
        elif name.text in library:
            extended = f", or extend it: optimizer My{name.text} from {name.text} {{ ... }}"
            is_base = isinstance(library[name.text], Spec)
            log.error(
                Code.SHADOWED, f"'{name.text}' is the name of a shipped definition.", name.span,
                hints=(f"Choose another name{extended if is_base else ''}.",),
            )  # fmt: skip
        elif name.text.lower() in folded:
            other = folded[name.text.lower()]
            log.error(
                Code.CASE_COLLISION, f"'{name.text}' and '{other}' differ in case only.", name.span,
                related=((found[other].name.span, "the other one"),) if other in found else (),
                notes=(f"Both would be written to the file '{name.text.lower()}.py'.",),
            )  # fmt: skip
        else:
            found[name.text] = definition
            folded[name.text.lower()] = name.text
    return found


def needs(definition: syntax.Definition) -> frozenset[str]:
    """The names of other definitions that one may mean: its base, and what it calls."""
    base = {definition.base.text} if definition.base is not None else set()
    return frozenset(base | {c.function.text for c in syntax.calls(definition.members)})


def _refuse_circle(pending: Mapping[str, syntax.Definition], log: Log) -> None:
    """Each of these needs one among them, so following what they need ends in a circle."""
    name, passed = next(iter(pending)), list[str]()
    while name not in passed:
        passed.append(name)
        name = _needed(pending[name], pending).text
    circle = passed[passed.index(name) :]
    derived = all(pending[n].base == _needed(pending[n], pending) for n in circle)
    chain = " from " if derived else " needs "
    log.error(
        Code.UNKNOWN_BASE if derived else Code.UNSUPPORTED,
        f"'{name}' is {'derived from' if derived else 'defined by'} itself.",
        _needed(pending[name], pending).span,
        notes=(
            f"The {'bases' if derived else 'definitions'} form a circle: "
            f"{chain.join([*circle, name])}.",
        ) if len(circle) > 1 else (),
        hints=("One of them has to have an 'update' of its own.",) if derived else (),
    )  # fmt: skip


def _needed(definition: syntax.Definition, pending: Mapping[str, syntax.Definition]) -> syntax.Name:
    """Where a definition first names one of these."""
    names = [definition.base] if definition.base is not None else []
    names += [c.function for c in syntax.calls(definition.members)]
    return next(n for n in names if n.text in pending)


def _refuse_base(definition: syntax.Definition, log: Log) -> None:
    if definition.base is not None:
        kind = article(definition.keyword).capitalize()
        log.error(
            Code.UNSUPPORTED, f"{kind} is not derived from another.", definition.base.span,
            hints=("Only optimizers have a base.",),
        )  # fmt: skip


def _definition(
    definition: syntax.Definition,
    known: Mapping[str, Unit],
    defined: Mapping[str, syntax.Definition],
    log: Log,
) -> Unit | None:
    """The unit of a definition; None after an error in it. Its log is its own: what is wrong
    elsewhere must not hide anything here."""
    own = Log()
    others = Others(known, defined)
    refuse_reserved_definition(definition.name, own)
    match definition:
        case syntax.Definition(keyword="optimizer", base=None):
            unit: Unit | None = OptimizerResolver(definition, own, others).resolve()
        case syntax.Definition(keyword="optimizer", base=syntax.Name() as base):
            unit = resolve_derived(definition, base, known, defined, own)
        case syntax.Definition(keyword="average"):
            _refuse_base(definition, own)
            unit = AverageResolver(definition, own, others).resolve()
        case _:
            _refuse_base(definition, own)
            unit = ScheduleResolver(definition, own, others).resolve()
    log.diagnostics += own.diagnostics
    return None if own.failed else unit
