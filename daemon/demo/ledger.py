"""What became of the records that were sent, put together from what the daemon answers.

Pure. A dead letter is found by the place that the broker gave the record, an output by its
event id; nothing here knows what was expected.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from daemon.demo.broker import Place
from daemon.demo.stream import Sample
from learning.lifecycle import EventState
from learning.ports import EventKind

Json = Mapping[str, Any]

_ORDER: Final = (
    EventState.QUEUED,
    EventState.HELD,
    EventState.QUARANTINED,
    EventState.REJECTED,
    EventState.WITHDRAWN,
    "dead letter",
    "duplicate",
    "feedback",
)


@dataclass(frozen=True)
class Entry:
    """Records of one sort that came to the same end. `why` is what was stored for the first."""

    sort: str
    n: int
    became: str
    why: str


def reckon(
    samples: Sequence[Sample],
    places: Sequence[Place],
    outputs: Mapping[str, Json],
    dead_letters: Mapping[Place, Json],
) -> list[Entry]:
    """Entries, those together that came to the same end: what trains first.

    `places` go with `samples` by index; `outputs` are event summaries by event id.
    """
    counts: dict[tuple[str, str], int] = {}
    reasons: dict[tuple[str, str], str] = {}
    seen: set[str] = set()
    for sample, place in zip(samples, places, strict=True):
        became, why = _fate(sample, place, outputs, dead_letters, seen)
        counts[sample.sort, became] = counts.get((sample.sort, became), 0) + 1
        reasons.setdefault((sample.sort, became), why)
        if sample.event_id is not None:
            seen.add(sample.event_id)
    entries = [
        Entry(sort, n, became, reasons[sort, became]) for (sort, became), n in counts.items()
    ]
    return sorted(entries, key=lambda entry: (_rank(entry.became), -entry.n, entry.sort))


def _rank(became: str) -> int:
    return _ORDER.index(became) if became in _ORDER else len(_ORDER)


def _fate(
    sample: Sample,
    place: Place,
    outputs: Mapping[str, Json],
    dead_letters: Mapping[Place, Json],
    seen: set[str],
) -> tuple[str, str]:
    letter = dead_letters.get(place)
    if letter is not None:
        return "dead letter", f"{letter['reason']}: {letter['detail']}"
    if sample.kind is EventKind.FEEDBACK:
        return "feedback", "joined on (task type, task id), whichever came first"
    if sample.event_id in seen:
        return "duplicate", "stored already under this producer and event id"
    output = outputs.get(sample.event_id or "")
    return (output["state"], output["reason"]) if output is not None else ("missing", "")


@dataclass(frozen=True)
class Totals:
    """What the daemon says it has, in records."""

    outputs: Mapping[str, int]
    """By state."""
    feedback: Mapping[str, int]
    dead_letters: int
    duplicates: int

    @property
    def n(self) -> int:
        """All of them."""
        return (
            sum(self.outputs.values())
            + sum(self.feedback.values())
            + self.dead_letters
            + self.duplicates
        )


def totals(status: Json, metrics: str) -> Totals:
    """From the answer of /v1/status and the page of /metrics."""
    outputs: dict[str, int] = {}
    feedback: dict[str, int] = {}
    for one in status["outputs"].values():
        for state, n in one["states"].items():
            outputs[state] = outputs.get(state, 0) + n
    for states in status["feedback"].values():
        for state, n in states.items():
            feedback[state] = feedback.get(state, 0) + n
    return Totals(
        outputs,
        feedback,
        sum(status["dead_letters"].values()),
        round(
            sum(
                float(line.rpartition(" ")[2])
                for line in metrics.splitlines()
                if line.startswith("learnd_duplicates_total{")
            )
        ),
    )
