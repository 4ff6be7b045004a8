"""What the store shows: read-only answers for people, in values of their own.

One file per noun. Nothing here writes, and no answer's cost grows with the stream.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from daemon.store.database import Database
from daemon.store.registry import StepBackLimits
from daemon.store.views.batch_sizes import BatchSizes
from daemon.store.views.costs import CostBooks
from daemon.store.views.dead_letters import DeadLetters
from daemon.store.views.events import Events
from daemon.store.views.explanations import Explanations
from daemon.store.views.feedback import FeedbackLoop
from daemon.store.views.firewall import Firewalls
from daemon.store.views.lineage import Lineages
from daemon.store.views.models import Models
from daemon.store.views.overview import Overviews
from daemon.store.views.positions import StoredPositions
from daemon.store.views.runs import Runs
from daemon.store.views.statistics import StatisticsBooks
from daemon.store.views.verdicts import Verdicts
from daemon.store.views.webhooks import Webhooks
from learning.batch_sizing import SizeRules
from learning.budget import Budget
from learning.clock import Clock
from learning.feedback import FeedbackRules
from learning.lines import ModelLines
from learning.live_verdict import VerdictRules
from learning.policy import Policy


@dataclass(frozen=True)
class Views:
    """All views of one open database, which somebody else closes."""

    overview: Overviews
    events: Events
    dead_letters: DeadLetters
    runs: Runs
    models: Models
    lineage: Lineages
    explanations: Explanations
    positions: StoredPositions
    batch_sizes: BatchSizes
    costs: CostBooks
    webhooks: Webhooks
    firewall: Firewalls
    feedback: FeedbackLoop
    statistics: StatisticsBooks
    verdicts: Verdicts

    @classmethod
    def of(
        cls,
        database: Database,
        *,
        lines: ModelLines,
        artifacts_dir: Path,
        wanted_held_out: Callable[[], int],
        clock: Clock,
        size_rules: Callable[[], SizeRules] = SizeRules,
        budget: Callable[[], Budget] = Budget,
        policy: Callable[[], Policy] = Policy,
        feedback_rules: Callable[[], FeedbackRules] = FeedbackRules,
        verdict_rules: Callable[[], VerdictRules] = VerdictRules,
        step_back_limits: Callable[[], StepBackLimits] = StepBackLimits,
    ) -> Self:
        """The views of a database."""
        overviews = Overviews(database, lines, wanted_held_out, clock, size_rules)
        return cls(
            overview=overviews,
            events=Events(database),
            dead_letters=DeadLetters(database),
            runs=Runs(database),
            models=Models(database, artifacts_dir),
            lineage=Lineages(database),
            explanations=Explanations(database),
            positions=StoredPositions(database),
            batch_sizes=BatchSizes(database, lines, size_rules),
            costs=CostBooks(database, budget, clock),
            webhooks=Webhooks(database),
            firewall=Firewalls(database, clock),
            feedback=FeedbackLoop(database, lines, policy, feedback_rules, clock),
            statistics=StatisticsBooks(database, overviews, policy, clock),
            verdicts=Verdicts(database, verdict_rules, step_back_limits, clock),
        )
