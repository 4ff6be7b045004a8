"""The composition root: every collaborator is made here, by hand, and closed here.

Reads top to bottom: what is opened, what is wired to what, which tasks run, and in which
order a stop takes them down. Decides nothing else.
"""

import asyncio
import contextlib
import gc
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path

import structlog

from consumers.dead_letter_topic import DeadLetterTopic
from consumers.http_source import HttpLimits, HttpSource
from consumers.ingest import Ingest
from consumers.jsonl_source import JsonlSource
from consumers.kafka_salvage import records_of
from consumers.kafka_source import KafkaSource
from consumers.pressure import Pressure
from consumers.rate_limit import RateLimit
from consumers.reader_process import ReaderProcess
from consumers.reading import COLLECT_AFTER
from consumers.screening.process import ProcessLimits, ScreeningProcess
from consumers.wire import Limits
from daemon.adapting import Adapter
from daemon.announcer import Announcer, Listener
from daemon.api.app import create_app
from daemon.api.server import ApiServer, listen
from daemon.api.token import ensure_token
from daemon.changing_settings import SettingsDesk, SettingsFollower, named_lines
from daemon.following_feedback import FeedbackFollower
from daemon.forgetting import DaemonForgetter
from daemon.forgotten_files import ForgottenFiles
from daemon.generation import ChatModel, Generation
from daemon.installation import (
    ArtifactsElsewhereError,
    artifacts_home,
    installation_id,
    make_artifacts_home,
    only_daemon_in,
    only_daemon_on,
)
from daemon.kafka import kafka_connection
from daemon.learner import Learner
from daemon.live_settings import LiveSettings
from daemon.live_verdict import VerdictWatch
from daemon.loops import (
    FeedbackDigester,
    Sealer,
    expire_held,
    fold_old_hours,
    watch_pressure,
)
from daemon.operations import DaemonOperations
from daemon.preflight import Preflight
from daemon.probes import DaemonMetrics, DaemonProbes
from daemon.recent_facts import RecentFacts
from daemon.screening import RulesInForce, Screening
from daemon.settings import LOCAL_PROVIDERS, Settings
from daemon.shutdowns import Report, ShutdownWatch
from daemon.simulations import Simulations
from daemon.store import Store
from daemon.store.feedback_effects import FeedbackEffects
from daemon.store.firewall import Firewall
from daemon.store.forgettings import Letter
from daemon.store.knobs import Knobs
from daemon.store.leases import Tenancy
from daemon.store.live_counts import LiveCounts
from daemon.store.setting_changes import SettingChanges
from daemon.store.views import Views
from daemon.webhooks import JobHints, WebhookIntake, expire_webhooks
from finetune.artifacts import ArtifactStore
from finetune.providers import Workshop, factory_of
from finetune.runner import Runner
from finetune.trainer_process import TrainerHost, TrainerLimits
from learning.facts import (
    BatchSealed,
    CandidateDecided,
    EventsStored,
    Fact,
    FeedbackReset,
    LaunchResolved,
    LoopAdapted,
    RunCancelAsked,
    RunCancelled,
    RunFailed,
    WebhookReceived,
)
from learning.judge import Judge
from learning.lines import ModelLines
from learning.policy import Policy
from learning.ports import DeadLetter, EventKind, Origin
from learning.validators import installed
from monitoring.logs import FactLog, configure
from monitoring.loop_lag import LoopLag
from monitoring.metrics import Metrics

log = structlog.get_logger(__name__)

WORK = "runs"
PROVIDERS = "providers"
TRAINER_LOG = "trainer.log"
INTAKE_STOP_SECONDS = 5.0
"""A broker that hangs may not use up the 25 s of SIGTERM: a checkpoint needs most of them."""
INSIST_SECONDS = 1.0
SWITCH_SECONDS = 0.0005


