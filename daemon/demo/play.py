"""Open what the demo needs, tell the story, close it again.

Composition only: the broker, the trainer, the daemon and the story meet here. The daemon
is the real one and runs in this process, with its log in a file.
"""

import asyncio
import contextlib
import importlib.util
import logging
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from daemon.app import Daemon, build_daemon
from daemon.client import Client
from daemon.demo import base_model
from daemon.demo.broker import Broker
from daemon.demo.home import LINES, Home
from daemon.demo.screen import Screen
from daemon.demo.story import Story
from daemon.demo.stream import Stream
from daemon.demo.watch import Watch
from daemon.printing import Column, complain, duration
from daemon.settings import Settings
from finetune.artifacts import ArtifactStore
from finetune.trainer.protocol import MakeTinyModelProgress
from finetune.trainer_process import TrainerHost
from learning.errors import LearningError
from monitoring.logs import configure

DEFAULT_HOME: Final = Path("learnd-demo")
SEED: Final = 7
TRAINER_IDLE: Final = timedelta(minutes=10)
"""Longer than the story: the trainer that makes the base answers the prompts later."""
INTERRUPTED: Final = 130


class NoTrainerError(LearningError):
    """The libraries that train are not installed."""

    def __init__(self) -> None:
        super().__init__(
            "the demo trains real models and needs the extra `train`: pip install 'learnd[train]'"
        )


