"""The fused step on the CPU, around its kernels: whatever happens to tensors between two steps, the
next one does what the for-loop does."""

from __future__ import annotations

import collections
import contextlib
import copy
import ctypes
import gc
import io
import itertools
import pickle
import random
import subprocess
import sys
import textwrap
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import generated
from generated import swa_utils
from generated._fused import _backends, _batch, _watch, plan_of
from optdsl import resources
from tests import reference

NAMES = tuple(n for n in reference.SHIPPED if getattr(generated, n).kernels)
SHAPES: tuple[tuple[int, ...], ...] = ((5,), (64, 3), (1030,), (), (0,))
# Every slot exists, and a step changes every one.
OPTIONS: dict[str, dict[str, Any]] = {
    "Adadelta": {"lr": 1.0, "eps": 1e-3, "weight_decay": 0.125},
    "ASGD": {"t0": 1, "lambd": 0.5, "weight_decay": 0.125},
    "NAdam": {"momentum_decay": 0.25, "weight_decay": 0.125},
    "RAdam": {"betas": (0.9, 0.99), "weight_decay": 0.125},
    "Adam": {"amsgrad": True, "weight_decay": 0.125},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "SGD": {"momentum": 0.9, "dampening": 0.25},
    "LARS": {"momentum": 0.9, "weight_decay": 0.125},
}


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """C, and nothing to say: where there is no kernel a test fails."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    torch.manual_seed(0)
    _backends._say_once.cache_clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*kernel.*")
        for mark in request.node.iter_markers("filterwarnings"):
            action, message = mark.args[0].split(":", 1)
            warnings.filterwarnings(action, message=message)
        yield
    generated.set_default(fused=None)


@pytest.fixture(params=["short ways", "without"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch shows C, and its own test of tensors, may go."""
    if request.param == "without":
        monkeypatch.setitem(sys.modules, "torch._C._dynamo.guards", None)
        monkeypatch.setattr(_watch, "prepared", lambda: None)


def make(name: str, params: Any, **options: Any) -> Any:
    return getattr(generated, name)(params, **{"lr": 0.01, **OPTIONS.get(name, {}), **options})


def twins(name: str, shapes: Any = SHAPES, **options: Any) -> tuple[Any, Any]:
    """The same optimizer twice, by kernels and as the for-loop, on equal parameters."""
    params = [torch.randn(shape) for shape in shapes]
    return pair(name, params, **options)


def pair(name: str, params: list[Tensor], **options: Any) -> tuple[Any, Any]:
    copies = [param.clone() for param in params]
    return make(name, params, fused=True, **options), make(name, copies, foreach=False, **options)


def params_of(optimizer: Any) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def give(*optimizers: Any, missing: tuple[int, ...] = ()) -> None:
    """Equal gradients, new ones."""
    for index, same in enumerate(zip(*map(params_of, optimizers), strict=True)):
        grad = torch.randn(same[0].shape, dtype=torch.float64)
        for param in same:
            param.grad = None if index in missing else grad.to(param.dtype)


def step(fused: Any, loop: Any, missing: tuple[int, ...] = (), calls: int | None = None) -> None:
    """A step of each on the same gradients, after which they are equal."""
    give(fused, loop, missing=missing)
    before = _batch.launches
    fused.step()
    if calls is not None:
        # Where all parameters make a number together, a call ends there, and one more goes on.
        assert _batch.launches - before == calls * (1 + len(fused.barriers))
    loop.step()
    assert_twins(fused, loop)


def assert_twins(fused: Any, loop: Any) -> None:
    """Equal but for rounding, which the tests of kernels bound: a mistake is as large as a step."""
    for param, other in zip(params_of(fused), params_of(loop), strict=True):
        narrow = param.dtype.itemsize == 2
        bounds = {"rtol": 3e-2, "atol": 3e-2} if narrow else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(param, other, check_stride=False, **bounds)
        mine, its = fused.state.get(param, {}), loop.state.get(other, {})
        assert mine.keys() == its.keys()
        for key in mine:
            torch.testing.assert_close(mine[key], its[key], check_stride=False, **bounds)


def snapshot(optimizer: Any) -> list[Tensor]:
    """The parameters, then what there is of their state."""
    values = [p.clone() for p in params_of(optimizer)]
    for param in params_of(optimizer):
        values += [v.clone() for v in optimizer.state.get(param, {}).values()]
    return values


# Calls


@pytest.mark.parametrize("name", NAMES)
def test_steps_follow_the_for_loop_with_one_call_each(name: str) -> None:
    fused, loop = twins(name)
    for missing in ((), (0,), (1, 2), (), ()):
        step(fused, loop, missing, calls=1)


def test_groups_with_different_numbers_share_a_call() -> None:
    params = [torch.randn(n) for n in (5, 64, 1030)]
    groups = [
        {"params": [p], "lr": 0.01 * (i + 1), "weight_decay": i} for i, p in enumerate(params)
    ]
    copies = [{**g, "params": [p.clone()]} for g, p in zip(groups, params, strict=True)]
    fused, loop = make("Adam", groups, fused=True), make("Adam", copies, foreach=False)
    for missing in ((), (1,), ()):
        step(fused, loop, missing, calls=1)


def test_groups_with_equal_numbers_may_come_to_differ() -> None:
    params = [torch.randn(5), torch.randn(6)]
    groups = [{"params": [p]} for p in params]
    copies = [{"params": [p.clone()]} for p in params]
    fused, loop = make("Adam", groups, fused=True), make("Adam", copies, foreach=False)
    step(fused, loop, calls=1)
    for optimizer in (fused, loop):
        optimizer.param_groups[1]["lr"] = 0.5
    step(fused, loop, calls=1)


def test_options_dtypes_and_direction_split_calls() -> None:
    params = [torch.randn(8) for _ in range(3)] + [torch.randn(8).double()]
    groups = [
        {"params": params[:1]},
        {"params": [params[1], params[3]], "amsgrad": False},
        {"params": params[2:3], "maximize": True},
    ]
    copies = [{**g, "params": [p.clone() for p in g["params"]]} for g in groups]
    fused, loop = make("Adam", groups, fused=True), make("Adam", copies, foreach=False)
    for _ in range(2):
        step(fused, loop, calls=4)


def test_nothing_to_do_calls_nothing() -> None:
    fused, loop = twins("Adam")
    nobody = tuple(range(len(SHAPES)))
    step(fused, loop, missing=nobody, calls=0)
    assert not fused.state
    step(fused, loop)
    step(fused, loop, missing=nobody, calls=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_every_dtype_has_a_kernel(name: str, dtype: torch.dtype) -> None:
    """A for-loop in 16 bits rounds after each operation, a kernel once: like a float32 step."""
    params = [torch.randn(shape).to(dtype) for shape in SHAPES]
    wide = torch.promote_types(dtype, torch.float32)
    copies = [p.to(wide) for p in params]
    fused, loop = make(name, params, fused=True), make(name, copies, foreach=False)
    for param, other in zip(params, copies, strict=True):
        param.grad = torch.randn(param.shape).to(dtype)
        other.grad = param.grad.to(wide)
    before = _batch.launches
    fused.step()
    assert _batch.launches == before + 1 + len(fused.barriers)
    loop.step()
    bound = 2 * torch.finfo(dtype).eps
    for param, other in zip(params, copies, strict=True):
        assert param.dtype is dtype
        torch.testing.assert_close(param.to(wide), other, rtol=bound, atol=bound)


@pytest.mark.usefixtures("ways")
def test_dtypes_in_one_group_are_updated_each_by_its_kernel() -> None:
    dtypes = (torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.float32)
    fused, loop = pair("AdamW", [torch.randn(9).to(dtype) for dtype in dtypes])
    for missing in ((), (0, 1), ()):
        step(fused, loop, missing)
    states = [fused.state[p]["step"] for p in params_of(fused)]
    assert [s.item() for s in states] == [2, 2, 3, 3, 3]


def test_wide_slots_of_narrow_parameters_stay_wide_as_wide_gradients_do() -> None:
    params = [torch.randn(50).bfloat16() for _ in range(2)]
    fused, loop = pair("Adam", params)
    for optimizer in (fused, loop):
        for param in params_of(optimizer):
            slots = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
            optimizer.state[param] = {"step": torch.tensor(0.0)}
            optimizer.state[param] |= {name: torch.zeros(50) for name in slots}
            param.grad_dtype = torch.float32  # type: ignore[attr-defined]
    for _ in range(3):
        for mine, other in zip(params_of(fused), params_of(loop), strict=True):
            mine.grad = torch.randn(50)
            other.grad = mine.grad.clone()
        fused.step()
        loop.step()
        assert_twins(fused, loop)
    assert fused.state[params[0]]["exp_avg"].dtype is torch.float32


def test_a_dtype_that_neither_slot_nor_gradient_tells_splits_calls() -> None:
    params = [torch.randn(8), torch.randn(8).bfloat16()]
    fused, loop = pair("SGD", params, momentum=0, dampening=0)
    for mine, its in zip(params_of(fused), params_of(loop), strict=True):
        for param in (mine, its):
            param.grad_dtype = torch.float32  # type: ignore[attr-defined]
        mine.grad, its.grad = torch.ones(8), torch.ones(8)
    fused.step()
    loop.step()
    assert_twins(fused, loop)
    assert len(plan(fused).calls.batches) == 2


def test_an_option_that_no_slot_tells_splits_calls() -> None:
    params = [torch.randn(8), torch.randn(9)]
    groups = [{"params": [p], "nesterov": bool(i)} for i, p in enumerate(params)]
    copies = [{**g, "params": [p.clone()]} for g, p in zip(groups, params, strict=True)]
    fused = make("SGD", groups, dampening=0, fused=True)
    loop = make("SGD", copies, dampening=0, foreach=False)
    for _ in range(3):
        step(fused, loop, calls=2)


def test_parameters_with_slots_of_another_dtype_have_a_call_of_their_own() -> None:
    fused, loop = pair("SGD", [torch.randn(8).bfloat16(), torch.randn(9).bfloat16()])
    step(fused, loop, calls=1)
    for optimizer in (fused, loop):
        state = optimizer.state[params_of(optimizer)[1]]
        state["momentum_buffer"] = state["momentum_buffer"].float()
    step(fused, loop, calls=2)


def test_as_many_threads_as_torch_has_and_the_elements_are_worth() -> None:
    threads = torch.get_num_threads()
    try:
        for count, elements, expected in ((2, 1 << 20, 2), (1, 1 << 20, 1), (2, 1000, 1)):
            torch.set_num_threads(count)
            fused, loop = twins("SGD", shapes=((8,), (elements,)), momentum=0, dampening=0)
            step(fused, loop)
            (batch,) = plan(fused).calls.batches
            assert batch.arguments.threads == expected
            # The next step follows a change.
            torch.set_num_threads(1)
            step(fused, loop)
            assert batch.arguments.threads == 1
    finally:
        torch.set_num_threads(threads)


def plan(optimizer: Any) -> Any:
    current = plan_of(optimizer)
    assert current is not None
    return current


# Hyperparameters


@pytest.mark.parametrize("name", NAMES)
def test_any_hyperparameter_may_be_scheduled(name: str) -> None:
    fused, loop = twins(name)
    step(fused, loop)
    numbers = {
        key: value
        for key, value in fused.param_groups[0].items()
        if isinstance(value, (float, tuple)) and value != 0
    }
    assert numbers
    for key, value in numbers.items():
        for optimizer in (fused, loop):
            group = optimizer.param_groups[0]
            changed = tuple(v * 0.875 for v in value) if isinstance(value, tuple) else value * 0.875
            group[key] = changed
        last = plan(fused)
        step(fused, loop, calls=1)
        # Nothing is planned anew, but for what decides whether a slot exists.
        deciding = plan(fused).program.DECIDING
        assert plan(fused) is last or key in deciding or last.calls.unset


def test_schedulers_drive_the_kernels_numbers() -> None:
    fused, loop = twins("AdamW")
    schedules = [
        generated.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=9)
        for optimizer in (fused, loop)
    ]
    for _ in range(8):
        step(fused, loop)
        for schedule in schedules:
            schedule.step()


