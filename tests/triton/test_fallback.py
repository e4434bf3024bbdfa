"""`fused=True` where there is no kernel: one warning with the reason, and the same update."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import generated
from generated._fused import _backends, _compile
from tests import reference

# Less than a piece, several of them, two layouts, and what is too small to be cut.
SHAPES = ((3,), (), (0,), (300_000,), (1000, 301), (131_073,))


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a new process: nothing said, nothing known of kernels."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(_compile, "_known", {})
    _backends._say_once.cache_clear()
    yield
    _backends._say_once.cache_clear()


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("OPTDSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(_compile, "COMPILERS", ())
    # In 16 bits torch rounds differently where the part of a thread ends: see `_blocks`.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", textwrap.dedent(code)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def params_of(dtype: torch.dtype) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=random).to(dtype) for shape in SHAPES]
    turned = torch.randn(700, 200, generator=random).to(dtype).t()
    strided = torch.randn(2, 140_000, generator=random).to(dtype)[0, ::1]
    return [*params, turned, strided]


def assert_steps_are_the_loops(fused: Any, loop: Any, steps: int = 3) -> None:
    """Bit for bit, with its state."""
    pairs = list(zip(fused.param_groups[0]["params"], loop.param_groups[0]["params"], strict=True))
    for _ in range(steps):
        for param, copy in pairs:
            param.grad = torch.randn_like(param)
            copy.grad = param.grad.clone()
        fused.step()
        loop.step()
    for param, copy in pairs:
        assert torch.equal(param, copy)
        assert fused.state.get(param, {}).keys() == loop.state.get(copy, {}).keys()
        for name, value in fused.state.get(param, {}).items():
            assert torch.equal(value, loop.state[copy][name]), name


ELEMENTWISE = [name for name in reference.SHIPPED if getattr(generated, name).kernels]


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.filterwarnings("ignore:There is no kernel")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_without_a_compiler_pieces_of_large_tensors_have_the_for_loops_bits(
    name: str, dtype: torch.dtype
) -> None:
    params = params_of(dtype)
    copies = [p.clone(memory_format=torch.preserve_format) for p in params]
    fused = getattr(generated, name)(params, fused=True)
    loop = getattr(generated, name)(copies, foreach=False)
    assert_steps_are_the_loops(fused, loop)


@pytest.mark.usefixtures("no_compiler")
def test_a_missing_compiler_is_said_once_with_what_helps() -> None:
    params = [torch.randn(9), torch.randn(3, 4)]
    copies = [p.clone() for p in params]
    with pytest.warns(UserWarning, match="There is no kernel") as caught:
        assert_steps_are_the_loops(
            generated.Adam(params, fused=True), generated.Adam(copies, foreach=False)
        )
    (warning,) = caught
    said = str(warning.message)
    assert "without a C compiler" in said
    assert "Install gcc" in said
    assert "optdsl build --compile" in said
    assert "OPTDSL_CACHE" in said


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.filterwarnings("ignore:There is no kernel")
def test_momentum_that_is_switched_on_later_begins_with_the_gradient_in_pieces() -> None:
    params = [torch.randn(300_000)]
    copies = [params[0].clone()]
    fused = generated.SGD(params, fused=True, momentum=0)
    loop = generated.SGD(copies, foreach=False, momentum=0)
    for momentum in (0, 0.9):
        fused.param_groups[0]["momentum"] = loop.param_groups[0]["momentum"] = momentum
        assert_steps_are_the_loops(fused, loop)


def test_an_optimizer_without_a_kernel_says_so_and_runs_the_for_loop() -> None:
    fused, loop = (torch.ones(2, 3), torch.ones(2, 3))
    fused.grad = loop.grad = torch.arange(6.0).view(2, 3)
    with pytest.warns(UserWarning, match="There is no fused kernel for Muon"):
        generated.Muon([fused], fused=True).step()
    generated.Muon([loop], foreach=False).step()
    assert torch.equal(fused, loop)


@pytest.mark.filterwarnings("ignore:There is no fused kernel")
@pytest.mark.parametrize("name", ["SGD", "Adafactor"])
def test_scaled_gradients_are_unscaled_for_the_for_loop(name: str) -> None:
    """A scaler does not unscale for an optimizer with a kernel, nor skip its steps: groups without
    one are looked after, and parameters without a gradient left alone."""
    torch.manual_seed(0)
    params = [torch.randn(4, 3).requires_grad_() for _ in range(4)]
    copies = [p.detach().clone().requires_grad_() for p in params]
    groups = [{"params": params[:2]}, {"params": params[2:], "fused": False}]
    fused = getattr(generated, name)(groups, lr=0.1, fused=True)
    loop = getattr(generated, name)(copies, lr=0.1, foreach=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**17)
    for factor in (1.0, torch.inf, -3.0):
        for optimizer, tensors in ((fused, params), (loop, copies)):
            optimizer.zero_grad()
            loss = factor * sum((t * t).sum() for t in tensors[::2])
            (scaler.scale(loss) if optimizer is fused else loss).backward()
        scaler.step(fused)
        scaler.update()
        if factor < torch.inf:
            loop.step()
        assert all(torch.equal(p, c) for p, c in zip(params, copies, strict=True))


def test_cpu_kernels_need_no_triton() -> None:
    said = run("""
        import sys
        sys.modules["triton"] = None  # an import of it fails
        import torch, generated
        param = torch.ones(3)
        param.grad = torch.ones(3)
        generated.Adam([param]).step()
        generated.SGD([param], fused=True, lr=0.5).step()
        from generated._fused import _batch
        print(_batch.launches, "launch")
        """)
    assert said == "1 launch\n"


def test_complex_parameters_are_refused_as_torch_refuses_them() -> None:
    param = torch.randn(4, dtype=torch.complex64)
    param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match="requires all the params to be floating point Tensors"):
        generated.Adam([param], fused=True).step()


def test_an_algorithm_that_is_not_written_in_c_has_no_kernel_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_compile, "SOURCES", tmp_path)
    param = torch.ones(3)
    param.grad = torch.ones(3)
    with pytest.warns(UserWarning, match="There is no fused kernel for Adam on the CPU[.]"):
        generated.Adam([param], fused=True).step()
    assert param.tolist() == [pytest.approx(0.999)] * 3


def test_nothing_is_said_where_there_is_a_kernel() -> None:
    param = torch.ones(3)
    param.grad = torch.ones(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generated.Adam([param], fused=True).step()
