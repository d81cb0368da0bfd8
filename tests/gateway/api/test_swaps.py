"""Models, aliases that move under load, and the limit on waiting requests."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.gateway.api.conftest import Served
from tests.narrowing import present
from tunery.registry.configuration.settings import ServeSettings

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]
MOVE = """
import sys
from pathlib import Path
from tunery.registry.home import Home
from tunery.registry.registry import Registry
with Registry.open(Home(Path(sys.argv[1]))) as registry:
    registry.move_alias("acme/support", "production", int(sys.argv[2]), actor="another process")
"""


async def test_models_lists_the_base_and_the_adapters(served: Served) -> None:
    served.publish("acme/support", alias="production")
    newest = served.publish("globex/tickets", seed=1)
    models = [model async for model in served.client.models.list()]
    assert [model.id for model in models] == ["tiny", "acme/support", "globex/tickets"]
    assert present(models[2].model_extra)["digest"] == newest.digest
    assert models[1].owned_by == "acme"
    one = await served.client.models.retrieve("acme/support@production")
    ours = present(one.model_extra)
    assert (one.id, ours["version"], ours["aliases"]) == ("acme/support@production", 1, ["production"])
    with pytest.raises(openai.NotFoundError):
        await served.client.models.retrieve("acme/other")


async def test_an_adapter_of_another_base_is_not_served(served: Served) -> None:
    import msgspec

    other = msgspec.structs.replace(served.base, digest="c" * 64, name="other")
    served.gateway.registry.add_base(other)
    served.base = other
    served.publish("acme/foreign")
    with pytest.raises(openai.NotFoundError, match="was trained on other"):
        await served.client.chat.completions.create(model="acme/foreign", messages=MESSAGES)
    assert [model.id async for model in served.client.models.list()] == ["tiny"]


@pytest.mark.slow
async def test_an_alias_moved_by_another_process_takes_effect_at_once_and_nothing_is_dropped(served: Served) -> None:
    served.publish("acme/support", seed=1, alias="production")
    served.publish("acme/support", seed=2)
    served.engine.delay = 0.002
    versions: Counter[str] = Counter()
    failures: list[Exception] = []
    moved = asyncio.Event()
    done = asyncio.Event()

    async def keep_sending() -> None:
        while not done.is_set():
            after = moved.is_set()
            try:
                raw = await served.client.chat.completions.with_raw_response.create(
                    model="acme/support", messages=MESSAGES
                )
            except openai.OpenAIError as error:
                failures.append(error)
                return
            version = raw.headers["x-tunery-version"]
            versions[version] += 1
            assert not after or version == "2"

    clients = [asyncio.create_task(keep_sending()) for _ in range(8)]
    while versions["1"] < 50:
        await asyncio.sleep(0.01)
    home = str(served.gateway.registry.home.root)
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", MOVE, home, "2"], check=True)
    moved.set()
    while versions["2"] < 100:
        await asyncio.sleep(0.01)
    done.set()
    await asyncio.gather(*clients)
    assert failures == []
    assert served.engine.cancelled == []


@pytest.mark.slow
async def test_a_running_stream_ends_on_the_version_it_began_with(served: Served) -> None:
    first = served.publish("acme/support", seed=1, alias="production")
    second = served.publish("acme/support", seed=2)
    served.engine.delay = 0.02
    stream = await served.client.chat.completions.create(model="acme/support", messages=MESSAGES, stream=True)
    chunks = [await anext(stream.__aiter__())]
    served.gateway.registry.move_alias("acme/support", "production", 2, actor="test")
    answer = await served.client.chat.completions.create(model="acme/support", messages=MESSAGES)
    chunks += [chunk async for chunk in stream]
    assert {first.digest[:10] in present(chunk.system_fingerprint) for chunk in chunks} == {True}
    assert second.digest[:10] in present(answer.system_fingerprint)


class TestBoundedQueue:
    @pytest.fixture
    def settings(self) -> ServeSettings:
        return ServeSettings(base="tiny", auth=False, max_batch=1, max_waiting=2)

    @pytest.mark.slow
    async def test_more_than_may_wait_is_429_with_retry_after(self, served: Served) -> None:
        served.engine.delay = 0.1
        asking = [
            asyncio.create_task(served.client.chat.completions.create(model="tiny", messages=MESSAGES))
            for _ in range(3)
        ]
        while served.gateway.in_flight < 3:
            await asyncio.sleep(0.01)
        with pytest.raises(openai.RateLimitError) as caught:
            await served.client.chat.completions.create(model="tiny", messages=MESSAGES)
        assert caught.value.response.headers["retry-after"] == "1"
        answers = await asyncio.gather(*asking)
        assert len(answers) == 3
