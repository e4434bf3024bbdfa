"""What the policies of precision are held against: a step in float32 between reading and rounding.

The reading and the rounding are those of `_precision`; which tensor is read and rounded how, is
written down here once more.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import generated
from generated import _precision
from tests.reference import (
    SHIPPED,
    Problem,
    advance,
    construct,
    contents,
    differences,
    random,
    same_bits,
    suited,
    through_a_file,
)

# What can be told about precision: not a routine, nor what takes sparse gradients alone.
NAMES = tuple(name for name in SHIPPED if name not in ("LBFGS", "SparseAdam"))
POLICIES: dict[str, dict[str, Any]] = {
    "stochastic": {"rounding": "stochastic"},
    "kahan": {"kahan": True},
    "master": {"master_weights": True},
    "float32-state": {"state_dtype": torch.float32},
    "bfloat16-state": {"state_dtype": torch.bfloat16},
    "8-bit-state": {"state_dtype": "int8"},
    "stochastic-8-bit-state": {"rounding": "stochastic", "state_dtype": "int8", "seed": 7},
    "kahan-bfloat16-state": {"kahan": True, "state_dtype": torch.bfloat16, "seed": 1 << 63},
    "master-8-bit-state": {"master_weights": True, "state_dtype": "int8"},
}
# Each way to store a parameter and each way to store a slot.
COVERING = ("stochastic-8-bit-state", "kahan-bfloat16-state", "master", "float32-state")
# Slots that are there from the start, unset ones, and a product of a row and a column.
SOME = ("AdamW", "SGD", "Adagrad", "Adafactor")
OPTIONS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1, "momentum": 0.9},
    "Adam": {"amsgrad": True},
    "RMSprop": {"momentum": 0.9, "centered": True},
}


def options_of(name: str) -> dict[str, Any]:
    return OPTIONS.get(name, {})


def problem(name: str, dtype: torch.dtype, steps: int = 4) -> Problem:
    """Tensors that have codes of 8 bits and such that are too small, in several layouts."""
    generator = torch.Generator().manual_seed(4)

    def tensors() -> tuple[Tensor, ...]:
        def make(*shape: int) -> Tensor:
            return random(generator, dtype, *shape)

        last = make(2, 3, 40, 21).contiguous(memory_format=torch.channels_last)
        return make(), make(5001), make(7, 6).t(), make(0), last, make(64, 66)[:, 1:]

    rows = [list(tensors()) for _ in range(steps)]
    rows[1][1] = None  # type: ignore[call-overload]
    return suited(Problem(tensors(), tuple(map(tuple, rows))), name)


def read(param: Tensor, state: Mapping[str, Any]) -> Tensor:
    """A parameter in float32."""
    if param.dtype != torch.float32 and "remainder" in state:
        return _precision.joined(param, state["remainder"])
    if param.dtype != torch.float32 and "master" in state:
        return _precision.current(param, state["master"])
    return param.to(torch.float32, copy=True)


def read_slots(state: Mapping[str, Any]) -> dict[str, Any]:
    """Slots in float32, without what belongs to parameters and codes."""
    found = {}
    for name, value in state.items():
        if name in ("remainder", "master") or name.removesuffix("_scale") in state.keys() - {name}:
            continue
        if f"{name}_scale" in state:
            found[name] = _precision.decode(value, state[f"{name}_scale"])
        elif isinstance(value, Tensor) and value.dim() + value.is_floating_point():
            found[name] = value.to(torch.float32, copy=True)
        else:
            found[name] = value.clone() if isinstance(value, Tensor) else value
    return found


def written(
    optimizer: Any, param: Tensor, wide: Tensor, slots: Mapping[str, Any], policy: dict[str, Any]
) -> dict[str, Any]:
    """What a parameter, under the name `param`, and its state hold after a step that came to `wide`
    and `slots`."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    index = next(i for i, p in enumerate(params) if p is param)
    draw = next(
        g.get("draws", 0) for g in optimizer.param_groups for p in g["params"] if p is param
    )
    stream = _precision.stream(policy.get("seed", 0), index)

    def bits(store: int, like: Tensor) -> Tensor:
        return _precision.random_bits(_precision.key(stream, draw, store), like)

    found: dict[str, Any] = {"param": wide.to(param.dtype)}
    if param.dtype != torch.float32:
        if policy.get("rounding") == "stochastic":
            found["param"] = _precision.rounded(wide, param.dtype, bits(0, wide))
        elif policy.get("kahan"):
            found["param"], found["remainder"] = _precision.split(wide, param.dtype)
        elif policy.get("master_weights"):
            found["master"] = wide
    tensors = [slot.name for slot in optimizer.slots if not slot.scalar]
    for name, value in slots.items():
        dtype = policy.get("state_dtype")
        if name not in tensors:
            found[name] = value
        elif dtype == "int8" and value.numel() >= 4096:
            coins = bits(1 + tensors.index(name), value)
            found[name], found[f"{name}_scale"] = _precision.encode(value, coins)
        elif dtype == torch.bfloat16:
            coins = bits(1 + tensors.index(name), value)
            found[name] = _precision.rounded(value, dtype, coins)
        else:
            # By default a slot has its parameter's dtype, but for averages of whole dimensions.
            found[name] = value if dtype else value.to(param.dtype)
    return found


