"""Names of schedules -> a picture of their rates over the epochs, an SVG or a PNG.

    from optdsl.plot import plot

    plot(["StepLR(step_size=30)", "StepLR(step_size=10, gamma=0.7)"], "rates.svg")

What is drawn is what the interpreter computes. The picture has no ground of its own, and colours
that can be read on white and on black; the same names give the same bytes.
"""

from __future__ import annotations

import ast
import os
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optdsl import interpret
from optdsl.diagnostics import did_you_mean
from optdsl.ir import Base, Example, Hyper, Keep, Schedule
from optdsl.pipeline import Library, load, shipped_library
from optdsl.printing import show_source
from optdsl.resolve.words import type_phrase

# Heavy, and an extra: only drawing needs it.
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STEPS = 100
SUFFIXES = (".svg", ".png")

# A schedule by its name: with the arguments of its examples, with arguments as in Python, or with
# arguments that are values.
Name = str | tuple[str, Mapping[str, Any]]


class PlotError(ValueError):
    """Something that cannot be drawn, or a file that cannot be written."""


@dataclass(frozen=True, slots=True)
class Curve:
    """What a schedule does under some arguments: for epoch 0, 1, 2, ... the rate, "lr", and further
    targets or the metric. `label` is its arguments; `end` says why it ends early, if it does."""

    schedule: Schedule
    label: tuple[str, ...]
    values: Mapping[str, Sequence[float]]
    end: str = ""


def plot(
    names: Sequence[Name],
    file: Path | str | None = None,
    *,
    steps: int = STEPS,
    base_lr: float = 1.0,
    specs: Sequence[Path] = (),
) -> Figure:
    """Draw schedules, one panel for each; the variants of a schedule share a panel.

    Args:
        names: schedules: "StepLR" with the arguments of its spec's examples, or
            "StepLR(30, gamma=0.5)" with these, or ("LambdaLR", {"lr_lambda": function}).
        file: where to write the picture; the suffix says whether as SVG or as PNG.
        steps: how many epochs.
        base_lr: the rate that schedules begin from, unless they have one of their own.
        specs: spec files, or folders of them. By default the schedules that optdsl has.

    Returns:
        The picture, for a notebook or to change it.

    Raises:
        PlotError: a name, an argument, the file or its suffix is wrong, or matplotlib is missing.
        SpecError: the specs have errors.
    """
    if file is not None:
        check_file(Path(file))
    library = load(list(specs)) if specs else shipped_library()
    figure = draw(curves(library, names, steps=steps, base_lr=base_lr))
    if file is not None:
        save(figure, Path(file))
    return figure


def curves(
    library: Library, names: Sequence[Name], *, steps: int = STEPS, base_lr: float = 1.0
) -> tuple[Curve, ...]:
    """What a picture shows. Raises PlotError."""
    if steps < 2:
        raise PlotError(f"A picture needs two epochs at least, not {steps}.")
    if not 0 < base_lr < float("inf"):
        raise PlotError(f"The base rate is a positive number, not {base_lr}.")
    return tuple(_curve(library, name, steps, base_lr) for name in names)


def _curve(library: Library, name: Name, steps: int, base_lr: float) -> Curve:
    if isinstance(name, str):
        called, positional, given = parse_name(name)
    else:
        called, positional, given = name[0], (), dict(name[1])
    schedule = _find(library, called)
    shown = interpret.examples(schedule)
    metric = shown.pop("metric", None)
    if given is None:
        given = shown
        label = tuple(_written(e) for e in schedule.examples if e.name in shown)
    else:
        given = _assigned(schedule, positional, given)
        label = tuple(f"{name}={_spelled(value)}" for name, value in given.items())
    hypers = _arguments(schedule, given)
    if schedule.body and metric is None:
        raise PlotError(
            f"{called} follows a metric, and its spec has none to show. "
            "Add one there, for example: example metric(t) = 0.9 ** t"
        )
    metrics = [metric(t) for t in range(steps)] if schedule.body else []
    found: list[dict[str, float]] = []
    end = ""
    try:
        # What came before an error is kept.
        found.extend(islice(interpret.epochs(schedule, hypers, base_lr, metrics=metrics), steps))
    except (ValueError, ArithmeticError) as error:
        end = str(error)
    if not found:
        raise PlotError(f"{called}: {end}")
    values = {target: [epoch[target] for epoch in found] for target in found[0]}
    if schedule.body:
        values["metric"] = metrics[: len(found)]
    return Curve(schedule, label, values, end)


