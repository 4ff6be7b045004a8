"""Log lines: set up once, and one line in words for each fact.

Everything goes to stderr, ours and the libraries', as JSON or for a person. Nothing that
looks like a secret is written, whoever logs it.
"""

import logging
import math
import re
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping
from datetime import date
from typing import Any, Final, Literal

import structlog
from structlog.typing import Processor

from learning.facts import (
    BatchSealed,
    BatchSizeChanged,
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

MASK = "********"
DAMPED_SECONDS = 60.0
NOISY_LIBRARIES = (
    "aiokafka",
    "alembic",
    "httpcore",
    "httpcore2",
    "httpx",
    "httpx2",
    "openai",
    "sqlalchemy",
    "uvicorn",
)

_SECRET_NAME = re.compile(
    r"password|passwd|secret|token(?!s)|api_?key|authorization", re.IGNORECASE
)
_BEARER = re.compile(r"(?i)\b(bearer\s+)[A-Za-z0-9._~+/=-]{8,}")
_URL_PASSWORD = re.compile(r"(\w+://[^\s:/@]*:)[^\s@/]+@")


class Damping(logging.Filter):
    """Lets each complaint of a library through once a minute, with the number of those between.

    A client whose server is away says so ten times a second.
    """

    def __init__(self, library: str, monotonic: Callable[[], float]) -> None:
        super().__init__(library)
        self._monotonic = monotonic
        self._seen: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is written. What is alike comes from the same line of code."""
        if record.levelno < logging.WARNING or not super().filter(record):
            return True
        place = (record.pathname, record.lineno)
        said_at, n_kept_back = self._seen.get(place, (-math.inf, 0))
        now = self._monotonic()
        if now - said_at < DAMPED_SECONDS:
            self._seen[place] = said_at, n_kept_back + 1
            return False
        self._seen[place] = now, 0
        if n_kept_back:
            record.msg = f"{record.getMessage()} (and {n_kept_back:,} more like this before)"
            record.args = None
        return True


def configure(level: str, style: Literal["json", "console"]) -> None:
    """Send every log line of the process to stderr in one form. `level` as in logging."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Processor] = (
        [structlog.processors.format_exc_info, mask_secrets, structlog.processors.JSONRenderer()]
        if style == "json"
        else [
            mask_secrets,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                # The default shows local variables: secrets among them, and seconds of work.
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(Damping("aiokafka", time.monotonic))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in NOISY_LIBRARIES:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def mask_secrets(
    _logger: Any, _method: str, line: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Mask values under names such as `password`, bearer tokens, and passwords in addresses."""
    return {name: _masked(name, value) for name, value in line.items()}


def _masked(name: str, value: Any) -> Any:
    if _SECRET_NAME.search(name):
        return MASK
    if isinstance(value, str):
        return _URL_PASSWORD.sub(rf"\1{MASK}@", _BEARER.sub(rf"\1{MASK}", value))
    if isinstance(value, Mapping):
        return {key: _masked(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_masked("", item) for item in value]
    return value


BAD_NEWS: Final = (
    EventsStored,  # with dead letters
    EventsRefused,
    TopicRecreated,
    PartitionFenced,
    RunFailed,
    RunTakenOver,
    RunLost,
    RunWaits,
    RunShortOfMoney,
    RolledBack,
    EventsForgotten,
    RollbackHeldBack,
    ModelShutsDown,
)


def is_routine(fact: Fact) -> bool:
    """Whether a fact is one of very many that nobody has to see.

    Refused webhooks are: any stranger can make as many as he likes. Whoever refuses them says
    so in its own measure.
    """
    match fact:
        case EventsStored():
            return not fact.dead_letters
        case EventsScreened():
            return not fact.complaints
        case WebhookReceived():
            return not fact.is_new
        case WebhookRefused():
            return True
        case _:
            return False


class FactLog:
    """Writes one line for each fact it is called with."""

    def __init__(self) -> None:
        self._log = structlog.get_logger("learnd")

    def __call__(self, fact: Fact) -> None:
        """Log a fact, bad news as a warning. Does not block."""
        said = in_words(fact)
        fields = {"kind": type(fact).__name__}
        if is_routine(fact):
            self._log.debug(said, **fields)
        elif isinstance(fact, BAD_NEWS):
            self._log.warning(said, **fields)
        else:
            self._log.info(said, **fields)


def in_words(fact: Fact) -> str:
    """A fact as one sentence."""
    match fact:
        case EventsStored():
            return _stored(fact)
        case EventsRefused():
            reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(fact.reasons.items()))
            return f"{fact.source}: refused: {reasons}"
        case TopicRecreated():
            return (
                f"{fact.topic}[{fact.partition}] is another topic than the one read before:"
                f" reading again from {fact.restart_offset} instead of {fact.stored_offset}"
            )
        case PartitionFenced():
            return (
                f"{fact.topic}[{fact.partition}]: a write under the claim {fact.epoch} was"
                " refused, because another consumer owns the partition now"
            )
        case EventsExpired():
            return f"{fact.count} held events expired without a verdict"
        case EventsScreened():
            return _screened(fact)
        case BatchSealed():
            run = fact.run_id or "no run: nothing in it to train"
            return (
                f"{fact.line}: batch {fact.batch_id} sealed by {fact.trigger}:"
                f" {fact.n_train} to train, {fact.n_held_out} held out,"
                f" {fact.n_replay} replayed, {fact.n_retry} tried again ({run})"
            )
        case RunLaunched():
            return (
                f"{fact.line}: run {fact.run_id} launched, attempt {fact.attempt},"
                f" {fact.provider} job {fact.job_id}"
            )
        case RunFailed():
            then = "another attempt follows" if fact.retried else "no further attempt"
            return (
                f"{fact.line}: run {fact.run_id} failed in attempt {fact.attempt}:"
                f" {fact.error}: {fact.message} ({then})"
            )
        case RunWaits():
            return f"{fact.line}: run {fact.run_id} waits: {fact.reason}"
        case RunShortOfMoney():
            return f"{fact.line}: run {fact.run_id} waits for money: {fact.reason}"
        case RunCancelAsked():
            return f"{fact.line}: run {fact.run_id} is being cancelled by {_who(fact)}"
        case RunCancelled():
            return f"{fact.line}: run {fact.run_id} cancelled by {_who(fact)}"
        case LaunchResolved():
            became = "no job" if fact.job_id is None else f"job {fact.job_id}"
            return f"{fact.line}: the launch of run {fact.run_id} made {became}, says {fact.actor}"
        case RunTrained():
            return (
                f"{fact.line}: run {fact.run_id} trained on {fact.trained_tokens} tokens"
                f" in {fact.seconds:.1f} s"
            )
        case RunTakenOver():
            return f"{fact.line}: run {fact.run_id} taken over from node {fact.taken_from}"
        case RunLost():
            return f"run {fact.run_id} belongs to another daemon now: its work here ends"
        case CandidateDecided():
            return f"{fact.line}: {fact.version}: {fact.outcome}: {fact.reason}"
        case Promoted():
            how = "promoted by force" if fact.forced else "promoted"
            return f"{fact.line}: {fact.version} {how} by {fact.actor}, it replaces {fact.replaced}"
        case RolledBack():
            return (
                f"{fact.line}: rolled back from {fact.left} to {fact.version} by {fact.actor}"
                f"{f': {fact.reason}' if fact.reason else ''}"
            )
        case QuarantineReleased():
            asked = (("rule", fact.rule), ("of", fact.producer), ("task type", fact.task_type))
            those = ", ".join(f"{what} {one}" for what, one in asked if one is not None)
            return (
                f"{fact.count} events that the firewall stopped ({those}) are queued, by"
                f" {fact.actor}{f': {fact.reason}' if fact.reason else ''}"
            )
        case EventsForgotten():
            tainted = f"; tainted: {', '.join(fact.versions)}" if fact.versions else ""
            return (
                f"forgetting {fact.forgetting_id} by {fact.actor}: {fact.outputs} outputs,"
                f" {fact.feedback} feedback, {fact.dead_letters} dead letters and"
                f" {fact.held_out} held-out examples are gone{tainted}"
            )
        case RollbackHeldBack():
            return (
                f"{fact.line}: {fact.version} is not rolled back to {fact.predecessor}:"
                f" {fact.reason} ({fact.evidence})"
            )
        case BatchSizeChanged():
            return (
                f"{fact.line}: batch size {fact.before} -> {fact.after} by {fact.actor}"
                f" ({fact.cause}): {fact.reason}"
            )
        case LoopAdapted():
            times = f" ({fact.times} times)" if fact.times > 1 else ""
            return f"{fact.task_type}: feedback changed the loop{times}: {fact.reason}"
        case FeedbackReset():
            return (
                f"{fact.task_type}: what feedback had changed was taken back by {fact.actor}:"
                f" {fact.dials} dials: {fact.reason}"
            )
        case WebhookReceived():
            about = f" about {fact.object_id}" if fact.object_id is not None else ""
            again = "" if fact.is_new else ", which came before"
            return f"webhook {fact.event_type}{about} (delivery {fact.delivery_id}{again})"
        case WebhookRefused():
            return f"a webhook was refused: {fact.reason}"
        case ModelShutsDown():
            return f"{fact.line}: {shutdown_in_words(fact.model, fact.on, fact.days_left)}"
        case SettingsChanged():
            what = f"revision {fact.undoes} undone" if fact.undoes is not None else "changed"
            return (
                f"settings {what} by {fact.actor}: {', '.join(fact.keys)} (revision"
                f" {fact.revision}){f': {fact.reason}' if fact.reason else ''}"
            )


def shutdown_in_words(model: str, on: date, days_left: int) -> str:
    """When a service stops offering a model, as a part of a sentence."""
    if days_left <= 0:
        return f"the model {model} is shut down since {on}"
    return f"the model {model} is shut down in {days_left} days, on {on}"


def _who(fact: RunCancelAsked | RunCancelled) -> str:
    return f"{fact.actor}: {fact.reason}" if fact.reason else fact.actor


def _screened(fact: EventsScreened) -> str:
    parts = [
        f"{n} {task_type} outputs {outcome}"
        for (task_type, outcome), n in sorted(fact.outcomes.items())
    ]
    parts += [f"{n} by {validator}" for validator, n in sorted(fact.complaints.items())]
    return f"screened: {', '.join(parts) or 'nothing new'}"


def _stored(fact: EventsStored) -> str:
    parts = [
        f"{n} {task_type} outputs {state}" for (task_type, state), n in sorted(fact.outputs.items())
    ]
    parts += [
        f"{n} {task_type} feedback {state}"
        for (task_type, state), n in sorted(fact.feedback.items())
    ]
    parts += [
        f"{n} {task_type} outputs became {state}"
        for (task_type, state), n in sorted(fact.rejudged.items())
    ]
    parts += [f"{n} dead letters: {reason}" for reason, n in sorted(fact.dead_letters.items())]
    if fact.duplicates:
        parts.append(f"{fact.duplicates} duplicates")
    return f"{fact.source}: {', '.join(parts) or 'nothing new'}"
