"""Where torch is wrong and this package is right: docs/compatibility.md names each test here."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import generated
from tests.reference import (
    BY_CLOSURE,
    DTYPES,
    IN_TORCH,
    PATHS,
    Case,
    Problem,
    advance,
    cases,
    construct,
    contents,
    differences,
    dtypes_of,
    full_problem,
    random,
    run,
    run_with_a_checkpoint,
    small_problem,
    suited,
)
from tests.test_optimizer import NAN_OPTIONS, one

paths = pytest.mark.parametrize("foreach", PATHS.values(), ids=PATHS)


def matrices(dtype: torch.dtype, seed: int, count: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [random(generator, dtype, 4, 6) for _ in range(count)]


# Bits


@paths
def test_muons_momentum_is_the_average_of_gradients_in_bfloat16_too(foreach: bool) -> None:
    """Without nesterov, torch casts the buffer to its own dtype, and divides that in place."""
    start, *gradients = matrices(torch.bfloat16, 0)
    average = torch.zeros_like(start)
    buffers = []
    for package in (torch.optim, generated):
        param = start.clone().requires_grad_()
        optimizer = construct(package, "Muon", [param], foreach, nesterov=False, momentum=0.9)
        advance(optimizer, [param], [[g] for g in gradients])
        buffers.append(optimizer.state[param]["momentum_buffer"])
    for gradient in gradients:
        average.lerp_(gradient, 1 - 0.9)
    assert torch.equal(buffers[1], average)
    assert (buffers[0] - average).norm() > 0.25 * average.norm()


@paths
def test_adafactor_resolves_eps1_for_each_dtype_of_a_group(foreach: bool) -> None:
    """In torch the first parameter's machine epsilon holds for all that follow."""
    found = {}
    for package, together in itertools.product((torch.optim, generated), (True, False)):
        wide = torch.full((3, 4), 2.0, requires_grad=True)
        narrow = torch.full((3, 4), 2.0, dtype=torch.bfloat16, requires_grad=True)
        for param in (narrow, wide):
            param.grad = torch.full_like(param, 1e-5)
        groups = [[narrow, wide]] if together else [[narrow], [wide]]
        on_lists = foreach and package is generated
        for group in groups:
            construct(package, "Adafactor", group, on_lists, lr=1.0).step()
        found[package, together] = wide.detach().clone()
    alone = found[torch.optim, False]
    assert torch.equal(found[generated, True], alone)
    assert torch.equal(found[generated, False], alone)
    assert not torch.allclose(found[torch.optim, True], alone, rtol=1e-3)


@paths
def test_adafactor_takes_parameters_without_elements(foreach: bool) -> None:
    for package in (torch.optim, generated):
        param = torch.zeros(0, 3, requires_grad=True)
        param.grad = torch.zeros(0, 3)
        optimizer = construct(package, "Adafactor", [param], foreach and package is generated)
        if package is torch.optim:
            with pytest.raises(ZeroDivisionError):
                optimizer.step()
        else:
            optimizer.step()
            assert param.shape == (0, 3)


# The dtypes in which torch's foreach path gives other bits than its for-loop.
TORCHS_PATHS_DIFFER: dict[str, tuple[torch.dtype, ...]] = {
    "SGD": (torch.bfloat16, torch.float16),
    "Adam": (torch.bfloat16, torch.float16, torch.complex64),
    "AdamW": (torch.bfloat16, torch.float16),
    "RMSprop": (torch.bfloat16, torch.float16, torch.complex64),
    "Adagrad": (torch.bfloat16, torch.float16, torch.complex64),
    "Adadelta": (torch.bfloat16, torch.float16, torch.complex64),
    "Adamax": (torch.bfloat16, torch.float16, torch.complex64),
    "NAdam": DTYPES,
    "RAdam": DTYPES,
    "ASGD": DTYPES,
    "Rprop": (),
    "Adafactor": DTYPES[:4],
}


