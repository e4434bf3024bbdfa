"""The documentation holds: its tables are the compiler's, its specs compile, its links resolve."""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from optdsl import build, pipeline
from optdsl.diagnostics import Code, SpecError
from tests import lines

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def fences(page: Path) -> Iterator[tuple[int, str, str]]:
    """The line, the words behind the backquotes, and the text of each fenced block."""
    whole = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(whole):
        yield whole.count("\n", 0, match.start()) + 1, match["info"], match["text"]


def blocks(words: str) -> list[Any]:
    return [
        pytest.param(text, id=f"{page_name(page)}:{line}")
        for page in PAGES
        for line, info, text in fences(page)
        if info == words
    ]


def script(name: str) -> ModuleType:
    """A file of `docs/` as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return script("tables")


def test_tables_are_the_compilers(tables: ModuleType) -> None:
    text = tables.PAGE.read_text(encoding="utf-8")
    assert tables.filled(text) == text, "To repair it: python docs/tables.py"


def test_page_on_kernels_is_what_the_runs_have_found() -> None:
    kernels = script("kernels")
    report, product = kernels.kept()
    text = kernels.PAGE.read_text(encoding="utf-8")
    assert kernels.page(report, product) == text, "To repair it: python docs/kernels.py"


def test_page_on_kernels_has_sums_of_all_rows_and_no_part_without_a_run() -> None:
    kernels = script("kernels")
    report, product = kernels.kept()
    common = {"arch": "sm_90", "kernels": 2, "shared": 16, "spilling": 1, "narrow": 0}
    registers = {"adam": 80, "ema": 40}
    rows = [{**common, "module": name, "registers": n} for name, n in registers.items()]
    text = kernels.page({**report, "gpu": rows, "cpu": []}, {**product, "optimizers": []})
    assert "| sm_90 | 4 | 80 | 16 | 2 | 0 |\n" in text
    assert "| adam | 80 |\n| ema | 40 |\n" in text
    assert re.findall("^## .*", text, re.MULTILINE) == ["## On GPUs"]


@pytest.mark.parametrize("text", blocks("opt"))
def test_spec_compiles_without_a_warning(text: str, tmp_path: Path) -> None:
    (tmp_path / "page.opt").write_text(text, encoding="utf-8")
    library = pipeline.load([tmp_path])
    assert library.warnings == ()
    assert build.plan(library, "")


@pytest.mark.parametrize("text", blocks("opt refused"))
def test_limit_is_still_one(text: str, tmp_path: Path) -> None:
    """A limit that is gone leaves the page."""
    (tmp_path / "page.opt").write_text(text, encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        build.plan(pipeline.load([tmp_path]), "")
    assert {d.code for d in caught.value.diagnostics} == {Code.UNSUPPORTED}


def test_readme_shows_the_shipped_lion() -> None:
    shown = [text for _, info, text in fences(ROOT / "README.md") if info == "opt"]
    assert shown == [(ROOT / "specs/optimizers/lion.opt").read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", ["schedules.md", "precision.md"])
def test_pages_on_use_print_what_they_say(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = "".join(t for _, info, t in fences(ROOT / "docs" / page) if info == "python")
    exec(compile(code, f"docs/{page}", "exec"), {})
    said = re.findall(r"^print\(.*\)  # (.+)$", code, re.MULTILINE)
    assert len(said) == code.count("print(")
    assert capsys.readouterr().out.splitlines() == said


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = HEADING.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for match in LINK.finditer(text):
        target, _, anchor = match["target"].partition("#")
        if target.startswith(("http://", "https://")):
            continue
        goal = (page.parent / target).resolve() if target else page
        assert goal.exists(), f"{match['target']} leads nowhere"
        if anchor:
            assert anchor in anchors(goal), f"{match['target']}: no such heading"


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = LINK.findall((folder / "README.md").read_text(encoding="utf-8"))
    assert listed == sorted(p.name for p in folder.glob("[0-9]*.md"))


def test_tables_of_lines_and_cases_are_up_to_date() -> None:
    pages = ((lines.README, lines.tables()), (lines.COMPATIBILITY, lines.comparisons()))
    for page, regions in pages:
        text = page.read_text(encoding="utf-8")
        assert sorted(m["name"] for m in lines.REGION.finditer(text)) == sorted(regions)
        assert lines.filled(text, regions) == text, "To repair it: python -m tests.lines --write"


def test_no_spec_is_longer_than_60_lines() -> None:
    specs = sorted((ROOT / "specs").rglob("*.opt"))
    assert len(specs) >= 20
    assert {s.name: lines.lines(s) for s in specs if lines.lines(s) > 60} == {}


def test_tests_that_the_compatibility_page_names_exist() -> None:
    named = set(re.findall(r"`(test_\w+)`", lines.COMPATIBILITY.read_text(encoding="utf-8")))
    assert len(named) >= 20
    defined: set[str] = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        defined |= set(re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), re.M))
    assert named - defined == set()
    compatibility = (ROOT / "tests" / "test_compatibility.py").read_text(encoding="utf-8")
    assert set(re.findall(r"^def (test_\w+)", compatibility, re.M)) <= named
