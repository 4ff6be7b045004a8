"""What an operator can set, within which bounds, and what the core makes of it.

A value: `Settings(...)` takes its arguments and reads nothing; daemon/settings_sources.py
reads the file and the environment. No model name, endpoint or key has a default here.
"""

import difflib
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from daemon.webhook_signature import SigningKey, WeakSecretError
from finetune.remote.access import ServiceAccess
from finetune.remote.address import fault_of
from finetune.remote.chat_evaluator import ChatRules, CompareBy
from finetune.remote.chat_service import ChatLimits
from finetune.remote.http_mapping import FineTuneEndpoint, HttpMapping
from finetune.remote.openai_settings import OpenAIRules
from finetune.trainer.protocol import TrainingSettings
from learning.adaptation import AdaptationRules
from learning.batch_sizing import SizeRules
from learning.batching import BatchRules
from learning.budget import Budget, Caps, Price
from learning.cross_task import RELATED, related_to
from learning.events import BUILT_IN_TASK_TYPES, Name
from learning.feedback import FeedbackRules
from learning.firewall import FirewallRules, Rule
from learning.gate import GateRules
from learning.lines import ModelLine, ModelLines, TaskTypeClaimedTwiceError
from learning.live_verdict import VerdictRules
from learning.policy import Policy
from learning.preferences import Objective
from learning.sampling import ReplayStrategy, SplitRules
from learning.screening import (
    AUTO,
    CODE_TASK_TYPES,
    OFF,
    REGEX,
    PiiMode,
    ScreeningRules,
    TaskRules,
)
from learning.styles import MOODS

ENV_PREFIX = "LEARND_"
MASK = "********"

LOCAL_PROVIDERS = frozenset({"local", "huggingface"})
"""Names of the provider whose training settings are checked here."""

LINE_TRAINING: Mapping[str, Any] = {"schedule": "constant", "averaged_share": 0.5}
"""How a line's runs differ from a single training, where the settings say nothing.

A line goes on with each batch: a rate that had fallen to zero would have to be raised again,
which undoes a part of what was learned. See docs/memory.md.
"""

SECRET_WORDS = frozenset(
    {"auth", "apikey", "credential", "credentials", "key", "password", "secret", "token"}
)
"""What a provider calls by a name with one of these words may be a secret."""

KeyPath = tuple[str, ...]
"""A setting's place; not a dotted text, because the name of a line may contain dots."""

# --- types ----------------------------------------------------------------------------


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _file(path: Path) -> Path:
    if not path.is_file():
        raise PydanticCustomError("no_file", "there is no such file")
    return path


def _database(url: str) -> str:
    if re.match(r"(sqlite(\+pysqlite)?|postgres|postgresql(\+psycopg)?)://", url) is None:
        raise PydanticCustomError(
            "database",
            "an address is needed, such as sqlite:////var/lib/learnd/l.db"
            " or postgresql://learnd:PASSWORD@db-1/learnd",
        )
    return url


def _no_bool(value: object) -> object:
    """Python would count `true` as 1, of whatever currency."""
    if isinstance(value, bool):
        raise PydanticCustomError("a_number", "a number is needed here")
    return value


def _sendable(key: SecretStr) -> SecretStr:
    stripped = key.get_secret_value().strip()
    # What no header can carry would be told by whoever fails to send it, key and all.
    if re.fullmatch(r"[!-~]+", stripped) is None:
        raise PydanticCustomError("key", "a key has letters, digits and signs of ASCII, no spaces")
    return SecretStr(stripped)


def _listed(value: object) -> object:
    """An environment variable lists its items with commas."""
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return value


def _day(value: object) -> object:
    """A number is a date nowhere but in a library."""
    if isinstance(value, str) or type(value) is date:
        return value
    raise PydanticCustomError("day", "a date is needed here, such as 2027-01-14")


def _signing_secret(secret: SecretStr) -> SecretStr:
    try:
        SigningKey.of(secret.get_secret_value())
    except WeakSecretError as error:
        raise PydanticCustomError("weak_secret", "{why}", {"why": str(error)}) from None
    return secret


Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
PartialShare = Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0.0, le=31_536_000.0, allow_inf_nan=False)]
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
"""`~` is the home directory; a relative path starts at the working directory."""
File = Annotated[AbsolutePath, AfterValidator(_file)]
DatabaseUrl = Annotated[str, AfterValidator(_database)]
Topic = Annotated[
    str, StringConstraints(min_length=1, max_length=249, pattern=r"^[A-Za-z0-9._-]+$")
]
Topics = Annotated[tuple[Topic, ...], BeforeValidator(_listed), Field(min_length=1)]
HttpUrl = Annotated[str, StringConstraints(pattern=r"^https?://[^\s/]+\S*$", max_length=2_000)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=10_000)]
AdaptingKey = Literal["policy.feedback_threshold", "policy.enable_auto_approval"]
Day = Annotated[date, BeforeValidator(_day)]
ApiKey = Annotated[SecretStr, AfterValidator(_sendable)]
"""Goes into a header. White space around it, as at the end of a file, is no part of it."""


def _refuse_bool_as_number(value: object, field: FieldInfo | None) -> object:
    """`batch_size: yes` is a mistake, though Python would count it as 1."""
    if isinstance(value, bool) and field is not None and field.annotation in (int, float):
        raise PydanticCustomError("a_number", "a number is needed here")
    return value


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    changeable: ClassVar[frozenset[str]] = frozenset()
    """Those that can be changed while learnd runs. Never an address, a folder or a secret."""

    @field_validator("*", mode="before")
    @classmethod
    def _numbers(cls, value: object, info: ValidationInfo) -> object:
        return _refuse_bool_as_number(value, cls.model_fields.get(info.field_name or ""))


# --- sections -------------------------------------------------------------------------


class HttpSettings(_Section):
    """Where the API listens, and what a sender of events may ask of it."""

    host: Text = "127.0.0.1"
    port: int = Field(8700, ge=0, le=65_535)
    """0 takes a free one."""
    max_stream_bytes: int = Field(1_073_741_824, ge=1_000, le=2**53)
    """Of one NDJSON body, after decompression."""
    body_seconds: float = Field(30.0, ge=0.1, le=3_600.0, allow_inf_nan=False)
    """A single event, or one line of a stream, has to arrive within so long."""
    events_per_second: float = Field(10_000.0, gt=0, le=1e9, allow_inf_nan=False)
    """What one address may send for long."""
    burst_events: int = Field(20_000, ge=1, le=1_000_000_000)
    """What one address may send at once after a rest."""


