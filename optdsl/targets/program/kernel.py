"""Spec -> Kernel: what every kernel target shares. The scalar work becomes a program of its own,
whose numbers a kernel reads from a table; what is left specialises the kernel or is an element's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache

from optdsl import passes, printing, resources
from optdsl.ir import (
    STORED,
    Apply,
    Assign,
    Base,
    Const,
    Expr,
    Hyper,
    Let,
    Ref,
    Role,
    Spec,
    Stage,
    State,
    Stmt,
    expressions,
    kind_of,
    map_expr,
    map_stmt,
    reads,
    refs,
    statements,
    type_of,
    walk,
)
from optdsl.ops import OPS, Kind, Rule, Type
from optdsl.passes.stages import is_elementwise, numbers_and_elements

# Constants that kernels have whatever the spec: an option that is called so has no kernel.
OWN_CONSTANTS = (
    *("COMPUTE", "MAXIMIZE", "GRAD_SCALE", "FOUND_INF", "ALIGNED", "VECTOR", "BLOCK"),
    *("TENSORS", "CHUNKS", "GIVEN", "TABLE", "COUNT", "DRAW", "PARTIAL", "REDUCED"),
    *("PARAM_ROUNDING", "SLOT_ROUNDING"),
)


@dataclass(frozen=True, slots=True)
class Input:
    """What the scalar program is given: its name, where the host finds it, whether it is a flag."""

    name: str
    source: str
    flag: bool


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor that a kernel goes through: the parameter, the gradient, or a slot, which may be
    absent."""

    name: str
    slot: State | None
    read: bool
    written: bool


@dataclass(frozen=True, slots=True)
class Reduction:
    """A number that a pass makes of a tensor's elements, by the operator `op`; `place` is its place
    among those of all passes. Where it is a number of all parameters, a pass leaves the term of
    each, and what is at that place behind the pass is the total."""

    name: str
    op: str
    place: int

    @property
    def is_total(self) -> bool:
        return OPS[self.op].rule is Rule.TOTAL

    @property
    def of_one(self) -> str:
        """The operator of one tensor's elements that it is made by: `all_norm` -> `norm`"""
        return self.op.removeprefix("all_")


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass over the elements. `numbers` is its work on numbers of one tensor, which it does once:
    on `columns`, and on the reductions of earlier passes that are `known`. Of all these, elements
    meet those that are `met`; `flags` are conditions. All passes but the last store nothing, and
    make `reductions`: for each, `body` has `let name = norm(x)`."""

    operands: tuple[Operand, ...]
    columns: tuple[str, ...]
    known: tuple[Reduction, ...]
    numbers: tuple[Stmt, ...]
    met: tuple[str, ...]
    flags: frozenset[str]
    body: tuple[Stmt, ...]
    reductions: tuple[Reduction, ...]


@dataclass(frozen=True, slots=True)
class Kernel:
    """An update as `passes` over the elements behind a program of scalars: one, and another before
    it for each number of a whole tensor that needs those of the passes before. `operands` are what
    the last one reads and writes.

    `options`, the presence of the `optional` slots and the types of the operands specialise the
    kernel; `deciding` are the entries of a group that the former two follow from. `columns` are the
    numbers that the passes read, `inputs` what the program reads besides the scalar slots, `flags`
    the names of both that are conditions. `presence` has the columns that say the same as the
    constant of a slot. `own` are the names that the author gave.
    """

    name: str
    own: frozenset[str]
    operands: tuple[Operand, ...]
    scalar_slots: tuple[str, ...]
    options: tuple[str, ...]
    optional: tuple[str, ...]
    deciding: tuple[str, ...]
    presence: Mapping[str, str]
    columns: tuple[str, ...]
    inputs: tuple[Input, ...]
    flags: frozenset[str]
    program: tuple[Stmt, ...]
    passes: tuple[Pass, ...]


def kernel_of(spec: Spec) -> Kernel | None:
    """None for a derived optimizer, whose class inherits the base's kernel, and for one that a pass
    over the elements cannot compute."""
    if spec.base is not None or spec.routine or not is_elementwise(spec):
        return None
    # A number that not every parameter has would need a table of its own.
    if any(s.when is not None or s.integer for s in spec.states if s.kind is Kind.SCALAR):
        return None
    if not all(map(_given, _nodes(spec.body))):
        return None
    if spec.sparse.mode == "only":
        return None  # kernels read dense gradients
    kernel = _kernel(spec)
    # Two options, or an option and a slot's type, may meet in one constant.
    names = (*constants(kernel), *OWN_CONSTANTS)
    distinct = len({*names}) == len(names) and not _words_of_headers() & {*constants(kernel)}
    return kernel if distinct and _is_spellable(kernel) else None


@cache
def headers() -> str:
    """The texts that kernels in C include."""
    folder = resources.templates() / "package" / "_c"
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.h")))


@cache
def _words_of_headers() -> frozenset[str]:
    """What the headers of kernels in C call their own, among which are all macros in capitals."""
    words = set(re.findall(r"(?:\b|_)([A-Z][A-Z0-9_]*)\b", headers()))
    return frozenset(words - {type_constant("param"), type_constant("grad")})


def constants(kernel: Kernel) -> tuple[str, ...]:
    """What specialises a kernel: the operands' types, the presence of slots, and options."""
    types = [type_constant(o.name) for o in kernel.operands]
    return (*types, *map(has_constant, kernel.optional), *(n.upper() for n in kernel.options))


