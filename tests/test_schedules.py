"""Schedules against torch's, float for float, with their checkpoints, warnings and errors."""

from __future__ import annotations

import copy
import inspect
import io
import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch.optim import lr_scheduler as theirs

import generated
from generated import lr_scheduler as ours
from optdsl.diagnostics import SpecError
from optdsl.emit import render
from optdsl.ir import Schedule
from optdsl.parse import parse
from optdsl.resolve import resolve
from optdsl.source import Source
from optdsl.targets import schedule as target


def given(*drawn: Any, **named: Any) -> Any:
    """Hypothesis without its deadline: torch's first step imports for seconds."""
    unhurried = hypothesis.settings(deadline=None)
    return lambda test: unhurried(hypothesis.given(*drawn, **named)(test))


EPOCHS = 200
Config = tuple[str, dict[str, Any]]
Rates = list[list[float]]

factors = st.floats(0.1, 1.0)
rates = st.floats(1e-6, 10.0)
CONFIGS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "StepLR": st.fixed_dictionaries(
        {"step_size": st.integers(1, 60)}, optional={"gamma": st.floats(0.0, 1.5)}
    ),
    "LinearLR": st.fixed_dictionaries(
        {},
        optional={
            "start_factor": st.floats(1e-3, 1.0),
            "end_factor": st.floats(0.0, 1.0),
            "total_iters": st.integers(0, 250),
        },
    ),
    "CosineAnnealingLR": st.fixed_dictionaries(
        {"T_max": st.integers(1, 250)}, optional={"eta_min": st.floats(0.0, 0.5)}
    ),
}
configs = st.sampled_from(sorted(CONFIGS)).flatmap(
    lambda name: st.tuples(st.just(name), CONFIGS[name])
)
PLATEAU = st.fixed_dictionaries(
    {},
    optional={
        "mode": st.sampled_from(["min", "max"]),
        "factor": st.floats(0.0, 0.99),
        "patience": st.integers(0, 4),
        "threshold": st.sampled_from([0, 1e-4, 0.1, 1]),
        "threshold_mode": st.sampled_from(["rel", "abs"]),
        "cooldown": st.integers(0, 4),
        "min_lr": st.one_of(
            st.floats(0.0, 0.1), st.lists(st.floats(0.0, 0.1), min_size=2, max_size=2)
        ),
        "eps": st.sampled_from([0, 1e-8, 1e-3]),
    },
)
METRICS = st.lists(
    st.one_of(st.sampled_from([math.nan, math.inf, -math.inf, 0.0]), st.floats(-2.0, 2.0)),
    min_size=10,
    max_size=EPOCHS,
)


def sgd(*lrs: Any, kind: Any = torch.optim.SGD) -> Any:
    """An optimizer with a group for each rate."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs]
    return kind(groups, lr=lrs[0])


def now(optimizer: Any) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def follow(optimizer: Any, schedulers: list[Any], epochs: int) -> Rates:
    """The rates of all groups after construction and after each epoch."""
    history = [now(optimizer)]
    for _ in range(epochs):
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
        history.append(now(optimizer))
    return history


def make(library: ModuleType, config: Config, optimizer: Any, **more: Any) -> Any:
    name, arguments = config
    return getattr(library, name)(optimizer, **arguments, **more)


def history(library: ModuleType, config: list[Config], lrs: tuple[Any, ...]) -> Rates:
    optimizer = sgd(*lrs)
    return follow(optimizer, [make(library, c, optimizer) for c in config], EPOCHS)


def saved(state: dict[str, Any]) -> Any:
    """A checkpoint that went through a file, read as torch reads files it does not trust."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# Rates


@given(configs, rates, rates)
def test_rates_equal_torchs_float_for_float(config: Config, first: float, second: float) -> None:
    assert history(ours, [config], (first, second)) == history(theirs, [config], (first, second))


@given(configs, configs, rates, rates)
def test_two_schedules_on_one_optimizer_act_together_as_torchs_do(
    one: Config, other: Config, first: float, second: float
) -> None:
    lrs = (first, second)
    assert history(ours, [one, other], lrs) == history(theirs, [one, other], lrs)