class KafkaSettings(_Section):
    """The broker, and what is read from it. Without servers no Kafka is used."""

    bootstrap_servers: str = Field("", max_length=10_000)
    """host:port, several with commas."""
    group_id: Text = "learnd"
    outputs_topics: Topics = ("learnd.outputs",)
    feedback_topics: Topics = ("learnd.feedback",)
    dead_letter_topic: Topic | None = None
    """Each dead letter is copied to it; it has to exist."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    sasl_username: Text | None = None
    sasl_password: SecretStr | None = None
    ssl_cafile: File | None = None
    ssl_certfile: File | None = None
    ssl_keyfile: File | None = None
    max_records: int = Field(2_000, ge=1, le=100_000)
    """Records that are fetched and stored together."""
    max_message_bytes: int = Field(1_000_000, ge=1_000, le=100_000_000)
    """A larger record is a dead letter."""
    max_batch_bytes: int = Field(8_000_000, ge=1_000, le=1_000_000_000)
    """A compressed batch that inflates to more is one dead letter; bounds memory and stalls."""
    session_timeout_seconds: float = Field(10.0, ge=0.5, le=1_800.0, allow_inf_nan=False)
    """A daemon that was killed holds its partitions for so long; the broker bounds it too."""

    @field_validator("bootstrap_servers", mode="before")
    @classmethod
    def _joined(cls, value: object) -> object:
        """A list in the file is as good as a text with commas."""
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            return ",".join(value)
        return value

    @field_validator("bootstrap_servers")
    @classmethod
    def _addresses(cls, value: str) -> str:
        for server in filter(None, (part.strip() for part in value.split(","))):
            host, _, port = server.rpartition(":")
            if not host or not port.isdecimal():
                raise PydanticCustomError(
                    "servers", "each server is host:port, with commas between several of them"
                )
        return value.replace(" ", "")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        shared = set(self.outputs_topics) & set(self.feedback_topics)
        if shared:
            raise PydanticCustomError(
                "topics",
                "{topics} is named for outputs and for feedback: a topic carries one kind of event",
                {"topics": ", ".join(sorted(shared))},
            )
        if self.dead_letter_topic in {*self.outputs_topics, *self.feedback_topics}:
            raise PydanticCustomError(
                "dead_letters",
                "dead_letter_topic {topic} is one of those that are read: letters would go round",
                {"topic": self.dead_letter_topic},
            )
        missing = [
            name
            for name in ("sasl_mechanism", "sasl_username", "sasl_password")
            if getattr(self, name) is None
        ]
        if self.security_protocol.startswith("SASL") and missing:
            raise PydanticCustomError(
                "sasl",
                "security_protocol {protocol} needs {missing} too",
                {"protocol": self.security_protocol, "missing": ", ".join(missing)},
            )
        if self.max_batch_bytes < self.max_message_bytes:
            raise PydanticCustomError(
                "batch",
                "max_batch_bytes {batch} is smaller than max_message_bytes {message}",
                {"batch": self.max_batch_bytes, "message": self.max_message_bytes},
            )
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise PydanticCustomError("ssl", "ssl_certfile and ssl_keyfile belong together")
        return self

    @property
    def configured(self) -> bool:
        """Whether there is a broker to read from."""
        return bool(self.bootstrap_servers)


def _watched(path: Path) -> Path:
    if any("**" in part and part != "**" for part in path.parts):
        raise PydanticCustomError("glob", "** stands for folders, and alone between two slashes")
    return path


Watched = Annotated[
    tuple[Annotated[AbsolutePath, AfterValidator(_watched)], ...], BeforeValidator(_listed)
]
"""Folders, whose *.jsonl are meant, globs, or files."""


class FileSettings(_Section):
    """JSONL files that are followed as they grow."""

    outputs: Watched = ()
    feedback: Watched = ()

    @property
    def configured(self) -> bool:
        """Whether there is anything to follow."""
        return bool(self.outputs or self.feedback)


class IntakeSettings(_Section):
    """Where events come from, beside Kafka and HTTP."""

    files: FileSettings = FileSettings()
    reader_process: bool = True
    """Whether large blocks are read in a process of their own; see consumers/reader_process.py."""


class PolicySettings(_Section):
    """The bars that an output has to clear (LP1, LP2)."""

    changeable = frozenset(
        {
            "min_confidence",
            "enable_auto_approval",
            "feedback_threshold",
            "hold_days",
            "learn_from_rejected",
            "learning_rate",
            "adaptive",
        }
    )

    min_confidence: Share = 0.7
    enable_auto_approval: bool = False
    feedback_threshold: Share = 0.7
    hold_days: float = Field(7.0, gt=0, le=3_650, allow_inf_nan=False)
    learning_rate: float = Field(0.1, gt=0, le=1, allow_inf_nan=False)
    """How strongly feedback moves what it moves; the trainer's rate is finetune.training's."""
    max_output_characters: int = Field(100_000, ge=1, le=1_000_000)
    unknown_task_types: Literal["dead_letter", "accept"] = "dead_letter"
    learn_from_rejected: bool = False
    """Whether rejected outputs go into batches, to be learned from by dpo or kto."""
    adaptive: bool = True
    """Whether auto-approval and its bar follow what people say; see learning.adaptation."""


class AdaptationSettings(_Section):
    """When settings adapt by themselves, and how far; see learning.adaptation."""

    changeable = frozenset(
        {
            "low_success",
            "good_success",
            "raised_threshold",
            "high_confidence",
            "fading_confidence",
            "min_judged",
            "min_confidences",
            "window_hours",
            "dwell_hours",
            "respect_days",
            "max_changes_a_day",
            "pinned",
            "every_seconds",
        }
    )

    low_success: Share = 0.7
    """Below it policy.feedback_threshold goes up."""
    good_success: Share = 0.8
    """From it on, once proven, it goes back."""
    raised_threshold: Share = 0.8
    high_confidence: Share = 0.95
    """Above it auto-approval goes on, if people agree."""
    fading_confidence: Share = 0.9
    """Below it auto-approval goes off again."""
    min_judged: int = Field(50, ge=1, le=1_000_000)
    """Verdicts of people that are needed."""
    min_confidences: int = Field(100, ge=1, le=1_000_000)
    window_hours: float = Field(24.0, ge=1, le=168, allow_inf_nan=False)
    dwell_hours: float = Field(6.0, ge=0, le=8_760, allow_inf_nan=False)
    respect_days: float = Field(7.0, ge=0, le=3_650, allow_inf_nan=False)
    """So long a setting is left alone that a person changed or took back."""
    max_changes_a_day: int = Field(4, ge=0, le=100)
    pinned: Annotated[tuple[AdaptingKey, ...], BeforeValidator(_listed)] = ()
    """Settings that never adapt."""
    every_seconds: float = Field(60.0, ge=0.1, le=86_400.0, allow_inf_nan=False)
    """How often it is thought over."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for low, high in (
            ("low_success", "good_success"),
            ("fading_confidence", "high_confidence"),
        ):
            if getattr(self, low) > getattr(self, high):
                raise PydanticCustomError(
                    "adaptation",
                    "{low} is above {high}: what goes one way there would go back at once",
                    {"low": low, "high": high},
                )
        return self


