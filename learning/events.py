"""The two events that learnd reads, as strict models: what a producer may send.

A field is read in snake_case and in camelCase; an unknown field is an error,
because a misspelt `approved` must not be read as "no verdict". Nothing here
looks at a clock, so whether a time is plausible is decided by the reader
(consumers/wire.py).
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic.alias_generators import to_camel

BUILT_IN_TASK_TYPES: tuple[str, ...] = (
    "audio",
    "coding",
    "game",
    "website",
    "graphics",
    "moderation",
    "memory",
    "trust",
    "persona",
    "canon_map",
    "path_text",
    "route",
    "normalize",
    "rights_style",
    "gap_awareness",
)
"""Task types that are known without configuration (features.md, IN4)."""

Name = Annotated[
    str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
]
"""A name that may become part of a metric label or an address: no spaces, no slashes."""

Identifier = Annotated[str, StringConstraints(min_length=1, max_length=256)]
"""An id of the producer's own making, at most 256 characters."""

LongText = Annotated[str, StringConstraints(max_length=1_000_000)]
"""A prompt or an output, at most a million characters."""

ShortText = Annotated[str, StringConstraints(max_length=256)]

Confidence = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
"""A probability in [0, 1]."""

SchemaVersion = Annotated[int, Field(ge=1, le=1)]
"""The one that this release reads. Not `Literal[1]`, which true equals."""

Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e12, le=1e12)]


class _Wire(BaseModel):
    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
    )


class Message(_Wire):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: LongText


class OutputEvent(_Wire):
    """What a model produced, and what is known about it when it was sent.

    Either `prompt` and `output`, or `messages` that end with the assistant's answer.
    """

    schema_version: SchemaVersion = 1
    event_id: Identifier | None = Field(
        default=None, description="Unique for the producer, for ever; derived when missing."
    )
    producer: Name
    task_id: Identifier = Field(description="Feedback is joined on (task_type, task_id).")
    task_type: Name
    prompt: LongText | None = None
    output: LongText | dict[str, Any] | list[Any] | None = None
    messages: Annotated[list[Message], Field(min_length=2, max_length=1_000)] | None = None
    context: dict[str, Any] = Field(default_factory=dict)
    approved: bool | None = Field(
        default=None, description="A person's verdict; absent: learnd decides."
    )
    confidence: Confidence | None = None
    model_version: ShortText | None = None
    timestamp: AwareDatetime | None = Field(default=None, description="With a time zone.")
    subject: Identifier | None = Field(default=None, description="Whose data it is.")
    split_group: Identifier | None = Field(
        default=None, description="Examples of a group stay on one side of the split."
    )
    domain: ShortText | None = None
    category: ShortText | None = None
    difficulty: ShortText | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.messages is not None:
            if self.prompt is not None or self.output is not None:
                raise ValueError("send either messages, or prompt and output, not both")
            if self.messages[-1].role != "assistant":
                raise ValueError("messages must end with the assistant's answer")
            if all(message.role != "user" for message in self.messages):
                raise ValueError("messages need at least one user message")
        elif self.prompt is None or self.output is None:
            raise ValueError("prompt and output, or messages, are required")
        return self

    def content_hash(self) -> bytes:
        """16 bytes that tell two bodies apart, whatever id they were sent under."""
        return digest(self.model_dump_json(exclude={"event_id"}, exclude_none=True))


class FeedbackScores(_Wire):
    """What people made of an output, in numbers."""

    user_rating: Annotated[int, Field(ge=1, le=5)] | None = None
    engagement_metrics: Annotated[dict[Name, Number], Field(max_length=64)] = Field(
        default_factory=dict
    )
    quality_metrics: Annotated[dict[Name, Number], Field(max_length=64)] = Field(
        default_factory=dict
    )


class Adaptation(_Wire):
    """Wishes of the sender for the loop; bounded again where they are applied."""

    trust_delta: Annotated[Number, Field(ge=-1.0, le=1.0)] = 0.0
    confidence_adjustment: Annotated[Number, Field(ge=-1.0, le=1.0)] = 0.0
    mood_adjustment: ShortText | None = None


class FeedbackEvent(_Wire):
    """What people made of an output that was sent, or will be sent, as an `OutputEvent`."""

    schema_version: SchemaVersion = 1
    event_id: Identifier | None = None
    producer: Name
    task_id: Identifier
    task_type: Name
    timestamp: AwareDatetime | None = None
    approved: bool | None = None
    confidence: Confidence | None = None
    feedback: FeedbackScores = Field(default_factory=FeedbackScores)
    adaptation: Adaptation = Field(default_factory=Adaptation)
    model_version: ShortText | None = None

    def content_hash(self) -> bytes:
        """16 bytes that tell two bodies apart, whatever id they were sent under."""
        return digest(self.model_dump_json(exclude={"event_id"}, exclude_none=True))


FORGOTTEN_OUTPUT = (
    '{ "producer": "forgotten", "task_id": "forgotten", "task_type": "forgotten",'
    ' "prompt": "", "output": "" }'
)
"""What is stored in the place of a forgotten output: an event that says nothing, so that
whatever reads stored outputs can read it."""
FORGOTTEN_FEEDBACK = '{ "producer": "forgotten", "task_id": "forgotten", "task_type": "forgotten" }'
"""The same of feedback."""
_TOMBSTONES = frozenset({FORGOTTEN_OUTPUT, FORGOTTEN_FEEDBACK})


def is_same_body(kind: type[OutputEvent] | type[FeedbackEvent], text: str, stored: str) -> bool:
    """Whether the JSON of two events of a kind says the same: byte for byte, or in all but the
    spelling and the id.

    Whatever comes again under the id of a forgotten event counts as the same: a complaint about
    the difference would have to keep it.
    """
    if text == stored or stored in _TOMBSTONES:
        return True
    read = kind.model_validate_json
    return read(text).content_hash() == read(stored).content_hash()


def digest(text: str) -> bytes:
    """16 bytes of BLAKE2b over the UTF-8 text: an identity, not a secret."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def prompt_key(event: OutputEvent) -> bytes:
    """16 bytes that are equal for prompts that differ only in case and white space.

    Two examples with one key must not stand on both sides of a split.
    """
    if event.messages is None:
        return key_of_prompt([event.prompt or ""])
    return key_of_prompt(message.content for message in event.messages[:-1])


def key_of_prompt(texts: Iterable[str]) -> bytes:
    """`prompt_key` of a conversation, given its messages' texts without the answer."""
    return digest(" ".join("\n".join(texts).casefold().split()))


def group_key(event: OutputEvent) -> bytes | None:
    """16 bytes that are equal for events of one split group; None without a group.

    Never equal to a prompt's key: no prompt keeps a line break in its key.
    """
    return None if event.split_group is None else digest(f"split group\n{event.split_group}")


def answer_text(event: OutputEvent) -> str:
    """The output as the text that a model is trained to write; JSON in its compact form."""
    if event.messages is not None:
        return event.messages[-1].content
    if isinstance(event.output, str):
        return event.output
    return json.dumps(event.output, ensure_ascii=False, separators=(",", ":"))


def conversation(event: OutputEvent) -> list[dict[str, str]]:
    """The example as chat messages, the answer last."""
    if event.messages is not None:
        return [{"role": m.role, "content": m.content} for m in event.messages]
    return [
        {"role": "user", "content": event.prompt or ""},
        {"role": "assistant", "content": answer_text(event)},
    ]
