"""What schedules mean: the interpreter's features one by one; the forms of every shipped schedule
against each other; and the emitted classes and functions against the interpreter."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from generated import lr_scheduler as ours
from optdsl import interpret
from optdsl.ir import Apply, Base, Hyper, Schedule, walk
from optdsl.parse import parse
from optdsl.passes import derive_chain
from optdsl.pipeline import shipped_library
from optdsl.resolve import resolve
from optdsl.source import Source

EPOCHS = 110
EPS = float(np.finfo(np.float64).eps)

SHIPPED = {unit.name: unit for unit in shipped_library().units if isinstance(unit, Schedule)}
# Those that follow the epoch; the others follow a metric.
TIMED = {name: schedule for name, schedule in SHIPPED.items() if not schedule.body}
METRIC = {name: schedule for name, schedule in SHIPPED.items() if schedule.body}

Arguments = dict[str, Any]
Values = dict[str, list[float]]


def given(*drawn: Any, **named: Any) -> Any:
    """Hypothesis without its deadline: the interpreter is no fast one."""
    unhurried = hypothesis.settings(deadline=None, max_examples=50)
    return lambda test: unhurried(hypothesis.given(*drawn, **named)(test))


def compiled(text: str) -> Schedule:
    ((schedule,), _) = resolve([parse(Source("spec.opt", text))])
    assert isinstance(schedule, Schedule)
    return schedule


def rates(text: str, steps: int, base_lr: float = 1.0, /, **arguments: Any) -> list[float]:
    schedule = compiled(text)
    return interpret.rates(schedule, interpret.arguments(schedule, arguments), steps, base_lr)


# The interpreter, feature by feature


def test_closed_form_is_a_function_of_the_epoch_and_the_first_rate() -> None:
    text = """schedule S {
        hyper a = 2.0
        let b = a * t
        closed = base_lr / (1 + b)
    }"""
    assert rates(text, 3, 0.5) == [0.5, 0.5 / 3, 0.5 / 5]
    assert rates(text, 3, 0.5, a=0) == [0.5] * 3


def test_chain_form_goes_on_from_the_rate_before_and_knows_the_first() -> None:
    text = "schedule S { chain = lr if initial else lr / 2 if t < 3 else lr }"
    assert rates(text, 5) == [1.0, 0.5, 0.25, 0.25, 0.25]


def test_form_can_be_chosen() -> None:
    schedule = compiled("""schedule S {
        closed = base_lr
        chain  = lr if initial else lr / 2
    }""")
    assert interpret.rates(schedule, {}, 3) == [1.0, 1.0, 1.0]
    assert interpret.rates(schedule, {}, 3, form="closed") == [1.0, 1.0, 1.0]
    assert interpret.rates(schedule, {}, 3, form="chain") == [1.0, 0.5, 0.25]
    assert interpret.chain(schedule, {}, 7, 3.0) == {"lr": 1.5}
    assert interpret.chain(schedule, {}, 7, 3.0, initial=True) == {"lr": 3.0}


def test_epoch_may_be_a_fraction() -> None:
    schedule = compiled("""schedule S {
        fractional
        closed = base_lr * (1 - t / 4)
    }""")
    assert interpret.closed(schedule, {}, 0.5, 2.0) == {"lr": 1.75}


def test_constants_and_observed_values_are_read_by_forms() -> None:
    text = """schedule S {
        hyper up: int
        state both = 2 * up
        observe place = t % both as T_cur
        let part = place / both
        closed = base_lr * part
    }"""
    assert rates(text, 6, up=2) == [0.0, 0.25, 0.5, 0.75, 0.0, 0.25]


def test_first_rate_of_its_own_stands_before_the_groups() -> None:
    argument = """schedule S {
        hyper base_lr: per_group real
        closed = base_lr / (t + 1)
    }"""
    assert rates(argument, 2, 7.0, base_lr=4.0) == [4.0, 2.0]
    assert rates(argument, 2, 7.0, base_lr=[4.0]) == [4.0, 2.0]
    group = """schedule S {
        hyper top: group real
        group state initial_lr = top / 4
        closed = base_lr + t
    }"""
    assert rates(group, 2, 7.0, top=2.0) == [0.5, 1.5]


PHASES = """schedule S {
    option swing = true
    hyper first: int = 2
    hyper last: int  = 6
    option middle = false
    hyper high: group real = 3.0
    group state initial_lr = 1.0
    group state low        = 0.0
    phases {
        until first                 { lr: initial_lr -> high, momentum: high -> low }
        until first + 1 when middle { lr: high -> high, momentum: low -> low }
        until last                  { lr: high -> low, momentum: low -> high }
    }
    closed          = start_lr + (end_lr - start_lr) * progress
    closed momentum = start_momentum + (end_momentum - start_momentum) * progress when swing
}"""


def test_phases_follow_each_other_and_the_last_stays_at_its_end() -> None:
    assert rates(PHASES, 9) == [1.0, 2.0, 3.0, 2.25, 1.5, 0.75, 0.0, 0.0, 0.0]
    assert rates(PHASES, 7, middle=True) == [1.0, 2.0, 3.0, 3.0, 2.0, 1.0, 0.0]
    # The first phase of length 0 is over in its only epoch.
    assert rates(PHASES, 4, first=0, last=3) == [3.0, 2.0, 1.0, 0.0]


def test_further_targets_exist_when_their_condition_holds() -> None:
    schedule = compiled(PHASES)
    hypers = interpret.arguments(schedule, {})
    momenta = [v["momentum"] for v in islice(interpret.epochs(schedule, hypers), 7)]
    assert momenta == [3.0, 1.5, 0.0, 0.75, 1.5, 2.25, 3.0]
    hypers = interpret.arguments(schedule, {"swing": False})
    assert all("momentum" not in v for v in islice(interpret.epochs(schedule, hypers), 7))


def test_functions_and_lists_are_arguments() -> None:
    text = """schedule S {
        hyper f: per_group function
        closed = base_lr * f(t)
    }"""
    assert rates(text, 3, 2.0, f=lambda t: t + 1) == [2.0, 4.0, 6.0]
    assert rates(text, 2, 2.0, f=[lambda t: 3]) == [6.0, 6.0]
    schedule = compiled("""schedule S {
        hyper at: list int
        closed = base_lr - reached(at, t)
        chain  = lr - count(at, t)
    }""")
    for form in ("closed", "chain"):
        hypers = {"at": [3, 1, 1]}
        assert interpret.rates(schedule, hypers, 5, 9.0, form=form) == [9.0, 7.0, 7.0, 6.0, 6.0]


def test_conditions_hold_at_construction_or_at_each_epoch() -> None:
    schedule = compiled("""schedule S {
        hyper total: int  require total > 0  else "total is {total}"
        let left = total - t
        require left >= 0  else "epoch {t}, {left} left"
        closed = base_lr * left
    }""")
    with pytest.raises(ValueError, match=r"^total is 0$"):
        interpret.arguments(schedule, {"total": 0})
    epochs = interpret.epochs(schedule, interpret.arguments(schedule, {"total": 1}))
    assert [next(epochs), next(epochs)] == [{"lr": 1.0}, {"lr": 0.0}]
    with pytest.raises(ValueError, match=r"^epoch 2, -1 left$"):
        next(epochs)


def test_arguments_are_completed_and_checked() -> None:
    schedule = compiled("""schedule S {
        hyper a: int
        hyper b: int = a
        closed = base_lr * a * b
    }""")
    assert interpret.arguments(schedule, {"a": 3}) == {"a": 3, "b": 3}
    with pytest.raises(TypeError, match=r"^S needs the argument 'a'\.$"):
        interpret.arguments(schedule, {"b": 3})
    with pytest.raises(TypeError, match=r"^S has no argument 'c'\.$"):
        interpret.arguments(schedule, {"a": 1, "c": 3})
    with pytest.raises(KeyError, match="b"):
        interpret.closed(schedule, {"a": 3}, 0)


def test_examples_are_values_lists_and_functions() -> None:
    schedule = compiled("""schedule S {
        hyper size: int
        hyper at: list int
        hyper f: function
        closed = base_lr * f(t) * size * count(at, t)
        example size = 4
        example at = (1, 2)
        example f(t) = t / 4
    }""")
    found = interpret.examples(schedule)
    assert (found["size"], found["at"], found["f"](8)) == (4, [1, 2], 2.0)


WAITING = """schedule S {
    hyper patience: int = 0
    state best = inf
    state bad  = 0
    let allowed = best
    update(metric) {
        if metric < best {
            best = metric
            bad = 0
        }
        else { bad += 1 }
        # What a let above has read is the state before this update.
        if bad > patience and allowed < inf {
            lr = lr / 2
            bad = 0
        }
    }
}"""


def test_metric_changes_states_and_the_rate_of_the_next_epoch() -> None:
    schedule = compiled(WAITING)
    follow = interpret.rates(schedule, {"patience": 0}, 9, 8.0, metrics=[3.0, 2.0, 2.0, 1.0, 5.0])
    assert follow == [8.0, 8.0, 8.0, 4.0, 4.0, 2.0]
    patient = interpret.rates(schedule, {"patience": 1}, 4, 8.0, metrics=[3.0, 3.0, 3.0])
    assert patient == [8.0, 8.0, 8.0, 4.0]
    assert interpret.rates(schedule, {"patience": 1}, 3, 8.0) == [8.0]


# Shipped schedules, with drawn arguments


def inverse(t: float) -> float:
    return 1 / (1 + t)


def waves(t: float) -> float:
    return 0.75 + 0.25 * math.cos(t / 4)


def values_of(hyper: Hyper) -> st.SearchStrategy[Any]:
    found: st.SearchStrategy[Any]
    match hyper.type.base:
        case Base.BOOL:
            found = st.booleans()
        case Base.INT:
            found = st.integers(0, 50)
        case Base.REAL:
            found = st.just(0.0) | st.floats(0.01, 1.0)
        case Base.TEXT:
            found = st.sampled_from(hyper.type.choices)
        case Base.FUNCTION:
            found = st.sampled_from([inverse, waves])
    if hyper.type.many:
        found = st.lists(found, max_size=5)
    return st.none() | found if hyper.type.optional else found


def is_valid(schedule: Schedule, arguments: Arguments) -> bool:
    try:
        interpret.arguments(schedule, arguments)
    except ValueError:
        return False
    return True


def arguments_of(schedule: Schedule) -> st.SearchStrategy[Arguments]:
    """The examples, some of them and of the defaults replaced."""
    examples = interpret.examples(schedule)
    examples.pop("metric", None)
    drawn = st.fixed_dictionaries({}, optional={h.name: values_of(h) for h in schedule.hypers})
    return drawn.map(lambda some: examples | some).filter(lambda all_: is_valid(schedule, all_))


def cases(schedules: dict[str, Schedule]) -> st.SearchStrategy[tuple[str, Arguments]]:
    return st.sampled_from(sorted(schedules)).flatmap(
        lambda name: st.tuples(st.just(name), arguments_of(schedules[name]))
    )


first_rates = st.floats(1e-3, 10.0)


def interpreted(
    schedule: Schedule, arguments: Arguments, base_lr: float, form: Any = None
) -> tuple[Values, str]:
    """The values of all epochs, and why they end early if they do."""
    found: list[dict[str, float]] = []
    end = ""
    try:
        found.extend(islice(interpret.epochs(schedule, arguments, base_lr, form=form), EPOCHS))
    except ValueError as error:
        end = str(error)
    return {target: [v[target] for v in found] for target in found[0]} if found else {}, end


# What the operations of one epoch's form round: in units of the largest number that it adds. The
# argument of a cosine, which grows with the epoch, is off by a part of itself.
ROUNDINGS = 32


def bounds(
    schedule: Schedule, hypers: Arguments, base_lr: float, rates: list[float]
) -> list[float]:
    """How far the rates of a schedule may be from those that are computed in another way.

    An epoch adds its roundings. With a chain form, what was wrong in the epoch before is stretched
    as the rate is.
    """
    added = [v for v in hypers.values() if isinstance(v, float)]
    unit = EPS * max(map(abs, [base_lr, *added, *rates]))
    found: list[float] = []
    error = 0.0
    for t in range(len(rates)):
        roundings = (ROUNDINGS + 2 * t) * unit
        error = roundings + stretch(schedule, hypers, t, base_lr) * (error + roundings)
        found.append(error)
    return found


def stretch(schedule: Schedule, hypers: Arguments, t: int, base_lr: float) -> float:
    """How much an epoch's rate changes with the rate before it."""
    if schedule.chain is None or t == 0:
        return 0.0
    one, none = (interpret.chain(schedule, hypers, t, lr, base_lr)["lr"] for lr in (1.0, 0.0))
    return abs(one - none)


