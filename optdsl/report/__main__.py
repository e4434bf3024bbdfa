"""What kernels need, as tables.

    python -m optdsl.report                         every kernel with all options
    python -m optdsl.report adam --arch sm_90 cpu   one, for one GPU and this CPU
    python -m optdsl.report --stored float32        all, but tensors of float32 alone
    python -m optdsl.report --sample 40             some, drawn with a fixed seed

The command fails if a kernel spills registers, has an access to aligned tensors that is narrower
than it could be, or on the CPU a loop without vector instructions.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from optdsl.report import cpu, gpu
from optdsl.report.stored import storages

CPU = "cpu"
TARGETS = (*gpu.ARCHITECTURES, CPU)


def table(rows: Sequence[Any]) -> str:
    """Rows of one kind as aligned text."""
    heads = [field.name for field in fields(rows[0])]
    cells = [heads, *([_word(getattr(row, head)) for head in heads] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in cells)
    return "\n".join(line.rstrip() for line in lines)


def _word(value: object) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def gpu_summary(rows: Sequence[gpu.Row]) -> str:
    """A line for each GPU."""
    lines = []
    for arch in dict.fromkeys(row.arch for row in rows):
        chosen = [row for row in rows if row.arch == arch]
        lines.append(
            f"{arch}: kernels {len(chosen)}, most registers {max(r.registers for r in chosen)}, "
            f"spilling {sum(r.spilled > 0 for r in chosen)}, "
            f"without the widest accesses {sum(not r.wide for r in chosen)}"
        )
    return "\n".join(lines)


def cpu_summary(rows: Sequence[cpu.Row]) -> str:
    return (
        f"cpu: kernels {len(rows)}, narrowest vectors {min(r.bytes for r in rows)} bytes, "
        f"with a scalar loop {sum(not r.is_fine for r in rows)}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m optdsl.report", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("names", nargs="*", help="modules of kernels; by default all")
    add("--arch", nargs="+", default=TARGETS, help=f"by default {', '.join(TARGETS)}")
    add("--package", default="generated", help="the package that holds them")
    add("--stored", nargs="+", default=(), help="how tensors are stored; by default in every way")
    add("--sample", type=int, help="how many for GPUs, and for the CPU; by default all")
    add("--jobs", type=int, help="how many processes; by default one per processor")
    chosen = parser.parse_args(arguments)
    for name in chosen.stored:
        if name not in storages(chosen.package):
            known = "; ".join(storages(chosen.package))
            parser.error(f"unknown storage '{name}'. There are: {known}")
    how = {"stored": chosen.stored, "sample": chosen.sample, "jobs": chosen.jobs}
    summaries = []
    fine = True
    archs = [arch for arch in chosen.arch if arch != CPU]
    if archs:
        on_gpus = gpu.report(chosen.package, chosen.names, archs=archs, **how)
        print(table(on_gpus), end="\n\n")
        summaries.append(gpu_summary(on_gpus))
        fine = all(row.is_fine for row in on_gpus)
    if CPU in chosen.arch:
        here = cpu.report(chosen.package, chosen.names, **how)
        print(table(here), end="\n\n")
        summaries.append(cpu_summary(here))
        fine = fine and all(row.is_fine for row in here)
    print("\n".join(summaries))
    if not fine:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
