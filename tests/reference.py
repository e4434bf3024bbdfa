"""Where torch has the algorithm, its for-loop's bits: the cases, and a command that counts them.

    python -m tests.reference [OPTIMIZER ...]

Also the problems (parameters, and a gradient for each step) that the other tests train on.
"""

from __future__ import annotations

import inspect
import io
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.testing._internal.common_optimizers import optim_db

import generated

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64)
STEPS = 20
PATHS = {"eager": False, "foreach": True}

# The values of each optimizer's own options and hyperparameters that every test combines.
VARIATIONS: dict[str, dict[str, tuple[Any, ...]]] = {
    "SGD": {
        "momentum": (0, 0.9),
        "dampening": (0, 0.3),
        "weight_decay": (0, 0.1),
        "nesterov": (False, True),
    },
    "Adam": {
        "weight_decay": (0, 0.1),
        "amsgrad": (False, True),
        "decoupled_weight_decay": (False, True),
    },
    "AdamW": {"weight_decay": (0, 0.1), "amsgrad": (False, True)},
    "RMSprop": {"weight_decay": (0, 0.1), "momentum": (0, 0.9), "centered": (False, True)},
    "Adagrad": {
        "weight_decay": (0, 0.1),
        "lr_decay": (0, 0.01),
        "initial_accumulator_value": (0, 0.1),
    },
    "Lion": {"weight_decay": (0, 0.1)},
    "LAMB": {
        "weight_decay": (0, 0.1),
        "bounds": ((0, math.inf), (0.5, 2.0)),
        "adaptive": (False, True),
    },
    "LARS": {"weight_decay": (0, 0.1), "momentum": (0, 0.9), "adaptive": (False, True)},
    "SNGM": {"weight_decay": (0, 0.1), "momentum": (0, 0.9)},
    "Adadelta": {"weight_decay": (0, 0.1), "rho": (0.9, 0.95)},
    "Adamax": {"weight_decay": (0, 0.1)},
    "NAdam": {
        "weight_decay": (0, 0.1),
        "decoupled_weight_decay": (False, True),
        "momentum_decay": (4e-3, 6e-3),
    },
    "RAdam": {"weight_decay": (0, 0.1), "decoupled_weight_decay": (False, True)},
    "ASGD": {"weight_decay": (0, 0.1), "lambd": (1e-4, 0.1), "t0": (1e6, 5)},
    "Rprop": {"etas": ((0.5, 1.2), (0.3, 1.1)), "step_sizes": ((1e-6, 50), (1e-3, 0.02))},
    "Adafactor": {
        "weight_decay": (0, 0.1),
        "beta2_decay": (-0.8, -1.0),
        "d": (1.0, 1.5),
        "eps": (None, (1e-5, 1e-2)),
    },
    "Muon": {
        "weight_decay": (0, 0.1),
        "nesterov": (False, True),
        "adjust_lr_fn": (None, "match_rms_adamw"),
    },
    "SparseAdam": {"betas": ((0.9, 0.999), (0.5, 0.9))},
    "LBFGS": {"line_search_fn": (None, "strong_wolfe"), "history_size": (100, 2)},
    "Noam": {"weight_decay": (0, 0.1), "warmup": (4000, 3)},
    "AdamWarmup": {"weight_decay": (0, 0.1), "warmup": (2000, 3)},
    "AdamWarmupCosineDecay": {"weight_decay": (0, 0.1), "warmup": (0, 3), "total_steps": (12,)},
}
SHIPPED = tuple(name for name in VARIATIONS if hasattr(generated, name))
IN_TORCH = tuple(name for name in SHIPPED if hasattr(torch.optim, name))
# Variations whose falsy value is not the default.
NOT_DEFAULT = {
    "AdamW": ("weight_decay",),
    "Muon": ("weight_decay", "nesterov"),
    "LAMB": ("weight_decay", "adaptive"),
    "LARS": ("weight_decay", "momentum", "adaptive"),
    "SNGM": ("momentum",),
}

