"""What all schedules share: combinations, hyperparameters besides the rate, groups, tensors, the
order of calls, functions of the epoch. Where torch is wrong, a test shows its figure and ours."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from types import ModuleType
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter
from torch.optim import lr_scheduler as theirs

import generated
from generated import lr_scheduler as ours
from generated.lr_scheduler import Schedule, product, sequence

LIBRARIES = pytest.mark.parametrize("library", [theirs, ours], ids=["torch", "ours"])
Rates = list[list[float]]
Config = tuple[str, dict[str, Any]]


def given(*drawn: Any, **named: Any) -> Any:
    """Hypothesis without its deadline: torch's first step imports for seconds."""
    unhurried = hypothesis.settings(deadline=None)
    return lambda test: unhurried(hypothesis.given(*drawn, **named)(test))


def parameter() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.zeros(2))


def optimizer_of(*lrs: Any, kind: Any = torch.optim.SGD, **more: Any) -> Any:
    """An optimizer with a group for each rate."""
    return kind([{"params": [parameter()], "lr": lr} for lr in lrs], lr=lrs[0], **more)


def grow(optimizer: Any, **options: Any) -> None:
    optimizer.add_param_group({"params": [parameter()], **options})


def now(optimizer: Any, name: str = "lr") -> list[float]:
    return [float(group[name]) for group in optimizer.param_groups]


def follow(optimizer: Any, scheduler: Any, epochs: int) -> Rates:
    """The rates of all groups now and after each epoch."""
    history = [now(optimizer)]
    for _ in range(epochs):
        optimizer.step()
        scheduler.step()
        history.append(now(optimizer))
    return history


def first(history: Rates) -> list[float]:
    """The rates of the first group."""
    return [rates[0] for rates in history]


def make(library: ModuleType, config: Config, optimizer: Any, **more: Any) -> Any:
    name, arguments = config
    return getattr(library, name)(optimizer, **arguments, **more)


def saved(state: Any) -> Any:
    """A checkpoint that went through a file, read as torch reads files it does not trust."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def warned(use: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        use()
    return [str(w.message).split(".")[0] for w in caught]


# Configurations in which no rate is near 0: a rate's roundings are then relative to it.
CHAINS: list[Config] = [
    ("StepLR", {"step_size": 4, "gamma": 0.5}),
    ("MultiStepLR", {"milestones": [3, 5, 5], "gamma": 0.5}),
    ("ConstantLR", {"factor": 0.25, "total_iters": 6}),
    ("LinearLR", {"start_factor": 0.2, "total_iters": 7}),
    ("ExponentialLR", {"gamma": 0.9}),
    ("MultiplicativeLR", {"lr_lambda": lambda t: 1 - 0.5 / (t + 1)}),
]
ABSOLUTE: list[Config] = [
    ("LambdaLR", {"lr_lambda": lambda t: 1 / (1 + t)}),
    ("CosineAnnealingWarmRestarts", {"T_0": 3, "T_mult": 2, "eta_min": 0.01}),
]
CYCLE: Config = ("CyclicLR", {"base_lr": 0.1, "max_lr": 0.2, "step_size_up": 3})
CYCLIC: list[Config] = [
    CYCLE,
    ("OneCycleLR", {"max_lr": 0.2, "total_steps": 90}),
]
ALL = [*CHAINS, *ABSOLUTE, *CYCLIC]
IDS = [name for name, _ in ALL]
libraries = st.sampled_from([theirs, ours])


def function_of(config: Config) -> Any:
    name, arguments = config
    return getattr(ours, name).function(**arguments)


# Schedules together


def test_restarts_and_milestones_together_are_a_product() -> None:
    def rates(library: ModuleType) -> list[float]:
        optimizer = optimizer_of(0.1)
        restarts = library.CosineAnnealingWarmRestarts(optimizer, 10)
        milestones = library.MultiStepLR(optimizer, [2, 4, 6])
        chained = library.ChainedScheduler([restarts, milestones])
        return first(follow(optimizer, chained, 11))

    assert round(rates(theirs)[11], 3) == 0.098  # no milestone is left of
    assert math.isclose(rates(ours)[11], 9.755e-5, rel_tol=1e-3)


@given(
    st.lists(st.tuples(st.sampled_from([*CHAINS, *ABSOLUTE]), libraries), min_size=1, max_size=4),
    st.tuples(st.sampled_from(ABSOLUTE), libraries),
    st.integers(0, 4),
    st.sampled_from([0.1, 0.7]),
)
def test_chained_schedules_are_the_product_of_their_functions(
    members: list[tuple[Config, ModuleType]],
    absolute: tuple[Config, ModuleType],
    place: int,
    lr: float,
) -> None:
    members.insert(place, absolute)
    optimizer = optimizer_of(lr, lr / 2)
    chained = ours.ChainedScheduler([make(lib, c, optimizer) for c, lib in members])
    whole = product(*(function_of(config) for config, _ in members))
    for t, (one, other) in enumerate(follow(optimizer, chained, 30)):
        # A chain of 30 epochs rounds each of its five factors 30 times, twice at most.
        for rate, base in ((one, lr), (other, lr / 2)):
            expected = float(whole(t, base))
            assert abs(rate - expected) <= 5 * 60 * math.ulp(expected), (t, members)
        assert chained.get_last_lr() == now(optimizer)


@pytest.mark.parametrize("order", [1, -1])
def test_a_cycle_may_be_chained_with_a_decay(order: int) -> None:
    optimizer = optimizer_of(0.1)
    cycle = ours.CyclicLR(optimizer, 0.01, 0.1, step_size_up=4)
    decay = ours.ExponentialLR(optimizer, 0.5)
    chained = ours.ChainedScheduler([cycle, decay][::order])
    alone = ours.CyclicLR.function(0.01, 0.1, step_size_up=4)
    for t, rate in enumerate(first(follow(optimizer, chained, 12))):
        assert rate == pytest.approx(float(alone(t)) * 0.5**t, rel=1e-12)
        assert optimizer.param_groups[0]["momentum"] > 0


@LIBRARIES
def test_a_schedule_of_torchs_that_begins_late_has_no_say(library: ModuleType) -> None:
    """torch's CyclicLR begins with the rate that the group had, here 0.1 of ExponentialLR."""
    optimizer = optimizer_of(0.1)
    library.ExponentialLR(optimizer, 0.5)
    library.CyclicLR(optimizer, 0.01, 0.1)
    assert now(optimizer) == ([0.1] if library is theirs else [0.01])
    children = [theirs.ExponentialLR(optimizer, 0.5), theirs.CyclicLR(optimizer, 0.01, 0.1)]
    ours.ChainedScheduler(children)
    assert now(optimizer) == [0.01]


