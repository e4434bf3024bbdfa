"""A wheel and an editable install both carry a working compiler and the generated package."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

SPEC = """\
optimizer HeavyBall {
    doc "Heavy ball: gradient descent along a decaying sum of the gradients."

    hyper  lr       = 0.1  require lr >= 0        else "Invalid learning rate: {lr}"
    hyper  momentum = 0.5  require momentum >= 0  else "Invalid momentum value: {momentum}"
    ...

    state velocity = zeros_like(param)

    update {
        velocity = momentum * velocity + grad
        descend lr * velocity
    }
}
"""

# The first step has length lr, the second lr * (1 + momentum).
USE_SPEC = """
import sys, torch
from my_optim import HeavyBall

param = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
optimizer = HeavyBall([param], lr=0.1, momentum=0.5)
for _ in range(2):
    param.grad = torch.ones(2)
    optimizer.step()
torch.testing.assert_close(param.detach(), torch.tensor([0.75, -2.25]))
assert "optdsl" not in sys.modules, "what the compiler writes must stand alone"
"""

USE_GENERATED = """
import torch, generated

param = torch.nn.Parameter(torch.ones(3))
optimizer = generated.Adam([param], lr=0.1)
schedule = generated.lr_scheduler.CosineAnnealingLR(optimizer, T_max=2)
param.grad = torch.ones(3)
optimizer.step()
schedule.step()
torch.testing.assert_close(param.detach(), torch.full((3,), 0.9))
assert abs(schedule.get_last_lr()[0] - 0.05) < 1e-9
print(generated.__file__)
"""


def run(*arguments: str | Path, cwd: Path, path: Path | None = None) -> str:
    """Run this Python with only `path` on PYTHONPATH and return what it prints."""
    environment = os.environ | {"PYTHONPATH": str(path or "")}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, text=True, capture_output=True
    )
    assert done.returncode == 0, f"{arguments} failed:\n{done.stdout}{done.stderr}"
    return done.stdout


def files_below(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel made from a source distribution, so that both are known to be complete."""
    folder = tmp_path_factory.mktemp("wheel")
    run("-m", "hatchling", "build", "--target", "sdist", "--directory", folder, cwd=ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    run("-m", "pip", "wheel", *offline, "--wheel-dir", folder, sdist, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel_path(wheel: Path) -> Path:
    """The folder that the wheel is installed into."""
    target = wheel.parent / "target"
    install = ("install", "--quiet", "--no-deps", "--no-index", "--target", target)
    run("-m", "pip", *install, wheel, cwd=wheel.parent)
    return target


@pytest.fixture(scope="module")
def editable_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that an editable install puts on the module search path: all that it does."""
    folder = tmp_path_factory.mktemp("editable")
    build = "import sys, hatchling.build; hatchling.build.build_editable(sys.argv[1])"
    run("-c", build, folder, cwd=ROOT)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (pth,) = [name for name in archive.namelist() if name.endswith(".pth")]
        return Path(archive.read(pth).decode().strip())


@pytest.fixture(params=["wheel_path", "editable_path"])
def install_path(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def test_wheel_holds_exactly_the_package_its_resources_and_generated(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    held = {name for name in names if not name.split("/")[0].endswith(".dist-info")}

    sources = {
        "optdsl/": ROOT / "optdsl",
        "optdsl/_templates/": ROOT / "templates",
        "optdsl/_specs/": ROOT / "specs",
        "generated/": ROOT / "generated",
    }
    assert held == {
        prefix + name for prefix, folder in sources.items() for name in files_below(folder)
    }
    assert "optdsl/grammar.lark" in held
    assert "generated/__init__.py" in held
    assert any(name.startswith("optdsl/_templates/") for name in held)
    assert any(name.startswith("optdsl/_specs/optimizers/") for name in held)
    assert any(name.startswith("optdsl/_specs/schedules/") for name in held)


def test_editable_install_points_at_the_checkout(editable_path: Path) -> None:
    assert editable_path == ROOT


def test_generated_package_trains(install_path: Path, tmp_path: Path) -> None:
    imported = run("-c", USE_GENERATED, cwd=tmp_path, path=install_path).strip()
    assert Path(imported) == install_path / "generated" / "__init__.py"


def test_compiler_builds_a_users_spec(install_path: Path, tmp_path: Path) -> None:
    where = run("-c", "import optdsl; print(optdsl.__file__)", cwd=tmp_path, path=install_path)
    assert Path(where.strip()) == install_path / "optdsl" / "__init__.py"

    specs = tmp_path / "my_specs"
    specs.mkdir()
    (specs / "heavy_ball.opt").write_text(SPEC)
    run("-m", "optdsl", "build", "my_specs", "-o", "my_optim", cwd=tmp_path, path=install_path)
    assert (tmp_path / "my_optim" / "__init__.py").is_file()

    run("-c", USE_SPEC, cwd=tmp_path)  # `-c` finds my_optim in the current directory
