"""Hyperparameters, options, conditions: typed, and defaults held against their `require`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from optdsl import ir, syntax
from optdsl.diagnostics import Code, Log, did_you_mean
from optdsl.interpret import evaluate
from optdsl.ir import FLAGS, Base, Hyper, Role, ValueType
from optdsl.ops import Kind, Type
from optdsl.printing import show_source
from optdsl.resolve.calls import Others
from optdsl.resolve.expressions import ExpressionResolver
from optdsl.resolve.words import (
    breaks,
    count,
    head,
    member_word,
    placeholders,
    require_message,
    type_of,
    type_phrase,
    words,
)
from optdsl.source import Span
from optdsl.unparse import unparse_expr

BASES = {b.value: b for b in Base}
MODIFIERS = ("optional", "per_group", "group", "list")
# Names of a condition that stand for arguments of the constructor.
ARGUMENTS = (Role.HYPER, Role.OPTION, Role.IS_TENSOR)
# What the defaults decide.
ASKED = (*ARGUMENTS, Role.FLAG)
M = TypeVar("M", bound=syntax.Member)


class MemberResolver(ExpressionResolver):
    """What all definitions have in common: members, hyperparameters, conditions."""

    def __init__(
        self, definition: syntax.Definition, log: Log, others: Others | None = None
    ) -> None:
        super().__init__(definition, log, others)
        self.requires: list[ir.Require] = []

    def members(self, type_: type[M]) -> list[M]:
        return [m for m in self.definition.members if isinstance(m, type_)]

    def only(self, type_: type[M], what: str) -> M | None:
        found = self.members(type_)
        self.refuse_repeated(found, what)
        return found[0] if found else None

    def refuse_repeated(self, found: Sequence[syntax.Member], what: str) -> None:
        for extra in found[1:]:
            self.log.error(
                Code.DUPLICATE, f"{what} is given twice.", head(extra.span),
                related=((head(found[0].span), "first given here"),),
            )  # fmt: skip

    def refuse(self, allowed: tuple[type[syntax.Member], ...], where: str) -> None:
        """Report the members that do not belong here."""
        for member in self.definition.members:
            if not isinstance(member, allowed):
                self.log.error(
                    Code.UNSUPPORTED, f"'{member_word(member)}' does not belong in {where}.",
                    head(member.span), hints=(f"{where.capitalize()} has {words(allowed)}.",),
                )  # fmt: skip

    def doc(self) -> str:
        found = self.only(syntax.Doc, "'doc'")
        return found.text.value.strip() if found is not None else ""

    def cites(self) -> tuple[str, ...]:
        return tuple(m.text.value for m in self.members(syntax.Cite))

    # Hyperparameters

    def declare_hypers(self) -> None:
        for declaration in self.members(syntax.HyperDecl):
            hyper = self._hyper(declaration)
            if hyper is None:
                self.scope.broken |= {n.text for n in _declared(declaration)}
            else:
                self.hypers.append(hyper)

    def hold_requires(self) -> None:
        """The conditions in the order of the text: the first that fails is the error that users
        see."""
        clauses = [c for d in self.members(syntax.HyperDecl) for c in d.requires]
        clauses += self.members(syntax.RequireClause)
        # An argument may be held to a condition where nothing keeps it.
        whens, self.whens = self.whens, {}
        for clause in sorted(clauses, key=lambda c: c.span.start):
            self.add_requires(clause)
        self.whens = whens

    def _hyper(self, declaration: syntax.HyperDecl) -> Hyper | None:
        name, default = declaration.name, declaration.default
        if isinstance(default, syntax.Unset):
            return self._optional(declaration)
        if declaration.type is not None and declaration.type.components:
            return self._tuple(declaration, declaration.type.components)
        implied = Base.BOOL if declaration.is_option else Base.REAL
        declared = self._value_type(declaration.type, implied)
        if declared.many and default is not None:
            self.log.error(
                Code.UNSUPPORTED, "A list has no default.", default.span,
                hints=(f"Leave it out: '{name.text}' is then required.",),
            )  # fmt: skip
            self._declare(name, Role.HYPER, Kind.HYPER, declared)
            return None
        kind = Kind.OPTION if declaration.is_option else Kind.HYPER
        role = Role.OPTION if declaration.is_option else Role.HYPER
        value = None if default is None else self.expr(default)
        fits = self._fits_option if declaration.is_option else self._fits_hyper
        fits_default = fits(declaration, value, declared)
        when = self.existence(declaration.when)
        free = self._declare(name, role, kind, declared)
        if not free or not fits_default:
            return None
        literal = None if default is None else unparse_expr(default)
        hyper = Hyper(name.text, kind, declared, value, literal, span=name.span)
        return self._kept(hyper, declaration, when)

    def _kept(self, hyper: Hyper, declaration: syntax.HyperDecl, when: ir.Expr | None) -> Hyper:
        """With what stands behind the value: `when` it exists, and `as` what it is kept."""
        if when is not None and self.is_of_schedule:
            self.whens[hyper.name] = when
        attribute = declaration.attribute.text if declaration.attribute is not None else ""
        return replace(hyper, when=when, attribute=attribute)

    def existence(
        self,
        node: syntax.Expr | None,
        what: str = "this",
        reads: str = "options and hyperparameters",
    ) -> ir.Expr | None:
        """The condition behind `when`; None where there is none, or it is in error."""
        when = None if node is None else self.expr(node)
        if node is None or when is None or not self.expect_bool(when, node.span):
            return None
        if ir.is_given(when):
            return when
        self.log.error(
            Code.WRONG_KIND, f"Whether {what} exists cannot depend on the step.", node.span,
            hints=(f"'when' reads {reads}.",),
        )  # fmt: skip
        return None

    def _declare(self, name: syntax.Name, role: Role, kind: Kind, declared: ValueType) -> bool:
        """Whether the name was free."""
        if declared.optional:
            self.optional |= {name.text}
            if declared.base is not Base.TEXT:
                self.unset |= {name.text}  # a text compares with None, too
        ref = ir.Ref(name.text, role, kind, type_of(declared), name.span)
        return self.scope.declare(name, ref, self.log)

    def _optional(self, declaration: syntax.HyperDecl) -> Hyper | None:
        """hyper name: optional real = unset"""
        name, default = declaration.name, declaration.default
        assert default is not None
        words = declaration.type.words if declaration.type is not None else ()
        if declaration.is_option or not any(w.text == "optional" for w in words):
            self.log.error(
                Code.WRONG_TYPE, f"'{name.text}' is not optional: it cannot be unset.",
                default.span, hints=(f"Write: hyper {name.text}: optional real = unset",),
            )  # fmt: skip
            return None
        declared = self._value_type(declaration.type, Base.REAL)
        if not self._declare(name, Role.HYPER, Kind.HYPER, declared):
            return None
        value = ir.Const(None, span=default.span)
        hyper = Hyper(name.text, Kind.HYPER, declared, value, "unset", span=name.span)
        return self._kept(hyper, declaration, self.existence(declaration.when))

    def _fits_option(
        self, declaration: syntax.HyperDecl, value: ir.Expr | None, declared: ValueType
    ) -> bool:
        default = declaration.default
        if isinstance(default, syntax.Truth) and declared.base is Base.BOOL:
            return True
        name = declaration.name.text
        if default is not None and value is None:
            return False
        if not isinstance(default, syntax.Truth):
            self.log.error(
                Code.OPTION_MISUSE, f"The option '{name}' needs a default, true or false.",
                declaration.name.span if default is None else default.span,
                hints=(f"A number is declared with: hyper {name} = ...",)
                if default is not None else (f"Write: option {name} = false",),
            )  # fmt: skip
        else:
            assert declaration.type is not None
            self.log.error(
                Code.OPTION_MISUSE, f"The option '{name}' is true or false: it has no type.",
                declaration.type.span, hints=(f"Write: option {name} = {unparse_expr(default)}",),
            )  # fmt: skip
        return False

    def _fits_hyper(
        self, declaration: syntax.HyperDecl, value: ir.Expr | None, declared: ValueType
    ) -> bool:
        default = declaration.default
        if default is None:
            return True
        if value is None:
            return False
        if fits(value, declared):
            return True
        name = declaration.name.text
        switch = isinstance(default, syntax.Truth)
        self.log.error(
            Code.WRONG_TYPE, f"The default of '{name}' is not {type_phrase(declared)}.",
            default.span,
            hints=(f"A switch is declared with: option {name} = {unparse_expr(default)}",)
            if switch else (),
        )  # fmt: skip
        return False

    def _tuple(
        self, declaration: syntax.HyperDecl, components: tuple[syntax.Component, ...]
    ) -> Hyper | None:
        name = declaration.name
        optional = tuple(self._may_be_unset(c) for c in components)
        parts: tuple[ir.Expr, ...] | None = None
        if declaration.is_option:
            self.log.error(
                Code.OPTION_MISUSE, f"The option '{name.text}' is true or false, not a tuple.",
                components[0].name.span.to(components[-1].name.span),
                hints=(f"Numbers are declared with: hyper {name.text}: (...) = (...)",),
            )  # fmt: skip
        else:
            parts = self.tuple_parts(declaration.default, name, optional)
        free = self.scope.declare(
            name, ir.Ref(name.text, Role.HYPER, Kind.HYPER, Type.TEXT, name.span), self.log
        )
        for component in components:
            part_name = component.name
            part = ir.Ref(part_name.text, Role.HYPER, Kind.HYPER, Type.NUMBER, part_name.span)
            free &= self.scope.declare(part_name, part, self.log)
        if parts is None or not free:
            return None
        assert declaration.default is not None
        names = tuple(c.name.text for c in components)
        may_be_unset = tuple(
            n for n, is_optional in zip(names, optional, strict=True) if is_optional
        )
        self.optional |= {*may_be_unset}
        self.unset |= {*may_be_unset}
        return Hyper(
            name.text, Kind.HYPER, ValueType(Base.REAL), None, unparse_expr(declaration.default),
            names, parts, may_be_unset, span=name.span,
        )  # fmt: skip

    def _may_be_unset(self, component: syntax.Component) -> bool:
        if component.modifier is None:
            return False
        if component.modifier.text != "optional":
            self._refuse_type(component.modifier)
        return True

    def tuple_parts(
        self, default: syntax.Expr | None, name: syntax.Name, optional: Sequence[bool]
    ) -> tuple[ir.Expr, ...] | None:
        """The values of a tuple's parts, of which some may be unset."""
        length = len(optional)
        if not isinstance(default, syntax.TupleExpr) or len(default.items) != length:
            example = ", ".join(["..."] * length)
            self.log.error(
                Code.WRONG_TYPE, f"'{name.text}' needs a default of {count(length, 'number')}.",
                default.span if default is not None else name.span,
                hints=(f"Write: ({example})",),
            )  # fmt: skip
            return None
        parts = [
            ir.Const(None, span=item.span)
            if may_be_unset and isinstance(item, syntax.Unset)
            else self.expr(item)
            for item, may_be_unset in zip(default.items, optional, strict=True)
        ]
        found = tuple(
            p
            for p, item in zip(parts, default.items, strict=True)
            if p is not None and self.expect_number(p, item.span)
        )
        return found if len(found) == length else None

    def _value_type(self, declared: syntax.TypeExpr | None, implied: Base) -> ValueType:
        if declared is None:
            return ValueType(implied)
        for word in declared.words:
            if word.text not in (*BASES, *MODIFIERS):
                self._refuse_type(word)
                return ValueType(implied)
        choices = tuple(c.value for c in declared.choices)
        words = [word.text for word in declared.words]
        base = "text" if choices else words.pop()
        one_or_many = "list" not in words or (words, base) == (["list"], "int")
        each_once = len({*words}) == len(words)
        if base not in BASES or not {*words} <= {*MODIFIERS} or not one_or_many or not each_once:
            self.log.error(
                Code.UNKNOWN_TYPE, f"'{declared.span.text}' is not a type.", declared.span,
                hints=("Lists hold integers: list int.",) if not one_or_many
                else (f"A type is one word, behind any of {', '.join(MODIFIERS)}.",),
            )  # fmt: skip
            return ValueType(implied, many="list" in words)
        return ValueType(
            BASES[base], "optional" in words, "per_group" in words, choices,
            grouped="group" in words, many="list" in words,
        )  # fmt: skip

    def _refuse_type(self, word: syntax.Name) -> None:
        names = (*BASES, *MODIFIERS)
        aliases = {"float": "real", "str": "text", "boolean": "bool", "integer": "int"}
        alias = aliases.get(word.text)
        self.log.error(
            Code.UNKNOWN_TYPE, f"Unknown type '{word.text}'.", word.span,
            hints=(f"It is called '{alias}' here.",) if alias
            else did_you_mean(word.text, names)
            or (f"Types are {', '.join(BASES)}, and choices such as \"min\" | \"max\".",),
        )  # fmt: skip

    # Conditions

    def add_requires(self, clause: syntax.RequireClause, about_param: bool = False) -> None:
        """`about_param`: the message may show the parameter's shape, and the places of all that
        break the condition."""
        if clause.message is not None:
            self._check_message(clause.message, about_param)
        for condition in clause.conditions:
            expr = self._asked(condition)
            if expr is None or not self.expect_bool(expr, condition.span):
                continue
            asked = [r for r in ir.refs(expr) if not self.readable_in_require(r)]
            if not all(map(ir.is_given, asked)):
                self.log.error(
                    Code.WRONG_KIND, "A 'require' speaks of hyperparameters, not of values.",
                    condition.span,
                )  # fmt: skip
                continue
            read = (r.name for r in ir.refs(expr) if r.role in ARGUMENTS)
            hypers = tuple(dict.fromkeys(read))
            told = clause.message is not None
            text = clause.message.value if clause.message else require_message(hypers, condition)
            self.requires.append(ir.Require(expr, text, hypers, told, condition.span))

    def require_of_call(self, require: ir.Require, span: Span) -> None:
        condition = require.condition
        names = tuple(dict.fromkeys(r.name for r in ir.refs(condition) if r.role in ARGUMENTS))
        message = require.message if require.told else breaks(names, show_source(condition))
        if not any(ir.refs(condition)):
            if not evaluate(condition, {}):
                self.log.error(
                    Code.DEFAULT_BREAKS_REQUIRE,
                    "This call breaks a condition of the schedule.", span,
                    related=((require.span, "the condition"),),
                )  # fmt: skip
        elif condition not in [r.condition for r in self.requires] and all(
            self.readable_in_require(r) or ir.is_given(r) for r in ir.refs(condition)
        ):
            self.requires.append(ir.Require(condition, message, names, require.told, require.span))

    def readable_in_require(self, ref: ir.Ref) -> bool:
        """Whether a condition may read a name that is no hyperparameter."""
        return False

    def _asked(self, node: syntax.Expr) -> ir.Expr | None:
        """Beside values, a `require` of an optimizer reads flags and asks what is a tensor."""
        if self.definition.keyword != "optimizer":
            return self.expr(node)
        names = dict(self.scope.names)
        flags = {f: ir.Ref(f, Role.FLAG, Kind.OPTION, Type.BOOL) for f in FLAGS}
        self.scope.names.update(flags)
        self.in_require = True
        expr = self.expr(node)
        self.in_require = False
        self.scope.names = names
        return expr

    def _check_message(self, message: syntax.Text, about_param: bool) -> None:
        for offset, name in placeholders(message.value):
            known = self.scope.names.get(name)
            if name in ("param.shape", "indices") and about_param:
                continue
            if known is not None and (
                known.role in (Role.HYPER, Role.OPTION) or self.readable_in_require(known)
            ):
                continue
            start = message.span.start + 1 + offset
            span = Span(message.span.source, start, start + max(1, len(name)))
            if name in ("{", "}"):
                self.log.error(
                    Code.UNKNOWN_NAME, f"A '{name}' without its partner in a message.", span,
                    hints=("Braces hold a hyperparameter's name: {lr}.",),
                )  # fmt: skip
                continue
            self.log.error(
                Code.UNKNOWN_NAME, f"Unknown name '{name}' in a message.", span,
                "not a hyperparameter", hints=did_you_mean(name, self.scope.names),
            )  # fmt: skip

    # The constructor's order

    def signature(self) -> tuple[str, ...]:
        names: list[str] = []
        for member in self.definition.members:
            match member:
                case syntax.HyperDecl(name=name):
                    names.append(name.text)
                case syntax.Flags():
                    names += ["*", *FLAGS]
        return tuple(names)

    def check_order(self, signature: tuple[str, ...]) -> None:
        """A positional argument without a default cannot follow one with a default."""
        by_name = {h.name: h for h in self.hypers}
        optional: str | None = None
        for name in signature:
            hyper = by_name.get(name)
            if name == "*":
                return
            if hyper is None or hyper.literal is not None:
                optional = name
            elif optional is not None:
                self.log.error(
                    Code.DEFAULT_ORDER,
                    f"'{name}' has no default but stands behind '{optional}', which has one.",
                    hyper.span, hints=("Declare it before, or give it a default.",),
                )  # fmt: skip


