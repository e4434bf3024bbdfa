"""Arguments about precision -> how a parameter and its slots are stored, read and written.

What they mean in numbers is in `_precision`; which there are, and their defaults, stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from . import _precision
from ._tensors import Tensors

if TYPE_CHECKING:
    from ._slots import Group, Rows

StateDtype = torch.dtype | Literal["int8"] | None
# What ends an update: it writes one tensor back.
Write = Callable[[], object]

# At these a group does not hold them, and a checkpoint is torch's.
DEFAULTS: Mapping[str, Any] = {
    "rounding": "nearest",
    "kahan": False,
    "master_weights": False,
    "state_dtype": None,
    "seed": 0,
}
# Without one of these the seed has nothing to do.
DECIDING = tuple(name for name in DEFAULTS if name != "seed")
# The number of steps that a group has taken, in the group, where random bits depend on it.
DRAWS = "draws"
# What a state holds of a parameter of 16 bits beside it.
REMAINDER, MASTER = "remainder", "master"

# Dtypes of parameters with neighbours to choose from, and of slots that are rounded at random.
SIXTEEN = (torch.bfloat16, torch.float16)
NARROW = (torch.bfloat16, "int8")
# What kernels are told where there is no policy: see `Policy.roundings`.
NEAREST = ("nearest", "nearest")


def scale_of(slot: str) -> str:
    """The name of the scales of a slot in 8 bits."""
    return f"{slot}_scale"


def precision(
    rounding: Literal["nearest", "stochastic"],
    kahan: bool,
    master_weights: bool,
    state_dtype: StateDtype,
    seed: int,
) -> Group:
    """The arguments of a constructor that are not at their defaults."""
    given = (rounding, kahan, master_weights, state_dtype, seed)
    return {
        name: value
        for (name, default), value in zip(DEFAULTS.items(), given, strict=True)
        if value != default
    }


def check(group: Group) -> None:
    """Raise ValueError for a value that is none, and for two that exclude each other."""
    rounding, kahan, master_weights, state_dtype, seed = (
        group.get(name, default) for name, default in DEFAULTS.items()
    )
    if rounding not in ("nearest", "stochastic"):
        raise ValueError(f"Invalid rounding: {rounding!r}; it is 'nearest' or 'stochastic'")
    for name in ("kahan", "master_weights"):
        if not isinstance(group.get(name, False), bool):
            raise ValueError(f"Invalid {name}: {group[name]!r}; it is True or False")
    if state_dtype not in (None, torch.float32, *NARROW):
        raise ValueError(
            f"Invalid state_dtype: {state_dtype!r}; it is torch.float32, torch.bfloat16, 'int8' "
            "or None"
        )
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 1 << 64:
        raise ValueError(f"Invalid seed: {seed!r}; it is an integer from 0 to 2 ** 64 - 1")
    if kahan and master_weights:
        raise ValueError("kahan and master_weights keep the same: choose one")
    if rounding == "stochastic" and (kahan or master_weights):
        other = "kahan" if kahan else "master_weights"
        raise ValueError(f"with {other} nothing is lost that rounding='stochastic' could make up")
    if group.get("differentiable") and decides(group):
        raise ValueError(f"differentiable=True has no gradient through {named(group)}")


def decides(group: Group) -> bool:
    """Whether one of the arguments is not at its default."""
    if group.keys().isdisjoint(DECIDING):
        return False
    return any(group.get(name, DEFAULTS[name]) != DEFAULTS[name] for name in DECIDING)


def named(group: Group) -> str:
    """What a group asks for, in words."""
    return ", ".join(n for n in DECIDING if group.get(n, DEFAULTS[n]) != DEFAULTS[n])


def refuse(group: Group, who: str) -> None:
    """Raise ValueError if a group asks for what the algorithm `who` does not do."""
    if decides(group):
        raise ValueError(f"{who} does not support {named(group)}")


def keep(loaded: Group, group: Group) -> None:
    """A checkpoint does not change how a group is stored: slots are converted."""
    for name in DECIDING:
        loaded.pop(name, None)
        if name in group:
            loaded[name] = group[name]


def needs_bits(group: Group) -> bool:
    """Whether something in a group is rounded at random."""
    return group.get("rounding") == "stochastic" or group.get("state_dtype") in NARROW


def count(group: Group, on_device: bool) -> None:
    """Begin a step: another number for its random bits. Where the step must not wait for the device
    that number lives there, and a graph counts on."""
    if not (needs_bits(group) and group["params"]):
        return
    draws = group.get(DRAWS, 0)
    if not on_device:
        group[DRAWS] = int(draws) + 1
        return
    device = group["params"][0].device
    if not (isinstance(draws, Tensor) and draws.device == device):
        with torch.inference_mode(False):
            draws = torch.full((), int(draws), dtype=torch.int64, device=device)
    group[DRAWS] = draws.add_(1)


def streams(groups: list[Group], group: Group) -> dict[Tensor, int]:
    """The random bits of each parameter of a group, by its number among those of all groups; none
    where nothing is rounded at random."""
    if not needs_bits(group):
        return {}
    seed, members = group.get("seed", 0), set(group["params"])
    params = (param for group in groups for param in group["params"])
    return {p: _precision.stream(seed, i) for i, p in enumerate(params) if p in members}


@dataclass(frozen=True)
class Policy:
    """What a group asks for, of the parameters that it is about."""

    rounding: str
    kahan: bool
    master_weights: bool
    state_dtype: StateDtype
    seed: int

    def second(self, param: Tensor) -> str:
        """The name under which the state holds the second part of a parameter, or none."""
        if param.dtype not in SIXTEEN:
            return ""
        return REMAINDER if self.kahan else MASTER if self.master_weights else ""

    def roundings(self, param: Tensor) -> tuple[str, str]:
        """What kernels are told: that they round the parameter to "nearest" or "stochastic", or
        keep a "remainder" or "master" of it; and how they round slots of 16 and 8 bits."""
        stochastic = self.rounding == "stochastic" and param.dtype in SIXTEEN
        slots = "stochastic" if self.state_dtype in NARROW else "nearest"
        return self.second(param) or ("stochastic" if stochastic else "nearest"), slots

    def example(self, param: Tensor) -> Tensor:
        """What first values of slots are made like, which is rounded to their dtype afterwards."""
        return param if self.state_dtype is None else torch.empty_like(param, dtype=torch.float32)

    def complete(self, state: dict[str, Any], param: Tensor) -> None:
        """Give the state the second part of a parameter, where it lacks it."""
        name = self.second(param)
        if not name or state.get(name) is not None:
            return
        state[name] = (
            torch.zeros_like(param, dtype=torch.int16)
            if name == REMAINDER
            else param.detach().to(torch.float32, copy=True)
        )


def of(group: Group, param: Tensor) -> Policy | None:
    """What a group asks for a parameter; None if that is stored as torch stores it. Parameters of
    64 bits and complex ones always are."""
    if not decides(group) or param.dtype not in (torch.float32, *SIXTEEN):
        return None
    return Policy(*(group.get(name, default) for name, default in DEFAULTS.items()))


def stored(policy: Policy | None, name: str, value: Tensor, param: Tensor) -> dict[str, Tensor]:
    """A slot's value as the state holds it: a tensor, or codes and scales."""
    dtype = None if policy is None else policy.state_dtype
    if dtype is None or not value.is_floating_point():
        return {name: value}
    if dtype != "int8":
        return {name: value.to(dtype)}
    if value.numel() < _precision.FEWEST:
        return {name: value.float()}
    like = param if param.shape == value.shape else value
    dense = torch.empty_like(like, dtype=torch.float32).copy_(value)
    codes, scales = _precision.encode(dense)
    return {name: codes, scale_of(name): scales}


