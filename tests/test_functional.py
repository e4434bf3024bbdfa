"""The functional update: differentiable, compiled and captured steps.

Held against the for-loop (values), finite differences (gradients), and torch's own differentiable
optimizers (both).
"""

from __future__ import annotations

import importlib
import inspect
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck

import generated
from generated import _numbers, _optimizer, _slots, _tensors
from generated._slots import Rows
from optdsl import build, pipeline
from optdsl.emit import render
from optdsl.ir import Base, Spec
from optdsl.ops import Kind
from optdsl.parse import parse
from optdsl.pipeline import shipped_library
from optdsl.resolve import resolve
from optdsl.source import Source
from optdsl.targets import eager, functional
from tests.random_specs import updates
from tests.reference import NOT_TAKEN, SHIPPED, advance, choices, contents, random
from tests.test_passes import programs as programs_of_numbers
from tests.test_programs import ACCEPTED, class_name, source

# One takes sparse gradients only, the other is a program of its own.
FUNCTIONAL = tuple(name for name in SHIPPED if name not in ("SparseAdam", "LBFGS"))
every = pytest.mark.parametrize("name", FUNCTIONAL)
DTYPES = (torch.float32, torch.float64, torch.complex64)

# Plain expressions round each operation, where the for-loop has calls that round several at once;
# what is subtracted after that (RMSprop's centered variance) shows the difference enlarged. The
# unit is the last place of a tensor's largest number. Measured: up to 15.
ULPS = 32


# Muon takes matrices; the momentum of a single number is a sum that may cancel, here that of LARS.
SHAPES = {"Muon": ((4, 3), (2, 6)), "LARS": ((9,), (2, 3))}


