"""The shape of the project: who imports whom, what templates may say, which names are taken."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from jinja2 import nodes
from jinja2.meta import find_undeclared_variables

import generated
from generated._optimizer import EXECUTION_FLAGS
from generated.lr_scheduler import ConstantLR, _scheduler
from optdsl import build, emit, resources
from optdsl.ir import FLAGS
from optdsl.resolve.average import AverageResolver
from optdsl.resolve.schedule import ScheduleResolver
from optdsl.resolve.scope import GENERATED, IMPORTED, MEANINGS, PYTHON
from optdsl.targets import TARGETS

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "optdsl"

# From the bottom to the top: a module imports from lines above its own, or from its own package.
LAYERS = (
    ("source", "resources", "runtime"),
    ("diagnostics",),
    ("syntax", "ops"),
    ("ir", "unparse"),
    ("interpret", "printing", "passes"),
    ("parse", "resolve"),
    ("pipeline", "emit"),
    ("targets",),
    ("build", "cache", "plot"),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(module: str) -> str:
    """`optdsl.targets.eager.lower` -> `targets`"""
    return module.split(".")[1]


SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.stem in RANK)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_module_imports_only_from_layers_below(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for module in imports(path):
        if module.startswith("optdsl.") and room(module) in RANK and room(module) != own:
            assert RANK[room(module)] < RANK[own], f"{own} imports {module}"


def test_every_module_has_a_layer() -> None:
    alone = {"__init__", "report"}  # a tool beside the compiler, which nothing imports
    rooms = {p.stem for p in PACKAGE.glob("*.py")}
    rooms |= {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").is_file()}
    assert rooms - alone <= set(RANK)


def test_passes_and_targets_do_not_import_the_front_end() -> None:
    for folder in ("passes", "targets"):
        for path in (PACKAGE / folder).rglob("*.py"):
            rooms = {room(m) for m in imports(path) if m.startswith("optdsl.")}
            assert not rooms & {"parse", "resolve", "syntax", "unparse", "pipeline"}, path


@pytest.mark.parametrize("folder", ["generated", "templates/package"])
def test_what_users_import_never_imports_the_compiler(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        assert not any(m.split(".")[0] == "optdsl" for m in imports(path)), path


@pytest.mark.parametrize("folder", ["generated", "templates/package"])
def test_what_users_import_needs_torch_alone(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        found = {m.split(".")[0] for m in imports(path)}
        assert "numpy" not in found, path
        assert "triton" not in found or "_triton" in path.parts, path


def test_every_module_says_what_it_is() -> None:
    for path in (*PACKAGE.rglob("*.py"), *(ROOT / "templates").rglob("*.py")):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


# Templates

VIEWS = {
    target.template: importlib.import_module(f"optdsl.targets.{target.name}.view").View
    for target in TARGETS
} | {"package.py.jinja": build.PackageView}
TEMPLATES = sorted(p.name for p in resources.templates().glob("*.jinja"))


def parsed(template: str) -> nodes.Template:
    text = (resources.templates() / template).read_text(encoding="utf-8")
    return emit.environment().parse(text)


def is_field(node: nodes.Node) -> bool:
    """`name` or `name.attribute`"""
    if isinstance(node, nodes.Getattr):
        return isinstance(node.node, nodes.Name)
    return isinstance(node, nodes.Name)


def is_allowed(node: nodes.Node) -> bool:
    match node:
        case nodes.Template() | nodes.Output() | nodes.TemplateData() | nodes.Name():
            return True
        case nodes.Getattr():
            return is_field(node)
        case nodes.For():
            plain = node.test is None and not node.else_ and not node.recursive
            return plain and is_field(node.iter) and isinstance(node.target, nodes.Name)
        case nodes.If():
            return is_field(node.test) and not node.elif_
        case nodes.Include():
            return isinstance(node.template, nodes.Const)
        case nodes.Const():
            return True
        case _:
            return False


@pytest.mark.parametrize("template", TEMPLATES)
def test_template_computes_nothing(template: str) -> None:
    tree = parsed(template)
    for node in (tree, *tree.find_all(nodes.Node)):
        assert is_allowed(node), f"{template}:{node.lineno}: {node}"


def test_every_template_has_a_view() -> None:
    assert sorted(VIEWS) == TEMPLATES


@pytest.mark.parametrize("template", TEMPLATES)
def test_placeholders_are_the_fields_of_the_view(template: str) -> None:
    fields = {f.name for f in dataclasses.fields(VIEWS[template])}
    assert find_undeclared_variables(parsed(template)) == fields


def element(type_: object) -> object:
    """`tuple[Entry, ...]` -> `Entry`"""
    arguments = typing.get_args(type_)
    return arguments[0] if arguments else type_


def attributes(node: nodes.Node, types: dict[str, object]) -> Iterator[tuple[object, str]]:
    """Every attribute that a template reads, with the type it reads it from."""
    if isinstance(node, nodes.Getattr) and isinstance(node.node, nodes.Name):
        yield types[node.node.name], node.attr
    if isinstance(node, nodes.For):
        assert isinstance(node.target, nodes.Name)
        yield from attributes(node.iter, types)
        if isinstance(node.iter, nodes.Name):
            of = types.get(node.iter.name)
        else:
            assert isinstance(node.iter, nodes.Getattr)
            assert isinstance(node.iter.node, nodes.Name)
            of = typing.get_type_hints(types[node.iter.node.name])[node.iter.attr]
        inner = types | {node.target.name: element(of), "loop": object}
        for child in node.body:
            yield from attributes(child, inner)
        return
    for child in node.iter_child_nodes():
        yield from attributes(child, types)


def records_in(view: type) -> set[object]:
    """The dataclasses that a view's lists hold, and those that these hold."""
    hints = typing.get_type_hints(view).values()
    own = {t for t in map(element, hints) if isinstance(t, type) and dataclasses.is_dataclass(t)}
    return own.union(*map(records_in, own))


