"""What became of the demo's records, from answers in the form of the API's."""

from daemon.demo.broker import Place
from daemon.demo.ledger import Entry, reckon, totals
from daemon.demo.stream import Fate, Sample
from learning.ports import EventKind

STATUS = {
    "outputs": {
        "coding": {"states": {"queued": 3, "held": 1}},
        "normalize": {"states": {"queued": 2}},
    },
    "feedback": {"coding": {"joined": 2}},
    "dead_letters": {"not_json": 1, "bad_utf8": 2},
}
METRICS = """\
# TYPE learnd_duplicates_total counter
learnd_duplicates_total{source="kafka"} 4.0
learnd_duplicates_created{source="kafka"} 1.7e+09
"""


def sample(sort: str, event_id: str | None, kind: EventKind = EventKind.OUTPUT) -> Sample:
    return Sample(sort, kind, "key", b"", Fate.QUEUED, event_id)


def test_an_output_has_the_state_and_the_reason_that_were_stored() -> None:
    outputs = {"e-1": {"state": "held", "reason": "no verdict yet"}}

    entries = reckon([sample("quiet", "e-1")], [Place("t", 0, 0)], outputs, {})

    assert entries == [Entry("quiet", 1, "held", "no verdict yet")]


def test_a_dead_letter_is_known_by_its_place() -> None:
    place = Place("t", 2, 7)
    letters = {place: {"reason": "bad_utf8", "detail": "byte 0"}}

    entries = reckon([sample("junk", None)], [place], {}, letters)

    assert entries == [Entry("junk", 1, "dead letter", "bad_utf8: byte 0")]


def test_a_record_that_nobody_knows_is_missing() -> None:
    assert reckon([sample("lost", "e-1")], [Place("t", 0, 0)], {}, {}) == [
        Entry("lost", 1, "missing", "")
    ]


def test_what_trains_comes_first_and_sorts_are_counted() -> None:
    samples = [
        sample("again", "e-1"),
        sample("good", "e-1"),
        sample("good", "e-2"),
        sample("opinion", "f-1", EventKind.FEEDBACK),
    ]
    outputs = {name: {"state": "queued", "reason": "approved"} for name in ("e-1", "e-2")}
    places = [Place("t", 0, offset) for offset in range(4)]

    entries = reckon([samples[1], samples[0], *samples[2:]], places, outputs, {})

    assert [(entry.sort, entry.n, entry.became) for entry in entries] == [
        ("good", 2, "queued"),
        ("again", 1, "duplicate"),
        ("opinion", 1, "feedback"),
    ]


def test_the_totals_add_up_every_kind_of_record() -> None:
    found = totals(STATUS, METRICS)

    assert found.outputs == {"queued": 5, "held": 1}
    assert found.dead_letters == 3
    assert found.duplicates == 4
    assert found.n == 6 + 2 + 3 + 4
