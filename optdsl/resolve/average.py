"""`average Name { ... }` -> Average."""

from __future__ import annotations

from optdsl import ir, syntax
from optdsl.diagnostics import Code
from optdsl.ir import Average, Role
from optdsl.ops import Kind
from optdsl.resolve.hypers import check_defaults
from optdsl.resolve.statements import StatementResolver
from optdsl.resolve.words import head


class AverageResolver(StatementResolver):
    """`average` is what is updated, `param` the model's tensor that enters it, `n` the number of
    models that have entered before."""

    GIVEN = (
        ir.Ref("average", Role.PARAM, Kind.ELEMENTWISE),
        ir.Ref("param", Role.GRAD, Kind.ELEMENTWISE),
        ir.Ref("n", Role.GIVEN, Kind.HYPER),
    )
    # What emitted functions call the lists.
    TAKEN = ("averages",)

    def resolve(self) -> Average | None:
        self.refuse(
            (
                syntax.Doc, syntax.Cite, syntax.HyperDecl, syntax.RequireClause, syntax.LetStmt,
                syntax.AverageForm,
            ),
            "an average",
        )  # fmt: skip
        self.declare_hypers()
        self.hold_requires()
        check_defaults(self.hypers, self.requires, self.definition, self.log)
        self.check_order(self.signature())
        self._refuse_of_schedules()
        for ref in self.GIVEN:
            if ref.name not in self.scope.names:
                self.scope.names[ref.name] = ref
        self.alone = ("an average has one tensor at a time", "")
        lets = tuple(let for member in self.members(syntax.LetStmt) for let in self.let(member))
        self._refuse_names()
        each, multi = self._form(True), self._form(False)
        name = self.definition.name
        if not self.members(syntax.AverageForm):
            self.log.error(
                Code.MISSING_PART, f"'{name.text}' has no form.", name.span,
                hints=("Add: each = average + (param - average) / (n + 1)",),
            )  # fmt: skip
        one = each or multi
        if one is None or self.log.failed:
            return None
        average = Average(
            name.text, self.definition.span.source, self.doc(), self.cites(), tuple(self.hypers),
            tuple(self.requires), lets, each or one, multi or one, name.span,
        )  # fmt: skip
        self._check_use(average)
        return average

    def _refuse_of_schedules(self) -> None:
        """One value serves all tensors, and is a number, a text or a switch."""
        for member in self.members(syntax.HyperDecl):
            if member.when is not None:
                self.log.error(
                    Code.UNSUPPORTED, "An average has every hyperparameter.", member.when.span,
                    hints=("Leave 'when' out.",),
                )  # fmt: skip
            if member.attribute is not None:
                self.log.error(
                    Code.UNSUPPORTED, "In an average names and keys are the same.",
                    member.attribute.span, hints=("Leave 'as' out.",),
                )  # fmt: skip
            for word in member.type.words if member.type is not None else ():
                if word.text in ("per_group", "group", "list", "function"):
                    self.log.error(
                        Code.UNSUPPORTED, f"A hyperparameter of an average is no {word.text}.",
                        word.span, hints=("Schedules take such values.",),
                    )  # fmt: skip

    def _refuse_names(self) -> None:
        for name in (*(r.name for r in self.GIVEN), *self.TAKEN):
            if name in self.scope.spans:
                self.log.error(
                    Code.RESERVED_NAME, f"In an average '{name}' has a meaning already.",
                    self.scope.spans[name], hints=(f"Call it '{name}_value', for example.",),
                )  # fmt: skip

    def _form(self, is_each: bool) -> ir.Assign | None:
        """A form as the assignment of its value to `average`."""
        word = "each" if is_each else "multi"
        forms = [m for m in self.members(syntax.AverageForm) if m.is_each == is_each]
        self.refuse_repeated(forms, f"'{word}'")
        if not forms:
            return None
        value = self.expr(forms[0].value)
        if value is None or not self.expect_number(value, forms[0].value.span):
            return None
        if ir.is_scalar(value):
            self.log.error(
                Code.WRONG_KIND, "An average is a tensor, this is a number.", forms[0].value.span,
                hints=(f"Write: {word} = lerp(average, param, weight)",),
            )  # fmt: skip
            return None
        return ir.Assign(self.GIVEN[0], value, span=forms[0].span)

    def _check_use(self, average: Average) -> None:
        """Refuse a form that no model enters; warn of what nothing reads."""
        values = {let.name: let.value for let in average.lets}
        read: set[str] = set()
        for form in dict.fromkeys((average.each, average.multi)):
            names = reached(form.value, values)
            if "param" not in names:
                self.log.error(
                    Code.MISSING_PART, "This form never reads 'param': no model enters it.",
                    head(form.span), hints=("Add it: lerp(average, param, weight)",),
                )  # fmt: skip
            read |= names
        for hyper in average.hypers:
            if not read & {hyper.name, *hyper.components}:
                self.log.warning(
                    Code.UNREAD, f"Nothing reads '{hyper.name}'.", hyper.span,
                    hints=("Remove it, or use it in the average.",),
                )  # fmt: skip
        for let in average.lets:
            if let.name not in read:
                self.log.warning(Code.UNREAD, f"Nothing reads '{let.name}'.", head(let.span))


def reached(value: ir.Expr, lets: dict[str, ir.Expr]) -> set[str]:
    """The names that an expression reads, also through `lets`."""
    names: set[str] = set()
    waiting = [value]
    while waiting:
        new = {r.name for r in ir.refs(waiting.pop())} - names
        names |= new
        waiting += [lets[name] for name in new if name in lets]
    return names