def problem(
    name: str, dtype: torch.dtype = torch.float32, steps: int = 8
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Parameters, and a gradient of each for every step."""
    generator = torch.Generator().manual_seed(1)
    shapes = SHAPES.get(name, ((), (9,), (2, 3)))
    params = [random(generator, dtype, *shape) for shape in shapes]
    return params, [[random(generator, dtype, *s) for s in shapes] for _ in range(steps)]


def distance(expected: Tensor, actual: Tensor) -> float:
    """The largest difference, in units in the last place of the largest number."""
    if expected.is_complex():
        expected, actual = torch.view_as_real(expected), torch.view_as_real(actual)
    last = expected.abs().max() * torch.finfo(expected.dtype).eps
    return float((expected - actual).abs().max() / last) if last else float(actual.abs().max())


def assert_close(expected: dict[str, Tensor], actual: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for key, tensor in expected.items():
        assert (actual[key].dtype, actual[key].shape) == (tensor.dtype, tensor.shape), key
        assert distance(tensor, actual[key].detach()) <= ULPS, key


def trained(name: str, start: Sequence[Tensor], grads: Any, **options: Any) -> dict[str, Tensor]:
    params = [p.clone() for p in start]
    optimizer = getattr(generated, name)(params, **options)
    advance(optimizer, params, grads)
    return contents(optimizer)


@pytest.fixture
def in_float64() -> Iterator[None]:
    """Scalar slots take the default dtype; finite differences need all digits of them."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# Values


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every
def test_differentiable_steps_follow_the_for_loop(name: str, dtype: torch.dtype) -> None:
    if dtype is NOT_TAKEN.get(name):
        return
    start, grads = problem(name, dtype)
    for options in choices(name, maximize=(False, True)):
        expected = trained(name, start, grads, **options, foreach=False)
        assert_close(expected, trained(name, start, grads, **options, differentiable=True))


@every
def test_slots_wider_than_the_parameter_keep_their_dtype(name: str) -> None:
    start, grads = problem(name, torch.float32)
    results = []
    for differentiable in (False, True):
        params = [p.clone() for p in start]
        optimizer = getattr(generated, name)(params, differentiable=differentiable)
        advance(optimizer, params, grads[:1])
        for param in params:
            slots = optimizer.state[param]
            scalars = {slot.name for slot in optimizer.slots if slot.scalar}
            slots.update({k: v.double() for k, v in slots.items() if k not in scalars})
        advance(optimizer, params, grads[1:])
        results.append(contents(optimizer))
    assert [v.dtype for v in results[1].values()] == [v.dtype for v in results[0].values()]
    # A slot may hold the parameter, which both round at each step.
    assert_close(*({k: v.float() for k, v in found.items()} for found in results))


def test_foreach_gives_way_where_a_step_is_recorded() -> None:
    start, grads = problem("Adam")
    expected = trained("Adam", start, grads, differentiable=True)
    actual = trained("Adam", start, grads, differentiable=True, foreach=True)
    assert all(torch.equal(expected[key], actual[key]) for key in expected)


def test_state_moves_between_recorded_and_plain_steps() -> None:
    start, grads = problem("NAdam")
    expected = trained("NAdam", start, grads, foreach=False)
    params = [p.clone() for p in start]
    plain = generated.NAdam(params, foreach=False)
    advance(plain, params, grads[:3])
    recorded = generated.NAdam(params, differentiable=True)
    recorded.load_state_dict(plain.state_dict())
    advance(recorded, params, grads[3:6])
    plain.load_state_dict(recorded.state_dict())
    advance(plain, params, grads[6:])
    assert_close(expected, contents(plain))


# Small programs: all constructs of the language


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    root: Path = tmp_path_factory.mktemp("functional")
    specs = root / "programs.opt"
    specs.write_text("\n".join(source(n, b) for n, b in ACCEPTED.items()), encoding="utf-8")
    build.write(build.plan(pipeline.load([specs]), "optdsl build"), root / "functional_programs")
    sys.path.insert(0, str(root))
    yield importlib.import_module("functional_programs")
    sys.path.remove(str(root))


def step_without_branches(optimizer: Any) -> None:
    """What a compiled or captured step computes."""
    with torch.no_grad():
        groups = enumerate(optimizer.param_groups)
        optimizer._step_out_of_place([m for i, g in groups for m in optimizer._members(i, g)])


@pytest.mark.parametrize("name", ACCEPTED)
def test_both_forms_of_every_construct_follow_the_for_loop(programs: Any, name: str) -> None:
    kind = getattr(programs, class_name(name))
    generator = torch.Generator().manual_seed(5)
    shapes = ((4, 3), (5,), ())
    start = [random(generator, torch.float64, *shape) for shape in shapes]
    grads = [[random(generator, torch.float64, *shape) for shape in shapes] for _ in range(5)]
    results = []
    for form in ("for-loop", "recorded", "traced"):
        params = [p.clone() for p in start]
        try:
            optimizer = kind(params, differentiable=form == "recorded", foreach=False)
        except ValueError:  # it asks for matrices
            params = params[:1]
            optimizer = kind(params, differentiable=form == "recorded", foreach=False)
        for row in grads:
            for param, grad in zip(params, row, strict=False):
                param.grad = grad
            step_without_branches(optimizer) if form == "traced" else optimizer.step()
        results.append(contents(optimizer))
    for result in results[1:]:
        assert result.keys() == results[0].keys()
        for key, expected in results[0].items():
            # The interpreter's distance in test_programs: steps may enlarge what was rounded.
            torch.testing.assert_close(result[key].detach(), expected, rtol=1e-7, atol=1e-7)


# What random updates are made of, and numbers that change in branches on a slot.
GROUP = {"c": 0.3, "d": 0.7, "maximize": False}


def executed(text: str) -> tuple[Spec, Any]:
    """The spec, and a class with its update in place and out of it."""
    (spec,), _ = resolve([parse(Source("random.opt", text))])
    assert isinstance(spec, Spec)
    sections = [
        render(f"{target.__name__.rsplit('.', 1)[1]}.py.jinja", target.lower(spec))
        for target in (eager, functional)
    ]
    names = {**vars(_optimizer), **vars(_tensors), "_numbers": _numbers, "math": math}
    code = compile("class Update:\n" + "".join(sections), "<random>", "exec", dont_inherit=True)
    exec(code, names)
    return spec, names["Update"]


def follows_the_for_loop(text: str, flag: bool) -> None:
    """Two steps in float64, in both forms of a choice."""
    spec, update = executed(text)
    group = {**GROUP, "flag": flag}
    generator = torch.Generator().manual_seed(7)
    param, grad, slot = (random(generator, torch.float64, 37) for _ in range(3))
    names = [state.name for state in spec.states]
    first = {n: torch.zeros(()) if n in ("step", "n") else slot.clone() for n in names}
    tensors = {n: [v.clone()] for n, v in first.items() if v.dim()}
    vectors = {n: v.clone()[None] for n, v in first.items() if not v.dim()}
    rows = Rows([param.clone()], [grad.clone()], tensors, vectors=vectors)
    for _ in range(2):
        with torch.no_grad():
            update._single_tensor(group, rows)
    expected = [rows.params[0], *(v[0] for v in tensors.values())]
    # An exploding program says nothing about rounding.
    assume(all(e.isfinite().all() and e.abs().max() < 1e6 for e in expected))
    for recorded in (False, True):
        now = (param, *first.values())
        given = [t._version for t in (*now, grad)]
        for _ in range(2):
            with torch.set_grad_enabled(recorded):
                after = update._functional(group, (now[0], grad, *now[1:]))
            now = tuple(_slots.as_stored(v, t) for v, t in zip(after, now, strict=True))
        assert [t._version for t in (param, *first.values(), grad)] == given
        actual = [now[0], *(v for v in now[1:] if v.dim())]
        for one, other in zip(expected, actual, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-7, atol=1e-7)


@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=100)
@given(updates(), st.booleans())
def test_random_updates_follow_the_for_loop(text: str, flag: bool) -> None:
    follows_the_for_loop(text, flag)


