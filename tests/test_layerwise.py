"""LAMB and LARS against their papers, written out in float64, and what lengths of 0 do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import generated
from tests.reference import PATHS, STEPS, advance, full_problem, small_problem

Array = np.ndarray[Any, np.dtype[np.float64]]
EPS = np.finfo(np.float64).eps


def norm(x: Array) -> float:
    return float(np.sqrt(np.sum(x * x)))


class PublishedLAMB:
    """Algorithm 2 of You et al., 2020, with its names. Where a length is 0 the ratio is 1, as in
    the authors' code; the paper says nothing of it."""

    def __init__(
        self, param: Array, lr: float, betas: Any, eps: float, weight_decay: float, bounds: Any
    ) -> None:
        self.x = param
        self.eta, (self.beta1, self.beta2), self.eps = lr, betas, eps
        self.lambda_, (self.gamma_l, self.gamma_u) = weight_decay, bounds
        self.m, self.v, self.t = np.zeros_like(param), np.zeros_like(param), 0

    def phi(self, z: float) -> float:
        return min(max(z, self.gamma_l), self.gamma_u)

    def step(self, g: Array) -> None:
        self.t += 1
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * g * g
        m = self.m / (1 - self.beta1**self.t)
        v = self.v / (1 - self.beta2**self.t)
        r = m / (np.sqrt(v) + self.eps)
        step = r + self.lambda_ * self.x
        lengths = self.phi(norm(self.x)), norm(step)
        ratio = lengths[0] / lengths[1] if all(lengths) else 1.0
        self.x = self.x - self.eta * ratio * step

    def slots(self) -> dict[str, Array]:
        return {"exp_avg": self.m, "exp_avg_sq": self.v}


class PublishedLARS:
    """Algorithm 1 of You, Gitman and Ginsburg, 2017, with its names, at a rate gamma. Where a
    length is 0 its local rate lambda is 0, or 0 / 0; here it is 1."""

    def __init__(
        self,
        param: Array,
        lr: float,
        momentum: float,
        weight_decay: float,
        trust_coefficient: float,
    ) -> None:
        self.w = param
        self.gamma, self.m, self.beta, self.eta = lr, momentum, weight_decay, trust_coefficient
        self.v = np.zeros_like(param)

    def step(self, g: Array) -> None:
        lengths = norm(self.w), norm(g)
        lambda_ = (
            self.eta * lengths[0] / (lengths[1] + self.beta * lengths[0]) if all(lengths) else 1
        )
        self.v = self.m * self.v + self.gamma * lambda_ * (g + self.beta * self.w)
        self.w = self.w - self.v

    @property
    def x(self) -> Array:
        return self.w

    def slots(self) -> dict[str, Array]:
        return {"momentum_buffer": self.v} if self.m else {}


PAPERS: dict[str, Any] = {"LAMB": PublishedLAMB, "LARS": PublishedLARS}
LAMB = {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-6, "bounds": (0.0, torch.inf)}
LARS = {"lr": 0.5, "trust_coefficient": 0.05}
CASES = [
    *(("LAMB", LAMB | {"weight_decay": wd}) for wd in (0.0, 0.1)),
    ("LAMB", LAMB | {"weight_decay": 0.1, "bounds": (0.5, 3.0)}),
    *(
        ("LARS", LARS | {"weight_decay": wd, "momentum": momentum})
        for wd in (0.0, 0.1)
        for momentum in (0.0, 0.9)
    ),
]
# Per step, in the last place of the largest element. Measured: less than a quarter.
ULPS = 1


