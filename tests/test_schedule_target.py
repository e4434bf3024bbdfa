"""What the compiler makes of schedules: classes, where their values are kept, when conditions are
asked, documentation; and that the code is as one would write it."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from generated import lr_scheduler as ours
from optdsl.diagnostics import SpecError
from optdsl.ir import Schedule
from optdsl.parse import parse
from optdsl.passes import derive_chain
from optdsl.pipeline import shipped_library
from optdsl.resolve import resolve
from optdsl.runtime import SCHEDULE
from optdsl.source import Source
from optdsl.targets import TARGETS, section
from optdsl.targets.imports import with_imports

(TARGET,) = (target for target in TARGETS if target.name == "schedule")
SHIPPED = {u.name: u for u in shipped_library().units if isinstance(u, Schedule)}
Rates = list[list[float]]


def compiled(text: str) -> Schedule:
    (unit,), _ = resolve([parse(Source("user.opt", text))])
    assert isinstance(unit, Schedule)
    return unit


def emitted(unit: Schedule) -> str:
    text = section(TARGET, unit)
    assert text is not None
    return with_imports(text, {}, SCHEDULE)


def loaded(members: str) -> Any:
    """The class of `schedule S { members }`."""
    code = emitted(compiled(f"schedule S {{\n{members}\n}}"))
    names: dict[str, Any] = {}
    exec(code.replace("from ._", "from generated.lr_scheduler._"), names)
    return names["S"]


def sgd(*lrs: float, momentum: float = 0.0) -> Any:
    """An optimizer with a group for each rate."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs]
    return torch.optim.SGD(groups, lr=lrs[0], momentum=momentum)


def now(optimizer: Any, name: str = "lr") -> list[float]:
    return [float(group[name]) for group in optimizer.param_groups]


def follow(scheduler: Any, epochs: int, name: str = "lr") -> Rates:
    """The values of all groups after construction and after each epoch."""
    optimizer = scheduler.optimizer
    history = [now(optimizer, name)]
    for _ in range(epochs):
        optimizer.step()
        scheduler.step()
        history.append(now(optimizer, name))
    return history


# Forms


def test_schedule_with_a_closed_form_alone_steps_by_it() -> None:
    kind = loaded("closed = base_lr / (1 + t)")
    assert follow(kind(sgd(1.0)), 3) == [[1.0], [1 / 2], [1 / 3], [1 / 4]]


@pytest.mark.filterwarnings("ignore:The epoch parameter")
def test_schedule_with_a_chain_alone_has_no_closed_form() -> None:
    kind = loaded("chain = lr if initial else lr / 2")
    optimizer = sgd(1.0)
    scheduler = kind(optimizer)
    assert not hasattr(scheduler, "_get_closed_form_lr")
    optimizer.step()
    scheduler.step(5)
    assert (scheduler.last_epoch, now(optimizer)) == (5, [0.5])


def test_a_name_is_computed_where_it_is_needed_alone() -> None:
    kind = loaded(
        "hyper n: int = 0\n let part = t / n\n let other = part + 1 / n\n"
        "closed = base_lr if n == 0 else base_lr * other if part < 1 else 0"
    )
    # With n = 0 they could not be computed.
    assert follow(kind(sgd(1.0)), 2) == [[1.0], [1.0], [1.0]]
    assert follow(kind(sgd(1.0), n=2), 2) == [[0.5], [1.0], [0.0]]


def test_an_operand_that_may_not_be_needed_is_computed_in_its_place() -> None:
    kind = loaded(
        "hyper n: int = 0\n let part = t / n\n closed = base_lr * (1 + (part if n > 0 else 2))"
    )
    assert now(kind(sgd(1.0)).optimizer) == [3.0]
    assert follow(kind(sgd(1.0), n=2), 1) == [[1.0], [1.5]]


def test_a_choice_that_was_made_is_not_made_again() -> None:
    text = emitted(
        compiled(
            "schedule S {\n hyper n: int = 5\n hyper m: int = 9\n"
            " let rising = t / n if t < n else 1\n"
            " let a_long_name_for_a_long_line = rising * rising * rising * rising * rising\n"
            " closed = base_lr * (t / n if t < n else 1) if t < n\n"
            "  else base_lr * a_long_name_for_a_long_line if t < m else base_lr * 2\n}"
        )
    )
    (closed,) = (part for part in text.split("    def ") if part.startswith("_closed"))
    assert closed.count("if t < self.n") == 1
    assert "return base_lr * (t / self.n)" in closed
    assert "rising = 1\n" in closed


