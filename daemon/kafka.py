"""Make the Kafka connection from the settings: one place for the daemon and `learnd send`."""

from typing import Any

from aiokafka.helpers import create_ssl_context

from consumers.kafka_connection import KafkaConnection
from daemon.exit_status import ExitStatus
from daemon.settings import KafkaSettings
from learning.errors import LearningError

SSL_PROTOCOLS = frozenset({"SSL", "SASL_SSL"})


class CertificateError(LearningError):
    """A certificate file that the settings name is missing, or is not a certificate."""

    exit_status = ExitStatus.USAGE

    def __init__(self, cause: OSError) -> None:
        super().__init__(
            f"the certificates cannot be used: {cause.strerror or cause};"
            " look at kafka.ssl_cafile, ssl_certfile and ssl_keyfile"
        )


def kafka_connection(settings: KafkaSettings) -> KafkaConnection:
    """The connection that the settings describe. Reads the certificate files.

    Raises CertificateError when one of them cannot be used.
    """
    client: dict[str, Any] = {"security_protocol": settings.security_protocol}
    if settings.security_protocol in SSL_PROTOCOLS:
        try:
            client["ssl_context"] = create_ssl_context(
                cafile=_text(settings.ssl_cafile),
                certfile=_text(settings.ssl_certfile),
                keyfile=_text(settings.ssl_keyfile),
            )
        except OSError as error:  # ssl.SSLError is one
            raise CertificateError(error) from error
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
        max_batch_bytes=settings.max_batch_bytes,
        session_timeout_seconds=settings.session_timeout_seconds,
    )


def _text(path: object) -> str | None:
    return str(path) if path is not None else None
