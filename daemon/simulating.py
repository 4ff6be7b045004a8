"""Simulations: which settings matter to them, which stretch of the record, and running one.

What is replayed is in learning/simulation.py, what was recorded in daemon/store/views/recorded.py.
Blocking: a daemon runs it in a process of its own (daemon/simulations.py).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING, Any, Final

from daemon.api.ports import SettingTried, SimulationAnswer, Source
from daemon.changeable import known_path
from daemon.exit_status import ExitStatus
from daemon.live_settings import with_values
from daemon.settings import KeyPath, Settings, leaves
from learning.errors import ConflictError, LearningError, NotFoundError
from learning.events import OutputEvent
from learning.lines import ModelLine
from learning.simulated_line import Configuration
from learning.simulation import Past, Stretch, simulate
from learning.validators import complaints, installed

if TYPE_CHECKING:
    from daemon.store.views.recorded import Examiner

SECTIONS: Final[Mapping[str, Sequence[str]]] = {
    "policy": (
        "min_confidence",
        "enable_auto_approval",
        "feedback_threshold",
        "hold_days",
        "max_output_characters",
    ),
    "queue": (
        "batch_size",
        "max_queue_size",
        "max_wait_seconds",
        "adaptive",
        "min_batch_size",
        "max_batch_size",
        "max_size_changes_a_day",
    ),
    "split": (
        "held_out_share",
        "starting_share",
        "wanted_held_out",
        "replay_share",
        "cross_task_share",
        "cross_task_learning",
    ),
    "money": ("prices", "cap_per_run", "cap_per_day", "cap_per_month"),
}
"""The settings that a simulation follows."""
OF_A_LINE: Final = ("replay_share", "cross_task_share")
_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_LONGEST_SECONDS: Final = 100 * 366 * 86_400


class SimulationError(LearningError):
    """A simulation that cannot be: no such stretch of time, or one that is too long."""

    exit_status = ExitStatus.USAGE


class IrrelevantSettingError(ConflictError):
    """A setting that changes nothing that a simulation shows."""

    exit_status = ExitStatus.USAGE

    def __init__(self, key: str) -> None:
        known = [f"{section}.{name}" for section, names in SECTIONS.items() for name in names]
        of_lines = [f"lines.LINE.{name}" for name in OF_A_LINE]
        super().__init__(
            f"{key} does not matter to a simulation: no model is trained in it, and nothing is"
            f" asked. What does: {', '.join([*known, *of_lines])}"
        )
        self.key = key


class UnknownLineError(NotFoundError):
    """No model line has this name, or learns from this task type."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no model line for {name!r}; `learnd status` lists them")
        self.name = name


@dataclass(frozen=True)
class Order:
    """One simulation, as another process may be told of it."""

    url: str
    """Of the database; with its password."""
    stretch: Stretch
    simulated: Configuration
    today: Configuration
    longest_output: tuple[int, int]
    """policy.max_output_characters, today and in the simulation."""
    tried: Sequence[SettingTried]
    run_seconds: float
    most_events: int | None
    """More are refused; None: however many there are."""


def order(
    settings: Settings,
    values: Mapping[str, Any],
    *,
    now: datetime,
    since: str,
    until: str | None,
    line: str | None,
    task_type: str | None,
    run_seconds: float,
    most_events: int | None = None,
) -> Order:
    """A simulation of the record of a database under `settings` with other values.

    Raises UnknownSettingError, IrrelevantSettingError, SettingsError, UnknownLineError and
    SimulationError.
    """
    changed = changed_settings(settings, values)
    start, end = time_told(since, now), now if until is None else time_told(until, now)
    end = min(end, now)  # nothing is recorded of the future
    if start >= end:
        raise SimulationError(f"it ends ({end:%F %T} UTC) before it begins ({start:%F %T} UTC)")
    return Order(
        settings.database_url,
        Stretch(start, end, task_types_of(settings, line, task_type)),
        configuration(changed),
        configuration(settings),
        (settings.policy.max_output_characters, changed.policy.max_output_characters),
        tried(settings, changed, values),
        run_seconds,
        most_events,
    )


