"""Runs of schedules give torch's rates float for float, its momentums, states, warnings and errors,
but for listed deviations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as torchs

from tests import schedules
from tests.drawn_schedules import PLANS, survey
from tests.schedules import (
    DEVIATIONS,
    THEIRS,
    Deviation,
    assert_close,
    compare,
    differences,
    matches,
    right,
    single,
    trace,
)

FEW, MANY = 10, 60


@pytest.mark.parametrize("plan", PLANS)
def test_runs_show_what_torchs_show(plan: str) -> None:
    assert survey(plan, FEW)["rates"] > 0


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("plan", PLANS)
def test_many_runs_show_what_torchs_show(plan: str) -> None:
    assert survey(plan, MANY)["rates"] > 0


@pytest.mark.parametrize("deviation", DEVIATIONS, ids=lambda d: d.schedule)
def test_each_deviation_shows_itself_and_torch_is_not_right(deviation: Deviation) -> None:
    run = deviation.example
    assert deviation.concerns(run)
    counts = compare(run)
    assert counts[deviation.reason] == 1
    if matches("rates", deviation.parts):
        with pytest.raises(AssertionError):
            assert_close(right(run), trace(run, THEIRS))


# The comparison itself


def test_torch_compared_with_itself_has_no_differences() -> None:
    run = single("CyclicLR", base_lr=0.1, max_lr=[0.5, 0.7], mode="exp_range", gamma=0.99)
    assert differences(run, trace(run, THEIRS), trace(run, THEIRS)) == {}


class OneUlpOff(torchs.ExponentialLR):
    def get_lr(self) -> list[Any]:
        rates = super().get_lr()
        return [r * (1 + 2**-52) if self.last_epoch == 321 else r for r in rates]


class Forgetful(torchs.ExponentialLR):
    def state_dict(self) -> dict[str, Any]:
        return {key: value for key, value in super().state_dict().items() if key != "base_lrs"}


class Loud(torchs.ExponentialLR):
    def step(self, epoch: int | None = None) -> None:
        if self._step_count == 7:
            torchs.warnings.warn("seven", stacklevel=2)
        super().step(epoch)


class Grabbing(torchs.ExponentialLR):
    def get_lr(self) -> list[Any]:
        self.optimizer.param_groups[0]["extra"] = 1
        return super().get_lr()


class Failing(torchs.ExponentialLR):
    def get_lr(self) -> list[Any]:
        if self.last_epoch == 99:
            raise ValueError("99")
        return super().get_lr()


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        (OneUlpOff, {"rates", "last", "ExponentialLR._last_lr of 0"}),
        (Forgetful, {"ExponentialLR.base_lrs of 0"}),
        (Loud, {"warnings"}),
        (Grabbing, {"groups"}),
        (Failing, {"error"}),
    ],
)
def test_a_difference_in_any_part_is_found(kind: Any, parts: set[str]) -> None:
    run = single("ExponentialLR", gamma=0.99)
    wrong = trace(run, {**THEIRS, "ExponentialLR": kind})
    assert differences(run, trace(run, THEIRS), wrong).keys() == parts


def test_a_zeros_sign_and_nan_compare_and_an_integer_is_its_float() -> None:
    plain = schedules.plain
    assert plain(-0.0) != plain(0.0)
    assert plain(float("nan")) == plain(float("nan"))
    assert plain([1, {"a": True}]) == plain((1.0, {"a": True}))
    assert plain(torch.tensor(1.0)) != plain(torch.tensor(1.0, dtype=torch.float64))
