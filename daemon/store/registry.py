"""Model lines, their versions and the champion alias: promote, roll back, look up.

Moving the alias is compare-and-set, inside one transaction with both versions' states and
the history row. Nothing is deleted and nothing is renamed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from semver import Version
from sqlalchemy import Connection, Row, Select, func, insert, literal, or_, select, update

from daemon.store.bookkeeping import Move, record
from daemon.store.database import Database
from daemon.store.dialect import insert_new
from daemon.store.live_counts import report_rollback
from daemon.store.queue import spend_batch
from daemon.store.tables import (
    alias_history,
    aliases,
    deployment,
    evaluations,
    model_lines,
    runs,
    versions,
)
from learning.errors import ConflictError, NotFoundError
from learning.facts import Promoted, RolledBack
from learning.gate import Outcome
from learning.lifecycle import VersionState, require_version_move
from learning.lines import ModelLine
from learning.ports import ModelReference
from learning.versioning import BASE, Recipe, bump_between, next_release, parse

CHAMPION = "champion"
ARTIFACTS_HOME = "artifacts_home"
LIVE_VERDICT = "live verdict"
"""Who makes the automatic rollbacks, in the history."""
ARTIFACT = "artifact:"
"""Before the name of an artifact, where a base model may stand too."""


class UnknownLineError(NotFoundError):
    """No model line has this name, or it has no base model yet."""

    def __init__(self, line: str) -> None:
        super().__init__(f"no model line {line!r} with versions; `learnd versions` lists them")
        self.line = line


class UnknownVersionError(NotFoundError):
    """The line has no version of this number."""

    def __init__(self, line: str, version: str) -> None:
        super().__init__(f"{line} has no version {version}; `learnd versions {line}` lists them")
        self.line, self.version = line, version


class PromotionRefusedError(ConflictError):
    """A version may not become the champion as it was asked."""


class TaintedVersionError(ConflictError):
    """A version knows what was forgotten, and is out of use for ever."""

    def __init__(self, line: str, version: str) -> None:
        super().__init__(
            f"{line} {version} is tainted: it knows an event that was forgotten, so it is neither"
            f" served nor made the champion; `learnd forget --help` tells of --retrain"
        )
        self.line, self.version = line, version


class NothingToRollBackError(ConflictError):
    """The champion has no predecessor."""

    def __init__(self, line: str, version: str) -> None:
        super().__init__(
            f"{line} {version} is the first version of its line: there is nothing to go back to"
        )
        self.line, self.version = line, version


class StepBackRefusedError(ConflictError):
    """The live verdict may not move the champion; an operator may."""


class PairMovedError(ConflictError):
    """The champion is not the one any more that was looked at."""

    def __init__(self, line: str) -> None:
        super().__init__(f"the champion of {line} was moved by another hand; look again")
        self.line = line


@dataclass(frozen=True)
class SeenPair:
    """The champion of a line and the version before it, as the live verdict saw them."""

    line: str
    champion_id: int
    predecessor_id: int


@dataclass(frozen=True)
class StepBackLimits:
    """What an automatic rollback has to respect."""

    max_a_day: int = 1
    spare_forced: timedelta = timedelta(days=1)
    """So long an operator's own choice stays."""


@dataclass(frozen=True)
class Champion:
    """A line's champion and the revision of the alias that names it."""

    row: Row[Any]
    revision: int


