"""Every shipped optimizer against torch's for-loop, its paper, and the interpreter of its spec."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

import generated
from optdsl import interpret, pipeline
from optdsl.ir import Spec
from tests.reference import (
    DTYPES,
    IN_TORCH,
    PATHS,
    SHIPPED,
    STEPS,
    Case,
    Problem,
    advance,
    cases,
    choices,
    contents,
    differences,
    full_problem,
    run,
    same_bits,
    small_problem,
    special_problem,
)

Array = NDArray[np.float64]

ROOT = Path(__file__).resolve().parents[1]
IN_TORCH_CASES = [case for name in IN_TORCH for case in cases(name)]

# The least change of a number that float64 can tell: 1 ulp of 1.
EPS = float(np.finfo(np.float64).eps)


# torch's for-loop


@pytest.mark.parametrize("case", IN_TORCH_CASES, ids=str)
def test_both_paths_equal_torchs_for_loop_bit_for_bit(case: Case) -> None:
    problem = full_problem(case.dtype)
    expected = run(torch.optim, case, problem, foreach=False)
    for foreach in PATHS.values():
        assert differences(expected, run(generated, case, problem, foreach)) == []


@pytest.mark.parametrize("case", IN_TORCH_CASES, ids=str)
def test_infinities_nans_zeros_and_subnormals_go_torchs_way(case: Case) -> None:
    problem = special_problem(case.dtype)
    expected = run(torch.optim, case, problem, foreach=False)
    for foreach in PATHS.values():
        assert differences(expected, run(generated, case, problem, foreach)) == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_gradients_hold_what_they_claim(dtype: torch.dtype) -> None:
    (gradient,) = special_problem(dtype).gradients[0]
    assert gradient is not None
    real = torch.view_as_real(gradient) if dtype.is_complex else gradient
    tiny = torch.finfo(dtype).tiny
    assert real.isnan().any()
    assert real.isposinf().any()
    assert real.isneginf().any()
    assert ((real == 0) & real.signbit()).any()
    assert ((real != 0) & (real.abs() < tiny)).any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", IN_TORCH)
def test_reference_trajectories_move_and_stay_finite(name: str, dtype: torch.dtype) -> None:
    problem = full_problem(dtype)
    after = run(generated, cases(name, [dtype])[-1], problem, foreach=False)
    order = [*range(0, 10, 2), *range(1, 10, 2)]  # of the parameters in their two groups
    for position, index in enumerate(order):
        start, end = problem.parameters[index], after[f"parameter {position}"]
        assert end.isfinite().double().mean() > 0.99 or not end.numel()
        assert (start != end).double().mean() > 0.75 or not end.numel()


def test_comparison_sees_that_torchs_own_paths_differ_in_bfloat16() -> None:
    case = Case("Adam", (("weight_decay", 0.1),), torch.bfloat16)
    problem = full_problem(torch.bfloat16)
    loop, lists = (run(torch.optim, case, problem, foreach) for foreach in (False, True))
    assert differences(loop, lists) != []


def test_comparison_tells_zeros_apart_and_takes_nans_as_equal() -> None:
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert same_bits(torch.tensor([torch.nan]), -torch.tensor([torch.nan]))
    assert not same_bits(torch.tensor([0.0]), torch.tensor([0.0], dtype=torch.float64))
    assert differences({"a": torch.ones(1)}, {}) == ["a"]


def numbers_of(name: str) -> st.SearchStrategy[dict[str, Any]]:
    """Hyperparameters of any size that optimizers are used with, zeros and integers among them."""
    rate = st.floats(1e-6, 10) | st.sampled_from([0, 1])
    share = st.floats(1e-6, 1, exclude_max=True) | st.just(0)
    decay = st.floats(1e-6, 1) | st.just(0)
    eps = st.sampled_from([0, 1e-15, 1e-8, 1e-3])
    flag = st.booleans()
    own: dict[str, dict[str, st.SearchStrategy[Any]]] = {
        "SGD": {"momentum": share, "dampening": st.floats(-1, 1) | st.just(0)},
        "Adam": {
            "betas": st.tuples(st.floats(0, 0.9999), st.floats(0, 0.99999)),
            "eps": eps,
            "amsgrad": flag,
            "decoupled_weight_decay": flag,
        },
        "RMSprop": {"alpha": st.floats(0, 1), "eps": eps, "momentum": share, "centered": flag},
        "Adagrad": {"lr_decay": decay, "initial_accumulator_value": share, "eps": eps},
    }
    own["AdamW"] = {k: v for k, v in own["Adam"].items() if k != "decoupled_weight_decay"}
    shared = {"lr": rate, "weight_decay": decay, "maximize": flag}
    return st.fixed_dictionaries({**shared, **own[name]})


def check_any_numbers(name: str, data: st.DataObject, problem: Problem) -> None:
    options = data.draw(numbers_of(name), label="options")
    if name == "SGD" and options["momentum"] and not options["dampening"]:
        options["nesterov"] = data.draw(st.booleans(), label="nesterov")
    case = Case(name, tuple(options.items()), problem.parameters[0].dtype)
    expected = run(torch.optim, case, problem, foreach=False)
    for foreach in PATHS.values():
        assert differences(expected, run(generated, case, problem, foreach)) == []


@pytest.mark.parametrize("name", IN_TORCH)
@settings(deadline=None, max_examples=60)
@given(data=st.data(), dtype=st.sampled_from(DTYPES))
def test_any_hyperparameters_give_torchs_bits(
    name: str, data: st.DataObject, dtype: torch.dtype
) -> None:
    check_any_numbers(name, data, small_problem(dtype, steps=6))


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_TORCH)
@settings(deadline=None, max_examples=1500)
@given(data=st.data(), dtype=st.sampled_from(DTYPES), steps=st.integers(1, 60))
def test_any_hyperparameters_give_torchs_bits_in_long_runs(
    name: str, data: st.DataObject, dtype: torch.dtype, steps: int
) -> None:
    check_any_numbers(name, data, small_problem(dtype, steps))


@pytest.mark.slow
@pytest.mark.parametrize("case", IN_TORCH_CASES, ids=str)
def test_both_paths_equal_torchs_for_loop_after_many_steps_of_larger_tensors(case: Case) -> None:
    problem = full_problem(case.dtype, large=300_007, steps=100)
    expected = run(torch.optim, case, problem, foreach=False)
    for foreach in PATHS.values():
        assert differences(expected, run(generated, case, problem, foreach)) == []


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", IN_TORCH)
def test_number_of_threads_changes_no_bit(name: str, threads: int) -> None:
    case = cases(name, [torch.float32])[-1]
    problem = full_problem(torch.float32)
    before = torch.get_num_threads()
    expected = run(torch.optim, case, problem, foreach=False)
    torch.set_num_threads(threads)
    try:
        found = [run(generated, case, problem, foreach) for foreach in PATHS.values()]
    finally:
        torch.set_num_threads(before)
    assert [differences(expected, f) for f in found] == [[], []]


def test_command_prints_a_table_and_succeeds() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.reference", "AdamW"],
        cwd=ROOT, text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "AdamW     foreach       8 of 8" in done.stdout
    assert "80 of 80 cases are bit-equal." in done.stdout


# The two paths


@pytest.mark.parametrize("case", cases("Lion"), ids=str)
def test_lion_has_the_same_bits_on_both_paths(case: Case) -> None:
    for problem in (full_problem(case.dtype), special_problem(case.dtype)):
        expected = run(generated, case, problem, foreach=False)
        assert differences(expected, run(generated, case, problem, foreach=True)) == []


# Lion's paper


class PublishedLion:
    """Algorithm 2 of Chen et al., 2023, in float64: what follows is its text."""

    def __init__(self, lr: float, beta1: float, beta2: float, wd: float, param: Array) -> None:
        self.lr, self.beta1, self.beta2, self.wd = lr, beta1, beta2, wd
        self.param = param
        self.m = np.zeros_like(param)

    def direction(self, grad: Array) -> Array:
        return np.sign(self.beta1 * self.m + (1 - self.beta1) * grad)

    def step(self, grad: Array) -> None:
        self.param = self.param - self.lr * (self.direction(grad) + self.wd * self.param)
        self.m = self.beta2 * self.m + (1 - self.beta2) * grad


class DecoupledLion(PublishedLion):
    """The same with the decay in front of the step, `p (1 - lr wd) - lr u` for `p - lr (u + wd p)`:
    equal but for rounding, and the order in which AdamW and our spec do it."""

    def step(self, grad: Array) -> None:
        direction = self.direction(grad)
        self.param = self.param * (1 - self.lr * self.wd) - self.lr * direction
        self.m = self.beta2 * self.m + (1 - self.beta2) * grad


LION = {"lr": 1e-2, "betas": (0.9, 0.99)}


def lion_runs(kind: type[PublishedLion], wd: float, foreach: bool) -> Iterator[tuple[Any, Any]]:
    """For each parameter: parameter and momentum from the paper, and ours, after 20 steps."""
    problem = full_problem(torch.float64, large=5000)
    params = problem.start()
    optimizer = generated.Lion(params, **LION, weight_decay=wd, foreach=foreach)
    advance(optimizer, params, problem.gradients)
    for index, (start, param) in enumerate(zip(problem.parameters, params, strict=True)):
        paper = kind(LION["lr"], *LION["betas"], wd, start.numpy())
        for row in problem.gradients:
            grad = row[index]
            if grad is not None:
                paper.step(grad.numpy())
        ours = (param.detach().numpy(), optimizer.state[param]["exp_avg"].numpy())
        yield (paper.param, paper.m), ours


@pytest.mark.parametrize("foreach", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("wd", [0, 0.1, 3.0])
def test_lion_follows_its_paper_to_one_ulp_per_step(wd: float, foreach: bool) -> None:
    for (param, m), (our_param, our_m) in lion_runs(PublishedLion, wd, foreach):
        # An ulp of the largest element: a sum that cancels keeps its terms' error.
        for expected, actual in ((param, our_param), (m, our_m)):
            bound = STEPS * EPS * np.max(np.abs(expected), initial=1.0)
            np.testing.assert_allclose(actual, expected, rtol=0, atol=bound)


@pytest.mark.parametrize("foreach", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("wd", [0, 0.1, 3.0])
def test_lion_differs_from_its_paper_only_by_where_the_decay_rounds(
    wd: float, foreach: bool
) -> None:
    for (param, _), (our_param, _) in lion_runs(DecoupledLion, wd, foreach):
        np.testing.assert_array_equal(our_param, param)


# Mixed dtypes

MOMENTS = {
    "SGD": ("momentum_buffer",),
    "Adam": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    "AdamW": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    "RMSprop": ("square_avg", "momentum_buffer", "grad_avg"),
    "Adagrad": ("sum",),
    "Lion": ("exp_avg",),
}
ALL_ON: dict[str, dict[str, Any]] = {name: list(choices(name))[-1] for name in SHIPPED}


def with_moments(
    name: str, params: list[Tensor], foreach: bool, dtypes: dict[str, torch.dtype]
) -> torch.optim.Optimizer:
    """An optimizer whose user has put zero moments of these dtypes into its state."""
    optimizer = getattr(generated, name)(params, **ALL_ON[name], lr=0.01, foreach=foreach)
    for param in params:
        for slot, dtype in dtypes.items():
            optimizer.state[param][slot] = torch.zeros_like(param, dtype=dtype)
    return optimizer


def wide(problem: Problem) -> Problem:
    """The same numbers in float32."""
    rows = tuple(tuple(None if g is None else g.float() for g in r) for r in problem.gradients)
    return Problem(tuple(p.float() for p in problem.parameters), rows)


def kept_wide(name: str) -> list[tuple[str, tuple[str, ...]]]:
    """An optimizer with the moments that are float32: all, the first, and all but the first."""
    first, *others = MOMENTS[name]
    choice = dict.fromkeys([MOMENTS[name], (first,), tuple(others)])
    return [(name, slots) for slots in choice if slots]


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("name", "kept"), [pair for name in SHIPPED for pair in kept_wide(name)])
def test_narrow_parameters_with_float32_moments_round_once_per_slot(
    name: str, kept: tuple[str, ...], narrow: torch.dtype
) -> None:
    dtypes = {slot: torch.float32 if slot in kept else narrow for slot in MOMENTS[name]}
    problem = small_problem(narrow)

    # What it should be: float32 throughout, and after each step every tensor in its own dtype.
    precise = wide(problem)
    params = precise.start()
    reference = with_moments(name, params, False, dict.fromkeys(dtypes, torch.float32))
    for row in precise.gradients:
        advance(reference, params, [row])
        for param in params:
            param.data = param.data.to(narrow).float()
            for slot, dtype in dtypes.items():
                value = reference.state[param][slot]
                value.copy_(value.to(dtype))
    expected = {
        key: value
        if key.endswith(": step")
        else value.to(dtypes[key.split(": ")[1]] if ":" in key else narrow)
        for key, value in contents(reference).items()
    }

    found = []
    for foreach in PATHS.values():
        params = problem.start()
        optimizer = with_moments(name, params, foreach, dtypes)
        advance(optimizer, params, problem.gradients)
        found.append(contents(optimizer))
    assert differences(found[0], found[1]) == []
    assert differences(expected, found[0]) == []


# The interpreter


@cache
def specs() -> dict[str, Spec]:
    return {u.name: u for u in pipeline.shipped_library().units if isinstance(u, Spec)}


# Of the largest element, after 20 steps: the interpreter rounds after each operation, torch's
# three-operand calls once; RMSprop's centered variance and its square root magnify that.
INTERPRETER_ULPS = 16


@pytest.mark.parametrize("name", SHIPPED)
def test_eager_code_follows_the_interpreter_within_16_ulps_after_20_steps(name: str) -> None:
    problem = small_problem(torch.float64)
    for options in choices(name, maximize=(False, True)):
        params = problem.start()
        optimizer = getattr(generated, name)(params, **options)
        advance(optimizer, params, problem.gradients)
        group = optimizer.param_groups[0]
        sign = -1 if options.get("maximize") else 1
        for index, (start, param) in enumerate(zip(problem.parameters, params, strict=True)):
            array, slots = start.numpy(), None
            for row in problem.gradients:
                grad = row[index]
                if grad is not None:
                    array, slots = interpret.step(
                        specs()[name], group, array, sign * grad.numpy(), slots
                    )
            ours = {k: v for k, v in optimizer.state[param].items() if v is not None}
            assert slots is not None
            assert set(ours) == set(slots)
            assert_close(param, array, options)
            for slot, value in slots.items():
                assert_close(ours[slot], value, options)


def assert_close(actual: Tensor, expected: Any, options: Any) -> None:
    bound = INTERPRETER_ULPS * EPS * np.max(np.abs(expected), initial=0.0)
    np.testing.assert_allclose(
        actual.detach().numpy(), expected, rtol=0, atol=bound, err_msg=str(options)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("foreach", [False, True])
def test_gradients_in_another_layout_than_their_parameter_give_torchs_bits(
    foreach: bool, dtype: torch.dtype
) -> None:
    def trained(module: Any, **flags: Any) -> Tensor:
        random = torch.Generator().manual_seed(0)
        shape = (2, 8, 5, 5)
        param = torch.randn(shape, generator=random).to(dtype, memory_format=torch.channels_last)
        param.requires_grad_()
        optimizer = module.SGD([param], lr=0.1, momentum=0.9, weight_decay=0.1, **flags)
        for _ in range(5):
            param.grad = torch.randn(shape, generator=random).to(dtype)
            optimizer.step()
        return param

    assert torch.equal(trained(generated, foreach=foreach), trained(torch.optim, foreach=False))
