"""Owns structured output: which tokens keep a request's output possible; refuses what llguidance cannot promise.

The grammars are llguidance's (github.com/guidance-ai/llguidance, docs/syntax.md and docs/json_schema.md): an Earley parser
over lexemes that are derivatives of regular expressions, walked along a trie of the vocabulary. Text is at most
`MAX_BYTES` long, and a grammar that is too big, or that nothing can satisfy, is refused before its first token.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer, regex_to_lark
from llguidance.numpy import fill_next_token_bitmask_par
from numpy.typing import NDArray

from tunery.gateway.engine.messages import Constraint
from tunery.gateway.engine.structured_output.json_schema import prepare
from tunery.registry.errors import InvalidInput

if TYPE_CHECKING:
    import torch

__all__ = ["MAX_BYTES", "Grammars", "Guide", "apply_masks"]

MAX_BYTES = 256 * 1024
_CACHED, _CACHED_BYTES = 64, 256 * 2**20
# Each request has lexer states of its own, up to 0.4 kB each; a string with a maxLength takes about five per character.
# The fuel bounds what a mask may cost, to about 5 ms: it is counted and not timed, so a row fails by its own doing alone.
_LIMITS = LLParserLimits(
    max_lexer_states=100_000, max_grammar_size=50_000, step_lexer_fuel=50_000, verbose_errors=False
)
# One space or none between the parts of JSON, so that a model can neither pad nor indent at the cost of its tokens.
_SPACE = r"\x20"
_DRAWN = re.compile(r"^ *(\^+|\d+ \|.*)$", re.MULTILINE)
_KINDS = {"json_schema": "JSON schema", "json_object": "JSON", "regex": "regular expression", "grammar": "Lark grammar"}


class Grammars:
    """The constraints of one base, whose tokenizer.json lies in `folder`; it is read when the first constraint comes.

    `vocab_size` is the width of the model's logits, `eos_ids` every token that ends an output. The last 64 grammars are kept
    compiled, fewer when they are large. Safe to call from several threads; while one compiles, others run.
    """

    def __init__(self, folder: Path, vocab_size: int, eos_ids: Iterable[int]) -> None:
        self._folder = folder
        self._eos_ids = sorted(set(eos_ids))
        self._words = -(-vocab_size // 32)
        self._kept: OrderedDict[Constraint, tuple[LLMatcher, int]] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, constraint: Constraint, *, size: int = 0) -> None:
        """Raise InvalidInput (`invalid_constraint`) that says what is wrong, or make `start` cheap. `size` is its bytes, if known.

        It takes a millisecond for common schemas and minutes for hostile ones: call it where it can be killed first.
        """
        self._compiled(constraint, size)

    def knows(self, constraint: Constraint) -> bool:
        """Whether `start` is cheap."""
        with self._lock:
            return constraint in self._kept

    def start(self, constraint: Constraint) -> Guide:
        """A guide for one request, at the start of its output; errors as `compile`."""
        return Guide(self._compiled(constraint).deep_copy(), self)

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        try:
            text = (self._folder / "tokenizer.json").read_text(encoding="utf-8")
            return LLTokenizer(text, eos_token=self._eos_ids or None)
        except (OSError, ValueError) as error:
            raise _invalid(f"the tokenizer of the base in {self._folder} cannot be constrained: {error}") from error

    @cached_property
    def _executor(self) -> LLExecutor:
        return LLExecutor()

    @cached_property
    def _eos(self) -> NDArray[np.int32]:
        """The bits of the tokens that end an output, int32 [words of the tokenizer]."""
        bits = np.zeros(-(-self._tokenizer.vocab_size // 32) * 32, dtype=np.uint8)
        bits[self._tokenizer.eos_tokens] = 1
        return np.packbits(bits, bitorder="little").view(np.int32)

    def _compiled(self, constraint: Constraint, size: int = 0) -> LLMatcher:
        with self._lock:
            if constraint in self._kept:
                self._kept.move_to_end(constraint)
                return self._kept[constraint][0]
        matcher = self._build(constraint)
        with self._lock:
            self._kept[constraint] = matcher, size
            while len(self._kept) > 1 and (
                len(self._kept) > _CACHED or sum(size for _, size in self._kept.values()) > _CACHED_BYTES
            ):
                self._kept.popitem(last=False)
        return matcher

    def _build(self, constraint: Constraint) -> LLMatcher:
        try:
            grammar = _grammar(constraint)
        except (ValueError, RecursionError) as error:
            raise _invalid(f"this {_KINDS[constraint.kind]} cannot be read: {error}") from error
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=_LIMITS)
        # The first mask finds what construction does not: grammars without any text, and lexers that grow too large.
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            raise _invalid(f"this {_KINDS[constraint.kind]} cannot be used: {_plain(matcher.get_error())}")
        return matcher

    def _masks(self, guides: Sequence[Guide]) -> NDArray[np.int32]:
        """What may come next for each guide, computed in parallel, int32 [guides, words of the model's vocabulary]."""
        masks = np.empty((len(guides), self._eos.size), dtype=np.int32)
        fill_next_token_bitmask_par(self._executor, [(guide._matcher, row) for row, guide in enumerate(guides)], masks)
        # Where an end of sequence is also plain text for the tokenizer, a string could hold it, and would be cut there.
        text = masks & ~self._eos
        going_on = np.array([not guide._matcher.is_accepting() for guide in guides]) & text.any(axis=1)
        masks = np.where(going_on[:, None], text, masks)[:, : self._words]
        return np.pad(masks, ((0, 0), (0, self._words - masks.shape[1])))


class Guide:
    """Where one request's output stands in its grammar; made by `Grammars.start`.

    It outlives preemption: what is computed again is not accepted again.
    """

    def __init__(self, matcher: LLMatcher, grammars: Grammars) -> None:
        self._matcher, self._grammars = matcher, grammars

    def mask(self) -> NDArray[np.int32]:
        """What may come next, int32 [ceil(vocab_size / 32)]: bit i % 32 of word i // 32 is token i."""
        return self._grammars._masks([self])[0]  # type: ignore[no-any-return]

    def accept(self, token: int) -> None:
        """Move past `token`, which must be one that `mask` allows; any other one makes the guide fail."""
        self._matcher.consume_token(token)

    @property
    def finished(self) -> bool:
        """Nothing but an end of sequence may follow, because the text is complete, it was ended, or the guide failed."""
        return self._matcher.is_stopped()

    @property
    def failure(self) -> str:
        """Why the output cannot be continued (a limit was met, or a token was not allowed), for the caller; mostly empty."""
        return _plain(self._matcher.get_error()) if self._matcher.is_error() else ""


def apply_masks(guides: Sequence[Guide | None], logits: torch.Tensor) -> None:
    """Set to -inf, in place, what the guides do not allow in `logits` [R, vocab_size], on any device; row i is guides[i]'s.

    Rows without a guide are not touched. In every other row at least one token stays: once a guide is finished, each of the
    tokens that end an output and no other. All guides are of one Grammars, and none stands in two rows.
    """
    rows, guided = [i for i, guide in enumerate(guides) if guide], [guide for guide in guides if guide]
    if not guided:
        return
    import torch  # the process that only tries grammars does without

    packed = torch.from_numpy(guided[0]._grammars._masks(guided).view(np.uint8)).to(logits.device)
    bits = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=logits.device)
    banned = (packed[:, :, None] & bits == 0).flatten(1)[:, : logits.shape[1]]
    where = torch.tensor(rows, device=logits.device)
    logits.index_copy_(0, where, logits.index_select(0, where).masked_fill_(banned, -torch.inf))


