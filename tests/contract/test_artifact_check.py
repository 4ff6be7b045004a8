"""The versions of a database against the files that were published for them.

Real artifacts in a real directory; on every database that the store runs on.
"""

import shutil
from pathlib import Path

import pytest

from daemon import artifact_check
from daemon.artifact_check import Comparison, compare, recorded
from daemon.installation import ArtifactsElsewhereError, make_artifacts_home
from finetune.artifacts import ArtifactStore
from learning.gate import Outcome
from learning.ports import TrainingOutcome
from tests.builders import output
from tests.contract.driver import PROOF, Driver


class Versions:
    """A line's versions, each with files of its own."""

    def __init__(self, drive: Driver, folder: Path) -> None:
        self._drive, self._folder = drive, folder
        self.artifacts_dir = folder / "artifacts"
        self._artifacts = ArtifactStore(self.artifacts_dir)

    async def add(self, outcome: Outcome) -> Path:
        """One more run all the way to its decision; where its files lie."""
        drive = self._drive
        run_id = await drive.run_of(output(f"task-{len(list(self._folder.iterdir()))}"))
        trained = self._folder / run_id
        trained.mkdir()
        (trained / "adapter_config.json").write_text(f'{{"made_by": "{run_id}"}}')
        published = self._artifacts.publish(run_id, trained)
        record = await drive.begin(run_id)
        await drive.store.runs.adopt(run_id, f"job-{record.attempt}", drive.now)
        await drive.store.runs.finish_training(
            run_id,
            published.name,
            published.manifest_sha256,
            TrainingOutcome(trained, "lora", PROOF, {}),
            drive.now,
        )
        await drive.decide(run_id, outcome)
        return self.artifacts_dir / published.name

    async def compared(self) -> Comparison:
        """With what the database says now."""
        record = await self._drive.store.database.read(recorded)
        return compare(record, self.artifacts_dir)


@pytest.fixture
def published(drive: Driver, tmp_path: Path) -> Versions:
    return Versions(drive, tmp_path / "made")


@pytest.fixture(autouse=True)
def _made(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()


def damage(artifact: Path) -> None:
    """Other bytes, and as many."""
    file = artifact / "adapter_config.json"
    content = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(content.replace(b"made", b"Made"))


async def test_versions_whose_files_are_as_they_were_published_are_counted(
    published: Versions,
) -> None:
    for outcome in (Outcome.PROMOTE, Outcome.REJECT, Outcome.PROMOTE):
        await published.add(outcome)
    found = await published.compared()
    assert (found.n_versions, found.n_looked_at, found.n_hashed) == (3, 3, 3)
    assert (found.faults, found.faults_of_unused) == ([], [])
    assert "the files of 3 versions are there; the contents of 3" in str(found)


async def test_each_version_is_named_whose_files_are_missing_or_differ(
    published: Versions,
) -> None:
    older, champion = [await published.add(Outcome.PROMOTE) for _ in range(2)]
    shutil.rmtree(older)
    damage(champion)
    found = await published.compared()
    said_of_champion, said_of_older = sorted(found.faults, key=lambda said: "superseded" in said)
    assert "(champion)" in said_of_champion
    assert "adapter_config.json has SHA-256" in said_of_champion
    assert older.name in said_of_older
    assert "cannot be read" in said_of_older
    assert "restore the folder from a backup" in str(found)


async def test_what_is_wrong_with_a_refused_candidate_stands_apart(published: Versions) -> None:
    await published.add(Outcome.PROMOTE)
    shutil.rmtree(await published.add(Outcome.REJECT))
    found = await published.compared()
    assert found.faults == []
    assert len(found.faults_of_unused) == 1
    assert "needed for nothing" in str(found)


async def test_a_manifest_that_is_whole_but_not_the_published_one_is_named(
    published: Versions, drive: Driver
) -> None:
    champion = await published.add(Outcome.PROMOTE)
    other = ArtifactStore(published.artifacts_dir)
    files = published.artifacts_dir.parent / "other"
    files.mkdir()
    (files / "adapter_config.json").write_text("{}")
    name = other.publish("other", files).name
    shutil.rmtree(champion)
    (published.artifacts_dir / name).rename(champion)
    (said,) = (await published.compared()).faults
    assert "not the one published" in said


async def test_many_faults_fit_into_a_line(published: Versions) -> None:
    for _ in range(8):
        shutil.rmtree(await published.add(Outcome.PROMOTE))
    found = await published.compared()
    assert len(found.faults) == 8
    assert "and 3 more" in str(found)


async def test_without_time_the_champion_is_hashed_and_the_others_are_looked_at(
    published: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = await published.add(Outcome.PROMOTE)
    await published.add(Outcome.PROMOTE)
    damage(older)
    monkeypatch.setattr(artifact_check, "HASH_SECONDS", -1.0)
    found = await published.compared()
    assert (found.n_looked_at, found.n_hashed, found.faults) == (2, 1, [])
    monkeypatch.setattr(artifact_check, "LOOK_SECONDS", -1.0)
    assert "(1 more were not looked at: no time)" in str(await published.compared())


async def test_the_directory_of_another_database_is_said_instead_of_each_version(
    published: Versions, drive: Driver
) -> None:
    await published.add(Outcome.PROMOTE)
    home = make_artifacts_home(published.artifacts_dir)
    await drive.store.registry.settle_artifacts(home)
    await published.compared()
    elsewhere = published.artifacts_dir.parent / "elsewhere"
    record = await drive.store.database.read(recorded)
    with pytest.raises(ArtifactsElsewhereError):
        compare(record, elsewhere)
