"""Where a service is, and the key that lets one in."""

from dataclasses import dataclass, field

from pydantic import SecretStr


@dataclass(frozen=True)
class ServiceAccess:
    """One service that is spoken to over HTTP. Its `repr` hides the key."""

    base_url: str
    """Without a slash at its end."""
    api_key: SecretStr | None = None
    allow_plain: bool = False
    """Whether `base_url` may be http where it is not this machine; see remote/address.py."""
    setting: str = field(default="base_url", compare=False)
    """The key of the setting that `base_url` comes from, for who has to change it."""

    @property
    def key_setting(self) -> str:
        """The key of the setting that `api_key` comes from."""
        return self.setting.removesuffix("endpoint") + "api_key"
