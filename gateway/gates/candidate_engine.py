"""An engine for the gates: the base with the files under test as an adapter. It scores rows and answers prompts.

It is the engine that serves, with its kernels, layers and sampler; only HTTP and the registry are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from tunery.gateway.engine.composition import AdapterSource, WeightedAdapter
from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.core import EngineCore
from tunery.gateway.engine.messages import Event, Failed, Generate, Token, Tokens
from tunery.gateway.engine.sampling_params import SamplingParams
from tunery.plugins.data.render.renderer import Renderer
from tunery.plugins.training.examples.batches import Example
from tunery.plugins.training.gates import GateCase, GateRequest, Precision
from tunery.registry.errors import ArtifactRefused
from tunery.registry.peft.layout import CONFIG, WEIGHTS

__all__ = ["Answer", "CandidateEngine", "candidate_engine"]

BATCH = 8
"""Requests at once; the cache holds as many of the longest."""
ROOM = 512
"""Tokens that an answer may have beyond the longest row."""
ANY_ADAPTER = 1 << 40
"""Bytes: the one adapter is always resident."""
LOADING = 0.002


class Answer(msgspec.Struct, frozen=True):
    """An answer to a prompt: its number of tokens, and whether it ended by itself."""

    tokens: int
    stopped: bool


def candidate_engine(case: GateCase, precision: Precision) -> CandidateEngine:
    """The engine of a case in this precision, started on the first call."""
    return case.once(precision, lambda: CandidateEngine(case.request, precision))


class CandidateEngine:
    """The base in an engine of its own, with the files under test as an adapter named `candidate`."""

    def __init__(self, request: GateRequest, precision: Precision) -> None:
        folder = Path(request.folder)
        files = {name: str(folder / name) for name in (CONFIG, WEIGHTS)}
        self._adapter = (WeightedAdapter(AdapterSource("candidate", request.adapter, 0, files)),)
        self._events: list[Event] = []
        longest = max((len(row.ids) for row in (*request.held_out, *request.trained)), default=0) + ROOM
        self._core = EngineCore(
            EngineConfig(
                base_folder=request.base_folder,
                base_name=request.base_name,
                base_digest=request.base_digest,
                # What serving would pack anyway; other precisions would only fill the disk.
                cache_folder=request.packed if precision == request.serving else "",
                quant=precision.quant,
                dtype=precision.dtype,
                device=request.device,
                adapter_budget=ANY_ADAPTER,
                max_batch=BATCH,
                kv_tokens=BATCH * longest,
                prefix_cache=False,
                eos_ids=Renderer(Path(request.base_folder)).stop_ids,
            ),
            self._events.append,
        )
        self.context_length = self._core.model.context_length

    def log_probs(self, rows: Sequence[Example], *, tuned: bool) -> list[list[float]]:
        """Of each row the natural-log probabilities of its trained tokens, in order; of the
        adapter, or of the bare base.

        A row may be as long as the context less one token.
        """
        sampling = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        answers = self._run([row.ids for row in rows], [sampling] * len(rows), tuned=tuned)
        return [
            [score.logprob for score, trained in zip(tokens[0].prompt_scores, row.trained[1:], strict=True) if trained]
            for row, tokens in zip(rows, answers, strict=True)
        ]

    def answers(self, prompts: Sequence[Sequence[int]], *, tuned: bool, limit: int) -> list[Answer]:
        """Greedy answers of at most `limit` tokens, the one that ends them included."""
        room = [min(limit, self.context_length - len(prompt)) for prompt in prompts]
        sampling = [SamplingParams(max_tokens=most, temperature=0.0) for most in room]
        return [
            Answer(len(tokens), tokens[-1].finish == "stop") for tokens in self._run(prompts, sampling, tuned=tuned)
        ]

    def _run(
        self, prompts: Sequence[Sequence[int]], sampling: Sequence[SamplingParams], *, tuned: bool
    ) -> list[list[Token]]:
        """Run requests in one batch and return each one's tokens; raise ArtifactRefused when the engine refuses one."""
        self._events.clear()
        composition = self._adapter if tuned else ()
        for number, (prompt, how) in enumerate(zip(prompts, sampling, strict=True)):
            self._core.handle(Generate(id=str(number), prompt=tuple(prompt), sampling=how, composition=composition))
        self._core.run_until_idle()
        tokens: list[list[Token]] = [[] for _ in prompts]
        for event in self._events:
            if isinstance(event, Failed):
                raise ArtifactRefused(f"the engine does not serve it: {event.message}", code=event.code)
            for token in event.tokens if isinstance(event, Tokens) else ():
                tokens[int(token.id)].append(token)
        return tokens
