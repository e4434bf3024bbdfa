"""Numbers of float32 in fewer bits: what every policy of precision means, in torch.

`_c/precision.h` and `_triton/_precision.py` have the same functions and give the same bits. All
arithmetic is on the bits of float32, on integers, or rounds in no more than one way; nothing here
depends on the device, the number of threads or the order of elements. Elements are counted in the
order of memory.

**Random bits** are a hash of a key and of an element's number. A key is made of 64 bits that belong
to one parameter of one optimizer, `stream`, of the number of the step, and of the number of what
is stored: 0 is the parameter, 1 the first slot. So they need no state, and can be had again.

**8 bits.** A block of 256 elements has a scale s, the largest magnitude in it, and for each element
a sign and a magnitude m of 7 bits; a block without negative elements has no signs and 8 bits. With
n bits, a magnitude of z zeros, a one, two bits x and a fraction f of what is left stands for

    2 ** (x - 3 - 4 * z) * (1 + f) / top * s,    top = 2 - 2 ** (3 - n),

so that the largest magnitude stands for s itself, precisely. The fraction has 5 bits down to about
s / 16 (4 with a sign), and one less for every four powers of two below; bits that are not there are
zeros. Magnitude 0 is 0, and nothing else becomes 0: as a denominator it is another thing than a
small number. The scale of a block with negative elements is kept as -s. A block that holds a NaN or
an infinity is NaN as a whole, so that nobody overlooks it.

The formula is a float32's bits moved by two places: as float32, the number m has the exponent
n - 1 - z and the fraction (x, f), and four times those bits, but for a constant, are the bits of
what m stands for. `_real` and its inverse go between them, and a magnitude is `_real` rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor

# A Python integer, or a tensor of int64, from 0 to 2 ** 32 - 1.
Word = int | Tensor

WORD = 0xFFFFFFFF
GOLDEN = 0x9E3779B9  # 2 ** 32 divided by the golden ratio: its multiples are far from each other
# A coin for every element that has two sides equal: rounding to nearest.
NEAREST = 1 << 31

# Elements that share a scale, and the fewest that a tensor in 8 bits has.
BLOCK = 256
FEWEST = 4096

ONE = 0x3F800000  # the bits of 1.0
SMALLEST_NORMAL = 2.0**-126
# Fractions of a magnitude finer than this are the rounding errors of a product.
FINENESS = 1 << 12
# What the magnitudes 1 and 2 ** n - 1 stand for, as bits: without signs, and with them.
LEAST = ((127 - 31) << 23, (127 - 27) << 23)
TOP = (2 - 2**-5, 2 - 2**-4)


# Random bits


def mix(x: Word) -> Word:
    """A permutation of the words in which every bit depends on every other (Wellons, Hash function
    prospector, 2018: lowbias32)."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & WORD
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & WORD
    return x ^ (x >> 16)


