"""Averages of models: torch's bits, what the specs mean, what users do with an averaged model."""

from __future__ import annotations

import copy
import importlib
import inspect
import io
import itertools
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import swa_utils as theirs

import generated
from generated import swa_utils as ours
from generated._fused import _backends
from optdsl import build, interpret, pipeline
from optdsl.ir import Average

AVERAGES = {u.name: u for u in pipeline.shipped_library().units if isinstance(u, Average)}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# How an averaged model is made, in either package.
WAYS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "default": lambda package: {},
    "avg_fn, mean": lambda package: {"avg_fn": package.get_swa_avg_fn()},
    "avg_fn, EMA": lambda package: {"avg_fn": package.get_ema_avg_fn(0.9)},
    "multi_avg_fn, mean": lambda package: {"multi_avg_fn": package.get_swa_multi_avg_fn()},
    "multi_avg_fn, EMA": lambda package: {"multi_avg_fn": package.get_ema_multi_avg_fn(0.9)},
    "a function": lambda package: {"avg_fn": halfway},
    "a function of lists": lambda package: {"multi_avg_fn": all_halfway},
}


def halfway(average: Tensor, param: Tensor, n: Tensor) -> Tensor:
    assert n > 0
    assert not average.requires_grad
    assert not param.requires_grad
    return (average + param) / 2


def all_halfway(averages: list[Tensor], params: list[Tensor], n: Tensor) -> None:
    assert len({(a.dtype, a.device) for a in averages}) == 1
    for average, param in zip(averages, params, strict=True):
        average.copy_(halfway(average, param, n))


