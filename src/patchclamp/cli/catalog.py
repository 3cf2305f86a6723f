"""The names and first lines of all methods, read from their source: `--help` need not wait for torch."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from patchclamp.evidence import method as registry


def summaries() -> dict[str, str]:
    """Each method's summary by name, as far as it is written `@method("name", …) def …` in its module.

    A method registered in another way is only found by importing: `evidence.method.methods()`."""
    modules = [
        *registry.BUILT_IN,
        *(entry.module for entry in entry_points(group=registry.ENTRY_POINT_GROUP)),
    ]
    return dict(sorted(pair for module in modules for pair in _declared(module)))


def _declared(module: str) -> Iterator[tuple[str, str]]:
    try:
        spec = find_spec(module)
        tree = ast.parse(Path(spec.origin).read_bytes()) if spec and spec.origin else ast.Module([], [])
    except (ImportError, OSError, SyntaxError):  # said when the method is asked for
        return
    for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
        for decorator in function.decorator_list:
            match decorator:
                case ast.Call(
                    func=ast.Name(id="method") | ast.Attribute(attr="method"),
                    args=[ast.Constant(value=str(name)), *_],
                ):
                    yield name, (ast.get_docstring(function) or "").split("\n")[0]
