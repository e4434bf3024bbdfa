"""`optimizer Name { ... }` -> Spec."""

from __future__ import annotations

from typing import assert_never

from optdsl import ir, resources, syntax
from optdsl.diagnostics import Code, did_you_mean
from optdsl.ir import FLAGS, ROUTINE_FLAGS, Role, Spec, State
from optdsl.ops import OPS, Kind, Type
from optdsl.resolve.expressions import INITIAL
from optdsl.resolve.hypers import check_defaults
from optdsl.resolve.sparse import MODES, not_elementwise, not_linear
from optdsl.resolve.statements import StatementResolver
from optdsl.resolve.words import head
from optdsl.source import Span

MEMBERS = (
    syntax.Doc, syntax.Cite, syntax.HyperDecl, syntax.Flags, syntax.Signature, syntax.StateDecl,
    syntax.RequireClause, syntax.ParamRequire, syntax.Sparse, syntax.Complex, syntax.Routine,
    syntax.Update,
)  # fmt: skip


# The parts of an update that may be complex arithmetic.
COMPLEX = ("none", "decay", "descend")


class OptimizerResolver(StatementResolver):
    def resolve(self) -> Spec | None:
        name = self.definition.name
        self.refuse(MEMBERS, "an optimizer")
        self.declare_hypers()
        self.hold_requires()
        check_defaults(self.hypers, self.requires, self.definition, self.log)
        self._refuse_of_schedules()
        self.scope.names["param"] = ir.Ref("param", Role.PARAM, Kind.ELEMENTWISE)
        self.scope.names["grad"] = ir.Ref("grad", Role.GRAD, Kind.ELEMENTWISE)
        states = self._states()
        for member in self.members(syntax.ParamRequire):
            self.add_requires(member.clause, about_param=True)
        signature = self._signature()
        self.check_order(signature)
        doc, cites = self.doc(), self.cites()
        update = self.only(syntax.Update, "'update'")
        routine = self.only(syntax.Routine, "'routine'")
        if routine is not None:
            self._check_routine(routine, update)
            return Spec(
                name.text, self.definition.span.source, doc, cites, tuple(self.hypers), signature,
                tuple(self.requires), states, (), routine=routine.name.text, span=name.span,
            )  # fmt: skip
        if update is None:
            self.log.error(
                Code.MISSING_PART, f"'{name.text}' has no 'update'.", name.span,
                hints=("Add: update { descend lr * grad }",),
            )  # fmt: skip
            return None
        if update.parameters:
            self.log.error(
                Code.UNSUPPORTED, "An optimizer's update takes nothing.", update.parameters[0].span,
                hints=("Write: update { ... }",),
            )  # fmt: skip
        self.unset |= {s.name for s in states if s.initial is None}
        own = len(self.requires)
        body = self.infer(update.body)
        check_defaults(self.hypers, self.requires[own:], self.definition, self.log)
        spec = Spec(
            name.text, self.definition.span.source, doc, cites, tuple(self.hypers), signature,
            tuple(self.requires), states, body, sparse=self._sparse(states, body),
            complex=self._complex(), span=name.span,
        )  # fmt: skip
        self._check_integers(spec)
        if not self.log.failed:
            self._check_set(states)
            self._check_use(spec, update)
        return spec

    def _refuse_of_schedules(self) -> None:
        """Refuse what only the hyperparameters and states of schedules can be."""
        for member in self.members(syntax.HyperDecl):
            for word in member.type.words if member.type is not None else ():
                if word.text in ("per_group", "group"):
                    self.log.error(
                        Code.UNSUPPORTED, "Every hyperparameter of an optimizer is one per group.",
                        word.span, hints=(f"Leave '{word.text}' out.",),
                    )  # fmt: skip
                elif word.text in ("list", "function"):
                    self.log.error(
                        Code.UNSUPPORTED, f"A hyperparameter of an optimizer is no {word.text}.",
                        word.span, hints=("Schedules take such values.",),
                    )  # fmt: skip
            if member.when is not None:
                self.log.error(
                    Code.UNSUPPORTED, "Every parameter group has every hyperparameter.",
                    member.when.span, hints=("Leave 'when' out.",),
                )  # fmt: skip
        named: list[syntax.HyperDecl | syntax.StateDecl] = [
            *self.members(syntax.HyperDecl), *self.members(syntax.StateDecl)
        ]  # fmt: skip
        for kept in named:
            if kept.attribute is not None:
                self.log.error(
                    Code.UNSUPPORTED, "In an optimizer names and keys are the same.",
                    kept.attribute.span, hints=("Leave 'as' out.",),
                )  # fmt: skip

    def _check_routine(self, routine: syntax.Routine, update: syntax.Update | None) -> None:
        known = resources.routines()
        if routine.name.text not in known:
            self.log.error(
                Code.UNKNOWN_NAME, f"Unknown routine '{routine.name.text}'.", routine.name.span,
                hints=did_you_mean(routine.name.text, known) or (f"There is {', '.join(known)}.",),
            )  # fmt: skip
        decided: list[syntax.Sparse | syntax.Complex] = [
            *self.members(syntax.Sparse), *self.members(syntax.Complex)
        ]  # fmt: skip
        for member in decided:
            self.log.error(
                Code.UNSUPPORTED, "A routine decides this itself.", head(member.span),
                related=((head(routine.span), "the routine"),), hints=("Remove this line.",),
            )  # fmt: skip
        if update is not None:
            self.log.error(
                Code.DUPLICATE, "The routine is the update.", head(update.span),
                related=((head(routine.span), "the routine"),), hints=("Remove one of them.",),
            )  # fmt: skip

    # Sparse gradients

    def _sparse(self, states: tuple[State, ...], body: tuple[ir.Stmt, ...]) -> ir.Sparse:
        """How the update treats a sparse gradient."""
        given = self.only(syntax.Sparse, "'sparse'")
        if given is None:
            return ir.Sparse()
        mode, clause, refusal = given.mode, given.clause, given.refusal
        if mode.text not in MODES:
            self.log.error(
                Code.UNKNOWN_NAME, f"Unknown treatment '{mode.text}'.", mode.span,
                hints=did_you_mean(mode.text, MODES) or (f"It is {' or '.join(MODES)}.",),
            )  # fmt: skip
            return ir.Sparse()
        takes_both = mode.text in ("rows", "linear")
        if clause is not None and not takes_both:
            self.log.error(
                Code.UNSUPPORTED, f"A condition on sparse gradients has no use in '{mode.text}'.",
                clause.span, hints=(f'Write: sparse {mode.text} else "..."',),
            )  # fmt: skip
        if refusal is not None and takes_both:
            self.log.error(
                Code.UNSUPPORTED, f"'{mode.text}' takes every gradient: nothing is refused.",
                refusal.span, hints=(f'Write: sparse {mode.text} require condition else "..."',),
            )  # fmt: skip
        if mode.text == "linear":
            self._check_linear(mode, body)
        elif mode.text != "none":
            self._check_rows(mode, states, body)
        requires = () if clause is None else self._sparse_requires(clause)
        return ir.Sparse(mode.text, requires, "" if refusal is None else refusal.value)

    def _sparse_requires(self, clause: syntax.RequireClause) -> tuple[ir.Require, ...]:
        others, self.requires = self.requires, []
        self.add_requires(clause)
        found, self.requires = tuple(self.requires), others
        return found

    def _check_linear(self, mode: syntax.Name, body: tuple[ir.Stmt, ...]) -> None:
        found = not_linear(body)
        if found is not None:
            self.log.error(
                Code.UNSUPPORTED, "A sparse gradient cannot pass here.", found.span,
                related=((mode.span, "asked for here"),),
                hints=("Sparse tensors are added, subtracted and scaled by numbers.",),
            )  # fmt: skip

    def _check_rows(
        self, mode: syntax.Name, states: tuple[State, ...], body: tuple[ir.Stmt, ...]
    ) -> None:
        found = not_elementwise(body)
        if found is not None:
            self.log.error(
                Code.UNSUPPORTED,
                "A sparse gradient updates the elements that it has: this reads all of them.",
                found.span, related=((mode.span, "asked for here"),),
                hints=("Leave 'sparse' out: sparse gradients are then refused.",),
            )  # fmt: skip
        for slot in states:
            if slot.initial is None:
                self.log.error(
                    Code.UNSUPPORTED,
                    f"A sparse gradient would set some elements of '{slot.name}' only.",
                    slot.span, related=((mode.span, "asked for here"),),
                    hints=(f"Give it a first value: state {slot.name} = zeros_like(param)",),
                )  # fmt: skip

    def _complex(self) -> tuple[str, ...] | None:
        """The parts of the update that are complex arithmetic; None for the default."""
        given = self.only(syntax.Complex, "'complex'")
        if given is None:
            return None
        for part in given.parts:
            if part.text not in COMPLEX:
                self.log.error(
                    Code.UNKNOWN_NAME, f"Unknown part '{part.text}'.", part.span,
                    hints=did_you_mean(part.text, COMPLEX) or (f"It is {', '.join(COMPLEX)}.",),
                )  # fmt: skip
        words = [p.text for p in given.parts]
        for place, part in enumerate(given.parts):
            if part.text in words[:place] or (part.text == "none" and len(words) > 1):
                self.log.error(
                    Code.DUPLICATE, f"'{part.text}' does not stand beside the other parts.",
                    part.span, hints=("Write 'complex none', or each part once.",),
                )  # fmt: skip
        return tuple(p for p in words if p != "none")

    # Slots

    def _states(self) -> tuple[State, ...]:
        found = []
        for member in self.members(syntax.StateDecl):
            state = self._state(member)
            if state is not None:
                found.append(state)
        names = {f"{s.name}_scale": s.name for s in found if s.kind is not Kind.SCALAR}
        for state in found:
            if state.name in names:
                self.log.error(
                    Code.RESERVED_NAME,
                    f"Where '{names[state.name]}' is stored in 8 bits, "
                    f"'{state.name}' are its scales.",
                    state.span, hints=(f"Choose another name, such as '{state.name}_value'.",),
                )  # fmt: skip
        return tuple(found)

    def _state(self, member: syntax.StateDecl) -> State | None:
        name = member.name
        integer = member.type is not None and [w.text for w in member.type.words] == ["int"]
        if member.type is not None and not integer:
            self.log.error(
                Code.UNSUPPORTED, "A slot takes its type from the precision policy.",
                member.type.span, hints=(f"Write: state {name.text} = ...",),
            )  # fmt: skip
        if member.modifier == "group":
            self.log.error(
                Code.UNSUPPORTED, "An optimizer keeps its slots for each parameter.",
                head(member.span), hints=("Leave 'group' out.",),
            )  # fmt: skip
        reads = "options, hyperparameters and properties of 'param'"
        when = self.existence(member.when, "a slot", reads)
        initial = self._initial(member.initial)
        is_unset = isinstance(member.initial, syntax.Unset)
        kind = Kind.ELEMENTWISE if is_unset or initial is None else ir.kind_of(initial)
        kind = max(kind, Kind.SCALAR)
        if kind is Kind.SCALAR and member.when is not None:
            self.log.error(
                Code.UNSUPPORTED, "A slot that is a number exists for every parameter.",
                member.when.span, hints=("Leave 'when' out: a number costs little.",),
            )  # fmt: skip
        ref = ir.Ref(name.text, Role.STATE, kind, Type.NUMBER, name.span)
        if not self.scope.declare(name, ref, self.log):
            return None
        if initial is None and not is_unset:
            self.scope.broken.add(name.text)
        if when is not None:
            self.whens[name.text] = when
        eager, output = member.modifier == "eager", member.modifier == "output"
        return State(name.text, kind, initial, when, eager, integer, output, name.span)

    def _initial(self, node: syntax.Expr) -> ir.Expr | None:
        """A slot's first value: a number, zeros_like(param) or full_like(param, number)."""
        if isinstance(node, syntax.Unset):
            return None
        self.in_state = True
        initial = self.expr(node)
        self.in_state = False
        if initial is None or not self.expect_number(initial, node.span):
            return None
        slots = [r for r in ir.refs(initial) if r.role is Role.STATE]
        if slots:
            self.log.error(
                Code.READ_BEFORE_SET, f"The slot '{slots[0].name}' has no value yet.",
                slots[0].span, hints=("A first value reads hyperparameters and 'param'.",),
            )  # fmt: skip
            return None
        fresh = isinstance(initial, ir.Apply) and OPS[initial.op].rule in INITIAL
        if fresh or ir.is_scalar(initial):
            return initial
        self.log.error(
            Code.WRONG_KIND, "A slot cannot begin with this tensor.", node.span,
            hints=("Begin with a number, zeros_like(param), full_like(param, number) or unset.",),
        )  # fmt: skip
        return None

    def _check_set(self, states: tuple[State, ...]) -> None:
        """Refuse a slot that an update may leave unset: the next one could not tell."""
        for slot in states:
            if slot.name in self.unset:
                self.log.error(
                    Code.UNSUPPORTED, f"An update may leave the slot '{slot.name}' unset.",
                    slot.span,
                    hints=("Assign it in both branches of every 'if', or give it a first value.",),
                )  # fmt: skip

    def _check_integers(self, spec: Spec) -> None:
        """A slot of type int is a whole number for ever."""
        integers = {s.name: s for s in spec.states if s.integer}
        wrong = [s.span for s in integers.values() if not _is_whole(s.initial)]
        for stmt in ir.statements(spec.body):
            if isinstance(stmt, ir.Assign) and stmt.target.name in integers:
                kept = stmt.operator in ("add", "sub", "mul") and _is_whole(stmt.value)
                wrong += [] if kept else [stmt.span]
        for span in wrong:
            self.log.error(
                Code.WRONG_TYPE, "A slot of type int cannot take this.", span,
                hints=("It begins as an integer, and changes by +=, -= or *= and an integer.",),
            )  # fmt: skip

    # The constructor's order

    def _signature(self) -> tuple[str, ...]:
        given = self.only(syntax.Signature, "'signature'")
        dots = self.members(syntax.Flags)
        self.refuse_repeated(dots, "'...'")
        if given is None:
            names = self.signature()
            flags = ROUTINE_FLAGS if self.members(syntax.Routine) else FLAGS
            return names if "*" in names else (*names, "*", *flags)
        for extra in dots[:1]:
            self.log.error(
                Code.DUPLICATE, "The signature says where the flags stand.", extra.span,
                related=((head(given.span), "the signature"),), hints=("Remove this line.",),
            )  # fmt: skip
        self._check_signature(given)
        listed = {n.text for n in given.names}
        result: list[str] = []
        for name in given.names:
            match name.text:
                case "params":
                    continue
                case "...":
                    result += [h.name for h in self.hypers if h.name not in listed]
                    result += [f for f in FLAGS if f not in listed]
                case text:
                    result.append(text)
        flags_left = [f for f in FLAGS if f not in result]
        if flags_left:
            result += ([] if "*" in result else ["*"]) + flags_left
        return tuple(result)

    def _check_signature(self, given: syntax.Signature) -> None:
        declared = [n for n in self.signature() if n not in FLAGS and n != "*"]
        known = {*declared, *FLAGS, "*", "...", "params"}
        seen: dict[str, Span] = {}
        for place, name in enumerate(given.names):
            if name.text not in known:
                self.log.error(
                    Code.UNKNOWN_NAME, f"Unknown name '{name.text}'.", name.span,
                    "not a hyperparameter, option or flag", hints=did_you_mean(name.text, known),
                )  # fmt: skip
            elif name.text in seen:
                self.log.error(
                    Code.DUPLICATE, f"'{name.text}' stands twice in the signature.", name.span,
                    related=((seen[name.text], "first here"),),
                )  # fmt: skip
            elif name.text == "params" and place > 0:
                self.log.error(
                    Code.DEFAULT_ORDER, "'params' is the first argument.", name.span,
                    hints=("Write: signature (params, ...)",),
                )  # fmt: skip
            seen.setdefault(name.text, name.span)
        left = [n for n in declared if n not in seen]
        if left and "..." not in seen:
            self.log.error(
                Code.MISSING_PART, f"The signature leaves out '{left[0]}'.", given.span,
                hints=("'...' stands for all that is not named.",),
            )  # fmt: skip
        last = given.names[-1]
        if last.text == "*" and "..." not in seen and set(FLAGS) <= set(seen):
            self.log.error(
                Code.MISSING_PART, "Nothing stands behind the '*' of the signature.", last.span
            )

    # What has no effect

    def _check_use(self, spec: Spec, update: syntax.Update) -> None:
        """Warn of what has no effect; refuse an update that changes nothing."""
        if not any(_changes_param(s) for s in ir.statements(spec.body)):
            self.log.error(
                Code.MISSING_PART, "This update never changes the parameter.", head(update.span),
                hints=("End it with: descend lr * grad",),
            )  # fmt: skip
            return
        effective = effective_names(spec.body, frozenset(s.name for s in spec.states if s.output))
        conditions = [e for s in spec.states for e in (s.when, s.initial) if e is not None]
        wanted = effective | {r.name for c in conditions for r in ir.refs(c)}
        body = list(ir.statements(spec.body))
        read = {r.name for s in body for e in ir.expressions(s) for r in ir.refs(e)}
        for slot in spec.states:
            # `step` is what every user expects to find in a checkpoint.
            if slot.name not in effective and slot.name != "step":
                self._warn_unread("slot ", slot.name, slot.span, read)
        for hyper in spec.hypers:
            if not wanted & {hyper.name, *hyper.components}:
                self._warn_unread("", hyper.name, hyper.span, read)
        for stmt in body:
            if isinstance(stmt, ir.Let) and stmt.name not in effective:
                self._warn_unread("", stmt.name, name_in_let(stmt), read)

    def _warn_unread(self, what: str, name: str, span: Span, read: set[str]) -> None:
        message = f"The {what}'{name}'" if what else f"'{name}'"
        if name in read:
            message = f"{message} never reaches the parameter."
        else:
            message = f"Nothing reads {message.replace('The ', 'the ')}."
        self.log.warning(Code.UNREAD, message, span, hints=("Remove it, or use it in the update.",))


