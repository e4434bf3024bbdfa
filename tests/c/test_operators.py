"""The operator table's column for C against the meaning in NumPy, at the edges too."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optdsl.ir import Kind
from optdsl.ops import TABLE, Op, Rule, Type
from optdsl.printing import c, show
from tests.c import kernels
from tests.test_ops import NAMES, agree, applied, big, meaning, message, names, root, samples

pytestmark = kernels.needs_compiler

ROWS = [r for r in TABLE if r.c is not None and r.rule in (Rule.JOIN, Rule.SCALAR_ONLY)]
C_TYPES = {Type.BOOL: ("bool", ctypes.c_bool), Type.NUMBER: ("double", ctypes.c_double)}


def function(row: Op) -> str:
    """A function in C of the row's operands."""
    operands = zip(row.operands, NAMES, strict=False)
    listed = ", ".join(f"{C_TYPES[type_][0]} {name}" for type_, name in operands)
    text = show(applied(row, Kind.ELEMENTWISE), c)
    return f"{C_TYPES[row.result][0]} row_{row.name}({listed}) {{ return {text}; }}\n"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("operators")
    text, shared = folder / "rows.c", folder / "rows.so"
    head = '#define COMPUTE double\n#include "kernel.h"\n'
    text.write_text(head + "".join(map(function, ROWS)))
    flags = [*kernels.FLAGS, "-Werror", "-shared", f"-I{kernels.FOLDER}"]
    command = [kernels.COMPILER, *flags, text, "-o", shared, "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(shared))


def excluded(row: Op, values: tuple[Any, ...]) -> bool:
    match row.name:
        case "lerp" | "add_scaled" | "addcmul" | "addcdiv":
            return big(values)  # a part of the sum may overflow where all of it does not
        case "rdiv":
            # The reciprocal overflows, or is no normal number.
            return 0 < abs(values[1]) < 1e-300 or abs(values[1]) > 1e300
        case "pow":
            return root(*values)  # NumPy takes the root: of -0 that is -0, of -inf nan
        case _:
            return False


def allowed(row: Op, found: float, expected: float) -> bool:
    """Two roundings, as torch has, where NumPy has one."""
    return row.name in ("rdiv", "rsqrt") and abs(found - expected) <= 2 * np.spacing(abs(expected))


@pytest.mark.parametrize("row", ROWS, ids=names(ROWS))
def test_c_spelling_has_its_numpy_meaning(row: Op, library: Any) -> None:
    call = library[f"row_{row.name}"]
    call.restype = C_TYPES[row.result][1]
    call.argtypes = [C_TYPES[type_][1] for type_ in row.operands]
    for values in samples(row):
        if not excluded(row, values):
            found, expected = call(*values), meaning(row, values)
            close = agree(row, values, found, expected) or allowed(row, found, expected)
            assert close, message(row, values, found, expected)
