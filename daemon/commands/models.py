"""`learnd models`: what a service elsewhere has trained for us."""

from typing import Annotated, Literal

import typer

from daemon.commands.asking import AsJson, Config, quiet, settings_of

commands = typer.Typer()


@commands.command()
def models(
    provider: Annotated[
        Literal["openai"], typer.Option("--provider", help="Whose service is asked.")
    ] = "openai",
    jobs: Annotated[
        bool, typer.Option("--jobs", help="All fine-tuning jobs, not only what came of them.")
    ] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """List the models that were fine-tuned at a service, or its jobs. Needs no daemon."""
    from daemon import remote_models
    from daemon.printing import show_json

    quiet("error")
    found = [
        remote_models.as_json(job)
        for job in remote_models.openai_jobs(settings_of(config, None).remote)
        if jobs or job.fine_tuned_model is not None
    ]
    if as_json:
        show_json(found)
    elif jobs:
        remote_models.show_jobs(found)
    else:
        remote_models.show_models(found)
