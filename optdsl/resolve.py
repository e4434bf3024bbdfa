"""SyntaxTree -> Spec or Schedule: bind names, infer kinds, hold defaults against their `require`."""

from __future__ import annotations

import keyword
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import assert_never

from optdsl import ir, syntax
from optdsl.diagnostics import Code, Diagnostic, Severity, SpecError, did_you_mean
from optdsl.interpret import evaluate
from optdsl.ir import FLAGS, Base, Hyper, Role, Schedule, Spec, State, Unit, ValueType
from optdsl.ops import BINARY, FUNCTIONS, Kind, Method, Rule, Type
from optdsl.source import Source, Span

# Names that generated code needs for itself.
RESERVED = frozenset(
    {*keyword.kwlist, *keyword.softkwlist, *FLAGS, "self", "params", "param", "grad", "grads"}
    | {"group", "rows", "row", "torch", "math", "optimizer", "closure", "defaults", "inf", "pi"}
    | {"true", "false", "lr_scheduler", "t", "base_lr", "metric", "last_epoch"}
) - {"type", "_"}
CONSTANTS = {"pi": math.pi, "inf": math.inf}
PROPERTIES = ("ndim", "numel")
BASES = {b.value: b for b in Base}
LARGEST_INTEGER = 2**53


class Log:
    """What was found wrong so far. Resolving goes on, so that one run reports everything."""

    def __init__(self) -> None:
        self.diagnostics: list[Diagnostic] = []

    def error(
        self,
        code: Code,
        message: str,
        span: Span,
        label: str = "",
        *,
        related: tuple[tuple[Span, str], ...] = (),
        notes: tuple[str, ...] = (),
        hints: tuple[str, ...] = (),
    ) -> None:
        self.diagnostics.append(Diagnostic(code, message, span, label, related, notes, hints))

    def warning(self, code: Code, message: str, span: Span, hints: tuple[str, ...] = ()) -> None:
        self.diagnostics.append(
            Diagnostic(code, message, span, hints=hints, severity=Severity.WARNING)
        )

    @property
    def failed(self) -> bool:
        return any(d.severity is Severity.ERROR for d in self.diagnostics)


def resolve(
    trees: Iterable[syntax.SyntaxTree], library: Mapping[str, Unit] = {}
) -> tuple[tuple[Unit, ...], tuple[Diagnostic, ...]]:
    """The definitions of all trees, bases first, and the warnings about them. `library` holds
    definitions that are in scope for `from`. Raises SpecError with every error of every tree."""
    log = Log()
    definitions: dict[str, syntax.Definition] = {}
    folded = {name.lower(): name for name in library}
    for definition in (d for tree in trees for d in tree.definitions):
        name = definition.name
        if name.text in definitions:
            first = definitions[name.text].name.span
            log.error(
                Code.DUPLICATE, f"'{name.text}' is defined twice.", name.span,
                related=((first, "first defined here"),),
            )  # fmt: skip
        elif name.text in library:
            log.error(
                Code.SHADOWED, f"'{name.text}' is the name of a shipped definition.", name.span,
                hints=("Choose another name; 'from' can extend the shipped one.",),
            )  # fmt: skip
        elif name.text.lower() in folded:
            log.error(
                Code.CASE_COLLISION,
                f"'{name.text}' and '{folded[name.text.lower()]}' differ in case only.",
                name.span,
                notes=("Both would be written to one file.",),
            )
        else:
            definitions[name.text] = definition
            folded[name.text.lower()] = name.text
    units: dict[str, Unit] = {}
    pending = dict(definitions)
    while pending:
        ready = [n for n, d in pending.items() if d.base is None or d.base.text not in pending]
        if not ready:
            name, definition = next(iter(pending.items()))
            assert definition.base is not None
            log.error(Code.UNKNOWN_BASE, f"'{name}' is derived from itself.", definition.base.span)
            break
        for name in ready:
            unit = _definition(pending.pop(name), {**library, **units}, log)
            if unit is not None:
                units[name] = unit
    if log.failed:
        raise SpecError(_in_order(log.diagnostics))
    return tuple(units.values()), tuple(_in_order(log.diagnostics))


def _in_order(diagnostics: Iterable[Diagnostic]) -> list[Diagnostic]:
    def place(d: Diagnostic) -> tuple[str, int]:
        return (d.span, 0) if isinstance(d.span, str) else (d.span.source.name, d.span.start)

    return sorted(dict.fromkeys(diagnostics), key=place)


def _definition(definition: syntax.Definition, known: Mapping[str, Unit], log: Log) -> Unit | None:
    before = len(log.diagnostics)
    _check_name(definition.name, log)
    match definition.keyword:
        case "optimizer" if definition.base is not None:
            unit: Unit | None = _derive(definition, definition.base, known, log)
        case "optimizer":
            unit = _Optimizer(definition, log).resolve()
        case _:
            unit = _Schedule(definition, log).resolve()
    errors = [d for d in log.diagnostics[before:] if d.severity is Severity.ERROR]
    return None if errors else unit


def _check_name(name: syntax.Name, log: Log) -> None:
    if name.text in RESERVED or name.text.startswith("_") or "__" in name.text:
        log.error(
            Code.RESERVED_NAME, f"'{name.text}' is a reserved name.", name.span,
            hints=(f"Call it '{name.text.strip('_') or 'value'}_value', for example.",),
        )  # fmt: skip


@dataclass
class _Scope:
    """The names of one definition. Slots, hyperparameters and local names are one namespace in
    expressions; functions and contextual keywords are others."""

    names: dict[str, ir.Ref] = field(default_factory=dict)
    spans: dict[str, Span] = field(default_factory=dict)

    def declare(self, name: syntax.Name, ref: ir.Ref, log: Log) -> bool:
        """Whether the name was free."""
        _check_name(name, log)
        if name.text in self.names:
            first = self.spans.get(name.text)
            local = ref.role is Role.LOCAL
            log.error(
                Code.SHADOWED if local else Code.DUPLICATE,
                f"'{name.text}' is declared already, as a {self.names[name.text].role}.",
                name.span,
                related=((first, "first declared here"),) if first else (),
                hints=(f"To change it, write '{name.text} = ...' without 'let'.",)
                if local and self.names[name.text].role in (Role.LOCAL, Role.STATE)
                else (),
            )
            return False
        folded = {n.lower(): n for n in self.names}
        if name.text.lower() in folded and ref.role is not Role.LOCAL:
            other = folded[name.text.lower()]
            log.error(
                Code.CASE_COLLISION,
                f"'{name.text}' and '{other}' differ in case only.",
                name.span,
                related=((self.spans[other], "first declared here"),)
                if other in self.spans
                else (),
            )
            return False
        self.names[name.text] = ref
        self.spans[name.text] = name.span
        return True


