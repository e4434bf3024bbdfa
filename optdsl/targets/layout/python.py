"""The text of one logical line of Python -> a document, with the breaks that `ruff format` makes.

Where an expression may break depends on what surrounds it: inside brackets anywhere; elsewhere only
if optional parentheses around the whole are there, which a key stands for; or not at all (None).
"""

from __future__ import annotations

import ast
import io
import keyword
import tokenize
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from optdsl.targets.layout.document import (
    Atom,
    Brackets,
    Choice,
    Doc,
    Either,
    Group,
    Indent,
    Key,
    Line,
    NewLine,
)

Level: TypeAlias = "Key | None"
INSIDE = Key()

# How weakly an operator binds, and its symbol: the weakest break first.
OPERATORS: dict[type[ast.AST], tuple[int, str]] = {
    ast.Pow: (2, "**"), ast.Invert: (3, "~"), ast.USub: (0, "-"), ast.UAdd: (0, "+"),
    ast.Mult: (4, "*"), ast.MatMult: (4, "@"), ast.Div: (4, "/"), ast.FloorDiv: (4, "//"),
    ast.Mod: (4, "%"), ast.Add: (5, "+"), ast.Sub: (5, "-"), ast.LShift: (6, "<<"),
    ast.RShift: (6, ">>"), ast.BitAnd: (7, "&"), ast.BitXor: (8, "^"), ast.BitOr: (9, "|"),
    ast.Eq: (10, "=="), ast.NotEq: (10, "!="), ast.Lt: (10, "<"), ast.LtE: (10, "<="),
    ast.Gt: (10, ">"), ast.GtE: (10, ">="), ast.Is: (10, "is"), ast.IsNot: (10, "is not"),
    ast.In: (10, "in"), ast.NotIn: (10, "not in"), ast.Not: (0, "not "), ast.And: (11, "and"),
    ast.Or: (11, "or"),
}  # fmt: skip
ATTRIBUTE, COMPARISON, TERNARY = 1, 10, 12

Operation = ast.BinOp | ast.BoolOp | ast.Compare
Chain = ast.Attribute | ast.Call | ast.Subscript
Comprehension = ast.ListComp | ast.GeneratorExp
Display = ast.List | ast.Set | ast.Dict | ast.Tuple | Comprehension


class Unknown(Exception):
    """A statement that no target emits."""


def break_in(level: Level, flat: str = " ") -> Doc:
    if level is None:
        return flat
    return Line(flat) if level is INSIDE else Either(Line(flat), flat, level)


def group(doc: Doc, level: Level) -> Doc:
    if level is None:
        return doc
    return Group(doc) if level is INSIDE else Group(doc, inside=level)


def brackets(left: str, doc: Doc, right: str, level: Level) -> Doc:
    if doc == ():
        return left + right
    return Brackets(left, doc, right, None if level is INSIDE else level)


def wrapped(doc: Doc) -> Doc:
    return ("(", Indent((NewLine(), doc)), NewLine(), ")")


def parenthesized_if_broken(doc: Doc, key: Key | None = None) -> Doc:
    inside = Indent((Line(""), doc), key)
    return Group((Either("(", ""), inside, Line(""), Either(")", "")), key)