def loaded(
    policy: Policy | None, saved: dict[str, Any], slots: list[str], param: Tensor
) -> dict[str, Any]:
    """The tensors of a checkpoint's state as this optimizer stores them.

    Args:
        policy: of the parameter.
        saved: copies, by name; `slots` are the names of tensor slots.
    """
    takes_codes = policy is not None and policy.state_dtype == "int8"
    result = dict(saved)
    for name in slots:
        value, scales = result.get(name), result.get(scale_of(name))
        if not isinstance(value, Tensor) or (takes_codes and scales is not None):
            continue
        if scales is not None:
            value = _precision.decode(value, result.pop(scale_of(name)))
        result |= stored(policy, name, value, param)
    remainder, master = result.pop(REMAINDER, None), result.pop(MASTER, None)
    second = "" if policy is None else policy.second(param)
    if second == REMAINDER and remainder is None and master is not None:
        remainder = _precision.remainder_of(master, param.dtype)
    if second == MASTER and master is None and remainder is not None:
        master = _precision.joined(param.detach(), remainder)
    value = {REMAINDER: remainder, MASTER: master}.get(second)
    return result if value is None else {**result, second: value}


def companions(slots: list[str]) -> set[str]:
    """What a state may hold beside slots."""
    return {REMAINDER, MASTER, *map(scale_of, slots)}


