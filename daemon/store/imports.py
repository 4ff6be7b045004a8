"""Bring the rows of a dataset file in: stored, sealed as one batch and noted, all or nothing.

Which rows may train is decided before, by the judge; what the batch holds out, by the split
that every batch gets. A row whose id is stored already is passed over, whatever became of it,
so that a file which is imported twice makes no second batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, insert, select

from daemon.store.bookkeeping import Move, record
from daemon.store.intake import IMPORT, Appended, Intake
from daemon.store.queue import seal_rows
from daemon.store.rejected import RejectedOutputs
from daemon.store.screenings import Ruleset, note_import, without_rules
from daemon.store.split_sides import SPLIT
from daemon.store.tables import imports
from learning.batching import Trigger
from learning.facts import BatchSealed, EventsStored
from learning.lifecycle import BatchState, EventState
from learning.lines import ModelLine
from learning.ports import Block, JudgedOutput
from learning.sampling import SplitRules
from learning.screening import Screened


@dataclass(frozen=True)
class DatasetSource:
    """A dataset file that somebody brings in."""

    name: str
    sha256: str
    """Of its bytes, in hex."""


@dataclass(frozen=True)
class EarlierImport:
    """When a file with the same bytes was brought into the line before."""

    batch_id: str | None
    file: str
    actor: str
    at: datetime


@dataclass(frozen=True)
class StoredImport:
    """What an import did in the database."""

    stored: EventsStored
    batch: BatchSealed | None
    """None when no new row may train."""
    added: int
    duplicates: int
    """Rows whose id is stored already, or that are twice in the file."""
    reused: tuple[tuple[int, str], ...]
    """(line, why) of rows that share an id in the file, and differ."""
    earlier: EarlierImport | None


@dataclass(frozen=True)
class ScreenedRows:
    """What the validators said of rows that are not stored yet."""

    ruleset: str
    found: Mapping[tuple[str, str], Screened]
    """By producer and event id."""


class Imports:
    """Dataset files in one database."""

    def __init__(
        self,
        intake: Intake,
        rejected: RejectedOutputs,
        ruleset: Ruleset = without_rules,
    ) -> None:
        self._intake = intake
        self._rejected = rejected
        self._ruleset = ruleset

    async def add(
        self,
        line: ModelLine,
        source: DatasetSource,
        rows: Sequence[JudgedOutput],
        rules: SplitRules,
        actor: str,
        now: datetime,
        screened: ScreenedRows | None = None,
    ) -> StoredImport:
        """Store the rows that are new, and seal those of them that may train as one batch.

        One transaction. The batch holds out its own `held_out_share`, however many examples
        the line has. A batch under way does not stop it; the run waits for its turn.

        `screened` has what the validators said of those that are to be queued. What was not
        screened under the rules in force stays queued.
        """

        def seal(tx: Connection, appended: Appended) -> StoredImport:
            earlier = _earlier(tx, line, source)
            may_train = [row for row in appended.rows if row.state == EventState.QUEUED]
            if (ruleset := self._ruleset()) is not None:
                cleared = _note_screenings(tx, appended.rows, screened, now)
                current = screened is not None and screened.ruleset == ruleset
                may_train = [row for row in may_train if current and row.id in cleared]
            share = replace(rules, starting_share=rules.held_out_share)
            batch = (
                seal_rows(tx, line, may_train, self._rejected, Trigger.IMPORT, share, actor, now)
                if may_train
                else None
            )
            added = len(appended.rows)
            if added:
                _note(tx, line, source, batch, len(may_train), actor, now)
            reused = tuple((one.origin.offset, one.detail) for one in appended.reused)
            duplicates = len(rows) - added - len(reused)
            return StoredImport(appended.stored, batch, added, duplicates, reused, earlier)

        # The turn comes first: whoever seals has it before the rows, too.
        return await self._intake.append_unknown(Block(IMPORT, outputs=rows), SPLIT, seal)


def _note_screenings(
    tx: Connection, rows: Sequence[Row[Any]], screened: ScreenedRows | None, now: datetime
) -> set[int]:
    """Store what the validators said. Returns the events that they let pass."""
    if screened is None:
        return set()
    found = {
        row.id: one
        for row in rows
        if (one := screened.found.get((row.producer, row.event_id))) is not None
    }
    note_import(tx, found, screened.ruleset, now)
    return {event_id for event_id, one in found.items() if not one.complaints}


def _earlier(tx: Connection, line: ModelLine, source: DatasetSource) -> EarlierImport | None:
    row = tx.execute(
        select(imports)
        .where(imports.c.line == line.name, imports.c.sha256 == source.sha256)
        .order_by(imports.c.id.desc())
        .limit(1)
    ).first()
    return None if row is None else EarlierImport(row.batch_id, row.file, row.actor, row.at)


def _note(
    tx: Connection,
    line: ModelLine,
    source: DatasetSource,
    batch: BatchSealed | None,
    n_events: int,
    actor: str,
    now: datetime,
) -> None:
    batch_id = batch.batch_id if batch is not None else None
    tx.execute(
        insert(imports),
        {
            "line": line.name,
            "batch_id": batch_id,
            "file": source.name,
            "sha256": source.sha256,
            "n_events": n_events,
            "actor": actor,
            "at": now,
        },
    )
    if batch_id is not None:
        reason = f"{n_events} rows of {source.name}, sha256 {source.sha256}"
        moves = [Move("batch", batch_id, None, BatchState.SEALED, reason, actor)]
        record(tx, moves, now)
