"""The command `learnd` as a subprocess against the real server and a real database."""

import asyncio
import contextlib
import json
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from consumers.pressure import Pressure
from daemon.api.app import create_app
from daemon.api.server import ApiServer, listen
from daemon.api.token import ensure_token
from daemon.exit_status import ExitStatus
from daemon.probes import DaemonMetrics, DaemonProbes
from daemon.recent_facts import RecentFacts
from daemon.settings_sources import PLAIN_NAMES
from daemon.store.database import sqlite_url
from daemon.store.views import Views
from learning.errors import ConflictError
from learning.lines import ModelLine, ModelLines
from monitoring.metrics import Metrics
from tests.http_intake import http_source
from tests.rows import START, Generations, Past, open_past
from tests.scripted_operations import ScriptedOperations
from tests.services.kafka import KafkaBroker
from tests.services.postgres import PASSWORD, PostgresServer
from tests.settings_desk import settings_desk

T = TypeVar("T")

LEARND = (sys.executable, "-m", "daemon")
ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 60


@dataclass(frozen=True)
class Ran:
    """How a command ended, and what it said."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Terminal:
    """Somebody who types `learnd` beside a daemon."""

    folder: Path
    env: dict[str, str]

    async def type(self, *words: str, stdin: bytes = b"", **env: str) -> Ran:
        process = await asyncio.create_subprocess_exec(
            *LEARND,
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.folder,
            env={**self.env, **env},
        )
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                out, err = await process.communicate(stdin)
        except BaseException:
            process.kill()
            await process.wait()
            raise
        assert process.returncode is not None
        assert "Traceback" not in err.decode(), err.decode()
        return Ran(process.returncode, out.decode(), err.decode())


@dataclass
class Stage:
    """A served past, and somebody who asks about it."""

    made: Generations
    letter: int
    held: int
    operations: ScriptedOperations
    terminal: Terminal


def clean_environment() -> dict[str, str]:
    """No daemon and no settings of the machine that the tests run on."""
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("LEARND_") and name not in (*PLAIN_NAMES, "COLUMNS")
    }
    return {**env, "PYTHONPATH": str(ROOT)}


@contextlib.asynccontextmanager
async def serve_past(
    data_dir: Path, fill: Callable[[Past], T]
) -> AsyncIterator[tuple[str, tuple[T, ScriptedOperations]]]:
    """Serve a stored past over HTTP: its address, what `fill` returned, and the operations."""
    await asyncio.to_thread(data_dir.mkdir)
    database = await open_past(sqlite_url(data_dir / "learnd.db"))
    filled = await database.write(lambda tx: fill(Past(tx)))
    lines = ModelLines([ModelLine("audio", frozenset({"audio"}), "models/tiny", "scripted")])
    views = Views.of(
        database,
        lines=lines,
        artifacts_dir=data_dir / "artifacts",
        wanted_held_out=lambda: 32,
        clock=lambda: START,
    )
    operations = ScriptedOperations()
    probes = DaemonProbes(views.overview, None, Pressure(time.monotonic), lambda: START)
    app = create_app(
        views=views,
        operations=operations,
        forgetter=operations,
        settings=settings_desk(database, lambda: START),
        http_source=http_source(database, lines, lambda: START),
        health=probes,
        metrics=DaemonMetrics(Metrics(), views.overview, None, probes),
        facts=RecentFacts(lambda: START),
        token=ensure_token(data_dir),
    )
    server = ApiServer(app, listen("127.0.0.1", 0))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.serve())
        yield server.url, (filled, operations)
        server.stop()
    await database.close()


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    return Terminal(tmp_path, clean_environment())


@pytest.fixture
async def stage(tmp_path: Path, terminal: Terminal) -> AsyncIterator[Stage]:
    def fill(past: Past) -> tuple[Generations, int, int]:
        made = Generations(past)
        progress = {"step": 3, "total_steps": 9}
        past.run(past.batch({made.lost: "retry"}), state="running", progress=progress)
        letter = past.dead_letter(raw=b'{"prompt": "\x1b[31m\xff"', detail="line 1")
        return made, letter, past.event(state="held", reason="waits for a verdict")

    async with serve_past(tmp_path / "learnd-data", fill) as (url, (filled, operations)):
        terminal.env["LEARND_URL"] = url
        yield Stage(*filled, operations, terminal)


# --- looking --------------------------------------------------------------------------


async def test_status_shows_the_lines_and_what_they_can_prove(stage: Stage) -> None:
    ran = await stage.terminal.type("status")
    assert ran.status == ExitStatus.DONE
    assert "healthy" in ran.out
    assert "1.0.3" in ran.out
    assert "1 of 32" in ran.out
    assert "\x1b" not in ran.out
    assert max(map(len, ran.out.splitlines())) <= 100
    as_json = (await stage.terminal.type("status", "--json")).json
    assert as_json["stats"]["models"] == {"audio": "v1.0.3"}
    assert as_json["health"]["healthy"] is True


async def test_versions_show_the_gates_numbers_and_the_champion(stage: Stage) -> None:
    ran = await stage.terminal.type("versions", "audio")
    (champion,) = [line for line in ran.out.splitlines() if line.startswith("1.0.3 *")]
    assert champion.split()[:4] == ["1.0.3", "*", "released", "1.0.2"]
    assert "0.800 -> 0.400" in champion
    assert "0.10 -> 0.60" in champion
    assert "0.0001" in champion
    assert "promote:" in champion
    assert "1.0.3-rc.1" in ran.out
    assert "declared base" in ran.out
    assert "audio" in (await stage.terminal.type("versions")).out


async def test_what_a_version_forgot_is_shown_slice_by_slice(stage: Stage) -> None:
    ran = await stage.terminal.type("forgot", "audio@1.0.3")

    (studio,) = [line for line in ran.out.splitlines() if line.startswith("producer studio")]
    assert studio.split()[2:] == ["40", "0.900", "->", "0.300", "0.10", "->", "0.60", "2", "22"]
    assert "audio 1.0.3 against 1.0.2: 40 held-out examples" in ran.out
    assert "2 more slices are not shown" in ran.out
    assert "2 lost: the champion had them right" in ran.out
    newest = (await stage.terminal.type("forgot", "audio", "--json")).json
    assert newest["summary"]["version"] == "1.0.3"
    assert "never compared" in (await stage.terminal.type("forgot", "audio@1.0.0")).out


async def test_runs_are_listed_and_shown(stage: Stage) -> None:
    listed = await stage.terminal.type("runs")
    assert stage.made.runs[0] in listed.out
    assert "3/9" in listed.out
    assert (await stage.terminal.type("runs", "list")).out == listed.out
    shown = await stage.terminal.type("runs", stage.made.runs[0])
    assert "1.0.1" in shown.out
    assert (await stage.terminal.type("runs", "show", stage.made.runs[0])).out == shown.out
    assert "job-1" not in listed.out
    (running,) = (await stage.terminal.type("runs", "--state", "running", "--json")).json
    assert running["state"] == "running"


async def test_lineage_goes_both_ways(stage: Stage) -> None:
    forward = await stage.terminal.type("lineage", str(stage.made.old))
    assert "audio@1.0.3 *" in forward.out
    assert "through 1.0.2" in forward.out
    assert "4 versions know it" in forward.out
    backward = await stage.terminal.type("lineage", "audio@champion")
    assert "4 trained it and its parents" in backward.out
    assert stage.made.batches[0] in backward.out
    paged = await stage.terminal.type("lineage", "audio@v1.0.3", "--limit", "2")
    assert "--after" in paged.out
    held_out = await stage.terminal.type("lineage", str(stage.made.judge))
    assert "it judges candidates" in held_out.out
    by_batch = await stage.terminal.type("lineage", stage.made.batches[0])
    assert "held_out 1, train 2" in by_batch.out


async def test_forgetting_asks_back_and_tells_what_went(stage: Stage) -> None:
    mole = ("forget", "--producer", "mole")
    would = await stage.terminal.type(*mole, "--dry-run")
    assert "This would be forgotten" in would.out
    assert "audio@1.0.3" in would.out
    assert "clean ancestor" in would.out
    unasked = await stage.terminal.type(*mole)
    assert unasked.status == ExitStatus.USAGE
    assert "--yes" in unasked.err
    done = await stage.terminal.type(*mole, "--retrain", "--reason", "left us", "--yes")
    assert "audio: 1.0.2 is the champion now, 1.0.3 was." in done.out
    assert "7 events are learned again" in done.out
    assert "The files of r-9 go as soon as" in done.out
    (kind, order, actor) = stage.operations.asked[-1]
    assert (kind, order.producer, order.retrain, order.reason) == (
        "forget",
        "mole",
        True,
        "left us",
    )
    assert actor.startswith("cli")
    both = await stage.terminal.type(*mole, "--subject", "x", "--yes")
    assert both.status == ExitStatus.USAGE


async def test_an_event_is_explained(stage: Stage) -> None:
    told = await stage.terminal.type("explain", str(stage.made.old))
    assert "took it to train" in told.out
    assert "4 versions know it: audio@1.0.3 (champion)" in told.out
    found = (await stage.terminal.type("explain", str(stage.made.old), "--json")).json
    assert found["lineage"]["n_known_by"] == 4


async def test_events_are_listed_and_shown(stage: Stage) -> None:
    listed = await stage.terminal.type("events", "list", "--state", "held")
    assert "waits for a verdict" in listed.out
    shown = await stage.terminal.type("events", "show", str(stage.held))
    assert "say it" in shown.out
    assert len((await stage.terminal.type("events", "list", "--limit", "3", "--json")).json) == 3


async def test_a_dead_letter_is_shown_without_steering_the_terminal(stage: Stage) -> None:
    listed = await stage.terminal.type("dead-letters", "list", "--open")
    assert "not_json" in listed.out
    shown = await stage.terminal.type("dead-letters", "show", str(stage.letter))
    assert '{"prompt": "\ufffd[31m\ufffd"' in shown.out
    as_json = await stage.terminal.type("dead-letters", "show", str(stage.letter), "--json")
    assert as_json.json["text"] == '{"prompt": "\x1b[31m\ufffd"'


# --- doing ----------------------------------------------------------------------------


async def test_flush_says_what_it_sealed_and_why_not(stage: Stage) -> None:
    ran = await stage.terminal.type("flush", "--task-type", "audio")
    assert ran.status == ExitStatus.DONE
    assert "b-1" in ran.out
    assert "nothing is waiting: game" in ran.out
    assert [one[:2] for one in stage.operations.asked] == [("flush", "audio")]
    assert stage.operations.asked[0][2].startswith("cli")


async def test_a_batch_size_is_shown_pinned_and_released(stage: Stage) -> None:
    listed = await stage.terminal.type("batch-size")
    assert "configured" in listed.out
    shown = await stage.terminal.type("batch-size", "audio", "--json")
    assert shown.json["current"]["size"] == 20
    pinned = await stage.terminal.type("batch-size", "audio", "--set", "8", "--reason", "fewer")
    assert "audio: batch size 20 -> 8 (fewer)" in pinned.out
    released = await stage.terminal.type("batch-size", "audio", "--auto")
    assert released.status == ExitStatus.DONE
    assert [one[:3] for one in stage.operations.asked] == [
        ("set_batch_size", "audio", 8),
        ("set_batch_size", "audio", None),
    ]


@pytest.mark.parametrize("arguments", [("--set", "8"), ("audio", "--set", "8", "--auto")])
async def test_a_batch_size_is_set_for_one_line_and_one_way(
    stage: Stage, arguments: tuple[str, ...]
) -> None:
    ran = await stage.terminal.type("batch-size", *arguments)
    assert ran.status == ExitStatus.USAGE
    assert stage.operations.asked == []


async def test_promotion_and_rollback_are_passed_on(stage: Stage) -> None:
    forced = await stage.terminal.type(
        "promote", "audio", "1.0.3-rc.1", "--force", "--reason", "for a test"
    )
    assert "1.0.4 promoted by force; it replaces 1.0.3" in forced.out
    back = await stage.terminal.type("rollback", "audio", "--to", "1.0.1")
    assert "1.0.1 is the champion again" in back.out
    assert [one[:-1] for one in stage.operations.asked] == [
        ("promote", "audio", "1.0.3-rc.1", True, "for a test"),
        ("rollback", "audio", "1.0.1", ""),
    ]


async def test_cancelling_and_resolving_are_passed_on(stage: Stage) -> None:
    cancelled = await stage.terminal.type("runs", "cancel", "r-7", "--reason", "wrong data")
    assert cancelled.status == ExitStatus.DONE
    assert "r-7 of audio is being cancelled: its job is ended first" in cancelled.out
    none = await stage.terminal.type("runs", "resolve", "r-7", "--no-job")
    assert "does not wait any more" in none.out
    found = await stage.terminal.type("runs", "resolve", "r-7", "--job", "ftjob-1", "--json")
    assert found.json["job_id"] == "ftjob-1"
    assert [one[:-1] for one in stage.operations.asked] == [
        ("cancel_run", "r-7", "wrong data"),
        ("resolve_run", "r-7", None),
        ("resolve_run", "r-7", "ftjob-1"),
    ]


async def test_verdicts_replays_and_imports_are_passed_on(stage: Stage, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(b'{"prompt": "a", "output": "b"}\n')
    approved = await stage.terminal.type("events", "approve", "5", "--reason", "good")
    assert "queued" in approved.out
    assert "rejected" in (await stage.terminal.type("events", "reject", "6")).out
    assert "output audio queued" in (await stage.terminal.type("dead-letters", "replay", "1")).out
    imported = await stage.terminal.type("import", str(rows), "--held-out", "--task-type", "audio")
    assert imported.status == ExitStatus.DONE
    assert "1 examples added" in imported.out
    words = ("import", str(rows), "--line", "audio", "--approved")
    brought = await stage.terminal.type(*words)
    assert brought.status == ExitStatus.DONE
    assert "130 rows stored, 2 were known already, 3 do not train" in brought.out
    assert "Batch b-9: 101 train, 26 held out" in brought.out
    assert "4  empty_text: no word" in brought.out
    assert [one[:-1] for one in stage.operations.asked] == [
        ("judge", 5, True, "good"),
        ("judge", 6, False, ""),
        ("replay", 1),
        ("import_held_out", rows.read_bytes(), "audio"),
        ("import_dataset", rows.read_bytes(), "audio", None, "rows.jsonl", True),
    ]


# --- refusals and exit statuses -------------------------------------------------------


async def test_what_the_daemon_refuses_is_said_on_stderr(stage: Stage) -> None:
    stage.operations.error = ConflictError(
        "the gate did not promote it; to overrule it use --force"
    )
    ran = await stage.terminal.type("promote", "audio", "1.0.3-rc.1")
    assert (ran.status, ran.out) == (ExitStatus.REFUSED, "")
    assert "use --force" in ran.err


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("lineage", "studio/none"), ExitStatus.REFUSED, "learnd events list"),
        (("versions", "game"), ExitStatus.REFUSED, "learnd versions"),
        (("runs", "--state", "done"), ExitStatus.USAGE, "state"),
        (("runs", "r-77"), ExitStatus.REFUSED, "learnd runs"),
        (("runs", "cancel"), ExitStatus.USAGE, "RUN"),
        (("runs", "resolve", "r-7"), ExitStatus.USAGE, "--no-job"),
        (("runs", "resolve", "r-7", "--no-job", "--job", "x"), ExitStatus.USAGE, "--job ID"),
        (("rollback",), ExitStatus.USAGE, "LINE"),
        (("promote", "audio", "1.0.1", "--force"), ExitStatus.USAGE, "--reason"),
        (("import", "x", "--task-type", "audio", "--held-out"), ExitStatus.USAGE, "x"),
        (("import", __file__, "--task-type", "audio"), ExitStatus.USAGE, "--line"),
        (("import", __file__, "--held-out"), ExitStatus.USAGE, "--task-type"),
        (("statsu",), ExitStatus.USAGE, "status"),
    ],
)
async def test_each_refusal_has_its_exit_status(
    stage: Stage, words: tuple[str, ...], status: ExitStatus, said: str
) -> None:
    ran = await stage.terminal.type(*words)
    assert (ran.status, ran.out) == (status, "")
    assert said in ran.err


async def test_a_wrong_token_is_told_from_a_daemon_that_is_away(stage: Stage) -> None:
    wrong = await stage.terminal.type("status", LEARND_TOKEN="wrong")
    assert wrong.status == ExitStatus.UNREACHABLE
    assert "LEARND_TOKEN" in wrong.err
    away = await stage.terminal.type("status", "--url", "http://127.0.0.1:9")
    assert away.status == ExitStatus.UNREACHABLE
    assert "learnd run" in away.err


async def test_without_a_data_directory_there_is_no_token(terminal: Terminal) -> None:
    ran = await terminal.type("status")
    assert ran.status == ExitStatus.UNREACHABLE
    assert "learnd run" in ran.err


async def test_the_token_is_found_in_the_named_data_directory(stage: Stage, tmp_path: Path) -> None:
    elsewhere = Terminal(tmp_path.parent, stage.terminal.env)
    assert (await elsewhere.type("versions")).status == ExitStatus.UNREACHABLE
    ran = await elsewhere.type("versions", "--data-dir", str(tmp_path / "learnd-data"))
    assert ran.status == ExitStatus.DONE


# --- without a daemon -----------------------------------------------------------------


async def test_check_shows_every_setting_with_its_source_and_tries_what_it_names(
    terminal: Terminal,
) -> None:
    (terminal.folder / "learnd.yaml").write_text(
        "finetune: {base_model: ./missing}\nlines: {poems: {provider: locl}}\n"
    )
    ran = await terminal.type("check", BATCH_SIZE="7", OPENAI_API_KEY="hunter2")
    assert ran.status == ExitStatus.REFUSED
    rows = [line.split() for line in ran.out.splitlines()]
    assert ["queue.batch_size", "7", "environment", "BATCH_SIZE"] in rows
    assert ["finetune.base_model", "./missing", "file", "learnd.yaml"] in rows
    assert "hunter2" not in ran.out
    assert "not a model directory" in ran.out
    assert "did you mean local?" in ran.out


async def test_check_finds_no_fault_with_what_the_first_start_will_make(terminal: Terminal) -> None:
    found = (await terminal.type("check", "--json")).json["findings"]
    grades = {one["subject"]: one["grade"] for one in found}
    assert grades["database"] == "ok"
    assert "versions" not in grades
    assert not (terminal.folder / "learnd-data").exists()


async def test_check_looks_at_the_folders_that_the_settings_name(terminal: Terminal) -> None:
    inbox = terminal.folder / "inbox"
    inbox.mkdir()
    (inbox / "a.jsonl").touch()
    (inbox / "link.jsonl").symlink_to(inbox / "a.jsonl")
    (terminal.folder / "a file").touch()
    settings = {
        "artifacts_dir": str(terminal.folder / "a file" / "models"),
        "intake": {"files": {"outputs": [str(inbox)], "feedback": ["nowhere/*.jsonl"]}},
    }
    (terminal.folder / "learnd.yaml").write_text(json.dumps(settings))
    ran = await terminal.type("check", "--json")
    assert ran.status == ExitStatus.REFUSED
    found = {one["subject"]: (one["grade"], one["detail"]) for one in ran.json["findings"]}
    assert found["data directory"][0] == "ok"
    assert "GiB free" in found["data directory"][1]
    grade, detail = found["artifacts directory"]
    assert (grade, detail.endswith("a file is not a directory")) == ("bad", True)
    grade, detail = found["files of outputs"]
    assert (grade, "link.jsonl is not read: it is a symbolic link" in detail) == ("note", True)
    grade, detail = found["files of feedback"]
    assert (grade, "there is no folder" in detail) == ("note", True)


async def test_check_says_which_server_does_not_answer(terminal: Terminal) -> None:
    ran = await terminal.type(
        "check",
        "--json",
        LEARND_KAFKA__BOOTSTRAP_SERVERS="127.0.0.1:9",
        LLM_ENDPOINT="http://127.0.0.1:9/v1",
        LEARND_DATABASE_URL="postgresql://me:hunter2@127.0.0.1:9/x",
    )
    assert ran.status == ExitStatus.REFUSED
    bad = {one["subject"] for one in ran.json["findings"] if one["grade"] == "bad"}
    assert bad >= {"kafka", "llm_endpoint", "database"}
    assert "hunter2" not in ran.out


async def test_check_says_which_postgresql_answers_and_what_is_wrong_with_it(
    terminal: Terminal, postgres_server: PostgresServer
) -> None:
    async def found(url: str) -> tuple[str, str]:
        ran = await terminal.type("check", "--json", LEARND_DATABASE_URL=url)
        assert PASSWORD not in ran.out
        (one,) = [one for one in ran.json["findings"] if one["subject"] == "database"]
        return one["grade"], one["detail"]

    with postgres_server.database() as url:
        grade, detail = await found(url)
        assert grade == "ok"
        assert re.search(r"learnd:\*+@.* answers: PostgreSQL \d+", detail)

        with postgres_server.session(url.rpartition("/")[2]) as root:
            root.execute("ALTER SCHEMA public OWNER TO postgres")
        grade, detail = await found(url)
        assert grade == "bad"
        assert "make learnd the owner" in detail

        grade, detail = await found(url.replace(PASSWORD, "wrong"))
        assert grade == "bad"
        assert "password authentication failed" in detail


async def test_a_bad_settings_file_is_one_clear_error(terminal: Terminal) -> None:
    (terminal.folder / "learnd.yaml").write_text("queue: {batch_sze: 3}\n")
    for words in (("check",), ("run",), ("status",)):
        ran = await terminal.type(*words)
        assert ran.status == ExitStatus.USAGE
        assert ran.err.strip() == (
            "error: file learnd.yaml: queue.batch_sze: no such setting; did you mean batch_size?"
        )


async def test_sending_needs_a_file_and_a_broker(terminal: Terminal) -> None:
    events = terminal.folder / "events.jsonl"
    events.write_text("{}\n")
    nowhere = await terminal.type("send", str(events))
    assert nowhere.status == ExitStatus.USAGE
    assert "--bootstrap-servers" in nowhere.err
    missing = await terminal.type("send", "none.jsonl", "--bootstrap-servers", "127.0.0.1:9")
    assert missing.status == ExitStatus.USAGE
    away = await terminal.type("send", str(events), "--bootstrap-servers", "127.0.0.1:9")
    assert away.status == ExitStatus.UNREACHABLE
    assert "127.0.0.1:9" in away.err


async def test_a_file_and_standard_input_are_sent_to_a_real_broker(
    terminal: Terminal, kafka_broker: KafkaBroker, topic_names: Callable[[str], str]
) -> None:
    outputs, opinions = topic_names("outputs"), topic_names("feedback")
    terminal.env |= {
        "LEARND_KAFKA__BOOTSTRAP_SERVERS": kafka_broker.bootstrap,
        "LEARND_KAFKA__OUTPUTS_TOPICS": outputs,
        "LEARND_KAFKA__FEEDBACK_TOPICS": opinions,
    }
    before = await terminal.type("check", "--json")
    assert outputs in {one["subject"]: one for one in before.json["findings"]}["kafka"]["detail"]
    for topic in (outputs, opinions):
        await asyncio.to_thread(kafka_broker.create_topic, topic)
    after = await terminal.type("check", "--json")
    assert {one["subject"]: one["grade"] for one in after.json["findings"]}["kafka"] == "ok"

    task = {"producer": "p", "task_id": "t", "task_type": "audio"}
    event = json.dumps({**task, "prompt": "a", "output": "b"}).encode()
    opinion = json.dumps({**task, "approved": True}).encode()
    file = terminal.folder / "events.jsonl"
    file.write_bytes(event + b"\n\n" + opinion + b"\n")
    sent = await terminal.type("send", str(file))
    assert (sent.status, sent.err) == (ExitStatus.DONE, "")
    assert sent.out == "2 events sent, 0 lines refused\n"
    piped = await terminal.type("send", "-", "--json", stdin=event + b"\nnonsense\n" + event)
    assert piped.status == ExitStatus.REFUSED
    assert (piped.json["sent"], piped.json["refused"][0]["line"]) == (2, 2)
    assert "line 2: not_json" in piped.err
    ends = await asyncio.to_thread(kafka_broker.end_offsets, outputs)
    assert sum(ends.values()) == 3


async def test_a_file_and_standard_input_are_sent_to_the_daemon_itself(stage: Stage) -> None:
    terminal = stage.terminal
    task = {"producer": "p", "task_id": "t-http", "task_type": "audio"}
    event = json.dumps({**task, "prompt": "a", "output": "b"}).encode()
    opinion = json.dumps({**task, "approved": True}).encode()
    file = terminal.folder / "events.jsonl"
    file.write_bytes(event + b"\n\n" + opinion)
    sent = await terminal.type("send", str(file), "--http")
    assert (sent.status, sent.err) == (ExitStatus.DONE, "")
    assert sent.out == "2 events sent, 0 lines refused\n"
    again = await terminal.type("send", str(file), "--http")
    assert again.out == "2 events sent (2 were there already), 0 lines refused\n"

    piped = await terminal.type(
        "send", "-", "--http", "--json", stdin=event + b"\nnonsense\n" + opinion + b"\n[1]\n"
    )
    assert piped.status == ExitStatus.REFUSED
    assert (piped.json["sent"], piped.json["duplicates"]) == (2, 2)
    assert [one["line"] for one in piped.json["refused"]] == [2, 4]
    assert "line 2: not_json" in piped.err
    wrong = await terminal.type("send", str(file), "--http", "--kind", "feedback", "--json")
    assert wrong.json["refused"][0]["reason"].startswith("invalid: prompt: unknown field")


async def test_sending_to_a_daemon_needs_one(terminal: Terminal) -> None:
    events = terminal.folder / "events.jsonl"
    events.write_text("{}\n")
    away = await terminal.type(
        "send", str(events), "--http", "--url", "http://127.0.0.1:9", LEARND_TOKEN="t"
    )
    assert away.status == ExitStatus.UNREACHABLE
    assert "0 events or more are stored" in away.err
    both = await terminal.type("send", str(events), "--http", "--topic", "outputs")
    assert both.status == ExitStatus.USAGE


async def test_help_names_every_command_and_the_exit_statuses(terminal: Terminal) -> None:
    ran = await terminal.type("--help")
    for command in ("run", "send", "status", "flush", "rollback", "chat", "lineage", "check"):
        assert f"  {command} " in ran.out
    assert "Exit status" in ran.out