@given(configs, rates, st.sampled_from([torch.float32, torch.float64]))
def test_tensor_rate_stays_the_same_tensor_and_follows_torchs(
    config: Config, lr: float, dtype: torch.dtype
) -> None:
    tensors = [torch.tensor(lr, dtype=dtype) for _ in range(3)]
    optimizer = sgd(*tensors[:2])
    scheduler = make(ours, config, optimizer)
    histories = follow(optimizer, [scheduler], EPOCHS)
    assert histories == history(theirs, [config], (tensors[2].clone(), tensors[2].clone()))
    for group, tensor, last in zip(
        optimizer.param_groups, tensors, scheduler.get_last_lr(), strict=False
    ):
        assert group["lr"] is tensor
        assert last is not tensor
        assert last == tensor


@given(configs, rates, rates, st.integers(0, EPOCHS))
def test_schedule_rebuilt_with_last_epoch_goes_on_as_torchs(
    config: Config, first: float, second: float, epoch: int
) -> None:
    results = []
    for library in (ours, theirs):
        optimizer = sgd(first, second)
        follow(optimizer, [make(library, config, optimizer)], epoch)
        fresh = sgd(first, second)
        fresh.load_state_dict(optimizer.state_dict())
        scheduler = make(library, config, fresh, last_epoch=epoch)
        assert scheduler.last_epoch == epoch + 1
        results.append(follow(fresh, [scheduler], 50))
    assert results[0] == results[1]


@pytest.mark.parametrize("writer", [ours, theirs])
@pytest.mark.parametrize("reader", [ours, theirs])
@given(config=configs, first=rates, second=rates, epoch=st.integers(0, 100))
def test_checkpoints_are_torchs_and_a_resumed_schedule_goes_on_unchanged(
    writer: ModuleType,
    reader: ModuleType,
    config: Config,
    first: float,
    second: float,
    epoch: int,
) -> None:
    optimizer = sgd(first, second)
    scheduler = make(writer, config, optimizer)
    follow(optimizer, [scheduler], epoch)
    states = saved({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()})
    fresh = sgd(1.0, 1.0)
    resumed = getattr(reader, config[0])(fresh, **{**config[1], **_required(config[0])})
    resumed.load_state_dict(states["scheduler"])
    fresh.load_state_dict(states["optimizer"])
    assert resumed.state_dict() == scheduler.state_dict()
    assert follow(fresh, [resumed], 50) == follow(optimizer, [scheduler], 50)


def _required(name: str) -> dict[str, Any]:
    """Arguments that the checkpoint has to replace."""
    return {"StepLR": {"step_size": 999}, "CosineAnnealingLR": {"T_max": 999}}.get(name, {})


@given(configs, rates, st.lists(st.integers(0, EPOCHS), min_size=1, max_size=20))
@pytest.mark.filterwarnings("ignore:Detected call of")
def test_step_with_an_epoch_takes_the_closed_form_with_torchs_warning(
    config: Config, lr: float, epochs: list[int]
) -> None:
    # The closed form divides by it, here as in torch.
    hypothesis.assume(config[1].get("total_iters") != 0)
    histories = []
    for library in (ours, theirs):
        optimizer = sgd(lr, 2 * lr)
        scheduler = make(library, config, optimizer)
        optimizer.step()
        histories.append([])
        for epoch in epochs:
            with pytest.warns(UserWarning, match="epoch parameter") as caught:
                scheduler.step(epoch)
            assert [str(w.message) for w in caught] == [theirs.EPOCH_DEPRECATION_WARNING]
            assert caught[0].filename == __file__
            histories[-1].append((scheduler.last_epoch, now(optimizer)))
    assert histories[0] == histories[1]


# The closed form and the chain give the same rates but for rounding. With u = 2**-53, n roundings
# move a rate by at most n u relative (to first order), which is at most n ulps.


@given(st.integers(1, 60), st.floats(0.5, 1.5), rates)
def test_chain_of_steplr_is_its_closed_form_within_the_roundings_of_its_products(
    step_size: int, gamma: float, lr: float
) -> None:
    optimizer = sgd(lr)
    scheduler = ours.StepLR(optimizer, step_size, gamma)
    for t, (rate,) in enumerate(follow(optimizer, [scheduler], EPOCHS)):
        # The chain rounds once per product; the closed form rounds its power (1 ulp) and product.
        bound = t // step_size + 3
        closed = float(scheduler._closed(t, lr))
        assert abs(rate - closed) <= bound * math.ulp(max(rate, closed))


