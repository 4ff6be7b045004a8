"""Understand a row: which format its fields have, and the example that it holds.

The formats are those of TRL, axolotl, LLaMA-Factory and OpenAI, in the spellings that their
users' files have. Pure: a parsed row in, an example or a BadRowError out. Writing rows is
conversion.py's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from finetune.datasets.flaws import BadRowError, Flaw
from finetune.datasets.lines import kind_of

Messages = Sequence[Mapping[str, str]]


class Format(StrEnum):
    """How a dataset's rows are written."""

    MESSAGES = "messages"
    """`messages` of role and content, as OpenAI, TRL and axolotl's chat_template have them."""
    SHAREGPT = "sharegpt"
    """`conversations` of from and value, with an optional `system`."""
    INSTRUCTION = "instruction"
    """`instruction`, `input`, `output`, with optional `system` and `history`: Alpaca's."""
    PROMPT_COMPLETION = "prompt-completion"
    """`prompt` and `completion`: texts, or lists of messages."""
    PROMPT_OUTPUT = "prompt-output"
    """`prompt` and `output`, as learnd's own events spell it."""
    PREFERENCE = "preference"
    """A prompt with a `chosen` and a `rejected` answer, as for DPO."""
    KTO = "kto"
    """A prompt, one answer, and whether it is a good one: `label`, or `kto_tag`."""


class Kind(StrEnum):
    """What can be learned from an example."""

    SUPERVISED = "supervised"
    PREFERENCE = "preference"
    LABELLED = "labelled"


@dataclass(frozen=True)
class Example:
    """One example, whatever it was written like.

    `answer` is the one to learn; of a pair the chosen one; of a labelled one the one that
    `label` judges.
    """

    prompt: Messages
    """At least one user message; roles are system, user and assistant."""
    answer: str
    rejected: str | None = None
    label: bool | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    """The row's other fields: an id, a task type, whatever its author put in."""
    unread: Sequence[str] = ()
    """Fields inside of messages that are no text, such as `messages[0].name`."""

    @property
    def kind(self) -> Kind:
        """What can be learned from it."""
        if self.rejected is not None:
            return Kind.PREFERENCE
        return Kind.SUPERVISED if self.label is None else Kind.LABELLED

    @property
    def messages(self) -> Messages:
        """The conversation with its answer last."""
        return [*self.prompt, {"role": "assistant", "content": self.answer}]


_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
}
_LABELS: Final = ("label", "kto_tag")
_CALLS: Final = ("tool_calls", "function_call", "audio", "images")
_BESIDES: Final = ("tools", "functions", "images", "videos", "audios", "image", "video", "audio")
_MARKS: Final = ("weight", "train", "training", "loss_weight")
"""Whether a message is learned: OpenAI's word, axolotl's two, LLaMA-Factory's."""
_OPENAI_PAIR: Final = frozenset(("input", "preferred_output", "non_preferred_output"))
_TOLD_NAMES: Final = 8


def format_of(row: Mapping[str, Any]) -> Format | None:
    """The format that a row's fields are of; None for none that is known."""
    if ("chosen" in row and "rejected" in row) or row.keys() >= _OPENAI_PAIR:
        return Format.PREFERENCE
    is_conversation = "messages" in row or "conversations" in row
    has_answer = is_conversation or "completion" in row or "output" in row
    if has_answer and any(isinstance(row.get(name), bool) for name in _LABELS):
        return Format.KTO
    if "messages" in row:
        return Format.MESSAGES
    if "conversations" in row:
        return Format.SHAREGPT
    if "prompt" in row and "completion" in row:
        return Format.PROMPT_COMPLETION
    if "instruction" in row and "output" in row:
        return Format.INSTRUCTION
    if "prompt" in row and "output" in row:
        return Format.PROMPT_OUTPUT
    return None


def example_of(row: Mapping[str, Any], expected: Format) -> Example:
    """The example in a row that should be of a format. Raises BadRowError."""
    found = format_of(row)
    if found is None:
        raise BadRowError(*_unknown(row, expected))
    if found is not expected:
        raise BadRowError(Flaw.OTHER_FORMAT, f"its fields are of {found}, the file is {expected}")
    reading = _Reading(_unnested(row) if row.keys() >= _OPENAI_PAIR else row)
    match expected:
        case Format.PREFERENCE:
            example = _pair(reading)
        case Format.KTO:
            example = _labelled(reading)
        case _:
            example = _supervised(reading)
    _require_use(example)
    return example