class _Body:
    """What optimizers and schedules have in common: hyperparameters, expressions, statements."""

    def __init__(self, definition: syntax.Definition, log: Log) -> None:
        self.definition = definition
        self.log = log
        self.scope = _Scope()
        self.hypers: list[Hyper] = []
        self.requires: list[ir.Require] = []
        self.kinds: dict[tuple[str, int], Kind] = {}
        self.unset: frozenset[str] = frozenset()
        self.guards: tuple[ir.Expr, ...] = ()
        self.whens: dict[str, ir.Expr] = {}

    # Members

    def members(self, *types: type[syntax.Member]) -> list[syntax.Member]:
        return [m for m in self.definition.members if isinstance(m, types)]

    def only(self, type_: type[syntax.Member], what: str) -> syntax.Member | None:
        found = self.members(type_)
        for extra in found[1:]:
            self.log.error(
                Code.DUPLICATE, f"{what} is given twice.", extra.span,
                related=((found[0].span, "first given here"),),
            )  # fmt: skip
        return found[0] if found else None

    def refuse(self, allowed: tuple[type[syntax.Member], ...], where: str) -> None:
        for member in self.definition.members:
            if not isinstance(member, allowed):
                self.log.error(
                    Code.UNSUPPORTED, f"This does not belong in {where}.", _head(member.span)
                )

    def doc(self) -> str:
        found = self.only(syntax.Doc, "'doc'")
        return found.text.value if isinstance(found, syntax.Doc) else ""

    def cites(self) -> tuple[str, ...]:
        return tuple(m.text.value for m in self.members(syntax.Cite) if isinstance(m, syntax.Cite))

    def declare_hypers(self) -> None:
        declarations = [m for m in self.definition.members if isinstance(m, syntax.HyperDecl)]
        for declaration in declarations:
            hyper = self._hyper(declaration)
            if hyper is not None:
                self.hypers.append(hyper)
        for declaration in declarations:
            for clause in declaration.requires:
                self.add_requires(clause)
        for clause in self.members(syntax.RequireClause):
            assert isinstance(clause, syntax.RequireClause)
            self.add_requires(clause)
        # In the order of the text: the first that fails is the error that users see.
        self.requires.sort(key=lambda r: r.span.start)
        self._check_defaults()

    def _hyper(self, declaration: syntax.HyperDecl) -> Hyper | None:
        name, default = declaration.name, declaration.default
        kind = Kind.OPTION if declaration.is_option else Kind.HYPER
        role = Role.OPTION if declaration.is_option else Role.HYPER
        components = declaration.type.components if declaration.type else ()
        if components:
            return self._tuple_hyper(declaration, components)
        declared = self._value_type(declaration.type, Base.BOOL if declaration.is_option else None)
        value = None if default is None else self.expr(default)
        if value is None and default is not None:
            return None
        if declaration.is_option and not isinstance(default, syntax.Truth):
            span = default.span if default is not None else name.span
            self.log.error(
                Code.OPTION_MISUSE, f"The option '{name.text}' needs a default, true or false.",
                span, hints=("A number is declared with 'hyper'.",),
            )  # fmt: skip
            return None
        if value is not None and not self._fits(value, declared):
            assert default is not None
            self.log.error(
                Code.WRONG_TYPE,
                f"The default of '{name.text}' is not {_type_phrase(declared)}.",
                default.span,
                hints=("Switches are declared with 'option', or with ': bool'.",)
                if isinstance(default, syntax.Truth)
                else (),
            )
            return None
        ref = ir.Ref(name.text, role, kind, _type(declared), name.span)
        self.scope.declare(name, ref, self.log)
        return Hyper(
            name.text, kind, declared, value, default.span.text if default else None,
            span=name.span,
        )  # fmt: skip

    def _tuple_hyper(
        self, declaration: syntax.HyperDecl, components: tuple[syntax.Name, ...]
    ) -> Hyper | None:
        name, default = declaration.name, declaration.default
        if not isinstance(default, syntax.TupleExpr) or len(default.items) != len(components):
            self.log.error(
                Code.WRONG_TYPE,
                f"The default of '{name.text}' is not a tuple of {len(components)} numbers.",
                default.span if default is not None else name.span,
            )
            return None
        parts = [self.expr(item) for item in default.items]
        ref = ir.Ref(name.text, Role.HYPER, Kind.HYPER, Type.TEXT, name.span)
        self.scope.declare(name, ref, self.log)
        for component in components:
            part = ir.Ref(component.text, Role.HYPER, Kind.HYPER, Type.NUMBER, component.span)
            self.scope.declare(component, part, self.log)
        values = tuple(p for p in parts if p is not None)
        if len(values) < len(parts):
            return None
        return Hyper(
            name.text, Kind.HYPER, ValueType(Base.REAL), None, default.span.text,
            tuple(c.text for c in components), values, name.span,
        )  # fmt: skip

    def _value_type(self, declared: syntax.TypeExpr | None, implied: Base | None) -> ValueType:
        if declared is None:
            return ValueType(implied or Base.REAL)
        if declared.choices:
            return ValueType(Base.TEXT, choices=tuple(c.value for c in declared.choices))
        optional = per_group = False
        base = Base.REAL
        for word in declared.words:
            match word.text:
                case "optional":
                    optional = True
                case "per_group":
                    per_group = True
                case text if text in BASES:
                    base = BASES[text]
                case text:
                    names = (*BASES, "optional", "per_group")
                    self.log.error(
                        Code.UNKNOWN_TYPE, f"Unknown type '{text}'.", word.span,
                        hints=did_you_mean(text, names)
                        or (f"Types are {', '.join(names)}, and choices such as \"min\" | \"max\".",),
                    )  # fmt: skip
        return ValueType(base, optional, per_group)

    def _fits(self, value: ir.Expr, declared: ValueType) -> bool:
        match value, declared.base:
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
                return ir.type_of(value) is _type(declared)

    def add_requires(self, clause: syntax.RequireClause) -> None:
        for condition in clause.conditions:
            expr = self.expr(condition)
            if expr is None or not self.expect_bool(expr, condition.span):
                continue
            hypers = tuple(
                dict.fromkeys(r.name for r in ir.refs(expr) if r.role in (Role.HYPER, Role.OPTION))
            )
            text = clause.message.value if clause.message else _default_message(hypers, condition)
            if clause.message:
                self._check_message(clause.message)
            self.requires.append(ir.Require(expr, text, hypers, condition.span))

    def _check_message(self, message: syntax.Text) -> None:
        for start, name in _placeholders(message.value):
            known = self.scope.names.get(name)
            if known is None or known.role not in (Role.HYPER, Role.OPTION):
                at = message.span.start + 1 + start
                self.log.error(
                    Code.UNKNOWN_NAME, f"Unknown name '{name}' in a message.",
                    Span(message.span.source, at, at + len(name)),
                    hints=did_you_mean(name, self.scope.names),
                )  # fmt: skip

    def _check_defaults(self) -> None:
        """A default that breaks its own `require` would make the plain constructor fail."""
        values: dict[str, object] = {}
        for hyper in self.hypers:
            parts = dict(zip(hyper.components, hyper.parts, strict=True))
            if hyper.default is not None:
                parts[hyper.name] = hyper.default
            for name, expr in parts.items():
                try:
                    values[name] = evaluate(expr, values)
                except KeyError:
                    continue
        for require in self.requires:
            try:
                holds = bool(evaluate(require.condition, values))
            except KeyError:
                continue  # it speaks of a required hyperparameter: there is no default to hold
            if not holds:
                given = ", ".join(f"{n} = {values[n]}" for n in require.hypers)
                self.log.error(
                    Code.DEFAULT_BREAKS_REQUIRE, "The defaults break this condition.",
                    require.span, notes=(f"The defaults are {given}.",),
                )  # fmt: skip

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

    # Expressions

    def expr(self, node: syntax.Expr) -> ir.Expr | None:
        """The bound expression; None after an error."""
        match node:
            case syntax.Name():
                return self._name(node)
            case syntax.Number():
                return self._number(node)
            case syntax.Text(value=value) | syntax.Truth(value=value):
                return ir.Const(value, span=node.span)
            case syntax.Unset():
                self.log.error(
                    Code.NOT_ASSIGNABLE, "'unset' is a slot's first value only.", node.span
                )
                return None
            case syntax.Unary(operator=operator):
                return self._apply("neg" if operator == "-" else "not", (node.operand,), node.span)
            case syntax.Binary(operator=operator):
                op = operator if operator in ("and", "or") else BINARY[operator].name
                return self._apply(op, (node.left, node.right), node.span)
            case syntax.Comparison():
                return self._comparison(node)
            case syntax.Choice():
                return self._apply("select", (node.condition, node.then, node.orelse), node.span)
            case syntax.CallExpr():
                return self._call(node)
            case syntax.Property():
                return self._property(node)
            case syntax.TupleExpr():
                self.log.error(
                    Code.WRONG_TYPE, "A tuple stands only as the default of a tuple.", node.span
                )
                return None
            case _:
                assert_never(node)

    def _name(self, node: syntax.Name) -> ir.Expr | None:
        if node.text in CONSTANTS:
            return ir.Const(CONSTANTS[node.text], node.text, node.span)
        known = self.scope.names.get(node.text)
        if known is None:
            self.log.error(
                Code.UNKNOWN_NAME, f"Unknown name '{node.text}'.", node.span,
                "not a slot, hyperparameter or local name",
                hints=did_you_mean(node.text, (*self.scope.names, *CONSTANTS)),
            )  # fmt: skip
            return None
        if known.type is Type.TEXT and known.name in {h.name for h in self.hypers if h.components}:
            self.log.error(
                Code.WRONG_TYPE, f"'{node.text}' is a tuple.", node.span,
                hints=(f"Use its parts: {', '.join(self._components(node.text))}.",),
            )  # fmt: skip
            return None
        self._check_readable(node)
        return replace(known, span=node.span)

    def _components(self, name: str) -> tuple[str, ...]:
        return next(h.components for h in self.hypers if h.name == name)

    def _check_readable(self, node: syntax.Name) -> None:
        if node.text in self.unset:
            self.log.error(
                Code.READ_BEFORE_SET, f"The slot '{node.text}' may be unset here.", node.span,
                hints=(f"Ask first: if unset({node.text}) {{ {node.text} = ... }} else {{ ... }}",),
            )  # fmt: skip
        when = self.whens.get(node.text)
        if when is not None and when not in self.guards:
            self.log.error(
                Code.READ_BEFORE_SET,
                f"The slot '{node.text}' exists only when {when.span.text}.",
                node.span,
                related=((when.span, "this condition"),),
                hints=(f"Use it inside 'if {when.span.text} {{ ... }}'.",),
            )

    def _number(self, node: syntax.Number) -> ir.Expr | None:
        is_integer = node.text.isdigit()
        # Beyond 2**53 float64 skips integers, and beyond 4,300 digits Python refuses to convert.
        if len(node.text) > 400 or (is_integer and float(node.text) > LARGEST_INTEGER):
            self.log.error(
                Code.NUMBER_RANGE, "This integer is larger than float64 holds exactly.", node.span,
                notes=(f"The largest is 2**53 = {LARGEST_INTEGER}.",),
                hints=("Write it as a real number, such as 1e20.",),
            )  # fmt: skip
            return None
        value = int(node.text) if is_integer else float(node.text)
        if math.isinf(value):
            self.log.error(
                Code.NUMBER_RANGE, "This number is larger than float64 holds.", node.span,
                hints=("For infinity write 'inf'.",),
            )  # fmt: skip
            return None
        return ir.Const(value, span=node.span)

    def _property(self, node: syntax.Property) -> ir.Expr | None:
        if node.base.text != "param" or node.name.text not in PROPERTIES:
            self.log.error(
                Code.UNKNOWN_PROPERTY,
                f"Unknown property '{node.base.text}.{node.name.text}'.",
                node.span,
                hints=did_you_mean(node.name.text, PROPERTIES)
                or (f"There are {', '.join(f'param.{p}' for p in PROPERTIES)}.",),
            )
            return None
        return ir.Ref(f"param.{node.name.text}", Role.PROPERTY, Kind.HYPER, span=node.span)

    def _call(self, node: syntax.CallExpr) -> ir.Expr | None:
        name = node.function.text
        if name not in FUNCTIONS:
            hints = did_you_mean(name, FUNCTIONS)
            if name in self.scope.names:
                hints = (f"'{name}' is a {self.scope.names[name].role}, not a function.",)
            self.log.error(
                Code.UNKNOWN_FUNCTION, f"Unknown function '{name}'.", node.function.span,
                hints=hints,
            )  # fmt: skip
            return None
        if name == "unset":
            return self._unset(node)
        return self._apply(FUNCTIONS[name].name, node.arguments, node.span)

    def _unset(self, node: syntax.CallExpr) -> ir.Expr | None:
        match node.arguments:
            case (syntax.Name(text=text) as name,) if (
                text in self.scope.names and self.scope.names[text].role is Role.STATE
            ):
                slot = replace(self.scope.names[text], span=name.span)
                return ir.Apply("unset", (slot,), Kind.SCALAR, node.span)
            case _:
                self.log.error(Code.WRONG_TYPE, "'unset' asks about one slot.", node.span)
                return None

    def _apply(self, op: str, arguments: tuple[syntax.Expr, ...], span: Span) -> ir.Expr | None:
        values = [self.expr(a) for a in arguments]
        row = ir.OPS[op]
        if len(values) != len(row.operands):
            self.log.error(
                Code.ARITY,
                f"'{op}' takes {_count(len(row.operands), 'value')}, not {len(values)}.",
                span,
            )
            return None
        args = tuple(v for v in values if v is not None)
        if len(args) < len(values):
            return None
        for value, node, expected in zip(args, arguments, row.operands, strict=True):
            if not self._operand(op, value, node.span, expected):
                return None
        if not self._operand_kinds(op, args, span):
            return None
        match op, args:
            case "neg", (ir.Const(value=bool()),):
                pass
            case "neg", (ir.Const(value=int() | float() as number, symbol=""),):
                return ir.Const(-number, span=span)
            case "div", (left, right) if ir.is_scalar(left) and not ir.is_scalar(right):
                op = "rdiv"
        return ir.apply(op, *args, span=span)

    def _operand(self, op: str, value: ir.Expr, span: Span, expected: Type) -> bool:
        found = ir.type_of(value)
        # A mask used as a number is 0 or 1; texts compare with texts.
        mask = expected is Type.NUMBER and found is Type.BOOL and not ir.is_scalar(value)
        text = op in ("eq", "ne") and found is Type.TEXT
        branch = op == "select" and found in (Type.NUMBER, Type.BOOL)
        if found is expected or mask or text or (branch and expected is Type.NUMBER):
            return True
        self.log.error(
            Code.WRONG_TYPE, f"'{_spoken(op)}' takes a {expected}, this is a {found}.", span
        )
        return False

    def _operand_kinds(self, op: str, args: tuple[ir.Expr, ...], span: Span) -> bool:
        rule = ir.OPS[op].rule
        widest = max((ir.kind_of(a) for a in args), default=Kind.OPTION)
        if rule is Rule.SCALAR_ONLY and widest > Kind.SCALAR:
            hint = ("Choose per element with where(mask, a, b).",) if op == "select" else ()
            self.log.error(
                Code.WRONG_KIND, f"'{_spoken(op)}' works on numbers, not on tensors.", span,
                hints=hint,
            )  # fmt: skip
            return False
        only_tensors = rule is Rule.REDUCE or op in ("lerp", "sign")
        if only_tensors and widest <= Kind.SCALAR:
            self.log.error(
                Code.WRONG_KIND, f"'{_spoken(op)}' works on tensors, this is a number.", span
            )
            return False
        method_first = isinstance(ir.OPS[op].torch, Method) and op == "lerp"
        if method_first and any(ir.is_scalar(a) for a in args[:2]):
            self.log.error(Code.WRONG_KIND, "'lerp' goes from a tensor to a tensor.", span)
            return False
        return True

    def _comparison(self, node: syntax.Comparison) -> ir.Expr | None:
        pairs = zip(node.operands, node.operators, node.operands[1:], strict=False)
        result: ir.Expr | None = None
        for left, operator, right in pairs:
            span = left.span.to(right.span)
            link = self._apply(BINARY[operator].name, (left, right), span)
            if link is None:
                return None
            result = link if result is None else ir.apply("and", result, link, span=node.span)
        return result

    def expect_bool(self, expr: ir.Expr, span: Span) -> bool:
        if ir.type_of(expr) is Type.BOOL:
            return True
        self.log.error(
            Code.WRONG_TYPE, f"A condition is needed here, this is a {ir.type_of(expr)}.", span,
            hints=(f"Compare it: {span.text} != 0",) if ir.type_of(expr) is Type.NUMBER else (),
        )  # fmt: skip
        return False

    def expect_number(self, expr: ir.Expr, span: Span) -> bool:
        if ir.type_of(expr) is Type.NUMBER or not ir.is_scalar(expr):
            return True
        self.log.error(
            Code.WRONG_TYPE, f"A number is needed here, this is a {ir.type_of(expr)}.", span
        )
        return False

    # Statements

    def block(self, body: tuple[syntax.Stmt, ...]) -> tuple[ir.Stmt, ...]:
        """A block's statements; names that `let` makes in it end with it."""
        outer = dict(self.scope.names)
        result = tuple(s for node in body for s in self._statement(node))
        for name in [n for n in self.scope.names if n not in outer]:
            del self.scope.names[name]
        # A kind that an inner block widened stays widened outside.
        return result

    def infer(self, body: tuple[syntax.Stmt, ...]) -> tuple[ir.Stmt, ...]:
        """The body with the kinds of its names at their fixpoint: an assignment may widen one."""
        names, unset, quiet = dict(self.scope.names), self.unset, self.log
        while True:
            before = dict(self.kinds)
            self.log = Log()
            self.scope.names, self.unset = dict(names), unset
            self.block(body)
            if self.kinds == before:
                break
        self.log = quiet
        self.scope.names, self.unset = dict(names), unset
        return self.block(body)

    def _statement(self, node: syntax.Stmt) -> Iterator[ir.Stmt]:
        match node:
            case syntax.LetStmt():
                value = self.expr(node.value)
                key = (node.name.text, node.span.start)
                kind = Kind.ELEMENTWISE if value is None else ir.kind_of(value)
                kind = self.kinds[key] = max(kind, self.kinds.get(key, Kind.OPTION))
                type_ = Type.NUMBER if value is None else ir.type_of(value)
                ref = ir.Ref(node.name.text, Role.LOCAL, kind, type_, node.name.span)
                free = self.scope.declare(node.name, ref, self.log)
                if value is not None and free:
                    yield ir.Let(node.name.text, value, kind, node.span)
            case syntax.AssignStmt():
                yield from self._assign(node)
            case syntax.DescendStmt():
                value = self.expr(node.value)
                if value is not None and self.expect_number(value, node.value.span):
                    yield ir.Descend(value, node.span)
            case syntax.IfStmt():
                yield from self._if(node)
            case _:
                assert_never(node)

    def _assign(self, node: syntax.AssignStmt) -> Iterator[ir.Stmt]:
        name = node.target
        known = self.scope.names.get(name.text)
        if known is None:
            self.expr(node.value)
            self.log.error(
                Code.UNKNOWN_NAME, f"Unknown name '{name.text}'.", name.span,
                "not a slot or local name",
                hints=did_you_mean(name.text, self.scope.names)
                or (f"A new name is made with 'let {name.text} = ...'.",),
            )  # fmt: skip
            return
        if not self.assignable(known):
            self.expr(node.value)
            self.log.error(
                Code.NOT_ASSIGNABLE, f"'{name.text}' is a {known.role}: it cannot be assigned.",
                name.span, hints=(f"Give the new value a name: let {name.text}_now = ...",),
            )  # fmt: skip
            return
        target = replace(known, span=name.span)
        if node.operator:
            read = self._name(name)
            other = self.expr(node.value)
            if read is None or other is None or not self.expect_number(other, node.value.span):
                return
            op = BINARY[node.operator].name
            if target.role is Role.STATE and target.kind <= Kind.SCALAR:
                value: ir.Expr = other
            else:
                value, op = ir.apply(op, read, other, span=node.span), ""
        else:
            bound = self.expr(node.value)
            if bound is None:
                return
            value, op = bound, ""
            if target.role is Role.STATE and name.text in self.whens:
                self._check_readable(name) if name.text not in self.unset else None
        if not self._widen(target, ir.kind_of(value), node):
            return
        self.unset -= {name.text}
        yield ir.Assign(target, value, op, node.span)

    def assignable(self, ref: ir.Ref) -> bool:
        return ref.role in (Role.PARAM, Role.GRAD, Role.STATE, Role.LOCAL)

    def _widen(self, target: ir.Ref, kind: Kind, node: syntax.AssignStmt) -> bool:
        """Let an assignment widen a name's kind where it may."""
        if kind <= target.kind:
            return True
        if target.role is Role.LOCAL:
            span = self.scope.spans[target.name]
            key = next((k for k in self.kinds if k[0] == target.name and k[1] <= span.start), None)
            keys = [k for k in self.kinds if k[0] == target.name and k[1] <= span.start]
            key = max(keys, key=lambda k: k[1]) if keys else key
            if key is not None:
                self.kinds[key] = max(kind, self.kinds[key])
            self.scope.names[target.name] = replace(self.scope.names[target.name], kind=kind)
            return True
        self.log.error(
            Code.WRONG_KIND,
            f"The slot '{target.name}' is one number, this value is a tensor.",
            node.value.span,
            related=((self.scope.spans[target.name], "declared here"),),
            hints=(f"Declare it as a tensor: state {target.name} = zeros_like(param)",),
        )
        return False

    def _if(self, node: syntax.IfStmt) -> Iterator[ir.Stmt]:
        condition = self.expr(node.condition)
        if condition is not None and self.expect_bool(condition, node.condition.span):
            if ir.kind_of(condition) > Kind.SCALAR:
                self.log.error(
                    Code.WRONG_KIND,
                    "A branch cannot depend on a tensor's values.",
                    node.condition.span,
                    hints=("Choose per element with where(mask, a, b).",),
                )
                condition = None
        else:
            condition = None
        unset, guards = self.unset, self.guards
        asked = _asked(condition)
        self.guards = guards if condition is None else (*guards, *_conjuncts(condition))
        self.unset = unset | asked
        then = self.block(node.then)
        after_then = self.unset
        self.guards, self.unset = guards, unset - asked
        orelse = self.block(node.orelse)
        self.guards, self.unset = guards, after_then | self.unset
        if condition is not None:
            yield ir.If(condition, then, orelse, node.span)