@given(st.sampled_from(ALL), st.sampled_from(ALL), st.integers(0, 20), libraries)
def test_chained_schedules_go_on_from_a_checkpoint(
    one: Config, other: Config, stop: int, children: ModuleType
) -> None:
    def start() -> tuple[Any, Any]:
        optimizer = optimizer_of(0.1, 0.2)
        members = [make(children, config, optimizer) for config in (one, other)]
        return optimizer, ours.ChainedScheduler(members)

    optimizer, chained = start()
    follow(optimizer, chained, stop)
    fresh, resumed = start()
    states = saved([optimizer.state_dict(), chained.state_dict()])
    resumed.load_state_dict(states[1])
    fresh.load_state_dict(states[0])
    assert follow(fresh, resumed, 20) == follow(optimizer, chained, 20)
    assert resumed.state_dict() == chained.state_dict()


def test_a_checkpoint_of_torchs_wrong_product_goes_on_right() -> None:
    def start(library: ModuleType) -> tuple[Any, Any]:
        optimizer = optimizer_of(0.1)
        restarts = library.CosineAnnealingWarmRestarts(optimizer, 10)
        return optimizer, library.ChainedScheduler([library.StepLR(optimizer, 2, 0.5), restarts])

    optimizer, chained = start(theirs)
    follow(optimizer, chained, 7)
    never, straight = start(ours)
    expected = follow(never, straight, 12)[8:]
    fresh, resumed = start(ours)
    fresh.load_state_dict(optimizer.state_dict())
    before = now(fresh)
    resumed.load_state_dict(chained.state_dict())
    assert now(fresh) == before
    assert follow(fresh, resumed, 5)[1:] == expected


def test_a_group_that_joins_chained_schedules_begins_with_its_rate() -> None:
    optimizer = optimizer_of(0.1)
    restarts = ours.CosineAnnealingWarmRestarts(optimizer, 100)
    chained = ours.ChainedScheduler([ours.ExponentialLR(optimizer, 0.5), restarts])
    follow(optimizer, chained, 2)
    grow(optimizer, lr=0.4)
    history = follow(optimizer, chained, 2)
    whole = product(ours.CosineAnnealingWarmRestarts.function(100))
    assert [rates[1] for rates in history] == [
        0.4, pytest.approx(0.5 * whole(3, 0.4)), pytest.approx(0.25 * whole(4, 0.4)),
    ]  # fmt: skip


def test_schedules_of_different_parameters_are_chained_only_where_none_overwrites() -> None:
    optimizer = optimizer_of(0.1, weight_decay=0.5)
    rate = ours.ExponentialLR(optimizer, 0.5)
    decay = ours.ExponentialLR(optimizer, 0.1, parameter="weight_decay")
    chained = ours.ChainedScheduler([rate, decay])
    follow(optimizer, chained, 1)
    assert (now(optimizer), now(optimizer, "weight_decay")) == ([0.05], [0.05])
    absolute = ours.LambdaLR(optimizer, lambda t: 1.0)
    with pytest.raises(ValueError, match="schedulers of lr, weight_decay"):
        ours.ChainedScheduler([absolute, decay])


# One after the other


@given(
    # OneCycleLR changes the first rate of the groups: what was made before it had another.
    st.lists(st.tuples(st.sampled_from(ALL[:-1]), libraries), min_size=1, max_size=3)
    | st.tuples(st.just((ALL[-1], ours)), st.tuples(st.sampled_from(ALL), libraries)),
    st.lists(st.integers(0, 25), min_size=2, max_size=2),
    st.integers(0, 30),
)
def test_a_sequence_rebuilt_with_last_epoch_goes_on_as_if_it_had_not_stopped(
    members: Sequence[tuple[Config, ModuleType]], ends: list[int], stop: int
) -> None:
    milestones = sorted(ends[: len(members) - 1])

    def start(optimizer: Any, last_epoch: int = -1) -> Any:
        children = [make(library, config, optimizer) for config, library in members]
        return ours.SequentialLR(optimizer, children, milestones, last_epoch)

    optimizer = optimizer_of(0.1, 0.2)
    follow(optimizer, start(optimizer), stop)
    fresh = optimizer_of(0.1, 0.2)
    fresh.load_state_dict(optimizer.state_dict())
    straight = optimizer_of(0.1, 0.2)
    expected = follow(straight, start(straight), stop + 10)[stop:]
    resumed = start(fresh, stop - 1)
    assert resumed.last_epoch == stop
    assert follow(fresh, resumed, 10) == expected


@LIBRARIES
def test_torchs_sequence_rebuilt_with_last_epoch_begins_with_its_first_schedule(
    library: ModuleType,
) -> None:
    def start(optimizer: Any, last_epoch: int = -1) -> Any:
        warm_up = library.ConstantLR(optimizer, 0.1, 20)
        decay = library.ExponentialLR(optimizer, 0.5)
        return library.SequentialLR(optimizer, [warm_up, decay], [5], last_epoch)

    optimizer = optimizer_of(1.0)
    history = first(follow(optimizer, start(optimizer), 7))
    assert history[4:] == [0.1, 1.0, 0.5, 0.25]
    fresh = optimizer_of(1.0)
    fresh.load_state_dict(optimizer.state_dict())
    start(fresh, 6)
    assert now(fresh) == ([0.1] if library is theirs else [0.25])


def _nested(
    outer: ModuleType, inner: ModuleType, kind: str, is_first: bool
) -> tuple[Any, list[float]]:
    """A combination in a sequence, before or behind five epochs at 1/8 of the rate."""
    optimizer = optimizer_of(1.0)
    constant = inner.ConstantLR(optimizer, 0.5, 100)
    if kind == "sequence":
        children = [constant, inner.ConstantLR(optimizer, 0.25, 100)]
        nested = inner.SequentialLR(optimizer, children, [3])
    else:
        nested = inner.ChainedScheduler([constant, inner.ExponentialLR(optimizer, 0.5)])
    schedulers = [nested, outer.ConstantLR(optimizer, 0.125, 100)]
    whole = outer.SequentialLR(optimizer, schedulers[:: 1 if is_first else -1], [5])
    return whole, first(follow(optimizer, whole, 9))


RIGHT = {"sequence": [0.5, 0.5, 0.5, 0.25, 0.25], "chain": [0.5, 0.25, 0.125, 0.0625, 0.03125]}


@pytest.mark.parametrize(
    ("outer", "inner"), [(ours, ours), (ours, theirs), (theirs, ours)], ids=["3", "1", "2"]
)
@pytest.mark.parametrize("kind", RIGHT)
def test_combinations_may_be_parts_of_sequences(
    outer: ModuleType, inner: ModuleType, kind: str
) -> None:
    eighths = [0.125] * 5
    assert _nested(outer, inner, kind, True)[1] == [*RIGHT[kind], *eighths]
    assert _nested(outer, inner, kind, False)[1] == [*eighths, *RIGHT[kind]]
    whole, rates = _nested(outer, inner, kind, True)
    state = saved(whole.state_dict())
    whole.load_state_dict(state)
    assert (whole.get_last_lr(), whole.last_epoch) == (rates[-1:], 9)