class Net(nn.Module):
    """Parameters of many shapes and layouts, one of them complex, with a layer that has buffers."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)

        def param(*shape: int) -> nn.Parameter:
            values = torch.randn(shape, generator=random, dtype=torch.float64)
            return nn.Parameter(values.to(dtype))

        self.matrix, self.vector, self.number = param(33, 7), param(5), param()
        self.turned = nn.Parameter(param(3, 4).detach().t())
        self.empty = param(0, 3)
        wide = torch.complex128 if dtype is torch.float64 else torch.complex64
        self.rotation = nn.Parameter(torch.randn(4, generator=random, dtype=wide))
        self.frozen = nn.Parameter(param(2).detach(), requires_grad=False)
        self.norm = nn.BatchNorm1d(3)
        self.counts: Tensor
        self.register_buffer("counts", torch.tensor([3, -1, 100], dtype=torch.int32))


def moved(net: nn.Module, random: torch.Generator) -> None:
    """What a step of training does to a model."""
    for tensor in itertools.chain(net.parameters(), net.buffers()):
        if tensor.is_floating_point() or tensor.is_complex():
            wide = torch.complex128 if tensor.is_complex() else torch.float64
            step = torch.randn(tensor.shape, generator=random, dtype=wide)
        else:
            step = torch.randint(-9, 10, tensor.shape, generator=random)
        tensor.data.add_(step.to(tensor.dtype))


def run(package: Any, arguments: dict[str, Any], net: nn.Module, models: int = 9) -> nn.Module:
    """The average of a model and of those that it becomes."""
    random = torch.Generator().manual_seed(1)
    averaged: nn.Module = package.AveragedModel(net, **arguments)
    for _ in range(models):
        moved(net, random)
        averaged.update_parameters(net)
    return averaged


def assert_same(one: nn.Module, other: nn.Module) -> None:
    assert list(one.state_dict()) == list(other.state_dict())
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


# torch's bits


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_averages_are_torchs_bits(way: str, dtype: torch.dtype, use_buffers: bool) -> None:
    """Two cases are left out: torch raises in one, and its weight is wrong in the other."""
    if way == "multi_avg_fn, mean" and (use_buffers or dtype is torch.float64):
        return
    expected, found = (
        run(package, {**WAYS[way](package), "use_buffers": use_buffers}, Net(dtype))
        for package in (theirs, ours)
    )
    assert_same(found, expected)


@pytest.mark.parametrize("way", list(WAYS)[1:5])
def test_functions_of_one_package_serve_the_other(way: str) -> None:
    expected = run(theirs, WAYS[way](theirs), Net())
    assert_same(run(theirs, WAYS[way](ours), Net()), expected)
    assert_same(run(ours, WAYS[way](theirs), Net()), expected)


@pytest.mark.parametrize(
    ("average", "foreach", "way"),
    [
        (ours.SWA(), None, "default"),
        (ours.SWA(), False, "avg_fn, mean"),
        (ours.SWA(), True, "multi_avg_fn, mean"),
        (ours.EMA(0.9), None, "avg_fn, EMA"),
        (ours.EMA(0.9), True, "multi_avg_fn, EMA"),
    ],
)
def test_an_average_is_what_torchs_function_is(average: Any, foreach: Any, way: str) -> None:
    found = run(ours, {"average": average, "foreach": foreach}, Net())
    assert_same(found, run(theirs, WAYS[way](theirs), Net()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 2, 7, 1000, torch.tensor(3)])
def test_functions_give_torchs_tensors(n: Any, dtype: torch.dtype) -> None:
    a, p = (torch.randn(50, dtype=torch.float64).to(dtype) for _ in range(2))
    for name in ("get_swa_avg_fn", "get_ema_avg_fn"):
        before = a.clone()
        found, expected = (getattr(m, name)()(a, p, n) for m in (ours, theirs))
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
        assert torch.equal(a, before)
    for name in ("get_swa_multi_avg_fn", "get_ema_multi_avg_fn"):
        if (dtype, name, type(n)) == (torch.float64, "get_swa_multi_avg_fn", Tensor):
            continue  # torch's weight is rounded to 24 bits
        found, expected = a.clone(), a.clone()
        getattr(ours, name)()([found], (p,), n)
        getattr(theirs, name)()([expected], (p,), n)
        assert torch.equal(found, expected)


class Digits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(64, 16), nn.BatchNorm1d(16)
        self.last = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.last(torch.relu(self.norm(self.first(images))))
        return scores


def weight_averaging(optim: Any, epochs: int = 300, start: int = 160) -> nn.Module:
    """The example of torch's documentation, on handwritten digits."""
    digits = load_digits()
    images = torch.from_numpy(digits.data / 16).float()[:512]
    labels = torch.from_numpy(digits.target)[:512]
    batches = list(zip(images.split(128), labels.split(128), strict=True))
    torch.manual_seed(0)
    model = Digits()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    averaged: nn.Module = optim.swa_utils.AveragedModel(model)
    annealing = optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
    constant = optim.swa_utils.SWALR(optimizer, swa_lr=0.05)
    for epoch in range(epochs):
        for batch, target in batches:
            optimizer.zero_grad()
            cross_entropy(model(batch), target).backward()
            optimizer.step()
        if epoch > start:
            averaged.update_parameters(model)
            constant.step()
        else:
            annealing.step()
    optim.swa_utils.update_bn(batches, averaged)
    return averaged


def test_stochastic_weight_averaging_on_digits_is_torchs_bit_for_bit() -> None:
    """Optimizer, schedules, average and statistics, all of one package."""
    found, expected = weight_averaging(generated), weight_averaging(torch.optim)
    assert isinstance(generated.swa_utils.SWALR.__module__, str)
    assert generated.swa_utils.SWALR.__module__.startswith("generated.")
    assert_same(found, expected)
    assert found.state_dict()["n_averaged"] == 139


# What the specs mean