@given(factors, factors, st.integers(1, 150), rates)
def test_chain_of_linearlr_is_its_closed_form_within_the_roundings_of_its_sums(
    start: float, end: float, total: int, lr: float
) -> None:
    optimizer = sgd(lr)
    scheduler = ours.LinearLR(optimizer, start, end, total)
    # Sums cancel by k at most. Each of T steps rounds its product, and its factor by
    # 1 + k (3k + 3)/T, as the increment is k/T of it; the closed form rounds by 3k + 3.
    # Together that is less than 2T + 3(k + 1)**2.
    k = max(start, end) / min(start, end)
    bound = 2 * total + 3 * (k + 1) ** 2
    for t, (rate,) in enumerate(follow(optimizer, [scheduler], EPOCHS)):
        closed = float(scheduler._closed(t, lr))
        assert abs(rate - closed) <= bound * math.ulp(max(rate, closed))


@given(st.integers(1, 150), st.floats(0.0, 1.0), rates)
def test_chain_of_cosine_annealing_is_its_closed_form_within_ulps_of_the_highest_rate(
    T_max: int, eta_min: float, lr: float
) -> None:
    optimizer = sgd(lr)
    scheduler = ours.CosineAnnealingLR(optimizer, T_max, eta_min)
    highest = math.ulp(max(lr, eta_min))
    for t, (rate,) in enumerate(follow(optimizer, [scheduler], EPOCHS)):
        closed = float(scheduler._closed(t, lr))
        # Each epoch rounds four times. At the foot 1 - cos(pi / T) is about 5 / T**2, so what
        # rounds there by pi u grows by T**2 on the way up; each foot begins anew from eta_min.
        assert abs(rate - closed) <= (4 * t + T_max**2 + 4) * highest


# ReduceLROnPlateau


def shown(state: dict[str, Any]) -> dict[str, str]:
    """A state that compares: NaN equals itself."""
    return {key: repr(value) for key, value in state.items()}


def _plateau(library: ModuleType, arguments: dict[str, Any], metrics: list[float]) -> list[Any]:
    optimizer = sgd(0.1, 0.02)
    scheduler = library.ReduceLROnPlateau(optimizer, **copy.deepcopy(arguments))
    trace = []
    for metric in metrics:
        optimizer.step()
        scheduler.step(metric)
        trace.append((now(optimizer), scheduler.in_cooldown, shown(scheduler.state_dict())))
    return trace


@given(PLATEAU, METRICS)
def test_plateau_follows_torchs_in_rates_and_states_whatever_the_metric(
    arguments: dict[str, Any], metrics: list[float]
) -> None:
    assert _plateau(ours, arguments, metrics) == _plateau(theirs, arguments, metrics)


@pytest.mark.parametrize("writer", [ours, theirs])
@pytest.mark.parametrize("reader", [ours, theirs])
@given(arguments=PLATEAU, metrics=METRICS)
def test_plateau_loads_torchs_checkpoints_and_torch_loads_ours(
    writer: ModuleType, reader: ModuleType, arguments: dict[str, Any], metrics: list[float]
) -> None:
    optimizer, fresh = sgd(0.1, 0.02), sgd(1.0, 1.0)
    scheduler = writer.ReduceLROnPlateau(optimizer, **arguments)
    for metric in metrics[: len(metrics) // 2]:
        optimizer.step()
        scheduler.step(metric)
    resumed = reader.ReduceLROnPlateau(fresh)
    resumed.load_state_dict(saved(scheduler.state_dict()))
    fresh.load_state_dict(optimizer.state_dict())
    for metric in metrics[len(metrics) // 2 :]:
        for one in (scheduler, resumed):
            one.step(metric)
        assert now(fresh) == now(optimizer)
        assert shown(resumed.state_dict()) == shown(scheduler.state_dict())


def test_plateau_takes_no_step_when_constructed_and_leaves_the_optimizer_as_it_was() -> None:
    optimizer = sgd(0.1)
    scheduler = ours.ReduceLROnPlateau(optimizer)
    assert "initial_lr" not in optimizer.param_groups[0]
    assert not hasattr(optimizer.step, "_wrapped_by_lr_sched")
    assert scheduler.get_last_lr() == [0.1]


def test_plateau_keeps_a_tensor_rate_the_same_tensor() -> None:
    lr = torch.tensor(0.1)
    optimizer = sgd(lr)
    scheduler = ours.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    for metric in (1.0, torch.tensor(2.0)):
        scheduler.step(metric)
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr == torch.tensor(0.05)
    assert scheduler.get_last_lr()[0] is not lr


@pytest.mark.parametrize("library", [ours, theirs])
def test_plateau_serves_groups_that_were_added_since(library: ModuleType) -> None:
    def grown(min_lr: Any) -> Any:
        optimizer = sgd(0.1)
        scheduler = library.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, min_lr=min_lr)
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.4})
        scheduler.step(1.0)
        scheduler.step(2.0)
        return now(optimizer), scheduler.min_lrs

    assert grown(0.1) == ([0.1, 0.2], [0.1, 0.1])
    with pytest.raises(RuntimeError, match=r"param groups in the `optimizer` \(2\).*`min_lrs`"):
        grown([0.1])