def _asked(condition: ir.Expr | None) -> frozenset[str]:
    """The slots that are unset where the condition holds."""
    match condition:
        case ir.Apply(op="unset", args=(ir.Ref(name=name),)):
            return frozenset({name})
        case _:
            return frozenset()


def _conjuncts(condition: ir.Expr) -> tuple[ir.Expr, ...]:
    match condition:
        case ir.Apply(op="and", args=(left, right)):
            return (condition, *_conjuncts(left), *_conjuncts(right))
        case _:
            return (condition,)


class _Optimizer(_Body):
    def resolve(self) -> Spec | None:
        self.refuse(
            (
                syntax.Doc, syntax.Cite, syntax.HyperDecl, syntax.Flags, syntax.Signature,
                syntax.StateDecl, syntax.RequireClause, syntax.ParamRequire, syntax.Update,
            ),
            "an optimizer",
        )  # fmt: skip
        self.declare_hypers()
        names = self.scope.names
        names["param"] = ir.Ref("param", Role.PARAM, Kind.ELEMENTWISE)
        names["grad"] = ir.Ref("grad", Role.GRAD, Kind.ELEMENTWISE)
        states = self._states()
        for member in self.members(syntax.ParamRequire):
            assert isinstance(member, syntax.ParamRequire)
            self.add_requires(member.clause)
        update = self.only(syntax.Update, "'update'")
        if not isinstance(update, syntax.Update):
            self.log.error(
                Code.MISSING_PART, f"'{self.definition.name.text}' has no 'update'.",
                self.definition.name.span, hints=("Add: update { descend lr * grad }",),
            )  # fmt: skip
            return None
        self.unset = frozenset(s.name for s in states if s.initial is None)
        body = self.infer(update.body)
        signature = self._signature()
        self.check_order(signature)
        spec = Spec(
            self.definition.name.text, self.definition.span.source, self.doc(), self.cites(),
            tuple(self.hypers), signature, tuple(self.requires), states, body,
            span=self.definition.name.span,
        )  # fmt: skip
        if not self.log.failed:
            self._check_use(spec, update)
        return spec

    def _states(self) -> tuple[State, ...]:
        states = []
        for member in self.members(syntax.StateDecl):
            assert isinstance(member, syntax.StateDecl)
            when = None if member.when is None else self.expr(member.when)
            if when is not None and member.when is not None:
                self.expect_bool(when, member.when.span)
            if member.type is not None:
                self.log.error(
                    Code.UNSUPPORTED, "A slot takes its type from the precision policy.",
                    member.type.span,
                )  # fmt: skip
            if isinstance(member.initial, syntax.Unset):
                initial, kind = None, Kind.ELEMENTWISE
            else:
                initial = self.expr(member.initial)
                if initial is None:
                    continue
                self.expect_number(initial, member.initial.span)
                kind = ir.kind_of(initial)
                kind = Kind.SCALAR if kind <= Kind.SCALAR else kind
            ref = ir.Ref(member.name.text, Role.STATE, kind, Type.NUMBER, member.name.span)
            if self.scope.declare(member.name, ref, self.log):
                if when is not None:
                    self.whens[member.name.text] = when
                states.append(
                    State(member.name.text, kind, initial, when, member.eager, member.name.span)
                )
        return tuple(states)

    def _signature(self) -> tuple[str, ...]:
        given = self.only(syntax.Signature, "'signature'")
        if not isinstance(given, syntax.Signature):
            names = self.signature()
            return names if "*" in names else (*names, "*", *FLAGS)
        declared = {h.name for h in self.hypers} | set(FLAGS)
        names_given = [n for n in given.names if n.text not in ("*", "...", "params")]
        for name in names_given:
            if name.text not in declared:
                self.log.error(
                    Code.UNKNOWN_NAME, f"Unknown name '{name.text}'.", name.span,
                    "not a hyperparameter, option or flag",
                    hints=did_you_mean(name.text, declared),
                )  # fmt: skip
        listed = {n.text for n in names_given}
        names_left = [h.name for h in self.hypers if h.name not in listed]
        if names_left and not any(n.text == "..." for n in given.names):
            self.log.error(
                Code.MISSING_PART, f"The signature leaves out '{names_left[0]}'.", given.span,
                hints=("'...' stands for all that is not named.",),
            )  # fmt: skip
        result: list[str] = []
        for name in given.names:
            match name.text:
                case "params":
                    continue
                case "...":
                    result += names_left + [f for f in FLAGS if f not in listed]
                case text:
                    result.append(text)
        flags_left = [f for f in FLAGS if f not in result]
        if flags_left:
            result += ([] if "*" in result else ["*"]) + flags_left
        return tuple(result)

    def _check_use(self, spec: Spec, update: syntax.Update) -> None:
        """Warn of what has no effect; refuse an update that changes nothing."""
        if not any(
            isinstance(s, ir.Descend) or (isinstance(s, ir.Assign) and s.target.name == "param")
            for s in ir.statements(spec.body)
        ):
            self.log.error(
                Code.MISSING_PART, "This update never changes the parameter.",
                _head(update.span), hints=("End it with: descend lr * grad",),
            )  # fmt: skip
            return
        effective = effective_names(spec.body)
        conditions = [s.when for s in spec.states if s.when is not None]
        conditions += [s.initial for s in spec.states if s.initial is not None]
        read = effective | {r.name for c in conditions for r in ir.refs(c)}
        for slot in spec.states:
            # `step` is what every user expects to find in a checkpoint.
            if slot.name not in effective and slot.name != "step":
                self.log.warning(
                    Code.UNREAD, f"The slot '{slot.name}' never reaches the parameter.", slot.span
                )
        for hyper in spec.hypers:
            if not read & {hyper.name, *hyper.components}:
                self.log.warning(
                    Code.UNREAD, f"Nothing reads '{hyper.name}'.", hyper.span,
                    hints=("Remove it, or use it in the update.",),
                )  # fmt: skip
        for stmt in ir.statements(spec.body):
            if isinstance(stmt, ir.Let) and stmt.name not in effective:
                self.log.warning(Code.UNREAD, f"Nothing reads '{stmt.name}'.", _head(stmt.span))


