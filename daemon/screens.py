"""The daemon's answers as tables and lines: one function for each answer.

Takes the API's JSON and prints; asks nothing and decides nothing.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from daemon.costs_screen import cost_of
from daemon.printing import (
    Column,
    change,
    duration,
    number,
    say,
    show_pairs,
    show_table,
    some_of,
    text_of,
    when,
    words,
)

Json = Mapping[str, Any]

UNREMARKABLE = ("configured", "too_few_runs", "steady", "idle")
"""Causes of a batch size that need no word."""
REJECTED_USES = {
    "free": "it waits for a batch of its line",
    "taken": "a batch took it",
    "held_out": "never learned from: its prompt or its split group is held out",
    "unfit": "never learned from: a validator complained, or the same answer was approved",
}
"""What becomes of a rejected output, where its line learns from such."""
STATES = ("queued", "sealed", "held", "rejected", "quarantined", "withdrawn", "expired")


def status(url: str, overview: Json, health: Json) -> None:
    """The answers of /v1/status and /healthz."""
    stats = overview["stats"]
    queued = stats["queue"]["total"]
    age = f", the oldest for {duration(overview['oldest_queued_seconds'])}" if queued else ""
    completed = stats["completed"]
    show_pairs(
        [
            ("daemon", url),
            ("healthy", "yes" if health["healthy"] else f"no: {'; '.join(complaints(health))}"),
            *(("warning", warning) for warning in warnings(health)),
            ("outputs accepted", _rate(health["metrics"]["success_rate"])),
            ("queued", f"{queued} events{age}"),
            (
                "runs",
                f"{stats['active']['total']} active, {completed['total']} completed,"
                f" success rate: {_rate(completed['success_rate'])}",
            ),
            *_trainer(overview.get("trainer")),
        ]
    )
    say("")
    lines(overview["lines"])
    _outputs(overview["outputs"])
    if stats["active"]["jobs"]:
        runs(stats["active"]["jobs"], title="Active runs")
    if overview["dead_letters"]:
        show_table(
            [Column("reason"), number("n")],
            sorted(overview["dead_letters"].items()),
            title="Dead letters",
        )


def trainer_state(trainer: Json) -> str:
    """The local trainer process in a few words: warm, 812 MiB."""
    held = trainer["resident_bytes"]
    return f"{trainer['state']}, {held / 2**20:,.0f} MiB" if held else str(trainer["state"])


def _trainer(trainer: Json | None) -> Sequence[tuple[str, str]]:
    """Nothing from a daemon that is too old to tell."""
    if trainer is None:
        return ()
    uses = f"{trainer['warm_uses']} warm uses, {trainer['cold_uses']} cold"
    ends = ", ".join(f"{n} {reason}" for reason, n in sorted(trainer["ends"].items()))
    return [("trainer", f"{trainer_state(trainer)}; {uses}" + (f"; ended: {ends}" if ends else ""))]


def complaints(health: Json) -> Sequence[str]:
    """Why a daemon is not healthy, one sentence each."""
    low = [
        f"{name} {_rate(part['success_rate'])}, needed > {_rate(part['threshold'])}"
        for name, part in (("outputs accepted", health["metrics"]), ("runs", health["finetune"]))
        if part["success_rate"] is not None and part["success_rate"] <= part["threshold"]
    ]
    bad = [f"{name}: {one['detail']}" for name, one in health["checks"].items() if not one["ok"]]
    return [*bad, *low]


def warnings(health: Json) -> Sequence[str]:
    """What a person should know of a daemon that may be healthy, one sentence each."""
    checks = health["checks"].items()
    return [f"{name}: {one['detail']}" for name, one in checks if one["ok"] and one["detail"]]


def _rate(rate: float | None) -> str:
    return "no data" if rate is None else f"{rate:.0%}"


def lines(found: Sequence[Json]) -> None:
    """The model lines of a status."""
    if not found:
        say("No model line has a version yet, and nothing waits.\n")
        return
    show_table(
        [
            Column("line"),
            Column("champion"),
            number("waiting"),
            Column("run"),
            number("held out"),
            words("last decision"),
        ],
        [
            (
                one["line"],
                one["champion"] or "no base model",
                f"{one['waiting']} of {one['batch_size']['size']}",
                one["run_state"],
                f"{one['held_out']} of {one['wanted_held_out']}",
                _decision(one["last_decision"]),
            )
            for one in found
        ],
        title="Model lines",
    )
    told = [one["batch_size"] for one in found if one["batch_size"]["cause"] not in UNREMARKABLE]
    for one in told:
        say(f"{one['line']}: batches of {_size(one)}: {one['reason']}")
    if told:
        say("")


def _decision(last: Json | None) -> str:
    return f"{last['version']} {last['outcome']}: {last['reason']}" if last is not None else "-"


def _outputs(outputs: Mapping[str, Json]) -> None:
    if not outputs:
        say("No output has arrived yet.\n")
        return
    present = [state for state in STATES if any(state in one["states"] for one in outputs.values())]
    show_table(
        [Column("task type"), *map(number, present), number("confidence")],
        [
            (name, *(one["states"].get(state, 0) for state in present), one["average_confidence"])
            for name, one in sorted(outputs.items())
        ],
        title="Outputs by task type",
    )


def flushed(results: Sequence[Json]) -> None:
    """What a flush sealed, or why nothing."""
    sealed = [one for one in results if one["batch"] is not None]
    idle: defaultdict[str, list[str]] = defaultdict(list)
    for one in results:
        if one["batch"] is None:
            idle[one["reason"]].append(one["line"])
    if sealed:
        show_table(
            [
                Column("line"),
                Column("batch"),
                Column("run"),
                number("train"),
                number("held out"),
                number("replay"),
                number("retry"),
                number("cross-task"),
                number("rejected"),
                words(""),
            ],
            [
                (
                    one["line"],
                    one["batch"]["batch_id"],
                    one["batch"]["run_id"],
                    one["batch"]["n_train"],
                    one["batch"]["n_held_out"],
                    one["batch"]["n_replay"],
                    one["batch"]["n_retry"],
                    one["batch"]["n_cross_task"],
                    one["batch"]["n_preference"],
                    one["reason"],
                )
                for one in sealed
            ],
        )
    else:
        say("Nothing was sealed." if idle else "Nothing is waiting, so nothing was sealed.")
    for reason, names in idle.items():
        say(f"{reason}: {some_of(names)}")


def batch_sizes(found: Sequence[Json]) -> None:
    """The batch size of every line."""
    show_table(
        [Column("line"), number("batch size"), Column("cause"), words("why")],
        [(one["line"], _size(one), one["cause"], one["reason"]) for one in found],
    )
    say("`learnd batch-size LINE` shows how one came about; --set N pins it, --auto lets it adapt.")


def batch_size(found: Json) -> None:
    """One line's batch size with its past."""
    current, rules = found["current"], found["rules"]
    adapts = rules["adaptive"] and not current["pinned"]
    show_pairs(
        [
            ("line", current["line"]),
            ("batch size", _size(current)),
            ("cause", current["cause"]),
            ("why", current["reason"]),
            ("adapts", f"between {rules['least']} and {rules['most']}" if adapts else "no"),
            ("not below", current["needed"] or None),
            ("since (UTC)", when(current["changed_at"]) if current["changed_at"] else None),
        ]
    )
    say("")
    history(found["history"])


