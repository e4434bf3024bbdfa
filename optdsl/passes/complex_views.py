"""Where a complex parameter becomes a real one with a last dimension of 2, as torch orders it.

Coupled decay, and all of an update that is linear throughout (SGD), is complex arithmetic; the rest
treats real and imaginary parts as elements of their own. A spec can say otherwise, as torch does:
`complex none` for real parts from the beginning, `complex decay, descend` for a complex step.
"""

from __future__ import annotations

from optdsl.ir import (
    Apply,
    Assign,
    Expr,
    If,
    Let,
    Ref,
    Role,
    Spec,
    Stmt,
    expressions,
    is_scalar,
    statements,
    walk,
)
from optdsl.ops import OPS, Kind


def supports_complex(spec: Spec) -> bool:
    """Whether real and imaginary parts can be elements of their own: not where an update asks for
    the parameter's shape, reduces along a dimension or multiplies matrices, nor where the spec
    refuses complex parameters."""
    if any(_refuses_complex(r.condition) for r in spec.requires):
        return False
    nodes = [e for s in statements(spec.body) for x in expressions(s) for e in walk(x)]
    return not any(
        (isinstance(e, Ref) and e.role is Role.PROPERTY)
        or (isinstance(e, Apply) and e.kind in (Kind.FACTORED, Kind.MATRIX))
        for e in nodes
    )


def _refuses_complex(condition: Expr) -> bool:
    match condition:
        case Apply(op="not", args=(Ref(role=Role.PROPERTY, name="param.is_complex"),)):
            return True
        case _:
            return False


def first_real_statement(spec: Spec) -> int | None:
    """The index of the top-level statement before which views are taken; None: nowhere."""
    body = spec.body
    if not supports_complex(spec):
        return None
    if spec.complex is not None and "decay" not in spec.complex:
        return 0
    if all(is_linear(e) for s in statements(body) for e in expressions(s) if not _is_number(e)):
        return None
    return next(i for i, stmt in enumerate(body) if not _stays_complex(stmt))


def _stays_complex(stmt: Stmt) -> bool:
    """Scalar work, and linear changes of the parameter and the gradient."""
    match stmt:
        case If(condition=condition):
            inside = (*stmt.then, *stmt.orelse)
            return _is_number(condition) and all(_stays_complex(s) for s in inside)
        case Let(value=value, kind=kind):
            # A number that becomes a tensor has the parameter's dtype.
            return kind <= Kind.SCALAR and _is_number(value)
        case Assign(target=target, value=value):
            linear = target.role in (Role.PARAM, Role.GRAD) and is_linear(value)
            return linear or (_is_number(value) and is_scalar(target))
        case _:
            return False


def is_linear(expr: Expr) -> bool:
    """Whether complex numbers and their parts give the same. A number added to a tensor would reach
    the real part alone, a product of two tensors mixes the parts."""
    if _asks_tensors(expr):
        return False
    match expr:
        case Apply(op="add" | "sub", args=args):
            return all(not is_scalar(a) and is_linear(a) for a in args)
        case Apply(op="div", args=(left, right)):
            return is_scalar(right) and is_linear(left)
        case Apply(op="mul", args=(left, right)):
            tensors = [a for a in (left, right) if not is_scalar(a)]
            return len(tensors) == 1 and is_linear(tensors[0])
        case Apply(op=op, args=args):
            return OPS[op].linear and all(is_scalar(a) or is_linear(a) for a in args)
        case _:
            return True


def _is_number(expr: Expr) -> bool:
    """Whether it is the same number for complex tensors and for their parts."""
    return is_scalar(expr) and not _asks_tensors(expr)


def _asks_tensors(expr: Expr) -> bool:
    return any(isinstance(e, Apply) and e.op == "host" for e in walk(expr))