@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=100)
@given(programs_of_numbers(), st.booleans())
def test_random_numbers_and_branches_follow_the_for_loop(text: str, flag: bool) -> None:
    follows_the_for_loop(text, flag)


# Gradients


def filled(slots: dict[str, Any]) -> dict[str, Any]:
    """Slots far from where an update is not smooth: positive, and the variance that RMSprop
    centers, too."""
    generator = torch.Generator().manual_seed(2)

    def value(name: str, slot: Tensor) -> Tensor:
        if slot.dim() == 0:
            return slot.new_tensor({"mu": 0.5, "eta": 0.1}.get(name, 0.8))
        noise = torch.rand(*slot.shape, *([2] if slot.is_complex() else []), generator=generator)
        noise = (noise + 0.5) * (0.1 if name == "grad_avg" else 1)
        return torch.view_as_complex(noise) if slot.is_complex() else noise

    return {name: value(name, slot) for name, slot in slots.items()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("first", [1, 7], ids=lambda n: f"step {n}")
@pytest.mark.parametrize("name", [n for n in FUNCTIONAL if n != "Muon"])
@pytest.mark.usefixtures("in_float64")
def test_gradients_flow_to_parameter_gradient_and_slots(
    name: str, first: int, dtype: torch.dtype
) -> None:
    if dtype.is_complex and NOT_TAKEN.get(name) is torch.complex64:
        return
    kind = getattr(generated, name)
    generator = torch.Generator().manual_seed(3)
    shape = (3, 2) if name == "Adafactor" else (3,)
    param, grad = (random(generator, dtype, *shape) for _ in range(2))
    for options in choices(name):
        example = param.clone()
        example.grad = grad
        optimizer = kind([example], **options)
        optimizer.step()
        slots = {k: v for k, v in optimizer.state[example].items() if k != "step"}
        count = (
            {"step": torch.tensor(float(first - 1))} if "step" in optimizer.state[example] else {}
        )
        values = filled(slots)

        def two_steps(
            start: Tensor,
            grad: Tensor,
            *slots: Tensor,
            options: Any = options,
            count: Any = count,
            names: Any = tuple(values),
        ) -> tuple[Tensor, ...]:
            param = start.clone()
            optimizer = kind([param], **options, differentiable=True)
            given = {**count, **dict(zip(names, slots, strict=True))}
            optimizer.state[param].update({k: v.clone() for k, v in given.items()})
            for factor in (1, 2):
                param.grad = grad * factor
                optimizer.step()
            kept = optimizer.state[param].values()
            return (param, *(value for value in kept if value.requires_grad))

        inputs = [t.clone().requires_grad_() for t in (param, grad, *values.values())]
        assert gradcheck(two_steps, inputs), options


# Where the defaults would leave a hyperparameter without effect, or make it tiny.
NUMBERS = {
    "lr": 0.1, "eps": 1e-2, "weight_decay": 0.05, "momentum": 0.8, "dampening": 0.1, "alpha": 0.7,
    "lr_decay": 0.1, "initial_accumulator_value": 0.5, "lambd": 0.1, "t0": 0.5, "beta2": 0.9,
    "momentum_decay": 0.1, "step_size_max": 0.13, "d": 1.5, "eps2": 1e-2, "lower": 0.1,
    "upper": 3.0,
}  # fmt: skip
# What only decides a sign, is a bound that is not met, or reaches the average alone.
WITHOUT_EFFECT = {
    ("Lion", "beta1"), ("Lion", "beta2"), ("Rprop", "step_size_min"), ("Adafactor", "eps2"),
    ("Adafactor", "d"), ("ASGD", "t0"), ("LAMB", "lower"),
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {"RMSprop": {"centered": True}}


def numbers_of(name: str) -> dict[str, float]:
    """The real hyperparameters of an optimizer by the names of the spec, parts of tuples too."""
    specs = {u.name: u for u in shipped_library().units if isinstance(u, Spec)}
    found: dict[str, float] = {}
    for hyper in specs[name].hypers:
        if hyper.kind is Kind.OPTION or hyper.type.base is not Base.REAL:
            continue
        default = inspect.signature(getattr(generated, name)).parameters[hyper.name].default
        parts = (
            zip(hyper.components, default, strict=True)
            if hyper.components
            else [(hyper.name, default)]
        )
        found.update({n: NUMBERS.get(n, v) for n, v in parts if v is not None})
    return found


def grouped(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments: parts of tuples at their places."""
    specs = {u.name: u for u in shipped_library().units if isinstance(u, Spec)}
    arguments: dict[str, Any] = dict(OPTIONS.get(name, {}))
    for hyper in specs[name].hypers:
        if set(hyper.components) & set(values):
            arguments[hyper.name] = tuple(values.get(c) for c in hyper.components)
        elif hyper.name in values:
            arguments[hyper.name] = values[hyper.name]
    return arguments


def after(kind: Any, start: Tensor, arguments: dict[str, Any], steps: int = 3) -> Tensor:
    """The parameter after some steps down a quartic, as a function of the hyperparameters."""
    param = start.clone()
    optimizer = kind([param], **arguments, differentiable=True)
    for _ in range(steps):
        # The step writes to the parameter: what is to be differentiated reads a copy.
        param.grad = (param.clone() - 1) ** 3
        optimizer.step()
    return param


@every
@pytest.mark.usefixtures("in_float64")
def test_gradients_flow_to_every_hyperparameter_that_is_a_tensor(name: str) -> None:
    kind = getattr(generated, name)
    values = numbers_of(name)
    if name == "Muon":  # what the casts to bfloat16 read has differences of 0
        values = {n: v for n, v in values.items() if n in ("lr", "weight_decay")}
    # One of them meets the minimum at 1: its gradient changes its sign.
    start = torch.tensor([[-0.5, 0.3], [2.5, 0.95], [1.7, 3.0]])
    tensors = [torch.tensor(float(v), requires_grad=True) for v in values.values()]

    # RAdam's branch changes sides on the way; Muon's second step would differentiate its casts.
    count = {"RAdam": 7, "Muon": 1}.get(name, 3)
    weights = torch.arange(1.0, 7.0).reshape(3, 2)

    def steps(*tensors: Tensor) -> Tensor:
        return after(kind, start, grouped(name, dict(zip(values, tensors, strict=True))), count)

    assert gradcheck(steps, tensors)
    reached = torch.autograd.grad((steps(*tensors) * weights).sum(), tensors, allow_unused=True)
    silent = {n for n, g in zip(values, reached, strict=True) if g is None or not g.any()}
    assert silent == {n for optimizer, n in WITHOUT_EFFECT if optimizer == name}


# In torch few optimizers take hyperparameters that require gradients.
IN_TORCH: dict[str, dict[str, float]] = {
    "Adam": {"weight_decay": 0.05, "beta1": 0.9, "beta2": 0.95},
    "AdamW": {"weight_decay": 0.05, "beta1": 0.9, "beta2": 0.95},
    "SGD": {},
}


@pytest.mark.parametrize("name", IN_TORCH)
@pytest.mark.usefixtures("in_float64")
def test_gradients_are_torchs(name: str) -> None:
    start = torch.tensor([-0.5, 0.3, 2.5])
    values = {"lr": 0.1, **IN_TORCH[name]}
    results = []
    for package in (torch.optim, generated):
        *given, scale = (torch.tensor(v, requires_grad=True) for v in (*values.values(), 1.0))
        arguments = grouped(name, dict(zip(values, given, strict=True)))
        param = after(getattr(package, name), start * scale, arguments, steps=7)
        gradients = torch.autograd.grad(param.square().sum(), (*given, scale))
        results.append((param, *gradients))
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["RAdam", "ASGD"])
def test_the_side_of_a_branch_that_is_not_taken_sends_no_nan(name: str) -> None:
    """RAdam's first steps have a negative ratio, whose root is nan."""
    lr = torch.tensor(0.1, requires_grad=True)
    param = after(getattr(generated, name), torch.tensor([0.5, 2.0]), {"lr": lr}, steps=4)
    (gradient,) = torch.autograd.grad(param.sum(), lr)
    assert gradient.isfinite()
    assert gradient != 0


def test_a_recorded_step_leaves_what_it_read_as_it_was() -> None:
    for name in FUNCTIONAL:
        for options in choices(name):
            start, ((*grads,), *_) = problem(name)
            params = [p.clone() for p in start]
            optimizer = getattr(generated, name)(params, **options, differentiable=True)
            advance(optimizer, params, [grads])
            read = [v for p in params for v in optimizer.state[p].values()]
            copies = [v.clone() for v in (*read, *grads)]
            advance(optimizer, params, [grads])
            assert all(map(torch.equal, (*read, *grads), copies))
            kept = [v for p in params for v in optimizer.state[p].values()]
            addresses = [t.data_ptr() for t in (*kept, *grads, *params)]
            assert len(set(addresses)) == len(addresses), (name, options)


# Refusals


def test_step_itself_takes_no_gradient() -> None:
    param = torch.ones(2)
    for package in (torch.optim, generated):
        optimizer = package.Adam([param], differentiable=True)
        param.grad = torch.ones(2)
        optimizer.step()
        optimizer.state[param]["step"].requires_grad_()
        with pytest.raises(RuntimeError, match="`requires_grad` is not supported for `step`"):
            optimizer.step()


def test_leaves_that_require_gradients_cannot_be_written() -> None:
    for package in (torch.optim, generated):
        param = torch.ones(2, requires_grad=True)
        param.grad = torch.ones(2)
        with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
            package.SGD([param], lr=0.1, differentiable=True).step()
        assert torch.is_grad_enabled()


def test_only_differentiable_optimizers_take_parameters_that_are_no_leaves() -> None:
    param = torch.ones(2, requires_grad=True) * 2
    generated.Adam([param], differentiable=True)
    with pytest.raises(ValueError, match="can't optimize a non-leaf Tensor"):
        generated.Adam([param])


@every
def test_fused_and_differentiable_exclude_each_other_in_torchs_words(name: str) -> None:
    with pytest.raises(RuntimeError) as error:
        getattr(generated, name)([torch.ones(2, 2)], fused=True, differentiable=True)
    assert str(error.value) == "`fused` does not support `differentiable`"


def test_recorded_steps_take_no_sparse_gradients() -> None:
    param = torch.ones(3)
    param.grad = torch.tensor([0.0, 1.0, 0.0]).to_sparse()
    with pytest.raises(RuntimeError, match="SGD does not support sparse gradients with diff"):
        generated.SGD([param], differentiable=True).step()
    with pytest.raises(RuntimeError, match="SparseAdam does not support differentiable=True"):
        generated.SparseAdam([param], differentiable=True)


def test_a_step_records_only_where_it_is_asked_to() -> None:
    for differentiable in (False, True):
        param = torch.ones(2)
        lr = torch.tensor(0.1, requires_grad=True)
        optimizer = generated.SGD([param], lr=lr, differentiable=differentiable)
        param.grad = torch.ones(2)
        with torch.no_grad():
            optimizer.step()
            assert not torch.is_grad_enabled()
        assert param.requires_grad == differentiable


# Compiled steps


@pytest.fixture
def compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


compiled = pytest.mark.usefixtures("compiler")


def frames(
    optimizer: Any, params: list[Tensor], grads: list[list[Tensor]], backend: str = "eager"
) -> list[int]:
    """Steps of a compiled optimizer; how many graphs there were after each."""
    counter = CompileCounterWithBackend(backend)
    step = torch.compile(optimizer.step, backend=counter)
    counts = []
    for row in grads:
        for param, grad in zip(params, row, strict=True):
            param.grad = grad.clone()
        step()
        counts.append(counter.frame_count)
    return counts


@compiled
@every
def test_a_compiled_step_is_one_graph_that_is_never_compiled_again(name: str) -> None:
    start, grads = problem(name)
    # RAdam takes the other side of its branch from the sixth step on.
    expected = trained(name, start, grads, foreach=False)
    params = [p.clone().requires_grad_() for p in start]
    optimizer = getattr(generated, name)(params, foreach=True)
    assert set(frames(optimizer, params, grads)) == {1}
    assert_close(expected, contents(optimizer))


@compiled
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
        ("Adam", {"amsgrad": True, "weight_decay": 0.1}),
        ("ASGD", {"t0": 2}),
        ("RAdam", {"decoupled_weight_decay": True, "weight_decay": 0.1}),
    ],
)
def test_autograds_compiler_takes_the_graph(name: str, options: dict[str, Any]) -> None:
    start, grads = problem(name)
    expected = trained(name, start, grads, **options, foreach=False)
    params = [p.clone().requires_grad_() for p in start]
    optimizer = getattr(generated, name)(params, **options)
    # A slot that begins unset is there from the second step on: one more graph.
    graphs = 2 if name == "SGD" else 1
    assert frames(optimizer, params, grads, "aot_eager")[2:] == [graphs] * 6
    assert_close(expected, contents(optimizer))


@compiled
@every
def test_a_rate_that_is_a_tensor_changes_without_another_graph(name: str) -> None:
    start, grads = problem(name)
    results = []
    for form in ("plain", "compiled"):
        params = [p.clone().requires_grad_() for p in start]
        optimizer = getattr(generated, name)(params, lr=torch.tensor(0.1), foreach=False)
        counter = CompileCounterWithBackend("eager")
        step = (
            torch.compile(optimizer.step, backend=counter) if form == "compiled" else optimizer.step
        )
        for count, row in enumerate(grads):
            optimizer.param_groups[0]["lr"].fill_(0.1 * 0.9**count)
            for param, grad in zip(params, row, strict=True):
                param.grad = grad
            step()
        assert counter.frame_count == (form == "compiled")
        results.append(contents(optimizer))
    assert_close(*results)


@compiled
def test_a_whole_training_step_compiles_once() -> None:
    results = []
    for form in ("plain", "compiled"):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        inputs, targets = torch.randn(16, 4), torch.randn(16, 2)
        optimizer = generated.AdamW(model.parameters(), lr=torch.tensor(0.05), foreach=False)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)

        def step(model: Any = model, optimizer: Any = optimizer, *data: Tensor) -> Tensor:
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(model(data[0]), data[1])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            return loss

        counter = CompileCounterWithBackend("aot_eager")
        run = torch.compile(step, backend=counter) if form == "compiled" else step
        graphs = []
        for _ in range(6):
            run(model, optimizer, inputs, targets)
            schedule.step()
            graphs.append(counter.frame_count)
        assert len(set(graphs)) == 1
        results.append([p.detach() for p in model.parameters()])
    for expected, actual in zip(*results, strict=True):
        assert distance(expected, actual) <= ULPS


