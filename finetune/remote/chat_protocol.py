"""The part of OpenAI's chat protocol that answers are read by, and vLLM's addition to it.

What a service sends is outside data: its types are checked strictly, and what is not known here
is passed over. Log-probabilities of a *given* text are no part of the protocol. vLLM offers them
to a request with `prompt_logprobs`: one entry per token of the prompt beside the answer, None
for the first token, otherwise by token id its log-probability and its rank among all tokens.
With `prompt_logprobs: 0` an entry holds the token of the prompt and no other. Minus infinity is
sent as -9999. (Read in vllm/entrypoints/openai/chat_completion, November 2026.)
"""

import math
from collections.abc import Sequence
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError


class TokenLikelihood(BaseModel):
    """What a model thinks of one token of a given text."""

    model_config = ConfigDict(strict=True, frozen=True)

    logprob: float = Field(le=1e-3, allow_inf_nan=False)
    """Natural; rounding may leave it a little above 0."""
    rank: int = Field(ge=1)
    """1 is the most probable token."""


class Message(BaseModel):
    """What the model said; nothing at all when it refused or called a tool."""

    model_config = ConfigDict(strict=True)

    content: str | None = None


class Choice(BaseModel):
    """One of the answers; only the first is asked for."""

    model_config = ConfigDict(strict=True)

    message: Message
    logprobs: object = None
    """Of the answer's tokens, where they were asked for; read by `mean_logprob`."""


class AnswerToken(BaseModel):
    """What the model thinks of one token of its answer."""

    model_config = ConfigDict(strict=True)

    logprob: float = Field(le=1e-3, allow_inf_nan=False)


class AnswerTokens(BaseModel):
    """All of them."""

    model_config = ConfigDict(strict=True)

    content: list[AnswerToken] = Field(min_length=1)


class ChatCompletion(BaseModel):
    """The answer to a request."""

    model_config = ConfigDict(strict=True)

    choices: list[Choice] = Field(min_length=1)
    prompt_logprobs: object = None
    """Not everybody means the same by it: read by `prompt_tokens`."""

    @property
    def text(self) -> str:
        """What was answered."""
        return self.choices[0].message.content or ""

    def mean_logprob(self) -> float | None:
        """Of the answer's tokens, in nats; None where the service does not say."""
        try:
            tokens = AnswerTokens.model_validate(self.choices[0].logprobs).content
        except ValidationError:
            return None
        return min(0.0, math.fsum(token.logprob for token in tokens) / len(tokens))

    def prompt_tokens(self) -> Sequence[tuple[str, TokenLikelihood]] | None:
        """Id and likelihood of each prompt token but the first; None where there are none.

        So too where they have another form, or an entry names several tokens, because it does
        not say which was meant.
        """
        try:
            first, *others = _PROMPT_LOGPROBS.validate_python(self.prompt_logprobs)
        except ValidationError:
            return None
        if first is not None or any(entry is None or len(entry) != 1 for entry in others):
            return None
        return [item for entry in others if entry is not None for item in entry.items()]


COMPLETION: Final = TypeAdapter(ChatCompletion)
_PROMPT_LOGPROBS: Final = TypeAdapter(
    Annotated[list[dict[str, TokenLikelihood] | None], Field(min_length=1)]
)
