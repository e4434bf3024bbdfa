"""The benchmarks run, count what they should, survive what fails, and their page is their results'.
No test here looks at how long anything took."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import generated
from benchmarks import averages, checks, cpu, goals, gpu, machine, memory, null, page, suite
from benchmarks.contenders import (
    FOREACH,
    LOOP,
    NULL,
    OURS,
    TORCH_FUSED,
    algorithms,
    contenders,
    traffic,
)
from benchmarks.process import alone
from benchmarks.sets import SETS, cut, new_gradients, parameters
from benchmarks.timing import Effort, attempt, by_wall, failure, interleaved, quartiles
from generated._fused import _cpu
from optdsl.plot import save

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ["--smoke", "--rounds", "2", "--seconds", "0.01"]


# Sets


def test_sets_are_what_their_titles_say() -> None:
    counted = {name: (len(chosen.shapes), chosen.elements) for name, chosen in SETS.items()}
    assert counted == {
        "large": (1, 50_000_000),
        "llm": (171, 60_518_400),
        "resnet50": (161, 25_557_032),
        "tiny": (1000, 550_009),
        "host": (1000, 16_000),
    }
    sizes = [shape[0] for shape in SETS["tiny"].shapes]
    assert (min(sizes), max(sizes)) == (100, 1000)
    assert len(set(sizes)) == 901


def test_new_gradients_are_other_tensors_with_the_same_values() -> None:
    params = parameters(SETS["host"], torch.float32, "cpu")
    values = [param.grad for param in params if param.grad is not None]
    new_gradients(params, values)
    first = [param.grad for param in params if param.grad is not None]
    assert len(first) == len(values) == 1000
    assert all(torch.equal(a, b) for a, b in zip(first, values, strict=True))
    assert {g.data_ptr() for g in first}.isdisjoint(v.data_ptr() for v in values)


# Contenders


def test_algorithms_are_those_with_kernels() -> None:
    assert {"Adadelta", "AdamW", "Lion", "SGD"} <= set(algorithms())
    assert "Muon" not in algorithms()
    assert all(getattr(generated, name).kernels for name in algorithms())


def test_torchs_paths_stand_for_what_torch_has() -> None:
    assert list(contenders("AdamW")) == [OURS, TORCH_FUSED, LOOP, FOREACH]
    assert list(contenders("Rprop")) == [OURS, LOOP, FOREACH]
    params = [torch.ones(2)]
    assert isinstance(contenders("Rprop")[LOOP](params), torch.optim.Rprop)
    assert isinstance(contenders("Lion")[LOOP](params), generated.Lion)


@pytest.mark.parametrize(
    ("name", "dtype", "bytes_per_element"),
    [
        ("AdamW", torch.float32, 28),
        ("AdamW", torch.bfloat16, 14),
        ("SGD", torch.float32, 20),  # with momentum
        ("Adagrad", torch.float64, 40),
        ("Lion", torch.float32, 20),
    ],
)
def test_traffic_is_what_a_step_reads_and_writes(
    name: str, dtype: torch.dtype, bytes_per_element: int
) -> None:
    params = [torch.ones(30, dtype=dtype), torch.ones(2, 5, dtype=dtype)]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = contenders(name)[LOOP](params)
    optimizer.step()
    assert traffic(optimizer) == 40 * bytes_per_element


def test_null_optimizer_moves_the_same_bytes_as_each_algorithm() -> None:
    with null.package() as folder, null.imported(folder) as package:
        for name in algorithms():
            found = []
            for maker in (OURS, NULL):
                params = parameters(cut(SETS["tiny"]), torch.float32, "cpu")
                optimizer = contenders(name, null=package)[maker](params)
                optimizer.param_groups[0]["fused"] = False
                optimizer.step()
                found.append(traffic(optimizer))
            assert found[0] == found[1] > 0, name
    assert null.PACKAGE not in sys.modules


def test_null_optimizer_changes_all_that_it_keeps() -> None:
    with null.package() as folder, null.imported(folder) as package:
        assert package is not None
        param = torch.zeros(3)
        param.grad = torch.ones(3)
        optimizer = package.Null2([param], lr=0.5)
        optimizer.step()
        assert param.tolist() == [-0.5] * 3
        assert {k: v.tolist() for k, v in optimizer.state[param].items()} == {
            "s0": [0.5] * 3,
            "s1": [0.5] * 3,
        }


# Timing


class Clock:
    """Steps that cost what they say, and a log of who ran."""

    def __init__(self, costs: Mapping[str, float]) -> None:
        self.costs = costs
        self.log: list[str] = []
        self.spent = 0.0

    def contenders(self) -> dict[str, Callable[[], Callable[[], object]]]:
        return {name: lambda name=name: lambda: self.run(name) for name in self.costs}

    def run(self, name: str) -> None:
        self.log.append(name)
        self.spent = self.costs[name]

    def measure(self, step: Callable[[], object]) -> dict[str, float]:
        step()
        return {"wall": self.spent}


def test_contenders_take_turns() -> None:
    clock = Clock({"A": 1.0, "B": 1.0, "C": 1.0})
    found = interleaved(clock.contenders(), clock.measure, Effort(seconds=27, rounds=9, least=1))
    runs = "".join(clock.log)
    assert runs[:6] == "AABBCC"
    rounds = [runs[i : i + 3] for i in range(6, len(runs), 3)]
    assert [sorted(each) for each in rounds] == 9 * [["A", "B", "C"]]
    assert len(set(rounds)) > 2  # nobody has always the same one before it
    assert found["B"] == {"wall": {"median": 1.0, "low": 1.0, "high": 1.0}, "rounds": 9}


def test_slow_contender_runs_less_often_over_the_same_time() -> None:
    clock = Clock({"fast": 1.0, "slow": 10.0})
    effort = Effort(seconds=80, rounds=40, least=2, warm=1)
    found = interleaved(clock.contenders(), clock.measure, effort)
    assert (found["fast"]["rounds"], found["slow"]["rounds"]) == (40, 4)
    runs = "".join(name[0] for name in clock.log[2:])
    # In the tenth of ten rounds, before the fast one or after it.
    assert re.fullmatch(4 * "f{9}(fs|sf)", runs)


def test_breaks_are_few_and_come_before_rounds() -> None:
    clock = Clock({"A": 1.0, "B": 1.0})
    effort = Effort(seconds=40, rounds=20, least=1, warm=1)
    interleaved(clock.contenders(), clock.measure, effort, in_breaks=lambda: clock.log.append("-"))
    assert re.fullmatch("AB((AB|BA){3}-(AB|BA)){5}", "".join(clock.log))


def test_failing_contender_is_recorded_and_the_others_go_on() -> None:
    calls = iter(range(100))

    def failing() -> None:
        if next(calls) == 4:
            raise ValueError("no more\nof that")

    def broken() -> Callable[[], object]:
        raise NotImplementedError

    clock = Clock({"good": 1.0})
    others = {"early": broken, "late": lambda: failing}
    effort = Effort(seconds=8, rounds=4, least=4, warm=2)
    found = interleaved({**others, **clock.contenders()}, clock.measure, effort)
    assert list(found["early"]) == list(found["late"]) == ["error"]
    assert found["early"]["error"].startswith("NotImplementedError (broken, line ")
    assert found["late"]["error"].startswith("ValueError: no more (failing, line ")
    assert found["good"]["rounds"] == 4


def test_warnings_of_a_contender_are_recorded() -> None:
    calls = iter(range(9))

    def warning() -> None:
        if next(calls) == 1:
            warnings.warn("slow path", stacklevel=1)

    found = interleaved({"A": lambda: warning}, effort=Effort(rounds=2, least=2))
    assert found["A"]["warnings"] == ["slow path"]


def test_quartiles_have_four_digits() -> None:
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == {"median": 3.0, "low": 2.0, "high": 4.0}
    assert quartiles([1.23456]) == {"median": 1.235, "low": 1.235, "high": 1.235}


# The machine


@pytest.mark.parametrize(
    ("busy", "stolen", "verdict"), [(3.0, 0.0, False), (5.0, 0.0, True), (3.0, 9.0, True)]
)
def test_machine_is_busy_if_others_use_it(
    busy: float, stolen: float, verdict: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In ten seconds of two processors this process has used three."""
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 2)
    times = iter(
        [
            {"wall": 0.0, "busy": 100.0, "stolen": 1.0, "own": 7.0},
            {"wall": 10.0, "busy": 100.0 + busy, "stolen": 1.0 + stolen, "own": 10.0},
        ]
    )
    monkeypatch.setattr(machine.Watch, "_now", lambda _: next(times))
    seen = machine.Watch().seen()
    assert seen["busy"] is verdict
    assert seen["others"] == pytest.approx((busy - 3) / 20)
    assert seen["stolen"] == pytest.approx(stolen / 20)