def test_default_may_read_another_hyperparameter() -> None:
    kind = loaded(
        "hyper up: int = 3\n hyper down: int = 2 * up if up > 0 else 1\n"
        "closed = base_lr * up / down"
    )
    assert now(kind(sgd(1.0)).optimizer) == [0.5]
    assert now(kind(sgd(1.0), up=4, down=4).optimizer) == [1.0]


# Where values are


def test_what_a_form_reads_is_in_checkpoints_and_what_only_the_constructor_reads_is_nowhere() -> (
    None
):
    kind = loaded(
        "hyper shown = 2.0 as _shown\n hyper half: int = 4 require half > 0\n"
        "state both = 2 * half as total\n closed = base_lr * shown / both"
    )
    scheduler = kind(sgd(1.0))
    state = scheduler.state_dict()
    assert (state["_shown"], state["total"]) == (2.0, 8)
    assert not {"shown", "half", "both"} & set(vars(scheduler))
    with pytest.raises(ValueError, match="half = 0 breaks the condition half > 0"):
        kind(sgd(1.0), half=0)
    other = kind(sgd(1.0), shown=5.0, half=1)
    other.load_state_dict(state)
    assert other._closed(0, 1.0) == 0.25


def test_a_value_per_group_may_be_one_for_all_or_a_list() -> None:
    kind = loaded(
        "hyper low: per_group real require 0 <= low < inf\n closed = max(low, base_lr / (1 + t))"
    )
    optimizer = sgd(1.0, 4.0)
    assert follow(kind(optimizer, low=[0.6, 1.5]), 2)[-1] == [0.6, 1.5]
    assert follow(kind(sgd(1.0, 4.0), low=0.4), 2)[-1] == [0.4, 4 / 3]
    assert kind(sgd(1.0, 4.0), low=0.4).lows == [0.4, 0.4]
    optimizer = sgd(1.0, 4.0)
    for wrong in (-1.0, [0.1, math.nan], [0.1, math.inf]):
        with pytest.raises(ValueError, match="breaks the condition 0 <= low < inf"):
            kind(optimizer, low=wrong)
    with pytest.raises(ValueError, match="low has 1 values, param_groups has 2"):
        kind(optimizer, low=[0.1])
    assert "initial_lr" not in optimizer.param_groups[0]


def test_a_groups_value_is_kept_in_the_group_and_first_values_follow_from_it() -> None:
    kind = loaded(
        "hyper peak: group real require peak > 0\n hyper part = 4.0\n"
        "group state initial_lr = peak / part\n closed = base_lr + (peak - base_lr) * t / 3"
    )
    optimizer = sgd(9.0, 9.0)
    scheduler = kind(optimizer, peak=[4.0, 8.0])
    assert now(optimizer, "peak") == [4.0, 8.0]
    assert now(optimizer, "initial_lr") == [1.0, 2.0]
    assert follow(scheduler, 3)[::3] == [[1.0, 2.0], [4.0, 8.0]]
    assert not {"peak", "part", "peaks"} & set(scheduler.state_dict())
    with pytest.raises(ValueError, match=r"peak = 0.0 breaks"):
        kind(optimizer, peak=[1.0, 0.0])
    assert now(optimizer, "peak") == [4.0, 8.0]


def test_groups_may_keep_what_no_argument_gives() -> None:
    kind = loaded(
        "option low = true\n group state initial_lr = 4.0\n group state least = 1.0 when low\n"
        "closed = base_lr / (1 + t) if not low else max(least, initial_lr / (1 + t))"
    )
    optimizer = sgd(9.0, 9.0)
    assert follow(kind(optimizer), 5)[::5] == [[4.0, 4.0], [1.0, 1.0]]
    assert now(optimizer, "least") == [1.0, 1.0]
    optimizer = sgd(9.0)
    assert follow(kind(optimizer, low=False), 7)[::7] == [[4.0], [0.5]]
    assert "least" not in optimizer.param_groups[0]


