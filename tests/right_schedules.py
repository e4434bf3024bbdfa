"""torch's schedules as they should be, where they are wrong."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

from torch.optim import lr_scheduler as torchs
from torch.optim import swa_utils

Kinds = dict[str, Any]
NAMES = (*(name for name in torchs.__all__ if name != "LRScheduler"), "SWALR")
THEIRS: Kinds = {name: getattr(torchs, name, None) or getattr(swa_utils, name) for name in NAMES}

# Schedules whose rate is a function of the epoch and the first rates: where torch's
# ChainedScheduler has one, it undoes what the schedules before it did.
ABSOLUTE = ("LambdaLR", "CosineAnnealingWarmRestarts", "CyclicLR", "OneCycleLR", "SequentialLR")


class Found:
    """What is made with last_epoch takes the rate that it finds."""

    def get_lr(self: Any) -> list[Any]:
        if self._is_initial and self.last_epoch > 0:
            return [group["lr"] for group in self.optimizer.param_groups]
        rates: list[Any] = super().get_lr()  # type: ignore[misc]
        return rates


class Step(Found, torchs.StepLR):
    pass


class MultiStep(Found, torchs.MultiStepLR):
    pass


class Linear(torchs.LinearLR):
    """Its closed form is that of no iterations, too, and it ends at 0, not below."""

    def get_lr(self) -> list[Any]:
        if self.total_iters > 0:
            return [
                lr.clamp(min=0) if hasattr(lr, "clamp") else max(lr, 0.0) for lr in super().get_lr()
            ]
        factor = self.end_factor if self.last_epoch == 0 else 1
        return [group["lr"] * factor for group in self.optimizer.param_groups]

    def _get_closed_form_lr(self) -> list[Any]:
        if self.total_iters > 0:
            return super()._get_closed_form_lr()
        return [base * self.end_factor for base in self.base_lrs]


class Constant(Found, torchs.ConstantLR):
    """It leaves its factor after total_iters epochs, if these are none or the factor is 0, too."""

    def get_lr(self) -> list[Any]:
        first = self._is_initial and self.last_epoch > 0
        if (
            not first
            and self.last_epoch == self.total_iters
            and (self.total_iters == 0 or self.factor == 0)
        ):
            return list(self.base_lrs)
        return super().get_lr()


class Restarts(torchs.LRScheduler):
    """CosineAnnealingWarmRestarts as a function of the epoch."""

    def __init__(
        self, optimizer: Any, T_0: int, T_mult: int = 1, eta_min: float = 0.0, last_epoch: int = -1
    ) -> None:
        self.T_0, self.T_mult, self.eta_min = T_0, T_mult, eta_min
        super().__init__(optimizer, last_epoch)

    def step(self, epoch: float | None = None) -> None:
        super().step(epoch)  # type: ignore[arg-type]
        self.last_epoch = math.floor(self.last_epoch)

    def get_lr(self) -> list[Any]:
        since, length = self.last_epoch, self.T_0
        while since >= length:
            since, length = since - length, length * self.T_mult
        height = (1 + math.cos(math.pi * since / length)) / 2
        return [self.eta_min + (base - self.eta_min) * height for base in self.base_lrs]


class Cyclic(torchs.CyclicLR):
    """It begins with base_lr, whatever a schedule before it has noted as the first rate."""

    def __init__(self, optimizer: Any, *args: Any, last_epoch: int = -1, **kwargs: Any) -> None:
        super().__init__(optimizer, *args, last_epoch=last_epoch, **kwargs)
        if last_epoch == -1:
            self._update_lr(0)


class OneCycle(torchs.OneCycleLR):
    """It stays at its end, and a phase of one epoch is at its end."""

    def get_lr(self) -> list[Any]:
        t, phases = self.last_epoch, self._schedule_phases
        phase = next((p for p in phases if t <= p["end_step"]), phases[-1])
        end = [group[phase["end_lr"]] for group in self.optimizer.param_groups]
        if phase["end_step"] < t <= self.total_steps:
            return end
        try:
            return super().get_lr()
        except ZeroDivisionError:
            return end


class Averaging(swa_utils.SWALR):
    """SWALR as a function of the epoch, not of the number of steps."""

    def get_lr(self) -> list[Any]:
        if self._is_initial and self.last_epoch > 0:
            return [group["lr"] for group in self.optimizer.param_groups]
        self._step_count, count = self.last_epoch + 1, self._step_count
        try:
            return super().get_lr()
        finally:
            self._step_count = count


class Combined:
    """What combines schedules that each have an optimizer of their own."""

    def __init__(self, optimizer: Any, schedulers: Iterable[Any]) -> None:
        self.optimizer, self._schedulers = optimizer, list(schedulers)
        self.last_epoch = -1
        self.step()

    def step(self) -> None:
        self.last_epoch += 1
        for group, lr in zip(self.optimizer.param_groups, self.next(), strict=True):
            group["lr"] = lr

    def next(self) -> list[Any]:
        raise NotImplementedError

    def get_last_lr(self) -> list[Any]:
        return [group["lr"] for group in self.optimizer.param_groups]


class Sequence(Combined):
    """Each schedule from its milestone on, from its own beginning."""

    def __init__(self, optimizer: Any, schedulers: Iterable[Any], milestones: list[int]) -> None:
        self.milestones = milestones
        super().__init__(optimizer, schedulers)

    def next(self) -> list[Any]:
        schedule = self._schedulers[bisect_right(self.milestones, self.last_epoch)]
        if self.last_epoch not in (0, *self.milestones):
            schedule.step()
        elif isinstance(schedule, CHANGES) and self.last_epoch > 0:
            for group, lr in zip(schedule.optimizer.param_groups, self.get_last_lr(), strict=True):
                group["lr"] = lr
            schedule._update_lr(0)
        return schedule.get_last_lr()


# Schedules that begin with the rate that they find.
CHANGES = (torchs.MultiplicativeLR, swa_utils.SWALR)


class Product(Combined):
    """The first schedule that gives rates, times the factors of the others on theirs."""

    def next(self) -> list[Any]:
        if self.last_epoch > 0:
            for schedule in self._schedulers:
                schedule.step()
        rates = [(s.get_last_lr(), first_rates(s)) for s in self._schedulers]
        first = next((i for i, s in enumerate(self._schedulers) if is_absolute(s)), 0)
        found = rates[first][0]
        for i, (lrs, bases) in enumerate(rates):
            if i != first:
                found = [f * lr / base for f, lr, base in zip(found, lrs, bases, strict=True)]
        return found


def first_rates(schedule: Any) -> list[Any]:
    """What a schedule's rates are multiples of."""
    initial = [group["initial_lr"] for group in schedule.optimizer.param_groups]
    return getattr(schedule, "base_lrs", initial)


def is_absolute(schedule: Any) -> bool:
    if isinstance(schedule, Product):
        return any(map(is_absolute, schedule._schedulers))
    return isinstance(schedule, (*(THEIRS[name] for name in ABSOLUTE), Restarts, Sequence))


RIGHT: Kinds = {
    **THEIRS,
    "StepLR": Step,
    "MultiStepLR": MultiStep,
    "LinearLR": Linear,
    "ConstantLR": Constant,
    "CosineAnnealingWarmRestarts": Restarts,
    "CyclicLR": Cyclic,
    "OneCycleLR": OneCycle,
    "SWALR": Averaging,
}
COMBINED: Kinds = {"SequentialLR": Sequence, "ChainedScheduler": Product}
