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
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.testing._internal.common_optimizers import optim_db

import generated
from optdsl import interpret, pipeline
from optdsl.ir import Spec
from tests.reference import (
    BY_CLOSURE,
    DTYPES,
    IN_TORCH,
    PATHS,
    PLANS,
    SHIPPED,
    STEPS,
    Case,
    Problem,
    advance,
    all_cases,
    cases,
    choices,
    construct,
    contents,
    deviations,
    differences,
    dtypes_of,
    full_problem,
    paths_of,
    reason,
    run,
    same_bits,
    small_problem,
    special_problem,
    suited,
)

Array = NDArray[np.float64]

ROOT = Path(__file__).resolve().parents[1]


def marked(labelled: list[tuple[str, Case]]) -> list[Any]:
    """Test parameters. Checkpoints of all options in all dtypes are many: the last option's are
    run always, and test_checkpoints.py has all options in float32."""
    quick = {c for name in IN_TORCH for d in DTYPES for c in cases(name, [d])[-2:]}
    slow = ("from torch", "to torch", "resumed")
    return [
        pytest.param(
            label, case, id=f"{label}-{case}",
            marks=[pytest.mark.slow] if label in slow and case not in quick else [],
        )
        for label, case in labelled
    ]  # fmt: skip


# The least change of a number that float64 can tell: 1 ulp of 1.
EPS = float(np.finfo(np.float64).eps)


# torch's for-loop


@pytest.mark.parametrize(("label", "case"), marked(all_cases()))
def test_parameters_and_slots_equal_torchs_bit_for_bit_or_for_a_reason_do_not(
    label: str, case: Case
) -> None:
    why = reason(label, case)
    for path, different in deviations(label, case):
        assert bool(different) == bool(why), f"{path}: {different} {why}"


def test_every_optimizer_of_torch_is_compared_in_every_plan_dtype_and_path() -> None:
    """An optimizer that is missing would be neither equal nor different."""
    assert set(IN_TORCH) == {info.name for info in optim_db}
    for name in IN_TORCH:
        assert sum(bool(plan.cases(name, [d])) for plan in PLANS.values() for d in DTYPES) >= 24
        unexplained = [c for c in cases(name) if not reason("options", c)]
        assert {c.dtype for c in unexplained} == set(dtypes_of(name))
    assert {name for name in IN_TORCH if len(paths_of(name)) < 2} == {"LBFGS"}


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
    for case in cases(name, [dtype])[-1:]:
        problem = full_problem(dtype)
        starts = suited(problem, name).parameters
        after = run(generated, case, problem, foreach=False)
        groups = [starts] if name in BY_CLOSURE else [starts[::2], starts[1::2]]
        ends = [after[f"parameter {index}"] for index in range(len(starts))]
        moved = []
        for start, end in zip((p for group in groups for p in group), ends, strict=True):
            if not end.numel():
                continue
            assert end.isfinite().double().mean() > 0.99
            moved.append((start != end).double().mean().item())
        assert sum(moved) / len(moved) > 0.75


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
    adam = {
        "betas": st.tuples(st.floats(0, 0.9999), st.floats(0, 0.99999)),
        "eps": eps,
        "weight_decay": decay,
    }
    own: dict[str, dict[str, st.SearchStrategy[Any]]] = {
        "SGD": {
            "momentum": share,
            "dampening": st.floats(-1, 1) | st.just(0),
            "weight_decay": decay,
        },
        "Adam": {**adam, "amsgrad": flag, "decoupled_weight_decay": flag},
        "AdamW": {**adam, "amsgrad": flag},
        "RMSprop": {
            "alpha": st.floats(0, 1),
            "eps": eps,
            "momentum": share,
            "centered": flag,
            "weight_decay": decay,
        },
        "Adagrad": {
            "lr_decay": decay,
            "initial_accumulator_value": share,
            "eps": eps,
            "weight_decay": decay,
        },
        "Adadelta": {"rho": st.floats(0, 1), "eps": eps, "weight_decay": decay},
        "Adamax": adam,
        "NAdam": {**adam, "momentum_decay": decay, "decoupled_weight_decay": flag},
        "RAdam": {**adam, "decoupled_weight_decay": flag},
        "ASGD": {
            "lambd": decay,
            "alpha": st.floats(0, 2),
            "t0": st.floats(0, 30) | st.integers(0, 30),
            "weight_decay": decay,
        },
        "Rprop": {
            "etas": st.tuples(st.floats(0.01, 0.99), st.floats(1.01, 5)),
            "step_sizes": st.tuples(st.floats(1e-8, 1e-3), st.floats(1e-2, 100)),
        },
        "Adafactor": {
            "beta2_decay": st.floats(-2, 0),
            "eps": st.tuples(st.none() | eps, st.floats(0, 0.1)),
            "d": st.floats(1, 10),
            "weight_decay": decay,
        },
        "Muon": {
            "momentum": share,
            "ns_steps": st.integers(0, 8),
            "eps": st.sampled_from([1e-15, 1e-7, 1.0]),
            "adjust_lr_fn": st.sampled_from([None, "original", "match_rms_adamw"]),
            "nesterov": flag,
            "weight_decay": decay,
        },
        "SparseAdam": {"betas": adam["betas"], "eps": st.sampled_from([1e-15, 1e-8, 1e-3])},
    }
    if name == "SparseAdam":
        rate = st.floats(1e-6, 10)
    return st.fixed_dictionaries({"lr": rate, "maximize": flag, **own[name]})