def test_a_value_exists_where_its_condition_holds() -> None:
    kind = loaded(
        "option swing = true\n hyper top: per_group group real = 0.5 when swing require top < 1\n"
        "closed = base_lr\n closed momentum = top / (1 + t) when swing"
    )
    optimizer = sgd(1.0, 2.0, momentum=0.9)
    scheduler = kind(optimizer, top=[0.4, 0.8])
    assert scheduler.targets == ("momentum",)
    assert follow(scheduler, 1, "momentum") == [[0.4, 0.8], [0.2, 0.4]]
    with pytest.raises(ValueError, match=r"top = 1.0 breaks the condition top < 1"):
        kind(optimizer, top=1.0)
    optimizer = sgd(1.0, momentum=0.9)
    scheduler = kind(optimizer, swing=False, top=1.0)
    assert scheduler.targets == ()
    assert "top" not in optimizer.param_groups[0]
    assert now(optimizer, "momentum") == [0.9]


def test_targets_may_have_conditions_of_their_own() -> None:
    kind = loaded(
        "option first = true\n option second = true\n closed = base_lr\n"
        "closed momentum = 0.25 when first\n closed dampening = 0.5 when second\n"
        "closed weight_decay = 0.125"
    )
    optimizer = sgd(1.0, momentum=0.9)
    scheduler = kind(optimizer, second=False)
    assert scheduler.targets == ("momentum", "weight_decay")
    (group,) = optimizer.param_groups
    assert (group["momentum"], group["dampening"], group["weight_decay"]) == (0.25, 0, 0.125)


def test_what_is_observed_follows_the_epoch_and_is_not_loaded() -> None:
    kind = loaded(
        "hyper n: int = 3\n let round = t // n\n observe rounds = round as _rounds\n"
        "observe rest = t - n * rounds\n observe twice = 2 * n\n"
        "closed = base_lr * (twice - rest) / n"
    )
    scheduler = kind(sgd(1.0))
    follow(scheduler, 4)
    state = scheduler.state_dict()
    assert (state["_rounds"], state["rest"], state["twice"]) == (1, 1, 6)
    other = kind(sgd(1.0), n=5)
    other.load_state_dict({**state, "n": 5, "_rounds": 77, "rest": 78, "twice": 79})
    assert (other._rounds, other.rest, other.twice) == (0, 4, 10)


