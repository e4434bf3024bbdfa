"""From spec files to the text of a package.

    specs/adamw.opt --read--> Source --parse--> SyntaxTree --resolve--> Spec --PASSES--> Spec
                                                                  |--interpret--> arrays
                                                                  |--target.lower--> View
                                                                         --render--> text
                                             build.plan = {relative path: text} --write | check

| stage | function | errors |
| --- | --- | --- |
| read | `paths -> Sources` | missing files, not UTF-8 |
| parse | `Source -> SyntaxTree`, every node with its span | syntax, one per file |
| resolve | `SyntaxTrees -> Specs`: names, kinds, defaults | all of all files, raised together |
| optimise | `for rewrite in PASSES: spec = rewrite(spec)` | none |
| lower | `target.lower(spec) -> View` | not supported by this target |
| render | `render(template, view) -> str` | none: the contract is tested |
| plan | `plan(library) -> {path: text}`, the whole package | |
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from optdsl import resources
from optdsl.diagnostics import Code, Diagnostic, SpecError
from optdsl.ir import Average, Spec, Unit
from optdsl.parse import parse
from optdsl.resolve import needs, resolve
from optdsl.source import Source, display_name
from optdsl.syntax import SyntaxTree

SUFFIX = ".opt"


@dataclass(frozen=True, slots=True)
class Library:
    """The definitions of one build, bases first: the user's, and the shipped ones they extend."""

    units: tuple[Unit, ...]
    warnings: tuple[Diagnostic, ...]

    def find(self, name: str) -> Unit | None:
        return next((u for u in self.units if u.name == name), None)


def find_specs(paths: Iterable[Path]) -> tuple[Path, ...]:
    """The spec files that paths name: themselves, or all below a folder. Raises SpecError."""
    found: dict[Path, None] = {}
    problems: list[Diagnostic] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob(f"*{SUFFIX}") if p.is_file())
            if not inside:
                problems.append(
                    Diagnostic(
                        Code.NO_SPECS, f"No spec files in '{path}'.", display_name(path),
                        hints=(f"Spec files end in '{SUFFIX}'.",),
                    )
                )  # fmt: skip
            found.update(dict.fromkeys(inside))
        elif path.is_file():
            found[path] = None
        else:
            problems.append(
                Diagnostic(
                    Code.MISSING_FILE, f"There is no file or folder '{path}'.", display_name(path)
                )
            )
    if problems:
        raise SpecError(problems)
    # One file may be named twice, in two spellings.
    return tuple({path.resolve(): path for path in reversed(found)}.values())[::-1]


def read(path: Path) -> Source:
    """A file's text. Raises SpecError."""
    name = display_name(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(
            [
                Diagnostic(
                    Code.NOT_UTF8, f"Byte {error.start} of this file is not UTF-8.", name,
                    hints=("Save the file as UTF-8.",),
                )
            ]
        ) from None  # fmt: skip
    except OSError as error:
        message = f"This file cannot be read: {error.strerror}."
        raise SpecError([Diagnostic(Code.MISSING_FILE, message, name)]) from None
    return Source(name, text)


def front(paths: Sequence[Path]) -> tuple[SyntaxTree, ...]:
    """The syntax trees of spec files, all of them read first. Raises SpecError with every error."""
    trees: list[SyntaxTree] = []
    problems: list[Diagnostic] = []
    for path in paths:
        try:
            source = read(path)
            tree = parse(source)
        except SpecError as error:
            problems += error.diagnostics
            continue
        if not tree.definitions:
            problems.append(
                Diagnostic(
                    Code.EMPTY_FILE, "This file defines nothing.", source.name,
                    hints=("Begin with: optimizer Name { ... }; or with schedule, or average.",),
                )
            )  # fmt: skip
        trees.append(tree)
    if problems:
        raise SpecError(problems + list(_also_resolved(trees)))
    return tuple(trees)


def _also_resolved(trees: list[SyntaxTree]) -> tuple[Diagnostic, ...]:
    """The errors of the files that did parse: one run reports everything."""
    try:
        resolve(trees, _shipped(trees))
    except SpecError as error:
        # A base, or a schedule that is called, may be in a file that did not parse.
        missing = (Code.UNKNOWN_BASE, Code.UNKNOWN_FUNCTION)
        return tuple(d for d in error.diagnostics if d.code not in missing)
    return ()


def _shipped(trees: Sequence[SyntaxTree]) -> dict[str, Unit]:
    """The shipped definitions that are in scope for `from`: all but those that are being built."""
    given = {tree.span.source.text for tree in trees}
    folder = resources.specs()
    sources = [
        Source(f"shipped/{path.relative_to(folder).as_posix()}", path.read_text(encoding="utf-8"))
        for path in sorted(folder.rglob(f"*{SUFFIX}"))
    ]
    outside = [parse(source) for source in sources if source.text not in given]
    # A shipped definition may need one that is being built: then it cannot be in scope.
    built = {d.name.text for tree in trees for d in tree.definitions}
    while lost := [t for t in outside if any(needs(d) & built for d in t.definitions)]:
        built |= {d.name.text for t in lost for d in t.definitions}
        outside = [t for t in outside if t not in lost]
    units, _ = resolve(outside)
    return {unit.name: unit for unit in units}


def load(paths: Sequence[Path]) -> Library:
    """Everything that spec files define, with the shipped bases that they use. Raises SpecError."""
    trees = front(find_specs(paths))
    shipped = _shipped(trees)
    units, warnings = resolve(trees, shipped)
    bases: dict[str, Unit] = {}
    for unit in units:
        base = unit.base if isinstance(unit, Spec) else None
        while base is not None and base in shipped:
            ancestor = shipped[base]
            bases = {ancestor.name: ancestor, **bases}
            base = ancestor.base if isinstance(ancestor, Spec) else None
    if any(isinstance(unit, Average) for unit in units):
        # The averages of the functions that torch has, and of a model for which none is given.
        bases.update((name, shipped[name]) for name in ("EMA", "SWA") if name in shipped)
    return Library((*bases.values(), *units), warnings)


def shipped_library() -> Library:
    """What optdsl itself defines."""
    return Library(tuple(_shipped(()).values()), ())
