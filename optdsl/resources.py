"""Where the templates and the shipped specs are: beside the package in a wheel, above it in a
checkout (an editable install loses mapped folders)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


@cache
def templates() -> Path:
    return _find("templates")


@cache
def specs() -> Path:
    return _find("specs")


def routines() -> tuple[str, ...]:
    """The names of the hand-written updates that a spec can name."""
    return tuple(sorted(path.stem for path in (templates() / "routines").glob("*.py")))


def files_of(folder: Path) -> tuple[Path, ...]:
    """The files below a folder, without what Python and tools leave there, in a fixed order."""
    ignored = {"__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"}
    return tuple(
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not ignored & set(path.relative_to(folder).parts)
    )


def checkout() -> Path | None:
    """The root of the repository this compiler runs from, if it does."""
    root = PACKAGE.parent
    return root if (root / "templates").is_dir() and (root / "specs").is_dir() else None


def _find(folder: str) -> Path:
    for place in (PACKAGE / f"_{folder}", PACKAGE.parent / folder):
        if place.is_dir():
            return place
    raise FileNotFoundError(f"The installation is incomplete: it has no '{folder}' folder.")