@pytest.mark.filterwarnings("ignore:Detected call of")
def test_torchs_combinations_in_its_sequences_are_an_epoch_ahead_or_fail() -> None:
    assert _nested(theirs, theirs, "sequence", True)[1][:5] == [0.5, 0.5, 0.25, 0.25, 0.25]
    assert _nested(theirs, theirs, "chain", True)[1][:3] == [0.25, 0.125, 0.0625]
    for kind in RIGHT:
        with pytest.raises(NotImplementedError):
            _nested(theirs, theirs, kind, False)


def test_a_sequence_in_a_chain_is_a_factor() -> None:
    optimizer = optimizer_of(1.0)
    parts = [ours.ConstantLR(optimizer, f, 100) for f in (0.5, 0.25)]
    steps = ours.SequentialLR(optimizer, parts, [2])
    chained = ours.ChainedScheduler([ours.ExponentialLR(optimizer, 0.5), steps])
    assert first(follow(optimizer, chained, 3)) == [0.5, 0.25, 0.0625, 0.03125]


@pytest.mark.parametrize("milestones", [[3, 1], [-1, 2], [math.nan, 2]])
def test_milestones_out_of_order_are_refused_where_torch_takes_them(milestones: Any) -> None:
    optimizer = optimizer_of(0.1)
    children = [ours.ConstantLR(optimizer) for _ in range(3)]
    theirs.SequentialLR(optimizer, children, milestones)
    with pytest.raises(ValueError, match="milestones have to be in order and not negative"):
        ours.SequentialLR(optimizer, children, milestones)
    with pytest.raises(ValueError, match="milestones have to be in order and not negative"):
        sequence([lambda t, base: base] * 3, milestones)


def test_a_sequence_goes_on_from_a_checkpoint_of_its_first_part() -> None:
    def start() -> tuple[Any, Any]:
        optimizer = optimizer_of(0.1)
        children = [make(ours, config, optimizer) for config in (CHAINS[0], *ABSOLUTE)]
        return optimizer, ours.SequentialLR(optimizer, children, [4, 8])

    optimizer, whole = start()
    follow(optimizer, whole, 2)
    fresh, resumed = start()
    resumed.load_state_dict(saved(whole.state_dict()))
    fresh.load_state_dict(optimizer.state_dict())
    assert resumed.state_dict() == whole.state_dict()
    assert follow(fresh, resumed, 12) == follow(optimizer, whole, 12)


def test_a_schedule_may_last_for_no_epoch() -> None:
    optimizer = optimizer_of(1.0)
    children = [ours.ConstantLR(optimizer, f, 100) for f in (0.5, 0.1, 0.25)]
    whole = ours.SequentialLR(optimizer, children, [2, 2])
    assert first(follow(optimizer, whole, 3)) == [0.5, 0.5, 0.25, 0.25]


def test_a_checkpoint_that_one_schedule_refuses_changes_none() -> None:
    def start() -> Any:
        optimizer = optimizer_of(0.1)
        chain = ours.ChainedScheduler([ours.ExponentialLR(optimizer, 0.5)])
        return ours.SequentialLR(optimizer, [chain, ours.StepLR(optimizer, 3)], [4])

    state = start().state_dict()
    state["_schedulers"][0]["_schedulers"][0]["gamma"] = 0.25
    state["_schedulers"][1]["step_size"] = 0
    whole = start()
    with pytest.raises(ValueError, match="step_size = 0"):
        whole.load_state_dict(state)
    assert whole.state_dict() == start().state_dict()
    with pytest.raises(ValueError, match="1 schedulers, not of 2"):
        whole.load_state_dict({**state, "_schedulers": state["_schedulers"][:1]})


def test_a_loaded_schedule_shares_nothing_with_its_checkpoint() -> None:
    for library, first_rate in ((theirs, 7.0), (ours, 0.1)):
        scheduler = library.ExponentialLR(optimizer_of(0.1), 0.5)
        state = copy.deepcopy(scheduler.state_dict())
        before = copy.deepcopy(state)
        scheduler.load_state_dict(state)
        assert state == before
        state["base_lrs"][0] = 7.0
        assert scheduler.base_lrs == [first_rate]


def test_a_longer_run_of_one_cycle_goes_on_from_a_shorter_ones_checkpoint() -> None:
    def resumed(library: ModuleType) -> tuple[Any, Any]:
        optimizer = optimizer_of(0.1)
        short = library.OneCycleLR(optimizer, 0.1, total_steps=5)
        follow(optimizer, short, 4)
        fresh = optimizer_of(0.1)
        longer = library.OneCycleLR(fresh, 0.1, total_steps=10)
        longer.load_state_dict(saved(short.state_dict()))
        fresh.load_state_dict(optimizer.state_dict())
        return fresh, longer

    with pytest.raises(ValueError, match="Tried to step 6 times"):
        follow(*resumed(theirs), 6)
    whole = ours.OneCycleLR.function(0.1, total_steps=10)
    assert first(follow(*resumed(ours), 5))[1:] == [whole(t) for t in range(5, 10)]


# Groups that come later


@pytest.mark.parametrize("config", ALL, ids=IDS)
def test_a_group_that_is_added_begins_with_its_own_rate(config: Config) -> None:
    optimizer = optimizer_of(0.1)
    scheduler = make(ours, config, optimizer)
    follow(optimizer, scheduler, 2)
    grow(optimizer, lr=0.4)
    history = follow(optimizer, scheduler, 8)
    alone = optimizer_of(0.1)
    expected = first(follow(alone, make(ours, config, alone), 10))
    assert first(history) == expected[2:]
    assert history[0][1] == 0.4
    assert scheduler.get_last_lr() == history[-1]
    if config in CYCLIC:  # they have a first rate of their own
        assert [rates[1] for rates in history[1:]] == expected[3:]
        assert len(set(now(optimizer, "momentum"))) == 1
    elif config in ABSOLUTE:
        assert history[3][1] == float(function_of(config)(5, 0.4))
    else:
        factors = [b / a for a, b in pairwise(expected[2:])]
        for (before, after), factor in zip(pairwise(history), factors, strict=True):
            assert after[1] == pytest.approx(before[1] * factor)
    resumed = make(ours, config, optimizer)
    resumed.load_state_dict(saved(scheduler.state_dict()))
    assert resumed.state_dict() == scheduler.state_dict()


