"""Check the shape of the house: who may import whom, and that the core stays pure.

Reads the source with `ast` and imports nothing of it; only one test starts Python, to see
what importing the daemon brings along. Each rule is a function from a `House` to a list of
complaints, so that the tests at the end can show every rule a house that breaks it.
"""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("consumers", "daemon", "finetune", "learning", "monitoring")

LEARNING_MAY_IMPORT = {"learning", "numpy", "pydantic", "semver"}
TRAINING_LIBRARIES = {
    "accelerate",
    "bitsandbytes",
    "peft",
    "safetensors",
    "torch",
    "transformers",
    "trl",
}
# Each takes 10 MiB and more of a daemon that imports it.
RARELY_NEEDED = {
    "alembic",
    "detect_secrets",
    "jsonschema",
    "numpy",
    "openai",
    "phonenumbers",
    "psycopg",
    "scipy",
    "tree_sitter",
}
# What a pure module has no use for, beside its own reading of clocks, files and variables.
IMPURE_MODULES = {
    "asyncio",
    "os",
    "shutil",
    "socket",
    "sqlite3",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "urllib.request",
}
IMPURE_NAMES = {
    "datetime.date.today",
    "datetime.datetime.now",
    "datetime.datetime.today",
    "datetime.datetime.utcnow",
    "input",
    "io.open",
    "open",
}


@dataclass(frozen=True)
class Import:
    """One imported thing: `from a.b import c` asks for `a.b.c`, a module or a name in one."""

    target: str
    line: int
    at_module_level: bool

    def within(self, package: str) -> bool:
        return self.target == package or self.target.startswith(f"{package}.")


