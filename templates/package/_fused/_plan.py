"""Groups -> the members that kernels update, and the calls that update them in one step."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim.optimizer import _device_dtype_check_for_fused
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .. import _policy
from .._slots import Group
from .._tensors import number
from . import _cpu, _triton
from ._backends import (
    WITHOUT,
    Pairs,
    batch_of,
    is_on_host,
    kernel_of,
    program_of,
    say_once,
    what_lacks_kernels,
)
from ._compile import Unavailable
from ._members import Member, Watch, check_gradient, likeness_test, member_of, same, sharing

if TYPE_CHECKING:
    from .._optimizer import Optimizer

_gradient = attrgetter("grad")


class Plan:
    """The members of one optimizer, good while groups, parameters and slots stay what and where
    they are, and the calls of its last step."""

    def __init__(
        self,
        optimizer: Optimizer,
        groups: list[Group],
        on_device: bool,
        members: Mapping[int, Member],
        numbers: Mapping[int, _triton.Known],
    ) -> None:
        """
        Args:
            groups: those that want kernels.
            on_device: whether only the device knows which step it is.
            members: those that are right already, by the identity of their parameters.
            numbers: scalar slots that the host need not ask their device for.
        """
        self.groups = groups
        self.on_device = on_device
        self.served = _served(optimizer, groups)
        self.program = program_of(optimizer) if self.served else None
        self.key = self._key()
        self.members = dict(members)
        for group in self.served:
            streams = _policy.streams(optimizer.param_groups, group)
            for param in group["params"]:
                if param.grad is not None and id(param) not in self.members:
                    check_gradient(optimizer, group, param, param.grad)
                    member = member_of(optimizer, group, param, streams.get(param, 0))
                    member.kind = member.kind_for(self.program)
                    self.members[id(param)] = member
        if len(self.members) > len(members):
            _gather(optimizer.state, self.program, list(self.members.values()))
        self.calls = Calls(optimizer, self, numbers)
        self.watch = Watch(
            optimizer.state,
            groups,
            list(self.members.values()),
            () if self.program is None else self.program.SCALAR_SLOTS,
        )

    def _key(self) -> list[Any]:
        """What the plan was made for, besides tensors."""
        key: list[Any] = []
        deciding = () if self.program is None else self.program.DECIDING
        for group in self.groups:
            key += map(group.get, _policy.DEFAULTS)
            key += (group["maximize"], *(number(group[name]) for name in deciding))
        return key

    def holds(self, optimizer: Optimizer, groups: list[Group], on_device: bool) -> bool:
        """Whether the members are right."""
        return (
            not self.calls.unset
            and (self.on_device == on_device or not self.calls.are_on_device)
            and same(groups, self.groups)
            and self.key == self._key()
            and self.watch.holds(optimizer.state)
        )

    def has_all(self) -> bool:
        """Whether kernels can take all gradients, and each parameter that has one is a member."""
        return all(
            id(param) in self.members and not is_traceable_wrapper_subclass(param.grad)
            for group in self.served
            for param in group["params"]
            if param.grad is not None
        )


class Calls:
    """The batches of one step, good for gradients like those that they were made for."""

    def __init__(
        self, optimizer: Optimizer, plan: Plan, numbers: Mapping[int, _triton.Known]
    ) -> None:
        pairs: Pairs = []
        self.absent: list[Tensor] = []
        for group in plan.served:
            for param in group["params"]:
                if param.grad is None:
                    self.absent.append(param)
                else:
                    check_gradient(optimizer, group, param, param.grad)
                    pairs.append((plan.members[id(param)], param.grad))
        batches = _batched(pairs)
        refused = {id(m.group) for b in batches if not _has_kernel(plan.program, b) for m, _ in b}
        batches = [[pair for pair in b if id(pair[0].group) not in refused] for b in batches]
        # The groups whose parameters have been updated when the calls are made.
        self.done = [group for group in plan.served if id(group) not in refused]
        self.batches = [batch_of(plan.program, b, plan.on_device, numbers) for b in batches if b]
        self.params = [member.param for b in batches for member, _ in b]
        self.are_like = likeness_test([grad for b in batches for _, grad in b])
        # Autograd has to be told what it does not see. Tensors of inference mode have no versions.
        self.changed = [param for param in self.params if not param.is_inference()]
        self.unset = [member for b in batches for member, _ in b if member.unset]
        self.are_on_host = any(isinstance(batch, _cpu.Batch) for batch in self.batches)
        self.are_on_device = any(isinstance(batch, _triton.Batch) for batch in self.batches)

    def gradients(self) -> list[Tensor] | None:
        """The gradients, for `run`; None if they are not like those of before."""
        grads = list(map(_gradient, self.params))
        if any(grad is not None for grad in map(_gradient, self.absent)):
            return None
        return grads if self.are_like(*grads) else None

    def run(
        self,
        state: Mapping[Tensor, dict[str, Any]],
        grads: list[Tensor],
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        # A device skips the step itself, but in a parameter's first step it must be known here
        # whether its slots are set: the only wait.
        if found_inf is not None and (self.are_on_host or self.unset) and found_inf.item():
            return
        start = 0
        for batch in self.batches:
            end = start + len(batch.members)
            batch.run(grads[start:end], grad_scale, found_inf)
            start = end
        increment_version(self.changed)
        for member in self.unset:
            for name in member.unset:
                state[member.param][name] = member.slots[name]

    def known(self) -> dict[int, _triton.Known]:
        """What the batches know of scalar slots on their devices."""
        numbers: dict[int, _triton.Known] = {}
        for batch in self.batches:
            if isinstance(batch, _triton.Batch):
                numbers.update(batch.numbers.known())
        return numbers


def _served(optimizer: Optimizer, groups: list[Group]) -> list[Group]:
    """The groups that there are kernels for. Of others it is said, where somebody asked for it."""
    for group in groups:
        for param in group["params"] if group["fused"] else ():
            _device_dtype_check_for_fused(param)
    missing = [what_lacks_kernels(optimizer, group) for group in groups]
    served = [group for group, what in zip(groups, missing, strict=True) if not what]
    # A kernel updates its parameters in any order, and elements of several at once.
    shared = set(map(id, sharing(served)))
    for group, what in zip(groups, missing, strict=True):
        what = "parameters that share memory" if id(group) in shared else what
        if what and (group["fused"] or group["capturable"]):
            say_once(f"There is no fused kernel for {what}. {WITHOUT}")
    return [group for group in served if id(group) not in shared]


def _gather(state: Any, program: Any, members: list[Member]) -> None:
    """Lay scalar slots on the host next to each other, so that one operation writes all."""
    kinds: dict[Hashable, list[Member]] = {}
    for member in members:
        if is_on_host(member.param.device):
            kinds.setdefault(member.kind, []).append(member)
    for alike in kinds.values():
        for name in program.SCALAR_SLOTS:
            _cpu.gather(state, alike, name)


def _batched(pairs: Pairs) -> list[Pairs]:
    """Members by what one call has in common."""
    batches: dict[Hashable, Pairs] = {}
    for member, grad in pairs:
        batches.setdefault((member.kind, grad.dtype), []).append((member, grad))
    return list(batches.values())


def _has_kernel(program: Any, pairs: Pairs) -> bool:
    try:
        kernel_of(program, pairs)
    except Unavailable as reason:
        say_once(f"{reason} {WITHOUT}")
        return False
    return True
