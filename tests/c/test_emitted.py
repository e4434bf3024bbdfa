"""Kernels in C: they compile as fast loops, give torch's bits, and nothing but the elements decides
what becomes of an element."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import generated
from generated._tensors import number
from optdsl import interpret
from optdsl.emit import render
from optdsl.ops import TABLE, Call
from optdsl.parse import parse
from optdsl.resolve import resolve
from optdsl.source import Source
from optdsl.targets import c, program
from optdsl.targets.c.lower import TAKEN
from tests.c import kernels
from tests.c.kernels import FOLDER, Kernel, Stepper, call, compiled, kernel, kernel_for
from tests.random_specs import SMOOTH, spec_of, updates
from tests.triton.interpreted import oracle

pytestmark = kernels.needs_compiler

NAMES = sorted(path.stem for path in FOLDER.glob("[a-z]*.c"))
F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
DTYPES = (F32, BF16, F16, F64)
# The loops of a file, in the compiler's words.
VECTORISED = re.compile(r"(?P<file>\w+)\.c:(?P<line>\d+):\d+: optimized: loop vectorized")


def specialisations(name: str) -> Iterator[Kernel]:
    """Every combination of options in float32; the other dtypes, and slots of another dtype than
    the parameter's, with the first one."""
    found = kernels.program(name)
    text = FOLDER / f"{name}.c"
    every = list(kernels.flags(found))
    for flags in every:
        yield kernel(text, found, {"param": F32}, flags)
    for dtype in DTYPES[1:]:
        yield kernel(text, found, {"param": dtype}, every[0])
    yield kernel(text, found, {"param": BF16, **dict.fromkeys(found.SLOTS, F32)}, every[-1])


ALL = list(dict.fromkeys(one for name in NAMES for one in specialisations(name)))


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[Kernel, Any], list[str]]:
    folder = tmp_path_factory.mktemp("shipped")
    # Kernels that are equal but for their names are one, unless each is asked for.
    return compiled(ALL, folder, "-Werror", "-fopt-info-vec", "-fno-ipa-icf")


def test_every_kernel_compiles_without_a_warning_to_loops_of_full_vectors(
    everything: tuple[dict[Kernel, Any], list[str]],
) -> None:
    """The pass that updates is one loop over elements, with a copy for each value of its
    conditions; a pass that makes reductions may have none to make."""
    functions, said = everything
    assert len(functions) == len(ALL)
    found = [match for line in said if (match := VECTORISED.search(line))]
    for name in NAMES:
        text = (FOLDER / f"{name}.c").read_text()
        first = text[: text.rindex("SIMD\n")].count("\n") + 1
        copies = 2 ** text[text.rindex("static void LOCAL(update)") :].count("FIX(")
        loops = [m for m in found if m["file"] == name and int(m["line"]) >= first]
        assert len(loops) == copies * sum(one.text.stem == name for one in ALL), name


def test_averages_and_optimizers_with_a_kernel_have_one_in_c() -> None:
    triton = {path.stem for path in (FOLDER.parent / "_triton").glob("[a-z]*.py")}
    programs = {path.stem for path in (FOLDER.parent / "_programs").glob("[a-z]*.py")}
    assert set(NAMES) == triton == programs


# Meaning: `test_steps.py` has the rest

FUSED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("AdamW", {}),
    ("AdamW", {"amsgrad": True, "maximize": True}),
    ("Adam", {"weight_decay": 0.01}),
    ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ("SGD", {}),
    ("Adagrad", {"lr_decay": 0.01}),
    ("Adagrad", {"weight_decay": 2**-6, "eps": 2**-10}),
)