class Registry:
    """Versions and aliases of one database."""

    def __init__(self, database: Database, artifacts_dir: Path) -> None:
        self._database = database
        self._artifacts_dir = artifacts_dir

    async def artifacts_home(self) -> str | None:
        """The id of the directory that all artifacts of this database lie in, once it has one."""
        return await self._database.read(recorded_artifacts_home)

    async def settle_artifacts(self, home: str) -> str:
        """Take a directory for the artifacts, unless there is one. Returns the id of the one."""

        def transaction(tx: Connection) -> str:
            tx.execute(insert_new(tx, deployment).values(name=ARTIFACTS_HOME, value=home))
            return recorded_artifacts_home(tx) or home

        return await self._database.write(transaction)

    async def ensure_lines(self, lines: Iterable[ModelLine], now: datetime) -> None:
        """Give each line that has a base model its 1.0.0, unless it has one."""

        def transaction(tx: Connection) -> None:
            for line in lines:
                if line.base_model is not None:
                    ensure_line(tx, line, line.base_model, now)

        await self._database.write(transaction)

    async def promote(
        self, line: str, version: str, *, force: bool, reason: str, actor: str, now: datetime
    ) -> Promoted:
        """Make a candidate the champion by hand; it gets the next release number.

        Without `force` only a candidate that the gate would promote is taken. Raises
        UnknownLineError, UnknownVersionError, VersionTextError and PromotionRefusedError.
        """

        def transaction(tx: Connection) -> Promoted:
            champion = champion_of(tx, line, to_move=True)
            row = find_version(tx, line, version)
            if row.id == champion.row.id:
                raise PromotionRefusedError(f"{line} {version} is the champion already")
            _require_clean(row)
            if row.release is not None:
                raise PromotionRefusedError(
                    f"{line} {version} was released before:"
                    f" `learnd rollback {line} --to {row.release}` goes back to it"
                )
            if not force and _last_outcome(tx, row.id) != Outcome.PROMOTE:
                raise PromotionRefusedError(
                    f"the gate did not promote {line} {version}; to overrule it use"
                    " --force with a --reason, which is recorded"
                )
            cause = "force" if force else "promote"
            return promote(tx, champion, row, cause=cause, reason=reason, actor=actor, now=now)

        return await self._database.write(transaction)

    async def rollback(
        self, line: str, to: str | None, *, reason: str, actor: str, now: datetime
    ) -> RolledBack:
        """Make an earlier version the champion again: `to`, or the one before.

        Every version that was released after it and did not make it is rolled back too, so
        that nothing trains on with what they learned. Raises UnknownLineError,
        UnknownVersionError, VersionTextError, PromotionRefusedError when `to` was never
        released, and NothingToRollBackError.
        """

        def transaction(tx: Connection) -> RolledBack:
            champion = champion_of(tx, line, to_move=True)
            if to is None:
                target = _predecessor(tx, champion)
            else:
                target = find_version(tx, line, to)
                _require_clean(target)
                if target.release is None:
                    raise PromotionRefusedError(
                        f"{line} {to} was never released; `learnd promote` releases it"
                    )
                if target.id == champion.row.id:
                    raise PromotionRefusedError(f"{line} {to} is the champion already")
            return _go_back(tx, champion, target, reason, actor, now)

        return await self._database.write(transaction)

    async def step_back(
        self, seen: SeenPair, *, reason: str, limits: StepBackLimits, now: datetime
    ) -> RolledBack:
        """The live verdict's rollback: from the champion that it saw to the version before it.

        Raises PairMovedError when the champion is another one by now, as where a second
        daemon was quicker, and StepBackRefusedError for an obstacle.
        """

        def transaction(tx: Connection) -> RolledBack:
            champion, target = _target_of_step_back(tx, seen, limits, now, to_move=True)
            return _go_back(tx, champion, target, reason, LIVE_VERDICT, now)

        return await self._database.write(transaction)

    async def require_step_back(
        self, seen: SeenPair, *, limits: StepBackLimits, now: datetime
    ) -> None:
        """Raise what `step_back` would raise now, and change nothing: before files are hashed."""
        await self._database.read(lambda tx: _target_of_step_back(tx, seen, limits, now))

    async def predecessor(self, line: str) -> str:
        """The number that a rollback without a target leads to.

        Raises UnknownLineError and NothingToRollBackError.
        """
        return await self._database.read(
            lambda tx: number_of(_predecessor(tx, champion_of(tx, line)))
        )

    async def loadable(self, line: str, version: str) -> ModelReference:
        """How to load a version; `version` is a number or "champion".

        Raises UnknownLineError, UnknownVersionError, VersionTextError, TaintedVersionError.
        """

        def query(tx: Connection) -> ModelReference:
            row = (
                champion_of(tx, line).row
                if version == CHAMPION
                else find_version(tx, line, version)
            )
            _require_clean(row)
            return reference(row, self._artifacts_dir)

        return await self._database.read(query)

    async def champion(self, line: str, base_model: str) -> tuple[str, ModelReference]:
        """The number of a line's champion, and how to load it; before its first run its base."""

        def query(tx: Connection) -> tuple[str, ModelReference]:
            try:
                row = champion_of(tx, line).row
            except UnknownLineError:
                return str(BASE), ModelReference(base_model)
            return row.release, reference(row, self._artifacts_dir)

        return await self._database.read(query)