class FeedbackSettings(_Section):
    """What feedback may change in the loop, and how far; see learning.feedback."""

    changeable = frozenset(
        {
            "adapt",
            "min_feedback",
            "min_producers",
            "max_offset",
            "max_offset_a_day",
            "min_trust",
            "metrics",
            "learned_metrics",
            "lower_is_better",
            "moods",
        }
    )

    adapt: bool = True
    """Off, nothing turns; what turned before fades."""
    min_feedback: int = Field(8, ge=1, le=10_000)
    min_producers: int = Field(2, ge=1, le=100)
    """So many producers have to stand behind a change; each has an equal share of a day."""
    max_offset: float = Field(0.15, ge=0.0, le=0.5, allow_inf_nan=False)
    max_offset_a_day: float = Field(0.05, ge=0.0, le=0.5, allow_inf_nan=False)
    min_trust: float = Field(0.3, ge=0.0, le=0.5, allow_inf_nan=False)
    """0 distrusts nobody."""
    metrics: Annotated[tuple[Name, ...], BeforeValidator(_listed), Field(max_length=64)] = ()
    """Those that count in any case; beside them `learned_metrics` names of each task type."""
    learned_metrics: int = Field(16, ge=0, le=128)
    lower_is_better: Annotated[
        tuple[Name, ...], BeforeValidator(_listed), Field(max_length=64)
    ] = ()
    moods: Annotated[
        dict[Name, Annotated[str, StringConstraints(min_length=1, max_length=500)]],
        Field(max_length=64),
    ] = Field(default_factory=lambda: dict(MOODS))
    """Mood -> the sentence that it adds to prompts that generate. Replaces those as shipped."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.min_producers > self.min_feedback:
            raise PydanticCustomError(
                "evidence",
                "min_producers {producers} is more than min_feedback {feedback}",
                {"producers": self.min_producers, "feedback": self.min_feedback},
            )
        return self


class QueueSettings(_Section):
    """When a queue becomes a batch. Sizes are in events."""

    changeable = frozenset(
        {
            "batch_size",
            "max_queue_size",
            "max_wait_seconds",
            "adaptive",
            "min_batch_size",
            "max_batch_size",
            "max_size_changes_a_day",
        }
    )

    batch_size: int = Field(20, ge=1, le=100_000)
    max_queue_size: int = Field(100, ge=1, le=1_000_000)
    max_wait_seconds: Seconds = 900.0
    high_water: int = Field(100_000, ge=1, le=1_000_000_000)
    """So many events of all task types may wait; then outputs wait where they come from."""
    low_water: int = Field(80_000, ge=1, le=1_000_000_000)
    """Below it they are taken again."""
    adaptive: bool = True
    """Whether a line's batch size follows its stream and its runs; see learning.batch_sizing."""
    min_batch_size: int | None = Field(None, ge=1, le=100_000)
    """Adapting never goes below; without one, not below batch_size."""
    max_batch_size: int | None = Field(None, ge=1, le=1_000_000)
    """Adapting never goes above; without one, not above max_queue_size."""
    max_size_changes_a_day: int = Field(4, ge=0, le=1_000)
    """Automatic changes of one line's size in 24 hours."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.high_water < self.low_water:
            raise PydanticCustomError(
                "water",
                "high_water {high} is smaller than low_water {low}",
                {"high": self.high_water, "low": self.low_water},
            )
        if self.max_queue_size < self.batch_size:
            raise PydanticCustomError(
                "queue",
                "max_queue_size {full} is smaller than batch_size {size}",
                {"full": self.max_queue_size, "size": self.batch_size},
            )
        least = self.batch_size if self.min_batch_size is None else self.min_batch_size
        most = self.max_queue_size if self.max_batch_size is None else self.max_batch_size
        if not least <= self.batch_size <= most <= self.max_queue_size:
            raise PydanticCustomError(
                "queue",
                "needed: min_batch_size {least} <= batch_size {size}"
                " <= max_batch_size {most} <= max_queue_size {full}",
                {
                    "least": least,
                    "size": self.batch_size,
                    "most": most,
                    "full": self.max_queue_size,
                },
            )
        return self


def _off(value: object) -> object:
    """YAML reads `off` as false."""
    return "off" if value is False else value


def _pattern(pattern: str) -> str:
    if pattern.startswith(REGEX):
        try:
            re.compile(pattern.removeprefix(REGEX))
        except re.error as error:
            raise PydanticCustomError(
                "pattern", "no regular expression: {why}", {"why": str(error)}
            ) from None
    return pattern


def _schema(schema: dict[str, Any]) -> dict[str, Any]:
    # Imported here: a daemon without a schema has no use for it.
    from consumers.screening.json_schema import fault_of_schema

    if (fault := fault_of_schema(schema)) is not None:
        raise PydanticCustomError("schema", "no usable JSON Schema: {why}", {"why": fault})
    return schema


CodeLanguage = Annotated[
    Literal["auto", "off", "python", "javascript", "typescript", "json"], BeforeValidator(_off)
]
JsonSchema = Annotated[dict[str, Any], AfterValidator(_schema)]
NaturalLanguages = Annotated[
    tuple[Annotated[str, StringConstraints(pattern=r"^[a-z]{2}$")], ...], BeforeValidator(_listed)
]
BannedPatterns = tuple[
    Annotated[str, StringConstraints(min_length=1, max_length=1_000), AfterValidator(_pattern)],
    ...,
]
Pii = Annotated[PiiMode, BeforeValidator(_off)]
Region = Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")]
Names = Annotated[tuple[Name, ...], BeforeValidator(_listed)]


class TaskScreeningSettings(_Section):
    """The costly validators of one task type; what is missing is taken from the section."""

    syntax: CodeLanguage | None = None
    json_schema: JsonSchema | None = None
    languages: NaturalLanguages | None = None
    banned_patterns: BannedPatterns | None = None
    secrets: bool | None = None
    pii: Pii | None = None
    phone_region: Region | None = None
    skip: Names | None = None


class ScreeningSettings(_Section):
    """What stored outputs have to pass before they are sealed; see docs/validators.md."""

    changeable = frozenset(
        {
            "enabled",
            "seconds",
            "syntax",
            "json_schema",
            "languages",
            "banned_patterns",
            "secrets",
            "pii",
            "phone_region",
            "skip",
            "task_types",
        }
    )

    enabled: bool = True
    """Off, no costly validator runs."""
    seconds: float = Field(2.0, ge=0.05, le=600.0, allow_inf_nan=False)
    """For one validator and one event; one that takes longer is killed, and stops the event."""
    memory_mib: int = Field(1_024, ge=256, le=1_048_576)
    """Address space of the process that they run in."""
    idle_seconds: Seconds = 120.0
    """How long that process is kept after its last event."""
    syntax: CodeLanguage | None = None
    """`auto` parses what is marked as code; without a value `auto` for coding, game, website."""
    json_schema: JsonSchema | None = None
    """What every answer has to be valid against."""
    languages: NaturalLanguages = ()
    """ISO 639-1 codes of the languages in which answers are expected; none: any."""
    banned_patterns: BannedPatterns = ()
    """What no answer may have in it, in any case of letters; `re:` begins a regular expression."""
    secrets: bool = True
    """Whether keys, tokens and private keys stop an output."""
    pii: Pii = PiiMode.SCRUB
    """Personal data: `hold` stops the output, `scrub` puts placeholders in its place."""
    phone_region: Region | None = None
    """ISO 3166 code of the country whose phone numbers need no country code."""
    skip: Names = ()
    """Names of validators that are left out."""
    task_types: dict[Name, TaskScreeningSettings] = Field(default_factory=dict)
    """What differs for a task type."""

    def rules(self) -> ScreeningRules:
        """The rules, as the core knows them."""
        return ScreeningRules(
            default=self._task_rules(None),
            task_types={
                name: self._task_rules(name) for name in {*self.task_types, *CODE_TASK_TYPES}
            },
            enabled=self.enabled,
            seconds=self.seconds,
        )

    def _task_rules(self, task_type: str | None) -> TaskRules:
        own = self.task_types.get(task_type or "", TaskScreeningSettings())
        told = {
            name: getattr(self, name) if (value := getattr(own, name)) is None else value
            for name in TaskScreeningSettings.model_fields
        }
        if told["syntax"] is None:
            told["syntax"] = AUTO if task_type in CODE_TASK_TYPES else OFF
        return TaskRules(**told)


class FirewallSettings(_Section):
    """What approved events are stopped for, so that nobody poisons a model; docs/firewall.md."""

    changeable = frozenset(
        {
            "enabled",
            "off",
            "remembered",
            "max_repeats",
            "max_near_repeats",
            "near_likeness",
            "max_same_answers",
            "min_evidence",
            "surprise_margin",
            "overlap_margin",
            "max_usual_surprise",
            "trigger_events",
            "trigger_share",
            "outlier_deviations",
            "max_producer_events_a_day",
            "max_producer_share",
            "max_topic_events_a_day",
            "max_topic_share",
            "quota_min_events",
            "quota_min_producers",
        }
    )

    enabled: bool = True
    off: Annotated[tuple[Rule, ...], BeforeValidator(_listed)] = ()
    """Rules that stop nothing."""
    remembered: int = Field(5_000, ge=100, le=100_000)
    """Kinds of events of a task type that new ones are compared with."""
    max_repeats: int = Field(10, ge=1, le=100_000)
    """So many of exactly one kind may train, of one producer."""
    max_near_repeats: int = Field(10, ge=1, le=100_000)
    """So many that are nearly one kind, where answers are free text."""
    near_likeness: float = Field(0.8, ge=0.5, le=1.0, allow_inf_nan=False)
    """The share of three words in a row in common from which on texts are nearly the same."""
    max_same_answers: int = Field(10, ge=1, le=100_000)
    """To so many prompts a producer may give one free text; all together three times as many."""
    min_evidence: int = Field(100, ge=32, le=100_000)
    """Below so many cleared events of a task type nothing is usual or surprising."""
    surprise_margin: float = Field(4.0, ge=1.0, le=100.0, allow_inf_nan=False)
    """In nats: by so much another label fits the prompt better."""
    overlap_margin: Share = 0.35
    """By so much fewer of a free text's words are in its prompt than of four in five others."""
    max_usual_surprise: Share = 0.2
    """Where more of the median producer's events surprise, none is stopped for it."""
    trigger_events: int = Field(4, ge=2, le=100_000)
    trigger_share: float = Field(0.2, gt=0.0, le=1.0, allow_inf_nan=False)
    """So many, and such a share, of a phrase's events surprised: the others stop too."""
    outlier_deviations: float = Field(8.0, ge=3.0, le=1_000.0, allow_inf_nan=False)
    max_producer_events_a_day: int = Field(50_000, ge=1, le=1_000_000_000)
    """Of a task type; quotas count where there are quota_min_producers and quota_min_events."""
    max_producer_share: float = Field(1.0, gt=0.0, le=1.0, allow_inf_nan=False)
    max_topic_events_a_day: int | None = Field(None, ge=1, le=1_000_000_000)
    max_topic_share: float = Field(1.0, gt=0.0, le=1.0, allow_inf_nan=False)
    quota_min_events: int = Field(500, ge=1, le=1_000_000_000)
    quota_min_producers: int = Field(3, ge=1, le=256)

    def rules(self) -> FirewallRules:
        """The bounds, as the core knows them."""
        told = {name: getattr(self, name) for name in type(self).model_fields}
        return FirewallRules(**{**told, "off": frozenset(self.off)})


