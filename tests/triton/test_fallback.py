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
