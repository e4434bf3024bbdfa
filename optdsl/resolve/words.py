"""How messages speak of operators, types and members."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from optdsl import syntax
from optdsl.ir import Base, ValueType
from optdsl.ops import OPS, Along, Call, Infix, Prefix, Type
from optdsl.source import Span
from optdsl.unparse import unparse_expr

MEMBERS: dict[type[syntax.Member], str] = {
    syntax.Doc: "doc",
    syntax.Cite: "cite",
    syntax.Flags: "...",
    syntax.Signature: "signature",
    syntax.StateDecl: "state",
    syntax.RequireClause: "require",
    syntax.ParamRequire: "param require",
    syntax.Sparse: "sparse",
    syntax.Complex: "complex",
    syntax.Routine: "routine",
    syntax.Update: "update",
    syntax.LetStmt: "let",
    syntax.Observe: "observe",
    syntax.Function: "function",
    syntax.Phases: "phases",
    syntax.Fractional: "fractional",
    syntax.ExampleDecl: "example",
    syntax.Drive: "schedule",
}


def head(span: Span) -> Span:
    """A member's first word: enough to find it, small enough to read."""
    word = span.text.split(None, 1)[0] if span.text.strip() else span.text
    return Span(span.source, span.start, span.start + len(word))


def member_word(member: syntax.Member) -> str:
    match member:
        case syntax.HyperDecl(is_option=is_option):
            return "option" if is_option else "hyper"
        case syntax.Fix(is_default=is_default):
            return "default" if is_default else "fix"
        case syntax.Form(is_closed=is_closed):
            return "closed" if is_closed else "chain"
        case syntax.AverageForm(is_each=is_each):
            return "each" if is_each else "multi"
        case _:
            return MEMBERS[type(member)]


def words(types: Iterable[type[syntax.Member]]) -> str:
    """The words that members of these types begin with."""
    several = {
        syntax.HyperDecl: ("hyper", "option"),
        syntax.Fix: ("fix", "default"),
        syntax.Form: ("closed", "chain"),
        syntax.AverageForm: ("each", "multi"),
    }
    return ", ".join(w for t in types for w in several.get(t, (MEMBERS.get(t, ""),)))


def spoken(op: str) -> str:
    """An operator as specs write it."""
    match OPS[op].source:
        case Infix(symbol=text) | Prefix(symbol=text) | Call(name=text) | Along(name=text):
            return text.strip()
        case _:
            return {"select": "x if c else y"}.get(op, op)


def count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def article(noun: str) -> str:
    """`a slot`, `an option`"""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


TYPES = {
    Type.NUMBER: "a number",
    Type.BOOL: "a condition",
    Type.TEXT: "a text",
    Type.LIST: "a list",
    Type.FUNCTION: "a function",
}


def type_of(declared: ValueType) -> Type:
    if declared.many:
        return Type.LIST
    match declared.base:
        case Base.BOOL:
            return Type.BOOL
        case Base.TEXT:
            return Type.TEXT
        case Base.FUNCTION:
            return Type.FUNCTION
        case Base.REAL | Base.INT:
            return Type.NUMBER


def type_phrase(declared: ValueType) -> str:
    if declared.many:
        return "a list of integers"
    match declared.base:
        case Base.BOOL:
            return "true or false"
        case Base.INT:
            return "an integer"
        case Base.REAL:
            return "a number"
        case Base.TEXT if declared.choices:
            return " or ".join(f'"{c}"' for c in declared.choices)
        case Base.TEXT:
            return "a text"
        case Base.FUNCTION:
            return "a function"


def require_message(hypers: tuple[str, ...], condition: syntax.Expr) -> str:
    """The message of a `require` without one: the names, their values, the condition."""
    return breaks(hypers, unparse_expr(condition))


def breaks(hypers: tuple[str, ...], text: str) -> str:
    if not hypers:
        return f"This needs {text}"
    names = ", ".join(f"{n} = {{{n}}}" for n in hypers)
    literal = text.replace("{", "{{").replace("}", "}}")  # braces of a text are no placeholders
    return f"{names} breaks the condition {literal}"


def placeholders(message: str) -> Iterator[tuple[int, str]]:
    """The `{name}`s of a message, with their offsets. A brace without its partner is a name too,
    which nothing has."""
    at = 0
    while at < len(message):
        if message[at] == "}":
            yield at, "}"
        if message[at] == "{":
            end = message.find("}", at)
            if end < 0:
                yield at, "{"
                return
            yield at + 1, message[at + 1 : end]
            at = end
        at += 1
