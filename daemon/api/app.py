"""Put the API together from its collaborators."""

from collections.abc import Awaitable, Callable, Sequence

from fastapi import FastAPI

from consumers.http_source import HttpSource
from daemon.api.guard import LimitBody, PlainAddress, RequireToken, SecureHeaders
from daemon.api.ports import (
    Forgetter,
    MetricsPage,
    Operations,
    Probes,
    SettingOperations,
    SimulationOperations,
)
from daemon.api.problems import answer_errors
from daemon.api.routes import (
    costs,
    dead_letters,
    events,
    explanations,
    feedback,
    firewall,
    forget,
    held_out,
    imports,
    intake,
    lineage,
    models,
    nodes,
    probes,
    queue,
    runs,
    webhooks,
)
from daemon.api.routes import facts as facts_route
from daemon.api.routes import learner as learner_route
from daemon.api.routes import settings as settings_route
from daemon.api.routes import simulations as simulations_route
from daemon.learner import Learner
from daemon.recent_facts import RecentFacts
from daemon.store.views import Views
from daemon.webhooks import WebhookIntake
from learning.adaptation import Thought
from learning.ports import TrainerCondition

LONGEST_BODY_BYTES = 1024 * 1024
OPEN_PATHS = probes.OPEN_PATHS | {webhooks.PATH}
"""Addresses that need no token; a webhook has its signature."""


async def no_thoughts() -> Sequence[Thought]:
    """Of a daemon whose settings do not adapt."""
    return ()


def create_app(
    *,
    views: Views,
    operations: Operations,
    settings: SettingOperations,
    forgetter: Forgetter,
    http_source: HttpSource,
    health: Probes,
    metrics: MetricsPage,
    facts: RecentFacts,
    token: str,
    trainer: Callable[[], TrainerCondition | None] = lambda: None,
    webhook_intake: WebhookIntake | None = None,
    learner: Learner | None = None,
    adaptation: Callable[[], Awaitable[Sequence[Thought]]] = no_thoughts,
    simulations: SimulationOperations | None = None,
    version: str = "0",
) -> FastAPI:
    """The application. Everything but OPEN_PATHS needs the token.

    Without `webhook_intake` no webhook is received, without `learner` nothing is processed by
    call, and without `simulations` nothing is simulated.
    """
    # No documentation pages: they would load their scripts from somebody else's server.
    app = FastAPI(title="learnd", version=version, docs_url=None, redoc_url=None)
    for router in (
        probes.router(health, metrics),
        intake.router(http_source),
        queue.router(views.overview, views.batch_sizes, views.statistics, operations, trainer),
        events.router(views.events, operations),
        firewall.router(views.firewall, operations),
        runs.router(views.runs, operations),
        costs.router(views.costs),
        feedback.router(views.feedback, operations),
        nodes.router(operations),
        models.router(views.models, views.verdicts, operations),
        lineage.router(views.lineage),
        explanations.router(views.explanations),
        forget.router(forgetter),
        dead_letters.router(views.dead_letters, operations),
        held_out.router(operations),
        imports.router(operations),
        facts_route.router(facts),
        settings_route.router(settings, adaptation),
        webhooks.receiver(webhook_intake),
        webhooks.router(views.webhooks),
        *([learner_route.router(learner)] if learner is not None else []),
        *([simulations_route.router(simulations)] if simulations is not None else []),
    ):
        # `include_router` makes each route a second time: half the time of a start.
        app.router.routes.extend(router.routes)
    answer_errors(app)
    # The last one added is asked first.
    app.add_middleware(
        LimitBody,
        max_bytes=LONGEST_BODY_BYTES,
        max_bytes_of={
            held_out.PATH: held_out.LONGEST_IMPORT_BYTES,
            imports.PATH: imports.LONGEST_IMPORT_BYTES,
        }
        | dict.fromkeys((*intake.PATHS, webhooks.PATH), None),
    )
    app.add_middleware(PlainAddress)
    app.add_middleware(RequireToken, token=token, open_paths=OPEN_PATHS)
    app.add_middleware(SecureHeaders)
    return app