@pytest.mark.parametrize("name", TORCHS_PATHS_DIFFER)
def test_torchs_two_paths_differ_where_ours_agree(name: str) -> None:
    differ = []
    for dtype in dtypes_of(name):
        problem = full_problem(dtype)

        def paths_differ(package: Any, case: Case, problem: Problem = problem) -> bool:
            loop, lists = (run(package, case, problem, foreach) for foreach in (False, True))
            return differences(loop, lists) != []

        case = next((c for c in cases(name, [dtype]) if paths_differ(torch.optim, c)), None)
        if case is not None:
            differ.append(dtype)
            assert not paths_differ(generated, case)
    assert tuple(differ) == TORCHS_PATHS_DIFFER[name]


# Checkpoints


def trained(
    package: Any, name: str, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[torch.optim.Optimizer, list[Tensor]]:
    problem = suited(small_problem(dtype), name)
    params = problem.start()
    optimizer = construct(package, name, params, **options)
    advance(optimizer, params, problem.gradients[:5])
    return optimizer, params


# What torch casts on loading, though it is no moment: `step` is the only name that it spares.
@pytest.mark.parametrize(("name", "slots"), [("NAdam", {"mu_product"}), ("ASGD", {"eta", "mu"})])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_resuming_nadam_and_asgd_changes_nothing(
    name: str, slots: set[str], dtype: torch.dtype
) -> None:
    case = Case(name, (), dtype)
    problem = small_problem(dtype)
    without_a_stop = run(torch.optim, case, problem, False)
    for package in (torch.optim, generated):
        resumed = run_with_a_checkpoint((package, package), case, problem, False)
        different = {n.split(": ")[1] for n in differences(without_a_stop, resumed) if ": " in n}
        assert (slots <= different) is (package is torch.optim)
        assert bool(different) is (package is torch.optim)


def test_slots_keep_their_dtype_on_loading() -> None:
    """float32 averages of a bfloat16 parameter are what keeps it moving: torch rounds them."""
    dtypes = []
    for package in (torch.optim, generated):
        param = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
        optimizer = package.Adam([param])
        advance(optimizer, [param], [[torch.ones_like(param)]])
        saved = copy.deepcopy(optimizer.state_dict())
        saved["state"][0]["exp_avg_sq"] = torch.full((3,), 1.0 + 2**-12)
        loaded = package.Adam([param])
        loaded.load_state_dict(saved)
        dtypes.append(loaded.state[param]["exp_avg_sq"].dtype)
    assert dtypes == [torch.bfloat16, torch.float32]


def test_a_checkpoint_changes_no_execution_flag() -> None:
    taken = []
    for package in (torch.optim, generated):
        saved = package.Adam([torch.ones(2)], foreach=False).state_dict()
        loaded = package.Adam([torch.ones(2)], foreach=True)
        loaded.load_state_dict(saved)
        taken.append(loaded.param_groups[0]["foreach"])
    assert taken == [False, True]


def test_training_on_does_not_write_into_the_loaded_dict() -> None:
    kept = []
    for package in (torch.optim, generated):
        optimizer, params = trained(package, "Adam")
        saved = optimizer.state_dict()
        before = saved["state"][0]["exp_avg"].clone()
        loaded = package.Adam(params)
        loaded.load_state_dict(saved)
        advance(loaded, params, small_problem().gradients[5:7])
        kept.append(torch.equal(saved["state"][0]["exp_avg"], before))
    assert kept == [False, True]


def test_a_checkpoint_of_another_optimizer_is_refused() -> None:
    saved = trained(torch.optim, "Adagrad")[0].state_dict()
    for package in (torch.optim, generated):
        params = small_problem().start()
        optimizer = package.Adam(params)
        if package is torch.optim:
            optimizer.load_state_dict(copy.deepcopy(saved))  # and fails at the next step
            with pytest.raises(KeyError):
                advance(optimizer, params, small_problem().gradients[1:2])
        else:
            with pytest.raises(ValueError, match="lacks exp_avg, exp_avg_sq and has unknown sum"):
                optimizer.load_state_dict(copy.deepcopy(saved))


def test_a_copied_lbfgs_takes_steps() -> None:
    """torch's copy has lost the list of its parameters."""
    for package in (torch.optim, generated):
        optimizer, params = trained(package, "LBFGS")
        twin, own = copy.deepcopy((optimizer, params))
        gradients = suited(small_problem(), "LBFGS").gradients[:1]
        if package is torch.optim:
            with pytest.raises(AttributeError, match="_params"):
                advance(twin, own, gradients)
        else:
            advance(twin, own, gradients)
            advance(optimizer, params, gradients)
            assert differences(contents(optimizer), contents(twin)) == []


# Hyperparameters


def test_nan_is_refused_where_torch_takes_it() -> None:
    """torch's SGD asks `x < 0`, which NaN is not; its others ask `0 <= x`."""
    taken = []
    for name, options in NAN_OPTIONS:
        if name in IN_TORCH:
            try:
                getattr(torch.optim, name)([one(name)], **options)
            except ValueError:
                continue
            taken.append((name, *options))
    assert taken == [
        ("SGD", "lr"),
        ("SGD", "momentum"),
        ("SGD", "weight_decay"),
        ("SGD", "lr"),
    ]


def test_a_groups_own_hyperparameters_are_checked() -> None:
    """torch checks the constructor's arguments only."""
    for name in IN_TORCH:
        if name in BY_CLOSURE:
            continue
        group = {"params": [one(name)], "lr": -1.0}
        getattr(torch.optim, name)([dict(group)])
        with pytest.raises(ValueError):
            getattr(generated, name)([dict(group)])


def test_options_may_be_turned_on_later() -> None:
    """torch's slots exist if they were asked for at a parameter's first step."""
    changes: list[tuple[str, dict[str, Any]]] = [
        ("RMSprop", {"momentum": 0.9}),
        ("RMSprop", {"centered": True}),
        ("Adam", {"amsgrad": True}),
    ]
    for name, change in changes:
        for package in (torch.optim, generated):
            optimizer, params = trained(package, name)
            optimizer.param_groups[0].update(change)
            gradients = small_problem().gradients[5:6]
            if package is torch.optim:
                with pytest.raises(KeyError):
                    advance(optimizer, params, gradients)
            else:
                advance(optimizer, params, gradients)


def test_adagrads_group_begins_with_its_own_accumulator() -> None:
    """torch begins every group with the constructor's value."""
    begun = []
    for package in (torch.optim, generated):
        param = torch.ones(2, requires_grad=True)
        group = {"params": [param], "initial_accumulator_value": 0.5}
        begun.append(package.Adagrad([group]).state[param]["sum"].tolist())
    assert begun == [[0.0, 0.0], [0.5, 0.5]]


def test_lbfgs_takes_gradients_of_any_layout() -> None:
    """torch takes a view of the gradient as a vector, which a transposed one does not have."""
    for package in (torch.optim, generated):
        param = torch.ones(3, 2).t().requires_grad_()
        optimizer = package.LBFGS([param])
        if package is torch.optim:
            with pytest.raises(RuntimeError, match="view"):
                advance(optimizer, [param], [[torch.ones(3, 2).t()]])
        else:
            advance(optimizer, [param], [[torch.ones(3, 2).t()]])
            assert not torch.equal(param, torch.ones(2, 3))


def test_lbfgs_stays_where_it_is_when_a_gradient_is_nan() -> None:
    stayed = []
    for package in (torch.optim, generated):
        param = torch.ones(2, requires_grad=True)
        optimizer = package.LBFGS([param])
        advance(optimizer, [param], [[torch.tensor([1.0, torch.nan])]])
        stayed.append(torch.equal(param, torch.ones(2)))
    assert stayed == [False, True]


# What torch cannot step


def test_muon_takes_matrices_without_columns() -> None:
    for package in (torch.optim, generated):
        param = torch.ones(2, 0, requires_grad=True)
        optimizer = package.Muon([param])
        param.grad = torch.ones(2, 0)
        if package is torch.optim:
            with pytest.raises(ZeroDivisionError):
                optimizer.step()
        else:
            optimizer.step()


def rosenbrock_closure(optimizer: torch.optim.Optimizer, param: Tensor) -> Any:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (1 - param[0]) ** 2 + 100 * (param[1] - param[0] ** 2) ** 2
        loss.backward()
        return loss

    return closure


def test_lbfgs_without_a_history_is_gradient_descent() -> None:
    for package in (torch.optim, generated):
        param = torch.tensor([-1.0, 1.0], requires_grad=True)
        optimizer = package.LBFGS([param], history_size=0, lr=1e-3)
        closure = rosenbrock_closure(optimizer, param)
        if package is torch.optim:
            with pytest.raises(IndexError):
                optimizer.step(closure)
        else:
            first = optimizer.step(closure)
            assert closure() < first


CASTS_ITS_AVERAGES = ("Adam", "AdamW", "Adamax", "NAdam", "RAdam")


@pytest.mark.parametrize("name", CASTS_ITS_AVERAGES)
def test_parameters_may_change_their_dtype_between_steps(name: str) -> None:
    for package in (torch.optim, generated):
        module = torch.nn.Linear(3, 2, bias=False)
        optimizer = getattr(package, name)(module.parameters())
        for dtype in (torch.float32, torch.float64):
            module.to(dtype)
            module(torch.ones(1, 3, dtype=dtype)).sum().backward()
            if package is torch.optim and dtype is torch.float64:
                with pytest.raises(RuntimeError, match="expected dtype"):
                    optimizer.step()
            else:
                optimizer.step()
            optimizer.zero_grad()


def test_a_step_of_asgd_reads_its_rate_in_32_bits_whatever_the_default_dtype() -> None:
    found = []
    for package in (torch.optim, generated):
        param = torch.ones(3, requires_grad=True)
        torch.set_default_dtype(torch.bfloat16)
        try:
            optimizer = package.ASGD([param], lr=0.01)
            param.grad = torch.ones_like(param)
            optimizer.step()
            optimizer.step()  # by the rate that the first step made
        finally:
            torch.set_default_dtype(torch.float32)
        found.append(float(param[0].detach()))
    # A rate of 0.01 has three digits in bfloat16.
    assert abs(found[1] - 0.98) < 4e-6 < abs(found[0] - 0.98)


@pytest.mark.parametrize("name", ["Adamax", "ASGD", "NAdam", "RAdam"])
def test_a_default_device_is_not_the_parameters(name: str) -> None:
    for package in (torch.optim, generated):
        param = torch.ones(3, requires_grad=True)
        param.grad = torch.ones(3)
        optimizer = getattr(package, name)([param])
        with torch.device("meta"):
            if package is torch.optim:
                with pytest.raises(RuntimeError):
                    optimizer.step()
            else:
                optimizer.step()
        if package is generated:
            assert param.device.type == "cpu"
            assert (param < 1).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("momentum", [0, 0.9])
def test_fused_sgd_moves_parameters_of_16_bits(momentum: float, dtype: torch.dtype) -> None:
    """torch's kernel moves the last `numel % 16` elements only."""
    found = []
    for package in (torch.optim, generated):
        param = torch.ones(67, dtype=dtype)
        param.grad = torch.full_like(param, 0.5)
        package.SGD([param], lr=0.25, momentum=momentum, fused=True).step()
        found.append(param.tolist())
    assert found == [[1.0] * 64 + [0.875] * 3, [0.875] * 67]


def test_fused_adagrad_reads_its_rate_as_exactly_as_it_is_given() -> None:
    """torch's kernel rounds it to bfloat16 where parameters are. Both are held against a step in
    float32, rounded."""
    torch.manual_seed(0)
    start, grad = torch.randn(4096).bfloat16(), torch.randn(4096).bfloat16()
    exact = start.float()
    exact.grad = grad.float()
    torch.optim.Adagrad([exact], lr=0.01, fused=True).step()
    differing = []
    for package in (torch.optim, generated):
        param = start.clone()
        param.grad = grad
        package.Adagrad([param], lr=0.01, fused=True).step()
        differing.append(int((param != exact.bfloat16()).sum()))
    theirs, ours = differing
    assert theirs > 10
    assert ours == 0
