"""What is forgotten is nowhere any more, what knew it is out of use, and it cannot come back."""

from dataclasses import replace
from pathlib import Path

import pytest

from daemon.api.ports import ForgetOrder, ForgetReport
from daemon.forgetting import DaemonForgetter
from daemon.forgotten_files import ForgottenFiles
from daemon.store import Store
from daemon.store.forgettings import Counts
from daemon.store.registry import TaintedVersionError
from daemon.store.tables import (
    alias_history,
    dead_letters,
    evaluation_examples,
    feedback,
    forgettings,
    metadata,
    replay_memory,
    retired_examples,
    returned_events,
    versions,
)
from daemon.store.views.dead_letters import DeadLetters
from daemon.store.views.lineage import EventLineage, Lineages
from learning.errors import NotFoundError
from learning.events import FORGOTTEN_OUTPUT, OutputEvent
from learning.facts import CandidateDecided, EventsForgotten, Promoted, RunCancelAsked, RunCancelled
from learning.gate import Outcome
from learning.lifecycle import EventState, FeedbackState, Role
from learning.lines import ModelLines
from tests.builders import block, dead_letter, output
from tests.builders import feedback as said
from tests.contract.driver import ALL_TRAIN, Driver, rows
from tests.contract.floor import Floor
from tests.contract.promises import broken_promises

SECRET = "Zyzzyva"
"""Stands in whatever is to be forgotten, and in nothing else."""
HALF = replace(ALL_TRAIN, held_out_share=0.5, starting_share=0.5)


@pytest.fixture
def floor(drive: Driver, tmp_path: Path) -> Floor:
    return Floor(drive, tmp_path)


@pytest.fixture
def files(floor: Floor) -> ForgottenFiles:
    return ForgottenFiles(
        floor.drive.store.forgettings,
        floor.artifacts,
        ModelLines([floor.drive.line]),
        floor.folder / "datasets",
        floor.folder / "work",
        floor.drive.clock,
    )


@pytest.fixture
def forgetter(floor: Floor, files: ForgottenFiles) -> DaemonForgetter:
    store = floor.drive.store
    return DaemonForgetter(
        store,
        Lineages(store.database),
        files,
        ModelLines([floor.drive.line]),
        lambda line: ALL_TRAIN,
        floor.facts.append,
        floor.drive.clock,
    )


async def forget(forgetter: DaemonForgetter, **order: object) -> ForgetReport:
    return await forgetter.forget(ForgetOrder(**order), actor="ann")  # type: ignore[arg-type]


def secret(task_id: str, **fields: object) -> OutputEvent:
    """An output with the secret in all that it says."""
    told = {
        "producer": "mole",
        "prompt": f"{SECRET}-prompt of {task_id}",
        "output": f"{SECRET}-output of {task_id}",
        "context": {"note": f"{SECRET}-context"},
        "category": f"{SECRET}-category",
        "model_version": f"{SECRET}-model",
        "subject": f"{SECRET}-subject",
        **fields,
    }
    return output(task_id, **told)


async def rows_with(store: Store, text: str) -> list[str]:
    """The tables and columns that have a text somewhere."""
    found = []
    for table in metadata.sorted_tables:
        for row in await rows(store.database, table):
            for column, value in row._mapping.items():
                if text in str(value) or (isinstance(value, bytes) and text.encode() in value):
                    found.append(f"{table.name}.{column}")
    return found


def files_with(folder: Path, text: str) -> list[str]:
    """The files below a folder that have a text somewhere."""
    return [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and text.encode() in path.read_bytes()
    ]


# --- nothing is left ------------------------------------------------------------------


