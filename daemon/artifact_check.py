"""Hold the artifacts directory against the versions that the database knows.

Reads only. Every version's files are looked at by name and size, and their contents for as long
as there is time: those of the champions first, then of the newest.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, and_, select

from daemon.installation import ArtifactsElsewhereError, artifacts_home
from daemon.printing import some_of
from daemon.store.registry import CHAMPION, number_of, recorded_artifacts_home
from daemon.store.tables import aliases, versions
from finetune.artifacts import ADVICE, ArtifactError, ArtifactStore, DamagedArtifactError
from learning.lifecycle import VersionState

LOOK_SECONDS: Final = 10.0
HASH_SECONDS: Final = 20.0
_UNUSED: Final = frozenset({VersionState.REFUSED, VersionState.TAINTED})


@dataclass(frozen=True)
class PublishedVersion:
    """A version that has files of its own; a declared base has none."""

    line: str
    number: str
    state: VersionState
    artifact: str
    manifest_sha256: str
    is_champion: bool

    def __str__(self) -> str:
        role = "champion" if self.is_champion else self.state
        return f"{self.line}@{self.number} ({role})"


@dataclass(frozen=True)
class Recorded:
    """What a database says of its artifacts: champions first, then the newest versions first."""

    home: str | None
    """The id of the directory that they lie in, once it has one."""
    versions: Sequence[PublishedVersion]


@dataclass(frozen=True)
class Comparison:
    """How many versions there are, how many of them were looked at and hashed, and what is wrong.

    The faults are one a version, in words; those of candidates that were refused, and of tainted
    versions, stand apart, because nothing will ever load them.
    """

    n_versions: int
    n_looked_at: int
    n_hashed: int
    faults: Sequence[str]
    faults_of_unused: Sequence[str]

    def __str__(self) -> str:
        if self.faults:
            return f"{some_of(self.faults)}; {ADVICE}"
        if self.faults_of_unused:
            named = some_of(self.faults_of_unused)
            return f"{named}; a refused or tainted version is needed for nothing"
        left_out = self.n_versions - self.n_looked_at
        more = f" ({left_out:,} more were not looked at: no time)" if left_out else ""
        return (
            f"the files of {self.n_looked_at:,} versions are there{more}; the contents of"
            f" {self.n_hashed:,}, the champions' first, are as they were published"
        )


def recorded(tx: Connection) -> Recorded:
    """What is to be compared."""
    is_champion = and_(aliases.c.version_id == versions.c.id, aliases.c.name == CHAMPION)
    rows = tx.execute(
        select(versions, aliases.c.version_id)
        .outerjoin(aliases, is_champion)
        .where(versions.c.artifact.is_not(None))
        .order_by(aliases.c.version_id.is_(None), versions.c.id.desc())
    )
    known = [
        PublishedVersion(
            line=row.line,
            number=number_of(row),
            state=VersionState(row.state),
            artifact=row.artifact,
            manifest_sha256=row.manifest_sha256,
            is_champion=row.version_id is not None,
        )
        for row in rows
    ]
    return Recorded(recorded_artifacts_home(tx), known)


def compare(record: Recorded, artifacts_dir: Path) -> Comparison:
    """All versions, as far as time goes. Raises ArtifactsElsewhereError. Blocks on the disk."""
    if record.home is not None and record.home != artifacts_home(artifacts_dir):
        raise ArtifactsElsewhereError(artifacts_dir, record.home)
    known = record.versions
    store = ArtifactStore(artifacts_dir)
    found = {one: _fault(store, one, contents=False) for one in _in_time(known, LOOK_SECONDS)}
    sound = [one for one, fault in found.items() if fault is None]
    hashed = {one: _fault(store, one, contents=True) for one in _in_time(sound, HASH_SECONDS)}
    said = {one: f"{one}: {fault}" for one, fault in (found | hashed).items() if fault is not None}
    return Comparison(
        n_versions=len(known),
        n_looked_at=len(found),
        n_hashed=len(hashed),
        faults=[fault for one, fault in said.items() if one.state not in _UNUSED],
        faults_of_unused=[fault for one, fault in said.items() if one.state in _UNUSED],
    )


def _in_time(known: Sequence[PublishedVersion], seconds: float) -> Iterator[PublishedVersion]:
    """The first one in any case, and then as many as are begun in that time."""
    end = time.monotonic() + seconds
    for n, one in enumerate(known):
        if n and time.monotonic() > end:
            return
        yield one


def _fault(store: ArtifactStore, version: PublishedVersion, *, contents: bool) -> str | None:
    """How the files of a version differ from those that were published, in words."""
    try:
        found = store.verify(version.artifact, contents=contents)
    except DamagedArtifactError as error:
        where = "" if error.file is None else f"{error.file} "
        return f"{version.artifact}: {where}{error.damage}"
    except ArtifactError as error:
        return str(error)
    if found.sha256 != version.manifest_sha256:
        return f"{version.artifact}: its manifest is not the one that was published"
    return None
