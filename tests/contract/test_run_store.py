"""What RunStore promises: each step of a run is one transaction, and none is taken twice."""

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from daemon.store import Store, registry
from daemon.store.tables import (
    batches,
    evaluation_examples,
    evaluations,
    run_attempts,
    runs,
    transitions,
    versions,
)
from learning.errors import IllegalMoveError
from learning.events import prompt_key
from learning.gate import Outcome, Refusal, TrainingProof, refusal_of
from learning.lifecycle import BatchState, Role, RunState, VersionState
from learning.lines import ModelLine
from learning.ports import (
    ChampionMovedError,
    Hold,
    JobProgress,
    ModelReference,
    RunStore,
    TrainingOutcome,
)
from tests.builders import later, output, outputs
from tests.contract.driver import AS_SHIPPED, LINE, PROOF, Driver, everything, report

TRAINED = TrainingOutcome(Path("out"), "lora", PROOF, {"loss": 1.5})


def test_it_is_a_run_store(store: Store) -> None:
    port: RunStore = store.runs

    assert port


async def state_of(drive: Driver, run_id: str) -> str:
    return (await drive.store.runs.get(run_id)).state


# --- what is due ----------------------------------------------------------------------


async def test_a_planned_run_is_due_with_all_that_is_known_of_it(drive: Driver) -> None:
    batch = await drive.batch(output())

    (record,) = await drive.store.runs.due(drive.now)

    assert (record.run_id, record.batch_id, record.line) == (
        batch.run_id,
        batch.batch_id,
        "normalize",
    )
    assert (record.state, record.attempt, record.failures) == (RunState.PLANNED, 0, 0)
    assert (record.parent, record.training, record.job_id, record.artifact) == (None,) * 4
    assert record == await drive.store.runs.get(record.run_id)


async def test_of_each_line_the_run_that_was_sealed_first_is_due(drive: Driver) -> None:
    first = await drive.run_of(output("a"))
    drive.wait(hours=-1)  # the clock was set back in between
    await drive.run_of(output("b"))
    await drive.send(output("c", task_type="audio"))
    arcade = await drive.seal(line=ModelLine("arcade", frozenset({"audio"}), "tiny", "scripted"))

    due = {record.run_id for record in await drive.store.runs.due(later())}

    assert arcade is not None
    assert due == {first, arcade.run_id}


async def test_a_run_that_waits_for_its_retry_holds_up_the_next_of_its_line(
    drive: Driver,
) -> None:
    first = await drive.run_of(output("a"))
    await drive.run_of(output("b"))
    await drive.begin(first)
    await drive.store.runs.fail(first, "oom", "no memory", later(minutes=5), drive.now)

    assert await drive.store.runs.due(later(minutes=4)) == []
    assert [record.run_id for record in await drive.store.runs.due(later(minutes=5))] == [first]


async def test_a_restart_finds_the_runs_that_were_launched(drive: Driver) -> None:
    run_id = await drive.run_of(output("a"))
    await drive.run_of(output("b"))

    seen = []
    for step in ("planned", "launching", "running", "trained", "evaluating", "decided"):
        match step:
            case "launching":
                await drive.begin(run_id)
            case "running":
                await drive.store.runs.adopt(run_id, "job-1", drive.now)
            case "trained":
                await drive.store.runs.finish_training(run_id, "x", "0" * 64, TRAINED, drive.now)
            case "evaluating":
                await drive.enter(run_id)
            case "decided":
                await drive.decide(run_id, Outcome.ABSTAIN)
        assert await state_of(drive, run_id) == step
        await drive.store.leases.release_all()
        if run_id in await drive.store.leases.lapsed():
            assert await drive.store.leases.hold(run_id) == Hold()
            seen.append(step)

    assert seen == ["launching", "running", "trained", "evaluating"]


# --- launching ------------------------------------------------------------------------


