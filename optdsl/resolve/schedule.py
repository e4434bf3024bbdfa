"""`schedule Name { ... }` -> Schedule."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from optdsl import ir, syntax
from optdsl.diagnostics import Code, Log, did_you_mean
from optdsl.ir import Base, Example, Hyper, Keep, Kept, Move, Phase, Role, Schedule, Target
from optdsl.ops import ALONG, FUNCTIONS, Kind, Type
from optdsl.resolve.calls import Others
from optdsl.resolve.expressions import Function, known
from optdsl.resolve.hypers import check_defaults, fits
from optdsl.resolve.statements import StatementResolver
from optdsl.resolve.words import head, type_phrase
from optdsl.source import Span

MEMBERS = (
    syntax.Doc, syntax.Cite, syntax.HyperDecl, syntax.RequireClause, syntax.StateDecl,
    syntax.Observe, syntax.Function, syntax.Phases, syntax.LetStmt, syntax.Form, syntax.Fractional,
    syntax.Update, syntax.ExampleDecl,
)  # fmt: skip
RATE = "lr"
METRIC = "metric"


class ScheduleResolver(StatementResolver):
    """`t` is the epoch, `lr` the group's rate, `base_lr` the one it began with. `initial` is true
    for the rate that the constructor asks for: at epoch 0, or where a rebuilt schedule resumes."""

    GIVEN = (
        ("t", Type.NUMBER), (RATE, Type.NUMBER), ("base_lr", Type.NUMBER), ("initial", Type.BOOL),
    )  # fmt: skip
    # What torch's schedulers keep in attributes, and functions that methods call by these names.
    TAKEN = frozenset(
        {"step", "state_dict", "load_state_dict", "get_lr", "get_last_lr", "base_lrs"}
        | {"in_cooldown", "abs", "float", "max", "min", "initial"}
        | {"parameter", "function", "functions", "targets", "per_group", "grouped", "use_beta1"}
        | {"observed", "unsaved", "affine"}
        | {"bisect_right", "callable", "Counter", "floor_log", "int", "isinstance", "list"}
        | {"ABSENT", "phase_of", "sorted", "type", "TypeError"}
    )
    # Attributes and methods of every schedule that begin with `_`: nothing is kept `as` one.
    PRIVATE = frozenset(
        {"_begin", "_chain", "_check", "_check_group", "_closed", "_get_closed_form_lr"}
        | {"_initial_step"}
        | {"_get_lr_called_within_step", "_groups", "_is_initial", "_last_lr", "_observe"}
        | {"_reset", "_step_count", "_update", "_update_lr"}
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
            if isinstance(m, syntax.LetStmt | syntax.StateDecl | syntax.Observe | syntax.Function)
        }  # fmt: skip
        # The hyperparameter in the place of the group's first rate.
        self.starts_at = any(m.name.text == "base_lr" for m in self.members(syntax.HyperDecl))
        if self.starts_at:
            self.scope.permitted = frozenset({"base_lr"})

    def resolve(self) -> Schedule | None:
        self.refuse(MEMBERS, "a schedule")
        self.declare_hypers()
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
            attribute.text if attribute is not None else "", fractional is not None,
            self._examples(), self.definition.name.span,
        )  # fmt: skip
        if not self.log.failed:
            self._check_attributes(schedule)
            self._check_use(schedule)
        return schedule

    # Names

    def _declare_given(self) -> None:
        for name, type_ in self.GIVEN:
            if name in self.scope.names and not (name == "base_lr" and self._is_rate(name)):
                self._refuse_name(name, self.scope.spans[name])
            self.scope.names[name] = ir.Ref(name, Role.GIVEN, Kind.SCALAR, type_)

    def _is_rate(self, name: str) -> bool:
        """Whether a hyperparameter can be the first rate of every group."""
        return any(h.name == name and _is_number(h) for h in self.hypers)

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

    def _check_kept(self, keep: Keep, value: ir.Expr) -> None:
        """First values are made at construction, observed ones for an epoch; only those of a group
        may differ between groups."""
        if keep is Keep.OBSERVED:
            self._refuse_given(value, ("lr", "base_lr", "initial"), "an observed value")
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
        if attribute.text in self.PRIVATE | self.TAKEN | {"optimizer", "last_epoch"}:
            self._refuse_name(attribute.text, attribute.span)

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
        for in_group, name, span in kept:
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
        if name.text in FUNCTIONS or name.text in ALONG or name.text in self.functions:
            built_in = name.text not in self.functions
            self.log.error(
                Code.DUPLICATE,
                f"There is a function '{name.text}' already.", name.span,
                related=() if built_in else ((first.name.span, "first declared here"),),
                hints=("Choose another name.",),
            )  # fmt: skip
            return
        outer = dict(self.scope.names)
        for given in [n for n in outer if n in self.given_by_phases]:
            del self.scope.names[given]
        for parameter in member.parameters:
            ref = ir.Ref(parameter.text, Role.LOCAL, Kind.SCALAR, Type.NUMBER, parameter.span)
            self.scope.declare(parameter, ref, self.log)
        value = self.expr(member.value)
        if value is not None and not self.expect_number(value, member.value.span):
            value = None
        self.scope.names = outer
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
        for type_, message in others:
            for member in self.members(type_):
                self.log.error(
                    Code.UNSUPPORTED, message, head(member.span),
                    related=((head(update.span), "the 'update'"),),
                )  # fmt: skip

    def _parameters(self, update: syntax.Update) -> tuple[str, ...]:
        names = tuple(n.text for n in update.parameters)
        if names != (METRIC,):
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
        if not any(isinstance(s, ir.Assign) and s.target.name == RATE for s in ir.statements(body)):
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
        values = {n: e.value for n, e in found.items() if isinstance(e.value, ir.Const)}
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
        is_function = hyper is None or hyper.type.base is Base.FUNCTION
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
        expected = None if hyper is None or hyper.type.base is Base.FUNCTION else hyper.type
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
        for let in (*schedule.lets, *inner):
            if let.name not in read:
                self._warn_unread(let.name, head(let.span))
        for kept in schedule.kept:
            if kept.keep is not Keep.OBSERVED and kept.name not in read | {"initial_lr"}:
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


def _is_number(hyper: Hyper) -> bool:
    return hyper.type.base in (Base.REAL, Base.INT) and not hyper.type.many


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
