"""The runner on a real store: cancelled in every state, a lost reply, an evaluation gone wrong."""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Row

from daemon.store.interventions import NothingToResolveError, RunIsOverError
from daemon.store.runs import UnknownRunError
from daemon.store.tables import (
    batches,
    evaluation_examples,
    returned_events,
    run_attempts,
    runs,
    transitions,
    versions,
)
from daemon.store.views.models import Models
from finetune import runner as runner_module
from learning.errors import IllegalMoveError
from learning.events import prompt_key
from learning.facts import (
    CandidateDecided,
    LaunchResolved,
    Promoted,
    RunCancelAsked,
    RunCancelled,
    RunFailed,
    RunLaunched,
    RunWaits,
)
from learning.gate import GateRules, Outcome, Score
from learning.lifecycle import RunState
from learning.ports import JobFailedError, ModelReference, Recovery
from learning.sampling import SplitRules
from tests.builders import output
from tests.contract.driver import Driver
from tests.contract.floor import AT_ONCE, OUTPUTS, Floor

RELATED = 12
"""Held-out examples of a related task type."""
ENOUGH_TO_PROVE = SplitRules(held_out_share=0.5, starting_share=0.7, replay_share=0.0)


@pytest.fixture
def floor(drive: Driver, tmp_path: Path) -> Floor:
    return Floor(drive, tmp_path)


async def run_row(floor: Floor, run_id: str) -> Row[Any]:
    (row,) = await floor.drive.rows(runs, runs.c.id == run_id)
    return row


async def cancel(floor: Floor, run_id: str) -> RunCancelled | RunCancelAsked:
    return await floor.drive.store.interventions.cancel(
        run_id, "wrong data", "ann", floor.drive.now
    )


async def require_cancelled(floor: Floor, run_id: str) -> None:
    """Cancelled by ann with her reason, and its batch is there for the next run."""
    row = await run_row(floor, run_id)
    assert (row.state, row.message) == ("cancelled", "cancelled by ann: wrong data")
    assert row.finished_at is not None
    last = (await floor.drive.rows(transitions, transitions.c.ref == run_id))[-1]
    assert (last.to_state, last.actor, last.reason) == ("cancelled", "ann", "wrong data")
    (batch,) = await floor.drive.rows(batches, batches.c.id == row.batch_id)
    assert batch.state == "returned"
    assert len(await floor.drive.rows(returned_events)) == OUTPUTS
    attempts = await floor.drive.rows(run_attempts, run_attempts.c.run_id == run_id)
    assert all(attempt.ended_at is not None for attempt in attempts)


class Evaluation:
    """An evaluator that answers as the test says, and tells when it was asked."""

    def __init__(self, answer: Callable[[int], Mapping[str, Sequence[Any]]] | None) -> None:
        self._answer = answer
        self.asked = asyncio.Event()

    async def score(
        self, models: Mapping[str, ModelReference], examples_file: Path
    ) -> Mapping[str, Sequence[Score]]:
        self.asked.set()
        if self._answer is None:
            await asyncio.Event().wait()
            raise AssertionError
        rows = await asyncio.to_thread(examples_file.read_bytes)
        return self._answer(len(rows.splitlines()))


# --- cancelling, state by state -------------------------------------------------------


async def test_a_planned_run_is_cancelled_at_once(floor: Floor) -> None:
    run_id = await floor.sealed()

    assert isinstance(await cancel(floor, run_id), RunCancelled)

    await require_cancelled(floor, run_id)


async def test_a_run_that_waits_is_cancelled_at_once(floor: Floor) -> None:
    run_id = await floor.sealed()
    await floor.drive.store.runs.wait_for(run_id, "no base model", floor.drive.now)

    assert isinstance(await cancel(floor, run_id), RunCancelled)

    await require_cancelled(floor, run_id)


