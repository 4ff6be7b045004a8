"""Screening for tests: none at all, and the validators that misbehave."""

import textwrap
from pathlib import Path

from consumers.screening.process import ScreeningProcess
from daemon.screening import Screening
from daemon.store import Store
from learning.clock import Clock
from learning.facts import Fact
from learning.screening import ScreeningRules

# What a package outside would bring: a module, and the metadata that registers it.
MODULE = """
import ctypes, os, re, signal, sys, time
from learning.screening import Scrubbed

class Naughty:
    name = "naughty"

    def check(self, event):
        match event.prompt:
            case "hang": time.sleep(3_600)
            case "hang in C": re.match(r"(a+)+$", "a" * 40 + "b")
            case "crash": os._exit(7)
            case "fault": ctypes.string_at(0)
            case "bomb": b"x" * 2**40
            case "many": list(range(10**9))
            case "break": raise ValueError("the secret is xyzzy")
            case "junk": return 42
            case "print": print("chatter"); sys.stdout.flush(); os.write(1, b"more")
            case "read": sys.stdin.read()
            case "once" if not os.path.exists(event.task_id):
                open(event.task_id, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            case "scrub":
                return Scrubbed(event.model_copy(update={"output": "***"}), "1 thing")
            case "refuse": return "no"

class Next:
    name = "next"

    def check(self, event):
        return "saw stars" if event.output == "***" else None
"""
ENTRIES = "[learnd.screeners]\nnaughty = naughty_package:Naughty\nnext = naughty_package:Next\n"


def install(folder: Path, module: str = MODULE, entries: str = ENTRIES) -> None:
    """Put a package with validators where the screening process finds it."""
    (folder / "naughty_package.py").write_text(textwrap.dedent(module))
    metadata = folder / "naughty_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: naughty\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(entries)


def no_screening(store: Store, clock: Clock) -> Screening:
    """Lets everything pass, and starts no process."""

    def unheard(fact: Fact) -> None:
        """Nobody listens."""

    rules = ScreeningRules(enabled=False)
    return Screening(store, ScreeningProcess(), lambda: rules, unheard, clock)
