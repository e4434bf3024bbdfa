"""Groups -> the members that kernels update, and the calls that update them in one step."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim.optimizer import _device_dtype_check_for_fused
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .. import _policy
from .._slots import Group
from .._tensors import number
from . import _barriers, _cpu, _triton
from ._backends import (
    batch_of,
    has_kernel,
    has_memory,
    is_on_host,
    program_of,
    say_missing,
    what_lacks_kernels,
)
from ._members import Member, check_gradient, member_of, sharing
from ._watch import same, watch_of

if TYPE_CHECKING:
    from .._optimizer import Optimizer


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
        lags = dict(zip(map(id, groups), _lags(groups), strict=True))
        for group in self.served:
            streams = _policy.streams(optimizer.param_groups, group)
            for param in group["params"]:
                if param.grad is not None and id(param) not in self.members:
                    check_gradient(optimizer, group, param, param.grad)
                    member = member_of(optimizer, group, param, streams.get(param, 0))
                    member.kind = (member.kind_for(self.program), lags[id(group)])
                    member.may_rest = is_on_host(param.device)
                    self.members[id(param)] = member
        if len(self.members) > len(members):
            _gather(optimizer.state, self.program, list(self.members.values()))
        self.call(optimizer, numbers)

    def call(self, optimizer: Optimizer, numbers: Mapping[int, _triton.Known]) -> None:
        """Make calls for the gradients that there are."""
        self.calls = Calls(optimizer, self, numbers)
        # Nobody looks at the others.
        called = {id(m.param) for batch in self.calls.batches for m in batch.members}
        self.members = {key: m for key, m in self.members.items() if key in called}

    def _key(self) -> list[Any]:
        """What the plan was made for, besides tensors."""
        key: list[Any] = _lags(self.groups)
        deciding = () if self.program is None else self.program.DECIDING
        for group in self.groups:
            key += map(group.get, _policy.DEFAULTS)
            key += (group["maximize"], *(number(group[name]) for name in deciding))
        return key

    def holds(self, optimizer: Optimizer, groups: list[Group], on_device: bool) -> bool:
        """Whether the members are right, as far as groups decide."""
        return (
            not self.calls.unset
            and (self.on_device == on_device or not self.calls.are_on_device)
            and same(groups, self.groups)
            and self.key == self._key()
        )

    def has_all(self) -> bool:
        """Whether kernels can take all gradients, and each parameter that has one is a member."""
        return all(
            id(param) in self.members
            and not is_traceable_wrapper_subclass(param.grad)
            and has_memory(param.grad)
            for group in self.served
            for param in group["params"]
            if param.grad is not None
        )


class Calls:
    """The batches of one step, good for gradients like those that they were made for. Of members
    that may rest there may be fewer."""

    def __init__(
        self, optimizer: Optimizer, plan: Plan, numbers: Mapping[int, _triton.Known]
    ) -> None:
        members: list[Member] = []
        absent: list[Tensor] = []
        for group in plan.served:
            for param in group["params"]:
                member = plan.members.get(id(param))
                if param.grad is not None:
                    member = plan.members[id(param)]
                    check_gradient(optimizer, group, param, param.grad)
                    member.takes(param.grad)
                if member is None or (param.grad is None and not member.may_rest):
                    absent.append(param)
                else:
                    members.append(member)
        batches = _batched(members)
        refused = {id(m.group) for b in batches if not has_kernel(plan.program, b[0]) for m in b}
        if optimizer.barriers and refused:
            refused = set(map(id, plan.served))
        batches = [[m for m in b if id(m.group) not in refused] for b in batches]
        # The groups whose parameters have been updated when the calls are made.
        self.done = [group for group in plan.served if id(group) not in refused]
        self.batches = [batch_of(plan.program, b, plan.on_device, numbers) for b in batches if b]
        program = plan.program if self.batches else None
        self.barriers = () if program is None else program.BARRIERS
        self.unset = [member for b in batches for member in b if member.unset]
        self.are_on_host = any(isinstance(batch, _cpu.Batch) for batch in self.batches)
        self.are_on_device = any(isinstance(batch, _triton.Batch) for batch in self.batches)
        self.watch = watch_of(optimizer.state, plan.groups, self.batches, absent)

    def run(
        self,
        state: Mapping[Tensor, dict[str, Any]],
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> bool:
        """Update the members that have gradients, unless one of these is infinite."""
        # A device skips the step itself, but in a parameter's first step it must be known here
        # whether its slots are set: the only wait.
        if found_inf is not None and (self.are_on_host or self.unset) and found_inf.item():
            return False
        batches = [batch for batch in self.batches if any(batch.present)]
        if self.barriers:
            _barriers.run(self.barriers, batches, grad_scale, found_inf)
        else:
            for batch in batches:
                batch.run(grad_scale, found_inf)
        for member in self.unset:
            for name in member.unset:
                state[member.param][name] = member.slots[name]
        return True

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
            say_missing(what)
    served = [group for group in served if id(group) not in shared]
    if optimizer.barriers and served and len(served) < len(optimizer.param_groups):
        # What is made of all parameters is made in one way.
        if any(group["fused"] or group["capturable"] for group in served):
            say_missing("groups beside one without, where all make a number together")
        return []
    return served


def _lags(groups: list[Group]) -> list[Any]:
    """How far each group is from the first in the number of a step that random bits depend on,
    which a call has one of. A number on a device is its group's own."""
    counts = [group.get(_policy.DRAWS) for group in groups]
    first = next((count for count in counts if isinstance(count, int)), 0)
    return [
        id(group) if isinstance(count, Tensor) else None if count is None else count - first
        for group, count in zip(groups, counts, strict=True)
    ]


def _gather(state: Any, program: Any, members: list[Member]) -> None:
    """Lay scalar slots on the host next to each other, so that one operation writes all."""
    kinds: dict[Hashable, list[Member]] = {}
    for member in members:
        if is_on_host(member.param.device):
            kinds.setdefault(member.kind, []).append(member)
    for alike in kinds.values():
        for name in program.SCALAR_SLOTS:
            _cpu.gather(state, alike, name)


def _batched(members: list[Member]) -> list[list[Member]]:
    """Members by what one call has in common."""
    batches: dict[Hashable, list[Member]] = {}
    for member in members:
        batches.setdefault((member.kind, member.grad_dtype), []).append(member)
    return list(batches.values())
