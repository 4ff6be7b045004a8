"""Free ports of loopback for the servers of the tests."""

import contextlib
import random
import socket

# Below the ports that the kernel hands out by itself (from 32768 on Linux, 49152 on macOS).
# From there, a client that keeps calling a server which is down can be given the server's own
# port as its source, connect to itself, and so keep the server from coming back.
_PORTS = range(20_000, 32_000)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now. Another process may still be quicker."""
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"no {count} free ports from {_PORTS.start} to {_PORTS.stop}")
