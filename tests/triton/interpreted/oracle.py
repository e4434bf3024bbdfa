"""The fused step against the reference interpreter, one step at a time."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import generated
from generated import _tensors
from optdsl import interpret, pipeline
from optdsl.ir import Assign, If, Let, Ref, Role
from optdsl.ops import Kind
from tests import reference as for_loop

SPECS: dict[str, Any] = {unit.name: unit for unit in pipeline.shipped_library().units}
# The optimizers that have kernels.
NAMES = tuple(n for n in for_loop.SHIPPED if getattr(generated, n).kernels)
# ASGD averages once t0 steps are over, RAdam scales its steps from the sixth on: tests see both
# sides of each branch.
VARIATIONS = {**for_loop.VARIATIONS, "ASGD": {**for_loop.VARIATIONS["ASGD"], "t0": (1e6, 1)}}
STEPS = {name: 8 if name == "RAdam" else 4 for name in NAMES}
# One element, less than a vector, less than a block, odd, several blocks, none.
SIZES = (1, 7, 64, 513, 1000, 4097, 0)
# What moves parameters.
LR = {"Adadelta": 1.0}
# The groups share a launch: its rows differ in the branch that they take.
SECOND_GROUP: dict[str, dict[str, Any]] = {
    "RAdam": {"betas": (0.8, 0.6)},  # never scales
    "ASGD": {"t0": 2},
}
THIRD_GROUP: dict[str, dict[str, Any]] = {
    "RAdam": {"betas": (0.8, 0.9)},
    "Rprop": {"etas": (0.25, 1.5)},
}

# In units of the last place. Every operation is rounded to nearest, and so is every number that
# comes from the table: a slot is at most four such errors, each half a unit of a term. A parameter
# takes over the error of a step whose terms cancel: up to five bits with momentum, seven where
# RMSprop subtracts the squared mean from the mean square.
SLOT_ULPS = 4
PARAM_ULPS = 32
LIMITS = {
    ("RMSprop", "param"): 128,
    # The square of a step, which is a quotient of roots: sixteen roundings.
    ("Adadelta", "acc_delta"): 8,
    # The average begins as the parameter, with its errors.
    ("ASGD", "ax"): PARAM_ULPS,
    # What is added has two more roundings than a gradient: its decay, and the rate of its tensor.
    ("LARS", "momentum_buffer"): 8,
}
# In float64 the sixth step of RAdam is sensitive to beta2 ** step, which libraries round in two
# ways. A unit of it, 2 ** -53, is 12 / (1 - beta2 ** 6) ** 2 times as much of rho_t, and three
# tenths of that, relatively, of the step: 2 ** -36 with 0.999, which is 2 ** 17 units of a
# parameter as small as the step.
RADAM_FLOAT64_ULPS = 2**17
# One rounding to storage: the neighbour of the nearest value where the reference lies in between.
NARROW_ULPS = 1

Array = Any


def choices(name: str, **more: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    """Every valid combination of an optimizer's options, and of those of `more` that it has."""
    known = {key: values for key, values in more.items() if has(name, key)}
    yield from for_loop.choices(name, **{**VARIATIONS[name], **known})


def has(name: str, option: str) -> bool:
    return option in inspect.signature(getattr(generated, name)).parameters


def launches(name: str) -> int:
    """How many a step of one batch needs: one to update, and two for each pass before that."""
    program = importlib.import_module(f"generated._programs.{getattr(generated, name).kernels}")
    return 1 + 2 * len(program.REDUCTIONS)


def parameters(dtype: torch.dtype, shift: int = 0, sizes: tuple[int, ...] = SIZES) -> list[Tensor]:
    """Parameters that begin `shift` elements behind an aligned address."""
    return [torch.randn(n + shift, dtype=torch.float64).to(dtype)[shift:] for n in sizes]


def give_gradients(params: list[Tensor], shift: int = 0) -> None:
    for param in params:
        grad = torch.randn(param.numel() + shift, dtype=torch.float64).to(param.dtype)
        param.grad = grad[shift:].view(param.shape)


