"""Every optimizer's kernel on a GPU: checked, then timed against torch's paths, as JSON.

    python -m benchmarks.gpu -o benchmarks/results/gpu.json     all: minutes
    python -m benchmarks.gpu --quick                            two optimizers
    python -m benchmarks.gpu --device cpu --smoke               without a GPU: does everything run?

What is timed is the whole `step()`, alone on the device: until the host returns from it (`host`),
until the device is done (`wall`), and between two events around it on the device (`device`). A cell
that fails is recorded with its error, and the others go on.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import checks, machine, memory, null, suite
from benchmarks.contenders import OURS, TORCH_FUSED, Make, contenders, launches
from benchmarks.timing import Step, by_wall, failure, rounded

# Steps that are captured once and replayed: the host does next to nothing.
GRAPHS = {OURS: "ours, graph", TORCH_FUSED: "torch fused, graph"}
# Of a multiprocessor, on every GPU since 2014.
REGISTERS = 65536


class Cuda:
    """The device that measures."""

    name = "cuda"
    before_capture = 3

    @staticmethod
    def measure(step: Step) -> Mapping[str, float]:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        start = time.perf_counter()
        begin.record()
        step()
        end.record()
        host = time.perf_counter() - start
        torch.cuda.synchronize()
        wall = time.perf_counter() - start
        return {"wall": wall, "host": host, "device": begin.elapsed_time(end) / 1e3}

    @staticmethod
    def captured(step: Step) -> Step:
        """The step as a graph. What a first step makes must not be captured."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(Cuda.before_capture):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay


class Interpreter:
    """Triton's interpreter in the place of a device: the same calls, and no times that mean
    anything."""

    name = "cpu"
    before_capture = 0

    @staticmethod
    def measure(step: Step) -> Mapping[str, float]:
        wall = by_wall(step)["wall"]
        return {"wall": wall, "host": wall, "device": wall}

    @staticmethod
    def captured(step: Step) -> Step:
        return step


Device = Cuda | Interpreter


class Replayed:
    """An optimizer whose step is a graph's replay."""

    def __init__(self, optimizer: Any, device: Device) -> None:
        self.optimizer = optimizer
        self.step = device.captured(optimizer.step)


def graphs(name: str, device: Device) -> dict[str, Make]:
    """The contenders that a graph can hold, as graphs."""
    capturable = contenders(name, flags={"capturable": True})

    def replayed(make: Make) -> Make:
        return lambda params: Replayed(make(params), device)

    return {word: replayed(capturable[n]) for n, word in GRAPHS.items() if n in capturable}


def facts(optimizer: Any, device: Device) -> dict[str, Any]:
    """What our step does on the device, besides taking time."""
    return {
        "launches": launches(optimizer),
        "extra bytes": memory.growth(optimizer.step, device.name),
        "kernels": resources(optimizer) if device.name == "cuda" else [],
    }


def resources(optimizer: Any) -> list[dict[str, Any]]:
    """What each specialisation of the optimizer's kernels takes so far, as the driver loaded it."""
    package = type(optimizer).__module__.partition(".")[0]
    module = importlib.import_module(f"{package}._triton.{optimizer.kernels}")
    device = torch.cuda.current_device()
    limits = torch.cuda.get_device_properties(device)
    caches = [f.device_caches for f in vars(module).values() if hasattr(f, "device_caches")]
    return [
        needs(binary, limits)
        for cache in caches
        if device in cache
        for binary in cache[device][0].values()
    ]


