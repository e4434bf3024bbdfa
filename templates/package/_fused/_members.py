"""Parameters with their slots as kernels take them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import _policy, _precision
from .._policy import Policy
from .._slots import Group
from ._watch import description

if TYPE_CHECKING:
    from .._optimizer import Optimizer

# What kernels read and write.
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# What else where a policy rounds slots.
CODES = torch.uint8

# What a kernel is specialised by, by the names of its constants.
Constants = dict[str, torch.dtype | bool | str]


@dataclass(slots=True)
class Member:
    """A parameter with its slots by name, those that do not exist left out. `flat` is what a kernel
    takes for the parameter: itself, or a dense copy where it has gaps or overlaps. Under a policy
    of precision `slots` has the second tensor of the parameter, and scales, and `stream` is the key
    of its random bits. Members of one `kind` may share a call.

    Of the last gradient there are the dtype, a description, and whether kernels take a copy of it.
    A call may leave out a member that `may_rest`, where its gradient is missing."""

    group: Group
    param: Tensor
    flat: Tensor
    slots: dict[str, Tensor]
    unset: frozenset[str] = frozenset()
    policy: Policy | None = None
    stream: int = 0
    kind: Hashable = None
    grad_dtype: torch.dtype = torch.float32
    grad_like: Hashable = None
    is_relaid: bool = False
    may_rest: bool = False

    def takes(self, grad: Tensor) -> None:
        """Let gradients be like this one."""
        self.grad_dtype = grad.dtype
        self.grad_like = description(grad)
        self.is_relaid = not lies_as(grad, self.flat)

    def given(self, program: Any) -> tuple[Any, ...]:
        """The inputs of the scalar program that are not slots."""
        inputs: tuple[Any, ...] = program.inputs(self.group, self.param, self.unset)
        return inputs

    def likeness(self, program: Any) -> Hashable:
        """Members that agree in this have the same inputs, now and after the group has changed."""
        return (id(self.group), self.given(program))

    def kind_for(self, program: Any) -> Hashable:
        """What a kernel is specialised by, but for the gradient."""
        return (
            self.param.device,
            self.param.dtype,
            tuple((name, slot.dtype) for name, slot in self.slots.items()),
            tuple(self.group[name] for name in program.OPTIONS),
            self.group["maximize"],
            self.roundings(),
        )

    def roundings(self) -> tuple[str, str]:
        """How the parameter is stored, and how slots are rounded."""
        return _policy.NEAREST if self.policy is None else self.policy.roundings(self.param)

    def constants(self, program: Any) -> Constants:
        """The same by the names of the kernel's constants."""
        dtypes = {name: slot.dtype for name, slot in self.slots.items()}
        dtypes |= {"param": self.param.dtype, "grad": self.grad_dtype}
        options = [name for name in program.OPTIONS if self.group[name]]
        return constants(program, dtypes, [*self.slots, *options], self.roundings())


def constants(
    program: Any,
    dtypes: Mapping[str, torch.dtype],
    chosen: Collection[str],
    roundings: tuple[str, str] = _policy.NEAREST,
) -> Constants:
    """What a kernel is specialised by.

    Args:
        dtypes: of the parameter, the gradient and the slots, by name.
        chosen: the names of options that are on, and of slots that exist.
        roundings: how the parameter is stored, and how slots are rounded: see `Policy.roundings`.
    """
    param = dtypes["param"]
    # An absent slot is never read; any type will do.
    stored = {name: dtypes.get(name, param) for name in ("param", "grad", *program.SLOTS)}
    taken = (*DTYPES, CODES) if roundings[1] == "stochastic" else DTYPES
    unknown = [str(dtype) for dtype in stored.values() if dtype not in taken]
    if unknown:
        raise RuntimeError(f"`fused=True` has no kernel for {', '.join(unknown)}.")
    return {
        "COMPUTE": torch.float64 if param is torch.float64 else torch.float32,
        **{f"{name.upper()}_TYPE": dtype for name, dtype in stored.items()},
        **{f"HAS_{name.upper()}": name in chosen for name in program.OPTIONAL_SLOTS},
        **{name.upper(): name in chosen for name in program.OPTIONS},
        **dict(zip(("PARAM_ROUNDING", "SLOT_ROUNDING"), roundings, strict=True)),
    }


