"""The HTTP source on a real database, as daemon/app.py wires it, with its knobs within reach."""

import time
from collections.abc import Callable

from consumers.http_source import HttpLimits, HttpSource
from consumers.ingest import Ingest
from consumers.rate_limit import RateLimit
from daemon.store.database import Database
from daemon.store.intake import Intake
from learning.clock import Clock
from learning.facts import Announce
from learning.lines import ModelLines
from learning.ports import EventKind
from tests.builders import JUDGE


def http_source(
    database: Database,
    lines: ModelLines,
    clock: Clock,
    *,
    announce: Announce = lambda fact: None,
    closed: Callable[[EventKind], str | None] = lambda kind: None,
    limits: HttpLimits | None = None,
    rate_limit: RateLimit | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> HttpSource:
    """A source that stores into a migrated database, which somebody else closes."""
    limits = limits or HttpLimits()
    intake = Intake(database, JUDGE, clock)
    ingest = Ingest(intake, lines, JUDGE, announce, clock, limits=limits.wire)
    return HttpSource(
        ingest,
        intake,
        announce,
        closed,
        limits=limits,
        rate_limit=rate_limit,
        monotonic=monotonic,
    )
