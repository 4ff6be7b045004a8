"""Operations that do nothing and say what they were asked: for tests of who asks them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from daemon.api.ports import (
    Counts,
    DatasetImport,
    FlushResult,
    ForgetOrder,
    ForgetReport,
    HeldOutImport,
    KnowingVersion,
    LearnedAgain,
    NodeGone,
)
from daemon.store.releases import Which
from learning.facts import (
    BatchSealed,
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
from learning.lifecycle import EventState


@dataclass
class ScriptedOperations:
    """Implements Operations and Forgetter of daemon.api.ports; raises `error`, when one is set."""

    error: Exception | None = None
    asked: list[tuple[Any, ...]] = field(default_factory=list)

    def _hear(self, *what: Any) -> None:
        self.asked.append(what)
        if self.error is not None:
            raise self.error

    async def flush(self, task_type: str | None, *, actor: str) -> Sequence[FlushResult]:
        self._hear("flush", task_type, actor)
        sealed = BatchSealed("audio", "b-1", "r-1", "flush", 8, 4, 2, 1)
        return [
            FlushResult("audio", sealed, "sealed; its run starts now"),
            FlushResult("game", None, "nothing is waiting"),
        ]

    async def set_batch_size(
        self, line: str, size: int | None, *, reason: str, actor: str
    ) -> BatchSizeChanged:
        self._hear("set_batch_size", line, size, reason, actor)
        return BatchSizeChanged(line, 20, size or 20, "by_hand", reason, actor)

    async def reset_feedback(self, task_type: str, *, reason: str, actor: str) -> FeedbackReset:
        self._hear("reset_feedback", task_type, reason, actor)
        return FeedbackReset(task_type, 2, actor, reason)

    async def promote(
        self, line: str, version: str, *, force: bool, reason: str, actor: str
    ) -> Promoted:
        self._hear("promote", line, version, force, reason, actor)
        return Promoted(line, "1.0.4", "1.0.3", force, actor)

    async def rollback(self, line: str, to: str | None, *, reason: str, actor: str) -> RolledBack:
        self._hear("rollback", line, to, reason, actor)
        return RolledBack(line, to or "1.0.2", "1.0.3", actor, reason)

    async def cancel_run(
        self, run_id: str, *, reason: str, actor: str
    ) -> RunCancelled | RunCancelAsked:
        self._hear("cancel_run", run_id, reason, actor)
        return RunCancelAsked("audio", run_id, actor, reason)

    async def resolve_run(self, run_id: str, job_id: str | None, *, actor: str) -> LaunchResolved:
        self._hear("resolve_run", run_id, job_id, actor)
        return LaunchResolved("audio", run_id, job_id, actor)

    async def give_up_node(self, node: str, *, reason: str, actor: str) -> NodeGone:
        self._hear("give_up_node", node, reason, actor)
        return NodeGone(node, ["r-1", "r-2"])

    async def forget(self, order: ForgetOrder, *, actor: str) -> ForgetReport:
        self._hear("forget", order, actor)
        sealed = BatchSealed("audio", "b-9", "r-10", "retrain", 0, 0, 2, 7)
        return ForgetReport(
            forgetting_id=None if order.dry_run else 3,
            kind="producer",
            counts=Counts(outputs=12, feedback=4, dead_letters=1, held_out=2),
            versions=[KnowingVersion("audio", "1.0.3", "released", was_champion=True)],
            champions=[RolledBack("audio", "1.0.2", "1.0.3", actor, "forgetting 3")],
            runs=["r-9"],
            files=["r-1", "r-2"],
            pending=["r-9"],
            artifacts=[],
            scrubbed=True,
            learned_again=[LearnedAgain("audio", sealed, "")] if order.retrain else [],
        )

    async def judge(self, event_row_id: int, *, approved: bool, reason: str, actor: str) -> str:
        self._hear("judge", event_row_id, approved, reason, actor)
        return "queued" if approved else "rejected"

    async def release(
        self, which: Which, most: int, *, reason: str, actor: str
    ) -> QuarantineReleased:
        self._hear("release", which, most, reason, actor)
        return QuarantineReleased(
            3, which.producer, which.rule, which.task_type, more=False, actor=actor, reason=reason
        )

    async def replay(self, dead_letter_id: int, *, actor: str) -> EventsStored:
        self._hear("replay", dead_letter_id, actor)
        return EventsStored("kafka", outputs={("audio", EventState.QUEUED): 1})

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
        self._hear("import_dataset", content, line, task_type, file, approved, actor)
        sealed = BatchSealed(line, "b-9", "r-9", "import", 101, 26, 0, 0)
        return DatasetImport(line, sealed, 130, 2, 3, 1, [(4, "empty_text: no word")], None)

    async def import_held_out(self, rows: bytes, *, task_type: str, actor: str) -> HeldOutImport:
        self._hear("import_held_out", rows, task_type, actor)
        return HeldOutImport(len(rows.splitlines()), 1, ((2, "its prompt has trained already"),))
