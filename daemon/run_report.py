"""The training report of a run, made of what the daemon's API tells of it.

The curves are kept in the database with the run's other measurements, so that any daemon of
the database can be asked, long after the files of the training are gone.
"""

from collections.abc import Mapping
from typing import Any

from finetune.report.content import Evaluation, Measured, Slice, TrainingReport
from learning.gate import Measure

Json = Mapping[str, Any]


def report_of(run: Json, version: Json | None) -> TrainingReport:
    """`run` is what `/v1/runs/RUN` says, `version` what is said of the version it made, if any."""
    summary, training = run["summary"], run["training"] or {}
    measured = Measured.of(run["measurements"] or {})
    facts = {
        "state": summary["state"],
        "outcome": summary["outcome"],
        "message": summary["message"],
        "line": summary["line"],
        "version": summary["version"],
        "trained from": run["parent"],
        "provider": summary["provider"],
        "base model": run["base_model"],
        "batch": summary["batch_id"],
        "job": run["job_id"],
        "artifact": run["artifact"],
        "attempts": summary["attempt"],
        "planned at": summary["planned_at"],
        "finished at": summary["finished_at"],
    }
    members = {f"events of role {role}": number for role, number in run["members"].items()}
    return TrainingReport(
        subject=f"run {summary['id']}",
        facts={name: value for name, value in facts.items() if value is not None},
        settings={name: value for name, value in training.items() if value is not None},
        dataset={**members, **measured.dataset},
        training=measured.training,
        left_out=measured.left_out,
        curve=measured.curve,
        notes=measured.notes,
        evaluation=_evaluation(version),
    )


def _evaluation(version: Json | None) -> Evaluation | None:
    """The last time that the gate compared the version with a champion."""
    trials = version["trials"] if version is not None else ()
    if not trials:
        return None
    last = trials[0]
    told = last["report"]
    compared = [one for one in (told["overall"], *told["slices"]) if one is not None]
    return Evaluation(
        verdict=last["outcome"],
        reason=f"{last['reason']} (against {last['against']})",
        slices=[
            Slice(
                name=one["name"],
                n_rows=one["n_examples"],
                loss_before=one["champion_loss"],
                loss_after=one["candidate_loss"],
                exact_before=one["champion_match"],
                exact_after=one["candidate_match"],
            )
            for one in compared
        ],
        measure=Measure(told.get("measure") or Measure.LIKELIHOOD),
    )
