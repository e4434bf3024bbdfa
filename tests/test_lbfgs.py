"""L-BFGS: torch's bits, evaluations, state and errors on ordinary losses; survival of others."""

from __future__ import annotations

import copy
import inspect
import io
import itertools
import math
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy

import generated
from generated._lbfgs import Point, _minimiser
from tests.reference import bits

Loss = Callable[[list[Tensor]], Tensor]
Options = dict[str, Any]

SEARCHES = {"no search": None, "strong Wolfe": "strong_wolfe"}
searches = pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
KEYS_AT_FIRST = {"func_evals", "n_iter"}
KEYS_AFTER_ONE = KEYS_AT_FIRST | {
    "d", "t", "old_dirs", "old_stps", "ro", "H_diag", "prev_flat_grad", "prev_loss",
}  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """A loss, the parameters to start from, and a rate at which steps without a search converge."""

    loss: Loss
    parameters: tuple[Tensor, ...]
    rate: float

    def start(self) -> list[Tensor]:
        return [p.clone().requires_grad_() for p in self.parameters]


def vector(params: list[Tensor]) -> Tensor:
    return torch.cat([torch.view_as_real(p).reshape(-1) if p.is_complex() else p.reshape(-1)
                      for p in params])  # fmt: skip


def rosenbrock(params: list[Tensor]) -> Tensor:
    x = vector(params)
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def random(seed: int, dtype: torch.dtype, *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return tuple(torch.randn(s, dtype=wide, generator=generator).to(dtype) for s in shapes)


def valley(dtype: torch.dtype) -> Problem:
    """Rosenbrock's function of several parameters, one without elements."""
    return Problem(rosenbrock, random(0, dtype, (3,), (0,), (2, 2), ()), 1e-2)


@cache
def network(dtype: torch.dtype) -> Problem:
    """A network of two layers on handwritten digits."""
    images, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(images[:100] / 16, dtype=dtype), torch.tensor(labels[:100])

    def loss(params: list[Tensor]) -> Tensor:
        first, first_bias, second, second_bias = params
        hidden = torch.tanh(inputs @ first + first_bias)
        return cross_entropy(hidden @ second + second_bias, targets)

    start = random(1, dtype, (64, 12), (12,), (12, 10), (10,))
    return Problem(loss, tuple(0.2 * p for p in start), 0.5)


def phase(dtype: torch.dtype) -> Problem:
    """Complex numbers whose moduli in a linear map are known."""
    matrix, solution = random(2, dtype, (12, 5), (5,))
    moduli = (matrix @ solution).abs() ** 2

    def loss(params: list[Tensor]) -> Tensor:
        found = matrix @ torch.cat([p.reshape(-1) for p in params])
        return ((found.abs() ** 2 - moduli) ** 2).mean()

    return Problem(loss, random(3, dtype, (2, 2), (1,)), 1e-2)


PROBLEMS = {
    "Rosenbrock float32": valley(torch.float32),
    "Rosenbrock float64": valley(torch.float64),
    "network float32": network(torch.float32),
    "network float64": network(torch.float64),
    "complex64": phase(torch.complex64),
}
problems = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


@dataclass
class Run:
    """An optimizer at work: the loss at every evaluation, and where each step has led."""

    optimizer: torch.optim.Optimizer
    params: list[Tensor]
    loss: Loss
    losses: list[float] = field(default_factory=list)
    snapshots: list[Any] = field(default_factory=list)

    def closure(self) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.loss(self.params)
        loss.backward()
        self.losses.append(loss.item())
        return loss

    def step(self, times: int = 1) -> Run:
        for _ in range(times):
            returned = self.optimizer.step(self.closure)
            at = (returned.item(), len(self.losses), self.params, self.state)
            self.snapshots.append(plain(at))
        return self

    @property
    def state(self) -> dict[str, Any]:
        return self.optimizer.state[self.params[0]]


def begin(package: Any, problem: Problem, **options: Any) -> Run:
    params = problem.start()
    return Run(package.LBFGS(params, **{"lr": problem.rate, **options}), params, problem.loss)


def plain(value: Any) -> Any:
    """A value as numbers, names and containers: equal if types, dtypes, shapes and bits are."""
    match value:
        case Tensor():
            kind = (str(value.dtype), tuple(value.shape))
            return (*kind, bits(value.detach().reshape(-1)).tolist())
        case dict():
            return {key: plain(value[key]) for key in sorted(value)}
        case list() | tuple():
            return [plain(each) for each in value]
    return type(value).__name__, repr(value)


def assert_same(theirs: Run, ours: Run) -> None:
    assert len(theirs.snapshots) == len(ours.snapshots) > 0
    for expected, actual in zip(theirs.snapshots, ours.snapshots, strict=True):
        assert actual[1] == expected[1], "number of evaluations"
        assert actual == expected
    assert plain(ours.losses) == plain(theirs.losses)


def compared(problem: Problem, steps: int, **options: Any) -> Run:
    """Our run, after a comparison with torch's."""
    theirs, ours = (begin(p, problem, **options).step(steps) for p in (torch.optim, generated))
    assert all(map(math.isfinite, theirs.losses))
    assert_same(theirs, ours)
    return ours


def copies(params: list[Tensor]) -> list[Tensor]:
    return [p.detach().clone().requires_grad_() for p in params]


# Against torch


@searches
@problems
def test_parameters_state_and_every_evaluation_equal_torchs(
    problem: Problem, search: str | None
) -> None:
    ours = compared(problem, 5, line_search_fn=search, max_iter=8)
    assert ours.losses[-1] < 0.9 * ours.losses[0]
    assert set(ours.state) == KEYS_AFTER_ONE | {"al"}


@problems
def test_the_default_rate_serves_a_search(problem: Problem) -> None:
    compared(problem, 4, lr=1, line_search_fn="strong_wolfe")


@searches
def test_a_minimum_is_reached_and_left_alone(search: str | None) -> None:
    problem = PROBLEMS["network float64"]
    options = {"line_search_fn": search, "max_iter": 200, "tolerance_grad": 1e-3, "history_size": 9}
    ours = compared(problem, 6, **options)
    evaluations = [int(snapshot[1][1]) for snapshot in ours.snapshots]
    assert evaluations[-1] == evaluations[-2] + 1  # which finds no gradient to follow
    assert ours.snapshots[-1][2] == ours.snapshots[-2][2]


settings_of_lbfgs = st.fixed_dictionaries(
    {
        "lr": st.sampled_from((1e-3, 1e-2, torch.tensor(1e-2), torch.tensor([0.005]).double())),
        "max_iter": st.integers(1, 15),
        "max_eval": st.none() | st.integers(1, 30),
        "tolerance_grad": st.sampled_from((0, 1e-7, 1e-2, 0.5)),
        "tolerance_change": st.sampled_from((1e-20, 1e-9, 1e-4, 0.1)),
        "history_size": st.sampled_from((1, 2, 3, 100)),
        "line_search_fn": st.sampled_from((None, "strong_wolfe")),
    }
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(PROBLEMS)), settings_of_lbfgs)
def test_any_settings_give_torchs_bits(name: str, options: Options) -> None:
    compared(PROBLEMS[name], 3, **options)