class SplitSettings(_Section):
    """Who is held out, and what is repeated against forgetting; see learning.sampling."""

    changeable = frozenset(
        {
            "held_out_share",
            "starting_share",
            "wanted_held_out",
            "replay_share",
            "replay_strategy",
            "cross_task_share",
            "cross_task_learning",
            "related_task_types",
            "rejected_share",
        }
    )

    held_out_share: PartialShare = 0.2
    starting_share: PartialShare = 0.5
    wanted_held_out: int = Field(32, ge=0, le=1_000_000)
    replay_share: PartialShare = 0.75
    """Of a batch's training rows; 0 repeats nothing."""
    replay_strategy: ReplayStrategy = ReplayStrategy.BALANCED
    """`balanced` evens out task types and ages; `reservoir` gives each old event one chance."""
    cross_task_share: PartialShare = 0.1
    """Of a batch's training rows, from related task types of other lines."""
    cross_task_learning: bool = True
    """Off, nothing of another line is mixed in."""
    related_task_types: dict[Name, Annotated[tuple[Name, ...], BeforeValidator(_listed)]] = Field(
        default_factory=dict
    )
    """For a task type those that it learns from, where that differs from the map as shipped."""
    rejected_share: PartialShare = 0.5
    """Rejected outputs are at most so much of a batch's rows, where a line learns from them."""


