"""Keep the glance on the screen: ask the daemon again and again until Ctrl-C.

On a terminal it redraws in place and follows a change of its size; elsewhere it prints a block
of plain text at each look. A daemon that goes away is told of, and found again when it is back.
"""

import signal
import time
from collections import deque
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.live import Live

from daemon.client import Client, DaemonUnavailableError, DaemonUnreachableError, RefusedError
from daemon.exit_status import ExitStatus
from daemon.glance import Answers, Glance
from daemon.printing import console

RATE_SECONDS = 15.0
"""The intake's rate is that of the last so many seconds."""
REDRAWS_PER_SECOND = 4
LAG = "learnd_consumer_lag_records"


class IntakeRate:
    """How fast stored arrivals grow, from what successive looks saw."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def after(self, status: Mapping[str, Any], now: float) -> float | None:
        """Arrivals a second up to this look at `now`, a monotonic time; None at the first."""
        self._seen.append((now, _arrivals(status)))
        while len(self._seen) > 2 and self._seen[1][0] <= now - RATE_SECONDS:
            self._seen.popleft()
        (begin, before), (end, after) = self._seen[0], self._seen[-1]
        return max(0, after - before) / (end - begin) if end > begin else None


def watch(daemon: Client, interval_seconds: float) -> ExitStatus:
    """Show the loop until Ctrl-C, which is INTERRUPTED; how it ends otherwise is raised.

    The first look has to succeed. Later ones may find nobody, or a daemon in trouble, and are
    tried again; a refused token is raised at once, because asking again would not mend it.
    """
    out = console()
    in_place = out.is_terminal and not out.is_dumb_terminal
    # A terminal is given back as it was, also when a script ends this with SIGTERM.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        rate = IntakeRate()
        answers = look(daemon)
        glance = Glance(daemon.url, answers, rate.after(answers.status, time.monotonic()))
        with _screen(out) if in_place else nullcontext() as live:
            while True:
                if live is not None:
                    live.update(glance)
                else:
                    _print(glance, out)
                time.sleep(interval_seconds)
                glance = _next(daemon, glance, rate)
    except KeyboardInterrupt:
        return ExitStatus.INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)


def look(daemon: Client) -> Answers:
    """Ask for everything that a glance shows. Raises the errors of daemon.client."""
    return Answers(
        status=daemon.get("/v1/status"),
        health=daemon.get("/healthz"),
        lag=_lag(daemon.get_text("/metrics")),
        facts=_facts(daemon),
    )


def _next(daemon: Client, glance: Glance, rate: IntakeRate) -> Glance:
    try:
        answers = look(daemon)
    except (DaemonUnreachableError, DaemonUnavailableError, RefusedError) as error:
        since = glance.answers.status["at"][11:19]
        told = f"no answer since {since}, trying again: {error}"
        return Glance(glance.url, glance.answers, None, trouble=told)
    return Glance(glance.url, answers, rate.after(answers.status, time.monotonic()))


def _screen(out: Console) -> Live:
    return Live(console=out, screen=True, refresh_per_second=REDRAWS_PER_SECOND)


def _print(glance: Glance, out: Console) -> None:
    for line in glance.lines(out.width, None):
        print(line.plain.rstrip())
    print(flush=True)


def _facts(daemon: Client) -> Any:
    try:
        return daemon.get("/v1/facts")
    except RefusedError:  # an older daemon does not tell them
        return []


def _lag(page: str) -> int | None:
    samples = [
        sample.value
        for family in text_string_to_metric_families(page)
        if family.name == LAG
        for sample in family.samples
    ]
    return int(sum(samples)) if samples else None


def _arrivals(status: Mapping[str, Any]) -> int:
    """Outputs, feedback and dead letters ever stored."""
    outputs = sum(sum(one["states"].values()) for one in status["outputs"].values())
    feedback = sum(sum(states.values()) for states in status["feedback"].values())
    return int(outputs + feedback + sum(status["dead_letters"].values()))