def needs(binary: Any, limits: Any) -> dict[str, Any]:
    """Registers, spills, shared memory and the occupancy that the registers leave."""
    warps = binary.metadata.num_warps
    # A warp gets registers in units of 256.
    taken = warps * -(-binary.n_regs * limits.warp_size // 256) * 256
    blocks = getattr(limits, "regs_per_multiprocessor", REGISTERS) // max(1, taken)
    most = limits.max_threads_per_multi_processor
    return {
        "kernel": binary.metadata.name,
        "registers": binary.n_regs,
        "spilled": binary.n_spills,
        "shared": binary.metadata.shared,
        "occupancy": rounded(min(1, blocks * warps * limits.warp_size / most), 2),
    }


def graph_replays_a_step(
    name: str, device: Device, sizes: Sequence[tuple[int, ...]]
) -> dict[str, Any]:
    """Whether replays of a graph are steps, to the bit."""

    def trained(make: Make) -> list[Tensor]:
        params, gradients = checks.problem(torch.float32, sizes)
        params = [param.to(device.name) for param in params]
        for param, grad in zip(params, gradients[0], strict=True):
            param.grad = grad.to(device.name)
        step = make(params).step
        for _ in range(checks.STEPS):
            step()
        return [param.cpu() for param in params]

    plain = contenders(name, flags={"capturable": True})[OURS]

    def warmed(params: Sequence[Tensor]) -> Any:
        """With the steps behind it that come before a capture."""
        optimizer = plain(params)
        for _ in range(device.before_capture):
            optimizer.step()
        return optimizer

    replays = trained(graphs(name, device)[GRAPHS[OURS]])
    return checks.difference(replays, trained(warmed), (0.0, 0.0))


def all_checks(options: Namespace, device: Device) -> Iterator[dict[str, Any]]:
    sizes = checks.SIZES[:4] if options.smoke else checks.SIZES
    # Triton's interpreter truncates to bfloat16.
    words = [w for w in options.dtypes if not (device.name == "cpu" and w == "bfloat16")]
    dtypes = {word: suite.DTYPES[word] for word in words}
    yield from checks.checked(options.optimizers, dtypes, device.name, sizes)
    for name in options.optimizers:
        row = {"optimizer": name, "dtype": "float32", "against": "replays of a graph"}
        try:
            yield {**row, **graph_replays_a_step(name, device, sizes)}
        except Exception as error:
            yield {**row, **failure(error), "holds": False}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = suite.optimizer_parser(__doc__.partition("\n")[0])
    parser.set_defaults(seconds=1.0, minutes=9.0)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda",
                        help="cpu: Triton's interpreter")  # fmt: skip
    parser.add_argument("--no-checks", action="store_true", help="do not compare results first")
    options = suite.parse(parser, arguments)
    if options.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
    elif not torch.cuda.is_available():
        raise SystemExit("There is no GPU. To see whether everything runs: --device cpu --smoke")
    device: Device = Cuda() if options.device == "cuda" else Interpreter()
    results = suite.Results("gpu", options)
    results.data["checks"] = []
    try:
        size = 2**10 if options.smoke else suite.COPIED
        results.data["copy"] = machine.copy_bandwidth(device.measure, device.name, size)
    except Exception as error:
        results.data["copy"] = failure(error)
    for row in () if options.no_checks else all_checks(options, device):
        results.data["checks"].append(row)
        said = row.get("error") or f"{row['differing']} of {row['elements']} differ"
        verdict = {True: "holds", False: "FAILS", None: "not checked"}[row["holds"]]
        head = f"{row['optimizer']} {row['dtype']} against {row['against']}"
        print(f"{head}: {verdict}, {said}", file=sys.stderr)
        results.save()
    with suite.null_package(results) as folder, null.imported(folder) as limit:

        def time_of(cell: suite.Cell) -> dict[str, Any]:
            compiled = suite.compiles(options, cell)
            found = contenders(cell.algorithm, null=limit, compiled=compiled)
            if cell.gradients == suite.KEPT:  # a graph has their addresses in it
                found |= graphs(cell.algorithm, device)
            return suite.timed(
                cell, device.name, found, device.measure, suite.effort(options),
                lambda optimizer: facts(optimizer, device),
            )  # fmt: skip

        # In this process: a device does not come along into a fork.
        suite.run(results, options, time_of)
    results.finish()


if __name__ == "__main__":
    main()
