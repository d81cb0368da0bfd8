"""Every causal decoder of the installed transformers is served exactly, or refused by its config.json alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.gateway.engine.models.random_bases import (
    PROMPTS,
    Scores,
    expected,
    make_any_adapter,
    make_any_base,
    plain,
    scores_of,
    train,
)
from tests.gateway.engine.peft_oracle import TOLERANCE, Engine
from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.models.torch.model import load_plain
from tunery.plugins.bases.architectures import EXACT, REFUSED, refuse_architecture
from tunery.plugins.bases.folder import fill
from tunery.plugins.trainers.full import unserved
from tunery.plugins.training.fused.padding_free import ARCHITECTURES
from tunery.registry import Base
from tunery.registry.errors import ArtifactRefused
from tunery.registry.peft.artifact import check_artifact

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    ("llama", {"rope_parameters": YARN, "attention_bias": True, "mlp_bias": True}),
    ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64}),
    ("phimoe", {"sliding_window": None}),
    ("llama4_text", {"attention_chunk_size": 64, "floor_scale": 16, "attn_temperature_tuning": True}),
    ("gemma2", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0}),
    ("gpt_neox", {"use_parallel_residual": False, "attention_bias": False}),
    ("gpt_bigcode", {"multi_query": False}),
    ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True, "use_qkv_bias": True}),
    ("cohere", {"use_qk_norm": True}),
    ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 32}),
    ("gemma4_text", {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}),
    ("mixtral", {"sliding_window": None}),
]


def check(scores: Scores, wanted: Scores, what: str) -> None:
    for number, (ours, theirs) in enumerate(zip(scores, wanted, strict=True)):
        distance = float((ours - theirs).abs().max())
        assert distance <= TOLERANCE, (what, number, distance)


def compare(folder: Path, base: Path, *, trained: bool) -> None:
    """Alone, together, on an adapter, from the cache and without one; and what one step of training gives."""
    bare = plain(base)
    source = make_any_adapter(base, folder / "adapter", bare)
    engine = Engine.on(base, kernels="torch", token_budget=64, kv_tokens=4096, max_batch=16)
    assert (
        unserved(bare) is not None or not engine.core.model.shape.fixed
    )  # what full fine-tuning would change and nobody serve
    prompts = tuple(one[: engine.core.model.context_length - 1] for one in PROMPTS)
    wanted = expected(bare, prompts) + expected(plain(base, folder / "adapter"), prompts)
    adapters = [None] * len(prompts) + [source] * len(prompts)
    alone = [scores_of(engine, [one], [adapter])[0] for one, adapter in zip(prompts * 2, adapters, strict=True)]
    check(alone, wanted, "alone")
    check(scores_of(engine, prompts * 2, adapters), wanted, "together, cached")
    engine = Engine.on(base, kernels="torch", token_budget=64, kv_tokens=4096, max_batch=16, prefix_cache=False)
    check(scores_of(engine, prompts * 2, adapters), wanted, "together")
    if trained:
        source, model = train(base, folder / "trained")
        kept = Base(name="tiny", digest="0", source="", path=str(base), parameters=0, added_at=0.0)
        check_artifact(folder / "trained", base=kept, trust_base=True)
        check(scores_of(engine, prompts, [source] * len(prompts)), expected(model, prompts), "trained")


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(EXACT))
def test_it_is_served_and_trained_exactly(tmp_path: Path, kind: str) -> None:
    compare(tmp_path, make_any_base(tmp_path / "base", kind), trained=True)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "settings"), VARIANTS, ids=lambda value: str(value)[:40])
def test_a_setting_of_its_own_changes_nothing(tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    compare(tmp_path, make_any_base(tmp_path / "base", kind, **settings), trained=kind in ARCHITECTURES)


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["nf4", "int8"])
@pytest.mark.parametrize("kind", ["gpt2", "gpt_oss", "mixtral", "phi3"])
def test_it_is_served_exactly_when_quantized(tmp_path: Path, kind: str, quant: str) -> None:
    base = make_any_base(tmp_path / "base", kind)
    settings: dict[str, Any] = {"quant": quant, "dtype": "float32", "kernels": "torch"}
    model = load_plain(EngineConfig(base_folder=str(base), base_name="tiny", base_digest="0", **settings))
    engine = Engine.on(base, **settings)
    check(scores_of(engine, PROMPTS, [None] * len(PROMPTS)), expected(model, PROMPTS), quant)


@pytest.mark.soak
@pytest.mark.parametrize("quant", ["nf4", "int8"])
@pytest.mark.parametrize("kind", sorted(EXACT))
def test_every_architecture_is_served_exactly_when_quantized(tmp_path: Path, kind: str, quant: str) -> None:
    base = make_any_base(tmp_path / "base", kind)
    settings: dict[str, Any] = {"quant": quant, "dtype": "float32", "kernels": "torch"}
    model = load_plain(EngineConfig(base_folder=str(base), base_name="tiny", base_digest="0", **settings))
    engine = Engine.on(base, **settings)
    prompts = tuple(one[: engine.core.model.context_length - 1] for one in PROMPTS)
    check(scores_of(engine, prompts, [None] * len(prompts)), expected(model, prompts), quant)


def test_every_causal_decoder_is_exact_or_refused_with_a_reason() -> None:
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert known == EXACT | set(REFUSED)
    assert not EXACT & set(REFUSED)


@pytest.mark.parametrize("kind", [*sorted(REFUSED), "brandnew"])
def test_what_is_not_exact_is_refused_by_its_configuration_alone(tmp_path: Path, kind: str) -> None:
    folder, taken = tmp_path / "base", tmp_path / "taken"
    folder.mkdir()
    taken.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ArtifactRefused, match=f"the architecture '{kind}', which is not supported: ") as caught:
        fill(str(folder), taken)
    assert caught.value.code == "unsupported_base"
    assert "\n" not in caught.value.message
    assert not list(taken.iterdir())


def test_a_model_without_a_head_for_the_next_token_is_refused() -> None:
    refuse_architecture({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "it")
    refuse_architecture({"model_type": "llama"}, "it")
    with pytest.raises(ArtifactRefused, match="LlamaForSequenceClassification has no head"):
        refuse_architecture({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, "it")


def test_half_a_model_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = make_any_base(tmp_path / "base", "phi3")
    tensors = load_file(base / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArtifactRefused, match=r"has no lm_head\.weight"):
        Engine.on(base, kernels="torch")


def test_attention_sees_no_further_than_it_is_exact(tmp_path: Path) -> None:
    settings = {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64}
    engine = Engine.on(make_any_base(tmp_path / "base", "phi3", **settings), kernels="torch")
    assert engine.core.model.context_length == 64
    assert torch.isfinite(scores_of(engine, [PROMPTS[0]], [None])[0]).all()


@pytest.mark.parametrize("kind", ["gpt_oss", "mixtral", "qwen3_moe"])
def test_experts_and_routers_give_a_row_the_same_bits_whatever_runs_beside_it(tmp_path: Path, kind: str) -> None:
    engine = Engine.on(make_any_base(tmp_path / "base", kind), kernels="torch")
    layers = dict(engine.core.model._module.named_modules())  # type: ignore[attr-defined]
    experts = next(module for module in layers.values() if hasattr(module, "has_gate"))
    router = next(module for name, module in layers.items() if name.endswith((".gate", ".router")))
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(96, 64, generator=generator)
    with torch.inference_mode():
        _, weights, chosen = router(rows)
        whole = experts(rows, chosen, weights)
        for part in (slice(0, 32), slice(32, 96), slice(64, 96)):
            _, own_weights, own_chosen = router(rows[part])
            assert torch.equal(own_weights, weights[part])
            assert torch.equal(own_chosen, chosen[part])
            assert torch.equal(experts(rows[part], own_chosen, own_weights), whole[part])