def _unnested(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A pair as OpenAI writes it, with its fields where the others have them."""
    given = row["input"]
    if not isinstance(given, dict):
        raise BadRowError(Flaw.WRONG_TYPE, f"input must be an object, it is {kind_of(given)}")
    rest = {name: value for name, value in row.items() if name not in _OPENAI_PAIR}
    answers = {"chosen": row["preferred_output"], "rejected": row["non_preferred_output"]}
    return {**rest, **given, **answers}


def _unknown(row: Mapping[str, Any], expected: Format) -> tuple[Flaw, str]:
    named = ", ".join(sorted(name[:40] for name in row)[:_TOLD_NAMES]) or "none"
    if "text" in row:
        return Flaw.UNKNOWN_FORMAT, "plain text: nobody can tell the prompt from the answer"
    missing = [name for name in _NEEDED[expected] if name not in row]
    if len(missing) < len(_NEEDED[expected]):
        return Flaw.MISSING_FIELD, f"{' and '.join(missing)} is missing; its fields: {named}"
    return Flaw.UNKNOWN_FORMAT, f"its fields: {named}"


_NEEDED: Final[Mapping[Format, Sequence[str]]] = {
    Format.MESSAGES: ("messages",),
    Format.SHAREGPT: ("conversations",),
    Format.INSTRUCTION: ("instruction", "output"),
    Format.PROMPT_COMPLETION: ("prompt", "completion"),
    Format.PROMPT_OUTPUT: ("prompt", "output"),
    Format.PREFERENCE: ("chosen", "rejected"),
    Format.KTO: ("prompt", "completion", "label"),
}


def _require_use(example: Example) -> None:
    if not any(turn["role"] == "user" and turn["content"].strip() for turn in example.prompt):
        raise BadRowError(Flaw.EMPTY_TEXT, "there is no word of a user before the answer")
    if not example.answer.strip():
        raise BadRowError(Flaw.EMPTY_TEXT, "the answer is empty")
    if example.rejected is not None:
        if not example.rejected.strip():
            raise BadRowError(Flaw.EMPTY_TEXT, "the rejected answer is empty")
        if example.rejected == example.answer:
            raise BadRowError(Flaw.WRONG_TYPE, "chosen and rejected are the same answer")


class _Reading:
    """Takes fields out of a row, and remembers what was left."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self._row = dict(row)
        self.unread: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self._row

    def is_text(self, name: str) -> bool:
        return isinstance(self._row.get(name), str)

    def extra(self) -> Mapping[str, Any]:
        """What nobody took. Raises BadRowError when the row comes with more than text."""
        for name in _BESIDES:
            if self._row.get(name):
                raise BadRowError(
                    Flaw.UNREADABLE_TURN, f"it comes with {name}, which are not learned"
                )
        return self._row

    def take(self, name: str) -> Any:
        return self._row.pop(name, None)

    def text(self, name: str, *, required: bool = True) -> str:
        value = self.take(name)
        if value is None and not required:
            return ""
        if not isinstance(value, str):
            raise BadRowError(Flaw.WRONG_TYPE, f"{name} must be text, it is {kind_of(value)}")
        return value

    def turns(self, name: str) -> list[Mapping[str, str]]:
        """A list of messages, in either spelling."""
        value = self.take(name)
        if not isinstance(value, list):
            raise BadRowError(
                Flaw.WRONG_TYPE, f"{name} must be an array of messages, it is {kind_of(value)}"
            )
        turns = [self._turn(turn, f"{name}[{index}]") for index, turn in enumerate(value)]
        if value and _is_not_learned(value[-1]) and turns[-1]["role"] == "assistant":
            raise BadRowError(
                Flaw.NO_ANSWER, f"the answer in {name} is marked as not to be learned"
            )
        return turns

    def answer(self, name: str) -> tuple[list[Mapping[str, str]], str]:
        """An answer: text, one message, or a conversation that ends with it."""
        if self.is_text(name):
            return [], self.text(name)
        if isinstance(self._row.get(name), dict):
            self._row[name] = [self._row[name]]
        return _ended(self.turns(name), name)

    def _turn(self, turn: object, path: str) -> Mapping[str, str]:
        if not isinstance(turn, dict):
            raise BadRowError(Flaw.WRONG_TYPE, f"{path} must be a message, it is {kind_of(turn)}")
        said = turn.get("role", turn.get("from"))
        role = _ROLES.get(said) if isinstance(said, str) else None
        if role is None:
            shown = repr(said[:24]) if isinstance(said, str) else kind_of(said)
            raise BadRowError(Flaw.UNREADABLE_TURN, f"{path} is said by {shown}")
        for name in _CALLS:
            if turn.get(name):
                raise BadRowError(Flaw.UNREADABLE_TURN, f"{path}.{name} is not text")
        if role == "assistant" and _is_not_learned(turn):
            self.unread.append(f"the mark of {path}, not to be learned,")
        content = turn.get("content", turn.get("value"))
        self.unread += [
            f"{path}.{name[:40]}"
            for name, value in turn.items()
            if name not in _KNOWN_IN_TURN and value not in (None, "", [], {})
        ]
        return {"role": role, "content": _content(content, path)}


_KNOWN_IN_TURN: Final = frozenset(("role", "from", "content", "value", *_MARKS, *_CALLS))


def _is_not_learned(turn: Mapping[str, Any]) -> bool:
    marks = (turn.get(name) for name in _MARKS)
    return any(mark is not None and not mark for mark in marks)


def _content(content: object, path: str) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [
            text
            for part in content
            if isinstance(part, dict)
            and part.get("type") == "text"
            and isinstance(text := part.get("text", part.get("value")), str)
        ]
        if len(texts) == len(content) and texts:
            return "".join(texts)
        raise BadRowError(Flaw.UNREADABLE_TURN, f"{path} holds more than text")
    if content is None:
        raise BadRowError(Flaw.EMPTY_TEXT, f"{path} has no content")
    raise BadRowError(
        Flaw.WRONG_TYPE, f"the content of {path} must be text, it is {kind_of(content)}"
    )


def _supervised(reading: _Reading) -> Example:
    prompt, answer = _conversation(reading, "completion" if "completion" in reading else "output")
    return Example(prompt, answer, extra=reading.extra(), unread=reading.unread)


def _labelled(reading: _Reading) -> Example:
    label = next(value for name in _LABELS if isinstance(value := reading.take(name), bool))
    prompt, answer = _conversation(reading, "completion" if "completion" in reading else "output")
    return Example(prompt, answer, label=label, extra=reading.extra(), unread=reading.unread)


def _pair(reading: _Reading) -> Example:
    """The prompt stands beside the answers, or both answers begin with it, or both."""
    before, answer = reading.answer("chosen")
    also_before, rejected = reading.answer("rejected")
    if before != also_before:
        raise BadRowError(Flaw.WRONG_TYPE, "chosen and rejected answer different conversations")
    given = _given(reading)
    if (
        given
        and before
        and [turn["content"] for turn in given]
        != [turn["content"] for turn in before[-len(given) :]]
    ):
        raise BadRowError(Flaw.WRONG_TYPE, "the prompt is not what chosen and rejected answer")
    prompt = before or given
    if not prompt:
        raise BadRowError(Flaw.MISSING_FIELD, "there is no prompt")
    return Example(prompt, answer, rejected=rejected, extra=reading.extra(), unread=reading.unread)


def _conversation(reading: _Reading, answer_name: str) -> tuple[Messages, str]:
    """A prompt and its answer, of one list or of several fields."""
    for name in ("messages", "conversations"):
        if name in reading:
            return _ended(_with_system(reading, reading.turns(name)), name)
    prompt = _given(reading)
    if answer_name not in reading:
        raise BadRowError(Flaw.MISSING_FIELD, f"{answer_name} is missing")
    between, answer = reading.answer(answer_name)
    return [*prompt, *between], answer


def _given(reading: _Reading) -> list[Mapping[str, str]]:
    """The conversation before the answer, without an answer in it; empty where there is none."""
    for name in ("messages", "conversations"):
        if name in reading:
            return _with_system(reading, reading.turns(name))
    if "instruction" in reading:
        turns = _history(reading)
        texts = [reading.text("instruction"), reading.text("input", required=False)]
        joined = "\n".join(text for text in texts if text)
        return _with_system(reading, [*turns, {"role": "user", "content": joined}])
    if "prompt" not in reading:
        return []
    if reading.is_text("prompt"):
        return _with_system(reading, [{"role": "user", "content": reading.text("prompt")}])
    return _with_system(reading, reading.turns("prompt"))


def _history(reading: _Reading) -> list[Mapping[str, str]]:
    """Earlier rounds, as pairs of what was asked and what was answered."""
    rounds = reading.take("history")
    turns: list[Mapping[str, str]] = []
    for each in rounds if isinstance(rounds, list) else []:
        match each:
            case [str(asked), str(answered)]:
                turns.append({"role": "user", "content": asked})
                turns.append({"role": "assistant", "content": answered})
            case _:
                raise BadRowError(Flaw.WRONG_TYPE, "history must be pairs of texts")
    return turns


def _with_system(reading: _Reading, turns: list[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """The row's own system prompt put first, unless the conversation has one."""
    system = reading.text("system", required=False)
    if not system:
        return turns
    if any(turn["role"] == "system" for turn in turns):
        reading.unread.append("the field system, beside a system message,")
        return turns
    return [{"role": "system", "content": system}, *turns]


def _ended(turns: Sequence[Mapping[str, str]], name: str) -> tuple[list[Mapping[str, str]], str]:
    """A conversation without its answer, and the answer that it ends with."""
    if not turns:
        raise BadRowError(Flaw.EMPTY_TEXT, f"{name} is empty")
    *before, last = turns
    if last["role"] != "assistant":
        raise BadRowError(Flaw.NO_ANSWER, f"{name} ends with the {last['role']}")
    return before, last["content"]
