"""From a row to token ids, and the place in them where the output begins.

Prompt and output are tokenized apart, so that the boundary between what is
given and what is learned is exact. It neither pads nor makes tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from finetune.trainer.errors import RequestFailed
from finetune.trainer.protocol import SkippedRow
from finetune.trainer.rows import Row, Turn


@dataclass(frozen=True)
class EncodedRow:
    """Token ids of prompt and output; those from ``first_label`` on are learned or scored.

    ``first_label`` is at least 1, because nothing predicts the first token.
    """

    line: int
    ids: tuple[int, ...]
    first_label: int
    output_bytes: int
    prompt_truncated: bool
    output_truncated: bool
    tokens_cut: int
    """Of prompt and output together."""

    @property
    def label_tokens(self) -> int:
        """Number of tokens learned or scored; 0 when nothing is left of the output."""
        return max(0, len(self.ids) - self.first_label)


class Encoder:
    """One tokenizer's way to write a conversation down."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._end: str = tokenizer.eos_token or ""
        added = tokenizer.added_tokens_decoder.values()
        self._special_tokens = tuple(token.content for token in added if token.special)
        self._begin = () if tokenizer.chat_template else _begin_ids(tokenizer)

    def encode(self, row: Row, max_length: int) -> EncodedRow:
        """Ids of at most ``max_length``, which is at least 2.

        A prompt that is too long loses its beginning. An output that alone is
        too long loses its end, and keeps one token of the prompt before it.
        Raises RequestFailed (bad_dataset) when the chat template refuses the row.
        """
        try:
            prompt_text, output_text = self._render(row)
        except TemplateError as error:
            raise RequestFailed(
                "bad_dataset", f"line {row.line}: the model's chat template refuses it: {error}"
            ) from error
        prompt = [*self._begin, *self._ids(prompt_text)]
        output = self._ids(output_text)
        kept_output = output[: max_length - 1]
        kept_prompt = prompt[max(0, len(prompt) + len(kept_output) - max_length) :]
        return EncodedRow(
            line=row.line,
            ids=(*kept_prompt, *kept_output),
            first_label=max(1, len(kept_prompt)),
            output_bytes=len(row.output.encode()),
            prompt_truncated=len(kept_prompt) < len(prompt),
            output_truncated=len(kept_output) < len(output),
            tokens_cut=len(prompt) + len(output) - len(kept_prompt) - len(kept_output),
        )

    def find_special_token(self, row: Row) -> str | None:
        """A control token of the model that stands written out in the row's text, if any.

        The tokenizer would take it for a real one, so a row could end its turn
        early or open one in another role.
        """
        texts = (row.output, *(turn.content for turn in row.prompt))
        return next(
            (token for token in self._special_tokens if any(token in text for text in texts)), None
        )

    def encode_prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Ids of a conversation that the model is to continue.

        Raises RequestFailed (bad_request) when the chat template refuses it.
        """
        try:
            return [*self._begin, *self._ids(self._render_prompt(turns))]
        except TemplateError as error:
            raise RequestFailed(
                "bad_request", f"the model's chat template refuses the messages: {error}"
            ) from error

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _render(self, row: Row) -> tuple[str, str]:
        prompt = self._render_prompt(row.prompt)
        if self._tokenizer.chat_template:
            whole = self._apply_template((*row.prompt, Turn("assistant", row.output)))
            # Templates differ between the prompt of a reply and the same turns
            # in a history (some drop reasoning): then the plain text decides.
            if whole.startswith(prompt):
                return prompt, self._ended(whole.removeprefix(prompt))
        return prompt, row.output + self._end

    def _render_prompt(self, turns: Sequence[Turn]) -> str:
        if self._tokenizer.chat_template:
            return self._apply_template(turns, add_generation_prompt=True)
        return "\n".join(turn.content for turn in turns) + "\n"

    def _apply_template(self, turns: Sequence[Turn], add_generation_prompt: bool = False) -> str:
        text = self._tokenizer.apply_chat_template(
            [{"role": turn.role, "content": turn.content} for turn in turns],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
        return str(text)

    def _ended(self, output: str) -> str:
        """The output up to its end-of-turn token, without the line break that follows it."""
        stripped = output.rstrip()
        return stripped if stripped.endswith(self._special_tokens) else output + self._end


def encode_or_skip(encoder: Encoder, row: Row, max_length: int) -> EncodedRow | SkippedRow:
    """A row to learn from, with a label token; or why nothing can be learned from it."""
    if not row.output.strip():
        return SkippedRow(line=row.line, reason="the output is empty")
    if token := encoder.find_special_token(row):
        return SkippedRow(
            line=row.line, reason=f"the text contains the model's control token {token}"
        )
    encoded = encoder.encode(row, max_length)
    if not encoded.label_tokens:
        return SkippedRow(
            line=row.line, reason=f"nothing of the output fits into {max_length} tokens"
        )
    return encoded


def _begin_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The begin-of-sequence token, if this tokenizer is used to put one."""
    ids: list[int] = tokenizer("a")["input_ids"]
    begins = bool(ids) and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
    return (ids[0],) if begins else ()
