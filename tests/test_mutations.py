"""Damaged specs: each shipped spec with a token deleted, doubled or swapped, cut off, or with noise
in it compiles, or is refused at a place in the file. Nothing else ever happens."""

from __future__ import annotations

import re
import warnings
from contextlib import suppress
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optdsl import resources
from optdsl.diagnostics import SpecError, render
from optdsl.ir import Unit
from optdsl.parse import parse
from optdsl.pipeline import shipped_library
from optdsl.resolve import resolve
from optdsl.source import Source, Span
from optdsl.targets import TARGETS, section

TEXTS = {
    path.stem: path.read_text(encoding="utf-8") for path in sorted(resources.specs().rglob("*.opt"))
}
TOKEN = re.compile(r'"[^"\n]*"|\w+(?:\.\d+)?|\*\*|//|[-+*/<>=!]=|\.\.\.|#[^\n]*|\n|[^\w\s]')
# What other people's specs are full of: near misses of the language's own words and signs.
INSERTS = st.one_of(
    st.sampled_from(
        ["hyper", "state", "let", "if", "else", "descend", "param", "grad", "unset", "true", "0",
         "1e-3", "-1", "007", "1e999", '"text"', "(", ")", "{", "}", ",", "=", "==", "**", "...",
         "not", "and", "when", "require", "lr", "step", "lambda", "\n", "zeros_like(param)",
         "repeat 2 {", "repeat lr {", "@", "dim=-1", ", dim=0", "param.shape[-1]", "param.ndim",
         "unset(lr)", "optional", "sparse rows", "sparse", "complex none", "complex decay, descend",
         "output", "routine lbfgs", ": int", "host(", "norm(", "cast(", ", bfloat16)", "transpose(",
         "is_tensor(lr)", "foreach", "as", "observe", "group state", "per_group", "list",
         "function", "until", "->", "phases {", "fractional", "example", "schedule lr =",
         "closed momentum =", "when t > 3", "lr_lambda(t)", "floor_log(t, 2)",
         "WarmupLR(step, lr, warmup_steps=3)"]
    ),
    st.text(max_size=5),
)  # fmt: skip


@cache
def shipped() -> dict[str, Unit]:
    return {unit.name: unit for unit in shipped_library().units}


def units_of(text: str) -> tuple[Unit, ...]:
    """What a text defines. Raises SpecError, and holds its diagnostics to what they promise."""
    source = Source("mutated.opt", text)
    try:
        tree = parse(source)
        names = {d.name.text for d in tree.definitions}
        units, found = resolve([tree], {n: u for n, u in shipped().items() if n not in names})
    except SpecError as error:
        hold(error, source)
        raise
    for diagnostic in found:
        assert render(diagnostic).plain
    return units


def hold(error: SpecError, source: Source) -> None:
    """Every diagnostic stands in the file that was changed, and can be shown."""
    assert error.diagnostics
    for diagnostic in error.diagnostics:
        assert isinstance(diagnostic.span, Span)
        assert diagnostic.span.source == source
        assert 0 <= diagnostic.span.start <= diagnostic.span.end <= len(source.text) + 1
        assert render(diagnostic).plain


def lower_all(text: str) -> None:
    """Every target takes what resolved, or says where it cannot; what it emits is Python."""
    try:
        units = units_of(text)
    except SpecError:
        return
    for unit in units:
        emitted: dict[object, str] = {}
        for target in TARGETS:
            try:
                part = section(target, unit)
            except SpecError as error:
                hold(error, unit.source)
                return
            if part is not None and target.path is not None:
                path = target.path(unit)
                emitted[path] = emitted.get(path, "") + part
        python = {path: code for path, code in emitted.items() if str(path).endswith(".py")}
        for path, code in python.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)  # `1 is 2`-like nonsense is theirs
                compile(code, str(path), "exec")


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A shipped spec with one to three tokens deleted, doubled, swapped or replaced."""
    text = TEXTS[draw(st.sampled_from(sorted(TEXTS)))]
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        tokens = list(TOKEN.finditer(text))
        here = draw(st.sampled_from(tokens))
        match draw(st.sampled_from(["delete", "double", "swap", "swap", "replace", "replace"])):
            case "delete":
                text = text[: here.start()] + text[here.end() :]
            case "double":
                text = text[: here.end()] + " " + here[0] + text[here.end() :]
            case "replace":
                text = text[: here.start()] + draw(INSERTS) + text[here.end() :]
            case _:
                other = draw(st.sampled_from(tokens))
                first, second = sorted([here, other], key=lambda m: m.start())
                if first.end() <= second.start():
                    middle = text[first.end() : second.start()]
                    swapped = second[0] + middle + first[0]
                    text = text[: first.start()] + swapped + text[second.end() :]
    return text


COMMON = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@settings(COMMON, max_examples=500)
@given(mutated())
def test_mutated_spec_resolves_or_is_refused_at_a_place(text: str) -> None:
    with suppress(SpecError):
        units_of(text)


@settings(COMMON, max_examples=120)
@given(mutated())
def test_mutated_spec_that_resolves_is_lowered_or_refused_by_every_target(text: str) -> None:
    lower_all(text)


@pytest.mark.slow
@settings(COMMON, max_examples=20_000)
@given(mutated())
def test_many_mutated_specs_are_lowered_or_refused_by_every_target(text: str) -> None:
    lower_all(text)


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_every_single_token_may_be_missing(name: str) -> None:
    text = TEXTS[name]
    for token in TOKEN.finditer(text):
        try:
            units_of(text[: token.start()] + text[token.end() :])
        except SpecError:
            continue


@settings(COMMON, max_examples=300)
@given(st.sampled_from(sorted(TEXTS)), st.data())
def test_spec_cut_off_anywhere_is_refused_at_a_place(name: str, data: st.DataObject) -> None:
    text = TEXTS[name]
    end = data.draw(st.integers(1, len(text) - 3))
    tree_is_empty = not text[:end].strip()
    try:
        units_of(text[:end])
    except SpecError:
        return
    assert tree_is_empty


@settings(COMMON, max_examples=300)
@given(st.sampled_from(sorted(TEXTS)), st.data())
def test_noise_anywhere_is_refused_at_a_place(name: str, data: st.DataObject) -> None:
    text = TEXTS[name]
    place = data.draw(st.integers(0, len(text)))
    noise = data.draw(INSERTS | st.binary(max_size=8).map(lambda b: b.decode(errors="replace")))
    lower_all(text[:place] + noise + text[place:])


@settings(COMMON, max_examples=200)
@given(st.text(max_size=200))
def test_any_text_at_all_is_refused_at_a_place(text: str) -> None:
    with suppress(SpecError):
        units_of(text)
