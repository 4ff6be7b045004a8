"""Where the tests keep their temporary files: in memory, where there is a place with room.

Most of what the tests wait for on a disk is fsync. A process that is killed loses nothing that
it wrote, synced or not, and no test cuts the power, so a test sees the same in either place.
"""

import os
import shutil
import tempfile
from pathlib import Path

PLACE = Path("/dev/shm")  # noqa: S108 - only the place; pytest and tempfile make up the names
ROOM = 6 * 1024**3
"""Bytes. All tests together use 2 GiB; a container often has 64 MiB there."""


def use_memory() -> None:
    """For this process and all that it starts, unless TMPDIR names another place."""
    if "TMPDIR" in os.environ or not os.access(PLACE, os.W_OK):
        return
    if shutil.disk_usage(PLACE).free >= ROOM:
        os.environ["TMPDIR"] = str(PLACE)
        tempfile.tempdir = None  # it asks the environment again
