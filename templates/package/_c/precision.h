// More ways to store parameters and slots: the policies of precision. _precision.py says what they
// mean; functions of the same names give the same bits.
//
//   BF16S, F16S    rounded at random
//   BF16K, F16K    a parameter and a remainder of 16 bits
//   BF16M, F16M    a parameter and its master in float32
//   Q8             8 bits, and a scale for every block

// Random bits

#define GOLDEN 0x9e3779b9u

struct key {
    uint32_t first, second;
};

static inline uint32_t mix(uint32_t x)
{
    x = (x ^ x >> 16) * 0x7feb352d;
    x = (x ^ x >> 15) * 0x846ca68b;
    return x ^ x >> 16;
}

// For the elements of a piece, whose numbers have the same upper half. Row 0 holds parameters, row 2
// the first slot.
static inline struct key key_of(const struct piece *piece, int64_t row)
{
    const uint64_t stream = piece->batch->stream[piece->tensor];
    const uint32_t store = row == 0 ? 0 : (uint32_t)(row - 1);
    const uint32_t draw = (uint32_t)piece->batch->draw;
    const uint32_t first = mix((uint32_t)stream ^ mix(draw + store * GOLDEN));
    const uint32_t second = mix((uint32_t)(stream >> 32) ^ first);
    return (struct key){first, second + (uint32_t)(piece->first >> 32) * GOLDEN};
}

static inline uint32_t word_of(struct key key, uint32_t element)
{
    uint32_t x = element ^ key.first;
    x = (x ^ x >> 16) * 0x7feb352d + key.second;
    x = (x ^ x >> 15) * 0x846ca68b;
    return x ^ x >> 16;
}

// Whatever the loop reads of a piece, it would read again after each element that it writes.
#define SETUP_RANDOM(name, row, scales) \
    const struct key name##_key = key_of(piece, row); \
    const uint32_t name##_start UNUSED = (uint32_t)piece->first
#define RANDOM_WORD(name) word_of(name##_key, name##_start + (uint32_t)(ELEMENT))

// bfloat16, rounded at random

#define width_BF16S 2
#define blocked_BF16S 0
#define low_BF16S NOTHING
#define setup_BF16S SETUP_RANDOM
#define ahead_BF16S AHEAD_PLAIN
#define open_BF16S OPEN_PLAIN
#define close_BF16S CLOSE_PLAIN
#define get_BF16S_1 get_BF16_1
#define get_BF16S_2 get_BF16_2
#define put_BF16S_1(name, value) \
    name##_new = (uint16_t)(random_bf16((float)(value), RANDOM_WORD(name)) >> 16)
#define put_BF16S_2(name, value) \
    name##_new = with_upper(name##_new, random_bf16((float)(value), RANDOM_WORD(name)), lane)
typedef stored_BF16 stored_BF16S;
typedef cell_BF16_1 cell_BF16S_1;
typedef cell_BF16_2 cell_BF16S_2;

// The bits of a float32, which have none in the lower half if it is NaN.
static inline uint32_t bits_or_nan(float value)
{
    return value != value ? 0x7fc00000 : bits_of(value);
}

// One of two neighbours in the upper half.
static inline uint32_t random_bf16(float value, uint32_t word)
{
    return bits_or_nan(value) + (word >> 16);
}

// float16, rounded at random

#define width_F16S 2
#define blocked_F16S 0
#define low_F16S NOTHING
#define setup_F16S SETUP_RANDOM
#define ahead_F16S AHEAD_PLAIN
#define open_F16S OPEN_PLAIN
#define close_F16S CLOSE_PLAIN
#define get_F16S_1 get_F16_1
#define get_F16S_2 get_F16_2
#define put_F16S_1(name, value) \
    name##_new = (uint16_t)f16_of(random_f16((float)(value), RANDOM_WORD(name)))
#define put_F16S_2(name, value) \
    name##_new |= f16_of(random_f16((float)(value), RANDOM_WORD(name))) << 16 * lane
typedef stored_F16 stored_F16S;
typedef cell_F16_1 cell_F16S_1;
typedef cell_F16_2 cell_F16S_2;

// The exponent of float16 in float32's way of counting; subnormal numbers have the least.
static inline uint32_t exponent_f16(uint32_t magnitude)
{
    return magnitude < 113 << 23 ? 113 : magnitude >> 23;
}

// One of two neighbours in float16. Beyond 2^17 all are infinite.
static inline float random_f16(float value, uint32_t word)
{
    const uint32_t magnitude = bits_of(value) & 0x7fffffff;
    const uint32_t size = magnitude < 144 << 23 ? magnitude : 144 << 23;
    const uint32_t exponent = exponent_f16(size);
    const float multiple = float_of(size) * float_of((264 - exponent) << 23);
    const float whole = (float)(int32_t)multiple;
    const float coin = (float)(int32_t)(word >> 8) * 0x1p-24f;
    const float rounded = coin < multiple - whole ? whole + 1 : whole;
    const float result = rounded * float_of((exponent - 10) << 23);
    const uint32_t sign = bits_of(value) & 0x80000000;
    return value != value ? value : float_of(bits_of(result) | sign);
}

