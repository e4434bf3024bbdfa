"""Results -> which of the goals for kernels they reach, and what misses one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.contenders import FOREACH, LOOP, NULL, OURS, TORCH_FUSED
from benchmarks.machine import slowed
from benchmarks.sets import SETS

Cell = Mapping[str, Any]
Data = Mapping[str, Any]
# A contender's figure in a cell of some results, None where it has none.
Figure = Callable[[Cell, Data, str], float | None]

# A contender that changes less than this part of what the one changes that changes most does not
# do the work.
IDLE = 0.1


def spent(cell: Cell, name: str | None, measure: str) -> Mapping[str, float] | None:
    """A contender's time, None where it took no part or failed."""
    found: Mapping[str, float] | None = cell.get("contenders", {}).get(name, {}).get(measure)
    return found


def is_idle(cell: Cell, name: str | None) -> bool:
    """Whether a contender leaves parameters as they are that others update."""
    changed = {n: c["changed"] for n, c in cell.get("contenders", {}).items() if "changed" in c}
    return name in changed and changed[name] < IDLE * max(changed.values())


def best(cell: Cell, measure: str) -> str | None:
    """Which of torch's paths is the faster one."""
    times = {n: t["median"] for n in (LOOP, FOREACH) if (t := spent(cell, n, measure))}
    return min(times, key=lambda name: times[name]) if times else None


def ratio(cell: Cell, name: str | None, measure: str, of: str = OURS) -> float | None:
    """A contender's time in times of ours, or of another one's."""
    one, theirs = spent(cell, of, measure), spent(cell, name, measure)
    return None if one is None or theirs is None else theirs["median"] / one["median"]


def per_parameter(data: Data, cell: Cell, name: str | None, measure: str) -> float | None:
    """The microseconds that a contender takes for a parameter."""
    time = spent(cell, name, measure)
    tensors = data["sets"][cell["set"]]["tensors"]
    return None if time is None else 1e6 * time["median"] / tensors


# Goals


def _to_fused(cell: Cell, data: Data, who: str) -> float | None:
    return None if cell["optimizer"] == "SGD" else _to_any_fused(cell, data, who)


def _to_fused_sgd(cell: Cell, data: Data, who: str) -> float | None:
    return _to_any_fused(cell, data, who) if cell["optimizer"] == "SGD" else None


def _to_any_fused(cell: Cell, _: Data, who: str) -> float | None:
    return ratio(cell, TORCH_FUSED, "wall", who)


def _to_best(cell: Cell, _: Data, who: str) -> float | None:
    has_kernel = TORCH_FUSED in cell.get("contenders", {})
    return None if has_kernel else ratio(cell, best(cell, "wall"), "wall", who)


def _of_limit(cell: Cell, _: Data, who: str) -> float | None:
    return ratio(cell, NULL, "wall") if who == OURS else None


def of_copy(cell: Cell, data: Data, who: str = OURS) -> float | None:
    """The part of a copy's bandwidth that a contender reaches on the device."""
    time, copied = spent(cell, who, "device"), data.get("copy", {}).get("median")
    return None if time is None or copied is None else cell["bytes"] / time["median"] / copied


def _launches(cell: Cell, _: Data, who: str) -> float | None:
    found: int | None = cell.get("launches") if who == OURS else None
    return found


