"""Kernels compiled for GPUs that need not be here: no spilled register, vector accesses."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import generated
from generated import _policy
from optdsl.report import __main__ as command
from optdsl.report import cpu, gpu, results
from optdsl.report.gpu import ARCHITECTURES, Row, report
from optdsl.report.stored import KEEPING, SLOTS, Storage, storages
from tests.random_specs import updates

pytest.importorskip("triton")

SPEC = Path(__file__).parents[2] / "specs" / "optimizers" / "lion.opt"
PLAIN = Row("adam.update", "amsgrad", "float32", "sm_90", 70, 0, 2048, 10, 8, True)

IN_C = cpu.Row("adam", "amsgrad", "float32", 2, 64, 0)


def assert_efficient(rows: tuple[Row, ...]) -> None:
    assert rows
    for row in rows:
        assert row.spilled == 0, row
        assert row.wide, row
        if row.kernel.endswith(".update"):
            # At least the parameter, the gradient and the parameter again.
            assert row.loads128 >= 2, row
            assert row.stores128 >= 1, row


def test_adam_needs_no_spills_and_uses_vector_accesses() -> None:
    rows = report(names=["adam"], archs=["sm_90"], stored=["float32"])
    assert_efficient(rows)
    # Four tensors read and three written, each in two accesses of 16 bytes per thread; one more
    # with amsgrad.
    found = {row.options: (row.loads128, row.stores128) for row in rows if row.stored}
    assert (found[""], found["amsgrad"]) == ((8, 6), (10, 8))
    assert len(found) == 8


def test_sample_has_every_kernel_before_one_comes_twice() -> None:
    """A part of the product that `python -m optdsl.report` compiles; that takes minutes."""
    folder = Path(generated.__file__).parent / "_triton"
    modules = {file.stem for file in folder.glob("*.py") if not file.stem.startswith("_")}
    rows = report(sample=len(modules))
    assert_efficient(rows)
    assert {row.kernel.partition(".")[0] for row in rows} == modules
    assert {row.arch for row in rows} == set(ARCHITECTURES)
    assert report(sample=3) == rows[:3]


def test_storages_are_those_that_the_policies_make() -> None:
    """Every argument about precision, but the seed, changes how something is stored."""
    found = storages("generated")
    arguments = [*KEEPING.values(), *SLOTS.values()]
    assert {name for given in arguments for name in given} == set(_policy.DECIDING)
    assert len(set(found.values())) == len(found)
    assert found["float32"] == Storage(torch.float32, torch.float32, ("nearest", "nearest"))
    assert found["bfloat16, kahan, 8-bit slots"] == Storage(
        torch.bfloat16, torch.uint8, ("remainder", "stochastic")
    )
    assert not [name for name in found if name.startswith("float64,")]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_no_kernel_spills_and_each_uses_vector_accesses(arch: str) -> None:
    assert_efficient(report(archs=[arch]))


def test_narrow_access_is_told_from_a_wide_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that does not tell the compiler about alignment."""
    build = ["build", str(SPEC), "-o", str(tmp_path / "narrow_package")]
    subprocess.run([sys.executable, "-m", "optdsl", *build], check=True, capture_output=True)
    mathematics = tmp_path / "narrow_package" / "_triton" / "_math.py"
    text = mathematics.read_text(encoding="utf-8")
    assert text.count("tl.multiple_of(") == 1
    mathematics.write_text(text.replace("tl.multiple_of(", "_unhinted("), encoding="utf-8")
    with mathematics.open("a", encoding="utf-8") as file:
        file.write("\n\n@triton.jit\ndef _unhinted(pointer, alignment):\n    return pointer\n")
    monkeypatch.syspath_prepend(tmp_path)
    rows = report("narrow_package", ["lion"], archs=["sm_90"], stored=["float32"])
    assert [row.wide for row in rows] == [True, False, False]
    assert [row.loads128 for row in rows] == [0, 0, 0]


@pytest.mark.slow
@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=2)
@given(st.lists(updates(), min_size=10, max_size=10))
def test_random_updates_compile(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, texts: list[str]
) -> None:
    """The interpreter runs code that the compiler refuses, such as names that change their type."""
    folder = tmp_path_factory.mktemp("random")
    for index, text in enumerate(texts):
        named = text.replace("optimizer Random", f"optimizer Random{index}")
        (folder / f"random{index}.opt").write_text(named)
    build = ["build", str(folder), "-o", str(folder / "random_package")]
    subprocess.run([sys.executable, "-m", "optdsl", *build], check=True, capture_output=True)
    monkeypatch.syspath_prepend(folder)
    assert report("random_package", archs=["sm_90"])


# What a run keeps


