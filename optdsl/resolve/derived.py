"""`optimizer AdamW from Adam { fix ... default ... }` -> Spec: a base with some things decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from optdsl import ir, syntax
from optdsl.diagnostics import Code, Log, did_you_mean
from optdsl.ir import Hyper, Spec, Unit
from optdsl.ops import Kind
from optdsl.resolve.hypers import MemberResolver, check_defaults, fits
from optdsl.resolve.words import type_phrase
from optdsl.source import Span
from optdsl.unparse import unparse_expr


def resolve_derived(
    definition: syntax.Definition,
    base_name: syntax.Name,
    known: Mapping[str, Unit],
    defined: Mapping[str, syntax.Definition],
    log: Log,
) -> Spec | None:
    """`defined` are all names of this run: a base among them that is not known is in error itself,
    which is reported there."""
    base = known.get(base_name.text)
    if isinstance(base, Spec):
        return _Derived(definition, base, log).resolve()
    if base is not None:
        log.error(
            Code.UNKNOWN_BASE, f"'{base_name.text}' is a schedule, not an optimizer.",
            base_name.span,
        )  # fmt: skip
    elif base_name.text not in defined:
        optimizers = [n for n, u in known.items() if isinstance(u, Spec)]
        optimizers += [n for n, d in defined.items() if d.keyword == "optimizer"]
        log.error(
            Code.UNKNOWN_BASE, f"Unknown optimizer '{base_name.text}'.", base_name.span,
            hints=did_you_mean(base_name.text, set(optimizers) - {definition.name.text}),
        )  # fmt: skip
    return None


class _Derived(MemberResolver):
    def __init__(self, definition: syntax.Definition, base: Spec, log: Log) -> None:
        super().__init__(definition, log)
        self.base = base
        self.changed = {h.name: h for h in base.hypers}
        self.fixed: dict[str, ir.Const] = {}

    def resolve(self) -> Spec:
        self.refuse((syntax.Doc, syntax.Cite, syntax.Fix), "a derived optimizer")
        seen: dict[str, Span] = {}
        for member in self.members(syntax.Fix):
            name = member.name
            if name.text in seen:
                self.log.error(
                    Code.DUPLICATE, f"'{name.text}' is set twice.", name.span,
                    related=((seen[name.text], "first set here"),),
                )  # fmt: skip
                continue
            seen[name.text] = name.span
            self._set(member)
        hypers = tuple(self.changed.values())
        decided = dict(self.base.fixed) | {n: bool(c.value) for n, c in self.fixed.items()}
        constants = {n: ir.Const(value) for n, value in decided.items()} | self.fixed
        check_defaults(hypers, self.base.requires, self.definition, self.log, constants)
        return replace(
            self.base,
            name=self.definition.name.text,
            source=self.definition.span.source,
            doc=self.doc() or self.base.doc,
            cites=self.cites() or self.base.cites,
            hypers=hypers,
            signature=tuple(n for n in self.base.signature if n not in decided),
            base=self.base.name,
            fixed=tuple(decided.items()),
            span=self.definition.name.span,
        )

    def _set(self, member: syntax.Fix) -> None:
        name = member.name.text
        hyper = self.changed.get(name)
        if hyper is None or name in dict(self.base.fixed):
            settable = [n for n in self.changed if n not in dict(self.base.fixed)]
            self.log.error(
                Code.UNKNOWN_NAME, f"'{self.base.name}' has no '{name}' to set.", member.name.span,
                hints=did_you_mean(name, settable) or (f"It has {', '.join(settable)}.",),
            )  # fmt: skip
        elif member.is_default:
            self._set_default(member, hyper)
        elif hyper.kind is not Kind.OPTION:
            self.log.error(
                Code.OPTION_MISUSE, f"'{name}' is a hyperparameter: only options are fixed.",
                member.name.span, hints=(f"Write: default {name} = {unparse_expr(member.value)}",),
            )  # fmt: skip
        else:
            value = self._value(member, hyper)
            if isinstance(value, ir.Const):
                self.fixed[name] = value

    def _set_default(self, member: syntax.Fix, hyper: Hyper) -> None:
        literal = unparse_expr(member.value)
        if hyper.components:
            optional = [c in hyper.optional_parts for c in hyper.components]
            parts = self.tuple_parts(member.value, member.name, optional)
            if parts is not None:
                self.changed[hyper.name] = replace(hyper, parts=parts, literal=literal)
            return
        value = self._value(member, hyper)
        if value is not None:
            self.changed[hyper.name] = replace(hyper, default=value, literal=literal)

    def _value(self, member: syntax.Fix, hyper: Hyper) -> ir.Expr | None:
        value = self.expr(member.value)
        if value is None or fits(value, hyper.type):
            return value
        self.log.error(
            Code.WRONG_TYPE, f"'{hyper.name}' needs {type_phrase(hyper.type)}.", member.value.span
        )
        return None
