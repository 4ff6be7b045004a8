"""Settings that are changed while `learnd run` runs: they hold at once, and after a restart."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from daemon.exit_status import ExitStatus
from tests.services.learnd import Learnd
from tests.services.nursery import Nursery
from tests.services.postgres import PostgresServer
from tests.waiting import wait_until

GIVEN: dict[str, Any] = {
    "queue": {"batch_size": 20, "max_queue_size": 200, "adaptive": False},
    "split": {"starting_share": 0.5, "held_out_share": 0.5, "replay_share": 0.0},
    "finetune": {"provider": "scripted", "base_model": "first-base"},
    "remote": {"openai_api_key": "sk-planted"},
    "lines": {"coding": {}},
}


class Sender:
    """Sends outputs with new ids to one daemon, and looks what became of them."""

    def __init__(self, daemon: Learnd) -> None:
        self.daemon = daemon
        self.sent = 0

    def one(self, confidence: float) -> str:
        """The state of one approved output."""
        self.sent += 1
        answer = self.daemon.post("/v1/outputs", self._event(self.sent, confidence))
        assert answer.status_code == 201, answer.text
        return str(answer.json()["state"])

    def many(self, count: int) -> None:
        """Approved outputs beyond any bar."""
        for _ in range(count):
            assert self.one(1.0) == "queued"

    def decided(self, n_runs: int) -> dict[str, Any]:
        """The last decision of the line, when so many runs are over."""

        def last() -> Any:
            over = [run for run in self.daemon.get("/v1/runs")["items"] if run["finished_at"]]
            return self._line() if len(over) == n_runs else None

        found = self.daemon.wait_until(f"decision {n_runs}", last)
        return dict(found["last_decision"])

    def run_states(self) -> list[str]:
        return [run["state"] for run in self.daemon.get("/v1/runs")["items"]]

    def _line(self) -> Any:
        lines = {line["line"]: line for line in self.daemon.get("/v1/status")["lines"]}
        return lines["coding"]

    def _event(self, number: int, confidence: float) -> dict[str, Any]:
        return {
            "event_id": f"{self.daemon.folder.name}-{number}",
            "producer": "studio",
            "task_id": f"t-{number}",
            "task_type": "coding",
            "prompt": f"question {self.daemon.folder.name} {number}",
            "output": f"answer {number}",
            "approved": True,
            "confidence": confidence,
        }


def shown(daemon: Learnd, key: str) -> dict[str, Any]:
    """One setting as the API shows it."""
    found = {one["key"]: one for one in daemon.get("/v1/settings")["settings"]}
    return dict(found[key])


def change(daemon: Learnd, **request: Any) -> dict[str, Any]:
    answer = daemon.post("/v1/settings", request)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.fixture
def daemon(tmp_path: Path, nursery: Nursery) -> Iterator[Learnd]:
    with Learnd(tmp_path, GIVEN, nursery=nursery) as started:
        started.start()
        yield started


def test_the_next_event_the_next_decision_and_the_next_batch_follow_a_change(
    daemon: Learnd,
) -> None:
    sender = Sender(daemon)
    assert sender.one(0.8) == "queued"
    told = daemon.command(
        "settings", "set", "policy.min_confidence=0.9", "--reason", "too much noise"
    )
    assert "policy.min_confidence: as configured -> 0.9" in told
    assert sender.one(0.8) == "held"

    # A line with a large enough sample promotes; the gate then wants more than there is.
    sender.many(19)
    assert sender.decided(1)["outcome"] == "promote"
    change(daemon, values={"gate.min_evidence": 32, "gate.recent_evidence": 32})
    sender.many(20)
    decision = sender.decided(2)
    assert decision["outcome"] == "abstain"
    assert "32" in decision["reason"]

    # With another base model, the next version is another major one.
    change(daemon, values={"lines.coding.base_model": "second-base"}, reason="the first goes away")
    sender.many(20)
    assert sender.decided(3)["version"] == "2.0.0-rc.1"

    # The end of a model in use is told: as a metric, a warning and in the log.
    change(daemon, values={"remote.shutdown_dates.second-base": "2026-01-14"})
    assert daemon.metric("learnd_model_shutdown_days") < 0
    assert "second-base is shut down since 2026-01-14" in daemon.command("status")
    daemon.wait_until("a warning", lambda: daemon.told(kind="ModelShutsDown", level="warning"))

    # What waits is more than a batch is to be from now on: it is sealed. Its run may not cost
    # what it would, until it may.
    sender.many(5)
    price = {"money.prices.scripted.second-base.per_job": 5, "money.cap_per_run": 1}
    change(daemon, values={"queue.batch_size": 4, **price})
    daemon.wait_until("a run that waits", lambda: "waiting" in sender.run_states())
    change(daemon, values={"money.cap_per_run": 10})
    sender.decided(4)
    assert daemon.metric("learnd_settings_changes_total") == 6


def test_changes_survive_a_kill_are_listed_and_are_shown_with_their_source(
    daemon: Learnd,
) -> None:
    change(daemon, values={"gate.margin": 0.1}, reason="false alarms")
    change(daemon, values={"policy.min_confidence": 0.9, "finetune.training.plan": "worse"})
    daemon.kill()
    daemon.start()

    assert Sender(daemon).one(0.8) == "held"
    margin = shown(daemon, "gate.margin")
    assert margin["value"] == "0.1"
    assert margin["source"].startswith("store, by api, ")
    assert margin["source"].endswith(": false alarms")
    assert margin["changeable"]
    check = json.loads(daemon.command("check", "--json"))
    (checked,) = [one for one in check["settings"] if one["key"] == "gate.margin"]
    assert (checked["value"], checked["source"]) == ("0.1", margin["source"])
    stored = [one for one in check["findings"] if one["subject"] == "stored settings"]
    assert [one["grade"] for one in stored] == ["ok"]

    daemon.command("settings", "unset", "policy.min_confidence", "--reason", "back to normal")
    assert daemon.get("/v1/settings")["revision"] == 3
    assert shown(daemon, "policy.min_confidence")["source"] == "default"
    daemon.command("settings", "undo", "--revision", "1")
    told = daemon.command("settings", "history", "gate.margin")
    assert "undoes 1" in told
    assert "false alarms" in told
    assert "gate.margin" in daemon.command("settings", "get", "gate")


def test_what_is_refused_changes_nothing_and_says_what_to_do(daemon: Learnd) -> None:
    secret = ("settings", "set", "remote.openai_api_key=sk-2")
    daemon.command(*secret, status=ExitStatus.REFUSED)
    daemon.command("settings", "get", "gate.margn", status=ExitStatus.REFUSED)
    daemon.command("settings", "set", "gate.margin=2", status=ExitStatus.USAGE)
    daemon.command("settings", "undo", "--offline", status=ExitStatus.REFUSED)

    for key, status in (
        ("kafka.bootstrap_servers", 409),
        ("remote.llm_api_key", 409),
        ("gate.margn", 404),
        ("lines.nowhere.base_model", 404),
    ):
        answer = daemon.post("/v1/settings", {"values": {key: "sk-3"}})
        assert answer.status_code == status, key
        assert "sk-" not in answer.text
    assert daemon.post("/v1/settings", {"values": {"gate.margin": None}}).status_code == 409
    assert daemon.post("/v1/settings/undo", {}).status_code == 409
    wrong: list[dict[str, Any]] = [
        {"gate.margin": "much"},
        {"gate.margin": []},
        {"gate.margin": True},
        {"lines.coding.system_prompts.game": "x"},
        {"finetune.base_model": "x" * 30_000},
    ]
    for values in wrong:
        assert daemon.post("/v1/settings", {"values": values}).status_code == 422, values
    malformed: list[dict[str, Any]] = [
        {"values": {}},
        {"values": {"": 1}},
        {"values": [1]},
        {"values": {"gate.margin": 0.1}, "why": "x"},
        {"values": {"gate.margin": 0.1}, "if_revision": -1},
    ]
    for body in malformed:
        assert daemon.post("/v1/settings", body).status_code in (404, 422), body
    nan = daemon.post("/v1/settings", content=b'{"values": {"finetune.training.plan": NaN}}')
    assert nan.status_code == 422

    found = daemon.get("/v1/settings")
    assert found["revision"] == 0
    assert "sk-planted" not in json.dumps(found)


def test_of_many_that_change_one_revision_one_is_told_yes(daemon: Learnd) -> None:
    def ask(number: int) -> int:
        body = {"values": {"gate.margin": number / 100}, "if_revision": 0}
        return daemon.post("/v1/settings", body).status_code

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, range(1, 9)))

    assert sorted(answers) == [200, *[409] * 7]
    assert daemon.get("/v1/settings")["revision"] == 1


def test_a_daemon_that_a_stored_change_keeps_from_starting_is_helped_without_one(
    tmp_path: Path, nursery: Nursery
) -> None:
    with Learnd(tmp_path, GIVEN, nursery=nursery) as daemon:
        daemon.start()
        change(daemon, values={"gate.margin": 0.1})
        change(daemon, values={"queue.batch_size": 150})
        assert daemon.stop().status == 0

        config = tmp_path / "learnd.yaml"
        given = yaml.safe_load(config.read_text())
        config.write_text(yaml.safe_dump({**given, "queue": {"max_queue_size": 100}}))
        daemon.launch()
        assert daemon.wait_for_end().status == ExitStatus.USAGE
        said = daemon.log_tail()
        assert "max_queue_size 100 is smaller than batch_size 150" in said
        assert "learnd settings unset KEY --offline" in said

        kept = json.loads(daemon.command("settings", "get", "--offline", "--json"))
        assert [one["key"] for one in kept["settings"]] == ["gate.margin", "queue.batch_size"]
        assert "batch_size 150" in kept["fault"]
        daemon.command("settings", "undo", "--offline")
        daemon.start()
        assert shown(daemon, "gate.margin")["value"] == "0.1"
        assert shown(daemon, "queue.batch_size")["value"] == "20"


def test_a_change_at_one_daemon_holds_at_the_other(
    tmp_path: Path, nursery: Nursery, postgres_server: PostgresServer
) -> None:
    with postgres_server.database() as url:
        common = {**GIVEN, "database_url": url, "artifacts_dir": str(tmp_path / "artifacts")}
        for node in ("alpha", "beta"):
            (tmp_path / node).mkdir()
        with (
            Learnd(tmp_path / "alpha", {**common, "node": "alpha"}, nursery=nursery) as alpha,
            Learnd(tmp_path / "beta", {**common, "node": "beta"}, nursery=nursery) as beta,
        ):
            alpha.start()
            beta.start()
            change(alpha, values={"policy.min_confidence": 0.9}, reason="noise")
            wait_until("beta follows", lambda: beta.get("/v1/settings")["revision"] == 1)
            assert Sender(beta).one(0.8) == "held"
            assert shown(beta, "policy.min_confidence")["source"].endswith(": noise")

            change(beta, values={"policy.min_confidence": None}, if_revision=1)
            wait_until("alpha follows", lambda: alpha.get("/v1/settings")["revision"] == 2)
            assert Sender(alpha).one(0.8) == "queued"
