"""How a plain fine-tune endpoint is spoken to: which requests, and where its answers say what.

Configuration as values, and the pure functions that fill a request and read an answer. As it
is here without a setting it suits an endpoint that takes POST /jobs and answers with `id`, GET
/jobs/ID with `status` and the rest, and POST /jobs/ID/cancel. Sends nothing: see http_endpoint.py.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from math import isfinite
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from finetune.remote.access import ServiceAccess

HELD: Final = re.compile(r"\{(\w*)\}")
WHOLE: Final = re.compile(r"\{(\w+)\}")
JOB_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:~@-]{0,199}")
"""It becomes a part of addresses, of log lines and of command lines."""
MODEL_NAME: Final = re.compile(r"[!-~]{1,500}")
MOST_WORDS: Final = 300
"""Characters of a service's own words that are passed on."""
MOST_STEPS: Final = 2**31 - 1
PERCENT: Final = 100

IN_BODY: Final = frozenset(
    {
        "run_id",
        "attempt",
        "line",
        "model",
        "objective",
        "hyperparameters",
        "seed",
        "training_data",
        "validation_data",
    }
)
"""What the body of `submit` may hold, each in braces."""
OF_JOB: Final = frozenset({"job_id"})
OF_ATTEMPT: Final = frozenset({"run_id", "attempt"})
OF_FILE: Final = frozenset({"run_id", "file", "path"})

DEFAULT_BODY: Final[Mapping[str, Any]] = {name: f"{{{name}}}" for name in sorted(IN_BODY)}


class Delivery(StrEnum):
    """How a dataset reaches the service."""

    JSON_LINES = "json_lines"
    """As a text in the body: {training_data} is the JSONL file's content."""
    MULTIPART = "multipart"
    """As the files `training_data` and `validation_data` of a form, the body's keys beside them."""
    REFERENCE = "reference"
    """As an address that the service fetches it from: {training_data} is that address."""


class State(StrEnum):
    """What a job does, whatever its service calls it."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """Another attempt may succeed."""
    INVALID = "invalid"
    """Another attempt would fail in the same way."""
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        """Whether nothing will come of the job any more that has not come yet."""
        return self not in (State.QUEUED, State.RUNNING)


def holding(known: frozenset[str]) -> AfterValidator:
    """Refuse braces around anything but the known names."""

    def check(value: Any) -> Any:
        for text in _texts(value):
            for name in HELD.findall(text):
                if name not in known:
                    raise PydanticCustomError(
                        "placeholder",
                        "no value is called {name}; known here: {known}",
                        {"name": name, "known": ", ".join(sorted(known))},
                    )
        return value

    return AfterValidator(check)


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case Mapping():
            for each in value.values():
                yield from _texts(each)
        case list() | tuple():
            for each in value:
                yield from _texts(each)


def _listed(value: object) -> object:
    """An environment variable lists its items with commas."""
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return value


Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
_PATH: Final = Field(pattern=r"^/[!-~]*$", max_length=500)
JobPath = Annotated[str, _PATH, holding(OF_JOB)]
"""Follows the endpoint's address; {job_id} stands for the job's."""
Place = Annotated[str, Field(pattern=r"^[\w-]+(\.[\w-]+)*$", max_length=200)]
"""Where in an answer a value is: keys with dots between them, a number counts from 0 in a list."""
Words = Annotated[tuple[str, ...], BeforeValidator(_listed)]
HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,100}$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Submit(_Section):
    """The request that makes a job."""

    method: Method = "POST"
    path: Annotated[str, _PATH, holding(frozenset())] = "/jobs"
    body: Annotated[dict[str, Any], holding(IN_BODY)] = dict(DEFAULT_BODY)
    """JSON. A text that is one name in braces becomes that value, with its type; what has no
    value is left out."""


class Status(_Section):
    """The request that tells how a job is."""

    method: Method = "GET"
    path: JobPath = "/jobs/{job_id}"


class Cancel(_Section):
    """The request that ends a job."""

    method: Method = "POST"
    path: JobPath = "/jobs/{job_id}/cancel"


class Result(_Section):
    """A request of its own for what came of a job, where its status does not tell."""

    method: Method = "GET"
    path: JobPath


class Lookup(_Section):
    """The request that lists the jobs of an attempt, maybe beside others."""

    method: Method = "GET"
    path: Annotated[str, _PATH, holding(OF_ATTEMPT)]
    jobs: Place = "jobs"
    """Where the list is."""
    run_id: Place = "run_id"
    """Where in each of its entries the run's id is; others are passed over."""
    attempt: Place = "attempt"


