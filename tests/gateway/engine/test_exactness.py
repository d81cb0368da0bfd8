"""Served in a mixed batch, every request equals PEFT alone on the same quantized base, and base rows keep their bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.gateway.engine.peft_oracle import (
    FAMILIES,
    Engine,
    alone,
    make_adapter,
    make_base,
    prompt,
    request,
    with_adapter,
)
from tunery.gateway.engine.messages import Generate, Token

VARIETY = {
    "r4": {"r": 4},
    "r16": {"r": 16, "lora_alpha": 32},
    "r64": {"r": 64, "lora_alpha": 16},
    "rslora": {"r": 16, "use_rslora": True, "lora_alpha": 8},
    "patterns": {"r": 8, "rank_pattern": {"q_proj": 3, "layers.1.mlp.up_proj": 5}, "alpha_pattern": {"down_proj": 3}},
    "missing": {"r": 8, "target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
    "dora": {"r": 4, "use_dora": True},
    "norms": {"r": 4, "modules_to_save": ["norm", "input_layernorm"]},
}


def said(tokens: list[Token]) -> list[tuple[int, float]]:
    """What was generated, with its log-probabilities."""
    return [(token.token, token.logprob) for token in tokens]


def check(base: Path, quant: str, requests: list[Generate], **settings: Any) -> None:
    served = Engine.on(base, quant=quant, **settings).run(requests)
    for one in requests:
        expected = alone(with_adapter(base, quant, one.mix), one)
        tokens = served[one.id]
        assert [token.token for token in tokens] == [token for token, _ in expected], one.id
        worst = max(abs(token.logprob - logprob) for token, (_, logprob) in zip(tokens, expected, strict=True))
        assert worst <= 1e-3, (one.id, worst)


@pytest.mark.parametrize("quant", ["none", "nf4", "int8"])
def test_every_kind_of_adapter_in_one_batch_equals_peft_alone(tmp_path: Path, quant: str) -> None:
    base = make_base(tmp_path / "base", "llama")
    requests = [request("base-0", prompt(9, seed=100)), request("base-1", prompt(30, seed=101))]
    for index, (name, settings) in enumerate(VARIETY.items()):
        adapter = make_adapter(base, tmp_path / name, seed=index, **settings)
        requests.append(request(name, prompt(5 + 7 * index, seed=index), adapter))
        requests.append(request(f"{name}-again", prompt(4, seed=50 + index), adapter))
    check(base, quant, requests)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_families_of_models(tmp_path: Path, family: str) -> None:
    base = make_base(tmp_path / "base", family)
    adapters = [make_adapter(base, tmp_path / str(i), seed=i, r=4 * i + 4) for i in range(2)]
    requests = [request("base", prompt(25, seed=9))]
    requests += [request(str(i), prompt(17 + i, seed=i), adapter) for i, adapter in enumerate(adapters)]
    check(base, "nf4", requests)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_biases_and_whole_heads(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "qwen2")
    biased = make_adapter(base, tmp_path / "bias", bias="lora_only", target_modules=["q_proj", "v_proj"])
    headed = make_adapter(base, tmp_path / "head", seed=1, modules_to_save=["lm_head", "embed_tokens"])
    embedded = make_adapter(base, tmp_path / "embed", seed=2, target_modules=["embed_tokens", "lm_head", "o_proj"])
    requests = [request("base", prompt(6, seed=1))]
    for name, adapter in (("bias", biased), ("head", headed), ("embed", embedded)):
        requests.append(request(name, prompt(8, seed=2), adapter))
    check(base, "none", requests)


@pytest.mark.parametrize("quant", ["none", "nf4", "int8"])
def test_base_rows_keep_their_bits_whatever_the_neighbours(tmp_path: Path, quant: str) -> None:
    base = make_base(tmp_path / "base", "llama")
    adapters = [make_adapter(base, tmp_path / str(i), seed=i, r=4 << i) for i in range(3)]
    engine = Engine.on(base, quant=quant)
    mine = [request(f"base-{i}", prompt(3 + 11 * i, seed=i), max_tokens=20) for i in range(3)]
    lonely = {one.id: engine.run([one])[one.id] for one in mine}
    crowd = [request(f"crowd-{i}", prompt(2 + 3 * i, seed=40 + i), adapters[i % 3]) for i in range(13)]
    crowded = engine.run([*crowd[:7], *mine, *crowd[7:]])
    for one in mine:
        assert said(crowded[one.id]) == said(lonely[one.id])  # bit for bit


@pytest.mark.parametrize("family", ["gemma3", "qwen3"])
def test_a_long_prompt_in_pieces_equals_the_whole(tmp_path: Path, family: str) -> None:
    base = make_base(tmp_path / "base", family)
    adapter = make_adapter(base, tmp_path / "a")
    requests = [request("long", prompt(75, seed=1), adapter), request("base", prompt(33, seed=2))]
    check(base, "none", requests, token_budget=17)


@pytest.mark.slow
def test_the_real_base_in_four_bits_equals_peft_alone(base_folder: Path, tmp_path: Path) -> None:
    kinds = {name: VARIETY[name] for name in ("r4", "r16", "r64", "rslora", "patterns", "missing")}
    requests = [request("base", prompt(40, seed=1), max_tokens=6)]
    for index, (name, settings) in enumerate(kinds.items()):
        adapter = make_adapter(base_folder, tmp_path / name, seed=index, size=0.02, **settings)
        requests.append(request(name, prompt(20 + index, seed=index), adapter, max_tokens=6))
    check(base_folder, "nf4", requests)
    engine = Engine.on(base_folder, quant="nf4")
    assert said(engine.run(requests[:1])["base"]) == said(engine.run(requests)["base"])  # bit for bit
