"""Whatever a validator does in the screening process, the daemon goes on, and says what it did."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from consumers.screening.in_force import validators_in_force
from consumers.screening.process import ProcessLimits, ScreeningProcess
from learning.screening import (
    CannotScreenError,
    PiiMode,
    Screened,
    ScreeningOutcome,
    ScreeningRules,
    TaskRules,
)
from tests.builders import output
from tests.screening import install
from tests.waiting import wait_until

RULES = ScreeningRules(TaskRules(secrets=False, pii=PiiMode.OFF), seconds=1.0)


@pytest.fixture
async def process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ScreeningProcess]:
    install(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    started = ScreeningProcess(ProcessLimits(memory_bytes=512 * 2**20))
    yield started
    await started.close()


async def said(process: ScreeningProcess, prompt: str, rules: ScreeningRules = RULES) -> Screened:
    return await process.screen(output(prompt=prompt), rules)


async def test_an_output_that_nobody_complains_of_passes_at_a_measured_cost(
    process: ScreeningProcess,
) -> None:
    screened = await said(process, "fine")
    assert screened.outcome is ScreeningOutcome.PASSED
    assert screened.seconds.keys() == {"naughty", "next"}


async def test_a_complaint_stops_the_output(process: ScreeningProcess) -> None:
    screened = await said(process, "refuse")
    assert screened.outcome is ScreeningOutcome.STOPPED
    assert screened.reason == "naughty: no"


@pytest.mark.parametrize("how", ["hang", "hang in C"])
async def test_one_that_hangs_stops_the_output_and_costs_the_process(
    process: ScreeningProcess, how: str
) -> None:
    assert (await said(process, "fine")).outcome is ScreeningOutcome.PASSED
    pid = process.pid
    assert pid is not None
    screened = await said(process, how, ScreeningRules(RULES.default, seconds=0.2))
    assert screened.reason == "naughty: did not answer within 0.2 s"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert (await said(process, "fine")).outcome is ScreeningOutcome.PASSED


async def test_one_that_ends_its_process_stops_the_output_after_a_second_try(
    process: ScreeningProcess,
) -> None:
    assert (await said(process, "crash")).reason == (
        "naughty: ended the process that it ran in (exit status 7)"
    )
    assert (await said(process, "fault")).reason == (
        "naughty: ended the process that it ran in (SIGSEGV)"
    )
    assert (await said(process, "fine")).outcome is ScreeningOutcome.PASSED


async def test_a_process_that_was_killed_from_outside_is_no_fault_of_the_output(
    process: ScreeningProcess, tmp_path: Path
) -> None:
    screened = await process.screen(output(str(tmp_path / "seen"), prompt="once"), RULES)
    assert screened.outcome is ScreeningOutcome.PASSED


async def test_one_that_was_killed_while_nothing_was_asked_is_started_anew(
    process: ScreeningProcess,
) -> None:
    await said(process, "fine")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    assert (await said(process, "fine")).outcome is ScreeningOutcome.PASSED


@pytest.mark.parametrize("how", ["bomb", "many"])
async def test_a_memory_bomb_stops_the_output(process: ScreeningProcess, how: str) -> None:
    screened = await said(process, how, ScreeningRules(RULES.default, seconds=30.0))
    assert screened.reason == "naughty: ran out of memory"
    assert (await said(process, "fine")).outcome is ScreeningOutcome.PASSED


async def test_an_error_stops_the_output_without_its_message(process: ScreeningProcess) -> None:
    assert (await said(process, "break")).reason == "naughty: broke on it: ValueError"


async def test_an_answer_that_is_none_stops_the_output(process: ScreeningProcess) -> None:
    assert (await said(process, "junk")).reason == "naughty: answered nonsense: int"


@pytest.mark.parametrize("how", ["print", "read"])
async def test_one_that_prints_or_reads_disturbs_nobody(
    process: ScreeningProcess, how: str
) -> None:
    assert (await said(process, how)).outcome is ScreeningOutcome.PASSED


async def test_what_one_scrubs_the_next_one_sees(process: ScreeningProcess) -> None:
    screened = await said(process, "scrub")
    assert screened.reason == "next: saw stars"
    assert [str(one) for one in screened.scrubbed] == ["naughty: 1 thing"]
    assert screened.event is not None
    assert screened.event.output == "***"


async def test_a_task_type_can_go_without_a_validator(process: ScreeningProcess) -> None:
    rules = ScreeningRules(
        RULES.default,
        {"normalize": TaskRules(secrets=False, pii=PiiMode.OFF, skip=["naughty"])},
        seconds=1.0,
    )
    assert (await said(process, "refuse", rules)).outcome is ScreeningOutcome.PASSED
    assert await process.validators(rules, "audio") == ["naughty", "next"]
    assert await process.validators(rules, "normalize") == ["next"]


async def test_switched_off_no_process_is_started(process: ScreeningProcess) -> None:
    screened = await said(process, "refuse", ScreeningRules(RULES.default, enabled=False))
    assert screened == Screened()
    assert process.pid is None


async def test_a_validator_that_cannot_be_loaded_is_named_and_nothing_passes(
    process: ScreeningProcess, tmp_path: Path
) -> None:
    (tmp_path / "naughty_package.py").write_text("import nothing_of_that_name")
    for _ in range(2):
        with pytest.raises(CannotScreenError, match="nothing_of_that_name"):
            await said(process, "fine")
    assert process.pid is None


async def test_many_ask_at_once_and_each_gets_its_own_answer(process: ScreeningProcess) -> None:
    prompts = ["fine", "refuse", "crash", "fine", "junk"]
    answers = await asyncio.gather(*(said(process, prompt) for prompt in prompts))
    assert [one.reason.partition(" ")[2] for one in answers] == [
        "",
        "no",
        "ended the process that it ran in (exit status 7)",
        "",
        "answered nonsense: int",
    ]


async def test_a_question_that_is_called_off_is_not_answered_to_the_next_one(
    process: ScreeningProcess,
) -> None:
    await said(process, "fine")
    asking = asyncio.create_task(said(process, "hang", ScreeningRules(RULES.default, seconds=1.0)))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (await said(process, "refuse")).reason == "naughty: no"


async def test_a_process_with_nothing_to_do_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = ScreeningProcess(ProcessLimits(idle=timedelta(seconds=0.05)))
    await said(process, "fine")
    pid = process.pid
    assert pid is not None
    await asyncio.to_thread(wait_until, "it is ended", lambda: not _lives(pid))
    assert (await said(process, "fine")).outcome is ScreeningOutcome.PASSED
    await process.close()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_other_validators_are_other_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = validators_in_force()
    install(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "naughty" in validators_in_force()
    assert RULES.digest(before) != RULES.digest(validators_in_force())