# Names and arguments


def parse_name(text: str) -> tuple[str, tuple[Any, ...], dict[str, Any] | None]:
    """A schedule's name and its arguments, positional ones and those with a name; None for a name
    alone. Raises PlotError."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    match tree:
        case ast.Name(id=name):
            return name, (), None
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            named: dict[str, Any] = {}
            for keyword in keywords:
                if keyword.arg is None:
                    raise PlotError(f"In '{text}' '**' has no meaning.")
                if keyword.arg in named:
                    raise PlotError(f"'{text}' gives {keyword.arg} twice.")
                named[keyword.arg] = _literal(text, keyword.value)
            return name, tuple(_literal(text, arg) for arg in args), named
        case _:
            raise PlotError(
                f"'{text}' is neither the name of a schedule nor a call such as "
                "StepLR(step_size=30)."
            )


def _literal(text: str, node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError, MemoryError):
        raise PlotError(
            f"'{ast.unparse(node)}' in '{text}' is no literal: write numbers, texts, True, False, "
            "None or lists of them."
        ) from None


def _find(library: Library, name: str) -> Schedule:
    unit = library.find(name)
    if isinstance(unit, Schedule):
        return unit
    if unit is not None:
        raise PlotError(f"'{name}' is no schedule: it has no rates to draw.")
    known = [u.name for u in library.units if isinstance(u, Schedule)]
    hint = " ".join(did_you_mean(name, known)) or f"There are {', '.join(sorted(known))}."
    raise PlotError(f"Unknown schedule '{name}'. {hint}")


def _assigned(
    schedule: Schedule, positional: Sequence[Any], named: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments by name, in the order in which they are given."""
    order = [hyper.name for hyper in schedule.hypers]
    if len(positional) > len(order):
        raise PlotError(
            f"{schedule.name} takes {len(order)} arguments, not {len(positional)}: "
            f"{', '.join(order)}."
        )
    given = dict(zip(order, positional, strict=False))
    for name in named:
        if name in given:
            raise PlotError(f"{schedule.name} is given {name} twice.")
        if name not in order:
            hint = " ".join(did_you_mean(name, order)) or f"It takes {', '.join(order)}."
            raise PlotError(f"{schedule.name} has no argument '{name}'. {hint}")
    return given | dict(named)


