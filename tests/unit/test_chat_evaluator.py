"""Remote models are scored by a chat service, whatever it answers."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from finetune.artifacts import ArtifactStore
from finetune.remote import chat_evaluator
from finetune.remote.access import ServiceAccess
from finetune.remote.chat_evaluator import ChatEvaluator, ChatRules, CompareBy
from finetune.remote.chat_service import ChatLimits
from finetune.remote.model import FILE, RemoteModel, write
from learning.gate import Measure, Score
from learning.ports import JobFailedError, ModelReference
from tests.services.fake_chat import (
    BROKEN,
    HANGS,
    HTML,
    HUGE,
    OVERLOADED,
    FakeChat,
    Fault,
    Logprobs,
    last_words,
)
from tests.services.loopback import on_loopback

LIMITS = ChatLimits(
    timeout=timedelta(seconds=20),
    retries=2,
    first_wait=timedelta(milliseconds=1),
    longest_wait=timedelta(milliseconds=5),
)
BASE = ModelReference("small")
N_EXAMPLES = 12


def shouted(messages: Sequence[Mapping[str, str]]) -> str:
    return last_words(messages).upper()


@pytest.fixture
def chat() -> FakeChat:
    return FakeChat({"small": 0.4, "better": 0.9}, shouted)


@pytest.fixture
def url(chat: FakeChat) -> Iterator[str]:
    with on_loopback(chat.app()) as url:
        yield url


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    file = tmp_path / "examples.jsonl"
    rows = [
        {
            "messages": [
                {"role": "system", "content": "Shout."},
                {"role": "user", "content": f"say number {number}"},
                {"role": "assistant", "content": f"SAY NUMBER {number}"},
            ]
        }
        for number in range(N_EXAMPLES)
    ]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def evaluator(url: str, **changed: object) -> ChatEvaluator:
    limits = replace(LIMITS, **changed)  # type: ignore[arg-type]  # one field of several types
    return ChatEvaluator(ServiceAccess(url), ChatRules(limits=limits))


def published(tmp_path: Path, name: str) -> ModelReference:
    """A version as a provider leaves it behind."""
    write(RemoteModel("openai", "http://elsewhere/v1", name), tmp_path / "output")
    artifacts = ArtifactStore(tmp_path / "artifacts")
    return ModelReference(
        "small", artifacts.path(artifacts.publish("r-1", tmp_path / "output").name)
    )


def reverse(file: Path) -> None:
    """The last line first."""
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))


def matches(scores: Sequence[Score]) -> int:
    return sum(score.match for score in scores)


async def failure_of(evaluator: ChatEvaluator, examples: Path) -> JobFailedError:
    with pytest.raises(JobFailedError) as caught:
        await evaluator.score({"champion": BASE}, examples)
    return caught.value


# --- what is measured -----------------------------------------------------------------


async def test_answers_are_scored_where_no_likelihood_is_offered(
    chat: FakeChat, url: str, examples: Path, tmp_path: Path
) -> None:
    models = {"champion": BASE, "candidate": published(tmp_path, "better")}

    scores = await evaluator(url).score(models, examples)

    assert {role: len(of_role) for role, of_role in scores.items()} == dict.fromkeys(
        models, N_EXAMPLES
    )
    assert matches(scores["champion"]) < matches(scores["candidate"]) < N_EXAMPLES
    for score in [*scores["champion"], *scores["candidate"]]:
        assert score.measure is Measure.ANSWERS
        assert score.match == (score.loss == 0.0)
        assert 0.0 <= score.loss <= 1.0


@pytest.mark.parametrize("logprobs", [Logprobs.IGNORED, Logprobs.REFUSED])
async def test_asking_in_vain_for_likelihoods_costs_one_example(
    chat: FakeChat, url: str, examples: Path, logprobs: Logprobs
) -> None:
    chat.logprobs = logprobs

    await evaluator(url).score({"champion": BASE}, examples)

    assert len(chat.requests) == N_EXAMPLES + 1
    assert not any("prompt_logprobs" in body for body in chat.requests[1:])


async def test_likelihoods_are_used_where_they_are_offered(
    chat: FakeChat, url: str, examples: Path, tmp_path: Path
) -> None:
    chat.logprobs = Logprobs.OFFERED
    models = {"champion": BASE, "candidate": published(tmp_path, "better")}

    scores = await evaluator(url).score(models, examples)

    assert matches(scores["champion"]) < matches(scores["candidate"]) < N_EXAMPLES
    for score in [*scores["champion"], *scores["candidate"]]:
        assert score.measure is Measure.LIKELIHOOD
        # Three tokens in about a dozen bytes, likely or not.
        assert (score.loss < 0.1) == score.match
        assert math.isfinite(score.loss)


async def test_answers_are_scored_when_asked_for(chat: FakeChat, url: str, examples: Path) -> None:
    chat.logprobs = Logprobs.OFFERED
    rules = ChatRules(CompareBy.ANSWERS, limits=LIMITS)

    scores = await ChatEvaluator(ServiceAccess(url), rules).score({"champion": BASE}, examples)

    assert scores["champion"][0].measure is Measure.ANSWERS


@pytest.mark.parametrize(
    "logprobs",
    [
        [-0.5, -0.25],
        [None, {"7": {"logprob": -0.5, "rank": 1}, "8": {"logprob": -0.25, "rank": 2}}],
        [None, {"7": {"logprob": 0.5, "rank": 1}}],
        [None, {"7": {"logprob": "-0.5", "rank": 1}}],
        [None, {"7": {"logprob": -0.5}}],
        [None, None],
        [None],
        [],
        "none",
    ],
)
async def test_likelihoods_of_another_form_are_none(
    chat: FakeChat, url: str, examples: Path, logprobs: object
) -> None:
    told = {"choices": [{"message": {"content": ""}}], "prompt_logprobs": logprobs}
    strange = Fault(body=json.dumps(told).encode())
    chat.fault = lambda number: strange if number <= 2 else None

    scores = await evaluator(url, concurrency=1).score({"champion": BASE}, examples)

    assert {score.measure for score in scores["champion"]} == {Measure.ANSWERS}


@pytest.mark.parametrize("said", [1.5, -0.1, math.nan, None, ZeroDivisionError()])
async def test_a_scorer_that_breaks_its_promise_makes_no_score(
    chat: FakeChat, url: str, examples: Path, monkeypatch: pytest.MonkeyPatch, said: object
) -> None:
    def scorer(approved: str, answer: str) -> object:
        if isinstance(said, Exception):
            raise said
        return said

    monkeypatch.setattr(chat_evaluator, "scorer_of", lambda name: scorer)

    failure = await failure_of(evaluator(url), examples)

    assert (failure.code, failure.retryable) == ("bad_scorer", False)


async def test_the_prompt_is_sent_as_it_is_and_without_the_answer(
    chat: FakeChat, url: str, examples: Path
) -> None:
    await ChatEvaluator(ServiceAccess(url), ChatRules(CompareBy.ANSWERS, limits=LIMITS)).score(
        {"champion": BASE}, examples
    )

    said = {"role": "user", "content": "say number 0"}
    body = next(body for body in chat.requests if said in body["messages"])
    assert body["messages"] == [{"role": "system", "content": "Shout."}, said]
    assert (body["temperature"], body["max_tokens"]) == (0.0, LIMITS.max_answer_tokens)


# --- a service that is not well -------------------------------------------------------


@pytest.mark.parametrize("fault", [BROKEN, OVERLOADED, HTML, Fault(503), Fault(body=b"{}")])
async def test_a_passing_failure_is_tried_again(
    chat: FakeChat, url: str, examples: Path, fault: Fault
) -> None:
    chat.fault = lambda number: fault if number in (1, 2, 9) else None

    scores = await evaluator(url, concurrency=1).score({"champion": BASE}, examples)

    assert len(scores["champion"]) == N_EXAMPLES


@pytest.mark.parametrize("logprobs", [Logprobs.OFFERED, Logprobs.IGNORED])
async def test_who_tries_again_after_a_failure_does_not_ask_what_is_known(
    chat: FakeChat, url: str, examples: Path, logprobs: Logprobs
) -> None:
    chat.logprobs = logprobs
    evaluating = evaluator(url, concurrency=1, retries=0)
    chat.fault = lambda number: BROKEN if number == 8 else None

    await failure_of(evaluating, examples)
    scores = await evaluating.score({"champion": BASE}, examples)

    n_needed = 2 * N_EXAMPLES if logprobs is Logprobs.OFFERED else N_EXAMPLES + 1
    # The one that failed, and those that it ended on their way.
    assert len(chat.requests) <= n_needed + 3
    assert scores == await evaluator(url).score({"champion": BASE}, examples)


async def test_what_was_scored_of_other_examples_is_not_taken_for_these(
    chat: FakeChat, url: str, examples: Path
) -> None:
    evaluating = evaluator(url, concurrency=1, retries=0)
    chat.fault = lambda number: BROKEN if number == 8 else None
    await failure_of(evaluating, examples)
    reverse(examples)

    scores = await evaluating.score({"champion": BASE}, examples)

    assert scores == await evaluator(url).score({"champion": BASE}, examples)


@pytest.mark.parametrize(
    ("fault", "code", "retryable"),
    [
        (BROKEN, "service_unavailable", True),
        (OVERLOADED, "service_unavailable", True),
        (HTML, "service_sent_junk", True),
        (Fault(body=b""), "service_sent_junk", True),
        (Fault(body=b"[" * 10_000), "service_sent_junk", True),
        (Fault(body=b'{"choices": []}'), "service_sent_junk", True),
        (Fault(body=b'{"choices": [{"message": {"content": 7}}]}'), "service_sent_junk", True),
        (Fault(body=b"\xff\xfe\x00"), "service_sent_junk", True),
        (Fault(body=b"x", headers={"content-encoding": "gzip"}), "service_sent_junk", True),
        (HUGE, "service_sent_junk", True),
        (Fault(418), "service_refused", False),
        (Fault(401), "service_refused", False),
        (Fault(307, headers={"location": "http://127.0.0.1:9/"}), "service_refused", False),
    ],
)
async def test_a_lasting_failure_is_no_score(
    chat: FakeChat, url: str, examples: Path, fault: Fault, code: str, retryable: bool
) -> None:
    chat.fault = lambda number: fault

    failure = await failure_of(evaluator(url, concurrency=1), examples)

    assert (failure.code, failure.retryable) == (code, retryable)
    assert url in failure.message
    assert len(chat.requests) == (LIMITS.retries + 1 if retryable else 1)


async def test_a_service_that_does_not_answer_in_time_is_given_up(
    chat: FakeChat, url: str, examples: Path
) -> None:
    chat.fault = lambda number: HANGS

    failure = await failure_of(
        evaluator(url, timeout=timedelta(milliseconds=50), retries=1), examples
    )

    assert (failure.code, failure.retryable) == ("service_timed_out", True)


async def test_a_service_that_is_down_is_a_failure_that_may_pass(
    chat: FakeChat, examples: Path
) -> None:
    with on_loopback(chat.app()) as url:
        pass

    failure = await failure_of(evaluator(url), examples)

    assert (failure.code, failure.retryable) == ("service_unreachable", True)


async def test_a_model_that_is_not_served_is_no_score(
    chat: FakeChat, url: str, examples: Path, tmp_path: Path
) -> None:
    models = {"champion": BASE, "candidate": published(tmp_path, "gone")}

    with pytest.raises(JobFailedError, match="does not serve 'gone'") as caught:
        await evaluator(url).score(models, examples)

    assert (caught.value.code, caught.value.retryable) == ("model_not_served", True)


async def test_the_wait_that_a_service_asks_for_is_capped(
    chat: FakeChat, url: str, examples: Path
) -> None:
    patient = Fault(429, headers={"retry-after": "86400"})
    chat.fault = lambda number: patient if number == 1 else None

    scores = await evaluator(url).score({"champion": BASE}, examples)

    assert len(scores["champion"]) == N_EXAMPLES


# --- keys and artifacts ---------------------------------------------------------------


async def test_the_key_is_sent_and_is_in_no_error(
    chat: FakeChat, url: str, examples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat.key = "right-key"
    access = ServiceAccess(url, SecretStr("wrong-key"))

    failure = await failure_of(ChatEvaluator(access, ChatRules(limits=LIMITS)), examples)

    assert failure.code == "service_refused"
    assert chat.headers[0]["authorization"] == "Bearer wrong-key"
    assert "wrong-key" not in str(failure)


@pytest.mark.parametrize("key", ["sk-\u043a\u043b\u044e\u0447", "sk-two\nlines", "sk-\x00"])
async def test_a_key_that_cannot_be_sent_is_no_score(url: str, examples: Path, key: str) -> None:
    access = ServiceAccess(url, SecretStr(key))

    failure = await failure_of(ChatEvaluator(access, ChatRules(limits=LIMITS)), examples)

    assert (failure.code, failure.retryable) == ("bad_key", False)
    assert key not in str(failure)


@pytest.mark.parametrize("url", ["http://ann:secret@127.0.0.1:9", "http://192.0.2.1", "ftp://x"])
async def test_an_address_that_may_not_be_asked_is_no_score(url: str, examples: Path) -> None:
    failure = await failure_of(evaluator(url), examples)

    assert (failure.code, failure.retryable) == ("service_refused", False)
    assert "secret" not in str(failure)


async def test_a_key_for_another_service_is_not_sent(
    chat: FakeChat, url: str, examples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "for-somebody-else")

    await evaluator(url).score({"champion": BASE}, examples)

    assert {told["authorization"] for told in chat.headers} == {"Bearer none"}


async def test_a_changed_artifact_is_not_believed(url: str, examples: Path, tmp_path: Path) -> None:
    model = published(tmp_path, "better")
    assert model.adapter is not None
    file = model.adapter / FILE
    file.write_text(file.read_text().replace("better", "bitter"))

    with pytest.raises(JobFailedError, match=FILE) as caught:
        await evaluator(url).score({"candidate": model}, examples)

    assert (caught.value.code, caught.value.retryable) == ("bad_model", False)
