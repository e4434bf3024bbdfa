"""Kernel -> View: one launch for all tensors, and the scalar program for numbers that only the
device knows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import assert_never

from optdsl import printing
from optdsl.ir import (
    Apply,
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
    apply,
    kind_of,
    map_expr,
    statements,
    type_of,
)
from optdsl.ops import Kind, Type
from optdsl.targets.layout import (
    WIDTH,
    bracketed,
    broken_assignment,
    broken_call,
    comment,
    indented,
)
from optdsl.targets.program.kernel import (
    Kernel,
    Operand,
    Pass,
    body_refs,
    constants,
    has_constant,
    is_optional,
    kernel_of,
    type_constant,
)
from optdsl.targets.program.scalars import (
    computed,
    identifier,
    is_literal,
    is_single,
    scalar_lines,
)
from optdsl.targets.triton.view import Entry, Lines, Tensor, View
from optdsl.targets.triton.view import Pass as PassView

# Names that the template uses itself, where an author's names stand too.
TAKEN = frozenset(
    {"tl", "triton", "float", "param", "grad", "given", "tensor", "chunk", "row"}
    | {"numel", "first_chunk", "offset", "remaining", "lanes", "mask", "addresses", "found_inf"}
    | {"reduced", "partial"}
)
# The constants that say how parameters are stored and slots are rounded.
ROUNDINGS = ("PARAM_ROUNDING", "SLOT_ROUNDING")
# The rows of the table of tensors before the first address: size, first chunk, row of the table of
# numbers, row of inputs.
FIRST_ADDRESS = 4


def lower(spec: Spec, note: tuple[str, ...] = ()) -> View | None:
    """None where there is no kernel. `note` is what the module's docstring says besides."""
    kernel = kernel_of(spec)
    return None if kernel is None else _Lowering(kernel).view(note)


