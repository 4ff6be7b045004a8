"""The names of all moments at which the product lets a test end it, read from its source."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FENCED = "_write"
"""Of daemon/store/runs.py: makes the transactions of other methods, under a run's lease."""
ROOMS = ("consumers", "daemon", "finetune", "learning", "monitoring")


def all_names() -> list[str]:
    """What learning.failpoints.reached can be called with, in the order of the files.

    Each transaction has two, which daemon/store/database.py names after the method.
    """
    files = (path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))
    return [name for path in files for name in _names_in(ast.parse(path.read_text()))]


def _names_in(tree: ast.Module) -> Iterator[str]:
    for owner in ast.walk(tree):
        if isinstance(owner, ast.ClassDef):
            for method in owner.body:
                if any(_is_transaction(node) for node in ast.walk(method)):
                    assert isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef)
                    if method.name == FENCED:
                        continue
                    yield f"{owner.name}.{method.name} before its commit"
                    yield f"{owner.name}.{method.name} after its commit"
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="reached"), args=[ast.Constant(value=str(name))]):
                yield name


def _is_transaction(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(attr="write", value=ast.Attribute(attr="_database"))):
            return True
        case ast.Call(func=ast.Attribute(attr="_write", value=ast.Name(id="self"))):
            return True
    return False