def with_chain(schedule: Schedule) -> Schedule:
    """The schedule with its own chain form, or the derived one."""
    return schedule if schedule.chain is not None else derive_chain(schedule)


# Those that have both forms, written or derived.
CHAINED = {
    name: with_chain(schedule)
    for name, schedule in TIMED.items()
    if schedule.closed is not None and with_chain(schedule).chain is not None
}


def test_every_shipped_schedule_is_in_a_comparison() -> None:
    assert set(TIMED) | set(METRIC) == set(SHIPPED)
    assert set(METRIC) == {"ReduceLROnPlateau"}
    # A phase's rates are a group's, which no chain follows; the others have no closed form.
    assert set(TIMED) - set(CHAINED) == {"OneCycleLR", "MultiplicativeLR", "SWALR"}


def both_forms(
    schedule: Schedule, arguments: Arguments, base_lr: float
) -> Iterator[tuple[float, float, float]]:
    """For each epoch the rates of the closed form and of the chain, and how far they may differ."""
    hypers = interpret.arguments(schedule, arguments)
    closed, closed_end = interpreted(schedule, hypers, base_lr, "closed")
    chain, chain_end = interpreted(schedule, hypers, base_lr, "chain")
    assert closed_end == chain_end
    assert closed.keys() == chain.keys()
    assert all(closed[target] == chain[target] for target in closed if target != "lr")
    rates = closed.get("lr", [])
    limits = bounds(schedule, hypers, base_lr, rates)
    yield from zip(rates, chain.get("lr", []), limits, strict=True)


