"""`learnd check`: try everything that the settings name, and say how each of it is.

Changes nothing and sends no key anywhere. Each finding is one line with what to do.
"""

import asyncio
import importlib.util
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from consumers.screening.process import ProcessLimits, ScreeningProcess
from consumers.watched_files import Refused, files_of, root_of
from daemon.preflight import outlooks
from daemon.printing import some_of
from daemon.settings import LOCAL_PROVIDERS, Settings, without_password
from finetune.artifacts import ArtifactStore
from finetune.remote import http_training, openai_settings
from finetune.remote.access import ServiceAccess
from finetune.remote.address import DEFAULT_PORTS, AddressRefusedError, permitted
from finetune.trainer_process import TrainerHost
from learning.budget import Budget, PriceMissingError
from learning.errors import LearningError
from learning.events import OutputEvent
from learning.lines import ModelLine
from learning.screening import CannotScreenError

if TYPE_CHECKING:
    import sqlite3

    from sqlalchemy import URL, Engine

REACH_SECONDS = 5.0
FULL_BYTES = 100 * 2**20
"""With less free space a database soon refuses to write."""
LITTLE_BYTES = 2 * 2**30
"""A small model and its checkpoints."""
USABLE = "can be used"
REMOTE = {
    openai_settings.NAME: openai_settings.training_settings,
    http_training.NAME: http_training.training_settings,
}
"""Providers that train at a service, and what reads their training settings."""
_ANY_OUTPUT = OutputEvent(
    producer="check", task_id="check", task_type="check", prompt="Hello?", output="Hello."
)
LOCAL_PROVIDER_NEEDS = ("torch", "transformers", "peft", "safetensors")


class Grade(StrEnum):
    """How a thing is; only BAD fails the check."""

    OK = "ok"
    NOTE = "note"
    BAD = "bad"


@dataclass(frozen=True)
class Finding:
    """One thing that was tried."""

    subject: str
    grade: Grade
    detail: str


async def examine(settings: Settings) -> AsyncIterator[Finding]:
    """Try everything, one after the other."""
    yield await asyncio.to_thread(_folder, "data directory", settings.data_dir)
    yield await asyncio.to_thread(_folder, "artifacts directory", settings.artifacts_dir)
    database = await asyncio.to_thread(_database, settings.database_url)
    yield database
    if database.grade is Grade.OK:
        for finding in await asyncio.to_thread(_versions, settings):
            yield finding
    yield await asyncio.to_thread(_address, settings.http.host, settings.http.port)
    yield await _kafka(settings)
    files = settings.intake.files
    for kind, paths in (("outputs", files.outputs), ("feedback", files.feedback)):
        for watched in paths:
            yield await asyncio.to_thread(_followed, kind, watched)
    for finding in (*_base_models(settings), *_shutdowns(settings)):
        yield finding
    yield await _validators(settings)
    lines = list(settings.model_lines())
    usable = set()
    for provider in sorted({line.provider for line in lines}):
        finding = _provider(provider, settings)
        if finding.grade is Grade.OK:
            usable.add(provider)
        yield finding
    for finding in _money(settings.money.budget(), lines):
        yield finding
    # What is missing has been said by now.
    can_be_asked = [
        line for line in lines if line.provider in usable and not _is_no_model(line.base_model)
    ]
    async for outlook in _outlooks(can_be_asked):
        yield outlook
    for name, access in settings.remote.services().items():
        yield await _endpoint(name, access)


async def _validators(settings: Settings) -> Finding:
    """Whether the costly validators can be loaded, and one output screened by them."""
    rules = settings.screening.rules()
    if not rules.enabled:
        return Finding("screening", Grade.NOTE, "off: outputs are sealed unscreened")
    process = ScreeningProcess(ProcessLimits(settings.screening.memory_mib << 20))
    try:
        # Any task type that has no rules of its own is like "check".
        task_types = {"check", *rules.task_types}
        names = {name for one in task_types for name in await process.validators(rules, one)}
        await process.screen(_ANY_OUTPUT, rules)
    except CannotScreenError as error:
        return Finding("screening", Grade.BAD, f"{error}; until then nothing is sealed")
    finally:
        await process.close()
    return Finding("screening", Grade.OK, f"{', '.join(sorted(names)) or 'no validator'} loaded")


