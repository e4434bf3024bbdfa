"""Updates of averaged models, ours against torch's, as JSON.

    python -m benchmarks.averages [--sets resnet50 tiny] [--device cuda] [-o averages.json]

What is timed is `update_parameters` of a model that has the tensors of a set as parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import swa_utils as theirs

from benchmarks import machine, suite
from benchmarks.contenders import FOREACH, LOOP, OURS
from benchmarks.gpu import Cuda
from benchmarks.sets import SETS, TensorSet, cut, parameters
from benchmarks.timing import Step, by_wall, interleaved
from generated import swa_utils as ours

AVERAGES = ("SWA", "EMA")
Make = Callable[[nn.Module], Any]


def contenders(name: str) -> dict[str, Make]:
    """What makes an averaged model: this package's kernel and paths, and torch's."""
    make = partial(ours.AveragedModel, average=getattr(ours, name)())
    one = getattr(theirs, f"get_{name.lower()}_avg_fn")()
    several = getattr(theirs, f"get_{name.lower()}_multi_avg_fn")()
    return {
        OURS: partial(make, fused=True),
        f"ours, {LOOP}": partial(make, foreach=False),
        f"ours, {FOREACH}": partial(make, foreach=True),
        LOOP: partial(theirs.AveragedModel, avg_fn=one),
        FOREACH: partial(theirs.AveragedModel, multi_avg_fn=several),
    }


def model(chosen: TensorSet, device: str) -> nn.Module:
    result = nn.Module()
    result.weights = nn.ParameterList(parameters(chosen, torch.float32, device))
    return result


def updating(make: Make, source: nn.Module) -> Step:
    averaged = make(source)
    return lambda: averaged.update_parameters(source)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = suite.parser(__doc__.partition("\n")[0], ["resnet50", "tiny"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = suite.parse(parser, arguments)
    measure = by_wall if options.device == "cpu" else Cuda.measure
    effort = suite.effort(options)
    results = suite.Results("averages", options)
    for name in options.sets:
        source = model(cut(SETS[name]) if options.smoke else SETS[name], options.device)
        for average in AVERAGES:
            steps = {word: partial(updating, make, source)
                     for word, make in contenders(average).items()}  # fmt: skip
            watch = machine.Watch()
            times = interleaved(steps, measure, effort)
            busy = watch.seen()["busy"]
            results.add({"average": average, "set": name, "busy": busy, "contenders": times})
    results.finish()


if __name__ == "__main__":
    main()
