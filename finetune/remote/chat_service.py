"""Ask a service that speaks OpenAI's chat protocol, and take nothing it says on trust.

A request has a limit in time, its answer one in bytes, and a passing failure is tried again with
the waits that the service asks for, up to a cap. Redirects are not followed: the key is for one
address. Whatever comes of it is an answer of the right shape or a JobFailedError. It does not
say whether an answer is good (scorers.py), nor which answers are asked for (chat_evaluator.py).
"""

import asyncio
import contextlib
import importlib
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import stamina
from pydantic import ValidationError

from finetune.remote.access import ServiceAccess
from finetune.remote.address import AddressRefusedError
from finetune.remote.chat_protocol import COMPLETION, ChatCompletion, TokenLikelihood
from learning.ports import Answer, JobFailedError

if TYPE_CHECKING:
    import httpx2
    from openai import AsyncOpenAI

Turns = Sequence[Mapping[str, str]]
"""A conversation, each turn with `role` and `content`."""

MOST_RESPONSE_BYTES: Final = 16 * 1024 * 1024
"""Log-probabilities of a long prompt take some hundred bytes a token."""
MOST_WORDS: Final = 200
"""Characters of a service's own words that go into an error."""
NO_KEY: Final = "none"
"""Sent where no key is set: left out, the SDK would take OPENAI_API_KEY, another service's."""
MASK: Final = "********"
RETRIED: Final = frozenset({408, 409, 429})
"""Beside everything from 500 on."""
UNKNOWN_PARAMETER: Final = frozenset({400, 422})


@dataclass(frozen=True)
class ChatLimits:
    """How a chat service is spoken to."""

    timeout: timedelta = timedelta(seconds=60)
    """For one request and the whole of its answer."""
    concurrency: int = 8
    """Examples at a time, and so requests, of one evaluation."""
    retries: int = 10
    """After the first try of a request: some minutes, for a model that was paid for."""
    first_wait: timedelta = timedelta(seconds=1)
    """Before the first retry; doubled each time."""
    longest_wait: timedelta = timedelta(seconds=60)
    """Before any retry, whatever the service asks for."""
    max_answer_tokens: int = 1024


class ParameterRefusedError(Exception):
    """The service does not take a request as it is: it knows a parameter of it not."""


class _UnfitError(Exception):
    """An answer is not read to its end; the message says why."""


