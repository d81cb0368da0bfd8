"""What a config.json says to the decoder is what transformers makes of it; anything else is left to transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, Qwen2Config, Qwen2ForCausalLM, Qwen3Config

from tests.gateway.engine.peft_oracle import FAMILIES
from tunery.gateway.engine.models.native.architecture import Architecture, read_architecture

LLAMA = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
SCALED = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


def read(folder: Path, config: dict[str, Any]) -> Architecture | None:
    (folder / "config.json").write_text(json.dumps(config))
    return read_architecture(folder)


def known(folder: Path, config: dict[str, Any]) -> Architecture:
    architecture = read(folder, config)
    assert architecture is not None
    return architecture


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_what_transformers_writes_is_read(tmp_path: Path, family: str) -> None:
    config = FAMILIES[family]()
    config.save_pretrained(tmp_path)
    architecture = read_architecture(tmp_path)
    assert architecture is not None
    assert (architecture.heads, architecture.kv_heads, architecture.size) == (4, 2, 16)
    assert (architecture.hidden, architecture.intermediate, architecture.layers) == (64, 96, 2)
    assert (architecture.vocab_size, architecture.longest) == (320, 256)
    assert architecture.epsilon == config.rms_norm_eps
    assert architecture.tied == config.tie_word_embeddings
    assert architecture.qk_norm == (family == "qwen3")
    assert architecture.windows == ((12, 12) if family == "mistral" else (0, 0))


@pytest.mark.slow
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("kind", ["default", *SCALED])
def test_positions_turn_as_fast_as_in_transformers(tmp_path: Path, kind: str, theta: float) -> None:
    rope = {"rope_theta": theta, **SCALED.get(kind, {"rope_type": "default"})}
    config = LlamaConfig(
        hidden_size=512, num_attention_heads=4, num_hidden_layers=1, vocab_size=8, rope_parameters=rope
    )
    config.save_pretrained(tmp_path)
    architecture = read_architecture(tmp_path)
    assert architecture is not None
    expected = LlamaForCausalLM(config).model.rotary_emb.inv_freq
    assert torch.equal(torch.tensor(architecture.inverse_frequencies), expected)


@pytest.mark.parametrize("kind", list(SCALED))
def test_the_names_of_older_files_mean_the_same(tmp_path: Path, kind: str) -> None:
    old = LLAMA | {"rope_theta": 5000.0, "rope_scaling": SCALED[kind]}
    new = LLAMA | {"rope_parameters": {"rope_theta": 5000.0, **SCALED[kind]}}
    assert known(tmp_path, old) == known(tmp_path, new)
    older = LLAMA | {"rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 4.0}}
    assert known(tmp_path, older).inverse_frequencies[0] == 0.25


@pytest.mark.parametrize(
    "settings",
    [
        {"use_sliding_window": False, "sliding_window": 12},
        {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 2},
        {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 0},
        {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 28},
    ],
)
@pytest.mark.parametrize("kind", [Qwen2Config, Qwen3Config])
def test_windows_lie_where_transformers_puts_them(tmp_path: Path, kind: type[Any], settings: dict[str, Any]) -> None:
    config = kind(num_hidden_layers=4, **settings)
    written = config.to_dict()
    windows = tuple(12 if one == "sliding_attention" else 0 for one in config.layer_types)
    assert known(tmp_path, written).windows == windows
    del written["layer_types"]  # as older files are
    assert known(tmp_path, written).windows == windows


def test_without_a_window_everything_is_seen(tmp_path: Path) -> None:
    assert known(tmp_path, LLAMA | {"sliding_window": 12}).windows == (
        0,
        0,
        0,
    )  # as transformers' Llama takes no notice
    assert known(tmp_path, MistralConfig(num_hidden_layers=2, sliding_window=None).to_dict()).windows == (0, 0)


def test_what_a_file_leaves_out_is_what_transformers_assumes(tmp_path: Path) -> None:
    for kind in (LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config):
        whole = kind(num_hidden_layers=2)
        bare = {"model_type": whole.model_type}
        bare |= {name: getattr(whole, name) for name in LLAMA if name != "model_type"}
        assert known(tmp_path, bare) == known(tmp_path, whole.to_dict()), kind


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "mixtral"},
        {"hidden_act": "gelu"},
        {"quantization_config": {"quant_method": "gptq"}},
        {"head_dim": 24},
        {"hidden_size": 63, "head_dim": 16},
        {"intermediate_size": 97},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        {"partial_rotary_factor": 0.5},
    ],
    ids=str,
)
def test_what_would_not_be_computed_exactly_is_left_to_transformers(tmp_path: Path, change: dict[str, Any]) -> None:
    assert read(tmp_path, LLAMA) is not None
    assert read(tmp_path, LLAMA | change) is None


def test_a_folder_without_a_configuration_is_none_of_ours(tmp_path: Path) -> None:
    assert read_architecture(tmp_path) is None
    (tmp_path / "config.json").write_text("{")
    assert read_architecture(tmp_path) is None


def test_qwen2s_biases_are_found_by_their_weights() -> None:
    # The decoder takes biases where the checkpoint has them; these are those of the kind that has them without saying
    # so.
    names = [name for name, _ in Qwen2ForCausalLM(FAMILIES["qwen2"]()).named_parameters() if name.endswith("bias")]
    assert names
    assert all(name.split(".")[-2] in {"q_proj", "k_proj", "v_proj"} for name in names)
