"""What the firewall remembers of one task type besides single events: counts, bounded in size.

Pure, and the same for the same events in the same order: nothing here depends on time
but the hour that a count belongs to, and nothing on how often it was stored in between.
"""

import json
import math
import statistics
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from learning.likeness import hash_of

SLOTS = 8_192
"""Places for words. Two words that share one are taken for one."""
MOST_LABELS = 16
MOST_ACCUSERS = 16
"""Producers that are known to have been odd with a phrase."""
LABEL_CHARACTERS = 64
LABEL_COVER = 0.9
"""A task type has labels when its commonest answers make so much of all."""
LEAST_FOR_LABELS = 50
MOST_SUSPECTS = 1_000
SHORTEST_SUSPECT = 2
"""Characters of a phrase that is suspected."""
MOST_PRODUCERS = 256
MOST_TOPICS = 64
HOURS = 24
RING = 256
"""So many of the latest values of a measure are kept."""
REFRESH = 32
"""After so many new ones its bounds are found anew."""
OTHERS = ""
"""Whoever comes after the last place in a table of names."""
FULL = 40_000
"""A count that reaches this is halved, with all that it is compared with."""

_PRIOR_EVENTS = 4.0
_SEVERAL = 65_535
_LOUDEST = 3


@dataclass
class Suspect:
    """A word, or two in a row, that stood in prompts whose answers were surprising."""

    n: int = 0
    """Events with it since it was first suspected."""
    surprising: int = 0
    by: list[str] = field(default_factory=list)
    """The producers of the surprising ones."""


