"""Batches on a GPU: tables on the device, and one launch of a Triton kernel.

A launch reads its tensors through a table of addresses and its numbers through a table of float64.
Both stay on the device; a step writes only what has changed since the last one.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from .._policy import DRAWS, needs_bits, scale_of
from .._tensors import number
from . import _batch
from ._members import Constants, Member
from ._watch import address

# 8 elements per thread: 128-bit accesses in 16-bit types too, and no spilled registers in any.
BLOCK = 1024
THREADS = 128
# Rows of the table of tensors: each member's row of the table of numbers, its row of inputs, and
# the address of its gradient.
ROW, GIVEN, GRAD = 2, 3, 5

# A graph copies from these host tensors, and reads these batches' tables, at each replay.
_captured: list[Any] = []


@dataclass(frozen=True)
class Kernel:
    """The module with an algorithm's kernels, and the constants that they are specialised by."""

    module: Any
    constants: dict[str, Any]


def kernel(program: Any, member: Member) -> Kernel:
    """The kernel that updates members like this one."""
    package, _, name = program.__name__.rpartition("._programs.")
    module = importlib.import_module(f"{package}._triton.{name}")
    given = member.constants(program)
    return Kernel(module, constants(module.tl, given, member.group["maximize"]))


def constants(tl: Any, given: Constants, maximize: bool) -> dict[str, Any]:
    """Constants as Triton has them. `tl` is its language."""
    dtypes = [v for v in given.values() if isinstance(v, torch.dtype)]
    found: dict[str, Any] = {
        name: _triton_dtype(tl, value) if isinstance(value, torch.dtype) else value
        for name, value in given.items()
    }
    found["MAXIMIZE"] = maximize
    found["VECTOR"] = 16 // min(dtype.itemsize for dtype in dtypes)
    found["BLOCK"] = BLOCK
    return found


def _triton_dtype(tl: Any, dtype: torch.dtype) -> Any:
    return getattr(tl, str(dtype).removeprefix("torch."))


