"""Answers of the API as a daemon gave them, with what each test needs to be different."""

from collections.abc import Mapping
from typing import Any

AT = "2026-11-21T12:00:30+00:00"


def line(name: str = "coding", **changes: Any) -> dict[str, Any]:
    """One model line of /v1/status."""
    return {
        "line": name,
        "task_types": [name],
        "base_model": "models/tiny",
        "champion": "1.0.3",
        "champion_since": "2026-11-21T09:45:30+00:00",
        "waiting": 13,
        "oldest_waiting_at": "2026-11-21T11:58:25+00:00",
        "run_id": None,
        "run_state": None,
        "held_out": 32,
        "wanted_held_out": 32,
        "last_decision": {
            "version": "1.0.3",
            "against": "1.0.2",
            "outcome": "promote",
            "reason": "better on 32 recent examples: p = 0.0004 < 0.025",
            "champion_loss": 1.25,
            "candidate_loss": 1.05,
            "at": "2026-11-21T09:45:30+00:00",
        },
        "batch_size": {
            "line": name,
            "size": 20,
            "needed": 0,
            "pinned": False,
            "cause": "configured",
            "reason": "queue.batch_size",
            "changed_at": None,
            "cause_since": None,
            "revision": 0,
        },
        **changes,
    }


def run(name: str = "coding", **changes: Any) -> dict[str, Any]:
    """One active run of /v1/status."""
    return {
        "id": "r-0123456789ab",
        "line": name,
        "state": "running",
        "batch_id": "b-0123456789ab",
        "provider": "local",
        "attempt": 1,
        "failures": 0,
        "progress": {
            "step": 34,
            "total_steps": 90,
            "numbers": {"loss": 1.2345, "seconds_left": 75.0},
        },
        "outcome": None,
        "version": None,
        "error": None,
        "message": None,
        "planned_at": "2026-11-21T11:59:00+00:00",
        "launched_at": "2026-11-21T11:59:01+00:00",
        "finished_at": None,
        **changes,
    }


def status(
    *,
    lines: list[dict[str, Any]] | None = None,
    runs: list[dict[str, Any]] | None = None,
    queued: Mapping[str, int] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """The answer of /v1/status."""
    by_type = {"coding": 13} if queued is None else dict(queued)
    jobs = [] if runs is None else runs
    return {
        "at": AT,
        "stats": {
            "queue": {"total": sum(by_type.values()), "by_type": by_type},
            "active": {"total": len(jobs), "jobs": jobs},
            "completed": {"total": 3, "success_rate": 1.0, "jobs": []},
            "models": {"coding": "v1.0.3"},
        },
        "lines": [line()] if lines is None else lines,
        "outputs": {"coding": {"states": {"queued": 13, "held": 3}, "average_confidence": 0.9}},
        "feedback": {"coding": {"joined": 4}},
        "dead_letters": {"not_json": 2},
        "runs_by_state": {"decided": 3},
        "oldest_queued_at": dict.fromkeys(by_type, "2026-11-21T11:58:25+00:00"),
        "oldest_queued_seconds": 125.0,
        **changes,
    }


def health(*, healthy: bool = True, **details: str) -> dict[str, Any]:
    """The answer of /healthz; `details` are checks that are not ok."""
    checks = {"store": {"name": "store", "ok": True, "detail": ""}}
    for name, detail in details.items():
        checks[name] = {"name": name, "ok": False, "detail": detail}
    return {
        "healthy": healthy and not details,
        "metrics": {"success_rate": 0.9, "threshold": 0.7, "approved": 9, "rejected": 1},
        "finetune": {"success_rate": 1.0, "threshold": 0.8, "succeeded": 3, "failed": 0},
        "timestamp": AT,
        "checks": checks,
    }


def fact(text: str, *, kind: str = "BatchSealed", at: str = AT) -> dict[str, Any]:
    """One fact of /v1/facts."""
    return {"at": at, "kind": kind, "text": text}
