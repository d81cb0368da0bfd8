"""Convert a GGUF file into an ordinary model, dequantized to bfloat16. It runs once per file."""

from __future__ import annotations

from pathlib import Path

from tunery.registry.errors import ArtifactRefused, NotFound

__all__ = ["fill"]


def fill(reference: str, folder: Path) -> str:
    """Convert the GGUF file `reference` into `folder`."""
    path = Path(reference).expanduser()
    if not path.is_file():
        raise NotFound(f"there is no file {reference}", code="base_not_found")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    source, name = str(path.parent), path.name
    try:
        # Dequantized, because packed weights could be used but not saved.
        model = AutoModelForCausalLM.from_pretrained(
            source,
            gguf_file=name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name)
    except Exception as error:  # parsing a foreign file may raise anything
        raise ArtifactRefused(f"{reference} cannot be read as a GGUF model: {error}", code="not_a_base") from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return f"converted from {path}"