def test_versions_and_machine_are_told() -> None:
    assert machine.versions()["torch"] == torch.__version__
    assert machine.machine()["cores"] >= 1
    assert machine.settings()["threads"] == torch.get_num_threads()


def test_version_of_the_package_is_that_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "_c").mkdir()
    kernel, note = tmp_path / "_c" / "adam.c", tmp_path / "note.txt"
    kernel.write_text("one")
    first = machine._hash(tmp_path)
    note.write_text("of no effect")
    assert machine._hash(tmp_path) == first
    kernel.write_text("two")
    second = machine._hash(tmp_path)
    kernel.rename(tmp_path / "_c" / "sgd.c")
    assert len({first, second, machine._hash(tmp_path)}) == 3


def test_bandwidth_of_a_copy_counts_both_ways() -> None:
    def measure(step: Callable[[], object]) -> dict[str, float]:
        step()
        return {"wall": 2.0}

    assert machine.copy_bandwidth(measure, "cpu", 4000)["median"] == 4000
    assert machine.copy_bandwidth(lambda _: {"wall": 2.0, "device": 0.5}, "cpu", 4)["low"] == 16


def test_stream_counts_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three passes the fastest counts, of all looks the one in the middle."""
    times = iter([4.0, 2.0, 3.0, 8.0, 9.0, 8.0, 1.0, 1.0, 1.0])
    monkeypatch.setattr(machine, "by_wall", lambda step: {"wall": (step(), next(times))[1]})
    stream = machine.Stream(400)
    for _ in range(3):
        stream.look()
    assert stream.seen() == 2 * 400 / 2.0
    assert stream.tensor.tolist() == [9.0] * 100  # all of it was written in each pass


def test_memory_is_slow_where_it_moves_less_than_at_its_best() -> None:
    rows = [{"stream": 100.0}, {"stream": 85.0}, {"stream": 84.0}, {}]
    assert machine.slowed(rows) == [rows[2]]
    assert machine.slowed([{}]) == machine.slowed([]) == []


# Processes


DONE: list[str] = []


def done_before() -> tuple[int, list[str]]:
    """The process, and what has been done in it."""
    DONE.append("something")
    return os.getpid(), DONE[:-1]


def threads() -> tuple[int, bool]:
    """Those of torch, and whether kernels have to do with one."""
    return torch.get_num_threads(), _cpu._is_forked


def raising() -> dict[str, Any]:
    raise MemoryError("no room")


def test_process_of_its_own_has_done_nothing_before() -> None:
    here, before = done_before()
    (one, first), (other, second) = alone(done_before), alone(done_before)
    assert len({here, one, other}) == 3
    assert (before, first, second) == ([], [], [])
    assert done_before() == (here, ["something"])
    assert alone(threads) == (torch.get_num_threads(), False)


def test_what_goes_wrong_in_a_process_is_told() -> None:
    with pytest.raises(MemoryError, match="no room"):
        alone(raising)
    assert alone(attempt, raising) == attempt(raising)
    assert attempt(raising)["error"].startswith("MemoryError: no room (raising, line ")
    with pytest.raises(BrokenProcessPool):
        alone(os._exit, 1)


# Memory


def test_memory_that_a_step_needs_for_a_while_counts() -> None:
    """Also what comes out of memory that was freed before."""
    size = 8_000_000
    for _ in range(2):
        grown = memory.growth(lambda: torch.ones(size, dtype=torch.uint8), "cpu")
        assert 0.9 * size <= grown < 1.5 * size  # the kernel counts in batches of pages
    assert memory.growth(lambda: None, "cpu") < 500_000


def test_memory_of_contenders_is_measured_on_large_sets() -> None:
    arguments = [*SMOKE, "--optimizers", "AdamW", "SGD", "Lion", "--sets", "resnet50", "host"]
    options = suite.parse(suite.optimizer_parser(""), [*arguments, "--dtypes", "float32"])
    results = suite.Results("cpu", options)
    memory.measure(results, options)
    rows = results.data["memory"]
    assert [(row["optimizer"], row["contender"]) for row in rows] == [
        *(("AdamW", name) for name in (OURS, TORCH_FUSED, LOOP, FOREACH)),
        *(("SGD", name) for name in (OURS, TORCH_FUSED)),
        ("Lion", OURS),
    ]
    assert {row["set"] for row in rows} == {"resnet50"}
    assert all(row["share"] == row["bytes"] / 480 for row in rows)
    memory.measure(results, options)  # what is there is not measured again
    assert len(rows) == 7


@pytest.mark.parametrize(
    ("dtype", "policy"),
    [
        ("float32", {}),
        ("float32", {"state_dtype": "int8"}),
        ("bfloat16", {"kahan": True}),
        ("bfloat16", {"rounding": "stochastic", "state_dtype": "int8"}),
    ],
    ids=str,
)
def test_step_of_a_large_model_needs_next_to_no_memory(dtype: str, policy: dict[str, Any]) -> None:
    """At most a hundredth of the parameters' bytes, in a process of its own."""
    code = f"""
import generated
from benchmarks.memory import growth
from benchmarks.sets import SETS, new_gradients, parameters
from benchmarks.suite import DTYPES

params = parameters(SETS["resnet50"], DTYPES["{dtype}"], "cpu")
values = [param.grad for param in params]
optimizer = generated.AdamW(params, fused=True, **{policy!r})
for _ in range(2):
    new_gradients(params, values)
    optimizer.step()
new_gradients(params, values)
print(growth(optimizer.step, "cpu") / sum(param.nbytes for param in params))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert 0 <= float(done.stdout) < goals.EXTRA_MEMORY


# Whole runs


def written(file: Path) -> dict[str, Any]:
    """Results, in which all numbers are some that every reader of JSON knows."""
    text = file.read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text, parse_constant=pytest.fail)
    return found


def test_cpu_benchmark_writes_every_cell(tmp_path: Path) -> None:
    file = tmp_path / "cpu.json"
    chosen = ["--optimizers", "AdamW", "Lion", "--sets", "resnet50", "host", "--dtypes", "float32"]
    cpu.main([*SMOKE, *chosen, "--compile", "none", "--no-memory", "-o", str(file)])
    data = written(file)
    assert [(c["optimizer"], c["set"], c["gradients"]) for c in data["cells"]] == [
        (name, tensors, gradients)
        for tensors, gradients in (("resnet50", "kept"), ("host", "kept"), ("host", "new"))
        for name in ("AdamW", "Lion")
    ]
    for cell in data["cells"]:
        peers = [TORCH_FUSED] if cell["optimizer"] == "AdamW" else []
        assert list(cell["contenders"]) == [OURS, NULL, *peers, LOOP, FOREACH]
        for name, found in cell["contenders"].items():
            assert "error" not in found, name
            assert 0 < found["wall"]["low"] <= found["wall"]["median"] <= found["wall"]["high"]
    assert [cell["bytes"] for cell in data["cells"][:2]] == [120 * 28, 120 * 20]
    assert data["command"].startswith("python -m benchmarks.cpu --smoke")
    assert data["versions"]["torch"] == torch.__version__
    busy = [cell["busy"] for cell in data["cells"]]
    assert data["activity"]["busy cells"] == sum(busy)
    assert data["activity"]["slow cells"] == len(machine.slowed(data["cells"]))
    assert all(cell["stream"] > 0 for cell in data["cells"])
    assert list(tmp_path.iterdir()) == [file]
    assert data["copy"]["median"] > 0
    # Whoever is timed has done something; what the null kernel does is not asked.
    found = [{n: "changed" in t for n, t in c["contenders"].items()} for c in data["cells"]]
    assert all(asked == {n: n != NULL for n in asked} for asked in found)
    assert all(c["contenders"][OURS]["changed"] > 0.9 for c in data["cells"])
    # A table has a line per row.
    assert len(file.read_text(encoding="utf-8").splitlines()) < 30


def test_stopped_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cpu.json"
    chosen = ["--optimizers", "AdamW", "Lion", "--sets", "resnet50", "--dtypes", "float32"]
    arguments = [*SMOKE, *chosen, "--compile", "none", "-o", str(file)]
    cpu.main([*arguments, "--minutes", "0"])
    left = written(file)
    assert left["cells"] == left["memory"] == []
    assert [s["optimizer"] for s in left["skipped"] if "optimizer" in s] == ["AdamW", "Lion"]
    assert left["skipped"][2:] == [{"set": "resnet50", "dtype": "float32", "measured": "memory"}]
    assert "**Not all was measured**: 3 cells are missing." in page.page(left, None)
    cpu.main([*arguments, "--resume"])
    whole = written(file)
    assert [c["optimizer"] for c in whole["cells"]] == ["AdamW", "Lion"]
    assert whole["skipped"] == []
    # What failed is tried again, what is there stays.
    whole["cells"][0] = {**whole["cells"][0], "error": "lost"}
    file.write_text(json.dumps(whole))
    cpu.main([*arguments, "--resume"])
    last, again = written(file)["cells"]
    assert last == whole["cells"][1]
    assert "error" not in again
    monkeypatch.setattr(machine, "machine", lambda: {"processor": "another"})
    with pytest.raises(SystemExit, match="was measured on another machine"):
        cpu.main([*arguments, "--resume"])
    monkeypatch.setattr(machine, "versions", lambda: {"torch": "1.0"})
    with pytest.raises(SystemExit, match="was measured with another versions: nothing to resume"):
        cpu.main([*arguments, "--resume"])
    with pytest.raises(SystemExit):
        cpu.main(["--resume"])


def test_contender_that_leaves_parameters_alone_is_found() -> None:
    """torch's fused SGD updates the last `numel % 16` elements in bfloat16, and no other."""
    options = suite.parse(suite.optimizer_parser(""), SMOKE)
    cell = suite.Cell("SGD", cut(SETS["large"], elements=4000), "bfloat16", suite.KEPT)
    effort = suite.effort(options)
    found = suite.timed(cell, "cpu", contenders("SGD"), by_wall, effort, lambda _: {})
    assert found["contenders"][TORCH_FUSED]["changed"] == 0
    assert found["contenders"][OURS]["changed"] > 0.1
    idle = {name for name in found["contenders"] if goals.is_idle(found, name)}
    assert idle == {TORCH_FUSED}
    data = {"cells": [{**cell.key(), **found}]}
    assert list(page.idle_lines(data, "bfloat16")) == [
        "† leaves the parameters as they are, but for a few elements: torch fused of SGD.\n"
    ]
    assert page.ratio(found, TORCH_FUSED, "wall").endswith("†")
    assert not page.ratio(found, LOOP, "wall").endswith("†")


