"""What users of torch's schedules rely on besides rates: classes, tensors, checkpoints, warnings,
errors, and that formulas in closed form and from the current rate agree."""

from __future__ import annotations

import copy
import gc
import inspect
import math
import pickle
import types
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch.optim import lr_scheduler as theirs

import generated
from generated import lr_scheduler as ours
from tests.schedules import (
    COMPOSITES,
    OURS,
    THEIRS,
    Config,
    Decay,
    Kinds,
    make,
    plain,
    through_a_file,
)


def given(*drawn: Any, **named: Any) -> Any:
    """Hypothesis without its deadline: torch's first step imports for seconds."""
    unhurried = hypothesis.settings(deadline=None, max_examples=30)
    return lambda test: unhurried(hypothesis.given(*drawn, **named)(test))


LEAVES = (Config("ConstantLR", {"total_iters": 3}), Config("ExponentialLR", {"gamma": 0.9}))
EXAMPLES: dict[str, Config] = {
    config.name: config
    for config in (
        Config("LambdaLR", {"lr_lambda": Decay(0.9)}),
        Config("MultiplicativeLR", {"lr_lambda": Decay(0.99)}),
        Config("StepLR", {"step_size": 2}),
        Config("MultiStepLR", {"milestones": [3, 5, 5]}),
        Config("ConstantLR"),
        Config("LinearLR"),
        Config("ExponentialLR", {"gamma": 0.9}),
        Config("PolynomialLR", {"total_iters": 40}),
        Config("CosineAnnealingLR", {"T_max": 5}),
        Config("CosineAnnealingWarmRestarts", {"T_0": 4, "T_mult": 2}),
        Config("CyclicLR", {"base_lr": 0.1, "max_lr": 0.5, "step_size_up": 4}),
        Config("OneCycleLR", {"max_lr": 0.5, "total_steps": 100}),
        Config("SWALR", {"swa_lr": 0.05}),
        Config("ReduceLROnPlateau", {"patience": 1}),
        Config("SequentialLR", {"milestones": [4]}, LEAVES),
        Config("ChainedScheduler", {}, LEAVES),
    )
}
CALLED = [name for name in EXAMPLES if name != "ReduceLROnPlateau"]
# SequentialLR and ChainedScheduler are torch's format of checkpoints around those of others.
SINGLE = [name for name in EXAMPLES if name not in COMPOSITES]
names = pytest.mark.parametrize("name", EXAMPLES)
called = pytest.mark.parametrize("name", CALLED)
rates = st.floats(1e-6, 10.0)
EPOCHS = 200


