"""Reads a completion request: its prompts, and how each of their choices is generated."""

from __future__ import annotations

from tunery.gateway.api.request.choices import ChoiceRequest
from tunery.gateway.api.request.context_length import output_budget, truncate_prompt
from tunery.gateway.api.request.prompts import PromptOptions, read_prompts
from tunery.gateway.api.request.sampling import OutputOptions, read_samplings
from tunery.gateway.api.request.structured_output import read_constraint
from tunery.gateway.api.schemas.requests import CompletionRequest
from tunery.gateway.api.state import Gateway
from tunery.gateway.engine.messages import Ready
from tunery.gateway.engine.sampling_params import Constraint
from tunery.plugins.data.render.renderer import Renderer
from tunery.registry.errors import InvalidInput

__all__ = ["check_completion", "read_completion"]

MAX_PROMPTS = 64
DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for this endpoint."""


def check_completion(data: CompletionRequest) -> None:
    """Raise InvalidInput for fields of OpenAI's that are not supported, or that leave nothing to answer."""
    if data.suffix:
        raise InvalidInput("suffix is not supported; leave it out", code="unsupported_parameter", param="suffix")
    if data.best_of not in (None, 1, data.n):
        raise InvalidInput("best_of is not supported; use n", code="unsupported_parameter", param="best_of")
    if data.max_tokens == 0 and not data.echo and data.prompt_logprobs is None:
        raise InvalidInput(
            "max_tokens is 0, so there would be no answer; set echo or prompt_logprobs, or ask for more tokens",
            param="max_tokens",
        )


async def read_completion(data: CompletionRequest, *, gateway: Gateway, ready: Ready) -> list[ChoiceRequest]:
    """The choices of every prompt, in the prompts' order; raise InvalidInput naming the field that is wrong."""
    constraint = read_constraint(data)
    options = PromptOptions(
        param="prompt",
        max_prompts=MAX_PROMPTS,
        special=data.add_special_tokens is not False,
        truncate=data.truncate_prompt_tokens,
    )
    prompts = await read_prompts(data.prompt, options, gateway=gateway, ready=ready)
    return [choice for prompt in prompts for choice in _choices(data, prompt, constraint, ready, gateway.renderer)]


def _choices(
    data: CompletionRequest, prompt: tuple[int, ...], constraint: Constraint | None, ready: Ready, renderer: Renderer
) -> list[ChoiceRequest]:
    """The choices of one prompt. The engine always generates, so `max_tokens` 0 asks for one token and hides it."""
    silent, context = data.max_tokens == 0, ready.context_length
    prompt = truncate_prompt(
        prompt, data.truncate_prompt_tokens, context=context, output=data.max_tokens or DEFAULT_MAX_TOKENS
    )
    max_tokens = output_budget(
        len(prompt), 1 if silent else data.max_tokens, context=context, default=DEFAULT_MAX_TOKENS, param="prompt"
    )
    output = OutputOptions(
        max_tokens=max_tokens,
        logprobs=data.logprobs,
        prompt_logprobs=data.logprobs if data.echo and data.prompt_logprobs is None else data.prompt_logprobs,
        constraint=constraint,
    )
    samplings = read_samplings(data, output, vocab_size=ready.vocab_size, renderer=renderer)
    return [ChoiceRequest(prompt, sampling, silent) for sampling in samplings]
