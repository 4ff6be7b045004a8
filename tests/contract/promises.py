"""What must hold in a store at every moment, whatever was done to it: found by reading it all.

Each check compares two things that are kept apart, so that a mistake in one shows.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from sqlalchemy import Connection, func, select

from daemon.store import replay
from daemon.store.registry import CHAMPION
from daemon.store.runs import ABSTENTIONS
from daemon.store.tables import (
    alias_history,
    aliases,
    batch_members,
    batches,
    dead_letters,
    evaluation_examples,
    events,
    feedback,
    live_counts,
    live_judgements,
    model_lines,
    rejected_outputs,
    replay_memory,
    returned_events,
    run_attempts,
    runs,
    spending,
    split_sides,
    tallies,
    transitions,
    versions,
)
from learning.budget import Basis
from learning.events import OutputEvent, answer_text, group_key, prompt_key
from learning.lifecycle import (
    LEARNED_ROLES,
    PRIMARY_ROLES,
    REJECTED_STATES,
    TRAINING_ROLES,
    BatchState,
    EventState,
    FeedbackState,
    Role,
    RunState,
    VersionState,
)
from learning.preferences import RejectedUse


def broken_promises(tx: Connection) -> list[str]:
    """Every promise that does not hold, in words; empty when all do."""
    return [
        *_wrong_counts(tx),
        *_wrong_primary_roles(tx),
        *_trained_on_the_exam(tx),
        *_wrong_feedback(tx),
        *_wrong_champions(tx),
        *_incomplete_history(tx),
        *_wrong_batches(tx),
        *_wrong_memory(tx),
        *_wrong_lessons(tx),
        *_wrong_spending(tx),
        *_wrong_live_counts(tx),
    ]


def _wrong_counts(tx: Connection) -> Iterator[str]:
    """The running counts against COUNT(*)."""
    counted: dict[tuple[str, str, str], tuple[int, int, float]] = {}
    per_event = select(
        events.c.task_type,
        events.c.state,
        func.count(),
        func.count(events.c.confidence),
        func.coalesce(func.sum(events.c.confidence), 0.0),
    ).group_by(events.c.task_type, events.c.state)
    for task_type, state, n, confidence_n, confidence_sum in tx.execute(per_event):
        counted["output", task_type, state] = (n, confidence_n, confidence_sum)
    for kind, table, columns in (
        ("feedback", feedback, (feedback.c.task_type, feedback.c.state)),
        ("dead_letter", dead_letters, (dead_letters.c.kind, dead_letters.c.reason)),
    ):
        query = select(*columns, func.count()).select_from(table).group_by(*columns)
        for first, second, n in tx.execute(query):
            counted[kind, first, second] = (n, 0, 0.0)
    kept = {
        (row.kind, row.task_type, row.state): (row.n, row.confidence_n, row.confidence_sum)
        for row in tx.execute(select(tallies))
    }
    for key in counted.keys() | kept.keys():
        n, confidence_n, confidence_sum = counted.get(key, (0, 0, 0.0))
        kept_n, kept_confidence_n, kept_sum = kept.get(key, (0, 0, 0.0))
        if (kept_n, kept_confidence_n) != (n, confidence_n) or abs(
            kept_sum - confidence_sum
        ) > 1e-6:
            yield f"tally of {key} is {kept.get(key)}, counted {counted.get(key)}"


def _wrong_primary_roles(tx: Connection) -> Iterator[str]:
    """P2: an event that is sealed has one primary role in one batch, and no other event has."""
    primary = Counter(
        tx.execute(
            select(batch_members.c.event_id).where(batch_members.c.role.in_(PRIMARY_ROLES))
        ).scalars()
    )
    for row in tx.execute(select(events.c.id, events.c.state)):
        expected = 1 if row.state == EventState.SEALED else 0
        if primary[row.id] != expected:
            yield f"event {row.id} is {row.state} with {primary[row.id]} primary roles"


def _trained_on_the_exam(tx: Connection) -> Iterator[str]:
    """Held-out is final, by event, by prompt and by split group; only people's yes judges."""
    roles: defaultdict[int, set[str]] = defaultdict(set)
    for row in tx.execute(select(batch_members.c.event_id, batch_members.c.role)):
        roles[row.event_id].add(row.role)
    rows = {row.id: row for row in tx.execute(select(events))}
    trained = {id for id in roles if roles[id] & LEARNED_ROLES}
    for id in trained:
        if Role.HELD_OUT in roles[id]:
            yield f"event {id} is held out and trains"
    sent = {id: OutputEvent.model_validate_json(rows[id].payload) for id in roles}
    trained_prompts = {prompt_key(sent[id]) for id in trained}
    trained_groups = {group_key(sent[id]) for id in trained} - {None}
    for example in tx.execute(select(evaluation_examples)):
        if example.prompt_key in trained_prompts:
            yield f"frozen example {example.id} has a prompt that trained"
        if example.event_id is not None:
            event = rows[example.event_id]
            if group_key(sent[event.id]) in trained_groups:
                yield f"frozen example {example.id} is of a split group that trained"
            if not event.by_human:
                yield f"frozen example {example.id} was approved by nobody"
            if Role.HELD_OUT not in roles[event.id]:
                yield f"frozen example {example.id} is of an event that is not held out"
    sides = {row.key: row.side for row in tx.execute(select(split_sides))}
    for id in trained:
        for key in {prompt_key(sent[id]), group_key(sent[id])} - {None}:
            if sides.get(key) != Role.TRAIN:
                yield f"event {id} trains with a key that is not on the training side"


