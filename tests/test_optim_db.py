"""torch's own list of optimizers, inputs and errors (`optim_db`), held against both packages."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

import generated
from optdsl import pipeline
from optdsl.diagnostics import SpecError
from tests.reference import (
    Case,
    all_cases,
    deviations,
    paths_of,
    reason,
    run_plainly,
    small_problem,
    suited,
)

LISTED = [(label, case) for label, case in all_cases() if label == "optim_db"]
FLOATS = (torch.float32, torch.float64, torch.bfloat16)


def tensor_lr(case: Case) -> bool:
    return isinstance(case.get("lr"), Tensor)


def test_all_optimizers_of_the_list_are_in_the_package() -> None:
    assert {info.name for info in optim_db} == {case.optimizer for _, case in LISTED}
    assert all(issubclass(getattr(generated, i.name), torch.optim.Optimizer) for i in optim_db)


@pytest.mark.parametrize(
    "case", [c for _, c in LISTED if c.dtype in FLOATS and not reason("optim_db", c)], ids=str
)
def test_listed_inputs_give_the_bits_of_torchs_for_loop(case: Case) -> None:
    assert [different for _, different in deviations("optim_db", case) if different] == []


@pytest.mark.parametrize("case", [c for _, c in LISTED if tensor_lr(c)], ids=str)
def test_a_tensor_lr_gives_torchs_values_within_4_ulp_of_the_less_precise_one(case: Case) -> None:
    """The rate is float32: torch computes with it in float32, also for float64 parameters."""
    problem = small_problem(case.dtype, steps=1)
    expected = run_plainly(torch.optim, case, problem, False)
    eps = max(torch.finfo(case.dtype).eps, torch.finfo(torch.float32).eps)
    for foreach in paths_of(case.optimizer).values():
        found = run_plainly(generated, case, problem, foreach)
        for name, value in expected.items():
            ulp = eps * value.abs().clamp(min=1e-2)
            assert ((found[name] - value).abs() <= 4 * ulp).all(), name


# Errors

ERRORS = [
    pytest.param(info.name, error, id=f"{info.name}: {error.optimizer_error_input.desc}")
    for info in optim_db
    for error in info.optim_error_inputs_func("cpu", torch.float32)
]


def raised(package: Any, name: str, error: Any) -> Exception:
    """What constructing, or a step, raises. Warnings are raised, too."""
    given = error.optimizer_error_input
    params = copy.deepcopy(given.params)
    if params is None:
        params = [torch.ones(1, 1, requires_grad=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            optimizer = getattr(package, name)(params, **given.kwargs)
        except Exception as found:
            assert error.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR
            return found
        assert error.error_on is OptimizerErrorEnum.STEP_ERROR
        for param, original in zip(optimizer.param_groups[0]["params"], given.params, strict=True):
            param.grad = original.grad
        with pytest.raises(Exception) as caught:
            optimizer.step()
    return caught.value


@pytest.mark.parametrize(("name", "error"), ERRORS)
def test_listed_errors_have_torchs_type_and_words(name: str, error: Any) -> None:
    theirs, ours = (raised(package, name, error) for package in (torch.optim, generated))
    assert type(ours) is type(theirs) is error.error_type
    assert str(ours) == str(theirs)
    with pytest.raises(error.error_type, match=error.error_regex):
        raise ours


# How arguments are given: what Adam's conditions ask beside their values


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_tensors_are_taken_where_torch_takes_them(name: str) -> None:
    pair = (torch.tensor(0.9), torch.tensor(0.99))
    for package in (torch.optim, generated):
        kind = getattr(package, name)
        kind(suited(small_problem(), name).start(), lr=torch.tensor(0.1), betas=pair)
        kind(small_problem().start(), lr=torch.tensor(0.1), foreach=False)
        # A step that is captured reads them on the device.
        kind(small_problem().start(), lr=torch.tensor(0.1), foreach=True, capturable=True)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
@pytest.mark.parametrize("part", [0, 1])
def test_a_beta_of_several_elements_is_named(name: str, part: int) -> None:
    """torch compares it with 0 first, which raises RuntimeError."""
    betas = [torch.tensor(0.5), torch.tensor(0.5)]
    betas[part] = torch.full((2,), 0.5)
    with pytest.raises(RuntimeError, match="more than one value is ambiguous"):
        getattr(torch.optim, name)(None, betas=tuple(betas))
    with pytest.raises(ValueError) as error:
        getattr(generated, name)(None, betas=tuple(betas))
    assert str(error.value) == f"Tensor betas[{part}] must be 1-element"


def test_order_of_adams_checks_is_torchs() -> None:
    """Everything wrong at once: what is reported first, then with that repaired, and so on."""
    wrong: dict[str, Any] = {
        "lr": torch.tensor(-1.0),
        "eps": -1.0,
        "betas": (2.0, torch.tensor(3.0)),
        "weight_decay": -1.0,
        "foreach": True,
    }
    repairs: list[dict[str, Any]] = [
        {"foreach": None},
        {"lr": 0.1, "foreach": True},
        {"eps": 0.1},
        {"betas": (0.5, torch.tensor(3.0))},
        {"betas": (0.5, torch.tensor(0.5))},
        {"weight_decay": 0.1},
        {"betas": (torch.tensor(0.5), torch.tensor(0.5))},
    ]
    seen = []
    for package in (torch.optim, generated):
        given, messages = dict(wrong), []
        for repair in repairs:
            with pytest.raises(ValueError) as error:
                package.Adam(None, **given)
            messages.append(str(error.value))
            given.update(repair)
        with pytest.raises(ValueError) as error:
            package.Adam(None, **given)
        seen.append([*messages, str(error.value)])
    assert seen[1] == seen[0]
    assert len(set(seen[0])) == len(repairs) + 1


def spec_errors(text: str, folder: Any) -> list[str]:
    (folder / "a.opt").write_text(f"optimizer A {{\n{text}\n}}", encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        pipeline.load([folder])
    return [d.message for d in caught.value.diagnostics]


def test_only_a_require_reads_flags_and_asks_what_is_a_tensor(tmp_path: Any) -> None:
    asked = "'is_tensor' asks about one hyperparameter, in a 'require'."
    hyper = "hyper lr = 1e-3"
    body = "update { descend lr * grad }"
    assert spec_errors(
        f"{hyper}\nupdate {{ if is_tensor(lr) {{ descend lr * grad }} }}", tmp_path
    ) == [asked]  # fmt: skip
    assert spec_errors(
        f"{hyper}\nupdate {{ if foreach {{ descend lr * grad }} }}", tmp_path
    ) == ["Unknown name 'foreach'."]  # fmt: skip
    assert spec_errors(f"{hyper} require not is_tensor(grad)\n{body}", tmp_path) == [asked]
    assert spec_errors(f"{hyper} require not is_tensor(lr, lr)\n{body}", tmp_path) == [asked]
