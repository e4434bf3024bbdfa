"""Specs and torch's hand-written files -> tables of their lines, for README.md.

python -m tests.lines            # print them
python -m tests.lines --write    # rewrite README.md with them, docs/compatibility.md with cases
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.optim import swa_utils

from optdsl import pipeline
from optdsl.ir import Average, Schedule, Spec, Unit
from tests import schedules
from tests.reference import page_regions, paths_of, table

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
COMPATIBILITY = ROOT / "docs" / "compatibility.md"
FOLDERS: dict[type[Unit], str] = {
    Spec: "optimizers",
    Schedule: "schedules",
    Average: "averages",
}
REGION = re.compile(r"(<!-- begin: (?P<name>[a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def lines(path: str | Path) -> int:
    return len(Path(path).read_text(encoding="utf-8").splitlines())


def spec_of(unit: Unit) -> Path:
    return ROOT / "specs" / FOLDERS[type(unit)] / f"{unit.name.lower()}.opt"


def source_lines(code: Any) -> int:
    return len(inspect.getsource(code).splitlines())


def link(unit: Unit) -> str:
    return f"[{unit.name}]({spec_of(unit).relative_to(ROOT).as_posix()})"


def optimizer(unit: Spec) -> tuple[str, ...]:
    theirs: Any = getattr(torch.optim, unit.name, None)
    source = "not in torch" if theirs is None else str(lines(inspect.getfile(theirs.__init__)))
    base = "" if unit.base is None else f", from {unit.base}"
    code = ROOT / "generated" / f"{unit.name.lower()}.py"
    kernel = (ROOT / "generated" / "_programs" / code.name).exists() or unit.base is not None
    return (
        link(unit),
        f"{lines(spec_of(unit))}{base}",
        f"{source}{base}",
        str(lines(code)),
        "yes" if "foreach" in paths_of(unit.name) else "-",
        "yes" if kernel else "-",
    )


def schedule(unit: Schedule) -> tuple[str, ...]:
    kind = schedules.THEIRS.get(unit.name)
    theirs = "not in torch" if kind is None else str(source_lines(kind))
    code = ROOT / "generated" / "lr_scheduler" / f"{unit.name.lower()}.py"
    ours = str(lines(spec_of(unit)))
    return link(unit), ours, theirs, str(lines(code))


def average(unit: Average) -> tuple[str, ...]:
    names = (f"get_{unit.name.lower()}_{form}" for form in ("avg_fn", "multi_avg_fn"))
    functions = [getattr(swa_utils, name) for name in names if hasattr(swa_utils, name)]
    theirs = str(sum(map(source_lines, functions))) if functions else "not in torch"
    code = ROOT / "generated" / "swa_utils" / f"{unit.name.lower()}.py"
    kernel = (ROOT / "generated" / "_programs" / code.name).exists()
    emitted = str(lines(code))
    return link(unit), str(lines(spec_of(unit))), theirs, emitted, "yes" if kernel else "-"


def tables() -> dict[str, str]:
    units = pipeline.shipped_library().units
    specs = [unit for unit in units if isinstance(unit, Spec)]
    schedules = [unit for unit in units if isinstance(unit, Schedule)]
    averages = [unit for unit in units if isinstance(unit, Average)]
    return {
        "optimizers": table(
            ("optimizer", "spec, lines", "torch's file, lines", "emitted, lines", "foreach",
             "fused"),
            map(optimizer, specs),
        ),
        "schedules": table(
            ("schedule", "spec, lines", "torch's class, lines", "emitted, lines"),
            map(schedule, schedules),
        ),
        "averages": table(
            ("average", "spec, lines", "torch's functions, lines", "emitted, lines", "fused"),
            map(average, averages),
        ),
    }  # fmt: skip


def comparisons() -> dict[str, str]:
    """The regions of docs/compatibility.md."""
    return {**page_regions(), **schedules.page_regions()}


def filled(text: str, regions: Mapping[str, str]) -> str:
    """A page with its regions made anew."""
    return REGION.sub(lambda m: f"{m[1]}\n{regions[m['name']]}\n{m[3]}", text)


def main(arguments: list[str]) -> None:
    if arguments != ["--write"]:
        print(*tables().values(), sep="\n")
        return
    for page, regions in ((README, tables()), (COMPATIBILITY, comparisons())):
        page.write_text(filled(page.read_text(encoding="utf-8"), regions), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