def _of_host(cell: Cell, data: Data, who: str) -> float | None:
    return per_parameter(data, cell, who, "wall")


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound of a figure in all cells of some dtypes and sets: from below, or with `at_most` from
    above."""

    title: str
    dtypes: tuple[str, ...]
    sets: tuple[str, ...]
    figure: Figure
    bound: float
    form: str = "{:.2f}"
    at_most: bool = False


F32, BF16 = ("float32",), ("bfloat16",)
KERNEL = "times torch's fused kernel"
OTHER = "times the best of for-loop and foreach, where torch has no kernel"
LARGE = tuple(name for name, chosen in SETS.items() if not chosen.small)
ON_CPU = (
    Goal(KERNEL, F32, ("large",), _to_any_fused, 1.05),
    Goal(KERNEL, F32, ("llm", "resnet50"), _to_any_fused, 1.12),
    Goal(KERNEL, BF16, ("large",), _to_any_fused, 1.35),
    Goal(KERNEL, BF16, ("llm", "resnet50"), _to_any_fused, 1.8),
    Goal(f"{KERNEL}, but SGD", F32 + BF16, ("tiny",), _to_fused, 6),
    Goal(f"{KERNEL}, SGD", F32 + BF16, ("tiny",), _to_fused_sgd, 4),
    Goal(OTHER, F32, ("resnet50",), _to_best, 2.2),
    Goal(OTHER, BF16, ("resnet50",), _to_best, 5),
    Goal(OTHER, F32 + BF16, ("tiny",), _to_best, 8),
    Goal("of the limit's speed", F32, LARGE, _of_limit, 0.93, "{:.0%}"),
    Goal("microseconds for a parameter", F32, ("host",), _of_host, 1.0, at_most=True),
)  # fmt: skip
ON_GPU = (
    Goal(KERNEL, F32 + BF16, tuple(SETS), _to_any_fused, 1.0),
    Goal("of a copy's bandwidth", F32 + BF16, LARGE, of_copy, 0.9, "{:.0%}"),
    Goal("launches of a step", F32 + BF16, tuple(SETS), _launches, 1, "{:.0f}", at_most=True),
)
GOALS = {"cpu": ON_CPU, "gpu": ON_GPU}
# Of the parameters' bytes.
EXTRA_MEMORY = 0.01


@dataclass(frozen=True, slots=True)
class Judged:
    """What became of a goal: in how many of all cells it is reached, the worst figure, those that
    miss it, with theirs and the null kernel's, and how many of these the null kernel misses, too:
    what moves the same bytes does not get further."""

    title: str
    where: str
    bound: str
    reached: int
    cells: int
    worst: str
    missed: tuple[str, ...]
    out_of_reach: int


def judged(data: Data) -> Iterator[Judged]:
    """The goals that results say something about."""
    slow = slowed(data["cells"])
    for goal in GOALS[data["benchmark"]]:
        figures = [
            (figure, goal.figure(cell, data, NULL), cell)
            for cell in data["cells"]
            if cell["dtype"] in goal.dtypes and cell["set"] in goal.sets
            if (figure := goal.figure(cell, data, OURS)) is not None
        ]
        where = f"{', '.join(goal.dtypes)}: {', '.join(f'`{name}`' for name in goal.sets)}"
        names = [
            (f, limit, _named(c, data) + "†" * is_idle(c, TORCH_FUSED) + "‡" * (c in slow))
            for f, limit, c in figures
        ]
        yield from _judged(goal.title, where, goal.bound, goal.form, goal.at_most, names)
    shares = [
        (row["share"], None, f"{row['optimizer']} `{row['set']}` {row['dtype']}")
        for row in data.get("memory", ())
        if row.get("contender") == OURS and "share" in row
    ]
    title = "extra memory, of the parameters' bytes"
    yield from _judged(title, "all large sets", EXTRA_MEMORY, "{:.2%}", True, shares)


def _judged(
    title: str,
    where: str,
    bound: float,
    form: str,
    at_most: bool,
    figures: Sequence[tuple[float, float | None, str]],
) -> Iterator[Judged]:
    if not figures:
        return
    sign = -1 if at_most else 1

    def misses(figure: float) -> bool:
        return not sign * figure >= sign * bound

    ordered = sorted(figures, key=lambda row: sign * row[0])
    missed = [row for row in ordered if misses(row[0])]
    words = "at most " if at_most else "at least "
    yield Judged(
        title,
        where,
        words + form.format(bound),
        len(figures) - len(missed),
        len(figures),
        form.format(ordered[0][0]),
        tuple(
            f"{name} {form.format(figure)}{'' if limit is None else f' [{form.format(limit)}]'}"
            for figure, limit, name in missed
        ),
        sum(limit is not None and misses(limit) for _, limit, _ in missed),
    )


def _named(cell: Cell, data: Mapping[str, Any]) -> str:
    small = data["sets"][cell["set"]]["small"]
    gradients = f", {cell['gradients']}" if small else ""
    return f"{cell['optimizer']} (`{cell['set']}`{gradients}, {cell['dtype']})"
