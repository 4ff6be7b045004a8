"""Forget on request: find what is meant, take it out of use, purge it, remove the files, say it.

Puts the steps of daemon/store/forgettings.py and daemon/forgotten_files.py in the order in which
a crash between any two of them leaves nothing half told: first the versions that know it are out
of use, then the texts go, then what the files still hold. Each step finds what the ones before it
left, so the same request made again goes on to the end. Implements daemon.api.ports.Forgetter.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from daemon.api.ports import ForgetOrder, ForgetReport, LearnedAgain
from daemon.forgotten_files import ForgottenFiles
from daemon.store import Store
from daemon.store.dialect import CHUNK
from daemon.store.forgettings import (
    Counts,
    Forgetting,
    Letter,
    Outcome,
    Target,
    TargetKind,
)
from daemon.store.views.lineage import Lineages
from learning.clock import Clock
from learning.facts import Announce, EventsForgotten
from learning.lines import ModelLines
from learning.sampling import SplitRulesOf

Records = Callable[[Letter], Sequence[bytes]]
"""What can be told apart in a dead letter that is a whole batch; of others the letter itself."""


class DaemonForgetter:
    """Forgets for one daemon, one request after the other."""

    def __init__(
        self,
        store: Store,
        lineages: Lineages,
        files: ForgottenFiles,
        lines: ModelLines,
        split_rules: SplitRulesOf,
        announce: Announce,
        clock: Clock,
        records: Records = lambda letter: (letter.raw,),
    ) -> None:
        self._store = store
        self._forgettings = store.forgettings
        self._lineages = lineages
        self._files = files
        self._lines = lines
        self._split_rules = split_rules
        self._announce = announce
        self._clock = clock
        self._records = records
        self._forgetting = asyncio.Lock()

    async def forget(self, order: ForgetOrder, *, actor: str) -> ForgetReport:
        """See daemon.api.ports.Forgetter."""
        target = await self._target(order)
        if order.dry_run:
            return await self._preview(target)
        async with self._forgetting:
            return await self._forget(target, order, actor)

    async def _target(self, order: ForgetOrder) -> Target:
        if order.event is not None:
            named = await self._lineages.event_name(order.event)
            return Target(TargetKind.EVENT, named)
        if order.producer is not None:
            return Target(TargetKind.PRODUCER, order.producer)
        assert order.subject is not None, "the request names one of the three"
        return Target(TargetKind.SUBJECT, order.subject)

    async def _preview(self, target: Target) -> ForgetReport:
        wanted = await self._forgettings.preview(target)
        outputs = await self._forgettings.outputs(wanted)
        batches = await self._forgettings.learned_in(outputs)
        by_producer = await self._forgettings.feedback_by(wanted)
        on_outputs = await self._forgettings.feedback_on(outputs, but_not=by_producer)
        letters = [letter async for letter in self._letters(wanted)]
        would = await self._forgettings.known_to(batches)
        return ForgetReport(
            forgetting_id=None,
            kind=target.kind,
            counts=Counts(
                outputs=len(outputs),
                feedback=len(by_producer) + on_outputs,
                dead_letters=len(letters),
                held_out=await self._forgettings.held_out(wanted, outputs),
            ),
            versions=would.versions,
            champions=[],
            runs=[run.run_id for run in would.runs],
            files=await self._files.of(await self._forgettings.runs_with(outputs)),
            pending=[],
            artifacts=[],
            scrubbed=False,
            learned_again=[],
        )

    async def _forget(self, target: Target, order: ForgetOrder, actor: str) -> ForgetReport:
        wanted = await self._forgettings.ask(
            target,
            delete_weights=order.delete_weights,
            reason=order.reason,
            actor=actor,
            now=self._clock(),
        )
        done = Outcome()
        outputs = await self._forgettings.outputs(wanted)
        batches = await self._forgettings.learned_in(outputs)
        self._tell(done, await self._forgettings.take_out(wanted, batches, self._clock()))
        for some in _chunks(outputs):
            purged = await self._forgettings.purge_outputs(wanted, some, self._clock())
            self._tell(done, purged)
        for some in _chunks(await self._forgettings.feedback_by(wanted)):
            await self._forgettings.purge_feedback(wanted, some, self._clock())
        async for letter in self._letters(wanted):
            await self._forgettings.purge_letters(wanted, [letter], self._clock())
        await self._forgettings.finish(wanted, self._clock())
        scrubbed = await self._forgettings.scrub(rewrite=order.scrub_files)
        counts = await self._forgettings.counts(wanted.id)
        self._announce(
            EventsForgotten(
                wanted.id,
                counts.outputs,
                counts.feedback,
                counts.dead_letters,
                counts.held_out,
                [f"{one.line}@{one.version}" for one in done.versions],
                actor,
            )
        )
        swept = await self._files.sweep()
        return ForgetReport(
            forgetting_id=wanted.id,
            kind=target.kind,
            counts=counts,
            versions=done.versions,
            champions=done.replaced,
            runs=[run.run_id for run in done.runs],
            files=swept.runs,
            pending=swept.pending,
            artifacts=swept.artifacts,
            scrubbed=scrubbed,
            learned_again=await self._retrain(actor) if order.retrain else [],
        )

    def _tell(self, done: Outcome, step: Outcome) -> None:
        """Announce what a step did to runs and champions, and keep it for the report."""
        for fact in (*step.replaced, *step.runs):
            self._announce(fact)
        done.add(step)

    async def _retrain(self, actor: str) -> Sequence[LearnedAgain]:
        again: list[LearnedAgain] = []
        for name in await self._forgettings.tainted_lines():
            line = self._lines.get(name)
            if line is None or line.base_model is None:
                again.append(LearnedAgain(name, None, "the line is not configured to train"))
                continue
            rules = self._split_rules(name)
            batch = await self._forgettings.retrain(line, rules, actor, self._clock())
            if batch is not None:
                self._announce(batch)
            nothing = "nothing is left that it could learn, or it is learned again already"
            again.append(LearnedAgain(name, batch, "" if batch is not None else nothing))
        return again

    # --- dead letters ---------------------------------------------------------------

    async def _letters(self, wanted: Forgetting) -> AsyncIterator[Letter]:
        """The dead letters that are meant, one by one."""
        after = 0
        while page := await self._forgettings.letters(wanted, after):
            after = page[-1].id
            for letter in page:
                if await self._is_meant(wanted, letter):
                    yield letter

    async def _is_meant(self, wanted: Forgetting, letter: Letter) -> bool:
        """Whether a dead letter says the wanted names, or is another body of a forgotten event."""
        records = await asyncio.to_thread(self._records, letter)
        texts = [letter.raw, *records]
        names = [_spellings(name) for name in wanted.target.quoted]
        if any(all(any(one in text for one in name) for name in names) for text in texts):
            return True
        ids = [found for text in texts if (found := _event_of(text)) is not None]
        return any(await self._forgettings.are_forgotten(wanted, ids))


def _spellings(name: str) -> Sequence[bytes]:
    """A name as it stands in JSON, in the two spellings that writers of JSON use."""
    return [
        json.dumps(name, ensure_ascii=False).encode("utf-8", "surrogatepass"),
        json.dumps(name).encode(),
    ]


def _event_of(text: bytes) -> tuple[str, str] | None:
    """The producer and event id that a record gives itself, where it can be read so far."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    producer, event_id = record.get("producer"), record.get("event_id", record.get("eventId"))
    if isinstance(producer, str) and isinstance(event_id, str):
        return producer, event_id
    return None


def _chunks(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    return (ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK))
