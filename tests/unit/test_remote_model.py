"""A remote version's artifact says which model of which service it stands for."""

from pathlib import Path

import pytest

from finetune.artifacts import ArtifactStore
from finetune.remote.model import FILE, NotARemoteModelError, RemoteModel, name_of, read, write
from learning.ports import ModelReference

MODEL = RemoteModel("openai", "http://127.0.0.1:9/v1", "ft:small:queries:7")


def test_a_remote_model_is_published_and_read_back(tmp_path: Path) -> None:
    write(MODEL, tmp_path / "output")
    artifacts = ArtifactStore(tmp_path / "artifacts")
    published = artifacts.publish("r-1", tmp_path / "output")
    assert read(artifacts.path(published.name)) == MODEL


def test_a_model_is_called_by_its_artifacts_name_or_by_its_bases(tmp_path: Path) -> None:
    write(MODEL, tmp_path)
    assert name_of(ModelReference("small", tmp_path)) == MODEL.name
    assert name_of(ModelReference("small")) == "small"


@pytest.mark.parametrize(
    "content", [None, "", "{}", '{"provider": "p", "endpoint": "e", "name": 7}', "[1]", "{"]
)
def test_a_folder_that_names_no_model_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / FILE).write_text(content)
    with pytest.raises(NotARemoteModelError, match=FILE):
        read(tmp_path)