class Source:
    """One logical line. `spread` is where a bracket opens whose items get a line each if it breaks,
    as do those of a call that ends what it holds."""

    def __init__(self, text: str, spread: int | None = None) -> None:
        self.text = text
        self.rows = text.splitlines(keepends=True)
        self.closing: dict[int, int] = {}
        self.grouped: set[tuple[int, int]] = set()  # what stands in parentheses that only group
        self.kept: set[int] = set()  # closing brackets behind a comma, which keeps them broken
        self._find_brackets()
        self.spread: set[int] = set()  # closing brackets
        if spread is not None:
            end = self.closing[spread]
            self.spread.add(end)
            while text[end - 1] == ")":
                end -= 1
                self.spread.add(end)

    def _find_brackets(self) -> None:
        opened: list[tuple[int, bool]] = []
        before, is_operator = "", True
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            at = sum(map(len, self.rows[: token.start[0] - 1])) + token.start[1]
            word = token.string
            if token.type == tokenize.OP and word in "([{":
                word_before = keyword.iskeyword(before) and before not in ("None", "True", "False")
                groups = word_before or (is_operator and before not in (")", "]", "}"))
                opened.append((at, word == "(" and groups))
            elif token.type == tokenize.OP and word in ")]}":
                opening, groups = opened.pop()
                self.closing[opening] = at
                if before == ",":
                    self.kept.add(at)
                if groups:
                    inside = self.text[opening + 1 : at]
                    start = at - len(inside.lstrip())
                    self.grouped.add((start, start + len(inside.strip())))
            if word.strip():
                before, is_operator = word, token.type == tokenize.OP

    def at(self, row: int, offset: int) -> int:
        """An index into the text: the tree counts bytes."""
        here = len(self.rows[row - 1].encode()[:offset].decode())
        return sum(map(len, self.rows[: row - 1])) + here

    def span(self, node: ast.expr | ast.keyword) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self.at(node.lineno, node.col_offset)
        return start, self.at(node.end_lineno, node.end_col_offset)

    def said(self, node: ast.expr) -> str:
        start, end = self.span(node)
        return self.text[start:end]

    def is_grouped(self, node: ast.expr) -> bool:
        return self.span(node) in self.grouped

    def is_kept(self, node: ast.expr) -> bool:
        return self.span(node)[1] - 1 in self.kept

    def is_bare(self, node: ast.expr) -> bool:
        """Whether a tuple is one without parentheses."""
        start, end = self.span(node)
        return isinstance(node, ast.Tuple) and self.closing.get(start) != end - 1

    # Expressions

    def expr(self, node: ast.expr, level: Level) -> Doc:
        if self.is_grouped(node):
            return brackets("(", self.inner(node, INSIDE), ")", level)
        return self.inner(node, level)

    def inner(self, node: ast.expr, level: Level) -> Doc:
        """An expression without the parentheses that stand around it."""
        match node:
            case ast.BinOp() | ast.BoolOp() | ast.Compare():
                return group(self.operation(list(self.flat(node)), level), level)
            case ast.UnaryOp(op=op, operand=ast.BinOp(op=ast.Pow()) as power):
                power_doc = brackets("(", self.inner(power, INSIDE), ")", level)
                return OPERATORS[type(op)][1], power_doc
            case ast.UnaryOp(op=op, operand=operand):
                return OPERATORS[type(op)][1], self.expr(operand, level)
            case ast.IfExp():
                return group(self.ternary(node, level), level)
            case ast.Attribute() | ast.Call() | ast.Subscript():
                fluent = level is not None and self.is_fluent(node)
                chain = self.chain(node, level, fluent)
                return Group(chain) if fluent else chain
            case ast.Lambda():
                return self.function(node, level)
            case ast.Tuple(elts=[only]):
                return brackets("(", (self.expr(only, INSIDE), ","), ")", level)
            case ast.Tuple(elts=items) | ast.List(elts=items) | ast.Set(elts=items):
                said = self.said(node)
                return brackets(said[0], self.items(items, self.is_kept(node)), said[-1], level)
            case ast.Dict(keys=keys, values=values):
                pairs = [
                    ("**" if k is None else (self.expr(k, INSIDE), ": "), self.expr(v, INSIDE))
                    for k, v in zip(keys, values, strict=True)
                ]
                return brackets("{", separated(pairs, self.is_kept(node)), "}", level)
            case ast.ListComp():
                return brackets("[", self.comprehension(node), "]", level)
            case ast.GeneratorExp():
                return brackets("(", self.comprehension(node), ")", level)
            case ast.Starred(value=value):
                return "*", self.expr(value, level)
            case _ if "\n" in self.said(node):
                raise Unknown
            case _:
                return self.said(node)

    def items(self, nodes: Sequence[ast.expr], kept: bool) -> Doc:
        return separated([self.expr(n, INSIDE) for n in nodes], kept)

    def flat(self, node: ast.expr) -> Iterator[ast.AST]:
        """Operands and operators in order, without the tree that their precedence makes."""
        match node:
            case ast.BinOp(left=first, op=op, right=right):
                rest: list[tuple[ast.AST, ast.expr]] = [(op, right)]
            case ast.BoolOp(op=op, values=[first, *values]):
                rest = [(op, value) for value in values]
            case ast.Compare(left=first, ops=ops, comparators=values):
                rest = list(zip(ops, values, strict=True))
            case _:
                raise AssertionError(node)
        for operator, operand in ((None, first), *rest):
            if operator is not None:
                yield operator
            if isinstance(operand, Operation) and not self.is_grouped(operand):
                yield from self.flat(operand)
            else:
                yield operand

    def operation(self, parts: Sequence[ast.AST], level: Level) -> Doc:
        """It breaks before its weakest operators; each side of those may break in turn."""
        if len(parts) == 1:
            assert isinstance(parts[0], ast.expr)
            return self.expr(parts[0], level)
        weakest = max(OPERATORS[type(op)][0] for op in parts[1::2])
        docs: list[Doc] = []
        start = 0
        splits = [n for n in range(1, len(parts), 2) if OPERATORS[type(parts[n])][0] == weakest]
        for end in (*splits, len(parts)):
            side = parts[start:end]
            doc = self.operation(side, level)
            docs.append(doc if len(side) == 1 else group(doc, level))
            if end < len(parts):
                symbol = OPERATORS[type(parts[end])][1]
                tight = symbol == "**" and all(map(self.is_simple, parts[end - 1 : end + 2 : 2]))
                # Behind a break a power has its space again.
                named = None if level is INSIDE else level
                space: Doc = " " if not tight else Either(" ", "", named) if level else ""
                docs += [break_in(level, "" if tight else " "), symbol, space]
            start = end + 1
        return tuple(docs)

    def is_simple(self, node: ast.AST) -> bool:
        """Whether a power of it is written without spaces."""
        match node:
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() | ast.Invert(), operand=inner):
                return not self.is_grouped(node) and self.is_simple(inner)
            case ast.Attribute(value=inner):
                return not self.is_grouped(node) and self.is_simple(inner)
            case ast.Name() | ast.Constant():
                text = isinstance(node, ast.Constant) and isinstance(node.value, str)
                return not text and not self.is_grouped(node)
            case _:
                return False

    def ternary(self, node: ast.IfExp, level: Level) -> Doc:
        """A chain of them breaks as one."""
        if isinstance(node.orelse, ast.IfExp) and not self.is_grouped(node.orelse):
            orelse = self.ternary(node.orelse, level)
        else:
            orelse = group(self.expr(node.orelse, level), level)
        then, test = self.expr(node.body, level), self.expr(node.test, level)
        return then, break_in(level), "if ", test, break_in(level), "else ", orelse

    def comprehension(self, node: Comprehension) -> Doc:
        parts: list[Doc] = [Group(self.expr(node.elt, INSIDE))]
        for loop in node.generators:
            parts += [Line(), "for ", self.said(loop.target), " in ", self.expr(loop.iter, INSIDE)]
            for condition in loop.ifs:
                parts += [Line(), "if ", self.expr(condition, INSIDE)]
        return Group(tuple(parts))

    def function(self, node: ast.Lambda, level: Level) -> Doc:
        """The body breaks in brackets of its own or gets parentheses, but not the whole."""
        body = node.body
        head = self.text[self.span(node)[0] : self.span(body)[0]].rstrip("(\n ") + " "
        if isinstance(body, ast.Call | ast.Subscript) and not self.is_fluent(body):
            doc = self.inner(body, level)
            return head, Choice((doc, Group(doc, broken=True), wrapped(doc)))
        if isinstance(body, Display):
            return head, self.expr(body, level)
        return head, parenthesized_if_broken(self.inner(body, INSIDE))

    # Calls

    def is_fluent(self, node: ast.expr) -> bool:
        """Whether a chain breaks before each of its later dots: it takes two dots behind calls."""
        return self.dots_behind_calls(node) >= 2

    def dots_behind_calls(self, node: ast.expr) -> int:
        match node:
            case ast.Attribute(value=inner) if self.is_grouped(inner):
                return 1
            case ast.Attribute(value=inner):
                return isinstance(inner, ast.Call | ast.Subscript) + self.dots_behind_calls(inner)
            case ast.Call(func=inner) | ast.Subscript(value=inner):
                return 0 if self.is_grouped(inner) else self.dots_behind_calls(inner)
            case _:
                return 0

    def chain(self, node: Chain, level: Level, fluent: bool) -> Doc:
        inner = node.func if isinstance(node, ast.Call) else node.value
        grouped = self.is_grouped(inner)
        if isinstance(inner, Chain) and not grouped:
            before = self.chain(inner, level, fluent)
        else:
            before = self.expr(inner, level)
        match node:
            case ast.Attribute(attr=name):
                breaks = fluent and (grouped or isinstance(inner, ast.Call | ast.Subscript))
                return before, Line("") if breaks else "", f".{name}"
            case ast.Call():
                return before, brackets("(", self.arguments(node), ")", level)
            case ast.Subscript(slice=index):
                inside = self.expr(index, INSIDE)
                if isinstance(index, ast.Tuple) and self.is_bare(index):
                    alone = len(index.elts) == 1
                    listed = self.items(index.elts, self.is_kept(node) and not alone)
                    inside = (listed, ",") if alone else Group(listed)
                return before, brackets("[", inside, "]", level)

    def arguments(self, call: ast.Call) -> Doc:
        given: list[ast.expr | ast.keyword] = sorted((*call.args, *call.keywords), key=self.span)
        match given:
            case []:
                return ()
            case [ast.GeneratorExp() as only] if self.span(only)[1] == self.span(call)[1]:
                return self.comprehension(only)
        docs = [
            (f"{item.arg}=" if item.arg else "**", self.expr(item.value, INSIDE))
            if isinstance(item, ast.keyword)
            else self.expr(item, INSIDE)
            for item in given
        ]
        spread = self.span(call)[1] - 1 in self.spread
        listed = separated(docs, self.is_kept(call), always=spread)
        return listed if spread else Group(listed)

    # Optional parentheses

    def value(self, node: ast.expr, keep: bool = False) -> Doc:
        """An expression behind a statement's keyword or sign: in parentheses if it has to break
        elsewhere than in brackets of its own. `keep` leaves those that are there."""
        if keep and self.is_grouped(node):
            return self.expr(node, None)
        if isinstance(node, ast.Tuple) and self.is_bare(node):
            return parenthesized_if_broken(self.items(node.elts, False))
        key = Key()
        match self.break_of(node):
            case "operation" if self.breaks_at_an_end(node):
                return parenthesized_if_broken(self.inner(node, key), key)
            case "operation":
                return parenthesized_if_broken(self.inner(node, INSIDE))
            case "atom" if not keep:
                return Atom(self.inner(node, key), key)
            case _:
                return self.inner(node, None)

    def break_of(self, node: ast.expr) -> str:
        """How an expression may break: as an "operation", that needs parentheses; as an "atom",
        that they may help; in "brackets" of its own."""
        match node:
            case ast.BinOp() | ast.BoolOp() | ast.Compare() | ast.IfExp() | ast.Lambda():
                return "operation"
            case ast.Call() | ast.Attribute() | ast.Subscript() if self.is_fluent(node):
                return "operation"
            case (
                ast.Call(func=inner)
                | ast.Attribute(value=inner)
                | ast.Subscript(value=inner)
                | ast.UnaryOp(operand=inner)
            ):
                return "brackets" if self.is_grouped(inner) else self.break_of(inner)
            case ast.Name() | ast.Constant() | ast.JoinedStr():
                return "atom"
            case _:
                return "brackets"

    def holds(self, node: ast.expr) -> bool | None:
        """Whether the brackets of an expression hold something; None if it has none."""
        match node:
            case _ if self.is_grouped(node):
                return True
            case ast.Call(args=args, keywords=keywords):
                return bool(args or keywords)
            case ast.Dict(keys=items) | ast.List(elts=items) | ast.Tuple(elts=items):
                return bool(items)
            case _:
                return True if isinstance(node, ast.Subscript | Display) else None

    def breaks_at_an_end(self, node: ast.expr) -> bool:
        """Whether an operation may break in the brackets that it begins or ends with."""
        ends = Ends(self)
        ends.enter(node)
        if not ends.has_brackets or ends.count > 1:
            return False
        if ends.weakest <= ATTRIBUTE:
            return True
        return any(
            end is not None and not isinstance(end, ast.Subscript) and bool(self.holds(end))
            for end in (ends.first, ends.last)
        )

    # Statements

    def line(self) -> Doc:
        """A statement, or the header of one."""
        is_header = self.text.endswith(":")
        (node,) = ast.parse(f"{self.text} pass" if is_header else self.text).body
        if is_header is not isinstance(node, ast.If | ast.For | ast.FunctionDef):
            raise Unknown
        return self.statement(node)

    def statement(self, node: ast.stmt) -> Doc:
        match node:
            case ast.Expr(value=value):
                return (
                    self.value(value, True)
                    if isinstance(value, Operation)
                    else self.expr(value, None)
                )
            case ast.Assign(targets=[target], value=value):
                return self.assignment(target, "", "=", value)
            case ast.AugAssign(target=target, op=op, value=value):
                return self.assignment(target, "", f"{OPERATORS[type(op)][1]}=", value)
            case ast.AnnAssign(target=target, annotation=annotation, value=ast.expr() as value):
                return self.assignment(annotation, f"{self.said(target)}: ", "=", value)
            case ast.Return(value=ast.expr() as value):
                return "return ", self.value(value)
            case ast.Raise(exc=ast.expr() as value, cause=None):
                return "raise ", self.value(value, keep=True)
            case ast.If(test=test):
                return "if ", self.value(test), ":"
            case ast.For(target=target, iter=values):
                several = isinstance(target, ast.Tuple)
                names = self.names(target) if several else self.value(target)
                return "for ", names, " in ", self.value(values), ":"
            case ast.FunctionDef():
                return self.definition(node)
            case ast.ImportFrom(module=module, names=names, level=dots):
                imported = [n.name + (f" as {n.asname}" if n.asname else "") for n in names]
                listed = separated(imported, bool(self.kept), always=True)
                return f"from {'.' * dots}{module or ''} import ", parenthesized_if_broken(listed)
            case _:
                raise Unknown

    def assignment(self, target: ast.expr, head: str, sign: str, value: ast.expr) -> Doc:
        before = (head, self.names(target), f" {sign} ")
        splits = isinstance(target, ast.Tuple | ast.Subscript | ast.BinOp)
        if not (splits and self.break_of(value) == "atom" and not isinstance(value, ast.UnaryOp)):
            return before, self.value(value)
        # A target with brackets is the last to break.
        doc = self.inner(value, None)
        flat = (before, doc)
        spread = ((before, Group(doc, broken=True)),) if isinstance(value, Chain) else ()
        return Choice((flat, *spread, (before, wrapped(doc)), flat))

    def names(self, target: ast.expr) -> Doc:
        match target:
            case ast.Tuple(elts=names) if any(isinstance(n, Display) for n in names):
                raise Unknown
            case ast.Tuple(elts=names) if self.is_bare(target):
                return parenthesized_if_broken(self.items(names, False))
            case _:
                return self.expr(target, None)

    def definition(self, node: ast.FunctionDef) -> Doc:
        given = node.args
        defaults = [None] * (len(given.args) - len(given.defaults)) + given.defaults
        docs = [self.parameter(a, d) for a, d in zip(given.args, defaults, strict=True)]
        docs += ["*"] if given.kwonlyargs else []
        docs += [
            self.parameter(a, d) for a, d in zip(given.kwonlyargs, given.kw_defaults, strict=True)
        ]
        if given.posonlyargs or given.vararg or given.kwarg:
            raise Unknown
        end = self.closing[self.text.index("(")]
        listed = separated(docs, end in self.kept, always=True)
        inside = listed if end in self.spread else Group(listed)
        returns: Doc = (" -> ", self.expr(node.returns, None)) if node.returns else ""
        # What is returned breaks only if that does not help.
        parameters: Doc = ("(", Indent((Line(""), inside)), Line(""), ")") if docs else "()"
        return f"def {node.name}", Group((parameters, returns)), ":"

    def parameter(self, name: ast.arg, default: ast.expr | None) -> Doc:
        if name.annotation is None:
            return name.arg if default is None else (f"{name.arg}=", self.expr(default, INSIDE))
        doc = (name.arg, ": ", self.expr(name.annotation, INSIDE))
        return doc if default is None else (*doc, " = ", self.expr(default, INSIDE))