def test_what_a_file_keeps_is_not_compiled_again(tmp_path: Path) -> None:
    file = tmp_path / "report.jsonl"

    def rows(**chosen: Any) -> list[Row]:
        return [*report(names=["swa"], stored=["float32"], kept=file, **chosen)]

    found = rows(archs=["sm_90"])
    assert len(results.read(file)) == len(found) == 3
    # Several processes write the file: its order is not that of the rows.
    for key, row in results.read(file).items():
        results.add(file, key, [*row[:4], 12345, *row[5:]])
    again = rows(archs=["sm_80", "sm_90"])
    assert [r for r in again if r.arch == "sm_90"] == [replace(r, registers=12345) for r in found]
    assert len(results.read(file)) == len(again) == 6


def test_half_a_line_is_no_result_and_disturbs_none(tmp_path: Path) -> None:
    file = tmp_path / "kept.jsonl"
    assert results.read(file) == {}
    for number in range(3):
        results.add(file, (f"case {number}",), number)
    text = file.read_text()
    for end in range(len(text)):
        file.write_text(text[:end])
        before = results.read(file)
        # Whole but for the end of its line, it is a result.
        assert len(before) == (text[:end] + "\n").count("}\n")
        results.add(file, ("new",), end)
        assert results.read(file) == {**before, ("new",): end}
    results.add(file, ("new",), "later")
    assert results.read(file)["new",] == "later"


def test_hash_of_sources_follows_the_code_alone(tmp_path: Path) -> None:
    file = tmp_path / "kernel.py"
    digests = []
    for head, code in (("1", "x = 1"), ("2", "x = 1"), ("2", "x = 2")):
        file.write_text(f"# Spec sha256: {head}\n{code}\n")
        digests.append(results.digest([file], 1024))
    assert digests[0] == digests[1] != digests[2]
    assert results.digest([file], 1024) != results.digest([file], 2048)


def test_table_has_a_line_per_kernel() -> None:
    head, line = command.table([PLAIN]).splitlines()
    assert head.split() == [
        "kernel", "options", "stored", "arch", "registers", "spilled", "shared", "loads128",
        "stores128", "wide",
    ]  # fmt: skip
    assert line.split() == [
        "adam.update", "amsgrad", "float32", "sm_90", "70", "0", "2048", "10", "8", "yes",
    ]  # fmt: skip


def test_summary_counts_what_is_wrong() -> None:
    rows = [PLAIN, replace(PLAIN, spilled=8, registers=255), replace(PLAIN, arch="gfx942")]
    assert command.gpu_summary([*rows, replace(PLAIN, wide=False)]).splitlines() == [
        "sm_90: kernels 3, most registers 255, spilling 1, without the widest accesses 1",
        "gfx942: kernels 1, most registers 70, spilling 0, without the widest accesses 0",
    ]
    assert command.cpu_summary([IN_C, replace(IN_C, loops=0, bytes=0, scalar=2)]) == (
        "cpu: kernels 2, narrowest vectors 0 bytes, with a scalar loop 1"
    )


@pytest.mark.parametrize(
    "wrong",
    [replace(PLAIN, spilled=4), replace(PLAIN, wide=False), replace(IN_C, scalar=1)],
    ids=["spilled", "narrow", "scalar"],
)
def test_command_fails_where_a_kernel_is_not_as_it_should_be(
    wrong: Row | cpu.Row, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: dict[str, list[Any]] = {"gpu": [PLAIN], "cpu": [IN_C]}
    monkeypatch.setattr(gpu, "report", lambda *_, **__: found["gpu"])
    monkeypatch.setattr(cpu, "report", lambda *_, **__: found["cpu"])
    command.main([])
    found["gpu" if isinstance(wrong, Row) else "cpu"].append(wrong)
    with pytest.raises(SystemExit) as caught:
        command.main([])
    assert caught.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("adam") for line in lines) == 5


def test_command_writes_counts_of_each_algorithm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [PLAIN, replace(PLAIN, registers=90, shared=16), replace(PLAIN, kernel="ema.update")]
    monkeypatch.setattr(gpu, "report", lambda *_, **__: rows)
    monkeypatch.setattr(cpu, "report", lambda *_, **__: [IN_C, replace(IN_C, bytes=32)])
    command.main(["-o", str(tmp_path / "report.json")])
    written = json.loads((tmp_path / "report.json").read_text())
    assert (written["block"], written["threads"]) == (1024, 128)
    adam, ema = written["gpu"]
    assert adam == {
        "arch": "sm_90", "module": "adam", "kernels": 2, "registers": 90, "shared": 2048,
        "spilling": 0, "narrow": 0,
    }  # fmt: skip
    assert (ema["module"], ema["kernels"]) == ("ema", 1)
    assert written["cpu"] == [{"module": "adam", "kernels": 2, "bytes": 32, "scalar": 0}]


def test_command_refuses_unknown_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--nonsense"])
    assert "--arch" in capsys.readouterr().err
