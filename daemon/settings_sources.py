"""Read the settings: command line, environment, file; and say what is wrong with them.

Precedence in that order, then defaults. The environment is LEARND_SECTION__KEY, or one
of PLAIN_NAMES. Every fault is one line that names its source, its key and what to do.
"""

import difflib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import EnvSettingsSource

from daemon.exit_status import ExitStatus
from daemon.settings import ENV_PREFIX, KeyPath, Settings, in_words, leaves, no_such_setting
from learning.errors import LearningError

DEFAULT_FILE = "learnd.yaml"
CONFIG_VARIABLE = "LEARND_CONFIG"
URL_VARIABLE = "LEARND_URL"
TOKEN_VARIABLE = "LEARND_TOKEN"  # noqa: S105 - the name of a variable, not its value
CLIENT_VARIABLES = frozenset({CONFIG_VARIABLE, URL_VARIABLE, TOKEN_VARIABLE})
"""Variables with the prefix that are not settings of the daemon."""

PLAIN_NAMES: Mapping[str, KeyPath] = {
    "LLM_ENDPOINT": ("remote", "llm_endpoint"),
    "LLM_API_KEY": ("remote", "llm_api_key"),
    "FINETUNE_ENDPOINT": ("remote", "finetune_endpoint"),
    "FINETUNE_API_KEY": ("remote", "finetune_api_key"),
    "DATASET_DIR": ("dataset_dir",),
    "LEARNING_RATE": ("policy", "learning_rate"),
    "FEEDBACK_THRESHOLD": ("policy", "feedback_threshold"),
    "BATCH_SIZE": ("queue", "batch_size"),
    "SIMULATION_MODE": ("simulation_mode",),
    "AUTO_APPROVE": ("policy", "enable_auto_approval"),
    "OPENAI_BASE_URL": ("remote", "openai_endpoint"),
    "OPENAI_API_KEY": ("remote", "openai_api_key"),
    "OPENAI_WEBHOOK_SECRET": ("remote", "openai_webhook_secret"),
}
"""Environment names without the prefix (OP4), and the setting that each of them is."""


class SettingsError(LearningError):
    """The settings cannot be used. `problems` are lines for a person, one for each fault."""

    exit_status = ExitStatus.USAGE

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class _Layer:
    """What one source says, by the path of each leaf."""

    values: Mapping[KeyPath, Any]
    source: Callable[[KeyPath], str]


