"""The settings of now: those that the daemon was started with, and what the store says over them.

Whoever needs something that can change asks for it when it is needed, and keeps no copy.
Reads and writes no database: daemon/changing_settings.py does.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import structlog

from daemon.settings import KeyPath, Settings, leaves
from daemon.settings_sources import SettingsError, settings_from
from daemon.store.registry import StepBackLimits
from daemon.store.setting_changes import StoredSetting, StoredSettings
from finetune.runner import RunnerRules
from learning.batch_sizing import SizeRules
from learning.batching import BatchRules
from learning.budget import Budget
from learning.feedback import FeedbackRules
from learning.firewall import FirewallRules
from learning.live_verdict import VerdictRules
from learning.policy import Policy
from learning.sampling import SplitRules
from learning.screening import ScreeningRules

log = structlog.get_logger(__name__)


class StoredSettingsError(SettingsError):
    """What the store says does not fit what the file and the environment say."""

    def __init__(self, error: SettingsError) -> None:
        super().__init__(
            [
                *error.problems,
                "what is stored in the database does not fit the rest: correct the file, or take a"
                " change back: `learnd settings get --offline` shows what is stored, `learnd"
                " settings unset KEY --offline` removes one, `learnd settings undo --offline` the"
                " last change",
            ]
        )


class LiveSettings:
    """What holds at this moment. Used from the event loop; rules may be read from any thread."""

    def __init__(self, given: Settings, stored: StoredSettings | None = None) -> None:
        """Raises StoredSettingsError when the two do not fit together."""
        self._given = given
        self._stored = stored or StoredSettings()
        try:
            self._now = overlaid(given, self._stored.values)
        except SettingsError as error:
            raise StoredSettingsError(error) from error
        self._offsets: Mapping[str, float] = {}
        self._distrusted: Mapping[str, Mapping[str, float]] = {}
        self._policy = self._now.policy_rules()
        self._firewall = self._now.firewall.rules()
        self._screening = self._now.screening.rules()
        self.lines = self._now.model_lines()
        """The same object for the daemon's life; it becomes what the settings say."""
        self.seen = self._stored.revision
        """The last revision that was looked at, taken over or not."""
        self.fault = ""
        """Why the one that was looked at last could not be taken over."""
        self._listeners: list[Callable[[], None]] = []

    @property
    def now(self) -> Settings:
        """All of them. Immutable: ask again for those of another moment."""
        return self._now

    @property
    def revision(self) -> int:
        """That of the last change that is in them."""
        return self._stored.revision

    def listen(self, listener: Callable[[], None]) -> None:
        """Call it after each change."""
        self._listeners.append(listener)

    def tried(self, stored: StoredSettings, values: Mapping[KeyPath, Any]) -> None:
        """Raise SettingsError when the settings would be wrong with these values stored."""
        kept = {path: one for path, one in stored.values.items() if path not in values}
        tree, sources = _tree(self._given, kept)
        for path, value in values.items():
            if value is not None:
                _put(tree, path, value)
                sources[path] = ""
        settings_from(tree, sources)

    def take(self, stored: StoredSettings) -> None:
        """Take over what is stored, unless something later was.

        When it does not fit the file and environment of this daemon, everything stays as it
        is, and `fault` says why.
        """
        if stored.revision <= self.seen:
            return
        self.seen = stored.revision
        try:
            settings = overlaid(self._given, stored.values)
        except SettingsError as error:
            log.error("the stored settings do not fit here", revision=self.seen, why=str(error))
            self.fault = f"revision {self.seen} of the stored settings does not fit here: {error}"
            return
        self.fault = ""
        self._stored, self._now = stored, settings
        self._firewall = settings.firewall.rules()
        self._screening = settings.screening.rules()
        self._policy = self._adapted(settings)
        self.lines.become(settings.model_lines())
        for listener in self._listeners:
            listener()

    def adapt(
        self, offsets: Mapping[str, float], distrusted: Mapping[str, Mapping[str, float]]
    ) -> None:
        """Have the bars moved as feedback has moved them; see learning.policy.Policy."""
        if (offsets, distrusted) != (self._offsets, self._distrusted):
            self._offsets, self._distrusted = offsets, distrusted
            self._policy = self._adapted(self._now)

    def _adapted(self, settings: Settings) -> Policy:
        return replace(settings.policy_rules(), offsets=self._offsets, distrusted=self._distrusted)

    # --- what the parts of the daemon ask for ------------------------------------------

    def policy(self) -> Policy:
        """The bars of now, as feedback has moved them; asked for each event.

        The same object until something has changed, so that who has told it on need not again.
        """
        return self._policy

    def screening_rules(self) -> ScreeningRules:
        """What stored outputs have to pass; the same object until a setting changes."""
        return self._screening

    def bars(self) -> Mapping[str, float]:
        """The bar of an approved output that is in force, by the task types of the lines."""
        policy = self._policy
        return {
            task_type: policy.bar(policy.min_confidence, task_type)
            for line in self.lines
            for task_type in line.task_types
        }

    def feedback_rules(self) -> FeedbackRules:
        """What feedback may change, and how far."""
        return self._now.feedback_rules()

    def batch_rules(self) -> BatchRules:
        """When a queue becomes a batch."""
        return self._now.batch_rules()

    def size_rules(self) -> SizeRules:
        """Within which bounds a batch size may adapt."""
        return self._now.size_rules()

    def split_rules(self, line: str | None = None) -> SplitRules:
        """Who is held out and what is repeated in a line."""
        return self._now.split_rules(line)

    def max_queue_size(self) -> int:
        """How large one batch may become, in events."""
        return self._now.queue.max_queue_size

    def wanted_evidence(self) -> int:
        """How many held-out examples the gate would like."""
        return self._now.gate.wanted_evidence

    def verdict_rules(self) -> VerdictRules:
        """What follows from people's verdicts on released versions."""
        return self._now.verdict_rules()

    def step_back_limits(self) -> StepBackLimits:
        """What an automatic rollback has to respect."""
        rules = self._now.verdict
        return StepBackLimits(rules.max_rollbacks_a_day, timedelta(hours=rules.spare_forced_hours))

    def training(self) -> Mapping[str, Any]:
        """The training settings that hold unless a line says otherwise."""
        return self._now.finetune.training

    def budget(self) -> Budget:
        """Prices and caps."""
        return self._now.money.budget()

    def firewall_rules(self) -> FirewallRules:
        """What the firewall stops."""
        return self._firewall

    def runner_rules(self) -> RunnerRules:
        """The limits of a run, and what a candidate has to prove."""
        finetune = self._now.finetune
        return RunnerRules(
            max_failures=finetune.max_attempts,
            retry_base=timedelta(seconds=finetune.retry_base_seconds),
            retry_cap=timedelta(seconds=finetune.retry_max_seconds),
            timeout=timedelta(seconds=finetune.timeout_seconds),
            simulation_mode=self._now.simulation_mode,
            gate=self._now.gate_rules(),
            learns_from=self._now.learns_from,
        )


