"""Rename tensors as PEFT itself names them, from the names that other trainers and wrapped models write.

A model that was wrapped (torch.compile, DDP, FSDP, activation checkpoints, Lightning) has the wrapper's name in its
keys, and a state dict that was saved without PEFT's help has the adapter's:
`_orig_mod.base_model.model.….lora_A.default.weight`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from tunery.registry.errors import ArtifactRefused
from tunery.registry.peft.layout import PARTS_AFTER_ROLE, PREFIX, base_parameter
from tunery.registry.peft.safetensors_header import read_header, read_json_header

__all__ = ["WRAPPERS", "canonical_names", "normalise_keys", "unknown_parameter"]

_SHOWN = 5
"""Adapters that an error names."""
WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_forward_module", "_checkpoint_wrapped_module")
"""Modules that wrap another one and compute nothing themselves, as their keys name them."""


def normalise_keys(path: Path, base: Collection[str]) -> int:
    """Rename the tensors of a safetensors file to what PEFT calls them; returns how many had another name.

    `base` are the names of the base's parameters. Raise ArtifactRefused (artifact_incomplete) where two tensors would
    get one name.
    """
    names = canonical_names(read_header(path), base)
    changed = sum(old != new for old, new in names.items())
    if not changed:
        return 0
    header, data = read_json_header(path)
    renamed = json.dumps({names.get(key, key): value for key, value in header.items()}, separators=(",", ":")).encode()
    renamed += b" " * (-len(renamed) % 8)
    written = path.with_name(f"{path.name}.renamed")
    with path.open("rb") as source, written.open("wb") as target:
        source.seek(data)
        target.write(len(renamed).to_bytes(8, "little") + renamed)
        shutil.copyfileobj(source, target)
    written.replace(path)
    return changed


def canonical_names(keys: Iterable[str], base: Collection[str]) -> dict[str, str]:
    """PEFT's name for each key; the key itself where that is not certain."""
    wrappers = set(WRAPPERS) - {part for name in base for part in name.split(".")}
    names: dict[str, str] = {}
    adapters: set[str] = set()
    for key in keys:
        parts = [part for part in key.split(".") if part not in wrappers]
        adapters |= _cut_adapter(parts)
        name = ".".join(parts)
        bare = name.partition(PREFIX)[2] if PREFIX in name else name
        names[key] = PREFIX + bare if base_parameter(bare) in base else name
    if len(adapters) > 1:
        shown = ", ".join(sorted(adapters)[:_SHOWN]) + (", …" if len(adapters) > _SHOWN else "")
        raise ArtifactRefused(
            f"it holds several adapters ({shown}); save each in a folder of its own "
            "(PEFT: save_pretrained(..., selected_adapters=[...]))",
            code="artifact_incomplete",
        )
    _check_distinct(names)
    return names


def unknown_parameter(name: str, base: Collection[str]) -> str | None:
    """The likely reason for a name that the base does not have, or None."""
    parts = name.split(".")
    for begin in range(1, len(parts) - 1):
        rest = ".".join(parts[begin:])
        if rest in base:
            prefix = ".".join(parts[:begin])
            return f"{prefix!r} before {rest!r} is not a prefix that PEFT writes; rename the tensors without it"
    extra = [part for at, part in enumerate(parts) if ".".join(parts[:at] + parts[at + 1 :]) in base]
    if extra:
        return f"{extra[0]!r} in it belongs to no module of the base; rename the tensors without it"
    return None


def _cut_adapter(parts: list[str]) -> set[str]:
    """Remove the adapter's name from a key's parts; returns it, if there was one."""
    for at, part in enumerate(parts):
        after = parts[at + 1 :]
        if part == "modules_to_save" and len(after) > 1:
            del parts[at : at + 2]
            return {after[0]}
        bare = part == "lora_magnitude_vector" and after not in ([], ["weight"])
        if part in PARTS_AFTER_ROLE and (bare or len(after) > PARTS_AFTER_ROLE[part]):
            del parts[at + 1]
            return {after[0]}
    return set()


def _check_distinct(names: Mapping[str, str]) -> None:
    seen: dict[str, str] = {}
    for old, new in names.items():
        if new in seen:
            raise ArtifactRefused(
                f"{seen[new]} and {old} are two tensors for {new}; save the adapter again", code="artifact_incomplete"
            )
        seen[new] = old
