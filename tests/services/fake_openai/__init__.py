"""A service that speaks OpenAI's fine-tuning protocol, and fails as it is told to.

Written from the protocol's own description, not from learnd's client, so that both have to
agree with it. It trains nothing. What happened at it is the oracle of the tests: every job
that was ever created is in `Service.created`, whether its reply arrived or not.

    service.py   files and jobs, and how a job goes on
    rows.py      what a training file has to look like
    faults.py    what goes wrong, by the test's word or by a seed
    app.py       the protocol over HTTP
    server.py    a real port, and a transport within the process
"""

from tests.services.fake_openai.faults import Fault, Faults, ScriptedFaults, SeededFaults
from tests.services.fake_openai.server import FakeOpenAI, within_process
from tests.services.fake_openai.service import Fate, Job, Service

__all__ = [
    "FakeOpenAI",
    "Fate",
    "Fault",
    "Faults",
    "Job",
    "ScriptedFaults",
    "SeededFaults",
    "Service",
    "within_process",
]
