"""Free ports of loopback for the servers of the tests."""

import contextlib
import fcntl
import getpass
import os
import random
import socket
import tempfile
from pathlib import Path

# Below the ports that the kernel hands out by itself (from 32768 on Linux, 49152 on macOS).
# From there, a client that keeps calling a server which is down can be given the server's own
# port as its source, connect to itself, and so keep the server from coming back.
_PORTS = range(20_000, 32_000)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now; no other caller gets one of them.

    They stay this process's own until it ends, so that another process of tests is not given
    one before its server has bound it, or while that is down. A program that does not ask
    here may still be quicker.
    """
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        if _nobody_listens_on(port) and _claim(port):
            found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"no {count} free ports from {_PORTS.start} to {_PORTS.stop}")


def _nobody_listens_on(port: int) -> bool:
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.bind(("127.0.0.1", port))
        return True
    return False


def _claim(port: int) -> bool:
    """Lock the port's file; the lock ends with the process, and the empty file stays."""
    folder = Path(tempfile.gettempdir(), f"learnd-test-ports-{getpass.getuser()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    claim = os.open(folder / str(port), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(claim)
        return False
    return True  # left open on purpose