def load(config: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read the settings from the file, the environment and the command line.

    `config` is the file that the command line names; without it LEARND_CONFIG, and
    without that ./learnd.yaml if there is one. `overrides` are the command line's, by
    dotted key. Raises SettingsError, which names every fault with its source.
    """
    layers = [
        *_file(config),
        _plain_environment(),
        _environment(),
        _Layer(
            {tuple(key.split(".")): value for key, value in (overrides or {}).items()},
            lambda _path: "command line",
        ),
    ]
    merged: dict[str, Any] = {}
    sources: dict[KeyPath, str] = {}
    for layer in layers:
        for path, value in layer.values.items():
            _put(merged, path, value)
            sources[path] = layer.source(path)
    return settings_from(merged, sources)


def settings_from(tree: Mapping[str, Any], sources: Mapping[KeyPath, str]) -> Settings:
    """The settings of a tree of values, knowing where each comes from.

    Raises SettingsError, which names every fault with its source.
    """
    try:
        return Settings(**tree).told_by(sources)
    except ValidationError as error:
        raise SettingsError(
            [_problem(found, sources) for found in error.errors(include_url=False)]
        ) from error


def _put(tree: dict[str, Any], path: KeyPath, value: Any) -> None:
    for name in path[:-1]:
        below = tree.get(name)
        if not isinstance(below, dict):
            below = tree[name] = {}
        tree = below
    if value == {}:
        tree.setdefault(path[-1], {})
    else:
        tree[path[-1]] = value


# --- the file -------------------------------------------------------------------------


def _file(config: Path | None) -> list[_Layer]:
    named = config or (Path(text) if (text := os.environ.get(CONFIG_VARIABLE)) else None)
    path = named or Path(DEFAULT_FILE)
    if named is None and not path.exists():
        return []
    content = read_mapping(path)
    # `kafka:` with nothing below it, or everything below it commented out, sets nothing.
    values = {key: value for key, value in leaves(content) if value is not None}
    return [_Layer(values, lambda _path: f"file {path}")]


def read_mapping(path: Path) -> Mapping[str, Any]:
    """The keys of a YAML or JSON file, none of which stands twice.

    Empty for an empty file. Raises SettingsError.
    """
    try:
        text = path.read_text(encoding="utf-8")
        # YAML is not quite a superset of JSON: it takes no tab. The loader is a SafeLoader.
        content = (
            json.loads(text, object_pairs_hook=_unique)
            if path.suffix == ".json"
            else yaml.load(text, Loader=_StrictLoader)  # noqa: S506
        )
    except OSError as error:
        raise SettingsError([f"file {path}: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise SettingsError([f"file {path}: is not UTF-8 text"]) from error
    except yaml.YAMLError as error:
        raise SettingsError([f"file {path}: is not YAML: {_yaml_fault(error)}"]) from error
    except ValueError as error:
        raise SettingsError([f"file {path}: is not JSON: {error}"]) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError([f"file {path}: must hold settings, each as `key: value`"])
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key} stands twice")
        found[key] = value
    return found


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML in which a key that stands twice is a fault."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As in SafeLoader, with the fault named by line."""
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = key_node.value
            if not isinstance(key, str) or key in seen:
                what = f"the key {key} stands twice" if key in seen else "a key must be a text"
                raise yaml.constructor.ConstructorError(None, None, what, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _yaml_fault(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem} (line {error.problem_mark.line + 1})"
    return str(error)


# --- the environment ------------------------------------------------------------------


def _plain_environment() -> _Layer:
    by_path = {path: name for name, path in PLAIN_NAMES.items() if os.environ.get(name)}
    return _Layer(
        {path: os.environ[name] for path, name in by_path.items()},
        lambda path: f"environment {by_path[path]}",
    )


class _Environment(EnvSettingsSource):
    """LEARND_* variables. What is not JSON stays a text, for its field to read or refuse."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """JSON where it is JSON."""
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value


def _environment() -> _Layer:
    names = {
        name.upper(): name
        for name, value in os.environ.items()
        if name.upper().startswith(ENV_PREFIX) and value
    }
    unknown = [
        name
        for upper, name in names.items()
        if upper not in CLIENT_VARIABLES
        and not _is_service_link(upper, os.environ[name])
        and upper.removeprefix(ENV_PREFIX).split("__", 1)[0].lower() not in Settings.model_fields
    ]
    if unknown:
        raise SettingsError([_unknown_variable(name) for name in unknown])

    def source(path: KeyPath) -> str:
        """The variable that carried a leaf: its own, or one that carried a whole section."""
        upper = [part.upper() for part in path]
        tried = (ENV_PREFIX + "__".join(upper[:n]) for n in range(len(upper), 0, -1))
        return next((f"environment {names[name]}" for name in tried if name in names), "")

    return _Layer(dict(leaves(_Environment(Settings)())), source)


def _is_service_link(name: str, value: str) -> bool:
    """Kubernetes and Docker describe a service called learnd in variables of these forms."""
    return (
        re.search(r"_SERVICE_(HOST|PORT)|_PORT_\d+_(TCP|UDP)", name) is not None
        or re.match(r"(tcp|udp)://", value) is not None
    )


def _unknown_variable(name: str) -> str:
    spellings = [ENV_PREFIX + "__".join(path).upper() for path in _all_paths()]
    near = difflib.get_close_matches(name.upper(), spellings, n=1, cutoff=0.7)
    hint = f"did you mean {near[0]}?" if near else f"known are {ENV_PREFIX}SECTION__KEY"
    return f"environment {name}: no such setting; {hint}"


# --- faults in words ------------------------------------------------------------------


def _problem(found: ErrorDetails, sources: Mapping[KeyPath, str]) -> str:
    path: KeyPath = found.get("ctx", {}).get("path") or tuple(
        str(part) for part in found["loc"] if part != "[key]"
    )
    if found["type"] == "extra_forbidden":
        message = unknown_setting(path)
    elif found["type"] in ("model_type", "dict_type"):
        message = "must hold settings of its own: `key: value` in the file, JSON in the environment"
    elif _may_be_secret(path):
        message = in_words(found["msg"], None)
    else:
        message = in_words(found["msg"], found["input"])
    return ": ".join(part for part in (_source_of(path, sources), ".".join(path), message) if part)


def _source_of(path: KeyPath, sources: Mapping[KeyPath, str]) -> str | None:
    """Where a setting was set, or the first key below it, or the nearest one above it."""
    for length in range(len(path), 0, -1):
        for known, source in sources.items():
            if known[:length] == path[:length]:
                return source
    return None


def unknown_setting(path: KeyPath) -> str:
    """What to say of a place where no setting is."""
    here = no_such_setting(path[-1], _keys_beside(path))
    elsewhere = [known for known in _all_paths() if known[-1] == path[-1]]
    if "did you mean" in here or not elsewhere:
        return here
    return f"no such setting here; did you mean {'.'.join(elsewhere[0])}?"


def _keys_beside(path: KeyPath) -> Sequence[str]:
    """The keys of the section in which a path stands."""
    model: type[BaseModel] = Settings
    for part in path[:-1]:
        field = model.model_fields.get(part)
        if field is None:
            continue  # the name of one entry in a mapping of sections
        annotation = field.annotation
        if get_origin(annotation) is dict:
            annotation = get_args(annotation)[-1]
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return tuple(model.model_fields)


def _may_be_secret(path: KeyPath) -> bool:
    """Whether a value must not be repeated in a message."""
    return any(word in path[-1] for word in ("password", "key", "secret", "url", "endpoint"))


def _all_paths() -> list[KeyPath]:
    return [path for path, _ in leaves(Settings().model_dump())]
