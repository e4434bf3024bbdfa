"""Whether a kernel computes what others compute, before its time is taken.

Each check trains the same small tensors for a few steps twice, and counts the elements of the
parameters that differ. `holds` says whether all differences are within `|a - b| <= absolute +
relative * |b|`: after five steps of about 1e-3, some units in the last place of float32, or one of
bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import generated
from benchmarks.contenders import ARGUMENTS, OURS, TORCH_FUSED, contenders
from benchmarks.timing import failure, rounded

# Scalars, less than a vector, less than a block, odd, several blocks, more than one chunk.
SIZES: tuple[tuple[int, ...], ...] = ((), (7,), (513,), (64, 65), (4097,), (300_003,))
STEPS = 5
LIMITS = {torch.float32: (1e-5, 2e-6), torch.bfloat16: (2**-7, 1e-4)}

Make = Callable[[Sequence[Tensor]], Any]


def checked(
    names: Sequence[str],
    dtypes: Mapping[str, torch.dtype],
    device: str,
    sizes: Sequence[tuple[int, ...]] = SIZES,
) -> Iterator[dict[str, Any]]:
    """A row for each kernel, dtype and what it is held against: torch's fused kernel on the same
    device where torch has one, this package's for-loop on the CPU in float32 with what is stored
    rounded after each step, and the reference interpreter in float64. `holds` is None where that
    cannot be run."""
    for name in names:
        for word, dtype in dtypes.items():
            ways = contenders(name)
            plans: dict[str, Callable[[], list[Tensor]]] = {
                "for-loop": partial(by_for_loop, name, dtype, sizes)
            }
            if TORCH_FUSED in ways:
                plans[TORCH_FUSED] = partial(trained, ways[TORCH_FUSED], dtype, device, sizes)
            if dtype is torch.float32:
                plans["interpreter"] = partial(by_interpreter, name, sizes)
            for against, plan in plans.items():
                row: dict[str, Any] = {"optimizer": name, "dtype": word, "against": against}
                try:
                    expected = plan()
                except Exception as error:
                    # torch has the kernel on another device, or the compiler is not installed.
                    yield {**row, **failure(error), "holds": None}
                    continue
                try:
                    found = trained(ways[OURS], dtype, device, sizes)
                    yield {**row, **difference(found, expected, LIMITS[dtype])}
                except Exception as error:
                    yield {**row, **failure(error), "holds": False}


def difference(
    found: Sequence[Tensor], expected: Sequence[Tensor], limits: tuple[float, float]
) -> dict[str, Any]:
    """How far tensors are apart. A NaN is nowhere near."""
    relative, absolute = limits
    a, b = (torch.cat([t.double().flatten() for t in ts]) for ts in (found, expected))
    distance = (a - b).abs()
    return {
        "elements": a.numel(),
        "differing": int((a != b).sum()),
        "largest": rounded(float(distance.max())),
        "relative": relative,
        "absolute": absolute,
        "holds": bool((distance <= absolute + relative * b.abs()).all()),
    }


def problem(
    dtype: torch.dtype, sizes: Sequence[tuple[int, ...]]
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Parameters, and their gradients for each step, on the CPU."""
    random = torch.Generator().manual_seed(0)

    def drawn() -> list[Tensor]:
        return [torch.randn(size, generator=random).to(dtype) for size in sizes]

    return drawn(), [drawn() for _ in range(STEPS)]


def trained(
    make: Make, dtype: torch.dtype, device: str, sizes: Sequence[tuple[int, ...]]
) -> list[Tensor]:
    """What an optimizer makes of the problem."""
    params, gradients = problem(dtype, sizes)
    params = [param.to(device) for param in params]
    optimizer = make(params)
    for grads in gradients:
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.to(device)
        optimizer.step()
    return [param.cpu() for param in params]


def by_for_loop(name: str, dtype: torch.dtype, sizes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """What kernels mean: arithmetic in float32, and one rounding of everything that is stored."""
    params, gradients = problem(dtype, sizes)
    params = [param.float() for param in params]
    make = getattr(generated, name)
    optimizer = make(params, foreach=False, **ARGUMENTS.get(name, {}))
    streams = [slot.name for slot in optimizer.slots if not slot.scalar]

    def round_what_is_stored() -> None:
        for param in params:
            slots = (optimizer.state[param].get(name) for name in streams)
            for tensor in (param, *(slot for slot in slots if slot is not None)):
                tensor.copy_(tensor.to(dtype))

    for param in params:  # first values are stored, too
        optimizer._initialise(optimizer.param_groups[0], param)
    round_what_is_stored()
    for grads in gradients:
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.float()
        optimizer.step()
        round_what_is_stored()
    return params


def by_interpreter(name: str, sizes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """What the spec means: float64 throughout."""
    # The compiler needs packages that a machine for measuring may not have.
    from optdsl.interpret import Member, step_all
    from optdsl.ir import Spec
    from optdsl.pipeline import shipped_library

    spec = shipped_library().find(name)
    assert isinstance(spec, Spec)
    params, gradients = problem(torch.float32, sizes)
    group = getattr(generated, name)(params, **ARGUMENTS.get(name, {})).param_groups[0]
    values: list[tuple[Any, Any]] = [(param.double().numpy(), None) for param in params]
    for grads in gradients:
        members = [
            Member(group, value, grad.double().numpy(), slots)
            for (value, slots), grad in zip(values, grads, strict=True)
        ]
        values = step_all(spec, members)
    return [torch.from_numpy(np.asarray(value)) for value, _ in values]