@compiled
@pytest.mark.parametrize("name", ["SGD", "NAdam", "ASGD"])
def test_plain_and_compiled_steps_continue_each_other(name: str) -> None:
    start, grads = problem(name)
    options = {"momentum": 0.9} if name == "SGD" else {}
    expected = trained(name, start, grads, **options, foreach=False)
    params = [p.clone().requires_grad_() for p in start]
    optimizer = getattr(generated, name)(params, **options)
    advance(optimizer, params, grads[:2])
    assert frames(optimizer, params, grads[2:5]) == [1, 1, 1]
    advance(optimizer, params, grads[5:])
    assert_close(expected, contents(optimizer))


@compiled
def test_groups_compile_together() -> None:
    start, grads = problem("Adam")
    groups = [{"lr": 0.1, "weight_decay": 0.1}, {"betas": (0.8, 0.9), "amsgrad": True}, {}]
    results = []
    for form in ("plain", "compiled"):
        params = [p.clone().requires_grad_() for p in start]
        optimizer = generated.Adam(
            [{"params": [p], **options} for p, options in zip(params, groups, strict=True)]
        )
        if form == "plain":
            advance(optimizer, params, grads)
        else:
            assert set(frames(optimizer, params, grads)) == {1}
        results.append(contents(optimizer))
    assert_close(*results)


