"""Find a Java that can run the servers of the tests."""

import os
import re
import shutil
import subprocess
from pathlib import Path

OLDEST_JAVA = 17


def find_java() -> Path | None:
    """The `java` of JAVA_HOME or PATH, when it runs and is not older than OLDEST_JAVA."""
    home = os.environ.get("JAVA_HOME")
    candidates = [str(Path(home, "bin", "java"))] if home else []
    on_path = shutil.which("java")
    if on_path is not None:
        candidates.append(on_path)
    for candidate in candidates:
        version = _major_version(candidate)
        if version is not None and version >= OLDEST_JAVA:
            return Path(candidate)
    return None


def _major_version(java: str) -> int | None:
    # macOS has a /usr/bin/java that only says where to buy one: running it is the test.
    try:
        said = subprocess.run([java, "-version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r'version "(\d+)', said.stderr + said.stdout)
    return int(found.group(1)) if found else None