def differing(ours: Any, theirs: Any, function: Any, rounded: bool) -> int:
    """How many bits' patterns differ after some steps of both, in parameters and slots. Of each
    tensor torch takes the last `numel % 16` elements one by one, and rounds them otherwise. With
    `rounded`, its parameters and slots are rounded to ours after each step."""
    mine, others = (o.param_groups[0]["params"] for o in (ours, theirs))
    stepper = Stepper(ours, function)
    pairs = []
    for _ in range(10):
        oracle.give_gradients(mine)
        for param, other in zip(mine, others, strict=True):
            other.grad = param.grad.to(other.dtype, copy=True)
        stepper.step(threads=2)
        theirs.step()
        pairs = list(zip(mine, others, strict=True))
        for param, other in tuple(pairs):
            state = theirs.state[other]
            pairs += [(ours.state[param][n], v) for n, v in state.items() if n != "step"]
        if rounded:
            for one, other in pairs:
                other.data.copy_(other.to(one.dtype))
    whole = [(a, b, a.numel() // 16 * 16) for a, b in pairs]
    return sum(int((a[:n].to(b.dtype) != b[:n]).sum()) for a, b, n in whole)


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_bits_are_those_of_torchs_fused_optimizers(dtype: torch.dtype, tmp_path: Path) -> None:
    """In 16 bits, torch's fused SGD leaves most parameters as they are, and its Adagrad rounds
    hyperparameters to the parameters' dtype: the one is held against float32, the other has
    hyperparameters that are such numbers."""
    cases = []
    for name, options in FUSED:
        params = [torch.randn(n).to(dtype) for n in (100_003, 4096, 1000, 33, 16)]
        narrow = dtype is not F32 and name == "SGD"
        if dtype is not F32 and "lr_decay" in options:
            continue
        theirs = getattr(torch.optim, name)(
            [p.to(F32 if narrow else dtype, copy=True) for p in params],
            lr=2**-7, fused=True, **options,
        )  # fmt: skip
        ours = getattr(generated, name)(params, lr=2**-7, **options)
        cases.append((ours, theirs, narrow))
    functions, _ = compiled(list({kernel_for(ours) for ours, _, _ in cases}), tmp_path)
    for ours, theirs, narrow in cases:
        assert differing(ours, theirs, functions[kernel_for(ours)], narrow) == 0, ours


# What decides nothing


def pieces(tensors: list[Tensor], sizes: list[int], shift: int) -> list[list[Tensor]]:
    """Each tensor in parts of the given sizes, each of which begins `shift` elements behind an
    aligned address."""
    cut = [t.split(sizes) for t in tensors]
    return [[torch.cat([p.new_zeros(shift), p])[shift:] for p in parts] for parts in cut]


@pytest.mark.parametrize("more", [(), ("-U__AVX512BW__",)], ids=["vectors", "memcpy"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_alignment_and_place_decide_nothing(
    dtype: torch.dtype, more: tuple[str, ...], tmp_path: Path
) -> None:
    """Whichever way the ends of tensors are copied."""
    found = kernels.program("adam")
    one = kernel(
        FOLDER / "adam.c",
        found,
        {"param": dtype},
        {"AMSGRAD": True, "DECOUPLED_WEIGHT_DECAY": False},
    )
    functions, _ = compiled([one], tmp_path, *more)
    sizes = [1, 0, 700_001, 7, 31, 32, 33, 255, 256, 257, 600_000, 0]
    torch.manual_seed(0)
    whole = [torch.rand(sum(sizes), dtype=torch.float64).to(dtype) for _ in range(5)]
    row = found.scalars(0.01, 0.9, 0.99, 1e-8, 0.125, 3.0)

    def updated(tensors: list[list[Tensor]], threads: int) -> list[Tensor]:
        call(functions[one], tensors, [row], threads=threads)
        return [torch.cat(parts) for parts in tensors]

    expected = updated([[t.clone()] for t in whole], 1)
    assert not any(torch.equal(a, b) for a, b in zip(expected[2:], whole[2:], strict=True))
    for shift, threads in ((0, 1), (1, 2), (3, 3), (0, 16)):
        for parts in (sizes, sizes[::-1]):
            results = updated(pieces(whole, parts, shift), threads)
            assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("name", ["sgd", "lars"])
def test_tensors_without_elements_are_nothing_to_do(name: str, tmp_path: Path) -> None:
    """Nor are none at all: whatever the number of threads."""
    found = kernels.program(name)
    one = kernel(FOLDER / f"{name}.c", found, {"param": F32}, next(kernels.flags(found)))
    functions, _ = compiled([one], tmp_path)
    row = [1.0] * found.COLUMNS
    for count, threads in itertools.product((0, 1, 5), (1, 2, 7)):
        tensors = [[torch.zeros(0)] * count for _ in range(3)]
        call(functions[one], tensors, [row], threads=threads, reductions=found.REDUCTIONS)


def test_nothing_is_written_outside_of_a_tensor(tmp_path: Path) -> None:
    found = kernels.program("sgd")
    kinds = [
        kernel(
            FOLDER / "sgd.c",
            found,
            {"param": dtype},
            {"HAS_MOMENTUM_BUFFER": True, "NESTEROV": False},
        )
        for dtype in DTYPES
    ]
    functions, _ = compiled(kinds, tmp_path)
    for one, dtype in zip(kinds, DTYPES, strict=True):
        for size in (0, 1, 31, 33, 257):
            room = [torch.ones(size + 128, dtype=dtype) for _ in range(3)]
            inside = [[t[64 : 64 + size]] for t in room]
            row = found.scalars(0.1, 0.9, 0.0, 0.0, False)
            call(functions[one], inside, [row])
            for outside in (t[m] for t in room for m in (slice(0, 64), slice(64 + size, None))):
                assert (outside == 1).all()
            assert (inside[0][0] != 1).all()


# Storage

EVERY_HALF = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)


def copied(params: Tensor, grads: Tensor, folder: Path) -> Tensor:
    """The gradients, stored as the parameters are: what an average makes of the first model."""
    found = kernels.program("swa")
    one = kernel(FOLDER / "swa.c", found, {"param": params.dtype, "grad": grads.dtype}, {})
    functions, _ = compiled([one], folder)
    call(functions[one], [[params], [grads]], [found.scalars(0)])
    return params


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_narrow_numbers_are_read_and_written_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    every = EVERY_HALF.view(dtype)
    wide = copied(torch.zeros(len(every)), every, tmp_path)
    assert torch.equal(wide.nan_to_num(7), every.float().nan_to_num(7))
    same = copied(torch.zeros_like(every), every, tmp_path)
    assert torch.equal(same.isnan(), every.isnan())
    assert torch.equal(same[~every.isnan()].view(torch.int16), EVERY_HALF[~every.isnan()])


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_numbers_are_rounded_to_the_nearest_narrow_one(dtype: torch.dtype, tmp_path: Path) -> None:
    """Each narrow number, what lies just beside it, what lies in the middle of two, just beside
    that; NaNs with every payload of one bit."""
    shift = 16 if dtype is BF16 else 13
    bits = EVERY_HALF.view(dtype).float().view(torch.int32)
    steps = [0, 1, -1, 2 ** (shift - 1), 2 ** (shift - 1) - 1, 2 ** (shift - 1) + 1]
    nans = [0x7F800000 | 1 << place for place in range(23)] + [0x7FFFFFFF, -1]
    wide = torch.cat([*(bits + step for step in steps), torch.tensor(nans, dtype=torch.int32)])
    values = wide.view(F32)
    found = copied(torch.zeros(len(values), dtype=dtype), values, tmp_path)
    expected = values.to(dtype)
    assert torch.equal(found.isnan(), expected.isnan())
    number = ~expected.isnan()
    assert torch.equal(found[number].view(torch.int16), expected[number].view(torch.int16))


def test_a_number_that_is_nan_reaches_every_element(tmp_path: Path) -> None:
    """Two elements in a word have no test for NaN: numbers of the table have no payload."""
    found = kernels.program("sgd")
    one = kernel(
        FOLDER / "sgd.c", found, {"param": BF16}, {"HAS_MOMENTUM_BUFFER": False, "NESTEROV": False}
    )
    functions, _ = compiled([one], tmp_path)
    nan = np.array([-1], np.int64).view(np.float64)[0].item()
    params = torch.ones(40, dtype=BF16)
    call(
        functions[one],
        [[params], [torch.ones(40, dtype=BF16)], [None]],
        [found.scalars(nan, 0, 0, 0, False)],
    )
    assert params.isnan().all()


# Names


HEADERS = {path.name: path.read_text() for path in FOLDER.glob("*.h")}


@pytest.mark.parametrize(
    "name", ["flag", "chunk", "block", "null", "bf16", "lanes", "operand", "t"]
)
def test_an_option_with_a_name_of_the_headers_has_no_kernel(name: str) -> None:
    text = spec_of("if flag { a = grad }").replace("flag", name)
    (spec,), _ = resolve([parse(Source("random.opt", text))])
    assert (c.lower(spec) is None) == (name != "flag")


def test_c_spellings_name_functions_of_the_headers_or_of_c() -> None:
    defined = set(re.findall(r"\b(?:N\()?(\w+)\)?\([^()]*\)\n\{", "\n".join(HEADERS.values())))
    math_h = {"pow", "sqrt", "exp", "log", "sin", "cos", "fabs", "floor"}
    called = {row.c.name for row in TABLE if isinstance(row.c, Call)}
    assert called <= defined | math_h
    assert called | defined <= TAKEN


def lowered(text: str, folder: Path, name: str) -> tuple[Any, Path, Any]:
    """A spec, its kernel's text, and its program."""
    (spec,), _ = resolve([parse(Source("random.opt", text))])
    path = folder / f"{name}.c"
    path.write_text(render("c.c.jinja", c.lower(spec)))
    names: dict[str, Any] = {"__package__": "generated._programs", "__name__": name}
    exec(render("program.py.jinja", program.lower(spec)), names)
    return (
        spec,
        path,
        type("Program", (), {k: staticmethod(v) if callable(v) else v for k, v in names.items()}),
    )


def check(cases: list[tuple[str, bool]], folder: Path, tolerance: float) -> int:
    """In float64, where kernel and reference differ by the roundings of contracted nodes alone. The
    result says how many programs have kept their numbers small enough to tell."""
    found = [(*lowered(text, folder, f"random_{i}"), flag) for i, (text, flag) in enumerate(cases)]
    all_kernels = [
        kernel(path, p, {"param": F64}, {n.upper(): flag for n in p.OPTIONS})
        for _, path, p, flag in found
    ]
    functions, _ = compiled(all_kernels, folder)
    told = 0
    for (spec, _, scalar, flag), one in zip(found, all_kernels, strict=True):
        hypers = {"c": 0.3, "d": 0.7, "flag": flag}
        generator = torch.Generator().manual_seed(7)
        param, grad = (torch.randn(37, dtype=F64, generator=generator) for _ in range(2))
        tensors = {"a": torch.zeros_like(param), "b": torch.full_like(param, 0.3)}
        expected, state, step = param.numpy().copy(), None, 0.0
        for _ in range(2):
            inputs = map(number, scalar.inputs(hypers, param, frozenset()))
            row = scalar.scalars(*inputs, *[step] * len(scalar.SCALAR_SLOTS))
            call(functions[one], [[param], [grad], *([tensors[n]] for n in scalar.SLOTS)], [row])
            expected, state = interpret.step(spec, hypers, expected, grad.numpy(), state)
            step = row[-1]
        wanted = (expected, state["a"])
        if all(np.isfinite(w).all() and np.abs(w).max() < 1e6 for w in wanted):
            told += 1
            for got, want in zip((param, tensors["a"]), wanted, strict=True):
                np.testing.assert_allclose(got.numpy(), want, rtol=tolerance, atol=tolerance)
    return told


REDUCTIONS = ("norm(", "mean(", "dot(", "sum(", "max_abs(")
ELEMENTWISE = tuple(p for p in SMOOTH if not any(name in p for name in REDUCTIONS))
LENIENT = settings(
    deadline=None, suppress_health_check=list(HealthCheck), max_examples=2, phases=[Phase.generate]
)


@LENIENT
@given(st.lists(st.tuples(updates(ELEMENTWISE), st.booleans()), min_size=30, max_size=30))
def test_kernels_of_random_updates_mean_what_the_interpreter_computes(
    tmp_path_factory: pytest.TempPathFactory, cases: list[tuple[str, bool]]
) -> None:
    assert check(cases, tmp_path_factory.mktemp("random"), 1e-7) > 0


PLACES = (
    # Names that C or the template uses itself.
    """let int = 0.5 * grad
        let size = int + a
        let a_cell = size * c
        let STEP = a_cell + d
        let at = 1 - c ** step
        if flag {
            let lane = size + b
            a = lane
        }
        a = STEP * at + b""",
    """let linux = grad
        let volatile = linux * 2
        let real = volatile - linux
        let first = real + a
        let pow = first + 1
        let fma = pow * 2
        a = fma - abs(pow) ** 2 * 0.125""",
    # Numbers are of the type of arithmetic, and signs two operators.
    "a = max(0.1, b) * min(grad, 0.3)",
    "a = 1 / (2 + grad * grad) - 0.1 / 3 * b",
    "a = -(-grad) - -b",
    "a = b - (-0.1) * grad",
    "a = where(grad > 0, 1, 2) / where(grad > 1, 2, 3)",
    "a = where(grad > 0 and not (b > 0.2) or grad < -1, 0.1, 0.3) * b",
    "a = lerp(a, grad, 0.1) + lerp(grad, b, 0.7)",
    "a = rsqrt(abs(b) + 0.1) + sin(grad) * cos(b) + floor(3 * grad) + sign(b) + log(abs(grad))",
    "a = abs(b) ** 0.1 * 0.9 ** abs(grad)",
    "a = where(step > 1, grad, b)",
    "a = 0.3\n        a = a + grad",
    "let k = step > 5\n        if step > 1 { k = true }\n        if k { a = grad }",
    "let m = grad > 0\n        a = where(m, b, grad) + (grad > 0)",
)


def test_names_numbers_and_operators_mean_in_c_what_they_mean_in_a_spec(tmp_path: Path) -> None:
    cases = [(spec_of(place), flag) for place in PLACES for flag in (False, True)]
    assert check(cases, tmp_path, 1e-12) == len(cases)


def test_statements_stand_under_the_words_of_the_author() -> None:
    text = (FOLDER / "adam.c").read_text()
    place = text.index("// exp_avg = lerp(exp_avg, grad, 1 - beta1)")
    following = text[place:].splitlines()[1].strip()
    assert following == "exp_avg = lerp(exp_avg, grad, one_minus_beta1);"
