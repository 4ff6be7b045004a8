"""The names of all moments at which the product lets a test end it, read from its source."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FENCED = "_write"
"""Makes the transactions of the other methods, under a run's lease: daemon/store/runs.py."""
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
            for method in _transactions_of(owner):
                yield f"{owner.name}.{method} before its commit"
                yield f"{owner.name}.{method} after its commit"
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="reached"), args=[ast.Constant(value=str(name))]):
                yield name


def _transactions_of(owner: ast.ClassDef) -> Iterator[str]:
    """Its methods that make one; where one of them makes those of the others, these others."""
    methods = [one for one in owner.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    own = [method for method in methods if any(map(_is_transaction, ast.walk(method)))]
    is_fenced = FENCED in (method.name for method in own)
    for method in methods:
        fenced = is_fenced and any(map(_is_fenced_transaction, ast.walk(method)))
        if (method in own or fenced) and method.name != FENCED:
            yield method.name


def _is_transaction(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(attr="write", value=ast.Attribute(attr="_database"))):
            return True
        case ast.Call(func=ast.Attribute(attr="write", value=ast.Name(id="self"))):
            return True  # the database's own: its migration
    return False


def _is_fenced_transaction(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(attr=name, value=ast.Name(id="self"))):
            return name == FENCED
    return False
