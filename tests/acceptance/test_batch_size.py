"""A batch size that an operator sets is the daemon's, also after it was killed."""

import json
from pathlib import Path

from tests.services.learnd import Learnd


def test_a_pinned_batch_size_survives_a_kill_and_can_be_undone(tmp_path: Path) -> None:
    with Learnd(tmp_path, {}) as learnd:
        learnd.start()
        told = learnd.command("batch-size", "coding", "--set", "8", "--reason", "a small model")
        assert told == "coding: batch size 20 -> 8 (a small model)\n"
        learnd.kill()
        learnd.start()

        kept = json.loads(learnd.command("batch-size", "coding", "--json"))
        assert (kept["current"]["size"], kept["current"]["pinned"]) == (8, True)
        (step,) = kept["history"]
        assert (step["before"], step["after"]) == ("20", "8")
        assert step["actor"].startswith("cli")

        learnd.command("batch-size", "coding", "--set", "20")
        learnd.command("batch-size", "coding", "--auto")
        released = json.loads(learnd.command("batch-size", "coding", "--json"))
        assert (released["current"]["size"], released["current"]["pinned"]) == (20, False)
