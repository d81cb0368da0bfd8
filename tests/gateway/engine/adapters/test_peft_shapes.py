"""What real trainers save, taken in and served: each equals PEFT on the same files, whatever its tensors are called."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.gateway.engine.peft_oracle import (
    KERNELS,
    Engine,
    assert_alone,
    describe,
    make_adapter,
    make_base,
    prompt,
    request,
    with_adapter,
)
from tunery.gateway.engine.composition import AdapterSource
from tunery.registry import Base
from tunery.registry.hub.incoming import Destination, import_folder
from tunery.registry.registry import Registry

TOKENS = (5, 7, 44, 300)
Change = Callable[[str], str]

NAMED: dict[str, Change] = {
    "compiled": lambda key: f"_orig_mod.{key}",
    "inner-compiled": lambda key: key.replace("base_model.model.", "base_model.model._orig_mod."),
    "ddp": lambda key: f"module.{key}",
    "fsdp": lambda key: key.replace(".self_attn", "._fsdp_wrapped_module._checkpoint_wrapped_module.self_attn"),
    "forward": lambda key: f"_forward_module.{key}",
    "adapter": lambda key: key.replace(".weight", f".{'' if 'lora' in key else 'modules_to_save.'}my_adapter.weight"),
    "bare": lambda key: key.removeprefix("base_model.model."),
}
TYING: dict[str, dict[str, Any]] = {
    "embedding": {"target_modules": ["embed_tokens", "o_proj"]},
    "both": {"target_modules": ["embed_tokens", "lm_head", "o_proj"]},
    "head": {"target_modules": ["lm_head", "o_proj"]},
    "alpha": {"target_modules": ["embed_tokens", "o_proj"], "alpha_pattern": {"lm_head": 2}},
    "rank": {"target_modules": ["embed_tokens", "o_proj"], "rank_pattern": {"embed_tokens": 3}},
    "saved-head": {"target_modules": ["o_proj"], "modules_to_save": ["lm_head"]},
    "tokens": {"target_modules": ["o_proj"], "trainable_token_indices": list(TOKENS)},
}
OTHER: dict[str, dict[str, Any]] = {
    "layers": {"target_modules": ["q_proj"], "layers_to_transform": 1},
    "excluded": {"target_modules": "all-linear", "exclude_modules": ["q_proj"]},
    "pattern": {"target_modules": r".*layers\.1\..*(q|v)_proj", "init_lora_weights": "orthogonal"},
    "unsloth": {
        "target_modules": r"(?:.*?(?:language|text).*?(?:attn|mlp).*?(?:q_proj|k_proj).*?)"
        r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|k_proj)))"
    },
    "mica": {"init_lora_weights": "mica"},
}
quiet = pytest.mark.filterwarnings(
    "ignore:Setting `save_embedding_layers`:UserWarning", "ignore:.*(tied|tying).*:UserWarning"
)


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("shapes"), "llama")


@pytest.fixture(scope="module", params=KERNELS)
def engine(base_folder: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = Engine.on(base_folder, kernels=request.param)
    yield engine
    engine.core.close()


@pytest.fixture
def base(registry: Registry, base_folder: Path) -> Base:
    """The base as the registry knows it."""
    return registry.add_base(
        Base(name="tiny", digest="b" * 64, source="tiny", path=str(base_folder), parameters=1, added_at=0.0)
    )


def take_in(registry: Registry, base: Base, folder: Path) -> AdapterSource:
    """Import a folder, and describe the version as the gateway does."""
    version = import_folder(registry, folder, Destination(adapter=f"acme/{folder.name}", base=base, actor="t"))
    files = {name: str(path) for name, path in registry.files(version).items()}
    return AdapterSource(version.digest, version.adapter, version.number, files)


def changed(folder: Path, copy: Path, change: Change) -> Path:
    """A copy of a PEFT folder with its tensors named otherwise."""
    copy.mkdir()
    (copy / "adapter_config.json").write_bytes((folder / "adapter_config.json").read_bytes())
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({change(key): tensor for key, tensor in tensors.items()}, copy / "adapter_model.safetensors")
    return copy


def test_tensors_named_as_trainers_name_them_are_served_as_pefts_own(
    registry: Registry, base: Base, base_folder: Path, engine: Engine, tmp_path: Path
) -> None:
    saved = make_adapter(base_folder, tmp_path / "saved", seed=3, modules_to_save=["norm"])
    sources = {
        name: take_in(registry, base, changed(tmp_path / "saved", tmp_path / name, change))
        for name, change in NAMED.items()
    }
    requests = [request(name, prompt(9, seed=4), source) for name, source in sources.items()]
    answers = engine.run(requests)
    model = with_adapter(base_folder, "none", request("oracle", (5,), saved).composition)
    for one in requests:
        assert_alone(model, one, answers[one.id], name=one.id)


@quiet
def test_shared_pairs_and_every_way_to_name_targets_are_served_as_peft_does(
    registry: Registry, base: Base, base_folder: Path, engine: Engine, tmp_path: Path
) -> None:
    kinds = {f"tied-{name}": {**settings, "ensure_weight_tying": True} for name, settings in TYING.items()} | OTHER
    oracles, requests = {}, []
    for index, (name, settings) in enumerate(kinds.items()):
        oracles[name] = make_adapter(base_folder, tmp_path / name, seed=index, **settings)
        requests.append(request(name, TOKENS + prompt(4 + index, seed=index), take_in(registry, base, tmp_path / name)))
    answers = engine.run(requests)
    for one in requests:
        model = with_adapter(base_folder, "none", request("oracle", (5,), oracles[one.id]).composition)
        assert_alone(model, one, answers[one.id], name=one.id)


@pytest.mark.parametrize("missing", ["lora_alpha", "use_rslora", "alpha_pattern"])
def test_a_setting_that_is_left_out_is_pefts_default(
    registry: Registry, base: Base, base_folder: Path, engine: Engine, tmp_path: Path, missing: str
) -> None:
    folder = tmp_path / "saved"
    make_adapter(base_folder, folder, r=32, lora_alpha=64, use_rslora=True, alpha_pattern={"q_proj": 3}, size=0.1)
    config = json.loads((folder / "adapter_config.json").read_text())
    del config[missing]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    one = request("one", prompt(9, seed=4), take_in(registry, base, folder))
    answers = engine.run([one])
    model = with_adapter(base_folder, "none", request("oracle", (5,), describe(folder)).composition)
    assert_alone(model, one, answers["one"])