@pytest.mark.parametrize(
    "order",
    [{"producer": "mole"}, {"subject": f"{SECRET}-subject"}],
    ids=["by producer", "by subject"],
)
async def test_nothing_of_it_is_left_in_any_table_or_file(
    floor: Floor, forgetter: DaemonForgetter, tmp_path: Path, order: dict[str, str]
) -> None:
    drive = floor.drive
    honest = [output(f"honest-{n}") for n in range(12)]
    moles = [secret(f"mole-{n}") for n in range(12)]
    held = secret("held", approved=None)
    quarantined = secret("empty", output="  ")
    await drive.send(
        held, quarantined, said("mole-0", adaptation={"mood_adjustment": f"{SECRET}-mood"})
    )
    raw = f'{{"producer": "mole", "subject": "{SECRET}-subject", "x": "{SECRET}-letter'
    await drive.store.intake.append(block(dead_letter(raw.encode())))
    await drive.run_of(*honest, *moles, rules=HALF)
    async with floor.at_work():
        assert (await floor.until(Promoted)).version == "1.0.1"
    assert await rows_with(drive.store, SECRET) != []
    on_sqlite = drive.store.database.is_sqlite
    before = files_with(tmp_path, SECRET)
    assert any(name.startswith("datasets/") for name in before)
    assert any(name.startswith("learnd-") for name in before) == on_sqlite
    drive.wait(minutes=1)
    told = await forget(forgetter, dry_run=True, **order)
    n_retired = len(await drive.rows(evaluation_examples, evaluation_examples.c.producer == "mole"))
    assert n_retired > 0
    assert told.counts == Counts(outputs=14, feedback=1, dead_letters=1, held_out=n_retired)
    done = await forget(forgetter, **order)
    assert done.counts == told.counts
    assert done.versions == told.versions
    (fact,) = floor.facts_of(EventsForgotten)
    assert (fact.outputs, fact.versions, fact.actor) == (14, ["normalize@1.0.1"], "ann")
    assert await rows_with(drive.store, SECRET) == []
    assert files_with(tmp_path, SECRET) == []
    if on_sqlite:
        assert done.scrubbed
    assert len(await drive.rows(retired_examples)) == n_retired
    assert [one.state for one in await drive.rows(forgettings)] == ["complete"]
    states = await drive.states()
    assert {states[f"mole-{n}"] for n in range(12)} == {"forgotten"}
    assert {states[f"honest-{n}"] for n in range(12)} == {"sealed"}


async def test_an_event_alone_can_be_forgotten(floor: Floor, forgetter: DaemonForgetter) -> None:
    drive = floor.drive
    await drive.send(secret("a"), secret("b", subject=None), output("c"))
    row = await drive.event("a")
    done = await forget(forgetter, event=f"mole/{row.event_id}")
    assert done.counts.outputs == 1
    assert await drive.states() == {"a": "forgotten", "b": "queued", "c": "queued"}
    assert (await drive.event("b")).payload != FORGOTTEN_OUTPUT


async def test_an_unknown_event_is_refused(forgetter: DaemonForgetter) -> None:
    with pytest.raises(NotFoundError):
        await forget(forgetter, event="mole/none")


async def test_a_dry_run_changes_nothing(floor: Floor, forgetter: DaemonForgetter) -> None:
    await floor.drive.release(secret("a"))
    told = await forget(forgetter, producer="mole", dry_run=True)
    assert (told.forgetting_id, told.counts.outputs) == (None, 1)
    assert [(one.version, one.was_champion) for one in told.versions] == [("1.0.1", True)]
    assert await floor.drive.champion() == "1.0.1"
    assert await floor.drive.rows(forgettings) == []


async def test_forgetting_again_changes_nothing_more(
    floor: Floor, forgetter: DaemonForgetter
) -> None:
    await floor.drive.release(secret("a"))
    await forget(forgetter, producer="mole")
    moves = await floor.drive.rows(alias_history)
    again = await forget(forgetter, producer="mole")
    assert again.counts == Counts(0, 0, 0, 0)
    assert again.versions == []
    assert await floor.drive.rows(alias_history) == moves


# --- it cannot come back --------------------------------------------------------------


@pytest.mark.parametrize("changed", [False, True], ids=["the same", "another body"])
async def test_what_comes_again_is_a_duplicate_and_stores_nothing(
    floor: Floor, forgetter: DaemonForgetter, changed: bool
) -> None:
    drive = floor.drive
    await drive.send(secret("a"))
    await forget(forgetter, producer="mole")
    stored = await drive.send(secret("a", output=f"{SECRET} again") if changed else secret("a"))
    assert (stored.duplicates, stored.outputs, stored.dead_letters) == (1, {}, {})
    assert await rows_with(drive.store, SECRET) == []


