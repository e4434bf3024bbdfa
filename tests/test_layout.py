"""Lines are broken as `ruff format` breaks them, so that what is emitted needs no formatter."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from optdsl import build, pipeline
from optdsl.ops import FUNCTIONS
from optdsl.targets.layout import (
    INDENT,
    WIDTH,
    broken_call,
    indented,
    laid_out,
    module,
)
from tests.random_specs import updates
from tests.test_programs import ACCEPTED, source

ROOT = Path(__file__).resolve().parents[1]


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


def ruff(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ruff", "format", "--isolated", *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def formatted(text: str, width: int = WIDTH) -> str:
    done = ruff("--line-length", str(width), "-", text=text)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Statements, by chance: a hypothesis strategy of such depth takes minutes to shrink

LENGTHS = (1, 2, 4, 5, 6, 9, 9, 14, 14, 20, 20, 30, 45, 70, 97)
BINARY = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.MatMult, ast.Pow, ast.BitAnd, ast.BitOr)
COMPARISONS = (ast.Lt, ast.LtE, ast.Eq, ast.NotEq, ast.In, ast.NotIn, ast.Is, ast.IsNot)
FORMS = (
    "{name} = {value}", "{name} = {value}", "{name} += {value}", "{name}.{name} = {value}",
    '{name}["{name}"] = {value}', '{name}["{name}"] *= {value}', "{name}, {name} = {value}",
    "return {value}", "if {value}:", "elif {value}:", "for {name} in {value}:",
    "for {name}, {name} in {value}:", "{name}({value}, {value})", "{name}.{name}({value})",
    "raise {name}({value})", "{value},", "def {name}(self, {name}: {name} = {value}) -> {name}:",
    "{name}: {name}[{name}, {name}] = {value}",
)  # fmt: skip


class Draw:
    """Expressions and statements of names from one letter to a line."""

    def __init__(self, random: Random) -> None:
        self.random = random

    def word(self) -> str:
        start, length = self.random.randrange(8), self.random.choice(LENGTHS)
        # Numbered, as arguments have to differ.
        return ("abcdefghijklmnopqrstuvwxyz" * 5)[start:][:length] + str(self.random.randrange(999))

    def some(self, depth: int, least: int = 0, most: int = 3) -> list[ast.expr]:
        return [self.expression(depth) for _ in range(self.random.randint(least, most))]

    def leaf(self) -> ast.expr:
        prefix = self.random.choice(("", "f"))
        word = self.word()
        others = (ast.Constant(1), ast.Constant(0.5), ast.Constant(None), ast.Constant(1e-8))
        leaves = (ast.Name(word), ast.Name(word), ast.Name(f'{prefix}"{word} {{x}}"'), *others)
        return self.random.choice(leaves[:3] if self.random.random() < 0.8 else leaves)

    def expression(self, depth: int = 3) -> ast.expr:
        if depth == 0 or self.random.random() < 0.15:
            return self.leaf()
        below = depth - 1
        match self.random.randrange(12):
            case 0 | 1 | 2 | 3:
                return self.chain(below)
            case 4 | 5:
                operator = self.random.choice(BINARY)()
                return ast.BinOp(self.expression(below), operator, self.expression(below))
            case 6:
                operator = self.random.choice((ast.And, ast.Or))()
                return ast.BoolOp(operator, self.some(below, 2))
            case 7:
                left, right = self.some(below, 2, 2)
                return ast.Compare(left, [self.random.choice(COMPARISONS)()], [right])
            case 8:
                operator = self.random.choice((ast.USub, ast.Not, ast.Invert))()
                return ast.UnaryOp(operator, self.expression(below))
            case 9:
                return ast.IfExp(*self.some(below, 3, 3))
            case 10:
                return ast.ListComp(self.expression(below), self.loops(below))
            case _:
                items = self.some(below)
                keys: list[ast.expr | None] = [ast.Constant(self.word()) for _ in items]
                displays = (ast.List(items), ast.Tuple(items), ast.Dict(keys, items))
                return self.random.choice(displays)

    def chain(self, depth: int) -> ast.expr:
        node: ast.expr = ast.Name(self.word())
        if self.random.random() < 0.15:
            node = self.expression(depth)
        for _ in range(self.random.choice((1, 1, 2, 3, 5))):
            match self.random.randrange(5):
                case 0 | 1:
                    node = ast.Call(ast.Attribute(node, self.word()), *self.arguments(depth))
                case 2:
                    node = ast.Call(node, *self.arguments(depth))
                case 3:
                    node = ast.Attribute(node, self.word())
                case _:
                    index = ast.Tuple(self.some(depth, 2)), self.expression(depth)
                    node = ast.Subscript(node, self.random.choice(index))
        return node

    def arguments(self, depth: int) -> tuple[list[ast.expr], list[ast.keyword]]:
        given = self.some(depth)
        names = [ast.arg(self.word()), ast.arg(self.word())]
        match self.random.randrange(8):
            case 0:
                return [ast.GeneratorExp(self.expression(depth), self.loops(depth))], []
            case 1:
                parameters = ast.arguments([], names, None, [], [], None, [])
                return [*given, ast.Lambda(parameters, self.expression(depth))], []
            case 2 | 3:
                return given, [ast.keyword(self.word(), self.expression(depth))]
            case _:
                return given, []

    def loops(self, depth: int) -> list[ast.comprehension]:
        names: list[ast.expr] = [ast.Name(self.word()), ast.Name(self.word())]
        target = self.random.choice((names[0], ast.Tuple(names)))
        values = self.random.choice((self.chain(depth), ast.Name(self.word())))
        return [ast.comprehension(target, values, self.some(depth, 0, 1), 0)]

    def statement(self) -> tuple[str, int]:
        """A line and its indent, in levels."""
        text = self.random.choice(FORMS)
        while "{name}" in text:
            text = text.replace("{name}", self.word(), 1)
        while "{value}" in text:
            text = text.replace("{value}", ast.unparse(self.expression()), 1)
        return text, self.random.randint(1, 4)


def in_context(text: str, levels: int) -> str:
    """A line inside blocks."""
    blocks = [f"{INDENT * n}def f():\n" for n in range(levels)]
    if text.endswith(","):
        blocks[-1] = f"{INDENT * (levels - 1)}items(\n"
    lines = ["if a:", f"{INDENT}pass"] if text.startswith("elif") else []
    lines += [text, *([f"{INDENT}pass"] if text.endswith(":") else [])]
    end = f"{INDENT * (levels - 1)})\n" if text.endswith(",") else ""
    return "".join((*blocks, *(f"{line}\n" for line in indented(lines, levels)), end))


@settings(deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate), max_examples=20)
@given(st.randoms(use_true_random=True))
def test_statements_are_laid_out_as_by_ruff(random: Random) -> None:
    draw = Draw(random)
    text = "\n\n".join(in_context(*draw.statement()) for _ in range(30))
    # In the formatter's spelling, on the longest lines that it knows.
    text = formatted(text, 320)
    assert module(text) == formatted(text)


def test_lines_of_any_text_may_have_bytes_of_several_kinds() -> None:
    line = f'{"x" * 50} = f("λ × β", "ε", (α + {"y" * 30}), "µ")'
    assert "\n".join(laid_out(line, 0)) + "\n" == formatted(line)


# Existing text


@pytest.mark.parametrize("folder", ["generated", "optdsl/targets", "templates/package"])
def test_what_is_laid_out_stays(folder: str) -> None:
    for path in sorted((ROOT / folder).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert module(text) == text, path


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("indent", [0, 70, 85, 95])
def test_a_broken_line_parses_to_the_same_tree(line: str, indent: int) -> None:
    assert meaning("\n".join(broken_call(line, indent))) == meaning(line)


def test_each_argument_of_the_last_call_has_a_line() -> None:
    line = f"{'x' * 70}.add_(f(a, b), alpha=-f(c), beta=y)"
    lines = ("f(a, b),", "alpha=-f(c),", "beta=y,")
    assert broken_call(line, 4) == (f"{'x' * 70}.add_(", *indented(lines), ")")


def test_an_item_keeps_its_comma() -> None:
    item = f"Slot({'x' * 60}, lambda group: {'y' * 60}(group)),"
    lines = (f"{'x' * 60},", f"lambda group: {'y' * 60}(group),")
    assert laid_out(item, 8) == ("Slot(", *indented(lines), "),")


# Packages


def check_package(specs: Mapping[str, str], root: Path) -> None:
    """Build specs, and have the formatter look at all files."""
    (root / "specs").mkdir(parents=True)
    for name, text in specs.items():
        (root / "specs" / name).write_text(text, encoding="utf-8")
    plan = build.plan(pipeline.load([root / "specs"]), "optdsl build")
    build.write(plan, root / "package")
    done = ruff("--check", "--diff", "--line-length", str(WIDTH), str(root / "package"))
    assert done.returncode == 0, done.stdout


DECLARED = re.compile(r"\b(?:hyper|option|state|let)\s+(\w+)|\bhyper\s+\w+\s*:\s*\(([^)]*)\)")
# They mean something of their own.
FIXED = {"lr", "step", "t", "metric", "base_lr", "initial", "progress", "momentum", "decay"}


def with_long_names(texts: Mapping[str, str], length: int) -> dict[str, str]:
    """Specs whose names have so many letters more; no definition is called like a shipped one."""
    whole = "\n".join(texts.values())
    found = (
        word for match in DECLARED.findall(whole) for word in re.findall(r"\w+", " ".join(match))
    )
    longer = {
        n: (f"{n}_{'long_name_' * length}"[: len(n) + length]).rstrip("_")
        for n in set(found) - FIXED
    }
    definitions = re.findall(r"^(?:optimizer|schedule|average) (\w+)", whole, re.M)
    longer |= {n: f"{n}Long" for n in definitions}
    # A name before a parenthesis may be an operator's, such as `sum`.
    words = re.compile(rf"(?<![.\w])(?!(?:{'|'.join(FUNCTIONS)})\()\w+(?!\w)")
    return {
        name: words.sub(lambda match: longer.get(match[0], match[0]), text)
        for name, text in texts.items()
    }


@pytest.mark.parametrize("length", [6, 25, 60])
def test_specs_with_long_names_are_emitted_as_the_formatter_wants(
    length: int, tmp_path: Path
) -> None:
    shipped = {p.name: p.read_text(encoding="utf-8") for p in (ROOT / "specs").rglob("*.opt")}
    check_package(with_long_names(shipped, length), tmp_path / "shipped")
    programs = "\n".join(source(n, b) for n, b in ACCEPTED.items())
    check_package(with_long_names({"programs.opt": programs}, length), tmp_path / "programs")


def test_class_that_only_changes_a_default_is_emitted_as_the_formatter_wants(
    tmp_path: Path,
) -> None:
    text = "optimizer Slow from Adam {\n    default lr = 1e-4\n}\n"
    check_package({"slow.opt": text}, tmp_path)


@settings(deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate), max_examples=5)
@given(st.lists(updates(), min_size=4, max_size=4), st.sampled_from([0, 10, 30]))
def test_random_specs_are_emitted_as_the_formatter_wants(specs: list[str], length: int) -> None:
    texts = (s.replace("Random", f"Random{n}") for n, s in enumerate(specs))
    with TemporaryDirectory() as root:
        check_package(with_long_names({"r.opt": "\n".join(texts)}, length), Path(root))
