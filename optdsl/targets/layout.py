"""Pieces of Python text, broken over lines as `ruff format` would break them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

WIDTH = 100
INDENT = "    "


def indented(lines: Iterable[str], levels: int = 1) -> tuple[str, ...]:
    return tuple(INDENT * levels + line if line else line for line in lines)


def bracketed(head: str, items: Sequence[str], tail: str, indent: int) -> tuple[str, ...]:
    """`head` + items + `tail` on one line where it fits, else an item per line, each with a comma:
    the last comma keeps a formatter from joining them. `indent` is that of the first line."""
    line = f"{head}{', '.join(items)}{tail}"
    if indent + len(line) <= WIDTH:
        return (line,)
    inner = (line for item in items for line in _item(item, indent + len(INDENT)))
    return (head, *indented(inner), tail)


def _item(text: str, indent: int) -> tuple[str, ...]:
    """A bracket's item with its comma, itself broken where it is too long."""
    if indent + len(text) + 1 <= WIDTH:
        return (f"{text},",)
    *lines, last = broken_call(text, indent)
    return (*lines, f"{last},")


def comment(text: str) -> str:
    """A comment of one line: the words of the spec, its spaces folded."""
    return f"# {' '.join(text.split())}"


def broken_list(line: str, indent: int) -> tuple[str, ...]:
    """A line with a list comprehension, with that on lines of its own if it is too long."""
    before, opening, inside = line.partition("[")
    body, closing, after = inside.rpartition("]")
    element, loop, names = body.partition(" for ")
    if indent + len(line) <= WIDTH or not (opening and closing and loop):
        return (line,)
    if indent + len(INDENT) + len(body) <= WIDTH:
        return (before + opening, INDENT + body, closing + after)
    return (before + opening, INDENT + element, INDENT + loop.lstrip() + names, closing + after)


def broken_call(line: str, indent: int) -> tuple[str, ...]:
    """A line that ends in a call, with that call's arguments a line each if it is too long."""
    if line.endswith("]"):
        return broken_list(line, indent)
    if indent + len(line) <= WIDTH or not line.endswith(")"):
        return (line,)
    start = last_bracket(line)
    if not (line[start - 1].isalnum() or line[start - 1] == "_"):
        # It only groups: a comma would make a tuple of it.
        return (line[: start + 1], INDENT + line[start + 1 : -1], ")")
    return bracketed(line[: start + 1], arguments(line[start + 1 : -1]), ")", indent)


def broken_assignment(name: str, value: str, indent: int) -> tuple[str, ...]:
    """`name = value`; what is too long stands on a line of its own, between brackets."""
    line = f"{name} = {value}"
    if indent + len(line) <= WIDTH:
        return (line,)
    start = last_bracket(value) if value.endswith(")") else 0
    if value[:start].replace(".", "").isidentifier():
        return (f"{name} = {value[: start + 1]}", INDENT + value[start + 1 : -1], ")")
    return (f"{name} = (", INDENT + value, ")")


def last_bracket(text: str) -> int:
    """Where the bracket opens that the last character closes."""
    depth, start = 0, len(text)
    while start > 0:
        start -= 1
        depth += {")": 1, "(": -1}.get(text[start], 0)
        if depth == 0:
            break
    return start


def arguments(text: str) -> list[str]:
    """The arguments of a call's text, at their commas."""
    depth, last, items = 0, 0, []
    for index, character in enumerate(text):
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(character, 0)
        if character == "," and depth == 0:
            items.append(text[last:index].strip())
            last = index + 1
    return [*items, text[last:].strip()]