def effective_names(body: tuple[ir.Stmt, ...]) -> frozenset[str]:
    """The names whose values reach the parameter, in this step or through a slot in a later one."""
    needed = {"param"}

    def visit(block: tuple[ir.Stmt, ...], conditions: frozenset[str]) -> bool:
        """Whether the block writes something needed."""
        hit = False
        for stmt in reversed(block):
            match stmt:
                case ir.Let(name=name, value=value):
                    writes = name in needed
                case ir.Assign(target=target, value=value):
                    writes = target.name in needed
                case ir.Descend(value=value):
                    writes = True
                case ir.If(condition=value):
                    inner = visit(stmt.then, conditions)
                    writes = visit(stmt.orelse, conditions) or inner
                case _:
                    assert_never(stmt)
            if writes:
                hit = True
                needed.update(r.name for r in ir.refs(value))
        return hit

    while True:
        before = len(needed)
        visit(body, frozenset())
        if len(needed) == before:
            return frozenset(needed)


class _Schedule(_Body):
    """`t` is the epoch, `lr` the group's rate, `base_lr` the one it began with. `initial` is true
    for the rate that the constructor asks for: at epoch 0, or where a rebuilt schedule resumes."""

    GIVEN = (
        ("t", Type.NUMBER), ("lr", Type.NUMBER), ("base_lr", Type.NUMBER), ("initial", Type.BOOL),
    )  # fmt: skip
    # What torch's schedulers keep in attributes, and functions that methods call by these names.
    TAKEN = frozenset(
        {"step", "state_dict", "load_state_dict", "get_lr", "get_last_lr", "base_lrs"}
        | {"in_cooldown", "abs", "float", "max", "min", "initial"}
    )

    def resolve(self) -> Schedule | None:
        self.refuse(
            (
                syntax.Doc, syntax.Cite, syntax.HyperDecl, syntax.RequireClause, syntax.LetStmt,
                syntax.Form, syntax.StateDecl, syntax.Update,
            ),
            "a schedule",
        )  # fmt: skip
        self.declare_hypers()
        self.check_order(self.signature())
        for name, type_ in self.GIVEN:
            if name in self.scope.names:
                self._refuse_name(name, self.scope.spans[name])
            self.scope.names[name] = ir.Ref(name, Role.GIVEN, Kind.SCALAR, type_)
        lets = self._lets()
        closed, chain = self._form(True), self._form(False)
        states = self._states()
        for name, span in self.scope.spans.items():
            if name in self.TAKEN:
                self._refuse_name(name, span)
        update = self.only(syntax.Update, "'update'")
        forms = [m for m in self.members(syntax.Form) if isinstance(m, syntax.Form)]
        parameters: tuple[str, ...] = ()
        body: tuple[ir.Stmt, ...] = ()
        if isinstance(update, syntax.Update):
            for form in forms:
                self.log.error(
                    Code.UNSUPPORTED, "A schedule has either forms or an 'update'.",
                    _head(form.span), related=((_head(update.span), "the 'update'"),),
                )  # fmt: skip
            parameters = self._parameters(update)
            body = self.infer(update.body)
            self._check_update(update, body, lets)
        elif not forms:
            self.log.error(
                Code.MISSING_PART,
                f"'{self.definition.name.text}' gives no rate.",
                self.definition.name.span,
                hints=("Add: closed = base_lr * ..., or chain = lr * ...",),
            )
            return None
        else:
            for state in states:
                self.log.error(
                    Code.MISSING_PART, f"Nothing changes the state '{state.name}'.", state.span,
                    hints=("Add: update(metric) { ... }",),
                )  # fmt: skip
        if closed is not None:
            self._refuse_given(closed, lets, ("lr", "initial"), "a closed form")
        schedule = Schedule(
            self.definition.name.text, self.definition.span.source, self.doc(), self.cites(),
            tuple(self.hypers), tuple(self.requires), lets, closed, chain, states,
            parameters, body, self.definition.name.span,
        )  # fmt: skip
        if not self.log.failed:
            self._check_use(schedule)
        return schedule

    def _refuse_name(self, name: str, span: Span) -> None:
        self.log.error(
            Code.RESERVED_NAME, f"Every schedule has a '{name}' already.", span,
            hints=(f"Call it '{name}_value', for example.",),
        )  # fmt: skip

    def _lets(self) -> tuple[ir.Let, ...]:
        lets = []
        for member in self.members(syntax.LetStmt):
            assert isinstance(member, syntax.LetStmt)
            value = self.expr(member.value)
            if value is None:
                continue
            kind = ir.kind_of(value)
            ref = ir.Ref(member.name.text, Role.LOCAL, kind, ir.type_of(value), member.name.span)
            if self.scope.declare(member.name, ref, self.log):
                lets.append(ir.Let(member.name.text, value, kind, member.span))
        return tuple(lets)

    def _parameters(self, update: syntax.Update) -> tuple[str, ...]:
        names = tuple(n.text for n in update.parameters)
        if names != ("metric",):
            span = update.parameters[0].span if update.parameters else _head(update.span)
            self.log.error(
                Code.WRONG_TYPE, "A schedule's update takes the metric.", span,
                hints=("Write: update(metric) { ... }",),
            )  # fmt: skip
        self.scope.names["metric"] = ir.Ref("metric", Role.GIVEN, Kind.SCALAR)
        return names

    def _check_update(
        self, update: syntax.Update, body: tuple[ir.Stmt, ...], lets: tuple[ir.Let, ...]
    ) -> None:
        for stmt in ir.statements(body):
            for expr in ir.expressions(stmt):
                self._refuse_given(expr, lets, ("base_lr", "initial"), "an update")
            if isinstance(stmt, ir.Descend):
                self.log.error(
                    Code.UNSUPPORTED, "A schedule has no parameter to step.", _head(stmt.span),
                    hints=("Set the rate: lr = ...",),
                )  # fmt: skip
        if not any(isinstance(s, ir.Assign) and s.target.name == "lr" for s in ir.statements(body)):
            self.log.error(
                Code.MISSING_PART, "This update never changes the rate.", _head(update.span),
                hints=("Add: lr = ...",),
            )  # fmt: skip

    def _refuse_given(
        self, expr: ir.Expr, lets: tuple[ir.Let, ...], banned: tuple[str, ...], where: str
    ) -> None:
        """Refuse names that have no value here, also behind a `let`."""
        reasons = {name: f"'{name}' has no value in {where}." for name in banned}
        for let in lets:
            for ref in ir.refs(let.value):
                if ref.name in reasons:
                    reasons[let.name] = (
                        f"'{let.name}' reads '{ref.name}': it has no value in {where}."
                    )
        for ref in ir.refs(expr):
            if ref.name in reasons:
                self.log.error(Code.READ_BEFORE_SET, reasons[ref.name], ref.span)

    def _check_use(self, schedule: Schedule) -> None:
        """Warn of hyperparameters and names that nothing reads."""
        forms = [e for e in (schedule.closed, schedule.chain) if e is not None]
        forms += [s.initial for s in schedule.states if s.initial is not None]
        forms += [e for s in ir.statements(schedule.body) for e in ir.expressions(s)]
        forms += [let.value for let in schedule.lets]
        read = {r.name for e in forms for r in ir.refs(e)}
        for hyper in schedule.hypers:
            if not read & {hyper.name, *hyper.components}:
                self.log.warning(
                    Code.UNREAD, f"Nothing reads '{hyper.name}'.", hyper.span,
                    hints=("Remove it, or use it in the rate.",),
                )  # fmt: skip
        inner = [s for s in ir.statements(schedule.body) if isinstance(s, ir.Let)]
        for let in (*schedule.lets, *inner):
            if let.name not in read:
                self.log.warning(Code.UNREAD, f"Nothing reads '{let.name}'.", _head(let.span))

    def assignable(self, ref: ir.Ref) -> bool:
        return ref.name == "lr" or ref.role in (Role.STATE, Role.LOCAL)

    def _form(self, is_closed: bool) -> ir.Expr | None:
        forms = [
            m for m in self.definition.members
            if isinstance(m, syntax.Form) and m.is_closed == is_closed
        ]  # fmt: skip
        word = "closed" if is_closed else "chain"
        for extra in forms[1:]:
            self.log.error(
                Code.DUPLICATE, f"'{word}' is given twice.", _head(extra.span),
                related=((_head(forms[0].span), "first given here"),),
            )  # fmt: skip
        if not forms:
            return None
        value = self.expr(forms[0].value)
        if value is None or not self.expect_number(value, forms[0].value.span):
            return None
        return value

    def _states(self) -> tuple[State, ...]:
        """The states. Each begins with a value that may read hyperparameters and earlier states."""
        states = []
        for member in self.members(syntax.StateDecl):
            assert isinstance(member, syntax.StateDecl)
            if (
                member.type
                or member.when
                or member.eager
                or isinstance(member.initial, syntax.Unset)
            ):
                self.log.error(
                    Code.UNSUPPORTED, "A schedule's state is a name and its first value.",
                    _head(member.span), hints=(f"Write: state {member.name.text} = 0",),
                )  # fmt: skip
                continue
            initial = self.expr(member.initial)
            if initial is None:
                continue
            for ref in ir.refs(initial):
                if ref.role in (Role.GIVEN, Role.LOCAL):
                    self.log.error(
                        Code.READ_BEFORE_SET, f"'{ref.name}' has no value in a first value.",
                        ref.span,
                    )  # fmt: skip
            ref = ir.Ref(
                member.name.text, Role.STATE, Kind.SCALAR, ir.type_of(initial), member.name.span
            )
            if self.scope.declare(member.name, ref, self.log):
                states.append(
                    State(member.name.text, Kind.SCALAR, initial, None, False, member.name.span)
                )
        return tuple(states)


