"""Optimizers with a schedule in them: Noam, AdamWarmup, AdamWarmupCosineDecay.

Held against the rules as they are published, written out here; and bit for bit against Adam, ours
and torch's, whose learning rate follows the rule, or the schedule's own class and function. Every
schedule that can be called is called by an Adam that is derived here. Kernels:
`tests/triton/interpreted/test_scheduled.py`.
"""

from __future__ import annotations

import importlib
import inspect
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import generated
from generated import lr_scheduler
from optdsl import build
from optdsl.diagnostics import Code, SpecError
from optdsl.ir import Const, Schedule
from optdsl.pipeline import load, shipped_library
from optdsl.printing import show_source
from tests.reference import advance

STEPS = 30
Rule = Callable[[int, float], float]


def noam(step: int, lr: float) -> float:
    """Vaswani et al., section 5.3, equation 3, times lr as in labml.ai's implementation."""
    return lr * 64**-0.5 * min(step**-0.5, step * 10**-1.5)


def warmup(step: int, lr: float) -> float:
    """lr * min(1, t / w): labml.ai's documentation of AdamWarmup. (Its code adds 1e-8 in the
    warm-up.)"""
    return lr * min(1.0, step / 10)


def warmup_cosine(step: int, lr: float) -> float:
    """labml.ai: from the end of the warm-up half a cosine, not below a tenth. (Its code rises again
    behind the last step.)"""
    if step < 10:
        return lr * step / 10
    progress = min(1.0, (step - 10) / max(1, 25 - 10))
    return lr * max(0.1, 0.5 * (1.0 + math.cos(math.pi * progress)))


# The rule, the optimizer's arguments, and the same schedule for another optimizer.
CASES: dict[str, tuple[Rule, dict[str, Any], type[Any], dict[str, Any]]] = {
    "Noam": (
        noam, {"lr": 0.5, "warmup": 10, "d_model": 64},
        lr_scheduler.NoamLR, {"warmup_steps": 10, "d_model": 64},
    ),
    "AdamWarmup": (
        warmup, {"lr": 0.02, "warmup": 10}, lr_scheduler.WarmupLR, {"warmup_steps": 10},
    ),
    "AdamWarmupCosineDecay": (
        warmup_cosine, {"lr": 0.02, "warmup": 10, "total_steps": 25},
        lr_scheduler.CosineWithWarmupLR, {"warmup_steps": 10, "total_steps": 25, "min_factor": 0.1},
    ),
}  # fmt: skip
every = pytest.mark.parametrize("name", CASES)
paths = pytest.mark.parametrize("foreach", [False, True], ids=["eager", "foreach"])
OPTIONS: tuple[dict[str, Any], ...] = (
    {}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "decoupled_weight_decay": True},
    {"amsgrad": True},
)  # fmt: skip


