"""Average -> View: a class with the two forms; and -> the update that kernels are made of.

To the targets an average is an update like an optimizer's: `average` is in the place of the
parameter, the model's `param` in that of the gradient, and `n` is one more hyperparameter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from optdsl import passes, printing
from optdsl.ir import (
    Assign,
    Average,
    Base,
    Const,
    Expr,
    Hyper,
    If,
    Ref,
    Require,
    Role,
    Spec,
    Stmt,
    ValueType,
    apply,
    is_scalar,
    map_expr,
    map_stmt,
    reads,
    refs,
)
from optdsl.ops import Kind
from optdsl.passes.complex_views import is_linear, supports_complex
from optdsl.source import Source, Span
from optdsl.targets import latex, signature
from optdsl.targets.average.view import View
from optdsl.targets.foreach.lower import Foreach
from optdsl.targets.functional.lower import Functional, assigned
from optdsl.targets.layout import broken_assignment, comment, indented
from optdsl.targets.program import kernel_of
from optdsl.targets.signature import TYPES
from optdsl.targets.torch_code import Lines, Writer, unpack

N = Hyper("n", Kind.HYPER, ValueType(Base.INT), None, None)
PARAM = Ref("param", Role.PARAM, Kind.ELEMENTWISE)
GRAD = Ref("grad", Role.GRAD, Kind.ELEMENTWISE)
NOTE = ("Here `param` is the average and `grad` the model's parameter, which enters it.",)


def lower(average: Average) -> View:
    headline, *documentation = _documentation(average)
    spec = _spec(average, (*average.lets, average.multi))
    return View(
        name=average.name,
        headline=headline,
        documentation=indented(documentation),
        attributes=indented(_attributes(average)),
        parameters=_parameters(average),
        construction=indented(_construction(average), 2),
        checks=indented(tuple(_checks(average)), 2),
        each=indented(_each(average), 2),
        multi=indented(_multi(spec), 2),
    )


def update_of(average: Average) -> Spec:
    """An average as kernel targets take it: later models enter by `multi`, the first is copied."""
    lets = (map_stmt(let, _as_update) for let in average.lets)
    first = Assign(PARAM, GRAD, span=_said("average = param"))
    later = Assign(PARAM, _as_update(average.multi.value), span=average.multi.span)
    is_later = apply("ne", Ref("n", Role.GIVEN, Kind.HYPER), Const(0))
    return _spec(average, (*lets, If(is_later, (later,), (first,))))


def _spec(average: Average, body: tuple[Stmt, ...]) -> Spec:
    return Spec(
        average.name, average.source, average.doc, average.cites, (*average.hypers, N), (),
        average.requires, (), body, span=average.span,
    )  # fmt: skip


def _said(text: str) -> Span:
    """The place of a statement that no author wrote: the comment that it gets."""
    return Span(Source("", text), 0, len(text))


def _as_update(expr: Expr) -> Expr:
    """average -> param, param -> grad"""

    def rename(node: Expr) -> Expr:
        match node:
            case Ref(role=Role.PARAM):
                return replace(node, name=PARAM.name)
            case Ref(role=Role.GRAD):
                return replace(node, name=GRAD.name)
            case _:
                return node

    return map_expr(expr, rename)


# The forms


class _Each(Functional):
    """One tensor as an expression. All numbers are the host's."""

    def scalar_assignment(self, name: str, kind: Kind, value: Expr, indent: int) -> Lines:
        return broken_assignment(name, Writer.scalar(self, value), indent)


def _each(average: Average) -> Lines:
    spec = passes.for_expressions(_spec(average, (*average.lets, average.each)))
    writer = _Each(spec)
    *lets, form = spec.body
    assert isinstance(form, Assign)
    lines = [line for let in lets for line in writer.statement(let, writer.indent)]
    value = assigned("average", writer.text(form.value), writer.indent)
    return (*unpack(spec), *lines, comment(form.span.text), *value, "return average")


def _multi(spec: Spec) -> Lines:
    writer = Foreach(passes.optimise(spec))
    lines = (line for stmt in writer.spec.body for line in writer.statement(stmt, writer.indent))
    return (*unpack(writer.spec), *lines)


def _is_separable(average: Average) -> bool:
    """Whether real and imaginary parts of complex tensors can be elements of their own."""
    return supports_complex(_spec(average, (*average.lets, average.each, average.multi)))


def _is_linear(average: Average) -> bool:
    """Whether complex tensors and their real and imaginary parts have the same average."""
    values = [let.value for let in average.lets if not is_scalar(let.value)]
    return all(map(is_linear, (*values, average.each.value, average.multi.value)))


