"""An adapter whose numbers overflow fails its own requests with a code; other requests keep every bit."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.gateway.engine.peft_oracle import Engine, describe, make_adapter, make_base, prompt, request
from tests.gateway.serve_process import overflow
from tunery.gateway.engine.composition import AdapterSource, WeightedAdapter
from tunery.gateway.engine.messages import Embed, Embedded, Failed, Generate, Token
from tunery.gateway.engine.models.native.decoder import Decoder
from tunery.gateway.engine.models.native.kernels import load_kernels
from tunery.gateway.engine.models.native.ops import sampling as native
from tunery.gateway.engine.sampling.sampler import Reduction, argmax_logsumexp, sample
from tunery.registry.errors import StorageFailed

NATIVE = load_kernels()
KERNELS = ["auto", "torch"] if NATIVE else ["torch"]
REDUCTIONS = [argmax_logsumexp, partial(native.argmax_logsumexp, NATIVE)] if NATIVE else [argmax_logsumexp]
TARGETS = (["q_proj"], ["k_proj"], ["v_proj"], ["up_proj", "down_proj"], ["lm_head"], ["embed_tokens"])
pytestmark = pytest.mark.filterwarnings(
    "ignore:Setting `save_embedding_layers`:UserWarning", "ignore:.*(tied|tying).*:UserWarning"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AdapterSource, list[AdapterSource]]:
    """A base, a sound adapter, and broken ones, one for each kind of target."""
    folder = tmp_path_factory.mktemp("nonfinite")
    base = make_base(folder / "base", "llama")
    broken = []
    for index, targets in enumerate(TARGETS):
        make_adapter(base, folder / str(index), seed=index, target_modules=targets)
        broken.append(describe(overflow(folder / str(index)), name=f"acme/broken-{index}"))
    return base, make_adapter(base, folder / "sound", seed=9), broken


@pytest.fixture(scope="module", params=[(kind, dtype) for kind in KERNELS for dtype in ("float32", "bfloat16")])
def engine(world: tuple[Path, AdapterSource, list[AdapterSource]], request: pytest.FixtureRequest) -> Iterator[Engine]:
    kind, dtype = request.param
    engine = Engine.on(world[0], kernels=kind, dtype=dtype)
    yield engine
    engine.core.close()


def run(engine: Engine, requests: list[Generate | Embed]) -> tuple[dict[str, list[Token]], dict[str, Failed]]:
    """Run to the end; the tokens and the failures by request."""
    engine.events.clear()
    for one in requests:
        engine.core.handle(one)
    engine.core.run_until_idle()
    # How much was found in the prefix cache differs from run to run; nothing else may.
    answers = {
        name: [msgspec.structs.replace(token, cached_tokens=0) for token in tokens]
        for name, tokens in engine.answers().items()
    }
    return answers, {event.id: event for event in engine.events if isinstance(event, Failed)}


def neighbours(sound: AdapterSource) -> list[Generate | Embed]:
    return [
        request("base", prompt(7, seed=1)),
        request("sound", prompt(20, seed=2), sound),
        request("warm", prompt(9, seed=3), sound, temperature=0.9, seed=7, top_p=0.9),
    ]


def assert_untouched(engine: Engine, after: dict[str, list[Token]], before: dict[str, list[Token]]) -> None:
    """Every bit on the decoder; as much as any company changes with transformers' code, which promises no bits."""
    if isinstance(engine.core.model, Decoder):
        assert after == before
        return
    for name, tokens in after.items():
        assert len(tokens) == len(before[name])
        if engine.core.ready().dtype == "float32":
            assert [token.token for token in tokens] == [token.token for token in before[name]]
            near = pytest.approx([token.logprob for token in before[name]], abs=1e-4)
            assert [token.logprob for token in tokens] == near


def composed(name: str, *parts: tuple[AdapterSource, float]) -> Generate:
    composition = tuple(WeightedAdapter(source, weight) for source, weight in parts)
    return msgspec.structs.replace(request(name, prompt(6, seed=5)), composition=composition)


