// Tensors in a list -> their addresses. `item` is Python's, `address` is torch's.

#include <stdint.h>

void KERNEL(
    void *(*item)(void *, intptr_t), void *(*address)(void *),
    void *list, intptr_t count, uint64_t *into)
{
    for (intptr_t i = 0; i < count; i++)
        into[i] = (uintptr_t)address(item(list, i));
}
