"""The messages between the gateway and the engine process: commands one way, events the other.

They carry token ids and paths of files, never text or tensors. See ipc/wire.py for their frames on the socket.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from tunery.gateway.engine.composition import AdapterSource, WeightedAdapter
from tunery.gateway.engine.sampling_params import SamplingParams

__all__ = [
    "Alive",
    "Cancel",
    "Command",
    "Embed",
    "Embedded",
    "Event",
    "Failed",
    "Generate",
    "Load",
    "Loaded",
    "PromptScore",
    "Ready",
    "Resident",
    "Shutdown",
    "Stats",
    "Timings",
    "Token",
    "Tokens",
    "TopToken",
    "Unload",
    "Unloaded",
]


# -- commands: gateway → engine ---------------------------------------------------------------------------------------


class Generate(msgspec.Struct, frozen=True, kw_only=True, tag="generate"):
    """Continue `prompt` (token ids) on the adapters of `composition`, or on the base alone when it is empty.

    `id` is unique to the request; `tenant` is the one whose virtual token counter is charged. A request in the
    `background` runs only on what the others leave. Only requests with the same `cache_salt` share the KV cache of
    prefixes.
    """

    id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    composition: tuple[WeightedAdapter, ...] = ()
    tenant: str = ""
    background: bool = False
    cache_salt: str = ""


class Embed(msgspec.Struct, frozen=True, kw_only=True, tag="embed"):
    """Pool the last layer's hidden states of `prompt`, after the final norm, to one vector; answered by Embedded."""

    id: str
    prompt: tuple[int, ...]
    pooling: Literal["mean", "last"] = "mean"
    composition: tuple[WeightedAdapter, ...] = ()
    tenant: str = ""
    background: bool = False
    cache_salt: str = ""


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Stop request `id` now; no more tokens are sent for it. Has no effect on a request that has ended."""

    id: str


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Make an adapter resident before a request needs it; answered by Loaded or Failed with the same id.

    With `pin` it is never evicted until it is unloaded.
    """

    id: str
    adapter: AdapterSource
    pin: bool = False


class Unload(msgspec.Struct, frozen=True, tag="unload"):
    """Free an adapter's memory, pinned or not, as soon as its last running request ends; answered by Unloaded."""

    id: str
    digest: str


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """End the process; nothing more is answered."""


Command = Generate | Embed | Cancel | Load | Unload | Shutdown


# -- events: engine → gateway -----------------------------------------------------------------------------------------


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """The base is in memory.

    `context_length` is the most tokens (prompt and output) of one request. `base_bytes` and `adapter_budget` are in
    bytes, `load_seconds` is how long loading took.
    """

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


class Timings(msgspec.Struct, frozen=True, array_like=True):
    """Seconds from a request's arrival in the engine until its adapters were in memory (None if they were already),
    until it ran, and until its prompt was computed."""

    loaded: float | None = None
    started: float = 0.0
    prefilled: float = 0.0


class TopToken(msgspec.Struct, frozen=True, array_like=True):
    """An alternative token and its natural-log probability."""

    token: int
    logprob: float


class PromptScore(msgspec.Struct, frozen=True, array_like=True):
    """The natural-log probability of a prompt token given the tokens before it, and the alternatives in its place."""

    logprob: float
    top: tuple[TopToken, ...] = ()


class Token(msgspec.Struct, frozen=True, array_like=True):
    """One generated token of request `id`.

    `finish` is None while the request goes on, else "stop" (`token` is an end-of-turn or stop token) or "length".
    `logprob` is the natural log of the token's probability under the unmodified model distribution, `top` the
    alternatives.

    Only a request's first token carries `cached_tokens`, how many tokens of the prompt were in the prefix cache, and,
    if asked for, `prompt_scores`, those of the prompt's tokens from the second on; and its `timings`.
    """

    id: str
    token: int
    logprob: float
    finish: str | None = None
    top: tuple[TopToken, ...] = ()
    cached_tokens: int = 0
    prompt_scores: tuple[PromptScore, ...] = ()
    timings: Timings | None = None


class Embedded(msgspec.Struct, frozen=True, tag="embedded"):
    """The pooled vector [hidden size] of an Embed."""

    id: str
    vector: list[float]
    timings: Timings | None = None


class Tokens(msgspec.Struct, frozen=True, tag="tokens"):
    """All tokens that one forward pass generated."""

    tokens: list[Token]


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Request, load or unload `id` ended without an answer; `code` is the code of a TuneryError.

    With an empty `id`, the engine does not serve its base and ends.
    """

    id: str
    code: str
    message: str


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """The adapter is resident and takes `bytes` of memory."""

    id: str
    digest: str
    bytes: int


class Unloaded(msgspec.Struct, frozen=True, tag="unloaded"):
    """The adapter is gone, or goes with its last running request, and frees `bytes` (0 when it was not resident)."""

    id: str
    digest: str
    bytes: int


class Resident(msgspec.Struct, frozen=True):
    """An adapter in memory, and how many requests run on it."""

    digest: str
    name: str
    number: int
    bytes: int
    running: int
    pinned: bool = False


class Stats(msgspec.Struct, frozen=True, kw_only=True, tag="stats"):
    """The engine's state, sent at least once a second and after every change of residency.

    `running` and `waiting` count requests, the dicts count by adapter name. `kv_used` is the share of KV cache pages in
    use, 0 to 1. Counters (`steps` to `hits`, and those of `preemptions` and the prefix cache) only grow for the life of
    the process. `load_seconds` are the loads finished since the last Stats, as (adapter name, seconds). `ram_bytes` is
    the host memory of evicted adapters. `prefix_queries` and `prefix_hits` count prompt tokens looked up and found in
    the prefix cache.
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
    """A heartbeat. The forward pass that is running has taken `step_seconds` so far (0: none is running)."""

    step_seconds: float = 0.0


Event = Ready | Tokens | Embedded | Failed | Loaded | Unloaded | Stats | Alive
