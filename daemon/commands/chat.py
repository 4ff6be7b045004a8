"""`learnd chat`: talk to a version, on the machine that has its files, or to its service."""

from typing import TYPE_CHECKING, Annotated

import typer

from daemon.commands.asking import AsJson, Config, DataDir, Url, connected, quiet, settings_of

if TYPE_CHECKING:
    from daemon.settings import Settings

commands = typer.Typer()


@commands.command()
def chat(
    model: Annotated[
        str, typer.Argument(metavar="LINE[@V]", help="A line's champion, or one version.")
    ],
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", help="One prompt; without it, a conversation.")
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", help="System prompt. [the line's, if it has one]")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=1_048_576)] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, max=10.0)] = 0.0,
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Try a version, on the machine that has its files; a remote one answers at its service."""
    from daemon.chat import TaintedModelError, converse, open_chat, opening, show_token
    from daemon.client import part
    from daemon.printing import show_json

    if as_json and prompt is None:
        raise typer.BadParameter("--json needs a prompt: -p PROMPT")
    line, _, version = model.partition("@")
    with connected(url, config, data_dir) as daemon:
        found = daemon.get(f"/v1/models/{part(line)}/versions/{part(version or 'champion')}")
    if found["summary"]["state"] == "tainted":
        raise TaintedModelError(line, found["summary"]["version"])
    settings = settings_of(config, data_dir)
    system = system if system is not None else _system_prompt(settings, line)
    quiet("warning")
    with open_chat(
        line,
        found["loading"],
        settings,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
    ) as opened:
        if prompt is None:
            converse(opened, system)
            return
        messages = [*opening(system), {"role": "user", "content": prompt}]
        answer = opened.answer(messages, (lambda _: None) if as_json else show_token)
    if as_json:
        version = found["summary"]["version"]
        show_json({"line": line, "version": version, "prompt": prompt, "answer": answer})
    else:
        print()


def _system_prompt(settings: "Settings", line: str) -> str | None:
    """The prompt that the line trains with, when there is no doubt which."""
    configured = settings.model_lines().get(line)
    prompts = set(configured.system_prompts.values()) if configured is not None else set()
    return prompts.pop() if len(prompts) == 1 else None
