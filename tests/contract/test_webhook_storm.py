"""webhook_storm: ten thousand deliveries, few of them honest, on a whole application.

Signed events come again and again, in any order, up to and beyond the limits of time;
between them forgeries, cut and swollen bodies, strange headers and kinds of content. Whatever
comes: no error, one row and one nudge for a delivery, nothing for a forgery, and runs that
nothing moves.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from daemon.store.tables import batches, events, runs, transitions, versions
from daemon.webhook_signature import ID_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, SigningKey
from daemon.webhooks import LONGEST_BODY_BYTES
from tests.builders import NOON
from tests.contract.driver import rows
from tests.contract.webhook_door import WITH_TOKEN, Answer, Door, door_of
from tests.webhooks import Headers, event, replaced, signed

SEED = 20261121
DELIVERIES = {"sqlite": 10_000, "postgresql": 2_000}
HONEST = 40
"""Different deliveries among them, each sent often."""
AT_ONCE = 25
TYPES = (
    "fine_tuning.job.succeeded",
    "fine_tuning.job.failed",
    "fine_tuning.job.cancelled",
    "batch.completed",
)
ELSEWHERE = SigningKey(b"the key of somebody else, long")


@dataclass(frozen=True)
class Sent:
    """One request, and the statuses that are right for it."""

    headers: Headers
    body: bytes
    right: frozenset[int]
    delivery: str | None = None
    """Of an honest one."""
    breaks_off: bool = False


class Storm:
    """Makes up requests, the same ones for the same seed."""

    def __init__(self, seed: int, jobs: Sequence[str]) -> None:
        self._random = random.Random(seed)
        self._bodies = {
            f"wh_{number}": event(self._random.choice(TYPES), self._random.choice(jobs))
            for number in range(HONEST)
        }
        swollen = b"{" + b" " * LONGEST_BODY_BYTES + b"}"
        self._too_long = Sent(signed("wh_long", NOON, swollen), swollen, frozenset({413}))
        self._kinds: Sequence[Callable[[str, bytes], Sent]] = (
            self._forged,
            self._out_of_time,
            self._strange_signature,
            self._cut,
            self._swollen,
            self._without_a_header,
            self._junk_that_is_signed,
            self._broken_off,
        )

    @property
    def about(self) -> dict[str, bytes]:
        """The body of each honest delivery."""
        return self._bodies

    def next(self) -> Sent:
        """One more request: half of them honest, and repeats of each other."""
        delivery = self._random.choice(list(self._bodies))
        body = self._bodies[delivery]
        if self._random.random() < 0.5:
            return self._honest(delivery, body)
        return self._random.choice(self._kinds)(delivery, body)

    def _honest(self, delivery: str, body: bytes) -> Sent:
        """A retry keeps the id and changes the time; other content types are no less signed."""
        seconds = self._random.choice([-300, -7, 0, 1, 300])
        headers = signed(delivery, NOON + timedelta(seconds=seconds), body)
        kind = self._random.choice([b"application/json", b"text/html", b"\xff\x00", b""])
        return Sent([*headers, (b"content-type", kind)], body, frozenset({200}), delivery)

    def _forged(self, delivery: str, body: bytes) -> Sent:
        changed = self._random.choice([body + b" ", body.replace(b"ftjob", b"other"), b"{}"])
        key = self._random.choice([None, ELSEWHERE])
        headers = signed(delivery, NOON, body) if key is None else signed(delivery, NOON, body, key)
        return _refused([*WITH_TOKEN, *headers], changed if key is None else body)

    def _out_of_time(self, delivery: str, body: bytes) -> Sent:
        seconds = self._random.choice([-301, 301, -86_400, 10**9])
        return _refused(signed(delivery, NOON + timedelta(seconds=seconds), body), body)

    def _strange_signature(self, delivery: str, body: bytes) -> Sent:
        value = self._random.choice(
            ["v1,é".encode("latin-1"), "v1,签名".encode(), b"v1,\x00\xff", b"", b"v1," * 2_000]
        )
        name = self._random.choice([SIGNATURE_HEADER, ID_HEADER, TIMESTAMP_HEADER])
        return _refused(replaced(signed(delivery, NOON, body), name, value), body)

    def _cut(self, delivery: str, body: bytes) -> Sent:
        at = self._random.randrange(len(body))
        return _refused(signed(delivery, NOON, body), body[:at])

    def _swollen(self, delivery: str, body: bytes) -> Sent:
        return self._too_long

    def _without_a_header(self, delivery: str, body: bytes) -> Sent:
        headers = signed(delivery, NOON, body)
        headers.pop(self._random.randrange(len(headers)))
        return _refused(headers, body)

    def _junk_that_is_signed(self, delivery: str, body: bytes) -> Sent:
        junk = self._random.choice([self._random.randbytes(30), b"[" * 9_000, b"", body[:-1]])
        return _refused(signed(delivery, NOON, junk), junk)

    def _broken_off(self, delivery: str, body: bytes) -> Sent:
        return Sent(signed(delivery, NOON, body), body[:-2], frozenset({0, 400}), breaks_off=True)


def _refused(headers: Headers, body: bytes) -> Sent:
    return Sent(headers, body, frozenset({400}))


async def test_a_storm_of_webhooks_has_one_effect_for_each_honest_delivery(
    store_url: str, tmp_path: Path, kind: str
) -> None:
    async with door_of(store_url, tmp_path) as door:
        await door.run_with_job("ftjob-ours")
        untouched = (runs, transitions, events, batches, versions)
        before = [await rows(door.store.database, table) for table in untouched]
        storm = Storm(SEED, ["ftjob-ours", "ftjob-of-others"])

        answers: Counter[int] = Counter()
        stored: Counter[str] = Counter()
        for start in range(0, DELIVERIES[kind], AT_ONCE):
            sent = [storm.next() for _ in range(AT_ONCE)]
            for one, answer in zip(
                sent, await asyncio.gather(*(_send(door, one) for one in sent)), strict=True
            ):
                assert answer.status in one.right, (SEED, start, one, answer)
                answers[answer.status] += 1
                if one.delivery is not None:
                    stored[one.delivery] += answer.said["status"] == "stored"
            if start % 1_000 == 0:
                await door.hints.tell()
        await door.hints.tell()

        assert stored == dict.fromkeys(storm.about, 1), "each honest delivery was new once"
        kept = await door.kept()
        assert {row.delivery_id for row in kept} == set(storm.about)
        assert all(row.type.encode() in storm.about[row.delivery_id] for row in kept)
        ours = [body for body in storm.about.values() if b"ftjob-ours" in body]
        assert door.nudged == ["ftjob-ours"] * len(ours)
        assert [await rows(door.store.database, table) for table in untouched] == before
        assert answers[200] > DELIVERIES[kind] / 3
        assert answers[400] > DELIVERIES[kind] / 4


async def _send(door: Door, one: Sent) -> Answer:
    half = len(one.body) // 2
    return await door.knock(
        one.headers, one.body[:half], one.body[half:], breaks_off=one.breaks_off
    )
