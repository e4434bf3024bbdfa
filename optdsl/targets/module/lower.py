"""Spec -> View: the class that users construct, without its update."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

from optdsl import printing
from optdsl.ir import (
    FLAGS,
    POLICIES,
    Apply,
    Const,
    Expr,
    Hyper,
    Ref,
    Require,
    Role,
    Spec,
    State,
    refs,
)
from optdsl.ops import Kind
from optdsl.passes import supports_complex
from optdsl.targets import latex, program, signature
from optdsl.targets.layout import WIDTH, bracketed, broken_assignment, indented
from optdsl.targets.module.view import View
from optdsl.targets.signature import is_dependent, quoted
from optdsl.targets.torch_code import Lines

# What a number may be given as.
REAL = "float | Tensor"
# Type, default and meaning.
FLAG_ROWS = {
    "foreach": (
        "bool | None", "None", "update lists of tensors at once; by default where torch does",
    ),
    "maximize": ("bool", "False", "ascend instead of descend"),
    "capturable": (
        "bool", "False", "keep every number on the device, so that a CUDA graph can hold the step",
    ),
    "differentiable": ("bool", "False", "record the step, so that gradients flow through it"),
    "fused": ("bool | None", "None", "update all tensors in one kernel"),
}  # fmt: skip
POLICY_ROWS = {
    "rounding": (
        'Literal["nearest", "stochastic"]', '"nearest"', "how parameters of 16 bits are rounded",
    ),
    "kahan": (
        "bool", "False", "keep what rounding takes from parameters of 16 bits, in 16 bits more",
    ),
    "master_weights": ("bool", "False", "keep a float32 copy of parameters of 16 bits"),
    "state_dtype": (
        'torch.dtype | Literal["int8"] | None', "None",
        "store slots in torch.float32, torch.bfloat16 or 8 bits; by default as torch does",
    ),
    "seed": ("int", "0", "where the random bits of rounding begin"),
}  # fmt: skip
ROWS = FLAG_ROWS | POLICY_ROWS


def lower(spec: Spec) -> View:
    derived = spec.base is not None
    headline, *documentation = _documentation(spec)
    return View(
        summary=spec.doc or f"{spec.name}.",
        name=spec.name,
        base=spec.base or _base(spec),
        headline=headline,
        documentation=tuple(documentation),
        attributes=indented(_attributes(spec)),
        parameters=tuple(_parameter(spec, name) for name in _signature(spec)),
        construction=indented(_forward(spec) if derived else _defaults(spec), 2),
        checks=() if derived else indented(_checks(spec), 2),
        routine=f"_{spec.routine}" if spec.routine else "",
    )


def _base(spec: Spec) -> str:
    """The runtime's class that it extends."""
    return "Routine" if spec.routine else "Optimizer"


# The constructor


def _policies(spec: Spec) -> tuple[str, ...]:
    """What it can be told about precision: a routine, or an update of single elements, nothing."""
    return () if spec.routine or spec.sparse.mode == "only" else POLICIES


def _signature(spec: Spec) -> tuple[str, ...]:
    policies = _policies(spec)
    star = ("*",) if policies and "*" not in spec.signature else ()
    return (*spec.signature, *star, *policies)


def _parameter(spec: Spec, name: str) -> str:
    if name == "*":
        return "*"
    if name in ROWS:
        annotation, default, _ = ROWS[name]
        return f"{name}: {annotation} = {default}"
    hyper = _hyper(spec, name)
    return signature.parameter(hyper, signature.annotation(hyper, REAL))


def _hyper(spec: Spec, name: str) -> Hyper:
    return next(h for h in spec.hypers if h.name == name)


def _defaults(spec: Spec) -> Lines:
    names = [n for n in spec.signature if n != "*"]
    entries = [f'"{n}": {n}' for n in names]
    policies = _policies(spec)
    entries += [f"**precision({', '.join(policies)})"] if policies else []
    dependent = [h for h in spec.hypers if is_dependent(h)]
    return (
        *(line for h in dependent for line in signature.resolution(h)),
        *bracketed("defaults = {", entries, "}", 8),
        "super().__init__(params, defaults)",
    )