def _declared(declaration: syntax.HyperDecl) -> tuple[syntax.Name, ...]:
    """The names that a declaration makes."""
    components = declaration.type.components if declaration.type is not None else ()
    return (declaration.name, *(c.name for c in components))


def fits(value: ir.Expr, declared: ValueType) -> bool:
    """Whether a default is of the declared type."""
    match value, declared.base:
        case ir.Const(value=None), _:
            return declared.optional
        case ir.Const(value=str() as text), Base.TEXT:
            return not declared.choices or text in declared.choices
        case ir.Const(value=bool()), base:
            return base is Base.BOOL
        case ir.Const(value=int()), Base.INT | Base.REAL:
            return True
        case ir.Const(value=float()), base:
            return base is Base.REAL
        case ir.Const(), _:
            return False
        case _:
            return ir.type_of(value) is type_of(declared)


@dataclass(frozen=True, slots=True)
class _Default:
    value: object
    span: Span


def check_defaults(
    hypers: Iterable[Hyper],
    requires: Iterable[ir.Require],
    definition: syntax.Definition,
    log: Log,
    fixed: Mapping[str, ir.Expr] | None = None,
    word: str = "default",
) -> None:
    """A default that breaks its own `require` would make the plain constructor fail. `fixed` holds
    values in the place of defaults, and `word` says what those are."""
    defaults: dict[str, _Default] = {}
    for name, expr in _default_values(hypers, fixed or {}):
        try:
            value = evaluate(expr, {n: d.value for n, d in defaults.items()})
        except KeyError:
            continue  # it reads a required hyperparameter, or one in error
        if _overflows(expr, value):
            log.error(Code.NUMBER_RANGE, f"This {word} is {value}.", expr.span)
            continue
        defaults[name] = _Default(value, expr.span)
    for require in requires:
        if not set(require.hypers) <= set(defaults):
            continue  # it speaks of a required hyperparameter: there is no default to hold
        if any(r.role not in ASKED for r in ir.refs(require.condition)):
            continue  # it speaks of a parameter or an epoch that is not there yet
        condition = ir.map_expr(require.condition, _by_default)
        if not evaluate(condition, {n: d.value for n, d in defaults.items()}):
            blamed = {*require.hypers} & {*(fixed or {})}
            _refuse_defaults(require, defaults, definition, log, word if blamed else "default")


