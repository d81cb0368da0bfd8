"""A base small enough for tests: a random two-layer Llama with a byte-level tokenizer, made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["CHATML", "make_tiny_base"]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""A ChatML template without tools, as many small models have it."""
_TEXT = [
    "The quick brown fox jumps over the lazy dog.",
    "How do I reset my password? Please open the settings page.",
    '{"team": "billing", "priority": "high"} invoices, refunds and tickets',
    "Return the number of items; raise ValueError when there are none.",
]


def make_tiny_base(folder: Path) -> Path:
    """Save a random two-layer Llama with a byte-level tokenizer and a ChatML template into `folder`, and return it.

    64 hidden units, 512 positions, tied embeddings; special tokens `<|pad|>` (0), `<|im_start|>` (1) and `<|im_end|>`
    (2). The weights are the same every time, and torch's random state is left as it was.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    size = _save_tokenizer(folder)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    # A head this large lets adapters of the layers below it change the answers.
    model.lm_head.weight.data.mul_(10)
    model.save_pretrained(folder)
    torch.set_rng_state(state)
    return folder


def _save_tokenizer(folder: Path) -> int:
    """Train and save a small byte-level tokenizer; return its vocabulary size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )  # fmt: skip
    tokenizer.train_from_iterator(_TEXT * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>",
        "pad_token": "<|pad|>", "chat_template": CHATML,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return int(tokenizer.get_vocab_size())
