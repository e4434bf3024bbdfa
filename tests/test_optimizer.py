"""The generated classes beside their arithmetic: torch's signature, errors and habits."""

from __future__ import annotations

import copy
import importlib
import inspect
import itertools
import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import swap_in_optimizer_params_and_state
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    SequentialLR,
    StepLR,
)

import generated
from optdsl import build, interpret, pipeline
from optdsl.ir import FLAGS, POLICIES, Base, Spec
from optdsl.pipeline import shipped_library
from tests.reference import (
    BY_CLOSURE,
    IN_TORCH,
    PATHS,
    SHIPPED,
    Problem,
    advance,
    choices,
    construct,
    contents,
    differences,
    dtypes_of,
    full_problem,
    same_bits,
    small_problem,
    suited,
    through_a_file,
)

paths = pytest.mark.parametrize("foreach", PATHS.values(), ids=PATHS)
shipped = pytest.mark.parametrize("name", SHIPPED)
in_torch = pytest.mark.parametrize("name", IN_TORCH)
both = pytest.mark.parametrize("package", [torch.optim, generated], ids=["torch", "ours"])
# A step that is a tensor; SparseAdam's is an integer, and others have none.
WITH_STEP = [
    name for name in SHIPPED
    if any(s.name == "step" and not s.integer for s in getattr(generated, name).slots)
]  # fmt: skip
with_step = pytest.mark.parametrize("name", WITH_STEP)
# Adam with a schedule in it.
OF_ADAM = ("Noam", "AdamWarmup", "AdamWarmupCosineDecay")
# What has groups, gradients that are given, and a step that may be asked of each parameter alone.
GRADIENT = [name for name in SHIPPED if name not in BY_CLOSURE]
by_gradient = pytest.mark.parametrize("name", GRADIENT)
by_gradient_in_torch = pytest.mark.parametrize("name", [n for n in GRADIENT if n in IN_TORCH])


def parameter(*shape: int, value: float = 1.0) -> Tensor:
    """A parameter with a gradient of ones."""
    param = torch.full(shape, value, requires_grad=True)
    param.grad = torch.ones(shape)
    return param


def one(name: str, size: int = 2, value: float = 1.0) -> Tensor:
    """A parameter with a gradient, of the shape and layout that the optimizer takes."""
    param = parameter(size, 2, value=value) if name == "Muon" else parameter(size, value=value)
    if name == "SparseAdam":
        param.grad = torch.ones(size).to_sparse()
    return param


def with_decay(name: str, value: float = 0.0) -> dict[str, float]:
    known = inspect.signature(getattr(generated, name)).parameters
    return {"weight_decay": value} if "weight_decay" in known else {}


def problem_of(name: str, dtype: torch.dtype = torch.float32) -> Problem:
    return suited(small_problem(dtype), name)


