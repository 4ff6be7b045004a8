"""The section `money`: decimal amounts from a file and from the environment, within bounds."""

from decimal import Decimal
from pathlib import Path

import pytest

from daemon.settings_sources import SettingsError, load
from learning.budget import Caps, Price

FILE = """
money:
  currency: EUR
  prices:
    openai:
      gpt-4.1-mini: {per_million_tokens: 4.60}
      "*": {per_hour: 2, per_job: "0.10"}
  cap_per_month: 400
"""


def test_prices_and_caps_are_the_decimal_numbers_that_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "learnd.yaml"
    file.write_text(FILE)
    monkeypatch.setenv("LEARND_MONEY__CAP_PER_DAY", "0.30")

    budget = load(file).money.budget()

    assert budget.currency == "EUR"
    assert budget.caps == Caps(day=Decimal("0.30"), month=Decimal(400))
    assert budget.price_of("openai", "gpt-4.1-mini") == Price(Decimal("4.6"))
    assert budget.price_of("openai", "o") == Price(per_hour=Decimal(2), per_job=Decimal("0.1"))
    assert budget.price_of("http", "o") is None


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("money.cap_per_day", "-1", "greater than or equal to 0"),
        ("money.cap_per_day", "NaN", "finite"),
        ("money.cap_per_day", True, "a number is needed"),
        ("money.currency", "euro", "match pattern"),
        ("money.prices", {"openai": {"m": {}}}, "openai, m: per_million_tokens, per_hour or"),
        ("money.prices", {"openai": {"m": {"per_token": 1}}}, "no such setting"),
        ("money.prices", {"openai": {"m": {"per_job": 1e9}}}, "less than or equal to 1000000"),
    ],
)
def test_what_is_no_amount_is_refused(key: str, value: object, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load(None, {key: value})
