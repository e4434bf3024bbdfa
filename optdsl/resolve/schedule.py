"""`schedule Name { ... }` -> Schedule."""

from __future__ import annotations

from collections.abc import Iterator

from optdsl import ir, syntax
from optdsl.diagnostics import Code
from optdsl.ir import Role, Schedule, State
from optdsl.ops import Kind, Type
from optdsl.resolve.statements import StatementResolver
from optdsl.resolve.words import head
from optdsl.source import Span


class ScheduleResolver(StatementResolver):
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
        forms = self.members(syntax.Form)
        parameters: tuple[str, ...] = ()
        body: tuple[ir.Stmt, ...] = ()
        if update is not None:
            for form in forms:
                self.log.error(
                    Code.UNSUPPORTED, "A schedule has either forms or an 'update'.",
                    head(form.span), related=((head(update.span), "the 'update'"),),
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
        return tuple(let for member in self.members(syntax.LetStmt) for let in self.let(member))

    def _parameters(self, update: syntax.Update) -> tuple[str, ...]:
        names = tuple(n.text for n in update.parameters)
        if names != ("metric",):
            span = update.parameters[0].span if update.parameters else head(update.span)
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
                    Code.UNSUPPORTED, "A schedule has no parameter to step.", head(stmt.span),
                    hints=("Set the rate: lr = ...",),
                )  # fmt: skip
        if not any(isinstance(s, ir.Assign) and s.target.name == "lr" for s in ir.statements(body)):
            self.log.error(
                Code.MISSING_PART, "This update never changes the rate.", head(update.span),
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
                self.log.warning(Code.UNREAD, f"Nothing reads '{let.name}'.", head(let.span))

    def _repeat(self, node: syntax.RepeatStmt) -> Iterator[ir.Stmt]:
        self.log.error(
            Code.UNSUPPORTED, "A schedule repeats nothing.", head(node.span),
            hints=("Write the statements as often as they are needed.",),
        )  # fmt: skip
        return iter(())

    def assignable(self, ref: ir.Ref) -> bool:
        return ref.name == "lr" or ref.role in (Role.STATE, Role.LOCAL)

    def _form(self, is_closed: bool) -> ir.Expr | None:
        forms = [m for m in self.members(syntax.Form) if m.is_closed == is_closed]
        self.refuse_repeated(forms, "'closed'" if is_closed else "'chain'")
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
            if (
                member.type
                or member.when
                or member.modifier
                or isinstance(member.initial, syntax.Unset)
            ):
                self.log.error(
                    Code.UNSUPPORTED, "A schedule's state is a name and its first value.",
                    head(member.span), hints=(f"Write: state {member.name.text} = 0",),
                )  # fmt: skip
                initial = None
            else:
                initial = self.expr(member.initial)
            for ref in ir.refs(initial) if initial is not None else ():
                if ref.role in (Role.GIVEN, Role.LOCAL):
                    self.log.error(
                        Code.READ_BEFORE_SET, f"'{ref.name}' has no value in a first value.",
                        ref.span,
                    )  # fmt: skip
            type_ = Type.NUMBER if initial is None else ir.type_of(initial)
            ref = ir.Ref(member.name.text, Role.STATE, Kind.SCALAR, type_, member.name.span)
            free = self.scope.declare(member.name, ref, self.log)
            if initial is None:
                self.scope.broken.add(member.name.text)
            elif free:
                states.append(
                    State(
                        member.name.text, Kind.SCALAR, initial, None, False, span=member.name.span
                    )
                )
        return tuple(states)
