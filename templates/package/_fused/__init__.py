"""Optimizer and groups -> one call of a kernel per device, dtypes and options: C on the CPU, Triton
on GPUs."""

from __future__ import annotations

import os
import threading
from weakref import WeakKeyDictionary

from torch import Tensor

from .._optimizer import Optimizer
from .._slots import Group
from ._backends import program_of, what_lacks_kernels
from ._plan import Plan
from ._watch import OTHER, OTHER_GRADIENTS, SAME


class _Place:
    """Where an optimizer's plan is kept. A kernel does not hold Python's lock, and reads tables
    that the next step changes: a step waits for the one before."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.plan: Plan | None = None


_places: WeakKeyDictionary[Optimizer, _Place] = WeakKeyDictionary()

if hasattr(os, "register_at_fork"):
    # A thread that held a lock is not in the child.
    os.register_at_fork(after_in_child=_places.clear)


def step(optimizer: Optimizer, groups: list[Group]) -> list[Group]:
    """Update the parameters of `groups` that have a gradient. The result are the groups that are
    done; there is no kernel for the others, whose gradients are unscaled now."""
    grad_scale: Tensor | None = getattr(optimizer, "grad_scale", None)
    found_inf: Tensor | None = getattr(optimizer, "found_inf", None)
    # Only the device knows then which step it is: the host must not compute with it.
    on_device = found_inf is not None or any(g["capturable"] for g in groups)
    place = _places.get(optimizer)
    if place is None:
        place = _places.setdefault(optimizer, _Place())
    with place.lock:
        plan = place.plan = _current(optimizer, groups, on_device, place.plan)
        changed = False
        try:
            changed = plan.calls.run(optimizer.state, grad_scale, found_inf)
        finally:
            plan.calls.watch.leave(changed=changed)
    done = set(map(id, plan.calls.done))
    others = [group for group in optimizer.param_groups if id(group) not in done]
    return plan.calls.done + _unscale(others, grad_scale, found_inf)


def _current(optimizer: Optimizer, groups: list[Group], on_device: bool, last: Plan | None) -> Plan:
    """A plan that is right, the last one as far as it is, whose watch has looked."""
    found = OTHER
    if last is not None and last.holds(optimizer, groups, on_device):
        found = last.calls.watch.look(optimizer.state)
        if found == SAME:
            return last
        last.calls.watch.leave(changed=False)
    numbers = {} if last is None else last.calls.known()
    if last is not None and found == OTHER_GRADIENTS and last.has_all():
        plan = last
        plan.call(optimizer, numbers)
    else:
        members = last.members if last is not None and found == OTHER_GRADIENTS else {}
        plan = Plan(optimizer, groups, on_device, members, numbers)
    found = plan.calls.watch.look(optimizer.state)
    assert found == SAME, "the calls were made for these tensors"
    return plan


def plan_of(optimizer: Optimizer) -> Plan | None:
    """The plan of the last step."""
    place = _places.get(optimizer)
    return None if place is None else place.plan


def serves(optimizer: Optimizer, groups: list[Group]) -> bool:
    """Whether there are kernels for one of the groups, as far as is known before they are tried."""
    plan = plan_of(optimizer)
    if plan is not None and list(map(id, groups)) == list(map(id, plan.groups)):
        return bool(plan.calls.done)
    return not all(what_lacks_kernels(optimizer, group) for group in groups)


def is_elementwise(optimizer: Optimizer) -> bool:
    """Whether an element is updated without the others, which only the kernels' modules say."""
    return bool(optimizer.kernels) and not program_of(optimizer).REDUCTIONS


def _unscale(
    groups: list[Group], grad_scale: Tensor | None, found_inf: Tensor | None
) -> list[Group]:
    """What `GradScaler` leaves to an optimizer with `fused=True`, for groups without a kernel. The
    result are those that must stay as they are."""
    if found_inf is not None and found_inf.item():
        return groups
    if grad_scale is not None:
        factor = 1 / grad_scale.item()
        for group in groups:
            for param in group["params"]:
                if param.grad is not None:
                    param.grad.mul_(factor)
    return []