@dataclass
class Measure:
    """The latest values of one measure, and the bounds that were found from them."""

    values: "array[float]" = field(default_factory=lambda: array("f"))
    seen: int = 0
    low: float = 0.0
    """A fifth of the values are not larger: who sends less than that cannot move it."""
    median: float = 0.0
    deviation: float = 0.0
    """1.4826 times the median absolute deviation: a standard deviation, where it is normal."""

    def add(self, value: float) -> None:
        """One more value."""
        if len(self.values) < RING:
            self.values.append(value)
        else:
            self.values[self.seen % RING] = value
        self.seen += 1
        if self.seen % REFRESH == 0:
            ordered = sorted(self.values)
            self.low = ordered[len(ordered) // 5]
            self.median = statistics.median(ordered)
            spread = statistics.median(abs(one - self.median) for one in self.values)
            self.deviation = 1.4826 * spread


@dataclass(frozen=True)
class Surprise:
    """How much better another label fits a prompt than the one that it came with."""

    like: int
    """The row id of an event with the label that fits best."""
    margin: float
    """In nats."""


@dataclass
class TaskMemory:
    """The counts of one task type. Only what was cleared is counted, but for suspects."""

    n: int = 0
    labels: dict[str, list[int]] = field(default_factory=dict)
    """By the answer's key: [column, events, the row id of the first]."""
    unlabelled: float = 0
    producers: dict[str, list[int]] = field(default_factory=dict)
    """By name: [events that could have surprised, surprising ones]."""
    suspects: dict[str, Suspect] = field(default_factory=dict)
    """By `phrase_key`; the one that was last suspected is the last."""
    hours: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    """By hour since 1970, then `producer` or `topic`, then the name: events."""
    measures: dict[str, Measure] = field(default_factory=dict)
    counts: "array[int]" = field(default_factory=lambda: array("H", bytes(2 * SLOTS * MOST_LABELS)))
    """Events with a word and a label."""
    spread: "array[int]" = field(default_factory=lambda: array("H", bytes(2 * SLOTS)))
    """Events with a word, or two words in a row."""
    users: "array[int]" = field(default_factory=lambda: array("H", bytes(2 * SLOTS)))
    """Who used a word: 0 nobody, a number made of the name, or _SEVERAL."""

    # --- labels ------------------------------------------------------------------------

    @property
    def has_labels(self) -> bool:
        """Whether this task type's answers are labels: few, short, and given again and again."""
        n = self.unlabelled + sum(label[1] for label in self.labels.values())
        repeated = [label[1] for label in self.labels.values() if label[1] > 1]
        return self.n >= LEAST_FOR_LABELS and sum(repeated) >= LABEL_COVER * max(n, 1)

    def surprise(self, words: Iterable[str], answer_key: str) -> Surprise | None:
        """How badly an answer fits a prompt, by what the prompt's words came with before.

        A word's evidence for a label is ln((c + m p) / (n + m) / p): c of the label's n events
        have it, p of all events do, m = 4; so a label of which little is known is neither
        favoured nor punished. Two labels are compared by the three words that speak most for the
        one, and the three that speak most for the other: a sentence that is always sent is not
        counted word by word. That a label is common speaks for it when it was given, and not
        against a rare one. Only words that two producers used count,
        while there are two: nobody teaches it alone. None where the answer fits best.
        """
        columns = {column: count for column, count, _ in self.labels.values()}
        total = sum(columns.values())
        lonely = len(self.producers) > 1
        evidence: list[Mapping[int, float]] = []
        for slot in sorted({slot_of(word) for word in words}):
            row = self.counts[slot * MOST_LABELS : (slot + 1) * MOST_LABELS]
            in_all = sum(row)
            if in_all < 2 or (lonely and self.users[slot] != _SEVERAL):
                continue
            share = in_all / total
            evidence.append(
                {
                    column: math.log(
                        (row[column] + _PRIOR_EVENTS * share) / (n + _PRIOR_EVENTS) / share
                    )
                    for column, n in columns.items()
                }
            )
        prior = {column: math.log((n + 1) / (total + 1)) for column, n in columns.items()}
        given = self.labels.get(answer_key)
        mine = None if given is None else given[0]
        my_prior = -math.log(total + 1) if mine is None else prior[mine]
        best = Surprise(0, 0.0)
        for column, _, like in self.labels.values():
            if column == mine:
                continue
            steps = sorted(one[column] - (0.0 if mine is None else one[mine]) for one in evidence)
            against = sum(step for step in steps[:_LOUDEST] if step < 0)
            in_favour = sum(step for step in steps[-_LOUDEST:] if step > 0)
            margin = min(0.0, prior[column] - my_prior) + against + in_favour
            if margin > best.margin:
                best = Surprise(like, margin)
        return best if best.margin > 0 else None

    def _learn_label(
        self,
        event_id: int,
        producer: str,
        words: Sequence[str],
        answer_key: str,
        answer_characters: int,
    ) -> None:
        if answer_key not in self.labels:
            if len(self.labels) == MOST_LABELS or answer_characters > LABEL_CHARACTERS:
                self.unlabelled += 1
                return
            free = set(range(MOST_LABELS)) - {column for column, _, _ in self.labels.values()}
            self.labels[answer_key] = [min(free), 0, event_id]
        label = self.labels[answer_key]
        label[1] += 1
        me = 1 + hash_of(producer) % (_SEVERAL - 1)
        for slot in {slot_of(word) for word in words}:
            self.counts[slot * MOST_LABELS + label[0]] += 1
            if self.users[slot] != me:
                self.users[slot] = me if self.users[slot] == 0 else _SEVERAL
        if label[1] >= FULL:
            self._halve_labels()

    def _halve_labels(self) -> None:
        """What is old counts less; a label that nobody gives any more makes room."""
        self.counts = array("H", (count // 2 for count in self.counts))
        self.unlabelled /= 2
        for key, label in list(self.labels.items()):
            label[1] //= 2
            if label[1] == 0:
                self.counts[label[0] :: MOST_LABELS] = array("H", bytes(2 * SLOTS))
                del self.labels[key]

    # --- surprise ----------------------------------------------------------------------

    def note_producer(self, producer: str, *, surprising: bool) -> None:
        """Count an event that was held against what its task type usually looks like."""
        row = self.producers.setdefault(self._named(self.producers, producer), [0, 0])
        row[0] += 1
        row[1] += surprising
        if row[0] >= 1_000:
            row[:] = [row[0] // 2, row[1] // 2]

    @property
    def usual_surprise(self) -> float:
        """The share of events that surprise, of the median producer.

        Not of all events: one producer that sends nothing else should not look usual. Of whom
        few are known, none surprises.
        """
        shares = [bad / n if n >= REFRESH else 0.0 for n, bad in self.producers.values()]
        return statistics.median(shares) if shares else 0.0

    def suspect(self, phrases: Iterable[str], producer: str, *, rare: float) -> None:
        """Something in a prompt may have led to a surprising answer: whatever is rare in it."""
        for phrase in phrases:
            key = phrase_key(phrase)
            if key not in self.suspects:
                if (
                    len(phrase) < SHORTEST_SUSPECT
                    or self.spread[slot_of(phrase)] > 2 + rare * self.n
                ):
                    continue
                self.suspects[key] = Suspect()
            known = self.suspects.pop(key)
            known.n += 1
            known.surprising += 1
            if producer not in known.by and len(known.by) < MOST_ACCUSERS:
                known.by.append(producer)
            self.suspects[key] = known
        while len(self.suspects) > MOST_SUSPECTS:
            # Of those that were suspected once the oldest; without any the oldest of all.
            once = (key for key, one in self.suspects.items() if one.surprising == 1)
            del self.suspects[next(once, next(iter(self.suspects)))]

    def innocent(self, phrases: Iterable[str]) -> None:
        """A prompt with these led to no surprise."""
        if self.suspects:
            for phrase in phrases:
                if (known := self.suspects.get(phrase_key(phrase))) is not None:
                    known.n += 1

    def forgive(self, phrases: Iterable[str]) -> None:
        """An operator says that these lead to right answers."""
        for phrase in phrases:
            self.suspects.pop(phrase_key(phrase), None)

    # --- quotas ------------------------------------------------------------------------

    def cleared(self, what: str, hour: int) -> Mapping[str, int]:
        """Events by `producer` or `topic` in the last 24 hours, this one included."""
        found: Counter[str] = Counter()
        for key, tables in self.hours.items():
            if int(key) > hour - HOURS:
                found.update(tables.get(what, {}))
        return found

    def _count_hour(self, hour: int, producer: str, topic: str) -> None:
        self.hours = {key: one for key, one in self.hours.items() if int(key) > hour - HOURS}
        tables = self.hours.setdefault(str(hour), {"producer": {}, "topic": {}})
        for what, name, most in (
            ("producer", producer, MOST_PRODUCERS),
            ("topic", topic, MOST_TOPICS),
        ):
            table = tables[what]
            key = name if name in table or len(table) < most else OTHERS
            table[key] = table.get(key, 0) + 1

    # --- all of it ---------------------------------------------------------------------

    def learn(
        self,
        *,
        event_id: int,
        producer: str,
        topic: str,
        hour: int,
        words: Sequence[str],
        phrases: Sequence[str],
        answer_key: str,
        answer_characters: int,
        measured: Mapping[str, float],
    ) -> None:
        """Count an event that was cleared."""
        self.n += 1
        self.producers.setdefault(self._named(self.producers, producer), [0, 0])
        self._learn_label(event_id, producer, words, answer_key, answer_characters)
        for slot in {slot_of(phrase) for phrase in phrases}:
            self.spread[slot] = min(self.spread[slot] + 1, _SEVERAL)
        self._count_hour(hour, producer, topic)
        for name, value in measured.items():
            self.measures.setdefault(name, Measure()).add(value)
        if self.n >= FULL:
            self.n //= 2
            self.spread = array("H", (count // 2 for count in self.spread))

    @staticmethod
    def _named(table: Mapping[str, Any], name: str) -> str:
        return name if name in table or len(table) < MOST_PRODUCERS else OTHERS

    # --- as it is stored ---------------------------------------------------------------

    def packed(self) -> bytes:
        """As bytes: JSON, a line's end, and the three tables, compressed."""
        plain = {
            "n": self.n,
            "labels": self.labels,
            "unlabelled": self.unlabelled,
            "producers": self.producers,
            "suspects": {key: asdict(one) for key, one in self.suspects.items()},
            "hours": self.hours,
            "measures": {
                name: [list(one.values), one.seen, one.low, one.median, one.deviation]
                for name, one in self.measures.items()
            },
        }
        tables = self.counts.tobytes() + self.spread.tobytes() + self.users.tobytes()
        return zlib.compress(json.dumps(plain).encode() + b"\n" + tables, level=1)

    @classmethod
    def unpacked(cls, content: bytes) -> Self:
        """What `packed` made."""
        head, _, tables = zlib.decompress(content).partition(b"\n")
        plain = json.loads(head)
        return cls(
            n=plain["n"],
            labels=plain["labels"],
            unlabelled=plain["unlabelled"],
            producers=plain["producers"],
            suspects={key: Suspect(**one) for key, one in plain["suspects"].items()},
            hours=plain["hours"],
            measures={
                name: Measure(array("f", values), *found)
                for name, (values, *found) in plain["measures"].items()
            },
            counts=array("H", tables[: 2 * SLOTS * MOST_LABELS]),
            spread=array("H", tables[2 * SLOTS * MOST_LABELS : 2 * SLOTS * (MOST_LABELS + 1)]),
            users=array("H", tables[2 * SLOTS * (MOST_LABELS + 1) :]),
        )


def phrase_key(phrase: str) -> str:
    """What a phrase is known by: no text of an event is kept here."""
    return f"{hash_of(phrase):016x}"


def slot_of(phrase: str) -> int:
    """The place of a word, or of two in a row."""
    return hash_of(phrase) % SLOTS