def test_phases_exist_on_their_conditions() -> None:
    kind = loaded(
        "hyper high: group real\n option long = true\n option longer = false\n"
        "group state initial_lr = 0\n"
        "phases as _parts {\n"
        "until 2 when long { lr: initial_lr -> high }\n"
        "until 4 when longer { lr: high -> high }\n"
        "until 6 when not longer { lr: high -> initial_lr }\n"
        "until 8 { lr: high -> initial_lr }\n}\n"
        "closed = start_lr + (end_lr - start_lr) * progress"
    )
    ends = lambda scheduler: [phase["end_step"] for phase in scheduler._parts]  # noqa: E731
    assert ends(kind(sgd(1.0), high=1.0)) == [2, 6, 8]
    assert ends(kind(sgd(1.0), high=1.0, long=False, longer=True)) == [4, 8]
    scheduler = kind(sgd(1.0), high=1.0, longer=True)
    expected = [0.0, 0.5, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert [rate for (rate,) in follow(scheduler, 9)] == expected


# Conditions


def test_a_condition_on_the_epoch_is_asked_when_what_it_reads_is_known() -> None:
    kind = loaded(
        "hyper f: function\n let factor = f(t)\n"
        'require 0 <= factor < 3 else "f({t}) is {factor}"\n'
        'require t < 5 else "{t} is too much"\n chain = lr if initial else lr * factor'
    )
    asked: list[int] = []

    def f(t: int) -> float:
        asked.append(t)
        return float(t)

    scheduler = kind(sgd(1.0), f)
    assert asked == []
    follow(scheduler, 2)
    assert asked == [1, 2]
    with pytest.raises(ValueError, match=r"f\(3\) is 3.0"):
        follow(scheduler, 1)
    scheduler.last_epoch = 4
    with pytest.raises(ValueError, match="5 is too much"):
        follow(scheduler, 1)
    assert asked == [1, 2, 3]  # it is asked first, as it needs nothing


def test_a_condition_that_reads_what_the_form_does_not_is_asked_all_the_same() -> None:
    kind = loaded(
        'hyper n: int = 2\n let half = t / n\n require half < 1 else "{half}"\n closed = base_lr'
    )
    scheduler = kind(sgd(1.0))
    follow(scheduler, 1)
    with pytest.raises(ValueError, match=r"1\.0"):
        follow(scheduler, 1)


def test_a_condition_may_be_on_a_name() -> None:
    kind = loaded(
        "hyper a = 1.0\n hyper b = 2.0\n let sum_of = a + b\n require sum_of > 0, a != b\n"
        "closed = base_lr * sum_of"
    )
    assert now(kind(sgd(1.0)).optimizer) == [3.0]
    with pytest.raises(ValueError, match="sum_of > 0"):
        kind(sgd(1.0), a=-4.0)
    with pytest.raises(ValueError, match="a != b"):
        kind(sgd(1.0), a=2.0)


@pytest.mark.parametrize("given", [3, None, "f", [math.sin, 4]])
def test_what_cannot_be_called_is_no_function(given: Any) -> None:
    kind = loaded("hyper f: per_group function\n closed = base_lr * f(t)")
    wrong = given[1] if isinstance(given, list) else given
    name = type(wrong).__name__
    with pytest.raises(TypeError, match=f"^f should be a function, but got {name}$"):
        kind(sgd(1.0, 2.0), given)


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1])
@pytest.mark.parametrize(
    ("name", "argument", "others"),
    [
        ("LambdaLR", "lr_lambda", {}),
        ("MultiplicativeLR", "lr_lambda", {}),
        ("CyclicLR", "scale_fn", {"base_lr": 0.1, "max_lr": 1.0}),
    ],
)
def test_factors_of_a_function_that_make_no_rate_are_refused(
    name: str, argument: str, others: dict[str, Any], value: float
) -> None:
    optimizer = sgd(1.0, momentum=0.9)
    function = {argument: lambda t: value if t > 2 else 1.0}
    scheduler = getattr(ours, name)(optimizer, **others, **function, **_by_step(name))
    follow(scheduler, 2)
    before = now(optimizer)
    optimizer.step()
    with pytest.raises(ValueError, match="should be a finite number from 0 on, but is"):
        scheduler.step()
    assert now(optimizer) == before


def _by_step(name: str) -> dict[str, Any]:
    return {"scale_mode": "iterations"} if name == "CyclicLR" else {}


def test_a_function_may_be_left_out() -> None:
    kind = loaded(
        "hyper f: optional function = unset\n closed = base_lr if unset(f) else base_lr * f(t)"
    )
    assert follow(kind(sgd(1.0)), 1) == [[1.0], [1.0]]
    assert follow(kind(sgd(1.0), lambda t: t), 1) == [[0.0], [1.0]]
    with pytest.raises(TypeError, match="f should be a function, but got int"):
        kind(sgd(1.0), 3)


def test_a_text_is_one_of_its_choices_in_the_words_of_its_own_condition() -> None:
    plain = loaded('hyper how: "up" | "down" = "up"\n closed = base_lr if how == "up" else 0')
    with pytest.raises(ValueError, match=r"^how sideways is unknown!$"):
        plain(sgd(1.0), "sideways")
    own = loaded(
        'hyper how: "up" | "down" = "up" require how == "up" or how == "down" else "not {how}!"\n'
        'closed = base_lr if how == "up" else 0'
    )
    with pytest.raises(ValueError, match=r"^not sideways!$"):
        own(sgd(1.0), "sideways")


def test_a_checkpoint_that_breaks_a_condition_on_a_group_is_not_loaded() -> None:
    kind = loaded("hyper low: per_group real = 0 require low >= 0\n closed = max(base_lr, low)")
    scheduler = kind(sgd(1.0))
    before = scheduler.state_dict()
    with pytest.raises(ValueError, match="low = -1"):
        scheduler.load_state_dict({**before, "lows": [-1.0], "last_epoch": 7})
    assert scheduler.state_dict() == before


