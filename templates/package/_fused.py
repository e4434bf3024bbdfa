"""Optimizer and groups with fused=True -> one kernel launch per device, dtypes and options.

A launch reads its tensors through a table of addresses and its numbers through a table of float64.
Both stay on the device; a step writes only what has changed since the last one.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from operator import itemgetter
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim.optimizer import _device_dtype_check_for_fused
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ._optimizer import Optimizer
from ._slots import Group
from ._tensors import number

# Kernels that this process has launched, for tests and benchmarks.
launches = 0

# 8 elements per thread: 128-bit accesses in 16-bit types too, and no spilled registers in any.
BLOCK = 1024
THREADS = 128
# The row of the gradients in the table of tensors.
GRAD = 5

# A graph copies from these host tensors, and reads these launches' tables, at each replay.
_captured: list[Any] = []


def step(optimizer: Optimizer, groups: list[Group]) -> list[Group]:
    """Update the parameters of `groups` that have a gradient. The result are the groups that are
    done; there is no kernel for the others, whose gradients are unscaled now."""
    grad_scale: Tensor | None = getattr(optimizer, "grad_scale", None)
    found_inf: Tensor | None = getattr(optimizer, "found_inf", None)
    # Only the device knows then which step it is: the host must not compute with it.
    on_device = found_inf is not None or any(g["capturable"] for g in groups)
    plan = _plans.get(optimizer)
    if plan is None or not plan.is_current(optimizer, groups, on_device):
        plan = _plans[optimizer] = _Plan(optimizer, groups, on_device, plan)
    plan.run(optimizer, grad_scale, found_inf)
    others = [g for g in optimizer.param_groups if not any(g is done for done in plan.done)]
    return plan.done + _unscale(others, grad_scale, found_inf)


def _unscale(
    groups: list[Group], grad_scale: Tensor | None, found_inf: Tensor | None
) -> list[Group]:
    """What `GradScaler` leaves to an optimizer with `fused=True`, for groups without a kernel. The
    result are those that must stay as they are."""
    if found_inf is not None and found_inf.item():
        return groups
    if grad_scale is not None:
        factor = 1 / grad_scale.item()
        for group in groups:
            for param in group["params"]:
                if param.grad is not None:
                    param.grad.mul_(factor)
    return []


class _Plan:
    """The launches of one optimizer, good while its tensors stay where they are."""

    def __init__(
        self, optimizer: Optimizer, groups: list[Group], on_device: bool, last: _Plan | None
    ) -> None:
        kernels = [_kernels(optimizer, group) for group in groups]
        # Held, so that no other object takes their identity.
        self.groups = groups
        self.kernels = next((k for k in kernels if k is not None), None)
        self.done = [g for g, k in zip(groups, kernels, strict=True) if k is not None]
        self.key = self._key(groups, on_device)
        self.idle: list[Tensor] = []
        batches: dict[Hashable, list[_Member]] = {}
        for group in self.done:
            for param in group["params"]:
                if param.grad is None:
                    self.idle.append(param)
                    continue
                member = _member(optimizer, group, param, param.grad)
                batches.setdefault(_batch(self.kernels, member), []).append(member)
        known = {} if last is None else last.known()
        self.launches = [
            _Launch(
                self.kernels,
                members,
                _DeviceScalars(self.kernels, members)
                if on_device
                else _HostScalars(self.kernels, members, known),
            )
            for members in batches.values()
        ]
        self.unset = any(m.unset for launch in self.launches for m in launch.members)

    def _key(self, groups: list[Group], on_device: bool) -> list[Any]:
        """What the plan was made for, besides tensors."""
        key: list[Any] = [on_device]
        deciding = () if self.kernels is None else self.kernels.DECIDING
        for group in groups:
            key.append([id(group), *map(id, group["params"])])
            key.append([group["maximize"], *(number(group[name]) for name in deciding)])
        return key

    def is_current(self, optimizer: Optimizer, groups: list[Group], on_device: bool) -> bool:
        return (
            not self.unset
            and self.key == self._key(groups, on_device)
            and all(param.grad is None for param in self.idle)
            and all(launch.is_current(optimizer.state) for launch in self.launches)
        )

    def run(
        self, optimizer: Optimizer, grad_scale: Tensor | None, found_inf: Tensor | None
    ) -> None:
        # Whether a slot is set must be known here: the only wait, in a parameter's first step.
        if self.unset and found_inf is not None and found_inf.item():
            return
        for launch in self.launches:
            launch.run(grad_scale, found_inf)
            for member in launch.members:
                for name in member.unset:
                    optimizer.state[member.param][name] = member.slots[name]

    def known(self) -> dict[int, _Known]:
        """Scalar slots that the host knows without asking the device, by their identity."""
        return {id(k.slot): k for launch in self.launches for k in launch.scalars.known()}


_plans: WeakKeyDictionary[Optimizer, _Plan] = WeakKeyDictionary()


def _kernels(optimizer: Optimizer, group: Group) -> Any:
    """The module with the optimizer's kernels; None where it has none, or the group's device."""
    if not optimizer.kernels:
        return _no_kernel(type(optimizer).__name__)
    if group["fused"]:
        for param in group["params"]:
            _device_dtype_check_for_fused(param)
    elif not all(param.is_floating_point() for param in group["params"]):
        return _no_kernel("complex parameters")
    if any(is_traceable_wrapper_subclass(param) for param in group["params"]):
        return _no_kernel("tensors that wrap others")
    devices = {param.device.type for param in group["params"]}
    if "cpu" in devices and os.environ.get("TRITON_INTERPRET") != "1":
        return _no_kernel("CPU")
    if devices - {"cpu", "cuda", "xpu"}:
        return _no_kernel(", ".join(sorted(devices)))
    if importlib.util.find_spec("triton") is None:
        return _no_kernel("an environment without triton")
    module = f"{__package__}._triton.{optimizer.kernels}"
    if importlib.util.find_spec(module) is None:
        return _no_kernel(type(optimizer).__name__)
    return importlib.import_module(module)


@cache
def _no_kernel(what: str) -> None:
    warnings.warn(f"no fused kernel for {what} yet; using the for-loop", stacklevel=2)


# Parameters


@dataclass
class _Member:
    """A parameter with its slots by name, those that do not exist left out. `flat` is what the
    kernel takes for the parameter: itself, or a dense copy where it has gaps or overlaps."""

    group: Group
    param: Tensor
    flat: Tensor
    slots: dict[str, Tensor]
    unset: frozenset[str]
    grad_dtype: torch.dtype

    def given(self, kernels: Any) -> tuple[Any, ...]:
        """The inputs of the scalar program that are not slots."""
        inputs: tuple[Any, ...] = kernels.inputs(self.group, self.param, self.unset)
        return inputs

    def likeness(self, kernels: Any) -> Hashable:
        """Members that agree in this have the same inputs, now and after the group has changed."""
        return (id(self.group), self.given(kernels))


def _member(optimizer: Optimizer, group: Group, param: Tensor, grad: Tensor) -> _Member:
    optimizer._check_param_and_grad(group, param, grad)
    if grad.layout is not torch.strided:
        what = f"The fused kernel of {type(optimizer).__name__}"
        raise RuntimeError(f"{what} does not support sparse gradients")
    state = optimizer._initialise(group, param)
    flat = param if _is_dense(param) else torch.empty_like(param)
    slots: dict[str, Tensor] = {}
    unset = []
    for slot in optimizer.slots:
        if not slot.exists(group, param):
            continue
        if state.get(slot.name) is None:
            unset.append(slot.name)
            slots[slot.name] = torch.empty_like(flat)
        elif slot.scalar:
            slots[slot.name] = state[slot.name].to(param.device, torch.float32)
            state[slot.name] = slots[slot.name]
        else:
            slots[slot.name] = state[slot.name] = _like(state[slot.name], flat, slot.name)
    return _Member(group, param, flat, slots, frozenset(unset), grad.dtype)


def _batch(kernels: Any, member: _Member) -> Hashable:
    """Members of one launch agree in what the kernel is specialised by."""
    return (
        member.param.device,
        member.param.dtype,
        member.grad_dtype,
        tuple((name, slot.dtype) for name, slot in member.slots.items()),
        tuple(member.group[name] for name in kernels.OPTIONS),
        member.group["maximize"],
    )


def _is_dense(tensor: Tensor) -> bool:
    return torch.empty_like(tensor, device="meta").stride() == tensor.stride()


def _order(tensor: Tensor) -> list[tuple[int, int]]:
    """How the elements lie in memory: the strides, but for dimensions of one element."""
    return [(n, s) for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n != 1]


def _like(tensor: Tensor, flat: Tensor, what: str) -> Tensor:
    """The tensor with its elements in the order of `flat`."""
    if tensor.shape != flat.shape or tensor.device != flat.device:
        raise RuntimeError(
            f"{what} has shape {tuple(tensor.shape)} on {tensor.device}, its parameter has shape "
            f"{tuple(flat.shape)} on {flat.device}."
        )
    if _order(tensor) == _order(flat):
        return tensor
    return torch.empty_like(flat, dtype=tensor.dtype).copy_(tensor)


# Scalars


@dataclass
class _Known:
    """A scalar slot's value on the device, good while its version is the same: kernels do not count
    as changes."""

    slot: Tensor
    version: int
    value: float


def _classes(keys: Sequence[Hashable]) -> tuple[list[int], list[int]]:
    """The class of each key, and the index of each class's first key."""
    numbers: dict[Hashable, int] = {}
    firsts: list[int] = []
    for index, key in enumerate(keys):
        if numbers.setdefault(key, len(numbers)) == len(firsts):
            firsts.append(index)
    return [numbers[key] for key in keys], firsts