async def test_beginning_writes_down_the_intent_before_anything_starts(drive: Driver) -> None:
    batch = await drive.batch(output())
    assert batch.run_id is not None

    record = await drive.begin(batch.run_id)

    assert (record.state, record.attempt) == (RunState.LAUNCHING, 1)
    assert record.parent == ModelReference("tiny")
    assert record.training == {"epochs": 1}
    (attempt,) = await drive.rows(run_attempts)
    assert (attempt.attempt, attempt.job_id, attempt.result) == (1, None, None)
    assert (await drive.rows(batches))[0].state == BatchState.RUNNING
    assert await drive.champion() == "1.0.0"


async def test_a_run_begins_once(drive: Driver) -> None:
    run_id = await drive.run_of(output())
    await drive.begin(run_id)
    before = await everything(drive.store.database)

    with pytest.raises(IllegalMoveError, match="launching cannot become launching"):
        await drive.begin(run_id)

    assert await everything(drive.store.database) == before


async def test_a_line_works_on_one_run(drive: Driver) -> None:
    await drive.begin(await drive.run_of(output("a")))
    second = await drive.run_of(output("b"))
    before = await everything(drive.store.database)

    with pytest.raises(IllegalMoveError, match="busy line"):
        await drive.begin(second)

    assert await everything(drive.store.database) == before


async def test_of_several_hands_one_begins_the_run(drive: Driver) -> None:
    run_id = await drive.run_of(output())

    tries = await asyncio.gather(*(drive.begin(run_id) for _ in range(4)), return_exceptions=True)

    assert sum(isinstance(each, IllegalMoveError) for each in tries) == 3
    assert len(await drive.rows(run_attempts)) == 1


async def test_the_database_itself_refuses_a_second_active_run(drive: Driver) -> None:
    await drive.begin(await drive.run_of(output("a")))
    second = await drive.run_of(output("b"))

    async def set_state(state: str) -> None:
        statement = update(runs).where(runs.c.id == second).values(state=state)
        await drive.store.database.write(lambda tx: tx.execute(statement))

    for state in ("launching", "running", "trained", "evaluating"):
        with pytest.raises(IntegrityError):
            await set_state(state)
    await set_state("waiting")
    await set_state("planned")


async def test_an_adopted_job_is_kept_with_its_attempt(drive: Driver) -> None:
    run_id = await drive.run_of(output())
    await drive.begin(run_id)

    await drive.store.runs.adopt(run_id, "ftjob-7", drive.now)

    record = await drive.store.runs.get(run_id)
    assert (record.state, record.job_id) == (RunState.RUNNING, "ftjob-7")
    assert (await drive.rows(run_attempts))[0].job_id == "ftjob-7"


async def test_an_interrupted_run_goes_on_as_another_attempt_without_a_failure(
    drive: Driver,
) -> None:
    run_id = await drive.run_of(output())
    await drive.begin(run_id)
    await drive.store.runs.adopt(run_id, "job-1", drive.now)

    await drive.store.runs.interrupt(run_id, "the daemon stopped", drive.now)
    again = await drive.begin(run_id)

    assert (again.attempt, again.failures, again.job_id) == (2, 0, None)
    first, second = await drive.rows(run_attempts)
    assert (first.result, first.message) == ("interrupted", "the daemon stopped")
    assert (second.attempt, second.result, second.job_id) == (2, None, None)


async def test_a_failed_attempt_is_counted_and_tried_again_when_it_is_time(
    drive: Driver,
) -> None:
    run_id = await drive.run_of(output())
    await drive.begin(run_id)

    await drive.store.runs.fail(run_id, "oom", "no memory", later(minutes=1), drive.now)

    record = await drive.store.runs.get(run_id)
    assert (record.state, record.failures) == (RunState.PLANNED, 1)
    (row,) = await drive.rows(runs)
    assert (row.error, row.message, row.finished_at) == ("oom", "no memory", None)
    assert (await drive.rows(run_attempts))[0].message == "oom: no memory"
    drive.wait(minutes=1)
    again = await drive.begin(run_id)
    assert (again.attempt, again.failures) == (2, 1)
    (row,) = await drive.rows(runs)
    assert (row.error, row.message, row.not_before) == (None, None, None)


