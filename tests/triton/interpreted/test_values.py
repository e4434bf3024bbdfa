"""Each kernel against the reference interpreter, over options, storage, alignments and sizes, and
the command that tries all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.triton import product
from tests.triton.interpreted import oracle
from tests.triton.product import Case


@pytest.mark.parametrize("case", product.cover(), ids=str)
def test_kernel_equals_the_reference_to_a_few_ulps(case: Case) -> None:
    """float32 and float64: 4 units in the last place for slots, 32 for parameters, more for those
    in `LIMITS`, also where two tensors are a float32 together; beyond the neighbours of a number
    that is rounded at random; 16-bit types: at most the neighbour of the correctly rounded value.
    Each step starts from the stored state."""
    assert product.check(case)


# The command

STORED = "float32, 8-bit slots"
EVERY = product.chosen(["Lion"], [STORED])


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """The cases that the command runs."""
    found: list[Case] = []
    check = product.check

    def checked(case: Case) -> oracle.Errors:
        found.append(case)
        return check(case)

    monkeypatch.setattr(product, "check", checked)
    return found


def run(*arguments: Any) -> None:
    product.main(["--optimizers", "Lion", "--stored", STORED, *map(str, arguments)])


def test_run_that_was_stopped_goes_on(
    tmp_path: Path, ran: list[Case], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "product.jsonl"
    run("--results", file)
    assert ran == EVERY
    said = capsys.readouterr().out
    row, last = said.splitlines()[-2:]
    assert last == f"cases: {len(EVERY)} of {len(EVERY)}, failed: 0"
    assert row.split()[:4] == ["Lion", str(len(EVERY)), "0", "0.0"]
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == len(EVERY)
    # Killed in the middle of a line.
    file.write_text("".join(lines[:1]) + lines[1][:20])
    ran.clear()
    run("--results", file, "--minutes", 0)
    assert ran == []
    assert capsys.readouterr().out.endswith(f"\ncases: 1 of {len(EVERY)}, failed: 0\n")
    for again in (EVERY[1:], []):
        ran.clear()
        run("--results", file)
        assert ran == again
        assert capsys.readouterr().out == said


def test_what_has_failed_or_changed_is_run_again(
    tmp_path: Path,
    ran: list[Case],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "product.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(oracle, "limit", lambda *_: -1)
        with pytest.raises(SystemExit) as caught:
            run("--results", file)
    assert caught.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": AssertionError: (0, ")[0] for line in lines[: len(EVERY)]] == [
        f"FAILED {case}" for case in EVERY
    ]
    assert lines[-1].endswith(f"failed: {len(EVERY)}")
    output = tmp_path / "product.json"
    for again in (EVERY, []):
        ran.clear()
        run("--results", file, "-o", output)
        assert ran == again
        written = json.loads(output.read_text())
        assert (written["cases"], written["of"], written["failures"]) == (
            len(EVERY),
            len(EVERY),
            {},
        )
        (row,) = written["optimizers"]
        assert 0 < row["float32 slots"] <= oracle.SLOT_ULPS
    monkeypatch.setattr(product, "follows", lambda name: "another kernel")
    run("--results", file)
    assert ran == EVERY


def test_cover_holds_every_pair_and_every_way_to_store() -> None:
    cover = product.cover()
    every, held = (
        set().union(*(fact for case in cases for fact in product.facts(case)))
        for cases in (product.cases(), cover)
    )
    assert held == every
    assert len(cover) < 200 < 5000 < len(list(product.cases()))
