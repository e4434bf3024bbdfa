"""Programs that users write around an optimizer: run with torch.optim and with this package, they
leave the same bits behind."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR

import generated
from tests.reference import (
    BY_CLOSURE,
    IN_TORCH,
    PATHS,
    SHIPPED,
    Problem,
    advance,
    bits,
    construct,
    contents,
    differences,
    small_problem,
    suited,
)

GRADIENT = [name for name in IN_TORCH if name not in BY_CLOSURE]
WITH_STEP = [
    name for name in GRADIENT
    if any(s.name == "step" and not s.integer for s in getattr(generated, name).slots)
]  # fmt: skip
paths = pytest.mark.parametrize("foreach", PATHS.values(), ids=PATHS)
in_torch = pytest.mark.parametrize("name", IN_TORCH)
by_gradient = pytest.mark.parametrize("name", GRADIENT)

Optimizer = torch.optim.Optimizer
Trained = dict[str, Any]


def path_of(package: Any, foreach: bool) -> bool:
    """What is compared with is torch's for-loop, for both of our paths."""
    return foreach and package is generated


def problem_of(name: str, dtype: torch.dtype = torch.float32) -> Problem:
    return suited(small_problem(dtype), name)


# Programs. Each takes a package, an optimizer's name and a path, and gives what is left behind.


def _start(package: Any, name: str, foreach: bool, **options: Any) -> tuple[Any, Any, Any]:
    problem = problem_of(name)
    params = problem.start()
    optimizer = construct(package, name, params, path_of(package, foreach), **options)
    return optimizer, params, problem.gradients


def layers_are_frozen_and_thawed(package: Any, name: str, foreach: bool) -> Trained:
    optimizer, params, gradients = _start(package, name, foreach)
    for step, row in enumerate(gradients[:8]):
        params[0].requires_grad_(step not in (2, 3, 4))
        frozen = [None if not p.requires_grad else g for p, g in zip(params, row, strict=True)]
        advance(optimizer, params, [frozen])
    params[0].requires_grad_(True)
    return contents(optimizer)


def a_parameter_comes_as_a_group_of_its_own(package: Any, name: str, foreach: bool) -> Trained:
    problem = problem_of(name)
    first, last, *_ = problem.start()
    optimizer = construct(package, name, [first], path_of(package, foreach))
    advance(optimizer, [first], [row[:1] for row in problem.gradients[:3]])
    optimizer.add_param_group({"params": last, "lr": 0.25, "mask": torch.ones(3)})
    advance(optimizer, [first, last], [row[:2] for row in problem.gradients[3:7]])
    return contents(optimizer)


def parameters_are_dropped_and_put_in_another_order(
    package: Any, name: str, foreach: bool
) -> Trained:
    optimizer, params, gradients = _start(package, name, foreach)
    advance(optimizer, params, gradients[:4])
    mine = optimizer.param_groups[0]["params"]
    optimizer.state.pop(mine.pop(0), None)
    mine.reverse()
    advance(optimizer, mine, [row[:0:-1] for row in gradients[4:7]])
    return contents(optimizer)


def a_parameter_moves_to_another_group(package: Any, name: str, foreach: bool) -> Trained:
    problem = problem_of(name)
    params = problem.start()
    groups = [{"params": params[:-1]}, {"params": params[-1:], "lr": 0.25}]
    optimizer = construct(package, name, groups, path_of(package, foreach))
    advance(optimizer, params, problem.gradients[:3])
    optimizer.param_groups[1]["params"].append(optimizer.param_groups[0]["params"].pop(0))
    advance(optimizer, params, problem.gradients[3:6])
    return contents(optimizer)


def parameters_get_other_storage(package: Any, name: str, foreach: bool) -> Trained:
    optimizer, params, gradients = _start(package, name, foreach)
    for row in gradients[:6]:
        params[-1].data = params[-1].data.clone() * 0.5
        advance(optimizer, params, [row])
    return contents(optimizer)


