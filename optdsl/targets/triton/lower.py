"""Spec -> View: a kernel without scalar work, and the scalar work as a program of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from ctypes import c_float
from dataclasses import dataclass, replace
from functools import cached_property
from typing import assert_never

import numpy as np

from optdsl import passes, printing
from optdsl.ir import (
    STORED,
    Apply,
    Assign,
    Base,
    Const,
    Descend,
    Expr,
    Hyper,
    If,
    Let,
    Ref,
    Repeat,
    Role,
    Spec,
    State,
    Stmt,
    apply,
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
from optdsl.ops import OPS, SYMBOLS, Kind, Type
from optdsl.printing import Unspellable
from optdsl.targets.layout import (
    WIDTH,
    bracketed,
    broken_assignment,
    broken_call,
    comment,
    indented,
)
from optdsl.targets.triton.view import Entry, Lines, Tensor, View

# What a kernel of one pass over the elements can compute.
KINDS = frozenset({Kind.OPTION, Kind.HYPER, Kind.SCALAR, Kind.ELEMENTWISE})
# Names that the template uses itself, where an author's names stand too.
TAKEN = frozenset(
    {"tl", "triton", "float", "group", "param", "grad", "unset", "given", "tensor", "chunk", "row"}
    | {"numel", "first_chunk", "offset", "remaining", "lanes", "mask", "addresses", "found_inf"}
)
OWN_CONSTANTS = (
    "GRAD_SCALE",
    "FOUND_INF",
    "ALIGNED",
    "VECTOR",
    "BLOCK",
    "TENSORS",
    "CHUNKS",
    "TABLE",
    "COUNT",
)
# The rows of the table of tensors before the first address: size, first chunk, row of the table of
# numbers, row of inputs.
FIRST_ADDRESS = 4


def lower(spec: Spec, note: tuple[str, ...] = ()) -> View | None:
    """None for a derived optimizer, whose class inherits the base's kernel, and for one that a pass
    over the elements cannot compute. `note` is what the module's docstring says besides."""
    if spec.base is not None or spec.routine or not _is_elementwise(spec):
        return None
    if spec.sparse.mode == "only":
        return None  # kernels read dense gradients
    try:
        view = replace(_Lowering(spec).view(), note=note)
    except Unspellable:
        return None
    # Two options, or an option and a slot's type, may meet in one constant.
    constants = (*view.constants, *OWN_CONSTANTS)
    return view if len({*constants}) == len(constants) else None


def _is_elementwise(spec: Spec) -> bool:
    # A number that not every parameter has would need a table of its own.
    always = all(s.when is None and not s.integer for s in spec.states if s.kind is Kind.SCALAR)
    simple = not any(isinstance(s, Repeat) for s in statements(spec.body))
    return always and simple and all(e.kind in KINDS and _given(e) for e in _nodes(spec.body))


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


def _nodes(body: tuple[Stmt, ...]) -> Iterator[Ref | Apply]:
    for stmt in statements(body):
        for expr in expressions(stmt):
            yield from (e for e in walk(expr) if not isinstance(e, Const))


@dataclass(frozen=True)
class _Input:
    """What the scalar program is given: its name, where the host finds it, whether it is a flag."""

    name: str
    source: str
    flag: bool