def hyperparameters(name: str) -> st.SearchStrategy[dict[str, Any]]:
    decay = st.floats(0, 1)
    return {
        "SWA": st.just({}),
        "EMA": st.fixed_dictionaries({"decay": decay, "bias_correction": st.just(False)})
        | st.fixed_dictionaries({"decay": st.floats(0, 0.9999), "bias_correction": st.just(True)}),
        "RampEMA": st.fixed_dictionaries({"decay": decay}),
        "PowerEMA": st.fixed_dictionaries({"gamma": st.floats(0, 30)}),
        "WarmupEMA": st.fixed_dictionaries(
            {
                "decay": st.floats(0.5, 1),
                "inv_gamma": st.floats(0.01, 100),
                "power": st.floats(0, 2),
                "min_decay": st.floats(0, 0.5),
            }
        ),
    }[name]


cases = st.sampled_from(sorted(AVERAGES)).flatmap(
    lambda name: st.tuples(st.just(name), hyperparameters(name))
)


def forms(average: Any, a: Tensor, p: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """A tensor's next average by either form."""
    lists = [a.clone()]
    average.multi(lists, [p], n)
    return average.each(a, p, n), lists[0]


@settings(deadline=None)
@given(case=cases, n=st.integers(1, 100_000), seed=st.integers(0, 2**32), double=st.booleans())
def test_both_forms_are_the_reference_to_a_few_units(
    case: tuple[str, dict[str, Any]], n: int, seed: int, double: bool
) -> None:
    """`each` rounds four times, `multi` three times, and so does the reference; a weight of one
    minus the other is as exact as 1. All are within 8 units of the last place of |average| +
    |param|, the interpreter's own rounding counted."""
    name, hypers = case
    dtype = torch.float64 if double else torch.float32
    random = torch.Generator().manual_seed(seed)
    a, p = (torch.randn(64, generator=random, dtype=dtype) for _ in range(2))
    limit = 8 * torch.finfo(dtype).eps * (a.abs() + p.abs()).double().numpy()
    each, multi = forms(getattr(ours, name)(**hypers), a, p, n)
    for form, found in (("each", each), ("multi", multi)):
        expected = interpret.averaged(
            AVERAGES[name], hypers, a.double().numpy(), p.double().numpy(), n, form=form
        )
        assert (np.abs(found.double().numpy() - expected) <= limit).all()
    assert ((each - multi).abs().double().numpy() <= limit).all()


def weights_of(average: Any, models: int) -> list[float]:
    """With which weight each of several models is in the average: that of unit vectors."""
    unit = torch.eye(models, dtype=torch.float64)
    model = nn.Module()
    model.param = nn.Parameter(unit[0].clone())
    averaged = ours.AveragedModel(model, average=average, foreach=True)
    for row in unit:
        model.param.data.copy_(row)
        averaged.update_parameters(model)
    result: list[float] = averaged.module.param.tolist()
    return result


@pytest.mark.parametrize(
    "mean",
    [
        ours.SWA(),
        ours.WarmupEMA(decay=1, inv_gamma=1, power=1),
        ours.PowerEMA(gamma=0),
        ours.EMA(decay=lambda n: n / (n + 1)),
    ],
    ids=lambda mean: type(mean).__name__,
)
def test_a_mean_gives_each_model_the_same_weight(mean: Any) -> None:
    assert weights_of(mean, 50) == pytest.approx([1 / 50] * 50, rel=1e-13)


def test_an_ema_keeps_the_first_model_and_a_corrected_one_is_normalised() -> None:
    decay, models = 0.8, 20
    falling = [(1 - decay) * decay ** (models - 1 - k) for k in range(models)]
    first = decay ** (models - 1)
    assert weights_of(ours.EMA(decay), models) == pytest.approx([first, *falling[1:]], rel=1e-13)
    normalised = [w / sum(falling) for w in falling]
    corrected = ours.EMA(decay, bias_correction=True)
    assert weights_of(corrected, models) == pytest.approx(normalised, rel=1e-13)


def test_power_ema_weighs_models_as_a_power_of_their_number() -> None:
    """The sum of b ** (gamma + 1) - a ** (gamma + 1) over steps of one is the whole."""
    gamma, models = 6.94, 30
    expected = [((k + 1) ** (gamma + 1) - k ** (gamma + 1)) / models ** (gamma + 1)
                for k in range(models)]  # fmt: skip
    assert weights_of(ours.PowerEMA(gamma), models) == pytest.approx(expected, rel=1e-12)


def decays(average: Any, count: int) -> list[float]:
    """What is left of a model when the next one enters, for each."""
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    return [average.each(one, zero, n).item() for n in range(1, count)]


def test_decays_that_rise_are_those_of_the_papers() -> None:
    """Transcribed from k-diffusion's EMAWarmup and TensorFlow's ExponentialMovingAverage, whose
    step 1 is the first model behind the one that is copied."""
    warm = [min(0.9, max(0.2, 1 - (1 + n / 2) ** -0.75)) for n in range(1, 40)]
    found = decays(ours.WarmupEMA(0.9, inv_gamma=2, power=0.75, min_decay=0.2), 40)
    assert found == pytest.approx(warm, rel=1e-15)
    assert (warm[0], warm[-1]) != (0.2, 0.2)
    ramp = [min(0.8, (1 + n) / (10 + n)) for n in range(1, 40)]
    assert decays(ours.RampEMA(0.8), 40) == pytest.approx(ramp, rel=1e-15)
    assert ramp[-1] == 0.8


def test_a_hyperparameter_may_be_a_function_of_the_number_of_models() -> None:
    asked: list[int] = []

    def decay(n: int) -> float:
        asked.append(n)
        return min(0.8, (1 + n) / (10 + n))

    driven = run(ours, {"average": ours.EMA(decay)}, Net())
    assert_same(driven, run(ours, {"average": ours.RampEMA(0.8)}, Net()))
    assert asked == [1, *range(1, 9)]  # the constructor asks, too
    falling = ours.EMA(lambda n: 2 - n)
    net = Net()
    averaged = ours.AveragedModel(net, average=falling)
    for _ in range(3):
        averaged.update_parameters(net)
    with pytest.raises(ValueError, match="Invalid decay value -1 provided"):
        averaged.update_parameters(net)


def test_a_first_model_is_copied_by_a_fused_average_without_its_function() -> None:
    """The function could not be called: it divides by the number of models before."""
    asked: list[int] = []

    def decay(n: int) -> float:
        asked.append(n)
        return 1 - 1 / n

    net = Net()
    averaged = ours.AveragedModel(net, average=ours.EMA(decay), fused=True)
    averaged.update_parameters(net)
    assert asked == [1]
    assert_same(averaged.module, net)


def test_functions_of_users_may_use_gradients() -> None:
    """torch calls them in the mode of its caller, with tensors that record nothing."""

    def learned(average: Tensor, param: Tensor, n: Tensor) -> Tensor:
        rate = torch.full((), 0.5, requires_grad=True)
        (rate * n).backward()
        assert rate.grad is not None
        return average + rate * rate.grad * (param - average) / 9

    expected, found = (run(package, {"avg_fn": learned}, Net()) for package in (theirs, ours))
    assert_same(found, expected)
    assert all(param.is_leaf for param in found.parameters())
    with torch.no_grad(), pytest.raises(RuntimeError, match="does not require grad"):
        run(ours, {"avg_fn": learned}, Net())


class Copying(ours.SWA):
    """An average with a form of its own, written in Python."""

    def each(self, average: Tensor, param: Tensor, n: Any) -> Tensor:
        return param.clone()


def test_a_form_that_a_class_of_a_user_replaces_is_called() -> None:
    net = Net()
    assert_same(run(ours, {"avg_fn": Copying().each, "use_buffers": True}, net).module, net)


# Tensors of every kind


@pytest.mark.parametrize("way", list(WAYS)[:5])
def test_conditions_are_those_of_the_last_model(way: str) -> None:
    """torch raises for the mean; its EMA keeps true for ever."""
    net = nn.Module()
    net.register_buffer("mask", torch.tensor([True, False, True]))
    averaged = ours.AveragedModel(net, use_buffers=True, **WAYS[way](ours))
    for mask in ([False, True, True], [True, False, False], [False, False, True]):
        net.mask.copy_(torch.tensor(mask))
        averaged.update_parameters(net)
        assert averaged.module.mask.tolist() == mask


def test_the_mean_of_lists_takes_integers() -> None:
    """The values of torch's for-loop, where its lists raise."""
    listed = {**WAYS["multi_avg_fn, mean"](ours), "use_buffers": True}
    found = run(ours, listed, Net())
    expected = run(theirs, {"use_buffers": True}, Net())
    assert torch.equal(found.module.counts, expected.module.counts)
    with pytest.raises(RuntimeError, match="Integer division with addcdiv"):
        run(theirs, {**WAYS["multi_avg_fn, mean"](theirs), "use_buffers": True}, Net())


def test_the_mean_of_lists_is_as_exact_as_its_dtype() -> None:
    """torch's weight is a float32: its mean of ten float64 tensors is off by 1e-8."""
    tensors = torch.randn(10, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean = tensors.mean(0)
    errors = []
    for package in (ours, theirs):
        net = nn.Module()
        net.param = nn.Parameter(tensors[0].clone())
        averaged = package.AveragedModel(net, multi_avg_fn=package.get_swa_multi_avg_fn())
        for tensor in tensors:
            net.param.data.copy_(tensor)
            averaged.update_parameters(net)
        errors.append((averaged.module.param - mean).abs().max().item())
    assert errors[0] < 1e-15
    assert errors[1] > 1e-8


@pytest.mark.parametrize("foreach", [False, True])
def test_narrow_models_are_averaged_in_wide_tensors(foreach: bool) -> None:
    """The mean of bfloat16 models in float32 has float32's error; torch's lists raise."""
    random = torch.Generator().manual_seed(0)
    net = nn.Linear(20, 20).bfloat16()
    averaged = ours.AveragedModel(net, average=ours.SWA(), foreach=foreach).float()
    seen = []
    for _ in range(30):
        net.weight.data.copy_(torch.randn(20, 20, generator=random))
        seen.append(net.weight.detach().double())
        averaged.update_parameters(net)
    error = (averaged.module.weight.double() - torch.stack(seen).mean(0)).abs().max()
    assert averaged.module.weight.dtype is torch.float32
    assert error < 1e-6


def test_tied_parameters_stay_tied_and_enter_once() -> None:
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    net[1].weight = net[0].weight
    averaged = ours.AveragedModel(net)
    for value in (1.0, 2.0, 6.0):
        net[0].weight.data.fill_(value)
        averaged.update_parameters(net)
    assert averaged.module[0].weight is averaged.module[1].weight
    assert torch.equal(averaged.module[0].weight, torch.full((4, 4), 3.0))


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_model_without_parameters_is_averaged(way: str, use_buffers: bool) -> None:
    """torch's lists raise."""
    found = run(ours, {**WAYS[way](ours), "use_buffers": use_buffers}, nn.Identity())
    assert found.state_dict() == {"n_averaged": torch.tensor(9)}
    with pytest.raises(RuntimeError, match="nested_tensorlist"):
        run(theirs, {"use_buffers": use_buffers}, nn.Identity())


# Models that do not belong together


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(3, 2, bias=False), "The model has no parameter for 'bias'"),
        (nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)),
         "The averaged model has no parameter for '1.weight'"),
        (nn.Linear(3, 1), "The parameter 'weight' has shape (1, 3), its average 'weight' has "
         "shape (2, 3)"),
    ],
)  # fmt: skip
def test_a_model_of_other_parameters_is_refused_and_nothing_changes(
    model: nn.Module, message: str
) -> None:
    """torch averages what is there, and broadcasts what does not fit."""
    averaged = ours.AveragedModel(nn.Linear(3, 2))
    before = copy.deepcopy(averaged)
    with pytest.raises(ValueError) as caught:
        averaged.update_parameters(model)
    assert str(caught.value) == message
    assert_same(averaged, before)
    theirs.AveragedModel(nn.Linear(3, 2)).update_parameters(nn.Linear(3, 1))


