"""`learnd send --http`: a file or standard input to the daemon, which answers each line.

Each piece that is read is a request of its own, so that what was acknowledged is known even
when a later one fails, and a pipe's lines are sent as they come.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from consumers.lines import Line, LineCutter
from consumers.send import MAX_LINE_BYTES, MAX_LISTED, RefusedLine, SendReport, kind_of, parsed
from daemon.client import Client, DaemonUnavailableError, DaemonUnreachableError
from daemon.sending import opened, progress
from learning.ports import EventKind

PIECE_BYTES = 262_144
PATHS: Mapping[EventKind, str] = {
    EventKind.OUTPUT: "/v1/outputs",
    EventKind.FEEDBACK: "/v1/feedback",
}


def post_file(name: str, client: Client, *, kind: str | None) -> SendReport:
    """Send the lines of a file; "-" is standard input. Without a kind each line shows its own.

    Raises FileUnreadableError and the errors of daemon.client; those that mean "not now" say
    how many events were stored by then.
    """
    sending = _Sending(client, EventKind(kind) if kind is not None else None)
    cutter = LineCutter(MAX_LINE_BYTES)
    with opened(name) as file, progress(file) as (counted, on_progress):
        try:
            while piece := counted.read1(PIECE_BYTES):
                sending.send(list(cutter.cut(piece)))
                on_progress(sending.sent)
            if (last := cutter.last()) is not None:
                sending.send([last])
        except (DaemonUnreachableError, DaemonUnavailableError) as error:
            raise DaemonUnavailableError(
                f"{error}; {sending.sent} events or more are stored,"
                " sending everything again is safe"
            ) from error
    return sending.report()


class _Sending:
    """Sends lines by their kind, and counts what the daemon said of each."""

    def __init__(self, client: Client, kind: EventKind | None) -> None:
        self._client = client
        self._kind = kind
        self._number = 0
        self.sent = 0
        self._duplicates = 0
        self._n_refused = 0
        self._refused: list[RefusedLine] = []

    def send(self, lines: Sequence[Line]) -> None:
        by_kind: defaultdict[EventKind, list[tuple[int, bytes]]] = defaultdict(list)
        for line in lines:
            self._number += 1
            if len(line.raw) > MAX_LINE_BYTES:
                self._refuse(self._number, f"too_large: more than {MAX_LINE_BYTES:,} bytes")
            elif line.raw.strip():
                kind = self._kind or kind_of(parsed(line.raw))
                by_kind[kind].append((self._number, line.raw))
        for kind, numbered in by_kind.items():
            body = b"".join(raw + b"\n" for _, raw in numbered)
            for told in self._client.post_lines(PATHS[kind], body):
                number, _ = numbered[told["line"] - 1]
                if told["status"] == "refused":
                    self._refuse(number, f"{told['reason']}: {told['detail']}")
                else:
                    self.sent += 1
                    self._duplicates += told["status"] == "duplicate"

    def report(self) -> SendReport:
        refused = tuple(sorted(self._refused))
        return SendReport(self.sent, self._n_refused, refused, self._duplicates)

    def _refuse(self, line: int, reason: str) -> None:
        self._n_refused += 1
        if len(self._refused) < MAX_LISTED:
            self._refused.append(RefusedLine(line, reason))
