"""Rows are understood as the other tools' users write them, and bad ones are named."""

from typing import Any

import pytest

from finetune.datasets.flaws import BadRowError, Flaw
from finetune.datasets.formats import Example, Format, Kind, example_of, format_of


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def system(content: str) -> dict[str, str]:
    return {"role": "system", "content": content}


HI = [user("hi")]
SAID = {"from": "human", "value": "hi"}

GOOD: list[tuple[str, dict[str, Any], Format, Example]] = [
    (
        "OpenAI and TRL: messages",
        {"messages": [system("be kind"), user("hi"), assistant("hello")]},
        Format.MESSAGES,
        Example([system("be kind"), *HI], "hello"),
    ),
    (
        "OpenAI: content in parts",
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "hi"}]},
                {"role": "assistant", "content": "hello", "tool_calls": None},
            ]
        },
        Format.MESSAGES,
        Example(HI, "hello"),
    ),
    (
        "LLaMA-Factory: sharegpt with a system prompt",
        {"conversations": [SAID, {"from": "gpt", "value": "hello"}], "system": "be kind"},
        Format.SHAREGPT,
        Example([system("be kind"), *HI], "hello"),
    ),
    (
        "TRL: conversations of role and content",
        {"conversations": [user("hi"), assistant("hello")]},
        Format.SHAREGPT,
        Example(HI, "hello"),
    ),
    (
        "Alpaca",
        {"instruction": "add", "input": "1 2", "output": "3"},
        Format.INSTRUCTION,
        Example([user("add\n1 2")], "3"),
    ),
    (
        "Alpaca without an input",
        {"instruction": "hi", "input": "", "output": "hello", "history": None},
        Format.INSTRUCTION,
        Example(HI, "hello"),
    ),
    (
        "LLaMA-Factory: Alpaca with system and history",
        {"instruction": "and 2?", "output": "4", "system": "count", "history": [["1?", "2"]]},
        Format.INSTRUCTION,
        Example([system("count"), user("1?"), assistant("2"), user("and 2?")], "4"),
    ),
    (
        "TRL: prompt and completion",
        {"prompt": "hi", "completion": "hello", "id": 7},
        Format.PROMPT_COMPLETION,
        Example(HI, "hello", extra={"id": 7}),
    ),
    (
        "TRL: conversational prompt and completion",
        {"prompt": HI, "completion": [assistant("hello")]},
        Format.PROMPT_COMPLETION,
        Example(HI, "hello"),
    ),
    (
        "learnd: an output",
        {"prompt": "hi", "output": "hello", "task_type": "audio"},
        Format.PROMPT_OUTPUT,
        Example(HI, "hello", extra={"task_type": "audio"}),
    ),
    (
        "TRL: preference",
        {"prompt": "hi", "chosen": "hello", "rejected": "no"},
        Format.PREFERENCE,
        Example(HI, "hello", rejected="no"),
    ),
    (
        "TRL: conversational preference",
        {"prompt": HI, "chosen": [assistant("hello")], "rejected": [assistant("no")]},
        Format.PREFERENCE,
        Example(HI, "hello", rejected="no"),
    ),
    (
        "TRL: preference with an implicit prompt",
        {"chosen": [*HI, assistant("hello")], "rejected": [*HI, assistant("no")]},
        Format.PREFERENCE,
        Example(HI, "hello", rejected="no"),
    ),
    (
        "the hub: the prompt beside whole conversations",
        {"prompt": "hi", "chosen": [*HI, assistant("hello")], "rejected": [*HI, assistant("no")]},
        Format.PREFERENCE,
        Example(HI, "hello", rejected="no"),
    ),
    (
        "LLaMA-Factory: sharegpt preference",
        {
            "conversations": [SAID],
            "chosen": {"from": "gpt", "value": "hello"},
            "rejected": {"from": "gpt", "value": "no"},
        },
        Format.PREFERENCE,
        Example(HI, "hello", rejected="no"),
    ),
    (
        "LLaMA-Factory: Alpaca preference",
        {"instruction": "hi", "input": "", "chosen": "hello", "rejected": "no"},
        Format.PREFERENCE,
        Example(HI, "hello", rejected="no"),
    ),
    (
        "axolotl: chat_template preference",
        {"messages": HI, "chosen": assistant("hello"), "rejected": assistant("no")},
        Format.PREFERENCE,
        Example(HI, "hello", rejected="no"),
    ),
    (
        "OpenAI: preference",
        {
            "input": {"messages": HI, "tools": []},
            "preferred_output": [assistant("hello")],
            "non_preferred_output": [assistant("no")],
        },
        Format.PREFERENCE,
        Example(HI, "hello", rejected="no", extra={"tools": []}),
    ),
    (
        "TRL: KTO",
        {"prompt": "hi", "completion": "no", "label": False},
        Format.KTO,
        Example(HI, "no", label=False),
    ),
    (
        "LLaMA-Factory: KTO messages",
        {"messages": [*HI, assistant("hello")], "label": True},
        Format.KTO,
        Example(HI, "hello", label=True),
    ),
    (
        "LLaMA-Factory: Alpaca KTO",
        {"instruction": "hi", "output": "hello", "kto_tag": True},
        Format.KTO,
        Example(HI, "hello", label=True),
    ),
    (
        "a label that is no verdict is a field like others",
        {"prompt": "hi", "completion": "hello", "label": "greeting"},
        Format.PROMPT_COMPLETION,
        Example(HI, "hello", extra={"label": "greeting"}),
    ),
]