@pytest.mark.parametrize("use_buffers", [False, True])
def test_a_model_of_other_buffers_is_refused_and_nothing_changes(use_buffers: bool) -> None:
    averaged = ours.AveragedModel(nn.BatchNorm1d(3), use_buffers=use_buffers)
    before = copy.deepcopy(averaged)
    with pytest.raises(ValueError, match="The model has no buffer for 'running_mean'"):
        averaged.update_parameters(nn.BatchNorm1d(3, track_running_stats=False))
    assert_same(averaged, before)


def test_a_wrapped_model_may_have_other_names() -> None:
    net = Net()
    averaged = ours.AveragedModel(net)
    averaged.update_parameters(nn.Sequential(net))
    assert torch.equal(averaged.module.matrix, net.matrix)


def test_arguments_that_contradict_each_other_are_refused() -> None:
    net, swa = nn.Linear(1, 1), ours.SWA()
    each, multi = ours.get_swa_avg_fn(), ours.get_swa_multi_avg_fn()
    for package in (ours, theirs):
        with pytest.raises(AssertionError, match="Only one of avg_fn and multi_avg_fn should be"):
            package.AveragedModel(net, avg_fn=each, multi_avg_fn=multi)
    with pytest.raises(AssertionError, match="Only one of avg_fn, multi_avg_fn and average"):
        ours.AveragedModel(net, avg_fn=each, average=swa)
    with pytest.raises(TypeError, match="average should be an Average, got float"):
        ours.AveragedModel(net, average=0.9)
    with pytest.raises(ValueError, match="`foreach` and `fused` are not for functions"):
        ours.AveragedModel(net, multi_avg_fn=multi, fused=True)
    with pytest.raises(ValueError, match="cannot be `True` together"):
        ours.AveragedModel(net, average=swa, foreach=True, fused=True)


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
def test_a_decay_is_between_0_and_1(decay: float) -> None:
    """In torch's words, who takes NaN."""
    for name in ("get_ema_avg_fn", "get_ema_multi_avg_fn"):
        with pytest.raises(ValueError) as caught:
            getattr(ours, name)(decay)
        if decay == decay:
            with pytest.raises(ValueError) as expected:
                getattr(theirs, name)(decay)
            assert str(caught.value) == str(expected.value)
    with pytest.raises(ValueError, match="bias_correction needs a decay below 1"):
        ours.EMA(1.0, bias_correction=True)