@pytest.mark.parametrize("template", TEMPLATES)
def test_attributes_are_the_fields_of_what_lists_hold(template: str) -> None:
    view = VIEWS[template]
    hints = typing.get_type_hints(view)
    used: dict[object, set[str]] = {}
    for type_, attribute in attributes(parsed(template), dict(hints)):
        used.setdefault(type_, set()).add(attribute)
    assert set(used) == records_in(view)
    for record in used:
        assert dataclasses.is_dataclass(record)
        assert used[record] == {f.name for f in dataclasses.fields(record)}, record


@pytest.mark.parametrize("view", VIEWS.values(), ids=lambda v: v.__module__)
def test_view_is_frozen_data(view: type) -> None:
    assert dataclasses.is_dataclass(view)
    parameters = view.__dataclass_params__  # type: ignore[attr-defined]
    assert parameters.frozen
    own = {name for name, value in vars(view).items() if callable(value)}
    assert all(name.startswith("__") for name in own), "a view computes nothing"


# Names


def free_names(function: ast.FunctionDef | ast.Lambda) -> set[str]:
    """The names that a function takes from its module or from Python."""
    body = function.body if isinstance(function, ast.FunctionDef) else [function.body]
    found = [n for part in body for n in ast.walk(part) if isinstance(n, ast.Name)]
    stored = {n.id for n in found if isinstance(n.ctx, ast.Store)}
    given = {a.arg for a in (*function.args.args, *function.args.kwonlyargs)}
    free = {n.id for n in found if isinstance(n.ctx, ast.Load)} - stored - given
    return {name for name in free if not name.startswith("_")}  # no spec can have such a name


GENERATED_MODULES = [
    p for p in sorted((ROOT / "generated").glob("*.py")) if not p.stem.startswith("_")
]


@pytest.mark.parametrize("path", GENERATED_MODULES, ids=lambda p: p.stem)
def test_names_that_generated_functions_use_are_refused_in_specs(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.Lambda)]
    free = {name for f in functions for name in free_names(f)}
    assert free <= GENERATED | PYTHON | set(MEANINGS)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "generated" / "lr_scheduler").glob("[a-z]*.py")), ids=lambda p: p.stem
)
def test_names_that_generated_schedules_use_are_refused_in_specs(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    free = {name for f in functions for name in free_names(f)}
    assert free <= GENERATED | PYTHON | set(MEANINGS) | ScheduleResolver.TAKEN


@pytest.mark.parametrize(
    "path", sorted((ROOT / "generated" / "swa_utils").glob("[a-z]*.py")), ids=lambda p: p.stem
)
def test_names_that_generated_averages_use_are_refused_in_specs(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    free = {name for f in functions for name in free_names(f) if name.islower()}
    given = {a.arg for f in functions for a in f.args.args if not f.name.startswith("__")}
    taken = {ref.name for ref in AverageResolver.GIVEN} | set(AverageResolver.TAKEN)
    assert free | given <= GENERATED | PYTHON | set(MEANINGS) | taken


def imported_classes(path: Path) -> set[str]:
    """The names in capitals that a module takes from Python, torch and the runtime's modules."""
    found = [
        n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.ImportFrom)
    ]
    shared = [n for n in found if n.level == 0 or (n.module or "").startswith("_")]
    return {a.name for n in shared for a in n.names if not a.name.islower()}


@pytest.mark.parametrize(
    "path",
    [p for p in sorted((ROOT / "generated").rglob("[a-z]*.py")) if p.parent.name != "_triton"],
    ids=lambda p: p.relative_to(ROOT / "generated").as_posix(),
)
def test_no_definition_has_the_name_of_a_class_that_its_module_imports(path: Path) -> None:
    assert {name.lower() for name in imported_classes(path)} <= IMPORTED


def test_no_definition_has_the_name_of_what_a_package_has_beside_definitions() -> None:
    packages = (generated, generated.lr_scheduler, generated.swa_utils)
    beside = {name.lower() for package in packages for name in package.__all__}
    shipped = {p.stem for p in resources.specs().rglob("*.opt")}
    assert beside - shipped - IMPORTED == set()


def test_nothing_is_kept_under_the_name_of_an_attribute_that_every_schedule_has() -> None:
    bases = (_scheduler.ChainScheduler, _scheduler.ClosedScheduler, _scheduler.MetricScheduler)
    names = {name for base in bases for name in dir(base) if not name.startswith("__")}
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = ConstantLR(optimizer)
    names |= set(vars(schedule)) - set(inspect.signature(ConstantLR).parameters)
    known = ScheduleResolver.PRIVATE | ScheduleResolver.TAKEN | {"optimizer", "last_epoch"}
    assert names - known == {"fractional"}  # a word of the language, which nothing sets


def test_checkpoints_keep_every_flag_but_the_one_that_changes_what_is_computed() -> None:
    assert sorted(EXECUTION_FLAGS) == sorted(set(FLAGS) - {"maximize"})