@pytest.mark.parametrize("name", NAMES)
def test_switched_hyperparameters_take_effect(name: str) -> None:
    fused, loop = twins(name)
    for changes in ({}, {"lr": 0.1}, {"weight_decay": 0.5}, {"maximize": True}, {"momentum": 0}):
        for optimizer in (fused, loop):
            group = optimizer.param_groups[0]
            group.update((k, v) for k, v in changes.items() if k in group)
        step(fused, loop)


def test_momentum_switched_on_later_begins_with_the_gradient() -> None:
    fused, loop = twins("SGD", momentum=0, dampening=0)
    for momentum in (0, 0.9, 0.9):
        for optimizer in (fused, loop):
            optimizer.param_groups[0]["momentum"] = momentum
        step(fused, loop)


@pytest.mark.usefixtures("ways")
def test_parameters_whose_first_gradient_comes_late_begin_then() -> None:
    fused, loop = twins("SGD")
    for missing in ((0, 1), (0,), (), (2,), ()):
        step(fused, loop, missing)


@pytest.mark.usefixtures("ways")
def test_a_slot_begins_once_also_beside_what_was_in_the_state_before() -> None:
    """The dictionaries are the same ones then after the first step."""
    fused, loop = twins("SGD")
    for optimizer in (fused, loop):
        for param in params_of(optimizer):
            optimizer.state[param]["mine"] = torch.zeros(1)
    give(fused)
    fused.grad_scale, fused.found_inf = torch.tensor(1.0), torch.tensor(1.0)
    fused.step()  # is skipped: nothing has begun
    assert all([*state] == ["mine"] for state in fused.state.values())
    del fused.grad_scale, fused.found_inf
    for _ in range(3):
        step(fused, loop)


def test_tensors_as_hyperparameters_are_read_in_each_step() -> None:
    lr, beta1, beta2 = torch.tensor(0.01), torch.tensor([0.9]), torch.tensor(0.99)
    fused, loop = twins("Adam", lr=lr, betas=(beta1, beta2))
    for value in (0.01, 0.1, 0.2):
        lr.fill_(value)
        beta1.fill_(0.9 - value)
        step(fused, loop, calls=1)


# Gradients


@pytest.mark.parametrize("set_to_none", [False, True])
def test_gradients_may_move_or_stay(set_to_none: bool) -> None:
    params = [nn.Parameter(torch.randn(4, 3)) for _ in range(3)]
    copies = [nn.Parameter(p.detach().clone()) for p in params]
    fused, loop = make("AdamW", params, fused=True), make("AdamW", copies, foreach=False)
    for number in range(4):
        for optimizer in (fused, loop):
            optimizer.zero_grad(set_to_none=set_to_none)
            loss = sum((p * p).sum() * (i + number) for i, p in enumerate(params_of(optimizer)))
            loss.backward()
        addresses = {p.grad.data_ptr() for p in params if p.grad is not None}
        fused.step()
        loop.step()
        assert_twins(fused, loop)
        assert set_to_none or addresses == {p.grad.data_ptr() for p in params if p.grad is not None}


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def padded(tensor: Tensor) -> Tensor:
    """The same elements with others between them."""
    wide = torch.full((*tensor.shape, 2), 7.0, dtype=tensor.dtype)
    wide[..., 0] = tensor
    return wide[..., 0]


def negated(tensor: Tensor) -> Tensor:
    """The same numbers, in memory with the other sign."""
    return torch._neg_view(-tensor)


def unaligned(tensor: Tensor) -> Tensor:
    return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": torch.Tensor.contiguous,
    "transposed": lambda t: t.transpose(0, 3).contiguous().transpose(0, 3),
    "channels last": channels_last,
    "with gaps": padded,
    "negated": negated,
    "unaligned": unaligned,
}


@pytest.mark.parametrize("of_param", LAYOUTS)
@pytest.mark.parametrize("of_grad", LAYOUTS)
def test_every_memory_layout_is_updated_alike(of_param: str, of_grad: str) -> None:
    """Bit for bit as contiguous tensors are, and the tensors stay as they are laid out."""
    shape = (2, 3, 4, 5)
    values, grads = torch.randn(shape), [torch.randn(shape) for _ in range(3)]
    param, plain = LAYOUTS[of_param](values.clone()), values.clone()
    strides, where = param.stride(), param.data_ptr()
    fused, other = make("Adam", [param], fused=True), make("Adam", [plain], fused=True)
    for grad in grads:
        param.grad, plain.grad = LAYOUTS[of_grad](grad), grad.clone()
        fused.step()
        other.step()
        assert torch.equal(param, plain)
        for key, value in fused.state[param].items():
            assert torch.equal(value, other.state[plain][key])
    assert (param.stride(), param.data_ptr()) == (strides, where)


@pytest.mark.usefixtures("ways")
def test_gradients_may_be_laid_out_differently_in_each_step() -> None:
    fused, loop = twins("SGD", shapes=((2, 3, 4, 5), (2, 1, 2, 2)))
    for first, second in itertools.product(LAYOUTS.values(), repeat=2):
        give(fused, loop)
        for param, layout in zip(params_of(fused), (first, second), strict=True):
            assert param.grad is not None
            param.grad = layout(param.grad)
        fused.step()
        loop.step()
        assert_twins(fused, loop)


def test_a_gradient_of_one_element_that_is_seen_many_times_is_read_so() -> None:
    """What a sum gives: no stride, so memory behind the element is somebody else's."""
    fused, loop = twins("SGD", shapes=((1000, 3), ()))
    for value in (1.0, -2.0, 0.5):
        for optimizer in (fused, loop):
            for param in params_of(optimizer):
                param.grad = torch.tensor(value).expand(param.shape)
        fused.step()
        loop.step()
        assert_twins(fused, loop)


def test_dimensions_of_one_element_may_have_any_stride() -> None:
    params = [channels_last(torch.randn(4, 1, 3, 3)), torch.randn(1, 7).t()]
    fused, loop = pair("Adam", params)
    for _ in range(3):
        step(fused, loop)


