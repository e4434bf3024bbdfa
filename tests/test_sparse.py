"""Sparse gradients: torch's bits where it has them, and what `sparse` promises where it has not."""

from __future__ import annotations

import copy
import importlib
import io
import itertools
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import generated
from optdsl import build, pipeline
from tests.reference import advance, bits, random

STEPS = 20
Gradients = tuple[tuple[Tensor | None, ...], ...]

# Every combination of options that changes what a sparse gradient does.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "SparseAdam": [{"lr": 0.1}, {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-3}],
    "SGD": [
        {"lr": 0.1, "momentum": momentum, "dampening": dampening, "nesterov": nesterov}
        for momentum, dampening, nesterov in itertools.product((0, 0.9), (0, 0.3), (False, True))
        if not nesterov or (momentum and not dampening)
    ],
    "Adagrad": [
        {"lr": 0.1, "initial_accumulator_value": initial, "lr_decay": decay}
        for initial, decay in itertools.product((0, 0.1), (0, 0.01))
    ],
}
# Adding half-precision sparse tensors to each other is not in torch.
DTYPES = {
    "SparseAdam": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
    "SGD": (torch.float32, torch.float64, torch.bfloat16, torch.complex64),
    "Adagrad": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
}
BIT_EQUAL = [
    (name, options, dtype)
    for name in ("SparseAdam", "SGD")
    for options in OPTIONS[name]
    for dtype in DTYPES[name]
]
RUNS = [(name, options) for name in OPTIONS for options in OPTIONS[name]]


def name_of(value: Any) -> str:
    return "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def sparse_random(
    generator: torch.Generator,
    dtype: torch.dtype,
    shape: Sequence[int],
    sparse_dim: int,
    count: int,
) -> Tensor:
    """A gradient of `count` elements at random places, some of them twice."""
    where = [torch.randint(0, size, (count,), generator=generator) for size in shape[:sparse_dim]]
    values = random(generator, dtype, count, *shape[sparse_dim:])
    return torch.sparse_coo_tensor(torch.stack(where), values, tuple(shape), check_invariants=True)


# Shape, sparse dimensions, elements: tables of rows, a vector, single numbers of a matrix, a
# hybrid of two dimensions, a gradient that is always empty, a matrix laid out by columns.
TENSORS = (
    ((11, 3), 1, 7), ((7,), 1, 3), ((6, 4), 2, 9), ((5, 4, 2), 2, 8), ((9, 2), 1, 0),
    ((4, 6), 1, 5),
)  # fmt: skip


@cache
def problem(dtype: torch.dtype) -> tuple[tuple[Tensor, ...], Gradients]:
    """Parameters, and gradients that are missing at times and have repeated and few elements."""
    generator = torch.Generator().manual_seed(3)
    start = [random(generator, dtype, *shape) for shape, _, _ in TENSORS]
    start[5] = start[5].t().contiguous().t()

    def gradients(step: int) -> tuple[Tensor | None, ...]:
        found: list[Tensor | None] = [sparse_random(generator, dtype, *t) for t in TENSORS]
        if step in (0, 5):
            found[1] = None
        if step % 4 == 3:
            found[2] = sparse_random(generator, dtype, *TENSORS[2][:2], 0)
        if step % 4 == 2:
            assert found[3] is not None
            found[3] = found[3].coalesce()
        return tuple(found)

    return tuple(start), tuple(gradients(step) for step in range(STEPS))


def make(
    package: Any, name: str, params: list[Tensor], options: dict[str, Any], **more: Any
) -> torch.optim.Optimizer:
    """Two groups that differ in their rates."""
    groups = [{"params": params[::2]}, {"params": params[1::2], "lr": 0.03}]
    optimizer: torch.optim.Optimizer = getattr(package, name)(groups, **options, **more)
    return optimizer


def fresh(dtype: torch.dtype) -> list[Tensor]:
    """Own copies of the problem's parameters, with their strides."""
    return [p.clone().requires_grad_() for p in problem(dtype)[0]]


def train(
    package: Any,
    name: str,
    options: dict[str, Any],
    dtype: torch.dtype = torch.float32,
    steps: int = STEPS,
    **more: Any,
) -> tuple[torch.optim.Optimizer, list[Tensor]]:
    params = fresh(dtype)
    optimizer = make(package, name, params, options, **more)
    advance(optimizer, params, problem(dtype)[1][:steps])
    return optimizer, params


