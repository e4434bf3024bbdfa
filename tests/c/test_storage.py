"""Policies in C: what a kernel stores and reads, bit for bit as `_precision` defines it.

The kernels copy the gradient into the parameter and a slot, and both, as they were, into two other
slots. So a call shows one rounding and one reading of arbitrary numbers.
"""

from __future__ import annotations

import ctypes
import itertools
import subprocess
from typing import Any

import pytest
import torch
from torch import Tensor

from generated import _precision
from generated._fused import _cpu
from optdsl.emit import render
from optdsl.parse import parse
from optdsl.resolve import resolve
from optdsl.source import Source
from optdsl.targets import c
from tests.c.kernels import (
    COMPILER,
    FLAGS,
    FOLDER,
    Kernel,
    call,
    compiled,
    needs_compiler,
)
from tests.reference import same_bits
from tests.test_precision import any_floats, drawn

pytestmark = needs_compiler

COPY = """
optimizer Copy {
    hyper factor_of_gradients = 1.0
    state was = zeros_like(param)
    state held = zeros_like(param)
    state found = zeros_like(param)
    update {
        was = param
        found = held
        param = factor_of_gradients * grad
        held = param
    }
}
"""
# How the parameter and the slot `held` are stored.
PARAMS = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    **{f"BF16{policy}": torch.bfloat16 for policy in "SKM"},
    **{f"F16{policy}": torch.float16 for policy in "SKM"},
}
HELD = ("F32", "BF16", "BF16S", "Q8")
GRADS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
STREAM, DRAW = _precision.stream(5, 3), 77


def constants(param: str, held: str, grad: str) -> tuple[tuple[str, Any], ...]:
    # Without slots of 32 bits, two elements of 16 bits share a word.
    wide = "BF16" if grad == "BF16" and held != "F32" else "F32"
    types = {"PARAM": param, "HELD": held, "GRAD": grad, "WAS": wide, "FOUND": wide}
    return ("COMPUTE", "float"), *((f"{name}_TYPE", type) for name, type in types.items())


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Any]:
    folder = tmp_path_factory.mktemp("kernels")
    (spec,), _ = resolve([parse(Source("copy.opt", COPY))])
    view = c.lower(spec)
    assert view is not None
    text = folder / "copy.c"
    text.write_text(render("c.c.jinja", view), encoding="utf-8")
    cases = list(itertools.product(PARAMS, HELD, GRADS))
    functions, said = compiled([Kernel(text, constants(*case)) for case in cases], folder)
    assert said == []
    return dict(zip(cases, functions.values(), strict=True))


def copy(function: Any, tensors: list[list[Tensor | None]], threads: int = 1) -> None:
    """Run a kernel. `tensors` has a list for each tensor of the batch: the parameter, the gradient,
    the slots, the second tensor of the parameter, the scales of the slots."""
    columns = list(zip(*tensors, strict=True))
    stream = [STREAM + i for i in range(len(tensors))]
    call(
        function, columns[:5], [[1.0]], threads=threads, more=columns[5:], stream=stream, draw=DRAW
    )


def at(tensor: Tensor, offset: int) -> Tensor:
    """A copy that begins `offset` elements behind an aligned place."""
    room = torch.empty(tensor.numel() + offset, dtype=tensor.dtype)
    return room[offset:].copy_(tensor)


def bits(store: int, like: Tensor, index: int = 0) -> Tensor:
    return _precision.random_bits(_precision.key(STREAM + index, DRAW, store), like)


def expected_param(type: str, x: Tensor, index: int = 0) -> tuple[Tensor, Tensor | None]:
    """A parameter and its second tensor."""
    dtype = PARAMS[type]
    match type[-1]:
        case "S":
            return _precision.rounded(x, dtype, bits(0, x, index)), None
        case "K":
            return _precision.split(x, dtype)
        case "M":
            return x.to(dtype), x
        case _:
            return x.to(dtype), None


def expected_held(type: str, x: Tensor, index: int = 0) -> tuple[Tensor, Tensor | None]:
    """The slot and its scales."""
    match type:
        case "Q8":
            return _precision.encode(x, bits(2, x, index))
        case "BF16S":
            return _precision.rounded(x, torch.bfloat16, bits(2, x, index)), None
        case "BF16":
            return x.bfloat16(), None
        case _:
            return x, None


def read(stored: Tensor, second: Tensor | None) -> Tensor:
    if second is None:
        return stored.float()
    if second.dtype == torch.int16:
        return _precision.joined(stored, second)
    if stored.dtype == torch.uint8:
        return _precision.decode(stored, second)
    return _precision.current(stored, second)


def numbers(held: str) -> Tensor:
    """Numbers of all kinds; in blocks of 256 those that differ by little, and some special ones."""
    if held != "Q8":
        return any_floats(4096)
    blocks = [drawn(20), drawn(40, signed=False), drawn(3, 700), any_floats(300)]
    return torch.cat([blocks[0], torch.zeros(512), *blocks[1:]])


