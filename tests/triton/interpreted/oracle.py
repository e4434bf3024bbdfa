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
from generated import _policy, _precision, _tensors
from optdsl import interpret, pipeline
from optdsl.ir import Assign, If, Let, Ref, Role
from optdsl.ops import Kind
from tests import policies
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
# Of these, what a case of many has of each alignment, and several blocks. A block is 1024 elements
# and takes the interpreter ten milliseconds.
ALIGNED, MISALIGNED = (1, 64, 513, 0), (7, 1000)
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
    # What is added has two more roundings than a gradient: its decay, and the rate of its tensor.
    ("LARS", "momentum_buffer"): 8,
    # What is added is a sum that has been divided.
    ("SNGM", "momentum_buffer"): 8,
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


def read(
    group: dict[str, Any], param: Tensor, state: dict[str, Any]
) -> dict[str, tuple[Tensor, Array | float]]:
    """What a parameter, under the name `param`, and its slots stand for, in the dtype in whose last
    place errors are counted; and where one is rounded at random, how far its neighbours are."""
    param = param.detach()
    if _policy.of(group, param) is None:
        return {key: (value, 0.0) for key, value in {"param": param, **state}.items()}
    wide = {"param": policies.read(param, state), **policies.read_slots(state)}
    found: dict[str, tuple[Tensor, Array | float]] = {}
    for key, value in wide.items():
        stored = param if key == "param" else state[key]
        own = group.get("rounding") if key == "param" else group.get("state_dtype")
        if f"{key}_scale" in state:
            found[key] = value, distances_of_codes(stored, state[f"{key}_scale"])
        elif stored.dtype.itemsize == 2 and own in ("stochastic", torch.bfloat16):
            found[key] = value, unit(stored.dtype, as_array(stored))
        elif key == "param" and state.keys() & {_policy.REMAINDER, _policy.MASTER}:
            found[key] = value, 0.0
        else:
            found[key] = stored, 0.0
    return found


def distances_of_codes(codes: Tensor, scales: Tensor) -> Array:
    """How far the neighbours of dense numbers in 8 bits are, the one that is farther."""
    signed = (scales < 0).repeat_interleave(_precision.BLOCK)[: codes.numel()]
    most = torch.where(signed, 0x7F, 0xFF)
    size = codes.int() & most
    others = ((size + move).clamp_min(0).minimum(most) | codes & ~most for move in (-1, 1))
    here = _precision.decode(codes, scales)
    away = [(_precision.decode(c.to(torch.uint8), scales) - here).abs() for c in others]
    return as_array(torch.maximum(*away))


# A parameter's group, its gradient, and what its step begins with.
Given = tuple[dict[str, Any], Array, dict[str, Array]]


def reference(spec: Any, members: list[Given]) -> list[dict[str, Array]]:
    """What one step of these parameters, which are all, must give: each with its slots, in float64.
    A scalar slot is a float32 on the device, whatever the parameter is: the one thing here that is
    rounded."""
    every = [names_of(spec, *member) for member in members]
    interpret.run_all(tuple(with_operands(spec.body)), every)
    return [
        {
            key: np.asarray(names[key], np.float64)
            for key in ("param", *(s.name for s in spec.states if names[s.name] is not None))
        }
        for names in every
    ]


def names_of(spec: Any, group: dict[str, Any], grad: Array, given: dict[str, Array]) -> Stored:
    """What a parameter's update begins with."""
    names = Stored(spec)
    names.update(interpret.properties(given["param"]))
    names.update(hyperparameters(group))
    for hyper in spec.hypers:
        if hyper.components:
            names.update(zip(hyper.components, names[hyper.name], strict=True))
    names.update(param=given["param"], grad=-grad if group["maximize"] else grad)
    for slot in spec.states:
        is_first = given.keys() == {"param"}
        names[slot.name] = interpret.initial(slot, names) if is_first else given.get(slot.name)
    return names


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


def ulps(actual: Tensor, expected: Array, before: Array, away: Array | float = 0.0) -> Array:
    """Errors in units of the last place of the dtype, taken where the old and the new value
    together are: no sum is better than its terms. Narrow dtypes are held against the rounded
    reference. What is rounded at random may be as far `away` as its neighbours are."""
    if actual.dtype.itemsize == 2:
        expected = rounded(expected, actual.dtype)
    errors = np.maximum(np.abs(as_array(actual) - expected) - away, 0)
    return errors / unit(actual.dtype, np.abs(expected) + np.abs(before))