def sgd(*lrs: Any, kind: Any = torch.optim.SGD) -> Any:
    """An optimizer with a group for each rate."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs]
    return kind(groups, lr=lrs[0], foreach=False)


def example(name: str, kinds: Kinds = OURS, *lrs: Any) -> Any:
    return make(kinds, EXAMPLES[name], sgd(*(lrs or (0.5,))))


def step(scheduler: Any, epoch: int) -> None:
    """One epoch, of a schedule that may want a metric."""
    scheduler.optimizer.step()
    scheduler.step(*([1.0] if isinstance(scheduler, theirs.ReduceLROnPlateau) else []))


def now(optimizer: Any) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def follow(scheduler: Any, epochs: int) -> list[list[float]]:
    """The rates of all groups now and after each epoch."""
    history = [now(scheduler.optimizer)]
    for epoch in range(epochs):
        step(scheduler, epoch)
        history.append(now(scheduler.optimizer))
    return history


# As a part of torch


def test_all_of_torchs_schedules_are_here() -> None:
    assert {*theirs.__all__, "SWALR"} <= {*ours.__all__}
    assert ours.LRScheduler is theirs.LRScheduler
    assert EXAMPLES.keys() == THEIRS.keys()


@names
def test_class_is_a_torch_scheduler_with_torchs_signature_and_state(name: str) -> None:
    one, other = example(name), example(name, THEIRS)
    assert isinstance(one, theirs.LRScheduler)
    state = plain(one.state_dict())
    if name == "CosineAnnealingWarmRestarts":
        # In torch it alone does not count.
        state["_step_count"] = plain(other.state_dict()["_step_count"])
    assert state == plain(other.state_dict())
    mine, torchs = (inspect.signature(type(s)).parameters for s in (one, other))
    positional = [p for p in mine.values() if p.kind is not p.KEYWORD_ONLY]
    assert [(p.name, p.default) for p in positional] == [
        (p.name, p.default) for p in torchs.values()
    ]
    assert [p.name for p in mine.values() if p.kind is p.KEYWORD_ONLY] in ([], ["parameter"])


def test_training_loops_recognise_a_schedule_that_follows_a_metric() -> None:
    scheduler = ours.ReduceLROnPlateau(sgd(0.1))
    assert isinstance(scheduler, theirs.ReduceLROnPlateau)
    for library in (ours, theirs):
        with pytest.raises(ValueError, match="does not support `ReduceLROnPlateau`"):
            library.SequentialLR(scheduler.optimizer, [scheduler], [])
        with pytest.raises(ValueError, match="does not support `ReduceLROnPlateau`"):
            library.ChainedScheduler([scheduler])


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "Lion", "Muon"])
@called
def test_schedules_drive_the_generated_optimizers(name: str, optimizer: str) -> None:
    def driven(kinds: Kinds, package: Any) -> list[list[float]]:
        parameter = torch.nn.Parameter(torch.zeros(2, 2))
        return follow(
            make(kinds, EXAMPLES[name], getattr(package, optimizer)([parameter], lr=0.5)), 20
        )

    package = torch.optim if hasattr(torch.optim, optimizer) else generated
    assert driven(OURS, generated) == driven(THEIRS, package)


@called
def test_a_rate_that_the_user_changes_is_treated_as_in_torch(name: str) -> None:
    def disturbed(kinds: Kinds) -> Any:
        scheduler = example(name, kinds, 0.5, 0.2)
        before = follow(scheduler, 10)
        scheduler.optimizer.param_groups[0]["lr"] = 0.125
        return before, follow(scheduler, 50)

    assert disturbed(OURS) == disturbed(THEIRS)


@pytest.mark.parametrize("name", SINGLE)
def test_a_schedule_follows_to_another_optimizer(name: str) -> None:
    """Wrappers that shard an optimizer put theirs in the place of the one that was given."""

    def moved(kinds: Kinds) -> Any:
        scheduler, other = example(name, kinds), sgd(0.5)
        step(scheduler, 0)
        other.load_state_dict(scheduler.optimizer.state_dict())
        scheduler.optimizer = other
        return follow(scheduler, 20)

    assert moved(OURS) == moved(THEIRS)


@pytest.mark.parametrize("name", SINGLE)
def test_a_users_class_may_change_what_get_lr_gives(name: str) -> None:
    def halved(kinds: Kinds) -> Any:
        class Halved(kinds[name]):  # type: ignore[misc,name-defined]
            def get_lr(self) -> list[Any]:
                return [rate / 2 for rate in super().get_lr()]

        return follow(make({**kinds, name: Halved}, EXAMPLES[name], sgd(0.5, 0.2)), 20)

    assert halved(OURS) == halved(THEIRS)


class Inverse(theirs.LRScheduler):
    """A schedule as users write them."""

    def get_lr(self) -> list[Any]:
        return [base / (1 + self.last_epoch) for base in self.base_lrs]


def test_combinators_take_the_users_own_schedules() -> None:
    def combined(library: Any) -> Any:
        optimizer = sgd(0.5, 0.2)
        parts = [library.ExponentialLR(optimizer, 0.9), Inverse(optimizer)]
        return follow(library.SequentialLR(optimizer, parts, [5]), 20)

    assert combined(ours) == combined(theirs)


# Tensors


@names
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rate_that_is_a_tensor_stays_the_same_tensor(name: str, dtype: torch.dtype) -> None:
    lrs = [torch.tensor(0.5, dtype=dtype), torch.tensor(0.2, dtype=dtype)]
    scheduler = example(name, OURS, *lrs)
    history = follow(scheduler, 20)
    assert history == follow(
        example(name, THEIRS, *[lr.new_tensor(v) for lr, v in zip(lrs, (0.5, 0.2), strict=True)]),
        20,
    )
    for group, lr, last in zip(
        scheduler.optimizer.param_groups, lrs, scheduler.get_last_lr(), strict=True
    ):
        assert group["lr"] is lr
        assert last is not lr
        assert last == lr


@names
def test_what_a_schedule_keeps_never_aliases_the_optimizers_rate(name: str) -> None:
    lr = torch.tensor(0.5)
    scheduler = example(name, OURS, lr)
    before = plain(scheduler.optimizer.param_groups[0].get("initial_lr"))
    for rate in (*scheduler.get_last_lr(), *getattr(scheduler, "base_lrs", ())):
        if isinstance(rate, torch.Tensor):
            rate.zero_()
    assert lr != 0
    lr.zero_()
    assert plain(scheduler.optimizer.param_groups[0].get("initial_lr")) == before


def test_rates_that_are_asked_for_never_alias_the_optimizers() -> None:
    lr = torch.tensor(0.1)
    scheduler = ours.StepLR(sgd(lr), 3)
    with pytest.warns(UserWarning, match="get_last_lr"):
        asked = scheduler.get_lr()
    for rate in asked:
        rate.zero_()
    assert lr == torch.tensor(0.1)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("CyclicLR", ("base_lr", "max_lr", "base_momentum", "max_momentum")),
        ("OneCycleLR", ("max_lr", "base_momentum", "max_momentum")),
        ("SWALR", ("swa_lr",)),
    ],
)
def test_arguments_that_are_tensors_are_copied(name: str, arguments: tuple[str, ...]) -> None:
    def run(kinds: Kinds, factor: float) -> Any:
        tensors = {a: torch.tensor(0.5, dtype=torch.float64) for a in arguments}
        config = Config(name, EXAMPLES[name].arguments)
        optimizer = sgd(0.3)
        scheduler = kinds[name](optimizer, **{**config.arguments, **tensors})
        for tensor in tensors.values():
            tensor.mul_(factor)
        return follow(scheduler, 20), plain(optimizer.param_groups[0]["momentum"])

    assert run(OURS, 0.5) == run(OURS, 1.0) == run(THEIRS, 0.5)


# Life


@names
def test_schedule_and_optimizer_are_in_no_cycle(name: str) -> None:
    def run() -> tuple[Any, Any]:
        scheduler = example(name)
        follow(scheduler, 3)
        return weakref.ref(scheduler), weakref.ref(scheduler.optimizer)

    gc.disable()
    try:
        assert [reference() for reference in run()] == [None, None]
    finally:
        gc.enable()


def test_optimizer_outlives_its_schedule_and_holds_it_not() -> None:
    optimizer = sgd(0.1)
    reference = weakref.ref(ours.LambdaLR(optimizer, in_halves))
    assert reference() is None
    optimizer.step()
    assert "step" not in vars(optimizer)


def in_halves(t: int) -> float:
    return 0.5**t


@names
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copy_goes_its_own_way(name: str, duplicate: Callable[[Any], Any]) -> None:
    scheduler = example(name)
    follow(scheduler, 3)
    twin = duplicate(scheduler)
    assert twin.optimizer is not scheduler.optimizer
    before = now(twin.optimizer)
    history = follow(scheduler, 10)
    assert now(twin.optimizer) == before
    assert follow(twin, 10) == history


# Checkpoints


@names
@pytest.mark.parametrize("kinds", [OURS, THEIRS], ids=["ours", "theirs"])
def test_loading_leaves_the_checkpoint_as_it_was_and_shares_nothing_with_it(
    name: str, kinds: Kinds
) -> None:
    writer = example(name, kinds)
    follow(writer, 3)
    state = through_a_file(writer.state_dict())
    before = copy.deepcopy(state)
    reader = example(name)
    reader.load_state_dict(state)
    reader.optimizer.load_state_dict(writer.optimizer.state_dict())
    follow(reader, 20)
    assert plain(state) == plain(before)


@pytest.mark.parametrize("writer", [OURS, THEIRS], ids=["ours", "theirs"])
@pytest.mark.parametrize("reader", [OURS, THEIRS], ids=["to ours", "to theirs"])
@pytest.mark.parametrize("name", SINGLE)
def test_a_checkpoint_replaces_the_arguments(name: str, writer: Kinds, reader: Kinds) -> None:
    other = {
        "LambdaLR": {"lr_lambda": Decay(0.1)},
        "MultiplicativeLR": {"lr_lambda": Decay(0.1)},
        "StepLR": {"step_size": 99, "gamma": 0.3},
        "MultiStepLR": {"milestones": [1], "gamma": 0.3},
        "ConstantLR": {"factor": 0.9, "total_iters": 2},
        "LinearLR": {"start_factor": 0.9, "end_factor": 0.1, "total_iters": 99},
        "ExponentialLR": {"gamma": 0.1},
        "PolynomialLR": {"total_iters": 99, "power": 3},
        "CosineAnnealingLR": {"T_max": 99, "eta_min": 0.1},
        "CosineAnnealingWarmRestarts": {"T_0": 9, "eta_min": 0.1},
        "CyclicLR": {"base_lr": 0.2, "max_lr": 0.9, "mode": "exp_range", "gamma": 0.9},
        # The number of steps comes from the constructor.
        "OneCycleLR": {"max_lr": 0.1, "total_steps": 100, "div_factor": 2.0},
        "SWALR": {"swa_lr": 0.3, "anneal_epochs": 99, "anneal_strategy": "linear"},
        "ReduceLROnPlateau": {"patience": 99, "factor": 0.2, "min_lr": 0.1},
    }[name]
    scheduler = example(name, writer)
    follow(scheduler, 3)
    resumed = make(reader, Config(name, other), sgd(1.0))
    resumed.load_state_dict(through_a_file(scheduler.state_dict()))
    resumed.optimizer.load_state_dict(scheduler.optimizer.state_dict())
    assert follow(resumed, 50) == follow(scheduler, 50)


def test_a_longer_run_is_resumed_with_the_constructors_number_of_steps() -> None:
    """torch's total_steps are those of the checkpoint."""

    def resumed(library: Any) -> Any:
        short = library.OneCycleLR(sgd(0.5), max_lr=0.5, total_steps=10)
        follow(short, 5)
        long = library.OneCycleLR(sgd(0.5), max_lr=0.5, total_steps=20)
        long.load_state_dict(short.state_dict())
        return long.total_steps, long._schedule_phases[-1]["end_step"]

    assert resumed(ours) == (20, 19)
    assert resumed(theirs) == (10, 9)


