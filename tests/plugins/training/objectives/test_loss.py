"""The loss without padding is the loss with it, and so is its gradient; models that are not known go the padded way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from tunery.plugins.training.examples.batches import Batch, Example, collate
from tunery.plugins.training.fused import padding_free
from tunery.plugins.training.fused.packed_layout import pack_sequences
from tunery.plugins.training.objectives import loss
from tunery.plugins.training.objectives.loss import row_losses, row_scores
from tunery.registry import Base

LENGTHS = (5, 17, 3, 9)


def make_batch() -> Batch:
    """Rows of which some begin alike: the last as the second, for 4 tokens, and the others not at all."""
    ids = [[(7 * (number % 3) + step) % 300 for step in range(length)] for number, length in enumerate(LENGTHS)]
    ids[3][:] = [*ids[1][:4], *(200 + step for step in range(LENGTHS[3] - 4))]
    examples = [
        Example(row, [step > min(4, len(row) - 2) for step in range(len(row))], number)
        for number, row in enumerate(ids)
    ]
    return collate(examples, device=torch.device("cpu"))


@pytest.fixture
def model(tiny_base: Base) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_base.path, dtype=torch.float32, attn_implementation="sdpa")
    torch.manual_seed(1)
    made: Any = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    return made


def reference(model: Any, batch: Batch) -> torch.Tensor:
    """Row by row, every logit, nothing padded."""
    sums = []
    for row, length in enumerate(batch.mask.sum(dim=1).tolist()):
        ids, labels = batch.ids[row : row + 1, :length], batch.labels[row, 1:length]
        logits = model(input_ids=ids).logits[0, :-1].float()
        sums.append(functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
    return torch.stack(sums)


def gradients(model: Any, losses: torch.Tensor) -> list[torch.Tensor]:
    weights = torch.arange(1.0, len(losses) + 1)
    return list(torch.autograd.grad((losses * weights).sum(), [p for p in model.parameters() if p.requires_grad]))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens of each row are computed."""
    counts: list[int] = []

    def counting(*given: Any) -> Any:
        layout, computed = pack_sequences(*given)
        counts.extend(computed.sum(dim=1).tolist())
        return layout, computed

    monkeypatch.setattr(loss, "pack_sequences", counting)
    return counts


def test_what_follows_the_last_trained_token_is_not_computed(model: Any, computed: list[int]) -> None:
    examples = [Example(list(range(1, 13)), [3 <= step < 6 for step in range(12)], 1), Example([4, 5], [False] * 2, 2)]
    batch = collate(examples, device=torch.device("cpu"))
    expected = reference(model, batch)
    torch.testing.assert_close(row_losses(model, batch), expected, rtol=1e-5, atol=1e-5)
    assert computed == [5, 1]


def test_what_rows_begin_with_alike_is_computed_once(model: Any, computed: list[int]) -> None:
    batch = make_batch()
    torch.testing.assert_close(row_losses(model, batch), reference(model, batch), rtol=1e-5, atol=1e-5)
    assert computed == [4, 16, 2, 4]


def test_where_chance_drops_values_every_row_is_computed_whole(model: Any, computed: list[int]) -> None:
    batch = make_batch()
    for module in model.modules():
        if hasattr(module, "lora_dropout"):
            module.lora_dropout["default"] = nn.Dropout(0.1)
    row_losses(model.train(), batch)
    assert computed == [4, 16, 2, 8]
    computed.clear()
    row_losses(model.eval(), batch)
    assert computed == [4, 16, 2, 4]


@pytest.mark.parametrize("known", [True, False])
def test_rows_end_to_end_give_each_rows_loss_and_gradient(
    model: Any, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    if not known:
        monkeypatch.setattr(padding_free, "ARCHITECTURES", set())
    batch = make_batch()
    expected, losses = reference(model, batch), row_losses(model, batch)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(gradients(model, losses), gradients(model, expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("trained_head", [True, False])
def test_the_tokens_that_are_the_likeliest_are_counted(
    model: Any, monkeypatch: pytest.MonkeyPatch, known: bool, trained_head: bool
) -> None:
    if not known:
        monkeypatch.setattr(padding_free, "ARCHITECTURES", set())
    model.get_base_model().requires_grad_(requires_grad=trained_head)
    examples = []
    for line, ids in enumerate(([5, 6, 7, 8, 9, 10], [5, 6, 11, 12], [3, 4, 5]), 1):
        likeliest = model(input_ids=torch.tensor([ids])).logits[0].argmax(dim=1).tolist()
        # The model's own next token at the end of each row, which is the only one that it knows for sure.
        examples.append(Example([*ids, likeliest[-1]], [step >= 2 for step in range(len(ids) + 1)], line))
    batch = collate(examples, device=torch.device("cpu"))
    expected = []
    for example in examples:
        likeliest = model(input_ids=torch.tensor([example.ids])).logits[0, :-1].argmax(dim=1).tolist()
        hits = zip(likeliest, example.ids[1:], example.trained[1:], strict=True)
        expected.append(sum(trained and guess == token for guess, token, trained in hits))
    assert row_scores(model, batch).correct.tolist() == expected
    assert all(expected)
    assert sum(expected) < batch.targets


def test_a_trained_head_gets_its_gradient(model: Any) -> None:
    model.get_base_model().requires_grad_(requires_grad=True)
    batch = make_batch()
    for a, b in zip(gradients(model, row_losses(model, batch)), gradients(model, reference(model, batch)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * max(1.0, float(b.abs().max())))


def test_the_attention_setting_is_put_back(model: Any) -> None:
    row_losses(model, make_batch())
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("name", "value"), [("sliding_window", 4), ("attention_dropout", 0.1), ("_attn_implementation", "eager")]
)
def test_what_rows_cannot_express_is_padded(model: Any, name: str, value: Any) -> None:
    inner = padding_free.causal_lm_of(model)
    assert padding_free.supports_packing(inner)
    setattr(inner.config, name, value)
    assert not padding_free.supports_packing(inner)


def test_layers_that_are_computed_again_are_padded(model: Any) -> None:
    inner = padding_free.causal_lm_of(model)
    inner.get_decoder().layers[0].gradient_checkpointing = True
    assert not padding_free.supports_packing(inner)
