"""Numbers in fewer bits: random bits, roundings, codes, as `_precision` defines them in torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from generated._precision import (
    BLOCK,
    NEAREST,
    WORD,
    current,
    decode,
    encode,
    joined,
    key,
    random_bits,
    remainder_of,
    rounded,
    split,
    stream,
    words,
)

SIXTEEN = (torch.bfloat16, torch.float16)
sixteen = pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
TINY = 2.0**-149


def same(left: Tensor, right: Tensor) -> bool:
    """Equal numbers in equal dtypes, zeros with their signs; NaN is NaN."""
    signs = left.signbit() == right.signbit()
    equal = (left == right) & signs | left.isnan() & right.isnan()
    return left.dtype == right.dtype and bool(equal.all())


def patterns(dtype: torch.dtype) -> Tensor:
    """Every number of 16 bits."""
    return torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)


def any_floats(count: int) -> Tensor:
    """Random bits as float32, beside all that is special."""
    draw = torch.Generator().manual_seed(0)
    bits = torch.randint(-(1 << 31), 1 << 31, (count,), generator=draw, dtype=torch.int64)
    largest = torch.finfo(torch.float32).max
    special = [0.0, TINY, 2.0**-126, 1.0, 65504.0, 65519.996, 65520.0, 65536.0, largest, torch.inf]
    ends = torch.tensor([*special, *(-x for x in special), torch.nan])
    return torch.cat([bits.int().view(torch.float32), ends])


def some_bits(like: Tensor, draw: int = 1) -> Tensor:
    return random_bits(key(stream(0, 0), draw, 0), like)


def equal_bits(like: Tensor, word: int) -> Tensor:
    return torch.full_like(like, word, dtype=torch.int64)


# Random bits

SAMPLE = 1 << 18


def sequences() -> dict[str, tuple[Tensor, Tensor]]:
    """Pairs of sequences that might resemble each other."""
    element = torch.arange(SAMPLE + 1)
    plain = words(key(stream(0, 0), 1, 0), element)
    others = {
        "the next step": key(stream(0, 0), 2, 0),
        "a step far away": key(stream(0, 0), 1 + (1 << 20), 0),
        "the next slot": key(stream(0, 0), 1, 1),
        "the next parameter": key(stream(0, 1), 1, 0),
        "the next seed": key(stream(1, 0), 1, 0),
    }
    pairs = {name: (plain, words(other, element)) for name, other in others.items()}
    far = words(key(stream(0, 0), 1, 0), element + (1 << 32))
    ahead = {f"{n} elements ahead": words(key(stream(0, 0), 1, 0), element + n) for n in (1, 64)}
    return {**pairs, "2 ** 32 elements ahead": (plain, far)} | {
        name: (plain, other) for name, other in ahead.items()
    }


def assert_uniform(values: Tensor, bins: int) -> None:
    """Chi-square with `bins - 1` degrees of freedom, within 5 standard deviations of its mean."""
    counts = torch.bincount(values, minlength=bins).double()
    mean = values.numel() / bins
    statistic = float(((counts - mean) ** 2 / mean).sum())
    assert abs(statistic - (bins - 1)) < 5 * (2 * (bins - 1)) ** 0.5


@pytest.mark.parametrize("place", range(0, 32, 8))
def test_bytes_of_random_words_are_uniform(place: int) -> None:
    for draw in range(1, 5):
        found = words(key(stream(0, 0), draw, 0), torch.arange(SAMPLE))
        assert_uniform(found >> place & 0xFF, 256)


@pytest.mark.parametrize(("name", "pair"), sequences().items(), ids=sequences())
def test_related_sequences_are_independent(name: str, pair: tuple[Tensor, Tensor]) -> None:
    """Each bit of one agrees with each bit of the other half of the time, and the upper bits, which
    decide, are jointly uniform."""
    left, right = pair
    for shift in range(32):
        turned = (right >> shift | right << (32 - shift)) & WORD
        for place in range(32):
            agreement = int(((left ^ turned) >> place & 1).sum())
            assert abs(agreement - len(left) / 2) < 5 * len(left) ** 0.5 / 2
    assert_uniform((left >> 28) << 4 | right >> 28, 256)


def test_keys_of_steps_slots_parameters_and_seeds_are_distinct() -> None:
    keys = [
        key(stream(seed, index), draw, store)
        for seed, index, draw, store in itertools.product(range(4), range(8), range(256), range(5))
    ]
    assert len(set(keys)) == len(keys)


def test_a_step_that_only_the_device_knows_has_the_same_bits() -> None:
    for draw in (1, 77, (1 << 32) - 1):
        known = key(stream(3, 5), draw, 2)
        unknown = key(stream(3, 5), torch.tensor(draw), 2)
        assert known == tuple(map(int, unknown))


def test_random_bits_follow_the_order_of_memory() -> None:
    tensor = torch.empty(2, 3, 4, 5)
    last = tensor.contiguous(memory_format=torch.channels_last)
    found = some_bits(last)
    assert found.stride() == last.stride()
    assert torch.equal(found.permute(0, 2, 3, 1).flatten(), some_bits(tensor).flatten())


# Stochastic rounding


def neighbours(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The numbers of 16 bits next to float32 numbers, towards zero and away from it."""
    nearest = x.to(dtype)
    zero, far = torch.zeros_like(nearest), torch.full_like(nearest, torch.inf).copysign(nearest)
    inner = torch.where(nearest.float().abs() > x.abs(), nearest.nextafter(zero), nearest)
    outer = torch.where(nearest.float().abs() < x.abs(), nearest.nextafter(far), nearest)
    return inner, outer


