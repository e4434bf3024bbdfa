# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Policies of precision in kernels. `.._precision` says what they mean; functions of the same names
give the same bits.

A kernel reads a tensor, and what is here makes of that the number that it computes with; it makes
of a number what the kernel then only has to cast. `OTHER` and `STREAM` are the places of addresses
and of keys in the table of tensors. Blocks that share a scale have 256 elements.
"""

import triton
import triton.language as tl

from . import _math


@triton.jit
def read_param(
    param, OTHER, offset, remaining, ALIGNED, dtype: tl.constexpr, ROUNDING: tl.constexpr
):
    """A parameter with its remainder or from its master."""
    lanes = tl.arange(0, param.shape[0])
    mask = lanes < remaining
    if ROUNDING == "remainder":
        other_at = _math.pointer(tl.load(OTHER), tl.int16, ALIGNED) + offset + lanes
        return joined(param, tl.load(other_at, mask=mask, other=0).to(tl.int32), dtype)
    elif ROUNDING == "master":
        other_at = _math.pointer(tl.load(OTHER), tl.float32, ALIGNED) + offset + lanes
        master = tl.load(other_at, mask=mask, other=0.0)
        return tl.where(master.to(dtype).to(tl.float32) == param, master, param)
    else:
        return param


@triton.jit
def write_param(
    param,
    OTHER,
    STREAM,
    DRAW,
    offset,
    remaining,
    ALIGNED,
    dtype: tl.constexpr,
    ROUNDING: tl.constexpr,
):
    """What a parameter is cast from. The remainder or master is written."""
    lanes = tl.arange(0, param.shape[0])
    mask = lanes < remaining
    if ROUNDING == "remainder":
        other_at = _math.pointer(tl.load(OTHER), tl.int16, ALIGNED) + offset + lanes
        param, remainder = split(param, dtype)
        tl.store(other_at, remainder.to(tl.int16), mask=mask)
        return param
    elif ROUNDING == "master":
        other_at = _math.pointer(tl.load(OTHER), tl.float32, ALIGNED) + offset + lanes
        tl.store(other_at, param, mask=mask)
        return param
    else:
        return rounded(param, random_words(STREAM, DRAW, 0, offset, lanes), dtype)


@triton.jit
def read_slot(slot, SCALES, offset, remaining, dtype: tl.constexpr):
    """What a slot's elements stand for; codes have been cast to float32."""
    if dtype == tl.uint8:
        scales_at, exist = _scales(SCALES, offset, remaining, slot.shape[0])
        return decoded(slot, tl.load(scales_at, mask=exist, other=0.0))
    else:
        return slot


@triton.jit
def write_slot(slot, SCALES, STREAM, DRAW, STORE, offset, remaining, dtype: tl.constexpr):
    """What a slot is cast from. The scales of codes are written."""
    if dtype == tl.uint8:
        lanes = tl.arange(0, slot.shape[0])
        words = random_words(STREAM, DRAW, STORE, offset, lanes)
        codes, scales = encoded(tl.where(lanes < remaining, slot, 0.0), words)
        scales_at, exist = _scales(SCALES, offset, remaining, slot.shape[0])
        tl.store(scales_at, scales, mask=exist)
        return codes
    elif dtype == tl.bfloat16:
        lanes = tl.arange(0, slot.shape[0])
        return rounded(slot, random_words(STREAM, DRAW, STORE, offset, lanes), dtype)
    else:
        return slot


