"""Tensors with other trainers' names are imported under PEFT's, or refused with what is wrong in the name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from tests.registry.artifacts import HIDDEN, make_adapter
from tunery.registry import Base
from tunery.registry.errors import ArtifactRefused
from tunery.registry.hub.incoming import Destination, import_folder
from tunery.registry.peft.renaming import canonical_names, normalise_keys
from tunery.registry.registry import Registry

BASE = {"model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"}
Q = "base_model.model.model.layers.0.self_attn.q_proj"
EMBEDDING = "base_model.model.model.embed_tokens"
PEFT_NAMES = (
    f"{Q}.lora_A.weight",
    f"{Q}.lora_B.weight",
    f"{Q}.lora_B.bias",
    f"{Q}.lora_magnitude_vector",
    f"{Q}.lora_magnitude_vector.weight",
    f"{EMBEDDING}.lora_embedding_A",
    f"{EMBEDDING}.token_adapter.trainable_tokens_delta",
    f"{EMBEDDING}.weight",
    f"{EMBEDDING}.base_layer.weight",
    "base_model.model.lm_head.weight",
    "base_model.model.model.norm.weight",
)


def name_of(key: str, base: set[str] = BASE) -> str:
    return canonical_names([key], base)[key]


@pytest.mark.parametrize("name", PEFT_NAMES)
@pytest.mark.parametrize(
    "change",
    [
        lambda key: key,
        lambda key: f"_orig_mod.{key}",
        lambda key: f"module.{key}",
        lambda key: f"_forward_module.module._orig_mod.{key}",
        lambda key: f"_fsdp_wrapped_module.{key}",
        lambda key: key.replace("base_model.model.", "base_model.model._orig_mod."),
        lambda key: key.replace("layers.0.", "layers.0._fsdp_wrapped_module._checkpoint_wrapped_module."),
        lambda key: f"model.{key}",  # Lightning's attribute
        lambda key: key.removeprefix("base_model.model."),
    ],
    ids=["peft", "compile", "ddp", "lightning-ddp", "fsdp", "inner-compile", "fsdp-layers", "attribute", "bare"],
)
def test_a_wrapper_in_the_name_is_taken_out(name: str, change: object) -> None:
    assert name_of(change(name)) == name  # type: ignore[operator]


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (f"{Q}.lora_A.default.weight", f"{Q}.lora_A.weight"),
        (f"{Q}.lora_A.my-adapter.weight", f"{Q}.lora_A.weight"),
        (f"{Q}.lora_B.weight.weight", f"{Q}.lora_B.weight"),
        (f"{Q}.lora_B.default.bias", f"{Q}.lora_B.bias"),
        (f"{Q}.lora_magnitude_vector.default", f"{Q}.lora_magnitude_vector"),
        (f"{Q}.lora_magnitude_vector.default.weight", f"{Q}.lora_magnitude_vector.weight"),
        (f"{EMBEDDING}.lora_embedding_B.default", f"{EMBEDDING}.lora_embedding_B"),
        (f"{EMBEDDING}.token_adapter.trainable_tokens_delta.x", f"{EMBEDDING}.token_adapter.trainable_tokens_delta"),
        ("base_model.model.lm_head.modules_to_save.default.weight", "base_model.model.lm_head.weight"),
    ],
)
def test_an_adapters_name_in_the_name_is_taken_out(key: str, name: str) -> None:
    assert name_of(key) == name
    assert name_of(f"module.{key}") == name


def test_what_is_not_certain_stays_as_it_is() -> None:
    for key in ("base_model.model.other.q_proj.lora_A.weight", "weird", "a.b.lora_A.x.y.weight", ""):
        assert name_of(key, BASE).endswith(key.replace(".x", "") if ".x" in key else key)
    own = {"model.module.q_proj.weight"}  # here the word means a module of the base
    assert name_of("base_model.model.model.module.q_proj.lora_A.weight", own).count("module") == 1


@pytest.mark.parametrize(
    "keys",
    [
        [f"{Q}.lora_A.one.weight", f"{Q}.lora_A.two.weight"],
        [f"{Q}.lora_A.weight", f"{Q}.lora_A.default.weight"],
        [f"{Q}.lora_A.weight", f"module.{Q}.lora_A.weight"],
    ],
)
def test_two_tensors_of_one_name_are_refused(keys: list[str]) -> None:
    with pytest.raises(ArtifactRefused, match=r"several adapters|two tensors") as caught:
        canonical_names(keys, BASE)
    assert caught.value.code == "artifact_incomplete"


def test_only_the_names_in_a_file_change(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    numbers: dict[str, NDArray[Any]] = {
        f"_orig_mod.{Q}.lora_A.default.weight": np.arange(6, dtype=np.float32).reshape(2, 3)
    }
    numbers |= {"untouched": np.arange(5, dtype=np.float16)}
    save_file(numbers, path, metadata={"format": "pt"})
    assert normalise_keys(path, BASE) == 1
    tensors = load_file(path)
    assert set(tensors) == {f"{Q}.lora_A.weight", "untouched"}
    np.testing.assert_array_equal(tensors[f"{Q}.lora_A.weight"], next(iter(numbers.values())))
    before = path.read_bytes()
    assert normalise_keys(path, BASE) == 0
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def renamed(folder: Path, old: str, new: str) -> Path:
    path = folder / "adapter_model.safetensors"
    save_file({key.replace(old, new): tensor for key, tensor in load_file(path).items()}, path)
    return folder


def test_an_imported_version_is_the_one_that_peft_would_have_saved(
    registry: Registry, base: Base, tmp_path: Path
) -> None:
    plain = import_folder(registry, make_adapter(tmp_path / "plain"), Destination(adapter="a/b", base=base, actor="t"))
    wrapped = renamed(make_adapter(tmp_path / "w"), "base_model", "module._orig_mod.base_model")
    renamed(wrapped, ".weight", ".default.weight")
    source = (wrapped / "adapter_model.safetensors").read_bytes()
    version = import_folder(registry, wrapped, Destination(adapter="a/b", base=base, actor="t"))
    assert version.digest == plain.digest
    assert (version.manifest["origin"]["renamed_tensors"], "renamed_tensors" in plain.manifest["origin"]) == (4, False)
    assert (wrapped / "adapter_model.safetensors").read_bytes() == source  # the caller's own file stays


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("base_model.model.model", "base_model.model.student.model", "'student' before 'model.layers.0."),
        ("base_model.model", "base_model.model.base_model.model", "'base_model.model' before"),
        ("layers.0.", "layers.0.wrapped.", "'wrapped' in it belongs to no module"),
    ],
)
def test_another_prefix_is_named_in_the_refusal(
    registry: Registry, base: Base, tmp_path: Path, old: str, new: str, message: str
) -> None:
    folder = renamed(make_adapter(tmp_path / "a"), old, new)
    with pytest.raises(ArtifactRefused, match=message) as caught:
        import_folder(registry, folder, Destination(adapter="a/b", base=base, actor="t"))
    assert caught.value.code == "artifact_incomplete"
    assert "trained on another base" not in caught.value.message
    assert registry.versions() == []
    assert list(registry.home.staging.iterdir()) == []


E_ = "base_model.model.model.embed_tokens"


@pytest.mark.parametrize(
    ("changes", "config", "message"),
    [
        ({f"{E_}.weight": np.ones((23, HIDDEN), np.float32)}, {}, "3 tokens were added to the 20 of tiny"),
        ({f"{E_}.weight": np.ones((19, HIDDEN), np.float32)}, {}, "1 token was cut off the 20 of tiny"),
        (
            {"base_model.model.lm_head.weight": np.ones((1021, HIDDEN), np.float32)},
            {"modules_to_save": ["lm_head"]},
            "1,001 tokens were added",
        ),
        (
            {
                f"{E_}.lora_embedding_A": np.ones((2, 22), np.float32),
                f"{E_}.lora_embedding_B": np.ones((HIDDEN, 2), np.float32),
            },
            {"target_modules": ["q_proj", "up_proj", "embed_tokens"]},
            "2 tokens were added",
        ),
        (
            {
                "base_model.model.lm_head.lora_A.weight": np.ones((2, HIDDEN), np.float32),
                "base_model.model.lm_head.lora_B.weight": np.ones((21, 2), np.float32),
            },
            {"target_modules": ["q_proj", "up_proj", "lm_head"]},
            "1 token was added to the 20",
        ),
        (
            {f"{E_}.token_adapter.trainable_tokens_delta": np.ones((3, HIDDEN), np.float32)},
            {"trainable_token_indices": [1, 20, 21]},
            "2 tokens were added",
        ),
    ],
)
def test_added_tokens_are_reported(
    registry: Registry, base: Base, tmp_path: Path, changes: dict[str, np.ndarray], config: dict[str, Any], message: str
) -> None:
    folder = make_adapter(tmp_path / "a", changes=changes, **config)
    with pytest.raises(ArtifactRefused, match=message) as caught:
        import_folder(registry, folder, Destination(adapter="a/b", base=base, actor="t"))
    assert caught.value.code == "vocabulary_changed"
    assert "tunery bases add" in caught.value.message
    assert "another base" not in caught.value.message