@sixteen
def test_stochastic_rounding_gives_a_neighbour(dtype: torch.dtype) -> None:
    x = any_floats(200_000)
    inner, outer = neighbours(x, dtype)
    for bits in (equal_bits(x, 0), some_bits(x), equal_bits(x, WORD)):
        found = rounded(x, dtype, bits)
        either = (found == inner) | (found == outer) | (x.isnan() & found.isnan())
        assert found.dtype == dtype
        assert bool(either.all())
        assert torch.equal(found.signbit() | x.isnan(), x.signbit() | x.isnan())


@sixteen
def test_the_extreme_bits_round_to_the_two_sides(dtype: torch.dtype) -> None:
    smallest = -133 if dtype is torch.bfloat16 else -24
    x = torch.tensor([1 + 2.0**-15, 2.0**smallest * 1.5, 2.0**smallest * 0.5])
    sides = {tuple(rounded(x, dtype, equal_bits(x, word)).tolist()) for word in (0, WORD)}
    assert sides == {tuple(side.tolist()) for side in neighbours(x, dtype)}


@sixteen
def test_what_has_16_bits_already_is_never_moved(dtype: torch.dtype) -> None:
    every = patterns(dtype)
    wide = every.float()
    for bits in (equal_bits(wide, 0), some_bits(wide), equal_bits(wide, WORD)):
        assert same(rounded(wide, dtype, bits), every)


@sixteen
def test_stochastic_rounding_is_right_in_the_mean(dtype: torch.dtype) -> None:
    """Of 2,000 numbers of every size, each rounded 4,096 times."""
    draw = torch.Generator().manual_seed(1)
    lowest = -140 if dtype is torch.bfloat16 else -30
    exponents = torch.randint(lowest, 15, (2000,), generator=draw)
    x = (1 + torch.rand(2000, generator=draw)) * 2.0**exponents
    x = x * (torch.randint(2, (2000,), generator=draw) * 2 - 1)
    inner, outer = (n.double() for n in neighbours(x, dtype))
    count = 4096
    total = torch.zeros(2000, dtype=torch.float64)
    for step in range(count):
        total += rounded(x, dtype, some_bits(x, step)).double()
    share = (x.double() - inner) / (outer - inner)
    deviation = (outer - inner).abs() * (share * (1 - share) / count).sqrt()
    inside = (share > 0.01) & (share < 0.99)  # the others' sums are not yet normal
    errors = ((total / count - x.double()) / deviation)[inside]
    assert len(errors) > 1800
    assert float(errors.abs().max()) < 4.5  # of 2,000 normal numbers
    assert abs(float(errors.mean())) < 4 / len(errors) ** 0.5
    assert abs(float((errors**2).mean()) - 1) < 4 * (2 / len(errors)) ** 0.5


