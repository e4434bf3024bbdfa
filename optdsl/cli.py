"""The command line: build, check, show, plot."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar

import typer

# Heavy parts are imported where they are used: an unchanged build needs none of them.
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from optdsl.diagnostics import Diagnostic
    from optdsl.ir import Unit
    from optdsl.pipeline import Library

T = TypeVar("T")

app = typer.Typer(
    help="A compiler from optimizer specs to PyTorch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# In the repository of optdsl itself; elsewhere -o is required.
DEFAULT_OUTPUT = Path("generated")
DEFAULT_PICTURE = Path("schedules.svg")

Specs = Annotated[list[Path], typer.Argument(help="Spec files, or folders of them.")]


@app.command()
def build(
    specs: Specs,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The package's folder. Default here: generated."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Compare only; exit 1 if a build would change files.")
    ] = False,
    compile_kernels: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Then compile the C kernels that training most often needs, ahead of time, into "
            "the folder that OPTDSL_CACHE names, or the user's cache.",
        ),
    ] = False,
) -> None:
    """Compile specs to a Python package."""
    if check and compile_kernels:
        _fail("Give --check or --compile, not both.")
    folder = output or _default_output()
    _build(specs, folder, check)
    if compile_kernels:
        _compile_kernels(folder)


def _build(specs: Sequence[Path], folder: Path, check: bool) -> None:
    from optdsl import cache

    command = _command(specs, folder)
    _require_specs(specs)
    if not check:
        key = cache.fingerprint(specs, folder, command)
        if cache.is_fresh(key, folder):
            typer.echo(f"{folder}: up to date.")
            return
    from optdsl.build import BuildError, plan, write
    from optdsl.build import check as compare

    library = _load(specs)
    planned = _compiled(lambda: plan(library, command))
    if check:
        drift = compare(planned, folder)
        for word, names in (
            ("stale", drift.stale), ("missing", drift.missing), ("orphaned", drift.orphaned),
        ):  # fmt: skip
            for name in names:
                typer.echo(f"{word}: {folder / name}")
        if drift:
            typer.echo(drift.diff, nl=False)
            _fail(f"{folder} is not what its specs say. To repair it: {command}")
        typer.echo(f"{folder}: {len(planned)} files as planned.")
        return
    try:
        written = write(planned, folder)
    except BuildError as error:
        _fail(str(error))
    for name in written.foreign:
        typer.echo(f"note: {folder / name} is not from a spec; left as it is.", err=True)
    cache.remember(key, folder)
    typer.echo(
        f"{folder}: {_count(len(library.units), 'definition')}, "
        f"{_count(written.changed, 'file')} written, {written.unchanged} unchanged, "
        f"{written.removed} removed."
    )


def _compile_kernels(folder: Path) -> None:
    """The package does it itself, in a process that has imported nothing else."""
    import os
    import subprocess
    import sys

    if not (folder / "_fused").is_dir():
        _fail(f"{folder} has no optimizers or averages, and so no kernels.")
    paths = [str(folder.resolve().parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", f"{folder.resolve().name}._fused"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        _fail(done.stderr.strip())
    typer.echo(done.stdout, nl=False)


@app.command("check")
def check_specs(specs: Specs) -> None:
    """Report what is wrong with specs, and write nothing."""
    from optdsl.build import plan

    _require_specs(specs)
    library = _load(specs)
    # Lowering finds what a target cannot do.
    _compiled(lambda: plan(library, ""))
    typer.echo(f"{_count(len(library.units), 'definition')} without errors.")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="An optimizer, a schedule or an average.")],
    after: Annotated[
        str | None, typer.Option(help="Show the update after this pass of the compiler.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Show what this target emits.")] = None,
    specs: Annotated[
        list[Path] | None, typer.Option(help="Where it is defined. Default: the shipped specs.")
    ] = None,
) -> None:
    """Show a definition: as written, after a pass, or as a target emits it."""
    from optdsl.diagnostics import did_you_mean
    from optdsl.pipeline import shipped_library

    library = _load(specs) if specs else shipped_library()
    unit = library.find(name)
    if unit is None:
        known = [u.name for u in library.units]
        hint = " ".join(did_you_mean(name, known)) or f"There are {', '.join(sorted(known))}."
        _fail(f"Unknown definition '{name}'. {hint}")
    if after is not None and target is not None:
        _fail("Give --after or --target, not both.")
    if target is not None:
        _show_target(unit, target)
    elif after is not None:
        _show_pass(unit, after)
    else:
        typer.echo(unit.source.text.rstrip("\n"))


@app.command()
def plot(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME",
            help="Schedules: a name, which takes the arguments of its spec's examples, or a call "
            "such as 'StepLR(step_size=30)'.",
        ),
    ],
    steps: Annotated[int | None, typer.Option(help="How many epochs.")] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The picture: .svg or .png.")
    ] = DEFAULT_PICTURE,
    specs: Annotated[
        list[Path] | None, typer.Option(help="Where they are defined. Default: the shipped specs.")
    ] = None,
) -> None:
    """Draw the rates of schedules over the epochs."""
    from optdsl.pipeline import shipped_library
    from optdsl.plot import STEPS, PlotError, check_file, curves, draw, save

    try:
        check_file(output)
        library = _load(specs) if specs else shipped_library()
        shown = curves(library, names, steps=STEPS if steps is None else steps)
        save(draw(shown), output)
    except PlotError as error:
        _fail(str(error))
    for curve in shown:
        if curve.end:
            typer.echo(f"note: {curve.schedule.name} ends early. {curve.end}", err=True)
    typer.echo(f"{output}: {', '.join(dict.fromkeys(c.schedule.name for c in shown))}.")


def _show_target(unit: Unit, name: str) -> None:
    from optdsl.targets import TARGETS, section

    fitting = [t for t in TARGETS if isinstance(unit, t.unit)]
    chosen = next((t for t in fitting if t.name == name), None)
    if chosen is None:
        _fail(f"Unknown target '{name}'. There are {', '.join(t.name for t in fitting)}.")
    text = _compiled(lambda: section(chosen, unit))
    if text is None:
        _fail(f"'{unit.name}' inherits its '{name}' section from its base.")
    typer.echo(text.strip("\n"))


def _show_pass(unit: Unit, name: str) -> None:
    from optdsl.ir import Spec
    from optdsl.passes import KERNEL_PASSES, PASSES
    from optdsl.printing import show_spec

    if not isinstance(unit, Spec):
        _fail("Passes are for optimizers.")
    spec = unit
    names = [rewrite.__name__ for rewrite in (*PASSES, *KERNEL_PASSES)]
    if name not in names:
        _fail(f"Unknown pass '{name}'. There are, in order: {', '.join(names)}.")
    for rewrite in (*PASSES, *KERNEL_PASSES)[: names.index(name) + 1]:
        spec = rewrite(spec)
    typer.echo(show_spec(spec))


def _default_output() -> Path:
    """`generated` in this repository; elsewhere the user says where."""
    from optdsl import resources

    root = resources.checkout()
    if root is None or Path.cwd().resolve() != root:
        _fail("Say where to write the package: -o my_package.")
    return DEFAULT_OUTPUT


def _command(specs: Sequence[Path], output: Path) -> str:
    """What rebuilds a package, for its headers: without the path of this machine."""
    words = ["optdsl", "build", *(_relative(path) for path in specs)]
    default = output == DEFAULT_OUTPUT
    return shlex.join(words if default else [*words, "-o", _relative(output)])


def _relative(path: Path) -> str:
    if not path.is_absolute():
        return path.as_posix()
    below = path.is_relative_to(Path.cwd())
    return path.relative_to(Path.cwd()).as_posix() if below else path.name


def _require_specs(specs: Sequence[Path]) -> None:
    """Missing files are reported before anything else is imported."""
    if all(path.exists() for path in specs):
        return
    from optdsl.diagnostics import SpecError
    from optdsl.pipeline import find_specs

    try:
        find_specs(specs)
    except SpecError as error:
        _report(error.diagnostics)
        raise typer.Exit(1) from None


def _load(specs: Sequence[Path]) -> Library:
    from optdsl.pipeline import load

    library = _compiled(lambda: load(specs))
    _report(library.warnings)
    return library


def _compiled(work: Callable[[], T]) -> T:
    """A stage's result, or its diagnostics and exit status 1."""
    from optdsl.diagnostics import SpecError

    try:
        return work()
    except SpecError as error:
        _report(error.diagnostics)
        _fail(f"{_count(len(error.diagnostics), 'problem')} found.")


def _report(diagnostics: Iterable[Diagnostic]) -> None:
    from rich.console import Console

    from optdsl.diagnostics import render

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for diagnostic in diagnostics:
        console.print(render(diagnostic))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _fail(message: str) -> NoReturn:
    typer.echo(f"optdsl: {message}", err=True)
    raise typer.Exit(1)


def main() -> None:
    try:
        app()
    except OSError as error:
        # What the file system refuses: a full disk, a folder that was deleted.
        raise SystemExit(f"optdsl: {error}") from None
    except RuntimeError as error:
        if "Symlink loop" not in str(error):  # pathlib's word for it before Python 3.13
            raise
        raise SystemExit(f"optdsl: {error}") from None
