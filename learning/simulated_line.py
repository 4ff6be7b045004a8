"""One model line in a simulation: its queue, its batch size, its runs and what they cost.

Pure, and thin: what is due, how large, how many are held out and what fits below a cap is
decided where the daemon decides it (batching, batch_sizing, sampling, budget). What a
simulation cannot know it takes from the record: a run lasts as long, and ends as, the run of the
line that was sealed nearest in time did. Times are microseconds since 1970.
"""

import heapq
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal

from learning.batch_sizing import (
    RUNS_LOOKED_AT,
    EndedRun,
    Experience,
    SizeCause,
    SizeRules,
    choose_size,
)
from learning.batching import BatchRules, Due, LineQueue, Trigger, due
from learning.budget import Budget, Committed, Period, Price, Use, shortage
from learning.clock import EPOCH, microseconds
from learning.gate import Outcome
from learning.lifecycle import EventState
from learning.lines import ModelLine, ModelLines
from learning.policy import Policy
from learning.sampling import SplitRules, cross_task_quota, held_out_quota, replay_quota

NEVER = 2**63
SECOND = 1_000_000
DAY = 86_400 * SECOND
SIZE_EVERY = 30 * SECOND
"""How often a batch size is thought over, beside the end of each run."""
ASSUMED_RUN_SECONDS = 300.0
"""How long a run lasts in a line that has no run on record."""
ASSUMED_TOKENS_A_ROW = 1_000.0
"""Trained tokens of one row, all epochs together, in a line of which no service told a number."""


@dataclass(frozen=True)
class Configuration:
    """Everything that is set and that a simulation follows."""

    policy: Policy
    batches: BatchRules
    sizes: SizeRules
    budget: Budget
    split: SplitRules
    """For the lines that `split_of` does not name."""
    split_of: Mapping[str, SplitRules]
    lines: ModelLines
    without_base: bool = False
    """Whether lines without a base model seal too, as if they had one."""


@dataclass(frozen=True)
class PastRun:
    """One run on record."""

    sealed_at: int
    seconds: float
    """From its batch's sealing to its end, or to the end of the record."""
    trigger: Trigger
    outcome: Outcome | None
    gain: float | None


@dataclass(frozen=True)
class LinePast:
    """What is on record of a line, beside its events."""

    size: int | None = None
    """Its batch size when the simulation begins; None: as configured."""
    pinned: bool = False
    frozen: int = 0
    """Held-out examples that it had by then."""
    remembered: int = 0
    """Events that may be repeated."""
    busy_until: int = 0
    tokens_a_row: float | None = None
    runs: Sequence[PastRun] = ()
    """In the order of their sealing."""


@dataclass
class Books:
    """What was spent so far in the day and month that it is, of all lines together."""

    budget: Budget
    spent: list[tuple[int, Decimal]]
    """When, and how much; in order."""

    def short_until(self, amount: Decimal, now: int) -> int:
        """`now` when a further amount fits below the caps; otherwise when to look again."""
        found = shortage(self.budget.caps, self._committed(now), amount)
        if found is None:
            return now
        if found.period is Period.RUN or amount > found.cap:
            return NEVER
        start = found.period.start(time_of(now))
        days = 1 if found.period is Period.DAY else 32
        return microseconds(found.period.start(start + timedelta(days=days)))

    def spend(self, amount: Decimal, now: int) -> None:
        """A run that costs so much begins."""
        self.spent.append((now, amount))

    def _committed(self, now: int) -> Committed:
        day, month = (
            microseconds(period.start(time_of(now))) for period in (Period.DAY, Period.MONTH)
        )
        while self.spent and self.spent[0][0] < month:
            self.spent.pop(0)
        of_day = sum((amount for at, amount in self.spent if at >= day), Decimal(0))
        return Committed(day=of_day, month=sum((amount for _, amount in self.spent), Decimal(0)))


class Fate:
    """One event in a simulation: where it stands there, and where the record says it went."""

    __slots__ = (
        "by_human",
        "closed_at",
        "confidence",
        "control",
        "control_by_human",
        "control_people",
        "findings",
        "held_since",
        "id",
        "is_open",
        "line",
        "people",
        "recorded",
        "since",
        "state",
        "stated",
        "stopped",
        "stretch",
    )

    by_human: bool
    closed_at: int
    """When the record closed it; NEVER when it did not."""
    confidence: float | None
    control: EventState
    """Where it stands under the settings of today, with everything else as it was."""
    control_by_human: bool
    control_people: tuple[bool, ...]
    findings: Sequence[str]
    held_since: int
    """When it arrived, or was last moved before the simulation begins."""
    id: int
    is_open: bool
    """Whether the simulation may still move it."""
    line: "SimulatedLine"
    people: tuple[bool, ...]
    recorded: EventState
    since: int
    """Since when it is in its state."""
    state: EventState
    stated: bool | None
    stopped: Sequence[str]
    """What the validators had against it, by the record."""
    stretch: int | None
    """In which stretch of the series it arrived; None: before."""


