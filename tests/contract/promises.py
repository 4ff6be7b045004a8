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
    FORGOTTEN_LETTER,
    alias_history,
    aliases,
    batch_members,
    batches,
    dead_letters,
    engagement_over_time,
    evaluation_examples,
    evaluations,
    events,
    feedback,
    feedback_dials,
    feedback_effects,
    feedback_moves,
    feedback_over_time,
    firewall_bands,
    firewall_kinds,
    firewall_stops,
    forgettings,
    live_counts,
    live_judgements,
    model_lines,
    outputs_over_time,
    rejected_outputs,
    replay_memory,
    retired_examples,
    returned_events,
    run_attempts,
    runs,
    screenings,
    spending,
    split_sides,
    tallies,
    transitions,
    versions,
)
from learning.budget import Basis
from learning.dials import NOTICEABLE, Dial, faded, rests_at
from learning.events import (
    FORGOTTEN_FEEDBACK,
    FORGOTTEN_OUTPUT,
    FeedbackEvent,
    OutputEvent,
    answer_text,
    group_key,
    prompt_key,
)
from learning.feedback import FeedbackRules
from learning.lifecycle import (
    APPROVED_STATES,
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
from learning.screening import ScreeningOutcome


def broken_promises(tx: Connection) -> list[str]:
    """Every promise that does not hold, in words; empty when all do."""
    return [
        *_wrong_counts(tx),
        *_wrong_output_flows(tx),
        *_wrong_feedback_counts(tx),
        *_wrong_primary_roles(tx),
        *_trained_on_the_exam(tx),
        *_wrong_feedback(tx),
        *_wrong_champions(tx),
        *_incomplete_history(tx),
        *_wrong_batches(tx),
        *_wrong_memory(tx),
        *_wrong_lessons(tx),
        *_wrong_spending(tx),
        *_wrong_screenings(tx),
        *_wrong_firewall(tx),
        *_wrong_dials(tx),
        *_wrong_forgetting(tx),
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
        ("firewall", firewall_stops, (firewall_stops.c.task_type, firewall_stops.c.rule)),
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


def _wrong_output_flows(tx: Connection) -> Iterator[str]:
    """What came and was said by hour, summed up, against every event and its history."""
    steps: defaultdict[str, list[Any]] = defaultdict(list)
    for row in tx.execute(
        select(transitions).where(transitions.c.kind == "event").order_by(transitions.c.id)
    ):
        steps[row.ref].append(row)
    counted: defaultdict[str, Counter[str]] = defaultdict(Counter)
    confidence: defaultdict[str, float] = defaultdict(float)
    for row in tx.execute(select(events)):
        flow, taken = counted[row.task_type], steps[str(row.id)]
        moves = [(step.from_state, step.to_state) for step in taken]
        if row.source != "import":
            flow.update(outputs=1, confidence_n=int(row.confidence is not None))
            confidence[row.task_type] += row.confidence or 0.0
            moves = [(None, taken[0].from_state if taken else row.state), *moves]
        was_approved = False
        for before, after in moves:
            was_confirmed = before == after == EventState.QUEUED
            if after in REJECTED_STATES:
                flow["rejected"] += 1
            elif after in APPROVED_STATES and (
                was_confirmed or (before not in APPROVED_STATES and not was_approved)
            ):
                flow["approvals"] += 1
            was_approved = was_approved or after in APPROVED_STATES
    kept: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in tx.execute(select(outputs_over_time)):
        kept[row.task_type].update(
            outputs=row.outputs,
            confidence_n=row.confidence_n,
            rejected=row.rejected,
            approvals=row.approved + row.auto_approved,
        )
        confidence[row.task_type] -= row.confidence_sum
    for task_type in counted.keys() | kept.keys():
        one, other = +counted[task_type], +kept[task_type]
        if one != other or abs(confidence[task_type]) > 1e-6:
            yield f"over time {task_type} had {other}, counted {one}"


def _wrong_feedback_counts(tx: Connection) -> Iterator[str]:
    """What feedback said by hour, summed up, against all that was digested."""
    counted: defaultdict[str, Counter[str]] = defaultdict(Counter)
    told: defaultdict[str, Counter[str]] = defaultdict(Counter)
    late_no: set[int] = set()
    forgotten = feedback.c.payload == FORGOTTEN_FEEDBACK
    untold = set(tx.execute(select(feedback.c.task_type).where(forgotten)).scalars())
    for row in tx.execute(select(feedback).where(feedback.c.digested_at.is_not(None))):
        said = FeedbackEvent.model_validate_json(row.payload)
        of_type = counted[row.task_type]
        of_type["n"] += 1
        if said.approved is not None:
            of_type["yes" if said.approved else "no"] += 1
        if said.feedback.user_rating is not None:
            of_type[f"rated_{said.feedback.user_rating}"] += 1
        if row.state == FeedbackState.LATE and said.approved is False:
            of_type["late_no"] += row.output_id not in late_no
            late_no.add(row.output_id)
        told[row.task_type].update(said.feedback.engagement_metrics.keys())
    kept: defaultdict[str, Counter[str]] = defaultdict(Counter)
    names = ("n", "yes", "no", "late_no", *(f"rated_{stars}" for stars in range(1, 6)))
    for row in tx.execute(select(feedback_over_time)):
        kept[row.task_type].update({name: getattr(row, name) for name in names})
    for task_type in (counted.keys() | kept.keys()) - untold:
        if (one := +counted[task_type]) != (other := +kept[task_type]):
            yield f"feedback of {task_type} over time was {other}, counted {one}"
    for row in tx.execute(
        select(
            engagement_over_time.c.task_type,
            engagement_over_time.c.metric,
            func.sum(engagement_over_time.c.n).label("n"),
        ).group_by(engagement_over_time.c.task_type, engagement_over_time.c.metric)
    ):
        if row.n > told[row.task_type][row.metric] and row.task_type not in untold:
            yield f"{row.metric} of {row.task_type} was told {row.n} times, that is too often"


def _wrong_primary_roles(tx: Connection) -> Iterator[str]:
    """P2: an event that is sealed has one primary role in one batch, and no other event has."""
    primary = Counter(
        tx.execute(
            select(batch_members.c.event_id).where(batch_members.c.role.in_(PRIMARY_ROLES))
        ).scalars()
    )
    for row in tx.execute(select(events.c.id, events.c.state)):
        if row.state == EventState.FORGOTTEN and primary[row.id] <= 1:
            continue  # whether it was sealed before
        expected = 1 if row.state == EventState.SEALED else 0
        if primary[row.id] != expected:
            yield f"event {row.id} is {row.state} with {primary[row.id]} primary roles"


def _trained_on_the_exam(tx: Connection) -> Iterator[str]:
    """Held-out is final, by event, by prompt and by split group; only people's yes judges."""
    roles: defaultdict[int, set[str]] = defaultdict(set)
    for row in tx.execute(select(batch_members.c.event_id, batch_members.c.role)):
        roles[row.event_id].add(row.role)
    rows = {row.id: row for row in tx.execute(select(events))}
    trained = {
        id for id in roles if roles[id] & LEARNED_ROLES and rows[id].state != EventState.FORGOTTEN
    }
    for id in trained:
        if Role.HELD_OUT in roles[id]:
            yield f"event {id} is held out and trains"
    sent = {id: _learned(tx, rows[id]) for id in roles}
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


def _learned(tx: Connection, row: Any) -> OutputEvent:
    """A stored event as it is learned from."""
    scrubbed = tx.execute(select(screenings.c.text).where(screenings.c.event_id == row.id)).scalar()
    return OutputEvent.model_validate_json(scrubbed or row.payload)


def _wrong_screenings(tx: Connection) -> Iterator[str]:
    """Where anything is screened, nothing gets into a batch that was not cleared."""
    rows = {row.event_id: row for row in tx.execute(select(screenings))}
    if not rows:
        return
    states = {row.id: row.state for row in tx.execute(select(events.c.id, events.c.state))}
    for event_id in set(tx.execute(select(batch_members.c.event_id)).scalars()):
        if event_id not in rows:
            yield f"event {event_id} is in a batch, and was never screened"
        elif rows[event_id].outcome == ScreeningOutcome.STOPPED:
            yield f"event {event_id} is in a batch, and was stopped"
    for event_id, row in rows.items():
        if states[event_id] == EventState.FORGOTTEN:
            if row.text is not None or row.findings:
                yield f"event {event_id} is forgotten, and its screening says something"
            continue
        if row.outcome == ScreeningOutcome.STOPPED and states[event_id] in (
            EventState.QUEUED,
            EventState.SEALED,
        ):
            yield f"event {event_id} was stopped, and is {states[event_id]}"
        if (row.outcome == ScreeningOutcome.STOPPED) and not any(
            not finding["scrubbed"] for finding in row.findings
        ):
            yield f"event {event_id} was stopped, and nobody says why"
        if row.outcome == ScreeningOutcome.SCRUBBED and row.text is None:
            yield f"event {event_id} was scrubbed, and its text is missing"


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
        if row.state == VersionState.TAINTED:
            continue  # whichever of both it was
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
            if kind == "event" and after.from_state == EventState.SEALED:
                continue  # that it was sealed is told by batch_members
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
    tainted = {batch_id for batch_id, state in made.items() if state == VersionState.TAINTED}
    n_tainted: Counter[int] = Counter()
    uses: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for row in tx.execute(select(batch_members)):
        n_tainted[row.event_id] += row.batch_id in tainted
        uses[row.event_id][row.role] += 1
    for event_id, roles in uses.items():
        if roles[Role.RETRY] > ABSTENTIONS + n_tainted[event_id]:
            yield f"event {event_id} was retried {roles[Role.RETRY]} times"
        if roles.keys() & (TRAINING_ROLES - PRIMARY_ROLES) and not roles[Role.TRAIN]:
            yield f"event {event_id} is used again and has never trained"
    for row in tx.execute(select(returned_events)):
        if states[row.batch_id] != BatchState.RETURNED and row.batch_id not in tainted:
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
            if event.state == EventState.FORGOTTEN:
                continue
            uses[event.id] += 1
            if batch_id not in returned:
                unsettled[event.id].append(batch_id)
            if event.state not in REJECTED_STATES and event.id not in unlearned:
                yield f"event {event.id} is {event.state}, and learned from as rejected"
            if member.preferred_id is None:
                continue
            better = rows[member.preferred_id]
            if better.state == EventState.FORGOTTEN:
                continue
            if members[better.id].role not in TRAINING_ROLES:
                yield f"event {better.id} is the better answer, and does not train"
            one, other = (_learned(tx, row) for row in (event, better))
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
            events.c.state != EventState.FORGOTTEN,
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


def _wrong_firewall(tx: Connection) -> Iterator[str]:
    """What waits behind the firewall is in no batch, and it remembers only what it cleared."""
    for row in tx.execute(
        select(firewall_stops, events.c.state).join(
            events, events.c.id == firewall_stops.c.event_id
        )
    ):
        if row.released_at is not None and row.state == EventState.QUARANTINED:
            yield f"event {row.event_id} was released, and is quarantined"
        if (
            row.released_at is None
            and tx.execute(
                select(firewall_kinds.c.event_id).where(firewall_kinds.c.event_id == row.event_id)
            ).first()
        ):
            yield f"the firewall stopped event {row.event_id}, and remembers it as cleared"
    remembered = set(tx.execute(select(firewall_kinds.c.event_id)).scalars())
    if strange := set(tx.execute(select(firewall_bands.c.event_id)).scalars()) - remembered:
        yield f"the firewall's index names {sorted(strange)}, which it forgot"


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


def _wrong_dials(tx: Connection) -> Iterator[str]:
    """What feedback has turned is what its history says, faded; nobody took more than a share."""
    history: defaultdict[tuple[str, str, str], list[Any]] = defaultdict(list)
    last_known = tx.execute(select(func.max(feedback.c.digested_at))).scalar()
    for row in tx.execute(select(feedback_effects).order_by(feedback_effects.c.id)):
        if row.before != row.after:
            history[row.task_type, row.dial, row.subject].append(row)
    stored: dict[tuple[str, str, str], Any] = {
        (row.task_type, row.dial, row.subject): row for row in tx.execute(select(feedback_dials))
    }
    for key, steps in history.items():
        dial = Dial(key[1])
        value, at = 0.0, steps[0].at
        for step in steps:
            left = faded(value, dial, at, step.at)
            if abs(left - step.before) > 1e-9 and max(left, step.before) > 1.01 * NOTICEABLE:
                yield f"dial {key} had {left} left, and was turned from {step.before}"
            value, at = step.after, step.at
        row = stored.pop(key, None)
        if row is not None and (row.value, row.turned_at) != (value, at):
            yield f"dial {key} is {row.value}, its history ends at {value}"
        if row is None and value and rests_at(value, dial, at) > (last_known or at):
            yield f"dial {key} is gone, and was {value}"
    for key in stored:
        yield f"dial {key} was turned by nobody"
    repeats: Counter[tuple[int, str]] = Counter()
    for said in tx.execute(
        select(feedback.c.id, feedback.c.output_id, feedback.c.producer, feedback.c.state)
        .where(feedback.c.id.in_(select(feedback_effects.c.feedback_id)))
        .order_by(feedback.c.id)
    ):
        repeats[said.output_id, said.producer] += 1
    for which, n in repeats.items():
        if n > 1:
            yield f"{n} feedback of one producer on one output had effects: {which}"
    rules = FeedbackRules()
    for move in tx.execute(select(feedback_moves)):
        a_day = rules.bounds(Dial(move.dial)).a_day
        most = a_day / rules.min_producers if move.producer else a_day
        if move.moved > most + 1e-9:
            yield f"{move.producer or 'all'} moved {move.dial} by {move.moved} on a day"


def _wrong_forgetting(tx: Connection) -> Iterator[str]:
    """What is forgotten says nothing, is used nowhere, and whatever knows it is out of use: P5."""
    gone = set(
        tx.execute(select(events.c.id).where(events.c.state == EventState.FORGOTTEN)).scalars()
    )
    for row in tx.execute(select(events).where(events.c.state == EventState.FORGOTTEN)):
        if row.payload != FORGOTTEN_OUTPUT or row.subject or row.model_version:
            yield f"event {row.id} is forgotten, and still says something"
    for row in tx.execute(select(feedback).where(feedback.c.output_id.in_(gone))):
        if row.payload != FORGOTTEN_FEEDBACK:
            yield f"feedback {row.id} on a forgotten event says something"
    for row in tx.execute(select(dead_letters).where(dead_letters.c.reason == FORGOTTEN_LETTER)):
        if row.raw:
            yield f"dead letter {row.id} is forgotten, and has bytes"
    for table in (replay_memory, returned_events, evaluation_examples, rejected_outputs):
        used = set(tx.execute(select(table.c.event_id)).scalars()) & gone
        if used:
            yield f"{sorted(used)} are forgotten, and in {table.name}"
    retired = set(tx.execute(select(retired_examples.c.id)).scalars())
    frozen = set(tx.execute(select(evaluation_examples.c.id)).scalars())
    if retired & frozen:
        yield f"examples {sorted(retired & frozen)} are retired, and judge"
    for row in tx.execute(select(evaluations.c.id, evaluations.c.scores)):
        unknown = set(row.scores.get("examples", ())) - retired - frozen
        if retired and unknown:
            yield f"evaluation {row.id} names examples {sorted(unknown)}, which nobody knows"

    parents = {row.id: row for row in tx.execute(select(versions))}
    learned = {
        row.run_id
        for row in tx.execute(
            select(runs.c.id.label("run_id"))
            .join(batch_members, batch_members.c.batch_id == runs.c.batch_id)
            .where(batch_members.c.event_id.in_(gone), batch_members.c.role.in_(LEARNED_ROLES))
        )
    }

    def knows(version: Any) -> bool:
        while version is not None:
            if version.run_id in learned:
                return True
            version = parents.get(version.parent_id)
        return False

    know = {id for id, version in parents.items() if knows(version)}
    tainted = {id for id, version in parents.items() if version.state == VersionState.TAINTED}
    if know - tainted:
        yield f"versions {sorted(know - tainted)} know a forgotten event, and are not tainted"
    under_way = select(forgettings.c.id).where(forgettings.c.state == "asked")
    if tainted - know and tx.execute(under_way).first() is None:
        yield f"versions {sorted(tainted - know)} are tainted, and know no forgotten event"
    served = set(tx.execute(select(aliases.c.version_id)).scalars())
    if served & know:
        yield f"versions {sorted(served & know)} know a forgotten event, and are served"
    for row in tx.execute(select(runs).where(runs.c.id.in_(learned))):
        if RunState(row.state).active and row.cancel_asked_at is None:
            yield f"run {row.id} is {row.state}, and trains on a forgotten event"


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
