"""Random programs over the whole language mean one thing: both in-place updates give the same bits,
and the bits of a for-loop that never shares or reuses a tensor; the interpreter, every rewrite of
the program and the update out of place agree in float64. No step writes a gradient, and nothing in
the state shares storage."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from optdsl import interpret, passes
from optdsl.diagnostics import SpecError
from optdsl.emit import render
from optdsl.ir import Expr, Ref, Spec
from optdsl.parse import parse
from optdsl.passes.specialise import specialise
from optdsl.resolve import resolve
from optdsl.source import Source
from optdsl.targets import eager, foreach, functional, module, triton
from optdsl.targets.eager.lower import Eager
from optdsl.targets.eager.view import View
from optdsl.targets.imports import with_imports
from optdsl.targets.layout import indented
from optdsl.targets.torch_code import Lines, unpack
from tests.random_programs import program
from tests.test_functional import step_without_branches

# Two of one shape, so that lists have two; some lack a gradient in a step, and fall behind.
SHAPES = ((4, 3), (5,), (), (2, 4), (4, 3), (1, 1))
STEPS = 3
QUICK, MANY = range(40), range(40, 4040)
# Contracted nodes and expressions without them round differently, which steps may enlarge.
TOLERANCE = 1e-8

Trained = list[dict[str, Tensor]]


class Careful(Eager):
    """A for-loop in which every value is a tensor of its own and nothing is changed in place but
    what is stored, as a whole."""

    def in_place(self, name: str, value: Expr, last: bool = True) -> list[str] | None:
        return [] if isinstance(value, Ref) and value.name == name else None

    def bind(self, name: str, value: Expr, copy: bool, indent: int) -> tuple[Lines, bool]:
        return (f"{name} = ({self.value(value)}).clone()",), False

    def store(self, name: str, value: Expr, indent: int) -> Lines:
        return (f"{name}.copy_(({self.value(value)}).clone())",)


def resolved(text: str) -> Spec:
    (spec,), _ = resolve([parse(Source("random.opt", text))])
    assert isinstance(spec, Spec)
    return spec


def optimizer_of(spec: Spec, careful: bool = False) -> Any:
    """The class that the spec becomes."""
    sections = [render("module.py.jinja", module.lower(spec))]
    if careful:
        sections.append(render("eager.py.jinja", carefully(spec)))
    else:
        for target in (eager, foreach, functional):
            view = target.lower(spec)
            name = target.__name__.rsplit(".", 1)[1]
            sections += [] if view is None else [render(f"{name}.py.jinja", view)]
    names: dict[str, Any] = {"__package__": "generated", "__name__": "generated.random"}
    code = with_imports("".join(sections), {})
    exec(compile(code, "<random program>", "exec", dont_inherit=True), names)
    return names[spec.name]


def carefully(spec: Spec) -> View:
    spec = passes.optimise(spec)
    writer = Careful(spec)
    return View(
        unpack=indented(unpack(spec), 2),
        advances=indented(writer.advances(), 2),
        loop=indented(writer.loop(), 2),
        body=indented(writer.body(), 3),
    )


def problem(seed: int, dtype: torch.dtype) -> tuple[list[Tensor], list[list[Tensor | None]]]:
    """Parameters, and for each step their gradients, of which some are missing."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64

    def draw(shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), dtype=wide, generator=generator).to(dtype)

    random = Random(seed)
    params = [draw(shape) for shape in SHAPES]
    grads = [[None if random.randrange(6) == 0 else draw(s) for s in SHAPES] for _ in range(STEPS)]
    return params, grads


def trained(
    optimizer: Any, seed: int, dtype: torch.dtype, widen: bool = False, traced: bool = False,
    **arguments: Any,
) -> Trained:  # fmt: skip
    """The parameters and slots after some steps; with `widen` some slots become float64."""
    params, grads = problem(seed, dtype)
    instance = optimizer(params, **arguments)
    for number, row in enumerate(grads):
        given = [None if grad is None else grad.clone() for grad in row]
        for param, grad in zip(params, row, strict=True):
            param.grad = grad
        for param in params[::2] if widen and number == 1 else ():
            state = instance.state[param]
            state.update({k: state[k].double() for k in ("a", "b", "out") if k in state})
        versions = [None if grad is None else grad._version for grad in row]
        step_without_branches(instance) if traced else instance.step()
        assert [None if grad is None else grad._version for grad in row] == versions
        for before, after in zip(given, row, strict=True):
            if before is not None:
                torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)
        assert_nothing_shared(instance, params)
    return [{"param": param.detach(), **instance.state[param]} for param in params]