def _grammar(constraint: Constraint) -> str:
    """The constraint in llguidance's words; raises ValueError or RecursionError."""
    kind, text = constraint.kind, constraint.text
    if kind == "json_object":
        return LLMatcher.grammar_from_json_schema({"type": "object"}, defaults={"whitespace_pattern": _SPACE})
    if not text.strip():
        raise ValueError("it is empty")
    if len(text.encode()) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES // 1024} KiB; shorten it")
    if kind == "grammar":
        return LLMatcher.grammar_from_lark(text)
    if kind == "regex":
        # As in the patterns of a JSON schema, \d is [0-9] and \w is [0-9a-zA-Z_].
        return LLMatcher.grammar_from_regex(regex_to_lark(text, "dw"))
    schema = json.loads(text)
    if not isinstance(schema, dict):
        raise ValueError("it must be a JSON object")
    # White space is bounded unless the schema asks for another in llguidance's own keyword.
    asked = schema.get("x-guidance")
    chosen = isinstance(asked, dict) and not asked.keys().isdisjoint({"whitespace_pattern", "whitespace_flexible"})
    return LLMatcher.grammar_from_json_schema(
        prepare(schema), defaults={} if chosen else {"whitespace_pattern": _SPACE}
    )


def _plain(error: str) -> str:
    """llguidance's message on one line, without its traces and its drawings of the place."""
    said = " ".join(_DRAWN.sub("", error.split("\n<")[0]).split())
    if said == "NoExtensionBias":
        return "no text satisfies it"
    return "it is too large or too complex" if said.startswith("panic") else said[:500]


def _invalid(message: str) -> InvalidInput:
    return InvalidInput(message, code="invalid_constraint")
