"""A line whose base is a remote model: from its batch over the chat endpoint to the verdict."""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from consumers.ingest import Ingest
from daemon.artifact_check import compare, recorded
from daemon.operations import DaemonOperations
from daemon.store.tables import batches, evaluations, versions
from finetune.remote.access import ServiceAccess
from finetune.remote.chat_evaluator import ChatEvaluator, ChatRules
from finetune.remote.chat_service import ChatLimits
from finetune.remote.model import FILE
from learning.facts import CandidateDecided, Fact, RunFailed
from learning.gate import Measure, Outcome
from learning.lines import ModelLines
from learning.sampling import SplitRules
from tests.builders import JUDGE, outputs
from tests.contract.driver import ALL_TRAIN, Driver
from tests.contract.floor import Floor
from tests.contract.remote_training import RemoteTraining
from tests.screening import no_screening
from tests.services.fake_chat import (
    BROKEN,
    HANGS,
    HTML,
    FakeChat,
    Fault,
    Logprobs,
    last_words,
)
from tests.services.loopback import on_loopback

# The service is the same on any database.
pytestmark = pytest.mark.parametrize("kind", ["sqlite"], indirect=True)

BASE_SKILL = 0.5
ENOUGH_TO_PROVE = SplitRules(held_out_share=0.5, starting_share=0.7, replay_share=0.0)
RULES = ChatRules(
    limits=ChatLimits(
        timeout=timedelta(seconds=20),
        concurrency=1,  # so that the requests have an order
        retries=1,
        first_wait=timedelta(milliseconds=1),
        longest_wait=timedelta(milliseconds=5),
    )
)


def approved(messages: Sequence[Mapping[str, str]]) -> str:
    """What tests.builders.output gives to its prompt."""
    return last_words(messages).replace("normalize", "normal")


@dataclass
class RemoteLine:
    """A floor whose models answer at a fake service."""

    floor: Floor
    chat: FakeChat
    service: contextlib.ExitStack
    """Closed, the service is down."""
    skill: float | None = 0.95
    """Of the next model that is trained; None: it is never served."""
    first: int = 0

    def serve(self, name: str) -> None:
        """A training has made a model."""
        if self.skill is not None:
            self.chat.models[name] = self.skill

    async def learn(self, n_outputs: int = 40) -> str:
        """A batch is sealed; the id of its run."""
        arrivals = outputs(range(self.first, self.first + n_outputs))
        self.first += n_outputs
        return await self.floor.drive.run_of(*arrivals, rules=ENOUGH_TO_PROVE)

    async def report(self) -> Any:
        """The gate's last report and the scores behind it."""
        return (await self.floor.drive.rows(evaluations))[-1]


@pytest.fixture
def line(drive: Driver, tmp_path: Path) -> Iterator[RemoteLine]:
    with contextlib.ExitStack() as service:
        line = RemoteLine(Floor(drive, tmp_path), FakeChat({"tiny": BASE_SKILL}, approved), service)
        url = service.enter_context(on_loopback(line.chat.app()))
        line.floor.provider = RemoteTraining(line.serve)
        line.floor.evaluator = ChatEvaluator(ServiceAccess(url), RULES)
        yield line


@pytest.fixture
def operations(line: RemoteLine) -> DaemonOperations:
    store, lines = line.floor.drive.store, ModelLines([line.floor.drive.line])

    def announce(fact: Fact) -> None:
        line.floor.facts.append(fact)

    clock = line.floor.drive.clock
    ingest = Ingest(store.intake, lines, JUDGE, announce, clock)
    return DaemonOperations(
        store,
        ingest,
        line.floor.artifacts,
        lines,
        lambda _: ALL_TRAIN,
        lambda: 100,
        announce,
        clock,
        JUDGE,
        no_screening(store, clock),
    )


async def decided(line: RemoteLine) -> CandidateDecided:
    await line.learn()
    async with line.floor.at_work():
        return await line.floor.until(CandidateDecided)


@pytest.mark.parametrize("logprobs", [Logprobs.REFUSED, Logprobs.OFFERED])
@pytest.mark.parametrize(
    ("skill", "outcome", "champion"),
    [
        (0.95, Outcome.PROMOTE, "1.0.1"),
        (BASE_SKILL, Outcome.ABSTAIN, "1.0.0"),
        (0.0, Outcome.REJECT, "1.0.0"),
    ],
)
async def test_a_better_model_is_promoted_an_equal_one_is_not_and_a_worse_one_is_refused(
    line: RemoteLine, skill: float, outcome: Outcome, champion: str, logprobs: Logprobs
) -> None:
    line.skill, line.chat.logprobs = skill, logprobs

    verdict = await decided(line)

    assert verdict.outcome is outcome, verdict.reason
    assert await line.floor.drive.champion() == champion
    row = await line.report()
    offered = logprobs is Logprobs.OFFERED
    measure = Measure.LIKELIHOOD if offered else Measure.ANSWERS
    assert row.report["measure"] == row.scores["measure"] == measure
    assert ("of the answers" in verdict.reason) == (not offered)