class _PassingError(Exception):
    """A failure that may be over soon, with the wait that the service asks for."""

    def __init__(self, code: str, message: str, wait_seconds: float | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.wait_seconds = code, message, wait_seconds


class ChatService:
    """An open connection; `connect` makes one."""

    def __init__(self, client: "AsyncOpenAI", access: ServiceAccess, limits: ChatLimits) -> None:
        self._client = client
        self._key = access.api_key
        self._limits = limits
        self._place = access.base_url

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(
        cls, access: ServiceAccess, limits: ChatLimits
    ) -> AsyncIterator["ChatService"]:
        """Ready to be asked; nothing is sent yet.

        Raises JobFailedError for an address or a key that cannot be.
        """
        key = access.api_key.get_secret_value() if access.api_key else NO_KEY
        if not (key.isascii() and key.isprintable()):
            message = f"the key for {access.base_url} has characters that no key has"
            raise JobFailedError("bad_key", message, retryable=False)
        # Imported here, beside the event loop: it takes a second, and few daemons need it.
        await asyncio.to_thread(importlib.import_module, "openai")
        from openai import AsyncOpenAI

        try:
            http_client = _http_client(access, limits)
        except AddressRefusedError as error:
            raise JobFailedError("service_refused", str(error), retryable=False) from error
        async with AsyncOpenAI(
            base_url=access.base_url,
            api_key=key,
            max_retries=0,  # they are ours, with the waits that the service asks for
            http_client=http_client,
        ) as client:
            yield cls(client, access, limits)

    async def answer(
        self, model: str, prompt: Turns, *, max_tokens: int, temperature: float = 0.0
    ) -> str:
        """What a model answers. Empty when it refuses to. Raises JobFailedError."""
        completion = await self._ask(model, prompt, max_tokens=max_tokens, temperature=temperature)
        return completion.text

    async def answer_with_confidence(self, model: str, prompt: Turns, *, max_tokens: int) -> Answer:
        """What a model answers at temperature 0, and how sure it is, where the service says.

        Raises JobFailedError.
        """
        told = {"max_tokens": max_tokens, "temperature": 0.0}
        try:
            completion = await self._ask(model, prompt, **told, logprobs=True)
        except ParameterRefusedError:
            completion = await self._ask(model, prompt, **told)
        mean = completion.mean_logprob()
        return Answer(completion.text, None if mean is None else math.exp(mean))

    async def likelihood(
        self, model: str, prompt: Turns, answer: str
    ) -> Sequence[TokenLikelihood] | None:
        """How likely a model finds each token of a given answer, its end not included.

        None where the service does not say. Raises JobFailedError.
        """
        told = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        given = [*prompt, {"role": "assistant", "content": answer}]
        try:
            whole = await self._ask(
                model, given, **told, add_generation_prompt=False, continue_final_message=True
            )
            if (tokens := whole.prompt_tokens()) is None:
                return None
            before = (await self._ask(model, prompt, **told)).prompt_tokens()
        except ParameterRefusedError:
            return None
        if before is None or len(tokens) <= len(before):
            return None
        # The answer's tokens are those that the prompt alone does not have. Where the template
        # writes the two differently nobody can tell which they are.
        if [key for key, _ in before] != [key for key, _ in tokens[: len(before)]]:
            return None
        return [likelihood for _, likelihood in tokens[len(before) :]]

    async def _ask(self, model: str, messages: Turns, **parameters: Any) -> ChatCompletion:
        """Raises JobFailedError, and ParameterRefusedError only when log-probabilities are
        asked for."""
        body = {"model": model, "messages": list(messages), **parameters}
        limits = self._limits
        try:
            async for attempt in stamina.retry_context(
                on=self._wait_before_retry,
                attempts=limits.retries + 1,
                timeout=None,
                wait_initial=limits.first_wait,
                wait_max=limits.longest_wait,
                wait_jitter=limits.first_wait,
            ):
                with attempt:
                    return await self._ask_once(model, body)
        except _PassingError as error:
            raise JobFailedError(error.code, error.message, retryable=True) from error
        raise AssertionError("the loop above ends by itself")

    def _wait_before_retry(self, error: Exception) -> bool | float:
        """Whether to try again; a number is the wait in seconds that the service asks for."""
        if not isinstance(error, _PassingError):
            return False
        if error.wait_seconds is None:
            return True
        return min(error.wait_seconds, self._limits.longest_wait.total_seconds())

    async def _ask_once(self, model: str, body: Mapping[str, Any]) -> ChatCompletion:
        import httpx2
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        try:
            async with asyncio.timeout(self._limits.timeout.total_seconds()):
                response = await self._client.post(
                    "/chat/completions", body=dict(body), cast_to=httpx2.Response
                )
        except (TimeoutError, APITimeoutError) as error:
            limit = self._limits.timeout.total_seconds()
            message = f"{self._place} took longer than {limit:g} s"
            raise _PassingError("service_timed_out", message) from error
        except APIStatusError as error:
            raise self._refusal(model, body, error.response) from None
        except APIConnectionError as error:
            if isinstance(error.__cause__, AddressRefusedError):
                refused = str(error.__cause__)
                raise JobFailedError("service_refused", refused, retryable=False) from error
            cause = type(error.__cause__ or error).__name__
            message = f"{self._place} cannot be reached: {cause}"
            raise _PassingError("service_unreachable", message) from error
        except _UnfitError as error:
            raise self._junk(str(error)) from error
        try:
            return COMPLETION.validate_json(response.content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise self._junk(f"{where}: {first['msg']}" if where else first["msg"]) from None

    def _refusal(self, model: str, body: Mapping[str, Any], response: Any) -> Exception:
        """What a status other than success means."""
        status: int = response.status_code
        said = f"{self._place} answered {status}{self._words(response.text)}"
        if status in RETRIED or status >= 500:
            return _PassingError(
                "service_unavailable", said, _seconds(response.headers.get("retry-after"))
            )
        if status == 404:
            # A model that was trained a moment ago may not be served everywhere yet.
            message = f"{self._place} does not serve {model!r} now: {said}"
            return JobFailedError("model_not_served", message, retryable=True)
        if status in UNKNOWN_PARAMETER and body.keys() & {"logprobs", "prompt_logprobs"}:
            return ParameterRefusedError(said)
        return JobFailedError("service_refused", said, retryable=False)

    def _junk(self, fault: str) -> _PassingError:
        """Maybe a page of a gateway that is starting."""
        message = f"{self._place} sent no answer of the chat protocol: {fault}"
        return _PassingError("service_sent_junk", message)

    def _words(self, text: str) -> str:
        """The beginning of what a service said, without the key, which it may repeat."""
        if self._key:
            text = text.replace(self._key.get_secret_value(), MASK)
        words = " ".join(text[: 2 * MOST_WORDS].split())[:MOST_WORDS]
        return f": {words}" if words else ""


def _seconds(retry_after: str | None) -> float | None:
    """Of a Retry-After header in seconds; one with a date, or with junk, is passed over."""
    return float(retry_after) if retry_after is not None and retry_after.isdecimal() else None


def _http_client(access: ServiceAccess, limits: ChatLimits) -> "httpx2.AsyncClient":
    """Reads no more of an answer than MOST_RESPONSE_BYTES; see connection.py for the rest."""
    import httpx2

    from finetune.remote.connection import http_client

    class Bounded(httpx2.AsyncByteStream):
        def __init__(self, stream: httpx2.AsyncByteStream) -> None:
            self._stream = stream

        async def __aiter__(self) -> AsyncIterator[bytes]:
            n_bytes = 0
            async for chunk in self._stream:
                n_bytes += len(chunk)
                if n_bytes > MOST_RESPONSE_BYTES:
                    raise _UnfitError(f"more than {MOST_RESPONSE_BYTES} bytes")
                yield chunk

        async def aclose(self) -> None:
            await self._stream.aclose()

    async def bound(response: httpx2.Response) -> None:
        if response.headers.get("content-encoding", "identity") != "identity":
            # What is small may be large inside.
            raise _UnfitError("it is compressed, which was not asked for")
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = Bounded(response.stream)

    return http_client(
        access,
        timeout=limits.timeout,
        headers={"accept-encoding": "identity"},
        event_hooks={"response": [bound]},
    )
