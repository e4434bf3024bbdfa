"""What a benchmark ran on, and what else ran there."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

import torch

import generated
from benchmarks.timing import Measure, by_wall, quartiles, rounded
from generated._fused import _compile

# Shares of the processors' time: other processes, and what a host takes from a virtual machine.
QUIET = 0.05
# What a stream reads and writes: more than caches hold, in some milliseconds.
STREAMED = 2**27
# Memory that moves less than this part of what it moved at its best is slow.
SLOW = 0.85
PACKAGES = ("torch", "triton", "numpy")


def machine() -> dict[str, Any]:
    """The processor, memory and accelerators, as far as the system says."""
    found: dict[str, Any] = {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": os.cpu_count(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "memory": _field("/proc/meminfo", "MemTotal"),
        "huge pages": _text("/sys/kernel/mm/transparent_hugepage/enabled"),
    }
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(torch.cuda.current_device())
        found["gpu"] = device.name
        found["gpu memory"] = f"{device.total_memory / 2**30:.0f} GiB"
        found["multiprocessors"] = device.multi_processor_count
    return found


def versions() -> dict[str, str]:
    """Of all that a step's time follows from; of the package itself a hash."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    found["torch"] = torch.__version__
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    found["compiler"] = _compiler()
    found["package"] = _hash(Path(generated.__file__).parent)
    return found


def _compiler() -> str:
    """The one that makes the package's kernels."""
    try:
        command = [*_compile.compiler(), "--version"]
        return subprocess.run(command, capture_output=True, text=True).stdout.partition("\n")[0]
    except (OSError, _compile.Unavailable):
        return "absent"


def _hash(folder: Path) -> str:
    files = sorted(file for kind in ("*.py", "*.c", "*.h") for file in folder.rglob(kind))
    parts = (p for f in files for p in (str(f.relative_to(folder)).encode(), f.read_bytes()))
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def settings() -> dict[str, Any]:
    """What a process takes from its environment and decides how many threads work."""
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "THP_MEM_ALLOC_ENABLE", "TRITON_INTERPRET")
    given = {name: os.environ[name] for name in names if name in os.environ}
    return {"threads": torch.get_num_threads(), **given}


def copy_bandwidth(measure: Measure, device: str, size: int) -> dict[str, float]:
    """Bytes read and written in a second by torch's copy of `size` bytes: the quartiles."""
    source = torch.zeros(size // 4, device=device)
    target = torch.empty_like(source)
    times = [measure(lambda: target.copy_(source)) for _ in range(23)][3:]
    return quartiles([2 * size / t.get("device", t["wall"]) for t in times])


class Stream:
    """How fast memory is now and then: on a virtual machine that changes from minute to minute, and
    where it is slow all kernels take as long."""

    def __init__(self, size: int = STREAMED) -> None:
        self.tensor = torch.zeros(size // 4)
        self.found: list[float] = []

    def look(self) -> None:
        # The fastest of three: threads may have to wake up.
        times = [by_wall(lambda: self.tensor.add_(1))["wall"] for _ in range(3)]
        self.found.append(2 * self.tensor.nbytes / min(times))

    def seen(self) -> float:
        """The bytes in a second, read and written, that all threads have updated in place: the
        median of all looks."""
        return rounded(statistics.median(self.found))


def slowed(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows of results during which memory was slow."""
    best = max((row.get("stream", 0.0) for row in rows), default=0.0)
    return [row for row in rows if row.get("stream", inf) < SLOW * best]


class Watch:
    """Who else used the processors since this was made: a machine that is not idle gives times that
    are not its own."""

    def __init__(self) -> None:
        self.load = load()
        self.start = self._now()

    def seen(self) -> dict[str, Any]:
        """The load before, the share of the processors' time that went to `others` and was
        `stolen` by the host since, and whether that makes the machine `busy`. Where the system
        tells nothing, its load before decides."""
        found: dict[str, Any] = {"load before": self.load}
        now = self._now()
        if self.start and now:
            passed = {key: now[key] - self.start[key] for key in now}
            capacity = max(1e-9, passed["wall"] * (os.cpu_count() or 1))
            found["others"] = rounded(max(0.0, passed["busy"] - passed["own"]) / capacity, 2)
            found["stolen"] = rounded(passed["stolen"] / capacity, 2)
            found["busy"] = found["others"] > QUIET or found["stolen"] > QUIET
        else:
            found["busy"] = self.load is not None and self.load > 0.5
        return found

    @staticmethod
    def _now() -> Mapping[str, float]:
        line = _text("/proc/stat").partition("\n")[0].split()
        if line[:1] != ["cpu"]:
            return {}
        user, nice, system, _, _, interrupts, soft, stolen = (int(n) for n in line[1:9])
        tick = os.sysconf("SC_CLK_TCK")
        own = os.times()
        return {
            "wall": time.monotonic(),
            "busy": (user + nice + system + interrupts + soft) / tick,
            "stolen": stolen / tick,
            # Children count once they have ended, and then with all of their time.
            "own": own.user + own.system + own.children_user + own.children_system,
        }


def load() -> float | None:
    """Processes that ran or wanted to, on average over a minute."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return None


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _field(path: str, name: str) -> str:
    for line in _text(path).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
