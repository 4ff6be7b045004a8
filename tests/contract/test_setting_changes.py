"""Settings that are changed at run time, on both databases: who, when, why, and back again."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from daemon import changing_settings
from daemon.changeable import FixedSettingError, UnknownSettingError
from daemon.changing_settings import SettingsDesk, SettingsFollower
from daemon.live_settings import LiveSettings
from daemon.offline_settings import OfflineSettings
from daemon.settings import Settings
from daemon.settings_sources import SettingsError
from daemon.store.batch_sizes import BatchSizes
from daemon.store.setting_changes import (
    NothingToUndoError,
    SettingChange,
    SettingChanges,
    SettingsMovedError,
    UnknownRevisionError,
)
from learning.facts import BatchSizeChanged, Fact, SettingsChanged
from learning.lifecycle import RunState
from tests.builders import outputs
from tests.contract.driver import Driver

MARGIN = ("gate", "margin")
GIVEN: dict[str, Any] = {"finetune": {"provider": "scripted"}, "lines": {"normalize": {}}}


class Person:
    """Somebody at one daemon of a database."""

    def __init__(self, drive: Driver, **given: Any) -> None:
        self.drive = drive
        self.facts: list[Fact] = []
        self.looks: list[int] = []
        self.live = LiveSettings(Settings(**GIVEN, **given))
        self.changes = SettingChanges(drive.store.database)
        self.desk = SettingsDesk(self.live, self.changes, self.facts.append, drive.clock)
        self.follower = SettingsFollower(
            self.live,
            drive.store,
            self.facts.append,
            drive.clock,
            [lambda: self.looks.append(self.live.revision)],
        )

    async def set(
        self, values: dict[str, Any], *, reason: str = "", if_revision: int | None = None
    ) -> SettingChange:
        return await self.desk.change(values, reason=reason, actor="ada", if_revision=if_revision)

    async def undo(
        self,
        key: str | None = None,
        *,
        revision: int | None = None,
        if_revision: int | None = None,
    ) -> SettingChange:
        return await self.desk.undo(
            revision=revision, key=key, reason="", actor="bob", if_revision=if_revision
        )

    @property
    def margin(self) -> float:
        return self.live.now.gate.margin


@pytest.fixture
def ada(drive: Driver) -> Person:
    return Person(drive)


async def test_a_change_holds_when_it_is_stored_and_tells_who_when_and_why(
    ada: Person,
) -> None:
    done = await ada.set({"gate.margin": 0.1, "gate.min_evidence": 4}, reason="false alarms")

    assert ada.margin == 0.1
    assert done.revision == 1
    assert (done.actor, done.reason, done.at) == ("ada", "false alarms", ada.drive.now)
    assert [(move.path, move.before, move.after) for move in done.moves] == [
        (MARGIN, None, 0.1),
        (("gate", "min_evidence"), None, 4),
    ]
    assert ada.facts == [
        SettingsChanged(1, ["gate.margin", "gate.min_evidence"], "ada", "false alarms", None)
    ]
    again = Person(ada.drive)
    again.live.take(await again.changes.stored())
    assert again.margin == 0.1
    page = await ada.desk.history(key=None, before=None, limit=10)
    assert list(page.items) == [done]


@pytest.mark.parametrize(
    "value",
    [0.5, 7, True, "text", "snow \N{SNOWMAN}", ["a", 1], {"a": {"b": [None]}}, 10**40],
)
async def test_any_json_is_kept_as_it_is(ada: Person, value: Any) -> None:
    await ada.set({"finetune.training.plan": value})
    stored = await ada.changes.stored()
    assert stored.values["finetune", "training", "plan"].value == value
    assert type(stored.values["finetune", "training", "plan"].value) is type(value)


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), "x" * 30_000, "a\x00b", "\ud800", ["\ud800"], {"a": {"\x00": 1}}],
)
async def test_what_no_database_keeps_or_is_too_long_is_refused(ada: Person, value: Any) -> None:
    with pytest.raises(SettingsError, match=r"finetune\.training\.plan"):
        await ada.set({"finetune.training.plan": value})
    with pytest.raises(SettingsError, match=r"finetune\.training\."):
        await ada.set({"finetune.training.\x00": "x"})
    assert await ada.changes.revision() == 0


async def test_a_refused_change_stores_nothing_of_itself(ada: Person) -> None:
    with pytest.raises(SettingsError, match=r"gate\.significance"):
        await ada.set({"gate.margin": 0.1, "gate.significance": 3})
    with pytest.raises(UnknownSettingError):
        await ada.set({"gate.margin": 0.1, "gate.margn": 0.1})
    with pytest.raises(FixedSettingError):
        await ada.set({"gate.margin": 0.1, "remote.openai_api_key": "sk-1"})
    with pytest.raises(FixedSettingError, match="never from a database"):
        await ada.set({"finetune.training.extra": {"service": {"api_key": "sk-1"}}})

    assert await ada.changes.revision() == 0
    assert ada.margin == 0.05
    assert ada.facts == []


async def test_what_was_set_can_be_taken_back_to_what_is_configured(drive: Driver) -> None:
    ada = Person(drive, gate={"margin": 0.3})
    await ada.set({"gate.margin": 0.1})
    done = await ada.set({"gate.margin": None})

    assert ada.margin == 0.3
    assert (done.moves[0].before, done.moves[0].after) == (0.1, None)
    with pytest.raises(NothingToUndoError, match="not set in the store"):
        await ada.set({"gate.margin": None})


# --- undo -------------------------------------------------------------------------------


async def test_undo_goes_back_step_by_step_and_is_a_change_itself(ada: Person) -> None:
    await ada.set({"gate.margin": 0.1})
    await ada.set({"gate.margin": 0.2})
    await ada.set({"gate.min_evidence": 4})

    first = await ada.undo("gate.margin")
    assert (first.revision, first.undoes, ada.margin) == (4, 2, 0.1)
    second = await ada.undo("gate.margin")
    assert (second.undoes, ada.margin) == (1, 0.05)
    assert ada.live.now.gate.min_evidence == 4
    third = await ada.undo()
    assert (third.undoes, ada.live.now.gate.min_evidence) == (3, 8)
    with pytest.raises(NothingToUndoError, match="as configured"):
        await ada.undo("gate.margin")
    with pytest.raises(NothingToUndoError, match="as configured"):
        await ada.undo()

    page = await ada.desk.history(key="gate.margin", before=None, limit=10)
    assert [(one.revision, one.undoes, one.undone_by) for one in page.items] == [
        (5, 1, None),
        (4, 2, None),
        (2, None, 4),
        (1, None, 5),
    ]


async def test_what_was_set_together_is_undone_together(ada: Person) -> None:
    together = {"gate.min_evidence": 60, "gate.wanted_evidence": 60}
    await ada.set(together)
    done = await ada.undo("gate.min_evidence")
    assert {".".join(move.path) for move in done.moves} == set(together)
    assert ada.live.now.gate.wanted_evidence == 32


async def test_a_given_change_is_undone_unless_a_later_one_would_be_lost(ada: Person) -> None:
    await ada.set({"gate.margin": 0.1, "gate.significance": 0.1})
    await ada.set({"gate.margin": 0.2})
    await ada.set({"policy.min_confidence": 0.9})

    with pytest.raises(NothingToUndoError, match="revision 2 has changed a setting of 1 again"):
        await ada.undo(revision=1)
    await ada.undo(revision=2)
    with pytest.raises(NothingToUndoError, match="revision 4 has undone 2 already"):
        await ada.undo(revision=2)
    with pytest.raises(NothingToUndoError, match="revision 4 is an undo"):
        await ada.undo(revision=4)
    with pytest.raises(UnknownRevisionError, match="no revision 99"):
        await ada.undo(revision=99)
    await ada.undo(revision=1)
    assert (ada.margin, ada.live.now.gate.significance) == (0.05, 0.05)
    assert ada.live.now.policy.min_confidence == 0.9


async def test_an_undo_is_validated_like_any_change(ada: Person) -> None:
    await ada.set({"queue.max_queue_size": 500})
    await ada.set({"queue.batch_size": 300})
    with pytest.raises(SettingsError, match="max_queue_size 100 is smaller than batch_size 300"):
        await ada.undo(revision=1)
    assert ada.live.now.queue.max_queue_size == 500


# --- several hands ----------------------------------------------------------------------


async def test_who_names_a_revision_is_refused_once_it_has_passed(ada: Person) -> None:
    await ada.set({"gate.margin": 0.1}, if_revision=0)
    with pytest.raises(SettingsMovedError, match="at revision 1 now, not at 0"):
        await ada.set({"gate.margin": 0.2}, if_revision=0)
    with pytest.raises(SettingsMovedError):
        await ada.undo(if_revision=0)
    await ada.set({"gate.margin": 0.2}, if_revision=1)
    assert ada.margin == 0.2


async def test_changes_at_the_same_time_are_all_made_one_after_the_other(drive: Driver) -> None:
    people = [Person(drive) for _ in range(4)]
    keys = ["gate.margin", "gate.significance", "gate.negligible_loss", "split.replay_share"]

    await asyncio.gather(
        *(person.set({key: 0.125}) for person, key in zip(people, keys, strict=True))
    )

    for person in people:
        await person.follower.look()
        assert person.live.revision == 4
        assert person.live.now == people[0].live.now
    assert {".".join(path) for path in (await people[0].changes.stored()).values} == set(keys)


async def test_of_two_that_name_the_same_revision_one_is_told_to_look_again(
    drive: Driver,
) -> None:
    people = [Person(drive), Person(drive)]
    answers = await asyncio.gather(
        *(person.set({"gate.margin": 0.1}, if_revision=0) for person in people),
        return_exceptions=True,
    )
    assert sum(isinstance(answer, SettingChange) for answer in answers) == 1
    assert sum(isinstance(answer, SettingsMovedError) for answer in answers) == 1


async def test_a_change_is_tried_with_what_another_daemon_has_just_stored(drive: Driver) -> None:
    ada, bob = Person(drive), Person(drive)
    await ada.set({"gate.recent_evidence": 40})
    with pytest.raises(SettingsError, match="store, by ada"):
        await bob.set({"gate.wanted_evidence": 50})
    assert bob.live.revision == 0  # a refused change tells nothing; the follower does
    await bob.set({"gate.margin": 0.1})
    assert bob.live.now.gate.recent_evidence == 40


async def test_pages_of_the_history_follow_each_other(ada: Person) -> None:
    for number in range(1, 6):
        await ada.set({"gate.margin": number / 10})
    first = await ada.desk.history(key=None, before=None, limit=2)
    second = await ada.desk.history(key=None, before=first.next, limit=2)
    third = await ada.desk.history(key=None, before=second.next, limit=2)
    assert [[one.revision for one in page.items] for page in (first, second, third)] == [
        [5, 4],
        [3, 2],
        [1],
    ]
    assert third.next is None


# --- what follows from a change ---------------------------------------------------------


async def test_every_daemon_follows_what_one_was_told(drive: Driver) -> None:
    ada, bob = Person(drive), Person(drive)
    await bob.follower.look()
    await ada.set({"gate.margin": 0.1})

    await bob.follower.look()
    await bob.follower.look()

    assert bob.margin == 0.1
    assert bob.looks == [1]  # once for each change
    assert bob.facts == []  # who made it told it


async def test_a_follower_is_woken_by_a_change_here_and_stops_when_it_is_cancelled(
    ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changing_settings, "FOLLOW_SECONDS", 3_600)
    settled = asyncio.Event()
    follower = SettingsFollower(
        ada.live, ada.drive.store, ada.facts.append, ada.drive.clock, [settled.set]
    )
    work = asyncio.create_task(follower.run())
    await ada.set({"gate.margin": 0.1})
    async with asyncio.timeout(30):
        await settled.wait()
    work.cancel()
    await asyncio.wait([work])
    assert work.cancelled()


async def test_a_daemon_that_another_ones_change_does_not_fit_goes_on_and_says_so(
    drive: Driver,
) -> None:
    ada, bob = Person(drive), Person(drive, queue={"batch_size": 8, "max_queue_size": 10})
    await ada.set({"queue.batch_size": 40})

    await bob.follower.look()

    assert bob.live.now.queue.batch_size == 8
    assert "batch_size" in bob.desk.now().fault
    assert bob.looks == []
    await ada.undo()
    await bob.follower.look()
    assert bob.desk.now().fault == ""


async def test_a_batch_size_that_had_adapted_begins_anew_with_a_new_setting(
    ada: Person,
) -> None:
    drive = ada.drive
    sizes = drive.store.batch_sizes
    await sizes.set_by_hand("normalize", 50, "", "ann", drive.now)
    await sizes.set_by_hand("normalize", None, "", "ann", drive.now)  # released: it may adapt
    resized = BatchSizes(drive.store.database, ada.live.size_rules)
    follower = SettingsFollower(
        ada.live,
        replace(drive.store, batch_sizes=resized),
        ada.facts.append,
        drive.clock,
        [],
    )
    await ada.set({"queue.batch_size": 30})
    await follower.look()

    told = [fact for fact in ada.facts if isinstance(fact, BatchSizeChanged)]
    assert [(fact.before, fact.after, fact.cause) for fact in told] == [(50, 30, "configured")]


async def test_a_run_that_waited_for_a_base_model_is_tried_again_when_one_is_set(
    ada: Person,
) -> None:
    drive = ada.drive
    run_id = await drive.run_of(*outputs(range(4)))
    await drive.store.runs.wait_for(run_id, "no base model", drive.now)

    await ada.set({"finetune.base_model": "tiny"})
    await ada.follower.look()

    assert (await drive.store.runs.get(run_id)).state is RunState.PLANNED
    assert await drive.champion() == "1.0.0"


# --- without a daemon -------------------------------------------------------------------


async def test_what_is_stored_is_shown_and_taken_back_without_a_daemon(ada: Person) -> None:
    await ada.set({"queue.batch_size": 60, "gate.margin": 0.1}, reason="more")
    await ada.set({"gate.margin": 0.2})
    narrower = Settings(**GIVEN, queue={"max_queue_size": 50})
    offline = OfflineSettings(narrower, ada.changes, ada.drive.clock)

    found = await offline.now()
    assert [(one.key, one.value) for one in found.settings] == [
        ("gate.margin", "0.2"),
        ("queue.batch_size", "60"),
    ]
    assert found.settings[1].source.endswith(": more")
    assert "max_queue_size 50 is smaller than batch_size 60" in found.fault
    with pytest.raises(NothingToUndoError, match=r"stored: gate\.margin, queue\.batch_size"):
        await offline.unset(["gate.mar"], reason="", actor="bob")

    await offline.unset(["queue.batch_size"], reason="the file is right", actor="bob")
    assert (await offline.now()).fault == ""
    done = await offline.undo(2, reason="", actor="bob")
    assert [(move.before, move.after) for move in done.moves] == [(0.2, 0.1)]
    page = await offline.history("gate.margin", before=None, limit=10)
    assert [one.revision for one in page.items] == [4, 2, 1]
    await ada.follower.look()
    assert (ada.margin, ada.live.now.queue.batch_size) == (0.1, 20)