def gradients_are_shared(package: Any, name: str, foreach: bool) -> Trained:
    problem = problem_of(name)
    params = [problem.parameters[-1].clone().requires_grad_() for _ in range(3)]
    optimizer = construct(package, name, params, path_of(package, foreach))
    advance(optimizer, params, [[row[-1]] * 3 for row in problem.gradients[:5]])
    return contents(optimizer)


def averages_are_reset_by_hand(package: Any, name: str, foreach: bool) -> Trained:
    optimizer, params, gradients = _start(package, name, foreach)
    advance(optimizer, params, gradients[:3])
    for slots in optimizer.state.values():
        for value in slots.values():
            if isinstance(value, Tensor) and value.dim():
                value.zero_()
    advance(optimizer, params, gradients[3:6])
    return contents(optimizer)


def the_state_of_a_parameter_is_forgotten(package: Any, name: str, foreach: bool) -> Trained:
    optimizer, params, gradients = _start(package, name, foreach)
    advance(optimizer, params, gradients[:3])
    optimizer.state[params[-1]].clear()
    advance(optimizer, params, gradients[5:8])
    optimizer.state.clear()
    advance(optimizer, params, gradients[9:11])
    return contents(optimizer)


def a_closure_is_interrupted(package: Any, name: str, foreach: bool) -> Trained:
    optimizer, params, gradients = _start(package, name, foreach)
    advance(optimizer, params, gradients[:3])

    def closure() -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert torch.is_grad_enabled()
    advance(optimizer, params, gradients[3:6])
    return contents(optimizer)


def a_copy_of_model_and_optimizer_goes_its_own_way(
    package: Any, name: str, foreach: bool
) -> Trained:
    optimizer, params, gradients = _start(package, name, foreach)
    advance(optimizer, params, gradients[:3])
    twins, twin = copy.deepcopy((params, optimizer))
    advance(twin, twins, gradients[7:9])
    advance(optimizer, params, gradients[3:5])
    return {**contents(optimizer), **{f"twin's {k}": v for k, v in contents(twin).items()}}


def a_subclass_counts_and_adds_a_default(package: Any, name: str, foreach: bool) -> Trained:
    kind: Any = getattr(package, name)

    class Counting(kind):
        def __init__(self, params: Any, **options: Any) -> None:
            super().__init__(params, **options)
            self.defaults["tag"] = 3
            self.steps = 0

        def step(self, closure: Any = None) -> Any:
            self.steps += 1
            return super().step(closure)

    problem = problem_of(name)
    params = problem.start()
    options = {} if package is torch.optim else {"foreach": foreach}
    optimizer = Counting(params[:1], **options)
    optimizer.add_param_group({"params": params[1:]})
    advance(optimizer, params, problem.gradients[:4])
    assert optimizer.steps == 4
    assert optimizer.param_groups[1]["tag"] == 3
    return contents(optimizer)


def a_function_takes_the_place_of_step(package: Any, name: str, foreach: bool) -> Trained:
    optimizer, params, gradients = _start(package, name, foreach)
    step, calls = optimizer.step, []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return step(*args, **kwargs)

    optimizer.step = counted  # type: ignore[method-assign]
    advance(optimizer, params, gradients[:4])
    assert len(calls) == 4
    return contents(optimizer)