def perform(told: Order) -> SimulationAnswer:
    """Run a simulation on a database, which is only read.

    Raises NothingStoredError, OtherSchemaError, StoreUnavailableError and SimulationError.
    """
    # Only here: the daemon, which orders, does without their megabyte.
    from daemon.store.read_only import opened
    from daemon.store.views.recorded import Record

    with opened(told.url) as database:
        record = Record(database.read, told.stretch, _examiner(told), list(told.today.lines))
        if told.most_events is not None and record.size > told.most_events:
            raise SimulationError(
                f"about {record.size:,} events and feedback were recorded in this time, and a"
                f" daemon replays {told.most_events:,} at most: take a shorter stretch, or run"
                " `learnd simulate --offline` beside it"
            )
        currency = told.simulated.budget.currency
        report = simulate(
            record.replayed(currency),
            _began_anew(record.past(currency), told),
            told.simulated,
            told.today,
            since=record.stretch.since,
            until=record.stretch.until,
            run_seconds=told.run_seconds,
        )
        return SimulationAnswer(Source.RECORD, told.tried, record.setting_changes(), report)


def configuration(settings: Settings, *, without_base: bool = False) -> Configuration:
    """What a simulation follows of some settings."""
    lines = settings.model_lines()
    return Configuration(
        policy=settings.policy_rules(),
        batches=settings.batch_rules(),
        sizes=settings.size_rules(),
        budget=settings.money.budget(),
        split=settings.split_rules(),
        split_of={line.name: settings.split_rules(line.name) for line in lines},
        lines=lines,
        without_base=without_base,
    )


def changed_settings(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """The settings of a simulation. Errors as in `order`."""
    by_path: dict[KeyPath, Any] = {}
    for key, value in values.items():
        path = known_path(key, settings)
        if not _matters(path):
            raise IrrelevantSettingError(key)
        by_path[path] = value
    return with_values(settings, by_path)


def tried(before: Settings, after: Settings, keys: Mapping[str, Any]) -> list[SettingTried]:
    """The settings that a simulation changes, as a person reads them."""
    old, new = (dict(leaves(one.model_dump(mode="json"))) for one in (before, after))
    paths = {key: known_path(key, before) for key in keys}
    return [SettingTried(key, _shown(old, at), _shown(new, at)) for key, at in paths.items()]


def task_types_of(
    settings: Settings, line: str | None, task_type: str | None
) -> frozenset[str] | None:
    """The task types that are asked for; None is all. Raises UnknownLineError."""
    if line is None and task_type is None:
        return None
    lines = settings.model_lines()
    found: ModelLine | None = lines.get(line) if line is not None else lines.owner(task_type or "")
    if found is None:
        raise UnknownLineError(line or task_type or "")
    if task_type is None:
        return found.task_types
    if task_type not in found.task_types:
        raise SimulationError(f"the line {found.name} does not learn from {task_type}")
    return frozenset({task_type})


def time_told(text: str, now: datetime) -> datetime:
    """A time that somebody names: `7d`, `24h`, `now`, a date in UTC, or ISO 8601 with a zone.

    Raises SimulationError.
    """
    if text == "now":
        return now
    ago = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)([smhdw])", text)
    if ago is not None:
        seconds = float(ago[1]) * _UNITS[ago[2]]
        if seconds > _LONGEST_SECONDS:
            raise SimulationError(f"{text} is more than a hundred years")
        return now - timedelta(seconds=seconds)
    try:
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
            return datetime.combine(datetime.fromisoformat(text).date(), time(), UTC)
        told = datetime.fromisoformat(text)
        if told.tzinfo is not None:
            return told.astimezone(UTC)
    except (ValueError, OverflowError):
        raise SimulationError(
            f"{text!r} is no time: 7d, 24h, 90m, 2026-05-01 or 2026-05-01T12:00Z"
        ) from None
    raise SimulationError(f"{text} has no zone: write {text}Z for UTC, or {text}+02:00")


def _matters(path: KeyPath) -> bool:
    if path[0] == "lines":
        return path[2] in OF_A_LINE
    return len(path) > 1 and path[1] in SECTIONS.get(path[0], ())


def _shown(values: Mapping[KeyPath, Any], path: KeyPath) -> str:
    value = values.get(path)
    if value is None:
        return "-"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _examiner(told: Order) -> "Examiner":
    from daemon.store.views.recorded import Examiner

    today, simulated = (installed(most) for most in told.longest_output)

    def asked_today(event: OutputEvent) -> Sequence[str]:
        return complaints(event, today)

    def asked_in_simulation(event: OutputEvent) -> Sequence[str]:
        return complaints(event, simulated)

    differ = told.longest_output[0] != told.longest_output[1]
    return Examiner(
        told.simulated, told.today, asked_today, asked_in_simulation if differ else None
    )


def _began_anew(past: Past, told: Order) -> Past:
    """With another `batch_size` lines begin with it, as they do when it is changed at run time."""
    if told.simulated.sizes.start == told.today.sizes.start:
        return past
    lines = {
        name: line if line.pinned else replace(line, size=None) for name, line in past.lines.items()
    }
    return replace(past, lines=lines)
