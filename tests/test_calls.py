"""Calls of schedules, and optimizers that a schedule drives, are what one would write out."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from optdsl.diagnostics import SpecError
from optdsl.ir import Kind, Let, Require, Schedule, Spec, Unit, statements
from optdsl.parse import parse
from optdsl.pipeline import load, shipped_library
from optdsl.printing import show_source, show_spec
from optdsl.resolve import resolve
from optdsl.source import Source

WARM = """schedule Warm {
    hyper steps: int = 10 require steps > 0
    closed = base_lr * min(1, t / steps)
}"""
TOLD = """schedule Told {
    hyper steps: int require steps > 0 else "No {steps} steps"
    closed = t
}"""
BASE = """optimizer Base {
    hyper lr           = 0.1                  require lr >= 0
    hyper betas: (a, b) = (0.9, 0.99)
    hyper weight_decay = 0
    option fast        = false
    option heavy       = false
    ...
    require not fast or lr < 1
    state step = 0
    state sum  = zeros_like(param)  when heavy
    update {
        step += 1
        if fast { grad *= 2 }
        let size = lr * a
        let rate = size + 0
        if heavy { sum += grad }
        if rate > 0 { param *= 1 - weight_decay * lr }
        descend rate * grad
    }
}"""


def units(*texts: str) -> dict[str, Unit]:
    trees = [parse(Source(f"{n}.opt", text)) for n, text in enumerate(texts)]
    return {u.name: u for u in resolve(trees)[0]}


def schedule(text: str, *others: str) -> Schedule:
    unit = units(f"schedule S {{\n{text}\n}}", *others)["S"]
    assert isinstance(unit, Schedule)
    return unit


def optimizer(text: str, *others: str) -> Spec:
    unit = units(text, *others)["O"]
    assert isinstance(unit, Spec)
    return unit


def closed(text: str, *others: str) -> str:
    found = schedule(text, *others)
    assert found.closed is not None
    return show_source(found.closed)


def conditions(requires: tuple[Require, ...]) -> list[tuple[str, str]]:
    return [(show_source(r.condition), r.message) for r in requires]


# Calls


@pytest.mark.parametrize(
    ("called", "call", "written"),
    [
        ("closed = base_lr / (t + 1)", "C(t - 3, base_lr * 2)", "base_lr * 2 / (t - 3 + 1)"),
        ("hyper a = 3\n closed = base_lr * a", "C(t, base_lr)", "base_lr * 3"),
        ("hyper a = 3\n hyper b = a / 2\n closed = base_lr * b", "C(t, 1, a=t)", "1 * (t / 2)"),
        ("let x = t / 2\n let y = x * x\n closed = base_lr * y", "C(t + 1, 1)",
         "1 * ((t + 1) / 2 * ((t + 1) / 2))"),
        ("state s = 4\n observe o = t * s\n closed = base_lr * o", "C(t, 2)", "2 * (t * 4)"),
        ("function f(x) = x * x\n closed = f(base_lr)", "C(t, t)", "t * t"),
        # What an argument decides is gone.
        ("option up = true\n closed = base_lr if up else -base_lr", "C(t, 2, up=false)", "-2"),
        ('hyper k: "a" | "b" = "a"\n closed = t if k == "a" else base_lr', 'C(t, 2, k="b")', "2"),
        ("hyper e: optional real = unset\n closed = base_lr if unset(e) else e", "C(t, 2)", "2"),
        ("hyper e: optional real = unset\n closed = base_lr if unset(e) else e", "C(t, 2, e=t)",
         "t"),
        ("option up = true\n closed = base_lr if up and t > 3 else t", "C(t, 2)",
         "2 if t > 3 else t"),
        ("option up = true\n closed = base_lr if not up or t > 3 else t", "C(t, 2)",
         "2 if t > 3 else t"),
        # What a choice around it has asked is not asked again.
        ("closed = (base_lr if t < 3 else 5) if t < 3 else 7", "C(t, 2)", "2 if t < 3 else 7"),
        # Numbers are not computed.
        ("hyper a = 3\n closed = base_lr * (a - 3)", "C(t, 2)", "2 * (3 - 3)"),
        ("hyper a = 3\n closed = base_lr if a > 2 else t", "C(t, 2)", "2 if 3 > 2 else t"),
        ("hyper base_lr: per_group real\n hyper top: per_group real\n closed = base_lr + top",
         "C(t, 2, top=3)", "2 + 3"),
    ],
)  # fmt: skip
def test_a_call_is_the_closed_form_with_the_arguments(called: str, call: str, written: str) -> None:
    text = closed(f"closed = {call}", f"schedule C {{\n{called}\n}}")
    assert text == closed(f"closed = {written}")


def test_definitions_may_stand_in_any_order_and_file() -> None:
    first = "schedule First {\n closed = Second(t, base_lr)\n}"
    second = "schedule Second {\n closed = Warm(t, base_lr, steps=5)\n}"
    texts = {
        show_source(found.closed)
        for order in ((first, second, WARM), (WARM, second, first), (second, first, WARM))
        for found in (units(*order)["First"], units("\n".join(order))["First"])
        if isinstance(found, Schedule) and found.closed is not None
    }
    assert texts == {"base_lr * min(1, t / 5)"}


def test_shipped_schedules_are_in_scope_but_not_in_the_package(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "mine.opt"
    path.write_text("schedule Mine {\n closed = NoamLR(t, base_lr)\n}\n", encoding="utf-8")
    library = load([path])
    assert [u.name for u in library.units] == ["Mine"]
    noam = shipped_library().find("NoamLR")
    assert isinstance(noam, Schedule)
    (mine,) = library.units
    assert isinstance(mine, Schedule)
    assert mine.closed is not None
    assert noam.lets
    assert "4000" in show_source(mine.closed)


def test_a_shipped_optimizer_is_built_without_the_schedule_that_it_calls(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Only one of the two is being built: the other is shipped."""
    shipped = shipped_library()
    for name in ("NoamLR", "Noam"):
        unit = shipped.find(name)
        assert unit is not None
        path = tmp_path / f"{name}.opt"
        path.write_text(unit.source.text, encoding="utf-8")
        found = [u.name for u in load([path]).units]
        assert found == [name]
        path.unlink()