# The class


def _attributes(average: Average) -> Lines:
    has_kernel = kernel_of(update_of(average)) is not None
    lines = [f'kernels = "{average.name.lower()}"'] if has_kernel else []
    if not _is_separable(average):
        lines.append("separable = False")
    elif not _is_linear(average):
        lines.append("linear = False")
    return tuple(lines)


def _annotation(hyper: Hyper) -> str:
    """A number may be a function of the number of models."""
    if hyper.components or hyper.type.base not in (Base.REAL, Base.INT):
        return signature.annotation(hyper, "float")
    base = TYPES[hyper.type.base]
    unset = " | None" if hyper.type.optional or signature.is_dependent(hyper) else ""
    return f"{base} | Callable[[int], {base}]{unset}"


def _parameters(average: Average) -> Lines:
    """Hyperparameters, then options by keyword only."""
    numbers = [h for h in average.hypers if h.kind is not Kind.OPTION]
    options = [h for h in average.hypers if h.kind is Kind.OPTION]
    first, last = (
        [signature.parameter(h, _annotation(h)) for h in part] for part in (numbers, options)
    )
    return (*first, *(["*", *last] if last else []))


def _construction(average: Average) -> Lines:
    dependent = [h for h in average.hypers if signature.is_dependent(h)]
    lines = [line for h in dependent for line in signature.resolution(h)]
    entries = ", ".join(f'"{h.name}": {h.name}' for h in average.hypers)
    return (*lines, f"super().__init__({{{entries}}})")


def _checks(average: Average) -> Iterator[str]:
    """The body of `check`: the names that it reads, then a refusal for each condition."""
    shown = "".join(r.message for r in average.requires)
    used = {ref.name for r in average.requires for ref in refs(r.condition)}
    for hyper in (*average.hypers, N):
        read = [c for c in hyper.components if c in used or f"{{{c}}}" in shown]
        if read:
            names = ", ".join(c if c in read else "_" for c in hyper.components)
            yield f'{names} = group["{hyper.name}"]'
        elif hyper.name in used or f"{{{hyper.name}}}" in shown or hyper.type.choices:
            yield f'{hyper.name} = group["{hyper.name}"]'
    for hyper in average.hypers:
        if hyper.type.choices:
            listed = ", ".join(map(signature.quoted, hyper.type.choices))
            more = ", None" if hyper.type.optional else ""
            text = f"{hyper.name} must be one of {', '.join(hyper.type.choices)}"
            failed = f"{hyper.name} not in ({listed}{more})"
            yield from signature.refusal(failed, signature.quoted(text))
    for require in average.requires:
        wrong = printing.none_tests(signature.negated(require.condition))
        message = signature.message(require.message, str)
        yield from signature.refusal(printing.show(wrong, printing.host), message)


# Documentation


def _documentation(average: Average) -> Lines:
    first, *rest = signature.wrapped(average.doc or f"The average {average.name}.", 8)
    lines = [*rest]
    if average.hypers:
        lines += ["", "Args:"]
        lines += (line for h in average.hypers for line in indented(_described(average, h)))
        lines += ["", "Raises:", *indented(signature.wrapped(_errors(average), 12))]
    lines += ["", ".. math::", "", *indented(_equations(average))]
    if average.cites:
        lines += ["", "References:"]
        lines += (line for c in average.cites for line in indented(signature.wrapped(c, 12)))
    return (first, *lines)


def _described(average: Average, hyper: Hyper) -> Lines:
    own = (r for r in average.requires if _subjects(average, r) == [hyper.name])
    conditions = (printing.show_source(r.condition) for r in own)
    return signature.described(hyper, _annotation(hyper), conditions)


def _errors(average: Average) -> str:
    shared = [r.condition for r in average.requires if len(_subjects(average, r)) != 1]
    conditions = "; ".join(map(printing.show_source, shared))
    more = f", or this does not hold: {conditions}" if shared else ""
    return f"ValueError: an argument is out of its range{more}."


def _subjects(average: Average, require: Require) -> list[str]:
    """The arguments that a condition is about."""
    return [h.name for h in average.hypers if {h.name, *h.components} & set(require.hypers)]


def _equations(average: Average) -> Lines:
    names = [n for h in average.hypers for n in (h.name, *h.components)]
    names += [let.name for let in average.lets]
    symbols = latex.Symbols(names, {"average": r"\bar\theta", "param": r"\theta", "n": "n"})
    form = average.each
    used = {r.name for r in reads((*average.lets, form))}
    lets = (let for let in average.lets if let.name in used)
    return latex.aligned(latex.statements((*lets, form), symbols))
