"""The numbers that Prometheus reads: counters from facts, gauges from a snapshot.

Knows no store and no API: whoever renders the page takes the snapshot first. Base units
(seconds, events), one registry that is passed in, and only labels that are bounded: by
configuration, or by what this release can say.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from learning.facts import (
    BatchSealed,
    BatchSizeChanged,
    CandidateDecided,
    EventsExpired,
    EventsForgotten,
    EventsRefused,
    EventsScreened,
    EventsStored,
    Fact,
    FeedbackReset,
    LaunchResolved,
    LoopAdapted,
    ModelShutsDown,
    PartitionFenced,
    Promoted,
    QuarantineReleased,
    RollbackHeldBack,
    RolledBack,
    RunCancelAsked,
    RunCancelled,
    RunFailed,
    RunLaunched,
    RunLost,
    RunShortOfMoney,
    RunTakenOver,
    RunTrained,
    RunWaits,
    SettingsChanged,
    TopicRecreated,
    WebhookReceived,
    WebhookRefused,
)
from learning.ports import TrainerCondition, TrainerState

RUN_SECONDS_BUCKETS = (5, 15, 30, 60, 120, 300, 600, 1_800, 3_600, 7_200, 14_400, 28_800)


@dataclass(frozen=True)
class LineHealth:
    """One model line, as far as the page shows it."""

    line: str
    champion: str
    champion_since: datetime
    held_out: int
    wanted_held_out: int


@dataclass(frozen=True)
class ChampionLoss:
    """Mean held-out loss of one version, as the gate last measured it (learning.gate.Measure)."""

    line: str
    version: str
    loss: float


@dataclass(frozen=True)
class LineApproval:
    """What people say of a line's champion and of the version before it."""

    line: str
    rates: Mapping[str, float]
    """Shares of "yes", by version."""
    verdicts: Mapping[str, int]
    """How many, by version."""
    log_e: float
    """See learning.live_verdict.LiveVerdict."""
    canary_share: float


@dataclass(frozen=True)
class LineCosts:
    """What a line's trainings with a provider cost, in one currency."""

    line: str
    provider: str
    currency: str
    spent: float
    """In this month."""
    reserved: float


@dataclass(frozen=True)
class CapHealth:
    """What may be spent and reserved in a period, and what of it is left."""

    period: str
    currency: str
    cap: float
    left: float


@dataclass(frozen=True)
class LearningHealth:
    """What the last day's outputs of a task type were like; None without enough data."""

    task_type: str
    success_rate: float | None
    confidence: float | None
    rating: float | None


