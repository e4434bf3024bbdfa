"""Runs of schedules, in torch and here -> traces that compare, and what differs on purpose."""

from __future__ import annotations

import copy
import io
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from itertools import chain
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from generated import lr_scheduler as ours
from tests.reference import table
from tests.right_schedules import ABSOLUTE, COMBINED, NAMES, RIGHT, THEIRS, Kinds

EPOCHS = 500
# Whole states compare at the first epochs and then now and then; all else at each epoch.
STATES_AT = frozenset((*range(4), *range(25, EPOCHS + 1, 75), EPOCHS))

COMPOSITES = ("SequentialLR", "ChainedScheduler")
OURS: Kinds = {name: getattr(ours, name) for name in NAMES}


# What is run


@dataclass(frozen=True)
class Config:
    """A schedule: its class, its arguments, the schedules that it combines. `torchs`: torch's
    class is taken on our side, too, so that each library's combinators get the other's."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    children: tuple[Config, ...] = ()
    torchs: bool = False


@dataclass(frozen=True)
class Run:
    """Schedules that step in turn, once per epoch, on one optimizer.

    `given` are arguments of step() for the first epochs: None is a call without. At `stop` the run
    is interrupted `by` a checkpoint that is loaded into new objects ("load"), or schedules that
    are made anew behind the last epoch ("last_epoch")."""

    schedules: tuple[Config, ...]
    lrs: tuple[Any, ...] = (0.5, 0.2)
    optimizer: str = "SGD"
    package: Any = torch.optim
    given: tuple[Any, ...] = ()
    stop: int | None = None
    by: str = ""
    epochs: int = EPOCHS


def nodes(configs: Iterable[Config]) -> Iterator[Config]:
    """All schedules of trees, parents first."""
    for config in configs:
        yield config
        yield from nodes(config.children)


def gives_rates(config: Config) -> bool:
    return any(node.name in ABSOLUTE for node in nodes([config]))


def is_parted(config: Config) -> bool:
    """Whether torch's class, given schedules that are right, is not: a chain of one that gives
    rates, and a sequence of combined ones."""
    if config.torchs:
        return False
    if config.name == "ChainedScheduler":
        return gives_rates(config)
    return config.name == "SequentialLR" and any(child.children for child in config.children)


def parts(config: Config, optimizer: Any) -> Iterator[Any]:
    """The schedules that one combines, each with an optimizer of its own. As on a common one, the
    first rates that a schedule notes are those of the next."""
    for child in config.children:
        own = copy.deepcopy(optimizer)
        yield make(RIGHT, child, own)
        for group, other in zip(optimizer.param_groups, own.param_groups, strict=True):
            group.update(copy.deepcopy({"lr": other["initial_lr"]}), initial_lr=other["initial_lr"])


def make_optimizer(run: Run, kinds: Kinds, lrs: tuple[Any, ...] | None = None) -> Any:
    """An optimizer with a group for each rate. Only our side takes the generated one."""
    package = run.package if kinds is OURS else torch.optim
    rates = copy.deepcopy(run.lrs if lrs is None else lrs)
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in rates]
    # A rate that is a tensor is refused for lists of tensors, which an optimizer takes by default.
    return getattr(package, run.optimizer)(groups, lr=0.1, foreach=False)


def make(kinds: Kinds, config: Config, optimizer: Any, **more: Any) -> Any:
    """The schedule, and those that it combines, on an optimizer."""
    if kinds is RIGHT and is_parted(config):
        return COMBINED[config.name](optimizer, parts(config, optimizer), **config.arguments)
    # A sequence is made of new schedules, wherever it goes on.
    inner = {} if config.name == "SequentialLR" else more
    children = [make(kinds, child, optimizer, **inner) for child in config.children]
    kind = (THEIRS if config.torchs else kinds)[config.name]
    arguments = copy.deepcopy(config.arguments)
    match config.name:
        case "ChainedScheduler":
            return kind(children, optimizer)
        case "SequentialLR":
            return kind(optimizer, children, **arguments, **more)
        case _:
            return kind(optimizer, **arguments, **more)


# What is seen


@dataclass
class Trace:
    """What a run shows, one entry per epoch. `error` is what ended it before its last epoch."""

    rates: list[list[Any]] = field(default_factory=list)
    momentums: list[list[Any]] = field(default_factory=list)
    last: list[Any] = field(default_factory=list)
    warnings: list[Any] = field(default_factory=list)
    groups: dict[int, Any] = field(default_factory=dict)
    states: dict[int, Any] = field(default_factory=dict)
    error: str | None = None


def plain(value: Any) -> Any:
    """A value in a form in which NaN equals itself, 0.0 is not -0.0, and 1 is 1.0."""
    match value:
        case float():
            return repr(value)
        case bool() | None | str():
            return value
        case int():
            return repr(float(value))
        case Tensor():
            return (str(value.dtype), plain(value.tolist()))
        case dict():
            return {key: plain(v) for key, v in value.items()}
        case list() | tuple():
            return [plain(v) for v in value]
        case FunctionType():
            return value.__qualname__
        case _:
            raise TypeError(f"a checkpoint cannot hold {value!r}")


def through_a_file(state: Any) -> Any:
    """A checkpoint as it is read from a file that one does not trust."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class Recorder:
    """Takes the steps of a run and writes down what they do."""

    def __init__(self, run: Run, kinds: Kinds, reader: Kinds) -> None:
        self.run, self.kinds, self.reader = run, kinds, reader
        self.trace = Trace()
        self.optimizer = make_optimizer(run, kinds)
        self.schedules: list[Any] = []

    def record(self) -> Trace:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                for epoch in range(self.run.epochs + 1):
                    self.advance(epoch)
                    self.observe(epoch, caught)
            except (ArithmeticError, ValueError, NotImplementedError, RuntimeError) as error:
                self.trace.error = f"{type(error).__name__}: {error}"
        return self.trace

    def advance(self, epoch: int) -> None:
        if epoch == 0:
            self.schedules = [make(self.kinds, c, self.optimizer) for c in self.run.schedules]
        else:
            given = self.run.given[epoch - 1] if epoch <= len(self.run.given) else None
            for schedule in self.schedules:
                schedule.step(*([] if given is None else [given]))
        if epoch == self.run.stop:
            self.interrupt(epoch)
        # Once is enough for the schedules to see it.
        if epoch in (0, self.run.stop):
            self.optimizer.step()

    def interrupt(self, epoch: int) -> None:
        states = through_a_file([s.state_dict() for s in self.schedules])
        state = through_a_file(self.optimizer.state_dict())
        if self.run.by == "load":
            self.optimizer = make_optimizer(self.run, self.reader, (0.75,) * len(self.run.lrs))
            self.schedules = [make(self.reader, c, self.optimizer) for c in self.run.schedules]
            self.optimizer.load_state_dict(state)
            for schedule, saved in zip(self.schedules, states, strict=True):
                schedule.load_state_dict(copy.deepcopy(saved))
                assert plain(schedule.state_dict()) == plain(saved)
        else:
            self.optimizer = make_optimizer(self.run, self.reader)
            self.optimizer.load_state_dict(state)
            self.schedules = [
                make(self.reader, c, self.optimizer, last_epoch=epoch - 1)
                for c in self.run.schedules
            ]

    def observe(self, epoch: int, caught: list[Any]) -> None:
        trace, groups = self.trace, self.optimizer.param_groups
        trace.rates.append([plain(group["lr"]) for group in groups])
        trace.momentums.append([plain(g.get("momentum", g.get("betas"))) for g in groups])
        trace.last.append([plain(s.get_last_lr()) for s in self.schedules])
        trace.warnings.append([str(w.message) for w in caught])
        caught.clear()
        if self.kinds is not RIGHT and (epoch in STATES_AT or epoch == self.run.stop):
            saved = through_a_file([s.state_dict() for s in self.schedules])
            trace.states[epoch] = [plain(state) for state in saved]
            trace.groups[epoch] = [
                {k: plain(v) for k, v in g.items() if k not in ("params", "lr", *FLAGS)}
                for g in groups
            ]


