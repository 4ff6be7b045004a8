"""Directories of weights: published complete or not at all, and checked before each load.

An artifact is a folder of plain files and a manifest.json that names each of them with its
size and SHA-256. The manifest is written last, and the folder gets its name by one rename:
a crash leaves a complete artifact or a staging folder, which `sweep` removes. The name is
made of the run and the manifest's digest, never of a version number, which only promotion
assigns. Everything here blocks: callers use a thread.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import struct
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from learning.errors import LearningError
from learning.failpoints import reached
from learning.ports import ModelReference

MANIFEST: Final = "manifest.json"
FORMAT_VERSION: Final = 1

PUBLISHED_SUFFIXES: Final = frozenset({".safetensors", ".json", ".jinja", ".model"})
PUBLISHED_NAMES: Final = frozenset({"vocab.txt", "merges.txt"})
"""Tokenizer files whose suffix alone says too little."""

ADVICE: Final = (
    "nothing of it is loaded: restore the folder from a backup, or use another version"
    " (`learnd rollback`)"
)

_STAGING: Final = ".staging-"
_LOCK: Final = ".lock"
_RUN_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}-[0-9a-f]{12}")
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,254}")
_MAX_HEADER_BYTES: Final = 100_000_000
_PICKLE_STARTS: Final = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
_ZIP_START: Final = b"PK\x03\x04"  # what torch.save writes: a zip with a pickle in it


class ArtifactError(LearningError):
    """A folder is not a complete artifact as it was published, or cannot become one.

    `file` is what it is about; None when it is about the folder itself.
    """

    code = "bad_artifact"

    def __init__(self, folder: Path, file: str | None, fault: str) -> None:
        where = folder.name if file is None else f"{folder.name}/{file}"
        super().__init__(f"{where}: {fault}")
        self.folder, self.file, self.fault = folder, file, fault


class DamagedArtifactError(ArtifactError):
    """A published folder is not as it was published, and nothing of it may be loaded."""

    def __init__(self, folder: Path, file: str | None, fault: str) -> None:
        super().__init__(folder, file, f"{fault}; {ADVICE}")
        self.damage = fault
        """Without the advice."""


@dataclass(frozen=True)
class FileEntry:
    """What the manifest says of one file. The size is in bytes."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The files of an artifact by name. `sha256` is the digest of the manifest itself."""

    run_id: str
    files: Mapping[str, FileEntry]
    sha256: str


@dataclass(frozen=True)
class Published:
    """An artifact that is complete under its name."""

    name: str
    manifest_sha256: str


