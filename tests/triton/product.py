"""Every Triton kernel in the interpreter against the reference, in every combination: hours.

    python -m tests.triton.product --results product.jsonl
    python -m tests.triton.product --results product.jsonl --minutes 60 -o docs/kernels/product.json
    python -m tests.triton.product --optimizers Adam Lion --stored float32 "bfloat16, kahan"

A case is an optimizer with some of its options, a way to store parameters and slots, and where the
numbers of a step are computed. Its parameters have all alignments and tails. `--results` names a
file that keeps what is found: a run that was stopped goes on from there, and only what has failed
and kernels that have changed since are run again; several runs may share it. With `--minutes` no
case begins later; after 0 minutes there is what the file has. The command fails if a case does.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import math
import os
import random
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

import generated
from generated._fused import _batch
from optdsl.report import results
from optdsl.report.stored import Storage, storages
from tests.triton.interpreted import oracle

STORAGES: dict[str, Storage] = storages("generated")


@dataclass(frozen=True)
class Case:
    """`stored` names a row of `STORAGES`; where `capturable`, a kernel computes the numbers."""

    optimizer: str
    options: tuple[tuple[str, Any], ...]
    stored: str
    capturable: bool

    def __str__(self) -> str:
        words = [f"{name}={value}" for name, value in self.options]
        return "-".join([self.optimizer, self.stored, *words, *["capturable"] * self.capturable])


def cases() -> Iterator[Case]:
    """Everything with everything, but for one pair that does not meet: where the numbers are
    computed, and policies. A weight decay that is a power of two keeps `grad + decay * param` one
    rounding away from exact, however much the two cancel; the interpreter's `fma` rounds the
    product as well."""
    for name in oracle.NAMES:
        varied = oracle.choices(name, weight_decay=(0, 0.125), maximize=(False, True))
        for options, (stored, storage) in itertools.product(varied, STORAGES.items()):
            for capturable in (False,) if storage.arguments else (False, True):
                yield Case(name, tuple(options.items()), stored, capturable)


def check(case: Case) -> oracle.Errors:
    """Some steps, each from the stored state: the largest errors. One that is above its limit, and
    a launch too many, are AssertionErrors."""
    storage = STORAGES[case.stored]
    options = {**dict(case.options), **storage.arguments, "capturable": case.capturable}
    optimizer, shifts = oracle.optimizer(case.optimizer, storage.param, **options)
    largest: oracle.Errors = {}
    for step in range(oracle.STEPS[case.optimizer]):
        before = _batch.launches
        found = oracle.step_with_new_gradients(case.optimizer, optimizer, shifts)
        launches = oracle.launches(case.optimizer) + case.capturable
        # Under a policy there are more: small tensors are not in 8 bits.
        assert (_batch.launches - before) % launches == 0, step
        assert (_batch.launches - before == launches) or storage.arguments, step
        for kind, error in found.items():
            assert error <= oracle.limit(case.optimizer, *kind), (step, *kind, error)
            largest[kind] = max(largest.get(kind, 0.0), error)
    return largest


# A part for every day

Facts = set[tuple[Any, ...]]


def facts(case: Case) -> tuple[Facts, Facts]:
    """What a case tries. Of its optimizer: dtypes, roundings, and its choices two at a time, among
    which is whether kernels compute in float64; a choice that is not named has its default. Of all:
    how it stores."""
    storage, given = STORAGES[case.stored], dict(case.options)
    chosen = {n: given.get(n, False) for n in (*oracle.VARIATIONS[case.optimizer], "maximize")}
    choices = [*chosen.items(), ("double", storage.param is torch.float64)]
    choices += [("capturable", case.capturable)]
    param, slot = storage.roundings
    own: Facts = {(storage.param,), (param,), (storage.slot, slot)}
    own |= set(itertools.combinations(choices, 2))
    return {(case.optimizer, fact) for fact in own}, {(case.stored,)}


def cover() -> list[Case]:
    """Few cases that hold every fact: each time the one with the most new facts."""
    every = {case: facts(case) for case in cases()}
    groups = [
        {case: own for case, (own, _) in every.items() if case.optimizer == name}
        for name in oracle.NAMES
    ]
    chosen = list(itertools.chain.from_iterable(map(_cover, groups)))
    seen = set().union(*(every[case][1] for case in chosen))
    return chosen + _cover({case: common - seen for case, (_, common) in every.items()})


def _cover(left: dict[Case, Facts]) -> list[Case]:
    chosen = []
    while any(left.values()):
        best = max(left, key=lambda case: len(left[case]))
        chosen.append(best)
        seen = left.pop(best)
        left = {case: new - seen for case, new in left.items()}
    return chosen


# The command


DTYPES = ("float64", "float32", "bfloat16", "float16")
COLUMNS = [f"{dtype} {what}" for dtype in DTYPES for what in ("param", "slots")]


@cache
def follows(name: str) -> str:
    """A hash of what an optimizer's kernels are made of."""
    package, module = Path(generated.__file__).parent, getattr(generated, name).kernels
    files = [f"_triton/{module}", f"_programs/{module}", "_triton/_math", "_triton/_precision"]
    return results.digest(package / f"{file}.py" for file in files)


