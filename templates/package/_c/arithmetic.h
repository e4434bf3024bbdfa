// Arithmetic that rounds as torch's does on the CPU, in the type T under the names N(...). kernel.h
// includes this file for each type. Products and sums become one operation only where fma says so.

// base + scale * x, rounded once.
static inline T N(add_scaled)(T base, T x, T scale)
{
    return fma(scale, x, base);
}

// base + scale * x * y; the second product and the sum are rounded once.
static inline T N(addcmul)(T base, T x, T y, T scale)
{
    return fma(scale * x, y, base);
}

// base + scale * x / y, each operation rounded.
static inline T N(addcdiv)(T base, T x, T y, T scale)
{
    return base + scale * x / y;
}

// start + weight * (end - start), from the end that is nearer.
static inline T N(lerp)(T start, T end, T weight)
{
    const bool near_start = fabs(weight) < (T)0.5;
    return fma(near_start ? weight : weight - 1, end - start, near_start ? start : end);
}

// number / x, as torch divides a number by a tensor: the reciprocal, then the product.
static inline T N(rdiv)(T number, T x)
{
    return number * (1 / x);
}

// 1 / sqrt(x), as torch computes it: the root, then its reciprocal.
static inline T N(rsqrt)(T x)
{
    return 1 / sqrt(x);
}

// The larger one; NaN where one of them is.
static inline T N(maximum)(T x, T y)
{
    const T larger = x > y ? x : y;
    return x != x ? x : larger;
}

// The smaller one; NaN where one of them is.
static inline T N(minimum)(T x, T y)
{
    const T smaller = x < y ? x : y;
    return x != x ? x : smaller;
}

// -1, 0 or 1. NaN has sign 0, as in torch.
static inline T N(sign)(T x)
{
    return (T)(x > 0) - (T)(x < 0);
}

// One of two values, both of which are computed.
static inline T N(where)(bool condition, T x, T y)
{
    return condition ? x : y;
}

// A number of the table. A NaN has no payload: storage.h relies on it.
static inline T N(number)(double x)
{
    return x != x ? (T)NAN : (T)x;
}

// A square is exact where T is float: then one operation gives the sum that two do.
static ALWAYS_INLINE void N(add_square)(double *found, double x)
{
    *found = sizeof(T) == sizeof(float) ? fma(x, x, *found) : *found + x * x;
}

#undef T
#undef N
