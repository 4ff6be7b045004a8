"""The store: one database, seen through the ports that each room needs.

`Store.open` migrates the schema; whoever opens it closes it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from daemon.store.batch_sizes import BatchSizes
from daemon.store.database import Database
from daemon.store.digest import Consequence, Digest
from daemon.store.feedback_dials import FeedbackDials
from daemon.store.forgettings import Forgettings
from daemon.store.imports import Imports
from daemon.store.intake import Intake, Judge
from daemon.store.interventions import Interventions
from daemon.store.leases import Leases, Tenancy
from daemon.store.live_verdicts import LiveVerdicts
from daemon.store.outbox import Outbox
from daemon.store.over_time import FeedbackCounter, OverTime
from daemon.store.queue import Queue
from daemon.store.registry import Registry
from daemon.store.rejected import RejectedOutputs
from daemon.store.releases import Releases
from daemon.store.runs import Runs
from daemon.store.screenings import Ruleset, Screenings, Suspicion, without_rules
from daemon.store.setting_changes import SettingChanges
from daemon.store.webhooks import Webhooks
from learning.batch_sizing import SizeRules
from learning.clock import Clock
from learning.feedback import FeedbackRules
from learning.live_verdict import VerdictRules

ALONE = Tenancy()
"""Of a store that no other daemon shares."""


@dataclass(frozen=True)
class Store:
    """One open database and its doors."""

    database: Database
    intake: Intake
    queue: Queue
    runs: Runs
    leases: Leases
    interventions: Interventions
    registry: Registry
    outbox: Outbox
    batch_sizes: BatchSizes
    imports: Imports
    setting_changes: SettingChanges
    webhooks: Webhooks
    digest: Digest
    releases: Releases
    screenings: Screenings
    dials: FeedbackDials
    forgettings: Forgettings
    over_time: OverTime
    live_verdicts: LiveVerdicts

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        artifacts_dir: Path,
        judge: Judge,
        clock: Clock,
        size_rules: Callable[[], SizeRules] = SizeRules,
        tenancy: Tenancy = ALONE,
        consequences: Sequence[Consequence] = (),
        ruleset: Ruleset = without_rules,
        suspicion: Suspicion | None = None,
        feedback_rules: Callable[[], FeedbackRules] = FeedbackRules,
        verdict_rules: Callable[[], VerdictRules] = VerdictRules,
    ) -> Self:
        """Open and migrate a database. Raises StoreUnavailableError."""
        return cls.on(
            await cls.open_database(url),
            artifacts_dir=artifacts_dir,
            judge=judge,
            clock=clock,
            size_rules=size_rules,
            tenancy=tenancy,
            consequences=consequences,
            ruleset=ruleset,
            suspicion=suspicion,
            feedback_rules=feedback_rules,
            verdict_rules=verdict_rules,
        )

    @staticmethod
    async def open_database(url: str) -> Database:
        """A database, open and migrated. Raises StoreUnavailableError."""
        database = Database(url)
        try:
            await database.migrate()
        except BaseException:
            await database.close()
            raise
        return database

    @classmethod
    def on(
        cls,
        database: Database,
        *,
        artifacts_dir: Path,
        judge: Judge,
        clock: Clock,
        size_rules: Callable[[], SizeRules] = SizeRules,
        tenancy: Tenancy = ALONE,
        consequences: Sequence[Consequence] = (),
        ruleset: Ruleset = without_rules,
        suspicion: Suspicion | None = None,
        feedback_rules: Callable[[], FeedbackRules] = FeedbackRules,
        verdict_rules: Callable[[], VerdictRules] = VerdictRules,
    ) -> Self:
        """The doors of a database that is open and migrated; closing them closes it.

        `ruleset` is the digest of the rules that events have to be screened under; without one
        they are sealed unscreened.
        """
        leases = Leases(database, tenancy)
        intake = Intake(database, judge, clock)
        rejected = RejectedOutputs(judge.complaints, ruleset)
        return cls(
            database,
            intake,
            Queue(database, rejected, ruleset),
            Runs(database, artifacts_dir, leases),
            leases,
            Interventions(database),
            Registry(database, artifacts_dir),
            Outbox(database, clock),
            BatchSizes(database, size_rules),
            Imports(intake, rejected, ruleset),
            SettingChanges(database),
            Webhooks(database, tenancy.owner),
            Digest(database, [FeedbackCounter(), *consequences]),
            Releases(database),
            Screenings(database, ruleset, suspicion),
            FeedbackDials(database, feedback_rules),
            Forgettings(database, rejected),
            OverTime(database),
            LiveVerdicts(database, verdict_rules),
        )

    async def close(self) -> None:
        """Finish the transactions under way and close the database."""
        await self.database.close()
