"""Whatever characters somebody sends: both databases keep the same, or the decoder refuses it."""

import json
import uuid

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from consumers.reading import Reader, Record
from consumers.wire import STANDARD_LIMITS, Undecodable, decode
from daemon.store import Store
from daemon.store.tables import alias_history, events, runs, transitions
from learning.clock import microseconds
from learning.events import OutputEvent
from learning.gate import Outcome
from learning.lifecycle import EventState
from learning.policy import Verdict
from learning.ports import Block, EventKind
from tests.builders import HERE, JUDGE, NOON, output
from tests.contract.driver import Driver, rows

HOSTILE = "a\x00b\ud800c"
KEPT = "a\ufffdb\ufffdc"

# The texts that a person could not see on a keyboard are those that databases differ on.
texts = st.text(min_size=1, max_size=20) | st.sampled_from(
    ["\x00", "\ud800", "\udfff", "\ufffe", "\x7f", "\u0085", "\U0010ffff", "e\u0301", "\u00e9"]
)


@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # ids keep examples apart
)
@given(task_id=texts, prompt=texts, said=texts, key=texts, escaped=st.booleans())
async def test_what_the_decoder_lets_through_is_given_back_as_it_was(
    store: Store, task_id: str, prompt: str, said: str, key: str, escaped: bool
) -> None:
    event_id = f"{uuid.uuid4()}{task_id}"
    sent = {
        "producer": "studio",
        "event_id": event_id,
        "task_type": "normalize",
        "task_id": task_id,
        "prompt": prompt,
        "output": said,
        "approved": True,
        "subject": said,
        "model_version": said,
        "context": {key: [said]},
    }
    raw = json.dumps(sent, ensure_ascii=escaped).encode(errors="surrogatepass")
    record = Record(EventKind.OUTPUT, raw, HERE)
    outputs = Reader(JUDGE, STANDARD_LIMITS).read([record], microseconds(NOON)).outputs
    if not outputs:
        return
    event = OutputEvent.model_validate_json(raw)

    await store.intake.append(Block("test", outputs=outputs))

    (row,) = await rows(store.database, events, events.c.event_id == event_id)
    assert (row.task_id, row.subject, row.model_version) == (task_id, said, said)
    assert OutputEvent.model_validate_json(row.payload) == event
    again = await store.intake.append(Block("test", outputs=outputs))
    assert again.duplicates == 1


@pytest.mark.parametrize("bad", ["\x00", "\ud800"])
@pytest.mark.parametrize("escaped", [True, False])
def test_what_a_database_cannot_keep_is_refused_with_a_reason(bad: str, escaped: bool) -> None:
    sent = {"producer": "p", "task_id": f"t{bad}", "task_type": "normalize", "prompt": "p"}
    raw = json.dumps({**sent, "output": "o"}, ensure_ascii=escaped).encode(errors="surrogatepass")

    decoded = decode(EventKind.OUTPUT, raw, HERE, microseconds(NOON))

    assert isinstance(decoded, Undecodable)


async def test_what_a_provider_says_is_kept_whatever_it_says(drive: Driver) -> None:
    run_id = await drive.run_of(output())
    await drive.begin(run_id)

    await drive.store.runs.fail(run_id, "x" * 100, HOSTILE, None, drive.now)

    (run,) = await drive.rows(runs)
    assert run.message == KEPT
    assert run.error == "x" * 64


async def test_what_an_operator_says_is_kept_whatever_it_says(drive: Driver) -> None:
    await drive.send(output("held", approved=None))
    verdict = Verdict(EventState.QUEUED, HOSTILE, by_human=True)
    await drive.store.queue.judge_by_hand(1, verdict, "ann", drive.now)
    await drive.finish(await drive.run_of(output()), Outcome.REJECT)

    await drive.store.registry.promote(
        "normalize", "1.0.1-rc.1", force=True, reason=HOSTILE, actor="ann", now=drive.now
    )

    assert (await drive.event("held")).reason == KEPT
    assert (await drive.rows(alias_history))[-1].reason == KEPT
    said = await drive.store.database.read(
        lambda tx: set(tx.execute(select(transitions.c.reason)).scalars())
    )
    assert KEPT in said