# Mistakes


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ("closed = lr * 0.5", "'lr' has no value in a closed form."),
        (
            "let half = lr / 2\n closed = half",
            "'half' reads 'lr': it has no value in a closed form.",
        ),
        ("closed = base_lr if initial else 0", "'initial' has no value in a closed form."),
        ("hyper step = 3\n closed = base_lr * step", "Every schedule has a 'step' already."),
        ("hyper lr = 3\n closed = base_lr * lr", "Every schedule has a 'lr' already."),
        ("let max = 3\n closed = base_lr * max", "Every schedule has a 'max' already."),
        ("hyper gamma = 3\n", "'S' gives no rate."),
        ("closed = base_lr\n update(metric) { lr = metric }", "either forms or an 'update'"),
        ("state best = t\n update(metric) { lr = best }", "'t' has no value in a first value."),
        ("state best = unset\n update(metric) { lr = 1 }", "is a name and its first value."),
        ("update(metric) { lr = base_lr }", "'base_lr' has no value in an update."),
        ("update(loss) { lr = 1 }", "A schedule's update takes the metric."),
        ("update { lr = 1 }", "A schedule's update takes the metric."),
        ("state best = 0\n update(metric) { best = metric }", "never changes the rate."),
        ("update(metric) { descend lr\n lr = 1 }", "A schedule has no parameter to step."),
        ("update(metric) { lr = 1\n t = 2 }", "'t' is a value given to a schedule"),
    ],
)
def test_mistakes_in_schedules_are_named(members: str, message: str) -> None:
    with pytest.raises(SpecError) as error:
        compiled(f"schedule S {{\n {members}\n}}")
    assert message in str(error.value)
    assert "user.opt:" in str(error.value)


def test_name_that_nothing_reads_is_a_warning() -> None:
    text = "schedule S {\n hyper gamma = 3\n let half = 2\n closed = base_lr\n}"
    _, found = resolve([parse(Source("user.opt", text))])
    assert [w.message for w in found] == ["Nothing reads 'gamma'.", "Nothing reads 'half'."]


# Updates


def test_update_runs_statements_about_rates_for_each_group_and_others_once() -> None:
    kind = loaded(
        """
        hyper floor: per_group real = 0
        hyper ends: (low, high) = (0.5, 2.0)
        state count = 0
        update(metric) {
            count += 1
            let wanted = lr * low if metric > 0 else lr * high
            if wanted < floor { wanted = floor }
            else if metric == 0 { wanted = lr }
            lr = wanted
            count *= 2
        }
        """
    )
    optimizer = sgd(1.0, 8.0)
    scheduler = kind(optimizer, floor=[0.75, 0.0])
    for metric in (1.0, -1.0, 0.0):
        scheduler.step(metric)
    assert now(optimizer) == [1.5, 8.0]
    assert scheduler.count == ((1 * 2 + 1) * 2 + 1) * 2


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ("state s = 0\n update(metric) { s = lr\n lr = s }", "'s' is shared by all groups"),
        (
            "state s = 0\n update(metric) { if lr > 1 { s = 1 }\n lr = s }",
            "'s' is shared by all groups",
        ),
        (
            "state s = 0\n update(metric) { let half = lr / 2\n s += 1\n lr = half }",
            "'half' is a group's value from before",
        ),
    ],
)
def test_what_the_target_cannot_do_is_an_error_with_a_place(members: str, message: str) -> None:
    with pytest.raises(SpecError) as error:
        emitted(compiled(f"schedule S {{\n {members}\n}}"))
    assert message in str(error.value)
    assert "user.opt:" in str(error.value)


# All schedules: functions, chains, documentation


def _arguments(name: str) -> dict[str, Any]:
    """The arguments of a schedule's examples, as its documentation writes them."""
    call = _example(name).split("\n")[0].partition("(optimizer, ")[2]
    arguments: dict[str, Any] = eval(f"dict({call}", {"math": math})
    return arguments


def _example(name: str) -> str:
    """The example of a class's documentation."""
    documentation = inspect.getdoc(getattr(ours, name)) or ""
    text = documentation.split("Example::\n\n")[1]
    return textwrap.dedent(text.split("\n\nReferences:")[0])