async def test_feedback_that_comes_later_says_nothing(
    floor: Floor, forgetter: DaemonForgetter, tmp_path: Path
) -> None:
    drive = floor.drive
    await drive.send(secret("a"))
    await forget(forgetter, producer="mole")
    mood = {"mood_adjustment": f"{SECRET}-mood"}
    await drive.send(said("a", adaptation=mood, model_version=f"{SECRET}-model"))
    (row,) = await drive.rows(feedback)
    assert row.state == FeedbackState.LATE
    assert await rows_with(drive.store, SECRET) == []
    assert files_with(tmp_path, SECRET) == []
    assert await drive.store.digest.digest(drive.now) == (0, ())


async def test_a_dead_letter_that_is_read_again_stays_empty(
    floor: Floor, forgetter: DaemonForgetter
) -> None:
    drive = floor.drive
    letter = dead_letter(b'{"producer": "mole", "prompt": "Zyzzyva')
    await drive.store.intake.append(block(letter))
    await forget(forgetter, producer="mole")
    again = await drive.store.intake.append(block(letter))
    assert (again.duplicates, again.dead_letters) == (1, {})
    (row,) = await drive.rows(dead_letters)
    assert (row.raw, row.reason) == (b"", "forgotten")
    assert row.published_at is not None
    assert (await DeadLetters(drive.store.database).page(replayed=False)).items == []


async def test_another_body_of_a_forgotten_event_is_found_among_the_dead_letters(
    floor: Floor, forgetter: DaemonForgetter
) -> None:
    drive = floor.drive
    await drive.send(secret("a", event_id="e"), output("b", producer="mole", event_id="f"))
    await drive.send(secret("a", event_id="e", output=f"{SECRET} else", subject=None))
    assert len(await drive.rows(dead_letters)) == 1
    told = await forget(forgetter, subject=f"{SECRET}-subject", dry_run=True)
    assert told.counts.dead_letters == 1
    await forget(forgetter, subject=f"{SECRET}-subject")
    assert await rows_with(drive.store, SECRET) == []
    assert (await drive.states())["b"] == "queued"


async def test_other_dead_letters_stay(floor: Floor, forgetter: DaemonForgetter) -> None:
    await floor.drive.store.intake.append(
        block(
            dead_letter(b'{"producer": "moles", "x": "the mole"'),
            dead_letter(b'{"note": "mole"', reason="no_producer"),
        )
    )
    await forget(forgetter, producer="mole")
    kept, gone = await floor.drive.rows(dead_letters)
    assert kept.reason == "not_json"
    assert gone.reason == "forgotten"  # it says "mole", whoever it is of


async def test_a_forgotten_producer_may_send_new_events(
    floor: Floor, forgetter: DaemonForgetter
) -> None:
    await floor.drive.send(secret("a"))
    await forget(forgetter, producer="mole")
    await floor.drive.send(output("new", producer="mole"))
    assert (await floor.drive.states())["new"] == "queued"


# --- what knew it ---------------------------------------------------------------------


async def test_a_tainted_champion_gives_way_to_its_last_clean_ancestor(
    floor: Floor, forgetter: DaemonForgetter
) -> None:
    drive = floor.drive
    await drive.release(output("a"))
    await drive.release(secret("b"))
    await drive.release(output("c"))
    done = await forget(forgetter, producer="mole")
    assert [(one.version, one.was_champion) for one in done.versions] == [
        ("1.0.2", False),
        ("1.0.3", True),
    ]
    assert await drive.champion() == "1.0.1"
    (moved,) = done.champions
    assert (moved.left, moved.version, moved.actor) == ("1.0.3", "1.0.1", "ann")
    assert moved in floor.facts
    last = (await drive.rows(alias_history))[-1]
    assert (last.cause, last.actor) == ("forget", "ann")
    states = {row.release: row.state for row in await drive.rows(versions)}
    assert states == {
        "1.0.0": "superseded",
        "1.0.1": "released",
        "1.0.2": "tainted",
        "1.0.3": "tainted",
    }


async def test_without_a_clean_ancestor_the_declared_base_is_the_champion(
    floor: Floor, forgetter: DaemonForgetter
) -> None:
    await floor.drive.release(secret("a"))
    await forget(forgetter, producer="mole")
    assert await floor.drive.champion() == "1.0.0"


