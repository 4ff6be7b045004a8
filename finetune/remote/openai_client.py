"""The calls of OpenAI's fine-tuning protocol that learnd makes, one method each.

Through OpenAI's SDK, whose own repeats are off: it would repeat the creation of a job, and
make several. Here a call is repeated only where that is harmless, within a cap, and after the
pause that the service asks for. What comes back is outside data: it is validated here and
never believed, so that a gateway's page with status 200 is no job. No error says the key.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, Generic, TypeVar

import stamina
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from finetune.remote.access import ServiceAccess
from finetune.remote.address import AddressRefusedError
from finetune.remote.openai_settings import OpenAIRules
from learning.errors import LearningError

if TYPE_CHECKING:
    import httpx2
    from openai import AsyncOpenAI, OpenAIError

PAGE: Final = 100
MOST_PAGES: Final = 1_000
YEAR_9999: Final = 253_370_764_800
NO_KEY: Final = "none"
"""What a service without keys is told, because the SDK insists on one."""
MOST_STEPS: Final = 10
"""A request as a whole may take so many times as long as one step of it."""
MOST_WORDS: Final = 500
"""So many characters of what a service said are repeated."""


class _Answer(BaseModel):
    """What a service says. It may say more."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str = Field(min_length=1)


def _text(told: Any) -> Any:
    return None if told is None else str(told)


def _fields(told: Any) -> Any:
    return told if isinstance(told, dict) else None


def _error(told: Any) -> Any:
    return {"message": told} if isinstance(told, str) else _fields(told)


def _moment(told: Any) -> float:
    known = isinstance(told, (int, float)) and 0 <= told < YEAR_9999
    return float(told) if known else 0.0


def _count(told: Any) -> Any:
    return told if isinstance(told, int) and told >= 0 else None


Text = Annotated[str | None, BeforeValidator(_text)]
Fields = Annotated[Mapping[str, Any] | None, BeforeValidator(_fields)]
Count = Annotated[int | None, BeforeValidator(_count)]
Moment = Annotated[float, BeforeValidator(_moment)]
"""Seconds since 1970; 0 where a service says it in another way."""


class JobError(BaseModel):
    """Why a job failed, in the service's words. Of a job that did not, nothing is set."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    code: Text = None
    message: Text = None
    param: Text = None


class Job(_Answer):
    """A fine-tuning job, as it is at the service.

    Other people's may be among those listed: what is not needed of them may be anything.
    """

    status: str
    model: Text = None
    created_at: Moment = 0.0
    training_file: Text = None
    validation_file: Text = None
    fine_tuned_model: Text = None
    trained_tokens: Count = None
    error: Annotated[JobError | None, BeforeValidator(_error)] = None
    metadata: Fields = None

    @property
    def has_begun(self) -> bool:
        """Whether there may be steps of it."""
        return self.status not in ("validating_files", "queued")

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come of it. A status that is not known is no end."""
        return self.status in ("succeeded", "failed", "cancelled")


class Event(_Answer):
    """Something that happened to a job; a step of the training has numbers in `data`."""

    created_at: Moment = 0.0
    data: Fields = None


class Checkpoint(_Answer):
    """A model of an earlier step, that can be used too."""

    fine_tuned_model_checkpoint: Text = None
    step_number: Count = None


class UploadedFile(_Answer):
    """A file at the service."""

    bytes: Count = None
    """None where the service does not count them."""
    filename: Text = None


class ServiceRefusedError(LearningError):
    """The service understood, and will not: another try of the same is in vain."""

    def __init__(self, status: int | None, message: str) -> None:
        """`status` is None when its address is one that is not asked."""
        super().__init__(message if status is None else f"the service answered {status}: {message}")
        self.status = status

    @property
    def is_unsupported(self) -> bool:
        """Whether there is no such call at this service."""
        return self.status in (404, 405, 501)


class ServiceSilentError(ConnectionError):
    """No answer that makes sense. What was asked for may have been done all the same."""

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class ServiceBusyError(ServiceSilentError):
    """The service has too much to do. What was asked for was not done."""


T = TypeVar("T", bound=_Answer)
R = TypeVar("R")


@dataclass(frozen=True)
class _Page(Generic[T]):
    """One page of a list; `has_more` is None where the service does not say."""

    data: Sequence[T]
    has_more: bool | None