def _is_whole(value: ir.Expr | None) -> bool:
    match value:
        case ir.Const(value=bool()):
            return False
        case ir.Const(value=int()):
            return True
        case _:
            return False


def name_in_let(stmt: ir.Let) -> Span:
    """`let name = ...` -> the place of the name; all of what made a let that nobody wrote."""
    at = stmt.span.text.find(stmt.name, len("let"))
    if at < 0:
        return stmt.span
    start = stmt.span.start + at
    return Span(stmt.span.source, start, start + len(stmt.name))


def _changes_param(stmt: ir.Stmt) -> bool:
    match stmt:
        case ir.Descend():
            return True
        case ir.Assign(target=target):
            return target.role is Role.PARAM
        case _:
            return False


def effective_names(
    body: tuple[ir.Stmt, ...], outputs: frozenset[str] = frozenset()
) -> frozenset[str]:
    """The names whose values reach the parameter or a slot for the user, in this step or through a
    slot in a later one."""
    needed = {"param", *outputs}

    def visit(block: tuple[ir.Stmt, ...]) -> bool:
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
                    inner = visit(stmt.then)
                    writes = visit(stmt.orelse) or inner
                case ir.Repeat(count=value):
                    writes = visit(stmt.body)
                case _:
                    assert_never(stmt)
            if writes:
                hit = True
                needed.update(r.name for r in ir.refs(value))
        return hit

    while True:
        before = len(needed)
        visit(body)
        if len(needed) == before:
            return frozenset(needed)
