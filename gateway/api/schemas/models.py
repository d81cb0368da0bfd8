"""The bodies of the model and adapter endpoints."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = [
    "AdapterCard",
    "AdapterList",
    "AdapterReference",
    "AdapterState",
    "DeletedModel",
    "LoadRequest",
    "ModelCard",
    "ModelList",
    "ResidentVersion",
]


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """A model that requests can name. `root` is the base; `digest` and `version` are what the name means now."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    root: str
    parent: str | None = None
    digest: str
    version: int | None = None
    aliases: list[str] = []


class ModelList(msgspec.Struct, frozen=True):
    """`GET /v1/models`."""

    data: list[ModelCard]
    object: Literal["list"] = "list"


class DeletedModel(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a deletion."""

    id: str
    object: Literal["model"] = "model"
    deleted: bool = True


class ResidentVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A version in memory: the bytes it takes, the requests that run on it, and whether it is exempt from eviction."""

    version: int
    bytes: int
    running: int
    pinned: bool


class AdapterCard(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter: the version that its bare name means now, its aliases, and its versions in memory."""

    id: str
    object: Literal["adapter"] = "adapter"
    version: int
    digest: str
    method: str
    aliases: dict[str, int]
    resident: list[ResidentVersion]


class AdapterList(msgspec.Struct, frozen=True):
    """`GET /v1/adapters`."""

    data: list[AdapterCard]
    object: Literal["list"] = "list"


class AdapterReference(msgspec.Struct, frozen=True):
    """Which adapter to unload: `tenant/name`, `tenant/name@3` or `tenant/name@canary`."""

    adapter: str


class LoadRequest(AdapterReference, frozen=True):
    """Which adapter to load; with `pin` it stays in memory until it is unloaded."""

    pin: bool | None = False


class AdapterState(msgspec.Struct, frozen=True, kw_only=True):
    """The result of loading or unloading; `bytes` is the memory taken or freed."""

    id: str
    version: int
    digest: str
    resident: bool
    pinned: bool
    bytes: int