def problem(dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Parameters, and gradients for each step."""
    draw = torch.Generator().manual_seed(0)

    def tensors() -> list[Tensor]:
        shapes = ((), (7,), (3, 4))
        return [torch.randn(s, generator=draw, dtype=torch.float64).to(dtype) for s in shapes]

    return tensors(), [tensors() for _ in range(STEPS)]


def trained(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> list[Tensor]:
    """The parameters after all steps of the optimizer itself."""
    start, grads = problem(dtype)
    params = [p.clone() for p in start]
    optimizer = getattr(generated, name)(params, **CASES[name][1], **options)
    for row in grads:
        advance(optimizer, params, [row])
    return params


def led(package: Any, rates: Iterator[float], **options: Any) -> list[Tensor]:
    """The parameters after all steps of Adam, with a learning rate for each."""
    start, grads = problem()
    params = [p.clone() for p in start]
    optimizer = package.Adam(params, **options)
    for row, rate in zip(grads, rates, strict=False):
        optimizer.param_groups[0]["lr"] = rate
        advance(optimizer, params, [row])
    return params


def equal(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(map(torch.equal, found, expected))


# The rules


@every
def test_a_step_is_adams_with_the_published_rate(name: str) -> None:
    """In float64 NumPy, from the paper of Adam and the rule: a few roundings apart per step."""
    rule, options, *_ = CASES[name]
    start, grads = problem(torch.float64)
    found = trained(name, torch.float64)
    for place, param in enumerate(start):
        value, m, v = param.numpy().copy(), 0.0, 0.0
        for step in range(1, STEPS + 1):
            grad = grads[step - 1][place].numpy()
            m = 0.9 * m + (1 - 0.9) * grad
            v = 0.999 * v + (1 - 0.999) * grad**2
            unbiased, square = m / (1 - 0.9**step), v / (1 - 0.999**step)
            value = value - rule(step, options["lr"]) * unbiased / (np.sqrt(square) + 1e-8)
        np.testing.assert_allclose(found[place].numpy(), value, rtol=1e-12, atol=1e-14)


@every
@pytest.mark.parametrize("package", [generated, torch.optim], ids=["ours", "torch"])
def test_the_schedules_function_leads_adam_to_the_same_bits(name: str, package: Any) -> None:
    _, options, schedule, arguments = CASES[name]
    rate = schedule.function(**arguments)
    for own in OPTIONS:
        if package is torch.optim and "decoupled_weight_decay" in own:
            continue  # a mode of torch's Adam that its foreach form has, its signature too: AdamW
        rates = (rate(t, options["lr"]) for t in range(1, STEPS + 1))
        assert equal(trained(name, foreach=False, **own), led(package, rates, foreach=False, **own))


@every
@paths
def test_the_schedules_class_leads_adam_to_the_same_bits(name: str, foreach: bool) -> None:
    """The optimizer counts from 1, so the class is a step ahead of Adam."""
    _, options, schedule, arguments = CASES[name]
    for own in OPTIONS:
        start, grads = problem()
        params = [p.clone() for p in start]
        adam = generated.Adam(params, lr=options["lr"], foreach=foreach, **own)
        scheduler = schedule(adam, **arguments)
        for row in grads:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the first step comes before the optimizer's
                scheduler.step()
            advance(adam, params, [row])
        assert equal(params, trained(name, foreach=foreach, **own))


@every
def test_each_group_has_a_schedule_of_its_own(name: str) -> None:
    _, options, *_ = CASES[name]
    start, grads = problem()
    params = [p.clone() for p in start]
    groups = [{"params": params[:1]}, {"params": params[1:], "warmup": 3, "lr": 0.3}]
    optimizer = getattr(generated, name)(groups, **options)
    for row in grads:
        advance(optimizer, params, [row])
    assert equal(params[:1], trained(name)[:1])
    alone = [p.clone() for p in start[1:]]
    own = {**options, "warmup": 3, "lr": 0.3}
    optimizer = getattr(generated, name)(alone, **own)
    for row in grads:
        advance(optimizer, alone, [row[1:]])
    assert equal(params[1:], alone)
    assert not equal(alone, trained(name)[1:])


# Out of place


@every
def test_differentiable_steps_are_the_for_loops(name: str) -> None:
    """In float64 the two differ by their roundings alone: the rate is computed as a tensor."""
    for own in OPTIONS:
        expected = trained(name, torch.float64, foreach=False, **own)
        found = trained(name, torch.float64, differentiable=True, **own)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@every
def test_compiled_steps_are_one_graph_and_the_for_loops(name: str) -> None:
    start, grads = problem()
    params = [p.clone() for p in start]
    optimizer = getattr(generated, name)(params, **CASES[name][1])
    counter = CompileCounter()
    step = torch.compile(optimizer.step, backend=counter)
    for row in grads:
        for param, grad in zip(params, row, strict=True):
            param.grad = grad
        step()
    assert counter.frame_count == 1
    # float32, the expressions without the for-loop's rounding nodes.
    torch.testing.assert_close(params, trained(name, foreach=False), rtol=1e-5, atol=1e-6)


# Edges


@pytest.mark.parametrize("flags", [{"foreach": False}, {"foreach": True}, {"differentiable": True}])
def test_a_warm_up_of_no_steps_is_none(flags: dict[str, bool]) -> None:
    start, grads = problem(torch.float64)
    params = [p.clone() for p in start]
    optimizer = generated.AdamWarmup(params, lr=0.02, warmup=0, **flags)
    plain = [p.clone() for p in start]
    adam = generated.Adam(plain, lr=0.02)
    for row in grads:
        advance(optimizer, params, [row])
        advance(adam, plain, [row])
    torch.testing.assert_close(params, plain, rtol=1e-12, atol=1e-14)


@every
def test_numbers_of_steps_out_of_range_are_refused(name: str) -> None:
    for value in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"Invalid number of warm-up steps: {value}"):
            getattr(generated, name)([torch.ones(2)], warmup=value)
    for argument, valid in (("d_model", 64), ("total_steps", 25)):
        if argument in inspect.signature(getattr(generated, name)).parameters:
            getattr(generated, name)([torch.ones(2)], **{argument: valid})
            for value in (0, math.nan, math.inf):
                with pytest.raises(ValueError, match=f"Invalid .*: {value}"):
                    getattr(generated, name)([torch.ones(2)], **{argument: value})


@every
def test_a_checkpoint_of_adam_is_continued(name: str) -> None:
    """The slots are Adam's; what a schedule needs comes from the constructor."""
    start, grads = problem()
    params = [p.clone() for p in start]
    adam = torch.optim.Adam(params, lr=0.1)
    for row in grads[:10]:
        advance(adam, params, [row])
    rule, options, *_ = CASES[name]
    optimizer = getattr(generated, name)(params, **options)
    optimizer.load_state_dict(adam.state_dict())
    advance(optimizer, params, [grads[10]])
    adam_params = [p.clone() for p in start]
    adam = torch.optim.Adam(adam_params, lr=0.1)
    for row in grads[:10]:
        advance(adam, adam_params, [row])
    adam.param_groups[0]["lr"] = rule(11, 0.1)
    advance(adam, adam_params, [grads[10]])
    torch.testing.assert_close(params, adam_params, rtol=1e-6, atol=1e-7)


# Every schedule that can be called


def arguments(schedule: Schedule) -> dict[str, Any]:
    values = {e.name: e.value for e in schedule.examples}
    return {n: v.value for n, v in values.items() if isinstance(v, Const)}


def adam_with(schedule: Schedule) -> str:
    given = "".join(
        f", {name}={show_source(Const(value))}"
        for name, value in arguments(schedule).items()
        if name != "base_lr"
    )
    call = f"{schedule.name}(step - 1, lr{given})"
    return f"optimizer With{schedule.name} from Adam {{\n    schedule lr = {call}\n}}\n"


def is_callable(schedule: Schedule, folder: Path) -> bool:
    path = folder / f"{schedule.name}.opt"
    path.write_text(adam_with(schedule), encoding="utf-8")
    try:
        load([path])
    except SpecError as error:
        if {d.code for d in error.diagnostics} != {Code.UNSUPPORTED}:
            raise
        path.unlink()
        return False
    return True


SCHEDULES = [u for u in shipped_library().units if isinstance(u, Schedule)]
NOT_CALLED = {
    "CosineAnnealingWarmRestarts": "floor_log", "LambdaLR": "a function",
    "MultiStepLR": "a list", "MultiplicativeLR": "no closed form",
    "OneCycleLR": "phases", "ReduceLROnPlateau": "a metric", "SWALR": "no closed form",
}  # fmt: skip


@pytest.fixture(scope="module")
def derived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A package with an Adam for every schedule that can be called."""
    root = tmp_path_factory.mktemp("scheduled")
    specs = root / "specs"
    specs.mkdir()
    refused = {s.name for s in SCHEDULES if not is_callable(s, specs)}
    assert refused == set(NOT_CALLED)
    build.write(build.plan(load([specs]), "optdsl build"), root / "every_schedule")
    sys.path.insert(0, str(root))
    yield importlib.import_module("every_schedule")
    sys.path.remove(str(root))


@pytest.mark.parametrize(
    "schedule", [s for s in SCHEDULES if s.name not in NOT_CALLED], ids=lambda s: s.name
)
def test_a_called_schedule_leads_adam_as_its_own_function_does(
    schedule: Schedule, derived: Any
) -> None:
    start, grads = problem(torch.float64)
    given = arguments(schedule)
    # CyclicLR's own first rate: in a call that is the second argument.
    given |= {"base_lr": 0.02} if "base_lr" in given else {}
    rate = getattr(lr_scheduler, schedule.name).function(**given)
    results = []
    for flags in ({"foreach": False}, {"foreach": True}, {"differentiable": True}):
        params = [p.clone() for p in start]
        optimizer = getattr(derived, f"With{schedule.name}")(params, lr=0.02, **flags)
        for row in grads:
            advance(optimizer, params, [row])
        results.append(params)
    plain = [p.clone() for p in start]
    adam = generated.Adam(plain, lr=0.02, foreach=False)
    for t, row in enumerate(grads):
        adam.param_groups[0]["lr"] = rate(t, 0.02)
        advance(adam, plain, [row])
    assert equal(results[0], plain)
    assert equal(results[1], plain)
    torch.testing.assert_close(results[2], plain, rtol=1e-11, atol=1e-13)
