"""Drive an engine step by step and record when each token came; a request that fails ends the benchmark."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from tunery.gateway.engine.composition import AdapterSource, WeightedAdapter
from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.core import EngineCore
from tunery.gateway.engine.messages import Event, Failed, Generate, Load, Tokens
from tunery.gateway.engine.sampling_params import SamplingParams
from tunery.registry.errors import Unavailable

__all__ = ["Driver", "Times"]


@dataclass
class Times:
    """When a request was queued and when its tokens came, in seconds of one clock."""

    queued: float
    tokens: list[float] = field(default_factory=list)

    @property
    def first(self) -> float:
        """When its first token came."""
        return self.tokens[0]

    @property
    def last(self) -> float:
        """When its last token came."""
        return self.tokens[-1]

    @property
    def gaps(self) -> list[float]:
        """Seconds from each token to the next."""
        return [after - before for before, after in zip(self.tokens, self.tokens[1:], strict=False)]


class Driver:
    """An EngineCore in this process, and the times of its tokens."""

    def __init__(self, config: EngineConfig) -> None:
        self._events: list[Event] = []
        self.core = EngineCore(config, self._events.append)
        self._times: dict[str, Times] = {}
        self.done: set[str] = set()

    def __enter__(self) -> Driver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.core.close()

    @staticmethod
    def now() -> float:
        """The clock of all times."""
        return time.perf_counter()

    def load(self, sources: Sequence[AdapterSource]) -> None:
        """Make adapters resident."""
        for source in sources:
            self.core.handle(Load(source.digest, source))
        while not self.core.idle:
            self.step()
            time.sleep(0.0005)

    def unload(self, source: AdapterSource) -> None:
        """Evict an adapter."""
        self.core.residency.unload(source.digest)

    def submit(self, name: str, prompt: tuple[int, ...], new: int, source: AdapterSource | None) -> None:
        """Queue a greedy request of exactly `new` tokens."""
        sampling = SamplingParams(max_tokens=new, temperature=0.0, ignore_eos=True)
        composition = (WeightedAdapter(source),) if source else ()
        self._times[name] = Times(self.now())
        tenant = source.name.partition("/")[0] if source else ""
        self.core.handle(Generate(id=name, prompt=prompt, sampling=sampling, composition=composition, tenant=tenant))

    def step(self) -> None:
        """Run one step of the engine and record its tokens."""
        self.core.step()
        now = self.now()
        events, self._events[:] = list(self._events), []
        for event in events:
            if isinstance(event, Failed):
                raise Unavailable(f"the benchmark's own request failed: {event.message}")
            for token in event.tokens if isinstance(event, Tokens) else ():
                self._times[token.id].tokens.append(now)
                if token.finish:
                    self.done.add(token.id)
        if self.core.blocked:
            time.sleep(0.0005)

    def finish(self, each_step: Callable[[], None] | None = None) -> dict[str, Times]:
        """Step until nothing is left to do; the times of everything queued since the last call."""
        while not self.core.idle:
            self.step()
            if each_step is not None:
                each_step()
        times, self._times = self._times, {}
        self.done.clear()
        return times
