"""The trainer's ends of the pipes, against real pipes in this process."""

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import BinaryIO

import pytest

from finetune.trainer import channel as channel_module
from finetune.trainer.channel import Channel
from finetune.trainer.protocol import Failed, Heartbeat, Message, Note, parse_message


@dataclass(frozen=True)
class Pipes:
    channel: Channel
    to_trainer: BinaryIO
    from_trainer: BinaryIO

    def hear(self) -> Message:
        return parse_message(self.from_trainer.readline())


@pytest.fixture
def pipes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipes]:
    monkeypatch.setattr(channel_module, "HEARTBEAT_SECONDS", 0.001)
    trainer_in, daemon_out = os.pipe()
    daemon_in, trainer_out = os.pipe()
    channel = Channel(trainer_in, trainer_out)
    with open(daemon_out, "wb", buffering=0) as out, open(daemon_in, "rb") as in_:
        channel.open()
        yield Pipes(channel, out, in_)
        # Idle, so the end of stdin ends the reader and nothing else.
        out.close()
        assert channel.next_line() is None
        channel.close()
    os.close(trainer_in)
    os.close(trainer_out)


def failed(request_id: str) -> Failed:
    return Failed(id=request_id, error="internal", message="")


def test_lines_come_whole_and_in_order_however_they_are_cut(pipes: Pipes) -> None:
    for piece in (b"on", b"e\n\ntwo\nth", b"ree\n"):
        pipes.to_trainer.write(piece)

    assert [pipes.channel.next_line() for _ in range(3)] == [b"one", b"two", b"three"]
    for _ in range(3):
        pipes.channel.end(failed("x"))


def test_a_line_longer_than_a_pipe_comes_whole(pipes: Pipes) -> None:
    line = b"x" * 1_000_000
    threading.Thread(target=pipes.to_trainer.write, args=(line + b"\n",)).start()

    assert pipes.channel.next_line() == line
    pipes.channel.end(failed("x"))


def test_it_beats_while_a_request_runs_and_never_after_its_last_message(pipes: Pipes) -> None:
    for request_id in map(str, range(20)):
        pipes.to_trainer.write(b"request\n")
        pipes.channel.next_line()
        pipes.channel.begin(request_id)
        assert pipes.hear() == Heartbeat(id=request_id)
        pipes.channel.end(failed(request_id))
        while (message := pipes.hear()) != failed(request_id):
            assert message == Heartbeat(id=request_id)


def test_a_signal_that_came_just_before_the_sleep_ends_it(pipes: Pipes) -> None:
    """As if it came then: it is delivered to another thread, so it interrupts no system call.

    Python runs handlers in the main thread only, which sleeps already and must be woken.
    """
    pipes.channel.wake_on_signals()
    before = signal.signal(signal.SIGUSR1, _interrupt)
    asleep = threading.Event()

    def send_once_it_sleeps() -> None:
        asleep.wait()
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    killer = threading.Thread(target=send_once_it_sleeps)
    killer.start()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        with pytest.raises(InterruptedHereError):  # noqa: PT012 - the handler may run in either
            asleep.set()
            pipes.channel.next_line()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        signal.signal(signal.SIGUSR1, before)
        signal.set_wakeup_fd(-1)
        killer.join()


class InterruptedHereError(Exception):
    """Raised by the handler."""


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise InterruptedHereError


def test_sending_does_not_wait_for_a_daemon_that_does_not_read(pipes: Pipes) -> None:
    said = [Note(id=str(n), text="x" * 1000) for n in range(1000)]

    for note in said:
        pipes.channel.send(note)

    assert [pipes.hear() for _ in said] == said