def utc_now() -> datetime:
    """The clock of the running daemon."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Daemon:
    """Everything that runs. Made by `build_daemon`, which closes it."""

    settings: Settings
    """As it was started with; what holds is in `live`."""
    live: LiveSettings
    url: str
    token: str
    store: Store
    learner: Learner
    announcer: Announcer
    source: KafkaSource | None
    files: JsonlSource | None
    sealer: Sealer
    digester: FeedbackDigester
    forgotten_files: ForgottenFiles
    runner: Runner
    adapter: Adapter
    follower: SettingsFollower
    feedback_follower: FeedbackFollower
    shutdowns: ShutdownWatch
    job_hints: JobHints
    verdict_watch: VerdictWatch
    server: ApiServer
    probes: DaemonProbes
    loop_lag: LoopLag
    pressure: Pressure
    preflight: Preflight
    letter_topic: DeadLetterTopic | None = None

    async def run(self, stopping: asyncio.Event) -> None:
        """Work until `stopping` is set, then stop in the order that loses nothing.

        Not ready; stop polling, finish storing, commit, leave the group; stop sealing;
        checkpoint and end local jobs; answer the last requests.
        """
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(self.server.serve(), name="http")
            loops = [
                tasks.create_task(self.runner.run(), name="runner"),
                tasks.create_task(self.sealer.run(), name="sealer"),
                tasks.create_task(self.digester.run(), name="digest"),
                tasks.create_task(self.forgotten_files.run(), name="forgotten files"),
                tasks.create_task(fold_old_hours(self.store, utc_now), name="statistics"),
                tasks.create_task(
                    expire_held(self.store, self.live.policy, self.announcer, utc_now),
                    name="expiry",
                ),
                tasks.create_task(self.follower.run(), name="settings"),
                tasks.create_task(self.feedback_follower.run(), name="feedback"),
                tasks.create_task(self.adapter.run(), name="adaptation"),
                tasks.create_task(self.shutdowns.run(), name="shutdowns"),
                tasks.create_task(self.job_hints.run(), name="job hints"),
                tasks.create_task(expire_webhooks(self.store.webhooks, utc_now), name="webhooks"),
                tasks.create_task(self.verdict_watch.run(), name="live verdict"),
                tasks.create_task(self.loop_lag.watch(), name="loop lag"),
                tasks.create_task(watch_pressure(self.store, self.pressure), name="pressure"),
            ]
            if self.letter_topic is not None:
                loops.append(tasks.create_task(self.letter_topic.run(), name="dead letters"))
            intake = []
            if self.source is not None:
                intake.append(tasks.create_task(self.source.run(stopping), name="kafka"))
            if self.files is not None:
                intake.append(tasks.create_task(self.files.run(stopping), name="files"))
            self.probes.watch([serving, *loops, *intake])
            asking = tasks.create_task(self.preflight.run(), name="preflight")
            log.info("learnd is up", url=self.url, data_dir=str(self.settings.data_dir))
            await stopping.wait()
            log.info("stopping")
            self.probes.drain()
            for source in intake:
                await _end(source, INTAKE_STOP_SECONDS)
            for task in (asking, *reversed(loops)):
                task.cancel()
                await asyncio.wait([task])
            self.server.stop()
        log.info("stopped")


@contextlib.asynccontextmanager
async def build_daemon(settings: Settings) -> AsyncIterator[Daemon]:
    """Open everything, hand out a daemon that is ready to run, and close everything.

    Raises LearningError subclasses that say what to change: those of daemon/installation.py,
    CannotListenError, StoreUnavailableError and those of the settings.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(only_daemon_in(settings.data_dir))
        stack.enter_context(only_daemon_on(settings.database_url))
        token = ensure_token(settings.data_dir)
        bound = stack.enter_context(
            contextlib.closing(listen(settings.http.host, settings.http.port))
        )
        artifacts_dir = settings.artifacts_dir
        artifacts = ArtifactStore(artifacts_dir)
        await asyncio.to_thread(artifacts.sweep)
        database = await Store.open_database(settings.database_url)
        stack.push_async_callback(database.close)
        # Whatever may change while the daemon runs is asked of `live`, never of `settings`.
        live = LiveSettings(settings, await SettingChanges(database).stored())
        lines = live.lines
        judge = Judge(live.policy, installed(settings.policy.max_output_characters))
        store = Store.on(
            database,
            artifacts_dir=artifacts_dir,
            judge=judge,
            clock=utc_now,
            size_rules=live.size_rules,
            tenancy=_tenancy(settings),
            ruleset=RulesInForce(live.screening_rules),
            suspicion=Firewall(live.firewall_rules),
            consequences=[FeedbackEffects(live.feedback_rules), LiveCounts(lines)],
            feedback_rules=live.feedback_rules,
            verdict_rules=live.verdict_rules,
        )
        # Before anything is judged: otherwise a restart would forget the bars for a moment.
        feedback_follower = FeedbackFollower(live, store.dials, utc_now)
        await feedback_follower.look()
        await _settle_artifacts(store, artifacts_dir)
        now = utc_now()
        await store.registry.ensure_lines(named_lines(live), now)
        await store.runs.resume_waiting(now)
        resized = await store.batch_sizes.follow_settings(now)

        metrics, loop_lag = Metrics(), LoopLag(time.monotonic)
        metrics.show_loop_lag(lambda: loop_lag.longest_seconds)
        recent = RecentFacts(utc_now)
        announcer = Announcer(FactLog(), metrics.count, recent)
        pressure = Pressure(
            time.monotonic,
            high_water=settings.queue.high_water,
            low_water=settings.queue.low_water,
        )
        metrics.show_intake_waits(
            {
                "store": lambda: pressure.store_fault is not None,
                "high_water": lambda: pressure.is_full,
            }
        )
        for fact in resized:
            announcer(fact)
        ingest = Ingest(
            store.intake,
            lines,
            judge,
            announcer,
            utc_now,
            limits=_wire_limits(settings),
            pressure=pressure,
            process=_reader_process(settings, live.policy, stack),
            unpack=partial(records_of, max_batch_bytes=settings.kafka.max_batch_bytes),
        )
        host = await stack.enter_async_context(
            TrainerHost(
                artifacts,
                settings.data_dir / TRAINER_LOG,
                idle=timedelta(seconds=settings.finetune.trainer_idle_seconds),
                warm=settings.finetune.trainer_warm,
                memory_bytes=settings.finetune.trainer_memory_mib << 20,
                limits=TrainerLimits(
                    no_progress=timedelta(seconds=settings.finetune.no_progress_seconds)
                ),
            )
        )
        workshop = Workshop(
            settings.data_dir / PROVIDERS,
            artifacts,
            host,
            live.training,
            settings.finetune.tensorboard_dir,
            settings.remote.training_service(),
            settings.remote.chat_service(),
            settings.remote.chat_rules(),
            openai_rules=settings.remote.openai_rules(),
            fine_tune_endpoint=settings.fine_tune_endpoint(),
        )
        workbenches = {
            name: await stack.enter_async_context(factory_of(name)(workshop))
            for name in sorted({line.provider for line in lines})
        }
        runner = Runner(
            store=store.runs,
            leases=store.leases,
            lines=lines,
            workbenches=workbenches,
            artifacts=artifacts,
            dataset_dir=settings.dataset_dir,
            work_dir=settings.data_dir / WORK,
            rules=live.runner_rules,
            announce=announcer,
            clock=utc_now,
            budget=live.budget,
        )
        validators = ScreeningProcess(
            ProcessLimits(
                memory_bytes=settings.screening.memory_mib << 20,
                idle=timedelta(seconds=settings.screening.idle_seconds),
            )
        )
        stack.push_async_callback(validators.close)
        screening = Screening(store, validators, live.screening_rules, announcer, utc_now)
        job_hints = JobHints(store.webhooks, workbenches)
        metrics.show_trainer(host.condition)
        sealer = Sealer(
            store,
            lines,
            live.batch_rules,
            live.split_rules,
            announcer,
            utc_now,
            expect=lambda line: workbenches[line.provider].expect(line),
            expect_at=settings.finetune.trainer_ahead_share,
            clear=screening.clear,
        )
        digester = FeedbackDigester(store, announcer, utc_now)
        forgotten_files = ForgottenFiles(
            store.forgettings,
            artifacts,
            lines,
            settings.dataset_dir,
            settings.data_dir / WORK,
            utc_now,
        )
        announcer.listen(_alarm(sealer, digester, feedback_follower, runner, job_hints))
        announcer.listen(_run_ended(forgotten_files))
        source: KafkaSource | None = None
        letter_topic: DeadLetterTopic | None = None
        if settings.kafka.configured:
            connection = kafka_connection(settings.kafka)
            source = KafkaSource(connection, ingest, store.intake, announcer)
            if (topic := settings.kafka.dead_letter_topic) is not None:
                letter_topic = DeadLetterTopic(connection, topic, store.outbox)
                announcer.listen(_new_letters(letter_topic))
        views = Views.of(
            store.database,
            lines=lines,
            artifacts_dir=artifacts_dir,
            wanted_held_out=live.wanted_evidence,
            size_rules=live.size_rules,
            clock=utc_now,
            budget=live.budget,
            policy=live.policy,
            feedback_rules=live.feedback_rules,
            verdict_rules=live.verdict_rules,
            step_back_limits=live.step_back_limits,
        )
        preflight = Preflight(host, lambda: () if settings.simulation_mode else lines)
        shutdowns = ShutdownWatch(
            live, views.models, announcer, utc_now, _reports_of_services(settings, lines)
        )
        settled = (sealer.size_anew, runner.wake, preflight.wake, shutdowns.wake)
        follower = SettingsFollower(live, store, announcer, utc_now, settled)
        desk = SettingsDesk(live, store.setting_changes, announcer, utc_now)
        adapter = Adapter(Knobs(database), desk, live, utc_now)
        operations = DaemonOperations(
            store,
            ingest,
            artifacts,
            lines,
            live.split_rules,
            live.max_queue_size,
            announcer,
            utc_now,
            judge,
            screening,
        )
        verdict_watch = VerdictWatch(
            store.live_verdicts, operations.step_back, live.step_back_limits, announcer, utc_now
        )
        probes = DaemonProbes(
            views.overview,
            source,
            pressure,
            utc_now,
            training=lambda: preflight.warning,
            settings=lambda: live.fault,
            shutdowns=shutdowns.look,
            screening=lambda: screening.trouble,
            verdicts=verdict_watch.check,
        )
        files = _jsonl_source(settings, ingest, store, views, announcer, probes)
        learner = Learner(
            ingest=ingest,
            store=store,
            lines=lines,
            operations=operations,
            settings=desk,
            statistics=views.statistics,
            feedback_rules=live.feedback_rules,
            clock=utc_now,
            sealer=sealer,
            digester=digester,
            generation=Generation(store.registry, host, _chat_model(settings)),
            closed=probes.closed,
        )
        app = create_app(
            views=views,
            operations=operations,
            forgetter=DaemonForgetter(
                store,
                views.lineage,
                forgotten_files,
                lines,
                live.split_rules,
                announcer,
                utc_now,
                partial(_records_in, max_batch_bytes=settings.kafka.max_batch_bytes),
            ),
            settings=desk,
            learner=learner,
            adaptation=adapter.thoughts,
            http_source=_http_source(settings, ingest, store, announcer, probes),
            health=probes,
            metrics=DaemonMetrics(
                metrics,
                views.overview,
                source,
                probes,
                files,
                views.costs,
                shutdowns.look,
                views.firewall,
                live.bars,
                views.statistics,
                store.live_verdicts,
            ),
            facts=recent,
            trainer=host.condition,
            webhook_intake=_webhook_intake(settings, store, announcer),
            simulations=Simulations(lambda: live.now, utc_now),
            token=token,
            version=version("learnd"),
        )
        server = ApiServer(app, bound)
        yield Daemon(
            settings=settings,
            live=live,
            url=server.url,
            token=token,
            store=store,
            learner=learner,
            announcer=announcer,
            source=source,
            files=files,
            sealer=sealer,
            digester=digester,
            forgotten_files=forgotten_files,
            runner=runner,
            adapter=adapter,
            follower=follower,
            feedback_follower=feedback_follower,
            shutdowns=shutdowns,
            job_hints=job_hints,
            verdict_watch=verdict_watch,
            server=server,
            probes=probes,
            loop_lag=loop_lag,
            pressure=pressure,
            preflight=preflight,
            letter_topic=letter_topic,
        )


