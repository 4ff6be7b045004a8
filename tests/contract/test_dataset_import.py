"""A dataset file becomes one sealed batch with lineage, once, on either database."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consumers.ingest import Ingest
from daemon.api.ports import DatasetImport
from daemon.dataset_import import TooManyRowsError, UnreadableDatasetError
from daemon.operations import DaemonOperations, NoBaseModelError, UnknownLineError
from daemon.store.tables import (
    batch_members,
    batches,
    dead_letters,
    evaluation_examples,
    events,
    imports,
    runs,
    transitions,
)
from daemon.store.views.lineage import BatchLineage, EventLineage, Imported, Lineages
from finetune.artifacts import ArtifactStore
from learning.events import prompt_key
from learning.facts import BatchSealed, EventsStored, Fact
from learning.gate import Outcome
from learning.lifecycle import Role
from learning.lines import ModelLines
from learning.sampling import SplitRules
from tests.builders import JUDGE, output
from tests.contract.driver import Driver, everything
from tests.screening import no_screening

TWO_TYPES = frozenset({"normalize", "route"})


class Importer:
    """Somebody who imports files into the driver's line."""

    def __init__(self, drive: Driver, artifacts: Path, rules: SplitRules) -> None:
        self.facts: list[Fact] = []
        store, lines = drive.store, ModelLines([drive.line])
        announce = self.facts.append
        self._operations = DaemonOperations(
            store,
            Ingest(store.intake, lines, JUDGE, announce, drive.clock),
            ArtifactStore(artifacts),
            lines,
            lambda _: rules,
            lambda: 100,
            announce,
            drive.clock,
            JUDGE,
            no_screening(store, drive.clock),
        )

    async def bring(self, *rows: dict[str, Any] | str, **order: Any) -> DatasetImport:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        told: dict[str, Any] = {
            "line": "normalize",
            "task_type": None,
            "file": "rows.jsonl",
            "approved": False,
            "actor": "ann",
        }
        content = "".join(f"{line}\n" for line in lines).encode()
        return await self._operations.import_dataset(content, **{**told, **order})


@pytest.fixture
def importer(drive: Driver, tmp_path: Path) -> Importer:
    return Importer(drive, tmp_path, SplitRules(replay_share=0.0))


def pair(n: int | str, **fields: Any) -> dict[str, Any]:
    return {"prompt": f"question {n}", "completion": f"answer {n}", **fields}


async def test_a_file_becomes_one_batch_of_four_fifths_and_a_fifth(
    drive: Driver, importer: Importer
) -> None:
    done = await importer.bring(*(pair(n) for n in range(127)), approved=True)

    assert done.batch is not None
    assert (done.batch.n_train, done.batch.n_held_out) == (101, 26)
    assert (done.added, done.duplicates, done.set_aside, done.n_refused) == (127, 0, 0, 0)
    (run,) = await drive.rows(runs)
    assert (run.id, run.state) == (done.batch.run_id, "planned")
    assert len(await drive.rows(evaluation_examples)) == 26
    assert await drive.store.queue.count_waiting() == 0
    stored, sealed = importer.facts
    assert isinstance(stored, EventsStored)
    assert isinstance(sealed, BatchSealed)


async def test_a_row_that_nobody_approved_trains_and_never_judges(
    drive: Driver, importer: Importer
) -> None:
    rows = [pair(n) for n in range(10)] + [pair(f"yes {n}", approved=True) for n in range(10)]

    done = await importer.bring(*rows)

    assert done.batch is not None
    assert (done.batch.n_train, done.batch.n_held_out) == (16, 4)
    judging = {row.event_id for row in await drive.rows(evaluation_examples)}
    by_human = {row.id for row in await drive.rows(events) if row.by_human}
    assert len(by_human) == 10
    assert judging < by_human


