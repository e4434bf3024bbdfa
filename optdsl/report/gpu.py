"""Triton kernels -> what they take on GPUs that need not be here: registers, spills, accesses.

Triton carries the assemblers and disassemblers of every target it knows.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import math
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from optdsl.report import results
from optdsl.report.stored import choices, constants, sampled, storages

ARCHITECTURES = ("sm_80", "sm_90", "gfx942")
# The widest access of a thread, in bytes.
WIDEST = 16


@dataclass(frozen=True, slots=True)
class Row:
    """One compiled kernel. `spilled` counts bytes, for AMD registers; `loads128` and `stores128`
    instructions. `wide`: every access to aligned tensors is as wide as can be."""

    kernel: str
    options: str
    stored: str
    arch: str
    registers: int
    spilled: int
    shared: int
    loads128: int
    stores128: int
    wide: bool

    @property
    def is_fine(self) -> bool:
        return self.wide and not self.spilled


def report(
    package: str = "generated",
    names: Sequence[str] = (),
    *,
    archs: Sequence[str] = ARCHITECTURES,
    stored: Sequence[str] = (),
    sample: int | None = None,
    jobs: int | None = None,
    kept: Path | None = None,
    minutes: float = math.inf,
) -> tuple[Row, ...]:
    """Compile kernels in processes and a cache of their own: a process that has interpreted kernels
    cannot compile, and an old cache hides errors.

    Args:
        package: the name of the generated package.
        names: modules of kernels; by default all.
        archs: GPUs: `sm_90`, `gfx942`.
        stored: names of `stored.storages`; by default all.
        sample: how many kernels, drawn with a fixed seed so that every module has one before any
            has two; by default all.
        jobs: how many processes; by default one per processor.
        kept: a file of rows, which are not made again as long as the kernel's source, its block and
            Triton are the same; it gets the others as they come. By default there is none.
        minutes: how long to begin with further kernels. Those that are left out have no row.

    Raises:
        CalledProcessError: a kernel does not compile. What the compiler said is on stderr.
    """
    jobs = jobs or os.cpu_count() or 1
    end = time.monotonic() + 60 * minutes
    asked = json.dumps(
        [package, list(names), list(archs), list(stored), sample, str(kept or ""), end]
    )
    with tempfile.TemporaryDirectory() as cache:
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        environment |= {"TRITON_CACHE_DIR": cache, "PYTHONPATH": os.pathsep.join(sys.path)}
        # What the assembler says in the run that makes the binary.
        environment |= {"TRITON_DUMP_PTXAS_LOG": "1", "TRITON_ALWAYS_COMPILE": "1"}
        commands = [
            [sys.executable, "-m", "optdsl.report.gpu", asked, str(part), str(jobs)]
            for part in range(jobs)
        ]
        workers = [
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
            for command in commands
        ]
        said = [worker.communicate()[0] for worker in workers]
    for worker in workers:
        if worker.returncode:
            raise subprocess.CalledProcessError(worker.returncode, worker.args)
    found = sorted((index, row) for text in said for index, row in json.loads(text))
    return tuple(Row(*row) for _, row in found)


# What there is to compile


@dataclass(frozen=True, slots=True)
class Task:
    """A kernel and what it is specialised by. `stored` is empty where it sees no elements; where
    gradients are `scaled`, it undoes a GradScaler's factor and maximises."""

    module: str
    kernel: str
    chosen: tuple[str, ...]
    scaled: bool
    stored: str
    arch: str


def tasks(
    package: str, names: Sequence[str], archs: Sequence[str], stored: Sequence[str]
) -> Iterator[list[Task]]:
    """For each module, every specialisation of its kernels, for every GPU. Scaled gradients are
    tried where nothing else is special."""
    folder = Path(importlib.import_module(f"{package}._triton").__file__ or "").parent
    known = sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_"))
    kinds = storages(package)
    plain = [
        k for k, s in kinds.items() if (s.param, "nearest", "nearest") == (s.slot, *s.roundings)
    ]
    for name in names or known:
        module = importlib.import_module(f"{package}._triton.{name}")
        program = importlib.import_module(f"{package}._programs.{name}")
        yield [
            Task(name, kernel, chosen, scaled, kind, arch)
            for arch in archs
            for kernel, function in kernels(module).items()
            for kind in (stored or kinds if PARAM in function.arg_names else [""])
            for chosen in (choices(program) if kind else [()])
            for scaled in ((False, True) if kind in plain else (False,))
        ]


def kernels(module: Any) -> dict[str, Any]:
    """What the runtime launches. Functions that others call begin with an underscore."""
    from triton.runtime import JITFunction

    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, JITFunction) and not name.startswith("_")
    }


# Compiling

PARAM = "PARAM_TYPE"
# Arguments that are None where there is nothing to undo, and where nothing is rounded at random.
SCALES = ("GRAD_SCALE", "FOUND_INF")
DRAW = "DRAW"
SIGNATURE = {
    "TENSORS": "*i64",
    "CHUNKS": "*i32",
    "GIVEN": "*fp64",
    "TABLE": "*fp64",
    "COUNT": "i32",
    "GRAD_SCALE": "*fp32",
    "FOUND_INF": "*fp32",
    "DRAW": "*i64",
    "PARTIAL": "*fp64",
    "REDUCED": "*fp64",
}


