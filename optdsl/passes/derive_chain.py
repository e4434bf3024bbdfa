"""Schedule -> Schedule: a chain form from a closed form that is affine in the first rate.

closed = shift(t) + base_lr * scale(t), so the rate of an epoch follows from the one before:
lr -> shift(t) + (lr - shift(t - 1)) * scale(t) / scale(t - 1)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from optdsl.ir import (
    Apply,
    Const,
    Expr,
    Keep,
    Let,
    Ref,
    Role,
    Schedule,
    apply,
    follows_epoch,
    kind_of,
    map_expr,
    refs,
    type_of,
)
from optdsl.ops import Kind, Type

ZERO, ONE = Const(0), Const(1)
# What is this small a part of the rate has lost half of its digits.
NOTHING = Const(1e-9)
T = Ref("t", Role.GIVEN, Kind.SCALAR)
LR = Ref("lr", Role.GIVEN, Kind.SCALAR)
BASE = Ref("base_lr", Role.GIVEN, Kind.SCALAR)
INITIAL = Ref("initial", Role.GIVEN, Kind.SCALAR, Type.BOOL)

EARLIER = apply("max", apply("sub", T, ONE), ZERO)

# shift and scale of an affine expression
Affine = tuple[Expr, Expr]


def derive_chain(schedule: Schedule) -> Schedule:
    """The schedule with a chain form, where it has none and one follows; else as it is. The form
    reads new lets: `shift`, `scale`, and with `_before` behind its name whatever follows the epoch,
    one epoch earlier."""
    if schedule.closed is None or schedule.chain is not None:
        return schedule
    affine = _affine(schedule.closed, {let.name: let.value for let in schedule.lets})
    if affine is None or not _follows_from_epoch(schedule, affine):
        return schedule
    lets = _Lets(schedule)
    shift, scale = lets.named("shift", affine[0]), lets.named("scale", affine[1])
    shift_before, scale_before = lets.before(shift), lets.before(scale)
    own = LR if shift_before == ZERO else apply("sub", LR, shift_before)
    if scale != scale_before:
        own = apply("mul", own, apply("div", scale, scale_before))
    rate = _sum(shift, own)
    if not isinstance(scale_before, Const):
        rate = apply("select", _vanishes(scale_before, shift_before), schedule.closed, rate)
    rate = apply("select", INITIAL, LR, rate)
    first = _sum(shift, LR if scale == ONE else apply("mul", LR, scale))
    chain = apply("select", apply("lt", T, ONE), first, rate, span=schedule.closed.span)
    return replace(lets.schedule, chain=chain)


def _vanishes(scale: Expr, shift: Expr) -> Expr:
    """Whether nothing is left of the first rate to go on from, but for what roundings left."""
    if shift == ZERO:
        return apply("le", apply("abs", scale), NOTHING)
    largest = apply("max", apply("abs", shift), apply("abs", BASE))
    return apply("le", apply("abs", apply("mul", BASE, scale)), apply("mul", NOTHING, largest))


class _Lets:
    """A schedule's lets, and new ones."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.taken = {let.name for let in schedule.lets} | {k.name for k in schedule.kept}
        self.taken |= {n for h in schedule.hypers for n in (h.name, *h.components)}
        # For a name that follows the epoch, its value one epoch earlier.
        self.earlier: dict[str, Expr] = {}

    def named(self, word: str, value: Expr) -> Expr:
        """A value under a new name, if it is more than a name or a number."""
        if not isinstance(value, Apply):
            return value
        while word in self.taken:
            word += "_now"
        self.taken.add(word)
        let = Let(word, value, kind_of(value), value.span)
        self.schedule = replace(self.schedule, lets=(*self.schedule.lets, let))
        return Ref(word, Role.LOCAL, kind_of(value), type_of(value), value.span)

    def before(self, expr: Expr) -> Expr:
        """The value of one epoch earlier; in the first epoch, which has none before it, its own."""
        return map_expr(expr, self._name_before)

    def _name_before(self, node: Expr) -> Expr:
        if not isinstance(node, Ref) or not follows_epoch(self.schedule, node):
            return node
        if node.name not in self.earlier:
            value = EARLIER if node.name == T.name else self.before(self._value(node.name))
            self.earlier[node.name] = self.named(f"{node.name}_before", value)
        return self.earlier[node.name]

    def _value(self, name: str) -> Expr:
        lets = {let.name: let.value for let in self.schedule.lets}
        return lets[name] if name in lets else _observed(self.schedule)[name]


