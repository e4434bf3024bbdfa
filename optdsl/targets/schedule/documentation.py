"""The docstring of a schedule's class."""

from __future__ import annotations

from collections.abc import Iterator

from optdsl import printing
from optdsl.ir import (
    Apply,
    Base,
    Example,
    Expr,
    Hyper,
    Let,
    Ref,
    Require,
    Role,
    Schedule,
    kind_of,
    reads,
    refs,
    statements,
)
from optdsl.ops import Kind
from optdsl.targets import latex, signature
from optdsl.targets.layout import indented
from optdsl.targets.schedule.construction import annotation
from optdsl.targets.schedule.places import Places
from optdsl.targets.schedule.writer import needed_lets
from optdsl.targets.signature import ENTRIES, PLACEHOLDER, Lines, entry, wrapped

LAST_EPOCH = entry("last_epoch", "int", "the epoch to resume behind. Default: -1, a new schedule")
PARAMETER = entry(
    "parameter", "str",
    "what follows the schedule in each parameter group: the rate, or for example "
    '"weight_decay" or "betas[1]". Default: "lr"',
)  # fmt: skip


def docstring(places: Places) -> tuple[str, Lines]:
    """The headline, and the other lines."""
    schedule = places.schedule
    headline, *rest = wrapped(schedule.doc or f"{schedule.name}.", 8)
    sections = (
        ("Args:", _arguments(places)),
        ("Raises:", wrapped(_raises(places), ENTRIES)),
        ("Example::", _example(schedule)),
        ("References:", tuple(line for c in schedule.cites for line in wrapped(c, ENTRIES))),
    )
    lines = list(rest)
    for title, body in (*sections[:2], *_directives(schedule), *sections[2:]):
        if body:
            gap = ("",) if title.endswith("::") else ()  # a directive's
            lines += ("", *title.split("\n"), *gap, *indented(body))
    return headline, indented(lines)


# Arguments


def _arguments(places: Places) -> Lines:
    schedule = places.schedule
    lines = [*entry("optimizer", "Optimizer", "whose learning rates follow this schedule")]
    for hyper in schedule.hypers:
        shown = annotation(places, hyper)
        lines += signature.described(hyper, shown, _conditions(schedule, hyper), *_notes(hyper))
    lines += () if schedule.body else LAST_EPOCH
    return (*lines, *PARAMETER)


def _conditions(schedule: Schedule, hyper: Hyper) -> Iterator[str]:
    """What holds for an argument alone, beside what its type says."""
    for require in schedule.requires:
        if _subject(schedule, require) is hyper and not hyper.type.choices:
            yield from map(printing.show_source, _beside_type(require.condition))


def _beside_type(condition: Expr) -> Iterator[Expr]:
    match condition:
        case Apply(op="is_integer" | "is_number" | "unset"):
            return
        case Apply(op="and" | "or", args=(Apply(op="is_integer" | "unset"), rest)):
            yield from _beside_type(rest)
        case _:
            yield condition


def _subject(schedule: Schedule, require: Require) -> Hyper | None:
    """The one argument that a condition is about."""
    read = {r.name for r in refs(require.condition)}
    about = [h for h in schedule.hypers if read & {h.name, *h.components}]
    alone = len(about) == 1 and read <= {about[0].name, *about[0].components}
    return about[0] if alone else None


def _notes(hyper: Hyper) -> Iterator[str]:
    if hyper.type.per_group or hyper.type.grouped:
        yield "One for all groups, or a list with one for each"
    if hyper.type.grouped:
        yield "Kept in the parameter groups"
    if hyper.when is not None:
        yield f"Used where {printing.show_source(hyper.when)}"


def _raises(places: Places) -> str:
    schedule = places.schedule
    shared = [r.message for r in schedule.requires if _subject(schedule, r) is None]
    texts = ["an argument is out of its range", *dict.fromkeys(map(_in_words, shared))]
    functions = [h.name for h in schedule.hypers if h.type.base is Base.FUNCTION]
    raises = f"ValueError: {'; '.join(texts)}."
    return raises + (f" TypeError: {' or '.join(functions)} is no function." if functions else "")


def _in_words(message: str) -> str:
    """A message with the names of its values: they are not known yet."""
    return PLACEHOLDER.sub(lambda m: m[0][0] if m[1] is None else m[1], message).rstrip(".")


# The example


def _example(schedule: Schedule) -> Lines:
    """A training loop with the arguments of the spec's examples."""
    if not schedule.examples:
        return ()
    listed = [f"{e.name}={_argument(e)}" for e in schedule.examples if e.name != "metric"]
    metric = "validate(model)" if schedule.body else ""
    return (
        f"scheduler = {schedule.name}({', '.join(('optimizer', *listed))})",
        "for epoch in range(100):",
        "    train(model, optimizer)",
        f"    scheduler.step({metric})",
    )


def _argument(example: Example) -> str:
    if isinstance(example.value, tuple):
        return f"[{', '.join(map(signature.literal, example.value))}]"
    value = signature.literal(example.value)
    return f"lambda {', '.join(example.parameters)}: {value}" if example.parameters else value