@pytest.mark.parametrize("config", [*ABSOLUTE, *CYCLIC, CHAINS[-1]], ids=lambda c: c[0])
def test_torch_cannot_go_on_when_a_group_is_added(config: Config) -> None:
    optimizer = optimizer_of(0.1)
    scheduler = make(theirs, config, optimizer)
    optimizer.step()
    grow(optimizer, lr=0.4)
    with pytest.raises((ValueError, KeyError)):
        scheduler.step()


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (("LambdaLR", {"lr_lambda": [math.exp]}), "lr_lambdas"),
        (("MultiplicativeLR", {"lr_lambda": [math.exp]}), "lr_lambdas"),
        (("CyclicLR", {"base_lr": 0.1, "max_lr": [0.2]}), "max_lrs"),
        (("CyclicLR", {"base_lr": [0.1], "max_lr": 0.2}), "base_lrs"),
        (("OneCycleLR", {"max_lr": [0.2], "total_steps": 9}), "max_lr"),
    ],
)
def test_a_list_has_nothing_for_a_group_that_is_added(config: Config, field: str) -> None:
    optimizer = optimizer_of(0.1)
    scheduler = make(ours, config, optimizer)
    optimizer.step()
    grow(optimizer, lr=0.4)
    with pytest.raises(RuntimeError, match=rf"`{config[0]}` was initialized \(1\).*`{field}`"):
        scheduler.step()
    if hasattr(scheduler, field):
        values = getattr(scheduler, field)
        setattr(scheduler, field, [*values, *values])
    else:
        optimizer.param_groups[1][field] = 0.4
    scheduler.step()
    assert len(scheduler.get_last_lr()) == 2


# Tensors


def shared_by_two_groups(tensor: torch.Tensor) -> Any:
    return torch.optim.SGD([{"params": [parameter()]} for _ in range(2)], lr=tensor)


@LIBRARIES
def test_groups_that_share_a_tensor_are_reduced_once(library: ModuleType) -> None:
    lr = torch.tensor(0.5)
    optimizer = shared_by_two_groups(lr)
    scheduler = library.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    scheduler.step(1.0)
    scheduler.step(2.0)
    assert now(optimizer) == ([0.125] * 2 if library is theirs else [0.25] * 2)
    assert optimizer.param_groups[0]["lr"] is lr


@LIBRARIES
def test_groups_that_share_a_tensor_follow_schedules_of_their_own(library: ModuleType) -> None:
    optimizer = shared_by_two_groups(torch.tensor(1.0))
    library.LambdaLR(optimizer, [lambda t: 0.5, lambda t: 0.25])
    assert now(optimizer) == ([0.25, 0.25] if library is theirs else [0.5, 0.25])
    grow(optimizer)
    # torch has written into the optimizer's default, too.
    assert now(optimizer)[2] == (0.25 if library is theirs else 1.0)


def test_a_group_that_comes_later_shares_no_tensor() -> None:
    optimizer = shared_by_two_groups(torch.tensor(1.0))
    scheduler = ours.ExponentialLR(optimizer, 0.5)
    grow(optimizer)
    grow(optimizer)
    scheduler._update_lr()
    assert len({id(group["lr"]) for group in optimizer.param_groups}) == 4
    assert now(optimizer) == [0.5] * 4


def test_tensors_among_betas_stay_the_same_tensors() -> None:
    betas = tuple(torch.tensor(b, dtype=torch.float64) for b in (0.9, 0.5))
    optimizer = torch.optim.Adam([parameter()], betas=betas, lr=0.1)
    ours.CyclicLR(optimizer, 0.1, 0.2, max_momentum=0.75)
    Schedule(optimizer, lambda t, base: base / 2, parameter="betas[1]")
    kept = optimizer.param_groups[0]["betas"]
    assert all(a is b for a, b in zip(kept, betas, strict=True))
    assert [float(b) for b in kept] == [0.75, 0.25]


# The order of calls

TOO_EARLY = "Detected call of `lr_scheduler"
OVERRIDDEN = "Seems like `optimizer"


def stepped(optimizer: Any) -> None:
    optimizer.step()


def stepped_by_a_function_that_calls_the_original(optimizer: Any) -> None:
    original = optimizer.step
    optimizer.step = lambda: original()
    optimizer.step()


def stepped_after_compiling(optimizer: Any) -> None:
    optimizer.step = torch.compile(optimizer.step, backend="eager")
    optimizer.step()


def stepped_inside_a_compiled_function(optimizer: Any) -> None:
    torch.compile(lambda: optimizer.step(), backend="eager")()


def changed_without_a_step(optimizer: Any) -> None:
    with torch.no_grad():
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.sub_(group["lr"])