# The generated optimizers have flags that torch's lack.
FLAGS = ("maximize", "foreach", "fused", "capturable", "differentiable")


def trace(run: Run, kinds: Kinds, reader: Kinds | None = None) -> Trace:
    """What a run shows where its objects are of one library, after the stop of another."""
    return Recorder(run, kinds, kinds if reader is None else reader).record()


# What compares


def differences(run: Run, expected: Trace, actual: Trace) -> dict[str, tuple[int, str]]:
    """Which parts of two traces differ, each with the first epoch where it does, and how."""
    found: dict[str, tuple[int, str]] = {}
    for part in ("rates", "momentums", "last", "warnings", "groups"):
        for epoch, one, other in pairs(getattr(expected, part), getattr(actual, part)):
            if one != other:
                found.setdefault(part, (epoch, f"torch {one}, ours {other}"))
    for epoch, *states in pairs(expected.states, actual.states):
        one, other = (dict(labelled(run, state)) for state in states)
        for name in one | other:
            values = [side.get(name, "missing") for side in (one, other)]
            if values[0] != values[1]:
                found.setdefault(name, (epoch, f"torch {values[0]}, ours {values[1]}"))
    ends = [(len(t.rates), t.error) for t in (expected, actual)]
    if ends[0] != ends[1]:
        found["error"] = min(len(expected.rates), len(actual.rates)), f"{ends[0]}, {ends[1]}"
    return found