# The dtypes that torch refuses, or in LBFGS's line search overflows in.
NOT_TAKEN = {
    "Adafactor": torch.complex64,
    "Muon": torch.complex64,
    "SparseAdam": torch.complex64,
    "LBFGS": torch.float16,
}
# What is not trained on gradients that are given: see `advance`.
BY_CLOSURE = ("LBFGS",)

# What the second parameter group sets for itself, beside halving the numbers that are varied.
SECOND_GROUP: dict[str, dict[str, Any]] = {
    "SGD": {},
    "Adam": {"betas": (0.8, 0.95), "eps": 1e-6},
    "AdamW": {"betas": (0.8, 0.95), "eps": 1e-6},
    "RMSprop": {"alpha": 0.9, "eps": 1e-6},
    "Adagrad": {"eps": 1e-7},
    "Lion": {"betas": (0.8, 0.95)},
    "LAMB": {"betas": (0.8, 0.95), "eps": 1e-3},
    "LARS": {"trust_coefficient": 0.1},
    "SNGM": {},
    "Adadelta": {"eps": 1e-5},
    "Adamax": {"betas": (0.8, 0.95), "eps": 1e-6},
    "NAdam": {"betas": (0.8, 0.95), "eps": 1e-6},
    "RAdam": {"betas": (0.8, 0.95), "eps": 1e-6},
    "ASGD": {"alpha": 0.6},
    "Rprop": {"etas": (0.4, 1.3), "step_sizes": (1e-5, 1)},
    "Adafactor": {"beta2_decay": -0.5, "d": 2.0},
    "Muon": {"momentum": 0.8, "ns_steps": 4, "ns_coefficients": (3.4, -4.7, 2.0)},
    "SparseAdam": {"eps": 1e-6},
    "Noam": {"warmup": 2, "d_model": 64},
    "AdamWarmup": {"warmup": 2, "eps": 1e-6},
    "AdamWarmupCosineDecay": {"warmup": 4, "total_steps": 9},
}


@dataclass(frozen=True)
class Case:
    """An optimizer with keyword arguments, on parameters of one dtype."""

    optimizer: str
    options: tuple[tuple[str, Any], ...]
    dtype: torch.dtype

    def get(self, option: str) -> Any:
        return dict(self.options).get(option)

    def __str__(self) -> str:
        given = [name if value is True else f"{name}={value}" for name, value in self.options]
        return "-".join([self.optimizer, str(self.dtype).removeprefix("torch."), *given])


@dataclass(frozen=True)
class Problem:
    """Parameters to start from, and each step's gradients. None: no gradient this time."""

    parameters: tuple[Tensor, ...]
    gradients: tuple[tuple[Tensor | None, ...], ...]

    def start(self) -> list[Tensor]:
        return [p.clone().requires_grad_() for p in self.parameters]