class Answer(_Section):
    """Where an answer says what. What is not there is not known, but for the first two."""

    job_id: Place = "id"
    state: Place = "status"
    error: Place = "error"
    step: Place = "step"
    total_steps: Place = "total_steps"
    progress: Place = "progress"
    """A share from 0 to 1, where steps are not told."""
    model: Place = "fine_tuned_model"
    """What the trained model is called where it is served."""
    trained_tokens: Place = "trained_tokens"
    numbers: dict[str, Place] = {"loss": "loss"}
    """What else is measured, by the name it is shown under."""


class StateWords(_Section):
    """What the service calls a job's states, in lower case."""

    queued: Words = ("queued", "pending", "created", "submitted", "validating")
    running: Words = ("running", "training", "in_progress", "started", "cancelling")
    succeeded: Words = ("succeeded", "success", "completed", "finished", "done")
    failed: Words = ("failed", "error")
    invalid: Words = ("invalid", "rejected")
    """A failure that another attempt would repeat."""
    cancelled: Words = ("cancelled", "canceled")


class HttpMapping(_Section):
    """How the provider `http` speaks to its endpoint."""

    timeout_seconds: float = Field(30.0, gt=0, le=3_600, allow_inf_nan=False)
    """Of a request; a large dataset may take longer to send."""
    retries: int = Field(3, ge=0, le=20)
    """After the first try of a request, where a repeat can do no harm."""
    retry_base_seconds: float = Field(1.0, gt=0, le=600, allow_inf_nan=False)
    """Before the first retry; doubled each time."""
    retry_max_seconds: float = Field(60.0, gt=0, le=3_600, allow_inf_nan=False)
    """Before any retry, whatever the service asks for."""
    poll_seconds: float = Field(10.0, gt=0, le=3_600, allow_inf_nan=False)
    """Between two looks at a job, give or take a tenth."""
    key_header: HeaderName = "Authorization"
    key_scheme: str = Field("Bearer", pattern=r"^[A-Za-z]{0,20}$")
    """Before the key in its header; empty where the key stands alone."""
    dataset: Delivery = Delivery.JSON_LINES
    dataset_address: Annotated[str, Field(pattern=r"^[!-~]+$"), holding(OF_FILE)] = "file://{path}"
    """With `dataset: reference`; {run_id} and {file} name it, {path} is where it lies here."""
    max_dataset_bytes: int = Field(100_000_000, ge=1, le=2**40)
    """A larger one is not sent."""
    idempotency_header: HeaderName | None = None
    """Set it where the service returns the first job to a repeated request with the same key."""
    submit: Submit = Submit()
    status: Status = Status()
    cancel: Cancel = Cancel()
    result: Result | None = None
    lookup: Lookup | None = None
    answer: Answer = Answer()
    states: StateWords = StateWords()


@dataclass(frozen=True)
class FineTuneEndpoint:
    """A plain fine-tune endpoint, and how it is spoken to."""

    access: ServiceAccess
    mapping: HttpMapping = field(default_factory=HttpMapping)
    timeout: timedelta = timedelta(hours=4)
    """Of a job that was launched by another daemon."""


class BadAnswerError(ValueError):
    """An answer does not say what its mapping promises. The message names the setting."""

    def __init__(self, key: str, fault: str) -> None:
        super().__init__(f"remote.http.{key}: {fault}")
        self.key = key


@dataclass(frozen=True)
class JobReport:
    """A job, as its service tells it. What is None was not told."""

    state: State
    error: str | None
    step: int | None
    total_steps: int | None
    numbers: Mapping[str, float]
    all_finite: bool
    """False when a number that is measured was told, and is none."""


def filled(template: Any, values: Mapping[str, Any]) -> Any:
    """A template with its names in braces replaced; a key whose value is None is left out."""
    match template:
        case str() if (whole := WHOLE.fullmatch(template)) is not None:
            return values[whole[1]]
        case str():
            return HELD.sub(lambda found: str(values[found[1]]), template)
        case Mapping():
            inner = {key: filled(each, values) for key, each in template.items()}
            return {key: each for key, each in inner.items() if each is not None}
        case list() | tuple():
            return [filled(each, values) for each in template]
        case _:
            return template