def take(optimizer: torch.optim.Optimizer) -> Any:
    """One step, with a closure where it needs one."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    row = [None if p.grad is None else p.grad.clone() for p in params]
    return advance(optimizer, params, [row])


# Construction


def arguments(kind: type) -> dict[str, inspect.Parameter]:
    found = dict(inspect.signature(kind).parameters)
    return {name: p.replace(annotation=inspect.Parameter.empty) for name, p in found.items()}


@in_torch
def test_signature_is_torchs_with_keyword_only_flags_added(name: str) -> None:
    ours, theirs = (arguments(getattr(p, name)) for p in (generated, torch.optim))
    added = [p for n, p in ours.items() if n not in theirs]
    assert {n: p for n, p in ours.items() if n in theirs} == theirs
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in added)
    assert {p.name for p in added} <= {*FLAGS, *POLICIES}

    positional = [
        [n for n, p in signature.items() if p.kind is not inspect.Parameter.KEYWORD_ONLY]
        for signature in (ours, theirs)
    ]
    assert positional[0] == positional[1]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("SGD", (0.1, 0.9, 0, 0.01, True)),
        ("Adam", (0.1, (0.8, 0.9), 1e-6, 0.1, True)),
        ("AdamW", (0.1, (0.8, 0.9), 1e-6, 0.1, True)),
        ("RMSprop", (0.1, 0.9, 1e-6, 0.1, 0.9, True, False, True, True, False)),
        ("Adagrad", (0.1, 0.01, 0.1, 0.2, 1e-6, True)),
    ],
)
def test_positional_arguments_mean_what_they_mean_to_torch(
    name: str, values: tuple[Any, ...]
) -> None:
    ours, theirs = (
        getattr(p, name)([parameter(2)], *values).param_groups[0] for p in (generated, torch.optim)
    )
    del ours["params"], theirs["params"]
    assert {key: ours[key] for key in theirs} == theirs


@in_torch
def test_defaults_have_torchs_values_and_types(name: str) -> None:
    ours, theirs = (getattr(p, name)([one(name)]).param_groups[0] for p in (generated, torch.optim))
    for key, value in theirs.items():
        if key != "params":
            assert (ours[key], type(ours[key])) == (value, type(value))


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_repr_is_torchs(name: str) -> None:
    ours, theirs = (getattr(p, name)([parameter(2)], lr=0.5) for p in (generated, torch.optim))
    assert repr(ours) == repr(theirs)


# Validation

RANGES: dict[str, tuple[Any, ...]] = {  # values that torch refuses, by the argument they are for
    "lr": (-1, torch.tensor(-1.0), torch.ones(2)),
    "weight_decay": (-0.5,),
    "eps": (-1e-3,),
    "betas": ((-0.1, 0.9), (1.0, 0.9), (1.5, 0.9), (0.9, -0.1), (0.9, 1.0), (0.9, 1.5)),
    "momentum": (-0.1,),
    "alpha": (-0.1,),
    "lr_decay": (-0.1,),
    "initial_accumulator_value": (-0.1,),
    "rho": (-0.1, 1.1),
    "momentum_decay": (-0.1,),
    "etas": ((0.0, 1.2), (-0.5, 1.2), (1.0, 1.2), (0.5, 1.0), (0.5, 0.9)),
    "beta2_decay": (0.1,),
    "d": (0.5,),
    "adjust_lr_fn": ("other",),
}
OWN_RANGES: dict[tuple[str, str], tuple[Any, ...]] = {
    ("ASGD", "alpha"): (),
    ("Adafactor", "eps"): ((-1e-3, 1e-3), (1e-3, -1e-3)),
    ("Muon", "eps"): (),
    ("SparseAdam", "lr"): (-1, 0, torch.tensor(0.0), torch.ones(2)),
    ("SparseAdam", "eps"): (-1e-3, 0),
}


def invalid(name: str) -> dict[str, tuple[Any, ...]]:
    known = inspect.signature(getattr(torch.optim, name)).parameters
    ranges = {key: OWN_RANGES.get((name, key), RANGES[key]) for key in known if key in RANGES}
    return {key: values for key, values in ranges.items() if values}


INVALID: list[tuple[str, dict[str, Any]]] = [
    *((name, {key: v}) for name in IN_TORCH for key, vs in invalid(name).items() for v in vs),
    ("SGD", {"nesterov": True}),
    ("SGD", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}),
]
# Two things wrong at once.
PAIRS: list[tuple[str, dict[str, Any]]] = [
    (name, {first: wrong[first][0], second: wrong[second][0]})
    for name in IN_TORCH
    for wrong in [invalid(name)]
    for first, second in itertools.combinations(wrong, 2)
]


@pytest.mark.parametrize(("name", "options"), [*INVALID, *PAIRS], ids=str)
def test_invalid_hyperparameters_raise_torchs_error_before_parameters_are_looked_at(
    name: str, options: dict[str, Any]
) -> None:
    errors = []
    for package in (torch.optim, generated):
        with pytest.raises(ValueError) as error:
            getattr(package, name)(None, **options)
        errors.append(str(error.value))
    assert errors[1] == errors[0]


GROUPED = [(name, options) for name, options in INVALID if name not in BY_CLOSURE]


@pytest.mark.parametrize(("name", "options"), GROUPED, ids=str)
def test_invalid_hyperparameters_of_a_group_are_refused(name: str, options: dict[str, Any]) -> None:
    kind = getattr(generated, name)
    with pytest.raises(ValueError) as expected:
        kind(None, **options)
    with pytest.raises(ValueError, match=re.escape(str(expected.value))):
        kind([{"params": [one(name)], **options}])

    optimizer = kind([one(name)])
    with pytest.raises(ValueError, match=re.escape(str(expected.value))):
        optimizer.add_param_group({"params": [one(name)], **options})
    assert len(optimizer.param_groups) == 1


NAN = float("nan")
# Every hyperparameter with a range, and some that torch's own check lets through, as NaN.
NAN_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *(
        (name, {key: (NAN, *v[0][1:]) if isinstance(v[0], tuple) else NAN})
        for name in IN_TORCH
        for key, v in invalid(name).items()
        if key != "adjust_lr_fn"
    ),
    *((name, {"lr": torch.tensor(NAN)}) for name in IN_TORCH),
    *(("Lion", {key: NAN}) for key in ("lr", "weight_decay")),
    *((n, {"betas": pair}) for n in ("Adam", "Lion") for pair in ((NAN, 0.9), (0.9, NAN))),
    ("SGD", {"dampening": NAN, "momentum": 0.9, "nesterov": True}),
]


@pytest.mark.parametrize(("name", "options"), NAN_OPTIONS, ids=str)
def test_nan_never_passes_validation(name: str, options: dict[str, Any]) -> None:
    kind = getattr(generated, name)
    with pytest.raises(ValueError):
        kind([one(name)], **options)
    if name in BY_CLOSURE:
        return
    optimizer = kind([one(name)])
    with pytest.raises(ValueError):
        optimizer.add_param_group({"params": [one(name)], **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1}, "lr = -1 breaks the condition 0 <= lr < inf"),
        ({"betas": (1.0, 0.5)}, "beta1 = 1.0 breaks the condition 0 <= beta1 < 1"),
        ({"betas": (0.5, 1.0)}, "beta2 = 1.0 breaks the condition 0 <= beta2 < 1"),
    ],
)
def test_a_spec_without_messages_gets_errors_that_name_value_and_condition(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as error:
        generated.Lion(None, **options)
    assert str(error.value) == message


@shipped
def test_limits_of_hyperparameters_are_allowed(name: str) -> None:
    limits: dict[str, Any] = {**with_decay(name), **({} if name == "SparseAdam" else {"lr": 0})}
    take(getattr(generated, name)([one(name)], **limits))
    if "betas" in inspect.signature(getattr(generated, name)).parameters:
        take(getattr(generated, name)([one(name)], betas=(0.0, 0.0)))


@shipped
def test_the_base_class_errors_are_torchs(name: str) -> None:
    ours, theirs = getattr(generated, name), getattr(torch.optim, name, torch.optim.Adam)
    shared = one(name)
    bad = [
        [],
        one(name),
        [3],
        [one(name) * 2],
        [{"params": [shared]}, {"params": [shared]}],
        [("a", one(name)), one(name)],
        [{"params": {one(name)}}],
    ]
    for params in bad:
        errors = []
        for kind in (theirs, ours):
            with pytest.raises((TypeError, ValueError)) as error:
                kind(params)
            errors.append((type(error.value), str(error.value)))
        assert errors[1] == errors[0]


@shipped
def test_duplicates_inside_a_group_warn_as_torchs(name: str) -> None:
    param = one(name)
    with pytest.warns(UserWarning, match="duplicate parameters"):
        getattr(generated, name)([param, param])


@by_gradient
def test_fused_and_foreach_are_refused_together(name: str) -> None:
    with pytest.raises(RuntimeError) as error:
        getattr(generated, name)([one(name)], fused=True, foreach=True)
    assert str(error.value) == "`fused` and `foreach` cannot be `True` together."


# A step


def dense(tensor: Tensor) -> Tensor:
    return tensor.to_dense() if tensor.is_sparse else tensor


@paths
@pytest.mark.parametrize("maximize", [False, True])
@by_gradient
def test_gradients_are_never_written(name: str, maximize: bool, foreach: bool) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.complex64):
        if dtype not in dtypes_of(name):
            continue
        problem = problem_of(name, dtype)
        for options in choices(name):
            params = problem.start()
            optimizer = construct(generated, name, params, foreach, **options, maximize=maximize)
            for row in problem.gradients[:3]:
                grads = [None if g is None else g.clone() for g in row]
                versions = [None if g is None else g._version for g in grads]
                advance(optimizer, params, [grads])
                for param, grad, version, original in zip(
                    params, grads, versions, row, strict=True
                ):
                    assert param.grad is grad
                    if grad is not None:
                        assert grad._version == version
                        assert same_bits(dense(original), dense(grad))


@paths
@by_gradient
def test_no_slot_shares_storage_with_a_gradient_or_a_parameter(name: str, foreach: bool) -> None:
    for options in choices(name):
        params = problem_of(name).start()
        optimizer = construct(generated, name, params, foreach, **options)
        grads = [torch.ones_like(p) for p in params]
        if name == "SparseAdam":
            grads = [g.to_sparse() for g in grads]
        advance(optimizer, params, [grads, grads])
        slots = [v for p in params for v in optimizer.state[p].values() if isinstance(v, Tensor)]
        own = [*params, *(g.to_dense() if g.is_sparse else g for g in grads), *slots]
        addresses = [t.data_ptr() for t in own]
        assert len(set(addresses)) == len(addresses)


@both
def test_closure_runs_once_with_gradients_before_the_update(package: Any) -> None:
    param = parameter(2)
    optimizer = package.SGD([param], lr=0.5)
    seen = []

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = (3 * param).sum()
        loss.backward()
        seen.append(param.detach().clone())
        return loss

    assert optimizer.step(closure) == 6
    assert optimizer.step() is None
    assert len(seen) == 1
    assert torch.equal(seen[0], torch.ones(2))
    assert torch.equal(param, torch.full((2,), 1 - 2 * 1.5))


@both
def test_step_hooks_run_around_the_step_and_may_change_its_arguments(package: Any) -> None:
    param = parameter(2)
    optimizer = package.Adam([param])
    seen: list[str] = []

    def before(_: Any, args: Any, kwargs: Any) -> Any:
        seen.append(f"before at {param[0].item():.1f}")
        return args, {"closure": lambda: seen.append("closure")}

    optimizer.register_step_pre_hook(before)
    handle = optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    optimizer.step()
    handle.remove()
    optimizer.step()
    assert seen == ["before at 1.0", "closure", "after", "before at 1.0", "closure"]


@shipped
def test_step_has_torchs_name_in_the_profiler(name: str) -> None:
    optimizer = getattr(generated, name)([one(name)])
    with torch.profiler.profile() as profile:
        take(optimizer)
        optimizer.zero_grad()
    names = {event.name for event in profile.events()}
    assert {f"Optimizer.step#{name}.step", f"Optimizer.zero_grad#{name}.zero_grad"} <= names


@paths
@shipped
def test_zero_grad_removes_gradients_or_fills_them_with_zeros(name: str, foreach: bool) -> None:
    params = [one(name), one(name, 3)]
    params[1].grad = None
    optimizer = construct(generated, name, params, foreach)
    grad = params[0].grad
    optimizer.zero_grad(set_to_none=False)
    assert params[0].grad is grad
    assert torch.equal(dense(grad), torch.zeros_like(params[0]))
    optimizer.zero_grad()
    assert [p.grad for p in params] == [None, None]


@paths
@by_gradient
def test_parameters_without_a_gradient_stay_and_get_no_state(name: str, foreach: bool) -> None:
    used, unused = one(name), one(name, 3)
    unused.grad = None
    optimizer = construct(generated, name, [used, unused], foreach, lr=0.5)
    before = set(optimizer.state)
    for _ in range(3):
        optimizer.step()
    assert torch.equal(unused, torch.ones_like(unused))
    assert not torch.equal(used, torch.ones_like(used))
    if name == "Adagrad":  # whose state is made in the constructor, as torch's
        assert before == {used, unused}
        assert optimizer.state[unused]["step"] == 0
    else:
        assert before == set()
        assert unused not in optimizer.state


@shipped
def test_a_step_without_any_gradient_does_nothing(name: str) -> None:
    param = one(name)
    param.grad = None
    take(getattr(generated, name)([param]))
    assert torch.equal(param, torch.ones_like(param))


@paths
@by_gradient_in_torch
def test_group_added_later_trains_as_torchs(name: str, foreach: bool) -> None:
    problem = problem_of(name)
    found = []
    for package in (torch.optim, generated):
        params = problem.start()
        optimizer = construct(package, name, params[:2], foreach and package is generated)
        advance(optimizer, params[:2], [row[:2] for row in problem.gradients[:5]])
        optimizer.add_param_group({"params": params[2:], "lr": 0.5})
        advance(optimizer, params, problem.gradients[5:10])
        found.append(contents(optimizer))
    assert differences(*found) == []


@by_gradient_in_torch
def test_removing_a_group_or_a_parameter_leaves_the_others_theirs(name: str) -> None:
    problem = problem_of(name)
    found = []
    for package in (torch.optim, generated):
        params = problem.start()
        optimizer = getattr(package, name)([{"params": params[:1]}, {"params": params[1:]}])
        advance(optimizer, params, problem.gradients[:5])
        del optimizer.param_groups[0]
        advance(optimizer, params, problem.gradients[5:10])
        removed = optimizer.param_groups[0]["params"].pop(1)
        optimizer.state.pop(removed, None)
        advance(optimizer, params, problem.gradients[10:15])
        found.append(contents(optimizer))
    assert differences(*found) == []


# Steps: scalar slots


@paths
@with_step
def test_each_parameter_counts_the_steps_that_it_had_a_gradient_in(
    name: str, foreach: bool
) -> None:
    params = [parameter(2) for _ in range(4)]
    optimizer = getattr(generated, name)(
        [{"params": params[:3]}, {"params": params[3:]}], foreach=foreach
    )
    for index in range(6):
        for divisor, param in enumerate(params, 1):
            param.grad = None if index % divisor else torch.ones(2)
        optimizer.step()
    assert [optimizer.state[p]["step"].item() for p in params] == [6, 3, 2, 2]


@paths
def test_parameters_of_several_dtypes_count_together(foreach: bool) -> None:
    """They are updated in batches, and their numbers lie in one vector."""
    params = [torch.ones(2, dtype=dtype) for dtype in (torch.float32, torch.float64)] * 2
    params = [param.clone() for param in params]
    optimizer = generated.NAdam(params, foreach=foreach)
    for steps in (1, 2):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
        assert [optimizer.state[p]["step"].item() for p in params] == [steps] * 4


@paths
@with_step
def test_each_step_is_a_tensor_of_its_own(name: str, foreach: bool) -> None:
    params = [parameter(2) for _ in range(3)]
    optimizer = getattr(generated, name)(params, foreach=foreach)
    optimizer.step()
    steps = [optimizer.state[p]["step"] for p in params]
    assert len({id(s) for s in steps}) == 3
    assert len({s.data_ptr() for s in steps}) == 3
    assert {(s.shape, s.dtype, s.device.type) for s in steps} == {((), torch.float32, "cpu")}
    steps[1].fill_(10)
    optimizer.step()
    # The same tensors advance, as torch's do.
    assert [s.item() for s in steps] == [2, 11, 2]
    assert [optimizer.state[p]["step"].item() for p in params] == [2, 11, 2]


@paths
@pytest.mark.parametrize("name", [n for n in WITH_STEP if n in IN_TORCH])
def test_a_step_that_the_user_replaces_counts_on(name: str, foreach: bool) -> None:
    problem = problem_of(name)
    found = []
    for package in (torch.optim, generated):
        params = problem.start()
        on_lists = foreach and package is generated
        optimizer = construct(package, name, params, on_lists, lr=0.1)
        advance(optimizer, params, problem.gradients[:3])
        optimizer.state[params[2]]["step"] = torch.tensor(40.0)
        advance(optimizer, params, problem.gradients[3:6])
        optimizer.state[params[0]]["step"].fill_(7)
        advance(optimizer, params, problem.gradients[6:9])
        found.append(contents(optimizer))
    assert differences(*found) == []
    assert found[1]["parameter 2: step"] == 46


@paths
@by_gradient
def test_moments_that_the_user_puts_into_the_state_are_used(name: str, foreach: bool) -> None:
    problem = problem_of(name)
    options = list(choices(name))[-1]
    kind = getattr(generated, name)
    params = problem.start()
    first = kind(params, **options, foreach=foreach)
    advance(first, params, problem.gradients[:5])

    again = [p.detach().clone().requires_grad_() for p in params]
    second = kind(again, **options, foreach=foreach)
    mine = []
    for param, old in zip(again, params, strict=True):
        for slot, value in first.state[old].items():
            second.state[param][slot] = copy.deepcopy(value)
            if isinstance(value, Tensor) and value.dim():
                mine.append((param, slot, second.state[param][slot]))
    advance(first, params, problem.gradients[5:9])
    advance(second, again, problem.gradients[5:9])
    assert differences(contents(first), contents(second)) == []
    assert mine
    assert all(second.state[p][slot] is value for p, slot, value in mine)


@paths
@by_gradient
def test_slots_that_the_user_left_out_are_made(name: str, foreach: bool) -> None:
    problem = problem_of(name)
    options = list(choices(name))[-1]
    found = []
    for partly in (False, True):
        params = problem.start()
        optimizer = getattr(generated, name)(params, **options, foreach=foreach)
        slots = [s for s in type(optimizer).slots if s.initial and not s.scalar and not s.eager]
        for slot in slots[:1] if partly else []:
            group = optimizer.param_groups[0]
            if slot.exists(group, params[-1]):
                optimizer.state[params[-1]][slot.name] = slot.initial(group, params[-1])
        advance(optimizer, params, problem.gradients[:5])
        found.append(contents(optimizer))
    assert differences(*found) == []


@by_gradient_in_torch
def test_slots_have_the_memory_format_of_torchs(name: str) -> None:
    problem = suited(full_problem(torch.float32), name)
    options = list(choices(name))[-1]
    strides = []
    for package in (torch.optim, generated):
        params = problem.start()
        optimizer = getattr(package, name)(params, **options)
        # Gradients laid out as autograd lays them out: as the parameter.
        grads = [torch.ones_like(p) for p in params]
        if name == "SparseAdam":
            grads = [g.to_sparse() for g in grads]
        advance(optimizer, params, [grads])
        strides.append({key: value.stride() for key, value in contents(optimizer).items()})
    assert strides[1] == strides[0]


# Learning rates


@paths
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@by_gradient
def test_tensor_lr_equals_a_number_within_4_ulp_and_stays_the_same_object(
    name: str, shape: tuple[int, ...], foreach: bool
) -> None:
    if foreach and name in ("Adam", "AdamW", *OF_ADAM):
        return  # refused, as by torch: see test_optim_db.py
    lr = torch.full(shape, 0.01)
    problem = problem_of(name)
    found = []
    for value in (0.01, lr):
        params = problem.start()
        groups = [{"params": params[:1]}, {"params": params[1:]}]
        optimizer = construct(generated, name, groups, foreach, lr=value)
        advance(optimizer, params, problem.gradients[:1])
        found.append(params)
    assert all(group["lr"] is lr for group in optimizer.param_groups)
    assert torch.equal(lr, torch.full(shape, 0.01))
    for number, tensor in zip(*found, strict=True):
        ulp = torch.finfo(torch.float32).eps * number.abs().clamp(min=0.01)
        assert ((number - tensor).abs() <= 4 * ulp).all()


@by_gradient
def test_tensor_lr_is_read_at_each_step(name: str) -> None:
    problem = problem_of(name)
    found = []
    for as_tensor in (False, True):
        lr = torch.tensor(0.5)
        params = problem.start()
        optimizer = getattr(generated, name)(params, lr=lr if as_tensor else 0.5)
        for index, row in enumerate(problem.gradients):
            lr.fill_(2.0**-index)
            if not as_tensor:
                optimizer.param_groups[0]["lr"] = 2.0**-index
            advance(optimizer, params, [row])
        found.append(contents(optimizer))
    assert differences(*found) == []


@paths
@by_gradient_in_torch
def test_lr_that_is_changed_by_hand_acts_at_the_next_step(name: str, foreach: bool) -> None:
    problem = problem_of(name)
    found = []
    for package in (torch.optim, generated):
        params = problem.start()
        optimizer = construct(package, name, params, foreach and package is generated)
        for index, row in enumerate(problem.gradients):
            optimizer.param_groups[0]["lr"] = 0.3 / (index + 1)
            optimizer.param_groups[0].update(with_decay(name, 0.1 * (index % 2)))
            advance(optimizer, params, [row])
        found.append(contents(optimizer))
    assert differences(*found) == []


def two_in_turn(optimizer: torch.optim.Optimizer) -> Any:
    first, then = LinearLR(optimizer, total_iters=3), StepLR(optimizer, 2)
    return SequentialLR(optimizer, [first, then], milestones=[3])


SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, T_max=10),
    "function": lambda optimizer: LambdaLR(optimizer, lambda epoch: 0.9**epoch),
    "two in turn": two_in_turn,
    "one cycle, of momentum too": lambda optimizer: OneCycleLR(
        optimizer,
        max_lr=0.1,
        total_steps=30,
        cycle_momentum=bool({"betas", "momentum"} & set(optimizer.defaults)),
    ),
}


@paths
@pytest.mark.parametrize("schedule", SCHEDULES)
@in_torch
def test_torchs_schedulers_drive_us_as_they_drive_torch(
    name: str, schedule: str, foreach: bool
) -> None:
    problem = problem_of(name)
    found = []
    for package in (torch.optim, generated):
        params = problem.start()
        options = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
        on_lists = foreach and package is generated
        optimizer = construct(package, name, params, on_lists, lr=0.1, **options)
        scheduler = SCHEDULES[schedule](optimizer)
        for row in problem.gradients:
            advance(optimizer, params, [row])
            scheduler.step()
        found.append((contents(optimizer), scheduler.get_last_lr()))
    assert differences(found[0][0], found[1][0]) == []
    assert found[0][1] == found[1][1]


def test_schedulers_fill_a_tensor_lr_in_place() -> None:
    lr = torch.tensor(0.5)
    optimizer = generated.Adam([parameter(2)], lr=lr)
    schedule = StepLR(optimizer, step_size=1, gamma=0.5)
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr == 0.25


@paths
@pytest.mark.parametrize("name", ["Adam", "AdamW", "Lion"])
def test_tensor_betas_are_read_as_numbers(name: str, foreach: bool) -> None:
    if foreach and name != "Lion":
        return  # refused, as by torch: see test_optim_db.py
    problem = small_problem()
    found = []
    for betas in ((0.5, 0.75), (torch.tensor(0.5), torch.tensor([0.75]))):
        params = problem.start()
        optimizer = getattr(generated, name)(params, betas=betas, foreach=foreach)
        advance(optimizer, params, problem.gradients[:5])
        found.append(contents(optimizer))
    assert differences(*found) == []


# What is not supported, and what is kept


DENSE = [name for name in GRADIENT if getattr(generated, name).sparse == "none"]


@paths
@pytest.mark.parametrize("name", DENSE)
def test_sparse_gradients_are_refused_in_torchs_words(name: str, foreach: bool) -> None:
    messages = []
    for package in (getattr(torch.optim, name, None) and torch.optim, generated):
        if package is None:  # Lion, Noam
            messages.append(f"{name} does not support sparse gradients")
            continue
        param = torch.ones(3, 2, requires_grad=True)
        param.grad = torch.eye(3, 2).to_sparse()
        optimizer = construct(package, name, [param], foreach and package is generated)
        with pytest.raises(RuntimeError) as error:
            optimizer.step()
        assert torch.equal(param, torch.ones(3, 2))
        messages.append(str(error.value))
    assert messages[1] == messages[0]


@shipped
def test_a_copied_optimizer_keeps_its_class_and_groups_and_steps(name: str) -> None:
    param = one(name, 3)
    optimizer = construct(generated, name, [param], True, lr=0.25)
    take(optimizer)
    for twin in (copy.deepcopy(optimizer), copy.deepcopy(copy.deepcopy(optimizer))):
        assert type(twin) is type(optimizer)
        assert repr(twin) == repr(optimizer)
        before = param.detach().clone()
        twin.param_groups[0]["params"][0].grad = copy.deepcopy(param.grad)
        take(twin)
        assert torch.equal(param, before)


@with_step
def test_a_step_tensor_of_the_users_advances_in_place(name: str) -> None:
    param = parameter(3)
    optimizer = getattr(generated, name)([param])
    optimizer.step()
    mine = torch.tensor(5.0)
    optimizer.state[param]["step"] = mine
    optimizer.step()
    assert mine == 6
    assert optimizer.state[param]["step"] is mine


@by_gradient_in_torch
def test_torchs_functions_can_swap_in_parameters_and_state(name: str) -> None:
    problem = problem_of(name)
    options = {**list(choices(name))[-1], **({"momentum": 0.9} if name == "SGD" else {})}
    found = []
    for package in (torch.optim, generated):
        params = problem.start()
        optimizer = getattr(package, name)(params, **options)
        advance(optimizer, params, problem.gradients[:3])
        own = copy.deepcopy(contents(optimizer))
        others = [p.detach().clone().requires_grad_() for p in params]
        state = copy.deepcopy(optimizer.state_dict())
        with swap_in_optimizer_params_and_state(optimizer, dict(enumerate(others)), state):
            advance(optimizer, others, problem.gradients[3:6])
        assert differences(own, contents(optimizer)) == []
        slots = {
            f"{i}: {n}": torch.as_tensor(v) for i, s in state["state"].items() for n, v in s.items()
        }
        found.append({**slots, **{f"parameter {i}": p.detach() for i, p in enumerate(others)}})
        advance(optimizer, params, problem.gradients[3:6])
        found[-1].update(contents(optimizer))
    assert differences(*found) == []


# Habits of torch that all optimizers have, on both paths


def in_turn(name: str, foreach: bool, visit: Callable[[torch.optim.Optimizer], Any]) -> list[Any]:
    """What torch's and our optimizer come to, after `visit` and some steps."""
    problem = problem_of(name)
    found = []
    for package in (torch.optim, generated):
        params = problem.start()
        optimizer = construct(package, name, params, foreach and package is generated, lr=0.1)
        seen = visit(optimizer)
        advance(optimizer, params, problem.gradients[:4])
        found.append((seen, contents(optimizer)))
    assert differences(found[0][1], found[1][1]) == []
    return [seen for seen, _ in found]


