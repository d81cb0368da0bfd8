"""Fixtures every room uses: a home, a registry, a tiny base with a real tokenizer, and the real small base.

The real base is converted once per machine, under TUNERY_TEST_CACHE (default ~/.cache/tunery-tests).
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunery.plugins.allocator import tune_allocator
from tunery.registry import Base
from tunery.registry.home import Home
from tunery.registry.registry import Registry

tune_allocator()
# The developer's own settings must not change what the tests see.
for variable in [name for name in os.environ if name.startswith("TUNERY_") and name != "TUNERY_TEST_CACHE"]:
    del os.environ[variable]
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_TEXT = [
    "The quick brown fox jumps over the lazy dog.",
    "How do I reset my password? Please open the settings page.",
    '{"team": "billing", "priority": "high"} invoices, refunds and tickets',
    "Return the number of items; raise ValueError when there are none.",
]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """An empty home."""
    return Home(tmp_path / "home")


@pytest.fixture
def registry(home: Home) -> Iterator[Registry]:
    """An empty registry."""
    with Registry.open(home) as registry:
        yield registry


@pytest.fixture(scope="session")
def tiny_base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with a byte-level tokenizer of 384 tokens and a ChatML template, as transformers saves it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-base")
    size = _save_tokenizer(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    # A head this large lets adapters of the layers below it change what is said.
    model.lm_head.weight.data.mul_(10)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_base(registry: Registry, tiny_base_folder: Path) -> Base:
    """The tiny base, registered as `tiny`."""
    from tunery.plugins.bases.resolve import resolve_base
    from tunery.plugins.manager import load_plugins

    return resolve_base(str(tiny_base_folder), registry=registry, plugins=load_plugins(), name="tiny")


@pytest.fixture(scope="session")
def base_cache() -> Home:
    """A home that lasts from one run to the next and holds nothing but the real base."""
    root = os.environ.get("TUNERY_TEST_CACHE") or Path("~/.cache/tunery-tests").expanduser()
    return Home(Path(root))


@pytest.fixture(scope="session")
def base_folder(base_cache: Home) -> Path:
    """The real small base, SmolLM2-135M-Instruct, as safetensors."""
    from tunery.plugins.bases.resolve import resolve_base
    from tunery.plugins.manager import load_plugins

    with Registry.open(base_cache) as registry:
        return Path(resolve_base("smollm2-135m", registry=registry, plugins=load_plugins()).path)


def _save_tokenizer(folder: Path) -> int:
    """Train and save a small byte-level tokenizer; its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|pad|>",
        "chat_template": CHATML,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer.get_vocab_size()


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A folder with a short name, for sockets."""
    with tempfile.TemporaryDirectory(prefix="tun-") as folder:
        yield Path(folder)