class _HostScalars:
    """The scalar program in Python: a row of the table for all members with the same inputs. The
    kernel copies the scalar slots from it, so the host knows their values without asking."""

    def __init__(self, kernels: Any, members: list[_Member], known: Mapping[int, _Known]) -> None:
        self.kernels = kernels
        self.slots = [[m.slots[name] for name in kernels.SCALAR_SLOTS] for m in members]
        self.versions = self._versions()
        values = _read([slot for slots in self.slots for slot in slots], known)
        numbers = [tuple(values[id(slot)] for slot in slots) for slots in self.slots]
        self.given, firsts = _classes(
            [(m.likeness(kernels), n) for m, n in zip(members, numbers, strict=True)]
        )
        self.rows = self.given
        self.count = len(firsts)
        self.examples = [members[i] for i in firsts]
        self.numbers = [numbers[i] for i in firsts]
        self.written: list[tuple[float, ...]] = []

    def _versions(self) -> list[int]:
        return [slot._version for slots in self.slots for slot in slots]

    def is_current(self) -> bool:
        return self.versions == self._versions()

    def fill(self, table: Tensor, tensors: Tensor) -> None:
        if _is_capturing(table.device):
            raise RuntimeError("A CUDA graph can hold the step only with capturable=True.")
        rows = [
            self.kernels.scalars(*map(number, m.given(self.kernels)), *numbers)
            for m, numbers in zip(self.examples, self.numbers, strict=True)
        ]
        if rows != self.written:
            _upload(rows, table)
            self.written = rows
        self.numbers = [row[len(row) - len(n) :] for row, n in zip(rows, self.numbers, strict=True)]

    def known(self) -> Iterator[_Known]:
        versions = iter(self.versions)
        for row, slots in zip(self.rows, self.slots, strict=True):
            for slot, value in zip(slots, self.numbers[row], strict=True):
                yield _Known(slot, next(versions), value)


