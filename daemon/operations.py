"""What a person can ask the running daemon to do; implements daemon.api.ports.Operations.

Thin: each operation is one transaction of the store, and the fact of it told afterwards.
"""

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence

from consumers.ingest import Ingest
from consumers.wire import Decoded, decode
from daemon.api.ports import DatasetImport, FlushResult, HeldOutImport, NodeGone
from daemon.dataset_import import ImportOrder, prepare
from daemon.screening import Screening
from daemon.store import Store
from daemon.store.imports import DatasetSource
from daemon.store.registry import SeenPair, StepBackLimits
from daemon.store.releases import Which
from finetune.artifacts import ArtifactError, ArtifactStore
from learning.batching import Due, Trigger
from learning.clock import Clock, microseconds
from learning.errors import ConflictError, NotFoundError
from learning.events import OutputEvent, prompt_key
from learning.facts import (
    Announce,
    BatchSizeChanged,
    EventsStored,
    FeedbackReset,
    LaunchResolved,
    Promoted,
    QuarantineReleased,
    RolledBack,
    RunCancelAsked,
    RunCancelled,
)
from learning.judge import Judge
from learning.lifecycle import EventState
from learning.lines import ModelLine, ModelLines
from learning.policy import Verdict
from learning.ports import Block, EventKind, Origin
from learning.sampling import SplitRulesOf
from learning.screening import CannotScreenError

MOST_REFUSED_LISTED = 1_000


class UnknownTaskTypeError(NotFoundError):
    """No model line learns from this task type."""

    def __init__(self, task_type: str) -> None:
        super().__init__(f"no model line learns from {task_type!r}; `learnd status` lists them")
        self.task_type = task_type


class UnknownLineError(NotFoundError):
    """No model line has this name."""

    def __init__(self, line: str) -> None:
        super().__init__(f"there is no model line {line!r}; `learnd status` lists them")
        self.line = line


class BatchSizeTooLargeError(ConflictError):
    """A batch of this size would be larger than a queue may become."""

    def __init__(self, size: int, max_queue_size: int) -> None:
        super().__init__(
            f"a batch of {size} events is larger than queue.max_queue_size, {max_queue_size}"
        )
        self.size, self.max_queue_size = size, max_queue_size


class StillUndecodableError(ConflictError):
    """A dead letter cannot become an event yet."""

    def __init__(self, dead_letter_id: int, reason: str, detail: str) -> None:
        super().__init__(f"dead letter {dead_letter_id} is still {reason}: {detail}")
        self.dead_letter_id, self.reason = dead_letter_id, reason


class NoBaseModelError(ConflictError):
    """A line without a base model cannot train, so nothing is sealed for it."""

    def __init__(self, line: str) -> None:
        super().__init__(f"the line {line} has no base model: set finetune.base_model")
        self.line = line


class DamagedVersionError(ConflictError):
    """The files of a version are not what was published, so it cannot be the champion."""

    def __init__(self, line: str, version: str, error: ArtifactError) -> None:
        super().__init__(f"{line} {version} cannot be the champion: {error}")
        self.line, self.version = line, version