def key_of(case: Case) -> results.Key:
    return str(case), follows(case.optimizer)


def tried(case: Case) -> dict[str, Any]:
    """What is kept of a case: its largest errors by dtype and name, and why it failed, or nothing.
    Kernels that raise have failed, too."""
    try:
        largest = check(case)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        words = f"{type(error).__name__}: {error} ({place.name}, line {place.lineno})"
        return {"largest": [], "failure": words}
    rows = [[name, str(dtype).removeprefix("torch."), e] for (name, dtype), e in largest.items()]
    return {"largest": rows, "failure": ""}


def summary(found: dict[Case, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each optimizer: cases, failures, and the largest errors of its parameters and slots
    in units of the last place, by dtype."""
    rows = []
    for name in dict.fromkeys(case.optimizer for case in found):
        own = [result for case, result in found.items() if case.optimizer == name]
        largest = dict.fromkeys(COLUMNS, 0.0)
        for slot, dtype, error in itertools.chain.from_iterable(r["largest"] for r in own):
            column = f"{dtype} {'param' if slot == 'param' else 'slots'}"
            largest[column] = max(largest[column], float(f"{error:.3g}"))
        failed = sum(bool(result["failure"]) for result in own)
        rows.append({"optimizer": name, "cases": len(own), "failed": failed, **largest})
    return sorted(rows, key=lambda row: oracle.NAMES.index(row["optimizer"]))


def chosen(names: Iterable[str], stored: Iterable[str]) -> list[Case]:
    """Cases in an order by chance: whenever the run is stopped, it has seen something of all."""
    found = [c for c in cases() if c.optimizer in names and c.stored in stored]
    return random.Random(0).sample(found, len(found))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.triton.product", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--optimizers", nargs="+", choices=oracle.NAMES, default=oracle.NAMES, metavar="NAME")
    add("--stored", nargs="+", choices=STORAGES, default=tuple(STORAGES), metavar="HOW")
    add("--results", type=Path, help="a file that keeps what is found; by default there is none")
    add("--minutes", type=float, default=math.inf, help="how long cases begin; by default all do")
    add("-o", "--output", type=Path, help="a file for the summary in JSON")
    given = parser.parse_args(arguments)
    kept = results.read(given.results) if given.results else {}
    every = chosen(given.optimizers, given.stored)
    end = time.monotonic() + 60 * given.minutes
    found: dict[Case, dict[str, Any]] = {}
    for case in every:
        key = key_of(case)
        if time.monotonic() < end and (key not in kept or kept[key]["failure"]):
            kept[key] = tried(case)
            if given.results:
                results.add(given.results, key, kept[key])
        if key in kept:
            found[case] = kept[key]
    failures = {str(case): r["failure"] for case, r in found.items() if r["failure"]}
    rows = summary(found)
    print("\n".join(f"FAILED {case}: {why}" for case, why in failures.items()))
    print(results.table(list(rows[0]), [row.values() for row in rows]) if rows else "")
    print(f"cases: {len(found)} of {len(every)}, failed: {len(failures)}")
    if given.output:
        versions = {name: importlib.metadata.version(name) for name in ("triton", "torch", "numpy")}
        counts = {"versions": versions, "cases": len(found), "of": len(every)}
        text = json.dumps({**counts, "failures": failures, "optimizers": rows}, indent=1)
        given.output.write_text(text + "\n", encoding="utf-8")
    if failures:
        raise SystemExit(1)


if __name__ == "__main__":
    if os.environ.get("TRITON_INTERPRET") != "1":
        # Triton reads it when it is imported; the modules above have done that.
        os.environ["TRITON_INTERPRET"] = "1"
        os.execv(sys.executable, [sys.executable, "-m", "tests.triton.product", *sys.argv[1:]])
    from tests.triton.interpreted import interpreter

    interpreter.install()
    main()
