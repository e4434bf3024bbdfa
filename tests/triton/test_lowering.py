"""Specs -> kernels: which have one, and that its text is as a formatter leaves it."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, assume, given, settings

from optdsl.emit import render
from optdsl.ir import Spec
from optdsl.parse import parse
from optdsl.pipeline import shipped_library
from optdsl.resolve import resolve
from optdsl.source import Source
from optdsl.targets import layout, program, triton
from tests.random_specs import JUMPY, NESTED, SMOOTH, updates

SPEC = """
optimizer Example {{
    hyper  lr = 0.1
    option {option} = false
    state  a = zeros_like(param)
    update {{
        a = a + grad
        if {option} {{ a = 0.5 * a }}
        descend {step}
    }}
}}
"""


def view(text: str) -> triton.View | None:
    units, _ = resolve([parse(Source("example.opt", text))])
    return triton.lower(units[0])


@pytest.mark.parametrize(
    ("option", "step", "has_kernel"),
    [
        ("fast", "lr * a", True),
        ("fast", "lr * a / norm(a)", True),  # in two passes
        ("fast", "lr * a / host(norm(a))", False),
        ("block", "lr * a", False),  # the kernel's own constant
        ("a_type", "lr * a", False),  # the constant that holds the slot's type
    ],
)
def test_elementwise_specs_have_a_kernel(option: str, step: str, has_kernel: bool) -> None:
    assert (view(SPEC.format(option=option, step=step)) is not None) == has_kernel


@pytest.mark.parametrize("spec", shipped_library().units, ids=lambda unit: unit.name)
def test_shipped_optimizers_have_a_kernel_unless_an_element_needs_others(spec: Spec) -> None:
    if not isinstance(spec, Spec):
        return
    has_none = {"Muon", "Adafactor", "SparseAdam", "LBFGS", "AdamW"}  # the last has its base's
    assert (triton.lower(spec) is None) == (spec.name in has_none)


@pytest.mark.parametrize(
    ("hyper", "step"),
    [
        (
            "how: optional text = unset",
            'let rate = lr\nif how == "fast" { rate = 2 }\ndescend rate * a',
        ),
        ("how: optional real = unset", "let rate = lr if unset(how) else how\ndescend rate * a"),
    ],
)
def test_what_a_table_of_numbers_cannot_hold_has_no_kernel(hyper: str, step: str) -> None:
    text = f"""
optimizer Example {{
    hyper lr = 0.1
    hyper {hyper}
    state a = zeros_like(param)
    update {{
        a = a + grad
        {step}
    }}
}}
"""
    assert view(text) is None


def test_a_long_number_is_named_after_what_it_scales() -> None:
    (unit,), _ = resolve(
        [
            parse(
                Source(
                    "example.opt",
                    """
optimizer Example {
    hyper lr = 0.1
    hyper damping = 0.5
    state a = zeros_like(param)
    state b = zeros_like(param)
    update {
        a = a * (1 - damping) + grad
        b = b * (1 / (1 + lr * damping * (1 - damping) ** 2)) + a
        descend lr * (1 - damping) / (1 + damping) / (2 - damping) * b
    }
}
""",
                )
            )
        ]
    )
    assert isinstance(unit, Spec)
    kernel = program.kernel_of(unit)
    assert kernel is not None
    assert kernel.columns == ("one_minus_damping", "factor_of_b", "factor_of_b_2")


def test_a_derived_optimizer_inherits_its_kernel() -> None:
    derived = SPEC.format(option="fast", step="lr * a") + (
        "optimizer Derived from Example { fix fast = true }\n"
    )
    units, _ = resolve([parse(Source("example.opt", derived))])
    assert [triton.lower(unit) is None for unit in units] == [False, True]


@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=20)
@given(updates(SMOOTH + JUMPY + 2 * NESTED))
def test_kernels_are_emitted_as_formatted(text: str) -> None:
    lowered = view(text)
    assume(lowered is not None)
    emitted = layout.module(render("triton.py.jinja", lowered))
    # Comments quote the spec, at its length.
    for command in (["format", "--diff"], ["check", "--select", "E,F,I,W", "--ignore", "E501"]):
        checked = subprocess.run(
            [RUFF, *command, "--line-length", "100", "-"],
            input=emitted, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert checked.returncode == 0, checked.stdout + checked.stderr


RUFF = shutil.which("ruff") or f"{sys.prefix}/bin/ruff"