@dataclass(frozen=True)
class Module:
    """One source file under its dotted name."""

    name: str
    is_package: bool
    tree: ast.Module

    def within(self, package: str) -> bool:
        return self.name == package or self.name.startswith(f"{package}.")

    @cached_property
    def imports(self) -> list[Import]:
        return list(self._imports(self.tree, at_module_level=True))

    def _imports(self, node: ast.AST, *, at_module_level: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.Import | ast.ImportFrom | ast.Call):
                for target in self._targets(child):
                    yield Import(target, child.lineno, at_module_level)
            yield from self._imports(child, at_module_level=at_module_level and not inner)

    def _targets(self, node: ast.Import | ast.ImportFrom | ast.Call) -> list[str]:
        match node:
            case ast.Import(names=names):
                return [alias.name for alias in names]
            case ast.ImportFrom(module=module, names=names, level=level):
                base = self._base(level, module)
                return [f"{base}.{alias.name}" for alias in names]
            case ast.Call(
                func=ast.Name("__import__" | "import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(str(name)), *_],
            ):
                return [name]
        return []

    def _base(self, level: int, module: str | None) -> str:
        if level == 0:
            return module or ""
        up = level - 1 if self.is_package else level
        package = self.name.split(".")[: len(self.name.split(".")) - up]
        return ".".join([*package, module] if module else package)


class House:
    """The first-party modules below a folder, read but not imported."""

    def __init__(self, root: Path) -> None:
        self.modules = {
            module.name: module
            for package in PACKAGES
            for path in sorted((root / package).rglob("*.py"))
            for module in [_read(path, root)]
        }

    def inside(self, *packages: str) -> list[Module]:
        return [m for m in self.modules.values() if any(m.within(p) for p in packages)]

    def outside(self, package: str) -> list[Module]:
        return [m for m in self.modules.values() if not m.within(package)]

    def module_of(self, target: str) -> str | None:
        """The first-party module that an import of `target` asks for, if any."""
        for name in (target, target.rpartition(".")[0]):
            if name in self.modules:
                return name
        return None


def _read(path: Path, root: Path) -> Module:
    parts = path.relative_to(root).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    name = ".".join(parts[:-1] if is_package else parts)
    return Module(name, is_package, ast.parse(path.read_text(), filename=str(path)))


def learning_importing_more_than_it_may(house: House) -> list[str]:
    return [
        f"{module.name}:{each.line} imports {each.target}"
        for module in house.inside("learning")
        for each in module.imports
        if (top := each.target.partition(".")[0]) not in LEARNING_MAY_IMPORT
        and top not in sys.stdlib_module_names
    ]


def rooms_importing_each_other(house: House) -> list[str]:
    rooms = ("consumers", "finetune", "monitoring")
    return [
        f"{module.name}:{each.line} imports {each.target}"
        for room in rooms
        for module in house.inside(room)
        for each in module.imports
        if any(each.within(other) for other in rooms if other != room)
    ]


def anybody_importing_daemon(house: House) -> list[str]:
    return [
        f"{module.name}:{each.line} imports {each.target}"
        for module in house.outside("daemon")
        for each in module.imports
        if each.within("daemon")
    ]


def packages_importing_tests_or_benchmarks(house: House) -> list[str]:
    return [
        f"{module.name}:{each.line} imports {each.target}"
        for module in house.modules.values()
        for each in module.imports
        if each.within("tests") or each.within("bench")
    ]


def training_libraries_outside_the_trainer(house: House) -> list[str]:
    return [
        f"{module.name}:{each.line} imports {each.target}"
        for module in house.outside("finetune.trainer")
        for each in module.imports
        if each.target.partition(".")[0] in TRAINING_LIBRARIES
    ]


def trainer_imported_past_its_protocol(house: House) -> list[str]:
    return [
        f"{module.name}:{each.line} imports {each.target}"
        for module in house.outside("finetune.trainer")
        for each in module.imports
        if each.within("finetune.trainer") and not each.within("finetune.trainer.protocol")
    ]


def import_cycles(house: House) -> list[str]:
    """Each group of modules that all reach one another by imports at module level.

    Only what is asked for by name counts: that Python runs `a/__init__.py` before `a.b`
    would make a cycle of every package that re-exports its own modules.
    """
    graph = {
        module.name: {
            target
            for each in module.imports
            if each.at_module_level
            and (target := house.module_of(each.target)) is not None
            and target != module.name
        }
        for module in house.modules.values()
    }
    reach = {name: _reachable(name, graph) for name in graph}
    groups = {
        frozenset(other for other in reach[name] if name in reach[other])
        for name in graph
        if name in reach[name]
    }
    return sorted(" <-> ".join(sorted(group)) for group in groups)


def _reachable(start: str, graph: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    to_visit = [start]
    while to_visit:
        for target in graph[to_visit.pop()] - found:
            found.add(target)
            to_visit.append(target)
    return found


def learning_that_awaits(house: House) -> list[str]:
    """A port may promise an async method; nothing here may have the body of one."""
    return [
        f"{module.name}:{node.lineno} has {type(node).__name__}"
        for module in house.inside("learning")
        for node in ast.walk(module.tree)
        if isinstance(node, ast.AsyncFor | ast.AsyncWith | ast.Await)
        or (isinstance(node, ast.AsyncFunctionDef) and not _is_only_promised(node))
    ]


def _is_only_promised(function: ast.AsyncFunctionDef) -> bool:
    return all(
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        for statement in function.body
    )


def learning_that_does_io_or_reads_a_clock(house: House) -> list[str]:
    found = []
    for module in house.inside("learning"):
        found += [
            f"{module.name}:{each.line} imports {each.target}"
            for each in module.imports
            if any(each.within(impure) for impure in IMPURE_MODULES)
        ]
        origins = _origins(module)
        found += [
            f"{module.name}:{node.lineno} uses {name}"
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Name | ast.Attribute)
            and (name := _full_name(node, origins)) in IMPURE_NAMES
        ]
    return found


def _origins(module: Module) -> dict[str, str]:
    """What each imported name of a module stands for: {"dt": "datetime.datetime"}."""
    origins: dict[str, str] = {}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            origins |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            origins |= {
                alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names
            }
    return origins


def _full_name(node: ast.expr, origins: dict[str, str]) -> str | None:
    match node:
        case ast.Name(id=name):
            return origins.get(name, name)
        case ast.Attribute(value=value, attr=attribute):
            before = _full_name(value, origins)
            return None if before is None else f"{before}.{attribute}"
    return None


def modules_without_a_header(house: House) -> list[str]:
    return [
        module.name
        for module in house.modules.values()
        if (module.tree.body or not module.is_package) and not ast.get_docstring(module.tree)
    ]


@pytest.fixture(scope="module")
def house() -> House:
    house = House(ROOT)
    assert {module.partition(".")[0] for module in house.modules} == set(PACKAGES)
    return house


def test_learning_imports_only_the_standard_library_and_its_few_libraries(house: House) -> None:
    assert learning_importing_more_than_it_may(house) == []


def test_consumers_finetune_and_monitoring_do_not_import_each_other(house: House) -> None:
    assert rooms_importing_each_other(house) == []


def test_nobody_imports_daemon(house: House) -> None:
    assert anybody_importing_daemon(house) == []


def test_no_package_imports_tests_or_benchmarks(house: House) -> None:
    assert packages_importing_tests_or_benchmarks(house) == []


def test_only_the_trainer_imports_training_libraries(house: House) -> None:
    assert training_libraries_outside_the_trainer(house) == []


def test_the_trainer_is_known_outside_by_its_protocol_only(house: House) -> None:
    assert trainer_imported_past_its_protocol(house) == []


def test_there_are_no_import_cycles(house: House) -> None:
    assert import_cycles(house) == []


def test_learning_never_awaits(house: House) -> None:
    assert learning_that_awaits(house) == []


def test_learning_does_no_io_and_reads_no_clock(house: House) -> None:
    assert learning_that_does_io_or_reads_a_clock(house) == []


def test_every_module_says_what_it_is_for(house: House) -> None:
    assert modules_without_a_header(house) == []


def test_importing_the_daemon_loads_nothing_that_few_daemons_need() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, daemon.app; print(*sys.modules, sep='\\n')"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert loaded.returncode == 0, loaded.stderr
    names = set(loaded.stdout.split())
    assert "daemon.app" in names
    assert names & (TRAINING_LIBRARIES | RARELY_NEEDED) == set()


Rule = Callable[[House], list[str]]

BROKEN_HOUSES: list[tuple[Rule, dict[str, str], list[str]]] = [
    (
        learning_importing_more_than_it_may,
        {
            "learning/gate.py": "import json, numpy\nimport httpx",
            "learning/ports.py": "from consumers import wire",
            "learning/deep.py": "def late():\n    from sqlalchemy import select",
            "learning/sly.py": "import importlib\nimportlib.import_module('torch')",
        },
        [
            "learning.deep:2 imports sqlalchemy.select",
            "learning.gate:2 imports httpx",
            "learning.ports:1 imports consumers.wire",
            "learning.sly:2 imports torch",
        ],
    ),
    (
        rooms_importing_each_other,
        {
            "consumers/wire.py": "import learning.events, aiokafka\nimport monitoring.metrics",
            "finetune/runner.py": "def late():\n    from consumers.ingest import Ingest",
            "monitoring/health.py": "from finetune import runner\nfrom monitoring import alerts",
        },
        [
            "consumers.wire:2 imports monitoring.metrics",
            "finetune.runner:2 imports consumers.ingest.Ingest",
            "monitoring.health:1 imports finetune.runner",
        ],
    ),
    (
        anybody_importing_daemon,
        {
            "consumers/wire.py": "from daemon.settings import Settings",
            "learning/gate.py": "import daemon",
            "daemon/app.py": "from daemon import loops",
        },
        [
            "consumers.wire:1 imports daemon.settings.Settings",
            "learning.gate:1 imports daemon",
        ],
    ),
    (
        packages_importing_tests_or_benchmarks,
        {"daemon/demo/stream.py": "from tests.services import kafka\nimport bench"},
        ["daemon.demo.stream:1 imports tests.services.kafka", "daemon.demo.stream:2 imports bench"],
    ),
    (
        training_libraries_outside_the_trainer,
        {
            "finetune/trainer/train.py": "import torch",
            "finetune/artifacts.py": "def late():\n    import safetensors.torch",
            "daemon/cli.py": "if True:\n    from transformers import AutoTokenizer",
        },
        [
            "daemon.cli:2 imports transformers.AutoTokenizer",
            "finetune.artifacts:2 imports safetensors.torch",
        ],
    ),
    (
        trainer_imported_past_its_protocol,
        {
            "finetune/trainer/train.py": "from finetune.trainer import tiny_model",
            "finetune/local_provider.py": "from .trainer.protocol import Progress",
            "finetune/runner.py": "from .trainer import protocol, train",
            "daemon/cli.py": "import finetune.trainer.train\nimport finetune.trainer",
        },
        [
            "daemon.cli:1 imports finetune.trainer.train",
            "daemon.cli:2 imports finetune.trainer",
            "finetune.runner:1 imports finetune.trainer.train",
        ],
    ),
    (
        import_cycles,
        {
            "learning/a.py": "from learning.b import B",
            "learning/b.py": "from learning import c",
            "learning/c.py": "if True:\n    from .a import A",
            "learning/d.py": "from learning import a",
            # Not cycles: one direction waits in a function; a package shows its own module.
            "learning/e.py": "import learning.f",
            "learning/f.py": "def late():\n    import learning.e",
            "learning/shop/__init__.py": "from learning.shop.shelf import Shelf",
            "learning/shop/shelf.py": "from learning.shop.board import Board",
            "learning/shop/board.py": "",
            "daemon/x.py": "from daemon import y",
            "daemon/y.py": "from daemon.x import X",
        },
        ["daemon.x <-> daemon.y", "learning.a <-> learning.b <-> learning.c"],
    ),
    (
        learning_that_awaits,
        {
            "learning/gate.py": "async def judge(source):\n    await source.get()",
            "learning/policy.py": "async def judge():\n    return 1",
            "learning/ports.py": "class Port:\n    async def launch(self): ...",
            "consumers/wire.py": "async def fine(): ...",
        },
        [
            "learning.gate:1 has AsyncFunctionDef",
            "learning.gate:2 has Await",
            "learning.policy:1 has AsyncFunctionDef",
        ],
    ),
    (
        learning_that_does_io_or_reads_a_clock,
        {
            "learning/a.py": "from datetime import datetime as dt\nstarted = dt.now()",
            "learning/b.py": "import datetime\nclock = datetime.datetime.utcnow",
            "learning/c.py": "import os\nhome = os.environ",
            "learning/d.py": "from time import time",
            "learning/e.py": "def read(path):\n    return open(path)",
            "learning/f.py": "def age(clock, made_at):\n    return clock.now() - made_at",
            "consumers/wire.py": "import time",
        },
        [
            "learning.a:2 uses datetime.datetime.now",
            "learning.b:2 uses datetime.datetime.utcnow",
            "learning.c:1 imports os",
            "learning.d:1 imports time.time",
            "learning.e:2 uses open",
        ],
    ),
    (
        modules_without_a_header,
        {
            "learning/__init__.py": "",
            "learning/gate.py": "import json",
            "learning/policy.py": '"""Says what it is for."""\nimport json',
            "consumers/__init__.py": "from consumers import wire",
            "consumers/wire.py": "",
        },
        ["consumers", "consumers.wire", "learning.gate"],
    ),
]


@pytest.mark.parametrize(
    ("rule", "files", "complaints"),
    BROKEN_HOUSES,
    ids=[rule.__name__ for rule, _, _ in BROKEN_HOUSES],
)
def test_a_broken_house_is_noticed(
    rule: Rule, files: dict[str, str], complaints: list[str], tmp_path: Path
) -> None:
    for name, source in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    assert sorted(rule(House(tmp_path))) == complaints
