"""What a person asks of a running daemon, on a real store and real files."""

import asyncio
import threading
from pathlib import Path

import pytest

from consumers.ingest import Ingest
from daemon.operations import DaemonOperations, DamagedVersionError
from finetune.artifacts import ArtifactStore
from learning.errors import ConflictError
from learning.facts import CandidateDecided, Fact, Promoted
from learning.gate import Outcome
from learning.lines import ModelLines
from tests.builders import JUDGE
from tests.contract.driver import ALL_TRAIN, Driver
from tests.contract.floor import Floor
from tests.screening import no_screening


@pytest.fixture
def floor(drive: Driver, tmp_path: Path) -> Floor:
    return Floor(drive, tmp_path)


@pytest.fixture
def operations(floor: Floor) -> DaemonOperations:
    store, lines = floor.drive.store, ModelLines([floor.drive.line])

    def announce(fact: Fact) -> None:
        floor.facts.append(fact)

    ingest = Ingest(store.intake, lines, JUDGE, announce, floor.drive.clock)
    return DaemonOperations(
        store,
        ingest,
        floor.artifacts,
        lines,
        lambda _: ALL_TRAIN,
        lambda: 100,
        announce,
        floor.drive.clock,
        JUDGE,
        no_screening(store, floor.drive.clock),
    )


async def candidate(floor: Floor) -> tuple[str, Path]:
    """A version that the gate neither promoted nor refused, and its folder."""
    floor.facts.clear()
    run_id = await floor.sealed()
    async with floor.at_work():
        decided = await floor.until(CandidateDecided)
    assert decided.outcome == Outcome.ABSTAIN
    artifact = (await floor.drive.store.runs.get(run_id)).artifact
    assert artifact is not None
    return decided.version, floor.artifacts.path(artifact)


async def promote(operations: DaemonOperations, version: str) -> Promoted:
    return await operations.promote("normalize", version, force=True, reason="ok", actor="ann")


def damage(folder: Path) -> str:
    """Take a file away; returns the words that name it."""
    weights = folder / "adapter_model.safetensors"
    weights.unlink()
    return rf"{weights.name}: is missing; nothing of it is loaded: restore"


async def test_a_damaged_version_is_not_promoted_even_by_force(
    floor: Floor, operations: DaemonOperations
) -> None:
    version, folder = await candidate(floor)
    named = damage(folder)

    with pytest.raises(DamagedVersionError, match=named):
        await promote(operations, version)

    assert await floor.drive.champion() == "1.0.0"


async def test_files_are_hashed_beside_other_work_and_one_version_at_a_time(
    floor: Floor, operations: DaemonOperations, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, _ = await candidate(floor)
    begun, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    at_once: list[int] = []

    def slow(_store: ArtifactStore, _model: object) -> None:
        at_once.append(1)
        loop.call_soon_threadsafe(begun.set)
        assert go_on.wait(60)

    monkeypatch.setattr(ArtifactStore, "verify_model", slow)
    first = asyncio.create_task(promote(operations, version))
    second = asyncio.create_task(promote(operations, version))
    await begun.wait()  # the loop goes on
    await floor.drive.store.registry.loadable("normalize", version)
    assert at_once == [1]
    go_on.set()
    answers = await asyncio.gather(first, second, return_exceptions=True)
    assert sum(isinstance(answer, Promoted) for answer in answers) == 1
    assert sum(isinstance(answer, ConflictError) for answer in answers) == 1
    assert at_once == [1, 1]


@pytest.mark.parametrize("to", [None, "1.0.1"])
async def test_a_rollback_does_not_lead_to_a_damaged_version(
    floor: Floor, operations: DaemonOperations, to: str | None
) -> None:
    version, folder = await candidate(floor)
    await promote(operations, version)
    later, _ = await candidate(floor)
    await promote(operations, later)
    named = damage(folder)

    with pytest.raises(DamagedVersionError, match=named):
        await operations.rollback("normalize", to, reason="", actor="ann")

    assert await floor.drive.champion() == "1.0.2"


async def test_a_rollback_past_a_damaged_version_is_possible(
    floor: Floor, operations: DaemonOperations
) -> None:
    version, folder = await candidate(floor)
    await promote(operations, version)
    damage(folder)

    rolled_back = await operations.rollback("normalize", None, reason="", actor="ann")

    assert rolled_back.version == "1.0.0"