@pytest.mark.parametrize("grad", GRADS)
@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("param", PARAMS)
def test_kernels_store_and_read_as_defined(
    kernels: dict[tuple[str, ...], Any], param: str, held: str, grad: str
) -> None:
    wide = torch.bfloat16 if grad == "BF16" and held != "F32" else torch.float32
    every = numbers(held).to(GRADS[grad])
    for size, offset in ((len(every), 0), (len(every) - 5, 3), (31, 1), (1, 0), (256, 7), (0, 0)):
        given = at(every[len(every) - size :], offset)
        x = given.float()
        old = any_floats(size)[:size]
        value, second = expected_param(param, old)
        slot, scales = expected_held(held, drawn(9, max(size, 1))[:size])
        tensors = [
            None if t is None else at(t, offset)
            for t in (value, given, old.to(wide), slot, old.to(wide), second, None, scales, None)
        ]
        copy(kernels[param, held, grad], [tensors])
        new_value, _, was, new_slot, found, new_second, _, new_scales, _ = tensors
        assert was is not None
        assert found is not None
        assert same_bits(was, read(value, second).to(wide))
        assert same_bits(found, read(slot, scales).to(wide))
        for actual, expected in zip(
            (new_value, new_second, new_slot, new_scales),
            (*expected_param(param, x), *expected_held(held, x)),
            strict=True,
        ):
            assert (actual is None) == (expected is None)
            if actual is not None and expected is not None:
                assert same_bits(expected, actual)


@pytest.mark.parametrize("held", ["BF16S", "Q8"])
def test_bits_depend_on_neither_threads_nor_places_nor_company(
    kernels: dict[tuple[str, ...], Any], held: str
) -> None:
    """Alone or in a batch, by one thread or three, which cut the tensors into chunks."""
    found = []
    for threads in (1, 3):
        tensors: list[list[Tensor | None]] = []
        for index, size in enumerate((700_001, 0, 300, 65_537)):
            x = drawn(6, max(size, 1))[:size]
            slot, scales = expected_held(held, x)
            value = torch.zeros(size, dtype=torch.bfloat16)
            row = (value, x, x.clone(), slot, x.clone(), None, None, scales, None)
            tensors.append([None if t is None else at(t, index) for t in row])
        copy(kernels["BF16S", held, "F32"], tensors, threads)
        found.append(tensors)
        for index, (value, x, _, slot, _, _, _, scales, _) in enumerate(tensors):
            assert value is not None
            assert x is not None
            assert slot is not None
            assert same_bits(expected_param("BF16S", x, index)[0], value)
            codes, largest = expected_held(held, x, index)
            assert same_bits(codes, slot)
            assert scales is None or (largest is not None and same_bits(largest, scales))


WORDS = """
#define KERNEL unused
#define COMPUTE float
#include "kernel.h"

void words(const struct batch *batch, int64_t first, int64_t row, int64_t count, uint32_t *into)
{
    const struct piece piece = {batch, 0, first, count};
    const struct key key = key_of(&piece, row);
    for (int64_t i = 0; i < count; i++)
        into[i] = word_of(key, (uint32_t)(first + i));
}

static int64_t *next_piece;

static void note(const struct piece *piece)
{
    *next_piece++ = piece->first;
    *next_piece++ = piece->count;
}

void pieces(const struct batch *batch, int64_t from, int64_t to, int64_t *into)
{
    next_piece = into;
    update_chunk(batch, 0, from, to, note);
}
"""


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("header")
    text, shared = folder / "words.c", folder / "words.so"
    text.write_text(WORDS, encoding="utf-8")
    command = [str(COMPILER), *FLAGS, "-shared", f"-I{FOLDER}", str(text), "-o", str(shared)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(shared))


@pytest.mark.parametrize("first", [0, 256, (1 << 32) - 256, 1 << 32, 5 << 32])
@pytest.mark.parametrize("row", [0, 2, 5])
def test_random_words_are_those_of_the_element(header: ctypes.CDLL, first: int, row: int) -> None:
    """Also where a tensor has more elements than 32 bits can count."""
    into = torch.empty(256, dtype=torch.int32)
    stream = ctypes.c_uint64(STREAM)
    batch = _cpu.Arguments(count=1, stream=ctypes.addressof(stream), draw=DRAW)
    places = (ctypes.c_int64(first), ctypes.c_int64(row), ctypes.c_int64(256))
    header.words(ctypes.byref(batch), *places, ctypes.c_void_p(into.data_ptr()))
    key = _precision.key(STREAM, DRAW, max(row - 1, 0))
    expected = _precision.words(key, first + torch.arange(256))
    assert torch.equal(into.long() & _precision.WORD, expected)


def test_pieces_end_where_the_upper_half_of_an_element_changes(header: ctypes.CDLL) -> None:
    sizes = (700, (3 << 32) + 5, 9)
    start = array([0, *itertools.accumulate(sizes)])
    batch = _cpu.Arguments(count=3, start=ctypes.addressof(start))
    into = array([-1] * 20)
    limits = (ctypes.c_int64(512), ctypes.c_int64(sum(sizes)))
    header.pieces(ctypes.byref(batch), *limits, into)
    end = into[:].index(-1)
    pieces = list(zip(into[:end:2], into[1:end:2], strict=True))
    assert pieces == [(512, 188), *((n << 32, 1 << 32) for n in range(3)), (3 << 32, 5), (0, 9)]


def array(values: list[int]) -> Any:
    return (ctypes.c_int64 * len(values))(*values)