def _arguments(schedule: Schedule, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every argument. Raises PlotError."""
    for hyper in schedule.hypers:
        if hyper.name in given:
            _check_type(schedule, hyper, given[hyper.name])
        elif hyper.default is None and not hyper.parts:
            if hyper.type.base is Base.FUNCTION:
                remedy = "a function, which only Python or an 'example' in the spec can give"
            else:
                remedy = f"{type_phrase(hyper.type)}: {schedule.name}({hyper.name}=...)"
            raise PlotError(f"{schedule.name} needs {hyper.name}, {remedy}.")
    try:
        return interpret.arguments(schedule, given)
    except (ValueError, TypeError) as error:
        raise PlotError(f"{schedule.name}: {error}") from None


def _check_type(schedule: Schedule, hyper: Hyper, value: Any) -> None:
    several = isinstance(value, list | tuple)
    if hyper.type.per_group and several and len(value) != 1:
        raise PlotError(f"A picture shows one parameter group: give {hyper.name} one value.")
    values = value if several and (hyper.type.many or hyper.type.per_group) else [value]
    as_declared = several or not hyper.type.many
    if hyper.components:
        return
    if not as_declared or not all(_fits(hyper, v) for v in values):
        raise PlotError(
            f"{schedule.name}: {hyper.name} is {type_phrase(hyper.type)}, not {_spelled(value)}."
        )


def _fits(hyper: Hyper, value: Any) -> bool:
    if value is None:
        return hyper.type.optional
    match hyper.type.base:
        case Base.BOOL:
            return isinstance(value, bool)
        case Base.INT:
            return isinstance(value, int) and not isinstance(value, bool)
        case Base.REAL:
            return isinstance(value, int | float) and not isinstance(value, bool)
        case Base.TEXT:
            return isinstance(value, str) and value in (hyper.type.choices or (value,))
        case Base.FUNCTION:
            return callable(value)


def _spelled(value: Any) -> str:
    """A value as one would write it; a function by its name."""
    return getattr(value, "__name__", "a function") if callable(value) else repr(value)


def _written(example: Example) -> str:
    """An example as an argument; a function as its spec writes it."""
    match example.value:
        case tuple(items):
            return f"{example.name}=[{', '.join(show_source(item) for item in items)}]"
        case value if example.parameters:
            return f"{example.name}({', '.join(example.parameters)}) = {show_source(value)}"
        case value:
            return f"{example.name}={show_source(value)}"


# The picture

# Mid-tones: WCAG 2.2 asks of graphics a contrast of 3, which these have on white, on black and on
# GitHub's dark ground.
INK = "#767c85"
COLOURS = ("#2f7de1", "#d9630b", "#12896a", "#9a5be0", "#d9416f", "#857512")
DASHES = ("solid", (0, (4, 1.2)), (0, (1.2, 1)))

# In inches. Every panel has its place: the widths of letters move no line.
LEFT, RIGHT, BOTTOM, TOP = 0.66, 0.18, 0.5, 0.06
TITLE, LINE, GAP = 0.27, 0.15, 0.14


@dataclass(frozen=True, slots=True)
class Size:
    """What a panel measures: its width, the height of the rate and that of what is below it."""

    width: float
    height: float
    strip: float


ALONE = Size(4.8, 2.1, 0.7)
IN_ROWS = Size(3.0, 1.5, 0.55)
# Letters of a label to an inch.
LETTERS = 18

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "savefig.dpi": 200,
    "lines.linewidth": 1.6,
    "path.simplify": False,
    "text.parse_math": False,
    # Text stays text: it is small, can be searched, and has a font of the reader's.
    "svg.fonttype": "none",
    "svg.hashsalt": "optdsl",
}


@contextmanager
def style() -> Iterator[None]:
    """matplotlib's defaults and ours, whatever a user's settings are."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def draw(shown: Sequence[Curve]) -> Figure:
    """A panel for each schedule, in the order of the first curves. Raises PlotError."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise PlotError(
            "Pictures need matplotlib. To install it: pip install 'optdsl[plot]'"
        ) from None
    names = dict.fromkeys(curve.schedule.name for curve in shown)
    panels = [[c for c in shown if c.schedule.name == name] for name in names]
    columns = min(len(panels), 2 if len(panels) <= 4 else 3)
    size = ALONE if len(panels) == 1 else IN_ROWS
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    heads = [max(TITLE + LINE * len(_labels(p, size)) for p in row) for row in rows]
    bodies = [size.height + max(len(_below(p)) for p in row) * (GAP + size.strip) for row in rows]
    cell = LEFT + size.width + RIGHT
    top = sum(heads) + sum(bodies) + (TOP + BOTTOM) * len(rows)
    with style():
        figure = Figure(figsize=(columns * cell, top))
        for row, head, body in zip(rows, heads, bodies, strict=True):
            for column, panel in enumerate(row):
                _draw_panel(figure, panel, size, column * cell + LEFT, top - TOP - head)
            top -= TOP + head + body + BOTTOM
    return figure


def _labels(panel: Sequence[Curve], size: Size) -> list[tuple[int, str]]:
    """The lines above a panel, each with the number of its curve: the arguments."""
    found = []
    for number, curve in enumerate(panel):
        # An argument is not broken where it has spaces.
        text = ", ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in curve.label)
        found += [(number, line) for line in textwrap.wrap(text, int(LETTERS * size.width))]
    return found


def _below(panel: Sequence[Curve]) -> list[str]:
    """What is drawn below the rate."""
    return list(dict.fromkeys(name for curve in panel for name in curve.values if name != "lr"))


def _draw_panel(
    figure: Figure, panel: Sequence[Curve], size: Size, left: float, top: float
) -> None:
    """`left` and `top` are where the axes of the rate have their upper corner, in inches."""
    width, height = figure.get_size_inches()
    steps = max(len(values) for curve in panel for values in curve.values.values())

    def add(target: str, top: float, tall: float) -> Axes:
        place = (left / width, (top - tall) / height, size.width / width, tall / height)
        axes = figure.add_axes(place, label=f"{panel[0].schedule.name} {target}")
        _draw_lines(axes, panel, target)
        axes.set_xlim(0, steps)
        axes.yaxis.set_label_coords(-0.44 / size.width, 0.5)
        axes.tick_params(length=2, labelsize=7, labelbottom=False)
        return axes

    axes = add("lr", top, size.height)
    axes.set_ylabel(_rate_label(panel[0].schedule))
    _write_head(axes, panel, size)
    top -= size.height
    for name in _below(panel):
        axes = add(name, top - GAP, size.strip)
        axes.set_ylabel(name, fontsize=7)
        axes.locator_params(axis="y", nbins=2)
        top -= GAP + size.strip
    axes.set_xlabel("epoch", labelpad=2)
    axes.tick_params(labelbottom=True)


def _draw_lines(axes: Axes, panel: Sequence[Curve], target: str) -> None:
    drawn = [(n, c.values[target]) for n, c in enumerate(panel) if target in c.values]
    for number, values in drawn:
        axes.plot(
            *_path(values),
            color=COLOURS[number % len(COLOURS)],
            linestyle=DASHES[number % len(DASHES)],
            clip_on=False,
            gid=f"{panel[0].schedule.name}.{number}.{target}",
        )
    finite = [value for _, values in drawn for value in values if isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    # Rates are read from 0, what changes little is read from its least value.
    low = min(low, 0.0) if target == "lr" else low
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
    axes.set_ylim(low - (margin if target != "lr" or low < 0 else 0), high + margin)


def _path(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Epochs and values as the corners of a line: it jumps from one level to the next, and goes
    straight where the value changes all the time."""
    epochs: list[float] = []
    corners: list[float] = []
    for t, value in enumerate(values):
        was_level = t > 0 and values[t - 1] == values[max(t - 2, 0)]
        if was_level and value != values[t - 1] and value == values[min(t + 1, len(values) - 1)]:
            epochs.append(t)
            corners.append(values[t - 1])
        epochs.append(t)
        corners.append(value)
    return epochs, corners


def _rate_label(schedule: Schedule) -> str:
    """Where a schedule begins from the group's rate, the picture has multiples of it."""
    own = any(h.name == "base_lr" for h in schedule.hypers) or any(
        k.keep is Keep.GROUP and k.name == "initial_lr" for k in schedule.kept
    )
    return "learning rate" if own else "learning rate / base"


def _write_head(axes: Axes, panel: Sequence[Curve], size: Size) -> None:
    lines = _labels(panel, size)
    points = 72.0

    def write(text: str, line: float, **style: Any) -> None:
        axes.annotate(
            text, (0, 1), xycoords="axes fraction", xytext=(0, line * points),
            textcoords="offset points", va="baseline", **style,
        )  # fmt: skip

    write(panel[0].schedule.name, LINE * len(lines) + 0.09, fontsize=10, fontweight="bold")
    for place, (number, line) in enumerate(reversed(lines)):
        colour = COLOURS[number % len(COLOURS)] if len(panel) > 1 else INK
        write(line, LINE * place + 0.09, fontsize=7.5, color=colour)


# Files


def check_file(file: Path) -> None:
    """Refuse a file that cannot become a picture before anything is drawn. Raises PlotError."""
    if file.suffix.lower() not in SUFFIXES:
        raise PlotError(f"'{file}' does not say which picture: name it .svg or .png.")
    if file.is_dir():
        raise PlotError(f"'{file}' is a folder.")
    if not file.parent.is_dir():
        raise PlotError(f"There is no folder '{file.parent}'.")


def save(figure: Figure, file: Path) -> None:
    """Write a picture, whole or not at all. Raises PlotError."""
    check_file(file)
    kind = file.suffix.lower()[1:]
    # What matplotlib says of itself and of today would differ from machine to machine.
    about = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
    try:
        with tempfile.TemporaryDirectory(prefix=".optdsl-", dir=file.parent) as staging:
            whole = Path(staging) / file.name
            with style():
                figure.savefig(whole, format=kind, metadata=about[kind])
            os.replace(whole, file)
    except OSError as error:
        raise PlotError(f"'{file}' cannot be written: {error.strerror}.") from None