def assert_nothing_shared(instance: Any, params: list[Tensor]) -> None:
    """No two of parameters, gradients and slots have a byte in common."""
    kept = [(f"param {n}", param) for n, param in enumerate(params)]
    kept += [(f"grad {n}", p.grad) for n, p in enumerate(params) if p.grad is not None]
    for number, param in enumerate(params):
        kept += [(f"{k} of {number}", v) for k, v in instance.state[param].items()]
    places = sorted(
        (tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size(), name)
        for name, tensor in kept
        if isinstance(tensor, Tensor)
    )
    for (_, end, name), (begin, _, other) in itertools.pairwise(places):
        assert end <= begin, f"{name} and {other} share storage"


def assert_same(one: Trained, other: Trained, tolerance: float = 0.0) -> None:
    for here, there in zip(one, other, strict=True):
        assert here.keys() == there.keys()
        for name in here:
            torch.testing.assert_close(
                torch.as_tensor(there[name]).detach(), torch.as_tensor(here[name]).detach(),
                rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}",
            )  # fmt: skip


def explodes(result: Trained) -> bool:
    """Such a program says nothing about rounding."""
    tensors = [torch.as_tensor(value) for row in result for value in row.values()]
    return not all(bool((tensor.abs() < 1e6).all()) for tensor in tensors)


def assert_means(spec: Spec, result: Trained, seed: int, flag: bool) -> None:
    """What the interpreter computes, parameter by parameter."""
    hypers: dict[str, Any] = {}
    for hyper in spec.hypers:
        if hyper.components:
            hypers[hyper.name] = tuple(interpret.evaluate(part, {}) for part in hyper.parts)
        elif hyper.default is not None:
            hypers[hyper.name] = interpret.evaluate(hyper.default, {})
    params, grads = problem(seed, torch.float64)
    for index, row in enumerate(result):
        param, state = params[index].numpy(), None
        for step in grads:
            grad = step[index]
            if grad is not None:
                values = {**hypers, "flag": flag}
                param, state = interpret.step(spec, values, param, grad.numpy(), state)
        for name, expected in {"param": param, **(state or {})}.items():
            got = np.asarray(row[name].numpy() if isinstance(row[name], Tensor) else row[name])
            np.testing.assert_allclose(
                got, np.broadcast_to(expected, got.shape), rtol=TOLERANCE, atol=TOLERANCE
            )