def test_sparse_gradients_are_refused_in_the_algorithms_words() -> None:
    param = torch.randn(4)
    optimizer = make("Adam", [param], fused=True)
    param.grad = torch.randn(4)
    optimizer.step()
    for _ in range(2):
        param.grad = torch.eye(4)[0].to_sparse()
        with pytest.raises(RuntimeError, match=r"^Adam does not support sparse gradients"):
            optimizer.step()
    param.grad = torch.randn(4)
    optimizer.step()
    assert optimizer.state[param]["step"] == 2
    fresh = make("Adam", [param], fused=True)
    param.grad = torch.eye(4)[0].to_sparse()
    with pytest.raises(RuntimeError, match=r"^Adam does not support sparse gradients"):
        fresh.step()
    assert not fresh.state
    linear = make("SGD", [param], fused=True)
    with pytest.raises(RuntimeError, match="fused kernel of SGD does not support sparse gradients"):
        linear.step()


def test_gradients_of_another_shape_are_refused() -> None:
    """torch checks a gradient when it is given, not its `data`."""
    param = torch.randn(4)
    optimizer = make("SGD", [param], fused=True)
    for _ in range(2):
        param.grad = torch.randn(4)
        optimizer.step()
        before = param.clone()
        param.grad.data = torch.randn(3)
        with pytest.raises(RuntimeError, match=r"grad has shape \(3,\)"):
            optimizer.step()
        assert torch.equal(param, before)


def test_no_gradient_is_kept_behind_a_step() -> None:
    fused, loop = twins("Adam")
    for _ in range(2):
        step(fused, loop)
    for param in params_of(fused):
        param.grad = padded(torch.randn(param.shape))
    fused.step()
    grads = [weakref.ref(p.grad) for p in params_of(fused)]
    fused.zero_grad()
    gc.collect()
    assert not any(grad() is not None for grad in grads)


# Parameters


@pytest.mark.filterwarnings("ignore:There is no fused kernel for parameters that share memory")
@pytest.mark.parametrize("name", ["Adam", "SGD"])
@pytest.mark.parametrize("shape", [(8,), (0,)])
def test_a_parameter_that_a_group_holds_twice_takes_two_steps(
    name: str, shape: tuple[int, ...]
) -> None:
    params = [torch.randn(shape), torch.randn(3)]
    copies = [p.clone() for p in params]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="optimizer contains a parameter group with dup")
        fused = make(name, [params[0], params[1], params[0]], fused=True)
        loop = make(name, [copies[0], copies[1], copies[0]], foreach=False)
    for _ in range(3):
        for param, other in zip(params, copies, strict=True):
            param.grad = torch.randn_like(param)
            other.grad = param.grad.clone()
        fused.step()
        loop.step()
        assert_twins(fused, loop)
    assert name == "SGD" or fused.state[params[0]]["step"] == 6


@pytest.mark.filterwarnings("ignore:There is no fused kernel for parameters that share memory")
def test_a_parameter_in_two_groups_is_updated_with_the_numbers_of_both() -> None:
    """torch refuses it in `add_param_group`, and lets it be put there."""
    param = torch.randn(8)
    other = param.clone()
    optimizers = []
    for tensor, flags in ((param, {"fused": True}), (other, {"foreach": False})):
        optimizer = make("SGD", [tensor], **flags)
        optimizer.param_groups.append({**optimizer.param_groups[0], "lr": 0.5, "params": [tensor]})
        optimizers.append(optimizer)
    for _ in range(3):
        param.grad = torch.randn(8)
        other.grad = param.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        assert_twins(*optimizers)


def test_parameters_that_share_memory_are_updated_one_after_another() -> None:
    """Views of each other, whole and in part, and two that lie between each other. A kernel would
    update them at once."""
    storage, another = torch.randn(40), torch.randn(2, 40)
    mine = [storage, storage[:], storage[10:30], another[0, ::2], another[0, 1::2], another[1]]
    storage, another = storage.clone(), another.clone()
    its = [storage, storage[:], storage[10:30], another[0, ::2], another[0, 1::2], another[1]]
    groups = [{"params": mine}, {"params": [torch.randn(7)]}]
    copies = [{"params": its}, {"params": [groups[1]["params"][0].clone()]}]
    fused, loop = make("SGD", groups, fused=True), make("SGD", copies, foreach=False)
    give(fused, loop)
    with pytest.warns(UserWarning, match="no fused kernel for parameters that share memory"):
        fused.step()
    loop.step()
    for _ in range(3):
        step(fused, loop, calls=1)  # of the other group


@pytest.mark.filterwarnings("ignore:There is no fused kernel for parameters that share memory")
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    "pieces",
    [
        lambda whole: [whole, whole[10:30]],
        lambda whole: [whole[:11], whole[10:]],
        lambda whole: [whole[::2], whole[22:30]],
        lambda whole: [whole, whole[2:5], whole[10:30]],
    ],
)
def test_groups_that_share_memory_are_updated_in_their_order(
    pieces: Callable[[Tensor], list[Tensor]], turned: bool
) -> None:
    optimizers = []
    storage = torch.randn(40)
    for flags in ({"fused": True}, {"foreach": False}):
        groups = [{"params": [piece]} for piece in pieces(storage.clone())]
        groups = groups[::-1] if turned else groups
        options = {"lr": 0.5, "weight_decay": 0.5}
        optimizers.append(make("SGD", groups, **flags, **options))
    for _ in range(3):
        step(*optimizers, calls=0)


def test_parameters_that_are_pieces_of_one_buffer_share_a_call() -> None:
    buffer = torch.randn(60)
    fused, loop = pair("AdamW", [buffer[:10], buffer[5:5], buffer[10:25].view(3, 5), buffer[25:]])
    for _ in range(2):
        step(fused, loop, calls=1)


@pytest.mark.usefixtures("ways")
def test_groups_may_be_added_and_their_parameters_exchanged() -> None:
    fused, loop = twins("Adam")
    step(fused, loop)
    new = torch.randn(6)
    for optimizer, param in ((fused, new), (loop, new.clone())):
        optimizer.add_param_group({"params": [param], "lr": 0.1})
    step(fused, loop)
    for optimizer, param in ((fused, new.clone()), (loop, new.clone())):
        optimizer.param_groups[0]["params"][1] = param
    step(fused, loop)
    for optimizer in (fused, loop):
        del optimizer.param_groups[0]["params"][0]
    step(fused, loop)
    for optimizer in (fused, loop):
        optimizer.param_groups.reverse()
    step(fused, loop)


def test_several_optimizers_may_share_parameters() -> None:
    params = [torch.randn(shape) for shape in SHAPES]
    copies = [p.clone() for p in params]
    fused = [make(name, params, fused=True) for name in ("Adam", "SGD", "SGD")]
    loops = [make(name, copies, foreach=False) for name in ("Adam", "SGD", "SGD")]
    for _ in range(4):
        give(fused[0], loops[0])
        for mine, its in zip(fused, loops, strict=True):
            mine.step()
            its.step()
            assert_twins(mine, its)
    assert len({id(plan(each)) for each in fused}) == 3


def test_groups_without_kernels_stand_beside_groups_with_them() -> None:
    params = [torch.randn(5), torch.randn(6), torch.randn(7)]
    flags = (True, False, None)
    groups = [{"params": [p], "fused": f} for p, f in zip(params, flags, strict=True)]
    copies = [{"params": [p.clone()]} for p in params]
    fused, loop = make("AdamW", groups), make("AdamW", copies, foreach=False)
    for _ in range(3):
        step(fused, loop, calls=1)


# Tensors that are given other memory


def swapped(tensor: Tensor) -> None:
    tensor.data = tensor.data.clone()


def moved(tensor: Tensor) -> None:
    """What every recipe for moving an optimizer does."""
    tensor.data = tensor.data.to("cpu")


def refilled(tensor: Tensor) -> None:
    tensor.data = torch.full_like(tensor.data, 0.5)


def reversed_in_memory(tensor: Tensor) -> None:
    """The same numbers in another order of memory, and back."""
    if tensor.dim() == 2:
        is_row_major = tensor.is_contiguous()
        tensor.data = tensor.data.t().contiguous().t() if is_row_major else tensor.data.contiguous()


@pytest.mark.parametrize("change", [swapped, moved, refilled, reversed_in_memory])
@pytest.mark.parametrize("name", ["Adam", "SGD", "NAdam", "ASGD"])
@pytest.mark.parametrize("what", ["params", "state", "both"])
def test_tensors_may_be_given_other_memory(
    name: str, what: str, change: Callable[[Tensor], None]
) -> None:
    fused, loop = twins(name)
    for _ in range(3):
        step(fused, loop)
        for optimizer in (fused, loop):
            for param in params_of(optimizer):
                if what != "state":
                    change(param)
                for value in optimizer.state[param].values() if what != "params" else ():
                    change(value)
    step(fused, loop)


@pytest.mark.usefixtures("ways")
def test_a_square_that_is_turned_where_it_lies_is_seen_to_be() -> None:
    """Its address, size and type are what they were."""
    fused, loop = twins("Adam", shapes=((8, 8), (8, 8)))
    for turned in ("param", "exp_avg", "both", "param"):
        step(fused, loop)
        for optimizer in (fused, loop):
            param = params_of(optimizer)[0]
            if turned != "exp_avg":
                param.data = param.data.t()
            if turned != "param":
                optimizer.state[param]["exp_avg"].t_()
    step(fused, loop)