@compiled
@pytest.mark.parametrize("name", [n for n in FUNCTIONAL if n not in NOT_TAKEN])
def test_complex_parameters_compile(name: str) -> None:
    start, grads = problem(name, torch.complex64)
    expected = trained(name, start, grads[:3], foreach=False)
    params = [p.clone().requires_grad_() for p in start]
    optimizer = getattr(generated, name)(params)
    assert set(frames(optimizer, params, grads[:3])) == {1}
    assert_close(expected, contents(optimizer))


@compiled
def test_closures_and_differentiable_steps_compile() -> None:
    param = torch.ones(2, requires_grad=True)
    optimizer = generated.SGD([param], lr=0.5)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (3 * param).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    loss = torch.compile(optimizer.step, backend="eager")(closure)
    assert loss == 6
    assert torch.equal(param, torch.full((2,), -0.5))

    lr = torch.tensor(0.1, requires_grad=True)
    plain = torch.ones(2)
    recorded = generated.Adam([plain], lr=lr, differentiable=True)
    step = torch.compile(recorded.step, backend="aot_eager")
    for _ in range(3):
        plain.grad = torch.ones(2)
        step()
    (gradient,) = torch.autograd.grad(plain.sum(), lr)
    # Each of 3 steps moves each of 2 elements by the rate.
    torch.testing.assert_close(gradient, torch.tensor(-6.0), rtol=1e-6, atol=0)