class DaemonOperations:
    """The operations of one daemon."""

    def __init__(
        self,
        store: Store,
        ingest: Ingest,
        artifacts: ArtifactStore,
        lines: ModelLines,
        split_rules: SplitRulesOf,
        max_queue_size: Callable[[], int],
        announce: Announce,
        clock: Clock,
        judge: Judge,
        screening: Screening,
    ) -> None:
        self._store = store
        self._ingest = ingest
        self._artifacts = artifacts
        self._lines = lines
        self._split_rules = split_rules
        self._max_queue_size = max_queue_size
        self._announce = announce
        self._clock = clock
        self._hashing = asyncio.Lock()
        self._judge = judge
        self._screening = screening

    async def flush(self, task_type: str | None, *, actor: str) -> Sequence[FlushResult]:
        """See daemon.api.ports.Operations."""
        if task_type is None:
            lines = self._lines.owners(await self._store.queue.waiting_task_types())
        else:
            lines = self._lines.owners([task_type])
            if not lines:
                raise UnknownTaskTypeError(task_type)
        return [await self._flush_line(line, actor) for line in lines]

    async def _flush_line(self, line: ModelLine, actor: str) -> FlushResult:
        queue = await self._store.queue.look(line)
        if queue.waiting == 0:
            return FlushResult(line.name, None, "nothing is waiting")
        if line.base_model is None:
            return FlushResult(
                line.name,
                None,
                f"{queue.waiting} events wait, but the line has no base model:"
                " set finetune.base_model",
            )
        size = min(queue.waiting, self._max_queue_size())
        try:
            all_screened = await self._screening.clear(line, size)
        except CannotScreenError as error:
            return FlushResult(line.name, None, f"the events cannot be screened: {error}")
        batch = await self._store.queue.seal(
            line,
            Due(Trigger.FLUSH, size),
            self._split_rules(line.name),
            actor,
            self._clock(),
        )
        if batch is None:
            return FlushResult(line.name, None, await self._why_nothing(line, all_screened))
        self._announce(batch)
        if batch.run_id is None:
            reason = "sealed, but every example is held out: nothing to train"
        elif queue.busy:
            reason = "sealed; its run waits for the line's current one"
        else:
            reason = "sealed; its run starts now"
        return FlushResult(line.name, batch, reason)

    async def _why_nothing(self, line: ModelLine, all_screened: bool) -> str:
        if not all_screened:
            return "the events are still being screened: flush again"
        if (await self._store.queue.look(line)).waiting == 0:
            return "nothing is left: screening stopped the events, or another hand sealed them"
        return "another hand sealed it just now"

    async def set_batch_size(
        self, line: str, size: int | None, *, reason: str, actor: str
    ) -> BatchSizeChanged:
        """See daemon.api.ports.Operations."""
        if self._lines.get(line) is None:
            raise UnknownLineError(line)
        if size is not None and size > (most := self._max_queue_size()):
            raise BatchSizeTooLargeError(size, most)
        changed = await self._store.batch_sizes.set_by_hand(
            line, size, reason, actor, self._clock()
        )
        self._announce(changed)
        return changed

    async def reset_feedback(self, task_type: str, *, reason: str, actor: str) -> FeedbackReset:
        """See daemon.api.ports.Operations."""
        if self._lines.owner(task_type) is None:
            raise UnknownTaskTypeError(task_type)
        reset = await self._store.dials.reset(
            task_type, reason=reason or "no reason given", actor=actor, now=self._clock()
        )
        self._announce(reset)
        return reset

    async def promote(
        self, line: str, version: str, *, force: bool, reason: str, actor: str
    ) -> Promoted:
        """See daemon.api.ports.Operations."""
        await self._require_whole(line, version)
        promoted = await self._store.registry.promote(
            line, version, force=force, reason=reason, actor=actor, now=self._clock()
        )
        self._announce(promoted)
        return promoted

    async def rollback(self, line: str, to: str | None, *, reason: str, actor: str) -> RolledBack:
        """See daemon.api.ports.Operations."""
        to = to if to is not None else await self._store.registry.predecessor(line)
        await self._require_whole(line, to)
        rolled_back = await self._store.registry.rollback(
            line, to, reason=reason, actor=actor, now=self._clock()
        )
        self._announce(rolled_back)
        return rolled_back

    async def step_back(
        self, seen: SeenPair, to: str, *, reason: str, limits: StepBackLimits
    ) -> RolledBack:
        """See daemon.live_verdict.StepBack. It waits for its turn to hash files, as people do."""
        await self._store.registry.require_step_back(seen, limits=limits, now=self._clock())
        await self._require_whole(seen.line, to)
        rolled_back = await self._store.registry.step_back(
            seen, reason=reason, limits=limits, now=self._clock()
        )
        self._announce(rolled_back)
        return rolled_back

    async def give_up_node(self, node: str, *, reason: str, actor: str) -> NodeGone:
        """See daemon.api.ports.Operations."""
        taken = await self._store.leases.declare_gone(
            node, reason=reason or "no reason given", actor=actor, now=self._clock()
        )
        return NodeGone(node, taken)

    async def _require_whole(self, line: str, version: str) -> None:
        """Hash the files of a version that is about to be in use. Raises DamagedVersionError.

        Before the transaction: weights may be large, and a transaction must be short. One at
        a time: whoever asks next waits here, and not in the threads that others need.
        """
        model = await self._store.registry.loadable(line, version)
        try:
            async with self._hashing:
                await asyncio.to_thread(self._artifacts.verify_model, model)
        except ArtifactError as error:
            raise DamagedVersionError(line, version, error) from error

    async def cancel_run(
        self, run_id: str, *, reason: str, actor: str
    ) -> RunCancelled | RunCancelAsked:
        """See daemon.api.ports.Operations."""
        done = await self._store.interventions.cancel(run_id, reason, actor, self._clock())
        self._announce(done)
        return done

    async def resolve_run(self, run_id: str, job_id: str | None, *, actor: str) -> LaunchResolved:
        """See daemon.api.ports.Operations."""
        resolved, cancelled = await self._store.interventions.resolve(
            run_id, job_id, actor, self._clock()
        )
        self._announce(resolved)
        if cancelled is not None:
            self._announce(cancelled)
        return resolved

    async def judge(self, event_row_id: int, *, approved: bool, reason: str, actor: str) -> str:
        """See daemon.api.ports.Operations."""
        state = EventState.QUEUED if approved else EventState.REJECTED
        verdict = Verdict(state, reason, by_human=True)
        return await self._store.queue.judge_by_hand(event_row_id, verdict, actor, self._clock())

    async def release(
        self, which: Which, most: int, *, reason: str, actor: str
    ) -> QuarantineReleased:
        """See daemon.api.ports.Operations."""
        released = await self._store.releases.release(which, most, reason, actor, self._clock())
        self._announce(released)
        return released

    async def replay(self, dead_letter_id: int, *, actor: str) -> EventsStored:
        """See daemon.api.ports.Operations."""
        letter = await self._store.intake.dead_letter(dead_letter_id)
        block = await asyncio.to_thread(self._ingest.replay, letter)  # it may be a whole batch
        if not isinstance(block, Block):
            raise StillUndecodableError(dead_letter_id, block.reason, block.detail)
        stored = await self._store.intake.replay(dead_letter_id, block)
        self._announce(stored)
        return stored

    async def import_dataset(
        self,
        content: bytes,
        *,
        line: str,
        task_type: str | None,
        file: str,
        approved: bool,
        actor: str,
    ) -> DatasetImport:
        """See daemon.api.ports.Operations."""
        found = self._lines.get(line)
        if found is None:
            raise UnknownLineError(line)
        if found.base_model is None:
            raise NoBaseModelError(line)
        now = self._clock()
        order = ImportOrder(file, task_type, approved, actor)
        prepared = await asyncio.to_thread(prepare, content, order, found, self._judge, now)
        rows, screened = await self._screening.of_rows(prepared.outputs)
        done = await self._store.imports.add(
            found,
            DatasetSource(file, prepared.sha256),
            rows,
            self._split_rules(line),
            actor,
            now,
            screened,
        )
        if done.added:
            self._announce(done.stored)
        if done.batch is not None:
            self._announce(done.batch)
        n_sealed = done.batch.n_train + done.batch.n_held_out if done.batch is not None else 0
        refused = sorted([*prepared.refused, *done.reused])
        return DatasetImport(
            line=line,
            batch=done.batch,
            added=done.added,
            duplicates=done.duplicates,
            set_aside=done.added - n_sealed,
            n_refused=len(refused),
            refused=refused[:MOST_REFUSED_LISTED],
            earlier=done.earlier,
        )

    async def import_held_out(self, rows: bytes, *, task_type: str, actor: str) -> HeldOutImport:
        """See daemon.api.ports.Operations."""
        if self._lines.owner(task_type) is None:
            raise UnknownTaskTypeError(task_type)
        examples: list[tuple[int, OutputEvent, bytes]] = []
        refused: list[tuple[int, str]] = []
        now = self._clock()
        arrived = microseconds(now)
        for number, raw in _numbered_lines(rows):
            decoded = decode(
                EventKind.OUTPUT,
                _completed(raw, number, task_type),
                Origin("import", task_type, 0, number),
                arrived,
            )
            if not isinstance(decoded, Decoded):
                refused.append((number, f"{decoded.reason}: {decoded.detail}"))
            elif not isinstance(decoded.event, OutputEvent):
                refused.append((number, "not an output"))
            elif decoded.event.task_type != task_type:
                refused.append((number, f"its task type is {decoded.event.task_type}"))
            elif (screened := await self._screening.of_event(decoded.event)).complaints:
                refused.append((number, screened.reason))
            else:
                event = screened.event or decoded.event
                examples.append((number, event, prompt_key(event)))
        stored = await self._store.queue.import_held_out(examples, task_type, actor, now)
        return HeldOutImport(
            stored.added, stored.duplicates, tuple(sorted([*refused, *stored.refused]))
        )


def _numbered_lines(rows: bytes) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(rows.split(b"\n"), start=1):
        if line.strip():
            yield number, line.strip()


def _completed(raw: bytes, number: int, task_type: str) -> bytes:
    """A labelled row needs only prompt and output, or messages; the rest is filled in.

    What is no JSON object stays as it is, for the decoder to refuse.
    """
    try:
        row = json.loads(raw)
    except (ValueError, RecursionError):
        return raw
    if not isinstance(row, dict):
        return raw
    event = {"producer": "import", "task_id": f"row-{number}", "task_type": task_type, **row}
    return json.dumps(event).encode()
