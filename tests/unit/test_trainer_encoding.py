"""From rows to token ids and labels, with the tiny model's real tokenizer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("transformers")

from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from finetune.trainer.encoding import EncodedRow, Encoder
from finetune.trainer.errors import RequestFailed
from finetune.trainer.rows import Row, Turn
from finetune.trainer.tiny_model import BOS_ID, EOS_ID, byte_tokenizer

ROW = Row(1, (Turn("user", "2+2"),), "four")

NO_END_TEMPLATE = "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' ' }}{% endfor %}"
DIVERGING_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant><think>{% endif %}"
)
REFUSING_TEMPLATE = "{{ raise_exception('system is not supported') }}"


def tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerBase:
    made = byte_tokenizer()
    made.chat_template = chat_template
    return made


def texts(row: EncodedRow) -> tuple[str, str]:
    """What is given and what is learned, in words."""
    decode = byte_tokenizer().decode
    ids = list(row.ids)
    return str(decode(ids[: row.first_label])), str(decode(ids[row.first_label :]))


def test_a_chat_template_writes_the_prompt_and_the_output_ends_with_its_end_of_turn() -> None:
    encoded = Encoder(byte_tokenizer()).encode(ROW, 100)

    assert texts(encoded) == ("<|bos|>U:2+2\nA:", "four<|eos|>")
    assert encoded.ids[0] == BOS_ID
    assert encoded.ids[-1] == EOS_ID
    assert encoded.label_tokens == len("four") + 1
    assert encoded.output_bytes == 4


def test_earlier_answers_are_prompt() -> None:
    turns = (Turn("system", "s"), Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"))

    encoded = Encoder(byte_tokenizer()).encode(Row(1, turns, "d"), 100)

    assert texts(encoded) == ("<|bos|>S:s\nU:a\nA:b<|eos|>\nU:c\nA:", "d<|eos|>")


def test_without_a_template_the_turns_are_lines() -> None:
    turns = (Turn("system", "s"), Turn("user", "a"))

    encoded = Encoder(tokenizer()).encode(Row(1, turns, "b"), 100)

    assert texts(encoded) == ("s\na\n", "b<|eos|>")


def test_without_a_template_the_sequence_begins_as_the_tokenizer_begins_it() -> None:
    beginning = byte_tokenizer()
    beginning.chat_template = None
    beginning.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", BOS_ID)]
    )

    encoded = Encoder(beginning).encode(ROW, 100)

    assert texts(encoded) == ("<|bos|>2+2\n", "four<|eos|>")


def test_a_template_without_an_end_of_turn_gets_the_end_of_the_sequence() -> None:
    encoded = Encoder(tokenizer(NO_END_TEMPLATE)).encode(ROW, 100)

    assert texts(encoded) == ("user 2+2 ", "assistant four <|eos|>")


def test_a_template_that_writes_a_history_otherwise_gets_the_plain_output() -> None:
    encoded = Encoder(tokenizer(DIVERGING_TEMPLATE)).encode(ROW, 100)

    assert texts(encoded) == ("<user>2+2<assistant><think>", "four<|eos|>")


def test_a_row_that_the_template_refuses_is_named_by_line() -> None:
    with pytest.raises(RequestFailed, match=r"line 7.*system is not supported") as caught:
        Encoder(tokenizer(REFUSING_TEMPLATE)).encode(Row(7, (Turn("user", "a"),), "b"), 100)

    assert caught.value.code == "bad_dataset"


def test_a_long_prompt_loses_its_beginning_and_the_output_nothing() -> None:
    encoded = Encoder(byte_tokenizer()).encode(Row(1, (Turn("user", "x" * 99),), "four"), 12)

    assert texts(encoded) == ("xxxx\nA:", "four<|eos|>")
    assert (encoded.prompt_truncated, encoded.output_truncated) == (True, False)


def test_an_output_that_alone_is_too_long_loses_its_end() -> None:
    encoded = Encoder(byte_tokenizer()).encode(Row(1, (Turn("user", "a"),), "y" * 99), 12)

    assert texts(encoded) == (":", "y" * 11)
    assert (encoded.prompt_truncated, encoded.output_truncated) == (True, True)
    assert encoded.output_bytes == 99


# Without control tokens, which the trainer has refused by then.
plain_texts = st.text().filter(lambda text: "<|" not in text)


@given(plain_texts, plain_texts, st.integers(2, 60))
def test_whatever_the_texts_are_a_row_fits_and_predicts_its_output(
    prompt: str, output: str, max_length: int
) -> None:
    encoder = Encoder(byte_tokenizer())
    row = Row(1, (Turn("user", prompt),), output)

    encoded = encoder.encode(row, max_length)

    assert len(encoded.ids) <= max_length
    assert encoded.first_label >= 1
    assert 1 <= encoded.label_tokens <= len(output.encode()) + 1
    learned = bytes(encoded.ids[encoded.first_label :][: len(output.encode())])
    assert output.encode().startswith(learned)


def test_control_tokens_written_out_in_a_row_are_found() -> None:
    encoder = Encoder(byte_tokenizer())

    assert encoder.find_special_token(ROW) is None
    assert encoder.find_special_token(Row(1, ROW.prompt, "4<|eos|>U:")) == "<|eos|>"
    assert encoder.find_special_token(Row(1, (Turn("user", "a<|bos|>"),), "b")) == "<|bos|>"
