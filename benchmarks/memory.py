"""The most memory that a step needs beside parameters, gradients and slots.

On the CPU: by how much the pages in memory (Linux's `VmHWM`) grow during a step, in a process that
has made two steps before and given what it had freed back to the system. Thread stacks and plans,
which outlive a step, count as far as they grow. A gradient is made anew before each step, as a
backward pass does. On a GPU: what torch's allocator has given out at most.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from benchmarks import suite
from benchmarks.contenders import OURS, TORCH_FUSED, contenders
from benchmarks.process import alone
from benchmarks.sets import new_gradients, parameters
from benchmarks.timing import failure


def growth(step: Callable[[], object], device: str) -> int:
    """By how many bytes memory grows at most while a step runs."""
    gc.collect()
    if device == "cpu":
        # Otherwise pages that were freed and kept would hide what the step allocates.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to now's
        before = _high_water()
        step()
        return _high_water() - before
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _high_water() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("the system does not tell how much memory a process had at most")


def measure(results: suite.Results, options: argparse.Namespace) -> None:
    """A row for each contender of each cell of the large sets, from a process for each set and
    dtype; of torch's contenders its kernels, and of AdamW all: they show what takes the place of a
    kernel. A process that fails leaves a row with `error`."""
    rows: list[dict[str, Any]] = results.data.setdefault("memory", [])
    large = [cell for cell in suite.cells(options) if not cell.tensors.small]
    for (name, dtype), alike in groupby(large, key=lambda c: (c.tensors.name, c.dtype)):
        key = {"set": name, "dtype": dtype}
        if results.has(key, "memory"):
            continue
        if results.is_late():
            results.data["skipped"].append({**key, "measured": "memory"})
            continue
        try:
            rows += alone(here, list(alike))
        except Exception as error:
            rows.append({**key, **failure(error)})
        results.save()


def here(cells: Sequence[suite.Cell]) -> list[dict[str, Any]]:
    """The rows of cells that have a set and a dtype in common, measured in this process."""
    params = parameters(cells[0].tensors, suite.DTYPES[cells[0].dtype], "cpu")
    gradients = [param.grad for param in params if param.grad is not None]
    rows = []
    for cell in cells:
        ways = contenders(cell.algorithm)
        if cell.algorithm != "AdamW":
            ways = {name: ways[name] for name in (OURS, TORCH_FUSED) if name in ways}
        for name, make in ways.items():
            row: dict[str, Any] = {**cell.key(), "contender": name}
            try:
                new_gradients(params, gradients)
                optimizer = make(params)
                for _ in range(2):
                    optimizer.step()
                    new_gradients(params, gradients)
                row["bytes"] = growth(optimizer.step, "cpu")
                row["share"] = row["bytes"] / sum(param.nbytes for param in params)
            except Exception as error:
                row.update(failure(error))
            rows.append(row)
    return rows
