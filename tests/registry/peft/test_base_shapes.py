"""Names of a base's parameters as adapters write them, whichever way its files write them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from tunery.registry.peft.base_shapes import base_shapes


def test_gpt2s_files_leave_out_what_its_modules_are_called(tmp_path: Path) -> None:
    tensors = {"wte.weight": torch.zeros(8, 4), "h.0.attn.c_attn.weight": torch.zeros(4, 12)}
    save_file(tensors, tmp_path / "model.safetensors")
    shapes = base_shapes(tmp_path)
    assert shapes["transformer.h.0.attn.c_attn.weight"] == (4, 12)
    assert shapes["lm_head.weight"] == shapes["transformer.wte.weight"] == (8, 4)


def test_other_names_stay_as_they_are(tmp_path: Path) -> None:
    save_file({"model.embed_tokens.weight": torch.zeros(8, 4)}, tmp_path / "model.safetensors")
    assert base_shapes(tmp_path) == {"model.embed_tokens.weight": (8, 4), "lm_head.weight": (8, 4)}