def _by_default(expr: ir.Expr) -> ir.Expr:
    """No flag is on, and no default is a tensor."""
    match expr:
        case ir.Ref(role=Role.FLAG | Role.IS_TENSOR):
            return ir.Const(False, span=expr.span)
        case _:
            return expr


def _overflows(expr: ir.Expr, value: float) -> bool:
    """Whether arithmetic left the finite numbers: `1 / 0`, but not `-inf`."""
    asked = any(isinstance(e, ir.Const) and e.symbol == "inf" for e in ir.walk(expr))
    number = isinstance(expr, ir.Apply) and ir.type_of(expr) is Type.NUMBER
    return number and not asked and not math.isfinite(value)


def _default_values(
    hypers: Iterable[Hyper], fixed: Mapping[str, ir.Expr]
) -> Iterable[tuple[str, ir.Expr]]:
    for hyper in hypers:
        if hyper.name in fixed:
            yield hyper.name, fixed[hyper.name]
        elif hyper.default is not None:
            yield hyper.name, hyper.default
        yield from zip(hyper.components, hyper.parts, strict=True)


def _refuse_defaults(
    require: ir.Require,
    defaults: Mapping[str, _Default],
    definition: syntax.Definition,
    log: Log,
    word: str,
) -> None:
    """The smallest wrong place is the default where one is to blame, and in a derived optimizer
    what it sets; else the condition."""
    blamed = [defaults[n].span for n in require.hypers]
    whole = definition.span
    here = [s for s in blamed if s.source == whole.source and whole.start <= s.start < whole.end]
    values = ", ".join(f"{n} = {defaults[n].value}" for n in require.hypers)
    if len(blamed) == 1 or (here and definition.base is not None):
        log.error(
            Code.DEFAULT_BREAKS_REQUIRE,
            f"This {word} breaks the condition {' '.join(require.span.text.split())}.",
            (here or blamed)[0],
            related=((require.span, "this condition"),),
            notes=(f"The defaults are {values}.",) if len(blamed) > 1 else (),
        )
        return
    log.error(
        Code.DEFAULT_BREAKS_REQUIRE, "The defaults break this condition.", require.span,
        notes=(f"The defaults are {values}.",) if values else (),
    )  # fmt: skip