def _forward(spec: Spec) -> Lines:
    given = [f"{n}={n}" for n in _signature(spec) if n != "*"]
    return bracketed("super().__init__(", ["params", *given], ")", 8)


# Checks


def _checks(spec: Spec) -> Iterator[str]:
    about_group = [r for r in spec.requires if not _about_param(r)]
    used = {r.name for require in about_group for r in refs(require.condition)}
    used |= {n for r in about_group for n in _placeholders(spec, r.message)}
    for hyper in spec.hypers:
        if used & set(hyper.components):
            names = ", ".join(c if c in used else "_" for c in hyper.components)
            yield f'{names} = group["{hyper.name}"]'
        elif hyper.name in used:
            yield f'{hyper.name} = group["{hyper.name}"]'
    for flag in FLAGS:
        if flag in used:
            yield f'{flag} = group["{flag}"]'
    for hyper in spec.hypers:
        if hyper.type.choices:
            choices = ", ".join(f'"{c}"' for c in hyper.type.choices)
            choices += ", None" if hyper.type.optional else ""
            yield f'if group["{hyper.name}"] not in ({choices}):'
            message = f"{hyper.name} must be one of {', '.join(hyper.type.choices)}"
            yield from indented((f'raise ValueError("{message}")',))
    for require in spec.requires:
        if not _about_param(require):
            failed = printing.none_tests(signature.negated(require.condition))
            message = signature.message(require.message, lambda name: name)
            yield from signature.refusal(printing.show(failed, printing.host), message)


def _about_param(require: Require) -> bool:
    return any(r.role is Role.PROPERTY for r in refs(require.condition))


def _requirements(spec: Spec, name: str, requires: Iterable[Require]) -> Lines:
    """`name = ((condition, message), ...)`: conditions on each parameter and its group."""
    pairs = [
        line
        for require in requires
        for line in bracketed(
            "(",
            (
                f"lambda group, param: {_in_group(require.condition, wrap=False)}",
                quoted(_with_parts(spec, require.message)),
            ),
            "),",
            8,
        )
    ]
    return (f"{name} = (", *indented(pairs), ")") if pairs else ()


def _with_parts(spec: Spec, message: str) -> str:
    """A group holds a tuple as a whole: {beta1} -> {betas[0]}"""
    for hyper in spec.hypers:
        for place, part in enumerate(hyper.components):
            message = message.replace(f"{{{part}}}", f"{{{hyper.name}[{place}]}}")
    return message


def _placeholders(spec: Spec, message: str) -> list[str]:
    names = [n for h in spec.hypers for n in (h.name, *h.components)]
    return [n for n in names if f"{{{n}}}" in message]


# Slots


def _attributes(spec: Spec) -> Lines:
    if spec.base is not None:
        fixed = ", ".join(f'"{n}": {v}' for n, v in spec.fixed)
        return (f"fixed: ClassVar[dict[str, bool]] = {{{fixed}}}",) if spec.fixed else ()
    # Not every kind of update has a kernel: then the base's empty name stays.
    fused = program.kernel_of(spec) is not None
    sparse = spec.sparse
    lines = [] if supports_complex(spec) else ["supports_complex = False"]
    lines += [f'sparse = "{sparse.mode}"'] if sparse.mode != "none" else []
    lines += broken_assignment("refusal", quoted(sparse.refusal), 4) if sparse.refusal else []
    about_param = (r for r in spec.requires if _about_param(r))
    lines += _requirements(spec, "param_requires", about_param)
    lines += _requirements(spec, "sparse_requires", sparse.requires)
    lines += [f'kernels = "{spec.name.lower()}"'] if fused else []
    slots = _slot_text(spec)
    one_line = f"slots = ({slots[0]})" if len(slots) == 1 else ""
    if not slots:
        return (*lines, "slots = ()")
    if one_line and len(one_line) + 4 <= WIDTH:
        return (*lines, one_line)
    return (*lines, "slots = (", *indented(slots), ")")


