"""`learnd check`, where a machine would have to be full or locked; the rest is in acceptance."""

import os
import shutil
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from daemon.check import FULL_BYTES, LITTLE_BYTES, Grade, examine, with_stored
from daemon.settings import Settings
from daemon.settings_sources import load
from daemon.store import Store
from daemon.store.setting_changes import SettingChanges
from tests.screening import install

NOWHERE = "http://127.0.0.1:1/v1"
TWO_SERVICES = {"remote.finetune_endpoint": NOWHERE, "remote.llm_endpoint": NOWHERE}


@pytest.mark.parametrize(
    ("free_bytes", "grade"),
    [
        (FULL_BYTES - 1, Grade.BAD),
        (LITTLE_BYTES - 1, Grade.NOTE),
        (LITTLE_BYTES, Grade.OK),
    ],
)
async def test_a_disk_that_fills_is_told(
    free_bytes: int, grade: Grade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=free_bytes)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    settings = load(None, {"data_dir": tmp_path, "http.port": 0})
    found = {finding.subject: finding async for finding in examine(settings)}
    assert found["artifacts directory"].grade is grade
    assert found["data directory"].grade is grade


async def test_settings_of_the_database_are_shown_with_those_of_the_file(tmp_path: Path) -> None:
    data = {"data_dir": tmp_path}
    settings = load(None, data)
    assert with_stored(settings) == (settings, None)
    database = await Store.open_database(settings.database_url)
    assert with_stored(settings) == (settings, None)
    await SettingChanges(database).change(
        0,
        {("queue", "batch_size"): 60},
        reason="a large model",
        actor="ada",
        now=datetime(2026, 11, 21, tzinfo=UTC),
    )
    await database.close()

    holding, finding = with_stored(settings)
    assert holding.queue.batch_size == 60
    assert finding is not None
    assert finding.grade is Grade.OK

    narrower = load(None, {**data, "queue.max_queue_size": 50})
    holding, finding = with_stored(narrower)
    assert holding is narrower
    assert finding is not None
    assert finding.grade is Grade.BAD
    assert "max_queue_size 50 is smaller than batch_size 60" in finding.detail
    assert "learnd settings unset" in finding.detail


async def test_a_base_model_that_ends_is_told(tmp_path: Path) -> None:
    dates = {"near": datetime.now(UTC).date() + timedelta(days=5), "gone": date(2026, 1, 14)}
    settings = Settings(
        data_dir=tmp_path,
        http={"port": 0},
        remote={"shutdown_dates": dates},
        finetune={"provider": "scripted", "base_model": "near"},
        lines={"coding": {"base_model": "gone"}},
    )
    found = [one async for one in examine(settings) if one.subject == "models"]
    assert found[0].grade is Grade.BAD
    assert found[0].detail == "coding: the model gone is shut down since 2026-01-14"
    assert {one.grade for one in found[1:]} == {Grade.NOTE}


async def test_a_followed_file_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret.jsonl"
    secret.touch()
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != secret and allowed(path, mode))
    settings = load(
        None,
        {"data_dir": tmp_path, "http.port": 0, "intake.files.outputs": [tmp_path]},
    )
    found = {finding.subject: finding async for finding in examine(settings)}
    assert found["files of outputs"].grade is Grade.BAD
    assert str(secret) in found["files of outputs"].detail


async def test_a_line_without_a_price_under_a_cap_is_named_with_the_setting(
    tmp_path: Path,
) -> None:
    settings = load(
        None,
        {
            "data_dir": tmp_path,
            "http.port": 0,
            "lines.coding.provider": "scripted",
            "lines.coding.base_model": "scripted-base",
            "money.cap_per_day": 5,
            "money.prices": {"opnai": {"*": {"per_job": 1}}},
        },
    )
    found = {finding.subject: finding async for finding in examine(settings)}
    assert found["price of line coding"].grade is Grade.BAD
    assert 'money.prices.scripted."scripted-base"' in found["price of line coding"].detail
    assert "price of line audio" not in found
    assert found["prices"].detail == "money.prices.opnai: no line trains there"


@pytest.mark.parametrize(
    ("provider", "told", "grade", "words"),
    [
        ("openai", {}, Grade.BAD, "remote.openai_endpoint"),
        ("openai", {"remote.openai_endpoint": NOWHERE}, Grade.NOTE, "remote.openai_api_key"),
        ("openai", {"remote.llm_endpoint": NOWHERE}, Grade.NOTE, "remote.llm_api_key"),
        ("http", {}, Grade.BAD, "remote.finetune_endpoint"),
        ("http", {"remote.finetune_endpoint": NOWHERE}, Grade.BAD, "remote.llm_endpoint"),
        ("http", TWO_SERVICES, Grade.NOTE, "remote.finetune_api_key"),
        ("http", {**TWO_SERVICES, "remote.finetune_api_key": "k"}, Grade.OK, "can be used"),
        (
            "http",
            {**TWO_SERVICES, "lines.coding.training": {"epohcs": 2}},
            Grade.BAD,
            "line coding: no training setting epohcs",
        ),
        (
            "openai",
            {"remote.openai_endpoint": NOWHERE, "remote.openai_api_key": "k"},
            Grade.OK,
            "can be used",
        ),
        (
            "openai",
            {"remote.openai_endpoint": NOWHERE, "finetune.training": {"epoch": 2}},
            Grade.BAD,
            "did you mean epochs?",
        ),
    ],
)
async def test_what_a_remote_provider_lacks_is_told_by_its_setting(
    tmp_path: Path, provider: str, told: dict[str, Any], grade: Grade, words: str
) -> None:
    settings = load(
        None, {"data_dir": tmp_path, "http.port": 0, "finetune.provider": provider, **told}
    )
    found = {finding.subject: finding async for finding in examine(settings)}
    finding = found[f"provider {provider}"]
    assert (finding.grade, words in finding.detail) == (grade, True), finding.detail
    assert not [one for one in found if one.startswith("base model of")]


async def test_the_validators_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(None, {"data_dir": tmp_path, "http.port": 0})
    (found,) = [one async for one in examine(settings) if one.subject == "screening"]
    assert (found.grade, found.detail) == (Grade.OK, "pii, secrets, syntax loaded")
    install(tmp_path, "import nothing_of_that_name")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (found,) = [one async for one in examine(settings) if one.subject == "screening"]
    assert found.grade is Grade.BAD
    assert "nothing_of_that_name" in found.detail
