"""schemathesis over the served document: whatever is sent, no 5xx, and no answer that the document does not have."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.gateway.api.conftest import Served
from tests.gateway.api.http.test_openapi import GOOD, MESSAGES, ROWS
from tunery.registry.jobs.queue import Claim
from tunery.registry.jobs.success import Success

LEFT_OUT = "positive_data_acceptance"
"""The one check that is left out: a schema cannot say which fields exclude each other, or which files exist."""
SOAK_EXAMPLES = int(os.environ.get("SOAK_EXAMPLES", "200"))


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_no_request_has_an_undocumented_answer(served: Served) -> None:
    await run(served, examples=5)


@pytest.mark.soak
@pytest.mark.timeout(7200)
async def test_none_of_very_many_requests_has_an_undocumented_answer(served: Served) -> None:
    await run(served, examples=SOAK_EXAMPLES)


async def run(served: Served, *, examples: int) -> None:
    """Run schemathesis with that many examples for each operation, besides those at every bound of every field."""
    program = Path(sys.executable).with_name("schemathesis")
    options = [
        "--phases=coverage,fuzzing",
        "--suppress-health-check=all",
        "--checks=all",
        f"--exclude-checks={LEFT_OUT}",
        "--seed=1",
        "--no-color",
    ]
    process = await asyncio.create_subprocess_exec(
        *(str(program), "run", f"{served.url}/docs/openapi.json", f"--max-examples={examples}", *options),
        env=os.environ
        | {
            "PYTHONPATH": str(Path(__file__).parents[4]),
            "SCHEMATHESIS_HOOKS": "tests.gateway.api.http.schemathesis_hooks",
            "SCHEMATHESIS_VALUES": json.dumps(await values(served)),
        },
        cwd=served.folder,  # where it keeps what failed
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    assert re.search(r"(\d+) selected / \1 total", output.decode())


async def values(served: Served) -> dict[str, Sequence[object]]:
    """Names of models, files, jobs and all else that there is."""
    files = [
        (await served.client.files.create(file=(f"{number}.jsonl", ROWS), purpose="fine-tune")).id
        for number in range(4)
    ]
    jobs = [
        (await served.client.fine_tuning.jobs.create(model="tiny", training_file=file, metadata={"a": "b"})).id
        for file in files
    ]
    claim = served.gateway.registry.queue.claim("test")
    assert claim is not None
    served.publish(
        "acme/docs", job=Success(job=claim.id, claim=Claim(claim.id, claim.fence), model_name="ft:tiny:acme:docs:1")
    )
    others = await others_of(served)
    models = ["tiny", "acme/docs", "acme/docs@1", "ft:tiny:acme:docs:1"]
    return {
        "adapter": ["acme/docs"],
        **others,
        "after": [*files, *jobs, *(value for values in others.values() for value in values)],
        "file_id": files,
        "input": ["Hi", [1, 2]],
        "job_id": jobs,
        "messages": [MESSAGES],
        "model": models,
        "name": models,
        "prompt": ["Hi", [1, 2]],
        "training_file": files,
        "validation_file": files,
    }


async def others_of(served: Served) -> dict[str, Sequence[object]]:
    """Ids of uploads, batches, stored responses, evaluations and their runs."""
    client = served.client
    upload = await client.uploads.create(filename="a.jsonl", purpose="fine-tune", bytes=3, mime_type="text/jsonl")
    part = await client.uploads.parts.create(upload.id, data=b"{}\n")
    requests = await client.files.create(file=("requests.jsonl", b"{}\n"), purpose="batch")
    batch = await client.batches.create(
        input_file_id=requests.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    response = await client.responses.create(model="tiny", input="Hi", store=True)
    evaluation = await client.evals.create(**GOOD["/v1/evals"])
    run = await client.evals.runs.create(evaluation.id, **GOOD["/v1/evals/{eval_id}/runs"])
    return {
        "upload_id": [upload.id],
        "part_ids": [[part.id]],
        "batch_id": [batch.id],
        "input_file_id": [requests.id],
        "response_id": [response.id],
        "previous_response_id": [response.id],
        "eval_id": [evaluation.id],
        "run_id": [run.id],
    }
