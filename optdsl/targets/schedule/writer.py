"""Expressions of a schedule -> lines of Python, what they need computed no earlier than needed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from optdsl import printing
from optdsl.diagnostics import unsupported
from optdsl.ir import Apply, Const, Expr, Kept, Let, Ref, Require, Role, map_expr, refs, walk
from optdsl.ops import Kind, Type
from optdsl.targets.layout import INDENT, WIDTH, indented
from optdsl.targets.schedule.places import Places, attribute
from optdsl.targets.signature import Lines, message, negated, quoted, refusal, shown_names

# A method's body stands in this column.
BODY = 8


@dataclass(frozen=True, slots=True)
class Scope:
    """What is known at a place in a method: names that have a value, requirements that are still
    to be asked, how conditions were decided on the way, and the column."""

    known: frozenset[str] = frozenset()
    pending: tuple[Require, ...] = ()
    decided: tuple[tuple[Expr, bool], ...] = ()
    column: int = BODY

    def inside(self) -> Scope:
        """The same in a block."""
        return replace(self, column=self.column + len(INDENT))

    def where(self, condition: Expr, holds: bool) -> Scope:
        """The same where a condition is known to hold, or not to."""
        return replace(self, decided=(*self.decided, (condition, holds)))

    def simplified(self, expr: Expr) -> Expr:
        """An expression without the choices that are decided."""

        def decide(node: Expr) -> Expr:
            match node:
                case Apply(op="select", args=(condition, then, orelse)):
                    found = [holds for c, holds in self.decided if c == condition]
                    return node if not found else then if found[0] else orelse
                case _:
                    return node

        return map_expr(expr, decide) if self.decided else expr


class Writer:
    """`names` says how names are written; others have to be prepared: the schedule's `let`s, a
    group's values, and what phases give."""

    def __init__(self, places: Places, names: dict[str, str]) -> None:
        self.places = places
        self.names = names
        self.lets = {let.name: let for let in places.lets()}
        self.moving = _moving(places)

    # Expressions

    def show(self, expr: Expr) -> str:
        def leaf(node: Const | Ref) -> str:
            if isinstance(node, Ref):
                return self.names.get(node.name, node.name)
            return printing.python_leaf(node)

        try:
            return printing.show(self._phrased(expr), printing.host, leaf)
        except printing.Unspellable as error:
            raise unsupported(
                f"'{error.expr.op}' has no meaning for numbers.", error.expr.span,
                "A schedule computes with numbers.",
            ) from None  # fmt: skip

    def _phrased(self, expr: Expr) -> Expr:
        """With the idioms of Python: `x is None`, `x in (a, b)`."""
        match expr:
            case Apply(op="not", args=(Apply(op="unset", args=(Ref(name=name),)),)):
                return _phrase(f"{self.names.get(name, name)} is not None", expr)
            case Apply(op="unset", args=(Ref(name=name),)):
                return _phrase(f"{self.names.get(name, name)} is None", expr)
            case Apply(op="and" | "or" as op):
                found = _membership(expr)
                if found is not None:
                    name, rest = found
                    word = "in" if op == "or" else "not in"
                    return _phrase(f"{self.names.get(name, name)} {word} {rest}", expr)
        if isinstance(expr, Apply):
            return replace(expr, args=tuple(self._phrased(a) for a in expr.args))
        return expr

    # What an expression needs

    def certain(self, expr: Expr) -> frozenset[str]:
        """The names to prepare that an expression reads, whatever its conditions say."""
        match expr:
            case Apply(op="select", args=(condition, then, orelse)):
                return self.certain(condition) | (self.certain(then) & self.certain(orelse))
            case Apply(op="and" | "or", args=(left, _)):
                return self.certain(left)
            case Apply(args=args):
                return frozenset().union(*(self.certain(a) for a in args))
            case Ref(name=name) if name in self.lets:
                return self.certain(self.lets[name].value) | {name}
            case Ref(name=name) if name in self.places.each or name in self.moving:
                return frozenset({name})
            case _:
                return frozenset()

    def possible(self, expr: Expr) -> frozenset[str]:
        """The names to prepare that an expression may read."""
        names: frozenset[str] = frozenset()
        for ref in refs(expr):
            if ref.name in self.lets:
                names |= self.possible(self.lets[ref.name].value) | {ref.name}
            elif ref.name in self.places.each or ref.name in self.moving:
                names |= {ref.name}
        return names

    def needed(self, require: Require) -> frozenset[str]:
        """The names to prepare before a condition can be asked and its message written."""
        shown = (_phrase(name, require.condition) for name in shown_names(require.message))
        return self.possible(require.condition).union(*map(self.possible, shown))

    # Lines

    def all_known(self, column: int = BODY) -> Scope:
        """Where every name has a value."""
        return Scope(frozenset((*self.lets, *self.places.each, *self.moving)), column=column)

    def observe(self, values: tuple[Kept, ...]) -> Lines:
        """The body of a method that sets attributes to what follows the epoch."""
        for value in values:
            del self.lets[value.name]
            self.names[value.name] = f"self.{attribute(value)}"
        lines: Lines = ()
        scope = Scope()
        for value in values:
            before, scope = self.prepare(self.certain(value.initial), scope)
            lines += before + self.compute(self.names[value.name] + " = ", value.initial, scope)
        return lines

    def form(self, expr: Expr, pending: Iterable[Require] = ()) -> Lines:
        """The body of a method that returns an expression."""
        scope = Scope(pending=tuple(pending))
        possible = self.possible(expr)
        # A condition on what the form does not read is asked at once.
        alone = [n for r in scope.pending if not self.needed(r) <= possible for n in self.needed(r)]
        # What phases give and nobody reads needs no name.
        unread = frozenset(self.moving).difference(possible, *map(self.needed, scope.pending))
        lines, scope = self.prepare(alone, replace(scope, known=unread))
        return (*lines, *self.compute("return ", expr, scope))

    def prepare(self, names: Iterable[str], scope: Scope) -> tuple[Lines, Scope]:
        """The lines that give these names their values, with the conditions on them."""
        lines, scope = self.ask(scope)
        order = (*self.places.each, *self.moving, *self.lets)
        for name in sorted({*names} - scope.known, key=order.index):
            if name in scope.known:
                continue
            if name in self.lets:
                value = self.lets[name].value
                before, scope = self.prepare(self.certain(value), scope)
                lines += before + self.compute(f"{name} = ", value, scope)
                known = {name}
            elif name in self.moving:
                text, known = self._phase(name, scope)
                lines += (text,)
            else:
                lines += (f'{name} = group["{name}"]',)
                known = {name}
            asked, scope = self.ask(replace(scope, known=scope.known | known))
            lines += asked
        return lines, scope

    def _phase(self, name: str, scope: Scope) -> tuple[str, set[str]]:
        """How far the phase has come, and between which values a target moves."""
        target = self.moving[name]
        if not target:  # `progress`: whichever target is read beside it
            beside = [t for n, t in self.moving.items() if t and n not in scope.known]
            target = beside[0] if beside else next(t for t in self.moving.values() if t)
        names = ("progress", f"start_{target}", f"end_{target}")
        shown = ", ".join("_" if n in scope.known else n for n in names)
        phases = f"self.{self.places.schedule.phases_attribute}"
        return f'{shown} = phase_of({phases}, "{target}", t, group)', {*names}

    def ask(self, scope: Scope) -> tuple[Lines, Scope]:
        """The conditions of which everything is known."""
        ready = tuple(r for r in scope.pending if self.needed(r) <= scope.known)
        lines = tuple(line for r in ready for line in self.check(r))
        return lines, replace(scope, pending=tuple(r for r in scope.pending if r not in ready))

    def check(self, require: Require) -> Lines:
        failed = self.show(negated(require.condition))
        return refusal(failed, message(require.message, lambda n: self.names.get(n, n)))

    def compute(self, head: str, expr: Expr, scope: Scope) -> Lines:
        """`head` + an expression. A choice that is not one line becomes branches."""
        expr = scope.simplified(expr)
        lines, scope = self.prepare(self.certain(expr), scope)
        if not isinstance(expr, Apply) or expr.op != "select" or self._is_line(head, expr, scope):
            return (*lines, f"{head}{self.show(self._inlined(expr, scope))}")
        if head != "return ":
            return (*lines, *self._branches(head, expr, scope, "if"))
        condition, value, rest = expr.args
        then = self.compute(head, value, scope.inside().where(condition, True))
        lines += (f"if {self.show(condition)}:", *indented(then))
        return (*lines, *self.compute(head, rest, scope.where(condition, False)))

    def _branches(self, head: str, choice: Apply, scope: Scope, word: str) -> Lines:
        condition, value, rest = choice.args
        then = self.compute(head, value, scope.inside().where(condition, True))
        lines = (f"{word} {self.show(condition)}:", *indented(then))
        scope = scope.where(condition, False)
        match scope.simplified(rest):
            case Apply(op="select") as other if self.certain(other) <= scope.known:
                return (*lines, *self._branches(head, other, scope, "elif"))
            case other:
                return (*lines, "else:", *indented(self.compute(head, other, scope.inside())))

    def _is_line(self, head: str, expr: Expr, scope: Scope) -> bool:
        """Whether everything is known, and the text is one line with one choice at most."""
        choices = [e for e in walk(expr) if isinstance(e, Apply) and e.op == "select"]
        fits = scope.column + len(head + self.show(expr)) <= WIDTH
        return fits and len(choices) <= 1 and self.possible(expr) <= scope.known

    def _inlined(self, expr: Expr, scope: Scope) -> Expr:
        """Names that have no value yet, as what they stand for: one operand alone may read them."""

        def put(node: Expr) -> Expr:
            match node:
                case Ref(name=name) if name in self.lets and name not in scope.known:
                    return self._inlined(self.lets[name].value, scope)
                case Ref(name=name) if name in self.places.each and name not in scope.known:
                    return replace(node, name=f'group["{name}"]')
                case _:
                    return node

        return map_expr(expr, put)