@dataclass(frozen=True)
class Snapshot:
    """What is so at this moment; everything that a counter cannot say."""

    ready: bool
    queued: Mapping[str, int] = field(default_factory=dict)
    """Events by task type."""
    held: Mapping[str, int] = field(default_factory=dict)
    oldest_queued_seconds: Mapping[str, float] = field(default_factory=dict)
    runs_by_state: Mapping[str, int] = field(default_factory=dict)
    silent_runs: int = 0
    """Runs whose daemon fell silent."""
    lag: Mapping[tuple[str, int], int] = field(default_factory=dict)
    """Records not yet read, by topic and partition."""
    file_lag: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    """Of the followed files, by kind: bytes not yet read, and how long the first has waited."""
    batch_sizes: Mapping[str, int] = field(default_factory=dict)
    """Events in a batch, by line."""
    bars: Mapping[str, float] = field(default_factory=dict)
    """The confidence that an approved output needs, by task type."""
    lines: Sequence[LineHealth] = ()
    losses: Sequence[ChampionLoss] = ()
    approvals: Sequence[LineApproval] = ()
    costs: Sequence[LineCosts] = ()
    caps: Sequence[CapHealth] = ()
    short_runs: Mapping[str, int] = field(default_factory=dict)
    """Runs that wait for money, by line."""
    shutdown_days: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Days left of the models whose end is known, by model and the line that uses it."""
    stopped: Mapping[str, int] = field(default_factory=dict)
    """Events that the firewall stopped since the beginning, by rule; of all daemons together."""
    learning: Sequence[LearningHealth] = ()
    issues: Sequence[tuple[str, str]] = ()
    """Found in the feedback, by task type and name."""
    recommendations: Mapping[str, int] = field(default_factory=dict)
    """By rule."""
    success_rate: float | None = None
    fine_tune_success_rate: float | None = None


class Metrics:
    """All metrics of one daemon, in one registry: the one given, or its own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = registry if registry is not None else CollectorRegistry()
        self._registry = registry
        self._counters = _Counters(registry)
        self._gauges = _Gauges(registry)
        self._stopped = _Stopped()
        registry.register(self._stopped)

    def count(self, fact: Fact) -> None:
        """Count a fact. Does not block."""
        self._counters.count(fact)

    def show(self, snapshot: Snapshot) -> None:
        """Set the gauges; what is not in the snapshot any more disappears."""
        self._gauges.set(snapshot)
        self._stopped.by_rule = snapshot.stopped

    def show_loop_lag(self, longest_seconds: Callable[[], float]) -> None:
        """Ask for the event loop's longest stall at each rendering."""
        self._gauges.loop_lag.set_function(longest_seconds)

    def show_intake_waits(self, waits: Mapping[str, Callable[[], bool]]) -> None:
        """Ask for each reason at each rendering whether intake waits for it."""
        for reason, is_so in waits.items():
            self._gauges.waits.labels(reason).set_function(is_so)

    def show_trainer(self, condition: Callable[[], TrainerCondition]) -> None:
        """Ask for the local trainer process at each rendering."""
        self._registry.register(_Trainer(condition))

    def render(self) -> bytes:
        """The page, in Prometheus' text format."""
        return generate_latest(_WithoutCreationTimes(self._registry))