class GateSettings(_Section):
    """What a candidate has to prove; see learning.gate."""

    changeable = frozenset(
        {
            "min_evidence",
            "wanted_evidence",
            "margin",
            "regression_margin",
            "negligible_loss",
            "related_margin",
            "related_evidence",
            "significance",
            "recent_evidence",
            "older_evidence",
        }
    )

    min_evidence: int = Field(8, ge=2, le=1_000_000)
    wanted_evidence: int = Field(32, ge=2, le=1_000_000)
    margin: PartialShare = 0.05
    regression_margin: float = Field(0.25, ge=0, le=10, allow_inf_nan=False)
    """By so much a task type, or the older examples, may get worse."""
    negligible_loss: float = Field(0.01, ge=0, le=10, allow_inf_nan=False)
    """And by so much more, in nats per byte."""
    related_margin: float = Field(0.5, ge=0, le=10, allow_inf_nan=False)
    """By so much a related task type of another line may get worse."""
    related_evidence: int = Field(32, ge=0, le=1_000_000)
    """Held-out examples of each related task type that are looked at; 0 guards none."""
    significance: float = Field(0.05, gt=0, le=0.5, allow_inf_nan=False)
    recent_evidence: int = Field(64, ge=2, le=1_000_000)
    older_evidence: int = Field(192, ge=0, le=1_000_000)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.min_evidence <= self.wanted_evidence <= self.recent_evidence:
            raise PydanticCustomError(
                "gate",
                "needed: min_evidence {least} <= wanted_evidence {wanted}"
                " <= recent_evidence {recent}",
                {
                    "least": self.min_evidence,
                    "wanted": self.wanted_evidence,
                    "recent": self.recent_evidence,
                },
            )
        return self


class VerdictSettings(_Section):
    """What people's verdicts on released versions lead to; see learning.live_verdict."""

    changeable = frozenset(
        {
            "automatic_rollback",
            "level",
            "level_without_one",
            "margin",
            "min_evidence",
            "settled_after",
            "min_producers",
            "max_rollbacks_a_day",
            "spare_forced_hours",
            "canary_share",
        }
    )

    automatic_rollback: bool = True
    """Off, a worse champion is reported, and stays."""
    level: float = Field(0.01, ge=1e-9, le=0.2, allow_inf_nan=False)
    """The chance that a champion that is not worse is ever called worse."""
    level_without_one: float = Field(0.05, ge=1e-9, le=0.5, allow_inf_nan=False)
    """The same where any one producer of feedback lies."""
    margin: float = Field(0.0, ge=0, le=0.5, allow_inf_nan=False)
    """So much lower an approval rate is not worse yet."""
    min_evidence: int = Field(30, ge=10, le=1_000_000)
    """Verdicts on each of the two versions, before anything follows."""
    settled_after: int = Field(5_000, ge=100, le=100_000_000)
    """Verdicts on the champion, after which nothing follows any more."""
    min_producers: int = Field(2, ge=1, le=2)
    """1: verdicts of a single producer suffice."""
    max_rollbacks_a_day: int = Field(1, ge=0, le=100)
    """Automatic ones of one line, in 24 hours."""
    spare_forced_hours: float = Field(24.0, ge=0, le=87_600, allow_inf_nan=False)
    """So long a champion that an operator chose by hand is not rolled back."""
    canary_share: float = Field(0.2, ge=0, le=0.5, allow_inf_nan=False)
    """Of the traffic, for the version before while the verdict is open."""


class FineTuneSettings(_Section):
    """How a run is made, unless its model line says otherwise."""

    changeable = frozenset(
        {
            "base_model",
            "training",
            "max_attempts",
            "retry_base_seconds",
            "retry_max_seconds",
            "timeout_seconds",
        }
    )

    provider: Name = "local"
    base_model: Text | None = None
    """A directory or a hub name. Without one nothing can be trained."""
    training: dict[str, Any] = Field(default_factory=dict)
    """The provider's own settings; for a local one those of finetune.trainer.protocol."""
    max_attempts: int = Field(3, ge=1, le=100)
    retry_base_seconds: Seconds = 10.0
    retry_max_seconds: Seconds = 600.0
    timeout_seconds: Seconds = 14_400.0
    no_progress_seconds: Seconds = 1_800.0
    """How long a local trainer may be busy without progress. To load a model is no progress."""
    trainer_warm: bool = True
    """Keep the trainer process, its libraries and the loaded base from one run to the next."""
    trainer_idle_seconds: Seconds = 300.0
    """How long the trainer process is kept warm after its last request."""
    trainer_memory_mib: int = Field(4_096, ge=64, le=16_777_216)
    """A trainer that holds more main memory after a request is not kept."""
    trainer_ahead_share: float = Field(0.8, ge=0, le=1, allow_inf_nan=False)
    """With so much of a batch waiting a trainer is made ready ahead; 0 never does that."""
    lease_seconds: float = Field(30.0, ge=1.0, le=3_600.0, allow_inf_nan=False)
    """A daemon that is silent for so long loses its runs to another one."""
    node_gone_seconds: Seconds = 3_600.0
    """A local run waits so much longer for its node, before it starts elsewhere."""
    tensorboard_dir: AbsolutePath | None = None
    """Each local run writes TensorBoard's event files into a folder of its id in here."""


class LineSettings(_Section):
    """One model line; what is missing is taken from the finetune section."""

    changeable = frozenset(
        {
            "base_model",
            "training",
            "system_prompts",
            "replay_share",
            "replay_strategy",
            "cross_task_share",
            "rejected_share",
            "learn_from_rejected",
        }
    )

    task_types: Annotated[tuple[Name, ...], BeforeValidator(_listed)] = ()
    """The task types it learns from; by default the one of its own name."""
    base_model: Text | None = None
    provider: Name | None = None
    training: dict[str, Any] = Field(default_factory=dict)
    """Keys that differ from finetune.training."""
    system_prompts: dict[Name, Text] = Field(default_factory=dict)
    """By task type."""
    replay_share: PartialShare | None = None
    replay_strategy: ReplayStrategy | None = None
    cross_task_share: PartialShare | None = None
    rejected_share: PartialShare | None = None
    """These four as in the split section."""
    learn_from_rejected: bool | None = None
    """As in the policy section."""


