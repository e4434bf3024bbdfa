"""The tests in `interpreted/`, each file in a process that interprets kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("file", FILES)
def test_kernels_in_the_interpreter(file: str) -> None:
    run(file)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("file", SLOW)
def test_kernels_in_the_interpreter_in_every_combination(file: str) -> None:
    run(file, "-m", "slow", "--timeout=3600")
