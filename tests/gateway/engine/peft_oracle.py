"""Random bases and PEFT adapters for the engine's tests, and PEFT itself as the oracle, each request alone."""

from __future__ import annotations

import copy
import functools
import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from tunery.gateway.engine.composition import AdapterSource, WeightedAdapter
from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.core import EngineCore
from tunery.gateway.engine.messages import Event, Failed, Generate, Token, Tokens
from tunery.gateway.engine.models.native.kernels import load_kernels
from tunery.gateway.engine.models.torch.linear import weight_of
from tunery.gateway.engine.sampling_params import SamplingParams
from tunery.plugins.quantization import quantization_config

VOCAB = 320
TOLERANCE = 1e-4
KERNELS = ["auto", "torch"] if load_kernels() else ["torch"]
"""What computes a step: the native kernels, where this CPU has them, and torch."""
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**_COMMON, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**_COMMON, tie_word_embeddings=False),
    "qwen3": lambda: Qwen3Config(**_COMMON, tie_word_embeddings=True),
    "mistral": lambda: MistralConfig(**_COMMON, sliding_window=12, tie_word_embeddings=False),
    "gemma": lambda: GemmaConfig(**_COMMON),
    "gemma2": lambda: Gemma2Config(**_COMMON, sliding_window=12, query_pre_attn_scalar=16),
    "gemma3": lambda: Gemma3TextConfig(**_COMMON, sliding_window=12, query_pre_attn_scalar=16),
}


