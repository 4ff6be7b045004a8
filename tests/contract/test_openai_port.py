"""The provider and a service at a real port: what a network does that no process does to itself."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from finetune.artifacts import ArtifactStore
from finetune.remote.access import ServiceAccess
from finetune.remote.openai_client import OpenAIClient
from finetune.remote.openai_provider import OpenAIProvider
from finetune.remote.openai_settings import OpenAIRules
from learning.ports import JobHandle, ModelReference, RunSpec
from tests.services.fake_openai import FakeOpenAI, Fault

JOBS = "/fine_tuning/jobs"
RULES = OpenAIRules(
    poll=timedelta(milliseconds=1),
    timeout=timedelta(seconds=1),
    tries=2,
    retry_base=timedelta(milliseconds=1),
    retry_cap=timedelta(milliseconds=20),
)


@pytest.mark.parametrize(
    ("fault", "error"), [(Fault.RESET_AFTER, ConnectionError), (Fault.SLOW, TimeoutError)]
)
async def test_a_job_whose_reply_never_came_is_found_by_its_run(
    tmp_path: Path, fault: Fault, error: type[Exception]
) -> None:
    rows = tmp_path / "train.jsonl"
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    rows.write_text((json.dumps(row) + "\n") * 10)
    spec = RunSpec(
        run_id="r-1",
        attempt=1,
        line="queries",
        parent=ModelReference("small"),
        train_file=rows,
        work_dir=tmp_path / "work",
        training={},
        seed=7,
        timeout=timedelta(minutes=5),
    )
    with FakeOpenAI() as fake:
        fake.planned.plan("POST", JOBS, fault)
        access = ServiceAccess(fake.url, SecretStr(fake.service.api_key))
        async with OpenAIClient.open(access, RULES) as client:
            provider = OpenAIProvider(
                client,
                access,
                tmp_path / "openai",
                ArtifactStore(tmp_path / "artifacts"),
                serving=fake.url,
                rules=RULES,
            )
            with pytest.raises(error):
                await provider.launch(spec)
            found = await provider.lookup("r-1", 1)
            [job] = fake.service.created
            assert found == JobHandle("r-1", 1, job.id)
            outcome = await provider.wait(found, lambda progress: None)
    assert outcome.measurements["model"] == job.model
