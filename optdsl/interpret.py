"""Spec x NumPy arrays -> arrays, Schedule x epochs -> rates, in float64: what a spec means. Shares
no code with any backend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from types import MappingProxyType
from typing import Any, Literal, TypeGuard, assert_never

import numpy as np

from optdsl.ir import (
    Apply,
    Assign,
    Average,
    Const,
    Descend,
    Expr,
    If,
    Keep,
    Let,
    Ref,
    Repeat,
    Require,
    Schedule,
    Spec,
    State,
    Stmt,
    expressions,
    follows_epoch,
    statements,
    walk,
)
from optdsl.ops import OPS, PROPERTIES, Kind, Rule

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
        case Apply() if _is_total(expr):
            return names[_total_name(expr)]
        case Apply(op=op, args=args):
            with np.errstate(all="ignore"):
                return OPS[op].numpy(*(evaluate(a, names) for a in args))
        case _:
            assert_never(expr)


def run(body: tuple[Stmt, ...], names: Environment) -> None:
    """Statements, top to bottom. `names` is the state and is changed."""
    run_all(body, [names])


def run_all(body: tuple[Stmt, ...], members: Sequence[Environment]) -> None:
    """The same for all parameters, which wait for each other where they need a total: whoever comes
    there has a part in it."""
    places = {id(total): place for place, total in enumerate(_totals(body))}
    walkers = [_running(body, names) for names in members]
    waiting = [next(walker, None) for walker in walkers]
    while any(waiting):
        here = min((t for t in waiting if t is not None), key=lambda total: places[id(total)])
        arrived = [n for n, total in enumerate(waiting) if total is here]
        value = _total(here, [members[n] for n in arrived])
        for n in arrived:
            members[n][_total_name(here)] = value
            waiting[n] = next(walkers[n], None)


def _total(total: Apply, members: Sequence[Environment]) -> Value:
    """The reduction of what all parameters have, one behind the other."""
    columns = [
        np.broadcast_arrays(*(np.asarray(evaluate(a, names), np.float64) for a in total.args))
        for names in members
    ]
    with np.errstate(all="ignore"):
        return OPS[total.op].numpy(
            *(
                np.concatenate([np.ravel(c) for c in column])
                for column in zip(*columns, strict=True)
            )
        )


def _is_total(expr: Expr) -> TypeGuard[Apply]:
    return isinstance(expr, Apply) and OPS[expr.op].rule is Rule.TOTAL


def _totals(body: tuple[Stmt, ...]) -> Iterator[Apply]:
    """The totals of statements in the order in which they are needed."""
    return (t for s in statements(body) for e in expressions(s) for t in _totals_in(e))


def _totals_in(expr: Expr) -> Iterator[Apply]:
    """The totals of an expression, operands before what they are in."""
    return filter(_is_total, reversed(list(walk(expr))))


def _total_name(total: Apply) -> str:
    """What its value stands under: no name of a spec."""
    return f"total {id(total)}"


def _running(body: tuple[Stmt, ...], names: Environment) -> Iterator[Apply]:
    """Run statements. Before one that needs totals it gives these, and goes on when `names` has
    their values."""
    for stmt in body:
        for expr in expressions(stmt):
            yield from _totals_in(expr)
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
                branch = stmt.then if evaluate(stmt.condition, names) else stmt.orelse
                yield from _running(branch, names)
            case Repeat(count=count, body=inner):
                for _ in range(evaluate(count, names)):
                    yield from _running(inner, names)
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
    """One update of one parameter, the only one that there is: the new parameter and the new slots.

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
    (found,) = step_all(spec, [Member(hypers, param, grad, state)])
    return found


@dataclass(frozen=True, slots=True)
class Member:
    """A parameter as `step` takes it."""

    hypers: Mapping[str, Value]
    param: np.ndarray[Any, np.dtype[np.float64]]
    grad: np.ndarray[Any, np.dtype[np.float64]]
    state: Mapping[str, Value] | None = None


def step_all(
    spec: Spec, members: Sequence[Member]
) -> list[tuple[np.ndarray[Any, np.dtype[np.float64]], dict[str, Value]]]:
    """One update of all parameters that have a gradient: what `step` gives, for each. Their
    hyperparameters may differ, as those of groups do."""
    all_names = [_names_of(spec, member) for member in members]
    run_all(spec.scalars, all_names)
    for stage in (*spec.barriers, *spec.stages):
        inside = [dict(names) for names in all_names]
        run_all(stage.body, inside)
        for names, found in zip(all_names, inside, strict=True):
            names.update({name: found.get(name, 0.0) for name in stage.reductions})
    run_all(spec.body, all_names)
    return [
        (names["param"], {s.name: names[s.name] for s in spec.states if names[s.name] is not None})
        for names in all_names
    ]


