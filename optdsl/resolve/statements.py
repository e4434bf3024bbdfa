"""syntax.Stmt -> ir.Stmt: local names, assignments, branches, and the kinds they give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import assert_never

from optdsl import ir, syntax
from optdsl.diagnostics import Code, Log, did_you_mean
from optdsl.ir import Role
from optdsl.ops import BINARY, Kind, Type
from optdsl.resolve.calls import Others
from optdsl.resolve.expressions import known, known_set
from optdsl.resolve.hypers import MemberResolver
from optdsl.resolve.words import TYPES

# How to have a number of all parameters that only some statements use.
BEFORE = "Give it a name before: let total = ..."


class StatementResolver(MemberResolver):
    """Binds the statements of an update."""

    def __init__(
        self, definition: syntax.Definition, log: Log, others: Others | None = None
    ) -> None:
        super().__init__(definition, log, others)
        # The widest kind that was assigned to a local name, by the place of its `let`.
        self.kinds: dict[int, Kind] = {}

    def infer(self, body: tuple[syntax.Stmt, ...]) -> tuple[ir.Stmt, ...]:
        """The body with the kinds of its names at their fixpoint: an assignment may widen one."""
        names, unset, log = dict(self.scope.names), self.unset, self.log
        while True:
            kinds = dict(self.kinds)
            self.scope.names, self.unset, self.log = dict(names), unset, Log()
            self.assigned = frozenset()
            result = self.block(body)
            if self.kinds == kinds:
                log.add(self.log)
                self.log = log
                return result

    def block(self, body: tuple[syntax.Stmt, ...]) -> tuple[ir.Stmt, ...]:
        """A block's statements; names that `let` makes in it end with it."""
        outer = dict(self.scope.names)
        result = tuple(s for node in body for s in self._statement(node))
        self.scope.close(outer)
        return result

    def assignable(self, ref: ir.Ref) -> bool:
        return ref.role in (Role.PARAM, Role.GRAD, Role.STATE, Role.LOCAL)

    def _statement(self, node: syntax.Stmt) -> Iterator[ir.Stmt]:
        match node:
            case syntax.LetStmt():
                yield from self.let(node)
            case syntax.AssignStmt():
                yield from self._assign(node)
            case syntax.DescendStmt():
                value = self.expr(node.value)
                if value is not None and self.expect_number(value, node.value.span):
                    yield ir.Descend(value, node.span)
            case syntax.IfStmt():
                yield from self._if(node)
            case syntax.RepeatStmt():
                yield from self._repeat(node)
            case _:
                assert_never(node)

    def let(self, node: syntax.LetStmt) -> Iterator[ir.Let]:
        value = self.expr(node.value)
        at = node.name.span.start
        kind = Kind.OPTION if value is None else ir.kind_of(value)
        kind = self.kinds[at] = max(kind, self.kinds.get(at, Kind.OPTION))
        type_ = Type.NUMBER if value is None else ir.type_of(value)
        ref = ir.Ref(node.name.text, Role.LOCAL, kind, type_, node.name.span)
        free = self.scope.declare(node.name, ref, self.log)
        if value is None:
            self.scope.broken.add(node.name.text)
        elif free:
            yield ir.Let(node.name.text, _spread(value, kind), kind, node.span)

    def _assign(self, node: syntax.AssignStmt) -> Iterator[ir.Stmt]:
        name = node.target
        declared = self.scope.names.get(name.text)
        if declared is None or not self.assignable(declared):
            self.expr(node.value)
            self._refuse_target(name, declared)
            return
        target = replace(declared, span=name.span)
        found = self._augmented(node, target) if node.operator else self._plain(node)
        if name.text in self.scope.broken or found is None:
            return
        value, kind, operator = found
        if not self._fits_target(target, value, node) or not self._widen(target, kind, node):
            return
        self.unset -= {name.text}
        self.assigned |= {name.text}
        yield ir.Assign(target, _spread(value, target.kind), operator, node.span)

    def _refuse_target(self, name: syntax.Name, declared: ir.Ref | None) -> None:
        if declared is None:
            new = f"A new name is made with: let {name.text} = ..."
            self.log.error(
                Code.UNKNOWN_NAME, f"Unknown name '{name.text}'.", name.span,
                "not a slot or local name",
                hints=(*did_you_mean(name.text, self.scope.names), new),
            )  # fmt: skip
            # What follows may mean this name: one error is enough.
            self.scope.names[name.text] = ir.Ref(name.text, Role.LOCAL, Kind.OPTION)
            self.scope.broken.add(name.text)
            return
        self.log.error(
            Code.NOT_ASSIGNABLE,
            f"'{name.text}' is {self.what(declared)}: it cannot be assigned.", name.span,
            hints=(f"Give the new value a name: let {name.text}_now = ...",),
        )  # fmt: skip

    def _plain(self, node: syntax.AssignStmt) -> tuple[ir.Expr, Kind, str] | None:
        """target = value"""
        self.check_exists(node.target)
        value = self.expr(node.value)
        return None if value is None else (value, ir.kind_of(value), "")

    def _augmented(
        self, node: syntax.AssignStmt, target: ir.Ref
    ) -> tuple[ir.Expr, Kind, str] | None:
        """target += value -> target = target + value; a number in a slot keeps its operator, for it
        computes in the slot's own type."""
        op = BINARY[node.operator].name
        whole = self.operation(op, (node.target, node.value), node)
        if not isinstance(whole, ir.Apply):
            return None
        if target.role is Role.STATE and target.kind <= Kind.SCALAR:
            return whole.args[1], whole.kind, op
        return whole, whole.kind, ""

    def _fits_target(self, target: ir.Ref, value: ir.Expr, node: syntax.AssignStmt) -> bool:
        found = ir.type_of(value)
        mask = target.type is Type.NUMBER and found is Type.BOOL and not ir.is_scalar(value)
        if found is target.type or mask:
            return True
        self.log.error(
            Code.WRONG_TYPE,
            f"'{target.name}' is {TYPES[target.type]}, this value is {TYPES[found]}.",
            node.value.span,
            related=((self.scope.spans[target.name], "declared here"),)
            if target.name in self.scope.spans
            else (),
        )
        return False

    def _widen(self, target: ir.Ref, kind: Kind, node: syntax.AssignStmt) -> bool:
        """Let an assignment widen a local name's kind; a slot's is declared."""
        tensor = target.kind >= Kind.ELEMENTWISE and kind >= Kind.ELEMENTWISE
        if kind <= target.kind or (tensor and target.role in ir.STORED):
            return True
        if target.role is not Role.STATE:
            declared = self.scope.spans.get(target.name)
            if declared is not None:
                self.kinds[declared.start] = kind
            self.scope.names[target.name] = replace(self.scope.names[target.name], kind=kind)
            return True
        what, other = "one number", "a tensor"
        if target.kind is Kind.FACTORED:
            what, other = "rows or columns", "a whole tensor"
        self.log.error(
            Code.WRONG_KIND,
            f"The slot '{target.name}' is {what}, this value is {other}.",
            node.value.span,
            related=((self.scope.spans[target.name], "declared here"),),
            hints=(f"Declare it as a tensor: state {target.name} = zeros_like(param)",),
        )
        return False

    def _if(self, node: syntax.IfStmt) -> Iterator[ir.Stmt]:
        condition = self._condition(node.condition)
        unset, guards, whens = self.unset, self.guards, self.whens
        if condition is None:
            # Nothing is known about slots any more, so nothing is said about them.
            unset, self.whens = frozenset(), {}
        alone = self.alone
        if condition is not None and not ir.is_given(condition):
            why = "each may take another branch: its own numbers decide here"
            self.alone = (why, BEFORE)
        self.unset = unset - known_set(condition, True)
        self.guards = guards | known(condition, True)
        assigned = self.assigned
        then = self.block(node.then)
        after_then, assigned_then = self.unset - self._absent(), self.assigned
        self.unset = unset - known_set(condition, False)
        self.guards = guards | known(condition, False)
        self.assigned = assigned
        orelse = self.block(node.orelse)
        self.alone = alone
        self.assigned |= assigned_then
        after_else = self.unset - self._absent()
        self.guards, self.unset, self.whens = guards, after_then | after_else, whens
        if condition is not None:
            yield ir.If(condition, then, orelse, node.span)

    def _absent(self) -> frozenset[str]:
        """The slots that do not exist here."""
        return frozenset(
            name for name, when in self.whens.items() if known(when, False) <= self.guards
        )

    def _repeat(self, node: syntax.RepeatStmt) -> Iterator[ir.Stmt]:
        """The body may not run at all, so nothing that it sets is set behind it."""
        count = self.expr(node.count)
        unset, assigned, alone = self.unset, self.assigned, self.alone
        self.alone = ("a repeated statement has those of one", BEFORE)
        body = self.block(node.body)
        self.unset, self.assigned, self.alone = unset, assigned | self.assigned, alone
        if count is None or not self.expect_number(count, node.count.span):
            return
        if not self._is_count(count):
            self.log.error(
                Code.WRONG_KIND, "How often to repeat is an integer from 0 on.", node.count.span,
                hints=("Write a literal, or a hyperparameter of the type int.",),
            )  # fmt: skip
            return
        yield ir.Repeat(count, body, node.span)

    def _is_count(self, count: ir.Expr) -> bool:
        match count:
            case ir.Const(value=value):
                return isinstance(value, int) and value >= 0
            case ir.Ref(name=name, role=Role.HYPER):
                return any(h.name == name and h.type.base is ir.Base.INT for h in self.hypers)
            case _:
                return False

    def _condition(self, node: syntax.Expr) -> ir.Expr | None:
        condition = self.expr(node)
        if condition is None or not self.expect_bool(condition, node.span):
            return None
        if ir.kind_of(condition) <= Kind.SCALAR:
            return condition
        self.log.error(
            Code.WRONG_KIND, "A branch cannot depend on a tensor's values.", node.span,
            hints=("Choose per element with where(mask, a, b).",),
        )  # fmt: skip
        return None


def _spread(value: ir.Expr, kind: Kind) -> ir.Expr:
    """A number in a name that holds a tensor is a tensor like the parameter."""
    if kind < Kind.ELEMENTWISE or ir.kind_of(value) >= Kind.ELEMENTWISE:
        return value
    param = ir.Ref("param", Role.PARAM, Kind.ELEMENTWISE, span=value.span)
    return ir.apply("full_like", param, value, span=value.span)