def batch_size_set(found: Json) -> None:
    """A batch size that an operator set."""
    say(f"{found['line']}: batch size {found['before']} -> {found['after']} ({found['reason']})")


def _size(one: Json) -> str:
    return f"{one['size']}{' (pinned)' if one['pinned'] else ''}"


def runs(found: Sequence[Json], title: str | None = None) -> None:
    """Runs, one a line."""
    if not found:
        say("No run yet: `learnd flush` seals what waits.")
        return
    show_table(
        [
            Column("run"),
            Column("line"),
            Column("state"),
            Column("node"),
            Column("progress"),
            Column("version"),
            Column("planned (UTC)"),
            words("what came of it"),
        ],
        [
            (
                one["id"],
                one["line"],
                one["state"],
                _node(one),
                _progress(one["progress"]),
                one["version"],
                when(one["planned_at"]),
                one["message"],
            )
            for one in found
        ],
        title=title,
    )


def _node(run: Json) -> str | None:
    """Where a run is; a question mark when nothing is heard from there."""
    return f"{run['node']}?" if run["silent_since"] is not None else run["node"]


def _progress(progress: Json | None) -> str:
    return f"{progress['step']}/{progress['total_steps']}" if progress is not None else "-"


def run(found: Json) -> None:
    """One run with everything."""
    summary = found["summary"]
    show_pairs(
        [
            ("run", summary["id"]),
            ("line", summary["line"]),
            ("state", summary["state"]),
            ("outcome", summary["outcome"]),
            ("version", summary["version"]),
            ("message", summary["message"]),
            ("batch", summary["batch_id"]),
            ("members", text_of(found["members"])),
            ("provider", summary["provider"]),
            ("node", summary["node"]),
            ("silent since", when(summary["silent_since"]) if summary["silent_since"] else None),
            ("job", found["job_id"]),
            ("base model", found["base_model"]),
            ("trained from", found["parent"]),
            ("progress", _progress(summary["progress"]) if summary["progress"] else None),
            ("artifact", found["artifact"]),
            ("not before", when(found["not_before"]) if found["not_before"] else None),
            ("training", _known(found["training"])),
            ("measured", _known(_without_curve(found["measurements"]))),
        ]
    )
    say("")
    if found["attempts"]:
        show_table(
            [
                number("attempt"),
                Column("result"),
                Column("started (UTC)"),
                Column("ended (UTC)"),
                Column("cost"),
                words("message"),
            ],
            [
                (
                    one["attempt"],
                    one["result"],
                    when(one["started_at"]),
                    when(one["ended_at"]),
                    cost_of(one["cost"]),
                    one["message"],
                )
                for one in found["attempts"]
            ],
            title="Attempts",
        )
    history(found["history"])


