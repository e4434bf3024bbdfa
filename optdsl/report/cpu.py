"""C kernels -> whether the compiler made vector instructions of their loops."""

from __future__ import annotations

import importlib
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

from optdsl.report import results
from optdsl.report.stored import Storage, choices, constants, sampled, storages


@dataclass(frozen=True, slots=True)
class Row:
    """One compiled kernel: how many loops over elements became vector instructions, of how many
    bytes, and how many did not. A loop is copied for each combination of a kernel's conditions."""

    kernel: str
    options: str
    stored: str
    loops: int
    bytes: int
    scalar: int

    @property
    def is_fine(self) -> bool:
        return self.loops > 0 and not self.scalar


@dataclass(frozen=True, slots=True)
class Task:
    """A kernel and what it is specialised by."""

    name: str
    chosen: tuple[str, ...]
    stored: str


def report(
    package: str = "generated",
    names: Sequence[str] = (),
    *,
    stored: Sequence[str] = (),
    sample: int | None = None,
    jobs: int | None = None,
    kept: Path | None = None,
    minutes: float = math.inf,
) -> tuple[Row, ...]:
    """Compile kernels as the runtime does, and read what the compiler says about loops.

    Args:
        package: the name of the generated package.
        names: algorithms; by default all that have kernels.
        stored: names of `stored.storages`; by default all.
        sample: how many kernels, drawn with a fixed seed; by default all.
        jobs: how many processes; by default one per processor.
        kept: a file of rows, which are not made again as long as sources, options and the compiler
            are the same; it gets the others as they come. By default there is none.
        minutes: how long to begin with further kernels. Those that are left out have no row.

    Raises:
        CalledProcessError: a kernel does not compile.
        NotImplementedError: the compiler is not gcc, whose words are read here.
    """
    said = version(package)
    if "Free Software Foundation" not in said:
        raise NotImplementedError(f"The report reads what gcc says, not {said.splitlines()[0]}.")
    end = time.monotonic() + 60 * minutes
    kinds = storages(package)
    compiled_before = results.read(kept) if kept else {}

    def row(task: Task) -> Row | None:
        key = key_of(package, task, said)
        if key in compiled_before:
            return Row(*compiled_before[key])
        if time.monotonic() >= end:
            return None
        found = compiled(package, task, kinds[task.stored])
        if kept:
            results.add(kept, key, astuple(found))
        return found

    with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
        rows = pool.map(row, sampled(tasks(package, names, stored), sample))
        return tuple(row for row in rows if row is not None)


def tasks(package: str, names: Sequence[str], stored: Sequence[str]) -> Iterator[list[Task]]:
    """For each algorithm, every specialisation of its kernel."""
    for name in names or known(package):
        program = importlib.import_module(f"{package}._programs.{name}")
        kinds = stored or storages(package)
        yield [Task(name, chosen, kind) for kind in kinds for chosen in choices(program)]


def version(package: str) -> str:
    """What the compiler says that it is."""
    command = importlib.import_module(f"{package}._fused._compile").compiler()
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    return done.stdout


def flags(package: str) -> tuple[str, ...]:
    """What kernels are compiled with, but for folders and constants."""
    compilation = importlib.import_module(f"{package}._fused._compile")
    own = (option for option in compilation.options() if not option.startswith("-I"))
    return (*compilation.compiler(), *own, compilation.THREADING[0])


def key_of(package: str, task: Task, version: str) -> results.Key:
    """What a kernel is, and what its row follows from."""
    folder: Path = importlib.import_module(f"{package}._fused._compile").SOURCES
    files = [folder / f"{task.name}.c", *sorted(folder.glob("*.h"))]
    follows = results.digest(files, version, *flags(package))
    return task.name, ", ".join(task.chosen), task.stored, "cpu", follows


def known(package: str) -> list[str]:
    """The algorithms that have C kernels."""
    folder: Path = importlib.import_module(f"{package}._fused._compile").SOURCES
    return sorted(p.stem for p in folder.glob("*.c") if not p.stem.startswith("_"))


def compiled(package: str, task: Task, storage: Storage) -> Row:
    """What gcc says about the kernel's loops, each of which stands below a line of its own."""
    runtime = importlib.import_module(f"{package}._fused._cpu")
    compilation = importlib.import_module(f"{package}._fused._compile")
    program = importlib.import_module(f"{package}._programs.{task.name}")
    file: Path = compilation.SOURCES / f"{task.name}.c"
    spelled = runtime.spelled(constants(package, program, storage, task.chosen))
    command = [*compilation.compiler(), *compilation.options(), compilation.THREADING[0]]
    command += [f"-D{name}={value}" for name, value in (("KERNEL", "kernel"), *spelled)]
    command += ["-fopt-info-vec-all", "-S", str(file), "-o", os.devnull]
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        done.check_returncode()
    lines = file.read_text(encoding="utf-8").splitlines()
    loops = {n + 2 for n, line in enumerate(lines, start=1) if line.strip() == "SIMD"}
    verdict = r"optimized: loop vectorized using (\d+) byte|missed: couldn't vectorize loop"
    words = rf"^{re.escape(str(file))}:(\d+):\d+: (?:{verdict})"
    found = [(int(n), size) for n, size in re.findall(words, done.stderr, re.MULTILINE)]
    vectors = [int(size) for n, size in found if n in loops and size]
    return Row(
        task.name,
        ", ".join(task.chosen),
        task.stored,
        loops=len(vectors),
        bytes=min(vectors, default=0),
        scalar=sum(n in loops and not size for n, size in found),
    )