def _read(slots: list[Tensor], known: Mapping[int, _Known]) -> dict[int, float]:
    """The slots' values by identity, all that the host does not know in one transfer."""
    values: dict[int, float] = {}
    unknown: list[Tensor] = []
    for slot in slots:
        entry = known.get(id(slot))
        if entry is not None and entry.slot is slot and entry.version == slot._version:
            values[id(slot)] = entry.value
        else:
            unknown.append(slot)
    if unknown:
        read = torch.stack(unknown).tolist()
        values.update((id(slot), value) for slot, value in zip(unknown, read, strict=True))
    return values


class _DeviceScalars:
    """The scalar program as a kernel: a row of the table for each member. The host gives the
    hyperparameters and waits for nothing."""

    def __init__(self, kernels: Any, members: list[_Member]) -> None:
        self.kernels = kernels
        self.given, firsts = _classes([m.likeness(kernels) for m in members])
        self.rows = list(range(len(members)))
        self.count = len(members)
        self.examples = [members[i] for i in firsts]
        self.inputs = torch.empty(
            len(firsts), kernels.INPUTS, dtype=torch.float64, device=members[0].param.device
        )
        self.written: list[tuple[float, ...]] = []

    def is_current(self) -> bool:
        return True

    def fill(self, table: Tensor, tensors: Tensor) -> None:
        def stays(value: Any) -> bool:
            return isinstance(value, Tensor) and value.device == table.device

        given = [m.given(self.kernels) for m in self.examples]
        numbers = [tuple(0.0 if stays(v) else number(v) for v in row) for row in given]
        if numbers != self.written:
            _upload(numbers, self.inputs)
            self.written = numbers
        for i, row in enumerate(given):
            for j, value in enumerate(row):
                if stays(value):
                    self.inputs[i, j].copy_(value.reshape(()))
        _launch(self.kernels.prologue, self.count, tensors, self.inputs, table, self.count)

    def known(self) -> Iterator[_Known]:
        return iter(())


