"""What the store shows, on real SQLite filled row by row."""

import base64
from datetime import timedelta
from pathlib import Path

import pytest

from daemon.store.database import Database
from daemon.store.registry import UnknownLineError, UnknownVersionError
from daemon.store.views import Views, paging
from daemon.store.views.dead_letters import SHOWN_BYTES
from daemon.store.views.events import PREVIEW_CHARACTERS
from learning.lifecycle import EventState, RunState
from learning.lines import ModelLine, ModelLines
from tests.rows import START, Generations, Past, ids

NOON_AND_A_BIT = START + timedelta(hours=1)


@pytest.fixture
def views(database: Database, tmp_path: Path) -> Views:
    lines = ModelLines(
        [
            ModelLine("audio", frozenset({"audio"}), "models/tiny", "scripted"),
            ModelLine("web", frozenset({"website", "game"}), None, "scripted"),
            ModelLine("coding", frozenset({"coding"}), None, "scripted"),
        ]
    )
    return Views.of(
        database,
        lines=lines,
        artifacts_dir=tmp_path / "artifacts",
        wanted_held_out=lambda: 32,
        clock=lambda: NOON_AND_A_BIT,
    )


# --- overview -------------------------------------------------------------------------


async def test_an_empty_store_has_nothing_and_no_rate(views: Views) -> None:
    overview = await views.overview.look()
    assert overview.stats.queue.total == 0
    assert overview.stats.completed.success_rate is None
    assert overview.oldest_queued_seconds == 0
    assert overview.lines == []


async def test_statistics_have_the_shape_of_qb1(database: Database, views: Views) -> None:
    def fill(tx: Past) -> None:
        made = Generations(tx)
        tx.event(task_type="game")
        tx.event(task_type="game")
        tx.event(task_type="website")
        tx.run(tx.batch({made.lost: "retry"}), state="running", progress={"step": 3})
        tx.run(tx.batch({made.lost: "retry"}), state="failed", error="out_of_memory")

    await database.write(lambda tx: fill(Past(tx)))
    stats = (await views.overview.look()).stats
    assert stats.queue.total == 3
    assert stats.queue.by_type == {"game": 2, "website": 1}
    assert stats.active.total == 1
    assert stats.active.jobs[0].progress == {"step": 3}
    assert stats.completed.total == 5
    assert stats.completed.success_rate == 0.8
    assert stats.completed.jobs[0].state == RunState.FAILED
    assert stats.models == {"audio": "v1.0.3"}


async def test_the_oldest_queued_event_gives_the_age(database: Database, views: Views) -> None:
    def fill(past: Past) -> None:
        past.event(state="held")
        past.event(task_type="game", state_since=START + timedelta(minutes=30))
        past.event(task_type="audio", state_since=START + timedelta(minutes=50))

    await database.write(lambda tx: fill(Past(tx)))
    overview = await views.overview.look()
    assert overview.oldest_queued_seconds == 30 * 60
    assert overview.oldest_queued_at["audio"] == START + timedelta(minutes=50)


async def test_a_line_tells_its_evidence_and_its_last_decision(
    database: Database, views: Views
) -> None:
    await database.write(lambda tx: Generations(Past(tx)) and None)
    (line,) = (await views.overview.look()).lines
    assert (line.line, line.champion, line.held_out, line.wanted_held_out) == (
        "audio",
        "1.0.3",
        1,
        32,
    )
    assert line.last_decision is not None
    assert (line.last_decision.version, line.last_decision.against) == ("1.0.3", "1.0.2")
    assert line.last_decision.candidate_loss == 0.4


async def test_a_line_of_several_task_types_adds_them_up(database: Database, views: Views) -> None:
    def fill(past: Past) -> None:
        past.event(task_type="website")
        past.event(task_type="game")
        past.frozen(None, task_type="game")

    await database.write(lambda tx: fill(Past(tx)))
    (line,) = (await views.overview.look()).lines
    assert (line.line, line.waiting, line.held_out) == ("web", 2, 1)
    assert line.base_model is None


async def test_a_task_type_without_a_line_is_shown_while_it_waits(
    database: Database, views: Views
) -> None:
    await database.write(lambda tx: Past(tx).event(task_type="haiku"))
    (line,) = (await views.overview.look()).lines
    assert (line.line, line.waiting) == ("haiku", 1)


async def test_outputs_are_counted_by_state_with_their_mean_confidence(
    database: Database, views: Views
) -> None:
    def fill(past: Past) -> None:
        past.event(confidence=0.9)
        past.event(state="held", confidence=0.3)
        past.event(state="rejected", confidence=None)
        past.dead_letter()
        past.dead_letter(reason="too_large")

    await database.write(lambda tx: fill(Past(tx)))
    overview = await views.overview.look()
    audio = overview.outputs["audio"]
    assert audio.states == {"held": 1, "queued": 1, "rejected": 1}
    assert audio.average_confidence == pytest.approx(0.6)
    assert overview.dead_letters == {"not_json": 1, "too_large": 1}


# --- events ---------------------------------------------------------------------------


