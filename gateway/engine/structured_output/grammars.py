"""Structured output: compiling a request's constraint into a grammar, with a cache of compiled ones.

The grammars are llguidance's (github.com/guidance-ai/llguidance, docs/syntax.md and docs/json_schema.md): an Earley
parser over lexemes that are derivatives of regular expressions, walked along a trie of the vocabulary. A constraint is
at most MAX_CONSTRAINT bytes long; a grammar that is too large, or that no text satisfies, is refused before its first token.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from llguidance import LLMatcher, LLParserLimits, regex_to_lark

from tunery.gateway.engine.sampling_params import MAX_CONSTRAINT, Constraint
from tunery.gateway.engine.structured_output.guide import Guide, TokenMasks, describe_error
from tunery.gateway.engine.structured_output.json_schema import prepare
from tunery.registry.errors import InvalidInput

__all__ = ["Grammars"]

MAX_CACHED, MAX_CACHED_BYTES = 64, 256 * 2**20
"""Compiled grammars that are kept, and the memory they may take."""

# Each request has lexer states of its own, up to 0.4 kB each; a string with a maxLength takes about five for each
# character. The fuel bounds the cost of a mask to about 5 ms. It counts work and not time, so a row fails because of
# its own grammar alone.
_LIMITS = LLParserLimits(
    max_lexer_states=100_000, max_grammar_size=50_000, step_lexer_fuel=50_000, verbose_errors=False
)
# At most one space between the parts of JSON, so that a model can neither pad nor indent at the cost of its tokens.
_SPACE = r"\x20"
_KINDS = {"json_schema": "JSON schema", "json_object": "JSON", "regex": "regular expression", "grammar": "Lark grammar"}


class Grammars:
    """Compiles constraints for one base. Safe to call from several threads; while one compiles, the others run.

    `folder` has the base's tokenizer.json, which is read when the first constraint comes. `vocab_size` is the width of
    the model's logits, `eos_ids` are all tokens that end an output.
    """

    def __init__(self, folder: Path, vocab_size: int, eos_ids: Iterable[int]) -> None:
        self._folder = folder
        self._vocab_size = vocab_size
        self._eos_ids = sorted(set(eos_ids))
        self._cache: OrderedDict[Constraint, tuple[LLMatcher, int]] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, constraint: Constraint, *, size: int = 0) -> None:
        """Compile a constraint into the cache; `size` is the memory it takes in bytes, if known.

        Raises InvalidInput (`invalid_constraint`) saying what is wrong with it. Takes a millisecond for common schemas
        and minutes for hostile ones: call it in a process that can be killed first.
        """
        self._compiled(constraint, size)

    def is_cached(self, constraint: Constraint) -> bool:
        """Whether `start` need not compile."""
        with self._lock:
            return constraint in self._cache

    def start(self, constraint: Constraint) -> Guide:
        """A guide for one request, at the start of its output; raises as `compile` does."""
        return Guide(self._compiled(constraint).deep_copy(), self._masks)

    @cached_property
    def _masks(self) -> TokenMasks:
        return TokenMasks(self._folder, self._vocab_size, self._eos_ids)

    def _compiled(self, constraint: Constraint, size: int = 0) -> LLMatcher:
        with self._lock:
            if constraint in self._cache:
                self._cache.move_to_end(constraint)
                return self._cache[constraint][0]
        matcher = self._build(constraint)
        with self._lock:
            self._cache[constraint] = matcher, size
            while len(self._cache) > 1 and (
                len(self._cache) > MAX_CACHED or sum(size for _, size in self._cache.values()) > MAX_CACHED_BYTES
            ):
                self._cache.popitem(last=False)
        return matcher

    def _build(self, constraint: Constraint) -> LLMatcher:
        try:
            grammar = _grammar(constraint)
        except (ValueError, RecursionError) as error:
            raise _invalid(f"this {_KINDS[constraint.kind]} cannot be read: {error}") from error
        matcher = LLMatcher(self._masks.tokenizer, grammar, log_level=0, limits=_LIMITS)
        # The first mask reveals what construction does not: grammars that no text satisfies, and
        # lexers that grow too large.
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            raise _invalid(f"this {_KINDS[constraint.kind]} cannot be used: {describe_error(matcher.get_error())}")
        return matcher


def _grammar(constraint: Constraint) -> str:
    """The constraint in llguidance's syntax; raises ValueError or RecursionError."""
    kind, text = constraint.kind, constraint.text
    if kind == "json_object":
        return LLMatcher.grammar_from_json_schema({"type": "object"}, defaults={"whitespace_pattern": _SPACE})
    if not text.strip():
        raise ValueError("it is empty")
    if len(text.encode()) > MAX_CONSTRAINT:
        raise ValueError(f"it is larger than {MAX_CONSTRAINT // 1024} KiB; shorten it")
    if kind == "grammar":
        return LLMatcher.grammar_from_lark(text)
    if kind == "regex":
        # As in the patterns of a JSON schema, \d is [0-9] and \w is [0-9a-zA-Z_].
        return LLMatcher.grammar_from_regex(regex_to_lark(text, "dw"))
    schema = json.loads(text)
    if not isinstance(schema, dict):
        raise ValueError("it must be a JSON object")
    # White space is limited unless the schema configures it with llguidance's own keyword.
    options = schema.get("x-guidance")
    configured = isinstance(options, dict) and not options.keys().isdisjoint(
        {"whitespace_pattern", "whitespace_flexible"}
    )
    return LLMatcher.grammar_from_json_schema(
        prepare(schema), defaults={} if configured else {"whitespace_pattern": _SPACE}
    )


def _invalid(message: str) -> InvalidInput:
    return InvalidInput(message, code="invalid_constraint")
