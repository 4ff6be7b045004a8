"""What a fine-tune job may cost at most, what it did cost, and whether the caps allow it.

Pure: amounts are Decimal, never float, and of one currency in every sum. Where amounts are
reserved is in daemon/store/spending.py. No price is known here: services change theirs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, Decimal
from enum import StrEnum
from typing import Any, Final

from learning.errors import LearningError

SMALLEST: Final = Decimal("0.000001")
"""Amounts are whole multiples of it, rounded up."""
ANY_MODEL: Final = "*"
"""Instead of a model's name: every model of the provider that has no price of its own."""
MOST_TOKENS: Final = 10**12
"""No job trains on more: a larger number is a mistake, of a service or of a file."""

_NOTHING: Final = Decimal(0)
_MILLION: Final = Decimal(1_000_000)
_HOUR: Final = Decimal(3_600_000_000)
"""In microseconds."""
_EPOCHS: Final = ("epochs", "n_epochs")


@dataclass(frozen=True)
class Use:
    """What a job takes of its service: at most, or in fact."""

    trained_tokens: int
    """Repeats counted: as many epochs, as many times."""
    duration: timedelta


@dataclass(frozen=True)
class Price:
    """What a service asks for a job, in one currency: the sum of its three parts."""

    per_million_tokens: Decimal = _NOTHING
    """Trained tokens."""
    per_hour: Decimal = _NOTHING
    """From the launch to the end of the job."""
    per_job: Decimal = _NOTHING

    def of(self, use: Use) -> Decimal:
        """The price of a use, rounded up; not negative."""
        microseconds = max(0, use.duration // timedelta(microseconds=1))
        exact = (
            self.per_million_tokens * use.trained_tokens / _MILLION
            + self.per_hour * microseconds / _HOUR
            + self.per_job
        )
        return exact.quantize(SMALLEST, ROUND_CEILING)

    def as_json(self) -> dict[str, str]:
        """As it is stored beside what was reserved at it."""
        return {name: str(part) for name, part in vars(self).items()}

    @classmethod
    def from_json(cls, stored: Mapping[str, str]) -> "Price":
        """What `as_json` made."""
        return cls(**{name: Decimal(part) for name, part in stored.items()})


class Period(StrEnum):
    """What a cap is for. Days and months are those of UTC."""

    RUN = "run"
    """All attempts of one run."""
    DAY = "day"
    MONTH = "month"

    def start(self, now: datetime) -> datetime:
        """When the day or the month that `now` is in began. A run has no calendar."""
        assert self is not Period.RUN
        midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        return midnight if self is Period.DAY else midnight.replace(day=1)


@dataclass(frozen=True)
class Caps:
    """What may be spent and reserved, at most; None is without a cap."""

    run: Decimal | None = None
    day: Decimal | None = None
    month: Decimal | None = None

    def of(self, period: Period) -> Decimal | None:
        """The cap of a period."""
        return {Period.RUN: self.run, Period.DAY: self.day, Period.MONTH: self.month}[period]

    @property
    def exist(self) -> bool:
        """Whether there is any."""
        return any(self.of(period) is not None for period in Period)


@dataclass(frozen=True)
class Committed:
    """What is spent, and what is reserved because it may be: together, for each period."""

    run: Decimal = _NOTHING
    day: Decimal = _NOTHING
    month: Decimal = _NOTHING

    def of(self, period: Period) -> Decimal:
        """That of a period."""
        return {Period.RUN: self.run, Period.DAY: self.day, Period.MONTH: self.month}[period]


@dataclass(frozen=True)
class Shortage:
    """A cap below which an amount does not fit any more."""

    period: Period
    cap: Decimal
    committed: Decimal
    wanted: Decimal

    @property
    def left(self) -> Decimal:
        """Of the cap; not negative, though a job may have cost more than it was to."""
        return max(_NOTHING, self.cap - self.committed)

    def in_words(self, currency: str) -> str:
        """Why a run waits, and what it waits for."""
        wanted, cap, left = (
            shown(amount, currency) for amount in (self.wanted, self.cap, self.left)
        )
        setting = f"money.cap_per_{self.period}"
        said = f"it may cost up to {wanted}, and {left} is left of {setting} ({cap})"
        if self.period is Period.RUN or self.wanted > self.cap:
            return f"{said}: raise the cap, or cancel the run"
        return (
            f"{said}: it goes on by itself in the next {self.period} (UTC), when other runs turn"
            " out cheaper, or when the cap is raised"
        )


def shortage(caps: Caps, committed: Committed, wanted: Decimal) -> Shortage | None:
    """The first cap that a further amount would go over; None when it fits below all.

    That of the run comes first: no other day helps against it.
    """
    for period in Period:
        cap = caps.of(period)
        if cap is not None and committed.of(period) + wanted > cap:
            return Shortage(period, cap, committed.of(period), wanted)
    return None


class Basis(StrEnum):
    """How it is known what an attempt has cost."""

    REPORTED = "reported"
    """The service said what it used, or the price does not depend on it."""
    ESTIMATED = "estimated"
    """The service did not say: as much as was reserved for its tokens."""
    NO_JOB = "no_job"
    """There was no job, and it cost nothing."""


@dataclass(frozen=True)
class Quote:
    """What one attempt may cost at most, and the caps below which that has to fit."""

    model: str
    currency: str
    price: Price
    most: Use
    caps: Caps = Caps()

    @property
    def amount(self) -> Decimal:
        """To be reserved before the launch."""
        return self.price.of(self.most)

    def in_words(self) -> str:
        """The estimate in tokens and in money."""
        amount = shown(self.amount, self.currency)
        return f"at most {amount}, for at most {self.most.trained_tokens:,} trained tokens"


def counted(told: object) -> int | None:
    """The trained tokens as a service tells them; None for anything that cannot be a number."""
    if isinstance(told, bool) or not isinstance(told, int):
        return None
    return told if 0 <= told <= MOST_TOKENS else None


def settled(
    price: Price, most_tokens: int, duration: timedelta, told_tokens: int | None
) -> tuple[Decimal, Basis]:
    """What a job has cost that ran for so long, and how that is known.

    `told_tokens` are the trained ones as its service counts them; None: it did not say, and
    the job may have trained as many as it was allowed for.
    """
    tokens = most_tokens if told_tokens is None else told_tokens
    is_known = told_tokens is not None or not price.per_million_tokens
    return price.of(Use(tokens, duration)), Basis.REPORTED if is_known else Basis.ESTIMATED


class PriceMissingError(LearningError):
    """There is a cap, and nobody said what the model costs: no job can be held below it."""

    def __init__(self, provider: str, model: str) -> None:
        super().__init__(
            f"there is a cap on what may be spent, and no price for {model} of {provider}: set"
            f' money.prices.{provider}."{model}" (0 where it costs nothing), or money.prices.'
            f'{provider}."{ANY_MODEL}" for all its models'
        )
        self.provider, self.model = provider, model


@dataclass(frozen=True)
class Budget:
    """Prices and caps as they are configured now."""

    currency: str = "USD"
    prices: Mapping[str, Mapping[str, Price]] = field(default_factory=dict)
    """By provider, then by base model or ANY_MODEL."""
    caps: Caps = Caps()
    assumed_epochs: int = 10
    """Where the service chooses how many."""

    def price_of(self, provider: str, model: str) -> Price | None:
        """The price of training a base model; None when there is none."""
        of_provider = self.prices.get(provider, {})
        return of_provider.get(model) or of_provider.get(ANY_MODEL)

    def is_free(self, provider: str, model: str, *, at_home: bool) -> bool:
        """Whether a job is nothing to keep account of.

        So is one without a price, where there is no cap or it is trained at home. Raises
        PriceMissingError.
        """
        if self.price_of(provider, model) is not None:
            return False
        if at_home or not self.caps.exist:
            return True
        raise PriceMissingError(provider, model)

    def quote(
        self,
        provider: str,
        model: str,
        *,
        tokens: int,
        training: Mapping[str, Any],
        longest: timedelta,
    ) -> Quote:
        """What a job may cost at most, that sees `tokens` an epoch and runs for `longest`.

        Raises PriceMissingError.
        """
        price = self.price_of(provider, model)
        if price is None:
            raise PriceMissingError(provider, model)
        epochs = epochs_of(training)
        seen = tokens * (self.assumed_epochs if epochs is None else epochs)
        most = Use(min(seen, MOST_TOKENS), longest)
        return Quote(model, self.currency, price, most, self.caps)


def epochs_of(training: Mapping[str, Any]) -> int | None:
    """The passes over the rows that the training settings say; None: the service chooses."""
    for name in _EPOCHS:
        try:
            return max(1, int(training[name]))
        except (KeyError, TypeError, ValueError, OverflowError):  # not said, or "auto"
            continue
    return None


def shown(amount: Decimal, currency: str) -> str:
    """An amount for people: two decimals, more only where they say something."""
    cents = amount.quantize(Decimal("0.01"), ROUND_CEILING)
    exact = amount.quantize(SMALLEST, ROUND_CEILING)
    text = f"{cents:,}" if cents == exact else f"{exact.normalize():,f}"
    return f"{text} {currency}"
