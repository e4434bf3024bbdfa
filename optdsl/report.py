"""Kernels of a generated package -> their registers, spills and vector accesses, without a GPU.

    python -m optdsl.report [adam ...] [--arch sm_90 | sm_80 | gfx942] [--package generated]
                            [--dtypes float32 ...]

Triton carries the assemblers and disassemblers of every target it knows.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

# What parameters, gradients and slots are stored in.
DTYPES = {
    "float64": ("float64", "float64", "float64"),
    "float32": ("float32", "float32", "float32"),
    "bfloat16": ("bfloat16", "bfloat16", "bfloat16"),
    "bfloat16 + float32 slots": ("bfloat16", "bfloat16", "float32"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One compiled kernel. Loads and stores are instructions of 128 bits; `spilled` counts bytes,
    for AMD registers."""

    kernel: str
    options: str
    dtypes: str
    registers: int
    spilled: int
    shared: int
    loads128: int
    stores128: int


def report(
    names: Sequence[str], arch: str, package: str, dtypes: Sequence[str] = tuple(DTYPES)
) -> tuple[Row, ...]:
    """Compile in a process and a cache of its own: one that has interpreted kernels cannot compile,
    and an old cache hides errors."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        environment |= {"TRITON_CACHE_DIR": cache, "PYTHONPATH": os.pathsep.join(sys.path)}
        options = ["--arch", arch, "--package", package, "--json", "--dtypes", *dtypes]
        done = subprocess.run(
            [sys.executable, "-m", "optdsl.report", *names, *options],
            env=environment, stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
    return tuple(Row(**row) for row in json.loads(done.stdout))


def compile_all(
    names: Sequence[str], arch: str, package: str, all_dtypes: Sequence[str]
) -> Iterator[Row]:
    """Every kernel in every specialisation, compiled in this process."""
    fused = importlib.import_module(f"{package}._fused")
    folder = Path(importlib.import_module(f"{package}._triton").__file__ or "").parent
    found = sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_"))
    for name in names or found:
        kernels = importlib.import_module(f"{package}._triton.{name}")
        for dtypes in all_dtypes:
            for flags in _flags(kernels):
                chosen = [flag for flag, value in flags.items() if value]
                constants = {**_types(kernels, dtypes, fused.BLOCK), **flags}
                yield Row(
                    f"{name}.update",
                    ", ".join(chosen).lower(),
                    dtypes,
                    **_measure(kernels.update, constants, arch, fused.THREADS),
                )
        yield Row(f"{name}.prologue", "", "", **_measure(kernels.prologue, {}, arch, fused.THREADS))


def _flags(kernels: Any) -> Iterator[dict[str, bool]]:
    names = [f"HAS_{slot.upper()}" for slot in kernels.OPTIONAL_SLOTS]
    names += [option.upper() for option in kernels.OPTIONS]
    for values in itertools.product((False, True), repeat=len(names)):
        yield dict(zip(names, values, strict=True))


def _types(kernels: Any, dtypes: str, block: int) -> dict[str, Any]:
    tl = kernels.tl
    param, grad, slot = (getattr(tl, name) for name in DTYPES[dtypes])
    smallest = min(t.primitive_bitwidth for t in (param, grad, slot)) // 8
    return {
        "COMPUTE": tl.float64 if param == tl.float64 else tl.float32,
        "PARAM_TYPE": param,
        "GRAD_TYPE": grad,
        **{f"{name.upper()}_TYPE": slot for name in kernels.SLOTS},
        "GRAD_SCALE": None,
        "FOUND_INF": None,
        "MAXIMIZE": False,
        "VECTOR": 16 // smallest,
        "BLOCK": block,
    }


SIGNATURE = {
    "TENSORS": "*i64",
    "CHUNKS": "*i32",
    "GIVEN": "*fp64",
    "TABLE": "*fp64",
    "COUNT": "i32",
}


def _measure(kernel: Any, constants: dict[str, Any], arch: str, threads: int) -> dict[str, int]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={n: "constexpr" if n in constants else SIGNATURE[n] for n in names},
        constexprs={(names.index(n),): value for n, value in constants.items()},
        # The allocator's own alignment, as the launcher finds it.
        attrs={
            (i,): [["tt.divisibility", 16]]
            for i, n in enumerate(names)
            if n not in constants and SIGNATURE[n].startswith("*")
        },
    )
    capability = re.fullmatch(r"sm_(\d+)", arch)
    target = GPUTarget("cuda", int(capability[1]), 32) if capability else GPUTarget("hip", arch, 64)
    options = {"num_warps": threads // target.warp_size, "enable_fp_fusion": False}
    compiled = triton.compile(source, target=target, options=options)
    counts = _nvidia(compiled, int(capability[1])) if capability else _amd(compiled)
    return {**counts, "shared": compiled.metadata.shared}


def _nvidia(compiled: Any, capability: int) -> dict[str, int]:
    import triton
    from triton.backends.nvidia.compiler import get_ptxas

    name = f"sm_{capability}a" if capability >= 90 else f"sm_{capability}"
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        ptx.write_text(compiled.asm["ptx"])
        cubin.write_bytes(compiled.asm["cubin"])
        assembler = [get_ptxas(capability).path, "-v", "--fmad=false", "--gpu-name", name]
        assembler += [ptx, "-o", "/dev/null"]
        said = subprocess.run(assembler, capture_output=True, text=True, check=True).stderr
        objdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        sass = subprocess.run(
            [objdump, "-sass", cubin], capture_output=True, text=True, check=True
        ).stdout
    return {
        "registers": _number(r"Used (\d+) registers", said),
        "spilled": _number(r"(\d+) bytes spill stores", said)
        + _number(r"(\d+) bytes spill loads", said),
        "loads128": sass.count("LDG.E.128"),
        "stores128": sass.count("STG.E.128"),
    }


def _amd(compiled: Any) -> dict[str, int]:
    text = compiled.asm["amdgcn"]
    return {
        "registers": _number(r"\.vgpr_count:\s*(\d+)", text),
        "spilled": _number(r"\.vgpr_spill_count:\s*(\d+)", text),
        "loads128": len(re.findall(r"(?:buffer|global)_load_dwordx4", text)),
        "stores128": len(re.findall(r"(?:buffer|global)_store_dwordx4", text)),
    }


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, f"no {pattern!r} in the assembler's output"
    return int(found[1])


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text."""
    heads = [field.name for field in fields(Row)]
    cells = [heads, *([str(value) for value in asdict(row).values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in cells)
    return "\n".join(line.rstrip() for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m optdsl.report", description=__doc__)
    parser.add_argument("names", nargs="*", help="modules of kernels; by default all")
    parser.add_argument("--arch", default="sm_90", help="sm_90, sm_80, gfx942, ...")
    parser.add_argument("--package", default="generated", help="the package that holds them")
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, default=tuple(DTYPES), help="by default all"
    )
    parser.add_argument("--json", action="store_true", help="compile in this process, print JSON")
    chosen = parser.parse_args(arguments)
    if chosen.json:
        rows = compile_all(chosen.names, chosen.arch, chosen.package, chosen.dtypes)
        print(json.dumps([asdict(row) for row in rows]))
        return
    print(table(report(chosen.names, chosen.arch, chosen.package, chosen.dtypes)))


if __name__ == "__main__":
    main()
