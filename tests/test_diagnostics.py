"""Every mistake a spec can hold, and how it is told: `tests/diagnostics/<code>[-<case>].opt`, each
with its rendered text beside it. To rewrite those texts after a deliberate change:

    UPDATE_GOLDEN=1 pytest tests/test_diagnostics.py
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner, Result

from optdsl.cli import app
from optdsl.diagnostics import Code, Diagnostic, Severity, SpecError, did_you_mean, render
from optdsl.parse import DEEPEST_NESTING, parse
from optdsl.pipeline import front, load
from optdsl.resolve import resolve
from optdsl.source import Source, Span

FOLDER = Path(__file__).parent / "diagnostics"
CASES = sorted(path.stem for path in FOLDER.glob("*.opt"))
# These have no spec that could be written into a file: a test below makes each.
WITHOUT_TEXT = {Code.MISSING_FILE, Code.NOT_UTF8, Code.NO_SPECS}
# Several codes in one file, or one code where the name of the case says something else.
MIXED = {"several-mistakes", "tabs-and-wide-characters"}
TINY = "optimizer Tiny { hyper lr = 1e-3\n update { descend lr * grad } }\n"


def found_in(path: Path) -> tuple[Diagnostic, ...]:
    try:
        return load([path]).warnings
    except SpecError as error:
        return error.diagnostics


def found_in_text(text: str) -> tuple[Diagnostic, ...]:
    try:
        return resolve([parse(Source("example.opt", text))])[1]
    except SpecError as error:
        return error.diagnostics


def codes(diagnostics: tuple[Diagnostic, ...]) -> set[Code]:
    return {d.code for d in diagnostics}


def check(*paths: Path) -> Result:
    """`optdsl check`, which must never end in a traceback."""
    result = CliRunner().invoke(app, ["check", *map(str, paths)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


# Golden files


@pytest.mark.parametrize("case", CASES)
def test_diagnostic_reads_as_its_golden_file(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    found = found_in(Path(f"{case}.opt"))
    text = "\n".join(render(d).plain for d in found)
    golden = FOLDER / f"{case}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("case", sorted(set(CASES) - MIXED))
def test_golden_file_shows_the_code_it_is_named_after(case: str) -> None:
    (code,) = codes(found_in(FOLDER / f"{case}.opt"))
    assert case == code or case.startswith(f"{code}-")


@pytest.mark.parametrize("code", sorted(set(Code) - WITHOUT_TEXT))
def test_every_code_has_a_golden_pair(code: Code) -> None:
    assert (FOLDER / f"{code}.opt").is_file()
    assert (FOLDER / f"{code}.txt").is_file()


def test_every_golden_text_belongs_to_a_spec() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.txt")) == CASES


@pytest.mark.parametrize("case", CASES)
def test_every_message_is_a_sentence_at_a_place_in_its_file(case: str) -> None:
    path = FOLDER / f"{case}.opt"
    for diagnostic in found_in(path):
        sentences = (diagnostic.message, *diagnostic.notes, *diagnostic.hints)
        for sentence in sentences:
            assert "\n" not in sentence
            assert re.match(r"[A-Z'\"]", sentence), sentence
        assert diagnostic.message.endswith((".", "}")), diagnostic.message
        if isinstance(diagnostic.span, Span):
            assert 0 <= diagnostic.span.start <= diagnostic.span.end <= len(path.read_text()) + 1


@pytest.mark.parametrize("code", sorted(set(Code) - WITHOUT_TEXT))
def test_command_line_ends_with_status_one_on_every_error_and_zero_on_warnings(code: Code) -> None:
    result = check(FOLDER / f"{code}.opt")
    assert result.exit_code == (0 if code is Code.UNREAD else 1)
    assert f"[{code}]" in result.output


# Files


def test_missing_file_is_named_without_a_traceback(tmp_path: Path) -> None:
    result = check(tmp_path / "missing.opt")
    assert result.exit_code == 1
    assert "error[missing-file]: There is no file or folder" in result.output
    assert "missing.opt" in result.output


def test_folder_without_specs_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    result = check(tmp_path)
    assert result.exit_code == 1
    assert "error[no-specs]" in result.output
    assert "Spec files end in '.opt'." in result.output


def test_file_that_is_not_utf8_is_an_error_that_says_which_byte(tmp_path: Path) -> None:
    path = tmp_path / "latin.opt"
    path.write_bytes(b'optimizer A {\n    doc "caf\xe9"\n}\n')
    result = check(path)
    assert result.exit_code == 1
    assert "error[not-utf8]: Byte 26 of this file is not UTF-8." in result.output


def test_unreadable_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.opt"
    path.write_text(TINY)

    def refuse(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    result = check(path)
    assert result.exit_code == 1
    assert "This file cannot be read: Permission denied." in result.output


@pytest.mark.parametrize("text", ["", "\n", "   \n\t\n", "# only a comment", "\ufeff"])
def test_file_that_defines_nothing_is_an_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "empty.opt"
    path.write_text(text, encoding="utf-8")
    result = check(path)
    assert result.exit_code == 1
    assert "error[empty-file]: This file defines nothing." in result.output


def test_byte_order_mark_and_windows_newlines_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "windows.opt"
    path.write_bytes(b"\xef\xbb\xbf" + TINY.replace("\n", "\r\n").encode())
    assert check(path).exit_code == 0


# Size


@pytest.mark.parametrize(
    "line", ["&%$ noise", "x = 1", "optimizer", "}{", '"', "((((", "# hm\n\x00", "hyper a = 1"]
)
def test_ten_thousand_lines_of_noise_give_one_short_message(line: str) -> None:
    (diagnostic,) = found_in_text(f"{line}\n" * 10_000)
    assert diagnostic.code is Code.SYNTAX
    assert len(render(diagnostic).plain) < 1000


def test_one_endless_line_of_noise_is_shown_in_part() -> None:
    (diagnostic,) = found_in_text("optimizer " + "noise " * 10_000)
    text = render(diagnostic).plain
    assert max(map(len, text.splitlines())) < 200
    shown, marks = text.splitlines()[2:4]
    assert shown[marks.index("^") :].startswith("noise")


@pytest.mark.parametrize(
    "deep",
    [
        "(" * 3000 + "lr" + ")" * 3000,
        "-" * 3000 + "lr",
        "lr ** " * 3000 + "2",
        "sqrt(" * 3000 + "lr" + ")" * 3000,
        "lr + " * 3000 + "lr",
        "1 if lr > 0 else " * 3000 + "lr",
    ],
)
def test_three_thousand_levels_of_nesting_are_refused_at_their_place(deep: str) -> None:
    text = TINY.replace("lr * grad", f"({deep}) * grad")
    (diagnostic,) = found_in_text(text)
    assert diagnostic.code is Code.TOO_DEEP
    assert isinstance(diagnostic.span, Span)
    assert text.index("descend") < diagnostic.span.start < text.index(" * grad", -20)


def test_nested_blocks_are_refused_beyond_the_same_depth() -> None:
    blocks = "if lr > 0 { " * 3000 + "descend lr * grad" + " }" * 3000
    (diagnostic,) = found_in_text(TINY.replace("descend lr * grad", blocks))
    assert diagnostic.code is Code.TOO_DEEP


def test_unclosed_parentheses_by_the_thousand_are_a_syntax_error() -> None:
    (diagnostic,) = found_in_text(TINY.replace("lr * grad", "(" * 3000 + "lr"))
    assert diagnostic.code is Code.SYNTAX
    assert "opened here" in render(diagnostic).plain


def test_nesting_within_the_limit_is_resolved() -> None:
    depth = DEEPEST_NESTING - 20
    assert found_in_text(TINY.replace("lr * grad", "-" * depth + "(lr * grad)")) == ()


def test_nested_chains_of_comparisons_take_linear_time() -> None:
    chain = "lr"
    for _ in range(40):
        chain = f"(0 < {chain} < 1)"
    assert codes(found_in_text(TINY.replace("lr * grad", chain))) == {Code.WRONG_TYPE}


@pytest.mark.parametrize(
    "number", ["9" * 5000, "0." + "1" * 5000, "1e" + "9" * 400, "9007199254740993", "1e999"]
)
def test_number_that_float64_cannot_hold_is_refused_at_its_place(number: str) -> None:
    (diagnostic,) = found_in_text(TINY.replace("1e-3", number))
    assert diagnostic.code is Code.NUMBER_RANGE
    assert isinstance(diagnostic.span, Span)
    assert diagnostic.span.text == number


# One run reports everything


def test_one_run_reports_all_errors_of_all_files(tmp_path: Path) -> None:
    (tmp_path / "a.opt").write_text("optimizer A {\n")
    (tmp_path / "b.opt").write_text(TINY.replace("Tiny", "B").replace("grad }", "gard + prm }"))
    (tmp_path / "c.opt").write_text("")
    (tmp_path / "d.opt").write_bytes(b"\xff")
    (tmp_path / "e.opt").write_text(TINY.replace("Tiny", "E").replace("descend", "grad ="))
    (tmp_path / "f.opt").write_text(TINY.replace("Tiny", "F"))
    result = check(tmp_path)
    assert result.exit_code == 1
    found = re.findall(r"^error\[(.*?)\]", result.output, re.MULTILINE)
    expected = ["syntax", "unknown-name", "unknown-name", "empty-file", "not-utf8", "missing-part"]
    assert sorted(found) == sorted(expected)


def test_base_in_a_file_with_a_syntax_error_is_not_reported_as_unknown(tmp_path: Path) -> None:
    (tmp_path / "base.opt").write_text("optimizer Base {\n")
    (tmp_path / "mine.opt").write_text("optimizer Mine from Base { }\n")
    with pytest.raises(SpecError) as raised:
        front(sorted(tmp_path.iterdir()))
    assert codes(raised.value.diagnostics) == {Code.SYNTAX}


def test_base_with_an_error_is_reported_once() -> None:
    text = TINY.replace("grad }", "gard }") + "optimizer Mine from Tiny { default lr = 1 }\n"
    assert codes(found_in_text(text)) == {Code.UNKNOWN_NAME}


@pytest.mark.parametrize(
    "text",
    [
        TINY.replace("1e-3", "foo"),
        TINY.replace("hyper lr = 1e-3", 'hyper lr = "a" require lr >= 0'),
        TINY.replace("hyper lr = 1e-3", "hyper lr: (a, b) = 3"),
        TINY.replace("update {", "state m = foo\n update { m += grad \n grad += m \n"),
        TINY.replace("update {", "update { let m = foo * grad \n if m > 0 { grad += m }\n"),
        "schedule S { hyper g = foo \n chain = g * lr }",
        "schedule S { let g = foo \n chain = g * lr }",
    ],
)
def test_name_whose_value_is_in_error_is_reported_once(text: str) -> None:
    assert len(found_in_text(text)) == 1


def test_warnings_of_one_definition_do_not_wait_for_errors_of_another() -> None:
    unread = TINY.replace("update", "hyper eps = 1\n update")
    broken = TINY.replace("Tiny", "Other").replace("grad }", "gard }")
    assert codes(found_in_text(unread + broken)) == {Code.UNREAD, Code.UNKNOWN_NAME}


def test_warnings_leave_the_exit_status_at_zero(tmp_path: Path) -> None:
    path = tmp_path / "unread.opt"
    path.write_text(TINY.replace("update", "hyper eps = 1\n update"))
    result = check(path)
    assert result.exit_code == 0
    assert "warning[unread]: Nothing reads 'eps'." in result.output


# Names


@pytest.mark.parametrize(
    "name",
    ["lambda", "class", "None", "True", "match", "param", "grad", "foreach", "fused", "self",
     "group", "torch", "pi", "number", "map", "_x", "__init__", "a__b", "true"],
)  # fmt: skip
@pytest.mark.parametrize(
    "text",
    [
        "optimizer A {{ hyper {} = 1\n update {{ descend {} * param }} }}",
        "optimizer A {{ option {} = false\n update {{ if {} {{ descend param }} }} }}",
        "optimizer A {{ state {} = 0\n update {{ descend {} * param }} }}",
        "optimizer A {{ hyper b: ({}, c) = (1, 2)\n update {{ descend {} * c * param }} }}",
        "optimizer A {{ update {{ let {} = 2\n descend {} * param }} }}",
    ],
)
def test_reserved_name_is_refused_wherever_it_is_declared(name: str, text: str) -> None:
    found = found_in_text(text.format(name, name))
    assert Code.RESERVED_NAME in codes(found)


@pytest.mark.parametrize("name", ["Class", "IF", "Lambda", "none", "Optimizer", "Slot", "_Mine"])
def test_definition_that_could_not_be_imported_is_refused(name: str) -> None:
    assert Code.RESERVED_NAME in codes(found_in_text(TINY.replace("Tiny", name)))


@pytest.mark.parametrize("name", ["sum", "mode", "state", "hyper", "step", "update", "doc", "norm"])
def test_functions_and_keywords_may_name_slots(name: str) -> None:
    text = f"state {name} = zeros_like(param)\n update {{ {name} += grad \n grad += {name} \n"
    assert found_in_text(TINY.replace("update {", text)) == ()


def test_did_you_mean_names_the_closest_and_never_the_name_itself() -> None:
    assert did_you_mean("exp_avgs", ["exp_avg", "exp_avg_sq"]) == ("Did you mean 'exp_avg'?",)
    assert did_you_mean("Adam", ["adam"]) == ("Did you mean 'adam'?",)
    assert did_you_mean("lr", ["lr"]) == ()
    assert did_you_mean("x", ["momentum"]) == ()


# Rendering


def test_marks_stand_under_the_span_also_behind_tabs_and_wide_characters() -> None:
    source = Source("a.opt", "\t中文 x = yy\n")
    start = source.text.index("yy")
    diagnostic = Diagnostic(Code.UNKNOWN_NAME, "Unknown.", Span(source, start, start + 2))
    line, marks = render(diagnostic).plain.splitlines()[2:4]
    assert line == " 1 |  中文 x = yy"
    assert cell_len(marks) == cell_len(line)
    assert cell_len(marks.rstrip("^")) == cell_len(line.removesuffix("yy"))


def test_span_over_several_lines_is_marked_on_its_first() -> None:
    source = Source("a.opt", "one two\nthree\n")
    text = render(Diagnostic(Code.SYNTAX, "Wrong.", Span(source, 4, 13))).plain
    assert text.splitlines()[-1] == "   |     ^^^"


def test_severity_and_code_lead_every_message() -> None:
    source = Source("a.opt", "x\n")
    warning = Diagnostic(Code.UNREAD, "Hm.", Span(source, 0, 1), severity=Severity.WARNING)
    assert render(warning).plain.startswith("warning[unread]: Hm.\n  a.opt:1:1\n")
