"""The sets of tensors that benchmarks update, and their parameters and gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorSet:
    """`small` sets are bound by the host: a step's time per parameter says more than bandwidth.
    Where there is next to nothing to compute, `dtypes` has one: others cost the same."""

    name: str
    title: str
    shapes: tuple[Shape, ...]
    small: bool = False
    dtypes: tuple[str, ...] = ("float32", "bfloat16")

    @property
    def elements(self) -> int:
        return sum(map(prod, self.shapes))


def _transformer(layers: int, width: int, words: int) -> Iterator[Shape]:
    """A GPT without a table of positions: matrices and vectors of each layer, as GPT-2 has them."""
    yield (words, width)
    for _ in range(layers):
        for matrix in ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width)):
            yield matrix
            yield matrix[:1]
        yield from [(width,)] * 4  # two normalisations
    yield from [(width,)] * 2


def _resnet50() -> Iterator[Shape]:
    """He et al., Deep Residual Learning for Image Recognition, 2015: convolutions without a bias,
    each with a normalisation; torchvision's model has the same tensors."""

    def convolution(out: int, into: int, size: int) -> tuple[Shape, ...]:
        return (out, into, size, size), (out,), (out,)

    yield from convolution(64, 3, 7)
    into = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield from convolution(width, into, 1)
            yield from convolution(width, width, 3)
            yield from convolution(4 * width, width, 1)
            if block == 0:
                yield from convolution(4 * width, into, 1)
            into = 4 * width
    yield (1000, 2048)
    yield (1000,)


def _spread(count: int) -> Iterator[Shape]:
    """Sizes from 100 to 1,000, none of them the rule: 397 and 901 share no factor."""
    for index in range(count):
        yield (100 + index * 397 % 901,)


SETS = {
    chosen.name: chosen
    for chosen in (
        TensorSet("large", "one tensor of 50 M elements", ((50_000_000,),)),
        TensorSet("llm", "a GPT of 60.5 M: 171 tensors", tuple(_transformer(14, 512, 32_000))),
        TensorSet("resnet50", "ResNet-50, 25.6 M: 161 tensors", tuple(_resnet50())),
        TensorSet("tiny", "1,000 tensors of 100 to 1,000", tuple(_spread(1000)), small=True),
        TensorSet("host", "1,000 tensors of 16", ((16,),) * 1000, small=True, dtypes=("float32",)),
    )
}


def cut(chosen: TensorSet, count: int = 3, elements: int = 40) -> TensorSet:
    """A few small tensors in the place of the set's own: to see whether everything runs."""
    shapes = tuple((min(prod(shape), elements),) for shape in chosen.shapes[:count])
    return replace(chosen, shapes=shapes)


def parameters(chosen: TensorSet, dtype: torch.dtype, device: str) -> list[Tensor]:
    """New parameters with gradients, the same in each call."""
    random = torch.Generator(device).manual_seed(0)
    found = []
    for shape in chosen.shapes:
        param = torch.randn(shape, dtype=dtype, device=device, generator=random)
        param.requires_grad_()
        param.grad = torch.randn(shape, dtype=dtype, device=device, generator=random)
        found.append(param)
    return found


def new_gradients(params: list[Tensor], values: list[Tensor]) -> None:
    """Give parameters gradients as the end of a backward pass does: other tensors at other
    addresses than in the step before. What the values are does not change."""
    for param in params:
        param.grad = None
    torch.autograd.backward(params, values)
