"""Where a generated class finds each value of its schedule."""

from __future__ import annotations

from enum import Enum, auto

from optdsl.ir import (
    Hyper,
    Keep,
    Kept,
    Let,
    Require,
    Schedule,
    follows_epoch,
    kept_hypers,
    kind_of,
    refs,
)
from optdsl.targets.signature import shown_names


class Place(Enum):
    """Where a hyperparameter is after the construction."""

    ATTRIBUTE = auto()  # of the schedule, and in its checkpoints
    UNSAVED = auto()  # an attribute that checkpoints lack: groups that are added later need it
    GROUP = auto()  # a value for each group
    NOWHERE = auto()  # the constructor alone reads it


class Places:
    """Where each hyperparameter is, and when each condition is asked.

    `each` are the names that have a value per group. Of the conditions, some are asked for each
    `epoch`, some for each `group`; of the others, those on `arguments` in the constructor, and
    those on `attributes` also when a checkpoint is loaded.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        own = (k.name for k in schedule.kept if k.keep is Keep.GROUP)
        per_group = tuple(h.name for h in schedule.hypers if _is_per_group(h))
        self.each = (*(n for n in per_group if n != "base_lr"), *own)
        self.epoch = tuple(r for r in schedule.requires if follows_epoch(schedule, r.condition))
        others = tuple(r for r in schedule.requires if r not in self.epoch)
        self.group = tuple(r for r in others if self.read(r) & {*self.each, *per_group})
        self.places = self._places()
        local = {n for h in self.of(Place.NOWHERE) for n in (h.name, *h.components)}
        fixed = tuple(r for r in others if r not in self.group)
        self.arguments = tuple(r for r in fixed if self.read(r) & local)
        self.attributes = tuple(r for r in fixed if r not in self.arguments)

    def _places(self) -> dict[str, Place]:
        schedule = self.schedule
        kept = {h.name for h in kept_hypers(schedule)}
        if schedule.body:  # states begin anew when `_reset` is called
            kept |= {r.name for k in schedule.kept for r in refs(k.initial)}
        later = {n for r in self.group for n in self.read(r)}
        later |= {r.name for h in schedule.hypers if h.when is not None for r in refs(h.when)}
        for value in schedule.kept:
            if value.keep is Keep.GROUP:
                later |= {r.name for e in (value.initial, value.when) if e for r in refs(e)}
        return {
            h.name: Place.GROUP
            if _is_per_group(h)
            else Place.ATTRIBUTE
            if kept & {h.name, *h.components}
            else Place.UNSAVED
            if later & {h.name, *h.components} or h.type.many
            else Place.NOWHERE
            for h in schedule.hypers
        }

    def of(self, *places: Place) -> tuple[Hyper, ...]:
        return tuple(h for h in self.schedule.hypers if self.places[h.name] in places)

    def constant(self, *keep: Keep) -> tuple[Kept, ...]:
        """What is kept so and does not follow the epoch."""
        following = self.following()
        return tuple(k for k in self.schedule.kept if k.keep in keep and k not in following)

    def following(self) -> tuple[Kept, ...]:
        """What follows the epoch, for the user to read."""
        schedule = self.schedule
        observed = (k for k in schedule.kept if k.keep is Keep.OBSERVED)
        return tuple(k for k in observed if follows_epoch(schedule, k.initial))

    def lets(self) -> tuple[Let, ...]:
        """The names that a form computes for itself, in the order of the text."""
        following = (Let(k.name, k.initial, kind_of(k.initial), k.span) for k in self.following())
        return tuple(sorted((*self.schedule.lets, *following), key=lambda let: let.span.start))

    def read(self, require: Require) -> set[str]:
        """The names that a condition and its message read, also through other names."""
        names = {r.name for r in refs(require.condition)}.union(shown_names(require.message))
        for let in reversed(self.schedule.lets):
            if let.name in names:
                names |= {r.name for r in refs(let.value)}
        return names

    # How names are written

    def in_constructor(self) -> dict[str, str]:
        """Where the arguments are at hand."""
        kept = self.constant(Keep.STATE, Keep.OBSERVED)
        names = {k.name: f"self.{attribute(k)}" for k in kept}
        for hyper in self.schedule.hypers:
            names |= _parts(hyper, hyper.name)
            if hyper.type.many:  # counted, as it is kept
                names[hyper.name] = f"self.{attribute(hyper)}"
        return names

    def in_methods(self) -> dict[str, str]:
        """Elsewhere. A group's value, and what follows the epoch, have local names."""
        names = {"initial": "self._is_initial", **self.in_constructor()}
        for hyper in self.of(Place.ATTRIBUTE, Place.UNSAVED):
            names[hyper.name] = f"self.{attribute(hyper)}"
            names |= _parts(hyper, names[hyper.name])
        return names


def _parts(hyper: Hyper, whole: str) -> dict[str, str]:
    """The parts of a tuple."""
    return {part: f"{whole}[{index}]" for index, part in enumerate(hyper.components)}


def attribute(value: Hyper | Kept) -> str:
    """The attribute that holds a value."""
    return value.attribute or value.name


def _is_per_group(hyper: Hyper) -> bool:
    return hyper.type.per_group or hyper.type.grouped