def address(template: str, values: Mapping[str, object], *, safe: str = "") -> str:
    """A path or address with its names in braces replaced; no value leaves its own part."""
    return HELD.sub(lambda found: quote(str(values[found[1]]), safe=safe), template)


def found_at(content: Any, place: str) -> Any:
    """The value at a place of an answer; None where there is none."""
    for part in place.split("."):
        match content:
            case dict():
                content = content.get(part)
            case list() if part.isdecimal() and int(part) < len(content):
                content = content[int(part)]
            case _:
                return None
    return content


def job_id_in(content: Any, mapping: HttpMapping) -> str:
    """Raises BadAnswerError."""
    key, place = "answer.job_id", mapping.answer.job_id
    value = found_at(content, place)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not JOB_ID.fullmatch(value):
        raise BadAnswerError(key, f"the answer has no usable job id at `{place}`")
    return value


def report_in(content: Any, mapping: HttpMapping) -> JobReport:
    """Raises BadAnswerError."""
    answer = mapping.answer
    numbers, all_finite = {}, True
    for name, place in answer.numbers.items():
        value = found_at(content, place)
        if _is_number(value):
            numbers[name] = float(value)
        elif value is not None:
            all_finite = False
    step, total_steps = _progress(content, answer)
    return JobReport(
        state=_state(content, mapping),
        error=_words(found_at(content, answer.error)),
        step=step,
        total_steps=total_steps,
        numbers=numbers,
        all_finite=all_finite,
    )


def model_in(content: Any, mapping: HttpMapping) -> str:
    """Raises BadAnswerError."""
    place = mapping.answer.model
    value = found_at(content, place)
    if not isinstance(value, str) or not MODEL_NAME.fullmatch(value):
        raise BadAnswerError(
            "answer.model", f"the job succeeded, and names no usable model at `{place}`"
        )
    return value


def trained_tokens_in(content: Any, mapping: HttpMapping) -> int | None:
    """None where the service does not tell. Raises BadAnswerError for what is no number."""
    place = mapping.answer.trained_tokens
    value = found_at(content, place)
    if value is None:
        return None
    if not _is_number(value) or not 0 <= value < 2**53:
        raise BadAnswerError("answer.trained_tokens", f"there is no number of tokens at `{place}`")
    return int(value)


def jobs_in(content: Any, mapping: HttpMapping, run_id: str, attempt: int) -> Sequence[Any]:
    """The entries of a list that are this attempt's. Raises BadAnswerError."""
    assert mapping.lookup is not None, "asked only where it is mapped"
    lookup = mapping.lookup
    jobs = found_at(content, lookup.jobs)
    if not isinstance(jobs, list):
        raise BadAnswerError("lookup.jobs", f"the answer has no list at `{lookup.jobs}`")
    wanted = run_id, str(attempt)
    return [
        job
        for job in jobs
        if (str(found_at(job, lookup.run_id)), str(found_at(job, lookup.attempt))) == wanted
    ]


def _state(content: Any, mapping: HttpMapping) -> State:
    place = mapping.answer.state
    word = found_at(content, place)
    if not isinstance(word, str):
        raise BadAnswerError("answer.state", f"the answer has no state at `{place}`")
    for state in State:
        if word.lower() in getattr(mapping.states, state):
            return state
    raise BadAnswerError("states", f"no state has the word {_words(word)!r}")


def _progress(content: Any, answer: Answer) -> tuple[int | None, int | None]:
    step, total = (found_at(content, place) for place in (answer.step, answer.total_steps))
    if _is_number(step) and _is_number(total) and 0 <= step <= total <= MOST_STEPS and total >= 1:
        return int(step), int(total)
    share = found_at(content, answer.progress)
    if _is_number(share) and 0 <= share <= 1:
        return round(PERCENT * share), PERCENT
    return None, None


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    except OverflowError:  # an int with more digits than a float holds
        return False


def _words(value: Any) -> str | None:
    """The beginning of what a service says, on one line that a terminal can be shown."""
    if isinstance(value, Mapping):
        value = value.get("message")
    if not isinstance(value, str) or not value:
        return None
    return in_one_line(value)


def in_one_line(text: str) -> str:
    """At most MOST_WORDS characters, and none that a terminal would act on."""
    shown = "".join(one if one.isprintable() else " " for one in text[: 4 * MOST_WORDS])
    return " ".join(shown.split())[:MOST_WORDS]
