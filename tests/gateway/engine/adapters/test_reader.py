"""Reading PEFT files: what is there is applied, and what would be left out or guessed is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.gateway.engine.peft_oracle import describe
from tunery.gateway.engine.adapters.adapter import AdapterShape, LoadedAdapter
from tunery.gateway.engine.adapters.interface import check_composition
from tunery.gateway.engine.adapters.reader import read_adapter, read_config
from tunery.gateway.engine.composition import AdapterSource
from tunery.registry.errors import InvalidInput, TuneryError

SHAPE = AdapterShape(
    {
        "model.embed_tokens": {"weight": (20, 6)},
        "model.layers.0.q_proj": {"weight": (4, 6), "bias": (4,)},
        "model.layers.0.norm": {"weight": (6,)},
        "lm_head": {"weight": (20, 6)},
    },
    "model.embed_tokens",
    "lm_head",
    True,
)
Q = "base_model.model.model.layers.0.q_proj"
EMBEDDING = "base_model.model.model.embed_tokens"
PAIR = {f"{Q}.lora_A.weight": torch.ones(2, 6), f"{Q}.lora_B.weight": torch.ones(4, 2)}
DEFAULT = object()
"""Of a setting that is left out of the file."""


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[..., AdapterSource]:
    """Write an adapter's two files."""

    def write(tensors: dict[str, torch.Tensor] | None = None, **config: Any) -> AdapterSource:
        save_file(PAIR if tensors is None else tensors, tmp_path / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4} | config
        config = {name: value for name, value in config.items() if value is not DEFAULT}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        return describe(tmp_path)

    return write


def read(source: AdapterSource) -> LoadedAdapter:
    return read_adapter(source, SHAPE, dtype=torch.float32, device=torch.device("cpu"))


def refusal(source: AdapterSource) -> TuneryError:
    with pytest.raises(TuneryError) as caught:
        read(source)
    assert source.name in caught.value.message
    return caught.value


@pytest.mark.parametrize("name", ["use_qalora", "kasa_config", "layer_replication", "use_another_lora"])
def test_settings_that_are_not_applied_are_refused_by_name(adapter: Callable[..., AdapterSource], name: str) -> None:
    error = refusal(adapter(**{name: True}))
    assert error.code == "unsupported_adapter"
    assert name in error.message


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga"])
def test_pairs_that_mean_something_only_on_a_rewritten_base_are_refused(
    adapter: Callable[..., AdapterSource], start: str
) -> None:
    assert start in refusal(adapter(init_lora_weights=start)).message
    assert read_config(adapter(init_lora_weights="gaussian")).init_lora_weights == "gaussian"


@pytest.mark.parametrize("kind", ["LOHA", "IA3", None, "PROMPT_TUNING"])
def test_other_kinds_of_adapters_are_refused(adapter: Callable[..., AdapterSource], kind: str | None) -> None:
    error = refusal(adapter(peft_type=kind))
    assert (error.code, repr(kind) in error.message) == ("unsupported_adapter", True)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 2.0),
        ({"lora_alpha": DEFAULT}, 4.0),
        ({"use_rslora": True}, 4 / 2**0.5),
        ({"alpha_pattern": {"q_proj": 6}}, 3.0),
        ({"alpha_pattern": {"proj": 6}}, 2.0),
        ({"alpha_pattern": {r"layers\.0\.q_proj": 8, "q_proj": 6}}, 4.0),
        ({"rank_pattern": {"q_proj": 2}, "r": 64}, 2.0),
    ],
)
def test_the_scale_is_alpha_over_rank_by_pefts_patterns(
    adapter: Callable[..., AdapterSource], config: dict[str, Any], scale: float
) -> None:
    assert read(adapter(**config)).low_rank["model.layers.0.q_proj"].scale == pytest.approx(scale)


