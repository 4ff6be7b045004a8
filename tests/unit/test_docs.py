"""The documents keep up with the code."""

import json
import re
from pathlib import Path

import yaml

from consumers.wire import Reason
from daemon.settings import Settings
from finetune.trainer.protocol import TrainingSettings
from learning.ports import ID_REUSED

DOCS = Path(__file__).parents[2] / "docs"
ROW = re.compile(r"^\| `([a-z0-9_.]+)` \| (?:`(.*?)`|-) \|", re.MULTILINE)
QUOTE = '"'
LIVE = re.compile(r"^\| `([a-z0-9_]+\.[a-z0-9_.]+)` \| (?:`.*?`|-) \| \*live\* ", re.MULTILINE)
OF_THIS_MACHINE = {"data_dir", "database_url", "dataset_dir", "artifacts_dir", "node"}


def documented_defaults() -> dict[str, str]:
    return {key: value or "-" for key, value in ROW.findall((DOCS / "settings.md").read_text())}


def test_every_setting_is_documented_with_its_default() -> None:
    documented = documented_defaults()
    for setting in Settings().explain():
        assert setting.key in documented
        if setting.key not in OF_THIS_MACHINE:
            assert documented[setting.key] == setting.value, setting.key


def test_the_settings_that_can_be_changed_at_run_time_are_marked() -> None:
    marked = set(LIVE.findall((DOCS / "settings.md").read_text()))
    assert marked == {one.key for one in Settings().explain() if one.changeable}


def test_every_training_setting_is_documented_with_its_default() -> None:
    documented = documented_defaults()
    for name, field in TrainingSettings.model_fields.items():
        if name != "seed":
            default = "-" if field.default is None else str(field.default)
            assert documented[name].lower() == default.lower(), name


def test_the_guide_to_training_has_every_setting_with_its_default_and_description() -> None:
    table = (DOCS / "training.md").read_text()
    for name, field in TrainingSettings.model_fields.items():
        default = "-" if field.default is None else f"`{json.dumps(field.default).strip(QUOTE)}`"
        assert f"| `{name}` | {default} | {field.description} |" in table, name


def test_every_dead_letter_reason_is_documented() -> None:
    text = (DOCS / "events.md").read_text()
    for reason in (*Reason, ID_REUSED):
        assert f"`{reason}`" in text, reason


def test_every_configuration_in_the_guide_to_providers_is_understood() -> None:
    found = re.findall(r"```yaml\n(.*?)```", (DOCS / "providers.md").read_text(), re.DOTALL)
    settings = [Settings(**yaml.safe_load(text)) for text in found]
    assert {one.finetune.provider for one in settings} == {"openai", "http"}