def test_one_cycle_stays_at_its_end() -> None:
    """torch goes one step past it, in a straight line to a rate below 0."""
    arguments = {"max_lr": 1.0, "total_steps": 10, "anneal_strategy": "linear"}
    end = {}
    for kinds in (OURS, THEIRS):
        scheduler = kinds["OneCycleLR"](sgd(0.5), **arguments)
        follow(scheduler, 10)
        (group,) = scheduler.optimizer.param_groups
        end[kinds is OURS] = group["lr"] - group["min_lr"], group["momentum"]
    # The way down from 1 rounds by an ulp of 1.
    assert end[True] == (pytest.approx(0, abs=math.ulp(1.0)), 0.95)
    assert end[False][0] < -0.1
    assert end[False][1] > 0.95


def test_cyclic_loads_a_checkpoint_twice() -> None:
    """torch's takes a key out of the dict that it is given."""
    state = example("CyclicLR", THEIRS).state_dict()
    with pytest.raises(KeyError, match="_scale_fn_custom"):
        [example("CyclicLR", THEIRS).load_state_dict(state) for _ in range(2)]
    state = example("CyclicLR").state_dict()
    [example("CyclicLR").load_state_dict(state) for _ in range(2)]


def test_functions_are_not_saved_and_other_callables_are_by_their_fields() -> None:
    scheduler = ours.LambdaLR(sgd(0.1, 0.1), [in_halves, Decay(0.5)])
    assert scheduler.state_dict()["lr_lambdas"] == [None, {"factor": 0.5}]
    cyclic = ours.CyclicLR(sgd(0.1), 0.1, 0.5, scale_fn=Decay(0.9))
    assert cyclic.state_dict()["_scale_fn_custom"] == {"factor": 0.9}
    assert "_scale_fn_ref" not in cyclic.state_dict()