@paths
@in_torch
def test_hooks_of_steps_and_state_dicts_run_as_torchs(name: str, foreach: bool) -> None:
    def visit(optimizer: torch.optim.Optimizer) -> list[str]:
        seen: list[str] = []
        optimizer.register_step_pre_hook(lambda *_: seen.append("before a step"))
        optimizer.register_step_post_hook(lambda *_: seen.append("after a step"))
        optimizer.register_state_dict_pre_hook(lambda *_: seen.append("before saving"))
        optimizer.register_state_dict_post_hook(lambda *_: seen.append("after saving"))
        optimizer.register_load_state_dict_pre_hook(lambda *_: seen.append("before loading"))
        optimizer.register_load_state_dict_post_hook(lambda *_: seen.append("after loading"))
        optimizer.load_state_dict(optimizer.state_dict())
        return seen

    theirs, ours = in_turn(name, foreach, visit)
    assert ours == theirs
    assert len(set(ours)) == 6


@paths
@by_gradient_in_torch
def test_named_groups_are_added_as_torchs(name: str, foreach: bool) -> None:
    found = []
    for package in (torch.optim, generated):
        groups = [("a", one(name)), ("b", one(name))]
        optimizer = construct(package, name, groups, foreach and package is generated)
        optimizer.add_param_group({"params": [("c", one(name, 3))], "lr": 0.5})
        take(optimizer)
        names = [group["param_names"] for group in optimizer.param_groups]
        saved = [g["param_names"] for g in optimizer.state_dict()["param_groups"]]
        found.append((names, saved, [list(g)[:2] for g in optimizer.param_groups]))
        with pytest.raises(ValueError, match="with/without names"):
            optimizer.add_param_group({"params": [one(name)]})
        assert len(optimizer.param_groups) == 2
    assert found[1] == found[0]


