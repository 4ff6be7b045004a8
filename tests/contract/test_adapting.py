"""Settings that adapt by themselves, on both databases: recorded, once, and a person wins."""

import asyncio
from typing import Any

import pytest

from daemon.adapting import Adapter
from daemon.changing_settings import SettingsDesk
from daemon.live_settings import LiveSettings
from daemon.settings import Settings
from daemon.store.knobs import Knobs
from daemon.store.setting_changes import SettingChange, SettingChanges
from learning.adaptation import ACTOR, AUTO_APPROVAL, THRESHOLD, Cause
from learning.events import OutputEvent
from learning.facts import Fact, SettingsChanged
from tests.builders import feedback, output
from tests.contract.driver import Driver


class Daemon:
    """One daemon of a database, as far as it adapts."""

    def __init__(self, drive: Driver, **given: Any) -> None:
        self.facts: list[Fact] = []
        self.live = LiveSettings(Settings(**given))
        self.changes = SettingChanges(drive.store.database)
        self.desk = SettingsDesk(self.live, self.changes, self.facts.append, drive.clock)
        self.adapter = Adapter(Knobs(drive.store.database), self.desk, self.live, drive.clock)

    async def adapt(self) -> SettingChange | None:
        """One look, after what others have changed was taken over."""
        self.live.take(await self.changes.stored())
        return await self.adapter.adapt()

    async def causes(self) -> dict[str, Cause]:
        return {one.key: one.cause for one in await self.adapter.thoughts()}

    async def undo(self, key: str = THRESHOLD) -> SettingChange:
        return await self.desk.undo(
            revision=None, key=key, reason="not now", actor="ann", if_revision=None
        )

    @property
    def threshold(self) -> float:
        return self.live.policy().feedback_threshold

    def auto_approves(self) -> bool:
        return self.live.policy().enable_auto_approval


@pytest.fixture
def daemon(drive: Driver) -> Daemon:
    return Daemon(drive)


def judged(name: str, approved: int, rejected: int, **fields: Any) -> list[OutputEvent]:
    """Outputs with a person's verdict."""
    return [
        output(f"{name}-{n}", approved=n < approved, **fields) for n in range(approved + rejected)
    ]


async def test_many_rejections_raise_the_bar_with_their_numbers_in_the_history(
    drive: Driver, daemon: Daemon
) -> None:
    await drive.send(*judged("a", 40, 40))
    done = await daemon.adapt()
    assert done is not None
    assert (done.actor, done.revision, daemon.threshold) == (ACTOR, 1, 0.8)
    assert done.reason == "people approved 40 of 80 judged outputs (50%), below 70%"
    assert daemon.facts == [SettingsChanged(1, [THRESHOLD], ACTOR, done.reason, None)]
    assert (await daemon.changes.page()).items == [done]
    assert await daemon.adapt() is None


async def test_rejections_of_sealed_outputs_count_too(drive: Driver, daemon: Daemon) -> None:
    await drive.batch(*judged("a", 60, 0))
    await drive.send(*(feedback(f"a-{n}", approved=False) for n in range(40)))
    assert await daemon.adapt() is None
    await drive.store.digest.digest(drive.now)
    done = await daemon.adapt()
    assert done is not None
    assert "60 of 100" in done.reason


async def test_too_little_changes_nothing(drive: Driver, daemon: Daemon) -> None:
    assert set((await daemon.causes()).values()) == {Cause.TOO_LITTLE}
    await drive.send(*judged("a", 0, 49))
    assert await daemon.adapt() is None
    assert (await daemon.changes.stored()).revision == 0


async def test_a_person_who_takes_it_back_is_respected(drive: Driver, daemon: Daemon) -> None:
    await drive.send(*judged("a", 20, 60))
    assert await daemon.adapt() is not None
    await daemon.undo()
    assert daemon.threshold == 0.7
    for hour in range(24):
        drive.wait(hours=1)
        await drive.send(*judged(f"h{hour}", 1, 9))
        assert await daemon.adapt() is None
    assert (await daemon.causes())[THRESHOLD] is Cause.RESPECTED
    assert daemon.threshold == 0.7

    drive.wait(days=7)
    await drive.send(*judged("later", 20, 60))
    assert await daemon.adapt() is not None
    assert daemon.threshold == 0.8