@pytest.mark.parametrize("name", ["LambdaLR", "MultiplicativeLR"])
def test_a_saved_callable_is_not_the_one_in_use(name: str) -> None:
    """torch's state holds a copy of the object's dict, but the dict's values are the object's."""
    function = Decay(0.5)
    scheduler = getattr(ours, name)(sgd(0.1), function)
    scheduler.state_dict()["lr_lambdas"][0]["factor"] = 7.0
    assert function.factor == 0.5


def test_checkpoint_that_breaks_a_condition_is_refused_and_nothing_is_loaded() -> None:
    scheduler = ours.StepLR(sgd(0.1), 3)
    before = scheduler.state_dict()
    with pytest.raises(ValueError, match="step_size = 0"):
        scheduler.load_state_dict({**before, "last_epoch": 5, "step_size": 0})
    assert scheduler.state_dict() == before


# ReduceLROnPlateau


def test_plateau_takes_no_step_when_constructed_and_leaves_the_optimizer_as_it_was() -> None:
    optimizer = sgd(0.1)
    before = plain({k: v for k, v in optimizer.param_groups[0].items() if k != "params"})
    scheduler = ours.ReduceLROnPlateau(optimizer)
    after = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
    assert plain(after) == before
    assert "step" not in vars(optimizer)
    assert scheduler.get_last_lr() == [0.1]