# Remainders


def test_bfloat16_and_its_remainder_are_the_float32() -> None:
    x = any_floats(500_000)
    param, remainder = split(x, torch.bfloat16)
    assert (param.dtype, remainder.dtype) == (torch.bfloat16, torch.int16)
    assert same(joined(param, remainder), x)
    # The nearest, but for a tie, which goes away from zero.
    tie = (x.view(torch.int32) & 0xFFFF) == 0x8000
    _, outer = neighbours(x, torch.bfloat16)
    assert same(param[~tie], x.to(torch.bfloat16)[~tie])
    assert same(param[tie], outer[tie])


def test_float16_and_its_remainder_are_the_float32_of_normal_size() -> None:
    x = any_floats(500_000)
    param, remainder = split(x, torch.float16)
    assert (param.dtype, remainder.dtype) == (torch.float16, torch.int16)
    assert same(param, x.to(torch.float16))
    back = joined(param, remainder)
    normal = (x.abs() >= 2.0**-14) & (x.abs() < 65520)
    assert same(back[normal], x[normal])
    assert bool(((back - x).abs() < 2.0**-39)[x.abs() < 2.0**-14].all())
    assert same(back[x.abs() >= 65520], torch.full_like(x, torch.inf).copysign(x)[x.abs() >= 65520])
    assert torch.equal(back.isnan(), x.isnan())


@sixteen
def test_a_parameter_that_was_set_is_off_by_half_a_unit_at_most(dtype: torch.dtype) -> None:
    every = patterns(dtype)
    every = every[every.isfinite()]
    low, high = every.float(), every.abs().nextafter(torch.tensor(torch.inf, dtype=dtype)).float()
    unit = torch.where(high.isinf(), torch.tensor(2.0**120), high - low.abs())
    extreme = 0x8000 if dtype is torch.bfloat16 else 0x4000
    for number in (-extreme, -1, 0, 1, min(extreme, 0x7FFF)):
        old = torch.full(every.shape, number, dtype=torch.int16)
        found = joined(every, old)
        assert bool(((found - low).abs() <= unit / 2).all())


@sixteen
def test_a_master_becomes_a_remainder(dtype: torch.dtype) -> None:
    x = any_floats(500_000)
    x = x[(x.abs() >= 2.0**-14) & (x.abs() < 65504) | (x == 0)]
    found = joined(x.to(dtype), remainder_of(x, dtype))
    tie = (x.view(torch.int32) & 0xFFFF) == 0x8000
    assert same(found[~tie], x[~tie])
    assert float(((found - x) / x)[tie].abs().max() if tie.any() else 0.0) <= 2.0**-23


def test_a_master_counts_where_it_rounds_to_the_parameter() -> None:
    master = torch.tensor([1.001, 1.001, torch.nan, 1.001, -0.0])
    param = torch.tensor([1.0, 1.25, torch.nan, torch.nan, -0.0], dtype=torch.bfloat16)
    expected = torch.tensor([1.001, 1.25, torch.nan, torch.nan, -0.0])
    assert same(current(param, master), expected)


# 8 bits

ALL = torch.arange(256, dtype=torch.uint8)
# Scales of blocks without negative numbers and with them, from the least on.
SCALES = (2.0**-90, 1e-20, 0.37, 1.0, 3.3333, 1e30, 3e38)


def magnitude(code: int, bits: int) -> float:
    """What a magnitude stands for, as its bits are read one after the other."""
    text = f"{code:0{bits}b}"
    if code == 0:
        return 0.0
    zeros = text.index("1")
    rest = text[zeros + 1 :].ljust(bits + 2, "0")
    x, fraction = int(rest[:2], 2), int(rest[2:], 2) / 2 ** len(rest[2:])
    top = 2 - 2.0 ** (3 - bits)
    return 2.0 ** (x - 3 - 4 * zeros) * (1 + fraction) / top


