"""A configuration means for each module what it means in PEFT: its rank, its scale, and whether it is a target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunery.registry.errors import ArtifactRefused
from tunery.registry.peft.config import AdapterConfig, decode_config, parse_config


def test_what_is_left_out_is_pefts_default() -> None:
    def scale_of(module: str, fields: dict[str, Any]) -> float:
        return AdapterConfig.from_fields(fields).scale_of(module)

    assert AdapterConfig.from_fields({}).rank_of("q_proj") == 8
    assert scale_of("q_proj", {}) == 1.0
    assert scale_of("q_proj", {"r": 32}) == 0.25  # not 1: alpha is 8, whatever the rank
    assert scale_of("q_proj", {"r": 64, "use_rslora": True}) == 1.0
    assert scale_of("q_proj", {"r": None, "rank_pattern": None, "alpha_pattern": None}) == 1.0


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["layers.1.self_attn.q_proj"]},
        {"target_modules": ["model.layers.0.self_attn.q_proj"], "layers_to_transform": [1]},
        {"target_modules": "all-linear"},
        {"target_modules": r".*layers\.1.*(q|v)_proj"},
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["layers.0.self_attn.v_proj"]},
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*0.*v_proj"},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": 1},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [0], "layers_pattern": "layers"},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [0], "layers_pattern": ["h", "blocks"]},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": []},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["v_proj"]},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
def test_targets_are_the_modules_that_peft_takes(tiny_base_folder: Path, config: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer
    from torch.nn import Embedding, Linear
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_base_folder)
    modules = [name for name, module in model.named_modules() if isinstance(module, Linear | Embedding)]
    layers_known = config.get("layers_pattern") != ["h", "blocks"]  # of these PEFT finds none, and says so
    if layers_known:
        tuned = get_peft_model(model, LoraConfig(**config))
        prefix = "base_model.model."
        theirs = {n.removeprefix(prefix) for n, module in tuned.named_modules() if isinstance(module, LoraLayer)}
    else:
        theirs = set()
    assert {name for name in modules if AdapterConfig.from_fields(config).is_target(name)} == theirs


def test_a_list_of_tokens_without_a_module_is_the_input_embeddings() -> None:
    config = AdapterConfig.from_fields({"trainable_token_indices": [3, 1]})
    assert config.token_ids_of("model.embed_tokens") == (3, 1)
    assert config.token_ids_of("lm_head") is None
    assert config.token_ids_of("transformer.wte", embedding="transformer.wte") == (3, 1)
    assert config.token_ids_of("model.embed_tokens", embedding="transformer.wte") is None


def test_tokens_of_a_named_module_are_that_modules() -> None:
    config = AdapterConfig.from_fields({"trainable_token_indices": {"lm_head": [2], "": [5]}})
    assert config.token_ids_of("lm_head") == (2,)
    assert config.token_ids_of("model.embed_tokens", embedding="model.embed_tokens") is None


@pytest.mark.parametrize(
    ("fields", "whole"),
    [
        ({}, False),
        ({"bias": "none", "modules_to_save": [], "trainable_token_indices": None}, False),
        ({"bias": "all"}, True),
        ({"modules_to_save": ["lm_head"]}, True),
        ({"trainable_token_indices": [1]}, True),
    ],
)
def test_whole_weights_are_whatever_is_not_a_pair(fields: dict[str, Any], whole: bool) -> None:
    assert AdapterConfig.from_fields(fields).has_whole_weights is whole


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff{}", b'{"r": "\\ud800"}', b"[" * 100_000])
def test_bytes_that_are_not_a_json_object_are_refused(data: bytes) -> None:
    with pytest.raises(ArtifactRefused, match=r"adapter_config\.json is not") as caught:
        decode_config(data)
    assert caught.value.code == "artifact_incomplete"


def test_values_are_checked_before_they_become_a_record() -> None:
    with pytest.raises(ArtifactRefused, match="r=0, which is not a rank"):
        parse_config({"peft_type": "LORA", "r": 0})
    assert parse_config({"peft_type": "LORA", "target_modules": ["q_proj"]}).target_modules == ("q_proj",)
