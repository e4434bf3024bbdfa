"""What an optimizer keeps for each parameter, how it is stored, and rows of it for an update."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from ._policy import Precision, Write
from ._tensors import Tensors, as_complex

Group = dict[str, Any]


@dataclass(frozen=True)
class Slot:
    """A tensor, or with `scalar` a number, that an optimizer keeps for each parameter. The state
    holds a number as a tensor without dimensions, or with `integer` as a Python int.

    `initial` makes its first value from the group and the parameter, None where the slot exists
    only after its first assignment. `when` says for which parameters it exists.
    """

    name: str
    initial: Callable[[Group, Tensor], Any] | None
    scalar: bool = False
    integer: bool = False
    when: Callable[[Group, Tensor], bool] | None = None
    eager: bool = False

    def exists(self, group: Group, param: Tensor) -> bool:
        return self.when is None or self.when(group, param)


@dataclass
class Rows:
    """The parameters of one group that are updated together: one device, one class of tensors, one
    set of dtypes, the same slots unset. Lists hold a tensor per parameter, `vectors` a tensor per
    scalar slot, `totals` what has been made of all parameters; `precision` says how tensors are
    stored that are not stored as torch does it."""

    params: Tensors
    grads: Tensors
    slots: dict[str, Tensors]
    unset: frozenset[str] = frozenset()
    vectors: dict[str, Tensor] = field(default_factory=dict)
    precision: Precision | None = None
    totals: dict[str, Any] = field(default_factory=dict)

    @property
    def is_complex(self) -> bool:
        return bool(self.params[0].is_complex())

    @property
    def is_sparse(self) -> bool:
        return bool(self.grads[0].is_sparse)

    def gathered(self) -> tuple[Rows, list[tuple[Tensor, Any, Tensor]]]:
        """Rows of the elements that the sparse gradients have, each once, and where they belong:
        stored tensors, indices and the values that take the place there after the update."""
        grads = [grad.coalesce() for grad in self.grads]
        # A gradient without sparse dimensions has one element: all of the parameter.
        places = [tuple(grad.indices()) or (None,) for grad in grads]
        back: list[tuple[Tensor, Any, Tensor]] = []

        def gather(column: Tensors) -> Tensors:
            if column[0] is None:
                return column
            values = [tensor[place] for tensor, place in zip(column, places, strict=True)]
            back.extend(zip(column, places, values, strict=True))
            return values

        slots = {name: gather(column) for name, column in self.slots.items()}
        values = [grad.values() for grad in grads]
        return Rows(gather(self.params), values, slots, self.unset, self.vectors), back

    def widened(self) -> tuple[Rows, list[Write]]:
        """Rows whose tensors all have the widest dtype among them, and what then rounds each stored
        tensor from the wide one that has its place during the update."""
        if self.precision is not None:
            return self.precision.widened(self)
        columns = (self.params, self.grads, *self.slots.values())
        dtypes = list(dict.fromkeys(column[0].dtype for column in columns if column[0] is not None))
        if len(dtypes) == 1:
            return self, []
        widest = widest_of(dtypes)
        writes: list[Write] = []

        def widen(column: Tensors) -> Tensors:
            if column[0] is None or column[0].dtype == widest:
                return column
            wide = [tensor.to(widest) for tensor in column]
            writes.extend(partial(s.copy_, w) for s, w in zip(column, wide, strict=True))
            return wide

        grads = [grad.to(widest) for grad in self.grads]
        slots = {name: widen(column) for name, column in self.slots.items()}
        return Rows(widen(self.params), grads, slots, self.unset, self.vectors), writes


def widest_of(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The dtype that holds all others.

    Raises:
        RuntimeError: one is that of codes, which mean nothing without a policy.
    """
    found = list(dtypes)
    if torch.uint8 in found:
        raise RuntimeError(
            "This state is in 8 bits, which a group with state_dtype='int8' reads; to store it "
            "otherwise, load its state_dict into an optimizer made for that."
        )
    return reduce(torch.promote_types, found)


class Vector:
    """The scalar slots of one name in one group as elements of one tensor, so that one addition
    advances all. The state holds views of them, each a tensor of its own."""

    def __init__(self, values: list[Any], dtype: torch.dtype, device: torch.device) -> None:
        # A tensor made in inference mode could not be written outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self.data = torch.empty(len(values), dtype=dtype, device=device)
            for index, value in enumerate(values):
                self.data[index] = value
            self.views = [self._place(v, w) for v, w in zip(values, self.data, strict=True)]
        self.addresses = [view.data_ptr() for view in self.views]

    @staticmethod
    def _place(value: Any, view: Tensor) -> Tensor:
        """The state's own tensor, moved into the vector: whoever holds it sees it advance."""
        if isinstance(value, Tensor) and (value.dtype, value.device) == (view.dtype, view.device):
            value.data = view
            return value
        return view

    def holds(self, values: list[Any]) -> bool:
        """Whether the state's numbers still lie here: users and checkpoints may replace them."""
        try:
            return list(map(Tensor.data_ptr, values)) == self.addresses
        except TypeError:  # a plain number, from an old checkpoint
            return False


def is_shared(tensor: Tensor) -> bool:
    """Whether other processes may see a tensor of the host."""
    return tensor.device.type == "cpu" and bool(tensor.is_shared())  # type: ignore[no-untyped-call]


def moved(value: Any, device: torch.device) -> Any:
    """A slot's copy on a device: a tensor, a list of them, or a number."""
    if isinstance(value, Tensor):
        return value.to(device=device, copy=True)
    return [moved(v, device) for v in value] if isinstance(value, list) else deepcopy(value)


def as_stored(value: Any, like: Tensor) -> Tensor:
    """A new value as a parameter or a slot holds it."""
    if not isinstance(value, Tensor):
        return torch.full_like(like, value)
    tensor = as_complex(value) if like.is_complex() and not value.is_complex() else value
    return tensor.to(like.dtype)


def kept(slot: Slot, value: Any, group: Group, param: Tensor, copy: bool = False) -> Any:
    """A scalar slot's value as the state holds it."""
    return int(value) if slot.integer else as_scalar(value, group, param, copy)


def scalar_dtype() -> torch.dtype:
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32


def as_scalar(value: Any, group: Group, param: Tensor, copy: bool = False) -> Tensor:
    """A scalar slot as a zero-dimensional tensor: on the host unless the step must not wait, and of
    32 bits at least, which torch's checkpoints of 16-bit parameters may lack."""
    is_real = isinstance(value, Tensor) and value.is_floating_point()
    dtype = torch.promote_types(value.dtype, torch.float32) if is_real else scalar_dtype()
    device = param.device if group["capturable"] or group["fused"] else torch.device("cpu")
    if group["fused"]:
        dtype = torch.float32
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=dtype, copy=copy)
    return torch.tensor(value, dtype=dtype, device=device)