@pytest.mark.parametrize("scale", SCALES)
def test_codes_stand_for_what_their_bits_say(scale: float) -> None:
    factor = torch.tensor(scale)
    for sign, bits in ((1, 8), (-1, 7)):
        expected = [magnitude(code, bits) for code in range(1 << bits)]
        expected += [-value for value in expected] if bits == 7 else []
        found = decode(ALL, sign * factor[None])
        wanted = torch.tensor(expected, dtype=torch.float64) * factor.double()
        torch.testing.assert_close(found.double(), wanted, rtol=2.0**-22, atol=0)
        assert found.max() == factor


@pytest.mark.parametrize("bits", [0, NEAREST, WORD, "random"])
@pytest.mark.parametrize("scale", SCALES)
def test_what_is_decoded_is_encoded_to_the_same(scale: float, bits: int | str) -> None:
    for codes, sign in ((ALL, 1), (torch.cat([ALL[:128], ALL[129:]]), -1)):  # 128 would be -0
        scales = torch.tensor([sign * scale])
        values = decode(codes, scales)
        for step in range(8):
            coins = some_bits(values, step) if isinstance(bits, str) else bits
            found = encode(values, coins)
            assert torch.equal(found[0], codes)
            assert torch.equal(found[1], scales)


def drawn(sizes: float, count: int = BLOCK * 40, signed: bool = True) -> Tensor:
    """Numbers that lie up to 2 ** -sizes below the largest, which is the same in every block."""
    draw = torch.Generator().manual_seed(2)
    values = 2.0 ** (-torch.rand(count, generator=draw) * sizes)
    values[::BLOCK] = 1.0
    if signed:
        values *= torch.randint(2, (count,), generator=draw) * 2 - 1
        values[1::BLOCK] = -0.5
    return values * 0.7


@pytest.mark.parametrize("signed", [False, True])
def test_errors_are_bounded_in_every_regime(signed: bool) -> None:
    """Half a step, and what lies between two numbers that round to the same 1 / 4096 of a step."""
    values = drawn(34, signed=signed)
    size = values.abs() / 0.7
    largest_bits = 4 if signed else 5
    top = 2 - 2.0**-largest_bits
    nearest = decode(*encode(values))
    lower, upper = (decode(*encode(values, bits)) for bits in (0, WORD))
    for regime in range(largest_bits + 1):
        low, high = 2.0 ** (-4 * regime - 3) / top, min(1.0, 2.0 ** (1 - 4 * regime) / top)
        part = (size >= low) & (size < high)
        assert part.any()
        step = 2.0 ** -(largest_bits - regime) * 2.0 ** (size * top).log2().floor() / top * 0.7
        fine = 1 + 2.0**-11
        assert bool(((nearest - values).abs() <= step / 2 * fine)[part].all())
        for found in (lower, upper):
            assert bool(((found - values).abs() <= step * fine)[part].all())
        assert bool((lower.abs() <= upper.abs())[part].all())
    tail = size < low
    ratio = (nearest / values).abs()[tail & (size > magnitude(1, 7 if signed else 8))]
    assert float(ratio.min()) > 0.99 / 4
    assert float(ratio.max()) < 4 * 1.01


@pytest.mark.parametrize("signed", [False, True])
def test_codes_grow_with_what_they_stand_for(signed: bool) -> None:
    values = drawn(40, BLOCK, signed=signed).sort().values
    for bits in (0, NEAREST, WORD):
        assert bool((decode(*encode(values, bits)).diff() >= 0).all())


