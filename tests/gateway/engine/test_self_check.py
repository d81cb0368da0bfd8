"""The self-check: a base is compared with transformers once, and refused when it is served differently."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.engine.models.random_bases import make_any_base
from tests.gateway.engine.peft_oracle import make_base
from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.core import EngineCore
from tunery.gateway.engine.ipc.supervisor import SupervisedEngine
from tunery.gateway.engine.models.native.kernels import load_kernels
from tunery.gateway.engine.models.torch import attention
from tunery.gateway.engine.self_check import compute_reference, load_reference, verify
from tunery.registry.errors import ArtifactRefused, Unavailable


def config(base: Path, **settings: Any) -> EngineConfig:
    defaults: dict[str, Any] = {"quant": "none", "dtype": "float32", "kernels": "torch"}
    return EngineConfig(base_folder=str(base), base_name="tiny", base_digest="d1", **(defaults | settings))


def check(settings: EngineConfig) -> None:
    core = EngineCore(settings, lambda event: None)
    try:
        verify(core, compute_reference(settings), settings)
    finally:
        core.close()


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose window is shorter than what is compared."""
    return make_base(tmp_path_factory.mktemp("self-check") / "base", "mistral")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quant", ["none", "nf4", "int8"])
@pytest.mark.parametrize("kernels", ["torch", "auto"])
def test_what_is_served_exactly_passes(mistral: Path, kernels: Any, quant: Any, dtype: Any) -> None:
    if kernels == "auto" and load_kernels() is None:
        pytest.skip("the native kernels are not built, or not for this CPU")
    check(config(mistral, kernels=kernels, quant=quant, dtype=dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_attention_is_refused(mistral: Path, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = attention.PagedAttention.__call__

    def without_windows(self: Any, *tensors: Any, sliding_window: int | None = None, **options: Any) -> Any:
        return inner(self, *tensors, **options)

    monkeypatch.setattr(attention.PagedAttention, "__call__", without_windows)
    with pytest.raises(ArtifactRefused, match="not served exactly: in a batch the engine is") as caught:
        check(config(mistral, dtype=dtype))
    assert caught.value.code == "unsupported_base"


@pytest.mark.slow
def test_it_is_compared_once(mistral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(mistral, cache_folder=str(tmp_path))
    reference = load_reference(settings)
    assert reference is not None
    assert [len(prompt) for prompt in reference.prompts] == [23, 61]
    core = EngineCore(settings, lambda event: None)
    verify(core, reference, settings)
    core.close()
    monkeypatch.setattr(subprocess, "run", lambda *given, **options: pytest.fail("compared again"))
    assert load_reference(settings) is None
    for change in ({"quant": "nf4"}, {"dtype": "bfloat16"}, {"kernels": "auto"}):
        with pytest.raises(pytest.fail.Exception, match="compared again"):
            load_reference(config(mistral, cache_folder=str(tmp_path), **change))


async def refused(settings: EngineConfig) -> Unavailable:
    """Start an engine that does not serve its base; the error that `wait_ready` raises."""
    engine = SupervisedEngine(settings)
    await engine.start()
    try:
        with pytest.raises(Unavailable) as caught:
            await asyncio.wait_for(engine.wait_ready(), 120)
        assert engine.restarts == 0
    finally:
        await engine.stop()
    assert caught.value.code == "unsupported_base"
    assert "\n" not in caught.value.message
    return caught.value


@pytest.mark.slow
async def test_an_engine_that_refuses_its_base_is_not_started_again(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    error = await refused(config(tmp_path))
    assert "'mamba', which is not supported: it keeps a recurrent state" in error.message


@pytest.mark.slow
async def test_half_a_base_is_refused_before_the_engine_loads_it(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = make_any_base(tmp_path / "base", "phi3")
    tensors = load_file(base / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    assert "has no lm_head.weight" in (await refused(config(base))).message
