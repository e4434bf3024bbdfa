"""The grammar, its fuzzer, and the way back from trees to text."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.lark import from_lark
from lark import Lark
from lark.grammar import Terminal

from optdsl import resources
from optdsl.diagnostics import Code, SpecError
from optdsl.parse import PHRASES, grammar, parse
from optdsl.source import Source
from optdsl.syntax import SyntaxTree
from optdsl.unparse import unparse

SPECS = sorted(resources.specs().rglob("*.opt"))
GRAMMAR = Lark(grammar(), parser="lalr", propagate_positions=True)
NAMES = st.sampled_from(["lr", "eps", "exp_avg", "sum", "mode", "Adam", "T_max", "x1", "norm"])
NUMBERS = st.sampled_from(["0", "1", "0.5", ".5", "2.", "1e-3", "1E+3", "999"])
# Words stand between spaces: the language keeps them apart.
WORDS = {
    t.name: st.just(f" {t.pattern.value} ")
    for t in GRAMMAR.terminals
    if t.pattern.type == "str" and t.pattern.value.isalpha()
}
EXPLICIT = {
    **WORDS,
    "_ELSE": st.sampled_from([" else ", "\n else ", " # comment\n\n  else "]),
    "NAME": NAMES.map(lambda name: f" {name} "),
    "NUMBER": NUMBERS.map(lambda number: f" {number} "),
    "STRING": st.sampled_from(['""', '"some words"', '"with {lr}"', '"# no comment"']),
    "_NEWLINE": st.sampled_from(["\n", "\r\n", "\n\n  \n", " # comment\n", "# {\n\t\n"]),
}


def texts() -> st.SearchStrategy[str]:
    return from_lark(GRAMMAR, start="start", explicit=EXPLICIT)


def tree_of(text: str) -> SyntaxTree:
    return parse(Source("fuzz.opt", text))


def tree_or_too_deep(text: str) -> SyntaxTree | None:
    """None for nesting without end: the one thing that the grammar itself cannot refuse."""
    try:
        return tree_of(text)
    except SpecError as error:
        if {d.code for d in error.diagnostics} == {Code.TOO_DEEP}:
            return None
        raise


def test_grammar_has_no_conflict_that_lark_would_resolve_silently() -> None:
    assert Lark(grammar(), parser="lalr", strict=True)


def test_every_terminal_has_words_for_messages() -> None:
    for terminal in GRAMMAR.terminals:
        if terminal.name in GRAMMAR.ignore_tokens:
            continue
        spoken = terminal.name in PHRASES or terminal.pattern.type == "str"
        assert spoken, f"{terminal.name} would be shown to users as a regular expression"


def test_every_phrase_belongs_to_a_terminal() -> None:
    assert set(PHRASES) - {"$END"} <= {t.name for t in GRAMMAR.terminals}


def test_every_terminal_is_used() -> None:
    used = {s.name for r in GRAMMAR.rules for s in r.expansion if isinstance(s, Terminal)}
    assert {t.name for t in GRAMMAR.terminals} - set(GRAMMAR.ignore_tokens) == used


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(texts())
def test_every_generated_text_parses_and_its_printed_tree_parses_back(text: str) -> None:
    tree = tree_or_too_deep(text)
    if tree is None:
        return
    printed = unparse(tree)
    assert tree_of(printed) == tree
    assert unparse(tree_of(printed)) == printed


@pytest.mark.parametrize("path", SPECS, ids=lambda p: p.stem)
def test_printed_spec_parses_back_to_the_same_tree(path) -> None:  # type: ignore[no-untyped-def]
    tree = tree_of(path.read_text(encoding="utf-8"))
    assert tree_of(unparse(tree)) == tree


def test_printed_tree_is_laid_out() -> None:
    text = """
    optimizer  A   from B{doc "x"
    default lr=(1e-3)

    fix    f = true }
    optimizer C { hyper betas:(a,b)=(0.9,.99) require 0<=a<1,b>0 else "no {a}"
    ...
    eager state m=full_like( param,a )when(not f)
    update{if a>0{m+=(grad*b)**2}else if b>0{grad=grad} else{}
    descend -(a+b)*(grad/m)} }
    schedule S { let r = (1 if t > 0 else 2) * 3
      closed=base_lr*r }
    schedule T { hyper m:per_group group real=(0.8)when c as mm require m>0
    group state i=m/2 when c as ii
    observe n=t//3 as N
    function f(x,y)=(x+y)/2
    phases as p{until 3-1 when c{lr:i->m,momentum:m->m}
    until 9{lr:m->i,
    momentum:m->m}}
    closed momentum=f(start_momentum,progress)when c
    fractional
    example m=(0.5)
    example g(t)=(t+1)*2 }
    optimizer D from C { hyper w=3
    schedule lr=T(step-1,lr,m=w) }
    """
    assert (
        unparse(tree_of(text))
        == """\
optimizer A from B {
    doc "x"

    default lr = 1e-3
    fix f = true
}

optimizer C {
    hyper betas: (a, b) = (0.9, .99) require 0 <= a < 1, b > 0 else "no {a}"
    ...

    eager state m = full_like(param, a) when not f

    update {
        if a > 0 {
            m += (grad * b) ** 2
        }
        else if b > 0 {
            grad = grad
        }
        descend -(a + b) * (grad / m)
    }
}

schedule S {
    let r = (1 if t > 0 else 2) * 3

    closed = base_lr * r
}

schedule T {
    hyper m: per_group group real = 0.8 when c as mm require m > 0

    group state i = m / 2 when c as ii
    observe n = t // 3 as N

    function f(x, y) = (x + y) / 2

    phases as p {
        until 3 - 1 when c { lr: i -> m, momentum: m -> m }
        until 9 { lr: m -> i, momentum: m -> m }
    }

    closed momentum = f(start_momentum, progress) when c
    fractional

    example m = 0.5
    example g(t) = (t + 1) * 2
}

optimizer D from C {
    hyper w = 3

    schedule lr = T(step - 1, lr, m=w)
}
"""
    )


@pytest.mark.parametrize(
    "text",
    [
        "hyperlr = 1",
        "hyper lr = 1require lr > 0",
        "state m = 0when lr > 0",
        "docx",
        "updatex { }",
        "hyper lr = 1if 2 > 1 else 3",
    ],
)
def test_words_are_never_read_as_if_they_had_a_space(text: str) -> None:
    with pytest.raises(SpecError):
        tree_of(f"optimizer A {{\n{text}\n}}\n")


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["", "\n", " ", " # end", "\n\n# end\n"])
def test_file_may_end_in_any_blank_way(newline: str, last: str) -> None:
    text = "optimizer A {\n    update { descend grad }\n}" + last
    assert len(tree_of(text.replace("\n", newline)).definitions) == 1


def test_else_may_begin_the_next_line_also_behind_a_comment() -> None:
    text = "optimizer A { update {\n if x { descend y } # no\n\n else { descend z }\n } }"
    (update,) = tree_of(text).definitions[0].members
    assert len(update.body) == 1  # type: ignore[union-attr]