def _target_of_step_back(
    tx: Connection,
    seen: SeenPair,
    limits: StepBackLimits,
    now: datetime,
    *,
    to_move: bool = False,
) -> tuple[Champion, Row[Any]]:
    """The champion, and the version to step back to. Raises as Registry.step_back."""
    champion = champion_of(tx, seen.line, to_move=to_move)
    target = None if champion.row.id != seen.champion_id else predecessor_of(tx, champion)
    if target is None or target.id != seen.predecessor_id:
        raise PairMovedError(seen.line)
    obstacle = obstacle_to_stepping_back(tx, champion, target, limits, now)
    if obstacle is not None:
        raise StepBackRefusedError(obstacle)
    return champion, target


def recorded_artifacts_home(tx: Connection) -> str | None:
    """The id of the directory that all artifacts lie in, once it has one."""
    return tx.execute(
        select(deployment.c.value).where(deployment.c.name == ARTIFACTS_HOME)
    ).scalar()


def ensure_line(tx: Connection, line: ModelLine, base_model: str, now: datetime) -> None:
    """Give a line its 1.0.0 and champion, unless it has them; note a changed base model."""
    created = tx.execute(
        insert_new(tx, model_lines)
        .values(name=line.name, base_model=base_model, created_at=now)
        .returning(model_lines.c.name)
    )
    if created.first() is None:
        tx.execute(
            update(model_lines).where(model_lines.c.name == line.name).values(base_model=base_model)
        )
        return
    version_id = tx.execute(
        insert(versions)
        .values(
            line=line.name,
            release=str(BASE),
            state=VersionState.RELEASED,
            method="base",
            base_model=base_model,
            foundation=base_model,
            task_types=sorted(line.task_types),
            created_at=now,
            released_at=now,
        )
        .returning(versions.c.id)
    ).scalar_one()
    tx.execute(
        insert(aliases).values(
            line=line.name, name=CHAMPION, version_id=version_id, revision=1, updated_at=now
        )
    )
    _record_alias(tx, line.name, None, version_id, "declare", "declared base", "settings", now)


def champion_of(tx: Connection, line: str, *, to_move: bool = False) -> Champion:
    """A line's champion, locked when it is about to be moved. Raises UnknownLineError."""
    named = (aliases.c.line == line) & (aliases.c.name == CHAMPION)
    if to_move:
        # By itself: joined, PostgreSQL would hold the alias as it is after the wait against
        # the version that it named before, and find nothing.
        tx.execute(select(aliases.c.revision).where(named).with_for_update(key_share=True))
    row = tx.execute(
        select(versions, aliases.c.revision)
        .join(aliases, aliases.c.version_id == versions.c.id)
        .where(named)
    ).first()
    if row is None:
        raise UnknownLineError(line)
    return Champion(row, row.revision)


def find_version(tx: Connection, line: str, text: str) -> Row[Any]:
    """A version by its release or candidate number, with or without "v".

    Raises UnknownLineError, UnknownVersionError and VersionTextError.
    """
    number = str(parse(text))
    row = tx.execute(
        select(versions).where(
            versions.c.line == line,
            or_(versions.c.release == number, versions.c.candidate == number),
        )
    ).first()
    if row is None:
        champion_of(tx, line)
        raise UnknownVersionError(line, text)
    return row


def number_of(row: Row[Any]) -> str:
    """The number that a version goes by: its release, or its candidate number."""
    return str(row.release if row.release is not None else row.candidate)


def reference(row: Row[Any], artifacts_dir: Path) -> ModelReference:
    """How to load a version."""
    foundation = str(row.foundation)
    base = (
        str(artifacts_dir / foundation.removeprefix(ARTIFACT))
        if foundation.startswith(ARTIFACT)
        else foundation
    )
    match row.method:
        case "lora" | "remote":
            return ModelReference(base, artifacts_dir / row.artifact)
        case "full":
            return ModelReference(str(artifacts_dir / row.artifact))
        case _:
            return ModelReference(base)


