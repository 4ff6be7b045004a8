"""`learnd finetune` and money: told before the launch, refused over a limit, in the result."""

import json
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from daemon.batch_config import read_config
from daemon.batch_costs import TooDearError
from daemon.finetuning import Mode, finetune, show
from finetune.batch_job import Result
from learning.budget import PriceMissingError

PRICED = """
money:
  currency: EUR
  prices:
    scripted:
      tokens: {per_million_tokens: 1000}
      hours: {per_hour: 3}
"""


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a dataset and the settings of a daemon."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(10)]
    Path("rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    Path("learnd.yaml").write_text(PRICED)


def train(model: str, max_cost: str | None = None, **training: Any) -> Result:
    told: Mapping[str, Any] = {
        "dataset": "rows.jsonl",
        "provider": "scripted",
        "model": model,
        "max_cost": max_cost,
        "training": {"epochs": 2, **training},
    }
    return finetune(read_config(None, told), Mode.FULL)


def n_jobs() -> int:
    return len(list(Path().rglob("jobs.jsonl")))


def test_the_estimate_is_told_and_the_result_has_what_it_cost(
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = train("tokens", max_cost="10", trained_tokens=250)

    tokens = 2 * len(Path(result.dataset_file).read_bytes())
    amount = Decimal(tokens) / 1000
    assert f"estimate: at most {amount:f}" in capsys.readouterr().err
    assert result.costs is not None
    assert result.costs == {
        "currency": "EUR",
        "at_most": f"{amount:.6f}",
        "tokens_at_most": tokens,
        "actual": "0.250000",
        "basis": "reported",
    }
    show(result, "learnd finetune")
    assert "0.25 EUR" in capsys.readouterr().out
    assert train("tokens", max_cost="10", trained_tokens=250) == result


def test_a_service_that_counts_nothing_may_have_cost_the_estimate(
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = train("tokens")

    assert result.costs is not None
    assert (result.costs["actual"], result.costs["basis"]) == (
        result.costs["at_most"],
        "estimated",
    )
    show(result, "learnd finetune")
    assert "at most " in capsys.readouterr().out


def test_hours_are_estimated_by_the_time_limit_and_not_counted() -> None:
    costs = train("hours").costs

    assert costs is not None
    assert Decimal(costs["at_most"]) == 12
    assert "actual" not in costs


def test_what_may_cost_more_than_the_limit_is_not_launched() -> None:
    with pytest.raises(TooDearError, match=r"the limit is 0\.10 EUR: nothing was launched"):
        train("tokens", max_cost="0.10")

    assert n_jobs() == 0


def test_the_cap_of_a_run_is_the_limit_of_a_command_without_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LEARND_MONEY__CAP_PER_RUN", "0.20")

    with pytest.raises(TooDearError, match=r"0\.20 EUR"):
        train("tokens")
    assert train("tokens", max_cost="10").costs is not None


def test_under_a_limit_a_model_without_a_price_is_not_launched() -> None:
    with pytest.raises(PriceMissingError, match=r'money\.prices\.scripted\."unknown"'):
        train("unknown", max_cost="10")

    assert n_jobs() == 0
    assert train("unknown").costs is None