@pytest.mark.parametrize("kinds", [OURS, THEIRS], ids=["ours", "theirs"])
def test_plateau_serves_groups_that_were_added_since(kinds: Kinds) -> None:
    def grown(min_lr: Any) -> Any:
        optimizer = sgd(0.1)
        scheduler = kinds["ReduceLROnPlateau"](optimizer, factor=0.5, patience=0, min_lr=min_lr)
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.4})
        if min_lr == [0.3]:
            scheduler.min_lrs.append(0.25)
        scheduler.step(1.0)
        scheduler.step(2.0)
        return now(optimizer), scheduler.min_lrs

    assert grown(0.1) == ([0.1, 0.2], [0.1, 0.1])
    assert grown([0.3]) == ([0.1, 0.25], [0.3, 0.25])
    with pytest.raises(RuntimeError, match=r"param groups in the `optimizer` \(2\).*`min_lrs`"):
        grown([0.1])


@pytest.mark.filterwarnings("ignore:Detected call of")
def test_plateau_warns_of_an_epoch_as_torch_does() -> None:
    scheduler = ours.ReduceLROnPlateau(sgd(0.1))
    with pytest.warns(UserWarning, match="epoch parameter") as caught:
        scheduler.step(1.0, epoch=7)
    assert [str(w.message) for w in caught] == [theirs.EPOCH_DEPRECATION_WARNING]
    assert caught[0].filename == __file__
    assert scheduler.last_epoch == 7


# Warnings


def _warned(name: str, kinds: Kinds, use: Callable[[Any, Any], None]) -> list[tuple[str, str]]:
    scheduler = example(name, kinds)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        use(scheduler.optimizer, scheduler)
    return [(str(w.message), w.filename) for w in caught]


def _in_order(optimizer: Any, scheduler: Any) -> None:
    optimizer.step()
    scheduler.step()


def _too_early(_: Any, scheduler: Any) -> None:
    scheduler.step()
    scheduler.step()


def _replaced(optimizer: Any, scheduler: Any) -> None:
    optimizer.step = lambda: None
    scheduler.step()


def _asked_for_the_rate(_: Any, scheduler: Any) -> None:
    scheduler.get_lr()


def _of_an_epoch(optimizer: Any, scheduler: Any) -> None:
    optimizer.step()
    scheduler.step(2)


@pytest.mark.parametrize(
    ("use", "count"),
    [(_in_order, 0), (_too_early, 1), (_replaced, 1), (_asked_for_the_rate, 1), (_of_an_epoch, 1)],
)
@pytest.mark.parametrize("name", [n for n in SINGLE if n in CALLED])
def test_warnings_are_torchs_and_name_the_callers_file(name: str, use: Any, count: int) -> None:
    mine, torchs = _warned(name, OURS, use), _warned(name, THEIRS, use)
    if name == "CosineAnnealingWarmRestarts":
        # Its epochs may be fractions; nor does it warn of the order of calls.
        count = count if use is _asked_for_the_rate else 0
    assert [text for text, _ in mine] == [text for text, _ in torchs]
    assert [file for _, file in mine] == [__file__] * count


def test_warnings_of_combinators_are_torchs() -> None:
    for name in COMPOSITES:
        mine, torchs = _warned(name, OURS, _in_order), _warned(name, THEIRS, _in_order)
        assert mine == torchs == []


def test_a_step_that_calls_the_original_is_a_step() -> None:
    """torch warns that it has been overridden."""

    def warned(library: Any) -> list[str]:
        optimizer = sgd(0.1)
        scheduler = library.StepLR(optimizer, 3)
        original = optimizer.step
        optimizer.step = types.MethodType(lambda _, *args: original(*args), optimizer)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer.step()
            scheduler.step()
        return [str(w.message) for w in caught]

    assert warned(ours) == []
    assert ["overridden" in text for text in warned(theirs)] == [True]


