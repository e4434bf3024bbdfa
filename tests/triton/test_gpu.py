"""The fused kernels on a real GPU, against the for-loop on the CPU; deselected without one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import generated
from generated import swa_utils
from tests.policies import POLICIES, problem
from tests.reference import advance, contents, differences

pytestmark = pytest.mark.gpu
SIZES = ((), (0,), (7,), (513,), (64, 65), (4096,))
ARGUMENTS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
    "Adam": {"lr": 1e-2, "weight_decay": 0.1, "amsgrad": True},
    "AdamW": {"lr": 1e-2, "weight_decay": 0.1},
    "RMSprop": {"lr": 1e-2, "momentum": 0.9, "centered": True},
    "Adagrad": {"lr": 1e-2, "lr_decay": 0.1},
}
# The CPU rounds after each operation in 16-bit types, the kernel once at the end.
TOLERANCE = {
    torch.float32: {"rtol": 1e-4, "atol": 1e-6},
    torch.float64: {"rtol": 1e-10, "atol": 1e-12},
    torch.bfloat16: {"rtol": 3e-2, "atol": 3e-2},
}


def trained(name: str, device: str, dtype: torch.dtype, **flags: Any) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    params = [
        torch.randn(size, generator=random).to(device, dtype).requires_grad_() for size in SIZES
    ]
    optimizer = getattr(generated, name)(
        [{"params": params[:3]}, {"params": params[3:], "lr": 3e-3}], **ARGUMENTS[name], **flags
    )
    for _ in range(10):
        for param in params:
            param.grad = torch.randn(param.shape, generator=random).to(device, dtype)
        optimizer.step()
    return [param.detach().cpu() for param in params]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", ARGUMENTS)
def test_fused_kernel_follows_the_for_loop(name: str, dtype: torch.dtype) -> None:
    expected = trained(name, "cpu", dtype, foreach=False)
    for flags in ({"fused": True}, {"fused": True, "capturable": True}, {"foreach": True}):
        found = trained(name, "cuda", dtype, **flags)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("average", [swa_utils.SWA(), swa_utils.EMA(0.9)], ids=repr)
def test_fused_averages_follow_the_for_loop_and_wait_for_nothing(
    average: swa_utils.SWA | swa_utils.EMA, dtype: torch.dtype
) -> None:
    def averaged(device: str, **flags: Any) -> list[torch.Tensor]:
        random = torch.Generator().manual_seed(0)
        model = torch.nn.Module()
        model.params = torch.nn.ParameterList(torch.zeros(s, dtype=dtype) for s in SIZES)
        result = swa_utils.AveragedModel(model.to(device), average=average, **flags)
        for step in range(6):
            for param in model.parameters():
                param.data.copy_(torch.randn(param.shape, generator=random))
            if flags.get("fused") and step > 1:  # the first ones make tables, and compile
                torch.cuda.set_sync_debug_mode("error")
            result.update_parameters(model)
            torch.cuda.set_sync_debug_mode("default")
        return [param.detach().cpu() for param in result.module.parameters()]

    expected = averaged("cpu", foreach=False)
    for flags in ({"fused": True}, {"foreach": True}, {"foreach": False}):
        for a, b in zip(averaged("cuda", **flags), expected, strict=True):
            torch.testing.assert_close(a, b, **TOLERANCE[dtype])


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_policies_have_the_bits_of_the_for_loop(policy: dict[str, Any]) -> None:
    """Where no root is taken, arithmetic is the same on every device, and so is what is stored."""

    def trained(device: str, **flags: Any) -> dict[str, torch.Tensor]:
        start = problem("SGD", torch.bfloat16)
        params = [p.to(device) for p in start.parameters]
        optimizer = generated.SGD(params, lr=0.125, momentum=0.5, **policy, **flags)
        rows = [[None if g is None else g.to(device) for g in row] for row in start.gradients]
        advance(optimizer, params, rows)
        return {name: tensor.cpu() for name, tensor in contents(optimizer).items()}

    expected = trained("cpu", foreach=False)
    for flags in ({"fused": True}, {"fused": True, "capturable": True}, {"foreach": True}):
        assert differences(expected, trained("cuda", **flags)) == []