def skipped_by_a_scaler(optimizer: Any) -> None:
    scaler = torch.amp.GradScaler("cpu")
    (param,) = optimizer.param_groups[0]["params"]
    before = param.clone()
    scaler.scale(param.sum() * math.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    assert param.equal(before)


def not_stepped(optimizer: Any) -> None:
    pass


def overridden_and_not_stepped(optimizer: Any) -> None:
    optimizer.step = lambda: None


@pytest.mark.parametrize("kind", [torch.optim.SGD, generated.SGD, generated.Adam])
@pytest.mark.parametrize(
    ("use", "torchs", "expected"),
    [
        (stepped, [], []),
        (stepped_by_a_function_that_calls_the_original, [OVERRIDDEN], []),
        (stepped_after_compiling, [], []),
        (stepped_inside_a_compiled_function, [], []),
        (changed_without_a_step, [TOO_EARLY], []),
        (skipped_by_a_scaler, [TOO_EARLY], []),
        (not_stepped, [TOO_EARLY], [TOO_EARLY]),
        (overridden_and_not_stepped, [OVERRIDDEN], [OVERRIDDEN]),
    ],
)
def test_the_order_of_calls_is_warned_of_when_it_is_wrong(
    kind: Any, use: Callable[[Any], None], torchs: list[str], expected: list[str]
) -> None:
    for library, texts in ((theirs, torchs), (ours, expected)):
        optimizer = optimizer_of(torch.tensor(0.1), kind=kind)
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.ones_like(param)
        scheduler = library.ExponentialLR(optimizer, 0.5)
        use(optimizer)
        assert warned(scheduler.step) == texts, library


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_sees_the_steps_of_its_optimizer(duplicate: Callable[[Any], Any]) -> None:
    for library, texts in ((theirs, [OVERRIDDEN]), (ours, [])):
        original = optimizer_of(0.1)
        optimizer, scheduler = duplicate((original, library.ExponentialLR(original, 0.5)))
        assert scheduler.optimizer is optimizer
        optimizer.step()
        assert warned(scheduler.step) == texts
    # Before it was copied, the optimizer may have taken a step.
    original = optimizer_of(0.1)
    _, scheduler = duplicate((original, ours.ExponentialLR(original, 0.5)))
    assert warned(scheduler.step) == []


def test_a_captured_step_may_have_been_replayed() -> None:
    optimizer = optimizer_of(0.1, kind=torch.optim.Adam, capturable=True)
    assert warned(ours.ExponentialLR(optimizer, 0.5).step) == []


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """What is compiled elsewhere counts for nothing in the test, nor the other way round."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("kind", [torch.optim.SGD, generated.SGD])
def test_a_compiled_step_has_schedules_where_torch_fails(kind: Any) -> None:
    param = parameter()
    optimizer = kind([param], lr=torch.tensor(0.5))
    counter = CompileCounter()
    optimizer.step = torch.compile(optimizer.step, backend=counter)
    with pytest.raises(AttributeError, match="__func__"):
        theirs.ExponentialLR(optimizer, 0.5)
    scheduler = ours.ExponentialLR(optimizer, 0.5)
    for step in range(6):
        param.grad = torch.ones_like(param)
        optimizer.step()
        assert warned(scheduler.step) == []
        if step == 1:
            graphs = counter.frame_count
    assert counter.frame_count == graphs
    assert param.tolist() == [-sum(0.5**k for k in range(1, 7))] * 2


def test_the_optimizers_step_is_left_as_it_is() -> None:
    optimizer = optimizer_of(0.1)
    for config in ALL:
        make(ours, config, optimizer)
    assert "step" not in vars(optimizer)
    assert len(optimizer._optimizer_step_post_hooks) == 1
    assert not copy.deepcopy(optimizer)._optimizer_step_post_hooks


class Wrapped(torch.optim.Optimizer):
    """An optimizer around another, of the kind that calls no constructor."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups

    def step(self) -> None:  # type: ignore[override]
        self.optimizer.step()


def test_an_optimizer_without_hooks_is_seen_by_what_it_changes() -> None:
    for expected in ([], [TOO_EARLY]):
        optimizer = Wrapped(optimizer_of(0.1))
        scheduler = ours.ExponentialLR(optimizer, 0.5)
        if not expected:
            (param,) = optimizer.param_groups[0]["params"]
            param.grad = torch.ones_like(param)
            optimizer.step()
        assert warned(scheduler.step) == expected
        assert now(optimizer) == [0.05]


def test_torchs_schedules_and_ours_share_what_they_saw() -> None:
    optimizer = optimizer_of(0.1)
    kinds = ours.ExponentialLR, theirs.ExponentialLR
    early, torchs_early = (kind(optimizer, 0.5) for kind in kinds)
    assert warned(early.step) == warned(torchs_early.step) == [TOO_EARLY]
    late, torchs_late = (kind(optimizer, 0.5) for kind in kinds)
    optimizer.step()
    assert warned(late.step) == warned(torchs_late.step) == []


# What has no meaning


@pytest.mark.parametrize("factor", [math.nan, math.inf, -0.5])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("StepLR", lambda f: {"step_size": 1, "gamma": f}),
        ("MultiStepLR", lambda f: {"milestones": [1], "gamma": f}),
        ("ExponentialLR", lambda f: {"gamma": f}),
        ("LambdaLR", lambda f: {"lr_lambda": lambda t: f if t else 1.0}),
        ("MultiplicativeLR", lambda f: {"lr_lambda": lambda t: f}),
    ],
)
def test_factors_that_spoil_every_rate_are_refused_where_torch_takes_them(
    name: str, arguments: Any, factor: float
) -> None:
    optimizer = optimizer_of(0.1)
    spoilt = make(theirs, (name, arguments(factor)), optimizer)
    rates = first(follow(optimizer, spoilt, 2))
    assert not all(0 <= rate < math.inf for rate in rates)
    optimizer = optimizer_of(0.1)
    with pytest.raises(ValueError):
        follow(optimizer, make(ours, (name, arguments(factor)), optimizer), 2)
    assert now(optimizer) == [0.1]


def state_of(scheduler: Any, optimizer: Any) -> Any:
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    return copy.deepcopy((scheduler.state_dict(), groups))


@LIBRARIES
def test_a_step_that_fails_changes_nothing(library: ModuleType) -> None:
    """torch counts the epoch, and goes on from there when the step is tried again."""

    def factor(t: int) -> float:
        if failing:
            raise OSError
        return 1 / (1 + t)

    failing = False
    optimizer = optimizer_of(1.0, momentum=0.9)
    scheduler = library.LambdaLR(optimizer, factor)
    follow(optimizer, scheduler, 2)
    before = state_of(scheduler, optimizer)
    failing = True
    with pytest.raises(OSError):
        scheduler.step()
    assert (state_of(scheduler, optimizer) == before) == (library is ours)
    failing = False
    scheduler.step()
    assert now(optimizer) == [1 / 4 if library is ours else 1 / 5]


def test_no_step_behind_the_end_changes_a_cycle() -> None:
    optimizer = optimizer_of(0.1, momentum=0.9)
    scheduler = ours.OneCycleLR(optimizer, 0.1, total_steps=3)
    follow(optimizer, scheduler, 3)
    before = state_of(scheduler, optimizer)
    for _ in range(2):
        with pytest.raises(ValueError, match="Tried to step 4 times"):
            scheduler.step()
    assert state_of(scheduler, optimizer) == before


@pytest.mark.parametrize("config", [CHAINS[0], ABSOLUTE[0]], ids=lambda config: config[0])
def test_no_group_takes_the_place_of_one_that_was_removed(config: Config) -> None:
    optimizer = optimizer_of(0.1, 0.2)
    scheduler = make(ours, config, optimizer)
    follow(optimizer, scheduler, 1)
    del optimizer.param_groups[0]
    before = state_of(scheduler, optimizer)
    with pytest.raises(ValueError):
        scheduler.step()
    assert state_of(scheduler, optimizer)[1] == before[1]
    assert scheduler.last_epoch == 1


def test_a_sequence_whose_schedule_fails_does_not_count_the_epoch() -> None:
    optimizer = optimizer_of(0.1, momentum=0.9)
    children = [ours.OneCycleLR(optimizer, 0.1, total_steps=2), ours.ExponentialLR(optimizer, 0.5)]
    scheduler = ours.SequentialLR(optimizer, children, [9])
    follow(optimizer, scheduler, 2)
    before = state_of(scheduler, optimizer)
    with pytest.raises(ValueError, match="Tried to step 3 times"):
        scheduler.step()
    assert state_of(scheduler, optimizer) == before


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize(
    ("error", "construct"),
    [
        (ValueError, lambda o: ours.LambdaLR(o, lambda t: math.nan)),
        (ValueError, lambda o: ours.CyclicLR(o, 0.2, 0.3, scale_fn=lambda x: -1.0)),
        (ValueError, lambda o: ours.OneCycleLR(o, 0.2, total_steps=5, last_epoch=7)),
        (KeyError, lambda o: ours.CyclicLR(o, 0.2, 0.3, last_epoch=3)),
        (ValueError, lambda o: Schedule(o, lambda t, base: math.nan)),
        (KeyError, lambda o: Schedule(o, lambda t, base: base, last_epoch=3)),
    ],
)
def test_a_schedule_that_cannot_be_made_leaves_the_groups(
    as_tensor: bool, error: Any, construct: Any
) -> None:
    rates = [torch.tensor(0.1), torch.tensor(0.5)] if as_tensor else [0.1, 0.5]
    optimizer = optimizer_of(*rates, momentum=0.9)
    before = [dict(group) for group in optimizer.param_groups]
    with pytest.raises(error):
        construct(optimizer)
    assert now(optimizer) == [float(torch.tensor(r)) if as_tensor else r for r in (0.1, 0.5)]
    for group, old in zip(optimizer.param_groups, before, strict=True):
        assert group.keys() == old.keys()
        assert all(group[name] is old[name] for name in old)


