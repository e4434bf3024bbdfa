"""The kernels of averages against the reference interpreter, and what is around them."""

from __future__ import annotations

import copy
import importlib
import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from torch import Tensor, nn

from generated import swa_utils as ours
from generated._fused import _batch
from generated.swa_utils import _kernels
from optdsl import build, interpret, pipeline
from optdsl.ir import Average

AVERAGES = {name: u for name, u in oracle.SPECS.items() if isinstance(u, Average)}
# Arguments that show every branch.
ARGUMENTS: dict[str, list[dict[str, Any]]] = {
    "SWA": [{}],
    "EMA": [{"decay": 0.9}, {"decay": 0.8, "bias_correction": True}],
    "RampEMA": [{"decay": 0.25}],
    "PowerEMA": [{"gamma": 6.94}],
    "WarmupEMA": [{"decay": 0.7, "min_decay": 0.4}],
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
CASES = [
    (name, arguments, dtype, function)
    for name, several in ARGUMENTS.items()
    for arguments, dtype in itertools.product(several, DTYPES)
    # Functions have nothing to do with dtypes.
    for function in ((False, True) if arguments and dtype is torch.float32 else (False,))
]
MODELS = 4
# A difference, a product and a sum, each rounded to nearest, and a weight that is rounded once; the
# units are those of |average| + |param|. Narrow dtypes: the neighbour of the rounded reference.
LIMIT = 4
NARROW_LIMIT = 1


def model_of(tensors: list[Tensor]) -> nn.Module:
    model = nn.Module()
    model.params = nn.ParameterList(tensors)
    return model


def tensors_of(dtype: torch.dtype) -> list[Tensor]:
    """Aligned and misaligned ones, and layouts that are not dense."""
    strided = torch.randn(6, 8, dtype=torch.float64).to(dtype)[:, ::2]
    turned = torch.randn(5, 3, dtype=torch.float64).to(dtype).t()
    return [*oracle.parameters(dtype), *oracle.parameters(dtype, shift=1), strided, turned]


def update(averaged: Any, model: nn.Module) -> int:
    """The launches of an update by a model that has moved."""
    for param in model.parameters():
        param.data.copy_(torch.randn(param.shape, dtype=torch.float64))
    before = _batch.launches
    averaged.update_parameters(model)
    return _batch.launches - before


def driven(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same numbers as functions: the host then computes the weight."""
    return {k: v if isinstance(v, bool) else (lambda n, v=v: v) for k, v in arguments.items()}


@pytest.mark.parametrize(("name", "arguments", "dtype", "function"), CASES, ids=str)
def test_kernel_equals_the_reference_to_a_few_ulps(
    name: str, arguments: dict[str, Any], dtype: torch.dtype, function: bool
) -> None:
    """float32 and float64: 4 units in the last place; 16-bit types: the neighbour of the rounded
    value. Each update starts from the stored averages; the first one copies."""
    torch.manual_seed(0)
    unit = AVERAGES[name]
    hypers = {h.name: interpret.evaluate(h.default, {}) for h in unit.hypers if h.default}
    average = getattr(ours, name)(**(driven(arguments) if function else arguments))
    model = model_of(tensors_of(dtype))
    averaged = ours.AveragedModel(model, average=average, fused=True)
    for n in range(MODELS):
        before = [oracle.as_array(t) for t in averaged.module.parameters()]
        # One launch for all tensors; on the device, one more computes the weight. A function is for
        # later models, the first one is copied without it.
        assert update(averaged, model) == (min(n, 1) if function else 2)
        for old, new, param in zip(
            before, averaged.module.parameters(), model.parameters(), strict=True
        ):
            source = oracle.as_array(param)
            expected = interpret.averaged(
                unit, {**hypers, **arguments}, old, source, n, form="multi"
            )
            if n == 0:
                assert np.array_equal(oracle.as_array(new), source)
                continue
            error = oracle.ulps(new, expected, np.abs(old) + np.abs(source))
            limit = NARROW_LIMIT if dtype.itemsize == 2 else LIMIT
            assert error.max(initial=0) <= limit, (n, error.max())
    assert averaged.n_averaged == MODELS


def test_every_average_has_a_case() -> None:
    assert set(ARGUMENTS) == set(AVERAGES)
    assert all(getattr(ours, name).kernels for name in ARGUMENTS)


def twins(tensors: list[Tensor], **arguments: Any) -> tuple[nn.Module, Any, Any]:
    """A model with its averages by kernel and by lists."""
    model = model_of(tensors)
    fused = ours.AveragedModel(model, average=ours.EMA(0.8), fused=True, **arguments)
    return model, fused, ours.AveragedModel(model, average=ours.EMA(0.8), foreach=True, **arguments)


def assert_twins(fused: nn.Module, loop: nn.Module) -> None:
    for (name, mine), other in zip(
        fused.state_dict().items(), loop.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6, msg=name)


def test_complex_tensors_are_averaged_by_parts_and_integers_by_the_for_loop() -> None:
    model, fused, loop = twins([torch.randn(5, dtype=torch.complex64), torch.randn(3)],
                               use_buffers=True)  # fmt: skip
    for averaged in (model, fused.module, loop.module):
        averaged.register_buffer("count", torch.tensor([5, -9]))
    for k in range(4):
        model.count += k
        # The copy of the integers needs no kernel.
        assert update(fused, model) == 2
        loop.update_parameters(model)
        assert_twins(fused, loop)
    assert fused.module.count.dtype is torch.int64


SHAPED = """
average Shaped {
    each = lerp(average, param, 1 / (param.numel + param.ndim) if param.is_complex else 0.5)
}
"""


def test_an_average_that_asks_for_the_shape_leaves_complex_tensors_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel would see real tensors of another shape."""
    (tmp_path / "shaped.opt").write_text(SHAPED, encoding="utf-8")
    library = pipeline.load([tmp_path / "shaped.opt"])
    build.write(build.plan(library, ""), tmp_path / "shaped_averages")
    monkeypatch.syspath_prepend(tmp_path)
    package = importlib.import_module("shaped_averages.swa_utils")
    model = model_of([torch.zeros(3, dtype=torch.complex64), torch.zeros(3)])
    averaged = package.AveragedModel(model, average=package.Shaped(), fused=True)
    averaged.update_parameters(model)
    for param in model.parameters():
        param.data.fill_(1)
    averaged.update_parameters(model)
    whole, real = averaged.module.params
    assert torch.equal(whole, torch.full((3,), 0.25, dtype=torch.complex64))
    assert torch.equal(real, torch.full((3,), 0.5))


def test_dtypes_split_launches_and_narrow_models_enter_wide_averages() -> None:
    model = model_of([torch.randn(9).bfloat16(), torch.randn(4).bfloat16(), torch.randn(5)])
    averaged = ours.AveragedModel(model, average=ours.SWA(), fused=True)
    averaged.module.params[0].data = averaged.module.params[0].data.float()
    seen = []
    for _ in range(5):
        assert update(averaged, model) == 6
        seen.append(model.params[0].detach().double())
    error = averaged.module.params[0].double() - torch.stack(seen).mean(0)
    assert error.abs().max() < 1e-6


def test_launches_are_kept_while_the_averages_stay_where_they_are() -> None:
    model, averaged, loop = twins([torch.randn(9), torch.randn(4)])

    def both() -> list[Any]:
        update(averaged, model)
        loop.update_parameters(model)
        assert_twins(averaged, loop)
        return list(_kernels._updates[averaged].values())

    (first,) = both()
    assert both() == [first]
    averaged.load_state_dict(copy.deepcopy(averaged.state_dict()))
    assert both() == [first]
    averaged.module.params[0].data = averaged.module.params[0].data.clone()
    (second,) = both()
    assert second is not first
    averaged.average.group["decay"] = 0.5
    loop.average.group["decay"] = 0.5
    assert both() == [second]
    other = copy.deepcopy(averaged)
    assert other not in _kernels._updates


def test_an_invalid_hyperparameter_is_refused_before_anything_changes() -> None:
    model, averaged, _ = twins([torch.randn(9)])
    update(averaged, model)
    before = copy.deepcopy(averaged.state_dict())
    averaged.average.group["decay"] = 2
    with pytest.raises(ValueError, match="Invalid decay value 2"):
        update(averaged, model)
    assert all(torch.equal(v, before[k]) for k, v in averaged.state_dict().items())


def test_nothing_says_that_kernels_are_missing() -> None:
    model, averaged, _ = twins([torch.randn(9)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        update(averaged, model)