@pytest.mark.filterwarnings("ignore:Detected call of")
def test_plateau_warns_of_an_epoch_as_torch_does() -> None:
    scheduler = ours.ReduceLROnPlateau(sgd(0.1))
    with pytest.warns(UserWarning, match="epoch parameter") as caught:
        scheduler.step(1.0, epoch=7)
    assert [str(w.message) for w in caught] == [theirs.EPOCH_DEPRECATION_WARNING]
    assert scheduler.last_epoch == 7


# As a part of torch

ALL: dict[str, dict[str, Any]] = {
    "StepLR": {"step_size": 2},
    "LinearLR": {},
    "CosineAnnealingLR": {"T_max": 5},
    "ReduceLROnPlateau": {},
}


@pytest.mark.parametrize("name", ALL)
def test_class_is_a_torch_scheduler_with_torchs_signature_and_state(name: str) -> None:
    one, other = make(ours, (name, ALL[name]), sgd(0.1)), make(theirs, (name, ALL[name]), sgd(0.1))
    assert isinstance(one, theirs.LRScheduler)
    assert one.state_dict().keys() == other.state_dict().keys()
    assert one.state_dict() == other.state_dict()
    mine, torchs = (inspect.signature(type(s)).parameters for s in (one, other))
    assert [(p.name, p.default, p.kind) for p in mine.values()] == [
        (p.name, p.default, p.kind) for p in torchs.values()
    ]


def test_training_loops_recognise_a_schedule_that_follows_a_metric() -> None:
    scheduler = ours.ReduceLROnPlateau(sgd(0.1))
    assert isinstance(scheduler, theirs.ReduceLROnPlateau)
    with pytest.raises(ValueError, match="does not support `ReduceLROnPlateau`"):
        theirs.SequentialLR(scheduler.optimizer, [scheduler], [])


@given(configs, configs, rates, st.integers(0, 30))
def test_schedules_follow_each_other_in_torchs_sequentiallr(
    one: Config, other: Config, lr: float, milestone: int
) -> None:
    results = []
    for library in (ours, theirs):
        optimizer = sgd(lr, lr / 3)
        children = [make(library, c, optimizer) for c in (one, other)]
        try:
            sequence = theirs.SequentialLR(optimizer, children, [milestone])
            results.append(follow(optimizer, [sequence], 60))
        except ZeroDivisionError:
            assert other[1].get("total_iters") == 0
            results.append([])
    assert results[0] == results[1]


@given(configs, configs, rates)
def test_schedules_act_together_in_torchs_chainedscheduler(
    one: Config, other: Config, lr: float
) -> None:
    results = []
    for library in (ours, theirs):
        optimizer = sgd(lr, lr / 3)
        chain = theirs.ChainedScheduler([make(library, c, optimizer) for c in (one, other)])
        results.append(follow(optimizer, [chain], 60))
        state = saved(chain.state_dict())
        chain.load_state_dict(state)
    assert results[0] == results[1]


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize("name", ["StepLR", "LinearLR", "CosineAnnealingLR"])
def test_schedules_drive_the_generated_optimizers(name: str, optimizer: str) -> None:
    mine = sgd(0.1, 0.02, kind=getattr(generated, optimizer))
    torchs = sgd(0.1, 0.02, kind=getattr(torch.optim, optimizer))
    schedulers = [make(lib, (name, ALL[name]), o) for lib, o in ((ours, mine), (theirs, torchs))]
    assert follow(mine, schedulers[:1], 20) == follow(torchs, schedulers[1:], 20)


