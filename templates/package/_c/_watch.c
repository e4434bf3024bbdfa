// Looks at tensors in each step: whether Python has the same ones in the same places, whether they
// are what they were and lie where they lay, and where the gradients are now.
//
// Python and torch are asked by functions that both show C. How they lay their objects out is not
// known here: `_watch.py` has found the three places that are read without a function. Most of the
// time is a wait for memory. To fetch it ahead, which was tried, does not shorten it.

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

// A tensor of C++ is a cell that has the address of the tensor's implementation.
typedef char *cell;
typedef int get_number(cell *, int32_t *);
typedef int get_size(cell *, int64_t *);
typedef int get_pointer(cell *, void **);

struct functions {
    intptr_t (*list_size)(void *), (*dict_size)(void *);
    void *(*list_item)(void *, intptr_t);
    int (*dict_next)(void *, intptr_t *, void **, void **);
    void *(*dict_item)(void *, void *);
    get_number *dtype, *device;
    get_size *dims;
    get_pointer *sizes, *strides, *address;
    int (*assign)(const cell *from, cell *to);
    cell *(*gradient)(cell implementation);
    void (*changed)(cell *);
    cell undefined;     // what a cell has that has no tensor
    int64_t of_class;   // where Python's object of a tensor has its class
    int64_t in_object;  // and its cell
    int64_t of_keys;    // where an implementation says what kind of tensor it is
};

// A parameter or a slot.
struct tensor {
    char *object;
    void *kind;             // the class, which says what is its gradient
    void *name;             // of a slot in the parameter's entry of the state
    const int64_t *layout;  // what `describe` has said
    void *address;
};

struct param {
    char *object;
    struct tensor *tensors;  // what is looked at: itself and its slots, or nothing
    int64_t count;
    void *entry;
    const int64_t *layout;   // of its gradient; NULL where there must be none
    bool *present;           // whether there is one, and where
    uint64_t *address;
    bool may_rest;           // whether there may be none instead
    bool has_version;
    cell held;               // the gradient, until `leave`
};

struct list {
    void *list;
    void **items;
    int64_t count;
};

struct watch {
    const struct functions *ask;
    void *state;
    void **entries;  // the state's keys, each with its value
    int64_t entry_count;
    struct list *lists;
    int64_t list_count;
    struct param *params;
    int64_t count;
};

enum { SAME, OTHER_GRADIENTS, OTHER };
// Words that describe a tensor: how many there are, its keys, dtype and device, sizes and strides.
enum { WORDS, KEYS, DTYPE, DEVICE, FIXED, MOST_DIMS = 64 };

static cell *cell_of(const struct functions *ask, char *object)
{
    return (cell *)(object + ask->in_object);
}

static int64_t keys_of(const struct functions *ask, const cell *tensor)
{
    return *(int64_t *)(*tensor + ask->of_keys);
}

// What a kernel depends on besides the address. False where torch has no answer.
static bool describe(const struct functions *ask, cell *tensor, int64_t *words)
{
    int32_t dtype, device;
    int64_t dims;
    void *sizes, *strides;
    if (ask->dtype(tensor, &dtype) || ask->device(tensor, &device) || ask->dims(tensor, &dims) ||
        dims > MOST_DIMS || ask->sizes(tensor, &sizes) || ask->strides(tensor, &strides) ||
        (dims && !(sizes && strides)))
        return false;
    words[WORDS] = FIXED + 2 * dims;
    words[KEYS] = keys_of(ask, tensor);
    words[DTYPE] = dtype;
    words[DEVICE] = device;
    for (int64_t i = 0; i < dims; i++) {
        words[FIXED + i] = ((int64_t *)sizes)[i];
        words[FIXED + dims + i] = ((int64_t *)strides)[i];
    }
    return true;
}

