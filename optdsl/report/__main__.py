"""What kernels need, as tables.

    python -m optdsl.report                         every kernel with all options
    python -m optdsl.report adam --arch sm_90 cpu   one, for one GPU and this CPU
    python -m optdsl.report --stored float32        all, but tensors of float32 alone
    python -m optdsl.report --sample 40             some, drawn with a fixed seed
    python -m optdsl.report --results rows.jsonl    all, on from where a run was stopped
    python -m optdsl.report -o docs/kernels/report.json

The command fails if a kernel spills registers, has an access to aligned tensors that is narrower
than it could be, or on the CPU a loop without vector instructions.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import Any

from optdsl.report import cpu, gpu, results
from optdsl.report.stored import storages

CPU = "cpu"
TARGETS = (*gpu.ARCHITECTURES, CPU)


def table(rows: Sequence[Any]) -> str:
    """Rows of one kind as aligned text."""
    return results.table([field.name for field in fields(rows[0])], map(astuple, rows))


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


def counted(
    on_gpus: Sequence[gpu.Row] = (), here: Sequence[cpu.Row] = ()
) -> dict[str, list[dict[str, Any]]]:
    """The rows of each algorithm in one, for each GPU and for the CPU: how many kernels there are,
    the most that one needs, and how many are not as they should be; and which these are."""
    groups: dict[tuple[str, str], list[gpu.Row]] = {}
    for row in on_gpus:
        groups.setdefault((row.arch, row.kernel.partition(".")[0]), []).append(row)
    of_algorithms: dict[str, list[cpu.Row]] = {}
    for each in here:
        of_algorithms.setdefault(each.kernel, []).append(each)
    return {
        "gpu": [
            {
                "arch": arch,
                "module": module,
                "kernels": len(rows),
                "registers": max(row.registers for row in rows),
                "shared": max(row.shared for row in rows),
                "spilling": sum(row.spilled > 0 for row in rows),
                "narrow": sum(not row.wide for row in rows),
            }
            for (arch, module), rows in groups.items()
        ],
        "cpu": [
            {
                "module": module,
                "kernels": len(rows),
                "bytes": min(row.bytes for row in rows),
                "scalar": sum(not row.is_fine for row in rows),
            }
            for module, rows in of_algorithms.items()
        ],
        "faults": [
            *(asdict(row) for row in on_gpus if not row.is_fine),
            *(asdict(row) for row in here if not row.is_fine),
        ],
    }


def there_are(
    package: str, names: Sequence[str], stored: Sequence[str], archs: Sequence[str]
) -> dict[str, int]:
    """How many rows a run has that is not cut short."""
    return {
        "of on gpus": sum(map(len, gpu.tasks(package, names, archs, stored))),
        "of on the cpu": sum(map(len, cpu.tasks(package, names, stored))),
    }


def made_with(package: str) -> dict[str, Any]:
    """What the rows follow from besides the kernels."""
    runtime = importlib.import_module(f"{package}._fused._triton")
    return {
        "triton": importlib.metadata.version("triton"),
        "compiler": cpu.version(package).partition("\n")[0],
        "options": " ".join(cpu.flags(package)),
        "block": runtime.BLOCK,
        "threads": runtime.THREADS,
    }


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
    add("--results", type=Path, help="a file that keeps rows; by default there is none")
    add("--minutes", type=float, default=math.inf, help="how long kernels begin; by default all do")
    add("-o", "--output", type=Path, help="a file for the counts in JSON")
    chosen = parser.parse_args(arguments)
    for name in chosen.stored:
        if name not in storages(chosen.package):
            known = "; ".join(storages(chosen.package))
            parser.error(f"unknown storage '{name}'. There are: {known}")
    how = {"stored": chosen.stored, "sample": chosen.sample, "jobs": chosen.jobs}
    how |= {"kept": chosen.results, "minutes": chosen.minutes}
    summaries = []
    on_gpus: tuple[gpu.Row, ...] = ()
    here: tuple[cpu.Row, ...] = ()
    archs = [arch for arch in chosen.arch if arch != CPU]
    if archs:
        on_gpus = gpu.report(chosen.package, chosen.names, archs=archs, **how)
    if on_gpus:
        print(table(on_gpus), end="\n\n")
        summaries.append(gpu_summary(on_gpus))
    if CPU in chosen.arch:
        here = cpu.report(chosen.package, chosen.names, **how)
    if here:
        print(table(here), end="\n\n")
        summaries.append(cpu_summary(here))
    print("\n".join(summaries))
    if chosen.output:
        every = (chosen.package, chosen.names, chosen.stored)
        found = {**made_with(chosen.package), **counted(on_gpus, here), **there_are(*every, archs)}
        chosen.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if not (all(row.is_fine for row in on_gpus) and all(row.is_fine for row in here)):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