@dataclass(frozen=True)
class SimulatedBatch:
    """A batch that would have been sealed."""

    trigger: Trigger
    events: Sequence[Fate]
    n_train: int
    n_held_out: int
    n_repeated: int
    """Of the line's own past and of related task types."""


class SimulatedLine:
    """One line. Every call names a time that is not before that of the call before."""

    def __init__(
        self,
        name: str,
        line: ModelLine | None,
        configuration: Configuration,
        past: LinePast,
        books: Books,
        run_seconds: float,
    ) -> None:
        """`run_seconds`: how long a run lasts, where the record has none."""
        self.name = name
        self._trains = line is not None and (
            configuration.without_base or line.base_model is not None
        )
        self._batches = configuration.batches
        self._split = configuration.split_of.get(name, configuration.split)
        self.price = _price_of(line, configuration.budget)
        self._books = books
        self._past = past
        self._sealings = [run.sealed_at for run in past.runs]
        self._run_seconds = run_seconds
        self._frozen = past.frozen
        self._remembered = past.remembered
        self._sizer = _Sizer(configuration.sizes, past)
        self.waiting = 0
        self._by_id: list[tuple[int, Fate]] = []
        self._by_age: deque[Fate] = deque()
        self._ever_queued = 0
        self._runs: deque[_Run] = deque()
        """Launched or to be launched, the one that keeps the line busy first."""
        self._busy_until = past.busy_until
        self.launched: list[tuple[int, Decimal]] = []
        """When, and at what cost; taken out by whoever counts."""
        self.waited_for_money = 0

    # --- the queue ---------------------------------------------------------------------

    def add(self, event: Fate) -> None:
        """An event is queued, since `event.since`."""
        heapq.heappush(self._by_id, (event.id, event))
        self._by_age.append(event)
        self.waiting += 1
        self._ever_queued += 1

    def withdraw(self) -> None:
        """One of the queued events is no longer queued."""
        self.waiting -= 1

    def next_at(self) -> int:
        """When something happens by itself: a run ends, money comes, or the oldest has waited."""
        if not self._trains:
            return NEVER
        if self._busy_until:
            return self._busy_until
        if not self.waiting:
            return NEVER
        return self._oldest() + self._batches.max_wait // timedelta(microseconds=1)

    def turn(self, now: int) -> SimulatedBatch | None:
        """Let runs end and begin, and seal what is due."""
        if not self._trains:
            return None
        if self._busy_until and now >= self._busy_until:
            self._go_on(now)
        if self._busy_until or not self.waiting:
            return None
        size = self._sizer.size(now, self.waiting, self._ever_queued)
        rules = replace(self._batches, batch_size=size)
        oldest = time_of(self._oldest())
        queue = LineQueue(self.name, self.waiting, oldest, busy=False)
        found = due(queue, rules, time_of(now))
        return None if found is None else self._seal(found, now)

    def flush(self, now: int) -> SimulatedBatch | None:
        """An operator seals what waits, whether a run is under way or not."""
        if not self._trains or not self.waiting:
            return None
        size = min(self.waiting, self._batches.max_queue_size)
        return self._seal(Due(Trigger.FLUSH, size), now)

    def occupy(self, now: int, seconds: float) -> None:
        """A run that the simulation has no part in, of an imported file, takes so long."""
        self._busy_until = max(now, self._busy_until) + int(seconds * SECOND)

    def _oldest(self) -> int:
        while self._by_age[0].state is not EventState.QUEUED:
            self._by_age.popleft()
        return self._by_age[0].since

    def _seal(self, found: Due, now: int) -> SimulatedBatch:
        taken: list[Fate] = []
        while self._by_id and len(taken) < found.size:
            _, event = heapq.heappop(self._by_id)
            if event.state is EventState.QUEUED:
                event.state, event.since = EventState.SEALED, now
                taken.append(event)
        self.waiting -= len(taken)
        quota = held_out_quota(len(taken), self._frozen, self._split)
        n_held_out = min(quota, sum(event.by_human for event in taken))
        n_train = len(taken) - n_held_out
        n_replay = min(replay_quota(n_train, self._split), self._remembered)
        n_related = cross_task_quota(n_train + n_replay, self._split) if n_replay else 0
        self._frozen += n_held_out
        self._remembered += n_train
        if n_train:
            run = self._run_of(found.trigger, n_train + n_replay + n_related, now)
            self._runs.append(run)
            if len(self._runs) == 1 and not self._busy_until:
                self._begin(now)
        return SimulatedBatch(found.trigger, taken, n_train, n_held_out, n_replay + n_related)

    # --- runs --------------------------------------------------------------------------

    def _run_of(self, trigger: Trigger, n_rows: int, now: int) -> "_Run":
        like = self._nearest(now)
        seconds = self._run_seconds if like is None else like.seconds
        cost = Decimal(0)
        if self.price is not None:
            tokens = n_rows * (self._past.tokens_a_row or ASSUMED_TOKENS_A_ROW)
            cost = self.price.of(Use(round(tokens), timedelta(seconds=seconds)))
        return _Run(now, self._ever_queued, trigger, seconds, cost, like)

    def _nearest(self, now: int) -> PastRun | None:
        place = bisect_left(self._sealings, now)
        near = self._past.runs[max(0, place - 1) : place + 1]
        return min(near, key=lambda run: abs(run.sealed_at - now), default=None)

    def _begin(self, now: int) -> None:
        """Launch the first of the runs, or have it wait for money."""
        run = self._runs[0]
        again_at = self._books.short_until(run.cost, now) if self.price is not None else now
        if again_at > now:
            self.waited_for_money += not run.waited
            run.waited = True
            self._busy_until = again_at
            return
        if self.price is not None:
            self._books.spend(run.cost, now)
        self.launched.append((now, run.cost))
        run.launched_at = now
        self._busy_until = now + max(1, int(run.seconds * SECOND))

    def _go_on(self, now: int) -> None:
        """What kept the line busy is over: a run, or the wait for money."""
        self._busy_until = 0
        if self._runs and self._runs[0].launched_at is not None:
            self._sizer.ended(self._runs.popleft())
        if self._runs:
            self._begin(now)