@compiled
def test_sparse_gradients_are_updated_beside_the_graph() -> None:
    results = []
    for form in ("plain", "compiled"):
        params = [torch.ones(4, requires_grad=True), torch.ones(3, requires_grad=True)]
        optimizer = generated.SGD([{"params": params[:1]}, {"params": params[1:]}], lr=0.1)
        step = (
            torch.compile(optimizer.step, backend="eager") if form == "compiled" else optimizer.step
        )
        for _ in range(2):
            params[0].grad = torch.tensor([0.0, 1.0, 0.0, 2.0]).to_sparse()
            params[1].grad = torch.ones(3)
            step()
        results.append(contents(optimizer))
    assert_close(*results)


@compiled
@pytest.mark.slow
@every
def test_inductors_kernels_follow_the_for_loop(name: str) -> None:
    start, grads = problem(name)
    expected = trained(name, start, grads, lr=0.02, foreach=False)
    params = [p.clone().requires_grad_() for p in start]
    optimizer = getattr(generated, name)(params, lr=torch.tensor(0.02))
    assert set(frames(optimizer, params, grads, "inductor")) == {1}
    found = contents(optimizer)
    if name == "Muon":  # its matrices are bfloat16, which inductor rounds in other places
        expected, found = ({k: v.bfloat16() for k, v in e.items()} for e in (expected, found))
    assert_close(expected, found)


