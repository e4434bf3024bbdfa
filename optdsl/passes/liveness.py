"""Which names may share storage, and where that would be seen: what makes in-place writes safe.

`let a = slot` need not copy as long as nobody looks at `a` after the slot was overwritten. torch
2.13's Muon corrupts its momentum through such an alias; here a copy is made where one is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from optdsl.ir import (
    STORED,
    Apply,
    Assign,
    Expr,
    If,
    Let,
    Ref,
    Repeat,
    Stmt,
    expressions,
    refs,
)
from optdsl.ops import Kind


@dataclass
class _Events:
    """Positions are counted over the whole body; both branches of an `if` are taken in turn, which
    sees at least what any real path sees."""

    position: int = 0
    reads: dict[str, list[int]] = field(default_factory=dict)
    writes: dict[str, list[int]] = field(default_factory=dict)
    aliases: list[tuple[int, Stmt, str, str]] = field(default_factory=list)


def needed_copies(body: tuple[Stmt, ...]) -> frozenset[int]:
    """The statements (by `id`) that give a name to existing storage and must copy it."""
    events = _Events()
    _collect(body, events)
    storages: dict[str, set[str]] = {}
    for _, _, name, origin in events.aliases:
        storages.setdefault(name, set()).update(storages.get(origin, set()) | {origin})
    return frozenset(
        id(stmt)
        for position, stmt, name, origin in events.aliases
        if any(
            write > position and any(read >= write for read in events.reads.get(name, ()))
            for storage in storages.get(origin, set()) | {origin}
            for write in events.writes.get(storage, ())
        )
    )


def _collect(body: tuple[Stmt, ...], events: _Events) -> None:
    for stmt in body:
        events.position += 1
        for expr in expressions(stmt):
            for ref in refs(expr):
                events.reads.setdefault(ref.name, []).append(events.position)
        match stmt:
            case Let(name=name, value=value):
                _alias(stmt, name, value, events)
            case Assign(target=target, value=value) if target.role in STORED:
                events.writes.setdefault(target.name, []).append(events.position)
            case Assign(target=target, value=value):
                _alias(stmt, target.name, value, events)
            case If():
                _collect(stmt.then, events)
                _collect(stmt.orelse, events)
            case Repeat():
                # Twice: what the end of one round writes, the beginning of the next may read.
                _collect(stmt.body, events)
                _collect(stmt.body, events)
            case _:
                pass


def _alias(stmt: Stmt, name: str, value: Expr, events: _Events) -> None:
    origin = shown(value)
    if origin is not None and origin.kind > Kind.SCALAR:
        events.aliases.append((events.position, stmt, name, origin.name))


def shown(value: Expr) -> Ref | None:
    """The name whose storage an expression shows; None if its tensor is a fresh one."""
    match value:
        case Ref():
            return value
        case Apply(op="transpose", args=(inner,)):
            return shown(inner)
        case _:
            return None
