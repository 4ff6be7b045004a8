"""A daemon that follows a file and is killed: every line once, whatever the moment."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.audit import Books, faults_of, require_none
from tests.services.learnd import Crash, Learnd

N_FIRST, N_ALL = 9_000, 9_500


def _lines(first: int, end: int) -> bytes:
    """Outputs without ids: what is read twice would be stored twice."""
    return b"".join(
        json.dumps(
            {
                "producer": "studio",
                "task_type": "coding",
                "task_id": f"t-{number}",
                "prompt": f"question {number}",
                "output": f"answer {number}",
            }
        ).encode()
        + b"\n"
        for number in range(first, end)
    )


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("watched", "crash"),
    [
        # What was never read is known by no position: only a glob finds it under a new name.
        ("outputs.jsonl*", Crash("Intake.claim after its commit")),
        ("outputs.jsonl*", Crash("Intake.append before its commit", nth=3)),
        ("", Crash("Intake.append before its commit", nth=3)),
        ("", Crash("Intake.append after its commit", nth=3)),
    ],
    ids=[
        "after the claim",
        "before a commit, under another name",
        "before a commit",
        "after its commit",
    ],
)
def test_a_file_is_stored_once_however_the_daemon_dies(
    watched: str, crash: Crash, tmp_path: Path
) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    file = inbox / "outputs.jsonl"
    file.write_bytes(_lines(0, N_FIRST)[:-20])
    settings: dict[str, Any] = {
        "intake": {"files": {"outputs": [str(inbox / watched)]}},
        "finetune": {"provider": "scripted"},
        "lines": {"coding": {}},
    }
    with Learnd(tmp_path, settings) as daemon:
        books = Books(daemon.data_dir)
        daemon.launch(crash)
        daemon.wait_for_crash()
        require_none(faults_of(daemon.data_dir), when="after the crash")
        assert books.number("select count(*) from events") < N_FIRST - 1

        # While nobody looks, the last line is completed and the file rotated.
        with file.open("ab") as appending:
            appending.write(_lines(N_FIRST - 1, N_FIRST)[-20:])
        file.rename(inbox / "outputs.jsonl.1")
        file.write_bytes(_lines(N_FIRST, N_ALL))

        daemon.start()
        daemon.wait_until(
            "every line", lambda: books.number("select count(*) from events") >= N_ALL
        )
        half = b'{"event_id": "half'
        with file.open("ab") as appending:
            appending.write(half)
        daemon.wait_until(
            "half a line on the metrics page",
            lambda: daemon.metric("learnd_file_lag_bytes") == len(half),
        )
        assert daemon.stop().status == 0
    require_none(faults_of(daemon.data_dir), when="after the restart")
    stored = [row["task_id"] for row in books.rows("select task_id from events")]
    assert sorted(stored) == sorted(f"t-{number}" for number in range(N_ALL))
    assert books.number("select count(*) from dead_letters") == 0