async def test_the_last_failure_ends_the_run_and_returns_its_batch(drive: Driver) -> None:
    run_id = await drive.run_of(output())
    await drive.begin(run_id)

    await drive.store.runs.fail(run_id, "bad_data", "no rows", None, drive.now)

    (row,) = await drive.rows(runs)
    assert (row.state, row.failures, row.finished_at) == (RunState.FAILED, 1, later())
    assert (await drive.rows(batches))[0].state == BatchState.RETURNED
    assert await drive.store.runs.due(later(days=1)) == []
    assert not (await drive.store.queue.look(LINE)).busy


async def test_an_evaluation_that_fails_ends_the_run_and_frees_the_line(drive: Driver) -> None:
    run_id = await drive.run_of(output("a"))
    await drive.train(run_id)
    await drive.enter(run_id)

    await drive.store.runs.fail(run_id, "oom", "no memory", None, drive.now)

    assert await state_of(drive, run_id) == RunState.FAILED
    assert await drive.release(output("b")) == "1.0.1"


# --- waiting --------------------------------------------------------------------------


async def test_a_run_that_waits_says_for_what_and_goes_on_after_a_restart(
    drive: Driver,
) -> None:
    run_id = await drive.run_of(output())

    await drive.store.runs.wait_for(run_id, "no base model", drive.now)

    assert await state_of(drive, run_id) == RunState.WAITING
    assert (await drive.rows(runs))[0].message == "no base model"
    assert await drive.store.runs.due(drive.now) == []
    assert await drive.store.runs.resume_waiting(drive.now) == 1
    assert await state_of(drive, run_id) == RunState.PLANNED
    assert (await drive.rows(runs))[0].message is None


async def test_a_launch_of_unknown_outcome_waits_for_a_person_over_every_restart(
    drive: Driver,
) -> None:
    """Planned again it would be launched again, and there could be two jobs (P3)."""
    run_id = await drive.run_of(output())
    await drive.begin(run_id)
    await drive.store.runs.wait_for(run_id, "nobody knows whether there is a job", drive.now)

    assert await drive.store.runs.resume_waiting(drive.now) == 0

    assert await state_of(drive, run_id) == RunState.WAITING


async def test_a_run_that_waits_after_a_failed_attempt_goes_on(drive: Driver) -> None:
    run_id = await drive.run_of(output())
    await drive.begin(run_id)
    await drive.store.runs.fail(run_id, "oom", "no memory", drive.now, drive.now)
    await drive.store.runs.wait_for(run_id, "the provider is gone", drive.now)

    assert await drive.store.runs.resume_waiting(drive.now) == 1


# --- training -------------------------------------------------------------------------


async def test_progress_is_noted_and_moves_nothing(drive: Driver) -> None:
    run_id = await drive.run_of(output())
    await drive.begin(run_id)
    before = await drive.rows(transitions)

    await drive.store.runs.report(run_id, JobProgress(3, 60, {"loss": 2.5}), drive.now)

    (row,) = await drive.rows(runs)
    assert row.progress == {"step": 3, "total_steps": 60, "numbers": {"loss": 2.5}}
    assert await drive.rows(transitions) == before


async def test_what_was_measured_is_kept_and_not_a_number_is_null(drive: Driver) -> None:
    run_id = await drive.run_of(output())
    await drive.begin(run_id)
    await drive.store.runs.adopt(run_id, "job-1", drive.now)
    broken = TrainingProof(10, math.nan, all_finite=True)
    measured = {"loss": math.nan, "curve": [1.0, math.inf], "lr": 0.1}

    await drive.store.runs.report(run_id, JobProgress(1, 2, {"loss": math.nan}), drive.now)
    await drive.store.runs.finish_training(
        run_id, "x", "0" * 64, TrainingOutcome(Path("out"), "lora", broken, measured), drive.now
    )

    record = await drive.store.runs.get(run_id)
    assert record.measurements is not None
    assert record.measurements["loss"] is None
    assert record.measurements["curve"] == [1.0, None]
    assert record.measurements["lr"] == 0.1
    proof = TrainingProof(**record.measurements["proof"])
    assert refusal_of(proof) is Refusal.NOT_FINITE, "what was NaN must not pass for a number"
    (row,) = await drive.rows(runs)
    json.dumps([row.progress, row.measurements], allow_nan=False)


