"""Numbers of all parameters that several launches make together."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

import generated
from generated._fused import _batch
from tests import test_global
from tests.triton.interpreted import oracle

package = test_global.package


@pytest.mark.parametrize("flags", test_global.FLAGS)
def test_totals_of_totals_follow_the_interpreter(package: Any, flags: tuple[bool, bool]) -> None:
    """Passes of one parameter and of all of them, in two launches where the flags differ."""
    batches = importlib.import_module(f"{package.__name__}._fused._batch")
    before = batches.launches
    test_global.check_nested(package, {"fused": True}, flags)
    # A launch for each of four passes, and one more for the numbers of each but the last.
    assert batches.launches - before == 5 * 7 * len({*flags})


def test_launches_of_several_dtypes_make_one_number() -> None:
    """Each leaves its terms; what moves a parameter is a number of all."""
    torch.manual_seed(0)
    groups = [
        {"params": oracle.parameters(torch.float32), "weight_decay": 0.125},
        {"params": oracle.parameters(torch.bfloat16, shift=1), "lr": 0.3},
        {"params": oracle.parameters(torch.float16, sizes=(7, 1025)), "maximize": True},
    ]
    optimizer = generated.SNGM(groups, lr=0.1, fused=True)
    for step in range(3):
        for group in optimizer.param_groups:
            oracle.give_gradients(group["params"])
        if step == 1:
            groups[0]["params"][3].grad = None
        before = _batch.launches
        errors = oracle.step_and_compare("SNGM", optimizer)
        assert _batch.launches - before == len(groups) * oracle.launches("SNGM")
        for kind, error in errors.items():
            assert error <= oracle.limit("SNGM", *kind), (kind, error)