def _wrong_feedback(tx: Connection) -> Iterator[str]:
    outputs: defaultdict[tuple[str, str], list[Any]] = defaultdict(list)
    for row in tx.execute(select(events)):
        outputs[row.task_type, row.task_id].append(row)
    for row in tx.execute(select(feedback)):
        of_its_task = outputs[row.task_type, row.task_id]
        if (row.state == FeedbackState.WAITING) != (not of_its_task):
            yield f"feedback {row.id} is {row.state} with {len(of_its_task)} outputs"
        has_output = row.state in (FeedbackState.JOINED, FeedbackState.LATE)
        if has_output != (row.output_id is not None):
            yield f"feedback {row.id} is {row.state} and names output {row.output_id}"
        if has_output and row.output_id not in {output.id for output in of_its_task}:
            yield f"feedback {row.id} names the output of another task"
        if row.state == FeedbackState.QUARANTINED and len(of_its_task) < 2:
            yield f"feedback {row.id} is quarantined without a reason"


def _wrong_champions(tx: Connection) -> Iterator[str]:
    """P4: each line has one champion, released; numbers are given once; moves are recorded."""
    champions = {
        row.line: row.version_id
        for row in tx.execute(select(aliases).where(aliases.c.name == CHAMPION))
    }
    lines = set(tx.execute(select(model_lines.c.name)).scalars())
    if champions.keys() != lines:
        yield f"lines {lines} have champions {champions}"
    released: defaultdict[str, list[int]] = defaultdict(list)
    numbers: Counter[tuple[str, str]] = Counter()
    for row in tx.execute(select(versions).order_by(versions.c.released_at, versions.c.id)):
        if row.state == VersionState.RELEASED:
            released[row.line].append(row.id)
        for number in {row.release, row.candidate} - {None}:
            numbers[row.line, number] += 1
        if (row.release is None) != (row.state in (VersionState.CANDIDATE, VersionState.REFUSED)):
            yield f"version {row.id} is {row.state} with the number {row.release}"
    for line, version_id in champions.items():
        if released[line] != [version_id]:
            yield f"{line}: version {version_id} is the champion, {released[line]} are released"
    for (line, number), n in numbers.items():
        if n != 1:
            yield f"{line} has given {number} {n} times"
    last: dict[str, int] = {}
    for row in tx.execute(select(alias_history).order_by(alias_history.c.id)):
        if last.get(row.line) != row.from_id:
            yield f"{row.line}: the champion's history has a gap before {row.id}"
        last[row.line] = row.to_id
    if last != champions:
        yield f"the history ends at {last}, the champions are {champions}"


