"""`learnd import` on a running daemon: from a file to a promoted version, through SIGKILL."""

import json
import re
from pathlib import Path

from tests.acceptance.audit import faults_of, require_none
from tests.services.learnd import Learnd

SETTINGS = {
    "finetune": {"provider": "scripted", "base_model": "scripted-base"},
    "lines": {"coding": {}},
}


def test_a_file_becomes_a_version_that_knows_its_rows_whatever_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "lessons.json"
    rows = [{"instruction": f"add {n}", "input": "", "output": f"{n} + 1"} for n in range(127)]
    file.write_text(json.dumps([*rows, {"instruction": "nothing", "output": ""}], indent=1))
    order = ("import", str(file), "--line", "coding", "--approved")
    with Learnd(tmp_path, SETTINGS) as daemon:
        daemon.start()
        said = daemon.command(*order)
        daemon.kill()
        daemon.start()
        daemon.wait_until(
            "a promoted version",
            lambda: daemon.get("/v1/models/coding/champion")["summary"]["version"] == "1.0.1",
        )
        again = daemon.command(*order)
        found = re.search(r"Batch (b-\w+): 101 train, 26 held out", said)
        assert found is not None, said
        batch = daemon.command("lineage", found.group(1))
        version = daemon.command("lineage", "coding@1.0.1")
        assert daemon.stop().status == 0
        require_none(faults_of(daemon.data_dir), when="at the end")
    assert "empty_text: the answer is empty" in said
    assert "127 were known already" in again
    assert f"batch {found.group(1)}" in again
    assert "No batch was sealed" in again
    assert "lessons.json, sha256 " in batch
    assert "101 trained it and its parents" in version
