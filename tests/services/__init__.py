"""Real servers that the tests start: where they come from, and what happens without them."""

import os

import pytest


def require(service: str, missing: str | None) -> None:
    """Go on only when a service can be had; `missing` says what it lacks, None for nothing.

    On a laptop the test is skipped with that reason. Where CI=true it fails: there a
    skipped test would look like a passed one.
    """
    if missing is None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"{service} is required where CI=true: {missing}", pytrace=False)
    pytest.skip(f"{service}: {missing}")
