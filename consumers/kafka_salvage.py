"""What can still be had from a dead letter that is a whole batch of Kafka's: its records.

Only for a replay, which a person asked for: what a damaged batch has to say is believed here
as far as it can be read. Judges no record.
"""

from collections.abc import Iterator, Sequence

import structlog

from consumers.kafka_batches import records_left_in
from consumers.kafka_headers import fault_in_headers
from consumers.reading import Record
from consumers.wire import Reason, Undecodable
from learning.ports import DeadLetter, Origin

log = structlog.get_logger(__name__)

BATCHES = frozenset({Reason.BATCH_TOO_LARGE, Reason.UNREADABLE_BATCH, Reason.DAMAGED_BATCH})
"""The reasons of dead letters that are batches."""


def records_of(letter: DeadLetter, max_batch_bytes: int) -> Sequence[Record]:
    """The records of a batch that can be told apart, from its first one on.

    When there is none, or the letter is no batch, it is one record itself; that of a batch
    says what is wrong with it. Inflates to at most `max_batch_bytes`.
    """
    if letter.reason not in BATCHES:
        return [Record(letter.kind, letter.raw, letter.origin)]
    found: list[Record] = []
    try:
        found.extend(_records_in(letter, max_batch_bytes))
    except MemoryError:
        raise
    except Exception as error:  # the codecs raise anything
        what = f"{type(error).__name__}: {error}"[:200]
        if not found:
            fault = Undecodable(Reason(letter.reason), f"no record can be read ({what})")
            return [Record(letter.kind, letter.raw, letter.origin, fault)]
        log.warning("the end of a batch cannot be read", n_read=len(found), error=what)
    return found


def _records_in(letter: DeadLetter, max_batch_bytes: int) -> Iterator[Record]:
    place = letter.origin
    for record in records_left_in(letter.raw, max_batch_bytes):
        if not 0 <= record.offset <= place.offset:
            raise ValueError(f"a record at offset {record.offset}, behind the end of the batch")
        origin = Origin(place.source, place.topic, place.partition, record.offset)
        yield Record(letter.kind, record.value, origin, fault_in_headers(record.headers))
