"""`optimizer AdamW from Adam { fix ... default ... }` -> Spec: a base with some things decided, or
with hyperparameters that schedules drive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from optdsl import ir, syntax
from optdsl.diagnostics import Code, Log, did_you_mean
from optdsl.ir import Hyper, Role, Sparse, Spec, Unit
from optdsl.ops import Kind, Type
from optdsl.passes.specialise import specialise, with_options
from optdsl.resolve.calls import Others
from optdsl.resolve.driven import driven, first_read, place
from optdsl.resolve.hypers import MemberResolver, check_defaults, fits
from optdsl.resolve.optimizer import name_in_let
from optdsl.resolve.words import article, type_of, type_phrase
from optdsl.source import Span
from optdsl.unparse import unparse_expr

# What makes a derived optimizer a class of its own.
EXTENSIONS = (syntax.HyperDecl, syntax.RequireClause, syntax.Drive)
MEMBERS = (syntax.Doc, syntax.Cite, syntax.Fix, *EXTENSIONS)


def resolve_derived(
    definition: syntax.Definition,
    base_name: syntax.Name,
    known: Mapping[str, Unit],
    defined: Mapping[str, syntax.Definition],
    log: Log,
) -> Spec | None:
    """`defined` are all names of this run: a base among them that is not known is in error itself,
    which is reported there."""
    base, others = known.get(base_name.text), Others(known, defined)
    if isinstance(base, Spec):
        return _Derived(definition, base, log, others).resolve()
    if base is not None:
        keyword = others.keyword(base_name.text)
        log.error(
            Code.UNKNOWN_BASE, f"'{base_name.text}' is {article(keyword)}, not an optimizer.",
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


def whole(spec: Spec) -> Spec:
    """A derived optimizer without its base: the options that it fixed are gone."""
    options = dict(spec.fixed)

    def left(requires: tuple[ir.Require, ...]) -> tuple[ir.Require, ...]:
        """The conditions that are still open."""
        found = (
            replace(
                r, condition=with_options(r.condition, options),
                hypers=tuple(n for n in r.hypers if n not in options),
            )
            for r in requires
        )  # fmt: skip
        return tuple(r for r in found if not isinstance(r.condition, ir.Const))

    return replace(
        specialise(spec, options),
        hypers=tuple(h for h in spec.hypers if h.name not in options),
        requires=left(spec.requires),
        sparse=replace(spec.sparse, requires=left(spec.sparse.requires)),
        base=None,
        fixed=(),
    )


def _signature(base: tuple[str, ...], own: Sequence[Hyper]) -> tuple[str, ...]:
    """New arguments stand behind those of the base; required ones are keyword-only."""
    at = base.index("*")
    optional = tuple(h.name for h in own if h.literal is not None)
    required = tuple(h.name for h in own if h.literal is None)
    return (*base[:at], *optional, "*", *required, *base[at + 1 :])


class _Derived(MemberResolver):
    def __init__(self, definition: syntax.Definition, base: Spec, log: Log, others: Others) -> None:
        super().__init__(definition, log, others)
        self.base = base
        self.changed = {h.name: h for h in base.hypers}
        self.fixed: dict[str, ir.Const] = {}

    def resolve(self) -> Spec:
        self.refuse(MEMBERS, "a derived optimizer")
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
        derived = replace(
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
        more = any(isinstance(m, EXTENSIONS) for m in self.definition.members)
        return self._extended(derived) if more else derived

    # Hyperparameters of its own, and schedules

    def _extended(self, derived: Spec) -> Spec:
        """A class of its own: it has another update than the base."""
        spec = whole(derived)
        if spec.sparse.mode == "none":
            # The base's refusal speaks of the base.
            spec = replace(spec, sparse=Sparse())
        if spec.routine:
            self.log.error(
                Code.UNSUPPORTED, f"'{self.base.name}' is a routine: nothing is added to one.",
                self.definition.name.span,
            )  # fmt: skip
            return spec
        self._know(spec)
        self.declare_hypers()
        own = self.hypers[len(spec.hypers) :]
        self._refuse_hidden(own, spec)
        self.hold_requires()
        body = self._driven(spec.body)
        check_defaults(self.hypers, self.requires, self.definition, self.log)
        self._check_use(own, body)
        return replace(
            spec, hypers=tuple(self.hypers), requires=(*spec.requires, *self.requires), body=body,
            signature=_signature(spec.signature, own),
        )  # fmt: skip

    def _know(self, spec: Spec) -> None:
        """What schedules read: the hyperparameters of the base, and slots that are numbers."""
        self.hypers = list(spec.hypers)
        for hyper in spec.hypers:
            role = Role.OPTION if hyper.kind is Kind.OPTION else Role.HYPER
            type_ = Type.TEXT if hyper.components else type_of(hyper.type)
            self.scope.names[hyper.name] = ir.Ref(hyper.name, role, hyper.kind, type_, hyper.span)
            for part in hyper.components:
                self.scope.names[part] = ir.Ref(part, role, hyper.kind, span=hyper.span)
            may_be_unset = {hyper.name} if hyper.type.optional else set(hyper.optional_parts)
            self.optional |= may_be_unset
            self.unset |= may_be_unset
        for state in spec.states:
            if state.kind <= Kind.SCALAR:
                ref = ir.Ref(state.name, Role.STATE, state.kind, span=state.span)
                self.scope.names[state.name] = ref
        self.scope.spans.update((n, r.span) for n, r in self.scope.names.items())

    def _refuse_hidden(self, own: Sequence[Hyper], spec: Spec) -> None:
        """A new hyperparameter has no name that the base's update uses."""
        lets = (s for s in ir.statements(spec.body) if isinstance(s, ir.Let))
        used = {let.name: name_in_let(let) for let in lets}
        used |= {s.name: s.span for s in spec.states}
        for hyper in own:
            for name in (hyper.name, *hyper.components):
                if name in used:
                    self.log.error(
                        Code.SHADOWED, f"The update of '{self.base.name}' has a '{name}' already.",
                        hyper.span, related=((used[name], "this one"),),
                        hints=("Choose another name.",),
                    )  # fmt: skip

    def _driven(self, body: tuple[ir.Stmt, ...]) -> tuple[ir.Stmt, ...]:
        seen: dict[str, Span] = {}
        for member in self.members(syntax.Drive):
            name, value = member.name, self.expr(member.value)
            if name.text in seen:
                self.log.error(
                    Code.DUPLICATE, f"'{name.text}' has a schedule already.", name.span,
                    related=((seen[name.text], "first given here"),),
                )  # fmt: skip
                continue
            seen[name.text] = name.span
            known = self._is_driven(name)
            if value is None or not self.expect_number(value, member.value.span) or not known:
                continue
            early = first_read(body[: place(body, value)], name.text)
            if early is not None:
                self.log.error(
                    Code.READ_BEFORE_SET,
                    f"The update of '{self.base.name}' reads '{name.text}' before the step is "
                    "counted.", member.value.span, related=((early, "read here"),),
                )  # fmt: skip
                continue
            if first_read(body, name.text) is None:
                self.log.warning(
                    Code.UNREAD, f"The update of '{self.base.name}' does not read '{name.text}'.",
                    name.span,
                )  # fmt: skip
                continue
            body = driven(body, name.text, value, member.span)
        return body

    def _is_driven(self, name: syntax.Name) -> bool:
        """Whether a schedule can drive this."""
        ref = self.scope.names.get(name.text)
        if ref is not None and ref.role is Role.HYPER and ref.type is Type.NUMBER:
            return True
        numbers = [
            n for n, r in self.scope.names.items()
            if r.role is Role.HYPER and r.type is Type.NUMBER
        ]  # fmt: skip
        self.log.error(
            Code.UNKNOWN_NAME if ref is None else Code.WRONG_TYPE,
            f"'{self.base.name}' has no number '{name.text}' to schedule.", name.span,
            hints=did_you_mean(name.text, numbers) or (f"It has {', '.join(numbers)}.",),
        )  # fmt: skip
        return False

    def _check_use(self, own: Sequence[Hyper], body: tuple[ir.Stmt, ...]) -> None:
        read = {r.name for r in ir.reads(body)}
        for hyper in own:
            if not read & {hyper.name, *hyper.components} and not self.log.failed:
                self.log.warning(
                    Code.UNREAD, f"Nothing reads '{hyper.name}'.", hyper.span,
                    hints=("Remove it, or use it in a 'schedule'.",),
                )  # fmt: skip

    # What is decided

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