def test_a_schedule_of_functions_says_what_resuming_needs() -> None:
    with pytest.raises(KeyError, match=r"not specified in param_groups\[0\] when resuming"):
        Schedule(optimizer_of(0.1), lambda t, base: base, last_epoch=3)


# Numbers that are none of Python's


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("StepLR", {"step_size": np.int64(2), "gamma": np.float32(0.5)}),
        ("LambdaLR", {"lr_lambda": lambda t: np.float32(1 / (1 + t))}),
        ("CosineAnnealingLR", {"T_max": 8, "eta_min": np.float32(0.01)}),
        ("CyclicLR", {"base_lr": np.float32(0.1), "max_lr": np.float64(0.2), "step_size_up": 3}),
    ],
)
@pytest.mark.parametrize("lr", [np.float32(0.5), np.float64(0.5), 1])
def test_numbers_of_numpy_are_numbers(name: str, arguments: Any, lr: Any) -> None:
    histories = []
    for library in (theirs, ours):
        optimizer = optimizer_of(lr, momentum=0.9)
        history = follow(optimizer, make(library, (name, arguments), optimizer), 12)
        # Another one begins where this one is.
        history += follow(optimizer, library.ExponentialLR(optimizer, 0.5), 2)
        histories.append(history)
    assert histories[0] == histories[1]


@LIBRARIES
def test_a_tensor_among_the_arguments_stays_as_it_is(library: ModuleType) -> None:
    """torch puts it into the group, and writes the rates into it."""
    histories = []
    for base in (0.1, torch.tensor(0.1)):
        optimizer = optimizer_of(0.5, momentum=0.9)
        cycle = library.CyclicLR(optimizer, base, 0.2, step_size_up=3)
        histories.append(first(follow(optimizer, cycle, 8)))
    is_right = histories[1] == pytest.approx(histories[0], rel=1e-6)
    assert is_right == (library is ours)


@pytest.mark.parametrize("milestone", [2.5, math.nan, math.inf, np.float64(0.1)])
def test_a_milestone_that_is_no_whole_number_is_refused(milestone: Any) -> None:
    with pytest.raises(ValueError, match="expected a whole number, but got"):
        ours.MultiStepLR(optimizer_of(1.0), [1, milestone])


@pytest.mark.parametrize(
    "milestones", [torch.tensor([2, 4]), np.array([2, 4]), [2.0, 4.0], iter((4, 2))]
)
def test_milestones_may_be_any_whole_numbers(milestones: Any) -> None:
    """torch finds no epoch among tensors."""
    optimizer = optimizer_of(1.0)
    scheduler = ours.MultiStepLR(optimizer, milestones, 0.5)
    assert first(follow(optimizer, scheduler, 5)) == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert scheduler.state_dict()["milestones"] == {2: 1, 4: 1}
    assert {type(m) for m in scheduler.milestones} == {int}
    if isinstance(milestones, torch.Tensor):
        optimizer = optimizer_of(1.0)
        deaf = theirs.MultiStepLR(optimizer, milestones, 0.5)
        assert first(follow(optimizer, deaf, 5)) == [1.0] * 6


# Checkpoints of optimizers


def test_groups_that_share_a_tensor_after_a_checkpoint_follow_schedules_of_their_own() -> None:
    rate = torch.tensor(1.0)
    checkpoint = optimizer_of(rate, rate).state_dict()
    optimizer = optimizer_of(torch.tensor(1.0), torch.tensor(1.0))
    scheduler = ours.LambdaLR(optimizer, [lambda t: 0.5, lambda t: 0.25])
    optimizer.load_state_dict(checkpoint)
    optimizer.step()
    scheduler.step()
    assert now(optimizer) == [0.5, 0.25]


def test_a_checkpoint_may_be_loaded_before_a_new_group_is_known() -> None:
    optimizer = optimizer_of(0.1, momentum=0.9)
    scheduler = ours.OneCycleLR(optimizer, 0.1, total_steps=9)
    grow(optimizer)
    scheduler.load_state_dict(copy.deepcopy(scheduler.state_dict()))
    optimizer.step()
    scheduler.step()
    assert now(optimizer)[0] == now(optimizer)[1] > 0.004


# Hyperparameters besides the rate

OPTIMIZERS = [
    (package, name) for package in (torch.optim, generated) for name in ("AdamW", "NAdam")
]


@pytest.mark.parametrize("config", ALL, ids=IDS)
@pytest.mark.parametrize(("package", "name"), OPTIMIZERS)
@pytest.mark.parametrize("path", ["weight_decay", "betas[1]"])
def test_every_schedule_drives_any_hyperparameter(
    package: Any, name: str, config: Config, path: str
) -> None:
    def start(**more: Any) -> tuple[Any, Any]:
        options = {"lr": 0.25, "weight_decay": 0.25, "betas": (0.9, 0.25)}
        optimizer = getattr(package, name)([parameter()], **options)
        return optimizer, make(ours, config, optimizer, **more)

    by_rate, rate = start()
    optimizer, scheduler = start(parameter=path)
    for expected in follow(by_rate, rate, 9):
        (group,) = optimizer.param_groups
        value = group["betas"][1] if path == "betas[1]" else group[path]
        assert [value] == expected == scheduler.get_last_lr()
        assert group["lr"] == 0.25
        optimizer.step()
        scheduler.step()
    state = saved(scheduler.state_dict())
    assert state.keys() - rate.state_dict().keys() == {"parameter"}
    assert state["parameter"] == path
    with pytest.raises(ValueError, match="not of lr"):
        rate.load_state_dict(state)
    with pytest.raises(ValueError, match="a schedule of lr"):
        scheduler.load_state_dict(rate.state_dict())
    scheduler.load_state_dict(state)


def test_a_metric_drives_any_hyperparameter() -> None:
    optimizer = optimizer_of(0.1, weight_decay=0.5)
    scheduler = ours.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=0, min_lr=0.2, parameter="weight_decay"
    )
    for metric in (1.0, 2.0, 3.0):
        scheduler.step(metric)
    assert (now(optimizer), now(optimizer, "weight_decay")) == ([0.1], [0.2])
    assert scheduler.get_last_lr() == [0.2]


