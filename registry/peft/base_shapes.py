"""Read the shapes of a base's parameters from the headers of its safetensors files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from tunery.registry.errors import StorageFailed
from tunery.registry.peft.safetensors_header import read_header
from tunery.registry.records import Base

__all__ = ["HEAD", "BaseShapes", "base_shapes", "shapes_of"]

HEAD = "lm_head.weight"
_MODEL_PREFIXES = ("model.", "transformer.")
_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "tok_embeddings.weight",
)


class BaseShapes(msgspec.Struct, frozen=True):
    """A base's name and its parameters' shapes; `tied` says that the output head shares the embedding's weight."""

    base: str
    shapes: Mapping[str, tuple[int, ...]]
    tied: bool


def shapes_of(base: Base) -> BaseShapes:
    """The shapes of a recorded base; raise StorageFailed (base_missing) where its files are gone."""
    folder = Path(base.path)
    saved = _saved_shapes(folder)
    if not saved:
        raise StorageFailed(
            f"the base {base.name} is no longer in {base.path}; add it again: tunery bases add {base.source}",
            code="base_missing",
        )
    return BaseShapes(base.name, base_shapes(folder), HEAD not in saved)


def base_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of a base by name, with a tied output head under its own name as well."""
    shapes = _saved_shapes(folder)
    if not any(name.startswith(_MODEL_PREFIXES) for name in shapes):
        # Saved from the model without its head, as GPT-2 was.
        shapes |= {f"{prefix}{name}": shape for name, shape in shapes.items() for prefix in _MODEL_PREFIXES}
    embedding = next((shape for name, shape in shapes.items() if name.endswith(_EMBEDDINGS)), None)
    if embedding is not None:
        shapes.setdefault(HEAD, embedding)
    return shapes


def _saved_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    return {
        name: entry.shape for path in sorted(folder.glob("*.safetensors")) for name, entry in read_header(path).items()
    }