@pytest.fixture
def in_float64() -> Iterator[None]:
    """Scalar slots take the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def mixes_dtypes(error: RuntimeError, text: str) -> bool:
    """torch has no product of matrices of two dtypes, and no `lerp`: the author asked for it."""
    return "cast(" in text and "dtype" in str(error)


def check_bits(seed: int) -> None:
    text, random = program(Random(seed)), Random(seed)
    try:
        spec = resolved(text)
        optimizer, careful = optimizer_of(spec), optimizer_of(spec, careful=True)
    except SpecError:
        return  # complex arithmetic behind real, for the most part
    options: dict[str, Any] = {"flag": random.random() < 0.5, "maximize": random.random() < 0.3}
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
    dtypes += [torch.complex64] if optimizer.supports_complex else []
    for dtype in dtypes:
        try:
            one = trained(optimizer, seed, dtype, **options, foreach=False)
            assert_same(one, trained(optimizer, seed, dtype, **options, foreach=True))
            assert_same(one, trained(careful, seed, dtype, **options, foreach=False))
            if dtype in (torch.float32, torch.bfloat16):
                wide = trained(optimizer, seed, dtype, widen=True, **options, foreach=False)
                lists = trained(optimizer, seed, dtype, widen=True, **options, foreach=True)
                assert_same(wide, lists)
        except RuntimeError as error:
            if not mixes_dtypes(error, text):
                raise


def check_meaning(seed: int) -> None:
    # The interpreter rounds to nothing but float64.
    text = program(Random(seed)).replace("float32)", "float64)").replace("bfloat16)", "float64)")
    random = Random(seed)
    try:
        spec = resolved(text)
        optimizer = optimizer_of(spec)
    except SpecError:
        return
    flag = random.random() < 0.5
    one = trained(optimizer, seed, torch.float64, flag=flag, foreach=False)
    if explodes(one):
        return
    optimised = passes.optimise(spec)
    rewritten = [spec, optimised, passes.for_expressions(spec), specialise(spec, {"flag": flag})]
    if triton.lower(spec) is not None:
        rewritten.append(passes.for_kernels(optimised))
    for form in rewritten:
        assert_means(form, one, seed, flag)
    recorded = trained(optimizer, seed, torch.float64, flag=flag, differentiable=True)
    assert_same(one, recorded, TOLERANCE)
    assert_same(one, trained(optimizer, seed, torch.float64, flag=flag, traced=True), TOLERANCE)
    if optimizer.supports_complex:
        parts = trained(optimizer, seed, torch.complex128, flag=flag, foreach=False)
        if not explodes(parts):
            traced = trained(optimizer, seed, torch.complex128, flag=flag, traced=True)
            assert_same(parts, traced, TOLERANCE)


@pytest.mark.parametrize("seed", QUICK)
def test_updates_in_place_give_the_same_bits_and_share_nothing(seed: int) -> None:
    check_bits(seed)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("seed", QUICK)
def test_all_forms_of_a_program_follow_the_interpreter(seed: int) -> None:
    check_meaning(seed)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_many_updates_in_place_give_the_same_bits_and_share_nothing() -> None:
    for seed in MANY:
        check_bits(seed)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.usefixtures("in_float64")
def test_all_forms_of_many_programs_follow_the_interpreter() -> None:
    for seed in MANY:
        check_meaning(seed)


COMPLEX = """
optimizer Random {{
    hyper d = 0.7
    option flag = false
    {clause}
    state s = 0
    state a = zeros_like(param)
    update {{
        {statements}
    }}
}}
"""


@pytest.mark.parametrize(
    ("clause", "statements"),
    [
        # The step changes the parameter alone, and reads nothing else.
        ("complex decay, descend", "a = a + grad * grad\n descend 0.1 * param"),
        # What is real there reads the parameter, and its dtype.
        ("complex decay, descend", "a = max(a, param) + (grad > 0)\n descend d * a"),
        ("complex decay, descend", "a = where(grad > 0, 1, 0.5) * grad\n a += 1\n descend d * a"),
        # A number that is read from a tensor's parts.
        ("", "s = host(mean(grad)) + 1\n descend d * s * grad"),
        ("", "if host(mean(grad)) > 0 { grad *= 2 }\n descend d * grad"),
    ],
)
def test_complex_numbers_and_their_parts_are_not_mixed(clause: str, statements: str) -> None:
    optimizer = optimizer_of(resolved(COMPLEX.format(clause=clause, statements=statements)))
    one = trained(optimizer, 3, torch.complex128, foreach=False)
    assert_same(one, trained(optimizer, 3, torch.complex128, foreach=True))
    assert_same(one, trained(optimizer, 3, torch.complex128, traced=True), TOLERANCE)
    # What is linear in parts alone has their bits in either arithmetic.
    parts = optimizer_of(resolved(COMPLEX.format(clause="complex none", statements=statements)))
    assert_same(one, trained(parts, 3, torch.complex128, foreach=False), 1e-12)


@pytest.mark.parametrize(
    "statements",
    [
        "a = a + grad * grad\n descend d * norm(a) * a",
        "a = a + grad * grad\n descend d * a\n a = a * a",
        "a = a + grad * grad\n descend d * a\n descend d * grad",
        "let mask = grad > 0\n descend mask",
    ],
)
def test_a_complex_step_that_has_no_meaning_is_refused(statements: str) -> None:
    text = COMPLEX.format(clause="complex decay, descend", statements=statements)
    with pytest.raises(SpecError, match=r"complex step"):
        optimizer_of(resolved(text))


def test_an_integer_stays_one_in_the_state_of_recorded_steps() -> None:
    text = COMPLEX.format(clause="state n: int = 0", statements="n += 1\n descend d / n * grad")
    optimizer = optimizer_of(resolved(text))
    for state in trained(optimizer, 3, torch.float32, differentiable=True):
        assert type(state["n"]) is int


@pytest.mark.usefixtures("in_float64")
def test_a_slot_takes_the_number_that_another_had_before_the_step() -> None:
    statements = "p = s if d > 0.5 else p\n s -= 2\n descend d * (s + 3 * p) * grad"
    optimizer = optimizer_of(resolved(COMPLEX.format(clause="state p = 1", statements=statements)))
    one = trained(optimizer, 3, torch.float64, foreach=False)
    assert_same(one, trained(optimizer, 3, torch.float64, traced=True), TOLERANCE)
    assert_same(one, trained(optimizer, 3, torch.float64, differentiable=True), TOLERANCE)
