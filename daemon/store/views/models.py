"""Model lines and their versions, each with the numbers that the gate decided on."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, func, select

from daemon.store.database import Database
from daemon.store.dialect import CHUNK
from daemon.store.registry import CHAMPION, champion_of, find_version, number_of, reference
from daemon.store.tables import (
    alias_history,
    aliases,
    evaluation_examples,
    evaluations,
    model_lines,
    runs,
    versions,
)
from daemon.store.views.history import Step, history_of
from daemon.store.views.paging import Page, finite
from daemon.store.views.version_numbers import champion_ids, numbers_of
from learning.ports import ModelReference

MOST_ALIAS_MOVES = 100
MOST_CHARACTERS = 200
"""Of a prompt or an answer that is shown."""

_WITHOUT_SCORES = [column for column in evaluations.columns if column.name != "scores"]


@dataclass(frozen=True)
class LineSummary:
    """One model line."""

    line: str
    base_model: str
    champion: str
    champion_since: datetime
    task_types: Sequence[str]
    """What its champion has learned from."""
    n_versions: int


@dataclass(frozen=True)
class Trial:
    """One time that the gate compared a version with the champion."""

    against: str
    outcome: str
    reason: str
    report: Mapping[str, Any]
    """All numbers: the fields of learning.gate.GateReport."""
    at: datetime


@dataclass(frozen=True)
class VersionSummary:
    """One version on one line. `trial` is its last; a declared base has none."""

    id: int
    line: str
    version: str
    candidate: str | None
    release: str | None
    state: str
    is_champion: bool
    parent: str | None
    run_id: str | None
    method: str
    base_model: str
    task_types: Sequence[str]
    artifact_dir: str | None
    """Where its files and their manifest lie; None for a declared base."""
    created_at: datetime
    released_at: datetime | None
    trial: Trial | None


@dataclass(frozen=True)
class AliasMove:
    """One time that another version became the champion."""

    before: str | None
    after: str
    cause: str
    actor: str
    reason: str
    at: datetime


@dataclass(frozen=True)
class Loading:
    """How to load a version on the daemon's own machine."""

    base_model: str
    """A directory, a hub name, or what a service calls it."""
    adapter: str | None
    """The directory of a LoRA adapter on top of it, or the one that names a remote model."""
    method: str
    """`lora`, `full`, `remote`, or `base` for a declared base."""
    artifact_dir: str | None
    """As in the summary."""
    manifest_sha256: str | None


@dataclass(frozen=True)
class LostExample:
    """A held-out example that the champion had right and the version has wrong."""

    id: int
    task_type: str
    prompt: str
    """Its beginning; of a conversation the last turn before the answer."""
    answer: str
    """The beginning of the right one."""


@dataclass(frozen=True)
class VersionDetail:
    """Everything that is stored about one version."""

    summary: VersionSummary
    loading: Loading
    proof: Mapping[str, Any] | None
    """What training did to it: the fields of learning.gate.TrainingProof."""
    lost: Sequence[LostExample]
    """Of its last trial; how many there are in all, the report counts."""
    training_digest: str | None
    trials: Sequence[Trial]
    champion_moves: Sequence[AliasMove]
    """When it became the champion, and when it ceased to be."""
    history: Sequence[Step]


class Models:
    """The model lines and versions of one database."""

    def __init__(self, database: Database, artifacts_dir: Path) -> None:
        self._database = database
        self._artifacts_dir = artifacts_dir

    async def lines(self) -> Sequence[LineSummary]:
        """Every line that has a version, by name."""
        return await self._database.read(_lines)

    async def page(
        self, line: str, *, before: int | None = None, limit: int = 50
    ) -> Page[VersionSummary, int]:
        """The versions of a line, newest first. Raises UnknownLineError."""

        def query(tx: Connection) -> Page[VersionSummary, int]:
            champion_of(tx, line)
            query = select(versions).where(versions.c.line == line)
            if before is not None:
                query = query.where(versions.c.id < before)
            rows = tx.execute(query.order_by(versions.c.id.desc()).limit(limit)).all()
            return Page(self._summaries(tx, rows), rows[-1].id if len(rows) == limit else None)

        return await self._database.read(query)

    async def one(self, line: str, version: str) -> VersionDetail:
        """One version by its number, or by the alias "champion".

        Raises UnknownLineError, UnknownVersionError and VersionTextError.
        """
        return await self._database.read(
            lambda tx: self._detail(tx, version_row(tx, line, version))
        )

    async def champions(self) -> Mapping[str, ModelReference]:
        """How to load the champion of each line."""

        def query(tx: Connection) -> Mapping[str, ModelReference]:
            rows = tx.execute(select(versions).where(versions.c.id.in_(champion_ids(tx))))
            return {row.line: reference(row, self._artifacts_dir) for row in rows}

        return await self._database.read(query)

    async def champion_moves(self, line: str) -> Sequence[AliasMove]:
        """How the champion of a line changed, newest first. Raises UnknownLineError."""

        def query(tx: Connection) -> Sequence[AliasMove]:
            champion_of(tx, line)
            return _alias_moves(tx, line, None)

        return await self._database.read(query)

    def _detail(self, tx: Connection, row: Row[Any]) -> VersionDetail:
        model = reference(row, self._artifacts_dir)
        trials = _trials(tx, row.id)
        return VersionDetail(
            summary=self._summaries(tx, [row])[0],
            loading=Loading(
                base_model=model.base_model,
                adapter=str(model.adapter) if model.adapter is not None else None,
                method=row.method,
                artifact_dir=self._artifact_dir(row),
                manifest_sha256=row.manifest_sha256,
            ),
            proof=_proof(tx, row.run_id),
            lost=_lost(tx, trials[0].report if trials else {}),
            training_digest=row.training_digest,
            trials=trials,
            champion_moves=_alias_moves(tx, row.line, row.id),
            history=history_of(tx, "version", str(row.id)),
        )

    def _summaries(self, tx: Connection, rows: Sequence[Row[Any]]) -> Sequence[VersionSummary]:
        parents = numbers_of(tx, (row.parent_id for row in rows))
        trials = _last_trials(tx, [row.id for row in rows])
        champions = champion_ids(tx)
        return [
            VersionSummary(
                id=row.id,
                line=row.line,
                version=number_of(row),
                candidate=row.candidate,
                release=row.release,
                state=row.state,
                is_champion=row.id in champions,
                parent=parents.get(row.parent_id),
                run_id=row.run_id,
                method=row.method,
                base_model=row.base_model,
                task_types=row.task_types,
                artifact_dir=self._artifact_dir(row),
                created_at=row.created_at,
                released_at=row.released_at,
                trial=trials.get(row.id),
            )
            for row in rows
        ]

    def _artifact_dir(self, row: Row[Any]) -> str | None:
        return str(self._artifacts_dir / row.artifact) if row.artifact is not None else None


