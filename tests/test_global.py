"""Numbers of all parameters: what an update with them computes, in which order, and with whom."""

from __future__ import annotations

import importlib
import io
import itertools
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import generated
from optdsl import build, interpret, ir, pipeline
from optdsl.parse import parse
from optdsl.passes import barriers, for_kernels, name_totals, optimise
from optdsl.resolve import resolve
from optdsl.source import Source
from optdsl.targets.program.kernel import kernel_of
from tests.random_specs import SMOOTH, spec_of, updates

# AdamW whose gradients are clipped as `torch.nn.utils.clip_grad_norm_` does it, 1e-6 included.
CLIPPED = """
optimizer Clipped {
    hyper lr = 1e-3
    hyper betas: (beta1, beta2) = (0.9, 0.999)
    hyper eps = 1e-8
    hyper weight_decay = 1e-2
    hyper most = inf
    state step       = 0
    state exp_avg    = zeros_like(param)
    state exp_avg_sq = zeros_like(param)
    update {
        if most < inf { grad *= min(1, most / (all_norm(grad) + 1e-6)) }
        step += 1
        param *= 1 - lr * weight_decay
        exp_avg    = lerp(exp_avg, grad, 1 - beta1)
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad * grad
        let bias_correction1 = 1 - beta1 ** step
        let bias_correction2 = 1 - beta2 ** step
        let denom = sqrt(exp_avg_sq) / bias_correction2 ** 0.5 + eps
        descend lr / bias_correction1 * exp_avg / denom
    }
}
"""
# One total needs another, and both what is stored; one tensor's numbers stand between. In a group
# without `flag` only the others make `bonus`.
NESTED = """
optimizer Nested {
    hyper lr = 0.1
    hyper beta = 0.9
    option flag = true
    state step = 0
    state m = zeros_like(param)
    update {
        step += 1
        m = lerp(m, grad / (1 + all_max_abs(grad)), 1 - beta)
        let own = norm(m) / (1 + max_abs(grad))
        let length = all_norm(m / (own + 1 - beta ** step))
        let ratio = 1
        if flag {
            let bonus = all_dot(m, grad)
            ratio = own + bonus / (1 + abs(bonus))
        }
        descend lr / (length + abs(all_sum(param * grad))) * ratio * m
    }
}
"""
# What reduces numbers has no kernel.
ODD = """
optimizer Odd {
    hyper lr = 0.1
    hyper k = 2
    update {
        let lengths = all_sum(norm(grad)) + all_max_abs(grad)
        descend lr / (1 + lengths + abs(all_dot(k, grad) + all_dot(grad, 3))) * grad
    }
}
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """All as a package of their own."""
    root: Path = tmp_path_factory.mktemp("global")
    (root / "specs.opt").write_text(CLIPPED + NESTED + ODD, encoding="utf-8")
    library = pipeline.load([root / "specs.opt"])
    build.write(build.plan(library, "optdsl build"), root / "global_totals")
    sys.path.insert(0, str(root))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTDSL_CACHE", str(root / "kernels"))
        yield importlib.import_module("global_totals")
    sys.path.remove(str(root))


SPECS: dict[str, ir.Spec] = {}
for unit in resolve([parse(Source("specs.opt", CLIPPED + NESTED + ODD))])[0]:
    assert isinstance(unit, ir.Spec)
    SPECS[unit.name] = unit

SHAPES = ((3, 4), (7,), (), (0,), (65, 2))
WAYS = ({"foreach": False}, {"foreach": True}, {"differentiable": True}, {"fused": True})
every_way = pytest.mark.parametrize("way", WAYS, ids=str)


def tensors(seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in SHAPES]


def give(params: list[Tensor], step: int, factor: float = 1.0) -> None:
    """Gradients of a step. In the second one the second parameter has none."""
    for place, (param, grad) in enumerate(zip(params, tensors(100 + step), strict=True)):
        missing = (step, place) == (1, 1)
        param.grad = None if missing else (factor * grad).to(param.dtype)


def grouped(params: list[Tensor], **second: Any) -> list[dict[str, Any]]:
    return [{"params": params[:2]}, {"params": params[2:], **second}]


def moved(params: list[Tensor]) -> float:
    pairs = zip(params, tensors(0, params[0].dtype), strict=True)
    return max(float((p - q).abs().max()) for p, q in pairs if p.numel())


def assert_equal(found: list[Tensor], expected: list[Tensor], tolerance: float = 0.0) -> None:
    assert moved(expected) > 100 * tolerance
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left.detach(), right.detach(), rtol=tolerance, atol=tolerance)


TOTALS = (
    "T / (1 + all_norm(T))", "T * all_max_abs(T / (1 + norm(T)))", "T - all_sum(T) / 90",
    "T * all_dot(T, T) / (30 + all_norm(T * T))", "where(all_norm(T) > 3, T, S * T)",
)  # fmt: skip


# What it computes


@every_way
@pytest.mark.parametrize("most", [0.5, 50.0, torch.inf])
def test_clipped_adamw_is_torchs_behind_clip_grad_norm(
    package: Any, way: dict[str, Any], most: float
) -> None:
    """In float64, to 1e-12: a sum of squares in another order is a few units of 2e-16 off."""
    params, others = tensors(0), tensors(0)
    optimizer = package.Clipped(grouped(params, lr=0.02), lr=0.01, most=most, **way)
    torchs = torch.optim.AdamW(grouped(others, lr=0.02), lr=0.01, foreach=False)
    for step in range(6):
        give(params, step)
        give(others, step)
        optimizer.step()
        torch.nn.utils.clip_grad_norm_(others, most)
        torchs.step()
    assert_equal(params, others, 1e-12)


def interpreted(spec: ir.Spec, groups: list[dict[str, Any]], steps: int) -> list[Tensor]:
    """Where the interpreter leads parameters whose groups have these hyperparameters."""
    params = tensors(0)
    found: list[tuple[Any, Any]] = [(p.numpy(), None) for p in params]
    for step in range(steps):
        give(params, step)
        given = [n for n, p in enumerate(params) if p.grad is not None]
        members = [
            interpret.Member(groups[n], found[n][0], params[n].grad.numpy(), found[n][1])  # type: ignore[union-attr]
            for n in given
        ]
        for place, result in zip(given, interpret.step_all(spec, members), strict=True):
            found[place] = result
    return [torch.as_tensor(param) for param, _ in found]


FLAGS = ((True, True), (True, False), (False, True), (False, False))


@every_way
@pytest.mark.parametrize("flags", FLAGS)
def test_totals_of_totals_follow_the_interpreter(
    package: Any, way: dict[str, Any], flags: tuple[bool, bool]
) -> None:
    """In float64: each step rounds otherwise, and enlarges what is there."""
    check_nested(package, way, flags)


def check_nested(package: Any, way: dict[str, Any], flags: tuple[bool, bool]) -> None:
    """Five steps of two groups with these flags, against the interpreter."""
    params = tensors(0)
    groups = grouped(params, lr=0.3, beta=0.8, flag=flags[1])
    optimizer = package.Nested(groups, flag=flags[0], **way)
    for step in range(5):
        give(params, step)
        optimizer.step()
    hypers = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    each = [hypers[0], hypers[0], *[hypers[1]] * 3]
    assert_equal(params, interpreted(SPECS["Nested"], each, 5), 1e-10)


@every_way
def test_reductions_of_numbers_follow_the_interpreter(package: Any, way: dict[str, Any]) -> None:
    params = tensors(0)
    optimizer = package.Odd(grouped(params, lr=0.3, k=-1.5), **way)
    for step in range(3):
        give(params, step)
        optimizer.step()
    each = [{"lr": 0.1, "k": 2.0}] * 2 + [{"lr": 0.3, "k": -1.5}] * 3
    assert_equal(params, interpreted(SPECS["Odd"], each, 3), 1e-12)


@pytest.mark.parametrize("number", ["all_sum(norm(grad))", "sum(norm(grad))", "norm(sum(grad))"])
def test_what_reduces_numbers_has_no_kernel(number: str) -> None:
    """One would reduce as many numbers as the tensor has elements."""
    text = f"optimizer T {{\nupdate {{ descend grad / (1 + {number}) }}\n}}"
    (spec,), _ = resolve([parse(Source("t.opt", text))])
    assert isinstance(spec, ir.Spec)
    assert kernel_of(spec) is None


def test_the_interpreter_is_the_definition_written_out() -> None:
    """One step in NumPy: each number is that of all elements, one behind the other."""
    params, grads = tensors(0), tensors(100)
    flat = torch.cat([g.flatten() for g in grads]).numpy()
    lr, beta, flag = 0.1, 0.9, True
    m = [(1 - beta) * g.numpy() / (1 + np.abs(flat).max()) for g in grads]
    own = [
        np.sqrt((x * x).sum()) / (1 + np.abs(g.numpy()).max(initial=0))
        for x, g in zip(m, grads, strict=True)
    ]
    scaled = [x / (o + 1 - beta) for x, o in zip(m, own, strict=True)]
    length = np.sqrt(sum((x * x).sum() for x in scaled))
    bonus = sum((x * g.numpy()).sum() for x, g in zip(m, grads, strict=True))
    whole = abs(sum(float((p * g).sum()) for p, g in zip(params, grads, strict=True)))
    hypers = {"lr": lr, "beta": beta, "flag": flag}
    members = [
        interpret.Member(hypers, p.numpy(), g.numpy()) for p, g in zip(params, grads, strict=True)
    ]
    for param, x, o, (found, _) in zip(
        params, m, own, interpret.step_all(SPECS["Nested"], members), strict=True
    ):
        ratio = o + bonus / (1 + abs(bonus))
        expected = param.numpy() - lr / (length + whole) * ratio * x
        np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-15)


@settings(max_examples=60, deadline=None)
@given(updates(SMOOTH + 3 * TOTALS), st.booleans())
@example(spec_of("a = grad / all_norm(grad)\nif c > 0.4 { a += all_norm(grad) }"), False)
def test_random_updates_mean_the_same_with_and_without_barriers(text: str, flag: bool) -> None:
    """To the bit: what comes before a barrier is computed again behind it."""
    (spec,), _ = resolve([parse(Source("random.opt", text))])
    assert isinstance(spec, ir.Spec)
    random = np.random.default_rng(0)
    given = [(random.standard_normal(n), random.standard_normal(n)) for n in (5, 3, 1)]
    hypers = [{"c": c, "d": 0.7, "flag": flag} for c in (0.3, 0.45, 0.2)]

    def after_steps(version: ir.Spec) -> list[tuple[Any, Any]]:
        found: list[tuple[Any, Any]] = [(param, None) for param, _ in given]
        for _ in range(3):
            members = [
                interpret.Member(h, p, g, s)
                for h, (p, s), (_, g) in zip(hypers, found, given, strict=True)
            ]
            found = interpret.step_all(version, members)
        return found

    optimised = optimise(spec)
    # What the author has written, and what other passes have made of it.
    for whole, split in (
        (spec, barriers(name_totals(spec))),
        (optimised, barriers(optimised)),
        (optimised, for_kernels(optimised)),
    ):
        for (param, slots), (same, same_slots) in zip(
            after_steps(whole), after_steps(split), strict=True
        ):
            np.testing.assert_array_equal(same, param)
            for name, value in slots.items():
                np.testing.assert_array_equal(same_slots[name], value)


# Ways to execute it


@pytest.mark.parametrize("name", ["Clipped", "Nested"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_for_loop_and_foreach_give_the_same_bits(
    package: Any, name: str, dtype: torch.dtype
) -> None:
    more = {"most": 0.5} if name == "Clipped" else {}
    results = []
    for foreach in (False, True):
        params = tensors(0, dtype)
        optimizer = getattr(package, name)(grouped(params, lr=0.3), foreach=foreach, **more)
        for step in range(4):
            give(params, step)
            optimizer.step()
        results.append(params)
    assert_equal(*results)


@every_way
def test_the_order_of_updates_has_no_part_in_it(package: Any, way: dict[str, Any]) -> None:
    """Each reads what all had before: parameters in reverse, and in other groups, give the same but
    for the order of a sum, which is that of the parameters."""
    results = []
    for order, cut in (((0, 1, 2, 3, 4), 2), ((4, 3, 2, 1, 0), 1)):
        params = tensors(0)
        turned = [params[n] for n in order]
        groups = [{"params": turned[:cut]}, {"params": turned[cut:]}]
        optimizer = package.Nested(groups, lr=0.3, **way)
        for step in range(4):
            give(params, step)
            optimizer.step()
        results.append(params)
    assert_equal(*results, 1e-12)


def test_one_compiled_graph_has_all_of_it(package: Any) -> None:
    expected = tensors(0)
    plain = package.Clipped(expected, lr=0.01, most=0.5, foreach=False)
    params = [p.requires_grad_() for p in tensors(0)]
    optimizer = package.Clipped(params, lr=0.01, most=0.5)
    counter = CompileCounterWithBackend("eager")
    step = torch.compile(optimizer.step, backend=counter)
    for number in (0, 2, 3):
        give(expected, number)
        give(params, number)
        plain.step()
        step()
    assert counter.frame_count == 1
    assert_equal(params, expected, 1e-12)


def test_gradients_flow_through_a_total_to_every_parameter(package: Any) -> None:
    """The derivative of one parameter's step by another's gradient, against a difference."""

    def after(change: float) -> tuple[Tensor, Tensor]:
        params = tensors(0)[:2]
        grads = [g.clone().requires_grad_() for g in tensors(100)[:2]]
        grads[1].data[3] += change
        optimizer = package.Nested(params, lr=0.3, differentiable=True)
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        optimizer.step()
        total = (params[0] * tensors(1)[0]).sum()
        (flows,) = torch.autograd.grad(total, grads[1])
        return total.detach(), flows[3]

    width = 1e-6
    difference = (after(width)[0] - after(-width)[0]) / (2 * width)
    _, derivative = after(0)
    assert abs(derivative) > 1e-6
    torch.testing.assert_close(derivative, difference, rtol=1e-4, atol=1e-10)


def test_a_loss_scale_is_undone_before_totals_are_made(package: Any) -> None:
    """And where a gradient is infinite, nothing changes."""
    results = []
    for way, scaled in itertools.product(({"foreach": False}, {"fused": True}), (False, True)):
        params = [p.requires_grad_() for p in tensors(0, torch.float32)]
        optimizer = package.Clipped(params, lr=0.01, most=0.5, **way)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        scaler.scale(torch.zeros(()))
        for step in range(3):
            give(params, step, factor=1024.0 if scaled else 1.0)
            if scaled and step == 1:
                assert params[0].grad is not None
                params[0].grad.fill_(torch.inf)
            elif not scaled and step == 1:
                continue
            scaler.step(optimizer)
            scaler.update(1024.0)
        results.append(params)
    for other in results[1:]:
        assert_equal(other, results[0], 1e-6)


def test_mixed_dtypes_and_policies_share_a_total(package: Any) -> None:
    """Each tensor's term is float64 of what it stands for: bfloat16 with a float32 copy moves as
    float32 does, on both paths."""
    for way in ({"foreach": True}, {"fused": True}):
        results = []
        for dtype, more in ((torch.float32, {}), (torch.bfloat16, {"master_weights": True})):
            start = [p.bfloat16() for p in tensors(0)]
            params = [start[0].float(), *(p.to(dtype) for p in start[1:])]
            optimizer = package.Clipped(
                grouped(params, lr=0.05), lr=0.05, most=0.5, state_dtype=torch.float32,
                **more, **way,
            )  # fmt: skip
            for step in (0, 2, 3):
                for param, grad in zip(params, tensors(100 + step), strict=True):
                    param.grad = grad.bfloat16().to(param.dtype)
                optimizer.step()
            results.append([optimizer.state[p].get("master", p) for p in params])
        assert_equal(results[1], results[0], 2e-6)


# All together, or none


def unserved(package: Any, groups: list[dict[str, Any]], tolerance: float = 1e-12) -> list[str]:
    """What is said when a step does without kernels."""
    batches = importlib.import_module(f"{package.__name__}._fused._batch")
    backends = importlib.import_module(f"{package.__name__}._fused._backends")
    backends._say_once.cache_clear()
    optimizer = package.Clipped(groups, lr=0.01, most=0.5)
    params = [p for group in groups for p in group["params"]]
    expected = [p.clone() for p in params]
    plain = package.Clipped([{"params": expected}], lr=0.01, most=0.5, foreach=False)
    before = batches.launches
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(3):
            grads = tensors(100 + step)
            for param, other, grad in zip(params, expected, grads, strict=False):
                param.grad = grad.to(param.dtype)
                other.grad = param.grad.clone()
            optimizer.step()
            plain.step()
    assert batches.launches == before
    for param, other in zip(params, expected, strict=True):
        torch.testing.assert_close(param, other, rtol=tolerance, atol=tolerance)
    return [str(each.message).split(".")[0] for each in said]


def test_a_group_without_a_kernel_keeps_the_others_from_theirs(package: Any) -> None:
    beside = (
        "There is no fused kernel for groups beside one without, where all make a number together"
    )
    first, second, *_ = tensors(0)
    groups = [{"params": [first], "fused": True}, {"params": [second], "foreach": False}]
    assert unserved(package, groups) == [beside]


def test_a_kernel_that_cannot_be_had_keeps_the_others_from_theirs(
    package: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = importlib.import_module(f"{package.__name__}._fused._plan")
    found: list[torch.dtype] = []

    def has_kernel(_: Any, member: Any) -> bool:
        found.append(member.param.dtype)
        return found[-1] is torch.float64

    monkeypatch.setattr(plans, "has_kernel", has_kernel)
    first, second, *_ = tensors(0)
    groups = [{"params": [first], "fused": True}, {"params": [second.float()], "fused": True}]
    assert unserved(package, groups, 1e-6) == []
    assert {*found} == {torch.float64, torch.float32}


def test_a_group_that_is_recorded_takes_the_others_with_it(package: Any) -> None:
    params = tensors(0)
    grads = [g.requires_grad_() for g in tensors(100)]
    groups = grouped(params, differentiable=True)
    optimizer = package.Nested(groups, lr=0.3, foreach=True)
    optimizer.defaults["differentiable"] = True
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    optimizer.step()
    (flows,) = torch.autograd.grad(params[4].sum(), grads[0])
    assert flows.abs().max() > 0


def test_nobody_has_a_gradient(package: Any) -> None:
    for way in WAYS:
        params = tensors(0)
        optimizer = package.Clipped(params, most=0.5, **way)
        optimizer.step()
        assert all(map(torch.equal, params, tensors(0)))
        give(params, 0)
        optimizer.step()
        moved_to = [p.clone() for p in params]
        for param in params:
            param.grad = None
        optimizer.step()
        assert all(map(torch.equal, params, moved_to))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_whoever_rests_leaves_no_trace_in_a_sum(package: Any, dtype: torch.dtype) -> None:
    """An optimizer that has seen all gradients, and one that is made where some are missing, as
    behind a checkpoint: the same bits."""
    for seed in range(8):
        results = []
        for anew in (False, True):
            params = [torch.zeros(n, dtype=dtype) for n in range(1, 30)]
            generator = torch.Generator().manual_seed(seed)
            optimizer = package.Clipped(params, most=0.5, fused=True)
            for step in range(2):
                for place, param in enumerate(params):
                    grad = torch.randn(param.shape, generator=generator, dtype=dtype)
                    param.grad = None if step and place % 3 == 1 else grad
                if step and anew:
                    saved = optimizer.state_dict()
                    optimizer = package.Clipped(params, most=0.5, fused=True)
                    optimizer.load_state_dict(saved)
                optimizer.step()
            results.append(params)
        assert all(map(torch.equal, *results))


def test_sparse_gradients_are_refused(package: Any) -> None:
    param = torch.zeros(4)
    param.grad = torch.ones(4).to_sparse()
    for way in ({"foreach": False}, {"foreach": True}):
        with pytest.raises(RuntimeError, match="Nested does not support sparse gradients"):
            package.Nested([param], **way).step()


def test_a_checkpoint_continues_where_it_was(package: Any) -> None:
    for way in ({"foreach": False}, {"foreach": True}, {"fused": True}):
        whole, first = tensors(0), tensors(0)
        optimizer = package.Nested(whole, lr=0.3, **way)
        saving = package.Nested(first, lr=0.3, **way)
        for step in range(2):
            give(whole, step)
            give(first, step)
            optimizer.step()
            saving.step()
        file = io.BytesIO()
        torch.save(saving.state_dict(), file)
        file.seek(0)
        loading = package.Nested(first, lr=0.1, **way)
        loading.load_state_dict(torch.load(file))
        for step in range(2, 5):
            give(whole, step)
            give(first, step)
            optimizer.step()
            loading.step()
        assert_equal(first, whole)


# One of two processes: its shards of three parameters, and what the same step makes of whole ones.
PROCESS = """
import itertools
import os
import sys
import torch
from torch.distributed import FileStore, destroy_process_group, init_process_group
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh
import generated

