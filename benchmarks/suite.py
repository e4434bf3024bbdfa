"""What the CPU's and the GPU's benchmarks share: options, cells, the file with the results.

A cell is an algorithm on a set of tensors in one dtype. Its contenders update the same parameters,
each with slots of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine, null
from benchmarks.contenders import NULL, OURS, Make, algorithms, traffic
from benchmarks.sets import SETS, TensorSet, cut, new_gradients, parameters
from benchmarks.timing import Effort, Measure, Step, attempt, failure, interleaved, nothing, rounded

DEFAULT = Effort()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Where gradients lie: at the same addresses in each step, or where a backward pass has put them.
KEPT, NEW = "kept", "new"
# What is copied to see how fast memory is: more than caches hold.
COPIED = 2**30
# What tells machines apart whose times must not be mixed.
PROCESSORS = ("processor", "cores", "gpu")
# Of so many of the largest tensors the first elements say whether a step updates.
SAMPLED, SAMPLE = 20, 4096


@dataclass(frozen=True, slots=True)
class Cell:
    algorithm: str
    tensors: TensorSet
    dtype: str
    gradients: str

    def key(self) -> dict[str, str]:
        names = {"optimizer": self.algorithm, "set": self.tensors.name}
        return {**names, "dtype": self.dtype, "gradients": self.gradients}


# What a cell's row has besides its name: times of contenders, and what belongs to them.
Time = Callable[[Cell], Mapping[str, Any]]


# Options


def parser(description: str, sets: Sequence[str] = tuple(SETS)) -> argparse.ArgumentParser:
    """The options that all benchmarks have. `sets` are those that run by default."""
    found = argparse.ArgumentParser(description=description)
    add = found.add_argument
    add(
        "--sets",
        nargs="+",
        choices=SETS,
        default=list(sets),
        metavar="SET",
        help=f"sets of tensors, of {', '.join(SETS)}; by default {', '.join(sets)}",
    )
    add("--rounds", type=int, default=DEFAULT.rounds, help="steps of a contender, at most")
    add("--seconds", type=float, default=DEFAULT.seconds, help="how long a cell is measured, about")
    add("--smoke", action="store_true", help="sets cut to a few elements: does everything run?")
    add("--minutes", type=float, help="no cell begins after that")
    add("-o", "--output", type=Path, help="the file for the results, JSON; else they are printed")
    add("--resume", action="store_true", help="keep what the file has, and measure what it lacks")
    return found


def optimizer_parser(description: str) -> argparse.ArgumentParser:
    """The options of benchmarks of optimizers."""
    found = parser(description)
    add = found.add_argument
    add(
        "--optimizers",
        nargs="+",
        choices=algorithms(),
        default=list(algorithms()),
        metavar="NAME",
        help="by default all that have kernels",
    )
    add(
        "--dtypes",
        nargs="+",
        choices=DTYPES,
        default=list(DTYPES),
        metavar="DTYPE",
        help=", ".join(DTYPES),
    )
    add(
        "--compile",
        choices=("none", "few", "all"),
        default="few",
        help="in which cells torch.compile takes part: each costs a minute",
    )
    add("--quick", action="store_true", help="AdamW and SGD alone, on ResNet-50 and small tensors")
    return found


def parse(found: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    options = found.parse_args(arguments)
    options.command = sys.argv[1:] if arguments is None else list(arguments)
    if getattr(options, "quick", False):
        options.sets = [name for name in options.sets if name in ("resnet50", "tiny", "host")]
        options.optimizers = [n for n in options.optimizers if n in ("AdamW", "SGD")]
        options.seconds = min(options.seconds, 1.0)
    if options.smoke:
        options.rounds = min(options.rounds, 2)
    if options.resume and options.output is None:
        found.error("--resume needs the file of --output")
    return options


def effort(options: argparse.Namespace) -> Effort:
    least = min(DEFAULT.least, options.rounds)
    return Effort(seconds=options.seconds, rounds=options.rounds, least=least)


def compiles(options: argparse.Namespace, cell: Cell) -> bool:
    """Whether `torch.compile` takes part in a cell."""
    few = (("AdamW", "large"), ("SGD", "large"), ("AdamW", "resnet50"))
    is_one = (cell.algorithm, cell.tensors.name) in few
    return bool(options.compile == "all" or (options.compile == "few" and is_one))


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    for dtype in options.dtypes:
        for name in options.sets:
            if dtype not in SETS[name].dtypes:
                continue
            chosen = cut(SETS[name]) if options.smoke else SETS[name]
            # A thousand addresses are found anew in each step of a training.
            for gradients in (KEPT, NEW) if chosen.small else (KEPT,):
                for algorithm in options.optimizers:
                    yield Cell(algorithm, chosen, dtype, gradients)


# Results


class Results:
    """What is measured, written after each cell: a run that is stopped leaves what it has, and with
    `resume` another one goes on.

    Raises:
        SystemExit: what there is to go on with is of another machine, or of other versions.
    """

    def __init__(self, benchmark: str, options: argparse.Namespace) -> None:
        self.file: Path | None = options.output
        self.end = inf if options.minutes is None else time.monotonic() + 60 * options.minutes
        chosen = {k: v for k, v in vars(options).items() if k not in ("command", "output")}
        self.data: dict[str, Any] = {
            "benchmark": benchmark,
            "command": " ".join(["python", "-m", f"benchmarks.{benchmark}", *options.command]),
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "machine": machine.machine(),
            "versions": machine.versions(),
            "settings": machine.settings(),
            "options": chosen,
            "activity": {"load before": machine.load()},
            "notes": [],
            "skipped": [],
            "sets": {
                name: {"title": SETS[name].title, "tensors": len(SETS[name].shapes),
                       "elements": SETS[name].elements, "small": SETS[name].small}
                for name in options.sets
            },
            "cells": [],
        }  # fmt: skip
        if self.file is not None and options.resume and self.file.exists():
            self._resume(json.loads(self.file.read_text(encoding="utf-8")))

    def _resume(self, before: dict[str, Any]) -> None:
        for key in ("benchmark", "versions", "settings"):
            if before[key] != self.data[key]:
                raise SystemExit(f"{self.file} was measured with another {key}: nothing to resume.")
        if any(before["machine"].get(n) != self.data["machine"].get(n) for n in PROCESSORS):
            raise SystemExit(f"{self.file} was measured on another machine: nothing to resume.")
        self.data["sets"] = before["sets"] | self.data["sets"]
        # What failed is tried again.
        for key in ("cells", "memory"):
            self.data[key] = [row for row in before.get(key, ()) if "error" not in row]

    def has(self, key: Mapping[str, str], rows: str = "cells") -> bool:
        """Whether there is a row of this already."""
        return any(key.items() <= row.items() for row in self.data.get(rows, ()))

    def is_slow(self, key: Mapping[str, str]) -> bool:
        """Whether memory was slow when a cell was measured."""
        return any(key.items() <= row.items() for row in machine.slowed(self.data["cells"]))

    def is_late(self) -> bool:
        """Whether the time is over in which something else may begin."""
        return time.monotonic() > self.end

    def add(self, cell: Mapping[str, Any]) -> None:
        """A further row of the results."""
        self.data["cells"].append(cell)
        print(line(cell), file=sys.stderr)
        self.save()

    def add_again(self, cell: Mapping[str, Any], key: Mapping[str, str]) -> None:
        """A row in the place of an earlier one of the same cell, if memory was faster."""
        rows = self.data["cells"]
        place = next(n for n, row in enumerate(rows) if key.items() <= row.items())
        if cell.get("stream", 0.0) > rows[place]["stream"]:
            rows[place] = cell
            print(f"again: {line(cell)}", file=sys.stderr)
            self.save()

    def note(self, text: str) -> None:
        self.data["notes"].append(text)
        print(f"note: {text}", file=sys.stderr)

    def save(self) -> None:
        cells, activity = self.data["cells"], self.data["activity"]
        activity["busy cells"] = sum(cell.get("busy", False) for cell in cells)
        activity["slow cells"] = len(machine.slowed(cells))
        if self.file is not None:
            half = self.file.with_name(f".{self.file.name}.{os.getpid()}")
            half.write_text(self.text(), encoding="utf-8")
            half.replace(self.file)

    def text(self) -> str:
        """JSON; each row of a table has its line."""
        parts = (f"{json.dumps(key)}: {_value(value)}" for key, value in self.data.items())
        return "{\n" + ",\n".join(parts) + "\n}\n"

    def finish(self) -> None:
        self.save()
        if self.data["activity"]["busy cells"]:
            print("note: the machine was busy; trust ratios, not times.", file=sys.stderr)
        if self.file is None:
            print(self.text(), end="")


def _value(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(map(json.dumps, value)) + "\n]"
    return json.dumps(value)


@contextmanager
def null_package(results: Results) -> Iterator[Path | None]:
    """The folder with the null optimizers. The compiler needs packages that a machine for measuring
    may not have: without them there is no limit to compare with."""
    with ExitStack() as stack:
        folder = None
        try:
            folder = stack.enter_context(null.package())
        except Exception as error:
            results.note(f"no null optimizers: {failure(error)['error']}")
        yield folder


# Timing


def timed(
    cell: Cell,
    device: str,
    makers: Mapping[str, Make],
    measure: Measure,
    effort: Effort,
    after: Callable[[Any], Mapping[str, Any]],
) -> dict[str, Any]:
    """The times of a cell's contenders, and what else its row has.

    Args:
        device: where the parameters are.
        makers: the contenders.
        measure: what times a step.
        after: what is found out about our optimizer besides.
    """
    params = parameters(cell.tensors, DTYPES[cell.dtype], device)
    gradients = [param.grad for param in params if param.grad is not None]
    made: dict[str, Any] = {}

    def maker(name: str) -> Callable[[], Step]:
        def make() -> Step:
            made[name] = makers[name](params)
            step: Step = made[name].step
            return step

        return make

    watch = machine.Watch()
    stream = machine.Stream() if device == "cpu" else None
    times = interleaved(
        {name: maker(name) for name in makers},
        measure,
        effort,
        before=partial(new_gradients, params, gradients) if cell.gradients == NEW else nothing,
        in_breaks=nothing if stream is None else stream.look,
    )
    found: dict[str, Any] = {"busy": watch.seen()["busy"]}
    if stream is not None and stream.found:
        found["stream"] = stream.seen()
    for name, taken in times.items():
        if name != NULL and "error" not in taken:
            taken["changed"] = changed(params, made[name].step)
    if "error" not in times[OURS]:
        found["bytes"] = traffic(made[OURS])
        try:
            found.update(after(made[OURS]))
        except Exception as error:
            found["facts"] = failure(error)
    return {**found, "contenders": times}


def changed(params: Sequence[Tensor], step: Step) -> float:
    """The part of the elements, of a sample, that a step gives another value, which is a number:
    whoever skips its work is fast."""
    largest = sorted(params, key=Tensor.numel)[-SAMPLED:]
    views = [param.detach().flatten()[:SAMPLE] for param in largest]
    before = [view.clone() for view in views]
    step()
    counts = [((a != b) & a.isfinite()).sum().item() for a, b in zip(views, before, strict=True)]
    return rounded(sum(counts) / sum(map(Tensor.numel, views)))


def run(results: Results, options: argparse.Namespace, time_of: Time) -> None:
    """Time every cell that `options` choose and `results` lack."""
    for cell in cells(options):
        if results.has(cell.key()):
            continue
        if results.is_late():
            results.data["skipped"].append(cell.key())
        else:
            results.add(row_of(cell, time_of))


def run_again(results: Results, options: argparse.Namespace, time_of: Time) -> None:
    """Time the cells anew that came while memory was slow, until there are none or it is late."""
    while found := [cell for cell in cells(options) if results.is_slow(cell.key())]:
        for cell in found:
            if results.is_late():
                return
            results.add_again(row_of(cell, time_of), cell.key())


def row_of(cell: Cell, time_of: Time) -> dict[str, Any]:
    """One that fails has its error."""
    return {**cell.key(), **attempt(time_of, cell)}


def line(cell: Mapping[str, Any]) -> str:
    """A cell in a line, for whoever waits: our time, and how much longer the others take."""
    contenders = cell.get("contenders", {OURS: cell})
    name = " ".join(v for k, v in cell.items() if isinstance(v, str) and k != "error")
    if "error" in contenders[OURS]:
        return f"{name}: {contenders[OURS]['error']}"
    times = {n: t["wall"]["median"] for n, t in contenders.items() if "error" not in t}
    others = ", ".join(f"{n} {t / times[OURS]:.2f}x" for n, t in times.items() if n != OURS)
    return f"{name}: {1e3 * times[OURS]:.3g} ms; {others}"