def recipe(row: Row[Any]) -> Recipe | None:
    """What a version was made from; None for a declared base."""
    if row.training_digest is None:
        return None
    return Recipe(row.base_model, row.training_digest, frozenset(row.task_types))


def release_target(tx: Connection, champion: Champion, candidate: Recipe) -> Version:
    """The number that a candidate would be released under."""
    row = champion.row
    released = tx.execute(
        select(versions.c.release).where(
            versions.c.line == row.line, versions.c.release.is_not(None)
        )
    ).scalars()
    earlier = recipe(row)
    if earlier is None and row.base_model != candidate.base_model:
        earlier = Recipe(row.base_model, candidate.training_digest, candidate.task_types)
    return next_release((parse(text) for text in released), bump_between(earlier, candidate))


def promote(
    tx: Connection,
    champion: Champion,
    row: Row[Any],
    *,
    cause: str,
    reason: str,
    actor: str,
    now: datetime,
) -> Promoted:
    """Release a version under the next number and make it the champion."""
    made_from = recipe(row)
    if made_from is None:  # only a declared base has none, and it is released from the start
        raise PromotionRefusedError(f"{row.line} {number_of(row)} is a declared base")
    release = str(release_target(tx, champion, made_from))
    _set_state(tx, champion.row, VersionState.SUPERSEDED, f"replaced by {release}", actor, now)
    _set_state(tx, row, VersionState.RELEASED, reason, actor, now)
    tx.execute(
        update(versions).where(versions.c.id == row.id).values(release=release, released_at=now)
    )
    _move_alias(tx, champion, row.id, cause, reason, actor, now)
    batch_id = tx.execute(select(runs.c.batch_id).where(runs.c.id == row.run_id)).scalar_one()
    spend_batch(tx, batch_id, f"made {release}", actor, now)
    return Promoted(row.line, release, champion.row.release, cause == "force", actor)


def lineage_of(tx: Connection, version_id: int) -> Sequence[Row[Any]]:
    """(id, state) of a version and of those that it was trained from, nearest first."""
    chain = (
        select(versions.c.id, versions.c.parent_id, versions.c.state, literal(0).label("distance"))
        .where(versions.c.id == version_id)
        .cte(recursive=True)
    )
    parent = versions.alias("parent")
    chain = chain.union_all(
        select(parent.c.id, parent.c.parent_id, parent.c.state, chain.c.distance + 1).where(
            parent.c.id == chain.c.parent_id
        )
    )
    return list(tx.execute(select(chain.c.id, chain.c.state).order_by(chain.c.distance)))


def has_rolled_back_parent(tx: Connection, champion_id: int, parent_id: int | None) -> bool:
    """Whether training started from what was rolled back since.

    What made the champion itself is accepted, whatever became of it in between.
    """
    if parent_id is None:
        return False
    accepted = {row.id for row in lineage_of(tx, champion_id)}
    for row in lineage_of(tx, parent_id):
        if row.id in accepted:
            return False
        if row.state == VersionState.ROLLED_BACK:
            return True
    return False


def refuse(tx: Connection, row: Row[Any], reason: str, actor: str, now: datetime) -> None:
    """Mark a candidate as refused; an operator may still force it."""
    _set_state(tx, row, VersionState.REFUSED, reason, actor, now)


def _leave(
    tx: Connection,
    champion: Champion,
    target: Row[Any],
    reason: str,
    actor: str,
    now: datetime,
) -> None:
    """Give the other released versions the states that a move back to `target` means.

    What made the target is superseded. What did not is rolled back, if it was the champion
    or came after the target; a declared base never is.
    """
    made_target = {row.id for row in lineage_of(tx, target.id)}
    others = tx.execute(
        select(versions).where(
            versions.c.line == target.line,
            versions.c.release.is_not(None),
            versions.c.id != target.id,
        )
    ).all()
    for row in others:
        if row.state == VersionState.TAINTED:
            continue
        if row.id in made_target or (row.id == champion.row.id and row.run_id is None):
            state = VersionState.SUPERSEDED
        elif row.run_id is not None and (
            row.id == champion.row.id or parse(row.release) > parse(target.release)
        ):
            state = VersionState.ROLLED_BACK
        else:
            continue
        if row.state != state:
            _set_state(tx, row, state, reason, actor, now)