# What users do with an averaged model


def test_the_module_stands_in_the_place_of_torchs() -> None:
    assert set(theirs.__all__) <= set(ours.__all__)
    assert ours.PARAM_LIST == theirs.PARAM_LIST
    for name in ("get_ema_avg_fn", "get_ema_multi_avg_fn", "update_bn"):
        found, expected = (inspect.signature(getattr(m, name)).parameters for m in (ours, theirs))
        assert list(found) == list(expected)
        assert all(found[n].default == expected[n].default for n in found)
    found = inspect.signature(ours.AveragedModel).parameters
    expected = inspect.signature(theirs.AveragedModel).parameters
    assert list(found)[: len(expected)] == list(expected)
    assert all(found[n].default == expected[n].default for n in expected)
    assert all(found[n].kind is found[n].KEYWORD_ONLY for n in found if n not in expected)
    assert isinstance(ours.AveragedModel(Net()), theirs.AveragedModel)


@pytest.mark.parametrize("use_buffers", [False, True])
def test_checkpoints_load_in_both_packages_and_training_goes_on(use_buffers: bool) -> None:
    for first, second in ((ours, theirs), (theirs, ours)):
        net = Net()
        saved = io.BytesIO()
        averaged = run(first, {"use_buffers": use_buffers}, net, models=4)
        torch.save(averaged.state_dict(), saved)
        loaded = second.AveragedModel(Net(), use_buffers=use_buffers)
        loaded.load_state_dict(torch.load(io.BytesIO(saved.getvalue()), weights_only=True))
        random = torch.Generator().manual_seed(2)
        for _ in range(3):
            moved(net, random)
            averaged.update_parameters(net)
            loaded.update_parameters(net)
        assert_same(loaded, averaged)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"avg_fn": ours.get_ema_avg_fn(0.9)},
        {"multi_avg_fn": ours.get_swa_multi_avg_fn()},
        {"average": ours.WarmupEMA(), "foreach": True, "use_buffers": True},
    ],
    ids=str,
)
def test_copies_and_pickles_go_on_as_the_original(arguments: dict[str, Any]) -> None:
    net = Net()
    averaged = run(ours, arguments, net, models=3)
    others = [copy.deepcopy(averaged), pickle.loads(pickle.dumps(averaged))]
    random = torch.Generator().manual_seed(3)
    for _ in range(3):
        moved(net, random)
        for each in (averaged, *others):
            each.update_parameters(net)
    for other in others:
        assert_same(other, averaged)


