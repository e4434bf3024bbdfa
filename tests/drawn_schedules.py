"""Drawn runs of schedules, of many kinds, and what comes of comparing them with torch's.

python -m tests.drawn_schedules         # compare a thousand runs of each kind
python -m tests.drawn_schedules 5000    # more of them
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import hypothesis
import torch
from hypothesis import strategies as st

import generated
from tests.right_schedules import ABSOLUTE, NAMES
from tests.schedules import COMPOSITES, EPOCHS, Config, Decay, Run, compare, nodes


def in_tens(t: float) -> float:
    return 0.9 ** (t // 10)


def rarely(t: float) -> float:
    return 0.5 if t % 100 == 7 else 1


rates = st.floats(1e-6, 10.0)
factors = st.floats(0.1, 1.0)
epochs = st.integers(0, EPOCHS)
# No rate grows without end: of infinities, products in another order make NaN.
functions = st.sampled_from([in_tens, rarely]) | st.builds(Decay, st.floats(0.9, 1.0))
Strategy = st.SearchStrategy[Any]


def each(values: Strategy, groups: int) -> Strategy:
    """One value, or one for each group."""
    return values | st.lists(values, min_size=groups, max_size=groups)


def arguments(name: str, groups: int) -> Strategy:
    """The arguments that a class takes, for an optimizer of so many groups."""
    needed: dict[str, Strategy]
    optional: dict[str, Strategy] = {}
    match name:
        case "LambdaLR" | "MultiplicativeLR":
            needed = {"lr_lambda": each(functions, groups)}
        case "StepLR":
            needed = {"step_size": st.integers(1, 150)}
            optional = {"gamma": st.floats(0.0, 1.05)}
        case "MultiStepLR":
            needed = {"milestones": st.lists(epochs, max_size=6)}
            optional = {"gamma": st.floats(0.0, 1.5)}
        case "ConstantLR":
            needed = {}
            optional = {"factor": st.floats(1e-3, 1.0), "total_iters": st.integers(1, EPOCHS)}
        case "LinearLR":
            needed = {}
            optional = {
                "start_factor": st.floats(1e-3, 1.0),
                "end_factor": st.floats(1e-3, 1.0),
                "total_iters": st.integers(1, EPOCHS),
            }
        case "ExponentialLR":
            needed = {"gamma": st.floats(0.5, 1.01)}
        case "PolynomialLR":
            needed = {}
            optional = {"total_iters": st.integers(1, EPOCHS), "power": st.floats(0.0, 4.0)}
        case "CosineAnnealingLR":
            needed = {"T_max": st.integers(1, EPOCHS)}
            optional = {"eta_min": st.floats(0.0, 0.5)}
        case "CosineAnnealingWarmRestarts":
            needed = {"T_0": st.integers(1, 200)}
            optional = {"T_mult": st.integers(1, 4), "eta_min": st.floats(0.0, 0.5)}
        case "CyclicLR":
            needed = {"base_lr": each(rates, groups), "max_lr": each(rates, groups)}
            optional = {
                "step_size_up": st.integers(1, 200),
                "step_size_down": st.integers(1, 200),
                "mode": st.sampled_from(["triangular", "triangular2", "exp_range"]),
                "gamma": st.floats(0.9, 1.0),
                "scale_fn": functions,
                "scale_mode": st.sampled_from(["cycle", "iterations"]),
                "cycle_momentum": st.booleans(),
                "base_momentum": each(factors, groups),
                "max_momentum": each(factors, groups),
            }
        case "OneCycleLR":
            needed = {"max_lr": each(rates, groups), "total_steps": st.integers(2, EPOCHS)}
            optional = {
                # These have no effect beside total_steps.
                "epochs": st.integers(1, 9),
                "steps_per_epoch": st.integers(1, 9),
                "pct_start": st.floats(0.0, 1.0),
                "anneal_strategy": st.sampled_from(["cos", "linear"]),
                "cycle_momentum": st.booleans(),
                "base_momentum": each(factors, groups),
                "max_momentum": each(factors, groups),
                "div_factor": st.floats(1.0, 100.0),
                "final_div_factor": st.floats(1.0, 1e5),
                "three_phase": st.booleans(),
            }
        case "SWALR":
            needed = {"swa_lr": each(rates, groups)}
            optional = {
                "anneal_epochs": st.integers(0, EPOCHS),
                "anneal_strategy": st.sampled_from(["cos", "linear"]),
            }
        case "ReduceLROnPlateau":
            needed = {}
            optional = {
                "mode": st.sampled_from(["min", "max"]),
                "factor": st.floats(0.0, 0.99),
                "patience": st.integers(0, 4),
                "threshold": st.sampled_from([0, 1e-4, 0.1, 1]),
                "threshold_mode": st.sampled_from(["rel", "abs"]),
                "cooldown": st.integers(0, 4),
                "min_lr": each(st.floats(0.0, 0.1), groups),
                "eps": st.sampled_from([0, 1e-8, 1e-3]),
            }
        case _:
            raise ValueError(f"{name} has no arguments to draw")
    return st.fixed_dictionaries(needed, optional=optional)


SINGLE = tuple(name for name in NAMES if name not in COMPOSITES)
CALLED = tuple(name for name in SINGLE if name != "ReduceLROnPlateau")
# Their next rate is a change of the current one, so that they act together.
CHAINABLE = tuple(name for name in CALLED if name not in ABSOLUTE)


def singles(names: Iterable[str], groups: int, mixed: bool = False) -> Strategy:
    """A schedule that combines no others, with `mixed` of either library."""

    def configured(name: str) -> Strategy:
        sides = st.booleans() if mixed else st.just(False)
        return st.builds(Config, st.just(name), arguments(name, groups), st.just(()), sides)

    return st.sampled_from(sorted(names)).flatmap(configured)


def sequences(children: Strategy, mixed: bool = False) -> Strategy:
    """A SequentialLR of up to four."""

    def configured(parts: list[Config]) -> Strategy:
        count = len(parts) - 1
        milestones = st.lists(st.integers(0, 200), min_size=count, max_size=count, unique=True)
        return st.builds(
            Config,
            st.just("SequentialLR"),
            st.fixed_dictionaries({"milestones": milestones.map(sorted)}),
            st.just(tuple(parts)),
            st.booleans() if mixed else st.just(False),
        )

    return st.lists(children, min_size=1, max_size=4).flatmap(configured)


def chains(children: Strategy, mixed: bool = False) -> Strategy:
    """A ChainedScheduler of up to four."""
    return st.builds(
        Config,
        st.just("ChainedScheduler"),
        st.just({}),
        st.lists(children, min_size=1, max_size=4).map(tuple),
        st.booleans() if mixed else st.just(False),
    )


@st.composite
def runs(draw: Any, schedules: Callable[[int], Strategy], **more: Strategy) -> Run:
    """A run of the schedules that are drawn for its number of groups."""
    groups = draw(st.integers(1, 3))
    lrs = draw(
        st.lists(rates, min_size=groups, max_size=groups)
        | st.just([1] * groups)
        | st.lists(
            st.builds(torch.tensor, rates, dtype=st.sampled_from([torch.float32, torch.float64])),
            min_size=groups,
            max_size=groups,
        )
    )
    configs = draw(schedules(groups))
    return Run(
        schedules=configs if isinstance(configs, tuple) else (configs,),
        lrs=tuple(lrs),
        optimizer=draw(st.sampled_from(["SGD", "Adam"])),
        package=draw(st.sampled_from([torch.optim, generated])),
        **{name: draw(strategy) for name, strategy in more.items()},
    )


def called(name: str, **more: Strategy) -> Strategy:
    """Runs of one schedule."""
    if name == "ReduceLROnPlateau":
        more |= {"given": metrics, "epochs": st.just(METRICS)}
    return runs(lambda groups: singles([name], groups), **more)


METRICS = 150
metrics = st.lists(
    st.sampled_from([math.nan, math.inf, -math.inf, 0.0]) | st.floats(-2.0, 2.0),
    min_size=METRICS,
    max_size=METRICS,
).map(tuple)


def two_at_once(groups: int) -> Strategy:
    return st.tuples(singles(CALLED, groups), singles(CALLED, groups))


def sequence(groups: int, mixed: bool = False) -> Strategy:
    return sequences(singles(CALLED, groups, mixed), mixed)


def chain(groups: int, mixed: bool = False) -> Strategy:
    inner = singles(CHAINABLE, groups, mixed)
    return chains(inner | chains(inner, mixed), mixed)


def others(groups: int) -> Strategy:
    """Schedules but OneCycleLR, which, here as in torch, makes its first rate that of the group,
    with which sequences begin, and schedules that are made anew."""
    return singles({*CHAINABLE, *ABSOLUTE[:-1]} - {"OneCycleLR"}, groups)


def sequence_of_others(groups: int) -> Strategy:
    return sequences(others(groups))


def product(groups: int) -> Strategy:
    inner = others(groups) | sequence_of_others(groups)
    return chains(singles((*CHAINABLE, *ABSOLUTE[:-1]), groups) | inner).filter(apart)


def nested(groups: int) -> Strategy:
    inner = others(groups) | sequence_of_others(groups)
    return sequences(inner | chains(inner)).filter(apart)


def apart(config: Config) -> bool:
    """Whether no schedule overwrites values in the groups that another needs."""
    counts = Counter(node.name for node in nodes([config]))
    return counts["SWALR"] <= 1 and counts["OneCycleLR"] <= (0 if counts["SequentialLR"] else 1)


stops = st.integers(1, EPOCHS - 1)
loaded = {"stop": stops, "by": st.just("load")}
made_anew = {"stop": stops, "by": st.just("last_epoch")}


def jumping(name: str) -> Strategy:
    """Runs in which step() is given epochs."""
    fractional = name == "CosineAnnealingWarmRestarts"
    wanted = epochs | st.floats(0, EPOCHS) if fractional else epochs
    given = st.lists(wanted | st.none(), min_size=1, max_size=40).map(tuple)
    return called(name, given=given, epochs=st.just(60))


def without_iterations(groups: int) -> Strategy:
    """What torch gets wrong in schedules of a number of epochs."""
    end = st.fixed_dictionaries({"total_iters": st.just(0), "end_factor": factors})
    none = st.fixed_dictionaries({"total_iters": st.just(0), "factor": factors})
    nothing = st.fixed_dictionaries({"total_iters": epochs, "factor": st.just(0.0)})
    return st.builds(Config, st.just("LinearLR"), end) | st.builds(
        Config, st.just("ConstantLR"), none | nothing
    )


PLANS: dict[str, Strategy] = {
    **{f"{name}, alone": called(name) for name in SINGLE},
    **{f"{name}, loaded": called(name, **loaded) for name in SINGLE},
    **{f"{name}, made anew": called(name, **made_anew) for name in CALLED},
    **{f"{name}, step(epoch)": jumping(name) for name in CALLED},
    "without iterations": runs(without_iterations),
    "two at once": runs(two_at_once),
    "two at once, loaded": runs(two_at_once, **loaded),
    "in SequentialLR": runs(sequence),
    "in SequentialLR, loaded": runs(sequence, **loaded),
    "in SequentialLR, made anew": runs(sequence_of_others, **made_anew),
    "in ChainedScheduler": runs(chain),
    "in ChainedScheduler, loaded": runs(chain, **loaded),
    "in ChainedScheduler, made anew": runs(chain, **made_anew),
    "rates in ChainedScheduler": runs(product),
    "rates in ChainedScheduler, loaded": runs(product, **loaded),
    "combined in SequentialLR": runs(nested),
    "combined in SequentialLR, loaded": runs(nested, **loaded),
    "in SequentialLR with torch's": runs(lambda groups: sequence(groups, mixed=True)),
    "in ChainedScheduler with torch's": runs(lambda groups: chain(groups, mixed=True)),
}


def survey(plan: str, examples: int) -> Counter[str]:
    """What comes of a plan's runs; always the same runs for a number of examples."""
    counts: Counter[str] = Counter()

    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        # A run is long to try and short to read: it is shown as it was drawn.
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(PLANS[plan])
    def of(run: Run) -> None:
        counts.update(compare(run))

    of()
    return counts


def main(examples: int = 1000) -> None:
    """Print what is compared, and what differs."""
    total: Counter[str] = Counter()
    for plan in PLANS:
        counts = survey(plan, examples)
        print(f"{plan:45} {counts['runs']:8} runs {counts['rates']:10} rates", flush=True)
        total += counts
    print(*(f"{number:10} {what}" for what, number in total.items()), sep="\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
