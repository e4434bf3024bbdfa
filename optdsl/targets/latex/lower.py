"""Spec -> View: a page about an optimizer, its update in LaTeX."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import assert_never

from optdsl import printing
from optdsl.ir import (
    Apply,
    Assign,
    Const,
    Descend,
    Expr,
    Hyper,
    If,
    Let,
    Ref,
    Repeat,
    Require,
    Role,
    Spec,
    State,
    Stmt,
    apply,
    map_expr,
)
from optdsl.ir import statements as nested
from optdsl.ops import Op, Spelling
from optdsl.passes.lower_descend import PARAM
from optdsl.passes.specialise import specialise
from optdsl.targets.latex.view import Section, View

# What papers call it. Other names follow the rules of `symbol`.
NOTATION = {
    "param": r"\theta",
    "grad": "g",
    "lr": r"\eta",
    "weight_decay": r"\lambda",
    "momentum": r"\mu",
    "eps": r"\epsilon",
    "step": "t",
}
GREEK = frozenset(
    {"alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "kappa", "mu", "nu"}
    | {"xi", "rho", "sigma", "tau", "phi", "chi", "psi", "omega"}
)


def lower(spec: Spec) -> View:
    symbols = Symbols(_names(spec))
    shown = equations(spec)
    fixed = dict(spec.fixed)
    shared = [r for r in spec.requires if len(_owners(spec, r)) != 1]
    return View(
        title=spec.name,
        doc=spec.doc or f"The optimizer {spec.name}.",
        citations=spec.cites,
        hypers=tuple(_hyper(spec, h, symbols) for h in spec.hypers if h.name not in fixed),
        conditions=tuple(printing.show_source(r.condition) for r in shared),
        states=tuple(_state(s, symbols) for s in specialise(spec, fixed).states),
        sections=(Section("Update", shown),) if shown else (),
    )


def equations(spec: Spec) -> tuple[str, ...]:
    """The update as the lines of one `aligned` environment, branches in words; none for a routine,
    which is a program."""
    body = specialise(spec, dict(spec.fixed)).body
    if not body:
        return ()
    return aligned(statements(body, Symbols(_names(spec))))


def aligned(lines: Iterable[str]) -> tuple[str, ...]:
    """Lines under each other, aligned on the left: they are statements, not one equation."""
    *rows, last = (f"& {line}" for line in lines)
    return (r"\begin{aligned}", *(rf"{row} \\" for row in rows), last, r"\end{aligned}")


def cases(expr: Expr, symbols: Symbols) -> str:
    """An expression; where it is a choice, as a list of cases."""
    rows: list[str] = []
    while isinstance(expr, Apply) and expr.op == "select":
        condition, value, expr = expr.args
        rows.append(rf"{symbols.show(value)} & \text{{if }} {symbols.show(condition)}")
    if not rows:
        return symbols.show(expr)
    rows.append(rf"{symbols.show(expr)} & \text{{otherwise}}")
    listed = r" \\ ".join(rows)
    return rf"\begin{{cases}} {listed} \end{{cases}}"


def statements(body: Iterable[Stmt], symbols: Symbols, depth: int = 0) -> tuple[str, ...]:
    """A line for each statement and for each head of a branch, indented by their depth."""
    return tuple(line for stmt in body for line in _statement(stmt, symbols, depth))


def _statement(stmt: Stmt, symbols: Symbols, depth: int) -> tuple[str, ...]:
    indent = r"\quad " * depth
    match stmt:
        case Let(name=name, value=value):
            return (rf"{indent}{symbols[name]} \leftarrow {cases(value, symbols)}",)
        case Assign(target=target, value=value, operator=operator):
            value = apply(operator, target, value) if operator else value
            return (rf"{indent}{symbols[target.name]} \leftarrow {cases(value, symbols)}",)
        case Descend(value=value):
            return (rf"{indent}\theta \leftarrow {symbols.show(apply('sub', PARAM, value))}",)
        case If():
            return _branch(stmt, symbols, depth, "if")
        case Repeat(count=count, body=body):
            head = rf"{indent}\text{{repeat }} {symbols.show(count)} \text{{ times}}"
            return (head, *statements(body, symbols, depth + 1))
        case _:
            assert_never(stmt)


def _branch(stmt: If, symbols: Symbols, depth: int, word: str) -> tuple[str, ...]:
    indent = r"\quad " * depth
    head = rf"{indent}\text{{{word} }} {symbols.show(stmt.condition)}"
    then = statements(stmt.then, symbols, depth + 1)
    match stmt.orelse:
        case ():
            return (head, *then)
        case (If() as inner,):
            return (head, *then, *_branch(inner, symbols, depth, "else if"))
        case orelse:
            inner_lines = statements(orelse, symbols, depth + 1)
            return (head, *then, rf"{indent}\text{{else}}", *inner_lines)


class Symbols:
    """How names are written. Two names never share a symbol: the later one is spelled out."""

    def __init__(self, names: Iterable[str], given: dict[str, str] | None = None) -> None:
        self.table: dict[str, str] = dict(given or {})
        for name in names:
            if name not in self.table:
                short = symbol(name)
                taken = short in self.table.values()
                self.table[name] = _upright(name) if taken else short

    def __getitem__(self, name: str) -> str:
        return self.table[name]

    def show(self, expr: Expr) -> str:
        return printing.show(map_expr(expr, self._spell), _latex, self.leaf)

    def _spell(self, expr: Expr) -> Expr:
        """What no spelling of the operator table can say, as a name that is its own symbol."""
        match expr:
            case Apply(op="floordiv", args=(left, right)):
                inside = printing.show(apply("div", left, right), _latex, self.leaf)
                text = rf"\left\lfloor {inside} \right\rfloor"
            case Apply(op="unset", args=(Ref(name=name),)):
                text = rf"{self.table[name]} \text{{ is unset}}"
            case _:
                return expr
        self.table[text] = text
        return Ref(text, Role.LOCAL, expr.kind, span=expr.span)

    def leaf(self, leaf: Const | Ref) -> str:
        match leaf:
            case Ref(role=Role.PROPERTY, name=name):
                word, _, index = name.removeprefix("param.").partition("[")
                at = f"_{{{index.rstrip(']')}}}" if index else ""
                return rf"\operatorname{{{_escaped(word)}}}{at}(\theta)"
            case Ref(name=name):
                return self.table[name]
            case Const(symbol="pi"):
                return r"\pi"
            case Const(symbol="inf"):
                return r"\infty"
            case Const(value=None):
                return r"\text{unset}"
            case Const(value=bool() as value):
                return rf"\text{{{str(value).lower()}}}"
            case Const(value=str() as text):
                return rf"\text{{{_escaped(text)}}}"
            case Const(value=number):
                return _number(number)
            case _:
                assert_never(leaf)


def symbol(name: str) -> str:
    r"""beta1 -> \beta_1, T_max -> T_{\mathrm{max}}, exp_avg -> \mathrm{exp\_avg}"""
    if name in NOTATION:
        return NOTATION[name]
    if name in GREEK:
        return f"\\{name}"
    if len(name) == 1:
        return name
    numbered = re.fullmatch(r"(.*?[A-Za-z])_?([0-9]+)", name)
    if numbered:
        return f"{symbol(numbered[1])}_{{{numbered[2]}}}"
    head, _, index = name.partition("_")
    if index and (head in GREEK or len(head) == 1):
        return f"{symbol(head)}_{{{_upright(index)}}}"
    return _upright(name)


def _upright(name: str) -> str:
    return rf"\mathrm{{{_escaped(name)}}}"


def _escaped(name: str) -> str:
    return name.replace("_", r"\_")


def _number(value: object) -> str:
    text = repr(value)
    mantissa, _, exponent = text.partition("e")
    if not exponent:
        return text
    power = f"10^{{{int(exponent)}}}"
    return power if mantissa == "1" else rf"{mantissa} \cdot {power}"


def _latex(op: Op) -> Spelling | None:
    return op.latex


def _names(spec: Spec) -> tuple[str, ...]:
    """All names of a spec, those that papers have a letter for first."""
    names = ["param", "grad"]
    names += [n for h in spec.hypers for n in (h.name, *h.components)]
    names += [s.name for s in spec.states]
    names += [s.name for s in nested(spec.body) if isinstance(s, Let)]
    return tuple(dict.fromkeys(names))


# The tables


def _owners(spec: Spec, require: Require) -> tuple[Hyper, ...]:
    """The hyperparameters that a condition speaks of."""
    return tuple(h for h in spec.hypers if {h.name, *h.components} & set(require.hypers))


def _hyper(spec: Spec, hyper: Hyper, symbols: Symbols) -> str:
    signs = ", ".join(f"${symbols[n]}$" for n in hyper.components or (hyper.name,))
    default = f"`{hyper.literal}`" if hyper.literal is not None else "required"
    own = [r for r in spec.requires if _owners(spec, r) == (hyper,)]
    conditions = ", ".join(f"`{printing.show_source(r.condition)}`" for r in own)
    return row(f"`{hyper.name}`", signs, default, conditions)


def _state(state: State, symbols: Symbols) -> str:
    initial = "`unset`" if state.initial is None else f"`{printing.show_source(state.initial)}`"
    when = "always" if state.when is None else f"when `{printing.show_source(state.when)}`"
    return row(f"`{state.name}`", f"${symbols[state.name]}$", initial, when)


def row(*cells: str) -> str:
    """A row of a table."""
    return " | ".join(cell.replace("|", r"\|") for cell in cells)