def test_torchs_functions_cannot_be_pickled() -> None:
    with pytest.raises(AttributeError, match="local object"):
        pickle.dumps(theirs.get_ema_avg_fn())


def test_the_device_and_gradients_are_those_of_the_model() -> None:
    net = Net()
    averaged = ours.AveragedModel(net, device="cpu")
    averaged.update_parameters(net)
    for (name, mine), other in zip(
        averaged.module.named_parameters(), net.parameters(), strict=True
    ):
        assert mine.requires_grad == other.requires_grad, name
        assert mine.data_ptr() != other.data_ptr() or not mine.numel(), name


def test_without_a_kernel_a_fused_average_is_the_for_loop_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ours.EMA, "kernels", "")
    _backends._say_once.cache_clear()
    with pytest.warns(UserWarning, match="There is no fused kernel for EMA"):
        found = run(ours, {"average": ours.EMA(0.9), "fused": True, "use_buffers": True}, Net())
    assert_same(found, run(theirs, {**WAYS["avg_fn, EMA"](theirs), "use_buffers": True}, Net()))


# Statistics of batch normalisation


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm1d(4, momentum=0.3), nn.BatchNorm1d(4, momentum=None)
        self.dropout = nn.Dropout(0.5)

    def forward(self, given: Tensor) -> Tensor:
        result: Tensor = self.second(self.dropout(self.first(given)))
        return result


