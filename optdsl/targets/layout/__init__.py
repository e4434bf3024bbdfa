"""A logical line of Python -> the physical lines that `ruff format` would make of it."""

from __future__ import annotations

import io
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from optdsl.targets.layout.document import INDENT, WIDTH, Printer
from optdsl.targets.layout.python import Source, Unknown

__all__ = [
    "INDENT",
    "WIDTH",
    "bracketed",
    "broken_assignment",
    "broken_call",
    "comment",
    "indented",
    "laid_out",
    "last_bracket",
    "module",
]


def indented(lines: Iterable[str], levels: int = 1) -> tuple[str, ...]:
    return tuple(INDENT * levels + line if line else line for line in lines)


def comment(text: str) -> str:
    """A comment of one line: the words of the spec, its spaces folded."""
    return f"# {' '.join(text.split())}"


@lru_cache(maxsize=4096)
def laid_out(text: str, indent: int, spread: int | None = None) -> tuple[str, ...]:
    """The lines of a statement, or of a header with its colon, that begins in column `indent`.
    A comma behind it makes it an item of brackets. If the bracket that opens at `spread` breaks,
    each of its items gets a line."""
    if "\n" not in text and indent + len(text) <= WIDTH:
        return (text,)
    if text.endswith(","):
        _, *lines, _ = laid_out(f"items({text})", indent - len(INDENT))
        return tuple(line.removeprefix(INDENT) for line in lines)
    word = "el" if text.startswith("elif ") else ""
    body = text.removeprefix(word)
    try:
        doc = Source(body, spread).line()
    except (SyntaxError, Unknown):
        return tuple(text.split("\n"))
    return Printer(indent).print((word, doc))


def bracketed(head: str, items: Sequence[str], tail: str, indent: int) -> tuple[str, ...]:
    """`head` + items + `tail` on one line where it fits, else an item per line."""
    return laid_out(f"{head}{', '.join(items)}{tail}", indent, len(head) - 1)


def broken_call(line: str, indent: int) -> tuple[str, ...]:
    """A line that may end in a call, with that call's arguments a line each if it is too long."""
    start = last_bracket(line) if line.endswith(")") else 0
    calls = line[start - 1].isalnum() or line[start - 1] == "_"
    return laid_out(line, indent, start if start > 0 and calls else None)


def broken_assignment(name: str, value: str, indent: int) -> tuple[str, ...]:
    """`name = value`"""
    return laid_out(f"{name} = {value}", indent)


def last_bracket(text: str) -> int:
    """Where the bracket opens that the last character closes."""
    depth, start = 0, len(text)
    while start > 0:
        start -= 1
        depth += {")": 1, "(": -1}.get(text[start], 0)
        if depth == 0:
            break
    return start


def module(text: str) -> str:
    """A module, or some methods of one, with every statement laid out. One with a comment or a
    string of several lines in it stays as it is, and so does one that no target emits."""
    rows = text.split("\n")
    for first, last in reversed(list(_statements(text))):
        said = "\n".join(rows[first:last]).lstrip()
        indent = len(rows[first]) - len(rows[first].lstrip())
        lines = laid_out(said, indent)
        if lines != tuple(said.split("\n")):
            rows[first:last] = (" " * indent + line for line in lines)
    return "\n".join(rows)


def _statements(text: str) -> Iterator[tuple[int, int]]:
    """The rows of each statement and of each header, the last one excluded."""
    first, plain = None, True
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        match token.type:
            case tokenize.NEWLINE:
                if first is not None and plain:
                    yield first, token.end[0]
                first, plain = None, True
            case tokenize.COMMENT:
                plain = plain and first is None
            case tokenize.NL | tokenize.INDENT | tokenize.DEDENT:
                pass
            case _:
                first = token.start[0] - 1 if first is None else first
                plain = plain and token.start[0] == token.end[0]