def make_base(folder: Path, family: str, *, seed: int = 0) -> Path:
    """Save a random model of `family`; its weights are large enough that logits differ clearly between tokens."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(FAMILIES[family](), dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            parameter.data.normal_(0, 0.12)
        elif name.endswith("bias"):
            parameter.data.normal_(0, 0.3)
        else:
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return folder


def make_adapter(base: Path, folder: Path, *, seed: int = 0, size: float = 0.2, **settings: Any) -> AdapterSource:
    """Save a random PEFT LoRA for `base` and describe it as the engine wants it."""
    torch.manual_seed(seed)
    defaults: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**(defaults | settings)))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn_like(parameter) * size
            # In place: tied pairs share their memory.
            parameter.data.copy_(noise.abs() + 0.5 if "magnitude" in name else parameter.data + noise)
    model.save_pretrained(str(folder))
    return describe(folder)


def describe(folder: Path, *, name: str = "acme/test", number: int = 1) -> AdapterSource:
    """An AdapterSource of a PEFT folder."""
    files = {path.name: str(path) for path in sorted(folder.iterdir()) if path.suffix in {".json", ".safetensors"}}
    digest = hashlib.sha256(b"".join(Path(path).read_bytes() for path in files.values())).hexdigest()
    return AdapterSource(digest, name, number, files)


@dataclass
class Engine:
    """An EngineCore driven by hand, and what it said."""

    core: EngineCore
    events: list[Event]

    @classmethod
    def on(cls, base: Path, *, clock: Callable[[], float] = time.monotonic, **settings: Any) -> Engine:
        events: list[Event] = []
        defaults: dict[str, Any] = {"quant": "none", "dtype": "float32", "eos_ids": (2,), "base_digest": "0"}
        config = EngineConfig(base_folder=str(base), base_name="tiny", **(defaults | settings))
        return cls(EngineCore(config, events.append, clock=clock), events)

    def run(self, requests: Iterable[Generate]) -> dict[str, list[Token]]:
        """Run the requests together to their ends; tokens by request id."""
        self.events.clear()
        return self.more(requests)

    def more(self, requests: Iterable[Generate]) -> dict[str, list[Token]]:
        """Run the requests together with what is there to their ends; all tokens since the last
        `run`, by request id."""
        for request in requests:
            self.core.handle(request)
        self.core.run_until_idle()
        failures = [event for event in self.events if isinstance(event, Failed)]
        if failures:
            raise AssertionError(failures)
        return self.answers()

    def answers(self) -> dict[str, list[Token]]:
        """All tokens since the last `run`, by request id, without their times, which are never the same."""
        result: dict[str, list[Token]] = {}
        for event in self.events:
            for token in event.tokens if isinstance(event, Tokens) else ():
                result.setdefault(token.id, []).append(msgspec.structs.replace(token, timings=None))
        return result


def request(name: str, prompt: Iterable[int], adapter: AdapterSource | None = None, **sampling: Any) -> Generate:
    """A greedy request of 12 tokens unless `sampling` says otherwise."""
    defaults: dict[str, Any] = {"max_tokens": 12, "temperature": 0.0, "logprobs": 1, "ignore_eos": True}
    composition = (WeightedAdapter(adapter),) if adapter else ()
    return Generate(
        id=name, prompt=tuple(prompt), sampling=SamplingParams(**(defaults | sampling)), composition=composition
    )


def prompt(length: int, *, seed: int) -> tuple[int, ...]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(3, VOCAB, (length,), generator=generator).tolist())


@functools.lru_cache(maxsize=1)
def exact_base(base: Path, quant: str) -> nn.Module:
    """The base in float32 whose linear weights are exactly the quantized ones, so that PEFT
    computes without rounding."""
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = quantization_config(quant, torch.float32)
    if config is not None:
        quantized = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, quantization_config=config)
        for name, module in quantized.named_modules():
            if type(module).__name__ in {"Linear4bit", "Linear8bitLt"}:
                plain.get_submodule(name).weight.data = weight_of(module)
    return plain.eval()  # type: ignore[no-any-return]


def with_adapter(base: Path, quant: str, composition: tuple[WeightedAdapter, ...]) -> nn.Module:
    """The oracle for one request's adapters: PEFT on the exact base; a composition is PEFT's own, by concatenation."""
    model = copy.deepcopy(exact_base(base, quant))
    if not composition:
        return model
    folders = [str(Path(part.source.files["adapter_config.json"]).parent) for part in composition]
    peft = PeftModel.from_pretrained(model, folders[0], adapter_name="0")
    if len(composition) > 1 or composition[0].weight != 1.0:
        for index, folder in enumerate(folders[1:], start=1):
            peft.load_adapter(folder, adapter_name=str(index))
        names = [str(index) for index in range(len(composition))]
        peft.add_weighted_adapter(names, [part.weight for part in composition], "mixed", combination_type="cat")
        for module in peft.modules():
            if isinstance(module, LoraLayer) and "mixed" in module.scaling:
                # PEFT (0.21.2) scales the sum by the root of its rank when the first adapter uses
                # rsLoRA, though each part is scaled.
                module.scaling["mixed"] = 1.0
        peft.set_adapter("mixed")
    return peft.eval()


@torch.no_grad()
def alone(model: nn.Module, request: Generate) -> list[tuple[int, float]]:
    """Greedy tokens and log-probabilities of one request, recomputed from scratch for every token."""
    tokens = list(request.prompt)
    result = []
    for _ in range(request.sampling.max_tokens):
        scores = log_probabilities(model, tokens)[-1]
        token = int(scores.argmax())
        result.append((token, float(scores[token])))
        tokens.append(token)
    return result


@torch.no_grad()
def log_probabilities(model: nn.Module, tokens: Sequence[int]) -> torch.Tensor:
    """Those of every next token after each of `tokens`, by the model alone and from scratch, [tokens, vocabulary]."""
    return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].log_softmax(-1)  # type: ignore[no-any-return]


def assert_alone(model: nn.Module, request: Generate, tokens: Sequence[Token], *, name: str = "") -> None:
    """`tokens` are what the model generates greedily up to its end, with its log-probabilities,
    within the issue's 1e-4.

    One pass over all of them says the same as a pass for each: when every token is the best after those before it, then
    greedy decoding comes to just these.
    """
    scores = assert_scored(model, request, tokens, name=name)
    scores[: request.sampling.min_tokens, list(request.sampling.stop_token_ids)] = -torch.inf
    assert [token.token for token in tokens] == scores.argmax(-1).tolist(), name or request.id


def assert_scored(model: nn.Module, request: Generate, tokens: Sequence[Token], *, name: str = "") -> torch.Tensor:
    """`tokens` end where the request does, and have the model's log-probabilities; returns all of
    them [tokens, vocabulary]."""
    name, wanted = name or request.id, request.sampling
    chosen = [token.token for token in tokens]
    ends = [
        index for index, token in enumerate(chosen) if token in wanted.stop_token_ids and index >= wanted.min_tokens
    ]
    assert len(chosen) == min([wanted.max_tokens, *(end + 1 for end in ends)]), name
    return assert_near(model, (*request.prompt, *chosen), [token.logprob for token in tokens], name=name)


def assert_near(model: nn.Module, tokens: Sequence[int], given: Sequence[float], *, name: str = "") -> torch.Tensor:
    """`given` are the model's log-probabilities of the last of `tokens`, within the issue's 1e-4;
    returns all of them there.

    A random model has places where PEFT's own float32 is further from PEFT in float64 than that;
    there, no further than it is will do.
    """
    where = torch.arange(len(given)), list(tokens[-len(given) :])
    scores = log_probabilities(model, tokens[:-1])[-len(given) :]
    ours, theirs = torch.tensor(given, dtype=torch.float64), scores[where].double()
    worst, allowed = float((ours - theirs).abs().max()), TOLERANCE
    if worst > allowed:
        exact = log_probabilities(copy.deepcopy(model).double(), tokens[:-1])[-len(given) :][where]
        worst, allowed = float((ours - exact).abs().max()), max(TOLERANCE, float((theirs - exact).abs().max()))
    assert worst <= allowed, (name, worst, allowed)
    return scores


def assert_same(tokens: Sequence[Token], others: Sequence[Token]) -> None:
    """Both are the same tokens with the same log-probabilities: to the bit where native kernels computed them, which
    promise that for any neighbours in the batch, and otherwise within the tolerance of the comparison with PEFT."""
    tolerance = 0.0 if "auto" in KERNELS else TOLERANCE
    assert [token.token for token in tokens] == [other.token for other in others]
    expected = pytest.approx([other.logprob for other in others], rel=0, abs=tolerance)
    assert [token.logprob for token in tokens] == expected