def _money(budget: Budget, lines: Sequence[ModelLine]) -> Iterator[Finding]:
    """Lines whose runs would wait for a price, and prices that none of them has use for."""
    for provider in sorted(budget.prices.keys() - {line.provider for line in lines}):
        yield Finding("prices", Grade.NOTE, f"money.prices.{provider}: no line trains there")
    for line in lines:
        if line.base_model is not None:
            at_home = line.provider in LOCAL_PROVIDERS
            try:
                budget.is_free(line.provider, line.base_model, at_home=at_home)
            except PriceMissingError as missing:
                yield Finding(f"price of line {line.name}", Grade.BAD, str(missing))


def _folder(subject: str, folder: Path) -> Finding:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        return Finding(subject, Grade.BAD, f"{existing} is not a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        return Finding(subject, Grade.BAD, f"{existing} may not be written")
    made = "is there" if existing == folder else "will be made at the first start"
    free_bytes = shutil.disk_usage(existing).free
    found = f"{folder} {made}, {free_bytes / 2**30:,.1f} GiB free"
    if free_bytes < FULL_BYTES:
        return Finding(subject, Grade.BAD, f"{found}: it is about to be full")
    if free_bytes < LITTLE_BYTES:
        return Finding(subject, Grade.NOTE, f"{found}: little for models and checkpoints")
    return Finding(subject, Grade.OK, found)


def _followed(kind: str, watched: Path) -> Finding:
    subject = f"files of {kind}"
    readable, refused, unreadable = 0, [], []
    try:
        for each in files_of(watched):
            if isinstance(each, Refused):
                refused.append(f"{each.path} is not read: {each.why}")
            elif os.access(each, os.R_OK):
                readable += 1
            else:
                unreadable.append(str(each))
        folder = root_of(watched)
        if not folder.is_dir():
            return Finding(subject, Grade.NOTE, f"{watched}: there is no folder {folder} yet")
        if not os.access(folder, os.R_OK | os.X_OK):
            return Finding(subject, Grade.BAD, f"{watched}: {folder} may not be read")
    except OSError as error:
        return Finding(subject, Grade.BAD, f"{watched} cannot be read: {error.strerror or error}")
    if unreadable:
        return Finding(subject, Grade.BAD, f"{watched}: {some_of(unreadable)} may not be read")
    if refused:
        return Finding(subject, Grade.NOTE, f"{watched}: {some_of(refused)}")
    return Finding(subject, Grade.OK, f"{watched}: {readable} to follow now")


def _database(url: str) -> Finding:
    # Imported here: whoever only asks for the status should not wait for it.
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError

    from daemon.store.database import address_of

    shown = without_password(url)
    try:
        address = address_of(url)
        if address.get_backend_name() == "sqlite":
            return _sqlite(Path(address.database or ""), shown)
        return _postgresql(address, shown)
    except DBAPIError as error:
        return Finding("database", Grade.BAD, f"{shown}: {' '.join(str(error.orig).split())}")
    except (SQLAlchemyError, ValueError) as error:
        return Finding("database", Grade.BAD, f"{shown}: {str(error).splitlines()[0]}")


def _postgresql(address: "URL", shown: str) -> Finding:
    from sqlalchemy import text

    from daemon.store.postgresql import UnsuitableDatabaseError, open_engine

    engine = open_engine(address, connections=1)
    try:
        with engine.connect() as connection:
            version, encoding, user, may_create = connection.execute(
                text(
                    "SELECT current_setting('server_version'), current_setting('server_encoding'),"
                    " current_user, has_schema_privilege(current_schema(), 'CREATE')"
                )
            ).one()
    finally:
        engine.dispose()
    server = f"{shown} answers: PostgreSQL {version.split()[0]}"
    if encoding != "UTF8":
        return Finding("database", Grade.BAD, f"{server}, but {UnsuitableDatabaseError(encoding)}")
    if not may_create:
        advice = f"make {user} the owner of the database, so that it can make its tables"
        return Finding("database", Grade.BAD, f"{server}, but {advice}")
    return Finding("database", Grade.OK, server)


def _versions(settings: Settings) -> Sequence[Finding]:
    """What the database knows of versions, held against their files; nothing without tables."""
    from sqlalchemy import inspect
    from sqlalchemy.exc import DBAPIError

    from daemon.artifact_check import compare, recorded
    from daemon.store.database import address_of

    address = address_of(settings.database_url)
    if address.get_backend_name() == "sqlite" and not Path(address.database or "").exists():
        return []
    subject = "versions"
    engine = _reading(settings.database_url)
    try:
        with engine.connect() as connection:
            if not inspect(connection).has_table("versions"):
                return []
            record = recorded(connection)
        found = compare(record, settings.artifacts_dir)
    except DBAPIError as error:
        return [Finding(subject, Grade.BAD, " ".join(str(error.orig).split()))]
    except LearningError as error:
        return [Finding(subject, Grade.BAD, str(error))]
    finally:
        engine.dispose()
    grade = Grade.NOTE if found.faults_of_unused else Grade.OK
    return [Finding(subject, Grade.BAD if found.faults else grade, str(found))]


def with_stored(settings: Settings) -> tuple[Settings, Finding | None]:
    """The settings with what the database says over them, and how these fit together.

    As they are, without a finding, where nothing is stored or the database cannot be asked.
    """
    from sqlalchemy import inspect
    from sqlalchemy.exc import SQLAlchemyError

    from daemon.live_settings import LiveSettings
    from daemon.store.database import address_of
    from daemon.store.setting_changes import stored_settings

    try:
        address = address_of(settings.database_url)
        if address.get_backend_name() == "sqlite" and not Path(address.database or "").exists():
            return settings, None
        engine = _reading(settings.database_url)
        try:
            with engine.connect() as connection:
                if not inspect(connection).has_table("setting_changes"):
                    return settings, None
                stored = stored_settings(connection)
        finally:
            engine.dispose()
    except (SQLAlchemyError, ValueError):
        return settings, None  # the finding about the database says so
    if not stored.values:
        return settings, None
    subject = "stored settings"
    try:
        live = LiveSettings(settings, stored)
    except LearningError as error:
        return settings, Finding(subject, Grade.BAD, "; ".join(str(error).splitlines()))
    said = f"{len(stored.values)} hold over the file and the environment, revision"
    return live.now, Finding(subject, Grade.OK, f"{said} {stored.revision}")


def _reading(url: str) -> "Engine":
    """An engine that changes nothing: a SQLite file that is not there is not made."""
    from sqlalchemy import NullPool, create_engine

    from daemon.store.database import address_of
    from daemon.store.postgresql import open_engine

    address = address_of(url)
    if address.get_backend_name() != "sqlite":
        return open_engine(address, connections=1)
    return create_engine(
        "sqlite://", creator=lambda: _read_only(Path(address.database or "")), poolclass=NullPool
    )


def _read_only(file: Path) -> "sqlite3.Connection":
    import sqlite3

    return sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)


