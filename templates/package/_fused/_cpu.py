"""Batches on the CPU: tables in this process's memory, and one call of a C function."""

from __future__ import annotations

import ctypes
import os
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain, groupby
from operator import mul
from typing import Any

import torch
from torch import Tensor

from .._policy import DRAWS, scale_of
from .._slots import Vector, is_shared
from . import _batch, _compile
from ._members import Constants, Member
from ._watch import address

TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint8: "Q8",
}
# What a policy of precision adds to types of 16 bits.
ENDINGS = {"nearest": "", "stochastic": "S", "remainder": "K", "master": "M"}
# With fewer elements than this for each a thread costs more than it does.
ELEMENTS_PER_THREAD = 1 << 18
# A reduction adds up as many elements, and then the sums: kernel.h says so, too.
ELEMENTS_PER_TERM = 1 << 16

# A parallel region in a forked process waits for threads that are not there.
_is_forked = False


def _after_fork() -> None:
    global _is_forked
    _is_forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Arguments(ctypes.Structure):
    """`struct batch` of the kernels' header."""

    _fields_ = (
        ("count", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("start", ctypes.c_void_p),
        ("row", ctypes.c_void_p),
        ("address", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("stream", ctypes.c_void_p),
        ("draw", ctypes.c_uint64),
        ("factor", ctypes.c_double),
        ("partial", ctypes.c_void_p),
        ("reduced", ctypes.c_void_p),
        ("begin", ctypes.c_int64),
        ("end", ctypes.c_int64),
    )


def kernel(program: Any, member: Member) -> _compile.Function:
    """The function that updates members like this one.

    Raises:
        Unavailable: it cannot be compiled.
    """
    name = program.__name__.rpartition(".")[2]
    return _compile.load(_compile.Kernel(name, spelled(member.constants(program))))


def spelled(constants: Constants) -> tuple[tuple[str, str], ...]:
    """Constants as C has them."""
    words = {
        name: TYPES[value] if isinstance(value, torch.dtype) else str(int(value))
        for name, value in constants.items()
        if not isinstance(value, str)
    }
    words["COMPUTE"] = "double" if constants["COMPUTE"] is torch.float64 else "float"
    words["PARAM_TYPE"] += ENDINGS[str(constants["PARAM_ROUNDING"])]
    for name, word in words.items():
        if word == "BF16" and name not in ("PARAM_TYPE", "GRAD_TYPE"):
            words[name] += ENDINGS[str(constants["SLOT_ROUNDING"])]
    return tuple(words.items())


class Batch(_batch.Batch):
    def __init__(self, program: Any, function: _compile.Function, members: list[Member]) -> None:
        super().__init__(members)
        self.program = program
        self.function = function
        self.sign = -1.0 if members[0].group["maximize"] else 1.0
        count = len(members)
        second, _ = members[0].roundings()
        beside = (second, *map(scale_of, program.SLOTS))
        columns = [
            [address(m.flat) for m in members],
            [0] * count,
            *(_places(members, name) for name in (*program.SLOTS, *beside)),
        ]
        self.addresses = _array(ctypes.c_uint64, chain.from_iterable(columns))
        self.gradients = (ctypes.c_uint64 * count).from_buffer(self.addresses, 8 * count)
        self.numels = [m.param.numel() for m in members]
        self.start: Any = (ctypes.c_int64 * (count + 1))()
        self.cells = [_Cells([m.slots[name] for m in members]) for name in program.SCALAR_SLOTS]
        self.streams = _array(ctypes.c_uint64, [m.stream for m in members])
        self.arguments = Arguments(
            count=count,
            start=ctypes.addressof(self.start),
            address=ctypes.addressof(self.addresses),
            stream=ctypes.addressof(self.streams),
        )
        self._count(bytes(count))
        if program.REDUCTIONS:
            # No more than a term of each tensor is smaller than the others.
            terms = sum(self.numels) // ELEMENTS_PER_TERM + count + 1
            self.partial = (ctypes.c_double * (terms * max(program.REDUCTIONS)))()
            self.numbers_of_each = (ctypes.c_double * (count * sum(program.REDUCTIONS)))()
            self.arguments.partial = ctypes.addressof(self.partial)
            self.arguments.reduced = ctypes.addressof(self.numbers_of_each)
        self.rows: Any = (ctypes.c_int64 * count)()
        self.arguments.row = ctypes.addressof(self.rows)
        # What is in the arrays of rows and of the table.
        self.placed: list[int] = []
        self.written: list[tuple[float, ...]] = []
        self._number([cells.read() for cells in self.cells])

    def _count(self, present: bytes) -> None:
        """Cut the elements of members that are there into tensors; the others have none."""
        self.counted = present
        self.start[1:] = list(accumulate(map(mul, self.numels, present)))
        self.threads = 1 + self.start[-1] // ELEMENTS_PER_THREAD

    def _number(self, seen: list[bytes]) -> None:
        """Give each member its row of the table, by the bytes of its scalar slots."""
        self.seen = seen
        values = zip(*(array("f", column) for column in seen), strict=True)
        scalars = list(values) if seen else [()] * len(self.members)
        self.numbers = _batch.Numbers(self.program, self.members, scalars)

    @property
    def reduced(self) -> Tensor:
        flat = torch.frombuffer(self.numbers_of_each, dtype=torch.float64)
        return flat.view(len(self.members), -1)

    def _write(self, rows: list[int], table: list[tuple[float, ...]]) -> None:
        """Let the kernel read these."""
        if rows is not self.placed:
            self.rows[:] = rows
            self.placed = rows
        if table != self.written:
            if len(table) != len(self.written):
                self.table = (ctypes.c_double * (len(table) * self.program.COLUMNS))()
                self.arguments.table = ctypes.addressof(self.table)
            self.table[:] = list(chain.from_iterable(table))
            self.written = table

    def calls(self, grad_scale: Tensor | None, found_inf: Tensor | None) -> Iterator[None]:
        seen = [cells.read() for cells in self.cells]
        if seen != self.seen:  # somebody else has written to them
            self._number(seen)
        present = bytes(self.present)
        if present != self.counted:
            self._count(present)
        arguments = self.arguments
        arguments.threads = 1 if _is_forked else min(torch.get_num_threads(), self.threads)
        arguments.draw = int(self.members[0].group.get(DRAWS, 0))
        arguments.factor = self.sign if grad_scale is None else self.sign / grad_scale.item()
        rows = self.numbers.rows
        self._write(rows, self.numbers.advance(present))
        arguments.begin = 0
        for end, _ in self.program.BARRIERS:
            arguments.end = end
            self.function(ctypes.byref(arguments))
            _batch.launches += 1
            yield
            arguments.begin = end
        arguments.end = 0
        self.function(ctypes.byref(arguments))
        _batch.launches += 1
        for index, cells in enumerate(self.cells):
            self.seen[index] = cells.write(self.numbers, index)


class _Cells:
    """A scalar slot of all members: float32 in memory, most often next to each other."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.views = []
        self.memory = []  # which views do not keep
        self.count = 0
        for start, length in _runs(map(address, tensors)):
            numbers = (ctypes.c_char * (4 * length)).from_address(start)
            self.views.append(memoryview(numbers).cast("B"))
            self.memory.append(tensors[self.count].untyped_storage())
            self.count += length

    def read(self) -> bytes:
        return b"".join(self.views)

    def write(self, numbers: _batch.Numbers, index: int) -> bytes:
        """Write what the rows have for the slot."""
        values = [row[index] for row in numbers.scalars]
        if len(values) == 1:
            data = struct.pack("f", *values) * self.count
        else:
            data = array("f", map(values.__getitem__, numbers.rows)).tobytes()
        start = 0
        for view in self.views:
            view[:] = data[start : start + len(view)]
            start += len(view)
        return data


def _runs(addresses: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Addresses of float32 -> the first of those that follow each other, and how many do."""
    for _, run in groupby(enumerate(addresses), lambda pair: pair[1] - 4 * pair[0]):
        places = [place for _, place in run]
        yield places[0], len(places)


def gather(state: Any, members: Sequence[Member], name: str) -> None:
    """Lay a scalar slot of members into one piece of memory, each the state's own tensor."""
    tensors = [m.slots[name] for m in members]
    if is_shared(tensors[0]) or len(list(_runs(map(address, tensors)))) == 1:
        return  # other processes see these tensors: they stay where they are
    vector = Vector(tensors, torch.float32, torch.device("cpu"))
    for member, view in zip(members, vector.views, strict=True):
        member.slots[name] = state[member.param][name] = view


def _places(members: Sequence[Member], name: str) -> list[int]:
    """The addresses of a slot, which all members have or none. Raises RuntimeError where one has
    no memory, as what is made in a `FakeTensorMode`."""
    if name not in members[0].slots:
        return [0] * len(members)
    places = [address(m.slots[name]) for m in members]
    if any(not place and m.slots[name].numel() for place, m in zip(places, members, strict=True)):
        raise RuntimeError(f"{name} has no memory.")
    return places


def _array(kind: Any, values: Iterable[int]) -> Any:
    values = list(values)
    room = (kind * len(values))()
    room[:] = values
    return room
