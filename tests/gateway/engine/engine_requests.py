"""Requests of tenants, for embeddings and with structured output."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from tests.gateway.engine.peft_oracle import prompt, request
from tunery.gateway.engine.composition import AdapterSource, WeightedAdapter
from tunery.gateway.engine.messages import Embed, Generate
from tunery.gateway.engine.sampling_params import Constraint

SCHEMA = '{"type": "object", "properties": {"team": {"enum": ["billing", "tech"]}, "n": {"type": "integer", "maximum": 99}}, "required": ["team", "n"], "additionalProperties": false}'


def request_of(tenant: str, name: str, tokens: tuple[int, ...], **sampling: Any) -> Generate:
    return msgspec.structs.replace(request(name, tokens, **sampling), tenant=tenant)


def embed(
    name: str, tokens: tuple[int, ...], pooling: Literal["mean", "last"], adapter: AdapterSource | None = None
) -> Embed:
    return Embed(id=name, prompt=tokens, pooling=pooling, composition=(WeightedAdapter(adapter),) if adapter else ())


def constrained(
    name: str,
    kind: Literal["json_schema", "json_object", "regex", "grammar"],
    text: str,
    adapter: AdapterSource | None = None,
    **sampling: Any,
) -> Generate:
    settings = {"max_tokens": 60, "temperature": 1.0, "seed": 3, "ignore_eos": False, **sampling}
    return request(name, prompt(9, seed=1), adapter, constraint=Constraint(kind, text), **settings)