// The remainder of a parameter

#define width_I16 2
#define blocked_I16 0
#define setup_I16 SETUP_PLAIN
#define ahead_I16 AHEAD_PLAIN
#define open_I16 OPEN_PLAIN
#define close_I16 CLOSE_PLAIN
typedef int16_t STORED stored_I16;
typedef uint16_t STORED cell_I16_1;
typedef uint32_t PAIR cell_I16_2;

// One of the two elements of a word, as a signed number.
static inline int32_t half_of(uint32_t word, int lane)
{
    return (int32_t)(lane ? word : word << 16) >> 16;
}

// bfloat16 with a remainder: the halves of a float32

#define width_BF16K 2
#define blocked_BF16K 0
#define low_BF16K I16
#define setup_BF16K SETUP_PLAIN
#define ahead_BF16K AHEAD_PLAIN
#define open_BF16K OPEN_PLAIN
#define close_BF16K CLOSE_PLAIN
#define get_BF16K_1(name) joined_bf16(half_of(name##_cell, 0), half_of(low_cell, 0))
#define get_BF16K_2(name) joined_bf16(half_of(name##_cell, lane), half_of(low_cell, lane))
#define put_BF16K_1(name, value) \
    name##_new = (uint16_t)((bits_or_nan((float)(value)) + 0x8000) >> 16); \
    low_new = (uint16_t)bits_or_nan((float)(value))
#define put_BF16K_2(name, value) \
    name##_new = with_upper(name##_new, bits_or_nan((float)(value)) + 0x8000, lane); \
    low_new |= (bits_or_nan((float)(value)) & 0xffff) << 16 * lane
typedef stored_BF16 stored_BF16K;
typedef cell_BF16_1 cell_BF16K_1;
typedef cell_BF16_2 cell_BF16K_2;

// A parameter that somebody else has set to 0 stays next to nothing.
static inline float joined_bf16(int32_t param, int32_t remainder)
{
    const int32_t size = ((param & 0x7fff) << 16) + remainder;
    return float_of((uint32_t)(size > 0 ? size : 0) | ((uint32_t)param & 0x8000) << 16);
}

// float16 with a remainder in units of 2^-15 of the last place

#define width_F16K 2
#define blocked_F16K 0
#define low_F16K I16
#define setup_F16K SETUP_PLAIN
#define ahead_F16K AHEAD_PLAIN
#define open_F16K OPEN_PLAIN
#define close_F16K CLOSE_PLAIN
#define get_F16K_1(name) joined_f16(name##_cell, half_of(low_cell, 0))
#define get_F16K_2(name) joined_f16((uint32_t)half_of(name##_cell, lane), half_of(low_cell, lane))
#define put_F16K_1(name, value) \
    name##_new = (uint16_t)f16_of((float)(value)); \
    low_new = (uint16_t)remainder_f16((float)(value))
#define put_F16K_2(name, value) \
    name##_new |= f16_of((float)(value)) << 16 * lane; \
    low_new |= (remainder_f16((float)(value)) & 0xffff) << 16 * lane
typedef stored_F16 stored_F16K;
typedef cell_F16_1 cell_F16K_1;
typedef cell_F16_2 cell_F16K_2;

// A difference keeps the sign of a zero, which a sum with 0 does not.
static inline float joined_f16(uint32_t half, int32_t remainder)
{
    const float param = of_f16(half);
    const uint32_t exponent = exponent_f16(bits_of(param) & 0x7fffffff);
    return param - (float)-remainder * float_of((exponent - 25) << 23);
}

static inline uint32_t remainder_f16(float value)
{
    const float param = of_f16(f16_of(value));
    const uint32_t exponent = exponent_f16(bits_of(param) & 0x7fffffff);
    const float units = (value - param) * float_of((279 - exponent) << 23);
    return (uint32_t)(int32_t)(fabsf(units) <= 0x1p14f ? units : 0);
}

// 16 bits with a master in float32

#define width_BF16M 2
#define blocked_BF16M 0
#define low_BF16M F32
#define setup_BF16M SETUP_PLAIN
#define ahead_BF16M AHEAD_PLAIN
#define open_BF16M OPEN_PLAIN
#define close_BF16M CLOSE_PLAIN
#define get_BF16M_1(name) \
    current(get_BF16_1(name), float_of((uint32_t)bf16_of(low_cell) << 16), low_cell)
#define put_BF16M_1(name, value) \
    put_BF16_1(name, value); \
    low_new = (float)(value)
typedef stored_BF16 stored_BF16M;
typedef cell_BF16_1 cell_BF16M_1;