class _Trainer(Collector):
    """The local trainer process, as its host counts it."""

    def __init__(self, condition: Callable[[], TrainerCondition]) -> None:
        self._condition = condition

    def describe(self) -> Iterator[Metric]:
        """Nothing ahead: there may be no trainer yet to ask."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """What its host says now."""
        now = self._condition()
        state = GaugeMetricFamily(
            "learnd_trainer_state", "1 for what the local trainer process is now.", labels=["state"]
        )
        for one in TrainerState:
            state.add_metric([one.value], float(one is now.state))
        yield state
        yield GaugeMetricFamily(
            "learnd_trainer_resident_memory_bytes",
            "Main memory that the local trainer process holds; 0 without one.",
            value=now.resident_bytes or 0,
        )
        uses = CounterMetricFamily(
            "learnd_trainer_uses",
            "Requests to the local trainer, by whether a process was ready for them.",
            labels=["found"],
        )
        uses.add_metric(["warm"], now.warm_uses)
        uses.add_metric(["cold"], now.cold_uses)
        yield uses
        ends = CounterMetricFamily(
            "learnd_trainer_ends", "Local trainer processes that ended.", labels=["reason"]
        )
        for reason, n in sorted(now.ends.items()):
            ends.add_metric([reason], n)
        yield ends


class _Stopped(Collector):
    """What the firewall stopped, as the store counts it for all daemons."""

    def __init__(self) -> None:
        self.by_rule: Mapping[str, int] = {}

    def collect(self) -> Iterator[Metric]:
        stopped = CounterMetricFamily(
            "learnd_firewall_quarantined", "Outputs that the firewall stopped.", labels=["rule"]
        )
        for rule, n in sorted(self.by_rule.items()):
            stopped.add_metric([rule], n)
        yield stopped


class _WithoutCreationTimes(Collector):
    """A registry without the `_created` series, which double the page and help nobody."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """What the registry has, less those."""
        for metric in self._registry.collect():
            metric.samples = [one for one in metric.samples if not one.name.endswith("_created")]
            yield metric


class _Counters:
    """What has happened since the process started."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        self._events = counter("learnd_events", "Outputs stored.", "source", "task_type", "verdict")
        self._rejudged = counter(
            "learnd_rejudged", "Outputs whose verdict feedback changed.", "task_type", "verdict"
        )
        self._feedback = counter(
            "learnd_feedback", "Feedback stored.", "source", "task_type", "state"
        )
        self._duplicates = counter(
            "learnd_duplicates", "Arrivals that were stored already.", "source"
        )
        self._dead_letters = counter(
            "learnd_dead_letters", "Records that could not become events.", "source", "reason"
        )
        self._refused = counter(
            "learnd_events_refused",
            "Events that were refused to their sender's face, and not kept.",
            "source",
            "reason",
        )
        self._expired = counter("learnd_expired", "Held outputs whose time ran out.")
        self._released = counter(
            "learnd_firewall_released", "Outputs that operators let go, many at once."
        )
        self._screened = counter(
            "learnd_screened", "Outputs that costly validators looked at.", "outcome"
        )
        self._checks = counter(
            "learnd_screening_checks", "Outputs that a costly validator looked at.", "validator"
        )
        self._check_seconds = counter(
            "learnd_screening_seconds", "Time that costly validators took.", "validator"
        )
        self._complaints = counter(
            "learnd_screening_complaints", "Outputs that a costly validator stopped.", "validator"
        )
        self._recreated = counter(
            "learnd_topics_recreated", "Partitions found to be others than were read.", "topic"
        )
        self._fenced = counter(
            "learnd_fenced_writes",
            "Writes refused because another consumer owns the partition.",
            "topic",
        )
        self._batches = counter("learnd_batches", "Batches sealed.", "line", "trigger")
        self._members = counter("learnd_batch_members", "Events in sealed batches.", "line", "role")
        self._launched = counter(
            "learnd_run_launches", "Jobs that a provider accepted.", "line", "provider"
        )
        self._failed = counter(
            "learnd_run_failures", "Attempts that failed.", "line", "error", "retried"
        )
        self._short = counter(
            "learnd_run_money_waits", "Times that a run began to wait for money.", "line"
        )
        self._cancelled = counter("learnd_run_cancelled", "Runs that a person ended.", "line")
        self._trained = counter("learnd_run_trained", "Runs whose training finished.", "line")
        self._tokens = counter("learnd_run_trained_tokens", "Output tokens learned from.", "line")
        self._seconds = Histogram(
            "learnd_run_duration_seconds",
            "From launch to the published artifact.",
            ["line"],
            registry=registry,
            buckets=RUN_SECONDS_BUCKETS,
        )
        self._taken_over = counter(
            "learnd_runs_taken_over", "Runs taken from a daemon that fell silent.", "line"
        )
        self._lost = counter("learnd_runs_lost", "Runs that another daemon took from this one.")
        self._decisions = counter(
            "learnd_decisions", "What the gate said of candidates.", "line", "outcome"
        )
        self._promotions = counter(
            "learnd_promotions", "Versions that became champion.", "line", "forced"
        )
        self._rollbacks = counter("learnd_rollbacks", "Champions that were taken back.", "line")
        self._held_back = counter(
            "learnd_rollbacks_held_back", "Worse champions that were not rolled back.", "line"
        )
        self._resized = counter(
            "learnd_batch_size_changes", "Batch sizes that were changed.", "line", "cause"
        )
        self._adapted = counter(
            "learnd_loop_adaptations",
            "What feedback has changed in the loop, and what of it was taken back by hand.",
            "task_type",
            "change",
        )
        self._changed = counter(
            "learnd_settings_changes", "Changes of settings that this daemon was asked for."
        )
        self._webhooks = counter(
            "learnd_webhooks", "Signed webhooks that came, again or not.", "type", "outcome"
        )
        self._webhooks_refused = counter(
            "learnd_webhooks_refused", "Webhooks that were not taken.", "reason"
        )
        self._forgotten = counter("learnd_forgotten", "What was forgotten.", "kind")
        self._tainted = counter("learnd_versions_tainted", "Versions that knew what was forgotten.")

    def count(self, fact: Fact) -> None:
        match fact:
            case EventsStored():
                self._count_stored(fact)
            case EventsRefused():
                for reason, n in fact.reasons.items():
                    self._refused.labels(fact.source, reason).inc(n)
            case EventsExpired():
                self._expired.inc(fact.count)
            case EventsScreened():
                self._count_screened(fact)
            case TopicRecreated():
                self._recreated.labels(fact.topic).inc()
            case PartitionFenced():
                self._fenced.labels(fact.topic).inc()
            case BatchSealed():
                self._batches.labels(fact.line, fact.trigger).inc()
                for role, n in (
                    ("train", fact.n_train),
                    ("held_out", fact.n_held_out),
                    ("replay", fact.n_replay),
                    ("retry", fact.n_retry),
                    ("cross_task", fact.n_cross_task),
                    ("preference", fact.n_preference),
                ):
                    self._members.labels(fact.line, role).inc(n)
            case RunLaunched():
                self._launched.labels(fact.line, fact.provider).inc()
            case RunFailed():
                self._failed.labels(fact.line, fact.error, _yes_no(fact.retried)).inc()
            case RunCancelled():
                self._cancelled.labels(fact.line).inc()
            case RunWaits() | RunCancelAsked() | LaunchResolved():
                pass  # what follows from them is counted
            case RunShortOfMoney():
                self._short.labels(fact.line).inc()
            case ModelShutsDown():
                pass  # a gauge has the days
            case RunTrained():
                self._trained.labels(fact.line).inc()
                self._tokens.labels(fact.line).inc(fact.trained_tokens)
                self._seconds.labels(fact.line).observe(fact.seconds)
            case RunTakenOver():
                self._taken_over.labels(fact.line).inc()
            case RunLost():
                self._lost.inc()
            case CandidateDecided():
                self._decisions.labels(fact.line, fact.outcome).inc()
            case Promoted():
                self._promotions.labels(fact.line, _yes_no(fact.forced)).inc()
            case RolledBack():
                self._rollbacks.labels(fact.line).inc()
            case QuarantineReleased():
                self._released.inc(fact.count)
            case EventsForgotten():
                for kind, n in (
                    ("output", fact.outputs),
                    ("feedback", fact.feedback),
                    ("dead_letter", fact.dead_letters),
                    ("held_out", fact.held_out),
                ):
                    self._forgotten.labels(kind).inc(n)
                self._tainted.inc(len(fact.versions))
            case RollbackHeldBack():
                self._held_back.labels(fact.line).inc()
            case BatchSizeChanged():
                self._resized.labels(fact.line, fact.cause).inc()
            case LoopAdapted():
                self._adapted.labels(fact.task_type, fact.change).inc(fact.times)
            case FeedbackReset():
                self._adapted.labels(fact.task_type, "reset").inc()
            case SettingsChanged():
                self._changed.inc()
            case WebhookReceived():
                kind = fact.event_type if fact.known else "other"
                self._webhooks.labels(kind, "stored" if fact.is_new else "duplicate").inc()
            case WebhookRefused():
                self._webhooks_refused.labels(fact.reason).inc()

    def _count_screened(self, fact: EventsScreened) -> None:
        for (_, outcome), n in fact.outcomes.items():
            self._screened.labels(outcome).inc(n)
        for validator, n in fact.checks.items():
            self._checks.labels(validator).inc(n)
            self._check_seconds.labels(validator).inc(fact.seconds[validator])
        for validator, n in fact.complaints.items():
            self._complaints.labels(validator).inc(n)

    def _count_stored(self, fact: EventsStored) -> None:
        for (task_type, state), n in fact.outputs.items():
            self._events.labels(fact.source, task_type, state).inc(n)
        for (task_type, state), n in fact.rejudged.items():
            self._rejudged.labels(task_type, state).inc(n)
        for (task_type, feedback_state), n in fact.feedback.items():
            self._feedback.labels(fact.source, task_type, feedback_state).inc(n)
        for reason, n in fact.dead_letters.items():
            self._dead_letters.labels(fact.source, reason).inc(n)
        self._duplicates.labels(fact.source).inc(fact.duplicates)


