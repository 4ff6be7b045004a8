"""The clients for remote services, both flavours: where their connections really go."""

import asyncio
import contextlib
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path

import httpx2
import pytest

from finetune.remote.access import ServiceAccess
from finetune.remote.address import AddressRefusedError, Resolve
from finetune.remote.connection import http_client
from tests.services import require

NAME = "tune.example"
PATIENCE = timedelta(seconds=30)


class Service:
    """Answers each request with the request itself, and with the status it is told."""

    def __init__(self) -> None:
        self.head = b"200 OK"
        self.asked: list[str] = []
        self.port = 0

    @contextlib.asynccontextmanager
    async def serving(self, tls: ssl.SSLContext | None = None) -> AsyncIterator["Service"]:
        """Listens inside."""
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                asked = await reader.readuntil(b"\r\n\r\n")
                self.asked.append(asked.decode())
                writer.write(b"HTTP/1.1 " + self.head + b"\r\nContent-Length: 2\r\n\r\nok")
                await writer.drain()
        writer.close()


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with Service().serving() as service:
        yield service


def plain(service: Service) -> ServiceAccess:
    return ServiceAccess(
        f"http://{NAME}:{service.port}", allow_plain=True, setting="remote.some_endpoint"
    )


def means(*answers: Sequence[str]) -> Resolve:
    """A resolver that answers so, one after the other; the last answer stays."""
    left = list(answers)

    async def resolve(host: str, _port: int) -> Sequence[str]:
        assert host == NAME
        return left.pop(0) if len(left) > 1 else left[0]

    return resolve


async def test_a_request_goes_to_the_resolved_address_under_the_services_name(
    service: Service,
) -> None:
    resolve = means(["127.0.0.1"])
    async with http_client(plain(service), timeout=PATIENCE, resolve=resolve) as client:
        answer = await client.get(f"http://{NAME}:{service.port}/jobs")
    assert answer.text == "ok"
    assert f"host: {NAME}:{service.port}\r\n" in service.asked[0].lower()


async def test_a_name_that_changes_its_meaning_is_refused_though_a_connection_is_open(
    service: Service,
) -> None:
    resolve = means(["127.0.0.1"], ["169.254.169.254"])
    async with http_client(plain(service), timeout=PATIENCE, resolve=resolve) as client:
        await client.get(f"http://{NAME}:{service.port}/jobs")
        with pytest.raises(AddressRefusedError, match=r"remote\.some_endpoint: .*link-local"):
            await client.get(f"http://{NAME}:{service.port}/jobs")
    assert len(service.asked) == 1


async def test_where_one_address_does_not_answer_the_next_one_is_asked(service: Service) -> None:
    resolve = means(["127.7.7.7", "127.0.0.1"])
    async with http_client(plain(service), timeout=PATIENCE, resolve=resolve) as client:
        answer = await client.post(f"http://{NAME}:{service.port}/jobs", content=b"x")
    assert answer.status_code == 200


async def test_a_name_without_an_address_is_a_connection_that_failed(service: Service) -> None:
    async with http_client(plain(service), timeout=PATIENCE, resolve=means([])) as client:
        with pytest.raises(httpx2.ConnectError, match="has no address"):
            await client.get(f"http://{NAME}:{service.port}/jobs")


async def test_redirects_are_not_followed(service: Service) -> None:
    service.head = b"307 Temporary Redirect\r\nLocation: /elsewhere"
    resolve = means(["127.0.0.1"])
    async with http_client(plain(service), timeout=PATIENCE, resolve=resolve) as client:
        answer = await client.get(f"http://{NAME}:{service.port}/jobs")
    assert answer.status_code == 307
    assert len(service.asked) == 1


async def test_another_service_is_not_reached(service: Service) -> None:
    resolve = means(["127.0.0.1"])
    async with http_client(plain(service), timeout=PATIENCE, resolve=resolve) as client:
        for url in (f"http://{NAME}:1/", f"https://{NAME}:{service.port}/", "http://other.example"):
            with pytest.raises(AddressRefusedError, match="another service"):
                await client.get(url)
    assert service.asked == []


async def test_the_environment_brings_neither_proxy_nor_password(
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    (tmp_path / "netrc").write_text(f"machine {NAME} login ann password hunter2\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    resolve = means(["127.0.0.1"])
    async with http_client(plain(service), timeout=PATIENCE, resolve=resolve) as client:
        await client.get(f"http://{NAME}:{service.port}/jobs")
    assert "authorization" not in service.asked[0].lower()


def test_an_address_that_may_not_be_used_makes_no_client() -> None:
    access = ServiceAccess("http://tune.example", setting="remote.some_endpoint")
    with pytest.raises(AddressRefusedError, match="https is needed"):
        http_client(access, timeout=PATIENCE)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for NAME, in one file."""
    require("openssl", None if shutil.which("openssl") else "it is not installed")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-keyout", folder / "key", "-out", folder / "cert", "-days", "3650",
         "-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"],
        check=True, capture_output=True,
    )  # fmt: skip
    both = folder / "both.pem"
    both.write_bytes((folder / "key").read_bytes() + (folder / "cert").read_bytes())
    return both


async def test_the_certificate_has_to_be_that_of_the_name(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)

    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    async with Service().serving(tls) as service:
        right = f"https://{NAME}:{service.port}"
        client = http_client(ServiceAccess(right), timeout=PATIENCE, resolve=resolve)
        async with client:
            assert (await client.get(f"{right}/jobs")).text == "ok"
        wrong = f"https://other.example:{service.port}"
        client = http_client(ServiceAccess(wrong), timeout=PATIENCE, resolve=resolve)
        async with client:
            with pytest.raises(httpx2.ConnectError, match="certificate"):
                await client.get(f"{wrong}/jobs")
        assert len(service.asked) == 1
