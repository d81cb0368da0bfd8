"""Long texts never delay other requests: they are refused by size, processed off the event loop in linear time, and
abandoned with their client.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer, normalizers, pre_tokenizers

from tests.gateway.api.conftest import Served
from tests.plugins.data.chat_templates import TEMPLATES, base_with
from tunery.gateway.api.http.worker_pool import MAX_PENDING, Abandoned, WorkerPool
from tunery.gateway.api.request.chat import MAX_MESSAGES
from tunery.plugins.data.render.renderer import Renderer
from tunery.plugins.data.render.special_tokens import SpecialTokens
from tunery.plugins.data.render.template import ChatTemplate
from tunery.plugins.data.render.token_bounds import min_token_count, token_bound
from tunery.plugins.data.render.tokenizer import BaseTokenizer

CHAT, RAW, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


def body_of(path: str, text: str) -> dict[str, Any]:
    asked: dict[str, dict[str, Any]] = {
        CHAT: {"messages": [{"role": "user", "content": text}]},
        RAW: {"prompt": text},
        EMBED: {"input": text},
    }
    return {"model": "tiny", **asked[path]}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The thread and the characters of every text that is tokenized."""
    seen: list[tuple[int, int]] = []
    read = BaseTokenizer.encode_with_offsets

    def spy(self: BaseTokenizer, text: str, **options: Any) -> Any:
        seen.append((threading.get_ident(), len(text)))
        return read(self, text, **options)

    monkeypatch.setattr(BaseTokenizer, "encode_with_offsets", spy)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("path", [CHAT, RAW, EMBED])
async def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(
    served: Served, reads: list[tuple[int, int]], path: str
) -> None:
    response = await served.post(path, body_of(path, "word and " * 400_000))
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert "at least" in error["message"]
    assert max((size for _, size in reads), default=0) < 1000


async def test_token_ids_beyond_the_context_are_not_looked_at(served: Served) -> None:
    response = await served.post(RAW, {"model": "tiny", "prompt": [0] * 1024 + [-1]})
    assert response.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.slow