@pytest.fixture
def float64_by_default() -> Any:
    """Scalar slots have the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64_by_default")
@pytest.mark.parametrize(
    "flags", [*({"foreach": f} for f in PATHS.values()), {"differentiable": True}], ids=str
)
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_every_path_follows_the_paper_to_an_ulp_per_step(
    name: str, options: dict[str, Any], flags: dict[str, bool]
) -> None:
    problem = full_problem(torch.float64, large=5000)
    params = [p.clone() for p in problem.parameters]
    optimizer = getattr(generated, name)(params, **options, **flags)
    advance(optimizer, params, problem.gradients)
    for index, (start, param) in enumerate(zip(problem.parameters, params, strict=True)):
        paper = PAPERS[name](start.numpy(), **options)
        for row in problem.gradients:
            grad = row[index]
            if grad is not None:
                paper.step(grad.numpy())
        state = optimizer.state[param]
        assert {key for key in state if key != "step"} == set(paper.slots())
        for key, expected in {"param": paper.x, **paper.slots()}.items():
            actual = (param if key == "param" else state[key]).detach().numpy()
            bound = ULPS * STEPS * EPS * np.max(np.abs(expected), initial=1.0)
            np.testing.assert_allclose(
                actual, expected, rtol=0, atol=bound, err_msg=f"{index} {key}"
            )


def start_and_gradients() -> tuple[list[Tensor], Any]:
    problem = small_problem(torch.float64)
    return [p.clone() for p in problem.parameters], problem.gradients


@pytest.mark.usefixtures("float64_by_default")
@pytest.mark.parametrize(
    ("name", "options", "theirs"),
    [
        ("LAMB", {"weight_decay": 0, "eps": 1e-6}, ("Adam", {"eps": 1e-6})),
        # It keeps rate times gradient, SGD the gradient: at a constant rate that is the same.
        ("LARS", {"weight_decay": 0.1}, ("SGD", {"momentum": 0.9, "weight_decay": 0.1})),
    ],
)
def test_a_group_that_is_not_adaptive_makes_the_steps_of_what_it_extends(
    name: str, options: dict[str, Any], theirs: tuple[str, dict[str, Any]]
) -> None:
    found = []
    for kind, given in (
        (getattr(generated, name), {**options, "adaptive": False}),
        (getattr(torch.optim, theirs[0]), theirs[1]),
    ):
        params, gradients = start_and_gradients()
        optimizer = kind(params, lr=0.02, **given)
        advance(optimizer, params, gradients)
        found.append(params)
    for ours, other in zip(*found, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("foreach", PATHS.values(), ids=PATHS)
def test_groups_differ_in_whether_they_are_adaptive(foreach: bool) -> None:
    for name in PAPERS:
        kind = getattr(generated, name)
        found = []
        for groups in ((True, False), (True,), (False,)):
            params, gradients = start_and_gradients()
            parts = (params,) if len(groups) == 1 else (params[::2], params[1::2])
            optimizer = kind(
                [{"params": p, "adaptive": a} for p, a in zip(parts, groups, strict=True)],
                foreach=foreach,
            )
            advance(optimizer, params, gradients)
            found.append(params)
        for index, (mixed, on, off) in enumerate(zip(*found, strict=True)):
            assert torch.equal(mixed, off if index % 2 else on)
            assert not torch.equal(on, off)


@pytest.mark.parametrize("foreach", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("shape", [(), (7,), (3, 5)])
def test_a_step_of_lamb_is_as_long_as_the_rate_says_of_the_parameter(
    shape: tuple[int, ...], foreach: bool
) -> None:
    param = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    optimizer = generated.LAMB([param], lr=0.01, foreach=foreach)
    for scale in (1e-6, 1.0, 1e6):
        before = param.clone()
        param.grad = scale * torch.ones(shape, dtype=torch.float64)
        optimizer.step()
        length = (param - before).norm() / before.norm()
        assert abs(length.item() - 0.01) <= 1e-14


@pytest.mark.parametrize("foreach", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("name", PAPERS)
def test_a_parameter_of_zeros_moves_and_a_gradient_of_zeros_makes_no_nan(
    name: str, foreach: bool
) -> None:
    kind = getattr(generated, name)
    zero, one = torch.zeros(3), torch.ones(3)
    optimizer = kind([zero, one], lr=0.1, weight_decay=0, foreach=foreach)
    zero.grad, one.grad = torch.tensor([1.0, 2.0, 0.0]), torch.zeros(3)
    optimizer.step()
    # As without ratio.
    expected = [-0.1, -0.1, 0.0] if name == "LAMB" else [-0.1, -0.2, 0.0]
    torch.testing.assert_close(zero, torch.tensor(expected), rtol=1e-4, atol=0)
    assert torch.equal(one, torch.ones(3))


@pytest.mark.parametrize("name", PAPERS)
def test_sparse_gradients_are_refused(name: str) -> None:
    param = torch.randn(4)
    param.grad = torch.eye(4)[0].to_sparse()
    with pytest.raises(RuntimeError, match=f"{name} does not support sparse gradients"):
        getattr(generated, name)([param]).step()


def test_lars_without_momentum_keeps_nothing() -> None:
    params, gradients = start_and_gradients()
    optimizer = generated.LARS(params, momentum=0)
    advance(optimizer, params, gradients)
    assert not any(optimizer.state.values())