def _slot_text(spec: Spec) -> Lines:
    return tuple(line for state in spec.states for line in _slot(state))


def _slot(state: State) -> Lines:
    if state.initial is None:
        initial = "None"
    else:
        initial = f"lambda group, param: {_in_group(state.initial, wrap=True)}"
    items = [f'"{state.name}"', initial]
    items += ["scalar=True"] if state.kind is Kind.SCALAR else []
    items += ["integer=True"] if state.integer else []
    if state.when is not None:
        items.append(f"when=lambda group, param: {_in_group(state.when, wrap=False)}")
    items += ["eager=True"] if state.eager else []
    return bracketed("Slot(", items, "),", 8)


def _in_group(expr: Expr, wrap: bool) -> str:
    """An expression over the group and the parameter; `wrap` reads tensors as numbers."""

    def leaf(node: Const | Ref) -> str:
        match node:
            case Ref(role=Role.HYPER, name=name):
                text = f'group["{name}"]'
                return f"number({text})" if wrap else text
            case Ref(role=Role.OPTION | Role.FLAG, name=name):
                return f'group["{name}"]'
            case Ref(role=Role.IS_TENSOR, name=name):
                return f'torch.is_tensor(group["{name}"])'
            case Ref(role=Role.GRAD):
                return "param.grad"
            case _:
                return printing.python_leaf(node)

    match expr:
        case Apply(op="zeros_like", args=(Ref() as like,)):
            return f"torch.zeros_like({leaf(like)})"
        case Apply(op="zeros_along", args=(Ref() as like, Const(value=dim))):
            return f"zeros_along({leaf(like)}, {dim})"
        case Apply(op="full_like", args=(Ref() as like, value)):
            inside = printing.show(value, printing.host, leaf)
            return f"full_like({leaf(like)}, {inside})"
        case _:
            return printing.show(expr, printing.host, leaf)


# Documentation


def _documentation(spec: Spec) -> Lines:
    """A docstring's lines: the first one stands behind the quotes."""
    first, *rest = textwrap.wrap(spec.doc or f"{spec.name}.", WIDTH - 8)
    lines = [*rest, "", "Args:"]
    dtypes = "floating-point or complex" if supports_complex(spec) else "floating-point"
    what = f"{dtypes} parameters with {_layouts(spec)} gradients"
    lines += indented(signature.entry("params", "iterable", f"{what}, or groups of them"))
    for name in _signature(spec):
        if name != "*":
            lines += indented(_describe(spec, name))
    errors = [r.message for r in spec.requires if _subject(spec, r) is None]
    raises = "; ".join(["ValueError: an argument is out of its range", *errors])
    lines += ["", "Raises:", *indented(textwrap.wrap(f"{raises}.", WIDTH - 12))]
    equations = latex.equations(spec)
    lines += ["", ".. math::", "", *indented(equations)] if equations else []
    if spec.cites:
        lines += ["", "References:"]
        lines += (line for c in spec.cites for line in indented(textwrap.wrap(c, WIDTH - 12)))
    return (first, *indented(lines))


def _layouts(spec: Spec) -> str:
    """Which gradients it takes."""
    return {"none": "dense", "only": "sparse"}.get(spec.sparse.mode, "dense or sparse")


def _describe(spec: Spec, name: str) -> Lines:
    if name in ROWS:
        annotation, default, meaning = ROWS[name]
        return signature.entry(name, annotation, f"{meaning}. Default: {default}")
    hyper = _hyper(spec, name)
    conditions = [
        printing.show_source(r.condition) for r in spec.requires if _subject(spec, r) == name
    ]
    return signature.described(hyper, signature.annotation(hyper, REAL), conditions)


def _subject(spec: Spec, require: Require) -> str | None:
    """The one argument whose value a condition is about; None if it is about several, or about
    flags and types."""
    if any(r.role in (Role.FLAG, Role.IS_TENSOR) for r in refs(require.condition)):
        return None
    names = set(require.hypers)
    about = [h.name for h in spec.hypers if names & {h.name, *h.components}]
    return about[0] if len(about) == 1 else None