@pytest.mark.parametrize("path", [CHAT, RAW, EMBED])
async def test_long_texts_are_read_off_the_event_loop_and_others_are_answered_meanwhile(
    served: Served, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    entered, go_on, threads = threading.Event(), threading.Event(), set()
    read = BaseTokenizer.encode_with_offsets

    def slow(self: BaseTokenizer, text: str, **options: Any) -> Any:
        if len(text) > 2000:
            threads.add(threading.get_ident())
            entered.set()
            assert go_on.wait(60)
        return read(self, text, **options)

    monkeypatch.setattr(BaseTokenizer, "encode_with_offsets", slow)
    long = asyncio.create_task(served.post(path, body_of(path, "a " * 1500)))
    await asyncio.to_thread(entered.wait, 60)
    for _ in range(5):  # the loop is free, and so are short requests
        assert (await served.post(path, body_of(path, "Hi"))).status_code == 200
    assert not long.done()
    go_on.set()
    await long
    assert threading.get_ident() not in threads


async def test_nothing_is_read_for_a_client_that_has_gone(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, ended = threading.Event(), threading.Event()
    encode = Renderer.encode

    def endless(self: Renderer, text: str, *, check_length: Callable[[int], None], **rest: Any) -> list[int]:
        entered.set()
        try:
            while True:
                check_length(0)
        except Abandoned:
            ended.set()
            raise

    monkeypatch.setattr(Renderer, "encode", endless)
    async with httpx.AsyncClient() as client:
        asking = asyncio.create_task(client.post(served.url + RAW, json=body_of(RAW, "a " * 1500)))
        await asyncio.to_thread(entered.wait, 60)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    assert await asyncio.to_thread(ended.wait, 60)
    monkeypatch.setattr(Renderer, "encode", encode)
    assert (await served.post(RAW, body_of(RAW, "Hi"))).status_code == 200


async def test_only_so_many_texts_wait_to_be_read(served: Served) -> None:
    go_on = threading.Event()
    workers: WorkerPool = served.gateway.workers
    reading = [asyncio.create_task(workers.run(10_000, lambda _: go_on.wait(60))) for _ in range(MAX_PENDING)]
    await asyncio.sleep(0)
    response = await served.post(RAW, body_of(RAW, "a " * 1500))
    assert response.status_code == 429
    assert response.headers["retry-after"]
    go_on.set()
    await asyncio.gather(*reading)


async def test_a_conversation_has_a_most_of_messages(served: Served) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": ""}] * (MAX_MESSAGES + 1)}
    response = await served.post(CHAT, body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "messages")


class Batched:
    """A tokenizer that must not be asked for long texts one by one: only its batched call lets go
    of the interpreter's lock."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.longest = 0

    def encode(self, text: str, **options: Any) -> Any:
        self.longest = max(self.longest, len(text))
        return self._tokenizer.encode(text, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def test_the_interpreters_lock_is_let_go_of_while_a_long_text_is_tokenized(tiny_base_folder: Path) -> None:
    renderer = Renderer(tiny_base_folder)
    doubles = [Batched(renderer.tokenizer._tokenizer), Batched(renderer.tokenizer._plain_tokenizer)]
    renderer.tokenizer._tokenizer, renderer.tokenizer._plain_tokenizer = doubles  # type: ignore[assignment]
    for text in ("word and " * 3000, "x" * 20_000, "<|im_end|> " * 2000):
        renderer.encode(text)
        renderer.prompt_ids([{"role": "user", "content": text}])
        renderer.examples([{"role": "user", "content": "a"}, {"role": "assistant", "content": text}])
    assert max(double.longest for double in doubles) < 2001


# -- linear -----------------------------------------------------------------------------------------------------------


class Work:
    """What is rendered and tokenized: messages, and characters."""

    def __init__(self) -> None:
        self.messages = self.characters = 0


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    counted = Work()
    render, read, search = ChatTemplate.render, BaseTokenizer.encode_with_offsets, SpecialTokens.find

    def counting_render(self: ChatTemplate, messages: Any, **rest: Any) -> str:
        counted.messages += len(messages)
        return render(self, messages, **rest)

    def counting_read(self: BaseTokenizer, text: str, **options: Any) -> Any:
        counted.characters += len(text)
        return read(self, text, **options)

    def counting_search(self: SpecialTokens, text: str, start: int = 0, stop: int | None = None) -> Any:
        match = search(self, text, start, stop)
        counted.characters += (match.end() if match else len(text) if stop is None else stop) - start
        return match

    monkeypatch.setattr(ChatTemplate, "render", counting_render)
    monkeypatch.setattr(BaseTokenizer, "encode_with_offsets", counting_read)
    monkeypatch.setattr(SpecialTokens, "find", counting_search)
    return counted


def talk(turns: int, kind: str) -> list[dict[str, Any]]:
    asked = {"calls": "", "empty": "", "spelled": "<s> x", "spaces": " a"}.get(kind, "some words")
    if kind == "unanswered":
        return [{"role": "user", "content": asked}] * (2 * turns)
    messages: list[dict[str, Any]] = []
    for number in range(turns):
        call = {"id": f"call{number:05}", "function": {"name": "f", "arguments": {"n": number}}}
        calls = {"tool_calls": [call]} if kind == "calls" else {}
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": asked, **calls}]
        if kind == "calls":
            messages.append({"role": "tool", "content": "1", "tool_call_id": call["id"]})
    return [*messages, {"role": "user", "content": "end"}]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "calls", "empty", "spelled", "spaces", "unanswered"])
@pytest.mark.parametrize("name", ["chatml", "llama3", "qwen3", "mistral", "words", "pieces"])
def test_twice_the_messages_are_twice_the_work(
    tiny_base_folder: Path, tmp_path: Path, work: Work, name: str, kind: str
) -> None:
    renderer = Renderer(base_with(tiny_base_folder, tmp_path / "base", name))
    renderer.prompt_ids(talk(1, kind))
    spent = []
    for turns in (100, 200):
        work.messages = work.characters = 0
        renderer.prompt_ids(talk(turns, kind))
        spent.append((work.messages, work.characters))
    (messages, characters), (more_messages, more_characters) = spent
    assert more_messages < 2.5 * messages
    assert more_characters < 2.5 * characters


@pytest.mark.parametrize("name", ["chatml", "words"])
def test_rows_of_many_turns_are_linear_too(tiny_base_folder: Path, tmp_path: Path, work: Work, name: str) -> None:
    renderer = Renderer(base_with(tiny_base_folder, tmp_path / "base", name))
    spent = []
    for turns in (100, 200):
        work.messages = work.characters = 0
        (example,) = renderer.examples(talk(turns, "spaces")[:-1])
        assert example.trained.count(True) >= turns
        spent.append((work.messages, work.characters))
    assert spent[1][0] < 2.5 * spent[0][0]
    assert spent[1][1] < 2.5 * spent[0][1]


# -- pieces and sizes -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chatml", "pieces"])
@pytest.mark.parametrize(
    "text",
    [
        "some words and, more\nof them. " * 10_000,
        "x" * 200_000,
        "世界 和平 " * 20_000,
        " a" * 100_000,
        "<s> b c" * 30_000,
    ],
)
def test_a_text_in_pieces_has_the_ids_of_the_whole(
    tiny_base_folder: Path, tmp_path: Path, name: str, text: str
) -> None:
    folder = base_with(tiny_base_folder, tmp_path / "base", name)
    whole = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False)
    counts: list[int] = []
    tokenizer = BaseTokenizer(folder)
    ids, offsets = tokenizer.encode_with_offsets(text, check_length=counts.append)
    assert ids == whole.ids
    assert list(offsets) == whole.offsets
    assert counts == sorted(counts)
    if text.startswith("some") and name == "chatml":
        assert len(counts) > 3
    assert tokenizer.bound
    assert 0 < tokenizer.min_length(text) <= len(ids)


def test_what_a_token_stands_for_is_known_only_where_nothing_is_dropped(tiny_base_folder: Path) -> None:
    def changed(**parts: Any) -> int | None:
        tokenizer = Tokenizer.from_file(str(tiny_base_folder / "tokenizer.json"))
        for part, value in parts.items():
            setattr(tokenizer, part, value)
        bound = token_bound(tokenizer)
        return bound.longest if bound else None

    plain = changed()
    assert plain is not None
    assert changed(normalizer=normalizers.NFC()) == 4 * plain
    assert changed(normalizer=normalizers.Strip()) is None
    assert changed(normalizer=normalizers.Sequence([normalizers.NFC(), normalizers.Replace("a", "")])) is None
    assert changed(pre_tokenizer=pre_tokenizers.Whitespace()) is None
    vocabulary = json.loads((tiny_base_folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert plain >= max(map(len, vocabulary))


def test_bytes_that_a_tokenizer_drops_count_for_nothing(tiny_base_folder: Path) -> None:
    described = json.loads((tiny_base_folder / "tokenizer.json").read_text())
    model = described["model"]
    gone = "\u0104"  # how the byte 4 is written
    del model["vocab"][gone]
    model["merges"] = [merge for merge in model["merges"] if gone not in "".join(merge)]
    tokenizer = Tokenizer.from_str(json.dumps(described))
    known = token_bound(tokenizer)
    assert known is not None
    assert known.dropped == b"\x04"
    for text in ("\x04" * 10_000, "a\x04" * 10_000, "word " * 100):
        assert min_token_count(text, known) <= len(tokenizer.encode(text).ids)


def test_every_template_is_among_those_of_the_test() -> None:
    assert {"chatml", "llama3", "qwen3", "mistral", "words", "pieces"} <= set(TEMPLATES)