async def test_a_trained_run_keeps_its_artifact(drive: Driver) -> None:
    run_id = await drive.run_of(output())

    await drive.train(run_id, loss=1.5)

    record = await drive.store.runs.get(run_id)
    assert (record.state, record.artifact, record.method) == (
        RunState.TRAINED,
        f"{run_id}-files",
        "lora",
    )
    assert record.measurements is not None
    assert TrainingProof(**record.measurements["proof"]) == PROOF
    assert (await drive.rows(run_attempts))[0].result == "succeeded"


async def test_a_candidate_trains_on_all_but_the_held_out_members(drive: Driver) -> None:
    await drive.release(output("old"))
    await drive.finish(await drive.run_of(output("again")), Outcome.REJECT)
    batch = await drive.batch(*outputs(range(4)), rules=AS_SHIPPED)

    rows = await drive.store.runs.training_rows(batch.batch_id)

    assert [row.event_id for row in rows] == sorted(row.event_id for row in rows)
    roles = {row.event.task_id: row.role for row in rows}
    assert roles["old"] is Role.REPLAY
    assert roles["again"] is Role.RETRY
    assert list(roles.values()).count(Role.TRAIN) == 2
    assert len(roles) == 4
    assert [row.event for row in rows if row.role is Role.REPLAY] == [output("old")]


async def test_the_held_out_examples_of_a_line_come_oldest_first(drive: Driver) -> None:
    await drive.batch(*outputs(range(10)), rules=AS_SHIPPED)
    foreign = output("x", task_type="audio")
    await drive.store.queue.import_held_out(
        [(1, foreign, prompt_key(foreign))], "audio", "ann", drive.now
    )

    rows = await drive.store.runs.held_out_rows(LINE)

    assert [row.id for row in rows] == [
        row.id
        for row in await drive.rows(
            evaluation_examples, evaluation_examples.c.task_type == "normalize"
        )
    ]
    assert len(rows) == 5
    assert rows[0].messages[-1]["role"] == "assistant"


# --- proving --------------------------------------------------------------------------


async def test_entering_makes_a_candidate_and_names_the_champion(drive: Driver) -> None:
    run_id = await drive.run_of(output())
    await drive.train(run_id)

    duel = await drive.enter(run_id)

    assert (duel.candidate_number, duel.champion_number) == ("1.0.1-rc.1", "1.0.0")
    assert (duel.look, duel.parent_rolled_back) == (1, False)
    assert duel.champion == ModelReference("tiny")
    assert duel.candidate.base_model == "tiny"
    assert duel.candidate.adapter is not None
    assert duel.candidate.adapter.name == f"{run_id}-files"
    assert (await drive.version("1.0.1-rc.1")).state == VersionState.CANDIDATE


async def test_entering_again_renews_the_duel_and_makes_no_second_candidate(
    drive: Driver,
) -> None:
    run_id = await drive.run_of(output())
    await drive.train(run_id)

    first = await drive.enter(run_id)

    assert await drive.enter(run_id) == first
    assert len(await drive.rows(versions)) == 2


async def test_a_promoted_candidate_is_the_champion_under_the_next_number(
    drive: Driver,
) -> None:
    decision = await drive.finish(await drive.run_of(output()), Outcome.PROMOTE)

    assert decision.promoted is not None
    promoted = decision.promoted
    assert (promoted.version, promoted.replaced, promoted.forced) == ("1.0.1", "1.0.0", False)
    assert await drive.champion() == "1.0.1"
    assert (await drive.version("1.0.1")).state == VersionState.RELEASED
    assert (await drive.version("1.0.0")).state == VersionState.SUPERSEDED
    (run,) = await drive.rows(runs)
    assert (run.state, run.outcome, run.finished_at) == (RunState.DECIDED, "promote", later())
    assert (await drive.rows(batches))[0].state == BatchState.SPENT


@pytest.mark.parametrize(
    ("outcome", "state"),
    [(Outcome.REJECT, VersionState.REFUSED), (Outcome.ABSTAIN, VersionState.CANDIDATE)],
)
async def test_any_other_verdict_leaves_the_champion_and_returns_the_batch(
    drive: Driver, outcome: Outcome, state: VersionState
) -> None:
    decision = await drive.finish(await drive.run_of(output()), outcome)

    assert decision.promoted is None
    assert await drive.champion() == "1.0.0"
    assert (await drive.version("1.0.1-rc.1")).state == state
    assert (await drive.rows(batches))[0].state == BatchState.RETURNED