class _Gauges:
    """What is so now. Cleared before each setting, so that nothing stale stays."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        self._ready = gauge("learnd_ready", "1 when the daemon can take work.")
        self.loop_lag = gauge(
            "learnd_event_loop_lag_seconds_max",
            "The longest stall of the event loop in the last one to two minutes.",
        )
        self.waits = gauge(
            "learnd_intake_waits",
            "1 while sources wait: for the store, or for events to go into batches.",
            "reason",
        )
        self._queued = gauge("learnd_queue_events", "Events that wait for a batch.", "task_type")
        self._held = gauge("learnd_held_events", "Outputs that wait for a verdict.", "task_type")
        self._oldest = gauge(
            "learnd_oldest_queued_age_seconds", "Age of the oldest queued event.", "task_type"
        )
        self._batch_size = gauge("learnd_batch_size_events", "Events in a batch.", "line")
        self._bar = gauge(
            "learnd_confidence_bar",
            "The confidence that an approved output needs, as feedback has moved it.",
            "task_type",
        )
        self._runs = gauge("learnd_runs", "Fine-tune runs.", "state")
        self._silent = gauge("learnd_silent_runs", "Runs whose daemon fell silent.")
        self._lag = gauge(
            "learnd_consumer_lag_records", "Records not yet read.", "topic", "partition"
        )
        self._file_lag_bytes = gauge(
            "learnd_file_lag_bytes", "Bytes of followed files not yet read.", "kind"
        )
        self._file_lag_seconds = gauge(
            "learnd_file_lag_seconds", "How long the oldest of these bytes has waited.", "kind"
        )
        self._champion = gauge(
            "learnd_champion_info", "Always 1: the champion of each line.", "line", "version"
        )
        self._champion_since = gauge(
            "learnd_champion_since_timestamp_seconds", "When it became champion.", "line"
        )
        self._held_out = gauge("learnd_held_out_examples", "Frozen held-out examples.", "line")
        self._wanted = gauge(
            "learnd_held_out_examples_wanted", "As many make the gate sure.", "line"
        )
        self._loss = gauge(
            "learnd_held_out_loss",
            "Mean held-out loss as the gate last measured it: nats per byte of the approved"
            " answers, or, where a service gives answers only, 1 - their score.",
            "line",
            "version",
        )
        self._approval = gauge(
            "learnd_live_approval_rate",
            "Share of approvals, of the champion and of the version before it.",
            "line",
            "version",
        )
        self._live_verdicts = gauge(
            "learnd_live_verdicts", "Verdicts of people on these two.", "line", "version"
        )
        self._live_evidence = gauge(
            "learnd_live_evidence",
            "Natural logarithm of the evidence that the champion is the worse one; 0 is none.",
            "line",
        )
        self._canary = gauge(
            "learnd_canary_share", "Traffic that should go to the version before.", "line"
        )
        self._spent = gauge(
            "learnd_money_spent",
            "What trainings of this month (UTC) have cost.",
            "line",
            "provider",
            "currency",
        )
        self._reserved = gauge(
            "learnd_money_reserved",
            "What those of this month that have not ended may cost.",
            "line",
            "provider",
            "currency",
        )
        self._cap = gauge("learnd_money_cap", "What may be spent.", "period", "currency")
        self._left = gauge(
            "learnd_money_left",
            "What is neither spent nor reserved of the cap.",
            "period",
            "currency",
        )
        self._short = gauge("learnd_money_waiting_runs", "Runs that wait for money.", "line")
        self._shutdown = gauge(
            "learnd_model_shutdown_days",
            "Days until a model in use is shut down; below 0 when it is.",
            "model",
            "line",
        )
        self._success = gauge(
            "learnd_success_ratio", "Approved of those that people judged, in the last day."
        )
        self._type_success = gauge(
            "learnd_recent_success_ratio", "The same of one task type.", "task_type"
        )
        self._confidence = gauge(
            "learnd_recent_confidence_mean",
            "Mean stated confidence of the last day's outputs.",
            "task_type",
        )
        self._rating = gauge(
            "learnd_recent_rating_mean", "Mean rating of the last day, 1 to 5.", "task_type"
        )
        self._issues = gauge(
            "learnd_feedback_issues",
            "1 for what the last day's feedback shows.",
            "task_type",
            "issue",
        )
        self._advice = gauge(
            "learnd_recommendations", "Advice that `learnd stats` has now.", "rule"
        )
        self._fine_tune_success = gauge(
            "learnd_fine_tune_success_ratio", "Runs that were decided, of those that ended."
        )
        self._labelled = (
            self._queued,
            self._held,
            self._oldest,
            self._batch_size,
            self._bar,
            self._runs,
            self._lag,
            self._file_lag_bytes,
            self._file_lag_seconds,
            self._champion,
            self._champion_since,
            self._held_out,
            self._wanted,
            self._loss,
            self._approval,
            self._live_verdicts,
            self._live_evidence,
            self._canary,
            self._spent,
            self._reserved,
            self._cap,
            self._left,
            self._short,
            self._shutdown,
            self._type_success,
            self._confidence,
            self._rating,
            self._issues,
            self._advice,
        )

    def set(self, snapshot: Snapshot) -> None:
        for gauge in self._labelled:
            gauge.clear()
        self._ready.set(snapshot.ready)
        for task_type, n in snapshot.queued.items():
            self._queued.labels(task_type).set(n)
        for task_type, n in snapshot.held.items():
            self._held.labels(task_type).set(n)
        for task_type, seconds in snapshot.oldest_queued_seconds.items():
            self._oldest.labels(task_type).set(seconds)
        for line_name, size in snapshot.batch_sizes.items():
            self._batch_size.labels(line_name).set(size)
        for task_type, bar in snapshot.bars.items():
            self._bar.labels(task_type).set(bar)
        for state, n in snapshot.runs_by_state.items():
            self._runs.labels(state).set(n)
        self._silent.set(snapshot.silent_runs)
        for (topic, partition), records in snapshot.lag.items():
            self._lag.labels(topic, str(partition)).set(records)
        for kind, (n_bytes, seconds) in snapshot.file_lag.items():
            self._file_lag_bytes.labels(kind).set(n_bytes)
            self._file_lag_seconds.labels(kind).set(seconds)
        for line in snapshot.lines:
            self._champion.labels(line.line, line.champion).set(1)
            self._champion_since.labels(line.line).set(line.champion_since.timestamp())
            self._held_out.labels(line.line).set(line.held_out)
            self._wanted.labels(line.line).set(line.wanted_held_out)
        for one in snapshot.losses:
            self._loss.labels(one.line, one.version).set(one.loss)
        for said in snapshot.approvals:
            for version, rate in said.rates.items():
                self._approval.labels(said.line, version).set(rate)
            for version, n in said.verdicts.items():
                self._live_verdicts.labels(said.line, version).set(n)
            self._live_evidence.labels(said.line).set(said.log_e)
            self._canary.labels(said.line).set(said.canary_share)
        for costs in snapshot.costs:
            labels = (costs.line, costs.provider, costs.currency)
            self._spent.labels(*labels).set(costs.spent)
            self._reserved.labels(*labels).set(costs.reserved)
        for cap in snapshot.caps:
            self._cap.labels(cap.period, cap.currency).set(cap.cap)
            self._left.labels(cap.period, cap.currency).set(cap.left)
        for line_name, n in snapshot.short_runs.items():
            self._short.labels(line_name).set(n)
        for (model, line_name), days in snapshot.shutdown_days.items():
            self._shutdown.labels(model, line_name).set(days)
        for learned in snapshot.learning:
            self._type_success.labels(learned.task_type).set(_or_nan(learned.success_rate))
            self._confidence.labels(learned.task_type).set(_or_nan(learned.confidence))
            self._rating.labels(learned.task_type).set(_or_nan(learned.rating))
        for task_type, issue in snapshot.issues:
            self._issues.labels(task_type, issue).set(1)
        for rule, n in snapshot.recommendations.items():
            self._advice.labels(rule).set(n)
        # Without data a rate is not a number, which no alert rule compares with anything.
        self._success.set(_or_nan(snapshot.success_rate))
        self._fine_tune_success.set(_or_nan(snapshot.fine_tune_success_rate))


def _or_nan(rate: float | None) -> float:
    return float("nan") if rate is None else rate


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"
