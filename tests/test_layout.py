"""Breaking a line never changes what it says."""

from __future__ import annotations

import ast

import pytest

from optdsl.targets.layout import broken_assignment, broken_call

LINES = (
    "x = f(a, b)",
    "x = f(g(a, b), h(c), k=1)",
    "x = a - (b + c)",
    "x = -(b * (c + d))",
    "x = (a + b) * (c + d)",
    "x = a.sqrt().div_(b).add_(c)",
    "f(x, [a * b for a, b in zip(p, q, strict=True)])",
    "x = [f(a)(b) for a, b in zip(p, q, strict=True)]",
    "x = [-a for a in p]",
    "f(g([a for a in p], b), (c, d))",
    "x = f(a[0], b['(x)'], (c,))",
    "x.add_(f(a, b) - (c + d))",
)


def meaning(text: str) -> str:
    return ast.dump(ast.parse(text))


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("indent", [0, 70, 85, 95])
def test_a_broken_line_parses_to_the_same_tree(line: str, indent: int) -> None:
    assert meaning("\n".join(broken_call(line, indent))) == meaning(line)


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("x = ")])
@pytest.mark.parametrize("indent", [0, 70, 85, 95])
def test_a_broken_assignment_parses_to_the_same_tree(line: str, indent: int) -> None:
    name, value = line.split(" = ", 1)
    assert meaning("\n".join(broken_assignment(name, value, indent))) == meaning(line)