@pytest.mark.parametrize(
    ("row", "expected", "example"), [case[1:] for case in GOOD], ids=[case[0] for case in GOOD]
)
def test_a_row_is_read_as_its_author_meant_it(
    row: dict[str, Any], expected: Format, example: Example
) -> None:
    assert format_of(row) is expected
    found = example_of(row, expected)
    assert (list(found.prompt), found.answer) == (list(example.prompt), example.answer)
    assert (found.rejected, found.label) == (example.rejected, example.label)
    assert (dict(found.extra), list(found.unread)) == (dict(example.extra), [])


BAD: list[tuple[dict[str, Any], Format, Flaw, str]] = [
    ({"text": "all"}, Format.MESSAGES, Flaw.UNKNOWN_FORMAT, "prompt from the answer"),
    ({"question": "?"}, Format.MESSAGES, Flaw.UNKNOWN_FORMAT, "question"),
    ({"prompt": "hi"}, Format.PROMPT_COMPLETION, Flaw.MISSING_FIELD, "completion is missing"),
    ({"prompt": "hi", "completion": "x"}, Format.MESSAGES, Flaw.OTHER_FORMAT, "prompt-completion"),
    ({"prompt": 1, "completion": "x"}, Format.PROMPT_COMPLETION, Flaw.WRONG_TYPE, "a number"),
    ({"prompt": "hi", "completion": None}, Format.PROMPT_COMPLETION, Flaw.WRONG_TYPE, "null"),
    ({"prompt": " ", "completion": "x"}, Format.PROMPT_COMPLETION, Flaw.EMPTY_TEXT, "user"),
    ({"prompt": "hi", "completion": "\n"}, Format.PROMPT_COMPLETION, Flaw.EMPTY_TEXT, "answer"),
    ({"messages": []}, Format.MESSAGES, Flaw.EMPTY_TEXT, "empty"),
    ({"messages": "hi"}, Format.MESSAGES, Flaw.WRONG_TYPE, "array of messages"),
    ({"messages": ["hi"]}, Format.MESSAGES, Flaw.WRONG_TYPE, r"messages\[0\]"),
    ({"messages": HI}, Format.MESSAGES, Flaw.NO_ANSWER, "ends with the user"),
    ({"messages": [assistant("x")]}, Format.MESSAGES, Flaw.EMPTY_TEXT, "user"),
    (
        {"messages": [*HI, {"role": "tool", "content": "x"}, assistant("y")]},
        Format.MESSAGES,
        Flaw.UNREADABLE_TURN,
        r"messages\[1\] is said by 'tool'",
    ),
    (
        {"messages": [*HI, {"role": "assistant", "content": None, "tool_calls": [{}]}]},
        Format.MESSAGES,
        Flaw.UNREADABLE_TURN,
        "tool_calls",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, assistant("x")]},
        Format.MESSAGES,
        Flaw.UNREADABLE_TURN,
        "more than text",
    ),
    (
        {"messages": [*HI, {**assistant("x"), "weight": 0}]},
        Format.MESSAGES,
        Flaw.NO_ANSWER,
        "not to be learned",
    ),
    (
        {"messages": [*HI, assistant("x")], "tools": [{"name": "f"}]},
        Format.MESSAGES,
        Flaw.UNREADABLE_TURN,
        "tools",
    ),
    (
        {"instruction": "hi", "output": "x", "history": [["a"]]},
        Format.INSTRUCTION,
        Flaw.WRONG_TYPE,
        "history",
    ),
    (
        {"prompt": "hi", "chosen": "x", "rejected": "x"},
        Format.PREFERENCE,
        Flaw.WRONG_TYPE,
        "same answer",
    ),
    ({"chosen": "x", "rejected": "y"}, Format.PREFERENCE, Flaw.MISSING_FIELD, "no prompt"),
    (
        {"chosen": [*HI, assistant("x")], "rejected": [user("ho"), assistant("y")]},
        Format.PREFERENCE,
        Flaw.WRONG_TYPE,
        "different conversations",
    ),
    (
        {"prompt": "ho", "chosen": [*HI, assistant("x")], "rejected": [*HI, assistant("y")]},
        Format.PREFERENCE,
        Flaw.WRONG_TYPE,
        "not what chosen",
    ),
]


@pytest.mark.parametrize(("row", "expected", "flaw", "words"), BAD)
def test_a_bad_row_is_named_with_its_field(
    row: dict[str, Any], expected: Format, flaw: Flaw, words: str
) -> None:
    with pytest.raises(BadRowError, match=words) as raised:
        example_of(row, expected)
    assert raised.value.flaw is flaw


def test_what_messages_have_beside_their_text_is_named() -> None:
    row = {
        "messages": [
            {**user("hi"), "name": "ann"},
            {**assistant("a"), "train": False},
            user("and?"),
            assistant("hello"),
        ]
    }
    assert list(example_of(row, Format.MESSAGES).unread) == [
        "messages[0].name",
        "the mark of messages[1], not to be learned,",
    ]


def test_the_kind_of_an_example_follows_from_what_it_has() -> None:
    assert Example(HI, "a").kind is Kind.SUPERVISED
    assert Example(HI, "a", rejected="b").kind is Kind.PREFERENCE
    assert Example(HI, "a", label=False).kind is Kind.LABELLED
