"""Document -> lines: text with places where it may break, in groups that break as a whole.

A group that does not fit breaks at all places of its own, the outermost group first. Two groups
are not like the others: brackets that may break while the parentheses around them stay away, and a
text that gets parentheses only if that makes it fit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

WIDTH = 100
INDENT = "    "
FLAT, BROKEN = False, True


class Key:
    """Names a group whose mode decides about something inside it."""


@dataclass(frozen=True)
class Line:
    """This text in a flat group, a new line in a broken one."""

    flat: str = " "


@dataclass(frozen=True)
class NewLine:
    """A new line in every group."""


@dataclass(frozen=True)
class Indent:
    doc: Doc
    key: Key | None = None  # only if that group is broken


@dataclass(frozen=True)
class Group:
    doc: Doc
    key: Key | None = None  # its name
    inside: Key | None = None  # a group only if that one is broken
    broken: bool = False


@dataclass(frozen=True)
class Either:
    """One text in a broken group, another in a flat one; the group around it, or a named one."""

    broken: Doc
    flat: Doc
    key: Key | None = None


@dataclass(frozen=True)
class Brackets:
    """They may break and leave the named group flat: it is measured as if they were broken."""

    left: str
    doc: Doc
    right: str
    key: Key | None = None

    @property
    def tail(self) -> Doc:
        return (Indent((Line(""), self.doc)), Line(""), self.right)


@dataclass(frozen=True)
class Choice:
    """The first document that fits, else the last."""

    docs: tuple[Doc, ...]


@dataclass(frozen=True)
class Atom:
    """In parentheses if it fits so and not without."""

    doc: Doc
    key: Key


Doc: TypeAlias = (
    "str | tuple[Doc, ...] | Line | NewLine | Indent | Group | Either | Brackets | Choice | Atom"
)


def is_broken(doc: Doc) -> bool:
    """Whether something inside cannot be flat."""
    match doc:
        case tuple():
            return any(map(is_broken, doc))
        case Indent(doc=inner) | Brackets(doc=inner, key=None) | Atom(doc=inner):
            return is_broken(inner)
        case Group(doc=inner, broken=broken):
            return broken or is_broken(inner)
        case Choice(docs=docs):
            return is_broken(docs[0])
        case _:
            return isinstance(doc, NewLine)


class Part(NamedTuple):
    """A document in its surroundings. `overflow` measures no line but the last."""

    doc: Doc
    indent: int
    mode: bool = BROKEN
    all_lines: bool = False  # measures up to its end, not to the first new line
    overflow: bool = False  # and lets its lines be too long

    def holding(self, doc: Doc, mode: bool | None = None) -> Part:
        return self._replace(doc=doc, mode=self.mode if mode is None else mode)


@dataclass
class Printer:
    indent: int  # of the first line, which stands there already
    text: str = ""
    column: int = 0
    rest: list[Part] = field(default_factory=list)  # what is still to print, the next one last
    modes: dict[Key, bool] = field(default_factory=dict)
    measured: bool = False  # whether what the enclosing flat group holds is known to fit

    def print(self, doc: Doc) -> tuple[str, ...]:
        self.column = self.indent
        self.rest = [Part(doc, self.indent)]
        while self.rest:
            self.step(self.rest.pop())
        return tuple(self.text.split("\n"))

    def step(self, part: Part) -> None:
        match part.doc:
            case str() as text:
                self.write(text)
            case Line(flat=flat) if part.mode is FLAT:
                self.write(flat)
            case Line() | NewLine():
                self.text = f"{self.text.rstrip(' ')}\n{' ' * (part.indent - self.indent)}"
                self.column = part.indent
                self.measured = False
            case Group(inside=key) if key is None or self.modes[key]:
                self.group(part, part.doc)
            case Brackets() as brackets:
                if brackets.key is not None and self.modes[brackets.key] is FLAT:
                    self.measured = False
                group = Group((brackets.left, brackets.tail), broken=is_broken(brackets.doc))
                self.group(part, group)
            case Choice(docs=docs):
                self.choose(part, docs)
            case Atom(doc=doc, key=key):
                self.atom(part, doc, key)
            case _:
                self.rest += self.opened(part)

    def write(self, text: str) -> None:
        self.text += text
        self.column += len(text)

    def group(self, part: Part, group: Group) -> None:
        mode = BROKEN if is_broken(group) else self.mode_of(part, group.doc, group.key)
        self.note(group.key, mode)
        self.rest.append(part.holding(group.doc, mode))

    def note(self, key: Key | None, mode: bool) -> None:
        if key is not None:
            self.modes[key] = mode

    def mode_of(self, part: Part, doc: Doc, key: Key | None) -> bool:
        if part.mode is FLAT and self.measured:
            return FLAT
        self.measured = True
        self.note(key, FLAT)
        return FLAT if self.fits(part.holding(doc, FLAT)) else BROKEN

    def choose(self, part: Part, docs: tuple[Doc, ...]) -> None:
        first, *others = docs
        if self.mode_of(part, first, None) is FLAT:
            self.rest.append(part.holding(first, FLAT))
            return
        fitting = (d for d in others[:-1] if self.fits(part.holding(d, FLAT)))
        self.rest.append(part.holding(next(fitting, others[-1]), BROKEN))

    def atom(self, part: Part, doc: Doc, key: Key) -> None:
        wrapped = ("(", Indent((NewLine(), doc)), NewLine(), ")")
        mode = self.mode_of(part, doc, key)
        if mode is BROKEN:
            self.modes[key] = BROKEN
            mode = self.fits(part._replace(doc=wrapped, mode=BROKEN, all_lines=True))
        self.modes[key] = mode
        self.rest.append(part.holding(wrapped if mode is BROKEN else doc, mode))

    def opened(self, part: Part) -> list[Part]:
        """What a document holds that decides nothing itself."""
        match part.doc:
            case tuple() as docs:
                return [part.holding(doc) for doc in reversed(docs)]
            case Indent(doc=doc, key=key):
                deeper = len(INDENT) if key is None or self.modes[key] else 0
                return [part.holding(doc)._replace(indent=part.indent + deeper)]
            case Either(broken=broken, flat=flat, key=key):
                mode = part.mode if key is None else self.modes[key]
                return [part.holding(broken if mode is BROKEN else flat)]
            case Group(doc=doc):
                return [part.holding(doc)]
            case _:
                raise AssertionError(part.doc)

    def fits(self, start: Part) -> bool:
        """Whether a document and what follows it fit, up to the next new line."""
        column = self.column
        parts = [*self.rest, start]
        while parts:
            part = parts.pop()
            match part.doc:
                case str() as text:
                    column += len(text)
                case Line(flat=flat) if part.mode is FLAT:
                    column += len(flat)
                case Line() | NewLine():
                    if not part.all_lines:
                        return True
                    column = part.indent
                case Group(doc=doc, inside=key) if key is None or self.modes[key]:
                    mode = BROKEN if is_broken(part.doc) else part.mode
                    self.note(part.doc.key, mode)
                    parts.append(part.holding(doc, mode))
                case Brackets(left=left, tail=tail, key=key):
                    if part.mode is FLAT and key is not None and self.modes[key] is FLAT:
                        parts.append(Part(tail, part.indent, BROKEN, True, True))
                    elif part.mode is FLAT and is_broken(part.doc.doc):
                        if key is not None:
                            return False
                        parts.append(part.holding(tail, BROKEN))
                    else:
                        parts.append(part.holding(tail))
                    parts.append(part.holding(left))
                case Choice(docs=docs):
                    parts.append(part.holding(docs[0] if part.mode is FLAT else docs[-1]))
                case Atom(doc=doc, key=key):
                    self.modes[key] = part.mode
                    parts.append(part.holding(doc))
                case _:
                    parts += self.opened(part)
            if column > WIDTH and not part.overflow:
                return False
        return True
