"""Kernels in C, compiled many at a time and called as they are, without the package's runtime."""

from __future__ import annotations

import ctypes
import importlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from generated._fused import _compile, _cpu
from generated._tensors import number

FOLDER = _compile.SOURCES
COMPILER = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")
FLAGS = (*_compile.options(), _compile.THREADING[0], "-Wall", "-Wextra")
AT_ONCE = 50


@dataclass(frozen=True)
class Kernel:
    """One specialisation: the constants of a text, by name."""

    text: Path
    constants: tuple[tuple[str, Any], ...]


def program(name: str) -> Any:
    return importlib.import_module(f"generated._programs.{name}")


def kernel(
    text: Path, program: Any, dtypes: Mapping[str, torch.dtype], flags: Mapping[str, bool]
) -> Kernel:
    """The specialisation for tensors of these dtypes, by operand."""
    param = dtypes["param"]
    names = ("param", "grad", *program.SLOTS)
    types = {f"{n.upper()}_TYPE": _cpu.TYPES[dtypes.get(n, param)] for n in names}
    compute = "double" if param is torch.float64 else "float"
    flags = {flag: int(value) for flag, value in flags.items()}
    return Kernel(text, tuple({"COMPUTE": compute, **types, **flags}.items()))


def flags(program: Any) -> Iterator[dict[str, bool]]:
    """Every combination of options and of slots that may be absent."""
    names = [f"HAS_{slot.upper()}" for slot in program.OPTIONAL_SLOTS]
    names += [option.upper() for option in program.OPTIONS]
    for values in itertools.product((False, True), repeat=len(names)):
        yield dict(zip(names, values, strict=True))


def source(kernels: Sequence[Kernel]) -> str:
    """All of them in one text: a compiler's run costs more than a kernel does."""
    lines = []
    for index, one in enumerate(kernels):
        constants = (("KERNEL", f"update_{index}"), *one.constants)
        lines += [f"#define {name} {value}" for name, value in constants]
        lines += [f'#include "{one.text}"', *(f"#undef {name}" for name, _ in constants)]
    return "\n".join([*lines, ""])


def compiled(
    kernels: Sequence[Kernel], folder: Path, *more: str
) -> tuple[dict[Kernel, Any], list[str]]:
    """The kernels as functions, and what the compiler has said."""
    functions: dict[Kernel, Any] = {}
    said: list[str] = []
    for start in range(0, len(kernels), AT_ONCE):
        some = kernels[start : start + AT_ONCE]
        text, shared = (folder / f"kernels_{len(list(folder.iterdir()))}{end}" for end in ("", ""))
        text, shared = text.with_suffix(".c"), shared.with_suffix(".so")
        text.write_text(source(some))
        command = [COMPILER, *FLAGS, *more, "-shared", text, "-o", shared, "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said += done.stderr.splitlines()
        library = ctypes.CDLL(str(shared))
        for index, one in enumerate(some):
            functions[one] = getattr(library, f"update_{index}")
            functions[one].restype = None
    return functions, said


def call(
    function: Any,
    tensors: Sequence[Sequence[Tensor | None]],
    rows: Sequence[Sequence[float]],
    row: Sequence[int] | None = None,
    threads: int = 1,
    factor: float = 1.0,
    more: Sequence[Sequence[Tensor | None]] = (),
    stream: Sequence[int] = (),
    draw: int = 0,
    reductions: Sequence[int] = (),
) -> None:
    """Run a kernel. The arguments are those of `prepared`."""
    for _ in prepared(
        function, tensors, rows, row, threads, factor, more, stream, draw, reductions
    ):
        raise AssertionError("a kernel without barriers")


def prepared(
    function: Any,
    tensors: Sequence[Sequence[Tensor | None]],
    rows: Sequence[Sequence[float]],
    row: Sequence[int] | None = None,
    threads: int = 1,
    factor: float = 1.0,
    more: Sequence[Sequence[Tensor | None]] = (),
    stream: Sequence[int] = (),
    draw: int = 0,
    reductions: Sequence[int] = (),
    barriers: Sequence[int] = (),
) -> Iterator[Tensor]:
    """Run a kernel, as far as each of its barriers, where it gives the numbers of each tensor: what
    stands there when it goes on it reads.

    Args:
        function: of a kernel.
        tensors: for each parameter, then for each gradient and for each of the program's slots.
        rows: the table of numbers.
        row: of that table, for each parameter; by default all have the first.
        threads: of the team.
        factor: of the gradients.
        more: second tensors of parameters, then scales of each slot; by default there are none.
        stream: the key of each parameter's random bits.
        draw: the number of the step.
        reductions: the program's. The space for them holds NaN before the call.
        barriers: how many passes end before each.
    """
    count, slots = len(tensors[0]), len(tensors) - 2
    sizes = [p.numel() for p in tensors[0] if p is not None]
    start = torch.tensor([0, *itertools.accumulate(sizes)])
    addresses = [[0 if t is None else t.data_ptr() for t in group] for group in tensors]
    addresses += [[0 if t is None else t.data_ptr() for t in group] for group in more]
    addresses += [[0] * count for _ in range(0 if more else 1 + slots)]
    address = torch.tensor(addresses, dtype=torch.int64)
    keys = (ctypes.c_uint64 * len(stream))(*stream)
    table = torch.tensor(rows, dtype=torch.float64)
    index = torch.tensor([0] * count if row is None else row)
    pieces = sum(sizes) // _cpu.ELEMENTS_PER_TERM + count + 1
    partial = torch.full((pieces * max(reductions, default=0),), torch.nan, dtype=torch.float64)
    reduced = torch.full((count * sum(reductions),), torch.nan, dtype=torch.float64)
    batch = _cpu.Arguments(
        count, threads, start.data_ptr(), index.data_ptr(), address.data_ptr(), table.data_ptr(),
        ctypes.cast(keys, ctypes.c_void_p), draw, factor, partial.data_ptr(), reduced.data_ptr(),
    )  # fmt: skip
    for end in barriers:
        batch.end = end
        function(ctypes.byref(batch))
        yield reduced.view(count, -1)
        batch.begin = end
    batch.end = 0
    function(ctypes.byref(batch))


# What all tensors make of their terms.
TOTALS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": Tensor.sum, "dot": Tensor.sum, "max_abs": Tensor.max, "norm": lambda x: x.sum().sqrt(),
}  # fmt: skip