def hooks_rewrite_a_checkpoint(package: Any, name: str, foreach: bool) -> Trained:
    optimizer, params, gradients = _start(package, name, foreach)

    def halve(_: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
        return {**saved, "param_groups": [{**g, "lr": g["lr"] / 2} for g in saved["param_groups"]]}

    optimizer.register_load_state_dict_pre_hook(halve)
    advance(optimizer, params, gradients[:3])
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    advance(optimizer, params, gradients[3:6])
    return {**contents(optimizer), "lr": torch.tensor(optimizer.param_groups[0]["lr"])}


def groups_have_been_through_json(package: Any, name: str, foreach: bool) -> Trained:
    optimizer, params, gradients = _start(package, name, foreach)
    advance(optimizer, params, gradients[:3])
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        group.update((k, list(v)) for k, v in group.items() if isinstance(v, tuple))
    optimizer.load_state_dict(saved)
    advance(optimizer, params, gradients[3:6])
    return contents(optimizer)


def a_schedule_moves_rate_and_momentum(package: Any, name: str, foreach: bool) -> Trained:
    momentum = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
    optimizer, params, gradients = _start(package, name, foreach, **momentum)
    cycled = any(k in optimizer.param_groups[0] for k in ("momentum", "betas"))
    schedules: list[Callable[[], LRScheduler]] = [
        lambda: OneCycleLR(optimizer, 0.1, total_steps=6, cycle_momentum=cycled),
        lambda: CyclicLR(optimizer, 0.01, 0.1, step_size_up=2, cycle_momentum=cycled),
    ]
    for make in schedules:
        schedule = make()
        for row in gradients[:5]:
            advance(optimizer, params, [row])
            schedule.step()
    group = optimizer.param_groups[0]
    rates = [group["lr"], *group.get("betas", ()), group.get("momentum", 0.0)]
    return {**contents(optimizer), "rates": torch.tensor(rates, dtype=torch.float64)}


PROGRAMS: list[Callable[[Any, str, bool], Trained]] = [
    layers_are_frozen_and_thawed,
    a_parameter_comes_as_a_group_of_its_own,
    parameters_are_dropped_and_put_in_another_order,
    a_parameter_moves_to_another_group,
    parameters_get_other_storage,
    gradients_are_shared,
    averages_are_reset_by_hand,
    the_state_of_a_parameter_is_forgotten,
    a_closure_is_interrupted,
    a_copy_of_model_and_optimizer_goes_its_own_way,
    a_subclass_counts_and_adds_a_default,
    a_function_takes_the_place_of_step,
    hooks_rewrite_a_checkpoint,
    groups_have_been_through_json,
    a_schedule_moves_rate_and_momentum,
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
@by_gradient
@paths
def test_programs_leave_torchs_bits(
    program: Callable[[Any, str, bool], Trained], name: str, foreach: bool
) -> None:
    theirs, ours = (program(package, name, foreach) for package in (torch.optim, generated))
    assert theirs
    assert differences(theirs, ours) == []


# Groups


def test_a_list_may_stand_for_a_tuple_and_its_tensors_are_looked_at() -> None:
    param = torch.ones(2, requires_grad=True)
    parts = [torch.tensor([0.9, 0.9]), torch.tensor(0.99)]
    with pytest.raises(ValueError, match=r"Tensor betas\[0\] must be 1-element"):
        generated.NAdam([param], betas=parts)  # type: ignore[arg-type]


# Modes


def _contexts() -> Iterator[tuple[str, Callable[[], AbstractContextManager[Any]]]]:
    yield "no_grad", torch.no_grad
    yield "enable_grad", torch.enable_grad
    yield "inference_mode", torch.inference_mode
    yield "another default device", lambda: torch.device("meta")


@pytest.mark.parametrize("context", [pytest.param(c, id=i) for i, c in _contexts()])
@pytest.mark.parametrize("name", [n for n in SHIPPED if n not in BY_CLOSURE])
@paths
def test_what_surrounds_a_step_does_not_matter(
    context: Callable[[], AbstractContextManager[Any]], name: str, foreach: bool
) -> None:
    left = []
    for surrounding in (torch.no_grad, context):
        optimizer, params, gradients = _start(generated, name, foreach)
        for row in gradients[:3]:
            with surrounding():
                advance(optimizer, params, [row])
        left.append(contents(optimizer))
    assert differences(*left) == []


@pytest.mark.parametrize("name", [n for n in GRADIENT if n != "Adafactor"])
@paths
def test_a_step_under_autocast_leaves_torchs_bits(name: str, foreach: bool) -> None:
    """But Adafactor's: a product of float32 matrices has 16 bits there, and torch divides it in
    place."""
    left = []
    for package in (torch.optim, generated):
        optimizer, params, gradients = _start(package, name, foreach)
        for row in gradients[:4]:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                advance(optimizer, params, [row])
        left.append(contents(optimizer))
    assert differences(*left) == []


@pytest.mark.parametrize("name", WITH_STEP)
@paths
def test_a_step_in_inference_mode_may_be_followed_by_one_outside(name: str, foreach: bool) -> None:
    """The state was made outside, so torch's may be written there."""
    left = []
    for package in (torch.optim, generated):
        problem = problem_of(name)
        params = problem.start()
        optimizer = construct(package, name, params, path_of(package, foreach))
        advance(optimizer, params, problem.gradients[1:3])
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        with torch.inference_mode():
            advance(optimizer, params, problem.gradients[3:4])
        advance(optimizer, params, problem.gradients[4:6])
        left.append(contents(optimizer))
    assert differences(*left) == []


# Memory


@in_torch
@paths
def test_nothing_but_its_owner_keeps_an_optimizer_and_its_parameters(
    name: str, foreach: bool
) -> None:
    optimizer, params, gradients = _start(generated, name, foreach and name not in BY_CLOSURE)
    advance(optimizer, params, gradients[:3])
    watched = [weakref.ref(optimizer), *map(weakref.ref, params)]
    gc.collect()
    gc.disable()
    try:
        advance(optimizer, params, gradients[:2])
        assert gc.collect() == 0
        del optimizer, params
        assert [each() for each in watched] == [None] * len(watched)
    finally:
        gc.enable()


@by_gradient
@paths
def test_storage_stays_where_it_is_over_the_steps(name: str, foreach: bool) -> None:
    optimizer, params, gradients = _start(generated, name, foreach)

    def addresses() -> list[int]:
        values = [v for slots in optimizer.state.values() for v in slots.values()]
        return [v.data_ptr() for v in (*params, *values) if isinstance(v, Tensor)]

    advance(optimizer, params, gradients[1:3])
    before = addresses()
    advance(optimizer, params, gradients[3:12])
    assert addresses() == before
    assert len(set(before)) == len(before)


# Classes of tensors


class Sharded(Tensor):
    """Like torch's DTensor, it takes no lists in which it stands beside other tensors."""

    lists = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__.startswith("_foreach"):
            kinds = {isinstance(each, cls) for each in args[0]}
            assert len(kinds) == 1
            cls.lists += 1
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("name", [n for n in GRADIENT if n != "SparseAdam"])
def test_lists_hold_tensors_of_one_class(name: str) -> None:
    problem = problem_of(name)
    params = problem.start()
    params[0] = problem.parameters[0].clone().as_subclass(Sharded).requires_grad_()
    optimizer = construct(generated, name, params, foreach=True)
    rows = [[g and g[0].as_subclass(Sharded), *g[1:]] for g in problem.gradients[1:4]]
    Sharded.lists = 0
    advance(optimizer, params, rows)
    assert Sharded.lists > 0

    plain = problem.start()
    twin = construct(generated, name, plain, foreach=True)
    advance(twin, plain, problem.gradients[1:4])
    for param, expected in zip(params, plain, strict=True):
        assert torch.equal(bits(param.detach().as_subclass(Tensor)), bits(expected.detach()))


# Checkpoints


@pytest.mark.parametrize(("name", "number"), [("NAdam", "mu_product"), ("ASGD", "eta")])
def test_numbers_that_a_checkpoint_has_in_16_bits_are_widened_alike_on_both_paths(
    name: str, number: str
) -> None:
    """torch's checkpoints have them, once it has resumed a run of 16-bit parameters."""
    left = []
    for foreach in PATHS.values():
        problem = problem_of(name, torch.bfloat16)
        params = problem.start()
        optimizer = construct(torch.optim, name, params, False)
        advance(optimizer, params, problem.gradients[:3])
        resumed = construct(torch.optim, name, params, False)
        resumed.load_state_dict(optimizer.state_dict())
        saved = copy.deepcopy(resumed.state_dict())
        assert saved["state"][0][number].dtype == torch.bfloat16
        ours = construct(generated, name, params, foreach)
        ours.load_state_dict(saved)
        advance(ours, params, problem.gradients[3:9])
        assert ours.state[params[0]][number].dtype == torch.float32
        left.append(contents(ours))
    assert differences(*left) == []


@by_gradient
def test_a_class_derived_elsewhere_may_keep_more_in_the_state_than_slots(name: str) -> None:
    kind: Any = getattr(generated, name)
    derived = type(name, (kind,), {"__module__": __name__})
    left = []
    for stop in (None, 3):
        problem = problem_of(name)
        params = problem.start()
        optimizer = derived(params)
        advance(optimizer, params, problem.gradients[:3])
        optimizer.state[params[0]]["average"] = params[0].detach().clone()
        optimizer.state[params[0]]["note"] = {"since": 3}
        if stop:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = derived(params)
            optimizer.load_state_dict(saved)
        advance(optimizer, params, problem.gradients[3:6])
        assert optimizer.state[params[0]].pop("note") == {"since": 3}
        left.append(contents(optimizer))
        assert "parameter 0: average" in left[-1]
    assert differences(*left) == []


@pytest.mark.parametrize("name", [n for n in GRADIENT if n != "SparseAdam"])
@paths
def test_torchs_distributed_checkpoints_take_the_state_and_give_it_back(
    name: str, foreach: bool
) -> None:
    """They make the state by a step whose rate and gradients are zero."""
    left = []
    for package in (torch.optim, generated):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))
        params = list(model.parameters())
        gradients = [[torch.randn_like(p) for p in params] for _ in range(4)]
        options = {"momentum": 0.9} if name == "SGD" else {}
        optimizer = construct(package, name, params, path_of(package, foreach), **options)
        advance(optimizer, params, gradients[:2])
        saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
        assert set(saved["state"]) == {"0.weight", "1.weight"}
        fresh = construct(package, name, params, path_of(package, foreach), **options)
        set_optimizer_state_dict(model, fresh, saved)
        advance(fresh, params, gradients[2:])
        left.append(contents(fresh))
    assert differences(*left) == []


