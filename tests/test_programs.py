"""Small programs, one per construct: built as a package, eager, foreach and interpreter agree."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optdsl import build, interpret, ir, pipeline
from optdsl.diagnostics import Code, SpecError

STEPS = 4
SIZES = ((4, 3), (5,), ())
# What the language can say and the torch targets cannot do yet: refused at its place.
REFUSED = {"type", "init copy", "init grad2"}


def programs() -> dict[str, str]:
    text = (Path(__file__).parent / "programs.txt").read_text(encoding="utf-8")
    parts = (tuple(part.split("\n", 1)) for part in f"\n{text}".split("\n== ")[1:])
    return dict(parts)


def class_name(name: str) -> str:
    return "".join(word.capitalize() for word in name.split()) + "Program"


def source(name: str, body: str) -> str:
    return f"optimizer {class_name(name)} {{\n{body}}}\n"


ACCEPTED = {n: b for n, b in programs().items() if n not in REFUSED}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, pipeline.Library]]:
    root = tmp_path_factory.mktemp("programs")
    specs = root / "programs.opt"
    specs.write_text("\n".join(source(n, b) for n, b in ACCEPTED.items()), encoding="utf-8")
    library = pipeline.load([specs])
    build.write(build.plan(library, "optdsl build"), root / "small_programs")
    sys.path.insert(0, str(root))
    yield importlib.import_module("small_programs"), library
    sys.path.remove(str(root))


def gradients() -> list[list[np.ndarray[Any, Any]]]:
    random = np.random.default_rng(3)
    return [[random.standard_normal(size) for size in SIZES] for _ in range(STEPS)]


def start() -> list[np.ndarray[Any, Any]]:
    random = np.random.default_rng(5)
    return [random.standard_normal(size) for size in SIZES]


def trained(
    optimizer: type[torch.optim.Optimizer], dtype: torch.dtype, **arguments: Any
) -> list[torch.Tensor]:
    params = [torch.tensor(p, dtype=dtype, requires_grad=True) for p in start()]
    instance = optimizer(params, **arguments)
    for step in gradients():
        for param, grad in zip(params, step, strict=True):
            param.grad = torch.tensor(grad, dtype=dtype)
        instance.step()
    return params


@pytest.mark.parametrize("name", ACCEPTED)
def test_foreach_gives_the_bits_of_the_for_loop(
    name: str, package: tuple[Any, pipeline.Library]
) -> None:
    optimizer = getattr(package[0], class_name(name))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        one = trained(optimizer, dtype, foreach=False)
        many = trained(optimizer, dtype, foreach=True)
        for a, b in zip(one, many, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", ACCEPTED)
def test_the_for_loop_computes_what_the_interpreter_computes(
    name: str, package: tuple[Any, pipeline.Library]
) -> None:
    spec = package[1].find(class_name(name))
    assert isinstance(spec, ir.Spec)
    hypers = defaults(spec)
    torch.set_default_dtype(torch.float64)  # which is the scalar slots'
    try:
        got = trained(getattr(package[0], class_name(name)), torch.float64, foreach=False)
    finally:
        torch.set_default_dtype(torch.float32)
    for index, param in enumerate(start()):
        state = None
        for step in gradients():
            param, state = interpret.step(spec, hypers, param, step[index], state)
        # A handful of roundings of float64, which a difference may magnify.
        np.testing.assert_allclose(got[index].detach().numpy(), param, rtol=1e-12, atol=1e-12)


def defaults(spec: ir.Spec) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for hyper in spec.hypers:
        if hyper.components:
            values[hyper.name] = tuple(interpret.evaluate(p, {}) for p in hyper.parts)
        elif hyper.default is not None:
            values[hyper.name] = interpret.evaluate(hyper.default, values)
    return values


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_no_torch_target_can_do_is_refused_at_its_place(name: str, tmp_path: Path) -> None:
    path = tmp_path / "program.opt"
    path.write_text(source(name, programs()[name]), encoding="utf-8")
    with pytest.raises(SpecError) as raised:
        build.plan(pipeline.load([path]), "optdsl build")
    (diagnostic,) = raised.value.diagnostics
    assert diagnostic.code in (Code.UNSUPPORTED, Code.WRONG_KIND, Code.WRONG_TYPE)
    assert not isinstance(diagnostic.span, str)


def test_a_condition_on_the_parameter_is_checked_in_each_group(
    package: tuple[Any, pipeline.Library],
) -> None:
    optimizer = getattr(package[0], class_name("param require"))
    instance = optimizer([torch.zeros(2, 2, requires_grad=True)])
    with pytest.raises(ValueError, match="Only vectors and matrices"):
        optimizer([torch.zeros(2, 2, 2, requires_grad=True)])
    with pytest.raises(ValueError, match="Only vectors and matrices"):
        instance.add_param_group({"params": [torch.zeros(1, 1, 1, requires_grad=True)]})
    assert len(instance.param_groups) == 1


def test_a_choice_is_one_of_those_declared(package: tuple[Any, pipeline.Library]) -> None:
    with pytest.raises(ValueError, match="mode must be one of fast, slow"):
        getattr(package[0], class_name("choice"))([torch.zeros(1)], mode="other")