def compiled(package: str, task: Task) -> Row:
    import triton.language as tl

    runtime = importlib.import_module(f"{package}._fused._triton")
    program = importlib.import_module(f"{package}._programs.{task.module}")
    kernel = kernels(importlib.import_module(f"{package}._triton.{task.module}"))[task.kernel]
    known: dict[str, Any] = {"BLOCK": runtime.BLOCK}
    absent = set(SCALES) if not task.scaled else set()
    if task.stored:
        storage = storages(package)[task.stored]
        given = constants(package, program, storage, task.chosen)
        known = runtime.constants(tl, given, task.scaled)
        absent |= set() if storage.is_random else {DRAW}
    known |= dict.fromkeys(absent)
    return Row(
        *named(task),
        **_measure(
            kernel,
            tuple((name, known[name]) for name in kernel.arg_names if name in known),
            task.arch,
            runtime.THREADS,
        ),
    )


@cache
def _measure(
    kernel: Any, given: tuple[tuple[str, Any], ...], arch: str, threads: int
) -> dict[str, Any]:
    """The same for all that a kernel does not see: some take few of the constants."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants, names = dict(given), kernel.arg_names
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
    with contextlib.redirect_stdout(io.StringIO()) as said:
        binary = triton.compile(source, target=target, options=options)
    counts = _nvidia(binary, said.getvalue()) if capability else _amd(binary)
    wide = "VECTOR" not in constants or _is_wide(binary, threads)
    return {**counts, "shared": binary.metadata.shared, "wide": wide}


# How a thread's accesses of so many bytes are written down.
WRITTEN = {
    16: (r"{}\.global(?:\.\w+)*\.(?:v4\.b32|v2\.b64)", r"(?:buffer|global)_{}_dwordx4"),
    8: (r"{}\.global(?:\.\w+)*\.(?:v2\.b32|v4\.b16)", r"(?:buffer|global)_{}_dwordx2"),
}
WORDS = {"load": ("ld", "load"), "store": ("st", "store")}


def _is_wide(binary: Any, threads: int) -> bool:
    """Whether there are as many wide accesses as blocks of elements ask for. Each block stands in
    the code twice: for aligned tensors, and for others."""
    assembly = binary.asm.get("ptx") or binary.asm["amdgcn"]
    language = 0 if "ptx" in binary.asm else 1
    for op, words in WORDS.items():
        blocks = re.findall(rf"tt\.{op} .*tensor<(\d+)x!tt\.ptr<b?[fi](\d+)>>", binary.asm["ttir"])
        shares = [int(count) * int(bits) // 8 // threads for count, bits in blocks]
        for size, patterns in WRITTEN.items():
            pattern = patterns[language].format(words[language])
            needed = sum(max(1, s // WIDEST) for s in shares if min(s, WIDEST) == size)
            if 2 * len(re.findall(pattern, assembly)) < needed:
                return False
    return True


def _nvidia(binary: Any, said: str) -> dict[str, int]:
    import triton

    objdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(binary.asm["cubin"])
        done = subprocess.run([objdump, "-sass", cubin], capture_output=True, text=True, check=True)
    return {
        "registers": _number(r"Used (\d+) registers", said),
        "spilled": _number(r"(\d+) bytes spill stores", said)
        + _number(r"(\d+) bytes spill loads", said),
        "loads128": done.stdout.count("LDG.E.128"),
        "stores128": done.stdout.count("STG.E.128"),
    }


def _amd(binary: Any) -> dict[str, int]:
    text = binary.asm["amdgcn"]
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


def work(asked: str, part: int, jobs: int) -> None:
    """Compile a part of what there is, and print the rows with their numbers."""
    package, names, archs, stored, sample, kept, end = json.loads(asked)
    found = sampled(tasks(package, names, archs, stored), sample)
    known = results.read(Path(kept)) if kept else {}
    rows = []
    mine = list(enumerate(found))[part::jobs]
    # By chance: whenever the run is stopped, it has seen something of all.
    for index, task in random.Random(0).sample(mine, len(mine)):
        key = key_of(package, task)
        if key not in known and time.monotonic() < end:
            known[key] = astuple(compiled(package, task))
            if kept:
                results.add(Path(kept), key, known[key])
        if key in known:
            rows.append((index, known[key]))
    print(json.dumps(rows))


def key_of(package: str, task: Task) -> results.Key:
    """What a kernel is, and what its row follows from."""
    import triton

    runtime = importlib.import_module(f"{package}._fused._triton")
    folder = Path(importlib.import_module(f"{package}._triton").__file__ or "").parent
    sources = (folder / f"{name}.py" for name in (task.module, "_math", "_precision"))
    follows = results.digest(sources, runtime.BLOCK, runtime.THREADS, triton.__version__)
    return (*named(task), follows)


def named(task: Task) -> tuple[str, str, str, str]:
    """The words of a row that say which kernel it is of."""
    words = (*task.chosen, *["scaled"] * task.scaled)
    return f"{task.module}.{task.kernel}", ", ".join(words), task.stored, task.arch


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