def choices(optimizer: str, **more: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    """Every valid combination of an optimizer's variations. Falsy values that are the defaults are
    left out."""
    names = {**VARIATIONS[optimizer], **more}
    for values in itertools.product(*names.values()):
        options = dict(zip(names, values, strict=True))
        if options.get("dampening") and not options["momentum"]:
            continue
        undamped = not options.get("dampening") and options.get("momentum")
        if optimizer == "SGD" and options["nesterov"] and not undamped:
            continue
        keep = NOT_DEFAULT.get(optimizer, ())
        yield {name: value for name, value in options.items() if value or name in keep}


def dtypes_of(optimizer: str) -> tuple[torch.dtype, ...]:
    return tuple(d for d in DTYPES if d is not NOT_TAKEN.get(optimizer))


def cases(optimizer: str, dtypes: Sequence[torch.dtype] = DTYPES) -> list[Case]:
    maximize = {} if optimizer in BY_CLOSURE else {"maximize": (False, True)}
    return [
        Case(optimizer, tuple(options.items()), dtype)
        for dtype in dtypes
        if dtype in dtypes_of(optimizer)
        for options in choices(optimizer, **maximize)
    ]


def listed_cases(optimizer: str, dtypes: Sequence[torch.dtype] = DTYPES) -> list[Case]:
    """What torch's own tests construct it with."""
    (info,) = [i for i in optim_db if i.name == optimizer]
    return [
        Case(optimizer, tuple(each.kwargs.items()), dtype)
        for dtype in dtypes
        if dtype in dtypes_of(optimizer)
        for each in info.optim_inputs_func("cpu", dtype)
    ]


def random(generator: torch.Generator, dtype: torch.dtype, *shape: int) -> Tensor:
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(shape, dtype=wide, generator=generator).to(dtype)


@cache
def full_problem(dtype: torch.dtype, large: int = 100_000, steps: int = STEPS) -> Problem:
    """Every layout: no dimension, no element, odd sizes, transposed, channels last, a gradient laid
    out otherwise than its parameter, and a large tensor. Some gradients are missing at times."""
    generator = torch.Generator().manual_seed(0)

    def tensors() -> tuple[Tensor, ...]:
        def make(*shape: int) -> Tensor:
            return random(generator, dtype, *shape)

        return (
            make(),
            make(0),
            make(1),
            make(17),
            make(3, 5),
            make(257),
            make(7, 6).t(),
            make(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
            make(5, 0, 2),
            make(large),
        )

    def gradients(step: int) -> tuple[Tensor | None, ...]:
        found: list[Tensor | None] = list(tensors())
        found[4] = random(generator, dtype, 5, 3).t()
        if step in (0, 1, 9):
            found[3] = None
        if step % 3 == 2:
            found[5] = None
        if step > 2 and step % 6:
            found[9] = None  # the large one: for time
        return tuple(found)

    return Problem(tensors(), tuple(gradients(step) for step in range(steps)))


@cache
def small_problem(dtype: torch.dtype = torch.float32, steps: int = STEPS) -> Problem:
    """Four small tensors; the second has no gradient at first, and at times later."""
    generator = torch.Generator().manual_seed(1)

    def tensors() -> tuple[Tensor, ...]:
        return tuple(random(generator, dtype, *shape) for shape in ((), (9,), (2, 3), (33,)))

    def gradients(step: int) -> tuple[Tensor | None, ...]:
        found = tensors()
        return found if step % 4 else (found[0], None, *found[2:])

    return Problem(tensors(), tuple(gradients(step) for step in range(steps)))


@cache
def special_problem(dtype: torch.dtype, steps: int = 4) -> Problem:
    """Gradients of both zeros, infinities, nan, subnormals and the largest numbers, each beside
    ordinary ones: an element's past may be special too."""
    info = torch.finfo(dtype)
    numbers = [0.0, -0.0, 1.0, -1.5, torch.inf, -torch.inf, torch.nan]
    numbers += [info.tiny, -info.tiny, info.tiny * 0.5, info.smallest_normal * info.eps]
    numbers += [info.max, info.min, info.max**0.5, info.eps]
    if dtype.is_complex:
        pairs = itertools.product(numbers, repeat=2)
        values = torch.tensor([complex(*pair) for pair in pairs], dtype=torch.complex128)
    else:
        values = torch.tensor(numbers, dtype=torch.float64)
    values = values.to(dtype)
    generator = torch.Generator().manual_seed(2)
    start = torch.stack([random(generator, dtype, len(values)), values])
    shuffled = [
        torch.stack([values[torch.randperm(len(values), generator=generator)] for _ in range(2)])
        for _ in range(steps)
    ]
    return Problem((start,), tuple((gradient,) for gradient in shuffled))


def suited(problem: Problem, optimizer: str) -> Problem:
    """The problem as the algorithm, and torch's code of it, can take it."""
    match optimizer:
        case "Muon":  # torch divides by the number of columns
            return _each(_without(problem, lambda p: p.numel() == 0), _matrix)
        case "SparseAdam":
            draw = torch.Generator().manual_seed(3)
            with_slices = _without(problem, lambda p: p.dim() == 0)
            return _each(with_slices, lambda _, t: t, lambda i, t: _sparse(i, t, draw))
        case "Adafactor":  # torch divides by the number of elements
            return _without(problem, lambda p: p.numel() == 0)
        case "LBFGS":  # a step has many iterations, and torch takes views of gradients
            small = _without(problem, lambda p: p.numel() > 1000 or not p.is_contiguous())
            return Problem(small.parameters, small.gradients[:4])
        case _:
            return problem


Change = Callable[[int, Tensor], Tensor]


def _each(problem: Problem, parameter: Change, gradient: Change | None = None) -> Problem:
    """Every tensor changed, given its place."""
    gradient = gradient or parameter
    return Problem(
        tuple(parameter(i, p) for i, p in enumerate(problem.parameters)),
        tuple(
            tuple(None if g is None else gradient(i, g) for i, g in enumerate(row))
            for row in problem.gradients
        ),
    )


def _without(problem: Problem, unfit: Callable[[Tensor], bool]) -> Problem:
    kept = [i for i, p in enumerate(problem.parameters) if not unfit(p)]
    rows = tuple(tuple(row[i] for i in kept) for row in problem.gradients)
    return Problem(tuple(problem.parameters[i] for i in kept), rows)


def _matrix(place: int, tensor: Tensor) -> Tensor:
    """A matrix of the same elements, as square as it can be, wide and tall in turn."""
    if tensor.dim() == 2:
        return tensor
    rows = math.isqrt(tensor.numel())
    while tensor.numel() % rows:
        rows -= 1
    matrix = tensor.reshape(rows, -1)
    return matrix.t().contiguous() if place % 2 else matrix


def _sparse(place: int, tensor: Tensor, draw: torch.Generator) -> Tensor:
    """Some slices of a gradient, some of them twice, and sometimes none; or its single elements."""
    if place % 3 == 2:
        return torch.where(tensor.real > 0, tensor, 0).to_sparse()
    size = len(tensor)
    count = int(torch.randint(size + 1, (), generator=draw))
    chosen = torch.randint(max(size, 1), (count,), generator=draw)
    found = (chosen[None], tensor[chosen])
    return torch.sparse_coo_tensor(*found, tensor.shape, check_invariants=True)


def groups_of(case: Case, params: list[Tensor]) -> list[dict[str, Any]]:
    """Two groups, of every second parameter, that differ in their numbers."""
    if case.optimizer in BY_CLOSURE:  # takes one group
        return [{"params": params}]
    first: dict[str, Any] = {"params": params[::2]}
    # A default may be too small to move a narrow parameter. Adadelta's is a factor.
    rate = 1.0 if case.optimizer == "Adadelta" else 0.02
    if "lr" not in dict(case.options):
        first["lr"] = rate
    if len(params) == 1:
        return [first]
    halved = {n: v / 2 for n, v in case.options if isinstance(v, float)}
    # torch takes this one from the constructor even where a group has its own.
    halved.pop("initial_accumulator_value", None)
    halved.pop("d", None)  # at least 1
    own = {"lr": 2.5 * rate, **SECOND_GROUP[case.optimizer], **halved}
    return [first, {"params": params[1::2], **own}]


def construct(
    package: Any, name: str, params: Any, foreach: bool | None = None, **options: Any
) -> torch.optim.Optimizer:
    """An optimizer. Flags that torch's class has not are left out, so that of torch's Muon has to
    be asked with `negated` gradients to maximize."""
    kind = getattr(package, name)
    known = inspect.signature(kind).parameters
    flags = {"foreach": foreach, "maximize": options.pop("maximize", None)}
    given = {n: v for n, v in flags.items() if v is not None and n in known}
    return kind(params, **options, **given)


def negated(problem: Problem) -> Problem:
    return _each(problem, lambda _, tensor: tensor, lambda _, tensor: -tensor)


def as_torch_sees(problem: Problem, case: Case) -> Problem:
    """Torch's Muon cannot maximize."""
    known = inspect.signature(getattr(torch.optim, case.optimizer)).parameters
    return negated(problem) if case.get("maximize") and "maximize" not in known else problem


def advance(
    optimizer: torch.optim.Optimizer,
    params: Sequence[Tensor],
    gradients: Sequence[Sequence[Tensor | None]],
) -> None:
    """One step for each row of gradients. An optimizer that asks for a closure minimises a convex
    loss, to whose gradient each row adds another constant."""
    for row in gradients:
        if type(optimizer).__name__ in BY_CLOSURE:
            optimizer.step(_bowl(params, row))
            continue
        for param, grad in zip(params, row, strict=True):
            param.grad = grad
        optimizer.step()


def _bowl(params: Sequence[Tensor], row: Sequence[Tensor | None]) -> Callable[[], Tensor]:
    """(|x| + 1)**2 / 2 + x * gradient, summed over all elements."""

    @torch.no_grad()
    def closure() -> Tensor:
        loss = torch.zeros(())
        for param, grad in zip(params, row, strict=True):
            if grad is not None:
                param.grad = param + param.sgn() + grad
                linear = (param * grad.conj()).real if param.is_complex() else param * grad
                loss = loss + ((param.abs() + 1) ** 2 / 2 + linear).sum()
        return loss

    return closure


def contents(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Every parameter and every slot, by name."""
    found: dict[str, Any] = {}
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for index, param in enumerate(params):
        found[f"parameter {index}"] = param.detach()
        for name, value in optimizer.state.get(param, {}).items():
            found.update(_tensors(f"parameter {index}: {name}", value))
    return found


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """A slot as tensors: most are one, LBFGS has numbers and lists, too."""
    match value:
        case None:
            return
        case Tensor():
            yield name, value
        case list():
            for index, each in enumerate(value):
                yield from _tensors(f"{name}[{index}]", each)
        case int():
            yield name, torch.tensor(value)
        case _:
            yield name, torch.tensor(value, dtype=torch.float64)


# How a case is run. Each gives what torch comes to, and what we come to on a path.


def run(package: Any, case: Case, problem: Problem, foreach: bool) -> dict[str, Any]:
    """Train, and give what it comes to."""
    return _trained(package, case, groups_of, suited(problem, case.optimizer), foreach)


def run_plainly(package: Any, case: Case, problem: Problem, foreach: bool) -> dict[str, Any]:
    """The same, with one group."""

    def one_group(_: Case, params: list[Tensor]) -> Any:
        return params

    return _trained(package, case, one_group, suited(problem, case.optimizer), foreach)


def _trained(
    package: Any, case: Case, groups: Callable[..., Any], problem: Problem, foreach: bool
) -> dict[str, Any]:
    params = problem.start()
    optimizer = construct(
        package, case.optimizer, groups(case, params), foreach, **dict(case.options)
    )
    if package is torch.optim:
        problem = as_torch_sees(problem, case)
    advance(optimizer, params, problem.gradients)
    return contents(optimizer)


def run_with_a_checkpoint(
    packages: tuple[Any, Any], case: Case, problem: Problem, foreach: bool
) -> dict[str, Any]:
    """Train in one package, save, load in the other one, and train on."""
    problem = suited(problem, case.optimizer)
    stop = len(problem.gradients) // 3
    parts = (slice(stop), slice(stop, None))
    values, saved = list(problem.parameters), None
    for package, part in zip(packages, parts, strict=True):
        params = [p.clone().requires_grad_() for p in values]
        groups, on_lists = groups_of(case, params), foreach and package is generated
        optimizer = construct(package, case.optimizer, groups, on_lists, **dict(case.options))
        if saved is not None:
            optimizer.load_state_dict(through_a_file(saved))
            for group in optimizer.param_groups:  # torch's path comes with the checkpoint
                group["foreach"] = on_lists
        seen = as_torch_sees(problem, case) if package is torch.optim else problem
        advance(optimizer, params, seen.gradients[part])
        values, saved = [p.detach() for p in params], optimizer.state_dict()
    return contents(optimizer)


def through_a_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@dataclass(frozen=True)
class Plan:
    """A kind of run: which cases it has, what torch comes to, and what we come to on a path."""

    claim: str
    cases: Callable[..., list[Case]]
    expected: Callable[[Case], dict[str, Any]]
    actual: Callable[[Case, bool], dict[str, Any]]


def _both(
    train: Callable[..., dict[str, Any]], problem: Callable[[torch.dtype], Problem]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    return (
        lambda case: train(torch.optim, case, problem(case.dtype), False),
        lambda case, foreach: train(generated, case, problem(case.dtype), foreach),
    )


def _torchs(case: Case) -> dict[str, Any]:
    return run(torch.optim, case, small_problem(case.dtype), False)


def _reloaded(case: Case) -> dict[str, Any]:
    packages = (torch.optim, torch.optim)
    return run_with_a_checkpoint(packages, case, small_problem(case.dtype), False)


def _through(*packages: Any) -> Callable[..., dict[str, Any]]:
    return lambda case, foreach: run_with_a_checkpoint(
        packages, case, small_problem(case.dtype), foreach
    )


PLANS = {
    "options": Plan(
        "all combinations of options, two groups, tensors of every layout, missing gradients",
        cases, *_both(run, lambda dtype: full_problem(dtype)),
    ),
    "special": Plan(
        "the same with zeros, subnormals, infinities and NaN in gradients",
        cases, *_both(run, lambda dtype: special_problem(dtype)),
    ),
    "optim_db": Plan(
        "what torch's own tests construct optimizers with",
        listed_cases, *_both(run_plainly, lambda dtype: full_problem(dtype)),
    ),
    "from torch": Plan(
        "torch's checkpoint, continued here, against torch without a stop",
        cases, _torchs, _through(torch.optim, generated),
    ),
    "to torch": Plan(
        "our checkpoint, continued in torch, against torch's own checkpoint continued there",
        cases, _reloaded, _through(generated, torch.optim),
    ),
    "resumed": Plan(
        "our checkpoint, continued here, against torch without a stop",
        cases, _torchs, _through(generated, generated),
    ),
}  # fmt: skip


def reason(label: str, case: Case) -> str | None:
    """Why the bits of a plan's case are not torch's; None where they are."""
    match case.optimizer:
        case "Muon" if case.dtype is torch.bfloat16 and case.get("nesterov") is False:
            return "torch's Muon overwrites its momentum buffer: bfloat16, nesterov=False"
        case "Muon" if case.dtype is torch.float64 and isinstance(case.get("lr"), Tensor):
            return "torch computes with a float32 tensor lr in float32, we read it as float64"
        case "SparseAdam" if isinstance(case.get("lr"), Tensor):
            return "torch computes with a float32 tensor lr in float32, we read it as float64"
        case "LBFGS" if label == "special":
            return "torch's LBFGS goes on with infinities and NaN, ours stays where it is"
        case _:
            return None


def paths_of(optimizer: str) -> dict[str, bool]:
    """The paths that an optimizer has: the foreach one only where it has that flag."""
    known = inspect.signature(getattr(generated, optimizer)).parameters
    return {path: flag for path, flag in PATHS.items() if not flag or "foreach" in known}


def deviations(label: str, case: Case) -> Iterator[tuple[str, list[str]]]:
    """For each path, the tensors that differ from torch's."""
    plan = PLANS[label]
    expected = plan.expected(case)
    for path, foreach in paths_of(case.optimizer).items():
        yield path, differences(expected, plan.actual(case, foreach))


INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor: Tensor) -> Tensor:
    """A tensor's bit patterns. Every nan is the same one: no operation promises a nan's sign."""
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    one_nan = torch.where(real.isnan(), torch.full_like(real, torch.nan), real)
    return one_nan.view(INTEGERS[real.element_size()])


def differences(expected: dict[str, Any], actual: dict[str, Any]) -> list[str]:
    """The names of tensors that differ, in a bit, in dtype or in shape, or that one side lacks."""
    names = dict.fromkeys((*expected, *actual))
    return [n for n in names if n not in expected or n not in actual or
            not same_bits(expected[n], actual[n])]  # fmt: skip


def same_bits(expected: Tensor, actual: Tensor) -> bool:
    if (expected.dtype, expected.shape) != (actual.dtype, actual.shape):
        return False
    if not (expected.is_floating_point() or expected.is_complex()):
        return torch.equal(expected, actual)
    return torch.equal(bits(expected), bits(actual))


def counted(names: Sequence[str], run_all: bool) -> tuple[list[tuple[str, ...]], list[str]]:
    """The table's rows, by optimizer and path: how many cases are bit-equal, of how many, in each
    dtype; and what contradicts `reason`. Without `run_all`, what it should come to."""
    rows: list[tuple[str, ...]] = []
    wrong: list[str] = []
    for name in names:
        equal = {path: dict.fromkeys(DTYPES, 0) for path in paths_of(name)}
        total = dict.fromkeys(DTYPES, 0)
        for label, case in all_cases([name]):
            why = reason(label, case)
            total[case.dtype] += 1
            found = deviations(label, case) if run_all else ((p, [why] * bool(why)) for p in equal)
            for path, different in found:
                equal[path][case.dtype] += not different
                if bool(different) != bool(why):
                    what = f"differs in {', '.join(different)}" if different else f"not so: {why}"
                    wrong.append(f"{label}, {case}, {path}: {what}")
        for path, by_dtype in equal.items():
            cells = (f"{by_dtype[d]} of {total[d]}" if total[d] else "-" for d in DTYPES)
            rows.append((name, path, *cells))
    return rows, wrong


def all_cases(names: Sequence[str] = IN_TORCH) -> list[tuple[str, Case]]:
    return [(label, c) for name in names for label, p in PLANS.items() for c in p.cases(name)]


def reasons(names: Sequence[str] = IN_TORCH) -> dict[str, int]:
    """How many results each reason is for, a result being a case on a path."""
    found: dict[str, int] = {}
    for label, case in all_cases(names):
        why = reason(label, case)
        if why:
            found[why] = found.get(why, 0) + len(paths_of(case.optimizer))
    return found


def page_regions() -> dict[str, str]:
    """The tables of docs/compatibility.md: what a run comes to, which the tests hold."""
    columns = ("optimizer", "path", *(str(dtype).removeprefix("torch.") for dtype in DTYPES))
    rows, _ = counted(IN_TORCH, run_all=False)
    total = sum(len(paths_of(case.optimizer)) for _, case in all_cases())
    other = sum(reasons().values())
    return {
        "cases": table(columns, rows),
        "plans": table(("case", "is"), ((label, plan.claim) for label, plan in PLANS.items())),
        "reasons": table(("results", "why"), ((str(n), why) for why, n in reasons().items())),
        "total": f"{total - other} of {total} results are torch's bits.\n",
    }


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(r)} |\n" for r in (head, ["---"] * len(head), *rows))


def main(names: Sequence[str]) -> int:
    """Print how many cases are bit-equal; 1 if `reason` does not say which."""
    print("Of all cases, those whose parameters and slots are torch's on the CPU bit for bit:\n")
    columns = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
    print(f"{'':20}" + "".join(f"{c:>13}" for c in columns))
    names = names or IN_TORCH
    wrong: list[str] = []
    for name in names:
        rows, contradictions = counted([name], run_all=True)
        wrong += contradictions
        for optimizer, path, *cells in rows:
            print(f"{optimizer:12}{path:8}" + "".join(f"{c:>13}" for c in cells), flush=True)
    print("\nEach case is:")
    for label, plan in PLANS.items():
        print(f"  {label}: {plan.claim}")
    print("Not torch's bits:")
    for why, count in reasons(names).items():
        print(f"  {count} results: {why}")
    total = sum(len(paths_of(case.optimizer)) for _, case in all_cases(names))
    print(f"{total} results, {len(wrong)} of them unexplained.")
    print(*wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
