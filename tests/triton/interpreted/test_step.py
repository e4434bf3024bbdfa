"""What the fused step does around the kernel: tables, state, missing gradients, loss scaling."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import oracle
import power
import pytest
import torch
from torch import Tensor

import generated
from generated import _fused
from generated._fused import _batch, _triton
from generated._optimizer import Optimizer

SIZES = (5, 64, 1030)
# Every slot exists, and a step changes every one.
OPTIONS: dict[str, dict[str, Any]] = {
    "Adadelta": {"lr": 1.0, "eps": 1e-3, "weight_decay": 0.125},
    "ASGD": {"t0": 1, "lambd": 0.5, "weight_decay": 0.125},
    "NAdam": {"momentum_decay": 0.25, "weight_decay": 0.125},
    "RAdam": {"betas": (0.9, 0.99), "weight_decay": 0.125},
    "Adam": {"amsgrad": True, "weight_decay": 0.125},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "SGD": {"momentum": 0.9, "dampening": 0.25},
}


def make(name: str, params: list[Any], **options: Any) -> Any:
    return getattr(generated, name)(params, **{"lr": 0.01, **OPTIONS.get(name, {}), **options})


def twins(name: str, shapes: Any = SIZES, **options: Any) -> tuple[Any, Any]:
    """The same optimizer twice, fused and as the for-loop, on equal parameters."""
    torch.manual_seed(1)
    params = [torch.randn(shape) for shape in shapes]
    copies = [param.clone() for param in params]
    return make(name, params, fused=True, **options), make(name, copies, foreach=False, **options)


def params_of(optimizer: Any) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def give_same_gradients(*optimizers: Any, missing: tuple[int, ...] = ()) -> None:
    for index, same in enumerate(zip(*map(params_of, optimizers), strict=True)):
        grad = torch.randn(same[0].shape)
        for param in same:
            param.grad = None if index in missing else grad.clone()


def assert_twins(fused: Any, loop: Any) -> None:
    """Equal but for rounding, which `test_values.py` bounds: a mistake is as large as a step."""
    for param, other in zip(params_of(fused), params_of(loop), strict=True):
        torch.testing.assert_close(param, other, rtol=1e-4, atol=1e-5)
        mine, its = fused.state[param], loop.state[other]
        assert set(mine) == set(its)
        for key in mine:
            torch.testing.assert_close(mine[key], its[key], rtol=1e-4, atol=1e-5)


def snapshot(optimizer: Any) -> list[Tensor]:
    """The parameters, then what there is of their state."""
    values = [p.clone() for p in params_of(optimizer)]
    for param in params_of(optimizer):
        values += [v.clone() for v in optimizer.state.get(param, {}).values()]
    return values


def plan_of(optimizer: Any) -> Any:
    """The plan of the last step."""
    plan = _fused.plan_of(optimizer)
    assert plan is not None
    return plan


def launches_of(optimizer: Any) -> int:
    before = _batch.launches
    optimizer.step()
    return _batch.launches - before


# Launches and tables


def test_groups_with_different_numbers_share_a_launch() -> None:
    params = [torch.randn(n) for n in SIZES]
    groups = [
        {"params": [p], "lr": 0.01 * (i + 1), "weight_decay": i} for i, p in enumerate(params)
    ]
    optimizer = make("Adam", groups, fused=True)
    oracle.give_gradients(params)
    assert launches_of(optimizer) == 1


def test_the_table_has_a_row_per_group_and_number_of_steps() -> None:
    params = [torch.randn(n) for n in (3, 4, 5, 6)]
    optimizer = make("Adam", [{"params": params[:2]}, {"params": params[2:]}], fused=True)
    for missing, rows in (((3,), 2), ((), 3), ((), 3)):
        give_same_gradients(optimizer, missing=missing)
        optimizer.step()
        (batch,) = plan_of(optimizer).calls.batches
        assert len(batch.table) == rows


def test_options_and_dtypes_split_launches() -> None:
    params = [torch.randn(8), torch.randn(8), torch.randn(8).bfloat16()]
    groups = [{"params": params[:1]}, {"params": params[1:], "amsgrad": False}]
    optimizer = make("Adam", groups, fused=True)
    oracle.give_gradients(params)
    assert launches_of(optimizer) == 3


def test_nothing_to_do_launches_nothing() -> None:
    optimizer = make("Adam", [torch.randn(8)], fused=True)
    assert launches_of(optimizer) == 0
    assert not optimizer.state


def test_a_step_with_the_same_addresses_and_numbers_uploads_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    optimizer = make("Lion", [torch.randn(8)], fused=True)
    oracle.give_gradients(params_of(optimizer))
    optimizer.step()
    uploads = []
    monkeypatch.setattr(_triton, "_upload", lambda *given: uploads.append(given))
    optimizer.step()
    assert not uploads
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.step()
    assert len(uploads) == 1


@pytest.mark.parametrize("name", oracle.NAMES)
@pytest.mark.parametrize("capturable", [False, True])
def test_steps_follow_the_for_loop(name: str, capturable: bool) -> None:
    fused, loop = twins(name)
    fused.param_groups[0]["capturable"] = capturable
    for step in range(oracle.STEPS[name]):
        # New addresses each time, at times none.
        give_same_gradients(fused, loop, missing=((0,), (), (1, 2), ())[step % 4])
        fused.step()
        loop.step()
        assert_twins(fused, loop)


@pytest.mark.parametrize("name", oracle.NAMES)
def test_schedules_and_switched_hyperparameters_take_effect(name: str) -> None:
    fused, loop = twins(name)
    for changes in ({}, {"lr": 0.1}, {"weight_decay": 0.5}, {"maximize": True}, {"momentum": 0}):
        for optimizer in (fused, loop):
            group = optimizer.param_groups[0]
            group.update((k, v) for k, v in changes.items() if k in group)
        give_same_gradients(fused, loop)
        fused.step()
        loop.step()
        assert_twins(fused, loop)


def test_momentum_switched_on_later_begins_with_the_gradient() -> None:
    fused, loop = twins("SGD", momentum=0, dampening=0)
    for momentum in (0, 0.9, 0.9):
        fused.param_groups[0]["momentum"] = loop.param_groups[0]["momentum"] = momentum
        give_same_gradients(fused, loop)
        fused.step()
        loop.step()
        assert_twins(fused, loop)


@pytest.mark.parametrize("capturable", [False, True])
def test_a_tensor_as_learning_rate_is_read_in_each_step(capturable: bool) -> None:
    fused, loop = twins("Adam", lr=torch.tensor(0.01))
    fused.param_groups[0]["capturable"] = capturable
    for value in (0.01, 0.1):
        for optimizer in (fused, loop):
            optimizer.param_groups[0]["lr"].fill_(value)
        give_same_gradients(fused, loop)
        fused.step()
        loop.step()
        assert_twins(fused, loop)


# State


def test_state_may_be_changed_between_steps() -> None:
    fused, loop = twins("Adam")
    give_same_gradients(fused, loop)
    fused.step()
    loop.step()
    for optimizer in (fused, loop):
        state = optimizer.state[params_of(optimizer)[1]]
        state["step"].fill_(100)
        state["exp_avg"] = torch.ones(64)
        params_of(optimizer)[2].data = torch.full((1030,), 2.0)
    give_same_gradients(fused, loop)
    fused.step()
    loop.step()
    assert_twins(fused, loop)


@pytest.mark.parametrize("name", oracle.NAMES)
def test_a_checkpoint_continues_where_it_was_saved(name: str) -> None:
    fused, loop = twins(name)
    give_same_gradients(fused, loop)
    fused.step()
    loop.step()
    saved = copy.deepcopy(fused.state_dict())
    give_same_gradients(fused)
    fused.step()
    fused.load_state_dict(saved)
    for param, other in zip(params_of(fused), params_of(loop), strict=True):
        param.data.copy_(other)
    give_same_gradients(fused, loop)
    fused.step()
    loop.step()
    assert_twins(fused, loop)


def test_scalar_slots_with_values_of_their_own_may_be_changed_between_steps() -> None:
    """eta is read before its change, mu_product after it."""
    for name, slot in (("ASGD", "eta"), ("NAdam", "mu_product")):
        fused, loop = twins(name)
        for value in (0.25, 0.5):
            give_same_gradients(fused, loop)
            fused.step()
            loop.step()
            for optimizer in (fused, loop):
                for param in params_of(optimizer)[1:]:
                    optimizer.state[param][slot].fill_(value)
            give_same_gradients(fused, loop)
            fused.step()
            loop.step()
            assert_twins(fused, loop)
            assert fused.state[params_of(fused)[0]][slot].dtype is torch.float32


def test_a_slot_that_begins_as_the_learning_rate_is_not_that_tensor() -> None:
    lr = torch.tensor(0.25)
    optimizer = make("ASGD", [torch.ones(3)], fused=True, lr=lr)
    for _ in range(3):
        give_same_gradients(optimizer)
        optimizer.step()
    (param,) = params_of(optimizer)
    assert lr == 0.25
    assert optimizer.state[param]["eta"] < 0.25


def test_a_checkpoint_without_slots_brings_its_hyperparameters() -> None:
    fused, loop = twins("SGD", momentum=0, dampening=0)
    saved = copy.deepcopy(fused.state_dict())
    saved["param_groups"][0]["lr"] = 0.5
    for _ in range(2):
        give_same_gradients(fused, loop)
        fused.step()
        loop.step()
        assert_twins(fused, loop)
        fused.load_state_dict(saved)
        loop.load_state_dict(saved)


def test_a_parameter_may_shrink_in_place() -> None:
    fused, loop = twins("SGD", shapes=(2000,), momentum=0, dampening=0)
    give_same_gradients(fused, loop)
    fused.step()
    loop.step()
    (param,), (other,) = params_of(fused), params_of(loop)
    whole = param.data.clone()
    param.grad = other.grad = None
    kept = param.data
    param.data, other.data = param.data[:100], other.data[:100]
    give_same_gradients(fused, loop)
    fused.step()
    loop.step()
    assert_twins(fused, loop)
    assert torch.equal(kept[100:], whole[100:])


def test_wide_slots_of_narrow_parameters_stay_wide() -> None:
    params = [torch.randn(n).bfloat16() for n in SIZES]
    optimizer = make("Adam", params, fused=True)
    for param in params:
        optimizer.state[param] = {
            "step": torch.tensor(0.0),
            **{
                key: torch.zeros(param.shape) for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
            },
        }
    for _ in range(3):
        oracle.give_gradients(params)
        worst = oracle.step_and_compare("Adam", optimizer)
        assert worst.pop(("param", torch.bfloat16)) <= 1
        assert max(worst.values()) <= 4
    assert optimizer.state[params[0]]["exp_avg"].dtype is torch.float32


def test_an_empty_parameter_advances_with_the_others() -> None:
    fused, loop = twins("Adam", shapes=(0, 3))
    give_same_gradients(fused, loop)
    fused.step()
    loop.step()
    assert_twins(fused, loop)


# Layouts


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


LAYOUTS = {
    "transposed": lambda: torch.randn(6, 9).t(),
    "channels last": lambda: channels_last(torch.randn(2, 3, 4, 5)),
    "strided": lambda: torch.randn(10, 8)[:, ::2],
    "expanded channel": lambda: channels_last(torch.randn(4, 1, 3, 3)),
    "zero-dimensional": lambda: torch.randn(()),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("contiguous_grads", [False, True])
def test_every_memory_layout_is_updated(layout: str, contiguous_grads: bool) -> None:
    torch.manual_seed(3)
    param = LAYOUTS[layout]()
    strides = param.stride()
    fused = make("Adam", [param], fused=True)
    loop = make("Adam", [param.clone()], foreach=False)
    for _ in range(3):
        give_same_gradients(fused, loop)
        if not contiguous_grads:
            param.grad = torch.empty_like(param).copy_(params_of(loop)[0].grad)
        fused.step()
        loop.step()
        assert_twins(fused, loop)
    assert param.stride() == strides


def test_a_slot_in_another_layout_is_laid_out_anew() -> None:
    fused, loop = twins("Adam", shapes=((4, 6),))
    for _ in range(2):
        give_same_gradients(fused, loop)
        fused.step()
        loop.step()
        state = fused.state[params_of(fused)[0]]
        state["exp_avg"] = state["exp_avg"].t().contiguous().t()
    assert_twins(fused, loop)


# Loss scaling


@pytest.mark.parametrize("name", oracle.NAMES)
def test_gradients_are_unscaled_in_the_kernel(name: str) -> None:
    fused, loop = twins(name)
    for _ in range(3):
        give_same_gradients(fused, loop)
        for param in params_of(fused):
            param.grad.mul_(1024)
        fused.grad_scale, fused.found_inf = torch.tensor(1024.0), torch.tensor(0.0)
        fused.step()
        del fused.grad_scale, fused.found_inf
        loop.step()
        assert_twins(fused, loop)


@pytest.mark.parametrize("name", oracle.NAMES)
@pytest.mark.parametrize("first", [True, False])
def test_infinite_gradients_change_nothing(name: str, first: bool) -> None:
    fused, loop = twins(name)
    if not first:
        give_same_gradients(fused, loop)
        fused.step()
        loop.step()
    before = snapshot(fused)
    give_same_gradients(fused)
    params_of(fused)[0].grad[0] = torch.inf
    fused.grad_scale, fused.found_inf = torch.tensor(1024.0), torch.tensor(1.0)
    fused.step()
    # A first step leaves slots behind, with their first values.
    for old, new in zip(before, snapshot(fused), strict=not first):
        assert torch.equal(old, new)
    # The next step is the one that would have been.
    fused.grad_scale, fused.found_inf = torch.tensor(1.0), torch.tensor(0.0)
    give_same_gradients(fused, loop)
    fused.step()
    loop.step()
    assert_twins(fused, loop)


def test_grad_scaler_drives_the_fused_step() -> None:
    fused, loop = twins("Adam")
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    for _ in range(2):
        inputs = [torch.randn(param.shape) for param in params_of(fused)]
        for optimizer in (fused, loop):
            for param, value in zip(params_of(optimizer), inputs, strict=True):
                param.requires_grad_().grad = None
                loss = (param * value).sum()
                (scaler.scale(loss) if optimizer is fused else loss).backward()
        scaler.step(fused)
        scaler.update()
        loop.step()
        assert_twins(fused, loop)


# The scalar program


@pytest.mark.parametrize("name", oracle.NAMES)
def test_scalars_are_the_same_on_the_device_as_on_the_host(name: str) -> None:
    """Both are float64. `pow` is a library's on the host, `exp` of a product on the device: they
    agree to 1e-15, and `1 - beta2 ** step`, a thousandth, to 1e-12. RAdam loses two more digits
    where it subtracts two numbers near 2 / (1 - beta2)."""
    tables = []
    for capturable in (False, True):
        torch.manual_seed(0)
        params = [torch.randn(4), torch.randn(4)]
        groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.5}]
        optimizer = make(name, groups, fused=True, capturable=capturable)
        for _ in range(oracle.STEPS[name]):
            oracle.give_gradients(params)
            optimizer.step()
        (batch,) = plan_of(optimizer).calls.batches
        tables.append(batch.table.numpy())
    np.testing.assert_allclose(*tables, rtol=1e-10 if name == "RAdam" else 1e-12, atol=0)


@pytest.mark.parametrize(
    ("base", "exponent"),
    [
        (0.9, 1.0), (0.999, 1e6), (0.5, 0.5), (1.0, torch.inf), (3.0, 0.0),
        (0.0, 0.0), (0.0, 2.0), (0.0, -1.0), (-2.0, 3.0), (-2.0, 2.0), (-2.0, 0.5),
        (torch.nan, 0.0), (2.0, torch.nan),
    ],
)  # fmt: skip
def test_power_of_the_device_is_ieee_power(base: float, exponent: float) -> None:
    with np.errstate(all="ignore"):
        expected = np.float64(base) ** np.float64(exponent)
        np.testing.assert_allclose(power.of(base, exponent), expected, rtol=1e-13)


# What is refused


def test_sparse_gradients_are_refused() -> None:
    param = torch.randn(4)
    param.grad = torch.eye(4)[0].to_sparse()
    with pytest.raises(RuntimeError, match="Adam does not support sparse gradients"):
        make("Adam", [param], fused=True).step()


def test_complex_parameters_are_refused_as_torch_refuses_them() -> None:
    param = torch.randn(4, dtype=torch.complex64)
    param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match="requires all the params to be floating point Tensors"):
        make("Adam", [param], fused=True).step()


def test_slots_of_another_shape_are_refused() -> None:
    param = torch.randn(4)
    optimizer: Optimizer = make("Adam", [param], fused=True)
    oracle.give_gradients([param])
    optimizer.step()
    optimizer.state[param]["exp_avg"] = torch.zeros(5)
    with pytest.raises(RuntimeError, match=r"exp_avg has shape \(5,\)"):
        optimizer.step()