def batches_of(wrap: Callable[[Tensor], Any]) -> list[Any]:
    random = torch.Generator().manual_seed(0)
    return [wrap(torch.randn(8, 4, generator=random) * 3 + 1) for _ in range(5)]


@pytest.mark.parametrize(
    "wrap", [lambda t: t, lambda t: (t, 0), lambda t: [t]], ids=["tensor", "tuple", "list"]
)
@pytest.mark.parametrize("training", [False, True])
def test_update_bn_gives_torchs_statistics(wrap: Callable[[Tensor], Any], training: bool) -> None:
    results = []
    for package in (ours, theirs):
        model = Normalised().train(training)
        torch.manual_seed(0)
        package.update_bn(batches_of(wrap), model, device="cpu")
        assert (model.first.momentum, model.second.momentum) == (0.3, None)
        assert all(module.training == training for module in model.modules())
        results.append(model)
    assert_same(*results)


def test_update_bn_needs_no_batches_without_layers() -> None:
    def loader() -> Iterator[Tensor]:
        raise AssertionError("nobody reads it")
        yield

    ours.update_bn(loader(), nn.Linear(1, 1))


def test_update_bn_leaves_modes_and_momenta_as_they_were() -> None:
    """Also those of layers that were frozen, and after an error; torch loses both."""
    for package, kept in ((ours, True), (theirs, False)):
        model = Normalised().train()
        model.dropout.eval()
        package.update_bn(batches_of(lambda t: t), model)
        assert model.dropout.training is not kept
        with pytest.raises(RuntimeError):
            package.update_bn([torch.zeros(8, 5)], model)
        assert (model.first.momentum == 0.3) is kept


