"""The tables of docs/language.md and the pages in docs/algorithms, from what the compiler knows.

    python docs/tables.py           # rewrite the marked regions and the pages
    python docs/tables.py --check   # exit 1 if that would change a file

A region stands between `<!-- begin: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path

from optdsl.diagnostics import Code
from optdsl.ir import FLAGS, Assign, Average, Ref, Role, Schedule, Spec
from optdsl.ops import (
    DTYPES,
    PROPERTIES,
    TABLE,
    Along,
    Call,
    Conditional,
    Infix,
    Kind,
    Op,
    Phrase,
    Prefix,
    Rule,
    Type,
)
from optdsl.pipeline import shipped_library
from optdsl.resolve import scope
from optdsl.resolve.schedule import ScheduleResolver
from optdsl.source import Source
from optdsl.targets import TARGETS, section

PAGE = Path(__file__).with_name("language.md")
REGION = re.compile(r"(<!-- begin: (?P<name>[a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)

# What the row of an operator does not say. An entry for an operator that is gone is an error.
NOTES = {
    "div": "a number divided by a tensor is `rdiv`, below",
    "pow": "`x ** 0.5` is not `sqrt(x)`: they differ in the last bit",
    "floordiv": "rounds down",
    "sign": "-1, 0 or 1; 0 for NaN",
    "max": "of tensors: NaN wins; of numbers: Python's `max`",
    "min": "of tensors: NaN wins; of numbers: Python's `min`",
    "lerp": "`lerp(a, b, w)`: from tensor `a` to tensor `b`, as `torch.lerp` rounds it",
    "call": "a function that the user gave",
    "floor": "the largest integer that is not above it",
    "count": "how many elements of a list equal a number",
    "reached": "how many elements of a list are not above a number",
    "floor_log": "the largest integer n with `b ** n <= a`, exact for integers",
    "is_integer": "whether an argument is an integer, not whether its value is one: for conditions",
    "is_number": "whether an argument is an integer or a float: for conditions",
    "where": "`where(mask, a, b)`: chosen for each element",
    "select": "chosen once, by a number's condition; only the chosen side is computed",
    "unset": "whether a slot has had no assignment yet, or an optional hyperparameter is None",
    "rsqrt": "the reciprocal of the square root",
    "sum_along": "along one dimension, which stays with size 1",
    "mean_along": "along one dimension, which stays with size 1",
    "norm_along": "along one dimension, which stays with size 1",
    "transpose": "the last two dimensions change places",
    "addmm": "`addmm(x, a, b, beta, alpha)`: `beta * x + alpha * (a @ b)`, rounded as by torch",
    "cast": "`cast(x, bfloat16)`: always a copy; also " + ", ".join(f"`{d}`" for d in DTYPES[1:]),
    "host": "reads a reduction's number as a float64, and waits for it",
    "zeros_along": "`zeros_like(param, dim=-1)`: size 1 along that dimension",
    "sum": "of one parameter's elements",
    "mean": "of one parameter's elements",
    "norm": "the Euclidean norm of one parameter's elements",
    "max_abs": "the largest absolute value of one parameter's elements",
    "dot": "the sum of the products of two tensors' elements",
    "all_sum": "of the elements of all parameters",
    "all_norm": "the Euclidean norm of the elements of all parameters",
    "all_max_abs": "the largest absolute value of the elements of all parameters",
    "all_dot": "the sum of the products of the elements of all parameters",
    "zeros_like": "`zeros_like(param)`",
    "full_like": "`full_like(param, number)`",
    "add_scaled": "`a + s * b`",
    "addcmul": "`a + s * b * c`",
    "addcdiv": "`a + s * b / c`",
}

MEANINGS = {
    Code.SYNTAX: "the text is not in the grammar; one per file, as what follows cannot be trusted",
    Code.TOO_DEEP: "parentheses or blocks are nested deeper than the compiler follows",
    Code.NUMBER_RANGE: "a literal that float64 does not hold",
    Code.EMPTY_FILE: "a file without a definition",
    Code.NOT_UTF8: "a file that is not UTF-8",
    Code.MISSING_FILE: "a path that does not exist or cannot be read",
    Code.NO_SPECS: "a folder without spec files",
    Code.UNKNOWN_NAME: "a name that nothing declares",
    Code.UNKNOWN_FUNCTION: "a call of something that is no function",
    Code.UNKNOWN_TYPE: "a type of a hyperparameter that does not exist",
    Code.UNKNOWN_BASE: "`from` names no optimizer, or the definition itself",
    Code.UNKNOWN_PROPERTY: "`param.` is followed by no property",
    Code.DUPLICATE: "something is declared or given twice",
    Code.CASE_COLLISION: "two names differ in upper and lower case only",
    Code.RESERVED_NAME: "a name that generated code needs",
    Code.SHADOWED: "a name that hides another: a `let` one in scope, a definition a shipped one",
    Code.ARITY: "a function with too many or too few values",
    Code.WRONG_KIND: "a tensor where a number is needed, or a number where a tensor is",
    Code.WRONG_TYPE: "a number, condition, text or tuple where another type is needed",
    Code.DEFAULT_BREAKS_REQUIRE: "a default, an example or an argument violates a `require`",
    Code.DEFAULT_ORDER: "an argument without a default behind one that has a default",
    Code.MISSING_PART: "a definition without something that it needs",
    Code.OPTION_MISUSE: "an option that is not true or false, or a `fix` of a hyperparameter",
    Code.NOT_ASSIGNABLE: "an assignment to a name that is not assignable",
    Code.READ_BEFORE_SET: "a name is read where it may have no value",
    Code.UNREAD: "a warning: nothing reads a name, or a slot never reaches the parameter",
    Code.UNSUPPORTED: "valid in the language, but not where it stands or not by a target yet",
}


PROPERTY_NOTES = {
    "ndim": "how many dimensions it has",
    "numel": "how many elements it has",
    "shape": "its size along a dimension",
    "eps": "the distance from 1 to the next number of its dtype",
    "is_complex": "a condition",
    "is_sparse": "a condition",
}


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def code(text: str) -> str:
    return f"`{text}`"


def written(op: Op) -> str:
    """An operator as specs write it, with operands `a`, `b`, `c`, a condition `m`, a list `l`, a
    function `f`."""
    left = iter("abcde")
    names = [LETTERS.get(t) or next(left) for t in op.operands]
    match op.source:
        case Infix(symbol=symbol):
            return f"a {symbol} b"
        case Prefix(symbol=symbol):
            return f"{symbol}a"
        case Conditional():
            return "a if m else b"
        case Phrase(text=text):
            return text.format(*names)
        case Call(name=name):
            return f"{name}({', '.join(names)})"
        case Along(name=name):
            return f"{name}(a, dim=b)"
        case _:
            return f"{op.name}({', '.join(names)})"


def taken(op: Op) -> str:
    """Where an operator can stand."""
    match op.rule:
        case Rule.INITIAL | Rule.INITIAL_ALONG:
            return "first values"
        case Rule.SCALAR_ONLY:
            return "numbers"
        case Rule.REDUCE | Rule.TOTAL | Rule.ALONG | Rule.MATRIX | Rule.HOST:
            return "tensors"
        case Rule.JOIN if op.operands[0] is Type.PREDICATE:
            return "slots"
        case Rule.JOIN:
            return "numbers, tensors" if op.host is not None else "tensors"


def result(op: Op) -> str:
    match op.rule:
        case Rule.INITIAL | Rule.INITIAL_ALONG:
            return "tensor"
        case Rule.REDUCE | Rule.HOST:
            return "one number per parameter"
        case Rule.TOTAL:
            return "one number for all"
        case Rule.ALONG:
            return "rows or columns"
        case Rule.MATRIX:
            return "matrix"
        case Rule.SCALAR_ONLY | Rule.JOIN:
            return NAMES[op.result]


def fused(op: Op) -> str:
    """Whether a kernel can have the operator: it goes over single elements."""
    match op.rule:
        case Rule.INITIAL | Rule.INITIAL_ALONG:
            return "-"
        case Rule.ALONG | Rule.MATRIX | Rule.HOST:
            return "no"
        case Rule.JOIN | Rule.SCALAR_ONLY | Rule.REDUCE | Rule.TOTAL:
            # The host answers `unset` with a flag.
            return "no" if op.triton is None and op.name != "unset" else "yes"


NAMES = {
    Type.NUMBER: "number",
    Type.BOOL: "condition",
    Type.TEXT: "dtype",
    Type.LIST: "list",
    Type.FUNCTION: "function",
    Type.PREDICATE: "slot",
}
LETTERS = {Type.BOOL: "m", Type.LIST: "l", Type.FUNCTION: "f"}


def operators() -> str:
    return table(
        ("written", "operands", "result", "on", "fused kernel", "note"),
        (
            (
                code(written(op)),
                ", ".join(dict.fromkeys(NAMES[t] for t in op.operands)),
                result(op),
                taken(op),
                fused(op),
                NOTES.get(op.name, ""),
            )
            for op in TABLE
            if op.source is not None
        ),
    )


def nodes() -> str:
    return table(
        ("node", "means"),
        (
            (code(op.name), NOTES[op.name])
            for op in TABLE
            if op.rule is Rule.JOIN and op.source is None and op.host is None
        ),
    )


def kinds() -> str:
    meanings = {
        Kind.OPTION: "options and literals",
        Kind.HYPER: "hyperparameters: a number per group",
        Kind.SCALAR: "slots that begin as a number, properties of the parameter, `host(...)`",
        Kind.GLOBAL: "a number that is made of all parameters: `all_norm(grad)`",
        Kind.REDUCED: "one number per parameter, from its elements: `norm(grad)`",
        Kind.FACTORED: "rows and columns: `norm(grad, dim=-1)`",
        Kind.ELEMENTWISE: "`param`, `grad`, slots that are tensors",
        Kind.MATRIX: "products of matrices, and what has a dtype of its own",
    }
    return table(("kind", "what has it"), ((kind.name.lower(), meanings[kind]) for kind in Kind))


def codes() -> str:
    return table(("code", "means"), ((code(c), MEANINGS[c]) for c in Code))


AVERAGE = Ref("average", Role.PARAM, Kind.ELEMENTWISE)
UNCHANGED = Assign(AVERAGE, AVERAGE)
UNITS = {Spec: "optimizers", Schedule: "schedules", Average: "averages"}


def targets() -> str:
    empty = Source("spec.opt", "")
    samples = {
        Spec: Spec("NAME", empty, "", (), (), (), (), (), ()),
        Schedule: Schedule("NAME", empty, "", (), (), (), (), None, None, (), (), ()),
        Average: Average("NAME", empty, "", (), (), (), (), UNCHANGED, UNCHANGED),
    }
    return table(
        ("target", "of", "template", "file of the package"),
        (
            (
                code(t.name),
                UNITS[t.unit],
                code(f"templates/{t.template}"),
                "shown only" if t.path is None else code(str(t.path(samples[t.unit]))),
            )
            for t in TARGETS
        ),
    )


def words(names: Iterable[str]) -> str:
    ordered = sorted(names, key=lambda n: (n.lower(), n))
    return textwrap.fill(", ".join(map(code, ordered)), 100) + "\n"


def reserved() -> str:
    return words(scope.GENERATED | scope.MEANINGS.keys())


def definition_names() -> str:
    return words(scope.IMPORTED)


def schedule_names() -> str:
    given = {name for name, _ in ScheduleResolver.GIVEN}
    return words((ScheduleResolver.TAKEN | given) - scope.GENERATED)


def flags() -> str:
    return ", ".join(map(code, FLAGS)) + "\n"


def properties() -> str:
    return table(
        ("written", "means"),
        (
            (code(f"param.{name}{'[-1]' if '{index}' in p.python else ''}"), PROPERTY_NOTES[name])
            for name, p in PROPERTIES.items()
        ),
    )


REGIONS: dict[str, Callable[[], str]] = {
    "operators": operators,
    "nodes": nodes,
    "kinds": kinds,
    "codes": codes,
    "targets": targets,
    "flags": flags,
    "properties": properties,
    "reserved": reserved,
    "definitionnames": definition_names,
    "schedulenames": schedule_names,
}


def filled(text: str) -> str:
    """The page with every region made anew."""
    unknown = NOTES.keys() - {op.name for op in TABLE}
    if unknown:
        raise SystemExit(f"NOTES speaks of operators that are gone: {', '.join(sorted(unknown))}")
    found = [match["name"] for match in REGION.finditer(text)]
    if sorted(found) != sorted(REGIONS):
        raise SystemExit(f"{PAGE.name} has the regions {found}, not {list(REGIONS)}")
    return REGION.sub(lambda match: f"{match[1]}\n{REGIONS[match['name']]()}\n{match[3]}", text)


def algorithms() -> dict[Path, str]:
    """A page for each shipped optimizer, as `optdsl show NAME --target latex` prints it."""
    latex = next(target for target in TARGETS if target.name == "latex")
    found = {}
    for unit in shipped_library().units:
        text = section(latex, unit)
        if text is not None:
            found[PAGE.parent / "algorithms" / f"{unit.name.lower()}.md"] = text
    return found


def main() -> None:
    planned = {PAGE: filled(PAGE.read_text(encoding="utf-8")), **algorithms()}
    stale = [p for p, t in planned.items() if not p.exists() or p.read_text("utf-8") != t]
    stale += [p for p in (PAGE.parent / "algorithms").glob("*.md") if p not in planned]
    if sys.argv[1:] == ["--check"]:
        if stale:
            names = ", ".join(sorted(path.name for path in stale))
            raise SystemExit(f"Out of date: {names}. To repair: python docs/tables.py")
    elif sys.argv[1:]:
        raise SystemExit("usage: python docs/tables.py [--check]")
    for path in stale:
        if path not in planned:
            path.unlink()
            continue
        path.parent.mkdir(exist_ok=True)
        path.write_text(planned[path], encoding="utf-8")


if __name__ == "__main__":
    main()
