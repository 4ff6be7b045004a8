"""What a batch training may cost: told, and held below a limit, before anything is launched.

There is no store to reserve in: the caps of days and months are a daemon's.
"""

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

from daemon.batch_config import BatchConfig
from daemon.settings import LOCAL_PROVIDERS
from daemon.settings_sources import load
from finetune.batch_job import Plan
from finetune.datasets.batch import BatchDataset
from finetune.datasets.most_tokens import most_tokens
from learning.budget import Caps, Quote, counted, settled, shown
from learning.errors import LearningError


class TooDearError(LearningError):
    """A training may cost more than it was allowed to."""

    def __init__(self, quote: Quote, limit: Decimal) -> None:
        super().__init__(
            f"it may cost {quote.in_words()}, and the limit is {shown(limit, quote.currency)}:"
            " nothing was launched; take fewer rows or epochs, or raise --max-cost"
        )
        self.quote, self.limit = quote, limit


def quote_of(plan: Plan, dataset: BatchDataset, config: BatchConfig) -> Quote | None:
    """What the training may cost; None where it has no price, and needs none. Blocks.

    Prices are those of the daemon's settings, and so is the limit (money.cap_per_run), unless
    the command has one. Raises TooDearError, PriceMissingError and SettingsError.
    """
    if plan.provider in LOCAL_PROVIDERS:
        return None
    settings = load()
    budget = settings.money.budget()
    limit = budget.caps.run if config.max_cost is None else config.max_cost
    budget = replace(budget, caps=Caps(run=limit))
    model = plan.model.base_model
    if budget.is_free(plan.provider, model, at_home=False):
        return None
    quote = budget.quote(
        plan.provider,
        model,
        tokens=most_tokens(dataset.train_file),
        training=plan.training,
        longest=timedelta(seconds=settings.finetune.timeout_seconds),
    )
    if limit is not None and quote.amount > limit:
        raise TooDearError(quote, limit)
    return quote


def bill_of(quote: Quote, told_tokens: object) -> dict[str, Any]:
    """What a training was to cost at most, and what it did cost as far as that is known.

    `told_tokens` are those that its service counted. Hours nobody counted: who pays for them
    is told no more than the estimate.
    """
    bill: dict[str, Any] = {
        "currency": quote.currency,
        "at_most": str(quote.amount),
        "tokens_at_most": quote.most.trained_tokens,
    }
    if not quote.price.per_hour:
        actual, basis = settled(
            quote.price, quote.most.trained_tokens, timedelta(), counted(told_tokens)
        )
        bill |= {"actual": str(actual), "basis": basis}
    return bill
