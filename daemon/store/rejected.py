"""Rejected outputs that batches learn from: noticed, taken into a batch, and given back.

Everything happens in the transaction that seals the batch, or that settles it; what may be
taken is decided in learning/preferences.py. A line whose objective is SFT has nothing done
for it here. Nothing that is taken ever becomes a training row: its role is PREFERENCE. What
had trained before somebody rejected it may be taken too, to be unlearned.
"""

import heapq
import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from sqlalchemy import ColumnElement, Connection, exists, func, insert, select, update

from daemon.store.dialect import CHUNK
from daemon.store.screenings import Ruleset, is_cleared, learned_events, without_rules
from daemon.store.split_sides import known_sides, split_keys, take_sides
from daemon.store.tables import (
    IS_LATE_NO,
    batch_members,
    events,
    feedback,
    is_one_of,
    rejected_outputs,
)
from learning.events import OutputEvent, answer_text, prompt_key
from learning.lifecycle import REJECTED_STATES, EventState, Role
from learning.lines import ModelLine
from learning.preferences import (
    Answer,
    Answers,
    Lesson,
    Objective,
    Rejected,
    RejectedUse,
    in_turns,
)

LOOK_BACK = 1_000
"""The newest rejections of a task type that sealing looks through for such as it did not know."""

Complaints = Callable[[OutputEvent], Sequence[str]]
"""What the validators have against an output."""

_IS_FREE = is_one_of(rejected_outputs.c.use, RejectedUse.FREE)


class RejectedOutputs:
    """The rejected outputs of a database, as its lines learn from them."""

    def __init__(self, complaints: Complaints, ruleset: Ruleset = without_rules) -> None:
        self._complaints = complaints
        self._ruleset = ruleset

    def join_batch(
        self, tx: Connection, line: ModelLine, batch_id: str, trained: Collection[int], most: int
    ) -> int:
        """Make up to `most` rejected outputs members of a batch. Returns how many.

        `trained` are the events of the line's own task types that the batch trains on. The
        caller has the turn SPLIT, and all keys of the batch stand on their sides.
        """
        if line.objective is Objective.SFT:
            return 0
        ruleset = self._ruleset()
        self._notice(tx, line.task_types, ruleset)
        answers = Answers(_answers(tx, trained))
        candidates = (
            _of_prompts(tx, answers.prompts, most)
            if line.objective is Objective.DPO
            else _newest(tx, line.task_types)
        )
        lessons = _choose(tx, line.objective, answers, candidates, most, ruleset)
        _mark(tx, RejectedUse.TAKEN, [lesson.rejected_id for lesson in lessons])
        if lessons:
            rows = [
                {
                    "batch_id": batch_id,
                    "event_id": lesson.rejected_id,
                    "role": Role.PREFERENCE,
                    "preferred_id": lesson.preferred_id,
                }
                for lesson in lessons
            ]
            tx.execute(insert(batch_members), rows)
        return len(lessons)

    def _notice(self, tx: Connection, task_types: Iterable[str], ruleset: str | None) -> None:
        """Note the prompts of the newest rejected outputs that are not noted yet.

        Without a screening one is not noted: its prompt may be learned from in another form.
        """
        unnoticed = {id for name in sorted(task_types) for id in _unnoticed(tx, name)}
        unnoticed = _screened(tx, unnoticed, ruleset)
        rows = [
            {
                "event_id": event_id,
                "task_type": output.task_type,
                "prompt_key": prompt_key(output),
                "use": RejectedUse.UNFIT if self._complaints(output) else RejectedUse.FREE,
            }
            for event_id, output in _load(tx, unnoticed)
        ]
        if rows:
            tx.execute(insert(rejected_outputs), rows)


def objective_of(tx: Connection, batch_id: str) -> Objective:
    """What a sealed batch is learned by: it is decided by what it was sealed with."""
    lesson = tx.execute(
        select(batch_members.c.preferred_id)
        .where(batch_members.c.batch_id == batch_id, batch_members.c.role == Role.PREFERENCE)
        .limit(1)
    ).first()
    if lesson is None:
        return Objective.SFT
    return Objective.KTO if lesson.preferred_id is None else Objective.DPO


def give_back_rejected(tx: Connection, batch_id: str, times: int) -> None:
    """A batch made no version: another may take its rejected outputs, each `times` times at most
    beside the first."""
    used = batch_members.alias("used")
    n_uses = (
        select(func.count())
        .where(
            used.c.event_id == batch_members.c.event_id,
            used.c.role == Role.PREFERENCE,
        )
        .scalar_subquery()
    )
    free = tx.execute(
        select(batch_members.c.event_id).where(
            batch_members.c.batch_id == batch_id,
            batch_members.c.role == Role.PREFERENCE,
            n_uses <= times,
        )
    ).scalars()
    _mark(tx, RejectedUse.FREE, free.all())


def spend_rejected(tx: Connection, batch_id: str) -> None:
    """A version came of a batch, maybe after it was given back: no other takes what it had."""
    taken = tx.execute(
        select(batch_members.c.event_id).where(
            batch_members.c.batch_id == batch_id, batch_members.c.role == Role.PREFERENCE
        )
    ).scalars()
    _mark(tx, RejectedUse.TAKEN, taken.all())