#define width_F16M 2
#define blocked_F16M 0
#define low_F16M F32
#define setup_F16M SETUP_PLAIN
#define ahead_F16M AHEAD_PLAIN
#define open_F16M OPEN_PLAIN
#define close_F16M CLOSE_PLAIN
#define get_F16M_1(name) current(get_F16_1(name), of_f16(f16_of(low_cell)), low_cell)
#define put_F16M_1(name, value) \
    put_F16_1(name, value); \
    low_new = (float)(value)
typedef stored_F16 stored_F16M;
typedef cell_F16_1 cell_F16M_1;

// The master, where it still rounds to the parameter; elsewhere somebody has set the parameter.
static inline float current(float param, float rounded, float master)
{
    return rounded == param ? master : param;
}

// 8 bits

#define width_Q8 1
#define blocked_Q8 1
#define low_Q8 NOTHING
#define setup_Q8(name, row, scales) \
    SETUP_RANDOM(name, row, scales); \
    float *const name##_scales = (float *)address(piece, scales) + piece->first / BLOCK
#define ahead_Q8(name, kept)
#define open_Q8(name) decoded(name##_at + first, name##_scales[first / BLOCK], size, name##_spare)
#define close_Q8(name) \
    name##_scales[first / BLOCK] = encoded( \
        name##_spare, size, name##_key, (uint32_t)(piece->first + first), name##_at + first)
#define get_Q8_1(name) name##_cell
#define put_Q8_1(name, value) name##_new = (float)(value)
typedef uint8_t STORED stored_Q8;
typedef float STORED cell_Q8_1;

// Magnitudes of a block without signs, or with them: the bits of what the least stands for, what the
// largest stands for before it is divided by that, and the magnitude's bits.
struct magnitudes {
    uint32_t least;
    float top;
    uint32_t mask;
};

static inline struct magnitudes magnitudes_of(bool has_signs)
{
    return has_signs ? (struct magnitudes){(127 - 27) << 23, 2 - 0x1p-4f, 0x7f}
                     : (struct magnitudes){(127 - 31) << 23, 2 - 0x1p-5f, 0xff};
}

// The numbers that `size` codes stand for, and zeros up to the end of the block.
static inline float *decoded(const stored_Q8 *codes, float scale, int64_t size, float *values)
{
    const struct magnitudes kind = magnitudes_of(scale < 0);
    const uint32_t one = bits_of(1), minus = 0x80 & ~kind.mask;
    const float share = 1 / kind.top, largest = fabsf(scale);
    uint8_t block[BLOCK] = {0};
    memcpy(block, codes, (size_t)size);
    SIMD
    for (int k = 0; k < BLOCK; k++) {
        const uint32_t magnitude = block[k] & kind.mask;
        const uint32_t bits = ((bits_of((float)(int32_t)magnitude) - one) << 2) + kind.least;
        const float value = (magnitude == 0 ? 0 : float_of(bits) * share) * largest;
        values[k] = float_of(bits_of(value) | (block[k] & minus) << 24);
    }
    return values;
}

// The codes of `size` numbers, which end the tensor if they are fewer than a block. The result is
// their scale.
static inline float encoded(
    float *values, int64_t size, struct key key, uint32_t element, stored_Q8 *codes)
{
    memset(values + size, 0, (size_t)(BLOCK - size) * sizeof *values);
    // As integers NaN is the largest number.
    uint32_t largest = 0x800000, last = 0;
    _Pragma("omp simd reduction(max : largest, last)")
    for (int k = 0; k < BLOCK; k++) {
        const uint32_t bits = bits_of(values[k]), magnitude = bits & 0x7fffffff;
        largest = magnitude > largest ? magnitude : largest;
        last = bits > last ? bits : last;
    }
    const bool is_finite = largest < 0x7f800000, has_signs = last > 0x80000000;
    const struct magnitudes kind = magnitudes_of(has_signs);
    const float factor = kind.top / float_of(largest);
    const uint32_t one = bits_of(1), top = bits_of(kind.top);
    uint8_t block[BLOCK];
    SIMD
    for (int k = 0; k < BLOCK; k++) {
        const uint32_t bits = bits_of(values[k]), magnitude = bits & 0x7fffffff;
        uint32_t scaled = bits_of(float_of(magnitude) * factor);
        scaled = scaled < kind.least ? kind.least : scaled;
        scaled = scaled > top ? top : scaled;
        const float between = float_of(((scaled - kind.least) >> 2) + one);
        const uint32_t coin = word_of(key, element + (uint32_t)k) >> 20;
        const uint32_t code = ((uint32_t)(int32_t)(between * 0x1p12f + 0.5f) + coin) >> 12;
        block[k] = (uint8_t)(magnitude == 0 ? 0 : code | (bits >> 31) << 7);
    }
    if (!is_finite)
        memset(block, 0, BLOCK);
    memcpy(codes, block, (size_t)size);
    return !is_finite ? (float)NAN : has_signs ? -float_of(largest) : float_of(largest);
}
