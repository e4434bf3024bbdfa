"""Every optimizer's kernel on the CPU against torch's paths and the machine's limit, as JSON.

    python -m benchmarks.cpu -o benchmarks/results/cpu.json     all: at most forty minutes, idle
    python -m benchmarks.cpu -o benchmarks/results/cpu.json --resume    the rest, if it was stopped
    python -m benchmarks.cpu --quick                            two optimizers
    python -m benchmarks.cpu --sets large --dtypes float32 --optimizers AdamW Lion

What is timed is the whole `step()`. Each cell has a process of its own.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine, memory, null, suite
from benchmarks.contenders import contenders, launches
from benchmarks.process import alone
from benchmarks.timing import attempt, by_wall

# The time for a cell, of which most is left for what has to be measured again: forty minutes for
# all cells together.
SECONDS = 11.0


def facts(optimizer: Any) -> dict[str, Any]:
    return {"launches": launches(optimizer)}


def timed(cell: suite.Cell, options: Namespace, folder: Path | None) -> dict[str, Any]:
    """A cell's times. The null optimizers are in a folder, or there are none."""
    with null.imported(folder) as limit:
        found = contenders(cell.algorithm, null=limit, compiled=suite.compiles(options, cell))
        return suite.timed(cell, "cpu", found, by_wall, suite.effort(options), facts)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = suite.optimizer_parser(__doc__.partition("\n")[0])
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    options = suite.parse(parser, arguments)
    if options.minutes is None:
        options.minutes = SECONDS * len(list(suite.cells(options))) / 60
    results = suite.Results("cpu", options)
    size = 2**10 if options.smoke else suite.COPIED
    results.data["copy"] = machine.copy_bandwidth(by_wall, "cpu", size)
    with suite.null_package(results) as folder:

        def time_of(cell: suite.Cell) -> Mapping[str, Any]:
            return alone(attempt, timed, cell, options, folder)

        suite.run(results, options, time_of)
        if not options.no_memory:
            memory.measure(results, options)
        if not options.smoke:
            suite.run_again(results, options, time_of)
    results.finish()


if __name__ == "__main__":
    main()
