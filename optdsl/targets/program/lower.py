"""Spec -> View: the scalar work of fused kernels as a program in Python, and what a runtime must
know of them. It imports no backend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from optdsl import printing
from optdsl.ir import Const, Expr, Ref, Spec
from optdsl.targets.layout import bracketed, indented
from optdsl.targets.program.kernel import Kernel, kernel_of
from optdsl.targets.program.scalars import identifier, scalar_lines
from optdsl.targets.program.view import View


def lower(spec: Spec) -> View | None:
    """None where there is no kernel."""
    kernel = kernel_of(spec)
    return None if kernel is None else view(kernel)


def view(kernel: Kernel) -> View:
    sources = tuple(dict.fromkeys(i.source for i in kernel.inputs))
    results = (*kernel.columns, *kernel.scalar_slots)
    names = [identifier(n) for n in (*(i.name for i in kernel.inputs), *kernel.scalar_slots)]
    body = scalar_lines(kernel.program, kernel.own, _Python())
    text = "\n".join(body)
    return View(
        name=kernel.name,
        slots=_names(o.name for o in kernel.operands if o.slot is not None),
        scalar_slots=_names(kernel.scalar_slots),
        options=_names(kernel.options),
        optional_slots=_names(kernel.optional),
        deciding=_names(kernel.deciding),
        column_count=len(results),
        input_count=len(kernel.inputs),
        reductions=_tuple(str(len(part.reductions)) for part in kernel.passes[:-1]),
        barriers=_tuple(_barriers(kernel)),
        uses_math="math." in text,
        uses_numbers="_numbers." in text,
        uses_torch=any("torch." in source for source in sources),
        given=indented(bracketed("return (", sources, _tuple_end(sources), 4)),
        head=bracketed(
            "def scalars(", [f"{name}: float" for name in names], ") -> tuple[float, ...]:", 0
        ),
        body=indented(body),
        results=indented(
            bracketed("return (", [identifier(n) for n in results], _tuple_end(results), 4)
        ),
    )


def _barriers(kernel: Kernel) -> Iterator[str]:
    """(1, ((0, "norm"),)): after the first pass, the total at place 0"""
    for number, part in enumerate(kernel.passes, start=1):
        totals = [f'({r.place}, "{r.of_one}")' for r in part.reductions if r.is_total]
        if totals:
            yield f"({number}, {_tuple(totals)})"


def _names(names: Iterable[str]) -> str:
    """A tuple of names as Python text."""
    return _tuple(f'"{name}"' for name in names)


def _tuple(items: Iterable[str]) -> str:
    listed = tuple(items)
    return f"({', '.join(listed)}{_tuple_end(listed)}"


def _tuple_end(items: Iterable[str]) -> str:
    return ",)" if len(tuple(items)) == 1 else ")"


class _Python:
    """Python floats. A slot is a float32 on the device, so each of its values is rounded to one."""

    def show(self, expr: Expr) -> str:
        return printing.show(expr, printing.host, self.leaf)

    def named(self, value: Expr) -> str:
        return self.show(value)

    def leaf(self, leaf: Const | Ref) -> str:
        return identifier(leaf.name) if isinstance(leaf, Ref) else printing.python_leaf(leaf)

    def rounded(self, text: str) -> str:
        return f"_numbers.single({text})"

    def safe(self, name: str) -> str:
        return identifier(name)