class RemoteSettings(_Section):
    """Services elsewhere, for providers that use them."""

    changeable = frozenset({"shutdown_dates"})

    llm_endpoint: HttpUrl | None = None
    """Where remote versions answer, in OpenAI's chat protocol."""
    llm_api_key: ApiKey | None = None
    llm_model: Text | None = None
    """The model there that answers tasks; without one each line's champion does."""
    compare_by: CompareBy = CompareBy.AUTO
    """What remote versions are judged by."""
    scorer: Name = "chrf"
    """Which scorer makes a loss of an answer."""
    max_answer_tokens: int = Field(1_024, ge=1, le=1_048_576)
    """Of an answer that is judged; the service cuts it there."""
    chat_timeout_seconds: Seconds = 60.0
    """For one request to the chat endpoint, and the whole of its answer."""
    chat_concurrency: int = Field(8, ge=1, le=100)
    """Requests to the chat endpoint at a time, of one evaluation."""
    chat_retries: int = Field(10, ge=0, le=100)
    """Of a request that failed for a moment; the run has retries of its own beyond them."""
    chat_longest_wait_seconds: Seconds = 60.0
    """Before such a retry, whatever the service asks for."""
    finetune_endpoint: HttpUrl | None = None
    """Where the provider `http` trains."""
    finetune_api_key: ApiKey | None = None
    http: HttpMapping = HttpMapping()
    """How the provider `http` speaks to its endpoint."""
    openai_endpoint: HttpUrl | None = None
    """Where the provider `openai` trains: any service that speaks OpenAI's protocol."""
    openai_api_key: ApiKey | None = None
    openai_webhook_secret: Annotated[SecretStr, AfterValidator(_signing_secret)] | None = None
    """What the webhooks of that service are signed with; without one none is received."""
    openai_poll_seconds: Seconds = 30.0
    """Between two looks at a job of the provider `openai`."""
    openai_timeout_seconds: Seconds = 60.0
    openai_tries: int = Field(5, ge=1, le=100)
    """Of one request to that service, the first included; each pause is twice the one before."""
    openai_retry_seconds: Seconds = 0.5
    openai_retry_max_seconds: Seconds = 60.0
    openai_delete_files: bool = True
    openai_monitoring_url: HttpUrl | None = None
    """Where a person looks at a job; `{job_id}` stands for its id."""
    allow_plain_http: bool = False
    """Whether an endpoint may be http:// where it is not this machine."""
    shutdown_dates: dict[Text, Day] = Field(default_factory=dict)
    """By model, the day from which its service offers it no longer; in UTC."""

    @model_validator(mode="after")
    def _addresses_may_be_used(self) -> Self:
        for name, access in self.services().items():
            fault = fault_of(access.base_url, allow_plain=self.allow_plain_http)
            if fault is not None:
                raise _fault(("remote", name), fault)
        return self

    def services(self) -> Mapping[str, ServiceAccess]:
        """Every service that is named, by the name of its setting in this section."""
        named = {
            "llm_endpoint": self._access("llm_endpoint", self.llm_api_key),
            "openai_endpoint": self._access("openai_endpoint", self.openai_api_key),
            "finetune_endpoint": self._access("finetune_endpoint", self.finetune_api_key),
        }
        return {name: access for name, access in named.items() if access is not None}

    def openai_rules(self) -> OpenAIRules:
        """How the service of the provider `openai` is asked."""
        return OpenAIRules(
            poll=timedelta(seconds=self.openai_poll_seconds),
            timeout=timedelta(seconds=self.openai_timeout_seconds),
            tries=self.openai_tries,
            retry_base=timedelta(seconds=self.openai_retry_seconds),
            retry_cap=timedelta(seconds=self.openai_retry_max_seconds),
            delete_files=self.openai_delete_files,
            monitoring_url=self.openai_monitoring_url,
        )

    def training_service(self) -> ServiceAccess | None:
        """Where the provider `openai` trains; where models answer, unless told otherwise."""
        named = self.services()
        return named.get("openai_endpoint") or named.get("llm_endpoint")

    def webhook_key(self) -> SigningKey | None:
        """What webhooks are signed with."""
        secret = self.openai_webhook_secret
        return None if secret is None else SigningKey.of(secret.get_secret_value())

    def chat_service(self) -> ServiceAccess | None:
        """Where remote versions answer; where they are trained, unless told otherwise."""
        return self.services().get("llm_endpoint") or self.training_service()

    def chat_rules(self) -> ChatRules:
        """How remote versions are measured."""
        return ChatRules(
            compare_by=self.compare_by,
            scorer=self.scorer,
            limits=ChatLimits(
                timeout=timedelta(seconds=self.chat_timeout_seconds),
                concurrency=self.chat_concurrency,
                retries=self.chat_retries,
                longest_wait=timedelta(seconds=self.chat_longest_wait_seconds),
                max_answer_tokens=self.max_answer_tokens,
            ),
        )

    def _access(self, name: str, key: SecretStr | None) -> ServiceAccess | None:
        """A key is for the service that it was given for, and for no other."""
        endpoint: str | None = getattr(self, name)
        if endpoint is None:
            return None
        return ServiceAccess(
            endpoint.rstrip("/"), key, allow_plain=self.allow_plain_http, setting=f"remote.{name}"
        )


Money = Annotated[Decimal, BeforeValidator(_no_bool), Field(ge=0, le=1_000_000_000)]
UnitPrice = Annotated[Decimal, BeforeValidator(_no_bool), Field(ge=0, le=1_000_000)]


class PriceSettings(_Section):
    """What a service asks for training a model: the sum of what is given here."""

    per_million_tokens: UnitPrice = Decimal(0)
    """Trained tokens, repeats counted."""
    per_hour: UnitPrice = Decimal(0)
    """From the launch to the end of the job."""
    per_job: UnitPrice = Decimal(0)


class MoneySettings(_Section):
    """What trainings cost, and how much they may cost. No price is known unless it stands here."""

    changeable = frozenset(
        {"prices", "cap_per_run", "cap_per_day", "cap_per_month", "assumed_epochs"}
    )

    currency: Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")] = "USD"
    """Of all amounts here: its code in ISO 4217."""
    prices: dict[Name, dict[Text, PriceSettings]] = Field(default_factory=dict)
    """By provider, then by base model; `*` stands for its other models."""
    cap_per_run: Money | None = None
    """What all attempts of one run may cost; beyond a cap runs wait."""
    cap_per_day: Money | None = None
    """What may be spent and reserved in one day (UTC)."""
    cap_per_month: Money | None = None
    assumed_epochs: int = Field(10, ge=1, le=1_000)
    """For an estimate, where the training settings leave the number to the service."""

    @model_validator(mode="after")
    def _priced(self) -> Self:
        for provider, models in self.prices.items():
            for model, price in models.items():
                if not price.model_fields_set:
                    raise PydanticCustomError(
                        "price",
                        "{provider}, {model}: per_million_tokens, per_hour or per_job is needed;"
                        " 0 says that it costs nothing",
                        {"provider": provider, "model": model},
                    )
        return self

    def budget(self) -> Budget:
        """Prices and caps, as the core knows them."""
        return Budget(
            currency=self.currency,
            prices={
                provider: {model: Price(**price.model_dump()) for model, price in models.items()}
                for provider, models in self.prices.items()
            },
            caps=Caps(self.cap_per_run, self.cap_per_day, self.cap_per_month),
            assumed_epochs=self.assumed_epochs,
        )


