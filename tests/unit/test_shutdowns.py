"""Models that end: how many days are left, for whom, and who is told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from daemon.live_settings import LiveSettings
from daemon.settings import Settings
from daemon.settings_sources import SettingsError, settings_from
from daemon.shutdowns import Report, ShutdownWatch, shutdowns
from finetune.remote.model import RemoteModel, write
from learning.facts import Fact, ModelShutsDown
from learning.ports import ModelReference, StoreUnavailableError

NOW = datetime(2026, 12, 1, 23, 59, tzinfo=UTC)
DATES = {"gpt-a": "2027-01-14", "gpt-b": "2026-12-31", "ft:gpt-c:x": "2026-12-01"}


@dataclass
class Champions:
    """The champions of a database, as the test says."""

    references: Mapping[str, ModelReference] = field(default_factory=dict)
    asked: int = 0
    away: bool = False

    async def champions(self) -> Mapping[str, ModelReference]:
        self.asked += 1
        if self.away:
            raise StoreUnavailableError("away")
        return self.references


@dataclass
class Watch:
    """A watch over settings and champions, with the facts that it told."""

    champions: Champions
    given: Mapping[str, Any]
    now: datetime = NOW
    reports: Sequence[Report] = ()

    def __post_init__(self) -> None:
        models: Any = self.champions
        self.facts: list[Fact] = []
        live = LiveSettings(Settings(**self.given))
        self.watch = ShutdownWatch(live, models, self.facts.append, lambda: self.now, self.reports)

    async def days(self) -> list[tuple[str, str, int]]:
        return [(one.line, one.model, one.days_left) for one in await self.watch.look()]


def test_days_are_counted_by_the_calendar_and_become_negative() -> None:
    in_use = {"coding": ["gpt-a", "gpt-b"], "game": ["ft:gpt-c:x", "other"]}
    dates = {model: date.fromisoformat(day) for model, day in DATES.items()}
    found = shutdowns(in_use, dates, NOW)
    assert [(one.line, one.model, one.days_left, one.is_soon) for one in found] == [
        ("game", "ft:gpt-c:x", 0, True),
        ("coding", "gpt-b", 30, True),
        ("coding", "gpt-a", 44, False),
    ]
    assert str(found[0]) == "game: the model ft:gpt-c:x is shut down since 2026-12-01"
    assert str(found[1]) == "coding: the model gpt-b is shut down in 30 days, on 2026-12-31"
    later = shutdowns(in_use, dates, NOW + timedelta(days=1))
    assert later[0].days_left == -1


async def test_a_line_uses_its_base_its_champions_base_and_the_champion_itself(
    tmp_path: Path,
) -> None:
    write(RemoteModel("openai", "https://o.example", "ft:gpt-c:x"), tmp_path / "remote")
    (tmp_path / "local").mkdir()
    watch = Watch(
        Champions(
            {
                "coding": ModelReference("gpt-b", tmp_path / "remote"),
                "audio": ModelReference("tiny", tmp_path / "local"),
                "game": ModelReference("gpt-b"),
            }
        ),
        {
            "remote": {"shutdown_dates": DATES},
            "finetune": {"provider": "scripted", "base_model": "tiny"},
            "lines": {"coding": {"base_model": "gpt-a"}, "voice": {"base_model": "gpt-a"}},
        },
    )
    assert await watch.days() == [
        ("coding", "ft:gpt-c:x", 0),
        ("coding", "gpt-b", 30),
        ("game", "gpt-b", 30),
        ("coding", "gpt-a", 44),
        ("voice", "gpt-a", 44),
    ]


async def test_without_a_date_nobody_is_asked() -> None:
    watch = Watch(Champions(away=True), {})
    assert await watch.watch.look() == ()
    assert watch.champions.asked == 0


async def test_what_ends_soon_is_told_once_a_day() -> None:
    watch = Watch(
        Champions({"game": ModelReference("gpt-b"), "coding": ModelReference("gpt-a")}),
        {"remote": {"shutdown_dates": DATES}},
    )
    for _ in range(3):
        watch.watch.warn(await watch.watch.look())
    assert watch.facts == [ModelShutsDown("game", "gpt-b", date(2026, 12, 31), 30)]

    watch.now += timedelta(days=1)
    watch.watch.warn(await watch.watch.look())
    assert [fact.days_left for fact in watch.facts if isinstance(fact, ModelShutsDown)] == [30, 29]


@pytest.mark.parametrize(
    "value", [20270114, 1.5, True, "soon", "2027-13-01", "2027-01-14T10:00Z", None]
)
def test_what_is_no_date_is_refused(value: object) -> None:
    with pytest.raises(SettingsError, match=r"remote\.shutdown_dates\.gpt-a"):
        settings_from({"remote": {"shutdown_dates": {"gpt-a": value}}}, {})


def test_a_date_may_be_a_text_or_what_yaml_makes_of_one() -> None:
    for value in ("2027-01-14", date(2027, 1, 14)):
        settings = Settings(remote={"shutdown_dates": {"gpt-4.1": value}})
        assert settings.remote.shutdown_dates == {"gpt-4.1": date(2027, 1, 14)}


async def test_what_a_service_reports_counts_unless_a_setting_says_otherwise() -> None:
    says: list[dict[str, date] | None] = [{"gpt-a": date(2027, 6, 1), "gpt-b": date(2027, 6, 1)}]

    async def report() -> Mapping[str, date]:
        if (said := says[-1]) is None:
            raise ConnectionError("away")
        return said

    watch = Watch(
        Champions({"game": ModelReference("gpt-b"), "coding": ModelReference("gpt-a")}),
        {"remote": {"shutdown_dates": {"gpt-b": "2026-12-31"}}},
        reports=[report],
    )
    assert await watch.days() == [("game", "gpt-b", 30)]  # nobody was asked yet
    await watch.watch.ask()
    assert await watch.days() == [("game", "gpt-b", 30), ("coding", "gpt-a", 182)]
    says.append(None)
    await watch.watch.ask()
    assert await watch.days() == [("game", "gpt-b", 30), ("coding", "gpt-a", 182)]
    says.append({})
    await watch.watch.ask()
    assert await watch.days() == [("game", "gpt-b", 30)]
