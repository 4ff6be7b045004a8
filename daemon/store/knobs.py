"""What adapting settings needs to know: who turned them when, and what was seen since.

Read in one transaction with the settings' revision, so that a change that is compare-and-set on
it was decided on what is here. Decides nothing: learning/adaptation.py does.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, func, select

from daemon.store.database import Database
from daemon.store.over_time import activity_since, hour_of
from daemon.store.setting_changes import stored_settings
from daemon.store.tables import setting_changes
from learning.adaptation import ACTOR, MEMORY, Evidence, Knob


@dataclass(frozen=True)
class KnobsSeen:
    """The settings that adapt, as of one revision, with the evidence for each."""

    revision: int
    knobs: Sequence[Knob]
    evidence: Mapping[str, Evidence]
    changes_today: int


class Knobs:
    """The adapting settings of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def look(
        self, values: Mapping[str, float], window: timedelta, now: datetime
    ) -> KnobsSeen:
        """Settings by key with what holds, and what was seen in a window up to now.

        Evidence is kept by hours: that of a window has up to one more, and of the hour in which
        a setting was changed none.
        """

        def query(tx: Connection) -> KnobsSeen:
            knobs = [_knob(tx, key, value, now) for key, value in values.items()]
            return KnobsSeen(
                revision=stored_settings(tx).revision,
                knobs=knobs,
                evidence={knob.key: _evidence(tx, _begin(knob, window, now)) for knob in knobs},
                changes_today=_changes_since(tx, now - timedelta(days=1)),
            )

        return await self._database.read(query)


def _knob(tx: Connection, key: str, value: float, now: datetime) -> Knob:
    own, person = setting_changes.c.actor == ACTOR, setting_changes.c.actor != ACTOR
    last, stepped, turned = (_last(tx, key, condition) for condition in (own | person, own, person))
    stands = last is not None and last.actor == ACTOR and last.undoes is None
    return Knob(
        key=key,
        value=value,
        adapted_by=last.revision if last is not None and stands else None,
        stepped_at=stepped.at if stepped is not None else None,
        steps_away=tx.execute(
            select(func.count()).where(
                setting_changes.c.path == _path(key),
                own,
                setting_changes.c.undoes.is_(None),
                setting_changes.c.at > now - MEMORY,
            )
        ).scalar_one(),
        person=turned.actor if turned is not None else "",
        person_at=turned.at if turned is not None else None,
    )


def _last(tx: Connection, key: str, condition: ColumnElement[bool]) -> Row[Any] | None:
    return tx.execute(
        select(setting_changes)
        .where(setting_changes.c.path == _path(key), condition)
        .order_by(setting_changes.c.revision.desc())
        .limit(1)
    ).first()


def _path(key: str) -> str:
    return json.dumps(key.split("."))


def _begin(knob: Knob, window: timedelta, now: datetime) -> datetime:
    changes = [time for time in (knob.stepped_at, knob.person_at) if time is not None]
    return max([hour_of(now - window), *(hour_of(time) + timedelta(hours=1) for time in changes)])


def _evidence(tx: Connection, since: datetime) -> Evidence:
    seen = activity_since(tx, since)
    return Evidence(
        seen.approved, seen.rejected, seen.outputs.confidence_n, seen.average_confidence
    )


def _changes_since(tx: Connection, since: datetime) -> int:
    """Own changes; a table that people and this module write by hand, so to say, is small."""
    return tx.execute(
        select(func.count(func.distinct(setting_changes.c.revision))).where(
            setting_changes.c.actor == ACTOR, setting_changes.c.at > since
        )
    ).scalar_one()