@dataclass
class _Run:
    sealed_at: int
    queued_so_far: int
    trigger: Trigger
    seconds: float
    cost: Decimal
    like: PastRun | None
    launched_at: int | None = None
    waited: bool = False


class _Sizer:
    """A line's batch size; what it learns from is what its runs on record showed."""

    def __init__(self, rules: SizeRules, past: LinePast) -> None:
        self._rules = rules
        self._adapts = rules.adaptive and not past.pinned and bool(past.runs)
        start = rules.start if past.size is None else past.size
        self._size = start if past.pinned or not rules.adaptive else rules.bounded(start)
        self._needed = 0
        self._runs: deque[_Run] = deque(maxlen=RUNS_LOOKED_AT)
        self._changes: deque[int] = deque()
        self._thought_at: int | None = None
        self._idle_since: int | None = None

    def ended(self, run: _Run) -> None:
        """Newest first, as `Experience` has them."""
        self._runs.appendleft(run)
        self._thought_at = None

    def size(self, now: int, waiting: int, ever_queued: int) -> int:
        """That of now, thought over when it is time."""
        if self._adapts and (self._thought_at is None or now - self._thought_at >= SIZE_EVERY):
            self._thought_at = now
            self._think(now, waiting, ever_queued)
        return self._size

    def _think(self, now: int, waiting: int, ever_queued: int) -> None:
        while self._changes and self._changes[0] <= now - DAY:
            self._changes.popleft()
        rate = None
        if self._runs and now > self._runs[-1].sealed_at:
            first = self._runs[-1]
            rate = (ever_queued - first.queued_so_far) * SECOND / (now - first.sealed_at)
        chosen = choose_size(
            Experience(
                size=self._size,
                needed=self._needed,
                waiting=waiting,
                rate=rate,
                runs=[_ended(run) for run in self._runs],
                changes_today=len(self._changes),
                idle_seconds=0.0 if self._idle_since is None else (now - self._idle_since) / SECOND,
            ),
            self._rules,
        )
        self._needed = chosen.needed
        is_idle = chosen.cause is SizeCause.IDLE
        self._idle_since = (self._idle_since or now) if is_idle else None
        if chosen.size != self._size:
            self._size = chosen.size
            self._changes.append(now)
            self._runs.clear()


def _ended(run: _Run) -> EndedRun:
    like = run.like
    return EndedRun(
        run.seconds, run.trigger, like.outcome if like else None, like.gain if like else None
    )


def time_of(at: int) -> datetime:
    """Microseconds since 1970 as a time in UTC."""
    return EPOCH + timedelta(microseconds=at)


def _price_of(line: ModelLine | None, budget: Budget) -> Price | None:
    if line is None or line.base_model is None:
        return None
    return budget.price_of(line.provider, line.base_model)
