"""Kernels compiled for GPUs that need not be here: no spilled register, vector accesses."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optdsl.report import Row, main, report, table
from tests.random_specs import updates

pytest.importorskip("triton")


def assert_efficient(rows: tuple[Row, ...]) -> None:
    assert rows
    for row in rows:
        assert row.spilled == 0, row
        if row.kernel.endswith(".update"):
            # At least the parameter, the gradient and the parameter again.
            assert row.loads128 >= 2, row
            assert row.stores128 >= 1, row


def test_adam_needs_no_spills_and_uses_vector_accesses() -> None:
    rows = report(["adam"], "sm_90", "generated")
    assert_efficient(rows)
    plain = next(r for r in rows if r.dtypes == "float32" and not r.options)
    # Four tensors read and three written, each in two accesses of 16 bytes per thread.
    assert (plain.loads128, plain.stores128) == (8, 6)


def test_every_kernel_compiles_without_spills_for_float32() -> None:
    assert_efficient(report([], "sm_90", "generated", ["float32"]))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "gfx942"])
def test_no_kernel_spills_and_each_uses_vector_accesses(arch: str) -> None:
    assert_efficient(report([], arch, "generated"))


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
    assert report([], "sm_90", "random_package")


def test_table_has_a_line_per_kernel() -> None:
    row = Row("adam.update", "amsgrad", "float32", 70, 0, 2048, 8, 6)
    head, line = table([row]).splitlines()
    assert head.split() == [
        "kernel", "options", "dtypes", "registers", "spilled", "shared", "loads128", "stores128",
    ]  # fmt: skip
    assert line.split() == ["adam.update", "amsgrad", "float32", "70", "0", "2048", "8", "6"]


def test_command_refuses_unknown_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--nonsense"])
    assert "--arch" in capsys.readouterr().err