def _derive(
    definition: syntax.Definition, base_name: syntax.Name, known: Mapping[str, Unit], log: Log
) -> Spec | None:
    """`optimizer AdamW from Adam { fix ... default ... }`: the base with some things decided."""
    base = known.get(base_name.text)
    if not isinstance(base, Spec):
        optimizers = [n for n, u in known.items() if isinstance(u, Spec)]
        log.error(
            Code.UNKNOWN_BASE, f"Unknown optimizer '{base_name.text}'.", base_name.span,
            hints=did_you_mean(base_name.text, optimizers),
        )  # fmt: skip
        return None
    body = _Body(definition, log)
    body.refuse((syntax.Doc, syntax.Cite, syntax.Fix), "a derived optimizer")
    hypers = {h.name: h for h in base.hypers}
    fixed = dict(base.fixed)
    seen: dict[str, Span] = {}
    for member in body.members(syntax.Fix):
        assert isinstance(member, syntax.Fix)
        name = member.name
        if name.text in seen:
            log.error(
                Code.DUPLICATE, f"'{name.text}' is set twice.", name.span,
                related=((seen[name.text], "first set here"),),
            )  # fmt: skip
            continue
        seen[name.text] = name.span
        hyper = hypers.get(name.text)
        if hyper is None or name.text in dict(base.fixed):
            log.error(
                Code.UNKNOWN_NAME, f"'{base.name}' has no '{name.text}' to set.", name.span,
                hints=did_you_mean(name.text, hypers),
            )  # fmt: skip
            continue
        value = body.expr(member.value)
        if value is None:
            continue
        if not body._fits(value, hyper.type) or hyper.components:
            log.error(
                Code.WRONG_TYPE, f"'{name.text}' is not {_type_phrase(hyper.type)} here.",
                member.value.span,
            )  # fmt: skip
        elif member.is_default:
            hypers[name.text] = replace(hyper, default=value, literal=member.value.span.text)
        elif hyper.kind is Kind.OPTION and isinstance(value, ir.Const):
            fixed[name.text] = bool(value.value)
        else:
            log.error(
                Code.OPTION_MISUSE, f"'{name.text}' is a hyperparameter: only options are fixed.",
                name.span, hints=(f"Write: default {name.text} = {member.value.span.text}",),
            )  # fmt: skip
    body.hypers, body.requires = list(hypers.values()), list(base.requires)
    body._check_defaults()
    return replace(
        base,
        name=definition.name.text,
        source=definition.span.source,
        doc=body.doc() or base.doc,
        cites=body.cites() or base.cites,
        hypers=tuple(hypers.values()),
        signature=tuple(n for n in base.signature if n not in fixed),
        base=base.name,
        fixed=tuple(fixed.items()),
        span=definition.name.span,
    )