def _reports_of_services(settings: Settings, lines: ModelLines) -> Sequence[Report]:
    """How the services that lines use are asked which models they shut down."""
    if all(line.provider in LOCAL_PROVIDERS for line in lines):
        return ()
    from finetune.remote.reported_ends import reported_ends  # with HTTP clients of its own

    remote = settings.remote
    services = {remote.training_service(), remote.chat_service()} - {None}
    return [partial(reported_ends, access) for access in services if access is not None]


def _chat_model(settings: Settings) -> ChatModel | None:
    remote = settings.remote
    access = remote.chat_service()
    if access is None:
        return None
    return ChatModel(access, remote.chat_rules().limits, remote.llm_model)


def tune_interpreter() -> None:
    """Prepare this process's interpreter for one event loop and one busy store thread.

    The thread wants the interpreter's lock for some microseconds between two statements;
    with the standard interval it would wait 5 ms each time. Events are many and acyclic, so
    the collector looks for cycles seldom, and never among what start-up made.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 20, 50)


async def serve(settings: Settings) -> None:
    """Run a daemon until SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    configure(settings.log.level, settings.log.format)
    async with build_daemon(settings) as daemon:
        tune_interpreter()
        await daemon.run(stopping)


def run(settings: Settings) -> int:
    """Run a daemon in this process. Returns the exit status: 0 after a clean stop."""
    asyncio.run(serve(settings))
    return 0