@pytest.mark.parametrize("recovery", [Recovery.LOOKUP, Recovery.IDEMPOTENCY])
async def test_a_launch_of_unknown_outcome_is_found_and_its_job_is_cancelled(
    floor: Floor, recovery: Recovery
) -> None:
    floor.recovery = recovery
    floor.play("hang")
    run_id = await floor.sealed()
    await floor.launch_unheard(run_id)

    assert isinstance(await cancel(floor, run_id), RunCancelAsked)
    async with floor.at_work():
        await floor.until(RunCancelled)

    await require_cancelled(floor, run_id)
    (job,) = await floor.jobs()
    assert await floor.is_cancelled(job)


async def test_a_launch_that_made_no_job_is_cancelled_without_one(floor: Floor) -> None:
    run_id = await floor.sealed()
    await floor.drive.begin(run_id)

    await cancel(floor, run_id)
    async with floor.at_work():
        await floor.until(RunCancelled)

    await require_cancelled(floor, run_id)
    assert await floor.jobs() == []


async def test_a_running_run_is_cancelled_with_its_job(floor: Floor) -> None:
    floor.play("hang")
    run_id = await floor.sealed()

    async with floor.at_work() as runner:
        await floor.until(RunLaunched)
        assert isinstance(await cancel(floor, run_id), RunCancelAsked)
        runner.wake()
        await floor.until(RunCancelled)

    await require_cancelled(floor, run_id)
    (job,) = await floor.jobs()
    assert await floor.is_cancelled(job)


async def test_a_trained_run_is_cancelled_before_it_is_evaluated(floor: Floor) -> None:
    run_id = await floor.sealed()
    await floor.drive.train(run_id)

    await cancel(floor, run_id)
    async with floor.at_work():
        await floor.until(RunCancelled)

    await require_cancelled(floor, run_id)
    assert [row.release for row in await floor.drive.rows(versions)] == ["1.0.0"]


async def test_a_run_is_cancelled_in_the_middle_of_its_evaluation(floor: Floor) -> None:
    floor.evaluator = evaluation = Evaluation(None)
    run_id = await floor.sealed(rules=ENOUGH_TO_PROVE)

    async with floor.at_work() as runner:
        await evaluation.asked.wait()
        await cancel(floor, run_id)
        runner.wake()
        await floor.until(RunCancelled)

    assert (await run_row(floor, run_id)).state == "cancelled"
    assert await floor.drive.champion() == "1.0.0"


async def test_a_decided_run_is_over(floor: Floor) -> None:
    run_id = await floor.sealed()
    await floor.drive.finish(run_id, Outcome.PROMOTE)

    with pytest.raises(RunIsOverError, match=r"decided already.*learnd rollback normalize"):
        await cancel(floor, run_id)


async def test_a_run_that_does_not_exist_is_named(floor: Floor) -> None:
    with pytest.raises(UnknownRunError, match="r-none"):
        await cancel(floor, "r-none")


# --- what a cancellation survives -----------------------------------------------------


async def test_a_daemon_that_dies_before_it_ends_the_job_does_so_after_its_restart(
    floor: Floor,
) -> None:
    floor.play("hang")
    run_id = await floor.sealed()
    async with floor.at_work():
        await floor.until(RunLaunched)
    await cancel(floor, run_id)

    async with floor.at_work():
        await floor.until(RunCancelled)

    await require_cancelled(floor, run_id)
    (job,) = await floor.jobs()
    assert await floor.is_cancelled(job)


async def test_the_first_to_cancel_is_the_one_in_the_history(floor: Floor) -> None:
    run_id = await floor.sealed()
    await floor.drive.begin(run_id)
    await cancel(floor, run_id)

    again = await floor.drive.store.interventions.cancel(run_id, "me too", "bob", floor.drive.now)

    assert (again.actor, again.reason) == ("ann", "wrong data")


