"""The whole API against its own description, with requests that schemathesis makes up.

Every address of a real daemon, with data that fits the description and with data that does
not: no defect, no answer that is not described, and nothing without the token. The requests
are the same in every run.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import requests
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, Config, GenerationMode
from schemathesis import openapi as described
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.failures import FailureGroup

from daemon.api.app import OPEN_PATHS
from tests.services.learnd import Learnd
from tests.waiting import wait_until
from tests.webhooks import SECRET as WEBHOOK_SECRET

load_all_checks()
CHECK_NAMES = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
)
CONFIG = Config.from_dict(
    {
        "checks": {
            "negative_data_rejection": {"expected-statuses": [400, 401, 404, 409, 413, 415, 422]}
        }
    }
)
EXAMPLES = 20
"""Of each kind for each address."""


@dataclass(frozen=True)
class Served:
    """A daemon, and how it describes itself."""

    url: str
    headers: Mapping[str, str]
    schema: Any

    def operations(self) -> Iterator[Any]:
        """Every address with every method that is described."""
        for found in self.schema.get_all_operations():
            yield found.ok()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    settings = {
        "finetune": {"provider": "scripted", "base_model": "scripted-base"},
        "lines": {"coding": {}},
        "remote": {"openai_webhook_secret": WEBHOOK_SECRET},
    }
    with Learnd(tmp_path_factory.mktemp("api"), settings) as daemon:
        daemon.start()
        headers = {"Authorization": f"Bearer {daemon.token}"}
        with httpx.Client(base_url=daemon.url, headers=headers, trust_env=False) as client:
            _fill(client)
            schema = described.from_dict(client.get("/openapi.json").json(), config=CONFIG)
        yield Served(daemon.url, headers, schema)
        assert daemon.stop().status == 0


def _fill(client: httpx.Client) -> None:
    """Something of everything: events, a dead letter, a run and a version."""
    body = b"".join(
        json.dumps(
            {
                "event_id": f"e-{number}",
                "producer": "studio",
                "task_type": "coding",
                "task_id": f"t-{number}",
                "prompt": f"question {number}",
                "output": f"answer {number}",
                "approved": True if number else None,
            }
        ).encode()
        + b"\n"
        for number in range(41)
    )
    answer = client.post(
        "/v1/outputs", content=body, headers={"Content-Type": "application/x-ndjson"}
    )
    assert answer.status_code == 200
    wait_until("a version", lambda: client.get("/v1/models").json())


def all_is_sent(case: Case[Any]) -> bool:
    """Whether the whole query gets into the address: nothing is wrong when what was is left out."""
    query: Mapping[str, Any] = case.query or {}
    address = requests.Request("GET", "http://daemon/", params=query).prepare().url or ""
    return parse_qs(urlsplit(address).query, keep_blank_values=True).keys() >= query.keys()


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_answer_is_a_described_one(served: Served, mode: GenerationMode) -> None:
    checks: list[Any] = [CHECKS.get_one(name) for name in CHECK_NAMES]
    faults: list[str] = []
    for operation in served.operations():

        @settings(
            max_examples=EXAMPLES,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Case[Any]) -> None:
            assume(all_is_sent(case))
            case.call_and_validate(base_url=served.url, headers=dict(served.headers), checks=checks)

        try:
            ask()
        except Unsatisfiable:
            assert mode is GenerationMode.NEGATIVE, operation.label  # nothing can be wrong
        except FailureGroup as error:
            faults.append(f"{operation.label}: {error}")
    assert not faults, "\n\n".join(faults)


def test_everything_but_the_open_addresses_asks_for_the_token(served: Served) -> None:
    asked = 0
    for operation in served.operations():
        if operation.path in OPEN_PATHS:
            continue
        asked += 1
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            answer = httpx.request(
                operation.method.upper(),
                f"{served.url}{operation.path}",
                headers=headers,
                trust_env=False,
            )
            assert answer.status_code == 401, operation.label
        assert operation.definition.raw["security"], operation.label
    assert asked >= 20
