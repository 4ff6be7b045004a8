"""What the reading process sends back is whole, or it is noticed before it is stored."""

import marshal

import pytest

from consumers.reader_frames import PackedArrivals, pack_arrivals
from learning.ports import EventKind, ReceivedFeedback
from learning.short_names import of_events, of_tasks

AT = 1_700_000_000_000_000


def opinion(number: int) -> ReceivedFeedback:
    return ReceivedFeedback(
        producer="app",
        event_id=f"f-{number}",
        task_type="coding",
        task_id=f"t-{number}",
        approved=True,
        confidence=None,
        text=f"{{{number}}}",
        model_version=None,
        source="kafka",
        topic="feedback",
        partition=3,
        offset=number,
        occurred_at=AT - 1,
        received_at=AT,
    )


def unpacked(packed: bytes, n: int) -> PackedArrivals[ReceivedFeedback]:
    values = [f"{{{number}}}".encode() for number in range(n)]
    return PackedArrivals(ReceivedFeedback, packed, values, ("kafka", "feedback", 3), range(n), AT)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_arrivals_come_back_as_they_were(n: int) -> None:
    sent = [opinion(number) for number in range(n)]
    came = unpacked(pack_arrivals(sent), n)
    assert len(came) == n
    assert list(came) == sent


def test_arrivals_come_with_what_the_store_finds_them_by() -> None:
    came = unpacked(pack_arrivals([opinion(0), opinion(1)]), 2).columns()
    assert came.event_names == of_events(EventKind.FEEDBACK, ["app"] * 2, ["f-0", "f-1"])
    assert came.task_names == of_tasks(["coding"] * 2, ["t-0", "t-1"])


@pytest.mark.parametrize(
    "packed", [marshal.dumps(([], [], [])), pack_arrivals([opinion(0)])], ids=["none", "one"]
)
def test_fewer_than_were_asked_about_are_an_error_and_not_a_loss(packed: bytes) -> None:
    with pytest.raises(ValueError, match="came back for 2"):
        list(unpacked(packed, 2))