def check_any_numbers(name: str, data: st.DataObject, steps: int) -> None:
    dtype = data.draw(st.sampled_from(dtypes_of(name)), label="dtype")
    options = data.draw(numbers_of(name), label="options")
    if name == "SGD" and options["momentum"] and not options["dampening"]:
        options["nesterov"] = data.draw(st.booleans(), label="nesterov")
    case = Case(name, tuple(options.items()), dtype)
    assume(not reason("options", case))
    problem = small_problem(dtype, steps)
    expected = run(torch.optim, case, problem, foreach=False)
    for foreach in paths_of(name).values():
        assert differences(expected, run(generated, case, problem, foreach)) == []


# LBFGS has this test in test_lbfgs.py.
WITH_NUMBERS = [name for name in IN_TORCH if name not in BY_CLOSURE]


@pytest.mark.parametrize("name", WITH_NUMBERS)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_hyperparameters_give_torchs_bits(name: str, data: st.DataObject) -> None:
    check_any_numbers(name, data, steps=6)


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_NUMBERS)
@settings(deadline=None, max_examples=1500)
@given(data=st.data(), steps=st.integers(1, 60))
def test_any_hyperparameters_give_torchs_bits_in_long_runs(
    name: str, data: st.DataObject, steps: int
) -> None:
    check_any_numbers(name, data, steps)


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for name in IN_TORCH for c in cases(name)], ids=str)
def test_both_paths_equal_torchs_for_loop_after_many_steps_of_larger_tensors(case: Case) -> None:
    problem = full_problem(case.dtype, large=300_007, steps=100)
    expected = run(torch.optim, case, problem, foreach=False)
    for foreach in paths_of(case.optimizer).values():
        different = differences(expected, run(generated, case, problem, foreach))
        assert bool(different) == bool(reason("options", case)), different


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", IN_TORCH)
def test_number_of_threads_changes_no_bit(name: str, threads: int) -> None:
    case = cases(name, [torch.float32])[-1]
    problem = full_problem(torch.float32)
    before = torch.get_num_threads()
    expected = run(torch.optim, case, problem, foreach=False)
    torch.set_num_threads(threads)
    try:
        found = [run(generated, case, problem, f) for f in paths_of(name).values()]
    finally:
        torch.set_num_threads(before)
    assert not any(differences(expected, f) for f in found)


def test_command_prints_a_table_and_succeeds() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.reference", "Adamax"],
        cwd=ROOT, text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Adamax      foreach      25 of 25" in done.stdout
    assert "250 results, 0 of them unexplained." in done.stdout


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

# LBFGS has one flat vector, SparseAdam gradients of a few slices: see their own tests.
WITH_MOMENTS = [name for name in SHIPPED if name not in ("LBFGS", "SparseAdam")]
ALL_ON: dict[str, dict[str, Any]] = {name: list(choices(name))[-1] for name in SHIPPED}


def moments(name: str) -> tuple[str, ...]:
    return tuple(slot.name for slot in getattr(generated, name).slots if not slot.scalar)


def with_moments(
    name: str,
    params: list[Tensor],
    foreach: bool,
    dtypes: dict[str, torch.dtype],
    narrow: torch.dtype,
) -> torch.optim.Optimizer:
    """An optimizer whose user has put first values of these dtypes into its state."""
    optimizer = construct(generated, name, params, foreach, **{**ALL_ON[name], "lr": 0.01})
    (group,) = optimizer.param_groups
    for param in params:
        for slot in type(optimizer).slots:
            if not slot.scalar and slot.exists(group, param):
                value = slot.initial(group, param) if slot.initial else torch.zeros_like(param)
                optimizer.state[param][slot.name] = value.to(narrow).to(dtypes[slot.name])
    return optimizer