class _StoredEntry(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class _StoredManifest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    format_version: Literal[1]
    run_id: str = Field(pattern=rf"^{_RUN_ID.pattern}$")
    files: dict[str, _StoredEntry] = Field(min_length=1)


class ArtifactStore:
    """The artifacts below one root folder, which is made when the first one is published."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, name: str) -> Path:
        """Where the artifact of that name lies, or would. Raises ArtifactError for no name."""
        if not _NAME.fullmatch(name):
            raise ArtifactError(self._root, name, "not the name of an artifact")
        return self._root / name

    def publish(self, run_id: str, output_dir: Path) -> Published:
        """Make a complete artifact of the files in `output_dir`, which stay where they are.

        Repeated with the same files it returns the same artifact. Raises ArtifactError,
        naming the file, when one is not of a kind that is published.
        """
        if not _RUN_ID.fullmatch(run_id):
            raise ArtifactError(self._root, run_id, "not a run id that can name an artifact")
        names = _publishable(output_dir)
        self._root.mkdir(parents=True, exist_ok=True)
        with self._locked(fcntl.LOCK_SH), self._staging() as staging:
            entries = {name: _take_in(output_dir / name, staging / name) for name in names}
            reached("artifact files taken in")
            text = _manifest_text(run_id, entries)
            _write_durably(staging / MANIFEST, text)
            _sync_folder(staging)
            reached("artifact manifest written")
            digest = hashlib.sha256(text).hexdigest()
            published = Published(f"{run_id}-{digest[:12]}", digest)
            self._install(staging, published)
            reached("artifact named")
        return published

    def verify(self, artifact: str | Path, *, contents: bool = True) -> Manifest:
        """Check an artifact, by name or path; see the function of that name."""
        folder = self.path(artifact) if isinstance(artifact, str) else artifact
        return verify(folder, contents=contents)

    def verify_model(self, model: ModelReference) -> None:
        """Check each part of a model that was published. Raises ArtifactError.

        A base model that an operator brought has no manifest and is taken as it is.
        """
        base = Path(model.base_model)
        if self._holds(base) or (base / MANIFEST).exists():
            verify(base)
        if model.adapter is not None:
            verify(model.adapter)

    def remove(self, name: str) -> bool:
        """Delete an artifact for good, for nobody may load it again. False when it is gone.

        Killed in between it leaves what `sweep` removes.
        """
        folder = self.path(name)
        doomed = self._root / f"{_STAGING}removed-{uuid.uuid4().hex}"
        try:
            os.rename(folder, doomed)
        except FileNotFoundError:
            return False
        _sync_folder(self._root)
        shutil.rmtree(doomed)
        return True

    def sweep(self) -> Sequence[str]:
        """Remove what publishing left behind when it was killed; returns the removed names.

        Does nothing while somebody publishes, in this process or another.
        """
        if not self._root.is_dir():
            return []
        try:
            with self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB):
                leftovers = sorted(self._root.glob(f"{_STAGING}*"))
                for leftover in leftovers:
                    shutil.rmtree(leftover)
        except BlockingIOError:
            return []
        return [leftover.name for leftover in leftovers]

    def _holds(self, path: Path) -> bool:
        return path.absolute().parent == self._root.absolute()

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        """Publishers share the lock, the sweeper has it alone; a killed process lets go."""
        descriptor = os.open(self._root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, how)
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _staging(self) -> Iterator[Path]:
        staging = self._root / f"{_STAGING}{uuid.uuid4().hex}"
        staging.mkdir()
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _install(self, staging: Path, published: Published) -> None:
        """Give the staged folder its name, unless a sound artifact has it already."""
        final = self._root / published.name
        if final.exists():
            try:
                verify(final)
            except ArtifactError:
                # Damaged since it was published: the same bytes are at hand, so repair it.
                os.rename(final, self._root / f"{_STAGING}damaged-{uuid.uuid4().hex}")
            else:
                return
        try:
            os.rename(staging, final)
        except OSError:
            if not final.exists():
                raise
            verify(final)  # another publisher of the same bytes was first
        _sync_folder(self._root)


def verify(folder: Path, *, contents: bool = True) -> Manifest:
    """Check that a folder holds exactly the files of its manifest, byte for byte.

    Without `contents` only by name and size, which takes no time for large weights.
    Raises DamagedArtifactError naming the first file that differs and how. A folder whose name
    ends with a digest, as published ones do, must have the manifest of that digest.
    """
    if (folder / MANIFEST).is_symlink():
        raise DamagedArtifactError(folder, MANIFEST, "is a symbolic link")
    try:
        text = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise DamagedArtifactError(folder, MANIFEST, f"cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(text).hexdigest()
    if _NAME.fullmatch(folder.name) and not folder.name.endswith(digest[:12]):
        raise DamagedArtifactError(
            folder, MANIFEST, f"its digest is {digest[:12]}, not the one published"
        )
    try:
        stored = _StoredManifest.model_validate_json(text)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(map(str, fault["loc"])) or "text"
        raise DamagedArtifactError(folder, MANIFEST, f"{place}: {fault['msg']}") from error

    try:
        found = set(os.listdir(folder)) - {MANIFEST}
        for name in sorted(stored.files.keys() - found):
            raise DamagedArtifactError(folder, name, "is missing")
        for name in sorted(found - stored.files.keys()):
            raise DamagedArtifactError(folder, name, "is not in the manifest")
        for name, entry in sorted(stored.files.items()):
            _require_same(folder, name, entry, contents=contents)
    except OSError as error:
        raise DamagedArtifactError(folder, None, f"cannot be read: {error.strerror}") from error
    files = {name: FileEntry(entry.size, entry.sha256) for name, entry in stored.files.items()}
    return Manifest(stored.run_id, files, digest)


def _require_same(folder: Path, name: str, entry: _StoredEntry, *, contents: bool) -> None:
    file = folder / name
    if (fault := _not_plain(file)) is not None:
        raise DamagedArtifactError(folder, name, fault)
    size = file.stat().st_size
    if size != entry.size:
        raise DamagedArtifactError(
            folder, name, f"has {size} bytes, and {entry.size} when it was published"
        )
    if contents and (sha256 := _sha256(file)) != entry.sha256:
        raise DamagedArtifactError(
            folder, name, f"has SHA-256 {sha256[:12]}…, and {entry.sha256[:12]}… when published"
        )


def _publishable(folder: Path) -> Sequence[str]:
    """The names in a folder, each of a kind that may be published."""
    if not folder.is_dir():
        raise ArtifactError(folder, None, "is not a folder")
    names = sorted(os.listdir(folder))
    if not names:
        raise ArtifactError(folder, None, "is empty: there is nothing to publish")
    for name in names:
        if (fault := _not_plain(folder / name)) is not None:
            raise ArtifactError(folder, name, fault)
        allowed = Path(name).suffix in PUBLISHED_SUFFIXES or name in PUBLISHED_NAMES
        if name == MANIFEST or not allowed or not _FILE_NAME.fullmatch(name):
            raise ArtifactError(
                folder, name, "is not published: only safetensors, JSON and tokenizer files are"
            )
        _require_kind(folder, name)
    return names


def _not_plain(file: Path) -> str | None:
    """What a name stands for when it is no plain file."""
    if file.is_symlink():
        return "is a symbolic link"
    return None if file.is_file() else "is not a plain file"


def _require_kind(folder: Path, name: str) -> None:
    """Refuse a file that is not what its suffix says: a pickle keeps no promises."""
    file = folder / name
    with file.open("rb") as content:
        start = content.read(8)
    if start.startswith((*_PICKLE_STARTS, _ZIP_START)):
        raise ArtifactError(folder, name, "is a pickle or a zip under another name")
    if file.suffix == ".safetensors":
        _require_safetensors(folder, name)
    elif file.suffix == ".json":
        try:
            json.loads(file.read_bytes())
        except ValueError as error:
            raise ArtifactError(folder, name, f"is not JSON: {error}") from error


def _require_safetensors(folder: Path, name: str) -> None:
    """The layout of huggingface/safetensors: 8 bytes of length, a JSON header, the data."""
    size = (folder / name).stat().st_size
    with (folder / name).open("rb") as content:
        start = content.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, _MAX_HEADER_BYTES):
            raise ArtifactError(folder, name, "is not safetensors: its header has no end")
        header_text = content.read(length)
    try:
        header = json.loads(header_text)
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
    except (ValueError, AttributeError, TypeError, LookupError) as error:
        raise ArtifactError(folder, name, "is not safetensors: its header is broken") from error
    if 8 + length + max(ends, default=0) != size:
        raise ArtifactError(folder, name, "is not safetensors: it is cut short or too long")


def _take_in(source: Path, target: Path) -> FileEntry:
    """Bring a file into the staging folder, on disk when this returns.

    Where the file system can, without a copy: weights may be large. The bytes are shared
    with the source then, so both are made read-only.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    target.chmod(0o444)
    descriptor = os.open(target, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return FileEntry(target.stat().st_size, _sha256(target))


def _manifest_text(run_id: str, entries: Mapping[str, FileEntry]) -> bytes:
    manifest = _StoredManifest(
        format_version=FORMAT_VERSION,
        run_id=run_id,
        files={
            name: _StoredEntry(size=entry.size, sha256=entry.sha256)
            for name, entry in sorted(entries.items())
        },
    )
    return manifest.model_dump_json(indent=2).encode() + b"\n"


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
