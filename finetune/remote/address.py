"""Which addresses a remote service may have.

A key goes to whatever stands there, and so do people's texts: https, or this machine, unless
a setting allows more; no name and password in the address; never an address that only a
cloud's own machinery answers on. `fault_of` says what can be said without a network;
`permitted` asks the resolver and judges what it answers, so that a name which means another
machine today than yesterday is judged anew. Opens no connection: see remote/connection.py.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final
from urllib.parse import urlsplit

from finetune.remote.access import ServiceAccess
from learning.errors import LearningError

PLAIN_SETTING: Final = "remote.allow_plain_http"
DEFAULT_PORTS: Final = {"http": 80, "https": 443}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host and port, as texts. Raises OSError when there are none."""

_METADATA_NAMES: Final = frozenset(
    {"metadata", "metadata.google.internal", "metadata.goog", "instance-data"}
)
_METADATA: Final = frozenset(
    map(
        ipaddress.ip_address,
        (
            "100.100.100.200",  # Alibaba Cloud
            "168.63.129.16",  # Azure
            "192.0.0.192",  # Oracle Cloud
            "fd00:ec2::254",  # Amazon
            "fd20:ce::254",  # Google
        ),
    )
)
"""Those that are not link-local."""
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_THIS_NETWORK: Final = ipaddress.ip_network("0.0.0.0/8")


class AddressRefusedError(LearningError):
    """A service's address is one that nothing is sent to. `setting` is what to change."""

    def __init__(self, setting: str, fault: str) -> None:
        super().__init__(f"{setting}: {fault}")
        self.setting, self.fault = setting, fault


def fault_of(url: str, *, allow_plain: bool) -> str | None:
    """What is wrong with an address, in words that do not repeat it; None when it may be used.

    Looks at the text alone.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "it is no address: a port or a bracket is wrong"
    if parts.scheme not in ("http", "https") or not host:
        return "an address is needed that starts with https://"
    if parts.username is not None or parts.password is not None:
        return "a name or password may not stand in it: the key has a setting of its own"
    if parts.query or parts.fragment:
        return "nothing may follow its path: no `?` and no `#`"
    if (fault := _fault_of_host(host)) is not None:
        return fault
    if parts.scheme == "http" and not allow_plain and not _is_here(host):
        return (
            "https is needed there, because keys and data would travel in the clear: use https, or"
            f" set {PLAIN_SETTING}: true where the network between is your own"
        )
    return None


async def permitted(
    access: ServiceAccess, host: str, port: int, *, resolve: Resolve | None = None
) -> Sequence[str]:
    """The addresses that `host` has now, each of which may be connected to.

    One that may not be refuses the name as a whole: who else answers for it is not to be
    trusted. Raises AddressRefusedError, and OSError when the name has no address.
    """
    if (fault := _fault_of_host(host)) is not None:
        raise AddressRefusedError(access.setting, fault)
    found = list(dict.fromkeys(await (resolve or _resolve)(host, port)))
    only_here = urlsplit(access.base_url).scheme == "http" and not access.allow_plain
    for text in found:
        address = _meant(ipaddress.ip_address(text))
        if (fault := _fault_of_address(address)) is not None:
            raise AddressRefusedError(access.setting, f"{host} is {text}, {fault}")
        if only_here and not address.is_loopback:
            raise AddressRefusedError(
                access.setting,
                f"{host} is {text}, which is not this machine: use https, or set"
                f" {PLAIN_SETTING}: true where the network between is your own",
            )
    return found


def _fault_of_host(host: str) -> str | None:
    if _bare(host) in _METADATA_NAMES:
        return f"{host} is a cloud's metadata service, which no service of yours has"
    address = _address_in(host)
    fault = None if address is None else _fault_of_address(_meant(address))
    return None if fault is None else f"{host} is {fault}"


def _fault_of_address(address: Address) -> str | None:
    if address.is_link_local:
        return "a link-local address: metadata services answer there, and no service of yours"
    if address in _METADATA:
        return "the address of a cloud's metadata service"
    if address.is_multicast or address.is_unspecified or address in _THIS_NETWORK:
        return "no address of one machine"
    return None


def _meant(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, if it does."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _is_here(host: str) -> bool:
    """Whether a host as written means this machine, whoever is asked."""
    address = _address_in(host)
    return _bare(host) == "localhost" if address is None else _meant(address).is_loopback


def _bare(host: str) -> str:
    return host.lower().rstrip(".")


def _address_in(host: str) -> Address | None:
    """The address that a host is written as.

    Also in the short, octal and hexadecimal forms that a resolver takes: `127.1`, `0xa9fea9fe`.
    """
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, UnicodeEncodeError):
        return None


async def _resolve(host: str, port: int) -> Sequence[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(where[0]) for *_, where in found]
