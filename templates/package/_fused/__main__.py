"""Compile the kernels that training most often needs, ahead of time, for machines without a
compiler or for a first step without a wait:

    python -m PACKAGE._fused
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from itertools import chain, combinations

import torch

from . import _compile, _cpu, _watch
from ._backends import PACKAGE
from ._members import constants

DTYPES = (torch.float32, torch.bfloat16)


def common() -> Iterator[_compile.Kernel]:
    """Of every algorithm, with all tensors in one of the `DTYPES` and at most two options or
    optional slots at once."""
    yield _watch.KERNEL
    for source in sorted(_compile.SOURCES.glob("[!_]*.c")):
        program = importlib.import_module(f"{PACKAGE}._programs.{source.stem}")
        flags = (*program.OPTIONAL_SLOTS, *program.OPTIONS)
        for chosen in chain.from_iterable(combinations(flags, count) for count in range(3)):
            for dtype in DTYPES:
                dtypes = dict.fromkeys(("param", "grad", *program.SLOTS), dtype)
                given = constants(program, dtypes, chosen)
                yield _compile.Kernel(source.stem, _cpu.spelled(given))


def main() -> None:
    start = time.perf_counter()
    try:
        built = _compile.build(list(common()))
    except _compile.Unavailable as reason:
        raise SystemExit(str(reason)) from None
    seconds = time.perf_counter() - start
    print(
        f"{built.folder}: kernels compiled: {built.compiled}, runs of the compiler: {built.runs}, "
        f"kernels that were there: {built.present}, {seconds:.1f} s."
    )


if __name__ == "__main__":
    main()