# Captured steps


@every
def test_a_captured_step_without_a_kernel_reads_no_number_on_the_host(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors on the device `meta` have no elements: reading one raises."""
    monkeypatch.setattr(_optimizer, "_get_capturable_supported_devices", lambda: ["meta"])
    start, grads = problem(name)
    for options in choices(name):
        params = [p.to("meta") for p in start]
        optimizer = getattr(generated, name)(params, **options, capturable=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is no kernel
            advance(optimizer, params, [[g.to("meta") for g in row] for row in grads[:2]])
        slots = [v for p in params for v in optimizer.state[p].values()]
        assert all(slot.device.type == "meta" for slot in slots)


@every
def test_what_a_captured_step_computes_follows_the_for_loop(name: str) -> None:
    start, grads = problem(name)
    for options in choices(name):
        expected = trained(name, start, grads, **options, foreach=False)
        params = [p.clone() for p in start]
        optimizer = getattr(generated, name)(params, **options)
        for count, row in enumerate(grads):
            for param, grad in zip(params, row, strict=True):
                param.grad = grad
            step_without_branches(optimizer)
            if count == 0:
                # A graph that was captured writes where the slots were.
                slots = {id(v) for p in params for v in optimizer.state[p].values()}
        assert slots == {id(v) for p in params for v in optimizer.state[p].values()}
        assert_close(expected, contents(optimizer))
