"""Checkpoints: torch's are ours, ours are torch's, and neither saving nor loading changes a bit."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import generated
from optdsl.ir import FLAGS
from tests.reference import (
    IN_TORCH,
    PATHS,
    SHIPPED,
    Case,
    Problem,
    advance,
    choices,
    construct,
    contents,
    differences,
    dtypes_of,
    groups_of,
    small_problem,
    suited,
    through_a_file,
)

StateDict = dict[str, Any]
# Every combination of options that decides which slots there are.
IN_TORCH_OPTIONS = [(name, options) for name in IN_TORCH for options in choices(name)]
SHIPPED_OPTIONS = [(name, options) for name in SHIPPED for options in choices(name)]


def name_of(value: Any) -> str:
    return "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def make(
    package: Any, name: str, params: list[Tensor], foreach: bool = False, **options: Any
) -> torch.optim.Optimizer:
    case = Case(name, tuple(options.items()), params[0].dtype)
    return construct(package, name, groups_of(case, params), foreach, **options)


def trained(
    package: Any, name: str, steps: int, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[torch.optim.Optimizer, list[Tensor]]:
    problem = problem_of(name, dtype)
    params = problem.start()
    optimizer = make(package, name, params, **options)
    advance(optimizer, params, problem.gradients[:steps])
    return optimizer, params


def problem_of(name: str, dtype: torch.dtype = torch.float32) -> Problem:
    """As it suits the optimizer; a step of LBFGS is long."""
    return suited(small_problem(dtype), name)


def copies(params: list[Tensor]) -> list[Tensor]:
    return [p.detach().clone().requires_grad_() for p in params]


# torch and we read each other's


@pytest.mark.parametrize("foreach", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("transport", [lambda d: d, through_a_file], ids=["memory", "file"])
@pytest.mark.parametrize(
    ("source", "target"), [(torch.optim, generated), (generated, torch.optim)],
    ids=["torch's to ours", "ours to torch's"],
)  # fmt: skip
@pytest.mark.parametrize(("name", "options"), IN_TORCH_OPTIONS, ids=name_of)
def test_training_continues_in_the_other_package_bit_for_bit(
    name: str,
    options: dict[str, Any],
    source: Any,
    target: Any,
    transport: Callable[[StateDict], StateDict],
    foreach: bool,
) -> None:
    problem = problem_of(name)
    stop = len(problem.gradients) // 3
    expected, _ = trained(torch.optim, name, 20, **options)

    first, params = trained(source, name, stop, **options)
    params = copies(params)
    second = make(target, name, params, **options, foreach=foreach and target is generated)
    second.load_state_dict(transport(first.state_dict()))
    advance(second, params, problem.gradients[stop:])
    assert differences(contents(expected), contents(second)) == []


@pytest.mark.parametrize(
    ("name", "dtype"), [(name, dtype) for name in IN_TORCH for dtype in dtypes_of(name)], ids=str
)
def test_torchs_checkpoint_of_any_dtype_continues_bit_for_bit(
    name: str, dtype: torch.dtype
) -> None:
    problem = problem_of(name, dtype)
    stop = len(problem.gradients) // 2
    options = list(choices(name))[-1]
    expected, _ = trained(torch.optim, name, 20, dtype, **options)
    first, params = trained(torch.optim, name, stop, dtype, **options)
    params = copies(params)
    second = make(generated, name, params, **options)
    second.load_state_dict(through_a_file(first.state_dict()))
    advance(second, params, problem.gradients[stop:])
    assert differences(contents(expected), contents(second)) == []


@pytest.mark.parametrize(("name", "options"), IN_TORCH_OPTIONS, ids=name_of)
def test_state_has_torchs_keys_dtypes_shapes_and_strides(
    name: str, options: dict[str, Any]
) -> None:
    def one(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.dtype, value.shape, value.stride()
        return [one(v) for v in value] if isinstance(value, list) else type(value)

    def describe(optimizer: torch.optim.Optimizer) -> dict[Any, dict[str, Any]]:
        return {
            key: {name: one(value) for name, value in slots.items()}
            for key, slots in optimizer.state_dict()["state"].items()
        }

    theirs, _ = trained(torch.optim, name, 3, **options)
    ours, _ = trained(generated, name, 3, **options)
    assert describe(ours) == describe(theirs)


@pytest.mark.parametrize(("name", "options"), IN_TORCH_OPTIONS, ids=name_of)
def test_param_groups_have_torchs_keys_and_values(name: str, options: dict[str, Any]) -> None:
    theirs, _ = trained(torch.optim, name, 1, **options)
    ours, _ = trained(generated, name, 1, **options)
    ours_saved, theirs_saved = ours.state_dict(), theirs.state_dict()
    for our, their in zip(ours_saved["param_groups"], theirs_saved["param_groups"], strict=True):
        assert {key: our[key] for key in their} == their
        assert set(our) - set(their) <= set(FLAGS)
        if name not in ("RMSprop", "Adagrad"):  # whose keys are in another order than arguments
            ordered = [key for key in their if key not in FLAGS]
            assert [key for key in our if key not in FLAGS] == ordered


def test_default_dtype_float64_makes_float64_steps_as_torchs() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        for package in (torch.optim, generated):
            optimizer, params = trained(package, "Adam", 2)
            assert optimizer.state[params[0]]["step"].dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


# Resuming


def by_state_dict(optimizer: torch.optim.Optimizer, params: list[Tensor]) -> tuple[Any, Any]:
    params = copies(params)
    groups = [{"params": params[::2]}, {"params": params[1::2]}]
    if len(optimizer.param_groups) == 1:
        groups = [{"params": params}]
    flag = optimizer.defaults.get("foreach")
    fresh = construct(generated, type(optimizer).__name__, groups, flag)
    fresh.load_state_dict(through_a_file(optimizer.state_dict()))
    return fresh, params


def by_deepcopy(optimizer: torch.optim.Optimizer, params: list[Tensor]) -> tuple[Any, Any]:
    return copy.deepcopy((optimizer, params))


def by_pickle(optimizer: torch.optim.Optimizer, params: list[Tensor]) -> tuple[Any, Any]:
    return pickle.loads(pickle.dumps((optimizer, params)))


@pytest.mark.parametrize("foreach", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("resume", [by_state_dict, by_deepcopy, by_pickle])
@pytest.mark.parametrize(("name", "options"), SHIPPED_OPTIONS, ids=name_of)
def test_resuming_at_any_step_changes_no_bit(
    name: str, options: dict[str, Any], resume: Callable[..., tuple[Any, Any]], foreach: bool
) -> None:
    problem = problem_of(name)
    expected, _ = trained(generated, name, 8, **options, foreach=foreach)
    for stop in range(min(8, len(problem.gradients)) + 1):
        optimizer, params = trained(generated, name, stop, **options, foreach=foreach)
        optimizer, params = resume(optimizer, params)
        advance(optimizer, params, problem.gradients[stop:8])
        assert differences(contents(expected), contents(optimizer)) == []


def test_resuming_after_every_step_changes_no_bit() -> None:
    problem = small_problem()
    expected, _ = trained(generated, "Adam", 8, amsgrad=True)
    optimizer, params = trained(generated, "Adam", 0, amsgrad=True)
    for row in problem.gradients[:8]:
        for resume in (by_state_dict, by_deepcopy, by_pickle):
            optimizer, params = resume(optimizer, params)
        advance(optimizer, params, [row])
    assert differences(contents(expected), contents(optimizer)) == []


def test_copies_are_independent_of_their_original() -> None:
    problem = small_problem()
    optimizer, params = trained(generated, "Adam", 3)
    before = copy.deepcopy(contents(optimizer))
    for resume in (by_state_dict, by_deepcopy, by_pickle):
        twin, twin_params = resume(optimizer, params)
        advance(twin, twin_params, problem.gradients[3:6])
    assert differences(before, contents(optimizer)) == []


# What loading keeps, changes and refuses


def saved_adam(steps: int = 5, **options: Any) -> tuple[StateDict, list[Tensor]]:
    optimizer, params = trained(generated, "Adam", steps, **options)
    return through_a_file(optimizer.state_dict()), params


WITH_STEP = [
    name for name in IN_TORCH
    if any(s.name == "step" and not s.integer for s in getattr(generated, name).slots)
]  # fmt: skip


@pytest.mark.parametrize("number", [int, float])
@pytest.mark.parametrize("name", WITH_STEP)
def test_steps_that_are_numbers_load_as_torchs_old_checkpoints(
    name: str, number: type[int] | type[float]
) -> None:
    problem = problem_of(name)
    expected, _ = trained(torch.optim, name, 20)
    first, params = trained(torch.optim, name, 5)
    old = through_a_file(first.state_dict())
    for slots in old["state"].values():
        slots["step"] = number(slots["step"])
    params = copies(params)
    second = make(generated, name, params)
    second.load_state_dict(old)
    step = second.state[params[0]]["step"]
    assert (step.dtype, step.shape) == (torch.float32, ())
    advance(second, params, problem.gradients[5:])
    assert differences(contents(expected), contents(second)) == []


def test_hyperparameters_that_old_checkpoints_lack_are_filled_in() -> None:
    saved, params = saved_adam()
    later = ("amsgrad", "maximize", "foreach", "capturable", "differentiable", "fused")
    for group in saved["param_groups"]:
        for name in (*later, "decoupled_weight_decay"):
            del group[name]
    optimizer = make(generated, "Adam", copies(params))
    optimizer.load_state_dict(saved)
    assert not any(group[name] for group in optimizer.param_groups for name in later)
    optimizer.step()


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("Adam", lambda s: s.pop("exp_avg"), "lacks exp_avg."),
        ("Adam", lambda s: s.pop("step"), "lacks step."),
        (
            "Adam",
            lambda s: (s.pop("exp_avg"), s.pop("exp_avg_sq")),
            "lacks exp_avg, exp_avg_sq.",
        ),
        ("Adam", lambda s: s.update(exp_avg=None), "lacks exp_avg."),
        ("Adam", lambda s: s.update(sum=torch.zeros(())), "has unknown sum."),
        (
            "RMSprop",
            lambda s: s.update(exp_avg=s.pop("square_avg")),
            "lacks square_avg and has unknown exp_avg.",
        ),
        ("SGD", lambda s: s.update(exp_avg=torch.zeros(())), "has unknown exp_avg."),
        ("Lion", lambda s: s.update(exp_avg_sq=torch.zeros(())), "has unknown exp_avg_sq."),
    ],
)
def test_missing_and_unknown_slots_are_named_and_nothing_is_loaded(
    name: str, damage: Callable[[dict[str, Any]], None], words: str
) -> None:
    problem = small_problem()
    optimizer, params = trained(generated, name, 5)
    twin, twin_params = by_deepcopy(optimizer, params)
    saved = through_a_file(trained(generated, name, 9, maximize=True)[0].state_dict())
    saved["state"].setdefault(3, {})
    damage(saved["state"][3])  # the last: what comes before it is in order
    groups = copy.deepcopy(optimizer.state_dict()["param_groups"])

    with pytest.raises(ValueError, match=re.escape(words)) as error:
        optimizer.load_state_dict(saved)
    assert "parameter 3" in str(error.value)

    assert optimizer.state_dict()["param_groups"] == groups
    for each, tensors in ((optimizer, params), (twin, twin_params)):
        advance(each, tensors, problem.gradients[5:8])
    assert differences(contents(twin), contents(optimizer)) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lr": -1.0}, "Invalid learning rate: -1.0"),
        ({"lr": float("nan")}, "Invalid learning rate: nan"),
        ({"betas": (0.9, 1.0)}, "Invalid beta parameter at index 1: 1.0"),
        ({"eps": -1}, "Invalid epsilon value: -1"),
        ({"weight_decay": -0.1}, "Invalid weight_decay value: -0.1"),
    ],
)
def test_loaded_hyperparameters_are_checked_and_nothing_is_loaded(
    change: dict[str, Any], words: str
) -> None:
    saved, params = saved_adam()
    saved["param_groups"][1].update(change)
    optimizer = make(generated, "Adam", copies(params))
    groups = copy.deepcopy(optimizer.state_dict()["param_groups"])
    with pytest.raises(ValueError, match=re.escape(words)):
        optimizer.load_state_dict(saved)
    assert optimizer.state_dict() == {"state": {}, "param_groups": groups}


@pytest.mark.parametrize("package", [torch.optim, generated], ids=["torch", "ours"])
def test_groups_that_do_not_fit_raise_torchs_errors(package: Any) -> None:
    saved, params = saved_adam()
    one_group = package.Adam(copies(params))
    with pytest.raises(ValueError) as error:
        one_group.load_state_dict(saved)
    assert str(error.value) == "loaded state dict has a different number of parameter groups"

    uneven = package.Adam([{"params": copies(params)[:3]}, {"params": copies(params)[3:]}])
    with pytest.raises(ValueError) as error:
        uneven.load_state_dict(saved)
    assert str(error.value) == (
        "loaded state dict contains a parameter group that doesn't match the size of "
        "optimizer's group"
    )


def test_a_slot_keeps_the_checkpoints_dtype() -> None:
    problem = small_problem(torch.bfloat16)
    params = problem.start()
    optimizer = generated.Adam(params)
    for param in params:
        optimizer.state[param]["exp_avg"] = torch.zeros_like(param, dtype=torch.float32)
        optimizer.state[param]["exp_avg_sq"] = torch.zeros_like(param, dtype=torch.float64)
    advance(optimizer, params, problem.gradients[:5])
    saved = through_a_file(optimizer.state_dict())

    params = copies(params)
    loaded = generated.Adam(params)
    loaded.load_state_dict(saved)
    advance(loaded, params, problem.gradients[5:6])
    for param in params:
        dtypes = {name: slot.dtype for name, slot in loaded.state[param].items()}
        assert dtypes == {
            "step": torch.float32, "exp_avg": torch.float32, "exp_avg_sq": torch.float64,
        }  # fmt: skip


def test_a_slot_keeps_its_memory_format() -> None:
    param = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    optimizer = generated.Adam([param])
    advance(optimizer, [param], [[torch.randn_like(param)]])
    loaded = generated.Adam([param])
    loaded.load_state_dict(optimizer.state_dict())
    assert loaded.state[param]["exp_avg"].stride() == param.stride()


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in tensors_in(v)] if isinstance(value, list | tuple) else []


@pytest.mark.parametrize("name", SHIPPED)
def test_loading_shares_no_storage_with_the_dict(name: str) -> None:
    problem = problem_of(name)
    options = {**list(choices(name))[-1], "lr": torch.tensor(0.01)}
    source, source_params = trained(generated, name, 5, **options)
    # In memory: the dict holds the source's own tensors.
    saved = source.state_dict()
    params = copies(source_params)
    loaded = make(generated, name, params, **options)
    loaded.load_state_dict(saved)
    twin, twin_params = by_deepcopy(loaded, params)

    own = {t.untyped_storage().data_ptr() for t in tensors_in(saved)}
    assert own
    assert not own & {t.untyped_storage().data_ptr() for t in tensors_in(loaded.state_dict())}

    for tensor in tensors_in(saved):
        tensor.fill_(0.5)
    saved["param_groups"][0]["lr"] = 3.0
    saved["state"].clear()
    advance(source, source_params, problem.gradients[5:7])
    for each, tensors in ((loaded, params), (twin, twin_params)):
        advance(each, tensors, problem.gradients[5:8])
    assert differences(contents(twin), contents(loaded)) == []


def test_state_that_belongs_to_no_parameter_is_kept_and_not_shared() -> None:
    saved, params = saved_adam()
    saved["state"]["note"] = {"numbers": torch.ones(2)}
    optimizer = make(generated, "Adam", copies(params))
    optimizer.load_state_dict(saved)
    saved["state"]["note"]["numbers"].zero_()
    assert torch.equal(optimizer.state["note"]["numbers"], torch.ones(2))


def test_loading_leaves_the_dict_as_it_was() -> None:
    saved, params = saved_adam()
    before = copy.deepcopy(saved)
    optimizer = make(generated, "Adam", copies(params))
    optimizer.load_state_dict(saved)
    advance(optimizer, [p for g in optimizer.param_groups for p in g["params"]], [[None] * 4])
    assert saved["param_groups"] == before["param_groups"]
    assert saved["state"].keys() == before["state"].keys()
    for key, slots in saved["state"].items():
        assert differences(before["state"][key], slots) == []


def test_two_optimizers_that_load_one_dict_are_independent() -> None:
    problem = small_problem()
    saved, params = saved_adam()
    pairs = []
    for _ in range(2):
        own = copies(params)
        optimizer = make(generated, "Adam", own)
        optimizer.load_state_dict(saved)
        pairs.append((optimizer, own))
    (first, first_params), (second, second_params) = pairs
    before = copy.deepcopy(contents(second))
    advance(first, first_params, problem.gradients[5:8])
    assert differences(before, contents(second)) == []
    advance(second, second_params, problem.gradients[5:8])
    assert differences(contents(first), contents(second)) == []


@pytest.mark.parametrize("built", [None, True, False])
@pytest.mark.parametrize("saved_flag", [None, True, False])
def test_execution_flags_stay_as_constructed(built: bool | None, saved_flag: bool | None) -> None:
    saved, params = saved_adam()
    flags = ("foreach", "capturable", "differentiable", "fused")
    for group in saved["param_groups"]:
        group.update(dict.fromkeys(flags, saved_flag))
    optimizer = generated.Adam(
        [{"params": params[::2]}, {"params": params[1::2], "foreach": not built}], foreach=built
    )
    optimizer.load_state_dict(saved)
    first, second = optimizer.param_groups
    assert [first[f] for f in flags] == [built, False, False, None]
    assert [second[f] for f in flags] == [not built, False, False, None]


def test_hyperparameters_come_from_the_checkpoint() -> None:
    options = {"betas": (0.5, 0.6), "eps": 1e-3, "weight_decay": 0.2, "amsgrad": True}
    saved, params = saved_adam(**options, maximize=True, decoupled_weight_decay=True, lr=0.3)
    optimizer = make(generated, "Adam", copies(params), lr=0.7)
    optimizer.load_state_dict(saved)
    first = optimizer.param_groups[0]
    assert {name: first[name] for name in options} == options
    assert (first["maximize"], first["decoupled_weight_decay"], first["lr"]) == (True, True, 0.3)


def test_adamw_decouples_its_decay_whatever_the_checkpoint_says() -> None:
    problem = small_problem()
    saved, params = saved_adam(weight_decay=0.1)
    assert not saved["param_groups"][0]["decoupled_weight_decay"]
    found = []
    for package in (torch.optim, generated):
        own = copies(params)
        optimizer = make(package, "AdamW", own)
        optimizer.load_state_dict(copy.deepcopy(saved))  # torch's trains in the dict's tensors
        assert all(group["decoupled_weight_decay"] for group in optimizer.param_groups)
        advance(optimizer, own, problem.gradients[5:9])
        found.append(contents(optimizer))
    assert differences(*found) == []


def test_keys_that_others_put_into_groups_are_loaded() -> None:
    saved, params = saved_adam()
    saved["param_groups"][0]["initial_lr"] = 0.5
    saved["param_groups"][1]["note"] = "last layer"
    optimizer = make(generated, "Adam", copies(params))
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["initial_lr"] == 0.5
    assert optimizer.param_groups[1]["note"] == "last layer"


@pytest.mark.parametrize("package", [torch.optim, generated], ids=["torch", "ours"])
def test_parameter_names_come_from_the_checkpoint_if_it_has_some(package: Any) -> None:
    def named(*names: str) -> torch.optim.Optimizer:
        return package.Adam([(name, torch.zeros(1, requires_grad=True)) for name in names])

    optimizer = named("a", "b")
    optimizer.load_state_dict(named("c", "d").state_dict())
    assert optimizer.param_groups[0]["param_names"] == ["c", "d"]
    nameless = package.Adam([torch.zeros(1, requires_grad=True) for _ in range(2)])
    optimizer.load_state_dict(nameless.state_dict())
    assert optimizer.param_groups[0]["param_names"] == ["c", "d"]
    nameless.load_state_dict(optimizer.state_dict())
    assert nameless.param_groups[0]["param_names"] == ["c", "d"]


@pytest.mark.parametrize("package", [torch.optim, generated], ids=["torch", "ours"])
def test_hooks_run_around_saving_and_loading(package: Any) -> None:
    param = torch.zeros(2, requires_grad=True)
    optimizer = package.Adam([param], lr=0.1)
    advance(optimizer, [param], [[torch.ones(2)]])
    seen: list[str] = []
    optimizer.register_state_dict_pre_hook(lambda o: seen.append("before saving"))
    optimizer.register_state_dict_post_hook(lambda o, d: seen.append("after saving"))
    saved = optimizer.state_dict()

    def slower(loading: Any, state_dict: StateDict) -> StateDict:
        seen.append("before loading")
        assert state_dict is not saved
        groups = [{**group, "lr": 0.01} for group in state_dict["param_groups"]]
        return {**state_dict, "param_groups": groups}

    optimizer.register_load_state_dict_pre_hook(lambda o, d: seen.append("changes nothing"))
    optimizer.register_load_state_dict_pre_hook(slower)
    optimizer.register_load_state_dict_post_hook(
        lambda o: seen.append(f"after loading {o.param_groups[0]['lr']}")
    )
    optimizer.load_state_dict(saved)
    assert seen == [
        "before saving", "after saving", "changes nothing", "before loading", "after loading 0.01",
    ]  # fmt: skip
    assert saved["param_groups"][0]["lr"] == 0.1


def test_an_optimizer_without_state_loads_and_saves() -> None:
    saved, _ = saved_adam(steps=0)
    assert saved["state"] == {}
    optimizer, own = trained(generated, "Adam", 3)
    optimizer.load_state_dict(saved)
    assert optimizer.state_dict()["state"] == {}
    advance(optimizer, own, small_problem().gradients[:1])
    assert optimizer.state[own[0]]["step"] == 1


def test_slots_that_start_unset_may_be_missing_or_none() -> None:
    optimizer, params = trained(generated, "SGD", 1, momentum=0.9)
    saved = through_a_file(optimizer.state_dict())
    saved["state"][0]["momentum_buffer"] = None
    saved["state"].pop(1, None)
    loaded = make(generated, "SGD", copies(params), momentum=0.9)
    loaded.load_state_dict(saved)
    own = loaded.param_groups[0]["params"][0]
    own.grad = torch.full_like(own, 3.0)
    loaded.step()
    assert torch.equal(loaded.state[own]["momentum_buffer"], own.grad)


def test_a_tensor_lr_is_saved_and_loaded_as_a_tensor_of_its_own() -> None:
    lr = torch.tensor(0.25)
    saved, params = saved_adam(lr=lr)
    optimizer = make(generated, "Adam", copies(params))
    optimizer.load_state_dict(saved)
    loaded = optimizer.param_groups[0]["lr"]
    assert torch.equal(loaded, lr)
    assert loaded is not saved["param_groups"][0]["lr"]


def test_checkpoint_from_before_an_option_was_turned_on_loads() -> None:
    params = [torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)]
    optimizer = generated.Adam(params)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    optimizer.param_groups[0]["amsgrad"] = True
    params[1].grad = None
    optimizer.step()
    resumed = generated.Adam([p.detach().clone().requires_grad_() for p in params])
    resumed.load_state_dict(optimizer.state_dict())
    for param in resumed.param_groups[0]["params"]:
        param.grad = torch.ones_like(param)
    resumed.step()
    assert all("max_exp_avg_sq" in state for state in resumed.state.values())