async def test_a_line_that_does_not_know_it_is_left_alone(
    floor: Floor, forgetter: DaemonForgetter
) -> None:
    await floor.drive.release(output("a"))
    await floor.drive.send(secret("b"))
    done = await forget(forgetter, producer="mole")
    assert (done.versions, done.champions) == ([], [])
    assert await floor.drive.champion() == "1.0.1"


async def test_a_held_out_event_taints_nothing(floor: Floor, forgetter: DaemonForgetter) -> None:
    drive = floor.drive
    batch = await drive.batch(*(output(f"{n}") for n in range(4)), rules=HALF)
    assert batch.run_id is not None
    await drive.finish(batch.run_id, Outcome.PROMOTE)
    held_out = (await drive.members(batch, Role.HELD_OUT))[0]
    row = await drive.event(held_out)
    done = await forget(forgetter, event=str(row.id))
    assert done.versions == []
    assert done.counts.held_out == 1
    assert await drive.champion() == "1.0.1"


async def test_a_tainted_version_is_never_in_use_again(
    floor: Floor, forgetter: DaemonForgetter
) -> None:
    drive = floor.drive
    await drive.release(output("a"))
    await drive.release(secret("b"))
    await drive.finish(await drive.run_of(secret("c")), Outcome.ABSTAIN)
    await forget(forgetter, producer="mole")
    with pytest.raises(TaintedVersionError):
        await drive.rollback("1.0.2")
    with pytest.raises(TaintedVersionError):
        await drive.promote("1.0.3-rc.1")
    with pytest.raises(TaintedVersionError):
        await drive.store.registry.loadable("normalize", "1.0.2")
    await drive.rollback()
    assert await drive.champion() == "1.0.0"


async def test_a_rollback_passes_a_tainted_predecessor_over(
    floor: Floor, forgetter: DaemonForgetter
) -> None:
    drive = floor.drive
    await drive.release(output("a"))
    await drive.release(secret("b"))
    await forget(forgetter, producer="mole")
    await drive.release(output("c"))
    rolled_back = await drive.rollback()
    assert rolled_back.version == "1.0.1"


@pytest.mark.parametrize("begun", [False, True])
async def test_a_run_that_learns_from_it_is_called_off_and_its_other_rows_come_back(
    floor: Floor, forgetter: DaemonForgetter, begun: bool
) -> None:
    drive = floor.drive
    run_id = await drive.run_of(secret("a"), output("b"))
    if begun:
        await drive.begin(run_id)
    done = await forget(forgetter, producer="mole")
    assert done.runs == [run_id]
    if begun:
        assert [fact.run_id for fact in floor.facts_of(RunCancelAsked)] == [run_id]
        await drive.store.runs.cancel(run_id, drive.now)
    else:
        assert [fact.run_id for fact in floor.facts_of(RunCancelled)] == [run_id]
    b = await drive.event("b")
    assert [row.event_id for row in await drive.rows(returned_events)] == [b.id]


async def test_a_run_that_goes_on_from_a_tainted_version_is_called_off(
    floor: Floor, forgetter: DaemonForgetter
) -> None:
    drive = floor.drive
    await drive.release(secret("a"))
    run_id = await drive.run_of(output("b"))
    await drive.train(run_id)
    await forget(forgetter, producer="mole")
    assert [fact.run_id for fact in floor.facts_of(RunCancelAsked)] == [run_id]


async def test_it_is_not_repeated_any_more(floor: Floor, forgetter: DaemonForgetter) -> None:
    drive = floor.drive
    await drive.release(secret("a"), output("b"))
    await forget(forgetter, producer="mole")
    b = await drive.event("b")
    assert {row.event_id for row in await drive.rows(replay_memory)} == {b.id}


async def test_lineage_tells_of_it_both_ways(floor: Floor, forgetter: DaemonForgetter) -> None:
    drive = floor.drive
    await drive.release(secret("a"))
    await forget(forgetter, producer="mole")
    lineages = Lineages(drive.store.database)
    row = await drive.event("a")
    forward = await lineages.of(str(row.id))
    assert isinstance(forward, EventLineage)
    assert forward.event.state == EventState.FORGOTTEN
    assert (forward.event.prompt, forward.event.output) == ("", "")
    assert [(one.version, one.state) for one in forward.known_by] == [("1.0.1", "tainted")]


# --- files ----------------------------------------------------------------------------