def separated(items: Sequence[Doc], kept: bool, always: bool = False) -> Doc:
    """Items with commas, one behind the last too where each has a line of its own. A single item
    gets none there, unless `always`."""
    if not items:
        return ()
    docs: list[Doc] = [part for item in items for part in (item, ",", Line())][:-2]
    if kept or always or len(items) > 1:
        docs.append(Either(",", ""))
    return (*docs, Group("", broken=True)) if kept else tuple(docs)


class Ends:
    """The first and the last operand of an operation, and how many of its weakest operators."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.weakest = self.count = 0
        self.has_brackets = self.started = False
        self.first: ast.expr | None = None  # None where it starts with an operator
        self.last: ast.expr | None = None

    def met(self, strength: int, count: int = 1) -> None:
        if strength > self.weakest:
            self.weakest, self.count = strength, 0
        if strength == self.weakest:
            self.count += count

    def visit(self, *nodes: ast.expr) -> None:
        for node in nodes:
            self.last = node
            if self.source.is_grouped(node):
                self.has_brackets = True
            else:
                self.enter(node)
            if not self.started:
                self.started, self.first = True, node

    def enter(self, node: ast.expr) -> None:
        match node:
            case ast.BoolOp(op=op, values=values):
                self.met(OPERATORS[type(op)][0], len(values) - 1)
                self.visit(*values)
            case ast.BinOp(left=left, op=op, right=right):
                self.met(OPERATORS[type(op)][0])
                self.visit(left, right)
            case ast.Compare(left=left, ops=ops, comparators=others):
                self.met(COMPARISON, len(ops))
                self.visit(left, *others)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                self.met(TERNARY, 2)
                self.visit(body, test, orelse)
            case ast.Call(func=inner) | ast.Subscript(value=inner):
                self.has_brackets = True
                self.visit(inner)
                self.last = node
            case ast.Attribute(value=inner):
                self.visit(inner)
                if self.source.holds(inner) is not None:
                    self.met(ATTRIBUTE)
                self.last = node
            case ast.UnaryOp(op=op, operand=inner):
                self.met(OPERATORS[type(op)][0] if isinstance(op, ast.Invert) else 0, 0)
                self.started = True
                self.visit(inner)
            case ast.Lambda(body=inner) | ast.Starred(value=inner):
                self.started = True
                self.visit(inner)
            case _ if isinstance(node, Display):
                self.has_brackets = True