def version_row(tx: Connection, line: str, version: str) -> Row[Any]:
    """A version by number or alias. Errors as in registry.find_version."""
    if version == CHAMPION:
        return champion_of(tx, line).row
    return find_version(tx, line, version)


def _lines(tx: Connection) -> Sequence[LineSummary]:
    rows = tx.execute(
        select(
            model_lines.c.name,
            model_lines.c.base_model,
            versions.c.release,
            versions.c.task_types,
            aliases.c.updated_at,
        )
        .join(aliases, aliases.c.line == model_lines.c.name)
        .join(versions, versions.c.id == aliases.c.version_id)
        .where(aliases.c.name == CHAMPION)
        .order_by(model_lines.c.name)
    ).all()
    n_versions = {
        row.line: row.n
        for row in tx.execute(
            select(versions.c.line, func.count().label("n")).group_by(versions.c.line)
        )
    }
    return [
        LineSummary(
            line=row.name,
            base_model=row.base_model,
            champion=row.release,
            champion_since=row.updated_at,
            task_types=row.task_types,
            n_versions=n_versions[row.name],
        )
        for row in rows
    ]


def _trials(tx: Connection, version_id: int) -> Sequence[Trial]:
    rows = tx.execute(
        select(*_WITHOUT_SCORES)
        .where(evaluations.c.version_id == version_id)
        .order_by(evaluations.c.id.desc())
    ).all()
    return list(_as_trials(tx, rows))


def _proof(tx: Connection, run_id: str | None) -> Mapping[str, Any] | None:
    measured = tx.execute(select(runs.c.measurements).where(runs.c.id == run_id)).scalar()
    return finite(measured["proof"]) if measured is not None else None


def _lost(tx: Connection, report: Mapping[str, Any]) -> Sequence[LostExample]:
    ids = (report.get("forgetting") or {}).get("lost", [])
    rows = tx.execute(
        select(evaluation_examples)
        .where(evaluation_examples.c.id.in_(ids))
        .order_by(evaluation_examples.c.id)
    )
    return [
        LostExample(
            id=row.id,
            task_type=row.task_type,
            prompt=row.messages[-2]["content"][:MOST_CHARACTERS],
            answer=row.messages[-1]["content"][:MOST_CHARACTERS],
        )
        for row in rows
    ]


def _last_trials(tx: Connection, version_ids: Sequence[int]) -> Mapping[int, Trial]:
    rows: list[Row[Any]] = []
    for start in range(0, len(version_ids), CHUNK):
        last = (
            select(func.max(evaluations.c.id))
            .where(evaluations.c.version_id.in_(version_ids[start : start + CHUNK]))
            .group_by(evaluations.c.version_id)
        )
        rows.extend(tx.execute(select(*_WITHOUT_SCORES).where(evaluations.c.id.in_(last))))
    trials = _as_trials(tx, rows)
    return {row.version_id: trial for row, trial in zip(rows, trials, strict=True)}


def _as_trials(tx: Connection, rows: Sequence[Row[Any]]) -> Iterable[Trial]:
    champions = numbers_of(tx, (row.champion_id for row in rows))
    return [
        Trial(
            against=champions[row.champion_id],
            outcome=row.outcome,
            reason=row.report["reason"],
            report=finite(row.report),
            at=row.at,
        )
        for row in rows
    ]


def _alias_moves(tx: Connection, line: str, version_id: int | None) -> Sequence[AliasMove]:
    query = select(alias_history).where(
        alias_history.c.line == line, alias_history.c.name == CHAMPION
    )
    if version_id is not None:
        query = query.where(
            (alias_history.c.from_id == version_id) | (alias_history.c.to_id == version_id)
        )
    rows = tx.execute(query.order_by(alias_history.c.id.desc()).limit(MOST_ALIAS_MOVES)).all()
    names = numbers_of(tx, (number for row in rows for number in (row.from_id, row.to_id)))
    return [
        AliasMove(
            before=names.get(row.from_id),
            after=names[row.to_id],
            cause=row.cause,
            actor=row.actor,
            reason=row.reason,
            at=row.at,
        )
        for row in rows
    ]
