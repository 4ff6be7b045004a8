"""A chat service that speaks OpenAI's protocol, with models as good as the test says.

A model is a number: the share of prompts that it answers rightly, the same ones each time, and a
better model those of a worse one too. What is right is a function of the prompt, which the test
gives. On demand it offers log-probabilities of a given text as vLLM does. Faults are drawn by a
function from the number of the request, so that a test says exactly which one goes wrong.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

Message = Mapping[str, str]

WRONG: Final = "I do not know."
EXTRAS: Final = frozenset(
    {"logprobs", "prompt_logprobs", "add_generation_prompt", "continue_final_message"}
)
"""Parameters that some services refuse."""
SURE: Final = 0.9
"""The probability of each token of an answer."""
PADDING: Final = b" " * 65_536


class Logprobs(StrEnum):
    """What becomes of a request for log-probabilities, of a given text or of the answer."""

    OFFERED = "offered"
    """As by vLLM."""
    IGNORED = "ignored"
    REFUSED = "refused"
    """As by OpenAI: an unknown argument is an error."""


@dataclass(frozen=True)
class Fault:
    """What a request gets instead of an answer."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    hangs: bool = False
    """Until the client goes away."""
    padding_chunks: int = 0
    """The body is followed by that much white space."""


HTML: Final = Fault(body=b"<html><body>Bad gateway</body></html>")
OVERLOADED: Final = Fault(429, b'{"error": {"message": "slow down"}}')
BROKEN: Final = Fault(500, b"Internal Server Error")
HANGS: Final = Fault(hangs=True)
HUGE: Final = Fault(padding_chunks=512)


def last_words(messages: Sequence[Message]) -> str:
    """What the user said last."""
    return next(said["content"] for said in reversed(messages) if said["role"] == "user")


@dataclass
class FakeChat:
    """The service. Its fields may be changed while it serves."""

    models: dict[str, float]
    """By name, the share of prompts in [0, 1] that the model answers rightly."""
    right: Callable[[Sequence[Message]], str]
    """The right answer to a conversation that ends with the user."""
    key: str | None = None
    """Who does not bring it gets a 401."""
    logprobs: Logprobs = Logprobs.REFUSED
    fault: Callable[[int], Fault | None] = lambda number: None
    """What goes wrong with the request of that number, from 1; None for nothing."""
    wrong: str = WRONG
    listed: bytes | None = None
    """What a request for the models gets; None for the list of `models`."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    """The bodies that were received, in their order."""
    headers: list[Mapping[str, str]] = field(default_factory=list)

    def routes(self) -> list[Route]:
        """To be mounted under the base address, which the protocol ends with /v1."""
        return [
            Route("/chat/completions", self._complete, methods=["POST"]),
            Route("/models", self._list, methods=["GET"]),
        ]

    def app(self) -> Starlette:
        """The service alone; its base address is that of the server."""
        return Starlette(routes=self.routes())

    def asked(self) -> Mapping[str, int]:
        """How often each model was asked."""
        return Counter(body["model"] for body in self.requests)

    def knows(self, model: str, messages: Sequence[Message]) -> bool:
        """Whether a model answers a conversation rightly."""
        digest = hashlib.sha256(json.dumps(list(messages)).encode()).digest()
        return int.from_bytes(digest[:4], "big") / 2**32 < self.models[model]

    async def _list(self, request: Request) -> Response:
        if (refused := self._refuse(request)) is not None:
            return refused
        if self.listed is not None:
            return Response(self.listed, media_type="application/json")
        data = [{"id": name, "object": "model", "owned_by": "test"} for name in self.models]
        return JSONResponse({"object": "list", "data": data})

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        if (fault := self.fault(len(self.requests))) is not None:
            return await _misbehave(fault, request)
        if (refused := self._refuse(request)) is not None:
            return refused
        if body["model"] not in self.models:
            message = f"The model `{body['model']}` does not exist"
            return _error(404, message, "model_not_found")
        told = EXTRAS & set(body)
        if told and self.logprobs is Logprobs.REFUSED:
            return _error(400, f"Unrecognized request argument: {sorted(told)[0]}")
        return JSONResponse(self._completion(body))

    def _completion(self, body: Mapping[str, Any]) -> dict[str, Any]:
        given = body["messages"]
        prompt = given[:-1] if given[-1]["role"] == "assistant" else given
        text = self.right(prompt) if self.knows(body["model"], prompt) else self.wrong
        answer: dict[str, Any] = {
            "id": f"chatcmpl-{len(self.requests)}",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }
        if body.get("logprobs") and self.logprobs is Logprobs.OFFERED:
            told = [{"token": token, "logprob": math.log(SURE)} for token in tokens_of(text)]
            answer["choices"][0]["logprobs"] = {"content": told}
        if "prompt_logprobs" in body and self.logprobs is Logprobs.OFFERED:
            begun = given[-1]["content"] if body.get("continue_final_message") else ""
            answer["prompt_logprobs"] = self._prompt_logprobs(body["model"], prompt, begun)
        return answer

    def _prompt_logprobs(self, model: str, prompt: Sequence[Message], begun: str) -> list[Any]:
        """Of each token of the prompt but the first, and of an answer that was begun."""
        said = "".join(f"<{turn['role']}>{turn['content']}</>" for turn in prompt)
        before = tokens_of(f"{said}<assistant>")
        known = self.knows(model, prompt)
        likely = {"logprob": math.log(0.9), "rank": 1}
        unlikely = {"logprob": math.log(0.05), "rank": 7}
        entries: list[Any] = [
            {_id_of(token): {**likely, "decoded_token": token}} for token in before
        ]
        for number, token in enumerate(tokens_of(begun)):
            # No two texts are equally hard, and a model that knows the answer still differs.
            digest = hashlib.sha256(f"{number} {begun}".encode()).digest()
            found = likely if known else unlikely
            # What a better model does not know either, it finds a little more likely.
            logprob = found["logprob"] * (0.5 + digest[0] / 256) * (1.5 - self.models[model])
            entries.append({_id_of(token): {**found, "logprob": logprob, "decoded_token": token}})
        return [None, *entries[1:]]

    def _refuse(self, request: Request) -> Response | None:
        told = request.headers.get("authorization")
        if self.key is None or told == f"Bearer {self.key}":
            return None
        # A careless service repeats what it was sent.
        return _error(401, f"Incorrect API key provided: {told}", "invalid_api_key")


def tokens_of(text: str) -> list[str]:
    """Words with the white space before them."""
    return re.findall(r"\s*\S+|\s+", text)


def _id_of(token: str) -> str:
    return str(int.from_bytes(hashlib.sha256(token.encode()).digest()[:2], "big"))


def _error(status: int, message: str, code: str | None = None) -> Response:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return JSONResponse({"error": error}, status_code=status)


async def _misbehave(fault: Fault, request: Request) -> Response:
    if fault.hangs:
        while (await request.receive())["type"] != "http.disconnect":
            pass
    if fault.padding_chunks:
        padded = _padded(fault.body, fault.padding_chunks)
        return StreamingResponse(padded, media_type="application/json")
    return Response(fault.body, fault.status, fault.headers)


async def _padded(body: bytes, n_chunks: int) -> AsyncIterator[bytes]:
    yield body
    for _ in range(n_chunks):
        yield PADDING
