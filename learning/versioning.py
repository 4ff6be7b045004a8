"""Number model versions: semantic versions of a model line.

Candidates are pre-releases (1.0.1-rc.1), the base is 1.0.0. The next release is the
highest ever released, bumped, so a number is never given twice.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from semver import Version

from learning.errors import VersionTextError

BASE = Version(1, 0, 0)


class Bump(StrEnum):
    """What a release changes, from the view of its users."""

    MAJOR = "major"
    MINOR = "minor"
    PATCH = "patch"


@dataclass(frozen=True)
class Recipe:
    """What a version was made from, as far as its number tells."""

    base_model: str
    training_digest: str
    """Digest of the training settings."""
    task_types: frozenset[str]


def parse(text: str) -> Version:
    """The version that a text names; a leading "v" is allowed.

    Raises VersionTextError when the text is not a semantic version.
    """
    try:
        return Version.parse(text.removeprefix("v"))
    except ValueError as error:
        raise VersionTextError(text) from error


def bump_between(champion: Recipe | None, candidate: Recipe) -> Bump:
    """Major for a new base model, minor for new settings or a new task type, else patch.

    `champion` is None when the champion is the declared base, which has no settings.
    """
    if champion is None:
        return Bump.PATCH
    if champion.base_model != candidate.base_model:
        return Bump.MAJOR
    if (
        champion.training_digest != candidate.training_digest
        or not candidate.task_types <= champion.task_types
    ):
        return Bump.MINOR
    return Bump.PATCH


def next_release(released: Iterable[Version], bump: Bump) -> Version:
    """The highest version ever released, bumped. With nothing released: the base."""
    highest = max(released, default=None)
    if highest is None:
        return BASE
    match bump:
        case Bump.MAJOR:
            return highest.bump_major()
        case Bump.MINOR:
            return highest.bump_minor()
        case Bump.PATCH:
            return highest.bump_patch()


def next_candidate(target: Version, candidates: Iterable[Version]) -> Version:
    """The next pre-release of `target`: rc.1, or one more than the highest among `candidates`."""
    taken = [
        int((version.prerelease or "rc.0").removeprefix("rc."))
        for version in candidates
        if version.finalize_version() == target
    ]
    return target.replace(prerelease=f"rc.{max(taken, default=0) + 1}")
