"""What the settings make of the Kafka connection."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from daemon.kafka import CertificateError, kafka_connection
from daemon.settings import KafkaSettings


def test_a_file_that_is_no_certificate_is_a_fault_of_the_settings(tmp_path: Path) -> None:
    broken = tmp_path / "ca.pem"
    broken.write_text("not a certificate")
    settings = KafkaSettings(security_protocol="SSL", ssl_cafile=broken)
    with pytest.raises(CertificateError, match=r"kafka\.ssl_cafile"):
        kafka_connection(settings)


def test_credentials_reach_the_client_and_no_text_about_it() -> None:
    settings = KafkaSettings(
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="learnd",
        sasl_password=SecretStr("very-secret"),
    )
    connection = kafka_connection(settings)
    assert connection.client["sasl_mechanism"] == "SCRAM-SHA-512"
    assert connection.client["sasl_plain_password"] == "very-secret"
    assert "very-secret" not in repr(connection)
