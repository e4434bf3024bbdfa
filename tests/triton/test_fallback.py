"""Without a device for the kernels, `fused=True` is the for-loop, and says so once."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch

import generated
from generated import _fused


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", textwrap.dedent(code)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_fused_on_the_cpu_is_the_for_loop_with_one_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    _fused._no_kernel.cache_clear()
    params = [torch.randn(9), torch.randn(3, 4)]
    copies = [p.clone() for p in params]
    fused = generated.Adam(params, fused=True)
    loop = generated.Adam(copies, foreach=False)

    def steps() -> None:
        for _ in range(3):
            for param, copy in zip(params, copies, strict=True):
                param.grad = torch.randn_like(param)
                copy.grad = param.grad.clone()
            fused.step()
            loop.step()

    with pytest.warns(UserWarning, match="no fused kernel for CPU yet") as caught:
        steps()
    assert len(caught) == 1
    assert all(torch.equal(p, c) for p, c in zip(params, copies, strict=True))


def test_an_optimizer_without_a_kernel_says_so_and_runs_the_for_loop() -> None:
    _fused._no_kernel.cache_clear()
    fused, loop = (torch.ones(2, 3), torch.ones(2, 3))
    fused.grad = loop.grad = torch.arange(6.0).view(2, 3)
    with pytest.warns(UserWarning, match="no fused kernel for Muon yet; using the for-loop"):
        generated.Muon([fused], fused=True).step()
    generated.Muon([loop], foreach=False).step()
    assert torch.equal(fused, loop)


@pytest.mark.filterwarnings("ignore:no fused kernel")
@pytest.mark.parametrize("name", ["SGD", "Adafactor"])
def test_scaled_gradients_are_unscaled_for_the_for_loop(name: str) -> None:
    """A scaler does not unscale for an optimizer with fused=True, nor skip its steps."""
    torch.manual_seed(0)
    params = [torch.randn(4, 3).requires_grad_() for _ in range(2)]
    copies = [p.detach().clone().requires_grad_() for p in params]
    groups = [{"params": params[:1]}, {"params": params[1:], "fused": False}]
    fused = getattr(generated, name)(groups, lr=0.1, fused=True)
    loop = getattr(generated, name)(copies, lr=0.1, foreach=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**17)
    for factor in (1.0, torch.inf, -3.0):
        for optimizer, tensors in ((fused, params), (loop, copies)):
            optimizer.zero_grad()
            loss = factor * sum((t * t).sum() for t in tensors)
            (scaler.scale(loss) if optimizer is fused else loss).backward()
        scaler.step(fused)
        scaler.update()
        if factor < torch.inf:
            loop.step()
        assert all(torch.equal(p, c) for p, c in zip(params, copies, strict=True))


def test_package_and_for_loop_need_no_triton() -> None:
    said = run("""
        import sys
        sys.modules["triton"] = None  # an import of it fails
        import torch, generated
        param = torch.randn(3)
        param.grad = torch.ones(3)
        generated.Adam([param]).step()
        generated.SGD([param], fused=True).step()
        """)
    assert "no fused kernel for CPU yet; using the for-loop" in said


def test_complex_parameters_are_refused_as_torch_refuses_them() -> None:
    param = torch.randn(4, dtype=torch.complex64)
    param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match="requires all the params to be floating point Tensors"):
        generated.Adam([param], fused=True).step()
