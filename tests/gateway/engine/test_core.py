"""The engine's loop: sampling, stopping, cancelling, scarce memory, and aliases that move while requests run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
import torch

from tests.gateway.engine.peft_oracle import (
    TOLERANCE,
    Engine,
    assert_alone,
    assert_same,
    log_probabilities,
    make_adapter,
    make_base,
    prompt,
    request,
    with_adapter,
)
from tunery.gateway.engine.composition import AdapterSource, WeightedAdapter
from tunery.gateway.engine.messages import (
    Cancel,
    Embed,
    Embedded,
    Failed,
    Generate,
    Load,
    Loaded,
    Token,
    Tokens,
    TopToken,
    Unload,
    Unloaded,
)
from tunery.gateway.engine.models.native.kernels import load_kernels
from tunery.gateway.engine.sampling_params import Constraint
from tunery.gateway.engine.scheduling.forward_batch import ForwardBatch
from tunery.gateway.engine.scheduling.scheduler import MAX_SCORED_TOKENS

KERNELS = ["auto", "torch"] if load_kernels() else ["torch"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"), "llama")


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[AdapterSource]:
    return [make_adapter(base, tmp_path_factory.mktemp(f"a{i}"), seed=i) for i in range(4)]


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


# -- scores and vectors -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("budget", [0, 7])
def test_a_prompts_scores_are_pefts_however_it_is_cut(
    base: Path, adapters: list[AdapterSource], kernels: str, budget: int
) -> None:
    engine = Engine.on(base, kernels=kernels, token_budget=budget)
    asked = [
        request("adapted", prompt(40, seed=1), adapters[0], prompt_logprobs=3),
        request("base", prompt(21, seed=2), prompt_logprobs=0),
        request("one", prompt(1, seed=3), prompt_logprobs=1),
        request("unasked", prompt(9, seed=4), adapters[1]),
    ]
    served = engine.run(asked)
    for one in asked[:3]:
        first, *others = served[one.id]
        expected = log_probabilities(with_adapter(base, "none", one.composition), one.prompt)[:-1]
        assert len(first.prompt_scores) == len(one.prompt) - 1
        for score, row, token in zip(first.prompt_scores, expected, one.prompt[1:], strict=True):
            assert score.logprob == pytest.approx(float(row[token]), abs=TOLERANCE)
            best = row.topk(one.sampling.prompt_logprobs or 0)
            assert [top.token for top in score.top] == best.indices.tolist()
            assert [top.logprob for top in score.top] == pytest.approx(best.values.tolist(), abs=TOLERANCE)
        assert not any(token.prompt_scores for token in others)
    assert served["unasked"][0].prompt_scores == ()
    assert_alone(with_adapter(base, "none", asked[0].composition), asked[0], served["adapted"])


def test_the_logits_of_a_step_are_bounded_however_many_requests_want_scores(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine.on(base)
    rows: list[int] = []
    run = engine.core.model.run

    def counted(step: ForwardBatch) -> tuple[torch.Tensor, torch.Tensor]:
        rows.append(len(step.logits))
        return run(step)

    monkeypatch.setattr(engine.core.model, "run", counted)
    asked = [request(str(index), prompt(50, seed=index), prompt_logprobs=0, max_tokens=1) for index in range(8)]
    served = engine.run([*asked, request("unasked", prompt(200, seed=9), max_tokens=3)])
    assert max(rows) <= MAX_SCORED_TOKENS + 9
    assert all(len(served[one.id][0].prompt_scores) == 49 for one in asked)
    assert served["unasked"][-1].finish == "length"


def embed(
    name: str, tokens: tuple[int, ...], pooling: Literal["mean", "last"], adapter: AdapterSource | None = None
) -> Embed:
    return Embed(id=name, prompt=tokens, pooling=pooling, composition=(WeightedAdapter(adapter),) if adapter else ())


def hidden(base: Path, one: Embed) -> torch.Tensor:
    """What transformers says: the last hidden states as the head sees them, pooled."""
    with torch.no_grad():
        model = with_adapter(base, "none", one.composition)
        states = model(input_ids=torch.tensor([one.prompt]), output_hidden_states=True).hidden_states[-1][0]
    pooled: torch.Tensor = states.mean(0) if one.pooling == "mean" else states[-1]
    return pooled


def vectors(engine: Engine) -> dict[str, list[float]]:
    return {event.id: event.vector for event in engine.events if isinstance(event, Embedded)}


def finish(engine: Engine) -> None:
    engine.core.run_until_idle()


@pytest.mark.slow
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("budget", [0, 7])
def test_embeddings_are_transformers_hidden_states(
    base: Path, adapters: list[AdapterSource], kernels: str, budget: int
) -> None:
    engine = Engine.on(base, kernels=kernels, token_budget=budget)
    asked = [
        embed(f"{pooling}-{number}", prompt(length, seed=length), pooling, adapter)
        for pooling in ("mean", "last")
        for number, (length, adapter) in enumerate([(30, adapters[0]), (1, None), (33, None), (48, adapters[1])])
    ]
    chatter = request("chatter", prompt(12, seed=9), adapters[0])
    together: list[Embed | Generate] = [asked[0], chatter, *asked[1:]]
    for each in together:
        engine.core.handle(each)
    finish(engine)
    answers = vectors(engine)
    for one in asked:
        torch.testing.assert_close(torch.tensor(answers[one.id]), hidden(base, one), rtol=0, atol=1e-4)
    assert_alone(with_adapter(base, "none", chatter.composition), chatter, engine.answers()["chatter"])
    assert engine.core.pages.usage == 0


def test_an_embedding_that_was_taken_out_is_not_added_up_twice(base: Path) -> None:
    # The first tenant fills the cache; the second's request takes its youngest out, half way.
    engine = Engine.on(base, kv_tokens=96, token_budget=16, prefix_cache=False)
    mine = msgspec.structs.replace(embed("mine", prompt(60, seed=1), "mean"), tenant="a")
    engine.core.handle(request_of("a", "filler", prompt(20, seed=2), max_tokens=12))
    engine.core.handle(mine)
    for _ in range(3):
        engine.core.step()
    half_way = engine.core.scheduler.find("mine")
    assert half_way is not None
    assert half_way.pooled is not None
    engine.core.handle(request_of("b", "b", prompt(30, seed=3), max_tokens=30))
    finish(engine)
    assert engine.core.stats().preemptions == 1
    torch.testing.assert_close(torch.tensor(vectors(engine)["mine"]), hidden(base, mine), rtol=0, atol=1e-4)


def request_of(tenant: str, name: str, tokens: tuple[int, ...], **sampling: Any) -> Generate:
    return msgspec.structs.replace(request(name, tokens, **sampling), tenant=tenant)


# -- constraints ------------------------------------------------------------------------------------------------------

SCHEMA = '{"type": "object", "properties": {"team": {"enum": ["billing", "tech"]}, "n": {"type": "integer", "maximum": 99}}, "required": ["team", "n"], "additionalProperties": false}'


@pytest.fixture(scope="module")
def spoken_adapters(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[AdapterSource]:
    return [make_adapter(tiny_base_folder, tmp_path_factory.mktemp(f"s{i}"), seed=i, size=0.05) for i in range(2)]


def constrained(
    name: str,
    kind: Literal["json_schema", "json_object", "regex", "grammar"],
    text: str,
    adapter: AdapterSource | None = None,
    **sampling: Any,
) -> Generate:
    settings = {"max_tokens": 60, "temperature": 1.0, "seed": 3, "ignore_eos": False, **sampling}
    return request(name, prompt(9, seed=1), adapter, constraint=Constraint(kind, text), **settings)


def text_of(folder: Path, tokens: list[Token]) -> str:
    from tokenizers import Tokenizer

    return str(Tokenizer.from_file(str(folder / "tokenizer.json")).decode([token.token for token in tokens]))


@pytest.mark.slow
@pytest.mark.parametrize("kernels", KERNELS)
def test_constrained_rows_obey_and_their_neighbours_do_not_notice(
    tiny_base_folder: Path, spoken_adapters: list[AdapterSource], kernels: str
) -> None:
    engine = Engine.on(tiny_base_folder, kernels=kernels, prefix_cache=False)
    free = [
        request("greedy", prompt(30, seed=5), spoken_adapters[0]),
        request("seeded", prompt(20, seed=6), temperature=0.9, seed=4, logprobs=2),
    ]
    lonely = {one.id: engine.run([one])[one.id] for one in free}
    bound = [
        constrained("schema", "json_schema", SCHEMA, spoken_adapters[0]),
        constrained("greedy-schema", "json_schema", SCHEMA, temperature=0.0),
        constrained("regex", "regex", "[0-9]{3}-[a-f]{2}", spoken_adapters[1]),
        constrained("unending", "regex", "x+", max_tokens=7),
        constrained("not yet", "regex", "ab?c?d?", min_tokens=30),
    ]
    served = engine.run([bound[0], free[0], *bound[1:3], free[1], *bound[3:]])
    assert {name: served[name] for name in lonely} == lonely  # bit for bit
    texts = {one.id: text_of(tiny_base_folder, served[one.id]) for one in bound}
    for name in ("schema", "greedy-schema"):
        answer = json.loads(texts[name])
        assert answer["team"] in {"billing", "tech"}
        assert answer["n"] <= 99
    assert re.fullmatch("[0-9]{3}-[a-f]{2}", texts["regex"])
    assert re.fullmatch("x+", texts["unending"])
    assert re.fullmatch("ab?c?d?", texts["not yet"])  # it ends when it must, before the least number of tokens
    assert [served[one.id][-1].finish for one in bound] == ["stop", "stop", "stop", "length", "stop"]
    alone = {one.id: engine.run([one])[one.id] for one in bound}
    assert {name: [token.token for token in tokens] for name, tokens in alone.items()} == {
        one.id: [token.token for token in served[one.id]] for one in bound
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("json_schema", '{"type": "string", "minLength": 5, "maxLength": 2}'),
        ("json_schema", "{"),
        ("regex", "("),
        ("grammar", "start: missing"),
    ],
)
def test_an_impossible_constraint_fails_its_request_only(
    tiny_base_folder: Path, kind: Literal["json_schema", "regex", "grammar"], text: str
) -> None:
    engine = Engine.on(tiny_base_folder)
    engine.core.handle(constrained("bad", kind, text))
    engine.core.handle(request("good", prompt(5, seed=1)))
    engine.core.handle(constrained("fine", "regex", "[ab]{4}"))
    finish(engine)
    assert [(event.id, event.code) for event in engine.events if isinstance(event, Failed)] == [
        ("bad", "invalid_constraint")
    ]
    assert {name: len(tokens) for name, tokens in engine.answers().items()}.keys() == {"good", "fine"}
    assert engine.core.pages.usage == 0


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
    finish(engine)
    engine.core.step()
    assert not any(isinstance(event, Tokens | Embedded | Failed) for event in engine.events[count:])


def test_only_requests_count_as_hits(base: Path, adapters: list[AdapterSource]) -> None:
    engine = Engine.on(base)
    for name in ("l1", "l2"):
        engine.core.handle(Load(name, adapters[0], pin=True))
        finish(engine)
    assert not any(engine.core.stats().hits.values())
    engine.run([request("a", prompt(5, seed=1), adapters[0]), request("b", prompt(5, seed=2), adapters[0])])
    assert engine.core.stats().hits == {"acme/test": 2}
    assert [one.pinned for one in engine.core.stats().resident] == [True]