async def test_the_verdict_is_kept_with_every_number(drive: Driver) -> None:
    run_id = await drive.run_of(output())
    await drive.train(run_id)
    duel = await drive.enter(run_id)
    scores = {"champion": {"loss": [1.0, math.nan]}, "examples": [1, 2]}
    said = report(Outcome.ABSTAIN, p_better=0.25)

    await drive.store.runs.decide(run_id, duel, said, scores, drive.now)

    (row,) = await drive.rows(evaluations)
    assert (row.version_id, row.champion_id) == (duel.candidate_id, duel.champion_id)
    assert (row.report["p_better"], row.report["outcome"]) == (0.25, "abstain")
    assert row.scores == {"champion": {"loss": [1.0, None]}, "examples": [1, 2]}


async def test_a_run_is_decided_once(drive: Driver) -> None:
    run_id = await drive.run_of(output())
    await drive.train(run_id)
    duel = await drive.enter(run_id)
    await drive.decide(run_id, Outcome.ABSTAIN, duel=duel)
    before = await everything(drive.store.database)

    with pytest.raises(IllegalMoveError):
        await drive.decide(run_id, Outcome.PROMOTE, duel=duel)

    assert await everything(drive.store.database) == before


async def test_when_the_champion_moved_meanwhile_nothing_is_decided(drive: Driver) -> None:
    await drive.finish(await drive.run_of(output("a")), Outcome.REJECT)
    run_id = await drive.run_of(output("b"))
    await drive.train(run_id)
    duel = await drive.enter(run_id)
    await drive.promote("1.0.1-rc.1")
    before = await everything(drive.store.database)

    with pytest.raises(ChampionMovedError, match=r"was 1.0.0 and is 1.0.1 now"):
        await drive.decide(run_id, Outcome.PROMOTE, duel=duel)

    assert await everything(drive.store.database) == before
    renewed = await drive.enter(run_id)
    assert renewed.champion_number == "1.0.1"
    assert (await drive.decide(run_id, Outcome.PROMOTE, duel=renewed)).promoted is not None


@pytest.mark.parametrize("outcome", Outcome)
async def test_a_candidate_that_was_forced_during_its_evaluation_is_let_be(
    drive: Driver, outcome: Outcome
) -> None:
    run_id = await drive.run_of(output())
    await drive.train(run_id)
    await drive.enter(run_id)
    await drive.promote("1.0.1-rc.1")

    decision = await drive.decide(run_id, outcome)

    assert decision.promoted is None
    assert await state_of(drive, run_id) == RunState.DECIDED
    assert await drive.champion() == "1.0.1"
    assert (await drive.rows(batches))[0].state == BatchState.SPENT


async def test_only_comparisons_are_looks(drive: Driver) -> None:
    """A candidate that met too little evidence spends nothing of the significance."""
    looks = []
    for n, p_better in enumerate([None, 0.5, None, 0.5, 0.5]):
        run_id = await drive.run_of(output(f"task-{n}"))
        await drive.train(run_id)
        duel = await drive.enter(run_id)
        looks.append(duel.look)
        await drive.decide(run_id, Outcome.ABSTAIN, duel=duel, p_better=p_better)

    assert looks == [1, 1, 2, 2, 3]


async def test_a_new_champion_is_looked_at_afresh(drive: Driver) -> None:
    await drive.finish(await drive.run_of(output("a")), Outcome.REJECT)
    await drive.release(output("b"))
    run_id = await drive.run_of(output("c"))
    await drive.train(run_id)

    assert (await drive.enter(run_id)).look == 1


# --- parents --------------------------------------------------------------------------


async def test_training_goes_on_from_the_champion(drive: Driver) -> None:
    await drive.release(output("a"))
    run_id = await drive.run_of(output("b"))

    record = await drive.begin(run_id)

    assert record.parent is not None
    assert record.parent.base_model == "tiny"
    assert record.parent.adapter is not None
    (row,) = await drive.rows(runs, runs.c.id == run_id)
    assert row.parent_id == (await drive.version("1.0.1")).id