def _incomplete_history(tx: Connection) -> Iterator[str]:
    """Each thing's steps follow on one another, and the last one led to where it is."""
    steps: defaultdict[tuple[str, str], list[Any]] = defaultdict(list)
    for row in tx.execute(select(transitions).order_by(transitions.c.id)):
        steps[row.kind, row.ref].append(row)
    current: dict[tuple[str, str], str] = {}
    for kind, table in (
        ("event", events),
        ("batch", batches),
        ("run", runs),
        ("version", versions),
    ):
        for row in tx.execute(select(table.c.id, table.c.state)):
            current[kind, str(row.id)] = row.state
    for (kind, ref), taken in steps.items():
        if (kind, ref) not in current:
            continue
        for before, after in pairwise(taken):
            if before.to_state != after.from_state:
                gap = f"from {before.to_state} to {after.from_state}"
                yield f"{kind} {ref}: the step {gap} is missing"
        state = current[kind, ref]
        if taken[-1].to_state != state and not (kind == "event" and state == EventState.SEALED):
            yield f"{kind} {ref} is {state}, its history ends at {taken[-1].to_state}"
    for row in tx.execute(select(runs)):
        n = tx.execute(select(func.count()).where(run_attempts.c.run_id == row.id)).scalar_one()
        if n != row.attempt:
            yield f"run {row.id} is at attempt {row.attempt}, {n} are recorded"


def _wrong_batches(tx: Connection) -> Iterator[str]:
    states = {row.id: row.state for row in tx.execute(select(batches))}
    made = {
        row.batch_id: row.state
        for row in tx.execute(
            select(runs.c.batch_id, versions.c.state)
            .join(versions, versions.c.run_id == runs.c.id)
            .where(versions.c.release.is_not(None))
        )
    }
    for batch_id in made:
        if states[batch_id] != BatchState.SPENT:
            yield f"batch {batch_id} made a version and is {states[batch_id]}"
    uses: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for row in tx.execute(select(batch_members.c.event_id, batch_members.c.role)):
        uses[row.event_id][row.role] += 1
    for event_id, roles in uses.items():
        if roles[Role.RETRY] > ABSTENTIONS:
            yield f"event {event_id} was retried {roles[Role.RETRY]} times"
        if roles.keys() & (TRAINING_ROLES - PRIMARY_ROLES) and not roles[Role.TRAIN]:
            yield f"event {event_id} is used again and has never trained"
    for row in tx.execute(select(returned_events)):
        if states[row.batch_id] != BatchState.RETURNED:
            yield f"event {row.event_id} is returned from a batch that is {states[row.batch_id]}"


def _wrong_lessons(tx: Connection) -> Iterator[str]:
    """What is learned from a rejected output is learned once, and never as an answer to give."""
    rows = {row.id: row for row in tx.execute(select(events))}
    by_batch: defaultdict[str, dict[int, Any]] = defaultdict(dict)
    for row in tx.execute(select(batch_members)):
        by_batch[row.batch_id][row.event_id] = row
    # A candidate may still be forced after its batch was returned, and its rows went elsewhere.
    returned = set(
        tx.execute(
            select(transitions.c.ref).where(
                transitions.c.kind == "batch", transitions.c.to_state == BatchState.RETURNED
            )
        ).scalars()
    )
    trained = {
        row.event_id for of in by_batch.values() for row in of.values() if row.role == Role.TRAIN
    }
    unlearned = trained & set(
        tx.execute(select(feedback.c.output_id).where(feedback.c.approved.is_(False))).scalars()
    )
    unsettled: defaultdict[int, list[str]] = defaultdict(list)
    uses: Counter[int] = Counter()
    for batch_id, members in by_batch.items():
        for member in members.values():
            if member.role != Role.PREFERENCE:
                if member.preferred_id is not None:
                    yield f"event {member.event_id} is {member.role}, and has a better answer"
                continue
            event = rows[member.event_id]
            uses[event.id] += 1
            if batch_id not in returned:
                unsettled[event.id].append(batch_id)
            if event.state not in REJECTED_STATES and event.id not in unlearned:
                yield f"event {event.id} is {event.state}, and learned from as rejected"
            if member.preferred_id is None:
                continue
            better = rows[member.preferred_id]
            if members[better.id].role not in TRAINING_ROLES:
                yield f"event {better.id} is the better answer, and does not train"
            one, other = (OutputEvent.model_validate_json(row.payload) for row in (event, better))
            if prompt_key(one) != prompt_key(other) or event.task_type != better.task_type:
                yield f"events {event.id} and {better.id} are a pair, and answer two prompts"
            if answer_text(one) == answer_text(other):
                yield f"events {event.id} and {better.id} are a pair, and say the same"
    known = {row.event_id: row.use for row in tx.execute(select(rejected_outputs))}
    for event_id, n in uses.items():
        if len(unsettled[event_id]) > 1:
            yield f"event {event_id} is learned from in {unsettled[event_id]}"
        if n > ABSTENTIONS + 1:
            yield f"event {event_id} was learned from {n} times"
        if unsettled[event_id] and known[event_id] != RejectedUse.TAKEN:
            yield f"event {event_id} is {known[event_id]}, and in {unsettled[event_id]}"
    for event_id, use in known.items():
        if rows[event_id].state not in REJECTED_STATES and event_id not in unlearned:
            yield f"event {event_id} is {rows[event_id].state}, and noted as rejected"
        if use == RejectedUse.TAKEN and not uses[event_id]:
            yield f"event {event_id} is taken, and in no batch"