def cancelled(done: Json) -> None:
    """The answer to a cancellation."""
    run_id = done["run_id"]
    if done["cancelled"]:
        say(f"run {run_id} of {done['line']} is cancelled; its rows come back in the next batch")
    else:
        say(
            f"run {run_id} of {done['line']} is being cancelled: its job is ended first;"
            f" `learnd runs {run_id}` shows how far that is"
        )


def resolved(done: Json) -> None:
    """The answer to a resolved launch."""
    if done["job_id"] is None:
        say(f"run {done['run_id']} of {done['line']} does not wait any more: there is no job")
    else:
        say(f"run {done['run_id']} of {done['line']} goes on with job {done['job_id']}")


def _without_curve(measurements: Json | None) -> Json:
    """What fits on a screen; `learnd runs report` draws the rest."""
    return {name: value for name, value in (measurements or {}).items() if name != "curve"}


def _known(values: Json | None) -> str | None:
    """A mapping without what was not set."""
    return text_of({k: v for k, v in values.items() if v is not None}) if values else None


def history(steps: Sequence[Json]) -> None:
    """The steps of one thing."""
    if not steps:
        return
    show_table(
        [Column("at (UTC)"), Column("from"), Column("to"), Column("by"), words("why")],
        [
            (when(one["at"]), one["before"], one["after"], one["actor"], one["reason"])
            for one in steps
        ],
        title="History",
    )


def model_lines(found: Sequence[Json]) -> None:
    """All lines that have versions."""
    if not found:
        say("No model line has a version yet: set finetune.base_model, and send events.")
        return
    show_table(
        [
            Column("line"),
            Column("champion"),
            Column("since (UTC)"),
            number("versions"),
            words("task types"),
            words("base model"),
        ],
        [
            (
                one["line"],
                one["champion"],
                when(one["champion_since"]),
                one["n_versions"],
                one["task_types"],
                one["base_model"],
            )
            for one in found
        ],
    )
    say("`learnd versions LINE` shows the versions of one.")


def versions(found: Sequence[Json]) -> None:
    """The versions of one line with the gate's numbers; the champion has a star."""
    show_table(
        [
            Column("version"),
            Column("state"),
            Column("parent"),
            Column("held-out loss"),
            Column("exact match"),
            number("p"),
            words("gate"),
        ],
        [_version_row(one) for one in found],
    )
    say(
        "* champion. Loss: nats per byte, or 1 - score of the answers where it says so; champion"
        " of the time -> candidate."
    )


def _version_row(one: Json) -> Sequence[Any]:
    trial = one["trial"]
    overall = (trial["report"].get("overall") or {}) if trial is not None else {}
    return (
        f"{one['version']}{' *' if one['is_champion'] else ''}",
        one["state"],
        one["parent"],
        f"{change(overall.get('champion_loss'), overall.get('candidate_loss'))}"
        f"{' (answers)' if overall and trial['report'].get('measure') == 'answers' else ''}",
        change(overall.get("champion_match"), overall.get("candidate_match"), ".2f"),
        f"{p:.2g}" if trial and (p := trial["report"].get("p_better")) is not None else "-",
        f"{trial['outcome']}: {trial['reason']}" if trial else "declared base",
    )