def type_constant(operand: str) -> str:
    return f"{operand.upper()}_TYPE"


def has_constant(slot: str) -> str:
    return f"HAS_{slot.upper()}"


def unset_name(slot: str) -> str:
    return f"unset_{slot}"


def _given(node: Ref | Apply) -> bool:
    """Tables hold numbers: none stands for a text, or for an optional hyperparameter that is
    unset."""
    match node:
        case Ref(type=type):
            return type is not Type.TEXT
        case Apply(op="unset", kind=kind):
            return kind > Kind.HYPER
        case _:
            return True


def _is_spellable(kernel: Kernel) -> bool:
    """Whether Python, Triton and C have a word for each operator."""

    def has(body: tuple[Stmt, ...], *columns: printing.Column) -> bool:
        rows = [OPS[e.op] for e in _nodes(body) if isinstance(e, Apply)]
        return all(column(row) is not None for row in rows for column in columns)

    work = tuple(stmt for each in kernel.passes for stmt in (*each.numbers, *each.body))
    return has(kernel.program, printing.host, printing.triton) and has(
        work, printing.triton, printing.c
    )


def _nodes(body: tuple[Stmt, ...]) -> Iterator[Ref | Apply]:
    for stmt in statements(body):
        for expr in expressions(stmt):
            yield from (e for e in walk(expr) if not isinstance(e, Const))


def body_refs(body: tuple[Stmt, ...]) -> Iterator[Ref]:
    return (e for e in _nodes(body) if isinstance(e, Ref))


def _kernel(spec: Spec) -> Kernel:
    optimised = passes.optimise(spec)
    hoisted = passes.for_kernels(optimised)
    slots = tuple(s for s in spec.states if s.kind is not Kind.SCALAR)
    scalar_slots = tuple(s.name for s in spec.states if s.kind is Kind.SCALAR)
    bodies = (*(s for stage in hoisted.stages for s in stage.body), *hoisted.body)
    used = {r.name for r in body_refs(bodies)}
    presence = _presence(slots, hoisted.scalars)
    columns = tuple(n for n in hoisted.columns if n in used and n not in presence)
    scalars = tuple(map_stmt(s, _name_unset) for s in hoisted.scalars)
    program = _needed_by({*columns, *scalar_slots}, scalars)
    inputs = tuple(_inputs(spec, slots, program, columns))
    flags = frozenset(_flags(inputs, program))
    return Kernel(
        name=spec.name,
        # To tell them from names that hoisting made.
        own=frozenset(s.name for s in statements(optimised.body) if isinstance(s, Let)),
        operands=_operands(slots, hoisted.body),
        scalar_slots=scalar_slots,
        options=_options(spec, slots, bodies),
        optional=tuple(s.name for s in slots if is_optional(s)),
        deciding=_deciding(spec, slots, bodies),
        presence=presence,
        columns=columns,
        inputs=inputs,
        flags=flags,
        program=program,
        passes=tuple(_passes(hoisted, slots, columns, flags)),
    )


def _passes(
    spec: Spec, slots: tuple[State, ...], columns: tuple[str, ...], flags: frozenset[str]
) -> Iterator[Pass]:
    known: tuple[Reduction, ...] = ()
    last = Stage(spec.body, ())
    for stage in (*spec.stages, last):
        used = {r.name for r in body_refs(stage.body)}
        numbers, body = numbers_and_elements(stage.body)
        lets = {s.name: s.value for s in statements(stage.body) if isinstance(s, Let)}
        made = {s.name for s in statements(numbers) if isinstance(s, Let)}
        found = {*columns, *(k.name for k in known), *made}
        operands = _operands(slots, body)
        if stage is not last:
            read = {r.name for r in body_refs(body)}
            operands = tuple(replace(o, read=o.name in read, written=False) for o in operands)
        reductions = tuple(
            Reduction(name, value.op, place)
            for place, name in enumerate(stage.reductions, start=len(known))
            if isinstance(value := lets[name], Apply)
        )
        yield Pass(
            operands=operands,
            columns=tuple(n for n in columns if n in used),
            known=tuple(k for k in known if k.name in used),
            numbers=numbers,
            met=tuple(dict.fromkeys(r.name for r in body_refs(body) if r.name in found)),
            flags=flags | {n for n in made if type_of(lets[n]) is Type.BOOL},
            body=body,
            reductions=reductions,
        )
        known += reductions