# L-BFGS


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_lbfgs_continues_a_checkpoint_of_another_dtype_as_torch(
    search: str | None, dtype: torch.dtype
) -> None:
    other = torch.float64 if dtype == torch.float32 else torch.float32
    left = []
    for package in (torch.optim, generated):
        problem = problem_of("LBFGS", dtype)
        params = problem.start()
        optimizer = package.LBFGS(params, line_search_fn=search, max_iter=4)
        advance(optimizer, params, problem.gradients[:2])
        moved = [p.detach().to(other).requires_grad_() for p in params]
        resumed = package.LBFGS(moved, line_search_fn=search, max_iter=4)
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        advance(resumed, moved, [[g.to(other) for g in row] for row in problem.gradients[2:]])
        left.append({k: v for k, v in contents(resumed).items() if ":" not in k})
    assert differences(*left) == []


def test_lbfgs_goes_on_when_its_parameters_change_their_dtype() -> None:
    """As after loading its own checkpoint. torch's fails: 'expected both vectors to have same
    dtype'."""
    left = []
    for loads in (False, True):
        problem = problem_of("LBFGS")
        params = problem.start()
        optimizer = generated.LBFGS(params, max_iter=4)
        advance(optimizer, params, problem.gradients[:2])
        saved = copy.deepcopy(optimizer.state_dict())
        for param in params:
            param.grad, param.data = None, param.data.double()
        if loads:
            optimizer = generated.LBFGS(params, max_iter=4)
            optimizer.load_state_dict(saved)
        advance(optimizer, params, [[g.double() for g in row] for row in problem.gradients[2:]])
        assert optimizer.state[params[0]]["d"].dtype == torch.float64
        left.append(contents(optimizer))
    assert differences(*left) == []


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_limits_of_lbfgs_may_be_floats_as_in_torch(search: str | None) -> None:
    left = []
    for package in (torch.optim, generated):
        problem = problem_of("LBFGS")
        params = problem.start()
        limits = {"max_iter": 3.0, "max_eval": 4.0}
        optimizer = package.LBFGS(params, line_search_fn=search, **limits)
        advance(optimizer, params, problem.gradients)
        left.append(contents(optimizer))
    assert differences(*left) == []