async def test_weights_of_tainted_versions_are_deleted_when_asked(
    floor: Floor, forgetter: DaemonForgetter
) -> None:
    drive = floor.drive
    run_id = await drive.run_of(*(secret(f"{n}") for n in range(4)))
    async with floor.at_work():
        await floor.until(CandidateDecided)
    artifact = (await drive.store.runs.get(run_id)).artifact
    assert artifact is not None
    await forget(forgetter, producer="mole")
    assert floor.artifacts.path(artifact).is_dir()
    done = await forget(forgetter, producer="mole", delete_weights=True)
    assert list(done.artifacts) == [artifact]
    assert not floor.artifacts.path(artifact).exists()


async def test_files_of_a_run_under_way_go_when_it_is_over(
    floor: Floor, forgetter: DaemonForgetter, files: ForgottenFiles
) -> None:
    drive = floor.drive
    run_id = await drive.run_of(secret("a"), output("b"))
    await drive.begin(run_id)
    folder = floor.folder / "datasets" / run_id
    folder.mkdir(parents=True)
    done = await forget(forgetter, producer="mole")
    assert (done.files, done.pending) == ([], [run_id])
    assert [row.state for row in await drive.rows(forgettings)] == ["purged"]
    await drive.store.runs.cancel(run_id, drive.now)
    swept = await files.sweep()
    assert swept.runs == [run_id]
    assert not folder.exists()
    assert [row.state for row in await drive.rows(forgettings)] == ["complete"]


# --- learning again -------------------------------------------------------------------


async def test_a_clean_version_is_made_of_what_is_left(
    floor: Floor, forgetter: DaemonForgetter
) -> None:
    drive = floor.drive
    await drive.release(output("a"))
    await drive.release(secret("b"), output("c"))
    await drive.release(output("d"))
    done = await forget(forgetter, producer="mole", retrain=True)
    (again,) = done.learned_again
    assert again.batch is not None
    assert again.batch.run_id is not None
    assert (again.batch.trigger, again.batch.n_train, again.batch.n_retry) == ("retrain", 0, 2)
    assert await drive.members(again.batch, Role.RETRY) == ["c", "d"]
    decision = await drive.finish(again.batch.run_id, Outcome.PROMOTE)
    assert decision.promoted is not None
    assert (decision.promoted.version, decision.promoted.replaced) == ("1.0.4", "1.0.1")
    assert (await drive.version("1.0.4")).state == "released"
    once_more = await forget(forgetter, producer="mole", retrain=True)
    assert [one.batch for one in once_more.learned_again] == [None]


async def test_what_was_rolled_back_is_not_learned_again(
    floor: Floor, forgetter: DaemonForgetter
) -> None:
    drive = floor.drive
    await drive.release(secret("a"), output("b"))
    await drive.rollback()
    done = await forget(forgetter, producer="mole", retrain=True)
    assert [one.batch for one in done.learned_again] == [None]


# --- crashes --------------------------------------------------------------------------


class Killed(BaseException):
    """As if the daemon ended here."""


STEPS = ["ask", "take_out", "purge_outputs", "purge_feedback", "purge_letters", "finish", "scrub"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
async def test_killed_at_any_step_it_goes_on_when_it_is_asked_for_again(
    floor: Floor,
    forgetter: DaemonForgetter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    done: bool,
) -> None:
    drive = floor.drive
    await drive.release(secret("a"), secret("b"), output("c"))
    await drive.store.intake.append(block(dead_letter(b'{"producer": "mole", "p": "Zyzzyva')))
    await drive.send(said("c", producer="mole", model_version=SECRET))
    own = getattr(drive.store.forgettings, step)

    async def killing(*given: object, **named: object) -> object:
        if done:
            await own(*given, **named)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(drive.store.forgettings, step, killing)
        with pytest.raises(Killed):
            await forget(forgetter, producer="mole")
    assert await drive.store.database.read(broken_promises) == []
    await forget(forgetter, producer="mole")
    assert await rows_with(drive.store, SECRET) == []
    assert files_with(tmp_path, SECRET) == []
    finished = await drive.rows(forgettings)
    assert {row.state for row in finished} == {"complete"}
    assert sum(row.n_outputs for row in finished) == 2
    assert sum(row.n_feedback for row in finished) == 1
    assert sum(row.n_dead_letters for row in finished) == 1
