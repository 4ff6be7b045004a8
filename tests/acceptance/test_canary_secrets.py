"""canary_secrets: planted keys are looked for wherever a daemon says or keeps something.

Services fail, and repeat the key that they were asked with; a training ends in a defect with its
traceback; settings are wrong. Everything that comes out of it is swept: logs at debug level, each
address of the API, metrics, commands, files, the database. A planted leak shows that the
sweep finds one.
"""

import base64
import contextlib
import json
import os
import secrets
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from psycopg import sql

from daemon.settings import Settings
from daemon.settings_sources import PLAIN_NAMES, SettingsError, load
from tests.acceptance.test_cli import LEARND, clean_environment
from tests.canaries import Canaries, secret_settings
from tests.services.fake_chat import FakeChat, Fault
from tests.services.fake_finetune_endpoint import Asked, FakeEndpoint
from tests.services.kafka import KafkaBroker
from tests.services.learnd import Learnd
from tests.services.loopback import on_loopback
from tests.services.postgres import PostgresServer
from tests.tuned_models import BASE, FAST, Skills, right

LINE = "coding"
N_OUTPUTS = 8
WITH_ALL_OF_IT = 300


@dataclass
class House:
    """A daemon that was told every secret there is, and everything that was heard of it."""

    daemon: Learnd
    endpoint: FakeEndpoint
    canaries: Canaries
    secrets: Mapping[str, str]
    environment: Mapping[str, str]
    database: str
    heard: dict[str, str] = field(default_factory=dict)
    """What was said, by who said it."""

    def type(self, *words: str, **environment: str) -> None:
        """Type a command, with the secrets in its environment, however it ends."""
        done = subprocess.run(
            [*LEARND, *words],
            cwd=self.daemon.folder,
            env={
                **clean_environment(),
                **self.environment,
                "LEARND_CONFIG": str(self.daemon.folder / "learnd.yaml"),
                "LEARND_URL": self.daemon.url,
                "LEARND_TOKEN": self.secrets["token"],
                **environment,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        said = done.stdout + done.stderr
        assert said, f"learnd {' '.join(words)} said nothing"
        self.heard[f"learnd {' '.join(words)} {' '.join(environment)}"] = said

    def misconfigure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Read settings in which each secret is what cannot be meant."""
        spoilt = {name: f"{secret}\n{secret} é" for name, secret in self.environment.items()}
        wrong = [{name: value} for name, value in spoilt.items()]
        wrong += [{name: f'["{secret}"]'} for name, secret in self.environment.items()]
        wrong += [{"LEARND_REMOTE": json.dumps({"llm_api_key": [self.secrets["token"]]})}]
        for environment in wrong:
            with monkeypatch.context() as patch:
                for name, value in environment.items():
                    patch.setenv(name, value)
                try:
                    load(self.daemon.folder / "learnd.yaml")
                except SettingsError as error:
                    self.heard[f"settings with another {', '.join(environment)}"] = str(error)

    def ask_everything(self) -> None:
        """Each address of the API that can be read, with the token, a wrong one and none."""
        paths = self.daemon.get("/openapi.json")["paths"]
        run_id = self.daemon.get("/v1/runs")["items"][0]["id"]
        tokens = {"let in": self.secrets["token"], "refused": f"{self.secrets['token']}x", "": None}
        named = defaultdict(lambda: "x", {"line": LINE, "run_id": run_id})
        with httpx.Client(base_url=self.daemon.url, trust_env=False, timeout=30) as client:
            for path in [path.format_map(named) for path, does in paths.items() if "get" in does]:
                for whose, token in tokens.items():
                    headers = {"Authorization": f"Bearer {token}"} if token else {}
                    answer = client.get(path, headers=headers)
                    self.heard[f"GET {path}, {whose}"] = f"{answer.headers}\n{answer.text}"
            forged = {"webhook-id": "w-1", "webhook-timestamp": "1", "webhook-signature": "v1,x"}
            answer = client.post("/webhooks/openai", content=b"{}", headers=forged)
            self.heard["POST /webhooks/openai"] = f"{answer.headers}\n{answer.text}"

    def sweep(self) -> dict[str, set[str]]:
        """Which secrets turned up where, in all that was said and kept."""
        found = {who: self.canaries.found_in(said) for who, said in self.heard.items()}
        for log in self.daemon.folder.glob("learnd-*.log"):
            found[log.name] = self.canaries.found_in(log.read_bytes())
        data = self.daemon.data_dir
        found |= self.canaries.found_below(data, except_in=data / "token")
        with psycopg.connect(self.database) as session:
            for name in sorted(_tables(session)):
                query = sql.SQL("select t::text from {} t").format(sql.Identifier(name))
                rows = session.execute(query).fetchall()
                found[f"table {name}"] = self.canaries.found_in("\n".join(row[0] for row in rows))
        return {place: names for place, names in found.items() if names}

    def send(self, batch: int) -> None:
        """Send one batch of outputs."""
        events = [
            {"event_id": f"e-{batch}-{n}", "producer": "studio", "task_type": LINE,
             "task_id": f"t-{batch}-{n}", "prompt": f"say {batch} {n}", "output": f"SAY {batch}",
             "approved": True}
            for n in range(N_OUTPUTS)
        ]  # fmt: skip
        body = "".join(f"{json.dumps(event)}\n" for event in events).encode()
        headers = {
            "Authorization": f"Bearer {self.secrets['token']}",
            "Content-Type": "application/x-ndjson",
        }
        url = f"{self.daemon.url}/v1/outputs"
        httpx.post(url, content=body, headers=headers, trust_env=False).raise_for_status()

    def failed(self, number: int) -> str:
        """What the newest run says, when so many have failed."""

        def ask() -> list[Any]:
            runs = self.daemon.get("/v1/runs")["items"]
            failed = [run for run in runs if run["state"] == "failed"]
            return failed if len(failed) >= number else []

        return str(self.daemon.wait_until(f"{number} failed runs", ask)[0]["message"])


def _tables(session: psycopg.Connection[Any]) -> list[str]:
    rows = session.execute("select tablename from pg_tables where schemaname = 'public'")
    return [row[0] for row in rows]


def every_secret() -> dict[str, str]:
    """One for each setting that is a secret, and for what has no setting of its own."""
    of_settings = {".".join(path): _secret() for path in secret_settings(Settings)}
    signing = f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"
    of_settings["remote.openai_webhook_secret"] = signing
    return {**of_settings, "token": _secret(), "database": _secret()}


def _secret() -> str:
    return f"canary/{secrets.token_hex(16)}+{secrets.token_hex(4)}"


def environment_of(planted: Mapping[str, str]) -> dict[str, str]:
    """The variables that carry the secrets of settings, under the names that people use."""
    plain = {".".join(path): name for name, path in PLAIN_NAMES.items()}
    return {
        plain.get(key, f"LEARND_{key.upper().replace('.', '__')}"): secret
        for key, secret in planted.items()
        if "." in key
    }


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[Callable[[str], str]]:
    """`database(password)` is the address of a new one, whose owner has that password."""
    with postgres_server.database() as url, postgres_server.session() as session:
        name = url.rpartition("/")[2]
        role = sql.Identifier(f"owner_of_{name}")

        def owned(password: str) -> str:
            session.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, sql.Literal(password))
            )
            session.execute(
                sql.SQL("ALTER DATABASE {} OWNER TO {}").format(sql.Identifier(name), role)
            )
            place = url.rpartition("@")[2]
            quoted = password.replace("/", "%2F").replace("+", "%2B")
            return f"postgresql://owner_of_{name}:{quoted}@{place}"

        yield owned
        session.execute(
            sql.SQL("ALTER DATABASE {} OWNER TO CURRENT_USER").format(sql.Identifier(name))
        )
        with postgres_server.session(name) as inside:
            inside.execute(sql.SQL("DROP OWNED BY {}").format(role))
        session.execute(sql.SQL("DROP ROLE {}").format(role))


@pytest.fixture
def house(
    tmp_path: Path, kafka_broker: KafkaBroker, database: Callable[[str], str]
) -> Iterator[House]:
    planted = every_secret()
    endpoint = FakeEndpoint(api_key=planted["remote.finetune_api_key"])
    chat = FakeChat(Skills(), right, key=planted["remote.llm_api_key"])
    chat.fault = lambda _: Fault(401, f'{{"error": "not {chat.key}"}}'.encode())
    with contextlib.ExitStack() as stack:
        stack.enter_context(endpoint.serving())
        settings = {
            "finetune": {"provider": "http", "base_model": BASE, "max_attempts": 1},
            "queue": {"batch_size": N_OUTPUTS, "adaptive": False},
            "remote": {
                "finetune_endpoint": endpoint.url,
                "llm_endpoint": stack.enter_context(on_loopback(chat.app())),
                "openai_endpoint": "http://127.0.0.1:9",
                "http": dict(FAST),
            },
            # The broker knows no SASL, and says no.
            "kafka": {
                "bootstrap_servers": kafka_broker.bootstrap,
                "security_protocol": "SASL_PLAINTEXT",
                "sasl_mechanism": "PLAIN",
                "sasl_username": "learnd",
            },
            "lines": {LINE: {}},
            "log": {"level": "debug", "format": "json"},
        }
        url = database(planted["database"])
        environment = {**environment_of(planted), "LEARND_DATABASE_URL": url}
        daemon = stack.enter_context(Learnd(tmp_path, settings))
        daemon.data_dir.mkdir()
        (daemon.data_dir / "token").write_text(f"{planted['token']}\n")
        daemon.launch(environment=environment)
        daemon.wait_until("learnd is up", daemon.is_up)
        yield House(daemon, endpoint, Canaries(planted), planted, environment, url)


@pytest.mark.timeout(WITH_ALL_OF_IT)
def test_planted_keys_turn_up_nowhere_and_a_planted_leak_is_found(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon, endpoint = house.daemon, house.endpoint

    house.send(1)  # it is trained, and the service that is to answer repeats its key
    assert "answered 401" in house.failed(1)

    endpoint.answer = lambda asked: (400, json.dumps(dict(asked.headers)).encode())
    house.send(2)  # the service that is to train repeats every header that it got
    assert "authorization" in house.failed(2)

    (daemon.data_dir / "datasets").rename(daemon.data_dir / "moved")
    (daemon.data_dir / "datasets").write_text("a file where a folder has to be")
    house.send(3)  # a defect, as far as the runner can tell
    house.failed(3)
    assert daemon.told(event="run failed unexpectedly")[0]["exception"].startswith("Traceback")

    os.unlink(daemon.data_dir / "datasets")
    house.ask_everything()
    house.type("check")
    house.type("runs", "--json")
    house.type("finetune", "none.jsonl", "--provider", "http", "--model", BASE)
    nowhere = house.database.replace(house.database.rpartition("@")[2], "127.0.0.1:9/learnd")
    house.type("run", LEARND_DATABASE_URL=nowhere, LEARND_DATA_DIR=str(daemon.folder / "other"))
    house.misconfigure(monkeypatch)
    assert {"GET /metrics, let in", "GET /v1/runs, let in", "learnd check "} <= set(house.heard)
    assert house.sweep() == {}

    # A service repeats what only another one should know: nobody can tell that it is a key.
    leaked = house.secrets["remote.openai_api_key"]
    endpoint.answer = lambda asked: _blab(asked, leaked)
    house.send(4)
    house.failed(4)
    house.ask_everything()
    house.type("runs", "--json")
    places = house.sweep()
    assert {name for names in places.values() for name in names} == {"remote.openai_api_key"}
    assert {"learnd-1.log", "learnd runs --json ", "table runs"} <= set(places)
    assert any(place.startswith("GET /v1/runs") for place in places)


def _blab(asked: Asked, secret: str) -> tuple[int, bytes]:
    return 400, f"{asked.method} needs {secret}".encode()