class _Lowering:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        # Behind the addresses of all slots: those of a second tensor of the parameter, those of the
        # scales of each slot, and the keys of random bits.
        self.others = FIRST_ADDRESS + len(kernel.operands) + len(kernel.scalar_slots)
        self.stream = self.others + len(kernel.operands) - 1

    def view(self, note: tuple[str, ...]) -> View:
        kernel = self.kernel
        results = (*kernel.columns, *kernel.scalar_slots)
        slots_end = FIRST_ADDRESS + len(kernel.operands)
        stages = [f"({stage_name(n)}, {total_name(n)})" for n in range(1, len(kernel.passes))]
        return View(
            name=kernel.name,
            launches="a launch per pass" if stages else "one launch",
            note=note,
            column_count=len(results),
            input_count=len(kernel.inputs),
            inputs=tuple(
                Entry(_safe(i.name), _offset(n), i.flag) for n, i in enumerate(kernel.inputs)
            ),
            scalar_slots=tuple(
                Entry(_safe(name), _row_of(slots_end + n), False)
                for n, name in enumerate(kernel.scalar_slots)
            ),
            device_scalars=indented(scalar_lines(kernel.program, kernel.own, _Device())),
            device_results=tuple(
                Entry(_safe(name), _offset(n), name in kernel.flags)
                for n, name in enumerate(results)
            ),
            constants=("COMPUTE", *constants(kernel), *ROUNDINGS, "MAXIMIZE"),
            other=_row_of(self.others),
            new_scalar_slots=tuple(
                Entry(_safe(name), _offset(len(kernel.columns) + n), False)
                for n, name in enumerate(kernel.scalar_slots)
            ),
            reduction_count=sum(len(part.reductions) for part in kernel.passes),
            passes=tuple(self.each(n, part) for n, part in enumerate(kernel.passes, start=1)),
            stages=f"({', '.join(stages)}{',' * (len(stages) == 1)})" if stages else "",
        )

    def each(self, number: int, part: Pass) -> PassView:
        last = part is self.kernel.passes[-1]
        verb = "Update" if last else "Measure"
        block = "_block" if last else f"_block_{number}"
        tensors = self.tensors(part, last)
        terms = [_safe(r.name) for r in part.reductions]
        return PassView(
            name="update" if last else stage_name(number),
            does=f"{verb} every tensor, a program per chunk of `BLOCK` elements.",
            block=block,
            block_does=f"{verb} `remaining` elements from `offset` on, at most `BLOCK`.",
            tensors=tensors,
            numbers=indented(self.numbers(part)),
            uses_grad=any(o.name == "grad" and o.read for o in part.operands),
            body=indented((*self.first_terms(part), *self.block(part.body, 4), *masked(terms))),
            addresses=_addresses(tensors),
            stores=last,
            call=f"{', '.join(terms)} = {block}(" if terms else f"{block}(",
            partial=indented(self.partial(part)),
            partial_count=len(terms),
            total="" if last else total_name(number),
            totals=indented(self.totals(part)),
        )

    def numbers(self, part: Pass) -> Lines:
        """The numbers that a pass reads, and its work on them, in float64. What elements meet has
        the type of their arithmetic."""
        worked = {r.name for r in body_refs(part.numbers)}
        worked |= {s.name for s in statements(part.numbers) if isinstance(s, Let)}
        places = [(name, f"row{_offset(self.kernel.columns.index(name))}") for name in part.columns]
        places += [(r.name, f"reduced{_offset(r.place)}") for r in part.known]
        lines: list[str] = []
        for name, place in places:
            narrow = "" if name in worked else ".to(COMPUTE)"
            lines.append(
                f"{_safe(name)} = tl.load({place}){' != 0' if name in part.flags else narrow}"
            )
        lines += scalar_lines(part.numbers, self.kernel.own, _Numbers(self))
        later = (_safe(n) for n in part.met if n in worked and n not in part.flags)
        return (*lines, *(f"{name} = {name}.to(COMPUTE)" for name in later))

    def first_terms(self, part: Pass) -> Lines:
        """What a reduction in a branch adds up where the branch is not taken."""
        always = {s.name for s in part.body if isinstance(s, Let)}
        names = (_safe(r.name) for r in part.reductions if r.name not in always)
        return tuple(f"{name} = tl.zeros((BLOCK,), tl.float64)" for name in names)

    def partial(self, part: Pass) -> Lines:
        return tuple(
            f"tl.store(partial{_offset(n)}, _math.{COMBINED[r.of_one]}({_safe(r.name)}))"
            for n, r in enumerate(part.reductions)
        )

    def totals(self, part: Pass) -> Lines:
        lines: list[str] = []
        for n, each in enumerate(part.reductions):
            operands = f"partial{_offset(n)}, chunks, {len(part.reductions)}, BLOCK"
            found = f"_math.{COMBINED[each.of_one]}_of({operands})"
            # A tensor's term in a number of all parameters is finished with them.
            value = FINISHED.get(each.op, "{}").format(found)
            lines += bracketed("tl.store(", (f"reduced{_offset(each.place)}", value), ")", 4)
        return tuple(lines)

    def tensors(self, part: Pass, last: bool) -> tuple[Tensor, ...]:
        """Those that a pass goes through; the last one has all of them."""
        return tuple(
            Tensor(
                _safe_slot(operand.name),
                _row_of(FIRST_ADDRESS + n),
                indented(self.load(operand, n)) if operand.read else (),
                indented(self.store(operand, n)) if operand.written else (),
            )
            for n, operand in enumerate(part.operands)
            if last or operand.read
        )

    def load(self, operand: Operand, place: int) -> Lines:
        name, type = _safe_slot(operand.name), type_constant(operand.name)
        exists = self.exists(operand)
        pointer = f"_math.pointer({name}_at, {type}, ALIGNED) + offset + lanes"
        return _under(
            exists,
            (
                *broken_assignment(f"{name}_at", pointer, 8 if exists else 4),
                f"{name} = tl.load({name}_at, mask=mask, other=0.0).to(COMPUTE)",
                *self.by_policy("read", operand, place),
            ),
        )

    def store(self, operand: Operand, place: int) -> Lines:
        name, type = _safe_slot(operand.name), type_constant(operand.name)
        value = f"{name}.to({type})"
        lines = (
            *self.by_policy("write", operand, place),
            f"tl.store({name}_at, {value}, mask=mask)",
        )
        return _under(self.exists(operand), lines)

    def by_policy(self, verb: str, operand: Operand, place: int) -> Lines:
        """What a policy of precision does between memory and arithmetic."""
        if operand.name == "grad":
            return ()
        which = "param" if operand.slot is None else "slot"
        rounding = f"{which.upper()}_ROUNDING"
        # Slots stand behind the parameter and the gradient, as their scales behind the parameter's
        # second tensor.
        other = self.others if operand.slot is None else self.others + place - 1
        arguments = [_safe_slot(operand.name), f"tensor{_row_of(other)}"]
        if verb == "write":
            arguments += [f"tensor{_row_of(self.stream)}", "DRAW"]
        if verb == "write" and operand.slot is not None:
            arguments += [str(place - 1)]
        arguments += ["offset", "remaining"]
        arguments += ["ALIGNED"] if operand.slot is None else []
        arguments += [type_constant(operand.name)]
        arguments += [rounding] if operand.slot is None else []
        call = f"{arguments[0]} = _precision.{verb}_{which}({', '.join(arguments)})"
        indent = 12 if self.exists(operand) else 8
        return (f'if {rounding} != "nearest":', *indented(broken_call(call, indent)))

    def exists(self, operand: Operand) -> str:
        """The condition of a slot that may be absent."""
        slot = operand.slot
        if slot is None or slot.when is None:
            return ""
        return has_constant(slot.name) if is_optional(slot) else self.condition(slot.when)

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
                return self.kernel.presence.get(name, _safe(name))
            case _:
                return _device_leaf(leaf)


