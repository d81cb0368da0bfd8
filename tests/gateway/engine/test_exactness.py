"""In a batch of different adapters, every request equals PEFT alone on the same quantized base, and
no row's bits depend on others."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.gateway.engine.peft_oracle import (
    FAMILIES,
    KERNELS,
    Engine,
    assert_alone,
    assert_same,
    describe,
    make_adapter,
    make_base,
    prompt,
    request,
    with_adapter,
)
from tunery.gateway.engine.composition import AdapterSource, WeightedAdapter, composition_digest
from tunery.gateway.engine.messages import Generate, Token
from tunery.plugins.training.delta import save_delta

TOKENS = (5, 7, 44, 300)
VARIETY: dict[str, dict[str, Any]] = {
    "r1": {"r": 1, "lora_alpha": 1},
    "r4": {"r": 4},
    "r7": {"r": 7, "lora_alpha": 3},
    "r16": {"r": 16, "lora_alpha": 32},
    "r64": {"r": 64, "lora_alpha": 16},
    "rslora": {"r": 16, "use_rslora": True, "lora_alpha": 8},
    "patterns": {
        "r": 8,
        "rank_pattern": {"q_proj": 3, "layers.1.mlp.up_proj": 5, "^model.layers.0.mlp.down_proj": 9},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 16, "q_proj": 2, "down_proj": 3},
    },
    "missing": {"r": 8, "target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
    "regex": {"r": 4, "target_modules": r".*layers\.0\..*(q_proj|up_proj)"},
    "dora": {"r": 4, "use_dora": True},
    "dora-rslora": {"r": 5, "use_dora": True, "use_rslora": True},
    "norms": {"r": 4, "modules_to_save": ["norm", "input_layernorm"]},
}
WHOLE: dict[str, dict[str, Any]] = {
    "bias": {"r": 4, "bias": "lora_only", "target_modules": ["q_proj", "v_proj", "down_proj"]},
    "bias-all": {"r": 4, "bias": "all", "target_modules": ["q_proj", "down_proj"]},
    "lora-bias": {"r": 4, "lora_bias": True},
    "dora-bias": {"r": 5, "use_dora": True, "bias": "lora_only"},
    "dora-head": {"r": 5, "use_dora": True, "target_modules": ["lm_head", "o_proj"]},
    "saved-attention": {"r": 4, "modules_to_save": ["k_proj", "v_proj", "o_proj"], "target_modules": ["q_proj"]},
    "saved-mlp": {"r": 4, "modules_to_save": ["up_proj", "down_proj"], "target_modules": ["gate_proj"]},
    "saved-head": {"r": 4, "modules_to_save": ["lm_head"], "target_modules": ["q_proj"]},
    "saved-embedding": {"r": 4, "modules_to_save": ["embed_tokens"], "target_modules": ["q_proj"]},
    "saved-both": {"r": 4, "modules_to_save": ["embed_tokens", "lm_head"], "target_modules": ["q_proj"]},
    "saved-tied": {
        "r": 4,
        "modules_to_save": ["embed_tokens"],
        "target_modules": ["q_proj"],
        "ensure_weight_tying": True,
    },
    "embedding": {"r": 4, "target_modules": ["embed_tokens", "o_proj"]},
    "embedding-tied": {"r": 4, "target_modules": ["embed_tokens", "o_proj"], "ensure_weight_tying": True},
    "head": {"r": 4, "target_modules": ["lm_head", "o_proj"]},
    "embedding-and-head": {"r": 4, "target_modules": ["embed_tokens", "lm_head", "o_proj"]},
    "tokens": {"r": 4, "trainable_token_indices": list(TOKENS)},
    "tokens-by-name": {"r": 4, "trainable_token_indices": {"embed_tokens": [44, 5]}},
    "tokens-of-the-head": {"r": 4, "trainable_token_indices": {"lm_head": list(TOKENS)}},
    "tokens-of-both": {"r": 4, "trainable_token_indices": {"embed_tokens": [5, 7], "lm_head": [5, 7, 9]}},
}
quiet = pytest.mark.filterwarnings(
    "ignore:Setting `save_embedding_layers`:UserWarning",
    "ignore:.*(tied|tying).*:UserWarning",
    "ignore:`lora_bias=True`",
    "ignore:Adapter '.*LoRA tensor.* invalid shape",
)


def sampled(tokens: list[Token]) -> list[tuple[int, float]]:
    """What was generated, with its log-probabilities."""
    return [(token.token, token.logprob) for token in tokens]


def check(
    base: Path, quant: str, requests: list[Generate], *, kernels: Iterable[str] = KERNELS, **settings: Any
) -> None:
    """All requests together, by each of the models, equal PEFT alone."""
    served = {kind: Engine.on(base, quant=quant, kernels=kind, **settings).run(requests) for kind in kernels}
    for digest in {composition_digest(one.composition) for one in requests}:
        mine = [one for one in requests if composition_digest(one.composition) == digest]
        model = with_adapter(base, quant, mine[0].composition)
        for one in mine:
            for kind, answers in served.items():
                assert_alone(model, one, answers[one.id], name=f"{one.id} ({kind})")


def composed(name: str, tokens: Iterable[int], *parts: tuple[AdapterSource, float]) -> Generate:
    """A request on a composition of adapters with weights."""
    return msgspec.structs.replace(request(name, tokens), composition=tuple(WeightedAdapter(*part) for part in parts))


# -- every kind of adapter --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["none", "nf4", "int8"])
def test_every_kind_of_adapter_in_one_batch_equals_peft_alone(tmp_path: Path, quant: str) -> None:
    base = make_base(tmp_path / "base", "llama")
    requests = [request("base-0", prompt(9, seed=100)), request("base-1", prompt(30, seed=101))]
    for index, (name, settings) in enumerate(VARIETY.items()):
        adapter = make_adapter(base, tmp_path / name, seed=index, **settings)
        requests.append(request(name, prompt(5 + 7 * index, seed=index), adapter))
        requests.append(request(f"{name}-again", prompt(4, seed=50 + index), adapter))
    check(base, quant, requests)


@pytest.mark.slow
@quiet
@pytest.mark.parametrize("family", ["llama", "qwen2"], ids=["tied", "untied"])
def test_whole_modules_biases_heads_and_tokens_in_one_batch(tmp_path: Path, family: str) -> None:
    base = make_base(tmp_path / "base", family)
    requests = [request("base", TOKENS + prompt(6, seed=1))]
    for index, (name, settings) in enumerate({**WHOLE, "r7": VARIETY["r7"], "dora": VARIETY["dora"]}.items()):
        adapter = make_adapter(base, tmp_path / name, seed=index, **settings)
        requests.append(request(name, TOKENS + prompt(2 + index, seed=index), adapter))
    check(base, "none", requests)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral"])
def test_whole_modules_and_norms_on_a_quantized_base(tmp_path: Path, family: str) -> None:
    base = make_base(tmp_path / "base", family)
    norms = ["norm", "post_attention_layernorm", *(["q_norm", "k_norm"] if family == "qwen3" else [])]
    kinds = {"norms": {"modules_to_save": norms}, "saved": WHOLE["saved-mlp"], "dora": VARIETY["dora"]}
    requests = [request("base", prompt(6, seed=1))]
    for index, (name, settings) in enumerate(kinds.items()):
        adapter = make_adapter(base, tmp_path / name, seed=index, **settings)
        requests.append(request(name, prompt(20 + index, seed=index), adapter))
    check(base, "nf4", requests)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_families_of_models(tmp_path: Path, family: str) -> None:
    base = make_base(tmp_path / "base", family)
    adapters = [make_adapter(base, tmp_path / str(i), seed=i, r=4 * i + 4) for i in range(2)]
    requests = [request("base", prompt(25, seed=9))]
    requests += [request(str(i), prompt(17 + i, seed=i), adapter) for i, adapter in enumerate(adapters)]
    check(base, "nf4", requests)


@pytest.mark.slow
@quiet
@pytest.mark.parametrize("quant", ["none", "nf4"])
def test_compositions_equal_pefts_concatenation(tmp_path: Path, quant: str) -> None:
    base = make_base(tmp_path / "base", "llama")
    kinds: list[dict[str, Any]] = [
        {"r": 4},
        {"r": 16, "lora_alpha": 8},
        {"r": 3, "target_modules": ["q_proj", "down_proj"]},
    ]
    a, b, c = (make_adapter(base, tmp_path / str(i), seed=i, **settings) for i, settings in enumerate(kinds))
    embedded = make_adapter(base, tmp_path / "e", seed=9, target_modules=["embed_tokens", "lm_head", "o_proj"])
    requests = [
        request("base", prompt(7, seed=1)),
        request("a", prompt(8, seed=2), a),
        composed("half", prompt(8, seed=2), (a, 0.5)),
        composed("two", prompt(9, seed=3), (a, 0.5), (b, 1.0)),
        composed("turned", prompt(9, seed=3), (b, 1.0), (a, 0.5)),
        composed("minus", prompt(20, seed=4), (a, 1.5), (b, -0.5)),
        composed("three", prompt(5, seed=5), (c, 2.0), (a, 0.25), (b, 0.5)),
        composed("embedded", prompt(6, seed=6), (embedded, 0.75), (a, 0.5)),
    ]
    check(base, quant, requests)


@pytest.mark.slow
@quiet
@pytest.mark.parametrize("family", ["llama", "qwen2"], ids=["tied", "untied"])
def test_a_full_tunes_delta_is_served_as_peft_applies_it(tmp_path: Path, family: str) -> None:
    base = make_base(tmp_path / "base", family)
    requests = [request("base", prompt(6, seed=1))]
    for kind, changed in {"all": "", "attention": "self_attn", "embedding": "embed_tokens", "layers": "layers"}.items():
        model = AutoModelForCausalLM.from_pretrained(base)
        torch.manual_seed(len(kind))
        for name, parameter in model.named_parameters():
            if changed in name:
                parameter.data += torch.randn_like(parameter) * 0.05
        folder = tmp_path / kind
        folder.mkdir()
        plain = AutoModelForCausalLM.from_pretrained(base)
        save_delta(model, plain, folder, fidelity=0.9, evaluate=None, base_loss=None, exact_loss=None)
        requests.append(request(kind, prompt(9, seed=2), describe(folder)))
    check(base, "none", requests)


# -- bits -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("quant", ["none", "nf4", "int8"])
def test_base_rows_keep_their_bits_whatever_the_neighbours(tmp_path: Path, quant: str, kernels: str) -> None:
    base = make_base(tmp_path / "base", "llama")
    adapters = [make_adapter(base, tmp_path / str(i), seed=i, r=4 << i) for i in range(3)]
    engine = Engine.on(base, quant=quant, kernels=kernels, prefix_cache=False)
    mine = [request(f"base-{i}", prompt(3 + 11 * i, seed=i), max_tokens=20) for i in range(3)]
    lonely = {one.id: engine.run([one])[one.id] for one in mine}
    crowd = [request(f"crowd-{i}", prompt(2 + 3 * i, seed=40 + i), adapters[i % 3]) for i in range(13)]
    crowded = engine.run([*crowd[:7], *mine, *crowd[7:]])
    for one in mine:
        assert sampled(crowded[one.id]) == sampled(lonely[one.id])  # bit for bit


@pytest.mark.slow
@quiet
@pytest.mark.skipif("auto" not in KERNELS, reason="the native kernels promise this, and they are not here")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quant", ["none", "nf4", "int8"])
def test_every_rows_bits_are_the_same_in_any_company_and_any_pieces(tmp_path: Path, quant: str, dtype: str) -> None:
    base = make_base(tmp_path / "base", "qwen3")
    kinds = [VARIETY["r7"], VARIETY["dora"], WHOLE["saved-mlp"], WHOLE["tokens"], VARIETY["r16"]]
    adapters = [make_adapter(base, tmp_path / str(i), seed=i, **settings) for i, settings in enumerate(kinds)]
    requests = [
        request(str(i), prompt(3 + 9 * i, seed=i), a, max_tokens=9, prompt_logprobs=0) for i, a in enumerate(adapters)
    ]
    requests += [
        request("base", prompt(21, seed=9), max_tokens=9),
        composed("two", prompt(40, seed=8), (adapters[0], 0.5), (adapters[4], 1.0)),
    ]
    options: dict[str, Any] = {"quant": quant, "dtype": dtype}
    engine = Engine.on(base, **options, prefix_cache=False)
    lonely = {one.id: engine.run([one])[one.id] for one in requests}
    for budget in (512, 13, 1):
        together = Engine.on(base, **options, token_budget=budget).run(requests)
        assert {name: strip(tokens) for name, tokens in together.items()} == {
            name: strip(tokens) for name, tokens in lonely.items()
        }


def strip(tokens: list[Token]) -> list[Token]:
    """Without how much was cached."""
    return [msgspec.structs.replace(token, cached_tokens=0) for token in tokens]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma3", "qwen3", "mistral"])
@pytest.mark.parametrize("budget", [1, 17])
def test_a_long_prompt_in_pieces_equals_the_whole(tmp_path: Path, family: str, budget: int) -> None:
    base = make_base(tmp_path / "base", family)
    adapter = make_adapter(base, tmp_path / "a")
    requests = [request("long", prompt(75, seed=1), adapter), request("base", prompt(33, seed=2))]
    check(base, "none", requests, token_budget=budget)


# -- the prefix cache -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kernels", KERNELS)
def test_a_known_beginning_is_found_and_changes_nothing(tmp_path: Path, kernels: str) -> None:
    base = make_base(tmp_path / "base", "llama")
    adapter = make_adapter(base, tmp_path / "a")
    mine = request("mine", prompt(70, seed=1), adapter)
    longer = request("longer", (*mine.prompt, *prompt(9, seed=2)), adapter)
    fresh = Engine.on(base, kernels=kernels, prefix_cache=False)
    engine = Engine.on(base, kernels=kernels)
    first, second, third = (engine.run([one])[one.id] for one in (mine, mine, longer))
    assert [tokens[0].cached_tokens for tokens in (first, second, third)] == [0, 64, 64]
    for one, tokens in ((mine, first), (mine, second), (longer, third)):
        assert_alone(with_adapter(base, "none", one.composition), one, tokens)
        if kernels == "auto":
            assert sampled(tokens) == sampled(fresh.run([one])[one.id])  # bit for bit
    assert fresh.core.stats().prefix_hits == 0


@pytest.mark.slow
@pytest.mark.parametrize("kernels", KERNELS)
def test_another_version_under_the_same_name_and_number_never_sees_the_others_pages(
    tmp_path: Path, kernels: str
) -> None:
    base = make_base(tmp_path / "base", "llama")
    old, new = (make_adapter(base, tmp_path / str(i), seed=i) for i in range(2))
    assert (old.name, old.number) == (new.name, new.number)
    assert old.digest != new.digest
    tokens = prompt(50, seed=1)
    requests = {
        "old": request("old", tokens, old),
        "base": request("base", tokens),
        "half": composed("half", tokens, (old, 0.5)),
        "both": composed("both", tokens, (old, 1.0), (new, 1.0)),
        "turned": composed("turned", tokens, (new, 1.0), (old, 1.0)),
        "new": request("new", tokens, new),
    }
    models = {name: with_adapter(base, "none", one.composition) for name, one in requests.items()}
    engine = Engine.on(base, kernels=kernels)
    for cached in (0, 48):  # at first nobody finds anything of the others', then everybody their own
        for name, one in requests.items():
            answer = engine.run([one])[name]
            assert answer[0].cached_tokens == cached
            assert_alone(models[name], one, answer)


@pytest.mark.slow
@pytest.mark.parametrize("kernels", KERNELS)
def test_an_alias_that_moves_under_way_leaves_running_requests_on_their_version(tmp_path: Path, kernels: str) -> None:
    base = make_base(tmp_path / "base", "llama")
    old, new = (make_adapter(base, tmp_path / str(i), seed=i) for i in range(2))
    tokens = prompt(40, seed=1)
    before, after = request("before", tokens, old, max_tokens=20), request("after", tokens, new, max_tokens=20)
    engine = Engine.on(base, kernels=kernels)
    engine.core.handle(before)
    while not engine.answers().get("before"):
        engine.core.step()
    served = engine.more([after, msgspec.structs.replace(before, id="again")])
    for one, name in ((before, "before"), (after, "after"), (before, "again")):
        assert_alone(with_adapter(base, "none", one.composition), one, served[name])
    assert [served[name][0].cached_tokens for name in ("before", "after", "again")] == [0, 0, 32]


# -- the real base ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_real_base_in_four_bits_equals_peft_alone(base_folder: Path, tmp_path: Path) -> None:
    kinds = {name: VARIETY[name] for name in ("r4", "r16", "r64", "rslora", "patterns", "missing")}
    requests = [request("base", prompt(40, seed=1), max_tokens=6)]
    for index, (name, settings) in enumerate(kinds.items()):
        adapter = make_adapter(base_folder, tmp_path / name, seed=index, size=0.02, **settings)
        requests.append(request(name, prompt(20 + index, seed=index), adapter, max_tokens=6))
    check(base_folder, "nf4", requests)
    engine = Engine.on(base_folder, quant="nf4")
    assert_same(engine.run(requests[:1])["base"], engine.run(requests)["base"])