async def test_the_next_candidate_is_held_against_the_promoted_one(line: RemoteLine) -> None:
    first = await decided(line)
    line.floor.facts.clear()
    line.skill = 0.0

    second = await decided(line)

    assert (first.outcome, second.outcome) == (Outcome.PROMOTE, Outcome.REJECT)
    assert await line.floor.drive.champion() == "1.0.1"
    promoted, refused = [name for name in line.chat.models if name.startswith("ft:")]
    asked = line.chat.asked()
    assert asked[promoted] > asked[refused] > 0


async def test_a_rollback_moves_the_alias_and_nothing_else_while_the_service_is_down(
    line: RemoteLine, operations: DaemonOperations
) -> None:
    assert (await decided(line)).outcome is Outcome.PROMOTE
    n_asked = len(line.chat.requests)
    line.service.close()
    before = await line.floor.drive.rows(versions)

    rolled_back = await operations.rollback("normalize", None, reason="", actor="ann")

    assert rolled_back.version == await line.floor.drive.champion() == "1.0.0"
    after = await line.floor.drive.rows(versions)
    assert [row.artifact for row in after] == [row.artifact for row in before]
    assert len(line.chat.requests) == n_asked

    await operations.rollback("normalize", "1.0.1", reason="it was good", actor="ann")

    assert await line.floor.drive.champion() == "1.0.1"


async def test_the_artifact_of_a_remote_version_is_checked_as_any_other(line: RemoteLine) -> None:
    await decided(line)
    record = await line.floor.drive.store.database.read(recorded)
    root = line.floor.folder / "artifacts"
    assert compare(record, root).faults == []

    (file,) = root.glob(f"*/{FILE}")
    file.write_text(file.read_text().replace("ft:", "FT:"))

    (fault,) = compare(record, root).faults
    assert f"{FILE} has SHA-256" in fault


# --- a service that is not well -------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "logprobs"), [(BROKEN, Logprobs.REFUSED), (HTML, Logprobs.OFFERED)]
)
async def test_an_evaluation_goes_on_after_the_service_failed_in_its_middle(
    line: RemoteLine, fault: Fault, logprobs: Logprobs
) -> None:
    """It fails for longer than a request is tried, and the run tries again, from there on."""
    line.chat.logprobs = logprobs
    line.chat.fault = lambda number: fault if 20 < number <= 23 else None

    verdict = await decided(line)

    assert verdict.outcome is Outcome.PROMOTE
    assert len(line.chat.requests) > 23


async def test_a_daemon_that_is_stopped_in_an_evaluation_goes_on_with_it(line: RemoteLine) -> None:
    reached = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stall(number: int) -> Fault | None:
        if number == 20:
            loop.call_soon_threadsafe(reached.set)
        return HANGS if number >= 20 else None

    line.chat.fault = stall
    await line.learn()
    async with line.floor.at_work():
        await reached.wait()
    line.chat.fault = lambda number: None

    async with line.floor.at_work():
        verdict = await line.floor.until(CandidateDecided)

    assert verdict.outcome is Outcome.PROMOTE


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (BROKEN, "service_unavailable"),
        (HTML, "service_sent_junk"),
        (Fault(403), "service_refused"),
    ],
)
async def test_a_service_that_is_out_of_order_promotes_nothing_and_the_run_says_why(
    line: RemoteLine, fault: Fault, code: str
) -> None:
    line.chat.fault = lambda number: fault if number > 10 else None
    run_id = await line.learn()

    async with line.floor.at_work():
        failed = await line.floor.until(RunFailed)

    assert (failed.run_id, failed.error) == (run_id, code)
    assert await line.floor.drive.champion() == "1.0.0"
    assert [row.state for row in await line.floor.drive.rows(batches)] == ["returned"]


async def test_a_model_that_is_never_served_is_not_promoted(line: RemoteLine) -> None:
    line.skill = None
    await line.learn()

    async with line.floor.at_work():
        failed = await line.floor.until(RunFailed)

    assert failed.error == "model_not_served"
    assert await line.floor.drive.champion() == "1.0.0"