@paths
@in_torch
def test_gradient_scalers_skip_steps_with_infinities(name: str, foreach: bool) -> None:
    if name in BY_CLOSURE:
        with pytest.raises(RuntimeError, match="Closure use is not currently supported"):
            torch.amp.GradScaler("cpu").step(generated.LBFGS([one(name)]), closure=lambda: None)
        return
    found = []
    for package in (torch.optim, generated):
        params = [one(name), one(name, 3)]
        optimizer = construct(package, name, params, foreach and package is generated, lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
        for factor in (2.0, torch.inf, 3.0):
            scaler.scale(torch.zeros(()))
            for param in params:
                grad = torch.full_like(param, 8.0 * factor)
                param.grad = grad.to_sparse() if name == "SparseAdam" else grad
            scaler.step(optimizer)
            scaler.update()
        found.append((contents(optimizer), scaler.get_scale()))
    assert differences(found[0][0], found[1][0]) == []
    assert found[0][1] == found[1][1] == 16.0
    assert all(value.isfinite().all() for value in found[1][0].values())


@paths
@shipped
def test_a_step_returns_what_the_closure_returns(name: str, foreach: bool) -> None:
    param = one(name)
    optimizer = construct(generated, name, [param], foreach)
    calls = []

    def closure() -> float:
        assert torch.is_grad_enabled()
        calls.append(param.detach().clone())
        return 2.5

    assert optimizer.step(closure) == 2.5
    assert torch.equal(calls[0], torch.ones_like(param))
    assert name in BY_CLOSURE or len(calls) == 1


@paths
@shipped
def test_state_is_saved_as_plain_tensors_and_survives_shared_memory(
    name: str, foreach: bool
) -> None:
    problem = problem_of(name)
    found = []
    for shared in (False, True):
        params = problem.start()
        optimizer = construct(generated, name, params, foreach)
        advance(optimizer, params, problem.gradients[:2])
        if shared:
            for state in optimizer.state.values():
                for value in state.values():
                    if isinstance(value, Tensor):
                        value.share_memory_()
        saved = through_a_file(optimizer.state_dict())
        assert saved["state"].keys() == optimizer.state_dict()["state"].keys()
        advance(optimizer, params, problem.gradients[2:4])
        found.append(contents(optimizer))
    assert differences(*found) == []


@in_torch
def test_repr_is_torchs_with_flags_added(name: str) -> None:
    theirs, ours = (
        repr(getattr(p, name)([one(name)])).splitlines() for p in (torch.optim, generated)
    )
    assert [line for line in ours if line in theirs] == theirs
    added = {line.split(":")[0].strip() for line in ours if line not in theirs}
    assert added <= set(FLAGS)


UNUSUAL: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"momentum": 1.5}),
    ("SGD", {"momentum": 0.9, "dampening": -1.0}),
    ("Muon", {"momentum": 1.5}),
    ("ASGD", {"lambd": -1.0}),
    ("ASGD", {"t0": -1.0}),
    ("Adagrad", {"lr_decay": 10.0}),
]