def test_conditions_come_along_once_with_the_callers_names() -> None:
    found = schedule(
        "hyper n: int = 5 require n > 0\n hyper m: int = 3\n"
        " closed = Warm(t, base_lr, steps=n) * Warm(t, 1, steps=m) * Warm(t, 1, steps=2 * m)"
        " * Warm(t, 1, steps=t + 1)",
        WARM,
    )
    assert conditions(found.requires) == [
        ("n > 0", "n = {n} breaks the condition n > 0"),
        ("m > 0", "m = {m} breaks the condition m > 0"),
        ("2 * m > 0", "m = {m} breaks the condition 2 * m > 0"),
        ("t + 1 > 0", "This needs t + 1 > 0"),
    ]


def test_a_message_of_the_author_has_names_that_the_caller_has() -> None:
    inner = """schedule Inner {
        hyper a: int = 1
        hyper b: int = 2
        hyper way: "up" | "down" = "up"
        state twice = 2 * a
        let part = t / twice
        require part < 9 else "{part} of {twice}, {a}, {b}, {way} at {t}"
        closed = base_lr * part * b * (2 if way == "up" else 1)
    }"""
    outer = """schedule Outer {
        hyper a: int = 3
        hyper b: int = 4
        closed = Inner(t + 1, base_lr, a=b, b=a)
    }"""
    _, schedule = resolve([parse(Source("user.opt", inner + "\n" + outer))])[0]
    assert isinstance(schedule, Schedule)
    (require,) = schedule.requires
    assert require.message == "(t + 1) / (2 * b) of 2 * b, {b}, {a}, 'up' at t + 1"


def test_a_message_of_the_author_speaks_of_the_callers_names() -> None:
    found = schedule(
        "hyper n: int = 5\n closed = Told(t, 1, steps=n) + Told(t, 1, steps=n - 1)", TOLD
    )
    assert conditions(found.requires) == [
        ("n > 0", "No {n} steps"), ("n - 1 > 0", "No n - 1 steps"),
    ]  # fmt: skip


# Schedules of derived optimizers


def test_a_schedule_line_is_the_base_with_a_name_for_the_rate_of_the_step() -> None:
    """Every read of `lr` behind the step's count, and names that follow from it are numbers of a
    step now."""
    found = optimizer(
        "optimizer O from Base {\n hyper n: int = 7\n schedule lr = Warm(step, lr, steps=n)\n}",
        BASE, WARM,
    )  # fmt: skip
    assert found.base is None
    assert show_spec(found) == "\n".join(
        line[4:] for line in """
    update {
        step += 1
        let lr_now = lr * min(1, step / n)
        if fast {
            grad = grad * 2
        }
        let size = lr_now * a
        let rate = size + 0
        if heavy {
            sum = sum + grad
        }
        if rate > 0 {
            param = param * (1 - weight_decay * lr_now)
        }
        descend rate * grad
    }""".strip("\n").split("\n")
    )  # fmt: skip
    lets = {s.name: s.kind for s in statements(found.body) if isinstance(s, Let)}
    assert lets == {"lr_now": Kind.SCALAR, "size": Kind.SCALAR, "rate": Kind.SCALAR}