def _sqlite(file: Path, shown: str) -> Finding:
    import sqlite3

    if not file.exists():
        return Finding("database", Grade.OK, f"{shown} will be made at the first start")
    connection = _read_only(file)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        return Finding("database", Grade.BAD, f"{shown}: {error}")
    finally:
        connection.close()
    return Finding("database", Grade.OK, f"{shown} can be read")


def _address(host: str, port: int) -> Finding:
    if port == 0:
        return Finding("address", Grade.OK, f"{host}, a free port")
    try:
        with socket.create_connection((_reachable(host), port), REACH_SECONDS):
            taken = f"{host}:{port} is taken, by a running daemon perhaps"
            return Finding("address", Grade.NOTE, taken)
    except socket.gaierror as error:
        return Finding("address", Grade.BAD, f"{host} is no address: {error.strerror}")
    except OSError:
        return Finding("address", Grade.OK, f"{host}:{port} is free")


def _reachable(host: str) -> str:
    """Where to find a server that listens on all addresses."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104


async def _kafka(settings: Settings) -> Finding:
    kafka = settings.kafka
    if not kafka.configured:
        return Finding("kafka", Grade.NOTE, "not configured: set kafka.bootstrap_servers")
    from aiokafka.admin import AIOKafkaAdminClient
    from aiokafka.errors import KafkaError

    from daemon.kafka import CertificateError, kafka_connection

    try:
        client = kafka_connection(kafka).client
    except CertificateError as error:
        return Finding("kafka", Grade.BAD, str(error))
    admin = AIOKafkaAdminClient(
        bootstrap_servers=kafka.bootstrap_servers,
        request_timeout_ms=round(REACH_SECONDS * 1000),
        **client,
    )
    try:
        async with asyncio.timeout(REACH_SECONDS):
            await admin.start()
            known = set(await admin.list_topics())
    except (KafkaError, OSError, TimeoutError) as error:
        why = str(error) or type(error).__name__
        return Finding("kafka", Grade.BAD, f"{kafka.bootstrap_servers} does not answer: {why}")
    finally:
        await admin.close()
    missing = [t for t in (*kafka.outputs_topics, *kafka.feedback_topics) if t not in known]
    if missing:
        return Finding(
            "kafka", Grade.NOTE, f"the broker answers, but has no topic {', '.join(missing)} yet"
        )
    return Finding("kafka", Grade.OK, f"{kafka.bootstrap_servers} answers and has every topic")


def _base_models(settings: Settings) -> Iterator[Finding]:
    users: dict[str | None, list[str]] = {}
    for line in settings.model_lines():
        if line.provider in REMOTE:
            continue  # what the service can train is for the service to say
        users.setdefault(line.base_model, []).append(line.name)
    for base_model, lines in users.items():
        of = f"base model of {some_of(lines)}"
        if base_model is None:
            yield Finding(of, Grade.NOTE, "none: set finetune.base_model, or nothing is trained")
        elif Path(base_model, "config.json").is_file():
            yield Finding(of, Grade.OK, f"{base_model} is there")
        elif _is_no_model(base_model):
            yield Finding(of, Grade.BAD, f"{base_model} has no config.json: not a model directory")
        else:
            yield Finding(
                of, Grade.NOTE, f"{base_model} is a hub name: it is fetched with the first run"
            )


def _shutdowns(settings: Settings) -> Iterator[Finding]:
    """Base models whose end is configured; of champions the running daemon knows."""
    from daemon.shutdowns import shutdowns

    lines = settings.model_lines()
    in_use = {line.name: [line.base_model] for line in lines if line.base_model is not None}
    for one in shutdowns(in_use, settings.remote.shutdown_dates, datetime.now(UTC)):
        grade = Grade.BAD if one.days_left <= 0 else Grade.NOTE if one.is_soon else Grade.OK
        yield Finding("models", grade, str(one))


def _is_no_model(base_model: str | None) -> bool:
    """Whether it is a path, and no model lies there."""
    if base_model is None or Path(base_model, "config.json").is_file():
        return False
    return base_model.startswith((".", "/", "~")) or Path(base_model).exists()


async def _outlooks(lines: Iterable[ModelLine]) -> AsyncIterator[Finding]:
    """What this machine can train, as a trainer of its own says."""
    grades = {True: Grade.OK, False: Grade.BAD, None: Grade.NOTE}
    with tempfile.TemporaryDirectory(prefix="learnd-check-") as folder:
        log_file = Path(folder, "trainer.log")
        async with TrainerHost(ArtifactStore(Path(folder)), log_file) as host:
            async for outlook in outlooks(host, lines):
                yield Finding(outlook.of, grades[outlook.possible], outlook.words)


def _provider(name: str, settings: Settings) -> Finding:
    from finetune.providers import factory_of

    subject = f"provider {name}"
    try:
        factory_of(name)
    except LearningError as error:
        return Finding(subject, Grade.BAD, str(error))
    needed = LOCAL_PROVIDER_NEEDS if name in LOCAL_PROVIDERS else ()
    missing = [library for library in needed if importlib.util.find_spec(library) is None]
    if missing:
        advice = f"{', '.join(missing)} not installed: install learnd with its extra `train`"
        return Finding(subject, Grade.BAD, advice)
    if name in REMOTE and (untaught := _not_understood(name, settings)) is not None:
        return Finding(subject, Grade.BAD, untaught)
    match name:
        case openai_settings.NAME:
            return _service(subject, settings)
        case http_training.NAME:
            return _plain_endpoint(subject, settings)
        case _:
            return Finding(subject, Grade.OK, USABLE)


def _not_understood(provider: str, settings: Settings) -> str | None:
    """What of a line's training settings its provider does not understand."""
    for line in settings.model_lines():
        if line.provider == provider:
            try:
                REMOTE[provider](line.training)
            except ValueError as error:
                return f"line {line.name}: {error}"
    return None


