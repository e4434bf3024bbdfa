"""The optimizer that does next to nothing with as many tensors as another one: the limit for its
kernel. The same compiler makes it, so that it differs from others in the arithmetic alone."""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

PACKAGE = "null_optimizers"
MOST_SLOTS = 4


def spec(slots: int) -> str:
    """Every tensor is read and written once. The arithmetic is two operations for each."""
    names = [f"s{index}" for index in range(slots)]
    lines = [f"    state {name} = zeros_like(param)" for name in names]
    lines += ["    update {"]
    lines += [f"        {name} += lr * grad" for name in names]
    lines += ["        descend lr * grad", "    }"]
    head = [f"optimizer Null{slots} {{", "    hyper lr = 1e-6"]
    return "\n".join([*head, *lines, "}", ""])


@contextmanager
def package() -> Iterator[Path]:
    """The folder that has a package with Null0, Null1, ...: the number is that of the slots. It is
    gone afterwards."""
    # The compiler needs packages that a machine for measuring may not have.
    from optdsl.build import plan, write
    from optdsl.pipeline import load

    with tempfile.TemporaryDirectory(prefix="null-") as folder:
        specs = []
        for slots in range(MOST_SLOTS + 1):
            specs.append(Path(folder, f"null{slots}.opt"))
            specs[-1].write_text(spec(slots), encoding="utf-8")
        write(plan(load(specs), "python -m benchmarks.null"), Path(folder, PACKAGE))
        yield Path(folder)


@contextmanager
def imported(folder: Path | None) -> Iterator[ModuleType | None]:
    """The package in a folder, None without one. It is forgotten afterwards."""
    if folder is None:
        yield None
        return
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module(PACKAGE)
    finally:
        sys.path.remove(str(folder))
        for name in [n for n in sys.modules if n.partition(".")[0] == PACKAGE]:
            del sys.modules[name]
