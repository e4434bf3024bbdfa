"""The tests in `interpreted/`, each file in a process that interprets kernels."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.triton.interpreted import oracle

HERE = Path(__file__).parent
PATHS = sorted((HERE / "interpreted").glob("test_*.py"))
FILES = [path.name for path in PATHS]
SLOW = [path.name for path in PATHS if "mark.slow" in path.read_text(encoding="utf-8")]


def run(file: str, *arguments: str) -> None:
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(
        [*command, str(HERE / "interpreted" / file)],
        cwd=HERE.parents[1],
        env=environment | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# A file is one test here: minutes, and more of them on a machine that others use.
@pytest.mark.timeout(900)
@pytest.mark.parametrize("file", FILES)
def test_kernels_in_the_interpreter(file: str) -> None:
    run(file)


def product(*arguments: str) -> str:
    """What the command prints, which interprets kernels by itself."""
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.triton.product", *arguments]
    done = subprocess.run(
        command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_command_of_the_whole_product_runs_cases() -> None:
    """With reductions, which need the interpreter's own functions most."""
    said = product("--optimizers", "LARS", "--stored", "bfloat16, kahan", "--minutes", "0.05")
    assert re.search(r"\ncases: [1-9]\d* of 16, failed: 0\n$", said)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", oracle.NAMES)
def test_kernels_equal_the_reference_in_every_combination(name: str) -> None:
    product("--optimizers", name)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("file", SLOW)
def test_kernels_in_the_interpreter_in_every_combination(file: str) -> None:
    run(file, "-m", "slow", "--timeout=3600")
