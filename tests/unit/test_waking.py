"""The loops that wait to be woken: whatever comes at the same moment, they can be stopped."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from daemon import loops
from daemon.loops import Sealer
from finetune.artifacts import ArtifactStore
from finetune.runner import Runner, RunnerRules
from learning.batching import BatchRules
from learning.lines import ModelLines
from learning.sampling import SplitRules
from tests.builders import NOON


async def nothing(*_: object) -> Sequence[Any]:
    return []


def a_runner(tmp_path: Path) -> Runner:
    store: Any = SimpleNamespace(cancelling=nothing, due=nothing)
    leases: Any = SimpleNamespace(
        release_all=nothing, lapsed=nothing, renew=nothing, duration=timedelta(hours=1)
    )
    return Runner(
        store=store,
        leases=leases,
        lines=ModelLines([]),
        workbenches={},
        artifacts=ArtifactStore(tmp_path),
        dataset_dir=tmp_path,
        work_dir=tmp_path,
        rules=RunnerRules,
        announce=lambda fact: None,
        clock=lambda: NOON,
    )


def a_sealer(_: Path) -> Sealer:
    store: Any = SimpleNamespace(
        queue=SimpleNamespace(waiting_task_types=nothing),
        batch_sizes=SimpleNamespace(current=nothing),
    )
    return Sealer(
        store, ModelLines([]), BatchRules, lambda _: SplitRules(), lambda fact: None, lambda: NOON
    )


async def turns(n: int) -> None:
    """Let everything that is ready go `n` steps further."""
    for _ in range(n):
        await asyncio.sleep(0)


@pytest.mark.parametrize("turns_between", range(6))
@pytest.mark.parametrize("make", [a_runner, a_sealer])
async def test_one_that_is_woken_while_it_is_stopped_stops(
    make: Callable[[Path], Runner | Sealer],
    turns_between: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loops, "SEAL_PAUSE_SECONDS", 0)
    loop = make(tmp_path)
    run: Coroutine[Any, Any, None] = loop.run()
    work = asyncio.create_task(run)
    await turns(20)

    loop.wake()
    await turns(turns_between)
    work.cancel()

    await turns(20)
    assert work.cancelled()