@pytest.mark.usefixtures("ways")
def test_a_parameter_may_shrink_where_it_lies() -> None:
    """Also to one of fewer dimensions, whose sizes and strides, as far as it has some, stay."""
    fused, loop = twins("SGD", shapes=((2000, 1),), momentum=0, dampening=0)
    step(fused, loop)
    (param,), (other,) = params_of(fused), params_of(loop)
    for smaller in (lambda t: t[:100], lambda t: t[:, 0], lambda t: t[0]):
        whole, kept = param.data.clone(), param.data
        param.grad = other.grad = None
        param.data, other.data = smaller(param.data), smaller(other.data)
        step(fused, loop)
        assert torch.equal(kept.flatten()[param.numel() :], whole.flatten()[param.numel() :])


@pytest.mark.usefixtures("ways")
def test_a_parameter_may_have_another_dtype_where_it_lies() -> None:
    """Its address, sizes and strides are what they were."""
    fused, loop = pair("SGD", [torch.ones(8).bfloat16()], momentum=0, dampening=0)
    for dtype in (torch.float16, torch.bfloat16):
        step(fused, loop)
        for optimizer in (fused, loop):
            (param,) = params_of(optimizer)
            param.grad = None
            param.data = param.data.view(dtype)
    step(fused, loop)


@pytest.mark.usefixtures("ways")
def test_gradients_may_have_another_dtype_in_each_step() -> None:
    fused, loop = pair("SGD", [torch.randn(2, 8).bfloat16() for _ in range(2)])
    for param in (*params_of(fused), *params_of(loop)):
        param.grad_dtype = None  # type: ignore[attr-defined]
    for dtype, turned in itertools.product(
        (torch.float32, torch.bfloat16, torch.float16, torch.float32), (False, True)
    ):
        grad = torch.randn(2, 8)
        for optimizer in (fused, loop):
            for param, its in zip(params_of(optimizer), (dtype, torch.bfloat16), strict=True):
                param.grad = grad.t().to(its).contiguous().t() if turned else grad.to(its)
            optimizer.step()
        assert_twins(fused, loop)


def test_a_model_may_change_its_dtype_between_steps() -> None:
    """Numbers that have no rounding errors in any of them."""
    params = [torch.ones(shape) for shape in SHAPES]
    optimizer = make("SGD", params, fused=True, lr=0.25, momentum=0, dampening=0)
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float32)
    for number, dtype in enumerate(dtypes):
        for param in params:
            param.grad = None
            param.data = param.data.to(dtype)
            param.grad = torch.ones_like(param)
        optimizer.step()
        for param in params:
            assert torch.equal(param, torch.full_like(param, 0.75 - 0.25 * number))
            assert param.dtype is dtype


@pytest.mark.usefixtures("ways")
def test_state_may_be_replaced_and_changed_between_steps() -> None:
    fused, loop = twins("Adam")
    for change in (
        lambda state: state["step"].fill_(100),
        lambda state: state.update(step=torch.tensor(7.0)),
        lambda state: state.update(step=torch.tensor(8, dtype=torch.float64)),
        lambda state: state.update(exp_avg=torch.ones_like(state["exp_avg"])),
        lambda state: state["exp_avg_sq"].mul_(2),
        lambda state: state.clear(),
        lambda state: state["step"].set_(torch.tensor(3.0)),
    ):
        step(fused, loop)
        for optimizer in (fused, loop):
            change(optimizer.state[params_of(optimizer)[1]])
        give(fused, loop)
        fused.step()
        loop.step()
        for param, other in zip(params_of(fused), params_of(loop), strict=True):
            torch.testing.assert_close(param, other, rtol=1e-4, atol=1e-5)
            assert fused.state[param]["step"] == loop.state[other]["step"]


@pytest.mark.usefixtures("ways")
def test_the_whole_state_may_be_taken_away() -> None:
    fused, loop = twins("Adam")
    for _ in range(3):
        step(fused, loop)
        for optimizer in (fused, loop):
            optimizer.state.clear()
    step(fused, loop)
    assert {s["step"].item() for s in fused.state.values()} == {1.0}


@pytest.mark.usefixtures("ways")
def test_the_whole_state_may_be_another_dictionary() -> None:
    fused, loop = twins("Adam")
    left = []
    for _ in range(3):
        step(fused, loop)
        for optimizer in (fused, loop):
            left.append(optimizer.state)
            optimizer.state = copy.copy(optimizer.state)
            param = params_of(optimizer)[0]
            optimizer.state[param] = {k: v.clone() for k, v in optimizer.state[param].items()}
    step(fused, loop)


@pytest.mark.usefixtures("ways")
def test_state_of_two_parameters_may_be_exchanged() -> None:
    fused, loop = twins("Adam", shapes=((9,), (9,)))
    step(fused, loop)
    step(fused, loop, missing=(0,))
    for optimizer in (fused, loop):
        one, two = params_of(optimizer)
        states = optimizer.state[one], optimizer.state[two]
        optimizer.state[two], optimizer.state[one] = states
    step(fused, loop)
    for optimizer in (fused, loop):  # the same entries in the same order
        owners, states = list(optimizer.state), list(optimizer.state.values())
        optimizer.state.clear()
        optimizer.state.update(zip(reversed(owners), states, strict=True))
    step(fused, loop)


def test_scalar_slots_with_values_of_their_own_may_be_changed_between_steps() -> None:
    """eta is read before its change, mu_product after it."""
    for name, slot in (("ASGD", "eta"), ("NAdam", "mu_product")):
        fused, loop = twins(name)
        for value in (0.25, 0.5):
            step(fused, loop)
            for optimizer in (fused, loop):
                for param in params_of(optimizer)[1:]:
                    optimizer.state[param][slot].fill_(value)
            step(fused, loop)
            assert fused.state[params_of(fused)[0]][slot].dtype is torch.float32


def test_a_slot_that_begins_as_the_learning_rate_is_not_that_tensor() -> None:
    lr = torch.tensor(0.25)
    optimizer = make("ASGD", [torch.ones(3)], fused=True, lr=lr)
    for _ in range(3):
        give(optimizer)
        optimizer.step()
    (param,) = params_of(optimizer)
    assert lr == 0.25
    assert optimizer.state[param]["eta"] < 0.25


def test_slots_of_another_shape_are_refused() -> None:
    param = torch.randn(4)
    optimizer = make("Adam", [param], fused=True)
    give(optimizer)
    optimizer.step()
    optimizer.state[param]["exp_avg"] = torch.zeros(5)
    with pytest.raises(RuntimeError, match=r"exp_avg has shape \(5,\)"):
        optimizer.step()


def test_numbers_of_all_parameters_lie_in_one_piece() -> None:
    """So that one operation writes all. Groups and options do not matter, dtypes do."""
    params = [torch.randn(4) for _ in range(6)]
    optimizer = make("AdamW", [{"params": params[:3]}, {"params": params[3:]}], fused=True)
    for _ in range(2):
        give(optimizer)
        optimizer.step()
    addresses = [optimizer.state[p]["step"].data_ptr() for p in params]
    assert addresses == [addresses[0] + 4 * i for i in range(6)]
    (batch,) = plan(optimizer).calls.batches
    (cells,) = batch.cells
    assert len(cells.views) == 1


EVENTS: dict[str, Callable[[Any, random.Random], None]] = {
    "nothing": lambda optimizer, draw: None,
    "swap a parameter": lambda optimizer, draw: swapped(draw.choice(params_of(optimizer))),
    "swap a slot": lambda optimizer, draw: swapped(drawn_slot(optimizer, draw)),
    "turn a parameter": lambda optimizer, draw: reversed_in_memory(params_of(optimizer)[1]),
    "turn a slot": lambda optimizer, draw: reversed_in_memory(drawn_slot(optimizer, draw)),
    "change a step": lambda optimizer, draw: drawn_state(optimizer, draw)["step"].add_(3),
    "replace a step": lambda optimizer, draw: drawn_state(optimizer, draw).update(
        step=torch.tensor(float(draw.randrange(1, 9)))
    ),
    "forget a state": lambda optimizer, draw: drop(optimizer, draw),
    "schedule": lambda optimizer, draw: draw.choice(optimizer.param_groups).update(
        lr=draw.choice((0.01, 0.02, 0.05))
    ),
    "decay": lambda optimizer, draw: draw.choice(optimizer.param_groups).update(
        weight_decay=draw.choice((0, 0.125))
    ),
    "maximize": lambda optimizer, draw: draw.choice(optimizer.param_groups).update(
        maximize=draw.random() < 0.5
    ),
    "reload": lambda optimizer, draw: optimizer.load_state_dict(
        copy.deepcopy(optimizer.state_dict())
    ),
    "reverse a group": lambda optimizer, draw: optimizer.param_groups[0]["params"].reverse(),
    "add a group": lambda optimizer, draw: optimizer.add_param_group(
        {"params": [torch.full((draw.randrange(1, 40),), 0.5)]}
    ),
}


def drawn_state(optimizer: Any, draw: random.Random) -> dict[str, Tensor]:
    """Of the parameters that have one, in their order."""
    states = [optimizer.state[p] for p in params_of(optimizer) if optimizer.state.get(p)]
    state: dict[str, Tensor] = draw.choice(states)
    return state


