"""Write an example in another format, where that loses nothing; say what would be lost.

Pure. Lost would be a text, a role, the difference between good and bad, or a field.
Instruction and input become one user message with a line break between, as LLaMA-Factory
joins them, and a pair becomes two labelled rows, as TRL unpairs it: neither is a loss.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from finetune.datasets.formats import Example, Format, Kind, Messages, format_of
from learning.errors import LearningError

_SHAREGPT_NAMES: Final = {"system": "system", "user": "human", "assistant": "gpt"}
_WRITTEN: Final[Mapping[Format, frozenset[str]]] = {
    Format.MESSAGES: frozenset({"messages"}),
    Format.SHAREGPT: frozenset({"conversations"}),
    Format.INSTRUCTION: frozenset({"instruction", "input", "output", "system", "history"}),
    Format.PROMPT_COMPLETION: frozenset({"prompt", "completion"}),
    Format.PROMPT_OUTPUT: frozenset({"prompt", "output"}),
    Format.PREFERENCE: frozenset({"prompt", "chosen", "rejected"}),
    Format.KTO: frozenset({"prompt", "completion", "label"}),
}


class LossyConversionError(LearningError):
    """A row cannot be written in a format without losing something of it."""

    def __init__(self, target: Format, loss: str) -> None:
        super().__init__(f"{target} cannot hold it: {loss}")
        self.target, self.loss = target, loss


def rows_of(
    example: Example, target: Format, *, as_chat: bool = False, lossy: bool = False
) -> Sequence[Mapping[str, Any]]:
    """The rows that hold an example in a format: two for a pair in KTO's, else one.

    `as_chat` writes prompts and answers as lists of messages where a format has both forms.
    `lossy` leaves out what a format cannot hold: the rejected answer of a pair, a bad answer
    altogether (no row then), what messages have beside their text. Raises LossyConversionError.
    """
    if example.unread and not lossy:
        raise LossyConversionError(
            target, f"{example.unread[0]} would be lost; --lossy leaves it out"
        )
    for name in sorted(example.extra.keys() & _WRITTEN[target]):
        raise LossyConversionError(target, f"its own field {name} would be overwritten")
    rows = [{**written, **example.extra} for written in _written(example, target, as_chat, lossy)]
    for row in rows:
        if format_of(row) is not target:
            raise LossyConversionError(
                target, f"with its other fields it would be read as {format_of(row)}"
            )
    return rows


def _written(
    example: Example, target: Format, as_chat: bool, lossy: bool
) -> Sequence[Mapping[str, Any]]:
    match target:
        case Format.PREFERENCE:
            return [_pair(example, as_chat)]
        case Format.KTO:
            return _labelled(example, as_chat)
    if not _is_to_learn(example, target, lossy):
        return []
    match target:
        case Format.MESSAGES:
            return [{"messages": _plain(example.messages)}]
        case Format.SHAREGPT:
            said = [
                {"from": _SHAREGPT_NAMES[turn["role"]], "value": turn["content"]}
                for turn in example.messages
            ]
            return [{"conversations": said}]
        case Format.INSTRUCTION:
            return [_instruction(example)]
        case Format.PROMPT_COMPLETION:
            answer = _answer(example.answer, as_chat)
            return [{"prompt": _prompt(example, target, as_chat), "completion": answer}]
        case _:
            return [{"prompt": _prompt(example, target, False), "output": example.answer}]


def _is_to_learn(example: Example, target: Format, lossy: bool) -> bool:
    """Whether a format that holds only good answers gets a row of it."""
    if lossy or example.kind is Kind.SUPERVISED:
        return example.label is not False
    loss = (
        "the rejected answer would be lost; --lossy leaves it out"
        if example.kind is Kind.PREFERENCE
        else "whether its answer is a good one would be lost; --lossy keeps the good ones"
    )
    raise LossyConversionError(target, loss)


def _pair(example: Example, as_chat: bool) -> Mapping[str, Any]:
    if example.rejected is None:
        raise LossyConversionError(Format.PREFERENCE, "it has one answer, and a pair has two")
    return {
        "prompt": _prompt(example, Format.PREFERENCE, as_chat),
        "chosen": _answer(example.answer, as_chat),
        "rejected": _answer(example.rejected, as_chat),
    }


def _labelled(example: Example, as_chat: bool) -> Sequence[Mapping[str, Any]]:
    prompt = _prompt(example, Format.KTO, as_chat)
    match example.kind:
        case Kind.SUPERVISED:
            raise LossyConversionError(Format.KTO, "nobody said whether its answer is a good one")
        case Kind.LABELLED:
            judged = [(example.answer, example.label)]
        case Kind.PREFERENCE:
            judged = [(example.answer, True), (example.rejected or "", False)]
    return [
        {"prompt": prompt, "completion": _answer(answer, as_chat), "label": label}
        for answer, label in judged
    ]


def _prompt(example: Example, target: Format, as_chat: bool) -> str | Messages:
    if as_chat:
        return _plain(example.prompt)
    match example.prompt:
        case [{"role": "user", "content": content}]:
            return content
    raise LossyConversionError(
        target,
        f"{len(example.prompt)} messages come before the answer, and a text is one;"
        " --chat writes them as messages"
        if target is not Format.PROMPT_OUTPUT
        else f"{len(example.prompt)} messages come before the answer, and a text is one",
    )


def _answer(text: str, as_chat: bool) -> str | Messages:
    return [{"role": "assistant", "content": text}] if as_chat else text


def _instruction(example: Example) -> Mapping[str, Any]:
    """Alpaca's fields; earlier rounds as LLaMA-Factory's history."""
    turns = list(example.prompt)
    system = [turns.pop(0)["content"]] if turns and turns[0]["role"] == "system" else []
    roles = [turn["role"] for turn in turns]
    if roles != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        raise LossyConversionError(
            Format.INSTRUCTION, f"its turns do not alternate: {', '.join(roles)[:80]}"
        )
    texts = [turn["content"] for turn in turns]
    rounds = [texts[at : at + 2] for at in range(0, len(texts) - 1, 2)]
    return {
        "instruction": texts[-1],
        "input": "",
        "output": example.answer,
        **({"system": system[0]} if system else {}),
        **({"history": rounds} if rounds else {}),
    }


def _plain(messages: Messages) -> Messages:
    return [{"role": turn["role"], "content": turn["content"]} for turn in messages]