def _warned(library: ModuleType, use: Callable[[Any, Any], None]) -> list[tuple[str, str]]:
    optimizer = sgd(0.1)
    scheduler = library.StepLR(optimizer, 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        use(optimizer, scheduler)
    return [(str(w.message), w.filename) for w in caught]


def _in_order(optimizer: Any, scheduler: Any) -> None:
    optimizer.step()
    scheduler.step()


def _too_early(_: Any, scheduler: Any) -> None:
    scheduler.step()
    scheduler.step()


def _overridden(optimizer: Any, scheduler: Any) -> None:
    optimizer.step = lambda: None
    scheduler.step()


def _asked_for_the_rate(_: Any, scheduler: Any) -> None:
    assert scheduler.get_lr() == [0.1]


@pytest.mark.parametrize(
    ("use", "count"),
    [(_in_order, 0), (_too_early, 1), (_overridden, 1), (_asked_for_the_rate, 1)],
)
def test_warnings_about_the_order_of_calls_are_torchs(use: Any, count: int) -> None:
    mine, torchs = _warned(ours, use), _warned(theirs, use)
    assert [text for text, _ in mine] == [text for text, _ in torchs]
    assert len(mine) == count
    if use is not _asked_for_the_rate:
        assert [file for _, file in mine] == [__file__] * count


def test_rates_that_are_asked_for_never_alias_the_optimizers() -> None:
    lr = torch.tensor(0.1)
    scheduler = ours.StepLR(sgd(lr), 3)
    with pytest.warns(UserWarning, match="get_last_lr"):
        asked = scheduler.get_lr()
    for rate in (*asked, *scheduler.get_last_lr(), *scheduler.base_lrs):
        assert isinstance(rate, torch.Tensor)
        rate.zero_()
    assert lr == torch.tensor(0.1)


# Errors


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("LinearLR", {"start_factor": 0.0}),
        ("LinearLR", {"start_factor": 1.5}),
        ("LinearLR", {"end_factor": -0.1}),
        ("LinearLR", {"end_factor": 1.1}),
        ("ReduceLROnPlateau", {"factor": 1.0}),
        ("ReduceLROnPlateau", {"mode": "middle"}),
        ("ReduceLROnPlateau", {"threshold_mode": "other"}),
        ("ReduceLROnPlateau", {"min_lr": [0.1, 0.2, 0.3]}),
        ("StepLR", {"step_size": 3, "last_epoch": 4}),
    ],
)
def test_errors_say_what_torchs_say(name: str, arguments: dict[str, Any]) -> None:
    texts = []
    for library in (ours, theirs):
        with pytest.raises((ValueError, KeyError)) as error:
            make(library, (name, arguments), sgd(0.1, 0.2))
        texts.append((error.type, str(error.value)))
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("StepLR", {"step_size": 0}, "step_size = 0 breaks the condition step_size > 0"),
        ("StepLR", {"step_size": math.nan}, "step_size = nan"),
        ("StepLR", {"step_size": 3, "gamma": math.nan}, "gamma = nan"),
        ("StepLR", {"step_size": 3, "gamma": -1}, "gamma = -1"),
        ("LinearLR", {"start_factor": math.nan}, "Starting multiplicative factor"),
        ("LinearLR", {"total_iters": -1}, "total_iters = -1"),
        ("CosineAnnealingLR", {"T_max": 0}, "T_max = 0 breaks the condition T_max > 0"),
        ("CosineAnnealingLR", {"T_max": 3, "eta_min": math.nan}, "eta_min = nan"),
        ("ReduceLROnPlateau", {"factor": math.nan}, "Factor should be < 1.0."),
    ],
)
def test_nan_and_zero_divisors_are_refused_before_the_optimizer_is_touched(
    name: str, arguments: dict[str, Any], message: str
) -> None:
    optimizer = sgd(0.1)
    with pytest.raises(ValueError, match=message):
        make(ours, (name, arguments), optimizer)
    assert "initial_lr" not in optimizer.param_groups[0]
    assert not hasattr(optimizer.step, "_wrapped_by_lr_sched")


@pytest.mark.parametrize("name", ALL)
def test_what_is_not_an_optimizer_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match="list is not an Optimizer"):
        make(ours, (name, ALL[name]), [])


def test_checkpoint_that_breaks_a_condition_is_refused_and_nothing_is_loaded() -> None:
    scheduler = ours.StepLR(sgd(0.1), 3)
    before = scheduler.state_dict()
    with pytest.raises(ValueError, match="step_size = 0"):
        scheduler.load_state_dict({**before, "last_epoch": 5, "step_size": 0})
    assert scheduler.state_dict() == before


