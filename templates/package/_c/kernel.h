// What the kernels in C share. Macros make a text the kernel of one specialisation:
//
//   KERNEL        the name of its entry
//   COMPUTE       float or double: the type of arithmetic
//   <NAME>_TYPE   how the parameter, the gradient and each slot are stored: a name of storage.h
//   HAS_<SLOT>    0 or 1, where a slot may be absent
//   <OPTION>      0 or 1
//
// A text may be included several times with other macros. A result depends on neither the number of
// threads, nor the alignment of tensors, nor where in its tensor an element stands.

#ifndef KERNEL_H
#define KERNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <tgmath.h>

enum {
    STEP = 64,        // elements in one step of the loop: full vectors of every kind
    BLOCK = 256,      // elements that may be stored together
    CHUNK = 1 << 18,  // elements that a thread takes at once
    PIECE = 1 << 16,  // elements whose terms are added up: all stages find them in the cache
};

#define ALWAYS_INLINE inline __attribute__((always_inline))
#define SIMD _Pragma("omp simd")
#define UNROLLED _Pragma("GCC unroll 2")
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
// A name of this specialisation.
#define LOCAL(name) JOIN(name##_, KERNEL)

// Arguments

// What a call is given. Rows of `address` have an entry per tensor: parameters, gradients, each
// slot, second tensors of parameters, then the scales of each slot; 0 where there is none.
struct batch {
    int64_t count;           // tensors
    int64_t threads;         // of the team
    const int64_t *start;    // count + 1 numbers: the elements before each tensor
    const int64_t *row;      // the row of `table` for each tensor
    const uint64_t *address;
    const double *table;     // rows of numbers
    const uint64_t *stream;  // the key of each tensor's random bits, or NULL
    uint64_t draw;           // the number of this step, for random bits
    double factor;           // of the gradients: undoes a loss scale, and is negative to maximise
    double *partial;         // space for reductions, or NULL
    double *reduced;         // results of reductions, or NULL
};

// Elements of one tensor, whose numbers have the same upper 32 bits. `first` is a multiple of BLOCK.
struct piece {
    const struct batch *batch;
    int64_t tensor;
    int64_t first;
    int64_t count;
};

static ALWAYS_INLINE void *address(const struct piece *piece, int64_t row)
{
    const struct batch *batch = piece->batch;
    return (void *)(uintptr_t)batch->address[row * batch->count + piece->tensor];
}

static ALWAYS_INLINE const double *numbers(const struct piece *piece, int64_t columns)
{
    return piece->batch->table + piece->batch->row[piece->tensor] * columns;
}

static inline double *reductions(const struct batch *batch, int64_t tensor, int64_t count)
{
    return batch->reduced + tensor * count;
}

// Arithmetic, in the type of the specialisation

#define T float
#define N(name) name##_float
#include "arithmetic.h"
#define T double
#define N(name) name##_double
#include "arithmetic.h"

#define real COMPUTE
#define R(literal) ((real)(literal))
#define TYPED(name) JOIN(name##_, COMPUTE)
#define add_scaled TYPED(add_scaled)
#define addcmul TYPED(addcmul)
#define addcdiv TYPED(addcdiv)
#define lerp TYPED(lerp)
#define rdiv TYPED(rdiv)
#define rsqrt TYPED(rsqrt)
#define maximum TYPED(maximum)
#define minimum TYPED(minimum)
#define sign TYPED(sign)
#define where TYPED(where)
#define number TYPED(number)

static inline bool both(bool x, bool y)
{
    return x & y;
}

static inline bool either(bool x, bool y)
{
    return x | y;
}

static inline bool negation(bool x)
{
    return !x;
}

// Reductions: what each element gives, and how terms are added up. All of it is float64, in an order
// that depends on the place in the tensor alone.

static inline double widened(double x)
{
    return x;
}

static inline double square(double x)
{
    return x * x;
}

static inline double product(double x, double y)
{
    return x * y;
}

static inline double magnitude(double x)
{
    return fabs(x);
}

// The larger one; NaN where one of them is.
static inline double larger(double x, double y)
{
    return maximum_double(x, y);
}

// Of numbers that each stand `stride` behind the one before.
static inline double total(const double *terms, int64_t count, int64_t stride)
{
    double found = 0;
    for (int64_t i = 0; i < count; i++)
        found += terms[i * stride];
    return found;
}

static inline double largest(const double *terms, int64_t count, int64_t stride)
{
    double found = 0;
    for (int64_t i = 0; i < count; i++)
        found = larger(found, terms[i * stride]);
    return found;
}

