"""How the daemon feels, and the page that Prometheus reads: views and checks put together."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from consumers.file_backlog import FileLag
from consumers.pressure import Pressure
from daemon.shutdowns import Shutdown
from daemon.store.live_verdicts import Evidence, LiveVerdicts
from daemon.store.views.costs import CostBooks, Costs
from daemon.store.views.firewall import Firewalls
from daemon.store.views.overview import Overview, Overviews
from daemon.store.views.statistics import LearningStats, StatisticsBooks
from learning.clock import Clock
from learning.lifecycle import EventState, RunState
from learning.live_verdict import VerdictRules, canary_share
from learning.ports import EventKind, StoreUnavailableError
from monitoring.health import (
    Check,
    HealthReport,
    Measurements,
    all_ok,
    assess,
    rate_by_people,
    success_rate,
)
from monitoring.metrics import (
    CapHealth,
    ChampionLoss,
    LearningHealth,
    LineApproval,
    LineCosts,
    LineHealth,
    Metrics,
    Snapshot,
)

STOPPING = "the daemon is stopping"


class Source(Protocol):
    """A consumer, as far as it can be asked how it is; consumers.kafka_source.KafkaSource."""

    @property
    def stuck(self) -> Mapping[tuple[str, int], int]:
        """The offset that cannot be read, by (topic, partition)."""
        ...

    @property
    def trouble(self) -> str:
        """Why it does not read everything that is its own, in words; empty when it does."""
        ...

    def lag(self) -> Mapping[tuple[str, int], int]:
        """Records not yet stored, by (topic, partition)."""
        ...


class FollowedFiles(Protocol):
    """Files that are read as they grow; consumers.jsonl_source.JsonlSource."""

    def lag(self) -> Mapping[EventKind, FileLag]:
        """What is not stored yet, by kind."""
        ...


async def no_shutdowns() -> Sequence[Shutdown]:
    """Of models whose end nobody knows."""
    return ()


class DaemonProbes:
    """Implements daemon.api.ports.Probes.

    Live: every loop works. Ready: live, not stopping, the consumer reads, the store
    answers and takes writes. A daemon with too many waiting events is ready: only outputs
    have to wait, and who took it out of rotation could not reach what helps. `source` is
    None where no Kafka is configured. `training` says why lines cannot be trained on this
    machine, if that is known, `settings` why stored ones do not hold here, and `shutdowns`
    which models end soon: warnings, which make nothing red. `screening` says why no output can
    be screened: then none is sealed. `verdicts` says which champions are worse than the
    versions before them, and stay.
    """

    def __init__(
        self,
        overviews: Overviews,
        source: Source | None,
        pressure: Pressure,
        clock: Clock,
        *,
        training: Callable[[], str] = lambda: "",
        settings: Callable[[], str] = lambda: "",
        shutdowns: Callable[[], Awaitable[Sequence[Shutdown]]] = no_shutdowns,
        screening: Callable[[], str] = lambda: "",
        verdicts: Callable[[], Check] | None = None,
    ) -> None:
        self._overviews = overviews
        self._source = source
        self._verdicts = verdicts
        self._pressure = pressure
        self._clock = clock
        self._training = training
        self._settings = settings
        self._shutdowns = shutdowns
        self._screening = screening
        self._loops: Sequence[asyncio.Task[Any]] = ()
        self._draining = False

    def watch(self, loops: Sequence[asyncio.Task[Any]]) -> None:
        """The tasks without which the daemon is not alive, each by its name."""
        self._loops = tuple(loops)

    def drain(self) -> None:
        """The daemon stops: take no more work. Loops that end now are no fault."""
        self._draining = True

    def closed(self, kind: EventKind) -> str | None:
        """Why no event of a kind may be taken now, or None."""
        return STOPPING if self._draining else self._pressure.refusal(kind)

    def live(self) -> Sequence[Check]:
        """See daemon.api.ports.Probes."""
        return [
            Check(
                loop.get_name(),
                ok=self._draining or not loop.done(),
                detail="ended; the log says why" if loop.done() and not self._draining else "",
            )
            for loop in self._loops
        ]

    async def ready(self) -> Sequence[Check]:
        """See daemon.api.ports.Probes."""
        store, _ = await self._ask_store()
        return [*self.at_hand(), store]

    def at_hand(self) -> Sequence[Check]:
        """What `ready` says without asking the store."""
        stopping = STOPPING if self._draining else ""
        checks = [*self.live(), Check("running", ok=not stopping, detail=stopping)]
        if self._source is not None:
            trouble = self._source.trouble
            checks.append(Check("consumer", ok=not trouble, detail=trouble))
        fault = self._pressure.store_fault
        checks.append(Check("store takes writes", ok=fault is None, detail=fault or ""))
        return checks

    async def health(self) -> HealthReport:
        """See daemon.api.ports.Probes."""
        store, overview = await self._ask_store()
        measured = measurements(overview) if overview is not None else Measurements()
        full = self._pressure.refusal(EventKind.OUTPUT) if self._pressure.is_full else None
        room = Check("room for events", ok=full is None, detail=full or "")
        trouble = self._screening()
        screening = Check("screening", ok=not trouble, detail=trouble)
        orphans = [_orphans(overview)] if overview is not None else []
        training = Check("training", ok=True, detail=self._training())
        settings = Check("settings", ok=True, detail=self._settings())
        advice = [*orphans, training, settings, await self._ending_models()]
        verdicts = [self._verdicts()] if self._verdicts is not None else []
        checks = [
            *self.at_hand(),
            store,
            room,
            screening,
            *self._stuck_partitions(),
            *verdicts,
            *advice,
        ]
        return assess(measured, checks, self._clock())

    async def _ending_models(self) -> Check:
        ending: Sequence[str] = ()
        with contextlib.suppress(StoreUnavailableError):
            ending = [str(one) for one in await self._shutdowns() if one.is_soon]
        return Check("models", ok=True, detail="; ".join(ending))

    def _stuck_partitions(self) -> Sequence[Check]:
        if self._source is None:
            return ()
        stuck = [
            f"{topic}[{partition}] at offset {offset}"
            for (topic, partition), offset in sorted(self._source.stuck.items())
        ]
        advice = f"cannot be read, and waits: {', '.join(stuck)}" if stuck else ""
        return [Check("partitions", ok=not stuck, detail=advice)]

    async def _ask_store(self) -> tuple[Check, Overview | None]:
        try:
            return Check("store", ok=True), await self._overviews.look()
        except StoreUnavailableError as error:
            return Check("store", ok=False, detail=str(error)), None


class DaemonMetrics:
    """Implements daemon.api.ports.MetricsPage: takes a snapshot, then renders."""

    def __init__(
        self,
        metrics: Metrics,
        overviews: Overviews,
        source: Source | None,
        probes: DaemonProbes,
        files: FollowedFiles | None = None,
        books: CostBooks | None = None,
        shutdowns: Callable[[], Awaitable[Sequence[Shutdown]]] = no_shutdowns,
        firewall: Firewalls | None = None,
        bars: Callable[[], Mapping[str, float]] = dict,
        statistics: StatisticsBooks | None = None,
        verdicts: LiveVerdicts | None = None,
    ) -> None:
        self._bars = bars
        self._statistics = statistics
        self._verdicts = verdicts
        self._metrics = metrics
        self._overviews = overviews
        self._source = source
        self._probes = probes
        self._files = files
        self._shutdowns = shutdowns
        self._books = books
        self._firewall = firewall

    async def render(self) -> bytes:
        """See daemon.api.ports.MetricsPage."""
        try:
            overview = await self._overviews.look()
            costs = await self._books.look() if self._books is not None else None
            stopped = await self._firewall.ever() if self._firewall is not None else {}
            stats = await self._statistics.look() if self._statistics is not None else None
            said = await self._verdicts.champions() if self._verdicts is not None else ()
            days_left = {(one.model, one.line): one.days_left for one in await self._shutdowns()}
        except StoreUnavailableError:
            taken = Snapshot(ready=False)
        else:
            now = snapshot(overview, ready=all_ok(self._probes.at_hand()))
            taken = replace(now, shutdown_days=days_left, stopped=stopped)
            if self._verdicts is not None:
                taken = snapshot_of_verdicts(taken, said, self._verdicts.rules)
            if costs is not None:
                taken = snapshot_of_costs(taken, costs)
            if stats is not None:
                taken = snapshot_of_statistics(taken, stats)
        self._metrics.show(
            replace(taken, lag=self._lag(), file_lag=self._file_lag(), bars=self._bars())
        )
        return self._metrics.render()

    def _lag(self) -> Mapping[tuple[str, int], int]:
        return self._source.lag() if self._source is not None else {}

    def _file_lag(self) -> Mapping[str, tuple[int, float]]:
        lags = self._files.lag() if self._files is not None else {}
        return {kind: (lag.n_bytes, lag.oldest_seconds) for kind, lag in lags.items()}


def _orphans(overview: Overview) -> Check:
    """Runs whose daemon fell silent; the next one takes them, unless they need its node."""
    silent = [
        f"{run.id} of {run.line} is on node {run.node}, silent since {run.silent_since:%H:%M:%S}"
        for run in overview.stats.active.jobs
        if run.silent_since is not None
    ]
    advice = "; start it again, or give it up with `learnd node-gone`" if silent else ""
    return Check("run owners", ok=not silent, detail=", ".join(silent) + advice)


def measurements(overview: Overview) -> Measurements:
    """What health is judged by."""
    lately, runs = overview.judged_lately, overview.runs_by_state
    return Measurements(
        approved=lately.approved,
        rejected=lately.rejected,
        since=lately.since,
        runs_succeeded=runs.get(RunState.DECIDED, 0),
        runs_failed=runs.get(RunState.FAILED, 0),
    )


def snapshot(overview: Overview, *, ready: bool) -> Snapshot:
    """What the gauges show of the store."""
    measured = measurements(overview)
    return Snapshot(
        ready=ready,
        queued=overview.stats.queue.by_type,
        held={
            task_type: n
            for task_type, statistics in overview.outputs.items()
            if (n := statistics.states.get(EventState.HELD, 0))
        },
        oldest_queued_seconds={
            task_type: (overview.at - since).total_seconds()
            for task_type, since in overview.oldest_queued_at.items()
        },
        runs_by_state=overview.runs_by_state,
        silent_runs=sum(run.silent_since is not None for run in overview.stats.active.jobs),
        batch_sizes={line.line: line.batch_size.size for line in overview.lines},
        lines=[
            LineHealth(
                line.line,
                line.champion,
                line.champion_since,
                line.held_out,
                line.wanted_held_out,
            )
            for line in overview.lines
            if line.champion is not None and line.champion_since is not None
        ],
        losses=list(_losses(overview)),
        success_rate=rate_by_people(measured),
        fine_tune_success_rate=success_rate(measured.runs_succeeded, measured.runs_failed),
    )


def snapshot_of_costs(taken: Snapshot, costs: Costs) -> Snapshot:
    """A snapshot that shows the money too. Gauges are floats: who bills asks /v1/costs."""
    return replace(
        taken,
        costs=[
            LineCosts(one.line, one.provider, one.currency, float(one.spent), float(one.reserved))
            for one in costs.providers
        ],
        caps=[
            CapHealth(one.period, costs.currency, float(one.cap), float(one.left))
            for one in costs.periods
            if one.cap is not None and one.left is not None
        ],
        short_runs=Counter(run.line for run in costs.waiting),
    )


def snapshot_of_statistics(taken: Snapshot, stats: LearningStats) -> Snapshot:
    """A snapshot that shows what the last day's outputs and feedback were like."""
    return replace(
        taken,
        learning=[
            LearningHealth(
                task_type,
                one.recent.by_people.success_rate,
                one.recent.avg_confidence,
                one.recent.avg_rating,
            )
            for task_type, one in stats.learning.by_task_type.items()
        ],
        issues=[(one.task_type, one.name) for one in stats.feedback.common_issues],
        recommendations=Counter(one.rule for one in stats.recommendations),
    )


def snapshot_of_verdicts(
    taken: Snapshot, said: Sequence[Evidence], rules: VerdictRules
) -> Snapshot:
    """A snapshot that shows the live verdicts too: of each line two versions, whatever is sent."""
    shown = []
    for one in said:
        verdict = one.judged(rules)
        both = {one.version: verdict.champion}
        if one.predecessor is not None:
            both[one.predecessor] = verdict.predecessor
        shown.append(
            LineApproval(
                one.line,
                {name: rate for name, counts in both.items() if (rate := counts.rate) is not None},
                {name: counts.n for name, counts in both.items()},
                verdict.log_e,
                canary_share(verdict, rules),
            )
        )
    return replace(taken, approvals=shown)


def _losses(overview: Overview) -> list[ChampionLoss]:
    """Both sides of each line's last comparison."""
    return [
        ChampionLoss(line.line, version, loss)
        for line in overview.lines
        if (last := line.last_decision) is not None
        for version, loss in (
            (last.against, last.champion_loss),
            (last.version, last.candidate_loss),
        )
        if loss is not None
    ]