# Errors


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("LinearLR", {"start_factor": 0.0}),
        ("LinearLR", {"start_factor": 1.5}),
        ("LinearLR", {"end_factor": -0.1}),
        ("LinearLR", {"end_factor": 1.1}),
        ("ConstantLR", {"factor": -0.1}),
        ("ConstantLR", {"factor": 1.1}),
        ("MultiplicativeLR", {"lr_lambda": 0.5}),
        ("MultiplicativeLR", {"lr_lambda": [in_halves]}),
        ("LambdaLR", {"lr_lambda": [in_halves, in_halves, in_halves]}),
        ("CosineAnnealingWarmRestarts", {"T_0": 0}),
        ("CosineAnnealingWarmRestarts", {"T_0": 1.5}),
        ("CosineAnnealingWarmRestarts", {"T_0": 5, "T_mult": 0}),
        ("CosineAnnealingWarmRestarts", {"T_0": 5, "T_mult": 1.5}),
        ("CyclicLR", {"base_lr": 0.1, "max_lr": 0.2, "mode": "square"}),
        ("CyclicLR", {"base_lr": [0.1], "max_lr": 0.2}),
        ("CyclicLR", {"base_lr": 0.1, "max_lr": [0.2, 0.3, 0.4]}),
        ("CyclicLR", {"base_lr": 0.1, "max_lr": 0.2, "base_momentum": [0.1]}),
        ("OneCycleLR", {"max_lr": 0.1}),
        ("OneCycleLR", {"max_lr": 0.1, "epochs": 3}),
        ("OneCycleLR", {"max_lr": 0.1, "total_steps": 0}),
        ("OneCycleLR", {"max_lr": 0.1, "total_steps": 1.5}),
        ("OneCycleLR", {"max_lr": 0.1, "epochs": -1, "steps_per_epoch": 3}),
        ("OneCycleLR", {"max_lr": 0.1, "epochs": 3, "steps_per_epoch": 1.5}),
        ("OneCycleLR", {"max_lr": 0.1, "total_steps": 9, "pct_start": 1.1}),
        ("OneCycleLR", {"max_lr": 0.1, "total_steps": 9, "pct_start": -0.1}),
        ("OneCycleLR", {"max_lr": 0.1, "total_steps": 9, "anneal_strategy": "steep"}),
        ("OneCycleLR", {"max_lr": [0.1], "total_steps": 9}),
        ("SWALR", {"swa_lr": [0.1]}),
        ("SWALR", {"swa_lr": 0.1, "anneal_strategy": "steep"}),
        ("SWALR", {"swa_lr": 0.1, "anneal_epochs": -1}),
        ("SWALR", {"swa_lr": 0.1, "anneal_epochs": 1.5}),
        ("ReduceLROnPlateau", {"factor": 1.0}),
        ("ReduceLROnPlateau", {"mode": "middle"}),
        ("ReduceLROnPlateau", {"threshold_mode": "other"}),
        ("ReduceLROnPlateau", {"min_lr": [0.1, 0.2, 0.3]}),
        ("StepLR", {"step_size": 3, "last_epoch": 4}),
    ],
)
def test_errors_say_what_torchs_say(name: str, arguments: dict[str, Any]) -> None:
    texts = []
    for kinds in (OURS, THEIRS):
        with pytest.raises((ValueError, KeyError, TypeError)) as error:
            kinds[name](sgd(0.1, 0.2), **arguments)
        texts.append((error.type, str(error.value)))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", ["CyclicLR", "OneCycleLR"])
def test_an_optimizer_without_momentum_is_refused_as_by_torch(name: str) -> None:
    texts = []
    for kinds in (OURS, THEIRS):
        optimizer = torch.optim.Adagrad([torch.nn.Parameter(torch.zeros(1))])
        with pytest.raises(ValueError, match="must support momentum or beta1") as error:
            kinds[name](optimizer, **EXAMPLES[name].arguments)
        texts.append(str(error.value))
        kinds[name](optimizer, **EXAMPLES[name].arguments, cycle_momentum=False)
    assert texts[0] == texts[1]


def _foreign(optimizer: Any) -> list[Any]:
    return [theirs.ExponentialLR(optimizer, 0.9), theirs.ExponentialLR(sgd(0.1), 0.9)]


