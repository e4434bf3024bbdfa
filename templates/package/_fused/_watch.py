"""Tensors of a plan -> whether they still are what they were, and where their gradients are.

Nothing tells an optimizer that a tensor has been given other memory, so each step looks at every
one of them. In Python that takes longer than to update a small tensor. C does it with functions of
Python and torch: those for lists and dictionaries, those that torch has for compiled models, and
two of C++ by the names that compilers give them. Where something is missing, Python looks.
"""

from __future__ import annotations

import ctypes
import sys
from collections import defaultdict
from collections.abc import (
    Callable,
    Collection,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import suppress
from functools import cache
from itertools import chain
from operator import is_
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.overrides import has_torch_function_unary

from .._slots import Group
from . import _compile

if TYPE_CHECKING:
    from ._batch import Batch
    from ._members import Member

State = Mapping[Tensor, dict[str, Any]]
address = Tensor.data_ptr
KERNEL = _compile.Kernel("_watch", (), calls_python=True)
# What a look finds: all is as it was; gradients are not, in layout or in number; more is not.
SAME, OTHER_GRADIENTS, OTHER = range(3)


def watch_of(
    state: State, groups: list[Group], batches: Sequence[Batch], absent: list[Tensor]
) -> Watch:
    """A watch for the tensors of batches, and for parameters that have no gradient."""
    with suppress(LookupError):
        if _is_plain(state):
            return _Quick(state, groups, batches, absent)
    return Watch(state, groups, batches, absent)


class Watch:
    """It holds what it looks at, so nothing else can come to stand in the same place. A look gives
    the gradients to the batches, and holds them until `leave`."""

    def __init__(
        self, state: State, groups: list[Group], batches: Sequence[Batch], absent: list[Tensor]
    ) -> None:
        self.groups = groups
        self.lists = [list(group["params"]) for group in groups]
        self.owners, self.entries = list(state), list(state.values())
        self.batches, self.absent = batches, absent
        self.members = [member for batch in batches for member in batch.members]
        # For each of them its entry of the state, and the slots that must be in it.
        self.slots = [
            (state.get(m.param, {}), {k: slot for k, slot in m.slots.items() if k not in m.unset})
            for m in self.members
        ]
        self.grads: list[Tensor | None] = []
        self._remember()

    def _remember(self) -> None:
        self.tensors = [m.param for m in self.members]
        self.tensors += [slot for _, slots in self.slots for slot in slots.values()]
        self.are_like = likeness_test(self.tensors)
        self.addresses = list(map(address, self.tensors))

    def look(self, state: State) -> int:
        """SAME, OTHER_GRADIENTS or OTHER. A state that is another dictionary may be the same."""
        if not (
            all(
                same(g["params"], params) for g, params in zip(self.groups, self.lists, strict=True)
            )
            and same(state, self.owners)
            and same(state.values(), self.entries)
            and all(
                entry.get(k) is slot for entry, slots in self.slots for k, slot in slots.items()
            )
            and self.are_like(*self.tensors)
            and list(map(address, self.tensors)) == self.addresses
        ):
            return OTHER
        if any(param.grad is not None for param in self.absent):
            return OTHER_GRADIENTS
        for batch in self.batches:
            grads = [member.param.grad for member in batch.members]
            self.grads += grads
            if not all(map(_is_like, grads, batch.members)):
                return OTHER_GRADIENTS
            batch.take(grads)
        return SAME

    def leave(self, *, changed: bool) -> None:
        """Let the gradients go. Autograd is told of changed parameters, which it does not see."""
        if changed:
            increment_version(
                member.param
                for member, grad in zip(self.members, self.grads, strict=True)
                if grad is not None and has_version(member.param)
            )
        self.grads = []


def _is_like(grad: Tensor | None, member: Member) -> bool:
    """Whether a gradient is like the last one of a member, or need not be there."""
    if grad is None:
        return member.may_rest
    return description(grad) == member.grad_like


def has_version(tensor: Tensor) -> bool:
    """Tensors of inference mode have none."""
    return not tensor.is_inference()


# Tensors that stay the same


def same(found: Collection[Any], expected: Collection[Any]) -> bool:
    """Whether two collections have the same objects in the same order."""
    return len(found) == len(expected) and all(map(is_, found, expected))


def description(tensor: Tensor) -> Hashable:
    """What a kernel depends on besides the address."""
    functions = prepared()
    words = (ctypes.c_int64 * MOST_WORDS)()
    if functions is None or not functions.describe(functions.cell_of(tensor), words):
        properties: Hashable = _properties(tensor)
        return properties
    return bytes(words)[: 8 * words[0]]


def likeness_test(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    """A test of as many tensors: true if all have the types, devices, dtypes, sizes and strides
    that these have, and none comes twice where none did."""
    # Torch's test wants tensors that are not each other.
    if tensors and len({*map(id, tensors)}) == len(tensors):
        with suppress(ImportError):  # it is torch's own, and may go
            from torch._C._dynamo.guards import TensorGuards

            guards = TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)
            test: Callable[..., bool] = guards.check
            return test
    properties = list(map(_properties, tensors))
    return lambda *others: list(map(_properties, others)) == properties


def _properties(tensor: Any) -> Any:
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
        return None
    return (
        *(type(tensor), tensor.device, tensor.dtype, tensor.shape, tensor.stride()),
        *(tensor.is_neg(), tensor.is_inference()),
    )


# The same in C

MOST_WORDS = 4 + 2 * 64
_word, _pointer = ctypes.c_int64, ctypes.c_void_p
_PYTHON = (
    *("PyList_Size", "PyDict_Size", "PyList_GetItem", "PyDict_Next", "PyDict_GetItemWithError"),
)
_TORCH = (
    *("aoti_torch_get_dtype", "aoti_torch_get_device_index", "aoti_torch_get_dim"),
    *("aoti_torch_get_sizes", "aoti_torch_get_strides", "aoti_torch_get_data_ptr"),
    "aoti_torch_assign_tensors",
    "_ZNK3c1010TensorImpl4gradEv",
    "_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE",
)


class _Ask(ctypes.Structure):
    """`struct functions`."""

    _fields_ = (
        *((name, _pointer) for name in (*_PYTHON, *_TORCH)),
        ("undefined", _pointer),
        *((name, _word) for name in ("of_class", "in_object", "of_keys")),
    )


class _Tensor(ctypes.Structure):
    _fields_ = tuple((n, _pointer) for n in ("object", "kind", "name", "layout", "address"))


class _Param(ctypes.Structure):
    _fields_ = (
        ("object", _pointer),
        ("tensors", _pointer),
        ("count", _word),
        *((name, _pointer) for name in ("entry", "layout", "present", "address")),
        *((name, ctypes.c_bool) for name in ("may_rest", "has_version")),
        ("held", _pointer),
    )


class _List(ctypes.Structure):
    _fields_ = (("list", _pointer), ("items", _pointer), ("count", _word))


class _Watch(ctypes.Structure):
    _fields_ = (
        *((name, _pointer) for name in ("ask", "state", "entries")),
        ("entry_count", _word),
        ("lists", _pointer),
        ("list_count", _word),
        ("params", _pointer),
        ("count", _word),
    )


class _Calls(ctypes.Structure):
    _fields_ = (
        ("describe", ctypes.PYFUNCTYPE(ctypes.c_bool, _pointer, _pointer, _pointer)),
        ("look", ctypes.PYFUNCTYPE(_word, _pointer)),
        ("leave", ctypes.PYFUNCTYPE(None, _pointer, _word)),
    )


class _Functions:
    """C's functions, and what they ask.

    Raises:
        LookupError, OSError, Unavailable: C cannot look at tensors here.
    """

    def __init__(self) -> None:
        self.ask = _asked()
        calls = _Calls()
        _compile.load(KERNEL)(ctypes.byref(calls))
        self.look, self.leave = calls.look, calls.leave
        self._describe = calls.describe

    def cell_of(self, tensor: Tensor) -> int:
        return id(tensor) + int(self.ask.in_object)

    def describe(self, cell: int, words: Any) -> bool:
        return bool(self._describe(ctypes.addressof(self.ask), cell, ctypes.addressof(words)))


@cache
def prepared() -> _Functions | None:
    """None where Python has to look."""
    # C borrows objects, which other threads do not take away while Python has its lock.
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return None
    with suppress(AttributeError, LookupError, OSError, _compile.Unavailable):
        return _Functions()
    return None


def _asked() -> _Ask:
    """Functions by name, and places by what must be found there, in tensors of many kinds."""
    python, library = ctypes.pythonapi, ctypes.CDLL(torch._C.__file__)
    ask = _Ask()
    for names, source in ((_PYTHON, python), (_TORCH, library)):
        for name in names:
            setattr(ask, name, ctypes.cast(getattr(source, name), _pointer))
    param = torch.nn.Parameter(torch.zeros(2, 3))
    param.grad = torch.ones(2, 3)
    with torch.inference_mode():
        kinds = [torch.zeros(3)]
    kinds += [param, param.grad, torch._neg_view(torch.zeros(4).double()), torch.zeros(2, 3).t()]
    kinds += [torch.zeros(2, device="meta"), torch.zeros(())]
    cells = [int(t._cdata) for t in kinds]
    keys = [torch._C._dispatch_keys(t).raw_repr() for t in kinds]
    objects = list(map(id, kinds))
    ask.of_class = _place(objects, list(map(id, map(type, kinds))), Tensor.__basicsize__)
    ask.in_object = _place(objects, cells, Tensor.__basicsize__)
    ask.of_keys = _place(cells, keys, 256)
    # What the functions take is a cell.
    capsule = torch._C._aoti.unsafe_alloc_void_ptr_from_tensor(param)
    python.PyCapsule_GetPointer.restype = _pointer
    made = python.PyCapsule_GetPointer(ctypes.py_object(capsule), None)
    _place([made], [cells[1]], 8)
    library.aoti_torch_delete_tensor_object(_pointer(made))
    # A parameter's gradient is one, too.
    gradient: Any = library._ZNK3c1010TensorImpl4gradEv
    gradient.restype = _pointer
    _place([gradient(_pointer(cells[1]))], [cells[2]], 8)
    ask.undefined = _pointer.from_address(gradient(_pointer(cells[-1]))).value
    return ask


def _place(starts: Sequence[int], values: Sequence[int], size: int) -> int:
    """Where each piece of memory has its value. Raises LookupError."""
    for place in range(0, size, 8):
        if all(
            ctypes.c_uint64.from_address(start + place).value == value
            for start, value in zip(starts, values, strict=True)
        ):
            return place
    raise LookupError


class _Quick(Watch):
    """A watch that C goes through.

    Raises:
        LookupError: C cannot look at these.
    """

    def _remember(self) -> None:
        functions = prepared()
        self.found = [group["params"] for group in self.groups]
        if (
            functions is None
            or not all(map(_has_own_grad, (param for params in self.lists for param in params)))
            or not all(isinstance(found, list) for found in self.found)
            or not all(map(_is_plain, self.entries))
        ):
            raise LookupError
        self.functions = functions
        # What C has the addresses of.
        self.kept: list[Any] = []
        self.layouts: dict[Hashable, int] = {}
        tensors = [
            self._tensor(name, tensor)
            for member, (_, slots) in zip(self.members, self.slots, strict=True)
            for name, tensor in ((None, member.param), *slots.items())
        ]
        params = [*self._batched(self._array(_Tensor, tensors)), *map(self._absent, self.absent)]
        self.watch = _Watch(
            ask=ctypes.addressof(functions.ask),
            entries=self._ids(chain(*zip(self.owners, self.entries, strict=True))),
            entry_count=len(self.entries),
            lists=self._array(_List, list(map(self._list, self.found))),
            list_count=len(self.found),
            params=self._array(_Param, params),
            count=len(params),
        )

    def look(self, state: State) -> int:
        if not (_is_plain(state) and same([group["params"] for group in self.groups], self.found)):
            return OTHER
        self.watch.state = id(state)
        found: int = self.functions.look(ctypes.addressof(self.watch))
        return found

    def leave(self, *, changed: bool) -> None:
        self.functions.leave(ctypes.addressof(self.watch), changed)

    # Tables

    def _batched(self, tensors: int) -> Iterator[_Param]:
        """The members of batches, which C writes to, with their tensors one behind the other."""
        slots = iter(self.slots)
        for batch in self.batches:
            gradients, present = map(ctypes.addressof, (batch.gradients, batch.present))
            for place, member in enumerate(batch.members):
                entry, found = next(slots)
                count = 1 + len(found)
                yield _Param(
                    tensors=tensors,
                    count=count,
                    entry=id(entry),
                    layout=self._layout(member.grad_like),
                    present=present + place,
                    address=gradients + 8 * place,
                    may_rest=member.may_rest,
                    has_version=has_version(member.param),
                    **self._gradient_of(member.param),
                )
                tensors += count * ctypes.sizeof(_Tensor)

    def _absent(self, param: Tensor) -> _Param:
        """A parameter of which it matters only that it has no gradient."""
        present = self._array(ctypes.c_bool, [False])
        return _Param(present=present, may_rest=True, **self._gradient_of(param))

    def _gradient_of(self, param: Tensor) -> dict[str, Any]:
        ask = self.functions.ask
        return {"object": id(param), "held": ask.undefined}

    def _tensor(self, name: str | None, tensor: Tensor) -> _Tensor:
        return _Tensor(
            object=id(tensor),
            kind=id(type(tensor)),
            name=None if name is None else id(name),
            layout=self._layout(description(tensor)),
            address=address(tensor),
        )

    def _layout(self, words: Hashable) -> int:
        """Where words are that describe a tensor: most have the same as others."""
        if not isinstance(words, bytes):
            raise LookupError
        if words not in self.layouts:
            self.layouts[words] = self._array(_word, memoryview(words).cast("q").tolist())
        return self.layouts[words]

    def _list(self, params: list[Tensor]) -> _List:
        return _List(id(params), self._ids(params), len(params))

    def _ids(self, objects: Iterable[Any]) -> int:
        return self._array(_pointer, list(map(id, objects)))

    def _array(self, kind: Any, values: Sequence[Any]) -> int:
        """The address of values that lie next to each other."""
        self.kept.append((kind * len(values))(*values))
        return ctypes.addressof(self.kept[-1])


def _is_plain(found: object) -> bool:
    """Whether C sees what Python does: a subclass may have another order, or other items."""
    return type(found) in (dict, defaultdict)


def _has_own_grad(param: Tensor) -> bool:
    """Whether torch's `grad` is what one is given who asks for it."""
    return type(param).grad is Tensor.grad and not has_torch_function_unary(param)