def test_loaded_schedule_shares_nothing_with_its_checkpoint() -> None:
    scheduler = ours.StepLR(sgd(0.1), 3)
    state = copy.deepcopy(scheduler.state_dict())
    scheduler.load_state_dict(state)
    state["base_lrs"][0] = 7.0
    assert scheduler.base_lrs == [0.1]


# The language of schedules


def compiled(text: str) -> Schedule:
    (unit,), _ = resolve([parse(Source("user.opt", text))])
    assert isinstance(unit, Schedule)
    return unit


def emitted(text: str) -> str:
    return render("schedule.py.jinja", target.lower(compiled(text)))


def loaded(text: str) -> Any:
    code = emitted(text).replace("from ._scheduler", "from generated.lr_scheduler._scheduler")
    names: dict[str, Any] = {}
    exec(code, names)
    return names[compiled(text).name]


def test_schedule_with_a_closed_form_alone_steps_by_it() -> None:
    kind = loaded("schedule S { closed = base_lr / (1 + t) }")
    optimizer = sgd(1.0)
    assert follow(optimizer, [kind(optimizer)], 3) == [[1.0], [1 / 2], [1 / 3], [1 / 4]]


@pytest.mark.filterwarnings("ignore:The epoch parameter")
def test_schedule_with_a_chain_alone_has_no_closed_form() -> None:
    kind = loaded("schedule S { chain = lr if initial else lr / 2 }")
    optimizer = sgd(1.0)
    scheduler = kind(optimizer)
    assert not hasattr(scheduler, "_get_closed_form_lr")
    optimizer.step()
    scheduler.step(5)
    assert (scheduler.last_epoch, now(optimizer)) == (5, [0.5])


def test_default_may_read_another_hyperparameter() -> None:
    kind = loaded(
        "schedule S {\n hyper up: int = 3\n hyper down: int = 2 * up\n"
        " closed = base_lr * up / down }"
    )
    assert now(kind(sgd(1.0)).optimizer) == [0.5]
    assert now(kind(sgd(1.0), up=4, down=4).optimizer) == [1.0]


def test_update_runs_statements_about_rates_for_each_group_and_others_once() -> None:
    kind = loaded(
        """schedule S {
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
        }"""
    )
    optimizer = sgd(1.0, 8.0)
    scheduler = kind(optimizer, floor=[0.75, 0.0])
    for metric in (1.0, -1.0, 0.0):
        scheduler.step(metric)
    assert now(optimizer) == [1.5, 8.0]
    assert scheduler.count == ((1 * 2 + 1) * 2 + 1) * 2


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
        let smaller = 2 if metric < 3 else 1
        if patience > 2 { if metric > 9 { smaller = 3 } }
        if patience > 3 { smaller = smaller + metric } else { smaller = smaller - metric }
        if metric < best and metric < 3 and best > 4 { best = metric }
        else if metric > 12 { best = smaller }
        else { lr *= 0.5 }
    }
}
"""


def test_emitted_schedules_are_formatted_and_pass_the_linter(tmp_path: Any) -> None:
    units, _ = resolve([parse(Source("user.opt", LONG))])
    for unit in units:
        text = render("schedule.py.jinja", target.lower(unit))
        (tmp_path / f"{unit.name.lower()}.py").write_text(text)
    for command in (["format", "--diff"], ["check", "--select", "B,C4,F,I,PT,RUF,SIM,UP,W"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--line-length", "100", "--isolated", "."],
            cwd=tmp_path, text=True, capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


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
        ("closed = base_lr\n state best = 0", "Nothing changes the state 'best'."),
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
        (
            "hyper low: per_group real = 0\n closed = max(low, base_lr)",
            "'low' has a value per group.",
        ),
        (
            "hyper low: per_group real = 0 require low >= 0\n update(metric) { lr = low }",
            "A condition on a value per group is not supported.",
        ),
    ],
)
def test_what_the_target_cannot_do_is_an_error_with_a_place(members: str, message: str) -> None:
    with pytest.raises(SpecError) as error:
        target.lower(compiled(f"schedule S {{\n {members}\n}}"))
    assert message in str(error.value)
    assert "user.opt:" in str(error.value)


def test_name_that_nothing_reads_is_a_warning() -> None:
    text = "schedule S {\n hyper gamma = 3\n let half = 2\n closed = base_lr\n}"
    _, found = resolve([parse(Source("user.opt", text))])
    assert [w.message for w in found] == ["Nothing reads 'gamma'.", "Nothing reads 'half'."]
