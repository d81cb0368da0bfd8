"""Layers that were taken apart give transformers' and PEFT's own loss and gradients; what is not
known is left to them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.plugins.training.objectives.test_loss import gradients, make_batch, reference
from tunery.plugins.training.fused import padding_free
from tunery.plugins.training.fused.layer import fuse_layer
from tunery.plugins.training.objectives.loss import row_losses

SIZES = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip


def make(kind: str, *, seed: int = 3, **lora: Any) -> Any:
    """A random model of a kind with a random adapter."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES), attn_implementation="sdpa")
    for name, parameter in base.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    defaults: dict[str, Any] = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "init_lora_weights": False}
    return get_peft_model(base, LoraConfig(**(defaults | lora)))


def taken_apart(model: Any) -> bool:
    return taken_apart_base(model.get_base_model())


def taken_apart_base(model: Any) -> bool:
    return all(fuse_layer(layer) is not None for layer in model.get_decoder().layers)


def check(model: Any) -> None:
    """Loss and gradients as row by row through the model itself."""
    batch = make_batch()
    expected, losses = reference(model, batch), row_losses(model, batch)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(gradients(model, losses), gradients(model, expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * max(1.0, float(other.abs().max())))


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_known_layers_are_taken_apart_and_equal(kind: str) -> None:
    lora: dict[str, Any] = {"target_modules": ["q_proj", "down_proj"]} if kind == "mistral" else {}
    model = make(kind, **lora)
    if kind == "mistral":
        model.config.sliding_window = None
    assert taken_apart(model)
    check(model)


@pytest.mark.parametrize(("kind", "lora"), [("qwen3", {}), ("llama", {"use_dora": True})])
def test_unknown_layers_are_left_to_transformers(kind: str, lora: dict[str, Any]) -> None:
    model = make(kind, **lora)
    assert not taken_apart(model)
    check(model)


def test_what_is_hooked_or_trained_is_left_to_transformers() -> None:
    model = make("llama")
    layer = model.get_base_model().get_decoder().layers[0]
    layer.mlp.up_proj.register_forward_hook(lambda *_: None)
    assert fuse_layer(layer) is None
    check(model)
    layer = model.get_base_model().get_decoder().layers[1]
    layer.input_layernorm.weight.requires_grad_()
    assert fuse_layer(layer) is None


def test_what_is_computed_again_is_left_to_transformers() -> None:
    layer = make("llama").get_base_model().get_decoder().layers[0]
    layer.gradient_checkpointing = True
    assert fuse_layer(layer) is None


def test_without_its_adapter_the_base_answers() -> None:
    model = make("llama")
    batch = make_batch()
    with torch.no_grad(), model.disable_adapter():
        assert taken_apart(model)
        torch.testing.assert_close(row_losses(model, batch), reference(model, batch), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_wide_weights_are_trained_in_bfloat16() -> None:
    def made(seed: int) -> tuple[Any, Any]:
        model = make("llama", seed=seed).get_base_model().requires_grad_(requires_grad=True)
        assert not taken_apart_base(model)
        return model, model

    close_in_bfloat16(made)


@pytest.mark.slow
def test_in_bfloat16_gradients_are_as_close_to_exact_as_transformers_own() -> None:
    def made(seed: int) -> tuple[Any, Any]:
        narrow = make("llama", seed=seed).bfloat16()
        for parameter in narrow.parameters():
            parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
        return make("llama", seed=seed), narrow

    close_in_bfloat16(made)


def close_in_bfloat16(made: Callable[[int], tuple[Any, Any]]) -> None:
    """Over several models, the second of each pair in bfloat16 is off the first's exact gradients by no more than
    transformers is.
    """
    ours, theirs = 0.0, 0.0
    for seed in range(6):
        wide, narrow = made(seed)
        exact = gradients(wide, reference(wide, make_batch()))
        with torch.autocast("cpu", torch.bfloat16):
            ours += error(gradients(narrow, row_losses(narrow, make_batch())), exact)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(padding_free, "ARCHITECTURES", set())
                theirs += error(gradients(narrow, row_losses(narrow, make_batch())), exact)
    assert ours < 1.2 * theirs


def error(given: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    return math.sqrt(sum(float((one.float() - other).square().sum()) for one, other in zip(given, exact, strict=True)))
