"""The whole application with its address for webhooks, asked in process and by the byte.

What a client library would refuse to send, or an HTTP server to read, comes through here; an
error that the application lets out is raised in the test.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Row
from starlette.types import ASGIApp, Message

from consumers.pressure import Pressure
from daemon.api.app import create_app
from daemon.api.routes.webhooks import PATH
from daemon.probes import DaemonMetrics, DaemonProbes
from daemon.recent_facts import RecentFacts
from daemon.store import Store
from daemon.store.leases import Tenancy
from daemon.store.tables import webhook_deliveries
from daemon.store.views import Views
from daemon.webhook_signature import SigningKey
from daemon.webhooks import JobHints, WebhookIntake
from finetune.artifacts import ArtifactStore
from finetune.providers import Workbench
from finetune.scripted_provider import ScriptedEvaluator, ScriptedProvider
from learning.facts import Fact
from learning.lines import ModelLines
from monitoring.metrics import Metrics
from tests.builders import JUDGE, output
from tests.contract.driver import LINE, Driver, StoppedClock, rows
from tests.http_intake import http_source
from tests.scripted_operations import ScriptedOperations
from tests.settings_desk import settings_desk
from tests.webhooks import KEY, Headers

TOKEN = "a-token-of-the-tests"
WITH_TOKEN: Headers = [(b"authorization", f"Bearer {TOKEN}".encode())]


@dataclass(frozen=True)
class Answer:
    """What the application answered; status 0 when it answered nothing."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def said(self) -> Any:
        """Its JSON."""
        return json.loads(self.body)


@dataclass
class Door:
    """One daemon's address for webhooks, and what came of what was sent to it."""

    app: ASGIApp
    store: Store
    clock: StoppedClock
    hints: JobHints
    workbench: Workbench
    facts: list[Fact]
    nudged: list[str] = field(default_factory=list)
    """The jobs that the provider was told of, in order."""
    drive: Driver = field(init=False)

    def __post_init__(self) -> None:
        self.drive = Driver(self.store, self.clock)

    async def knock(self, headers: Headers, *chunks: bytes, breaks_off: bool = False) -> Answer:
        """Send a webhook in some chunks; one that breaks off does not come to its end."""
        return await asked(self.app, "POST", PATH, headers, *chunks, breaks_off=breaks_off)

    async def look(self, path: str, query: str = "") -> Any:
        """The answer of another address, with the token."""
        answer = await asked(self.app, "GET", path, WITH_TOKEN, query=query)
        assert answer.status == 200, answer.body
        return answer.said

    async def kept(self) -> list[Row[Any]]:
        """The stored deliveries."""
        return await rows(self.store.database, webhook_deliveries)

    async def run_with_job(self, job_id: str, **fields: Any) -> str:
        """A run of this daemon that trains in a job."""
        run_id = await self.begun_run(**fields)
        await self.store.runs.adopt(run_id, job_id, self.clock())
        return run_id

    async def begun_run(self, **fields: Any) -> str:
        """A run of this daemon whose job nobody knows yet."""
        run_id = await self.drive.run_of(output(**fields))
        await self.drive.begin(run_id)
        return run_id


@asynccontextmanager
async def door_of(
    url: str,
    folder: Path,
    *,
    clock: StoppedClock | None = None,
    key: SigningKey | None = KEY,
    tenancy: Tenancy | None = None,
) -> AsyncIterator[Door]:
    """A daemon's door on a migrated database; without a key none is set up."""
    clock = clock or StoppedClock()
    store = await Store.open(
        url,
        artifacts_dir=folder / "artifacts",
        judge=JUDGE,
        clock=clock,
        tenancy=tenancy or Tenancy(),
    )
    try:
        facts: list[Fact] = []
        nudged: list[str] = []
        workbench = _workbench(folder, nudged.append)
        app = _app(store, clock, folder, key, facts)
        hints = JobHints(store.webhooks, {LINE.provider: workbench})
        yield Door(app, store, clock, hints, workbench, facts, nudged)
    finally:
        await store.close()


def _workbench(folder: Path, nudge: Callable[[str], None]) -> Workbench:
    artifacts = ArtifactStore(folder / "artifacts")
    provider = ScriptedProvider(folder / "scripted", artifacts)
    return Workbench(provider, ScriptedEvaluator(artifacts), nudge=nudge)


def _app(
    store: Store, clock: StoppedClock, folder: Path, key: SigningKey | None, facts: list[Fact]
) -> ASGIApp:
    lines = ModelLines([LINE])
    views = Views.of(
        store.database,
        lines=lines,
        artifacts_dir=folder / "artifacts",
        wanted_held_out=lambda: 32,
        clock=clock,
    )
    probes = DaemonProbes(views.overview, None, Pressure(time.monotonic), clock)
    return create_app(
        views=views,
        operations=ScriptedOperations(),
        forgetter=ScriptedOperations(),
        settings=settings_desk(store.database, clock),
        http_source=http_source(store.database, lines, clock),
        facts=RecentFacts(clock),
        health=probes,
        metrics=DaemonMetrics(Metrics(), views.overview, None, probes),
        token=TOKEN,
        webhook_intake=(
            None if key is None else WebhookIntake(key, store.webhooks, facts.append, clock)
        ),
    )


async def asked(
    app: ASGIApp,
    method: str,
    path: str,
    headers: Headers,
    *chunks: bytes,
    query: str = "",
    breaks_off: bool = False,
) -> Answer:
    """One request to an application, as a server would pass it on."""
    coming: list[Message] = [
        {"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks
    ]
    coming.append(
        {"type": "http.disconnect"} if breaks_off else {"type": "http.request", "body": b""}
    )
    sent: list[Message] = []

    async def receive() -> Message:
        if not coming:
            await asyncio.Event().wait()
        return coming.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("learnd", 80),
    }
    await app(scope, receive, send)
    start = next((message for message in sent if message["type"] == "http.response.start"), None)
    if start is None:
        return Answer(0, {}, b"")
    return Answer(
        start["status"],
        {name.decode(): value.decode() for name, value in start["headers"]},
        b"".join(message.get("body", b"") for message in sent[1:]),
    )
