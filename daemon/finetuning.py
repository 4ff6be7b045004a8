"""`learnd finetune`: one batch training on this machine, without a daemon.

Lends a job (finetune/batch_job.py) the provider that it names, shows how far it is, and makes
of Ctrl-C an end with a checkpoint. Which options there are is in commands/finetune.py.
"""

import asyncio
import contextlib
import dataclasses
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final

from daemon.batch_config import BatchConfig
from daemon.batch_costs import bill_of, quote_of
from daemon.exit_status import ExitStatus
from daemon.printing import plain, say, show_pairs
from daemon.settings import LOCAL_PROVIDERS
from daemon.settings_sources import SettingsError, load
from daemon.training_progress import TrainingProgress
from finetune.batch_job import BatchJob, Result, Status
from finetune.datasets.batch import BatchDataset
from finetune.providers import ProviderFactory, Workbench, Workshop, factory_of
from finetune.trainer_process import TrainerHost, TrainerLimits
from learning.budget import Basis, Quote, shown
from learning.ports import JobFailedError

TRAINER_LOG: Final = "trainer.log"
PROVIDERS: Final = "providers"
NO_PROGRESS: Final = timedelta(hours=12)
"""To fetch a large model may take long, and there is a person who can end it."""

EXIT_STATUS: Final = {
    Status.SUCCEEDED: ExitStatus.DONE,
    Status.PREPARED: ExitStatus.DONE,
    Status.EVALUATED: ExitStatus.DONE,
    Status.REFUSED: ExitStatus.REFUSED,
    Status.FAILED: ExitStatus.REFUSED,
    Status.INTERRUPTED: ExitStatus.INTERRUPTED,
}


class Mode(StrEnum):
    """How much of the way is gone."""

    FULL = "full"
    PREPARE_ONLY = "prepare_only"
    EVALUATE_ONLY = "evaluate_only"


def finetune(config: BatchConfig, mode: Mode) -> Result:
    """Do it, and tell what came of it; progress goes to stderr.

    A training that failed or was interrupted is a result. Raises LearningError for everything
    that is wrong before it: SettingsError, DatasetError, JobInUseError and those of providers.
    """
    plan = config.plan(evaluate_only=mode is Mode.EVALUATE_ONLY)
    job = BatchJob(plan, config.output / plan.job_id())
    with job.alone():
        if mode is Mode.PREPARE_ONLY:
            return job.result(job.prepare(), Status.PREPARED)
        open_workbench = factory_of(plan.provider)  # what does not exist is said first
        if mode is Mode.FULL and (known := job.finished()) is not None:
            return known
        dataset = job.prepare()
        quote = quote_of(plan, dataset, config) if mode is Mode.FULL else None
        if quote is not None:
            print(f"estimate: {quote.in_words()}", file=sys.stderr)
        try:
            return asyncio.run(_work(job, dataset, config, mode, open_workbench, quote))
        except asyncio.CancelledError:
            return job.result(dataset, Status.INTERRUPTED)
        except JobFailedError as error:
            failed = job.result(dataset, Status.FAILED)
            return dataclasses.replace(failed, message=str(error))
        except (ConnectionError, TimeoutError) as error:
            failed = job.result(dataset, Status.FAILED)
            return dataclasses.replace(failed, message=f"the provider did not answer: {error!r}")


async def _work(
    job: BatchJob,
    dataset: BatchDataset,
    config: BatchConfig,
    mode: Mode,
    open_workbench: ProviderFactory,
    quote: Quote | None,
) -> Result:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        # The second one comes through to a trainer that is writing its checkpoint: it is killed.
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    async with _workbench(job, config, open_workbench) as workbench:
        if mode is Mode.EVALUATE_ONLY:
            judged = await job.evaluate_only(workbench, dataset)
            result = job.result(dataset, Status.EVALUATED)
            return dataclasses.replace(result, evaluation=dataclasses.asdict(judged))
        with TrainingProgress() as progress:
            trained = await job.train(workbench, dataset, progress)
        for note in trained.measurements.get("notes", ()):
            print(f"note: {plain(note)}", file=sys.stderr)
        evaluation = await job.evaluate(workbench, dataset, trained)
        told_tokens = trained.measurements.get("trained_tokens")
        costs = bill_of(quote, told_tokens) if quote is not None else None
        return await asyncio.to_thread(job.finish, dataset, trained, evaluation, costs)


@contextlib.asynccontextmanager
async def _workbench(
    job: BatchJob, config: BatchConfig, open_workbench: ProviderFactory
) -> AsyncIterator[Workbench]:
    plan = job.plan
    async with TrainerHost(
        job.artifacts,
        job.folder / TRAINER_LOG,
        limits=TrainerLimits(no_progress=NO_PROGRESS),
    ) as host:
        workshop = Workshop(
            job.folder / PROVIDERS,
            job.artifacts,
            host,
            lambda: plan.training,
            config.tensorboard_dir,
            **_services(plan.provider),
        )
        async with open_workbench(workshop) as workbench:
            try:
                workbench.provider.check_training(plan.training)
            except ValueError as error:
                raise SettingsError([f"training: {error}"]) from error
            yield workbench


def _services(provider: str) -> Mapping[str, Any]:
    """What a workshop knows of services elsewhere: as a daemon, from its settings.

    Who trains on this machine needs none of them. Raises SettingsError.
    """
    if provider in LOCAL_PROVIDERS:
        return {}
    settings = load()
    return {
        "training_service": settings.remote.training_service(),
        "chat_service": settings.remote.chat_service(),
        "chat_rules": settings.remote.chat_rules(),
        "openai_rules": settings.remote.openai_rules(),
        "fine_tune_endpoint": settings.fine_tune_endpoint(),
    }


def show(result: Result, command: str) -> None:
    """The result in words; `command` is what was typed."""
    evaluation = result.evaluation or {}
    slices = evaluation.get("slices") or [{}]
    show_pairs(
        [
            ("final status", result.final_status),
            ("message", result.message),
            ("dataset file", result.dataset_file),
            ("file id", result.file_id),
            ("job id", result.job_id),
            ("artifact", result.artifact),
            ("validation rows", slices[0].get("n_rows")),
            ("loss", _before_after(slices[0], "loss", ".4g")),
            ("exact answers", _before_after(slices[0], "exact", ".1%")),
            (
                "the gate would",
                f"{evaluation['verdict']}: {evaluation['reason']}" if evaluation else None,
            ),
            ("cost", _cost(result.costs)),
            ("report", result.report),
        ]
    )
    match result.final_status:
        case Status.SUCCEEDED:
            say("the same command shows this again; another seed or setting makes another job")
        case Status.FAILED | Status.INTERRUPTED:
            say(f"the same command goes on from the last checkpoint: {command}")
        case _:
            pass


def _cost(costs: Mapping[str, Any] | None) -> str | None:
    if costs is None:
        return None
    is_known = costs.get("basis") == Basis.REPORTED
    amount = Decimal(costs.get("actual") or costs["at_most"])
    return ("" if is_known else "at most ") + shown(amount, costs["currency"])


def _before_after(part: Mapping[str, Any], name: str, form: str) -> str | None:
    """`before -> after`, or the one there is."""
    numbers = [part.get(f"{name}_{when}") for when in ("before", "after")]
    return " -> ".join(f"{one:{form}}" for one in numbers if one is not None) or None