def expected_after(
    optimizer: Any, row: Sequence[Tensor | None], policy: dict[str, Any], **options: Any
) -> list[dict[str, Any] | None]:
    """What the parameters and states of an optimizer hold after its next step with these gradients,
    by a step of the same algorithm in float32 without a policy. None: no gradient."""
    (group,) = optimizer.param_groups
    wide = [read(p.detach(), optimizer.state.get(p, {})) for p in group["params"]]
    twin = construct(generated, type(optimizer).__name__, wide, **options)
    for param, stored, grad in zip(wide, group["params"], row, strict=True):
        if optimizer.state.get(stored):
            twin.state[param] = read_slots(optimizer.state[stored])
        param.grad = None if grad is None else grad.float()
    twin.step()
    found: list[dict[str, Any] | None] = []
    draws = group.get("draws", 0)
    if policy.get("rounding") or policy.get("state_dtype") in (torch.bfloat16, "int8"):
        group["draws"] = draws + 1
    for param, stored, grad in zip(wide, group["params"], row, strict=True):
        after = written(optimizer, stored, param, twin.state.get(param, {}), policy)
        found.append(None if grad is None else after)
    if "draws" in group:
        group["draws"] = draws
    return found


def assert_follows_the_definition(
    name: str, dtype: torch.dtype, policy: dict[str, Any], steps: int = 4, **flags: Any
) -> None:
    """Each step, from what the last one has left: the bits of the definition."""
    start = problem(name, dtype, steps)
    params = start.start()
    options = options_of(name)
    optimizer = construct(generated, name, params, **options, **policy, **flags)
    for step, row in enumerate(start.gradients):
        for param, grad in zip(params, row, strict=True):
            if grad is not None:
                optimizer._initialise(optimizer.param_groups[0], param)
        expected = expected_after(optimizer, row, policy, **options, **flags)
        advance(optimizer, params, [row])
        for index, (param, after) in enumerate(zip(params, expected, strict=True)):
            if after is None:
                continue
            found = {"param": param.detach(), **optimizer.state[param]}
            assert found.keys() == after.keys()
            for key, value in after.items():
                same = value == found[key]
                same = same_bits(value, found[key]) if isinstance(value, Tensor) else same
                assert same, (step, index, key)


def assert_resumes(name: str, policy: dict[str, Any], steps: int = 6, **flags: Any) -> None:
    """What was stopped, saved and loaded, copied, or pickled, goes on as if it had not been."""
    start = problem(name, torch.bfloat16, steps)
    before, after = start.gradients[: steps // 2], start.gradients[steps // 2 :]
    options = {**options_of(name), **policy, **flags}
    params = start.start()
    optimizer = construct(generated, name, params, **options)
    advance(optimizer, params, before)
    saved = through_a_file(optimizer.state_dict())
    loaded = [p.detach().clone().requires_grad_() for p in params]
    resumed = construct(generated, name, loaded, **options)
    resumed.load_state_dict(saved)
    copies = (resumed, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer)))
    advance(optimizer, params, after)
    for other in copies:
        (group,) = other.param_groups
        advance(other, group["params"], after)
        assert differences(contents(optimizer), contents(other)) == []
        assert group.get("draws") == optimizer.param_groups[0].get("draws")