@pytest.mark.parametrize("name", SHIPPED)
def test_example_in_the_documentation_trains(name: str) -> None:
    optimizer = sgd(1.0, momentum=0.9)
    rates = []

    def train(model: None, given: Any) -> None:
        assert given is optimizer
        rates.append(*now(optimizer))
        optimizer.step()

    names = {"optimizer": optimizer, "model": None, "train": train, "math": math, name: None}
    names[name] = getattr(ours, name)
    exec(_example(name), {**names, "validate": lambda _: 1.0})
    assert len(rates) == 100
    assert all(0 <= rate < math.inf for rate in rates)
    assert len(set(rates)) > 1  # it does something


@pytest.mark.parametrize("name", SHIPPED)
def test_documentation_has_every_argument_and_source(name: str) -> None:
    documentation = inspect.getdoc(getattr(ours, name)) or ""
    for parameter in inspect.signature(getattr(ours, name)).parameters:
        assert f"\n    {parameter} (" in documentation
    unfolded = " ".join(documentation.split())
    for text in (SHIPPED[name].doc, *SHIPPED[name].cites):
        assert text in unfolded


FORMS = [name for name, unit in SHIPPED.items() if not unit.body]


@pytest.mark.parametrize("name", FORMS)
def test_function_takes_the_constructors_arguments(name: str) -> None:
    kind = getattr(ours, name)
    own = {"optimizer", "last_epoch", "parameter"}
    given = [p for n, p in inspect.signature(kind).parameters.items() if n not in own]
    taken = list(inspect.signature(kind.function).parameters.values())
    assert [(p.name, p.default, p.kind) for p in taken] == [
        (p.name, p.default, p.kind) for p in given
    ]
    assert not any("list[" in str(p.annotation) for p in taken)  # there is one group


@pytest.mark.parametrize("name", [n for n in FORMS if SHIPPED[n].closed is not None])
def test_function_gives_the_rates_of_the_class(name: str) -> None:
    arguments = _arguments(name)
    scheduler = getattr(ours, name)(sgd(1.0, momentum=0.9), **arguments)
    function = getattr(ours, name).function(**arguments)
    for t in range(100):
        (rate,) = scheduler.get_last_lr()
        if SHIPPED[name].chain is None:
            assert rate == function(t)
        else:  # 100 steps of ten roundings; those of a cosine are enlarged near its feet
            assert rate == pytest.approx(function(t), rel=1e-10, abs=1e-11)
        scheduler.optimizer.step()
        scheduler.step()


AFFINE = [n for n in FORMS if getattr(getattr(ours, n), "affine", False)]


def test_a_chain_is_derived_wherever_the_pass_finds_one() -> None:
    derived = [n for n in FORMS if SHIPPED[n].chain is None and derive_chain(SHIPPED[n]).chain]
    own_rate = [n for n in FORMS if any(h.name == "base_lr" for h in SHIPPED[n].hypers)]
    assert sorted(AFFINE) == sorted(set(derived) - set(own_rate))
    assert {"LambdaLR", "CosineAnnealingWarmRestarts", "REXLR", "NoamLR"} <= set(AFFINE)


@pytest.mark.parametrize("name", AFFINE)
@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(t=st.integers(0, 250), base=st.floats(1e-3, 10.0), factor=st.floats(0.1, 2.0))
def test_derived_chain_takes_one_rate_to_the_next(
    name: str, t: int, base: float, factor: float
) -> None:
    function = getattr(ours, name).function(**_arguments(name))
    # A rate that something else has multiplied keeps the factor.
    before = base if t == 0 else function(t - 1, base)
    chained = function.chain(t, factor * before, base)
    if before == 0:  # nothing is left to go on from
        assert chained == function(t, base)
        return
    # The ratio of two rates rounds by what both round: more, where the first of them is small.
    part = before / base
    assert chained == pytest.approx(function(t, factor * base), rel=1e-13 / part, abs=1e-13 / part)


# The text


