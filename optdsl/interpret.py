"""Spec x NumPy arrays -> arrays, in float64: what a spec means. Shares no code with any backend."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, assert_never

import numpy as np

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
    Spec,
    State,
    Stmt,
)
from optdsl.ops import OPS, PROPERTIES, Kind

Value = Any  # a float, a bool, a string or a float64 array
Environment = MutableMapping[str, Value]


def evaluate(expr: Expr, names: Mapping[str, Value]) -> Value:
    """An expression's value. A name without a value raises KeyError."""
    match expr:
        case Const(value=value):
            return value
        case Ref():
            return names[expr.name]
        case Apply(op="unset", args=(Ref(name=name),)):
            return names.get(name) is None
        case Apply(op="select", args=(condition, then, orelse)):
            return evaluate(then if evaluate(condition, names) else orelse, names)
        case Apply(op="and", args=(left, right)) if expr.kind <= Kind.SCALAR:
            return evaluate(left, names) and evaluate(right, names)
        case Apply(op="or", args=(left, right)) if expr.kind <= Kind.SCALAR:
            return evaluate(left, names) or evaluate(right, names)
        case Apply(op=op, args=args):
            with np.errstate(all="ignore"):
                return OPS[op].numpy(*(evaluate(a, names) for a in args))
        case _:
            assert_never(expr)


def run(body: tuple[Stmt, ...], names: Environment) -> None:
    """Statements, top to bottom. `names` is the state and is changed."""
    for stmt in body:
        match stmt:
            case Let(name=name, value=value):
                names[name] = evaluate(value, names)
            case Assign(target=target, value=value, operator=""):
                names[target.name] = evaluate(value, names)
            case Assign(target=target, value=value, operator=operator):
                names[target.name] = evaluate(Apply(operator, (target, value), target.kind), names)
            case Descend(value=value):
                names["param"] = names["param"] - evaluate(value, names)
            case If():
                run(stmt.then if evaluate(stmt.condition, names) else stmt.orelse, names)
            case Repeat(count=count, body=inner):
                for _ in range(evaluate(count, names)):
                    run(inner, names)
            case _:
                assert_never(stmt)


def properties(param: np.ndarray[Any, np.dtype[Any]]) -> dict[str, Value]:
    """What a spec can ask of a parameter, by the name it uses: `param.ndim`, `param.shape[-1]`."""
    found = {f"param.{n}": p.numpy(param) for n, p in PROPERTIES.items() if n != "shape"}
    for index in range(-param.ndim, param.ndim):
        found[f"param.shape[{index}]"] = PROPERTIES["shape"].numpy(param, index)
    return found


def initial(state: State, names: Mapping[str, Value]) -> Value | None:
    """A slot's first value; None while it is unset or does not exist."""
    if state.initial is None or (state.when is not None and not evaluate(state.when, names)):
        return None
    return evaluate(state.initial, names)


def step(
    spec: Spec,
    hypers: Mapping[str, Value],
    param: np.ndarray[Any, np.dtype[np.float64]],
    grad: np.ndarray[Any, np.dtype[np.float64]],
    state: Mapping[str, Value] | None = None,
) -> tuple[np.ndarray[Any, np.dtype[np.float64]], dict[str, Value]]:
    """One update of one parameter: the new parameter and the new slots.

    Args:
        spec: as resolved, or after any pass.
        hypers: every hyperparameter and option by name; a tuple such as `betas` as one value. Also
            properties of the parameter that differ from those of `param`, such as "param.eps".
        param: float64, of any shape.
        grad: float64, of the parameter's shape.
        state: the slots that the last update gave; None for the first update.

    Raises:
        KeyError: a hyperparameter is missing.
    """
    names: Environment = {**properties(param), **hypers}
    for hyper in spec.hypers:
        if hyper.components:
            names.update(zip(hyper.components, hypers[hyper.name], strict=True))
    names.update(param=np.asarray(param, np.float64), grad=np.asarray(grad, np.float64))
    for slot in spec.states:
        names[slot.name] = initial(slot, names) if state is None else state.get(slot.name)
    run(spec.scalars + spec.body, names)
    slots = {s.name: names[s.name] for s in spec.states if names[s.name] is not None}
    return names["param"], slots