@pytest.mark.parametrize(
    ("children", "milestones"),
    [
        (lambda optimizer: [], []),
        (lambda optimizer: [theirs.ExponentialLR(optimizer, 0.9)], [3]),
        (lambda optimizer: [theirs.ExponentialLR(optimizer, 0.9)] * 2, []),
        (lambda optimizer: [theirs.ExponentialLR(optimizer, 0.9), object()], [3]),
    ],
)
def test_what_sequentiallr_refuses_is_refused_in_torchs_words(
    children: Callable[[Any], list[Any]], milestones: list[int]
) -> None:
    texts = []
    for library in (ours, theirs):
        optimizer = sgd(0.1)
        with pytest.raises((ValueError, TypeError)) as error:
            library.SequentialLR(optimizer, children(optimizer), milestones)
        texts.append((error.type, str(error.value)))
    assert texts[0] == texts[1]


def test_schedules_of_different_optimizers_are_not_combined() -> None:
    for library in (ours, theirs):
        optimizer = sgd(0.1)
        with pytest.raises(ValueError, match="SequentialLR expects all schedulers to belong to"):
            library.SequentialLR(optimizer, _foreign(optimizer), [3])
        with pytest.raises(ValueError, match="ChainedScheduler expects all schedulers to belong"):
            library.ChainedScheduler(_foreign(optimizer))
        with pytest.raises(ValueError, match="ChainedScheduler expects at least one scheduler"):
            library.ChainedScheduler([])


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("StepLR", {"step_size": 0}, "step_size = 0 breaks the condition step_size > 0"),
    ("StepLR", {"step_size": math.nan}, "step_size = nan"),
    ("StepLR", {"step_size": 3, "gamma": math.nan}, "gamma = nan"),
    ("StepLR", {"step_size": 3, "gamma": -1}, "gamma = -1"),
    ("MultiStepLR", {"milestones": [3], "gamma": math.nan}, "gamma = nan"),
    ("MultiStepLR", {"milestones": [3], "gamma": -1}, "gamma = -1"),
    ("ExponentialLR", {"gamma": math.nan}, "gamma = nan"),
    ("ExponentialLR", {"gamma": -0.5}, "gamma = -0.5"),
    ("ExponentialLR", {"gamma": math.inf}, "gamma = inf"),
    ("PolynomialLR", {"total_iters": 0}, "total_iters = 0"),
    ("PolynomialLR", {"power": math.nan}, "power = nan"),
    ("PolynomialLR", {"power": -1}, "power = -1"),
    ("ConstantLR", {"factor": math.nan}, "Constant multiplicative factor"),
    ("ConstantLR", {"total_iters": -1}, "total_iters = -1"),
    ("LinearLR", {"start_factor": math.nan}, "Starting multiplicative factor"),
    ("LinearLR", {"total_iters": -1}, "total_iters = -1"),
    ("CosineAnnealingLR", {"T_max": 0}, "T_max = 0 breaks the condition T_max > 0"),
    ("CosineAnnealingLR", {"T_max": 3, "eta_min": math.nan}, "eta_min = nan"),
    ("CosineAnnealingWarmRestarts", {"T_0": 3, "eta_min": math.nan}, "eta_min = nan"),
    ("CyclicLR", {"base_lr": math.nan, "max_lr": 1}, "base_lr = nan"),
    ("CyclicLR", {"base_lr": 0.1, "max_lr": math.nan}, "max_lr = nan"),
    ("CyclicLR", {"base_lr": 0.1, "max_lr": 1, "step_size_up": 0}, "step_size_up = 0"),
    ("CyclicLR", {"base_lr": 0.1, "max_lr": 1, "gamma": math.nan}, "gamma = nan"),
    ("OneCycleLR", {"max_lr": math.nan, "total_steps": 9}, "max_lr = nan"),
    ("OneCycleLR", {"max_lr": 1, "total_steps": 9, "div_factor": 0}, "div_factor = 0"),
    ("OneCycleLR", {"max_lr": 1, "total_steps": 9, "pct_start": math.nan}, "pct_start"),
    ("SWALR", {"swa_lr": math.nan}, "swa_lr = nan"),
    ("ReduceLROnPlateau", {"factor": math.nan}, "Factor should be < 1.0."),
    ("ReduceLROnPlateau", {"factor": -0.1}, "factor = -0.1"),
    ("ReduceLROnPlateau", {"threshold": math.nan}, "threshold = nan"),
    ("ReduceLROnPlateau", {"min_lr": math.nan}, "min_lr = nan"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), REFUSED)
