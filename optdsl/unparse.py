"""SyntaxTree -> text, laid out: what `parse` reads back to the same tree. Comments are not kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import assert_never

from optdsl import syntax
from optdsl.ops import LEVELS, Level

INDENT = "    "
# Members of one group stand together, groups are separated by an empty line.
GROUPS: tuple[tuple[type[syntax.Member], ...], ...] = (
    (syntax.Doc, syntax.Cite),
    (
        syntax.HyperDecl,
        syntax.Flags,
        syntax.Signature,
        syntax.RequireClause,
        syntax.ParamRequire,
        syntax.Sparse,
        syntax.Complex,
    ),
    (syntax.Fix, syntax.Drive),
    (syntax.Function,),
    (syntax.StateDecl, syntax.Observe),
    (syntax.Phases,),
    (syntax.LetStmt,),
    (syntax.Form, syntax.Fractional, syntax.AverageForm),
    (syntax.Update, syntax.Routine),
    (syntax.ExampleDecl,),
)


def unparse(tree: syntax.SyntaxTree) -> str:
    return "\n".join("\n".join(_definition(d)) + "\n" for d in tree.definitions)


def unparse_expr(expr: syntax.Expr) -> str:
    return _expr(expr)[0]


def _definition(definition: syntax.Definition) -> Iterator[str]:
    base = f" from {definition.base.text}" if definition.base is not None else ""
    yield f"{definition.keyword} {definition.name.text}{base} {{"
    for place, (_, members) in enumerate(groupby(definition.members, _group)):
        if place > 0:
            yield ""
        for member in members:
            yield from (INDENT + line for line in _member(member))
    yield "}"


def _group(member: syntax.Member) -> int:
    return next(n for n, types in enumerate(GROUPS) if isinstance(member, types))


# Members


def _member(member: syntax.Member) -> Iterator[str]:
    match member:
        case syntax.Doc(text=text):
            yield f'doc "{text.value}"'
        case syntax.Cite(text=text):
            yield f'cite "{text.value}"'
        case syntax.HyperDecl():
            yield _hyper(member)
        case syntax.Flags():
            yield "..."
        case syntax.Signature(names=names):
            yield f"signature ({', '.join(n.text for n in names)})"
        case syntax.Fix(is_default=is_default, name=name, value=value):
            yield f"{'default' if is_default else 'fix'} {name.text} = {unparse_expr(value)}"
        case syntax.StateDecl():
            yield _state(member)
        case syntax.RequireClause():
            yield _require(member)
        case syntax.ParamRequire(clause=clause):
            yield f"param {_require(clause)}"
        case syntax.Sparse(mode=mode, clause=clause, refusal=refusal):
            told = f' else "{refusal.value}"' if refusal is not None else ""
            yield f"sparse {mode.text}{'' if clause is None else f' {_require(clause)}'}{told}"
        case syntax.Complex(parts=parts):
            yield f"complex {', '.join(p.text for p in parts)}"
        case syntax.Routine(name=name):
            yield f"routine {name.text}"
        case syntax.LetStmt():
            yield from _statement(member)
        case syntax.Form(is_closed=is_closed, target=target, value=value, when=when):
            word = f"closed{_behind(' ', target)}" if is_closed else "chain"
            yield f"{word} = {unparse_expr(value)}{_when(when)}"
        case syntax.Observe(name=name, value=value, when=when, attribute=attribute):
            kept = f"{_when(when)}{_behind(' as ', attribute)}"
            yield f"observe {name.text} = {unparse_expr(value)}{kept}"
        case syntax.Function(name=name, parameters=parameters, value=value):
            yield f"function {name.text}{_parameters(parameters)} = {unparse_expr(value)}"
        case syntax.Phases(attribute=attribute, phases=phases):
            yield from _enclosed(f"phases{_behind(' as ', attribute)}", map(_phase, phases))
        case syntax.Drive(name=name, value=value):
            yield f"schedule {name.text} = {unparse_expr(value)}"
        case syntax.Fractional():
            yield "fractional"
        case syntax.ExampleDecl(name=name, parameters=parameters, value=value):
            yield f"example {name.text}{_parameters(parameters)} = {unparse_expr(value)}"
        case syntax.AverageForm(is_each=is_each, value=value):
            yield f"{'each' if is_each else 'multi'} = {unparse_expr(value)}"
        case syntax.Update(parameters=parameters, body=body):
            yield from _block(f"update{_parameters(parameters)}", body)
        case _:
            assert_never(member)


def _hyper(member: syntax.HyperDecl) -> str:
    head = f"{'option' if member.is_option else 'hyper'} {member.name.text}{_type(member.type)}"
    default = f" = {unparse_expr(member.default)}" if member.default is not None else ""
    kept = f"{_when(member.when)}{_behind(' as ', member.attribute)}"
    return " ".join([head + default + kept, *map(_require, member.requires)])


def _when(condition: syntax.Expr | None) -> str:
    return "" if condition is None else f" when {unparse_expr(condition)}"


def _behind(word: str, name: syntax.Name | None) -> str:
    return "" if name is None else word + name.text


def _parameters(names: Iterable[syntax.Name]) -> str:
    listed = ", ".join(n.text for n in names)
    return f"({listed})" if listed else ""


def _phase(phase: syntax.PhaseDecl) -> str:
    moves = ", ".join(f"{m.target.text}: {m.start.text} -> {m.end.text}" for m in phase.moves)
    return f"until {unparse_expr(phase.end)}{_when(phase.when)} {{ {moves} }}"


def _type(declared: syntax.TypeExpr | None) -> str:
    if declared is None:
        return ""
    if declared.components:
        return f": ({', '.join(map(_component, declared.components))})"
    choices = " | ".join(f'"{c.value}"' for c in declared.choices)
    return ": " + " ".join([*(n.text for n in declared.words), *([choices] if choices else [])])


def _component(part: syntax.Component) -> str:
    return f"{part.modifier.text} {part.name.text}" if part.modifier else part.name.text


def _state(member: syntax.StateDecl) -> str:
    modifier = f"{member.modifier} " if member.modifier else ""
    head = f"{modifier}state {member.name.text}{_type(member.type)}"
    kept = f"{_when(member.when)}{_behind(' as ', member.attribute)}"
    return f"{head} = {unparse_expr(member.initial)}{kept}"


def _require(clause: syntax.RequireClause) -> str:
    conditions = ", ".join(map(unparse_expr, clause.conditions))
    message = f' else "{clause.message.value}"' if clause.message is not None else ""
    return f"require {conditions}{message}"


# Statements


def _block(head: str, body: Iterable[syntax.Stmt]) -> Iterator[str]:
    yield from _enclosed(head, (line for stmt in body for line in _statement(stmt)))


def _enclosed(head: str, lines: Iterable[str]) -> Iterator[str]:
    inside = [INDENT + line for line in lines]
    if not inside:
        yield f"{head} {{}}"
        return
    yield f"{head} {{"
    yield from inside
    yield "}"


def _statement(stmt: syntax.Stmt) -> Iterator[str]:
    match stmt:
        case syntax.AssignStmt(target=target, operator=operator, value=value):
            yield f"{target.text} {operator}= {unparse_expr(value)}"
        case syntax.LetStmt(name=name, value=value):
            yield f"let {name.text} = {unparse_expr(value)}"
        case syntax.DescendStmt(value=value):
            yield f"descend {unparse_expr(value)}"
        case syntax.RepeatStmt(count=count, body=body):
            yield from _block(f"repeat {unparse_expr(count)}", body)
        case syntax.IfStmt():
            yield from _if(stmt, "if")
        case _:
            assert_never(stmt)


def _if(stmt: syntax.IfStmt, word: str) -> Iterator[str]:
    yield from _block(f"{word} {unparse_expr(stmt.condition)}", stmt.then)
    match stmt.orelse:
        case ():
            return
        case (syntax.IfStmt() as inner,):
            yield from _if(inner, "else if")
        case orelse:
            yield from _block("else", orelse)


# Expressions: the text, and how strongly its outermost operator binds


def _expr(expr: syntax.Expr) -> tuple[str, Level]:
    match expr:
        case syntax.Name(text=text) | syntax.Number(text=text):
            return text, Level.ATOM
        case syntax.Text(value=value):
            return f'"{value}"', Level.ATOM
        case syntax.Truth(value=value):
            return str(value).lower(), Level.ATOM
        case syntax.Unset():
            return "unset", Level.ATOM
        case syntax.Unary(operator="not", operand=operand):
            return f"not {_at_least(operand, Level.NOT)}", Level.NOT
        case syntax.Unary(operator=operator, operand=operand):
            return f"{operator}{_at_least(operand, Level.UNARY)}", Level.UNARY
        case syntax.Binary(operator="**", left=left, right=right):
            return f"{_at_least(left, Level.ATOM)} ** {_at_least(right, Level.UNARY)}", Level.POWER
        case syntax.Binary(operator=operator, left=left, right=right):
            level = LEVELS[operator]
            right_text = _at_least(right, Level(level + 1))
            return f"{_at_least(left, level)} {operator} {right_text}", level
        case syntax.Comparison(operands=operands, operators=operators):
            first, *rest = (_at_least(o, Level.SUM) for o in operands)
            links = (f" {o} {text}" for o, text in zip(operators, rest, strict=True))
            return first + "".join(links), Level.COMPARE
        case syntax.Choice(condition=condition, then=then, orelse=orelse):
            head = f"{_at_least(then, Level.OR)} if {_at_least(condition, Level.OR)}"
            return f"{head} else {unparse_expr(orelse)}", Level.TERNARY
        case syntax.CallExpr(function=function, arguments=arguments, keywords=keywords):
            given = [*map(unparse_expr, arguments)]
            given += [f"{k.name.text}={unparse_expr(k.value)}" for k in keywords]
            return f"{function.text}({', '.join(given)})", Level.ATOM
        case syntax.Property(base=base, name=name, index=index):
            return f"{base.text}.{name.text}{f'[{index}]' if index else ''}", Level.ATOM
        case syntax.TupleExpr(items=items):
            return f"({', '.join(map(unparse_expr, items))})", Level.ATOM
        case _:
            assert_never(expr)


def _at_least(expr: syntax.Expr, least: Level) -> str:
    text, level = _expr(expr)
    return text if level >= least else f"({text})"