def test_cycles_of_two_hyperparameters_keep_their_values_apart() -> None:
    def start(parameter: str, highest: float) -> Any:
        return ours.OneCycleLR(
            optimizer, highest, total_steps=10, cycle_momentum=False, parameter=parameter
        )

    optimizer = optimizer_of(0.1, weight_decay=0.5)
    rate, decay = start("lr", 0.1), start("weight_decay", 0.5)
    for _ in range(10):
        assert now(optimizer, "weight_decay")[0] == pytest.approx(5 * now(optimizer)[0])
        optimizer.step()
        rate.step()
        decay.step()


@pytest.mark.parametrize("kind", [torch.optim.Adam, generated.Adam])
def test_momentum_is_the_first_of_the_betas_where_there_is_no_other(kind: Any) -> None:
    optimizer = optimizer_of(0.1, kind=kind, betas=(0.5, 0.75))
    scheduler = ours.ExponentialLR(optimizer, 0.5, parameter="momentum")
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["betas"] == (0.25, 0.75)
    sgd = optimizer_of(0.1, momentum=0.5)
    ours.LambdaLR(sgd, lambda t: 0.5, parameter="momentum")
    assert now(sgd, "momentum") == [0.25]


@pytest.mark.parametrize(
    "path", ["decay", "betas", "betas[2]", "betas[x]", "amsgrad", "foreach", "params", ""]
)
@pytest.mark.parametrize("kind", [torch.optim.Adam, generated.Adam])
@pytest.mark.parametrize(
    "use",
    [
        lambda optimizer, path: ours.StepLR(optimizer, 3, parameter=path),
        lambda optimizer, path: ours.ReduceLROnPlateau(optimizer, parameter=path),
        lambda optimizer, path: Schedule(optimizer, lambda t, base: base, parameter=path),
    ],
)
def test_a_path_that_leads_to_no_number_is_refused_with_those_that_do(
    kind: Any, path: str, use: Any
) -> None:
    optimizer = optimizer_of(0.1, kind=kind)
    with pytest.raises(ValueError) as error:
        use(optimizer, path)
    assert str(error.value) == (
        f"{path!r} is no number in the parameter groups of Adam. What can be scheduled: "
        "lr, betas[0], betas[1], eps, weight_decay."
    )
    assert "initial_lr" not in optimizer.param_groups[0]


# Schedule

DRIVEN = {
    "lr": ours.CosineAnnealingLR.function(T_max=8),
    "betas[1]": lambda t, base: 1 - (1 - base) / (1 + t),
    "weight_decay": product(
        ours.LinearLR.function(start_factor=0.5, total_iters=3),
        sequence([ours.ConstantLR.function(1.0), ours.ExponentialLR.function(0.5)], [4]),
    ),
}


@pytest.mark.parametrize(("package", "name"), OPTIMIZERS)
def test_one_schedule_drives_several_hyperparameters_of_an_optimizer(
    package: Any, name: str
) -> None:
    # Weights after training, against those of values that are written by hand.
    def train(drive: Callable[[Any], Callable[[int], None]]) -> list[torch.Tensor]:
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(3)) for _ in range(2)]
        groups = [{"params": [params[0]]}, {"params": [params[1]], "lr": 0.5, "weight_decay": 1.0}]
        optimizer = getattr(package, name)(groups, lr=0.1, betas=(0.8, 0.9), weight_decay=0.5)
        advance = drive(optimizer)
        for t in range(1, 12):
            for param in params:
                param.grad = torch.cos(param.detach())
            optimizer.step()
            advance(t)
        return params

    def by_schedule(optimizer: Any) -> Callable[[int], None]:
        schedule = Schedule(optimizer, DRIVEN)
        return lambda t: schedule.step()

    def by_hand(optimizer: Any) -> Callable[[int], None]:
        def write(t: int) -> None:
            for group, bases in zip(optimizer.param_groups, ((0.1, 0.5), (0.5, 1.0)), strict=True):
                group["lr"] = DRIVEN["lr"](t, bases[0])
                group["betas"] = (0.8, DRIVEN["betas[1]"](t, 0.9))
                group["weight_decay"] = DRIVEN["weight_decay"](t, bases[1])

        write(0)
        return write

    driven, expected, free = train(by_schedule), train(by_hand), train(lambda _: lambda t: None)
    assert all(a.equal(b) for a, b in zip(driven, expected, strict=True))
    assert not any(a.equal(b) for a, b in zip(driven, free, strict=True))


def test_a_schedule_goes_on_from_the_epoch_and_the_first_values() -> None:
    def start(**more: Any) -> tuple[Any, Schedule]:
        optimizer = optimizer_of(0.1, 0.2, kind=torch.optim.AdamW)
        return optimizer, Schedule(optimizer, DRIVEN)

    def values(optimizer: Any) -> Any:
        return [(g["lr"], g["betas"], g["weight_decay"]) for g in optimizer.param_groups]

    optimizer, schedule = start()
    for _ in range(5):
        schedule.step()
    state = saved(schedule.state_dict())
    assert state == {
        "last_epoch": 5,
        "base_values": {"lr": [0.1, 0.2], "betas[1]": [0.999] * 2, "weight_decay": [0.01] * 2},
    }
    schedule.step()
    fresh, resumed = start()
    resumed.load_state_dict(state)
    resumed.step()
    assert values(fresh) == values(optimizer)
    assert resumed.get_last_lr() == schedule.get_last_lr() == now(optimizer)
    assert resumed.get_last_values("betas[1]") == [g["betas"][1] for g in fresh.param_groups]
    fresh = optimizer_of(1.0, 1.0, kind=torch.optim.AdamW)
    fresh.load_state_dict(optimizer.state_dict())
    rebuilt = Schedule(fresh, DRIVEN, last_epoch=5)
    assert (values(fresh), rebuilt.last_epoch) == (values(optimizer), 6)
    other = Schedule(optimizer_of(0.1), lambda t, base: base)
    with pytest.raises(ValueError, match=r"of lr, betas\[1\], weight_decay, not of lr"):
        other.load_state_dict(state)


def test_a_schedule_takes_an_epoch_and_groups_that_come_later() -> None:
    optimizer = optimizer_of(1.0)
    schedule = Schedule(optimizer, lambda t, base: base / (1 + t))
    schedule.step(1.5)
    assert (now(optimizer), schedule.last_epoch) == ([0.4], 1)
    grow(optimizer, lr=3.0)
    schedule.step()
    assert now(optimizer) == [1 / 3, 1.0]
    assert warned(lambda: schedule.step(0)) == []
    with pytest.raises(ValueError, match="Expected non-negative epoch, but got -1"):
        schedule.step(-1)


