"""Threads follow the control group's quota."""

from pathlib import Path

import pytest

from finetune.trainer.cores import limit_threads


@pytest.mark.parametrize(
    ("quota", "threads"),
    [("200000 100000", "2"), ("150000 100000", "2"), ("10000 100000", "1"), ("max 100000", None)],
)
def test_no_more_threads_than_the_quota_has_cores(
    tmp_path: Path, quota: str, threads: str | None
) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    environment: dict[str, str] = {}

    limit_threads(environment, tmp_path / "cpu.max")

    assert environment.get("OMP_NUM_THREADS") == threads


def test_a_number_that_somebody_has_set_stays(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    environment = {"OMP_NUM_THREADS": "7"}

    limit_threads(environment, tmp_path / "cpu.max")

    assert environment == {"OMP_NUM_THREADS": "7"}


def test_without_control_groups_nothing_is_set(tmp_path: Path) -> None:
    environment: dict[str, str] = {}

    limit_threads(environment, tmp_path / "absent")

    assert environment == {}
