"""docs/kernels.md, from what two long runs have found.

python docs/kernels.py           # write it
python docs/kernels.py --check   # exit 1 if it would change

The runs: `python -m optdsl.report -o docs/kernels/report.json` and `python -m tests.triton.product
-o docs/kernels/product.json`, each with `--results` to go on after a stop.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("kernels.md")
FOLDER = Path(__file__).with_name("kernels")


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines)


def page(report: dict[str, Any], product: dict[str, Any]) -> str:
    parts = (introduction(), on_gpus(report), on_the_cpu(report), values(product))
    return "\n".join(text for part in parts for text in part)


def introduction() -> Iterator[str]:
    yield """\
# What kernels need, and how far off they are

Two runs that take hours on a machine of two cores. Nothing on this page was measured on a GPU: the
kernels were compiled for GPUs that were not there, and run by Triton's interpreter.
"""


SPILLING = """\
These spill, so many bytes for a thread. There are 255 registers, but the assembler takes fewer to
have room for another block on a multiprocessor. Allowed 255 by `.maxnreg` it does not spill: seen
for RMSprop, whose kernel then takes 80.
"""


def part(count: int, of: int) -> str:
    return f"all {of:,}" if count == of else f"{count:,} of {of:,} so far"


def on_gpus(report: dict[str, Any]) -> Iterator[str]:
    """The kernels of each algorithm, and of all."""
    rows = report["gpu"]
    if not rows:
        return
    archs = list(dict.fromkeys(row["arch"] for row in rows))
    count = sum(row["kernels"] for row in rows)
    yield f"""\
## On GPUs

    python -m optdsl.report --arch {" ".join(archs)}

Every algorithm with each set of its options and each way to store parameters and slots, compiled by
Triton {report["triton"]} for blocks of {report["block"]:,} elements and {report["threads"]}
threads. Kernels: {part(count, report["of on gpus"])}.
`spilling` counts those whose registers do not suffice, `narrow` those with an access to aligned
tensors that is narrower than a thread's share of a block allows, which is 128 bits but for slots of
8 bits.
"""
    yield table(
        ("GPU", "kernels", "most registers", "most shared memory, bytes", "spilling", "narrow"),
        (
            (
                arch,
                sum(row["kernels"] for row in own),
                max(row["registers"] for row in own),
                max(row["shared"] for row in own),
                sum(row["spilling"] for row in own),
                sum(row["narrow"] for row in own),
            )
            for arch in archs
            for own in [[row for row in rows if row["arch"] == arch]]
        ),
    )
    spilling = [row for row in report["faults"] if row.get("spilled")]
    if spilling:
        yield SPILLING
        names = ("kernel", "options", "stored", "arch", "registers", "spilled")
        yield table(names, ((row[name] for name in names) for row in spilling))
    yield "The most registers that a thread takes in any kernel of an algorithm:\n"
    found = {(row["module"], row["arch"]): row["registers"] for row in rows}
    names = sorted({row["module"] for row in rows})
    yield table(
        ("module", *archs), ((name, *(found.get((name, a), "-") for a in archs)) for name in names)
    )


def on_the_cpu(report: dict[str, Any]) -> Iterator[str]:
    rows = report["cpu"]
    if not rows:
        return
    count = sum(row["kernels"] for row in rows)
    yield f"""\
## On the CPU

    python -m optdsl.report --arch cpu

The same in C: {count:,} of {report["of on the cpu"]:,} kernels, compiled by
{report["compiler"]} with `{report["options"]}`.
Kernels with a loop over elements that did not become vector instructions:
{sum(row["scalar"] for row in rows)}. The narrowest vectors have
{min(row["bytes"] for row in rows)} bytes.
"""


def values(product: dict[str, Any]) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in product["versions"].items())
    rows = product["optimizers"]
    if not rows:
        return
    yield f"""\
## Against the reference interpreter

    python -m tests.triton.product

Triton's interpreter runs each kernel on tensors of all alignments and tails, for some steps, each
from what the last one has stored; the reference computes in float64 what the spec means. A case is
a set of options, a way to store, and where the numbers of a step are computed. Cases:
{part(product["cases"], product["of"])}; failed: {len(product["failures"])} ({versions}).

Errors are in units of the last place of the dtype, where the old and the new value and what else is
in a sum together are. In 16 bits 1 is the neighbour of the correctly rounded value. What is stored
in more bits than its dtype has counts as float32, and what is rounded at random counts by how far
it lies beyond both neighbours. `tests/triton/interpreted/oracle.py` has the limits, and reasons for
those that are large.
"""
    yield table(list(rows[0]), (row.values() for row in rows))


def kept() -> Iterator[dict[str, Any]]:
    """What the two runs have found."""
    for name in ("report", "product"):
        yield json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def main() -> None:
    text = page(*kept())
    if sys.argv[1:] == ["--check"]:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
            raise SystemExit(f"Out of date: {PAGE.name}. To repair: python docs/kernels.py")
    elif sys.argv[1:]:
        raise SystemExit("usage: python docs/kernels.py [--check]")
    else:
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