def forgot(found: Json) -> None:
    """What a version gained and lost, slice by slice, and what training did to it."""
    summary, trials, proof = found["summary"], found["trials"], found["proof"]
    name = f"{summary['line']} {summary['version']}"
    if proof is not None:
        moved = proof["weight_delta_norm"]
        say(
            f"{name}: trained on {proof['trained_tokens']} tokens"
            f"{'' if moved is None else f'; the weights moved by {moved:.3g}'}."
        )
    changed = trials[0]["report"].get("forgetting") if trials else None
    if changed is None:
        say(f"{name} was never compared with a champion, so nothing is known of what it forgot.")
        return
    of_what = " of the answers" if trials[0]["report"].get("measure") == "answers" else ""
    show_table(
        [
            Column("slice"),
            number("examples"),
            Column(f"held-out loss{of_what}"),
            Column("exact match"),
            number("lost"),
            number("gained"),
        ],
        [
            (
                f"{one['kind'].replace('_', ' ')} {one['name']}",
                one["n_examples"],
                change(one["champion_loss"], one["candidate_loss"]),
                change(one["champion_match"], one["candidate_match"], ".2f"),
                one["n_lost"],
                one["n_gained"],
            )
            for one in changed["slices"]
        ],
        title=f"{name} against {trials[0]['against']}: {changed['n_examples']} held-out examples",
    )
    if (unnamed := changed["n_slices"] - len(changed["slices"])) > 0:
        say(f"{unnamed} more slices are not shown; they lost less, or are smaller.")
    say(
        f"{changed['n_lost']} lost: the champion had them right, this version has them wrong."
        f" {changed['n_gained']} gained."
    )
    if found["lost"]:
        show_table(
            [number("example"), Column("task type"), words("prompt"), words("right answer")],
            [(one["id"], one["task_type"], one["prompt"], one["answer"]) for one in found["lost"]],
        )


def promoted(found: Json) -> None:
    """A promotion."""
    how = "promoted by force" if found["forced"] else "promoted"
    say(f"{found['line']}: {found['version']} {how}; it replaces {found['replaced']}.")


def node_gone(found: Json) -> None:
    """A node that was given up."""
    say(
        f"{found['node']} was given up; the next daemon takes {some_of(found['run_ids'])}."
        " If that node is not gone after all, what it still does about them is void."
    )


def rolled_back(found: Json) -> None:
    """A rollback."""
    say(f"{found['line']}: {found['version']} is the champion again; {found['left']} was left.")


def events(found: Sequence[Json]) -> None:
    """Outputs, one a line."""
    if not found:
        say("No such event.")
        return
    show_table(
        [
            number("id"),
            Column("task type"),
            Column("state"),
            Column("conf."),
            words("prompt"),
            words("output"),
            words("why"),
        ],
        [
            (
                one["id"],
                one["task_type"],
                one["state"],
                one["confidence"],
                one["prompt"],
                one["output"],
                one["reason"],
            )
            for one in found
        ],
    )


def event(found: Json) -> None:
    """One output with everything."""
    summary = found["summary"]
    show_pairs(
        [
            ("event", summary["id"]),
            ("producer/event", f"{summary['producer']}/{summary['event_id']}"),
            ("task", f"{summary['task_type']}/{summary['task_id']}"),
            ("state", summary["state"]),
            ("why", summary["reason"]),
            ("by a person", summary["by_human"]),
            ("confidence", summary["confidence"]),
            ("model version", found["model_version"]),
            ("subject", found["subject"]),
            ("came from", _origin(found)),
            ("received (UTC)", when(summary["received_at"])),
            (
                "batches",
                ", ".join(f"{one['batch_id']} ({one['role']})" for one in found["batches"]) or None,
            ),
            ("frozen", found["frozen"]),
            ("screening", _screening(found["screening"])),
            ("feedback", ", ".join(_feedback(one) for one in found["feedback"]) or None),
        ]
    )
    say("\nPayload")
    show_pairs((name, text_of(value)) for name, value in found["payload"].items())
    say("")
    history(found["history"])


