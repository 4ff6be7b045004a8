"""Screening for tests: none at all, and the validators that misbehave."""

from consumers.screening.process import ScreeningProcess
from daemon.screening import Screening
from daemon.store import Store
from learning.clock import Clock
from learning.facts import Fact
from learning.screening import ScreeningRules


def no_screening(store: Store, clock: Clock) -> Screening:
    """Lets everything pass, and starts no process."""

    def unheard(fact: Fact) -> None:
        """Nobody listens."""

    rules = ScreeningRules(enabled=False)
    return Screening(store, ScreeningProcess(), lambda: rules, unheard, clock)
