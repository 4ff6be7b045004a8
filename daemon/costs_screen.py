"""The answer about money as tables and lines; see screens.py."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from daemon.printing import Column, number, say, show_pairs, show_table, words
from learning.budget import Basis, shown

NAMES = {"day": "today (UTC)", "month": "this month"}


def costs(found: Mapping[str, Any]) -> None:
    """The answers of /v1/costs and /v1/costs/accounts."""
    currency = found["currency"]
    show_pairs(
        [
            *((NAMES[one["period"]], _against_cap(one, currency)) for one in found["periods"]),
            ("cap per run", _amount(found["cap_per_run"], currency) or "none"),
        ]
    )
    say("")
    if found["accounts"]:
        show_table(
            [
                Column(found["by"]),
                number("spent"),
                number("of that estimated"),
                number("reserved"),
                number("attempts"),
                number("trained tokens"),
            ],
            [
                (
                    one["key"],
                    *(
                        _amount(one[name], one["currency"])
                        for name in ("spent", "estimated", "reserved")
                    ),
                    f"{one['attempts']:,}",
                    f"{one['trained_tokens']:,}",
                )
                for one in found["accounts"]
            ],
        )
    else:
        say("nothing was spent: a training is counted when its model has a price (money.prices)")
    if found["waiting"]:
        show_table(
            [Column("run"), Column("line"), words("waits for money")],
            [(one["run_id"], one["line"], one["reason"]) for one in found["waiting"]],
        )


def cost_of(cost: Mapping[str, Any] | None) -> str | None:
    """The cost of an attempt in a cell; None without a price."""
    if cost is None:
        return None
    if cost["actual"] is None:
        return f"up to {_amount(cost['reserved'], cost['currency'])}"
    most = "at most " if cost["basis"] == Basis.ESTIMATED else ""
    return f"{most}{_amount(cost['actual'], cost['currency'])}"


def _against_cap(account: Mapping[str, Any], currency: str) -> str:
    committed = _amount(account["committed"], currency)
    if account["cap"] is None:
        return f"{committed} spent and reserved, without a cap"
    cap, left = _amount(account["cap"], currency), _amount(account["left"], currency)
    return f"{committed} spent and reserved of {cap}, {left} left"


def _amount(text: str | None, currency: str) -> str | None:
    return None if text is None else shown(Decimal(text), currency)