async def test_a_file_that_is_imported_twice_is_said_and_changes_nothing(
    drive: Driver, importer: Importer
) -> None:
    rows = [pair(n) for n in range(5)]
    first = await importer.bring(*rows)
    before = await everything(drive.store.database)
    drive.wait(hours=1)

    again = await importer.bring(*rows, file="copy.jsonl")

    assert (again.added, again.duplicates, again.batch) == (0, 5, None)
    assert again.earlier is not None
    assert first.batch is not None
    assert (again.earlier.batch_id, again.earlier.file) == (first.batch.batch_id, "rows.jsonl")
    assert (again.earlier.actor, again.earlier.at) == ("ann", drive.now.replace(hour=12))
    assert await everything(drive.store.database) == before


async def test_a_file_that_grew_brings_only_what_is_new(drive: Driver, importer: Importer) -> None:
    await importer.bring(pair(1), pair(2))

    done = await importer.bring(pair(1), pair(2), pair(3), pair(3), approved=True)

    assert (done.added, done.duplicates, done.earlier) == (1, 3, None)
    assert done.batch is not None
    assert (done.batch.n_train, done.batch.n_held_out) == (1, 0)
    assert await drive.rows(dead_letters) == []
    assert len(await drive.rows(batches)) == 2


async def test_lineage_leads_from_the_file_to_the_version_and_back(
    drive: Driver, importer: Importer
) -> None:
    done = await importer.bring(pair(1), pair(2), file="mine.jsonl")
    assert done.batch is not None
    assert done.batch.run_id is not None
    decision = await drive.finish(done.batch.run_id, Outcome.PROMOTE)
    assert decision.promoted is not None

    lineages = Lineages(drive.store.database)
    batch = await lineages.of(done.batch.batch_id)
    event = await lineages.of(str(batch.members.items[0].event_row_id))  # type: ignore[union-attr]

    assert isinstance(batch, BatchLineage)
    content = "".join(json.dumps(pair(n)) + "\n" for n in (1, 2)).encode()
    assert batch.imported == Imported("mine.jsonl", hashlib.sha256(content).hexdigest())
    assert (batch.trigger, batch.actor) == ("import", "ann")
    assert isinstance(event, EventLineage)
    assert [one.version for one in event.known_by] == [decision.promoted.version]
    assert event.event.event_id.startswith("import:")
    (stored, _) = await drive.rows(events)
    assert (stored.source, stored.topic, stored.offset) == ("import", "mine.jsonl", 1)


async def test_who_imported_what_is_in_the_history(drive: Driver, importer: Importer) -> None:
    done = await importer.bring(pair(1))
    assert done.batch is not None
    (noted,) = await drive.rows(transitions, transitions.c.ref == done.batch.batch_id)
    assert (noted.actor, noted.to_state) == ("ann", "sealed")
    assert noted.reason.startswith("1 rows of rows.jsonl, sha256 ")
    (row,) = await drive.rows(imports)
    assert (row.file, row.actor, row.n_events) == ("rows.jsonl", "ann", 1)


async def test_bad_lines_are_refused_by_number_and_the_others_go_in(importer: Importer) -> None:
    done = await importer.bring(
        pair(1),
        "{",
        pair("", completion=" "),
        pair(2, task_type="audio"),
        pair(3, aproved=False),
        pair(4, confidence=7),
    )
    assert done.added == 1
    reasons = dict(done.refused)
    assert list(reasons) == [2, 3, 4, 5, 6]
    assert "not_json" in reasons[2]
    assert "empty_text" in reasons[3]
    assert "does not learn from audio" in reasons[4]
    assert "did you mean approved?" in reasons[5]
    assert "confidence" in reasons[6]


async def test_what_a_validator_or_a_person_stopped_does_not_train(
    drive: Driver, importer: Importer
) -> None:
    done = await importer.bring(
        pair(1),
        pair(2, approved=False),
        pair(3, completion="x" * 2_000),
        pair(4, approved=True, confidence=0.1),
    )
    assert (done.added, done.set_aside) == (4, 3)
    states = {row.offset: row.state for row in await drive.rows(events)}
    assert states == {1: "sealed", 2: "rejected", 3: "quarantined", 4: "held"}


