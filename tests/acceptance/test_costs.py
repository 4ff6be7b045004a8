"""Money, as an operator sees it: a run waits for a cap, goes on, and is paid once."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.services.learnd import Learnd
from tests.services.nursery import Nursery

SETTINGS: Mapping[str, Any] = {
    "finetune": {
        "provider": "scripted",
        "base_model": "scripted-base",
        # Its job goes on while no daemon runs, and ends for the next one.
        "training": {"plan": "outlive", "trained_tokens": 500},
    },
    "money": {
        "currency": "EUR",
        "prices": {"scripted": {"*": {"per_million_tokens": 1_000, "per_job": "1.00"}}},
        "cap_per_day": 1.25,
    },
}
ROWS = [{"prompt": f"lesson {number}", "completion": f"answer {number}"} for number in range(16)]


def the_run(learnd: Learnd) -> Any:
    (run,) = learnd.get("/v1/runs")["items"]
    return run


def test_a_run_waits_for_a_raised_cap_and_is_paid_once_through_kills(
    tmp_path: Path, nursery: Nursery
) -> None:
    with Learnd(tmp_path, SETTINGS, nursery=nursery) as learnd:
        learnd.start()
        content = "\n".join(map(json.dumps, ROWS)).encode()
        learnd.post("/v1/imports?line=coding&file=lessons.jsonl", content=content)
        learnd.wait_until("no money", lambda: learnd.get("/v1/costs")["waiting"])
        run = the_run(learnd)
        assert (run["state"], run["attempt"]) == ("waiting", 0)
        assert "1.25 EUR is left of money.cap_per_day (1.25 EUR)" in run["message"]
        learnd.wait_until("its warning", lambda: learnd.told(kind="RunShortOfMoney"))
        learnd.kill()
        learnd.start()
        learnd.wait_until("no money", lambda: learnd.get("/v1/costs")["waiting"])
        for command in ("runs", "costs"):
            assert "money.cap_per_day" in learnd.command(command).replace("\n", "")
        assert learnd.metric("learnd_money_waiting_runs") == 1
        assert learnd.metric("learnd_money_left") == 1.25

        learnd.command("settings", "set", "money.cap_per_day=100", "--reason", "worth it")
        learnd.wait_until("a job", lambda: the_run(learnd)["state"] == "running")
        reserved = learnd.metric("learnd_money_reserved")
        assert reserved > 1.5
        learnd.kill()
        learnd.start()
        assert learnd.metric("learnd_money_reserved") in (reserved, 0)
        learnd.wait_until("its end", lambda: the_run(learnd)["state"] == "decided")

        found = json.loads(learnd.command("costs", "--by", "run", "--json"))
        assert found["waiting"] == []
        assert [one["committed"] for one in found["periods"]] == ["1.500000"] * 2
        (account,) = found["accounts"]
        assert account == {
            "key": the_run(learnd)["id"],
            "currency": "EUR",
            "attempts": 1,
            "spent": "1.500000",
            "estimated": "0.000000",
            "reserved": "0.000000",
            "trained_tokens": 500,
        }
        shown = learnd.command("costs", "--by", "line")
        assert "1.50 EUR spent and reserved of 100.00 EUR, 98.50 EUR left" in shown
        assert "coding" in shown