def test_elements_that_are_no_numbers_have_not_been_updated() -> None:
    params = [torch.zeros(4), torch.zeros(6)]

    def step() -> None:
        params[0][1:].fill_(torch.nan)
        params[1][:2] += 1

    assert suite.changed(params, step) == 0.2


def test_gpu_benchmark_runs_on_the_interpreter(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    file = tmp_path / "gpu.json"
    arguments = ["--device", "cpu", *SMOKE, "--optimizers", "AdamW", "--sets", "llm", "tiny"]
    arguments += ["--dtypes", "float32", "--compile", "none", "-o", str(file)]
    subprocess.run([sys.executable, "-m", "benchmarks.gpu", *arguments], cwd=ROOT, check=True)
    data = written(file)
    held = {row["against"]: row["holds"] for row in data["checks"]}
    assert held == dict.fromkeys(
        ["for-loop", TORCH_FUSED, "interpreter", "replays of a graph"], True
    )
    assert data["copy"]["median"] > 0
    assert data["skipped"] == []
    names = [OURS, NULL, TORCH_FUSED, LOOP, FOREACH]
    assert [list(cell["contenders"]) for cell in data["cells"]] == [
        [*names, "ours, graph", "torch fused, graph"],
        [*names, "ours, graph", "torch fused, graph"],
        names,
    ]
    for cell in data["cells"]:
        assert cell["launches"] == 1
        assert all(
            {"wall", "host", "device"} <= set(found) for found in cell["contenders"].values()
        )
    assert "## GPU" in page.page(None, data)


def test_gpu_benchmark_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="There is no GPU"):
        gpu.main([])