def obstacle_to_stepping_back(
    tx: Connection, champion: Champion, target: Row[Any], limits: StepBackLimits, now: datetime
) -> str | None:
    """Why the live verdict may not go back to a version, in words; None when it may."""
    line = champion.row.line
    if parse(target.release) >= parse(champion.row.release):
        return f"{target.release} is no earlier version than {champion.row.release}"
    if target.state != VersionState.SUPERSEDED:
        return f"{line} {target.release} is {target.state}"
    of_line = (alias_history.c.line == line) & (alias_history.c.name == CHAMPION)
    last = tx.execute(
        select(alias_history).where(of_line).order_by(alias_history.c.id.desc()).limit(1)
    ).one()
    by_hand = last.cause == "force" or (last.cause == "rollback" and last.actor != LIVE_VERDICT)
    if by_hand and last.at > now - limits.spare_forced:
        return (
            f"{last.actor} chose {line} {champion.row.release} by hand at {last.at:%Y-%m-%d %H:%M}"
            f" UTC, which stands for {limits.spare_forced} (verdict.spare_forced_hours)"
        )
    made = tx.execute(
        select(func.count()).where(
            of_line,
            alias_history.c.actor == LIVE_VERDICT,
            alias_history.c.cause == "rollback",
            alias_history.c.at > now - timedelta(days=1),
        )
    ).scalar_one()
    if made >= limits.max_a_day:
        return (
            f"{made} automatic rollbacks of {line} in 24 hours are as many as may be"
            " (verdict.max_rollbacks_a_day)"
        )
    return None


def _go_back(
    tx: Connection,
    champion: Champion,
    target: Row[Any],
    reason: str,
    actor: str,
    now: datetime,
) -> RolledBack:
    """Make an earlier version the champion again, and keep what was known of the two."""
    line = champion.row.line
    _leave(tx, champion, target, reason, actor, now)
    _set_state(tx, target, VersionState.RELEASED, reason, actor, now)
    move_id = _move_alias(tx, champion, target.id, "rollback", reason, actor, now)
    report_rollback(tx, move_id, champion.row.id, target.id)
    return RolledBack(line, target.release, champion.row.release, actor, reason)


def _set_state(
    tx: Connection, row: Row[Any], state: VersionState, reason: str, actor: str, now: datetime
) -> None:
    require_version_move(VersionState(row.state), state)
    tx.execute(update(versions).where(versions.c.id == row.id).values(state=state))
    record(tx, [Move("version", str(row.id), row.state, state, reason, actor)], now)


def _move_alias(
    tx: Connection,
    champion: Champion,
    to_id: int,
    cause: str,
    reason: str,
    actor: str,
    now: datetime,
) -> int:
    """Returns the id of the history row."""
    moved = tx.execute(
        update(aliases)
        .where(
            aliases.c.line == champion.row.line,
            aliases.c.name == CHAMPION,
            aliases.c.revision == champion.revision,
        )
        .values(version_id=to_id, revision=champion.revision + 1, updated_at=now)
    )
    if moved.rowcount != 1:
        raise PromotionRefusedError(
            f"the champion of {champion.row.line} was moved by another hand; look again"
        )
    return _record_alias(tx, champion.row.line, champion.row.id, to_id, cause, reason, actor, now)


def _record_alias(
    tx: Connection,
    line: str,
    from_id: int | None,
    to_id: int,
    cause: str,
    reason: str,
    actor: str,
    now: datetime,
) -> int:
    move_id: int = tx.execute(
        insert(alias_history)
        .values(
            line=line,
            name=CHAMPION,
            from_id=from_id,
            to_id=to_id,
            cause=cause,
            reason=reason,
            actor=actor,
            at=now,
        )
        .returning(alias_history.c.id)
    ).scalar_one()
    return move_id


def _predecessor(tx: Connection, champion: Champion) -> Row[Any]:
    """As `predecessor_of`. Raises NothingToRollBackError where there is none."""
    row = predecessor_of(tx, champion)
    if row is None:
        raise NothingToRollBackError(champion.row.line, champion.row.release)
    return row


def predecessor_of(tx: Connection, champion: Champion) -> Row[Any] | None:
    """The version that was champion before this one was first promoted.

    Where that one was rolled back itself, or is tainted, the one before it, and so on.
    """
    line = champion.row.line
    row = _replaced_by(tx, line, champion.row.id)
    while row is not None and row.state in (VersionState.ROLLED_BACK, VersionState.TAINTED):
        row = _replaced_by(tx, line, row.id)
    return row