def pairs(expected: Any, actual: Any) -> Iterator[tuple[int, Any, Any]]:
    """What was seen in epochs that both runs reached."""
    if isinstance(expected, dict):
        both = expected.keys() & actual.keys()
        return ((epoch, expected[epoch], actual[epoch]) for epoch in sorted(both))
    return ((i, *pair) for i, pair in enumerate(zip(expected, actual, strict=False)))


def labelled(run: Run, states: list[Any]) -> Iterator[tuple[str, Any]]:
    """The entries of checkpoints as `class.key`, and the place of the schedule in the run."""

    def of(config: Config, state: dict[str, Any], place: str) -> Iterator[tuple[str, Any]]:
        for key, value in state.items():
            if key != "_schedulers":
                yield f"{config.name}.{key}{place}", value
        children = state.get("_schedulers", [])
        for i, (child, inner) in enumerate(zip(config.children, children, strict=True)):
            yield from of(child, inner, f"{place} {i}")

    for i, (config, state) in enumerate(zip(run.schedules, states, strict=True)):
        yield from of(config, state, f" of {i}")


# What differs on purpose


@dataclass(frozen=True)
class Deviation:
    """Where ours is not torch's: a row of the table in docs/compatibility.md, which runs it
    `concerns`, and which `parts` of their traces may differ, as patterns. Where these are rates,
    ours are those of the classes in RIGHT. `example` shows it."""

    schedule: str
    torch: str
    ours: str
    concerns: Callable[[Run], bool]
    parts: tuple[str, ...]
    example: Run
    since: Callable[[Run], int] = lambda run: 0

    @property
    def reason(self) -> str:
        return f"{self.schedule}: {self.torch}"


RATES = ("rates", "last", "*._last_lr*", "error")


def has(name: str, test: Callable[..., bool] = lambda **_: True) -> Callable[[Run], bool]:
    """Whether a run has a schedule of a class, of our library, with arguments that pass a test."""
    return lambda run: any(
        node.name == name and not node.torchs and test(**node.arguments)
        for node in nodes(run.schedules)
    )


def single(name: str, **arguments: Any) -> Run:
    return Run((Config(name, arguments),))


def rebuilt(run: Run) -> bool:
    return run.by == "last_epoch"


def when_rebuilt(run: Run) -> int:
    """The first epoch behind the stop; runs that are given epochs have none."""
    return run.stop or 0


@dataclass
class Decay:
    """A function that is an object: a checkpoint holds its fields."""

    factor: float

    def __call__(self, t: float) -> float:
        return self.factor**t


def past_the_cycle(config: Config) -> int:
    """The first epoch in which a OneCycleLR may differ."""
    if config.name != "OneCycleLR":
        return EPOCHS
    steps = config.arguments["total_steps"]
    ends = [float(config.arguments.get("pct_start", 0.3) * steps * n) - n for n in (1, 2)]
    # Phases of one epoch: the first, and all those that begin where they end.
    return 0 if ends[0] == 0 else steps - 1 if steps - 1 in ends else steps