class OpenAIClient:
    """One service. Each method raises ServiceRefusedError, ConnectionError and TimeoutError."""

    def __init__(self, sdk: "AsyncOpenAI", access: ServiceAccess, rules: OpenAIRules) -> None:
        self._sdk = sdk
        self._access = access
        self._rules = rules

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        access: ServiceAccess,
        rules: OpenAIRules,
        *,
        transport: "httpx2.AsyncBaseTransport | None" = None,
    ) -> "AsyncIterator[OpenAIClient]":
        """Ready to ask; nothing is sent yet. Another `transport` takes the network's place.

        Raises AddressRefusedError.
        """
        # They take a second to import, which nobody without such a service should wait for.
        import httpx2
        from openai import AsyncOpenAI

        from finetune.remote.connection import http_client

        client = (
            http_client(access, timeout=rules.timeout)
            if transport is None
            else httpx2.AsyncClient(transport=transport)
        )
        key = access.api_key.get_secret_value() if access.api_key is not None else NO_KEY
        async with AsyncOpenAI(
            base_url=access.base_url,
            api_key=key,
            max_retries=0,
            timeout=rules.timeout.total_seconds(),
            http_client=client,
        ) as sdk:
            yield cls(sdk, access, rules)

    # --- jobs -------------------------------------------------------------------------

    async def create_job(self, body: Mapping[str, Any]) -> Job:
        """Make a job. Repeated only where the service said that it has not made it."""
        jobs = self._sdk.fine_tuning.jobs.with_raw_response

        async def create() -> Job:
            return self._read(Job, await self._once(lambda: jobs.create(**body)))

        return await self._repeated(create, when=lambda error: isinstance(error, ServiceBusyError))

    async def job(self, job_id: str) -> Job:
        """A job as it is now."""
        jobs = self._sdk.fine_tuning.jobs.with_raw_response
        return await self._ask(Job, lambda: jobs.retrieve(job_id))

    async def cancel_job(self, job_id: str) -> None:
        """End a job. One that has ended is refused by the service."""
        jobs = self._sdk.fine_tuning.jobs.with_raw_response
        await self._ask(Job, lambda: jobs.cancel(job_id))

    async def jobs(self, metadata: Mapping[str, str] | None = None) -> Sequence[Job]:
        """All jobs with these words in their metadata, in the service's order."""
        jobs = self._sdk.fine_tuning.jobs.with_raw_response
        wanted = dict(metadata or {})
        found = await self._all(Job, lambda after: jobs.list(limit=PAGE, metadata=wanted, **after))
        # A service that does not know the filter shows all.
        return [job for job in found if wanted.items() <= dict(job.metadata or {}).items()]

    async def events(self, job_id: str, known: set[str]) -> Sequence[Event]:
        """What happened to a job that is not in `known`, in the service's order."""
        jobs = self._sdk.fine_tuning.jobs.with_raw_response
        found: list[Event] = []
        async for page in self._pages(
            Event, lambda after: jobs.list_events(job_id, limit=PAGE, **after)
        ):
            new = [event for event in page if event.id not in known]
            found += new
            # Where the newest come first, what follows is known too.
            if len(new) < len(page) and page[0].created_at >= page[-1].created_at:
                break
        return found

    async def checkpoints(self, job_id: str) -> Sequence[Checkpoint]:
        """The models of earlier steps of a job."""
        checkpoints = self._sdk.fine_tuning.jobs.checkpoints.with_raw_response
        return await self._all(
            Checkpoint, lambda after: checkpoints.list(job_id, limit=PAGE, **after)
        )

    # --- files ------------------------------------------------------------------------

    async def upload(self, name: str, content: bytes) -> UploadedFile:
        """Bring a file there, unless it is there already: whole, under this name.

        A part of it, of an upload that was cut off, is deleted. Repeated, it is one file.
        """
        files = self._sdk.files.with_raw_response

        async def bring() -> UploadedFile:
            for file in await self.files(name):
                if file.bytes in (len(content), None):
                    return file
                await self.delete_file(file.id)
            sent = await self._once(lambda: files.create(file=(name, content), purpose="fine-tune"))
            uploaded = self._read(UploadedFile, sent)
            if uploaded.bytes not in (len(content), None):
                raise ServiceSilentError(
                    f"{uploaded.bytes} of {len(content)} bytes of {name} arrived there"
                )
            return uploaded

        return await self._repeated(bring)

    async def files(self, prefix: str) -> Sequence[UploadedFile]:
        """The files there whose names begin so; none where the service does not list them."""
        files = self._sdk.files.with_raw_response
        try:
            found = await self._all(
                UploadedFile, lambda after: files.list(purpose="fine-tune", **after)
            )
        except ServiceRefusedError as error:
            if error.is_unsupported:
                return ()
            raise
        return [file for file in found if (file.filename or "").startswith(prefix)]

    async def delete_file(self, file_id: str) -> None:
        """Delete a file; one that is gone already is no error."""
        files = self._sdk.files.with_raw_response
        try:
            await self._ask(_Answer, lambda: files.delete(file_id))
        except ServiceRefusedError as error:
            if error.status != 404:
                raise

    # --- asking -----------------------------------------------------------------------

    async def _ask(self, kind: type[T], call: Callable[[], Awaitable[Any]]) -> T:
        """Ask for one thing, again where there was no answer."""

        async def ask() -> T:
            return self._read(kind, await self._once(call))

        return await self._repeated(ask)

    async def _all(
        self, kind: type[T], call: Callable[[dict[str, Any]], Awaitable[Any]]
    ) -> Sequence[T]:
        """Every item of a list."""
        return [one async for page in self._pages(kind, call) for one in page]

    async def _pages(
        self, kind: type[T], call: Callable[[dict[str, Any]], Awaitable[Any]]
    ) -> AsyncIterator[Sequence[T]]:
        """A list page by page. One that brings nothing new ends it: it knows no pages then."""
        seen: set[str] = set()
        after: dict[str, Any] = {}
        for _ in range(MOST_PAGES):
            page = await self._page(kind, call, after)
            new = [one for one in page.data if one.id not in seen]
            if new:
                yield new
            if not new or page.has_more is False:
                return
            seen |= {one.id for one in new}
            after = {"after": new[-1].id}

    async def _page(
        self, kind: type[T], call: Callable[[dict[str, Any]], Awaitable[Any]], after: dict[str, Any]
    ) -> _Page[T]:
        async def ask() -> _Page[T]:
            told = await self._once(lambda: call(after))
            if not isinstance(told, dict) or not isinstance(told.get("data"), list):
                raise self._senseless("no list")
            items = [self._read(kind, item) for item in told["data"]]
            return _Page(items, None if told.get("has_more") is None else bool(told["has_more"]))

        return await self._repeated(ask)

    async def _repeated(
        self, ask: Callable[[], Awaitable[R]], *, when: Callable[[Exception], bool] | None = None
    ) -> R:
        """Ask until there is an answer, within the rules. `when` says what may be repeated."""

        def pause(error: Exception) -> bool | float:
            if not isinstance(error, (ConnectionError, TimeoutError)):
                return False
            if when is not None and not when(error):
                return False
            seconds = getattr(error, "retry_after_seconds", None)
            if seconds is None:
                return True
            return seconds <= self._rules.retry_cap.total_seconds() and max(0.0, float(seconds))

        async for attempt in stamina.retry_context(
            on=pause,
            attempts=self._rules.tries,
            timeout=None,
            wait_initial=self._rules.retry_base,
            wait_max=self._rules.retry_cap,
            wait_jitter=self._rules.retry_base,
        ):
            with attempt:
                return await ask()
        raise AssertionError("the loop above ends by itself")

    async def _once(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """One request, and the JSON that came back."""
        from openai import OpenAIError

        try:
            # The SDK's limits are for each step of a request; a trickle would take for ever.
            async with asyncio.timeout(MOST_STEPS * self._rules.timeout.total_seconds()):
                answer = await call()
        except OpenAIError as error:
            raise self._translated(error) from None
        except TimeoutError:
            raise TimeoutError(f"{self._access.base_url} did not answer in time") from None
        except AddressRefusedError as error:
            raise ServiceRefusedError(None, str(error)) from error
        try:
            return json.loads(answer.text)
        except ValueError:
            raise self._senseless(f"no JSON: {answer.text}") from None

    def _read(self, kind: type[T], told: Any) -> T:
        try:
            return kind.model_validate(told)
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in fault["loc"])
            raise self._senseless(f"{kind.__name__} {where}: {fault['msg']}") from None

    def _senseless(self, fault: str) -> ServiceSilentError:
        """Maybe the page of a gateway."""
        return ServiceSilentError(
            f"{self._access.base_url} does not answer in the protocol: {self._safe(fault)}"
        )

    def _translated(self, error: "OpenAIError") -> Exception:
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        address = self._access.base_url
        if isinstance(error, APITimeoutError):
            return TimeoutError(f"{address} did not answer in time")
        if isinstance(error, APIConnectionError):
            cause = error.__cause__ or error
            return ServiceSilentError(f"{address} cannot be reached: {self._safe(repr(cause))}")
        if not isinstance(error, APIStatusError):
            return ServiceSilentError(f"{address}: {self._safe(str(error))}")
        message = self._safe(error.message)
        if error.status_code == 429:
            return ServiceBusyError(
                f"{address} answered 429: {message}",
                seconds_until(error.response.headers.get("retry-after")),
            )
        if error.status_code == 408 or (error.status_code >= 500 and error.status_code != 501):
            return ServiceSilentError(
                f"{address} answered {error.status_code}: {message}",
                seconds_until(error.response.headers.get("retry-after")),
            )
        return ServiceRefusedError(error.status_code, message)

    def _safe(self, text: str) -> str:
        """The beginning of what a service said, without the key, which it may repeat."""
        if self._access.api_key is not None:
            text = text.replace(self._access.api_key.get_secret_value(), "********")
        return " ".join(text[: 2 * MOST_WORDS].split())[:MOST_WORDS]


def seconds_until(retry_after: str | None) -> float | None:
    """Of a Retry-After header: a number of seconds, or a date. None when it is neither."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    aware = until if until.tzinfo is not None else until.replace(tzinfo=UTC)
    return max(0.0, (aware - datetime.now(UTC)).total_seconds())