def kinks(params: list[Tensor]) -> Tensor:
    x = vector(params)
    return (torch.arange(1, len(x) + 1) * x**2).sum() + (x - 0.3).abs().sum()


def waves(params: list[Tensor]) -> Tensor:
    x = vector(params)
    return (torch.sin(3 * x) + 0.1 * x**2).sum()


@pytest.mark.parametrize("lr", [0.1, 1, 3, 30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize("loss", [kinks, waves])
def test_a_search_that_has_to_narrow_down_tries_torchs_points(
    loss: Loss, dtype: torch.dtype, lr: float
) -> None:
    """Kinks leave brackets that shrink to nothing, waves have many minima, and float32 has ties."""
    options = {"line_search_fn": "strong_wolfe", "max_eval": 60, "tolerance_change": 1e-20}
    for seed in range(12):
        problem = Problem(loss, random(seed, dtype, (3,), (2,)), lr)
        compared(problem, 4, **options)


def test_one_iteration_without_a_search_evaluates_once_and_keeps_a_tensor_for_its_length() -> None:
    ours = compared(PROBLEMS["Rosenbrock float32"], 1, max_iter=1)
    assert len(ours.losses) == 1
    assert set(ours.state) == KEYS_AFTER_ONE
    assert isinstance(ours.state["t"], Tensor)
    assert ours.step().state["t"] == PROBLEMS["Rosenbrock float32"].rate


def test_the_constructor_has_torchs_arguments_and_defaults() -> None:
    def arguments(package: Any) -> dict[str, tuple[Any, Any]]:
        found = inspect.signature(package.LBFGS).parameters
        return {name: (p.default, p.kind) for name, p in found.items()}

    theirs, ours = arguments(torch.optim), arguments(generated)
    assert {name: ours[name] for name in theirs} == theirs
    assert list(ours)[: len(theirs)] == list(theirs)
    assert all(ours[name][1] is inspect.Parameter.KEYWORD_ONLY for name in ours.keys() - theirs)


@pytest.mark.parametrize(
    "options",
    [{}, {"max_iter": 7}, {"max_iter": 7, "max_eval": 3}, {"lr": torch.tensor([0.5])}],
    ids=str,
)
def test_the_group_has_torchs_keys_and_values(options: Options) -> None:
    theirs, ours = (
        package.LBFGS([torch.zeros(2, requires_grad=True)], **options).param_groups[0]
        for package in (torch.optim, generated)
    )
    assert plain({name: ours[name] for name in theirs}) == plain(dict(theirs))


# Each limit


LIMITS: list[tuple[str, Any]] = [
    ("max_iter", 3),
    ("max_eval", 4),
    ("tolerance_grad", 0.05),
    ("tolerance_change", 0.01),
]


@searches
@pytest.mark.parametrize(("name", "value"), LIMITS, ids=[name for name, _ in LIMITS])
def test_a_limit_ends_a_step_earlier_and_where_torchs_ends(
    name: str, value: Any, search: str | None
) -> None:
    problem = PROBLEMS["network float64"]
    options = {"max_iter": 30, "max_eval": 100, "line_search_fn": search}
    free = compared(problem, 1, **options)
    limited = compared(problem, 1, **{**options, name: value})
    assert len(limited.losses) < len(free.losses)
    assert limited.losses == free.losses[: len(limited.losses)]


@searches
def test_the_history_has_at_most_its_size_and_what_is_forgotten_matters(search: str | None) -> None:
    problem = PROBLEMS["network float64"]
    long, short = (
        compared(problem, 3, line_search_fn=search, max_iter=6, history_size=size)
        for size in (100, 4)
    )
    for name in ("old_dirs", "old_stps", "ro"):
        assert len(short.state[name]) == 4 < len(long.state[name])
    assert (len(short.state["al"]), len(long.state["al"])) == (4, 100)
    assert long.snapshots[-1][2] != short.snapshots[-1][2]


@pytest.mark.parametrize("max_eval", [0, 1])
def test_a_search_without_evaluations_left_tries_once(max_eval: int) -> None:
    run = begin(generated, PROBLEMS["network float64"], lr=1, line_search_fn="strong_wolfe",
                max_eval=max_eval).step()  # fmt: skip
    assert len(run.losses) == 2
    if max_eval:  # torch has no answer to 0
        compared(PROBLEMS["network float64"], 2, lr=1, line_search_fn="strong_wolfe",
                 max_eval=max_eval)  # fmt: skip


@searches
def test_the_history_may_be_empty(search: str | None) -> None:
    run = begin(generated, PROBLEMS["network float64"], history_size=0, line_search_fn=search)
    run.step(3)
    assert run.losses[-1] < 0.9 * run.losses[0]
    assert (run.state["old_dirs"], run.state["al"]) == ([], [])
    assert isinstance(run.state["H_diag"], Tensor)


@searches
@pytest.mark.parametrize("size", [2, 50])
def test_the_history_may_change_its_size(size: int, search: str | None) -> None:
    run = begin(generated, PROBLEMS["network float64"], history_size=6, line_search_fn=search)
    run.step(2).optimizer.param_groups[0]["history_size"] = size
    run.step(3)
    lengths = {len(run.state[name]) for name in ("old_dirs", "old_stps", "ro")}
    assert lengths == {2} if size == 2 else max(lengths) > 6
    assert len(run.state["al"]) == size
    assert run.losses[-1] < 0.5 * run.losses[0]


@searches
def test_steps_need_not_be_alike(search: str | None) -> None:
    runs = []
    for package in (torch.optim, generated):
        run = begin(package, PROBLEMS["network float32"], line_search_fn=search).step(2)
        run.optimizer.param_groups[0].update(lr=0.1, max_iter=3, tolerance_change=0.0)
        runs.append(run.step(2))
    assert_same(*runs)


# The closure


@searches
def test_the_first_loss_is_returned_as_the_closure_gave_it(search: str | None) -> None:
    run = begin(generated, PROBLEMS["network float32"], line_search_fn=search)
    given_back: list[Tensor] = []

    def closure() -> Tensor:
        given_back.append(run.closure())
        return given_back[-1]

    assert run.optimizer.step(closure) is given_back[0]
    assert len(given_back) > 2


@searches
def test_the_closure_may_return_a_number(search: str | None) -> None:
    runs = [
        begin(p, PROBLEMS["network float32"], line_search_fn=search)
        for p in (torch.optim, generated)
    ]
    for run in runs:
        run.optimizer.step(lambda run=run: run.closure().item())
    assert plain(runs[0].losses) == plain(runs[1].losses)
    assert plain(runs[0].state) == plain(runs[1].state)


@searches
def test_gradients_are_enabled_for_the_closure_whatever_surrounds_the_step(
    search: str | None,
) -> None:
    run = begin(generated, PROBLEMS["network float32"], line_search_fn=search)
    with torch.no_grad():
        run.step()
    assert len(run.losses) > 2
    assert all(p.is_leaf and p.requires_grad for p in run.params)
    assert not any(v.requires_grad for v in run.state.values() if isinstance(v, Tensor))


def test_a_step_needs_a_closure() -> None:
    with pytest.raises(TypeError):
        begin(generated, PROBLEMS["complex64"]).optimizer.step()  # type: ignore[call-arg]


@searches
def test_a_closure_that_raises_costs_nothing_but_its_evaluation(search: str | None) -> None:
    """The calls that an error has ended continue: points are tried as if there had been none."""
    problem = PROBLEMS["Rosenbrock float64"]
    calm, troubled = (
        begin(generated, problem, line_search_fn=search, max_iter=1, max_eval=20) for _ in range(2)
    )
    calm.step(12)
    troubled.optimizer.param_groups[0]["max_iter"] = 30
    fails = itertools.cycle([False] * 6 + [True])

    def closure() -> Tensor:
        if next(fails):
            raise ArithmeticError
        return troubled.closure()

    for _ in range(8):
        with pytest.raises(ArithmeticError):
            troubled.optimizer.step(closure)
    # A step begins with the point that is known if the one before it ended in an error.
    assert list(distinct(troubled.losses))[:8] == list(distinct(calm.losses))[:8]


def distinct(values: list[float]) -> Iterator[float]:
    return iter(dict.fromkeys(values))


def test_a_search_that_an_error_ends_leaves_the_parameters_where_they_were() -> None:
    run = begin(generated, PROBLEMS["network float64"], line_search_fn="strong_wolfe").step()
    before = plain((run.params, {**run.state, "func_evals": 0, "al": None}))
    calls = itertools.count()

    def closure() -> Tensor:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return run.closure()

    with pytest.raises(KeyboardInterrupt):
        run.optimizer.step(closure)
    assert plain((run.params, {**run.state, "func_evals": 0, "al": None})) == before


# Gradients


@searches
def test_a_missing_gradient_is_zero(search: str | None) -> None:
    runs = []
    for package in (torch.optim, generated):
        idle = torch.ones(3, requires_grad=True)
        run = begin(package, Problem(rosenbrock, random(4, torch.float32, (4,)), 1e-2))
        params = [idle, *run.params]
        run.optimizer = package.LBFGS(params, lr=1e-2, line_search_fn=search)
        run.loss = lambda params: rosenbrock(params[1:])
        run.params = params
        runs.append(run.step(3))
        assert idle.grad is None
        assert idle.tolist() == [1, 1, 1]
        assert run.state["d"].shape == (7,)
    assert_same(*runs)


@searches
def test_sparse_gradients_are_made_dense(search: str | None) -> None:
    runs = []
    for package in (torch.optim, generated):
        table = random(5, torch.float32, (6, 3))[0].requires_grad_()

        def loss(params: list[Tensor]) -> Tensor:
            rows = torch.nn.functional.embedding(torch.tensor([1, 4, 1]), params[0], sparse=True)
            return ((rows - 1) ** 2).sum() + (params[1] ** 2).sum()

        params = [table, torch.ones(2, requires_grad=True)]
        run = Run(package.LBFGS(params, lr=0.1, line_search_fn=search), params, loss)
        runs.append(run.step(3))
        assert table.grad is not None
        assert table.grad.is_sparse
    assert_same(*runs)


@searches
def test_gradients_of_any_strides_are_read_in_the_parameters_order(search: str | None) -> None:
    runs = []
    for transposed in (False, True):
        param = random(6, torch.float64, (3, 2))[0].requires_grad_()
        run = Run(generated.LBFGS([param], lr=1e-2, line_search_fn=search), [param], rosenbrock)

        def closure(run: Run = run, param: Tensor = param, transposed: bool = transposed) -> Tensor:
            loss = run.closure()
            assert param.grad is not None
            if transposed:
                param.grad = param.grad.t().contiguous().t()
                assert not param.grad.is_contiguous()
            return loss

        for _ in range(3):
            run.optimizer.step(closure)
        runs.append(run)
    assert plain(runs[0].params) == plain(runs[1].params)
    assert runs[0].losses == runs[1].losses


@pytest.mark.parametrize("shapes", [((2,), ()), ((0,), (3, 0))], ids=["no gradient", "no element"])
def test_without_anything_to_follow_a_step_evaluates_once(shapes: tuple[Any, ...]) -> None:
    params = [torch.ones(shape, requires_grad=True) for shape in shapes]
    optimizer = generated.LBFGS(params)
    assert optimizer.step(lambda: 3.5) == 3.5
    assert optimizer.state[params[0]] == {"func_evals": 1, "n_iter": 0}
    assert all(bool((p == 1).all()) for p in params)


@searches
@pytest.mark.parametrize("name", ["Rosenbrock float32", "network float64", "complex64"])
def test_maximising_is_minimising_the_negative(name: str, search: str | None) -> None:
    problem = PROBLEMS[name]
    options = {"line_search_fn": search, "max_iter": 7}
    theirs = begin(torch.optim, problem, **options).step(3)
    negative = Problem(lambda params: -problem.loss(params), problem.parameters, problem.rate)
    ours = begin(generated, negative, maximize=True, **options).step(3)
    assert plain(ours.params) == plain(theirs.params)
    assert ours.losses == [-loss for loss in theirs.losses]
    assert [s[0] for s in ours.snapshots] == [plain(-float(s[0][1])) for s in theirs.snapshots]


# Refusals


@pytest.mark.parametrize("package", [torch.optim, generated], ids=["torch", "ours"])
def test_there_is_one_group(package: Any) -> None:
    first, second = (torch.zeros(1, requires_grad=True) for _ in range(2))
    with pytest.raises(ValueError) as error:
        package.LBFGS([{"params": [first]}, {"params": [second], "lr": 0.1}])
    expected = "LBFGS doesn't support per-parameter options (parameter groups)"
    assert str(error.value) == expected


def test_a_group_cannot_be_added() -> None:
    first, second = (torch.zeros(1, requires_grad=True) for _ in range(2))
    optimizer = generated.LBFGS([first])
    with pytest.raises(ValueError, match="parameter groups"):
        optimizer.add_param_group({"params": [second]})
    assert [group["params"] for group in optimizer.param_groups] == [[first]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": -1}, "Invalid learning rate: -1"),
        ({"lr": float("nan")}, "Invalid learning rate: nan"),
        ({"lr": torch.ones(2)}, "Tensor lr must be 1-element"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
@pytest.mark.parametrize("package", [torch.optim, generated], ids=["torch", "ours"])
def test_the_rate_is_checked_in_torchs_words(package: Any, options: Options, words: str) -> None:
    with pytest.raises(ValueError) as error:
        package.LBFGS([torch.zeros(1, requires_grad=True)], **options)
    assert str(error.value) == words


@pytest.mark.parametrize("package", [torch.optim, generated], ids=["torch", "ours"])
def test_an_unknown_search_is_refused_at_the_step(package: Any) -> None:
    run = begin(package, PROBLEMS["network float32"], line_search_fn="armijo")
    before = plain(run.params)
    with pytest.raises(RuntimeError) as error:
        run.step()
    assert str(error.value) == "only 'strong_wolfe' is supported"
    assert plain(run.params) == before


# Checkpoints and copies


def through_a_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@searches
@problems
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("max_iter", [1, 4])
@pytest.mark.parametrize(
    ("source", "target"), [(torch.optim, generated), (generated, torch.optim)],
    ids=["torch's to ours", "ours to torch's"],
)  # fmt: skip
def test_a_run_continues_in_the_other_package_bit_for_bit(
    source: Any, target: Any, max_iter: int, steps: int, problem: Problem, search: str | None
) -> None:
    options = {"line_search_fn": search, "max_iter": max_iter, "history_size": 3}
    expected = begin(torch.optim, problem, **options).step(6)
    first = begin(source, problem, **options).step(steps)
    params = copies(first.params)
    second = Run(target.LBFGS(params), params, problem.loss)
    second.optimizer.load_state_dict(through_a_file(first.optimizer.state_dict()))
    second.step(6 - steps)
    assert plain(first.losses + second.losses) == plain(expected.losses)
    assert plain(second.params) == plain(expected.params)
    assert plain(second.state) == plain(expected.state)


@searches
def test_a_checkpoint_of_a_finished_first_step_loads(search: str | None) -> None:
    """With nothing to follow there are two counters and no memory."""
    problem = PROBLEMS["network float64"]
    first = begin(torch.optim, problem, tolerance_grad=1e3).step()
    assert set(first.state) == KEYS_AT_FIRST
    params = copies(first.params)
    second = Run(generated.LBFGS(params), params, problem.loss)
    second.optimizer.load_state_dict(through_a_file(first.optimizer.state_dict()))
    first.optimizer.param_groups[0].update(tolerance_grad=0.0, line_search_fn=search)
    second.optimizer.param_groups[0].update(tolerance_grad=0.0, line_search_fn=search)
    first.snapshots.clear()
    first.losses.clear()
    assert_same_but_counts(first.step(2), second.step(2))


def assert_same_but_counts(theirs: Run, ours: Run) -> None:
    assert plain(ours.losses) == plain(theirs.losses)
    assert [s[2:] for s in ours.snapshots] == [s[2:] for s in theirs.snapshots]


@searches
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))],
                         ids=["deepcopy", "pickle"])  # fmt: skip