def drawn_slot(optimizer: Any, draw: random.Random) -> Tensor:
    state = drawn_state(optimizer, draw)
    return state[draw.choice(sorted(state))]


def drop(optimizer: Any, draw: random.Random) -> None:
    owners = [p for p in params_of(optimizer) if optimizer.state.get(p)]
    if len(owners) > 1:
        del optimizer.state[draw.choice(owners)]


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("name", ["Adam", "NAdam", "ASGD", "RMSprop"])
def test_after_anything_that_happens_the_next_step_is_right(name: str, seed: int) -> None:
    """Twenty events one after another, drawn at random, each followed by a step in which some
    gradients are missing, as they were, moved, or laid out otherwise."""
    draw = random.Random(seed)
    params = [torch.randn(shape) for shape in ((6,), (4, 4), (33,), (), (0,))]
    copies = [p.clone() for p in params]
    flags = [(params, {"fused": True}), (copies, {"foreach": False})]
    fused, loop = (
        make(name, [{"params": p[:3]}, {"params": p[3:], "lr": 0.05}], **f) for p, f in flags
    )
    step(fused, loop)
    for _ in range(20):
        event, layout = draw.choice(sorted(EVENTS)), draw.choice(sorted(LAYOUTS))
        chance = draw.randrange(1 << 30)
        for optimizer in (fused, loop):
            EVENTS[event](optimizer, random.Random(chance))
        if draw.random() < 0.7:
            count = len(params_of(fused))
            give(fused, loop, missing=tuple(i for i in range(count) if draw.random() < 0.25))
        param = params_of(fused)[draw.randrange(3)]
        if param.grad is not None and layout not in ("transposed", "channels last"):
            param.grad = LAYOUTS[layout](param.grad)
        fused.step()
        loop.step()
        assert_twins(fused, loop)


def test_a_plan_is_kept_while_nothing_has_happened() -> None:
    fused, loop = twins("Adam")
    step(fused, loop)
    first = plan(fused)
    for _ in range(3):
        step(fused, loop)
        fused.param_groups[0]["lr"] = loop.param_groups[0]["lr"] = 0.5
        fused.state_dict()
        assert plan(fused) is first
    calls = first.calls
    for missing in ((1,), (0, 2), (), (3,)):
        step(fused, loop, missing=missing, calls=1)
        assert plan(fused) is first
        assert first.calls is calls


@pytest.mark.usefixtures("ways")
def test_tensors_may_be_exchanged_behind_their_objects() -> None:
    """The objects of Python stay, in the group and in the state."""
    fused, loop = twins("Adam", shapes=((9,), (4, 4)))
    for what in ("param", "exp_avg", "step", "param"):
        step(fused, loop)
        for optimizer in (fused, loop):
            param = params_of(optimizer)[0]
            tensor = param if what == "param" else optimizer.state[param][what]
            param.grad = None  # which would be exchanged, too
            torch.utils.swap_tensors(tensor, tensor.clone())
    step(fused, loop)


@pytest.mark.usefixtures("ways")
def test_a_parameter_that_is_negated_where_it_lies_is_seen_to_be() -> None:
    fused, loop = twins("SGD", shapes=((8,), (3,)))
    for _ in range(3):
        step(fused, loop)
        for optimizer in (fused, loop):
            param = params_of(optimizer)[0]
            param.data = torch._neg_view(param.data)
    step(fused, loop)


@pytest.mark.usefixtures("ways")
def test_slots_may_be_renamed_added_and_taken_away() -> None:
    fused, loop = twins("Adam")
    for change in (
        lambda state: state.update(mine=torch.zeros(3)),
        lambda state: state.pop("mine"),
        lambda state: state.update(exp_avg=state["exp_avg"].clone()),
        lambda state: state.update(exp_avg_sq=state["exp_avg_sq"][...]),
    ):
        step(fused, loop)
        for optimizer in (fused, loop):
            change(optimizer.state[params_of(optimizer)[1]])
    step(fused, loop)


@pytest.mark.usefixtures("ways")
def test_a_list_of_parameters_may_be_another_list() -> None:
    fused, loop = twins("Adam")
    for change in (tuple, list, lambda params: [*params, torch.ones(2)], lambda params: params[1:]):
        step(fused, loop)
        for optimizer in (fused, loop):
            group = optimizer.param_groups[0]
            group["params"] = change(group["params"])
    step(fused, loop)


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize("index", [0, 1])
def test_a_list_of_parameters_may_change_where_it_is(index: int) -> None:
    params = [torch.randn(n) for n in (5, 6, 7, 8)]
    groups = [{"params": params[:2]}, {"params": params[2:]}]
    copies = [{"params": [p.clone() for p in group["params"]]} for group in groups]
    fused, loop = make("Adam", groups, fused=True), make("Adam", copies, foreach=False)
    for change in (
        lambda params: params.append(torch.ones(3)),
        lambda params: params.pop(),
        lambda params: params.__setitem__(0, torch.ones(4)),
        lambda params: params.__setitem__(-1, torch.ones(4)),
        lambda params: params.reverse(),
    ):
        step(fused, loop)
        for optimizer in (fused, loop):
            change(optimizer.param_groups[index]["params"])
    step(fused, loop)


class Asked(torch.Tensor):
    """A subclass that is asked for what is done with it: its gradient has the other sign inside."""

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function == torch.Tensor.grad.__set__ and args[1] is not None:
            args = (args[0], -args[1])
        result = super().__torch_function__(function, types, args, kwargs)
        is_read = function == torch.Tensor.grad.__get__
        return -result if is_read and result is not None else result


class Guarded(nn.Parameter):
    """A parameter with a gradient of its own."""

    given: Tensor | None = None

    @property
    def grad(self) -> Tensor | None:
        return self.given

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        self.given = value


@pytest.mark.parametrize("kind", [Asked, Guarded])
def test_what_a_class_says_is_its_gradient_is_taken(kind: Any) -> None:
    values = [torch.randn(6), torch.randn(4)]
    params = [value.clone().as_subclass(kind) for value in values]
    fused, loop = make("Adam", params, fused=True), make("Adam", values, foreach=False)
    for missing in ((), (1,), ()):
        step(fused, loop, missing, calls=1)


def test_a_parameter_may_come_to_have_a_gradient_of_its_own() -> None:
    """Its memory stays as it is, and torch's gradient is that of the step before."""
    fused, loop = twins("Adam", shapes=((6,), (4,)))
    step(fused, loop)
    for optimizer in (fused, loop):
        params_of(optimizer)[1].__class__ = Guarded
    step(fused, loop)


def test_a_state_may_have_an_order_of_its_own(ways: None) -> None:
    fused, loop = twins("Adam")
    for missing in ((), (1,), ()):
        step(fused, loop, missing)
        for optimizer in (fused, loop):
            optimizer.state = collections.OrderedDict(optimizer.state)
            optimizer.state.move_to_end(params_of(optimizer)[0])
            optimizer.add_param_group({"params": [torch.ones(3)]})  # so that there is another plan


class Spelled(dict[str, Any]):
    """Its keys are not those that it is asked for."""

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(key.upper())

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key.upper(), value)

    def get(self, key: str, default: Any = None) -> Any:
        return super().get(key.upper(), default)

    def __ior__(self, other: Any) -> Any:
        for key, value in other.items():
            self[key] = value
        return self


def test_slots_are_those_that_an_entry_gives(ways: None) -> None:
    fused, loop = twins("Adam", shapes=((6,), (4,)))
    step(fused, loop)
    entry = Spelled()
    entry |= fused.state[params_of(fused)[0]]
    fused.state[params_of(fused)[0]] = entry
    for _ in range(2):
        give(fused, loop)
        fused.step()
        loop.step()
    torch.testing.assert_close(params_of(fused), params_of(loop))
    assert entry["step"] == 3


@pytest.mark.parametrize("number", [3, 3.0])
def test_scalar_slots_may_be_numbers(number: float) -> None:
    fused, loop = twins("Adam", shapes=((6,), (4,)))
    step(fused, loop)
    fused.state[params_of(fused)[0]]["step"] = number
    loop.state[params_of(loop)[0]]["step"] = torch.tensor(3.0)
    step(fused, loop)


def in_a_transform(grad: Tensor) -> Tensor:
    level = torch._C._functorch._grad_increment_nesting()
    try:
        return torch._C._functorch._wrap_for_grad(grad, level)
    finally:
        torch._C._functorch._grad_decrement_nesting()


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("made", [in_a_transform, lambda g: torch._efficientzerotensor(g.shape)])
def test_gradients_without_memory_are_left_to_torch(
    made: Callable[[Tensor], Tensor], before: int
) -> None:
    fused, loop = twins("SGD", shapes=((6,), (4,)))
    for _ in range(before):
        step(fused, loop)
    give(fused, loop)
    for optimizer in (fused, loop):
        param = params_of(optimizer)[0]
        assert param.grad is not None
        param.grad = made(param.grad)
    with pytest.warns(UserWarning, match="no fused kernel for tensors without memory"):
        fused.step()
    loop.step()
    assert_twins(fused, loop)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer")