def _origin(one: Json) -> str:
    return f"{one['source']} {one['topic']}[{one['partition']}] at {one['offset']}"


def _screening(one: Json | None) -> str | None:
    if one is None:
        return None
    said = [f"{finding['validator']}: {finding['message']}" for finding in one["findings"]]
    return ": ".join([one["outcome"], "; ".join(said)]) if said else str(one["outcome"])


def _feedback(one: Json) -> str:
    said = {True: "yes", False: "no", None: "no verdict"}[one["approved"]]
    return f"{one['producer']}: {said} ({one['state']})"


def webhooks(found: Sequence[Json]) -> None:
    """Received webhooks, one a line."""
    if not found:
        say("No webhook in the last seven days.")
        return
    show_table(
        [
            number("id"),
            Column("type"),
            Column("about"),
            Column("run"),
            Column("received (UTC)"),
        ],
        [
            (one["id"], one["type"], one["object_id"], one["run_id"], when(one["received_at"]))
            for one in found
        ],
    )


def webhook_test(found: Json) -> None:
    """What became of a webhook that `learnd webhook test` sent."""
    show_pairs(
        [
            ("webhook", found["id"]),
            ("delivery", found["delivery_id"]),
            ("type", found["type"]),
            ("about", found["object_id"]),
            ("run", found["run_id"] or "none here has, or had, this job"),
        ]
    )
    say("")
    say("The daemon believed the signature and stored it.")


def dead_letters(found: Sequence[Json]) -> None:
    """Dead letters, one a line."""
    if not found:
        say("No dead letter.")
        return
    show_table(
        [
            number("id"),
            Column("kind"),
            Column("reason"),
            Column("from"),
            Column("received (UTC)"),
            words("what is wrong"),
        ],
        [
            (
                one["id"],
                one["kind"],
                f"{one['reason']}{' (replayed)' if one['replayed_at'] else ''}",
                _origin(one),
                when(one["received_at"]),
                one["detail"],
            )
            for one in found
        ],
    )


def dead_letter(found: Json) -> None:
    """One dead letter with its bytes as text."""
    summary = found["summary"]
    show_pairs(
        [
            ("dead letter", summary["id"]),
            ("kind", summary["kind"]),
            ("reason", summary["reason"]),
            ("what is wrong", summary["detail"]),
            ("came from", _origin(summary)),
            ("received (UTC)", when(summary["received_at"])),
            ("replayed (UTC)", when(summary["replayed_at"]) if summary["replayed_at"] else None),
            ("bytes", found["n_bytes"]),
        ]
    )
    cut = " (the beginning)" if found["truncated"] else ""
    say(f"\nRaw{cut}\n{found['text']}")


def replayed(letter_id: int, found: Json) -> None:
    """What a dead letter became."""
    became = [
        *(f"output {key}" for key in found["outputs"]),
        *(f"feedback {key}" for key in found["feedback"]),
        *(f"a dead letter again: {key}" for key in found["dead_letters"]),
        *(["a duplicate of what is stored"] if found["duplicates"] else []),
    ]
    say(f"dead letter {letter_id}: {', '.join(became) or 'nothing'}")


def imported(found: Json) -> None:
    """What an import did."""
    say(
        f"{found['added']} examples added to the held-out set, {found['duplicates']} were in it"
        f" already, {len(found['refused'])} refused."
    )
    if found["refused"]:
        show_table([number("row"), words("why it was refused")], found["refused"])


def dataset_imported(found: Json) -> None:
    """What the import of a dataset file did."""
    if found["refused"]:
        show_table([number("line"), words("why it was refused")], found["refused"])
    say(
        f"{found['added']:,} rows stored, {found['duplicates']:,} were known already,"
        f" {found['set_aside']:,} do not train (rejected, held or quarantined),"
        f" {found['n_refused']:,} refused."
    )
    earlier, batch = found["earlier"], found["batch"]
    if earlier is not None:
        say(
            f"The same file was imported as {earlier['file']} on {when(earlier['at'])} by"
            f" {earlier['actor']}: batch {earlier['batch_id'] or '-'}."
        )
    if batch is None:
        say("No batch was sealed: no row is new and may train.")
        return
    say(
        f"Batch {batch['batch_id']}: {batch['n_train']:,} train, {batch['n_held_out']:,} held out,"
        f" {batch['n_replay']:,} replayed. Run {batch['run_id'] or '-'}."
    )
    if not batch["n_held_out"]:
        say(
            "None of its rows judges, because nobody says that people approved them: --approved"
            " says so of a whole file, `approved: true` of a row."
        )


