"""Compare what a base says in the engine with transformers' own forward, once for each base, quantization and version.

The table of architectures (plugins/bases/architectures.py) is held to transformers by tests on small configurations. What no test has seen,
a setting of a base's own or another release of a library, shows here, before the first request. transformers answers in a process of its own,
`python -m tunery.gateway.engine.self_check CONFIG`, which ends before the engine loads the base: the memory is taken once.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.messages import Event, Failed, Generate, Sampling, Tokens
from tunery.plugins.bases.architectures import refuse_folder
from tunery.plugins.runtime.compute import prepare_compute
from tunery.plugins.runtime.parent_watch import die_with_parent
from tunery.registry.errors import ArtifactRefused

if TYPE_CHECKING:
    from tunery.gateway.engine.core import EngineCore

__all__ = ["Expected", "expectation", "main", "scores", "verify"]

CHECK = 1
"""Of what is compared; another check needs another number."""
LENGTHS = (23, 61)
SHARED = 20
"""Tokens that both prompts begin with, more than a page, so that the second time one finds the other's."""
TOLERANCE = {"float32": 2e-3, "bfloat16": 0.5}
"""Mean distance in nats of a token. Another order of summation costs a hundredth of it, another attention pattern whole nats."""


class Expected(msgspec.Struct, frozen=True):
    """Prompts, and of each the natural-log probabilities of its tokens from the second on; or why there are none, in `refusal`."""

    prompts: tuple[tuple[int, ...], ...] = ()
    scores: tuple[tuple[float, ...], ...] = ()
    refusal: str = ""


def expectation(config: EngineConfig) -> Expected | None:
    """What transformers says of two prompts, each alone; None where this base has been compared, or cannot be."""
    marker = _marker(config)
    if marker is not None and marker.is_file():
        return None
    refuse_folder(Path(config.base_folder), f"the base {config.base_name!r}")
    command = (sys.executable, "-m", "tunery.gateway.engine.self_check", msgspec.json.encode(config).decode())
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.stderr.write(
            f"engine: transformers could not be asked about the base ({done.returncode}); it is served unchecked\n"
        )
        return None
    # A library may have printed something before.
    expected = msgspec.json.decode(done.stdout.splitlines()[-1], type=Expected)
    if expected.refusal:
        raise ArtifactRefused(expected.refusal, code="unsupported_base")
    return expected


def verify(core: EngineCore, expected: Expected, config: EngineConfig) -> None:
    """Raise ArtifactRefused when the engine does not say what was expected: together, and again with what is cached."""
    for attempt in ("in a batch", "from the prefix cache"):
        distance = _distance(_ask(core, expected.prompts), expected.scores)
        # Not a number is no distance either.
        if not distance <= TOLERANCE[config.dtype]:
            raise ArtifactRefused(
                f"the base {config.base_name!r} is not served exactly: {attempt} the engine is {distance:.3g} nats a token away from "
                f"transformers, and {TOLERANCE[config.dtype]} are allowed; use another base, and please report this one's config.json",
                code="unsupported_base",
            )
    marker = _marker(config)
    if marker is not None:
        # Serving goes on without it; whoever starts next compares again.
        with contextlib.suppress(OSError):
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()


def scores(config: EngineConfig) -> Expected:
    """What `expectation` asks for, in this process."""
    from tunery.gateway.engine.models.torch.model import load_plain

    module: Any = load_plain(config)
    text = module.config.get_text_config()
    longest = int(getattr(text, "max_position_embeddings", None) or max(LENGTHS) + 1)
    prompts = tuple(_prompt(index, length, int(text.vocab_size), longest - 1) for index, length in enumerate(LENGTHS))
    return Expected(prompts, tuple(_scores(module, prompt) for prompt in prompts))


def main(arguments: Sequence[str]) -> int:
    """Print what transformers says of the base of the configuration that is given."""
    die_with_parent()
    config = msgspec.json.decode(arguments[0], type=EngineConfig)
    prepare_compute(config.threads)
    try:
        expected = scores(config)
    except ArtifactRefused as error:
        expected = Expected(refusal=error.message)
    sys.stdout.write(f"\n{msgspec.json.encode(expected).decode()}\n")
    return 0


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


def _scores(module: Any, prompt: tuple[int, ...]) -> tuple[float, ...]:
    import torch

    with torch.inference_mode():
        ids = torch.tensor([prompt], device=module.device)
        logits = module(input_ids=ids, use_cache=False).logits[0, :-1].float()
        found: list[float] = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0].tolist()
    return tuple(found)


def _ask(core: EngineCore, prompts: Sequence[tuple[int, ...]]) -> list[list[float]]:
    """The engine's scores of the prompts, as long as its context allows, asked for together."""
    sampling = Sampling(max_tokens=1, temperature=0.0, ignore_eos=True, prompt_logprobs=0)
    room = core.model.context_length - 1
    requests = [Generate(id=str(at), prompt=prompt[:room], sampling=sampling) for at, prompt in enumerate(prompts)]
    events: list[Event] = core.run_requests(requests)
    failed = [event.message for event in events if isinstance(event, Failed)]
    if failed:
        raise ArtifactRefused(f"the base cannot be compared with transformers: {failed[0]}", code="unsupported_base")
    tokens = [token for event in events if isinstance(event, Tokens) for token in event.tokens]
    return [[score.logprob for score in token.prompt] for token in sorted(tokens, key=lambda token: int(token.id))]


def _distance(found: Sequence[Sequence[float]], expected: Sequence[Sequence[float]]) -> float:
    """The mean over all tokens that both have."""
    pairs = [pair for ours, theirs in zip(found, expected, strict=True) for pair in zip(ours, theirs, strict=False)]
    return sum(abs(ours - theirs) for ours, theirs in pairs) / max(len(pairs), 1)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
