"""Owns what the gateway and the engine process say to each other; refuses anything but tokens and blob paths.

Frames on the socket are a 4-byte little-endian length and one msgpack message; see `wire.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import msgspec

__all__ = [
    "AdapterSource",
    "Alive",
    "Cancel",
    "Command",
    "Constraint",
    "Embed",
    "Embedded",
    "Event",
    "Failed",
    "Generate",
    "Load",
    "Loaded",
    "Ready",
    "Resident",
    "Sampling",
    "Score",
    "Shutdown",
    "Stats",
    "Token",
    "Tokens",
    "TopToken",
    "Unload",
    "Unloaded",
    "WeightedAdapter",
    "composition_digest",
    "composition_title",
]


class AdapterSource(msgspec.Struct, frozen=True):
    """A version as the engine needs it: its identity and where its files lie.

    `digest` is the identity; `name` (`tenant/name`) and `number` are for metrics and messages only.
    `files` maps the file's path inside the version to an absolute path on disk, `sha256` to the digest of its bytes where one is
    recorded; what does not match it is not served.
    """

    digest: str
    name: str
    number: int
    files: dict[str, str]
    sha256: dict[str, str] = {}

    @property
    def title(self) -> str:
        """How messages name it: `acme/support@3`."""
        return f"{self.name}@{self.number}"


class WeightedAdapter(msgspec.Struct, frozen=True):
    """An adapter with the weight its correction has in a composition; alone, it has weight 1."""

    source: AdapterSource
    weight: float = 1.0


def composition_digest(composition: Sequence[WeightedAdapter]) -> str:
    """The identity of what answers: empty for the bare base, the version's own digest for one adapter at weight 1."""
    if len(composition) == 1 and composition[0].weight == 1.0:
        return composition[0].source.digest
    spelled = "+".join(f"{part.source.digest}:{part.weight!r}" for part in composition)
    return hashlib.sha256(spelled.encode()).hexdigest() if composition else ""


def composition_title(composition: Sequence[WeightedAdapter]) -> str:
    """How a composition is written: `acme/tone@1:0.5+acme/facts@2`."""
    return "+".join(
        part.source.title if part.weight == 1.0 else f"{part.source.title}:{part.weight:g}" for part in composition
    )


