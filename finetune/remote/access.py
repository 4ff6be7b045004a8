"""Where a service is, and the key that lets one in."""

from dataclasses import dataclass

from pydantic import SecretStr


@dataclass(frozen=True)
class ServiceAccess:
    """One service that is spoken to over HTTP. Its `repr` hides the key."""

    base_url: str
    """Without a slash at its end."""
    api_key: SecretStr | None = None