def in_float32(problem: Problem) -> Problem:
    """The same numbers in float32."""
    rows = tuple(tuple(None if g is None else g.float() for g in r) for r in problem.gradients)
    return Problem(tuple(p.float() for p in problem.parameters), rows)


def kept_wide(name: str) -> list[tuple[str, tuple[str, ...]]]:
    """An optimizer with the moments that are float32: all, the first, and all but the first."""
    first, *others = moments(name)
    choice = dict.fromkeys([moments(name), (first,), tuple(others)])
    if name == "Adafactor":  # a vector has the last one only, and is not widened without it
        del choice[(first,)]
    return [(name, slots) for slots in choice if slots]


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("name", "kept"), [pair for name in WITH_MOMENTS for pair in kept_wide(name)]
)
def test_narrow_parameters_with_float32_moments_round_once_per_slot(
    name: str, kept: tuple[str, ...], narrow: torch.dtype
) -> None:
    dtypes = {slot: torch.float32 if slot in kept else narrow for slot in moments(name)}
    problem = suited(small_problem(narrow), name)

    # What it should be: float32 throughout, and after each step every tensor in its own dtype.
    precise = in_float32(problem)
    params = precise.start()
    reference = with_moments(name, params, False, dict.fromkeys(dtypes, torch.float32), narrow)
    for row in precise.gradients:
        advance(reference, params, [row])
        for param in params:
            param.data = param.data.to(narrow).float()
            for slot, dtype in dtypes.items():
                if slot in reference.state[param]:
                    value = reference.state[param][slot]
                    value.copy_(value.to(dtype))
    expected = {}
    for key, value in contents(reference).items():
        _, _, slot = key.partition(": ")
        kept_dtype = dtypes.get(slot, value.dtype) if slot else narrow
        expected[key] = value.to(kept_dtype)

    found = []
    for foreach in PATHS.values():
        params = problem.start()
        optimizer = with_moments(name, params, foreach, dtypes, narrow)
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


@pytest.fixture
def float64_by_default() -> Iterator[None]:
    """Scalar slots have the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# Not Muon, whose iteration is in bfloat16, nor LBFGS and SparseAdam: see their own tests.
INTERPRETED = [name for name in SHIPPED if name not in ("LBFGS", "Muon", "SparseAdam")]


@pytest.mark.usefixtures("float64_by_default")
@pytest.mark.parametrize("name", INTERPRETED)
def test_eager_code_follows_the_interpreter_within_16_ulps_after_20_steps(name: str) -> None:
    problem = small_problem(torch.float64)
    for options in choices(name, maximize=(False, True)):
        for index, (param, state, expected, slots) in enumerate(
            interpreted(name, problem, options)
        ):
            ours = {k: v for k, v in state.items() if v is not None}
            assert set(ours) == set(slots), index
            assert_close(param, expected, options)
            for slot, value in slots.items():
                assert_close(ours[slot], value, options)


def interpreted(
    name: str, problem: Problem, options: dict[str, Any]
) -> Iterator[tuple[Tensor, dict[str, Any], Array, dict[str, Any]]]:
    """For each parameter, where training leads it and its state, and where the interpreter does."""
    params = problem.start()
    optimizer = construct(generated, name, params, **options)
    advance(optimizer, params, problem.gradients)
    group = optimizer.param_groups[0]
    sign = -1 if options.get("maximize") else 1
    found: list[tuple[Array, Any]] = [(start.numpy(), None) for start in problem.parameters]
    for row in problem.gradients:
        given = [(place, sign * grad.numpy()) for place, grad in enumerate(row) if grad is not None]
        members = [interpret.Member(group, found[n][0], grad, found[n][1]) for n, grad in given]
        for (place, _), result in zip(
            given, interpret.step_all(specs()[name], members), strict=True
        ):
            found[place] = result
    for param, (array, slots) in zip(params, found, strict=True):
        yield param, optimizer.state[param], array, slots


def test_muon_follows_the_interpreter_as_far_as_bfloat16_goes() -> None:
    problem = suited(small_problem(torch.float64, steps=6), "Muon")
    for options in choices("Muon", maximize=(False, True)):
        options = {**options, "lr": 0.1}
        for param, state, expected, slots in interpreted("Muon", problem, options):
            assert_close(state["momentum_buffer"], slots["momentum_buffer"], options)
            # Six steps of about the rate, each with a relative error of some 2**-8.
            np.testing.assert_allclose(param.detach().numpy(), expected, rtol=0, atol=0.02)


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
