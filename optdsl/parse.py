"""Source -> SyntaxTree, or the first syntax error as a `SpecError`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from functools import cache
from importlib.resources import files
from typing import Any

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedToken
from lark.lark import PostLex
from lark.tree import Meta
from lark.visitors import Transformer, v_args

from optdsl import syntax
from optdsl.diagnostics import Code, Diagnostic, SpecError, did_you_mean
from optdsl.source import Source, Span

DEEPEST_NESTING = 100

# What messages call a terminal that is not simply a word or a sign in the grammar.
PHRASES = {
    "NAME": "a name",
    "NUMBER": "a number",
    "STRING": 'a string in "double quotes"',
    "_ELSE": "'else'",
    "_NEWLINE": "the end of the line",
    "AUGMENTED": "'+='",
    "COMPARE": "a comparison",
    "$END": "the end of the file",
}
CHARACTER_HINTS = {
    "^": "Powers are written 'x ** y'.",
    ";": "A statement ends with its line.",
    "'": 'Strings stand in "double quotes", on one line.',
    '"': 'Strings stand in "double quotes", on one line, without backslashes.',
    "&": "Conditions are joined with 'and'.",
    "!": "Negation is written 'not x'.",
    "[": "Parts of a tuple have names of their own: hyper betas: (beta1, beta2) = (0.9, 0.999).",
}
STATEMENTS = ("let", "descend", "if", "else", "repeat")
# Terminals that begin an expression, and those that continue one: messages name neither one by one.
BEGIN = frozenset({"NAME", "NUMBER", "STRING", "_LPAREN", "MINUS", "NOT", "TRUE", "FALSE", "UNSET"})
CONTINUE = frozenset(
    {"OR", "AND", "COMPARE", "PLUS", "MINUS", "STAR", "SLASH", "SLASH_SLASH", "PERCENT", "AT"}
    | {"POW", "_IF", "_LPAREN", "_DOT"}
)
# No editor shows them, and Python refuses some of them in generated code.
INVISIBLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ufeff]")


def parse(source: Source) -> syntax.SyntaxTree:
    """The tree of a source. One syntax error per file: what follows it cannot be trusted."""
    hidden = INVISIBLE.search(source.text)
    if hidden is not None:
        raise SpecError([_unexpected_character(source, hidden.start())])
    # A last line without its newline would end in a comment that belongs to nothing.
    text = source.text if source.text.endswith("\n") else source.text + "\n"
    parser, lines = _parser()
    try:
        tree: Tree[Token] = parser.parse(text)
    except _RunTogether as error:
        raise SpecError([_run_together(source, error.first, error.second)]) from None
    except UnexpectedCharacters as error:
        raise SpecError([_unexpected_character(source, error.pos_in_stream or 0)]) from None
    except UnexpectedToken as error:
        raise SpecError([_unexpected_token(source, error, lines)]) from None
    _check_depth(source, tree)
    result: syntax.SyntaxTree = _Builder(source).transform(tree)
    return result


class _RunTogether(Exception):
    """Two words without a space between them: the lexer, which knows which words can stand where,
    reads `hyperlr` as `hyper lr`."""

    def __init__(self, first: Token, second: Token) -> None:
        self.first, self.second = first, second
        super().__init__(first + second)


class _Lines(PostLex):
    """Drops the newlines inside parentheses: they end nothing. After an error, `opened` holds the
    brackets that are open, `last` the last two tokens."""

    always_accept = ("_NEWLINE",)

    def __init__(self) -> None:
        self.opened: list[Token] = []
        self.last: tuple[Token | None, Token | None] = (None, None)

    def process(self, stream: Iterator[Token]) -> Iterator[Token]:
        self.opened, self.last = [], (None, None)
        for token in stream:
            before: Token | None = self.last[1]
            if before is not None and _touch(before, token):
                raise _RunTogether(before, token)
            self.last = (before, token)
            match token.type:
                case "_NEWLINE" if self.in_parentheses:
                    continue
                case "_LPAREN" | "_LBRACE":
                    self.opened.append(token)
                case "_RPAREN" | "_RBRACE" if self.opened:
                    self.opened.pop()
            yield token

    def before(self, token: Token) -> Token | None:
        """The token before one that may not have come through here: the lexer raises errors too."""
        before, last = self.last
        return before if last is not None and last.start_pos == token.start_pos else last

    @property
    def in_parentheses(self) -> bool:
        return bool(self.opened) and self.opened[-1].type == "_LPAREN"


def _touch(first: Token, second: Token) -> bool:
    """Whether two words have nothing between them."""
    return first.end_pos == second.start_pos and _is_word(first[-1:]) and _is_word(second[:1])


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


@cache
def grammar() -> str:
    return files("optdsl").joinpath("grammar.lark").read_text(encoding="utf-8")


@cache
def _parser() -> tuple[Lark, _Lines]:
    lines = _Lines()
    return Lark(grammar(), parser="lalr", propagate_positions=True, postlex=lines), lines


@cache
def _patterns() -> dict[str, str]:
    return {t.name: t.pattern.value for t in _parser()[0].terminals}


def _phrase(terminal: str) -> str:
    return PHRASES.get(terminal) or f"'{_patterns()[terminal]}'"


# Messages


def _unexpected_character(source: Source, start: int) -> Diagnostic:
    start = min(start, max(0, len(source.text) - 1))
    character = source.text[start]
    shown = f"'{character}'" if character.isprintable() else f"U+{ord(character):04X}"
    message = f"Unexpected character {shown}."
    hints = (CHARACTER_HINTS[character],) if character in CHARACTER_HINTS else ()
    if not character.isprintable():
        hints = ("Remove it. Editors do not show it.",)
    if character == '"':
        message = "This string does not end."
    return Diagnostic(Code.SYNTAX, message, Span(source, start, start + 1), hints=hints)


def _run_together(source: Source, first: Token, second: Token) -> Diagnostic:
    span = _token_span(source, first).to(_token_span(source, second))
    product = first.type == "NUMBER" and second.type == "NAME"
    hint = f"A product is written '{first} * {second}'." if product else "Put a space between them."
    message = f"'{_shorten(first)}' and '{_shorten(second)}' run together."
    return Diagnostic(Code.SYNTAX, message, span, hints=(hint,))


def _unexpected_token(source: Source, error: UnexpectedToken, lines: _Lines) -> Diagnostic:
    token, accepted = error.token, error.accepts or set()
    before = lines.before(token)
    if before is not None and _touch(before, token):
        return _run_together(source, before, token)
    ends_line, ends_file = token.type == "_NEWLINE", token.type == "$END"
    start = token.start_pos or 0
    if ends_file or not source.text[start:].strip():
        end = len(source.text.rstrip())
        span, message = Span(source, max(0, end - 1), end), "The file ends too early."
    elif ends_line:
        span, message = Span(source, start, start + 1), "The line ends too early."
    else:
        span, message = _token_span(source, token), f"Unexpected '{_shorten(token)}'."
    hints = _meant(token, accepted) or _expected(token, accepted)
    misspelt = _misspelt_statement(before, token)
    if before is not None and misspelt:
        hints = misspelt
        span, message = _token_span(source, before), f"Unexpected '{_shorten(before)}'."
    opened = lines.opened[-1:] if lines.in_parentheses or ends_file else []
    related = tuple((_token_span(source, t), "opened here") for t in opened)
    return Diagnostic(Code.SYNTAX, message, span, related=related, hints=hints)


def _meant(token: Token, accepted: Collection[str]) -> tuple[str, ...]:
    """The keyword that could stand here and that this word resembles."""
    words = [_patterns().get(t, "") for t in accepted if t not in PHRASES]
    return did_you_mean(token, [w for w in words if w.isalpha()]) if token.type == "NAME" else ()


def _expected(token: Token, accepted: Collection[str]) -> tuple[str, ...]:
    """What could stand here, in few words."""
    left, phrases = set(accepted), []
    if {"NUMBER", "_LPAREN"} <= left:
        left -= BEGIN
        phrases.append("an expression")
    if {"PLUS", "POW"} <= left:
        left -= CONTINUE
        phrases.append("an operator")
        if token.type in ("NAME", "NUMBER", "_LPAREN"):
            return ("An operator is missing before it: a product is written 'x * y'.",)
    phrases += sorted({_phrase(t) for t in left})
    if not phrases or len(phrases) > 8:
        return ()
    *most, last = phrases
    expected = f"Expected {', '.join(most)} or {last}." if most else f"Expected {last}."
    goes_on = phrases == ["an expression"] and token.type == "_NEWLINE"
    more = ("Inside parentheses an expression may go on in the next line.",) if goes_on else ()
    return (expected, *more)


def _misspelt_statement(before: Token | None, token: Token) -> tuple[str, ...]:
    """`desend lr * grad`: the word before the unexpected one."""
    if before is None or before.type != "NAME" or token.type not in ("NAME", "NUMBER"):
        return ()
    return did_you_mean(before, STATEMENTS)


def _shorten(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def _token_span(source: Source, token: Token) -> Span:
    return Span(source, token.start_pos or 0, token.end_pos or 0)


def _check_depth(source: Source, tree: Tree[Token]) -> None:
    """Later stages recurse, so nesting has an end. This walk itself does not recurse."""
    stack = [(tree, 0)]
    while stack:
        node, depth = stack.pop()
        if depth > DEEPEST_NESTING:
            start = node.meta.start_pos
            raise SpecError(
                [
                    Diagnostic(
                        Code.TOO_DEEP,
                        f"More than {DEEPEST_NESTING} levels of nesting.",
                        Span(source, start, start + 1),
                        hints=("Name a part of it with 'let'.",),
                    )
                ]
            )
        stack.extend((c, depth + 1) for c in node.children if isinstance(c, Tree))


@v_args(meta=True, inline=True)
class _Builder(Transformer[Token, Any]):
    """Lark's tree -> ours."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source

    def _span(self, meta: Meta) -> Span:
        if meta.empty:
            return Span(self.source, 0, 0)
        return Span(self.source, meta.start_pos, meta.end_pos)

    def _name(self, token: Token) -> syntax.Name:
        return syntax.Name(str(token), _token_span(self.source, token))

    def _optional(self, token: Token | None) -> syntax.Name | None:
        return None if token is None else self._name(token)

    def _text(self, token: Token) -> syntax.Text:
        return syntax.Text(str(token)[1:-1], _token_span(self.source, token))

    def start(self, meta: Meta, *definitions: syntax.Definition) -> syntax.SyntaxTree:
        return syntax.SyntaxTree(definitions, self._span(meta))

    def definition(
        self, meta: Meta, keyword: Token, name: Token, base: Token | None, *members: syntax.Member
    ) -> syntax.Definition:
        span = self._span(meta)
        return syntax.Definition(
            str(keyword), self._name(name), self._optional(base), members, span
        )

    def doc(self, meta: Meta, text: Token) -> syntax.Doc:
        return syntax.Doc(self._text(text), self._span(meta))

    def cite(self, meta: Meta, text: Token) -> syntax.Cite:
        return syntax.Cite(self._text(text), self._span(meta))

    def hyper(self, meta: Meta, *parts: Any) -> syntax.HyperDecl:
        return self._declaration(False, meta, *parts)

    def option(self, meta: Meta, *parts: Any) -> syntax.HyperDecl:
        return self._declaration(True, meta, *parts)

    def _declaration(
        self,
        is_option: bool,
        meta: Meta,
        name: Token,
        type_: syntax.TypeExpr | None,
        default: syntax.Expr | None,
        when: syntax.Expr | None,
        attribute: Token | None,
        *requires: syntax.RequireClause,
    ) -> syntax.HyperDecl:
        return syntax.HyperDecl(
            is_option, self._name(name), type_, default, when, self._optional(attribute), requires,
            self._span(meta),
        )  # fmt: skip

    def flags(self, meta: Meta, _dots: Token) -> syntax.Flags:
        return syntax.Flags(self._span(meta))

    def signature(self, meta: Meta, *names: Token) -> syntax.Signature:
        return syntax.Signature(tuple(self._name(n) for n in names), self._span(meta))

    def fix(self, meta: Meta, name: Token, value: syntax.Expr) -> syntax.Fix:
        return syntax.Fix(False, self._name(name), value, self._span(meta))

    def default(self, meta: Meta, name: Token, value: syntax.Expr) -> syntax.Fix:
        return syntax.Fix(True, self._name(name), value, self._span(meta))

    def state(
        self,
        meta: Meta,
        modifier: Token | None,
        name: Token,
        type_: syntax.TypeExpr | None,
        initial: syntax.Expr,
        when: syntax.Expr | None,
        attribute: Token | None,
    ) -> syntax.StateDecl:
        return syntax.StateDecl(
            str(modifier or ""), self._name(name), type_, initial, when, self._optional(attribute),
            self._span(meta),
        )  # fmt: skip

    def require(self, meta: Meta, *parts: Any) -> syntax.RequireClause:
        *conditions, message = parts
        text = None if message is None else self._text(message)
        return syntax.RequireClause(tuple(conditions), text, self._span(meta))

    def param_require(self, meta: Meta, clause: syntax.RequireClause) -> syntax.ParamRequire:
        return syntax.ParamRequire(clause, self._span(meta))

    def sparse(
        self, meta: Meta, mode: Token, rest: syntax.RequireClause | Token | None
    ) -> syntax.Sparse:
        clause = rest if isinstance(rest, syntax.RequireClause) else None
        refusal = self._text(rest) if isinstance(rest, Token) else None
        return syntax.Sparse(self._name(mode), clause, refusal, self._span(meta))

    def complex(self, meta: Meta, *parts: Token) -> syntax.Complex:
        return syntax.Complex(tuple(self._name(p) for p in parts), self._span(meta))

    def routine(self, meta: Meta, name: Token) -> syntax.Routine:
        return syntax.Routine(self._name(name), self._span(meta))

    def update(self, meta: Meta, *parts: Any) -> syntax.Update:
        *names, body = parts
        parameters = tuple(self._name(n) for n in names if n is not None)
        return syntax.Update(parameters, body, self._span(meta))

    def closed(
        self, meta: Meta, target: Token | None, value: syntax.Expr, when: syntax.Expr | None
    ) -> syntax.Form:
        return syntax.Form(True, self._optional(target), value, when, self._span(meta))

    def chain(self, meta: Meta, value: syntax.Expr) -> syntax.Form:
        return syntax.Form(False, None, value, None, self._span(meta))

    def observe(
        self,
        meta: Meta,
        name: Token,
        value: syntax.Expr,
        when: syntax.Expr | None,
        attribute: Token | None,
    ) -> syntax.Observe:
        span = self._span(meta)
        return syntax.Observe(self._name(name), value, when, self._optional(attribute), span)

    def function(self, meta: Meta, name: Token, *parts: Any) -> syntax.Function:
        *parameters, value = parts
        names = tuple(map(self._name, parameters))
        return syntax.Function(self._name(name), names, value, self._span(meta))

    def phases(
        self, meta: Meta, attribute: Token | None, *phases: syntax.PhaseDecl
    ) -> syntax.Phases:
        return syntax.Phases(self._optional(attribute), phases, self._span(meta))

    def phase(
        self, meta: Meta, end: syntax.Expr, when: syntax.Expr | None, *moves: syntax.MoveDecl
    ) -> syntax.PhaseDecl:
        return syntax.PhaseDecl(end, when, moves, self._span(meta))

    def move(self, meta: Meta, target: Token, start: Token, end: Token) -> syntax.MoveDecl:
        ends = self._name(start), self._name(end)
        return syntax.MoveDecl(self._name(target), *ends, self._span(meta))

    def fractional(self, meta: Meta, _word: Token) -> syntax.Fractional:
        return syntax.Fractional(self._span(meta))

    def drive(self, meta: Meta, _word: Token, name: Token, value: syntax.Expr) -> syntax.Drive:
        return syntax.Drive(self._name(name), value, self._span(meta))

    def example(self, meta: Meta, name: Token, *parts: Any) -> syntax.ExampleDecl:
        *parameters, value = parts
        names = tuple(self._name(p) for p in parameters if p is not None)
        return syntax.ExampleDecl(self._name(name), names, value, self._span(meta))

    def each(self, meta: Meta, value: syntax.Expr) -> syntax.AverageForm:
        return syntax.AverageForm(True, value, self._span(meta))

    def multi(self, meta: Meta, value: syntax.Expr) -> syntax.AverageForm:
        return syntax.AverageForm(False, value, self._span(meta))

    def type(self, meta: Meta, *parts: Any) -> syntax.TypeExpr:
        components = parts[0] if isinstance(parts[0], tuple) else ()
        tokens = [p for p in parts if isinstance(p, Token)]
        words = tuple(self._name(t) for t in tokens if t.type == "NAME")
        choices = tuple(self._text(t) for t in tokens if t.type == "STRING")
        return syntax.TypeExpr(words, choices, components, self._span(meta))

    def components(self, meta: Meta, *parts: syntax.Component) -> tuple[syntax.Component, ...]:
        return parts

    def component(self, meta: Meta, *words: Token) -> syntax.Component:
        *modifier, name = map(self._name, words)
        return syntax.Component(name, modifier[0] if modifier else None)

    def block(self, meta: Meta, *statements: syntax.Stmt) -> tuple[syntax.Stmt, ...]:
        return statements

    def assign(self, meta: Meta, *parts: Any) -> syntax.AssignStmt:
        name, *operator, value = parts
        sign = str(operator[0])[:-1] if operator else ""
        return syntax.AssignStmt(self._name(name), sign, value, self._span(meta))

    def let(self, meta: Meta, name: Token, value: syntax.Expr) -> syntax.LetStmt:
        return syntax.LetStmt(self._name(name), value, self._span(meta))

    def descend(self, meta: Meta, value: syntax.Expr) -> syntax.DescendStmt:
        return syntax.DescendStmt(value, self._span(meta))

    def branch(
        self,
        meta: Meta,
        condition: syntax.Expr,
        then: tuple[syntax.Stmt, ...],
        orelse: tuple[syntax.Stmt, ...] | syntax.IfStmt | None,
    ) -> syntax.IfStmt:
        match orelse:
            case None:
                orelse = ()
            case syntax.IfStmt():
                orelse = (orelse,)
        return syntax.IfStmt(condition, then, orelse, self._span(meta))

    def repeat(
        self, meta: Meta, count: syntax.Expr, body: tuple[syntax.Stmt, ...]
    ) -> syntax.RepeatStmt:
        return syntax.RepeatStmt(count, body, self._span(meta))

    def choice(
        self, meta: Meta, then: syntax.Expr, condition: syntax.Expr, orelse: syntax.Expr
    ) -> syntax.Choice:
        return syntax.Choice(condition, then, orelse, self._span(meta))

    def binary(
        self, meta: Meta, left: syntax.Expr, operator: Token, right: syntax.Expr
    ) -> syntax.Binary:
        return syntax.Binary(str(operator), left, right, self._span(meta))

    def unary(self, meta: Meta, operator: Token, operand: syntax.Expr) -> syntax.Unary:
        return syntax.Unary(str(operator), operand, self._span(meta))

    def comparison(self, meta: Meta, *parts: Any) -> syntax.Comparison:
        operators = tuple(str(p) for p in parts[1::2])
        return syntax.Comparison(parts[::2], operators, self._span(meta))

    def name(self, meta: Meta, token: Token) -> syntax.Name:
        return self._name(token)

    def number(self, meta: Meta, token: Token) -> syntax.Number:
        return syntax.Number(str(token), self._span(meta))

    def string(self, meta: Meta, token: Token) -> syntax.Text:
        return self._text(token)

    def truth(self, meta: Meta, token: Token) -> syntax.Truth:
        return syntax.Truth(token.type == "TRUE", self._span(meta))

    def unset(self, meta: Meta, _word: Token) -> syntax.Unset:
        return syntax.Unset(self._span(meta))

    def call(self, meta: Meta, function: Token, *arguments: Any) -> syntax.CallExpr:
        keywords = tuple(a for a in arguments if isinstance(a, syntax.Keyword))
        given = tuple(a for a in arguments if a is not None and a not in keywords)
        return syntax.CallExpr(self._name(function), given, keywords, self._span(meta))

    def keyword(self, meta: Meta, name: Token, value: syntax.Expr) -> syntax.Keyword:
        return syntax.Keyword(self._name(name), value, self._span(meta))

    def index(self, meta: Meta, sign: Token | None, number: Token) -> str:
        return f"{sign or ''}{number}"

    def property(self, meta: Meta, base: Token, name: Token, index: str | None) -> syntax.Property:
        return syntax.Property(self._name(base), self._name(name), index or "", self._span(meta))

    def group(self, meta: Meta, *items: syntax.Expr) -> syntax.Expr:
        # Parentheses only group: the tree holds what they say.
        return items[0] if len(items) == 1 else syntax.TupleExpr(items, self._span(meta))
