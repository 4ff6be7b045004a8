"""Lineage both ways, on real SQLite filled row by row (P5)."""

from pathlib import Path

import pytest

from daemon.store.database import Database
from daemon.store.views.lineage import (
    BatchLineage,
    EventLineage,
    Lineages,
    UnreadableIdError,
    VersionLineage,
)
from learning.errors import NotFoundError
from tests.rows import Generations, Past


@pytest.fixture
async def made(database: Database) -> Generations:
    return await database.write(lambda tx: Generations(Past(tx)))


@pytest.fixture
def lineages(database: Database) -> Lineages:
    return Lineages(database)


async def known_by(lineages: Lineages, event: int) -> dict[str, bool]:
    """Versions that know an event, and whether directly."""
    found = await lineages.of(str(event))
    assert isinstance(found, EventLineage)
    assert found.n_known_by == len(found.known_by)
    return {one.version: one.directly for one in found.known_by}


async def behind(lineages: Lineages, text: str) -> dict[int, str]:
    """Events behind a version, with their roles."""
    found = await lineages.of(text)
    assert isinstance(found, VersionLineage)
    assert found.n_events == len(found.events.items)
    return {one.event_row_id: one.role for one in found.events.items}


async def test_a_version_knows_what_its_parents_were_trained_on(
    lineages: Lineages, made: Generations
) -> None:
    assert await known_by(lineages, made.old) == {
        "1.0.1": True,
        "1.0.2": False,
        "1.0.3-rc.1": False,
        "1.0.3": False,
    }
    assert await known_by(lineages, made.fresh) == {
        "1.0.2": True,
        "1.0.3-rc.1": False,
        "1.0.3": False,
    }


async def test_a_replayed_event_is_known_directly_again(
    lineages: Lineages, made: Generations
) -> None:
    assert await known_by(lineages, made.repeated) == {
        "1.0.1": True,
        "1.0.2": False,
        "1.0.3-rc.1": False,
        "1.0.3": True,
    }


async def test_a_refused_candidate_knows_and_its_siblings_do_not(
    lineages: Lineages, made: Generations
) -> None:
    assert await known_by(lineages, made.lost) == {"1.0.3-rc.1": True}


async def test_a_held_out_event_judges_and_is_known_to_none(
    lineages: Lineages, made: Generations
) -> None:
    found = await lineages.of(str(made.judge))
    assert isinstance(found, EventLineage)
    assert (found.held_out, found.frozen) == (True, True)
    assert found.known_by == []
    assert [(use.role, use.version) for use in found.uses] == [("held_out", "1.0.1")]


async def test_the_events_behind_a_version_include_its_parents(
    lineages: Lineages, made: Generations
) -> None:
    assert await behind(lineages, "audio@1.0.1") == {made.old: "train", made.repeated: "train"}
    assert await behind(lineages, "audio@1.0.3") == {
        made.old: "train",
        made.repeated: "train",
        made.fresh: "train",
        made.last: "train",
    }
    assert await behind(lineages, "audio@1.0.0") == {}


async def test_both_ways_agree(lineages: Lineages, made: Generations) -> None:
    for event in (made.old, made.fresh, made.repeated, made.judge, made.lost, made.last):
        knowing = set(await known_by(lineages, event))
        for version in ("1.0.0", "1.0.1", "1.0.2", "1.0.3-rc.1", "1.0.3"):
            assert (event in await behind(lineages, f"audio@{version}")) == (version in knowing)


async def test_a_chain_goes_back_to_the_declared_base(
    lineages: Lineages, made: Generations
) -> None:
    found = await lineages.of("audio@champion")
    assert isinstance(found, VersionLineage)
    assert [(one.version, one.run_id, one.batch_id) for one in found.chain] == [
        ("1.0.3", made.runs[3], made.batches[3]),
        ("1.0.2", made.runs[1], made.batches[1]),
        ("1.0.1", made.runs[0], made.batches[0]),
        ("1.0.0", None, None),
    ]
    assert found.chain[0].counts == {"replay": 1, "train": 1}
    assert found.is_champion


async def test_a_leading_v_is_accepted(lineages: Lineages, made: Generations) -> None:
    found = await lineages.of("audio@v1.0.2")
    assert isinstance(found, VersionLineage)
    assert found.version == "1.0.2"


async def test_an_event_is_found_by_its_producers_id(
    database: Database, lineages: Lineages
) -> None:
    event = await database.write(lambda tx: Past(tx).event(event_id="take/7@b-side"))
    found = await lineages.of("studio/take/7@b-side")
    assert isinstance(found, EventLineage)
    assert found.event.id == event
    assert found.uses == []


async def test_a_batch_and_its_run_have_one_lineage(lineages: Lineages, made: Generations) -> None:
    by_batch = await lineages.of(made.batches[0])
    assert isinstance(by_batch, BatchLineage)
    assert by_batch == await lineages.of(made.runs[0])
    assert (by_batch.version, by_batch.run_state) == ("1.0.1", "decided")
    assert by_batch.counts == {"held_out": 1, "train": 2}
    assert {one.event_row_id: one.role for one in by_batch.members.items} == {
        made.old: "train",
        made.repeated: "train",
        made.judge: "held_out",
    }


@pytest.mark.parametrize("text", ["audio@1.0.3", "batch"])
async def test_pages_of_events_hold_each_once(
    lineages: Lineages, made: Generations, text: str
) -> None:
    text = made.batches[0] if text == "batch" else text
    seen: list[int] = []
    after = None
    while True:
        found = await lineages.of(text, after=after, limit=1)
        assert not isinstance(found, EventLineage)
        page = found.members if isinstance(found, BatchLineage) else found.events
        seen += [one.event_row_id for one in page.items]
        after = page.next
        if after is None:
            break
    whole = await lineages.of(text)
    assert not isinstance(whole, EventLineage)
    page = whole.members if isinstance(whole, BatchLineage) else whole.events
    assert seen == [one.event_row_id for one in page.items]


async def test_a_batch_that_makes_no_run_is_shown(database: Database, lineages: Lineages) -> None:
    batch = await database.write(lambda tx: Past(tx).batch({}, state="spent"))
    found = await lineages.of(batch)
    assert isinstance(found, BatchLineage)
    assert (found.run_id, found.version) == (None, None)


@pytest.mark.parametrize(
    "text", ["77", "studio/none", "b-none", "r-none", "audio@9.9.9", "audio@champion"]
)
async def test_what_is_not_there_is_said(lineages: Lineages, text: str) -> None:
    with pytest.raises(NotFoundError):
        await lineages.of(text)


async def test_an_id_of_no_known_form_is_answered_with_the_forms(lineages: Lineages) -> None:
    with pytest.raises(UnreadableIdError, match="LINE@VERSION"):
        await lineages.of("whatever")


async def test_a_long_chain_is_walked_to_its_end(
    database: Database, lineages: Lineages, tmp_path: Path
) -> None:
    def fill(past: Past) -> int:
        parent = past.line()
        first = past.event(state="sealed")
        for n in range(1, 301):
            event = first if n == 1 else past.event(state="sealed")
            run = past.run(past.batch({event: "train"}), parent=parent)
            parent = past.version(release=f"1.0.{n}", run_id=run, parent=parent, state="superseded")
        return first

    first = await database.write(lambda tx: fill(Past(tx)))
    found = await lineages.of(str(first))
    assert isinstance(found, EventLineage)
    assert found.n_known_by == 300
    last = await lineages.of("audio@1.0.300", limit=500)
    assert isinstance(last, VersionLineage)
    assert last.n_events == 300
    assert last.chain[-1].version == "1.0.0"