rank, store = int(sys.argv[1]), FileStore(sys.argv[2], 2)
sys.path.insert(0, sys.argv[3])
from global_totals import Odd

init_process_group("gloo", store=store, rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
laid = [((5, 3), [Shard(0)]), ((1,), [Shard(0)]), ((3, 2), [Replicate()])]
made_with = (generated.SNGM, {"lr": 0.1, "weight_decay": 0.1}), (Odd, {})
for (made, options), foreach in itertools.product(made_with, (False, True)):
    options = {**options, "foreach": foreach}
    torch.manual_seed(0)
    whole = [torch.randn(shape, dtype=torch.float64) for shape, _ in laid]
    parts = [distribute_tensor(w.clone(), mesh, p) for w, (_, p) in zip(whole, laid)]
    optimizers = made(whole, **options), made(parts, **options)
    for _ in range(3):
        for one, part, (_, placements) in zip(whole, parts, laid):
            one.grad = torch.randn(one.shape, dtype=torch.float64)
            part.grad = distribute_tensor(one.grad.clone(), mesh, placements)
        for optimizer in optimizers:
            optimizer.step()
    for one, part in zip(whole, parts):
        torch.testing.assert_close(part.full_tensor(), one, rtol=1e-12, atol=1e-12)
destroy_process_group()
# The end of the interpreter may meet a thread of gloo's, and is then an abort.
os._exit(0)
"""


def test_shards_of_a_parameter_make_its_part_of_a_total_together(
    package: Any, tmp_path: Path
) -> None:
    """One process has no element of the second parameter, and both have all of the third."""
    root = Path(package.__file__).parents[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), str(tmp_path / "store"), str(root)],
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    said = [process.communicate()[1].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0], said


# A paper


class PublishedSNGM:
    """Algorithm 1 of Zhao et al., 2020, with its names. A vector has all parameters, one behind the
    other; at a gradient of 0 nothing enters u."""

    def __init__(self, w: Any, eta: float, beta: float) -> None:
        self.w, self.u, self.eta, self.beta = w, np.zeros_like(w), eta, beta

    def step(self, g: Any) -> None:
        length = np.sqrt(np.sum(g * g))
        self.u = self.beta * self.u + (g / length if length > 0 else g)
        self.w = self.w - self.eta * self.u


def flat(given: list[Tensor]) -> Any:
    return torch.cat([t.detach().flatten() for t in given]).numpy()


@every_way
@pytest.mark.parametrize(("momentum", "weight_decay"), [(0, 0), (0.9, 0), (0.9, 0.1)])
def test_sngm_is_the_papers(
    way: dict[str, Any], momentum: float, weight_decay: float,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In float64. The decay is part of the gradient."""
    monkeypatch.setenv("OPTDSL_CACHE", str(tmp_path))
    params = tensors(0)
    options = {"momentum": momentum, "weight_decay": weight_decay, **way}
    optimizer = generated.SNGM(params, lr=0.1, **options)
    paper = PublishedSNGM(flat(params), 0.1, momentum)
    for step in range(6):
        # The gradients of one step are 0.
        grads = [0 * g if step == 3 else g for g in tensors(100 + step)]
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        paper.step(flat(grads) + weight_decay * paper.w)
        optimizer.step()
        np.testing.assert_allclose(flat(params), paper.w, rtol=1e-12, atol=1e-12)


@every_way
def test_a_gradient_of_nan_is_seen_everywhere(
    way: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody takes a step of unknown length."""
    monkeypatch.setenv("OPTDSL_CACHE", str(tmp_path))
    params = tensors(0)
    give(params, 0)
    assert params[1].grad is not None
    params[1].grad[2] = torch.nan
    generated.SNGM(params, **way).step()
    assert all(bool(p.isnan().all()) for p in params)
