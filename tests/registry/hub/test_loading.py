"""Published versions load with transformers and PEFT, from a Hub over loopback."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, hf_api
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tests.gateway.serve_process import random_loras
from tests.hub_server import HubServer
from tunery.registry import Base, NewVersion, Version
from tunery.registry.hub.incoming import Destination, import_folder
from tunery.registry.hub.pull import pull_from_hub
from tunery.registry.hub.push import publish_to_hub
from tunery.registry.registry import Registry

# Of huggingface_hub's own upload of large files, with the httpx that it pins.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A repository of this test alone: transformers remembers the commits of those it has seen."""
    return f"acme/{abs(hash(request.node.nodeid)):x}"


@pytest.fixture
def reachable(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """The Hub where the libraries look for theirs."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
    # transformers keeps a client of its own.
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return hub


def tuned(registry: Registry, base: Base, folder: Path, *, whole: bool, dtype: torch.dtype = torch.bfloat16) -> Version:
    """A LoRA; or a full fine-tune as a trainer leaves it, its exact weights under `model/`."""
    (lora,) = random_loras(folder, Path(base.path), 1)
    if whole:
        model = AutoModelForCausalLM.from_pretrained(base.path, dtype=dtype)
        for parameter in model.parameters():
            parameter.data.add_(0.25)
        model.save_pretrained(lora / "model")
    (lora / "README.md").unlink(missing_ok=True)
    method = "full" if whole else "lora"
    return registry.publish(
        NewVersion(adapter="acme/tuned", folder=lora, base=base, method=method, manifest={}, metrics={}, actor="t")
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_published_full_fine_tune_is_a_whole_model_for_transformers(
    registry: Registry, tiny_base: Base, reachable: HubServer, name: str, tmp_path: Path, dtype: torch.dtype
) -> None:
    version = tuned(registry, tiny_base, tmp_path, whole=True, dtype=dtype)
    publish_to_hub(registry, version, repository=name, base_model="org/base")
    model = AutoModelForCausalLM.from_pretrained(name, subfolder="model")
    assert model.dtype == dtype
    exact = AutoModelForCausalLM.from_pretrained(tiny_base.path, dtype=dtype)
    for (key, parameter), own in zip(model.named_parameters(), exact.parameters(), strict=True):
        assert torch.equal(parameter, own + 0.25), key
    theirs, ours = (
        AutoTokenizer.from_pretrained(name, subfolder="model"),
        AutoTokenizer.from_pretrained(tiny_base.path),
    )
    messages = [{"role": "user", "content": "héllo"}]
    assert theirs.chat_template == ours.chat_template
    rendered = [
        one.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) for one in (theirs, ours)
    ]
    assert rendered[0] == rendered[1]
    assert GenerationConfig.from_pretrained(name, subfolder="model").eos_token_id == model.config.eos_token_id
    listed = {
        entry["path"] for entry in json.loads(reachable.repositories[name].commits[-1].tree["tunery.json"])["files"]
    }
    assert {"model/tokenizer.json", "model/model.safetensors", "adapter/adapter_config.json"} <= listed


@pytest.mark.slow
def test_the_delta_of_a_published_full_fine_tune_is_loaded_by_peft_and_pulled_again(
    registry: Registry, tiny_base: Base, reachable: HubServer, name: str, tmp_path: Path
) -> None:
    version = tuned(registry, tiny_base, tmp_path, whole=True)
    publish_to_hub(registry, version, repository=name, base_model="org/base")
    model = AutoModelForCausalLM.from_pretrained(tiny_base.path)
    PeftModel.from_pretrained(model, name, subfolder="adapter")
    pulled = pull_from_hub(registry, name, Destination(adapter="globex/copy", base=tiny_base, actor="t"))
    wanted = registry.files(version)["adapter_model.safetensors"].read_bytes()
    assert registry.files(pulled)["adapter_model.safetensors"].read_bytes() == wanted


@pytest.mark.slow
def test_what_an_earlier_release_published_at_the_root_goes_when_it_is_published_again(
    registry: Registry, tiny_base: Base, reachable: HubServer, name: str, tmp_path: Path
) -> None:
    version = tuned(registry, tiny_base, tmp_path, whole=True)
    files = {name: path.read_bytes() for name, path in registry.files(version).items()}
    identity = {"files": [{"path": name} for name in files]}
    reachable.add(name, files | {"tunery.json": json.dumps(identity).encode(), "mine.txt": b"stays"})
    publish_to_hub(registry, version, repository=name, base_model="org/base")
    tree = reachable.repositories[name].commits[-1].tree
    assert "adapter_config.json" not in tree
    assert "mine.txt" in tree
    assert AutoModelForCausalLM.from_pretrained(name, subfolder="model").dtype == torch.bfloat16


@pytest.mark.slow
def test_peft_loads_what_is_published_without_a_warning(
    registry: Registry,
    tiny_base: Base,
    reachable: HubServer,
    name: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    version = tuned(registry, tiny_base, tmp_path, whole=False)
    publish_to_hub(registry, version, repository=name, base_model="org/base")
    with caplog.at_level(logging.WARNING):
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base.path), name)
    assert [str(one.message) for one in recwarn if "tunery" in str(one.message) or "keyword" in str(one.message)] == []
    assert "tunery" not in caplog.text
    tree = reachable.repositories[name].commits[-1].tree
    assert "tunery_base_digest" not in json.loads(tree["adapter_config.json"])
    assert json.loads(tree["tunery.json"])["base_digest"] == tiny_base.digest


def test_the_key_of_earlier_releases_is_read_and_not_kept(registry: Registry, tiny_base: Base, tmp_path: Path) -> None:
    (lora,) = random_loras(tmp_path, Path(tiny_base.path), 1)
    config = lora / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tunery_base_digest": tiny_base.digest}))
    version = import_folder(registry, lora, Destination(adapter="acme/old", base=tiny_base, actor="t"))
    assert "tunery_base_digest" not in json.loads(registry.files(version)["adapter_config.json"].read_text())
