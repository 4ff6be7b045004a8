"""Is it alive, can it take work, do the models get better; and the numbers for Prometheus."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel

from daemon.api.ports import MetricsPage, Probes
from monitoring.health import Check, HealthReport, all_ok

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPEN_PATHS = frozenset({"/livez", "/readyz", "/healthz", "/metrics"})


class Verdict(BaseModel):
    """Yes or no, and each check in words."""

    ok: bool
    checks: Mapping[str, str]


NOT_OK: dict[int | str, dict[str, Any]] = {
    HTTPStatus.SERVICE_UNAVAILABLE.value: {"description": "No.", "model": Verdict}
}


def router(probes: Probes, metrics: MetricsPage) -> APIRouter:
    """The addresses that need no token."""
    routes = APIRouter(tags=["probes"])

    @routes.get("/livez", response_model=Verdict, responses=NOT_OK)
    async def livez() -> JSONResponse:
        """Whether the process works; restart it when not."""
        return _verdict(probes.live())

    @routes.get("/readyz", response_model=Verdict, responses=NOT_OK)
    async def readyz() -> JSONResponse:
        """Whether it can take work; send it none when not."""
        return _verdict(await probes.ready())

    @routes.get("/healthz", response_model=HealthReport)
    async def healthz() -> HealthReport:
        """Whether the loop does what it is for. Always 200: read `healthy`."""
        return await probes.health()

    @routes.get("/metrics", response_class=PlainTextResponse)
    async def metrics_page() -> Response:
        """Prometheus' text format."""
        return Response(await metrics.render(), media_type=METRICS_TYPE)

    return routes


def _verdict(checks: Sequence[Check]) -> JSONResponse:
    ok = all_ok(checks)
    return JSONResponse(
        {
            "ok": ok,
            "checks": {one.name: one.detail or ("ok" if one.ok else "no") for one in checks},
        },
        status_code=HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE,
    )
