"""A module's text -> the same with the imports that it needs: what it mentions decides."""

from __future__ import annotations

import ast
from collections.abc import Mapping

from optdsl.runtime import RUNTIME, STANDARD, TORCH
from optdsl.targets.layout import laid_out

FUTURE = "from __future__ import annotations\n"


def with_imports(
    text: str, package: Mapping[str, str], runtime: Mapping[str, str] = RUNTIME
) -> str:
    """The text of a module with its imports behind the first line that every module has.

    Args:
        text: a module that begins with a docstring and `from __future__ import annotations`.
        package: more names and the modules of this package that define them.
        runtime: what all modules of the kind share, of this package and of torch.
    """
    tree = ast.parse(text)
    mentioned = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    known = {n.name for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)}
    known |= {a.asname or a.name for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)
              for a in n.names}  # fmt: skip
    needed = mentioned - known
    ours = {name: module for name, module in runtime.items() if module.startswith(".")}
    torch = {name: module for name, module in runtime.items() if name not in ours}
    origins = (STANDARD, {**TORCH, **torch}, {**package, **ours})
    blocks = [_block(needed, origin) for origin in origins]
    lines = "".join(f"\n{block}" for block in blocks if block)
    return text.replace(FUTURE, FUTURE + lines, 1)


def _block(needed: set[str], origin: Mapping[str, str]) -> str:
    """One group of imports in isort's order: whole modules first, then by module and name."""
    found = sorted(needed & origin.keys(), key=lambda n: (not n.isupper(), n.islower(), n))
    whole = [f"import {name}" for name in found if not origin[name]]
    modules = sorted({origin[name] for name in found if origin[name]})
    names = {module: ", ".join(n for n in found if origin[n] == module) for module in modules}
    parts = [f"from {module} import {listed}" for module, listed in names.items()]
    return "".join(f"{line}\n" for text in (*whole, *parts) for line in laid_out(text, 0))