def test_new_arguments_stand_behind_those_of_the_base() -> None:
    found = optimizer(
        "optimizer O from Base {\n hyper n: int = 7\n hyper m: int\n"
        " schedule lr = lr * n / (step + m)\n}",
        BASE,
    )  # fmt: skip
    base = units(BASE)["Base"]
    assert isinstance(base, Spec)
    assert base.signature[:6] == ("lr", "betas", "weight_decay", "fast", "heavy", "*")
    expected = (*base.signature[:5], "n", "*", "m", *base.signature[6:])
    assert found.signature == expected
    assert [h.name for h in found.hypers] == [*(h.name for h in base.hypers), "n", "m"]


def test_an_option_that_the_base_fixed_is_gone() -> None:
    fixed = "optimizer Fixed from Base {\n fix heavy = true\n}"
    found = optimizer(
        "optimizer O from Fixed {\n fix fast = false\n schedule lr = lr / step\n}", BASE, fixed
    )
    assert found.fixed == ()
    assert [h.name for h in found.hypers] == ["lr", "betas", "weight_decay"]
    assert not {"fast", "heavy"} & {*found.signature}
    assert [s.name for s in found.states if s.when is None] == ["step", "sum"]
    assert not re.search(r"\b(fast|heavy)\b", show_spec(found))
    # `not fast or lr < 1` holds.
    assert [c for c, _ in conditions(found.requires)] == ["lr >= 0"]


def test_what_may_be_unset_in_the_base_stays_so() -> None:
    base = """optimizer Base {
        hyper lr = 0.1
        hyper top: optional real = unset   require unset(top) or top > 0
        state step = 0
        update {
            step += 1
            descend (lr if unset(top) else min(lr, top)) * grad
        }
    }"""
    found = optimizer("optimizer O from Base {\n schedule lr = lr / step\n}", base)
    assert [c for c, _ in conditions(found.requires)] == ["unset(top) or top > 0"]
    assert "lr_now if unset(top) else min(lr_now, top)" in show_spec(found)
    with pytest.raises(SpecError, match="'top' may be unset here"):
        optimizer("optimizer O from Base {\n schedule lr = lr / top\n}", base)


def test_a_scheduled_optimizer_is_a_base_like_any_other() -> None:
    first = (
        "optimizer First from Base {\n hyper n: int = 7\n schedule lr = Warm(step, lr, steps=n)\n}"
    )
    second = "optimizer O from First {\n default n = 9\n}"
    found = optimizer(second, BASE, WARM, first)
    assert found.base == "First"
    assert [h.literal for h in found.hypers if h.name == "n"] == ["9"]
    third = "optimizer O from First {\n schedule weight_decay = weight_decay / step\n}"
    text = show_spec(optimizer(third, BASE, WARM, first))
    assert "let lr_now = lr * min(1, step / n)" in text
    assert "param = param * (1 - weight_decay_now * lr_now)" in text


def test_parts_of_tuples_and_several_values_are_driven() -> None:
    found = optimizer(
        "optimizer O from Base {\n schedule a = a / step\n schedule lr = lr * a\n}", BASE
    )
    text = show_spec(found)
    assert "let a_now = a / step" in text
    # A schedule reads what the user gave.
    assert "let lr_now = lr * a\n" in text
    assert "let size = lr_now * a_now" in text


def test_conditions_of_a_called_schedule_are_the_optimizers() -> None:
    found = optimizer(
        "optimizer O from Base {\n hyper n: int = 7\n schedule lr = Warm(step, lr, steps=n)\n}",
        BASE, WARM,
    )  # fmt: skip
    assert conditions(found.requires)[-1] == ("n > 0", "n = {n} breaks the condition n > 0")


def test_a_base_in_error_hides_nothing_and_is_told_once() -> None:
    broken = BASE.replace("descend rate", "descend missing")
    with pytest.raises(SpecError) as raised:
        units("optimizer O from Base {\n schedule lr = lr / step\n}", broken)
    assert len(raised.value.diagnostics) == 1


def test_shipped_scheduled_optimizers_keep_adams_slots() -> None:
    shipped = shipped_library()
    adam = shipped.find("Adam")
    assert isinstance(adam, Spec)
    for name in ("Noam", "AdamWarmup", "AdamWarmupCosineDecay"):
        found = shipped.find(name)
        assert isinstance(found, Spec)
        assert found.states == tuple(replace(s) for s in adam.states)
