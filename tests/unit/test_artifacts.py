"""What may be published, what a damaged artifact is told, and what a crash leaves."""

import fcntl
import hashlib
import json
import os
import pickle
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.artifacts import (
    ArtifactError,
    ArtifactStore,
    DamagedArtifactError,
    Published,
    verify,
)
from learning.ports import ModelReference


def safetensors(data: bytes = b"weights!") -> bytes:
    entry = {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}
    header = json.dumps({"weight": entry}).encode()
    return struct.pack("<Q", len(header)) + header + data


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "output-1"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(safetensors())
    (folder / "adapter_config.json").write_text('{"r": 16}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    (folder / "vocab.txt").write_text("a\nb\n")
    (folder / "merges.txt").write_text("a b\n")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def published(store: ArtifactStore, output: Path) -> Published:
    return store.publish("r-1", output)


def everything_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def overwrite(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def test_an_artifact_is_named_by_its_run_and_the_digest_of_its_manifest(
    store: ArtifactStore, published: Published
) -> None:
    manifest = (store.path(published.name) / "manifest.json").read_bytes()
    digest = hashlib.sha256(manifest).hexdigest()
    assert published == Published(f"r-1-{digest[:12]}", digest)


def test_a_published_artifact_has_the_files_of_the_output_and_verifies(
    store: ArtifactStore, published: Published, output: Path
) -> None:
    files = everything_in(store.path(published.name))
    del files["manifest.json"]
    assert files == everything_in(output)
    manifest = store.verify(published.name)
    assert manifest.run_id == "r-1"
    assert manifest.sha256 == published.manifest_sha256
    assert {name: entry.size for name, entry in manifest.files.items()} == {
        name: len(content) for name, content in files.items()
    }


def test_publishing_the_same_again_returns_the_same_artifact(
    store: ArtifactStore, published: Published, output: Path
) -> None:
    before = (store.path(published.name) / "manifest.json").stat().st_ino
    assert store.publish("r-1", output) == published
    assert (store.path(published.name) / "manifest.json").stat().st_ino == before


def test_other_content_makes_another_artifact(
    store: ArtifactStore, published: Published, output: Path
) -> None:
    overwrite(output / "adapter_model.safetensors", safetensors(b"other"))
    other = store.publish("r-1", output)
    assert other != published
    store.verify(published.name)
    store.verify(other.name)


def test_publishing_again_repairs_an_artifact_that_was_damaged(
    store: ArtifactStore, published: Published, output: Path
) -> None:
    overwrite(store.path(published.name) / "vocab.txt", b"damaged")
    assert store.publish("r-1", output) == published
    store.verify(published.name)


def test_bytes_that_an_output_shares_with_its_artifact_become_read_only(
    store: ArtifactStore, published: Published, output: Path
) -> None:
    assert not (output / "adapter_model.safetensors").stat().st_mode & 0o222


def test_an_output_on_another_file_system_is_copied(
    store: ArtifactStore, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    published = store.publish("r-1", output)
    store.verify(published.name)


def plant_pickle(folder: Path) -> str:
    (folder / "training_args.bin").write_bytes(pickle.dumps({"a": 1}))
    return "training_args.bin"


def plant_pickle_as_safetensors(folder: Path) -> str:
    (folder / "evil.safetensors").write_bytes(pickle.dumps({"a": 1}))
    return "evil.safetensors"


def plant_pickle_as_tokenizer(folder: Path) -> str:
    (folder / "sentencepiece.model").write_bytes(pickle.dumps({"a": 1}))
    return "sentencepiece.model"


def plant_zip_as_tokenizer(folder: Path) -> str:
    (folder / "sentencepiece.model").write_bytes(b"PK\x03\x04archive/data.pkl")
    return "sentencepiece.model"


def plant_code(folder: Path) -> str:
    (folder / "modeling.py").write_text("import os")
    return "modeling.py"


def plant_text(folder: Path) -> str:
    (folder / "notes.txt").write_text("notes")
    return "notes.txt"


def plant_symlink(folder: Path) -> str:
    (folder / "config.json").symlink_to("/etc/hostname")
    return "config.json"


def plant_subfolder(folder: Path) -> str:
    (folder / "checkpoint-20.json").mkdir()
    return "checkpoint-20.json"


def plant_manifest(folder: Path) -> str:
    (folder / "manifest.json").write_text("{}")
    return "manifest.json"


def plant_hidden_file(folder: Path) -> str:
    (folder / ".hidden.json").write_text("{}")
    return ".hidden.json"


def cut_weights_short(folder: Path) -> str:
    overwrite(folder / "adapter_model.safetensors", safetensors()[:-1])
    return "adapter_model.safetensors"


def break_header(folder: Path) -> str:
    overwrite(folder / "adapter_model.safetensors", struct.pack("<Q", 4) + b"[1]\n")
    return "adapter_model.safetensors"


def break_json(folder: Path) -> str:
    overwrite(folder / "adapter_config.json", b'{"r": ')
    return "adapter_config.json"


@pytest.mark.parametrize(
    "plant",
    [
        plant_pickle,
        plant_pickle_as_safetensors,
        plant_pickle_as_tokenizer,
        plant_zip_as_tokenizer,
        plant_code,
        plant_text,
        plant_symlink,
        plant_subfolder,
        plant_manifest,
        plant_hidden_file,
        cut_weights_short,
        break_header,
        break_json,
    ],
)
def test_only_sound_files_of_the_allowed_kinds_are_published(
    store: ArtifactStore, output: Path, tmp_path: Path, plant: Callable[[Path], str]
) -> None:
    name = plant(output)
    with pytest.raises(ArtifactError) as refused:
        store.publish("r-1", output)
    assert refused.value.file == name
    assert name in str(refused.value)
    assert not (tmp_path / "artifacts").exists()


def test_an_empty_output_is_refused(store: ArtifactStore, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ArtifactError, match="empty"):
        store.publish("r-1", empty)


def test_an_output_that_is_not_there_is_refused(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nowhere: is not a folder"):
        store.publish("r-1", tmp_path / "nowhere")


@pytest.mark.parametrize("run_id", ["", "../r-1", "a/b", ".hidden", "r 1", "r" * 129])
def test_a_run_id_that_is_no_folder_name_is_refused(
    store: ArtifactStore, output: Path, run_id: str
) -> None:
    with pytest.raises(ArtifactError):
        store.publish(run_id, output)


@pytest.mark.parametrize(
    "name",
    ["..", "../artifacts/r-1-0123456789ab", "/etc", "r-1", ".staging-0123456789ab", "r-1-0123\n"],
)
def test_a_name_cannot_lead_out_of_the_root(store: ArtifactStore, name: str) -> None:
    with pytest.raises(ArtifactError):
        store.path(name)
    with pytest.raises(ArtifactError):
        store.verify(name)


def test_a_flipped_bit_is_named(store: ArtifactStore, published: Published) -> None:
    weights = store.path(published.name) / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    overwrite(weights, bytes(content))
    with pytest.raises(ArtifactError, match=r"adapter_model\.safetensors: has SHA-256") as refused:
        store.verify(published.name)
    assert refused.value.file == "adapter_model.safetensors"


class Bomb:
    """Says so when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return pytest.fail, ("it was unpickled",)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_done_to_any_file_the_file_and_a_way_out_are_named(
    output: Path, tmp_path: Path, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as root:
        store = ArtifactStore(Path(root, "artifacts"))
        folder = store.path(store.publish("r-1", output).name)
        file = data.draw(st.sampled_from(sorted(folder.iterdir())), label="file")
        match data.draw(st.sampled_from(["flip", "cut", "remove", "link", "pickle", "add"])):
            case "flip":
                content = bytearray(file.read_bytes())
                bit = data.draw(st.integers(0, len(content) * 8 - 1), label="bit")
                content[bit // 8] ^= 1 << bit % 8
                overwrite(file, bytes(content))
            case "cut":
                content = bytearray(file.read_bytes())
                overwrite(file, bytes(content[: data.draw(st.integers(0, len(content) - 1))]))
            case "remove":
                file.unlink()
            case "link":
                file.rename(Path(root, "elsewhere"))
                file.symlink_to(Path(root, "elsewhere"))
            case "pickle":
                overwrite(file, pickle.dumps(Bomb()))
            case "add":
                name = data.draw(st.sampled_from(["a.bin", "a.pt", "a.pkl", "a.safetensors"]))
                file = folder / name
                file.write_bytes(pickle.dumps(Bomb()))

        with pytest.raises(DamagedArtifactError, match=r"nothing of it is loaded") as refused:
            store.verify_model(ModelReference("any-base", folder))
        assert refused.value.file == file.name


def test_another_size_is_named(store: ArtifactStore, published: Published) -> None:
    overwrite(store.path(published.name) / "vocab.txt", b"a\nb\nc\n")
    with pytest.raises(ArtifactError, match=r"vocab\.txt: has 6 bytes, and 4"):
        store.verify(published.name)


def test_a_missing_file_is_named(store: ArtifactStore, published: Published) -> None:
    (store.path(published.name) / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: is missing"):
        store.verify(published.name)


def test_an_extra_file_is_named(store: ArtifactStore, published: Published) -> None:
    (store.path(published.name) / "pytorch_model.bin").write_bytes(pickle.dumps(1))
    with pytest.raises(ArtifactError, match=r"pytorch_model\.bin: is not in the manifest"):
        store.verify(published.name)


def test_a_link_in_place_of_a_file_is_named(
    store: ArtifactStore, published: Published, output: Path
) -> None:
    file = store.path(published.name) / "vocab.txt"
    file.unlink()
    file.symlink_to(output / "vocab.txt")
    with pytest.raises(ArtifactError, match=r"vocab\.txt: is a symbolic link"):
        store.verify(published.name)


def test_a_missing_manifest_is_named(store: ArtifactStore, published: Published) -> None:
    (store.path(published.name) / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match=r"manifest\.json: cannot be read"):
        store.verify(published.name)


def test_a_manifest_that_was_rewritten_along_with_a_file_is_refused(
    store: ArtifactStore, published: Published
) -> None:
    folder = store.path(published.name)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    del manifest["files"]["vocab.txt"]
    (folder / "vocab.txt").unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"manifest\.json: its digest is"):
        store.verify(published.name)


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "[]",
        '{"format_version": 2, "run_id": "r-1", "files": {}}',
        '{"format_version": 1, "run_id": "r-1", "files": {}}',
        '{"format_version": 1, "run_id": "r-1", "files": {"a.json": {"size": 1}}}',
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, manifest: str) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        verify(tmp_path)


def test_a_copy_elsewhere_can_be_verified(
    store: ArtifactStore, published: Published, tmp_path: Path
) -> None:
    copy = tmp_path / "served"
    store.path(published.name).rename(copy)
    assert verify(copy).sha256 == published.manifest_sha256


def test_both_parts_of_a_model_are_verified(
    store: ArtifactStore, published: Published, tmp_path: Path
) -> None:
    folder = store.path(published.name)
    store.verify_model(ModelReference("some/hub-name", folder))
    store.verify_model(ModelReference(str(folder)))
    overwrite(folder / "vocab.txt", b"bad\n")
    for model in (ModelReference("some/hub-name", folder), ModelReference(str(folder))):
        with pytest.raises(ArtifactError, match=r"vocab\.txt"):
            store.verify_model(model)


def test_a_published_model_that_lost_its_manifest_is_not_taken_for_a_base_model(
    store: ArtifactStore, published: Published, output: Path
) -> None:
    folder = store.path(published.name)
    (folder / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        store.verify_model(ModelReference(str(folder)))
    store.verify_model(ModelReference(str(output)))


def test_an_adapter_without_a_manifest_is_refused(store: ArtifactStore, output: Path) -> None:
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        store.verify_model(ModelReference("some/hub-name", output))


@pytest.mark.parametrize("step", ["os.link", "os.fsync", "os.rename"])
def test_a_publish_that_is_interrupted_leaves_no_artifact(
    store: ArtifactStore,
    output: Path,
    tmp_path: Path,
    step: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(step, interrupt)
        # A killed process does not tidy up either.
        patch.setattr("shutil.rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            store.publish("r-1", output)
    left = [path.name for path in (tmp_path / "artifacts").iterdir()]
    assert [name for name in left if not name.startswith(".")] == []

    swept = store.sweep()
    assert len(swept) == 1
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == [".lock"]
    store.verify(store.publish("r-1", output).name)


def test_the_manifest_is_written_after_the_files_and_before_the_name(
    store: ArtifactStore, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []
    rename = os.rename

    def watch(source: Path, target: Path) -> None:
        seen.append({path.name for path in source.iterdir()})
        rename(source, target)

    monkeypatch.setattr(os, "rename", watch)
    published = store.publish("r-1", output)
    assert seen == [set(everything_in(store.path(published.name)))]


def test_sweeping_leaves_artifacts_alone(store: ArtifactStore, published: Published) -> None:
    assert store.sweep() == []
    store.verify(published.name)


def test_sweeping_waits_for_another_time_while_somebody_publishes(
    store: ArtifactStore, published: Published, tmp_path: Path
) -> None:
    staging = tmp_path / "artifacts" / ".staging-of-another-process"
    staging.mkdir()
    with (tmp_path / "artifacts" / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert store.sweep() == []
        assert staging.exists()
    assert store.sweep() == [staging.name]


def test_sweeping_a_root_that_does_not_exist_yet_is_nothing(store: ArtifactStore) -> None:
    assert store.sweep() == []
