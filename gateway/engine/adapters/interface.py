"""What the engine asks of an adapter in memory, whichever model it was prepared for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

from tunery.gateway.engine.composition import AdapterSource
from tunery.registry.errors import InvalidInput

__all__ = ["AdapterT", "ServedAdapter", "StoredAdapter", "check_composition"]


class StoredAdapter(Protocol):
    """An adapter's weights, in host or device memory."""

    @property
    def source(self) -> AdapterSource:
        """The version that the weights belong to."""

    @property
    def bytes(self) -> int:
        """Memory of all tensors in bytes, at their true rank."""


class ServedAdapter(StoredAdapter, Protocol):
    """An adapter that a model can apply."""

    @property
    def plain(self) -> bool:
        """Whether it is low-rank updates only, so that it can be weighted and added to other adapters."""


AdapterT = TypeVar("AdapterT", bound=StoredAdapter)


def check_composition(adapters: Iterable[ServedAdapter]) -> None:
    """Raise InvalidInput (`unsupported_composition`) naming the first adapter that cannot be
    weighted or added to others."""
    for adapter in adapters:
        if not adapter.plain:
            raise InvalidInput(
                f"{adapter.source.title} replaces parameters of the base (DoRA, biases, whole modules or token rows), so it "
                "cannot be composed with other adapters or weighted; name it alone",
                code="unsupported_composition",
            )