@pytest.mark.parametrize("steps", [0, 2])
def test_a_copy_steps_as_the_original(
    duplicate: Callable[[Any], Any], steps: int, search: str | None
) -> None:
    problem = PROBLEMS["network float32"]
    run = begin(generated, problem, line_search_fn=search).step(steps)
    optimizer = duplicate(run.optimizer)
    twin = Run(optimizer, optimizer.param_groups[0]["params"], problem.loss)
    assert not {p.data_ptr() for p in run.params} & {p.data_ptr() for p in twin.params}
    run.losses.clear()
    run.step(2)
    twin.step(2)
    assert run.losses == twin.losses
    assert plain((run.params, run.state)) == plain((twin.params, twin.state))


@searches
def test_what_state_dict_returned_does_not_change_with_further_steps(search: str | None) -> None:
    run = begin(generated, PROBLEMS["network float32"], history_size=3, line_search_fn=search)
    slots = dict(run.step(2).optimizer.state_dict()["state"][0])
    before = plain(slots)
    run.step(2)
    assert plain(slots) == before
    assert plain(run.state) != before


@searches
def test_a_scheduler_that_fills_a_tensor_rate_does_not_change_the_last_step(
    search: str | None,
) -> None:
    found = []
    for rate in (0.5, torch.tensor(0.5, dtype=torch.float64)):
        run = begin(generated, PROBLEMS["network float64"], lr=rate, line_search_fn=search)
        schedule = torch.optim.lr_scheduler.ExponentialLR(run.optimizer, 0.5)
        for _ in range(4):
            run.step()
            schedule.step()
        found.append(plain((run.params, run.losses)))
    assert found[0] == found[1]