def _replaced_by(tx: Connection, line: str, version_id: int) -> Row[Any] | None:
    return tx.execute(
        select(versions)
        .join(alias_history, alias_history.c.from_id == versions.c.id)
        .where(
            alias_history.c.line == line,
            alias_history.c.to_id == version_id,
            alias_history.c.cause.in_(["promote", "force"]),
        )
        .order_by(alias_history.c.id)
        .limit(1)
    ).first()


def _last_outcome(tx: Connection, version_id: int) -> str | None:
    return tx.execute(
        select(evaluations.c.outcome)
        .where(evaluations.c.version_id == version_id)
        .order_by(evaluations.c.id.desc())
        .limit(1)
    ).scalar()


def looks_at(tx: Connection, champion_id: int, candidate_id: int) -> int:
    """How many candidates were compared with a champion, counting this one.

    One that was refused by name, or met too little evidence, was not compared.
    """
    others = tx.execute(
        select(func.count(evaluations.c.version_id.distinct())).where(
            evaluations.c.champion_id == champion_id,
            evaluations.c.version_id != candidate_id,
            evaluations.c.report["p_better"].as_float().is_not(None),
        )
    ).scalar_one()
    return int(others) + 1


# --- what was forgotten ---------------------------------------------------------------


@dataclass(frozen=True)
class Tainted:
    """Versions that came out of use together, each as it was before, and what replaced those
    that were champions."""

    rows: Sequence[Row[Any]]
    replaced: Sequence[RolledBack]


def knowing(made_from_it: Select[tuple[int]]) -> Select[tuple[int]]:
    """The ids of some versions and of all that were trained from them."""
    found = made_from_it.cte("knowing", recursive=True)
    child = versions.alias("child")
    # UNION, not UNION ALL: a version with two knowing ancestors is visited once.
    found = found.union(select(child.c.id).where(child.c.parent_id == found.c.id))
    return select(found.c.id)


def taint(
    tx: Connection, knowing_it: Select[tuple[int]], reason: str, actor: str, now: datetime
) -> Tainted:
    """Take versions out of use for ever. A champion among them gives way, in this transaction, to
    the nearest of its ancestors that is clean, or to the declared base of its line."""
    query = select(versions).where(
        versions.c.id.in_(knowing_it), versions.c.state != VersionState.TAINTED
    )
    lines = sorted({row.line for row in tx.execute(query)})
    # Whoever moves the alias has its lock first, and then finds the states as they are.
    champions = [champion_of(tx, line, to_move=True) for line in lines]
    rows = tx.execute(query.order_by(versions.c.id)).all()
    for row in rows:
        _set_state(tx, row, VersionState.TAINTED, reason, actor, now)
    known = {row.id for row in rows}
    replaced = [
        _give_way(tx, champion, reason, actor, now)
        for champion in champions
        if champion.row.id in known
    ]
    return Tainted(rows, replaced)


def _give_way(
    tx: Connection, champion: Champion, reason: str, actor: str, now: datetime
) -> RolledBack:
    line = champion.row.line
    target = _clean_ancestor(tx, champion.row)
    if target.state != VersionState.RELEASED:
        _set_state(tx, target, VersionState.RELEASED, reason, actor, now)
    _move_alias(tx, champion, target.id, "forget", reason, actor, now)
    return RolledBack(line, target.release, champion.row.release, actor, reason)


def _clean_ancestor(tx: Connection, champion: Row[Any]) -> Row[Any]:
    for ancestor in lineage_of(tx, champion.id):
        row = tx.execute(select(versions).where(versions.c.id == ancestor.id)).one()
        if row.run_id is None or row.state in (VersionState.RELEASED, VersionState.SUPERSEDED):
            return row
    # It was trained from a newer base model, which never was a version itself.
    declared = select(versions).where(versions.c.line == champion.line, versions.c.run_id.is_(None))
    return tx.execute(declared.order_by(versions.c.id).limit(1)).one()


def _require_clean(row: Row[Any]) -> None:
    if row.state == VersionState.TAINTED:
        raise TaintedVersionError(row.line, number_of(row))