@given(cases(CHAINED), first_rates)
def test_closed_form_and_chain_agree_but_for_roundings(
    case: tuple[str, Arguments], base_lr: float
) -> None:
    name, arguments = case
    for closed, chain, limit in both_forms(CHAINED[name], arguments, base_lr):
        assert abs(closed - chain) <= limit


@given(cases(CHAINED), first_rates)
def test_derived_chain_agrees_with_the_closed_form_but_for_roundings(
    case: tuple[str, Arguments], base_lr: float
) -> None:
    """Also that of a schedule which has a chain of its own."""
    name, arguments = case
    derived = derive_chain(replace(SHIPPED[name], chain=None))
    assert derived.chain is not None
    for closed, chain, limit in both_forms(derived, arguments, base_lr):
        assert abs(closed - chain) <= limit


@pytest.mark.parametrize("name", CHAINED)
def test_forms_agree_within_64_ulps_of_each_rate_for_the_examples(name: str) -> None:
    examples = interpret.examples(SHIPPED[name])
    for schedule in (CHAINED[name], derive_chain(replace(SHIPPED[name], chain=None))):
        for closed, chain, _ in both_forms(schedule, examples, 0.3):
            assert closed == pytest.approx(chain, rel=64 * EPS, abs=0)


# Emitted classes and functions


