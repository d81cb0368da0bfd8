"""The self-check: compares a base in the engine with transformers' own forward pass, once for each
base, quantization and version.

The supported architectures (plugins/bases/architectures.py) are tested against transformers on small configurations.
What no test has seen, such as a setting of this base or another release of a library, shows here before the first
request. transformers runs in a process of its own, `python -m tunery.gateway.engine.self_check CONFIG`, which ends
before the engine loads the base, so that the base is in memory only once.
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
from tunery.gateway.engine.messages import Event, Failed, Generate, Tokens
from tunery.gateway.engine.sampling_params import SamplingParams
from tunery.plugins.bases.architectures import refuse_folder
from tunery.plugins.runtime.compute import prepare_compute
from tunery.plugins.runtime.log_format import notice, set_up_logging
from tunery.plugins.runtime.parent_watch import die_with_parent
from tunery.plugins.runtime.quick_exit import exit_quickly
from tunery.registry.errors import ArtifactRefused

if TYPE_CHECKING:
    from tunery.gateway.engine.core import EngineCore

__all__ = ["Reference", "compute_reference", "load_reference", "main", "verify"]

CHECK_VERSION = 1
"""To be raised when the check changes, so that every base is compared again."""
LENGTHS = (23, 61)
"""Tokens of the two prompts."""
SHARED = 20
"""Tokens that both prompts begin with: more than a page, so that the second run uses the prefix cache."""
TOLERANCE = {"float32": 2e-3, "bfloat16": 0.5}
"""Largest mean distance of a token's log-probability, in nats, by dtype. Another order of summation costs a hundredth
of it, another attention pattern whole nats."""


class Reference(msgspec.Struct, frozen=True):
    """Prompts, and the natural-log probabilities of each one's tokens from the second on; or why
    there are none, in `refusal`."""

    prompts: tuple[tuple[int, ...], ...] = ()
    logprobs: tuple[tuple[float, ...], ...] = ()
    refusal: str = ""


def load_reference(config: EngineConfig) -> Reference | None:
    """What transformers computes for two prompts; None when this base has been compared before, or cannot be.

    Raises ArtifactRefused (`unsupported_base`) when the base is not one that the engine serves.
    """
    marker = _marker(config)
    if marker is not None and marker.is_file():
        return None
    refuse_folder(Path(config.base_folder), f"the base {config.base_name!r}")
    command = (sys.executable, "-m", "tunery.gateway.engine.self_check", msgspec.json.encode(config).decode())
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        notice(
            f"engine: the base could not be run in transformers (exit code {done.returncode}); it is served without the check"
        )
        return None
    # Libraries may have printed something before the last line.
    reference = msgspec.json.decode(done.stdout.splitlines()[-1], type=Reference)
    if reference.refusal:
        raise ArtifactRefused(reference.refusal, code="unsupported_base")
    return reference


def verify(core: EngineCore, reference: Reference, config: EngineConfig) -> None:
    """Raise ArtifactRefused (`unsupported_base`) when the engine computes something else, in a
    batch or from the prefix cache."""
    for attempt in ("in a batch", "from the prefix cache"):
        distance = _mean_distance(_prompt_logprobs(core, reference.prompts), reference.logprobs)
        # Written so that a distance of NaN fails too.
        if not distance <= TOLERANCE[config.dtype]:
            raise ArtifactRefused(
                f"the base {config.base_name!r} is not served exactly: {attempt} the engine is {distance:.3g} nats a token away from "
                f"transformers, and {TOLERANCE[config.dtype]} are allowed; use another base, and please report this one's config.json",
                code="unsupported_base",
            )
    marker = _marker(config)
    if marker is not None:
        # Without the marker, the next start compares again.
        with contextlib.suppress(OSError):
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()


def compute_reference(config: EngineConfig) -> Reference:
    """What `load_reference` returns, computed in this process."""
    from tunery.gateway.engine.models.torch.model import load_plain

    module: Any = load_plain(config)
    text = module.config.get_text_config()
    longest = int(getattr(text, "max_position_embeddings", None) or max(LENGTHS) + 1)
    prompts = tuple(_prompt(index, length, int(text.vocab_size), longest - 1) for index, length in enumerate(LENGTHS))
    return Reference(prompts, tuple(_logprobs(module, prompt) for prompt in prompts))


def main(arguments: Sequence[str]) -> int:
    """Print the Reference of the engine configuration given as JSON, as JSON on the last line."""
    die_with_parent()
    config = msgspec.json.decode(arguments[0], type=EngineConfig)
    set_up_logging(config.log_format, config.log_level)
    prepare_compute(config.threads)
    try:
        reference = compute_reference(config)
    except ArtifactRefused as error:
        reference = Reference(refusal=error.message)
    sys.stdout.write(f"\n{msgspec.json.encode(reference).decode()}\n")
    return 0


def _marker(config: EngineConfig) -> Path | None:
    """The file that marks this base as compared; None without a cache folder."""
    if not config.cache_folder:
        return None
    versions = "-".join(version(name) for name in ("tunery", "transformers", "torch"))
    setting = f"{config.quant}-{config.dtype}-{config.device}-{config.kernels}"
    return Path(config.cache_folder) / f"{config.base_digest}-{setting}-{versions}-{CHECK_VERSION}.checked"


def _prompt(index: int, length: int, vocabulary: int, longest: int) -> tuple[int, ...]:
    """Token ids from all over the vocabulary; all prompts begin with the same SHARED ones."""
    seeds = [at if at < SHARED else at + 1000 * (index + 1) for at in range(min(length, longest))]
    return tuple((seed * 7919 + 13) % vocabulary for seed in seeds)


def _logprobs(module: Any, prompt: tuple[int, ...]) -> tuple[float, ...]:
    import torch

    with torch.inference_mode():
        ids = torch.tensor([prompt], device=module.device)
        logits = module(input_ids=ids, use_cache=False).logits[0, :-1].float()
        logprobs: list[float] = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0].tolist()
    return tuple(logprobs)


def _prompt_logprobs(core: EngineCore, prompts: Sequence[tuple[int, ...]]) -> list[list[float]]:
    """The engine's log-probabilities of the prompts, cut to its context length and run together."""
    sampling = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True, prompt_logprobs=0)
    room = core.model.context_length - 1
    requests = [Generate(id=str(at), prompt=prompt[:room], sampling=sampling) for at, prompt in enumerate(prompts)]
    events: list[Event] = core.run_requests(requests)
    failed = [event.message for event in events if isinstance(event, Failed)]
    if failed:
        raise ArtifactRefused(f"the base cannot be compared with transformers: {failed[0]}", code="unsupported_base")
    tokens = [token for event in events if isinstance(event, Tokens) for token in event.tokens]
    return [
        [score.logprob for score in token.prompt_scores] for token in sorted(tokens, key=lambda token: int(token.id))
    ]


def _mean_distance(ours: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> float:
    """The mean absolute difference over all tokens that both have."""
    pairs = [pair for one, other in zip(ours, reference, strict=True) for pair in zip(one, other, strict=False)]
    return sum(abs(one - other) for one, other in pairs) / max(len(pairs), 1)


if __name__ == "__main__":
    exit_quickly()
    raise SystemExit(main(sys.argv[1:]))
