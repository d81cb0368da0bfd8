"""One choice that the engine is to generate for a request."""

from __future__ import annotations

from dataclasses import dataclass

from tunery.gateway.engine.sampling_params import SamplingParams

__all__ = ["ChoiceRequest"]


@dataclass(frozen=True, slots=True)
class ChoiceRequest:
    """Continue `prompt` (token ids); when `silent`, only compute the prompt and show no output."""

    prompt: tuple[int, ...]
    sampling: SamplingParams
    silent: bool = False
