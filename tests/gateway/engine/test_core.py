"""The engine's loop: sampling, stopping, cancelling, scarce memory, and aliases that move while requests run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.gateway.engine.engine_requests import SCHEMA, constrained, embed
from tests.gateway.engine.peft_oracle import KERNELS, Engine, assert_same, prompt, request
from tunery.gateway.engine.composition import AdapterSource
from tunery.gateway.engine.messages import (
    Cancel,
    Embed,
    Embedded,
    Failed,
    Generate,
    Load,
    Loaded,
    Timings,
    Tokens,
    TopToken,
    Unload,
    Unloaded,
)


@pytest.mark.slow
def test_a_seed_gives_the_same_text_whatever_the_neighbours(base: Path, adapters: list[AdapterSource]) -> None:
    engine = Engine.on(base)
    mine = request("mine", prompt(9, seed=1), adapters[0], temperature=0.9, top_p=0.95, top_k=50, seed=7)
    lonely = engine.run([mine])["mine"]
    others = [request(f"o{i}", prompt(5 + i, seed=i), adapters[i % 4], temperature=1.0) for i in range(6)]
    crowded = engine.run([*others[:3], mine, *others[3:]])["mine"]
    assert [token.token for token in crowded] == [token.token for token in lonely]
    reseeded = request("mine", mine.prompt, adapters[0], temperature=0.9, seed=8)
    assert [token.token for token in engine.run([reseeded])["mine"]] != [token.token for token in lonely]


def test_sampling_settings_have_their_effect(base: Path) -> None:
    engine = Engine.on(base)
    plain = engine.run([request("r", prompt(9, seed=1))])["r"]
    first = plain[0].token
    assert engine.run([request("r", prompt(9, seed=1), temperature=1.0, top_k=1)])["r"][0].token == first
    assert engine.run([request("r", prompt(9, seed=1), temperature=1.0, top_p=1e-6)])["r"][0].token == first
    assert engine.run([request("r", prompt(9, seed=1), temperature=1.0, min_p=1.0)])["r"][0].token == first
    assert engine.run([request("r", prompt(9, seed=1), logit_bias={first: -100.0})])["r"][0].token != first
    assert engine.run([request("r", prompt(9, seed=1), logit_bias={5: 100.0})])["r"][-1].token == 5
    with_penalty = engine.run([request("r", prompt(9, seed=1), max_tokens=40, frequency_penalty=2.0)])["r"]
    without = engine.run([request("r", prompt(9, seed=1), max_tokens=40)])["r"]
    assert len({t.token for t in with_penalty}) > len({t.token for t in without})
    assert engine.run([request("r", prompt(9, seed=1), repetition_penalty=50.0)])["r"][0].token not in prompt(9, seed=1)


def test_logprobs_list_alternatives_in_order(base: Path) -> None:
    token = Engine.on(base).run([request("r", prompt(9, seed=1), logprobs=5, max_tokens=1)])["r"][0]
    assert len(token.top) == 5
    assert token.top[0] == TopToken(token.token, token.logprob)
    assert [top.logprob for top in token.top] == sorted((top.logprob for top in token.top), reverse=True)


def test_end_of_turn_and_stop_tokens_end_a_request(base: Path) -> None:
    engine = Engine.on(base)
    first = engine.run([request("r", prompt(9, seed=1))])["r"]
    stop = first[3].token
    stopped = engine.run([request("r", prompt(9, seed=1), stop_token_ids=(stop,))])["r"]
    assert [token.finish for token in stopped[-1:]] == ["stop"]
    assert stopped[-1].token == stop
    assert len(stopped) <= 4
    held_back = engine.run([request("r", prompt(9, seed=1), stop_token_ids=(stop,), min_tokens=8)])["r"]
    assert len(held_back) >= 8
    assert first[-1].finish == "length"


def test_cancelled_requests_free_everything(base: Path, adapters: list[AdapterSource]) -> None:
    engine = Engine.on(base)
    engine.core.handle(request("gone", prompt(9, seed=1), adapters[0], max_tokens=200))
    while not any(isinstance(event, Tokens) for event in engine.events):
        engine.core.step()
    assert engine.core.stats().running_adapters == {"acme/test": 1}
    engine.core.handle(Cancel("gone"))
    engine.core.handle(Cancel("never was"))
    assert engine.core.idle
    assert engine.core.stats().kv_used == 0
    assert [resident.running for resident in engine.core.stats().resident] == [0]


def loaded_bytes(base: Path, adapter: AdapterSource) -> int:
    """The memory an adapter takes once it is loaded."""
    engine = Engine.on(base)
    engine.core.handle(Load("size", adapter))
    engine.core.run_until_idle()
    return engine.core.residency.bytes


def test_more_adapters_than_room_all_get_their_turn(base: Path, adapters: list[AdapterSource]) -> None:
    size = loaded_bytes(base, adapters[0])
    engine = Engine.on(base, adapter_budget=size * 2 + 100)
    requests = [request(f"{i}", prompt(5, seed=i), adapters[i % 4]) for i in range(12)]
    requests += [request(f"base-{i}", prompt(5, seed=i)) for i in range(3)]
    scarce, plenty = engine.run(requests), Engine.on(base).run(requests)
    for one in requests:
        assert_same(scarce[one.id], plenty[one.id])
    stats = engine.core.stats()
    assert stats.resident_bytes <= size * 2 + 100
    assert sum(stats.evictions.values()) >= 2


def test_more_requests_than_the_cache_or_the_batch_holds_wait(base: Path) -> None:
    requests = [request(f"{i}", prompt(10, seed=i), max_tokens=30) for i in range(9)]
    few_blocks = Engine.on(base, kv_tokens=100).run(requests)
    small_batches = Engine.on(base, max_batch=2).run(requests)
    for one in requests:
        assert_same(few_blocks[one.id], small_batches[one.id])


def test_what_could_never_run_is_refused_at_once(base: Path) -> None:
    engine = Engine.on(base, context_length=64)
    engine.core.handle(request("long", prompt(60, seed=1), max_tokens=5))
    engine.core.handle(request("empty", ()))
    engine.core.handle(request("strange", (5, 99999)))
    failures = {event.id: event.code for event in engine.events if isinstance(event, Failed)}
    assert failures == {"long": "context_length_exceeded", "empty": "invalid_input", "strange": "invalid_input"}
    assert engine.core.idle


def test_a_broken_adapter_fails_only_its_own_requests(
    base: Path, adapters: list[AdapterSource], tmp_path: Path
) -> None:
    broken = tmp_path / "adapter_model.safetensors"
    broken.write_bytes(Path(adapters[0].files["adapter_model.safetensors"]).read_bytes()[:-50])
    bad = AdapterSource("bad", "acme/bad", 1, {**adapters[0].files, "adapter_model.safetensors": str(broken)})
    engine = Engine.on(base)
    engine.core.handle(request("bad", prompt(5, seed=1), bad))
    engine.core.handle(request("good", prompt(5, seed=1), adapters[1]))
    engine.core.run_until_idle()
    assert [(event.id, event.code) for event in engine.events if isinstance(event, Failed)] == [
        ("bad", "storage_failed")
    ]
    assert (
        sum(token.id == "good" for event in engine.events if isinstance(event, Tokens) for token in event.tokens) == 12
    )


def test_preload_and_unload_are_answered_with_bytes(base: Path, adapters: list[AdapterSource]) -> None:
    engine = Engine.on(base)
    engine.core.handle(Load("l", adapters[0]))
    engine.core.run_until_idle()
    loaded = next(event for event in engine.events if isinstance(event, Loaded))
    assert loaded.bytes == engine.core.stats().resident_bytes > 0
    engine.core.handle(Unload("u", adapters[0].digest))
    assert Unloaded("u", adapters[0].digest, loaded.bytes) in engine.events
    assert engine.core.stats().resident_bytes == 0


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"peft_type": "LOHA"}, "unsupported_adapter"),
        ({"use_qalora": True}, "unsupported_adapter"),
        ({"layer_replication": [[0, 1]]}, "unsupported_adapter"),
        ({"trainable_token_indices": [1]}, "artifact_truncated"),
        ({"init_lora_weights": "pissa_niter_4"}, "unsupported_adapter"),
    ],
)
def test_peft_features_that_are_not_applied_are_refused_by_name(
    base: Path, adapters: list[AdapterSource], tmp_path: Path, change: dict[str, object], code: str
) -> None:
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(Path(adapters[0].files[config.name]).read_text()) | change))
    engine = Engine.on(base)
    source = AdapterSource("changed", "acme/x", 1, {**adapters[0].files, config.name: str(config)})
    engine.core.handle(request("r", prompt(5, seed=1), source))
    engine.core.run_until_idle()
    failure = next(event for event in engine.events if isinstance(event, Failed))
    assert failure.code == code
    assert str(next(iter(change.values()))) in failure.message or next(iter(change)) in failure.message


# -- sharing and freeing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", KERNELS)
def test_equal_prompts_at_once_share_their_pages(base: Path, adapters: list[AdapterSource], kernels: str) -> None:
    engine = Engine.on(base, kernels=kernels, kv_tokens=160)
    mine = [request(str(i), prompt(70, seed=1), adapters[0], temperature=1.0, seed=i, max_tokens=6) for i in range(5)]
    served = engine.run(mine)
    assert sorted(tokens[0].cached_tokens for tokens in served.values()) == [0, 64, 64, 64, 64]
    assert len({tuple(token.token for token in tokens) for tokens in served.values()}) > 1
    assert engine.core.stats().prefix_hits == 4 * 64
    assert engine.core.stats().preemptions == 0  # five alone would not have fitted
    fresh = Engine.on(base, kernels=kernels, prefix_cache=False)
    for one in mine:
        assert [t.token for t in fresh.run([one])[one.id]] == [t.token for t in served[one.id]]


def test_cancelling_frees_everything_wherever_a_request_is(
    tiny_base_folder: Path, spoken_adapters: list[AdapterSource]
) -> None:
    engine = Engine.on(tiny_base_folder, max_batch=2, token_budget=16)
    asked: list[Generate | Embed] = [
        request("running", prompt(60, seed=1), spoken_adapters[0], max_tokens=100),
        embed("half way", prompt(100, seed=2), "mean", spoken_adapters[0]),
        request("waiting", prompt(5, seed=3), spoken_adapters[1], max_tokens=100),
        constrained("compiling", "json_schema", SCHEMA),
    ]
    for one in asked[:3]:
        engine.core.handle(one)
    while not (engine.core.scheduler.running and engine.core.pages.usage):
        engine.core.step()
    engine.core.handle(asked[3])
    engine.core.step()
    for one in asked:
        engine.core.handle(Cancel(one.id))
        engine.core.handle(Cancel(one.id))
    assert engine.core.idle
    stats = engine.core.stats()
    assert (stats.running, stats.waiting, stats.kv_used) == (0, 0, 0)
    assert all(one.running == 0 for one in stats.resident)
    count = len(engine.events)
    engine.core.run_until_idle()
    engine.core.step()
    assert not any(isinstance(event, Tokens | Embedded | Failed) for event in engine.events[count:])


def test_only_requests_count_as_hits(base: Path, adapters: list[AdapterSource]) -> None:
    engine = Engine.on(base)
    for name in ("l1", "l2"):
        engine.core.handle(Load(name, adapters[0], pin=True))
        engine.core.run_until_idle()
    assert not any(engine.core.stats().hits.values())
    engine.run([request("a", prompt(5, seed=1), adapters[0]), request("b", prompt(5, seed=2), adapters[0])])
    assert engine.core.stats().hits == {"acme/test": 2}
    assert [one.pinned for one in engine.core.stats().resident] == [True]


def test_a_first_token_says_how_long_its_request_waited_for_what(base: Path, adapters: list[AdapterSource]) -> None:
    engine = Engine.on(base)
    cold, warm = request("cold", prompt(5, seed=1), adapters[0]), request("warm", prompt(5, seed=1), adapters[0])
    asked: list[Generate | Embed] = [cold, warm, embed("vector", prompt(5, seed=1), "mean")]
    timings: dict[str, Timings] = {}
    for one in asked:
        engine.events.clear()
        engine.core.handle(one)
        engine.core.run_until_idle()
        said = [event for event in engine.events if isinstance(event, Tokens | Embedded)]
        first, *others = [one for event in said for one in (event.tokens if isinstance(event, Tokens) else [event])]
        assert all(other.timings is None for other in others)
        assert first.timings is not None
        timings[one.id] = first.timings
    assert 0 < (timings["cold"].loaded or 0) <= timings["cold"].started < timings["cold"].prefilled
    for name in ("warm", "vector"):
        assert timings[name].loaded is None
        assert 0 <= timings[name].started < timings[name].prefilled