async def test_what_a_person_set_is_left_alone(drive: Driver, daemon: Daemon) -> None:
    await daemon.desk.change({THRESHOLD: 0.6}, reason="we want more", actor="ann", if_revision=None)
    drive.wait(hours=1)
    await drive.send(*judged("a", 20, 60))
    assert await daemon.adapt() is None
    assert daemon.threshold == 0.6


async def test_a_good_stream_brings_back_what_was_configured(drive: Driver, daemon: Daemon) -> None:
    await drive.send(*judged("bad", 20, 60))
    assert await daemon.adapt() is not None
    drive.wait(hours=3)
    await drive.send(*judged("good", 95, 5))
    assert await daemon.adapt() is None
    assert (await daemon.causes())[THRESHOLD] is Cause.DWELLING
    drive.wait(hours=3)
    done = await daemon.adapt()
    assert done is not None
    assert (done.undoes, done.actor, daemon.threshold) == (1, ACTOR, 0.7)
    assert "95 of 100" in done.reason


async def test_it_goes_back_to_what_a_person_had_set_long_ago(
    drive: Driver, daemon: Daemon
) -> None:
    await daemon.desk.change({THRESHOLD: 0.75}, reason="", actor="ann", if_revision=None)
    drive.wait(days=8)
    await drive.send(*judged("bad", 20, 60))
    assert await daemon.adapt() is not None
    drive.wait(hours=7)
    await drive.send(*judged("good", 95, 5))
    assert await daemon.adapt() is not None
    assert daemon.threshold == 0.75


async def test_sure_outputs_that_people_approve_switch_auto_approval_on_until_they_do_not(
    drive: Driver, daemon: Daemon
) -> None:
    await drive.send(*(output(str(n), approved=None, confidence=0.99) for n in range(200)))
    assert await daemon.adapt() is None  # nobody else says so
    await drive.send(*judged("a", 100, 2, confidence=0.98))
    done = await daemon.adapt()
    assert done is not None
    assert daemon.auto_approves()
    assert "the average confidence of 302 outputs is 0.987, above 0.95" in done.reason

    drive.wait(hours=1)
    await drive.send(*judged("b", 20, 60, confidence=0.98))
    changes = [await daemon.adapt(), await daemon.adapt()]
    assert not daemon.auto_approves()
    assert daemon.threshold == 0.8
    reasons = [change.reason for change in changes if change is not None]
    assert [reason[:36] for reason in reasons] == [
        "people approved 120 of 182 judged ou",  # the bar, since the day began
        "people approved 20 of 80 judged outp",  # auto-approval, since it was switched on
    ]


async def test_two_daemons_make_one_change(drive: Driver) -> None:
    await drive.send(*judged("a", 20, 60))
    daemons = [Daemon(drive), Daemon(drive)]
    done = await asyncio.gather(*(daemon.adapter.adapt() for daemon in daemons))
    assert sum(change is not None for change in done) == 1
    assert [await daemon.adapt() for daemon in daemons] == [None, None]
    assert {daemon.threshold for daemon in daemons} == {0.8}
    assert (await daemons[0].changes.stored()).revision == 1


async def test_switched_off_or_pinned_it_only_thinks(drive: Driver) -> None:
    await drive.send(*judged("a", 20, 60))
    off = Daemon(drive, policy={"adaptive": False})
    assert await off.adapt() is None
    assert set((await off.causes()).values()) == {Cause.OFF}
    pinned = Daemon(drive, adaptation={"pinned": [THRESHOLD]})
    assert await pinned.adapt() is None
    assert await pinned.causes() == {THRESHOLD: Cause.PINNED, AUTO_APPROVAL: Cause.STEADY}


async def test_a_day_has_a_limit(drive: Driver) -> None:
    daemon = Daemon(drive, adaptation={"max_changes_a_day": 2, "dwell_hours": 0})
    for n in range(4):
        await drive.send(*judged(f"{n}", 20, 80))
        await daemon.adapt()
        drive.wait(hours=1)
        await drive.send(*judged(f"{n}-good", 200, 0))
        await daemon.adapt()
        drive.wait(hours=1)
    assert (await daemon.changes.stored()).revision == 2
    assert daemon.threshold == 0.7


async def test_how_far_the_bar_goes_is_a_setting(drive: Driver) -> None:
    daemon = Daemon(drive, adaptation={"raised_threshold": 0.9})
    await drive.send(*judged("a", 20, 60))
    done = await daemon.adapt()
    assert done is not None
    assert daemon.threshold == 0.9
