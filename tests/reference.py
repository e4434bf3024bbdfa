"""Where torch has the algorithm, its for-loop's bits: the cases, and a command that counts them.

    python -m tests.reference [OPTIMIZER ...]

Also the problems (parameters, and a gradient for each step) that the other tests train on.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

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
}
SHIPPED = tuple(VARIATIONS)
IN_TORCH = tuple(name for name in SHIPPED if hasattr(torch.optim, name))

# What the second parameter group sets for itself, beside halving the numbers that are varied.
SECOND_GROUP: dict[str, dict[str, Any]] = {
    "SGD": {},
    "Adam": {"betas": (0.8, 0.95), "eps": 1e-6},
    "AdamW": {"betas": (0.8, 0.95), "eps": 1e-6},
    "RMSprop": {"alpha": 0.9, "eps": 1e-6},
    "Adagrad": {"eps": 1e-7},
    "Lion": {"betas": (0.8, 0.95)},
}


@dataclass(frozen=True)
class Case:
    """An optimizer with keyword arguments, on parameters of one dtype."""

    optimizer: str
    options: tuple[tuple[str, Any], ...]
    dtype: torch.dtype

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
    """Every valid combination of an optimizer's variations. Falsy values are the defaults: left
    out, but for AdamW's decay, which is on by default."""
    names = {**VARIATIONS[optimizer], **more}
    for values in itertools.product(*names.values()):
        options = dict(zip(names, values, strict=True))
        if options.get("dampening") and not options["momentum"]:
            continue
        if options.get("nesterov") and (options["dampening"] or not options["momentum"]):
            continue
        keep = ("weight_decay",) if optimizer == "AdamW" else ()
        yield {name: value for name, value in options.items() if value or name in keep}


def cases(optimizer: str, dtypes: Sequence[torch.dtype] = DTYPES) -> list[Case]:
    return [
        Case(optimizer, tuple(options.items()), dtype)
        for dtype in dtypes
        for options in choices(optimizer, maximize=(False, True))
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


def groups_of(case: Case, params: list[Tensor]) -> list[dict[str, Any]]:
    """Two groups, of every second parameter, that differ in their numbers."""
    first: dict[str, Any] = {"params": params[::2]}
    if "lr" not in dict(case.options):
        first["lr"] = 0.02  # a default may be too small to move a narrow parameter
    if len(params) == 1:
        return [first]
    halved = {n: v / 2 for n, v in case.options if isinstance(v, float)}
    # torch takes this one from the constructor even where a group has its own.
    halved.pop("initial_accumulator_value", None)
    own = {"lr": 0.05, **SECOND_GROUP[case.optimizer], **halved}
    return [first, {"params": params[1::2], **own}]


def advance(
    optimizer: torch.optim.Optimizer,
    params: Sequence[Tensor],
    gradients: Sequence[Sequence[Tensor | None]],
) -> None:
    """One step for each row of gradients."""
    for row in gradients:
        for param, grad in zip(params, row, strict=True):
            param.grad = grad
        optimizer.step()


def contents(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Every parameter and every slot, by name."""
    found: dict[str, Any] = {}
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for index, param in enumerate(params):
        found[f"parameter {index}"] = param.detach()
        for name, value in optimizer.state.get(param, {}).items():
            if value is not None:
                found[f"parameter {index}: {name}"] = value
    return found


def run(package: Any, case: Case, problem: Problem, foreach: bool) -> dict[str, Any]:
    """Train, and give what it comes to."""
    params = problem.start()
    kind = getattr(package, case.optimizer)
    optimizer = kind(groups_of(case, params), **dict(case.options), foreach=foreach)
    advance(optimizer, params, problem.gradients)
    return contents(optimizer)


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
    return torch.equal(bits(expected), bits(actual))


def main(names: Sequence[str]) -> int:
    """Print how many cases are bit-equal; 1 if some are not."""
    columns = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
    print("Cases in which parameters and slots equal torch.optim's for-loop bit for bit")
    print(f"after {STEPS} steps on the CPU, of all cases:\n")
    print(f"{'':18}" + "".join(f"{c:>12}" for c in columns))
    failures: list[str] = []
    total = 0
    for name in names or IN_TORCH:
        equal = {(path, dtype): 0 for path in PATHS for dtype in DTYPES}
        count = dict.fromkeys(DTYPES, 0)
        for case in cases(name):
            problem = full_problem(case.dtype)
            expected = run(torch.optim, case, problem, foreach=False)
            count[case.dtype] += 1
            for path, foreach in PATHS.items():
                total += 1
                wrong = differences(expected, run(generated, case, problem, foreach))
                equal[path, case.dtype] += not wrong
                if wrong:
                    failures.append(f"{case} {path}: {', '.join(wrong)}")
        for path in PATHS:
            shown = (f"{equal[path, dtype]} of {count[dtype]}" for dtype in DTYPES)
            print(f"{name:10}{path:8}" + "".join(f"{s:>12}" for s in shown))
    print(f"\n{total - len(failures)} of {total} cases are bit-equal.")
    print(*failures, sep="\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
