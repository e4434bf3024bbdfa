"""SyntaxTree -> Spec or Schedule: bind names, infer kinds, check what is left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from optdsl import syntax
from optdsl.diagnostics import Code, Diagnostic, Log, SpecError, in_order
from optdsl.ir import Unit
from optdsl.resolve.derived import resolve_derived
from optdsl.resolve.optimizer import OptimizerResolver
from optdsl.resolve.schedule import ScheduleResolver
from optdsl.resolve.scope import refuse_reserved_definition


def resolve(
    trees: Iterable[syntax.SyntaxTree], library: Mapping[str, Unit] | None = None
) -> tuple[tuple[Unit, ...], tuple[Diagnostic, ...]]:
    """The definitions of all trees, bases first, and the warnings about them. `library` holds
    definitions that are in scope for `from`. Raises SpecError with every error of every tree."""
    log = Log()
    shipped = library or {}
    pending = _distinct((d for tree in trees for d in tree.definitions), shipped, log)
    defined = dict(pending)
    units: dict[str, Unit] = {}
    while pending:
        ready = [n for n, d in pending.items() if d.base is None or d.base.text not in pending]
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
            log.error(
                Code.SHADOWED, f"'{name.text}' is the name of a shipped definition.", name.span,
                hints=(f"Choose another name, or extend it: optimizer My{name.text} from "
                       f"{name.text} {{ ... }}.",),
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


def _refuse_circle(pending: Mapping[str, syntax.Definition], log: Log) -> None:
    """Each of these has a base among them, so following the bases ends in a circle."""
    name, passed = next(iter(pending)), dict[str, None]()
    while name not in passed:
        passed[name] = None
        base = pending[name].base
        assert base is not None
        name = base.text
    circle = list(passed)[list(passed).index(name) :]
    base = pending[name].base
    assert base is not None
    log.error(
        Code.UNKNOWN_BASE, f"'{name}' is derived from itself.", base.span,
        notes=(f"The bases form a circle: {' from '.join([*circle, name])}.",)
        if len(circle) > 1 else (),
        hints=("One of them has to have an 'update' of its own.",),
    )  # fmt: skip


def _refuse_base(definition: syntax.Definition, log: Log) -> None:
    if definition.base is not None:
        log.error(
            Code.UNSUPPORTED, "A schedule is not derived from another.", definition.base.span,
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
    refuse_reserved_definition(definition.name, own)
    match definition:
        case syntax.Definition(keyword="optimizer", base=None):
            unit: Unit | None = OptimizerResolver(definition, own).resolve()
        case syntax.Definition(keyword="optimizer", base=syntax.Name() as base):
            unit = resolve_derived(definition, base, known, defined, own)
        case _:
            _refuse_base(definition, own)
            unit = ScheduleResolver(definition, own).resolve()
    log.diagnostics += own.diagnostics
    return None if own.failed else unit
