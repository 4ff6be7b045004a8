"""JSONL files into a real database: every complete line once, whatever happens to the files."""

import asyncio
import json
import resource
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from consumers.file_backlog import FileLag
from consumers.ingest import Ingest
from consumers.jsonl_source import JsonlSource
from consumers.wire import Limits
from daemon.store import Store
from daemon.store.intake import Intake
from daemon.store.tables import dead_letters, events, feedback
from daemon.store.views.positions import StoredPositions
from learning.facts import EventsStored, Fact, TopicRecreated
from learning.lines import ModelLines
from learning.ports import Block, EventKind, StoreUnavailableError
from tests.builders import JUDGE
from tests.contract.driver import LINE, StoppedClock

LINES = ModelLines([LINE])
LIMITS = Limits(max_bytes=2_000)


def line(number: int, **fields: Any) -> bytes:
    """An output without an id of its own: what is read twice would be stored twice."""
    event = {
        "producer": "web",
        "task_id": f"t-{number}",
        "task_type": "normalize",
        "prompt": f"question {number}",
        "output": f"answer {number}",
    } | fields
    return json.dumps(event).encode() + b"\n"


def lines(*numbers: int) -> bytes:
    return b"".join(map(line, numbers))


class Desk:
    """A folder, the store, and a source that is started anew whenever a test says so."""

    def __init__(self, store: Store, clock: StoppedClock, folder: Path) -> None:
        self.store = store
        self.clock = clock
        self.folder = folder
        self.facts: list[Fact] = []
        self.now = 0.0
        self.closed: str | None = None
        self.restart()

    def restart(self) -> None:
        self.source = self.another()

    def another(self) -> JsonlSource:
        clock = self.clock
        announce = self.facts.append
        ingest = Ingest(self.store.intake, LINES, JUDGE, announce, clock, limits=LIMITS)
        return JsonlSource(
            ingest,
            self.store.intake,
            StoredPositions(self.store.database),
            announce,
            lambda kind: self.closed,
            {
                EventKind.OUTPUT: [self.folder / "*.jsonl"],
                EventKind.FEEDBACK: [self.folder / "feedback"],
            },
            limits=LIMITS,
            monotonic=lambda: self.now,
            wall_clock=lambda: time.time() + self.now,
        )

    def write(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def append(self, name: str, content: bytes) -> None:
        with (self.folder / name).open("ab") as file:
            file.write(content)

    async def look(self) -> None:
        await self.source.look(asyncio.Event())

    async def tasks(self, table: Any = events) -> list[str]:
        """The task of every stored event, in the order of arrival."""
        query = select(table.c.task_id).order_by(table.c.id)
        return await self.store.database.read(lambda tx: list(tx.execute(query).scalars()))

    async def letters(self) -> list[Any]:
        query = select(dead_letters).order_by(dead_letters.c.id)
        return await self.store.database.read(lambda tx: list(tx.execute(query)))

    def anew(self) -> list[Fact]:
        return [fact for fact in self.facts if isinstance(fact, TopicRecreated)]


def tasks(*numbers: int) -> list[str]:
    return [f"t-{number}" for number in numbers]


@pytest.fixture
def desk(store: Store, clock: StoppedClock, tmp_path: Path) -> Desk:
    folder = tmp_path / "inbox"
    (folder / "feedback").mkdir(parents=True)
    return Desk(store, clock, folder)


async def test_lines_are_read_as_they_are_written(desk: Desk) -> None:
    desk.write("a.jsonl", lines(1, 2))
    await desk.look()
    desk.append("a.jsonl", lines(3))
    desk.write("b.jsonl", lines(4))
    await desk.look()
    await desk.look()
    assert sorted(await desk.tasks()) == tasks(1, 2, 3, 4)


async def test_a_restart_goes_on_where_the_store_is(desk: Desk) -> None:
    desk.write("a.jsonl", lines(1, 2))
    await desk.look()
    desk.append("a.jsonl", lines(3))
    desk.restart()
    await desk.look()
    assert await desk.tasks() == tasks(1, 2, 3)
    assert desk.anew() == []


async def test_the_last_line_waits_for_its_line_feed(desk: Desk) -> None:
    whole = line(2)
    desk.write("a.jsonl", line(1) + whole[:30])
    await desk.look()
    desk.append("a.jsonl", whole[30:-1])
    await desk.look()
    assert await desk.tasks() == tasks(1)
    desk.append("a.jsonl", b"\n")
    await desk.look()
    assert await desk.tasks() == tasks(1, 2)
    assert await desk.letters() == []


async def test_a_bad_line_is_a_dead_letter_with_its_file_and_byte(desk: Desk) -> None:
    path = desk.write("a.jsonl", line(1) + b"{oops\n\n" + line(2) + b"x" * 9_000 + b"\n" + line(3))
    await desk.look()
    assert await desk.tasks() == tasks(1, 2, 3)
    bad, long = await desk.letters()
    assert (bad.source, bad.topic, bad.offset) == ("file", str(path), len(line(1)))
    assert (bad.reason, bad.raw) == ("not_json", b"{oops")
    assert (long.reason, len(long.raw)) == ("too_large", 2_001)


async def test_the_folder_says_the_kind(desk: Desk) -> None:
    reaction = {"producer": "chat", "task_id": "t-1", "task_type": "normalize", "approved": True}
    (desk.folder / "feedback" / "f.jsonl").write_bytes(json.dumps(reaction).encode() + b"\n")
    await desk.look()
    assert await desk.tasks(feedback) == tasks(1)
    assert await desk.tasks() == []


async def test_a_store_that_is_away_loses_and_doubles_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Intake.append

    async def away(intake: Intake, block: Block) -> EventsStored:
        raise StoreUnavailableError("locked")

    async def dies_after_commit(intake: Intake, block: Block) -> EventsStored:
        await append(intake, block)
        raise StoreUnavailableError("nobody knows whether it was stored")

    desk.write("a.jsonl", lines(1, 2))
    for failing in (away, dies_after_commit):
        monkeypatch.setattr(Intake, "append", failing)
        with pytest.raises(StoreUnavailableError):
            await desk.look()
    monkeypatch.setattr(Intake, "append", append)
    desk.append("a.jsonl", lines(3))
    desk.restart()
    await desk.look()
    assert await desk.tasks() == tasks(1, 2, 3)


# --- rotation -------------------------------------------------------------------------


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_file_that_was_rotated_away_is_read_to_its_end_first(
    desk: Desk, restarted: bool
) -> None:
    path = desk.write("a.jsonl", lines(1, 2))
    await desk.look()
    desk.append("a.jsonl", lines(3))
    path.rename(desk.folder / "a.jsonl.1")  # a name that is not watched
    desk.write("a.jsonl", lines(4))
    if restarted:
        desk.restart()
    await desk.look()
    desk.append("a.jsonl", lines(5))
    await desk.look()
    assert await desk.tasks() == tasks(1, 2, 3, 4, 5)
    assert desk.anew() == [TopicRecreated(str(path), 0, len(lines(1, 2, 3)), 0)]


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("replaced_at_once", [False, True])
async def test_a_watched_file_keeps_its_position_under_its_new_name(
    desk: Desk, restarted: bool, replaced_at_once: bool
) -> None:
    path = desk.write("a.jsonl", lines(1, 2))
    await desk.look()
    desk.append("a.jsonl", lines(3))
    path.rename(desk.folder / "a-yesterday.jsonl")
    if not replaced_at_once:
        await desk.look()
    desk.write("a.jsonl", lines(4))
    if restarted:
        desk.restart()
    await desk.look()
    desk.append("a-yesterday.jsonl", lines(5))
    await desk.look()
    assert sorted(await desk.tasks()) == tasks(1, 2, 3, 4, 5)


async def test_a_copy_beside_a_truncated_file_is_recognised(desk: Desk) -> None:
    path = desk.write("a.jsonl", lines(1, 2))
    await desk.look()
    desk.append("a.jsonl", lines(3))
    desk.write("a.jsonl.1", path.read_bytes())
    path.write_bytes(b"")
    await desk.look()
    desk.append("a.jsonl", lines(4))
    await desk.look()
    assert await desk.tasks() == tasks(1, 2, 3, 4)
    assert len(desk.anew()) == 1


async def test_a_copy_of_a_watched_file_is_another_file(desk: Desk) -> None:
    path = desk.write("a.jsonl", lines(1))
    await desk.look()
    desk.write("b.jsonl", path.read_bytes() + line(2))
    await desk.look()
    assert await desk.tasks() == tasks(1, 1, 2)


@pytest.mark.parametrize("content", [lines(7), lines(7, 8, 9, 10)])
async def test_another_file_under_the_same_name_is_read_from_its_start_and_said(
    desk: Desk, content: bytes
) -> None:
    desk.write("a.jsonl", lines(1, 2))
    await desk.look()
    desk.write("a.jsonl", content)
    await desk.look()
    assert await desk.tasks() == [*tasks(1, 2), *tasks(7, 8, 9, 10)[: content.count(b"\n")]]
    (fact,) = desk.anew()
    assert isinstance(fact, TopicRecreated)
    assert fact.stored_offset == len(lines(1, 2))


async def test_a_file_that_is_put_back_with_the_same_beginning_is_read_on(desk: Desk) -> None:
    path = desk.write("a.jsonl", lines(1, 2))
    await desk.look()
    path.unlink()
    await desk.look()
    desk.write("a.jsonl", lines(1, 2, 3))
    await desk.look()
    assert await desk.tasks() == tasks(1, 2, 3)
    assert desk.anew() == []


async def test_a_link_is_not_read(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(lines(1))
    (desk.folder / "a.jsonl").symlink_to(tmp_path / "secret")
    await desk.look()
    assert await desk.tasks() == []
    assert await desk.letters() == []


async def test_a_second_daemon_on_the_same_file_cannot_double_it(desk: Desk) -> None:
    desk.write("a.jsonl", lines(1))
    await desk.look()
    other = desk.another()
    await other.look(asyncio.Event())
    desk.append("a.jsonl", lines(2))
    await desk.look()  # its claim is stale
    await other.look(asyncio.Event())
    desk.append("a.jsonl", lines(3))
    await desk.look()
    await other.look(asyncio.Event())
    assert await desk.tasks() == tasks(1, 2, 3)

    desk.now += 61.0  # the other one is gone
    desk.append("a.jsonl", lines(4))
    await desk.look()
    assert await desk.tasks() == tasks(1, 2, 3, 4)


async def test_a_large_file_does_not_fill_the_memory(desk: Desk) -> None:
    with (desk.folder / "a.jsonl").open("wb") as file:
        for _ in range(1_000):
            file.write(b" " * 99_999 + b"\n")
        file.write(b"x" * 50_000_000 + b"\n" + line(1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await desk.look()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert await desk.tasks() == tasks(1)
    assert (after - before) * 1_024 < 40_000_000


async def test_files_wait_while_intake_is_closed(desk: Desk) -> None:
    desk.write("a.jsonl", lines(1, 2))
    desk.closed = "100,000 events wait"
    await desk.look()
    assert await desk.tasks() == []
    desk.closed = None
    await desk.look()
    assert await desk.tasks() == tasks(1, 2)


async def test_the_lag_tells_what_waits_and_since_when(desk: Desk) -> None:
    nothing = FileLag()
    assert desk.source.lag() == {EventKind.OUTPUT: nothing, EventKind.FEEDBACK: nothing}
    desk.closed = "too many events wait"
    content = lines(1, 2)
    desk.write("a.jsonl", content)
    desk.write("b.jsonl", lines(3))
    await desk.look()
    lag = desk.source.lag()
    assert lag[EventKind.OUTPUT].n_bytes == len(content) + len(lines(3))
    assert lag[EventKind.FEEDBACK] == nothing
    desk.now += 3_600
    assert desk.source.lag()[EventKind.OUTPUT].oldest_seconds >= 3_600

    desk.closed = None
    await desk.look()
    assert desk.source.lag()[EventKind.OUTPUT] == nothing
    half = line(4)[:-1]
    desk.append("a.jsonl", half)
    desk.now = 60.0
    await desk.look()
    assert desk.source.lag()[EventKind.OUTPUT].n_bytes == len(half)
    assert 60 <= desk.source.lag()[EventKind.OUTPUT].oldest_seconds < 3_600


async def test_of_a_file_that_was_cut_short_everything_waits(desk: Desk) -> None:
    desk.write("a.jsonl", lines(1, 2, 3))
    await desk.look()
    desk.closed = "too many events wait"
    desk.write("a.jsonl", lines(4))
    await desk.look()
    assert desk.source.lag()[EventKind.OUTPUT].n_bytes == len(lines(4))


async def test_a_source_ends_when_it_is_told_to(desk: Desk) -> None:
    stopping = asyncio.Event()
    running = asyncio.create_task(desk.source.run(stopping))
    await asyncio.sleep(0)
    stopping.set()
    await asyncio.wait_for(running, 10.0)