def test_averages_are_timed(tmp_path: Path) -> None:
    file = tmp_path / "averages.json"
    averages.main([*SMOKE, "--sets", "tiny", "-o", str(file)])
    cells = written(file)["cells"]
    assert [cell["average"] for cell in cells] == ["SWA", "EMA"]
    for cell in cells:
        assert list(cell["contenders"]) == [
            OURS, f"ours, {LOOP}", f"ours, {FOREACH}", LOOP, FOREACH,
        ]  # fmt: skip
        assert all("error" not in found for found in cell["contenders"].values())


def test_missing_compiler_leaves_the_benchmark_without_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> None:
        raise ModuleNotFoundError("No module named 'lark'")

    monkeypatch.setattr(null, "package", absent)
    file = tmp_path / "cpu.json"
    chosen = ["--optimizers", "Lion", "--sets", "host", "--dtypes", "float32", "--no-memory"]
    cpu.main([*SMOKE, *chosen, "-o", str(file)])
    data = written(file)
    (note,) = data["notes"]
    assert "No module named 'lark'" in note
    assert list(data["cells"][0]["contenders"]) == [OURS, LOOP, FOREACH]


def test_quick_run_is_a_part_of_the_whole() -> None:
    options = suite.parse(suite.optimizer_parser(""), ["--quick"])
    found = list(suite.cells(options))
    assert {cell.algorithm for cell in found} == {"AdamW", "SGD"}
    assert len(found) == 2 * (2 * 3 + 2)
    whole = list(suite.cells(suite.parse(suite.optimizer_parser(""), [])))
    assert set(found) < set(whole)
    assert len(whole) == len(algorithms()) * (2 * 5 + 2)