def _observed(schedule: Schedule) -> dict[str, Expr]:
    return {k.name: k.initial for k in schedule.kept if k.keep is Keep.OBSERVED}


def _follows_from_epoch(schedule: Schedule, affine: Affine) -> bool:
    """Whether the forms can be asked for the epoch before: phases cannot."""
    inside = {let.name: let.value for let in schedule.lets} | _observed(schedule)
    given, seen, asked = set[str](), set[str](), [*affine]
    while asked:
        for ref in refs(asked.pop()):
            if ref.role is Role.GIVEN:
                given.add(ref.name)
            if ref.name in inside and ref.name not in seen:
                seen.add(ref.name)
                asked.append(inside[ref.name])
    return given <= {T.name}


def _affine(expr: Expr, lets: Mapping[str, Expr]) -> Affine | None:
    """shift and scale with expr = shift + base_lr * scale."""
    match expr:
        case Ref(name="base_lr"):
            return ZERO, ONE
        case Ref(name=name) if name in lets and _reads_base(expr, lets):
            return _affine(lets[name], lets)
        case _ if not _reads_base(expr, lets):
            return expr, ZERO
        case Apply(op="add" | "sub" | "neg" as op, args=args):
            parts = [_affine(a, lets) for a in args]
            shifts = [p[0] for p in parts if p is not None]
            scales = [p[1] for p in parts if p is not None]
            if len(shifts) < len(args):
                return None
            return _linear(op, shifts), _linear(op, scales)
        case Apply(op="mul", args=(left, right)) if not _reads_base(left, lets):
            part = _affine(right, lets)
            return None if part is None else (_product(left, part[0]), _product(left, part[1]))
        case Apply(op="mul" | "div" as op, args=(left, right)) if not _reads_base(right, lets):
            part = _affine(left, lets)
            if part is None:
                return None
            return _scaled(op, part[0], right), _scaled(op, part[1], right)
        case Apply(op="select", args=(condition, then, orelse)) if not _reads_base(condition, lets):
            one, other = _affine(then, lets), _affine(orelse, lets)
            if one is None or other is None:
                return None
            return _choice(condition, one[0], other[0]), _choice(condition, one[1], other[1])
        case _:
            return None


def _reads_base(expr: Expr, lets: Mapping[str, Expr]) -> bool:
    return any(
        r.name == "base_lr" or (r.name in lets and _reads_base(lets[r.name], lets))
        for r in refs(expr)
    )


def _linear(op: str, args: list[Expr]) -> Expr:
    match op, args:
        case "neg", [operand]:
            return _negated(operand)
        case "add", [left, right]:
            return _sum(left, right)
        case _, [left, right]:
            return _sum(left, _negated(right))
        case _:
            raise AssertionError(op)


def _sum(left: Expr, right: Expr) -> Expr:
    match left, right:
        case _ if left == ZERO:
            return right
        case _ if right == ZERO:
            return left
        case _, Apply(op="neg", args=(operand,)):
            return apply("sub", left, operand)
        case _:
            return apply("add", left, right)


def _negated(value: Expr) -> Expr:
    match value:
        case _ if value == ZERO:
            return ZERO
        case Apply(op="neg", args=(operand,)):
            return operand
        case _:
            return apply("neg", value)


def _product(factor: Expr, value: Expr) -> Expr:
    match value:
        case Apply(op="neg", args=(operand,)):
            return _negated(_product(factor, operand))
        case _ if value == ZERO:
            return ZERO
        case _:
            return factor if value == ONE else apply("mul", factor, value)


def _scaled(op: str, value: Expr, by: Expr) -> Expr:
    match value:
        case Apply(op="neg", args=(operand,)):
            return _negated(_scaled(op, operand, by))
        case _ if value == ZERO:
            return ZERO
        case _:
            return by if value == ONE and op == "mul" else apply(op, value, by)


def _choice(condition: Expr, then: Expr, orelse: Expr) -> Expr:
    return then if then == orelse else apply("select", condition, then, orelse)
