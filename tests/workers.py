"""How the tests are spread over several processes: `pytest -n`, which `make test` asks for.

A file is one unit of work, so that what its tests share is made once; only the tests of the
files in APART may each go elsewhere. What takes longest begins first, so that no process is
left with it at the end. Each process has a Kafka and a PostgreSQL of its own, as some tests
take those down. All processes must find the same tests: what names a test, such as a parameter,
may depend neither on the time nor on the order of a set.
"""

import os
from pathlib import Path

import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling

TESTS = Path(__file__).parent

# In minutes at least, longest first.
LONGEST = (
    "acceptance/test_demo.py",
    "contract/test_loop_at_random.py",
    "acceptance/test_crash_points.py",
    "acceptance/test_kill_storm.py",
    "contract/test_openai_chaos.py",
    "acceptance/test_training_settings.py",
    "acceptance/test_distributed_hardships.py",
    "acceptance/test_distributed_training.py",
    "acceptance/test_cli.py",
    "acceptance/test_finetune_command.py",
)
APART = ("contract/test_loop_at_random.py", "acceptance/test_crash_points.py")

MEMORY_OF_ONE = 3 * 1024**3
"""Bytes: the libraries for training twice, in the tests' process and a trainer, and a broker."""


def how_many() -> int:
    """One more than there are cores, as many tests wait; fewer where memory would not do."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min((cores or 1) + 1, memory // MEMORY_OF_ONE))


def longest_first(items: list[pytest.Item]) -> None:
    """Sort what was collected; the rest keeps its order."""
    places = {TESTS / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


class ByFile(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
    """Gives out files in the order of collection, and single tests of those in APART."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return nodeid if file.removeprefix(f"{TESTS.name}/") in APART else file
