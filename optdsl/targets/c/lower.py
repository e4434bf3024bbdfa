"""Kernel -> View: a loop over the elements of all tensors, as text in C."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import assert_never

from optdsl import printing
from optdsl.ir import (
    Assign,
    Const,
    Descend,
    Expr,
    If,
    Let,
    Ref,
    Repeat,
    Role,
    Spec,
    Stmt,
    map_expr,
    statements,
    type_of,
)
from optdsl.ops import TABLE, Call, Op, Spelling, Type
from optdsl.passes.stages import is_reduction
from optdsl.targets.c.view import Column, Lines, Operand, Term, View
from optdsl.targets.c.view import Pass as PassView
from optdsl.targets.layout import INDENT, WIDTH, broken_assignment, indented
from optdsl.targets.program import kernel
from optdsl.targets.program.kernel import (
    Kernel,
    Pass,
    body_refs,
    has_constant,
    headers,
    kernel_of,
    type_constant,
)
from optdsl.targets.program.scalars import computed, identifier

# Names that are not free for an author's: words of C that are none of Python's, what the template
# calls its own, and what expressions or the headers call.
WORDS = (
    *("auto", "bool", "char", "const", "complex", "default", "do", "double", "enum", "extern"),
    *("float", "goto", "imaginary", "inline", "int", "long", "register", "restrict", "short"),
    *("signed", "sizeof", "static", "struct", "switch", "typedef", "union", "unsigned", "void"),
    *("volatile", "linux", "unix"),
)
OWN = (
    *("piece", "row", "factor", "first", "size", "at", "i", "lane", "low", "partial", "reduced"),
    *("fma", "memcpy", "memset"),
)
FUNCTIONS = (op.c.name for op in TABLE if isinstance(op.c, Call))
# Functions as they are defined, and macros that stand for them.
DEFINED = re.compile(r"^static [\w *]*?(\w+)\(|^#define ([a-z]\w*)", re.MULTILINE)
TAKEN = frozenset(
    {*WORDS, *OWN, *FUNCTIONS, *(name or macro for name, macro in DEFINED.findall(headers()))}
)
# Endings of names that belong to an operand.
ENDINGS = (
    "_at",
    "_spare",
    "_cells",
    "_cell",
    "_new",
    "_scales",
    "_key",
    "_start",
    "_terms",
    "_before",
    "_wide",
)
# The loop is compiled for each combination of this many conditions; others choose in it.
MOST_CONDITIONS = 3
# The columns in which the statements of the loop stand.
DEPTH = 5


def lower(spec: Spec, note: Lines = ()) -> View | None:
    """None where there is no kernel. `note` is what the text's first comment says besides."""
    found = kernel_of(spec)
    return None if found is None else _view(found, note)


def _view(kernel: Kernel, note: Lines) -> View:
    types = [o.type for o in _operands(kernel, kernel.passes[-1])]
    numbered = list(enumerate(kernel.passes[:-1], start=1))
    return View(
        name=kernel.name,
        note=note,
        column_count=len(kernel.columns) + len(kernel.scalar_slots),
        operand_count=len(kernel.operands),
        reduction_count=sum(len(each.reductions) for each in kernel.passes),
        narrow=_chained("&&", (f"IS_NARROW({type})" for type in types), " \\"),
        blocked=indented(_chained("|", (f"IS_BLOCKED({type})" for type in types))),
        passes=(*(_stage(kernel, each, n) for n, each in numbered), _update(kernel)),
        stages=tuple(
            f"{{LOCAL(stage_{n}), LOCAL(total_{n}), {len(each.reductions)}}}"
            for n, each in numbered
        ),
    )


def _update(kernel: Kernel) -> PassView:
    return _pass(kernel, kernel.passes[-1], "update", "pass", "Update")


def _stage(kernel: Kernel, each: Pass, number: int) -> PassView:
    part = _pass(kernel, each, f"stage_{number}", f"pass_{number}", "Measure")
    return replace(part, total=f"total_{number}", terms=tuple(_terms(each)), updates=False)


def _pass(kernel: Kernel, each: Pass, name: str, loop: str, does: str) -> PassView:
    columns = tuple(
        Column(_safe(name), str(kernel.columns.index(name)), name in kernel.flags)
        for name in each.columns
    )
    conditions = tuple(c for c in columns if c.flag)[:MOST_CONDITIONS]
    worked = {_safe(r.name) for r in body_refs(each.numbers)}
    met = {_safe(name) for name in each.met}
    plain = (c for c in columns if c not in conditions and (c.flag or c.name in met - worked))
    arguments = [*(c.name for c in conditions), "piece", *(["partial"] if each.reductions else [])]
    return PassView(
        name=name,
        loop=loop,
        does=does,
        updates=True,
        conditions=conditions,
        reads_row=len(columns) > len(conditions) or not each.reductions,
        reads_reduced=bool(each.known),
        columns=tuple(plain),
        numbers=indented(_numbers(kernel, each)),
        uses_grad=any(o.name == "grad" and o.read for o in each.operands),
        operands=tuple(_operands(kernel, each)),
        body=indented(_block(kernel, each.body), DEPTH),
        call=_calls([c.name for c in conditions], f"LOCAL({loop})({', '.join(arguments)})"),
        total="",
        terms=(),
    )