def _service(subject: str, settings: Settings) -> Finding:
    """What is missing for training at a service that speaks OpenAI's protocol."""
    access = settings.remote.training_service()
    if access is None:
        return Finding(subject, Grade.BAD, "set remote.openai_endpoint (OPENAI_BASE_URL)")
    return _with_key(subject, access)


def _plain_endpoint(subject: str, settings: Settings) -> Finding:
    """What is missing for training at an endpoint of any kind."""
    endpoint = settings.fine_tune_endpoint()
    if endpoint is None:
        return Finding(subject, Grade.BAD, "set remote.finetune_endpoint (FINETUNE_ENDPOINT)")
    if settings.remote.chat_service() is None:
        return Finding(subject, Grade.BAD, "set remote.llm_endpoint (LLM_ENDPOINT)")
    return _with_key(subject, endpoint.access)


def _with_key(subject: str, access: ServiceAccess) -> Finding:
    if access.api_key is None:
        advice = f"{USABLE}, if the service asks for no key; otherwise set {access.key_setting}"
        return Finding(subject, Grade.NOTE, advice)
    return Finding(subject, Grade.OK, USABLE)


async def _endpoint(name: str, access: ServiceAccess) -> Finding:
    parts = urlsplit(access.base_url)
    assert parts.hostname is not None, "the settings refuse an address without one"
    port = parts.port or DEFAULT_PORTS[parts.scheme]
    try:
        async with asyncio.timeout(REACH_SECONDS):
            await _connect(await permitted(access, parts.hostname, port), port)
    except AddressRefusedError as error:
        return Finding(name, Grade.BAD, error.fault)
    except (OSError, TimeoutError) as error:
        why = str(error) or "no answer in time"
        return Finding(name, Grade.BAD, f"{access.base_url} cannot be reached: {why}")
    return Finding(name, Grade.OK, f"{access.base_url} takes connections")


async def _connect(addresses: Sequence[str], port: int) -> None:
    """Reach one of them, the first that answers. Raises OSError."""
    for number, address in enumerate(addresses, start=1):
        try:
            _, writer = await asyncio.open_connection(address, port)
        except OSError:
            if number == len(addresses):
                raise
        else:
            writer.close()
            await writer.wait_closed()
            return
