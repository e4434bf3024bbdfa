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

// Of two choices behind each other, gcc makes branches with a copy of the second in each, and of
// these conditions of conditions: Rprop gets twice as many instructions.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-thread-jumps")
#endif

enum {
    STEP = 64,        // elements in one step of the loop: full vectors of every kind
    BLOCK = 256,      // elements that may be stored together
    CHUNK = 1 << 18,  // elements that a thread takes at once
    PIECE = 1 << 16,  // elements whose terms are added up
    SOON = 4,         // the tensor so many places behind another one is asked for with it
};

#define ALWAYS_INLINE inline __attribute__((always_inline))
#define SIMD _Pragma("omp simd")
#define UNROLLED _Pragma("GCC unroll 2")
#define ALIGNED __attribute__((aligned(64)))
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
    int64_t begin;           // the stage to begin with, and the one to end before: 0 if the call
    int64_t end;             // goes on and updates
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
#define add_square TYPED(add_square)

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

// In a piece: a number for each place in a step, which takes in the terms of the elements there. The
// last step of a tensor has places without an element: their numbers stay what they were before.
#define TERMS(name) double name##_terms[STEP] ALIGNED = {0}
#define STEP_TERMS(name) \
    double name##_before[STEP]; \
    if (size - at < STEP) \
        memcpy(name##_before, name##_terms, sizeof name##_terms)
#define TERM(take, name) take(&name##_terms[lane * (STEP / LANES) + i - at / LANES], name)
#define STEP_ENDS(name) \
    if (size - at < STEP) \
        restore(name##_terms, name##_before, size - at, LANES)

// Of all places. Four sums at a time: one addition after the other takes as long as four do.
static inline double total_of_step(const double *terms)
{
    double found[4] = {0};
    for (int k = 0; k < STEP; k += 4)
        for (int lane = 0; lane < 4; lane++)
            found[lane] += terms[k + lane];
    return total(found, 4, 1);
}

static inline double largest_of_step(const double *terms)
{
    return largest(terms, STEP, 1);
}

static inline void restore(double *terms, const double *before, int64_t count, int lanes)
{
    for (int k = 0; k < STEP; k++)
        if (k % (STEP / lanes) * lanes + k / (STEP / lanes) >= count)
            terms[k] = before[k];
}

static ALWAYS_INLINE void add(double *found, double term)
{
    *found += term;
}

static ALWAYS_INLINE void keep_larger(double *found, double term)
{
    *found = larger(*found, term);
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
    CELL(type) name##_spare[BLOCK] ALIGNED UNUSED; \
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
// The number of the element in its piece.
#define ELEMENT (first + i * LANES + lane)

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

// A processor foresees what comes next in a tensor, but not where the next tensor is. (Of a function
// that does nothing but prefetch, gcc removes the calls, unless it is inline.)
static ALWAYS_INLINE void ask_for(const struct batch *batch, int64_t tensor, int64_t operands)
{
    for (int64_t row = 0; row < operands && tensor < batch->count; row++) {
        const uint64_t place = batch->address[row * batch->count + tensor];
        if (place)
            __builtin_prefetch((void *)(uintptr_t)place);
    }
}

static inline void update_chunk(
    const struct batch *batch, int64_t operands, int64_t from, int64_t to, update_piece *update)
{
    for (int64_t tensor = tensor_of(batch, from); from < to; tensor++) {
        const int64_t start = batch->start[tensor], end = batch->start[tensor + 1];
        const int64_t last = end < to ? end : to;
        ask_for(batch, tensor + SOON, operands);
        while (from < last) {
            const int64_t same = start + ((from - start) | 0xffffffff) + 1;
            const int64_t stop = last < same ? last : same;
            update(&(struct piece){batch, tensor, from - start, stop - from});
            from = stop;
        }
    }
}

// A thread has a share of all chunks, the same in each step: `each` of them. It goes on with those
// that others have not come to, beside whom another program may run. With `back`, the last chunk of
// a share comes first. The result is `each * threads` where none is left.
static inline int64_t next_chunk(
    int64_t *taken, int64_t threads, int64_t each, int64_t own, bool back)
{
    for (int64_t i = 0; i < threads; i++) {
        const int64_t share = (own + i) % threads;
        int64_t next;
#pragma omp atomic capture
        next = taken[share]++;
        if (next < each)
            return share * each + (back ? each - 1 - next : next);
    }
    return threads * each;
}

static inline void update_all(const struct batch *batch, int64_t operands, update_piece *update)
{
    const int64_t total = batch->start[batch->count], threads = batch->threads;
    if (threads == 1 || total == 0) {
        update_chunk(batch, operands, 0, total, update);
        return;
    }
    const int64_t each = (total + CHUNK * threads - 1) / (CHUNK * threads);
    const int64_t chunks = threads * each, size = (total + chunks - 1) / chunks;
    int64_t taken[threads];
    memset(taken, 0, sizeof taken);
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int64_t own = 0; own < threads; own++)
        for (int64_t n; (n = next_chunk(taken, threads, each, own, false)) < chunks;) {
            const int64_t from = n * size, to = from + size;
            update_chunk(batch, operands, cut(batch, from), cut(batch, to), update);
        }
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
    int64_t operands;
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

// The stage that a call ends before.
static inline int64_t end_of(const struct batch *batch, const struct stages *stages)
{
    return batch->end ? batch->end : stages->count;
}

// Whether one thread does to a tensor all that a call does, and finds it in its cache when it comes
// to the update: to a chunk or less, and where each thread has several such tensors.
static inline bool is_alone(const struct batch *batch, int64_t tensor)
{
    const int64_t total = batch->start[batch->count], threads = batch->threads;
    const int64_t size = size_of(batch, tensor);
    return threads == 1 || size <= CHUNK || size <= total / (8 * threads);
}

static inline void update_alone(
    const struct batch *batch, const struct stages *stages, int64_t tensor)
{
    const int64_t pieces = (size_of(batch, tensor) + PIECE - 1) / PIECE;
    ask_for(batch, tensor + SOON, stages->operands);
    for (int64_t i = batch->begin; i < end_of(batch, stages); i++) {
        const struct stage *stage = stages->first + i;
        double *partial = batch->partial + first_piece(batch, tensor) * stage->count;
        for (int64_t n = 0; n < pieces; n++) {
            const struct piece piece = piece_of(batch, tensor, n);
            stage->measure(&piece, partial + n * stage->count);
        }
        finish_tensor(batch, stage, tensor);
    }
    // The last is most surely in the cache.
    for (int64_t n = pieces; n > 0 && !batch->end; n--) {
        const struct piece piece = piece_of(batch, tensor, n - 1);
        stages->update(&piece);
    }
}

// The pieces of larger tensors with numbers in a range: measured by a stage, or updated if there is
// none; then also the tensors that one thread takes.
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
        const bool alone = is_alone(batch, tensor);
        if (alone && !stage && from == before)
            update_alone(batch, stages, tensor);
        for (; from < stop; from++) {
            if (alone || (from - before) * PIECE >= size)
                continue;
            const struct piece piece = piece_of(batch, tensor, from - before);
            if (stage)
                stage->measure(&piece, batch->partial + from * stage->count);
            else if (!batch->end)
                stages->update(&piece);
        }
    }
}

static inline void update_in_stages(const struct batch *batch, const struct stages *stages)
{
    const int64_t pieces = first_piece(batch, batch->count), threads = batch->threads;
    // Enough for each thread to take fewer where another program runs beside it.
    const int64_t all = (pieces + threads - 1) / threads, each = all < 16 ? all : 16;
    const int64_t chunks = threads * each, end = end_of(batch, stages);
    int64_t taken[(end + 1) * threads];
    memset(taken, 0, sizeof taken);
#pragma omp parallel num_threads(threads) if (threads > 1)
    for (int64_t i = batch->begin; i <= end; i++) {
        const struct stage *stage = i < end ? stages->first + i : NULL;
        int64_t *now = taken + i * threads;
#pragma omp for schedule(static, 1)
        for (int64_t own = 0; own < threads; own++)
            // What a thread has measured last is most surely in its cache.
            for (int64_t n; (n = next_chunk(now, threads, each, own, !stage)) < chunks;)
                go_through(batch, stages, stage, pieces * n / chunks, pieces * (n + 1) / chunks);
#pragma omp for
        for (int64_t tensor = 0; tensor < batch->count; tensor++)
            if (stage && !is_alone(batch, tensor))
                finish_tensor(batch, stage, tensor);
    }
}

#endif
