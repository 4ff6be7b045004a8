"""Providers by name, and the workbenches that are opened for them."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from finetune import providers
from finetune.artifacts import ArtifactStore
from finetune.providers import (
    GROUP,
    BrokenProviderError,
    ServiceNotNamedError,
    UnknownProviderError,
    Workbench,
    Workshop,
    factory_of,
    provider_names,
)
from finetune.remote.access import ServiceAccess
from finetune.remote.http_mapping import FineTuneEndpoint
from finetune.scripted_provider import ScriptedEvaluator, ScriptedProvider
from finetune.trainer_process import TrainerHost

opened: list[str] = []


@asynccontextmanager
async def outside_factory(workshop: Workshop) -> AsyncIterator[Workbench]:
    """What a package outside would register."""
    opened.append("opened")
    yield Workbench(
        ScriptedProvider(workshop.folder / "outside", workshop.artifacts),
        ScriptedEvaluator(workshop.artifacts),
    )
    opened.append("closed")


@pytest.fixture
def outside_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    registered = EntryPoints(
        [
            EntryPoint("outside", f"{__name__}:outside_factory", GROUP),
            EntryPoint("broken", "no_such_package:factory", GROUP),
            EntryPoint("local", f"{__name__}:outside_factory", GROUP),
        ]
    )
    monkeypatch.setattr(providers, "entry_points", registered.select)
    opened.clear()


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    artifacts = ArtifactStore(tmp_path / "artifacts")
    return Workshop(tmp_path, artifacts, TrainerHost(artifacts, tmp_path / "trainer.log"))


def test_the_built_in_providers_have_their_names() -> None:
    assert {"local", "huggingface", "scripted"} <= set(provider_names())


def test_huggingface_is_another_name_for_local() -> None:
    assert factory_of("huggingface") is factory_of("local")


def test_an_unknown_provider_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownProviderError) as unknown:
        factory_of("locla")
    assert "did you mean local?" in str(unknown.value)
    assert "http, huggingface, local, openai, scripted" in str(unknown.value)


@pytest.mark.usefixtures("outside_packages")
def test_a_package_outside_registers_a_provider() -> None:
    assert factory_of("outside") is outside_factory
    assert "outside" in provider_names()


@pytest.mark.usefixtures("outside_packages")
def test_a_package_outside_cannot_replace_a_built_in_provider() -> None:
    assert factory_of("local") is not outside_factory


@pytest.mark.usefixtures("outside_packages")
def test_a_provider_that_cannot_be_imported_is_named_with_its_place() -> None:
    with pytest.raises(BrokenProviderError, match=r"'broken'.*no_such_package:factory"):
        factory_of("broken")


@pytest.mark.usefixtures("outside_packages")
async def test_a_workbench_is_open_while_it_is_used(workshop: Workshop) -> None:
    async with factory_of("outside")(workshop) as bench:
        assert bench.provider.name == "scripted"
        assert opened == ["opened"]
    assert opened == ["opened", "closed"]


async def test_the_openai_provider_names_the_setting_that_it_misses(workshop: Workshop) -> None:
    with pytest.raises(ServiceNotNamedError, match=r"remote\.openai_endpoint \(OPENAI_BASE_URL\)"):
        async with factory_of("openai")(workshop):
            pass


async def test_opening_a_remote_provider_asks_nothing_and_writes_nothing(
    workshop: Workshop, tmp_path: Path
) -> None:
    nowhere = ServiceAccess("http://127.0.0.1:1/v1")
    there = replace(workshop, training_service=nowhere, chat_service=nowhere)
    async with factory_of("openai")(there) as bench:
        assert bench.provider.name == "openai"
        assert not bench.needs_node
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("known", "missing"),
    [
        ({}, "remote.finetune_endpoint (FINETUNE_ENDPOINT)"),
        (
            {"fine_tune_endpoint": FineTuneEndpoint(ServiceAccess("https://tune"))},
            "remote.llm_endpoint (LLM_ENDPOINT)",
        ),
    ],
)
async def test_the_http_provider_names_the_setting_that_it_misses(
    workshop: Workshop, known: dict[str, Any], missing: str
) -> None:
    with pytest.raises(ServiceNotNamedError) as found:
        async with factory_of("http")(replace(workshop, **known)):
            pass
    assert missing in str(found.value)


async def test_the_http_provider_opens_without_asking_anybody(workshop: Workshop) -> None:
    known = replace(
        workshop,
        fine_tune_endpoint=FineTuneEndpoint(ServiceAccess("https://tune.example")),
        chat_service=ServiceAccess("https://answer.example/v1"),
    )
    async with factory_of("http")(known) as bench:
        assert bench.provider.name == "http"
        assert not bench.needs_node


@pytest.mark.parametrize("name", ["huggingface", "local", "scripted"])
async def test_opening_a_built_in_provider_writes_and_starts_nothing(
    workshop: Workshop, tmp_path: Path, name: str
) -> None:
    async with factory_of(name)(workshop):
        assert os.listdir(tmp_path) == []


async def test_settings_of_another_provider_do_not_keep_the_local_one_from_opening(
    workshop: Workshop,
) -> None:
    other = replace(workshop, training=lambda: {"plan": "improve", "max_length": 64})
    async with factory_of("local")(other) as bench:
        assert bench.provider.name == "local"