def lineage(found: Json) -> None:
    """A lineage, of whichever kind."""
    {"event": _event_lineage, "batch": _batch_lineage, "version": _version_lineage}[found["kind"]](
        found
    )


def _event_lineage(found: Json) -> None:
    event = found["event"]
    show_pairs(
        [
            ("event", event["id"]),
            ("producer/event", f"{event['producer']}/{event['event_id']}"),
            ("task type", event["task_type"]),
            ("state", f"{event['state']}: {event['reason']}"),
            ("held out", _held_out(found)),
            ("as rejected", REJECTED_USES.get(found["rejected_use"])),
        ]
    )
    say("")
    if not found["uses"]:
        say("It is in no batch, so no version knows it.")
        return
    show_table(
        [
            Column("batch"),
            Column("line"),
            Column("role"),
            Column("run"),
            Column("outcome"),
            Column("version"),
        ],
        [
            (
                one["batch_id"],
                one["line"],
                one["role"],
                one["run_id"],
                one["outcome"] or one["run_state"],
                one["version"],
            )
            for one in found["uses"]
        ],
        title="Batches that it is in",
    )
    for one in found["uses"]:
        if one["better"]:
            say(f"In {one['batch_id']} the better answer was {one['better']}.")
        if one["worse"]:
            say(f"In {one['batch_id']} it was the better answer to {', '.join(one['worse'])}.")
    if not found["known_by"]:
        say("No version knows it.")
        return
    show_table(
        [Column("version"), Column("state"), Column("knows it")],
        [
            (
                f"{one['line']}@{one['version']}{' *' if one['is_champion'] else ''}",
                one["state"],
                "trained on it" if one["directly"] else f"through {one['parent']}",
            )
            for one in found["known_by"]
        ],
        title=f"{found['n_known_by']} versions know it (* champion)",
    )


def _held_out(found: Json) -> str | None:
    if not found["held_out"]:
        return None
    return "it judges candidates" if found["frozen"] else "yes, but it does not judge"


def _batch_lineage(found: Json) -> None:
    show_pairs(
        [
            ("batch", found["batch_id"]),
            ("line", found["line"]),
            (
                "sealed (UTC)",
                f"{when(found['sealed_at'])} by {found['actor']} ({found['trigger']})",
            ),
            (
                "file",
                f"{found['imported']['file']}, sha256 {found['imported']['sha256']}"
                if found["imported"]
                else None,
            ),
            ("state", found["state"]),
            ("members", text_of(found["counts"])),
            ("run", f"{found['run_id']} ({found['run_state']})" if found["run_id"] else None),
            ("outcome", found["outcome"]),
            (
                "version",
                f"{found['line']}@{found['version']} ({found['version_state']})"
                if found["version"]
                else None,
            ),
        ]
    )
    say("")
    _members(found["members"], "Events")


def _version_lineage(found: Json) -> None:
    show_pairs(
        [
            ("version", f"{found['line']}@{found['version']}"),
            ("state", f"{found['state']}{', champion' if found['is_champion'] else ''}"),
            ("base model", found["base_model"]),
            ("events", f"{found['n_events']} trained it and its parents"),
        ]
    )
    say("")
    show_table(
        [Column("version"), Column("state"), Column("run"), Column("batch"), words("members")],
        [
            (
                f"{one['version']}{' *' if one['is_champion'] else ''}",
                one["state"],
                one["run_id"],
                one["batch_id"],
                one["counts"],
            )
            for one in found["chain"]
        ],
        title="From this version back to its base",
    )
    _members(found["events"], "Events that trained it or its parents")


def _members(page: Json, title: str) -> None:
    if not page["items"]:
        return
    show_table(
        [number("id"), Column("task type"), Column("role"), words("producer/event")],
        [
            (
                one["event_row_id"],
                one["task_type"],
                one["role"],
                f"{one['producer']}/{one['event_id']}"
                + (f" (better: {one['better']})" if one["better"] else ""),
            )
            for one in page["items"]
        ],
        title=title,
    )
    if page["next"] is not None:
        say(f"More: --after {page['next']}")