class LogSettings(_Section):
    """What is logged, and how: `json` for machines, `console` for people."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "console"


# --- all of them ----------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """One setting as `learnd check` shows it; a secret is masked."""

    key: str
    value: str
    source: str
    changeable: bool
    """Whether it can be changed while learnd runs; see daemon/changeable.py."""


def _default_database(known: dict[str, Any]) -> str:
    return f"sqlite:///{known['data_dir'] / 'learnd.db'}"


def _default_datasets(known: dict[str, Any]) -> Path:
    return Path(known["data_dir"], "datasets")


def _default_artifacts(known: dict[str, Any]) -> Path:
    return Path(known["data_dir"], "artifacts")


def _host_name() -> str:
    return socket.gethostname()[:64] or "localhost"


class Settings(BaseSettings):
    """Every setting of the daemon. Immutable."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=True,
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
    )

    data_dir: AbsolutePath = Path("learnd-data")
    database_url: DatabaseUrl = Field(default_factory=_default_database)
    dataset_dir: AbsolutePath = Field(default_factory=_default_datasets)
    artifacts_dir: AbsolutePath = Field(default_factory=_default_artifacts)
    """Shared by all daemons of one database."""
    node: Name = Field(default_factory=_host_name)
    """What this daemon is called among them."""
    simulation_mode: bool = False
    """Everything runs, but no job is launched."""
    http: HttpSettings = HttpSettings()
    kafka: KafkaSettings = KafkaSettings()
    intake: IntakeSettings = IntakeSettings()
    policy: PolicySettings = PolicySettings()
    feedback: FeedbackSettings = FeedbackSettings()
    adaptation: AdaptationSettings = AdaptationSettings()
    queue: QueueSettings = QueueSettings()
    screening: ScreeningSettings = ScreeningSettings()
    firewall: FirewallSettings = FirewallSettings()
    split: SplitSettings = SplitSettings()
    gate: GateSettings = GateSettings()
    verdict: VerdictSettings = VerdictSettings()
    finetune: FineTuneSettings = FineTuneSettings()
    lines: dict[Name, LineSettings] = Field(default_factory=dict)
    remote: RemoteSettings = RemoteSettings()
    money: MoneySettings = MoneySettings()
    log: LogSettings = LogSettings()

    _sources: dict[KeyPath, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only the arguments: what the environment and the file add is for `load`."""
        return (init_settings,)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers(cls, value: object, info: ValidationInfo) -> object:
        return _refuse_bool_as_number(value, cls.model_fields.get(info.field_name or ""))

    @model_validator(mode="after")
    def _lines_are_understood(self) -> Self:
        if self.finetune.provider in LOCAL_PROVIDERS:
            training = self.finetune.training
            _require_training(training, training, ("finetune", "training"))
        self._objectives_have_what_they_need()
        for name, line in self.lines.items():
            task_types = line.task_types or (name,)
            foreign = set(line.system_prompts) - set(task_types)
            if foreign:
                raise _fault(
                    ("lines", name, "system_prompts"),
                    f"the line does not learn from {', '.join(sorted(foreign))}",
                )
            if (line.provider or self.finetune.provider) in LOCAL_PROVIDERS:
                training = self.finetune.training | line.training
                _require_training(training, line.training, ("lines", name, "training"))
        try:
            lines = self.model_lines()
        except TaskTypeClaimedTwiceError as error:
            raise _fault(("lines",), str(error)) from error
        for name in set(self.lines) & set(BUILT_IN_TASK_TYPES):
            if lines.owner(name) is None:
                raise _fault(
                    ("lines", name, "task_types"),
                    f"the task type {name} has no line then: add it here, or rename the line",
                )
        for task_type, related in self.split.related_task_types.items():
            for name in (task_type, *related):
                if lines.owner(name) is None:
                    raise _fault(
                        ("split", "related_task_types", task_type),
                        f"no model line learns from {name!r}",
                    )
            if task_type in related:
                raise _fault(
                    ("split", "related_task_types", task_type),
                    "a task type learns from itself anyway: name others",
                )
        return self

    def _objectives_have_what_they_need(self) -> None:
        """That rejected outputs may be learned from is said twice: by objective and by policy."""
        training, allowed = self.finetune.training, self.policy.learn_from_rejected
        _require_agreement(training, ("finetune", "training"), allowed, ("policy",))
        for name, line in self.lines.items():
            of_line = ("lines", name)
            own = line.learn_from_rejected
            _require_agreement(
                training | line.training,
                (*of_line, "training"),
                allowed if own is None else own,
                of_line,
            )

    def policy_rules(self) -> Policy:
        """The bars of the policy, as the core knows them."""
        return Policy(
            min_confidence=self.policy.min_confidence,
            enable_auto_approval=self.policy.enable_auto_approval,
            feedback_threshold=self.policy.feedback_threshold,
            hold=timedelta(days=self.policy.hold_days),
        )

    def feedback_rules(self) -> FeedbackRules:
        """What feedback may change, as the core knows it."""
        return FeedbackRules(learning_rate=self.policy.learning_rate, **self.feedback.model_dump())

    def adaptation_rules(self) -> AdaptationRules:
        """When settings adapt and how far, as the core knows it."""
        own = self.adaptation
        return AdaptationRules(
            enabled=self.policy.adaptive,
            low_success=own.low_success,
            good_success=own.good_success,
            raised_threshold=own.raised_threshold,
            high_confidence=own.high_confidence,
            fading_confidence=own.fading_confidence,
            min_judged=own.min_judged,
            min_confidences=own.min_confidences,
            window=timedelta(hours=own.window_hours),
            dwell=timedelta(hours=own.dwell_hours),
            respect=timedelta(days=own.respect_days),
            max_changes_a_day=own.max_changes_a_day,
            pinned=frozenset(own.pinned),
        )

    def batch_rules(self) -> BatchRules:
        """When a queue becomes a batch, as the core knows it."""
        return BatchRules(
            batch_size=self.queue.batch_size,
            max_queue_size=self.queue.max_queue_size,
            max_wait=timedelta(seconds=self.queue.max_wait_seconds),
        )

    def size_rules(self) -> SizeRules:
        """Within which bounds a batch size may adapt, as the core knows it."""
        queue = self.queue
        return SizeRules(
            adaptive=queue.adaptive,
            start=queue.batch_size,
            least=queue.batch_size if queue.min_batch_size is None else queue.min_batch_size,
            most=queue.max_queue_size if queue.max_batch_size is None else queue.max_batch_size,
            max_changes_a_day=queue.max_size_changes_a_day,
        )

    def split_rules(self, line: str | None = None) -> SplitRules:
        """Who is held out and what is repeated in a line, as the core knows it."""
        own = self.lines.get(line, LineSettings()) if line is not None else LineSettings()
        told = self.split.model_dump(exclude={"related_task_types"}) | own.model_dump(
            include=set(SplitSettings.model_fields), exclude_none=True
        )
        return SplitRules(**told, related={**RELATED, **self.split.related_task_types})

    def learns_from(self, line: ModelLine) -> Sequence[str]:
        """The task types of other lines that are mixed into a line's batches."""
        rules = self.split_rules(line.name)
        mixes = rules.cross_task_learning and rules.cross_task_share > 0
        return related_to(line.task_types, rules.related) if mixes else ()

    def gate_rules(self) -> GateRules:
        """What a candidate has to prove, as the core knows it."""
        return GateRules(**self.gate.model_dump())

    def verdict_rules(self) -> VerdictRules:
        """What follows from people's verdicts, as the core knows it."""
        return VerdictRules(**self.verdict.model_dump())

    def fine_tune_endpoint(self) -> FineTuneEndpoint | None:
        """Where and how the provider `http` trains."""
        access = self.remote.services().get("finetune_endpoint")
        if access is None:
            return None
        timeout = timedelta(seconds=self.finetune.timeout_seconds)
        return FineTuneEndpoint(access, self.remote.http, timeout)

    def model_lines(self) -> ModelLines:
        """The configured lines, and one of its own name for each built-in task type left over.

        Where new task types are accepted, each gets a line of its own too.

        Training settings of the local provider are complete: every default is filled in,
        so that equal settings have equal digests however they were written.
        """
        lines = [self._line(name, line) for name, line in self.lines.items()]
        owned = {task_type for line in lines for task_type in line.task_types}
        taken = owned | set(self.lines)
        lines += [
            self._line(task_type, LineSettings())
            for task_type in BUILT_IN_TASK_TYPES
            if task_type not in taken
        ]
        accepts_new = self.policy.unknown_task_types == "accept"
        return ModelLines(lines, self._line("new", LineSettings()) if accepts_new else None)

    def _line(self, name: str, line: LineSettings) -> ModelLine:
        provider = line.provider or self.finetune.provider
        training = self.finetune.training | line.training
        if provider in LOCAL_PROVIDERS:
            told = {**LINE_TRAINING, **training}
            training = TrainingSettings.model_validate(told).model_dump(mode="json")
        return ModelLine(
            name=name,
            task_types=frozenset(line.task_types or (name,)),
            base_model=line.base_model or self.finetune.base_model,
            provider=provider,
            training=training,
            system_prompts=line.system_prompts,
        )

    def explain(self) -> list[Setting]:
        """Every setting with its value, secrets masked, and where it was set.

        Of a model line only what was set: the rest comes from the finetune section.
        """
        return [
            Setting(
                ".".join(path),
                _shown(path, value),
                self._sources.get(path, "default"),
                is_changeable(path),
            )
            for path, value in leaves(self.model_dump())
            if path[0] != "lines" or path in self._sources
        ]

    def told_by(self, sources: Mapping[KeyPath, str]) -> Self:
        """The same settings, knowing where each was set; for whoever read them."""
        self._sources.update(sources)
        return self

    @property
    def sources(self) -> Mapping[KeyPath, str]:
        """Where each setting was set; what is missing has its default."""
        return self._sources


def _require_training(training: dict[str, Any], own: dict[str, Any], section: KeyPath) -> None:
    """Raise, naming the key of the section, when the local trainer would not understand it."""
    try:
        TrainingSettings.model_validate(training)
    except ValidationError as error:
        for found in error.errors(include_url=False):
            name = str(found["loc"][0])
            if name in own and found["type"] == "extra_forbidden":
                raise _fault(
                    (*section, name), no_such_setting(name, tuple(TrainingSettings.model_fields))
                ) from error
            if name in own:
                raise _fault((*section, name), in_words(found["msg"], own[name])) from error


def _require_agreement(
    training: dict[str, Any], section: KeyPath, allowed: bool, policy: KeyPath
) -> None:
    """Raise when a line's objective and its policy differ on whether "no" is learned from."""
    try:
        objective = Objective(training.get("objective", Objective.SFT))
    except ValueError:
        known = ", ".join(Objective)
        raise _fault((*section, "objective"), f"one of {known} is needed here") from None
    if objective is not Objective.SFT and not allowed:
        raise _fault(
            (*section, "objective"),
            f"{objective} learns from rejected outputs, which are left out unless the policy lets"
            f" them in: set {'.'.join(policy)}.learn_from_rejected: true, or objective: sft",
        )
    if objective is Objective.SFT and allowed:
        raise _fault(
            (*policy, "learn_from_rejected"),
            "sft learns from approved outputs only: set"
            f" {'.'.join(section)}.objective to kto (from each rejected output) or dpo (from those"
            " with a better answer to their prompt), or learn_from_rejected: false",
        )


def _fault(path: KeyPath, message: str) -> PydanticCustomError:
    return PydanticCustomError("fault", "{message}", {"message": message, "path": path})


# --- keys and words -------------------------------------------------------------------


def is_changeable(path: KeyPath) -> bool:
    """Whether what stands in a place can be changed while learnd runs."""
    if path[0] == "lines":
        return len(path) > 2 and path[2] in LineSettings.changeable
    section = section_of(path[0])
    return section is not None and len(path) > 1 and path[1] in section.changeable


def may_be_secret(path: KeyPath) -> bool:
    """Whether a provider's own setting, of which learnd knows the name alone, may be a secret."""
    section = 2 if path[0] == "lines" else 1
    if path[section : section + 1] != ("training",):
        return False
    names = path[section + 1 :]
    return any(SECRET_WORDS & set(re.split(r"[^a-z]+", name.lower())) for name in names)


def section_of(name: str) -> type[_Section] | None:
    """The section of that name; None for a setting that stands alone, and for the lines."""
    field = Settings.model_fields.get(name)
    annotation = field.annotation if field is not None else None
    if isinstance(annotation, type) and issubclass(annotation, _Section):
        return annotation
    return None


def leaves(tree: Mapping[str, Any], before: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Paths and values of a nested mapping; an empty mapping is a leaf too."""
    for name, value in tree.items():
        path = (*before, str(name))
        if isinstance(value, Mapping) and value:
            yield from leaves(value, path)
        else:
            yield path, value


def no_such_setting(name: str, known: Sequence[str]) -> str:
    """What to say of an unknown key, given those that stand beside it."""
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"no such setting; did you mean {near[0]}?"
    return f"no such setting; known here: {', '.join(sorted(known))}"


def in_words(message: str, value: object) -> str:
    """A fault's message with the value that it is about, when that is short enough to help."""
    if isinstance(value, str | int | float):
        message += f" (it is {value!r})"
    return message[:1].lower() + message[1:]


def without_password(url: str) -> str:
    """An address with its password masked."""
    scheme, mark, rest = url.partition("://")
    user, at, place = rest.rpartition("@")
    if not mark or not at:
        return url
    return f"{scheme}://{user.partition(':')[0]}:{MASK}@{place}"


def _shown(path: KeyPath, value: Any) -> str:
    if value in (None, "", {}, ()):
        return "-"
    if isinstance(value, SecretStr) or may_be_secret(path):
        return MASK
    if isinstance(value, tuple | list):
        return ", ".join(str(item) for item in value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return without_password(str(value)) if path[-1].endswith(("url", "endpoint")) else str(value)