def _moving(places: Places) -> dict[str, str]:
    """The names that phases give, and whose target they are about."""
    targets = dict.fromkeys(m.target for p in places.schedule.phases for m in p.moves)
    names = {f"{end}_{target}": target for target in targets for end in ("start", "end")}
    return {"progress": "", **names} if targets else {}


def _phrase(text: str, expr: Expr) -> Ref:
    return Ref(text, Role.LOCAL, Kind.SCALAR, Type.BOOL, expr.span)


def _membership(expr: Apply) -> tuple[str, str] | None:
    """`x == "a" or x == "b"` -> x, ("a", "b"); with `and` of `!=`"""
    asked = "eq" if expr.op == "or" else "ne"
    names, texts = set[str](), list[str]()

    def visit(node: Expr) -> bool:
        match node:
            case Apply(op=op, args=(left, right)) if op == expr.op:
                return visit(left) and visit(right)
            case Apply(op=op, args=(Ref(name=name), Const(value=str() as text))) if op == asked:
                names.add(name)
                texts.append(quoted(text))
                return True
            case _:
                return False

    if not visit(expr) or len(names) != 1:
        return None
    return names.pop(), f"({', '.join(texts)})"


def needed_lets(lets: Iterable[Let], read: Iterable[Ref]) -> tuple[Let, ...]:
    """The lets that these names lead to, in their order."""
    lets = tuple(lets)
    names = {r.name for r in read}
    for let in reversed(lets):
        if let.name in names:
            names |= {r.name for r in refs(let.value)}
    return tuple(let for let in lets if let.name in names)
