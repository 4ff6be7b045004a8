"""Log lines: one for each fact, in words, without secrets."""

import json
import logging
from collections.abc import Iterator
from datetime import date

import pytest
import structlog

from learning.facts import (
    BatchSealed,
    CandidateDecided,
    EventsExpired,
    EventsForgotten,
    EventsRefused,
    EventsScreened,
    EventsStored,
    Fact,
    FeedbackReset,
    LaunchResolved,
    LoopAdapted,
    ModelShutsDown,
    PartitionFenced,
    Promoted,
    QuarantineReleased,
    RollbackHeldBack,
    RolledBack,
    RunCancelAsked,
    RunCancelled,
    RunFailed,
    RunLaunched,
    RunLost,
    RunShortOfMoney,
    RunTakenOver,
    RunTrained,
    RunWaits,
    SettingsChanged,
    TopicRecreated,
    WebhookReceived,
    WebhookRefused,
)
from learning.lifecycle import EventState
from learning.screening import ScreeningOutcome
from monitoring.logs import DAMPED_SECONDS, Damping, FactLog, configure, in_words, mask_secrets

FACTS: list[tuple[Fact, str]] = [
    (EventsStored("kafka", {("audio", EventState.QUEUED): 2}), "kafka: 2 audio outputs queued"),
    (EventsStored("kafka", dead_letters={"not_json": 1}), "kafka: 1 dead letters: not_json"),
    (EventsStored("kafka", duplicates=3), "kafka: 3 duplicates"),
    (EventsStored("kafka"), "kafka: nothing new"),
    (EventsRefused("http", {"not_json": 2, "empty": 1}), "http: refused: 1 empty, 2 not_json"),
    (TopicRecreated("t", 1, 9, 0), "reading again from 0 instead of 9"),
    (PartitionFenced("t", 1, 3), "t[1]: a write under the claim 3 was refused"),
    (RunTakenOver("audio", "r-1", "alpha"), "run r-1 taken over from node alpha"),
    (RunLost("r-1"), "run r-1 belongs to another daemon now"),
    (
        EventsScreened({("audio", ScreeningOutcome.STOPPED): 2}, {"secrets": 2}),
        "screened: 2 audio outputs stopped, 2 by secrets",
    ),
    (EventsScreened({}), "screened: nothing new"),
    (EventsExpired(4), "4 held events expired"),
    (BatchSealed("audio", "b-1", "r-1", "size", 8, 4, 2, 1), "8 to train, 4 held out"),
    (BatchSealed("audio", "b-1", None, "size", 0, 4, 0, 0), "no run"),
    (RunLaunched("audio", "r-1", 1, "local", "j-1"), "local job j-1"),
    (RunFailed("audio", "r-1", 1, "oom", "no room", retried=False), "no further attempt"),
    (RunWaits("audio", "r-1", "no base model"), "run r-1 waits: no base model"),
    (RunShortOfMoney("audio", "r-1", "no price"), "run r-1 waits for money: no price"),
    (RunCancelAsked("audio", "r-1", "ann", "bad"), "run r-1 is being cancelled by ann: bad"),
    (RunCancelled("audio", "r-1", "ann", ""), "run r-1 cancelled by ann"),
    (LaunchResolved("audio", "r-1", "j-1", "ann"), "made job j-1, says ann"),
    (LaunchResolved("audio", "r-1", None, "ann"), "made no job, says ann"),
    (RunTrained("audio", "r-1", 4.2, 900), "900 tokens in 4.2 s"),
    (
        CandidateDecided("audio", "r-1", "1.0.1-rc.1", "promote", "better", 0.8, 0.4),
        "1.0.1-rc.1: promote: better",
    ),
    (Promoted("audio", "1.0.1", "1.0.0", forced=True, actor="me"), "1.0.1 promoted by force by me"),
    (
        RollbackHeldBack("audio", "1.0.1", "1.0.0", "e = 300", "the limit of a day"),
        "audio: 1.0.1 is not rolled back to 1.0.0: the limit of a day (e = 300)",
    ),
    (RolledBack("audio", "1.0.0", "1.0.1", "me", "worse"), "from 1.0.1 to 1.0.0 by me: worse"),
    (
        QuarantineReleased(7, "web", "trigger", None, more=False, actor="me", reason="ours"),
        "7 events that the firewall stopped (rule trigger, of web) are queued, by me: ours",
    ),
    (
        EventsForgotten(3, 12, 4, 1, 2, ["audio@1.0.3"], "ann"),
        "forgetting 3 by ann: 12 outputs, 4 feedback, 1 dead letters and 2 held-out examples are"
        " gone; tainted: audio@1.0.3",
    ),
    (
        ModelShutsDown("audio", "gpt-a", date(2027, 1, 14), 12),
        "audio: the model gpt-a is shut down in 12 days, on 2027-01-14",
    ),
    (
        LoopAdapted("audio", "relax_validation", 2, "relax_validation: bar 0.020 -> 0.010"),
        "audio: feedback changed the loop (2 times): relax_validation: bar 0.020 -> 0.010",
    ),
    (
        FeedbackReset("audio", 3, "ada", "a prank"),
        "audio: what feedback had changed was taken back by ada: 3 dials: a prank",
    ),
    (
        SettingsChanged(3, ["gate.margin"], "ada", "noise", None),
        "settings changed by ada: gate.margin (revision 3): noise",
    ),
    (
        SettingsChanged(4, ["gate.margin"], "ada", "", 3),
        "settings revision 3 undone by ada: gate.margin (revision 4)",
    ),
    (
        WebhookReceived("fine_tuning.job.failed", True, "wh-1", "job-1", is_new=True),
        "webhook fine_tuning.job.failed about job-1 (delivery wh-1)",
    ),
    (WebhookReceived("x.y", False, "wh-2", None, is_new=False), "delivery wh-2, which came before"),
    (WebhookRefused("bad_signature"), "refused: bad_signature"),
]


