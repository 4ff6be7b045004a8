"""`learnd finetune`: train a model on a dataset file, without a daemon."""

from pathlib import Path
from typing import Annotated, Any

import typer

from daemon.commands.asking import AsJson, key_values, quiet

commands = typer.Typer()

EXIT_STATUSES = (
    "Exit status: 0 succeeded, prepared or evaluated; 1 failed, refused, or the dataset cannot be"
    " used; 2 wrong usage or settings; 130 interrupted, with a checkpoint that the same command"
    " goes on from."
)


@commands.command(epilog=EXIT_STATUSES)
def finetune(
    rows: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DATASET]", help="JSONL, in any format that `learnd dataset` knows."
        ),
    ] = None,
    dataset: Annotated[Path | None, typer.Option(help="The same, as an option.")] = None,
    validation: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Rows to evaluate on, never to train on.")
    ] = None,
    validation_share: Annotated[
        float | None,
        typer.Option(metavar="X", help="Without --validation: this share of the rows. [0.2]"),
    ] = None,
    provider: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="local (also: huggingface), openai, http, ... [local]"),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="M", help="The base model: a directory or a hub name.")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A LoRA artifact of M to go on from.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(metavar="N", help="training.epochs")] = None,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", help="training.minibatch_size")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(metavar="X", help="training.learning_rate")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any training setting: lora_rank=8."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Of the split and all else.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="F", help="YAML or JSON with the same keys.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Gets a folder for each job. [learnd-finetune]"),
    ] = None,
    tensorboard_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Gets TensorBoard's event files.")
    ] = None,
    max_cost: Annotated[
        str | None,
        typer.Option(metavar="X", help="Launch nothing that may cost more. [money.cap_per_run]"),
    ] = None,
    system_prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="For conversations without one.")
    ] = None,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Go on without lines that cannot be used.")
    ] = False,
    prepare_only: Annotated[
        bool, typer.Option("--prepare-only", help="Only check, split and write the dataset.")
    ] = False,
    evaluate_only: Annotated[
        bool, typer.Option("--evaluate-only", help="Only score M, or M and its adapter.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a model on a dataset file: dataset, training, evaluation, report. Needs no daemon.

    The same command goes on where it was interrupted.
    """
    import dataclasses
    import shlex
    import sys

    from daemon import finetuning
    from daemon.batch_config import read_config
    from daemon.printing import complain, show_json
    from finetune.batch_job import Status

    if prepare_only and evaluate_only:
        raise typer.BadParameter("--prepare-only and --evaluate-only exclude each other")
    if rows is not None and dataset is not None:
        raise typer.BadParameter("the dataset is named twice")
    told = {
        "dataset": dataset or rows,
        "validation": validation,
        "validation_share": validation_share,
        "provider": provider,
        "model": model,
        "adapter": adapter,
        "seed": seed,
        "output": output,
        "tensorboard_dir": tensorboard_dir,
        "max_cost": max_cost,
        "system_prompt": system_prompt,
        "skip_bad_rows": skip_bad_rows or None,
    }
    training: dict[str, Any] = {
        "epochs": epochs,
        "minibatch_size": batch_size,
        "learning_rate": learning_rate,
    }
    training = {**_known(training), **key_values(settings or [])}
    read = read_config(config, {**_known(told), "training": training})
    if read.dataset is None:
        raise typer.BadParameter("name a dataset file: `learnd finetune rows.jsonl --model M`")
    if read.model is None and not prepare_only:
        raise typer.BadParameter("--model is needed: a directory, or a name on the hub")
    if evaluate_only and read.validation is not None:
        raise typer.BadParameter("with --evaluate-only the dataset is what is evaluated on")
    mode = finetuning.Mode.FULL
    if prepare_only:
        mode = finetuning.Mode.PREPARE_ONLY
    elif evaluate_only:
        mode = finetuning.Mode.EVALUATE_ONLY
    quiet("warning")
    result = finetuning.finetune(read, mode)
    if as_json:
        show_json(dataclasses.asdict(result))
    else:
        finetuning.show(result, shlex.join(["learnd", *sys.argv[1:]]))
    if result.final_status in (Status.FAILED, Status.REFUSED):
        complain(result.message or "the training was refused")
    raise typer.Exit(finetuning.EXIT_STATUS[result.final_status])


def _known(told: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in told.items() if value is not None}