# Words


def _head(span: Span) -> Span:
    """A member's first word: enough to find it, small enough to read."""
    word = span.text.split(None, 1)[0] if span.text.strip() else span.text
    return Span(span.source, span.start, span.start + len(word))


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _spoken(op: str) -> str:
    source = ir.OPS[op].source
    return getattr(source, "symbol", getattr(source, "name", op)).strip()


def _type(declared: ValueType) -> Type:
    match declared.base:
        case Base.BOOL:
            return Type.BOOL
        case Base.TEXT:
            return Type.TEXT
        case Base.REAL | Base.INT:
            return Type.NUMBER


def _type_phrase(declared: ValueType) -> str:
    match declared.base:
        case Base.BOOL:
            return "true or false"
        case Base.INT:
            return "an integer"
        case Base.REAL:
            return "a number"
        case Base.TEXT:
            return "one of " + ", ".join(f'"{c}"' for c in declared.choices)


def _default_message(hypers: tuple[str, ...], condition: syntax.Expr) -> str:
    text = " ".join(condition.span.text.split())
    names = ", ".join(f"{n} = {{{n}}}" for n in hypers)
    return f"{names} breaks the condition {text}" if names else f"This needs {text}"


def _placeholders(message: str) -> Iterator[tuple[int, str]]:
    """The `{name}`s of a message, with their offsets."""
    start = message.find("{")
    while start >= 0:
        end = message.find("}", start)
        if end < 0:
            return
        yield start + 1, message[start + 1 : end]
        start = message.find("{", end)