HALF = Config("LambdaLR", {"lr_lambda": Decay(0.5)})
DEVIATIONS = (
    Deviation(
        "LinearLR",
        "with total_iters=0 it stays at start_factor for ever, and step(epoch) divides by 0",
        "end_factor from the start",
        has("LinearLR", lambda total_iters=5, **_: total_iters == 0),
        RATES,
        single("LinearLR", total_iters=0),
    ),
    Deviation(
        "LinearLR",
        "with end_factor=0 rounding may end it just below 0, where it stays",
        "no rate is below 0",
        has("LinearLR", lambda end_factor=1, **_: end_factor == 0),
        RATES,
        single("LinearLR", end_factor=0.0, total_iters=7),
    ),
    *(
        Deviation(
            name,
            "made with last_epoch where its rate changes, it changes what it finds once more",
            "it takes the rate that it finds, as LinearLR and others do in torch",
            lambda run, name=name: rebuilt(run) and has(name)(run),
            RATES,
            replace(single(name, **arguments), stop=4, by="last_epoch"),
            since=when_rebuilt,
        )
        for name, arguments in (
            ("StepLR", {"step_size": 4}),
            ("MultiStepLR", {"milestones": [4]}),
            ("ConstantLR", {"total_iters": 4}),
        )
    ),
    Deviation(
        "ConstantLR",
        "with total_iters=0 it stays at factor for ever",
        "factor lasts for no epoch",
        has("ConstantLR", lambda total_iters=5, **_: total_iters == 0),
        RATES,
        single("ConstantLR", total_iters=0),
    ),
    Deviation(
        "ConstantLR",
        "with factor=0 it divides by 0 in epoch total_iters",
        "it returns to the first rate",
        has("ConstantLR", lambda factor=1, **_: factor == 0),
        RATES,
        single("ConstantLR", factor=0.0),
    ),
    Deviation(
        "CosineAnnealingWarmRestarts",
        "made with last_epoch, it forgets the restarts that were",
        "it goes on as if it had not been interrupted",
        lambda run: rebuilt(run) and has("CosineAnnealingWarmRestarts")(run),
        (*RATES, "*.T_cur*", "*.T_i*"),
        replace(single("CosineAnnealingWarmRestarts", T_0=3, T_mult=2), stop=12, by="last_epoch"),
        since=when_rebuilt,
    ),
    Deviation(
        "CosineAnnealingWarmRestarts",
        "step(epoch) is off at some restarts, by the rounding of a logarithm, and step() behind "
        "the step of a fraction goes on from it though last_epoch is whole",
        "the rate is that of the epoch",
        lambda run: bool(run.given) and has("CosineAnnealingWarmRestarts")(run),
        (*RATES, "*.T_cur*", "*.T_i*"),
        replace(single("CosineAnnealingWarmRestarts", T_0=10), given=(3.5, None), epochs=5),
    ),
    Deviation(
        "CyclicLR",
        "behind another schedule it begins with that schedule's first rate",
        "it begins with base_lr",
        lambda run: has("CyclicLR")(run) and (rebuilt(run) or len(list(nodes(run.schedules))) > 1),
        RATES,
        Run(
            (Config("StepLR", {"step_size": 9}), Config("CyclicLR", {"base_lr": 0.1, "max_lr": 1}))
        ),
    ),
    Deviation(
        "OneCycleLR",
        "in epoch total_steps it goes past its end: upwards, or with 'linear' below min_lr, even "
        "below 0; and it divides by 0 where a phase has one epoch",
        "it stays at its end, which is all of a phase of one epoch",
        has("OneCycleLR"),
        (*RATES, "momentums", "groups"),
        single("OneCycleLR", max_lr=1.0, total_steps=10, anneal_strategy="linear"),
        since=lambda run: 0 if run.given else min(map(past_the_cycle, nodes(run.schedules))),
    ),
    Deviation(
        "SWALR",
        "made with last_epoch, it anneals anew, and step(epoch) is a step like others",
        "the rate is that of the epoch",
        lambda run: has("SWALR")(run) and (rebuilt(run) or any(e is not None for e in run.given)),
        RATES,
        replace(single("SWALR", swa_lr=0.05), stop=5, by="last_epoch"),
        since=when_rebuilt,
    ),
    Deviation(
        "SequentialLR",
        "made with last_epoch, it begins anew with its first schedule",
        "it goes on as if it had not been interrupted",
        lambda run: rebuilt(run) and has("SequentialLR")(run),
        (*RATES, "*"),
        Run(
            (
                Config(
                    "SequentialLR",
                    {"milestones": [3]},
                    (HALF, Config("ExponentialLR", {"gamma": 0.5})),
                ),
            ),
            stop=5,
            by="last_epoch",
        ),
        since=when_rebuilt,
    ),
    Deviation(
        "SequentialLR",
        "one that is inside another counts an epoch too many; combined schedules raise "
        "NotImplementedError at a milestone, and may warn of steps that nobody took",
        "a combined schedule begins as others do",
        lambda run: any(
            node.name == "SequentialLR" and is_parted(node) for node in nodes(run.schedules)
        ),
        ("*",),
        Run(
            (
                Config(
                    "SequentialLR",
                    {"milestones": [3]},
                    (HALF, Config("SequentialLR", {"milestones": []}, (HALF,))),
                ),
            )
        ),
    ),
    Deviation(
        "ChainedScheduler",
        "a schedule that gives rates, such as LambdaLR, undoes what those before it did",
        "the first such schedule gives the rate, and the others factors",
        lambda run: any(
            node.name == "ChainedScheduler" and is_parted(node) for node in nodes(run.schedules)
        ),
        RATES,
        Run((Config("ChainedScheduler", {}, (Config("ExponentialLR", {"gamma": 0.5}), HALF)),)),
    ),
)