def test_only_zero_becomes_zero() -> None:
    values = torch.full((BLOCK,), 1.0)
    values[:9] = torch.tensor([0.0, -0.0, 1e-30, TINY, 1e-9, -1e-30, -TINY, 1e-38, -1e-9])
    for bits in (0, NEAREST, WORD):
        found = decode(*encode(values, bits))
        assert torch.equal(found == 0, values == 0)
        assert torch.equal(found < 0, values < 0)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_a_block_that_holds_no_number_is_nan(wrong: float) -> None:
    values = torch.ones(3 * BLOCK)
    values[BLOCK + 7] = wrong
    values[BLOCK + 8] = 0
    codes, scales = encode(values)
    found = decode(codes, scales)
    assert bool(found[BLOCK : 2 * BLOCK].isnan().all())
    assert bool((found[:BLOCK] == 1).all())
    assert bool((found[2 * BLOCK :] == 1).all())
    # The next value of a block that has recovered counts.
    assert bool((decode(*encode(torch.ones(3 * BLOCK))) == 1).all())


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 1000])
def test_the_last_block_may_be_shorter(count: int) -> None:
    values = drawn(3, count) if count else torch.empty(0)
    codes, scales = encode(values)
    assert (codes.shape, scales.shape) == (values.shape, (-(-count // BLOCK),))
    whole, _ = encode(torch.cat([values, torch.zeros(-count % BLOCK)]))
    assert torch.equal(whole[:count], codes)
    assert decode(codes, scales).shape == values.shape


def test_codes_lie_as_their_values_do() -> None:
    values = drawn(3, 24 * BLOCK).view(4, 6, 16, 16).contiguous(memory_format=torch.channels_last)
    codes, scales = encode(values)
    assert codes.stride() == values.stride()
    flat = encode(values.permute(0, 2, 3, 1).contiguous())
    assert torch.equal(codes.permute(0, 2, 3, 1), flat[0])
    assert torch.equal(scales, flat[1])
    assert decode(codes, scales).stride() == values.stride()


def test_blocks_too_small_for_a_float32_fraction_keep_their_size() -> None:
    """Where float32 itself has few bits left, nothing overflows, and nothing large is lost."""
    for scale in (2.0**-110, 2.0**-126, 2.0**-130, TINY):
        values = drawn(4, BLOCK) / 0.7 * scale
        for bits in (0, NEAREST, WORD):
            found = decode(*encode(values, bits))
            assert bool(((found - values).abs() <= 0.13 * values.abs() + 2 * TINY).all())


def test_an_average_in_few_bits_follows_its_values_if_it_is_rounded_at_random() -> None:
    """An average of squares, beta 0.999, of normal numbers of every size, whose sizes are shuffled
    after 1,500 steps. 98 % of the roots are right to a factor of 2, or of 1.2 in bfloat16; to
    nearest that factor is above 3."""

    def factor(rounded_to: Callable[[Tensor, int], Tensor]) -> float:
        generator = torch.Generator().manual_seed(3)
        size = torch.exp(1.5 * torch.randn(1024, generator=generator))
        average, exact = torch.zeros(1024), torch.zeros(1024, dtype=torch.float64)
        for step in range(4500):
            if step == 1500:
                size = size[torch.randperm(1024, generator=generator)]
            square = (torch.randn(1024, generator=generator) * size) ** 2
            average = rounded_to(0.999 * average + 0.001 * square, step)
            exact = 0.999 * exact + 0.001 * square.double()
        return 2 ** float(((average / exact).log2().abs() / 2).quantile(0.98))

    def bits(x: Tensor, step: int) -> Tensor:
        return random_bits(key(stream(0, 0), step, 1), x)

    assert factor(lambda x, step: decode(*encode(x, bits(x, step)))) < 2
    assert factor(lambda x, step: rounded(x, torch.bfloat16, bits(x, step)).float()) < 1.2
    assert factor(lambda x, _: decode(*encode(x))) > 3
    assert factor(lambda x, _: x.bfloat16().float()) > 3


@pytest.mark.parametrize("signed", [False, True])
def test_stochastic_codes_are_right_in_the_mean(signed: bool) -> None:
    """Over 4,096 draws, down to the numbers that stand a factor of 2 apart."""
    values = drawn(18 if signed else 22, 4 * BLOCK, signed=signed)
    lower, upper = (decode(*encode(values, b)).double() for b in (0, WORD))
    count = 4096
    total = torch.zeros(len(values), dtype=torch.float64)
    for step in range(count):
        total += decode(*encode(values, some_bits(values, step))).double()
    share = (values.double() - lower) / (upper - lower)
    deviation = (upper - lower).abs() * (share * (1 - share) / count).sqrt()
    inside = (share > 0.02) & (share < 0.98)
    # A probability is a multiple of 1 / 4096: it is off by half of that at most, and not to one
    # side.
    slack = (upper - lower).abs() / 8192
    errors = ((total / count - values.double()) / (deviation + slack))[inside]
    assert len(errors) > 900
    assert float(errors.abs().max()) < 4.5
    assert abs(float(errors.mean())) < 4 / len(errors) ** 0.5
