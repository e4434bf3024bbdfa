"""Make the rounding nodes: one node where torch computes base + scale * a (* or / b) in one call.

The tree must be as the author wrote it, the scale a number; a name is never looked through, for
`let` rounds. Every target computes these nodes with the same rounding (see docs/language.md).
"""

from __future__ import annotations

from dataclasses import replace

from optdsl.ir import Apply, Const, Expr, Spec, apply, is_scalar, kind_of, map_expr, map_stmt
from optdsl.ops import Kind

ONE = Const(1)
FUSED = {"mul": "addcmul", "div": "addcdiv"}


def contract(spec: Spec) -> Spec:
    body = tuple(map_stmt(s, lambda e: map_expr(e, contract_node)) for s in spec.body)
    return replace(spec, body=body)


def contract_node(expr: Expr) -> Expr:
    match expr:
        case Apply(op="add" | "sub" as sign, args=(base, term)) if _is_tensor(base):
            found = _term(term)
            if found is None:
                return expr
            op, factors, scale = found
            scale = _negative(scale) if sign == "sub" else scale
            return apply(op, base, *factors, scale, span=expr.span)
        case _:
            return expr


def _term(term: Expr) -> tuple[str, tuple[Expr, ...], Expr] | None:
    """What is added: the node that adds it, its tensors, its scale."""
    match term:
        # [scale *] a * b -> addcmul, [scale *] a / b -> addcdiv
        case Apply(op="mul" | "div" as op, args=(a, b)) if _both_tensors(a, b):
            scaled = _scaled(a) if isinstance(a, Apply) and a.op == "mul" else None
            tensor, scale = scaled or (a, ONE)
            return FUSED[op], (tensor, b), scale
        # scale * a -> add_scaled
        case Apply(op="mul"):
            scaled = _scaled(term)
            return None if scaled is None else ("add_scaled", (scaled[0],), scaled[1])
        case _:
            return None


def _scaled(product: Apply) -> tuple[Expr, Expr] | None:
    """The tensor and the number of a product of both."""
    match product.args:
        case (scale, tensor) if is_scalar(scale) and _is_tensor(tensor):
            return tensor, scale
        case (tensor, scale) if is_scalar(scale) and _is_tensor(tensor):
            return tensor, scale
        case _:
            return None


def _is_tensor(expr: Expr) -> bool:
    return kind_of(expr) >= Kind.ELEMENTWISE


def _both_tensors(left: Expr, right: Expr) -> bool:
    return _is_tensor(left) and _is_tensor(right)


def _negative(scale: Expr) -> Expr:
    match scale:
        case Const(value=int() | float() as value, symbol=""):
            return Const(-value, span=scale.span)
        case Apply(op="neg", args=(operand,)):
            return operand
        case _:
            return apply("neg", scale, span=scale.span)
