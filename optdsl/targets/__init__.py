"""The one registry of targets. A target is a folder with a view and a lowering, a template, and an
entry here. Sections that share a path form one file, in this order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from optdsl.emit import python_path, render
from optdsl.ir import Average, Schedule, Spec, Unit
from optdsl.targets import (
    average,
    c,
    eager,
    foreach,
    functional,
    latex,
    layout,
    module,
    program,
    schedule,
    triton,
)


@dataclass(frozen=True, slots=True)
class Target:
    """`lower` gives the view that `template` shows, or None where this unit needs no such section.
    `path` says in which file of the package the section stands; None: it is only shown."""

    name: str
    unit: type[Spec] | type[Schedule] | type[Average]
    lower: Callable[[Any], Any | None]
    template: str
    path: Callable[[Unit], PurePosixPath] | None


def optimizer_path(unit: Unit) -> PurePosixPath:
    return python_path(unit.name.lower())


def program_path(unit: Unit) -> PurePosixPath:
    return python_path("_programs", unit.name.lower())


def triton_path(unit: Unit) -> PurePosixPath:
    return python_path("_triton", unit.name.lower())


def c_path(unit: Unit) -> PurePosixPath:
    return PurePosixPath("_c", f"{unit.name.lower()}.c")


def average_program(unit: Average) -> program.View | None:
    return program.lower(average.update_of(unit))


def average_triton(unit: Average) -> triton.View | None:
    return triton.lower(average.update_of(unit), average.NOTE)


def average_c(unit: Average) -> c.View | None:
    return c.lower(average.update_of(unit), average.NOTE)


TARGETS: tuple[Target, ...] = (
    Target("module", Spec, module.lower, "module.py.jinja", optimizer_path),
    Target("eager", Spec, eager.lower, "eager.py.jinja", optimizer_path),
    Target("foreach", Spec, foreach.lower, "foreach.py.jinja", optimizer_path),
    Target("functional", Spec, functional.lower, "functional.py.jinja", optimizer_path),
    Target("program", Spec, program.lower, "program.py.jinja", program_path),
    Target("triton", Spec, triton.lower, "triton.py.jinja", triton_path),
    Target("c", Spec, c.lower, "c.c.jinja", c_path),
    Target(
        "schedule", Schedule, schedule.lower, "schedule.py.jinja",
        lambda unit: python_path("lr_scheduler", unit.name.lower()),
    ),
    Target(
        "average", Average, average.lower, "average.py.jinja",
        lambda unit: python_path("swa_utils", unit.name.lower()),
    ),
    Target("program", Average, average_program, "program.py.jinja", program_path),
    Target("triton", Average, average_triton, "triton.py.jinja", triton_path),
    Target("c", Average, average_c, "c.c.jinja", c_path),
    Target("latex", Spec, latex.lower, "latex.md.jinja", None),
    Target("latex", Schedule, schedule.page, "latex.md.jinja", None),
)  # fmt: skip


def section(target: Target, unit: Unit) -> str | None:
    """What a target emits for a unit; None where it emits nothing for it."""
    if not isinstance(unit, target.unit):
        return None
    view = target.lower(unit)
    if view is None:
        return None
    text = render(target.template, view)
    return layout.module(text) if target.template.endswith(".py.jinja") else text
