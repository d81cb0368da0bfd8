"""The engine without its process: a loop of schedule, forward, sample, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from tunery.gateway.engine.adapters.interface import ServedAdapter
from tunery.gateway.engine.adapters.residency import Residency
from tunery.gateway.engine.config import LOAD_POLL, EngineConfig
from tunery.gateway.engine.messages import (
    Cancel,
    Command,
    Embed,
    Event,
    Failed,
    Generate,
    Load,
    Loaded,
    Ready,
    Stats,
    Unload,
    Unloaded,
)
from tunery.gateway.engine.models.interface import Model
from tunery.gateway.engine.models.open_model import open_model
from tunery.gateway.engine.output_processor import OutputProcessor
from tunery.gateway.engine.request_intake import RequestIntake
from tunery.gateway.engine.sampling.sampler import argmax_logsumexp
from tunery.gateway.engine.sampling_params import SamplingParams
from tunery.gateway.engine.scheduling.fairness import VirtualTokenCounter
from tunery.gateway.engine.scheduling.forward_batch import ScheduledTokens, build_forward_batch
from tunery.gateway.engine.scheduling.page_allocator import PageAllocator
from tunery.gateway.engine.scheduling.scheduler import Scheduler
from tunery.gateway.engine.structured_output.compiler import GrammarCompiler
from tunery.gateway.engine.structured_output.grammars import Grammars
from tunery.gateway.engine.structured_output.trial import TrialProcess
from tunery.plugins.runtime.threads import follow_governor
from tunery.registry.errors import StorageFailed, TuneryError

__all__ = ["EngineCore"]

TOKEN_BUDGET = {"cpu": 512, "cuda": 4096}
"""Tokens of a forward pass, by device: enough to keep it busy, few enough that decoding sequences
get their next tokens soon."""

MIN_CROWD = {"cpu": 8}
"""Tokens that make a forward pass half as long again as that of a short prompt, by device. On a GPU it takes hundreds,
so nobody sits a pass out there."""


class EngineCore:
    """Give it commands, call `step` in a loop, and events come out through `emit`. Not safe for several threads.

    Opens the base of `config`, which raises ArtifactRefused when it is not one that the engine
    serves. `clock` gives seconds.
    """

    def __init__(
        self,
        config: EngineConfig,
        emit: Callable[[Event], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._emit = emit
        self._clock = clock
        self.model, self._load_seconds = open_model(config, clock=clock)
        model: Model = self.model
        self.pages = PageAllocator(model.kv_pages, prefix_caching=config.prefix_cache)
        self.residency: Residency[ServedAdapter] = Residency(
            config.adapter_budget,
            model.read_adapter,
            place=model.place_adapter,
            ram_budget=config.adapter_ram,
            clock=clock,
        )
        self.scheduler = Scheduler(
            self.pages,
            self.residency,
            max_batch=config.max_batch,
            token_budget=config.token_budget or TOKEN_BUDGET.get(model.device.type, TOKEN_BUDGET["cuda"]),
            background_slots=config.background_slots,
            min_crowd=MIN_CROWD.get(model.device.type, 0),
            fairness=VirtualTokenCounter(config.tenant_weights),
        )
        self._compiler = _open_compiler(config, model)
        self._intake = RequestIntake(
            self.scheduler,
            self._compiler,
            max_length=min(model.context_length, self.pages.capacity),
            vocab_size=model.vocab_size,
            eos_ids=config.eos_ids,
        )
        self._outputs = OutputProcessor(config, self.scheduler, model.argmax_logsumexp or argmax_logsumexp, clock=clock)
        self._preloads: list[Load] = []
        self._steps = 0
        self._step_tokens = 0

    @property
    def idle(self) -> bool:
        """Whether `step` would do nothing until a command comes or a load ends."""
        return self.scheduler.idle and not (self.scheduler.waiting or self._preloads or self._intake.compiling)

    @property
    def blocked(self) -> bool:
        """Whether every request waits for an adapter or a grammar, so that stepping again at once would only spin."""
        return self.scheduler.idle and not self.idle

    def ready(self) -> Ready:
        """The message that the base is in memory."""
        config, model = self._config, self.model
        return Ready(
            base=config.base_name,
            base_digest=config.base_digest,
            quant=config.quant,
            dtype=config.dtype,
            device=str(model.device),
            context_length=model.context_length,
            vocab_size=model.vocab_size,
            base_bytes=model.base_bytes,
            adapter_budget=config.adapter_budget,
            max_batch=config.max_batch,
            load_seconds=self._load_seconds,
        )

    def handle(self, command: Command) -> None:
        """Carry out one command; errors are reported with Failed."""
        if isinstance(command, Generate | Embed):
            try:
                self._intake.submit(command, self._clock())
            except TuneryError as error:
                self._fail(command.id, error)
        elif isinstance(command, Cancel):
            self._intake.cancel(command.id)
            sequence = self.scheduler.find(command.id)
            if sequence is not None:
                self.scheduler.finish(sequence)
        elif isinstance(command, Load):
            self.residency.forget(command.adapter.digest)
            self._preloads.append(command)
        elif isinstance(command, Unload):
            self._emit(Unloaded(command.id, command.digest, self.residency.unload(command.digest)))
            self.report()

    def step(self) -> None:
        """Take in finished loads and grammars, admit requests, run one forward pass, and report what came of it."""
        follow_governor()
        if self.residency.poll():
            self.report()
        self._poll_preloads()
        for request_id, error in self._intake.poll():
            self._fail(request_id, error)
        now = self._clock()
        for sequence, error in self.scheduler.admit(now):
            self._fail(sequence.id, error)
        scheduled = self.scheduler.schedule(now)
        if scheduled:
            self._forward(scheduled)

    def run_until_idle(self) -> None:
        """Step until every request has ended, and sleep where all of them wait for an adapter or a grammar."""
        while not self.idle:
            self.step()
            if self.blocked:
                time.sleep(LOAD_POLL)

    def warm_up(self) -> None:
        """Generate two tokens, so that a base which cannot run fails now, and the first request does not find it cold.

        Raises StorageFailed with the code and message of the failure.
        """
        sampling = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)
        events = self.run_requests([Generate(id="", prompt=(0,), sampling=sampling)])
        failed = next((event for event in events if isinstance(event, Failed)), None)
        if failed is not None:
            raise StorageFailed(failed.message, code=failed.code)

    def run_requests(self, requests: Iterable[Generate]) -> list[Event]:
        """Run `requests` together to their ends and return their events instead of emitting them;
        no counter counts them."""
        events: list[Event] = []
        emit, self._emit = self._emit, events.append
        for request in requests:
            self.handle(request)
        self.run_until_idle()
        self._emit = emit
        self._steps = self._step_tokens = 0
        return events

    def report(self) -> None:
        """Emit the engine's state."""
        self._emit(self.stats())

    def stats(self) -> Stats:
        """The engine's state. Each load's duration is in the first Stats after it ended, and in no other."""
        residency, scheduler = self.residency, self.scheduler
        load_seconds, residency.load_seconds = residency.load_seconds, []
        return Stats(
            running=len(scheduler.running),
            waiting=scheduler.waiting + self._intake.compiling,
            running_adapters=scheduler.running_adapters(),
            waiting_adapters=scheduler.waiting_adapters(),
            resident=residency.resident(),
            resident_bytes=residency.bytes,
            kv_used=self.pages.usage,
            steps=self._steps,
            step_tokens=self._step_tokens,
            loads=dict(residency.loads),
            load_failures=dict(residency.load_failures),
            evictions=dict(residency.evictions),
            hits=dict(residency.hits),
            load_seconds=load_seconds,
            ram_bytes=residency.ram_bytes,
            preemptions=scheduler.stats.preemptions,
            prefix_queries=scheduler.stats.prefix_queries,
            prefix_hits=scheduler.stats.prefix_hits,
        )

    def close(self) -> None:
        """Stop the threads."""
        self.residency.close()
        self._compiler.close()

    def _forward(self, scheduled: list[ScheduledTokens]) -> None:
        """Run the model on the scheduled tokens and emit what came of it."""
        batch = build_forward_batch(scheduled)
        logits, hidden = self.model.run(batch)
        self._steps += 1
        self._step_tokens += len(batch.tokens)
        for item in scheduled:
            self.scheduler.advance(item)
        for event in self._outputs.process(scheduled, batch, logits, hidden):
            self._emit(event)

    def _poll_preloads(self) -> None:
        """Answer the Load commands whose adapters are resident, or cannot be."""
        pending, self._preloads = self._preloads, []
        for command in pending:
            digest = command.adapter.digest
            try:
                adapter = self.residency.hold(command.adapter, hit=False)
            except TuneryError as error:
                self._fail(command.id, error)
                continue
            if adapter is None:
                self._preloads.append(command)
                continue
            if command.pin:
                self.residency.pin(digest)
            self.residency.release(digest)
            self._emit(Loaded(command.id, digest, adapter.bytes))

    def _fail(self, request_id: str, error: TuneryError) -> None:
        self._emit(Failed(request_id, error.code, error.message))


def _open_compiler(config: EngineConfig, model: Model) -> GrammarCompiler:
    folder, eos_ids = Path(config.base_folder), sorted(set(config.eos_ids))
    return GrammarCompiler(Grammars(folder, model.vocab_size, eos_ids), TrialProcess(folder, model.vocab_size, eos_ids))