class Batch(_batch.Batch):
    def __init__(
        self,
        program: Any,
        kernel: Kernel,
        members: list[Member],
        numbers: HostNumbers | DeviceNumbers,
    ) -> None:
        super().__init__(members)
        self.program = program
        self.kernel = kernel
        self.numbers = numbers
        self.placed: list[int] = []
        device = members[0].param.device
        numels = [m.param.numel() for m in members]
        chunks = [max(1, -(-numel // BLOCK)) for numel in numels]
        absent = [0] * len(members)
        second, _ = members[0].roundings()
        scales = map(scale_of, program.SLOTS)
        columns = [
            numels,
            [0, *accumulate(chunks[:-1])],
            absent,  # the rows of both tables
            absent,
            [address(m.flat) for m in members],
            absent,  # the gradients, written by each step
            *(
                [address(m.slots[name]) if name in m.slots else 0 for m in members]
                for name in (*program.SLOTS, *program.SCALAR_SLOTS, second, *scales)
            ),
            # As signed numbers of 64 bits.
            [(m.stream ^ 1 << 63) - (1 << 63) for m in members],
        ]
        self.tensors = torch.tensor(columns, dtype=torch.int64, device=device)
        indices = torch.arange(len(members), dtype=torch.int32, device="cpu")
        self.chunks = indices.repeat_interleave(torch.tensor(chunks, device="cpu")).to(device)
        # The number of the step, where random bits depend on it.
        self.draw = (
            torch.zeros((), dtype=torch.int64, device=device)
            if needs_bits(members[0].group)
            else None
        )
        # What the stages of an update with reductions leave for each other.
        self.scratch = tuple(
            torch.empty(size, dtype=torch.float64, device=device)
            for size in (
                (len(self.chunks) * max(program.REDUCTIONS), len(members) * sum(program.REDUCTIONS))
                if program.REDUCTIONS
                else ()
            )
        )

    @property
    def table(self) -> Tensor:
        return self.numbers.table

    @property
    def reduced(self) -> Tensor:
        return self.scratch[1].view(len(self.members), -1)

    def calls(self, grad_scale: Tensor | None, found_inf: Tensor | None) -> Iterator[None]:
        module, device = self.kernel.module, self.tensors.device
        addresses = list(self.gradients)
        if addresses != self.placed:
            _upload(addresses, self.tensors[GRAD])
            self.placed = addresses
        with _on(device):
            self.numbers.fill(module, self.tensors)
            count = len(self.members)
            arguments = (
                self.tensors,
                self.chunks,
                self.numbers.table,
                count,
                None if grad_scale is None else grad_scale.to(device, non_blocking=True),
                None if found_inf is None else found_inf.to(device, non_blocking=True),
                self._draw(),
                *self.scratch,
            )
        barriers = [end for end, _ in self.program.BARRIERS]
        for done, (stage, total) in enumerate(module.STAGES if self.scratch else (), start=1):
            with _on(device):
                _launch(stage, len(self.chunks), *arguments, **self.kernel.constants)
                _launch(total, count, self.tensors, count, *self.scratch, BLOCK=BLOCK)
            if done in barriers:
                yield
        with _on(device):
            _launch(module.update, len(self.chunks), *arguments, **self.kernel.constants)
        if _is_capturing(device):
            _captured.append(self)

    def _draw(self) -> Tensor | None:
        """The number of the step, on the device."""
        if self.draw is None:
            return None
        number = self.members[0].group[DRAWS]
        if isinstance(number, Tensor):
            return number.to(self.draw.device, non_blocking=True)
        return self.draw.fill_(number)


# Numbers


@dataclass
class Known:
    """A scalar slot's value on the device, good while its version is the same: kernels do not count
    as changes."""

    slot: Tensor
    version: int
    value: float


class HostNumbers:
    """The scalar program in Python. The kernel copies the scalar slots from the table, so the host
    knows their values without asking."""

    def __init__(self, program: Any, members: list[Member], known: Mapping[int, Known]) -> None:
        self.program = program
        self.members = members
        self.slots = [m.slots[name] for m in members for name in program.SCALAR_SLOTS]
        self._number(known)

    def _number(self, known: Mapping[int, Known]) -> None:
        """Give each member its row of the table, by the values of its scalar slots."""
        self.versions = _versions(self.slots)
        values = iter(_read(self.slots, known))
        scalars = [tuple(next(values) for _ in self.program.SCALAR_SLOTS) for _ in self.members]
        self.numbers = _batch.Numbers(self.program, self.members, scalars)
        self.table = torch.empty(
            (len(self.numbers.scalars), self.program.COLUMNS),
            dtype=torch.float64,
            device=self.members[0].param.device,
        )
        self.written: list[tuple[float, ...]] = []
        self.are_placed = False

    def fill(self, module: Any, tensors: Tensor) -> None:
        if _is_capturing(tensors.device):
            raise RuntimeError("A CUDA graph can hold the step only with capturable=True.")
        if self.versions != _versions(self.slots):  # somebody else has written to them
            self._number(self.known())
        if not self.are_placed:
            _upload(self.numbers.rows, tensors[ROW])
            self.are_placed = True
        table = self.numbers.advance()
        if table != self.written:
            _upload(table, self.table)
            self.written = table

    def known(self) -> dict[int, Known]:
        """The scalar slots that have not been written to since, by their identity."""
        values = (value for row in self.numbers.rows for value in self.numbers.scalars[row])
        return {
            id(slot): Known(slot, version, value)
            for slot, version, value in zip(self.slots, self.versions, values, strict=True)
        }


def _versions(slots: list[Tensor]) -> list[int]:
    return [slot._version for slot in slots]


def _read(slots: list[Tensor], known: Mapping[int, Known]) -> list[float]:
    """The slots' values; all that the host does not know in one transfer."""
    entries = [known.get(id(slot)) for slot in slots]
    values = [
        entry.value
        if entry is not None and entry.slot is slot and entry.version == slot._version
        else None
        for slot, entry in zip(slots, entries, strict=True)
    ]
    unknown = [slot for slot, value in zip(slots, values, strict=True) if value is None]
    read = iter(torch.stack(unknown).tolist() if unknown else ())
    return [next(read) if value is None else value for value in values]


class DeviceNumbers:
    """The scalar program as a kernel: a row of the table for each member. The host gives the
    hyperparameters and waits for nothing."""

    def __init__(self, program: Any, members: list[Member]) -> None:
        self.program = program
        device = members[0].param.device
        # Numbers without slots: members that are given the same.
        self.numbers = _batch.Numbers(program, members, [()] * len(members))
        self.examples = self.numbers.examples
        shape = (len(self.examples), program.INPUTS)
        self.inputs = torch.empty(shape, dtype=torch.float64, device=device)
        shape = (len(members), program.COLUMNS)
        self.table = torch.empty(shape, dtype=torch.float64, device=device)
        self.written: list[tuple[float, ...]] = []
        self.are_placed = False

    def fill(self, module: Any, tensors: Tensor) -> None:
        def stays(value: Any) -> bool:
            return isinstance(value, Tensor) and value.device == tensors.device

        count = tensors.shape[1]
        if not self.are_placed:
            _upload([range(count), self.numbers.rows], tensors[ROW : GIVEN + 1])
            self.are_placed = True
        given = [m.given(self.program) for m in self.examples]
        numbers = [tuple(0.0 if stays(v) else number(v) for v in row) for row in given]
        if numbers != self.written:
            _upload(numbers, self.inputs)
            self.written = numbers
        for i, row in enumerate(given):
            for j, value in enumerate(row):
                if stays(value):
                    self.inputs[i, j].copy_(value.reshape(()))
        _launch(module.prologue, count, tensors, self.inputs, self.table, count)

    def known(self) -> dict[int, Known]:
        return {}


# Launches


def _launch(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    # Products and sums become one operation only where the kernel says so.
    kernel[(programs,)](*arguments, **constants, num_warps=_warps(), enable_fp_fusion=False)
    _batch.launches += 1


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
