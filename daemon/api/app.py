"""Put the API together from its collaborators."""

from fastapi import APIRouter, FastAPI

from daemon.api.guard import LimitBody, PlainAddress, RequireToken, SecureHeaders
from daemon.api.ports import MetricsPage, Operations, Probes
from daemon.api.problems import answer_errors
from daemon.api.routes import (
    dead_letters,
    events,
    held_out,
    lineage,
    models,
    nodes,
    probes,
    queue,
    runs,
)
from daemon.store.views import Views

LONGEST_BODY_BYTES = 1024 * 1024


def create_app(
    *,
    views: Views,
    operations: Operations,
    health: Probes,
    metrics: MetricsPage,
    token: str,
    version: str = "0",
) -> FastAPI:
    """The application. Everything but the probes and the metrics needs the token."""
    # No documentation pages: they would load their scripts from somebody else's server.
    app = FastAPI(title="learnd", version=version, docs_url=None, redoc_url=None)
    v1 = APIRouter(prefix="/v1")
    for router in (
        queue.router(views.overview, operations),
        events.router(views.events, operations),
        runs.router(views.runs, operations),
        nodes.router(operations),
        models.router(views.models, operations),
        lineage.router(views.lineage),
        dead_letters.router(views.dead_letters, operations),
        held_out.router(operations),
    ):
        v1.include_router(router)
    app.include_router(probes.router(health, metrics))
    app.include_router(v1)
    answer_errors(app)
    # The last one added is asked first.
    app.add_middleware(
        LimitBody,
        max_bytes=LONGEST_BODY_BYTES,
        max_bytes_of={held_out.PATH: held_out.LONGEST_IMPORT_BYTES},
    )
    app.add_middleware(PlainAddress)
    app.add_middleware(RequireToken, token=token, open_paths=probes.OPEN_PATHS)
    app.add_middleware(SecureHeaders)
    return app
