"""Versions and the champion: promoted, forced, rolled back, and every move written down."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Table, insert
from sqlalchemy.exc import IntegrityError

from daemon.store import registry
from daemon.store.registry import (
    NothingToRollBackError,
    PromotionRefusedError,
    UnknownLineError,
    UnknownVersionError,
)
from daemon.store.tables import alias_history, aliases, model_lines, transitions, versions
from learning.errors import ConflictError, NotFoundError, VersionTextError
from learning.gate import Outcome
from learning.lifecycle import VersionState
from learning.ports import ModelReference
from tests.builders import later, output
from tests.contract.driver import LINE, Driver, everything

RELEASED, SUPERSEDED = VersionState.RELEASED, VersionState.SUPERSEDED
ROLLED_BACK, REFUSED = VersionState.ROLLED_BACK, VersionState.REFUSED


async def states(drive: Driver) -> dict[str, str]:
    """The state of each version by its number."""
    return {row.release or row.candidate: row.state for row in await drive.rows(versions)}


async def released(drive: Driver, n: int) -> None:
    """Release 1.0.1 to 1.0.n, each trained on from the one before."""
    for number in range(1, n + 1):
        assert await drive.release(output(f"task-{number}")) == f"1.0.{number}"


async def refused(drive: Driver, task_id: str = "bad") -> str:
    """A candidate that the gate rejected; its number."""
    run_id = await drive.run_of(output(task_id))
    await drive.finish(run_id, Outcome.REJECT)
    rows = await drive.rows(versions, versions.c.run_id == run_id)
    return str(rows[0].candidate)


# --- lines ----------------------------------------------------------------------------


async def test_a_line_starts_at_1_0_0_with_its_declared_base(drive: Driver) -> None:
    await drive.store.registry.ensure_lines([LINE], drive.now)

    (row,) = await drive.rows(versions)
    assert (row.release, row.state, row.method) == ("1.0.0", RELEASED, "base")
    assert (row.base_model, row.task_types, row.parent_id) == ("tiny", ["normalize"], None)
    assert await drive.champion() == "1.0.0"
    (move,) = await drive.rows(alias_history)
    assert (move.from_id, move.to_id, move.cause) == (None, row.id, "declare")


async def test_declaring_a_line_again_changes_nothing(drive: Driver) -> None:
    await drive.store.registry.ensure_lines([LINE], drive.now)
    await released(drive, 1)
    before = await everything(drive.store.database)

    drive.wait(days=1)
    await drive.store.registry.ensure_lines([LINE], drive.now)

    assert await everything(drive.store.database) == before


async def test_two_daemons_declare_a_line_once(drive: Driver) -> None:
    await asyncio.gather(*(drive.store.registry.ensure_lines([LINE], drive.now) for _ in range(4)))

    assert len(await drive.rows(versions)) == 1


async def test_a_line_without_a_base_model_has_no_version_yet(drive: Driver) -> None:
    await drive.store.registry.ensure_lines([replace(LINE, base_model=None)], drive.now)

    assert await drive.rows(model_lines) == []


async def test_another_base_model_is_noted_and_leaves_the_champion(drive: Driver) -> None:
    await drive.store.registry.ensure_lines([LINE], drive.now)
    await drive.store.registry.ensure_lines([replace(LINE, base_model="large")], drive.now)

    assert (await drive.rows(model_lines))[0].base_model == "large"
    assert await drive.store.registry.loadable("normalize", "champion") == ModelReference("tiny")


async def test_the_database_itself_refuses_a_second_champion_and_a_used_number(
    drive: Driver,
) -> None:
    await released(drive, 1)
    (base, first) = await drive.rows(versions)
    (champion,) = await drive.rows(aliases)
    same_number = {**first._asdict(), "id": None, "run_id": None}

    async def write(table: Table, row: dict[str, Any]) -> None:
        await drive.store.database.write(lambda tx: tx.execute(insert(table), row))

    for table, row in (
        (aliases, {**champion._asdict(), "version_id": base.id}),
        (versions, {**same_number, "candidate": None}),
        (versions, {**same_number, "release": None}),
    ):
        with pytest.raises(IntegrityError):
            await write(table, row)


# --- finding --------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["1.0.1", "v1.0.1", "1.0.1-rc.1", "v1.0.1-rc.1", "champion"])
async def test_a_version_is_found_by_any_of_its_names(
    drive: Driver, number: str, tmp_path: Path
) -> None:
    await released(drive, 1)

    found = await drive.store.registry.loadable("normalize", number)

    assert found.base_model == "tiny"
    assert found.adapter is not None
    assert found.adapter.parent == tmp_path / "artifacts"


async def test_what_is_not_there_is_named(drive: Driver) -> None:
    await released(drive, 1)
    loadable = drive.store.registry.loadable

    with pytest.raises(UnknownVersionError, match=r"normalize has no version 9.9.9") as version:
        await loadable("normalize", "9.9.9")
    with pytest.raises(UnknownLineError, match="no model line 'nowhere'") as line:
        await loadable("nowhere", "1.0.0")
    with pytest.raises(UnknownLineError):
        await loadable("nowhere", "champion")
    with pytest.raises(VersionTextError):
        await loadable("normalize", "latest")

    assert isinstance(version.value, NotFoundError)
    assert isinstance(line.value, NotFoundError)


# --- promoting by hand ----------------------------------------------------------------


async def test_a_refused_candidate_is_promoted_only_by_force(drive: Driver) -> None:
    number = await refused(drive)
    before = await everything(drive.store.database)

    with pytest.raises(PromotionRefusedError, match="--force"):
        await drive.promote(number, force=False)
    assert await everything(drive.store.database) == before

    promoted = await drive.promote(number)

    assert (promoted.version, promoted.replaced, promoted.forced) == ("1.0.1", "1.0.0", True)
    assert await states(drive) == {"1.0.0": SUPERSEDED, "1.0.1": RELEASED}
    move = (await drive.rows(alias_history))[-1]
    assert (move.cause, move.actor, move.reason, move.at) == ("force", "ann", "I know", later())


async def test_a_version_that_was_released_is_not_promoted_again(drive: Driver) -> None:
    await released(drive, 2)

    with pytest.raises(PromotionRefusedError, match="is the champion already"):
        await drive.promote("1.0.2")
    with pytest.raises(PromotionRefusedError, match=r"learnd rollback normalize --to 1.0.1"):
        await drive.promote("1.0.1")
    with pytest.raises(PromotionRefusedError):
        await drive.promote("1.0.0")


async def test_a_forced_candidate_gets_the_number_that_is_next_now(drive: Driver) -> None:
    number = await refused(drive)
    await released(drive, 2)

    assert number == "1.0.1-rc.1"
    assert (await drive.promote(number)).version == "1.0.3"


async def test_of_two_hands_one_promotes(drive: Driver) -> None:
    one, two = await refused(drive, "one"), await refused(drive, "two")

    done = await asyncio.gather(
        *(drive.promote(number) for number in (one, one, two)), return_exceptions=True
    )

    numbers = sorted(each.version for each in done if not isinstance(each, BaseException))
    assert numbers == ["1.0.1", "1.0.2"]
    assert sum(isinstance(each, PromotionRefusedError) for each in done) == 1


async def test_who_looked_before_the_champion_moved_moves_nothing(drive: Driver) -> None:
    one, two = await refused(drive, "one"), await refused(drive, "two")
    stale = await drive.store.database.read(lambda tx: registry.champion_of(tx, LINE.name))
    row = await drive.version(two)
    await drive.promote(one)
    await drive.rollback("1.0.0")  # back at the same version, but not at the same time
    before = await everything(drive.store.database)

    with pytest.raises(PromotionRefusedError, match="moved by another hand"):
        await drive.store.database.write(
            lambda tx: registry.promote(
                tx, stale, row, cause="force", reason="", actor="ann", now=drive.now
            )
        )

    assert await everything(drive.store.database) == before


async def test_a_failure_in_the_middle_of_a_promotion_leaves_the_champion(
    drive: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = await refused(drive)
    before = await everything(drive.store.database)

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(registry, "spend_batch", fail)
    with pytest.raises(ZeroDivisionError):
        await drive.promote(number)

    assert await everything(drive.store.database) == before


# --- rolling back ---------------------------------------------------------------------


async def test_a_rollback_goes_to_the_version_before(drive: Driver) -> None:
    await released(drive, 2)

    done = await drive.rollback()

    assert (done.version, done.left, done.actor) == ("1.0.1", "1.0.2", "ann")
    assert await states(drive) == {"1.0.0": SUPERSEDED, "1.0.1": RELEASED, "1.0.2": ROLLED_BACK}
    move = (await drive.rows(alias_history))[-1]
    assert (move.cause, move.reason) == ("rollback", "it was worse")
    assert (await drive.rows(aliases))[0].revision == 4


async def test_rolling_back_twice_walks_back(drive: Driver) -> None:
    await released(drive, 3)

    assert [(await drive.rollback()).version for _ in range(3)] == ["1.0.2", "1.0.1", "1.0.0"]

    with pytest.raises(NothingToRollBackError, match=r"1.0.0 is the first version") as caught:
        await drive.rollback()
    assert isinstance(caught.value, ConflictError)


async def test_a_rollback_may_name_where_to_go(drive: Driver) -> None:
    await released(drive, 3)

    assert (await drive.rollback("v1.0.1")).version == "1.0.1"

    assert await states(drive) == {
        "1.0.0": SUPERSEDED,
        "1.0.1": RELEASED,
        "1.0.2": ROLLED_BACK,
        "1.0.3": ROLLED_BACK,
    }


async def test_a_rollback_can_be_taken_back(drive: Driver) -> None:
    await released(drive, 3)
    await drive.rollback("1.0.0")

    await drive.rollback("1.0.3")

    assert await states(drive) == {
        "1.0.0": SUPERSEDED,
        "1.0.1": SUPERSEDED,
        "1.0.2": SUPERSEDED,
        "1.0.3": RELEASED,
    }
    assert (await drive.rollback()).version == "1.0.2"


async def test_a_rollback_leads_to_released_versions_only(drive: Driver) -> None:
    number = await refused(drive)
    await released(drive, 1)

    with pytest.raises(PromotionRefusedError, match="was never released"):
        await drive.rollback(number)
    with pytest.raises(PromotionRefusedError, match="is the champion already"):
        await drive.rollback("1.0.1")
    with pytest.raises(UnknownVersionError):
        await drive.rollback("7.0.0")
    with pytest.raises(VersionTextError):
        await drive.rollback("the good one")


async def test_an_unknown_line_is_named(drive: Driver) -> None:
    drive.configure(name="nowhere")

    with pytest.raises(UnknownLineError):
        await drive.rollback()
    with pytest.raises(UnknownLineError):
        await drive.promote("1.0.1-rc.1")


async def test_a_number_is_not_given_again_after_a_rollback(drive: Driver) -> None:
    await released(drive, 2)
    await drive.rollback("1.0.0")

    assert await drive.release(output("new")) == "1.0.3"
    row = await drive.version("1.0.3")
    assert row.parent_id == (await drive.version("1.0.0")).id


async def test_the_version_before_is_the_one_that_was_replaced_not_the_next_lower_number(
    drive: Driver,
) -> None:
    await released(drive, 2)
    await drive.rollback("1.0.0")
    await drive.release(output("new"))

    assert (await drive.rollback()).version == "1.0.0"


async def test_a_default_rollback_does_not_lead_to_what_was_rolled_back(drive: Driver) -> None:
    number = await refused(drive)  # made from 1.0.0
    await released(drive, 1)
    assert (await drive.promote(number)).version == "1.0.2"
    await drive.rollback("1.0.0")
    await drive.rollback("1.0.2")
    assert (await states(drive))["1.0.1"] == ROLLED_BACK  # replaced by 1.0.2, but no part of it

    assert (await drive.rollback()).version == "1.0.0"


async def test_a_declared_base_is_never_a_mistake(drive: Driver) -> None:
    await released(drive, 1)
    drive.configure(base_model="large")
    assert await drive.release(output("new base")) == "2.0.0"

    await drive.rollback("1.0.0")
    await drive.rollback("2.0.0")

    assert await states(drive) == {
        "1.0.0": SUPERSEDED,
        "1.0.1": ROLLED_BACK,
        "2.0.0": RELEASED,
    }
    assert (await drive.rollback()).version == "1.0.0"


async def test_every_step_of_a_version_is_in_its_history(drive: Driver) -> None:
    await released(drive, 1)
    await drive.rollback()
    await drive.rollback("1.0.1")

    row = await drive.version("1.0.1")
    steps = [
        (each.from_state, each.to_state, each.actor)
        for each in await drive.rows(
            transitions, transitions.c.kind == "version", transitions.c.ref == str(row.id)
        )
    ]
    assert steps == [
        ("candidate", "released", "runner"),
        ("released", "rolled_back", "ann"),
        ("rolled_back", "released", "ann"),
    ]