# Losses and gradients that are not finite


def finite(values: Any) -> bool:
    if isinstance(values, Tensor):
        return bool(values.isfinite().all())
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list | tuple):
        return all(map(finite, values))
    return values is None or math.isfinite(values)


@searches
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_step_whose_first_gradient_is_not_finite_changes_nothing(
    value: float, search: str | None
) -> None:
    run = begin(generated, PROBLEMS["network float32"], line_search_fn=search).step(2)
    twin = copy.deepcopy(run)
    evaluations = len(run.losses)

    def closure() -> Tensor:
        loss = run.closure()
        run.params[1].grad[3] = value  # type: ignore[index]
        return loss * value

    assert not math.isfinite(run.optimizer.step(closure).item())
    assert len(run.losses) == evaluations + 1
    assert plain(run.params) == plain(twin.params)
    assert run.state["func_evals"] == twin.state["func_evals"] + 1
    run.state["func_evals"] -= 1
    assert plain(run.state) == plain(twin.state)
    run.losses.pop()
    assert_same(twin.step(2), run.step(2))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_without_a_search_a_later_gradient_that_is_not_finite_ends_the_step(value: float) -> None:
    problem = PROBLEMS["network float32"]
    whole = begin(generated, problem, max_iter=3, max_eval=9).step()
    run = begin(generated, problem)

    def closure() -> Tensor:
        loss = run.closure()
        if len(run.losses) == 4:
            run.params[0].grad[0, 0] = value  # type: ignore[index]
        return loss

    run.optimizer.step(closure)
    assert len(run.losses) == 4
    whole.state["func_evals"] += 1  # the one that failed
    assert plain((run.params, run.state)) == plain((whole.params, whole.state))
    run.step(2)
    assert finite((run.params, run.state))
    assert run.losses[-1] < run.losses[3]