@dataclass
class Precision:
    """How the tensors of rows are stored, for one step.

    Args:
        policy: of all the parameters.
        seconds: the remainder or master of each, or None.
        scales: for each slot, those of each parameter, or None.
        streams: the random bits of each parameter.
        draw: the number of the step.
    """

    policy: Policy
    seconds: Tensors
    scales: dict[str, Tensors]
    streams: list[int]
    draw: int | Tensor

    def widened(self, rows: Rows) -> tuple[Rows, list[Write]]:
        """Rows in float32, whose tensors have the place of what is stored during an update, and
        what then writes each of them back."""
        writes: list[Write] = []
        params = []
        for index, (param, second) in enumerate(zip(rows.params, self.seconds, strict=True)):
            wide = _parameter(param, second)
            params.append(wide)
            if wide is not param:
                writes.append(partial(self._write_parameter, index, param, second, wide))
        slots: dict[str, Tensors] = {}
        for place, (name, column) in enumerate(rows.slots.items(), 1):
            slots[name] = column
            if column[0] is None:
                continue
            slots[name] = values = []
            for index, (slot, scales) in enumerate(zip(column, self.scales[name], strict=True)):
                wide = slot.float() if scales is None else _precision.decode(slot, scales)
                values.append(wide)
                if wide is not slot:
                    writes.append(partial(self._write_slot, index, place, slot, scales, wide))
        grads = [grad.float() for grad in rows.grads]
        wide_rows = replace(rows, params=params, grads=grads, slots=slots, precision=None)
        return wide_rows, writes

    def stored_first(
        self, index: int, name: str, place: int, value: Tensor, param: Tensor
    ) -> dict[str, Tensor]:
        """A slot's first value, where the update makes one."""
        found = stored(self.policy, name, value, param)
        self._write_slot(index, place, found[name], found.get(scale_of(name)), value)
        return found

    def _write_parameter(
        self, index: int, param: Tensor, second: Tensor | None, wide: Tensor
    ) -> None:
        if second is None:
            stochastic = self.policy.rounding == "stochastic"
            param.copy_(self._rounded(index, 0, wide, param.dtype) if stochastic else wide)
        elif second.dtype == torch.int16:
            upper, lower = _precision.split(wide, param.dtype)
            param.copy_(upper)
            second.copy_(lower)
        else:
            param.copy_(wide)
            second.copy_(wide)

    def _write_slot(
        self, index: int, place: int, slot: Tensor, scales: Tensor | None, wide: Tensor
    ) -> None:
        """Slots with a dtype of their own are rounded at random: most are running averages, whose
        small steps rounding to nearest would undo."""
        if scales is not None:
            codes, largest = _precision.encode(wide, self._bits(index, place, wide))
            slot.copy_(codes)
            scales.copy_(largest)
        elif slot.dtype == torch.bfloat16 and self.policy.state_dtype in NARROW:
            slot.copy_(self._rounded(index, place, wide, slot.dtype))
        else:
            slot.copy_(wide)

    def _rounded(self, index: int, store: int, wide: Tensor, dtype: torch.dtype) -> Tensor:
        return _precision.rounded(wide, dtype, self._bits(index, store, wide))

    def _bits(self, index: int, store: int, like: Tensor) -> Tensor:
        key = _precision.key(self.streams[index], self.draw, store)
        return _precision.random_bits(key, like)


def _parameter(param: Tensor, second: Tensor | None) -> Tensor:
    """A parameter's value in float32."""
    if second is None:
        return param.float()
    if second.dtype == torch.int16:
        return _precision.joined(param, second)
    return _precision.current(param, second)