# Averages of users


def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, name: str) -> Any:
    """The package of a spec."""
    (tmp_path / "mine.opt").write_text(text, encoding="utf-8")
    library = pipeline.load([tmp_path / "mine.opt"])
    assert library.warnings == ()
    build.write(build.plan(library, ""), tmp_path / name)
    monkeypatch.syspath_prepend(tmp_path)
    for module in [m for m in sys.modules if m.split(".")[0] == name]:
        del sys.modules[module]
    return importlib.import_module(f"{name}.swa_utils")


OWN = """
average Median {
    hyper weight = 0.25  require 0 < weight < 1
    hyper norm: "squares" | "roots" = "squares"
    option inward = false
    let change = param - average
    let size   = weight if inward else 2 * weight
    let power  = 2 if norm == "squares" else 1
    multi = average + size * sign(change) * abs(change) ** power
}
"""


def test_an_average_of_ones_own_needs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One form serves both paths; complex parts and integers follow; SWA and EMA come along."""
    package = built(tmp_path, monkeypatch, OWN, "own_averages")
    assert not (tmp_path / "own_averages" / "lr_scheduler").exists()
    unit = pipeline.load([tmp_path / "mine.opt"]).find("Median")
    assert isinstance(unit, Average)
    assert package.SWALR is theirs.SWALR
    hypers = {"weight": 0.3, "norm": "squares", "inward": True}
    average = package.Median(**hypers)
    a, p = (torch.randn(40, dtype=torch.float64) for _ in range(2))
    each, multi = forms(average, a, p, 3)
    expected = interpret.averaged(unit, hypers, a.numpy(), p.numpy(), 3)
    for found in (each, multi):
        assert np.allclose(found.numpy(), expected, rtol=1e-14, atol=1e-14)
    whole = [torch.complex(a[:20], a[20:])]
    average.multi(whole, [torch.complex(p[:20], p[20:])], 3)
    assert torch.equal(torch.cat([whole[0].real, whole[0].imag]), multi)
    assert torch.equal(average.each(torch.complex(a[:20], a[20:]),
                                    torch.complex(p[:20], p[20:]), 3).real, each[:20])  # fmt: skip
    with pytest.raises(ValueError, match="norm must be one of squares, roots"):
        package.Median(norm="cubes")
    found = run(package, {"average": average, "use_buffers": True, "foreach": True}, Net())
    assert found.state_dict()["n_averaged"] == 9
    assert_same(run(package, {}, Net()), run(theirs, {}, Net()))


def test_an_average_of_lists_alone_takes_integers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "average Half {\n    multi = lerp(average, param, 0.5)\n}\n"
    package = built(tmp_path, monkeypatch, text, "half_averages")
    values: Sequence[Tensor] = [torch.tensor([10, -7]), torch.tensor([1.0, 2.0])]
    package.Half().multi(values, [torch.tensor([13, -10]), torch.tensor([2.0, 0.0])], 1)
    assert values[0].tolist() == [11, -8]  # 11.5 and -8.5, truncated
    assert values[1].tolist() == [1.5, 1.0]


def test_an_average_may_follow_a_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
average Annealed {
    hyper T_max: int = 10   require T_max > 0
    let weight = CosineAnnealingLR(n, 1.0, T_max=T_max)
    each = lerp(average, param, weight)
}
"""
    package = built(tmp_path, monkeypatch, text, "annealed_averages")
    found = [
        package.Annealed().each(torch.zeros(()), torch.ones(()), n).item() for n in range(1, 10)
    ]
    rates = [(1 + np.cos(np.pi * n / 10)) / 2 for n in range(1, 10)]
    assert found == pytest.approx(rates, rel=1e-6)
