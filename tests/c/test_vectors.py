"""Loops of C kernels are vector instructions, and one that is not is told from them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from generated._fused import _compile
from optdsl.report import cpu, results

SOURCES = _compile.SOURCES


def test_sample_of_c_kernels_has_vector_loops_only() -> None:
    """A part of the product that `python -m optdsl.report --arch cpu` compiles."""
    names = cpu.known("generated")
    rows = cpu.report(sample=len(names))
    assert {row.kernel for row in rows} == set(names)
    assert all(row.is_fine for row in rows), [row for row in rows if not row.is_fine]


@pytest.mark.slow
def test_every_c_kernel_has_vector_loops_only() -> None:
    rows = cpu.report()
    assert len(rows) > 1000
    assert all(row.is_fine for row in rows), [row for row in rows if not row.is_fine]


def test_loop_is_copied_for_each_combination_of_conditions() -> None:
    """Adam has one condition, RAdam two."""
    rows = cpu.report(names=["adam", "radam"], stored=["float32"])
    assert {(row.kernel, row.loops) for row in rows} == {("adam", 2), ("radam", 4)}


def test_slot_that_is_absent_leaves_two_elements_to_a_word() -> None:
    """SGD without momentum: the type that its buffer would have is not in the way of 16 bits, here
    as in a step."""
    rows = cpu.report(names=["sgd"], stored=["bfloat16, float32 slots", "bfloat16, 8-bit slots"])
    assert len(rows) == 8
    assert all(row.is_fine for row in rows), rows


def test_what_a_file_keeps_is_not_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "report.jsonl"
    rows = cpu.report(names=["lion"], stored=["float32"], kept=file)
    with monkeypatch.context() as patch:
        patch.delattr(cpu, "compiled")
        assert cpu.report(names=["lion"], stored=["float32"], kept=file) == rows
    assert cpu.report(names=["lion"], stored=["float32", "float64"], kept=file)[:1] == rows
    assert len(results.read(file)) == 2


def test_scalar_loop_is_told_from_a_vector_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gcc has no vector instructions for a loop with a call in it."""
    folder = tmp_path / "_c"
    shutil.copytree(SOURCES, folder)
    lion = folder / "lion.c"
    text = lion.read_text(encoding="utf-8")
    assert text.count("PUT(param, PARAM_TYPE, param);") == 1
    called = text.replace(
        "PUT(param, PARAM_TYPE, param);", "PUT(param, PARAM_TYPE, opaque(param));"
    ).replace('#include "kernel.h"', '#include "kernel.h"\n\nreal opaque(real x);')
    lion.write_text(called, encoding="utf-8")
    monkeypatch.setattr(_compile, "SOURCES", folder)
    (row,) = cpu.report(names=["lion"], stored=["float32"])
    assert (row.loops, row.bytes) == (0, 0)
    assert row.scalar > 0
    assert not row.is_fine


def test_other_compiler_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "cc"
    other.write_text("#!/bin/sh\necho clang version 19\n", encoding="utf-8")
    other.chmod(0o755)
    monkeypatch.setenv("CC", str(other))
    with pytest.raises(NotImplementedError, match="what gcc says, not clang version 19"):
        cpu.report(names=["lion"])
