"""Small real artifacts for the registry's tests: a base folder and PEFT folders made without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tunery.registry.records import Base

HIDDEN = 8


def make_base(folder: Path, *, name: str = "tiny", digest: str = "b" * 64) -> Base:
    """A base of two linear layers and an embedding."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        "model.embed_tokens.weight": np.zeros((20, HIDDEN), np.float32),
        "model.layers.0.q_proj.weight": np.zeros((HIDDEN, HIDDEN), np.float32),
        "model.layers.0.up_proj.weight": np.zeros((2 * HIDDEN, HIDDEN), np.float32),
        "model.norm.weight": np.zeros((HIDDEN,), np.float32),
    }
    save_file(tensors, folder / "model.safetensors")
    return Base(name=name, digest=digest, source=name, path=str(folder), parameters=1, added_at=0.0)


def make_adapter(
    folder: Path, *, seed: int = 0, rank: int = 2, changes: dict[str, Any] | None = None, **config: Any
) -> Path:
    """A PEFT LoRA for that base; `changes` replaces tensors by name, None removes one."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed)
    prefix = "base_model.model.model.layers.0"
    tensors: dict[str, Any] = {
        f"{prefix}.q_proj.lora_A.weight": noise.normal(size=(rank, HIDDEN)).astype(np.float32),
        f"{prefix}.q_proj.lora_B.weight": noise.normal(size=(HIDDEN, rank)).astype(np.float32),
        f"{prefix}.up_proj.lora_A.weight": noise.normal(size=(rank, HIDDEN)).astype(np.float32),
        f"{prefix}.up_proj.lora_B.weight": noise.normal(size=(2 * HIDDEN, rank)).astype(np.float32),
    }
    tensors |= changes or {}
    save_file(
        {name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / "adapter_model.safetensors"
    )
    written = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "target_modules": ["up_proj", "q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(written))
    return folder
