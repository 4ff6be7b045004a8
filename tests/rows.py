"""A stored past, written row by row: for tests of what is shown, not of how it came about.

`Past` puts rows into the real tables with plausible values for whatever a test leaves open.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, insert

from daemon.store.bookkeeping import Tally
from daemon.store.database import Database
from daemon.store.tables import (
    alias_history,
    aliases,
    batch_members,
    batches,
    dead_letters,
    evaluation_examples,
    evaluations,
    events,
    feedback,
    metadata,
    model_lines,
    run_attempts,
    run_leases,
    runs,
    transitions,
    versions,
)
from learning.events import digest

START = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


class Past:
    """Writes rows, each a second after the one before; `now` is the time of the last."""

    def __init__(self, tx: Connection) -> None:
        self._tx = tx
        self.now = START
        self._n = 0

    def _next(self) -> int:
        self._n += 1
        self.now += timedelta(seconds=1)
        return self._n

    def event(
        self,
        *,
        state: str = "queued",
        task_type: str = "audio",
        producer: str = "studio",
        event_id: str | None = None,
        confidence: float | None = 0.9,
        prompt: str = "say it",
        output: str = "it is said",
        **columns: Any,
    ) -> int:
        """An output; returns its row id."""
        n = self._next()
        name = event_id or f"e-{n}"
        task_id = f"t-{n}"
        payload = {
            "producer": producer,
            "event_id": name,
            "task_id": task_id,
            "task_type": task_type,
            "prompt": prompt,
            "output": output,
        }
        row = {
            "producer": producer,
            "event_id": name,
            "task_type": task_type,
            "task_id": task_id,
            "state": state,
            "reason": "approved, no confidence given",
            "by_human": True,
            "approved": True,
            "confidence": confidence,
            "payload": json.dumps(payload),
            "source": "kafka",
            "topic": "learnd.outputs",
            "partition": 0,
            "offset": n,
            "occurred_at": self.now,
            "received_at": self.now,
            "state_since": self.now,
            **columns,
        }
        tally = Tally()
        tally.arrive(task_type, state, [confidence], by_human=bool(row["by_human"]))
        tally.write(self._tx, self.now)
        return self._insert(events, row)

    def joined_feedback(self, output_id: int, *, approved: bool) -> int:
        """Feedback that met its output."""
        n = self._next()
        return self._insert(
            feedback,
            {
                "producer": "jury",
                "event_id": f"f-{n}",
                "task_type": "audio",
                "task_id": f"t-{n}",
                "state": "joined",
                "output_id": output_id,
                "approved": approved,
                "payload": "{}",
                "source": "kafka",
                "topic": "learnd.feedback",
                "partition": 0,
                "offset": n,
                "occurred_at": self.now,
                "received_at": self.now,
            },
        )

    def dead_letter(self, *, raw: bytes = b"{", reason: str = "not_json", **columns: Any) -> int:
        """A record that could not become an event; returns its id."""
        n = self._next()
        tally = Tally()
        tally.add("dead_letter", "output", reason)
        tally.write(self._tx, self.now)
        row = {
            "kind": "output",
            "reason": reason,
            "detail": "line 1 column 2",
            "raw": raw,
            "raw_digest": hashlib.blake2b(raw, digest_size=16).digest(),
            "source": "kafka",
            "topic": "learnd.outputs",
            "partition": 1,
            "offset": n,
            "received_at": self.now,
            **columns,
        }
        return self._insert(dead_letters, row)

    def batch(
        self, members: Mapping[int, str], *, line: str = "audio", state: str = "sealed"
    ) -> str:
        """A batch with members by event row id, each with its role; returns its id."""
        n = self._next()
        batch_id = f"b-{n:012x}"
        self._tx.execute(
            insert(batches).values(
                id=batch_id,
                line=line,
                sequence=n,
                trigger="size",
                seed=n,
                state=state,
                actor="sealer",
                sealed_at=self.now,
            )
        )
        for event_id, role in members.items():
            self._tx.execute(
                insert(batch_members).values(batch_id=batch_id, event_id=event_id, role=role)
            )
        return batch_id

    def run(
        self,
        batch_id: str,
        *,
        line: str = "audio",
        state: str = "decided",
        parent: int | None = None,
        **columns: Any,
    ) -> str:
        """A run on a batch with one attempt; returns its id."""
        n = self._next()
        run_id = f"r-{n:012x}"
        ended = state in ("decided", "failed", "cancelled")
        self._tx.execute(
            insert(runs).values(
                {
                    "id": run_id,
                    "batch_id": batch_id,
                    "line": line,
                    "state": state,
                    "provider": "scripted",
                    "attempt": 1,
                    "failures": 0,
                    "seed": n,
                    "base_model": "models/tiny",
                    "foundation": "models/tiny",
                    "training": {"max_steps": 3},
                    "parent_id": parent,
                    "planned_at": self.now,
                    "launched_at": self.now,
                    "finished_at": self.now + timedelta(seconds=30) if ended else None,
                    "updated_at": self.now,
                    **columns,
                }
            )
        )
        self._tx.execute(
            insert(run_attempts).values(
                run_id=run_id, attempt=1, job_id="job-1", started_at=self.now
            )
        )
        self.step("run", run_id, None, "planned")
        return run_id

    def lease(self, run_id: str, node: str, *, until: datetime, bound: bool = False) -> None:
        """A daemon on a node works on a run."""
        self._tx.execute(
            insert(run_leases).values(
                run_id=run_id, owner=node, node=node, epoch=1, until=until, bound=bound
            )
        )

    def line(self, name: str = "audio", *, base_model: str = "models/tiny") -> int:
        """A model line with its declared base as the champion; returns the base's row id."""
        self._next()
        self._tx.execute(
            insert(model_lines).values(name=name, base_model=base_model, created_at=self.now)
        )
        base = self.version(
            name, release="1.0.0", state="released", method="base", base_model=base_model
        )
        self._tx.execute(
            insert(aliases).values(
                line=name, name="champion", version_id=base, revision=1, updated_at=self.now
            )
        )
        return base

    def version(
        self,
        line: str = "audio",
        *,
        release: str | None = None,
        candidate: str | None = None,
        state: str = "candidate",
        parent: int | None = None,
        run_id: str | None = None,
        method: str = "lora",
        base_model: str = "models/tiny",
        **columns: Any,
    ) -> int:
        """A version; returns its row id."""
        self._next()
        made = method != "base"
        return self._insert(
            versions,
            {
                "line": line,
                "candidate": candidate,
                "release": release,
                "state": state,
                "parent_id": parent,
                "run_id": run_id,
                "method": method,
                "base_model": base_model,
                "foundation": base_model,
                "artifact": f"{run_id}-0123456789ab" if made else None,
                "manifest_sha256": "0" * 64 if made else None,
                "training_digest": "d" * 16 if made else None,
                "task_types": [line],
                "created_at": self.now,
                "released_at": self.now if release is not None else None,
                **columns,
            },
        )

    def crown(self, version_id: int, *, before: int | None, line: str = "audio") -> None:
        """Make a version the champion of its line."""
        self._next()
        self._tx.execute(
            aliases.update()
            .where(aliases.c.line == line)
            .values(version_id=version_id, revision=aliases.c.revision + 1, updated_at=self.now)
        )
        self._tx.execute(
            insert(alias_history).values(
                line=line,
                name="champion",
                from_id=before,
                to_id=version_id,
                cause="promote",
                actor="runner",
                reason="better",
                at=self.now,
            )
        )

    def trial(
        self,
        version_id: int,
        champion_id: int,
        *,
        outcome: str = "promote",
        champion_loss: float | None = 0.8,
        candidate_loss: float | None = 0.4,
    ) -> None:
        """A time that the gate compared a version with the champion."""
        self._next()
        overall = {
            "name": "recent",
            "n_examples": 32,
            "champion_loss": champion_loss,
            "candidate_loss": candidate_loss,
            "champion_match": 0.1,
            "candidate_match": 0.6,
            "gain": 0.5,
            "p_worse": 1.0,
        }
        report: dict[str, Any] = {
            "outcome": outcome,
            "reason": "better by more than 5%",
            "refusal": None,
            "overall": overall if champion_loss is not None else None,
            "slices": [],
            "p_better": 0.0001,
            "threshold": 0.025,
            "look": 1,
            "n_missing": 0,
            "forgetting": {
                "n_examples": 40,
                "n_lost": 2,
                "n_gained": 22,
                "lost": [],
                "slices": [
                    {
                        "kind": "producer",
                        "name": "studio",
                        "n_examples": 40,
                        "champion_loss": 0.9,
                        "candidate_loss": 0.3,
                        "champion_match": 0.1,
                        "candidate_match": 0.6,
                        "n_lost": 2,
                        "n_gained": 22,
                    }
                ],
                "n_slices": 3,
            },
        }
        self._tx.execute(
            insert(evaluations).values(
                version_id=version_id,
                champion_id=champion_id,
                outcome=outcome,
                report=report,
                scores={},
                at=self.now,
            )
        )

    def frozen(self, event_id: int | None, *, task_type: str = "audio") -> None:
        """An example of the frozen held-out set."""
        n = self._next()
        self._tx.execute(
            insert(evaluation_examples).values(
                task_type=task_type,
                event_id=event_id,
                messages=[],
                prompt_key=digest(f"frozen {n}"),
                source="event",
                producer="studio",
                added_at=self.now,
            )
        )

    def step(self, kind: str, ref: str, before: str | None, after: str) -> None:
        """A history row."""
        self._next()
        self._tx.execute(
            insert(transitions).values(
                kind=kind,
                ref=ref,
                from_state=before,
                to_state=after,
                reason="because",
                actor="test",
                at=self.now,
            )
        )

    def _insert(self, table: Any, row: Mapping[str, Any]) -> int:
        return int(self._tx.execute(insert(table).values(**row).returning(table.c.id)).scalar_one())


