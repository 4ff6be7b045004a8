"""`learnd check`, where a machine would have to be full or locked; the rest is in acceptance."""

import os
import shutil
from pathlib import Path

import pytest

from daemon.check import FULL_BYTES, LITTLE_BYTES, Grade, examine
from daemon.settings_sources import load


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