def check_gradient(optimizer: Optimizer, group: Group, param: Tensor, grad: Tensor) -> None:
    """Raise RuntimeError for a gradient that kernels do not take."""
    optimizer._check_param_and_grad(group, param, grad)
    if grad.layout is not torch.strided:
        what = f"The fused kernel of {type(optimizer).__name__}"
        raise RuntimeError(f"{what} does not support sparse gradients")
    _check_like(grad, param, "grad")


def member_of(optimizer: Optimizer, group: Group, param: Tensor, stream: int) -> Member:
    """A parameter of an optimizer, with its slots as kernels take them, in the state too. `stream`
    is the key of its random bits."""
    state = optimizer._initialise(group, param)
    policy = _policy.of(group, param)
    flat = flat_of(param)
    slots: dict[str, Tensor] = {}
    unset: list[str] = []
    for slot in optimizer.slots:
        if not slot.exists(group, param):
            continue
        if state.get(slot.name) is None:
            fresh = _policy.stored(policy, slot.name, torch.empty_like(flat), flat)
            unset += fresh
            slots |= fresh
        elif slot.scalar:
            slots[slot.name] = torch.as_tensor(state[slot.name]).to(param.device, torch.float32)
            state[slot.name] = slots[slot.name]
        else:
            slots |= _slots_like(state, slot.name, flat)
    second = "" if policy is None else policy.second(param)
    if second:
        slots |= _slots_like(state, second, flat)
    state |= {name: tensor for name, tensor in slots.items() if name not in unset}
    return Member(group, param, flat, slots, frozenset(unset), policy, stream)


# Layouts


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill their memory, as they are."""
    dense = torch.empty_like(tensor, device="meta").stride() == tensor.stride()
    return dense and not tensor.is_neg()


def flat_of(tensor: Tensor) -> Tensor:
    """What a kernel takes for a tensor: itself, or room for a dense copy of it."""
    return tensor if is_dense(tensor) else torch.empty_like(tensor)


def lies_as(tensor: Tensor, flat: Tensor) -> bool:
    """Whether the elements lie in memory in the order of another tensor's, of the same shape."""
    is_same = tensor.stride() == flat.stride() or _order(tensor) == _order(flat)
    return is_same and not tensor.is_neg()


def _order(tensor: Tensor) -> list[tuple[int, int]]:
    """The strides, but for dimensions of one element."""
    return [(n, s) for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n != 1]


def laid_as(tensor: Tensor, flat: Tensor) -> Tensor:
    """A copy of the tensor with its elements in the order of another one's."""
    return torch.empty_like(flat, dtype=tensor.dtype).copy_(tensor)


def _slots_like(state: Mapping[str, Any], name: str, flat: Tensor) -> dict[str, Tensor]:
    """A slot, and its scales if it has some, with its elements in the order of a parameter's."""
    tensor, scale = state[name], _policy.scale_of(name)
    found = _slot_like(tensor, flat, name)
    if scale not in state:
        return {name: found}
    if found is tensor:
        return {name: tensor, scale: state[scale]}
    values = laid_as(_precision.decode(tensor, state[scale]), flat)
    return dict(zip((name, scale), _precision.encode(values), strict=True))


def _slot_like(tensor: Tensor, flat: Tensor, what: str) -> Tensor:
    _check_like(tensor, flat, what)
    return tensor if lies_as(tensor, flat) else laid_as(tensor, flat)


def _check_like(tensor: Tensor, flat: Tensor, what: str) -> None:
    """Raise RuntimeError for a tensor of another shape or device than its parameter's."""
    if tensor.shape != flat.shape or tensor.device != flat.device:
        raise RuntimeError(
            f"{what} has shape {tuple(tensor.shape)} on {tensor.device}, its parameter has shape "
            f"{tuple(flat.shape)} on {flat.device}."
        )


def sharing(groups: Sequence[Group]) -> list[Group]:
    """The groups with parameters that have memory in common, as one has with itself that is held
    twice."""
    params = [(param, place) for place, group in enumerate(groups) for param in group["params"]]
    count = Counter(id(param) for param, _ in params)
    found = {place for param, place in params if count[id(param)] > 1}
    last, owner = -1, 0
    for start, end, place in sorted((*_span(p), place) for p, place in params if p.numel()):
        if start < last:
            found |= {owner, place}
        if end > last:
            last, owner = end, place
    return [groups[place] for place in sorted(found)]


def _span(tensor: Tensor) -> tuple[int, int]:
    """The first address, and the one behind the last element."""
    steps = ((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return start, start + (sum(steps) + 1) * tensor.element_size()
