"""docs/gallery.md and its pictures, from the schedules' specs.

python docs/gallery.py           # write them
python docs/gallery.py --check   # exit 1 if the page would change
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from optdsl.ir import Schedule
from optdsl.pipeline import Library, shipped_library
from optdsl.plot import STEPS, curves, draw, save
from optdsl.targets.schedule import equations

PAGE = Path(__file__).with_name("gallery.md")
FOLDER = Path(__file__).with_name("gallery")

INTRODUCTION = f"""\
# Gallery of schedules

The rates of all schedules that optdsl has over {STEPS} epochs, for the arguments that stand above
each picture: the `example` lines of its spec. Where a schedule drives the momentum, too, or follows
a metric, that is drawn below the rate. The formulas say what a schedule computes: $\\eta_t$ is the
rate of epoch $t$, $\\eta_{{\\mathrm{{base}}}}$ the one that the schedule begins from.

`optdsl plot` draws one, several, or one with several arguments, also from specs of your own:

```console
$ optdsl plot CosineAnnealingLR OneCycleLR -o rates.svg
$ optdsl plot 'StepLR(step_size=30)' 'StepLR(step_size=10, gamma=0.7)' --steps 90 -o steps.png
$ optdsl plot MySchedule --specs my_specs/
```
"""


def schedules(library: Library) -> tuple[Schedule, ...]:
    found = [unit for unit in library.units if isinstance(unit, Schedule)]
    return tuple(sorted(found, key=lambda unit: unit.name.lower()))


def picture(schedule: Schedule) -> Path:
    return FOLDER / f"{schedule.name.lower()}.svg"


def page(library: Library) -> str:
    return "\n".join((INTRODUCTION, *(line for s in schedules(library) for line in section(s))))


def section(schedule: Schedule) -> Iterator[str]:
    # What follows describes other forms of the same rates, and other targets.
    _, formula = next(equations(schedule))
    name = schedule.name.lower()
    yield f"## {schedule.name}\n"
    yield f"{schedule.doc} ([spec](../specs/schedules/{name}.opt))\n"
    yield f"![{schedule.name}: its rate over {STEPS} epochs](gallery/{name}.svg)\n"
    yield "$$"
    yield from formula
    yield "$$\n"


def main() -> None:
    library = shipped_library()
    text = page(library)
    if sys.argv[1:] == ["--check"]:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
            raise SystemExit(f"Out of date: {PAGE.name}. To repair: python docs/gallery.py")
        return
    if sys.argv[1:]:
        raise SystemExit("usage: python docs/gallery.py [--check]")
    FOLDER.mkdir(exist_ok=True)
    planned = [picture(schedule) for schedule in schedules(library)]
    for old in set(FOLDER.iterdir()) - set(planned):
        old.unlink()
    for schedule, file in zip(schedules(library), planned, strict=True):
        save(draw(curves(library, [schedule.name])), file)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
