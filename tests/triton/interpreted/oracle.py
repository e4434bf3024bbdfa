"""The fused step against the reference interpreter, one step at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from generated import _optimizer
from optdsl import interpret, pipeline

SPECS: dict[str, Any] = {unit.name: unit for unit in pipeline.shipped_library().units}
# One element, less than a vector, less than a block, odd, several blocks, none.
SIZES = (1, 7, 64, 513, 1000, 4097, 0)
Array = Any


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
    hypers = {k: _optimizer.number(v) for k, v in group.items() if k != "params"}
    return hypers | {"betas": tuple(map(_optimizer.number, group.get("betas", ())))}


def reference(spec: Any, group: dict[str, Any], param: Tensor, state: dict[str, Tensor]) -> Any:
    """What one step must give: the parameter and its slots, in float64."""
    assert param.grad is not None
    grad = as_array(param.grad)
    slots = {s.name: as_array(state[s.name]) if s.name in state else None for s in spec.states}
    if not any(value is not None for value in slots.values()):
        slots = None
    hypers = hyperparameters(group)
    return interpret.step(
        spec, hypers, as_array(param), -grad if group["maximize"] else grad, slots
    )


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