def _tenancy(settings: Settings) -> Tenancy:
    return Tenancy(
        owner=installation_id(settings.data_dir),
        node=settings.node,
        lease=timedelta(seconds=settings.finetune.lease_seconds),
        gone_after=timedelta(seconds=settings.finetune.node_gone_seconds),
    )


async def _settle_artifacts(store: Store, artifacts_dir: Path) -> None:
    """See to it that all daemons of a database publish into one directory.

    Otherwise one would promote a version that the next cannot load, and fail its line's runs.
    """
    found = await asyncio.to_thread(artifacts_home, artifacts_dir)
    recorded = await store.registry.artifacts_home()
    if recorded is None:
        found = await asyncio.to_thread(make_artifacts_home, artifacts_dir)
        recorded = await store.registry.settle_artifacts(found)
    if found != recorded:
        raise ArtifactsElsewhereError(artifacts_dir, recorded)


def _http_source(
    settings: Settings, ingest: Ingest, store: Store, announcer: Announcer, probes: DaemonProbes
) -> HttpSource:
    http = settings.http
    return HttpSource(
        ingest,
        store.intake,
        announcer,
        probes.closed,
        limits=HttpLimits(http.max_stream_bytes, http.body_seconds, _wire_limits(settings)),
        rate_limit=RateLimit(http.events_per_second, http.burst_events, time.monotonic),
    )


