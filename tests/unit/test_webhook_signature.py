"""The signature of a webhook: what is believed, and that junk is refused with a reason."""

import base64
import hashlib
import hmac
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import InvalidWebhookSignatureError, OpenAI

from daemon.webhook_signature import (
    ID_HEADER,
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    DeliveryRefusedError,
    RefusalReason,
    SigningKey,
    WeakSecretError,
)
from tests.builders import NOON
from tests.webhooks import KEY, SECRET, Headers, event, replaced, signed

BODY = event()


def refusal(headers: Headers, body: bytes = BODY) -> RefusalReason:
    with pytest.raises(DeliveryRefusedError) as refused:
        KEY.verify(headers, body, NOON)
    return refused.value.reason


def test_a_delivery_is_signed_as_the_specification_has_it() -> None:
    """The example of the Standard Webhooks specification and its reference libraries."""
    key = SigningKey.of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    signature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    headers: Headers = [
        (b"webhook-id", b"msg_p5jXN8AQM9LWM0D4loKWxJek"),
        (b"webhook-timestamp", b"1614265330"),
        (b"webhook-signature", signature.encode()),
    ]
    sent = NOON.fromtimestamp(1614265330, NOON.tzinfo)

    assert key.verify(headers, body, sent) == "msg_p5jXN8AQM9LWM0D4loKWxJek"
    assert key.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", sent, body)[SIGNATURE_HEADER] == signature


def test_what_we_sign_the_openai_package_believes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", NOON.timestamp)
    client = OpenAI(api_key="none", webhook_secret=SECRET)
    headers = KEY.sign("wh_1", NOON, BODY)

    client.webhooks.verify_signature(BODY, headers)
    with pytest.raises(InvalidWebhookSignatureError):
        client.webhooks.verify_signature(BODY + b" ", headers)


def test_one_right_signature_among_several_is_enough() -> None:
    headers = signed("wh_1", NOON, BODY)
    (right,) = [value for name, value in headers if name == SIGNATURE_HEADER.encode()]
    rotated = replaced(headers, SIGNATURE_HEADER, b"v1,AAAA v1a,xyz " + right + b" v1,BBBB")
    assert KEY.verify(rotated, BODY, NOON) == "wh_1"


@pytest.mark.parametrize("seconds", [-300, -1, 0, 1, 300])
def test_a_delivery_may_be_five_minutes_from_our_clock(seconds: int) -> None:
    assert KEY.verify(signed("wh_1", NOON + timedelta(seconds=seconds), BODY), BODY, NOON)


@pytest.mark.parametrize(
    ("seconds", "reason"), [(-301, RefusalReason.TOO_OLD), (301, RefusalReason.TOO_NEW)]
)
def test_a_second_more_is_refused(seconds: int, reason: RefusalReason) -> None:
    assert refusal(signed("wh_1", NOON + timedelta(seconds=seconds), BODY)) is reason


@pytest.mark.parametrize("name", [ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER])
def test_each_header_has_to_stand_there_once(name: str) -> None:
    headers = signed("wh_1", NOON, BODY)
    without = [(key, value) for key, value in headers if key != name.encode()]
    twice = [*headers, *(pair for pair in headers if pair[0] == name.encode())]

    assert refusal(without) is RefusalReason.MISSING_HEADER
    assert refusal(twice) is RefusalReason.BAD_HEADER


@pytest.mark.parametrize(
    "timestamp", [b"", b"now", b"+1772366400", b"1_772_366_400", b"1772366400.0", b"9" * 5_000]
)
def test_a_time_is_digits_and_no_more(timestamp: bytes) -> None:
    headers = replaced(signed("wh_1", NOON, BODY), TIMESTAMP_HEADER, timestamp)
    assert refusal(headers) is RefusalReason.BAD_HEADER


@pytest.mark.parametrize("delivery_id", [b"", b"a b", b"\xe9", b"x" * 257, b"a\x00"])
def test_an_id_is_visible_ascii(delivery_id: bytes) -> None:
    headers = replaced(signed("wh_1", NOON, BODY), ID_HEADER, delivery_id)
    assert refusal(headers) is RefusalReason.BAD_HEADER


@pytest.mark.parametrize(
    "signature", [b"", b"v1,", b"v1", b"v1,\xff\xfe", "v1,é".encode(), b"v2,AAAA", b" " * 100]
)
def test_what_is_no_signature_is_none(signature: bytes) -> None:
    headers = replaced(signed("wh_1", NOON, BODY), SIGNATURE_HEADER, signature)
    assert refusal(headers) is RefusalReason.BAD_SIGNATURE


def test_every_signed_part_counts() -> None:
    headers = signed("wh_1", NOON, BODY)
    later = str(int(NOON.timestamp()) + 1).encode()

    assert refusal(replaced(headers, ID_HEADER, b"wh_2")) is RefusalReason.BAD_SIGNATURE
    assert refusal(replaced(headers, TIMESTAMP_HEADER, later)) is RefusalReason.BAD_SIGNATURE
    assert refusal(headers, BODY + b" ") is RefusalReason.BAD_SIGNATURE
    assert refusal(headers, b"") is RefusalReason.BAD_SIGNATURE
    other = SigningKey(b"another key, and long enough")
    assert refusal(signed("wh_1", NOON, BODY, other)) is RefusalReason.BAD_SIGNATURE


def test_a_signature_under_an_empty_key_is_not_believed() -> None:
    content = b"wh_1.%d.%s" % (NOON.timestamp(), BODY)
    empty = base64.b64encode(hmac.digest(b"", content, hashlib.sha256))
    headers = replaced(signed("wh_1", NOON, BODY), SIGNATURE_HEADER, b"v1," + empty)
    assert refusal(headers) is RefusalReason.BAD_SIGNATURE


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"webhook-id", b"webhook-timestamp", b"webhook-signature", b"x"]),
            st.binary(max_size=40) | st.sampled_from([b"wh_1", b"1772366400", b"v1,AAAA"]),
        ),
        max_size=5,
    ),
    st.binary(max_size=40),
)
def test_junk_is_refused_and_never_a_defect(headers: Headers, body: bytes) -> None:
    with pytest.raises(DeliveryRefusedError):
        KEY.verify(headers, body, NOON)


def test_a_key_is_not_shown() -> None:
    assert "learnd" not in repr(KEY)


def test_a_secret_of_too_few_bytes_is_weak() -> None:
    with pytest.raises(WeakSecretError, match="this one has 23"):
        SigningKey.of("whsec_" + base64.b64encode(b"x" * 23).decode())
    assert SigningKey.of("whsec_" + base64.b64encode(b"x" * 24).decode()).key == b"x" * 24