async def test_rejected_answers_of_pairs_and_labels_are_kept_and_do_not_train(
    drive: Driver, importer: Importer
) -> None:
    pairs = await importer.bring({"prompt": "a", "chosen": "good", "rejected": "bad", "id": 7})
    labels = await importer.bring(
        {"prompt": "b", "completion": "good", "label": True},
        {"prompt": "b", "completion": "bad", "label": False},
    )
    assert (pairs.added, pairs.set_aside, labels.added, labels.set_aside) == (2, 1, 2, 1)
    sent = [(row.state, json.loads(row.payload)) for row in await drive.rows(events)]
    assert [(state, one["output"]) for state, one in sent] == [
        ("sealed", "good"),
        ("rejected", "bad"),
    ] * 2
    assert sent[0][1]["context"] == {"id": 7}


async def test_any_format_of_the_dataset_commands_can_be_imported(
    drive: Driver, importer: Importer
) -> None:
    await importer.bring(
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    )
    await importer.bring({"instruction": "c", "input": "d", "output": "e", "system": "f"})
    first, second = (json.loads(row.payload) for row in await drive.rows(events))
    assert (first["prompt"], first["output"]) == ("a", "b")
    assert [turn["content"] for turn in second["messages"]] == ["f", "c\nd", "e"]


async def test_a_held_out_prompt_does_not_train_when_a_file_brings_it_again(
    drive: Driver, importer: Importer
) -> None:
    await drive.store.queue.import_held_out(
        [(1, output("i"), prompt_key(output("i")))], "normalize", "ann", drive.now
    )
    done = await importer.bring({"prompt": "NORMALIZE i", "completion": "x"}, pair(1))
    assert done.batch is not None
    assert (done.batch.n_train, done.batch.n_held_out) == (1, 1)
    members = {row.event_id: row.role for row in await drive.rows(batch_members)}
    assert members == {1: Role.HELD_OUT, 2: Role.TRAIN}


async def test_an_import_does_not_wait_for_a_busy_line(drive: Driver, importer: Importer) -> None:
    await drive.begin(await drive.run_of(output("a")))
    done = await importer.bring(pair(1))
    assert done.batch is not None
    states = [row.state for row in await drive.rows(runs)]
    assert sorted(states) == ["launching", "planned"]


async def test_rows_of_a_line_of_several_task_types_name_theirs(
    drive: Driver, tmp_path: Path
) -> None:
    drive.configure(task_types=TWO_TYPES)
    importer = Importer(drive, tmp_path, SplitRules())
    done = await importer.bring(pair(1), pair(2, task_type="route"))
    assert done.refused == [
        (1, "it names no task_type, and the line has several: give --task-type")
    ]
    assert (await importer.bring(pair(1), task_type="normalize")).added == 1


async def test_what_cannot_be_imported_is_refused_as_a_whole(
    drive: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    importer = Importer(drive, tmp_path, SplitRules())
    with pytest.raises(UnknownLineError):
        await importer.bring(pair(1), line="other")
    with pytest.raises(UnreadableDatasetError, match=r"mine\.txt: none of its first 1 rows"):
        await importer.bring({"text": "a"}, file="mine.txt")
    monkeypatch.setattr("daemon.dataset_import.MOST_ROWS", 2)
    with pytest.raises(TooManyRowsError, match="in parts"):
        await importer.bring(*(pair(n) for n in range(3)))
    drive.line = replace(drive.line, base_model=None)
    with pytest.raises(NoBaseModelError):
        await Importer(drive, tmp_path, SplitRules()).bring(pair(1))
    assert await drive.rows(events) == []


async def test_an_import_does_not_look_like_a_rush_of_the_stream(
    drive: Driver, importer: Importer
) -> None:
    await drive.run_of(output("a"))
    await importer.bring(*(pair(n) for n in range(50)))
    second = await drive.batch(output("b"))
    first, imported, last = await drive.rows(batches)
    by_id = {row.id: row.queued_so_far for row in (first, imported, last)}
    assert by_id[second.batch_id] == 2
