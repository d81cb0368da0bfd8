"""Compare what a base says in the engine with transformers' own forward, once for each base, quantization and version.

The table of architectures (plugins/bases/architectures.py) is held to transformers by tests on small configurations. What no test has seen,
a setting of a base's own or another release of a library, shows here, before the first request. The plain model is in memory before the
engine's, never beside it.
"""

from __future__ import annotations

import contextlib
import gc
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import torch

from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.core import EngineCore
from tunery.gateway.engine.messages import Failed, Generate, Sampling, Tokens
from tunery.registry.errors import ArtifactRefused

__all__ = ["Expected", "expectation", "verify"]

CHECK = 1
"""Of what is compared; another check needs another number."""
LENGTHS = (23, 61)
SHARED = 20
"""Tokens that both prompts begin with, more than a page, so that the second time one finds the other's."""
TOLERANCE = {"float32": 2e-3, "bfloat16": 0.35}
"""Mean distance in nats of a token. Another order of summation costs a hundredth of it, another attention pattern whole nats."""


class Expected(msgspec.Struct, frozen=True):
    """Prompts, and of each the natural-log probabilities of its tokens from the second on, by transformers alone."""

    prompts: tuple[tuple[int, ...], ...]
    scores: tuple[tuple[float, ...], ...]


def expectation(config: EngineConfig) -> Expected | None:
    """What transformers says of two prompts, each alone; None where this base has been compared before."""
    marker = _marker(config)
    if marker is not None and marker.is_file():
        return None
    from tunery.gateway.engine.torch_model import load_plain

    module: Any = load_plain(config)
    text = module.config.get_text_config()
    longest = int(getattr(text, "max_position_embeddings", None) or max(LENGTHS) + 1)
    prompts = tuple(_prompt(index, length, int(text.vocab_size), longest - 1) for index, length in enumerate(LENGTHS))
    scores = tuple(_scores(module, prompt) for prompt in prompts)
    del module
    gc.collect()
    return Expected(prompts, scores)


def verify(core: EngineCore, expected: Expected, config: EngineConfig) -> None:
    """Raise ArtifactRefused when the engine does not say what was expected: together, and again with what is cached."""
    for attempt in ("in a batch", "from the prefix cache"):
        found = _ask(core, expected.prompts)
        pairs = [
            (a, b)
            for ours, theirs in zip(found, expected.scores, strict=True)
            for a, b in zip(ours, theirs, strict=True)
        ]
        distance = sum(abs(a - b) for a, b in pairs) / len(pairs)
        # Not a number is no distance either.
        if not distance <= TOLERANCE[config.dtype]:
            raise ArtifactRefused(
                f"the base {config.base_name!r} is not served exactly: {attempt} the engine is {distance:.3g} nats a token away from "
                f"transformers, and {TOLERANCE[config.dtype]} are allowed; please report its config.json",
                code="unsupported_base",
            )
    marker = _marker(config)
    if marker is not None:
        # Serving goes on without it; whoever starts next compares again.
        with contextlib.suppress(OSError):
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()


def _marker(config: EngineConfig) -> Path | None:
    """The file that says that this base has been compared."""
    if not config.cache_folder:
        return None
    versions = "-".join(version(name) for name in ("tunery", "transformers", "torch"))
    way = f"{config.quant}-{config.dtype}-{config.device}-{config.kernels}"
    return Path(config.cache_folder) / f"{config.base_digest}-{way}-{versions}-{CHECK}.checked"


def _prompt(index: int, length: int, vocabulary: int, longest: int) -> tuple[int, ...]:
    """Token ids from all over the vocabulary; all prompts begin alike."""
    seeds = [at if at < SHARED else at + 1000 * (index + 1) for at in range(min(length, longest))]
    return tuple((seed * 7919 + 13) % vocabulary for seed in seeds)


@torch.inference_mode()
def _scores(module: Any, prompt: tuple[int, ...]) -> tuple[float, ...]:
    ids = torch.tensor([prompt], device=module.device)
    logits = module(input_ids=ids, use_cache=False).logits[0, :-1].float()
    scores: list[float] = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0].tolist()
    return tuple(scores)


def _ask(core: EngineCore, prompts: tuple[tuple[int, ...], ...]) -> list[list[float]]:
    """The engine's scores of the prompts, asked for together."""
    sampling = Sampling(max_tokens=1, temperature=0.0, ignore_eos=True, prompt_logprobs=0)
    requests = [Generate(id=str(index), prompt=prompt, sampling=sampling) for index, prompt in enumerate(prompts)]
    events = core.answers(requests)
    failed = [event.message for event in events if isinstance(event, Failed)]
    if failed:
        raise ArtifactRefused(f"the base cannot be asked: {failed[0]}", code="unsupported_base")
    tokens = [token for event in events if isinstance(event, Tokens) for token in event.tokens]
    return [[score.logprob for score in token.prompt] for token in sorted(tokens, key=lambda token: int(token.id))]
