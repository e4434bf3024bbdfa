"""`schedule Name { ... }` -> Schedule."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from optdsl import ir, syntax
from optdsl.diagnostics import Code, Log, did_you_mean
from optdsl.ir import (
    Base,
    Example,
    Hyper,
    Keep,
    Kept,
    Move,
    Phase,
    Role,
    Schedule,
    Target,
    ValueType,
)
from optdsl.ops import ALONG, FUNCTIONS, Kind, Type
from optdsl.resolve.calls import Others
from optdsl.resolve.expressions import Function, known
from optdsl.resolve.hypers import check_defaults, fits
from optdsl.resolve.scope import PYTHON, refuse_reserved
from optdsl.resolve.statements import StatementResolver
from optdsl.resolve.words import head, placeholders, type_phrase
from optdsl.source import Span

MEMBERS = (
    syntax.Doc, syntax.Cite, syntax.HyperDecl, syntax.RequireClause, syntax.StateDecl,
    syntax.Observe, syntax.Function, syntax.Phases, syntax.LetStmt, syntax.Form, syntax.Fractional,
    syntax.Update, syntax.ExampleDecl,
)  # fmt: skip
# What makes names that are known from its line on.
DECLARATIONS = (
    syntax.HyperDecl, syntax.LetStmt, syntax.StateDecl, syntax.Observe, syntax.Function,
)  # fmt: skip
RATE = "lr"
METRIC = "metric"
# The value of a group that is the rate it begins with.
INITIAL = "initial_lr"
# The attribute that holds the phases, unless the author names it.
PHASES = "_phases"


class ScheduleResolver(StatementResolver):
    """`t` is the epoch, `lr` the group's rate, `base_lr` the one it began with. `initial` is true
    for the rate that the constructor asks for: at epoch 0, or where a rebuilt schedule resumes."""

    GIVEN = (
        ("t", Type.NUMBER), (RATE, Type.NUMBER), ("base_lr", Type.NUMBER), ("initial", Type.BOOL),
    )  # fmt: skip
    # What torch's schedulers keep in attributes, and functions that methods call by these names.
    TAKEN = frozenset(
        {"step", "state_dict", "load_state_dict", "get_lr", "get_last_lr", "base_lrs", "cls"}
        | {"in_cooldown", "abs", "float", "max", "min", "initial"}
        | {"parameter", "function", "functions", "targets", "per_group", "grouped", "use_beta1"}
        | {"observed", "unsaved", "affine"}
        | {"bisect_right", "callable", "Counter", "floor_log", "int", "isinstance", "list"}
        | {"ABSENT", "phase_of", "sorted", "type", "TypeError", "whole"}
    )
    # Attributes and methods of every schedule that begin with `_`: nothing is kept `as` one.
    PRIVATE = frozenset(
        {"_PRIVATE", "_admit", "_begin", "_chain", "_chained_rates", "_check", "_check_group"}
        | {"_closed", "_closed_rates", "_enter", "_enter_group", "_extend", "_fill", "_function"}
        | {"_get_closed_form_lr", "_get_lr_called_within_step", "_group", "_groups"}
        | {"_growth_error", "_init_is_better", "_initial_step", "_is_better", "_is_initial"}
        | {"_last_lr", "_length_error", "_lists", "_observe", "_parameter", "_rate", "_reduce_lr"}
        | {"_require_single", "_reset", "_set_rate", "_single", "_spread", "_step_count", "_take"}
        | {"_target_values", "_update", "_update_lr", "_versions", "_views", "_warn_if_asked"}
    )

    of_texts = ("eq", "ne", "select")

    def __init__(
        self, definition: syntax.Definition, log: Log, others: Others | None = None
    ) -> None:
        super().__init__(definition, log, others)
        self.kept: list[Kept] = []
        self.lets: list[ir.Let] = []
        self.phases: tuple[Phase, ...] = ()
        # What the author did not name, a function's parameter may be called.
        self.given_by_phases: list[str] = []
        self.declared_at = {
            m.name.text: m.name.span for m in definition.members
            if isinstance(m, DECLARATIONS)
        }  # fmt: skip
        # The hyperparameter in the place of the group's first rate.
        self.starts_at = any(m.name.text == "base_lr" for m in self.members(syntax.HyperDecl))
        if self.starts_at:
            self.scope.permitted = frozenset({"base_lr"})

    def resolve(self) -> Schedule | None:
        self.refuse(MEMBERS, "a schedule")
        self.declare_hypers()
        self._check_groups()
        self.check_order(self.signature())
        self._declare_given()
        for member in self.definition.members:
            self._declare_member(member)
        self._refuse_taken()
        self._hold_requires()
        update = self.only(syntax.Update, "'update'")
        fractional = self.only(syntax.Fractional, "'fractional'")
        self.only(syntax.Phases, "'phases'")
        closed, chain, targets = self._form(True), self._form(False), self._targets()
        parameters: tuple[str, ...] = ()
        body: tuple[ir.Stmt, ...] = ()
        if update is not None:
            self._refuse_beside(update)
            parameters = self._parameters(update)
            body = self.infer(update.body)
            self._check_update(update, body)
        elif not any(form.target is None for form in self.members(syntax.Form)):
            name = self.definition.name
            self.log.error(
                Code.MISSING_PART, f"'{name.text}' gives no rate.", name.span,
                hints=("Add: closed = base_lr * ..., or chain = lr * ...",),
            )  # fmt: skip
            return None
        phases = self.members(syntax.Phases)
        attribute = phases[0].attribute if phases else None
        schedule = Schedule(
            self.definition.name.text, self.definition.span.source, self.doc(), self.cites(),
            tuple(self.hypers), tuple(self.requires), tuple(self.lets), closed, chain,
            tuple(self.kept), parameters, body, targets, self.phases,
            PHASES if attribute is None else attribute.text, fractional is not None,
            self._examples(), self.definition.name.span,
        )  # fmt: skip
        if not self.log.failed:
            self._check_attributes(schedule)
            self._check_use(schedule)
        return schedule

    # Names

    def _declare_given(self) -> None:
        for name, type_ in self.GIVEN:
            if name == "base_lr" and self.starts_at:
                self._check_rate()
            elif name in self.scope.names:
                self._refuse_name(name, self.scope.spans[name])
            self.scope.names[name] = ir.Ref(name, Role.GIVEN, Kind.SCALAR, type_)

    def _check_groups(self) -> None:
        """A value of a group has the group's name for it, and no other value is made of it when
        the schedule is constructed: it may be a list then."""
        of_groups = self._of_groups()
        for hyper in self.hypers:
            if hyper.name == INITIAL:
                self.log.error(
                    Code.RESERVED_NAME, f"'{INITIAL}' is the rate that a group began with.",
                    hyper.span, hints=("To give the first rate: hyper base_lr: per_group real",),
                )  # fmt: skip
            if hyper.type.grouped and _is_function(hyper):
                self.log.error(
                    Code.UNSUPPORTED, "A function is not kept in the parameter groups: they are in "
                    "checkpoints.", hyper.span, hints=("Leave 'group' out of its type.",),
                )  # fmt: skip
            for ref in () if hyper.default is None else ir.refs(hyper.default):
                if ref.name in of_groups:
                    self.log.error(
                        Code.UNSUPPORTED,
                        f"'{ref.name}' is one for each parameter group: a default reads what is "
                        "the same in all.", ref.span,
                    )  # fmt: skip
        for member in self.members(syntax.HyperDecl):
            if member.name.text in of_groups and member.attribute is not None:
                self._refuse_renamed(member.attribute)

    def _refuse_renamed(self, attribute: syntax.Name) -> None:
        self.log.error(
            Code.UNSUPPORTED, "A value of each parameter group is kept under its own name.",
            attribute.span, hints=("Leave 'as' out.",),
        )  # fmt: skip

    def existence(
        self,
        node: syntax.Expr | None,
        what: str = "this",
        reads: str = "options and hyperparameters",
    ) -> ir.Expr | None:
        """What exists, exists for all groups."""
        when = super().existence(node, what, reads)
        of_groups = self._of_groups()
        for ref in () if when is None else ir.refs(when):
            if ref.name in of_groups:
                self.log.error(
                    Code.UNSUPPORTED, f"'{ref.name}' is one for each parameter group: whether "
                    f"{what} exists cannot depend on it.", ref.span,
                )  # fmt: skip
        return when

    def _check_rate(self) -> None:
        """A hyperparameter in the place of the groups' first rates is a number for each."""
        (declared, *_) = (m for m in self.members(syntax.HyperDecl) if m.name.text == "base_lr")
        number = ValueType(Base.REAL, per_group=True)
        if any(h.name == "base_lr" and h.type != number for h in self.hypers):
            self.log.error(
                Code.WRONG_TYPE, "'base_lr' is the first rate of each parameter group.",
                declared.name.span, hints=("Write: hyper base_lr: per_group real",),
            )  # fmt: skip

    def _refuse_name(self, name: str, span: Span) -> None:
        self.log.error(
            Code.RESERVED_NAME, f"Every schedule has a '{name}' already.", span,
            hints=(f"Call it '{name}_value', for example.",),
        )  # fmt: skip

    def _refuse_taken(self) -> None:
        for name, span in self.scope.spans.items():
            if name in self.TAKEN:
                self._refuse_name(name, span)

    def _declare_member(self, member: syntax.Member) -> None:
        """Names are known from the line of their declaration on."""
        match member:
            case syntax.LetStmt():
                self.lets += self.let(member)
            case syntax.StateDecl():
                self._declare_state(member)
            case syntax.Observe(name=name, value=value, when=when, attribute=attribute):
                self._keep(Keep.OBSERVED, name, value, when, attribute)
            case syntax.Function():
                self._declare_function(member)
            case syntax.Phases() if not self.phases:
                self._declare_phases(member)
            case _:
                pass

    def what(self, ref: ir.Ref) -> str:
        kept = next((k for k in self.kept if k.name == ref.name), None)
        match kept:
            case None:
                return super().what(ref)
            case Kept(keep=Keep.STATE):
                return "a state"
            case Kept(keep=Keep.GROUP):
                return "a value of the parameter groups"
            case Kept():
                return "an observed value"

    # What is kept

    def _declare_state(self, member: syntax.StateDecl) -> None:
        """A state is a number or text; a group's is one for each parameter group."""
        initial: syntax.Expr | None = member.initial
        if (
            member.type
            or member.modifier not in ("", "group")
            or isinstance(member.initial, syntax.Unset)
        ):
            self.log.error(
                Code.UNSUPPORTED, "A schedule's state is a name and its first value.",
                head(member.span), hints=(f"Write: state {member.name.text} = 0",),
            )  # fmt: skip
            initial = None
        keep = Keep.GROUP if member.modifier == "group" else Keep.STATE
        self._keep(keep, member.name, initial, member.when, member.attribute)

    def _keep(
        self,
        keep: Keep,
        name: syntax.Name,
        node: syntax.Expr | None,
        when_node: syntax.Expr | None,
        attribute: syntax.Name | None,
    ) -> None:
        when = self.existence(when_node)
        guards, self.guards = self.guards, self.guards | known(when, True)
        initial = None if node is None else self.expr(node)
        self.guards = guards
        if initial is not None:
            self._check_kept(keep, initial)
        type_ = Type.NUMBER if initial is None else ir.type_of(initial)
        ref = ir.Ref(name.text, Role.STATE, Kind.SCALAR, type_, name.span)
        free = self.scope.declare(name, ref, self.log)
        if when is not None:
            self.whens[name.text] = when
        if initial is None:
            self.scope.broken.add(name.text)
        elif free:
            text = "" if attribute is None else attribute.text
            self.kept.append(Kept(name.text, initial, keep, when, text, name.span))
            if attribute is not None:
                self._check_attribute(attribute)
                if keep is Keep.GROUP:
                    self._refuse_renamed(attribute)
            if (keep, name.text) == (Keep.GROUP, INITIAL) and when is not None:
                self.log.error(
                    Code.UNSUPPORTED, "Every group has a first rate.", when.span,
                    hints=("Choose between two rates: a if condition else b.",),
                )  # fmt: skip

    def _check_kept(self, keep: Keep, value: ir.Expr) -> None:
        """First values are made at construction, observed ones for an epoch; only those of a group
        may differ between groups."""
        if keep is Keep.OBSERVED:
            banned = ("lr", "base_lr", "initial", *self.given_by_phases)
            self._refuse_given(value, banned, "an observed value")
        else:
            for ref in ir.refs(value):
                if ref.role in (Role.GIVEN, Role.LOCAL):
                    self.log.error(
                        Code.READ_BEFORE_SET, f"'{ref.name}' has no value in a first value.",
                        ref.span,
                    )  # fmt: skip
        for ref in ir.refs(value):
            if keep is not Keep.GROUP and ref.name in self._of_groups():
                self.log.error(
                    Code.UNSUPPORTED,
                    f"'{ref.name}' is one for each parameter group, this is one for all.",
                    ref.span,
                    hints=("Keep it in the groups: group state name = ...",)
                    if keep is Keep.STATE else (),
                )  # fmt: skip

    def _of_groups(self) -> frozenset[str]:
        """The names that have a value for each parameter group."""
        names = {h.name for h in self.hypers if h.type.per_group or h.type.grouped}
        names |= {k.name for k in self.kept if k.keep is Keep.GROUP}
        for let in self.lets:
            if any(r.name in names for r in ir.refs(let.value)):
                names.add(let.name)
        return frozenset(names)

    def _check_attribute(self, attribute: syntax.Name) -> None:
        text = attribute.text
        if text in self.PRIVATE | self.TAKEN | {"optimizer", "last_epoch"}:
            self._refuse_name(text, attribute.span)
        elif text in PYTHON or "__" in text:
            refuse_reserved(attribute, self.log)

    def _check_attributes(self, schedule: Schedule) -> None:
        """What is kept has names of its own, also in the schedule and its checkpoints."""
        seen: dict[tuple[bool, str], Span] = {}
        hypers = ir.kept_hypers(schedule)
        for hyper in hypers:
            if hyper.attribute:
                (declared,) = (
                    m for m in self.members(syntax.HyperDecl) if m.name.text == hyper.name
                )
                assert declared.attribute is not None
                self._check_attribute(declared.attribute)
        kept: list[tuple[bool, str, Span]] = [
            (False, h.attribute or (f"{h.name}s" if h.type.per_group else h.name), h.span)
            for h in hypers
        ]
        kept += [(k.keep is Keep.GROUP, k.attribute or k.name, k.span) for k in schedule.kept]
        if schedule.phases:
            (phases, *_) = self.members(syntax.Phases)
            kept.append((False, schedule.phases_attribute, head(phases.span)))
        for in_group, name, span in kept:
            if not in_group and name in self.TAKEN - {"base_lrs"}:
                self._refuse_name(name, span)
            if (in_group, name) in seen:
                self.log.error(
                    Code.DUPLICATE, f"Two values are kept under the name '{name}'.", span,
                    related=((seen[in_group, name], "the other one"),),
                    hints=("Give one of them another name with 'as'.",),
                )  # fmt: skip
            seen[in_group, name] = span

    # Functions

    def _declare_function(self, member: syntax.Function) -> None:
        name = member.name
        first = next((f for f in self.members(syntax.Function) if f.name.text == name.text), member)
        given = [h.span for h in self.hypers if h.name == name.text and _is_function(h)]
        built_in = name.text in FUNCTIONS or name.text in ALONG
        if built_in or given or name.text in self.functions:
            there = given[0] if given else first.name.span
            self.log.error(
                Code.DUPLICATE,
                f"There is a function '{name.text}' already.", name.span,
                related=() if built_in else ((there, "first declared here"),),
                hints=("Choose another name.",),
            )  # fmt: skip
            return
        outer, spans = dict(self.scope.names), dict(self.scope.spans)
        for other in [n for n in outer if n in self.given_by_phases]:
            del self.scope.names[other]
        seen: dict[str, Span] = {}
        for parameter in member.parameters:
            if parameter.text in seen:
                self.log.error(
                    Code.DUPLICATE, f"'{name.text}' has two parameters '{parameter.text}'.",
                    parameter.span, related=((seen[parameter.text], "the first one"),),
                )  # fmt: skip
                continue
            seen[parameter.text] = parameter.span
            ref = ir.Ref(parameter.text, Role.LOCAL, Kind.SCALAR, Type.NUMBER, parameter.span)
            self.scope.declare(parameter, ref, self.log)
        value = self.expr(member.value)
        if value is not None and not self.expect_number(value, member.value.span):
            value = None
        # No code has the parameters' names: what is generated may use them.
        self.scope.names, self.scope.spans = outer, spans
        self.functions[name.text] = Function(tuple(p.text for p in member.parameters), value)

    # Phases

    def _declare_phases(self, member: syntax.Phases) -> None:
        if member.attribute is not None:
            self._check_attribute(member.attribute)
        if not member.phases:
            self.log.error(
                Code.MISSING_PART, "There is no phase.", head(member.span),
                hints=("Add: until t_end { lr: initial_lr -> max_lr }",),
            )  # fmt: skip
        phases = [self._phase(p) for p in member.phases]
        self.phases = tuple(p for p in phases if p is not None)
        targets = [tuple(m.target.text for m in p.moves) for p in member.phases]
        for phase, names in zip(member.phases, targets, strict=True):
            if {*names} != {*targets[0]}:
                self.log.error(
                    Code.MISSING_PART, "Every phase moves the same values.", head(phase.span),
                    related=((head(member.phases[0].span), "the first phase"),),
                    hints=(f"The first phase moves {', '.join(targets[0])}.",),
                )  # fmt: skip
        self._give("progress", member.span, None)
        for target in dict.fromkeys(targets[0] if targets else ()):
            for word in ("start", "end"):
                ends = [m for p in self.phases for m in p.moves if m.target == target]
                whens = {self.whens.get(m.start if word == "start" else m.end) for m in ends}
                when = whens.pop() if len(whens) == 1 else None
                self._give(f"{word}_{target}", member.span, when)

    def _give(self, name: str, span: Span, when: ir.Expr | None) -> None:
        """A name that phases make."""
        if name in self.scope.names:
            self.log.error(
                Code.SHADOWED, f"'{name}' is what the phases give.", self.scope.spans[name],
                related=((head(span), "the phases"),), hints=("Choose another name.",),
            )  # fmt: skip
        self.scope.names[name] = ir.Ref(name, Role.GIVEN, Kind.SCALAR)
        self.given_by_phases.append(name)
        if when is not None:
            self.whens[name] = when

    def _phase(self, node: syntax.PhaseDecl) -> Phase | None:
        end, when = self.expr(node.end), self.existence(node.when)
        seen: dict[str, Span] = {}
        moves = []
        for move in node.moves:
            if move.target.text in seen:
                self.log.error(
                    Code.DUPLICATE, f"This phase moves '{move.target.text}' twice.",
                    move.target.span, related=((seen[move.target.text], "first here"),),
                )  # fmt: skip
            seen[move.target.text] = move.target.span
            ends = (self._end(move.start), self._end(move.end))
            if all(ends):
                moves.append(Move(move.target.text, move.start.text, move.end.text))
        if not node.moves:
            self.log.error(
                Code.MISSING_PART, "This phase moves nothing.", head(node.span),
                hints=("Add: lr: initial_lr -> max_lr",),
            )  # fmt: skip
        if end is None or not self.expect_number(end, node.end.span):
            return None
        self._refuse_given(end, ("t", "lr", "base_lr", "initial"), "the end of a phase")
        for ref in ir.refs(end):
            if ref.name in self._of_groups():
                self.log.error(
                    Code.UNSUPPORTED, f"'{ref.name}' is one for each parameter group, a phase ends "
                    "in all groups at once.", ref.span,
                )  # fmt: skip
        return Phase(end, tuple(moves), when, node.span)

    def _end(self, name: syntax.Name) -> bool:
        """Whether a phase can begin or end at this value."""
        of_groups = [h.name for h in self.hypers if h.type.grouped]
        of_groups += [k.name for k in self.kept if k.keep is Keep.GROUP]
        if name.text in of_groups or name.text in self.scope.broken:
            return True
        declared = self.scope.names.get(name.text)
        what = (
            f"Unknown name '{name.text}'."
            if declared is None
            else (f"'{name.text}' is {self.what(declared)}, not a value of the parameter groups.")
        )
        self.log.error(
            Code.UNKNOWN_NAME if declared is None else Code.WRONG_TYPE, what, name.span,
            hints=did_you_mean(name.text, of_groups)
            or (f"Declare it: group state {name.text} = ...",),
        )  # fmt: skip
        return False

    # Conditions

    def _hold_requires(self) -> None:
        """A condition on `base_lr` is about the argument of that name."""
        given = self.scope.names["base_lr"]
        if self.starts_at:
            self.scope.names["base_lr"] = replace(given, role=Role.HYPER, kind=Kind.HYPER)
        self.hold_requires()
        self.scope.names["base_lr"] = given
        for require in self.requires:
            self._refuse_given(require.condition, ("lr", "base_lr", "initial"), "a condition")

    def readable_in_require(self, ref: ir.Ref) -> bool:
        """Beside hyperparameters a condition reads the epoch, and the schedule's own names."""
        return ref.role in (Role.STATE, Role.LOCAL) or ref.name == "t"

    # Forms

    def _form(self, is_closed: bool) -> ir.Expr | None:
        forms = [
            m for m in self.members(syntax.Form) if m.is_closed == is_closed and m.target is None
        ]
        self.refuse_repeated(forms, "'closed'" if is_closed else "'chain'")
        if not forms:
            return None
        (form, *_) = forms
        if form.when is not None:
            self.log.error(
                Code.UNSUPPORTED, "A schedule always gives the rate.", form.when.span,
                hints=("Choose between two rates: a if condition else b.",),
            )  # fmt: skip
        value = self.expr(form.value)
        if value is None or not self.expect_number(value, form.value.span):
            return None
        if is_closed:
            self._refuse_given(value, ("lr", "initial"), "a closed form")
        return value

    def _targets(self) -> tuple[Target, ...]:
        """What the schedule drives beside the rate."""
        found: dict[str, Target] = {}
        for form in self.members(syntax.Form):
            if form.target is None:
                continue
            name = form.target
            if name.text in found or name.text == RATE:
                self.log.error(
                    Code.DUPLICATE, f"'closed {name.text}' is given twice." if name.text != RATE
                    else "The rate is 'closed' alone.", name.span,
                    hints=("Write: closed = ...",) if name.text == RATE else (),
                )  # fmt: skip
                continue
            when = self.existence(form.when)
            guards, self.guards = self.guards, self.guards | known(when, True)
            value = self.expr(form.value)
            self.guards = guards
            if value is not None and self.expect_number(value, form.value.span):
                self._refuse_given(value, ("lr", "base_lr", "initial"), "the form of another value")
                found[name.text] = Target(name.text, value, when, form.span)
        return tuple(found.values())

    def _refuse_given(self, expr: ir.Expr, banned: tuple[str, ...], where: str) -> None:
        """Refuse names that have no value here, also behind a `let`."""
        reasons = {name: f"'{name}' has no value in {where}." for name in banned}
        for let in self.lets:
            for ref in ir.refs(let.value):
                if ref.name in reasons:
                    reasons[let.name] = (
                        f"'{let.name}' reads '{ref.name}': it has no value in {where}."
                    )
        for ref in ir.refs(expr):
            if ref.name in reasons and ref.role is not Role.HYPER:
                self.log.error(Code.READ_BEFORE_SET, reasons[ref.name], ref.span)

    # Updates

    def _refuse_beside(self, update: syntax.Update) -> None:
        """Refuse what belongs to forms."""
        others = (
            (syntax.Form, "A schedule has either forms or an 'update'."),
            (syntax.Phases, "Phases belong to forms of the epoch."),
            (syntax.Fractional, "A metric comes with a whole epoch."),
        )
        found = [(member, message) for type_, message in others for member in self.members(type_)]
        in_groups = "An update keeps nothing in the parameter groups."
        found += [(m, in_groups) for m in self.members(syntax.StateDecl) if m.modifier == "group"]
        grouped = {h.name for h in self.hypers if h.type.grouped}
        found += [(m, in_groups) for m in self.members(syntax.HyperDecl) if m.name.text in grouped]
        for member, message in found:
            self.log.error(
                Code.UNSUPPORTED, message, head(member.span),
                related=((head(update.span), "the 'update'"),),
            )  # fmt: skip
        for kept in self.kept:
            if kept.keep is Keep.OBSERVED:
                self._refuse_given(kept.initial, ("t",), "what is observed beside an 'update'")

    def _parameters(self, update: syntax.Update) -> tuple[str, ...]:
        names = tuple(n.text for n in update.parameters)
        if names != (METRIC,):
            self.scope.broken |= {*names}
            span = update.parameters[0].span if update.parameters else head(update.span)
            self.log.error(
                Code.WRONG_TYPE, "A schedule's update takes the metric.", span,
                hints=("Write: update(metric) { ... }",),
            )  # fmt: skip
        self.scope.names[METRIC] = ir.Ref(METRIC, Role.GIVEN, Kind.SCALAR)
        return names

    def _check_update(self, update: syntax.Update, body: tuple[ir.Stmt, ...]) -> None:
        for stmt in ir.statements(body):
            for expr in ir.expressions(stmt):
                self._refuse_given(expr, ("base_lr", "initial"), "an update")
            if isinstance(stmt, ir.Descend):
                self.log.error(
                    Code.UNSUPPORTED, "A schedule has no parameter to step.", head(stmt.span),
                    hints=("Set the rate: lr = ...",),
                )  # fmt: skip
        changed = {s.target.name for s in ir.statements(body) if isinstance(s, ir.Assign)}
        if RATE not in changed and not self.log.failed:
            self.log.error(
                Code.MISSING_PART, "This update never changes the rate.", head(update.span),
                hints=("Add: lr = ...",),
            )  # fmt: skip

    def _repeat(self, node: syntax.RepeatStmt) -> Iterator[ir.Stmt]:
        self.log.error(
            Code.UNSUPPORTED, "A schedule repeats nothing.", head(node.span),
            hints=("Write the statements as often as they are needed.",),
        )  # fmt: skip
        return iter(())

    def assignable(self, ref: ir.Ref) -> bool:
        if ref.role is Role.STATE:
            return all(k.keep is Keep.STATE for k in self.kept if k.name == ref.name)
        return ref.name == RATE or ref.role is Role.LOCAL

    # Examples

    def _examples(self) -> tuple[Example, ...]:
        found: dict[str, Example] = {}
        for member in self.members(syntax.ExampleDecl):
            if member.name.text in found:
                self.log.error(
                    Code.DUPLICATE, f"'{member.name.text}' has an example already.",
                    member.name.span,
                    related=((found[member.name.text].span, "first given here"),),
                )  # fmt: skip
                continue
            example = self._example(member)
            if example is not None:
                found[member.name.text] = example
        # Where no defaults can stand together, examples say what the arguments are.
        values = {
            n: e.value for n, e in found.items()
            if not e.parameters and not isinstance(e.value, tuple)
        }  # fmt: skip
        check_defaults(self.hypers, self.requires, self.definition, self.log, values, "example")
        return tuple(found.values())

    def _example(self, member: syntax.ExampleDecl) -> Example | None:
        name = member.name
        hyper = next((h for h in self.hypers if h.name == name.text), None)
        by_metric = name.text == METRIC and bool(self.members(syntax.Update))
        if hyper is None and not by_metric:
            if name.text not in self.scope.broken:
                names = [h.name for h in self.hypers]
                self.log.error(
                    Code.UNKNOWN_NAME, f"No argument is called '{name.text}'.", name.span,
                    hints=did_you_mean(name.text, names),
                )  # fmt: skip
            return None
        is_function = hyper is None or _is_function(hyper)
        if is_function != bool(member.parameters) or len(member.parameters) > 1:
            written = f"{name.text}(t)" if is_function else name.text
            self.log.error(
                Code.WRONG_TYPE,
                f"'{name.text}' is {'a function of one number' if is_function else 'no function'}.",
                name.span, hints=(f"Write: example {written} = ...",),
            )  # fmt: skip
            return None
        value = self._example_value(member, hyper)
        if value is None:
            return None
        return Example(name.text, tuple(p.text for p in member.parameters), value, name.span)

    def _example_value(
        self, member: syntax.ExampleDecl, hyper: Hyper | None
    ) -> ir.Expr | tuple[ir.Expr, ...] | None:
        """An example reads its parameter alone. That of a list is a tuple, or one value."""
        names = self.scope.names
        self.scope.names = {
            p.text: ir.Ref(p.text, Role.LOCAL, Kind.SCALAR, Type.NUMBER, p.span)
            for p in member.parameters
        }
        is_list = hyper is not None and hyper.type.many
        several = is_list and isinstance(member.value, syntax.TupleExpr)
        nodes: Sequence[syntax.Expr] = (member.value,)
        if isinstance(member.value, syntax.TupleExpr) and is_list:
            nodes = member.value.items
        values = [self.expr(node) for node in nodes]
        self.scope.names = names
        found = tuple(v for v in values if v is not None)
        if len(found) < len(values):
            return None
        expected = None if hyper is None or _is_function(hyper) else hyper.type
        for value, node in zip(found, nodes, strict=True):
            if expected is None and not self.expect_number(value, node.span):
                return None
            if expected is not None and not fits(value, replace(expected, many=False)):
                self.log.error(
                    Code.WRONG_TYPE,
                    f"'{member.name.text}' needs {type_phrase(replace(expected, many=False))}.",
                    node.span,
                )  # fmt: skip
                return None
        return found if several or is_list else found[0]

    # What has no effect

    def _check_use(self, schedule: Schedule) -> None:
        """Warn of hyperparameters and names that nothing reads."""
        read = {r.name for e in all_expressions(schedule) for r in ir.refs(e)}
        read |= {n for p in schedule.phases for m in p.moves for n in (m.start, m.end)}
        for hyper in schedule.hypers:
            if not read & {hyper.name, *hyper.components}:
                self._warn_unread(hyper.name, hyper.span, "Remove it, or use it in the rate.")
        inner = [s for s in ir.statements(schedule.body) if isinstance(s, ir.Let)]
        asked = (r for require in schedule.requires for r in ir.refs(require.condition))
        read |= {r.name for r in asked}
        read |= {name for r in schedule.requires for _, name in placeholders(r.message)}
        for let in (*schedule.lets, *inner):
            if let.name not in read:
                self._warn_unread(let.name, head(let.span))
        for kept in schedule.kept:
            if kept.keep is not Keep.OBSERVED and kept.name not in read | {INITIAL}:
                self._warn_unread(
                    kept.name, kept.span, f"Write 'observe {kept.name}' if it is for the user."
                )
        if schedule.phases and not read & {"progress"}:
            (phases, *_) = self.members(syntax.Phases)
            self._warn_unread("progress", head(phases.span), "Read 'progress' in a form.")
        called = {c.function.text for m in self.definition.members for c in syntax.calls(m)}
        for function in self.members(syntax.Function):
            if function.name.text not in called:
                self.log.warning(
                    Code.UNREAD, f"Nothing calls '{function.name.text}'.", function.name.span
                )

    def _warn_unread(self, name: str, span: Span, *hints: str) -> None:
        self.log.warning(Code.UNREAD, f"Nothing reads '{name}'.", span, hints=hints)


def _is_function(hyper: Hyper) -> bool:
    return hyper.type.base is Base.FUNCTION


def all_expressions(schedule: Schedule) -> Iterator[ir.Expr]:
    """Every expression of a schedule but for conditions, defaults and examples."""
    yield from (e for e in (schedule.closed, schedule.chain) if e is not None)
    yield from (let.value for let in schedule.lets)
    yield from (e for s in ir.statements(schedule.body) for e in ir.expressions(s))
    for kept in schedule.kept:
        yield kept.initial
    for target in schedule.targets:
        yield target.closed
    for phase in schedule.phases:
        yield phase.end
    conditional: Iterable[Kept | Target | Phase | Hyper] = (
        *schedule.kept, *schedule.targets, *schedule.phases, *schedule.hypers
    )  # fmt: skip
    yield from (c.when for c in conditional if c.when is not None)
