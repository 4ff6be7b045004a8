"""A child process that ends with the one that started it, however that one ends.

Not for processes that must outlive a test, and not for reading their output as it
comes: it goes to a file.
"""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

# The shell becomes the program, so its pid is the program's and leads the group. Before that
# it leaves a watcher behind, whose read ends when the owner's end of the pipe is closed, also
# by SIGKILL. (Linux's PR_SET_PDEATHSIG would not do: it fires when the *thread* ends that
# started the child.) The watcher is a member of the group that it kills, so the number of the
# group cannot have been given to somebody else by then.
_TIED = 'exec 3<&0 </dev/null; { read -r _ <&3; kill -s KILL -- "-$$"; } & exec "$@" 3<&-'


class TiedProcess:
    """A running program in a process group of its own, with its output in a file.

    The group is killed when the owner closes it, or dies. Signals from the terminal
    do not reach it.
    """

    def __init__(
        self, argv: Sequence[str | Path], *, log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        read_end, self._lifeline = os.pipe()
        try:
            with log.open("ab") as output:
                self._process = subprocess.Popen(
                    ["/bin/sh", "-c", _TIED, "tied", *map(str, argv)],
                    stdin=read_end,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=env,
                    process_group=0,
                )
        except BaseException:
            os.close(self._lifeline)
            raise
        finally:
            os.close(read_end)
        self._log = log
        self._closed = False

    @property
    def pid(self) -> int:
        """The program's process id, which is also its group's."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """None while it runs; negative when a signal ended it."""
        return self._process.poll()

    def send(self, what: signal.Signals) -> None:
        """Send the program alone a signal that it survives, such as SIGSTOP."""
        self._process.send_signal(what)

    def end(self, how: signal.Signals, *, patience_seconds: float) -> int:
        """Send a signal, wait, kill what is left after the patience, and return the exit status.

        A repeated call returns the first one's status.
        """
        if self._closed:
            return self._process.wait()
        if self._process.poll() is None:
            self._process.send_signal(how)
            try:
                self._process.wait(patience_seconds)
            except subprocess.TimeoutExpired:
                self._process.kill()
        status = self._process.wait()
        os.close(self._lifeline)  # wakes the watcher, which clears the rest of the group
        self._closed = True
        return status

    def log_tail(self, lines: int = 30) -> str:
        """The last lines of its output."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])