@triton.jit
def _scales(SCALES, offset, remaining, BLOCK: tl.constexpr):
    """Where the scale of each block is, and whether the block has elements."""
    blocks = tl.arange(0, BLOCK // 256)
    scales_at = _math.pointer(tl.load(SCALES), tl.float32, False) + offset // 256 + blocks
    return scales_at, blocks * 256 < remaining


# Random bits


@triton.jit
def word(number):
    return tl.full((), number, tl.uint32)


@triton.jit
def mix(x):
    x = (x ^ (x >> 16)) * word(0x7FEB352D)
    x = (x ^ (x >> 15)) * word(0x846CA68B)
    return x ^ (x >> 16)


@triton.jit
def random_words(STREAM, DRAW, STORE, offset, lanes):
    """A word for each element. `offset` is a multiple of a power of two that holds the lanes."""
    stream = tl.load(STREAM)
    draw = tl.load(DRAW).to(tl.uint32)
    store = tl.full((), STORE, tl.uint32)
    first = mix(stream.to(tl.uint32) ^ mix(draw + store * word(0x9E3779B9)))
    second = mix((stream >> 32).to(tl.uint32) ^ first)
    second += (offset >> 32).to(tl.uint32) * word(0x9E3779B9)
    x = (offset.to(tl.uint32) + lanes.to(tl.uint32)) ^ first
    x = (x ^ (x >> 16)) * word(0x7FEB352D) + second
    x = (x ^ (x >> 15)) * word(0x846CA68B)
    return x ^ (x >> 16)


# 16 bits


@triton.jit
def bits_of(x):
    return x.to(tl.int32, bitcast=True)


@triton.jit
def float_of(bits):
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def bits_or_nan(x):
    """The bits of a float32, which have none in the lower half if it is NaN."""
    return tl.where(x != x, 0x7FC00000, bits_of(x))


@triton.jit
def rounded(x, words, dtype: tl.constexpr):
    """One of two neighbours."""
    if dtype == tl.bfloat16:
        up = bits_or_nan(x) + (words >> 16).to(tl.int32)
        return float_of(up & -0x10000)
    else:
        size = float_of(tl.minimum(bits_of(x) & 0x7FFFFFFF, 144 << 23))
        exponent = tl.maximum(bits_of(size) >> 23, 113)
        multiple = size * float_of((264 - exponent) << 23)
        whole = multiple.to(tl.int32).to(tl.float32)
        coin = (words >> 8).to(tl.int32).to(tl.float32) * (2.0**-24)
        size = tl.where(coin < multiple - whole, whole + 1, whole)
        size = bits_of(size * float_of((exponent - 10) << 23))
        return tl.where(x != x, x, float_of(size | (bits_of(x) & -0x80000000)))


@triton.jit
def exponent16(x):
    """The exponent of float16 in float32's way of counting; subnormal numbers have the least."""
    return tl.maximum((bits_of(x) & 0x7FFFFFFF) >> 23, 113)


@triton.jit
def joined(param, remainder, dtype: tl.constexpr):
    if dtype == tl.bfloat16:
        bits = bits_of(param)
        size = tl.maximum((bits & 0x7FFF0000) + remainder, 0)
        return float_of(size | (bits & -0x80000000))
    else:
        # A difference keeps the sign of a zero, which a sum with 0 does not.
        unit = float_of((exponent16(param) - 25) << 23)
        return param - (0 - remainder).to(tl.float32) * unit


@triton.jit
def split(x, dtype: tl.constexpr):
    """What the parameter is cast from, and the remainder."""
    if dtype == tl.bfloat16:
        bits = bits_or_nan(x)
        return float_of((bits + 0x8000) & -0x10000), bits
    else:
        param = x.to(dtype).to(tl.float32)
        units = (x - param) * float_of((279 - exponent16(param)) << 23)
        return x, tl.where(tl.abs(units) <= 16384.0, units, 0.0).to(tl.int32)


# 8 bits: the bits of what the least magnitude stands for, and what the largest does before it is
# divided by that, without signs and with them


@triton.jit
def least_of(signed):
    return tl.where(signed, (127 - 27) << 23, (127 - 31) << 23)


@triton.jit
def top_of(signed):
    return tl.where(signed, 2 - 2.0**-4, 2 - 2.0**-5)


@triton.jit
def decoded(code, scales):
    scale = _of_elements(scales)
    signed = scale < 0
    is_negative = signed & (code >= 128)
    size = tl.where(is_negative, code - 128, code)
    bits = ((bits_of(size) - 0x3F800000) << 2) + least_of(signed)
    share = tl.where(size == 0, 0.0, float_of(bits) * _math.div(1.0, top_of(signed)))
    value = share * tl.abs(scale)
    return tl.where(is_negative, float_of(bits_of(value) | -0x80000000), value)


@triton.jit
def encoded(values, words):
    """Codes, and the scale of each block."""
    ROWS: tl.constexpr = values.shape[0] // 256
    bits = bits_of(values)
    sizes = bits & 0x7FFFFFFF
    # As integers NaN is the largest number.
    largest = tl.maximum(tl.max(sizes.reshape(ROWS, 256), axis=1), 0x800000)
    signed = tl.max((values < 0).to(tl.int32).reshape(ROWS, 256), axis=1) > 0
    finite = largest < 0x7F800000
    scales = tl.where(signed, -float_of(largest), float_of(largest))
    scales = tl.where(finite, scales, float("nan"))
    factor = _of_elements(_math.div(top_of(signed), float_of(largest)))
    least = _of_elements(least_of(signed))
    top = _of_elements(bits_of(top_of(signed)))
    scaled = tl.minimum(tl.maximum(bits_of(float_of(sizes) * factor), least), top)
    between = float_of(((scaled - least) >> 2) + 0x3F800000)
    code = ((between * 4096.0 + 0.5).to(tl.int32) + (words >> 20).to(tl.int32)) >> 12
    code = tl.where(bits < 0, code | 0x80, code)
    is_zero = (sizes == 0) | (_of_elements(finite.to(tl.int32)) == 0)
    return tl.where(is_zero, 0, code), scales


@triton.jit
def _of_elements(values):
    """What blocks have, for each of their elements."""
    ROWS: tl.constexpr = values.shape[0]
    return tl.broadcast_to(values[:, None], (ROWS, 256)).reshape(ROWS * 256)