@pytest.fixture
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


@pytest.mark.parametrize(("fact", "said"), FACTS)
def test_a_fact_is_one_line_in_words(fact: Fact, said: str) -> None:
    line = in_words(fact)
    assert said in line
    assert "\n" not in line


@pytest.mark.usefixtures("_restored")
def test_json_lines_carry_level_time_and_words(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    FactLog()(RunFailed("audio", "r-1", 1, "oom", "no room", retried=True))
    line = json.loads(capsys.readouterr().err)
    assert line["level"] == "warning"
    assert line["kind"] == "RunFailed"
    assert line["event"].startswith("audio: run r-1 failed")
    assert line["timestamp"].endswith("Z")


@pytest.mark.usefixtures("_restored")
def test_libraries_log_in_the_same_form_and_less(capsys: pytest.CaptureFixture[str]) -> None:
    configure("debug", "json")
    logging.getLogger("aiokafka.consumer").info("chatter")
    logging.getLogger("somebody").info("of %d words", 3)
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "of 3 words"


@pytest.mark.usefixtures("_restored")
def test_an_exception_is_logged_with_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    try:
        raise ValueError("broken")
    except ValueError:
        structlog.get_logger("x").exception("a listener failed")
    line = json.loads(capsys.readouterr().err)
    assert "ValueError: broken" in line["exception"]


@pytest.mark.usefixtures("_restored")
@pytest.mark.parametrize("style", ["json", "console"])
def test_a_secret_is_never_written(capsys: pytest.CaptureFixture[str], style: str) -> None:
    configure("info", "json" if style == "json" else "console")
    log = structlog.get_logger("x")
    log.info(
        "connecting to postgresql://me:hunter2@host/db",
        sasl_password="hunter2",
        token="hunter2",
        settings={"openai_api_key": "hunter2"},
        headers=["Authorization: Bearer hunter2hunter2"],
    )
    written = capsys.readouterr().err
    assert "connecting to postgresql://me:" in written
    assert "hunter2" not in written


def test_numbers_of_tokens_are_no_secrets() -> None:
    assert mask_secrets(None, "info", {"trained_tokens": 9}) == {"trained_tokens": 9}


def test_a_library_that_repeats_itself_is_heard_once_a_minute() -> None:
    now = 0.0
    damping = Damping("aiokafka", lambda: now)

    def complain(
        line: int, logger: str = "aiokafka.conn", level: int = logging.ERROR
    ) -> str | None:
        record = logging.LogRecord(logger, level, "conn.py", line, "no %s", ("answer",), None)
        return record.getMessage() if damping.filter(record) else None

    assert complain(1) == "no answer"
    assert [complain(1) for _ in range(1_234)] == [None] * 1_234
    assert complain(2) == "no answer", "another complaint"
    assert complain(1, logger="daemon") == "no answer", "another library"
    assert complain(1, level=logging.INFO) == "no answer", "no complaint"
    now += DAMPED_SECONDS
    assert complain(1) == "no answer (and 1,234 more like this before)"
    assert complain(1) is None


def test_a_traceback_shows_no_local_variables(capsys: pytest.CaptureFixture[str]) -> None:
    password = "hunter2"
    configure("info", "console")
    try:
        raise ValueError(len(password))
    except ValueError as error:
        structlog.get_logger("t").error("failed", exc_info=error)
    printed = capsys.readouterr().err
    assert "ValueError: 7" in printed
    assert password not in printed.replace('password = "hunter2"', "")
