"""Owns the base model in memory and running one step through it; refuses to decide what to run.

Any causal language model of transformers will do, as long as its attention goes through the attention interface and its
parameters sit in linear layers, embeddings and norms.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from tunery.gateway.engine.adapter import AdapterShape, LoadedAdapter, LowRank, read_adapter
from tunery.gateway.engine.attention import ATTENTION, PagedAttention, register_attention
from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.kv_cache import KVCache
from tunery.gateway.engine.layers import adapter_shape, dora_gain, fit
from tunery.gateway.engine.linear import ROW_BLOCK
from tunery.gateway.engine.messages import AdapterSource
from tunery.gateway.engine.scheduler import Scheduled
from tunery.gateway.engine.step import Board, Segment, Span, Step
from tunery.plugins.quantization import quantization_config
from tunery.registry.errors import ArtifactRefused

__all__ = ["Model"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Model:
    """The quantized base, fitted for adapters, with its key-value cache."""

    def __init__(self, config: EngineConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        started = clock()
        self.dtype = DTYPES[config.dtype]
        self.device = torch.device(_device(config.device))
        loaded: Any = _load(config, self.dtype, self.device)
        self._module = loaded
        text = loaded.config.get_text_config()
        self.vocab_size = int(text.vocab_size)
        longest = int(getattr(text, "max_position_embeddings", 2048))
        self.context_length = min(longest, config.context_length or longest)
        self.base_bytes = sum(tensor.nbytes for tensor in (*self._module.parameters(), *self._module.buffers()))
        self._board = Board()
        self.cache = KVCache(config.kv_tokens or config.max_batch * min(self.context_length, 2048), device=self.device)
        PagedAttention(self.cache, self._board).fit(self._module)
        self.shape: AdapterShape = adapter_shape(self._module)
        self._modules = dict(self._module.named_modules())
        fit(self._module, self._board)
        # Fixed blocks of rows only pay where their bits are promised.
        self._multiple = ROW_BLOCK if self.dtype == torch.float32 and self.device.type == "cpu" else 1
        self.load_seconds = clock() - started

    def read_adapter(self, source: AdapterSource) -> LoadedAdapter:
        """Load an adapter's weights for this base; safe to call from another thread."""
        loaded = read_adapter(source, self.shape, dtype=self.dtype, device=self.device)
        for name, pair in loaded.low_rank.items():
            if pair.gain is not None:
                gain = dora_gain(self._modules[name], pair)
                loaded.low_rank[name] = LowRank(pair.a, pair.b, pair.bias, gain)
        self._drop_copies(loaded)
        return loaded

    def _drop_copies(self, loaded: LoadedAdapter) -> None:
        """Forget whole parameters that only repeat the base's; PEFT saves the embedding so when it is adapted."""
        for name, tensors in list(loaded.replaced.items()):
            own = dict(self._modules[name].named_parameters(recurse=False))
            kept = {leaf: tensor for leaf, tensor in tensors.items() if not _same(tensor, own[leaf])}
            if kept:
                loaded.replaced[name] = kept
            else:
                del loaded.replaced[name]

    @torch.inference_mode()
    def run(self, scheduled: list[Scheduled]) -> torch.Tensor:
        """Compute the scheduled tokens; logits [R, vocabulary] for the R sequences whose last known token was among them."""
        self._board.step = step = self._step(scheduled)
        try:
            result = self._module(
                input_ids=step.tokens,
                position_ids=step.positions,
                use_cache=False,
                logits_to_keep=step.outputs,
            )
        finally:
            self._board.step = None
        logits: torch.Tensor = result.logits[0]
        return logits[: sum(_completes(item) for item in scheduled)]

    def _step(self, scheduled: list[Scheduled]) -> Step:
        """Lay the scheduled tokens out in one row."""
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[torch.Tensor] = []
        spans: list[Span] = []
        outputs: list[int] = []
        for item in scheduled:
            sequence = item.running.sequence
            begin, end = sequence.computed, sequence.computed + item.count
            if sequence.slots is None:
                raise RuntimeError("a scheduled sequence has no slots")
            slots.append(sequence.slots[begin:end])
            spans.append(Span(len(tokens), len(tokens) + item.count, sequence.slots[:end]))
            tokens += sequence.tokens[begin:end]
            positions += range(begin, end)
            if _completes(item):
                outputs.append(len(tokens) - 1)
        padding = -len(tokens) % self._multiple
        # Never an empty head: a step may be all prompt.
        outputs += [len(tokens) - 1] * (-len(outputs) % self._multiple or int(not outputs))
        slots.append(torch.zeros(padding, dtype=torch.int64, device=self.device))
        return Step(
            tokens=torch.tensor([tokens + [0] * padding], device=self.device),
            positions=torch.tensor([positions + [0] * padding], device=self.device),
            slots=torch.cat(slots),
            spans=tuple(spans),
            segments=_segments(scheduled, lambda item: item.count),
            outputs=torch.tensor(outputs, dtype=torch.int64, device=self.device),
            output_segments=_segments(scheduled, lambda item: int(_completes(item))),
        )


def _same(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    return tensor.dtype == other.dtype and torch.equal(tensor, other)


def _completes(item: Scheduled) -> bool:
    """Whether the step reaches the sequence's last known token, so that the next one can be chosen."""
    return item.running.sequence.computed + item.count == len(item.running.sequence.tokens)


def _segments(scheduled: list[Scheduled], width: Callable[[Scheduled], int]) -> tuple[Segment, ...]:
    """Merge neighbours with the same adapter into segments; the bare base has none."""
    segments: list[Segment] = []
    start = 0
    for item in scheduled:
        end, adapter = start + width(item), item.running.adapter
        if adapter is not None and end > start:
            if segments and segments[-1].adapter is adapter and segments[-1].end == start:
                segments[-1] = Segment(segments[-1].start, end, adapter)
            else:
                segments.append(Segment(start, end, adapter))
        start = end
    return tuple(segments)


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _load(config: EngineConfig, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The base as transformers loads it, quantized, in evaluation mode, with the paged attention."""
    transformers_logging.disable_progress_bar()
    register_attention()
    quantization = quantization_config(config.quant, dtype)
    options: dict[str, Any] = {} if quantization is None else {"quantization_config": quantization}
    try:
        module: nn.Module = AutoModelForCausalLM.from_pretrained(
            config.base_folder,
            dtype=dtype,
            device_map={"": str(device)},
            attn_implementation=ATTENTION,
            local_files_only=True,
            trust_remote_code=False,
            **options,
        )
    except (OSError, ValueError) as error:
        raise ArtifactRefused(
            f"the base {config.base_name!r} cannot be loaded: {error}", code="unsupported_base"
        ) from error
    return module.eval()
