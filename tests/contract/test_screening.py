"""From the queue to a batch with real validators in a real process, whatever those do."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from consumers.ingest import Ingest
from consumers.screening.process import ScreeningProcess
from daemon.loops import Sealer
from daemon.operations import DaemonOperations
from daemon.screening import RulesInForce, Screening
from daemon.store import Store
from daemon.store.tables import evaluation_examples, screenings
from daemon.store.views.events import Events, ScreeningFinding
from finetune.artifacts import ArtifactStore
from learning.batch_sizing import SizeRules
from learning.batching import BatchRules
from learning.events import conversation
from learning.facts import BatchSealed, EventsScreened, Fact
from learning.lines import ModelLines
from learning.preferences import Objective
from learning.screening import (
    CannotScreenError,
    PiiMode,
    ScreeningRules,
    TaskRules,
)
from tests.builders import JUDGE, output
from tests.contract.driver import ALL_TRAIN, Driver, StoppedClock
from tests.contract.promises import broken_promises
from tests.screening import install

TOKEN = "ghp_" + "a8Kd93jfLq0ZmX71bVc5Rt2Yw6Ne4HuPo9Si"


class Screener:
    """A store, its screening, and who seals: with the rules of a test."""

    def __init__(self, drive: Driver, rules: list[ScreeningRules], folder: Path) -> None:
        self.drive = drive
        self.facts: list[Fact] = []
        self.told = asyncio.Event()
        self._rules = rules
        self.process = ScreeningProcess()
        announce, lines = self._hear, ModelLines([drive.line])
        self.screening = Screening(
            drive.store, self.process, lambda: rules[-1], announce, drive.clock
        )
        self.sealer = Sealer(
            drive.store,
            lines,
            lambda: BatchRules(batch_size=4, max_queue_size=100),
            lambda _: ALL_TRAIN,
            announce,
            drive.clock,
            clear=self.screening.clear,
        )
        self.operations = DaemonOperations(
            drive.store,
            Ingest(drive.store.intake, lines, JUDGE, announce, drive.clock),
            ArtifactStore(folder),
            lines,
            lambda _: ALL_TRAIN,
            lambda: 100,
            announce,
            drive.clock,
            JUDGE,
            self.screening,
        )

    def _hear(self, fact: Fact) -> None:
        self.facts.append(fact)
        self.told.set()

    def become(self, **rules: Any) -> None:
        """Other rules are in force."""
        self._rules.append(ScreeningRules(**{"default": TaskRules(), "seconds": 1.0, **rules}))

    async def clear(self, size: int = 100) -> bool:
        return await self.screening.clear(self.drive.line, size)

    async def flush(self) -> str:
        (done,) = await self.operations.flush("normalize", actor="ann")
        return done.reason

    def outcomes(self) -> dict[str, int]:
        """How many events became what, so far."""
        total: dict[str, int] = {}
        for fact in self.facts:
            if isinstance(fact, EventsScreened):
                for (_, outcome), n in fact.outcomes.items():
                    total[outcome] = total.get(outcome, 0) + n
        return total

    async def learned(self) -> list[str]:
        """Every text that the last batch trains on."""
        (*_, batch) = [fact for fact in self.facts if isinstance(fact, BatchSealed)]
        rows = await self.drive.store.runs.training_rows(batch.batch_id)
        return [turn["content"] for row in rows for turn in conversation(row.event)]


@pytest.fixture
async def screener(
    store_url: str, tmp_path: Path, clock: StoppedClock, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Screener]:
    install(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    rules = [ScreeningRules(seconds=1.0)]
    store = await Store.open(
        store_url,
        artifacts_dir=tmp_path / "artifacts",
        judge=JUDGE,
        clock=clock,
        ruleset=RulesInForce(lambda: rules[-1]),
        size_rules=lambda: SizeRules(adaptive=False, start=4),
    )
    made = Screener(Driver(store, clock), rules, tmp_path / "artifacts")
    try:
        yield made
        assert await store.database.read(broken_promises) == []
    finally:
        await made.process.close()
        await store.close()


async def test_a_batch_is_sealed_of_what_is_clean(screener: Screener) -> None:
    drive = screener.drive
    await drive.send(
        *(output(f"{n}") for n in range(4)),
        output("secret", output=f"use {TOKEN}"),
        output("mail", output="ask ann@corp.de"),
    )
    for _ in range(2):
        await screener.sealer.seal_due()
    states = await drive.states()
    assert states.pop("secret") == "queued"  # not needed for the first batch, so not looked at
    assert await screener.flush() == "sealed; its run waits for the line's current one"
    assert (await drive.event("secret")).reason == "secrets: GitHub Token in line 1 of the answer"
    assert await screener.learned() == ["normalize mail", "ask [EMAIL]"]
    assert screener.outcomes() == {"passed": 4, "stopped": 1, "scrubbed": 1}


async def test_a_batch_that_lost_too_much_to_screening_waits_for_more(screener: Screener) -> None:
    await screener.drive.send(*(output(f"{n}") for n in range(3)), output("bad", prompt="refuse"))
    await screener.sealer.seal_due()
    assert set((await screener.drive.states()).values()) == {"queued", "quarantined"}
    await screener.drive.send(output("more"))
    await screener.sealer.seal_due()
    assert (await screener.drive.states())["more"] == "sealed"


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("hang", "naughty: did not answer within 1 s"),
        ("crash", "naughty: ended the process that it ran in (exit status 7)"),
        ("bomb", "naughty: ran out of memory"),
        ("junk", "naughty: answered nonsense: int"),
    ],
)
async def test_a_validator_that_fails_quarantines_the_event_and_no_other(
    screener: Screener, how: str, reason: str
) -> None:
    await screener.drive.send(output("a"), output("b", prompt=how), output("c"))
    assert await screener.flush() == "sealed; its run starts now"
    assert await screener.drive.states() == {"a": "sealed", "b": "quarantined", "c": "sealed"}
    assert (await screener.drive.event("b")).reason == reason


async def test_a_process_that_is_killed_half_way_loses_nothing(
    screener: Screener, tmp_path: Path
) -> None:
    """It gets SIGKILL in the midst of three events, each time at the first try."""
    drive = screener.drive
    deadly = [output(str(tmp_path / f"seen-{n}"), prompt="once") for n in range(3)]
    await drive.send(*(output(f"{n}") for n in range(30)), *deadly)
    assert await screener.flush() == "sealed; its run starts now"
    assert set((await drive.states()).values()) == {"sealed"}
    assert screener.outcomes() == {"passed": 33}


async def test_a_daemon_that_ends_half_way_keeps_what_was_screened(screener: Screener) -> None:
    drive = screener.drive
    await drive.send(*(output(f"{n}") for n in range(60)), output("hang", prompt="hang"))
    screener.become(seconds=600.0)
    screening = asyncio.create_task(screener.clear())
    await screener.told.wait()
    screening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await screening
    assert len(await drive.rows(screenings)) >= 50
    assert set((await drive.states()).values()) == {"queued"}


async def test_an_event_tells_what_came_of_its_screening(screener: Screener) -> None:
    events = Events(screener.drive.store.database)
    await screener.drive.send(output("a", output="ask ann@corp.de"))
    event = await screener.drive.event("a")
    before = await events.one(event.id)
    assert before is not None
    assert before.screening is None
    await screener.clear()
    after = await events.one(event.id)
    assert after is not None
    assert after.screening is not None
    assert after.screening.outcome == "scrubbed"
    assert after.screening.findings == [ScreeningFinding("pii", "1 e-mail address", True)]
    assert after.screening.cost.keys() == {"secrets", "pii", "naughty", "next"}


async def test_changed_rules_look_again_at_what_is_still_queued(screener: Screener) -> None:
    drive = screener.drive
    await drive.send(output("a", output="Internal use only"), output("b"))
    await screener.clear()
    screener.become(default=TaskRules(banned_patterns=["internal use"]))
    assert await drive.seal() is None
    assert await screener.flush() == "sealed; its run starts now"
    assert await drive.states() == {"a": "quarantined", "b": "sealed"}


async def test_switched_off_everything_is_sealed_without_a_process(screener: Screener) -> None:
    screener.become(enabled=False)
    await screener.drive.send(output("a", output=TOKEN))
    assert await screener.flush() == "sealed; its run starts now"
    assert screener.process.pid is None


async def test_without_validators_nothing_is_sealed_and_it_is_said(
    screener: Screener, tmp_path: Path
) -> None:
    (tmp_path / "naughty_package.py").write_text("import nothing_of_that_name")
    await screener.drive.send(*(output(f"{n}") for n in range(4)))
    await screener.sealer.seal_due()
    assert "cannot be screened" in await screener.flush()
    assert "nothing_of_that_name" in screener.screening.trouble
    assert set((await screener.drive.states()).values()) == {"queued"}
    with pytest.raises(CannotScreenError):
        await screener.clear()


# --- what comes in otherwise ------------------------------------------------------------


async def bring(screener: Screener, *rows: dict[str, Any]) -> Any:
    return await screener.operations.import_dataset(
        "\n".join(map(json.dumps, rows)).encode(),
        line="normalize",
        task_type=None,
        file="rows.jsonl",
        approved=False,
        actor="ann",
    )


async def test_the_rows_of_a_file_are_screened_before_they_are_sealed(screener: Screener) -> None:
    done = await bring(
        screener,
        {"prompt": "a", "completion": "fine"},
        {"prompt": "b", "completion": f"use {TOKEN}"},
        {"prompt": "c", "completion": "ask ann@corp.de"},
    )
    assert (done.added, done.set_aside) == (3, 1)
    assert await screener.learned() == ["a", "fine", "c", "ask [EMAIL]"]
    states = sorted((await screener.drive.states()).values())
    assert states == ["quarantined", "sealed", "sealed"]


async def test_what_an_operator_releases_of_a_file_is_not_stopped_again(
    screener: Screener,
) -> None:
    await bring(screener, {"prompt": "b", "completion": f"use {TOKEN}"})
    (row,) = await screener.drive.rows(screenings)
    await screener.operations.judge(row.event_id, approved=True, reason="old one", actor="ann")
    await screener.flush()
    assert set((await screener.drive.states()).values()) == {"sealed"}


async def test_human_labels_are_screened_before_they_are_frozen(screener: Screener) -> None:
    rows = [
        {"prompt": "a", "output": f"use {TOKEN}"},
        {"prompt": "b", "output": "ask ann@corp.de"},
    ]
    done = await screener.operations.import_held_out(
        "\n".join(map(json.dumps, rows)).encode(), task_type="normalize", actor="ann"
    )
    assert done.refused == ((1, "secrets: GitHub Token in line 1 of the answer"),)
    (example,) = await screener.drive.rows(evaluation_examples)
    assert example.messages[-1]["content"] == "ask [EMAIL]"


async def test_rejected_outputs_are_screened_before_a_line_learns_from_them(
    screener: Screener,
) -> None:
    drive = screener.drive
    drive.configure(training={"objective": Objective.KTO})
    await drive.send(
        output("good"),
        output("bad", approved=False, output="ask ann@corp.de"),
        output("worse", approved=False, output=f"use {TOKEN}"),
    )
    await screener.clear()
    batch = await drive.seal()
    assert batch is not None
    assert batch.n_preference == 1
    (row,) = await drive.store.runs.preference_rows(batch.batch_id)
    assert row.event.output == "ask [EMAIL]"
    assert (await drive.states())["worse"] == "rejected"


async def test_nothing_rejected_is_learned_from_unscreened(screener: Screener) -> None:
    drive = screener.drive
    drive.configure(training={"objective": Objective.KTO})
    await drive.send(output("good"))
    await screener.clear()
    await drive.send(output("bad", approved=False))
    batch = await drive.seal()
    assert batch is not None
    assert batch.n_preference == 0


async def test_held_personal_data_waits_for_an_operator(screener: Screener) -> None:
    screener.become(default=TaskRules(pii=PiiMode.HOLD))
    await screener.drive.send(output("a", output="ask ann@corp.de"))
    assert "nothing is left" in await screener.flush()
    assert (await screener.drive.event("a")).reason == "pii: 1 e-mail address"
