"""What a batch learns from rejected outputs: which, once, against what, and what comes back."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from daemon.store import rejected
from daemon.store.imports import DatasetSource
from daemon.store.intake import IMPORT
from daemon.store.tables import batch_members, rejected_outputs, runs, transitions
from daemon.store.views.lineage import BatchLineage, EventLineage, Lineages, VersionLineage
from learning.events import OutputEvent
from learning.facts import BatchSealed
from learning.gate import Outcome
from learning.lifecycle import EventState, Role
from learning.lines import ModelLine
from learning.policy import Verdict
from learning.ports import Origin
from learning.preferences import Objective
from learning.sampling import SplitRules
from tests.builders import feedback as said
from tests.builders import judged, output
from tests.contract.driver import ALL_TRAIN, LINE, Driver
from tests.contract.promises import broken_promises

KTO = replace(LINE, training={"epochs": 1, "objective": "kto"})
DPO = replace(LINE, training={"epochs": 1, "objective": "dpo"})
HALF_JUDGES = SplitRules(
    held_out_share=0.5, starting_share=0.5, replay_share=0.0, cross_task_learning=False
)


def good(name: str, prompt: str, **fields: Any) -> OutputEvent:
    return output(name, prompt=prompt, **fields)


def bad(name: str, prompt: str, **fields: Any) -> OutputEvent:
    return output(name, prompt=prompt, approved=False, **fields)


@pytest.fixture(params=[KTO, DPO], ids=["kto", "dpo"])
def either(request: pytest.FixtureRequest, drive: Driver) -> Driver:
    """A store whose line learns from rejected outputs, in either way."""
    line: ModelLine = request.param
    drive.line = line
    return drive


async def pairs(drive: Driver, batch: BatchSealed) -> list[tuple[str, str | None]]:
    """The rejected members of a batch, each with the better answer, by their tasks."""
    stored = await drive.rows(
        batch_members,
        batch_members.c.batch_id == batch.batch_id,
        batch_members.c.role == Role.PREFERENCE,
    )
    names = {(await drive.event(name)).id: name for name in await drive.states()}
    return [
        (names[row.event_id], names[row.preferred_id] if row.preferred_id is not None else None)
        for row in stored
    ]


async def uses(drive: Driver) -> dict[str, str]:
    """What becomes of each rejected output that was noticed, by its task."""
    names = {(await drive.event(name)).id: name for name in await drive.states()}
    return {names[row.event_id]: row.use for row in await drive.rows(rejected_outputs)}


async def require_promises(drive: Driver) -> None:
    assert await drive.store.database.read(broken_promises) == []


# --- what goes in ---------------------------------------------------------------------


async def test_a_line_that_learns_from_answers_alone_takes_no_rejected_output(
    drive: Driver,
) -> None:
    batch = await drive.batch(good("a", "p"), bad("b", "p"))
    assert batch.n_preference == 0
    assert await drive.members(batch, Role.PREFERENCE) == []
    assert await drive.rows(rejected_outputs) == []


async def test_kto_takes_rejected_outputs_by_themselves(drive: Driver) -> None:
    drive.line = KTO
    batch = await drive.batch(good("a", "p"), good("b", "q"), bad("c", "p"), bad("d", "r"))
    assert (batch.n_train, batch.n_preference) == (2, 2)
    assert await pairs(drive, batch) == [("c", None), ("d", None)]
    await require_promises(drive)


async def test_dpo_takes_those_with_a_better_answer_to_their_prompt(drive: Driver) -> None:
    drive.line = DPO
    batch = await drive.batch(good("a", "p"), good("b", "q"), bad("c", "p"), bad("d", "r"))
    assert (batch.n_train, batch.n_preference) == (2, 1)
    assert await pairs(drive, batch) == [("c", "a")]
    assert await uses(drive) == {"c": "taken", "d": "free"}
    await require_promises(drive)


async def test_prompts_that_differ_in_case_and_white_space_are_one(drive: Driver) -> None:
    drive.line = DPO
    batch = await drive.batch(good("a", "Say  it"), bad("b", "say it "))
    assert await pairs(drive, batch) == [("b", "a")]


async def test_whoever_was_withdrawn_or_rejected_by_hand_or_by_feedback_is_a_rejected_output(
    either: Driver,
) -> None:
    await either.send(
        good("withdrawn", "p"), output("held", prompt="q", approved=None), good("seen", "p")
    )
    await either.send(output("by hand", prompt="q", approved=None), *(good(n, "q") for n in "ab"))
    await either.send(said("withdrawn", approved=False), said("held", approved=False))
    held = await either.event("by hand")
    no = Verdict(EventState.REJECTED, "an operator said no", by_human=True)
    await either.store.queue.judge_by_hand(held.id, no, "ann", either.now)
    batch = await either.seal()
    assert batch is not None
    members = await either.members(batch, Role.PREFERENCE)
    assert sorted(members) == ["by hand", "held", "withdrawn"]
    await require_promises(either)


async def test_what_trained_and_was_rejected_since_is_unlearned(either: Driver) -> None:
    await either.release(good("a", "p"), good("b", "q"))
    await either.send(said("a", approved=False), said("b"))
    batch = await either.batch(good("c", "p", output="better"), good("d", "r"))
    assert await either.members(batch, Role.PREFERENCE) == ["a"]
    assert (await either.states())["a"] == EventState.SEALED
    assert (await either.batch(good("e", "p", output="more"))).n_preference == 0
    await require_promises(either)


async def test_what_judges_and_was_rejected_since_is_not_learned_from(either: Driver) -> None:
    first = await either.batch(good("a", "p"), good("b", "q"), rules=HALF_JUDGES)
    (held_out,) = await either.members(first, Role.HELD_OUT)
    (trained,) = await either.members(first, Role.TRAIN)
    await either.send(said(held_out, approved=False), said(trained, approved=False))
    batch = await either.batch(
        good("c", {"a": "p", "b": "q"}[trained], output="better"), good("d", "r")
    )
    assert await either.members(batch, Role.PREFERENCE) == [trained]
    await require_promises(either)


async def test_a_rejected_output_goes_into_one_batch(either: Driver) -> None:
    first = await either.batch(good("a", "p"), bad("b", "p"))
    second = await either.batch(good("c", "p"))
    assert await either.members(first, Role.PREFERENCE) == ["b"]
    assert second.n_preference == 0


async def test_a_correction_pairs_with_a_rejection_of_an_earlier_batchs_time(
    drive: Driver,
) -> None:
    drive.line = DPO
    first = await drive.batch(good("a", "p"), bad("b", "q"))
    assert first.n_preference == 0
    second = await drive.batch(good("correction", "q"))
    assert await pairs(drive, second) == [("b", "correction")]


async def test_a_later_correction_is_the_one_that_counts(drive: Driver) -> None:
    drive.line = DPO
    batch = await drive.batch(
        good("first", "p", output="one"), bad("b", "p"), good("second", "p", output="two")
    )
    assert await pairs(drive, batch) == [("b", "second")]


async def test_an_answer_that_is_approved_beside_it_is_not_learned_as_bad(either: Driver) -> None:
    batch = await either.batch(good("a", "p", output="fine"), bad("b", "p", output="fine"))
    assert batch.n_preference == 0
    assert await uses(either) == {"b": "unfit"}


async def test_what_a_validator_complains_of_is_not_learned_from(either: Driver) -> None:
    batch = await either.batch(good("a", "p"), bad("b", "p", output=" "))
    assert batch.n_preference == 0
    assert await uses(either) == {"b": "unfit"}


async def test_rejected_outputs_of_other_lines_are_not_taken(either: Driver) -> None:
    batch = await either.batch(good("a", "p"), bad("b", "p", task_type="audio"))
    assert batch.n_preference == 0
    assert await either.rows(rejected_outputs) == []


async def test_a_share_bounds_them_and_the_newest_go_first(drive: Driver) -> None:
    drive.line = KTO
    rules = replace(ALL_TRAIN, rejected_share=0.5)
    await drive.send(*(bad(f"bad {n}", f"q{n}") for n in range(5)))
    batch = await drive.batch(good("a", "p"), good("b", "q"), rules=rules)
    assert await drive.members(batch, Role.PREFERENCE) == ["bad 3", "bad 4"]
    batch = await drive.batch(good("c", "r"), rules=rules)
    assert await drive.members(batch, Role.PREFERENCE) == ["bad 2"]
    batch = await drive.batch(good("d", "s"), rules=replace(rules, rejected_share=0.0))
    assert batch.n_preference == 0


async def test_each_prompt_gets_a_pair_before_one_gets_two(drive: Driver) -> None:
    drive.line = DPO
    await drive.send(bad("old", "q"), *(bad(f"bad {n}", "p", output=f"no {n}") for n in range(5)))
    batch = await drive.batch(good("a", "p"), good("b", "q"))
    assert await pairs(drive, batch) == [("old", "b"), ("bad 4", "a")]


async def test_only_the_newest_rejections_are_looked_through(
    drive: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejected, "LOOK_BACK", 2)
    drive.line = KTO
    for n in range(4):
        drive.wait(seconds=1)
        await drive.send(bad(f"bad {n}", f"q{n}"))
    batch = await drive.batch(good("a", "p"), good("b", "q"), good("c", "r"))
    assert await drive.members(batch, Role.PREFERENCE) == ["bad 2", "bad 3"]


async def test_many_are_taken_page_by_page(drive: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejected, "CHUNK", 3)
    drive.line = KTO
    await drive.send(*(bad(f"bad {n}", f"q{n}") for n in range(20)))
    batch = await drive.batch(*(good(f"good {n}", f"p{n}") for n in range(10)))
    assert await drive.members(batch, Role.PREFERENCE) == [f"bad {n}" for n in range(10, 20)]
    await require_promises(drive)


async def test_an_imported_batch_takes_them_too(drive: Driver) -> None:
    await drive.send(bad("b", "p"))
    file = DatasetSource("lessons.jsonl", "0" * 64)
    row = judged(good("a", "p"), origin=Origin(IMPORT, "lessons.jsonl", 0, 1))
    done = await drive.store.imports.add(DPO, file, [row], ALL_TRAIN, "ann", drive.now)
    assert done.batch is not None
    assert await pairs(drive, done.batch) == [("b", "a")]


async def test_two_seals_at_once_take_each_rejected_output_once(either: Driver) -> None:
    await either.send(*(bad(f"bad {n}", f"p{n}") for n in range(6)))
    await either.send(*(good(f"good {n}", f"p{n}") for n in range(6)))
    sealed = await asyncio.gather(*(either.seal(size=2) for _ in range(3)))
    taken: list[str] = []
    for batch in sealed:
        assert batch is not None
        taken += await either.members(batch, Role.PREFERENCE)
    assert len(taken) == len(set(taken)) == 6
    await require_promises(either)


# --- what never does ------------------------------------------------------------------


async def test_a_prompt_that_judges_teaches_nothing(either: Driver) -> None:
    names = [f"{n}" for n in range(10)]
    await either.send(*(bad(f"bad {name}", f"p{name}") for name in names))
    batch = await either.batch(*(good(name, f"p{name}") for name in names), rules=HALF_JUDGES)
    held_out = await either.members(batch, Role.HELD_OUT)
    trained = await either.members(batch, Role.TRAIN)
    assert len(held_out) == 5
    assert await either.members(batch, Role.PREFERENCE) == [f"bad {name}" for name in trained]
    await require_promises(either)

    again = await either.batch(*(good(f"{name}b", f"p{name}", output="b") for name in held_out))
    assert (again.n_train, again.n_preference) == (0, 0)


async def test_what_was_rejected_with_a_held_out_group_teaches_nothing(drive: Driver) -> None:
    drive.line = KTO
    only_b_judges = replace(HALF_JUDGES, held_out_share=0.4)
    first = await drive.batch(
        good("a", "p", approved=None, confidence=1.0),
        good("b", "q", split_group="alice"),
        good("c", "r", split_group="bob"),
        rules=only_b_judges,
    )
    (held,) = await drive.members(first, Role.HELD_OUT)
    group = {"b": "alice", "c": "bob"}[held]
    batch = await drive.batch(good("d", "s"), bad("e", "t", split_group=group))
    assert batch.n_preference == 0
    assert await uses(drive) == {"e": "held_out"}


async def test_a_prompt_that_was_learned_from_a_rejection_never_judges(drive: Driver) -> None:
    drive.line = KTO
    await drive.batch(good("a", "p"), bad("b", "q"))
    batch = await drive.batch(good("c", "q"), good("d", "r"), rules=HALF_JUDGES)
    assert await drive.members(batch, Role.TRAIN) == ["c"]
    refused = await drive.store.queue.import_held_out(
        [(1, good("x", "q"), (await drive.rows(rejected_outputs))[0].prompt_key)],
        "normalize",
        "ann",
        drive.now,
    )
    assert [number for number, _ in refused.refused] == [1]


async def test_rejected_outputs_are_no_training_rows_and_are_never_repeated(
    either: Driver,
) -> None:
    replaying = SplitRules(held_out_share=0.0, starting_share=0.0, replay_share=0.9)
    await either.release(good("a", "p"), bad("b", "p"), rules=replaying)
    batch = await either.batch(good("c", "q"), rules=replaying)
    rows = await either.store.runs.training_rows(batch.batch_id)
    assert [(row.event.task_id, row.role) for row in rows] == [
        ("a", Role.REPLAY),
        ("c", Role.TRAIN),
    ]
    assert await either.store.runs.preference_rows(batch.batch_id) == []
    await require_promises(either)


# --- the run --------------------------------------------------------------------------


async def training_of(drive: Driver, run_id: str) -> Any:
    await drive.begin(run_id)
    (run,) = await drive.rows(runs, runs.c.id == run_id)
    return run.training


async def reasons(drive: Driver, run_id: str) -> Sequence[str]:
    steps = await drive.rows(transitions, transitions.c.ref == run_id)
    return [step.reason for step in steps]


async def test_a_run_learns_by_the_lines_objective(either: Driver) -> None:
    run_id = await either.run_of(good("a", "p"), bad("b", "p"))
    assert await training_of(either, run_id) == either.line.training
    objective = either.line.objective
    assert (await reasons(either, run_id))[0] == (
        f"batch sealed; by {objective}, with 1 rejected outputs"
    )


async def test_a_batch_without_any_is_learned_by_sft_and_says_so(either: Driver) -> None:
    run_id = await either.run_of(good("a", "p"), good("b", "q"))
    assert await training_of(either, run_id) == {"epochs": 1, "objective": "sft"}
    objective = either.line.objective
    assert f"batch sealed; by sft, not {objective}: " in (await reasons(either, run_id))[0]


async def test_what_a_batch_is_learned_by_was_decided_when_it_was_sealed(either: Driver) -> None:
    run_id = await either.run_of(good("a", "p"), bad("b", "p"))
    sealed_by = either.line.objective
    either.configure(training={"epochs": 2})
    assert either.line.objective is Objective.SFT
    assert await training_of(either, run_id) == {"epochs": 2, "objective": sealed_by.value}


async def test_the_rows_of_a_pair_name_each_other(drive: Driver) -> None:
    drive.line = DPO
    batch = await drive.batch(good("a", "p"), bad("b", "p"))
    (row,) = await drive.store.runs.preference_rows(batch.batch_id)
    (trained,) = await drive.store.runs.training_rows(batch.batch_id)
    assert (row.event.task_id, row.preferred_id) == ("b", trained.event_id)


# --- what comes back ------------------------------------------------------------------


async def test_a_rejected_batchs_lessons_come_back_once(either: Driver) -> None:
    await either.finish(await either.run_of(good("a", "p"), bad("b", "p")), Outcome.REJECT)
    second = await either.batch(good("c", "q"))
    assert await either.members(second, Role.RETRY) == ["a"]
    assert await either.members(second, Role.PREFERENCE) == ["b"]
    assert second.run_id is not None
    await require_promises(either)
    await either.finish(second.run_id, Outcome.REJECT)
    third = await either.batch(good("d", "p"))
    assert third.n_preference == 0
    await require_promises(either)


async def test_an_abstained_batchs_lessons_come_back_three_times(either: Driver) -> None:
    run_id = await either.run_of(good("a", "p"), bad("b", "p"))
    for n in range(4):
        await either.finish(run_id, Outcome.ABSTAIN)
        batch = await either.batch(good(f"more {n}", "p", output=f"{n}"))
        assert batch.n_preference == (1 if n < 3 else 0)
        assert batch.run_id is not None
        run_id = batch.run_id
    await require_promises(either)


async def test_lessons_that_made_a_version_do_not_come_back(either: Driver) -> None:
    await either.release(good("a", "p"), bad("b", "p"))
    assert (await either.batch(good("c", "p"))).n_preference == 0
    assert await uses(either) == {"b": "taken"}


async def test_lessons_of_a_candidate_that_was_forced_do_not_come_back(either: Driver) -> None:
    run_id = await either.run_of(good("a", "p"), bad("b", "p"))
    await either.finish(run_id, Outcome.REJECT)
    assert await uses(either) == {"b": "free"}
    await either.promote("1.0.1-rc.1")
    assert (await either.batch(good("c", "p"))).n_preference == 0


# --- lineage --------------------------------------------------------------------------


async def lineage_of(drive: Driver, task: str) -> EventLineage:
    found = await Lineages(drive.store.database).of(str((await drive.event(task)).id))
    assert isinstance(found, EventLineage)
    return found


async def test_a_version_knows_what_it_learned_from_as_rejected(either: Driver) -> None:
    await either.release(good("a", "p"), bad("c", "elsewhere"), bad("b", "p"))
    rejected = await lineage_of(either, "b")
    (use,) = rejected.uses
    assert (use.role, use.version) == (Role.PREFERENCE, "1.0.1")
    assert [(one.version, one.directly) for one in rejected.known_by] == [("1.0.1", True)]
    behind = await Lineages(either.store.database).of("normalize@1.0.1")
    assert isinstance(behind, VersionLineage)
    assert behind.n_events == 2
    assert behind.chain[0].counts == {"preference": 1, "train": 1}
    assert {one.role for one in behind.events.items} == {Role.TRAIN, Role.PREFERENCE}
    assert (await lineage_of(either, "c")).known_by == []


async def test_the_answers_of_a_pair_are_told_both_ways(drive: Driver) -> None:
    drive.line = DPO
    batch = await drive.batch(good("a", "p"), bad("b", "p"), bad("c", "q"))
    better, worse = await lineage_of(drive, "a"), await lineage_of(drive, "b")
    assert worse.uses[0].better == "studio/normalize/a"
    assert worse.rejected_use == "taken"
    assert (better.uses[0].better, better.uses[0].worse) == (None, ["studio/normalize/b"])
    assert better.rejected_use is None
    assert (await lineage_of(drive, "c")).rejected_use == "free"
    members = await Lineages(drive.store.database).of(batch.batch_id)
    assert isinstance(members, BatchLineage)
    assert [one.better for one in members.members.items] == [None, "studio/normalize/a"]
