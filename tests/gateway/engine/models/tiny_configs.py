"""A random small configuration of every causal decoder of transformers that is served, made from
its own configuration class.

Sizes are given by their usual names to whichever of them a class knows. All kinds of layers that a class has by default
occur, windows are shorter than the prompts, and what scales with a model's length does so within them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

__all__ = ["tiny_config"]

VOCABULARY, LONGEST, WINDOW = 320, 256, 12
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": LONGEST,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Mixtures of experts.
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_num_experts": 4,
    "moe_k": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    # Latent attention.
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    # Older names that are no aliases.
    "ffn_dim": 96,
    "dff": 96,
    "word_embed_proj_dim": 64,
    "ffn_hidden_size": 96,
}
_ALL_HEADS = {"num_key_value_heads": 4}
_WINDOW = {"sliding_window": WINDOW}
_SOME_WINDOWS = {**_WINDOW, "use_sliding_window": True, "max_window_layers": 1}
_SHARED = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 16,
}
_BOTH = {**_WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
PARTICULAR: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3", "youtu"), _ALL_HEADS),
    **dict.fromkeys(("ministral", "mistral", "mixtral", "phi3", "starcoder2"), _WINDOW),
    **dict.fromkeys(("qwen2", "qwen3", "qwen2_moe", "qwen3_moe"), _SOME_WINDOWS),
    **dict.fromkeys(("dots1", "laguna", "mellum"), _BOTH),
    "ministral3": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "llama_4_scaling_beta": 0.1,
        }
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "gemma3n_text": {
        **_SHARED,
        "laurel_rank": 8,
        "intermediate_size": 96,
        "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0],
    },
    "gemma4_text": {**_SHARED, "global_head_dim": 32},
    # Its context ends with its window.
    "phimoe": {"sliding_window": 64},
    "smollm3": {"no_rope_layer_interval": 2},
}
"""Settings that a class needs besides, or has only in its large default."""


def tiny_config(kind: str, **settings: Any) -> PretrainedConfig:
    """A configuration of model type `kind`, with `settings` on top."""
    cls = CONFIG_MAPPING[kind]
    large = cls()
    known = {field.name for field in dataclasses.fields(cls)} | set(large.to_dict())
    aliases = getattr(cls, "attribute_map", {})
    sizes = {aliases.get(name, name): size for name, size in SIZES.items() if aliases.get(name, name) in known}
    return cls(**(sizes | _layers(large) | PARTICULAR.get(kind, {}) | settings))


def _layers(large: Any) -> dict[str, Any]:
    """As many layers as there are kinds of them, windows in those that have some."""
    layers: dict[str, Any] = {}
    for name in ("layer_types", "mlp_layer_types"):
        kinds = list(dict.fromkeys(getattr(large, name, None) or ()))
        if kinds:
            layers[name] = [kinds[at % len(kinds)] for at in range(2)]
    if getattr(large, "sliding_window", None):
        layers["sliding_window"] = WINDOW
    return layers
