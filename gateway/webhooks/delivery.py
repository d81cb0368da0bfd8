"""Deliver the outbox: a task for each endpoint, on a thread and an event loop of their own.

No endpoint waits for another, and none for the gateway's event loop. Each gets one webhook at a time.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, Self
from urllib.parse import urlsplit

from tunery.gateway.webhooks.backoff import next_attempt
from tunery.gateway.webhooks.sender import Answer, Sender
from tunery.registry.configuration.webhooks import WebhookEndpoint, WebhooksSettings
from tunery.registry.errors import TuneryError
from tunery.registry.home import Home
from tunery.registry.registry import Registry
from tunery.registry.webhooks.outbox import Delivery, Outbox

__all__ = ["Deliverer", "Outcome", "WebhookThread"]

log = logging.getLogger("tunery.webhooks")

POLL_SECONDS = 0.5
"""Seconds between looks at the outbox when nothing is due."""
TROUBLE_SECONDS = 5.0
"""Seconds until the next look after the registry could not be read or written."""

Outcome = Literal["delivered", "retried", "given_up"]


class Deliverer:
    """Sends what is due. `on_outcome` is called after each attempt, from the thread that runs `run`."""

    def __init__(
        self,
        outbox: Outbox,
        sender: Sender,
        *,
        clock: Callable[[], float] = time.time,
        random: random.Random,
        on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    ) -> None:
        self._outbox, self._sender, self._clock = outbox, sender, clock
        self._random, self._on_outcome = random, on_outcome

    async def run(self, endpoint: WebhookEndpoint) -> None:
        """Deliver to an endpoint until cancelled."""
        while True:
            try:
                delivered = await self.deliver_next(endpoint)
            except TuneryError as error:
                log.warning("webhooks cannot be read or recorded now: %s", error)
                await asyncio.sleep(TROUBLE_SECONDS)
            except Exception:
                log.exception("a webhook failed, and is sent again")
                await asyncio.sleep(TROUBLE_SECONDS)
            else:
                if not delivered:
                    await asyncio.sleep(POLL_SECONDS)

    async def deliver_next(self, endpoint: WebhookEndpoint) -> bool:
        """Send what has been due the longest; False when nothing is due."""
        delivery = await asyncio.to_thread(self._outbox.claim, endpoint.url, kinds=endpoint.events)
        if delivery is None:
            return False
        answer = await self._sender.send(endpoint.url, delivery.event)
        self._on_outcome(await asyncio.to_thread(self._settle, delivery, answer))
        return True

    def _settle(self, delivery: Delivery, answer: Answer) -> Outcome:
        """Record what came of an attempt."""
        if answer.delivered:
            self._outbox.settle(delivery, "delivered")
            return "delivered"
        due = None if answer.refused else self._next_attempt(delivery, answer)
        if due is not None:
            self._outbox.defer(delivery, until=due, error=answer.problem)
            return "retried"
        self._outbox.settle(delivery, "given_up", error=answer.problem)
        # The rest of a URL may be what lets one in there.
        host = urlsplit(delivery.url).hostname
        log.warning(
            "webhook %s (%s) to %s is given up after %d attempts: %s",
            delivery.event.id, delivery.event.type, host, delivery.attempt, answer.problem,
        )  # fmt: skip
        return "given_up"

    def _next_attempt(self, delivery: Delivery, answer: Answer) -> float | None:
        return next_attempt(
            delivery.attempt, event_at=delivery.event.at, now=self._clock(), wait=answer.wait, random=self._random
        )


class WebhookThread:
    """Delivers webhooks while the block runs, on a registry of its own; what is under way then is sent again later.

    Raises InvalidInput where a secret is missing. Without endpoints nothing runs.
    """

    def __init__(
        self, home: Home, settings: WebhooksSettings, *, on_outcome: Callable[[Outcome], None] = lambda outcome: None
    ) -> None:
        self._home, self._endpoints, self._on_outcome = home, settings.endpoints, on_outcome
        self._running: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread: threading.Thread | None = None
        if settings.endpoints:
            sender = Sender(settings)
            self._thread = threading.Thread(target=lambda: asyncio.run(self._run(sender)), name="webhooks")

    def __enter__(self) -> Self:
        self._registry = Registry.open(self._home)
        self._registry.webhooks.configure([endpoint.url for endpoint in self._endpoints])
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            loop, stop = self._running.result()
            loop.call_soon_threadsafe(stop.set)
            self._thread.join()
        self._registry.close()

    async def _run(self, sender: Sender) -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        # Enough for every endpoint's transactions beside names whose look-up hangs.
        loop.set_default_executor(ThreadPoolExecutor(4 * len(self._endpoints), "webhooks"))
        self._running.set_result((loop, stop))
        async with sender:
            deliverer = Deliverer(
                self._registry.webhooks, sender, random=random.SystemRandom(), on_outcome=self._on_outcome
            )
            tasks = [asyncio.create_task(deliverer.run(endpoint)) for endpoint in self._endpoints]
            await stop.wait()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