def page_regions() -> dict[str, str]:
    """The table of docs/compatibility.md."""
    rows = ((f"`{d.schedule}`", d.torch, d.ours) for d in DEVIATIONS)
    return {"deviations": table(("schedule", "torch", "here"), rows)}


def compare(run: Run) -> Counter[str]:
    """Counts of a run and of what is equal in it. AssertionError: it differs from torch's, and not
    as the list of deviations says."""
    expected = trace(run, THEIRS)
    if run.stop is not None and any(number(r) < 0 for r in chain(*expected.rates[run.stop :][:1])):
        # Some schedules together go below 0, where our optimizers load no checkpoint.
        run = replace(run, package=torch.optim)
    concerning = [d for d in DEVIATIONS if d.concerns(run)]
    wrong = [d.since(run) for d in concerning if matches("rates", d.parts)]
    # What torch has done wrong before the stop, nobody can mend behind it.
    both = run.by == "load" and run.stop is not None and min(wrong, default=EPOCHS) > run.stop
    sides = DIRECTIONS if both else DIRECTIONS[:1]
    counts = Counter({"runs": len(sides), "rates": len(sides) * sum(map(len, expected.rates))})
    for writer, reader in sides:
        actual = trace(run, writer, reader)
        found = differences(run, expected, actual)
        allowed: set[str] = set()
        if wrong and writer is reader:
            assert_close(right(run), actual)
        if run.by == "load" and writer is reader:
            assert actual.rates == trace(replace(run, stop=None), OURS).rates, run
        for deviation in concerning:
            since = deviation.since(run)
            shown = {
                part
                for part, (epoch, _) in found.items()
                if epoch >= since and matches(part, deviation.parts)
            }
            counts[deviation.reason] += bool(shown)
            allowed |= shown
        unexplained = {part: how for part, how in found.items() if part not in allowed}
        assert not unexplained, (unexplained, run)
    return counts


def right(run: Run) -> Trace:
    """What a run should show: loading changes nothing, nor does making a sequence anew."""
    whole = run.by == "load" or any(
        is_parted(n) or n.name == COMPOSITES[0] for n in nodes(run.schedules)
    )
    return trace(replace(run, stop=None) if whole else run, RIGHT)


# Who writes a checkpoint, and who reads it.
DIRECTIONS = ((OURS, OURS), (OURS, THEIRS), (THEIRS, OURS))


def matches(part: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(part, pattern) for pattern in patterns)


def assert_close(right: Trace, actual: Trace) -> None:
    """Rates that are right but for rounding."""
    assert right.error == actual.error, (right.error, actual.error)
    for epoch, (one, other) in enumerate(zip(right.rates, actual.rates, strict=True)):
        for wanted, got in zip(one, other, strict=True):
            # A float32 tensor is rounded in each epoch.
            tolerance = 1e-3 if tuple in (type(wanted), type(got)) else 1e-9
            pair = number(wanted), number(got)
            assert math.isclose(*pair, rel_tol=tolerance, abs_tol=1e-12), (epoch, wanted, got)
            # No rounding takes a rate below 0.
            assert pair[0] < 0 or pair[1] >= 0, (epoch, wanted, got)


def number(rate: Any) -> float:
    """A rate of a trace, which may be a tensor's."""
    return float(rate[1] if isinstance(rate, tuple) else rate)
