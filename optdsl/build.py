"""Library -> the files of a package: plan them, write them, check them."""

from __future__ import annotations

import difflib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from keyword import iskeyword
from pathlib import Path, PurePosixPath

from optdsl import resources
from optdsl.emit import header, is_ours, python_path, render
from optdsl.ir import Average, Schedule, Spec, Unit
from optdsl.pipeline import Library
from optdsl.runtime import (
    AVERAGE,
    AVERAGE_RUNTIME,
    FROM_TORCH,
    OPTIMIZER_RUNTIME,
    RUNTIME,
    SCHEDULE,
    SCHEDULE_RUNTIME,
    UNLISTED,
)
from optdsl.source import Source
from optdsl.targets import TARGETS, layout, section
from optdsl.targets.imports import with_imports

Plan = Mapping[PurePosixPath, str]
SCHEDULES = "lr_scheduler"
AVERAGES = "swa_utils"
# What needs a subfolder of the runtime; the rest of it serves optimizers and averages.
USERS: dict[str, set[type[Unit]]] = {SCHEDULES: {Schedule}, AVERAGES: {Average}}


class BuildError(Exception):
    """The output cannot be written: a sentence for the user."""


@dataclass(frozen=True, slots=True)
class Export:
    """A public name of the package and the module that defines it."""

    name: str
    module: str


@dataclass(frozen=True, slots=True)
class PackageView:
    """The fields of `templates/package.py.jinja`."""

    summary: str
    exports: tuple[Export, ...]
    imports: tuple[Export, ...]
    subpackages: tuple[str, ...]
    subpackage_tuple: str
    origin: str
    from_torch: tuple[str, ...]
    from_torch_tuple: str
    public: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Drift:
    """How an output folder differs from its plan."""

    stale: tuple[PurePosixPath, ...]
    missing: tuple[PurePosixPath, ...]
    orphaned: tuple[PurePosixPath, ...]
    diff: str

    def __bool__(self) -> bool:
        return bool(self.stale or self.missing or self.orphaned)


@dataclass(frozen=True, slots=True)
class Written:
    """What a write did."""

    changed: int
    unchanged: int
    removed: int
    foreign: tuple[PurePosixPath, ...]


def plan(library: Library, command: str) -> Plan:
    """The whole package as text, sorted by path. `command` is what rebuilds it, for the headers."""
    files: dict[PurePosixPath, str] = {}
    optimizers = [u for u in library.units if isinstance(u, Spec)]
    modules = {u.name: f".{u.name.lower()}" for u in optimizers}
    modules |= {f"_{u.routine}": "." for u in optimizers if u.routine}
    for unit in library.units:
        files.update(_unit_files(unit, command, modules))
    files.update(_package_files(library, command))
    files.update(_runtime_files(library, command))
    return dict(sorted(files.items()))


def _unit_files(unit: Unit, command: str, modules: Mapping[str, str]) -> dict[PurePosixPath, str]:
    """The files of a definition; `modules` says where the classes of the package are."""
    sections: dict[PurePosixPath, list[str]] = {}
    for target in TARGETS:
        if target.path is None:
            continue
        text = section(target, unit)
        if text is not None:
            sections.setdefault(target.path(unit), []).append(text)
    shared = {Spec: RUNTIME, Schedule: SCHEDULE, Average: AVERAGE}[type(unit)]
    texts = {path: "".join(parts) for path, parts in sections.items()}
    return {
        path: header([unit.source], command, path)
        + (with_imports(text, modules, shared) if path.suffix == ".py" else text)
        for path, text in texts.items()
    }


def _package_files(library: Library, command: str) -> dict[PurePosixPath, str]:
    """The `__init__` modules, which import an algorithm when it is first asked for."""
    optimizers = [u for u in library.units if isinstance(u, Spec)]
    schedules = [u for u in library.units if isinstance(u, Schedule)]
    averages = [u for u in library.units if isinstance(u, Average)]
    folders: tuple[tuple[str, Sequence[Unit]], ...] = ((SCHEDULES, schedules), (AVERAGES, averages))
    subpackages = tuple(name for name, units in folders if units)
    start, typed = PurePosixPath("__init__.py"), PurePosixPath("py.typed")
    sources = [u.source for u in library.units]
    summary = "Optimizers, learning-rate schedules and averages of models."
    exports = (OPTIMIZER_RUNTIME if optimizers else {}) | _exports(optimizers)
    view = _package(summary, exports, "torch.optim", subpackages)
    text = layout.module(render("package.py.jinja", view))
    files = {
        start: header(sources, command, start) + text,
        typed: header(sources, command, typed),
    }
    if schedules:
        exports = SCHEDULE_RUNTIME | _exports(schedules)
        view = _package("Learning-rate schedules.", exports, "torch.optim.lr_scheduler")
        text = layout.module(render("package.py.jinja", view))
        path = python_path(SCHEDULES, "__init__")
        files[path] = header([u.source for u in schedules], command, path) + text
    if averages:
        swalr = {s.name: f".{SCHEDULES}.swalr" for s in schedules if s.name == "SWALR"}
        exports = AVERAGE_RUNTIME | swalr | _exports(averages)
        view = _package("Averages of models.", exports, "torch.optim.swa_utils")
        text = layout.module(render("package.py.jinja", view))
        path = python_path(AVERAGES, "__init__")
        files[path] = header([u.source for u in averages], command, path) + text
    return files


def _exports(units: Sequence[Unit]) -> dict[str, str]:
    return {unit.name: unit.name.lower() for unit in units}


