"""Split an update where it needs a number made of all elements: that is known when a pass is over.

    let n = norm(grad)               stage  { let n = norm(grad) }
    param -= lr / n * grad    ->     update { let lr_over_n = lr / n
                                              param = param - lr_over_n * grad }

A stage is the part of the update that its reductions need. It begins with what is stored, as the
update does, and stores nothing: whatever two of them compute, they compute alike. Work on numbers
stands in front, each part of it that an element needs under a name, as `hoist_scalars` has it.

Torch makes a number of one tensor wherever it stands. For an update in its operations `barriers`
splits only where a number of all parameters is needed: these are not there when one is updated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Set
from dataclasses import replace
from functools import partial
from itertools import count
from typing import TypeGuard, assert_never

from optdsl.ir import (
    STORED,
    Apply,
    Assign,
    Const,
    Descend,
    Expr,
    If,
    Let,
    Ref,
    Repeat,
    Role,
    Spec,
    Stage,
    Stmt,
    apply,
    expressions,
    kind_of,
    map_expr,
    map_stmt,
    reads,
    refs,
    statements,
    type_of,
    walk,
)
from optdsl.ops import OPS, Kind, Rule, Type
from optdsl.passes.hoist_scalars import ZERO, Hoister
from optdsl.passes.lower_descend import PARAM
from optdsl.passes.naming import LONG, in_words, names_of, unused

# A reduction, with the numbers of the values that the names in it have.
Reduced = tuple[Apply, tuple[int, ...]]

TOTALS = frozenset({Rule.TOTAL})
REDUCTIONS = frozenset({Rule.REDUCE, Rule.TOTAL})


def stages(spec: Spec) -> Spec:
    """The spec with the passes before its body. One that passes over single elements cannot compute
    stays as it is."""
    if not is_elementwise(spec):
        return spec
    namer = _Namer(spec, REDUCTIONS)
    body = tuple(namer.block(spec.body, {}))
    if not namer.names:
        return spec
    taken = {*spec.columns, *namer.taken}
    before, last = _split(body, REDUCTIONS, lambda part: _numbers_first(spec, part, taken))
    return replace(spec, stages=before, body=last)


def name_totals(spec: Spec) -> Spec:
    """Each number of all parameters has a `let` of its own, and so one name in whatever becomes of
    the update."""
    namer = _Namer(spec, TOTALS)
    body = tuple(namer.block(spec.body, {}))
    return replace(spec, body=body) if namer.names else spec


def barriers(spec: Spec) -> Spec:
    """The spec with what has to be known of all parameters before its body, which reads that by the
    names of `name_totals`."""
    if not any(is_reduction(s, TOTALS) for s in statements(spec.body)):
        return spec
    before, last = _split(spec.body, TOTALS, lambda part: part)
    return replace(spec, barriers=before, body=last)


def _split(
    body: tuple[Stmt, ...],
    rules: Set[Rule],
    finished: Callable[[tuple[Stmt, ...]], tuple[Stmt, ...]],
) -> tuple[tuple[Stage, ...], tuple[Stmt, ...]]:
    """A body whose reductions have names -> the stages that make them, and what is left."""
    levels = _levels(body, rules, {})
    last = _part(body, rules, frozenset(), stores=True)
    read = {r.name for r in reads(last)}
    made: list[Stage] = []
    # From the last one on: what no later pass reads is not made.
    for level in range(max(levels.values()), 0, -1):
        own = tuple(n for n in levels if levels[n] == level and n in read)
        if own:
            part = _part(body, rules, frozenset(own), stores=False)
            read |= {r.name for r in reads(part)}
            made.append(Stage(finished(part), own))
    return tuple(reversed(made)), finished(last)


def is_elementwise(spec: Spec) -> bool:
    """Whether passes over single elements, and numbers made of them all, are the whole update."""
    body = (*spec.scalars, *spec.body)
    nodes = [n for s in statements(body) for e in expressions(s) for n in walk(e)]
    kinds = {Kind.FACTORED, Kind.MATRIX}
    return not (
        any(isinstance(s, Repeat) for s in statements(body))
        or any(kind_of(n) in kinds or (isinstance(n, Apply) and _needs_host(n)) for n in nodes)
    )


def _needs_host(node: Apply) -> bool:
    """A number that the host waits for, and a reduction of what has one element already."""
    single = all(kind_of(a) <= Kind.REDUCED for a in node.args)
    return node.op == "host" or (OPS[node.op].rule in REDUCTIONS and single)


def is_reduction(stmt: Stmt, rules: Set[Rule] = REDUCTIONS) -> TypeGuard[Let]:
    """let name = norm(x)"""
    match stmt:
        case Let(value=Apply(op=op)):
            return OPS[op].rule in rules
        case _:
            return False


def numbers_and_elements(body: tuple[Stmt, ...]) -> tuple[tuple[Stmt, ...], tuple[Stmt, ...]]:
    """The statements of a pass that are work on numbers, which come first, and the others."""
    first = next((i for i, stmt in enumerate(body) if not _is_of_numbers(stmt)), len(body))
    return body[:first], body[first:]


def _is_of_numbers(stmt: Stmt) -> bool:
    match stmt:
        case Let(kind=kind) | Assign(target=Ref(kind=kind)):
            return kind <= Kind.REDUCED and not is_reduction(stmt)
        case If(then=then, orelse=orelse):
            return all(map(_is_of_numbers, (*then, *orelse)))
        case _:
            return False


class _Namer:
    """Gives each reduction by one of the rules a `let` of its own, those that are the same the same
    one."""

    def __init__(self, spec: Spec, rules: Set[Rule]) -> None:
        self.rules = rules
        body = list(statements(spec.body))
        written = Counter(s.name for s in body if isinstance(s, Let))
        written.update(s.target.name for s in body if isinstance(s, Assign))
        self.constant = {name for name, times in written.items() if times == 1}
        self.names: list[str] = []
        self.taken = {*written, *spec.columns, *names_of(spec, spec.body)}
        self.numbers = count()
        # Which of its values a name has now.
        self.versions: dict[str, int] = {}

    def block(self, body: tuple[Stmt, ...], known: dict[Reduced, Ref]) -> Iterator[Stmt]:
        """`known` are the reductions that every statement of the block has behind it."""
        for stmt in body:
            before: list[Stmt] = []
            match stmt:
                case If():
                    yield self.branches(stmt, known)
                    continue
                case Let(name=name, value=Apply(op=op, args=args)) if (
                    is_reduction(stmt, self.rules) and name in self.constant
                ):
                    # The author's name for it.
                    operands = (self.named(a, known, before) for a in args)
                    value = apply(op, *operands, span=stmt.value.span)
                    key = self.key(value)
                    if key not in known:
                        self.names.append(name)
                        known[key] = Ref(name, Role.LOCAL, value.kind)
                        stmt = replace(stmt, value=value)
                    else:
                        stmt = replace(stmt, value=known[key])
                case _:
                    stmt = map_stmt(stmt, partial(self.named, known=known, before=before))
            yield from before
            yield stmt
            self.change((stmt,))

    def branches(self, stmt: If, known: dict[Reduced, Ref]) -> If:
        versions = dict(self.versions)
        # A number of all parameters is in a branch one of those that come there: another number.
        known = {key: name for key, name in known.items() if OPS[key[0].op].rule not in TOTALS}
        then = tuple(self.block(stmt.then, dict(known)))
        self.versions = dict(versions)
        orelse = tuple(self.block(stmt.orelse, dict(known)))
        self.change((*then, *orelse))
        return replace(stmt, then=then, orelse=orelse)

    def change(self, body: tuple[Stmt, ...]) -> None:
        """Another value for each name that the statements write."""
        for stmt in statements(body):
            match stmt:
                case Let(name=name) | Assign(target=Ref(name=name)):
                    self.versions[name] = next(self.numbers)
                case Descend():
                    self.versions["param"] = next(self.numbers)
                case _:
                    pass

    def named(self, expr: Expr, known: dict[Reduced, Ref], before: list[Stmt]) -> Expr:
        """The expression with names for its reductions, which `before` makes."""

        def name(node: Expr) -> Expr:
            if not (isinstance(node, Apply) and OPS[node.op].rule in self.rules):
                return node
            key = self.key(node)
            if key not in known:
                made = self.free(node)
                before.append(Let(made, node, node.kind, node.span))
                self.names.append(made)
                known[key] = Ref(made, Role.LOCAL, node.kind)
            return replace(known[key], span=node.span)

        return map_expr(expr, name)

    def key(self, value: Apply) -> Reduced:
        return value, tuple(self.versions.get(r.name, -1) for r in refs(value))

    def free(self, value: Apply) -> str:
        words = in_words(value)
        words = value.op if len(words) > LONG else words
        name = unused(words, self.taken.__contains__)
        self.taken.add(name)
        return name


def _levels(body: tuple[Stmt, ...], rules: Set[Rule], behind: dict[str, int]) -> dict[str, int]:
    """The pass that each reduction needs to itself, from 1, in their order. `behind` says of names
    which pass must be over before they are known, and is brought up to date."""
    levels: dict[str, int] = {}
    for stmt in body:
        level = max((behind.get(r.name, 0) for e in expressions(stmt) for r in refs(e)), default=0)
        match stmt:
            case Let(name=name) if is_reduction(stmt, rules):
                levels[name] = behind[name] = level + 1
            case Let(name=name) | Assign(target=Ref(name=name), operator=""):
                behind[name] = level
            case Assign(target=Ref(name=name)):
                behind[name] = max(level, behind.get(name, 0))
            case Descend():
                behind["param"] = max(level, behind.get("param", 0))
            case If():
                other = dict(behind)
                levels |= _levels(stmt.then, rules, behind) | _levels(stmt.orelse, rules, other)
                for name, after in other.items():
                    behind[name] = max(after, behind.get(name, 0))
            case Repeat(body=inner):
                read = (behind.get(r.name, 0) for r in reads(inner))
                level = max(level, *read, *(behind.get(n, 0) for n in _assigned(stmt)))
                behind |= dict.fromkeys(_assigned(stmt), level)
            case _:
                assert_never(stmt)
    return levels


def _part(
    body: tuple[Stmt, ...], rules: Set[Rule], reductions: Set[str], *, stores: bool
) -> tuple[Stmt, ...]:
    """The part of a body that makes these reductions and, if it stores, what is stored. Other
    reductions by the rules are known."""
    return _needed(body, rules, reductions, stores, set())[0]


def _needed(
    body: tuple[Stmt, ...],
    rules: Set[Rule],
    reductions: Set[str],
    stores: bool,
    needed: set[str],
) -> tuple[tuple[Stmt, ...], set[str]]:
    """That part of a block behind which the names `needed` are, and the names it needs itself."""
    kept: list[Stmt] = []
    for stmt in reversed(body):
        match stmt:
            case Let(name=name) if is_reduction(stmt, rules):
                needed.discard(name)
                if name not in reductions:
                    continue
            case Let(name=name):
                if name not in needed:
                    _declare(stmt, kept)
                    continue
                needed.discard(name)
            case Assign(target=Ref(name=name, role=role)):
                if name not in needed and not (stores and role in STORED):
                    continue
                if not stmt.operator:
                    needed.discard(name)
            case Descend():
                if "param" not in needed and not stores:
                    continue
                needed.add("param")
            case If():
                then, before_then = _needed(stmt.then, rules, reductions, stores, {*needed})
                orelse, before_orelse = _needed(stmt.orelse, rules, reductions, stores, {*needed})
                if not (then or orelse):
                    continue
                stmt = replace(stmt, then=then, orelse=orelse)
                needed = before_then | before_orelse
            case Repeat(body=inner):
                stored = any(r.role in STORED for r in _targets(stmt))
                if not (needed & _assigned(stmt) or (stores and stored)):
                    continue
                # A round may read what the one before it, or none, has left.
                needed |= _assigned(stmt) | {r.name for r in reads(inner)}
            case _:
                assert_never(stmt)
        kept.append(stmt)
        needed |= {r.name for e in expressions(stmt) for r in refs(e)}
    return tuple(reversed(kept)), needed


def _declare(let: Let, kept: list[Stmt]) -> None:
    """Make a name by its first value that is needed, of the statements behind its `let`, which are
    kept in reverse. Where branches give it that, nothing takes the place of its value."""
    for index in reversed(range(len(kept))):
        match kept[index]:
            case Assign(target=Ref(name=name), value=value, span=span) if name == let.name:
                kept[index] = Let(name, value, let.kind, span)
                return
            case If() as stmt if let.name in _assigned(stmt):
                kept.append(replace(let, value=_nothing(let)))
                return
            case _:
                pass


def _nothing(let: Let) -> Expr:
    """A value of the kind and type of a name's own."""
    is_mask = type_of(let.value) is Type.BOOL
    if let.kind <= Kind.REDUCED:
        return Const(False) if is_mask else ZERO
    return apply("lt", PARAM, PARAM) if is_mask else apply("full_like", PARAM, ZERO)


def _assigned(stmt: Stmt) -> set[str]:
    return {r.name for r in _targets(stmt)}


def _targets(stmt: Stmt) -> Iterator[Ref]:
    """What the assignments in a statement write."""
    return (s.target for s in statements((stmt,)) if isinstance(s, Assign))


def _numbers_first(spec: Spec, body: tuple[Stmt, ...], taken: Set[str]) -> tuple[Stmt, ...]:
    """The same with its work on numbers in front."""
    hoister = Hoister(spec, body, Kind.REDUCED, taken)
    elements = tuple(hoister.block(body, ()))
    return (*hoister.program, *elements)