# What specialises the kernel


def is_optional(slot: State) -> bool:
    """Whether a slot exists by more than options: its presence is then a constant of its own."""
    return slot.when is not None and kind_of(slot.when) is not Kind.OPTION


def _options(spec: Spec, slots: Iterable[State], body: tuple[Stmt, ...]) -> tuple[str, ...]:
    """The options that the body branches on, in the order of declaration."""
    used = {r.name for r in body_refs(body) if r.role is Role.OPTION}
    used |= {
        r.name for s in slots if s.when is not None and not is_optional(s) for r in refs(s.when)
    }
    return tuple(h.name for h in spec.hypers if h.name in used)


def _deciding(spec: Spec, slots: Iterable[State], body: tuple[Stmt, ...]) -> tuple[str, ...]:
    """The hyperparameters that decide which kernel a parameter needs."""
    names = {r.name for s in slots if s.when is not None for r in refs(s.when)}
    names |= set(_options(spec, slots, body))
    return tuple(h.name for h in spec.hypers if names & {h.name, *h.components})


def _presence(slots: Iterable[State], scalars: tuple[Stmt, ...]) -> dict[str, str]:
    """Columns that repeat the condition of a slot, with the constant that says the same."""
    conditions = {s.when: has_constant(s.name) for s in slots if is_optional(s)}
    return {
        stmt.name: conditions[stmt.value]
        for stmt in scalars
        if isinstance(stmt, Let) and stmt.value in conditions
    }


def _operands(slots: Iterable[State], body: tuple[Stmt, ...]) -> tuple[Operand, ...]:
    written = {
        s.target.name for s in statements(body) if isinstance(s, Assign) and s.target.role in STORED
    }
    used = {r.name for r in body_refs(body)} | written | {"grad"}
    named = [("param", None), ("grad", None), *((s.name, s) for s in slots)]
    return tuple(Operand(name, slot, name in used, name in written) for name, slot in named)


# The scalar program


def _needed_by(names: set[str], scalars: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
    """The statements that a column or a slot needs."""
    kept: list[Stmt] = []
    needed = {*names}
    for stmt in reversed(scalars):
        match stmt:
            case Let(name=name, value=Ref(name=same)) if name == same:
                needed.add(name)
                continue
            case Let(name=name) if name not in needed:
                continue
            case _:
                kept.append(stmt)
        needed |= {r.name for r in reads((stmt,))}
    return tuple(reversed(kept))


def _inputs(
    spec: Spec, slots: Iterable[State], program: tuple[Stmt, ...], columns: Iterable[str]
) -> Iterator[Input]:
    used = {r.name for r in reads(program)} | {*columns}
    for hyper in spec.hypers:
        yield from _hyper_inputs(hyper, used)
    asked = {r.name: r for r in reads(program) if r.role is Role.PROPERTY}
    for name, ref in sorted(asked.items()):
        yield Input(name, printing.python_leaf(ref), ref.type is Type.BOOL)
    for slot in slots:
        if unset_name(slot.name) in used:
            yield Input(unset_name(slot.name), f'"{slot.name}" in unset', True)


def _hyper_inputs(hyper: Hyper, used: set[str]) -> tuple[Input, ...]:
    flag = hyper.kind is Kind.OPTION or hyper.type.base is Base.BOOL
    if used & set(hyper.components):
        return tuple(Input(c, f'*group["{hyper.name}"]', False) for c in hyper.components)
    if hyper.name in used:
        return (Input(hyper.name, f'group["{hyper.name}"]', flag),)
    return ()


def _flags(inputs: Iterable[Input], program: tuple[Stmt, ...]) -> Iterator[str]:
    yield from (i.name for i in inputs if i.flag)
    lets = (s for s in program if isinstance(s, Let))
    yield from (s.name for s in lets if type_of(s.value) is Type.BOOL)


def _name_unset(expr: Expr) -> Expr:
    """unset(slot) -> a flag that the host gives."""

    def name(node: Expr) -> Expr:
        match node:
            case Apply(op="unset", args=(Ref(name=slot),)):
                return Ref(unset_name(slot), Role.LOCAL, Kind.SCALAR, Type.BOOL, node.span)
            case _:
                return node

    return map_expr(expr, name)