def _package(
    summary: str, modules: Mapping[str, str], origin: str, subpackages: tuple[str, ...] = ()
) -> PackageView:
    """A package of names and their modules, in the place of the module `origin` of torch."""
    from_torch = tuple(n for n in FROM_TORCH[origin] if n not in (*modules, *subpackages))
    exports = tuple(Export(name, modules[name]) for name in sorted(modules, key=_export_order))
    imports = tuple(sorted(exports, key=lambda e: e.module))
    listed = (*modules, *subpackages, *(n for n in from_torch if n not in UNLISTED))
    public = tuple(sorted(listed, key=_export_order))
    return PackageView(
        summary, exports, imports, subpackages, _tuple(subpackages), origin, from_torch,
        _tuple(from_torch), public,
    )  # fmt: skip


def _tuple(names: tuple[str, ...]) -> str:
    return repr(names).replace("'", '"')


def _export_order(name: str) -> tuple[bool, bool, str]:
    """Names in capitals first, then classes: the order in which linters want `__all__`."""
    return not name.isupper(), name.islower(), name


def _runtime_files(library: Library, command: str) -> dict[PurePosixPath, str]:
    """What algorithms share: plain modules, taken over as they are."""
    folder = resources.templates() / "package"
    wanted = {type(unit) for unit in library.units}
    files: dict[PurePosixPath, str] = {}
    for routine in sorted({u.routine for u in library.units if isinstance(u, Spec) and u.routine}):
        source = f"routines/{routine}.py"
        text = (resources.templates() / source).read_text(encoding="utf-8")
        name = python_path(f"_{routine}")
        files[name] = header([Source(f"templates/{source}", text)], command, name) + text
    for path in resources.files_of(folder):
        name = PurePosixPath(path.relative_to(folder).as_posix())
        if wanted & USERS.get(name.parts[0], {Spec, Average}):
            text = path.read_text(encoding="utf-8")
            files[name] = header([Source(f"templates/package/{name}", text)], command, name) + text
    return files


def existing(output: Path) -> dict[PurePosixPath, Path]:
    """The files of an output folder, without what Python and tools leave there."""
    return {PurePosixPath(p.relative_to(output).as_posix()): p for p in resources.files_of(output)}


def check(planned: Plan, output: Path) -> Drift:
    """Compare an output folder with its plan, in both directions."""
    found = existing(output) if output.is_dir() else {}
    texts = {name: path.read_bytes() for name, path in found.items()}
    stale = tuple(n for n, t in planned.items() if n in texts and texts[n] != t.encode())
    diff = ""
    if stale:
        name = stale[0]
        old = texts[name].decode(errors="replace").splitlines(keepends=True)
        new = planned[name].splitlines(keepends=True)
        lines = list(difflib.unified_diff(old, new, f"{name} (found)", f"{name} (planned)", n=1))
        diff = "".join(lines[:20])
    return Drift(
        stale,
        tuple(n for n in planned if n not in found),
        tuple(n for n in found if n not in planned),
        diff,
    )


def write(planned: Plan, output: Path) -> Written:
    """Bring an output folder to its plan. All new text is on the disk before the first file is
    replaced, and a failure after that is undone: the package stays as it was. Raises BuildError."""
    refuse_foreign(output)
    found = existing(output) if output.is_dir() else {}
    old = {name: path.read_bytes() for name, path in found.items()}
    changed = {n: t.encode() for n, t in planned.items() if old.get(n) != t.encode()}
    orphans = [n for n in found if n not in planned]
    ours = [n for n in orphans if is_ours(old[n].decode(errors="replace"))]
    created = not output.exists()
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".optdsl-", dir=output) as staging:
            _replace(output, Path(staging), changed, ours)
    except OSError as error:
        if created:
            shutil.rmtree(output, ignore_errors=True)
        else:
            _restore(output, {n: old.get(n) for n in (*changed, *ours)})
        raise BuildError(f"'{output}' cannot be written: {error.strerror}.") from None
    _remove_empty_folders(output, ours)
    foreign = tuple(n for n in orphans if n not in ours)
    return Written(len(changed), len(planned) - len(changed), len(ours), foreign)


def _replace(
    output: Path,
    staging: Path,
    changed: Mapping[PurePosixPath, bytes],
    removed: Sequence[PurePosixPath],
) -> None:
    for number, content in enumerate(changed.values()):
        (staging / str(number)).write_bytes(content)
    for number, name in enumerate(changed):
        target = output / name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(staging / str(number), target)
    for name in removed:
        (output / name).unlink()


def _restore(output: Path, before: Mapping[PurePosixPath, bytes | None]) -> None:
    """Put files back as they were; those that were not there go."""
    for name, content in before.items():
        path = output / name
        with suppress(OSError):
            if content is None:
                path.unlink(missing_ok=True)
            elif not path.is_file() or path.read_bytes() != content:
                path.write_bytes(content)


def _remove_empty_folders(output: Path, removed: Sequence[PurePosixPath]) -> None:
    for folder in {output / name.parent for name in removed} - {output}:
        shutil.rmtree(folder / "__pycache__", ignore_errors=True)
        with suppress(OSError):  # it is not empty
            folder.rmdir()


def refuse_foreign(output: Path) -> None:
    """Never write into a folder that somebody else made. Raises BuildError."""
    name = output.resolve().name
    if not name.isidentifier() or iskeyword(name):
        raise BuildError(
            f"'{name}' cannot be imported: a package's name is letters, digits and '_', and not a "
            "word of Python's."
        )
    if output.exists() and not output.is_dir():
        raise BuildError(f"'{output}' is a file. Choose another folder with -o.")
    if not output.is_dir() or not any(output.iterdir()):
        return
    start = output / "__init__.py"
    if not start.is_file() or not is_ours(start.read_text(encoding="utf-8", errors="replace")):
        raise BuildError(
            f"'{output}' holds files that optdsl did not write. Choose another folder with -o."
        )
