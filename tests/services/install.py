"""Fetch the servers that the tests start: `python -m tests.services.install`.

A second run finds everything in place and changes nothing. As root on a Debian machine it
installs packages; elsewhere it says what to install, and the tests that need it are skipped
(but fail where CI=true). Nothing here is needed to run learnd.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.services import postgres
from tests.services.java import OLDEST_JAVA, find_java
from tests.services.kafka import KAFKA_VERSION, LIBRARIES

POM = Path(__file__).with_name("pom.xml")


class CannotInstallError(Exception):
    """Something is missing that only the user of this machine can install."""


def main() -> int:
    """Exit status: 0 when all is there, or a laptop goes without; 1 where CI=true."""
    all_there = True
    for service, install in (("Kafka", install_kafka), ("PostgreSQL", install_postgres)):
        try:
            install()
        except (CannotInstallError, subprocess.CalledProcessError) as failure:
            print(f"services: {failure}", file=sys.stderr)
            print(f"services: the tests on a real {service} cannot run.", file=sys.stderr)
            all_there = False
    return 0 if all_there or os.environ.get("CI") != "true" else 1


def install_kafka() -> None:
    """Java from the system, Kafka from Maven Central into .cache."""
    if find_java() is None:
        install_packages(
            "openjdk-17-jre-headless", otherwise=f"install Java {OLDEST_JAVA} or later (a JRE)"
        )
    if LIBRARIES.is_dir():
        return
    if shutil.which("mvn") is None:
        install_packages("maven", otherwise="install Maven (the command mvn)")
    print(f"services: fetching Kafka {KAFKA_VERSION} (43 MB) ...", flush=True)
    home = LIBRARIES.parent
    home.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="partial-", dir=home.parent) as partial:
        # Into a folder of another name first: the real name means complete.
        fetched = Path(partial, home.name)
        maven = subprocess.run(
            [
                *("mvn", "--quiet", "--batch-mode", "--no-transfer-progress"),
                *("--strict-checksums", "--file", POM, "dependency:copy-dependencies"),
                *("-DincludeScope=runtime", f"-DoutputDirectory={fetched / LIBRARIES.name}"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,  # even when quiet it writes terminal codes
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if maven.returncode != 0:
            raise CannotInstallError(f"Maven could not fetch Kafka:\n{maven.stdout.strip()}")
        if not list(fetched.glob(f"libs/kafka_*-{KAFKA_VERSION}.jar")):
            raise CannotInstallError(f"{POM.name} does not name Kafka {KAFKA_VERSION}")
        if not LIBRARIES.is_dir():
            fetched.rename(home)


def install_postgres() -> None:
    """PostgreSQL from the system. The tests make a server of their own with its programs."""
    if postgres.find_programs() is None:
        oldest = postgres.OLDEST_POSTGRES
        install_packages(
            "postgresql", otherwise=f"install PostgreSQL {oldest} or later, with initdb on PATH"
        )
    if (lack := postgres.missing()) is not None:
        raise CannotInstallError(lack)


def install_packages(*packages: str, otherwise: str) -> None:
    """Install Debian packages, or raise CannotInstallError with what to do instead."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise CannotInstallError(f"please {otherwise}, then run this again")
    print(f"services: apt-get install {' '.join(packages)} ...", flush=True)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    apt_get = ["apt-get", "-qq", "-o", "Dpkg::Use-Pty=0"]
    subprocess.run([*apt_get, "update"], env=environment, check=True)
    subprocess.run(
        [*apt_get, "install", "--yes", "--no-install-recommends", *packages],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=True,
    )


if __name__ == "__main__":
    sys.exit(main())
