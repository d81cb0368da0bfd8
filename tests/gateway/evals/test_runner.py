"""The runner between crashes: what a dead server stored is not done again, and one that stops lets the run wait."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.gateway.api.conftest import Served
from tests.gateway.api.test_evals import EXACT, create, ended, source
from tunery.gateway.evals.answer import answer_chat
from tunery.gateway.evals.runner import EvalRunner
from tunery.registry.errors import Unavailable
from tunery.registry.evals.claims import RunClaim

CONTENT = [{"item": {"question": f"{n}?", "answer": "Paris"}} for n in range(4)]


async def left_behind(served: Served) -> Any:
    """A run of four rows whose server died after it had stored two of them."""
    served.says("Paris")
    made = await create(served, EXACT)
    first = await ended(served, await served.client.evals.runs.create(made.id, data_source=source(content=CONTENT)))
    evals = served.gateway.registry.evals
    rows, _ = evals.items(first.id)
    served.engine.requests.clear()
    served.engine.delay = 60
    run = await served.client.evals.runs.create(made.id, data_source=source(content=CONTENT))
    while not served.engine.requests:
        await asyncio.sleep(0.02)
    claim = RunClaim(run.id, evals.run(run.id).fence)
    for row in rows[1:3]:
        evals.add_item(claim, position=row.position, state=row.state, data=row.data | {"line": 77})
    # Somebody else's by now, so the server that has it stops.
    evals.renew(claim, lease=-1)
    lost = evals.claim("a server that died", base_digest=served.base.digest, lease=-1)
    assert lost is not None
    served.engine.delay = 0
    served.engine.requests.clear()
    return run


async def test_another_server_goes_on_with_the_rows_that_are_left(served: Served) -> None:
    run = await ended(served, await left_behind(served))
    assert (run.status, run.result_counts.passed) == ("completed", 4)
    rows, _ = served.gateway.registry.evals.items(run.id)
    assert [row.data["line"] for row in rows] == [1, 77, 77, 4]
    assert len(served.engine.requests) <= 3  # one of the first claimant's may have been under way


async def test_a_server_that_stops_lets_its_run_wait(served: Served) -> None:
    made = await create(served, EXACT)
    served.engine.delay = 60
    run = await served.client.evals.runs.create(made.id, data_source=source())
    evals, gateway = served.gateway.registry.evals, served.gateway
    while not served.engine.requests:
        await asyncio.sleep(0.02)
    evals.renew(RunClaim(run.id, 1), lease=-1)
    runner = EvalRunner(gateway, owner="second")
    runner.start()
    while evals.run(run.id).fence < 2:
        await asyncio.sleep(0.02)
    await runner.stop()
    assert evals.run(run.id).state in ("queued", "in_progress")
    served.engine.delay = 0
    assert (await ended(served, await served.client.evals.runs.retrieve(run.id, eval_id=made.id))).status == "completed"


async def test_rows_wait_for_an_engine_that_restarts(served: Served) -> None:
    served.says("Paris")
    made = await create(served, EXACT)
    served.engine.failure = Unavailable("the engine was restarted", code="engine_restarted")
    run = await served.client.evals.runs.create(made.id, data_source=source())
    while not served.engine.requests:
        await asyncio.sleep(0.02)
    served.engine.failure = None
    run = await ended(served, run)
    assert (run.status, run.result_counts.errored, run.result_counts.total) == ("completed", 0, 2)


async def test_the_answer_is_the_one_of_the_endpoint(served: Served) -> None:
    body: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "seed": 3}
    over_http = await served.client.chat.completions.create(**body)
    answer = await answer_chat(served.gateway, body)
    assert answer.choices[0].message.content == over_http.choices[0].message.content  # type: ignore[union-attr]
    assert served.engine.requests[0].prompt == served.engine.requests[1].prompt
    assert served.engine.requests[0].sampling == served.engine.requests[1].sampling
