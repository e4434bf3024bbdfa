"""The checkout itself: nothing machine-specific, scripts that run, pins that agree."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]

# Absolute only: a folder of such a name below another one, or in a web address, does not count.
MACHINE_PATH = re.compile(r"(?<![\w.~$})-])/(home|root|work|Users)/")


def tracked_files() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, text=True, capture_output=True, check=True
    )
    return [ROOT / name for name in listing.stdout.split("\0") if name]


def test_no_tracked_file_names_a_path_of_one_machine() -> None:
    files = tracked_files()
    assert files
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        if path.is_file()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1)
        if MACHINE_PATH.search(line)
    ]
    assert not found, "\n".join(found)


def test_pattern_of_machine_paths() -> None:
    home = "/" + "home/"  # in two parts, so that this file passes the test above
    assert MACHINE_PATH.search(f"open('{home}someone/data')")
    assert not MACHINE_PATH.search(f"$ROOT{home}data")
    assert not MACHINE_PATH.search(f"https://example.org{home}index.html")


@pytest.mark.parametrize(("script", "shell"), [("dev", "sh"), (".ci/run", "bash")])
def test_script_is_executable_and_parses(script: str, shell: str) -> None:
    path = ROOT / script
    assert os.access(path, os.X_OK)
    subprocess.run([shell, "-n", path], check=True)


def test_constraints_pin_versions_that_the_project_allows() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    requirements = [Requirement(line) for group in groups for line in group]

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert {pin.name for pin in pins} == {"torch", "triton"}
    for pin in pins:
        (specifier,) = pin.specifier
        assert specifier.operator == "=="
        ranges = [item.specifier for item in requirements if item.name == pin.name]
        assert ranges
        assert all(specifier.version in allowed for allowed in ranges)
