"""What people said of the answers of each released version, counted as feedback is digested.

Counts only; learning/live_verdict.py says what they mean. An output counts once, for the version
that it names and the producer of the feedback; a "no" that follows a "yes" makes it a "no".
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import Connection, insert, select

from daemon.store.dialect import CHUNK, add_up, replace_all
from daemon.store.digest import JoinedFeedback
from daemon.store.tables import live_counts, live_judgements, rollback_reports, versions
from learning.errors import VersionTextError
from learning.facts import Fact
from learning.lines import ModelLines
from learning.live_verdict import (
    EVERYBODY_ELSE,
    MOST_PRODUCERS,
    Approvals,
    ByProducer,
    log_evidence,
    total,
)
from learning.versioning import parse

Named = tuple[str, str]
"""A line and the number of one of its versions."""


class LiveCounts:
    """A consequence of feedback (daemon/store/digest.py): the counts of the live verdict."""

    def __init__(self, lines: ModelLines) -> None:
        self._lines = lines

    def __call__(
        self, tx: Connection, feedback: Sequence[JoinedFeedback], now: datetime
    ) -> Sequence[Fact]:
        """See Consequence. A rating alone is no verdict, and an unknown version makes no row."""
        said = [(one, named) for one in feedback if (named := self._named(one)) is not None]
        known = _versions_of(tx, {named for _, named in said})
        judged = _judged(tx, sorted({one.output.id for one, _ in said}))
        before = dict(judged)
        names = _Producers(tx, known.values())
        for one, named in said:
            yes = bool(one.event.approved)
            if (earlier := judged.get(one.output.id)) is not None:
                if earlier[2] and not yes:
                    version_id = earlier[0]
                    judged[one.output.id] = (version_id, names.of(version_id, one), False)
            elif (found := known.get(named)) is not None:
                judged[one.output.id] = (found, names.of(found, one), yes)
        _store(tx, before, judged)
        return ()

    def _named(self, one: JoinedFeedback) -> Named | None:
        """The line and the number that feedback with a verdict is about."""
        text = one.event.model_version or one.output.model_version
        line = self._lines.owner(one.event.task_type)
        if one.event.approved is None or text is None or line is None:
            return None
        prefix, _, number = text.rpartition("@")
        if prefix not in ("", line.name):
            return None
        try:
            return line.name, str(parse(number))
        except VersionTextError:
            return None


def counts_of(tx: Connection, version_id: int) -> ByProducer:
    """The verdicts on a version, by producer."""
    rows = tx.execute(select(live_counts).where(live_counts.c.version_id == version_id))
    return {row.producer: Approvals(row.n, row.yes) for row in rows}


def report_rollback(tx: Connection, move_id: int, left_id: int, to_id: int) -> None:
    """Keep what was known when a champion was left, by whomever."""
    left, to = total(counts_of(tx, left_id)), total(counts_of(tx, to_id))
    tx.execute(
        insert(rollback_reports).values(
            move_id=move_id,
            n=left.n,
            yes=left.yes,
            before_n=to.n,
            before_yes=to.yes,
            log_e=log_evidence(left, to),
        )
    )


Judgement = tuple[int, str, bool]
"""Version, producer as it is counted, and what was said of one output."""


class _Producers:
    """Under which name the verdicts of each producer on a version are counted."""

    def __init__(self, tx: Connection, version_ids: Collection[int]) -> None:
        self._tx = tx
        self._names: defaultdict[int, set[str]] = defaultdict(set)
        for start in range(0, len(wanted := sorted(set(version_ids))), CHUNK):
            self._read(wanted[start : start + CHUNK])

    def of(self, version_id: int, feedback: JoinedFeedback) -> str:
        if version_id not in self._names:
            self._read([version_id])
        names = self._names[version_id]
        if feedback.event.producer not in names and len(names) >= MOST_PRODUCERS:
            return EVERYBODY_ELSE
        names.add(feedback.event.producer)
        return feedback.event.producer

    def _read(self, version_ids: Sequence[int]) -> None:
        for row in self._tx.execute(
            select(live_counts.c.version_id, live_counts.c.producer).where(
                live_counts.c.version_id.in_(version_ids),
                live_counts.c.producer != EVERYBODY_ELSE,
            )
        ):
            self._names[row.version_id].add(row.producer)


def _versions_of(tx: Connection, named: Collection[Named]) -> dict[Named, int]:
    """The row id of each released version that is there."""
    by_line: defaultdict[str, list[str]] = defaultdict(list)
    for line, number in sorted(named):
        by_line[line].append(number)
    return {
        (line, row.release): row.id
        for line, numbers in by_line.items()
        for start in range(0, len(numbers), CHUNK)
        for row in tx.execute(
            select(versions.c.id, versions.c.release).where(
                versions.c.line == line, versions.c.release.in_(numbers[start : start + CHUNK])
            )
        )
    }


def _judged(tx: Connection, output_ids: Sequence[int]) -> dict[int, Judgement]:
    return {
        row.output_id: (row.version_id, row.producer, row.approved)
        for start in range(0, len(output_ids), CHUNK)
        for row in tx.execute(
            select(live_judgements).where(
                live_judgements.c.output_id.in_(output_ids[start : start + CHUNK])
            )
        )
    }


def _store(tx: Connection, before: dict[int, Judgement], after: dict[int, Judgement]) -> None:
    """Write the judgements that changed, and add the difference to the counts."""
    changed = {output_id: one for output_id, one in after.items() if before.get(output_id) != one}
    steps: defaultdict[tuple[int, str], list[int]] = defaultdict(lambda: [0, 0])
    for output_id, one in changed.items():
        for sign, (version_id, producer, yes) in ((1, one), (-1, before.get(output_id, one))):
            if sign > 0 or output_id in before:
                steps[version_id, producer][0] += sign
                steps[version_id, producer][1] += sign * yes
    replace_all(
        tx,
        live_judgements,
        ["output_id"],
        [
            {"output_id": output_id, "version_id": one[0], "producer": one[1], "approved": one[2]}
            for output_id, one in changed.items()
        ],
    )
    add_up(
        tx,
        live_counts,
        ("version_id", "producer"),
        [
            {"version_id": version_id, "producer": producer, "n": n, "yes": yes}
            for (version_id, producer), (n, yes) in sorted(steps.items())
        ],
    )