@pytest.mark.parametrize(
    ("tensors", "config", "code"),
    [
        ({f"{Q}.lora_A.weight": torch.ones(2, 6)}, {}, "artifact_truncated"),
        (PAIR | {f"{Q}.lora_A.weight": torch.ones(3, 6)}, {}, "wrong_base"),
        (PAIR | {f"{Q}.lora_A.weight": torch.ones(2, 7)}, {}, "wrong_base"),
        (PAIR | {f"{Q}.lora_B.weight": torch.full((4, 2), torch.nan)}, {}, "artifact_nonfinite"),
        (PAIR | {f"{Q}.lora_B.weight": torch.tensor([[torch.inf, 0.0]] * 4)}, {}, "artifact_nonfinite"),
        ({key.replace("q_proj", "z_proj"): value for key, value in PAIR.items()}, {}, "wrong_base"),
        (PAIR | {f"{Q}.something": torch.ones(2)}, {}, "wrong_base"),
        (PAIR | {"base_model.model.model.layers.0.norm.weight": torch.ones(5)}, {}, "wrong_base"),
        (PAIR, {"use_dora": True}, "artifact_truncated"),
        (
            {
                f"{EMBEDDING}.lora_embedding_A": torch.ones(2, 20),
                f"{EMBEDDING}.lora_embedding_B": torch.ones(6, 2),
                f"{EMBEDDING}.lora_magnitude_vector.weight": torch.ones(1, 6),
            },
            {"use_dora": True},
            "unsupported_adapter",
        ),
        (PAIR, {"trainable_token_indices": [1, 2]}, "artifact_truncated"),
        (
            {f"{EMBEDDING}.token_adapter.trainable_tokens_delta": torch.ones(2, 6)},
            {"trainable_token_indices": [1, 20]},
            "wrong_base",
        ),
        (
            {f"{EMBEDDING}.token_adapter.trainable_tokens_delta": torch.ones(3, 6)},
            {"trainable_token_indices": [1, 2]},
            "wrong_base",
        ),
        ({f"{EMBEDDING}.token_adapter.trainable_tokens_delta": torch.ones(2, 6)}, {}, "wrong_base"),
        (
            {f"{EMBEDDING}.lora_A.weight": torch.ones(2, 6), f"{EMBEDDING}.lora_B.weight": torch.ones(20, 2)},
            {},
            "wrong_base",
        ),
        ({f"{Q}.lora_embedding_A": torch.ones(2, 4), f"{Q}.lora_embedding_B": torch.ones(6, 2)}, {}, "wrong_base"),
        (PAIR | {f"{Q}.lora_A.default.weight": torch.ones(2, 6)}, {}, "artifact_incomplete"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    adapter: Callable[..., AdapterSource], tensors: dict[str, torch.Tensor], config: dict[str, Any], code: str
) -> None:
    assert refusal(adapter(tensors, **config)).code == code


def test_files_that_cannot_be_read_are_named(adapter: Callable[..., AdapterSource], tmp_path: Path) -> None:
    source = adapter()
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    assert refusal(source).code == "storage_failed"
    (tmp_path / "adapter_config.json").write_text("{")
    assert refusal(source).code == "storage_failed"
    assert refusal(msgspec.structs.replace(source, files={})).code == "artifact_truncated"


def test_a_head_reads_what_was_trained_of_an_embedding_it_shares_only_when_tied(
    adapter: Callable[..., AdapterSource],
) -> None:
    whole = {f"{EMBEDDING}.weight": torch.ones(20, 6)}
    pair = {f"{EMBEDDING}.lora_embedding_A": torch.rand(2, 20), f"{EMBEDDING}.lora_embedding_B": torch.rand(6, 2)}
    for tied in (False, True):
        loaded = read(adapter(whole, ensure_weight_tying=tied))
        assert set(loaded.replaced) == {"model.embed_tokens", *(["lm_head"] if tied else [])}
        assert loaded.bytes == 20 * 6 * 4  # once, however many read it
        assert set(read(adapter(pair, ensure_weight_tying=tied)).low_rank) == set(loaded.replaced)
    head = read(adapter(pair, ensure_weight_tying=True)).low_rank["lm_head"]
    a, b = (pair[f"{EMBEDDING}.lora_embedding_{one}"] for one in "AB")
    torch.testing.assert_close(head.b @ head.a, (b @ a).T)
    rows = {f"{EMBEDDING}.token_adapter.trainable_tokens_delta": torch.ones(2, 6)}
    assert set(read(adapter(rows, trainable_token_indices=[3, 1])).rows) == {"model.embed_tokens", "lm_head"}


def test_bytes_are_those_of_the_true_rank(adapter: Callable[..., AdapterSource]) -> None:
    assert read(adapter(r=64)).bytes == (2 * 6 + 4 * 2) * 4


def test_only_plain_pairs_can_be_composed(adapter: Callable[..., AdapterSource]) -> None:
    check_composition([read(adapter()), read(adapter())])
    others = [
        PAIR | {"base_model.model.model.layers.0.norm.weight": torch.ones(6)},
        PAIR | {f"{Q}.lora_B.bias": torch.ones(4)},
        PAIR | {f"{Q}.lora_magnitude_vector.weight": torch.ones(4)},
    ]
    for tensors in others:
        with pytest.raises(InvalidInput, match="cannot be composed") as caught:
            check_composition([read(adapter()), read(adapter(tensors))])
        assert caught.value.code == "unsupported_composition"


def test_a_copy_on_another_device_is_the_same(adapter: Callable[..., AdapterSource]) -> None:
    tensors = PAIR | {
        f"{Q}.lora_magnitude_vector.weight": torch.rand(4),
        f"{EMBEDDING}.weight": torch.rand(20, 6),
        f"{Q}.bias": torch.rand(4),
    }
    loaded = read(adapter(tensors, ensure_weight_tying=True))
    copy = loaded.to(torch.device("cpu"))
    assert copy.bytes == loaded.bytes
    assert copy.low_rank.keys() == loaded.low_rank.keys()
    assert copy.replaced["lm_head"]["weight"] is copy.replaced["model.embed_tokens"]["weight"]
    assert torch.equal(copy.low_rank["model.layers.0.q_proj"].b, loaded.low_rank["model.layers.0.q_proj"].b)


def test_what_is_written_is_what_is_read(adapter: Callable[..., AdapterSource]) -> None:
    source = adapter(PAIR | {f"{Q}.base_layer.bias": torch.arange(4.0)}, bias="all")
    loaded = read(source)
    saved = load_file(source.files["adapter_model.safetensors"])
    assert torch.equal(loaded.low_rank["model.layers.0.q_proj"].a, saved[f"{Q}.lora_A.weight"])
    assert torch.equal(loaded.replaced["model.layers.0.q_proj"]["bias"], torch.arange(4.0))