def test_slots_without_memory_are_refused() -> None:
    fused, _ = twins("SGD")
    give(fused)
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        pytest.raises(RuntimeError, match="momentum_buffer has no memory"),
    ):
        fused.step()
    give(fused)
    fused.step()


def test_a_gradient_that_wraps_another_is_seen_to() -> None:
    """Its sizes, strides and dtype are those of the one before."""
    fused, loop = twins("Adam", shapes=((6,), (3,)))
    step(fused, loop)
    watch = plan(fused).calls.watch
    for wrapped, expected in ((False, _watch.SAME), (True, _watch.OTHER_GRADIENTS)):
        give(fused)
        param = params_of(fused)[0]
        assert param.grad is not None
        param.grad = Wrapper(param.grad) if wrapped else param.grad
        assert watch.look(fused.state) == expected
        watch.leave(changed=False)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", ["Adam", "NAdam", "ASGD", "SGD", "LAMB"])
def test_any_gradients_may_be_missing_in_any_step(name: str, share: float) -> None:
    """Each parameter has its own number of steps then, and calls stay what they are."""
    shapes = ((5,), (64, 3), (0,), (70_000,), (), (0,), (33,), (7,), (1030,))
    draw = random.Random(f"{name} {share}")
    fused, loop = twins(name, shapes)
    step(fused, loop)
    step(fused, loop)
    calls = plan(fused).calls
    for _ in range(12):
        step(fused, loop, missing=tuple(i for i in range(len(shapes)) if draw.random() < share))
        assert plan(fused).calls is calls


@pytest.mark.usefixtures("ways")
def test_gradients_are_let_go_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by a step that fails, and by one that is skipped."""
    fused, loop = twins("Adam")
    step(fused, loop)
    (batch,) = plan(fused).calls.batches

    def fails(arguments: Any) -> None:
        raise KeyboardInterrupt

    for reason in ("fails", "skips", "other layout", "sparse"):
        give(fused)
        if reason == "other layout":
            params_of(fused)[1].grad = torch.randn(3, 64).t()
        if reason == "sparse":
            params_of(fused)[0].grad = torch.eye(5)[0].to_sparse()
        grads = [weakref.ref(p.grad) for p in params_of(fused)]
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt, RuntimeError):
            if reason == "fails":
                patch.setattr(batch, "function", fails)
            if reason == "skips":
                patch.setattr(fused, "grad_scale", torch.tensor(1.0), raising=False)
                patch.setattr(fused, "found_inf", torch.tensor(1.0), raising=False)
            fused.step()
        fused.zero_grad()
        gc.collect()
        assert not any(grad() is not None for grad in grads), reason


@pytest.mark.usefixtures("ways")
def test_versions_count_steps_of_parameters_that_have_changed() -> None:
    fused, loop = twins("Adam")
    for missing in ((), (1,), (0, 2)):
        before = [p._version for p in params_of(fused)]
        step(fused, loop, missing)
        steps = [p._version - old for p, old in zip(params_of(fused), before, strict=True)]
        assert steps == [int(i not in missing) for i in range(len(steps))]
    # One that is skipped changes none, nor does a look that finds a gradient laid out otherwise.
    before = [p._version for p in params_of(fused)]
    for grad in (torch.randn(64, 3), torch.randn(3, 64).t()):
        give(fused)
        params_of(fused)[1].grad = grad
        fused.grad_scale, fused.found_inf = torch.tensor(1.0), torch.tensor(1.0)
        fused.step()
    assert [p._version for p in params_of(fused)] == before


@pytest.mark.usefixtures("ways")
def test_gradients_live_until_the_kernel_has_read_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs without Python's lock: others may take them from their parameters, and the memory."""
    fused, loop = twins("Adam", shapes=((100_000,), (50, 40)))
    step(fused, loop)
    (batch,) = plan(fused).calls.batches
    kernel = batch.function
    filled = []

    def after_others(arguments: Any) -> None:
        fused.zero_grad()
        filled.extend(torch.full_like(param, 1e30) for param in params_of(fused))
        kernel(arguments)

    monkeypatch.setattr(batch, "function", after_others)
    step(fused, loop)
    assert len(filled) == 2


def test_c_looks_where_it_can() -> None:
    """Otherwise the tests of its ways test nothing."""
    fused, loop = twins("Adam")
    step(fused, loop)
    assert type(plan(fused).calls.watch) is not _watch.Watch, "torch has taken something away"


def test_a_place_that_is_not_found_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another torch may lay out tensors in another way: Python looks then."""
    for attribute in ("_dispatch_keys", "_aoti"):
        with monkeypatch.context() as patch:
            patch.delattr(torch._C, attribute)
            with pytest.raises((AttributeError, LookupError)):
                _watch._asked()
    with monkeypatch.context() as patch:
        patch.setattr(_watch, "_TORCH", (*_watch._TORCH, "aoti_torch_that_is_not_there"))
        with pytest.raises(AttributeError):
            _watch._asked()
    with pytest.raises(LookupError):
        _watch._place([id(torch.zeros(1))], [1], 32)


def test_functions_that_give_something_else_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their names may stay when what they take, or what they find, is another thing."""
    handle, other = torch._C._aoti.unsafe_alloc_void_ptr_from_tensor, torch.zeros(1)
    with monkeypatch.context() as patch:
        patch.setattr(torch._C._aoti, handle.__name__, lambda tensor: handle(other))
        with pytest.raises(LookupError):
            _watch._asked()
    library, nothing = ctypes.CDLL, ctypes.c_uint64(0)

    class Another:
        def __init__(self, path: str) -> None:
            self._library = library(path)
            find = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
            self._ZNK3c1010TensorImpl4gradEv = find(lambda tensor: ctypes.addressof(nothing))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._library, name)

    with monkeypatch.context() as patch:
        patch.setattr(ctypes, "CDLL", Another)
        with pytest.raises(LookupError):
            _watch._asked()


def test_c_does_not_look_where_others_may_change_what_it_borrows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    assert _watch.prepared.__wrapped__() is None


# Without the short ways


@pytest.mark.usefixtures("ways")
def test_steps_need_no_short_ways() -> None:
    fused, loop = twins("AdamW", shapes=((8, 8), (5,), ()))
    for event in (swapped, refilled, reversed_in_memory, moved):
        step(fused, loop)
        for optimizer in (fused, loop):
            event(params_of(optimizer)[0])
            event(optimizer.state[params_of(optimizer)[1]]["exp_avg"])
    step(fused, loop)


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize(
    ("other", "is_like"),
    [
        (lambda: torch.zeros(4, 4), True),
        (lambda: torch.ones(8, 8)[:4, :4].contiguous(), True),
        (lambda: torch.zeros(4, 4).double(), False),
        (lambda: torch.zeros(4, 4).t(), False),
        (lambda: torch.zeros(16), False),
        (lambda: torch.zeros(4, 1).expand(4, 4), False),
        (lambda: torch._neg_view(torch.zeros(4, 4)), False),
        (lambda: torch.zeros(4, 4).to_sparse(), False),
        (lambda: torch.zeros(4, 4, device="meta"), False),
        (lambda: nn.Parameter(torch.zeros(4, 4)), False),
        (lambda: None, False),
        (lambda: 1.0, False),
    ],
)
def test_tensors_are_told_apart_by_what_a_kernel_depends_on(
    other: Callable[[], Any], is_like: bool
) -> None:
    are_like = _watch.likeness_test([torch.zeros(4, 4), torch.zeros(3)])
    assert are_like(other(), torch.zeros(3)) == is_like
    assert are_like(torch.zeros(4, 4), torch.ones(3))


def test_no_tensors_are_like_no_tensors() -> None:
    assert _watch.likeness_test([])()


def test_a_tensor_that_comes_twice_is_like_itself() -> None:
    tensor = torch.zeros(3)
    are_like = _watch.likeness_test([tensor, tensor])
    assert are_like(tensor, tensor)
    assert not are_like(tensor, torch.zeros(4))


