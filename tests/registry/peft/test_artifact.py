"""Artifacts that do not fit, are incomplete or could run code are refused, and the registry stays as it was."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.registry.artifacts import HIDDEN, make_adapter, make_base
from tunery.registry import Base, NewVersion
from tunery.registry.errors import ArtifactRefused
from tunery.registry.peft.safetensors_header import nonfinite_tensor, read_header
from tunery.registry.registry import Registry

Q = "base_model.model.model.layers.0.q_proj"
ROWS = ".token_adapter.trainable_tokens_delta"


def publish(registry: Registry, folder: Path, base: Base) -> None:
    registry.publish(
        NewVersion(adapter="a/b", folder=folder, base=base, method="lora", manifest={}, metrics={}, actor="t")
    )


def refused(registry: Registry, folder: Path, base: Base) -> ArtifactRefused:
    with pytest.raises(ArtifactRefused) as caught:
        publish(registry, folder, base)
    assert registry.versions() == []
    assert list(registry.blobs.all()) == []
    return caught.value


def array(*shape: int, value: float = 1.0) -> np.ndarray:
    return np.full(shape, value, np.float32)


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({f"{Q}.lora_A.weight": array(2, HIDDEN, value=np.nan)}, "artifact_nonfinite", "lora_A"),
        ({f"{Q}.lora_B.weight": array(HIDDEN, 2, value=np.inf)}, "artifact_nonfinite", "lora_B"),
        ({f"{Q}.lora_B.weight": array(HIDDEN, 2, value=3.4e38)}, "artifact_nonfinite", "too large for bfloat16"),
        ({f"{Q}.lora_B.weight": np.full((HIDDEN, 2), -1e300)}, "artifact_nonfinite", "too large for bfloat16"),
        ({f"{Q}.lora_A.weight": None}, "artifact_incomplete", "one half"),
        ({f"{Q}.lora_A.weight": array(3, HIDDEN)}, "artifact_incomplete", "do not make a product"),
        ({f"{Q}.lora_A.weight": array(2, HIDDEN + 1)}, "wrong_base", "another base"),
        ({f"{Q}.lora_B.weight": array(HIDDEN + 1, 2)}, "wrong_base", "another base"),
        ({"base_model.model.model.layers.7.q_proj.lora_A.weight": array(2, HIDDEN)}, "wrong_base", "no such parameter"),
        ({"base_model.model.model.extra.weight": array(2)}, "wrong_base", "no such parameter"),
        ({"base_model.model.model.norm.weight": array(HIDDEN + 1)}, "wrong_base", "norm"),
    ],
)
def test_tensors_that_do_not_fit(
    registry: Registry, base: Base, tmp_path: Path, changes: dict[str, np.ndarray], code: str, message: str
) -> None:
    error = refused(registry, make_adapter(tmp_path / "bad", changes=changes), base)
    assert error.code == code
    assert message in error.message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({"peft_type": "LOHA"}, "unsupported_adapter"),
        ({"auto_mapping": {"base_model_class": "Evil"}}, "artifact_unsafe"),
        ({"auto_mapping": {"base_model_class": "Evil", "parent_library": "transformers_evil.x"}}, "artifact_unsafe"),
        ({"tunery_base_digest": "c" * 64}, "wrong_base"),
        ({"init_lora_weights": "pissa_niter_4"}, "unsupported_adapter"),
        ({"r": 4}, "artifact_incomplete"),
        ({"r": "2"}, "artifact_incomplete"),
        ({"r": True}, "artifact_incomplete"),
        ({"lora_alpha": "much"}, "artifact_incomplete"),
        ({"lora_alpha": float("nan")}, "artifact_incomplete"),
        ({"rank_pattern": {"q_proj": 3}}, "artifact_incomplete"),
        ({"rank_pattern": {"q_proj": -2}}, "artifact_incomplete"),
        ({"rank_pattern": [1]}, "artifact_incomplete"),
        ({"rank_pattern": []}, "artifact_incomplete"),
        ({"alpha_pattern": False}, "artifact_incomplete"),
        ({"alpha_pattern": {"(": 3}}, "artifact_incomplete"),
        ({"alpha_pattern": {"(a|a)*b": 3}}, "artifact_unsafe"),
        ({"alpha_pattern": {".*.*.*.*.*x": 3}}, "artifact_unsafe"),
        ({"target_modules": ["q_proj"]}, "artifact_incomplete"),
        ({"target_modules": {"q_proj": 1}}, "artifact_incomplete"),
        ({"modules_to_save": "norm"}, "artifact_incomplete"),
        ({"trainable_token_indices": [1]}, "artifact_incomplete"),
        ({"trainable_token_indices": [1, 1]}, "artifact_incomplete"),
        ({"trainable_token_indices": [-1]}, "artifact_incomplete"),
        ({"trainable_token_indices": {"embed_tokens": ["a"]}}, "artifact_incomplete"),
        ({"trainable_token_indices": {"embed_tokens": 1}}, "artifact_incomplete"),
        ({"trainable_token_indices": "1"}, "artifact_incomplete"),
        ({"use_qalora": True}, "unsupported_adapter"),
        ({"alora_invocation_tokens": [1, 2]}, "unsupported_adapter"),
        ({"layer_replication": [[0, 1], [0, 1]]}, "unsupported_adapter"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "unsupported_adapter"),
    ],
)
def test_configurations_that_are_refused(
    registry: Registry, base: Base, tmp_path: Path, config: dict[str, Any], code: str
) -> None:
    folder = make_adapter(tmp_path / "bad", **config)
    assert refused(registry, folder, base).code == code


def test_a_note_of_transformers_own_class_is_harmless(registry: Registry, base: Base, tmp_path: Path) -> None:
    mapping = {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models.llama.modeling_llama"}
    publish(registry, make_adapter(tmp_path / "good", auto_mapping=mapping), base)


def test_whole_norms_and_embedding_pairs_are_welcome(registry: Registry, base: Base, tmp_path: Path) -> None:
    changes = {
        "base_model.model.model.norm.weight": array(HIDDEN),
        "base_model.model.model.embed_tokens.lora_embedding_A": array(3, 20),
        "base_model.model.model.embed_tokens.lora_embedding_B": array(HIDDEN, 3),
        f"{Q}.lora_B.bias": array(HIDDEN),
        "base_model.model.lm_head.weight": array(20, HIDDEN),
    }
    config: dict[str, Any] = {
        "modules_to_save": ["norm"],
        "rank_pattern": {"embed_tokens": 3},
        "target_modules": ["up_proj", "q_proj", "embed_tokens"],
        "lora_bias": True,
    }
    publish(registry, make_adapter(tmp_path / "good", changes=changes, **config), base)


EMBEDDING, HEAD = (f"base_model.model.{name}{ROWS}" for name in ("model.embed_tokens", "lm_head"))


@pytest.mark.parametrize(
    ("indices", "changes"),
    [
        ([1, 19], {EMBEDDING: array(2, HIDDEN)}),
        ({"embed_tokens": [7]}, {EMBEDDING: array(1, HIDDEN)}),
        ({"model.embed_tokens": [7], "lm_head": [1, 2]}, {EMBEDDING: array(1, HIDDEN), HEAD: array(2, HIDDEN)}),
        ({"lm_head": [0]}, {HEAD: array(1, HIDDEN)}),
    ],
)
def test_token_rows_are_welcome(
    registry: Registry, base: Base, tmp_path: Path, indices: object, changes: dict[str, np.ndarray]
) -> None:
    publish(registry, make_adapter(tmp_path / "good", changes=changes, trainable_token_indices=indices), base)


@pytest.mark.parametrize(
    ("indices", "changes", "code"),
    [
        ([1, 20], {EMBEDDING: array(2, HIDDEN)}, "vocabulary_changed"),
        ([1, 2], {EMBEDDING: array(3, HIDDEN)}, "wrong_base"),
        ([1, 2], {EMBEDDING: array(2, HIDDEN + 1)}, "wrong_base"),
        ([1, 2], {EMBEDDING: array(2 * HIDDEN)}, "wrong_base"),
        ([1, 2], {f"base_model.model.model.extra{ROWS}": array(2, HIDDEN)}, "wrong_base"),
        ([1, 2], {f"base_model.model.model.norm{ROWS}": array(2, HIDDEN)}, "wrong_base"),
        ([1, 2], {HEAD: array(2, HIDDEN)}, "artifact_incomplete"),
        ([1, 2], {Q + ROWS: array(2, HIDDEN)}, "artifact_incomplete"),
        ({"lm_head": [1, 2]}, {EMBEDDING: array(2, HIDDEN)}, "artifact_incomplete"),
        (None, {EMBEDDING: array(2, HIDDEN)}, "artifact_incomplete"),
    ],
)
def test_token_rows_that_do_not_fit(
    registry: Registry, base: Base, tmp_path: Path, indices: object, changes: dict[str, np.ndarray], code: str
) -> None:
    folder = make_adapter(tmp_path / "bad", changes=changes, trainable_token_indices=indices)
    error = refused(registry, folder, base)
    assert error.code == code
    assert "trainable_tokens_delta" in error.message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{Q}.lora_magnitude_vector": array(HIDDEN + 1)}, "lora_magnitude_vector"),
        ({f"{Q}.lora_B.bias": array(3)}, "lora_B.bias"),
        ({"base_model.model.model.norm.weight": array(HIDDEN)}, "would not be used"),
        ({f"{Q}.lora_A.weight": array(2, HIDDEN).astype(np.int32)}, "I32"),
        # Turned the wrong way round: in and out of up_proj exchanged.
        (
            {
                "base_model.model.model.layers.0.up_proj.lora_A.weight": array(2, 2 * HIDDEN),
                "base_model.model.model.layers.0.up_proj.lora_B.weight": array(HIDDEN, 2),
            },
            "another base",
        ),
    ],
)
def test_tensors_that_would_mean_something_else(
    registry: Registry, base: Base, tmp_path: Path, changes: dict[str, np.ndarray], message: str
) -> None:
    assert message in refused(registry, make_adapter(tmp_path / "bad", changes=changes), base).message


@pytest.mark.parametrize(
    ("source", "named", "fits"),
    [
        ("meta-llama/Llama-3.1-8B@main", "meta-llama/Llama-3.1-8B", True),
        ("meta-llama/Llama-3.1-8B", "unsloth/llama-3.1-8b-unsloth-bnb-4bit", True),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct", False),
        ("meta-llama/Llama-3.1-8B", "/home/somebody/checkpoint", True),
        ("meta-llama/Llama-3.1-8B", None, True),
        ("tiny", "HuggingFaceTB/SmolLM2-135M-Instruct", True),
        ("tiny", "the-other", False),
    ],
)
def test_an_adapter_that_names_another_base_needs_a_word(
    registry: Registry, tmp_path: Path, source: str, named: str | None, fits: bool
) -> None:
    other = make_base(tmp_path / "other", name="the-other", digest="c" * 64)
    registry.add_base(other)
    made = make_base(tmp_path / "base")
    base = registry.add_base(msgspec.structs.replace(made, source=source))
    folder = make_adapter(tmp_path / "a", base_model_name_or_path=named)
    if not fits:
        error = refused(registry, folder, base)
        assert (error.code, "--trust-base" in error.message) == ("wrong_base", True)
    registry.publish(
        NewVersion(
            adapter="a/b",
            folder=folder,
            base=base,
            method="lora",
            manifest={},
            metrics={},
            actor="t",
            trust_base=not fits,
        )
    )
    assert len(registry.versions()) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"revision": "\\ud800"}',
        "{",
        "[" * 100_000,
        '{"r": ' + "9" * 10_000 + "}",
        "\udcff",
        "{}" + " " * 5_000_000,
    ],
)
def test_configurations_that_are_none(registry: Registry, base: Base, tmp_path: Path, text: str) -> None:
    folder = make_adapter(tmp_path / "bad")
    (folder / "adapter_config.json").write_bytes(text.encode(errors="surrogateescape"))
    refused(registry, folder, base)


@pytest.mark.parametrize(
    "header",
    [
        "[" * 50_000,
        '{"t": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 4]}}',
        '{"t": {"dtype": "F32", "shape": [1], "data_offsets": [Infinity, 4]}}',
        '{"t": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}',
        '{"t": {"dtype": "F32", "shape": ' + "[" * 5000 + "]" * 5000 + ', "data_offsets": [0, 4]}}',
        '{"t": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}',
        '{"t": null}',
        '"t"',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, '
        '"b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
    ],
)
def test_hostile_headers(tmp_path: Path, header: str) -> None:
    path = tmp_path / "x.safetensors"
    raw = header.encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(4))
    with pytest.raises(ArtifactRefused, match="not a sound safetensors file"):
        read_header(path)


@pytest.mark.parametrize("name", ["adapter_model.bin", "optimizer.pt", "sub/state.pkl", "weights.ckpt"])
def test_pickles_are_refused_unread(registry: Registry, base: Base, tmp_path: Path, name: str) -> None:
    folder = make_adapter(tmp_path / "bad")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(pickle.dumps({"harmless": 1}))
    assert refused(registry, folder, base).code == "artifact_pickled"


def test_code_and_links_out_are_refused(registry: Registry, base: Base, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "code")
    (folder / "modeling.py").write_text("print('hello')")
    assert refused(registry, folder, base).code == "artifact_unsafe"
    folder = make_adapter(tmp_path / "link")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "notes.txt").symlink_to(tmp_path / "secret.txt")
    assert refused(registry, folder, base).code == "artifact_unsafe"


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_without_a_part_is_refused(registry: Registry, base: Base, tmp_path: Path, missing: str) -> None:
    folder = make_adapter(tmp_path / "bad")
    (folder / missing).unlink()
    assert missing in refused(registry, folder, base).message


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_file_cut_or_changed_in_its_header_is_refused_or_reads_the_same(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = make_adapter(tmp_path_factory.mktemp("fuzz"))
    path = folder / "adapter_model.safetensors"
    whole, header = path.read_bytes(), read_header(path)
    if data.draw(st.booleans()):
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        with pytest.raises(ArtifactRefused):
            read_header(path)
        return
    at, value = data.draw(st.integers(0, 400)), data.draw(st.integers(0, 255))
    path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
    try:
        entries = read_header(path)
    except ArtifactRefused:
        return
    assert sum(entry.end - entry.begin for entry in entries.values()) == sum(e.end - e.begin for e in header.values())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_one_bad_number_is_found_whatever_the_dtype(tmp_path: Path, dtype: type) -> None:
    from safetensors.numpy import save_file

    tensor: NDArray[Any] = np.ones((300, 7), dtype)
    tensor[211, 3] = np.nan
    save_file({"fine": np.ones(5, dtype), "bad": tensor}, tmp_path / "x.safetensors")
    assert nonfinite_tensor(tmp_path / "x.safetensors", read_header(tmp_path / "x.safetensors")) == "bad"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_bfloat16_rounds_to_infinity_is_found_and_nothing_smaller(tmp_path: Path, dtype: type) -> None:
    import torch
    from safetensors.numpy import save_file

    edge = np.array([0x7F7F8000], np.uint32).view(np.float32)[0]
    for sign in (1, -1):
        for value in (edge, np.nextafter(edge, np.float32(0))):
            save_file({"t": np.array([sign * value], dtype)}, tmp_path / "x.safetensors")
            name = nonfinite_tensor(tmp_path / "x.safetensors", read_header(tmp_path / "x.safetensors"))
            lost = bool(torch.tensor([sign * value], dtype=torch.float32).bfloat16().isinf())
            assert (name == "t") == lost == (value == edge)


def test_bfloat16_infinity_is_found(tmp_path: Path) -> None:
    header = json.dumps({"t": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}).encode()
    numbers = np.array([0x3F80, 0x7F80, 0x3F80], np.uint16).tobytes()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + numbers)
    assert nonfinite_tensor(path, read_header(path)) == "t"