def as_array(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy().copy()


def hyperparameters(group: dict[str, Any]) -> dict[str, Any]:
    return {k: values(v) for k, v in group.items() if k != "params"}


def values(given: Any) -> Any:
    return tuple(map(values, given)) if isinstance(given, tuple) else _tensors.number(given)


def reference(spec: Any, group: dict[str, Any], param: Tensor, state: dict[str, Tensor]) -> Any:
    """What one step must give: the parameter and its slots, in float64. A scalar slot is a float32
    on the device, whatever the parameter is: the one thing here that is rounded."""
    assert param.grad is not None
    grad = as_array(param.grad)
    names = Stored(spec)
    names.update(interpret.properties(as_array(param)))
    names.update(hyperparameters(group))
    for hyper in spec.hypers:
        if hyper.components:
            names.update(zip(hyper.components, names[hyper.name], strict=True))
    names.update(param=as_array(param), grad=-grad if group["maximize"] else grad)
    given = {s.name: as_array(state[s.name]) for s in spec.states if s.name in state}
    for slot in spec.states:
        names[slot.name] = given.get(slot.name) if given else interpret.initial(slot, names)
    interpret.run(tuple(with_operands(spec.body)), names)
    slots = {s.name: names[s.name] for s in spec.states if names[s.name] is not None}
    return names["param"], slots


OPERAND = "operand of a scalar slot"


class Stored(dict[str, Any]):
    """The names of an update. What belongs to a scalar slot is rounded as that is."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.single = {OPERAND, *(s.name for s in spec.states if s.kind is Kind.SCALAR)}

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, float(np.float32(value)) if name in self.single else value)


def with_operands(body: tuple[Any, ...]) -> Iterator[Any]:
    """slot *= e -> e rounded to the slot's type, then the product"""
    for stmt in body:
        match stmt:
            case Assign(operator=operator) if operator:
                yield Let(OPERAND, stmt.value, Kind.SCALAR)
                yield replace(stmt, value=Ref(OPERAND, Role.LOCAL, Kind.SCALAR))
            case If(then=then, orelse=orelse):
                inner = (tuple(with_operands(b)) for b in (then, orelse))
                yield replace(stmt, **dict(zip(("then", "orelse"), inner, strict=True)))
            case _:
                yield stmt


def ulps(actual: Tensor, expected: Array, before: Array) -> Array:
    """Errors in units of the last place of the dtype, taken where the old and the new value
    together are: no sum is better than its terms. Narrow dtypes are held against the rounded
    reference."""
    info = torch.finfo(actual.dtype)
    if actual.dtype.itemsize == 2:
        expected = rounded(expected, actual.dtype)
    scale = np.maximum(np.abs(expected) + np.abs(before), info.tiny)
    unit = info.eps * 2.0 ** np.floor(np.log2(scale))
    return np.abs(as_array(actual) - expected) / unit


def rounded(values: Array, dtype: torch.dtype) -> Array:
    """To a storage type and back, in one rounding: torch goes from float64 by way of float32."""
    digits = {torch.bfloat16: 8, torch.float16: 11}[dtype]
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.rint(np.ldexp(mantissa, digits)), exponent - digits)


def undecided(name: str, group: dict[str, Any], param: Tensor, state: dict[str, Tensor]) -> Array:
    """Elements where a rounding decides the result: the sign of a sum whose terms cancel."""
    if name != "Lion":
        return np.zeros(tuple(param.shape), bool)
    assert param.grad is not None
    grad = as_array(param.grad)
    old = as_array(state["exp_avg"]) if "exp_avg" in state else np.zeros_like(grad)
    weight = 1 - hyperparameters(group)["betas"][0]
    terms = np.abs(old * (1 - weight)) + np.abs(weight * grad)
    direction = old * (1 - weight) + weight * (-grad if group["maximize"] else grad)
    return np.abs(direction) <= 2.0**-20 * terms


def step_and_compare(name: str, optimizer: Any) -> dict[str, float]:
    """One step, from the state as it is. The largest error of each of the parameters and slots."""
    before = []
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param.grad is None:
                continue
            state = optimizer.state.get(param, {})
            old = {"param": as_array(param)} | {k: as_array(v) for k, v in state.items()}
            skip = undecided(name, group, param, state)
            before.append((param, reference(SPECS[name], group, param, state), old, skip))
    optimizer.step()
    worst: dict[str, float] = {}
    for param, (value, slots), old, skip in before:
        state = optimizer.state[param]
        assert set(state) == set(slots)
        for key, expected in {"param": value, **slots}.items():
            actual = param if key == "param" else state[key]
            expected = np.asarray(expected, np.float64)
            assert actual.shape == expected.shape
            errors = ulps(actual, expected, old.get(key, np.zeros_like(expected)))
            if key == "param":
                errors = errors[~skip]
            worst[key] = max(worst.get(key, 0.0), float(np.max(errors, initial=0.0)))
    return worst


def optimizer(name: str, dtype: torch.dtype, **arguments: Any) -> tuple[Any, tuple[int, ...]]:
    """A fused optimizer of three groups, and how far behind an aligned address the gradients of
    each are to begin: all aligned; misaligned parameters; misaligned gradients."""
    torch.manual_seed(0)
    lr = LR.get(name, 0.01)
    second = {"lr": 0.3 * lr, **SECOND_GROUP.get(name, {})}
    third = THIRD_GROUP.get(name, {"weight_decay": 0})
    groups = [
        {"params": parameters(dtype)},
        {"params": parameters(dtype, shift=1), **second},
        {"params": parameters(dtype, sizes=(64, 513)), **third},
    ]
    return getattr(generated, name)(groups, **{"lr": lr, **arguments}, fused=True), (0, 0, 1)


def step_with_new_gradients(name: str, optimizer: Any, shifts: tuple[int, ...]) -> dict[str, float]:
    """One step, compared with the reference."""
    for group, shift in zip(optimizer.param_groups, shifts, strict=True):
        give_gradients(group["params"], shift)
    return step_and_compare(name, optimizer)


def limit(name: str, key: str, dtype: torch.dtype) -> int:
    """The most that a slot or the parameter of an optimizer may be off."""
    if dtype.itemsize == 2:
        return NARROW_ULPS
    if (name, key, dtype) == ("RAdam", "param", torch.float64):
        return RADAM_FLOAT64_ULPS
    return LIMITS.get((name, key), PARAM_ULPS if key == "param" else SLOT_ULPS)