def _wrong_memory(tx: Connection) -> Iterator[str]:
    """What may be repeated is what trained in a batch that a version came of: all of it, unless
    a task type remembers as many events as it may."""
    made_a_version: defaultdict[int, set[str]] = defaultdict(set)
    task_types: dict[int, str] = {}
    for row in tx.execute(
        select(batch_members.c.event_id, batch_members.c.batch_id, events.c.task_type)
        .join(events, events.c.id == batch_members.c.event_id)
        .join(batches, batches.c.id == batch_members.c.batch_id)
        .join(runs, runs.c.batch_id == batches.c.id)
        .join(versions, versions.c.run_id == runs.c.id)
        .where(
            batch_members.c.role.in_([Role.TRAIN, Role.RETRY]),
            versions.c.release.is_not(None),
        )
    ):
        made_a_version[row.event_id].add(row.batch_id)
        task_types[row.event_id] = row.task_type
    remembered = {
        row.event_id: row
        for row in tx.execute(
            select(replay_memory, events.c.task_type.label("stored_type")).join(
                events, events.c.id == replay_memory.c.event_id
            )
        )
    }
    if unproven := remembered.keys() - made_a_version.keys():
        yield f"{sorted(unproven)} are remembered, and made no version"
    n_remembered = Counter(row.task_type for row in remembered.values())
    for event_id in sorted(made_a_version.keys() - remembered.keys()):
        if n_remembered[task_types[event_id]] < replay.CAPACITY:
            yield f"event {event_id} made a version, and is not remembered"
    for task_type, n in n_remembered.items():
        if n > replay.CAPACITY:
            yield f"{task_type} remembers {n} events"
    for event_id, row in remembered.items():
        if row.batch_id not in made_a_version[event_id]:
            yield f"event {event_id} is remembered for {row.batch_id}, which it made no version in"
        if row.task_type != row.stored_type:
            yield f"event {event_id} is a {row.stored_type}, and remembered as {row.task_type}"


def _wrong_spending(tx: Connection) -> Iterator[str]:
    """An amount is reserved exactly as long as its attempt may go on, and never leaks."""
    rows = tx.execute(
        select(spending, run_attempts.c.job_id, run_attempts.c.ended_at).join(
            run_attempts,
            (run_attempts.c.run_id == spending.c.run_id)
            & (run_attempts.c.attempt == spending.c.attempt),
        )
    )
    for row in rows:
        which = f"the money of run {row.run_id}, attempt {row.attempt},"
        if (row.settled_at is None) != (row.ended_at is None):
            yield f"{which} was settled at {row.settled_at}, its attempt ended at {row.ended_at}"
        if (row.settled_at is None) != (row.actual is None):
            yield f"{which} was settled at {row.settled_at} with {row.actual}"
        if row.reserved < 0 or (row.actual or 0) < 0:
            yield f"{which} is negative: {row.reserved}, {row.actual}"
        if row.basis == Basis.NO_JOB and (row.job_id is not None or row.actual):
            yield f"{which} cost {row.actual} without a job, and its job is {row.job_id}"
    for row in tx.execute(select(runs).where(runs.c.short_of_money)):
        if row.state != RunState.WAITING:
            yield f"run {row.id} is {row.state}, and waits for money"


def _wrong_live_counts(tx: Connection) -> Iterator[str]:
    """The counts of the live verdict against the outputs that were judged, each once."""
    counted: defaultdict[tuple[int, str], tuple[int, int]] = defaultdict(lambda: (0, 0))
    for row in tx.execute(select(live_judgements)):
        n, yes = counted[row.version_id, row.producer]
        counted[row.version_id, row.producer] = (n + 1, yes + row.approved)
    kept = {
        (row.version_id, row.producer): (row.n, row.yes) for row in tx.execute(select(live_counts))
    }
    for key in counted.keys() | kept.keys():
        if counted.get(key, (0, 0)) != kept.get(key, (0, 0)):
            yield f"verdicts {key} are {kept.get(key)}, counted {counted.get(key)}"
