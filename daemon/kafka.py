"""Make the Kafka connection from the settings: one place for the daemon and `learnd send`."""

from typing import Any

from aiokafka.helpers import create_ssl_context

from consumers.kafka_connection import KafkaConnection
from daemon.settings import KafkaSettings

SSL_PROTOCOLS = frozenset({"SSL", "SASL_SSL"})


def kafka_connection(settings: KafkaSettings) -> KafkaConnection:
    """The connection that the settings describe. Reads the certificate files.

    Raises OSError and ssl.SSLError when a certificate file cannot be used.
    """
    client: dict[str, Any] = {"security_protocol": settings.security_protocol}
    if settings.security_protocol in SSL_PROTOCOLS:
        client["ssl_context"] = create_ssl_context(
            cafile=_text(settings.ssl_cafile),
            certfile=_text(settings.ssl_certfile),
            keyfile=_text(settings.ssl_keyfile),
        )
    if settings.sasl_mechanism is not None:
        client["sasl_mechanism"] = settings.sasl_mechanism
        client["sasl_plain_username"] = settings.sasl_username
        client["sasl_plain_password"] = (
            settings.sasl_password.get_secret_value() if settings.sasl_password else None
        )
    return KafkaConnection(
        bootstrap_servers=settings.bootstrap_servers,
        group_id=settings.group_id,
        outputs_topics=settings.outputs_topics,
        feedback_topics=settings.feedback_topics,
        client=client,
        max_records=settings.max_records,
        session_timeout_seconds=settings.session_timeout_seconds,
    )


def _text(path: object) -> str | None:
    return str(path) if path is not None else None