class _Lowering:
    def __init__(self, spec: Spec) -> None:
        optimised = passes.optimise(spec)
        hoisted = passes.for_kernels(optimised)
        self.spec = hoisted
        # Statements of the author, to tell them from names that hoisting made.
        self.own = {s.name for s in statements(optimised.body) if isinstance(s, Let)}
        self.tensor_slots = tuple(s for s in spec.states if s.kind is not Kind.SCALAR)
        self.scalar_slots = tuple(s.name for s in spec.states if s.kind is Kind.SCALAR)
        self.scalars = tuple(map_stmt(s, _name_unset) for s in hoisted.scalars)

    def view(self) -> View:
        inputs = self.inputs
        sources = tuple(dict.fromkeys(i.source for i in inputs))
        results = (*self.columns, *self.scalar_slots)
        arguments = [f"{_safe(i.name)}: float" for i in inputs]
        arguments += [f"{_safe(name)}: float" for name in self.scalar_slots]
        slots_end = FIRST_ADDRESS + 2 + len(self.tensor_slots)
        program = self.program
        text = "\n".join(self.host(program))
        return View(
            name=self.spec.name,
            note=(),
            slots=_names(s.name for s in self.tensor_slots),
            scalar_slot_names=_names(self.scalar_slots),
            options=_names(self.options),
            optional_slots=_names(s.name for s in self.tensor_slots if self.is_optional(s)),
            deciding=_names(self.deciding()),
            column_count=len(results),
            input_count=len(inputs),
            uses_python_math="math." in text.replace("_math.", ""),
            uses_torch=any("torch." in source for source in sources),
            given=indented(bracketed("return (", sources, _tuple_end(sources), 4)),
            scalars_head=bracketed("def scalars(", arguments, ") -> tuple[float, ...]:", 0),
            host_scalars=indented(self.host(program)),
            host_results=indented(
                bracketed("return (", [_safe(n) for n in results], _tuple_end(results), 4)
            ),
            inputs=tuple(Entry(_safe(i.name), _offset(n), i.flag) for n, i in enumerate(inputs)),
            scalar_slots=tuple(
                Entry(_safe(name), _row_of(slots_end + n), False)
                for n, name in enumerate(self.scalar_slots)
            ),
            device_scalars=indented(self.device(program)),
            device_results=tuple(self.entry(n, name) for n, name in enumerate(results)),
            tensors=self.tensors(),
            columns=tuple(self.entry(n, name) for n, name in enumerate(self.columns)),
            new_scalar_slots=tuple(
                Entry(_safe(name), _offset(len(self.columns) + n), False)
                for n, name in enumerate(self.scalar_slots)
            ),
            addresses=self.addresses(),
            constants=self.constants(),
            body=indented(self.block(self.spec.body, 4)),
        )

    # What specialises the kernel

    @cached_property
    def options(self) -> tuple[str, ...]:
        """The options that the kernel's body branches on, in the order of declaration."""
        used = {r.name for r in self.body_refs() if r.role is Role.OPTION}
        used |= {
            r.name
            for s in self.tensor_slots
            if s.when is not None and not self.is_optional(s)
            for r in refs(s.when)
        }
        return tuple(h.name for h in self.spec.hypers if h.name in used)

    def is_optional(self, slot: State) -> bool:
        """Whether a slot exists by more than options: its presence is then its own constant."""
        return slot.when is not None and kind_of(slot.when) is not Kind.OPTION

    def deciding(self) -> tuple[str, ...]:
        """The hyperparameters that decide which kernel a parameter needs."""
        names = {r.name for s in self.tensor_slots if s.when is not None for r in refs(s.when)}
        names |= set(self.options)
        return tuple(h.name for h in self.spec.hypers if names & {h.name, *h.components})

    def constants(self) -> Lines:
        """The specialisation, in the order of the kernel's arguments."""
        names = ("param", "grad", *(s.name for s in self.tensor_slots))
        types = [_type(name) for name in names]
        present = [_has(s) for s in self.tensor_slots if self.is_optional(s)]
        return ("COMPUTE", *types, *present, *(n.upper() for n in self.options), "MAXIMIZE")

    @cached_property
    def presence(self) -> dict[str, str]:
        """Columns that repeat the condition of a slot, with the constant that says the same."""
        conditions = {s.when: _has(s) for s in self.tensor_slots if self.is_optional(s)}
        return {
            stmt.name: conditions[stmt.value]
            for stmt in self.spec.scalars
            if isinstance(stmt, Let) and stmt.value in conditions
        }

    # The scalar program

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """What the kernel reads from the table: each name that its body mentions."""
        used = {r.name for r in self.body_refs() if r.role is Role.COLUMN}
        return tuple(n for n in self.spec.columns if n in used and n not in self.presence)

    @cached_property
    def program(self) -> tuple[Stmt, ...]:
        """The statements that a column or a slot needs."""
        kept: list[Stmt] = []
        needed = {*self.columns, *self.scalar_slots}
        for stmt in reversed(self.scalars):
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

    @cached_property
    def inputs(self) -> tuple[_Input, ...]:
        used = {r.name for r in reads(self.program)}
        used |= set(self.columns)
        found = [i for h in self.spec.hypers for i in _hyper_inputs(h, used)]
        asked = {r.name: r for r in reads(self.program) if r.role is Role.PROPERTY}
        found += [
            _Input(name, printing.python_leaf(ref), ref.type is Type.BOOL)
            for name, ref in sorted(asked.items())
        ]
        for slot in self.tensor_slots:
            if _unset_name(slot.name) in used:
                source = f'"{slot.name}" in unset'
                found.append(_Input(_unset_name(slot.name), source, True))
        return tuple(found)

    def host(self, program: tuple[Stmt, ...]) -> Lines:
        return _scalar_lines(program, self.own, _Host())

    def device(self, program: tuple[Stmt, ...]) -> Lines:
        return _scalar_lines(program, self.own, _Device())

    def entry(self, index: int, name: str) -> Entry:
        flags = {i.name for i in self.inputs if i.flag}
        flags |= {
            s.name for s in self.program if isinstance(s, Let) and type_of(s.value) is Type.BOOL
        }
        return Entry(_safe(name), _offset(index), name in flags)

    # The kernel

    def body_refs(self) -> Iterator[Ref]:
        return (e for e in _nodes(self.spec.body) if isinstance(e, Ref))

    def tensors(self) -> tuple[Tensor, ...]:
        written = {
            s.target.name
            for s in statements(self.spec.body)
            if isinstance(s, Assign) and s.target.role in STORED
        }
        used = {r.name for r in self.body_refs()} | written | {"grad"}
        found = [("param", ""), ("grad", "")]
        found += [(s.name, self.exists(s)) for s in self.tensor_slots]
        return tuple(
            Tensor(
                _safe_slot(name),
                _row_of(FIRST_ADDRESS + n),
                indented(_load(name, condition)) if name in used else (),
                indented(_store(name, condition)) if name in written else (),
            )
            for n, (name, condition) in enumerate(found)
        )

    def addresses(self) -> Lines:
        """All addresses in one number, whose last bits say whether each is aligned."""
        names = [f"{t.name}_at" for t in self.tensors()]
        lines = broken_assignment("addresses", " | ".join(names), 4)
        if max(map(len, lines)) + 4 > WIDTH:
            first, *others = names
            lines = (lines[0], *indented((first, *(f"| {name}" for name in others))), lines[-1])
        return indented(lines)

    def exists(self, slot: State) -> str:
        if slot.when is None:
            return ""
        return _has(slot) if self.is_optional(slot) else self.condition(slot.when)

    def block(self, body: tuple[Stmt, ...], indent: int) -> Lines:
        return tuple(line for stmt in body for line in self.statement(stmt, indent))

    def statement(self, stmt: Stmt, indent: int) -> Lines:
        match stmt:
            case Let(name=name, value=value):
                return self.assignment(stmt, name, value, indent)
            case Assign(target=target, value=value):
                return self.assignment(stmt, target.name, value, indent)
            case If(condition=condition):
                return self.branch(stmt, self.condition(condition), indent)
            case Descend() | Repeat():
                raise AssertionError("lower_descend has run, and a repeat has no kernel")
            case _:
                assert_never(stmt)

    def assignment(self, stmt: Let | Assign, name: str, value: Expr, indent: int) -> Lines:
        value = _with_dtypes(value, "tl.full((), {}, COMPUTE)")
        line = f"{_safe_slot(name)} = {printing.show(value, printing.triton, self.leaf)}"
        return (comment(stmt.span.text), *broken_call(line, indent))

    def branch(self, stmt: If, condition: str, indent: int) -> Lines:
        then, orelse = (self.block(b, indent + 4) for b in (stmt.then, stmt.orelse))
        if not then:
            return (f"if not {condition}:", *indented(orelse))
        lines = (f"if {condition}:", *indented(then))
        return (*lines, "else:", *indented(orelse)) if orelse else lines

    def condition(self, condition: Expr) -> str:
        """Options are constants, where `and` and `not` are Python's; all else is one number."""
        column = printing.host if kind_of(condition) is Kind.OPTION else printing.triton
        typed = _with_dtypes(condition, "tl.full((), {}, COMPUTE)")
        return printing.show(typed, column, self.leaf)

    def leaf(self, leaf: Const | Ref) -> str:
        match leaf:
            case Ref(role=Role.OPTION, name=name):
                return name.upper()
            case Ref(role=Role.COLUMN, name=name):
                return self.presence.get(name, _safe(name))
            case _:
                return _device_leaf(leaf)