def _unnoticed(tx: Connection, task_type: str) -> Iterator[int]:
    """Events that were rejected before they were sealed, or after they had trained."""
    never_sealed = (
        select(events.c.id)
        .where(is_one_of(events.c.state, *REJECTED_STATES), events.c.task_type == task_type)
        .order_by(events.c.state_since.desc(), events.c.id.desc())
        .limit(LOOK_BACK)
        .subquery("newest")
    )
    yield from tx.execute(select(never_sealed.c.id).where(~_is_noted(never_sealed.c.id))).scalars()
    late = (
        select(feedback.c.output_id)
        .where(IS_LATE_NO, feedback.c.task_type == task_type)
        .order_by(feedback.c.id.desc())
        .limit(LOOK_BACK)
        .subquery("late")
    )
    has_trained = exists().where(
        batch_members.c.event_id == late.c.output_id, batch_members.c.role == Role.TRAIN
    )
    is_sealed = exists().where(events.c.id == late.c.output_id, events.c.state == EventState.SEALED)
    yield from tx.execute(
        select(late.c.output_id).where(has_trained, is_sealed, ~_is_noted(late.c.output_id))
    ).scalars()


def _is_noted(event_id: ColumnElement[int]) -> ColumnElement[bool]:
    return exists().where(rejected_outputs.c.event_id == event_id)


def _answers(tx: Connection, trained: Collection[int]) -> Iterator[Answer]:
    for event_id, output in _load(tx, trained):
        yield Answer(event_id, output.task_type, prompt_key(output), answer_text(output))


def _newest(tx: Connection, task_types: Iterable[str]) -> Iterator[int]:
    """The free ones of some task types, those that arrived last first."""

    def of_type(task_type: str) -> Iterator[int]:
        newest = (
            select(rejected_outputs.c.event_id)
            .where(_IS_FREE, rejected_outputs.c.task_type == task_type)
            .order_by(rejected_outputs.c.event_id.desc())
            .limit(CHUNK)
        )
        page = newest
        while found := tx.execute(page).scalars().all():
            yield from found
            page = newest.where(rejected_outputs.c.event_id < found[-1])

    return heapq.merge(*map(of_type, sorted(task_types)), reverse=True)


def _of_prompts(tx: Connection, prompts: Iterable[tuple[str, bytes]], most: int) -> Iterator[int]:
    """The free ones that answer some prompts; each prompt gets its turn, with its newest first."""
    free = select(rejected_outputs.c.event_id).order_by(rejected_outputs.c.event_id.desc())
    return in_turns(
        [
            tx.execute(
                free.where(
                    _IS_FREE,
                    rejected_outputs.c.task_type == task_type,
                    rejected_outputs.c.prompt_key == key,
                ).limit(most)
            )
            .scalars()
            .all()
            for task_type, key in prompts
        ]
    )


def _choose(
    tx: Connection,
    objective: Objective,
    answers: Answers,
    candidates: Iterator[int],
    most: int,
    ruleset: str | None,
) -> list[Lesson]:
    """The first of the candidates that may be taken; those that never may are marked on the way."""
    lessons: list[Lesson] = []
    while len(lessons) < most and (
        page := list(itertools.islice(candidates, min(CHUNK, most - len(lessons))))
    ):
        fit = _screened(tx, page, ruleset)
        page = [event_id for event_id in page if event_id in fit]
        outputs = dict(_load(tx, page))
        rejected = [
            Rejected(id, outputs[id].task_type, split_keys(outputs[id]), answer_text(outputs[id]))
            for id in page
        ]
        sides = known_sides(tx, {key for one in rejected for key in one.keys})
        useless: defaultdict[RejectedUse, list[int]] = defaultdict(list)
        for one in rejected:
            use = answers.use_of(one, sides)
            if use is not RejectedUse.FREE:
                useless[use].append(one.event_id)
            elif (lesson := answers.lesson(one, objective)) is not None:
                lessons.append(lesson)
                take_sides(tx, Role.TRAIN, one.keys)
        for use, event_ids in useless.items():
            _mark(tx, use, event_ids)
    return lessons


def _screened(tx: Connection, event_ids: Collection[int], ruleset: str | None) -> set[int]:
    """Those of some events that may be learned from: cleared under the rules, or sealed once."""
    if ruleset is None:
        return set(event_ids)
    wanted = sorted(event_ids)
    may_be_learned = is_cleared(events.c.id, ruleset) | is_one_of(events.c.state, EventState.SEALED)
    return {
        event_id
        for start in range(0, len(wanted), CHUNK)
        for event_id in tx.execute(
            select(events.c.id).where(
                events.c.id.in_(wanted[start : start + CHUNK]), may_be_learned
            )
        ).scalars()
    }


def _load(tx: Connection, event_ids: Collection[int]) -> Iterator[tuple[int, OutputEvent]]:
    """The events of some row ids as they are learned from, in their order."""
    yield from learned_events(tx, event_ids).items()


def _mark(tx: Connection, use: RejectedUse, event_ids: Sequence[int]) -> None:
    for start in range(0, len(event_ids), CHUNK):
        tx.execute(
            update(rejected_outputs)
            .where(rejected_outputs.c.event_id.in_(event_ids[start : start + CHUNK]))
            .values(use=use)
        )