# Checks before timing


def test_nan_and_what_is_too_far_away_do_not_hold() -> None:
    one = [torch.tensor([1.0, 100.0])]
    near = checks.difference([torch.tensor([1.0, 100.5])], one, (0.01, 0.0))
    assert (near["holds"], near["differing"], near["largest"]) == (True, 1, 0.5)
    assert not checks.difference([torch.tensor([1.5, 100.0])], one, (0.01, 0.0))["holds"]
    assert not checks.difference([torch.tensor([1.0, torch.nan])], one, (0.01, 0.0))["holds"]


def test_kernel_that_fails_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("out of reach")

    def verdicts() -> dict[str, tuple[bool | None, str]]:
        rows = checks.checked(["Lion"], {"float32": torch.float32}, "cpu", [(3,)])
        return {row["against"]: (row["holds"], row["error"][:26]) for row in rows}

    monkeypatch.setattr(checks, "trained", fails)
    said = "RuntimeError: out of reach"
    assert verdicts() == {"for-loop": (False, said), "interpreter": (False, said)}
    # Nothing to hold it against is another thing.
    monkeypatch.setattr(checks, "by_interpreter", fails)
    assert verdicts() == {"for-loop": (False, said), "interpreter": (None, said)}


def test_occupancy_is_what_registers_leave() -> None:
    """On sm_90: 65,536 registers and 2,048 threads of a multiprocessor."""
    limits = SimpleNamespace(warp_size=32, max_threads_per_multi_processor=2048)

    def occupancy(registers: int) -> float:
        metadata = SimpleNamespace(name="update", num_warps=4, shared=0)
        found = gpu.needs(SimpleNamespace(n_regs=registers, n_spills=0, metadata=metadata), limits)
        assert found["registers"] == registers
        return float(found["occupancy"])

    # 72 registers: 9,216 of a block, so that seven of them fit.
    assert [occupancy(n) for n in (32, 72, 128, 255)] == [1.0, 0.44, 0.25, 0.12]


