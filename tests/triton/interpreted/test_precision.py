"""Policies of precision in Triton: each function against its definition in torch, and kernels."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

import generated
from generated import _optimizer, _precision
from generated._fused import _batch
from generated._triton import _precision as kernels
from tests.policies import (
    COVERING,
    NAMES,
    POLICIES,
    assert_follows_the_definition,
    assert_resumes,
    options_of,
    problem,
)
from tests.reference import advance, construct, contents, differences, same_bits
from tests.test_precision import any_floats, drawn, patterns

COUNT = 8192
TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
sixteen = pytest.mark.parametrize("dtype", TYPES, ids=str)
WITH_KERNELS = [name for name in NAMES if getattr(generated, name).kernels]


# Functions


@triton.jit
def words_kernel(STREAM, DRAW, STORE, OFFSET, INTO, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    offset = tl.load(OFFSET)
    tl.store(INTO + lanes, kernels.random_words(STREAM, DRAW, STORE, offset, lanes).to(tl.int64))


@triton.jit
def rounded_kernel(X, WORDS, INTO, dtype: tl.constexpr, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    words = tl.load(WORDS + lanes).to(tl.uint32)
    tl.store(INTO + lanes, kernels.rounded(tl.load(X + lanes), words, dtype).to(dtype))


@triton.jit
def split_kernel(X, PARAM, REMAINDER, dtype: tl.constexpr, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    param, remainder = kernels.split(tl.load(X + lanes), dtype)
    tl.store(PARAM + lanes, param.to(dtype))
    tl.store(REMAINDER + lanes, remainder.to(tl.int16))


@triton.jit
def joined_kernel(PARAM, REMAINDER, INTO, dtype: tl.constexpr, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    remainder = tl.load(REMAINDER + lanes).to(tl.int32)
    param = tl.load(PARAM + lanes).to(tl.float32)
    tl.store(INTO + lanes, kernels.joined(param, remainder, dtype))


@triton.jit
def encoded_kernel(X, WORDS, CODES, SCALES, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    codes, scales = kernels.encoded(tl.load(X + lanes), tl.load(WORDS + lanes).to(tl.uint32))
    tl.store(CODES + lanes, codes.to(tl.uint8))
    tl.store(SCALES + tl.arange(0, BLOCK // 256), scales)


@triton.jit
def decoded_kernel(CODES, SCALES, INTO, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    codes = tl.load(CODES + lanes).to(tl.float32)
    tl.store(INTO + lanes, kernels.decoded(codes, tl.load(SCALES + tl.arange(0, BLOCK // 256))))


def numbers() -> Tensor:
    return any_floats(COUNT)[-COUNT:]


def some_words() -> Tensor:
    return _precision.words(_precision.key(9, 1, 0), torch.arange(COUNT))


@pytest.mark.parametrize("store", [0, 3])
@pytest.mark.parametrize("offset", [0, 8192, (1 << 32) - 8192, 1 << 32, 5 << 32])
def test_random_words_are_those_of_the_element(offset: int, store: int) -> None:
    stream, draw = _precision.stream(5, 3) ^ 1 << 63, 77  # as an unsigned number
    into = torch.empty(COUNT, dtype=torch.int64)
    signed = torch.tensor((stream ^ 1 << 63) - (1 << 63))
    words_kernel[(1,)](signed, torch.tensor(draw), store, torch.tensor(offset), into, COUNT)
    key = _precision.key(stream, draw, store)
    assert torch.equal(into, _precision.words(key, offset + torch.arange(COUNT)))


@sixteen
def test_stochastic_rounding_has_the_bits_of_its_definition(dtype: torch.dtype) -> None:
    words = some_words()
    for x in (numbers(), patterns(dtype)[:: (1 << 16) // COUNT].float()):
        into = torch.empty(COUNT, dtype=dtype)
        rounded_kernel[(1,)](x, words, into, TYPES[dtype], COUNT)
        assert same_bits(_precision.rounded(x, dtype, words), into)


@sixteen
def test_remainders_have_the_bits_of_their_definition(dtype: torch.dtype) -> None:
    x = numbers()
    param, remainder = torch.empty(COUNT, dtype=dtype), torch.empty(COUNT, dtype=torch.int16)
    split_kernel[(1,)](x, param, remainder, TYPES[dtype], COUNT)
    expected = _precision.split(x, dtype)
    assert same_bits(expected[0], param)
    assert same_bits(expected[1], remainder)
    for others in (remainder, remainder.flip(0)):  # and those of other parameters
        into = torch.empty(COUNT)
        joined_kernel[(1,)](param, others, into, TYPES[dtype], COUNT)
        assert same_bits(_precision.joined(param, others), into)


@pytest.mark.parametrize("signed", [False, True])
def test_codes_have_the_bits_of_their_definition(signed: bool) -> None:
    parts = [drawn(20, 2048, signed), drawn(40, 2048, signed), numbers()[-3840:], torch.zeros(256)]
    x, words = torch.cat(parts), some_words()
    codes, scales = torch.empty(COUNT, dtype=torch.uint8), torch.empty(COUNT // 256)
    encoded_kernel[(1,)](x, words, codes, scales, COUNT)
    expected = _precision.encode(x, words)
    assert same_bits(expected[0], codes)
    assert same_bits(expected[1], scales)
    into = torch.empty(COUNT)
    decoded_kernel[(1,)](codes, scales, into, COUNT)
    assert same_bits(_precision.decode(codes, scales), into)


# Kernels


def check(name: str, dtype: torch.dtype, policy: str) -> None:
    before = _batch.launches
    assert_follows_the_definition(name, dtype, POLICIES[policy], steps=2, fused=True)
    assert _batch.launches > before


@pytest.mark.parametrize("policy", POLICIES)
def test_a_kernel_rounds_a_step_in_float32(policy: str) -> None:
    check("Adam", torch.bfloat16, policy)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("policy", COVERING)
def test_a_kernel_rounds_a_step_in_float32_in_other_dtypes(policy: str, dtype: torch.dtype) -> None:
    check("Adam", dtype, policy)


# A slot that the first step makes; passes that only read.
@pytest.mark.parametrize("policy", COVERING)
@pytest.mark.parametrize("name", ["SGD", "LAMB"])
def test_other_kernels_round_a_step_in_float32(name: str, policy: str) -> None:
    check(name, torch.bfloat16, policy)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", WITH_KERNELS)
def test_every_kernel_rounds_a_step_in_float32(name: str, policy: str, dtype: torch.dtype) -> None:
    check(name, dtype, policy)


def test_resuming_changes_no_bit() -> None:
    assert_resumes("SGD", POLICIES["stochastic-8-bit-state"], steps=2, fused=True)


@pytest.mark.parametrize("policy", ["stochastic-8-bit-state", "kahan-bfloat16-state"])
def test_a_step_that_only_the_device_counts_draws_the_same_bits(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGD, whose numbers do not depend on the step."""
    start = problem("SGD", torch.bfloat16, steps=3)
    options = {**options_of("SGD"), **POLICIES[policy]}
    found = []
    for capturable in (False, True):
        devices = ["cpu"] * capturable
        monkeypatch.setattr(
            _optimizer, "_get_capturable_supported_devices", lambda found=devices: found
        )
        params = [p.clone() for p in start.parameters]
        optimizer = construct(
            generated, "SGD", params, **options, fused=True, capturable=capturable
        )
        advance(optimizer, params, start.gradients)
        (group,) = optimizer.param_groups
        assert isinstance(group["draws"], Tensor) == capturable
        assert int(group["draws"]) == 3
        found.append(contents(optimizer))
    assert differences(*found) == []