def run_demo(*, data_dir: Path, keep: bool) -> int:
    """Tell the demo. Returns 0 when everything turned out as told, else 1; 130 interrupted.

    `data_dir` holds all that it makes; what an earlier demo left there is replaced, but its
    base model is used again. With `keep` the daemon runs on until Ctrl-C.
    """
    screen = Screen()
    home = Home(data_dir.expanduser().absolute())
    try:
        if importlib.util.find_spec("torch") is None:
            raise NoTrainerError
        home.clear()
        with _logging_to(home.log_file):
            return asyncio.run(_Demo(home, screen, keep, time.monotonic()).play())
    except LearningError as error:
        complain(f"{error}\nthe log is {home.log_file}")
        return 1
    except KeyboardInterrupt:
        screen.say("Interrupted.")
        return INTERRUPTED


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Log lines go to a file: the screen belongs to the story."""
    with path.open("w", encoding="utf-8") as file:
        with contextlib.redirect_stderr(file):
            configure("info", "console")
        logging.captureWarnings(capture=True)
        yield


@dataclass(frozen=True)
class _Demo:
    """One telling."""

    home: Home
    screen: Screen
    keep: bool
    started: float
    """On the monotonic clock."""

    async def play(self) -> int:
        """All of it. Raises LearningError when something cannot be opened."""
        self._introduce()
        artifacts = ArtifactStore(self.home.artifacts_dir)
        log_file = self.home.root / "demo-trainer.log"
        async with TrainerHost(artifacts, log_file, idle=TRAINER_IDLE) as trainer:
            await self._make_base(trainer)
            with Broker() as broker:
                settings = Settings(**self.home.settings(kafka=broker.address, http_port=0))
                async with build_daemon(settings) as daemon:
                    self.home.write_config(
                        kafka=broker.address, http_port=urlsplit(daemon.url).port
                    )
                    status = await self._tell(daemon, broker, trainer)
        # The broker is gone with all that was in it; the daemon's data stays.
        self.home.write_config(kafka=None, http_port=None)
        return status

    def _introduce(self) -> None:
        self.screen.say(
            "learnd reads approved model outputs from Kafka, fills batches, fine-tunes, proves"
            " each candidate on held-out examples, and moves a version only when it is better."
            " You will see all of it, for real, in about three minutes: two tasks learned from"
            " a noisy stream, a poisoned batch that is refused, and a rollback."
        )
        self.screen.say(
            f"Everything happens in {_shown(self.home.root)}: an in-process Kafka broker, SQLite,"
            " and a tiny language model that is made here. Every number below was measured.",
            style="dim",
        )

    async def _make_base(self, trainer: TrainerHost) -> None:
        self.screen.chapter("A base model")
        folder = self.home.base_model
        if base_model.is_made(folder):
            self.screen.say(f"It was made by an earlier demo: {_shown(folder)}")
            return
        self.screen.say(
            "A language model is pre-trained from nothing, on copying, cleaning, sorting and"
            " other exercises with words; none of them is the tasks to come."
        )
        with self.screen.board() as board:

            def show(progress: MakeTinyModelProgress) -> None:
                loss = "" if progress.loss is None else f"loss {progress.loss:.2f}, "
                board.show(
                    "base",
                    "base model",
                    progress.step,
                    progress.total_steps,
                    f"{loss}{duration(progress.seconds_left)} left",
                )

            board.show("base", "loading PyTorch", 0, 0)
            made = await base_model.make(trainer, folder, show)
        self.screen.say(
            f"{made.parameters:,} parameters, {made.steps} steps in {duration(made.seconds)}."
            " The next demo uses it again."
        )

    async def _tell(self, daemon: Daemon, broker: Broker, trainer: TrainerHost) -> int:
        """Run the daemon while the story is told, and stop it in its own order."""
        self.screen.chapter("The daemon starts")
        self.screen.say(
            f"learnd is at {daemon.url}, reading from the broker at {broker.address}."
            f" Two model lines, {' and '.join(LINES)}, both start as version 1.0.0: the base."
        )
        stopping, interrupted = asyncio.Event(), asyncio.Event()
        with Client(daemon.url, daemon.token) as client:
            story = Story(
                home=self.home,
                screen=self.screen,
                watch=Watch(client, self.screen),
                broker=broker,
                stream=Stream(SEED),
                trainer=trainer,
            )
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(daemon.run(stopping), name="daemon")
                telling = tasks.create_task(story.tell(), name="story")
                with _on_signal(interrupted.set, telling.cancel):
                    await asyncio.wait([telling])
                    if not interrupted.is_set():
                        self._conclude(story)
                        if self.keep:
                            self._say_it_stays(daemon, broker)
                            await interrupted.wait()
                            interrupted.clear()
                    self.screen.say("Stopping: storing, committing, leaving the group ...", "dim")
                    stopping.set()
        if interrupted.is_set():
            return INTERRUPTED
        return 1 if story.faults else 0

    def _conclude(self, story: Story) -> None:
        self.screen.chapter("In short")
        self.screen.table(
            [
                Column("line"),
                Column("champion"),
                Column("held-out loss"),
                Column("exact match"),
            ],
            story.gains(),
        )
        took = duration(time.monotonic() - self.started)
        if story.faults:
            self.screen.say(f"{took}. It did not all turn out as it should:", style="bold red")
            for fault in story.faults:
                self.screen.point(fault)
            self.screen.point(f"the daemon's log: {_shown(self.home.log_file)}")
        else:
            self.screen.say(f"All of it in {took}.", style="bold")
        if not self.keep:
            self._say_what_next()

    def _say_it_stays(self, daemon: Daemon, broker: Broker) -> None:
        self.screen.say(
            f"The daemon stays up at {daemon.url} until Ctrl-C. In another terminal:", style="bold"
        )
        self._list(self._export(), *self._ideas())
        self.screen.say(
            f"Its Kafka broker is {broker.address}; its log is {_shown(self.home.log_file)}."
        )

    def _say_what_next(self) -> None:
        place = "" if self.home.root == DEFAULT_HOME.absolute() else f" --data-dir {self._root()}"
        self.screen.say("To watch it again and have the daemon stay up:")
        self._list(f"{_learnd()} demo --keep{place}")
        self.screen.say("To run a daemon on what this demo made, and look around in another shell:")
        self._list(self._export(), f"{_learnd()} run", *self._ideas())

    def _ideas(self) -> Sequence[str]:
        ideas = (
            "status",
            f"versions {LINES[0]}",
            f"chat {LINES[0]} -p 'HEY, best  LAPTOP for 500!!'",
            f"lineage {LINES[0]}@champion",
            "dead-letters list",
            f"rollback {LINES[0]}",
        )
        return [f"{_learnd()} {idea}" for idea in ideas]

    def _export(self) -> str:
        return f"export LEARND_CONFIG={shlex.quote(str(self.home.config_file))}"

    def _root(self) -> str:
        return shlex.quote(_shown(self.home.root))

    def _list(self, *commands: str) -> None:
        for command in commands:
            self.screen.point(command, style="cyan")


@contextlib.contextmanager
def _on_signal(*actions: Callable[[], object]) -> Iterator[None]:
    """Ctrl-C and SIGTERM do this, and nothing else."""
    loop = asyncio.get_running_loop()

    def act() -> None:
        for action in actions:
            action()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, act)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _learnd() -> str:
    """The command as it was typed, where the bare name would not be found."""
    typed = Path(sys.argv[0])
    if typed.name != "learnd" or shutil.which("learnd") is not None:
        return "learnd"
    return _shown(typed.absolute())


def _shown(path: Path) -> str:
    """Relative when it lies below the working directory."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