@pytest.mark.slow
def test_a_broken_adapter_fails_and_its_neighbours_keep_every_bit(
    engine: Engine, world: tuple[Path, AdapterSource, list[AdapterSource]]
) -> None:
    _, sound, broken = world
    before, none = run(engine, neighbours(sound))
    assert none == {}
    asked: list[Generate | Embed] = [
        request(f"broken-{index}", prompt(5 + index, seed=index), one) for index, one in enumerate(broken)
    ]
    asked += [
        composed("two", (broken[2], 1.0), (broken[3], 1.0)),
        composed("half", (sound, 1.0), (broken[2], 0.5)),
        request("scored", prompt(9, seed=3), broken[3], prompt_logprobs=2, logprobs=3),
        request("drawn", prompt(9, seed=3), broken[2], temperature=1.5, top_p=0.5, top_k=5, min_p=0.1, seed=1),
        request("biased", prompt(9, seed=3), broken[3], logit_bias={5: 100.0}, repetition_penalty=1e-30),
    ]
    after, failures = run(engine, [*asked, *neighbours(sound)])
    assert set(failures) == {one.id for one in asked}
    assert {event.code for event in failures.values()} == {"nonfinite_output"}
    assert "acme/broken-2@1" in failures["broken-2"].message
    assert "acme/test@1+acme/broken-2@1:0.5" in failures["half"].message
    assert after.keys() == before.keys()  # a broken one says nothing at all
    assert_untouched(engine, after, before)
    # And what the broken ones left in the pages touches nobody who gets them next.
    again, none = run(engine, neighbours(sound))
    assert none == {}
    assert again.keys() == before.keys()
    assert_untouched(engine, again, before)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_embeddings_fail_likewise(
    engine: Engine, world: tuple[Path, AdapterSource, list[AdapterSource]], pooling: Any
) -> None:
    _, sound, broken = world
    commands: list[Generate | Embed] = [
        Embed(id=name, prompt=prompt(9, seed=1), pooling=pooling, composition=composition)
        for name, composition in {
            "broken": (WeightedAdapter(broken[3]),),
            "sound": (WeightedAdapter(sound),),
            "base": (),
        }.items()
    ]
    _, failures = run(engine, commands)
    assert [(event.id, event.code) for event in failures.values()] == [("broken", "nonfinite_output")]
    vectors = {event.id: event.vector for event in engine.events if isinstance(event, Embedded)}
    assert set(vectors) == {"sound", "base"}
    assert all(torch.tensor(vector).isfinite().all() for vector in vectors.values())


def test_a_dora_whose_norm_overflows_is_refused_when_it_is_loaded(
    engine: Engine, world: tuple[Path, AdapterSource, list[AdapterSource]], tmp_path: Path
) -> None:
    make_adapter(world[0], tmp_path / "dora", use_dora=True)
    _, failures = run(engine, [request("dora", prompt(5, seed=1), describe(overflow(tmp_path / "dora")))])
    assert (failures["dora"].code, "merged weight of" in failures["dora"].message) == ("artifact_nonfinite", True)


@pytest.mark.parametrize("kind", KERNELS)
def test_a_broken_base_is_reported_before_it_serves(tmp_path: Path, kind: str) -> None:
    base = make_base(tmp_path / "base", "llama")
    path = base / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.down_proj.weight"].fill_(1e38)
    save_file(tensors, path, metadata={"format": "pt"})
    engine = Engine.on(base, kernels=kind)
    with pytest.raises(StorageFailed, match="the base tiny by itself") as caught:
        engine.core.warm_up()
    assert caught.value.code == "base_nonfinite"
    _, failures = run(engine, [request("one", prompt(4, seed=1))])
    assert failures["one"].code == "base_nonfinite"


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 17, 299])
def test_one_wrong_logit_is_found_wherever_it_is(reduce: Reduction, bad: float, place: int) -> None:
    from tests.gateway.engine.sampling.test_sampler import sequence

    logits = torch.randn(3, 300, generator=torch.Generator().manual_seed(1))
    whole = sample(logits, [sequence()] * 3, reduce)
    logits[1, place] = bad
    assert not bool(reduce(logits)[1][1].isfinite())
    assert sample(logits, [sequence()] * 3, reduce) == [whole[0], None, whole[2]]
    # What an overflow the other way makes impossible is in no answer.
    logits[1, place] = -torch.inf
    chosen = sample(logits, [sequence()] * 3, reduce)[1]
    assert chosen is not None
    assert chosen.token != place
