"""How the tests are shared out over processes, and that these do not take each other's ports."""

import subprocess
import sys

import pytest

from tests.services.ports import free_ports
from tests.workers import APART, LONGEST, TESTS, ByFile, how_many


def test_the_files_that_are_named_are_there() -> None:
    assert set(APART) <= set(LONGEST)
    assert [name for name in LONGEST if not (TESTS / name).is_file()] == []


@pytest.mark.parametrize(
    ("nodeid", "unit"),
    [
        ("tests/unit/test_gate.py::test_a[x::y]", "tests/unit/test_gate.py"),
        (f"tests/{APART[0]}::test_a[x]", f"tests/{APART[0]}::test_a[x]"),
    ],
)
def test_a_file_stays_together_unless_it_is_named(nodeid: str, unit: str) -> None:
    assert ByFile._split_scope(ByFile.__new__(ByFile), nodeid) == unit


def test_there_is_always_one_process() -> None:
    assert how_many() >= 1


def test_a_port_is_its_first_callers_own() -> None:
    (mine,) = free_ports(1)
    program = f"""
from tests.services import ports
ports._PORTS = range({mine}, {mine + 1})
try:
    ports.free_ports(1)
except OSError as error:
    print(error)
"""
    said = subprocess.run(
        [sys.executable, "-c", program],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == f"no 1 free ports from {mine} to {mine + 1}\n"