LONG = """schedule Long {
    doc "A line that is long."
    hyper first_factor  = .5    require first_factor > 0 or first_factor < -1 and first_factor != -2
    hyper second_factor = 1E+2  require second_factor == second_factor
    hyper third_factor: int = 7
    let share = (first_factor * t + second_factor * t ** 2 + third_factor * t ** 3
        - first_factor * second_factor)
    closed = (base_lr * (first_factor + second_factor) * share / third_factor
        + first_factor * second_factor * third_factor)
    chain = lr * first_factor if (t > first_factor and t < second_factor and t != third_factor
        and t % 3 != 1 and initial)
        else lr
}
schedule Updated {
    hyper patience: int = 3
    state best = inf
    update(metric) {
        let smaller = 2.0 if metric < 3 else 1.0
        if patience > 2 { if metric > 9 { smaller = 3 } }
        if patience > 3 { smaller = smaller + metric } else { smaller = smaller - metric }
        if metric < best and metric < 3 and best > 4 { best = metric }
        else if metric > 12 { best = smaller }
        else { lr *= 0.5 }
    }
}
schedule Kept {
    hyper a_function_of_the_epoch: per_group function
    hyper the_highest_rate_of_all: group real     require 0 < the_highest_rate_of_all < inf
    hyper milestones_of_the_schedule: list int
    hyper another_function: optional function = unset as _another
    option a_condition_with_a_long_name = true
    hyper a_momentum: per_group group real = 0.5 when a_condition_with_a_long_name
    require not a_condition_with_a_long_name or a_momentum < 1
    hyper parts: (first_part, second_part) = (0.25, 0.75)
    hyper how: "one way" | "another way" | "a third way that is long" = "one way"
    hyper steps: optional int = unset   require unset(steps) or is_integer(steps) and steps > 0
    fractional

    observe all_of_the_steps = 100 if unset(steps) else steps
    observe phase_number = reached(milestones_of_the_schedule, t)
    group state initial_lr = the_highest_rate_of_all / 4
    require t <= all_of_the_steps else "{t} of {all_of_the_steps} steps"
    phases as _the_phases {
        until first_part * all_of_the_steps when a_condition_with_a_long_name {
            lr: initial_lr -> the_highest_rate_of_all
        }
        until second_part * all_of_the_steps when not a_condition_with_a_long_name {
            lr: initial_lr -> the_highest_rate_of_all
        }
        until all_of_the_steps { lr: the_highest_rate_of_all -> initial_lr }
    }
    let factor = a_function_of_the_epoch(t) if unset(another_function) else another_function(t / 2)
    closed = factor * start_lr if how == "one way" or how == "another way"
        else factor * (start_lr + (end_lr - start_lr) * progress) * (1 + phase_number)
    closed momentum = a_momentum * progress when a_condition_with_a_long_name
    example steps = 50
}
"""


