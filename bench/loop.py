"""How long it takes from a batch's last event to the promoted version, and where the time goes.

    python -m bench.loop [--quick]

A whole daemon in this process, an in-process Kafka broker beside it, and the real trainer on a
tiny random model. Each round is a model line of its own that learns one easy answer, so that
every round ends in a promotion. With the trainer kept from one request to the next (warm; a round
before those that count makes it so), and without: then each training and each evaluation starts a
process and imports the libraries (cold, finetune.trainer_warm: false). Prints a table, and one JSON
object as the last line.
"""

import argparse
import asyncio
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog
from confluent_kafka import Producer
from sqlalchemy import select

from daemon.app import Daemon, build_daemon
from daemon.demo.broker import TOPICS, Broker
from daemon.printing import Column, number, show_table
from daemon.settings import Settings
from daemon.store.database import Database
from daemon.store.tables import runs
from finetune.artifacts import ArtifactStore
from finetune.trainer.protocol import MakeTinyModelRequest
from finetune.trainer_process import TrainerHost
from learning import failpoints
from learning.facts import CandidateDecided, Fact, Promoted
from learning.ports import EventKind

BATCH_SIZE: Final = 48
TRAINING: Final[Mapping[str, Any]] = {
    "minibatch_size": 12,
    "gradient_accumulation": 1,
    "learning_rate": 0.005,
    "max_steps": 60,
}
"""After so many steps the tiny model is far better at it, whatever the seed."""
WARM_ROUNDS: Final = 5
COLD_ROUNDS: Final = 3
PATIENCE_SECONDS: Final = 300.0
READY_SECONDS: Final = 0.05

STAGES: Final[Sequence[tuple[str, str]]] = (
    ("store", "Intake.append after its commit"),
    ("seal", "Queue.seal after its commit"),
    ("begin", "Runs.begin after its commit"),
    ("dataset", "dataset named"),
    ("launch", "Runs.adopt after its commit"),
    ("trainer", "job ended"),
    ("publish", "Runs.finish_training after its commit"),
    ("enter", "Runs.enter after its commit"),
    ("evaluate", "candidate scored"),
    ("gate", "candidate judged"),
    ("promote", "Runs.decide after its commit"),
)
"""Each stage, and the named moment that it ends with; it begins where the one before ended.

`trainer` is everything between the launch and the trained files: of it, `train` is what the
trainer measured itself, and `import` the rest, which is its start and its libraries.
"""


@dataclass
class Round:
    """One batch: when its last event was sent, and when each moment was first reached after."""

    line: str
    sent: float = 0.0
    reached: dict[str, float] = field(default_factory=dict)
    train_seconds: float = 0.0
    version: str = ""

    @property
    def total(self) -> float:
        """Seconds from the last event to the promoted version."""
        return self.reached[STAGES[-1][1]] - self.sent

    def stages(self) -> Mapping[str, float]:
        """Seconds of each stage; they add up to the total."""
        seconds: dict[str, float] = {}
        before = self.sent
        for stage, moment in STAGES:
            seconds[stage], before = self.reached[moment] - before, self.reached[moment]
        trainer = seconds.pop("trainer")
        return seconds | {"import": trainer - self.train_seconds, "train": self.train_seconds}


ORDER: Final = [
    "store",
    "seal",
    "begin",
    "dataset",
    "launch",
    "import",
    "train",
    "publish",
    "enter",
    "evaluate",
    "gate",
    "promote",
]


class Watch:
    """Notes the moments of the round that is under way, and hears of its verdict."""

    def __init__(self) -> None:
        self._round = Round("")
        self.decided = asyncio.Event()
        self.outcome = ""

    def begin(self, line: str) -> Round:
        """Another round, from here on."""
        self.decided.clear()
        self._round = Round(line)
        return self._round

    def note(self, moment: str) -> None:
        """A moment was reached, in whatever thread."""
        now = time.perf_counter()
        # The batch's last block of events is the one that counts; of all else the first.
        if moment == STAGES[0][1] and STAGES[1][1] not in self._round.reached:
            self._round.reached[moment] = now
        else:
            self._round.reached.setdefault(moment, now)

    def hear(self, fact: Fact) -> None:
        """The daemon tells what has happened."""
        match fact:
            case Promoted(version=version):
                self._round.version = version
                self.decided.set()
            case CandidateDecided(outcome=outcome, reason=reason) if outcome != "promote":
                self.outcome = f"{outcome}: {reason}"
                self.decided.set()