@pytest.mark.parametrize("state", [EventState.HELD, EventState.REJECTED, None])
async def test_pages_of_events_hold_each_once_newest_first(
    database: Database, views: Views, state: EventState | None
) -> None:
    def fill(past: Past) -> list[int]:
        return [
            past.event(state=one, task_type=task_type)
            for _ in range(4)
            for one in ("held", "rejected")
            for task_type in ("audio", "game")
        ]

    stored = await database.write(lambda tx: fill(Past(tx)))
    listed: list[int] = []
    before = None
    while True:
        page = await views.events.page(state=state, before=before, limit=3)
        listed += ids(page.items)
        before = page.next
        if before is None:
            break
    wanted = sorted(stored, reverse=True)
    if state is not None:
        wanted = [row for row in wanted if (row - 1) % 4 // 2 == (state is EventState.REJECTED)]
    assert listed == wanted


async def test_a_rare_event_is_found_over_several_short_pages(
    database: Database, views: Views, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "SCAN_WINDOW", 5)

    def fill(past: Past) -> int:
        rare = past.event(state="rejected")
        for _ in range(12):
            past.event(state="sealed")
        return rare

    rare = await database.write(lambda tx: fill(Past(tx)))
    found, pages, before = [], 0, None
    while True:
        page = await views.events.page(state=EventState.REJECTED, before=before, limit=10)
        found += ids(page.items)
        pages, before = pages + 1, page.next
        if before is None:
            break
    assert found == [rare]
    assert pages == 3


async def test_events_are_filtered_by_task_type(database: Database, views: Views) -> None:
    def fill(past: Past) -> int:
        past.event(task_type="audio")
        return past.event(task_type="game")

    game = await database.write(lambda tx: fill(Past(tx)))
    assert ids((await views.events.page(task_type="game")).items) == [game]
    page = await views.events.page(task_type="game", state=EventState.QUEUED)
    assert ids(page.items) == [game]


async def test_an_event_is_shown_with_its_feedback_batches_and_history(
    database: Database, views: Views
) -> None:
    def fill(past: Past) -> int:
        event = past.event(state="sealed", prompt="a " * PREVIEW_CHARACTERS)
        past.joined_feedback(event, approved=False)
        past.batch({event: "held_out"})
        past.frozen(event)
        past.step("event", str(event), "held", "queued")
        return event

    event = await database.write(lambda tx: fill(Past(tx)))
    shown = await views.events.one(event)
    assert shown is not None
    assert shown.feedback[0].approved is False
    assert [one.role for one in shown.batches] == ["held_out"]
    assert shown.frozen
    assert [(step.before, step.after) for step in shown.history] == [("held", "queued")]
    assert len(shown.summary.prompt) == PREVIEW_CHARACTERS
    assert shown.payload["prompt"] == "a " * PREVIEW_CHARACTERS


async def test_an_event_that_is_not_there_is_none(views: Views) -> None:
    assert await views.events.one(7) is None


# --- dead letters ---------------------------------------------------------------------


async def test_a_dead_letter_is_shown_as_text_and_exactly(database: Database, views: Views) -> None:
    raw = b'{"prompt": "\xff\x00"'
    letter = await database.write(lambda tx: Past(tx).dead_letter(raw=raw))
    shown = await views.dead_letters.one(letter)
    assert shown is not None
    assert shown.text == '{"prompt": "\ufffd\x00"'
    assert base64.b64decode(shown.raw_base64) == raw
    assert (shown.n_bytes, shown.truncated) == (len(raw), False)


async def test_a_dead_letter_without_bytes_is_shown(database: Database, views: Views) -> None:
    letter = await database.write(lambda tx: Past(tx).dead_letter(raw=b""))
    shown = await views.dead_letters.one(letter)
    assert shown is not None
    assert (shown.n_bytes, shown.text, shown.truncated) == (0, "", False)


async def test_a_long_dead_letter_is_cut(database: Database, views: Views) -> None:
    letter = await database.write(lambda tx: Past(tx).dead_letter(raw=b"x" * (SHOWN_BYTES + 1)))
    shown = await views.dead_letters.one(letter)
    assert shown is not None
    assert shown.truncated
    assert (len(shown.text), shown.n_bytes) == (SHOWN_BYTES, SHOWN_BYTES + 1)


async def test_dead_letters_are_filtered_by_reason_and_by_replay(
    database: Database, views: Views
) -> None:
    def fill(past: Past) -> tuple[int, int, int]:
        return (
            past.dead_letter(reason="too_large"),
            past.dead_letter(),
            past.dead_letter(replayed_at=START),
        )

    large, waiting, replayed = await database.write(lambda tx: fill(Past(tx)))
    assert ids((await views.dead_letters.page(reason="too_large")).items) == [large]
    assert ids((await views.dead_letters.page(replayed=True)).items) == [replayed]
    assert ids((await views.dead_letters.page(replayed=False)).items) == [waiting, large]


# --- runs -----------------------------------------------------------------------------


async def test_pages_of_runs_hold_each_once_newest_first(database: Database, views: Views) -> None:
    def fill(past: Past) -> list[str]:
        # Two are planned in the same moment: their ids decide.
        return [past.run(past.batch({}), planned_at=START) for _ in range(2)] + [
            past.run(past.batch({})) for _ in range(3)
        ]

    stored = await database.write(lambda tx: fill(Past(tx)))
    listed: list[str] = []
    before = None
    while True:
        page = await views.runs.page(before=before, limit=2)
        listed += ids(page.items)
        before = page.next
        if before is None:
            break
    assert listed == stored[::-1]


async def test_a_run_is_shown_with_attempts_members_and_its_version(
    database: Database, views: Views
) -> None:
    made = await database.write(lambda tx: Generations(Past(tx)))
    shown = await views.runs.one(made.runs[-1])
    assert shown is not None
    assert shown.summary.version == "1.0.3"
    assert shown.parent == "1.0.2"
    assert shown.members == {"replay": 1, "train": 1}
    assert shown.attempts[0].job_id == "job-1"
    assert [step.after for step in shown.history] == ["planned"]


async def test_a_number_that_is_not_finite_is_shown_as_none(
    database: Database, views: Views
) -> None:
    progress = {"step": 1, "numbers": {"loss": float("nan")}}
    run = await database.write(
        lambda tx: Past(tx).run(Past(tx).batch({}), state="running", progress=progress)
    )
    shown = await views.runs.one(run)
    assert shown is not None
    assert shown.summary.progress == {"step": 1, "numbers": {"loss": None}}


# --- models ---------------------------------------------------------------------------


async def test_versions_are_listed_with_the_gates_numbers(database: Database, views: Views) -> None:
    await database.write(lambda tx: Generations(Past(tx)) and None)
    page = await views.models.page("audio")
    assert [(one.version, one.parent, one.is_champion) for one in page.items] == [
        ("1.0.3", "1.0.2", True),
        ("1.0.3-rc.1", "1.0.2", False),
        ("1.0.2", "1.0.1", False),
        ("1.0.1", "1.0.0", False),
        ("1.0.0", None, False),
    ]
    trial = page.items[0].trial
    assert trial is not None
    assert trial.against == "1.0.2"
    assert trial.report["overall"]["candidate_loss"] == 0.4
    assert page.items[-1].trial is None


async def test_only_the_last_trial_of_a_version_is_listed(database: Database, views: Views) -> None:
    def fill(past: Past) -> None:
        base = past.line()
        made = past.version(candidate="1.0.1-rc.1", run_id="r-1", parent=base)
        past.trial(made, base, outcome="abstain")
        past.trial(made, base, outcome="promote")

    await database.write(lambda tx: fill(Past(tx)))
    trial = (await views.models.page("audio")).items[0].trial
    assert trial is not None
    assert trial.outcome == "promote"
    assert len((await views.models.one("audio", "1.0.1-rc.1")).trials) == 2


@pytest.mark.parametrize("name", ["1.0.3", "v1.0.3", "1.0.3-rc.2", "champion"])
async def test_a_version_has_several_names(database: Database, views: Views, name: str) -> None:
    await database.write(lambda tx: Generations(Past(tx)) and None)
    assert (await views.models.one("audio", name)).summary.version == "1.0.3"


async def test_a_version_tells_how_to_load_it(
    database: Database, views: Views, tmp_path: Path
) -> None:
    made = await database.write(lambda tx: Generations(Past(tx)))
    shown = await views.models.one("audio", "champion")
    artifact = str(tmp_path / "artifacts" / f"{made.runs[-1]}-0123456789ab")
    assert shown.loading.base_model == "models/tiny"
    assert shown.loading.adapter == artifact
    assert shown.loading.artifact_dir == artifact
    base = await views.models.one("audio", "1.0.0")
    assert (base.loading.adapter, base.loading.artifact_dir) == (None, None)


async def test_the_champions_moves_are_told_newest_first(database: Database, views: Views) -> None:
    await database.write(lambda tx: Generations(Past(tx)) and None)
    moves = await views.models.champion_moves("audio")
    assert [(move.before, move.after) for move in moves] == [
        ("1.0.2", "1.0.3"),
        ("1.0.1", "1.0.2"),
        ("1.0.0", "1.0.1"),
    ]
    of_second = (await views.models.one("audio", "1.0.2")).champion_moves
    assert [(move.before, move.after) for move in of_second] == [
        ("1.0.2", "1.0.3"),
        ("1.0.1", "1.0.2"),
    ]


async def test_what_is_not_there_is_refused_by_name(database: Database, views: Views) -> None:
    await database.write(lambda tx: Past(tx).line())
    with pytest.raises(UnknownLineError, match="game"):
        await views.models.page("game")
    with pytest.raises(UnknownVersionError, match=r"9\.9\.9"):
        await views.models.one("audio", "9.9.9")


async def test_lines_are_listed_with_their_champions(database: Database, views: Views) -> None:
    def fill(past: Past) -> None:
        Generations(past)
        past.line("game")

    await database.write(lambda tx: fill(Past(tx)))
    assert [(one.line, one.champion, one.n_versions) for one in await views.models.lines()] == [
        ("audio", "1.0.3", 5),
        ("game", "1.0.0", 1),
    ]
