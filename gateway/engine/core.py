"""Owns the step: schedule, run, choose, report. Refuses to know how commands arrive or events leave."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path

import torch

from tunery.gateway.engine.adapters.interface import ServedAdapter
from tunery.gateway.engine.adapters.residency import Residency
from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.messages import (
    Cancel,
    Command,
    Embed,
    Embedded,
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
    composition_title,
)
from tunery.gateway.engine.models.interface import Model
from tunery.gateway.engine.models.open_model import open_model
from tunery.gateway.engine.sampling.sampler import argmax_logsumexp, sample, score
from tunery.gateway.engine.scheduling.fairness import VirtualTokenCounter
from tunery.gateway.engine.scheduling.forward_batch import OutputRow, ScheduledTokens, build_forward_batch
from tunery.gateway.engine.scheduling.page_allocator import PageAllocator
from tunery.gateway.engine.scheduling.scheduler import Scheduler
from tunery.gateway.engine.scheduling.sequence import Sequence
from tunery.gateway.engine.structured_output.compiler import GrammarCompiler
from tunery.gateway.engine.structured_output.grammars import Grammars, Guide
from tunery.gateway.engine.structured_output.trial import TrialProcess
from tunery.plugins.runtime.threads import follow_governor
from tunery.registry.errors import ArtifactRefused, InvalidInput, StorageFailed, TuneryError

__all__ = ["EngineCore"]

TOKEN_BUDGET = {"cpu": 512, "cuda": 4096}
"""Tokens of a step: enough to keep the device busy, few enough that the next tokens of those who decode are not long in coming."""


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
        self.model, self._load_seconds = open_model(config, clock=clock)
        model: Model = self.model
        self._reduce = model.argmax_logsumexp or argmax_logsumexp
        self.pages = PageAllocator(model.kv_pages, reuse=config.prefix_cache)
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
            fairness=VirtualTokenCounter(config.tenant_weights),
        )
        self._eos_ids = frozenset(config.eos_ids)
        self._grammars = Grammars(Path(config.base_folder), model.vocab_size, config.eos_ids)
        trials = TrialProcess(Path(config.base_folder), model.vocab_size, sorted(set(config.eos_ids)))
        self._compiler = GrammarCompiler(self._grammars, trials)
        self._compiling: dict[str, tuple[Sequence, Future[Guide]]] = {}
        self._preloads: list[Load] = []
        self._steps = 0
        self._step_tokens = 0

    @property
    def idle(self) -> bool:
        """Whether `step` would do nothing until a command comes or a load ends."""
        return self.scheduler.idle and not (self.scheduler.waiting or self._preloads or self._compiling)

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
            load_seconds=self._load_seconds,
        )

    def handle(self, command: Command) -> None:
        """Obey one command; what goes wrong is answered with Failed."""
        if isinstance(command, Generate | Embed):
            self._enqueue(command)
        elif isinstance(command, Cancel):
            if (compiling := self._compiling.pop(command.id, None)) is not None:
                self._compiler.cancel(compiling[1])
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
        """One turn of the loop: take in loads, admit, run the model once, and report the tokens it chose."""
        follow_governor()
        if self.residency.poll():
            self.report()
        self._preload()
        self._take_compiled()
        now = self._clock()
        for sequence, error in self.scheduler.admit(now):
            self._emit(Failed(sequence.id, error.code, error.message))
        scheduled = self.scheduler.plan(now)
        if scheduled:
            self._run(scheduled)

    def warm_up(self) -> None:
        """Run two tokens through the model, so that what it cannot do shows now and the first request finds it warm."""
        sampling = Sampling(max_tokens=2, temperature=0.0, ignore_eos=True)
        events = self.answers([Generate(id="", prompt=(0,), sampling=sampling)])
        failed = next((event for event in events if isinstance(event, Failed)), None)
        if failed is not None:
            raise StorageFailed(failed.message, code=failed.code)

    def answers(self, requests: Iterable[Generate]) -> list[Event]:
        """Run `requests` together to their ends, counted nowhere, and return what would have been emitted."""
        events: list[Event] = []
        emit, self._emit = self._emit, events.append
        for request in requests:
            self.handle(request)
        while not self.idle:
            self.step()
        self._emit = emit
        self._steps = self._step_tokens = 0
        return events

    def report(self) -> None:
        """Send the state now."""
        self._emit(self.stats())

    def stats(self) -> Stats:
        """The state now; takes the load times gathered since the last call."""
        residency, scheduler = self.residency, self.scheduler
        load_seconds, residency.load_seconds = residency.load_seconds, []
        return Stats(
            running=len(scheduler.running),
            waiting=scheduler.waiting + len(self._compiling),
            running_adapters=scheduler.running_adapters(),
            waiting_adapters=scheduler.waiting_adapters(),
            resident=residency.resident(),
            resident_bytes=residency.bytes,
            kv_used=self.pages.used,
            steps=self._steps,
            step_tokens=self._step_tokens,
            loads=dict(residency.loads),
            load_failures=dict(residency.load_failures),
            evictions=dict(residency.evictions),
            hits=dict(residency.hits),
            load_seconds=load_seconds,
            ram_bytes=residency.ram_bytes,
            preemptions=scheduler.preemptions,
            prefix_queries=scheduler.prefix_queries,
            prefix_hits=scheduler.prefix_hits,
        )

    def close(self) -> None:
        """Stop the threads."""
        self.residency.close()
        self._compiler.close()

    # -- taking requests in -----------------------------------------------------------------------------------------------

    def _enqueue(self, command: Generate | Embed) -> None:
        try:
            self._check(command)
        except TuneryError as error:
            self._emit(Failed(command.id, error.code, error.message))
            return
        sequence = Sequence(command, eos_ids=self._eos_ids, now=self._clock())
        constraint = sequence.sampling.constraint
        if constraint is None:
            self.scheduler.add(sequence)
        else:
            self._compiling[sequence.id] = sequence, self._compiler.submit(sequence.tenant, constraint)

    def _check(self, command: Generate | Embed) -> None:
        """Refuse what could never run, so that it does not wait for ever."""
        new = command.sampling.max_tokens if isinstance(command, Generate) else 1
        most = len(command.prompt) + (new if isinstance(command, Generate) else 0)
        if not command.prompt or new < 1:
            raise InvalidInput("a request needs at least one prompt token and max_tokens of 1 or more")
        if most > (limit := min(self.model.context_length, self.pages.capacity)):
            raise InvalidInput(
                f"This model's maximum context length is {limit} tokens. However, you requested {most} tokens "
                f"({len(command.prompt)} in the prompt, {new} in the completion); shorten either",
                code="context_length_exceeded",
            )
        beyond = [token for token in command.prompt if not 0 <= token < self.model.vocab_size]
        if beyond:
            raise InvalidInput(f"token {beyond[0]} is not in the vocabulary of {self.model.vocab_size}")

    def _take_compiled(self) -> None:
        """Queue the requests whose constraints are compiled."""
        done = [sequence for sequence, future in self._compiling.values() if future.done()]
        for sequence in done:
            _, future = self._compiling.pop(sequence.id)
            try:
                sequence.guide = future.result()
            except TuneryError as error:
                self._emit(Failed(sequence.id, error.code, error.message))
            else:
                self.scheduler.add(sequence)

    def _preload(self) -> None:
        """Move asked-for loads along and answer those that are done."""
        pending, self._preloads = self._preloads, []
        for command in pending:
            digest = command.adapter.digest
            try:
                adapter = self.residency.hold(command.adapter, hit=False)
            except TuneryError as error:
                self._emit(Failed(command.id, error.code, error.message))
                continue
            if adapter is None:
                self._preloads.append(command)
                continue
            if command.pin:
                self.residency.pin(digest)
            self.residency.release(digest)
            self._emit(Loaded(command.id, digest, adapter.bytes))

    # -- a step -----------------------------------------------------------------------------------------------------------

    def _run(self, scheduled: list[ScheduledTokens]) -> None:
        """Run the model on the scheduled tokens, and make tokens, scores and vectors of what comes out."""
        step = build_forward_batch(scheduled)
        logits, hidden = self.model.run(step)
        self._steps += 1
        self._step_tokens += len(step.tokens)
        for item in scheduled:
            self.scheduler.advance(item)
        self._score([output for output in step.logits if not output.sample], step.logits, logits)
        self._sample([output for output in step.logits if output.sample and self._runs(output)], step.logits, logits)
        self._pool(scheduled, step.hidden, hidden)

    def _score(self, wanted: list[OutputRow], outputs: tuple[OutputRow, ...], logits: torch.Tensor) -> None:
        if not wanted:
            return
        tokens = [output.sequence.tokens[output.position + 1] for output in wanted]
        counts = [output.sequence.sampling.prompt_logprobs for output in wanted]
        for output, one in zip(wanted, score(_of(wanted, outputs, logits), tokens, counts, self._reduce), strict=True):
            if one is not None:
                output.sequence.scores.append(one)
            elif self._runs(output):
                self._fail(output.sequence)

    def _sample(self, wanted: list[OutputRow], outputs: tuple[OutputRow, ...], logits: torch.Tensor) -> None:
        if not wanted:
            return
        sequences = [output.sequence for output in wanted]
        choices = sample(_of(wanted, outputs, logits), sequences, self._reduce)
        tokens = []
        for sequence, choice in zip(sequences, choices, strict=True):
            if choice is None:
                self._fail(sequence)
                continue
            first = not sequence.output
            finish = sequence.append(choice.token)
            if sequence.guide is not None and finish is None and sequence.guide.failure:
                self._emit(Failed(sequence.id, "invalid_constraint", sequence.guide.failure))
                self.scheduler.finish(sequence)
                continue
            extra = (sequence.cached, tuple(sequence.scores)) if first else ()
            tokens.append(Token(sequence.id, choice.token, choice.logprob, finish, choice.top, *extra))
            if finish is not None:
                self.scheduler.finish(sequence)
        self._emit(Tokens(tokens))

    def _pool(self, scheduled: list[ScheduledTokens], outputs: tuple[OutputRow, ...], hidden: torch.Tensor) -> None:
        """Add the hidden states up, and answer the embeddings that are complete."""
        for output, row in zip(outputs, hidden, strict=True):
            before = output.sequence.pooled
            output.sequence.pooled = row.double() if before is None else before + row.double()
        for item in scheduled:
            sequence = item.sequence
            if sequence.pooling is None or sequence.left or sequence.pooled is None:
                continue
            count = sequence.prompt_length if sequence.pooling == "mean" else 1
            if not sequence.pooled.isfinite().all():
                self._fail(sequence)
                continue
            self._emit(Embedded(sequence.id, (sequence.pooled / count).tolist()))
            self.scheduler.finish(sequence)

    def _runs(self, output: OutputRow) -> bool:
        """Whether an output's sequence has not ended in this step."""
        return self.scheduler.find(output.sequence.id) is output.sequence

    def _fail(self, sequence: Sequence) -> None:
        """End a sequence whose numbers are not finite: its adapters', or else the base's own fault."""
        error = _not_finite(composition_title(sequence.composition), self._config)
        self._emit(Failed(sequence.id, error.code, error.message))
        self.scheduler.finish(sequence)


def _not_finite(adapters: str, config: EngineConfig) -> TuneryError:
    """The error of a request whose logits or hidden states are NaN or infinite."""
    if adapters:
        return ArtifactRefused(
            f"{adapters} gives numbers that are not finite (NaN or infinity) on this base in {config.dtype}: its weights, its "
            "lora_alpha or the weights of the composition are too large; publish another version",
            code="nonfinite_output",
        )
    return StorageFailed(
        f"the base {config.base_name} by itself gives numbers that are not finite (NaN or infinity) in {config.dtype}: its files "
        "are damaged, or too large for that format; take it in again, or serve with --dtype float32",
        code="base_nonfinite",
    )


def _of(wanted: list[OutputRow], outputs: tuple[OutputRow, ...], logits: torch.Tensor) -> torch.Tensor:
    """The rows of `logits`, one per element of `outputs`, that belong to `wanted`."""
    if len(wanted) == len(outputs):
        return logits
    places = {id(output): index for index, output in enumerate(outputs)}
    return logits[torch.tensor([places[id(output)] for output in wanted], device=logits.device)]