# Names


def _safe(name: str) -> str:
    """An author's name beside the template's own: `offset` -> `offset_`, `x_at` -> `x_at_`, for it
    would be the pointer to a slot, `BLOCK` -> `BLOCK_`; `param.ndim` -> `param_ndim`."""
    name = re.sub(r"\W+", "_", name.replace("[-", "_last_")).rstrip("_")
    return f"{name}_" if name in TAKEN or name.endswith("_at") or name.isupper() else name


def _safe_slot(name: str) -> str:
    return name if name in ("param", "grad") else _safe(name)


def _type(name: str) -> str:
    return f"{name.upper()}_TYPE"


def _has(slot: State) -> str:
    return f"HAS_{slot.name.upper()}"


def _unset_name(slot: str) -> str:
    return f"unset_{slot}"


def _name_unset(expr: Expr) -> Expr:
    """unset(slot) -> a flag that the host gives."""

    def name(node: Expr) -> Expr:
        match node:
            case Apply(op="unset", args=(Ref(name=slot),)):
                return Ref(_unset_name(slot), Role.LOCAL, Kind.SCALAR, Type.BOOL, node.span)
            case _:
                return node

    return map_expr(expr, name)


def _names(names: Iterable[str]) -> str:
    """A tuple of names as Python text."""
    quoted = [f'"{name}"' for name in names]
    return f"({', '.join(quoted)}{_tuple_end(quoted)}"