def test_cell_that_fails_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dying(work: Callable[..., Any], timed: Any, cell: suite.Cell, *others: Any) -> Any:
        if cell.algorithm == "AdamW":
            return alone(os._exit, 1)
        if cell.algorithm == "SGD":
            return alone(work, raising)
        return alone(work, timed, cell, *others)

    monkeypatch.setattr(cpu, "alone", dying)
    file = tmp_path / "cpu.json"
    chosen = ["--optimizers", "AdamW", "SGD", "Lion", "--sets", "resnet50", "--dtypes", "float32"]
    cpu.main([*SMOKE, *chosen, "--no-memory", "-o", str(file)])
    cells = {cell["optimizer"]: cell for cell in written(file)["cells"]}
    assert cells["AdamW"]["error"].startswith("BrokenProcessPool: ")
    assert cells["SGD"]["error"].startswith("MemoryError: no room (raising, line ")
    assert "error" not in cells["Lion"]["contenders"][OURS]
    assert "| Lion | ours, ms |" in page.page(written(file), None)


class Memory:
    """Cells that say how fast memory was, one look after the other, and a log of them."""

    def __init__(self, **speeds: list[float]) -> None:
        self.speeds = {name: iter(found) for name, found in speeds.items()}
        self.log: list[str] = []

    def time_of(self, cell: suite.Cell) -> dict[str, Any]:
        self.log.append(cell.algorithm)
        speed = next(self.speeds[cell.algorithm])
        if not speed:
            raise MemoryError
        return {"stream": speed, "contenders": {OURS: {"wall": {"median": 1 / speed}}}}


def test_cells_that_memory_was_slow_for_are_measured_again() -> None:
    """Until none is below 85 % of the best, or the time is over; the faster row stays."""
    chosen = ["--optimizers", "AdamW", "SGD", "Lion", "--sets", "resnet50", "--dtypes", "float32"]
    options = suite.parse(suite.optimizer_parser(""), chosen)

    def streams(results: suite.Results) -> dict[str, float]:
        return {cell["optimizer"]: cell["stream"] for cell in results.data["cells"]}

    results = suite.Results("cpu", options)
    cells = Memory(AdamW=[50.0, 40.0, 0.0, 90.0], SGD=[100.0], Lion=[60.0, 70.0, 86.0])
    suite.run(results, options, cells.time_of)
    suite.run_again(results, options, cells.time_of)
    assert streams(results) == {"AdamW": 90.0, "SGD": 100.0, "Lion": 86.0}
    assert cells.log == ["AdamW", "SGD", "Lion", "AdamW", "Lion", "AdamW", "Lion", "AdamW"]
    assert results.data["activity"]["slow cells"] == 0
    assert results.data["cells"][0]["contenders"][OURS]["wall"]["median"] == 1 / 90

    late = suite.Results("cpu", options)
    cells = Memory(AdamW=[50.0], SGD=[100.0], Lion=[60.0])
    suite.run(late, options, cells.time_of)
    late.end = 0
    suite.run_again(late, options, cells.time_of)
    assert streams(late) == {"AdamW": 50.0, "SGD": 100.0, "Lion": 60.0}
    assert late.data["activity"]["slow cells"] == 2


def test_for_loop_that_rounds_what_it_stores_is_the_interpreter_in_float32() -> None:
    """The two references of a check agree with each other."""
    sizes = ((7,), (3, 5))
    for name in algorithms():
        loop = checks.by_for_loop(name, torch.float32, sizes)
        meant = checks.by_interpreter(name, sizes)
        assert checks.difference(loop, meant, checks.LIMITS[torch.float32])["holds"], name


def test_failure_is_a_line() -> None:
    try:
        raise KeyError("a\nb")
    except KeyError as error:
        text = failure(error)["error"]
    assert re.fullmatch(r"KeyError: .* \(test_failure_is_a_line, line \d+\)", text)


# The page


COMMITTED = {name: page.results(name) for name in ("cpu", "gpu")}
MEASURED = {name: data for name, data in COMMITTED.items() if data is not None}


