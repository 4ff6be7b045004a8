"""The demo's traffic: good outputs, and everything that goes wrong in a real topic.

Pure: a seed in, records out, each with what learnd is expected to make of it. The demo
does not show that expectation but what the store says; the tests compare the two.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Any, Final

from daemon.demo.tasks import (
    Example,
    coding_example,
    normalize_example,
    poisoned_coding_example,
    poisoned_normalize_example,
)
from learning.ports import EventKind

TASKS: Final[Mapping[str, Callable[[Random], Example]]] = {
    "normalize": normalize_example,
    "coding": coding_example,
}
POISON: Final[Mapping[str, Callable[[Random], Example]]] = {
    "normalize": poisoned_normalize_example,
    "coding": poisoned_coding_example,
}
PRODUCER: Final = "demo-app"
CARELESS_PRODUCER: Final = "careless-app"


class Fate(StrEnum):
    """What learnd should make of a record."""

    QUEUED = "queued"
    HELD = "held"
    REJECTED = "rejected"
    WITHDRAWN = "withdrawn"
    QUARANTINED = "quarantined"
    DEAD_LETTER = "dead letter"
    DUPLICATE = "duplicate"
    FEEDBACK = "feedback"


@dataclass(frozen=True)
class Sample:
    """One record of the stream."""

    sort: str
    """What kind of record it is, in words for the screen."""
    kind: EventKind
    """Which topic it goes to."""
    key: str
    """Records with one key keep their order."""
    value: bytes
    fate: Fate
    event_id: str | None = None
    """None when the bytes are no event."""


class Stream:
    """Makes records. The same seed and the same calls give the same records."""

    def __init__(self, seed: int) -> None:
        self._rng = Random(seed)  # noqa: S311 - a reproducible draw, not a secret
        self._n_made = 0

    def labelled(self, task_type: str, n: int) -> list[Example]:
        """Examples as a person would label them, no prompt twice."""
        examples: dict[str, Example] = {}
        while len(examples) < n:
            prompt, output = TASKS[task_type](self._rng)
            examples.setdefault(" ".join(prompt.casefold().split()), (prompt, output))
        return list(examples.values())

    def approved(self, task_type: str, n: int) -> list[Sample]:
        """Outputs that a person approved, with confidence above the bar."""
        return [
            self._output("approved, confident", Fate.QUEUED, task_type, approved=True)
            for _ in range(n)
        ]

    def noise(self, task_type: str) -> list[Sample]:
        """Some of everything that must not train as it came, 32 records in mixed order."""
        samples = [
            *self._undecided(task_type),
            *self._corrected(task_type),
            *self._broken(task_type),
        ]
        self._rng.shuffle(samples)
        return [*samples, *self._repeated(task_type)]

    def poisoned(self, task_type: str, n: int) -> list[Sample]:
        """Wrong outputs that their producer approves all the same."""
        return [
            self._output(
                "wrong, but approved",
                Fate.QUEUED,
                task_type,
                POISON[task_type](self._rng),
                producer=CARELESS_PRODUCER,
                approved=True,
            )
            for _ in range(n)
        ]

    def _undecided(self, task_type: str) -> list[Sample]:
        low = self._rng.uniform
        return [
            *(
                self._output(
                    "approved, low confidence",
                    Fate.HELD,
                    task_type,
                    approved=True,
                    confidence=round(low(0.2, 0.65), 2),
                )
                for _ in range(4)
            ),
            *(self._output("no verdict given", Fate.HELD, task_type) for _ in range(3)),
            *(
                self._output("rejected by the producer", Fate.REJECTED, task_type, approved=False)
                for _ in range(4)
            ),
            *(
                self._output(
                    "blank output",
                    Fate.QUARANTINED,
                    task_type,
                    (TASKS[task_type](self._rng)[0], blank),
                    approved=True,
                )
                for blank in ("", " \n")
            ),
        ]

    def _corrected(self, task_type: str) -> list[Sample]:
        """Outputs whose verdict changes with the feedback that follows, or comes first."""
        doubtful = [
            self._output(
                "low confidence, a person says yes",
                Fate.QUEUED,
                task_type,
                approved=True,
                confidence=round(self._rng.uniform(0.4, 0.65), 2),
            )
            for _ in range(3)
        ]
        mistaken = [
            self._output("approved, a person says no", Fate.WITHDRAWN, task_type, approved=True)
            for _ in range(2)
        ]
        return [
            *doubtful,
            *(self._feedback("feedback", json.loads(s.value), approved=True) for s in doubtful),
            *mistaken,
            *(self._feedback("feedback", json.loads(s.value), approved=False) for s in mistaken),
        ]

    def _broken(self, task_type: str) -> list[Sample]:
        """Bytes that are no event."""

        def fields(**changes: Any) -> dict[str, Any]:
            return self._fields(task_type) | {"approved": True} | changes

        misspelt = fields()
        misspelt["aproved"] = misspelt.pop("approved")
        return [
            self._junk("bytes, not text", b"\x89PNG\r\n\x1a\n\xff\xfe" + self._rng.randbytes(24)),
            self._junk("cut off in transit", _encoded(fields())[:-25]),
            self._junk("confidence NaN", _encoded(fields(confidence=float("nan")))),
            self._junk("confidence as text", _encoded(fields(confidence="high"))),
            self._junk("misspelt field", _encoded(misspelt)),
            self._junk("unknown task type", _encoded(fields(task_type="horoscope"))),
        ]

    def _repeated(self, task_type: str) -> list[Sample]:
        """An output that is sent again, as it was and with another body under its id."""
        first = self._output("approved, confident", Fate.QUEUED, task_type, approved=True)
        body = json.loads(first.value)
        other = _encoded(body | {"output": body["output"] + " "})
        return [
            first,
            Sample(
                "sent twice",
                first.kind,
                first.key,
                first.value,
                Fate.DUPLICATE,
                first.event_id,
            ),
            Sample("id used again", first.kind, first.key, other, Fate.DEAD_LETTER),
        ]

    def _output(
        self,
        sort: str,
        fate: Fate,
        task_type: str,
        example: Example | None = None,
        **changes: Any,
    ) -> Sample:
        body = self._fields(task_type, example) | changes
        return Sample(
            sort, EventKind.OUTPUT, body["task_id"], _encoded(body), fate, body["event_id"]
        )

    def _fields(self, task_type: str, example: Example | None = None) -> dict[str, Any]:
        prompt, output = example or TASKS[task_type](self._rng)
        number = self._next_number()
        return {
            "event_id": f"e-{number:05}",
            "producer": PRODUCER,
            "task_id": f"t-{number:05}",
            "task_type": task_type,
            "prompt": prompt,
            "output": output,
            "confidence": round(self._rng.uniform(0.75, 0.99), 2),
        }

    def _feedback(self, sort: str, output: Mapping[str, Any], *, approved: bool) -> Sample:
        body = {
            "event_id": f"f-{self._next_number():05}",
            "producer": "demo-review",
            "task_id": output["task_id"],
            "task_type": output["task_type"],
            "approved": approved,
            "feedback": {"user_rating": 5 if approved else 1},
        }
        return Sample(
            sort,
            EventKind.FEEDBACK,
            output["task_id"],
            _encoded(body),
            Fate.FEEDBACK,
            body["event_id"],
        )

    def _junk(self, sort: str, value: bytes) -> Sample:
        return Sample(
            sort, EventKind.OUTPUT, f"t-{self._next_number():05}", value, Fate.DEAD_LETTER
        )

    def _next_number(self) -> int:
        self._n_made += 1
        return self._n_made


def _encoded(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body).encode()
