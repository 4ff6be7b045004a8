"""The firewall's memory in the database, and its word on what is about to be cleared.

Decides nothing: learning/firewall.py does. Everything here happens in the transaction of
the screening, which has its turn: two daemons cannot both find a place free.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, update

from daemon.store.bookkeeping import Tally
from daemon.store.dialect import CHUNK, replace_all
from daemon.store.screenings import Passing
from daemon.store.tables import firewall_bands, firewall_kinds, firewall_memory, firewall_stops
from learning.firewall import (
    FirewallRules,
    Kind,
    Looks,
    Relatives,
    Stop,
    examine,
    learn,
)
from learning.likeness import band_keys, likeness
from learning.task_memory import TaskMemory

FIREWALL = "firewall"
"""The kind of its running counts, by task type and rule."""
MOST_TASK_TYPES = 256
"""The one that was not seen for longest is forgotten."""
MOST_OF_A_PROMPT = 50
"""So many answers to one prompt are remembered."""
MOST_IN_A_BAND = 20
"""A beginning that all prompts have in common tells nothing, and costs a comparison each."""

T = TypeVar("T")


class Firewall:
    """A `daemon.store.screenings.Suspicion`, under the rules of the moment."""

    def __init__(self, rules: Callable[[], FirewallRules]) -> None:
        self._rules = rules

    def __call__(
        self, tx: Connection, passing: Sequence[Passing], now: datetime
    ) -> Mapping[int, str]:
        """See daemon.store.screenings.Suspicion."""
        rules = self._rules()
        if not passing or not rules.enabled:
            return {}
        looks = {
            one.id: Looks.of(
                one.event, topic=one.topic, received_at=one.received_at, by_human=one.by_human
            )
            for one in passing
        }
        task_types = {one.task_type for one in passing}
        memories = _memories(tx, task_types)
        past = _Past(tx, looks.values(), rules)
        stops: dict[int, Stop] = {}
        for row_id, look in looks.items():
            memory = memories[look.task_type]
            relatives = past.relatives(look)
            stop = examine(look, relatives, memory, rules)
            if stop is not None:
                stops[row_id] = stop
            else:
                learn(row_id, look, memory)
                past.remember(row_id, look, relatives)
        past.write(tx)
        _store_memories(tx, memories, now)
        _store_stops(tx, looks, stops, now)
        for task_type in sorted(task_types):
            _forget_oldest(tx, task_type, rules.remembered)
        _forget_task_types(tx)
        return {row_id: f"firewall, {stop.rule}: {stop.reason}" for row_id, stop in stops.items()}


def admit(tx: Connection, looks: Mapping[int, Looks], now: datetime) -> None:
    """Count events that an operator let go as cleared, and suspect their words no more.

    The caller has the turn of the screening.
    """
    memories = _memories(tx, {look.task_type for look in looks.values()})
    past = _Past(tx, looks.values(), FirewallRules())
    for row_id, look in looks.items():
        memory = memories[look.task_type]
        memory.forgive(look.phrases)
        learn(row_id, look, memory)
        past.remember(row_id, look, past.relatives(look))
    past.write(tx)
    _store_memories(tx, memories, now)


class _Past:
    """What was cleared and may resemble some events, read at once; the new is added to it."""

    def __init__(self, tx: Connection, looks: Iterable[Looks], rules: FirewallRules) -> None:
        self._rules = rules
        self._by_prompt: defaultdict[tuple[str, bytes], list[Kind]] = defaultdict(list)
        self._by_band: defaultdict[bytes, list[Kind]] = defaultdict(list)
        self._answers: defaultdict[tuple[str, bytes], dict[str, int]] = defaultdict(dict)
        self._new: list[tuple[str, Kind]] = []
        self._new_bands: list[tuple[bytes, int]] = []
        self._grown: dict[int, Kind] = {}
        looks = list(looks)
        kinds: dict[int, Kind] = {}
        for row in _in_parts(
            tx, {look.prompt_key for look in looks}, firewall_kinds, firewall_kinds.c.prompt_key
        ):
            kind = kinds[row.event_id] = _kind(row)
            self._by_prompt[row.task_type, kind.prompt_key].append(kind)
        keys = {key for look in looks for key in band_keys(look.task_type, look.signature)}
        bands = [
            (row.key, row.event_id)
            for row in _in_parts(tx, keys, firewall_bands, firewall_bands.c.key)
        ]
        missing = {event_id for _, event_id in bands} - kinds.keys()
        for row in _in_parts(tx, missing, firewall_kinds, firewall_kinds.c.event_id):
            kinds[row.event_id] = _kind(row)
        for key, event_id in bands:
            self._by_band[key].append(kinds[event_id])
        for found in (*self._by_prompt.values(), *self._by_band.values()):
            found.sort(key=lambda kind: kind.event_id)
        self._read_answers(tx, {look.answer_key for look in looks})

    def _read_answers(self, tx: Connection, keys: Iterable[bytes]) -> None:
        query = (
            select(
                firewall_kinds.c.task_type,
                firewall_kinds.c.answer_key,
                firewall_kinds.c.producer,
                func.count().label("n"),
            )
            .where(firewall_kinds.c.answer_key.in_(bindparam("keys", expanding=True)))
            .group_by(
                firewall_kinds.c.task_type, firewall_kinds.c.answer_key, firewall_kinds.c.producer
            )
        )
        for part in _parts(keys):
            for row in tx.execute(query, {"keys": part}):
                self._answers[row.task_type, row.answer_key][row.producer] = row.n

    def relatives(self, looks: Looks) -> Relatives:
        """What resembles an event."""
        same_prompt = self._by_prompt[looks.task_type, looks.prompt_key]
        met = {
            kind.event_id: kind
            for key in band_keys(looks.task_type, looks.signature)
            for kind in self._by_band[key]
            if kind.prompt_key != looks.prompt_key
        }
        least = self._rules.near_likeness
        near_prompts = [
            kind
            for _, kind in sorted(met.items())
            if likeness(kind.signature, looks.signature) >= least
        ]
        near = (
            kind
            for kind in (*same_prompt, *near_prompts)
            if kind.producer == looks.producer
            and (
                kind.answer_key == looks.answer_key
                or likeness(kind.answer_signature, looks.answer_signature) >= least
            )
        )
        answers = self._answers[looks.task_type, looks.answer_key]
        return Relatives(
            same_prompt,
            next((kind for kind in same_prompt if kind.is_same(looks)), None),
            next(near, None),
            near_prompts,
            answers.get(looks.producer, 0),
            sum(answers.values()),
        )

    def remember(self, row_id: int, looks: Looks, relatives: Relatives) -> None:
        """An event was cleared: one more of a kind, nearly so, or a kind of its own."""
        known = relatives.same or relatives.near
        if known is not None:
            known.n += relatives.same is not None
            known.n_near += relatives.same is None
            self._grown[known.event_id] = known
            return
        if len(relatives.same_prompt) >= MOST_OF_A_PROMPT:
            return
        kind = Kind(
            row_id,
            looks.producer,
            looks.prompt_key,
            looks.answer_key,
            looks.by_human,
            looks.signature,
            looks.answer_signature,
        )
        self._new.append((looks.task_type, kind))
        self._by_prompt[looks.task_type, looks.prompt_key].append(kind)
        for key in band_keys(looks.task_type, looks.signature):
            if len(self._by_band[key]) < MOST_IN_A_BAND:
                self._by_band[key].append(kind)
                self._new_bands.append((key, row_id))
        answers = self._answers[looks.task_type, looks.answer_key]
        answers[looks.producer] = answers.get(looks.producer, 0) + 1

    def write(self, tx: Connection) -> None:
        """Store what is new."""
        if self._new:
            tx.execute(
                insert(firewall_kinds),
                [
                    {
                        "event_id": kind.event_id,
                        "task_type": task_type,
                        "producer": kind.producer,
                        "prompt_key": kind.prompt_key,
                        "answer_key": kind.answer_key,
                        "by_human": kind.by_human,
                        "signature": kind.signature,
                        "answer_signature": kind.answer_signature,
                        "n": kind.n,
                        "n_near": kind.n_near,
                    }
                    for task_type, kind in self._new
                ],
            )
        if self._new_bands:
            tx.execute(
                insert(firewall_bands),
                [{"key": key, "event_id": event_id} for key, event_id in self._new_bands],
            )
        new = {kind.event_id for _, kind in self._new}
        grown = [kind for event_id, kind in sorted(self._grown.items()) if event_id not in new]
        if grown:
            tx.execute(
                update(firewall_kinds)
                .where(firewall_kinds.c.event_id == bindparam("of"))
                .values(n=bindparam("now"), n_near=bindparam("now_near")),
                [{"of": one.event_id, "now": one.n, "now_near": one.n_near} for one in grown],
            )


def _kind(row: Row[Any]) -> Kind:
    return Kind(
        row.event_id,
        row.producer,
        row.prompt_key,
        row.answer_key,
        row.by_human,
        row.signature,
        row.answer_signature,
        row.n,
        row.n_near,
    )


def _memories(tx: Connection, task_types: Iterable[str]) -> Mapping[str, TaskMemory]:
    names = sorted(task_types)
    stored = {
        row.task_type: TaskMemory.unpacked(row.content)
        for row in _in_parts(tx, names, firewall_memory, firewall_memory.c.task_type)
    }
    return {name: stored.get(name) or TaskMemory() for name in names}


def _store_memories(tx: Connection, memories: Mapping[str, TaskMemory], now: datetime) -> None:
    replace_all(
        tx,
        firewall_memory,
        ["task_type"],
        [
            {"task_type": task_type, "content": memory.packed(), "updated_at": now}
            for task_type, memory in memories.items()
        ],
    )


def _store_stops(
    tx: Connection, looks: Mapping[int, Looks], stops: Mapping[int, Stop], now: datetime
) -> None:
    rows = [
        {
            "event_id": row_id,
            "task_type": looks[row_id].task_type,
            "producer": looks[row_id].producer,
            "rule": stop.rule,
            "other_id": stop.other,
            "at": now,
            "released_at": None,
        }
        for row_id, stop in stops.items()
    ]
    replace_all(tx, firewall_stops, ["event_id"], rows)
    tally = Tally()
    for row_id, stop in stops.items():
        tally.add(FIREWALL, looks[row_id].task_type, stop.rule)
    tally.write(tx, now)


def _forget_oldest(tx: Connection, task_type: str, remembered: int) -> None:
    """Keep the newest kinds of a task type."""
    is_of = firewall_kinds.c.task_type == task_type
    last = tx.execute(
        select(firewall_kinds.c.event_id)
        .where(is_of)
        .order_by(firewall_kinds.c.event_id.desc())
        .offset(remembered)
        .limit(1)
    ).scalar()
    if last is None:
        return
    old = tx.execute(
        select(firewall_kinds.c.event_id).where(is_of, firewall_kinds.c.event_id <= last)
    ).scalars()
    for part in _parts(old.all()):
        tx.execute(delete(firewall_bands).where(firewall_bands.c.event_id.in_(part)))
        tx.execute(delete(firewall_kinds).where(firewall_kinds.c.event_id.in_(part)))


def _forget_task_types(tx: Connection) -> None:
    names = (
        tx.execute(
            select(firewall_memory.c.task_type)
            .order_by(firewall_memory.c.updated_at.desc(), firewall_memory.c.task_type)
            .offset(MOST_TASK_TYPES)
            .limit(MOST_TASK_TYPES)
        )
        .scalars()
        .all()
    )
    for name in names:
        _forget_oldest(tx, name, 0)
        tx.execute(delete(firewall_memory).where(firewall_memory.c.task_type == name))


def _in_parts(tx: Connection, values: Iterable[Any], table: Any, column: Any) -> list[Row[Any]]:
    """The rows of a table with one of some values in a column."""
    query = select(table).where(column.in_(bindparam("values", expanding=True)))
    return [row for part in _parts(values) for row in tx.execute(query, {"values": part})]


def _parts(values: Iterable[T]) -> list[list[T]]:
    """In an order of their own, and few enough for one statement."""
    ordered = sorted(values)  # type: ignore[type-var]
    return [ordered[start : start + CHUNK] for start in range(0, len(ordered), CHUNK)]