def test_schedules_follow_each_other_and_are_chained_as_all_others() -> None:
    def start() -> tuple[Any, list[Any]]:
        optimizer = optimizer_of(1.0)
        falling = Schedule(optimizer, lambda t, base: base / (1 + t))
        return optimizer, [ours.ExponentialLR(optimizer, 0.5), falling]

    optimizer, parts = start()
    chained = ours.ChainedScheduler(parts)
    assert first(follow(optimizer, chained, 3)) == [1, 0.25, 0.25 / 3, 0.03125]
    for library in (theirs, ours):
        optimizer, parts = start()
        whole = library.SequentialLR(optimizer, parts, [2])
        assert first(follow(optimizer, whole, 3)) == [1, 0.5, 1, 0.5]


@pytest.mark.parametrize(
    ("functions", "error", "message"),
    [
        ({}, ValueError, "at least one hyperparameter"),
        (3, TypeError, "lr should be a function, but got int"),
        ({"lr": lambda t, base: base, "eps": 2}, TypeError, "eps should be a function"),
        (lambda t, base: math.nan, ValueError, "lr would be nan at epoch 0"),
        (lambda t, base: math.inf, ValueError, "lr would be inf at epoch 0"),
    ],
)
def test_what_drives_nothing_is_refused(functions: Any, error: Any, message: str) -> None:
    optimizer = optimizer_of(0.1, kind=torch.optim.Adam)
    with pytest.raises(error, match=message):
        Schedule(optimizer, functions)
    assert now(optimizer) == [0.1]


def test_a_schedule_of_nothing_that_can_be_driven_is_refused() -> None:
    with pytest.raises(TypeError, match="list is not an Optimizer"):
        Schedule([], lambda t, base: base)
    with pytest.raises(KeyError, match="initial_lr"):
        Schedule(optimizer_of(0.1), lambda t, base: base, last_epoch=3)


# Functions of the epoch


@pytest.mark.parametrize("config", ALL, ids=IDS)
def test_a_function_gives_the_rates_of_its_schedule(config: Config) -> None:
    function = function_of(config)
    optimizer = optimizer_of(0.1, 0.7)
    # A chain rounds twice in each epoch.
    slack = 0 if config in [*ABSOLUTE, *CYCLIC] else 2
    for t, rates in enumerate(follow(optimizer, make(ours, config, optimizer), 40)):
        for rate, base in zip(rates, (0.1, 0.7), strict=True):
            value = float(function(t, base))
            assert abs(rate - value) <= slack * (t + 1) * math.ulp(value)


@pytest.mark.parametrize("config", [c for c in ALL if c not in CYCLIC], ids=lambda c: c[0])
def test_a_function_goes_from_one_rate_to_the_next(config: Config) -> None:
    function = function_of(config)
    rate = float(function(0, 0.4))
    for t in range(1, 30):
        rate = float(function.chain(t, rate, 0.4))
        value = float(function(t, 0.4))
        # Each epoch's quotient and products are rounded, and a sum with eta_min that cancels once.
        assert abs(rate - value) <= 16 * t * math.ulp(0.4)


def test_functions_are_values() -> None:
    cosine = ours.CosineAnnealingLR.function(8, eta_min=0.25)
    assert repr(cosine) == "CosineAnnealingLR.function(T_max=8, eta_min=0.25)"
    assert cosine == ours.CosineAnnealingLR.function(T_max=8, eta_min=0.25)
    assert cosine != ours.CosineAnnealingLR.function(T_max=9, eta_min=0.25)
    whole = sequence([ours.ExponentialLR.function(0.5), product(cosine, cosine)], [3])
    assert repr(whole) == (
        "sequence([ExponentialLR.function(gamma=0.5), product(CosineAnnealingLR.function("
        "T_max=8, eta_min=0.25), CosineAnnealingLR.function(T_max=8, eta_min=0.25))], [3])"
    )
    for copied in (copy.deepcopy(whole), pickle.loads(pickle.dumps(whole))):
        assert [copied(t, 2.0) for t in range(12)] == [whole(t, 2.0) for t in range(12)]
    assert cosine(4) == 0.625
    tensor = torch.tensor(1.0)
    assert cosine(4, tensor) == 0.625
    assert tensor == 1.0


@LIBRARIES
@pytest.mark.parametrize(
    "factor",
    [
        ours.CosineAnnealingLR.function(10),
        sequence([ours.WarmupLR.function(2), ours.ExponentialLR.function(0.5)], [2]),
        product(ours.WarmupLR.function(2), ours.ExponentialLR.function(0.5)),
    ],
)
def test_functions_are_factors_that_no_checkpoint_has(library: ModuleType, factor: Any) -> None:
    optimizer = optimizer_of(2.0)
    scheduler = library.LambdaLR(optimizer, factor)
    rates = first(follow(optimizer, scheduler, 5))
    assert rates == [2.0 * factor(t) for t in range(6)]
    state = saved(scheduler.state_dict())
    assert state["lr_lambdas"] == [{}]
    scheduler.load_state_dict(state)
    scheduler.step()
    assert now(optimizer) == [2.0 * factor(6)]
    assert pickle.loads(pickle.dumps(factor))(6) == copy.deepcopy(factor)(6) == factor(6)


def test_a_class_that_is_a_factor_is_in_no_checkpoint() -> None:
    scheduler = ours.LambdaLR(optimizer_of(0.1), float)
    assert saved(scheduler.state_dict())["lr_lambdas"] == [None]


def test_functions_refuse_what_their_schedules_refuse() -> None:
    with pytest.raises(ValueError, match="T_max = 0"):
        ours.CosineAnnealingLR.function(0)
    with pytest.raises(TypeError, match="T_max"):
        ours.CosineAnnealingLR.function()
    with pytest.raises(ValueError, match="at least one function"):
        product()
    with pytest.raises(ValueError, match="number of schedulers 1"):
        sequence([ours.ExponentialLR.function(0.5)], [3])
    with pytest.raises(NotImplementedError):
        ours.OneCycleLR.function(0.1, 10).chain(1, 0.1)


@given(
    st.lists(st.sampled_from([*ABSOLUTE, CYCLE]), min_size=1, max_size=4),
    st.lists(st.integers(0, 25), min_size=3, max_size=3),
)
def test_a_sequence_of_functions_is_that_of_their_schedules(
    configs: list[Config], ends: list[int]
) -> None:
    milestones = sorted(ends[: len(configs) - 1])
    optimizer = optimizer_of(0.1)
    children = [make(ours, config, optimizer) for config in configs]
    whole = sequence([function_of(config) for config in configs], milestones)
    history = first(follow(optimizer, ours.SequentialLR(optimizer, children, milestones), 40))
    assert history == [whole(t, 0.1) for t in range(41)]


def test_a_product_begins_with_the_first_functions_value() -> None:
    whole = product(lambda t, base: base + t, lambda t, base: base * 2, lambda t, base: 1.0)
    assert whole(3, 4.0) == 7 * 2 * 0.25
    assert product(lambda t, base: base + t, lambda t, base: base * 2)(3, 0.0) == 3.0