def same(expected: Any, actual: Any) -> bool:
    """Equal to the bit, in layout, indices and their order, and in type."""
    if type(expected) is not type(actual):
        return False
    if not isinstance(expected, Tensor):
        return bool(expected == actual)
    if (expected.dtype, expected.shape, expected.layout) != (
        actual.dtype, actual.shape, actual.layout,
    ):  # fmt: skip
        return False
    if expected.is_sparse:
        alike = expected.is_coalesced() == actual.is_coalesced()
        indices = torch.equal(expected._indices(), actual._indices())
        return alike and indices and same(expected._values(), actual._values())
    return torch.equal(bits(expected), bits(actual))


def contents(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Every parameter and every slot as the state holds it, by name."""
    found: dict[str, Any] = {}
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for index, param in enumerate(params):
        found[f"parameter {index}"] = param.detach()
        for name, value in optimizer.state.get(param, {}).items():
            if value is not None:
                found[f"parameter {index}: {name}"] = value
    return found


def differences(expected: torch.optim.Optimizer, actual: torch.optim.Optimizer) -> list[str]:
    theirs, ours = contents(expected), contents(actual)
    assert len(theirs) >= len(TENSORS)
    names = dict.fromkeys((*theirs, *ours))
    return [n for n in names if not same(theirs.get(n), ours.get(n))]


# torch's bits


@pytest.mark.parametrize("foreach", [False, True], ids=["eager", "foreach"])
@pytest.mark.parametrize("maximize", [False, True], ids=["minimize", "maximize"])
@pytest.mark.parametrize(("name", "options", "dtype"), BIT_EQUAL, ids=name_of)
def test_sparse_adam_and_sgd_give_torchs_bits(
    name: str, options: dict[str, Any], dtype: torch.dtype, maximize: bool, foreach: bool
) -> None:
    expected, _ = train(torch.optim, name, options, dtype, maximize=maximize)
    actual, _ = train(generated, name, options, dtype, maximize=maximize, foreach=foreach)
    assert differences(expected, actual) == []


def test_sgds_momentum_of_a_sparse_gradient_is_sparse_as_torchs() -> None:
    optimizer, params = train(generated, "SGD", {"momentum": 0.9}, steps=2)
    buffer = optimizer.state[params[0]]["momentum_buffer"]
    assert buffer.is_sparse
    assert buffer._nnz() == sum(row[0]._nnz() for row in problem(torch.float32)[1][:2])


class Words(torch.nn.Module):
    """Two tables of sparse rows; one of them has a row for padding."""

    def __init__(self) -> None:
        super().__init__()
        self.left = torch.nn.Embedding(20, 4, sparse=True, padding_idx=0)
        self.right = torch.nn.Embedding(15, 4, sparse=True)
        self.mix = torch.nn.Linear(8, 1)

    def forward(self, words: Tensor) -> Tensor:
        both = torch.cat([self.left(words), self.right(words.clamp_max(14))], dim=-1)
        result: Tensor = self.mix(both.mean(dim=1))
        return result


def trained_words(package: Any, name: str, dense: bool, **options: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = Words()
    groups: list[dict[str, Any]] = [{"params": list(model.left.parameters())}]
    others = list(model.right.parameters()) + (list(model.mix.parameters()) if dense else [])
    groups.append({"params": others, "lr": 0.02})
    optimizer = getattr(package, name)(groups, lr=0.1, **options)
    for step in range(30):
        words = torch.randint(0, 20, (8, 5))
        words[:, 0] = 0  # padding
        optimizer.zero_grad()
        # Every third step the right table has no gradient.
        model.right.weight.requires_grad_(step % 3 != 2)
        functional.mse_loss(model(words).squeeze(-1), words.float().mean(dim=1)).backward()
        optimizer.step()
    return {n: p.detach() for n, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SparseAdam", {}),
        ("SGD", {}),
        ("SGD", {"momentum": 0.9, "nesterov": True}),
        ("SGD", {"momentum": 0.9, "foreach": True}),
    ],
    ids=name_of,
)
def test_embeddings_train_to_torchs_bits_beside_dense_parameters(
    name: str, options: dict[str, Any]
) -> None:
    dense = name != "SparseAdam"
    theirs = {k: v for k, v in options.items() if k != "foreach"}
    expected = trained_words(torch.optim, name, dense, **theirs)
    actual = trained_words(generated, name, dense, **options)
    assert [n for n in expected if not same(expected[n], actual[n])] == []
    initial = torch.nn.Embedding(1, 4).weight.new_zeros(4)
    assert torch.equal(actual["left.weight"][0], initial)  # padding does not learn


# Adagrad: its dense update on the elements that the gradient has


@pytest.mark.parametrize("foreach", [False, True], ids=["eager", "foreach"])
@pytest.mark.parametrize("dtype", [*DTYPES["Adagrad"], torch.complex64], ids=str)
@pytest.mark.parametrize("options", OPTIONS["Adagrad"], ids=name_of)
def test_adagrad_with_a_sparse_gradient_gives_the_bits_of_the_same_dense_one(
    options: dict[str, Any], dtype: torch.dtype, foreach: bool
) -> None:
    """A zero of a dense gradient moves neither the parameter nor the sum. (In float16 the default
    eps is 0, and a zero over it is not a number.)"""
    options = {**options, "eps": 1e-3}
    dense_params = fresh(dtype)
    dense = make(generated, "Adagrad", dense_params, options)
    rows = [[None if g is None else g.to_dense() for g in row] for row in problem(dtype)[1]]
    advance(dense, dense_params, rows)
    sparse, _ = train(generated, "Adagrad", options, dtype, foreach=foreach)
    assert differences(dense, sparse) == []


@pytest.mark.parametrize("maximize", [False, True], ids=["minimize", "maximize"])
@pytest.mark.parametrize("dtype", DTYPES["Adagrad"], ids=str)
@pytest.mark.parametrize("options", OPTIONS["Adagrad"], ids=name_of)
def test_a_step_of_adagrad_stays_within_torchs_rounding(
    options: dict[str, Any], dtype: torch.dtype, maximize: bool
) -> None:
    """torch squares, sums and divides sparse values by themselves; the dense update rounds less
    often. From the same state one step's sums differ by at most one unit in the last place, and its
    parameters by that of the parameter and three of the step. (Found: 1.00, and 0.83 of the
    step.)"""
    eps = torch.finfo(dtype).eps
    theirs, ours = fresh(dtype), fresh(dtype)
    expected = make(torch.optim, "Adagrad", theirs, options, maximize=maximize)
    actual = make(generated, "Adagrad", ours, options, maximize=maximize)
    moved = 0
    for row in problem(dtype)[1]:
        before = [p.detach().double().clone() for p in theirs]
        advance(expected, theirs, [row])
        advance(actual, ours, [row])
        for old, their, our in zip(before, theirs, ours, strict=True):
            size = torch.maximum(their.detach().abs(), our.detach().abs()).double()
            step = (their.detach().double() - old).abs()
            moved += int(step.count_nonzero())
            assert ((our - their).double().abs() <= eps * (size + 3 * step)).all()
            their_sum, our_sum = expected.state[their]["sum"], actual.state[our]["sum"]
            far = (our_sum.double() - their_sum.double()).abs()
            assert (far <= eps * torch.maximum(our_sum, their_sum).double()).all()
            assert same(expected.state[their]["step"], actual.state[our]["step"])
            # The next step begins where torch is.
            with torch.no_grad():
                our.copy_(their)
                our_sum.copy_(their_sum)
    assert moved > 500


# Rows


@pytest.mark.parametrize("name", ["SparseAdam", "Adagrad"])
def test_elements_that_a_gradient_lacks_keep_parameter_and_slots(name: str) -> None:
    generator = torch.Generator().manual_seed(5)
    param = random(generator, torch.float32, 6, 3).requires_grad_()
    optimizer = getattr(generated, name)([param], lr=0.1)
    everywhere = sparse_random(generator, torch.float32, (6, 3), 1, 40)
    advance(optimizer, [param], [[everywhere]])
    before = copy.deepcopy(contents(optimizer))
    absent = torch.tensor([0, 2, 3])
    at = torch.tensor([[4, 1, 4, 5]])
    gradient = torch.sparse_coo_tensor(at, random(generator, torch.float32, 4, 3), (6, 3))
    advance(optimizer, [param], [[gradient]])
    for label, value in contents(optimizer).items():
        if label.endswith("step"):
            assert value == 2
            continue
        assert torch.equal(bits(value[absent]), bits(before[label][absent])), label
        assert not torch.isclose(value[[1, 4, 5]], before[label][[1, 4, 5]]).any(), label


@pytest.mark.parametrize("name", ["SparseAdam", "Adagrad"])
def test_an_empty_gradient_counts_as_a_step_and_changes_nothing_else(name: str) -> None:
    param = torch.randn(4, 2).requires_grad_()
    optimizer = getattr(generated, name)([param])
    before = param.detach().clone()
    empty = torch.sparse_coo_tensor(torch.zeros(1, 0, dtype=torch.long), torch.zeros(0, 2), (4, 2))
    advance(optimizer, [param], [[empty], [empty], [None]])
    state = optimizer.state[param]
    assert state.pop("step") == 2
    assert torch.equal(param.detach(), before)
    assert all(not value.any() for value in state.values())


@pytest.mark.parametrize(("name", "options"), RUNS, ids=name_of)
def test_repeated_elements_count_as_their_sum(name: str, options: dict[str, Any]) -> None:
    def trained(row: Callable[[Tensor], Tensor]) -> Tensor:
        param = torch.ones(5, 2).requires_grad_()
        optimizer = getattr(generated, name)([param], **options)
        at = torch.tensor([[3, 0, 3]])
        for scale in (1.0, 0.5, -2.0):
            values = torch.tensor([[1.0, 2.0], [0.5, 0.25], [3.0, -1.0]]) * scale
            advance(optimizer, [param], [[row(torch.sparse_coo_tensor(at, values, (5, 2)))]])
        return param.detach()

    # Sums of gradients that are coalesced and not are rounded in another order.
    tolerance = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(trained(lambda g: g), trained(Tensor.coalesce), **tolerance)


@pytest.mark.parametrize("name", ["SparseAdam", "SGD", "Adagrad"])
def test_a_gradient_without_sparse_dimensions_is_one_element(name: str) -> None:
    def trained(param: Tensor, gradient: Tensor) -> Tensor:
        param.requires_grad_()
        optimizer = getattr(generated, name)([param], lr=0.1)
        advance(optimizer, [param], [[gradient], [gradient]])
        return param.detach()

    nowhere = torch.zeros(0, 2, dtype=torch.long)
    alone = torch.sparse_coo_tensor(nowhere, torch.tensor([1.0, 2.0]), ())
    one = torch.sparse_coo_tensor(
        torch.zeros(1, 2, dtype=torch.long), torch.tensor([1.0, 2.0]), (1,)
    )
    found = trained(torch.tensor(1.0), alone)
    assert torch.equal(found, trained(torch.tensor([1.0]), one).squeeze(0))
    assert found < 1


def test_slots_wider_than_their_parameter_are_rounded_once() -> None:
    """SparseAdam on bfloat16 with float32 averages: float32 steps, the parameter rounded after
    each."""
    narrow, wide = (p.detach().clone().requires_grad_() for p in (fresh(torch.bfloat16)[0],) * 2)
    wide = wide.detach().float().requires_grad_()
    ours, reference = generated.SparseAdam([narrow], lr=0.1), generated.SparseAdam([wide], lr=0.1)
    ours.load_state_dict(
        {
            "state": {
                0: {"step": 0, "exp_avg": torch.zeros(11, 3), "exp_avg_sq": torch.zeros(11, 3)}
            },
            "param_groups": ours.state_dict()["param_groups"],
        }
    )
    for row in problem(torch.bfloat16)[1]:
        assert row[0] is not None
        gradient = row[0].coalesce()
        advance(ours, [narrow], [[gradient]])
        advance(reference, [wide], [[gradient.float()]])
        with torch.no_grad():
            wide.copy_(wide.bfloat16())
        assert torch.equal(narrow.float(), wide)
    assert ours.state[narrow]["exp_avg"].dtype == torch.float32
    assert same(reference.state[wide]["exp_avg_sq"], ours.state[narrow]["exp_avg_sq"])


# Specs of one's own

OWN = """
optimizer Lazy {
    hyper  lr   = 0.1
    hyper  beta = 0.9
    option peak = false

    sparse rows

    state mean    = zeros_like(param)
    state mean_sq = full_like(param, 1)
    state highest = zeros_like(param)  when peak

    update {
        param *= 1 - 0.01 * lr
        mean    = lerp(mean, grad, 1 - beta)
        mean_sq = max(beta * mean_sq, grad * grad)
        let scale = mean_sq
        if peak {
            highest = max(highest, mean_sq)
            scale = highest
        }
        descend lr * mean / (sqrt(scale) + 1)
    }
}

optimizer Heavy {
    hyper lr   = 0.1
    hyper beta = 0.5

    sparse linear

    state fast = unset
    state slow = zeros_like(param)

    update {
        if unset(fast) { fast = grad }
        else { fast = beta * fast + grad }
        slow = slow / 2 - (1 - beta) * grad
        let both = grad + 0.5 * fast
        descend lr * both
        descend lr * slow
    }
}
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("sparse")
    (folder / "own.opt").write_text(OWN, encoding="utf-8")
    library = pipeline.load([folder / "own.opt"])
    build.write(build.plan(library, "optdsl build"), folder / "own_sparse")
    sys.path.insert(0, str(folder))
    yield importlib.import_module("own_sparse")
    sys.path.remove(str(folder))


@pytest.mark.parametrize("maximize", [False, True], ids=["minimize", "maximize"])
@pytest.mark.parametrize("peak", [False, True], ids=["", "peak"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_rows_of_a_table_train_as_parameters_of_their_own(
    own: Any, dtype: torch.dtype, peak: bool, maximize: bool
) -> None:
    generator = torch.Generator().manual_seed(7)
    table = random(generator, dtype, 6, 3).requires_grad_()
    alone = [row.clone().requires_grad_() for row in table.detach()]
    whole = own.Lazy([table], peak=peak, maximize=maximize)
    split = own.Lazy(alone, peak=peak, maximize=maximize, foreach=False)
    for _ in range(STEPS):
        gradient = sparse_random(generator, dtype, (6, 3), 1, 4).coalesce()
        rows = dict(zip(gradient.indices()[0].tolist(), gradient.values(), strict=True))
        advance(whole, [table], [[gradient]])
        advance(split, alone, [[rows.get(index) for index in range(6)]])
    assert same(torch.stack(alone).detach(), table.detach())
    for name, slot in whole.state[table].items():
        assert same(torch.stack([split.state[row][name] for row in alone]), slot)


def test_a_linear_update_of_ones_own_gives_the_values_of_the_dense_one(own: Any) -> None:
    sparse_params, dense_params = fresh(torch.float64), fresh(torch.float64)
    sparse, dense = own.Heavy(sparse_params), own.Heavy(dense_params)
    rows = problem(torch.float64)[1]
    advance(sparse, sparse_params, rows)
    advance(dense, dense_params, [[g if g is None else g.to_dense() for g in row] for row in rows])
    for ours, theirs in zip(sparse_params, dense_params, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        slots, others = sparse.state[ours], dense.state[theirs]
        assert slots["fast"].is_sparse
        assert not slots["slow"].is_sparse
        torch.testing.assert_close(slots["fast"].to_dense(), others["fast"], rtol=1e-12, atol=1e-12)


# What is refused


def sparse_gradient() -> Tensor:
    return torch.sparse_coo_tensor([[0, 1]], torch.ones(2, 2), (2, 2))


def raised_by_step(package: Any, name: str, gradient: Tensor, **options: Any) -> str:
    param = torch.zeros(2, 2, requires_grad=True)
    optimizer = getattr(package, name)([param], **options)
    param.grad = gradient
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(RuntimeError) as error:
        optimizer.step()
    if package is generated:
        assert not param.any()
        assert str(optimizer.state_dict()) == str(before)
    return str(error.value)


@pytest.mark.parametrize("foreach", [False, True], ids=["eager", "foreach"])
@pytest.mark.parametrize(
    "name",
    ["Adadelta", "Adafactor", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop",
     "Rprop"],
)  # fmt: skip
def test_optimizers_without_sparse_updates_refuse_them_in_torchs_words(
    name: str, foreach: bool
) -> None:
    theirs = raised_by_step(torch.optim, name, sparse_gradient(), foreach=False)
    assert raised_by_step(generated, name, sparse_gradient(), foreach=foreach) == theirs
    assert "sparse gradients" in theirs


def test_lion_and_muon_refuse_sparse_gradients_by_name() -> None:
    for name in ("Lion", "Muon"):
        message = f"{name} does not support sparse gradients"
        assert raised_by_step(generated, name, sparse_gradient()) == message


def test_sparse_adam_refuses_dense_gradients_in_torchs_words() -> None:
    theirs = raised_by_step(torch.optim, "SparseAdam", torch.ones(2, 2))
    assert raised_by_step(generated, "SparseAdam", torch.ones(2, 2)) == theirs
    assert theirs.endswith("please consider Adam instead")


def test_adagrads_weight_decay_refuses_sparse_gradients_in_torchs_words() -> None:
    options = {"weight_decay": 0.1}
    theirs = raised_by_step(torch.optim, "Adagrad", sparse_gradient(), **options)
    assert raised_by_step(generated, "Adagrad", sparse_gradient(), **options) == theirs


def test_sgds_weight_decay_refuses_sparse_gradients_as_torch_with_the_reason() -> None:
    raised_by_step(torch.optim, "SGD", sparse_gradient(), weight_decay=0.1)
    message = raised_by_step(generated, "SGD", sparse_gradient(), weight_decay=0.1)
    assert message == "weight_decay option is not compatible with sparse gradients"


@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_weight_decay_of_one_group_leaves_sparse_gradients_of_another_alone(name: str) -> None:
    table, weight = torch.ones(2, 2, requires_grad=True), torch.ones(2, 2, requires_grad=True)
    groups = [{"params": [table]}, {"params": [weight], "weight_decay": 0.1}]
    optimizer = getattr(generated, name)(groups, lr=0.1)
    advance(optimizer, [table, weight], [[sparse_gradient(), torch.ones(2, 2)]])
    assert (table < 1).all()
    assert (weight < 1).all()


# The constructor of SparseAdam


def raised_by(make: Callable[[], object]) -> str:
    with pytest.raises(ValueError, match=r".") as error:
        make()
    return str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.0}, {"lr": -1.0}, {"eps": 0.0}, {"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)},
        {"lr": 0.0, "eps": 0.0, "betas": (1.0, 1.0)}, {"eps": 0.0, "betas": (1.0, 1.0)},
        {"lr": torch.ones(2)},
    ],
    ids=name_of,
)  # fmt: skip
def test_sparse_adam_raises_torchs_errors_in_torchs_order(options: dict[str, Any]) -> None:
    def of(package: Any) -> str:
        return raised_by(lambda: package.SparseAdam([torch.ones(2)], **options))

    assert of(generated) == of(torch.optim)


def mixed_groups(order: str) -> list[dict[str, Any]]:
    """Groups of parameters: s sparse, c complex, b both, d neither; a comma between groups."""
    make = {
        "s": lambda: sparse_gradient().clone(),
        "c": lambda: torch.ones(2, dtype=torch.complex64),
        "b": lambda: sparse_gradient().to(torch.complex64),
        "d": lambda: torch.ones(2),
    }
    return [{"params": [make[letter]() for letter in group]} for group in order.split(",")]


@pytest.mark.parametrize("order", ["s", "c", "dcd", "ds,sd", "cd,s", "c,d,cc", "bd,dc", "d,b"])
def test_sparse_adam_lists_the_parameters_that_it_refuses_as_torch(order: str) -> None:
    def of(package: Any) -> str:
        return raised_by(lambda: package.SparseAdam(mixed_groups(order)))

    assert of(generated) == of(torch.optim)


def test_a_group_that_is_refused_later_is_not_added() -> None:
    optimizer = generated.SparseAdam([torch.ones(2)])
    with pytest.raises(ValueError, match=r"^Sparse params at indices \[\[1, 1\]\]: SparseAdam"):
        optimizer.add_param_group(mixed_groups("ds")[0])
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group(mixed_groups("dd")[0])
    assert len(optimizer.param_groups) == 2


# Checkpoints


def through_a_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


def copies(params: list[Tensor]) -> list[Tensor]:
    return [p.detach().clone().requires_grad_() for p in params]


EXACT_RUNS = [(name, options) for name, options in RUNS if name != "Adagrad"]


@pytest.mark.parametrize("transport", [lambda d: d, through_a_file], ids=["memory", "file"])
@pytest.mark.parametrize(
    ("source", "target"), [(torch.optim, generated), (generated, torch.optim)],
    ids=["torch's to ours", "ours to torch's"],
)  # fmt: skip
@pytest.mark.parametrize(("name", "options"), EXACT_RUNS, ids=name_of)
def test_sparse_training_continues_in_the_other_package_bit_for_bit(
    name: str, options: dict[str, Any], source: Any, target: Any, transport: Callable[..., Any]
) -> None:
    expected, _ = train(torch.optim, name, options)
    first, params = train(source, name, options, steps=7)
    params = copies(params)
    second = make(target, name, params, options)
    second.load_state_dict(transport(first.state_dict()))
    advance(second, params, problem(torch.float32)[1][7:])
    assert differences(expected, second) == []


@pytest.mark.parametrize(
    ("source", "target"), [(torch.optim, generated), (generated, torch.optim)],
    ids=["torch's to ours", "ours to torch's"],
)  # fmt: skip
def test_adagrads_checkpoints_after_sparse_steps_load_in_the_other_package(
    source: Any, target: Any
) -> None:
    options = OPTIONS["Adagrad"][-1]
    first, params = train(source, "Adagrad", options, steps=7)
    params = copies(params)
    second = make(target, "Adagrad", params, options)
    second.load_state_dict(through_a_file(first.state_dict()))
    assert differences(first, second) == []
    advance(second, params, problem(torch.float32)[1][7:])


def by_state_dict(
    optimizer: torch.optim.Optimizer, params: list[Tensor]
) -> tuple[torch.optim.Optimizer, list[Tensor]]:
    params = copies(params)
    kind = type(optimizer)
    fresh = kind([{"params": params[::2]}, {"params": params[1::2]}])  # type: ignore[call-arg]
    fresh.load_state_dict(through_a_file(optimizer.state_dict()))
    return fresh, params


def by_deepcopy(optimizer: torch.optim.Optimizer, params: list[Tensor]) -> tuple[Any, Any]:
    return copy.deepcopy((optimizer, params))


def by_pickle(optimizer: torch.optim.Optimizer, params: list[Tensor]) -> tuple[Any, Any]:
    return pickle.loads(pickle.dumps((optimizer, params)))


@pytest.mark.parametrize("resume", [by_state_dict, by_deepcopy, by_pickle])
@pytest.mark.parametrize(("name", "options"), RUNS, ids=name_of)
def test_resuming_sparse_training_at_any_step_changes_no_bit(
    name: str, options: dict[str, Any], resume: Callable[..., tuple[Any, Any]]
) -> None:
    expected, _ = train(generated, name, options, steps=8)
    for stop in range(9):
        optimizer, params = resume(*train(generated, name, options, steps=stop))
        advance(optimizer, params, problem(torch.float32)[1][stop:8])
        assert differences(expected, optimizer) == []


def steps_of(optimizer: torch.optim.Optimizer) -> Iterator[Any]:
    return (state["step"] for state in optimizer.state.values())


def test_sparse_adams_step_is_a_python_int_wherever_it_comes_from() -> None:
    optimizer, params = train(generated, "SparseAdam", {}, steps=3)
    saved = copy.deepcopy(optimizer.state_dict())
    for slots in saved["state"].values():
        slots["step"] = torch.tensor(float(slots["step"]))
    for resumed in (optimizer, by_deepcopy(optimizer, params)[0], by_pickle(optimizer, params)[0]):
        assert {type(step) for step in steps_of(resumed)} == {int}
    fresh = make(generated, "SparseAdam", copies(params), {})
    fresh.load_state_dict(saved)
    assert [*steps_of(fresh)] == [3, 3, 3, 3, 3, 2]
    assert {type(step) for step in steps_of(fresh)} == {int}


def test_gradients_may_change_their_layout_between_steps() -> None:
    """Rows are kept in dense slots: a dense gradient after sparse ones finds them as they are."""
    sparse, dense = torch.ones(2, 2, requires_grad=True), torch.ones(2, 2, requires_grad=True)
    mixed = generated.Adagrad([sparse], lr=0.1)
    only_dense = generated.Adagrad([dense], lr=0.1)
    gradient = sparse_gradient()
    advance(mixed, [sparse], [[gradient], [gradient.to_dense()], [gradient]])
    advance(only_dense, [dense], [[gradient.to_dense()]] * 3)
    assert torch.equal(bits(sparse.detach()), bits(dense.detach()))