def test_without_a_search_a_loss_that_is_not_finite_does_not_matter() -> None:
    """Only its gradient does, as in torch."""
    problem = PROBLEMS["network float32"]
    runs = [begin(package, problem) for package in (torch.optim, generated)]
    for run in runs:
        run.optimizer.step(lambda run=run: run.closure() * math.nan)
    assert plain(runs[0].losses) == plain(runs[1].losses)
    assert plain((runs[0].params, runs[0].state)) == plain((runs[1].params, runs[1].state))


def test_a_search_from_a_loss_that_is_not_finite_does_not_move() -> None:
    run = begin(generated, PROBLEMS["network float32"], line_search_fn="strong_wolfe")
    before = plain(run.params)
    run.optimizer.step(lambda: run.closure() * math.nan)
    assert len(run.losses) == 1
    assert plain(run.params) == before
    assert run.state["t"] == 0
    run.step(2)
    assert run.losses[-1] < 0.5 * run.losses[0]


@pytest.mark.parametrize("outside", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("lr", [1, 10, 1e4])
def test_a_search_turns_back_where_the_loss_is_not_finite(lr: float, outside: float) -> None:
    def loss(params: list[Tensor]) -> Tensor:
        # The minimum is at x = 0.5, and far steps towards it leave the domain x < 1.
        (x,) = params
        return (-torch.log(1 - x) - 2 * x).sum() if bool((x < 1).all()) else x.sum() * outside

    param = torch.tensor([-3.0, 0.2, -8.0], dtype=torch.float64, requires_grad=True)
    options = {"lr": lr, "line_search_fn": "strong_wolfe", "max_iter": 50, "max_eval": 200}
    run = Run(generated.LBFGS([param], **options), [param], loss)
    run.step(3)
    assert not all(map(math.isfinite, run.losses))
    assert finite((run.params, run.state))
    torch.testing.assert_close(param.detach(), torch.full_like(param, 0.5), rtol=0, atol=1e-4)


@searches
@pytest.mark.parametrize("scale", [1e15, 1e19, 1e25, 1e37])
def test_products_that_overflow_stay_out_of_the_memory(scale: float, search: str | None) -> None:
    def loss(params: list[Tensor]) -> Tensor:
        return (scale * (params[0] - torch.tensor([0.5, -1.0])).abs() ** 1.5).sum()

    param = torch.tensor([3.0, 2.0], requires_grad=True)
    run = Run(generated.LBFGS([param], lr=0.5, line_search_fn=search), [param], loss).step(4)
    assert finite([run.params, *(run.state[n] for n in ("old_dirs", "old_stps", "ro", "H_diag"))])
    assert 0 < run.state["H_diag"] < math.inf
    if search:
        assert loss(run.params) <= run.losses[0]


@searches
@pytest.mark.parametrize("size", [0, 100])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_direction_that_is_not_finite_is_not_taken(
    value: float, size: int, search: str | None
) -> None:
    options = {"line_search_fn": search, "history_size": size, "max_iter": 4}
    run = begin(generated, PROBLEMS["Rosenbrock float32"], **options).step(2)
    # With a direction and length of zero the next step learns nothing and uses what it finds.
    run.state.update(H_diag=torch.tensor(value), t=0)
    before, evaluations = plain(run.params), len(run.losses)
    run.step()
    assert not finite(run.state["d"])
    assert plain(run.params) == before
    assert len(run.losses) == evaluations + 1


def test_of_two_points_without_a_cubic_minimum_between_them_the_middle_is_next() -> None:
    def point(length: float, loss: float, slope: float) -> Point:
        return Point(length, loss, torch.empty(0), torch.tensor(slope, dtype=torch.float64))

    level = point(0, 1.0, 0.0)
    assert _minimiser(level, point(2, 1.0, 0.0), 0, 2) == 1  # 0 / 0
    assert _minimiser(point(0, 1.0, -1.0), point(2, math.inf, 1.0), 0, 2) == 1
    assert _minimiser(point(0, 1.0, -1.0), point(2, math.inf, math.nan), 0, 2) == 1
    assert _minimiser(point(0, 1.0, 1.0), point(2, 3.0, 1.0), 0, 2) == 0  # a line: its lower end
    assert _minimiser(point(0, 1.0, 1.0), point(2, 2.0, 1.0), 0, 2) == 1  # it only rises
    assert _minimiser(point(0, 1.0, -2.0), point(2, 1.0, 2.0), 0, 2) == 1  # (x - 1) ** 2


@searches
def test_a_loss_without_a_lower_bound_takes_as_many_evaluations_as_it_may(
    search: str | None,
) -> None:
    param = torch.ones(2, requires_grad=True)
    options = {"max_iter": 10_000, "max_eval": 60, "line_search_fn": search}
    run = Run(generated.LBFGS([param], **options), [param], lambda params: -params[0].sum()).step()
    assert len(run.losses) <= 61
    assert finite(run.params)


@searches
def test_a_rate_of_zero_moves_nothing(search: str | None) -> None:
    run = begin(generated, PROBLEMS["network float32"], line_search_fn=search).step(2)
    before, evaluations = plain(run.params), len(run.losses)
    run.optimizer.param_groups[0]["lr"] = 0
    run.step()
    assert plain(run.params) == before
    assert len(run.losses) <= evaluations + 2
    run.optimizer.param_groups[0]["lr"] = 0.5
    assert run.step(2).losses[-1] < run.losses[evaluations]


# The Wolfe conditions


def landscape(seed: int, dimension: int) -> Loss:
    """A random smooth function with a lower bound: a quadratic one with waves on it."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    root, centre, waves, phases = (
        normal(dimension, dimension), normal(dimension), normal(4, dimension), normal(4),
    )  # fmt: skip

    def loss(params: list[Tensor]) -> Tensor:
        x = params[0] - centre
        return ((root @ x) ** 2).sum() + (x**2).sum() + 3 * torch.sin(waves @ x + phases).sum()

    return loss


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 6),
    st.sampled_from((1e-3, 0.1, 1, 10, 300.0)),
    st.integers(1, 8),
)
def test_accepted_points_satisfy_the_strong_wolfe_conditions(
    seed: int, dimension: int, lr: float, steps: int
) -> None:
    loss = landscape(seed, dimension)
    param = random(seed + 1, torch.float64, (dimension,))[0].requires_grad_()
    options = {"lr": lr, "max_iter": 1, "max_eval": 100, "line_search_fn": "strong_wolfe"}
    run = Run(generated.LBFGS([param], **options), [param], loss)
    for _ in range(steps):
        origin, iterations = param.detach().clone(), run.state.get("n_iter")
        run.step()
        state = run.state
        slope = float(state["prev_flat_grad"].dot(state["d"]))
        if iterations == state["n_iter"] or slope > -1e-6:
            break  # at a minimum, or near it, where the loss's rounding decides
        torch.testing.assert_close(param.detach(), origin + state["t"] * state["d"])
        reached = run.closure()
        assert param.grad is not None
        assert state["t"] > 0
        assert reached.item() <= state["prev_loss"] + 1e-4 * float(state["t"]) * slope
        assert abs(float(param.grad.dot(state["d"]))) <= -0.9 * slope