# What becomes of the terms of a reduction, and of their total: the total of a tensor is a term
# where all parameters make a number.
COMBINED = {"norm": ("add_square", "total"), "max_abs": ("keep_larger", "largest")}
FINISHED = {"mean": "{} / size_of(batch, tensor)", "norm": "sqrt({})"}


def _terms(each: Pass) -> Iterator[Term]:
    always = {s.name for s in each.body if isinstance(s, Let)}
    stride = len(each.reductions)
    for n, reduction in enumerate(each.reductions):
        name = _safe(reduction.name)
        take, combine = COMBINED.get(reduction.of_one, ("add", "total"))
        made = f"{combine}(partial{f' + {n}' if n else ''}, pieces, {stride})"
        yield Term(
            name=name,
            first=() if reduction.name in always else indented((f"double {name} = 0;",), DEPTH),
            take=take,
            left=f"partial[{n}] = {combine}_of_step({name}_terms);",
            made=f"reduced[{reduction.place}] = {FINISHED.get(reduction.op, '{}').format(made)};",
        )


# Operands


def _operands(kernel: Kernel, each: Pass) -> Iterator[Operand]:
    low = len(kernel.operands)
    for row, operand in enumerate(each.operands):
        if not operand.read:
            continue
        name, type = _safe(operand.name), type_constant(operand.name)
        get = f"GET({name}, {type})"
        get = f"factor * {get}" if operand.name == "grad" else get
        put = f"PUT({name}, {type}, {name});" if operand.written else ""
        scales = low + row - 1 if operand.slot else 0
        yield Operand(
            name, type, str(row), str(scales), _present(operand),
            f"real {name} = {get};", put, operand.written,
        )  # fmt: skip
    # What the parameter's type leaves out: reading and writing the parameter takes care of it.
    yield Operand("low", "LOW_TYPE", str(low), "0", "HAS_LOW", "", "", not each.reductions)


def _present(operand: kernel.Operand) -> str:
    """The condition that a tensor exists."""
    slot = operand.slot
    if slot is None or slot.when is None:
        return "true"
    return has_constant(slot.name) if kernel.is_optional(slot) else _show(slot.when, {})


# Statements


def _block(kernel: Kernel, body: Iterable[Stmt], inside: bool = False) -> Lines:
    return tuple(line for stmt in body for line in _statement(kernel, stmt, inside))


def _statement(kernel: Kernel, stmt: Stmt, inside: bool) -> Lines:
    match stmt:
        case Let(name=name, value=value):
            kind = "bool" if type_of(value) is Type.BOOL else "real"
            if is_reduction(stmt):
                # In a branch it is another value of the name, which there is already.
                kind = "" if inside else "double"
            return (_comment(stmt), *_assignment(kind, _safe(name), _show(value, kernel.presence)))
        case Assign(target=target, value=value):
            return (
                _comment(stmt),
                *_assignment("", _safe(target.name), _show(value, kernel.presence)),
            )
        case If(condition=condition):
            then, orelse = (indented(_block(kernel, b, True)) for b in (stmt.then, stmt.orelse))
            shown = _show(condition, kernel.presence)
            if not then:
                return (f"if (!{shown}) {{", *orelse, "}")
            lines = (f"if ({shown}) {{", *then)
            return (*lines, "} else {", *orelse, "}") if orelse else (*lines, "}")
        case Descend() | Repeat():
            raise AssertionError("lower_descend has run, and a repeat has no kernel")
        case _:
            assert_never(stmt)


def _comment(stmt: Stmt) -> str:
    return f"// {' '.join(stmt.span.text.split())}"


def _assignment(kind: str, name: str, value: str, depth: int = DEPTH) -> Lines:
    """`real x = value;` The layout is Python's, whose expressions ours are."""
    target = f"{kind}_{name}" if kind else name
    lines = list(broken_assignment(target, value, depth * len(INDENT)))
    lines[0] = lines[0].replace(f"{kind}_", f"{kind} ", 1) if kind else lines[0]
    for n, following in enumerate(lines[1:]):
        if following.lstrip().startswith(")"):
            lines[n] = lines[n].removesuffix(",")
    lines[-1] += ";"
    return tuple(lines)


def _show(expr: Expr, presence: Mapping[str, str]) -> str:
    def leaf(leaf: Const | Ref) -> str:
        match leaf:
            case Ref(role=Role.OPTION, name=name):
                return name.upper()
            case Ref(role=Role.COLUMN, name=name):
                return presence.get(name, _safe(name))
            case Ref(name=name):
                return _safe(name)
            case Const(value=bool() as value):
                return str(value).lower()
            case Const(value=float() as value) if math.isinf(value):
                return "R(INFINITY)" if value > 0 else "R(-INFINITY)"
            case Const():
                return f"R({printing.python_leaf(replace(leaf, symbol=''))})"
            case _:
                assert_never(leaf)

    return printing.show(map_expr(expr, computed), printing.c, leaf)


