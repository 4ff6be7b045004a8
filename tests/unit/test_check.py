"""`learnd check`, where a machine would have to be full or locked; the rest is in acceptance."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from daemon.check import FULL_BYTES, LITTLE_BYTES, Grade, examine
from daemon.settings_sources import load

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
