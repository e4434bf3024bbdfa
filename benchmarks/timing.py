"""Contenders -> times of their steps, taken in turn: A B C, B C A, C A B, so that whatever else the
machine does reaches all of them, and none has always the same one before it, whose data is in the
caches."""

from __future__ import annotations

import random
import statistics
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec

# In how many breaks between rounds something else may be looked at.
BREAKS = 5

P = ParamSpec("P")
Step = Callable[[], object]
# Runs a step once and gives its times in seconds by name; `wall` is among them.
Measure = Callable[[Step], Mapping[str, float]]


def nothing() -> None:
    """What comes before a step that needs no preparation."""


def by_wall(step: Step) -> Mapping[str, float]:
    start = time.perf_counter()
    step()
    return {"wall": time.perf_counter() - start}


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure. Each contender gets the same share of `seconds`, and at least `least`
    rounds; no more than `rounds`. The first of `warm` steps makes state, plans and kernels."""

    seconds: float = 1.5
    rounds: int = 50
    least: int = 4
    warm: int = 2


def interleaved(
    contenders: Mapping[str, Callable[[], Step]],
    measure: Measure = by_wall,
    effort: Effort = Effort(),
    before: Step = nothing,
    in_breaks: Step = nothing,
) -> dict[str, dict[str, Any]]:
    """Time contenders against each other.

    Args:
        contenders: by name, what makes a contender's step.
        measure: what times a step.
        effort: how long.
        before: runs before each step, and is not timed.
        in_breaks: runs before some rounds, at even distances. In the others caches stay as the
            contender before has left them.

    Returns:
        By name: for each of the measure's times its `median` and the quartiles `low` and `high`, in
        seconds; `rounds`; `warnings`, if the contender gave any. One that failed has `error`, a
        text, and nothing else; the others go on.
    """
    results: dict[str, dict[str, Any]] = {}
    steps: dict[str, Step] = {}
    costs: dict[str, float] = {}
    for name, make in contenders.items():
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                steps[name] = make()
                for _ in range(effort.warm):
                    before()
                    costs[name] = measure(steps[name])["wall"]
            said = dict.fromkeys(str(w.message).splitlines()[0] for w in caught)
            results[name] = {"warnings": list(said)} if said else {}
        except Exception as error:
            results[name] = failure(error)
    turns = _turns({n: costs[n] for n, r in results.items() if "error" not in r}, effort)
    times: dict[str, list[Mapping[str, float]]] = {name: [] for name in turns}
    last = max(turns.values(), default=0)
    drawn = random.Random(0)
    for turn in range(last):
        if _is_due(turn, min(BREAKS, last), last):
            in_breaks()
        # Whoever runs less often does so at even distances.
        due = [name for name, count in turns.items() if _is_due(turn, count, last)]
        for name in drawn.sample(due, len(due)):
            if "error" in results[name]:
                continue
            try:
                before()
                times[name].append(measure(steps[name]))
            except Exception as error:
                results[name] = failure(error)
    for name, taken in times.items():
        if "error" not in results[name]:
            spread = {key: quartiles([t[key] for t in taken]) for key in taken[0]}
            results[name] = {**spread, "rounds": len(taken), **results[name]}
    return results


def _is_due(turn: int, count: int, turns: int) -> bool:
    """Whether something that happens `count` times in so many turns happens in this one."""
    return turn * count // turns < (turn + 1) * count // turns


def _turns(costs: Mapping[str, float], effort: Effort) -> dict[str, int]:
    share = effort.seconds / max(1, len(costs))
    return {
        name: max(effort.least, min(effort.rounds, int(share / max(cost, 1e-9))))
        for name, cost in costs.items()
    }


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """The median and the quartiles, to four digits."""
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive")
        if len(values) > 1
        else [values[0]] * 3
    )
    return {"median": rounded(middle), "low": rounded(low), "high": rounded(high)}


def rounded(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")


def attempt(
    work: Callable[P, Mapping[str, Any]], *args: P.args, **kwargs: P.kwargs
) -> Mapping[str, Any]:
    """What a function gives, or what went wrong."""
    try:
        return work(*args, **kwargs)
    except Exception as error:
        return failure(error)


def failure(error: BaseException) -> dict[str, str]:
    """What went wrong, as a cell of the results: its last line, and where it was raised."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = str(error).strip().splitlines()
    what = f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__
    return {"error": f"{what} ({place.name}, line {place.lineno})"}
