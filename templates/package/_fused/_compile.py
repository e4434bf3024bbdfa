"""C kernels -> functions: compiled by the system's compiler when first used, kept in a folder.

A library is named after a hash of everything it follows from: none is ever out of date, and any may
be deleted at any time. It is written under another name and renamed when it is whole: whoever is
killed, and however many processes compile at once, the folder stays sound.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

# Where the sources are: a file for each algorithm, and the headers that they share.
SOURCES = Path(__file__).resolve().parent.parent / "_c"
COMPILERS = ("gcc", "cc", "clang")
# Products and sums become one operation only where the source says so.
FLAGS = (
    *("-std=gnu11", "-O2", "-ftree-vectorize", "-fPIC"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)
# A library that is linked without an OpenMP takes torch's, which is in the process. Where that is
# of another kind than the compiler's, or the compiler has none, kernels run on one thread.
THREADING = ("-fopenmp", "-fopenmp-simd")
SECONDS = 600
# The end of a library that is whole: to load a part of one would kill the process.
WHOLE = b"\0optdsl: whole"
STAGING = ".staging-"
STAGING_HOURS = 24

# A kernel, called with a pointer to its arguments.
Function = Callable[[Any], None]


class Unavailable(Exception):
    """Why there is no kernel: sentences for the user, with what helps."""


@dataclass(frozen=True)
class Kernel:
    """A file of `SOURCES`, named without its ending, and what its constants are. One that calls
    Python keeps Python's lock."""

    name: str
    constants: tuple[tuple[str, str], ...]
    calls_python: bool = False


@dataclass(frozen=True)
class Built:
    """What a build ahead of time did: kernels and runs of the compiler."""

    folder: Path
    compiled: int
    present: int
    runs: int


_lock = threading.RLock()
_known: dict[Kernel, Function | Unavailable] = {}


def _after_fork() -> None:
    """A thread that held the lock is not in the child."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def load(kernel: Kernel) -> Function:
    """A kernel's function: this process has it already, or the folder, or it is compiled.

    Raises:
        Unavailable: it cannot be had. That is remembered, and said at each call.
    """
    with _lock:
        found = _known.get(kernel)
        if found is None:
            try:
                found = _loaded(kernel)
            except Unavailable as reason:
                found = reason
            _known[kernel] = found
    if isinstance(found, Unavailable):
        raise found
    return found


def has_source(name: str) -> bool:
    """Whether there are C kernels of an algorithm."""
    return (SOURCES / f"{name}.c").is_file()


def build(kernels: Sequence[Kernel]) -> Built:
    """Compile those kernels that the folder lacks, in one run of the compiler for each core.

    Raises:
        Unavailable: the compiler fails, or nothing can be kept in the folder.
    """
    place = folder()
    if place is None:
        raise Unavailable(_not_kept(None, NO_HOME))
    refusal = _refusal(place, create=True)
    if refusal:
        raise Unavailable(_not_kept(place, refusal))
    wanted = list(dict.fromkeys(kernels))
    missing = [k for k in wanted if not _is_whole(_library(k, place))]
    runs = min(len(missing), os.cpu_count() or 1)
    try:
        with ThreadPoolExecutor(max(runs, 1)) as pool:
            for _ in pool.map(_keep, [missing[i::runs] for i in range(runs)], [place] * runs):
                pass
    except OSError as error:
        raise Unavailable(_not_kept(place, _said(error))) from None
    return Built(place, len(missing), len(wanted) - len(missing), runs)


def _loaded(kernel: Kernel) -> Function:
    if not hasattr(os, "getuid"):
        raise Unavailable(f"C kernels are not supported on {sys.platform}.")
    place = folder()
    refusal = NO_HOME if place is None else _refusal(place, create=False)
    if place is not None and not refusal:
        library = _library(kernel, place)
        if _is_whole(library):
            with suppress(OSError):  # of another system: it is compiled anew
                return _function(library, kernel)
        compiler()
        refusal = _refusal(place, create=True)
        try:
            if not refusal:
                _keep([kernel], place)
                return _function(library, kernel)
        except (OSError, Unavailable) as error:
            refusal = _said(error)
    try:
        # The process keeps what it has loaded when the file is gone.
        with _staging(None) as staging:
            function = _function(_compiled([kernel], staging), kernel)
    except OSError as error:
        raise Unavailable(f"A C kernel cannot be compiled: {_said(error)}.") from None
    _warn(f"{_not_kept(place, refusal)} Until then every process compiles them anew.")
    return function


# The folder

NO_HOME = "there is no home folder"


def folder() -> Path | None:
    """Where libraries are kept: OPTDSL_CACHE, or a place in the user's cache folder."""
    given = os.environ.get("OPTDSL_CACHE")
    if given:
        return Path(given).absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return base / "optdsl" / "kernels" if base.is_absolute() else None


def _refusal(place: Path, create: bool) -> str:
    """Why nothing is kept in a folder, empty if it is: whoever may write to it could run code
    here."""
    try:
        if create:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = place.stat()
    except OSError as error:
        is_absent = isinstance(error, FileNotFoundError) and not create
        return "" if is_absent else _said(error)
    if status.st_uid not in (os.getuid(), 0):
        return "it belongs to another user"
    return "others may write to it" if status.st_mode & 0o022 else ""


def _not_kept(place: Path | None, why: str) -> str:
    where = "" if place is None else f" in '{place}'"
    return (
        f"Compiled kernels cannot be kept{where}: {why}. "
        "Set OPTDSL_CACHE to a folder that you alone can write to."
    )


