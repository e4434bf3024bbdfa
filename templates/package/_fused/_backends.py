"""Members -> a batch on the backend of their device; and what no backend has a kernel for."""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .._slots import Group
from . import _compile, _cpu, _triton
from ._batch import Batch
from ._members import Member

if TYPE_CHECKING:
    from .._optimizer import Optimizer

PACKAGE = __package__.rpartition(".")[0]
# Where Triton kernels run: of CPUs the interpreter, for tests.
DEVICES = ("cuda", "xpu", "cpu")


def is_on_host(device: torch.device) -> bool:
    """Whether C kernels update a device's tensors. Triton's interpreter does for tests."""
    return device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1"


def kernel_of(program: Any, member: Member) -> Any:
    """The kernel that updates members like this one. Raises Unavailable."""
    backend = _cpu if is_on_host(member.param.device) else _triton
    return backend.kernel(program, member)


def has_kernel(program: Any, member: Member) -> bool:
    """Whether there is a kernel for members like this. Of what keeps one away it is said once."""
    try:
        kernel_of(program, member)
    except _compile.Unavailable as reason:
        _say_once(str(reason))
        return False
    return True


def batch_of(
    program: Any, members: list[Member], on_device: bool, numbers: Mapping[int, _triton.Known]
) -> Batch:
    """The batch of members that one call updates. Raises Unavailable."""
    kernel = kernel_of(program, members[0])
    if is_on_host(members[0].param.device):
        return _cpu.Batch(program, kernel, members)
    if on_device:
        return _triton.Batch(program, kernel, members, _triton.DeviceNumbers(program, members))
    known = _triton.HostNumbers(program, members, numbers)
    return _triton.Batch(program, kernel, members, known)


def program_of(optimizer: Optimizer) -> Any:
    """The module with what the algorithm's kernels share."""
    return importlib.import_module(f"{PACKAGE}._programs.{optimizer.kernels}")


def what_lacks_kernels(optimizer: Optimizer, group: Group) -> str:
    """What of an optimizer and a group there are no kernels for; empty if there are."""
    tensors = [t for param in group["params"] for t in (param, param.grad) if t is not None]
    if not optimizer.kernels:
        return type(optimizer).__name__
    if not all(param.is_floating_point() for param in group["params"]):
        return "complex parameters"
    if any(is_traceable_wrapper_subclass(tensor) for tensor in tensors):
        return "tensors that wrap others"
    if any(param.layout is not torch.strided for param in group["params"]):
        return "parameters that are not strided"
    devices = {param.device for param in group["params"]}
    if any(map(is_on_host, devices)) and not _compile.has_source(optimizer.kernels):
        return f"{type(optimizer).__name__} on the CPU"
    others = sorted(d.type for d in devices if not is_on_host(d) and d.type not in DEVICES)
    if others:
        return f"tensors on {', '.join(others)}"
    if not all(map(has_memory, tensors)):
        return "tensors without memory"
    if not all(map(is_on_host, devices)) and importlib.util.find_spec("triton") is None:
        return "an environment without triton"
    return ""


def has_memory(tensor: Tensor) -> bool:
    """Whether the elements of a strided tensor are where a kernel would read them, as those of a
    transform's or of a `FakeTensor` are not. It is not asked of other layouts."""
    try:
        return tensor.layout is not torch.strided or not tensor.numel() or tensor.data_ptr() != 0
    except RuntimeError:
        return False


def say_missing(what: str) -> None:
    """Say once that there is no kernel for something."""
    _say_once(f"There is no fused kernel for {what}.")


@cache
def _say_once(reason: str) -> None:
    said = f"{reason} Operations of torch take its place, which are slower."
    warnings.warn(said, stacklevel=2)