def stream(seed: int, index: int) -> int:
    """The 64 bits of an optimizer's parameter from its seed and the parameter's number in it
    (Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, 2014)."""
    mask = (1 << 64) - 1
    x = (seed + (index + 1) * 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def key(stream: int, draw: Word, store: int) -> tuple[Word, Word]:
    """Two words for what is stored in one step: the parameter or one of its slots.

    Args:
        stream: of the parameter.
        draw: the number of the step, of which 32 bits count; a tensor of int64 without dimensions
            if only the device knows it.
        store: 0 for the parameter, 1 for the first slot.
    """
    first = mix((stream & WORD) ^ mix((draw + store * GOLDEN) & WORD))
    return first, mix((stream >> 32) ^ first)


def words(key: tuple[Word, Word], element: Tensor) -> Tensor:
    """The random bits of elements, given their numbers: words in int64."""
    x = (element & WORD) ^ key[0]
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D + key[1] + (element >> 32) * GOLDEN & WORD
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & WORD
    return x ^ (x >> 16)


def random_bits(key: tuple[Word, Word], like: Tensor) -> Tensor:
    """A word for each element of a dense tensor, with its shape and strides."""
    element = torch.arange(like.numel(), device=like.device)
    return words(key, element).as_strided(like.size(), like.stride())


# 16 bits


def rounded(x: Tensor, dtype: torch.dtype, bits: Tensor) -> Tensor:
    """A float32 in 16 bits: one of its two neighbours, each the likelier the nearer it is, so that
    the mean is the number itself. What has 16 bits already stays, as do NaN and infinity; what lies
    beyond the largest number may become it or infinity, as if that were the next number.

    Args:
        x: of float32.
        dtype: bfloat16 or float16.
        bits: random ones, of which bfloat16 takes 16, and float16 24: below 2 ** -14 a probability
            is rounded up to a multiple of 2 ** -24.
    """
    if dtype == torch.bfloat16:
        up = (x.view(torch.int32) + (bits >> 16).int()) >> 16
        return torch.where(x.isnan(), x.to(dtype), up.short().view(dtype))
    # Multiples of the unit in the last place; beyond 2 ** 17 all are infinite.
    size = x.abs().clamp_max(2.0**17)
    exponent = (size.view(torch.int32) >> 23).clamp_min(127 - 14)
    multiple = size * ((264 - exponent) << 23).view(torch.float32)
    whole = multiple.int()
    up = (bits >> 8).float() * 2.0**-24 < multiple - whole
    size = (whole + up) * ((exponent - 10) << 23).view(torch.float32)
    return torch.where(x.isnan(), x, size.copysign(x)).to(dtype)


def split(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A float32 as a parameter of 16 bits and a remainder of 16 more.

    In bfloat16 both together are the float32, to the last bit: its upper half, rounded half away
    from zero, and its lower half, which as a signed number says how far the rounding went. In
    float16 the remainder counts units of 2 ** -15 of the parameter's last place, which is precise
    from 2 ** -14 on; below, these units are 2 ** -39. What overflows or is not a number has none.

    Args:
        x: of float32.
        dtype: bfloat16 or float16.

    Returns:
        The parameter in `dtype`, and the remainder in int16.
    """
    if dtype == torch.bfloat16:
        bits = x.view(torch.int32)
        upper = ((bits + 0x8000) >> 16).short().view(dtype)
        isnan = x.isnan()
        lower = bits.short().masked_fill(isnan, 0)
        return torch.where(isnan, x.to(dtype), upper), lower
    param = x.to(dtype)
    units = (x - param.float()) * (((279 - _exponent16(param)) << 23).view(torch.float32))
    return param, torch.where(units.abs() <= 2.0**14, units, 0.0).short()


def remainder_of(master: Tensor, dtype: torch.dtype) -> Tensor:
    """The remainder of a float32 beside its nearest parameter, which need not be that of `split`
    where two are equally near; then it is the largest there is."""
    if dtype != torch.bfloat16:
        return split(master, dtype)[1]
    param = master.to(dtype).view(torch.int16).int()
    lower = (master.view(torch.int32) - (param << 16)).clamp(-0x8000, 0x7FFF)
    return lower.short().masked_fill(master.isnan(), 0)


def joined(param: Tensor, remainder: Tensor) -> Tensor:
    """The float32 that `split` took apart. A parameter that somebody else has set since is changed
    by half a unit of its last place at most, and a zero stays next to nothing."""
    if param.dtype == torch.bfloat16:
        bits = param.view(torch.int16).int()
        size = (((bits & 0x7FFF) << 16) + remainder).clamp_min(0)
        return (size | (bits & 0x8000) << 16).view(torch.float32)
    # A difference keeps the sign of a zero, which a sum with 0 does not.
    return param.float() - -remainder * ((_exponent16(param) - 25) << 23).view(torch.float32)


def _exponent16(param: Tensor) -> Tensor:
    """The exponent of float16 in float32's way of counting; subnormal numbers have the least."""
    return (param.float().abs().view(torch.int32) >> 23).clamp_min(127 - 14)


def current(param: Tensor, master: Tensor) -> Tensor:
    """The float32 value of a parameter of 16 bits: its master, where that still rounds to it.
    Elsewhere somebody has set the parameter, and it counts."""
    return torch.where(master.to(param.dtype) == param, master, param.float())


# 8 bits


def encode(values: Tensor, bits: Tensor | int = NEAREST) -> tuple[Tensor, Tensor]:
    """A dense tensor in 8 bits: a byte for each element, and a scale for each block of 256 in the
    order of memory, the last of which may be shorter.

    A magnitude is one of its two neighbours, at random: its mean is right wherever neighbours are
    no more than a factor of 2 apart, down to 2 ** -23 of the scale, or 2 ** -19 with signs. There a
    probability is rounded to multiples of 1 / 4096, so that what `decode` gives is encoded to the
    same codes and scales, whatever the bits. That needs a scale of at least 2 ** -126, and then
    elements that small numbers of float32 can tell apart.

    Args:
        values: of float32.
        bits: random ones, of which 12 count; `NEAREST` for the nearest magnitude.

    Returns:
        Codes in uint8 of the shape and strides of `values`, and scales in float32.
    """
    blocks = _blocks(values)
    words = blocks.view(torch.int32)
    sizes = words & 0x7FFFFFFF
    # As integers NaN is the largest number.
    largest = sizes.amax(1).view(torch.float32)
    finite = largest.isfinite()
    scale = largest.clamp_min(SMALLEST_NORMAL)
    signed = (blocks < 0).any(1)
    real = _real(blocks.abs() * (_top(signed) / scale)[:, None], signed[:, None])
    coins = bits >> 20 if isinstance(bits, int) else _blocks(bits >> 20)
    codes = ((real * FINENESS + 0.5).int() + coins) >> 12
    codes = torch.where((sizes > 0) & finite[:, None], codes, 0)
    codes = codes | ((words < 0) & (codes > 0)).int() << 7
    scales = torch.where(signed, -scale, scale).masked_fill(~finite, torch.nan)
    flat = codes.to(torch.uint8).reshape(-1)[: values.numel()]
    return flat.as_strided(values.size(), values.stride()), scales


def decode(codes: Tensor, scales: Tensor) -> Tensor:
    """The float32 values that a dense tensor of codes and its scales stand for."""
    blocks = _blocks(codes).int()
    signed = (scales < 0)[:, None]
    size = torch.where(signed, blocks & 0x7F, blocks)
    least = _least(signed)
    bits = ((size.float().view(torch.int32) - ONE) << 2) + least
    share = torch.where(size == 0, 0.0, bits.view(torch.float32) * (1 / _top(signed)))
    values = share * scales.abs()[:, None]
    values = torch.where(signed & (blocks > 0x7F), -values, values)
    return values.reshape(-1)[: codes.numel()].as_strided(codes.size(), codes.stride())


def _real(x: Tensor, signed: Tensor) -> Tensor:
    """The magnitude that stands for a positive number, as if there were all between the integers.
    What is out of range, or NaN, becomes a magnitude that is not 0."""
    least = _least(signed)
    bits = x.view(torch.int32).clamp(least, _top(signed).view(torch.int32))
    return (((bits - least) >> 2) + ONE).view(torch.float32)


def _least(signed: Tensor) -> Tensor:
    return LEAST[0] + (LEAST[1] - LEAST[0]) * signed.int()


def _top(signed: Tensor) -> Tensor:
    return torch.where(signed, TOP[1], TOP[0])


def _blocks(tensor: Tensor) -> Tensor:
    """The elements of a dense tensor in the order of memory, in rows of 256 filled up with 0."""
    flat = tensor.as_strided((tensor.numel(),), (1,))
    return torch.nn.functional.pad(flat, (0, -tensor.numel() % BLOCK)).view(-1, BLOCK)
