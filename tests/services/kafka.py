"""A real Apache Kafka broker for the tests: one KRaft node on loopback, in a temporary folder.

Blocking: async tests call it through `asyncio.to_thread`. Topics are never made on first
use, so a misspelt name is an error and a deleted topic stays deleted.
"""

import base64
import contextlib
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition

# Public names, but not marked so in its stubs.
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec  # type: ignore[attr-defined]

from tests.services.java import OLDEST_JAVA, find_java
from tests.services.ports import free_ports
from tests.services.process import TiedProcess

KAFKA_VERSION = "4.1.0"
LIBRARIES = Path(__file__).parents[2] / ".cache" / f"kafka-{KAFKA_VERSION}" / "libs"

START_SECONDS = 90.0
STOP_SECONDS = 20.0
ANSWER_SECONDS = 30.0
POLL_SECONDS = 0.05

# C1 and the serial collector: up sooner, and the second core stays free.
_JVM = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_LOGGING = ("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",)

_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
controller.listener.names=CONTROLLER
log.dirs={data}
auto.create.topics.enable=false
num.partitions=4
# After SIGKILL the next one may register only when this has passed.
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=250
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=500
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
log.cleaner.dedupe.buffer.size=4194304
"""


class BrokerError(Exception):
    """The broker ended, or did not do in time what it was asked to; with its last words."""

    def __init__(self, reason: str, log_tail: str) -> None:
        super().__init__(f"{reason}\n{log_tail}".rstrip())
        self.reason, self.log_tail = reason, log_tail


class Position(NamedTuple):
    """Where the broker stored a record."""

    partition: int
    offset: int


def missing() -> str | None:
    """What this machine lacks to run a broker, or None."""
    if find_java() is None:
        return f"no Java {OLDEST_JAVA} or later; `make test` installs it, or says how"
    if not LIBRARIES.is_dir():
        return f"Kafka {KAFKA_VERSION} is not in .cache; `make test` fetches it"
    return None


class KafkaBroker:
    """One broker: started on entry, ended and its data deleted on exit.

    It keeps its port and its data over `restart` and `outage`. It dies with the process
    that made it, also when that is killed.
    """

    def __init__(self) -> None:
        self._cleanup = contextlib.ExitStack()
        self._process: TiedProcess | None = None

    def __enter__(self) -> Self:
        java = find_java()
        if java is None:
            raise BrokerError(f"start of Kafka: no Java {OLDEST_JAVA} or later", "")
        folder = Path(
            self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="learnd-kafka-"))
        )
        try:
            self._java = java
            self._log = folder / "broker.log"
            self._properties = folder / "server.properties"
            self._data = folder / "data"
            self._port, controller_port = free_ports(2)
            self._properties.write_text(
                _PROPERTIES.format(
                    port=self._port, controller_port=controller_port, data=self._data
                )
            )
            self._admin = AdminClient(self._client_settings())
            self._format()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop(signal.SIGKILL)
        self._cleanup.close()

    @property
    def bootstrap(self) -> str:
        """The address that a client starts from, `127.0.0.1:port`."""
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it, and return when it serves and every partition has a leader.

        Does nothing when it runs. Raises BrokerError.
        """
        if self._process is not None:
            return
        self._process = TiedProcess(
            self._command("kafka.Kafka", str(self._properties)), log=self._log
        )
        try:
            self._await("start of Kafka", START_SECONDS, self._serves)
        except BaseException:
            self.stop(signal.SIGKILL)
            raise

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it and keep its data. Does nothing when it is down."""
        if self._process is not None:
            self._process.end(how, patience_seconds=STOP_SECONDS)
            self._process = None

    @contextlib.contextmanager
    def outage(self, how: signal.Signals = signal.SIGKILL) -> Iterator[None]:
        """The broker is down inside the block, and back after it, whatever happens there."""
        self.stop(how)
        try:
            yield
        finally:
            self.start()

    def restart(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Stop and start: same data, same port."""
        with self.outage(how):
            pass

    def create_topic(
        self, name: str, partitions: int = 1, config: Mapping[str, str] | None = None
    ) -> None:
        """Make a topic, and return when every partition serves."""
        topic = NewTopic(
            name, num_partitions=partitions, replication_factor=1, config=dict(config or {})
        )
        self._admin.create_topics([topic])[name].result(ANSWER_SECONDS)
        self._await(f"topic {name}", ANSWER_SECONDS, lambda: bool(self.end_offsets(name)))

    def delete_topic(self, name: str) -> None:
        """Delete a topic, and return when the broker no longer lists it."""
        self._admin.delete_topics([name])[name].result(ANSWER_SECONDS)
        self._await(
            f"deletion of topic {name}",
            ANSWER_SECONDS,
            lambda: name not in self._admin.list_topics(timeout=1.0).topics,
        )

    def produce(
        self,
        topic: str,
        values: Sequence[bytes | None],
        *,
        keys: Sequence[bytes | None] | None = None,
        partition: int | None = None,
        client: Mapping[str, str | int] | None = None,
    ) -> list[Position]:
        """Store one record per value and return where, in the order of the values.

        `keys` goes with `values` by index. Without `partition` a record goes where its key
        puts it, or anywhere. `client` adds to the producer's settings. Raises KafkaException
        when one of them was not stored.
        """
        # One request at a time keeps the order; idempotence would too, but half a second later.
        producer = Producer(
            self._client_settings()
            | {"max.in.flight": 1, "topic.metadata.propagation.max.ms": 1000}
            | dict(client or {})
        )
        stored: dict[int, Position] = {}
        refused: list[KafkaError] = []

        def note(index: int, error: KafkaError | None, message: Message) -> None:
            if error is not None:
                refused.append(error)
            else:
                stored[index] = Position(message.partition() or 0, message.offset() or 0)

        paired = zip(values, keys or [None] * len(values), strict=True)
        for index, (value, key) in enumerate(paired):
            while True:
                try:
                    producer.produce(
                        topic,
                        value,
                        key,
                        -1 if partition is None else partition,
                        on_delivery=partial(note, index),
                    )
                    break
                except BufferError:  # its queue is full: let it send
                    producer.poll(POLL_SECONDS)
        producer.flush(ANSWER_SECONDS)
        if refused:
            raise KafkaException(refused[0])
        if len(stored) != len(values):
            raise TimeoutError(f"{len(stored)} of {len(values)} records stored in time")
        return [stored[index] for index in range(len(values))]

    def damage(self, topic: str, old: bytes, new: bytes, *, partition: int = 0) -> None:
        """Change bytes in the log of a topic, as a failing disk would; both as many."""
        assert len(old) == len(new)
        (log,) = (self._data / f"{topic}-{partition}").glob("*.log")
        stored = log.read_bytes()
        assert stored.count(old) == 1
        with log.open("r+b") as file:
            file.seek(stored.index(old))
            file.write(new)

    def end_offsets(self, topic: str) -> dict[int, int]:
        """For each partition, the offset that its next record will get."""
        described = self._admin.list_topics(topic, timeout=ANSWER_SECONDS).topics[topic]
        if described.error is not None:
            raise KafkaException(described.error)
        ends = self._ends([TopicPartition(topic, number) for number in described.partitions])
        return {partition.partition: end for partition, end in ends.items()}

    def _format(self) -> None:
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        formatted = subprocess.run(
            self._command(
                "kafka.tools.StorageTool",
                "format",
                f"--cluster-id={cluster_id}",
                f"--config={self._properties}",
            ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=START_SECONDS,
            check=False,
        )
        if formatted.returncode != 0:
            raise BrokerError("its storage could not be formatted", formatted.stdout)

    def _command(self, main_class: str, *arguments: str) -> list[str | Path]:
        return [self._java, *_JVM, *_LOGGING, "-cp", f"{LIBRARIES}/*", main_class, *arguments]

    def _ends(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        latest: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        asked = self._admin.list_offsets(dict.fromkeys(partitions, latest))
        return {
            partition: answer.result(ANSWER_SECONDS).offset for partition, answer in asked.items()
        }

    def _serves(self) -> bool:
        metadata = self._admin.list_topics(timeout=1.0)
        if not metadata.brokers:
            return False
        # A partition may be listed with its leader a moment before that leader knows it,
        # so each of them has to answer.
        partitions = [
            TopicPartition(name, number)
            for name, topic in metadata.topics.items()
            for number in topic.partitions
        ]
        return not partitions or bool(self._ends(partitions))

    def _await(self, what: str, seconds: float, reached: Callable[[], bool]) -> None:
        """Ask until the answer is yes. Raises BrokerError."""
        process = self._process
        if process is None:
            raise BrokerError(f"{what}: the broker is down", "")
        deadline = time.monotonic() + seconds
        reason = "not yet"
        while True:
            try:
                if reached():
                    return
            except KafkaException as error:
                reason = str(error)
            if process.exit_status is not None:
                reason = f"the broker ended with status {process.exit_status}"
                raise BrokerError(f"{what}: {reason}", process.log_tail())
            if time.monotonic() > deadline:
                raise BrokerError(f"{what}: {reason} after {seconds:.0f} s", process.log_tail())
            time.sleep(POLL_SECONDS)

    def _client_settings(self) -> dict[str, str | int | float | bool]:
        return {
            "bootstrap.servers": self.bootstrap,
            "reconnect.backoff.ms": 20,
            "reconnect.backoff.max.ms": 200,
            "log_level": 0,  # a broker that is not up yet is no news
        }
