"""What people say of versions is counted once, and moves the champion back at most."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest

from daemon.live_verdict import VerdictWatch
from daemon.store import Store
from daemon.store.live_counts import LiveCounts
from daemon.store.live_verdicts import Evidence
from daemon.store.registry import (
    PairMovedError,
    SeenPair,
    StepBackLimits,
    StepBackRefusedError,
)
from daemon.store.tables import alias_history, live_counts, live_judgements, live_looks, versions
from daemon.store.views.verdicts import NeverReleasedError, Verdicts
from learning.errors import ConflictError
from learning.events import FeedbackEvent, FeedbackScores, OutputEvent
from learning.facts import Fact, RollbackHeldBack, RolledBack
from learning.gate import Outcome
from learning.lines import ModelLines
from learning.live_verdict import EVERYBODY_ELSE, MOST_PRODUCERS, Standing, VerdictRules
from tests.builders import JUDGE, feedback, output
from tests.contract.driver import LINE, Driver, StoppedClock
from tests.contract.promises import broken_promises

LIMITS = StepBackLimits(max_a_day=1, spare_forced=timedelta(hours=24))


@pytest.fixture
async def drive(store_url: str, tmp_path: Path, clock: StoppedClock) -> AsyncIterator[Driver]:
    """A store whose feedback is counted; after each test everything in it is still true."""
    store = await Store.open(
        store_url,
        artifacts_dir=tmp_path,
        judge=JUDGE,
        clock=clock,
        consequences=[LiveCounts(ModelLines([LINE]))],
    )
    yield Driver(store, clock)
    assert await store.database.read(broken_promises) == []
    await store.close()


async def digested(drive: Driver, *arrivals: OutputEvent | FeedbackEvent) -> None:
    await drive.send(*arrivals)
    await drive.store.digest.digest(drive.now, most=10_000)


async def counts(drive: Driver) -> dict[tuple[str, str], tuple[int, int]]:
    """(verdicts, yes) by version and producer; those without a verdict are left out."""
    names = {row.id: row.release for row in await drive.rows(versions)}
    return {
        (names[row.version_id], row.producer): (row.n, row.yes)
        for row in await drive.rows(live_counts)
        if row.n
    }


async def said(
    drive: Driver, version: str, yes: int, no: int, *, who: Sequence[str] = ("ann", "bob", "cy")
) -> None:
    """People gave verdicts on outputs of a version, in turns."""
    base = len(await drive.rows(live_judgements))
    tasks = [(f"{version}-{base + n}", n < yes, who[n % len(who)]) for n in range(yes + no)]
    await digested(
        drive,
        *(output(task, model_version=f"normalize@{version}") for task, _, _ in tasks),
        *(feedback(task, approved=ok, producer=name) for task, ok, name in tasks),
    )


@dataclass
class Watched:
    """The watch of one daemon on a store, without files to verify."""

    drive: Driver
    limits: StepBackLimits = LIMITS
    facts: list[Fact] = field(default_factory=list)
    fault: ConflictError | None = None

    def __post_init__(self) -> None:
        self.watch = VerdictWatch(
            self.drive.store.live_verdicts,
            self.step_back,
            lambda: self.limits,
            self.facts.append,
            self.drive.clock,
        )

    async def step_back(
        self, seen: SeenPair, to: str, *, reason: str, limits: StepBackLimits
    ) -> None:
        if self.fault is not None:
            raise self.fault
        self.facts.append(
            await self.drive.store.registry.step_back(
                seen, reason=reason, limits=limits, now=self.drive.now
            )
        )

    async def look(self) -> list[Fact]:
        """The facts of one look."""
        self.facts.clear()
        await self.watch.look()
        return list(self.facts)


async def two_versions(drive: Driver) -> None:
    """1.0.1, which people liked, and 1.0.2, which they do not."""
    await drive.release(output("one"))
    await drive.release(output("two"))
    await said(drive, "1.0.1", 90, 10)
    await said(drive, "1.0.2", 30, 60)


# --- counting -------------------------------------------------------------------------


@pytest.mark.parametrize("named", ["normalize@1.0.1", "1.0.1", "v1.0.1", "normalize@v1.0.1"])
async def test_a_verdict_counts_for_the_version_that_the_output_names(
    drive: Driver, named: str
) -> None:
    await drive.release(output("one"))
    await digested(drive, output("a", model_version=named), feedback("a", producer="ann"))
    assert await counts(drive) == {("1.0.1", "ann"): (1, 1)}


async def test_what_the_feedback_names_goes_before_what_the_output_names(drive: Driver) -> None:
    await drive.release(output("one"))
    await digested(
        drive,
        output("a", model_version="1.0.1"),
        feedback("a", producer="ann", approved=False, model_version="1.0.0"),
    )
    assert await counts(drive) == {("1.0.0", "ann"): (1, 0)}


@pytest.mark.parametrize("named", ["9.9.9", "coding@1.0.1", "latest", "1.0.1-rc.1", None])
async def test_a_version_that_the_line_does_not_know_makes_no_row(
    drive: Driver, named: str | None
) -> None:
    await drive.release(output("one"))
    await digested(drive, output("a", model_version=named), feedback("a"))
    assert await drive.rows(live_counts) == []
    assert await drive.rows(live_judgements) == []


async def test_a_rating_alone_is_no_verdict(drive: Driver) -> None:
    await drive.release(output("one"))
    await digested(
        drive,
        output("a", model_version="1.0.1"),
        feedback("a", approved=None, feedback=FeedbackScores(user_rating=1)),
    )
    assert await counts(drive) == {}


async def test_an_output_counts_once_and_a_contradiction_makes_it_a_no(drive: Driver) -> None:
    await drive.release(output("one"))
    await digested(
        drive,
        output("a", model_version="1.0.1"),
        feedback("a", producer="ann"),
        feedback("a", producer="bob", event_id="f-2"),
    )
    assert await counts(drive) == {("1.0.1", "ann"): (1, 1)}
    await digested(drive, feedback("a", producer="bob", event_id="f-3", approved=False))
    assert await counts(drive) == {("1.0.1", "bob"): (1, 0)}
    await digested(drive, feedback("a", producer="cy", event_id="f-4"))
    assert await counts(drive) == {("1.0.1", "bob"): (1, 0)}


async def test_late_feedback_counts_too(drive: Driver) -> None:
    await drive.release(output("one"))
    await drive.batch(output("a", model_version="1.0.1"))
    await digested(drive, feedback("a", producer="ann", approved=False))
    assert await counts(drive) == {("1.0.1", "ann"): (1, 0)}


async def test_producers_beyond_a_bound_are_counted_together(drive: Driver) -> None:
    await drive.release(output("one"))
    who = [f"p-{n}" for n in range(MOST_PRODUCERS + 20)]
    await said(drive, "1.0.1", len(who), 0, who=who)
    await said(drive, "1.0.1", len(who), 0, who=who)
    found = await counts(drive)
    assert len(found) == MOST_PRODUCERS + 1
    assert found["1.0.1", EVERYBODY_ELSE] == (40, 40)


# --- stepping back --------------------------------------------------------------------


async def test_a_worse_champion_steps_back_and_the_history_tells_why(drive: Driver) -> None:
    await two_versions(drive)
    (fact,) = await Watched(drive).look()

    assert isinstance(fact, RolledBack)
    assert (fact.left, fact.version, fact.actor) == ("1.0.2", "1.0.1", "live verdict")
    assert "30 of 90 approved (33.3%), before it 90 of 100 (90.0%)" in fact.reason
    assert "100 says worse" in fact.reason
    assert await drive.champion() == "1.0.1"
    assert (await drive.version("1.0.2")).state == "rolled_back"
    views = Verdicts(drive.store.database, VerdictRules, lambda: LIMITS, drive.clock)
    told = await views.one("normalize", "1.0.2")
    (report,) = told.rollbacks
    assert (report.automatic, report.left, report.to) == (True, "1.0.2", "1.0.1")
    assert (report.n, report.yes, report.before_n, report.before_yes) == (90, 30, 100, 90)
    assert report.log_e > told.verdict.threshold
    assert [look.n for look in told.looks] == [90]


async def test_a_rollback_by_hand_is_reported_too(drive: Driver) -> None:
    await two_versions(drive)
    await drive.rollback()
    views = Verdicts(drive.store.database, VerdictRules, lambda: LIMITS, drive.clock)
    (report,) = (await views.one("normalize", "1.0.2")).rollbacks
    assert (report.automatic, report.actor, report.n) == (False, "ann", 90)


async def test_one_producer_cannot_force_a_rollback(drive: Driver) -> None:
    await drive.release(output("one"))
    await drive.release(output("two"))
    await said(drive, "1.0.1", 135, 15)
    await said(drive, "1.0.2", 45, 5)
    await said(drive, "1.0.2", 0, 150, who=["liar"])
    assert await Watched(drive).look() == []
    views = Verdicts(drive.store.database, VerdictRules, lambda: LIMITS, drive.clock)
    told = await views.one("normalize", None)
    assert told.verdict.standing is Standing.OPEN
    assert told.verdict.decisive_producer == "liar"
    assert "without liar" in told.verdict.reason


async def test_without_verdicts_nothing_is_looked_at(drive: Driver) -> None:
    await drive.release(output("one"))
    assert await drive.store.live_verdicts.champions() == []
    assert await Watched(drive).look() == []


async def test_two_daemons_make_one_rollback(drive: Driver) -> None:
    await two_versions(drive)
    daemons = [Watched(drive), Watched(drive)]
    facts = await asyncio.gather(*(one.look() for one in daemons))
    assert sorted(len(told) for told in facts) == [0, 1]
    assert [row.cause for row in await drive.rows(alias_history)].count("rollback") == 1


async def test_what_was_seen_before_another_promotion_moves_nothing(drive: Driver) -> None:
    await two_versions(drive)
    (one,) = await drive.store.live_verdicts.champions()
    await drive.release(output("three"))
    assert one.pair is not None
    with pytest.raises(PairMovedError):
        await drive.store.registry.step_back(one.pair, reason="", limits=LIMITS, now=drive.now)
    assert await drive.champion() == "1.0.3"


async def worse_again(drive: Driver) -> None:
    """One more version after a rollback, that people do not like either."""
    await drive.release(output("three"))
    await said(drive, "1.0.3", 30, 60)


async def test_the_limit_of_a_day_holds_a_second_one_back_and_then_no_more(drive: Driver) -> None:
    await two_versions(drive)
    watched = Watched(drive)
    await watched.look()
    await worse_again(drive)

    (fact,) = await watched.look()
    assert isinstance(fact, RollbackHeldBack)
    assert (fact.version, fact.predecessor) == ("1.0.3", "1.0.1")
    assert "verdict.max_rollbacks_a_day" in fact.reason
    assert await drive.champion() == "1.0.3"
    assert not watched.watch.check().ok
    assert await watched.look() == []  # said once

    drive.wait(hours=25)
    (later,) = await watched.look()
    assert isinstance(later, RolledBack)
    assert await drive.champion() == "1.0.1"
    assert watched.watch.check().ok


async def test_what_an_operator_forced_stays_for_a_while(drive: Driver) -> None:
    await drive.release(output("one"))
    run_id = await drive.run_of(output("two"))
    await drive.train(run_id)
    duel = await drive.enter(run_id)
    await drive.decide(run_id, Outcome.ABSTAIN, duel=duel)
    await drive.promote("1.0.2-rc.1")
    await said(drive, "1.0.1", 90, 10)
    await said(drive, "1.0.2", 30, 60)
    watched = Watched(drive)

    (fact,) = await watched.look()
    assert isinstance(fact, RollbackHeldBack)
    assert "ann chose normalize 1.0.2 by hand" in fact.reason
    drive.wait(hours=25)
    (later,) = await watched.look()
    assert isinstance(later, RolledBack)


async def test_a_version_that_cannot_be_loaded_is_not_gone_back_to(drive: Driver) -> None:
    await two_versions(drive)
    watched = Watched(drive, fault=ConflictError("its files are damaged"))
    (fact,) = await watched.look()
    assert isinstance(fact, RollbackHeldBack)
    assert fact.reason == "its files are damaged"
    assert await drive.champion() == "1.0.2"


async def test_it_never_steps_forward(drive: Driver) -> None:
    await two_versions(drive)
    (one,) = await drive.store.live_verdicts.champions()
    await drive.rollback("1.0.1")
    later = await drive.version("1.0.2")
    with pytest.raises(ConflictError):
        await drive.store.registry.step_back(
            SeenPair("normalize", one.predecessor_id or 0, later.id),
            reason="",
            limits=LIMITS,
            now=drive.now,
        )
    assert await drive.champion() == "1.0.1"


async def test_the_first_of_all_may_be_gone_back_to_and_no_further(drive: Driver) -> None:
    await drive.release(output("one"))
    await said(drive, "1.0.0", 90, 10)
    await said(drive, "1.0.1", 30, 60)
    (fact,) = await Watched(drive).look()
    assert isinstance(fact, RolledBack)
    assert fact.version == "1.0.0"
    (one,) = await drive.store.live_verdicts.champions()
    assert isinstance(one, Evidence)
    assert one.judged(VerdictRules()).standing is Standing.NO_PREDECESSOR


async def test_looks_are_kept_at_growing_numbers_only(drive: Driver) -> None:
    await drive.release(output("one"))
    await said(drive, "1.0.0", 40, 10)
    watched = Watched(drive)
    for _ in range(8):
        await said(drive, "1.0.1", 3, 1)
        await watched.look()
    # Marks: 10, 11, 13, 15, 17, 20, 23, 26, 30.
    assert [row.n for row in await drive.rows(live_looks)] == [12, 16, 20, 24, 28, 32]


async def test_the_canary_share_is_for_open_verdicts(drive: Driver) -> None:
    views = Verdicts(drive.store.database, VerdictRules, lambda: LIMITS, drive.clock)
    await drive.store.registry.ensure_lines([LINE], drive.now)
    assert (await views.served("normalize")).canary_share == 0
    await drive.release(output("one"))
    served = await views.served("normalize")
    assert (served.predecessor, served.canary_share) == ("1.0.0", 0.2)


async def test_a_candidate_has_no_verdict(drive: Driver) -> None:
    run_id = await drive.run_of(output("one"))
    await drive.train(run_id)
    await drive.decide(run_id, Outcome.ABSTAIN)
    views = Verdicts(drive.store.database, VerdictRules, lambda: LIMITS, drive.clock)
    with pytest.raises(NeverReleasedError):
        await views.one("normalize", "1.0.1-rc.1")


async def test_a_refusal_of_the_store_is_one_of_its_own(drive: Driver) -> None:
    await two_versions(drive)
    (one,) = await drive.store.live_verdicts.champions()
    assert one.pair is not None
    with pytest.raises(StepBackRefusedError, match="max_rollbacks_a_day"):
        await drive.store.registry.step_back(
            one.pair, reason="", limits=StepBackLimits(0, timedelta(0)), now=drive.now
        )