def overlaid(given: Settings, stored: Mapping[KeyPath, StoredSetting]) -> Settings:
    """Settings with what the store says over them, and where each comes from.

    Raises SettingsError: every fault with its source.
    """
    return settings_from(*_tree(given, stored)) if stored else given


def with_values(settings: Settings, values: Mapping[KeyPath, Any]) -> Settings:
    """Settings as they would be with other values; None is as if it were not set.

    Raises SettingsError: every fault in words.
    """
    tree, sources = _tree(settings, {})
    for path, value in values.items():
        _put(tree, path, value)
        if value is None:
            _take(tree, path)
        sources[path] = "simulated"
    return settings_from(tree, sources)


def source_of(stored: StoredSetting) -> str:
    """Who set it, when and why, as `learnd check` shows where a value comes from."""
    why = f": {stored.reason}" if stored.reason else ""
    return f"store, by {stored.actor}, {stored.at:%Y-%m-%d}{why}"


def _tree(
    given: Settings, stored: Mapping[KeyPath, StoredSetting]
) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """What was given and what is stored, not yet validated together, and the sources."""
    tree = given.model_dump(exclude_unset=True)
    sources = dict(given.sources)
    for path, one in stored.items():
        _put(tree, path, one.value)
        sources = {known: told for known, told in sources.items() if known[: len(path)] != path}
        below = leaves({path[-1]: one.value}, path[:-1])
        sources |= dict.fromkeys((leaf for leaf, _ in below), source_of(one))
    return tree, sources


def _take(tree: dict[str, Any], path: KeyPath) -> None:
    for name in path[:-1]:
        tree = tree[name]
    del tree[path[-1]]


def _put(tree: dict[str, Any], path: KeyPath, value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value
