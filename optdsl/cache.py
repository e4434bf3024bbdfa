"""Remember what a build made, so that an unchanged one is answered without compiling.

A record lies in the user's cache folder, never in the output. It holds a fingerprint of everything
that the output depends on, and what the output looked like. Standard library only: reading it must
not cost the time it saves.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from optdsl import resources


def folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "optdsl"


def fingerprint(specs: Sequence[Path], output: Path, command: str) -> str:
    """A digest of specs, templates, compiler, command and place of the output."""
    digest = hashlib.sha256()
    digest.update(f"{output.resolve()}\0{command}\0{Path.cwd()}\0".encode())
    for path in _inputs(specs):
        content = path.read_bytes()
        digest.update(f"{path.resolve()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _inputs(specs: Sequence[Path]) -> Iterable[Path]:
    roots = (resources.PACKAGE, resources.templates(), resources.specs())
    for root in roots:
        yield from resources.files_of(root)
    for path in specs:
        yield from sorted(path.rglob("*.opt")) if path.is_dir() else [path]


def _look(output: Path) -> list[list[object]]:
    """The output's files with size and time of change: cheap, and changes with every edit."""
    found: list[list[object]] = []
    for path in resources.files_of(output):
        status = path.stat()
        found.append([str(path.relative_to(output)), status.st_size, status.st_mtime_ns])
    return found


def _record(output: Path) -> Path:
    return folder() / (hashlib.sha256(str(output.resolve()).encode()).hexdigest()[:32] + ".json")


def is_fresh(key: str, output: Path) -> bool:
    """Whether the output is what a build with this fingerprint left."""
    try:
        record = json.loads(_record(output).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(record.get("key") == key and record.get("files") == _look(output))


def remember(key: str, output: Path) -> None:
    """Record a finished build. A cache that cannot be written is done without."""
    record = _record(output)
    temporary = record.with_suffix(f".{os.getpid()}")
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"key": key, "files": _look(output)}), encoding="utf-8")
        os.replace(temporary, record)
    except OSError:
        return