def run_together(barriers: Sequence[Any], calls: Sequence[Iterator[Tensor]]) -> None:
    """Run kernels, which are given each other's totals."""
    for _, totals in barriers:
        reduced = [next(each) for each in calls]
        for place, operator in totals:
            total = TOTALS[operator](torch.cat([each[:, place] for each in reduced]))
            for each in reduced:
                each[:, place] = total
    for each in calls:
        assert next(each, None) is None


class Stepper:
    """An optimizer's steps by its kernel, from the state that its class makes."""

    def __init__(self, optimizer: Any, function: Any) -> None:
        self.optimizer = optimizer
        self.function = function
        self.program = program(optimizer.kernels)

    def step(self, threads: int = 1) -> None:
        state, calls, writes = self.optimizer.state, [], []
        slots = (*self.program.SLOTS, *self.program.SCALAR_SLOTS)
        for group in self.optimizer.param_groups:
            params = group["params"]
            rows, unset = [], []
            for param in params:
                own = self.optimizer._initialise(group, param)
                declared = [s.name for s in self.optimizer.slots if s.exists(group, param)]
                unset.append(frozenset(n for n in declared if n in slots and own.get(n) is None))
                for name in unset[-1]:
                    state[param][name] = torch.empty_like(param)
                given = self.program.inputs(group, param, unset[-1])
                numbers = (own[name].item() for name in self.program.SCALAR_SLOTS)
                rows.append(self.program.scalars(*map(number, given), *numbers))
            tensors = [params, [p.grad for p in params]]
            tensors += [[state[p].get(name) for p in params] for name in self.program.SLOTS]
            factor = -1.0 if group["maximize"] else 1.0
            more = {
                "reductions": self.program.REDUCTIONS,
                "barriers": [end for end, _ in self.program.BARRIERS],
            }
            numbers = range(len(rows))
            calls.append(prepared(self.function, tensors, rows, numbers, threads, factor, **more))
            for param, row in zip(params, rows, strict=True):
                values = row[len(row) - len(self.program.SCALAR_SLOTS) :]
                for name, value in zip(self.program.SCALAR_SLOTS, values, strict=True):
                    writes.append((state[param][name], value))
        run_together(self.program.BARRIERS, calls)
        for slot, value in writes:
            slot.fill_(value)


def kernel_for(optimizer: Any) -> Kernel:
    """The kernel of an optimizer's first group, whose parameters agree in dtype."""
    group = optimizer.param_groups[0]
    param = group["params"][0]
    found = program(optimizer.kernels)
    exist = {s.name for s in optimizer.slots if s.exists(group, param)}
    chosen = {f"HAS_{slot.upper()}": slot in exist for slot in found.OPTIONAL_SLOTS}
    chosen |= {option.upper(): bool(group[option]) for option in found.OPTIONS}
    return kernel(FOLDER / f"{optimizer.kernels}.c", found, {"param": param.dtype}, chosen)