# Checkpoints and copies


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_is_that_of_the_other_paths(name: str) -> None:
    """In keys, dtypes, shapes and devices, and in values but for rounding."""
    fused, loop = twins(name)
    for _ in range(2):
        step(fused, loop)
    mine, its = fused.state_dict(), loop.state_dict()
    assert [*mine] == [*its]
    flags = ("fused", "foreach")
    for ours, theirs in zip(mine["param_groups"], its["param_groups"], strict=True):
        assert {k: v for k, v in ours.items() if k not in flags} == {
            k: v for k, v in theirs.items() if k not in flags
        }
    assert mine["state"].keys() == its["state"].keys()
    for key, state in mine["state"].items():
        assert [*state] == [*its["state"][key]]
        for name_, value in state.items():
            other = its["state"][key][name_]
            assert (value.dtype, value.shape, value.device) == (
                other.dtype, other.shape, other.device,
            )  # fmt: skip


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "Adagrad"])
def test_checkpoints_go_to_torchs_fused_optimizer_and_back(name: str) -> None:
    """Bit for bit: the tensors have no tails that torch rounds otherwise."""
    params = [torch.randn(64), torch.randn(16, 4)]
    copies = [p.clone() for p in params]
    ours = getattr(generated, name)(params, lr=0.01, fused=True)
    theirs = getattr(torch.optim, name)(copies, lr=0.01, fused=True)
    for _ in range(2):
        for optimizer, other in ((ours, theirs), (theirs, ours)):
            give(ours, theirs)
            ours.step()
            theirs.step()
            for param, its in zip(params, copies, strict=True):
                assert torch.equal(param, its)
            buffer = io.BytesIO()
            torch.save(optimizer.state_dict(), buffer)
            buffer.seek(0)
            other.load_state_dict(torch.load(buffer, weights_only=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_continues_where_it_was_saved(name: str) -> None:
    fused, loop = twins(name)
    step(fused, loop)
    saved = copy.deepcopy(fused.state_dict())
    kept = [p.clone() for p in params_of(fused)]
    give(fused)
    fused.step()
    fused.load_state_dict(saved)
    for param, value in zip(params_of(fused), kept, strict=True):
        param.data.copy_(value)
    step(fused, loop)


def test_a_checkpoint_without_slots_brings_its_hyperparameters() -> None:
    fused, loop = twins("SGD", momentum=0, dampening=0)
    saved = copy.deepcopy(fused.state_dict())
    saved["param_groups"][0]["lr"] = 0.5
    for _ in range(2):
        step(fused, loop)
        fused.load_state_dict(saved)
        loop.load_state_dict(saved)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))]
)
def test_copies_go_their_own_ways(copied: Callable[[Any], Any]) -> None:
    fused, loop = twins("Adam")
    step(fused, loop)
    before = snapshot(fused)
    other, its = copied(fused), copied(loop)
    step(other, its)
    step(other, its)
    for value, now in zip(before, snapshot(fused), strict=True):
        assert torch.equal(value, now)
    step(fused, loop)
    assert plan(other) is not plan(fused)


def test_an_optimizer_may_be_given_another_state() -> None:
    fused, loop = twins("Adam")
    step(fused, loop)
    for optimizer in (fused, loop):
        optimizer.__setstate__({"state": optimizer.state, "param_groups": optimizer.param_groups})
    step(fused, loop)


def test_an_optimizer_that_is_gone_leaves_nothing() -> None:
    fused, loop = twins("Adam")
    step(fused, loop)
    gone = weakref.ref(fused)
    slot = weakref.ref(fused.state[params_of(fused)[0]]["exp_avg"])
    del fused
    gc.collect()
    assert gone() is None
    assert slot() is None


def test_shared_memory_stays_shared() -> None:
    fused, loop = twins("Adam")
    step(fused, loop)
    for param in params_of(fused):
        param.share_memory_()
    fused.share_memory()
    seen = [v.data_ptr() for s in fused.state.values() for v in s.values()]
    for missing in ((), (1,), ()):
        step(fused, loop, missing)
    values = [v for s in fused.state.values() for v in s.values()]
    assert [v.data_ptr() for v in values] == seen
    assert all(v.is_shared() for v in values if v.numel())
    # Somebody else takes a step.
    for optimizer in (fused, loop):
        for state in optimizer.state.values():
            state["step"] += 1
    step(fused, loop)


def test_numbers_that_lie_apart_in_shared_memory_stay_where_they_are() -> None:
    fused, loop = twins("Adam")
    step(fused, loop)
    numbers = [torch.tensor(1.0).share_memory_() for _ in SHAPES]
    addresses = [number.data_ptr() for number in numbers]
    for param, number in zip(params_of(fused), numbers, strict=True):
        fused.state[param]["step"] = number
    for missing in ((), (1,), ()):
        step(fused, loop, missing)
    assert [state["step"].data_ptr() for state in fused.state.values()] == addresses


# Loss scaling


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_unscaled_in_the_kernel(name: str) -> None:
    fused, loop = twins(name)
    for scale in (1024.0, 3.0, 1.0):
        for optimizer in (fused, loop):
            optimizer.param_groups[0]["maximize"] = scale == 3.0
        give(fused, loop)
        for param in params_of(fused):
            param.grad.mul_(scale)
        fused.grad_scale, fused.found_inf = torch.tensor(scale), torch.tensor(0.0)
        grads = [p.grad.clone() for p in params_of(fused)]
        fused.step()
        del fused.grad_scale, fused.found_inf
        loop.step()
        assert_twins(fused, loop)
        # Unlike torch's kernels, ours leave the gradients scaled.
        assert all(torch.equal(p.grad, g) for p, g in zip(params_of(fused), grads, strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("first", [True, False])
def test_infinite_gradients_change_nothing_and_the_step_does_not_count(
    name: str, first: bool
) -> None:
    fused, loop = twins(name)
    if not first:
        step(fused, loop)
    before = snapshot(fused)
    give(fused)
    params_of(fused)[0].grad[0] = torch.inf
    fused.grad_scale, fused.found_inf = torch.tensor(1024.0), torch.tensor(1.0)
    fused.step()
    # A first step leaves slots behind, with their first values.
    for old, new in zip(before, snapshot(fused), strict=not first):
        assert torch.equal(old, new)
    # The next step is the one that would have been.
    fused.grad_scale, fused.found_inf = torch.tensor(1.0), torch.tensor(0.0)
    step(fused, loop)


def test_a_scaler_drives_the_fused_step() -> None:
    params = [nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(7))]
    copies = [nn.Parameter(p.detach().clone()) for p in params]
    fused, loop = make("Adam", params, fused=True), make("Adam", copies, foreach=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0, growth_interval=2)
    for factor in (1.0, torch.inf, 2.0, -1.0, torch.nan, 3.0):
        for optimizer in (fused, loop):
            optimizer.zero_grad()
            loss = factor * sum((p * p).sum() for p in params_of(optimizer))
            (scaler.scale(loss) if optimizer is fused else loss).backward()
        scaler.step(fused)
        scaler.update()
        if abs(factor) < torch.inf:
            loop.step()
        assert_twins(fused, loop)
    assert fused.state[params[0]]["step"] == 4


def test_gradients_that_the_user_has_unscaled_are_not_unscaled_again() -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer = make("SGD", [param], fused=True, lr=1.0, momentum=0, dampening=0)
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    scaler.scale((param * torch.arange(3.0)).sum()).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_([param], 1.0)
    scaler.step(optimizer)
    expected = 1 - torch.arange(3.0) / 5**0.5
    torch.testing.assert_close(param.detach(), expected)


def supports_scaling(optimizer: Any) -> bool:
    return bool(optimizer._step_supports_amp_scaling)


@pytest.mark.filterwarnings("ignore:There is no fused kernel")
def test_a_scaler_is_told_what_the_step_does_itself() -> None:
    def one() -> Tensor:
        return torch.ones(3)

    assert supports_scaling(make("Adam", [one()], fused=True))
    assert not supports_scaling(make("Adam", [one()]))
    assert not supports_scaling(make("Adam", [one()], foreach=True))
    assert not supports_scaling(generated.Muon([torch.ones(2, 2)], fused=True))
    optimizer = make("Adam", [{"params": [one()]}, {"params": [one()], "fused": True}])
    assert supports_scaling(optimizer)
    optimizer.param_groups[1]["fused"] = False
    assert not supports_scaling(optimizer)
    generated.set_default(fused=True)
    assert supports_scaling(optimizer)  # its first group leaves it open
    optimizer.param_groups[0]["foreach"] = True
    assert not supports_scaling(optimizer)
    assert supports_scaling(make("Adam", [one()]))
    assert supports_scaling(copy.deepcopy(make("Adam", [one()])))


@pytest.mark.filterwarnings("ignore:There is no fused kernel")
def test_a_scaler_is_told_of_the_groups_that_want_kernels_now() -> None:
    groups = [{"params": [Wrapper(torch.ones(3))]}, {"params": [torch.ones(3)], "fused": False}]
    optimizer = make("SGD", groups, fused=True)
    for _ in range(2):
        assert not supports_scaling(optimizer)
        for param in params_of(optimizer):
            param.grad = param.detach().clone()
        optimizer.step()
    optimizer.param_groups[1]["fused"] = True
    assert supports_scaling(optimizer)


# Steps of all kinds


def test_closures_hooks_and_the_profiler_see_a_step() -> None:
    fused, loop = twins("Adam")
    calls: list[str] = []
    fused.register_step_pre_hook(lambda *given: calls.append("before"))
    fused.register_step_post_hook(lambda *given: calls.append("after"))

    def closure() -> Tensor:
        calls.append("closure")
        assert torch.is_grad_enabled()
        return torch.tensor(4.0)

    give(fused, loop)
    with torch.profiler.profile() as profile:
        assert fused.step(closure) == 4.0
    loop.step()
    assert_twins(fused, loop)
    assert calls == ["before", "closure", "after"]
    assert any("Optimizer.step#Adam.step" in event.key for event in profile.key_averages())


def test_capturable_is_taken_on_the_cpu_as_torchs_fused_step_takes_it() -> None:
    params = [torch.randn(64), torch.randn(16)]
    copies = [p.clone() for p in params]
    ours = generated.Adam(params, fused=True, capturable=True, lr=torch.tensor(0.01))
    theirs = torch.optim.Adam(copies, fused=True, capturable=True, lr=torch.tensor(0.01))
    for _ in range(3):
        give(ours, theirs)
        ours.step()
        theirs.step()
        for param, other in zip(params, copies, strict=True):
            assert torch.equal(param, other)
            assert ours.state[param]["step"].device == theirs.state[other]["step"].device


@pytest.mark.parametrize("begun", ["inside", "outside"])
def test_a_step_in_inference_mode_is_a_step(begun: str) -> None:
    fused, loop = twins("Adam")
    if begun == "outside":
        step(fused, loop)
    for _ in range(2):
        with torch.inference_mode():
            give(fused, loop)
            fused.step()
            loop.step()
        assert_twins(fused, loop)
    for param, other in zip(params_of(fused), params_of(loop), strict=True):
        param.grad, other.grad = torch.ones_like(param), torch.ones_like(other)
    fused.step()
    if begun == "outside":  # a for-loop cannot write to state that was made in inference mode
        loop.step()
        assert_twins(fused, loop)


@pytest.mark.usefixtures("ways")
def test_parameters_of_inference_mode_are_updated() -> None:
    with torch.inference_mode():
        params = [torch.randn(5), torch.randn(3)]
        copies = [p.clone() for p in params]
    fused, loop = make("Adam", params, fused=True), make("Adam", copies, foreach=False)
    for _ in range(2):
        with torch.inference_mode():
            give(fused, loop)
            fused.step()
            loop.step()
            assert_twins(fused, loop)
    # They count no versions, so nothing keeps a step outside from them.
    before = snapshot(fused)
    fused.step()
    assert not any(map(torch.equal, params_of(fused), before))


def test_a_compiled_step_runs_the_kernels() -> None:
    fused, loop = twins("Adam")
    compiled = torch.compile(fused.step, backend="eager")
    for _ in range(3):
        give(fused, loop)
        before = _batch.launches
        compiled()
        assert _batch.launches == before + 1
        loop.step()
        assert_twins(fused, loop)


def test_autograd_notices_that_parameters_have_changed() -> None:
    """As it does after a step of torch: a graph that has saved them is of no use."""
    param = nn.Parameter(torch.randn(4))
    optimizer = make("SGD", [param], fused=True)
    for _ in range(2):
        loss = (param * param * param).sum()
        loss.backward(retain_graph=True)
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_numbers_have_32_bits_whatever_the_default_is() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        fused, loop = twins("Adam")
        for _ in range(3):
            give(fused, loop)
            fused.step()
            loop.step()
            for param, other in zip(params_of(fused), params_of(loop), strict=True):
                torch.testing.assert_close(param, other)
                assert fused.state[param]["step"].dtype is torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_path_may_be_changed_between_steps() -> None:
    fused, loop = twins("NAdam")
    for flags in ({}, {"fused": False}, {"foreach": True, "fused": None}, {"foreach": None}):
        fused.param_groups[0].update(flags)
        step(fused, loop)
        step(fused, loop)
    fused.param_groups[0]["fused"] = True
    step(fused, loop, calls=1)


# What has no kernel


def test_complex_parameters_are_refused_as_torch_refuses_them() -> None:
    param = torch.randn(4, dtype=torch.complex64)
    param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match="requires all the params to be floating point Tensors"):
        make("Adam", [param], fused=True).step()