async def test_an_adapter_on_a_fully_trained_champion_sits_on_its_files(
    drive: Driver, tmp_path: Path
) -> None:
    first = await drive.run_of(output("a"))
    await drive.train(first, method="full")
    await drive.decide(first, Outcome.PROMOTE)
    second = await drive.run_of(output("b"))
    await drive.train(second, method="lora")

    duel = await drive.enter(second)

    files = str(tmp_path / "artifacts" / f"{first}-files")
    assert duel.champion == ModelReference(files)
    assert duel.candidate.base_model == files
    assert duel.candidate.adapter == tmp_path / "artifacts" / f"{second}-files"


async def test_a_candidate_of_a_parent_that_was_rolled_back_is_marked(drive: Driver) -> None:
    await drive.release(output("a"))
    run_id = await drive.run_of(output("b"))
    await drive.train(run_id)

    await drive.rollback()

    duel = await drive.enter(run_id)
    assert duel.parent_rolled_back
    assert duel.champion_number == "1.0.0"


async def test_a_parent_in_between_that_was_left_behind_marks_it_too(drive: Driver) -> None:
    await drive.release(output("a"))
    await drive.release(output("b"))
    run_id = await drive.run_of(output("c"))
    await drive.train(run_id)

    await drive.rollback("1.0.0")

    assert (await drive.enter(run_id)).parent_rolled_back


async def test_going_forward_again_clears_the_line_for_new_candidates(drive: Driver) -> None:
    """1.0.1 was left for 1.0.2, which it made: neither is a mistake any more."""
    await drive.release(output("a"))
    await drive.release(output("b"))
    await drive.rollback()
    await drive.rollback("1.0.2")

    run_id = await drive.run_of(output("c"))
    await drive.train(run_id)

    assert not (await drive.enter(run_id)).parent_rolled_back
    assert (await drive.version("1.0.1")).state == VersionState.SUPERSEDED


async def test_a_parent_that_was_only_superseded_is_no_obstacle(drive: Driver) -> None:
    await drive.finish(await drive.run_of(output("a")), Outcome.REJECT)
    run_id = await drive.run_of(output("b"))
    await drive.train(run_id)
    await drive.promote("1.0.1-rc.1")

    assert not (await drive.enter(run_id)).parent_rolled_back


async def test_what_made_the_champion_is_accepted_even_if_it_was_rolled_back(
    drive: Driver,
) -> None:
    """An operator forced the child of a version that was rolled back; training goes on."""
    await drive.release(output("a"))
    await drive.finish(await drive.run_of(output("b")), Outcome.REJECT)
    await drive.rollback()
    await drive.promote("1.0.2-rc.1")

    run_id = await drive.run_of(output("c"))
    await drive.train(run_id)

    assert not (await drive.enter(run_id)).parent_rolled_back


# --- numbers --------------------------------------------------------------------------


async def test_new_settings_make_a_minor_version_and_a_new_base_a_major_one(
    drive: Driver,
) -> None:
    assert await drive.release(output("a")) == "1.0.1"
    drive.configure(training={"epochs": 3})
    assert await drive.release(output("b")) == "1.1.0"
    assert await drive.release(output("c")) == "1.1.1"
    drive.configure(base_model="large")
    assert await drive.release(output("d")) == "2.0.0"

    (row,) = await drive.rows(versions, versions.c.release == "2.0.0")
    assert (row.parent_id, row.base_model, row.foundation) == (None, "large", "large")


async def test_a_first_version_on_a_new_base_is_major_too(drive: Driver) -> None:
    await drive.store.registry.ensure_lines([LINE], drive.now)
    drive.configure(base_model="large")

    assert await drive.release(output("a")) == "2.0.0"


async def test_a_batch_without_one_of_the_lines_task_types_is_routine(drive: Driver) -> None:
    """The line had both from its start: that one comes second is no news to its users."""
    drive.configure(name="arcade", task_types=frozenset({"audio", "game"}))

    assert await drive.release(output("a", task_type="audio")) == "1.0.1"
    assert await drive.release(output("b", task_type="game")) == "1.0.2"


