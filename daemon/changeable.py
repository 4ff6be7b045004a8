"""Which setting a person means by a key, and whether it can be changed while learnd runs.

What cannot: addresses, folders and sizes that something was opened with, and every secret.
Says where such a one is set instead. Decides nothing about values.
"""

import difflib
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel, SecretStr

from daemon.settings import (
    ENV_PREFIX,
    KeyPath,
    LineSettings,
    Settings,
    is_changeable,
    leaves,
    may_be_secret,
    section_of,
)
from daemon.settings_sources import unknown_setting
from learning.errors import ConflictError, NotFoundError


class UnknownSettingError(NotFoundError):
    """No setting has this key."""

    def __init__(self, key: str, hint: str) -> None:
        super().__init__(f"{key}: {hint}")
        self.key = key


class FixedSettingError(ConflictError):
    """A setting that cannot be changed while learnd runs, or must not be in a database."""

    def __init__(self, key: str, why: str, source: str | None) -> None:
        variable = ENV_PREFIX + key.replace(".", "__").upper()
        where = (
            f"it is set in {source}: change it there"
            if source is not None
            else f"set it in learnd.yaml or as {variable}"
        )
        super().__init__(f"{key} {why}; {where}, and restart the daemon")
        self.key = key


def changeable_path(key: str, settings: Settings) -> KeyPath:
    """The place of a setting that can be changed, in these settings.

    Raises UnknownSettingError, with what was meant perhaps, and FixedSettingError.
    """
    path = _known_path(key, settings)
    if not is_changeable(path):
        raise _fixed(key, path, settings)
    require_no_secret(path, None, settings)
    _require_line(key, path, settings)
    return path


def known_path(key: str, settings: Settings) -> KeyPath:
    """The place of any setting. Raises UnknownSettingError, with what was meant perhaps."""
    path = _known_path(key, settings)
    _require_line(key, path, settings)
    return path


def require_no_secret(path: KeyPath, value: Any, settings: Settings) -> None:
    """Raise FixedSettingError when a place, or one inside the value, may be a secret's."""
    for place, _ in leaves({path[-1]: value}, path[:-1]):
        if may_be_secret(place):
            raise _secret(".".join(place), path, settings)


def _known_path(key: str, settings: Settings) -> KeyPath:
    path = _path(key, settings)
    if path is None:
        raise UnknownSettingError(key, _meant(key, settings))
    return path


def _require_line(key: str, path: KeyPath, settings: Settings) -> None:
    if path[0] == "lines" and settings.model_lines().get(path[1]) is None:
        raise UnknownSettingError(key, f"there is no model line {path[1]!r}; lines are configured")


def _path(key: str, settings: Settings) -> KeyPath | None:
    """The place of one setting; None when the key is none, or names several."""
    in_lines = key.partition(".")[0] == "lines"
    return _line_path(key, settings) if in_lines else _section_path(key)


def _section_path(key: str) -> KeyPath | None:
    first, *others = key.split(".")
    section = section_of(first)
    if section is None:
        return (first,) if first in Settings.model_fields and not others else None
    if not others or others[0] not in section.model_fields:
        return None
    annotation = section.model_fields[others[0]].annotation
    return _below((first, others[0]), annotation, others[1:])


def _line_path(key: str, settings: Settings) -> KeyPath | None:
    """The place that a key names in a line, whose name may contain dots."""
    known = settings.model_lines()
    found = list(_line_paths(key.split(".")[1:]))
    return next((path for path in found if known.get(path[1]) is not None), (*found, None)[0])


def _line_paths(parts: list[str]) -> Iterator[KeyPath]:
    for length in range(1, len(parts)):
        name, field = ".".join(parts[:length]), LineSettings.model_fields.get(parts[length])
        if field is not None:
            path = _below(("lines", name, parts[length]), field.annotation, parts[length + 1 :])
            if path is not None:
                yield path


def _below(path: KeyPath, annotation: object, parts: list[str]) -> KeyPath | None:
    """The path, and below a mapping the name of its entry, which may contain dots.

    In a mapping of mappings the outer name may not.
    """
    if get_origin(annotation) is dict:
        if not parts or not all(parts):
            return None
        entries = get_args(annotation)[1]
        if get_origin(entries) is dict:
            return _below((*path, parts[0]), entries, parts[1:])
        if isinstance(entries, type) and issubclass(entries, BaseModel):
            return _below((*path, ".".join(parts[:-1])), entries, parts[-1:]) if parts[1:] else None
        return (*path, ".".join(parts))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        inside = annotation.model_fields
        return (*path, *parts) if len(parts) == 1 and parts[0] in inside else None
    return path if not parts else None


def _meant(key: str, settings: Settings) -> str:
    keys = [".".join(known) for known, _ in leaves(settings.model_dump())]
    below = [known for known in keys if known.startswith(f"{key}.")]
    if below or _path(f"{key}.NAME", settings) is not None:
        return f"names several settings: name one, such as {(*below, f'{key}.NAME')[0]}"
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.7)
    return (
        f"no such setting; did you mean {near[0]}?"
        if near
        else unknown_setting(tuple(key.split(".")))
    )


def _fixed(key: str, path: KeyPath, settings: Settings) -> FixedSettingError:
    section = section_of(path[0])
    field = section.model_fields.get(path[1]) if section is not None and len(path) > 1 else None
    if field is not None and _holds_secret(field.annotation):
        return _secret(key, path, settings)
    why = "cannot be changed while learnd runs"
    return FixedSettingError(key, why, _source(path, settings))


def _holds_secret(annotation: object) -> bool:
    return annotation is SecretStr or any(map(_holds_secret, get_args(annotation)))


def _secret(key: str, path: KeyPath, settings: Settings) -> FixedSettingError:
    why = "may be a secret: secrets come from the environment or a file, never from a database"
    return FixedSettingError(key, why, _source(path, settings))


def _source(path: KeyPath, settings: Settings) -> str | None:
    return next(
        (source for known, source in settings.sources.items() if known[: len(path)] == path), None
    )