def test_emitted_schedules_are_formatted_and_pass_linter_and_type_checker(tmp_path: Path) -> None:
    units, _ = resolve([parse(Source("user.opt", LONG))])
    for unit in units:
        assert isinstance(unit, Schedule)
        code = emitted(unit).replace("from ._", "from generated.lr_scheduler._")
        (tmp_path / f"{unit.name.lower()}.py").write_text(code)
    ruff = (sys.executable, "-m", "ruff")
    rules = ("--select", "B,C4,F,I,PT,RUF,SIM,UP,W", "--ignore", "SIM108")
    isolated = ("--line-length", "100", "--isolated", str(tmp_path))
    types = ("mypy", "--strict", "--no-warn-return-any", "--follow-imports", "silent")
    for command in (
        (*ruff, "format", "--diff", *isolated),
        (*ruff, "check", *rules, *isolated),
        (sys.executable, "-m", *types, str(tmp_path)),
    ):
        done = subprocess.run(command, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


# What exists in some groups, in some schedules, at some time


def test_phases_need_no_name() -> None:
    scheduler = loaded("""
        hyper high: group real = 2.0
        group state initial_lr = high / 2
        phases {
            until 4 { lr: initial_lr -> high }
            until 8 { lr: high -> initial_lr }
        }
        closed = start_lr + (end_lr - start_lr) * progress
    """)(sgd(0.1))
    assert follow(scheduler, 8) == [[1 + min(t, 8 - t) / 4] for t in range(9)]


def test_message_shows_names_that_its_condition_does_not_read() -> None:
    scheduler = loaded("""
        hyper factor = 0.5
        let half = t / 2
        let next = half + factor
        require t < 3 else "at {t}: {half}, {next}"
        closed = base_lr * factor
    """)(sgd(0.1))
    with pytest.raises(ValueError, match=r"^at 3: 1\.5, 2\.0$"):
        follow(scheduler, 3)


def test_first_values_and_conditions_count_what_a_list_holds() -> None:
    cls = loaded("""
        hyper milestones: list int   require count(milestones, 0) == 0 else "no 0 in milestones"
        hyper power = 2.0
        require power > reached(milestones, 4) - 9 else "power"
        state twice = count(milestones, 3) * power
        closed = base_lr * twice
    """)
    assert follow(cls(sgd(0.5), [3, 3, 5]), 1) == [[2.0], [2.0]]
    with pytest.raises(ValueError, match=r"^no 0 in milestones$"):
        cls(sgd(0.5), [0])
    with pytest.raises(ValueError, match=r"^power$"):
        cls(sgd(0.5), [1], power=-8.0)


@pytest.mark.parametrize("read", ["state first = factor(3)", "let first = 0.125"])
def test_function_that_is_not_kept_is_in_no_checkpoint(read: str) -> None:
    scheduler = loaded(f"hyper factor: function\n{read}\nclosed = base_lr * first")(
        sgd(1.0), lambda x: 0.5**x
    )
    assert scheduler.functions == ()
    scheduler.load_state_dict(scheduler.state_dict())
    assert now(scheduler.optimizer) == [0.125]


def test_conditions_on_first_values_of_groups_are_asked_before_anything_is_kept() -> None:
    cls = loaded("""
        hyper high: per_group real
        option on = true
        group state low = high / 2       when on
        require low < 10 else "low is {low}"
        closed = base_lr * (low if on else 1)
    """)
    optimizer = sgd(1.0, 1.0)
    with pytest.raises(ValueError, match=r"^low is 20\.0$"):
        cls(optimizer, [2.0, 40.0])
    assert all("low" not in group for group in optimizer.param_groups)
    assert now(cls(optimizer, [2.0, 4.0]).optimizer) == [1.0, 2.0]
    assert now(cls(sgd(1.0), 40.0, on=False).optimizer) == [1.0]


def test_conditions_on_what_does_not_exist_are_not_asked() -> None:
    cls = loaded("""
        hyper height = 2.0
        option on = false
        state twice = height * 2 when on
        require twice < 10 else "twice is {twice}"
        closed = base_lr * (twice if on else 1)
    """)
    assert now(cls(sgd(1.0), 40.0).optimizer) == [1.0]
    with pytest.raises(ValueError, match=r"^twice is 80\.0$"):
        cls(sgd(1.0), 40.0, on=True)


def test_text_of_a_group_is_one_of_its_choices() -> None:
    cls = loaded("""
        hyper way: per_group "up" | "down" = "up"
        closed = base_lr * (2 if way == "up" else 0.5)
    """)
    assert now(cls(sgd(1.0, 1.0), ["up", "down"]).optimizer) == [2.0, 0.5]
    with pytest.raises(ValueError, match=r"^way left is unknown!$"):
        cls(sgd(1.0, 1.0), ["up", "left"])


def test_schedule_drives_any_hyperparameter_that_the_optimizer_has() -> None:
    cls = loaded("closed = base_lr\nclosed weight_decay = t / 8")
    assert follow(cls(sgd(1.0)), 2, "weight_decay") == [[0.0], [0.125], [0.25]]
    assert cls.function()(3, 0.5) == 0.5
    wrong = loaded("closed = base_lr\nclosed nothing = t")
    with pytest.raises(ValueError, match=r"^'nothing' is no number in the parameter groups of SGD"):
        wrong(sgd(1.0))


def test_function_of_a_schedule_with_a_first_rate_of_its_own_begins_there() -> None:
    cls = loaded("""
        hyper high: per_group real = 2.0
        group state initial_lr = high / 2
        closed = base_lr * 0.5 ** t
    """)
    assert [cls.function()(t, 100.0) for t in range(3)] == [1.0, 0.5, 0.25]