def _jsonl_source(
    settings: Settings,
    ingest: Ingest,
    store: Store,
    views: Views,
    announcer: Announcer,
    probes: DaemonProbes,
) -> JsonlSource | None:
    files = settings.intake.files
    if not files.configured:
        return None
    return JsonlSource(
        ingest,
        store.intake,
        views.positions,
        announcer,
        probes.closed,
        {EventKind.OUTPUT: files.outputs, EventKind.FEEDBACK: files.feedback},
        limits=_wire_limits(settings),
    )


def _webhook_intake(settings: Settings, store: Store, announcer: Announcer) -> WebhookIntake | None:
    key = settings.remote.webhook_key()
    return None if key is None else WebhookIntake(key, store.webhooks, announcer, utc_now)


def _reader_process(
    settings: Settings, policy: Callable[[], Policy], stack: contextlib.AsyncExitStack
) -> ReaderProcess | None:
    if not settings.intake.reader_process:
        return None
    process = ReaderProcess(policy, settings.policy.max_output_characters, _wire_limits(settings))
    stack.push_async_callback(process.close)
    return process


def _wire_limits(settings: Settings) -> Limits:
    return Limits(max_bytes=settings.kafka.max_message_bytes)


def _alarm(
    sealer: Sealer,
    digester: FeedbackDigester,
    feedback_follower: FeedbackFollower,
    runner: Runner,
    job_hints: JobHints,
) -> Listener:
    """Wake the loops that wait for what a fact tells."""

    def listener(fact: Fact) -> None:
        match fact:
            case EventsStored():
                sealer.wake()
                digester.wake()
            case LoopAdapted() | FeedbackReset():
                feedback_follower.wake()
            case CandidateDecided() | RunFailed():
                sealer.size_anew()
            case RunCancelled():
                sealer.wake()
                runner.wake()
            case BatchSealed() | RunCancelAsked() | LaunchResolved():
                runner.wake()
            case WebhookReceived():
                job_hints.wake()
            case _:
                pass

    return listener


def _run_ended(files: ForgottenFiles) -> Listener:
    def listener(fact: Fact) -> None:
        if isinstance(fact, RunCancelled | CandidateDecided | RunFailed):
            files.wake()

    return listener


def _records_in(letter: Letter, max_batch_bytes: int) -> Sequence[bytes]:
    """What a dead letter that is a batch holds, as far as it can be read."""
    nowhere = Origin("", "", 0, sys.maxsize)
    whole = DeadLetter(EventKind(letter.kind), letter.reason, "", letter.raw, nowhere, utc_now())
    return [one.value for one in records_of(whole, max_batch_bytes) if one.value is not None]


def _new_letters(topic: DeadLetterTopic) -> Listener:
    def listener(fact: Fact) -> None:
        if isinstance(fact, EventsStored) and fact.dead_letters:
            topic.wake()

    return listener


async def _end(task: asyncio.Task[None], patience_seconds: float) -> None:
    """Wait for a task that was told to end, and cancel it when it does not."""
    await asyncio.wait([task], timeout=patience_seconds)
    while not task.done():
        log.warning("it does not end by itself and is cancelled", task=task.get_name())
        task.cancel()
        await asyncio.wait([task], timeout=INSIST_SECONDS)
