"""Whatever PEFT itself saves of a plain LoRA, in every variety that PEFT has, is accepted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunery.registry import Base, NewVersion
from tunery.registry.errors import ArtifactRefused
from tunery.registry.registry import Registry

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def save(base_folder: Path, folder: Path, **settings: Any) -> Path:
    """A LoRA that PEFT put on the tiny base and saved."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base_folder)
    config = LoraConfig(**{"r": 4, "target_modules": LINEAR, "task_type": "CAUSAL_LM", **settings})
    get_peft_model(model, config).save_pretrained(str(folder))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target_modules": "all-linear"},
        {"target_modules": r".*layers\.1\..*(q|v)_proj"},
        {"target_modules": ["model.layers.0.self_attn.q_proj", "down_proj"]},
        {"target_modules": ["q_proj"], "layers_to_transform": [1]},
        {"use_dora": True},
        {"use_rslora": True, "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6}, "alpha_pattern": {"q_proj": 3}},
        {"rank_pattern": {r"^model\.layers\.(0|1)\.mlp\.down_proj": 3}},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"lora_bias": True},
        {"target_modules": [*LINEAR, "embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "lm_head", "embed_tokens"], "ensure_weight_tying": True},
        {"target_modules": ["q_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]},
        {"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["norm", "post_attention_layernorm", "mlp"], "target_modules": ["q_proj"]},
        {"init_lora_weights": "gaussian"},
        {"task_type": None},
        {"trainable_token_indices": [3, 300]},
        {"trainable_token_indices": {"embed_tokens": [5], "lm_head": [6, 7]}},
        {"trainable_token_indices": {"lm_head": [6, 7]}, "use_dora": True},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_peft_saves_comes_in(
    registry: Registry, tiny_base: Base, tiny_base_folder: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    folder = save(tiny_base_folder, tmp_path / "adapter", **settings)
    version = registry.publish(
        NewVersion(adapter="a/b", folder=folder, base=tiny_base, method="lora", manifest={}, metrics={}, actor="t")
    )
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {entry.path for entry in version.files}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_initialisation_that_changes_the_base_does_not(
    registry: Registry, tiny_base: Base, tiny_base_folder: Path, tmp_path: Path
) -> None:
    folder = save(tiny_base_folder, tmp_path / "adapter", init_lora_weights="pissa")
    with pytest.raises(ArtifactRefused, match="changed the base's own weights"):
        registry.publish(
            NewVersion(adapter="a/b", folder=folder, base=tiny_base, method="lora", manifest={}, metrics={}, actor="t")
        )
