"""A scheduler at work without a model: its batches are computed by a toy that checks every page that it reads.

The toy's next token is a hash of the composition and of all tokens before it. They are read from the pages, where each
token was written with the composition it was computed on. So if anything shared, preempted, evicted or recomputed is
wrong, the text changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field

from tests.gateway.engine.adapters.residency_harness import ManualExecutor
from tunery.gateway.engine.adapters.residency import Residency
from tunery.gateway.engine.composition import AdapterSource, WeightedAdapter, composition_digest
from tunery.gateway.engine.messages import Generate
from tunery.gateway.engine.sampling_params import SamplingParams
from tunery.gateway.engine.scheduling.fairness import VirtualTokenCounter
from tunery.gateway.engine.scheduling.forward_batch import ForwardBatch, build_forward_batch
from tunery.gateway.engine.scheduling.page_allocator import PAGE_SIZE, PageAllocator
from tunery.gateway.engine.scheduling.scheduler import Scheduler
from tunery.gateway.engine.scheduling.sequence import Sequence

VOCAB = 50


@dataclass(eq=False)
class Adapter:
    """An adapter without weights."""

    source: AdapterSource
    bytes: int
    plain: bool = True


def composition(*numbers: int, weight: float = 1.0) -> tuple[WeightedAdapter, ...]:
    """Adapters by number, composed at `weight` each."""
    return tuple(WeightedAdapter(AdapterSource(f"d{n}", f"acme/a{n}", 1, {}), weight) for n in numbers)


def next_token(adapters: Rows[tuple[str, float]], tokens: Rows[int]) -> int:
    """The toy model: what follows `tokens` on `adapters`, given as (digest, weight)."""
    digest = hashlib.sha256(repr((tuple(adapters), tuple(tokens))).encode()).digest()
    return int.from_bytes(digest[:4], "little") % VOCAB


def alone(prompt: Rows[int], parts: Rows[WeightedAdapter], count: int) -> list[int]:
    """What the toy model generates for a request that runs alone."""
    adapters, tokens = [(part.source.digest, part.weight) for part in parts], list(prompt)
    for _ in range(count):
        tokens.append(next_token(adapters, tokens))
    return tokens[len(prompt) :]


@dataclass
class SchedulerHarness:
    """Drives a Scheduler, whose clock advances `seconds` with each step.

    Adapters take one byte, or as many as `sizes` has for their digest, and `adapters` bytes fit into memory. One load
    ends in each step, unless the disk is `slow`.
    """

    pages: int = 64
    prefix_caching: bool = True
    max_batch: int = 8
    token_budget: int = 64
    background_slots: int = 0
    min_crowd: int = 0
    adapters: int = 100
    weights: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.01
    slow: bool = False
    sizes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.now = 0.0
        self.steps = 0
        self.executor = ManualExecutor()
        self.cache = PageAllocator(self.pages, prefix_caching=self.prefix_caching)
        self.residency: Residency[Adapter] = Residency(
            self.adapters, self._read, clock=lambda: self.now, executor=self.executor
        )
        self.scheduler = Scheduler(
            self.cache,
            self.residency,  # type: ignore[arg-type]
            max_batch=self.max_batch,
            token_budget=self.token_budget,
            background_slots=self.background_slots,
            min_crowd=self.min_crowd,
            fairness=VirtualTokenCounter(self.weights),
        )
        self.memory: dict[int, tuple[tuple[tuple[str, float], ...], int, int]] = {}
        self.outputs: dict[str, list[int]] = {}
        self.finished: dict[str, int] = {}  # by id, the step
        self.failed: dict[str, str] = {}  # by id, the error's code
        self.first: dict[str, int] = {}  # by id, the step of the first token
        self.started: list[str] = []  # ids in the order of their first admission
        self.served: dict[str, int] = {}  # tokens computed by tenant
        self.expected: dict[str, list[int]] = {}

    def submit(
        self,
        name: str,
        prompt: Rows[int],
        count: int,
        *,
        tenant: str = "",
        parts: tuple[WeightedAdapter, ...] = (),
        background: bool = False,
    ) -> Sequence:
        """Queue a request for `count` tokens."""
        sampling = SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True)
        request = Generate(
            id=name, prompt=tuple(prompt), sampling=sampling, composition=parts, tenant=tenant, background=background
        )
        made = Sequence(request, eos_ids=frozenset(), now=self.now)
        self.expected[name] = alone(prompt, parts, count)
        self.outputs[name] = []
        self.scheduler.add(made)
        return made

    def cancel(self, name: str) -> None:
        """Stop a request and forget it."""
        sequence = self.scheduler.find(name)
        if sequence is not None:
            self.scheduler.finish(sequence)
            del self.expected[name]

    def step(self) -> None:
        """One step of the engine's loop."""
        self.now += self.seconds
        self.steps += 1
        if self.executor.tasks and not self.slow:
            self.executor.run()
        self.residency.poll()
        for sequence, error in self.scheduler.admit(self.now):
            self.failed[sequence.id] = error.code
            del self.expected[sequence.id]
        self.started += [s.id for s in self.scheduler.running if s.id not in self.started]
        scheduled = self.scheduler.schedule(self.now)
        self._check_limits()
        if not scheduled:
            return
        assert len({id(item.sequence) for item in scheduled}) == len(scheduled)
        assert sum(item.count for item in scheduled) <= self.token_budget
        assert all(item.sequence in self.scheduler.running and item.count > 0 for item in scheduled)
        background = sum(item.count for item in scheduled if item.sequence.background)
        assert background <= self.background_slots or all(item.sequence.background for item in scheduled)
        batch = build_forward_batch(scheduled)
        tokens = self._compute(batch)
        for item in scheduled:
            self.served[item.sequence.tenant] = self.served.get(item.sequence.tenant, 0) + item.count
            self.scheduler.advance(item)
        for output in batch.logits:
            assert output.sample
            self._append(output.sequence, tokens[output.row])

    def run(self, most: int = 2000) -> None:
        """Step until all requests are done, each with the output it has alone."""
        for _ in range(most):
            if not (self.scheduler.running or self.scheduler.waiting):
                break
            self.step()
        self.check_done()

    def check_done(self) -> None:
        """Every request is finished, with the right output, and everything is released."""
        assert set(self.finished) >= set(self.expected)
        assert {name: self.outputs[name] for name in self.expected} == self.expected
        assert (self.scheduler.running, self.scheduler.waiting, self.cache.usage) == ([], 0, 0)
        assert not any(one.running for one in self.residency.resident())

    def _read(self, source: AdapterSource) -> Adapter:
        return Adapter(source, self.sizes.get(source.digest, 1))

    def _append(self, sequence: Sequence, token: int) -> None:
        self.outputs[sequence.id].append(token)
        self.first.setdefault(sequence.id, self.steps)
        if sequence.append(token) is not None:
            assert sequence.id not in self.finished
            self.finished[sequence.id] = self.steps
            self.scheduler.finish(sequence)

    def _check_limits(self) -> None:
        running = self.scheduler.running
        assert len(running) <= self.max_batch
        assert sum(one.background for one in running) <= (self.background_slots or self.max_batch)
        assert len({id(one) for one in running}) == len(running)
        held = [page for one in running for page in one.pages]
        assert self.cache.available == self.pages - len(set(held))
        assert self.residency.bytes <= self.adapters
        assert [composition_digest(one.composition) for one in running] == [one.digest for one in running]
        for one in running:
            assert [adapter.source.digest for adapter, _ in one.adapters] == [
                part.source.digest for part in one.composition
            ]

    def _compute(self, batch: ForwardBatch) -> list[int]:
        """The next token after each row."""
        adapters: list[list[tuple[str, float]]] = [[] for _ in batch.tokens]
        for segment in batch.segments:
            for row in range(segment.start, segment.end):
                adapters[row].append((segment.adapter.source.digest, segment.weight))
        rows = [tuple(parts) for parts in adapters]
        written = batch.slots.tolist()
        assert len(set(written)) == len(written)
        assert min(written) >= PAGE_SIZE  # page 0 is never allocated
        for row, slot in enumerate(written):
            self.memory[slot] = (rows[row], int(batch.positions[row]), int(batch.tokens[row]))
        tokens = [-1] * len(rows)
        for span in batch.spans:
            slots = [int(span.pages[at // PAGE_SIZE]) * PAGE_SIZE + at % PAGE_SIZE for at in range(span.length)]
            context = [self.memory[slot] for slot in slots]
            assert [(parts, at) for parts, at, _ in context] == [(rows[span.start], at) for at in range(span.length)]
            for row in range(span.start, span.end):
                seen = span.length - (span.end - row) + 1
                tokens[row] = next_token(rows[row], [token for _, _, token in context[:seen]])
        return tokens