async def test_a_run_that_is_being_cancelled_is_not_decided_any_more(floor: Floor) -> None:
    run_id = await floor.sealed()
    await floor.drive.train(run_id)
    duel = await floor.drive.enter(run_id)
    await cancel(floor, run_id)

    with pytest.raises(IllegalMoveError):
        await floor.drive.decide(run_id, Outcome.PROMOTE, duel=duel)

    assert await floor.drive.champion() == "1.0.0"


async def test_a_candidate_that_was_forced_keeps_its_batch_when_its_run_is_cancelled(
    floor: Floor,
) -> None:
    run_id = await floor.sealed()
    await floor.drive.train(run_id)
    duel = await floor.drive.enter(run_id)
    await floor.drive.promote(duel.candidate_number)
    await cancel(floor, run_id)

    async with floor.at_work():
        await floor.until(RunCancelled)

    assert [row.state for row in await floor.drive.rows(batches)] == ["spent"]


async def test_a_job_whose_provider_does_not_answer_is_cancelled_when_it_does(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    floor.play("hang")
    run_id = await floor.sealed()
    floor.provider = provider = floor.scripted()
    refusals = iter([ConnectionError("down"), TimeoutError("slow"), None])
    really_cancel = provider.cancel

    async def cancel_when_up(job: Any) -> None:
        if (refusal := next(refusals)) is not None:
            raise refusal
        await really_cancel(job)

    monkeypatch.setattr(provider, "cancel", cancel_when_up)
    async with floor.at_work() as runner:
        await floor.until(RunLaunched)
        await cancel(floor, run_id)
        runner.wake()
        await floor.until(RunCancelled)

    await require_cancelled(floor, run_id)


async def test_a_job_whose_provider_is_not_configured_any_more_is_cancelled_once_it_is(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    floor.play("hang")
    run_id = await floor.sealed()
    async with floor.at_work():
        await floor.until(RunLaunched)
    await cancel(floor, run_id)
    floor.drive.configure(provider="another")
    tried = asyncio.Event()

    def tried_in_vain(*_: object) -> timedelta:
        tried.set()
        return timedelta(hours=1)

    with monkeypatch.context() as patch:
        patch.setattr(runner_module, "retry_delay", tried_in_vain)
        async with floor.at_work():
            await tried.wait()
    assert (await run_row(floor, run_id)).state == "running"

    floor.drive.configure(provider="scripted")
    async with floor.at_work():
        await floor.until(RunCancelled)

    await require_cancelled(floor, run_id)


async def test_an_idempotent_launch_that_is_refused_made_no_job(floor: Floor) -> None:
    floor.recovery = Recovery.IDEMPOTENCY
    floor.drive.configure(training={"nonsense": 1})
    run_id = await floor.sealed()
    await floor.drive.begin(run_id)
    await cancel(floor, run_id)

    async with floor.at_work():
        await floor.until(RunCancelled)

    await require_cancelled(floor, run_id)
    assert await floor.jobs() == []


async def test_what_a_cancelled_run_trained_on_comes_back_in_the_next_batch(floor: Floor) -> None:
    run_id = await floor.sealed()
    await cancel(floor, run_id)

    batch = await floor.drive.batch(output("another"))

    assert batch.n_retry == OUTPUTS


# --- a launch of which nobody heard ---------------------------------------------------


async def test_a_lost_reply_is_looked_up_and_exactly_one_job_is_adopted(floor: Floor) -> None:
    floor.play("lose_reply")
    run_id = await floor.sealed()

    async with floor.at_work():
        await floor.until(CandidateDecided)

    (job,) = await floor.jobs()
    (attempt,) = await floor.drive.rows(run_attempts, run_attempts.c.run_id == run_id)
    assert (attempt.job_id, attempt.result) == (job.job_id, "succeeded")
    assert [fact.job_id for fact in floor.facts if isinstance(fact, RunLaunched)] == [job.job_id]


async def waiting(floor: Floor) -> str:
    """A run whose provider cannot say whether it made a job; it did."""
    floor.recovery = Recovery.NONE
    floor.play("improve")
    run_id = await floor.sealed()
    await floor.launch_unheard(run_id)
    async with floor.at_work():
        await floor.until(RunWaits)
    row = await run_row(floor, run_id)
    assert row.state == RunState.WAITING
    assert f"learnd runs resolve {run_id}" in row.message
    return run_id


async def resolve(floor: Floor, run_id: str, job_id: str | None) -> LaunchResolved:
    resolved, _ = await floor.drive.store.interventions.resolve(
        run_id, job_id, "ann", floor.drive.now
    )
    return resolved


async def test_a_person_who_found_the_job_lets_the_run_go_on_with_it(floor: Floor) -> None:
    run_id = await waiting(floor)
    (job,) = await floor.jobs()

    async with floor.at_work() as runner:
        await resolve(floor, run_id, job.job_id)
        runner.wake()
        await floor.until(CandidateDecided)

    assert await floor.jobs() == [job]
    (attempt,) = await floor.drive.rows(run_attempts)
    assert (attempt.job_id, attempt.result) == (job.job_id, "succeeded")


async def test_a_person_who_found_no_job_lets_the_run_be_launched_again(floor: Floor) -> None:
    run_id = await waiting(floor)

    await resolve(floor, run_id, None)
    async with floor.at_work():
        await floor.until(CandidateDecided)

    results = [row.result for row in await floor.drive.rows(run_attempts)]
    assert results == ["interrupted", "succeeded"]
    steps = await floor.drive.rows(transitions, transitions.c.ref == run_id)
    assert ("waiting", "planned", "ann") in {(s.from_state, s.to_state, s.actor) for s in steps}


async def test_cancelling_a_run_that_nobody_knows_the_job_of_waits_for_the_answer(
    floor: Floor,
) -> None:
    run_id = await waiting(floor)
    assert isinstance(await cancel(floor, run_id), RunCancelAsked)
    assert (await run_row(floor, run_id)).state == RunState.WAITING

    await resolve(floor, run_id, None)

    await require_cancelled(floor, run_id)


async def test_cancelling_such_a_run_ends_the_job_that_a_person_found(floor: Floor) -> None:
    run_id = await waiting(floor)
    await cancel(floor, run_id)
    (job,) = await floor.jobs()

    await resolve(floor, run_id, job.job_id)
    async with floor.at_work():
        await floor.until(RunCancelled)

    await require_cancelled(floor, run_id)
    assert await floor.is_cancelled(job)


async def test_a_run_of_which_everything_is_known_has_nothing_to_resolve(floor: Floor) -> None:
    run_id = await floor.sealed()

    with pytest.raises(NothingToResolveError, match="planned"):
        await resolve(floor, run_id, None)


# --- time limits ----------------------------------------------------------------------


async def test_a_job_that_hangs_is_given_up_and_tried_again(floor: Floor) -> None:
    floor.rules = replace(AT_ONCE, timeout=timedelta(milliseconds=1))
    floor.play("hang,improve")
    run_id = await floor.sealed()

    async with floor.at_work():
        failed = await floor.until(RunFailed)
        assert (failed.error, failed.retried) == ("timeout", True)

    assert (await run_row(floor, run_id)).failures >= 1


# --- an evaluation that went wrong ----------------------------------------------------


def good(n: int) -> list[Score]:
    return [Score(0.1, True)] * n


def poor(n: int) -> list[Score]:
    return [Score(2.0, False)] * n


def crash(_: int) -> Mapping[str, Sequence[Score]]:
    raise ZeroDivisionError("in the evaluator")


def fail(_: int) -> Mapping[str, Sequence[Score]]:
    raise JobFailedError("bad_model", "it cannot be loaded", retryable=False)


BROKEN: Mapping[str, tuple[Callable[[int], Mapping[str, Sequence[Any]]], str]] = {
    "it crashes": (crash, "in the evaluator"),
    "it fails": (fail, "it cannot be loaded"),
    "no candidate": (lambda n: {"champion": poor(n)}, "candidate are unsound: there are none"),
    "nothing": (lambda n: {}, "champion are unsound: there are none"),
    "empty": (lambda n: {"champion": [], "candidate": []}, "0 of them for"),
    "one too few": (lambda n: {"champion": poor(n), "candidate": good(n - 1)}, "of them for"),
    "one too many": (lambda n: {"champion": poor(n), "candidate": good(n + 1)}, "of them for"),
    "a loss below zero": (
        lambda n: {"champion": poor(n), "candidate": [Score(-0.5, True)] * n},
        "loss is -0.5 on example 1",
    ),
    "a match above one": (
        lambda n: {"champion": poor(n), "candidate": [Score(0.1, 2.0)] * n},  # type: ignore[arg-type]
        "match is 2.0",
    ),
    "a match that is no number": (
        lambda n: {"champion": poor(n), "candidate": [Score(0.1, math.nan)] * n},  # type: ignore[arg-type]
        "match is nan",
    ),
    "a loss that is a text": (
        lambda n: {"champion": poor(n), "candidate": [Score("0", True)] * n},  # type: ignore[arg-type]
        "loss is '0'",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_an_evaluation_that_went_wrong_promotes_nothing_and_the_run_says_why(
    floor: Floor, name: str
) -> None:
    answer, said = BROKEN[name]
    floor.evaluator = Evaluation(answer)
    run_id = await floor.sealed(rules=ENOUGH_TO_PROVE)

    async with floor.at_work():
        await floor.until(RunFailed)

    row = await run_row(floor, run_id)
    assert row.state == "failed"
    assert said in row.message
    assert await floor.drive.champion() == "1.0.0"


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
async def test_a_candidate_whose_loss_is_not_finite_is_refused_by_name(
    floor: Floor, loss: float
) -> None:
    floor.evaluator = Evaluation(
        lambda n: {"champion": poor(n), "candidate": [*good(n - 1), Score(loss, True)]}
    )
    run_id = await floor.sealed(rules=ENOUGH_TO_PROVE)

    async with floor.at_work():
        await floor.until(CandidateDecided)

    row = await run_row(floor, run_id)
    assert (row.outcome, row.message) == ("reject", "a weight or a loss is not a finite number")
    assert await floor.drive.champion() == "1.0.0"


async def test_without_a_held_out_example_nothing_is_promoted(floor: Floor) -> None:
    run_id = await floor.sealed()

    async with floor.at_work():
        await floor.until(CandidateDecided)

    row = await run_row(floor, run_id)
    assert row.outcome == "abstain"
    assert "0 held-out examples" in row.message


async def test_a_candidate_that_was_damaged_while_it_was_judged_is_not_promoted(
    floor: Floor,
) -> None:
    def damage_and_praise(n: int) -> Mapping[str, Sequence[Score]]:
        (artifact,) = (floor.folder / "artifacts").glob("r-*")
        (artifact / "notes.pkl").write_bytes(b"\x80\x04N.")
        return {"champion": poor(n), "candidate": good(n)}

    floor.evaluator = Evaluation(damage_and_praise)
    run_id = await floor.sealed(rules=ENOUGH_TO_PROVE)

    async with floor.at_work():
        await floor.until(RunFailed)

    row = await run_row(floor, run_id)
    assert "notes.pkl: is not in the manifest" in row.message
    assert await floor.drive.champion() == "1.0.0"


async def test_the_same_evaluation_without_a_fault_promotes(floor: Floor) -> None:
    """So that what is refused above is refused for its fault."""
    floor.evaluator = Evaluation(lambda n: {"champion": poor(n), "candidate": good(n)})
    await floor.sealed(rules=ENOUGH_TO_PROVE)

    async with floor.at_work():
        promoted = await floor.until(Promoted)

    assert promoted.version == "1.0.1"


async def test_what_a_version_forgot_and_what_training_did_to_it_are_stored_with_it(
    floor: Floor,
) -> None:
    """The champion knows all but the first example, the candidate all but the last."""
    floor.evaluator = Evaluation(
        lambda n: {
            "champion": [*poor(1), *good(n - 1)],
            "candidate": [*good(n - 1), *poor(1)],
        }
    )
    await floor.sealed(rules=ENOUGH_TO_PROVE)

    async with floor.at_work():
        decided = await floor.until(CandidateDecided)

    models = Models(floor.drive.store.database, floor.folder / "artifacts")
    stored = await models.one(floor.drive.line.name, decided.version)
    frozen = await floor.drive.rows(evaluation_examples)
    forgotten = stored.trials[0].report["forgetting"]
    assert (forgotten["n_examples"], forgotten["n_lost"], forgotten["n_gained"]) == (
        len(frozen),
        1,
        1,
    )
    assert [one.id for one in stored.lost] == forgotten["lost"] == [frozen[-1].id]
    assert stored.lost[0].prompt == frozen[-1].messages[0]["content"]
    assert [(one["kind"], one["name"], one["n_lost"]) for one in forgotten["slices"]] == [
        ("task_type", "normalize", 1),
        ("producer", "studio", 1),
    ]
    assert stored.proof is not None
    assert stored.proof["trained_tokens"] > 0
    assert stored.proof["weight_delta_norm"] > 0


# --- related task types ---------------------------------------------------------------


async def freeze(floor: Floor, task_type: str, n: int) -> None:
    """Put examples that people labelled into the held-out set of a task type."""
    examples = [output(f"{task_type}-{i}", task_type=task_type) for i in range(n)]
    numbered = [(i, example, prompt_key(example)) for i, example in enumerate(examples)]
    await floor.drive.store.queue.import_held_out(numbered, task_type, "ann", floor.drive.now)


@pytest.mark.parametrize(
    ("learns_from", "outcome"), [(["game"], Outcome.REJECT), ([], Outcome.PROMOTE)]
)
async def test_a_candidate_that_ruins_a_task_type_it_learns_from_is_refused(
    floor: Floor, learns_from: Sequence[str], outcome: Outcome
) -> None:
    floor.rules = replace(AT_ONCE, learns_from=lambda line: learns_from)
    floor.evaluator = Evaluation(
        lambda n: (
            {
                "champion": [*poor(n - RELATED), *good(RELATED)],
                "candidate": [*good(n - RELATED), *poor(RELATED)],
            }
            if learns_from
            else {"champion": poor(n), "candidate": good(n)}
        )
    )
    await freeze(floor, "game", RELATED)
    await freeze(floor, "audio", RELATED)
    await floor.sealed(rules=ENOUGH_TO_PROVE)

    async with floor.at_work():
        decided = await floor.until(CandidateDecided)

    assert decided.outcome == outcome
    assert ("related task type game" in decided.reason) is bool(learns_from)


async def test_of_a_related_task_type_only_the_newest_examples_are_looked_at(
    floor: Floor,
) -> None:
    asked: list[int] = []

    def answer(n: int) -> Mapping[str, Sequence[Score]]:
        asked.append(n)
        return {"champion": poor(n), "candidate": good(n)}

    gate = GateRules(related_evidence=3)
    floor.rules = replace(AT_ONCE, gate=gate, learns_from=lambda line: ["game"])
    floor.evaluator = Evaluation(answer)
    await freeze(floor, "game", RELATED)
    await floor.sealed(rules=ENOUGH_TO_PROVE)

    async with floor.at_work():
        await floor.until(Promoted)

    own = await floor.drive.store.runs.held_out_rows(floor.drive.line)
    assert asked == [len(own) + 3]
    assert list(floor.folder.rglob("evaluation.jsonl")) == []  # no copy of an example stays
    newest = await floor.drive.store.runs.newest_held_out("game", 3)
    everything = [one.id for one in await floor.drive.rows(evaluation_examples)]
    assert [row.id for row in newest] == everything[RELATED - 3 : RELATED]
