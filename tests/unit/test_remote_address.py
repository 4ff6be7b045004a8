"""Which addresses a remote service may have, as they are written and as they are resolved."""

from collections.abc import Sequence

import pytest

from finetune.remote.access import ServiceAccess
from finetune.remote.address import AddressRefusedError, fault_of, permitted


@pytest.mark.parametrize(
    "url",
    [
        "https://tune.example/v1",
        "https://10.0.0.7:8443",
        "https://[2001:db8::7]/v1",
        "http://localhost:8000",
        "http://LOCALHOST.:8000",
        "http://127.0.0.1:8000/v1",
        "http://127.1:8000",
        "http://[::1]:8000",
        "http://[::ffff:127.0.0.1]:8000",
    ],
)
def test_https_may_go_anywhere_and_http_to_this_machine(url: str) -> None:
    assert fault_of(url, allow_plain=False) is None


@pytest.mark.parametrize(
    "url",
    ["http://tune.example", "http://10.0.0.7", "http://localhost.evil.example", "http://0x7f.evil"],
)
def test_http_elsewhere_needs_a_setting_which_the_fault_names(url: str) -> None:
    fault = fault_of(url, allow_plain=False)
    assert fault is not None
    assert "remote.allow_plain_http: true" in fault
    assert fault_of(url, allow_plain=True) is None


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://tune.example", "starts with https://"),
        ("tune.example", "starts with https://"),
        ("https://", "starts with https://"),
        ("https://tune.example:port", "is no address"),
        ("https://[::1", "is no address"),
        ("https://ann:hunter2@tune.example", "name or password"),
        ("https://hunter2@tune.example", "name or password"),
        ("https://tune.example/v1?key=hunter2", "nothing may follow"),
        ("https://tune.example/v1#hunter2", "nothing may follow"),
        ("https://169.254.169.254/latest", "link-local"),
        ("https://169.254.0.7", "link-local"),
        ("https://2852039166", "link-local"),
        ("https://0xa9fea9fe", "link-local"),
        ("https://0251.0376.0251.0376", "link-local"),
        ("https://[fe80::1]", "link-local"),
        ("https://[::ffff:169.254.169.254]", "link-local"),
        ("https://[64:ff9b::a9fe:a9fe]", "link-local"),
        ("https://[2002:a9fe:a9fe::1]", "link-local"),
        ("https://[fd00:ec2::254]", "metadata"),
        ("https://100.100.100.200", "metadata"),
        ("https://metadata.google.internal", "metadata"),
        ("https://Metadata.Google.Internal.", "metadata"),
        ("https://0.0.0.0", "no address of one machine"),
        ("https://[::]", "no address of one machine"),
        ("https://224.0.0.1", "no address of one machine"),
    ],
)
@pytest.mark.parametrize("allow_plain", [False, True])
def test_other_addresses_are_refused_and_never_repeated_with_a_password(
    url: str, said: str, allow_plain: bool
) -> None:
    fault = fault_of(url, allow_plain=allow_plain)
    assert fault is not None
    assert said in fault
    assert "hunter2" not in fault


async def resolved(
    *addresses: str, url: str = "https://tune.example", allow_plain: bool = False
) -> Sequence[str]:
    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return addresses

    access = ServiceAccess(url, allow_plain=allow_plain, setting="remote.some_endpoint")
    return await permitted(access, "tune.example", 443, resolve=resolve)


async def test_a_name_may_have_several_addresses_each_of_them_once() -> None:
    assert await resolved("10.0.0.7", "2001:db8::7", "10.0.0.7") == ["10.0.0.7", "2001:db8::7"]


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "fe80::1%2", "::ffff:169.254.1.1", "fd00:ec2::254", "224.0.0.1"]
)
async def test_one_address_that_may_not_be_used_refuses_the_name(address: str) -> None:
    with pytest.raises(AddressRefusedError, match=r"^remote\.some_endpoint: tune\.example is "):
        await resolved("10.0.0.7", address, allow_plain=True)


async def test_a_name_for_this_machine_that_means_another_gets_nothing_in_the_clear() -> None:
    assert await resolved("127.0.0.1", "::1", url="http://localhost") == ["127.0.0.1", "::1"]
    with pytest.raises(AddressRefusedError, match="not this machine"):
        await resolved("10.0.0.7", url="http://localhost")
    assert await resolved("10.0.0.7", url="http://localhost", allow_plain=True) == ["10.0.0.7"]
