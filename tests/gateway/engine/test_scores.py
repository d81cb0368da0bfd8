"""Log-probabilities of prompts, and embeddings."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch

from tests.gateway.engine.engine_requests import embed, request_of
from tests.gateway.engine.peft_oracle import (
    KERNELS,
    TOLERANCE,
    Engine,
    assert_alone,
    log_probabilities,
    prompt,
    request,
    with_adapter,
)
from tunery.gateway.engine.composition import AdapterSource
from tunery.gateway.engine.messages import Embed, Embedded, Generate
from tunery.gateway.engine.scheduling.forward_batch import ForwardBatch
from tunery.gateway.engine.scheduling.scheduler import MAX_SCORED_TOKENS


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


def hidden(base: Path, one: Embed) -> torch.Tensor:
    """What transformers says: the last hidden states as the head sees them, pooled."""
    with torch.no_grad():
        model = with_adapter(base, "none", one.composition)
        states = model(input_ids=torch.tensor([one.prompt]), output_hidden_states=True).hidden_states[-1][0]
    pooled: torch.Tensor = states.mean(0) if one.pooling == "mean" else states[-1]
    return pooled


def vectors(engine: Engine) -> dict[str, list[float]]:
    return {event.id: event.vector for event in engine.events if isinstance(event, Embedded)}


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
    engine.core.run_until_idle()
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
    engine.core.run_until_idle()
    assert engine.core.stats().preemptions == 1
    torch.testing.assert_close(torch.tensor(vectors(engine)["mine"]), hidden(base, mine), rtol=0, atol=1e-4)
