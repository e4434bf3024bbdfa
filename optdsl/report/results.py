"""What a long run has found, kept in a file as it comes: a run that was stopped goes on from there.
And what it has found as a table.

The file has a line of JSON for each result, with the key of what it is the result of. Lines are
only added, each in one write: several processes may share a file, and one that is killed loses the
result that it was at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Key = tuple[str, ...]
HEAD = "Spec sha256: "


def read(file: Path) -> dict[Key, Any]:
    """The results by their keys; of several for one key, the last. Half a line is no result."""
    found: dict[Key, Any] = {}
    if not file.exists():
        return found
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            given = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[tuple(given["key"])] = given["result"]
    return found


def add(file: Path, key: Key, result: Any) -> None:
    """Write a result down, on a line of its own. The file is made if it is not there, its folder is
    not."""
    line = json.dumps({"key": key, "result": result}).encode() + b"\n"
    with file.open("a+b", buffering=0) as kept:
        end = kept.tell()
        kept.seek(max(end - 1, 0))
        is_half = kept.read(1) not in (b"", b"\n")
        kept.write(b"\n" * is_half + line)


def digest(files: Iterable[Path], *words: object) -> str:
    """A short hash of sources and of words. The hash of its spec in a generated file does not
    count: it changes where the code does not."""
    parts = [str(word) for word in words]
    for file in files:
        lines = file.read_text(encoding="utf-8").splitlines()
        parts += [line for line in lines if HEAD not in line]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows as aligned text, with truths as words."""
    words = [heads, *([_word(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*words, strict=True)]
    lines = ("  ".join(w.ljust(n) for w, n in zip(r, widths, strict=True)) for r in words)
    return "\n".join(line.rstrip() for line in lines)


def _word(value: object) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)
