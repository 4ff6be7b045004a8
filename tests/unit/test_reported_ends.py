"""A service's own list of models may say when they end; nothing else in it is believed."""

import json
from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from finetune.remote import reported_ends as module
from finetune.remote.access import ServiceAccess
from finetune.remote.reported_ends import reported_ends
from tests.services.fake_chat import FakeChat
from tests.services.loopback import on_loopback

KEY = "a-key-for-the-service"
DAY = date(2027, 1, 14)
SECONDS = 1_799_884_800  # that day, at its start


@pytest.fixture
def chat() -> FakeChat:
    return FakeChat(models={"small": 1.0}, right=lambda messages: "", key=KEY)


@pytest.fixture
def access(chat: FakeChat) -> Iterator[ServiceAccess]:
    with on_loopback(chat.app()) as url:
        yield ServiceAccess(url, SecretStr(KEY))


def listing(*deprecations: Any) -> bytes:
    data = [{"id": f"m{n}", "deprecation": told} for n, told in enumerate(deprecations)]
    return json.dumps({"object": "list", "data": data}).encode()


async def test_a_list_without_dates_reports_nothing(access: ServiceAccess) -> None:
    assert await reported_ends(access) == {}


@pytest.mark.parametrize(
    "told",
    [
        "2027-01-14",
        "2027-01-14T08:00:00Z",
        "2027-01-13T23:30:00-05:00",
        SECONDS,
        {"inference": SECONDS},
        {"fine_tune": SECONDS, "inference": SECONDS + 86_400 * 30},
    ],
)
async def test_a_date_is_read_in_the_forms_that_services_have(
    chat: FakeChat, access: ServiceAccess, told: object
) -> None:
    chat.listed = listing(None, told)
    assert await reported_ends(access) == {"m1": DAY}


@pytest.mark.parametrize(
    "told",
    ["soon", "", True, 1.5, -1, 10**18, "9999-12-31", "1970-01-01", [], {}, {"inference": "x"}],
)
async def test_what_is_no_plausible_date_is_passed_over(
    chat: FakeChat, access: ServiceAccess, told: object
) -> None:
    chat.listed = listing(told, SECONDS)
    assert await reported_ends(access) == {"m1": DAY}


@pytest.mark.parametrize(
    "listed",
    [
        b"[]",
        b"7",
        b'{"data": 7}',
        b'{"data": [7, null, {}, {"id": 7}]}',
        b'{"data": [{"id": "", "deprecation": 1799884800}]}',
        json.dumps({"data": [{"id": "x" * 300, "deprecation": SECONDS}]}).encode(),
    ],
)
async def test_a_list_of_another_shape_reports_nothing(
    chat: FakeChat, access: ServiceAccess, listed: bytes
) -> None:
    chat.listed = listed
    assert await reported_ends(access) == {}


@pytest.mark.parametrize("listed", [b"<html>", b"", b"[" * 100_000, b" " * 5_000])
async def test_what_is_no_list_at_all_is_an_error_without_the_key(
    chat: FakeChat, access: ServiceAccess, listed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 200_000)
    chat.listed = listed
    with pytest.raises(ConnectionError) as found:
        await reported_ends(access)
    assert KEY not in str(found.value)


async def test_an_endless_list_is_not_read_on(
    chat: FakeChat, access: ServiceAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 1_000)
    chat.listed = listing(*[SECONDS] * 1_000)
    with pytest.raises(ConnectionError, match="too long"):
        await reported_ends(access)


async def test_a_service_that_refuses_or_is_away_is_an_error(access: ServiceAccess) -> None:
    with pytest.raises(ConnectionError, match="401"):
        await reported_ends(ServiceAccess(access.base_url, SecretStr("another")))
    with pytest.raises(ConnectionError, match="does not answer"):
        await reported_ends(ServiceAccess("http://127.0.0.1:9/v1"), patience=timedelta(seconds=5))
    with pytest.raises(ConnectionError, match="does not answer"):
        await reported_ends(ServiceAccess("http://169.254.169.254/v1"))