def test_page_is_what_the_results_say() -> None:
    text = page.page(COMMITTED["cpu"], COMMITTED["gpu"])
    repair = "To repair it: python -m benchmarks.page"
    assert page.PAGE.read_text(encoding="utf-8") == text, repair


def marks(svg: Path) -> dict[str, NDArray[np.float64]]:
    """The places of a picture's marks by the series' name."""
    found = {}
    space = "{http://www.w3.org/2000/svg}"
    for group in ElementTree.parse(svg).iter(f"{space}g"):
        if re.fullmatch(r"b?float\d+\.[\w-]+", group.get("id", "")):
            places = [(use.get("x"), use.get("y")) for use in group.iter(f"{space}use")]
            found[group.get("id", "")] = np.array(places, np.float64)
    return found


@pytest.mark.parametrize("name", MEASURED)
def test_picture_shows_what_the_results_say(name: str, tmp_path: Path) -> None:
    save(page.draw(MEASURED[name]), tmp_path / "now.svg")
    kept, now = marks(page.FOLDER / f"{name}.svg"), marks(tmp_path / "now.svg")
    assert kept.keys() == now.keys()
    assert len(now) >= 2
    for series, places in now.items():
        assert np.allclose(kept[series], places, rtol=0, atol=1e-2), series


def test_folder_of_pictures_has_no_other() -> None:
    assert {file.stem for file in page.FOLDER.iterdir()} == set(MEASURED)


def cell(**times: float | str) -> dict[str, Any]:
    """A cell whose contenders took so long, or failed."""
    found = {
        name.replace("_", " "): {"error": took}
        if isinstance(took, str)
        else {"wall": {"median": took, "low": took, "high": took}, "rounds": 9}
        for name, took in times.items()
    }
    return {"bytes": 8e9, "contenders": found}


def test_ratios_are_times_of_ours() -> None:
    shown = cell(ours=2.0, torch_fused=3.0, foreach="no")
    assert page.ratio(shown, TORCH_FUSED, "wall") == "1.50"
    assert page.ratio(shown, FOREACH, "wall") == "-"
    assert page.ratio(cell(ours="no", foreach=1.0), FOREACH, "wall") == "-"
    assert goals.best(cell(ours=1.0, foreach=3.0, **{"for-loop": 2.0}), "wall") == LOOP
    assert page.limit(cell(ours=2.0, null=1.9)) == "95%"
    assert page.bandwidth(shown, "wall") == "4"


def test_cells_that_memory_was_slow_for_are_marked() -> None:
    found = measured(ours=1.0, torch_fused=1.1, null=0.94)
    assert "‡" not in page.page(found, None).partition("## CPU")[2]
    for place, row in enumerate(found["cells"]):
        row["stream"] = 80e9 if place == 2 else 100e9
    text = page.page(found, None).partition("## CPU")[2]
    assert "‡ Memory was slow in 1 of 5 cells." in text
    assert "| AdamW | ours, ms | 1e+03 | 1e+03 | 1e+03‡ | 1e+03 | 1e+03 |" in text
    assert "AdamW (`resnet50`, float32)‡ 1.10" in text
    assert text.count("‡") == 1 + 1 + 1 + 1


def test_noisy_numbers_are_marked() -> None:
    shown = cell(ours=2.0, null=2.0)
    shown["contenders"][OURS]["wall"]["high"] = 2.3
    assert page.limit(shown) == "~100%"


def measured(**times: float) -> dict[str, Any]:
    """Results with a cell of AdamW on each set, in float32."""
    sets = {
        name: {"title": s.title, "small": s.small, "tensors": len(s.shapes)}
        for name, s in SETS.items()
    }
    named = {"optimizer": "AdamW", "dtype": "float32", "gradients": "kept"}
    rows = [
        {"contender": OURS, "optimizer": "AdamW", "set": "llm", "dtype": "float32", "share": share}
        for share in (0.004, 0.02)
    ]
    return {
        "benchmark": "cpu",
        "date": "today",
        "machine": {"processor": "one", "cores": 2, "vectors": "AVX2", "system": "Linux"},
        "versions": {"torch": "2", "compiler": "gcc", "python": "3"},
        "settings": {"threads": 2},
        "notes": [],
        "skipped": [],
        "cells": [{**named, "set": name, **cell(**times)} for name in SETS],
        "sets": sets,
        "memory": rows,
    }


def judged(**times: float) -> dict[str, goals.Judged]:
    """What is said of these cells, by the goal's sets and title."""
    found = goals.judged(measured(**times))
    return {f"{goal.where}: {goal.title}": goal for goal in found}