class Generations:
    """A line of three versions, made of batches that share events; the third is champion.

    old trained 1.0.1, which 1.0.2 and 1.0.3 were trained from; fresh trained 1.0.2;
    repeated trained 1.0.1 and was replayed in 1.0.3; judge is held out in the first batch;
    lost trained 1.0.3-rc.1, which the gate refused.
    """

    def __init__(self, past: Past) -> None:
        self.base = past.line()
        self.old, self.fresh, self.repeated, self.judge, self.lost, self.last = (
            past.event(state="sealed") for _ in range(6)
        )
        self.batches: list[str] = []
        self.runs: list[str] = []
        self.first = self._make(
            past,
            {self.old: "train", self.repeated: "train", self.judge: "held_out"},
            self.base,
            release="1.0.1",
            candidate="1.0.1-rc.1",
            state="superseded",
        )
        past.crown(self.first, before=self.base)
        past.frozen(self.judge)
        self.second = self._make(
            past,
            {self.fresh: "train"},
            self.first,
            release="1.0.2",
            candidate="1.0.2-rc.1",
            state="superseded",
        )
        past.crown(self.second, before=self.first)
        self.refused = self._make(
            past, {self.lost: "train"}, self.second, candidate="1.0.3-rc.1", state="refused"
        )
        self.third = self._make(
            past,
            {self.last: "train", self.repeated: "replay"},
            self.second,
            release="1.0.3",
            candidate="1.0.3-rc.2",
            state="released",
        )
        past.crown(self.third, before=self.second)

    def _make(self, past: Past, members: Mapping[int, str], parent: int, **columns: Any) -> int:
        self.batches.append(past.batch(members))
        self.runs.append(past.run(self.batches[-1], parent=parent, outcome="promote"))
        made = past.version(run_id=self.runs[-1], parent=parent, **columns)
        past.trial(made, parent)
        return made


async def open_past(url: str) -> Database:
    """An open database with all tables and no rows. Whoever opens it closes it."""
    database = Database(url)
    await database.write(lambda tx: metadata.create_all(tx))
    return database


def ids(items: Sequence[Any]) -> list[Any]:
    """The ids of listed things."""
    return [item.id for item in items]