def _tuple_end(items: Iterable[str]) -> str:
    return ",)" if len(tuple(items)) == 1 else ")"


def _offset(index: int) -> str:
    return f" + {index}" if index else ""


def _row_of(index: int) -> str:
    """A tensor's entry in a row of the table of tensors."""
    return f" + {index} * COUNT"


def _hyper_inputs(hyper: Hyper, used: set[str]) -> tuple[_Input, ...]:
    flag = hyper.kind is Kind.OPTION or hyper.type.base is Base.BOOL
    if used & set(hyper.components):
        return tuple(_Input(c, f'*group["{hyper.name}"]', False) for c in hyper.components)
    if hyper.name in used:
        return (_Input(hyper.name, f'group["{hyper.name}"]', flag),)
    return ()


# Memory


def _load(slot: str, condition: str) -> Lines:
    name = _safe_slot(slot)
    place = f"_math.pointer({name}_at, {_type(slot)}, ALIGNED) + offset + lanes"
    value = f"tl.load({name}_at, mask=mask, other=0.0).to(COMPUTE)"
    indent = 8 if condition else 4
    lines = (*broken_assignment(f"{name}_at", place, indent), f"{name} = {value}")
    return _under(condition, lines)


def _store(slot: str, condition: str) -> Lines:
    name = _safe_slot(slot)
    return _under(condition, (f"tl.store({name}_at, {name}.to({_type(slot)}), mask=mask)",))


def _under(condition: str, lines: Lines) -> Lines:
    return (f"if {condition}:", *indented(lines)) if condition else lines


# The scalar program, twice


class _Host:
    """Python floats. A slot is a float32 on the device, so each of its values is rounded to one."""

    def show(self, expr: Expr) -> str:
        return printing.show(expr, printing.host, self.leaf)

    def named(self, value: Expr) -> str:
        return self.show(value)

    def leaf(self, leaf: Const | Ref) -> str:
        if isinstance(leaf, Ref):
            return _safe(leaf.name)
        return printing.python_leaf(leaf)

    def rounded(self, text: str) -> str:
        return f"_math.single({text})"