def test_goals_are_told_by_their_worst_cells() -> None:
    found = judged(ours=1.0, torch_fused=1.1, null=0.94)
    large = found["float32: `large`: times torch's fused kernel"]
    assert (large.bound, large.worst, large.missed) == ("at least 1.05", "1.10", ())
    assert (large.reached, large.cells) == (1, 1)
    others = found["float32: `llm`, `resnet50`: times torch's fused kernel"]
    assert (others.reached, others.cells) == (0, 2)
    assert others.missed == (
        "AdamW (`llm`, float32) 1.10 [1.17]",
        "AdamW (`resnet50`, float32) 1.10 [1.17]",
    )
    assert others.out_of_reach == 0
    limit = found["float32: `large`, `llm`, `resnet50`: of the limit's speed"]
    assert (limit.reached, limit.cells, limit.worst) == (3, 3, "94%")
    host = found["float32: `host`: microseconds for a parameter"]
    assert (host.bound, host.worst) == ("at most 1.00", "1000.00")
    assert host.missed == ("AdamW (`host`, kept, float32) 1000.00 [940.00]",)
    assert host.out_of_reach == 1
    memory_goal = found["all large sets: extra memory, of the parameters' bytes"]
    assert (memory_goal.reached, memory_goal.worst) == (1, "2.00%")
    assert memory_goal.missed == ("AdamW `llm` float32 2.00%",)
    assert memory_goal.out_of_reach == 0  # where the limit has no figure
    # What has not been measured is not judged.
    assert not any("bfloat16: `large`" in name for name in found)
    assert not any("best of" in name for name in found)


def test_goals_that_the_limit_misses_are_counted() -> None:
    found = judged(ours=1.0, torch_fused=1.1, null=1.0)
    others = found["float32: `llm`, `resnet50`: times torch's fused kernel"]
    assert (others.out_of_reach, len(others.missed)) == (2, 2)
    text = page.page(measured(ours=1.0, torch_fused=1.1, null=1.0), None)
    assert "1.10 [1.10]. In 2 of these 2 the limit misses it, too.\n" in text
    assert "the limit misses" not in page.page(measured(ours=1.0, torch_fused=9.0), None)
    # The limit's own speed is no goal that it could miss.
    slower = judged(ours=1.0, null=0.5)["float32: `large`, `llm`, `resnet50`: of the limit's speed"]
    assert (slower.missed[0], slower.out_of_reach) == ("AdamW (`large`, float32) 50%", 0)


def test_goals_on_a_gpu_are_those_of_the_device() -> None:
    moved: dict[str, Any] = {"wall": {"median": 2.0}, "device": {"median": 1.0}}
    one = {"optimizer": "SGD", "set": "llm", "dtype": "bfloat16", "gradients": "kept"}
    times = {OURS: moved, TORCH_FUSED: {"wall": {"median": 1.9}}}
    cells = [{**one, "contenders": times, "bytes": 8.0, "launches": count} for count in (1, 3)]
    sets = {"llm": {"small": False, "tensors": 171}}
    data = {"benchmark": "gpu", "cells": cells, "sets": sets, "copy": {"median": 10.0}}
    found = [(goal.title, goal.worst, goal.reached) for goal in goals.judged(data)]
    assert found == [
        ("times torch's fused kernel", "0.95", 0),
        ("of a copy's bandwidth", "80%", 0),
        ("launches of a step", "3", 1),
    ]
    # A copy that failed is no bound.
    data["copy"] = {"error": "no room"}
    assert len(list(goals.judged(data))) == 2


def test_goal_of_what_is_no_number_is_missed() -> None:
    found = judged(ours=1.0, torch_fused=float("nan"))
    assert found["float32: `large`: times torch's fused kernel"].reached == 0


def test_page_says_what_is_below_its_goal_and_a_persons_reasons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    (tmp_path / "cpu.md").write_text("Division takes the time.\n")
    data = dict(MEASURED["cpu"])
    for each in data["cells"]:
        for time in each["contenders"].values():
            assert "error" not in time
    text = "".join(page.goal_lines(data))
    assert text.endswith("Division takes the time.\n")
    missed = [goal for goal in goals.judged(data) if goal.missed]
    assert text.count("**Not reached**") == len(missed)
    for goal in missed:
        assert f"**Not reached**, {goal.title}, {goal.bound}: {goal.missed[0]}" in text


def test_page_says_that_a_machine_was_busy_and_what_is_missing() -> None:
    data = dict(next(iter(MEASURED.values())))
    quiet = [{**c, "busy": False} for c in data["cells"]]
    data["cells"] = [{**quiet[0], "busy": True}, *quiet[1:]]
    assert f"**The machine was busy** in 1 of {len(quiet)} cells" in page.page(data, None)
    assert "busy" not in "".join(page.setting({**data, "cells": quiet}))
    assert "Not measured yet: `python -m benchmarks.gpu` does it." in page.page(data, None)
    data["cells"] = [{**data["cells"][0], "launches": 0}]
    assert f"**No kernel ran** for {data['cells'][0]['optimizer']}:" in page.page(data, None)
