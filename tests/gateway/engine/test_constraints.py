"""Requests with structured output beside requests without."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Literal

import pytest

from tests.gateway.engine.engine_requests import SCHEMA, constrained
from tests.gateway.engine.peft_oracle import KERNELS, Engine, prompt, request
from tunery.gateway.engine.composition import AdapterSource
from tunery.gateway.engine.messages import Failed, Token


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
    engine.core.run_until_idle()
    assert [(event.id, event.code) for event in engine.events if isinstance(event, Failed)] == [
        ("bad", "invalid_constraint")
    ]
    assert {name: len(tokens) for name, tokens in engine.answers().items()}.keys() == {"good", "fine"}
    assert engine.core.pages.usage == 0
