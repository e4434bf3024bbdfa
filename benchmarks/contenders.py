"""An algorithm's name -> the ways to run it: this package's kernel, torch's, and the limit."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType, ModuleType
from typing import Any

import torch
from torch import Tensor

import generated

Make = Callable[[Sequence[Tensor]], Any]

# Arguments without which an algorithm keeps fewer slots than in use.
ARGUMENTS: dict[str, dict[str, Any]] = {"SGD": {"momentum": 0.9}}

# The names of contenders. Ours, with fused=True, is what the others are compared with.
OURS = "ours"
NULL = "null"
# Torch's, or where it lacks the algorithm, this package's without a kernel.
LOOP, FOREACH = "for-loop", "foreach"
TORCH_FUSED, TORCH_COMPILE = "torch fused", "torch compile"


def algorithms() -> tuple[str, ...]:
    """The optimizers that have kernels."""
    kinds = {name: getattr(generated, name) for name in generated.__all__}
    found = (name for name, kind in kinds.items() if getattr(kind, "kernels", ""))
    return tuple(sorted(found, key=str.lower))


def contenders(
    name: str,
    *,
    null: ModuleType | None = None,
    compiled: bool = False,
    flags: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Make]:
    """What makes an optimizer of each contender.

    Args:
        name: the algorithm.
        null: the package of null optimizers.
        compiled: whether `torch.compile` of torch's step takes part: making it takes a minute.
        flags: further arguments of kernels, such as `capturable`, for those that know them.
    """
    ours = getattr(generated, name)
    theirs: Any = getattr(torch.optim, name, None)
    given = ARGUMENTS.get(name, {})
    kernel = partial(ours, fused=True, **given, **known(ours, flags))
    found: dict[str, Make] = {OURS: kernel}
    if null is not None:
        found[NULL] = partial(getattr(null, f"Null{streams(kernel)}"), fused=True)
    if theirs is not None:
        if known(theirs, {"fused": True}):
            found[TORCH_FUSED] = partial(theirs, fused=True, **given, **known(theirs, flags))
        if compiled:
            found[TORCH_COMPILE] = lambda params: Compiled(theirs(params, **given))
    for path, foreach in ((LOOP, False), (FOREACH, True)):
        found[path] = partial(theirs or ours, foreach=foreach, **given)
    return found


def known(kind: Any, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that an optimizer's class has."""
    names = inspect.signature(kind).parameters
    return {name: value for name, value in flags.items() if name in names}


class Compiled:
    """An optimizer whose step is compiled."""

    def __init__(self, optimizer: Any) -> None:
        torch._dynamo.reset()
        self.step = torch.compile(optimizer.step)


def streams(kernel: Make) -> int:
    """How many tensors an optimizer keeps for each parameter."""
    param = torch.zeros(2, 2)
    optimizer = kernel([param])
    group = optimizer.param_groups[0]
    return sum(not slot.scalar and slot.exists(group, param) for slot in optimizer.slots)


def launches(optimizer: Any) -> int:
    """How many kernels a step calls; 0 where the package has fallen back to other paths."""
    package = type(optimizer).__module__.partition(".")[0]
    runtime = importlib.import_module(f"{package}._fused._batch")
    before = runtime.launches
    optimizer.step()
    return int(runtime.launches - before)


def traffic(optimizer: Any) -> int:
    """The bytes that a step cannot but move: it reads and writes parameters and slots, and reads
    gradients. Slots exist after a first step; numbers per parameter are no stream."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    slots = [v for p in params for v in optimizer.state[p].values() if isinstance(v, Tensor)]
    written = [*params, *(slot for slot in slots if slot.dim())]
    read = [*written, *(p.grad for p in params)]
    return sum(tensor.nbytes for tensor in (*read, *written))
