"""The source code that one family's kernels are made of, in a form that is the same on every version of Python.

Starts at `relax_model/kernels/*/FAMILY.py`, where the registry looks, and follows imports. A file of kernels counts as
a whole; of any other file of `relax_model` only the definitions that are imported, and those that they use, count.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_PACKAGE, _KERNELS = "relax_model", "relax_model.kernels"
# It finds kernels and has none: a new operator does not bear on the others' times.
_REGISTRY = "relax_model.kernels.registry"


def kernel_sources(family: str, package: Path) -> dict[str, str]:
    """Module, or module and definition, → its code in canonical form. `package` is the folder of `relax_model`."""
    walk = _Walk(package)
    for root in sorted((package / "kernels").glob(f"*/{family}.py")):
        walk.add_module(f"{_KERNELS}.{root.parent.name}.{family}")
    return walk.found


class _Walk:
    def __init__(self, package: Path) -> None:
        self._package = package
        self.found: dict[str, str] = {}

    def add_module(self, module: str) -> None:
        if module in self.found or module == _REGISTRY:
            return
        tree = self._tree(module)
        self.found[module] = _canonical(tree)
        for node in ast.walk(tree):
            self._follow(node)

    def _add_definition(self, module: str, name: str) -> None:
        key = f"{module}:{name}"
        statements = [each for each in self._tree(module).body if name in _bound(each)]
        if key in self.found or not statements:  # Python's own names and local ones have no statement here
            return
        self.found[key] = "\n".join(map(canonical, statements))
        for node in (node for statement in statements for node in ast.walk(statement)):
            self._follow(node, name if isinstance(node, ast.ImportFrom) else None)
            if isinstance(node, ast.Name):
                self._add_definition(module, node.id)

    def _follow(self, node: ast.AST, only: str | None = None) -> None:
        if isinstance(node, ast.Import):
            assert not any(each.name.startswith(_PACKAGE) for each in node.names), "imported by name, not as a whole"
        if not isinstance(node, ast.ImportFrom) or node.module is None or node.module.split(".")[0] != _PACKAGE:
            return
        for each in node.names:
            if only not in (None, each.asname or each.name):
                continue
            if self._path(f"{node.module}.{each.name}").exists():
                self.add_module(f"{node.module}.{each.name}")
            elif f"{node.module}.".startswith(f"{_KERNELS}."):
                self.add_module(node.module)
            else:
                self._add_definition(node.module, each.name)

    def _path(self, module: str) -> Path:
        path = self._package.joinpath(*module.split(".")[1:])
        return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")

    def _tree(self, module: str) -> ast.Module:
        return _parse(self._path(module).read_text(encoding="utf-8"))


@cache
def _parse(source: str) -> ast.Module:
    return ast.parse(source)


def _bound(statement: ast.stmt) -> set[str]:
    """The names that a statement of a module defines."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.ImportFrom):
        return {each.asname or each.name for each in statement.names}
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def canonical(node: ast.AST) -> str:
    """The code of a syntax tree as text, without comments, docstrings and formatting.

    `ast.dump` writes, and `ast.unparse` chooses quotes, otherwise from one version of Python to the next.
    """
    return "".join(_pieces(node))


# Of files that were parsed once.
_canonical = cache(canonical)


def _pieces(value: object) -> Iterator[str]:
    if isinstance(value, ast.AST):
        yield f"{type(value).__name__}("
        for name, field in ast.iter_fields(value):
            # Newer versions have more fields, empty where an older one has none; `kind` is the u of u"".
            if name != "kind" and field is not None and field != []:
                yield f"{name}="
                yield from _pieces(_joined(field) if isinstance(value, ast.JoinedStr) else field)
        yield ")"
    elif isinstance(value, list):
        yield "["
        for each in value:
            if not _is_docstring(each):
                yield from _pieces(each)
                yield ","
        yield "]"
    else:
        yield repr(value)


def _is_docstring(node: object) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _joined(values: list[ast.expr]) -> list[ast.expr]:
    """The parts of an f-string with neighbouring texts joined: versions differ in where they part them."""
    joined: list[ast.expr] = []
    for each in values:
        if isinstance(each, ast.Constant) and joined and isinstance(joined[-1], ast.Constant):
            joined[-1] = ast.Constant(joined[-1].value + each.value)
        elif not (isinstance(each, ast.Constant) and each.value == ""):
            joined.append(each)
    return joined
