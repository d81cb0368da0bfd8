"""What answers a request besides the base: one version of an adapter, or a composition of several."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

__all__ = ["AdapterSource", "WeightedAdapter", "composition_digest", "composition_title"]


class AdapterSource(msgspec.Struct, frozen=True):
    """A version as the engine needs it: its identity and where its files are.

    `digest` is the identity; `name` (`tenant/name`) and `number` are for metrics and messages only. `files` maps the
    path of each file inside the version to an absolute path on disk, `sha256` to the digest of its bytes where one is
    recorded; a file that does not match it is not served.
    """

    digest: str
    name: str
    number: int
    files: dict[str, str]
    sha256: dict[str, str] = {}

    @property
    def title(self) -> str:
        """How messages name it: `acme/support@3`."""
        return f"{self.name}@{self.number}"


class WeightedAdapter(msgspec.Struct, frozen=True):
    """An adapter and the weight of its update in a composition; on its own, an adapter has weight 1."""

    source: AdapterSource
    weight: float = 1.0


def composition_digest(composition: Sequence[WeightedAdapter]) -> str:
    """The identity of a composition: empty for the base alone, the version's own digest for one adapter at weight 1."""
    if len(composition) == 1 and composition[0].weight == 1.0:
        return composition[0].source.digest
    text = "+".join(f"{part.source.digest}:{part.weight!r}" for part in composition)
    return hashlib.sha256(text.encode()).hexdigest() if composition else ""


def composition_title(composition: Sequence[WeightedAdapter]) -> str:
    """How messages name a composition: `acme/tone@1:0.5+acme/facts@2`."""
    return "+".join(
        part.source.title if part.weight == 1.0 else f"{part.source.title}:{part.weight:g}" for part in composition
    )