class Constraint(msgspec.Struct, frozen=True):
    """What the output must be: `text` is a JSON schema, nothing (any JSON object), a regular expression, or a Lark grammar."""

    kind: Literal["json_schema", "json_object", "regex", "grammar"]
    text: str = ""


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How to choose tokens; the defaults are OpenAI's. Values are validated by the gateway.

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 keep everything. `seed` makes the noise reproducible whatever the
    neighbours. `logprobs` is how many alternatives to report per token (None: none, 0: only the chosen token's);
    `prompt_logprobs` the same for the tokens of the prompt. `constraint` allows only tokens that keep the output possible.
    Repetition penalty is the multiplicative one of CTRL (arXiv 1909.05858), over prompt and output; presence and frequency
    are OpenAI's additive ones, over the output. With `allowed_token_ids` there are no other tokens; of `bad_words`, each a word's
    tokens, the last does not follow the others. Neither goes together with a constraint.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    constraint: Constraint | None = None


# -- gateway → engine -------------------------------------------------------------------------------------------------


class Generate(msgspec.Struct, frozen=True, kw_only=True, tag="generate"):
    """Continue `prompt` (token ids) on the adapters of `composition`, or on the bare base when it is empty.

    `id` is unique per request; `tenant` is who is charged for it in the engine's fairness.
    """

    id: str
    prompt: tuple[int, ...]
    sampling: Sampling
    composition: tuple[WeightedAdapter, ...] = ()
    tenant: str = ""


class Embed(msgspec.Struct, frozen=True, kw_only=True, tag="embed"):
    """The last layer's hidden states of `prompt`, normed as the head sees them, pooled to one vector; answered by Embedded."""

    id: str
    prompt: tuple[int, ...]
    pooling: Literal["mean", "last"] = "mean"
    composition: tuple[WeightedAdapter, ...] = ()
    tenant: str = ""


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Stop `id` now; no more tokens are sent for it. Cancelling what has ended is harmless."""

    id: str


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Make an adapter resident before anybody asks for it; answered by Loaded or Failed with the same id.

    `pin` keeps it there, whatever needs room, until it is unloaded.
    """

    id: str
    adapter: AdapterSource
    pin: bool = False


class Unload(msgspec.Struct, frozen=True, tag="unload"):
    """Free an adapter's memory, pinned or not, as soon as its last running request ends; answered by Unloaded."""

    id: str
    digest: str


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """End the process after answering nothing more."""


Command = Generate | Embed | Cancel | Load | Unload | Shutdown


# -- engine → gateway -------------------------------------------------------------------------------------------------


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """The base is in memory. `context_length` is the most tokens (prompt and output) of one request."""

    base: str
    base_digest: str
    quant: str
    dtype: str
    device: str
    context_length: int
    vocab_size: int
    base_bytes: int
    adapter_budget: int
    max_batch: int
    load_seconds: float


class TopToken(msgspec.Struct, frozen=True, array_like=True):
    """An alternative and its natural-log probability."""

    token: int
    logprob: float


class Score(msgspec.Struct, frozen=True, array_like=True):
    """A prompt token's natural-log probability after the tokens before it, and the alternatives there."""

    logprob: float
    top: tuple[TopToken, ...] = ()


class Token(msgspec.Struct, frozen=True, array_like=True):
    """One chosen token of request `id`.

    `finish` is None while the request goes on, else "stop" (end-of-turn or a stop token; `token` is that token) or
    "length". `logprob` is the natural log of its probability under the unmodified model distribution.
    The first token of a request also carries `cached`, how many tokens of the prompt were found in the prefix cache, and, if
    asked for, `prompt`: the scores of the prompt's tokens from the second on.
    """

    id: str
    token: int
    logprob: float
    finish: str | None = None
    top: tuple[TopToken, ...] = ()
    cached: int = 0
    prompt: tuple[Score, ...] = ()


class Embedded(msgspec.Struct, frozen=True, tag="embedded"):
    """The pooled vector [hidden size] of an Embed."""

    id: str
    vector: list[float]


class Tokens(msgspec.Struct, frozen=True, tag="tokens"):
    """All tokens that one step chose."""

    tokens: list[Token]


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Request, load or unload `id` ended without an answer; `code` is a TuneryError code."""

    id: str
    code: str
    message: str


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """The adapter is resident and takes `bytes` of memory."""

    id: str
    digest: str
    bytes: int


class Unloaded(msgspec.Struct, frozen=True, tag="unloaded"):
    """The adapter is gone, or goes with its last running request, and gives back `bytes` (0 when it was not resident)."""

    id: str
    digest: str
    bytes: int


class Resident(msgspec.Struct, frozen=True):
    """An adapter in memory now."""

    digest: str
    name: str
    number: int
    bytes: int
    running: int
    pinned: bool = False


class Stats(msgspec.Struct, frozen=True, kw_only=True, tag="stats"):
    """The engine's state, at least once a second and after every change of residency.

    Counters only grow for the life of the process. `load_seconds` are the loads finished since the last Stats,
    as (adapter name, seconds). `ram_bytes` is what evicted adapters keep of the RAM tier. `prefix_queries` and `prefix_hits`
    count prompt tokens looked up and found in the prefix cache.
    """

    running: int
    waiting: int
    running_adapters: dict[str, int]
    waiting_adapters: dict[str, int]
    resident: list[Resident]
    resident_bytes: int
    kv_used: float
    steps: int
    step_tokens: int
    loads: dict[str, int]
    load_failures: dict[str, int]
    evictions: dict[str, int]
    hits: dict[str, int]
    load_seconds: list[tuple[str, float]]
    ram_bytes: int = 0
    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0


class Alive(msgspec.Struct, frozen=True, tag="alive"):
    """The process lives, loading or serving; the step that is running has taken `step_seconds` so far (0: none is)."""

    step_seconds: float = 0.0


Event = Ready | Tokens | Embedded | Failed | Loaded | Unloaded | Stats | Alive