async def measure(folder: Path, n_rounds: int, *, warm: bool) -> list[Round]:
    """So many rounds of one daemon. Raises RuntimeError when one ends without a version."""
    lines = [f"line-{n}" for n in range(n_rounds)]
    base = folder / "base"
    await make_base(folder, base)
    watch = Watch()
    failpoints.listen(watch.note)
    rounds = []
    with Broker() as broker:
        settings = Settings(
            data_dir=folder / "data",
            http={"port": 0},
            kafka={"bootstrap_servers": broker.address},
            queue={"batch_size": BATCH_SIZE, "max_queue_size": BATCH_SIZE},
            finetune={
                "base_model": str(base),
                "training": TRAINING,
                "trainer_idle_seconds": 600,
                "trainer_warm": warm,
            },
            lines={line: {} for line in lines},
        )
        async with build_daemon(settings) as daemon:
            daemon.announcer.listen(watch.hear)
            stopping = asyncio.Event()
            running = asyncio.create_task(daemon.run(stopping))
            producer = Producer({"bootstrap.servers": broker.address, "log_level": 0})
            try:
                await ready(daemon)
                for line in lines:
                    round_ = watch.begin(line)
                    *others, last = outputs(line)
                    await asyncio.to_thread(send, producer, others)
                    round_.sent = time.perf_counter()
                    await asyncio.to_thread(send, producer, [last])
                    async with asyncio.timeout(PATIENCE_SECONDS):
                        await watch.decided.wait()
                    if not round_.version:
                        raise RuntimeError(f"{line} was not promoted: {watch.outcome}")
                    round_.train_seconds = await seconds_in_training(daemon.store.database, line)
                    rounds.append(round_)
            finally:
                stopping.set()
                await running
    return rounds


async def make_base(folder: Path, base: Path) -> None:
    """A tiny model with random weights, made by a trainer that ends."""
    request = MakeTinyModelRequest(id="base", output_dir=str(base), steps=0)
    artifacts = ArtifactStore(folder / "artifacts")
    async with TrainerHost(artifacts, folder / "base.log") as host, host.use() as trainer:
        await trainer.request(request, lambda _: None)


async def ready(daemon: Daemon) -> None:
    """Wait until the daemon reads its topics: joining the group is not a part of the loop."""
    assert daemon.source is not None
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not daemon.source.ready:  # noqa: ASYNC110 - nobody tells, one can only ask
            await asyncio.sleep(READY_SECONDS)


def send(producer: Producer, events: Sequence[bytes]) -> None:
    """Have Kafka take them. They have one key, so that they keep their order."""
    for event in events:
        producer.produce(TOPICS[EventKind.OUTPUT], event, b"bench")
    if producer.flush(PATIENCE_SECONDS):
        raise RuntimeError("the broker did not take every event")


def outputs(line: str) -> Iterator[bytes]:
    """A batch for one line: another question each time, and always the same answer."""
    for n in range(BATCH_SIZE):
        event = {
            "event_id": f"{line}-{n}",
            "producer": "bench",
            "task_type": line,
            "task_id": f"{line}-{n}",
            "prompt": f"which number is {n}?",
            "output": "seven",
            "approved": True,
        }
        yield json.dumps(event).encode()


async def seconds_in_training(database: Database, line: str) -> float:
    """What the trainer measured of the line's only run."""
    query = select(runs.c.measurements).where(runs.c.line == line)
    measurements = await database.read(lambda tx: tx.execute(query).scalar_one())
    return float(measurements["seconds"])


def report(cold: Sequence[Round], warm: Sequence[Round]) -> None:
    """A table for people, and the JSON object."""
    without, median = medians(cold), medians(warm)
    show_table(
        [Column("stage"), number("cold s"), number("warm s"), number("warm share")],
        [
            (
                stage,
                f"{without[stage]:.3f}",
                f"{median[stage]:.3f}",
                f"{median[stage] / sum(median.values()):.1%}",
            )
            for stage in ORDER
        ],
        title=f"From the last event to the promoted version"
        f" (medians of {len(cold)} cold and {len(warm)} warm rounds)",
    )
    cold_total, warm_total = (statistics.median(one.total for one in each) for each in (cold, warm))
    show_table(
        [Column("all"), number("seconds")],
        [("cold", f"{cold_total:.2f}"), ("warm", f"{warm_total:.2f}")],
    )
    print(
        json.dumps(
            {
                "bench": "loop",
                "events": BATCH_SIZE,
                "steps": TRAINING["max_steps"],
                "promoted": len(cold) + len(warm),
                "cold_seconds": round(cold_total, 3),
                "warm_seconds": round(warm_total, 3),
                "warm_overhead_seconds": round(warm_total - median["train"], 3),
                "cold_stages": {stage: round(without[stage], 4) for stage in ORDER},
                "warm_stages": {stage: round(median[stage], 4) for stage in ORDER},
            }
        )
    )


def medians(rounds: Sequence[Round]) -> Mapping[str, float]:
    """Of each stage, in seconds."""
    return {stage: statistics.median(one.stages()[stage] for one in rounds) for stage in ORDER}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="One round of each.")
    quick = parser.parse_args().quick
    # The table is what this terminal is for.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory(prefix="learnd-bench-") as folder:
        n_cold, n_warm = (1, 1) if quick else (COLD_ROUNDS, WARM_ROUNDS)
        _, *warm = asyncio.run(measure(Path(folder, "warm"), 1 + n_warm, warm=True))
        cold = asyncio.run(measure(Path(folder, "cold"), n_cold, warm=False))
        report(cold, warm)


if __name__ == "__main__":
    main()
