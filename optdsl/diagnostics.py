"""What is wrong with a spec, as data, and its one rendering."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum

from rich.cells import cell_len
from rich.text import Text

from optdsl.source import Span


class Code(StrEnum):
    """One word pair per mistake. Each has a golden file in `tests/diagnostics`."""

    SYNTAX = "syntax"
    TOO_DEEP = "too-deep"
    NUMBER_RANGE = "number-range"
    EMPTY_FILE = "empty-file"
    NOT_UTF8 = "not-utf8"
    MISSING_FILE = "missing-file"
    NO_SPECS = "no-specs"
    UNKNOWN_NAME = "unknown-name"
    UNKNOWN_FUNCTION = "unknown-function"
    UNKNOWN_TYPE = "unknown-type"
    UNKNOWN_BASE = "unknown-base"
    UNKNOWN_PROPERTY = "unknown-property"
    DUPLICATE = "duplicate"
    CASE_COLLISION = "case-collision"
    RESERVED_NAME = "reserved-name"
    SHADOWED = "shadowed"
    ARITY = "arity"
    WRONG_KIND = "wrong-kind"
    WRONG_TYPE = "wrong-type"
    DEFAULT_BREAKS_REQUIRE = "default-breaks-require"
    DEFAULT_ORDER = "default-order"
    MISSING_PART = "missing-part"
    OPTION_MISUSE = "option-misuse"
    NOT_ASSIGNABLE = "not-assignable"
    READ_BEFORE_SET = "read-before-set"
    UNREAD = "unread"
    UNSUPPORTED = "unsupported"


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """A message about the user's text. `span` is the smallest place that is wrong, or a file's name
    when the file has no text to point at; `label` stands behind the carets, `notes` are facts,
    `hints` say what to do."""

    code: Code
    message: str
    span: Span | str
    label: str = ""
    related: tuple[tuple[Span, str], ...] = ()
    notes: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    severity: Severity = Severity.ERROR


class SpecError(Exception):
    """All that is wrong with the specs of one run."""

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        super().__init__("\n".join(render(d).plain for d in self.diagnostics))


class Log:
    """What was found wrong so far. A stage goes on after an error, so that one run reports all."""

    def __init__(self) -> None:
        self.diagnostics: list[Diagnostic] = []
        # An error that is reported at another definition has consequences here.
        self.elsewhere = False

    def error(
        self,
        code: Code,
        message: str,
        span: Span,
        label: str = "",
        *,
        related: tuple[tuple[Span, str], ...] = (),
        notes: tuple[str, ...] = (),
        hints: tuple[str, ...] = (),
    ) -> None:
        self.diagnostics.append(Diagnostic(code, message, span, label, related, notes, hints))

    def warning(self, code: Code, message: str, span: Span, hints: tuple[str, ...] = ()) -> None:
        found = Diagnostic(code, message, span, hints=hints, severity=Severity.WARNING)
        self.diagnostics.append(found)

    def add(self, other: Log) -> None:
        """Take over what another log holds."""
        self.diagnostics += other.diagnostics
        self.elsewhere |= other.elsewhere

    @property
    def failed(self) -> bool:
        return self.elsewhere or any(d.severity is Severity.ERROR for d in self.diagnostics)


def in_order(diagnostics: Iterable[Diagnostic]) -> tuple[Diagnostic, ...]:
    """By file and place, each once."""

    def place(d: Diagnostic) -> tuple[str, int]:
        return (d.span, 0) if isinstance(d.span, str) else (d.span.source.name, d.span.start)

    return tuple(sorted(dict.fromkeys(diagnostics), key=place))


def unsupported(what: str, span: Span, hint: str = "") -> SpecError:
    """What the language can say and a target cannot do."""
    hints = (hint,) if hint else ()
    return SpecError([Diagnostic(Code.UNSUPPORTED, what, span, hints=hints)])


def did_you_mean(name: str, candidates: Iterable[str]) -> tuple[str, ...]:
    """A hint with the closest candidate, or nothing. Never the name itself."""
    pool = sorted({c for c in candidates if c != name})
    lowered = {c.lower(): c for c in reversed(pool)}
    close = get_close_matches(name.lower(), lowered, n=3, cutoff=0.6)
    # Letters in the wrong order are the likelier mistake: 'adma' is 'adam', not 'adamax'.
    close.sort(key=lambda other: sorted(other) != sorted(name.lower()))
    return (f"Did you mean '{lowered[close[0]]}'?",) if close else ()


STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow"}
WIDEST_LINE = 160


def render(diagnostic: Diagnostic) -> Text:
    """The message as people read it: coloured on a terminal, `.plain` elsewhere."""
    style = STYLES[diagnostic.severity]
    out = Text()
    out.append(f"{diagnostic.severity}[{diagnostic.code}]", style)
    out.append(f": {diagnostic.message}\n", "bold")
    if isinstance(diagnostic.span, str):
        out.append(f"  {diagnostic.span}\n", "cyan")
    else:
        _excerpt(out, diagnostic.span, diagnostic.label, "^", style)
    for span, label in diagnostic.related:
        _excerpt(out, span, label, "-", "cyan")
    for title, lines in (("note", diagnostic.notes), ("hint", diagnostic.hints)):
        for line in lines:
            out.append(f"  {title}: ", "bold cyan")
            out.append(f"{line}\n")
    return out


def _excerpt(out: Text, span: Span, label: str, mark: str, style: str) -> None:
    """`file:line:column`, the source line, and marks under the span's part of that line."""
    source = span.source
    number, column = source.position(span.start)
    out.append(f"  {source.name}:{number}:{column}\n", "cyan")
    # Tabs and control characters take one column each, so that the marks stand under the span.
    line = "".join(c if c.isprintable() else " " for c in source.line(number))
    first, last = column - 1, min(column - 1 + span.end - span.start, len(line))
    # A line of noise would drown the message: show a window that holds the span's beginning.
    cut = max(0, first - WIDEST_LINE // 2) if len(line) > WIDEST_LINE else 0
    line, first, last = line[cut : cut + WIDEST_LINE], first - cut, last - cut
    gutter = f" {number} | "
    marks = " " * cell_len(line[:first]) + mark * max(1, cell_len(line[first:last]))
    out.append(gutter, "dim")
    out.append(f"{line.rstrip()}\n")
    out.append(" " * (len(gutter) - 2) + "| ", "dim")
    out.append(f"{marks} {label}".rstrip() + "\n", style)
