# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""What the kernels share: arithmetic that rounds as torch's does on the CPU, and pointers.

Triton's own `/` and `sqrt` are approximations in float32. Kernels are compiled without automatic
contraction: a product and a sum become one instruction only where `fma` says so.
"""

import triton
import triton.language as tl


@triton.jit
def to_single(value):
    """The nearest float32."""
    return tl.cast(tl.cast(value, tl.float32), tl.float64)


@triton.jit
def to_double(number):
    """A literal as a float64."""
    return tl.full((), number, tl.float64)


@triton.jit
def _in(x, dtype: tl.constexpr):
    """`x` in a dtype that holds it. Triton's functions take a literal as float32: 0.1 would be
    another number in float64. A product gives it the dtype of the other factor."""
    return x * tl.full((), 1.0, dtype)


@triton.jit
def pointer(address, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """An address as a pointer. Alignment is a property of the operation that makes the pointer, so
    each call makes its own."""
    place = address.to(tl.pointer_type(TYPE))
    if ALIGNED:
        place = tl.multiple_of(place, 16)
    return place


@triton.jit
def div(x, y):
    """x / y, rounded to nearest."""
    dtype: tl.constexpr = (x + y).dtype
    if dtype == tl.float64:
        return x / y
    else:
        return tl.div_rn(tl.cast(x, dtype), tl.cast(y, dtype))


@triton.jit
def rdiv(number, x):
    """number / x, as torch divides a number by a tensor: the reciprocal, then the product."""
    return number * div(1.0, x)


@triton.jit
def sqrt(x):
    """The square root, rounded to nearest."""
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    else:
        return tl.sqrt_rn(x)


@triton.jit
def rsqrt(x):
    """1 / sqrt(x), as torch computes it: the root, then its reciprocal."""
    return div(1.0, sqrt(x))


@triton.jit
def pow(x, y):
    """x ** y, computed in float64: there its error is |y * log(x)| units in the last place."""
    dtype: tl.constexpr = (x + y).dtype
    base = _in(x, tl.float64)
    exponent = _in(y, tl.float64)
    whole = tl.floor(exponent) == exponent
    odd = tl.floor(exponent * 0.5) * 2.0 != exponent
    power = tl.exp(exponent * tl.log(tl.abs(base)))
    negative = tl.where(whole, tl.where(odd, -power, power), float("nan"))
    power = tl.where(base < 0.0, negative, power)
    # Zero and one times an infinite logarithm have no value, their powers do.
    power = tl.where(exponent == 0.0, 1.0, power)
    return tl.where(base == 1.0, 1.0, power).to(dtype)


@triton.jit
def sign(x):
    """-1, 0 or 1. NaN has sign 0, as in torch."""
    return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)


@triton.jit
def maximum(x, y):
    """The larger one; NaN where one of them is."""
    dtype: tl.constexpr = (x + y).dtype
    return tl.maximum(_in(x, dtype), _in(y, dtype), propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(x, y):
    """The smaller one; NaN where one of them is."""
    dtype: tl.constexpr = (x + y).dtype
    return tl.minimum(_in(x, dtype), _in(y, dtype), propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def lerp(start, end, weight):
    """start + weight * (end - start), from the end that is nearer."""
    weight = _in(weight, (end - start).dtype)
    near_start = tl.abs(weight) < 0.5
    factor = tl.where(near_start, weight, weight - 1)
    return tl.fma(factor, end - start, tl.where(near_start, start, end))


@triton.jit
def add_scaled(base, x, scale):
    """base + scale * x, rounded once."""
    return tl.fma(_in(scale, x.dtype), x, base)


@triton.jit
def addcmul(base, x, y, scale):
    """base + scale * x * y; the second product and the sum are rounded once."""
    return tl.fma(scale * x, y, base)


@triton.jit
def addcdiv(base, x, y, scale):
    """base + scale * x / y, each operation rounded."""
    return base + div(scale * x, y)


@triton.jit
def both(x, y):
    """Logical and."""
    return (x != 0) & (y != 0)


@triton.jit
def either(x, y):
    """Logical or."""
    return (x != 0) | (y != 0)


@triton.jit
def negation(x):
    """Logical not."""
    return x == 0


@triton.jit
def full_like(x, value):
    """A tensor of the shape and dtype of `x`, filled."""
    return tl.zeros_like(x) + value


# Reductions: what each element gives, what a program makes of its elements, and what becomes of the
# numbers of all programs. Numbers are float64, and added in an order that depends on nothing else.


@triton.jit
def widened(x):
    """x"""
    return x.to(tl.float64)


@triton.jit
def square(x):
    """x * x"""
    wide = x.to(tl.float64)
    return wide * wide


@triton.jit
def product(x, y):
    """x * y"""
    return x.to(tl.float64) * y.to(tl.float64)


@triton.jit
def magnitude(x):
    """|x|"""
    return tl.abs(x.to(tl.float64))


@triton.jit
def total(terms):
    """The sum of a block."""
    return tl.sum(terms, axis=0)


@triton.jit
def largest(terms):
    """The largest of a block that is nowhere negative; NaN where one is."""
    is_nan = terms != terms
    found = tl.max(tl.where(is_nan, 0.0, terms), axis=0)
    return tl.where(tl.max(is_nan.to(tl.int32), axis=0) != 0, float("nan"), found)


@triton.jit
def total_of(partial, count, STRIDE: tl.constexpr, WIDTH: tl.constexpr):
    """The sum of `count` numbers, each `STRIDE` behind the one before."""
    lanes = tl.arange(0, WIDTH)
    found = tl.zeros((WIDTH,), tl.float64)
    first = 0
    while first < count:
        found += tl.load(partial + (first + lanes) * STRIDE, mask=first + lanes < count, other=0.0)
        first += WIDTH
    return total(found)


@triton.jit
def largest_of(partial, count, STRIDE: tl.constexpr, WIDTH: tl.constexpr):
    """The largest of `count` numbers, of which none is negative."""
    lanes = tl.arange(0, WIDTH)
    found = tl.zeros((WIDTH,), tl.float64)
    first = 0
    while first < count:
        more = tl.load(partial + (first + lanes) * STRIDE, mask=first + lanes < count, other=0.0)
        found = tl.maximum(found, more, propagate_nan=tl.PropagateNan.ALL)
        first += WIDTH
    return largest(found)