# The work of a pass on numbers, in float64: there a name has another one.


def _numbers(kernel: Kernel, each: Pass) -> Lines:
    """Lines that end with what elements meet, in the type of their arithmetic."""
    worked = {r.name for r in body_refs(each.numbers)}
    made = {s.name for s in statements(each.numbers) if isinstance(s, Let)}
    lines = [
        f"const double {_wide(name)} = row[{kernel.columns.index(name)}];"
        for name in each.columns
        if name in worked and name not in kernel.flags
    ]
    lines += (f"const double {_wide(r.name)} = reduced[{r.place}];" for r in each.known)
    declared: set[str] = set()
    for stmt in each.numbers:
        lines += _number_lines(kernel, each, stmt, declared)
    others = made | {r.name for r in each.known} | (worked - kernel.flags)
    for name in each.met:
        if name in others:
            is_flag = name in each.flags
            value = _wide(name) if is_flag else f"number({_wide(name)})"
            lines.append(f"const {'bool' if is_flag else 'real'} {_safe(name)} = {value};")
    return tuple(lines)


def _number_lines(kernel: Kernel, each: Pass, stmt: Stmt, declared: set[str]) -> Lines:
    match stmt:
        case Let(name=name, value=value) | Assign(target=Ref(name=name), value=value):
            kind = "bool" if type_of(value) is Type.BOOL else "double"
            kind = kind if isinstance(stmt, Let) and name not in declared else ""
            declared.add(name)
            lines = _assignment(kind, _wide(name), _show_wide(value, kernel), 1)
            return (_comment(stmt), *lines) if name in kernel.own else lines
        case If(condition=condition):
            sides = (stmt.then, stmt.orelse)
            then, orelse = (
                indented(line for s in side for line in _number_lines(kernel, each, s, declared))
                for side in sides
            )
            lines = (f"if ({_show_wide(condition, kernel)}) {{", *then)
            return (*lines, "} else {", *orelse, "}") if orelse else (*lines, "}")
        case Descend() | Repeat():
            raise AssertionError("neither is work on numbers")
        case _:
            assert_never(stmt)


def _show_wide(expr: Expr, kernel: Kernel) -> str:
    def leaf(leaf: Const | Ref) -> str:
        match leaf:
            case Ref(role=Role.OPTION, name=name):
                return name.upper()
            case Ref(role=Role.COLUMN, name=name) if name in kernel.presence:
                return kernel.presence[name]
            case Ref(name=name):
                return _safe(name) if name in kernel.flags else _wide(name)
            case Const(value=bool() as value):
                return str(value).lower()
            case Const(value=int() | float() as value) if math.isinf(value):
                return "(double)INFINITY" if value > 0 else "(double)-INFINITY"
            case Const(value=int() | float() as value):
                return repr(float(value))
            case _:
                raise AssertionError("a number")

    return printing.show(map_expr(expr, computed), _in_double, leaf)


def _in_double(op: Op) -> Spelling | None:
    """The spelling in C, of functions that arithmetic.h has for each type the one for double."""
    match op.c:
        case Call(name=name) if name in TYPED:
            return Call(f"{name}_double")
        case spelling:
            return spelling


# What arithmetic.h defines for each type.
TYPED = frozenset(re.findall(r"\bN\((\w+)\)\(", headers()))


# Names and lines


def _safe(name: str) -> str:
    """An author's name where it is free: `size` -> `size_`, `x_at` -> `x_at_`, `ONE` -> `ONE_`."""
    name = identifier(name)
    taken = name in TAKEN or name.endswith(ENDINGS) or name.isupper()
    return f"{name}_" if taken else name


def _wide(name: str) -> str:
    """A number's name in float64."""
    return f"{_safe(name)}_wide"


def _chained(operator: str, operands: Iterable[str], end: str = "") -> Lines:
    """A line for each operand. All but the last have the `end`."""
    first, *others = operands
    lines = [first, *(f"    {operator} {other}" for other in others)]
    return (*(f"{line}{end}" for line in lines[:-1]), lines[-1])


def _calls(conditions: Sequence[str], call: str) -> Lines:
    """A copy of the loop, which is in the call, for each combination of conditions."""
    fixes = [f"FIX({condition}, " for condition in conditions]
    line = f"{''.join(fixes)}{call}{')' * len(fixes)}"
    if len(line) + len(INDENT) < WIDTH:
        return indented((f"{line};",))
    lines = [INDENT * n + fix.rstrip() for n, fix in enumerate(fixes)]
    return indented((*lines, f"{INDENT * len(fixes)}{call}{')' * len(fixes)};"))
