"""The tiny model's tokenizer and the exercises that it is pre-trained on."""

from itertools import islice
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from finetune.trainer.encoding import Encoder
from finetune.trainer.rows import Row, Turn
from finetune.trainer.string_tasks import make_exercise
from finetune.trainer.tiny_model import BOS_ID, EOS_ID, PAD_ID, _packed_exercises, byte_tokenizer


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """The tokenizer as anyone gets it: written to a directory and loaded by name."""
    directory: Path = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer().save_pretrained(str(directory))
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(directory))
    return loaded


@given(text=st.text())
def test_any_text_comes_back_as_it_was(reloaded: PreTrainedTokenizerBase, text: str) -> None:
    assert reloaded.decode(reloaded(text, add_special_tokens=False)["input_ids"]) == text


@given(text=st.text().filter(lambda text: "<|" not in text))
def test_the_id_of_a_byte_is_its_value(reloaded: PreTrainedTokenizerBase, text: str) -> None:
    assert reloaded(text, add_special_tokens=False)["input_ids"] == list(text.encode())


@pytest.mark.parametrize("text", ["a , b . ' s", "  two  ", "\r\n\t", "\x00", "é😀", "<|eos|>"])
def test_texts_that_tokenizers_like_to_tidy_come_back_as_they_were(
    reloaded: PreTrainedTokenizerBase, text: str
) -> None:
    assert reloaded.decode(reloaded(text, add_special_tokens=False)["input_ids"]) == text


def test_special_tokens_are_known_by_name_and_id(reloaded: PreTrainedTokenizerBase) -> None:
    assert len(reloaded) == 259
    assert reloaded.pad_token_id == PAD_ID
    assert reloaded.bos_token_id == BOS_ID
    assert reloaded.eos_token_id == EOS_ID
    assert reloaded("<|eos|>", add_special_tokens=False)["input_ids"] == [EOS_ID]
    assert reloaded.decode([65, EOS_ID, PAD_ID], skip_special_tokens=True) == "A"


def test_pre_training_packs_the_same_ids_that_the_chat_template_gives() -> None:
    encoder = Encoder(byte_tokenizer())
    rng = Random(5)
    expected: list[int] = []
    while len(expected) < 129:
        prompt, output = make_exercise(rng)
        expected += encoder.encode(Row(1, (Turn("user", prompt),), output), 1024).ids

    ids, weights = next(_packed_exercises(Random(5)))

    assert ids == expected[:129]
    assert len(weights) == 129


def test_exercises_follow_from_the_seed() -> None:
    first, again, other = (list(islice(_packed_exercises(Random(seed)), 3)) for seed in (1, 1, 2))

    assert first == again != other


def test_exercises_have_a_prompt_and_an_output() -> None:
    rng = Random(0)

    for _ in range(2000):
        prompt, output = make_exercise(rng)
        assert prompt.strip()
        assert output.strip()
        assert len(prompt) + len(output) < 250
