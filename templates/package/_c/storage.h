// How tensors are stored, and how their elements become numbers. A type X has these names:
//
//   width_X         bytes of an element; 0: there is no tensor
//   blocked_X       1: the elements of a block are stored together, 0: each by itself
//   low_X           the type of a second tensor that belongs to a parameter
//   stored_X        what lies in memory
//   cell_X_1, 2     what the loop reads and writes: an element, or two of 16 bits
//   setup_X         what else an operand needs in a piece
//   ahead_X         prefetches what the loop will need, and write if it is `kept`
//   open_X          the cells of `size` elements from `first` on: the tensor's, or copies
//   close_X         brings copies back
//   get_X_1, 2      the number in the cell; of two, the one of the `lane`
//   put_X_1, 2      rounds a number into the new cell

// A tensor is aligned to its elements, and may hold other types than its owner thinks.
#define STORED __attribute__((may_alias))
#define PAIR __attribute__((may_alias, aligned(2)))

static inline float float_of(uint32_t bits)
{
    const union { uint32_t bits; float value; } both = {bits};
    return both.value;
}

static inline uint32_t bits_of(float value)
{
    const union { float value; uint32_t bits; } both = {value};
    return both.bits;
}

// Types whose elements are stored one by one

#define SETUP_PLAIN(name, row, scales)
#define AHEAD_PLAIN(name, kept) \
    ahead((const char *)name##_cells + at * (int64_t)sizeof *name##_at, sizeof *name##_at, kept)
#define OPEN_PLAIN(name) open_plain(name##_at + first, name##_spare, size, sizeof *name##_at)
#define CLOSE_PLAIN(name) close_plain(name##_at + first, name##_spare, size, sizeof *name##_at)

// Memory is asked for a kilobyte ahead; twice that where elements are small, and their arithmetic
// takes as long as that of others. Not on Zen, which foresees what is needed: asked for it, an
// update takes a tenth longer.
#if defined(__znver1__) || defined(__znver2__) || defined(__znver3__) || defined(__znver4__) \
    || defined(__znver5__)
#define ASKS_AHEAD false
#else
#define ASKS_AHEAD true
#endif

static ALWAYS_INLINE void ahead(const char *place, int64_t width, const bool kept)
{
    if (!ASKS_AHEAD)
        return;
    place += width < 4 ? 2048 : 1024;
    for (int64_t line = 0; line < STEP * width; line += 64) {
        if (kept)
            __builtin_prefetch(place + line, 1);
        else
            __builtin_prefetch(place + line, 0);
    }
}

#define COPY_STEP(cell, number) \
    do { \
        typedef cell STORED copied; \
        const number count = (number)(rest < STEP ? rest : STEP); \
        SIMD \
        for (number k = 0; k < STEP; k++) \
            if (whole) \
                ((copied *)to)[k] = k < count ? ((const copied *)from)[k] : 0; \
            else if (k < count) \
                ((copied *)to)[k] = ((const copied *)from)[k]; \
    } while (false)

// The elements of a step, of which there are `rest`. A whole step has zeros for the others. Where
// there are instructions for parts of vectors, they take less time than memcpy does.
static ALWAYS_INLINE void copy_step(
    char *to, const char *from, int64_t rest, int64_t width, const bool whole)
{
#ifdef __AVX512BW__
    switch (width) {
    case 2:
        COPY_STEP(uint16_t, int16_t);
        break;
    case 4:
        COPY_STEP(uint32_t, int32_t);
        break;
    default:
        COPY_STEP(uint64_t, int64_t);
    }
#else
    if (whole)
        memset(to, 0, (size_t)(STEP * width));
    memcpy(to, from, (size_t)((rest < STEP ? rest : STEP) * width));
#endif
}

// The elements themselves, or a copy of those that do not fill steps.
static ALWAYS_INLINE void *open_plain(void *place, void *spare, int64_t size, int64_t width)
{
    if (size % STEP == 0)
        return place;
    for (int64_t at = 0; at < size; at += STEP)
        copy_step((char *)spare + at * width, (char *)place + at * width, size - at, width, true);
    return spare;
}

static ALWAYS_INLINE void close_plain(void *place, void *spare, int64_t size, int64_t width)
{
    for (int64_t at = 0; size % STEP != 0 && at < size; at += STEP)
        copy_step((char *)place + at * width, (char *)spare + at * width, size - at, width, false);
}

// float64

#define width_F64 8
#define blocked_F64 0
#define low_F64 NOTHING
#define setup_F64 SETUP_PLAIN
#define ahead_F64 AHEAD_PLAIN
#define open_F64 OPEN_PLAIN
#define close_F64 CLOSE_PLAIN
#define get_F64_1(name) name##_cell
#define put_F64_1(name, value) name##_new = (double)(value)
typedef double STORED stored_F64;
typedef double STORED cell_F64_1;

// float32

#define width_F32 4
#define blocked_F32 0
#define low_F32 NOTHING
#define setup_F32 SETUP_PLAIN
#define ahead_F32 AHEAD_PLAIN
#define open_F32 OPEN_PLAIN
#define close_F32 CLOSE_PLAIN
#define get_F32_1(name) name##_cell
#define put_F32_1(name, value) name##_new = (float)(value)
typedef float STORED stored_F32;
typedef float STORED cell_F32_1;

// bfloat16: the upper half of a float32

#define width_BF16 2
#define blocked_BF16 0
#define low_BF16 NOTHING
#define setup_BF16 SETUP_PLAIN
#define ahead_BF16 AHEAD_PLAIN
#define open_BF16 OPEN_PLAIN
#define close_BF16 CLOSE_PLAIN
#define get_BF16_1(name) float_of((uint32_t)name##_cell << 16)
#define get_BF16_2(name) float_of(lane ? name##_cell & UPPER : name##_cell << 16)
#define put_BF16_1(name, value) name##_new = bf16_of((float)(value))
#define put_BF16_2(name, value) name##_new = with_upper(name##_new, near_bf16((float)(value)), lane)
typedef uint16_t STORED stored_BF16;
typedef uint16_t STORED cell_BF16_1;
typedef uint32_t PAIR cell_BF16_2;

#define UPPER 0xffff0000u

// The nearest bfloat16, ties to even, in the upper half; the lower half is left over. A NaN stays
// one if its lower half is 0. All are such where each tensor has 16 bits, for operations give NaNs
// without a payload or those of their operands.
static inline uint32_t near_bf16(float value)
{
    const uint32_t bits = bits_of(value);
    return bits + 0x7fff + (bits >> 16 & 1);
}

static inline uint16_t bf16_of(float value)
{
    return value != value ? 0x7fc0 : (uint16_t)(near_bf16(value) >> 16);
}

// The upper half of some bits as one of the two elements of a word, from the lower on.
static inline uint32_t with_upper(uint32_t word, uint32_t bits, int lane)
{
    return lane ? word | (bits & UPPER) : bits >> 16;
}

// float16, by operations on integers: gcc has vector instructions for these, not for its own type

#define width_F16 2
#define blocked_F16 0
#define low_F16 NOTHING
#define setup_F16 SETUP_PLAIN
#define ahead_F16 AHEAD_PLAIN
#define open_F16 OPEN_PLAIN
#define close_F16 CLOSE_PLAIN
#define get_F16_1(name) of_f16(name##_cell)
#define get_F16_2(name) of_f16(lane ? name##_cell >> 16 : name##_cell & 0xffff)
#define put_F16_1(name, value) name##_new = (uint16_t)f16_of((float)(value))
#define put_F16_2(name, value) name##_new |= f16_of((float)(value)) << 16 * lane
typedef uint16_t STORED stored_F16;
typedef uint16_t STORED cell_F16_1;
typedef uint32_t PAIR cell_F16_2;

static inline float of_f16(uint32_t half)
{
    // The exponents of float32 begin 112 lower: subnormal numbers become normal ones.
    const uint32_t magnitude = (half & 0x7fff) << 13;
    const uint32_t bits = bits_of(float_of(magnitude) * 0x1p112f);
    const uint32_t special = magnitude >= 31 << 23 ? 0x7f800000 : 0;
    return float_of(bits | special | (half & 0x8000) << 16);
}

// The nearest float16, ties to even.
static inline uint32_t f16_of(float value)
{
    const uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffff;
    // Beside 0.5, the last place of a float32 is that of a subnormal float16.
    const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
    const uint32_t normal = (magnitude - (112 << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    uint32_t half = magnitude < 113 << 23 ? subnormal : normal;
    half = magnitude >= 143 << 23 ? 0x7c00 : half;
    half = magnitude > 0x7f800000 ? 0x7e00 : half;
    return half | (bits >> 16 & 0x8000);
}

// No tensor

#define width_NOTHING 0
#define blocked_NOTHING 0
#define setup_NOTHING SETUP_PLAIN
#define ahead_NOTHING(name, kept)
#define open_NOTHING(name) NULL
#define close_NOTHING(name)
typedef uint16_t STORED stored_NOTHING;
typedef uint16_t STORED cell_NOTHING_1;
typedef uint32_t PAIR cell_NOTHING_2;