# What rounds as IEEE 754 says, whoever computes it.
EXACT = {
    "add",
    "sub",
    "mul",
    "div",
    "neg",
    "abs",
    "max",
    "min",
    "mod",
    "floordiv",
    "floor",
    "floor_log",
}
EXACT |= {"eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "select", "unset"}
EXACT |= {"call", "count", "reached", "is_integer", "is_number"}


def is_exact(schedule: Schedule) -> bool:
    """Whether nothing in a schedule is computed by functions whose last bit is not prescribed."""
    forms = [schedule.closed, schedule.chain, *(t.closed for t in schedule.targets)]
    forms += [let.value for let in schedule.lets] + [kept.initial for kept in schedule.kept]
    operators = {e.op for f in forms if f is not None for e in walk(f) if isinstance(e, Apply)}
    return operators <= EXACT


def sgd(lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.5)


def now(optimizer: torch.optim.Optimizer, targets: tuple[str, ...]) -> dict[str, float]:
    (group,) = optimizer.param_groups
    return {name: group[name] for name in ("lr", *targets)}


def follow(
    name: str, arguments: Arguments, base_lr: float, saved_at: int | None = None
) -> tuple[Values, str]:
    """What the emitted class gives in all epochs, and why it ends early if it does. If saved at an
    epoch, a new schedule and a new optimizer go on from there."""
    optimizer = sgd(base_lr)
    made = getattr(ours, name)
    schedule = made(optimizer, **arguments)
    found = [now(optimizer, schedule.targets)]
    try:
        for epoch in range(1, EPOCHS):
            if epoch - 1 == saved_at:
                states = optimizer.state_dict(), schedule.state_dict()
                optimizer = sgd(1.0)
                schedule = made(optimizer, **arguments)
                optimizer.load_state_dict(states[0])
                schedule.load_state_dict(through_file(states[1]))
            optimizer.step()
            schedule.step()
            found.append(now(optimizer, schedule.targets))
    except ValueError as error:
        return {target: [v[target] for v in found] for target in found[0]}, str(error)
    return {target: [v[target] for v in found] for target in found[0]}, ""


def through_file(state: dict[str, Any]) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def hypers_of(name: str, arguments: Arguments) -> Arguments:
    return interpret.arguments(SHIPPED[name], arguments)


@given(cases(TIMED), first_rates)
def test_class_computes_what_the_interpreter_does(
    case: tuple[str, Arguments], base_lr: float
) -> None:
    """Bit for bit where a standard prescribes each bit. Elsewhere NumPy and Python differ in last
    bits, and rates by what these become."""
    name, arguments = case
    schedule, hypers = SHIPPED[name], hypers_of(name, arguments)
    form = "chain" if schedule.chain is not None else "closed"
    expected, end = interpreted(schedule, hypers, base_lr, form)
    values, told = follow(name, arguments, base_lr)
    assert told == end
    assert values.keys() == expected.keys()
    if is_exact(schedule):
        assert values == expected
        return
    limits = bounds(schedule, hypers, base_lr, expected["lr"])
    for target in expected:
        for one, other, limit in zip(values[target], expected[target], limits, strict=True):
            assert abs(one - other) <= limit


def test_some_schedules_are_held_bit_for_bit() -> None:
    exact = {name for name, schedule in TIMED.items() if is_exact(schedule)}
    assert exact >= {"ConstantLR", "LambdaLR", "LinearLR", "MultiplicativeLR", "WarmupLR"}
    assert not exact & {"CosineAnnealingLR", "ExponentialLR", "PolynomialLR"}


@given(cases(TIMED), first_rates, st.integers(0, EPOCHS - 2))
def test_schedule_saved_at_any_epoch_goes_on_bit_for_bit(
    case: tuple[str, Arguments], base_lr: float, epoch: int
) -> None:
    name, arguments = case
    assert follow(name, arguments, base_lr, epoch) == follow(name, arguments, base_lr)


# Those whose step is the closed form: their rate is a function of the epoch, bit for bit.
CLOSED = {name: schedule for name, schedule in TIMED.items() if schedule.chain is None}


@given(cases(CLOSED), first_rates, st.integers(0, EPOCHS - 2))
def test_schedule_is_resumed_by_the_number_of_the_epoch_alone(
    case: tuple[str, Arguments], base_lr: float, epoch: int
) -> None:
    name, arguments = case
    values, _ = follow(name, arguments, base_lr)
    hypothesis.assume(epoch + 1 < len(values["lr"]))
    (group,) = (optimizer := sgd(0.123)).param_groups
    group["initial_lr"] = base_lr
    schedule = getattr(ours, name)(optimizer, **arguments, last_epoch=epoch)
    for t in range(epoch + 1, len(values["lr"])):
        assert now(optimizer, schedule.targets) == {n: v[t] for n, v in values.items()}
        if t + 1 < len(values["lr"]):
            optimizer.step()
            schedule.step()


@given(cases(CLOSED), first_rates)
def test_function_is_the_class_without_an_optimizer(
    case: tuple[str, Arguments], base_lr: float
) -> None:
    name, arguments = case
    values, _ = follow(name, arguments, base_lr)
    f = getattr(ours, name).function(**arguments)
    base = values["lr"][0] if name == "OneCycleLR" else base_lr
    # In any order: nothing is kept from call to call.
    for t in reversed(range(len(values["lr"]))):
        assert f(t, base) == values["lr"][t]


@given(cases({n: s for n, s in TIMED.items() if n not in CLOSED}), first_rates)
def test_function_of_a_class_that_steps_by_a_chain_is_the_interpreters_closed_form(
    case: tuple[str, Arguments], base_lr: float
) -> None:
    name, arguments = case
    schedule, hypers = SHIPPED[name], hypers_of(name, arguments)
    expected, _ = interpreted(schedule, hypers, base_lr)
    f = getattr(ours, name).function(**arguments)
    found = [f(t, base_lr) for t in range(len(expected["lr"]))]
    if is_exact(schedule):
        assert found == expected["lr"]
        return
    for one, other in zip(found, expected["lr"], strict=True):
        assert one == pytest.approx(other, rel=1e-12, abs=1e-14 * base_lr)


AFFINE = {name: schedule for name, schedule in CLOSED.items() if getattr(ours, name).affine}


@given(cases(AFFINE), first_rates)
def test_chain_of_a_function_goes_on_from_the_rate_before(
    case: tuple[str, Arguments], base_lr: float
) -> None:
    """The runtime's chain of a closed form, too, is off by roundings alone."""
    name, arguments = case
    hypers = hypers_of(name, arguments)
    values, _ = follow(name, arguments, base_lr)
    f = getattr(ours, name).function(**arguments)
    rate = values["lr"][0]
    limits = bounds(CHAINED[name], hypers, base_lr, values["lr"])
    for t, (expected, limit) in enumerate(zip(values["lr"], limits, strict=True)):
        rate = f.chain(t, rate, base_lr) if t else rate
        assert abs(rate - expected) <= limit


METRICS = st.lists(
    st.sampled_from([math.nan, math.inf, -math.inf, 0.0]) | st.floats(-2.0, 2.0), max_size=60
)


@given(cases(METRIC), first_rates, METRICS)
def test_class_that_follows_a_metric_computes_what_the_interpreter_does(
    case: tuple[str, Arguments], base_lr: float, metrics: list[float]
) -> None:
    name, arguments = case
    hypers = hypers_of(name, arguments)
    expected = interpret.rates(SHIPPED[name], hypers, len(metrics) + 1, base_lr, metrics=metrics)
    schedule = getattr(ours, name)(optimizer := sgd(base_lr), **arguments)
    found = [base_lr]
    for metric in metrics:
        optimizer.step()
        schedule.step(metric)
        found.append(optimizer.param_groups[0]["lr"])
    assert found == expected