async def test_a_task_type_that_joins_the_line_makes_a_minor_version(drive: Driver) -> None:
    assert await drive.release(output("a")) == "1.0.1"
    drive.configure(task_types=frozenset({"normalize", "route"}))

    assert await drive.release(output("b")) == "1.0.2"
    assert await drive.release(output("c", task_type="route")) == "1.1.0"


async def test_candidates_are_numbered_within_the_release_they_aim_at(drive: Driver) -> None:
    numbers = []
    for n, outcome in enumerate([Outcome.REJECT, Outcome.ABSTAIN, Outcome.PROMOTE, Outcome.REJECT]):
        run_id = await drive.run_of(output(f"task-{n}"))
        await drive.train(run_id)
        duel = await drive.enter(run_id)
        numbers.append(duel.candidate_number)
        await drive.decide(run_id, outcome, duel=duel)

    assert numbers == ["1.0.1-rc.1", "1.0.1-rc.2", "1.0.1-rc.3", "1.0.2-rc.1"]


# --- moves that do not exist ----------------------------------------------------------


@pytest.mark.parametrize("state", ["planned", "running", "trained", "decided"])
async def test_a_step_from_the_wrong_state_is_refused_and_writes_nothing(
    drive: Driver, state: str
) -> None:
    run_id = await drive.run_of(output())
    if state != "planned":
        await drive.begin(run_id)
        await drive.store.runs.adopt(run_id, "job-1", drive.now)
    if state in ("trained", "decided"):
        await drive.store.runs.finish_training(run_id, "x", "0" * 64, TRAINED, drive.now)
    if state == "decided":
        await drive.decide(run_id, Outcome.ABSTAIN)
    steps: dict[str, Callable[[], Awaitable[object]]] = {
        "begin": lambda: drive.begin(run_id),
        "wait_for": lambda: drive.store.runs.wait_for(run_id, "x", drive.now),
        "adopt": lambda: drive.store.runs.adopt(run_id, "job-2", drive.now),
        "interrupt": lambda: drive.store.runs.interrupt(run_id, "x", drive.now),
        "fail": lambda: drive.store.runs.fail(run_id, "x", "y", None, drive.now),
        "finish": lambda: drive.store.runs.finish_training(
            run_id, "x", "0" * 64, TRAINED, drive.now
        ),
        "enter": lambda: drive.store.runs.enter(run_id, drive.now),
    }
    allowed = {
        "planned": {"begin", "wait_for"},
        "running": {"interrupt", "fail", "finish"},
        "trained": {"enter", "fail"},
        "decided": set[str](),
    }
    before = await everything(drive.store.database)

    for name in steps.keys() - allowed[state]:
        with pytest.raises(IllegalMoveError):
            await steps[name]()
        assert await everything(drive.store.database) == before, name


async def test_a_failure_while_promoting_leaves_the_candidate_undecided(
    drive: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = await drive.run_of(output())
    await drive.train(run_id)
    duel = await drive.enter(run_id)
    before = await everything(drive.store.database)

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(registry, "_record_alias", fail)
        with pytest.raises(ZeroDivisionError):
            await drive.decide(run_id, Outcome.PROMOTE, duel=duel)

    assert await everything(drive.store.database) == before
    assert (await drive.decide(run_id, Outcome.PROMOTE, duel=duel)).promoted is not None


async def test_every_step_is_in_the_history(drive: Driver) -> None:
    run_id = await drive.run_of(output())
    await drive.finish(run_id, Outcome.PROMOTE)

    steps = [
        (row.from_state, row.to_state)
        for row in await drive.rows(transitions, transitions.c.ref == run_id)
    ]
    assert steps == [
        (None, "planned"),
        ("planned", "launching"),
        ("launching", "running"),
        ("running", "trained"),
        ("trained", "evaluating"),
        ("evaluating", "decided"),
    ]
    batch_steps = [
        (row.from_state, row.to_state)
        for row in await drive.rows(transitions, transitions.c.kind == "batch")
    ]
    assert batch_steps == [("sealed", "running"), ("running", "spent")]