def unit(dtype: torch.dtype, values: Array) -> Array:
    """The last place of numbers of a dtype."""
    info = torch.finfo(dtype)
    return info.eps * 2.0 ** np.floor(np.log2(np.maximum(np.abs(values), info.tiny)))


def rounded(values: Array, dtype: torch.dtype) -> Array:
    """To a storage type and back, in one rounding: torch goes from float64 by way of float32."""
    digits = {torch.bfloat16: 8, torch.float16: 11}[dtype]
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.rint(np.ldexp(mantissa, digits)), exponent - digits)


def undecided(name: str, group: dict[str, Any], grad: Array, given: dict[str, Array]) -> Array:
    """Elements where a rounding decides the result: the sign of a sum whose terms cancel."""
    if name != "Lion":
        return np.zeros(np.shape(grad), bool)
    old = given.get("exp_avg", np.zeros_like(grad))
    weight = 1 - hyperparameters(group)["betas"][0]
    terms = np.abs(old * (1 - weight)) + np.abs(weight * grad)
    direction = old * (1 - weight) + weight * (-grad if group["maximize"] else grad)
    return np.abs(direction) <= 2.0**-20 * terms


def other_terms(
    name: str, key: str, group: dict[str, Any], grad: Array, given: dict[str, Array]
) -> Array | float:
    """The size of what else is in a sum, beside its old and its new value: its last place is taken
    there. An average may begin as the parameter, and momentum may cancel a gradient."""
    if (name, key) == ("ASGD", "ax"):
        return np.abs(given["param"])
    if (name, key) == ("SGD", "param"):
        buffer = given.get("momentum_buffer", np.zeros_like(grad))
        return hyperparameters(group)["lr"] * (np.abs(buffer) + np.abs(grad))
    return 0.0


# The largest errors of a parameter or slot, by its name and the dtype whose units they are in.
Errors = dict[tuple[str, torch.dtype], float]


def step_and_compare(name: str, optimizer: Any) -> Errors:
    """One step, from the state as it is. The largest error of each of the parameters and slots."""
    before: list[tuple[Tensor, Given]] = []
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param.grad is None:
                continue
            if _policy.of(group, param) is not None:
                optimizer._initialise(group, param)  # first values are stored, and rounded
            held = read(group, param, optimizer.state.get(param, {}))
            given = {k: as_array(v) for k, (v, _) in held.items()}
            before.append((param, (group, as_array(param.grad), given)))
    results = reference(SPECS[name], [member for _, member in before])
    optimizer.step()
    worst: Errors = {}
    for (param, (group, grad, old)), expected in zip(before, results, strict=True):
        skip = undecided(name, group, grad, old)
        found = read(group, param, optimizer.state[param])
        assert found.keys() == expected.keys()
        for key, (actual, away) in found.items():
            assert actual.shape == expected[key].shape
            past = old.get(key, np.zeros_like(expected[key]))
            past = np.abs(past) + other_terms(name, key, group, grad, old)
            errors = ulps(actual, expected[key], past, away)
            if key == "param":
                errors = errors[~skip]
            assert not np.isnan(errors).any(), key
            kind = key, actual.dtype
            worst[kind] = max(worst.get(kind, 0.0), float(np.max(errors, initial=0.0)))
    return worst


def optimizer(name: str, dtype: torch.dtype, **arguments: Any) -> tuple[Any, tuple[int, ...]]:
    """A fused optimizer of three groups, and how far behind an aligned address the gradients of
    each are to begin: all aligned; misaligned parameters; misaligned gradients."""
    torch.manual_seed(0)
    lr = LR.get(name, 0.01)
    second = {"lr": 0.3 * lr, **SECOND_GROUP.get(name, {})}
    third = THIRD_GROUP.get(name, {"weight_decay": 0})
    several = _precision.FEWEST + 1 if arguments.get("state_dtype") == "int8" else 2049
    groups = [
        {"params": parameters(dtype, sizes=(*ALIGNED, several))},
        {"params": parameters(dtype, shift=1, sizes=(*MISALIGNED, several)), **second},
        {"params": parameters(dtype, sizes=(64, 513)), **third},
    ]
    return getattr(generated, name)(groups, **{"lr": lr, **arguments}, fused=True), (0, 0, 1)


def step_with_new_gradients(name: str, optimizer: Any, shifts: tuple[int, ...]) -> Errors:
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
