"""PEFT's layout: every key has one meaning, written keys are read back, and two tensors never share a place."""

from __future__ import annotations

import pytest

from tunery.registry.errors import ArtifactRefused
from tunery.registry.peft.layout import PairKeys, pair_keys, parameter_key, read_layout

Q, EMBEDDING = "model.layers.0.self_attn.q_proj", "model.embed_tokens"


def key(name: str) -> str:
    return f"base_model.model.{name}"


def test_every_kind_of_tensor_is_recognised() -> None:
    parts = ["lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector"]
    rows, norm, bias = f"{EMBEDDING}.token_adapter.trainable_tokens_delta", "model.norm.weight", f"{Q}.base_layer.bias"
    layout = read_layout(map(key, [*(f"{Q}.{part}" for part in parts), rows, norm, bias]))
    a, b, b_bias, magnitude = (key(f"{Q}.{part}") for part in parts)
    assert layout.pairs == {Q: PairKeys(embedding=False, a=a, b=b, bias=b_bias, magnitude=magnitude)}
    assert layout.token_rows == {EMBEDDING: key(rows)}
    assert layout.parameters == {norm: key(norm), f"{Q}.bias": key(bias)}


@pytest.mark.parametrize("embedding", [False, True])
def test_keys_that_are_written_are_read_back(embedding: bool) -> None:
    a, b = pair_keys(Q, embedding=embedding)
    assert read_layout([b, a]).pairs == {Q: PairKeys(embedding=embedding, a=a, b=b)}


@pytest.mark.parametrize("adapted", [False, True])
def test_parameters_that_are_written_are_read_back(adapted: bool) -> None:
    written = parameter_key(f"{Q}.bias", adapted=adapted)
    assert read_layout([written]).parameters == {f"{Q}.bias": written}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (f"{Q}.lora_A.weight", f"{Q}.lora_A.default.weight"),
        (f"{Q}.lora_A.weight", f"{Q}.lora_embedding_A"),
        (f"{Q}.lora_embedding_B", f"{Q}.lora_A.weight"),
        (f"{Q}.bias", f"{Q}.base_layer.bias"),
        (f"{Q}.lora_magnitude_vector", f"{Q}.lora_magnitude_vector.weight"),
    ],
)
def test_two_tensors_for_one_place_are_refused(first: str, second: str) -> None:
    with pytest.raises(ArtifactRefused, match="two tensors for one place") as caught:
        read_layout([key(first), key(second)])
    assert caught.value.code == "artifact_incomplete"


@pytest.mark.parametrize("name", [f"{Q}.lora_A.bias", f"{EMBEDDING}.lora_embedding_B.bias", f"{Q}.lora_C.weight"])
def test_what_peft_does_not_write_is_a_parameter_that_no_base_has(name: str) -> None:
    assert read_layout([key(name)]).parameters == {name: key(name)}