def _names_of(spec: Spec, member: Member) -> Environment:
    """What a parameter's update begins with."""
    names: Environment = {**properties(member.param), **member.hypers}
    for hyper in spec.hypers:
        if hyper.components:
            names.update(zip(hyper.components, member.hypers[hyper.name], strict=True))
    names["param"] = np.asarray(member.param, np.float64)
    names["grad"] = np.asarray(member.grad, np.float64)
    for slot in spec.states:
        state = member.state
        names[slot.name] = initial(slot, names) if state is None else state.get(slot.name)
    return names


# Averages


def averaged(
    average: Average,
    hypers: Mapping[str, Value],
    value: np.ndarray[Any, np.dtype[np.float64]],
    param: np.ndarray[Any, np.dtype[np.float64]],
    n: int,
    *,
    form: Literal["each", "multi"] = "each",
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The next value of a tensor's average, which is the model's own for the first model.

    Args:
        average: as resolved.
        hypers: every hyperparameter and option by name; a tuple as one value.
        value: float64, the average of the models before.
        param: float64, the same tensor of the next model.
        n: how many models there were before.
        form: which of the two.

    Raises:
        KeyError: a hyperparameter is missing.
    """
    if n == 0:
        return np.array(param)
    names: Environment = {**properties(param), **hypers, "average": value, "param": param, "n": n}
    for hyper in average.hypers:
        if hyper.components:
            names.update(zip(hyper.components, hypers[hyper.name], strict=True))
    run((*average.lets, average.each if form == "each" else average.multi), names)
    result: np.ndarray[Any, np.dtype[np.float64]] = names["average"]
    return result


# Schedules


class _Names(dict[str, Value]):
    """The names of a schedule at one epoch, for one parameter group. What the schedule declares is
    computed when it is first read."""

    def __init__(self, schedule: Schedule, given: Mapping[str, Value]) -> None:
        super().__init__(given)
        for hyper in schedule.hypers:
            if hyper.components:
                self.update(zip(hyper.components, given[hyper.name], strict=True))
        self.declared = {let.name: let.value for let in schedule.lets}
        self.declared.update((kept.name, kept.initial) for kept in schedule.kept)

    def __missing__(self, name: str) -> Value:
        self[name] = evaluate(self.declared[name], self)
        return self[name]


def arguments(schedule: Schedule, given: Mapping[str, Value]) -> dict[str, Value]:
    """Every hyperparameter of a schedule by name: those given, and the defaults of the others.

    Args:
        schedule: as resolved.
        given: hyperparameters by name. What may be a list with a value for each group has one.

    Raises:
        TypeError: one is unknown, or one without a default is missing.
        ValueError: a `require` of the schedule does not hold.
    """
    for name in given:
        if all(name != hyper.name for hyper in schedule.hypers):
            raise TypeError(f"{schedule.name} has no argument '{name}'.")
    values: dict[str, Value] = {}
    for hyper in schedule.hypers:
        if hyper.name in given:
            value = given[hyper.name]
            one = hyper.type.per_group and isinstance(value, list | tuple)
            values[hyper.name] = value[0] if one else value
        elif hyper.parts:
            values[hyper.name] = tuple(evaluate(part, values) for part in hyper.parts)
        elif hyper.default is not None:
            values[hyper.name] = evaluate(hyper.default, values)
        else:
            raise TypeError(f"{schedule.name} needs the argument '{hyper.name}'.")
    names = _Names(schedule, values)
    for require in schedule.requires:
        if not follows_epoch(schedule, require.condition):
            _check(require, names)
    return values


def examples(schedule: Schedule) -> dict[str, Value]:
    """The arguments that show what a schedule does, and the function `metric` of an epoch where a
    metric drives it. Functions take and give a number."""
    values: dict[str, Value] = {}
    for example in schedule.examples:
        match example.value:
            case tuple(items):
                values[example.name] = [evaluate(item, {}) for item in items]
            case value if example.parameters:
                values[example.name] = partial(_call, example.parameters[0], value)
            case value:
                values[example.name] = evaluate(value, {})
    return values


def _call(parameter: str, value: Expr, given: float) -> float:
    return float(evaluate(value, {parameter: given}))


def _check(require: Require, names: Mapping[str, Value]) -> None:
    if not evaluate(require.condition, names):
        raise ValueError(require.message.format_map(names))


def _at(
    schedule: Schedule,
    hypers: Mapping[str, Value],
    t: float,
    base_lr: float,
    more: Mapping[str, Value] = MappingProxyType({}),
) -> _Names:
    """The names at an epoch for which the schedule's conditions hold."""
    names = _Names(schedule, {**hypers, "t": t, **more})
    # A schedule may have a first rate of its own: as an argument, or as a value of the groups.
    own = any(kept.name == "initial_lr" and kept.keep is Keep.GROUP for kept in schedule.kept)
    names.setdefault("base_lr", names["initial_lr"] if own else base_lr)
    names.update(_phase(schedule, names))
    for require in schedule.requires:
        if follows_epoch(schedule, require.condition):
            _check(require, names)
    return names


def _phase(schedule: Schedule, names: Mapping[str, Value]) -> dict[str, Value]:
    """How far the phase of an epoch has come, and between which values each target moves."""
    found: dict[str, Value] = {}
    begin: Value = 0.0
    for phase in schedule.phases:
        if phase.when is not None and not evaluate(phase.when, names):
            continue
        end = evaluate(phase.end, names)
        found = {"progress": 1.0 if names["t"] >= end else (names["t"] - begin) / (end - begin)}
        for move in phase.moves:
            found[f"start_{move.target}"] = names[move.start]
            found[f"end_{move.target}"] = names[move.end]
        if names["t"] <= end:
            break
        begin = end
    return found


def closed(
    schedule: Schedule, hypers: Mapping[str, Value], t: float, base_lr: float = 1.0
) -> dict[str, float]:
    """What the closed forms give at an epoch: "lr", and every further target by its name.

    Args:
        schedule: as resolved, with a closed form.
        hypers: every hyperparameter by name, as from `arguments`.
        t: the epoch; a fraction where the schedule takes one.
        base_lr: the rate that the schedule begins from, unless it has one of its own.

    Raises:
        KeyError: a hyperparameter is missing.
        ValueError: a `require` of the schedule does not hold at this epoch.
    """
    assert schedule.closed is not None
    names = _at(schedule, hypers, t, base_lr)
    return {"lr": float(evaluate(schedule.closed, names)), **_targets(schedule, names)}


def chain(
    schedule: Schedule,
    hypers: Mapping[str, Value],
    t: float,
    lr: float,
    base_lr: float = 1.0,
    *,
    initial: bool = False,
) -> dict[str, float]:
    """What the chain form makes of the rate `lr` at an epoch, and every further target; the rest
    is as for `closed`. `initial` is true where a schedule begins, or begins again."""
    assert schedule.chain is not None
    names = _at(schedule, hypers, t, base_lr, {"lr": lr, "initial": initial})
    return {"lr": float(evaluate(schedule.chain, names)), **_targets(schedule, names)}


def _targets(schedule: Schedule, names: Mapping[str, Value]) -> dict[str, float]:
    return {
        target.name: float(evaluate(target.closed, names))
        for target in schedule.targets
        if target.when is None or evaluate(target.when, names)
    }


def epochs(
    schedule: Schedule,
    hypers: Mapping[str, Value],
    base_lr: float = 1.0,
    *,
    form: Literal["closed", "chain"] | None = None,
    metrics: Iterable[float] = (),
) -> Iterator[dict[str, float]]:
    """The values of epoch 0, 1, 2, ...: "lr", and every further target by its name.

    Args:
        schedule: as resolved.
        hypers: every hyperparameter by name, as from `arguments`.
        base_lr: the rate that the schedule begins from, unless it has one of its own.
        form: the form to follow; None is the closed one where there is one.
        metrics: what the epochs 0, 1, 2, ... measure, for a schedule that is driven by a metric:
            its values end with the epoch behind the last metric.

    Raises:
        KeyError: a hyperparameter is missing.
        ValueError: a `require` of the schedule does not hold at this epoch.
    """
    if schedule.body:
        yield from _driven(schedule, hypers, base_lr, metrics)
    elif form == "closed" or (form is None and schedule.closed is not None):
        for t in count():
            yield closed(schedule, hypers, t, base_lr)
    else:
        lr = _at(schedule, hypers, 0, base_lr)["base_lr"]
        for t in count():
            values = chain(schedule, hypers, t, lr, base_lr, initial=t == 0)
            lr = values["lr"]
            yield values


def _driven(
    schedule: Schedule, hypers: Mapping[str, Value], base_lr: float, metrics: Iterable[float]
) -> Iterator[dict[str, float]]:
    names = _at(schedule, hypers, 0, base_lr)
    states = [kept.name for kept in schedule.kept if kept.keep is not Keep.OBSERVED]
    carried = {"lr": names["base_lr"], **{name: names[name] for name in states}}
    yield {"lr": float(carried["lr"])}
    for t, metric in enumerate(metrics, start=1):
        names = _at(schedule, hypers, t, base_lr, {"metric": metric, **carried})
        # Before the update changes what they read.
        names.update({let.name: names[let.name] for let in schedule.lets})
        run(schedule.body, names)
        carried = {name: names[name] for name in carried}
        yield {"lr": float(carried["lr"])}


def rates(
    schedule: Schedule,
    hypers: Mapping[str, Value],
    steps: int,
    base_lr: float = 1.0,
    *,
    form: Literal["closed", "chain"] | None = None,
    metrics: Iterable[float] = (),
) -> list[float]:
    """The rates of the epochs 0 to `steps` - 1. Arguments and errors are those of `epochs`."""
    follow = epochs(schedule, hypers, base_lr, form=form, metrics=metrics)
    return [values["lr"] for values in islice(follow, steps)]
