"""Providers by name, and the workbenches that are opened for them."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from finetune import providers
from finetune.artifacts import ArtifactStore
from finetune.providers import (
    GROUP,
    BrokenProviderError,
    UnknownProviderError,
    Workbench,
    Workshop,
    factory_of,
    provider_names,
)
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
    assert "huggingface, local, scripted" in str(unknown.value)


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