# Equations, and the page that shows them


def page(schedule: Schedule) -> latex.View:
    """A page about a schedule, as there is one for each optimizer."""
    symbols = _symbols(schedule, r"\eta")
    own = [(r, _subject(schedule, r)) for r in schedule.requires]
    return latex.View(
        title=schedule.name,
        doc=schedule.doc or f"The learning-rate schedule {schedule.name}.",
        citations=schedule.cites,
        hypers=tuple(_row(schedule, h, symbols) for h in schedule.hypers),
        conditions=tuple(printing.show_source(r.condition) for r, about in own if about is None),
        states=(),
        sections=tuple(
            latex.Section(title.partition(",")[0].rstrip(":"), lines)
            for title, lines in equations(schedule)
        ),
    )


def _row(schedule: Schedule, hyper: Hyper, symbols: latex.Symbols) -> str:
    signs = ", ".join(f"${symbols[n]}$" for n in hyper.components or (hyper.name,))
    default = f"`{hyper.literal}`" if hyper.literal is not None else "required"
    conditions = ", ".join(f"`{c}`" for c in _conditions(schedule, hyper))
    return latex.row(f"`{hyper.name}`", signs, default, conditions)


def equations(schedule: Schedule) -> Iterator[tuple[str, Lines]]:
    """What a schedule computes, each with the words that stand before it."""
    forms = [("In closed form, which `step(epoch)` takes:", r"\eta_t", schedule.closed)]
    if schedule.chain is not None:
        title = "From the current rate, so that several schedules can act together:"
        forms.append((title, r"\eta_t", schedule.chain))
    forms += [(f"Of {t.name}:", rf"\mathrm{{{t.name}}}_t", t.closed) for t in schedule.targets]
    for title, left, form in forms:
        if form is not None:
            yield title, _form_equations(schedule, left, form)
    if schedule.body:
        yield "For each value of the metric:", _update_equations(schedule)


def _directives(schedule: Schedule) -> Iterator[tuple[str, Lines]]:
    return ((f"{title}\n\n.. math::", lines) for title, lines in equations(schedule))


def _form_equations(schedule: Schedule, left: str, form: Expr) -> Lines:
    """What a form needs, and its value at epoch t."""
    symbols = _symbols(schedule, r"\eta_{t-1}")
    kept = (Let(k.name, k.initial, kind_of(k.initial), k.span) for k in schedule.kept)
    made = sorted((*schedule.lets, *kept), key=lambda let: let.span.start)
    read = {r.name for r in refs(form)}
    phases, moving = _phases(schedule, symbols, read)
    values = needed_lets(made, (*refs(form), *moving))
    lines = [f"{symbols[let.name]} = {latex.cases(let.value, symbols)}" for let in values]
    return latex.aligned((*lines, *phases, f"{left} = {latex.cases(form, symbols)}"))


def _phases(
    schedule: Schedule, symbols: latex.Symbols, read: set[str]
) -> tuple[list[str], list[Ref]]:
    """The phases in words, as far as a form reads what they give; and what they read."""
    lines, found = list[str](), list[Ref]()
    for phase in schedule.phases:
        moves = [m for m in phase.moves if f"start_{m.target}" in read or f"end_{m.target}" in read]
        if not moves:
            continue
        when = "" if phase.when is None else rf" \text{{ if }} {symbols.show(phase.when)}"
        lines.append(rf"\text{{until }} {symbols.show(phase.end)}{when}\text{{:}}")
        for move in moves:
            start, end = f"start_{move.target}", f"end_{move.target}"
            lines.append(
                rf"\quad {symbols[start]} = {symbols[move.start]}, "
                rf"{symbols[end]} = {symbols[move.end]}"
            )
        found += refs(phase.end)
        found += (Ref(n, Role.STATE, Kind.SCALAR) for m in moves for n in (m.start, m.end))
    if lines:
        part = r"\text{ is the part of the phase that has passed}"
        lines.append(f"{symbols['progress']} {part}")
    return lines, found


def _update_equations(schedule: Schedule) -> Lines:
    lets = needed_lets(schedule.lets, reads(schedule.body))
    return latex.aligned(latex.statements((*lets, *schedule.body), _symbols(schedule, r"\eta")))


def _symbols(schedule: Schedule, rate: str) -> latex.Symbols:
    names = [n for h in schedule.hypers for n in (h.name, *h.components)]
    names += [k.name for k in schedule.kept] + [let.name for let in schedule.lets]
    names += [s.name for s in statements(schedule.body) if isinstance(s, Let)]
    targets = dict.fromkeys(m.target for p in schedule.phases for m in p.moves)
    moving = [f"{end}_{target}" for target in targets for end in ("start", "end")]
    given = {"lr": rate, "base_lr": r"\eta_{\mathrm{base}}", "initial": r"\text{at construction}"}
    return latex.Symbols(("t", "metric", "progress", *moving, *names), given)
