"""From tokens to text as they come, where a token's text depends on its neighbours."""

import pytest

pytest.importorskip("transformers")

from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from finetune.trainer.generate import _Text
from finetune.trainer.tiny_model import byte_tokenizer


def pieces(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    text = _Text(tokenizer)
    said = [*(text.add(token) for token in ids), text.finish()]
    assert text.said == "".join(said) == tokenizer.decode(ids, skip_special_tokens=True)
    return said


def test_a_character_is_said_when_its_last_byte_has_come() -> None:
    assert pieces(byte_tokenizer(), list("aé😀b".encode())) == [
        *("a", "", "é"),
        *("", "", "", "😀"),
        *("b", ""),
    ]


def test_a_space_that_decoding_drops_at_the_beginning_is_kept_between_words() -> None:
    tokenizer = Tokenizer(models.WordLevel({"▁hello": 0, "▁world": 1, "s": 2}, unk_token="s"))
    tokenizer.decoder = decoders.Metaspace()
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer)  # type: ignore[no-untyped-call]

    assert pieces(words, [0, 1, 2, 1]) == ["hello", " world", "s", " world", ""]


def test_bytes_that_never_became_a_character_are_said_at_the_end() -> None:
    assert pieces(byte_tokenizer(), [*b"a", 0xE9]) == ["a", "", "\ufffd"]