def _said(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).rstrip(".")


@contextmanager
def _staging(parent: Path | None) -> Iterator[Path]:
    """A folder for one build: in `parent`, where its files can be renamed, or the system's."""
    with tempfile.TemporaryDirectory(
        prefix=STAGING, dir=parent, ignore_cleanup_errors=True
    ) as name:
        yield Path(name)


def _sweep(place: Path) -> None:
    """Remove what killed builds have left."""
    for left in place.glob(f"{STAGING}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > STAGING_HOURS * 3600:
                shutil.rmtree(left)


def _keep(kernels: Sequence[Kernel], place: Path) -> None:
    """Compile kernels into one library, which the folder then has under the name of each."""
    _sweep(place)
    with _staging(place) as staging:
        library = _compiled(kernels, staging)
        with library.open("ab") as file:
            file.write(WHOLE)
            file.flush()
            os.fsync(file.fileno())  # a disk may say only now that it is full
        library.chmod(0o644)
        for kernel in kernels:
            name = _library(kernel, staging)
            os.link(library, name)
            os.replace(name, _library(kernel, place))


def _library(kernel: Kernel, place: Path) -> Path:
    return place / f"{_key(kernel)}.so"


def _is_whole(library: Path) -> bool:
    try:
        with library.open("rb") as file:
            file.seek(-len(WHOLE), os.SEEK_END)
            return file.read() == WHOLE
    except OSError:
        return False


def _function(library: Path, kernel: Kernel) -> Function:
    """Raises OSError where the library does not fit the process."""
    try:
        opened = ctypes.PyDLL if kernel.calls_python else ctypes.CDLL
        function = opened(str(library))[_symbol(kernel)]
    except AttributeError as error:
        raise OSError(str(error)) from None
    function.restype = None
    return function


# The compiler


def compiler() -> list[str]:
    """The words of the compiler's command: CC, or the first that is installed.

    Raises:
        Unavailable: there is none.
    """
    given = shlex.split(os.environ.get("CC", ""))
    found = given or [name for name in COMPILERS if shutil.which(name)][:1]
    if not found or shutil.which(found[0]) is None:
        what = f"the C compiler '{found[0]}', which CC asks for" if found else "a C compiler"
        raise Unavailable(
            f"There is no kernel without {what}. Install gcc, or compile ahead of time where it is "
            "installed (`optdsl build --compile`) and set OPTDSL_CACHE to what that fills."
        )
    return found


def options() -> tuple[str, ...]:
    """What every kernel is compiled with, besides its constants and one of `THREADING`."""
    return (*FLAGS, *_machine(), f"-I{SOURCES}")


def _compiled(kernels: Sequence[Kernel], staging: Path) -> Path:
    """A library with kernels, which this process can load.

    Raises:
        Unavailable: the compiler or the linker fails.
        OSError: files cannot be written, or the library cannot be loaded.
    """
    library, names = staging / "kernels.so", []
    for number, kernel in enumerate(kernels):
        constants = (("KERNEL", _symbol(kernel)), *kernel.constants)
        lines = [*(f"#define {n} {v}" for n, v in constants), f'#include "{kernel.name}.c"', ""]
        names.append(f"{number}.c")
        (staging / names[-1]).write_text("\n".join(lines), encoding="utf-8")
    objects = [name.replace(".c", ".o") for name in names]
    failures: list[Exception] = []
    for threads in THREADING:
        try:
            _run([*compiler(), *options(), threads, "-c", *names], staging)
            _run([*compiler(), "-shared", *objects, "-o", library.name, "-lm"], staging)
            ctypes.CDLL(str(library))
            return library
        except (OSError, Unavailable) as failure:
            failures.append(failure)
    raise failures[0]


def _run(command: Sequence[str], place: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, cwd=place, env=environment, stdin=subprocess.DEVNULL, timeout=SECONDS,
            capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Unavailable(f"'{command[0]}' has not compiled a kernel in {SECONDS} s.") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        what = (said or done.stderr.splitlines() or [f"exit status {done.returncode}"])[0]
        raise Unavailable(
            f"'{command[0]}' cannot compile a kernel: {what.strip()}. Set CC to another compiler."
        )


# What a library follows from


def _symbol(kernel: Kernel) -> str:
    return f"update_{_key(kernel)}"


@cache
def _key(kernel: Kernel) -> str:
    """The compiler's version is not a part of it: a machine without one can use what another has
    compiled."""
    parts = [
        (SOURCES / f"{kernel.name}.c").read_text(encoding="utf-8"),
        *(header.read_text(encoding="utf-8") for header in sorted(SOURCES.glob("*.h"))),
        *(f"{name} {value}" for name, value in kernel.constants),
        *FLAGS,
        *_machine(),
        *(sys.platform, platform.machine(), _processor(), os.environ.get("CC", "")),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _architecture() -> str:
    """What libraries are compiled for: this machine, or what OPTDSL_MARCH says."""
    return os.environ.get("OPTDSL_MARCH") or "native"


def _machine() -> tuple[str, ...]:
    match platform.machine().lower():
        case "x86_64" | "amd64":
            return f"-march={_architecture()}", "-mprefer-vector-width=512"
        case "aarch64" | "arm64":
            return (f"-mcpu={_architecture()}",)
        case _:
            return ()


@cache
def _processor() -> str:
    """What this machine's processor can do: machines that share a folder may differ in it."""
    if _architecture() != "native":
        return ""
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()


@cache
def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=2)