# What becomes of the terms of a reduction, and of their total.
COMBINED = {"sum": "total", "mean": "total", "norm": "total", "max_abs": "largest", "dot": "total"}
FINISHED = {"mean": "{} / numel", "norm": "_math.sqrt({})"}


def masked(terms: list[str]) -> Lines:
    """The end of a block's function: what is no element adds nothing."""
    lines = [f"{name} = tl.where(mask, {name}, 0.0)" for name in terms]
    return (*lines, f"return {', '.join(terms)}") if terms else ()


# Names


def stage_name(number: int) -> str:
    return f"stage_{number}"


def total_name(number: int) -> str:
    return f"total_{number}"


def _safe(name: str) -> str:
    """An author's name beside the template's own: `offset` -> `offset_`, `x_at` -> `x_at_`, for it
    would be the pointer to a slot, `BLOCK` -> `BLOCK_`."""
    name = identifier(name)
    return f"{name}_" if name in TAKEN or name.endswith("_at") or name.isupper() else name


def _safe_slot(name: str) -> str:
    return name if name in ("param", "grad") else _safe(name)


def _offset(index: int) -> str:
    return f" + {index}" if index else ""


def _row_of(index: int) -> str:
    """A tensor's entry in a row of the table of tensors."""
    return f" + {index} * COUNT"


# Memory


def _under(condition: str, lines: Lines) -> Lines:
    return (f"if {condition}:", *indented(lines)) if condition else lines


def _addresses(tensors: Iterable[Tensor]) -> Lines:
    """All addresses in one number, whose last bits say whether each is aligned."""
    names = [f"{t.name}_at" for t in tensors]
    lines = broken_assignment("addresses", " | ".join(names), 4)
    if max(map(len, lines)) + 4 > WIDTH:
        first, *others = names
        lines = (lines[0], *indented((first, *(f"| {name}" for name in others))), lines[-1])
    return indented(lines)


# The scalar program


class _Device:
    """Numbers of one program, float64."""

    def show(self, expr: Expr) -> str:
        typed = _with_dtypes(map_expr(expr, computed), TO_DOUBLE)
        return printing.show(typed, printing.triton, _device_leaf)

    def named(self, value: Expr) -> str:
        """A name for a literal is a float64 as any other: a branch may give it another value."""
        text = self.show(value)
        return TO_DOUBLE.format(text) if is_literal(map_expr(value, computed)) else text

    def rounded(self, text: str) -> str:
        return f"_math.to_single({text})"

    def safe(self, name: str) -> str:
        return _safe(name)


class _Numbers(_Device):
    """The work of a pass on numbers: the same, and what specialises the kernel is constant."""

    def __init__(self, lowering: _Lowering) -> None:
        self.lowering = lowering

    def show(self, expr: Expr) -> str:
        typed = _with_dtypes(map_expr(expr, computed), TO_DOUBLE)
        options = kind_of(expr) is Kind.OPTION and type_of(expr) is Type.BOOL
        column = printing.host if options else printing.triton
        return printing.show(typed, column, self.lowering.leaf)


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
                alone = all(is_literal(v) for v in values)
                typed = (
                    _typed(v, dtype) if is_literal(v) and (alone or not is_single(v)) else v
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
