"""Random updates, drawn from the patterns of the selection rules, with the target in their holes.

Generic random programs miss in-place mistakes; shapes drawn from the rules themselves, whose other
operands may be the target, find them at once.
"""

from __future__ import annotations

from textwrap import dedent, indent

from hypothesis import strategies as st

SCALARS = ("c", "d", "0.5", "(1 - c)", "(1 - c ** step)", "c * d", "-d")
# Each pattern is one rule of the eager or the foreach selection. T is a tensor, S a number.
SMOOTH = (
    "T + S * T", "T - S * T", "T + S * T * T", "T - T * T", "T + S * T / (abs(T) + 1)",
    "T - T / (abs(T) + 2)", "lerp(T, T, c)", "lerp(T, T, 1 - c)", "max(T, T)", "min(T, S)",
    "max(T, T) + S * T", "sqrt(abs(T)) / S + S", "-T", "S / (abs(T) + 1)", "T * T", "S - T",
    "S * T + S * T", "T / S - T", "abs(T) + abs(T)", "lerp(T, T * T, d) + T", "S * T + T * T * S",
    "T / (norm(T) + 1)", "T * mean(T)", "T + dot(T, T) / 40", "exp(-abs(T))", "T * S * T",
    "T + S * T * sum(T) / (max_abs(T) + 30)", "(T + T) * S", "(S * T + S * T * T) / (1 + T * T)",
)  # fmt: skip
# Bit for bit the same everywhere, but a rounding before them can flip them.
JUMPY = ("sign(T)", "floor(T)", "where(T > T, T, T)", "sign(T + S * T) * T")
# Reductions of one another, of masks, and whose numbers are operands in their turn. No mask is of
# what is equal but for a rounding, as the elements of `b` are to their mean.
NESTED = (
    "T / (norm(T / (norm(T) + 1)) + 1)", "T - mean(T - mean(T))", "T * mean(T > mean(T) + S)",
    "where(norm(T) > 3, T / norm(T), T)", "T + sum(T * max_abs(T)) / 90", "T * mean(T * T > S)",
    "T / max(norm(T), S)", "T * min(max_abs(T), S)", "T + dot(T, T / (norm(T) + 1)) / 40",
)  # fmt: skip


def spec_of(update: str, change: str = "d * a + 0 * b") -> str:
    """A spec with two slots, two hyperparameters, an option and an update, which ends with
    `descend`."""
    return (
        "optimizer Random {\n"
        "    hyper c = 0.3\n    hyper d = 0.7\n    option flag = false\n"
        "    state step = 0\n    state a = zeros_like(param)\n    state b = full_like(param, c)\n"
        f"    update {{\n        step += 1\n{indent(dedent(update), ' ' * 8)}\n"
        f"        descend {change}\n    }}\n}}\n"
    )


@st.composite
def updates(draw: st.DrawFn, patterns: tuple[str, ...] = SMOOTH) -> str:
    """A spec with an update by chance."""
    names = ["param", "grad", "a", "b"]
    lines: list[str] = []

    def expression() -> str:
        text = draw(st.sampled_from(patterns))
        for mark, pool in (("T", names), ("S", SCALARS)):
            while mark in text:
                text = text.replace(mark, draw(st.sampled_from(pool)), 1)
        return text

    def statement(depth: int, space: str) -> None:
        choice = draw(st.integers(0, 9))
        if choice == 0 and depth == 0:
            lines.append(f"{space}if {draw(st.sampled_from(['flag', 'c > 0.4']))} {{")
            known = len(names)
            for _ in range(draw(st.integers(1, 2))):
                statement(depth + 1, space + "    ")
            del names[known:]
            lines.append(f"{space}}} else {{")
            statement(depth + 1, space + "    ")
            del names[known:]
            lines.append(f"{space}}}")
        elif choice <= 3:
            value = draw(st.sampled_from([*names, "", "", ""])) or expression()
            lines.append(f"{space}let x{len(names)} = {value}")
            names.append(f"x{len(names)}")
        elif choice <= 5:
            target = draw(st.sampled_from(names))
            sign = draw(st.sampled_from("+-*"))
            lines.append(f"{space}{target} {sign}= {expression()}")
        else:
            target = draw(st.sampled_from(names))
            value = draw(st.sampled_from([*names, "", "", ""])) or expression()
            lines.append(f"{space}{target} = {value}")

    for _ in range(draw(st.integers(2, 7))):
        statement(0, "")
    last = draw(st.sampled_from(names))
    return spec_of("\n".join(lines), f"d * {last}")
