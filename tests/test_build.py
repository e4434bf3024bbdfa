"""`optdsl build`, `check` and `show`: what is written, when, and what never is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import generated
from optdsl import build as builder
from optdsl import cache, cli, resources
from optdsl.emit import MARK
from optdsl.ir import Average, Schedule, Spec
from optdsl.passes import KERNEL_PASSES, PASSES
from optdsl.pipeline import load, shipped_library
from optdsl.targets import TARGETS, Target, section

ROOT = Path(__file__).resolve().parents[1]
SPECS = ROOT / "specs"

SPEC = """\
optimizer HeavyBall {
    hyper lr       = 0.1  require lr >= 0
    hyper momentum = 0.5
    state velocity = zeros_like(param)
    update {
        velocity = momentum * velocity + grad
        descend lr * velocity
    }
}
"""
SCHEDULE = "schedule Halving {\n    chain = lr / 2\n}\n"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: two specs in `mine`, the current directory."""
    monkeypatch.chdir(tmp_path)
    specs = tmp_path / "mine"
    specs.mkdir()
    (specs / "heavy_ball.opt").write_text(SPEC)
    (specs / "halving.opt").write_text(SCHEDULE)
    return tmp_path


@pytest.fixture
def package(project: Path) -> Path:
    """What `optdsl build mine -o out` makes."""
    assert run("build", "mine", "-o", "out").exit_code == 0
    return project / "out"


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def python(code: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tree(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def states(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file()}


# The plan


def test_plan_is_the_same_under_two_hash_seeds(tmp_path: Path) -> None:
    code = "from optdsl.cli import app; app({!r})".format(["build", str(SPECS), "-o", "out"])
    trees = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        python(code, folder, PYTHONHASHSEED=seed, XDG_CACHE_HOME=str(folder / "cache"))
        trees.append(tree(folder / "out"))
    assert trees[0] == trees[1]
    assert len(trees[0]) > 10


def test_plan_is_sorted_and_every_file_names_its_source() -> None:
    plan = builder.plan(shipped_library(), "optdsl build specs")
    assert list(plan) == sorted(plan)
    for path, text in plan.items():
        lines = text.splitlines()
        mark = "//" if path.suffix in (".c", ".h") else "#"
        assert lines[0].startswith(f"{mark} {MARK} from "), path
        assert lines[1] == f"{mark} To rebuild: optdsl build specs"
        assert lines[2].startswith(f"{mark} Spec sha256: ")
        assert str(ROOT) not in text


def test_generated_package_of_this_repository_is_up_to_date(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    result = run("build", "specs", "--check")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("command", [["format", "--check"], ["check"]], ids=" ".join)
def test_linter_accepts_generated_code_as_emitted(command: list[str], package: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", package.parent)
    package.rename(package.parent / "generated")
    for folder in (ROOT, package.parent):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "generated"],
            cwd=folder, text=True, capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


def test_generated_package_imports_without_the_compiler_and_without_triton(tmp_path: Path) -> None:
    code = f"""
import importlib, pkgutil, sys
sys.modules["optdsl"] = None
sys.modules["triton"] = None
sys.path.insert(0, {str(ROOT)!r})
import generated
for name in generated.__all__:
    assert getattr(generated, name) is not None
for name in generated.lr_scheduler.__all__:
    assert getattr(generated.lr_scheduler, name) is not None
for module in pkgutil.walk_packages(generated.__path__, "generated."):
    if "_triton." not in module.name:
        importlib.import_module(module.name)
print(sorted(m for m in sys.modules if m.startswith("optdsl")))
"""
    assert python(code, tmp_path, PYTHONPATH="").strip() == "['optdsl']"


def test_generated_package_imports_an_algorithm_when_it_is_asked_for(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import generated
print("torch" in sys.modules, "generated.adam" in sys.modules)
generated.Adam
print("torch" in sys.modules, "generated.adam" in sys.modules, "generated.sgd" in sys.modules)
"""
    assert python(code, tmp_path, PYTHONPATH="").split("\n")[:2] == [
        "False False", "True True False",
    ]  # fmt: skip


def test_generated_package_has_every_name_of_torch_optim() -> None:
    for name in torch.optim.__all__:
        assert getattr(generated, name) is not None
    assert generated.Optimizer is torch.optim.Optimizer
    for name in torch.optim.swa_utils.__all__:
        assert getattr(generated.swa_utils, name).__module__.startswith("generated.")
    with pytest.raises(AttributeError, match="no attribute 'Adma'"):
        _ = generated.Adma


def test_generated_schedules_have_every_name_of_torchs(tmp_path: Path) -> None:
    library, torchs = generated.lr_scheduler, torch.optim.lr_scheduler
    assert set(torchs.__all__) < set(library.__all__) <= set(dir(library))
    for name in library.__all__:
        assert getattr(library, name) is not None
    for name in ("LRScheduler", "_LRScheduler", "EPOCH_DEPRECATION_WARNING"):
        assert getattr(library, name) is getattr(torchs, name)
    for name in set(torchs.__all__) - {"LRScheduler"}:
        assert issubclass(getattr(library, name), torchs.LRScheduler)
        assert getattr(library, name).__module__.startswith("generated.lr_scheduler.")
    with pytest.raises(AttributeError, match="no attribute 'SetpLR'"):
        _ = library.SetpLR
    code = """
import sys
from generated import lr_scheduler
print("torch" in sys.modules)
from generated.lr_scheduler import *
print(SequentialLR.__module__, product.__module__, "generated.adam" in sys.modules)
"""
    assert python(code, tmp_path).split() == [
        "False", "generated.lr_scheduler._combine", "generated.lr_scheduler._function", "False",
    ]  # fmt: skip


# What is written


def test_build_writes_a_package_and_says_so(project: Path) -> None:
    result = run("build", "mine", "-o", "out")
    assert result.exit_code == 0
    assert "2 definitions" in result.output
    files = tree(project / "out")
    assert {"__init__.py", "heavyball.py", "lr_scheduler/halving.py", "py.typed"} <= set(files)
    assert all(MARK.encode() in content[:200] for content in files.values())


def test_package_without_schedules_has_no_subpackage_for_them(project: Path) -> None:
    (project / "mine" / "halving.opt").unlink()
    run("build", "mine", "-o", "out")
    assert not any(name.startswith("lr_scheduler") for name in tree(project / "out"))


def test_rebuild_writes_only_what_changed(package: Path) -> None:
    before = states(package)
    path = Path("mine/halving.opt")
    path.write_text(path.read_text().replace("/ 2", "/ 3"))
    assert run("build", "mine", "-o", "out").exit_code == 0
    changed = {name for name, time in states(package).items() if before.get(name) != time}
    names = {Path(name).relative_to(package).as_posix() for name in changed}
    # The `__init__` files carry the hash of all specs.
    assert "lr_scheduler/halving.py" in names
    assert "heavyball.py" not in names


def test_definition_that_is_gone_takes_its_files_with_it(package: Path) -> None:
    Path("mine/halving.opt").unlink()
    result = run("build", "mine", "-o", "out")
    assert result.exit_code == 0
    assert "removed" in result.output
    assert not (package / "lr_scheduler" / "halving.py").exists()
    assert run("build", "mine", "-o", "out", "--check").exit_code == 0


def test_files_of_other_people_in_the_package_are_left_alone_and_named(package: Path) -> None:
    foreign = package / "my_notes.py"
    foreign.write_text("# mine\n")
    result = run("build", "mine", "-o", "out")
    assert result.exit_code == 0
    assert "my_notes.py" in result.output
    assert foreign.read_text() == "# mine\n"


@pytest.mark.parametrize(("base", "decay"), [("Adam", "0"), ("AdamW", "0.01")])
def test_users_spec_that_extends_a_shipped_one_brings_it_along(
    base: str, decay: str, project: Path
) -> None:
    (project / "mine" / "mine.opt").write_text(
        f"optimizer Mine from {base} {{\n    default lr = 1\n    default betas = (0.8, 0.99)\n}}\n"
    )
    assert run("build", "mine", "-o", "out").exit_code == 0
    files = tree(project / "out")
    assert {"adam.py", f"{base.lower()}.py", "mine.py"} <= set(files)
    code = f"""
import torch, out
optimizer = out.Mine([torch.nn.Parameter(torch.ones(2))])
group = optimizer.param_groups[0]
assert isinstance(optimizer, out.{base}) and issubclass(out.{base}, out.Adam)
print(group["lr"], group["betas"], group["weight_decay"])
"""
    printed = python(code, project, PYTHONPATH=str(project))
    assert printed.strip() == f"1 (0.8, 0.99) {decay}"


def test_shipped_name_is_not_redefined(project: Path) -> None:
    (project / "mine" / "adam.opt").write_text(SPEC.replace("HeavyBall", "Adam"))
    result = run("build", "mine", "-o", "out")
    assert result.exit_code == 1
    assert "error[shadowed]: 'Adam' is the name of a shipped definition." in result.output


def test_copy_of_a_shipped_spec_may_be_built(project: Path) -> None:
    shutil.copy(SPECS / "optimizers" / "adam.opt", project / "mine")
    assert run("build", "mine", "-o", "out").exit_code == 0


# What never is


def break_spec() -> None:
    Path("mine/halving.opt").write_text("schedule Halving {\n    chain = lr / tow\n}\n")


def test_build_with_errors_leaves_the_package_as_it_was(package: Path) -> None:
    before = states(package)
    break_spec()
    result = run("build", "mine", "-o", "out")
    assert result.exit_code == 1
    assert "error[unknown-name]" in result.output
    assert "1 problem found." in result.output
    assert states(package) == before


def test_build_with_errors_makes_no_folder(project: Path) -> None:
    break_spec()
    assert run("build", "mine", "-o", "out").exit_code == 1
    assert not (project / "out").exists()


@pytest.mark.parametrize(
    ("function", "call"),
    [
        ("tempfile.mkdtemp", 1),
        ("pathlib.Path.write_bytes", 1),
        ("pathlib.Path.write_bytes", 3),
        ("os.replace", 1),
        ("os.replace", 2),
        ("os.replace", 3),
    ],
)
def test_failing_disk_leaves_the_package_as_it_was(
    function: str, call: int, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(package)
    for path in Path("mine").iterdir():
        path.write_text(path.read_text() + "# another hash\n")
    monkeypatch.setattr(cache, "remember", lambda *_: None)
    monkeypatch.setattr(function, failing(function, call))
    result = run("build", "mine", "-o", "out")
    monkeypatch.undo()
    assert result.exit_code == 1
    assert "out' cannot be written: No space left on device." in result.output
    assert tree(package) == before


def failing(name: str, call: int) -> Callable[..., object]:
    """A function that fails at its `call`-th call, and works before and after."""
    module, function = name.rsplit(".", 1)
    owner: object = {"os": os, "tempfile": __import__("tempfile"), "pathlib.Path": Path}[module]
    original, count = getattr(owner, function), 0

    def wrapper(*arguments: object, **keywords: object) -> object:
        nonlocal count
        count += 1
        if count == call:
            raise OSError(28, "No space left on device")
        return original(*arguments, **keywords)

    return wrapper


def test_failing_disk_leaves_no_new_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.replace", failing("os.replace", 2))
    result = run("build", "mine", "-o", "out")
    monkeypatch.undo()
    assert result.exit_code == 1
    assert not (project / "out").exists()


def test_folder_of_somebody_else_is_refused(project: Path) -> None:
    (project / "out").mkdir()
    (project / "out" / "thesis.txt").write_text("years of work")
    result = run("build", "mine", "-o", "out")
    assert result.exit_code == 1
    assert "'out' holds files that optdsl did not write. Choose another folder" in result.output
    assert tree(project / "out") == {"thesis.txt": b"years of work"}


def test_package_of_somebody_else_is_refused(project: Path) -> None:
    (project / "out").mkdir()
    (project / "out" / "__init__.py").write_text("import numpy\n")
    assert run("build", "mine", "-o", "out").exit_code == 1


def test_empty_folder_is_taken(project: Path) -> None:
    (project / "out").mkdir()
    assert run("build", "mine", "-o", "out").exit_code == 0


@pytest.mark.parametrize("name", ["my-package", "2fast", "a b"])
def test_package_that_could_not_be_imported_is_refused(name: str, project: Path) -> None:
    result = run("build", "mine", "-o", name)
    assert result.exit_code == 1
    assert f"'{name}' cannot be imported" in result.output
    assert not (project / name).exists()


@pytest.mark.parametrize("name", ["class", "lambda"])
def test_package_named_after_a_keyword_is_refused(name: str, project: Path) -> None:
    assert run("build", "mine", "-o", name).exit_code == 1


def test_output_that_is_a_file_is_refused(project: Path) -> None:
    (project / "out").write_text("hello")
    result = run("build", "mine", "-o", "out")
    assert result.exit_code == 1
    assert "'out' is a file. Choose another folder with -o." in result.output


def test_output_has_a_default_only_in_this_repository(project: Path) -> None:
    result = run("build", "mine")
    assert result.exit_code == 1
    assert "Say where to write the package: -o my_package." in result.output
    assert not (project / "generated").exists()


def test_missing_spec_is_reported_before_anything_is_written(project: Path) -> None:
    result = run("build", "mine", "elsewhere", "-o", "out")
    assert result.exit_code == 1
    assert "error[missing-file]: There is no file or folder 'elsewhere'." in result.output
    assert not (project / "out").exists()


# --check


def checked() -> Result:
    return run("build", "mine", "-o", "out", "--check")


def test_check_accepts_a_fresh_build_and_writes_nothing(package: Path) -> None:
    before = states(package)
    result = checked()
    assert result.exit_code == 0
    assert "as planned" in result.output
    assert states(package) == before


def test_check_names_every_file_in_which_a_byte_changed(package: Path) -> None:
    for name, content in tree(package).items():
        (package / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        result = checked()
        assert result.exit_code == 1
        assert f"stale: out/{name}" in result.output
        (package / name).write_bytes(content)
    assert checked().exit_code == 0


def test_check_names_a_missing_file(package: Path) -> None:
    (package / "heavyball.py").unlink()
    result = checked()
    assert result.exit_code == 1
    assert "missing: out/heavyball.py" in result.output


def test_check_names_an_added_file(package: Path) -> None:
    (package / "extra.py").write_text("\n")
    result = checked()
    assert result.exit_code == 1
    assert "orphaned: out/extra.py" in result.output


def test_check_sees_an_edited_spec_and_shows_what_would_change(package: Path) -> None:
    path = Path("mine/heavy_ball.opt")
    path.write_text(path.read_text().replace("0.5", "0.6"))
    result = checked()
    assert result.exit_code == 1
    assert "stale: out/heavyball.py" in result.output
    assert "To repair it: optdsl build mine -o out" in result.output


def test_check_of_a_folder_that_is_not_there_names_every_file(project: Path) -> None:
    result = checked()
    assert result.exit_code == 1
    assert "missing: out/__init__.py" in result.output
    assert not (project / "out").exists()


def test_check_ignores_what_python_and_tools_leave(package: Path) -> None:
    for name in ("__pycache__/x.pyc", ".mypy_cache/a.json", ".ruff_cache/b"):
        path = package / name
        path.parent.mkdir()
        path.write_bytes(b"\0")
    assert checked().exit_code == 0


# The cache


def test_unchanged_rebuild_is_answered_without_compiling(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr("optdsl.pipeline.load", refuse)
    result = run("build", "mine", "-o", "out")
    assert result.exit_code == 0
    assert result.output.strip() == "out: up to date."


@pytest.mark.parametrize(
    "change",
    [
        lambda: Path("mine/halving.opt").write_text(SCHEDULE.replace("2", "4")),
        lambda: Path("mine/new.opt").write_text(SPEC.replace("HeavyBall", "Other")),
        lambda: Path("mine/halving.opt").unlink(),
        lambda: Path("out/heavyball.py").unlink(),
        lambda: Path("out/heavyball.py").write_text("broken"),
        lambda: Path("out/__init__.py").write_bytes(Path("out/__init__.py").read_bytes() + b"#"),
    ],
    ids=["edited", "added", "removed", "output missing", "output edited", "output grown"],
)
def test_rebuild_after_any_change_repairs_the_package(
    change: Callable[[], object], package: Path
) -> None:
    change()
    result = run("build", "mine", "-o", "out")
    assert result.exit_code == 0, result.output
    assert "up to date" not in result.output
    assert checked().exit_code == 0


@pytest.mark.parametrize("where", ["cache/file", "/proc/nowhere"])
def test_cache_that_cannot_be_written_is_done_without(
    where: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(project / where))
    for _ in range(2):
        result = run("build", "mine", "-o", "out")
        assert result.exit_code == 0
        assert "definitions" in result.output


def test_cache_that_holds_nonsense_is_ignored(package: Path) -> None:
    for path in cache.folder().iterdir():
        path.write_text("{]")
    result = run("build", "mine", "-o", "out")
    assert result.exit_code == 0
    assert "2 definitions" in result.output


def test_cache_never_lies_in_the_output(package: Path) -> None:
    assert not [
        name for name in tree(package) if not name.endswith((".py", ".c", ".h", "py.typed"))
    ]


@pytest.mark.parametrize("times", [1, 2], ids=["a build", "an unchanged rebuild"])
def test_torch_is_not_imported_by(times: int, project: Path) -> None:
    code = """
import sys
from optdsl.cli import app
for _ in range({times}):
    for name in [m for m in sys.modules if m.startswith("optdsl") and m != "optdsl.cli"]:
        del sys.modules[name]
    try:
        app(["build", "mine", "-o", "out"])
    except SystemExit as end:
        assert not end.code
print(*(m in sys.modules for m in ("torch", "triton", "optdsl.pipeline", "jinja2", "lark")))
"""
    printed = python(code.replace("{times}", "1"), project).splitlines()
    assert printed[-1] == "False False True True True"
    if times == 2:
        printed = python(code.replace("{times}", "1"), project).splitlines()
        assert printed == ["out: up to date.", "False False False False False"]


# show


def test_show_gives_the_spec_as_written() -> None:
    text = (SPECS / "optimizers" / "lion.opt").read_text()
    assert run("show", "Lion").output == text


def test_show_of_a_users_spec(project: Path) -> None:
    assert run("show", "HeavyBall", "--specs", "mine").output == SPEC


@pytest.mark.parametrize("name", [p.__name__ for p in (*PASSES, *KERNEL_PASSES)])
def test_show_after_each_pass(name: str) -> None:
    result = run("show", "Adam", "--after", name)
    assert result.exit_code == 0
    assert "update {" in result.output
    kernel_passes = [p.__name__ for p in KERNEL_PASSES]
    assert ("scalars {" in result.output) == (name in kernel_passes)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_show_what_each_target_emits(target: Target) -> None:
    example = {Spec: "Adam", Schedule: "StepLR", Average: "EMA"}[target.unit]
    unit = shipped_library().find(example)
    assert unit is not None
    emitted = section(target, unit)
    assert emitted is not None
    result = run("show", unit.name, "--target", target.name)
    assert result.exit_code == 0
    assert result.output.strip("\n") == emitted.strip("\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Adma"], "Unknown definition 'Adma'. Did you mean 'Adam'?"),
        (["Zzz"], "Unknown definition 'Zzz'. There are "),
        (["Adam", "--after", "magic"], "Unknown pass 'magic'. There are, in order: name_totals"),
        (["Adam", "--target", "cobol"], "Unknown target 'cobol'. There are module, eager"),
        (["Adam", "--target", "eager", "--after", "contract"], "not both"),
        (["StepLR", "--after", "contract"], "Passes are for optimizers."),
        (["AdamW", "--target", "eager"], "'AdamW' inherits its 'eager' section from its base."),
    ],
)
def test_show_says_what_it_cannot_show(arguments: list[str], message: str) -> None:
    result = run("show", *arguments)
    assert result.exit_code == 1
    assert message in result.output


# check


def test_check_command_reports_without_writing(project: Path) -> None:
    assert "2 definitions without errors." in run("check", "mine").output
    break_spec()
    result = run("check", "mine")
    assert result.exit_code == 1
    assert sorted(p.name for p in project.iterdir()) == ["mine"]


def test_templates_and_specs_are_found_beside_or_above_the_package() -> None:
    assert (resources.templates() / "module.py.jinja").is_file()
    assert load([resources.specs()]).find("Adam") is not None
