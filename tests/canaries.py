"""Secrets that are planted to be looked for: none of them may turn up anywhere.

Found as they are, and as they look in an address, in JSON and in base64.
"""

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin
from urllib.parse import quote

from pydantic import BaseModel, SecretStr

from daemon.settings import KeyPath


def secret_settings(section: type[BaseModel], before: KeyPath = ()) -> Iterator[KeyPath]:
    """The path of every setting whose value is a secret."""
    for name, field in section.model_fields.items():
        for kind in _kinds(field.annotation):
            if kind is SecretStr:
                yield (*before, name)
            elif issubclass(kind, BaseModel):
                yield from secret_settings(kind, (*before, name))


def _kinds(annotation: Any) -> Iterator[type]:
    """The classes that an annotation is made of."""
    if get_origin(annotation) is not None:
        for part in get_args(annotation):
            yield from _kinds(part)
    elif isinstance(annotation, type):
        yield annotation


class Canaries:
    """Secrets by the name of what they open."""

    def __init__(self, planted: Mapping[str, str]) -> None:
        self._forms = {name: tuple(_forms(secret)) for name, secret in planted.items()}

    def found_in(self, text: str | bytes) -> set[str]:
        """The names of those that a text holds, in whatever form."""
        content = text.encode() if isinstance(text, str) else text
        return {
            name for name, forms in self._forms.items() if any(form in content for form in forms)
        }

    def found_below(self, folder: Path, *, except_in: Path) -> dict[str, set[str]]:
        """The names by the file that holds them, in every file of a folder but one."""
        files = (path for path in folder.rglob("*") if path.is_file() and path != except_in)
        looked_at = {str(path): self.found_in(path.read_bytes()) for path in files}
        assert looked_at, "there was nothing to look at"
        return {place: names for place, names in looked_at.items() if names}


def _forms(secret: str) -> Iterator[bytes]:
    yield secret.encode()
    yield quote(secret, safe="").encode()
    yield json.dumps(secret)[1:-1].encode()
    for shift in range(3):
        # Of base64 the middle: its ends depend on what stands beside the secret.
        yield base64.b64encode(b"x" * shift + secret.encode())[4:-4]
