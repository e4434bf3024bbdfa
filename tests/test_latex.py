"""The LaTeX of specs: it renders, names get their papers' letters, branches stand in words."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from matplotlib.mathtext import MathTextParser

from optdsl import resources
from optdsl.emit import render
from optdsl.ir import Schedule, Spec, Unit
from optdsl.parse import parse
from optdsl.resolve import resolve
from optdsl.source import Source
from optdsl.targets import latex, schedule


@cache
def units() -> dict[str, Unit]:
    paths = sorted(Path(resources.specs()).rglob("*.opt"))
    found, _ = resolve([parse(Source(p.name, p.read_text(encoding="utf-8"))) for p in paths])
    return {unit.name: unit for unit in found}


def compiled(body: str, declarations: str = "") -> Spec:
    text = f"optimizer O {{\n hyper lr = 0.1\n{declarations}\n update {{\n{body}\n}}\n}}"
    (unit,), _ = resolve([parse(Source("user.opt", text))])
    assert isinstance(unit, Spec)
    return unit


def assert_renders(lines: tuple[str, ...]) -> None:
    """matplotlib knows neither environments, whose rows are rendered one by one, nor `bmod`."""
    assert lines[0] == r"\begin{aligned}"
    assert lines[-1] == r"\end{aligned}"
    for number, line in enumerate(lines[1:-1], start=2):
        assert line.count("{") == line.count("}")
        assert line.endswith(r" \\") == (number < len(lines) - 1)
        rows = re.sub(r"\\(begin|end)\{cases\}", "", line.removesuffix(r" \\")).split(r"\\")
        for row in rows:
            known = row.replace("&", " ").replace(r"\bmod", r"\operatorname{mod}")
            MathTextParser("path").parse(f"${known}$")


@pytest.mark.parametrize("name", [n for n, u in units().items() if isinstance(u, Spec)])
def test_equations_of_shipped_optimizers_render(name: str) -> None:
    spec = units()[name]
    assert isinstance(spec, Spec)
    if spec.routine:
        assert latex.equations(spec) == ()  # a program has none
    else:
        assert_renders(latex.equations(spec))


@pytest.mark.parametrize("name", [n for n, u in units().items() if isinstance(u, Schedule)])
def test_equations_of_shipped_schedules_render(name: str) -> None:
    unit = units()[name]
    assert isinstance(unit, Schedule)
    shown = dict(schedule.equations(unit))
    assert len(shown) == len(unit.targets) + len(
        [form for form in (unit.closed, unit.chain, unit.body) if form]
    )
    for lines in shown.values():
        assert_renders(lines)


@pytest.mark.parametrize("name", [n for n, u in units().items() if isinstance(u, Spec)])
def test_page_has_every_hyperparameter_slot_and_citation(name: str) -> None:
    spec = units()[name]
    assert isinstance(spec, Spec)
    page = render("latex.md.jinja", latex.lower(spec))
    assert page.startswith(f"# {name}\n\n{spec.doc}\n")
    free = [h.name for h in spec.hypers if h.name not in dict(spec.fixed)]
    for shown in (*free, *(s.name for s in spec.states)):
        assert f"| `{shown}` | $" in page
    for cite in spec.cites:
        assert f"> {cite}" in page


@pytest.mark.parametrize("name", [n for n, u in units().items() if isinstance(u, Schedule)])
def test_page_of_a_schedule_has_every_argument_form_and_citation(name: str) -> None:
    unit = units()[name]
    assert isinstance(unit, Schedule)
    page = render("latex.md.jinja", schedule.page(unit))
    assert page.startswith(f"# {name}\n\n{unit.doc}\n")
    for hyper in unit.hypers:
        assert f"| `{hyper.name}` | $" in page
    for _, lines in schedule.equations(unit):
        assert "\n".join(lines) in page
    for cite in unit.cites:
        assert f"> {cite}" in page


@pytest.mark.parametrize(
    ("name", "symbol"),
    [
        ("lr", r"\eta"),
        ("param", r"\theta"),
        ("beta1", r"\beta_{1}"),
        ("weight_decay", r"\lambda"),
        ("eta_min", r"\eta_{\mathrm{min}}"),
        ("T_0", r"T_{0}"),
        ("exp_avg_sq", r"\mathrm{exp\_avg\_sq}"),
        ("bias_correction2", r"\mathrm{bias\_correction}_{2}"),
        ("x", "x"),
    ],
)
def test_name_becomes_the_symbol_that_papers_use(name: str, symbol: str) -> None:
    assert latex.Symbols((name,))[name] == symbol


def test_two_names_never_share_a_symbol() -> None:
    symbols = latex.Symbols(("lr", "eta", "momentum", "mu", "beta_1", "beta1"))
    assert len({symbols[n] for n in symbols.table}) == 6
    assert symbols["lr"] == r"\eta"
    assert symbols["eta"] == r"\mathrm{eta}"


def test_branches_stand_in_words_and_options_that_are_decided_do_not() -> None:
    lines = latex.equations(units()["AdamW"])  # type: ignore[arg-type]
    assert r"& \text{if } \lambda \neq 0 \\" in lines
    assert r"& \quad \theta \leftarrow \theta \, (1 - \eta \, \lambda) \\" in lines
    assert not any("decoupled" in line for line in lines)


def test_equations_are_grouped_as_the_author_wrote_them() -> None:
    spec = compiled("let a = lr * (grad + param)\n descend a - (grad - lr)")
    assert latex.equations(spec)[1:-1] == (
        r"& a \leftarrow \eta \, (g + \theta) \\",
        r"& \theta \leftarrow \theta - (a - (g - \eta))",
    )


def test_else_if_and_choices_and_counters_are_shown() -> None:
    spec = compiled(
        "step += 1\n let f = 2e-9 if step > 3 else inf\n"
        "if lr > 1 { descend f * grad }\n else if lr > 0 { descend grad }\n else { descend param }",
        "state step = 0",
    )
    lines = latex.equations(spec)
    assert lines[1:] == (
        r"& t \leftarrow t + 1 \\",
        r"& f \leftarrow \begin{cases} 2 \cdot 10^{-9} & \text{if } t > 3 \\ \infty & "
        r"\text{otherwise} \end{cases} \\",
        r"& \text{if } \eta > 1 \\",
        r"& \quad \theta \leftarrow \theta - f \, g \\",
        r"& \text{else if } \eta > 0 \\",
        r"& \quad \theta \leftarrow \theta - g \\",
        r"& \text{else} \\",
        r"& \quad \theta \leftarrow \theta - \theta",
        r"\end{aligned}",
    )
    assert_renders(lines)