// In a piece: numbers that take the terms of a step in, each those of some places in it. In a step:
// the terms of its elements, and nothing in the places that it has no element for.
#define TERMS(name) double name##_terms[STEP / 4] = {0}
#define STEP_TERMS(name) double name##_each[STEP]
#define TERM(name) name##_each[lane * (STEP / LANES) + i - at / LANES] = name
#define TAKE(take, name) \
    do { \
        if (size - at < STEP) \
            clear_rest(name##_each, size - at, LANES); \
        take(name##_terms, name##_each); \
    } while (false)

static inline void clear_rest(double *each, int64_t count, int lanes)
{
    for (int k = 0; k < STEP; k++)
        if (k % (STEP / lanes) * lanes + k / (STEP / lanes) >= count)
            each[k] = 0;
}

static ALWAYS_INLINE void add(double *terms, const double *each)
{
    enum { N = STEP / 4 };
    for (int k = 0; k < N; k++)
        terms[k] += (each[k] + each[k + N]) + (each[k + 2 * N] + each[k + 3 * N]);
}

static ALWAYS_INLINE void keep_larger(double *terms, const double *each)
{
    for (int k = 0; k < STEP; k++)
        terms[k % (STEP / 4)] = larger(terms[k % (STEP / 4)], each[k]);
}

// Operands: the tensors that a kernel goes through, by name. storage.h and precision.h have a row of
// macros for each type.

#include "storage.h"
#include "precision.h"

#define CELL(type) JOIN(JOIN(cell_, type), JOIN(_, LANES))
#define UNUSED __attribute__((unused))
#define WHERE(present, action) \
    do { \
        if (present) { \
            action; \
        } \
    } while (false)

// The second tensor of parameters.
#define LOW_TYPE JOIN(low_, PARAM_TYPE)
#define HAS_LOW (JOIN(width_, LOW_TYPE) != 0)
// LANES is 2 where each tensor has 16 bits or is absent: two elements are then one word.
#define IS_NARROW(type) (JOIN(width_, type) == 2 || JOIN(width_, type) == 0)
#define IS_BLOCKED(type) JOIN(blocked_, type)

// In a piece: the tensor from its first element on, and room for copies of a block.
#define OPERAND(name, type, row, scales) \
    JOIN(stored_, type) *const name##_at UNUSED = \
        (JOIN(stored_, type) *)address(piece, row) + piece->first; \
    CELL(type) name##_spare[BLOCK] UNUSED; \
    JOIN(setup_, type)(name, row, scales)

// In a block: its cells.
#define OPEN(name, type, present) \
    CELL(type) *const name##_cells = (present) ? (CELL(type) *)JOIN(open_, type)(name) : NULL
#define CLOSE(name, type, present) WHERE(present, JOIN(close_, type)(name))
#define AHEAD(name, type, present, kept) WHERE(present, JOIN(ahead_, type)(name, kept))

// In a step: one of the cells, and its elements.
#define FETCH(name, type, present) \
    const CELL(type) name##_cell UNUSED = (present) ? name##_cells[i] : 0; \
    CELL(type) name##_new UNUSED = 0
#define GET(name, type) ((real)JOIN(JOIN(get_, type), JOIN(_, LANES))(name))
#define PUT(name, type, value) JOIN(JOIN(put_, type), JOIN(_, LANES))(name, value)
#define KEEP(name, present) WHERE(present, name##_cells[i] = name##_new)
// The number of the element in its tensor.
#define ELEMENT (piece->first + first + i * LANES + lane)

// The loops of a kernel

// How many of the `rest` elements come next: what fills steps, then what is left. Where elements
// are stored in blocks, it is a block.
static ALWAYS_INLINE int64_t next(int64_t rest, bool blocked)
{
    if (blocked)
        return rest < BLOCK ? rest : BLOCK;
    return rest < STEP ? rest : rest / STEP * STEP;
}

// Two copies of `call`, in each of which a condition is a constant.
#define FIX(condition, call) \
    if (condition) { \
        enum { condition = true }; \
        call; \
    } else { \
        enum { condition = false }; \
        call; \
    }

// All tensors one behind the other are cut into chunks for threads, at multiples of BLOCK in each.

// The tensor that holds an element.
static inline int64_t tensor_of(const struct batch *batch, int64_t element)
{
    int64_t low = 0, high = batch->count;
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        if (batch->start[middle] <= element)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static inline int64_t cut(const struct batch *batch, int64_t element)
{
    if (element >= batch->start[batch->count])
        return batch->start[batch->count];
    const int64_t start = batch->start[tensor_of(batch, element)];
    return start + (element - start) / BLOCK * BLOCK;
}

typedef void update_piece(const struct piece *piece);

static inline void update_chunk(
    const struct batch *batch, int64_t from, int64_t to, update_piece *update)
{
    for (int64_t tensor = tensor_of(batch, from); from < to; tensor++) {
        const int64_t start = batch->start[tensor], end = batch->start[tensor + 1];
        const int64_t last = end < to ? end : to;
        while (from < last) {
            const int64_t same = start + ((from - start) | 0xffffffff) + 1;
            const int64_t stop = last < same ? last : same;
            update(&(struct piece){batch, tensor, from - start, stop - from});
            from = stop;
        }
    }
}

static inline void update_all(const struct batch *batch, update_piece *update)
{
    const int64_t total = batch->start[batch->count], threads = batch->threads;
    if (threads == 1) {
        update_chunk(batch, 0, total, update);
        return;
    }
    // As many for each thread, which may take fewer where another program runs beside it.
    const int64_t chunks = (total + CHUNK * threads - 1) / (CHUNK * threads) * threads;
    const int64_t size = (total + chunks - 1) / chunks;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t chunk = 0; chunk < chunks; chunk++)
        update_chunk(batch, cut(batch, chunk * size), cut(batch, (chunk + 1) * size), update);
}

// Updates that need numbers of whole tensors: passes that make them, then the update. A tensor is cut
// into pieces from its first element on, whatever stands before it.

// `measure` leaves `count` numbers of a piece, `finish` makes those of a tensor of all its pieces'.
struct stage {
    void (*measure)(const struct piece *piece, double *partial);
    void (*finish)(
        const struct batch *batch, int64_t tensor, const double *partial, int64_t pieces);
    int64_t count;
};

struct stages {
    const struct stage *first;
    int64_t count;
    update_piece *update;
};

// Pieces are numbered through all tensors: each tensor has at least as many numbers as it needs.
static inline int64_t first_piece(const struct batch *batch, int64_t tensor)
{
    return batch->start[tensor] / PIECE + tensor;
}

static inline int64_t size_of(const struct batch *batch, int64_t tensor)
{
    return batch->start[tensor + 1] - batch->start[tensor];
}

static inline struct piece piece_of(const struct batch *batch, int64_t tensor, int64_t index)
{
    const int64_t first = index * PIECE, rest = size_of(batch, tensor) - first;
    return (struct piece){batch, tensor, first, rest < PIECE ? rest : PIECE};
}

static inline void finish_tensor(
    const struct batch *batch, const struct stage *stage, int64_t tensor)
{
    const double *partial = batch->partial + first_piece(batch, tensor) * stage->count;
    stage->finish(batch, tensor, partial, (size_of(batch, tensor) + PIECE - 1) / PIECE);
}

// Everything that a tensor of one piece needs, while it is in the cache.
static inline void update_small(
    const struct batch *batch, const struct stages *stages, int64_t tensor)
{
    const struct piece piece = piece_of(batch, tensor, 0);
    for (int64_t i = 0; i < stages->count; i++) {
        const struct stage *stage = stages->first + i;
        stage->measure(&piece, batch->partial + first_piece(batch, tensor) * stage->count);
        finish_tensor(batch, stage, tensor);
    }
    stages->update(&piece);
}

// The pieces of larger tensors with numbers in a range: measured by a stage, or updated if there is
// none; then also the tensors of one piece.
static inline void go_through(
    const struct batch *batch,
    const struct stages *stages,
    const struct stage *stage,
    int64_t from,
    int64_t to)
{
    int64_t low = 0, high = batch->count;
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        if (first_piece(batch, middle) <= from)
            low = middle;
        else
            high = middle;
    }
    for (int64_t tensor = low; from < to; tensor++) {
        const int64_t before = first_piece(batch, tensor), size = size_of(batch, tensor);
        const int64_t behind = first_piece(batch, tensor + 1), stop = behind < to ? behind : to;
        if (size <= PIECE && !stage && from == before)
            update_small(batch, stages, tensor);
        for (; from < stop; from++) {
            if (size <= PIECE || (from - before) * PIECE >= size)
                continue;
            const struct piece piece = piece_of(batch, tensor, from - before);
            if (stage)
                stage->measure(&piece, batch->partial + from * stage->count);
            else
                stages->update(&piece);
        }
    }
}

static inline void update_in_stages(const struct batch *batch, const struct stages *stages)
{
    const int64_t pieces = first_piece(batch, batch->count), threads = batch->threads;
    // Enough for each thread to take fewer where another program runs beside it.
    const int64_t most = 16 * threads, chunks = pieces < most ? pieces : most;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        for (int64_t i = 0; i < stages->count; i++) {
            const struct stage *stage = stages->first + i;
#pragma omp for schedule(dynamic)
            for (int64_t chunk = 0; chunk < chunks; chunk++)
                go_through(
                    batch, stages, stage, pieces * chunk / chunks, pieces * (chunk + 1) / chunks);
#pragma omp for
            for (int64_t tensor = 0; tensor < batch->count; tensor++)
                if (size_of(batch, tensor) > PIECE)
                    finish_tensor(batch, stage, tensor);
        }
#pragma omp for schedule(dynamic)
        for (int64_t chunk = 0; chunk < chunks; chunk++)
            go_through(batch, stages, NULL, pieces * chunk / chunks, pieces * (chunk + 1) / chunks);
    }
}

#endif