_Scalars = _HostScalars | _DeviceScalars


# Launches


class _Launch:
    """Members that one launch updates, and its tables on their device."""

    def __init__(self, kernels: Any, members: list[_Member], scalars: _Scalars) -> None:
        self.kernels = kernels
        self.members = members
        self.scalars = scalars
        self.params = [m.param for m in members]
        self.copies = [(m.param, m.flat) for m in members if m.flat is not m.param]
        self.names = list(members[0].slots)
        self.places = self._places([m.slots for m in members])
        # What the last step has seen of the gradients, and copies of those in another layout.
        self.grad_dtype = members[0].grad_dtype
        self.grads: list[int] = []
        self.strides: list[tuple[int, ...]] = []
        self.relaid: list[Tensor] = []

        device = members[0].param.device
        chunks = [max(1, -(-numel // BLOCK)) for numel in self.places[0]]
        absent = [0] * len(members)
        slots = dict(zip(self.names, self.places[2:], strict=True))
        columns = [
            self.places[0],
            [0, *accumulate(chunks[:-1])],
            scalars.rows,
            scalars.given,
            _addresses(m.flat for m in members),
            absent,  # the gradients, written by each step
            *(slots.get(name, absent) for name in (*kernels.SLOTS, *kernels.SCALAR_SLOTS)),
        ]
        self.tensors = torch.tensor(columns, dtype=torch.int64, device=device)
        indices = torch.arange(len(members), dtype=torch.int32, device="cpu")
        self.chunks = indices.repeat_interleave(torch.tensor(chunks, device="cpu")).to(device)
        shape = (scalars.count, kernels.COLUMNS)
        self.table = torch.empty(shape, dtype=torch.float64, device=device)
        self.constants = _constants(kernels, members[0])
        self._refresh_grads()

    def _places(self, slots: Sequence[Mapping[str, Tensor]]) -> list[list[int]]:
        return [list(map(Tensor.numel, self.params)), _addresses(self.params)] + [
            _addresses(map(itemgetter(name), slots)) for name in self.names
        ]

    def is_current(self, state: Mapping[Tensor, Mapping[str, Any]]) -> bool:
        """Whether the table of tensors is right, once the gradients' addresses are."""
        try:
            slots = list(map(state.__getitem__, self.params))
            return (
                self.places == self._places(slots)
                and self.scalars.is_current()
                and self._refresh_grads()
            )
        except (AttributeError, KeyError, RuntimeError, TypeError):
            # A slot or a gradient is gone or has no address: the next plan says what is wrong.
            return False

    def gradients(self) -> list[Any]:
        return [param.grad for param in self.params]

    def _refresh_grads(self) -> bool:
        """Bring the gradients' addresses up to date. False if their dtype is another now."""
        grads = self.gradients()
        if {grad.dtype for grad in grads} != {self.grad_dtype}:
            return False
        strides = list(map(Tensor.stride, grads))
        if strides != self.strides:
            dense = [_like(g, m.flat, "grad") for g, m in zip(grads, self.members, strict=True)]
            self.relaid = [d for d, g in zip(dense, grads, strict=True) if d is not g]
            # Copies are made anew in each step.
            self.strides = [] if self.relaid else strides
            grads = dense
        addresses = _addresses(grads)
        if addresses != self.grads:
            _upload(addresses, self.tensors[GRAD])
            self.grads = addresses
        return True

    def run(self, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        device = self.tensors.device
        with _on(device):
            for param, flat in self.copies:
                flat.copy_(param)
            self.scalars.fill(self.table, self.tensors)
            _launch(
                self.kernels.update,
                len(self.chunks),
                self.tensors,
                self.chunks,
                self.table,
                len(self.members),
                None if grad_scale is None else grad_scale.to(device, non_blocking=True),
                None if found_inf is None else found_inf.to(device, non_blocking=True),
                **self.constants,
            )
            for param, flat in self.copies:
                param.copy_(flat)
        self.relaid = []
        if _is_capturing(device):
            _captured.append(self)


def _constants(kernels: Any, member: _Member) -> dict[str, Any]:
    """What the kernel is specialised by."""
    types = {
        torch.float64: kernels.tl.float64,
        torch.float32: kernels.tl.float32,
        torch.float16: kernels.tl.float16,
        torch.bfloat16: kernels.tl.bfloat16,
    }
    dtypes = {"param": member.param.dtype, "grad": member.grad_dtype}
    for name in kernels.SLOTS:
        # An absent slot is never read; any type will do.
        dtypes[name] = member.slots.get(name, member.param).dtype
    unknown = set(dtypes.values()) - set(types)
    if unknown:
        raise RuntimeError(f"`fused=True` has no kernel for {', '.join(map(str, unknown))}.")
    smallest = min(dtype.itemsize for dtype in dtypes.values())
    double = member.param.dtype is torch.float64
    return {
        "COMPUTE": types[torch.float64 if double else torch.float32],
        **{f"{name.upper()}_TYPE": types[dtype] for name, dtype in dtypes.items()},
        **{f"HAS_{name.upper()}": name in member.slots for name in kernels.OPTIONAL_SLOTS},
        **{name.upper(): member.group[name] for name in kernels.OPTIONS},
        "MAXIMIZE": member.group["maximize"],
        "VECTOR": 16 // smallest,
        "BLOCK": BLOCK,
    }


def _addresses(tensors: Iterable[Tensor]) -> list[int]:
    return list(map(Tensor.data_ptr, tensors))


def _launch(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    global launches
    # Products and sums become one operation only where the kernel says so.
    kernel[(programs,)](*arguments, **constants, num_warps=_warps(), enable_fp_fusion=False)
    launches += 1


@cache
def _warps() -> int:
    return THREADS // (32 if torch.version.hip is None else 64)


def _upload(values: Sequence[Any], into: Tensor) -> None:
    """Numbers to the device, without waiting for it. The allocator of pinned memory knows when the
    copy is done."""
    host = torch.tensor(values, dtype=into.dtype, device="cpu", pin_memory=into.is_cuda)
    into.copy_(host, non_blocking=True)
    if _is_capturing(into.device):
        _captured.append(host)


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    if device.type == "cpu":
        return nullcontext()
    guard: AbstractContextManager[Any] = torch.get_device_module(device).device(device)
    return guard
