"""The syntax tree: what the author wrote, every node with its span. Nothing is bound or checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from optdsl.source import Span


def span_field() -> Any:
    """Spans say where a node came from; two nodes are equal whatever their places."""
    return field(compare=False)


@dataclass(frozen=True, slots=True)
class Name:
    text: str
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class Number:
    """A literal as typed: signatures repeat it so."""

    text: str
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class Text:
    value: str
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class Truth:
    value: bool
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class Unset:
    """`unset`: the first value of a slot, or the default of an optional hyperparameter."""

    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class Unary:
    operator: str
    operand: Expr
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class Binary:
    operator: str
    left: Expr
    right: Expr
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class Comparison:
    """A chain, `0 <= x < 1`: one operator fewer than operands."""

    operands: tuple[Expr, ...]
    operators: tuple[str, ...]
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class Choice:
    condition: Expr
    then: Expr
    orelse: Expr
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class Keyword:
    """`dim=-1` in a call."""

    name: Name
    value: Expr
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class CallExpr:
    function: Name
    arguments: tuple[Expr, ...]
    keywords: tuple[Keyword, ...]
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class Property:
    """`param.ndim`, or with an index `param.shape[-1]`."""

    base: Name
    name: Name
    index: str
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class TupleExpr:
    items: tuple[Expr, ...]
    span: Span = span_field()


Expr = (
    Name | Number | Text | Truth | Unset | Unary | Binary | Comparison | Choice
    | CallExpr | Property | TupleExpr
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Component:
    """A part of a tuple: `beta1`, or with a modifier `optional eps1`."""

    name: Name
    modifier: Name | None


@dataclass(frozen=True, slots=True)
class TypeExpr:
    """`int`, `optional real`, `optional "min" | "max"` or `(beta1, beta2)`."""

    words: tuple[Name, ...]
    choices: tuple[Text, ...]
    components: tuple[Component, ...]
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class RequireClause:
    conditions: tuple[Expr, ...]
    message: Text | None
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class Doc:
    text: Text
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class Cite:
    text: Text
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class HyperDecl:
    """A `hyper` or, with `is_option`, an `option`. In a schedule it may be kept only `when` a
    condition holds, and `as` an attribute of another name."""

    is_option: bool
    name: Name
    type: TypeExpr | None
    default: Expr | None
    when: Expr | None
    attribute: Name | None
    requires: tuple[RequireClause, ...]
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class Flags:
    """`...`: where the execution flags stand in the signature."""

    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class Signature:
    """The constructor's order where it is not the order of declaration; `*` is a name here."""

    names: tuple[Name, ...]
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class Fix:
    """In a derived optimizer: `fix option = value`, or `default hyper = value`."""

    is_default: bool
    name: Name
    value: Expr
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class StateDecl:
    """`modifier` is `eager`, `output`, `group` or empty."""

    modifier: str
    name: Name
    type: TypeExpr | None
    initial: Expr
    when: Expr | None
    attribute: Name | None
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class ParamRequire:
    clause: RequireClause
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class Sparse:
    """`sparse rows`: how the update treats a sparse gradient. A `require` behind it is about such
    gradients only; `sparse none else "..."` is what a gradient that is not taken is told."""

    mode: Name
    clause: RequireClause | None
    refusal: Text | None
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class Complex:
    """`complex decay, descend`: the parts of the update that are complex arithmetic."""

    parts: tuple[Name, ...]
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class Routine:
    """`routine lbfgs`: a module of the runtime in the place of an update."""

    name: Name
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class AssignStmt:
    """`name = value`, or with an operator `name += value`."""

    target: Name
    operator: str
    value: Expr
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class LetStmt:
    name: Name
    value: Expr
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class DescendStmt:
    value: Expr
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class IfStmt:
    condition: Expr
    then: tuple[Stmt, ...]
    orelse: tuple[Stmt, ...]
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class RepeatStmt:
    count: Expr
    body: tuple[Stmt, ...]
    span: Span = span_field()


Stmt = AssignStmt | LetStmt | DescendStmt | IfStmt | RepeatStmt


@dataclass(frozen=True, slots=True)
class Update:
    parameters: tuple[Name, ...]
    body: tuple[Stmt, ...]
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class Form:
    """`closed = e`, `closed target = e when c` or `chain = e` of a schedule; `let name = e` is a
    `LetStmt` beside them."""

    is_closed: bool
    target: Name | None
    value: Expr
    when: Expr | None
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class Observe:
    """`observe name = e`: a value of a schedule for the user to read."""

    name: Name
    value: Expr
    when: Expr | None
    attribute: Name | None
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class Function:
    """`function name(x, y) = e`: an expression with a name, put where it is called."""

    name: Name
    parameters: tuple[Name, ...]
    value: Expr
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class MoveDecl:
    """`lr: initial_lr -> max_lr` in a phase."""

    target: Name
    start: Name
    end: Name
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class PhaseDecl:
    """`until e when c { ... }`"""

    end: Expr
    when: Expr | None
    moves: tuple[MoveDecl, ...]
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class Phases:
    """`phases { ... }` of a schedule, in their order."""

    attribute: Name | None
    phases: tuple[PhaseDecl, ...]
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class Fractional:
    """`fractional`: an epoch may be a fraction."""

    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class ExampleDecl:
    """`example name = e`, or for a function `example name(t) = e`."""

    name: Name
    parameters: tuple[Name, ...]
    value: Expr
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class Drive:
    """In a derived optimizer: `schedule name = e`, what a hyperparameter is in a step."""

    name: Name
    value: Expr
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class AverageForm:
    """`each = e` or `multi = e` of an average."""

    is_each: bool
    value: Expr
    span: Span = span_field()


Member = (
    Doc | Cite | HyperDecl | Flags | Signature | Fix | StateDecl | RequireClause | ParamRequire
    | Sparse | Complex | Routine | Update | Form | LetStmt | Observe | Function | Phases
    | Fractional | ExampleDecl | Drive | AverageForm
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Definition:
    """An `optimizer`, a `schedule` or an `average`."""

    keyword: str
    name: Name
    base: Name | None
    members: tuple[Member, ...]
    span: Span = span_field()


@dataclass(frozen=True, slots=True)
class SyntaxTree:
    definitions: tuple[Definition, ...]
    span: Span = span_field()


def calls(node: object) -> Iterator[CallExpr]:
    """Every call in a tree, or in a part of one."""
    if isinstance(node, CallExpr):
        yield node
    if isinstance(node, tuple):
        for item in node:
            yield from calls(item)
    elif is_dataclass(node) and not isinstance(node, Span):
        for part in fields(node):
            yield from calls(getattr(node, part.name))
