"""Taking requests in: they are checked, their constraints compiled, and then queued in the scheduler."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future

from tunery.gateway.engine.messages import Embed, Generate
from tunery.gateway.engine.scheduling.scheduler import Scheduler
from tunery.gateway.engine.scheduling.sequence import Sequence
from tunery.gateway.engine.structured_output.compiler import GrammarCompiler
from tunery.gateway.engine.structured_output.guide import Guide
from tunery.registry.errors import InvalidInput, TuneryError

__all__ = ["RequestIntake"]


class RequestIntake:
    """Turns requests into sequences of the scheduler; those with a constraint wait until its grammar is compiled.

    `max_length` is the most tokens of prompt and output, `vocab_size` the model's, `eos_ids` the
    tokens that end an output.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        compiler: GrammarCompiler,
        *,
        max_length: int,
        vocab_size: int,
        eos_ids: Iterable[int],
    ) -> None:
        self._scheduler = scheduler
        self._compiler = compiler
        self._max_length = max_length
        self._vocab_size = vocab_size
        self._eos_ids = frozenset(eos_ids)
        self._compiling: dict[str, tuple[Sequence, Future[Guide]]] = {}

    @property
    def compiling(self) -> int:
        """How many requests wait for their grammar."""
        return len(self._compiling)

    def submit(self, request: Generate | Embed, now: float) -> None:
        """Take a request in; raises InvalidInput when it could never run."""
        self._check(request)
        sequence = Sequence(request, eos_ids=self._eos_ids, now=now)
        constraint = sequence.sampling.constraint
        if constraint is None:
            self._scheduler.add(sequence)
        else:
            # The background waits behind its own grammars only, as another tenant would.
            queue = f"{sequence.tenant} in the background" if sequence.background else sequence.tenant
            self._compiling[sequence.id] = sequence, self._compiler.submit(queue, constraint)

    def cancel(self, request_id: str) -> None:
        """Give a request up, if it waits for its grammar."""
        if (compiling := self._compiling.pop(request_id, None)) is not None:
            self._compiler.cancel(compiling[1])

    def poll(self) -> list[tuple[str, TuneryError]]:
        """Queue the requests whose grammars are compiled; return the ids of those whose cannot be, and why."""
        failed: list[tuple[str, TuneryError]] = []
        for sequence, future in [pair for pair in self._compiling.values() if pair[1].done()]:
            del self._compiling[sequence.id]
            try:
                sequence.guide = future.result()
            except TuneryError as error:
                failed.append((sequence.id, error))
            else:
                self._scheduler.add(sequence)
        return failed

    def _check(self, request: Generate | Embed) -> None:
        new = request.sampling.max_tokens if isinstance(request, Generate) else 1
        total = len(request.prompt) + (new if isinstance(request, Generate) else 0)
        if not request.prompt or new < 1:
            raise InvalidInput("a request needs at least one prompt token and max_tokens of 1 or more")
        if total > self._max_length:
            raise InvalidInput(
                f"This model's maximum context length is {self._max_length} tokens. However, you requested {total} tokens "
                f"({len(request.prompt)} in the prompt, {new} in the completion); shorten either",
                code="context_length_exceeded",
            )
        unknown = [token for token in request.prompt if not 0 <= token < self._vocab_size]
        if unknown:
            raise InvalidInput(f"token {unknown[0]} is not in the vocabulary of {self._vocab_size}")