static bool has(get_pointer *numbers, cell *tensor, const int64_t *expected, int64_t dims)
{
    void *found;
    if (numbers(tensor, &found))
        return false;
    for (int64_t i = 0; i < dims; i++)
        if (((int64_t *)found)[i] != expected[i])
            return false;
    return true;
}

static bool is_like(const struct functions *ask, cell *tensor, const int64_t *words)
{
    // Keys come first: not every kind of tensor has strides.
    if (keys_of(ask, tensor) != words[KEYS])
        return false;
    int32_t dtype, device;
    int64_t dims;
    if (ask->dtype(tensor, &dtype) || dtype != words[DTYPE])
        return false;
    // Of a device that there is one of, the keys are enough.
    if (words[DEVICE] >= 0 && (ask->device(tensor, &device) || device != words[DEVICE]))
        return false;
    return !ask->dims(tensor, &dims) && FIXED + 2 * dims == words[WORDS] &&
           has(ask->sizes, tensor, words + FIXED, dims) &&
           has(ask->strides, tensor, words + FIXED + dims, dims);
}

static bool is_same(const struct functions *ask, const struct tensor *tensor, void *entry)
{
    if (tensor->name && ask->dict_item(entry, tensor->name) != tensor->object)
        return false;
    if (*(void **)(tensor->object + ask->of_class) != tensor->kind)
        return false;
    cell *found = cell_of(ask, tensor->object);
    void *address;
    return is_like(ask, found, tensor->layout) && !ask->address(found, &address) &&
           address == tensor->address;
}

static bool take_gradient(const struct functions *ask, struct param *param)
{
    const cell *gradient = ask->gradient(*cell_of(ask, param->object));
    *param->present = *gradient != ask->undefined;
    if (!*param->present)
        return param->may_rest;
    void *address;
    if (!param->layout || ask->assign(gradient, &param->held) ||
        !is_like(ask, &param->held, param->layout) || ask->address(&param->held, &address))
        return false;
    *param->address = (uintptr_t)address;
    return true;
}

static bool are_where_they_were(const struct watch *watch)
{
    const struct functions *ask = watch->ask;
    for (int64_t i = 0; i < watch->list_count; i++) {
        const struct list *list = watch->lists + i;
        if (ask->list_size(list->list) != list->count)
            return false;
        for (int64_t k = 0; k < list->count; k++)
            if (ask->list_item(list->list, k) != list->items[k])
                return false;
    }
    if (ask->dict_size(watch->state) != watch->entry_count)
        return false;
    intptr_t place = 0;
    void *key, *value;
    for (int64_t i = 0; i < watch->entry_count; i++)
        if (!ask->dict_next(watch->state, &place, &key, &value) || key != watch->entries[2 * i] ||
            value != watch->entries[2 * i + 1])
            return false;
    return true;
}

static int64_t look(struct watch *watch)
{
    const struct functions *ask = watch->ask;
    if (!are_where_they_were(watch))
        return OTHER;
    int64_t found = SAME;
    for (int64_t i = 0; i < watch->count; i++) {
        struct param *param = watch->params + i;
        for (int64_t k = 0; k < param->count; k++)
            if (!is_same(ask, param->tensors + k, param->entry))
                return OTHER;
        if (!take_gradient(ask, param))
            found = OTHER_GRADIENTS;
    }
    return found;
}

// Let the gradients go, which may have changed their parameters.
static void leave(struct watch *watch, int64_t changed)
{
    const struct functions *ask = watch->ask;
    for (int64_t i = 0; i < watch->count; i++) {
        struct param *param = watch->params + i;
        if (changed && *param->present && param->has_version)
            ask->changed(cell_of(ask, param->object));
        if (param->held != ask->undefined)
            ask->assign(&ask->undefined, &param->held);
    }
}

struct calls {
    bool (*describe)(const struct functions *, cell *, int64_t *);
    int64_t (*look)(struct watch *);
    void (*leave)(struct watch *, int64_t);
};

void KERNEL(struct calls *calls)
{
    *calls = (struct calls){describe, look, leave};
}