class _Device:
    """Numbers of one program, float64."""

    def show(self, expr: Expr) -> str:
        typed = _with_dtypes(map_expr(expr, _computed), TO_DOUBLE)
        return printing.show(typed, printing.triton, _device_leaf)

    def named(self, value: Expr) -> str:
        """A name for a literal is a float64 as any other: a branch may give it another value."""
        text = self.show(value)
        return TO_DOUBLE.format(text) if _is_literal(map_expr(value, _computed)) else text

    def rounded(self, text: str) -> str:
        return f"_math.to_single({text})"


def _device_leaf(leaf: Const | Ref) -> str:
    match leaf:
        case Ref(name=name, role=Role.PARAM | Role.GRAD):
            return name
        case Ref(name=name):
            return _safe(name)
        case Const(symbol=symbol) if "(" in symbol:
            return symbol
        case Const(value=float() as value) if value in (float("inf"), float("-inf")):
            return f'float("{value}")'
        case Const():
            return printing.python_leaf(replace(leaf, symbol=""))
        case _:
            assert_never(leaf)


TO_DOUBLE = "_math.to_double({})"


def _with_dtypes(expr: Expr, dtype: str) -> Expr:
    """where(m, 0.1, 0.3) -> where(m, tl.full((), 0.1, COMPUTE), 0.3)

    Triton chooses between literals as float32 or integers. A literal beside a tensor takes the
    tensor's dtype, but by way of float32.
    """

    def choose(node: Expr) -> Expr:
        match node:
            case Apply(op="where" | "select" as op, args=(condition, *values)):
                alone = all(_is_literal(v) for v in values)
                typed = (
                    _typed(v, dtype) if _is_literal(v) and (alone or not _is_single(v)) else v
                    for v in values
                )
                return apply(op, condition, *typed, span=node.span)
            case _:
                return node

    return map_expr(expr, choose)


def _typed(literal: Expr, dtype: str) -> Const:
    assert isinstance(literal, Const)
    text = dtype.format(_device_leaf(literal))
    return replace(literal, symbol=text)


def _is_literal(expr: Expr) -> bool:
    """A number, no condition."""
    return isinstance(expr, Const) and type_of(expr) is Type.NUMBER


def _computed(expr: Expr) -> Expr:
    """2 ** 0.5 -> 1.4142135623730951: as on the host. Triton's functions take no two literals."""
    match expr:
        case Apply(op=op, args=args) if all(_is_literal(a) for a in args):
            with np.errstate(all="ignore"):
                value = OPS[op].numpy(*(a.value for a in args if isinstance(a, Const)))
            return Const(value.item(), span=expr.span)
        case _:
            return expr


def _scalar_lines(body: tuple[Stmt, ...], own: set[str], target: _Host | _Device) -> Lines:
    return tuple(line for stmt in body for line in _scalar_line(stmt, own, target))


def _scalar_line(stmt: Stmt, own: set[str], target: _Host | _Device) -> Lines:
    match stmt:
        case Let(name=name, value=value):
            line = f"{_safe(name)} = {target.named(value)}"
            said = "".join(stmt.span.text.removeprefix("let ").split())
            spoken = name not in own or said == "".join(line.split())
            return (line,) if spoken else (comment(stmt.span.text), line)
        case Assign(target=slot, value=value, operator=operator):
            line = target.show(value) if operator else target.named(value)
            if operator:
                # The operation is the slot's: its operand is rounded to the slot's type first.
                operand = line if _is_single(value) else target.rounded(line)
                line = f"{_safe(slot.name)} {SYMBOLS[operator]} {operand}"
            if slot.role is Role.STATE:
                line = target.rounded(line)
            return (comment(stmt.span.text), f"{_safe(slot.name)} = {line}")
        case If(condition=condition):
            then, orelse = (
                indented(_scalar_lines(b, own, target)) for b in (stmt.then, stmt.orelse)
            )
            lines = (f"if {target.show(condition)}:", *then)
            return (*lines, "else:", *orelse) if orelse else lines
        case Descend() | Repeat():
            raise AssertionError("neither is scalar work")
        case _:
            assert_never(stmt)


def _is_single(value: Expr) -> bool:
    match value:
        case Const(value=int() | float() as number):
            return c_float(number).value == number
        case _:
            return False