class Wrapper(torch.Tensor):
    """A tensor that has another one inside."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapper:
        made: Wrapper = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, dtype=inner.dtype, device=inner.device
        )
        made.inner = inner
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: Any, *given: Any) -> Wrapper:
        return Wrapper(inner["inner"])

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given: list[Any] = []

        def unwrap(value: Any) -> Any:
            if isinstance(value, Wrapper):
                given.append(value)
                return value.inner
            return value

        result = function(*map(unwrap, args), **{k: unwrap(v) for k, v in (kwargs or {}).items()})
        if given and result is given[0].inner:
            return given[0]
        return Wrapper(result) if isinstance(result, Tensor) else result


def test_tensors_that_wrap_others_are_left_to_torch() -> None:
    plain = torch.randn(6)
    param, copied = Wrapper(plain), plain.clone()
    fused = make("SGD", [param], fused=True)
    loop = make("SGD", [copied], foreach=False)
    for number in range(3):
        grad = torch.randn(6)
        param.grad, copied.grad = Wrapper(grad.clone()), grad
        if number == 0:
            with pytest.warns(UserWarning, match="no fused kernel for tensors that wrap others"):
                fused.step()
        else:
            fused.step()
        loop.step()
        assert torch.equal(param.inner, copied)


# All optimizers at once


def test_a_default_takes_kernels_wherever_there_are_some() -> None:
    def calls(name: str, param: Tensor, **flags: Any) -> int:
        param.grad = torch.ones_like(param)
        before = _batch.launches
        getattr(generated, name)([param], **flags).step()
        return _batch.launches - before

    assert calls("Adam", torch.ones(3)) == 0
    generated.set_default(fused=True)
    assert calls("Adam", torch.ones(3)) == 1
    assert calls("SGD", torch.ones(3), fused=None) == 1
    assert calls("Adam", torch.ones(3), foreach=False) == 0
    assert calls("Adam", torch.ones(3), foreach=True) == 0
    assert calls("Adam", torch.ones(3), fused=False) == 0
    assert calls("Adam", torch.ones(3), differentiable=True) == 0
    # Without a word: nobody has asked for it here.
    assert calls("Muon", torch.ones(3, 3)) == 0
    assert calls("Adam", torch.ones(3, dtype=torch.complex64)) == 0
    for fused in (None, False):
        generated.set_default(fused=fused)
        assert calls("Adam", torch.ones(3)) == 0


def test_a_default_changes_neither_groups_nor_checkpoints() -> None:
    fused, loop = (make("AdamW", [p]) for p in (torch.ones(9), torch.ones(9)))
    for _ in range(2):
        give(fused, loop)
        generated.set_default(fused=True)
        fused.step()
        generated.set_default(fused=None)
        loop.step()
        assert_twins(fused, loop)
    assert fused.param_groups[0]["fused"] is None
    assert fused.state_dict()["param_groups"] == loop.state_dict()["param_groups"]
    assert fused.state_dict()["state"][0]["step"].dtype is torch.float32


# Averages


AVERAGES: dict[str, Callable[[], Any]] = {
    "SWA": swa_utils.SWA,
    "EMA": lambda: swa_utils.EMA(0.9),
    "EMA, corrected": lambda: swa_utils.EMA(0.8, bias_correction=True),
    "EMA, by a function": lambda: swa_utils.EMA(lambda n: 0.5 + 0.25 / n),
    "RampEMA": lambda: swa_utils.RampEMA(0.25),
    "PowerEMA": lambda: swa_utils.PowerEMA(6.94),
    "WarmupEMA": lambda: swa_utils.WarmupEMA(0.7, min_decay=0.4),
}


class Model(nn.Module):
    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()
        self.params = nn.ParameterList(nn.Parameter(t.clone()) for t in tensors)

    def move(self) -> None:
        for param in self.params:
            param.data.copy_(torch.randn(param.shape, dtype=torch.float64))


def tensors_of(dtype: torch.dtype) -> list[Tensor]:
    turned = torch.randn(5, 3).to(dtype).t()
    return [*(torch.randn(shape).to(dtype) for shape in SHAPES), turned, padded(turned)]


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_averages_by_kernels_are_those_of_the_for_loop(average: str, dtype: torch.dtype) -> None:
    model = Model(tensors_of(dtype))
    fused = swa_utils.AveragedModel(model, average=AVERAGES[average](), fused=True)
    loop = swa_utils.AveragedModel(model, average=AVERAGES[average](), foreach=False)
    narrow = dtype.itemsize == 2
    for number in range(5):
        model.move()
        before = _batch.launches
        fused.update_parameters(model)
        loop.update_parameters(model)
        # A function is for later models, the first one is copied without it.
        assert _batch.launches - before == (0 if number == 0 and "function" in average else 1)
        for mine, its in zip(fused.module.parameters(), loop.module.parameters(), strict=True):
            tolerance = 2e-2 if narrow else 1e-6
            torch.testing.assert_close(mine, its, rtol=tolerance, atol=tolerance)
    assert fused.n_averaged == 5


def test_averages_and_models_may_be_given_other_memory() -> None:
    model = Model(tensors_of(torch.float32))
    fused = swa_utils.AveragedModel(model, average=swa_utils.EMA(0.9), fused=True)
    loop = swa_utils.AveragedModel(model, average=swa_utils.EMA(0.9), foreach=False)
    for change in (moved, swapped, reversed_in_memory, refilled, moved):
        for each in (fused.module, loop.module, model):
            change(each.params[1])
        model.move()
        fused.update_parameters(model)
        loop.update_parameters(model)
        for mine, its in zip(fused.module.parameters(), loop.module.parameters(), strict=True):
            torch.testing.assert_close(mine, its, check_stride=False)


# The package in a process of its own


def test_a_first_step_imports_neither_numpy_nor_triton() -> None:
    root = resources.checkout()
    assert root is not None
    code = """
        import sys
        sys.modules["numpy"] = sys.modules["triton"] = None
        import torch, generated
        from generated._fused import _batch
        param = torch.ones(3)
        param.grad = torch.ones(3)
        generated.AdamW([param], fused=True).step()
        print(_batch.launches)
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
