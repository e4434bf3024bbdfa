"""The fused step against the reference interpreter, one step at a time."""

import numpy as np
import torch

from generated import _optimizer
from optdsl import interpret, pipeline

SPECS = {unit.name: unit for unit in pipeline.shipped_library().units}
SIZES = (1, 7, 64, 513, 1000, 4097, 0)


def parameters(dtype, shift, seed=0, sizes=SIZES):
    """Parameters that begin `shift` elements behind an aligned address."""
    torch.manual_seed(seed)
    return [torch.randn(n + shift, dtype=torch.float32).to(dtype)[shift:] for n in sizes]


def gradients(params, shift=0):
    for param in params:
        grad = torch.randn(param.numel() + shift).to(param.dtype)[shift:]
        param.grad = grad.view(param.shape)


def as_array(tensor):
    return tensor.detach().double().numpy().copy()


def reference(name, optimizer):
    """What one step must give: a parameter and its slots in float64, for each with a gradient."""
    expected = {}
    for group in optimizer.param_groups:
        hypers = {
            key: _optimizer.number(value) for key, value in group.items() if key != "params"
        }
        hypers["betas"] = tuple(map(_optimizer.number, group.get("betas", ())))
        for param in group["params"]:
            if param.grad is None:
                continue
            grad = as_array(param.grad)
            state = {
                key: value.item() if value.dim() == 0 and key == "step" else as_array(value)
                for key, value in optimizer.state.get(param, {}).items()
            }
            expected[param] = interpret.step(
                SPECS[name],
                hypers,
                as_array(param),
                -grad if group["maximize"] else grad,
                # A parameter that has some slots has all but those that no step has set.
                {s.name: state.get(s.name) for s in SPECS[name].states} if state else None,
            )
    return expected


def ulps(actual, expected, before, dtype):
    """The largest error in units of the last place, taken where the old and the new value together
    are: no sum is better than its terms."""
    if expected.size == 0:
        return 0.0
    info = torch.finfo(dtype)
    scale = np.maximum(np.abs(expected) + np.abs(before), info.tiny)
    unit = info.eps * 2.0 ** np.floor(np.log2(scale))
    return float(np.max(np.abs(as_array(actual) - expected) / unit))


def rounded(values, dtype):
    """To a storage type and back. From float64 in one rounding: torch goes by way of float32."""
    if dtype is not torch.bfloat16:
        return torch.from_numpy(values).to(dtype).double().numpy()
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.rint(mantissa * 256), exponent - 8)


def step_and_compare(name, optimizer):
    """One step. The largest error of each of the parameter and the slots, in ulps of its dtype;
    narrow types are held against the rounded reference."""
    expected = reference(name, optimizer)
    before = {
        param: {"param": as_array(param)}
        | {k: as_array(v) for k, v in optimizer.state.get(param, {}).items()}
        for param in expected
    }
    optimizer.step()
    worst = {}
    for param, (value, slots) in expected.items():
        state = optimizer.state[param]
        assert set(state) == set(slots)
        for key, exact in {"param": value, **slots}.items():
            actual = param if key == "param" else state[key]
            exact = np.asarray(exact, np.float64)
            if actual.dtype.itemsize == 2:
                exact = rounded(exact, actual.dtype)
            old = before[param].get(key, np.zeros_like(exact))
            worst[key] = max(worst.get(key, 0.0), ulps(actual, exact, old, actual.dtype))
    return worst
