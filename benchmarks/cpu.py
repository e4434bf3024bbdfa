"""Every optimizer's kernel on the CPU against torch's paths and the machine's limit, as JSON.

    python -m benchmarks.cpu -o benchmarks/results/cpu.json     all: twenty minutes, best when idle
    python -m benchmarks.cpu -o benchmarks/results/cpu.json --resume    the rest, if it was stopped
    python -m benchmarks.cpu --quick                            two optimizers
    python -m benchmarks.cpu --sets large --dtypes float32 --optimizers AdamW Lion

What is timed is the whole `step()`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks import machine, memory, suite
from benchmarks.contenders import Make, contenders, launches
from benchmarks.timing import by_wall


def facts(optimizer: Any) -> dict[str, Any]:
    return {"launches": launches(optimizer)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = suite.optimizer_parser(__doc__.partition("\n")[0])
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    options = suite.parse(parser, arguments)
    results = suite.Results("cpu", options)
    size = 2**10 if options.smoke else suite.COPIED
    results.data["copy"] = machine.copy_bandwidth(by_wall, "cpu", size)
    with suite.null_package(results) as null:

        def makers(cell: suite.Cell) -> dict[str, Make]:
            compiled = suite.compiles(options, cell)
            return contenders(cell.algorithm, null=null, compiled=compiled)

        suite.run(results, options, suite.Bench("cpu"), makers, by_wall, facts)
    if not options.no_memory:
        memory.measure(results, options)
    results.finish()


if __name__ == "__main__":
    main()