def test_values_without_a_meaning_are_refused_before_the_optimizer_is_touched(
    name: str, arguments: dict[str, Any], message: str
) -> None:
    optimizer = sgd(0.1)
    before = plain({k: v for k, v in optimizer.param_groups[0].items() if k != "params"})
    with pytest.raises(ValueError, match=message):
        OURS[name](optimizer, **arguments)
    after = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
    assert plain(after) == before
    assert "step" not in vars(optimizer)


@pytest.mark.parametrize("name", SINGLE)
def test_what_is_not_an_optimizer_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match="list is not an Optimizer"):
        OURS[name]([], **EXAMPLES[name].arguments)


# The closed form and the chain give the same rates but for rounding. With u = 2**-53, n roundings
# move a rate by at most n u relative (to first order), which is at most n ulps.


def assert_chained(
    scheduler: Any, bound: Callable[[int], float], highest: float | None = None
) -> None:
    """Each rate is that of the closed form within `bound(t)` ulps, of the highest rate if given."""
    (base,) = scheduler.base_lrs
    for t, (rate,) in enumerate(follow(scheduler, EPOCHS)):
        closed = float(scheduler._closed(t, base))
        ulp = math.ulp(max(rate, closed) if highest is None else highest)
        assert abs(rate - closed) <= bound(t) * ulp


# A chain rounds once per product; the closed form rounds its power (1 ulp) and product.


@given(st.integers(1, 60), st.floats(0.5, 1.5), rates)
def test_chain_of_steplr_is_its_closed_form(step_size: int, gamma: float, lr: float) -> None:
    assert_chained(ours.StepLR(sgd(lr), step_size, gamma), lambda t: t // step_size + 3)


@given(st.lists(st.integers(0, EPOCHS), max_size=9), st.floats(0.5, 1.5), rates)
def test_chain_of_multisteplr_is_its_closed_form(
    milestones: list[int], gamma: float, lr: float
) -> None:
    # Each product takes a power.
    assert_chained(ours.MultiStepLR(sgd(lr), milestones, gamma), lambda t: 2 * len(milestones) + 3)


@given(st.floats(0.9, 1.1), rates)
def test_chain_of_exponentiallr_is_its_closed_form(gamma: float, lr: float) -> None:
    assert_chained(ours.ExponentialLR(sgd(lr), gamma), lambda t: t + 3)


@given(st.floats(1e-3, 1.0), st.integers(0, 150), rates)
def test_chain_of_constantlr_is_its_closed_form(factor: float, total: int, lr: float) -> None:
    # Three roundings of the chain; 1 - factor and the sum are within an ulp of 1.
    assert_chained(ours.ConstantLR(sgd(lr), factor, total), lambda t: 6)


@given(st.integers(1, 150), st.floats(0.0, 4.0), rates)
def test_chain_of_polynomiallr_is_its_closed_form(total: int, power: float, lr: float) -> None:
    # Each 1 - t / T divides in the next epoch what it was in this one, so its error goes. An epoch
    # rounds its quotient, which the power enlarges, the power and the product.
    bound = power + 3
    assert_chained(ours.PolynomialLR(sgd(lr), total, power), lambda t: bound * min(t, total) + 4)


@given(st.floats(0.1, 1.0), st.floats(0.1, 1.0), st.integers(1, 150), rates)
def test_chain_of_linearlr_is_its_closed_form(
    start: float, end: float, total: int, lr: float
) -> None:
    # Sums cancel by k at most. Each of T steps rounds its product, and its factor by
    # 1 + k (3k + 3)/T, as the increment is k/T of it; the closed form rounds by 3k + 3.
    # Together that is less than 2T + 3(k + 1)**2.
    k = max(start, end) / min(start, end)
    assert_chained(
        ours.LinearLR(sgd(lr), start, end, total), lambda t: 2 * total + 3 * (k + 1) ** 2
    )


@given(st.integers(1, 150), st.floats(0.0, 1.0), rates)
def test_chain_of_cosine_annealing_is_its_closed_form_within_ulps_of_the_highest_rate(
    T_max: int, eta_min: float, lr: float
) -> None:
    # Each epoch rounds four times. At the foot 1 - cos(pi / T) is about 5 / T**2, so what
    # rounds there by pi u grows by T**2 on the way up; each foot begins anew from eta_min.
    scheduler = ours.CosineAnnealingLR(sgd(lr), T_max, eta_min)
    assert_chained(scheduler, lambda t: 4 * t + T_max**2 + 4, max(lr, eta_min))
