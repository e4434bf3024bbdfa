"""Time of one update of an averaged model, ours against torch's, as JSON.

    python benchmarks/averages.py [--sizes 1000 100000] [--tensors 150] [--device cpu]

The two are timed in turn, so that whatever else the machine does reaches both; the numbers are
medians in microseconds.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import swa_utils as theirs

from generated import swa_utils as ours


def model(tensors: int, size: int, device: str) -> nn.Module:
    """As many parameters as a ResNet-50 has, each of the same size."""
    result = nn.Module()
    result.weights = nn.ParameterList(torch.randn(size, device=device) for _ in range(tensors))
    return result


def pairs(device: str) -> dict[str, tuple[Callable[[nn.Module], Any], Callable[[nn.Module], Any]]]:
    """What is timed: by name, how torch and how this package make the averaged model."""
    found: dict[str, tuple[Callable[[nn.Module], Any], Callable[[nn.Module], Any]]] = {
        "mean": (theirs.AveragedModel, ours.AveragedModel),
        "mean, lists": (
            lambda m: theirs.AveragedModel(m, multi_avg_fn=theirs.get_swa_multi_avg_fn()),
            lambda m: ours.AveragedModel(m, average=ours.SWA(), foreach=True),
        ),
        "EMA": (
            lambda m: theirs.AveragedModel(m, avg_fn=theirs.get_ema_avg_fn()),
            lambda m: ours.AveragedModel(m, average=ours.EMA(), foreach=False),
        ),
        "EMA, lists": (
            lambda m: theirs.AveragedModel(m, multi_avg_fn=theirs.get_ema_multi_avg_fn()),
            lambda m: ours.AveragedModel(m, average=ours.EMA(), foreach=True),
        ),
    }
    if device != "cpu":
        found["EMA, fused"] = (
            found["EMA, lists"][0],
            lambda m: ours.AveragedModel(m, average=ours.EMA(), fused=True),
        )
    return found


def measured(options: argparse.Namespace, size: int, makers: Any) -> dict[str, float]:
    """Medians of interleaved updates."""
    source = model(options.tensors, size, options.device)
    models = [make(source) for make in makers]
    times: list[list[float]] = [[] for _ in models]
    for turn in range(options.rounds + 5):
        for averaged, spent in zip(models, times, strict=True):
            start = now(options.device)
            averaged.update_parameters(source)
            if turn >= 5:  # the first ones copy, and compile
                spent.append(now(options.device) - start)
    torch_us, ours_us = (1e6 * statistics.median(spent) for spent in times)
    return {
        "torch_us": round(torch_us, 1),
        "ours_us": round(ours_us, 1),
        "ratio": round(torch_us / ours_us, 2),
    }


def now(device: str) -> float:
    if device != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tensors", type=int, default=150, help="parameters of the model")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--rounds", type=int, default=100, help="updates that are timed")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    results = [
        {"average": name, "size": size, **measured(options, size, makers)}
        for size in options.sizes
        for name, makers in pairs(options.device).items()
    ]
    context = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        **vars(options),
    }
    print(json.dumps({**context, "results": results}, indent=2))


if __name__ == "__main__":
    main()
