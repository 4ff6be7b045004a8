"""The process that reads blocks for a daemon: `python -m consumers.reader_worker`.

The other end of consumers/reader_process.py. It keeps nothing, and imports as little as it can,
because what it imports is memory that every daemon pays for.
"""

import contextlib
import gc
import os
import signal
import sys

from consumers.reader_frames import cut, pack_arrivals, receive, send
from consumers.reading import COLLECT_AFTER, Reader
from consumers.wire import Limits, Undecodable
from learning.judge import Judge
from learning.policy import Policy
from learning.ports import EventKind, JudgedOutput, Origin, ReceivedFeedback
from learning.validators import installed


def main() -> None:
    """Read blocks until stdin ends: with the daemon, however that ended."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    max_output_characters, max_bytes, max_depth = map(int, sys.argv[1:])
    validators = installed(max_output_characters)
    limits = Limits(max_bytes, max_depth)
    policy = Policy()
    judge = Judge(lambda: policy, validators)
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)
    stdin, stdout = os.fdopen(0, "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a validator from outside may print
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            (bars, received_at, kind_name, place, offsets, lengths), body = receive(stdin)
            source, topic, partition = place
            if bars is not None:
                least, auto, threshold, moved, distrusted = bars
                policy = Policy(least, auto, threshold, offsets=moved, distrusted=distrusted)
            kind = EventKind(kind_name)
            reader = Reader(judge, limits, texts=False)
            arrivals: list[JudgedOutput | ReceivedFeedback] = []
            faults: list[tuple[int, str, str]] = []
            for at, value in enumerate(cut(body, lengths)):
                origin = Origin(source, topic, partition, offsets[at])
                arrival = reader.arrival(kind, value, origin, received_at)
                if isinstance(arrival, Undecodable):
                    faults.append((at, arrival.reason.value, arrival.detail))
                else:
                    arrivals.append(arrival)
            task_types = {arrival.task_type for arrival in arrivals}
            send(stdout, (list(task_types), faults), pack_arrivals(arrivals))


if __name__ == "__main__":
    main()
