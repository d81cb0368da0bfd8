"""Owns the step: schedule, run, choose, report. Refuses to know how commands arrive or events leave."""

from __future__ import annotations

import time
from collections.abc import Callable

from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.messages import (
    Cancel,
    Command,
    Event,
    Failed,
    Generate,
    Load,
    Loaded,
    Ready,
    Sampling,
    Stats,
    Token,
    Tokens,
    Unload,
    Unloaded,
)
from tunery.gateway.engine.model import Model
from tunery.gateway.engine.residency import Residency
from tunery.gateway.engine.sampler import sample
from tunery.gateway.engine.scheduler import Scheduled, Scheduler
from tunery.gateway.engine.sequence import Sequence
from tunery.registry.errors import InvalidInput, TuneryError

__all__ = ["EngineCore"]

TOKEN_BUDGET = 2048


class EngineCore:
    """The engine without its process: give it commands, step it, and events come out through `emit`."""

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
        self.model = Model(config, clock=clock)
        self.residency = Residency(config.adapter_budget, self.model.read_adapter, clock=clock)
        self.scheduler = Scheduler(
            self.model.cache, self.residency, max_batch=config.max_batch, token_budget=TOKEN_BUDGET
        )
        self._eos_ids = frozenset(config.eos_ids)
        self._preloads: list[Load] = []
        self._steps = 0
        self._step_tokens = 0

    @property
    def idle(self) -> bool:
        """Whether `step` would do nothing until a command comes or a load ends."""
        return self.scheduler.idle and not self.scheduler.waiting and not self._preloads

    @property
    def blocked(self) -> bool:
        """Whether everybody waits for an adapter, so that stepping at once again would only spin."""
        return self.scheduler.idle and not self.idle

    def ready(self) -> Ready:
        """What the engine says of itself once the base is in memory."""
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
            load_seconds=model.load_seconds,
        )

    def handle(self, command: Command) -> None:
        """Obey one command; what goes wrong is answered with Failed."""
        if isinstance(command, Generate):
            self._enqueue(command)
        elif isinstance(command, Cancel):
            sequence = self.scheduler.find(command.id)
            if sequence is not None:
                self.scheduler.finish(sequence)
        elif isinstance(command, Load):
            self._preloads.append(command)
        elif isinstance(command, Unload):
            self._emit(Unloaded(command.id, command.digest, self.residency.unload(command.digest)))
            self.report()

    def step(self) -> None:
        """One turn of the loop: take in loads, admit, run the model once, and report the tokens it chose."""
        if self.residency.poll():
            self.report()
        self._preload()
        for sequence, error in self.scheduler.admit(self._clock()):
            self._emit(Failed(sequence.id, error.code, error.message))
        scheduled = self.scheduler.plan()
        if scheduled:
            self._run(scheduled)

    def warm_up(self) -> None:
        """Run two tokens through the model, so that what it cannot do shows now and the first request finds it warm."""
        emit, self._emit = self._emit, lambda event: None
        sampling = Sampling(max_tokens=2, temperature=0.0, ignore_eos=True)
        self.handle(Generate(id="", prompt=(0,), sampling=sampling))
        while not self.idle:
            self.step()
        self._emit = emit
        self._steps = self._step_tokens = 0

    def report(self) -> None:
        """Send the state now."""
        self._emit(self.stats())

    def stats(self) -> Stats:
        """The state now; takes the load times gathered since the last call."""
        residency, scheduler = self.residency, self.scheduler
        load_seconds, residency.load_seconds = residency.load_seconds, []
        return Stats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            running_adapters=scheduler.running_adapters(),
            waiting_adapters=scheduler.waiting_adapters(),
            resident=residency.resident(),
            resident_bytes=residency.bytes,
            kv_used=self.model.cache.used,
            steps=self._steps,
            step_tokens=self._step_tokens,
            loads=dict(residency.loads),
            load_failures=dict(residency.load_failures),
            evictions=dict(residency.evictions),
            hits=dict(residency.hits),
            load_seconds=load_seconds,
        )

    def close(self) -> None:
        """Stop the loading thread."""
        self.residency.close()

    def _enqueue(self, command: Generate) -> None:
        try:
            self._check(command)
        except TuneryError as error:
            self._emit(Failed(command.id, error.code, error.message))
            return
        self.scheduler.add(Sequence(command, eos_ids=self._eos_ids, arrived=self._clock()))

    def _check(self, command: Generate) -> None:
        """Refuse what could never run, so that it does not wait for ever."""
        most = len(command.prompt) + command.sampling.max_tokens
        if not command.prompt or command.sampling.max_tokens < 1:
            raise InvalidInput("a request needs at least one prompt token and max_tokens of 1 or more")
        if most > min(self.model.context_length, self.model.cache.capacity):
            raise InvalidInput(
                f"{most} tokens of prompt and output are more than the {self.model.context_length} of the context "
                f"and the {self.model.cache.capacity} of the cache",
                code="context_length_exceeded",
            )
        beyond = [token for token in command.prompt if not 0 <= token < self.model.vocab_size]
        if beyond:
            raise InvalidInput(f"token {beyond[0]} is not in the vocabulary of {self.model.vocab_size}")

    def _preload(self) -> None:
        """Move asked-for loads along and answer those that are done."""
        pending, self._preloads = self._preloads, []
        for command in pending:
            try:
                adapter = self.residency.hold(command.adapter)
            except TuneryError as error:
                self._emit(Failed(command.id, error.code, error.message))
                continue
            if adapter is None:
                self._preloads.append(command)
                continue
            self.residency.release(command.adapter.digest)
            self._emit(Loaded(command.id, command.adapter.digest, adapter.bytes))

    def _run(self, scheduled: list[Scheduled]) -> None:
        """Run the model on the scheduled tokens and choose the next token of every sequence that is complete."""
        logits = self.model.run(scheduled)
        self._steps += 1
        self._step_tokens += sum(item.count for item in scheduled)
        complete = []
        for item in scheduled:
            sequence = item.running.sequence
            sequence.computed += item.count
            if sequence.computed == len(sequence.tokens):
                complete.append(sequence)
        if not complete:
            return
        tokens = []
        for sequence, choice in zip(complete, sample(logits, complete), strict=True):
            finish = sequence.append(choice.token)
            tokens.append(Token(sequence.id, choice.token, choice.logprob, finish, choice.top))
            if finish is not None:
                self.scheduler.finish(sequence)
        self._emit(Tokens(tokens))
