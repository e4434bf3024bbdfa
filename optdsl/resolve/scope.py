"""The names of a definition: which there are, where they come from, and which are refused."""

from __future__ import annotations

import keyword
from dataclasses import dataclass, field
from itertools import chain

from optdsl import syntax
from optdsl.diagnostics import Code, Log
from optdsl.ir import FLAGS, POLICIES, Ref, Role
from optdsl.resolve.words import article
from optdsl.runtime import (
    AVERAGE,
    AVERAGE_RUNTIME,
    FROM_TORCH,
    OPTIMIZER_RUNTIME,
    RUNTIME,
    SCHEDULE,
    SCHEDULE_RUNTIME,
    STANDARD,
    TORCH,
)
from optdsl.source import Span

PYTHON = frozenset({*keyword.kwlist, "case", "match", "true", "false"})
MEANINGS = {
    "param": "the parameter",
    "grad": "the gradient",
    "pi": "a constant",
    "inf": "a constant",
    **dict.fromkeys(FLAGS, "an execution flag that every optimizer has"),
    **dict.fromkeys(POLICIES, "an argument about precision that every optimizer has"),
    **dict.fromkeys(("remainder", "master"), "the second part of a parameter of 16 bits"),
    "draws": "the number of a group's steps that are rounded at random",
}
# What generated modules call by these names, inside the functions that hold the author's names.
GENERATED = frozenset(
    {"self", "params", "grads", "group", "rows", "row", "torch", "math", "optimizer", "closure"}
    | {"defaults", "lr_scheduler", "base_lr", "metric", "last_epoch"}
    | {"map", "zip", "max", "min", "abs", "float", "range", "super", "ValueError", "set_lr"}
    | {name for name in RUNTIME if name.islower()}
)
# Names of classes and modules that a generated module imports.
TAKEN = (*STANDARD, *TORCH, *RUNTIME, *SCHEDULE, *AVERAGE)
# What packages have beside definitions; the shipped SWALR is one.
EXPORTED = {
    *(*OPTIMIZER_RUNTIME, *SCHEDULE_RUNTIME, *AVERAGE_RUNTIME),
    *chain(*FROM_TORCH.values()),
} - {"SWALR"}
IMPORTED = frozenset(
    {name.lower() for name in TAKEN if not name.islower()}
    | {name.lower() for name in EXPORTED}
    | {"torch", "lr_scheduler", "__init__", "importlib", "getattr", "globals", "type_checking"}
)


def refuse_reserved(name: syntax.Name, log: Log) -> bool:
    text = name.text
    if text in PYTHON:
        reason = f"'{text}' is a word of Python."
    elif text in MEANINGS:
        reason = f"'{text}' is {MEANINGS[text]}."
    elif text in GENERATED:
        reason = f"Generated code uses the name '{text}' itself."
    elif text.startswith("_"):
        reason = f"'{text}' begins with '_': such names belong to generated code."
    elif "__" in text:
        reason = f"'{text}' has '__' in it: such names belong to Python."
    else:
        return False
    suggestion = f"{text.strip('_').replace('__', '_') or 'my'}_value"
    hint = f"Choose another name, such as '{suggestion}'."
    log.error(Code.RESERVED_NAME, reason, name.span, hints=(hint,))
    return True


def refuse_reserved_definition(name: syntax.Name, log: Log) -> None:
    """A definition names a class, and in small letters a file and a module."""
    text, folded = name.text, name.text.lower()
    if folded in {k.lower() for k in PYTHON}:
        reason = f"'{folded}.py' could not be imported: '{folded}' is a word of Python."
    elif folded in IMPORTED:
        reason = f"Generated code uses the name '{text}' itself."
    elif text.startswith("_"):
        reason = f"'{text}' begins with '_': such names belong to generated code."
    elif text == folded:
        reason = f"The class '{text}' would have the name of its module."
    else:
        return
    hint = f"Choose another name, such as 'My{text.strip('_').title()}'."
    log.error(Code.RESERVED_NAME, reason, name.span, hints=(hint,))


@dataclass
class Scope:
    """Slots, hyperparameters and local names are one namespace in expressions; functions and
    contextual keywords are others."""

    names: dict[str, Ref] = field(default_factory=dict)
    spans: dict[str, Span] = field(default_factory=dict)
    # Declared names whose value is in error: reading them is not a second error.
    broken: set[str] = field(default_factory=set)
    # Reserved names that this definition may declare.
    permitted: frozenset[str] = frozenset()

    def declare(self, name: syntax.Name, ref: Ref, log: Log) -> bool:
        """Whether the name was free."""
        reserved = name.text not in self.permitted and refuse_reserved(name, log)
        known = self.names.get(name.text)
        if known is not None:
            if not reserved:
                self._refuse_second(name, ref, known, log)
            return False
        folded = {n.lower(): n for n in self.names}
        other = folded.get(name.text.lower())
        self.names[name.text] = ref
        self.spans[name.text] = name.span
        self.broken.discard(name.text)
        if other is not None and ref.role is not Role.LOCAL:
            first = self.spans.get(other)
            log.error(
                Code.CASE_COLLISION, f"'{name.text}' and '{other}' differ in case only.", name.span,
                related=((first, "first declared here"),) if first else (),
                hints=("Give one of them a name that readers cannot mistake for the other.",),
            )  # fmt: skip
            return False
        return True

    def _refuse_second(self, name: syntax.Name, ref: Ref, known: Ref, log: Log) -> None:
        local = ref.role is Role.LOCAL
        first = self.spans.get(name.text)
        assignable = local and known.role in (Role.LOCAL, Role.STATE)
        log.error(
            Code.SHADOWED if local else Code.DUPLICATE,
            f"'{name.text}' is declared already, as {article(known.role)}.",
            name.span,
            related=((first, "first declared here"),) if first else (),
            hints=(f"To change it, write '{name.text} = ...' without 'let'.",) if assignable
            else ("Choose another name.",) if local else (),
        )  # fmt: skip

    def close(self, outer: dict[str, Ref]) -> None:
        """End a block: forget the names that it made."""
        for name in [n for n in self.names if n not in outer]:
            del self.names[name]