@pytest.mark.parametrize(("name", "options"), UNUSUAL, ids=str)
def test_what_is_merely_unusual_passes_as_in_torch(name: str, options: dict[str, Any]) -> None:
    for package in (torch.optim, generated):
        getattr(package, name)([one(name)], **options)


# How messages about a value begin.
MESSAGES = "Invalid|should be|breaks the condition|must be"
# An infinite limit is no limit; these are all hyperparameters for which infinity has a meaning.
MAY_BE_INFINITE = {
    "Adafactor": {"d"},
    "ASGD": {"t0"},
    "LAMB": {"upper"},
    "Rprop": {"step_size_max"},
}


def numbers_of_spec(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each real number that a constructor takes, with the arguments that make it nan."""
    spec = next(u for u in shipped_library().units if u.name == name)
    assert isinstance(spec, Spec)
    for hyper in spec.hypers:
        if hyper.name in dict(spec.fixed) or hyper.type.base is not Base.REAL:
            continue
        values = [interpret.evaluate(part, {}) for part in hyper.parts]
        for place, component in enumerate(hyper.components):
            yield component, {hyper.name: (*values[:place], torch.nan, *values[place + 1 :])}
        if not hyper.components:
            yield hyper.name, {hyper.name: torch.nan}


@shipped
def test_no_number_may_be_nan_or_infinite_without_a_meaning(name: str) -> None:
    for number, options in numbers_of_spec(name):
        (key, value), *_ = options.items()
        for special in (torch.nan, torch.inf):
            whole = isinstance(value, float)
            given = special if whole else tuple(special if v is torch.nan else v for v in value)
            if special == torch.inf and number in MAY_BE_INFINITE.get(name, ()):
                getattr(generated, name)([one(name)], **{key: given})
                continue
            with pytest.raises(ValueError, match=MESSAGES):
                getattr(generated, name)([one(name)], **{key: given})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("RMSprop", {"alpha": 2.0}),
        ("Rprop", {"step_sizes": (1.0, 0.5)}),
        ("Muon", {"ns_steps": -1}),
    ],
    ids=str,
)
def test_values_without_a_meaning_are_refused_where_torch_takes_them(
    name: str, options: dict[str, Any]
) -> None:
    getattr(torch.optim, name)([one(name)], **options)
    with pytest.raises(ValueError, match=MESSAGES):
        getattr(generated, name)([one(name)], **options)


def test_adam_takes_integers_as_betas_which_torch_refuses() -> None:
    with pytest.raises(ValueError, match="betas must be either both floats or both Tensors"):
        torch.optim.Adam([one("Adam")], betas=(0, 0.9))
    found = []
    for package, betas in ((torch.optim, (0.0, 0.9)), (generated, (0, 0.9))):
        param = one("Adam")
        take(package.Adam([param], betas=betas))
        found.append(param)
    assert torch.equal(*found)


# Programs in which a name stands for storage that is overwritten

PROGRAMS = {
    "a name for a slot is read after the slot was overwritten": """
        let before = s
        s = s * 0.5 + grad
        descend lr * (s - before)
    """,
    "a name of a name": """
        let one = s
        let two = one
        s = lerp(s, grad, 0.25)
        descend lr * (two + s)
    """,
    "the parameter's old value": """
        let old = param
        param *= 0.5
        s = old - param
        descend lr * (old + s)
    """,
    "the gradient is rebound to a slot that changes": """
        s = s * 0.5 + grad
        grad = s
        s = s * 2 + grad
        descend lr * grad
    """,
    "the gradient, kept in a slot, is rebound": """
        let raw = grad
        s = grad
        grad += 0.5 * param
        grad *= 2
        descend lr * (grad + raw - s)
    """,
    "two slots are exchanged": """
        let old = s
        s = v + grad
        v = old * 0.5
        descend lr * (s - v)
    """,
    "slots are assigned to each other": """
        s = v
        v = v * 0.5 + grad
        descend lr * (s + v)
    """,
    "a name assigned in a branch": """
        let seen = s
        if decay != 0 { seen = v }
        s = s * 0.5 + grad
        v = lerp(v, grad, 0.125)
        descend lr * seen
    """,
    "a branch overwrites what a name stands for": """
        let seen = s
        if decay != 0 { s = s * 0.5 + grad }
        else { v = v * 0.5 + grad }
        descend lr * (seen + s + v)
    """,
    "a temporary is changed after it was stored": """
        let x = s * 0.5 + grad
        s = x
        x = x * 2 + s
        descend lr * (x + s)
    """,
    "a temporary has two names": """
        let x = s * 0.5 + grad
        let y = x
        x = x * 2
        s = y
        descend lr * (x + y)
    """,
    "a product's other operand is its target": """
        s = s * 0.5 + grad
        s = s * 0.5 + s * s
        descend lr * s
    """,
    "a lerp's sum with its own start": """
        s = lerp(s, grad, 0.125) + s
        descend lr * s
    """,
    "a lerp towards its own square": """
        s = lerp(s + grad, s * s, 0.25)
        descend lr * s
    """,
    "the target is every operand": """
        s = s + grad
        s = (s * 0.5 + s * s) / (s * s + 1)
        v = max(v, s) * v + max(s, v)
        descend lr * (s / (abs(s) + 1) + v)
    """,
    "the parameter in its own step": """
        param = param * 0.5 + param * param
        descend lr * grad * param
    """,
    "the target in a scaled sum": """
        s = s * 0.25 + 0.5 * (s + grad)
        v = v - 0.5 * (v * s) / (abs(v) + 1)
        v = v * 0.5 + v * grad / (abs(v) + 1)
        descend lr * v
    """,
}

DECLARATIONS = """
    doc "A program of the tests."
    cite "None."
    hyper lr = 0.125 require lr >= 0
    hyper decay = 0 require decay >= 0
    ...
    state s = zeros_like(param)
    state v = zeros_like(param)
"""


def compiled(folder: Path, programs: dict[str, str]) -> tuple[dict[str, Spec], ModuleType]:
    """Optimizers `P0`, `P1`, ..., one per program, as specs and as a built package."""
    specs = folder / "specs"
    specs.mkdir()
    for index, body in enumerate(programs.values()):
        text = f"optimizer P{index} {{{DECLARATIONS}update {{{body}}}\n}}\n"
        (specs / f"p{index}.opt").write_text(text, encoding="utf-8")
    library = pipeline.load([specs])
    name = f"built_{folder.name}"
    build.write(build.plan(library, "optdsl build"), folder / name)
    sys.path.insert(0, str(folder))
    try:
        package = importlib.import_module(name)
        names = [f"P{index}" for index in range(len(programs))]
        for each in names:
            getattr(package, each)
    finally:
        sys.path.remove(str(folder))
    units = {u.name: u for u in library.units if isinstance(u, Spec)}
    return {p: units[n] for p, n in zip(programs, names, strict=True)}, package


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Spec], ModuleType]:
    return compiled(tmp_path_factory.mktemp("programs"), PROGRAMS)


# Exact in float64: every constant is a power of two and there are few bits, but for divisions.
def random_program(seed: int) -> str:
    """Assignments between slots, gradient, parameter and names, with the target among the operands
    more often than not, and branches."""
    draw = random.Random(seed)
    names = ["s", "v", "grad", "param"]
    lines: list[str] = []

    def operand(target: str) -> str:
        return draw.choice([target, *names])

    def value(target: str) -> str:
        a, b, c = (operand(target) for _ in range(3))
        forms = (
            f"{a}",
            f"{a} * 0.5 + {b}",
            f"{a} * 0.5 + {b} * 0.25",
            f"{a} - 0.5 * {b} * {c} / (abs({c}) + 1)",
            f"{a} * 0.5 + 0.5 * {b} / (abs({c}) + 1)",
            f"lerp({a}, {b}, 0.25)",
            f"lerp({a}, {b}, 0.25) - {c}",
            f"max({a}, {b})",
            f"-{a} + max({b}, {c}) * 0.5",
            f"where({a} > {b}, {b}, {c})",
            f"sqrt(abs({a})) + {b} * 0.5",
            f"0.5 - {a}",
            f"2 / (abs({a}) + 1) + {b} * 0.5",
        )
        return draw.choice(forms)

    def assignment(indent: str) -> str:
        target = draw.choice(names)
        return f"{indent}{target} = {value(target)}"

    for number in range(draw.randint(4, 9)):
        match draw.randint(0, 5):
            case 0 | 1:
                new = f"name{number}"
                lines.append(f"let {new} = {value(draw.choice(names))}")
                names.append(new)
            case 2:
                inside = [assignment("    ") for _ in range(draw.randint(1, 2))]
                lines += ["if decay != 0 {", *inside, "}"]
                if draw.random() < 0.5:
                    lines[-1] += " else {"
                    lines += [assignment("    "), "}"]
            case _:
                lines.append(assignment(""))
    lines.append(f"descend lr * ({' - '.join(names)})")
    return "\n" + "\n".join(lines) + "\n"


START = (0.5, -1.25, 0.0, 3.0, -0.75)
GRADIENTS = ((1.5, -0.25, 0.5, -2.0, 0.0), (-0.5, 0.75, 1.25, 0.25, -1.0), (0.25, 1.0, 0, -1.5, 2))


def check_against_interpreter(
    package: ModuleType, spec: Spec, decay: int, foreach: bool, rows: Any = GRADIENTS
) -> None:
    params = [torch.tensor(START, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    optimizer = getattr(package, spec.name)(params, decay=decay, foreach=foreach)
    array, slots = np.array(START), None
    hypers = {"lr": 0.125, "decay": decay}
    for values in rows:
        grads = [torch.tensor(values, dtype=torch.float64) for _ in params]
        advance(optimizer, params, [grads])
        array, slots = interpret.step(spec, hypers, array, np.array(values), slots)
        assert all(g.tolist() == list(values) for g in grads)
        for param in params:
            close(param, array)
            for slot, value in slots.items():
                close(optimizer.state[param][slot], value)


@paths
@pytest.mark.parametrize("decay", [0, 1])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.replace(" ", "-"))
def test_overwritten_storage_is_copied_where_a_name_still_needs_it(
    built: tuple[dict[str, Spec], ModuleType], program: str, decay: int, foreach: bool
) -> None:
    specs, package = built
    check_against_interpreter(package, specs[program], decay, foreach)


def check_random_programs(folder: Path, seeds: range) -> None:
    programs = {random_program(seed): random_program(seed) for seed in seeds}
    specs, package = compiled(folder, programs)
    for program, spec in specs.items():
        for decay, foreach in itertools.product((0, 1), PATHS.values()):
            try:
                # One step: these programs grow, and then every rounding is magnified.
                check_against_interpreter(package, spec, decay, foreach, GRADIENTS[:1])
                check_against_interpreter(package, spec, decay, foreach, GRADIENTS[:2])
            except AssertionError as error:
                raise AssertionError(f"{decay=} {foreach=}\n{program}\n{error}") from error
        for dtype in NARROW_AND_COMPLEX:
            assert differing_paths(package, spec, dtype) == [], f"{dtype}\n{program}"


def test_random_programs_agree_with_the_interpreter_on_both_paths(tmp_path: Path) -> None:
    check_random_programs(tmp_path, range(60))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 3000, 200))
def test_many_random_programs_agree_with_the_interpreter(tmp_path: Path, first: int) -> None:
    check_random_programs(tmp_path, range(first, first + 200))


def close(actual: Tensor, expected: Any) -> None:
    """Within 16 ulp: a name that sees another's change is off by far more."""
    np.testing.assert_allclose(
        actual.detach().numpy(), expected, rtol=16 * np.finfo(np.float64).eps, atol=1e-15
    )


def differing_paths(package: ModuleType, spec: Spec, dtype: torch.dtype) -> list[str]:
    """The tensors in which the eager and the foreach path differ after three steps."""
    problem = small_problem(dtype)
    found = []
    for foreach in PATHS.values():
        params = problem.start()
        optimizer = getattr(package, spec.name)(params, decay=1, foreach=foreach)
        advance(optimizer, params, problem.gradients[:3])
        found.append(contents(optimizer))
    return differences(*found)


NARROW_AND_COMPLEX = (torch.float32, torch.bfloat16, torch.float16, torch.complex64)


@pytest.mark.parametrize("dtype", NARROW_AND_COMPLEX, ids=str)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.replace(" ", "-"))
def test_programs_have_the_same_bits_on_both_paths(
    built: tuple[dict[str, Spec], ModuleType], program: str, dtype: torch.dtype
) -> None:
    specs, package = built
    assert differing_paths(package, specs[program], dtype) == []
